//! The identity of content, and the list of hashes that checks it while it travels.
//!
//! [`Digest`] is what clients name content by: `sha256:<64 hex>` or `sha512:<128 hex>`, lower case only.
//! It is parsed once, at the edge, into 32 or 64 bytes; nothing else ever becomes a path or a key.
//!
//! [`ChunkList`] holds the BLAKE3 chaining value of each MiB of a blob. The values add up to the
//! blob's plain BLAKE3 ([`TreeHash`]), so a list from anyone can be checked against a root from a
//! trusted record, and then each MiB against the list, before it goes anywhere.

use std::fmt;
use std::str::FromStr;

use blake3::hazmat::{ChainingValue, HasherExt, Mode, left_subtree_len, merge_subtrees_non_root, merge_subtrees_root};
use serde::{Deserialize, Deserializer, Serialize, Serializer, de};
use sha2::Digest as _;

/// Bytes of a blob that one chaining value of a [`ChunkList`] covers.
pub const CHUNK_SIZE: u64 = 1 << 20;

/// The plain BLAKE3 of a blob.
pub type TreeHash = [u8; 32];

/// The hash functions that a [`Digest`] may use.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Algorithm {
    /// SHA-256, the registered default.
    Sha256,
    /// SHA-512, registered as well.
    Sha512,
}

impl Algorithm {
    /// The name as it stands before the colon.
    pub fn name(self) -> &'static str {
        match self {
            Algorithm::Sha256 => "sha256",
            Algorithm::Sha512 => "sha512",
        }
    }
}

impl FromStr for Algorithm {
    type Err = InvalidDigest;

    fn from_str(text: &str) -> Result<Self, InvalidDigest> {
        match text {
            "sha256" => Ok(Algorithm::Sha256),
            "sha512" => Ok(Algorithm::Sha512),
            _ => Err(InvalidDigest::Algorithm),
        }
    }
}

impl fmt::Display for Algorithm {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// The identity of content: an algorithm and its output. Ordered by algorithm, then bytes.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Digest {
    /// 32 bytes of SHA-256.
    Sha256([u8; 32]),
    /// 64 bytes of SHA-512.
    Sha512([u8; 64]),
}

/// Why a text is not a digest.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum InvalidDigest {
    /// Not `sha256:` or `sha512:` at the start.
    #[error("a digest starts with `sha256:` or `sha512:`")]
    Algorithm,
    /// Not the number of hex digits that the algorithm has.
    #[error("a {algorithm} digest has {expected} hex digits, this one has {actual}")]
    Length {
        /// The algorithm that was named.
        algorithm: Algorithm,
        /// Hex digits it has.
        expected: usize,
        /// Bytes found.
        actual: usize,
    },
    /// Something that is not 0-9 or a-f.
    #[error("a digest has hex digits in lower case only")]
    Hex,
}

impl Digest {
    /// Hashes `bytes` with `algorithm`.
    pub fn of(algorithm: Algorithm, bytes: &[u8]) -> Self {
        match algorithm {
            Algorithm::Sha256 => Digest::Sha256(sha2::Sha256::digest(bytes).into()),
            Algorithm::Sha512 => Digest::Sha512(sha2::Sha512::digest(bytes).into()),
        }
    }

    /// The SHA-256 of `bytes`.
    pub fn sha256(bytes: &[u8]) -> Self {
        Self::of(Algorithm::Sha256, bytes)
    }

    /// The algorithm that made it.
    pub fn algorithm(&self) -> Algorithm {
        match self {
            Digest::Sha256(_) => Algorithm::Sha256,
            Digest::Sha512(_) => Algorithm::Sha512,
        }
    }

    /// The 32 or 64 bytes of output.
    pub fn bytes(&self) -> &[u8] {
        match self {
            Digest::Sha256(bytes) => bytes,
            Digest::Sha512(bytes) => bytes,
        }
    }

    /// The output as lower-case hex.
    pub fn hex(&self) -> String {
        hex::encode(self.bytes())
    }

    /// A fixed key for tables: one byte of algorithm (0 or 1), then the output.
    pub fn to_key(&self) -> Vec<u8> {
        let mut key = Vec::with_capacity(65);
        key.push(self.algorithm() as u8);
        key.extend_from_slice(self.bytes());
        key
    }

