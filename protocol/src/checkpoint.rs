//! The checkpoint: the state that all packs so far add up to, as one object, so that a restore need not read them.
//!
//! ```text
//! 0  page, page, ...       zstd frames: JSON lines, one for each record that stands, as in a pack; manifests with their bytes as text
//!    directory             zstd frame: what the state covers, then a line for each page with its place and SHA-256
//!    footer, 512 bytes     a skippable zstd frame: what it is, where the directory is, who says so
//! size
//! ```
//!
//! All of it is zstd: `zstd -d < CHECKPOINT` prints every record and the directory, without Larder and in twenty years (behind `age -d`, when its name ends in `.age`: see
//! [`crate::pack`]). The records of packs come first,
//! then repository by repository, the one with the newest tag first: whoever reads a checkpoint from its start can soon serve what is wanted most. The directory
//! says which repositories a page is about: who is asked for one can read its pages before the others.
//!
//! What is trusted: the footer, once its signature is that of the node that it names; the directory and each page, once they have the SHA-256 that was
//! signed, and never more of their output than was signed.
//!
//! ```text
//! offset  bytes
//!      0     8  50 2a 4d 18 f8 01 00 00: a skippable frame of 504 bytes
//!      8     8  magic "LARDERCP"
//!     16     2  format version
//!     18     2  zero
//!     20     4  pages
//!     24    16  cluster id
//!     40    32  writer: its node id, which is its Ed25519 public key
//!     72     8  writer's incarnation
//!     80     8  created, milliseconds since 1970
//!     88     8  size of the whole object, footer included
//!     96     8  number of records
//!    104    56  directory: offset 8, length 8, length when decompressed 8, SHA-256 32
//!    160   288  zero
//!    448    64  Ed25519 signature of bytes 0 to 448
//! ```

use std::collections::BTreeMap;
use std::io::{self, Write};

use crc_fast::CrcAlgorithm::Crc64Nvme;
use serde::{Deserialize, Serialize};
use sha2::Digest as _;

use crate::name::RepositoryName;
use crate::pack::company::CompanyLine;
use crate::pack::lines::{self, OriginLine};
use crate::pack::{Company, InvalidLine, InvalidPack, Section, each_line_of, take};
use crate::record::{Key, Numbered};
use crate::stamp::NodeId;
use crate::vector::{Origin, VersionVector};

/// Bytes of a footer.
pub const FOOTER_SIZE: u64 = 512;
/// The format that is written.
pub const FORMAT_VERSION: u16 = 1;
/// Bytes of lines after which a page ends.
const PAGE_SIZE: u64 = 2 << 20;
/// Most bytes of a page, compressed or not: it is read into memory. The longest line fits.
pub const PAGE_SIZE_MAX: u64 = 40 << 20;
/// Most bytes of a directory, compressed or not.
pub const DIRECTORY_SIZE_MAX: u64 = 64 << 20;
/// Most pages.
pub const PAGES_MAX: u32 = 500_000;
const ZSTD_LEVEL: i32 = 3;
const MAGIC: &[u8; 8] = b"LARDERCP";
const SKIPPABLE: [u8; 8] = [0x50, 0x2a, 0x4d, 0x18, 0xf8, 0x01, 0, 0];
const SIGNED: usize = 448;

/// Why bytes are no checkpoint that can be used.
#[derive(Debug, thiserror::Error)]
pub enum InvalidCheckpoint {
    /// The last bytes are something else.
    #[error("no footer of a checkpoint at its end: not a checkpoint, or cut short")]
    NoFooter,
    /// Written by a later program.
    #[error("checkpoint format {found}, this program reads format {FORMAT_VERSION}; upgrade it")]
    Version {
        /// In the footer.
        found: u16,
    },
    /// Not signed by the node that it names.
    #[error("the footer's signature is not its writer's: forged or damaged")]
    Signature,
    /// The object is longer or shorter than what was signed.
    #[error("the object has {actual} bytes, {signed} were signed")]
    Size {
        /// In the footer.
        signed: u64,
        /// In the bucket.
        actual: u64,
    },
    /// The footer or the directory breaks a rule.
    #[error("it tells of {what}")]
    Rule {
        /// Which rule.
        what: &'static str,
    },
    /// The directory or a page.
    #[error(transparent)]
    Table(#[from] InvalidPack),
}

/// What the last bytes of a checkpoint say.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Footer {
    /// The cluster whose state it is.
    pub cluster: [u8; 16],
    /// Who wrote it.
    pub writer: Origin,
    /// When, milliseconds since 1970.
    pub created_ms: u64,
    /// Bytes of the whole object.
    pub size: u64,
    /// Number of records.
    pub record_count: u64,
    /// Number of pages.
    pub page_count: u32,
    /// The directory.
    pub directory: Section,
}

