//! The hash of the state: for each kind of record and place, the sum of what is live (see the protocol's `state`).
//!
//! ```text
//! sync   's' | kind, big-endian | place -> sum
//! meta   summed -> the clock's floor when it was last written
//! ```
//!
//! Sums move on in the batch of the records that they count. A program of before does not know them: [`Sums::open`] counts everything anew
//! when such a program was the last to write here, and lists the tombstones (see `horizon`).

use std::collections::{BTreeMap, HashMap};

use larder_protocol::record::RawRecord;
use larder_protocol::stamp::HybridTime;
use larder_protocol::state::{self, PLACES, Sum};

use super::error::Result;
use super::horizon;
use super::index::{Batch, Index, RecordRow, Table, decode};
use super::journal::META_CLOCK;
use super::quota::Counts;

/// The clock's floor when the sums were last written.
pub(super) const META_SUMMED: &[u8] = b"summed";
/// What the keys of sums begin with.
const SUM: &[u8] = b"s";
/// Rows written at a time when everything is counted.
const WRITTEN_AT_ONCE: usize = 10_000;
/// Tables that records stand in.
pub(super) const RECORD_TABLES: [Table; 5] = [Table::Manifest, Table::Tag, Table::Link, Table::Pack, Table::Record];

/// All sums of a node.
#[derive(Debug, Default)]
pub(super) struct Sums(BTreeMap<u16, Box<[Sum; PLACES]>>);

/// How one writing moves the sums on.
#[derive(Debug, Default)]
pub(super) struct Moved(HashMap<(u16, u8), Sum>);

impl Sums {
    pub(super) fn open(index: &Index) -> Result<Self> {
        let floor: Option<HybridTime> = index.row(Table::Meta, META_CLOCK)?;
        if floor.is_none() || floor == index.row(Table::Meta, META_SUMMED)? {
            return Self::read(index);
        }
        let mut batch = Batch::default();
        for row in index.scan(Table::Sync, SUM, b"") {
            index.delete(&mut batch, Table::Sync, &row?.0);
        }
        let (mut listed, mut failed) = (0, Ok(()));
        let mut counts = Counts::default();
        let sums = Self::count(index, |row| {
            counts.see(row);
            horizon::list(index, &mut batch, row);
            listed += 1;
            if listed % WRITTEN_AT_ONCE == 0 && failed.is_ok() {
                failed = index.write(std::mem::take(&mut batch));
            }
        })?;
        failed?;
        counts.put_all(index, &mut batch);
        for (kind, places) in &sums.0 {
            for (place, sum) in (0u8..=u8::MAX).zip(places.iter()) {
                index.put_row(&mut batch, Table::Sync, &key(*kind, place), sum);
            }
        }
        index.put_row(&mut batch, Table::Meta, META_SUMMED, &floor);
        index.write(batch)?;
        Ok(sums)
    }

    fn read(index: &Index) -> Result<Self> {
        let mut sums = Self::default();
        for row in index.scan(Table::Sync, SUM, b"") {
            let (key, row) = row?;
            let [kind0, kind1, place] = key[SUM.len()..] else { continue };
            sums.of(u16::from_be_bytes([kind0, kind1]))[usize::from(place)] = decode(Table::Sync, &row)?;
        }
        Ok(sums)
    }

    /// Adds up everything that stands; `each` sees every row.
    pub(super) fn count(index: &Index, mut each: impl FnMut(&RecordRow)) -> Result<Self> {
        let mut sums = Self::default();
        for table in RECORD_TABLES {
            for row in index.scan(table, b"", b"") {
                let row: RecordRow = decode(table, &row?.1)?;
                each(&row);
                if row.record.value.is_some() {
                    let (kind, place) = (state::slot(row.record.kind), state::place(&row.record.key));
                    sums.of(kind)[usize::from(place)].add(&state::id(&row.record));
                }
            }
        }
        Ok(sums)
    }

    fn of(&mut self, kind: u16) -> &mut [Sum; PLACES] {
        self.0.entry(kind).or_insert_with(|| Box::new([Sum::default(); PLACES]))
    }

    /// The sums of one kind.
    pub(super) fn places(&self, kind: u16) -> Vec<Sum> {
        self.0.get(&kind).map_or_else(|| vec![Sum::default(); PLACES], |places| places.to_vec())
    }

    /// What each kind sums up to; only those that have something live.
    pub(super) fn kinds(&self) -> Vec<(u16, Sum)> {
        let total = |places: &[Sum; PLACES]| {
            let mut total = Sum::default();
            places.iter().for_each(|sum| total.plus(sum));
            total
        };
        self.0.iter().map(|(kind, places)| (*kind, total(places))).filter(|(_, sum)| *sum != Sum::default()).collect()
    }

    /// Puts what a writing has moved into its batch.
    pub(super) fn put(&self, index: &Index, batch: &mut Batch, moved: &Moved) {
        for ((kind, place), by) in &moved.0 {
            let mut sum = self.0.get(kind).map_or_else(Sum::default, |places| places[usize::from(*place)]);
            sum.plus(by);
            index.put_row(batch, Table::Sync, &key(*kind, *place), &sum);
        }
    }

    /// Moves on, when the batch is written.
    pub(super) fn follow(&mut self, moved: Moved) {
        for ((kind, place), by) in moved.0 {
            self.of(kind)[usize::from(place)].plus(&by);
        }
    }
}

impl Moved {
    /// A record takes the place of another, or of none.
    pub(super) fn replace(&mut self, before: Option<&RawRecord>, after: Option<&RawRecord>) {
        let live = |record: &&RawRecord| record.value.is_some();
        if let Some(before) = before.filter(live) {
            self.at(before).take(&state::id(before));
        }
        if let Some(after) = after.filter(live) {
            self.at(after).add(&state::id(after));
        }
    }

    fn at(&mut self, record: &RawRecord) -> &mut Sum {
        self.0.entry((state::slot(record.kind), state::place(&record.key))).or_default()
    }
}

fn key(kind: u16, place: u8) -> Vec<u8> {
    [SUM, &kind.to_be_bytes(), &[place]].concat()
}
