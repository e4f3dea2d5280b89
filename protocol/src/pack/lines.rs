//! The lines of a pack's tables: JSON that can be read without this program.
//!
//! ```text
//! records, line 1:  {"larder":"records","covers":[{"node":"9x..","incarnation":1..,"after":0,"upto":7}]}    and see `company`
//! records:          {"kind":"tag","repository":"app","tag":"v1","digest":"sha256:..","stamp":{"ms":..,"counter":0,"node":".."},
//!                    "origin":{"node":"..","incarnation":..},"sequence":5}
//! index:            {"digest":"sha256:..","size":2048,"offset":1536,"length":2048,"root":"<hex>","crc64":"<hex>","chunks":"<base64>"}
//! ```
//!
//! A tombstone has `"deleted":true` and no value. The bytes of a manifest stand in the pack, as a blob; only where they don't,
//! the line has them as base64. A kind that the writer didn't know is `unknown`, with its bytes as base64.

use std::collections::BTreeMap;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use serde::{Deserialize, Serialize};

use crate::digest::Digest;
use crate::record::{Archived, Key, Link, Located, Manifest, Member, Numbered, PackId, Record, TagTarget, Value};
use crate::stamp::{HybridTime, NodeId, Stamp};
use crate::vector::Origin;

use super::company::{Company, CompanyLine};
use super::{Covered, Entry, PACK_CONTENTS_MAX};

