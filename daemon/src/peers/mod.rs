//! The side gate: other nodes.
//!
//! - **Who** (`identity`, `members`, `join`): a node is its Ed25519 key; the `Member` records are the list of keys let in. A one-time
//!   token lets a new key in; a tombstone expels one.
//! - **How** (`endpoint`, `dial`, `greet`, `links`): one UDP port, QUIC, both sides proven; one connection per pair, dialled by either;
//!   requests go both ways over it.
//! - **Who may do what** (`roles`, `site`): what a reader writes counts nowhere, and it may be bounded in what it gets.
//! - **Who is alive** (`standing`, `liveness`, `pulse`): SWIM in datagrams over the connections; each member's condition and since when.
//! - **Records** (`sync`, `exchange`, `reconcile`): each side pulls what it lacks and stays subscribed. `acks`, `records`: what everyone knows, and what waits.
//! - **Placement** (`placement`): which members own a digest. **Write concern** (`quorum`, `keep`): making others have an image now.
//! - **Blobs** (`fetch`; `serve`, `swarm`, `follow`): chunk by chunk from all who have some, each checked before it goes anywhere, and passed on
//!   while the rest comes. `holder` sends a crowd to itself, `pace` says who is sent what first, `swarms` knows what is fetched.
//!
//! Invariants: a stranger gets no further than the handshake, or while a token waits, than showing it; nothing a peer says
//! becomes a path, a dial target or the size of an allocation; an address comes from a `Member` record or a token.
//!
//! Tasks: `peers accept`, `peers dial`, `peers members`, `peers pulse`, `peers placement`, `peers records`, `peers pace`, which end when the node stops; and one per connection, which end with it, so
//! that requests under way may still use it while the node stops. A panic in any of them ends the node. Locks: the members
//! and the links, both held for a look only; `admitting` (async) while a token is used. A crash leaves nothing here: all that lasts
//! is in the store.

use std::collections::HashMap;
use std::fmt;
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures_util::future::BoxFuture;
use larder_protocol::codec;
use larder_protocol::digest::Digest;
use larder_protocol::message::Hello;
use larder_protocol::record::{Key, Link, Member};
use larder_protocol::stamp::NodeId;
use larder_protocol::version;
use tokio::sync::{Notify, mpsc, watch};

use crate::config::Config;
use crate::store::{ClusterId, Commit, Needs, Staging, Store};
use crate::tasks::Tasks;
use crate::telemetry::Metrics;

mod acks;
mod clones;
mod dial;
mod endpoint;
mod error;
mod exchange;
mod fetch;
mod follow;
#[cfg(test)]
mod fuzz;
mod greet;
mod holder;
mod identity;
mod join;
mod keep;
mod leaving;
mod links;
mod liveness;
mod members;
mod own;
mod pace;
mod paths;
mod placement;
mod pulse;
mod quorum;
mod reconcile;
mod records;
mod roles;
mod serve;
mod site;
mod standing;
mod starts;
mod swarm;
mod swarms;
mod sync;
#[cfg(test)]
mod tests;
mod token;
mod turns;

pub use error::{Error, Result};
pub use identity::Identity;
pub use keep::Shortage;
pub use leaving::Marked;
pub use own::{KeyChange, KeyChanged, Moment, TellBucket};
pub use placement::Placement;
pub use roles::RoleChange;
pub use standing::{Condition, Standing};
pub use swarms::Urgency;

use acks::Acks;
use endpoint::Endpoint;
use leaving::Leaving;
use links::Links;
use members::Members;
use own::Rotation;
use pace::Pacer;
use placement::Place;
use standing::Standings;
use swarms::Swarms;

/// The setting that keeps the number of the last life.
const LIFE: &str = "peers/life";
/// How often this node's own record is mended.
const MEND_PAUSE: Duration = Duration::from_secs(60);
/// Datagrams that wait to be looked at; further ones are lost.
const DATAGRAMS_MAX: usize = 1024;

