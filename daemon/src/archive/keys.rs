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
//!         000000000002.DEEP_ARCHIVE.tar the same, of a storage class that is not the standard one
//! ```
//!
//! The class in the name says what the pack was put as, to whoever has its record or a listing and nothing else. A bucket's rules may have moved it
//! since: what decides whether it can be read is the bucket's answer.
//! Packs and checkpoints that are encrypted have names that end in `.age` (see `encrypted`).
//!
//! The writer is the key by which it signs: the id of a node that has its first key still, another one for a node that has changed it.
//!
//! A name is used once: the sequence is saved before the object is put. So nothing here is ever overwritten, and correctness
//! needs no conditional writes. Keys come back from listings and from other nodes' records: they are parsed, not trusted.

use larder_protocol::record::PackId;
use larder_protocol::stamp::NodeId;
use larder_protocol::vector::Origin;

use crate::config::StorageClass;

const CLUSTER: &str = "v1/cluster";
const CHECKPOINTS: &str = "v1/checkpoints/";
const STAMP_DIGITS: usize = 16;
const PACKS: &str = "v1/packs/";
const EXTENSION: &str = ".tar";
/// What the names of encrypted objects end in, behind what the names of others are.
pub const ENDING: &str = ".age";
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

/// Reads what [`checkpoint`] wrote, encrypted or not: its time and writer; `None` for anything else.
pub fn parse_checkpoint(prefix: &str, key: &str) -> Option<(u64, NodeId)> {
    let key = key.strip_suffix(ENDING).unwrap_or(key);
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

/// The key of a pack of the standard class.
pub fn pack(prefix: &str, id: &PackId) -> String {
    pack_of(prefix, id, &StorageClass::STANDARD)
}

/// The key of a pack.
pub fn pack_of(prefix: &str, id: &PackId, class: &StorageClass) -> String {
    let Origin { node, incarnation } = id.origin;
    let class = if class.is_standard() { String::new() } else { format!(".{}", class.in_key()) };
    format!("{}{}-{incarnation}/{:0width$}{class}{EXTENSION}", packs(prefix), node.letters(), id.sequence, width = SEQUENCE_DIGITS)
}

/// Reads what [`pack_of`] wrote, encrypted or not; `None` for anything else, other spellings of the same pack included.
pub fn parse_pack(prefix: &str, key: &str) -> Option<PackId> {
    let key = key.strip_suffix(ENDING).unwrap_or(key);
    let (writer, file) = key.strip_prefix(&packs(prefix))?.split_once('/')?;
    let (letters, incarnation) = writer.split_once('-')?;
    let origin = Origin { node: NodeId::parse(letters)?, incarnation: incarnation.parse().ok()? };
    let sequence = file.split('.').next().unwrap_or_default().parse().ok()?;
    let id = PackId { origin, sequence };
    (pack_of(prefix, &id, &class_of(key)) == key).then_some(id)
}

/// The storage class that a pack's key names; of anything else, the standard one.
pub fn class_of(key: &str) -> StorageClass {
    let file = key.rsplit('/').next().unwrap_or_default();
    let file = file.strip_suffix(ENDING).unwrap_or(file);
    let class = file.strip_suffix(EXTENSION).and_then(|file| StorageClass::of_key(file.split_once('.')?.1));
    class.unwrap_or(StorageClass::STANDARD)
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
                for class in ["DEEP_ARCHIVE", "frozen:Cold_1", "STANDARD"] {
                    let class: StorageClass = class.parse().expect("a class");
                    let key = pack_of(prefix, &id, &class);
                    for key in [key.clone(), format!("{key}{ENDING}")] {
                        assert_eq!((parse_pack(prefix, &key), class_of(&key)), (Some(id), class.clone()), "{key}");
                    }
                    // A listing that goes on behind a pack goes on behind it, whatever its class.
                    assert!(key <= pack(prefix, &id) && (sequence > 999 || key < pack(prefix, &PackId { sequence: sequence + 1, ..id })));
                }
                assert_eq!(parse_pack(prefix, &(pack(prefix, &id) + ENDING)), Some(id));
                let key = checkpoint(prefix, sequence, &id.origin.node);
                assert_eq!(parse_checkpoint(prefix, &key), Some((sequence, id.origin.node)));
                assert_eq!(parse_checkpoint(prefix, &format!("{key}{ENDING}")), Some((sequence, id.origin.node)));
                assert!(key > checkpoint_from(prefix, sequence) && parse_pack(prefix, &key).is_none());
                assert_eq!(parse_checkpoint(prefix, &key.replace("checkpoints/", "checkpoints/0")), None);
            }
        }
    }

    #[test]
    fn f36_a_packs_class_stands_in_its_name_for_good() {
        let id = PackId { origin: Origin { node: NodeId([5; 32]), incarnation: 17 }, sequence: 12 };
        for (class, file) in [
            ("STANDARD", "000000000012.tar"),
            ("DEEP_ARCHIVE", "000000000012.DEEP_ARCHIVE.tar"),
            ("frozen:Cold", "000000000012.frozen-Cold.tar"),
        ] {
            let key = pack_of("p", &id, &class.parse().expect("a class"));
            assert_eq!(key, format!("p/v1/packs/{}-17/{file}", id.origin.node.letters()));
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
            key.replace(".tar", ".STANDARD.tar"),
            key.replace(".tar", ".frozen-GLACIER.tar"),
            key.replace(".tar", "..tar"),
            key.replace(".tar", ".GLACIER.x.tar"),
            key.replace(".tar", ".age"),
            format!("{key}{ENDING}{ENDING}"),
        ] {
            assert_eq!(parse_pack("p", &bad), None, "{bad}");
        }
        assert_eq!(parse_pack("", &key), None);
    }
}
