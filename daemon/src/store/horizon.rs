//! The end of tombstones, and the members that were away when it came (F18).
//!
//! ```text
//! meta   horizon -> up to which number of each origin tombstones may have been purged
//! sync   't' | origin | sequence -> kind, key     a tombstone that ends when everyone has seen it
//! ```
//!
//! A tombstone goes when every member that counts has seen it ([`Store::purge_tombstones`]), and the horizon goes to its number in the same batch. Who does not know
//! everything up to there may hold what the tombstone killed. It must not bring that back: it takes a copy of this node's state in the
//! place of its own ([`Store::take_snapshot`]). What the other has seen and has no more was deleted, and goes here too; what it has not seen stays, and
//! goes when it comes to somebody who remembers that it was deleted (see `graves`).
//!
//! CRASH: a snapshot is merged, then what it lacks is removed in many batches, and only the last one says that it was taken. Broken off, it
//! is taken again from the beginning.

use std::collections::HashSet;

use larder_protocol::merge::{Fate, SeenBy, fate, is_purged_once_seen};
use larder_protocol::record::{Numbered, RawRecord, Record};
use larder_protocol::vector::{Origin, VersionVector};

use super::Store;
use super::error::Result;
use super::graves::GRAVES_MAX;
use super::index::{Batch, Index, RecordRow, Table};
use super::journal::{META_HORIZON, Writing, journal_key, now_ms, parse, row_key, table_of};

/// What the keys of tombstones' rows begin with.
const DEAD: &[u8] = b"t";
/// Records looked at in one writing.
const PART: usize = 500;
/// Tables in which tombstones end.
const TABLES: [Table; 3] = [Table::Manifest, Table::Tag, Table::Link];

/// The keys that a snapshot has something under; 16 bytes of a hash each.
#[derive(Debug, Default)]
pub struct Told(HashSet<u128>);

impl Told {
    /// Takes note of some records of the snapshot.
    pub fn add(&mut self, records: &[Numbered]) {
        self.0.extend(records.iter().map(|numbered| brief(numbered.record.key.kind(), &numbered.record.key.to_bytes())));
    }

    fn has(&self, record: &RawRecord) -> bool {
        self.0.contains(&brief(record.kind, &record.key))
    }
}

impl Store {
    /// Up to where tombstones were purged here. Of a life that two copies wrote, only as far as all mean the same by its numbers: nobody may ever know
    /// those behind, and would be taken for one who was away.
    pub fn horizon(&self) -> VersionVector {
        let writing = self.inner.journal.write(&self.inner.index);
        let mut horizon = writing.mixed().sure_part(writing.horizon());
        writing.lives().unsure().for_each(|(life, sure)| horizon.lower(life, sure));
        horizon
    }

    /// Removes tombstones that everyone has `seen` and that are older than `kept_ms`, but of each origin only up to what `limit` says: what an
    /// archive must tell of first. Says how many.
    pub fn purge_tombstones(&self, seen: &VersionVector, kept_ms: u64, limit: impl Fn(&Origin) -> u64) -> Result<usize> {
        let index = &self.inner.index;
        let before_ms = now_ms().saturating_sub(kept_ms);
        let mut purged = 0;
        for (origin, seen) in seen.iter() {
            let (mut after, mut last) = (0, seen.min(limit(&origin)));
            while after < last {
                let rows = index.scan(Table::Sync, &dead_origin(&origin), &dead_key(&origin, after + 1));
                let places = rows.take(PART).map(|row| row.map(|(place, _)| place)).collect::<Result<Vec<_>>>()?;
                if places.is_empty() {
                    break;
                }
                let mut writing = self.inner.journal.write(index);
                let mut horizon = writing.horizon().clone();
                // Who counts a number as known that means two things may have seen the other one.
                last = last.min(writing.mixed().sure(&origin));
                for place in places {
                    let sequence = super::journal::sequence_of(&place)?;
                    after = sequence;
                    if sequence > last {
                        break;
                    }
                    // Under the lock: it may have been superseded meanwhile.
                    let Some((kind, key)) = index.row::<(u16, Vec<u8>)>(Table::Sync, &place)? else { continue };
                    let standing: Option<RecordRow> = index.row(table_of(kind), &row_key(kind, &key))?;
                    let Some(row) = standing.filter(|row| row.origin == origin && row.sequence == sequence && row.record.value.is_none())
                    else {
                        index.delete(&mut writing.batch, Table::Sync, &place);
                        continue;
                    };
                    if row.record.stamp.time.ms() > before_ms {
                        continue;
                    }
                    writing.remove(&row)?;
                    horizon.advance(origin, sequence);
                    purged += 1;
                }
                writing.set_horizon(horizon);
                writing.commit()?;
            }
        }
        if purged > 0 {
            self.level_graves(GRAVES_MAX)?;
        }
        Ok(purged)
    }

    /// Learns up to where others have purged tombstones: who does not know all below takes a snapshot from here.
    pub fn learn_horizon(&self, horizon: &VersionVector) -> Result<()> {
        let mut writing = self.inner.journal.write(&self.inner.index);
        let mut all = writing.horizon().clone();
        all.merge(horizon);
        writing.set_horizon(all);
        writing.commit()?;
        Ok(())
    }