/// How often it is looked who is there.
const REVIEW: Duration = Duration::from_millis(500);
/// Brings a blob onto this disk, from wherever it is. `false`: nobody has it, or there is no room.
pub type Ensure = Arc<dyn Fn(Digest, Link) -> BoxFuture<'static, bool> + Send + Sync>;
/// How long a start waits for a peer.
const SETTLE: Duration = Duration::from_secs(1);

/// Other nodes, as the rooms above see them. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Peers {
    inner: Arc<Inner>,
}

struct Inner {
    identity: Arc<Identity>,
    store: Store,
    endpoint: Endpoint,
    members: Arc<Members>,
    links: Links,
    /// Who is alive.
    standings: Standings,
    acks: Acks,
    records: crate::config::Records,
    /// Up to where an archive knows what was deleted.
    archived: std::sync::OnceLock<Archived>,
    clones: clones::Clones,
    /// Whose knowledge of which of this node's origins was looked at.
    looked_at: std::sync::Mutex<std::collections::HashSet<(NodeId, larder_protocol::vector::Origin)>>,
    /// When another copy of this data folder was last found.
    life_begun: std::sync::Mutex<Option<std::time::Instant>>,
    tasks: Tasks,
    metrics: Arc<Metrics>,
    /// What this node says of itself.
    own: Member,
    zone: String,
    replicas: usize,
    takeover: Duration,
    placement: watch::Sender<Arc<Placement>>,
    /// What is fetched, and who was sent what.
    swarms: Swarms,
    /// Who is sent what first.
    turns: turns::Turns,
    pacer: Pacer,
    /// The newest protocol version that it speaks.
    newest: u16,
    /// Another at each start, greater than all before.
    life: u64,
    /// Rung when a member may have to be dialled at once.
    redial: Notify,
    /// Rung when a connection has come or gone, or the members have changed.
    pulse: Notify,
    /// Where the datagrams of all peers go.
    datagrams: mpsc::Sender<(NodeId, Bytes)>,
    /// Held while a token is used: how often each was shown.
    admitting: tokio::sync::Mutex<HashMap<[u8; 8], u32>>,
    /// Brings a blob onto this disk, when another node relies on it; given by `node`.
    ensure: OnceLock<Ensure>,
    leaving: Leaving,
    rotation: Rotation,
}

impl fmt::Debug for Inner {
    fn fmt(&self, to: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(to, "{:?} and its peers", self.identity.node())
    }
}

