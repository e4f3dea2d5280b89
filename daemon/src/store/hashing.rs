//! Everything that is computed of a blob while its bytes arrive: its digest, the chaining value of each MiB, its CRC-64/NVME.
//!
//! The state can be saved between two requests and taken up after a restart: the digest's inner state (a format of the
//! `sha2` crate, so it carries that crate's version), the values of the MiB that are whole, the CRC. BLAKE3's state
//! can't be saved; the bytes since the last whole MiB are read again instead.

use blake3::hazmat::HasherExt;
use crc_fast::CrcAlgorithm::Crc64Nvme;
use larder_protocol::digest::{Algorithm, CHUNK_SIZE, ChunkList, Digest};
use larder_protocol::record::Link;
use serde::{Deserialize, Serialize};
use sha2::Digest as _;
use sha2::digest::common::hazmat::SerializableState;

/// The release of `sha2` whose saved states can be read.
const STATE_FORMAT: u32 = 11;

/// The running digest.
#[derive(Clone)]
enum Running {
    Sha256(sha2::Sha256),
    Sha512(sha2::Sha512),
}

/// The running hashes of a blob.
#[derive(Clone)]
pub(super) struct Hashes {
    running: Running,
    crc: crc_fast::Digest,
    values: Vec<[u8; 32]>,
    /// The bytes since the last whole MiB.
    chunk: blake3::Hasher,
    size: u64,
}

/// What is saved of them.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct SavedHashes {
    format: u32,
    state: Vec<u8>,
    crc: u64,
    values: Vec<[u8; 32]>,
    pub size: u64,
}

/// What came out.
#[derive(Clone, Debug)]
pub(super) struct Hashed {
    pub digest: Digest,
    pub link: Link,
    /// Empty for a blob of at most one MiB.
    pub values: Vec<[u8; 32]>,
}

impl std::fmt::Debug for Hashes {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Hashes of {} bytes", self.size)
    }
}

impl Hashes {
    pub(super) fn new(algorithm: Algorithm) -> Self {
        let running = match algorithm {
            Algorithm::Sha256 => Running::Sha256(sha2::Sha256::new()),
            Algorithm::Sha512 => Running::Sha512(sha2::Sha512::new()),
        };
        Self { running, crc: crc_fast::Digest::new(Crc64Nvme), values: Vec::new(), chunk: new_chunk(0), size: 0 }
    }

    pub(super) fn algorithm(&self) -> Algorithm {
        match self.running {
            Running::Sha256(_) => Algorithm::Sha256,
            Running::Sha512(_) => Algorithm::Sha512,
        }
    }

    pub(super) fn size(&self) -> u64 {
        self.size
    }

    pub(super) fn update(&mut self, mut bytes: &[u8]) {
        match &mut self.running {
            Running::Sha256(running) => running.update(bytes),
            Running::Sha512(running) => running.update(bytes),
        }
        self.crc.update(bytes);
        while !bytes.is_empty() {
            // Closed only when more comes: the last chunk of a blob, or its only one, is closed in another way.
            if self.open() == CHUNK_SIZE {
                self.end_chunk();
            }
            let room = CHUNK_SIZE - self.open();
            let (now, later) = bytes.split_at(bytes.len().min(room as usize));
            self.chunk.update(now);
            self.size += now.len() as u64;
            bytes = later;
        }
    }

    /// Takes a whole chunk whose value is known, when the bytes so far are whole chunks and others follow.
    ///
    /// # Panics
    /// When they are not.
    pub(super) fn update_chunk(&mut self, bytes: &[u8], value: [u8; 32]) {
        if self.open() == CHUNK_SIZE {
            self.end_chunk();
        }
        assert!(self.open() == 0 && bytes.len() as u64 == CHUNK_SIZE, "a whole chunk behind whole chunks");
        match &mut self.running {
            Running::Sha256(running) => running.update(bytes),
            Running::Sha512(running) => running.update(bytes),
        }
        self.crc.update(bytes);
        self.values.push(value);
        self.size += CHUNK_SIZE;
        self.chunk = new_chunk(self.size);
    }

    /// The values of the chunks that are closed.
    pub(super) fn values(&self) -> &[[u8; 32]] {
        &self.values
    }

    /// Bytes in the chunk that is not closed.
    fn open(&self) -> u64 {
        self.size - self.values.len() as u64 * CHUNK_SIZE
    }

    fn end_chunk(&mut self) {
        self.values.push(self.chunk.finalize_non_root());
        self.chunk = new_chunk(self.size);
    }

