//! Records that are not believed: from the future, and two under one number.

use larder_protocol::message::NumberedRecord;
use larder_protocol::record::RawRecord;
use larder_protocol::stamp::{HybridTime, Stamp};
use larder_protocol::vector::{Origin, VersionVector};

use super::*;

const YEAR_MS: u64 = 365 * 86_400_000;

fn origin(node: u8) -> Origin {
    Origin { node: NodeId([node; 32]), incarnation: 1 }
}

/// A record of a kind that nobody knows.
fn record(node: u8, sequence: u64, key: u8, ms: u64) -> NumberedRecord {
    let stamp = Stamp { time: HybridTime::from_ms(ms), node: NodeId([node; 32]) };
    NumberedRecord { origin: origin(node), sequence, record: RawRecord { kind: 900, key: vec![key], value: Some(vec![key]), stamp } }
}

fn vector(entries: &[(u8, u64)]) -> VersionVector {
    entries.iter().map(|(node, sequence)| (origin(*node), *sequence)).collect()
}

fn now_ms() -> u64 {
    std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).expect("after 1970").as_millis() as u64
}

/// A site that has heard these updates from a member.
async fn told(updates: Vec<Update>) -> (Site, Impostor) {
    let site = Site::start("a", "x").await;
    let impostor = Impostor::of(&site).await;
    impostor.answer(move |request| match request {
        Request::Sync(_) | Request::SyncBrief(_) => Reply::Updates(updates.clone()),
        _ => Reply::Silence,
    });
    (site, impostor)
}

fn has(site: &Site, key: u8) -> bool {
    let key = Key::Unknown { kind: 900, key: vec![key] };
    site.store.record(&key).expect("readable").is_some()
}

#[tokio::test(flavor = "multi_thread")]
async fn s31_a_record_of_the_year_3000_is_put_aside_told_of_and_passed_on() {
    let soon = now_ms() + 301_500;
    let far = now_ms() + 974 * YEAR_MS;
    let updates = vec![
        Update::Records(vec![record(9, 1, 1, 1), record(9, 2, 2, far), record(9, 3, 3, 3), record(9, 4, 4, soon)]),
        Update::Caught(vector(&[(9, 4)])),
    ];
    let (a, _impostor) = told(updates).await;
    until("the vector passes what is kept aside", || a.store.vector().covers(&vector(&[(9, 4)]))).await;
    assert!(has(&a, 1) && has(&a, 3) && !has(&a, 2));
    let aside = a.store.quarantined(9).expect("readable");
    assert_eq!((aside.last().map(|it| it.sequence), a.metrics.refused_records.get()), (Some(2), 0));
    // Whoever joins later gets it from here, and judges the same.
    let b = Site::start("b", "x").await;
    a.let_in(&b).await;
    until("the other has it aside too", || b.store.quarantined(9).expect("readable").iter().any(|it| it.sequence == 2)).await;
    until("its vector passes it too", || b.store.vector().covers(&vector(&[(9, 4)]))).await;
    assert!(!has(&b, 2));
    // What is due comes to its right, by the clock alone.
    until("the nearer one's time has come on both", || has(&a, 4) && has(&b, 4)).await;
    let (a, b) = (a.stop().await.start().await, b);
    assert_eq!((a.store.quarantined_count(), b.store.quarantined_count()), (1, 1));
    until("it shows in the metrics", || a.metrics.quarantined_records.get() == 1).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn f13_a_tag_is_not_locked_by_a_record_from_the_future_until_its_time() {
    let (a, _impostor) = told(vec![Update::Records(vec![record(9, 1, 1, now_ms() + YEAR_MS)]), Update::Caught(vector(&[(9, 1)]))]).await;
    until("it is put aside", || a.store.quarantined_count() == 1).await;
    let key = Key::Unknown { kind: 900, key: vec![1] };
    let write = Commit { records: vec![(key.clone(), Some(Value::Unknown(b"mine".to_vec())))], ..Commit::default() };
    let written = a.store.run(move |store| store.commit(write)).await.expect("written");
    assert!(written[0].record.stamp.time.ms() <= now_ms(), "and the own clock does not follow it");
    let standing = a.store.record(&key).expect("readable").expect("there");
    assert_eq!(standing.value, Some(Value::Unknown(b"mine".to_vec())));
}

#[tokio::test(flavor = "multi_thread")]
async fn s32_two_records_under_one_number_are_both_kept_and_hold_the_vector_back() {
    let updates = vec![
        Update::Records(vec![record(9, 1, 1, 1), record(9, 2, 2, 2), record(8, 1, 8, 1)]),
        Update::Caught(vector(&[(8, 1)])),
        Update::Records(vec![record(9, 2, 7, 2), record(9, 3, 3, 3), record(8, 2, 9, 1)]),
        Update::Caught(vector(&[(9, 3), (8, 2)])),
    ];
    let (a, _impostor) = told(updates).await;
    until("the other origin goes on", || a.store.vector().covers(&vector(&[(8, 2)]))).await;
    let forks = a.store.forks().expect("readable");
    assert_eq!((forks.len(), forks[0].origin, forks[0].sequence, forks[0].records.len()), (1, origin(9), 2, 2));
    assert_eq!(a.store.vector().get(&origin(9)), 1, "nothing behind the fork is sure");
    assert!(has(&a, 2) && !has(&a, 7) && has(&a, 3));
    until("it shows in the metrics", || a.metrics.forked_origins.get() == 1).await;
    let a = a.stop().await.start().await;
    assert_eq!((a.store.forks().expect("readable").len(), a.store.forked_origins()), (1, 1));
}
