//! Records from the future: kept, passed on, and not believed until their time has come (S31).
//!
//! ```text
//! sync   'q' | origin | sequence -> the record, as it came
//! ```
//!
//! A record whose stamp lies further ahead than `peers.max_clock_drift` may come from a broken clock; believed at once, nothing could be
//! written over it for as long as that clock was ahead. It is held durably, so the vector may pass it; it has its row in the journal, so whoever lacks it
//! gets it from here and judges for himself. [`Store::release`] lets those stand whose time has come. When the list is full, further
//! ones are refused, and the vector waits.
//!
//! When their writer has written the same key anew in a later life, it has taken back what it said when its clock was wrong: then
//! the one from the future goes.

use std::collections::{BTreeSet, HashMap};
use std::time::Duration;

use larder_protocol::record::{Key, Numbered, RawRecord};
use larder_protocol::stamp::{HybridTime, Stamp};
use larder_protocol::vector::Origin;

use super::error::Result;
use super::index::{Index, RecordRow, Table, decode};
use super::journal::{Writing, journal_key, now_ms, parse};
use super::{Conflict, Store};

/// What the keys of rows begin with.
const WAITS: &[u8] = b"q";
/// Most records that wait.
pub(super) const WAITING_MAX: usize = 10_000;
/// Their bytes.
const WAITING_BYTES_MAX: usize = 64 << 20;
/// Records that come of age in one writing.
const RELEASED_AT_ONCE: usize = 500;

/// Where a record waits: its time, who numbered it, as what.
type Place = (HybridTime, Origin, u64);

/// The records that wait, by their time.
#[derive(Debug, Default)]
pub(super) struct Waiting {
    by_time: BTreeSet<Place>,
    by_key: HashMap<(u16, Vec<u8>), Vec<Place>>,
    bytes: usize,
}

/// A record that waits until its time has come.
#[derive(Clone, Debug)]
pub struct Quarantined {
    /// What it is about.
    pub key: Key,
    /// When it says that it was written, and by whom.
    pub stamp: Stamp,
    /// Who numbered it.
    pub origin: Origin,
    /// From 1.
    pub sequence: u64,
}

impl Waiting {
    pub(super) fn open(index: &Index) -> Result<Self> {
        let mut waiting = Self::default();
        for row in index.scan(Table::Sync, WAITS, b"") {
            let row: RecordRow = decode(Table::Sync, &row?.1)?;
            waiting.add(&row);
        }
        Ok(waiting)
    }

    pub(super) fn len(&self) -> usize {
        self.by_time.len()
    }

    pub(super) fn is_full(&self) -> bool {
        self.by_time.len() >= WAITING_MAX || self.bytes >= WAITING_BYTES_MAX
    }

    /// Those that wait, as a peer compares them: what one node believes and another does not is no difference to repair.
    pub(super) fn list(&self) -> impl Iterator<Item = &Place> {
        self.by_time.iter()
    }

    pub(super) fn add(&mut self, row: &RecordRow) {
        let place = (row.record.stamp.time, row.origin, row.sequence);
        if self.by_time.insert(place) {
            self.by_key.entry((row.record.kind, row.record.key.clone())).or_default().push(place);
            self.bytes += size(&row.record);
        }
    }

    pub(super) fn remove(&mut self, row: &RecordRow) {
        let place = (row.record.stamp.time, row.origin, row.sequence);
        if self.by_time.remove(&place) {
            self.bytes = self.bytes.saturating_sub(size(&row.record));
            let key = (row.record.kind, row.record.key.clone());
            if let Some(places) = self.by_key.get_mut(&key) {
                places.retain(|known| *known != place);
                if places.is_empty() {
                    self.by_key.remove(&key);
                }
            }
        }
    }

    /// Those about a key that the same node wrote in an earlier life than `origin`.
    fn taken_back(&self, record: &RawRecord, origin: &Origin) -> Vec<(Origin, u64)> {
        if self.by_time.is_empty() {
            return Vec::new();
        }
        let about = self.by_key.get(&(record.kind, record.key.clone())).map(Vec::as_slice).unwrap_or_default();
        let earlier = about.iter().filter(|(_, of, _)| of.node == origin.node && of.incarnation < origin.incarnation);
        earlier.map(|(_, origin, sequence)| (*origin, *sequence)).collect()
    }
}