/// Up to where origins are in an archive of this node's; those that are not named need not be. Blocks.
pub type Archived = Arc<dyn Fn() -> crate::store::Result<Vec<(larder_protocol::vector::Origin, u64)>> + Send + Sync>;

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
    /// What it may do: `writer` or `reader`, and `archiver`.
    pub roles: Vec<&'static str>,
    /// `self`; `connected`; `indirect`: alive, but only others have a connection with it; `suspect`; `down`.
    pub state: &'static str,
    /// For how long it has been alive, suspect or down, as far as this node saw it.
    pub since_s: Option<u64>,
    /// Round trip time.
    pub rtt_ms: Option<f64>,
    /// Version of its program, as it wrote when it last started.
    pub version: String,
    /// The key that it has proven itself by, when that is not its first, which is its id.
    pub key: Option<String>,
    /// The protocol version that is spoken with it.
    pub protocol: Option<u16>,
    /// Records of ours that it is not known to have; 0 for a node that is not connected.
    pub behind: u64,
    /// Bytes that came from it over the connection that is up.
    pub bytes_in: Option<u64>,
    /// Bytes that went to it over the connection that is up.
    pub bytes_out: Option<u64>,
    /// How often it was slow, broke off or lied over the connection that is up.
    pub strikes: Option<u32>,
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
        let (node, introduced, member, rotation) = (identity.node(), Arc::clone(&identity), own.clone(), Rotation::new(&config.auth));
        let opened = store.run(move |store| -> Result<(Members, u64, Rotation)> {
            own::introduce(store, &introduced, member, &rotation)?;
            Ok((Members::load(store)?, begin_life(store)?, rotation))
        });
        let (members, life, rotation) = opened.await?;
        let members = Arc::new(members);
        let gate = Arc::clone(&members);
        let acks = store.run(Acks::load).await?;
        store.limit_records(config.records.per_node_max);
        let endpoint = Endpoint::open(config.peers.listen, &identity, Arc::new(move |key| gate.may_enter(key)))?;
        let (datagrams, heard) = mpsc::channel(DATAGRAMS_MAX);
        let inner = Inner {
            identity,
            store,
            endpoint,
            members,
            links: Links::default(),
            standings: Standings::default(),
            acks,
            records: config.records.clone(),
            archived: Default::default(),
            clones: Default::default(),
            looked_at: Default::default(),
            life_begun: Default::default(),
            tasks: tasks.clone(),
            metrics,
            zone: own.zone.clone(),
            own,
            replicas: config.peers.replicas,
            takeover: config.peers.takeover,
            placement: watch::Sender::new(Arc::new(Placement::new(node, Vec::new(), (1, Duration::ZERO), Instant::now()))),
            swarms: Swarms::default(),
            turns: turns::Turns::new(),
            pacer: Pacer::new(config.peers.bandwidth, config.peers.bandwidth_zone),
            newest: newest_version(),
            life,
            redial: Notify::new(),
            pulse: Notify::new(),
            datagrams,
            admitting: tokio::sync::Mutex::default(),
            ensure: OnceLock::new(),
            leaving: Leaving::default(),
            rotation,
        };
        let peers = Self { inner: Arc::new(inner) };
        peers.inner.review();
        tasks.core("peers placement", follow_placement(peers.clone()));
        tasks.core("peers accept", greet::accept(peers.clone()));
        tasks.core("peers dial", dial::dial(peers.clone()));
        tasks.core("peers members", follow_members(peers.clone()));
        tasks.core("peers pulse", pulse::follow(peers.clone(), heard));
        tasks.core("peers records", records::keep(peers.clone()));
        tasks.core("peers keys", own::follow(peers.clone()));
        let pacing = peers.clone();
        tasks.core("peers pace", async move {
            let stopping = pacing.inner.tasks.stopping();
            pacing.inner.pacer.run(stopping.cancelled()).await;
        });
        Ok(peers)
    }

    /// Has what was deleted told by an archive, up to where `archived` says, before it is forgotten.
    pub fn forget_after(&self, archived: Archived) {
        let _ = self.inner.archived.set(archived);
    }

    /// Waits a moment until this node has heard one of its peers out, when it has any in reach: what it writes then has its number from
    /// a data folder that is known to be the only one of its kind. Without a peer nothing tells; then the first one that is met does.
    pub async fn settle(&self) {
        let inner = &self.inner;
        if inner.members.others().iter().all(|(_, member)| member.addresses.is_empty()) {
            return;
        }
        let deadline = tokio::time::Instant::now() + SETTLE;
        let settled = || inner.links.all().iter().any(|link| link.is_checked(&inner.store.origin()));
        while !settled() && tokio::time::Instant::now() < deadline {
            tokio::time::sleep(SETTLE / 100).await;
        }
    }

    /// Fills a staged blob from peers that have some of it, from where it stands; every chunk is checked before it goes anywhere. When a
    /// source dies or lies, the others go on. `false`: nobody has what is missing; what came stays.
    ///
    /// # Errors
    /// `Store`: this disk refused.
    pub async fn fill(&self, staging: &mut Staging, urgency: &Urgency) -> Result<bool> {
        fetch::fill(&self.inner, staging, urgency).await
    }

    /// From now on other nodes may ask this one to have a blob, and `ensure` brings it.
    pub fn start_keeping(&self, ensure: Ensure) {
        let _ = self.inner.ensure.set(ensure);
    }

    /// Makes `copies` other nodes have an image, its records and each of its blobs, as durably as they have anything; the owners of each blob
    /// first. Returns when they have it.
    ///
    /// Cancel-safe: what they have fetched by then stays with them.
    ///
    /// # Errors
    /// `Shortage`: there are fewer other members, which is said at once; or too few have all of it at `until`.
    pub async fn keep(
        &self,
        manifest: Digest,
        needs: Needs,
        copies: usize,
        until: tokio::time::Instant,
    ) -> std::result::Result<(), Shortage> {
        keep::keep(&self.inner, manifest, needs, copies, until).await
    }

    /// How many other members there are.
    pub fn others(&self) -> usize {
        self.inner.members.others().len()
    }

    /// How many other members there are that may write.
    pub fn other_writers(&self) -> usize {
        self.inner.other_writers()
    }

    /// Who owns what, now and as it changes.
    pub fn placement(&self) -> watch::Receiver<Arc<Placement>> {
        self.inner.placement.subscribe()
    }

    /// Whether a blob may be about to be dropped here.
    pub fn is_leaving(&self, digest: &Digest) -> bool {
        self.inner.leaving.has(digest)
    }

    /// How many copies each blob shall have.
    pub fn replicas(&self) -> usize {
        self.inner.replicas
    }

    /// A number that grows whenever a connection comes up.
    pub fn arrivals(&self) -> watch::Receiver<u64> {
        self.inner.links.arrivals()
    }

    /// Whether this node is one of the owners of a digest.
    pub fn is_owner(&self, digest: &Digest) -> bool {
        self.inner.placement().is_owner(digest)
    }

    /// Says that blobs may be about to be dropped here: for as long as the marks live, this node vouches for none of them.
    pub fn mark_leaving(&self, digests: &[Digest]) -> Marked {
        self.inner.leaving.mark(digests)
    }

    /// For each blob, whether all of its owners are other nodes that vouch for it now: they have it, and are not about to drop it
    /// themselves. Members are asked at once, each for what it owns.
    pub async fn kept_by_owners(&self, digests: &[Digest]) -> Vec<bool> {
        let placement = self.inner.placement();
        let owners: Vec<_> = digests.iter().map(|digest| placement.owners(digest)).collect();
        let own = self.inner.identity.node();
        let vouching = keep::vouching(&self.inner, digests, &owners).await;
        let kept = |(owners, vouching): (Vec<_>, usize)| !owners.is_empty() && !owners.contains(&own) && vouching == owners.len();
        owners.into_iter().zip(vouching).map(kept).collect()
    }

    /// For each blob, whether an owner that is another node vouches for it now.
    pub async fn kept_by_another(&self, digests: &[Digest]) -> Vec<bool> {
        let placement = self.inner.placement();
        let owners: Vec<_> = digests.iter().map(|digest| placement.owners(digest)).collect();
        keep::vouching(&self.inner, digests, &owners).await.into_iter().map(|count| count > 0).collect()
    }

    /// The members that may have written what is not known here: those out of reach, and those not heard out yet. By name.
    pub fn unheard(&self) -> Vec<String> {
        let inner = &self.inner;
        let (ours, this) = (inner.store.vector(), inner.identity.node());
        let is_heard = |node: &NodeId| inner.links.get(node).is_some_and(|link| link.is_heard() && ours.covers(&link.known()));
        // What a reader writes is not taken, so nobody need hear it.
        let others = inner.members.live().into_iter().filter(|(node, _)| *node != this && inner.members.roles(node).is_writer());
        others.filter(|(node, _)| !is_heard(node)).map(|(node, member)| format!("{} ({node:?})", member.name)).collect()
    }

    /// Whether this node comes first, of those in reach that may write, in the order of owners of a digest.
    pub fn is_first_for(&self, digest: &Digest) -> bool {
        let inner = &self.inner;
        let this = inner.identity.node();
        let in_reach = |node: &NodeId| *node == this || inner.links.get(node).is_some();
        let mut ranked = inner.placement().ranked(digest).into_iter();
        ranked.find(|node| inner.members.roles(node).is_writer() && in_reach(node)) == Some(this)
    }

    /// How every other member is, and since when.
    pub fn standings(&self) -> HashMap<NodeId, Standing> {
        self.inner.standings.all()
    }

    /// Whether nobody has heard a node for so long.
    pub fn is_away(&self, node: &NodeId, for_so_long: Duration) -> bool {
        let standing = self.inner.standings.of(node);
        standing.and_then(|standing| standing.down_for(std::time::Instant::now())).is_some_and(|away| away >= for_so_long)
    }

    /// Changes whenever a member's condition does, or a member comes or goes.
    pub fn standing_changes(&self) -> watch::Receiver<u64> {
        self.inner.standings.changes()
    }

    /// Every member, this node included.
    pub fn list(&self) -> Vec<PeerStatus> {
        let inner = &self.inner;
        let ours = inner.store.vector();
        let status = |(node, member): (NodeId, Member)| {
            let link = inner.links.get(&node);
            let standing = inner.standings.of(&node);
            let condition = standing.map_or(Condition::Down, |standing| standing.condition);
            let state = match (&link, condition) {
                _ if node == inner.identity.node() => "self",
                (Some(_), Condition::Alive | Condition::Down) => "connected",
                (None, Condition::Alive) => "indirect",
                (_, Condition::Suspect) => "suspect",
                (None, Condition::Down) => "down",
            };
            let traffic = link.as_ref().map(|link| link.connection.traffic());
            PeerStatus {
                node: node.to_string(),
                name: member.name,
                zone: member.zone,
                addresses: member.addresses,
                roles: roles::words(inner.members.roles(&node)),
                state,
                since_s: standing.map(|standing| standing.since.elapsed().as_secs()),
                rtt_ms: link.as_ref().map(|link| link.connection.rtt().as_secs_f64() * 1000.0),
                version: member.version,
                key: inner.members.keys(&node).map(|keys| keys.used).filter(|key| *key != node).map(|key| key.to_string()),
                protocol: link.as_ref().map(|link| link.version()),
                behind: link.as_ref().map_or(0, |link| link.known().behind(&ours)),
                bytes_in: traffic.map(|traffic| traffic.bytes_in),
                bytes_out: traffic.map(|traffic| traffic.bytes_out),
                strikes: link.map(|link| link.strikes()),
            }
        };
        inner.members.live().into_iter().map(status).collect()
    }

    /// A one-time join token that is good for `expires`; whoever joins with it has this role.
    ///
    /// # Errors
    /// `TooManyTokens`, `Store`.
    pub async fn token(&self, expires: Duration, role: RoleChange) -> Result<String> {
        join::issue(&self.inner, expires, role).await
    }

    /// Changes what a member may do, this node included; what it may do then, in words.
    ///
    /// # Errors
    /// `LastWriter`, `Store`: this node is a reader itself, or its disk refused.
    pub async fn change_role(&self, node: NodeId, change: RoleChange) -> Result<Vec<&'static str>> {
        let roles = roles::change(&self.inner, node, change).await?;
        self.refresh()?;
        Ok(roles::words(roles))
    }

    /// Whether this node may archive what others wrote.
    pub fn is_archiver(&self) -> bool {
        self.may_archive(&self.inner.identity.node())
    }

    /// Whether a member may archive what others wrote.
    pub fn may_archive(&self, node: &NodeId) -> bool {
        let roles = self.inner.members.roles(node);
        roles.is_writer() && roles.is_archiver()
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

    /// Has this node's bucket told when its key is changed.
    pub fn tell_bucket_by(&self, tell: TellBucket) {
        self.inner.rotation.tell_bucket_by(tell);
    }

    /// Changes this node's key without a stop; doing it again goes on with a change that waits.
    ///
    /// # Errors
    /// `TooManyKeys`, `Key`, `Store`.
    pub async fn change_key(&self, how: KeyChange) -> Result<KeyChanged> {
        own::change(&self.inner, how).await
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
        inner.review();
        for link in inner.links.all() {
            let peer = link.connection.peer();
            if !inner.members.is_member(&peer) {
                tracing::info!(?peer, "no member any more: disconnecting");
                link.connection.close("you are no member of this cluster");
            } else if !inner.members.keys(&peer).is_some_and(|keys| keys.proves(&link.connection.key())) {
                tracing::info!(?peer, "it has another key now: connecting anew");
                link.connection.close("you have another key now");
            }
        }
        Ok(())
    }
}

