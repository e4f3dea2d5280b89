//! Tombstones that end, and members that come back after that.

use std::collections::BTreeMap;

use larder_protocol::digest::Digest;
use larder_protocol::record::Key;

use super::super::tests::{Place, push_image, repository, sync, tag};
use super::*;

const NAME: &str = "team/app";

fn tags(store: &Store) -> BTreeMap<String, Digest> {
    let tags = store.tags(&repository(NAME), None, 99).expect("readable");
    tags.into_iter().map(|info| (info.tag.to_string(), info.digest)).collect()
}

fn tombstones(store: &Store) -> usize {
    store.inner.index.scan(Table::Sync, DEAD, b"").count()
}

fn no_limit(_: &Origin) -> u64 {
    u64::MAX
}

/// Takes a copy of another node's state.
fn copy(from: &Store, to: &Store) -> usize {
    let exchange = from.exchange(&VersionVector::default()).expect("exchange");
    let covered = exchange.vector().clone();
    let mut told = Told::default();
    let records: Vec<_> = exchange.map(|numbered| numbered.expect("record")).collect();
    told.add(&records);
    // As an exchange does it: what is known already is not taken again.
    let known = to.vector();
    let news = records.into_iter().filter(|numbered| numbered.sequence > known.get(&numbered.origin)).collect();
    to.apply(news, &VersionVector::default()).expect("applied");
    to.take_snapshot(&told, &covered, &covered, &from.horizon()).expect("taken")
}

#[test]
fn f18_tombstones_end_when_everyone_has_seen_them_and_not_before() {
    let places = [1, 2].map(Place::new);
    let [a, b] = [&places[0], &places[1]].map(Place::open);
    push_image(&a, NAME, "kept", b"kept");
    push_image(&a, NAME, "gone", b"gone");
    sync(&a, &b);
    let before = b.vector();
    assert!(a.delete_tag(&repository(NAME), &tag("gone")).expect("deleted"));
    assert_eq!(tombstones(&a), 1);
    assert_eq!(a.purge_tombstones(&before, 0, no_limit).expect("purged"), 0, "the other has not seen it");
    sync(&a, &b);
    let seen = a.vector().common(&b.vector());
    assert_eq!(a.purge_tombstones(&seen, 3_600_000, no_limit).expect("purged"), 0, "it is young");
    assert_eq!(a.purge_tombstones(&seen, 0, |_| 1).expect("purged"), 0, "no archive knows of it");
    assert!(a.horizon().is_empty());
    for store in [&a, &b] {
        assert_eq!(store.purge_tombstones(&seen, 0, no_limit).expect("purged"), 1);
        assert_eq!((tombstones(store), tags(store).len()), (0, 1));
        assert!(seen.covers(&store.horizon()) && !store.horizon().is_empty());
        assert!(store.record(&Key::Tag(repository(NAME), tag("gone"))).expect("readable").is_none());
        assert!(store.sums_are_right().expect("counted"));
    }
    // Pushed again, it is there again, and its next tombstone is another one.
    push_image(&b, NAME, "gone", b"again");
    sync(&b, &a);
    assert_eq!(tags(&a).len(), 2);
    assert!(a.delete_tag(&repository(NAME), &tag("gone")).expect("deleted"));
    assert_eq!(tombstones(&a), 1);
    push_image(&a, NAME, "gone", b"over it");
    assert_eq!(tombstones(&a), 0);
    a.close();
    drop(a);
    assert_eq!(places[0].open().horizon(), b.horizon());
}

#[test]
fn f18_a_member_that_returns_takes_a_copy_and_brings_nothing_back_but_what_nobody_had_seen() {
    let places = [1, 2].map(Place::new);
    let [a, b] = [&places[0], &places[1]].map(Place::open);
    let live = push_image(&a, NAME, "live", b"live");
    push_image(&a, NAME, "gone", b"gone");
    push_image(&b, NAME, "moved", b"before");
    sync(&a, &b);
    sync(&b, &a);
    // One writes alone; on the other it is deleted, and forgotten.
    let own = push_image(&b, NAME, "own", b"own");
    let own_stamp = b.tag(&repository(NAME), &tag("own")).expect("readable").expect("there").stamp;
    assert!(a.delete_tag(&repository(NAME), &tag("gone")).expect("deleted"));
    let moved = push_image(&a, NAME, "moved", b"after");
    assert_eq!(a.purge_tombstones(&a.vector(), 0, no_limit).expect("purged"), 1);
    assert!(!b.vector().covers(&a.horizon()));
    let taken = copy(&a, &b);
    assert!(taken >= 1);
    assert!(b.vector().covers(&a.horizon()) && b.horizon().covers(&a.horizon()));
    let expected = BTreeMap::from([("live".to_owned(), live), ("moved".to_owned(), moved), ("own".to_owned(), own)]);
    assert_eq!(tags(&b), expected);
    assert_eq!(b.tag(&repository(NAME), &tag("own")).expect("readable").expect("there").stamp, own_stamp, "as it was written");
    sync(&b, &a);
    assert_eq!((tags(&a), a.vector()), (expected, b.vector()), "I4");
    assert_eq!(a.summary().kinds, b.summary().kinds, "I5");
    for store in [&a, &b] {
        assert!(store.sums_are_right().expect("counted"));
    }
    // What it dropped can be had again, on purpose.
    let versions = b.tag_history(&repository(NAME), &tag("gone"), 9).expect("readable");
    assert_eq!(versions.len(), 1);
    // Once more changes nothing.
    assert_eq!(copy(&a, &b), 0);
}

