//! Reserve before write: no byte is taken that has no room on the disk.
//!
//! Whoever is going to write a blob reserves its size first, so it is refused before its bytes are read and not in the middle of
//! them. A [`Reservation`] shrinks as its bytes are written, because they show in the file system's own numbers from then on, and
//! goes when it is dropped. The rule:
//!
//! ```text
//! free - reserved and not yet written - wanted  >=  store.reserve        (the file system)
//! blobs + on their way in + wanted              <=  store.size_max       (this node's own limit, if there is one)
//! ```
//!
//! The reserve is for what frees space: deletes, garbage collection and eviction write to the index while pushes are refused. New
//! manifests and sessions need all of it to be there, records from other nodes the half.
//!
//! The bytes of blobs are a sum in the index that each batch adds to, so that a start reads one row and not a million.
//!
//! Who is short of room rings, and waits a moment for a round of eviction ([`Store::make_room`]); `upkeep` listens
//! ([`Store::short_of_room`]). One lock, held while the file system is asked. It forgets everything in a crash, as do the files.

use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicI64, Ordering};
use std::time::{Duration, Instant};

use tokio::sync::{Notify, watch};

use super::error::{Error, Result};
use super::index::{Batch, BlobRow, Index, Table, decode};
use super::journal::lock;
use super::{Inner, Store};

/// The sum of the bytes of blobs, trash included, in `meta`.
const BLOB_BYTES: &[u8] = b"space/blob-bytes";
/// What a reservation grows by when nobody said how much comes.
pub(super) const STEP: u64 = 8 << 20;
/// The reserve when nothing else is said: a part of the file system, within bounds. The least is twice what RocksDB wants to
/// find free before it recovers from a full disk.
const RESERVE_PART: u64 = 100;
const RESERVE_MIN: u64 = 16 << 20;
const RESERVE_MAX: u64 = 256 << 20;
/// How long a push waits for a round of eviction before it is refused.
const ROOM_WAIT_MAX: Duration = Duration::from_secs(5);
/// After a round that freed nothing nobody waits for the next one for so long.
const HOPELESS_TIME: Duration = Duration::from_secs(5);
/// There is room again when as much as was refused fits, but at most this part of the disk.
const ROOM_AGAIN_PART: u64 = 2;

/// How much of the disk may be taken; percents are of the capacity.
#[derive(Clone, Debug)]
pub struct SpaceLimits {
    /// Bytes that stay free; `None`: by the size of the file system.
    pub reserve: Option<u64>,
    /// Most bytes that blobs may take; `None`: as many as fit.
    pub size_max: Option<u64>,
    /// Above it, eviction begins.
    pub high_water: u64,
    /// There, it ends.
    pub low_water: u64,
}

impl Default for SpaceLimits {
    fn default() -> Self {
        Self { reserve: None, size_max: None, high_water: 90, low_water: 80 }
    }
}

/// The disk at a moment, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize)]
pub struct Disk {
    /// Of the file system, or `store.size_max` if that is less.
    pub capacity: u64,
    /// Free in the file system.
    pub free: u64,
    /// Reserved, and not written yet.
    pub reserved: u64,
    /// Stays free.
    pub reserve: u64,
    /// Of blobs here, those in the trash and on their way in included.
    pub blobs: u64,
    /// As much can be pushed.
    pub room: u64,
    /// To be evicted, to come from above the high mark to the low one.
    pub excess: u64,
}

/// What the rule is computed from.
#[derive(Clone, Copy, Debug)]
struct Measured {
    size: u64,
    free: u64,
    blobs: u64,
    /// Written by stagings that are not blobs yet, and by sessions.
    arriving: u64,
    unwritten: u64,
    reserve: u64,
}

/// What is promised at a moment.
#[derive(Debug, Default)]
struct Ledger {
    unwritten: u64,
    /// Written under reservations whose bytes are counted until they are dropped.
    arriving: u64,
    /// Most bytes that somebody is waiting for room for.
    wanted: u64,
    /// Rounds of eviction that have begun.
    begun: u64,
    /// What was refused last, while the node counts as full.
    refused: Option<u64>,
    /// When a round of eviction last freed nothing.
    hopeless: Option<Instant>,
}

