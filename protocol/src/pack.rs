//! The pack: the one kind of object that is written to a bucket.
//!
//! A pack is a plain tar that is also an OCI image layout, so that stock `tar x` gets every blob back and
//! `skopeo inspect oci-archive:PACK` reads it, without Larder and in twenty years. What Larder needs beside that are two tables
//! of JSON lines as last members, and a footer that `tar` never looks at:
//!
//! ```text
//! 0  oci-layout                     {"imageLayoutVersion":"1.0.0"}
//!    index.json                     the images whose manifests are in here; tags as org.opencontainers.image.ref.name
//!    blobs/<algorithm>/<hex>  ...   blobs; those of one image side by side
//!    blobs/<algorithm>/<hex>  ...   manifests                               <- footer.tail
//!    larder/records.jsonl.zst       a line for each record                  <- footer.records
//!    larder/index.jsonl.zst         a line for each blob and manifest       <- footer.index
//!    1024 zeros                     end of the tar
//!    footer, 512 bytes              see `footer`
//! size
//! ```
//!
//! Reading a pack back takes one ranged GET from its end: footer, index, records and manifests lie together.
//!
//! # Without this program
//!
//! `tar x` writes every blob under its digest, and `sha256sum` proves it. `index.json` names the images whose manifests are in the same pack;
//! blobs that an earlier pack has are not repeated, so an image may need several packs: unpack them into one folder. What tag meant
//! what is in `larder/records.jsonl.zst` (`zstd -d`), whose lines `lines` explains; of two lines about one key that with the later stamp stands.
//!
//! A pack whose name ends in `.age` is a file that [age](https://age-encryption.org/v1) has encrypted as a whole, with the pack as its content; a checkpoint likewise. Offsets and sizes
//! are those of the content. Of its first 2,048 bytes, the header says how many bytes of content there are, in a stanza `larder` that other programs pass over.
//!
//! ```text
//! tar x < PACK                                      a plain pack
//! age -d -i IDENTITY PACK | tar x                   an encrypted one
//! zstd -d < larder/records.jsonl.zst                what tags mean, and all other records
//! sha256sum blobs/sha256/*                          is each blob what its name says?
//! zstd -d < CHECKPOINT                              all records up to then
//! age -d -i IDENTITY CHECKPOINT | zstd -d           the same, encrypted
//! larder unpack PACK --identity IDENTITY --to DIR   the same as tar, checked, and the records as text
//! larder unpack PACK --identity IDENTITY --list     what it is, and whether all in it is whole
//! ```
//!
//! A file that `larder export` wrote is a pack too. It has `manifest.json` beside `index.json`, for `docker load`; its sequence is 0, its records
//! have sequence 0, and it covers nothing.
//!
//! # What is trusted
//!
//! The footer, once its signature is that of the node it names. Records and index, once they have the SHA-256 that the footer
//! says, and then only within limits: every offset is checked against the object and against the others, output is cut at
//! the size that was signed, names are parsed by the grammar that clients' names are parsed by. **Names and sizes in tar headers are
//! never read.** Blobs are checked by whoever fetches them, against their digest.

use std::collections::{BTreeMap, HashMap};
use std::io::{Read, Write};

use bytes::Bytes;
use crc_fast::CrcAlgorithm::Crc64Nvme;
use sha2::Digest as _;

use crate::digest::{ChunkList, Digest, TreeHash, tree_hash};
use crate::record::{Link, Located, Numbered, PackId};
use crate::vector::Origin;

pub(crate) mod company;
mod footer;
mod layout;
pub(crate) mod lines;
mod tar;
#[cfg(test)]
mod tests;
pub mod walk;

pub use crate::record::PACK_CONTENTS_MAX;
pub use company::Company;
pub(crate) use footer::take;
pub use footer::{FOOTER_SIZE, FORMAT_VERSION, Footer, INDEX_OUTPUT_MAX, RECORDS_MAX, RECORDS_OUTPUT_MAX, Section, TAIL_SIZE_MAX};
pub use layout::{OCI_LAYOUT, docker_json, index_json};
pub use lines::{InvalidLine, record_line};

