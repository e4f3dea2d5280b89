//! The text at the beginning of an age file: the file's key, wrapped for each recipient, and a MAC by it.
//!
//! ```text
//! age-encryption.org/v1
//! -> X25519 <share of a key that nobody keeps>       a stanza for each recipient
//! <file key, encrypted by what the two have in common>
//! -> larder <bytes of the content> <letters>         of what this program writes: fills the header up to HEADER_SIZE
//!
//! --- <HMAC-SHA256 of everything before, "---" included>
//! ```
//!
//! Binary values are base64 without padding, in lines of 64 letters of which the last is shorter. SPEC: age-encryption.org/v1.

use std::sync::Arc;

use aws_lc_rs::aead::{Aad, CHACHA20_POLY1305, LessSafeKey, Nonce, UnboundKey};
use aws_lc_rs::agreement::{EphemeralPrivateKey, UnparsedPublicKey, X25519, agree_ephemeral};
use aws_lc_rs::hkdf::{HKDF_SHA256, Salt};
use aws_lc_rs::hmac;
use aws_lc_rs::rand::SystemRandom;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD_NO_PAD as BASE64;

use super::keys::{Identity, Recipient};
use super::{HEADER_SIZE, Invalid, NONCE_SIZE};

/// How every age file begins.
pub const VERSION: &str = "age-encryption.org/v1\n";
/// Largest header that is read.
pub(super) const READ_MAX: usize = 64 << 10;
const SHARE: &str = "X25519";
const FILL: &str = "larder";
const END: &[u8] = b"---";
const COLUMNS: usize = 64;

/// The key of one file: everything in it is encrypted by keys that are derived from it.
pub(super) type FileKey = [u8; 16];

/// What a header says.
#[derive(Debug)]
pub(super) struct Header {
    /// Shares, and wrapped file keys, of X25519 stanzas.
    wrapped: Vec<([u8; 32], [u8; 32])>,
    /// Bytes of the content, in what this program writes.
    pub(super) content: Option<u64>,
    /// Bytes of the header.
    pub(super) length: usize,
    mac: [u8; 32],
    /// Bytes under the MAC.
    under: usize,
}

/// Writes a header of [`HEADER_SIZE`] less the nonce.
///
/// # Panics
/// With more recipients than the configuration lets in.
pub(super) fn write(recipients: &[Recipient], file_key: &FileKey, content: u64) -> Result<Vec<u8>, Invalid> {
    let mut text = VERSION.to_owned();
    for recipient in recipients {
        let (share, wrapped) = wrap(recipient, file_key).ok_or(Invalid::Recipient(*recipient))?;
        text.push_str(&format!("-> {SHARE} {}\n{}\n", BASE64.encode(share), BASE64.encode(wrapped)));
    }
    text.push_str(&format!("-> {FILL} {content} "));
    // Behind the letters: the stanza's empty body, the end and its MAC.
    let rest = 2 + END.len() + 1 + 43 + 1;
    let letters = (HEADER_SIZE - NONCE_SIZE).checked_sub(text.len() + rest).filter(|letters| *letters > 0);
    text.push_str(&".".repeat(letters.expect("RECIPIENTS_MAX of them fit")));
    text.push_str("\n\n");
    Ok(ended(text.as_bytes(), file_key))
}

/// The text with its end.
pub(super) fn ended(text: &[u8], file_key: &FileKey) -> Vec<u8> {
    let mut header = [text, END].concat();
    let mac = hmac::sign(&mac_key(file_key), &header);
    header.extend(format!(" {}\n", BASE64.encode(mac)).bytes());
    header
}

impl Header {
    /// Reads the header that some bytes begin with.
    pub(super) fn parse(bytes: &[u8]) -> Result<Self, Invalid> {
        let wrong = |what| Invalid::Header { what };
        if !bytes.starts_with(VERSION.as_bytes()) {
            return Err(Invalid::NotAge);
        }
        let bytes = &bytes[..bytes.len().min(READ_MAX)];
        let mut at = VERSION.len();
        let (mut wrapped, mut content) = (Vec::new(), None);
        loop {
            let line = line(bytes, &mut at)?;
            if let Some(mac) = line.strip_prefix(END) {
                let under = at - 1 - line.len() + END.len();
                let mac = mac.strip_prefix(b" ").and_then(fixed).ok_or(wrong("its MAC is none"))?;
                return Ok(Self { wrapped, content, length: at, mac, under });
            }
            let stanza = line.strip_prefix(b"-> ").and_then(|line| std::str::from_utf8(line).ok()).ok_or(wrong("a line is no stanza"))?;
            let arguments: Vec<&str> = stanza.split(' ').collect();
            if arguments.iter().any(|argument| argument.is_empty() || !argument.bytes().all(|byte| byte.is_ascii_graphic())) {
                return Err(wrong("a stanza has an argument that is none"));
            }
            let mut body = Vec::new();
            loop {
                let line = self::line(bytes, &mut at)?;
                if line.len() > COLUMNS {
                    return Err(wrong("a line is too long"));
                }
                body.extend(BASE64.decode(line).map_err(|_| wrong("the body of a stanza is not base64"))?);
                if line.len() < COLUMNS {
                    break;
                }
            }
            match arguments[..] {
                [SHARE, share] => {
                    let (Some(share), Ok(key)) = (fixed(share.as_bytes()), body.try_into()) else {
                        return Err(wrong("an X25519 stanza has not what it should have"));
                    };
                    wrapped.push((share, key));
                }
                [SHARE, ..] => return Err(wrong("an X25519 stanza has more than one share")),
                [FILL, size, _] => content = Some(size.parse().map_err(|_| wrong("the size of its content is no number"))?),
                // Of another kind of recipient, or of a later program.
                _ => {}
            }
        }
    }

