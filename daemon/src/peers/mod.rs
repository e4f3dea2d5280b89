//! The side gate: other nodes.
//!
//! - **Who** (`identity`, `members`, `join`): a node is its Ed25519 key; the `Member` records are the list of keys let in. A one-time
//!   token lets a new key in; a tombstone expels one.
//! - **How** (`endpoint`, `dial`, `greet`, `links`): one UDP port, QUIC, both sides proven; one connection per pair, dialled by either;
//!   requests go both ways over it.
//! - **Records** (`sync`, `exchange`): each side pulls what it lacks and stays subscribed.
//! - **Blobs** (`fetch`, `serve`): who has it, then chunk by chunk, each checked before it goes anywhere.
//! - **Placement** (`placement`): which members own a digest.
//!
//! Invariants: a stranger gets no further than the handshake, or while a token waits, than showing it; nothing a peer says
//! becomes a path, a dial target or the size of an allocation; an address comes from a `Member` record or a token.
//!
//! Tasks: `peers accept`, `peers dial`, `peers members`, which end when the node stops; and one per connection, which end with it, so
//! that requests under way may still use it while the node stops. A panic in any of them ends the node. Locks: the members
//! and the links, both held for a look only; `admitting` (async) while a token is used. A crash leaves nothing here: all that lasts
//! is in the store.

use std::sync::Arc;
use std::time::Duration;

use larder_protocol::digest::Digest;
use larder_protocol::message::Hello;
use larder_protocol::record::{Key, Member, Value};
use larder_protocol::stamp::NodeId;
use larder_protocol::version;
use tokio::sync::Notify;

use crate::config::Config;
use crate::store::{ClusterId, Commit, Staging, Store};
use crate::tasks::Tasks;
use crate::telemetry::Metrics;

mod dial;
mod endpoint;
mod error;
mod exchange;
mod fetch;
mod greet;
mod identity;
mod join;
mod links;
mod members;
mod placement;
mod serve;
mod sync;
#[cfg(test)]
mod tests;
mod token;

pub use error::{Error, Result};
pub use identity::Identity;

use endpoint::Endpoint;
use links::Links;
use members::Members;

