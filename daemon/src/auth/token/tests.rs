//! Tokens that count, and all that are made to look like one.

use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::signature::{Ed25519KeyPair, KeyPair};
use proptest::prelude::*;

use super::*;

struct Node(Ed25519KeyPair);

impl Node {
    fn new() -> Self {
        let pkcs8 = Ed25519KeyPair::generate_pkcs8(&SystemRandom::new()).expect("random");
        Self(Ed25519KeyPair::from_pkcs8(pkcs8.as_ref()).expect("a key"))
    }

    fn id(&self) -> NodeId {
        NodeId(self.0.public_key().as_ref().try_into().expect("32 bytes"))
    }

    fn sign(&self, bytes: &[u8]) -> [u8; 64] {
        self.0.sign(bytes).as_ref().try_into().expect("64 bytes")
    }
}

fn claims(node: &Node) -> Claims {
    Claims {
        iss: node.id().letters(),
        aud: "cluster".to_owned(),
        sub: "user:alice".to_owned(),
        iat: 100,
        exp: 200,
        jti: "1".to_owned(),
        purpose: Use::Access,
        since: Some(Since::Record(7)),
        access: vec![],
        said: None,
    }
}

fn read_by(token: &str, member: &Node, now: u64) -> Result<Claims, InvalidToken> {
    let counts_until = |node: &NodeId| (*node == member.id()).then_some(u64::MAX);
    read(token, &Expected { audience: "cluster", purpose: Use::Access, now, counts_until: &counts_until })
}

#[test]
fn s14_a_token_counts_by_its_members_key_until_it_expires() {
    let (node, other) = (Node::new(), Node::new());
    let token = write(&claims(&node), &|bytes| node.sign(bytes));
    assert_eq!(read_by(&token, &node, 199), Ok(claims(&node)));
    assert_eq!(read_by(&token, &node, 200), Err(InvalidToken::Expired));
    assert_eq!(read_by(&token, &other, 150), Err(InvalidToken::Issuer), "its issuer is no member");
    let forged = write(&claims(&node), &|bytes| other.sign(bytes));
    assert_eq!(read_by(&forged, &node, 150), Err(InvalidToken::Signature), "signed by another than it names");
    let elsewhere = Claims { aud: "other".to_owned(), ..claims(&node) };
    assert_eq!(read_by(&write(&elsewhere, &|bytes| node.sign(bytes)), &node, 150), Err(InvalidToken::Audience));
    let refresh = Claims { purpose: Use::Refresh, ..claims(&node) };
    assert_eq!(read_by(&write(&refresh, &|bytes| node.sign(bytes)), &node, 150), Err(InvalidToken::Purpose));
}

#[test]
fn s14_a_header_that_names_an_algorithm_or_a_key_is_not_followed() {
    let node = Node::new();
    let body = BASE64.encode(serde_json::to_vec(&claims(&node)).expect("JSON"));
    let public = BASE64.encode(node.id().0);
    for header in [
        r#"{"alg":"none","typ":"JWT"}"#.to_owned(),
        r#"{"alg":"None"}"#.to_owned(),
        r#"{"alg":"HS256","typ":"JWT"}"#.to_owned(),
        format!(r#"{{"alg":"EdDSA","typ":"JWT","jwk":{{"kty":"OKP","crv":"Ed25519","x":"{public}"}}}}"#),
        r#"{"alg":"EdDSA","typ":"JWT","kid":"../../dev/null"}"#.to_owned(),
        r#"{"alg":"EdDSA","typ":"JWT","jku":"http://127.0.0.1/keys"}"#.to_owned(),
        r#"{"alg":"EdDSA","typ":"JWT","crit":["x"]}"#.to_owned(),
        r#"{"typ":"JWT","alg":"EdDSA"}"#.to_owned(),
        String::new(),
    ] {
        let signed = format!("{}.{body}", BASE64.encode(&header));
        // Well signed by the member, and unsigned, and with the public key as an HMAC's secret.
        let right = BASE64.encode(node.sign(signed.as_bytes()));
        let hmac = aws_lc_rs::hmac::sign(&aws_lc_rs::hmac::Key::new(aws_lc_rs::hmac::HMAC_SHA256, &node.id().0), signed.as_bytes());
        for signature in [right, String::new(), BASE64.encode(hmac.as_ref())] {
            assert_eq!(read_by(&format!("{signed}.{signature}"), &node, 150), Err(InvalidToken::Form), "{header}");
        }
    }
    let token = write(&claims(&node), &|bytes| node.sign(bytes));
    let (signed, _) = token.rsplit_once('.').expect("three parts");
    assert_eq!(read_by(&format!("{signed}."), &node, 150), Err(InvalidToken::Signature));
    assert_eq!(read_by(signed, &node, 150), Err(InvalidToken::Form));
}

#[test]
fn a_token_that_was_checked_ends_with_its_issuer() {
    let node = Node::new();
    let nobody = |_: &NodeId| None;
    let expected = Expected { audience: "cluster", purpose: Use::Access, now: 150, counts_until: &nobody };
    assert_eq!(check(&claims(&node), &expected), Err(InvalidToken::Issuer));
}

#[test]
fn s29_of_a_key_that_was_changed_only_what_it_signed_before_counts_and_only_until_it_ends() {
    let node = Node::new();
    let token = |exp| write(&Claims { exp, ..claims(&node) }, &|bytes| node.sign(bytes));
    let read_at = |token: &str, now| {
        let until = |_: &NodeId| Some(200);
        read(token, &Expected { audience: "cluster", purpose: Use::Access, now, counts_until: &until }).map(|claims| claims.exp)
    };
    assert_eq!(read_at(&token(200), 199), Ok(200));
    assert_eq!(read_at(&token(201), 150), Err(InvalidToken::Issuer), "such a long life was given after the change");
    let revoked = |_: &NodeId| Some(150);
    let expected = Expected { audience: "cluster", purpose: Use::Access, now: 150, counts_until: &revoked };
    assert_eq!(read(&token(150), &expected), Err(InvalidToken::Expired));
    assert_eq!(read(&token(200), &expected), Err(InvalidToken::Issuer));
}

proptest! {
    #[test]
    fn s14_a_token_with_a_changed_letter_counts_for_nothing(at in any::<prop::sample::Index>(), letter in "[A-Za-z0-9_.-]") {
        let node = Node::new();
        let token = write(&claims(&node), &|bytes| node.sign(bytes));
        let at = at.index(token.len());
        let mut changed = token.clone();
        changed.replace_range(at..=at, &letter);
        prop_assert!(changed == token || read_by(&changed, &node, 150).is_err());
    }

    #[test]
    fn any_text_is_refused_and_never_panics(text in "[ -~]{0,300}") {
        prop_assert!(read_by(&text, &Node::new(), 150).is_err());
    }
}
