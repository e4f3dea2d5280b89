//! A file on its way to becoming a blob: written, hashed, then committed. The one way in.
//!
//! ```text
//! uploads/<uuid> -> synced -> an intent row -> renamed to blobs/... -> folder synced -> index rows, one synced batch
//!                                             (at most 64 KiB: no rename, the bytes go into the batch)
//! ```
//!
//! CRASH: before the rename, the staged file; a session goes on with it. After the rename, an intent row that names the blob: the
//! next start removes the file unless the index has it, and nobody ever saw it. After the batch, the blob.

use std::fs::{self, File};
use std::ops::Range;
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use bytes::Bytes;
use larder_protocol::digest::{Algorithm, CHUNK_SIZE, ChunkList, Digest};
use uuid::Uuid;

use super::error::{Error, Result};
use super::hashing::{Hashed, Hashes, SavedHashes};
use super::index::{Batch, BlobRow, Table};
use super::journal::{Writing, now_ms};
use super::layout::{make_folder, open_file, remove_file, shard, sync_folder};
use super::{Inner, SMALL_MAX, removal};
use crate::failpoint;

/// In front of the digest of a blob whose file is being put in its place.
pub(super) const INTENT: &str = "intent/";
/// Bytes after which the disk begins to write.
const WRITEBACK_STEP: u64 = 8 << 20;
/// Bytes read at a time when hashes have to be computed again.
const REREAD: usize = 256 << 10;

/// A staged file and its running hashes.
#[derive(Debug)]
pub(super) struct Staged {
    pub path: PathBuf,
    pub file: File,
    pub hashes: Hashes,
}

impl Staged {
    pub(super) fn create(path: PathBuf, algorithm: Algorithm) -> Result<Self> {
        let file = open_file(&path, true)?;
        Ok(Self { path, file, hashes: Hashes::new(algorithm) })
    }

    /// Takes up a file with hashes that were running a moment ago; `None` when it is gone, or shorter than they say.
    pub(super) fn go_on(path: PathBuf, hashes: Hashes) -> Result<Option<Self>> {
        let file = match open_file(&path, false) {
            Err(Error::Io { source, .. }) if source.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            opened => opened?,
        };
        let length = file.metadata().map_err(Error::io("look at", &path))?.len();
        if length > hashes.size() {
            file.set_len(hashes.size()).map_err(Error::io("shorten", &path))?;
        }
        Ok((length >= hashes.size()).then_some(Self { path, file, hashes }))
    }

    /// Takes up a file where its saved state stands, or where the disk does if that is less.
    pub(super) fn resume(path: PathBuf, algorithm: Algorithm, saved: Option<&SavedHashes>) -> Result<Self> {
        let file = open_file(&path, true)?;
        let length = file.metadata().map_err(Error::io("look at", &path))?.len();
        let mut staged = Self { path, file, hashes: Hashes::new(algorithm) };
        if let Some(saved) = saved.filter(|saved| saved.size <= length)
            && let Some(tail) = saved.tail_length()
        {
            // At most one MiB, as `tail_length` has checked.
            let mut bytes = vec![0; tail as usize];
            staged.file.read_exact_at(&mut bytes, saved.size - tail).map_err(Error::io("read", &staged.path))?;
            if let Some(hashes) = Hashes::resume(algorithm, saved, &bytes) {
                staged.hashes = hashes;
                staged.file.set_len(saved.size).map_err(Error::io("shorten", &staged.path))?;
                return Ok(staged);
            }
        }
        Self::reread(staged.path, algorithm, saved)
    }

    /// The same, and no saved state is believed: it may be of bytes that the disk never got, and a digest that goes on from it would vouch for
    /// others that lie there (I2). What lies there is read again.
    pub(super) fn reread(path: PathBuf, algorithm: Algorithm, saved: Option<&SavedHashes>) -> Result<Self> {
        let stands = Self::stands_at(&path, saved);
        let mut staged = Self::create(path, algorithm)?;
        staged.rehash(algorithm, stands)?;
        staged.file.set_len(stands).map_err(Error::io("shorten", &staged.path))?;
        Ok(staged)
    }

