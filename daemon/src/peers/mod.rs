//! The side gate: other nodes.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use larder_protocol::digest::Digest;
use larder_protocol::stamp::NodeId;

use crate::config::Config;
use crate::store::{ClusterId, Staging, Store};
use crate::tasks::Tasks;
use crate::telemetry::Metrics;

mod error;
mod identity;

pub use error::Error;
pub use identity::Identity;

/// Other nodes, as the rooms above see them. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Peers {}

/// One line of `larder peers`.
#[derive(Clone, Debug, serde::Serialize)]
pub struct PeerStatus {
    /// The node's id, as people read it.
    pub node: String,
    /// Its name.
    pub name: String,
    /// Its zone.
    pub zone: String,
    /// Its addresses.
    pub addresses: Vec<String>,
    /// `self`, `connected` or `unreachable`.
    pub state: &'static str,
    /// Round trip time.
    pub rtt_ms: Option<f64>,
    /// Records that it is known to lack, or 0.
    pub behind: u64,
}

/// What came of joining.
#[derive(Clone, Debug)]
pub struct Joined {
    /// The cluster.
    pub cluster: ClusterId,
    /// Who let this node in.
    pub issuer: NodeId,
}

impl Peers {
    /// Opens the UDP port, writes this node's `Member` record when it changed (name, zone, addresses, `bucket`, version), starts dialing
    /// the members, and syncing.
    pub async fn start(
        config: &Config,
        bucket: Option<String>,
        identity: Arc<Identity>,
        store: Store,
        tasks: &Tasks,
        metrics: Arc<Metrics>,
    ) -> Result<Self, Error> {
        unimplemented!("{config:?}{bucket:?}{identity:?}{store:?}{tasks:?}{metrics:?}")
    }
    /// Fills a staged blob from a peer that has it, from where it stands, every chunk checked before it is appended. When a
    /// source dies or lies, the next one goes on. `false`: no peer has it (whole); what was appended stays.
    pub async fn fill(&self, staging: &mut Staging) -> Result<bool, Error> {
        unimplemented!("{staging:?}")
    }
    /// Whether this node is one of the owners of a digest (rendezvous hashing over members, spread over zones).
    pub fn is_owner(&self, digest: &Digest) -> bool {
        unimplemented!("{digest:?}")
    }
    /// Every member.
    pub fn list(&self) -> Vec<PeerStatus> {
        unimplemented!()
    }
    /// A one-time join token.
    pub async fn token(&self, expires: Duration) -> Result<String, Error> {
        unimplemented!("{expires:?}")
    }
    /// Joins the cluster of a token.
    pub async fn join(&self, token: &str) -> Result<Joined, Error> {
        unimplemented!("{token}")
    }
    /// Expels a node; `false` when it is no member.
    pub async fn remove(&self, node: NodeId) -> Result<bool, Error> {
        unimplemented!("{node}")
    }
    /// Resolves what a person typed (with or without dashes, or a prefix) to a member's id.
    pub fn resolve(&self, text: &str) -> Result<NodeId, Error> {
        unimplemented!("{text}")
    }
    /// Says goodbye to every peer and closes the port.
    pub async fn close(&self) {
        unimplemented!()
    }
}

/// SKELETON: where the key file lives
pub fn key_file(folder: &Path) -> std::path::PathBuf {
    folder.join("node.key")
}