/// What a checkpoint covers, and where its pages are.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Directory {
    /// See [`Scope`].
    pub scope: Scope,
    /// The pages, one behind the other from the object's first byte.
    pub pages: Vec<Page>,
}

/// What a checkpoint covers.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Scope {
    /// The bucket's id, as the records of packs in it call it.
    pub bucket: String,
    /// What the keys of its packs begin with.
    pub prefix: String,
    /// Everything up to there is in it, or superseded by something that is, or was deleted and forgotten.
    pub seen: VersionVector,
    /// Up to where tombstones were forgotten.
    pub horizon: VersionVector,
    /// The last pack of each writer in that bucket that its records tell of.
    pub packs: BTreeMap<Origin, u64>,
    /// Whom the writer knows.
    pub company: Company,
}

/// A page.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Page {
    /// Where it lies.
    pub section: Section,
    /// Number of records.
    pub records: u64,
    /// The repositories that they are about; none on pages of packs and members.
    pub repositories: Vec<RepositoryName>,
}

#[derive(Serialize, Deserialize)]
struct ScopeLine {
    larder: String,
    bucket: String,
    prefix: String,
    seen: Vec<SeenLine>,
    #[serde(default)]
    horizon: Vec<SeenLine>,
    #[serde(default)]
    packs: Vec<SeenLine>,
    #[serde(flatten)]
    company: CompanyLine,
}

#[derive(Serialize, Deserialize)]
struct SeenLine {
    #[serde(flatten)]
    origin: OriginLine,
    upto: u64,
}

#[derive(Serialize, Deserialize)]
struct PageLine {
    offset: u64,
    length: u64,
    output: u64,
    sha256: String,
    records: u64,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    repositories: Vec<String>,
}

/// Writes a checkpoint, a page at a time.
pub struct Writer<W> {
    out: Sum<W>,
    open: Option<zstd::stream::write::Encoder<'static, Vec<u8>>>,
    output: u64,
    records: u64,
    record_count: u64,
    repositories: Vec<RepositoryName>,
    pages: Vec<Page>,
}

/// A checkpoint that is written.
#[derive(Clone, Debug)]
pub struct Written {
    /// What its end says.
    pub footer: Footer,
    /// CRC-64/NVME of all of it.
    pub crc64: u64,
}

struct Sum<W> {
    out: W,
    size: u64,
    crc: crc_fast::Digest,
}

impl<W: Write> Sum<W> {
    fn put(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.crc.update(bytes);
        self.size += bytes.len() as u64;
        self.out.write_all(bytes)
    }
}

impl<W: Write> Writer<W> {
    /// A checkpoint that goes to `out`.
    pub fn new(out: W) -> Self {
        let out = Sum { out, size: 0, crc: crc_fast::Digest::new(Crc64Nvme) };
        Self { out, open: None, output: 0, records: 0, record_count: 0, repositories: Vec::new(), pages: Vec::new() }
    }

    /// Adds a record.
    ///
    /// # Errors
    /// Those of the output.
    pub fn push(&mut self, numbered: &Numbered) -> io::Result<()> {
        let line = lines::whole_line(numbered);
        match &numbered.record.key {
            Key::Manifest(repository, _) | Key::Tag(repository, _) | Key::Link(repository, _) => {
                if self.repositories.is_empty() {
                    self.end_page()?;
                }
                if self.repositories.last() != Some(repository) {
                    self.repositories.push(repository.clone());
                }
            }
            _ if !self.repositories.is_empty() => self.end_page()?,
            _ => {}
        }
        let page = match &mut self.open {
            Some(page) => page,
            open => open.insert(zstd::stream::write::Encoder::new(Vec::new(), ZSTD_LEVEL)?),
        };
        page.write_all(line.as_bytes())?;
        page.write_all(b"\n")?;
        self.output += line.len() as u64 + 1;
        self.records += 1;
        if self.output >= PAGE_SIZE { self.end_page() } else { Ok(()) }
    }

    fn end_page(&mut self) -> io::Result<()> {
        let Some(page) = self.open.take() else { return Ok(()) };
        let repositories = std::mem::take(&mut self.repositories);
        let bytes = page.finish()?;
        let output = std::mem::take(&mut self.output);
        let section = self.section(&bytes, output);
        let records = std::mem::take(&mut self.records);
        self.record_count += records;
        self.pages.push(Page { section, records, repositories });
        self.out.put(&bytes)
    }

    fn section(&self, bytes: &[u8], output: u64) -> Section {
        Section { offset: self.out.size, length: bytes.len() as u64, output, sha256: sha2::Sha256::digest(bytes).into() }
    }

