//! The replicated records, and the one rule by which they merge.
//!
//! A record is a key, a value or a tombstone, and a [`Stamp`]. Of two records with one key the later stamp
//! stands ([`Record::beats`]): a last-writer-wins register, so merging is commutative, associative and idempotent,
//! and the order and number of deliveries don't matter.
//!
//! On the wire and in tables a record is a [`RawRecord`]: a kind, key bytes, value bytes. A kind that this
//! program does not know is stored and passed on untouched, so that a fleet upgrades one host at a time.
//! Kind numbers and key bytes never change their meaning:
//!
//! ```text
//! kind  record      key bytes                            value
//!    2  Manifest    repository, NUL, digest key          media type and bytes
//!    3  Tag         repository, NUL, tag                 digest, the stamp it replaced
//!    4  Link        repository, NUL, digest key          size, BLAKE3 root, CRC-64/NVME
//!    5  Archived    writer (32), incarnation, sequence   bucket, object key, size, contents
//!    6  Member      node id (32)                         name, zone, addresses, bucket, version
//!    7  Role        node id (32)                         what the node may do, as bits
//!    8  User        name                                 hash of the password, groups
//!    9  Robot       name                                 hash of the token, expiry, grants
//!   10  Rule        subject, NUL, pattern of names       what the subject may do there, as bits
//!   11  Site        node id (32)                         patterns of the repositories that the node may have
//!   12  Keys        node id (32)                         the node's keys after its first
//!   13  Starts      node id (32), incarnation            when the node was started in that life
//! ```
//!
//! (Numbers in keys are big-endian, so that keys sort as they mean. Kind 1 is kept for repository settings.)

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::access::{self, Robot, Rule, Site, User};
use crate::codec::{self, InvalidBytes};
use crate::digest::{Digest, TreeHash};
use crate::keys::Keys;
use crate::name::{RepositoryName, Tag};
use crate::raw;
use crate::stamp::{NodeId, Stamp};
use crate::starts::Starts;
use crate::vector::Origin;

/// Most blobs that one `Archived` record may list, and so one pack may hold.
pub const PACK_CONTENTS_MAX: usize = 10_000;

/// Kind numbers, as they stand on the wire.
pub(crate) mod kind {
    pub const MANIFEST: u16 = 2;
    pub const TAG: u16 = 3;
    pub const LINK: u16 = 4;
    pub const ARCHIVED: u16 = 5;
    pub const MEMBER: u16 = 6;
    pub const ROLE: u16 = 7;
    pub const USER: u16 = 8;
    pub const ROBOT: u16 = 9;
    pub const RULE: u16 = 10;
    pub const SITE: u16 = 11;
    pub const KEYS: u16 = 12;
    pub const STARTS: u16 = 13;
}

/// Names a pack in a bucket: who wrote it, in which life, as which of its packs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct PackId {
    /// The writer.
    pub origin: Origin,
    /// 1 for its first pack; never used twice, may have gaps.
    pub sequence: u64,
}

/// What a record is about.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Key {
    /// A manifest in a repository.
    Manifest(RepositoryName, Digest),
    /// A tag in a repository.
    Tag(RepositoryName, Tag),
    /// That a blob may be read in a repository.
    Link(RepositoryName, Digest),
    /// A pack in a bucket.
    Archived(PackId),
    /// A node of the cluster; a tombstone here expels it.
    Member(NodeId),
    /// What a node may do; without such a record, everything.
    Role(NodeId),
    /// Somebody who signs in, by name.
    User(String),
    /// A program that signs in, by name.
    Robot(String),
    /// What a subject may do in the repositories of a pattern.
    Rule(String, String),
    /// What a node may have; without such a record, everything.
    Site(NodeId),
    /// Which keys a node has; without such a record, the one that is its id.
    Keys(NodeId),
    /// When a node was started in one of its lives.
    Starts(Origin),
    /// A kind of a later program.
    Unknown {
        /// Its number.
        kind: u16,
        /// Its key.
        key: Vec<u8>,
    },
}

/// What is said about it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Value {
    /// See [`Manifest`].
    Manifest(Manifest),
    /// See [`TagTarget`].
    Tag(TagTarget),
    /// See [`Link`].
    Link(Link),
    /// See [`Archived`].
    Archived(Archived),
    /// See [`Member`].
    Member(Member),
    /// See [`Roles`].
    Role(Roles),
    /// See [`User`].
    User(User),
    /// See [`Robot`].
    Robot(Robot),
    /// See [`Rule`].
    Rule(Rule),
    /// See [`Site`].
    Site(Site),
    /// See [`Keys`].
    Keys(Keys),
    /// See [`Starts`].
    Starts(Starts),
    /// The bytes of a later program's value.
    Unknown(Vec<u8>),
}

