//! The connections that are up, one per peer.
//!
//! Either side may dial, and both may at once: then both keep the connection that the node with the smaller id dialled.
//! A peer that was restarted shows another `life` in its hello, and its new connection takes the old one's place.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use larder_protocol::stamp::NodeId;
use larder_protocol::vector::VersionVector;

use super::endpoint::Connection;

/// A connection that is up.
#[derive(Debug)]
pub(super) struct Link {
    pub connection: Connection,
    /// The node that dialled.
    dialler: NodeId,
    /// The peer's, from its hello.
    life: u64,
    /// What the peer is known to know.
    known: Mutex<VersionVector>,
}

/// The connections by peer.
#[derive(Debug, Default)]
pub(super) struct Links(Mutex<HashMap<NodeId, Arc<Link>>>);

impl Link {
    pub(super) fn new(connection: Connection, dialler: NodeId, life: u64) -> Self {
        Self { connection, dialler, life, known: Mutex::default() }
    }

    /// Takes note of what the peer knows.
    pub(super) fn knows(&self, vector: &VersionVector) {
        lock(&self.known).merge(vector);
    }

    pub(super) fn known(&self) -> VersionVector {
        lock(&self.known).clone()
    }
}

impl Links {
    /// Takes up a connection, unless the one that is up shall stay; the one that goes is closed.
    pub(super) fn add(&self, link: Link) -> Option<Arc<Link>> {
        let mut links = lock(&self.0);
        let peer = link.connection.peer();
        if let Some(old) = links.get(&peer).filter(|old| !old.connection.is_closed() && old.life == link.life) {
            // Ours or theirs: the smaller of the two ids. The same dialler twice: the later one.
            if old.dialler < link.dialler {
                link.connection.close("another connection is up");
                return None;
            }
        }
        let link = Arc::new(link);
        if let Some(old) = links.insert(peer, Arc::clone(&link)) {
            old.connection.close("another connection has taken its place");
        }
        Some(link)
    }

    /// Forgets a connection that has ended.
    pub(super) fn remove(&self, link: &Arc<Link>) {
        let mut links = lock(&self.0);
        let peer = link.connection.peer();
        if links.get(&peer).is_some_and(|current| Arc::ptr_eq(current, link)) {
            links.remove(&peer);
        }
    }

    pub(super) fn get(&self, peer: &NodeId) -> Option<Arc<Link>> {
        lock(&self.0).get(peer).filter(|link| !link.connection.is_closed()).cloned()
    }

    pub(super) fn all(&self) -> Vec<Arc<Link>> {
        lock(&self.0).values().filter(|link| !link.connection.is_closed()).cloned().collect()
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