    /// The file's key, by the first identity that it is wrapped for. `bytes` are those that were parsed.
    pub(super) fn unwrap(&self, bytes: &[u8], identities: &[Arc<Identity>]) -> Result<FileKey, Invalid> {
        let pairs = identities.iter().flat_map(|identity| self.wrapped.iter().map(move |wrapped| (identity, wrapped)));
        let file_key = pairs.into_iter().find_map(|(identity, (share, wrapped))| {
            let mut opened = *wrapped;
            let key = wrapping_key(&identity.agree(share)?, share, &identity.recipient())?;
            let file_key = key.open_in_place(Nonce::assume_unique_for_key([0; 12]), Aad::empty(), &mut opened).ok()?;
            FileKey::try_from(&*file_key).ok()
        });
        let file_key = file_key.ok_or(Invalid::OtherRecipients)?;
        hmac::verify(&mac_key(&file_key), &bytes[..self.under], &self.mac).map_err(|_| Invalid::Mac)?;
        Ok(file_key)
    }
}

/// A line, without its end.
fn line<'a>(bytes: &'a [u8], at: &mut usize) -> Result<&'a [u8], Invalid> {
    let rest = &bytes[*at..];
    let end = rest.iter().position(|byte| *byte == b'\n').ok_or(Invalid::Header { what: "it has no end" })?;
    *at += end + 1;
    Ok(&rest[..end])
}

/// 32 bytes in the only spelling that they have.
fn fixed(text: &[u8]) -> Option<[u8; 32]> {
    BASE64.decode(text).ok()?.try_into().ok()
}

fn wrap(recipient: &Recipient, file_key: &FileKey) -> Option<([u8; 32], [u8; 32])> {
    let secret = EphemeralPrivateKey::generate(&X25519, &SystemRandom::new()).ok()?;
    let share: [u8; 32] = secret.compute_public_key().ok()?.as_ref().try_into().ok()?;
    let key = agree_ephemeral(secret, UnparsedPublicKey::new(&X25519, recipient.0), (), |shared| {
        shared.try_into().ok().and_then(|shared| wrapping_key(&shared, &share, recipient)).ok_or(())
    });
    let mut wrapped = [0; 32];
    wrapped[..16].copy_from_slice(file_key);
    // A key of its own for each share: the nonce is used once.
    let tag = key.ok()?.seal_in_place_separate_tag(Nonce::assume_unique_for_key([0; 12]), Aad::empty(), &mut wrapped[..16]).ok()?;
    wrapped[16..].copy_from_slice(tag.as_ref());
    Some((share, wrapped))
}

fn wrapping_key(shared: &[u8; 32], share: &[u8; 32], recipient: &Recipient) -> Option<LessSafeKey> {
    let salt = [share.as_slice(), &recipient.0].concat();
    Some(cipher(&derive(&salt, shared, b"age-encryption.org/v1/X25519")))
}

fn mac_key(file_key: &FileKey) -> hmac::Key {
    hmac::Key::new(hmac::HMAC_SHA256, &derive(&[], file_key, b"header"))
}

/// HKDF-SHA-256.
pub(super) fn derive(salt: &[u8], secret: &[u8], info: &[u8]) -> [u8; 32] {
    let mut key = [0; 32];
    let info = [info];
    let pseudorandom = Salt::new(HKDF_SHA256, salt).extract(secret);
    pseudorandom.expand(&info, HKDF_SHA256).and_then(|output| output.fill(&mut key)).expect("32 bytes can be had");
    key
}

/// ChaCha20-Poly1305 with this key.
pub(super) fn cipher(key: &[u8; 32]) -> LessSafeKey {
    LessSafeKey::new(UnboundKey::new(&CHACHA20_POLY1305, key).expect("32 bytes are a key"))
}
