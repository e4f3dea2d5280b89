//! What this node fetches at the moment, and lately: who takes part with it, and whom it has sent what.

use std::collections::HashMap;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU8, Ordering};
use std::time::{Duration, Instant};

use larder_protocol::digest::Digest;
use larder_protocol::message::Class;
use larder_protocol::stamp::NodeId;
use tokio::sync::mpsc;

use super::holder::Handed;
use super::links::lock;

/// Peers that wait to be looked at by a fetch.
const NEWCOMERS_MAX: usize = 256;
/// For how long after a fetch this node still counts as one of those who fetch.
const LATELY: Duration = Duration::from_secs(60);
/// Most fetches that are remembered.
const REMEMBERED_MAX: usize = 4096;
/// How often a chunk is sent to a zone: by who has the blob always, by who fetches it too while others wait for other things.
pub(super) const COPIES: usize = 1;

/// For whom a fetch is; it may become more urgent.
#[derive(Debug)]
pub struct Urgency(AtomicU8);

impl Urgency {
    /// For one of these.
    pub fn new(class: Class) -> Self {
        Self(AtomicU8::new(class as u8))
    }

    /// Somebody more urgent wants it, too.
    pub fn raise(&self, class: Class) {
        self.0.fetch_min(class as u8, Ordering::Relaxed);
    }

    /// The most urgent one.
    pub fn class(&self) -> Class {
        match self.0.load(Ordering::Relaxed) {
            0 => Class::Client,
            1 => Class::Replication,
            _ => Class::Repair,
        }
    }
}

/// The fetches of this node.
#[derive(Debug)]
pub(super) struct Swarms {
    begun: Instant,
    fetches: Mutex<HashMap<Digest, mpsc::Sender<NodeId>>>,
    lately: Mutex<HashMap<Digest, Instant>>,
    handed: Mutex<Handed>,
}

/// A fetch that is under way.
#[derive(Debug)]
pub(super) struct Fetching<'a> {
    swarms: &'a Swarms,
    digest: Digest,
    pub newcomers: mpsc::Receiver<NodeId>,
}

impl Default for Swarms {
    fn default() -> Self {
        Self { begun: Instant::now(), fetches: Mutex::default(), lately: Mutex::default(), handed: Mutex::default() }
    }
}

impl Swarms {
    /// This node begins to fetch a blob.
    pub(super) fn begin(&self, digest: Digest) -> Fetching<'_> {
        let (sender, newcomers) = mpsc::channel(NEWCOMERS_MAX);
        lock(&self.fetches).insert(digest, sender);
        Fetching { swarms: self, digest, newcomers }
    }

    /// How many blobs are being fetched.
    pub(super) fn count(&self) -> u32 {
        lock(&self.fetches).len() as u32
    }

    /// A peer fetches a blob, too.
    pub(super) fn takes_part(&self, digest: &Digest, peer: NodeId) {
        if let Some(fetch) = lock(&self.fetches).get(digest) {
            // With so many that wait, one more is no loss.
            let _ = fetch.try_send(peer);
        }
    }

    /// Whether this node fetches the blob, or did so lately.
    pub(super) fn is_relay(&self, digest: &Digest) -> bool {
        lock(&self.fetches).contains_key(digest) || lock(&self.lately).get(digest).is_some_and(|at| at.elapsed() < LATELY)
    }

    /// Who shall be asked instead for a chunk; empty: send it. `is_busy` says that others wait for other things.
    pub(super) fn elsewhere(
        &self,
        chunk: (Digest, u32),
        peer: NodeId,
        insist: bool,
        is_busy: bool,
        is_mate: impl Fn(&NodeId) -> bool,
    ) -> Vec<NodeId> {
        let most = match (insist, self.is_relay(&chunk.0)) {
            (true, _) => usize::MAX,
            (false, true) if !is_busy => usize::MAX,
            (false, _) => COPIES,
        };
        lock(&self.handed).asked(self.begun.elapsed(), chunk, peer, most, is_mate)
    }

    /// A chunk was not sent after all.
    pub(super) fn failed(&self, chunk: (Digest, u32), peer: NodeId) {
        lock(&self.handed).failed(chunk, peer);
    }
}

impl Drop for Fetching<'_> {
    fn drop(&mut self) {
        // ORDER: remembered before it is forgotten, so that it is a relay at every moment.
        let mut lately = lock(&self.swarms.lately);
        if lately.len() >= REMEMBERED_MAX {
            lately.retain(|_, at| at.elapsed() < LATELY);
        }
        if lately.len() < REMEMBERED_MAX {
            lately.insert(self.digest, Instant::now());
        }
        drop(lately);
        lock(&self.swarms.fetches).remove(&self.digest);
    }
}