    /// Ends the taking of a snapshot whose records are merged: `told` are its keys, `covered` is the vector of the node whose state it is, `agreed` the same as
    /// far as both mean the same by it, and `horizon` up to where that node has purged. Says how many records went.
    pub fn take_snapshot(&self, told: &Told, covered: &VersionVector, agreed: &VersionVector, horizon: &VersionVector) -> Result<usize> {
        let index = &self.inner.index;
        let goes = |row: &RecordRow| {
            let seen = SeenBy { other: row.sequence <= agreed.get(&row.origin), copy: told.has(&row.record) };
            fate(&row.record, seen) == Fate::Goes
        };
        let mut dropped = 0;
        self.each_row(|writing, row| {
            // Nobody would take what a reader has written that nobody has seen.
            let is_own = row.origin.node == writing.origin().node;
            if goes(&row) || (writing.is_reader() && is_own && !told.has(&row.record)) {
                writing.remove(&row)?;
                dropped += 1;
            }
            Ok(())
        })?;
        let mut writing = self.inner.journal.write(index);
        for row in writing.waiting_rows()?.into_iter().filter(goes) {
            writing.take_up(row);
            dropped += 1;
        }
        writing.commit()?;
        let mut writing = self.inner.journal.write(index);
        let own = writing.origin();
        // It is the whole state, also where something was written twice.
        writing.vector.merge(&covered.iter().filter(|(origin, _)| *origin != own).collect());
        let mut all = writing.horizon().clone();
        all.merge(horizon);
        writing.set_horizon(all);
        writing.commit()?;
        Ok(dropped)
    }

    /// Writes everything anew that can be deleted, as this node's own and of now: what it was given does not count as known.
    pub fn write_anew(&self) -> Result<()> {
        self.each_row(|writing, row| {
            let record = parse(&row.record)?;
            match record.value {
                Some(_) if !writing.is_reader() => writing.record(record.key, record.value),
                _ => writing.remove(&row),
            }
        })
    }

    /// Goes through the records of the kinds whose tombstones end, some at a time: each is read under the lock, as it stands then.
    fn each_row(&self, mut act: impl FnMut(&mut Writing<'_>, RecordRow) -> Result<()>) -> Result<()> {
        let index = &self.inner.index;
        for table in TABLES {
            let mut from = Vec::new();
            loop {
                let rows = index.scan(table, b"", &from).take(PART).collect::<Result<Vec<_>>>()?;
                let Some((last, _)) = rows.last() else { break };
                from = [&last[..], &[0]].concat();
                let mut writing = self.inner.journal.write(index);
                for (key, _) in &rows {
                    if let Some(row) = index.row::<RecordRow>(table, key)? {
                        act(&mut writing, row)?;
                    }
                }
                writing.commit()?;
            }
        }
        Ok(())
    }
}

impl Writing<'_> {
    /// Removes what stands, with all rows that follow from it; the history keeps what a tag named.
    pub(super) fn remove(&mut self, row: &RecordRow) -> Result<()> {
        let before = parse(&row.record)?;
        if ends(&row.record) {
            self.dig(row)?;
        }
        let nothing = Record { key: before.key.clone(), value: None, stamp: before.stamp };
        self.replaced(&nothing, Some(&before))?;
        self.follow(&nothing, Some(&before));
        self.moved(Some(row), None);
        self.index.delete(&mut self.batch, Table::Journal, &journal_key(&row.origin, row.sequence));
        self.index.delete(&mut self.batch, table_of(row.record.kind), &row_key(row.record.kind, &row.record.key));
        Ok(())
    }

    /// Keeps the list of tombstones when one row takes the place of another.
    pub(super) fn died(&mut self, before: Option<&RecordRow>, after: Option<&RecordRow>) {
        let (index, batch) = (self.index, &mut self.batch);
        if let Some(row) = before.filter(|row| ends(&row.record)) {
            index.delete(batch, Table::Sync, &dead_key(&row.origin, row.sequence));
        }
        if let Some(row) = after.filter(|row| ends(&row.record)) {
            put(index, batch, row);
        }
    }

    fn set_horizon(&mut self, horizon: VersionVector) {
        self.index.put_row(&mut self.batch, Table::Meta, META_HORIZON, &horizon);
        self.moves.horizon = Some(horizon);
    }
}

/// Writes the list anew, as far as a row goes.
pub(super) fn list(index: &Index, batch: &mut Batch, row: &RecordRow) {
    if ends(&row.record) {
        put(index, batch, row);
    }
}

fn put(index: &Index, batch: &mut Batch, row: &RecordRow) {
    index.put_row(batch, Table::Sync, &dead_key(&row.origin, row.sequence), &(row.record.kind, &row.record.key));
}

fn ends(record: &RawRecord) -> bool {
    record.value.is_none() && is_purged_once_seen(record.kind)
}

fn dead_origin(origin: &Origin) -> Vec<u8> {
    [DEAD, &super::journal::origin_key(origin)].concat()
}

fn dead_key(origin: &Origin, sequence: u64) -> Vec<u8> {
    [DEAD, &journal_key(origin, sequence)].concat()
}

/// 16 bytes of a hash of a record's key.
pub(super) fn brief(kind: u16, key: &[u8]) -> u128 {
    let mut hasher = blake3::Hasher::new();
    hasher.update(&kind.to_le_bytes()).update(key);
    u128::from_le_bytes(hasher.finalize().as_bytes()[..16].try_into().expect("16 of 32 bytes"))
}

#[cfg(test)]
mod tests;