    /// Where both will take it up.
    pub(super) fn stands_at(path: &Path, saved: Option<&SavedHashes>) -> u64 {
        // Without a file, or with one that can't be looked at, there is nothing to go on with; `resume` says what is wrong.
        let length = fs::symlink_metadata(path).map_or(0, |found| found.len());
        saved.map_or(0, |saved| saved.size).min(length)
    }

    pub(super) fn append(&mut self, bytes: &[u8]) -> Result<()> {
        let (start, end) = (self.hashes.size(), self.hashes.size() + bytes.len() as u64);
        self.file.write_all_at(bytes, start).map_err(Error::io("append to", &self.path))?;
        self.hashes.update(bytes);
        let behind = end / WRITEBACK_STEP * WRITEBACK_STEP;
        if behind > start {
            start_writeback(&self.file, behind - WRITEBACK_STEP..behind);
        }
        Ok(())
    }

    /// Writes a chunk where it belongs; the hashes don't follow yet.
    pub(super) fn put(&self, index: u32, bytes: &[u8]) -> Result<()> {
        self.file.write_all_at(bytes, u64::from(index) * CHUNK_SIZE).map_err(Error::io("write to", &self.path))
    }

    /// Lets the hashes follow over chunks that are in the file and were checked, from where they stand. `fresh` is one of them.
    pub(super) fn follow(&mut self, chunks: Range<u32>, size: u64, list: Option<&ChunkList>, fresh: Option<(u32, Bytes)>) -> Result<()> {
        let mut buffer = Vec::new();
        for index in chunks {
            let start = u64::from(index) * CHUNK_SIZE;
            let length = CHUNK_SIZE.min(size - start) as usize;
            let bytes = match &fresh {
                Some((known, bytes)) if *known == index => &bytes[..],
                _ => {
                    buffer.resize(length, 0);
                    self.file.read_exact_at(&mut buffer, start).map_err(Error::io("read", &self.path))?;
                    &buffer[..]
                }
            };
            let done = (self.hashes.size() - start) as usize;
            match list.map(|list| list.values()) {
                // Its value is known: it was checked against it.
                Some(values) if done == 0 && (index as usize) + 1 < values.len() => self.hashes.update_chunk(bytes, values[index as usize]),
                _ => self.hashes.update(&bytes[done..]),
            }
        }
        Ok(())
    }

    /// Computes the hashes again from the file's first `length` bytes.
    pub(super) fn rehash(&mut self, algorithm: Algorithm, length: u64) -> Result<()> {
        let mut hashes = Hashes::new(algorithm);
        let mut buffer = vec![0; REREAD];
        while hashes.size() < length {
            let wanted = (length - hashes.size()).min(REREAD as u64) as usize;
            let read = self.file.read_at(&mut buffer[..wanted], hashes.size()).map_err(Error::io("read", &self.path))?;
            if read == 0 {
                break;
            }
            hashes.update(&buffer[..read]);
        }
        self.hashes = hashes;
        Ok(())
    }