/// Compression of the tables: good enough, and its window stays below [`WINDOW_LOG_MAX`].
const ZSTD_LEVEL: i32 = 3;
/// Largest zstd window that is accepted: 8 MiB.
const WINDOW_LOG_MAX: u32 = 23;
/// Longest line of a table. A manifest of the largest size as base64 fits.
const LINE_SIZE_MAX: u64 = 32 << 20;

/// Why bytes are no pack that can be used.
#[derive(Debug, thiserror::Error)]
pub enum InvalidPack {
    /// The last bytes are something else.
    #[error("no pack footer at its end: not a pack, or cut short")]
    NoFooter,
    /// Written by a later program.
    #[error("pack format {found}, this program reads format {FORMAT_VERSION}; upgrade it")]
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
    /// The footer breaks a rule.
    #[error("the footer tells of {what}")]
    Footer {
        /// Which rule.
        what: &'static str,
    },
    /// A table has other bytes than those that were signed.
    #[error("the {table} are not the bytes that were signed")]
    Digest {
        /// `records` or `index`.
        table: &'static str,
    },
    /// A table doesn't decompress to what was signed.
    #[error("decompress the {table}: {detail}")]
    Compression {
        /// `records` or `index`.
        table: &'static str,
        /// How it shows.
        detail: String,
    },
    /// A line of a table.
    #[error("line {number} of the {table}: {why}")]
    Line {
        /// `records` or `index`.
        table: &'static str,
        /// From 1.
        number: u64,
        /// What is wrong.
        why: InvalidLine,
    },
    /// A table has more or fewer lines than were signed.
    #[error("the {table} have {actual} lines, {signed} were signed")]
    Count {
        /// `records` or `index`.
        table: &'static str,
        /// In the footer.
        signed: u64,
        /// Found.
        actual: u64,
    },
    /// The index places a blob where it can't be.
    #[error("the index places {digest} at {offset}, {length} bytes: {what}")]
    Place {
        /// The blob.
        digest: Digest,
        /// Its first byte.
        offset: u64,
        /// Its bytes.
        length: u64,
        /// What is wrong with that.
        what: &'static str,
    },
}

/// A blob that goes into a pack; its bytes are streamed later.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BlobPart {
    /// The blob.
    pub digest: Digest,
    /// Its size, root and CRC.
    pub link: Link,
    /// BLAKE3 chaining value of each MiB, for blobs above one MiB, where they are known.
    pub chunks: Option<Vec<[u8; 32]>>,
}

/// A manifest that goes into a pack.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ManifestPart {
    /// Its digest.
    pub digest: Digest,
    /// As it was pushed.
    pub media_type: String,
    /// As it was pushed.
    pub bytes: Bytes,
    /// `repository:tag` of tags in this pack that name it.
    pub names: Vec<String>,
}

/// Which sequences of an origin a pack brings or supersedes: behind `after`, up to `upto`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Covered {
    /// Behind this.
    pub after: u64,
    /// Up to this, itself included.
    pub upto: u64,
}

/// Everything that shall stand in a pack.
#[derive(Clone, Debug)]
pub struct Draft {
    /// The cluster.
    pub cluster: [u8; 16],
    /// The pack's id.
    pub pack: PackId,
    /// When, milliseconds since 1970.
    pub created_ms: u64,
    /// In the order in which they shall lie; each once, and none that is among the manifests.
    pub blobs: Vec<BlobPart>,
    /// Each once.
    pub manifests: Vec<ManifestPart>,
    /// Lines made by [`record_line`].
    pub records: Vec<String>,
    /// What the records cover.
    pub covers: BTreeMap<Origin, Covered>,
    /// Whom the writer knows.
    pub company: Company,
}

/// A piece of a sealed pack, in order.
#[derive(Clone, Debug)]
pub enum Piece {
    /// These bytes.
    Bytes(Bytes),
    /// The bytes of a blob.
    Blob {
        /// The blob.
        digest: Digest,
        /// Its size.
        size: u64,
    },
}

/// A pack that is ready to be sent, but for the bytes of its blobs.
#[derive(Clone, Debug)]
pub struct Sealed {
    /// What to send, in order.
    pub pieces: Vec<Piece>,
    /// CRC-64/NVME of all of it, combined from its parts.
    pub crc64: u64,
    /// What its end says.
    pub footer: Footer,
    /// Where each blob and manifest lies.
    pub contents: Vec<Located>,
}

