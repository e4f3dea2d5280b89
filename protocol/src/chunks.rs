//! Which chunks of a blob a node has: a bit for each.

use serde::{Deserialize, Serialize};

/// Most chunks that a set may have: those of the largest blob that may be configured.
pub const CHUNKS_MAX: u64 = 1 << 24;

/// A set of the chunks of one blob.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ChunkSet {
    count: u32,
    held: u32,
    bits: Vec<u64>,
}

/// A set as it travels: a bit for each chunk, the lowest first, eight in a byte.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ChunkBits(pub Vec<u8>);

impl ChunkSet {
    /// None of `count` chunks.
    ///
    /// # Panics
    /// Beyond [`CHUNKS_MAX`]: sizes are checked where they come in.
    pub fn new(count: u64) -> Self {
        assert!(count <= CHUNKS_MAX, "a blob of {count} chunks");
        Self { count: count as u32, held: 0, bits: vec![0; (count as usize).div_ceil(64)] }
    }

    /// All of `count` chunks.
    ///
    /// # Panics
    /// As [`ChunkSet::new`].
    pub fn full(count: u64) -> Self {
        let mut set = Self::new(count);
        (0..set.count).for_each(|index| _ = set.insert(index));
        set
    }

    /// Chunks of the blob.
    pub fn count(&self) -> u32 {
        self.count
    }

    /// Chunks in the set.
    pub fn len(&self) -> u32 {
        self.held
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.held == 0
    }

    /// Whether there are all.
    pub fn is_full(&self) -> bool {
        self.held == self.count
    }

    /// Whether a chunk is in it.
    pub fn has(&self, index: u32) -> bool {
        index < self.count && self.bits[index as usize / 64] >> (index % 64) & 1 == 1
    }

    /// Adds a chunk; whether it is new. One beyond the blob is ignored.
    pub fn insert(&mut self, index: u32) -> bool {
        let new = index < self.count && !self.has(index);
        if new {
            self.bits[index as usize / 64] |= 1 << (index % 64);
            self.held += 1;
        }
        new
    }

    /// Takes a chunk out; whether it was in it.
    pub fn remove(&mut self, index: u32) -> bool {
        let there = self.has(index);
        if there {
            self.bits[index as usize / 64] &= !(1 << (index % 64));
            self.held -= 1;
        }
        there
    }

    /// The chunks in it, in order.
    pub fn iter(&self) -> impl Iterator<Item = u32> + '_ {
        (0..self.count).filter(|index| self.has(*index))
    }

    /// How many there are from `from` on without a gap.
    pub fn run(&self, from: u32) -> u32 {
        (from..self.count).take_while(|index| self.has(*index)).count() as u32
    }

    /// As it travels.
    pub fn to_bits(&self) -> ChunkBits {
        let bytes = self.bits.iter().flat_map(|word| word.to_le_bytes());
        ChunkBits(bytes.take((self.count as usize).div_ceil(8)).collect())
    }

    /// The chunks of `self` that are not in `other`.
    pub fn without(&self, other: &ChunkSet) -> Vec<u32> {
        self.iter().filter(|index| !other.has(*index)).collect()
    }
}

impl ChunkBits {
    /// The set of the chunks of a blob that has `count`; `None` when the bits are not those of such a blob.
    pub fn to_set(&self, count: u64) -> Option<ChunkSet> {
        if count > CHUNKS_MAX || self.0.len() as u64 != count.div_ceil(8) {
            return None;
        }
        let mut set = ChunkSet::new(count);
        for (at, byte) in self.0.iter().enumerate() {
            for bit in (0..8).filter(|bit| byte >> bit & 1 == 1) {
                if !set.insert(at as u32 * 8 + bit) {
                    return None;
                }
            }
        }
        Some(set)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn a_set_is_read_back_as_it_was_written(count in 0u64..300, some in prop::collection::vec(0u32..300, 0..60)) {
            let mut set = ChunkSet::new(count);
            some.iter().for_each(|index| _ = set.insert(*index));
            let expected: std::collections::BTreeSet<_> = some.iter().copied().filter(|index| u64::from(*index) < count).collect();
            prop_assert!(set.iter().eq(expected.iter().copied()));
            prop_assert_eq!(set.len() as usize, expected.len());
            prop_assert_eq!(set.to_bits().to_set(count), Some(set.clone()));
            for index in expected {
                prop_assert!(set.remove(index) && !set.remove(index));
            }
            prop_assert!(set.is_empty());
        }

        #[test]
        fn s34_bits_of_another_blob_are_refused(count in 0u64..200, bytes in prop::collection::vec(any::<u8>(), 0..30)) {
            let bits = ChunkBits(bytes);
            match bits.to_set(count) {
                // What was taken is exactly what came.
                Some(set) => prop_assert_eq!(set.to_bits(), bits),
                None => prop_assert!(bits.0.len() as u64 != count.div_ceil(8) || count % 8 != 0),
            }
        }
    }

    #[test]
    fn a_run_ends_at_the_first_gap() {
        let mut set = ChunkSet::full(130);
        assert!(set.is_full() && set.run(0) == 130 && set.run(129) == 1 && set.run(130) == 0);
        set.remove(64);
        assert_eq!((set.run(0), set.run(64), set.run(65)), (64, 0, 65));
        assert_eq!(ChunkSet::full(3).without(&ChunkSet::new(3)), [0, 1, 2]);
    }
}