/// Why a line of a table says nothing.
#[derive(Debug, thiserror::Error)]
pub enum InvalidLine {
    /// Not JSON, or not as such a line has it.
    #[error("{0}")]
    Json(#[from] serde_json::Error),
    /// A field breaks its grammar.
    #[error("{field} is damaged")]
    Field {
        /// Which.
        field: &'static str,
    },
    /// A manifest whose bytes are not there, or are others.
    #[error("the bytes of manifest {0} are not in the pack")]
    Manifest(Digest),
}

#[derive(Serialize, Deserialize)]
struct HeaderLine {
    larder: String,
    covers: Vec<CoverLine>,
    #[serde(flatten)]
    company: CompanyLine,
}

#[derive(Serialize, Deserialize)]
struct CoverLine {
    #[serde(flatten)]
    origin: OriginLine,
    after: u64,
    upto: u64,
}

#[derive(Serialize, Deserialize)]
pub(crate) struct OriginLine {
    node: String,
    incarnation: u64,
}

#[derive(Serialize, Deserialize)]
struct StampLine {
    ms: u64,
    counter: u64,
    node: String,
}

#[derive(Serialize, Deserialize)]
struct RecordLine {
    #[serde(flatten)]
    body: Body,
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    deleted: bool,
    stamp: StampLine,
    origin: OriginLine,
    sequence: u64,
}

/// Key and value of a record; of a tombstone the key only.
#[derive(Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
enum Body {
    Manifest {
        repository: String,
        digest: Digest,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        media_type: Option<String>,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        bytes: Option<String>,
        /// The bytes, where they are UTF-8: in checkpoints.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        text: Option<String>,
    },
    Tag {
        repository: String,
        tag: String,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        digest: Option<Digest>,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        replaced: Option<StampLine>,
    },
    Link {
        repository: String,
        digest: Digest,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        blob: Option<LinkLine>,
    },
    Archived {
        pack: PackLine,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        object: Option<ObjectLine>,
    },
    Member {
        member: String,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        about: Option<Member>,
    },
    Unknown {
        number: u16,
        key: String,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        value: Option<String>,
    },
}

#[derive(Serialize, Deserialize)]
struct LinkLine {
    size: u64,
    root: String,
    crc64: String,
}

#[derive(Serialize, Deserialize)]
struct PackLine {
    #[serde(flatten)]
    writer: OriginLine,
    number: u64,
}

#[derive(Serialize, Deserialize)]
struct ObjectLine {
    bucket: String,
    object_key: String,
    size: u64,
    created_ms: u64,
    records: u64,
    contents: Vec<Located>,
}

#[derive(Serialize, Deserialize)]
struct IndexLine {
    digest: Digest,
    size: u64,
    offset: u64,
    length: u64,
    root: String,
    crc64: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    chunks: Option<String>,
}

/// The first line of the records.
pub fn header_line(covers: &BTreeMap<Origin, Covered>, company: &Company) -> String {
    let covers = covers.iter().map(|(origin, covered)| CoverLine { origin: (*origin).into(), after: covered.after, upto: covered.upto });
    json(&HeaderLine { larder: "records".to_owned(), covers: covers.collect(), company: company.into() })
}

/// Reads what [`header_line`] wrote.
pub fn parse_header_line(line: &[u8]) -> Result<(BTreeMap<Origin, Covered>, Company), InvalidLine> {
    let header: HeaderLine = serde_json::from_slice(line)?;
    if header.larder != "records" {
        return Err(InvalidLine::Field { field: "larder" });
    }
    let cover = |line: CoverLine| Ok::<_, InvalidLine>((line.origin.parse()?, Covered { after: line.after, upto: line.upto }));
    Ok((header.covers.into_iter().map(cover).collect::<Result<_, _>>()?, header.company.parse()?))
}

/// The line of a record in a checkpoint, which has all of it: a manifest's bytes as text, where they are.
pub(crate) fn whole_line(numbered: &Numbered) -> String {
    if let (Key::Manifest(repository, digest), Some(Value::Manifest(manifest))) = (&numbered.record.key, &numbered.record.value)
        && let Ok(text) = std::str::from_utf8(&manifest.bytes)
    {
        let (media_type, text) = (Some(manifest.media_type.clone()), Some(text.to_owned()));
        let body = Body::Manifest { repository: repository.to_string(), digest: *digest, media_type, bytes: None, text };
        let Numbered { origin, sequence, record } = numbered;
        return json(&RecordLine { body, deleted: false, stamp: record.stamp.into(), origin: (*origin).into(), sequence: *sequence });
    }
    record_line(numbered, true)
}

/// The line of a record. With `inline`, a manifest's bytes stand in the line and not in the pack.
pub fn record_line(numbered: &Numbered, inline: bool) -> String {
    let Numbered { origin, sequence, record } = numbered;
    let body = match (&record.key, &record.value) {
        (Key::Manifest(repository, digest), value) => {
            let manifest = if let Some(Value::Manifest(manifest)) = value { Some(manifest) } else { None };
            Body::Manifest {
                repository: repository.to_string(),
                digest: *digest,
                media_type: manifest.map(|manifest| manifest.media_type.clone()),
                bytes: manifest.filter(|_| inline).map(|manifest| BASE64.encode(&manifest.bytes)),
                text: None,
            }
        }
        (Key::Tag(repository, tag), value) => {
            let target = if let Some(Value::Tag(target)) = value { Some(target) } else { None };
            Body::Tag {
                repository: repository.to_string(),
                tag: tag.to_string(),
                digest: target.map(|target| target.digest),
                replaced: target.and_then(|target| target.replaced).map(StampLine::from),
            }
        }
        (Key::Link(repository, digest), value) => Body::Link {
            repository: repository.to_string(),
            digest: *digest,
            blob: if let Some(Value::Link(link)) = value { Some(link.into()) } else { None },
        },
        (Key::Archived(pack), value) => Body::Archived {
            pack: PackLine { writer: pack.origin.into(), number: pack.sequence },
            object: if let Some(Value::Archived(archived)) = value { Some(archived.clone().into()) } else { None },
        },
        (Key::Member(node), value) => Body::Member {
            member: node.letters(),
            about: if let Some(Value::Member(member)) = value { Some(member.clone()) } else { None },
        },
        // Kinds that came after the first version of this format stand here by number, so that programs of then read the pack too.
        (
            key @ (Key::Role(_)
            | Key::User(_)
            | Key::Robot(_)
            | Key::Rule(..)
            | Key::Site(_)
            | Key::Keys(_)
            | Key::Starts(_)
            | Key::Unknown { .. }),
            value,
        ) => Body::Unknown {
            number: key.kind(),
            key: BASE64.encode(key.to_bytes()),
            value: value.as_ref().map(|value| BASE64.encode(value.to_bytes())),
        },
    };
    let deleted = record.value.is_none();
    json(&RecordLine { body, deleted, stamp: record.stamp.into(), origin: (*origin).into(), sequence: *sequence })
}

/// Reads what [`record_line`] wrote; `manifest` gives the bytes that stand in the pack.
pub fn parse_record_line<'a>(line: &[u8], manifest: &impl Fn(&Digest) -> Option<&'a [u8]>) -> Result<Numbered, InvalidLine> {
    let line: RecordLine = serde_json::from_slice(line)?;
    let deleted = line.deleted;
    let required = |there: bool, field| if there == deleted { Err(InvalidLine::Field { field }) } else { Ok(()) };
    let (key, value) = match line.body {
        Body::Manifest { repository, digest, media_type, bytes, text } => {
            required(media_type.is_some(), "media_type")?;
            let value = match (media_type, bytes) {
                (None, _) => None,
                (Some(media_type), bytes) => {
                    let bytes = match (text, bytes) {
                        (Some(text), _) => text.into_bytes(),
                        (None, Some(text)) => BASE64.decode(text).map_err(|_| InvalidLine::Field { field: "bytes" })?,
                        (None, None) => manifest(&digest).ok_or(InvalidLine::Manifest(digest))?.to_vec(),
                    };
                    if Digest::of(digest.algorithm(), &bytes) != digest {
                        return Err(InvalidLine::Manifest(digest));
                    }
                    Some(Value::Manifest(Manifest { media_type, bytes }))
                }
            };
            (Key::Manifest(name(&repository)?, digest), value)
        }
        Body::Tag { repository, tag, digest, replaced } => {
            required(digest.is_some(), "digest")?;
            let replaced = replaced.map(StampLine::parse).transpose()?;
            let tag = tag.parse().map_err(|_| InvalidLine::Field { field: "tag" })?;
            (Key::Tag(name(&repository)?, tag), digest.map(|digest| Value::Tag(TagTarget { digest, replaced })))
        }
        Body::Link { repository, digest, blob } => {
            required(blob.is_some(), "blob")?;
            (Key::Link(name(&repository)?, digest), blob.map(LinkLine::parse).transpose()?.map(Value::Link))
        }
        Body::Archived { pack, object } => {
            required(object.is_some(), "object")?;
            if object.as_ref().is_some_and(|object| object.contents.len() > PACK_CONTENTS_MAX) {
                return Err(InvalidLine::Field { field: "contents" });
            }
            let id = PackId { origin: pack.writer.parse()?, sequence: pack.number };
            (Key::Archived(id), object.map(|object| Value::Archived(object.into())))
        }
        Body::Member { member, about } => {
            required(about.is_some(), "about")?;
            (Key::Member(node(&member)?), about.map(Value::Member))
        }
        Body::Unknown { number, key, value } => {
            required(value.is_some(), "value")?;
            let bytes = |text: String, field| BASE64.decode(text).map_err(|_| InvalidLine::Field { field });
            // A kind that has become known since: its bytes are understood now.
            let (key, value) = (bytes(key, "key")?, value.map(|value| bytes(value, "value")).transpose()?);
            let key = Key::parse(number, &key).map_err(|_| InvalidLine::Field { field: "key" })?;
            let value = value.map(|value| Value::parse(number, &value)).transpose().map_err(|_| InvalidLine::Field { field: "value" })?;
            (key, value)
        }
    };
    Ok(Numbered { origin: line.origin.parse()?, sequence: line.sequence, record: Record { key, value, stamp: line.stamp.parse()? } })
}

