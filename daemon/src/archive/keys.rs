//! Every object key in a bucket.
//!
//! ```text
//! <prefix>/
//!   v1/
//!     packs/
//!       <writer>-<incarnation>/         52 letters of the node id; milliseconds, decimal
//!         000000000001.tar              the pack's sequence, 12 digits
//! ```
//!
//! A name is used once: the sequence is saved before the object is put. So nothing here is ever overwritten, and correctness
//! needs no conditional writes. Keys come back from listings and from other nodes' records: they are parsed, not trusted.

use larder_protocol::record::PackId;
use larder_protocol::stamp::NodeId;
use larder_protocol::vector::Origin;

const PACKS: &str = "v1/packs/";
const EXTENSION: &str = ".tar";
const SEQUENCE_DIGITS: usize = 12;

/// What the keys of all packs begin with.
pub fn packs(prefix: &str) -> String {
    if prefix.is_empty() { PACKS.to_owned() } else { format!("{prefix}/{PACKS}") }
}

/// The key of a pack.
pub fn pack(prefix: &str, id: &PackId) -> String {
    let Origin { node, incarnation } = id.origin;
    format!("{}{}-{incarnation}/{:0width$}{EXTENSION}", packs(prefix), node.letters(), id.sequence, width = SEQUENCE_DIGITS)
}

/// Reads what [`pack`] wrote; `None` for anything else, other spellings of the same pack included.
pub fn parse_pack(prefix: &str, key: &str) -> Option<PackId> {
    let (writer, file) = key.strip_prefix(&packs(prefix))?.split_once('/')?;
    let (letters, incarnation) = writer.split_once('-')?;
    let origin = Origin { node: NodeId::parse(letters)?, incarnation: incarnation.parse().ok()? };
    let id = PackId { origin, sequence: file.strip_suffix(EXTENSION)?.parse().ok()? };
    (pack(prefix, &id) == key).then_some(id)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_read_back_what_they_name() {
        for prefix in ["", "fleet", "a/b"] {
            for sequence in [1, 999_999_999_999, u64::MAX] {
                let id = PackId { origin: Origin { node: NodeId([5; 32]), incarnation: 17 }, sequence };
                assert_eq!(parse_pack(prefix, &pack(prefix, &id)), Some(id));
            }
        }
    }

    #[test]
    fn s37_other_spellings_are_no_keys() {
        let id = PackId { origin: Origin { node: NodeId([5; 32]), incarnation: 17 }, sequence: 1 };
        let key = pack("p", &id);
        for bad in [
            key.replace("000000000001", "1"),
            key.replace("000000000001", "+00000000001"),
            key.replace("-17", "-017"),
            key.replace("/v1/", "/../v1/"),
            key.to_uppercase(),
            format!("{key}/x"),
            format!("/{key}"),
            key.replace(".tar", ""),
        ] {
            assert_eq!(parse_pack("p", &bad), None, "{bad}");
        }
        assert_eq!(parse_pack("", &key), None);
    }
}
