//! Taking a blob's bytes off this disk: into the trash first, or at once when they are safe elsewhere.
//!
//! - **Trash**: the blob's row moves from `blob` to `job`, and nothing else; its file stays where it is. Whoever asks for the digest
//!   again gets it out of the trash by the opposite move ([`adopt`]). What nobody asked for is purged later.
//! - **Purge and eviction**: rows go, then the file.
//! - **Quarantine**: rows go, and the file, which is damaged, is moved away.
//!
//! [`Digests`] is a lock for each digest. A commit holds it from the moment when it looks whether the blob is known until its rows are
//! written, and a removal while it takes rows and file away, so that no row ever names a file that was just removed. Removals never
//! wait for it: what is being pushed at this moment is no candidate.
//!
//! CRASH: rows and an intent go in one synced batch, then the file is unlinked, then the intent is forgotten. A start that finds
//! the intent removes the file.

use std::collections::HashSet;
use std::sync::{Condvar, Mutex, PoisonError};

use larder_protocol::digest::Digest;
use serde::{Deserialize, Serialize};

use super::error::Result;
use super::index::{Batch, BlobRow, Table, decode};
use super::journal::{lock, now_ms};
use super::layout::remove_file;
use super::staged::INTENT;
use super::{BlobFile, Inner, Store};

/// In front of the digest keys of what is in the trash, in `job`.
const TRASH: &[u8] = b"trash/";
/// In front of the digest keys of what was put aside and has not come back, in `job`.
const LOST: &[u8] = b"lost/";
/// Most files that are kept in the quarantine; the oldest go.
const QUARANTINE_MAX: usize = 32;

/// A lock for each digest.
#[derive(Debug, Default)]
pub(super) struct Digests {
    held: Mutex<HashSet<Digest>>,
    released: Condvar,
}

/// A digest that is held. Dropped, others may have it.
#[derive(Debug)]
pub(super) struct Held<'a> {
    digests: &'a Digests,
    digest: Digest,
}

/// A blob in the trash.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct TrashRow {
    pub blob: BlobRow,
    /// When it came there: on the node's own clock of `upkeep`, and by the calendar.
    pub since: u64,
    pub since_ms: u64,
}

/// A blob in the trash, as others see it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Trashed {
    /// Which.
    pub digest: Digest,
    /// Bytes.
    pub size: u64,
    /// What [`Store::trash`] was told.
    pub since: u64,
}

/// A blob that was damaged and has not come back.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Lost {
    /// Which.
    pub digest: Digest,
    /// Bytes.
    pub size: u64,
    /// When it was put aside, milliseconds since 1970.
    pub since_ms: u64,
    /// What was wrong.
    pub why: String,
}

impl Digests {
    /// Waits until nobody has the digest. Blocks.
    pub(super) fn hold(&self, digest: Digest) -> Held<'_> {
        let mut held = lock(&self.held);
        while !held.insert(digest) {
            held = self.released.wait(held).unwrap_or_else(PoisonError::into_inner);
        }
        Held { digests: self, digest }
    }

    /// Takes the digest unless somebody has it.
    pub(super) fn try_hold(&self, digest: Digest) -> Option<Held<'_>> {
        lock(&self.held).insert(digest).then(|| Held { digests: self, digest })
    }
}

impl Drop for Held<'_> {
    fn drop(&mut self) {
        lock(&self.digests.held).remove(&self.digest);
        self.digests.released.notify_all();
    }
}

impl Store {
    /// Puts a blob into the trash; `now` comes back in [`Trashed::since`]. `false`: it is not here, or being pushed at this moment.
    ///
    /// Not synced: a power cut takes it out of the trash again.
    pub fn trash(&self, digest: &Digest, now: u64) -> Result<bool> {
        let (inner, key) = (&self.inner, digest.to_key());
        let Some(_held) = inner.digests.try_hold(*digest) else { return Ok(false) };
        let Some(blob) = inner.index.row::<BlobRow>(Table::Blob, &key)? else { return Ok(false) };
        let mut batch = Batch::default();
        inner.index.delete(&mut batch, Table::Blob, &key);
        inner.index.put_row(&mut batch, Table::Job, &trash_key(digest), &TrashRow { blob, since: now, since_ms: now_ms() });
        inner.index.write(batch)?;
        Ok(true)
    }

