//! Who may do what, as records say it: people, robots, rules.
//!
//! The texts in here have a grammar of their own in the program that decides by them. What travels is checked for its bounds only, so that a node
//! keeps and passes on what a later program writes; what it can't read grants nothing.
//!
//! Each value ends in a list of names and texts, so that something may be added later: structures that rest on disks can't grow.

use serde::{Deserialize, Serialize};

/// Longest name of a person, a robot or a group, and longest text of a rule's key.
pub const TEXT_LENGTH_MAX: usize = 256;
/// Longest hash of a password, with its parameters.
pub const HASH_LENGTH_MAX: usize = 512;
/// Most groups that somebody is in, and most grants that a robot has.
pub const ENTRIES_MAX: usize = 64;
/// Longest text in what was added.
pub const EXTRA_LENGTH_MAX: usize = 1024;

/// Somebody who signs in with a name and a password.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct User {
    /// What remains of the password: bcrypt (`$2b$...`) or argon2 (`$argon2id$...`).
    pub hash: String,
    /// The groups that the person is in.
    pub groups: Vec<String>,
    /// For what comes later.
    pub extra: Vec<(String, String)>,
}

/// A program that signs in with a token.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Robot {
    /// SHA-256 of the token, which is too long to be guessed, so that a quick hash does.
    pub secret: [u8; 32],
    /// Until when it is good, milliseconds since 1970.
    pub expires_ms: Option<u64>,
    /// What it may do, besides what rules say.
    pub grants: Vec<Grant>,
    /// For what comes later.
    pub extra: Vec<(String, String)>,
}

/// Something that may be done in some repositories.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Grant {
    /// A pattern for their names.
    pub repositories: String,
    /// What may be done.
    pub actions: Actions,
}

/// What a subject may do in some repositories; both are the record's key.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Rule {
    /// What it may do.
    pub actions: Actions,
    /// For what comes later.
    pub extra: Vec<(String, String)>,
}

/// Which repositories a node may have.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Site {
    /// Patterns for their names.
    pub repositories: Vec<String>,
    /// For what comes later.
    pub extra: Vec<(String, String)>,
}

/// What may be done, as bits whose meaning never changes; those of a later program are kept and grant nothing here.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Actions(pub u32);

impl Actions {
    /// Read manifests, blobs, tags and referrers.
    pub const PULL: Self = Self(1);
    /// Write blobs and manifests, and tags that are not there yet.
    pub const PUSH: Self = Self(2);
    /// Let a tag name another manifest.
    pub const OVERWRITE: Self = Self(4);
    /// Delete tags, manifests and blobs.
    pub const DELETE: Self = Self(8);
    /// Everything, and say who may do what.
    pub const ADMIN: Self = Self(16);

    /// Whether all of `other` is in these.
    pub fn contains(self, other: Self) -> bool {
        self.0 & other.0 == other.0
    }

    /// These and others.
    #[must_use]
    pub fn and(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }
}

