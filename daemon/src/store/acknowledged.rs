//! What each member was last heard to know, and how long it has not been heard: kept, so that one that is gone counts with what it knew.
//!
//! ```text
//! sync   'a' | node id -> [`Acknowledged`]
//! ```

use larder_protocol::stamp::NodeId;
use larder_protocol::vector::VersionVector;
use serde::{Deserialize, Serialize};

use super::Store;
use super::error::Result;
use super::index::{Batch, Table, decode};

/// What the keys of rows begin with.
const SAID: &[u8] = b"a";

/// What is known of a member's knowledge.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Acknowledged {
    /// What it knows.
    pub vector: VersionVector,
    /// For how long it has not been heard, in milliseconds in which this node was awake.
    pub silent_ms: u64,
}

impl Store {
    /// What every member was last heard to know.
    pub fn acknowledged(&self) -> Result<Vec<(NodeId, Acknowledged)>> {
        let mut list = Vec::new();
        for row in self.inner.index.scan(Table::Sync, SAID, b"") {
            let (key, row) = row?;
            let Ok(node) = key[SAID.len()..].try_into() else { continue };
            list.push((NodeId(node), decode(Table::Sync, &row)?));
        }
        Ok(list)
    }

    /// Writes that down; `None`: it is no member any more. Nobody waits for the disk: what is lost is only heard again.
    pub fn acknowledge(&self, list: Vec<(NodeId, Option<Acknowledged>)>) -> Result<()> {
        let mut batch = Batch::default();
        for (node, said) in list {
            let key = [SAID, &node.0].concat();
            match said {
                Some(said) => self.inner.index.put_row(&mut batch, Table::Sync, &key, &said),
                None => self.inner.index.delete(&mut batch, Table::Sync, &key),
            }
        }
        self.inner.index.write(batch)
    }
}
