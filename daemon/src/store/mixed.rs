//! Lives that were written by two copies of one data folder, as their lists of starts show: behind which number two nodes may mean different things.
//!
//! ```text
//! meta   mixed -> origin -> the last number up to which all copies are the same
//! ```
//!
//! Such numbers say nothing about what the other has seen: who takes a copy of another node's state keeps what it has under them
//! (see `Store::take_snapshot`). They are numbered anew by their node, once it has found out.

use std::collections::BTreeMap;

use larder_protocol::record::{Key, Numbered, Value};
use larder_protocol::starts::{Known, fork};
use larder_protocol::vector::{Origin, VersionVector};

use super::Store;
use super::error::Result;
use super::index::Table;
use super::journal::Writing;

/// The row of all of them.
const META_MIXED: &[u8] = b"mixed";
/// Lives that are remembered.
const MIXED_MAX: usize = 1000;

/// A life, and up to where it is sure.
type Mixed = BTreeMap<Origin, u64>;

impl Writing<'_> {
    /// Compares the list of a life's starts that comes with the one that is known.
    pub(super) fn compare_starts(&mut self, numbered: &Numbered) -> Result<()> {
        let (Key::Starts(life), Some(Value::Starts(list))) = (&numbered.record.key, &numbered.record.value) else { return Ok(()) };
        if *life == self.origin() {
            return Ok(());
        }
        let number = (numbered.origin == *life).then_some(numbered.sequence);
        let theirs = Known { sure: 0, covered: number.unwrap_or(u64::MAX), lists: vec![(number, list.clone())] };
        let Some(sure) = fork(&self.starts_of(life)?, &theirs).filter(|fork| *fork < self.vector.get(life)) else { return Ok(()) };
        let mut mixed: Mixed = self.index.row(Table::Meta, META_MIXED)?.unwrap_or_default();
        let before = mixed.get(life).copied();
        if before.is_some_and(|before| before <= sure) || (before.is_none() && mixed.len() >= MIXED_MAX) {
            return Ok(());
        }
        tracing::warn!(
            ?life,
            sure,
            "two copies of a node's data folder have written under its name; what they wrote is kept, and numbered anew when the node finds out"
        );
        mixed.insert(*life, sure);
        self.index.put_row(&mut self.batch, Table::Meta, META_MIXED, &mixed);
        Ok(())
    }
}

impl Store {
    /// What a peer covers, but for numbers that may mean two things.
    pub fn unmixed(&self, covered: &VersionVector) -> Result<VersionVector> {
        let mixed: Mixed = self.inner.index.row(Table::Meta, META_MIXED)?.unwrap_or_default();
        let mut sure = covered.clone();
        mixed.iter().for_each(|(life, upto)| sure.lower(life, *upto));
        Ok(sure)
    }
}