/// Why a value is out of bounds: what there is too much of, and how much there may be.
pub(crate) type Excess = (&'static str, usize, usize);

pub(crate) fn bounded(what: &'static str, actual: usize, max: usize) -> Result<(), Excess> {
    if actual > max { Err((what, actual, max)) } else { Ok(()) }
}

pub(crate) fn extra(extra: &[(String, String)]) -> Result<(), Excess> {
    bounded("additions", extra.len(), ENTRIES_MAX)?;
    extra.iter().try_for_each(|(name, text)| {
        bounded("bytes in a name", name.len(), TEXT_LENGTH_MAX)?;
        bounded("bytes in an addition", text.len(), EXTRA_LENGTH_MAX)
    })
}

impl User {
    pub(crate) fn check(&self) -> Result<(), Excess> {
        bounded("bytes in a hash", self.hash.len(), HASH_LENGTH_MAX)?;
        bounded("groups", self.groups.len(), ENTRIES_MAX)?;
        self.groups.iter().try_for_each(|group| bounded("bytes in a group", group.len(), TEXT_LENGTH_MAX))?;
        extra(&self.extra)
    }
}

impl Robot {
    pub(crate) fn check(&self) -> Result<(), Excess> {
        bounded("grants", self.grants.len(), ENTRIES_MAX)?;
        self.grants.iter().try_for_each(|grant| bounded("bytes in a pattern", grant.repositories.len(), TEXT_LENGTH_MAX))?;
        extra(&self.extra)
    }
}

impl Site {
    pub(crate) fn check(&self) -> Result<(), Excess> {
        bounded("patterns", self.repositories.len(), ENTRIES_MAX)?;
        self.repositories.iter().try_for_each(|pattern| bounded("bytes in a pattern", pattern.len(), TEXT_LENGTH_MAX))?;
        extra(&self.extra)
    }
}

impl Rule {
    pub(crate) fn check(&self) -> Result<(), Excess> {
        extra(&self.extra)
    }
}

/// A key that is one text.
pub(crate) fn text(bytes: &[u8]) -> Option<String> {
    let text = std::str::from_utf8(bytes).ok()?;
    (!text.is_empty() && text.len() <= TEXT_LENGTH_MAX && !text.contains('\0')).then(|| text.to_owned())
}

/// A key that is two texts with a NUL between them.
pub(crate) fn two_texts(bytes: &[u8]) -> Option<(String, String)> {
    let nul = bytes.iter().position(|byte| *byte == 0)?;
    Some((text(&bytes[..nul])?, text(&bytes[nul + 1..])?))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::record::{InvalidRecord, Key, Value, kind};

    fn user(groups: usize, hash: usize) -> Vec<u8> {
        Value::User(User { hash: "x".repeat(hash), groups: vec!["g".to_owned(); groups], extra: vec![] }).to_bytes()
    }

    #[test]
    fn s34_records_of_access_are_bounded() {
        assert!(Value::parse(kind::USER, &user(ENTRIES_MAX, HASH_LENGTH_MAX)).is_ok());
        for bytes in [user(ENTRIES_MAX + 1, 1), user(0, HASH_LENGTH_MAX + 1)] {
            assert!(matches!(Value::parse(kind::USER, &bytes), Err(InvalidRecord::TooMany { .. })));
        }
        let grant = Grant { repositories: "a".to_owned(), actions: Actions::PULL };
        let robot = |grants| Value::Robot(Robot { secret: [1; 32], expires_ms: None, grants: vec![grant.clone(); grants], extra: vec![] });
        assert!(Value::parse(kind::ROBOT, &robot(ENTRIES_MAX).to_bytes()).is_ok());
        assert!(Value::parse(kind::ROBOT, &robot(ENTRIES_MAX + 1).to_bytes()).is_err());
        let rule = |text: usize| Value::Rule(Rule { actions: Actions::PULL, extra: vec![("a".to_owned(), "b".repeat(text))] });
        assert!(Value::parse(kind::RULE, &rule(EXTRA_LENGTH_MAX).to_bytes()).is_ok());
        assert!(Value::parse(kind::RULE, &rule(EXTRA_LENGTH_MAX + 1).to_bytes()).is_err());
    }

    #[test]
    fn keys_are_texts_without_nul() {
        for (kind, key, is_one) in [
            (kind::USER, &b"alice"[..], true),
            (kind::USER, b"", false),
            (kind::USER, b"a\0b", false),
            (kind::USER, b"\xff", false),
            (kind::ROBOT, b"ci", true),
            (kind::RULE, b"user:alice\0team/**", true),
            (kind::RULE, b"user:alice", false),
            (kind::RULE, b"user:alice\0", false),
            (kind::RULE, b"a\0b\0c", false),
        ] {
            let parsed = Key::parse(kind, key);
            assert_eq!(parsed.is_ok(), is_one, "{key:?}");
            assert!(parsed.map_or(true, |parsed| parsed.to_bytes() == key));
        }
    }

    #[test]
    fn actions_are_sets() {
        let both = Actions::PULL.and(Actions::PUSH);
        assert!(both.contains(Actions::PULL) && both.contains(both) && !both.contains(Actions::DELETE));
        assert!(!Actions::PULL.contains(both));
    }
}