impl Inner {
    fn placement(&self) -> Arc<Placement> {
        Arc::clone(&self.placement.borrow())
    }

    fn other_writers(&self) -> usize {
        self.members.others().iter().filter(|(node, _)| self.members.roles(node).is_writer()).count()
    }

    /// Looks at who is there, and tells who listens when other members count than before.
    fn review(&self) {
        let (now, own) = (Instant::now(), self.identity.node());
        let down = |standing: Standing| (standing.condition == Condition::Down).then_some(standing.since);
        let away = |node: &NodeId| self.standings.of(node).filter(|_| self.links.get(node).is_none()).and_then(down);
        // Who may not have everything can own nothing.
        let owns = |node: &NodeId| site::of(self, node).is_ok_and(|site| site.is_none());
        let live = self.members.live().into_iter().filter(|(node, _)| owns(node));
        let places = live.map(|(node, member)| Place { node, zone: member.zone, away: away(&node) }).collect();
        let placement = Placement::new(own, places, (self.replicas, self.takeover), now);
        self.placement.send_if_modified(|before| {
            let changed = **before != placement;
            if changed {
                *before = Arc::new(placement);
            }
            changed
        });
    }

    fn hello(&self) -> Hello {
        Hello {
            cluster: self.store.cluster(),
            life: self.life,
            program: env!("CARGO_PKG_VERSION").to_owned(),
            oldest: version::OLDEST,
            newest: self.newest,
        }
    }
}