/// The space of a data folder.
#[derive(Debug)]
pub(super) struct Space {
    folder: PathBuf,
    limits: SpaceLimits,
    reserve: u64,
    blobs: AtomicI64,
    ledger: Mutex<Ledger>,
    short: Notify,
    /// Whether anybody would hear it.
    attended: AtomicBool,
    /// Rounds that have ended.
    rounds: watch::Sender<u64>,
}

/// Bytes that may be written. Dropped, what was not written is given back.
#[derive(Debug)]
pub(super) struct Reservation {
    left: u64,
    written: u64,
}

impl Measured {
    /// Bytes that may still be promised.
    fn room(&self, limits: &SpaceLimits) -> u64 {
        let on_disk = self.free.saturating_sub(self.unwritten).saturating_sub(self.reserve);
        let of_own = limits.size_max.map_or(u64::MAX, |most| most.saturating_sub(self.blobs + self.arriving + self.unwritten));
        on_disk.min(of_own)
    }

    fn capacity(&self, limits: &SpaceLimits) -> u64 {
        limits.size_max.map_or(self.size, |most| most.min(self.size))
    }

    /// Bytes to free, to come from above the high mark to the low one. With an own limit, the disk may be full of other things.
    fn excess(&self, limits: &SpaceLimits) -> u64 {
        let capacity = self.capacity(limits);
        let own = limits.size_max.is_some_and(|most| most < self.size);
        let used = if own { self.blobs + self.arriving } else { self.size.saturating_sub(self.free) };
        let used = used.saturating_add(self.unwritten);
        let mark = |percent: u64| (u128::from(capacity) * u128::from(percent) / 100) as u64;
        if used > mark(limits.high_water) { used - mark(limits.low_water) } else { 0 }
    }
}

impl Space {
    /// Looks at the disk once; counts the blobs if nobody ever did.
    pub(super) fn open(folder: &Path, limits: SpaceLimits, index: &Index) -> Result<Self> {
        let blobs = match index.sum(BLOB_BYTES)? {
            Some(sum) => sum,
            None => seed(index)?,
        };
        let size = file_system(folder)?.0;
        let reserve = limits.reserve.unwrap_or((size / RESERVE_PART).clamp(RESERVE_MIN, RESERVE_MAX));
        Ok(Self {
            folder: folder.to_owned(),
            limits,
            reserve,
            blobs: blobs.into(),
            ledger: Mutex::default(),
            short: Notify::new(),
            attended: false.into(),
            rounds: watch::Sender::new(0),
        })
    }

    /// Adds to the bytes of blobs, in the batch that makes them so. Afterwards comes [`Space::counted`].
    pub(super) fn count(&self, index: &Index, batch: &mut Batch, by: i64) {
        index.add(batch, BLOB_BYTES, by);
    }

    /// The batch was written.
    pub(super) fn counted(&self, by: i64) {
        self.blobs.fetch_add(by, Ordering::Relaxed);
    }

    fn measured(&self, ledger: &Ledger, sessions: u64) -> Result<Measured> {
        let (size, free) = file_system(&self.folder)?;
        let blobs = u64::try_from(self.blobs.load(Ordering::Relaxed)).unwrap_or(0);
        Ok(Measured { size, free, blobs, arriving: ledger.arriving + sessions, unwritten: ledger.unwritten, reserve: self.reserve })
    }

    /// Adds to a reservation so that `wanted` more bytes may be written, and more if there is room and `size` is not known.
    fn extend(&self, reservation: &mut Reservation, wanted: u64, sessions: u64) -> Result<()> {
        let Some(missing) = wanted.checked_sub(reservation.left).filter(|missing| *missing > 0) else { return Ok(()) };
        let mut ledger = lock(&self.ledger);
        let room = self.measured(&ledger, sessions)?.room(&self.limits);
        if missing > room {
            return Err(Error::Full { need: missing, have: room });
        }
        ledger.unwritten += missing;
        reservation.left += missing;
        Ok(())
    }

