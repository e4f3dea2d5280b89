//! Bytes in serde, taken as a whole. serde's own `Vec<u8>` is a list of numbers, read one by one; what is written is the same.
//!
//! Nothing is allocated before the bytes are known to be there: they are borrowed from the input and copied.

use std::fmt;

use serde::de::{Deserializer, Error, Visitor};
use serde::ser::Serializer;

struct Bytes;

impl<'de> Visitor<'de> for Bytes {
    type Value = Vec<u8>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("bytes")
    }

    fn visit_bytes<E: Error>(self, bytes: &[u8]) -> Result<Vec<u8>, E> {
        Ok(bytes.to_vec())
    }
}

pub(crate) fn serialize<S: Serializer>(bytes: &[u8], to: S) -> Result<S::Ok, S::Error> {
    to.serialize_bytes(bytes)
}

pub(crate) fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<Vec<u8>, D::Error> {
    from.deserialize_bytes(Bytes)
}

/// The same for bytes that may be missing.
pub(crate) mod optional {
    use super::{Bytes, Deserializer, Error, Serializer, Visitor, fmt};

    struct Some<'a>(&'a [u8]);

    impl serde::Serialize for Some<'_> {
        fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
            to.serialize_bytes(self.0)
        }
    }

    struct Optional;

    impl<'de> Visitor<'de> for Optional {
        type Value = Option<Vec<u8>>;

        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("bytes or nothing")
        }

        fn visit_none<E: Error>(self) -> Result<Self::Value, E> {
            Ok(None)
        }

        fn visit_some<D: Deserializer<'de>>(self, from: D) -> Result<Self::Value, D::Error> {
            from.deserialize_bytes(Bytes).map(Option::Some)
        }
    }

    pub(crate) fn serialize<S: Serializer>(bytes: &Option<Vec<u8>>, to: S) -> Result<S::Ok, S::Error> {
        match bytes {
            None => to.serialize_none(),
            Option::Some(bytes) => to.serialize_some(&Some(bytes)),
        }
    }

    pub(crate) fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<Option<Vec<u8>>, D::Error> {
        from.deserialize_option(Optional)
    }
}

#[cfg(test)]
mod tests {
    use serde::{Deserialize, Serialize};

    use crate::codec::{decode, encode};

    #[derive(Debug, PartialEq, Serialize, Deserialize)]
    struct Listed {
        a: Vec<u8>,
        b: Option<Vec<u8>>,
        c: u16,
    }

    #[derive(Debug, PartialEq, Serialize, Deserialize)]
    struct Whole {
        #[serde(with = "super")]
        a: Vec<u8>,
        #[serde(with = "super::optional")]
        b: Option<Vec<u8>>,
        c: u16,
    }

    #[test]
    fn bytes_taken_whole_are_written_like_lists_of_numbers() {
        for (a, b) in [(vec![], None), (vec![0, 255, 3], Some(vec![])), (vec![7; 70_000], Some(vec![251, 252, 253, 254, 255]))] {
            let listed = Listed { a: a.clone(), b: b.clone(), c: 300 };
            let whole = Whole { a, b, c: 300 };
            let bytes = encode(&listed);
            assert_eq!(encode(&whole), bytes);
            assert_eq!(decode::<Whole>(&bytes).expect("the same bytes"), whole);
            for end in 0..bytes.len().min(50) {
                assert!(decode::<Whole>(&bytes[..end]).is_err(), "{end}");
            }
        }
        // A length that is not there.
        assert!(decode::<Whole>(&[1, 253, 0, 0, 0, 1, 0, 0, 0, 0]).is_err());
    }
}
