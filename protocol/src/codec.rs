//! Message and row <-> bytes; the only file that knows bincode.
//!
//! ```text
//! 0         1
//! +---------+--------------------------------+
//! | version | bincode 2, variable-length ints |
//! +---------+--------------------------------+
//! ```
//!
//! bincode describes nothing of itself: enums may only grow at their end, structs not at all without a new
//! version byte. Decoding is bounded ([`DECODE_MAX`]), and bytes left over are an error, not ignored.
//! Never encode a recursive type or a collection of zero-sized elements: five bytes could then cost
//! unbounded time. The crate is pinned (its 3.0.0 is no release); it can be replaced here alone.

use serde::Serialize;
use serde::de::DeserializeOwned;

/// Leading byte of everything encoded today.
pub const FORMAT_VERSION: u8 = 1;

/// Most bytes that a decoded value may claim: one manifest of the largest configurable size, twice over.
pub const DECODE_MAX: usize = 32 << 20;

/// Why bytes are not a value.
#[derive(Debug, thiserror::Error)]
pub enum InvalidBytes {
    /// Nothing there.
    #[error("no bytes to decode")]
    Empty,
    /// Written by a later program.
    #[error("encoded in format {found}, this program reads format {FORMAT_VERSION}; upgrade it")]
    Version {
        /// The leading byte.
        found: u8,
    },
    /// Not such a value, or beyond the limit.
    #[error("damaged or oversized value: {0}")]
    Value(#[from] bincode::error::DecodeError),
    /// The value ends before the bytes do.
    #[error("{left} bytes left over behind a value")]
    Trailing {
        /// How many.
        left: usize,
    },
}

fn configuration()
-> bincode::config::Configuration<bincode::config::LittleEndian, bincode::config::Varint, bincode::config::Limit<DECODE_MAX>> {
    bincode::config::standard().with_limit::<DECODE_MAX>()
}

/// Encodes a value.
pub fn encode<T: Serialize>(value: &T) -> Vec<u8> {
    let mut bytes = vec![FORMAT_VERSION];
    bincode::serde::encode_into_std_write(value, &mut bytes, configuration()).expect("values of this crate encode into memory");
    bytes
}

/// Decodes a value, and nothing but that value.
///
/// # Errors
/// Any input that [`encode`] did not write; never a panic, never an allocation beyond [`DECODE_MAX`].
pub fn decode<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, InvalidBytes> {
    let (&found, body) = bytes.split_first().ok_or(InvalidBytes::Empty)?;
    if found != FORMAT_VERSION {
        return Err(InvalidBytes::Version { found });
    }
    let (value, read) = bincode::serde::decode_from_slice(body, configuration())?;
    match body.len() - read {
        0 => Ok(value),
        left => Err(InvalidBytes::Trailing { left }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_left_over_is_an_error() {
        let mut bytes = encode(&7u32);
        assert_eq!(decode::<u32>(&bytes).expect("own bytes"), 7);
        bytes.push(0);
        assert!(matches!(decode::<u32>(&bytes), Err(InvalidBytes::Trailing { left: 1 })));
    }

    #[test]
    fn a_later_format_is_refused_by_name() {
        assert!(matches!(decode::<u32>(&[9, 7]), Err(InvalidBytes::Version { found: 9 })));
        assert!(matches!(decode::<u32>(&[]), Err(InvalidBytes::Empty)));
    }

    #[test]
    fn s34_a_claimed_length_allocates_nothing() {
        // A vector and a text of 2^40 elements in a few bytes.
        let mut bytes = vec![FORMAT_VERSION, 253];
        bytes.extend_from_slice(&(1u64 << 40).to_le_bytes());
        assert!(decode::<Vec<u64>>(&bytes).is_err());
        assert!(decode::<Vec<u8>>(&bytes).is_err());
        assert!(decode::<String>(&bytes).is_err());
    }
}