    /// Reads what [`Digest::to_key`] wrote; `None` for anything else.
    pub fn from_key(key: &[u8]) -> Option<Self> {
        match key.split_first()? {
            (0, bytes) => Some(Digest::Sha256(bytes.try_into().ok()?)),
            (1, bytes) => Some(Digest::Sha512(bytes.try_into().ok()?)),
            _ => None,
        }
    }
}

impl FromStr for Digest {
    type Err = InvalidDigest;

    fn from_str(text: &str) -> Result<Self, InvalidDigest> {
        let (algorithm, digits) = text.split_once(':').ok_or(InvalidDigest::Algorithm)?;
        let algorithm: Algorithm = algorithm.parse()?;
        let expected = if algorithm == Algorithm::Sha256 { 64 } else { 128 };
        if digits.len() != expected {
            return Err(InvalidDigest::Length { algorithm, expected, actual: digits.len() });
        }
        if !digits.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f')) {
            return Err(InvalidDigest::Hex);
        }
        let mut bytes = [0; 64];
        hex::decode_to_slice(digits, &mut bytes[..expected / 2]).map_err(|_| InvalidDigest::Hex)?;
        Ok(match algorithm {
            Algorithm::Sha256 => Digest::Sha256(bytes[..32].try_into().expect("32 of 64 bytes")),
            Algorithm::Sha512 => Digest::Sha512(bytes),
        })
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (mut digits, bytes) = ([0; 128], self.bytes());
        let digits = &mut digits[..2 * bytes.len()];
        hex::encode_to_slice(bytes, digits).expect("two digits for each byte");
        f.write_str(self.algorithm().name())?;
        f.write_str(":")?;
        f.write_str(std::str::from_utf8(digits).expect("hex is text"))
    }
}

impl fmt::Debug for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl Serialize for Digest {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        if serializer.is_human_readable() { serializer.collect_str(self) } else { serializer.serialize_bytes(&self.to_key()) }
    }
}

impl<'de> Deserialize<'de> for Digest {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        if deserializer.is_human_readable() {
            String::deserialize(deserializer)?.parse().map_err(de::Error::custom)
        } else {
            let key = Vec::<u8>::deserialize(deserializer)?;
            Digest::from_key(&key).ok_or_else(|| de::Error::custom("not a digest key"))
        }
    }
}

/// The BLAKE3 chaining value of each MiB of a blob.
///
/// A blob of at most one MiB needs no list: its root is checked directly.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ChunkList {
    size: u64,
    values: Vec<ChainingValue>,
}

/// Why a list does not belong to a blob.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum InvalidChunkList {
    /// The number of values is not the number of MiB begun.
    #[error("a blob of {size} bytes has {expected} chunks, the list has {actual}")]
    Count {
        /// Size of the blob in bytes.
        size: u64,
        /// Values it must have.
        expected: u64,
        /// Values it has.
        actual: u64,
    },
    /// The values do not add up to the root.
    #[error("the chunk list does not add up to the blob's root")]
    Root,
}

impl ChunkList {
    /// Number of chunks of a blob of `size` bytes: one for each MiB begun, none for an empty blob.
    pub fn count(size: u64) -> u64 {
        size.div_ceil(CHUNK_SIZE)
    }

    /// Takes values that were computed here, by [`chunk_value`], from a blob of `size` bytes.
    ///
    /// # Panics
    /// When the count is wrong, or the blob is not larger than one chunk: then there is no list.
    pub fn new(size: u64, values: Vec<ChainingValue>) -> Self {
        assert!(size > CHUNK_SIZE, "a blob of {size} bytes has no chunk list");
        assert_eq!(Self::count(size), values.len() as u64, "chunk values of a blob of {size} bytes");
        Self { size, values }
    }

    /// Takes values from someone else and checks that they add up to `root`.
    pub fn checked(size: u64, values: Vec<ChainingValue>, root: &TreeHash) -> Result<Self, InvalidChunkList> {
        let (expected, actual) = (Self::count(size), values.len() as u64);
        if expected != actual || size <= CHUNK_SIZE {
            return Err(InvalidChunkList::Count { size, expected, actual });
        }
        let list = Self { size, values };
        if list.root() == *root { Ok(list) } else { Err(InvalidChunkList::Root) }
    }

    /// The blob's plain BLAKE3, from the values.
    pub fn root(&self) -> TreeHash {
        let left = left_subtree_len(self.size);
        let (near, far) = self.values.split_at((left / CHUNK_SIZE) as usize);
        *merge_subtrees_root(&subtree(near, left), &subtree(far, self.size - left), Mode::Hash).as_bytes()
    }

