//! Version vectors: what is seen of each origin, and so what is missing.
//!
//! An origin numbers what it writes from 1, without gaps. A superseded record leaves the journal, and what
//! supersedes it may stand under another origin; so single records don't advance a vector. Only the end of a
//! whole exchange does: then everything up to the sender's vector has been handed over, or superseded by
//! something that was.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::stamp::NodeId;

/// One life of a node's data folder: a restored or cloned folder becomes another incarnation, so that no
/// number is ever used twice.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Origin {
    /// The node.
    pub node: NodeId,
    /// Milliseconds since 1970 when this life began, or one more than the life before.
    pub incarnation: u64,
}

impl Origin {
    /// 40 bytes that sort by node and life.
    pub fn to_bytes(&self) -> Vec<u8> {
        [&self.node.0[..], &self.incarnation.to_be_bytes()].concat()
    }

    /// Reads what [`Origin::to_bytes`] wrote; `None` for anything else.
    pub fn from_bytes(bytes: &[u8]) -> Option<Self> {
        let (node, incarnation) = bytes.split_at_checked(32)?;
        Some(Self { node: NodeId(node.try_into().ok()?), incarnation: u64::from_be_bytes(incarnation.try_into().ok()?) })
    }
}

/// How far each origin's records are known: origin -> the last sequence of a whole exchange.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct VersionVector(BTreeMap<Origin, u64>);

impl VersionVector {
    /// The last sequence known of `origin`; 0 when nothing is.
    pub fn get(&self, origin: &Origin) -> u64 {
        self.0.get(origin).copied().unwrap_or(0)
    }

    /// Raises `origin` to `sequence`; never lowers it.
    pub fn advance(&mut self, origin: Origin, sequence: u64) {
        let known = self.0.entry(origin).or_default();
        *known = sequence.max(*known);
    }

    /// Raises every origin to what `other` knows.
    pub fn merge(&mut self, other: &Self) {
        for (origin, sequence) in other.iter() {
            self.advance(origin, sequence);
        }
    }

    /// Lowers `origin` to `sequence`: what is known behind it may be something else than what others know there.
    pub fn lower(&mut self, origin: &Origin, sequence: u64) {
        if sequence == 0 {
            self.0.remove(origin);
        } else if let Some(known) = self.0.get_mut(origin) {
            *known = sequence.min(*known);
        }
    }

    /// What both know.
    pub fn common(&self, other: &Self) -> Self {
        let both = self.iter().map(|(origin, sequence)| (origin, sequence.min(other.get(&origin))));
        both.filter(|(_, sequence)| *sequence > 0).collect()
    }

    /// What is known here beyond `other`.
    pub fn beyond(&self, other: &Self) -> Self {
        self.iter().filter(|(origin, sequence)| *sequence > other.get(origin)).collect()
    }

    /// The latest life of a node that is known, if any.
    pub fn last_life(&self, node: &NodeId) -> Option<u64> {
        let (first, last) = (Origin { node: *node, incarnation: 0 }, Origin { node: *node, incarnation: u64::MAX });
        self.0.range(first..=last).next_back().map(|(origin, _)| origin.incarnation)
    }

    /// A hash that two vectors share exactly when they are equal.
    pub fn hash(&self) -> [u8; 32] {
        let mut hasher = blake3::Hasher::new_derive_key("larder 2026 version vector");
        for (origin, sequence) in self.iter().filter(|(_, sequence)| *sequence > 0) {
            hasher.update(&origin.node.0);
            hasher.update(&origin.incarnation.to_le_bytes());
            hasher.update(&sequence.to_le_bytes());
        }
        *hasher.finalize().as_bytes()
    }

    /// Whether everything that `other` knows is known here.
    pub fn covers(&self, other: &Self) -> bool {
        other.iter().all(|(origin, sequence)| self.get(&origin) >= sequence)
    }

    /// How many sequences `other` knows that are unknown here: an upper bound of the records to send.
    pub fn behind(&self, other: &Self) -> u64 {
        other.iter().map(|(origin, sequence)| sequence.saturating_sub(self.get(&origin))).sum()
    }

    /// The origins and their sequences, in order.
    pub fn iter(&self) -> impl Iterator<Item = (Origin, u64)> + '_ {
        self.0.iter().map(|(origin, sequence)| (*origin, *sequence))
    }

    /// Number of origins.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether nothing is known.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

impl FromIterator<(Origin, u64)> for VersionVector {
    fn from_iter<I: IntoIterator<Item = (Origin, u64)>>(iter: I) -> Self {
        let mut vector = Self::default();
        for (origin, sequence) in iter {
            vector.advance(origin, sequence);
        }
        vector
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn vectors() -> impl Strategy<Value = VersionVector> {
        let origin = (0..4u8, 0..2u64).prop_map(|(node, incarnation)| Origin { node: NodeId([node; 32]), incarnation });
        prop::collection::vec((origin, 0..9u64), 0..8).prop_map(VersionVector::from_iter)
    }

    fn merged(a: &VersionVector, b: &VersionVector) -> VersionVector {
        let mut merged = a.clone();
        merged.merge(b);
        merged
    }

    proptest! {
        #[test]
        fn merging_is_commutative_associative_and_idempotent(a in vectors(), b in vectors(), c in vectors()) {
            prop_assert!(merged(&a, &b).covers(&a) && merged(&a, &b).covers(&b));
            prop_assert!(merged(&a, &b).covers(&merged(&b, &a)) && merged(&b, &a).covers(&merged(&a, &b)));
            prop_assert_eq!(merged(&merged(&a, &b), &c), merged(&a, &merged(&b, &c)));
            prop_assert_eq!(merged(&a, &a), a);
        }

        #[test]
        fn what_is_common_is_covered_by_both_and_what_is_beyond_makes_up_the_rest(a in vectors(), b in vectors()) {
            let common = a.common(&b);
            prop_assert!(a.covers(&common) && b.covers(&common));
            prop_assert_eq!(&common, &b.common(&a));
            prop_assert!(merged(&b, &a.beyond(&b)).covers(&a));
            prop_assert!(b.covers(&a) == a.beyond(&b).is_empty());
        }

        #[test]
        fn behind_is_zero_exactly_when_covered(a in vectors(), b in vectors()) {
            prop_assert_eq!(a.behind(&b) == 0, a.covers(&b));
        }
    }
}
