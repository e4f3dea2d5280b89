//! Where packs go, as people write it: `s3://bucket/prefix`, `file:///folder`.

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;

/// Where packs go.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ArchiveUrl {
    /// A folder on this host.
    Directory(PathBuf),
    /// A bucket, and the prefix of every key in it (no slash at either end; may be empty).
    S3 {
        /// The bucket's name.
        bucket: String,
        /// The prefix.
        prefix: String,
    },
}

/// Why a text names no place for packs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ArchiveUrlFault {
    /// It begins with neither `s3://` nor `file://`.
    #[error("an archive is s3://bucket/prefix or file:///folder")]
    Scheme,
    /// `file://` is followed by something else than an absolute path.
    #[error("a folder is named by its absolute path, with three slashes: file:///srv/larder-archive")]
    Relative,
    /// The bucket can't be one.
    #[error("a bucket's name has 3 to 63 lower case letters, digits, dots and dashes, and begins and ends with a letter or digit")]
    Bucket,
    /// The prefix would make keys that tools can't handle.
    #[error("a prefix has no empty part, no part . or .., and no control character, ? or #: s3://bucket/team/larder")]
    Prefix,
}

impl FromStr for ArchiveUrl {
    type Err = ArchiveUrlFault;

    /// Reads an URL. A slash at its end makes no difference; nothing is percent-decoded.
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        if let Some(path) = text.strip_prefix("file://") {
            if !path.starts_with('/') || path.contains('\0') {
                return Err(ArchiveUrlFault::Relative);
            }
            return Ok(Self::Directory(PathBuf::from(path)));
        }
        let place = text.strip_prefix("s3://").ok_or(ArchiveUrlFault::Scheme)?;
        let (bucket, prefix) = place.split_once('/').unwrap_or((place, ""));
        if !is_bucket(bucket) {
            return Err(ArchiveUrlFault::Bucket);
        }
        let prefix = prefix.strip_suffix('/').unwrap_or(prefix);
        if !prefix.is_empty() && (prefix.len() > PREFIX_LENGTH_MAX || !prefix.split('/').all(is_prefix_part)) {
            return Err(ArchiveUrlFault::Prefix);
        }
        Ok(Self::S3 { bucket: bucket.to_owned(), prefix: prefix.to_owned() })
    }
}

impl fmt::Display for ArchiveUrl {
    fn fmt(&self, to: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Directory(path) => write!(to, "file://{}", path.display()),
            Self::S3 { bucket, prefix } if prefix.is_empty() => write!(to, "s3://{bucket}"),
            Self::S3 { bucket, prefix } => write!(to, "s3://{bucket}/{prefix}"),
        }
    }
}

/// Keys have at most 1024 bytes; what comes after the prefix needs its share.
const PREFIX_LENGTH_MAX: usize = 512;

fn is_bucket(name: &str) -> bool {
    let edge = |byte: Option<&u8>| byte.is_some_and(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit());
    let bytes = name.as_bytes();
    (3..=63).contains(&bytes.len())
        && edge(bytes.first())
        && edge(bytes.last())
        && bytes.iter().all(|&byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'.' || byte == b'-')
}

fn is_prefix_part(part: &str) -> bool {
    !part.is_empty() && part != "." && part != ".." && !part.contains(|letter: char| letter.is_control() || letter == '?' || letter == '#')
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(text: &str, expected: Result<&str, ArchiveUrlFault>) {
        assert_eq!(text.parse::<ArchiveUrl>().map(|url| url.to_string()), expected.map(str::to_owned), "{text}");
    }

    #[test]
    fn buckets_and_folders_are_read_and_written_alike() {
        check("s3://larder", Ok("s3://larder"));
        check("s3://larder/", Ok("s3://larder"));
        check("s3://larder/team/a/", Ok("s3://larder/team/a"));
        check("file:///srv/archive", Ok("file:///srv/archive"));
        assert_eq!("s3://abc/x".parse(), Ok(ArchiveUrl::S3 { bucket: "abc".to_owned(), prefix: "x".to_owned() }));
    }

    #[test]
    fn what_cannot_be_an_archive_is_refused() {
        check("", Err(ArchiveUrlFault::Scheme));
        check("/srv/archive", Err(ArchiveUrlFault::Scheme));
        check("https://s3.example.org/larder", Err(ArchiveUrlFault::Scheme));
        check("S3://larder", Err(ArchiveUrlFault::Scheme));
        check("file://srv/archive", Err(ArchiveUrlFault::Relative));
        check("file://", Err(ArchiveUrlFault::Relative));
        check("s3://", Err(ArchiveUrlFault::Bucket));
        check("s3://ab", Err(ArchiveUrlFault::Bucket));
        check("s3://key:secret@larder", Err(ArchiveUrlFault::Bucket));
        check("s3://Larder/x", Err(ArchiveUrlFault::Bucket));
        check("s3://larder//x", Err(ArchiveUrlFault::Prefix));
        check("s3://larder/../x", Err(ArchiveUrlFault::Prefix));
        check("s3://larder/x?y", Err(ArchiveUrlFault::Prefix));
    }
}
