//! The connections that are up, one per peer.
//!
//! Either side may dial, and both may at once: then both keep the connection that the node with the smaller id dialled.
//! A peer that was restarted shows another `life` in its hello, and its new connection takes the old one's place.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use larder_protocol::stamp::NodeId;
use larder_protocol::vector::{Origin, VersionVector};
use tokio::sync::{Semaphore, watch};

use super::endpoint::{Connection, ROOM};

/// Images that are being kept for one peer at a time; further ones wait.
const KEEPS_MAX: usize = 16;
/// Ranges that a peer of version 1 is being sent at a time, a MiB of memory each; further requests of it wait.
const READS_MAX: usize = 1;
/// Answers that are being given to one peer at a time; further questions of it wait.
const ANSWERS_MAX: usize = 4;
/// Sync streams that one peer may have: its own, and one that is about to end.
const SYNCS_MAX: usize = 2;

/// Origins of which it is kept how far a peer knows them; more than a mesh of 128 nodes has in many lives.
pub(super) const ORIGINS_MAX: usize = 4_096;
/// How long a process whose connection gave way to another one with its key does not call: two clones take turns, and each of them is long enough to be heard.
const TURN: Duration = Duration::from_secs(1);

/// A connection that is up.
#[derive(Debug)]
pub(super) struct Link {
    pub connection: Connection,
    /// The node that dialled.
    dialler: NodeId,
    agreed: Agreed,
    since: Instant,
    /// What the peer is known to know.
    known: Mutex<VersionVector>,
    /// Everything that it knew when it was last asked is known here too, and what it writes comes as it is written.
    heard: AtomicBool,
    /// The origin of this node of which the peer's records were looked at.
    checked: Mutex<Option<Origin>>,
    /// Up to where it was asked anew for former lives of this node.
    asked: Mutex<VersionVector>,
    /// It has said that it knows something else: it is told in full what is known here.
    whole: AtomicBool,
    /// How often it was slow, broke off or lied when a blob was fetched.
    strikes: AtomicU32,
    /// Bytes of chunks that came from it, of all blobs.
    pub came: AtomicU64,
    /// Milliseconds that a chunk took from it lately; 0: none came yet.
    pub took_ms: AtomicU64,
    /// Whether it was said already that this peer writes and must not.
    said: AtomicBool,
    /// Bytes of its requests that may be here.
    pub room: Semaphore,
    pub reads: Semaphore,
    pub answers: Semaphore,
    pub syncs: Semaphore,
    pub keeps: Semaphore,
}

/// What two nodes have told each other when they met.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Agreed {
    /// The peer's life, from its hello.
    pub life: u64,
    /// The protocol version that both speak.
    pub version: u16,
}

/// The connections by peer.
#[derive(Debug, Default)]
pub(super) struct Links {
    up: Mutex<HashMap<NodeId, Arc<Link>>>,
    /// When another with this node's key took a peer's connection over.
    gave_way: Mutex<HashMap<NodeId, Instant>>,
    arrivals: watch::Sender<u64>,
}

impl Link {
    pub(super) fn new(connection: Connection, dialler: NodeId, agreed: Agreed) -> Self {
        Self {
            connection,
            dialler,
            agreed,
            since: Instant::now(),
            known: Mutex::default(),
            heard: AtomicBool::new(false),
            checked: Mutex::default(),
            asked: Mutex::default(),
            whole: AtomicBool::new(false),
            strikes: AtomicU32::new(0),
            came: AtomicU64::new(0),
            took_ms: AtomicU64::new(0),
            said: AtomicBool::new(false),
            room: Semaphore::new(ROOM),
            reads: Semaphore::new(READS_MAX),
            answers: Semaphore::new(ANSWERS_MAX),
            syncs: Semaphore::new(SYNCS_MAX),
            keeps: Semaphore::new(KEEPS_MAX),
        }
    }

    /// Takes note of what the peer knows.
    pub(super) fn knows(&self, vector: &VersionVector) {
        take_note(&mut lock(&self.known), vector.iter());
    }

    pub(super) fn known(&self) -> VersionVector {
        lock(&self.known).clone()
    }

    pub(super) fn set_heard(&self, heard: bool) {
        self.heard.store(heard, Ordering::Release);
    }

    pub(super) fn is_heard(&self) -> bool {
        self.heard.load(Ordering::Acquire)
    }

    /// Whether something is to be said of this peer that is said once for a connection.
    pub(super) fn say_once(&self) -> bool {
        !self.said.swap(true, Ordering::Relaxed)
    }

    /// What the peer has of this node's own records was looked at.
    pub(super) fn set_checked(&self, own: Origin) {
        *lock(&self.checked) = Some(own);
    }

    pub(super) fn is_checked(&self, own: &Origin) -> bool {
        lock(&self.checked).as_ref() == Some(own)
    }

    /// Whether the peer is to be asked anew for a former life of this node, of which it knows so much: once for each number.
    pub(super) fn ask_again(&self, former: Origin, upto: u64) -> bool {
        let mut asked = lock(&self.asked);
        let is_news = asked.get(&former) < upto;
        asked.advance(former, upto);
        is_news
    }

