//! Whether two nodes hold the same: sums of hashes that don't depend on the order in which records came.
//!
//! Each live record has an id ([`id`]), and a place by the first byte of a hash of its key alone. A node keeps, for each kind and place, the sum of
//! its records' ids, modulo 2^256: a record that comes adds to it, one that goes is taken off. Tombstones count nothing, so two nodes
//! agree whichever of them has purged more of them.
//!
//! Members are authenticated and ids are hashes, so sums need not withstand somebody who picks records to make two sums equal.

use serde::{Deserialize, Serialize};

use crate::record::RawRecord;

/// Places of one kind.
pub const PLACES: usize = 256;
/// Kinds that have sums of their own; those from here on share one.
pub const KINDS: u16 = 64;

/// What makes ids different from every other hash.
const CONTEXT: &str = "larder 2026 record id";

/// A sum of ids.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Sum([u64; 4]);

impl Sum {
    /// Adds an id.
    pub fn add(&mut self, id: &[u8; 32]) {
        self.plus(&Self::of(id));
    }

    /// Takes an id off.
    pub fn take(&mut self, id: &[u8; 32]) {
        let mut borrow = false;
        for (limb, other) in self.0.iter_mut().zip(Self::of(id).0) {
            let (less, b1) = limb.overflowing_sub(other);
            let (less, b2) = less.overflowing_sub(u64::from(borrow));
            (*limb, borrow) = (less, b1 || b2);
        }
    }

    /// Adds another sum.
    pub fn plus(&mut self, other: &Self) {
        let mut carry = false;
        for (limb, other) in self.0.iter_mut().zip(other.0) {
            let (more, c1) = limb.overflowing_add(other);
            let (more, c2) = more.overflowing_add(u64::from(carry));
            (*limb, carry) = (more, c1 || c2);
        }
    }

    fn of(id: &[u8; 32]) -> Self {
        Self(std::array::from_fn(|i| u64::from_le_bytes(id[i * 8..i * 8 + 8].try_into().expect("8 of 32 bytes"))))
    }
}

/// The id of a record: what it says, about what, and when it was written.
pub fn id(record: &RawRecord) -> [u8; 32] {
    let mut hasher = blake3::Hasher::new_derive_key(CONTEXT);
    hasher.update(&record.kind.to_le_bytes());
    hasher.update(&(record.key.len() as u64).to_le_bytes());
    hasher.update(&record.key);
    hasher.update(&record.stamp.time.0.to_le_bytes());
    hasher.update(&record.stamp.node.0);
    hasher.update(&[u8::from(record.value.is_some())]);
    hasher.update(record.value.as_deref().unwrap_or_default());
    *hasher.finalize().as_bytes()
}

/// The place of a key among the sums of its kind.
pub fn place(key: &[u8]) -> u8 {
    blake3::hash(key).as_bytes()[0]
}

/// The sums that a kind counts into.
pub fn slot(kind: u16) -> u16 {
    kind.min(KINDS)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn a_sum_depends_on_what_is_in_it_and_not_on_the_way(ids in prop::collection::vec(any::<[u8; 32]>(), 0..20), other in any::<[u8; 32]>()) {
            let sum = |ids: &mut dyn Iterator<Item = &[u8; 32]>| ids.fold(Sum::default(), |mut sum, id| { sum.add(id); sum });
            let forwards = sum(&mut ids.iter());
            let mut backwards = Sum::default();
            backwards.add(&other);
            ids.iter().rev().for_each(|id| backwards.add(id));
            prop_assert_eq!(backwards == forwards, other == [0; 32]);
            backwards.take(&other);
            prop_assert_eq!(backwards, forwards);
            let (head, tail) = ids.split_at(ids.len() / 2);
            let mut parts = sum(&mut head.iter());
            parts.plus(&sum(&mut tail.iter()));
            prop_assert_eq!(parts, forwards);
        }
    }

    #[test]
    fn ids_tell_keys_values_and_stamps_apart() {
        use crate::stamp::{HybridTime, NodeId, Stamp};
        let stamp = |time, node| Stamp { time: HybridTime(time), node: NodeId([node; 32]) };
        let record =
            |kind, key: &[u8], value: Option<&[u8]>, stamp| RawRecord { kind, key: key.to_vec(), value: value.map(<[u8]>::to_vec), stamp };
        let records = [
            record(3, b"ab", Some(b"c"), stamp(1, 1)),
            record(3, b"a", Some(b"bc"), stamp(1, 1)),
            record(4, b"ab", Some(b"c"), stamp(1, 1)),
            record(3, b"ab", Some(b"c"), stamp(2, 1)),
            record(3, b"ab", Some(b"c"), stamp(1, 2)),
            record(3, b"ab", Some(b""), stamp(1, 1)),
            record(3, b"ab", None, stamp(1, 1)),
        ];
        let ids: std::collections::BTreeSet<_> = records.iter().map(id).collect();
        assert_eq!(ids.len(), records.len());
    }
}