impl Writing<'_> {
    /// Keeps a record aside.
    pub(super) fn put_aside(&mut self, numbered: &Numbered) {
        let raw = numbered.record.to_raw();
        let (place, key) = (row_key(&numbered.origin, numbered.sequence), (raw.kind, raw.key.clone()));
        let row = RecordRow { origin: numbered.origin, sequence: numbered.sequence, record: raw };
        self.index.put_row(&mut self.batch, Table::Sync, &place, &row);
        self.index.put_row(&mut self.batch, Table::Journal, &journal_key(&numbered.origin, numbered.sequence), &key);
        self.moves.waiting.push((row, true));
    }

    /// Ends the waiting of one.
    pub(super) fn take_up(&mut self, row: RecordRow) {
        self.index.delete(&mut self.batch, Table::Sync, &row_key(&row.origin, row.sequence));
        self.index.delete(&mut self.batch, Table::Journal, &journal_key(&row.origin, row.sequence));
        self.moves.waiting.push((row, false));
    }

    /// All that wait.
    pub(super) fn waiting_rows(&self) -> Result<Vec<RecordRow>> {
        let rows = self.waiting().list().filter_map(|(_, origin, sequence)| read(self.index, origin, *sequence).transpose());
        rows.collect()
    }

    /// Those that wait under a key.
    pub(super) fn waiting_under(&self, key: &Key) -> Result<Vec<RecordRow>> {
        let places = self.waiting().by_key.get(&(key.kind(), key.to_bytes())).map(Vec::as_slice).unwrap_or_default();
        places.iter().filter_map(|(_, origin, sequence)| read(self.index, origin, *sequence).transpose()).collect()
    }

    /// A record stands: what its writer said of the same in an earlier life, with a clock that was ahead, is void.
    pub(super) fn take_back(&mut self, record: &RawRecord, origin: &Origin) -> Result<()> {
        for (origin, sequence) in self.waiting().taken_back(record, origin) {
            if let Some(row) = read(self.index, &origin, sequence)? {
                self.take_up(row);
            }
        }
        Ok(())
    }
}

impl Store {
    /// How many records wait for their time. Does not block on the disk.
    pub fn quarantined_count(&self) -> usize {
        self.inner.journal.write(&self.inner.index).waiting().len()
    }

    /// The records that wait, those whose time comes first, at most `limit`.
    pub fn quarantined(&self, limit: usize) -> Result<Vec<Quarantined>> {
        let places: Vec<_> = self.inner.journal.write(&self.inner.index).waiting().list().take(limit).copied().collect();
        let mut list = Vec::new();
        for (_, origin, sequence) in places {
            if let Some(row) = read(&self.inner.index, &origin, sequence)? {
                let record = parse(&row.record)?;
                list.push(Quarantined { key: record.key, stamp: record.stamp, origin, sequence });
            }
        }
        Ok(list)
    }

    /// Lets the records stand whose time has come by this node's clock; says how many those were, and which tags were pushed twice.
    pub fn release(&self) -> Result<(usize, Vec<Conflict>)> {
        self.release_at(now_ms())
    }

    pub(super) fn release_at(&self, now_ms: u64) -> Result<(usize, Vec<Conflict>)> {
        let (mut released, mut conflicts) = (0, Vec::new());
        loop {
            let mut writing = self.inner.journal.write(&self.inner.index);
            let believed = now_ms.saturating_add(as_ms(self.inner.options.max_clock_drift));
            let due = writing.waiting().list().take_while(|(time, ..)| time.ms() <= believed).take(RELEASED_AT_ONCE);
            let (mut rows, mut keys) = (Vec::new(), BTreeSet::new());
            for (_, origin, sequence) in due.copied().collect::<Vec<_>>() {
                let Some(row) = read(&self.inner.index, &origin, sequence)? else { continue };
                // One writing has each key once.
                if keys.insert((row.record.kind, row.record.key.clone())) {
                    rows.push(row);
                }
            }
            if rows.is_empty() {
                return Ok((released, conflicts));
            }
            released += rows.len();
            for row in rows {
                let (origin, sequence, record) = (row.origin, row.sequence, parse(&row.record)?);
                writing.observe(record.stamp.time, now_ms);
                // ORDER: its row in the journal goes, and comes again if it stands.
                writing.take_up(row);
                if !writing.bury(&record)? {
                    writing.stand_under_a_sure_number(Numbered { origin, sequence, record })?;
                }
            }
            conflicts.append(&mut writing.conflicts);
            writing.commit()?;
        }
    }
}

/// The record that waits under a number.
pub(super) fn read(index: &Index, origin: &Origin, sequence: u64) -> Result<Option<RecordRow>> {
    index.row(Table::Sync, &row_key(origin, sequence))
}

pub(super) fn as_ms(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

fn row_key(origin: &Origin, sequence: u64) -> Vec<u8> {
    [WAITS, &journal_key(origin, sequence)].concat()
}

fn size(record: &RawRecord) -> usize {
    128 + record.key.len() + record.value.as_ref().map_or(0, Vec::len)
}
