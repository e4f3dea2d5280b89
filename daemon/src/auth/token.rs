//! Tokens of our own: JWTs, signed by the key of the node that issues them, and checked by that key on every other.
//!
//! The algorithm is Ed25519, always; what a token's header says of algorithms and keys is compared with that and never followed (S14). The key is
//! that of a member, or was until lately: `iss` only says which of them has to fit. A token says who somebody is and what they asked for; what they may do is decided by
//! the rules anew at each request, so a right that is taken ends at once (S16), also that of who has a token.

use std::collections::BTreeMap;

use aws_lc_rs::signature::{ED25519, UnparsedPublicKey};
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD as BASE64;
use larder_protocol::stamp::NodeId;
use serde::{Deserialize, Serialize};

use super::directory::Since;
use super::scope::Access;

/// The header of each of our tokens. Others are not looked at.
const HEADER: &str = r#"{"alg":"EdDSA","typ":"JWT"}"#;
/// Longest token that is looked at.
pub const LENGTH_MAX: usize = 16 << 10;

/// What a token is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Use {
    /// To be shown with requests.
    Access,
    /// To get others.
    Refresh,
}

/// What a token says.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Claims {
    /// The key that it is signed by: that of the node that issued it, which for a node's first key is the node's id.
    pub iss: String,
    /// The cluster that it is for.
    pub aud: String,
    /// Whom it is about: `user:alice`.
    pub sub: String,
    /// When it was issued, in seconds since 1970.
    pub iat: u64,
    /// Until when it is good.
    pub exp: u64,
    /// Tells it from others.
    pub jti: String,
    /// What it is for.
    #[serde(rename = "use")]
    pub purpose: Use,
    /// Which password or robot it was issued for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub since: Option<Since>,
    /// What it may be used for. In a refresh token nothing.
    #[serde(default)]
    pub access: Vec<Access>,
    /// What another issuer said of a workload.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub said: Option<BTreeMap<String, Vec<String>>>,
}

/// Why a token counts for nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum InvalidToken {
    /// No token of ours, or a damaged one.
    #[error("the token is none of this registry's, or damaged")]
    Form,
    /// Signed by no member.
    #[error("the token was issued by nobody who may issue tokens here")]
    Issuer,
    /// Not signed by whom it names.
    #[error("the token's signature is wrong")]
    Signature,
    /// For another cluster.
    #[error("the token is for another registry")]
    Audience,
    /// For something else.
    #[error("the token is of the other kind: access tokens are shown to the registry, refresh tokens to /token")]
    Purpose,
    /// Its time is over.
    #[error("the token has expired; sign in again")]
    Expired,
}

/// Writes and signs a token.
pub fn write(claims: &Claims, sign: &dyn Fn(&[u8]) -> [u8; 64]) -> String {
    let claims = serde_json::to_vec(claims).expect("claims are texts and numbers");
    let signed = format!("{}.{}", BASE64.encode(HEADER), BASE64.encode(claims));
    let signature = BASE64.encode(sign(signed.as_bytes()));
    format!("{signed}.{signature}")
}

/// What a token has to be.
pub struct Expected<'a> {
    /// The cluster.
    pub audience: &'a str,
    /// What it is to be for.
    pub purpose: Use,
    /// Now, in seconds since 1970.
    pub now: u64,
    /// Until when what a key has signed counts, in seconds since 1970; `None`: it is no member's.
    pub counts_until: &'a dyn Fn(&NodeId) -> Option<u64>,
}

/// Reads and checks a token.
///
/// # Errors
/// It counts for nothing.
pub fn read(token: &str, expected: &Expected<'_>) -> Result<Claims, InvalidToken> {
    if token.len() > LENGTH_MAX {
        return Err(InvalidToken::Form);
    }
    let (signed, signature) = token.rsplit_once('.').ok_or(InvalidToken::Form)?;
    let (header, claims) = signed.split_once('.').ok_or(InvalidToken::Form)?;
    // ORDER: compared and not read: nothing in it can choose a key or an algorithm.
    if BASE64.decode(header).ok().as_deref() != Some(HEADER.as_bytes()) {
        return Err(InvalidToken::Form);
    }
    let claims = BASE64.decode(claims).map_err(|_| InvalidToken::Form)?;
    let claims: Claims = serde_json::from_slice(&claims).map_err(|_| InvalidToken::Form)?;
    let issuer = NodeId::parse(&claims.iss).filter(|key| (expected.counts_until)(key).is_some()).ok_or(InvalidToken::Issuer)?;
    let signature = BASE64.decode(signature).map_err(|_| InvalidToken::Form)?;
    let key = UnparsedPublicKey::new(&ED25519, issuer.0);
    key.verify(signed.as_bytes(), &signature).map_err(|_| InvalidToken::Signature)?;
    check(&claims, expected)?;
    Ok(claims)
}

/// Checks what changes with time, also of a token whose signature was checked before.
pub fn check(claims: &Claims, expected: &Expected<'_>) -> Result<(), InvalidToken> {
    if claims.aud != expected.audience {
        return Err(InvalidToken::Audience);
    }
    if claims.purpose != expected.purpose {
        return Err(InvalidToken::Purpose);
    }
    if claims.exp <= expected.now {
        return Err(InvalidToken::Expired);
    }
    // Of a key that is not used any more no token lives longer than those that it signed while it was.
    match NodeId::parse(&claims.iss).and_then(|key| (expected.counts_until)(&key)) {
        Some(until) if claims.exp <= until && expected.now < until => Ok(()),
        _ => Err(InvalidToken::Issuer),
    }
}

#[cfg(test)]
#[path = "token/tests.rs"]
mod tests;
