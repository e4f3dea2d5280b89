//! Records between nodes.

use larder_protocol::message::NumberedRecord;
use larder_protocol::record::RawRecord;
use larder_protocol::stamp::{HybridTime, Stamp};
use larder_protocol::vector::{Origin, VersionVector};

use super::*;

#[tokio::test(flavor = "multi_thread")]
async fn a_pushed_tag_shows_on_every_node_within_a_quarter_of_a_second() {
    let (a, b, c) = (Site::start("a", "x").await, Site::start("b", "x").await, Site::start("c", "y").await);
    a.push_image("before").await;
    a.let_in(&b).await;
    a.let_in(&c).await;
    // They learn of each other from the first.
    until("all are connected", || b.sees(&c, "connected") && c.sees(&b, "connected")).await;
    until("what was there before came too", || b.tag("before").is_some() && c.tag("before").is_some()).await;
    let mut slowest = Duration::ZERO;
    for (round, site) in [&a, &b, &c].into_iter().cycle().take(30).enumerate() {
        let digest = site.push_image(&format!("t{round}")).await;
        let pushed = Instant::now();
        until("the tag is everywhere", || [&a, &b, &c].iter().all(|site| site.tag(&format!("t{round}")) == Some(digest))).await;
        slowest = slowest.max(pushed.elapsed());
    }
    assert!(slowest < Duration::from_millis(250), "{slowest:?}");
    until("everyone knows that nobody is behind", || {
        [&a, &b, &c].iter().all(|site| site.peers.list().iter().all(|status| status.behind == 0))
    })
    .await;
    assert_eq!(a.store.vector(), b.store.vector());
    assert_eq!(a.store.vector(), c.store.vector());
}

#[tokio::test(flavor = "multi_thread")]
async fn f16_a_node_that_was_away_catches_up_and_brings_what_it_wrote() {
    let (a, b) = (Site::start("a", "x").await, Site::start("b", "x").await);
    a.let_in(&b).await;
    let away = b.stop().await;
    let while_away = a.push_image("while-away").await;
    until("its absence is noticed", || a.peers.list().iter().any(|status| status.state == "down")).await;
    let b = away.start().await;
    let alone = b.push_image("alone").await;
    until("both have both", || [&a, &b].iter().all(|site| site.tag("while-away") == Some(while_away) && site.tag("alone") == Some(alone)))
        .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn s34_a_damaged_record_ends_the_reading_and_nothing_else() {
    let a = Site::start("a", "x").await;
    let impostor = Impostor::of(&a).await;
    let (node, stamp) = (NodeId([9; 32]), Stamp { time: HybridTime::from_ms(1), node: NodeId([9; 32]) });
    let record = |kind, sequence| NumberedRecord {
        origin: Origin { node, incarnation: 1 },
        sequence,
        record: RawRecord { kind, key: vec![7], value: Some(vec![7]), stamp },
    };
    // A later program's record, which passes; then a whole exchange with a manifest that is none.
    let vector = |sequence| [(Origin { node, incarnation: 1 }, sequence)].into_iter().collect::<VersionVector>();
    let updates = vec![
        Update::Records(vec![record(900, 1)]),
        Update::Caught(vector(1)),
        Update::Records(vec![record(2, 2)]),
        Update::Caught(vector(2)),
    ];
    impostor.answer(move |request| match request {
        Request::Sync(_) | Request::SyncBrief(_) => Reply::Updates(updates.clone()),
        _ => Reply::Silence,
    });
    until("the sound record is kept", || a.store.vector().covers(&vector(1))).await;
    tokio::time::sleep(Duration::from_millis(300)).await;
    assert!(!a.store.vector().covers(&vector(2)), "the damaged exchange counts for nothing");
    assert!(!impostor.connection.is_closed(), "blobs may still be had there");
    assert_eq!(a.tag("anything"), None);
}