    /// Takes note of bytes that were written.
    fn written(&self, reservation: &mut Reservation, bytes: u64, arriving: bool) {
        let spent = bytes.min(reservation.left);
        let mut ledger = lock(&self.ledger);
        reservation.left -= spent;
        ledger.unwritten -= spent;
        if arriving {
            reservation.written += bytes;
            ledger.arriving += bytes;
        }
    }

    fn release(&self, reservation: &mut Reservation) {
        let Reservation { left, written } = std::mem::replace(reservation, Reservation { left: 0, written: 0 });
        let mut ledger = lock(&self.ledger);
        ledger.unwritten -= left;
        ledger.arriving -= written;
    }

    /// Refuses what goes into the index when less than the whole reserve (`part` of it) is free.
    pub(super) fn check(&self, size: u64, part: IndexPart) -> Result<()> {
        let ledger = lock(&self.ledger);
        let measured = self.measured(&ledger, 0)?;
        let (reserve, unwritten) = match part {
            IndexPart::Pushes => (self.reserve, ledger.unwritten),
            IndexPart::Records => (self.reserve / 2, 0),
        };
        let have = measured.free.saturating_sub(unwritten).saturating_sub(reserve);
        // With nothing to spare even what takes no space is refused: it would be taken from what frees some.
        if have < size.max(1) { Err(Error::Full { need: size, have }) } else { Ok(()) }
    }

    /// Says once that the node is full.
    fn refuse(&self, need: u64, have: u64) {
        let mut ledger = lock(&self.ledger);
        if ledger.refused.replace(need).is_none() {
            tracing::warn!(
                need,
                have,
                reserve = self.reserve,
                "the disk is full: pushes are refused until something is deleted or evicted"
            );
        }
    }
}

/// What is going to be written to the index.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum IndexPart {
    /// A client's: it can come back later.
    Pushes,
    /// Another node's: what frees space may be among it.
    Records,
}

/// A reservation that gives itself back.
#[derive(Debug)]
pub(super) struct Hold {
    store: Store,
    reservation: Reservation,
    /// Whether written bytes are counted until they are a blob; a session's own offset counts them otherwise.
    arriving: bool,
}

impl Hold {
    pub(super) fn new(store: &Store, arriving: bool) -> Self {
        Self { store: store.clone(), reservation: Reservation { left: 0, written: 0 }, arriving }
    }

    /// Makes sure that `bytes` more may be written.
    ///
    /// # Errors
    /// `Full`.
    pub(super) fn reserve(&mut self, bytes: u64) -> Result<()> {
        let inner = &self.store.inner;
        inner.space.extend(&mut self.reservation, bytes, inner.session_bytes())
    }

    /// Makes sure that `bytes` more may be written when nobody said how much comes: in steps, as long as there is room for them.
    pub(super) fn reserve_step(&mut self, bytes: u64) -> Result<()> {
        if bytes <= self.reservation.left || self.reserve(bytes.max(STEP)).is_ok() { Ok(()) } else { self.reserve(bytes) }
    }

    pub(super) fn written(&mut self, bytes: u64) {
        self.store.inner.space.written(&mut self.reservation, bytes, self.arriving);
    }
}

impl Drop for Hold {
    fn drop(&mut self) {
        self.store.inner.space.release(&mut self.reservation);
    }
}

impl Inner {
    /// Bytes of sessions and of what did not come whole, which are no blobs yet. Only an own limit asks for them; the file system knows by itself.
    fn session_bytes(&self) -> u64 {
        if self.options.space.size_max.is_none() {
            return 0;
        }
        lock(&self.sessions).bytes() + self.partials.kept_bytes()
    }
}

