//! The cellar: the bucket.

use std::sync::Arc;

use futures_util::future::BoxFuture;
use larder_protocol::digest::Digest;
use larder_protocol::record::Link;
use serde::Serialize;

use crate::config::Config;
use crate::store::{ClusterId, Staging, Store};
use crate::tasks::Tasks;
use crate::telemetry::Metrics;

mod error;

pub use error::Error;

/// Signs a pack's footer with the node's key.
pub type Sign = Arc<dyn Fn(&[u8]) -> [u8; 64] + Send + Sync>;
/// Brings a blob onto this disk, from wherever it is; given by `node`, so that a pack can hold what another node took. `false`: nobody has it.
pub type Ensure = Arc<dyn Fn(Digest, Link) -> BoxFuture<'static, bool> + Send + Sync>;

/// The archive, as the rooms above see it. Cheap to clone.
#[derive(Clone)]
pub struct Archive {}

/// `larder archive status`
#[derive(Clone, Debug, Serialize)]
pub struct Status {
    /// As configured; `none` when switched off.
    pub url: String,
    /// The bucket's id in `Archived` records.
    pub bucket: Option<String>,
    /// Records waiting.
    pub pending_records: u64,
    /// Bytes waiting.
    pub pending_bytes: u64,
    /// How long the oldest has waited.
    pub oldest_pending_s: Option<u64>,
    /// Packs known in this bucket.
    pub packs: u64,
    /// Their bytes.
    pub pack_bytes: u64,
    /// Blobs that a manifest names and nobody has.
    pub missing: Vec<Digest>,
    /// Why the last attempt failed.
    pub last_error: Option<String>,
}

/// A pack, as it is listed.
#[derive(Clone, Debug, Serialize)]
pub struct PackInfo {
    /// Its id.
    pub id: String,
    /// The object's key.
    pub key: String,
    /// The bucket's id.
    pub bucket: String,
    /// Bytes.
    pub size: u64,
    /// Records in it.
    pub records: u64,
    /// Blobs in it.
    pub blobs: usize,
    /// RFC 3339.
    pub created: String,
}

/// `larder archive cost`
#[derive(Clone, Debug, Serialize)]
pub struct Cost {}

/// What came of a restore.
#[derive(Clone, Debug, Serialize)]
pub struct Restored {
    /// The cluster's id, in hex.
    pub cluster: String,
    /// Packs read.
    pub packs: usize,
    /// Records applied.
    pub records: usize,
    /// Repositories there now.
    pub repositories: u64,
    /// Tags there now.
    pub tags: u64,
    /// Packs that could not be used, and why.
    pub skipped: Vec<Skipped>,
}

/// A pack that could not be used.
#[derive(Clone, Debug, Serialize)]
pub struct Skipped {
    /// The object's key.
    pub key: String,
    /// Why.
    pub why: String,
}

impl Archive {
    /// Opens the configured bucket, without a request; starts nothing.
    pub async fn open(config: &Config, store: Store, sign: Sign, metrics: Arc<Metrics>) -> Result<Self, Error> {
        let _ = (config, store, sign, metrics);
        unimplemented!()
    }
    /// Starts the loop that seals packs by age and size.
    pub fn start(&self, ensure: Ensure, tasks: &Tasks) {
        let _ = (ensure, tasks);
        unimplemented!()
    }
    /// The bucket's id for this node's `Member` record; `None` when switched off.
    pub fn bucket(&self) -> Option<String> {
        unimplemented!()
    }
    /// Fills a staged blob from a pack, from where it stands, by one ranged GET. `false`: no readable pack has it.
    pub async fn fill(&self, staging: &mut Staging) -> Result<bool, Error> {
        unimplemented!("{staging:?}")
    }
    /// Seals what is queued now; the packs that came of it (none when nothing was queued).
    pub async fn flush(&self) -> Result<Vec<PackInfo>, Error> {
        unimplemented!()
    }
    /// How it stands.
    pub async fn status(&self) -> Result<Status, Error> {
        unimplemented!()
    }
    /// The packs this node knows of.
    pub async fn packs(&self) -> Result<Vec<PackInfo>, Error> {
        unimplemented!()
    }
    /// What was asked of the bucket, and what it costs.
    pub async fn cost(&self) -> Result<Cost, Error> {
        unimplemented!()
    }
    /// Reads a bucket's metadata into this (empty) store; from then on its blobs are fetched on demand.
    pub async fn restore(&self, url: &str) -> Result<Restored, Error> {
        unimplemented!("{url}")
    }
}

/// SKELETON
pub fn unused(_: ClusterId) {}
