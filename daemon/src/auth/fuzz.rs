//! What strangers show, under fire: `Authorization`, tokens of our own and of others, scopes, password files and rules.

use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::signature::{Ed25519KeyPair, KeyPair};
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use larder_harness::{fuzz, fuzz_bytes};

use super::policy::{Subject, actions, words};
use super::*;

fn key() -> (NodeId, Ed25519KeyPair) {
    let pkcs8 = Ed25519KeyPair::generate_pkcs8(&SystemRandom::new()).expect("random");
    let key = Ed25519KeyPair::from_pkcs8(pkcs8.as_ref()).expect("a key");
    (NodeId(key.public_key().as_ref().try_into().expect("32 bytes")), key)
}

#[test]
fn s14_authorization_headers() {
    let basic = format!("Basic {}", STANDARD.encode("alice:secret"));
    let corpus = [basic.as_str(), "Bearer a.b.c", "basic YTo", "BEARER  x ", "Basic OmE="];
    fuzz("authorization headers", &corpus, &["Basic ", "Bearer ", " ", "\t", "=", "==", ":", ",", "Og"], |input| {
        match parse(input) {
            Some(Shown::Basic { name, password }) => {
                assert!(!name.contains(':') && input.len() <= HEADER_LENGTH_MAX);
                let again = format!("Basic {}", STANDARD.encode([name.as_bytes(), b":", &password].concat()));
                assert_eq!(parse(again.as_bytes()), Some(Shown::Basic { name, password }));
                true
            }
            Some(Shown::Bearer(token)) => {
                assert_eq!(parse(format!("Bearer {token}").as_bytes()), Some(Shown::Bearer(token)));
                true
            }
            None => false,
        }
        .into()
    });
}

#[test]
fn s14_tokens_of_our_own_count_only_as_they_were_written() {
    let (node, key) = key();
    let claims = Claims {
        iss: node.letters(),
        aud: "here".to_owned(),
        sub: "user:alice".to_owned(),
        iat: 1,
        exp: 100,
        jti: "1".to_owned(),
        purpose: Use::Access,
        since: Some(Since::Record(1)),
        access: scope::parse(["repository:a:pull"].into_iter()),
        said: None,
    };
    let sign = |bytes: &[u8]| -> [u8; 64] { key.sign(bytes).as_ref().try_into().expect("64 bytes") };
    let right = token::write(&claims, &sign);
    let counts_until = |one: &NodeId| (*one == node).then_some(u64::MAX);
    let none = URL_SAFE_NO_PAD.encode(r#"{"alg":"none"}"#);
    fuzz("tokens", &[&right], &[".", "..", &none, "e30", "=", "{", "A"], |input| {
        let Ok(text) = std::str::from_utf8(input) else { return false.into() };
        let expected = Expected { audience: "here", purpose: Use::Access, now: 50, counts_until: &counts_until };
        let read = token::read(text, &expected);
        assert!(read.is_err() || text == right, "a token that nobody wrote counts");
        read.is_ok().into()
    });
    // Well signed, whatever it says: what is read is what was signed.
    let body = serde_json::to_string(&claims).expect("JSON");
    let words = ["\"exp\":", "\"iss\":", "\"since\":", "null", "[]", "{}", "\"use\":\"refresh\"", "18446744073709551616", "-1", "\u{0}"];
    fuzz("claims", &[&body], &words, |input| {
        let signed = format!("{}.{}", right.split('.').next().expect("a header"), URL_SAFE_NO_PAD.encode(input));
        let text = format!("{signed}.{}", URL_SAFE_NO_PAD.encode(sign(signed.as_bytes())));
        let expected = Expected { audience: "here", purpose: Use::Access, now: 50, counts_until: &counts_until };
        let Ok(read) = token::read(&text, &expected) else { return false.into() };
        assert!(read.exp > 50 && read.aud == "here" && read.purpose == Use::Access);
        // Whom it is about is looked up and never believed.
        let _ = named(&Snapshot::default(), &read);
        true.into()
    });
}

#[test]
fn s14_tokens_of_others_and_their_keys() {
    let header = URL_SAFE_NO_PAD.encode(r#"{"alg":"RS256","kid":"1"}"#);
    let body = URL_SAFE_NO_PAD.encode(r#"{"iss":"https://ci","aud":["a"],"sub":"x","list":[1,"b",{}]}"#);
    let corpus = [format!("{header}.{body}.c2ln")];
    fuzz("issuers of tokens", &[&corpus[0]], &[".", "e30", "IiI"], |input| {
        let Ok(text) = std::str::from_utf8(input) else { return false.into() };
        keys::issuer_of(text).is_some().into()
    });
    let (_, key) = key();
    let x = URL_SAFE_NO_PAD.encode(key.public_key().as_ref());
    let jwks = format!(r#"{{"keys":[{{"kty":"OKP","crv":"Ed25519","x":"{x}","use":"sig"}},{{"kty":"oct","k":"YQ"}}]}}"#);
    let words = ["\"kty\":\"RSA\"", "\"kty\":\"EC\"", "\"crv\":\"P-256\"", "\"n\":\"\"", "\"alg\":\"HS256\"", "[", "null", "{}"];
    fuzz("sets of keys", &[&jwks], &words, |input| keys::parses(input).into());
}

#[test]
fn scopes_and_rules_and_password_files() {
    let corpus = ["repository:team/app:pull,push", "repository(plugin):a:*", "registry:catalog:*"];
    fuzz("scopes", &corpus, &["repository:", ":", ",", "pull", "*", " ", "../", "all:*:*"], |input| {
        let Ok(text) = std::str::from_utf8(input) else { return false.into() };
        let read = scope::parse([text].into_iter());
        assert!(read.len() <= scope::SCOPES_MAX && read.iter().all(|access| !access.is_all()));
        (!read.is_empty()).into()
    });
    let corpus = ["user:alice", "claim:gh:repository=a/*,ref=*b", "anonymous"];
    fuzz("subjects", &corpus, &["claim:", "user:", "=", ",", ":", "*", "**"], |input| {
        let Ok(text) = std::str::from_utf8(input) else { return false.into() };
        let Ok(subject) = text.parse::<Subject>() else { return false.into() };
        assert_eq!(subject.to_string().parse(), Ok(subject));
        true.into()
    });
    fuzz("actions", &["pull,push", "admin"], &[",", "delete", "overwrite", " "], |input| {
        let Ok(text) = std::str::from_utf8(input) else { return false.into() };
        let Ok(read) = actions(text) else { return false.into() };
        assert_eq!(actions(&words(read).join(",")), Ok(read));
        true.into()
    });
    let entry = b"alice:$2y$05$c4WoMPo3SXsafkva.HHa6uXQZWr7oboPiC2bT/r7q1BB8I2s0BRqC\n".to_vec();
    fuzz_bytes("password files", vec![entry], &[":", "\n", "#", "$2y$31$", "$argon2id$v=19$m=4294967295,t=1,p=1$", "\r"], |input| {
        let Ok(text) = std::str::from_utf8(input) else { return false.into() };
        let Ok(entries) = htpasswd::parse(text) else { return false.into() };
        assert!(entries.iter().all(|(name, hash)| policy::is_name(name) && password::check_hash(hash).is_ok()));
        true.into()
    });
}
