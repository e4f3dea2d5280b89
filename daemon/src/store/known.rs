//! Chunks that were read, checked, and are in memory still: they need not be checked again with every pull.
//!
//! What rots is a disk, and what was read from it once stays as it was for as long as its pages do. So a chunk that passed its check is known, until
//!
//! - its file was written to, replaced or moved: the kernel's change time of the file says so;
//! - one of its pages left memory, as far as it was seen: what comes next comes from the disk, and all of the blob is checked anew;
//! - it was checked longer ago than [`KNOWN_TIME_MAX`].
//!
//! The kernel does not tell when a page goes and another comes between two looks, by reading ahead; the last rule bounds for how long that can matter.

use std::collections::HashMap;
use std::fs::{File, Metadata};
use std::io::IoSliceMut;
use std::ops::Range;
use std::os::unix::fs::MetadataExt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use larder_protocol::digest::{CHUNK_SIZE, Digest};
use rustix::io::{ReadWriteFlags, preadv2};

use super::journal::lock;

/// How long a check counts.
const KNOWN_TIME_MAX: Duration = Duration::from_secs(600);
/// Blobs of which it is remembered.
const BLOBS_MAX: usize = 4096;
/// One byte of so many is looked for: pages come and go in groups.
const PROBE_STEP: u64 = 128 << 10;

/// What is known of the blobs' files.
#[derive(Debug, Default)]
pub(super) struct Known(Mutex<HashMap<Digest, Arc<Marks>>>);

/// Which chunks of one file passed.
#[derive(Debug)]
pub(super) struct Marks {
    identity: Identity,
    since: Instant,
    /// A bit for each chunk.
    passed: Box<[AtomicU64]>,
}

/// A file as it was at a moment: another one, or another change time, is another file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Identity {
    device: u64,
    inode: u64,
    size: u64,
    changed: (i64, i64),
}

impl Identity {
    fn of(metadata: &Metadata) -> Self {
        let changed = (metadata.ctime(), metadata.ctime_nsec());
        Self { device: metadata.dev(), inode: metadata.ino(), size: metadata.len(), changed }
    }
}

impl Known {
    /// What is known of a blob's file, which was just opened.
    pub(super) fn of(&self, digest: &Digest, metadata: &Metadata) -> Arc<Marks> {
        let identity = Identity::of(metadata);
        let mut known = lock(&self.0);
        if let Some(marks) = known.get(digest).filter(|marks| marks.identity == identity && !marks.is_old()) {
            return Arc::clone(marks);
        }
        if known.len() >= BLOBS_MAX {
            known.retain(|_, marks| !marks.is_old());
        }
        if known.len() >= BLOBS_MAX {
            known.clear();
        }
        let marks = Arc::new(Marks::new(identity));
        known.insert(*digest, Arc::clone(&marks));
        marks
    }
}

impl Marks {
    fn new(identity: Identity) -> Self {
        let chunks = identity.size.div_ceil(CHUNK_SIZE);
        Self { identity, since: Instant::now(), passed: (0..chunks.div_ceil(64)).map(|_| AtomicU64::new(0)).collect() }
    }

    fn is_old(&self) -> bool {
        self.since.elapsed() > KNOWN_TIME_MAX
    }

    fn bit(&self, index: u64) -> Option<(&AtomicU64, u64)> {
        Some((self.passed.get(usize::try_from(index / 64).ok()?)?, 1 << (index % 64)))
    }

    /// Chunk `index` was read from the file and passed.
    pub(super) fn passed(&self, index: u64) {
        if let Some((word, bit)) = self.bit(index) {
            word.fetch_or(bit, Ordering::Release);
        }
    }

    /// Whether chunk `index` passed, and the file is what it was then.
    pub(super) fn has_passed(&self, index: u64, file: &File) -> bool {
        self.bit(index).is_some_and(|(word, bit)| word.load(Ordering::Acquire) & bit != 0)
            && !self.is_old()
            && file.metadata().is_ok_and(|metadata| Identity::of(&metadata) == self.identity)
    }

    /// Something was not in memory: what comes from the disk now has to pass again.
    pub(super) fn forget(&self) {
        self.passed.iter().for_each(|word| word.store(0, Ordering::Release));
    }
}

/// Whether a part of a file can be had without the disk, as far as a few looks tell.
pub(super) fn is_in_memory(file: &File, range: Range<u64>) -> bool {
    let last = range.end.saturating_sub(1);
    let mut places = (range.start..range.end).step_by(PROBE_STEP as usize).chain([last]);
    places.all(|at| preadv2(file, &mut [IoSliceMut::new(&mut [0])], at, ReadWriteFlags::NOWAIT) == Ok(1))
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    #[test]
    fn f8_what_passed_is_known_until_its_file_changes() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("blob");
        std::fs::write(&path, vec![7; CHUNK_SIZE as usize + 5]).expect("write");
        let known = Known::default();
        let digest = Digest::sha256(b"x");
        let open = || File::open(&path).expect("open");
        let of = |file: &File| known.of(&digest, &file.metadata().expect("metadata"));

        let file = open();
        let marks = of(&file);
        assert!(!marks.has_passed(0, &file));
        marks.passed(1);
        marks.passed(99);
        assert!(!marks.has_passed(0, &file) && marks.has_passed(1, &file) && !marks.has_passed(99, &file));
        assert!(of(&open()).has_passed(1, &open()), "for all who open it");
        assert!(is_in_memory(&file, 0..CHUNK_SIZE + 5) && !is_in_memory(&file, CHUNK_SIZE..CHUNK_SIZE + 6));

        // Written to, by whoever it may be: who has it open sees it as well.
        std::thread::sleep(Duration::from_millis(20));
        std::fs::OpenOptions::new().append(true).open(&path).expect("open").write_all(b"more").expect("write");
        assert!(!marks.has_passed(1, &file));
        let marks = of(&open());
        assert!(!marks.has_passed(1, &open()));
        marks.passed(0);
        assert!(marks.has_passed(0, &open()));
        marks.forget();
        assert!(!marks.has_passed(0, &open()));
        // Replaced by another that looks the same.
        marks.passed(0);
        std::fs::write(folder.path().join("other"), vec![8; CHUNK_SIZE as usize + 9]).expect("write");
        std::fs::rename(folder.path().join("other"), &path).expect("rename");
        assert!(!of(&open()).has_passed(0, &open()));
    }

    #[test]
    fn what_is_remembered_is_bounded() {
        let file = tempfile::tempfile().expect("a file");
        let metadata = file.metadata().expect("metadata");
        let known = Known::default();
        for number in 0..2 * BLOBS_MAX as u64 {
            known.of(&Digest::sha256(&number.to_le_bytes()), &metadata);
        }
        assert!(lock(&known.0).len() <= BLOBS_MAX);
    }
}
