//! Join tokens: what a new node needs to find the cluster, to know that it is the right one, and to be let in once.
//!
//! `larder1-` and base 64 (URL alphabet) of the encoded [`Token`] with 4 bytes of BLAKE3 behind it, so that a copy that lost
//! its end is told from a wrong one. The secret stands in the token alone: the issuer keeps its hash.

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use larder_protocol::codec;
use larder_protocol::stamp::NodeId;
use serde::{Deserialize, Serialize};

use super::error::{Error, Result};

const PREFIX: &str = "larder1-";
const CHECK_SIZE: usize = 4;
/// A token of many addresses is still far shorter.
const LENGTH_MAX: usize = 16 << 10;
/// Settings that hold the tokens which wait to be used.
pub(super) const SETTING: &str = "peers/token/";
const READER: &str = "peers/reader/";

/// A token, whole.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Token {
    pub cluster: [u8; 16],
    /// Its key is pinned: nobody else can answer for it.
    pub issuer: NodeId,
    pub addresses: Vec<String>,
    pub id: [u8; 8],
    pub secret: [u8; 16],
    pub expires_ms: u64,
}

/// What the issuer keeps of a token.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Issued {
    hash: [u8; 32],
    pub expires_ms: u64,
}

impl Token {
    pub(super) fn to_text(&self) -> String {
        let mut bytes = codec::encode(self);
        let check = blake3::hash(&bytes);
        bytes.extend_from_slice(&check.as_bytes()[..CHECK_SIZE]);
        format!("{PREFIX}{}", URL_SAFE_NO_PAD.encode(bytes))
    }

    pub(super) fn parse(text: &str) -> Result<Self> {
        let wrong = |why| Error::Token { why };
        let text = text.trim();
        if text.len() > LENGTH_MAX {
            return Err(wrong("it is too long"));
        }
        let text = text.strip_prefix(PREFIX).ok_or(wrong("it does not start with larder1-"))?;
        let bytes = URL_SAFE_NO_PAD.decode(text).map_err(|_| wrong("it has letters that no token has"))?;
        let (bytes, check) = bytes.split_last_chunk::<CHECK_SIZE>().ok_or(wrong("it is too short"))?;
        if blake3::hash(bytes).as_bytes()[..CHECK_SIZE] != check[..] {
            return Err(wrong("its end is missing, or a letter was changed"));
        }
        codec::decode(bytes).map_err(|_| wrong("a later version made it"))
    }

    pub(super) fn issued(&self) -> Issued {
        Issued { hash: *blake3::hash(&self.secret).as_bytes(), expires_ms: self.expires_ms }
    }
}

impl Issued {
    /// Whether this is its secret; takes the same time whatever the answer.
    pub(super) fn is_secret(&self, secret: &[u8; 16]) -> bool {
        // blake3's own equality is constant-time.
        blake3::hash(secret) == blake3::Hash::from_bytes(self.hash)
    }
}

/// The name of the setting that is there while a token waits that makes its bearer a reader.
pub(super) fn reader_setting(token: &str) -> String {
    format!("{READER}{token}")
}

/// The name of a token's setting.
pub(super) fn setting(id: &[u8; 8]) -> String {
    format!("{SETTING}{}", hex::encode(id))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn s30_a_token_reads_back_and_a_damaged_one_is_told() {
        let token = Token {
            cluster: [1; 16],
            issuer: NodeId([2; 32]),
            addresses: vec!["10.0.0.1:5000".into()],
            id: [3; 8],
            secret: [4; 16],
            expires_ms: 5,
        };
        let text = token.to_text();
        assert_eq!(Token::parse(&format!(" {text}\n")).expect("own token"), token);
        for end in 0..text.len() {
            assert!(Token::parse(&text[..end]).is_err(), "cut at {end}");
        }
        let flipped: String =
            text.chars().enumerate().map(|(i, letter)| if i == 20 { if letter == 'A' { 'B' } else { 'A' } } else { letter }).collect();
        assert!(Token::parse(&flipped).is_err());
        assert!(token.issued().is_secret(&[4; 16]) && !token.issued().is_secret(&[5; 16]));
        assert!(Token::parse(&"larder1-".repeat(9999)).is_err());
    }
}
