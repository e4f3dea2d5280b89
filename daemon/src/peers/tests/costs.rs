//! What it costs two nodes that there is nothing to say: bytes of UDP both ways, headers and acknowledgements included.

use larder_protocol::message::Seen;
use larder_protocol::record::{Numbered, Record};
use larder_protocol::stamp::{HybridTime, Stamp};
use larder_protocol::vector::{Origin, VersionVector};

use super::*;
use crate::peers::reconcile;

/// Much less than it takes to look for the size of packets, and more than a handshake and hellos.
const CHEAP: u64 = 24_000;
/// Promised of an exchange between two nodes that know 16 origins and the same of each.
const IDLE: u64 = 512;

#[tokio::test(flavor = "multi_thread")]
async fn nodes_that_meet_again_know_how_large_packets_may_be() {
    let (a, b) = (Site::start("a", "x").await, Site::start("b", "x").await);
    a.let_in(&b).await;
    let link = |site: &Site, other: &Site| site.peers.inner.links.get(&other.node());
    until("the path was looked at", || {
        [link(&a, &b), link(&b, &a)].iter().all(|link| link.as_ref().is_some_and(|link| link.connection.packet_size() > 6000))
    })
    .await;
    // Until nothing larger is tried.
    tokio::time::sleep(Duration::from_secs(1)).await;
    let mut last = link(&a, &b).expect("connected");
    println!("the first connection took {} bytes", last.connection.bytes());
    for _ in 0..3 {
        last.connection.close("once more");
        until("they meet again", || {
            link(&a, &b).is_some_and(|link| !Arc::ptr_eq(&link, &last) && link.connection.packet_size() > 6000) && link(&b, &a).is_some()
        })
        .await;
        tokio::time::sleep(Duration::from_secs(1)).await;
        last = link(&a, &b).expect("connected");
        let bytes = last.connection.bytes();
        println!("the next one took {bytes}");
        assert!(bytes < CHEAP, "{bytes} bytes");
    }
}

/// Fewest bytes that something takes over a connection, of several times: between two nodes there is always a question whether the other is alive.
async fn fewest<F: Future>(connection: &Connection, what: impl Fn() -> F) -> u64 {
    let mut fewest = u64::MAX;
    for _ in 0..5 {
        // So that nothing is left to be acknowledged, before and after.
        let settle = tokio::time::sleep(Duration::from_millis(100));
        settle.await;
        let before = connection.bytes();
        what().await;
        tokio::time::sleep(Duration::from_millis(100)).await;
        fewest = fewest.min(connection.bytes() - before);
    }
    fewest
}

#[tokio::test(flavor = "multi_thread")]
async fn an_idle_exchange_of_sixteen_origins_takes_few_bytes() {
    let (a, b) = (Site::start("a", "x").await, Site::start("b", "x").await);
    a.let_in(&b).await;
    let (a, b) = if a.node() < b.node() { (a, b) } else { (b, a) };
    // Records of fourteen other nodes, each of a kind of its own.
    let records = |stamp: u8| {
        let origin = Origin { node: NodeId([stamp; 32]), incarnation: 1_700_000_000_000 };
        let key = Key::Unknown { kind: 30 + u16::from(stamp), key: vec![stamp] };
        let stamp = Stamp { time: HybridTime::from_ms(1_700_000_000_000), node: origin.node };
        Numbered { origin, sequence: 1_000_000, record: Record { key, value: Some(Value::Unknown(vec![1])), stamp } }
    };
    let records: Vec<_> = (1..=14).map(records).collect();
    let known: VersionVector = records.iter().map(|numbered| (numbered.origin, numbered.sequence)).collect();
    a.store.run(move |store| store.apply(records, &known)).await.expect("applied");
    a.push_image("one").await;
    until("both know the same", || a.store.vector().len() == 16 && a.store.vector() == b.store.vector()).await;
    let link = a.peers.inner.links.get(&b.node()).expect("connected");
    until("the path was looked at", || link.connection.packet_size() > 6000).await;
    tokio::time::sleep(Duration::from_secs(1)).await;

    let asked = fewest(&link.connection, async || {
        let mut stream = link.connection.open(&Request::SyncBrief(a.store.vector().hash())).await.expect("a stream");
        loop {
            match stream.receive.message::<Update>().await.expect("an answer").expect("an answer") {
                Update::Caught(_) => break,
                Update::Records(_) => {}
                other => panic!("{other:?}"),
            }
        }
        stream.send.message(&Seen(VersionVector::default())).await.expect("sent");
    });
    let asked = asked.await;
    let compared = fewest(&link.connection, async || {
        assert_eq!(reconcile::check(&a.peers.inner, &link, None).await.expect("compared"), None);
    });
    let compared = compared.await;
    println!("an idle exchange of 16 origins: {asked} bytes; comparing what is held: {compared}");
    assert!(asked <= IDLE && compared <= IDLE, "{asked} and {compared} bytes");
}
