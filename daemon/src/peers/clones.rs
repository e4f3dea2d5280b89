//! Two processes with one key: a cloned machine that never got a key of its own.
//!
//! A process shows a random number in every hello, its life. When one that had given way to another comes back, both are alive.

use std::collections::{HashMap, HashSet, VecDeque};
use std::sync::{Mutex, PoisonError};

use larder_protocol::stamp::NodeId;

/// Lives of one node that are remembered.
const LIVES_MAX: usize = 4;

/// The last lives of every peer, and who was found to have two at a time.
#[derive(Debug, Default)]
pub(super) struct Clones(Mutex<State>);

#[derive(Debug, Default)]
struct State {
    lives: HashMap<NodeId, VecDeque<u64>>,
    told: HashSet<NodeId>,
}

impl Clones {
    /// Takes note of a peer's hello; says whether that shows, for the first time, that its key is used twice.
    pub(super) fn see(&self, peer: NodeId, life: u64) -> bool {
        let state = &mut *self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let lives = state.lives.entry(peer).or_default();
        if lives.back() == Some(&life) {
            return false;
        }
        let returns = lives.contains(&life);
        lives.retain(|known| *known != life);
        lives.push_back(life);
        if lives.len() > LIVES_MAX {
            lives.pop_front();
        }
        returns && state.told.insert(peer)
    }

    /// How many nodes were found to have two lives at a time.
    pub(super) fn count(&self) -> usize {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).told.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn f11_a_life_that_comes_back_shows_a_clone_and_restarts_do_not() {
        let (clones, node) = (Clones::default(), NodeId([1; 32]));
        for life in 0..20 {
            assert!(!clones.see(node, life) && !clones.see(node, life), "restarts, and a second connection");
        }
        assert!(!clones.see(NodeId([2; 32]), 18));
        assert!(clones.see(node, 18), "the one before is still there");
        assert!(!clones.see(node, 19), "told once");
        assert_eq!(clones.count(), 1);
    }
}
