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
        fn behind_is_zero_exactly_when_covered(a in vectors(), b in vectors()) {
            prop_assert_eq!(a.behind(&b) == 0, a.covers(&b));
        }
    }
}
