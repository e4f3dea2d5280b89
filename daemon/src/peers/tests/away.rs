//! Members that were away for longer than deletes are remembered.

use super::*;

const DAY: Duration = Duration::from_secs(86_400);

async fn start(name: &str) -> Site {
    Site::start_with(name, "x", |config| config.records.tombstones_kept = Duration::ZERO).await
}

async fn delete(site: &Site, tag: &str) {
    let tag: Tag = tag.parse().expect("tag");
    assert!(site.store.run(move |store| store.delete_tag(&repository(), &tag)).await.expect("deleted"));
}

async fn forget(site: &Site) -> usize {
    site.peers.inner.forget().await.expect("forgot")
}

fn all_same(sites: &[&Site]) -> bool {
    sites.iter().all(|site| {
        site.store.summary()
            == larder_protocol::message::compare::Summary { now_ms: site.store.summary().now_ms, ..sites[0].store.summary() }
    })
}

#[tokio::test(flavor = "multi_thread")]
async fn f18_a_member_that_was_away_for_sixty_days_brings_nothing_back_and_loses_nothing() {
    let (a, b, c) = (start("a").await, start("b").await, start("c").await);
    a.let_in(&b).await;
    a.let_in(&c).await;
    let gone = a.push_image("gone").await;
    let live = b.push_image("live").await;
    until("everyone has everything", || [&a, &b, &c].iter().all(|it| it.tag("gone") == Some(gone) && it.tag("live") == Some(live))).await;
    until("everyone knows the same", || all_same(&[&a, &b, &c])).await;
    for site in [&a, &b] {
        site.peers.inner.remember(Duration::ZERO).await.expect("remembered");
    }
    // It is cut off, and goes on by itself for a while.
    let (place_a, place_b) = (a.stop().await, b.stop().await);
    let own = c.push_image("own").await;
    let place_c = c.stop().await;
    let (a, b) = (place_a.start().await, place_b.start().await);
    until("the two are connected", || a.sees(&b, "connected") && b.sees(&a, "connected")).await;
    delete(&a, "gone").await;
    until("it is deleted on both", || a.tag("gone").is_none() && b.tag("gone").is_none()).await;
    let covers = |site: &Site, other: &Site| {
        let link = site.peers.inner.links.get(&other.node());
        link.is_some_and(|link| link.known().covers(&site.store.vector()))
    };
    until("each knows that the other has seen it", || covers(&a, &b) && covers(&b, &a)).await;
    for site in [&a, &b] {
        site.peers.inner.remember(29 * DAY).await.expect("remembered");
        assert_eq!(forget(site).await, 0, "the third has not seen it");
        site.peers.inner.remember(31 * DAY).await.expect("remembered");
        assert!(forget(site).await >= 1, "it has lapsed");
        assert!(!site.store.horizon().is_empty());
    }
    let c = place_c.start().await;
    until("what it wrote alone is everywhere", || [&a, &b, &c].iter().all(|site| site.tag("own") == Some(own))).await;
    until("everyone knows the same", || a.store.vector() == b.store.vector() && b.store.vector() == c.store.vector()).await;
    for site in [&a, &b, &c] {
        assert_eq!((site.tag("gone"), site.tag("live")), (None, Some(live)), "I4");
    }
    until("and holds the same", || all_same(&[&a, &b, &c])).await;
    assert!(c.store.horizon().covers(&a.store.horizon()));
    // From now on it is one of them again.
    let after = c.push_image("after").await;
    until("it is heard", || [&a, &b].iter().all(|site| site.tag("after") == Some(after))).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn f18_a_node_that_is_alone_forgets_nothing() {
    let (a, b) = (start("a").await, start("b").await);
    a.let_in(&b).await;
    let gone = a.push_image("gone").await;
    until("both have it", || b.tag("gone") == Some(gone)).await;
    let node = b.node();
    let place = b.stop().await;
    until("it is away", || a.peers.inner.links.get(&node).is_none()).await;
    delete(&a, "gone").await;
    a.peers.inner.remember(90 * DAY).await.expect("remembered");
    assert_eq!(forget(&a).await, 0, "one of two is no majority");
    let b = place.start().await;
    until("the delete has come", || b.tag("gone").is_none()).await;
    until("and both know that", || {
        let link = a.peers.inner.links.get(&b.node());
        link.is_some_and(|link| link.known().covers(&a.store.vector()))
    })
    .await;
    a.peers.inner.remember(Duration::ZERO).await.expect("remembered");
    assert!(forget(&a).await >= 1);
}