    /// What is in the trash behind `after`, in the order of digests, at most `limit`.
    pub fn trashed(&self, after: Option<&Digest>, limit: usize) -> Result<Vec<Trashed>> {
        let from = after.map(|after| [&trash_key(after)[..], &[0]].concat()).unwrap_or_default();
        let mut trashed = Vec::new();
        for row in self.inner.index.scan(Table::Job, TRASH, &from).take(limit) {
            let (key, row) = row?;
            let row: TrashRow = decode(Table::Job, &row)?;
            let digest = Digest::from_key(&key[TRASH.len()..]);
            trashed.extend(digest.map(|digest| Trashed { digest, size: row.blob.size, since: row.since }));
        }
        Ok(trashed)
    }

    /// Removes a blob from the trash and from the disk; says how many bytes that were, `None` when it was not there any more.
    pub fn purge(&self, digest: &Digest) -> Result<Option<u64>> {
        self.remove(digest, Table::Job, &trash_key(digest), |row| Ok(decode::<TrashRow>(Table::Job, row)?.blob))
    }

    /// Removes a blob from the disk at once; says how many bytes that were, `None` when it is not here, or being pushed at
    /// this moment. Its links stay: whoever reads it gets it from elsewhere.
    pub fn evict(&self, digest: &Digest) -> Result<Option<u64>> {
        self.remove(digest, Table::Blob, &digest.to_key(), |row| decode(Table::Blob, row))
    }

    /// Puts a blob aside whose bytes are not what they should be: nobody is served from it again, and its file is kept in the
    /// quarantine for people to look at. `file`: where that showed; `None`, when it can't be opened. `false`: it has been replaced meanwhile.
    ///
    /// Until it comes back, it is [`Store::lost`].
    pub fn quarantine(&self, digest: &Digest, file: Option<&BlobFile>, why: &str) -> Result<bool> {
        let (inner, key, path) = (&self.inner, digest.to_key(), self.inner.folder.blob(digest));
        let _held = inner.digests.hold(*digest);
        let Some(row) = inner.index.row::<BlobRow>(Table::Blob, &key)? else { return Ok(false) };
        match file {
            Some(file) if !file.is_at(&path) => return Ok(false),
            Some(_) => {}
            // ORDER: looked at again under the lock; a push may have mended it.
            None if !matches!(self.open_blob(digest), Err(super::Error::Damaged { .. })) => return Ok(false),
            None => {}
        }
        tracing::warn!(%digest, why, "a blob is damaged and was put aside; it is looked for elsewhere");
        let (mut batch, gone) = (Batch::default(), -(row.size as i64));
        for table in [Table::Blob, Table::Chunks, Table::Small] {
            inner.index.delete(&mut batch, table, &key);
        }
        inner.space.count(&inner.index, &mut batch, gone);
        inner.index.put_row(&mut batch, Table::Job, &job_key(LOST, digest), &(row.size, now_ms(), why));
        if row.small {
            inner.index.write(batch)?;
            inner.space.counted(gone);
            return Ok(true);
        }
        let intent = format!("{INTENT}{digest}");
        inner.index.put(&mut batch, Table::Meta, intent.as_bytes(), &[]);
        inner.index.write(batch)?;
        inner.space.counted(gone);
        // ORDER: as in `remove`. What a crash in between leaves is unlinked and not kept.
        inner.index.sync()?;
        if path.exists() {
            inner.folder.put_aside(&path, digest, now_ms(), QUARANTINE_MAX)?;
        }
        let mut batch = Batch::default();
        inner.index.delete(&mut batch, Table::Meta, intent.as_bytes());
        inner.index.write(batch)?;
        Ok(true)
    }

    /// Blobs that were put aside and have not come back, behind `after`, at most `limit`.
    pub fn lost(&self, after: Option<&Digest>, limit: usize) -> Result<Vec<Lost>> {
        let from = after.map(|after| [&job_key(LOST, after)[..], &[0]].concat()).unwrap_or_default();
        let mut lost = Vec::new();
        for row in self.inner.index.scan(Table::Job, LOST, &from).take(limit) {
            let (key, row) = row?;
            let (size, since_ms, why): (u64, u64, String) = decode(Table::Job, &row)?;
            lost.extend(Digest::from_key(&key[LOST.len()..]).map(|digest| Lost { digest, size, since_ms, why }));
        }
        Ok(lost)
    }

