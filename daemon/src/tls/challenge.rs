//! What an authority looks for to see that a name is this node's: a text over HTTP (HTTP-01), or a certificate (TLS-ALPN-01).
//!
//! Both are here only while a certificate is being asked for, and at most [`CHALLENGES_MAX`] of them. SPEC: RFC 8555 8.3, RFC 8737.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use rcgen::{CertificateParams, CustomExtension, KeyPair};
use rustls::ServerConfig;
use rustls::crypto::aws_lc_rs;
use rustls::pki_types::PrivateKeyDer;
use rustls::sign::CertifiedKey;

use super::{Error, server};

/// What the client of TLS-ALPN-01 offers, and nothing else.
pub(super) const PROTOCOL: &[u8] = b"acme-tls/1";
/// As many as names can be configured.
const CHALLENGES_MAX: usize = 64;

/// The answers that are ready. Clones are the same ones.
#[derive(Clone, Default)]
pub struct Challenges {
    answers: Arc<Mutex<Answers>>,
}

#[derive(Default)]
struct Answers {
    /// Token to text.
    texts: HashMap<String, String>,
    /// Name to the configuration that shows its certificate.
    certificates: HashMap<String, Arc<ServerConfig>>,
}

impl Challenges {
    /// The text for a token, for `/.well-known/acme-challenge/<token>`.
    pub fn text_for(&self, token: &str) -> Option<String> {
        self.answers().texts.get(token).cloned()
    }

    pub(super) fn config_for(&self, name: &str) -> Option<Arc<ServerConfig>> {
        self.answers().certificates.get(&name.to_ascii_lowercase()).cloned()
    }

    pub(super) fn put_text(&self, token: &str, text: &str) {
        let mut answers = self.answers();
        if answers.texts.len() < CHALLENGES_MAX {
            answers.texts.insert(token.to_owned(), text.to_owned());
        }
    }

    /// Makes a certificate for a name that carries this hash.
    pub(super) fn put_certificate(&self, name: &str, hash: &[u8]) -> Result<(), Error> {
        let failed = |why: String| Error::Acme { doing: "make the certificate that answers a challenge", why };
        let mut params = CertificateParams::new(vec![name.to_owned()]).map_err(|error| failed(error.to_string()))?;
        params.custom_extensions = vec![CustomExtension::new_acme_identifier(hash)];
        let pair = KeyPair::generate().map_err(|error| failed(error.to_string()))?;
        let certificate = params.self_signed(&pair).map_err(|error| failed(error.to_string()))?;
        let key = PrivateKeyDer::Pkcs8(pair.serialize_der().into());
        let key = aws_lc_rs::sign::any_supported_type(&key).map_err(|error| failed(error.to_string()))?;
        let config = server::answering(Arc::new(CertifiedKey::new(vec![certificate.der().clone()], key)), PROTOCOL)?;
        let mut answers = self.answers();
        if answers.certificates.len() < CHALLENGES_MAX {
            answers.certificates.insert(name.to_ascii_lowercase(), config);
        }
        Ok(())
    }

    pub(super) fn clear(&self) {
        *self.answers() = Answers::default();
    }

    fn answers(&self) -> MutexGuard<'_, Answers> {
        self.answers.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
