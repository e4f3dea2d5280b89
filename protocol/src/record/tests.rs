//! The merge: whatever the order, the repetitions and the losses that were made good, all replicas agree.

use std::collections::BTreeMap;

use proptest::prelude::*;

use super::*;
use crate::stamp::HybridTime;

/// Few keys, few stamps, few values: so that they meet.
fn records() -> impl Strategy<Value = RawRecord> {
    let value = prop::option::of(0..3u8).prop_map(|value| value.map(|byte| vec![byte]));
    (0..3u8, 0..6u64, 0..3u8, value).prop_map(|(key, time, node, value)| RawRecord {
        kind: 900,
        key: vec![key],
        value,
        stamp: Stamp { time: HybridTime(time), node: NodeId([node; 32]) },
    })
}

type Replica = BTreeMap<Vec<u8>, RawRecord>;

fn merge(replica: &mut Replica, record: &RawRecord) {
    match replica.get_mut(&record.key) {
        Some(standing) if record.beats(standing) => *standing = record.clone(),
        Some(_) => {}
        None => drop(replica.insert(record.key.clone(), record.clone())),
    }
}

fn replica<'a>(records: impl IntoIterator<Item = &'a RawRecord>) -> Replica {
    let mut replica = Replica::new();
    for record in records {
        merge(&mut replica, record);
    }
    replica
}

proptest! {
    #[test]
    fn i5_replicas_agree_whatever_the_order_and_the_repetitions(
        records in prop::collection::vec(records(), 0..40),
        deliveries in prop::collection::vec(any::<prop::sample::Index>(), 0..80),
    ) {
        let expected = replica(&records);
        // Some records again and again, in any order, and at last each once, backwards.
        let scrambled = deliveries.iter().filter(|_| !records.is_empty()).map(|index| &records[index.index(records.len())]);
        prop_assert_eq!(replica(scrambled.chain(records.iter().rev())), expected);
    }

    #[test]
    fn merging_replicas_is_commutative_and_associative(
        a in prop::collection::vec(records(), 0..20), b in prop::collection::vec(records(), 0..20), c in prop::collection::vec(records(), 0..20),
    ) {
        let (a, b, c) = (replica(&a), replica(&b), replica(&c));
        let join = |x: &Replica, y: &Replica| replica(x.values().chain(y.values()));
        prop_assert_eq!(join(&a, &b), join(&b, &a));
        prop_assert_eq!(join(&join(&a, &b), &c), join(&a, &join(&b, &c)));
        prop_assert_eq!(join(&a, &a), a);
    }

    #[test]
    fn a_record_never_beats_itself_and_of_two_one_wins(a in records(), b in records()) {
        prop_assert!(!a.beats(&a));
        prop_assert_eq!(a.beats(&b) || b.beats(&a), (a.stamp, &a.value) != (b.stamp, &b.value));
    }

    #[test]
    fn s34_keys_and_values_of_random_bytes_never_panic(kind in 0u16..14, bytes in prop::collection::vec(any::<u8>(), 0..120)) {
        let _ = Key::parse(kind, &bytes);
        let _ = Value::parse(kind, &bytes);
    }
}

#[test]
fn a_pack_has_a_bounded_number_of_blobs() {
    let located = Located { digest: Digest::sha256(b""), offset: 0, length: 0 };
    let archived = |count| Archived {
        bucket: String::new(),
        object_key: String::new(),
        size: 0,
        created_ms: 0,
        records: 0,
        contents: vec![located; count],
    };
    let read = |count| Value::parse(kind::ARCHIVED, &Value::Archived(archived(count)).to_bytes());
    assert!(read(PACK_CONTENTS_MAX).is_ok());
    assert!(matches!(read(PACK_CONTENTS_MAX + 1), Err(InvalidRecord::TooMany { .. })));
}