/// A line of the index.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// The blob or manifest.
    pub digest: Digest,
    /// First byte, from the start of the object.
    pub offset: u64,
    /// Its size, root and CRC.
    pub link: Link,
    /// BLAKE3 chaining values, already checked against the root.
    pub chunks: Option<Vec<[u8; 32]>>,
}

/// What the tables of a pack say.
#[derive(Clone, Debug, Default)]
pub struct Contents {
    /// Where everything lies, by offset.
    pub index: Vec<Entry>,
    /// The records.
    pub records: Vec<Numbered>,
    /// What they cover.
    pub covers: BTreeMap<Origin, Covered>,
    /// Whom the writer knew.
    pub company: Company,
}

/// What the records of a pack say, without its index.
#[derive(Clone, Debug, Default)]
pub struct Told {
    /// The records.
    pub records: Vec<Numbered>,
    /// What they cover.
    pub covers: BTreeMap<Origin, Covered>,
    /// Whom the writer knew.
    pub company: Company,
}

impl Draft {
    /// Lays everything out, computes the checksum of the whole, and signs. Reads no blob.
    ///
    /// # Panics
    /// When the draft breaks a limit that [`Footer::parse`] would refuse: the caller plans within them.
    pub fn seal(self, sign: impl FnOnce(&[u8]) -> [u8; 64]) -> Sealed {
        self.seal_with(Vec::new(), sign)
    }

    /// The same, with files that other programs look for beside the layout. No reader here ever opens them.
    ///
    /// # Panics
    /// As [`Draft::seal`].
    pub fn seal_with(self, files: Vec<(&str, Bytes)>, sign: impl FnOnce(&[u8]) -> [u8; 64]) -> Sealed {
        let mut out = Assembly { modified_s: self.created_ms / 1000, ..Assembly::default() };
        out.file("oci-layout", Bytes::from_static(layout::OCI_LAYOUT));
        out.file("index.json", layout::index_json(&self.manifests).into());
        for (name, bytes) in files {
            out.file(name, bytes);
        }
        let mut index = Vec::new();
        for blob in self.blobs {
            let offset = out.blob(&blob.digest, &blob.link);
            index.push(Entry { digest: blob.digest, offset, link: blob.link, chunks: blob.chunks });
        }
        let tail = out.size;
        for manifest in self.manifests {
            let link = link_of(&manifest.bytes);
            let offset = out.file(&blob_name(&manifest.digest), manifest.bytes);
            index.push(Entry { digest: manifest.digest, offset, link, chunks: None });
        }
        let record_lines = std::iter::once(lines::header_line(&self.covers, &self.company)).chain(self.records.iter().cloned());
        let records = out.table("larder/records.jsonl.zst", record_lines);
        let contents = index.iter().map(|entry| Located { digest: entry.digest, offset: entry.offset, length: entry.link.size }).collect();
        let blob_count = u32::try_from(index.len()).expect("a pack holds at most PACK_CONTENTS_MAX blobs");
        let index = out.table("larder/index.jsonl.zst", index.iter().map(lines::index_line));
        out.push(Bytes::from_static(&[0; tar::END as usize]));
        let footer = Footer {
            cluster: self.cluster,
            pack: self.pack,
            created_ms: self.created_ms,
            size: out.size + FOOTER_SIZE,
            tail,
            record_count: self.records.len() as u64,
            blob_count,
            records,
            index,
        };
        out.push(Bytes::copy_from_slice(&footer.to_bytes(sign)));
        Sealed { pieces: out.pieces, crc64: out.crc64, footer, contents }
    }
}

impl Sealed {
    /// Size of the object in bytes.
    pub fn size(&self) -> u64 {
        self.footer.size
    }
}

