//! This node's key.

use std::path::Path;

use larder_protocol::stamp::NodeId;

use super::Error;

/// This node's Ed25519 key; its public half is the node's id.
#[derive(Debug)]
pub struct Identity {}

impl Identity {
    /// Reads `node.key` in a data folder, or makes it (0600).
    pub fn load(folder: &Path) -> Result<Self, Error> {
        unimplemented!("{folder:?}")
    }
    /// The node's id.
    pub fn node(&self) -> NodeId {
        unimplemented!()
    }
    /// Signs bytes (Ed25519).
    pub fn sign(&self, bytes: &[u8]) -> [u8; 64] {
        unimplemented!("{bytes:?}")
    }
}