impl Store {
    /// The disk at this moment.
    ///
    /// # Errors
    /// `Io`: the file system does not say.
    pub fn disk(&self) -> Result<Disk> {
        let (space, sessions) = (&self.inner.space, self.inner.session_bytes());
        self.measure(&lock(&space.ledger), sessions)
    }

    fn measure(&self, ledger: &Ledger, sessions: u64) -> Result<Disk> {
        let space = &self.inner.space;
        let measured = space.measured(ledger, sessions)?;
        let wanted = ledger.wanted.saturating_sub(measured.room(&space.limits));
        Ok(Disk {
            capacity: measured.capacity(&space.limits),
            free: measured.free,
            reserved: measured.unwritten,
            reserve: measured.reserve,
            blobs: measured.blobs + measured.arriving,
            room: measured.room(&space.limits),
            excess: measured.excess(&space.limits).max(wanted),
        })
    }

    /// Asks for eviction, and waits a moment for it. Comes back at once when nobody evicts, or the last round found nothing.
    pub async fn make_room(&self, need: u64) {
        let space = &self.inner.space;
        let round = {
            let mut ledger = lock(&space.ledger);
            let hopeless = ledger.hopeless.is_some_and(|since| since.elapsed() < HOPELESS_TIME);
            if hopeless || !space.attended.load(Ordering::Relaxed) {
                return;
            }
            ledger.wanted = ledger.wanted.max(need);
            // One that is under way does not know of this.
            ledger.begun + 1
        };
        let mut rounds = space.rounds.subscribe();
        space.short.notify_one();
        let _ = tokio::time::timeout(ROOM_WAIT_MAX, rounds.wait_for(|ended| *ended >= round)).await;
    }

    /// Takes note that a push was refused, and says so in the log once until there is room again.
    pub fn refused_full(&self, need: u64, have: u64) {
        self.inner.space.refuse(need, have);
    }

    /// Waits until somebody is short of room. For the one who evicts; from now on others wait for him.
    pub async fn short_of_room(&self) {
        self.inner.space.attended.store(true, Ordering::Relaxed);
        self.inner.space.short.notified().await;
    }

    /// Begins a round of eviction: the disk as it is, with what is wanted until now in its `excess`. It ends with
    /// [`Store::end_round`].
    ///
    /// # Errors
    /// As [`Store::disk`].
    pub fn begin_round(&self) -> Result<Disk> {
        // What did not come whole goes before anything that did.
        if self.disk()?.excess > 0 {
            self.inner.drop_partials();
        }
        let (space, sessions) = (&self.inner.space, self.inner.session_bytes());
        let mut ledger = lock(&space.ledger);
        let disk = self.measure(&ledger, sessions)?;
        ledger.wanted = 0;
        ledger.begun += 1;
        Ok(disk)
    }

    /// A round that was to free `excess` has ended: whoever waits tries again. Says in the log when a full node has room again.
    ///
    /// # Errors
    /// As [`Store::disk`].
    pub fn end_round(&self, excess: u64, freed: u64) -> Result<()> {
        let space = &self.inner.space;
        let disk = self.disk()?;
        let (again, ended) = {
            let mut ledger = lock(&space.ledger);
            ledger.hopeless = (freed == 0 && excess > 0).then(Instant::now);
            let again = ledger.refused.is_some_and(|need| disk.room >= need.clamp(1, (disk.capacity / ROOM_AGAIN_PART).max(1)));
            if again {
                ledger.refused = None;
            }
            (again, ledger.begun)
        };
        if again {
            tracing::info!(room = disk.room, "the disk has room again: pushes are taken");
        }
        space.rounds.send_replace(ended);
        Ok(())
    }
}

/// Size and free bytes of the file system that a folder is on.
fn file_system(folder: &Path) -> Result<(u64, u64)> {
    let found = rustix::fs::statvfs(folder).map_err(std::io::Error::from).map_err(Error::io("ask the file system of", folder))?;
    Ok((found.f_blocks.saturating_mul(found.f_frsize), found.f_bavail.saturating_mul(found.f_frsize)))
}