/// A manifest as it was pushed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Manifest {
    /// The `Content-Type` it was pushed with.
    pub media_type: String,
    /// Exactly the bytes that were sent.
    #[serde(with = "raw")]
    pub bytes: Vec<u8>,
}

/// Which manifest a tag names.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TagTarget {
    /// The manifest.
    pub digest: Digest,
    /// The stamp of the tag's version that the pusher saw and replaced, if any: two versions that
    /// replaced the same one are a conflict.
    pub replaced: Option<Stamp>,
}

/// That a blob may be read in a repository, and what is needed to check it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Link {
    /// Size in bytes.
    pub size: u64,
    /// Plain BLAKE3 of the blob.
    pub root: TreeHash,
    /// CRC-64/NVME of the blob, from which a pack's checksum is combined.
    pub crc64: u64,
}

/// A pack that stands in a bucket.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Archived {
    /// Which bucket: only nodes that reach the same one can use this record.
    pub bucket: String,
    /// The object's key.
    pub object_key: String,
    /// The object's size in bytes.
    pub size: u64,
    /// When it was written, milliseconds since 1970.
    pub created_ms: u64,
    /// Number of records it holds.
    pub records: u64,
    /// Where each blob lies in it; at most [`PACK_CONTENTS_MAX`].
    pub contents: Vec<Located>,
}

/// Where a blob lies in a pack.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Located {
    /// The blob.
    pub digest: Digest,
    /// First byte, from the start of the object.
    pub offset: u64,
    /// Bytes.
    pub length: u64,
}

/// A node of the cluster. The key of the record is its public key.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Member {
    /// What people call it.
    pub name: String,
    /// Where it stands; copies are spread over zones.
    pub zone: String,
    /// `host:port` to dial; empty for a node that only dials out.
    pub addresses: Vec<String>,
    /// The bucket it archives to, if any.
    pub bucket: Option<String>,
    /// The program's version.
    pub version: String,
}

/// What a node may do, as bits whose meaning never changes; those of a later program are kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Roles(pub u32);

impl Roles {
    const WRITER: u32 = 1;
    const ARCHIVER: u32 = 2;

    /// These roles with another answer to whether records of the node count. A node that is no writer is a reader.
    #[must_use]
    pub fn with_writer(self, is_writer: bool) -> Self {
        self.with(Self::WRITER, is_writer)
    }

    /// These roles with another answer to whether the node may archive what other nodes wrote.
    #[must_use]
    pub fn with_archiver(self, is_archiver: bool) -> Self {
        self.with(Self::ARCHIVER, is_archiver)
    }

    /// Whether the node's records count: it may push and delete.
    pub fn is_writer(self) -> bool {
        self.0 & Self::WRITER != 0
    }

    /// Whether it may archive what other nodes wrote.
    pub fn is_archiver(self) -> bool {
        self.0 & Self::ARCHIVER != 0
    }

    fn with(self, bit: u32, is_set: bool) -> Self {
        Self(if is_set { self.0 | bit } else { self.0 & !bit })
    }
}

/// Everything: what a node may do of which no record says anything else.
impl Default for Roles {
    fn default() -> Self {
        Self(Self::WRITER | Self::ARCHIVER)
    }
}

/// One replicated fact.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Record {
    /// What it is about.
    pub key: Key,
    /// What is said, or `None`: a tombstone.
    pub value: Option<Value>,
    /// When it was written, and by whom.
    pub stamp: Stamp,
}

/// A record with its place in its origin's numbering.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Numbered {
    /// Who numbered it.
    pub origin: Origin,
    /// From 1.
    pub sequence: u64,
    /// The record.
    pub record: Record,
}

/// A record as it travels and rests: nothing in it needs to be understood to merge it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RawRecord {
    /// Number of the kind.
    pub kind: u16,
    /// Key bytes; unique within the kind.
    #[serde(with = "raw")]
    pub key: Vec<u8>,
    /// Value bytes, or `None`: a tombstone.
    #[serde(with = "raw::optional")]
    pub value: Option<Vec<u8>>,
    /// When it was written, and by whom.
    pub stamp: Stamp,
}

/// Why a raw record is none of the kind it claims to be.
#[derive(Debug, thiserror::Error)]
pub enum InvalidRecord {
    /// The key's bytes break its grammar.
    #[error("key of a {kind} record is damaged")]
    Key {
        /// The kind's name.
        kind: &'static str,
    },
    /// The value's bytes break its grammar.
    #[error("value of a {kind} record: {source}")]
    Value {
        /// The kind's name.
        kind: &'static str,
        /// What is wrong.
        source: InvalidBytes,
    },
    /// More in it than is allowed.
    #[error("a {kind} record has {actual} {what}, {max} are allowed")]
    TooMany {
        /// The kind's name.
        kind: &'static str,
        /// Things counted.
        what: &'static str,
        /// How many there are.
        actual: usize,
        /// How many may be.
        max: usize,
    },
}

