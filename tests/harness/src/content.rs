//! Bytes to push that need not be kept: a seed and a size say all of them.

use crate::random::Random;
use bytes::Bytes;
use sha2::{Digest, Sha256, Sha512};

/// The step in which content is made: a layer of a gigabyte never stands in memory.
pub const CHUNK_SIZE: u64 = 256 * 1024;

/// `size` bytes that no compressor makes smaller, the same for the same seed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Content {
    /// Names the bytes.
    pub seed: u64,
    /// How many.
    pub size: u64,
}

impl Content {
    /// The content of `seed`.
    pub fn new(seed: u64, size: u64) -> Self {
        Self { seed, size }
    }

    /// The bytes in order, in chunks of [`CHUNK_SIZE`], the last one shorter.
    pub fn chunks(self) -> impl Iterator<Item = Bytes> + Send + 'static {
        let count = self.size.div_ceil(CHUNK_SIZE);
        (0..count).map(move |index| {
            let size = CHUNK_SIZE.min(self.size - index * CHUNK_SIZE);
            let mut chunk = vec![0; size as usize];
            // Each chunk has a seed of its own, so that equal chunks at different places do not hide a mistake in an offset.
            Random::new(Random::new(self.seed).number() ^ index.wrapping_mul(0x2545_f491_4f6c_dd1d)).fill(&mut chunk);
            chunk.into()
        })
    }

    /// All bytes at once; for small content.
    pub fn bytes(self) -> Bytes {
        self.chunks()
            .fold(Vec::with_capacity(self.size as usize), |mut all, chunk| {
                all.extend_from_slice(&chunk);
                all
            })
            .into()
    }

    /// `sha256:<hex>` of the bytes.
    pub fn digest(self) -> String {
        let mut hash = Sha256::new();
        self.chunks().for_each(|chunk| hash.update(&chunk));
        format!("sha256:{}", hex::encode(hash.finalize()))
    }
}

/// `sha256:<hex>` of `bytes`.
pub fn sha256(bytes: &[u8]) -> String {
    format!("sha256:{}", hex::encode(Sha256::digest(bytes)))
}

/// `sha512:<hex>` of `bytes`.
pub fn sha512(bytes: &[u8]) -> String {
    format!("sha512:{}", hex::encode(Sha512::digest(bytes)))
}
