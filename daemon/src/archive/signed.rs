//! Signed URLs: a CDN gives packs to whoever has a private key whose public half it trusts (`archive.read_url_key_id`, `archive.read_url_key_file`).
//!
//! ```text
//! URL ? Expires=T & Signature=S & Key-Pair-Id=K & Hash-Algorithm=SHA256
//!
//! S        the signature of the policy, in base64 with - _ ~ where that has + = /
//! policy   {"Statement":[{"Resource":"URL","Condition":{"DateLessThan":{"AWS:EpochTime":T}}}]}
//! ```
//!
//! As CloudFront takes them (its "canned policy"): by a key of RSA, PKCS #1 v1.5, or of ECDSA on P-256, ASN.1, and SHA-256 with both. SHA-1, which it takes where no algorithm is named, is not
//! offered. SPEC: CloudFront Developer Guide, "Create a signed URL using a canned policy".

use std::fmt;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use rustls::SignatureScheme;
use rustls::crypto::aws_lc_rs::sign::any_supported_type;
use rustls::sign::Signer;

use crate::{config, tls};

use super::Error;

/// An URL is good for so long. It is looked at when a request begins, and one is made for each; so this is for queues on the way, and for a clock that is behind.
const LIFETIME: Duration = Duration::from_secs(600);
/// What CloudFront takes.
const SCHEMES: [SignatureScheme; 2] = [SignatureScheme::ECDSA_NISTP256_SHA256, SignatureScheme::RSA_PKCS1_SHA256];

/// What stands before a bucket.
#[derive(Clone, Debug)]
pub struct ReadUrl {
    /// Without a slash at its end.
    pub base: String,
    /// How it is told who asks; not at all when it asks nobody.
    pub signing: Option<Arc<Signing>>,
}

/// A private key, and its name at the CDN.
pub struct Signing {
    key_id: String,
    signer: Box<dyn Signer>,
}

impl fmt::Debug for Signing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Signing({})", self.key_id)
    }
}

/// What the settings say of it. Blocks for a moment.
///
/// # Errors
/// `SigningKey`.
pub(super) fn read_url(archive: &config::Archive) -> Result<Option<ReadUrl>, Error> {
    let Some(base) = archive.read_url.clone() else { return Ok(None) };
    let signing = match (&archive.read_url_key_id, &archive.read_url_key_file) {
        (Some(id), Some(file)) => Some(Arc::new(Signing::read(id, file)?)),
        _ => None,
    };
    Ok(Some(ReadUrl { base, signing }))
}

impl Signing {
    /// Reads the key from a PEM file.
    ///
    /// # Errors
    /// `SigningKey` when it can't be read, others may read it, or CloudFront takes no such key.
    pub fn read(key_id: &str, file: &Path) -> Result<Self, Error> {
        let key = tls::private_key(file).map_err(|error| Error::SigningKey(error.to_string()))?;
        let signer = any_supported_type(&key).ok().and_then(|key| key.choose_scheme(&SCHEMES));
        let signer = signer.ok_or_else(|| {
            let file = file.display();
            Error::SigningKey(format!(
                "CloudFront takes no key such as that of {file}; make one with: openssl ecparam -name prime256v1 -genkey -noout -out {file}"
            ))
        })?;
        Ok(Self { key_id: key_id.to_owned(), signer })
    }

    /// The same URL, good for a while from `now`.
    ///
    /// # Errors
    /// The key can't sign; that has no reason.
    pub fn sign(&self, url: &str, now: SystemTime) -> Result<String, String> {
        let expires = (now + LIFETIME).duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
        let signature = self.signer.sign(policy(url, expires).as_bytes()).map_err(|error| format!("sign what is asked for: {error}"))?;
        let signature = BASE64.encode(signature).replace('+', "-").replace('=', "_").replace('/', "~");
        Ok(format!("{url}?Expires={expires}&Signature={signature}&Key-Pair-Id={}&Hash-Algorithm=SHA256", self.key_id))
    }
}