    /// Whether a hash may do for what is known here.
    pub(super) fn may_be_brief(&self) -> bool {
        !self.whole.load(Ordering::Relaxed)
    }

    pub(super) fn be_whole(&self) {
        self.whole.store(true, Ordering::Relaxed);
    }

    pub(super) fn strike(&self) {
        self.strikes.fetch_add(1, Ordering::Relaxed);
    }

    pub(super) fn strikes(&self) -> u32 {
        self.strikes.load(Ordering::Relaxed)
    }

    /// The protocol version that both sides speak: what a later one brought is not asked for.
    pub(super) fn version(&self) -> u16 {
        self.agreed.version
    }

    /// The peer's life, from its hello.
    pub(super) fn life(&self) -> u64 {
        self.agreed.life
    }

    /// How long it has been up.
    pub(super) fn age(&self) -> Duration {
        self.since.elapsed()
    }
}

impl Links {
    /// Takes up a connection, unless the one that is up shall stay; the one that goes is closed.
    pub(super) fn add(&self, link: Link) -> Option<Arc<Link>> {
        let mut links = lock(&self.up);
        let peer = link.connection.peer();
        if let Some(old) = links.get(&peer).filter(|old| !old.connection.is_closed())
            && !takes_over((link.dialler, link.agreed.life), (old.dialler, old.agreed.life))
        {
            link.connection.close("another connection is up");
            return None;
        }
        let link = Arc::new(link);
        if let Some(old) = links.insert(peer, Arc::clone(&link)) {
            old.connection.give_up_for_another();
        }
        self.arrivals.send_modify(|count| *count += 1);
        Some(link)
    }

    /// A number that grows whenever a connection comes up.
    pub(super) fn arrivals(&self) -> watch::Receiver<u64> {
        self.arrivals.subscribe()
    }

    /// Another process with this node's key has taken over the connection with a peer.
    pub(super) fn give_way(&self, peer: NodeId) {
        lock(&self.gave_way).insert(peer, Instant::now());
    }

    /// Whether it is the turn of another process with this node's key.
    pub(super) fn gives_way(&self, peer: &NodeId) -> bool {
        let gave_way = &mut *lock(&self.gave_way);
        gave_way.retain(|_, since| since.elapsed() < TURN);
        gave_way.contains_key(peer)
    }

    /// Forgets a connection that has ended.
    pub(super) fn remove(&self, link: &Arc<Link>) {
        let mut links = lock(&self.up);
        let peer = link.connection.peer();
        if links.get(&peer).is_some_and(|current| Arc::ptr_eq(current, link)) {
            links.remove(&peer);
        }
    }

    pub(super) fn get(&self, peer: &NodeId) -> Option<Arc<Link>> {
        lock(&self.up).get(peer).filter(|link| !link.connection.is_closed()).cloned()
    }

    pub(super) fn all(&self) -> Vec<Arc<Link>> {
        lock(&self.up).values().filter(|link| !link.connection.is_closed()).cloned().collect()
    }
}

/// Raises what a peer is taken to know. Of origins without end only so many count (S35): who is taken to know less is told more.
pub(super) fn take_note(known: &mut VersionVector, of: impl Iterator<Item = (Origin, u64)>) {
    for (origin, sequence) in of {
        if known.len() < ORIGINS_MAX || known.get(&origin) > 0 {
            known.advance(origin, sequence);
        }
    }
}

/// Whether a new connection takes the place of one with the same peer; each is told by who dialled, and the peer's life.
fn takes_over(new: (NodeId, u64), old: (NodeId, u64)) -> bool {
    // Another life: the old one's process is gone. The same dialler again: it knows that the old one is of no use.
    // Both have dialled: the smaller id's stays, so that both sides choose alike.
    new.1 != old.1 || new.0 <= old.0
}

pub(super) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn s35_of_origins_without_end_only_so_many_are_kept() {
        let origin = |incarnation| Origin { node: NodeId([1; 32]), incarnation };
        let mut known = VersionVector::default();
        for begin in (0..5).map(|part| part * 10_000) {
            take_note(&mut known, (begin..begin + 10_000).map(|number| (origin(number), 1)));
        }
        assert_eq!(known.len(), ORIGINS_MAX);
        take_note(&mut known, [(origin(7), 9), (origin(60_000), 9)].into_iter());
        assert_eq!((known.get(&origin(7)), known.get(&origin(60_000))), (9, 0), "those that are known move on");
    }

    #[test]
    fn both_sides_keep_the_same_of_two_connections() {
        let (small, large) = (NodeId([1; 32]), NodeId([2; 32]));
        // In whichever order a side learns of the two, the one that the smaller id dialled is left.
        for (first, second) in [(small, large), (large, small)] {
            let left = if takes_over((second, 7), (first, 7)) { second } else { first };
            assert_eq!(left, small);
        }
        assert!(takes_over((large, 8), (small, 7)), "a restarted peer's connection is the one that works");
        assert!(takes_over((large, 7), (large, 7)), "who dials again has lost the first");
    }
}
