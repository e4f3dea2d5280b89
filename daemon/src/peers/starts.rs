//! What a peer tells of the starts of lives while it is heard: where a copy of a data folder began to write things of its own (see `larder_protocol::starts`).

use std::collections::HashMap;

use larder_protocol::record::{Key, Numbered, Value};
use larder_protocol::starts::{Known, Starts, fork};
use larder_protocol::vector::{Origin, VersionVector};

use crate::store::{self, Store};

/// Lists that are kept of one stream; of further lives nothing can be told.
const LISTS_MAX: usize = 4096;

/// The lists that came on one stream.
#[derive(Debug, Default)]
pub(super) struct Told {
    lives: HashMap<Origin, Life>,
    count: usize,
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
            let number = (numbered.origin == *life).then_some(numbered.sequence);
            self.lives.get_mut(life).expect("put there").lists.push((number, list.clone()));
        }
        Ok(())
    }

    /// The last own number that the peer means the same by. `sure`: up to which it did for sure; `covered`: up to which it counts as known.
    pub(super) fn fork(&self, store: &Store, own: Origin, sure: u64, covered: u64) -> store::Result<Option<u64>> {
        let mut lists = self.lives.get(&own).map(|life| life.lists.clone()).unwrap_or_default();
        // What a clone told in a life of its own is settled there.
        lists.retain(|(number, _)| number.is_some());
        store.fork(own, &Known { sure, covered, lists })
    }

    /// What a peer covers, but for what it means something else by than this node does.
    pub(super) fn agreed(&self, store: &Store, covered: &VersionVector) -> store::Result<VersionVector> {
        let (mut agreed, own) = (store.unmixed(covered)?, store.origin());
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
