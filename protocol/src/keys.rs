//! A node's keys: its first, which is its id, and those that came after it, each signed in by the one before.
//!
//! A node changes its key in two steps, both told by its `Keys` record, so that nobody meets a key that he has not heard of:
//!
//! 1. The new key is *announced*: it counts as the node's beside the one that the node goes on using.
//! 2. When all have heard, the node *uses* the new key, and says until when what the key before it has signed still counts. That is for tokens that clients
//!    hold; in a handshake the key before proves nothing any more.
//!
//! What is signed by the key before, so that a record that anybody else made up says nothing:
//!
//! ```text
//! "larder: a node's next key, 1\n" | node's id (32) | number of the key, from 1 (4, big-endian) | the key before (32) | the key (32)
//! ```

use serde::{Deserialize, Serialize};

use crate::access::{self, Excess};
use crate::stamp::NodeId;

/// Most keys that a node may have had; a key a month lasts for ten years, and then it joins as another node.
pub const KEYS_MAX: usize = 120;
const SIGNED: &[u8] = b"larder: a node's next key, 1\n";

/// The keys of a node after its first.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Keys {
    /// In their order.
    pub later: Vec<Later>,
    /// For what comes later.
    pub extra: Vec<(String, String)>,
}

/// A key that came after another.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Later {
    /// The public key (Ed25519).
    pub key: NodeId,
    /// The signature by the key before, in two halves.
    pub signature: ([u8; 32], [u8; 32]),
    /// Until when what the key before has signed counts, milliseconds since 1970. `None`: this key is announced, and the one before in use.
    pub before_until_ms: Option<u64>,
}

/// Which keys count as a node's.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Counting {
    /// The one in use.
    pub used: NodeId,
    /// The one that will be next.
    pub announced: Option<NodeId>,
    /// Those before, and until when what they have signed counts, milliseconds since 1970.
    pub before: Vec<(NodeId, u64)>,
}

impl Counting {
    /// What counts of a node that never had another key than its first.
    pub fn first(node: NodeId) -> Self {
        Self { used: node, announced: None, before: Vec::new() }
    }

    /// Whether a key proves in a handshake that somebody is the node.
    pub fn proves(&self, key: &NodeId) -> bool {
        *key == self.used || self.announced.as_ref() == Some(key)
    }
}

impl Keys {
    /// Which keys count as a node's. `verify` says whether a signature of some bytes is a key's. `None`: they were not signed in one by the other, and
    /// say nothing.
    pub fn counting(&self, node: NodeId, verify: impl Fn(&NodeId, &[u8], &[u8; 64]) -> bool) -> Option<Counting> {
        let mut counting = Counting::first(node);
        for (place, later) in self.later.iter().enumerate() {
            // Only the last may be no more than announced, and none comes back.
            let had = later.key == counting.used || counting.before.iter().any(|(key, _)| *key == later.key);
            if counting.announced.is_some() || had {
                return None;
            }
            let (first, second) = later.signature;
            let signature: [u8; 64] = [first, second].concat().try_into().expect("two halves");
            if !verify(&counting.used, &signed(&node, place + 1, &counting.used, &later.key), &signature) {
                return None;
            }
            match later.before_until_ms {
                None => counting.announced = Some(later.key),
                Some(until) => counting.before.push((std::mem::replace(&mut counting.used, later.key), until)),
            }
        }
        Some(counting)
    }

    /// Announces a key: `sign` signs by the one in use. One that was announced before and not used is forgotten.
    pub fn announce(&mut self, node: NodeId, key: NodeId, sign: impl FnOnce(&[u8]) -> [u8; 64]) {
        self.later.retain(|later| later.before_until_ms.is_some());
        let before = self.later.last().map_or(node, |later| later.key);
        let signature = sign(&signed(&node, self.later.len() + 1, &before, &key));
        let half = |range: std::ops::Range<usize>| signature[range].try_into().expect("half of 64 bytes");
        self.later.push(Later { key, signature: (half(0..32), half(32..64)), before_until_ms: None });
    }

