//! How many records each node has, and how many it may have (S33).
//!
//! ```text
//! sync   'n' | node id -> how many records stand that it numbered
//! ```
//!
//! A node that floods the others with repositories and tags is stopped at `records.per_node_max`: what would be new under its name is refused, and the
//! vector waits; what it writes over what it has is taken, and so is everything of the others. Counts move on in the batch of the records.

use std::collections::{HashMap, HashSet};
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};

use larder_protocol::stamp::NodeId;

use super::Store;
use super::error::Result;
use super::index::{Batch, Index, RecordRow, Table, decode};
use super::journal::lock;

/// What the keys of counts begin with.
const COUNT: &[u8] = b"n";

/// Records by the node that numbered them.
#[derive(Debug, Default)]
pub(super) struct Counts(HashMap<NodeId, u64>);

/// How one writing moves the counts on.
#[derive(Debug, Default)]
pub(super) struct Counted(HashMap<NodeId, i64>);

/// How many records a node may have, and who was found to want more.
#[derive(Debug)]
pub(super) struct Quota {
    max: AtomicU64,
    told: Mutex<HashSet<NodeId>>,
}

impl Default for Quota {
    fn default() -> Self {
        Self { max: AtomicU64::new(u64::MAX), told: Mutex::default() }
    }
}

impl Quota {
    /// Whether a node has so many records that a new one is too much; logged once for each.
    pub(super) fn is_over(&self, node: &NodeId, counts: &Counts, counted: &Counted) -> bool {
        let pending = counted.0.get(node).copied().unwrap_or(0).max(0) as u64;
        let (has, max) = (counts.0.get(node).copied().unwrap_or(0) + pending, self.max.load(Ordering::Relaxed));
        if has < max {
            return false;
        }
        if lock(&self.told).insert(*node) {
            tracing::warn!(
                ?node,
                records = has,
                "a node has more records than records.per_node_max allows: new ones of it are refused; raise that, delete what is too much there, or remove the node"
            );
        }
        true
    }
}

impl Counts {
    pub(super) fn read(index: &Index) -> Result<Self> {
        let mut counts = HashMap::new();
        for row in index.scan(Table::Sync, COUNT, b"") {
            let (key, row) = row?;
            let Ok(node) = key[COUNT.len()..].try_into() else { continue };
            counts.insert(NodeId(node), decode(Table::Sync, &row)?);
        }
        Ok(Self(counts))
    }

    pub(super) fn see(&mut self, row: &RecordRow) {
        *self.0.entry(row.origin.node).or_default() += 1;
    }

    /// Puts all of them into a batch.
    pub(super) fn put_all(&self, index: &Index, batch: &mut Batch) {
        for (node, count) in &self.0 {
            index.put_row(batch, Table::Sync, &key(node), count);
        }
    }

    /// Puts what a writing has moved into its batch.
    pub(super) fn put(&self, index: &Index, batch: &mut Batch, counted: &Counted) {
        for (node, by) in counted.0.iter().filter(|(_, by)| **by != 0) {
            index.put_row(batch, Table::Sync, &key(node), &self.after(node, *by));
        }
    }

    /// Moves on, when the batch is written.
    pub(super) fn follow(&mut self, counted: Counted) {
        for (node, by) in counted.0 {
            let count = self.after(&node, by);
            self.0.insert(node, count);
        }
    }

    fn after(&self, node: &NodeId, by: i64) -> u64 {
        self.0.get(node).copied().unwrap_or(0).saturating_add_signed(by)
    }
}

impl Counted {
    /// A row takes the place of another, or of none.
    pub(super) fn replace(&mut self, before: Option<&RecordRow>, after: Option<&RecordRow>) {
        for (row, by) in [(before, -1), (after, 1)] {
            if let Some(row) = row {
                *self.0.entry(row.origin.node).or_default() += by;
            }
        }
    }
}

impl Store {
    /// How many records each node may have from now on; this one is not limited.
    pub fn limit_records(&self, per_node: u64) {
        self.inner.journal.quota().max.store(per_node, Ordering::Relaxed);
    }
}

fn key(node: &NodeId) -> Vec<u8> {
    [COUNT, &node.0].concat()
}
