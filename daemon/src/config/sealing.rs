//! How what is in the bucket is encrypted, by this program for `archive.recipients`, and by the bucket as `archive.sse` says; and where it is read.

use crate::age::{RECIPIENTS_MAX, Recipient};

use super::value::Value;
use super::{Archive, Fault};

/// Letters of the name of a key.
const KEY_LENGTH_MAX: usize = 2048;

/// How an S3 server is asked to encrypt what it stores. It holds the key, so this protects from whoever gets at its disks and from nobody else.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sse {
    /// As the bucket does by itself.
    None,
    /// By a key of the bucket's.
    Aes256,
    /// By a key of the vendor's key service.
    Kms,
}

pub(super) fn sse(value: &Value) -> Result<Sse, Fault> {
    value.choice(&["none", "AES256", "aws:kms"], &[Sse::None, Sse::Aes256, Sse::Kms])
}

/// Who can read what this node archives.
pub(super) fn recipients(value: &Value) -> Result<Vec<Recipient>, Fault> {
    let recipients: Vec<Recipient> = value.list()?.iter().map(|text| text.parse().map_err(Fault::Recipient)).collect::<Result<_, _>>()?;
    if recipients.len() > RECIPIENTS_MAX {
        return Err(Fault::Bounds { least: "0".to_owned(), most: format!("{RECIPIENTS_MAX} recipients") });
    }
    Ok(recipients)
}

/// An address before the bucket. Whoever is on the way to it may read what is not encrypted.
pub(super) fn read_url(value: &Value) -> Result<Option<String>, Fault> {
    let url = value.url()?;
    match &url {
        Some(address) if !address.parse().is_ok_and(|uri| super::is_trusted_url(&uri)) => Err(Fault::PlainReadUrl),
        _ => Ok(url),
    }
}

/// A public key's id at the CDN; it goes into a query.
pub(super) fn key_id(value: &Value) -> Result<Option<String>, Fault> {
    match value.text()? {
        "" => Ok(None),
        id if id.len() > KEY_LENGTH_MAX || !id.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte)) => {
            Err(Fault::KeyId)
        }
        id => Ok(Some(id.to_owned())),
    }
}

/// The key's id, ARN or alias; it goes into a header.
pub(super) fn kms_key(value: &Value) -> Result<Option<String>, Fault> {
    match value.text()? {
        "" => Ok(None),
        key if key.len() > KEY_LENGTH_MAX || !key.bytes().all(|byte| byte.is_ascii_graphic()) => Err(Fault::KmsKey),
        key => Ok(Some(key.to_owned())),
    }
}

/// What is wrong with the settings together, and at which of them.
pub(super) fn check(archive: &Archive) -> Result<(), (&'static str, Fault)> {
    if archive.sse_kms_key.is_some() && archive.sse != Sse::Kms {
        return Err(("archive.sse_kms_key", Fault::Lonely { other: "archive.sse = \"aws:kms\"" }));
    }
    let (url, id, file) = (archive.read_url.is_some(), archive.read_url_key_id.is_some(), archive.read_url_key_file.is_some());
    match (url, id, file) {
        (_, true, false) => Err(("archive.read_url_key_id", Fault::Lonely { other: "archive.read_url_key_file" })),
        (_, false, true) => Err(("archive.read_url_key_file", Fault::Lonely { other: "archive.read_url_key_id" })),
        (false, true, true) => Err(("archive.read_url_key_id", Fault::Lonely { other: "archive.read_url" })),
        _ => Ok(()),
    }
}