impl Contents {
    /// Reads the tables of a pack from its last [`Footer::tail_length`] bytes.
    ///
    /// # Errors
    /// Whatever is not as it was signed, lies outside the pack or over something else, or breaks a grammar.
    pub fn parse(footer: &Footer, tail: &[u8]) -> Result<Self, InvalidPack> {
        if tail.len() as u64 != footer.tail_length() {
            return Err(InvalidPack::Size { signed: footer.tail_length(), actual: tail.len() as u64 });
        }
        let mut index = Vec::new();
        each_line(footer, tail, "index", &footer.index, |_, line| {
            index.push(lines::parse_index_line(line)?);
            Ok(())
        })?;
        if index.len() as u64 != u64::from(footer.blob_count) {
            return Err(InvalidPack::Count { table: "index", signed: footer.blob_count.into(), actual: index.len() as u64 });
        }
        check_places(footer, &mut index)?;

        let places: HashMap<Digest, (u64, u64)> = index.iter().map(|entry| (entry.digest, (entry.offset, entry.link.size))).collect();
        let manifest = |digest: &Digest| {
            let (offset, length) = places.get(digest)?;
            let start = usize::try_from(offset.checked_sub(footer.tail)?).ok()?;
            tail.get(start..start.checked_add(usize::try_from(*length).ok()?)?)
        };
        let records = &footer.records;
        // The footer's own check has placed it within the tail.
        let start = (records.offset - footer.tail) as usize;
        let Told { records, covers, company } = Told::parse(footer, &tail[start..start + records.length as usize], &manifest)?;
        Ok(Self { index, records, covers, company })
    }

    /// Where everything lies, as an `Archived` record has it.
    pub fn located(&self) -> Vec<Located> {
        self.index.iter().map(|entry| Located { digest: entry.digest, offset: entry.offset, length: entry.link.size }).collect()
    }
}

impl Told {
    /// Reads the records of a pack from the bytes of their section; `manifest` gives the bytes of a manifest that lies in the pack.
    ///
    /// # Errors
    /// Whatever is not as it was signed, or breaks a grammar.
    pub fn parse<'a>(footer: &Footer, section: &[u8], manifest: &impl Fn(&Digest) -> Option<&'a [u8]>) -> Result<Self, InvalidPack> {
        let mut told = Self::default();
        each_line_of(section, &footer.records, "records", |number, line| {
            if number == 1 {
                (told.covers, told.company) = lines::parse_header_line(line)?;
            } else {
                told.records.push(lines::parse_record_line(line, manifest)?);
            }
            Ok(())
        })?;
        if told.records.len() as u64 != footer.record_count {
            return Err(InvalidPack::Count { table: "records", signed: footer.record_count, actual: told.records.len() as u64 });
        }
        Ok(told)
    }
}

/// Size, root and CRC of bytes that are in memory.
pub fn link_of(bytes: &[u8]) -> Link {
    let root: TreeHash = tree_hash(bytes);
    Link { size: bytes.len() as u64, root, crc64: crc_fast::checksum(Crc64Nvme, bytes) }
}

/// A pack as it grows: pieces, size and checksum so far.
#[derive(Default)]
struct Assembly {
    pieces: Vec<Piece>,
    size: u64,
    crc64: u64,
    modified_s: u64,
}

impl Assembly {
    fn push(&mut self, bytes: Bytes) {
        self.grow(crc_fast::checksum(Crc64Nvme, &bytes), bytes.len() as u64);
        self.pieces.push(Piece::Bytes(bytes));
    }

    fn grow(&mut self, crc64: u64, size: u64) {
        if size > 0 {
            self.crc64 = if self.size == 0 { crc64 } else { crc_fast::checksum_combine(Crc64Nvme, self.crc64, crc64, size) };
            self.size += size;
        }
    }

    fn pad(&mut self, size: u64) {
        const ZEROS: [u8; tar::BLOCK as usize] = [0; tar::BLOCK as usize];
        match tar::padding(size) as usize {
            0 => {}
            padding => self.push(Bytes::from_static(&ZEROS[..padding])),
        }
    }

    fn file(&mut self, name: &str, bytes: Bytes) -> u64 {
        let size = bytes.len() as u64;
        self.push(tar::header(name, size, self.modified_s).into());
        let offset = self.size;
        self.push(bytes);
        self.pad(size);
        offset
    }

    fn blob(&mut self, digest: &Digest, link: &Link) -> u64 {
        self.push(tar::header(&blob_name(digest), link.size, self.modified_s).into());
        let offset = self.size;
        self.grow(link.crc64, link.size);
        self.pieces.push(Piece::Blob { digest: *digest, size: link.size });
        self.pad(link.size);
        offset
    }

