//! Blob files, opened: what is read from them is checked before anybody gets it.
//!
//! A disk gives back other bytes than it was given, now and then. Each MiB of a blob was hashed while it came in; a reader reads whole
//! MiBs and checks each against its value, unless it did so a moment ago and they are in memory still (see `known`). What does not pass, or can't be read,
//! is damage: the blob is put aside ([`super::Store::quarantine`]) and had from elsewhere.

use std::fs::File;
use std::io::IoSliceMut;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::sync::Arc;

use bytes::Bytes;
use larder_protocol::digest::{CHUNK_SIZE, ChunkList, Digest, TreeHash, tree_hash};
use rustix::io::{ReadWriteFlags, preadv2};

use super::known::{self, Marks};

/// A blob's bytes, opened.
#[derive(Clone, Debug)]
pub enum Content {
    /// A small blob, whole and checked.
    Memory(Bytes),
    /// A file that holds exactly the blob, from its first byte.
    File(BlobFile),
}

/// An opened blob file. Cheap to clone.
#[derive(Clone, Debug)]
pub struct BlobFile {
    file: Arc<File>,
    digest: Digest,
    size: u64,
    proof: Proof,
    /// Of a file that stands where blobs stand.
    marks: Option<Arc<Marks>>,
}

#[derive(Clone, Debug)]
enum Proof {
    /// Of a blob of at most one MiB.
    Root(TreeHash),
    Chunks(Arc<ChunkList>),
}

impl Content {
    /// Bytes.
    pub fn size(&self) -> u64 {
        match self {
            Content::Memory(bytes) => bytes.len() as u64,
            Content::File(file) => file.size,
        }
    }
}

impl BlobFile {
    /// A blob of at most one MiB.
    pub(crate) fn small(file: File, digest: Digest, size: u64, root: TreeHash) -> Self {
        Self { file: Arc::new(file), digest, size, proof: Proof::Root(root), marks: None }
    }

    /// A larger blob.
    pub(crate) fn large(file: File, digest: Digest, chunks: ChunkList) -> Self {
        Self { file: Arc::new(file), digest, size: chunks.size(), proof: Proof::Chunks(Arc::new(chunks)), marks: None }
    }

    /// A blob of at most one MiB that is coming in.
    pub(super) fn small_part(file: Arc<File>, digest: Digest, size: u64, root: TreeHash) -> Self {
        Self { file, digest, size, proof: Proof::Root(root), marks: None }
    }

    /// A larger one.
    pub(super) fn part(file: Arc<File>, digest: Digest, chunks: Arc<ChunkList>) -> Self {
        Self { file, digest, size: chunks.size(), proof: Proof::Chunks(chunks), marks: None }
    }

    /// With what is known of its file.
    pub(super) fn marked(self, marks: Arc<Marks>) -> Self {
        Self { marks: Some(marks), ..self }
    }

    /// The blob.
    pub fn digest(&self) -> &Digest {
        &self.digest
    }

    /// Bytes.
    pub fn size(&self) -> u64 {
        self.size
    }

    /// The open file; what is read from it has to be checked.
    pub fn file(&self) -> &Arc<File> {
        &self.file
    }

    /// Bytes of chunk `index`.
    pub fn chunk_size(&self, index: u64) -> usize {
        CHUNK_SIZE.min(self.size.saturating_sub(index.saturating_mul(CHUNK_SIZE))) as usize
    }

    /// Whether `bytes` are chunk `index`, whole.
    pub fn holds(&self, index: u64, bytes: &[u8]) -> bool {
        match &self.proof {
            Proof::Root(root) => index == 0 && bytes.len() as u64 == self.size && tree_hash(bytes) == *root,
            Proof::Chunks(chunks) => chunks.holds(index, bytes),
        }
    }

    /// Whether chunk `index` is in memory, and what is there was checked a moment ago: the file may be sent as it is. Does not block.
    pub fn is_known(&self, index: u64) -> bool {
        let Some(marks) = self.marks.as_ref().filter(|marks| marks.has_passed(index, &self.file)) else { return false };
        let start = index * CHUNK_SIZE;
        let is_there = known::is_in_memory(&self.file, start..start + self.chunk_size(index) as u64);
        if !is_there {
            marks.forget();
        }
        is_there
    }

    /// Reads chunk `index`, whose pages must be in memory, into `buffer`, which must be as long as the chunk, and checks it. Does not block; `false` when
    /// the pages are not there, or anything is wrong: [`Self::read_chunk`] tells what.
    pub fn read_chunk_at_once(&self, index: u64, buffer: &mut [u8]) -> bool {
        let read = preadv2(&*self.file, &mut [IoSliceMut::new(buffer)], index * CHUNK_SIZE, ReadWriteFlags::NOWAIT);
        let marks = self.marks.as_ref();
        if !read.is_ok_and(|count| count == buffer.len()) {
            marks.inspect(|marks| marks.forget());
            return false;
        }
        if marks.is_some_and(|marks| marks.has_passed(index, &self.file)) {
            return true;
        }
        let holds = self.holds(index, buffer);
        marks.filter(|_| holds).inspect(|marks| marks.passed(index));
        holds
    }

    /// Reads chunk `index` into `buffer`, which must be as long as the chunk, and checks it. Blocks.
    ///
    /// # Errors
    /// What is wrong with the blob, in words.
    pub fn read_chunk(&self, index: u64, buffer: &mut [u8]) -> Result<(), String> {
        self.file.read_exact_at(buffer, index * CHUNK_SIZE).map_err(|error| format!("read at {}: {error}", index * CHUNK_SIZE))?;
        crate::failpoint::pass("store/blob/read").map_err(|error| format!("read at {}: {error}", index * CHUNK_SIZE))?;
        if self.holds(index, buffer) {
            self.marks.as_ref().inspect(|marks| marks.passed(index));
            Ok(())
        } else {
            Err(format!("the MiB at {} is not what was written there", index * CHUNK_SIZE))
        }
    }

    /// Whether this is the file that stands at a path now.
    pub(super) fn is_at(&self, path: &std::path::Path) -> bool {
        let same = |ours: std::fs::Metadata, there: std::fs::Metadata| (ours.dev(), ours.ino()) == (there.dev(), there.ino());
        self.file.metadata().ok().zip(std::fs::symlink_metadata(path).ok()).is_some_and(|(ours, there)| same(ours, there))
    }
}