/// The line of a blob in the index.
pub fn index_line(entry: &Entry) -> String {
    let LinkLine { size, root, crc64 } = (&entry.link).into();
    let chunks = entry.chunks.as_ref().map(|chunks| BASE64.encode(chunks.concat()));
    json(&IndexLine { digest: entry.digest, size, offset: entry.offset, length: size, root, crc64, chunks })
}

/// Reads what [`index_line`] wrote; places are checked by the caller.
pub fn parse_index_line(line: &[u8]) -> Result<Entry, InvalidLine> {
    let line: IndexLine = serde_json::from_slice(line)?;
    if line.length != line.size {
        return Err(InvalidLine::Field { field: "length" });
    }
    let chunks = match line.chunks {
        None => None,
        Some(text) => {
            let bytes = BASE64.decode(text).map_err(|_| InvalidLine::Field { field: "chunks" })?;
            let (values, rest) = bytes.as_chunks::<32>();
            if !rest.is_empty() {
                return Err(InvalidLine::Field { field: "chunks" });
            }
            Some(values.to_vec())
        }
    };
    let link = LinkLine { size: line.size, root: line.root, crc64: line.crc64 }.parse()?;
    Ok(Entry { digest: line.digest, offset: line.offset, link, chunks })
}

impl From<Origin> for OriginLine {
    fn from(origin: Origin) -> Self {
        Self { node: origin.node.letters(), incarnation: origin.incarnation }
    }
}