    fn table(&mut self, name: &str, lines: impl Iterator<Item = String>) -> Section {
        let memory = "compressing into memory can't fail";
        let mut encoder = zstd::stream::write::Encoder::new(Vec::new(), ZSTD_LEVEL).expect(memory);
        let mut output = 0;
        for line in lines {
            encoder.write_all(line.as_bytes()).expect(memory);
            encoder.write_all(b"\n").expect(memory);
            output += line.len() as u64 + 1;
        }
        let bytes = encoder.finish().expect(memory);
        let (length, sha256) = (bytes.len() as u64, sha2::Sha256::digest(&bytes).into());
        Section { offset: self.file(name, bytes.into()), length, output, sha256 }
    }
}

fn blob_name(digest: &Digest) -> String {
    format!("blobs/{}/{}", digest.algorithm(), digest.hex())
}

/// Hands every line of a table to `take`, with its number from 1; holds one line at a time.
fn each_line(
    footer: &Footer,
    tail: &[u8],
    table: &'static str,
    section: &Section,
    take: impl FnMut(u64, &[u8]) -> Result<(), InvalidLine>,
) -> Result<(), InvalidPack> {
    // The footer's own check has placed the section within the tail.
    let start = (section.offset - footer.tail) as usize;
    each_line_of(&tail[start..start + section.length as usize], section, table, take)
}

/// The same of a table whose bytes are at hand.
pub(crate) fn each_line_of(
    bytes: &[u8],
    section: &Section,
    table: &'static str,
    mut take: impl FnMut(u64, &[u8]) -> Result<(), InvalidLine>,
) -> Result<(), InvalidPack> {
    if bytes.len() as u64 != section.length || <[u8; 32]>::from(sha2::Sha256::digest(bytes)) != section.sha256 {
        return Err(InvalidPack::Digest { table });
    }
    let damaged = |source: std::io::Error| InvalidPack::Compression { table, detail: source.to_string() };
    let mut decoder = zstd::stream::read::Decoder::new(bytes).map_err(damaged)?;
    decoder.window_log_max(WINDOW_LOG_MAX).map_err(damaged)?;
    // One byte more than was signed is enough to know that there is more.
    let mut output = std::io::BufReader::new(decoder.take(section.output + 1));
    let (mut read, mut number, mut line) = (0u64, 0, Vec::new());
    loop {
        line.clear();
        let length = std::io::BufRead::read_until(&mut (&mut output).take(LINE_SIZE_MAX), b'\n', &mut line).map_err(damaged)?;
        if length == 0 {
            break;
        }
        read += length as u64;
        number += 1;
        let Some(line) = line.strip_suffix(b"\n") else {
            return Err(InvalidPack::Compression { table, detail: "a line without an end".to_owned() });
        };
        take(number, line).map_err(|why| InvalidPack::Line { table, number, why })?;
    }
    if read != section.output {
        return Err(InvalidPack::Compression { table, detail: format!("not the {} bytes that were signed", section.output) });
    }
    Ok(())
}

/// Sorts by offset; nothing may lie over something else, over the tables, or outside.
fn check_places(footer: &Footer, index: &mut [Entry]) -> Result<(), InvalidPack> {
    index.sort_by_key(|entry| (entry.offset, entry.link.size));
    let mut free = tar::BLOCK;
    let mut seen = std::collections::HashSet::with_capacity(index.len());
    for entry in index.iter() {
        let (digest, offset, length) = (entry.digest, entry.offset, entry.link.size);
        let wrong = |what| Err(InvalidPack::Place { digest, offset, length, what });
        if offset < free {
            return wrong("that is where something else lies");
        }
        match offset.checked_add(length) {
            Some(end) if end <= footer.records.offset => free = end,
            _ => return wrong("that is behind the end of the blobs"),
        }
        if !seen.insert(digest) {
            return wrong("it is listed twice");
        }
        if let Some(chunks) = &entry.chunks
            && ChunkList::checked(length, chunks.clone(), &entry.link.root).is_err()
        {
            return wrong("its chunk values don't add up to its root");
        }
    }
    Ok(())
}