fn policy(url: &str, expires: u64) -> String {
    format!(r#"{{"Statement":[{{"Resource":"{url}","Condition":{{"DateLessThan":{{"AWS:EpochTime":{expires}}}}}}}]}}"#)
}

/// Why the CDN says no, and what to do about it; `body` is what its answer has to say. Empty: it is not about who asks.
pub(super) fn advice(is_signed: bool, body: &str) -> &'static str {
    let has = |words| body.contains(words);
    if has("InvalidObjectState") {
        ""
    } else if has("<HostId>") {
        "; the bucket does not give it to the CDN: allow the distribution to read it (origin access control)"
    } else if !is_signed || has("Missing Key-Pair-Id") {
        "; it wants to know who asks: set archive.read_url_key_id and archive.read_url_key_file, or let the distribution give to everybody (restrict viewer access: no)"
    } else if has("Unknown Key") {
        "; archive.read_url_key_id is no key that the distribution trusts: take the id of the public key, and put it into a key group of the distribution"
    } else {
        "; archive.read_url_key_file is not the private half of archive.read_url_key_id, or archive.read_url is not the address that the distribution has"
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use aws_lc_rs::signature::{self, EcdsaKeyPair, KeyPair, UnparsedPublicKey};

    use super::*;

    const URL: &str = "https://d111111abcdef8.cloudfront.net/fleet/v1/packs/x/1.tar";
    /// Made for tests by openssl; it opens nothing.
    const RSA: &str = include_str!("../../testdata/test-read-url-rsa.pem");

    fn file(folder: &Path, text: &str) -> std::path::PathBuf {
        let path = folder.join("key.pem");
        std::fs::write(&path, text).expect("write");
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600)).expect("chmod");
        path
    }

    fn pem(der: &[u8]) -> String {
        format!("-----BEGIN PRIVATE KEY-----\n{}\n-----END PRIVATE KEY-----\n", BASE64.encode(der))
    }

    fn now() -> SystemTime {
        UNIX_EPOCH + Duration::from_secs(1_767_290_400) - LIFETIME
    }

    #[test]
    fn an_url_is_the_one_that_openssl_signs() {
        let folder = tempfile::tempdir().expect("a folder");
        let signing = Signing::read("K2JCJMDEHXQW5F", &file(folder.path(), RSA)).expect("a key");
        // printf '%s' POLICY | openssl dgst -sha256 -sign test-read-url-rsa.pem | openssl base64 -A | tr '+=/' '-_~'
        let expected = include_str!("../../testdata/test-read-url-signature").trim_end();
        let policy = r#"{"Statement":[{"Resource":"https://d111111abcdef8.cloudfront.net/fleet/v1/packs/x/1.tar","Condition":{"DateLessThan":{"AWS:EpochTime":1767290400}}}]}"#;
        assert_eq!(super::policy(URL, 1_767_290_400), policy);
        assert_eq!(
            signing.sign(URL, now()),
            Ok(format!("{URL}?Expires=1767290400&Signature={expected}&Key-Pair-Id=K2JCJMDEHXQW5F&Hash-Algorithm=SHA256"))
        );
        assert_eq!(format!("{signing:?}"), "Signing(K2JCJMDEHXQW5F)");
    }

    #[test]
    fn an_elliptic_key_signs_as_well() {
        let folder = tempfile::tempdir().expect("a folder");
        let pair = EcdsaKeyPair::generate(&signature::ECDSA_P256_SHA256_ASN1_SIGNING).expect("a pair");
        let der = pair.to_pkcs8v1().expect("a key");
        let signing = Signing::read("K1", &file(folder.path(), &pem(der.as_ref()))).expect("a key");
        let url = signing.sign(URL, now()).expect("signed");
        let text = url.split_once("&Signature=").and_then(|(_, rest)| rest.split_once('&')).expect("a signature").0;
        let bytes = BASE64.decode(text.replace('-', "+").replace('_', "=").replace('~', "/")).expect("base64");
        let public = UnparsedPublicKey::new(&signature::ECDSA_P256_SHA256_ASN1, pair.public_key().as_ref());
        public.verify(policy(URL, 1_767_290_400).as_bytes(), &bytes).expect("its signature");
        public.verify(policy(URL, 1_767_290_401).as_bytes(), &bytes).expect_err("another time's");
    }

    #[test]
    fn what_cloudfront_takes_no_signature_of_is_refused() {
        let folder = tempfile::tempdir().expect("a folder");
        let refused = |text: &str| Signing::read("K1", &file(folder.path(), text)).expect_err("refused").to_string();
        let other = EcdsaKeyPair::generate(&signature::ECDSA_P384_SHA384_ASN1_SIGNING).expect("a pair").to_pkcs8v1().expect("a key");
        let said = refused(&pem(other.as_ref()));
        assert!(said.contains("CloudFront takes no key such as that of") && said.contains("prime256v1"), "{said}");
        let said = refused("no key\n");
        assert!(said.starts_with("sign what archive.read_url is asked for: ") && said.contains("BEGIN PRIVATE KEY"), "{said}");
        let path = file(folder.path(), RSA);
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o644)).expect("chmod");
        let said = Signing::read("K1", &path).expect_err("everybody may read it").to_string();
        assert!(said.contains("others may read or change it"), "{said}");
        let said = Signing::read("K1", &folder.path().join("none")).expect_err("there is none").to_string();
        assert!(said.contains("none"), "{said}");
    }
}