    /// Says that the announced key is in use, if there is one, and until when what the one before has signed counts.
    pub fn use_announced(&mut self, before_until_ms: u64) {
        if let Some(last) = self.later.last_mut().filter(|last| last.before_until_ms.is_none()) {
            last.before_until_ms = Some(before_until_ms);
        }
    }

    pub(crate) fn check(&self) -> Result<(), Excess> {
        access::bounded("keys", self.later.len(), KEYS_MAX)?;
        access::extra(&self.extra)
    }
}

fn signed(node: &NodeId, number: usize, before: &NodeId, key: &NodeId) -> Vec<u8> {
    let number = u32::try_from(number).unwrap_or(u32::MAX).to_be_bytes();
    [SIGNED, &node.0, &number, &before.0, &key.0].concat()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(number: u8) -> NodeId {
        NodeId([number; 32])
    }

    /// Stands for a signature here: a hash of key and bytes, which whoever has read this could make, and nobody in the tests does.
    fn sign(by: NodeId, bytes: &[u8]) -> [u8; 64] {
        let hash = blake3::hash(&[&by.0, bytes].concat());
        [*hash.as_bytes(), *hash.as_bytes()].concat().try_into().expect("two hashes")
    }

    fn counting(keys: &Keys) -> Option<Counting> {
        keys.counting(key(1), |by, bytes, signature| sign(*by, bytes) == *signature)
    }

    #[test]
    fn each_key_is_announced_then_used_and_those_before_end() {
        let mut keys = Keys::default();
        assert_eq!(counting(&keys), Some(Counting::first(key(1))));
        keys.announce(key(1), key(2), |bytes| sign(key(1), bytes));
        let announced = counting(&keys).expect("signed");
        assert_eq!(announced, Counting { used: key(1), announced: Some(key(2)), before: vec![] });
        assert!(announced.proves(&key(1)) && announced.proves(&key(2)) && !announced.proves(&key(3)));
        // Another is announced instead.
        keys.announce(key(1), key(3), |bytes| sign(key(1), bytes));
        keys.use_announced(50);
        let used = counting(&keys).expect("signed");
        assert_eq!(used, Counting { used: key(3), announced: None, before: vec![(key(1), 50)] });
        assert!(used.proves(&key(3)) && !used.proves(&key(1)) && !used.proves(&key(2)));
        keys.use_announced(99);
        assert_eq!(counting(&keys), Some(used), "nothing is announced");
        keys.announce(key(1), key(4), |bytes| sign(key(3), bytes));
        keys.use_announced(70);
        assert_eq!(counting(&keys).expect("signed").before, [(key(1), 50), (key(3), 70)]);
    }

    #[test]
    fn s29_keys_that_were_not_signed_in_by_the_one_before_say_nothing() {
        let mut keys = Keys::default();
        keys.announce(key(1), key(2), |bytes| sign(key(1), bytes));
        keys.use_announced(50);
        let mut forged = keys.clone();
        forged.announce(key(1), key(9), |bytes| sign(key(9), bytes));
        assert_eq!(counting(&forged), None, "by itself");
        let mut old = keys.clone();
        old.announce(key(1), key(9), |bytes| sign(key(1), bytes));
        assert_eq!(counting(&old), None, "by a key that is not in use any more");
        let mut back = keys.clone();
        back.announce(key(1), key(1), |bytes| sign(key(2), bytes));
        assert_eq!(counting(&back), None, "a key does not come back");
        let mut twice = keys.clone();
        twice.later[0].before_until_ms = None;
        twice.later.push(twice.later[0]);
        assert_eq!(counting(&twice), None, "two at a time");
        assert!(keys.counting(key(5), |by, bytes, signature| sign(*by, bytes) == *signature).is_none(), "another node's");
    }

    #[test]
    fn s34_a_node_has_had_a_bounded_number_of_keys() {
        let later = Later { key: key(1), signature: ([0; 32], [0; 32]), before_until_ms: Some(1) };
        let keys = |count| Keys { later: vec![later; count], extra: vec![] };
        assert!(keys(KEYS_MAX).check().is_ok() && keys(KEYS_MAX + 1).check().is_err());
    }
}