/// Counts the blobs of a folder from before they were counted, and writes the sum down.
fn seed(index: &Index) -> Result<i64> {
    let mut sum = 0i64;
    for row in index.scan(Table::Blob, b"", b"") {
        let row: BlobRow = decode(Table::Blob, &row?.1)?;
        sum = sum.saturating_add_unsigned(row.size);
    }
    let mut batch = Batch::default();
    index.add(&mut batch, BLOB_BYTES, sum);
    index.write(batch)?;
    Ok(sum)
}

#[cfg(test)]
mod tests {
    use larder_protocol::digest::{Algorithm, Digest};
    use larder_protocol::record::Link;
    use proptest::prelude::*;

    use super::super::tests::{Place, bytes, push};
    use super::*;

    const MIB: u64 = 1 << 20;
    const HOUR: Duration = Duration::from_secs(3600);

    fn limits(size_max: Option<u64>) -> SpaceLimits {
        SpaceLimits { reserve: Some(0), size_max, ..SpaceLimits::default() }
    }

    fn blob_bytes(store: &Store) -> u64 {
        let disk = store.disk().expect("disk");
        assert_eq!(Some(disk.blobs as i64), store.inner.index.sum(BLOB_BYTES).expect("sum"), "memory and index say the same");
        disk.blobs
    }

    proptest! {
        #[test]
        fn what_is_promised_is_never_more_than_there_is(
            size in 0u64..10_000, free in 0u64..10_000, blobs in 0u64..5_000, arriving in 0u64..1_000, unwritten in 0u64..5_000,
            reserve in 0u64..1_000, most in prop::option::of(0u64..10_000), low in 1u64..99, above in 1u64..50,
        ) {
            let free = free.min(size);
            let measured = Measured { size, free, blobs, arriving, unwritten, reserve };
            let limits = SpaceLimits { reserve: None, size_max: most, high_water: (low + above).min(100), low_water: low };
            let room = measured.room(&limits);
            if room > 0 {
                prop_assert!(unwritten + room + reserve <= free);
                prop_assert!(most.is_none_or(|most| blobs + arriving + unwritten + room <= most));
            }
            let excess = measured.excess(&limits);
            if excess > 0 {
                // What goes brings it down to the low mark, from above the high one.
                let own = most.is_some_and(|most| most < size);
                let used = unwritten + if own { blobs + arriving } else { size - free };
                let capacity = most.map_or(size, |most| most.min(size));
                prop_assert!(used * 100 > capacity * limits.high_water);
                prop_assert!((used - excess) * 100 <= capacity * low);
            }
        }
    }

    #[test]
    fn a_reservation_shrinks_as_bytes_are_written_and_goes_with_its_holder() {
        let place = Place::new(1);
        let store = place.open_limited(HOUR, limits(Some(20 * MIB)));
        let mut upload = store.create_upload(&"a".parse().expect("name"), Algorithm::Sha256, "").expect("session");
        upload.reserve(15 * MIB).expect("room");
        let disk = store.disk().expect("disk");
        assert_eq!((disk.reserved, disk.room), (15 * MIB, 5 * MIB));
        upload.append(&bytes(1, 2 * MIB)).expect("append");
        let disk = store.disk().expect("disk");
        assert_eq!((disk.reserved, disk.room), (13 * MIB, 5 * MIB), "written bytes are the session's now");
        let mut other = store.create_upload(&"b".parse().expect("name"), Algorithm::Sha256, "").expect("session");
        assert!(matches!(other.reserve(5 * MIB + 1), Err(Error::Full { need, have }) if need == 5 * MIB + 1 && have == 5 * MIB));
        // Not a whole step, but what is needed now, fits.
        other.reserve_step(MIB).expect("room");
        assert_eq!(store.disk().expect("disk").room, 4 * MIB);
        drop(other);
        upload.suspend().expect("suspend");
        let disk = store.disk().expect("disk");
        assert_eq!((disk.reserved, disk.room), (0, 18 * MIB));
    }