    /// Whether a blob was put aside and has not come back.
    pub fn is_lost(&self, digest: &Digest) -> Result<bool> {
        Ok(self.inner.index.get(Table::Job, &job_key(LOST, digest))?.is_some())
    }

    /// Forgets that a blob was lost: nothing needs it any more.
    pub fn give_up(&self, digest: &Digest) -> Result<()> {
        let mut batch = Batch::default();
        self.inner.index.delete(&mut batch, Table::Job, &job_key(LOST, digest));
        self.inner.index.write(batch)
    }

    fn remove(&self, digest: &Digest, table: Table, row: &[u8], read: impl FnOnce(&[u8]) -> Result<BlobRow>) -> Result<Option<u64>> {
        let (inner, key) = (&self.inner, digest.to_key());
        let Some(_held) = inner.digests.try_hold(*digest) else { return Ok(None) };
        let Some(found) = inner.index.get(table, row)? else { return Ok(None) };
        let blob = read(&found)?;
        let (mut batch, gone) = (Batch::default(), -(blob.size as i64));
        inner.index.delete(&mut batch, table, row);
        inner.space.count(&inner.index, &mut batch, gone);
        for table in [Table::Chunks, Table::Small, Table::Lease] {
            inner.index.delete(&mut batch, table, &key);
        }
        if blob.small {
            inner.index.write(batch)?;
            inner.space.counted(gone);
            return Ok(Some(blob.size));
        }
        let intent = format!("{INTENT}{digest}");
        inner.index.put(&mut batch, Table::Meta, intent.as_bytes(), &[]);
        inner.index.write(batch)?;
        inner.space.counted(gone);
        // ORDER: durable before the file goes, or a power cut could bring back a row without a file.
        inner.index.sync()?;
        remove_file(&inner.folder.blob(digest))?;
        let mut batch = Batch::default();
        inner.index.delete(&mut batch, Table::Meta, intent.as_bytes());
        inner.index.write(batch)?;
        Ok(Some(blob.size))
    }
}

/// Gets a blob out of the trash; its row, unless it is not there.
pub(super) fn adopt(inner: &Inner, digest: &Digest) -> Result<Option<BlobRow>> {
    let trash = trash_key(digest);
    if inner.index.get(Table::Job, &trash)?.is_none() {
        return Ok(None);
    }
    let _held = inner.digests.hold(*digest);
    // ORDER: asked again, because a purge or a push may have been first.
    let key = digest.to_key();
    if let Some(row) = inner.index.row(Table::Blob, &key)? {
        return Ok(Some(row));
    }
    let Some(row) = inner.index.row::<TrashRow>(Table::Job, &trash)? else { return Ok(None) };
    let mut batch = Batch::default();
    inner.index.delete(&mut batch, Table::Job, &trash);
    inner.index.put_row(&mut batch, Table::Blob, &key, &row.blob);
    inner.index.write(batch)?;
    tracing::debug!(%digest, "out of the trash again");
    Ok(Some(row.blob))
}

/// Takes a digest off the lists of the trash and of what was lost, in the batch that makes it a blob again; `false`: it was not in the trash.
pub(super) fn forget(inner: &Inner, batch: &mut Batch, digest: &Digest) -> Result<bool> {
    inner.index.delete(batch, Table::Job, &job_key(LOST, digest));
    let key = trash_key(digest);
    let there = inner.index.get(Table::Job, &key)?.is_some();
    if there {
        inner.index.delete(batch, Table::Job, &key);
    }
    Ok(there)
}

fn trash_key(digest: &Digest) -> Vec<u8> {
    job_key(TRASH, digest)
}

fn job_key(list: &[u8], digest: &Digest) -> Vec<u8> {
    [list, &digest.to_key()].concat()
}

#[cfg(test)]
mod tests {
    use larder_protocol::digest::CHUNK_SIZE;

    use super::super::tests::{Place, bytes, push, read};
    use super::super::{SMALL_MAX, staged};
    use super::*;

    /// One that lives in the index, one with a file, one with a chunk list.
    const SIZES: [u64; 3] = [SMALL_MAX, SMALL_MAX + 1, CHUNK_SIZE + 1];

    fn is_file(store: &Store, digest: &Digest) -> bool {
        store.inner.folder.blob(digest).exists()
    }