impl Key {
    /// The kind's number.
    pub fn kind(&self) -> u16 {
        match self {
            Key::Manifest(..) => kind::MANIFEST,
            Key::Tag(..) => kind::TAG,
            Key::Link(..) => kind::LINK,
            Key::Archived(_) => kind::ARCHIVED,
            Key::Member(_) => kind::MEMBER,
            Key::Role(_) => kind::ROLE,
            Key::User(_) => kind::USER,
            Key::Robot(_) => kind::ROBOT,
            Key::Rule(..) => kind::RULE,
            Key::Site(_) => kind::SITE,
            Key::Keys(_) => kind::KEYS,
            Key::Starts(_) => kind::STARTS,
            Key::Unknown { kind, .. } => *kind,
        }
    }

    /// The key's bytes, sorted as listings need them.
    pub fn to_bytes(&self) -> Vec<u8> {
        match self {
            Key::Manifest(repository, digest) | Key::Link(repository, digest) => within(repository, &digest.to_key()),
            Key::Tag(repository, tag) => within(repository, tag.as_str().as_bytes()),
            Key::Archived(pack) => pack.to_bytes(),
            Key::Member(node) | Key::Role(node) | Key::Site(node) | Key::Keys(node) => node.0.to_vec(),
            Key::Starts(origin) => origin.to_bytes(),
            Key::User(name) | Key::Robot(name) => name.as_bytes().to_vec(),
            Key::Rule(subject, repositories) => [subject.as_bytes(), &[0], repositories.as_bytes()].concat(),
            Key::Unknown { key, .. } => key.clone(),
        }
    }

    /// Reads what [`Key::to_bytes`] wrote for a kind.
    ///
    /// # Errors
    /// A key of a known kind that breaks its grammar.
    pub fn parse(kind: u16, bytes: &[u8]) -> Result<Self, InvalidRecord> {
        let key = match kind {
            kind::MANIFEST => split(bytes).and_then(|(repository, rest)| Some(Key::Manifest(repository, Digest::from_key(rest)?))),
            kind::TAG => {
                split(bytes).and_then(|(repository, rest)| Some(Key::Tag(repository, std::str::from_utf8(rest).ok()?.parse().ok()?)))
            }
            kind::LINK => split(bytes).and_then(|(repository, rest)| Some(Key::Link(repository, Digest::from_key(rest)?))),
            kind::ARCHIVED => PackId::from_bytes(bytes).map(Key::Archived),
            kind::MEMBER => bytes.try_into().ok().map(|id| Key::Member(NodeId(id))),
            kind::ROLE => bytes.try_into().ok().map(|id| Key::Role(NodeId(id))),
            kind::USER => access::text(bytes).map(Key::User),
            kind::ROBOT => access::text(bytes).map(Key::Robot),
            kind::SITE => bytes.try_into().ok().map(|id| Key::Site(NodeId(id))),
            kind::KEYS => bytes.try_into().ok().map(|id| Key::Keys(NodeId(id))),
            kind::STARTS => Origin::from_bytes(bytes).map(Key::Starts),
            kind::RULE => access::two_texts(bytes).map(|(subject, repositories)| Key::Rule(subject, repositories)),
            _ => Some(Key::Unknown { kind, key: bytes.to_vec() }),
        };
        key.ok_or(InvalidRecord::Key { kind: kind_name(kind) })
    }
}

impl PackId {
    /// 48 bytes that sort by writer, life and sequence.
    pub fn to_bytes(&self) -> Vec<u8> {
        [&self.origin.to_bytes()[..], &self.sequence.to_be_bytes()].concat()
    }

    /// Reads what [`PackId::to_bytes`] wrote; `None` for anything else.
    pub fn from_bytes(bytes: &[u8]) -> Option<Self> {
        let (origin, sequence) = bytes.split_at_checked(40)?;
        Some(Self { origin: Origin::from_bytes(origin)?, sequence: u64::from_be_bytes(sequence.try_into().ok()?) })
    }
}

impl fmt::Display for PackId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{}/{}", self.origin.node.letters(), self.origin.incarnation, self.sequence)
    }
}

impl Value {
    /// The value's bytes.
    pub fn to_bytes(&self) -> Vec<u8> {
        match self {
            Value::Manifest(value) => codec::encode(value),
            Value::Tag(value) => codec::encode(value),
            Value::Link(value) => codec::encode(value),
            Value::Archived(value) => codec::encode(value),
            Value::Member(value) => codec::encode(value),
            Value::Role(value) => codec::encode(value),
            Value::User(value) => codec::encode(value),
            Value::Robot(value) => codec::encode(value),
            Value::Rule(value) => codec::encode(value),
            Value::Site(value) => codec::encode(value),
            Value::Keys(value) => codec::encode(value),
            Value::Starts(value) => codec::encode(value),
            Value::Unknown(bytes) => bytes.clone(),
        }
    }

