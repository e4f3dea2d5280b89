//! Every object key in a bucket.
//!
//! ```text
//! <prefix>/
//!   v1/
//!     cluster                           whose packs these are
//!     checkpoints/
//!       0001764105600000-<writer>       milliseconds, 16 digits; 52 letters of the writer
//!     packs/
//!       <writer>-<incarnation>/         52 letters of the writer; milliseconds, decimal
//!         000000000001.tar              the pack's sequence, 12 digits
//! ```
//!
//! The writer is the key by which it signs: the id of a node that has its first key still, another one for a node that has changed it.
//!
//! A name is used once: the sequence is saved before the object is put. So nothing here is ever overwritten, and correctness
//! needs no conditional writes. Keys come back from listings and from other nodes' records: they are parsed, not trusted.

use larder_protocol::record::PackId;
use larder_protocol::stamp::NodeId;
use larder_protocol::vector::Origin;

const CLUSTER: &str = "v1/cluster";
const CHECKPOINTS: &str = "v1/checkpoints/";
const STAMP_DIGITS: usize = 16;
const PACKS: &str = "v1/packs/";
const EXTENSION: &str = ".tar";
const SEQUENCE_DIGITS: usize = 12;

/// The key of the object that says whose bucket it is.
pub fn cluster(prefix: &str) -> String {
    with_prefix(prefix, CLUSTER)
}

/// What the keys of all checkpoints begin with.
pub fn checkpoints(prefix: &str) -> String {
    with_prefix(prefix, CHECKPOINTS)
}

/// The key of a checkpoint.
pub fn checkpoint(prefix: &str, created_ms: u64, writer: &NodeId) -> String {
    format!("{}{}", checkpoint_from(prefix, created_ms), writer.letters())
}

/// What sorts before every checkpoint of this time and behind all that are older.
pub fn checkpoint_from(prefix: &str, created_ms: u64) -> String {
    format!("{}{created_ms:0width$}-", checkpoints(prefix), width = STAMP_DIGITS)
}

/// Reads what [`checkpoint`] wrote: its time and writer; `None` for anything else.
pub fn parse_checkpoint(prefix: &str, key: &str) -> Option<(u64, NodeId)> {
    let (stamp, letters) = key.strip_prefix(&checkpoints(prefix))?.split_once('-')?;
    let parsed = (stamp.parse().ok()?, NodeId::parse(letters)?);
    (checkpoint(prefix, parsed.0, &parsed.1) == key).then_some(parsed)
}

/// What the keys of all packs begin with.
pub fn packs(prefix: &str) -> String {
    with_prefix(prefix, PACKS)
}

fn with_prefix(prefix: &str, name: &str) -> String {
    if prefix.is_empty() { name.to_owned() } else { format!("{prefix}/{name}") }
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
                let key = checkpoint(prefix, sequence, &id.origin.node);
                assert_eq!(parse_checkpoint(prefix, &key), Some((sequence, id.origin.node)));
                assert!(key > checkpoint_from(prefix, sequence) && parse_pack(prefix, &key).is_none());
                assert_eq!(parse_checkpoint(prefix, &key.replace("checkpoints/", "checkpoints/0")), None);
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
