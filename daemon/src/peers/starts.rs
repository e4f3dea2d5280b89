//! What a peer tells of the starts of lives while it is heard: where a copy of a data folder began to write things of its own (see `larder_protocol::starts`).

use std::collections::HashMap;

use larder_protocol::record::{Key, Numbered, Value};
use larder_protocol::stamp::NodeId;
use larder_protocol::starts::{Known, Starts, fork, number_in};
use larder_protocol::vector::{Origin, VersionVector};

use crate::store::{self, Store};

/// Lists that are kept of one stream; of further lives nothing can be told.
const LISTS_MAX: usize = 4096;

/// The lists that came on one stream.
#[derive(Debug, Default)]
pub(super) struct Told {
    lives: HashMap<Origin, Life>,
    count: usize,
    /// Lives that the peer knows to be mixed, and up to where each is sure.
    mixed: HashMap<Origin, u64>,
}

/// What a peer is told of starts on one stream, whatever it knows by number.
#[derive(Debug)]
pub(super) struct Telling {
    peer: NodeId,
    is_first: bool,
    /// The number of the last list of this node's own starts.
    own: u64,
    /// The peer's lives that are mixed, and up to where each was said to be sure.
    mixed: HashMap<Origin, u64>,
}

impl Telling {
    pub(super) fn new(peer: NodeId) -> Self {
        Self { peer, is_first: true, own: 0, mixed: HashMap::new() }
    }

    /// Whether it turned out that another copy of the peer's folder has written too.
    pub(super) fn has_news(&self, store: &Store) -> bool {
        store.mixed_of(&self.peer).iter().any(|(life, sure)| self.is_news(life, *sure))
    }

    fn is_news(&self, life: &Origin, sure: u64) -> bool {
        self.mixed.get(life).is_none_or(|told| sure < *told)
    }

    /// What it is told now: which of its lives are mixed, and records; `from`: what it has, lowered to where it is to be sent everything.
    pub(super) fn tell(&mut self, store: &Store, from: &mut VersionVector) -> store::Result<(VersionVector, Vec<Numbered>)> {
        let mut records = Vec::new();
        if std::mem::take(&mut self.is_first) {
            // They show whether what it has of them is what is known here.
            records = store.starts_of_node(&self.peer)?;
        }
        if let Some(own) = store.own_starts()?.filter(|own| own.sequence > self.own) {
            self.own = own.sequence;
            // A copy of this folder may have told the peer something else under that number.
            records.extend((own.sequence <= from.get(&own.origin)).then_some(own));
        }
        let news: Vec<(Origin, u64)> = store.mixed_of(&self.peer).into_iter().filter(|(life, sure)| self.is_news(life, *sure)).collect();
        if !news.is_empty() {
            records.extend(store.evidence_of(&self.peer)?);
            news.iter().for_each(|(life, sure)| from.lower(life, *sure));
            self.mixed.extend(news.iter().copied());
        }
        Ok((news.into_iter().collect(), records))
    }
}

/// What is known of a life, and what came.
#[derive(Debug)]
struct Life {
    /// As it was known here before.
    ours: Starts,
    lists: Vec<(Option<u64>, Starts)>,
}

impl Told {
    /// Takes note of what came. ORDER: before it is applied.
    pub(super) fn add(&mut self, store: &Store, records: &[Numbered]) -> store::Result<()> {
        for numbered in records {
            let (Key::Starts(life), Some(Value::Starts(list))) = (&numbered.record.key, &numbered.record.value) else { continue };
            if self.count == LISTS_MAX {
                continue;
            }
            self.count += 1;
            if !self.lives.contains_key(life) {
                self.lives.insert(*life, Life { ours: store.starts_of(life)?, lists: Vec::new() });
            }
            let number = number_in(life, &numbered.origin, numbered.sequence);
            self.lives.get_mut(life).expect("put there").lists.push((number, list.clone()));
        }
        Ok(())
    }

    /// Takes note of lives that the peer knows to be mixed.
    pub(super) fn add_mixed(&mut self, lives: &VersionVector) {
        let room = LISTS_MAX.saturating_sub(self.mixed.len());
        self.mixed.extend(lives.iter().take(room));
    }

    /// The last own number that the peer means the same by. `sure`: up to which it does for sure, should it tell no list; `covered`: up to which it
    /// counts as known.
    pub(super) fn fork(&self, store: &Store, own: Origin, sure: u64, covered: u64) -> store::Result<Option<u64>> {
        let lists = self.lives.get(&own).map(|life| life.lists.clone()).unwrap_or_default();
        let fork = store.fork(own, &Known { sure, covered, lists })?;
        Ok(fork.into_iter().chain(self.mixed.get(&own).copied()).min())
    }

    /// Lives of others, or former ones of this node, that the peer knows to be mixed; its own ones in which something else was written by another copy of its
    /// folder than it has itself; and up to where each is sure.
    pub(super) fn mixed(&self, store: &Store, peer: &NodeId, covered: &VersionVector) -> store::Result<Vec<(Origin, u64)>> {
        // ORDER: first what is known. What other streams bring meanwhile is in the list as well.
        let here = store.vector();
        let is_known = |life: &Origin| here.get(life).max(covered.get(life)) > 0;
        let told = self.mixed.iter().filter(|(life, _)| **life != store.origin() && is_known(life));
        let mut mixed: Vec<_> = told.map(|(life, sure)| (*life, *sure)).collect();
        for (life, told) in self.lives.iter().filter(|(life, _)| life.node == *peer) {
            let theirs = Known { sure: 0, covered: covered.get(life), lists: told.lists.clone() };
            let sure = fork(&store.starts_of(life)?, &theirs).filter(|sure| *sure < here.get(life));
            mixed.extend(sure.map(|sure| (*life, sure)));
        }
        Ok(mixed)
    }

    /// What a peer covers, but for what it means something else by than this node does.
    pub(super) fn agreed(&self, store: &Store, covered: &VersionVector) -> store::Result<VersionVector> {
        let (mut agreed, own) = (store.unmixed(covered), store.origin());
        for (origin, covered) in covered.iter().filter(|(origin, _)| *origin != own) {
            let (ours, lists) = match self.lives.get(&origin) {
                Some(life) => (life.ours.clone(), life.lists.clone()),
                None => (store.starts_of(&origin)?, Vec::new()),
            };
            if let Some(fork) = fork(&ours, &Known { sure: 0, covered, lists }) {
                agreed.lower(&origin, fork);
            }
        }
        Ok(agreed)
    }
}
