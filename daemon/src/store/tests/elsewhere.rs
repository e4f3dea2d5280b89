//! Records that come from other nodes: what stands, what waits, what was deleted.

use super::*;

#[test]
fn f17_a_push_of_what_is_there_survives_an_earlier_delete_elsewhere() {
    let (place_a, place_b) = (Place::new(1), Place::new(2));
    let (a, b) = (place_a.open(), place_b.open());
    let digest = push_image(&a, "a", "latest", b"content");
    sync(&a, &b);
    // Deleted on one side, then pushed again on the other, which has not heard of it.
    a.delete_manifest(&repository("a"), &digest).expect("deleted");
    std::thread::sleep(Duration::from_millis(5));
    assert_eq!(push_image(&b, "a", "latest", b"content"), digest);
    sync(&a, &b);
    sync(&b, &a);
    for store in [&a, &b] {
        assert_eq!(store.tag(&repository("a"), &tag("latest")).expect("readable").expect("there").digest, digest);
        assert!(store.manifest(&repository("a"), &digest).expect("readable").is_some());
    }
    assert_eq!(b.tag_history(&repository("a"), &tag("latest"), 9).expect("readable").len(), 1, "it never named anything else");
}

#[test]
fn i5_stores_that_exchanged_hold_the_same() {
    let (place_a, place_b) = (Place::new(1), Place::new(2));
    let (a, b) = (place_a.open(), place_b.open());
    for round in 0..30u8 {
        push_image(if round % 3 == 0 { &b } else { &a }, &format!("r{}", round % 4), &format!("t{}", round % 5), &[round]);
        if round % 7 == 0 {
            sync(&a, &b);
        }
    }
    a.delete_tag(&repository("r1"), &tag("t0")).expect("delete");
    sync(&a, &b);
    sync(&b, &a);
    assert_eq!(a.vector(), b.vector());
    assert_eq!(state(&a), state(&b));
    // Again, and the other way round: nothing changes.
    let before = state(&a);
    let everything: Vec<_> = b.exchange(&VersionVector::default()).expect("exchange").map(|numbered| numbered.expect("record")).collect();
    a.apply(everything.into_iter().rev().collect(), &b.vector()).expect("apply");
    assert_eq!(state(&a), before);
}

#[test]
fn f17_later_push_survives_an_earlier_delete() {
    let (place_a, place_b) = (Place::new(1), Place::new(2));
    let (a, b) = (place_a.open(), place_b.open());
    push_image(&a, "a", "t", b"first");
    sync(&a, &b);
    a.delete_tag(&repository("a"), &tag("t")).expect("delete");
    std::thread::sleep(Duration::from_millis(5));
    let later = push_image(&b, "a", "t", b"second");
    sync(&a, &b);
    sync(&b, &a);
    assert_eq!(state(&a), BTreeMap::from([("a:t".to_owned(), later)]));
    assert_eq!(state(&a), state(&b));
    b.delete_tag(&repository("a"), &tag("t")).expect("delete");
    sync(&b, &a);
    assert!(state(&a).is_empty() && state(&b).is_empty(), "I4");
}

