//! Whether nodes that know the same hold the same, and what it costs to find out.

use larder_protocol::message::NumberedRecord;
use larder_protocol::message::compare::Reconciling;
use larder_protocol::record::{Numbered, Record};
use larder_protocol::stamp::{HybridTime, Stamp};
use larder_protocol::vector::{Origin, VersionVector};

use super::*;
use crate::peers::reconcile;

fn origin(node: u8) -> Origin {
    Origin { node: NodeId([node; 32]), incarnation: 1 }
}

/// A record that no exchange has told of; those whose numbers end alike are about the same tag, when they are few.
fn record(sequence: u64, time: u64, value: Option<u8>) -> Numbered {
    let about = if sequence < 20 { sequence % 10 } else { sequence };
    let key = Key::Tag(repository(), format!("t{about}").parse().expect("tag"));
    let target = |byte| Value::Tag(larder_protocol::record::TagTarget { digest: Digest::sha256(&[byte]), replaced: None });
    let stamp = Stamp { time: HybridTime(time), node: origin(9).node };
    Numbered { origin: origin(9), sequence, record: Record { key, value: value.map(target), stamp } }
}

async fn slip(site: &Site, records: Vec<Numbered>) {
    site.store.run(move |store| store.apply(records, &VersionVector::default())).await.expect("applied");
}

/// Two connected nodes that know the same, the one that asks first.
async fn pair() -> (Site, Site) {
    let (a, b) = (Site::start("a", "x").await, Site::start("b", "x").await);
    a.let_in(&b).await;
    until("both know the same", || a.store.vector() == b.store.vector()).await;
    if a.node() < b.node() { (a, b) } else { (b, a) }
}

#[tokio::test(flavor = "multi_thread")]
async fn i5_what_differs_under_one_vector_is_found_told_and_mended() {
    let (a, b) = pair().await;
    // One that only one side has; one that is deleted on one side; one that is older on the other.
    slip(&a, vec![record(1, 5, Some(1)), record(2, 6, None), record(3, 7, Some(3)), record(4, 4, Some(4))]).await;
    slip(&b, vec![record(12, 5, Some(2)), record(13, 9, Some(9)), record(5, 4, Some(4))]).await;
    let link = a.peers.inner.links.get(&b.node()).expect("connected");
    let found = reconcile::check(&a.peers.inner, &link, None).await.expect("compared");
    assert!(found.is_some() && a.metrics.state_differences.get() == 0, "once may be an exchange under way");
    assert_eq!(reconcile::check(&a.peers.inner, &link, found).await.expect("compared"), None);
    for sequence in 1..=5 {
        let key = record(sequence, 1, None).record.key;
        let standing = a.store.record(&key).expect("readable");
        assert_eq!(standing, b.store.record(&key).expect("readable"), "{sequence}");
        assert_eq!(standing.expect("there").value.is_none(), sequence == 2);
    }
    assert_eq!(a.metrics.state_differences.get(), 1);
    assert_eq!(reconcile::check(&a.peers.inner, &link, None).await.expect("compared"), None);
    for site in [&a, &b] {
        assert!(site.store.run(|store| store.sums_are_right()).await.expect("counted"));
    }
}

