//! Tokens of other issuers: which count, and that a token chooses neither its key nor its algorithm.

use std::path::PathBuf;

use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::signature::{Ed25519KeyPair, KeyPair};
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD as BASE64;
use serde_json::json;

use super::*;

struct Signer(Ed25519KeyPair);

impl Signer {
    fn new() -> Self {
        let pkcs8 = Ed25519KeyPair::generate_pkcs8(&SystemRandom::new()).expect("random");
        Self(Ed25519KeyPair::from_pkcs8(pkcs8.as_ref()).expect("a key"))
    }

    fn jwk(&self) -> Value {
        json!({ "kty": "OKP", "crv": "Ed25519", "kid": "1", "x": BASE64.encode(self.0.public_key().as_ref()) })
    }

    fn token(&self, header: &Value, claims: &Value) -> String {
        let signed = format!("{}.{}", BASE64.encode(header.to_string()), BASE64.encode(claims.to_string()));
        format!("{signed}.{}", BASE64.encode(self.0.sign(signed.as_bytes()).as_ref()))
    }
}

fn claims() -> Value {
    let now = jsonwebtoken::get_current_timestamp();
    json!({ "iss": "https://ci", "aud": "here", "sub": "job", "exp": now + 300, "repository": "acme/app", "groups": ["a", "b"] })
}

struct Place {
    folder: tempfile::TempDir,
}

impl Place {
    fn new(keys: &[Value]) -> Self {
        let place = Self { folder: tempfile::tempdir().expect("temporary folder") };
        place.write(keys);
        place
    }

    fn path(&self) -> PathBuf {
        self.folder.path().join("keys.json")
    }

    /// Under another name first, so that the time of the change is another one too.
    fn write(&self, keys: &[Value]) {
        let before = std::fs::metadata(self.path()).and_then(|metadata| metadata.modified()).ok();
        loop {
            std::fs::write(self.path(), json!({ "keys": keys }).to_string()).expect("write");
            if std::fs::metadata(self.path()).and_then(|metadata| metadata.modified()).ok() != before {
                return;
            }
        }
    }

    fn keys(&self, algorithms: &[&str]) -> Keys {
        let algorithms: Vec<_> = algorithms.iter().map(|name| (*name).to_owned()).collect();
        let fetcher = Fetcher::new().expect("certificates");
        Keys::new("https://ci", Some(KeySource::File(self.path())), &algorithms, fetcher)
    }
}

async fn told(keys: &Keys, token: &str) -> String {
    keys.check(token, &["here"]).await.expect_err("it may not count").to_string()
}

#[tokio::test]
async fn s14_a_token_counts_by_issuer_audience_and_time() {
    let signer = Signer::new();
    let place = Place::new(&[signer.jwk()]);
    let keys = place.keys(&["EdDSA"]);
    let header = json!({ "alg": "EdDSA", "typ": "JWT" });
    assert_eq!(keys.check(&signer.token(&header, &claims()), &["here"]).await.expect("right")["sub"], "job");
    let now = jsonwebtoken::get_current_timestamp();
    for (name, value, why) in [
        ("aud", json!("elsewhere"), "another audience"),
        ("iss", json!("https://evil"), "another issuer"),
        ("exp", json!(now - 60), "it has expired"),
        ("nbf", json!(now + 600), "not good yet"),
        ("exp", Value::Null, "does not say"),
        ("aud", Value::Null, "does not say"),
    ] {
        let mut claims = claims();
        match value {
            Value::Null => drop(claims.as_object_mut().expect("an object").remove(name)),
            value => claims[name] = value,
        }
        let said = told(&keys, &signer.token(&header, &claims)).await;
        assert!(said.contains(why), "{name}: {said}");
    }
    assert!(told(&keys, &Signer::new().token(&header, &claims())).await.contains("not signed by https://ci"));
}