/// Other nodes, as the rooms above see them. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Peers {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    identity: Arc<Identity>,
    store: Store,
    endpoint: Endpoint,
    members: Arc<Members>,
    links: Links,
    tasks: Tasks,
    metrics: Arc<Metrics>,
    /// What this node says of itself.
    own: Member,
    zone: String,
    replicas: usize,
    /// Random, anew at each start.
    life: u64,
    /// Rung when a member may have to be dialled at once.
    redial: Notify,
    admitting: tokio::sync::Mutex<()>,
}

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
    /// Records of ours that it is not known to have; 0 for a node that is not connected.
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
    /// Opens the UDP port, writes this node's `Member` record when it changed, and starts to take calls, to dial the members
    /// and to sync.
    ///
    /// # Errors
    /// `Listen`: the port is not to be had.
    pub async fn start(
        config: &Config,
        bucket: Option<String>,
        identity: Arc<Identity>,
        store: Store,
        tasks: &Tasks,
        metrics: Arc<Metrics>,
    ) -> Result<Self> {
        let own = Member {
            name: config.node.name.clone(),
            zone: config.node.zone.clone(),
            addresses: config.peers.advertise.clone(),
            bucket,
            version: env!("CARGO_PKG_VERSION").to_owned(),
        };
        let (node, member) = (identity.node(), own.clone());
        let members = store.run(move |store| -> Result<Members> {
            let key = Key::Member(node);
            let value = Some(Value::Member(member));
            match store.record(&key)? {
                // S29: an expelled node that wrote itself anew could come back through a member that has not heard yet.
                Some(record) if record.value.is_none() => tracing::warn!(
                    "this node was removed from its cluster: nobody will talk to it; join again with a token, or start with an empty data folder"
                ),
                Some(record) if record.value == value => {}
                _ => drop(store.commit(Commit { records: vec![(key, value)], ..Commit::default() })?),
            }
            Members::load(store)
        });
        let members = Arc::new(members.await?);
        let gate = Arc::clone(&members);
        let endpoint = Endpoint::open(config.peers.listen, &identity, Arc::new(move |node| gate.may_enter(node)))?;
        let inner = Inner {
            identity,
            store,
            endpoint,
            members,
            links: Links::default(),
            tasks: tasks.clone(),
            metrics,
            zone: own.zone.clone(),
            own,
            replicas: config.peers.replicas,
            life: uuid::Uuid::new_v4().as_u64_pair().0,
            redial: Notify::new(),
            admitting: tokio::sync::Mutex::new(()),
        };
        let peers = Self { inner: Arc::new(inner) };
        tasks.core("peers accept", greet::accept(peers.clone()));
        tasks.core("peers dial", dial::dial(peers.clone()));
        tasks.core("peers members", follow_members(peers.clone()));
        Ok(peers)
    }

    /// Fills a staged blob from peers that have it, from where it stands; every chunk is checked before it is appended. When a
    /// source dies or lies, the next one goes on. `false`: no peer has it whole; what was appended stays.
    ///
    /// # Errors
    /// `Store`: this disk refused.
    pub async fn fill(&self, staging: &mut Staging) -> Result<bool> {
        fetch::fill(&self.inner, staging).await
    }

    /// Whether this node is one of the owners of a digest.
    pub fn is_owner(&self, digest: &Digest) -> bool {
        placement::owners(digest, &self.inner.members.places(), self.inner.replicas).contains(&self.inner.identity.node())
    }

    /// The members that may have written what is not known here: those out of reach, and those not heard out yet. By name.
    pub fn unheard(&self) -> Vec<String> {
        let inner = &self.inner;
        let (ours, this) = (inner.store.vector(), inner.identity.node());
        let is_heard = |node: &NodeId| inner.links.get(node).is_some_and(|link| link.is_heard() && ours.covers(&link.known()));
        let others = inner.members.live().into_iter().filter(|(node, _)| *node != this);
        others.filter(|(node, _)| !is_heard(node)).map(|(node, member)| format!("{} ({node:?})", member.name)).collect()
    }

    /// Whether this node comes first, of those in reach, in the order of owners of a digest.
    pub fn is_first_for(&self, digest: &Digest) -> bool {
        let inner = &self.inner;
        let this = inner.identity.node();
        let mut places = inner.members.places();
        places.retain(|place| place.node == this || inner.links.get(&place.node).is_some());
        placement::owners(digest, &places, 1).first().is_none_or(|first| *first == this)
    }

    /// Every member, this node included.
    pub fn list(&self) -> Vec<PeerStatus> {
        let inner = &self.inner;
        let ours = inner.store.vector();
        let status = |(node, member): (NodeId, Member)| {
            let link = inner.links.get(&node);
            let state = if node == inner.identity.node() {
                "self"
            } else if link.is_some() {
                "connected"
            } else {
                "unreachable"
            };
            PeerStatus {
                node: node.to_string(),
                name: member.name,
                zone: member.zone,
                addresses: member.addresses,
                state,
                rtt_ms: link.as_ref().map(|link| link.connection.rtt().as_secs_f64() * 1000.0),
                behind: link.map_or(0, |link| link.known().behind(&ours)),
            }
        };
        inner.members.live().into_iter().map(status).collect()
    }

    /// A one-time join token that is good for `expires`.
    ///
    /// # Errors
    /// `TooManyTokens`, `Store`.
    pub async fn token(&self, expires: Duration) -> Result<String> {
        join::issue(&self.inner, expires).await
    }

    /// Joins the cluster of a token. Doing it again with the same token is harmless.
    ///
    /// # Errors
    /// `Token`, `TokenExpired`, `OwnToken`, `HasPeers`, `Unreachable`, `NotLetIn`, `Refused`.
    pub async fn join(&self, token: &str) -> Result<Joined> {
        join::join(self, token).await
    }

    /// Expels a node: its connections end at once, here and wherever the record comes; `false` when it is no member.
    ///
    /// # Errors
    /// `Oneself`, `Store`.
    pub async fn remove(&self, node: NodeId) -> Result<bool> {
        let inner = &self.inner;
        if node == inner.identity.node() {
            return Err(Error::Oneself);
        }
        if !inner.members.is_member(&node) {
            return Ok(false);
        }
        inner.store.run(move |store| store.commit(Commit { records: vec![(Key::Member(node), None)], ..Commit::default() })).await?;
        self.refresh()?;
        Ok(true)
    }

    /// The member whose id a person typed: whole, with or without dashes, or its first letters.
    ///
    /// # Errors
    /// `UnknownMember`, `AmbiguousMember`.
    pub fn resolve(&self, text: &str) -> Result<NodeId> {
        self.inner.members.resolve(text)
    }

    /// Says goodbye to every peer and closes the port.
    pub async fn close(&self) {
        self.inner.endpoint.close().await;
    }

    /// Starts a task that ends with its connection, and not when the node begins to stop; a panic in it ends the node.
    fn spawn(&self, task: impl Future<Output = ()> + Send + 'static) {
        let stop = self.inner.tasks.stopping();
        tokio::spawn(async move {
            if let Err(error) = tokio::spawn(task).await
                && error.is_panic()
            {
                tracing::error!(task = "peer", "a task panicked: stopping the node");
                stop.cancel();
            }
        });
    }

    /// Reads the members again, and ends the connections of those who are none any more.
    fn refresh(&self) -> Result<()> {
        let inner = &self.inner;
        inner.members.refresh(&inner.store)?;
        for link in inner.links.all() {
            if !inner.members.is_member(&link.connection.peer()) {
                tracing::info!(peer = ?link.connection.peer(), "no member any more: disconnecting");
                link.connection.close("you are no member of this cluster");
            }
        }
        Ok(())
    }
}

impl Inner {
    fn hello(&self) -> Hello {
        Hello {
            cluster: self.store.cluster(),
            life: self.life,
            program: env!("CARGO_PKG_VERSION").to_owned(),
            oldest: version::OLDEST,
            newest: version::NEWEST,
        }
    }
}

/// Follows the `Member` records as they change.
async fn follow_members(peers: Peers) {
    let stopping = peers.inner.tasks.stopping();
    let mut changes = peers.inner.store.changes();
    loop {
        tokio::select! {
            _ = stopping.cancelled() => return,
            changed = changes.changed() => if changed.is_err() { return },
        }
        let before = peers.inner.members.live();
        let refreshing = peers.clone();
        match peers.inner.store.run(move |_| refreshing.refresh()).await {
            Ok(()) if peers.inner.members.live() != before => peers.inner.redial.notify_one(),
            Ok(()) => {}
            Err(error) => tracing::warn!(%error, "read the members"),
        }
    }
}
