//! Another life for a data folder that is not the only one of its kind (F11).
//!
//! A folder that was restored from an older copy, or cloned, would give out numbers that others know already. It shows when a peer knows a
//! higher number of ours than we do, or a record of ours that was not written here. Then the node begins another life, on the disk
//! before anything else is written: a new origin that numbers from 1. Everything of the old one behind `sure`, up to where
//! the peer is known to have what we have, gets a number of the new one, because others may have something else under the old number
//! and would never ask for it; and the old origin is asked for from there like anybody's.

use larder_protocol::merge::{self, Here};
use larder_protocol::record::Numbered;
use larder_protocol::vector::Origin;
use tokio::sync::watch;

use super::Store;
use super::error::Result;
use super::index::{RecordRow, Table, decode};
use super::journal::{self, META_INCARNATION, journal_key, now_ms, origin_key, row_key, sequence_of, table_of};

/// Numbers that are given anew in one go; a folder that wrote more than so many records while it was out of everyone's reach
/// keeps the older ones' numbers.
const RENUMBERED_MAX: u64 = 100_000;
/// Two copies that begin another life in the same moment begin different ones.
const SPREAD_MS: u64 = 1000;

impl Store {
    /// This node's origins as they change. Does not block.
    pub fn lives(&self) -> watch::Receiver<Origin> {
        self.inner.journal.lives()
    }

    /// Whether one of these records bears this node's origin and was not written here.
    pub fn is_forked(&self, records: &[Numbered]) -> Result<bool> {
        let (journal, index) = (&self.inner.journal, &self.inner.index);
        let writing = journal.write(index);
        let origin = journal.origin();
        let own = (writing.vector.get(&origin), writing.horizon().get(&origin));
        for numbered in records.iter().filter(|numbered| numbered.origin == origin) {
            let raw = numbered.record.to_raw();
            let standing: Option<RecordRow> = index.row(table_of(raw.kind), &row_key(raw.kind, &raw.key))?;
            let at_number = journal::at_number(index, &origin, numbered.sequence)?;
            let here = Here { standing: standing.as_ref().map(|row| &row.record), numbered: at_number.as_ref().map(|row| &row.record) };
            if merge::is_foreign(&raw, numbered.sequence, here, own) {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// Begins another life, unless `old` is over already; `sure`: up to which number of the old one others have what is here.
    pub fn begin_life(&self, old: Origin, sure: u64) -> Result<Origin> {
        let (journal, index) = (&self.inner.journal, &self.inner.index);
        let mut writing = journal.write(index);
        if journal.origin() != old {
            return Ok(journal.origin());
        }
        let last = writing.vector.get(&old);
        let sure = sure.min(last).max(last.saturating_sub(RENUMBERED_MAX));
        let known = writing.vector.last_life(&old.node).unwrap_or(0).max(old.incarnation);
        let spread = uuid::Uuid::new_v4().as_u64_pair().0 % SPREAD_MS;
        let new = Origin { node: old.node, incarnation: now_ms().max(known) + 1 + spread };
        let mut renumbered = 0;
        for row in index.scan(Table::Journal, &origin_key(&old), &journal_key(&old, sure.saturating_add(1))) {
            let (place, key) = row?;
            let sequence = sequence_of(&place)?;
            let (kind, key): (u16, Vec<u8>) = decode(Table::Journal, &key)?;
            let standing: Option<RecordRow> = index.row(table_of(kind), &row_key(kind, &key))?;
            let Some(before) = standing.filter(|row| row.origin == old && row.sequence == sequence) else { continue };
            renumbered += 1;
            let row = RecordRow { origin: new, sequence: renumbered, record: before.record.clone() };
            index.delete(&mut writing.batch, Table::Journal, &place);
            index.put_row(&mut writing.batch, Table::Journal, &journal_key(&new, renumbered), &(kind, &key));
            writing.moved(Some(&before), Some(&row));
            index.put_row(&mut writing.batch, table_of(kind), &row_key(kind, &key), &row);
        }
        index.put_row(&mut writing.batch, Table::Meta, META_INCARNATION, &new.incarnation);
        writing.vector.lower(&old, sure);
        if renumbered > 0 {
            writing.vector.advance(new, renumbered);
        }
        writing.begin(new);
        writing.commit()?;
        tracing::warn!(
            old = old.incarnation,
            new = new.incarnation,
            renumbered,
            "another copy of this data folder has written under this node's name: this node goes on under a new number and loses nothing. Was the \
             folder restored from a copy, or does a clone run? A clone must get a key of its own"
        );
        Ok(new)
    }
}