    /// Writes the directory and the footer.
    ///
    /// # Errors
    /// Those of the output.
    ///
    /// # Panics
    /// When there are more pages than [`Footer::parse`] takes.
    pub fn finish(
        mut self,
        scope: &Scope,
        cluster: [u8; 16],
        (writer, created_ms): (Origin, u64),
        sign: impl FnOnce(&[u8]) -> [u8; 64],
    ) -> io::Result<Written> {
        self.end_page()?;
        let mut encoder = zstd::stream::write::Encoder::new(Vec::new(), ZSTD_LEVEL)?;
        let mut output = 0;
        for line in std::iter::once(scope_line(scope)).chain(self.pages.iter().map(page_line)) {
            encoder.write_all(line.as_bytes())?;
            encoder.write_all(b"\n")?;
            output += line.len() as u64 + 1;
        }
        let bytes = encoder.finish()?;
        let directory = self.section(&bytes, output);
        self.out.put(&bytes)?;
        let page_count = u32::try_from(self.pages.len()).expect("a page has two MiB, and no state so many");
        let size = self.out.size + FOOTER_SIZE;
        let footer = Footer { cluster, writer, created_ms, size, record_count: self.record_count, page_count, directory };
        self.out.put(&footer.to_bytes(sign))?;
        self.out.out.flush()?;
        Ok(Written { footer, crc64: self.out.crc.finalize() })
    }
}

impl Footer {
    /// The footer's bytes.
    ///
    /// # Panics
    /// When what it says could not be read back: that is our own mistake.
    pub fn to_bytes(&self, sign: impl FnOnce(&[u8]) -> [u8; 64]) -> [u8; FOOTER_SIZE as usize] {
        self.check(self.size).expect("a footer that is written can be read");
        let mut bytes = [0; FOOTER_SIZE as usize];
        let mut at = 0;
        let mut put = |field: &[u8]| {
            bytes[at..at + field.len()].copy_from_slice(field);
            at += field.len();
        };
        put(&SKIPPABLE);
        put(MAGIC);
        put(&FORMAT_VERSION.to_le_bytes());
        put(&[0; 2]);
        put(&self.page_count.to_le_bytes());
        put(&self.cluster);
        put(&self.writer.node.0);
        for number in [self.writer.incarnation, self.created_ms, self.size, self.record_count] {
            put(&number.to_le_bytes());
        }
        for number in [self.directory.offset, self.directory.length, self.directory.output] {
            put(&number.to_le_bytes());
        }
        put(&self.directory.sha256);
        let signature = sign(&bytes[..SIGNED]);
        bytes[SIGNED..].copy_from_slice(&signature);
        bytes
    }

    /// Reads the footer of an object of `size` bytes. `verify` says whether a signature of some bytes is a node's.
    ///
    /// # Errors
    /// `NoFooter`, `Version`, `Signature`, `Size`, `Rule`.
    pub fn parse(bytes: &[u8], size: u64, verify: impl FnOnce(&NodeId, &[u8], &[u8; 64]) -> bool) -> Result<Self, InvalidCheckpoint> {
        let bytes: &[u8; FOOTER_SIZE as usize] = bytes.try_into().map_err(|_| InvalidCheckpoint::NoFooter)?;
        let mut rest = &bytes[..];
        if take::<8>(&mut rest) != SKIPPABLE || &take::<8>(&mut rest) != MAGIC {
            return Err(InvalidCheckpoint::NoFooter);
        }
        let found = u16::from_le_bytes(take(&mut rest));
        if found != FORMAT_VERSION {
            return Err(InvalidCheckpoint::Version { found });
        }
        let _zero: [u8; 2] = take(&mut rest);
        let page_count = u32::from_le_bytes(take(&mut rest));
        let cluster = take(&mut rest);
        let node = NodeId(take(&mut rest));
        let mut number = || u64::from_le_bytes(take(&mut rest));
        let writer = Origin { node, incarnation: number() };
        let (created_ms, signed_size, record_count) = (number(), number(), number());
        let (offset, length, output) = (number(), number(), number());
        let directory = Section { offset, length, output, sha256: take(&mut rest) };
        let signature: &[u8; 64] = bytes[SIGNED..].try_into().expect("64 of 512 bytes");
        if !verify(&node, &bytes[..SIGNED], signature) {
            return Err(InvalidCheckpoint::Signature);
        }
        let footer = Self { cluster, writer, created_ms, size: signed_size, record_count, page_count, directory };
        footer.check(size)?;
        Ok(footer)
    }

    fn check(&self, size: u64) -> Result<(), InvalidCheckpoint> {
        if self.size != size {
            return Err(InvalidCheckpoint::Size { signed: self.size, actual: size });
        }
        let Section { offset, length, output, .. } = self.directory;
        let rules = [
            (self.page_count <= PAGES_MAX, "more pages than a checkpoint may have"),
            (length <= DIRECTORY_SIZE_MAX && output <= DIRECTORY_SIZE_MAX, "a directory that is too large to be read"),
            (offset.checked_add(length) == size.checked_sub(FOOTER_SIZE), "a directory that does not lie before the footer"),
        ];
        match rules.iter().find(|(holds, _)| !holds) {
            Some((_, what)) => Err(InvalidCheckpoint::Rule { what }),
            None => Ok(()),
        }
    }
}