    /// Reads what [`Value::to_bytes`] wrote for a kind.
    ///
    /// # Errors
    /// A value of a known kind that is damaged or too large.
    pub fn parse(kind: u16, bytes: &[u8]) -> Result<Self, InvalidRecord> {
        let value = match kind {
            kind::MANIFEST => codec::decode(bytes).map(Value::Manifest),
            kind::TAG => codec::decode(bytes).map(Value::Tag),
            kind::LINK => codec::decode(bytes).map(Value::Link),
            kind::ARCHIVED => codec::decode(bytes).map(Value::Archived),
            kind::MEMBER => codec::decode(bytes).map(Value::Member),
            kind::ROLE => codec::decode(bytes).map(Value::Role),
            kind::USER => codec::decode(bytes).map(Value::User),
            kind::ROBOT => codec::decode(bytes).map(Value::Robot),
            kind::RULE => codec::decode(bytes).map(Value::Rule),
            kind::SITE => codec::decode(bytes).map(Value::Site),
            kind::KEYS => codec::decode(bytes).map(Value::Keys),
            kind::STARTS => codec::decode(bytes).map(Value::Starts),
            _ => Ok(Value::Unknown(bytes.to_vec())),
        };
        let value = value.map_err(|source| InvalidRecord::Value { kind: kind_name(kind), source })?;
        let checked = match &value {
            Value::User(user) => user.check(),
            Value::Robot(robot) => robot.check(),
            Value::Rule(rule) => rule.check(),
            Value::Site(site) => site.check(),
            Value::Keys(keys) => keys.check(),
            Value::Starts(starts) => starts.check(),
            _ => Ok(()),
        };
        checked.map_err(|(what, actual, max)| InvalidRecord::TooMany { kind: kind_name(kind), what, actual, max })?;
        match value {
            Value::Archived(Archived { contents, .. }) if contents.len() > PACK_CONTENTS_MAX => {
                Err(InvalidRecord::TooMany { kind: kind_name(kind), what: "blobs", actual: contents.len(), max: PACK_CONTENTS_MAX })
            }
            value => Ok(value),
        }
    }
}

impl Record {
    /// Whether this record stands and `other`, with the same key, goes. A record does not beat itself.
    ///
    /// Stamps differ between any two writings; the value decides only where a broken node used one twice,
    /// so that all nodes still agree.
    pub fn beats(&self, other: &Record) -> bool {
        self.to_raw().beats(&other.to_raw())
    }

    /// The record as it travels and rests.
    pub fn to_raw(&self) -> RawRecord {
        RawRecord { kind: self.key.kind(), key: self.key.to_bytes(), value: self.value.as_ref().map(Value::to_bytes), stamp: self.stamp }
    }
}

impl RawRecord {
    /// See [`Record::beats`]; for two records with the same kind and key.
    pub fn beats(&self, other: &RawRecord) -> bool {
        (self.stamp, &self.value) > (other.stamp, &other.value)
    }

    /// Understands the record, as far as its kind is known.
    ///
    /// # Errors
    /// A known kind with a damaged key or value.
    pub fn parse(&self) -> Result<Record, InvalidRecord> {
        let key = Key::parse(self.kind, &self.key)?;
        let value = self.value.as_ref().map(|bytes| Value::parse(self.kind, bytes)).transpose()?;
        Ok(Record { key, value, stamp: self.stamp })
    }
}

fn within(repository: &RepositoryName, rest: &[u8]) -> Vec<u8> {
    [repository.as_str().as_bytes(), &[0], rest].concat()
}

fn split(bytes: &[u8]) -> Option<(RepositoryName, &[u8])> {
    let nul = bytes.iter().position(|byte| *byte == 0)?;
    Some((std::str::from_utf8(&bytes[..nul]).ok()?.parse().ok()?, &bytes[nul + 1..]))
}

fn kind_name(kind: u16) -> &'static str {
    match kind {
        kind::MANIFEST => "manifest",
        kind::TAG => "tag",
        kind::LINK => "link",
        kind::ARCHIVED => "archived",
        kind::MEMBER => "member",
        kind::ROLE => "role",
        kind::USER => "user",
        kind::ROBOT => "robot",
        kind::RULE => "rule",
        kind::SITE => "site",
        kind::KEYS => "keys",
        kind::STARTS => "starts",
        _ => "unknown",
    }
}

#[cfg(test)]
mod tests;