    pub(super) fn save(&self) -> SavedHashes {
        let state = match &self.running {
            Running::Sha256(running) => running.serialize().to_vec(),
            Running::Sha512(running) => running.serialize().to_vec(),
        };
        SavedHashes { format: STATE_FORMAT, state, crc: self.crc.get_state(), values: self.values.clone(), size: self.size }
    }

    /// Takes up what was saved; `tail` reads the bytes since the last whole MiB. `None`: the state is of another release.
    pub(super) fn resume(algorithm: Algorithm, saved: &SavedHashes, tail: &[u8]) -> Option<Self> {
        if saved.format != STATE_FORMAT || saved.tail_length() != Some(tail.len() as u64) {
            return None;
        }
        let running = match algorithm {
            Algorithm::Sha256 => Running::Sha256(sha2::Sha256::deserialize(saved.state.as_slice().try_into().ok()?).ok()?),
            Algorithm::Sha512 => Running::Sha512(sha2::Sha512::deserialize(saved.state.as_slice().try_into().ok()?).ok()?),
        };
        let mut chunk = new_chunk(saved.size - tail.len() as u64);
        chunk.update(tail);
        let crc = crc_fast::Digest::new_with_init_state(Crc64Nvme, saved.crc);
        Some(Self { running, crc, values: saved.values.clone(), chunk, size: saved.size })
    }

    pub(super) fn finish(mut self) -> Hashed {
        let digest = match self.running.clone() {
            Running::Sha256(running) => Digest::Sha256(running.finalize().into()),
            Running::Sha512(running) => Digest::Sha512(running.finalize().into()),
        };
        let crc64 = self.crc.finalize();
        let size = self.size;
        if size <= CHUNK_SIZE {
            let root = *self.chunk.finalize().as_bytes();
            return Hashed { digest, link: Link { size, root, crc64 }, values: Vec::new() };
        }
        self.values.push(self.chunk.finalize_non_root());
        let list = ChunkList::new(size, self.values);
        Hashed { digest, link: Link { size, root: list.root(), crc64 }, values: list.values().to_vec() }
    }
}

impl SavedHashes {
    /// Bytes at the end that must be read again; `None` when the row contradicts itself.
    pub(super) fn tail_length(&self) -> Option<u64> {
        let closed = (self.values.len() as u64).checked_mul(CHUNK_SIZE)?;
        self.size.checked_sub(closed).filter(|tail| *tail <= CHUNK_SIZE)
    }
}

/// A hasher for the chunk that begins at `offset`.
fn new_chunk(offset: u64) -> blake3::Hasher {
    let mut hasher = blake3::Hasher::new();
    hasher.set_input_offset(offset);
    hasher
}

#[cfg(test)]
mod tests {
    use larder_protocol::digest::tree_hash;

    use super::*;

    fn bytes(size: u64) -> Vec<u8> {
        (0..size).map(|i| (i * 7 + i / 251) as u8).collect()
    }

    #[test]
    fn hashes_are_those_of_the_whole_blob_however_it_is_cut() {
        // Nothing, one byte, around one chunk and around two.
        for size in [0, 1, CHUNK_SIZE - 1, CHUNK_SIZE, CHUNK_SIZE + 1, 2 * CHUNK_SIZE, 2 * CHUNK_SIZE + 1, 3 * CHUNK_SIZE - 5] {
            let blob = bytes(size);
            for (algorithm, piece) in [(Algorithm::Sha256, 300_001), (Algorithm::Sha512, CHUNK_SIZE as usize)] {
                let mut hashes = Hashes::new(algorithm);
                for piece in blob.chunks(piece) {
                    // Every piece in another life of the process.
                    let saved = hashes.save();
                    let tail = saved.size - saved.tail_length().expect("consistent");
                    hashes = Hashes::resume(algorithm, &saved, &blob[tail as usize..saved.size as usize]).expect("own state");
                    hashes.update(piece);
                }
                let hashed = hashes.finish();
                assert_eq!(hashed.digest, Digest::of(algorithm, &blob), "{size}");
                assert_eq!(hashed.link, Link { size, root: tree_hash(&blob), crc64: crc_fast::checksum(Crc64Nvme, &blob) }, "{size}");
                assert_eq!(hashed.values.len() as u64, if size > CHUNK_SIZE { ChunkList::count(size) } else { 0 });
            }
        }
    }

    #[test]
    fn a_state_of_another_release_is_not_taken_up() {
        let mut hashes = Hashes::new(Algorithm::Sha256);
        hashes.update(b"bytes");
        let saved = SavedHashes { format: 0, ..hashes.save() };
        assert!(Hashes::resume(Algorithm::Sha256, &saved, b"bytes").is_none());
        assert!(Hashes::resume(Algorithm::Sha512, &hashes.save(), b"bytes").is_none());
    }
}
