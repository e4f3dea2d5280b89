//! When a blob was last pulled: what eviction goes by.
//!
//! A pull must not cost a write, so pulls are noted in memory and go to the table `lease` now and then, without a sync, and only where the
//! row is old. A blob without a row counts from its arrival. What a crash forgets makes a blob look a little older than it is.

use std::cmp::Ordering;
use std::collections::{BinaryHeap, HashMap};
use std::sync::Mutex;

use larder_protocol::codec;
use larder_protocol::digest::Digest;

use super::Store;
use super::error::Result;
use super::index::{Batch, BlobRow, Table, decode};
use super::journal::{lock, now_ms};

/// Pulls that are noted between two writings; the others count from what was known before.
const NOTED_MAX: usize = 100_000;
/// A row is written again when it is older.
const FRESH_MS: u64 = 60 * 60 * 1000;

/// Pulls since they were last written: digest -> when.
pub(super) type Pulls = Mutex<HashMap<Digest, u64>>;

/// A blob in a file of its own, as eviction sees it. Ordered by the last pull.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cold {
    /// When it was last pulled, or came here.
    pub pulled_ms: u64,
    /// Which.
    pub digest: Digest,
    /// Bytes.
    pub size: u64,
}

impl Cold {
    fn place(&self) -> (u64, Vec<u8>) {
        (self.pulled_ms, self.digest.to_key())
    }
}

impl Ord for Cold {
    fn cmp(&self, other: &Self) -> Ordering {
        self.pulled_ms.cmp(&other.pulled_ms).then_with(|| self.place().cmp(&other.place()))
    }
}

impl PartialOrd for Cold {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Store {
    /// Notes that a blob is pulled. Does not block.
    pub fn touch(&self, digest: Digest) {
        let mut pulls = lock(&self.inner.pulls);
        if pulls.len() < NOTED_MAX || pulls.contains_key(&digest) {
            pulls.insert(digest, now_ms());
        }
    }

    /// Writes the pulls down that were noted; does not wait for the disk.
    pub fn save_pulls(&self) -> Result<()> {
        let (index, mut batch) = (&self.inner.index, Batch::default());
        let pulls: Vec<_> = lock(&self.inner.pulls).iter().map(|(digest, at)| (*digest, *at)).collect();
        for (digest, at) in &pulls {
            let key = digest.to_key();
            let known: u64 = index.row(Table::Lease, &key)?.unwrap_or(0);
            // One that was evicted meanwhile begins anew when it comes back.
            if at.saturating_sub(known) > FRESH_MS && index.row::<BlobRow>(Table::Blob, &key)?.is_some() {
                index.put_row(&mut batch, Table::Lease, &key, at);
            }
        }
        index.write(batch)?;
        // ORDER: forgotten only when they are written; a newer pull stays.
        let mut noted = lock(&self.inner.pulls);
        for (digest, at) in &pulls {
            if noted.get(digest) == Some(at) {
                noted.remove(digest);
            }
        }
        Ok(())
    }

    /// The `limit` blobs that nobody has pulled for longest, behind `after`, the coldest first. Reads the tables of blobs and leases
    /// from end to end, and keeps `limit` of them in memory. Blobs that rest in the index are left out: they free nothing.
    pub fn coldest(&self, after: Option<&Cold>, limit: usize) -> Result<Vec<Cold>> {
        let index = &self.inner.index;
        let noted = lock(&self.inner.pulls).clone();
        let mut leases = index.scan(Table::Lease, b"", b"").peekable();
        let mut coldest: BinaryHeap<Cold> = BinaryHeap::with_capacity(limit + 1);
        for row in index.scan(Table::Blob, b"", b"") {
            let (key, row) = row?;
            let blob: BlobRow = decode(Table::Blob, &row)?;
            let mut pulled_ms = blob.created_ms;
            // Both tables are in the order of digests.
            while let Some(lease) = leases.next_if(|lease| lease.as_ref().is_ok_and(|(at, _)| *at <= key)) {
                let (at, lease) = lease?;
                if at == key {
                    pulled_ms = pulled_ms.max(codec::decode(&lease).unwrap_or(0));
                }
            }
            let Some(digest) = Digest::from_key(&key).filter(|_| !blob.small) else { continue };
            let pulled_ms = noted.get(&digest).copied().unwrap_or(0).max(pulled_ms);
            let cold = Cold { pulled_ms, digest, size: blob.size };
            if after.is_none_or(|after| cold > *after) && (coldest.len() < limit || coldest.peek().is_some_and(|hottest| cold < *hottest)) {
                coldest.push(cold);
                if coldest.len() > limit {
                    coldest.pop();
                }
            }
        }
        Ok(coldest.into_sorted_vec())
    }
}

#[cfg(test)]
mod tests {
    use super::super::SMALL_MAX;
    use super::super::tests::{Place, bytes, push};
    use super::*;

    #[test]
    fn the_coldest_are_found_in_parts_and_pulls_count() {
        let place = Place::new(1);
        let store = place.open();
        let digests: Vec<_> = (0..6).map(|seed| push(&store, "a", &bytes(seed, SMALL_MAX + 1 + seed))).collect();
        push(&store, "a", b"small ones free nothing");
        store.touch(digests[0]);
        store.save_pulls().expect("save");
        {
            let mut noted = lock(&store.inner.pulls);
            assert!(!noted.contains_key(&digests[0]) || noted.is_empty());
            // As if pulled long from now, each later than the one before.
            for (number, digest) in digests.iter().enumerate().skip(1).rev() {
                noted.insert(*digest, u64::MAX - 100 + number as u64);
            }
        }
        store.save_pulls().expect("save");
        assert!(lock(&store.inner.pulls).is_empty(), "they are written now");
        let (mut found, mut after) = (Vec::new(), None);
        loop {
            let part = store.coldest(after.as_ref(), 2).expect("scan");
            found.extend(part.iter().map(|cold| cold.digest));
            after = part.last().copied();
            if part.len() < 2 || found.len() > 6 {
                break;
            }
        }
        assert_eq!(found, digests);
    }

    #[test]
    fn a_pull_is_not_written_down_again_within_the_hour_nor_for_what_is_gone() {
        let place = Place::new(1);
        let store = place.open();
        let (kept, gone) = (push(&store, "a", &bytes(1, SMALL_MAX + 1)), Digest::sha256(b"gone"));
        let lease = |digest: &Digest| store.inner.index.row::<u64>(Table::Lease, &digest.to_key()).expect("row");
        store.touch(kept);
        store.touch(gone);
        store.save_pulls().expect("save");
        let first = lease(&kept).expect("written");
        assert_eq!(lease(&gone), None);
        lock(&store.inner.pulls).insert(kept, first + FRESH_MS);
        store.save_pulls().expect("save");
        assert_eq!(lease(&kept), Some(first));
        lock(&store.inner.pulls).insert(kept, first + FRESH_MS + 1);
        store.save_pulls().expect("save");
        assert_eq!(lease(&kept), Some(first + FRESH_MS + 1));
    }
}