    #[test]
    fn what_is_in_the_trash_comes_back_when_it_is_asked_for() {
        let place = Place::new(1);
        let store = place.open();
        for size in SIZES {
            let blob = bytes(size, size);
            let digest = push(&store, "a", &blob);
            assert!(store.trash(&digest, 7).expect("trash"));
            assert!(!store.trash(&digest, 8).expect("trash"), "it is there already");
            assert_eq!(store.trashed(None, 9).expect("list"), [Trashed { digest, size, since: 7 }]);
            assert_eq!(store.blob(&digest).expect("row"), None);
            assert_eq!(read(store.open_blob(&digest).expect("open").expect("out of the trash")), blob);
            assert!(store.blob(&digest).expect("row").is_some() && store.trashed(None, 9).expect("list").is_empty());
            assert_eq!(store.purge(&digest).expect("purge"), None, "it is in use again");
        }
    }

    #[test]
    fn what_is_pushed_again_leaves_the_trash() {
        let place = Place::new(1);
        let store = place.open();
        for size in SIZES {
            let blob = bytes(size, size);
            let digest = push(&store, "a", &blob);
            assert!(store.trash(&digest, 1).expect("trash"));
            push(&store, "b", &blob);
            assert!(store.trashed(None, 9).expect("list").is_empty());
            assert_eq!(store.purge(&digest).expect("purge"), None);
            assert_eq!(read(store.open_blob(&digest).expect("open").expect("there")), blob);
        }
    }

    #[test]
    fn purged_and_evicted_blobs_leave_nothing_on_the_disk() {
        let place = Place::new(1);
        let store = place.open();
        for size in SIZES {
            for evict in [false, true] {
                let digest = push(&store, "a", &bytes(size, size));
                assert_eq!(is_file(&store, &digest), size > SMALL_MAX);
                let removed = if evict {
                    store.evict(&digest)
                } else {
                    assert!(store.trash(&digest, 1).expect("trash"));
                    store.purge(&digest)
                };
                assert_eq!(removed.expect("removed"), Some(size));
                assert!(!is_file(&store, &digest) && store.open_blob(&digest).expect("open").is_none());
                for table in [Table::Blob, Table::Small, Table::Chunks, Table::Job] {
                    assert_eq!(store.inner.index.scan(table, b"", b"").count(), 0, "{table:?}");
                }
                assert_eq!(store.inner.index.scan(Table::Meta, INTENT.as_bytes(), b"").count(), 0);
                assert_eq!(store.evict(&digest).expect("again"), None);
            }
        }
    }

    #[test]
    fn what_is_being_pushed_is_not_removed() {
        let place = Place::new(1);
        let store = place.open();
        let digest = push(&store, "a", &bytes(1, SMALL_MAX + 1));
        let held = store.inner.digests.hold(digest);
        assert!(!store.trash(&digest, 1).expect("trash"));
        assert_eq!(store.evict(&digest).expect("evict"), None);
        drop(held);
        assert!(store.evict(&digest).expect("evict").is_some());
    }

    #[test]
    fn a_start_removes_a_file_whose_rows_are_gone() {
        let place = Place::new(1);
        let store = place.open();
        let digest = push(&store, "a", &bytes(1, SMALL_MAX + 1));
        // As far as an eviction gets before a kill.
        let mut batch = Batch::default();
        store.inner.index.delete(&mut batch, Table::Blob, &digest.to_key());
        store.inner.index.put(&mut batch, Table::Meta, format!("{INTENT}{digest}").as_bytes(), &[]);
        store.inner.index.write(batch).expect("write");
        assert!(is_file(&store, &digest));
        staged::settle(&store.inner).expect("settle");
        assert!(!is_file(&store, &digest));
    }

    #[test]
    fn a_push_waits_for_another_of_the_same_digest_and_not_for_others() {
        let digests = Digests::default();
        let (one, other) = (Digest::sha256(b"one"), Digest::sha256(b"other"));
        let held = digests.hold(one);
        drop(digests.hold(other));
        assert!(digests.try_hold(one).is_none());
        std::thread::scope(|scope| {
            let waiting = scope.spawn(|| drop(digests.hold(one)));
            assert!(!waiting.is_finished());
            drop(held);
            waiting.join().expect("it gets its turn");
        });
    }
}
