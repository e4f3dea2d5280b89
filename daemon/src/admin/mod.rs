//! The back office: management over a local socket; health and metrics on the front listener.
//!
//! [`public()`] answers what load balancers and Prometheus ask on the TCP listener. [`start`] serves the management API, JSON over
//! HTTP/1.1, on `<data-dir>/larder.sock`: the `larder` command is its only client. Who may open the socket is who may manage the
//! node; the file system decides that (mode 0600 in a folder of mode 0700), so there is no other authentication.
//!
//! What the store knows is read from it; whatever reaches further (other nodes, the bucket) is asked of
//! [`Operations`], which `node` implements, so that this room knows neither peers nor archive. A command that was
//! begun is carried through, also when the person who gave it closes the terminal: half a restore helps nobody.
//!
//! # What holds
//!
//! - A request's body has at most 64 KiB, a list at most 100,000 entries: what is left out is named in a `Link`.
//! - The socket file appears with its final permissions, in one step, and a file left by a killed daemon is
//!   replaced in the same step.
//! - Nothing here is logged as a failure of the node: who asks gets the whole chain of causes as the answer.
//!
//! One core task, `admin`, accepts connections and owns them; no locks. A crash leaves the socket file behind, which the
//! next start replaces.

use std::sync::Arc;
use std::time::Duration;

use futures_util::future::BoxFuture;

use crate::age::Identity;
use crate::archive;
use crate::auth::Auth;
use crate::peers::{Joined, KeyChange, KeyChanged, PeerStatus, RoleChange};
use crate::telemetry::Risk;
use crate::upkeep;

mod access;
mod api;
mod aside;
mod public;
mod socket;
mod transfer;

pub use public::public;
pub use socket::start;
pub(crate) use transfer::{BLOBS_HEADER, IMAGES_HEADER, TAIL_HEADER};

/// Commands that reach beyond the store; implemented by `node`. Errors are full sentences for people (`anyhow` chains, shown with `{:#}`).
pub trait Operations: Send + Sync + 'static {
    /// Makes a one-time join token that is good for `expires`, for a node of this role.
    fn token(&self, expires: Duration, role: RoleChange) -> BoxFuture<'_, anyhow::Result<String>>;
    /// Changes what a member may do; the text is an id or a prefix of one. What it may do then.
    fn change_role<'a>(&'a self, node: &'a str, change: RoleChange) -> BoxFuture<'a, anyhow::Result<Vec<&'static str>>>;
    /// Bounds the repositories that a node may have, or lets it have all again; the text is an id or a prefix of one.
    fn set_site<'a>(&'a self, node: &'a str, repositories: Option<Vec<crate::glob::Glob>>) -> BoxFuture<'a, anyhow::Result<()>>;
    /// Joins the cluster of a token.
    fn join<'a>(&'a self, token: &'a str) -> BoxFuture<'a, anyhow::Result<Joined>>;
    /// Every member, this node included. Does not block.
    fn peers(&self) -> Vec<PeerStatus>;
    /// Expels a node; the text is an id or a prefix of one.
    fn remove_peer<'a>(&'a self, node: &'a str) -> BoxFuture<'a, anyhow::Result<()>>;
    /// Changes this node's own key.
    fn change_key(&self, how: KeyChange) -> BoxFuture<'_, anyhow::Result<KeyChanged>>;
    /// How the archive stands: what waits, what is in the bucket.
    fn archive_status(&self) -> BoxFuture<'_, anyhow::Result<archive::Status>>;
    /// Seals what waits; the packs that came of it.
    fn archive_flush(&self) -> BoxFuture<'_, anyhow::Result<Vec<archive::PackInfo>>>;
    /// The packs that this node knows of.
    fn archive_packs(&self) -> BoxFuture<'_, anyhow::Result<Vec<archive::PackInfo>>>;
    /// The ledger of requests to the bucket, and what they cost.
    fn archive_cost(&self) -> BoxFuture<'_, anyhow::Result<archive::Cost>>;
    /// Lays out a file with these images.
    fn archive_export(&self, choices: Vec<archive::Choice>) -> BoxFuture<'_, anyhow::Result<archive::Export>>;
    /// Takes in such a file of `size` bytes, of which the last `tail` come first.
    fn archive_import(&self, size: u64, tail: u64, stream: archive::Incoming) -> BoxFuture<'_, anyhow::Result<archive::Imported>>;
    /// Reads a bucket's metadata into this empty node; returns when pulls are served.
    fn restore<'a>(&'a self, url: &'a str, options: archive::RestoreOptions) -> BoxFuture<'a, anyhow::Result<archive::Restored>>;
    /// How far the blobs of a restore have come.
    fn restoring(&self) -> BoxFuture<'_, anyhow::Result<archive::Progress>>;
    /// What it takes to thaw what is frozen and not here; begins it, when a tier is named.
    fn archive_thaw(&self, request: archive::ThawRequest) -> BoxFuture<'_, anyhow::Result<archive::ThawTold>>;
    /// Restores some images to a temporary place.
    fn drill(&self, url: Option<String>, images: usize, identities: Vec<Arc<Identity>>) -> BoxFuture<'_, anyhow::Result<archive::Drilled>>;
    /// Writes a checkpoint now; its key.
    fn archive_checkpoint(&self) -> BoxFuture<'_, anyhow::Result<String>>;
    /// Compares the bucket with what the records tell of it.
    fn archive_verify(&self, subset: Option<archive::Subset>, mend: bool) -> BoxFuture<'_, anyhow::Result<archive::Verified>>;
    /// Says what compaction would do now, and at what price.
    fn archive_plan_compaction(&self) -> BoxFuture<'_, anyhow::Result<archive::Compaction>>;
    /// Compacts now.
    fn archive_compact(&self) -> BoxFuture<'_, anyhow::Result<archive::Compaction>>;
    /// Forgets what the bucket held; how many packs.
    fn archive_start_over(&self) -> BoxFuture<'_, anyhow::Result<u64>>;
    /// Does a round of garbage collection, or says what it would do.
    fn gc(&self, dry_run: bool) -> BoxFuture<'_, anyhow::Result<upkeep::Report>>;
    /// Reads everything that is kept and compares it with what it was.
    fn scrub(&self) -> BoxFuture<'_, anyhow::Result<upkeep::Scrubbed>>;
    /// What would be lost with this node. Does not block.
    fn risk(&self) -> Risk;
    /// Whether the node answers requests and its store is open. Does not block.
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

/// The handles behind every answer.
struct Office {
    about: About,
    store: crate::store::Store,
    auth: Auth,
    operations: Arc<dyn Operations>,
    started: std::time::Instant,
}
