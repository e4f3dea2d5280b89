//! The last 512 bytes of a pack: what it is, where its tables are, and who says so.
//!
//! ```text
//! offset  bytes
//!      0     8  magic "LARDERPK"
//!      8     2  format version
//!     10     2  zero
//!     12     4  blobs in the index
//!     16    16  cluster id
//!     32    32  writer: its node id, which is its Ed25519 public key
//!     64     8  writer's incarnation
//!     72     8  sequence of the pack
//!     80     8  created, milliseconds since 1970
//!     88     8  size of the whole object, footer included
//!     96     8  tail: where the manifests begin, which the records need
//!    104     8  number of records
//!    112    56  records: offset 8, length 8, length when decompressed 8, SHA-256 32
//!    168    56  index: the same
//!    224   224  zero
//!    448    64  Ed25519 signature of bytes 0 to 448
//! ```
//!
//! Numbers are little-endian. The footer stands behind the tar's end, where `tar` no longer reads.

use crate::record::PackId;
use crate::stamp::NodeId;
use crate::vector::Origin;

use super::{InvalidPack, PACK_CONTENTS_MAX, tar};

/// Bytes of a footer.
pub const FOOTER_SIZE: u64 = 512;
/// The pack format that is written.
pub const FORMAT_VERSION: u16 = 1;
/// Most bytes from the first manifest to the end of a pack: they are read into memory.
pub const TAIL_SIZE_MAX: u64 = 192 << 20;
/// Most bytes of decompressed records.
pub const RECORDS_OUTPUT_MAX: u64 = 64 << 20;
/// Most bytes of decompressed index.
pub const INDEX_OUTPUT_MAX: u64 = 64 << 20;
/// Most records in a pack.
pub const RECORDS_MAX: u64 = 100_000;

const MAGIC: &[u8; 8] = b"LARDERPK";
const SIGNED: usize = 448;

/// A table of a pack: a compressed member.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Section {
    /// First byte, from the start of the object.
    pub offset: u64,
    /// Bytes.
    pub length: u64,
    /// Bytes when decompressed.
    pub output: u64,
    /// SHA-256 of the compressed bytes.
    pub sha256: [u8; 32],
}

/// What the last bytes of a pack say.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Footer {
    /// The cluster whose records these are.
    pub cluster: [u8; 16],
    /// Who wrote it, in which life, as which of its packs.
    pub pack: PackId,
    /// When, milliseconds since 1970.
    pub created_ms: u64,
    /// Bytes of the whole object.
    pub size: u64,
    /// Where the manifests begin.
    pub tail: u64,
    /// Number of records.
    pub record_count: u64,
    /// Number of blobs.
    pub blob_count: u32,
    /// The records.
    pub records: Section,
    /// The index.
    pub index: Section,
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
        put(MAGIC);
        put(&FORMAT_VERSION.to_le_bytes());
        put(&[0; 2]);
        put(&self.blob_count.to_le_bytes());
        put(&self.cluster);
        put(&self.pack.origin.node.0);
        for number in [self.pack.origin.incarnation, self.pack.sequence, self.created_ms, self.size, self.tail, self.record_count] {
            put(&number.to_le_bytes());
        }
        for section in [&self.records, &self.index] {
            put(&section.offset.to_le_bytes());
            put(&section.length.to_le_bytes());
            put(&section.output.to_le_bytes());
            put(&section.sha256);
        }
        let signature = sign(&bytes[..SIGNED]);
        bytes[SIGNED..].copy_from_slice(&signature);
        bytes
    }

    /// Reads the footer of an object of `size` bytes. `verify` says whether a signature of some bytes is a node's.
    ///
    /// # Errors
    /// `NoFooter`, `Version`, `Signature`, `Size` when the object is not as long as it was when it was signed,
    /// `Footer` when what it says breaks a limit or lies outside the object.
    pub fn parse(bytes: &[u8], size: u64, verify: impl FnOnce(&NodeId, &[u8], &[u8; 64]) -> bool) -> Result<Self, InvalidPack> {
        let bytes: &[u8; FOOTER_SIZE as usize] = bytes.try_into().map_err(|_| InvalidPack::NoFooter)?;
        let mut rest = &bytes[..];
        if &take::<8>(&mut rest) != MAGIC {
            return Err(InvalidPack::NoFooter);
        }
        let found = u16::from_le_bytes(take(&mut rest));
        if found != FORMAT_VERSION {
            return Err(InvalidPack::Version { found });
        }
        let _zero: [u8; 2] = take(&mut rest);
        let blob_count = u32::from_le_bytes(take(&mut rest));
        let cluster = take(&mut rest);
        let node = NodeId(take(&mut rest));
        let mut number = || u64::from_le_bytes(take(&mut rest));
        let origin = Origin { node, incarnation: number() };
        let pack = PackId { origin, sequence: number() };
        let (created_ms, signed_size, tail, record_count) = (number(), number(), number(), number());
        let mut section = || Section {
            offset: u64::from_le_bytes(take(&mut rest)),
            length: u64::from_le_bytes(take(&mut rest)),
            output: u64::from_le_bytes(take(&mut rest)),
            sha256: take(&mut rest),
        };
        let (records, index) = (section(), section());
        let signature: &[u8; 64] = bytes[SIGNED..].try_into().expect("64 of 512 bytes");
        if !verify(&node, &bytes[..SIGNED], signature) {
            return Err(InvalidPack::Signature);
        }
        let footer = Self { cluster, pack, created_ms, size: signed_size, tail, record_count, blob_count, records, index };
        footer.check(size)?;
        Ok(footer)
    }

    /// Bytes from the first manifest to the end.
    pub fn tail_length(&self) -> u64 {
        self.size - self.tail
    }

    fn check(&self, size: u64) -> Result<(), InvalidPack> {
        if self.size != size {
            return Err(InvalidPack::Size { signed: self.size, actual: size });
        }
        let end = |section: &Section| section.offset.checked_add(section.length);
        let last = size.checked_sub(FOOTER_SIZE + tar::END);
        let rules = [
            (u64::from(self.blob_count) <= PACK_CONTENTS_MAX as u64, "more blobs than a pack may hold"),
            (self.record_count <= RECORDS_MAX, "more records than a pack may hold"),
            (self.records.output <= RECORDS_OUTPUT_MAX, "records that are too large when decompressed"),
            (self.index.output <= INDEX_OUTPUT_MAX, "an index that is too large when decompressed"),
            (self.tail <= self.records.offset, "manifests behind the records"),
            (end(&self.records).is_some_and(|end| end <= self.index.offset), "records that reach into the index"),
            (end(&self.index).is_some_and(|end| last.is_some_and(|last| end <= last)), "an index that reaches into the footer"),
            (size.checked_sub(self.tail).is_some_and(|length| length <= TAIL_SIZE_MAX), "a tail that is too long to be read"),
        ];
        match rules.iter().find(|(holds, _)| !holds) {
            Some((_, what)) => Err(InvalidPack::Footer { what }),
            None => Ok(()),
        }
    }
}

/// The next bytes of a field of fixed size.
pub(crate) fn take<const N: usize>(rest: &mut &[u8]) -> [u8; N] {
    let (head, tail) = rest.split_at(N);
    *rest = tail;
    head.try_into().expect("split at its length")
}