#[tokio::test]
async fn s14_neither_algorithm_nor_key_are_the_tokens_to_choose() {
    let (signer, evil) = (Signer::new(), Signer::new());
    let public = signer.jwk()["x"].as_str().expect("text").to_owned();
    // A shared secret among the keys is not taken for one, and neither is a key for encryption.
    let mut for_encryption = evil.jwk();
    for_encryption["use"] = json!("enc");
    let place = Place::new(&[signer.jwk(), json!({ "kty": "oct", "k": public }), for_encryption, json!({ "kty": "new" }), json!(7)]);
    let keys = place.keys(&["EdDSA", "RS256", "ES256"]);
    let body = BASE64.encode(claims().to_string());
    for header in [
        json!({ "alg": "none" }),
        json!({ "alg": "HS256" }),
        json!({ "alg": "HS256", "kid": "1" }),
        json!({ "alg": "RS256", "kid": "1" }),
        json!({ "alg": "EdDSA", "jwk": evil.jwk() }),
        json!({ "alg": "EdDSA", "jku": "http://127.0.0.1:1/keys", "kid": "1" }),
    ] {
        let signed = format!("{}.{body}", BASE64.encode(header.to_string()));
        for secret in [public.as_bytes().to_vec(), BASE64.decode(&public).expect("base64")] {
            let key = aws_lc_rs::hmac::Key::new(aws_lc_rs::hmac::HMAC_SHA256, &secret);
            let hmac = BASE64.encode(aws_lc_rs::hmac::sign(&key, signed.as_bytes()).as_ref());
            assert!(keys.check(&format!("{signed}.{hmac}"), &["here"]).await.is_err(), "{header}");
        }
        assert!(keys.check(&format!("{signed}."), &["here"]).await.is_err(), "{header}");
        assert!(keys.check(&evil.token(&header, &claims()), &["here"]).await.is_err(), "{header}");
    }
    // A key id that is wrong does no harm where the key is right, because it is not asked for.
    let header = json!({ "alg": "EdDSA", "kid": "another" });
    assert!(keys.check(&signer.token(&header, &claims()), &["here"]).await.is_ok());
    // What is not configured is not taken, though the key is right.
    let strict = place.keys(&["ES256"]);
    assert!(strict.check(&signer.token(&header, &claims()), &["here"]).await.is_err());
}

#[tokio::test]
async fn keys_that_change_are_read_anew_and_a_broken_file_leaves_the_old_ones() {
    let (one, other) = (Signer::new(), Signer::new());
    let place = Place::new(&[one.jwk()]);
    let keys = place.keys(&["EdDSA"]);
    let header = json!({ "alg": "EdDSA" });
    let counts = async |signer: &Signer| keys.check(&signer.token(&header, &claims()), &["here"]).await.is_ok();
    assert!(counts(&one).await && !counts(&other).await);
    place.write(&[other.jwk()]);
    assert!(!counts(&one).await && counts(&other).await);
    std::fs::write(place.path(), "{").expect("write");
    assert!(counts(&other).await);
    let none =
        Keys::new("https://ci", Some(KeySource::File(place.folder.path().join("none"))), &["EdDSA".to_owned()], Fetcher::new().unwrap());
    assert!(told(&none, &one.token(&header, &claims())).await.contains("can't be read now"));
}

#[test]
fn claims_are_texts_and_not_too_many() {
    let claims = json!({
        "sub": "x", "number": 7, "yes": true, "list": ["a", 1, {"b": 2}], "object": {"a": "b"}, "none": null, "exp": 1,
        "long": "x".repeat(CLAIMS_SIZE_MAX + 1),
    });
    let said = said(claims.as_object().expect("an object"));
    let shown: Vec<_> = said.iter().map(|(name, values)| format!("{name}={}", values.join("|"))).collect();
    assert_eq!(shown, ["list=a|1", "number=7", "sub=x", "yes=true"]);
}

#[test]
fn the_issuer_of_a_token_is_found_and_nonsense_has_none() {
    let signer = Signer::new();
    assert_eq!(issuer_of(&signer.token(&json!({ "alg": "EdDSA" }), &claims())).as_deref(), Some("https://ci"));
    for text in ["", ".", "..", "a.b.c", "e30.e30.", &"a".repeat(TOKEN_LENGTH_MAX + 1)] {
        assert_eq!(issuer_of(text), None, "{text:.20}");
    }
}
