//! Another life for a data folder that is not the only one of its kind (F11).
//!
//! A folder that was restored from an older copy, or cloned, would give out numbers that others know already. It shows when a peer knows a
//! higher number of ours than we do, or a record of ours that was not written here. Then the node begins another life, on the disk
//! before anything else is written: a new origin that numbers from 1. Everything of the old one behind the *fork*, where both are still the same,
//! gets a number of the new one, because others may have something else under the old number and would never ask for it. What others
//! have of the old one behind the fork gets a new number too when it comes, for the same reason.
//!
//! A copy is put in its place before a start. So each start writes down the number that it found ([`Lives::starts`]), until every other member was
//! looked at since: the fork is one of these.
//!
//! ```text
//! meta   lives -> [`Lives`]
//! ```

use std::collections::{BTreeSet, HashSet};

use serde::{Deserialize, Serialize};

use larder_protocol::merge::{self, Here};
use larder_protocol::record::Numbered;
use larder_protocol::vector::Origin;
use tokio::sync::watch;

use super::Store;
use super::error::Result;
use super::index::{RecordRow, Table, decode};
use super::journal::{self, META_INCARNATION, Writing, journal_key, now_ms, origin_key, row_key, sequence_of, table_of};

/// Numbers that are given anew in one go; a folder that wrote more than so many records while it was out of everyone's reach
/// keeps the older ones' numbers.
const RENUMBERED_MAX: u64 = 100_000;
/// The row of [`Lives`].
pub(super) const META_LIVES: &[u8] = b"lives";
/// Starts that are remembered: the first, and the last ones.
const STARTS_MAX: usize = 16;
/// Earlier lives that are asked for once more.
const UNSURE_MAX: usize = 64;
/// Two copies that begin another life in the same moment begin different ones.
const SPREAD_MS: u64 = 1000;

/// What is not sure of this node's own numbers.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Lives {
    /// The last number at each start since which not every other member was looked at.
    starts: BTreeSet<u64>,
    /// Earlier lives in which another copy wrote too, and up to where both are the same.
    unsure: Vec<(Origin, u64)>,
}

impl Lives {
    /// A start finds this number.
    pub(super) fn start(&mut self, last: u64) {
        self.starts.insert(last);
        while self.starts.len() > STARTS_MAX {
            let second = *self.starts.iter().nth(1).expect("there are several");
            self.starts.remove(&second);
        }
    }

    /// Whether a number of an origin may mean two things.
    pub(super) fn is_unsure(&self, origin: &Origin, sequence: u64) -> bool {
        self.unsure.iter().any(|(of, sure)| of == origin && sequence > *sure)
    }
}

impl Store {
    /// The last number at each start since which not every other member was looked at.
    pub fn starts(&self) -> BTreeSet<u64> {
        self.inner.journal.write(&self.inner.index).lives().starts.clone()
    }

    /// Every other member was looked at: this folder is the only one of its kind.
    pub fn settle_starts(&self) -> Result<()> {
        let mut writing = self.inner.journal.write(&self.inner.index);
        if writing.lives().starts.is_empty() {
            return Ok(());
        }
        let lives = Lives { starts: BTreeSet::new(), ..writing.lives().clone() };
        writing.set_lives(lives);
        writing.commit().map(drop)
    }

    /// Earlier lives in which another copy wrote too, and up to where both are the same: behind that, each peer is asked for what it has.
    pub fn unsure(&self) -> Vec<(Origin, u64)> {
        self.inner.journal.write(&self.inner.index).lives().unsure.clone()
    }

    /// Gives own records new numbers: those behind `after` and up to `upto` that a peer counts as known and has not sent back. It has superseded
    /// them, or something else had their numbers.
    pub fn renumber(&self, own: Origin, after: u64, upto: u64, confirmed: &HashSet<u64>) -> Result<usize> {
        let mut writing = self.inner.journal.write(&self.inner.index);
        if writing.origin() != own || after >= upto {
            return Ok(0);
        }
        let upto = upto.min(writing.vector.get(&own));
        let count = writing.renumber(own, own, after, upto, |sequence| confirmed.contains(&sequence))?;
        if count > 0 {
            writing.commit()?;
        }
        Ok(count)
    }

    /// This node's origins as they change. Does not block.
    pub fn lives(&self) -> watch::Receiver<Origin> {
        self.inner.journal.lives()
    }

    /// The first number of this node's origin under which one of these records was not written here.
    pub fn first_wrong(&self, records: &[Numbered]) -> Result<Option<u64>> {
        let mut wrong = None::<u64>;
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
                wrong = Some(wrong.map_or(numbered.sequence, |wrong| wrong.min(numbered.sequence)));
            }
        }
        Ok(wrong)
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
        let renumbered = writing.renumber(old, new, sure, last, |_| false)?;
        index.put_row(&mut writing.batch, Table::Meta, META_INCARNATION, &new.incarnation);
        writing.vector.lower(&old, sure);
        let mut unsure = writing.lives().unsure.clone();
        unsure.push((old, sure));
        unsure.drain(..unsure.len().saturating_sub(UNSURE_MAX));
        writing.set_lives(Lives { starts: BTreeSet::new(), unsure });
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

impl Writing<'_> {
    /// Gives records of one of this node's origins numbers of another; says how many.
    fn renumber(&mut self, old: Origin, new: Origin, after: u64, upto: u64, stays: impl Fn(u64) -> bool) -> Result<usize> {
        let mut count = 0;
        let index = self.index;
        for row in index.scan(Table::Journal, &origin_key(&old), &journal_key(&old, after.saturating_add(1))) {
            let (place, key) = row?;
            let sequence = sequence_of(&place)?;
            if sequence > upto {
                break;
            }
            let (kind, key): (u16, Vec<u8>) = decode(Table::Journal, &key)?;
            let standing: Option<RecordRow> = index.row(table_of(kind), &row_key(kind, &key))?;
            let is_it = |row: &RecordRow| row.origin == old && row.sequence == sequence && !stays(sequence);
            let Some(before) = standing.filter(is_it) else { continue };
            index.delete(&mut self.batch, Table::Journal, &place);
            let number = self.next_number(new);
            self.place(Some(&before), RecordRow { origin: new, sequence: number, record: before.record.clone() });
            count += 1;
        }
        Ok(count)
    }
}
