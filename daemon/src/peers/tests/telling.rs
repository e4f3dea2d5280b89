//! What nodes tell each other of the starts of their lives, whatever both count as known by number (`peers::starts::Telling`).

use larder_protocol::record::{Numbered, Record};
use larder_protocol::stamp::Stamp;
use larder_protocol::starts::{Start, Starts};
use larder_protocol::vector::Origin;

use super::*;

async fn know_the_same(a: &Site, b: &Site) {
    until("both know the same", || a.store.vector() == b.store.vector()).await;
    let link = |site: &Site, other: &Site| site.peers.inner.links.get(&other.node());
    let known = |site: &Site, other: &Site| link(site, other).is_some_and(|link| link.known().covers(&site.store.vector()));
    until("each knows that of the other", || known(a, b) && known(b, a)).await;
    let checked = || link(a, b).is_some_and(|link| link.is_checked(&a.store.origin()));
    until("what the other has of its numbers was looked at", checked).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn f11_a_peer_tells_a_node_which_starts_of_it_it_has_heard_of() {
    let (a, b) = (Site::start("a", "x").await, Site::start("b", "x").await);
    a.let_in(&b).await;
    let one = a.push_image("one").await;
    know_the_same(&a, &b).await;
    assert!(
        a.store.own_starts().expect("readable").is_none(),
        "this node has told no starts, so nothing that it tells can show others anything"
    );
    // From somewhere the other hears of a start of this node's life that this folder never had: of another copy of it. The exchange has broken off before
    // its end, so by number it knows nothing new, and this node asks for nothing.
    let life = a.store.origin();
    let after = a.store.vector().get(&life);
    let (key, list) = (Key::Starts(life), Starts(vec![Start { after, mark: 999 }]));
    let stamp = Stamp { time: b.store.record(&Key::Member(life.node)).expect("readable").expect("a member").stamp.time, node: life.node };
    let heard = Numbered { origin: life, sequence: after + 1, record: Record { key, value: Some(Value::Starts(list)), stamp } };
    let applied = b.store.run(move |store| store.apply(vec![heard], &Default::default())).await.expect("applied");
    assert_eq!((applied.changed.len(), applied.forked), (1, 0));
    assert!(a.metrics.lives.get() == 0 && b.store.mixed_of(&a.node()).is_empty());
    a.peers.inner.links.get(&b.node()).expect("connected").connection.close("once more");
    until("this node begins another life", || a.metrics.lives.get() == 1 && a.store.origin() != life).await;
    until("both know the same", || a.store.vector() == b.store.vector() && b.store.vector().get(&a.store.origin()) > 0).await;
    assert_eq!((a.tag("one"), b.tag("one"), b.metrics.lives.get()), (Some(one), Some(one), 0));
}

#[tokio::test(flavor = "multi_thread")]
async fn f11_a_node_tells_its_starts_to_a_peer_that_knows_the_number_of_the_list() {
    let (a, b) = (Site::start("a", "x").await, Site::start("b", "x").await);
    a.let_in(&b).await;
    // With a start behind which it has written: what it has written first tells of it.
    let a = a.stop().await.start().await;
    a.push_image("two").await;
    let own: Origin = a.store.origin();
    let impostor = Impostor::of(&a).await;
    let all = a.store.vector();
    let mut stream = impostor.connection.open(&Request::Sync(all)).await.expect("a stream");
    let mut told = Vec::new();
    loop {
        match stream.receive.message::<Update>().await.expect("an update").expect("an update") {
            Update::Records(records) => told.extend(records.iter().map(|record| record.parse().expect("sound").record.key)),
            Update::Caught(_) => break,
            other => panic!("{other:?}"),
        }
    }
    assert_eq!(told, [Key::Starts(own)]);
}