    /// The values, in order.
    pub fn values(&self) -> &[ChainingValue] {
        &self.values
    }

    /// Size of the blob in bytes.
    pub fn size(&self) -> u64 {
        self.size
    }

    /// Whether `bytes` are chunk `index` of the blob.
    pub fn holds(&self, index: u64, bytes: &[u8]) -> bool {
        let expected = CHUNK_SIZE.min(self.size.saturating_sub(index.saturating_mul(CHUNK_SIZE)));
        bytes.len() as u64 == expected
            && usize::try_from(index).ok().and_then(|index| self.values.get(index)).is_some_and(|value| *value == chunk_value(index, bytes))
    }
}

/// The chaining value of chunk `index`, whose bytes these are.
pub fn chunk_value(index: u64, bytes: &[u8]) -> ChainingValue {
    let mut hasher = blake3::Hasher::new();
    hasher.set_input_offset(index * CHUNK_SIZE);
    hasher.update(bytes);
    hasher.finalize_non_root()
}

/// The BLAKE3 of a whole blob that is in memory.
pub fn tree_hash(bytes: &[u8]) -> TreeHash {
    *blake3::hash(bytes).as_bytes()
}

/// Merges the values of a subtree of `size` bytes; depth is logarithmic in the number of values.
pub(crate) fn subtree(values: &[ChainingValue], size: u64) -> ChainingValue {
    if let [value] = values {
        return *value;
    }
    let left = left_subtree_len(size);
    let (near, far) = values.split_at((left / CHUNK_SIZE) as usize);
    merge_subtrees_non_root(&subtree(near, left), &subtree(far, size - left), Mode::Hash)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn digests_read_back_what_they_print() {
        for algorithm in [Algorithm::Sha256, Algorithm::Sha512] {
            let digest = Digest::of(algorithm, b"larder");
            assert_eq!(digest.to_string().parse::<Digest>(), Ok(digest));
            assert_eq!(Digest::from_key(&digest.to_key()), Some(digest));
        }
    }

    #[test]
    fn s2_malformed_digests_are_refused() {
        let good = Digest::sha256(b"").to_string();
        let bad = [
            "",
            ":",
            "sha256",
            "sha256:",
            "sha256:../..",
            "md5:d41d8cd98f00b204e9800998ecf8427e",
            &good[..good.len() - 1],
            &format!("{good}0"),
            &good.to_uppercase(),
            &good.replace("sha256", "SHA256"),
            &good.replace("sha256", "sha512"),
            &format!("{good}\0"),
            &format!(" {good}"),
        ]
        .map(str::to_owned);
        for text in bad {
            assert!(text.parse::<Digest>().is_err(), "{text:?}");
        }
    }

    #[test]
    fn chunk_values_add_up_to_plain_blake3() {
        // One byte over a chunk, whole chunks, one short of a whole one, and an odd tree.
        for size in [CHUNK_SIZE + 1, 2 * CHUNK_SIZE, 3 * CHUNK_SIZE - 1, 5 * CHUNK_SIZE + 77] {
            let blob: Vec<u8> = (0..size).map(|i| (i * 31 + i / 977) as u8).collect();
            let values: Vec<_> = blob.chunks(CHUNK_SIZE as usize).enumerate().map(|(i, bytes)| chunk_value(i as u64, bytes)).collect();
            let list = ChunkList::checked(size, values.clone(), &tree_hash(&blob)).expect("own list");
            for (index, bytes) in blob.chunks(CHUNK_SIZE as usize).enumerate() {
                assert!(list.holds(index as u64, bytes));
                assert!(!list.holds(index as u64 + 1, bytes), "a chunk stands at one place only");
                let mut wrong = bytes.to_vec();
                wrong[0] ^= 1;
                assert!(!list.holds(index as u64, &wrong));
            }
            let mut swapped = values;
            swapped.swap(0, 1);
            assert_eq!(ChunkList::checked(size, swapped, &tree_hash(&blob)), Err(InvalidChunkList::Root));
        }
    }

    #[test]
    fn a_list_of_the_wrong_length_is_refused() {
        assert!(ChunkList::checked(u64::MAX, vec![[0; 32]; 2], &[0; 32]).is_err());
        assert!(ChunkList::checked(CHUNK_SIZE, vec![[0; 32]], &[0; 32]).is_err());
        assert!(ChunkList::checked(0, vec![], &[0; 32]).is_err());
    }
}