    #[test]
    fn a_staged_blob_takes_its_room_until_it_is_one_or_is_gone() {
        let place = Place::new(1);
        let store = place.open_limited(HOUR, limits(Some(4 * MIB)));
        let link = Link { size: 3 * MIB, root: [0; 32], crc64: 0 };
        let staging = store.stage(Digest::sha256(b"1"), link).expect("room");
        assert!(matches!(store.stage(Digest::sha256(b"2"), link), Err(Error::Full { .. })));
        drop(staging);
        assert!(store.stage(Digest::sha256(b"2"), link).is_ok());
    }

    #[test]
    fn blobs_are_counted_through_trash_eviction_and_starts() {
        let place = Place::new(1);
        let store = place.open();
        let digests: Vec<_> = [10, 70_000, 2 * MIB].iter().map(|size| push(&store, "a", &bytes(*size, *size))).collect();
        let all = 10 + 70_000 + 2 * MIB;
        assert_eq!(blob_bytes(&store), all);
        push(&store, "b", &bytes(10, 10));
        assert_eq!(blob_bytes(&store), all, "what is here already takes no space again");
        for digest in &digests {
            assert!(store.trash(digest, 1).expect("trash"));
        }
        assert_eq!(blob_bytes(&store), all, "the trash is on the disk");
        push(&store, "b", &bytes(70_000, 70_000));
        store.open_blob(&digests[0]).expect("out of the trash");
        assert_eq!(blob_bytes(&store), all);
        store.purge(&digests[2]).expect("purge");
        store.evict(&digests[1]).expect("evict");
        assert_eq!(blob_bytes(&store), 10);
        store.close();
        drop(store);
        assert_eq!(blob_bytes(&place.open()), 10);
    }

    #[test]
    fn a_folder_from_before_is_counted_once() {
        let place = Place::new(1);
        let store = place.open();
        push(&store, "a", &bytes(1, 70_000));
        let mut batch = Batch::default();
        store.inner.index.delete(&mut batch, Table::Meta, BLOB_BYTES);
        store.inner.index.write(batch).expect("write");
        store.close();
        drop(store);
        assert_eq!(blob_bytes(&place.open()), 70_000);
    }

    #[test]
    fn f6_without_the_reserve_nothing_is_pushed_and_deletes_go_on() {
        let place = Place::new(1);
        let store = place.open();
        let digest = push(&store, "a", &bytes(1, 70_000));
        drop(store);
        let store = place.open_limited(HOUR, SpaceLimits { reserve: Some(u64::MAX / 2), ..SpaceLimits::default() });
        assert!(matches!(store.create_upload(&"a".parse().expect("name"), Algorithm::Sha256, ""), Err(Error::Full { have: 0, .. })));
        assert!(store.unlink(&"a".parse().expect("name"), &digest).expect("a delete"));
        assert!(store.evict(&digest).expect("evict").is_some());
    }

    #[tokio::test]
    async fn whoever_is_short_of_room_waits_for_one_round_and_not_for_hopeless_ones() {
        let place = Place::new(1);
        let store = place.open_limited(HOUR, limits(Some(MIB)));
        let started = Instant::now();
        store.make_room(2 * MIB).await;
        assert!(started.elapsed() < ROOM_WAIT_MAX, "nobody evicts");
        let evictor = store.clone();
        let round = tokio::spawn(async move {
            // Whoever is short before this listens is not waited for; so it asks until somebody was.
            evictor.short_of_room().await;
            let excess = evictor.begin_round().expect("disk").excess;
            assert_eq!(excess, MIB, "what is wanted, less what there is");
            evictor.end_round(excess, 0).expect("round");
        });
        while !round.is_finished() {
            store.make_room(2 * MIB).await;
            tokio::task::yield_now().await;
        }
        round.await.expect("round");
        let started = Instant::now();
        store.make_room(2 * MIB).await;
        assert!(started.elapsed() < ROOM_WAIT_MAX, "the last round freed nothing");
    }
}
