//! Repository names, tags and references: parsed once, valid ever after.
//!
//! The grammar is the OCI distribution specification's ("Pulling manifests"). A name that parsed has no
//! dot-dot, no empty part and no NUL, so it may stand in keys with a NUL behind it; it still never
//! becomes a path.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::digest::{Digest, InvalidDigest};

/// Longest repository name in bytes: clients limit host and name together to 255.
pub const NAME_LENGTH_MAX: usize = 255;
/// Longest tag in bytes, by the specification's grammar.
pub const TAG_LENGTH_MAX: usize = 128;

/// A repository's name, such as `library/busybox`.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct RepositoryName(String);

/// A tag, such as `latest`.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Tag(String);

/// What stands at the end of a manifest's address: a tag, or a digest.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Reference {
    /// A name that may mean another manifest tomorrow.
    Tag(Tag),
    /// The manifest itself.
    Digest(Digest),
}

/// Why a text is not a name, a tag or a reference.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum InvalidName {
    /// Breaks the grammar of repository names.
    #[error("a repository name is lower-case letters, digits and single separators (. _ __ - /), at most {NAME_LENGTH_MAX} bytes")]
    Repository,
    /// Breaks the grammar of tags.
    #[error("a tag is letters, digits, `_`, `.` and `-`, does not start with `.` or `-`, and has at most {TAG_LENGTH_MAX} bytes")]
    Tag,
    /// Has a colon, and is no digest.
    #[error(transparent)]
    Digest(#[from] InvalidDigest),
}

impl RepositoryName {
    /// The name as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl Tag {
    /// The tag as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// `[a-z0-9]+` parts, joined by `.`, `_`, `__` or dashes; components of them joined by `/`.
fn is_repository(text: &str) -> bool {
    text.len() <= NAME_LENGTH_MAX && text.split('/').all(is_component)
}

fn is_component(text: &str) -> bool {
    let word = |byte: &u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
    let bytes = text.as_bytes();
    if !bytes.first().is_some_and(word) || !bytes.last().is_some_and(word) {
        return false;
    }
    bytes.split(word).all(|separator| matches!(separator, b"" | b"." | b"_" | b"__") || separator.iter().all(|byte| *byte == b'-'))
}

fn is_tag(text: &str) -> bool {
    let bytes = text.as_bytes();
    (1..=TAG_LENGTH_MAX).contains(&bytes.len())
        && (bytes[0].is_ascii_alphanumeric() || bytes[0] == b'_')
        && bytes.iter().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'.' | b'-'))
}

impl FromStr for RepositoryName {
    type Err = InvalidName;

    fn from_str(text: &str) -> Result<Self, InvalidName> {
        if is_repository(text) { Ok(Self(text.to_owned())) } else { Err(InvalidName::Repository) }
    }
}

impl FromStr for Tag {
    type Err = InvalidName;

    fn from_str(text: &str) -> Result<Self, InvalidName> {
        if is_tag(text) { Ok(Self(text.to_owned())) } else { Err(InvalidName::Tag) }
    }
}

impl FromStr for Reference {
    type Err = InvalidName;

    fn from_str(text: &str) -> Result<Self, InvalidName> {
        if text.contains(':') { Ok(Reference::Digest(text.parse()?)) } else { Ok(Reference::Tag(text.parse()?)) }
    }
}

impl TryFrom<String> for RepositoryName {
    type Error = InvalidName;

    fn try_from(text: String) -> Result<Self, InvalidName> {
        text.parse()
    }
}

impl TryFrom<String> for Tag {
    type Error = InvalidName;

    fn try_from(text: String) -> Result<Self, InvalidName> {
        text.parse()
    }
}

impl From<RepositoryName> for String {
    fn from(name: RepositoryName) -> String {
        name.0
    }
}

impl From<Tag> for String {
    fn from(tag: Tag) -> String {
        tag.0
    }
}

impl fmt::Display for RepositoryName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Display for Tag {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Display for Reference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Reference::Tag(tag) => tag.fmt(f),
            Reference::Digest(digest) => digest.fmt(f),
        }
    }
}

impl fmt::Debug for RepositoryName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}", self.0)
    }
}

impl fmt::Debug for Tag {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}", self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_the_specification_are_accepted() {
        for name in ["a", "0", "library/busybox", "a.b/c_d/e__f/g-h/i---j", "ghcr.io/x/y", &"a".repeat(NAME_LENGTH_MAX)] {
            assert!(name.parse::<RepositoryName>().is_ok(), "{name:?}");
        }
    }

    #[test]
    fn s1_names_that_break_the_grammar_are_refused() {
        let long = "a".repeat(NAME_LENGTH_MAX + 1);
        for name in [
            "",
            "/",
            "a//b",
            "/a",
            "a/",
            "../../etc/x",
            "..",
            "a/../b",
            "%2e%2e/",
            "a\0b",
            "Upper",
            "a___b",
            "a..b",
            "a._b",
            "-a",
            "a-",
            "a b",
            "ü",
            &long,
        ] {
            assert!(name.parse::<RepositoryName>().is_err(), "{name:?}");
        }
    }

    #[test]
    fn tags_follow_their_grammar() {
        for tag in ["latest", "_x", "1.0-rc.1", "UPPER", &"t".repeat(TAG_LENGTH_MAX)] {
            assert!(tag.parse::<Tag>().is_ok(), "{tag:?}");
        }
        for tag in ["", ".a", "-a", "a/b", "a b", "a:b", "a\0", &"t".repeat(TAG_LENGTH_MAX + 1)] {
            assert!(tag.parse::<Tag>().is_err(), "{tag:?}");
        }
    }

    #[test]
    fn a_colon_makes_a_reference_a_digest() {
        assert!(matches!("latest".parse(), Ok(Reference::Tag(_))));
        assert!(matches!(Digest::sha256(b"").to_string().parse(), Ok(Reference::Digest(_))));
        assert!("sha256:short".parse::<Reference>().is_err());
    }
}
