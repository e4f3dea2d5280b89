//! `[records]`: what is exchanged of the metadata between nodes, and how long it is remembered what was deleted.

use std::time::Duration;

use super::DAY;

/// `[records]`
#[derive(Clone, Debug)]
pub struct Records {
    /// A member that was not heard for so long is not waited for any more: when it returns, it takes a copy of what the others hold.
    pub lapse_after: Duration,
    /// Tombstones are kept for at least so long, also when everyone has seen them.
    pub tombstones_kept: Duration,
    /// Most records that one node may have; further ones of it are refused.
    pub per_node_max: u64,
    /// Records that are taken from one peer in a second.
    pub rate: u64,
}

impl Default for Records {
    fn default() -> Self {
        Self { lapse_after: 30 * DAY, tombstones_kept: DAY, per_node_max: 5_000_000, rate: 50_000 }
    }
}