#[test]
fn f18_a_copy_that_broke_off_is_taken_again() {
    let places = [1, 2].map(Place::new);
    let [a, b] = [&places[0], &places[1]].map(Place::open);
    push_image(&a, NAME, "gone", b"gone");
    sync(&a, &b);
    assert!(a.delete_tag(&repository(NAME), &tag("gone")).expect("deleted"));
    push_image(&a, NAME, "new", b"new");
    a.purge_tombstones(&a.vector(), 0, no_limit).expect("purged");
    let some: Vec<_> = a.exchange(&b.vector()).expect("exchange").map(|numbered| numbered.expect("record")).collect();
    b.apply(some, &VersionVector::default()).expect("applied");
    assert!(!b.vector().covers(&a.horizon()), "nothing says that it was taken");
    copy(&a, &b);
    assert_eq!(tags(&b).into_keys().collect::<Vec<_>>(), ["new"]);
    assert_eq!(a.summary().kinds, b.summary().kinds, "I5");
}

#[test]
fn i10_what_the_other_means_something_else_by_stays() {
    let places = [1, 2].map(Place::new);
    let [a, b] = [&places[0], &places[1]].map(Place::open);
    push_image(&a, NAME, "kept", b"kept");
    sync(&a, &b);
    let (origin, told) = (a.origin(), Told::default());
    let (covered, mut agreed) = (a.vector(), a.vector());
    agreed.lower(&origin, 0);
    assert_eq!(b.take_snapshot(&told, &covered, &agreed, &VersionVector::default()).expect("taken"), 0);
    assert_eq!(tags(&b).len(), 1);
    assert!(b.take_snapshot(&told, &covered, &covered, &VersionVector::default()).expect("taken") > 0, "the other has it no more");
    assert!(tags(&b).is_empty());
}

#[test]
fn f43_what_a_program_of_before_wrote_is_summed_listed_and_counted() {
    let place = Place::new(1);
    let store = place.open();
    push_image(&store, NAME, "kept", b"kept");
    push_image(&store, NAME, "gone", b"gone");
    store.delete_tag(&repository(NAME), &tag("gone")).expect("deleted");
    let (sums, rows) = (store.summary().kinds, store.inner.index.scan(Table::Sync, b"", b"").count());
    // That program moves the clock on, and knows none of these rows.
    let mut batch = Batch::default();
    for row in store.inner.index.scan(Table::Sync, b"", b"") {
        store.inner.index.delete(&mut batch, Table::Sync, &row.expect("readable").0);
    }
    let later = larder_protocol::stamp::HybridTime::from_ms(now_ms() + 5);
    store.inner.index.put_row(&mut batch, Table::Meta, super::super::journal::META_CLOCK, &later);
    store.inner.index.write(batch).expect("written");
    store.close();
    drop(store);
    let store = place.open();
    assert!(store.sums_are_right().expect("counted"));
    assert_eq!((store.summary().kinds, tombstones(&store)), (sums, 1));
    // All places of a kind are written then, and only those that were touched before.
    assert!(store.inner.index.scan(Table::Sync, b"", b"").count() >= rows);
}

#[test]
fn s33_a_node_with_too_many_records_is_stopped_and_others_go_on() {
    use larder_protocol::record::{Record, Value};
    use larder_protocol::stamp::{HybridTime, NodeId, Stamp};
    let place = Place::new(1);
    let store = place.open();
    store.limit_records(10);
    let origin = |node| Origin { node: NodeId([node; 32]), incarnation: 1 };
    let record = |node: u8, sequence: u64, key: u64| {
        let key = Key::Unknown { kind: 900, key: [&[node][..], &key.to_le_bytes()].concat() };
        let stamp = Stamp { time: HybridTime(sequence), node: origin(node).node };
        Numbered { origin: origin(node), sequence, record: Record { key, value: Some(Value::Unknown(vec![])), stamp } }
    };
    let flood: Vec<_> = (1..=50).map(|n| record(9, n, n)).chain([record(8, 1, 1)]).collect();
    let advance: VersionVector = [(origin(9), 50), (origin(8), 1)].into_iter().collect();
    let applied = store.apply(flood, &advance).expect("applied");
    assert_eq!((applied.changed.len(), applied.over_quota, applied.refused), (11, 40, 40));
    assert_eq!((store.vector().get(&origin(9)), store.vector().get(&origin(8))), (0, 1));
    // What it writes over what it has is no more than it had.
    assert_eq!(store.apply(vec![record(9, 60, 3)], &VersionVector::default()).expect("applied").changed.len(), 1);
    store.close();
    drop(store);
    let store = place.open();
    store.limit_records(10);
    assert_eq!(store.apply(vec![record(9, 61, 61)], &VersionVector::default()).expect("applied").over_quota, 1);
    store.limit_records(11);
    assert_eq!(store.apply(vec![record(9, 61, 61)], &VersionVector::default()).expect("applied").changed.len(), 1);
    assert!(store.apply(vec![record(9, 62, 62)], &VersionVector::default()).expect("applied").over_quota == 1);
    // This node's own are its own affair.
    for n in 0..20 {
        push_image(&store, NAME, &format!("t{n}"), b"own");
    }
}