#[test]
fn s31_a_record_of_the_future_waits_for_its_time_and_what_is_later_by_then_stands() {
    let place = Place::new(1);
    let store = place.open();
    let origin = Origin { node: NodeId([2; 32]), incarnation: 7 };
    let numbered = |sequence, name: &str, ms| Numbered {
        origin,
        sequence,
        record: Record {
            key: Key::Tag(repository("a"), tag(name)),
            value: Some(Value::Tag(TagTarget { digest: Digest::sha256(b""), replaced: None })),
            stamp: Stamp { time: HybridTime::from_ms(ms), node: origin.node },
        },
    };
    let (now, year) = (journal::now_ms(), 365 * 86_400_000);
    let advance: VersionVector = [(origin, 5)].into_iter().collect();
    let records = vec![numbered(3, "t", now + year), numbered(4, "u", 1000), numbered(5, "v", u64::MAX >> 16)];
    let applied = store.apply(records.clone(), &advance).expect("apply");
    assert_eq!((applied.changed.len(), applied.quarantined, store.vector().get(&origin)), (1, 2, 5));
    // Once more, and it is the same.
    let applied = store.apply(records, &advance).expect("apply");
    assert_eq!((applied.changed.len(), applied.quarantined, applied.forked, store.quarantined_count()), (0, 0, 0, 2));
    assert!(store.tag(&repository("a"), &tag("t")).expect("tag").is_none());
    // Others get all three.
    assert_eq!(store.tail(&origin, 0, 9).expect("tail").iter().map(|numbered| numbered.sequence).collect::<Vec<_>>(), [3, 4, 5]);
    store.close();
    drop(store);
    let store = place.open();
    assert_eq!(store.release_at(now + year - 301_000).expect("release").0, 0);
    assert_eq!(store.release_at(now + year - 299_000).expect("release").0, 1);
    assert_eq!(store.tag(&repository("a"), &tag("t")).expect("tag").expect("there").stamp.node, origin.node);
    assert_eq!(store.quarantined(9).expect("list").iter().map(|it| it.sequence).collect::<Vec<_>>(), [5]);
    assert_eq!(store.tail(&origin, 0, 9).expect("tail").len(), 3);
    assert!(store.sums_are_right().expect("counted"));
}

#[test]
fn f13_what_a_node_takes_back_in_a_later_life_does_not_come_to_its_time() {
    let place = Place::new(1);
    let store = place.open();
    let origin = |incarnation| Origin { node: NodeId([2; 32]), incarnation };
    let numbered = |origin: Origin, ms| Numbered {
        origin,
        sequence: 1,
        record: Record {
            key: Key::Tag(repository("a"), tag("t")),
            value: Some(Value::Tag(TagTarget { digest: Digest::sha256(b""), replaced: None })),
            stamp: Stamp { time: HybridTime::from_ms(ms), node: origin.node },
        },
    };
    let (now, year) = (journal::now_ms(), 365 * 86_400_000);
    let far = numbered(origin(1), now + year);
    assert_eq!(store.apply(vec![far.clone()], &VersionVector::default()).expect("apply").quarantined, 1);
    assert_eq!(store.apply(vec![numbered(origin(2), now)], &VersionVector::default()).expect("apply").changed.len(), 1);
    assert_eq!(store.quarantined_count(), 0);
    // Nor when it comes behind.
    let applied = store.apply(vec![far], &VersionVector::default()).expect("apply");
    assert_eq!((applied.quarantined, store.quarantined_count()), (0, 0));
    assert_eq!(store.release_at(now + 2 * year).expect("release").0, 0);
}

#[test]
fn f11_what_waited_under_a_number_of_a_life_that_is_over_comes_to_its_time_under_a_new_one() {
    let place = Place::new(1);
    let store = place.open();
    push_image(&store, "a", "mine", b"mine");
    let life = store.origin();
    let new = store.begin_life(life, 1).expect("begun");
    let (now, year) = (journal::now_ms(), 365 * 86_400_000);
    // A copy of its folder, whose clock is ahead, has written it, and the copy is gone.
    let record = Record {
        key: Key::Tag(repository("a"), tag("t")),
        value: Some(Value::Tag(TagTarget { digest: Digest::sha256(b""), replaced: None })),
        stamp: Stamp { time: HybridTime::from_ms(now + year), node: life.node },
    };
    let far = Numbered { origin: life, sequence: 9, record: record.clone() };
    assert_eq!(store.apply(vec![far], &VersionVector::default()).expect("apply").quarantined, 1);
    let before = store.vector();
    assert_eq!(store.release_at(now + year).expect("release").0, 1);
    // Of the life that is over nobody ever asks for number 9.
    let told = store.exchange(&before).expect("exchange").map(|numbered| numbered.expect("record")).last().expect("it is told");
    assert_eq!((told.origin, told.record), (new, record));
}