    /// Makes the file a blob: afterwards it is durable and in the index, together with what `more` writes.
    pub(super) fn commit(
        mut self,
        inner: &Inner,
        expected: Digest,
        relaxed: bool,
        more: impl FnOnce(&mut Writing<'_>, &Hashed) -> Result<()>,
    ) -> Result<Hashed> {
        if self.hashes.algorithm() != expected.algorithm() {
            self.rehash(expected.algorithm(), self.hashes.size())?;
        }
        let hashed = self.hashes.clone().finish();
        if hashed.digest != expected {
            return Err(Error::DigestMismatch { expected, actual: hashed.digest });
        }
        let key = expected.to_key();
        // Held until the rows are written: nobody removes meanwhile what was found here, or put here.
        let _held = inner.digests.hold(expected);
        let known = inner.index.row::<BlobRow>(Table::Blob, &key)?.is_some();
        let intent = format!("{INTENT}{expected}");
        let small = hashed.link.size <= SMALL_MAX;
        // Also over a file that is there: nobody has read that one lately, and this one is known to be good (F8).
        if !small {
            self.place(inner, &expected, &intent, relaxed)?;
        }
        failpoint::pass("store/blob/renamed-not-indexed").map_err(Error::io("index", &self.path))?;
        let mut writing = inner.journal.write(&inner.index);
        let mut added = 0;
        if !known {
            let link = hashed.link;
            let row = BlobRow { size: link.size, root: link.root, crc64: link.crc64, created_ms: now_ms(), small };
            let index = &inner.index;
            index.put_row(&mut writing.batch, Table::Blob, &key, &row);
            if !removal::forget(inner, &mut writing.batch, &expected)? {
                added = link.size as i64;
                inner.space.count(index, &mut writing.batch, added);
            }
        }
        if small {
            let mut bytes = vec![0; hashed.link.size as usize];
            self.file.read_exact_at(&mut bytes, 0).map_err(Error::io("read", &self.path))?;
            inner.index.put(&mut writing.batch, Table::Small, &key, &bytes);
        }
        if !hashed.values.is_empty() {
            inner.index.put(&mut writing.batch, Table::Chunks, &key, hashed.values.as_flattened());
        }
        inner.index.delete(&mut writing.batch, Table::Meta, intent.as_bytes());
        more(&mut writing, &hashed)?;
        writing.commit()?;
        inner.space.counted(added);
        failpoint::pass("store/blob/indexed-not-answered").map_err(Error::io("answer for", &self.path))?;
        if small {
            remove_file(&self.path)?;
        }
        Ok(hashed)
    }

    fn place(&self, inner: &Inner, digest: &Digest, intent: &str, relaxed: bool) -> Result<()> {
        failpoint::pass("store/blob/staged-not-synced").map_err(Error::io("sync", &self.path))?;
        if !relaxed {
            self.file.sync_data().map_err(Error::io("sync", &self.path))?;
        }
        failpoint::pass("store/blob/synced-not-renamed").map_err(Error::io("rename", &self.path))?;
        // Not synced: after a power cut the worst is a file that nobody names, and the next push of the digest takes its place.
        let mut batch = Batch::default();
        inner.index.put(&mut batch, Table::Meta, intent.as_bytes(), &[]);
        inner.index.write(batch)?;
        let target = inner.folder.blob(digest);
        let folder = shard(&target);
        if !folder.is_dir() {
            make_folder(folder)?;
            sync_folder(folder.parent().expect("a shard lies in its algorithm's folder"))?;
        }
        fs::rename(&self.path, &target).map_err(Error::io("move into place", &target))?;
        if relaxed { Ok(()) } else { sync_folder(folder) }
    }
}

/// Lets the disk begin with what was written, so that little is left when the blob has to be durable. A hint: whatever comes of it, the sync is what counts.
#[allow(unsafe_code, reason = "sync_file_range has no safe wrapper")]
fn start_writeback(file: &File, part: Range<u64>) {
    let (Ok(start), Ok(length)) = (i64::try_from(part.start), i64::try_from(part.end - part.start)) else { return };
    // SAFETY: the file is open for as long as the call takes, and no memory of ours is named.
    unsafe { libc::sync_file_range(file.as_raw_fd(), start, length, libc::SYNC_FILE_RANGE_WRITE) };
}

/// Finishes or undoes what the last shutdown left between rename and index.
pub(super) fn settle(inner: &Inner) -> Result<()> {
    let intents: Vec<_> = inner.index.scan(Table::Meta, INTENT.as_bytes(), b"").collect::<Result<_>>()?;
    let mut batch = Batch::default();
    for (key, _) in intents {
        let digest = std::str::from_utf8(&key).ok().and_then(|name| name.strip_prefix(INTENT)?.parse::<Digest>().ok());
        if let Some(digest) = digest
            && inner.index.row::<BlobRow>(Table::Blob, &digest.to_key())?.is_none()
        {
            remove_file(&inner.folder.blob(&digest))?;
        }
        inner.index.delete(&mut batch, Table::Meta, &key);
    }
    inner.index.write(batch)
}

/// Removes staged files that belong to no session: what came from peers or the archive when the node went down.
pub(super) fn sweep(folder: &Path, mut is_session: impl FnMut(Uuid) -> Result<bool>) -> Result<()> {
    for entry in fs::read_dir(folder).map_err(Error::io("list", folder))? {
        let path = entry.map_err(Error::io("list", folder))?.path();
        let id = path.file_name().and_then(|name| name.to_str()).and_then(|name| Uuid::parse_str(name).ok());
        let keep = match id {
            Some(id) => is_session(id)?,
            None => true,
        };
        if !keep {
            remove_file(&path)?;
        }
    }
    Ok(())
}
