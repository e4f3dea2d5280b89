//! The back office: management over a local socket; metrics and health on the front listener.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::BoxFuture;
use http::{Request, Response};
use hyper::body::Incoming;

use crate::archive;
use crate::peers::{Joined, PeerStatus};
use crate::store::Store;
use crate::tasks::Tasks;
use crate::telemetry::Metrics;

/// Commands that reach beyond the store; implemented by `node`. Errors are full sentences for people (`anyhow` chains, shown with `{:#}`).
pub trait Operations: Send + Sync + 'static {
    /// See the name.
    fn token(&self, expires: Duration) -> BoxFuture<'_, anyhow::Result<String>>;
    /// See the name.
    fn join<'a>(&'a self, token: &'a str) -> BoxFuture<'a, anyhow::Result<Joined>>;
    /// Every member.
    fn peers(&self) -> Vec<PeerStatus>;
    /// Expels; the text is an id or a prefix of one.
    fn remove_peer<'a>(&'a self, node: &'a str) -> BoxFuture<'a, anyhow::Result<()>>;
    /// See the name.
    fn archive_status(&self) -> BoxFuture<'_, anyhow::Result<archive::Status>>;
    /// See the name.
    fn archive_flush(&self) -> BoxFuture<'_, anyhow::Result<Vec<archive::PackInfo>>>;
    /// See the name.
    fn archive_packs(&self) -> BoxFuture<'_, anyhow::Result<Vec<archive::PackInfo>>>;
    /// See the name.
    fn archive_cost(&self) -> BoxFuture<'_, anyhow::Result<archive::Cost>>;
    /// See the name.
    fn restore<'a>(&'a self, url: &'a str) -> BoxFuture<'a, anyhow::Result<archive::Restored>>;
    /// Whether the node answers requests and its store is open.
    fn ready(&self) -> bool;
}

/// What `larder status` says of the node itself.
#[derive(Clone, Debug)]
pub struct About {
    /// The node's id.
    pub node: larder_protocol::stamp::NodeId,
    /// Its name.
    pub name: String,
    /// Its zone.
    pub zone: String,
}

/// Serves `/livez`, `/readyz` and `/metrics` for the front door; anything else is 404.
pub fn public(operations: Arc<dyn Operations>, metrics: Arc<Metrics>) -> crate::registry::Elsewhere {
    let _ = (operations, metrics);
    Arc::new(|request: Request<Incoming>| -> BoxFuture<'static, Response<crate::registry::Body>> {
        let _ = request;
        unimplemented!()
    })
}

/// Serves the management API on `<data-dir>/larder.sock` (0600) until the tasks are told to stop, and removes the socket then.
pub fn start(socket: &Path, about: About, store: Store, operations: Arc<dyn Operations>, tasks: &Tasks) -> std::io::Result<()> {
    let _ = (socket, about, store, operations, tasks);
    unimplemented!()
}