/// The figures: set RECORDS=1000000 to take them at the size that the design speaks of.
#[tokio::test(flavor = "multi_thread")]
async fn ten_of_many_records_are_found_by_few_bytes() {
    let count: u64 = std::env::var("RECORDS").ok().and_then(|count| count.parse().ok()).unwrap_or(20_000);
    let (a, b) = pair().await;
    let mut sequence = 0;
    while sequence < count {
        let batch: Vec<_> = (sequence + 1..=(sequence + 10_000).min(count)).map(|n| record(n + 20, n, Some(1))).collect();
        sequence += batch.len() as u64;
        slip(&a, batch.clone()).await;
        slip(&b, batch.into_iter().filter(|it| it.sequence % (count / 10) != 7).collect()).await;
    }
    let link = a.peers.inner.links.get(&b.node()).expect("connected");
    let before = link.connection.bytes();
    let begun = Instant::now();
    let mended = reconcile::mend(&a.peers.inner, &link, 3).await.expect("mended");
    let (took, bytes) = (begun.elapsed(), link.connection.bytes() - before);
    println!("{count} records, 10 differ: reconciled in {took:?} with {bytes} bytes both ways");
    assert_eq!((mended.sent, mended.received), (10, 0));
    assert!(bytes < 64 << 10, "{bytes}");
    // By the vectors: what the other is known to lack.
    let ten: Vec<_> = (0..10).map(|n| (Key::Unknown { kind: 900, key: vec![n] }, Some(Value::Unknown(vec![n; 100])))).collect();
    let (before, begun) = (link.connection.bytes(), Instant::now());
    a.store.run(move |store| store.commit(Commit { records: ten, ..Commit::default() })).await.expect("written");
    until("they are there", || b.store.vector() == a.store.vector()).await;
    let (took, bytes) = (begun.elapsed(), link.connection.bytes() - before);
    println!("{count} records, 10 are new: synced in {took:?} with {bytes} bytes both ways");
    assert!(bytes < 64 << 10 && took < Duration::from_secs(5), "{bytes} bytes, {took:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn s34_a_peer_that_reconciles_nonsense_gets_nowhere() {
    let a = Site::start("a", "x").await;
    slip(&a, vec![record(1, 1, Some(1))]).await;
    let impostor = Impostor::of(&a).await;
    let ask = larder_protocol::message::compare::Reconcile { kind: 3, places: (0..=255).collect() };
    for message in [
        Reconciling::Round(vec![]),
        Reconciling::Round(vec![0x61; 70_000]),
        Reconciling::Want(vec![[0; 32]; 20_000]),
        Reconciling::Records(vec![]),
        Reconciling::Done,
    ] {
        let mut stream = impostor.connection.open(&Request::Reconcile(ask.clone())).await.expect("open");
        stream.send.message(&message).await.expect("sent");
        // It ends, or answers a round; it does not hang and does not fall.
        let _ = tokio::time::timeout(DEADLINE, stream.receive.message::<Reconciling>()).await.expect("an end");
    }
    let wrong = larder_protocol::message::compare::Reconcile { kind: u16::MAX, places: vec![0; 5000] };
    let mut stream = impostor.connection.open(&Request::Reconcile(wrong)).await.expect("open");
    assert!(!matches!(stream.receive.message::<Reconciling>().await, Ok(Some(_))));
    assert!(!impostor.connection.is_closed());
}

#[tokio::test(flavor = "multi_thread")]
async fn f43_a_peer_of_version_1_syncs_both_ways_and_unknown_kinds_pass() {
    let a = Site::start("a", "x").await;
    let image = a.push_image("mine").await;
    let impostor = Impostor::speaking(&a, 1).await;
    let theirs = NumberedRecord {
        origin: origin(9),
        sequence: 1,
        record: larder_protocol::record::RawRecord {
            kind: 900,
            key: vec![1],
            value: Some(vec![2]),
            stamp: Stamp { time: HybridTime::from_ms(1), node: origin(9).node },
        },
    };
    let vector: VersionVector = [(origin(9), 1)].into_iter().collect();
    let updates = vec![Update::Records(vec![theirs.clone()]), Update::Caught(vector.clone())];
    impostor.answer(move |request| match request {
        Request::Sync(_) => Reply::Updates(updates.clone()),
        other => panic!("version 1 does not know {other:?}"),
    });
    until("what it has is here", || a.store.vector().covers(&vector)).await;
    let mut stream = impostor.connection.open(&Request::Sync(VersionVector::default())).await.expect("open");
    let (mut kinds, mut tags) = (Vec::new(), Vec::new());
    loop {
        match stream.receive.message::<Update>().await.expect("sound").expect("it stays open") {
            Update::Records(records) => {
                for record in records {
                    kinds.push(record.record.kind);
                    if let Ok(Record { value: Some(Value::Tag(target)), .. }) = record.record.parse() {
                        tags.push(target.digest);
                    }
                }
            }
            Update::Caught(known) if known.covers(&vector) => break,
            Update::Caught(_) => {}
            other => panic!("version 1 does not know {other:?}"),
        }
    }
    assert!(kinds.contains(&900) && tags == [image]);
}