impl OriginLine {
    pub(crate) fn parse(self) -> Result<Origin, InvalidLine> {
        Ok(Origin { node: node(&self.node)?, incarnation: self.incarnation })
    }
}

impl From<Stamp> for StampLine {
    fn from(stamp: Stamp) -> Self {
        let ms = stamp.time.ms();
        Self { ms, counter: stamp.time.0 - HybridTime::from_ms(ms).0, node: stamp.node.letters() }
    }
}

impl StampLine {
    fn parse(self) -> Result<Stamp, InvalidLine> {
        let damaged = InvalidLine::Field { field: "stamp" };
        let largest = HybridTime(u64::MAX).ms();
        let counters = HybridTime::from_ms(1).0;
        if self.ms > largest || self.counter >= counters {
            return Err(damaged);
        }
        Ok(Stamp { time: HybridTime(HybridTime::from_ms(self.ms).0 | self.counter), node: node(&self.node)? })
    }
}

impl From<&Link> for LinkLine {
    fn from(link: &Link) -> Self {
        Self { size: link.size, root: hex::encode(link.root), crc64: format!("{:016x}", link.crc64) }
    }
}

impl LinkLine {
    fn parse(self) -> Result<Link, InvalidLine> {
        let mut root = [0; 32];
        hex::decode_to_slice(&self.root, &mut root).map_err(|_| InvalidLine::Field { field: "root" })?;
        let mut crc64 = [0; 8];
        hex::decode_to_slice(&self.crc64, &mut crc64).map_err(|_| InvalidLine::Field { field: "crc64" })?;
        Ok(Link { size: self.size, root, crc64: u64::from_be_bytes(crc64) })
    }
}

impl From<Archived> for ObjectLine {
    fn from(it: Archived) -> Self {
        let Archived { bucket, object_key, size, created_ms, records, contents } = it;
        Self { bucket, object_key, size, created_ms, records, contents }
    }
}

impl From<ObjectLine> for Archived {
    fn from(it: ObjectLine) -> Self {
        let ObjectLine { bucket, object_key, size, created_ms, records, contents } = it;
        Self { bucket, object_key, size, created_ms, records, contents }
    }
}

fn json(line: &impl Serialize) -> String {
    serde_json::to_string(line).expect("texts, numbers and lists are JSON")
}

fn name(text: &str) -> Result<crate::name::RepositoryName, InvalidLine> {
    text.parse().map_err(|_| InvalidLine::Field { field: "repository" })
}

fn node(text: &str) -> Result<NodeId, InvalidLine> {
    NodeId::parse(text).ok_or(InvalidLine::Field { field: "node" })
}