#[cfg(not(test))]
fn newest_version() -> u16 {
    version::NEWEST
}

/// What a node that is started now speaks; tests make it an older one.
#[cfg(test)]
fn newest_version() -> u16 {
    tests::NEWEST.try_with(|newest| *newest).unwrap_or(version::NEWEST)
}

/// The number of the life that begins now, kept for the next start.
fn begin_life(store: &Store) -> Result<u64> {
    let last = store.setting(LIFE)?.and_then(|row| codec::decode::<u64>(&row).ok()).unwrap_or(0);
    // The time alone would do but for clocks that start in 1970.
    let life = members::now_ms().max(last.saturating_add(1));
    store.commit(Commit { settings: vec![(LIFE.to_owned(), Some(codec::encode(&life)))], ..Commit::default() })?;
    Ok(life)
}

/// Follows who comes and goes.
async fn follow_placement(peers: Peers) {
    let stopping = peers.inner.tasks.stopping();
    while stopping.run_until_cancelled(tokio::time::sleep(REVIEW)).await.is_some() {
        peers.inner.review();
    }
}

/// Follows the `Member` records as they change.
async fn follow_members(peers: Peers) {
    let stopping = peers.inner.tasks.stopping();
    let mut may_mend = Instant::now();
    let mut changes = peers.inner.store.changes();
    loop {
        tokio::select! {
            _ = stopping.cancelled() => return,
            changed = changes.changed() => if changed.is_err() { return },
        }
        let before = peers.inner.members.live();
        let refreshing = peers.clone();
        match peers.inner.store.run(move |_| refreshing.refresh()).await {
            Ok(()) if peers.inner.members.live() != before => {
                peers.inner.redial.notify_one();
                peers.inner.pulse.notify_one();
            }
            Ok(()) => {}
            Err(error) => tracing::warn!(%error, "read the members"),
        }
        if Instant::now() < may_mend {
            continue;
        }
        let mending = peers.clone();
        match peers.inner.store.run(move |_| own::mend(&mending.inner)).await {
            Ok(false) => {}
            Ok(true) => {
                // Two nodes with one key would write against each other for ever.
                may_mend = Instant::now() + MEND_PAUSE;
                tracing::warn!("this node's own member record was changed by another node; it is written anew");
            }
            Err(error) => tracing::warn!(%error, "write this node's member record anew"),
        }
    }
}
