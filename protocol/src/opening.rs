//! The first bytes of a blob, with what proves them: who waits for a blob gets these before a whole MiB has come.
//!
//! BLAKE3 is a binary tree. The pairs of values on the way from its root down to the first leaves prove the bytes under
//! the last left one:
//!
//! ```text
//!        root                 pairs[0] = (a, b), which merge to the root
//!       /    \                pairs[1] = (c, d), which merge to a
//!      a      b               the bytes hash to c
//!     / \
//!    c   d
//! ```

use blake3::hazmat::{ChainingValue, HasherExt, Mode, left_subtree_len, merge_subtrees_non_root, merge_subtrees_root};
use serde::{Deserialize, Serialize};

use crate::digest::{CHUNK_SIZE, TreeHash, subtree, tree_hash};

/// Most bytes of an opening: with its pairs they fit in what a fresh connection may send at once.
pub const OPENING_MAX: u64 = 8 << 10;

/// The first bytes of a blob and their proof.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Opening {
    pairs: Vec<(ChainingValue, ChainingValue)>,
    bytes: Vec<u8>,
}

impl Opening {
    /// The opening of a blob of `size` bytes whose first MiB is `first`; `values` as in a chunk list, empty when there is none.
    ///
    /// # Panics
    /// When these don't belong together.
    pub fn new(size: u64, values: &[ChainingValue], first: &[u8]) -> Self {
        assert_eq!(first.len() as u64, size.min(CHUNK_SIZE), "the first MiB of {size} bytes");
        let value = |offset: u64, length: u64| {
            if offset >= CHUNK_SIZE || length >= CHUNK_SIZE {
                let end = (offset + length).div_ceil(CHUNK_SIZE);
                return subtree(&values[(offset / CHUNK_SIZE) as usize..end as usize], length);
            }
            leaves(offset, &first[offset as usize..(offset + length) as usize])
        };
        let (mut pairs, mut length) = (Vec::new(), size);
        while length > OPENING_MAX {
            let left = left_subtree_len(length);
            pairs.push((value(0, left), value(left, length - left)));
            length = left;
        }
        Self { pairs, bytes: first[..length as usize].to_vec() }
    }

    /// The bytes, when they are proven to be those of the blob of that size and root.
    pub fn checked(self, size: u64, root: &TreeHash) -> Option<Vec<u8>> {
        let (mut length, mut expected) = (size, *root);
        for (depth, (left, right)) in self.pairs.iter().enumerate() {
            if length <= OPENING_MAX {
                return None;
            }
            let merged = match depth {
                0 => *merge_subtrees_root(left, right, Mode::Hash).as_bytes(),
                _ => merge_subtrees_non_root(left, right, Mode::Hash),
            };
            if merged != expected {
                return None;
            }
            (length, expected) = (left_subtree_len(length), *left);
        }
        let whole = length <= OPENING_MAX && self.bytes.len() as u64 == length;
        let hash = || if self.pairs.is_empty() { tree_hash(&self.bytes) } else { leaves(0, &self.bytes) };
        (whole && hash() == expected).then_some(self.bytes)
    }
}

fn leaves(offset: u64, bytes: &[u8]) -> ChainingValue {
    let mut hasher = blake3::Hasher::new();
    hasher.set_input_offset(offset);
    hasher.update(bytes);
    hasher.finalize_non_root()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::digest::chunk_value;

    fn blob(size: u64) -> Vec<u8> {
        (0..size).map(|i| (i * 31 + i / 977) as u8).collect()
    }

    fn opening(blob: &[u8]) -> Opening {
        let chunks = blob.chunks(CHUNK_SIZE as usize).enumerate();
        let values: Vec<_> =
            if blob.len() as u64 > CHUNK_SIZE { chunks.map(|(i, chunk)| chunk_value(i as u64, chunk)).collect() } else { vec![] };
        Opening::new(blob.len() as u64, &values, &blob[..blob.len().min(CHUNK_SIZE as usize)])
    }

    #[test]
    fn the_first_bytes_of_blobs_of_every_size_are_proven() {
        // Nothing, one byte, around an opening, around a chunk, odd trees.
        let sizes =
            [0, 1, OPENING_MAX, OPENING_MAX + 1, 100_000, CHUNK_SIZE - 1, CHUNK_SIZE, CHUNK_SIZE + 1, 2 * CHUNK_SIZE, 5 * CHUNK_SIZE + 77];
        for size in sizes {
            let blob = blob(size);
            let root = tree_hash(&blob);
            let bytes = opening(&blob).checked(size, &root).expect("proven");
            assert!(!bytes.is_empty() || size == 0);
            assert!(bytes.len() as u64 <= OPENING_MAX && blob.starts_with(&bytes), "{size}");
        }
    }

    #[test]
    fn f23_an_opening_that_is_not_the_blobs_is_refused() {
        for size in [1, OPENING_MAX + 1, 3 * CHUNK_SIZE + 5] {
            let blob = blob(size);
            let (root, good) = (tree_hash(&blob), opening(&blob));
            let mut wrong = good.clone();
            wrong.bytes[0] ^= 1;
            assert_eq!(wrong.checked(size, &root), None);
            let mut short = good.clone();
            short.bytes.pop();
            assert_eq!(short.checked(size, &root), None);
            let mut longer = good.clone();
            longer.pairs.push(([0; 32], [0; 32]));
            assert_eq!(longer.checked(size, &root), None);
            if !good.pairs.is_empty() {
                let mut other = good.clone();
                other.pairs[0].1[3] ^= 1;
                assert_eq!(other.checked(size, &root), None);
                let mut fewer = good.clone();
                fewer.pairs.pop();
                assert_eq!(fewer.checked(size, &root), None);
            }
            assert_eq!(good.checked(size + 1, &[0; 32]), None);
        }
    }
}
