//! What this node holds, for another to compare: sums, ids, and the records behind ids.

use std::collections::HashSet;

use larder_protocol::message::compare::Summary;
use larder_protocol::record::Numbered;
use larder_protocol::state::{self, Sum};

use super::error::Result;
use super::index::{Index, RecordRow, Table, decode};
use super::journal::{now_ms, parse, table_of};
use super::{Store, journal};

/// A record's time and id, by which two nodes find out which differ.
pub type Mark = (u64, [u8; 32]);

impl Store {
    /// What is held, in short: all of it of one moment.
    pub fn summary(&self) -> Summary {
        let writing = self.inner.journal.write(&self.inner.index);
        let mut waiting = blake3::Hasher::new_derive_key("larder 2026 waiting records");
        for (time, origin, sequence) in writing.waiting().list() {
            waiting.update(&time.0.to_le_bytes());
            waiting.update(&journal::journal_key(origin, *sequence));
        }
        let waiting = *waiting.finalize().as_bytes();
        Summary { now_ms: now_ms(), vector: writing.vector.hash(), waiting, kinds: writing.sums().kinds() }
    }

    /// The sums of a kind.
    pub fn places(&self, kind: u16) -> Vec<Sum> {
        self.inner.journal.write(&self.inner.index).sums().places(kind)
    }

    /// Every record of a kind in some places, tombstones included.
    pub fn marks(&self, kind: u16, places: &[u8]) -> Result<Vec<Mark>> {
        let mut marks = Vec::new();
        for row in rows(&self.inner.index, kind, places) {
            let record = row?.record;
            marks.push((record.stamp.time.0, state::id(&record)));
        }
        Ok(marks)
    }

    /// The records with these ids, among those of a kind in some places.
    pub fn records_of(&self, kind: u16, places: &[u8], ids: &HashSet<[u8; 32]>) -> Result<Vec<Numbered>> {
        let mut records = Vec::new();
        if ids.is_empty() {
            return Ok(records);
        }
        for row in rows(&self.inner.index, kind, places) {
            let row = row?;
            if ids.contains(&state::id(&row.record)) {
                records.push(Numbered { origin: row.origin, sequence: row.sequence, record: parse(&row.record)? });
                if records.len() == ids.len() {
                    break;
                }
            }
        }
        Ok(records)
    }

    /// Counts everything that stands anew; whether that is what the sums say.
    pub fn sums_are_right(&self) -> Result<bool> {
        let writing = self.inner.journal.write(&self.inner.index);
        Ok(super::sums::Sums::count(&self.inner.index, |_| ())?.kinds() == writing.sums().kinds())
    }
}

/// The rows of a kind whose keys have one of these places.
fn rows<'a>(index: &'a Index, kind: u16, places: &[u8]) -> impl Iterator<Item = Result<RecordRow>> + use<'a> {
    let mut wanted = [false; state::PLACES];
    places.iter().for_each(|place| wanted[usize::from(*place)] = true);
    let table = table_of(kind);
    let (prefix, from) = match table {
        Table::Record if kind < state::KINDS => (kind.to_be_bytes().to_vec(), Vec::new()),
        // Kinds without sums of their own stand behind all others.
        Table::Record => (Vec::new(), state::KINDS.to_be_bytes().to_vec()),
        _ => (Vec::new(), Vec::new()),
    };
    let head = if table == Table::Record { size_of::<u16>() } else { 0 };
    index.scan(table, &prefix, &from).filter_map(move |row| {
        let (key, row) = match row {
            Ok(row) => row,
            Err(error) => return Some(Err(error)),
        };
        // Most rows are passed over by their keys alone.
        wanted[usize::from(state::place(&key[head.min(key.len())..]))].then(|| decode(table, &row))
    })
}