impl Directory {
    /// Reads the bytes of a directory.
    ///
    /// # Errors
    /// Bytes that were not signed; pages that do not lie one behind the other up to the directory, or are too large.
    pub fn parse(footer: &Footer, bytes: &[u8]) -> Result<Self, InvalidCheckpoint> {
        let mut directory = Self::default();
        each_line_of(bytes, &footer.directory, "directory", |number, line| {
            if number == 1 {
                directory.scope = parse_scope_line(line)?;
            } else {
                directory.pages.push(parse_page_line(line)?);
            }
            Ok(())
        })?;
        let mut end = 0u64;
        let mut records = 0u64;
        for Page { section, records: count, .. } in &directory.pages {
            if section.offset != end || section.length > PAGE_SIZE_MAX || section.output > PAGE_SIZE_MAX {
                return Err(InvalidCheckpoint::Rule { what: "a page that is too large, or not where the one before ends" });
            }
            end += section.length;
            records = records.saturating_add(*count);
        }
        if end != footer.directory.offset || directory.pages.len() as u64 != u64::from(footer.page_count) || records != footer.record_count
        {
            return Err(InvalidCheckpoint::Rule { what: "other pages or records than its footer" });
        }
        Ok(directory)
    }
}

impl Page {
    /// The records of a page, from its bytes.
    ///
    /// # Errors
    /// Bytes that were not signed, more or fewer records than were, a line that breaks a grammar.
    pub fn parse(&self, bytes: &[u8]) -> Result<Vec<Numbered>, InvalidCheckpoint> {
        let mut records = Vec::new();
        each_line_of(bytes, &self.section, "page", |_, line| {
            records.push(lines::parse_record_line(line, &|_| None)?);
            Ok(())
        })?;
        if records.len() as u64 != self.records {
            return Err(InvalidPack::Count { table: "page", signed: self.records, actual: records.len() as u64 }.into());
        }
        Ok(records)
    }
}

fn scope_line(scope: &Scope) -> String {
    let seen = |vector: &VersionVector| vector.iter().map(|(origin, upto)| SeenLine { origin: origin.into(), upto }).collect();
    let line = ScopeLine {
        larder: "checkpoint".to_owned(),
        bucket: scope.bucket.clone(),
        prefix: scope.prefix.clone(),
        seen: seen(&scope.seen),
        horizon: seen(&scope.horizon),
        packs: scope.packs.iter().map(|(origin, upto)| SeenLine { origin: (*origin).into(), upto: *upto }).collect(),
        company: (&scope.company).into(),
    };
    serde_json::to_string(&line).expect("texts and numbers are JSON")
}

fn parse_scope_line(line: &[u8]) -> Result<Scope, InvalidLine> {
    let line: ScopeLine = serde_json::from_slice(line)?;
    if line.larder != "checkpoint" {
        return Err(InvalidLine::Field { field: "larder" });
    }
    let (seen, horizon) = (parse_seen(line.seen)?.into_iter().collect(), parse_seen(line.horizon)?.into_iter().collect());
    let packs = parse_seen(line.packs)?.into_iter().collect();
    Ok(Scope { bucket: line.bucket, prefix: line.prefix, seen, horizon, packs, company: line.company.parse()? })
}

fn parse_seen(lines: Vec<SeenLine>) -> Result<Vec<(Origin, u64)>, InvalidLine> {
    lines.into_iter().map(|line| Ok((line.origin.parse()?, line.upto))).collect()
}

fn page_line(page: &Page) -> String {
    let repositories = page.repositories.iter().map(ToString::to_string).collect();
    let Section { offset, length, output, sha256 } = page.section;
    serde_json::to_string(&PageLine { offset, length, output, sha256: hex::encode(sha256), records: page.records, repositories })
        .expect("texts and numbers are JSON")
}

fn parse_page_line(line: &[u8]) -> Result<Page, InvalidLine> {
    let line: PageLine = serde_json::from_slice(line)?;
    let mut sha256 = [0; 32];
    hex::decode_to_slice(&line.sha256, &mut sha256).map_err(|_| InvalidLine::Field { field: "sha256" })?;
    let section = Section { offset: line.offset, length: line.length, output: line.output, sha256 };
    let repositories: Result<_, _> = line.repositories.iter().map(|name| name.parse()).collect();
    let repositories = repositories.map_err(|_| InvalidLine::Field { field: "repositories" })?;
    Ok(Page { section, records: line.records, repositories })
}

#[cfg(test)]
mod tests;
