//! Nodes of two versions in one cluster, as while a fleet is upgraded.

use larder_protocol::refusal::Refusal;

use super::endpoint::Receiver;
use super::*;

/// A node of the version before.
async fn start_old(name: &str) -> Site {
    NEWEST.scope(version::OLDEST, Site::start(name, "x")).await
}

fn version_between(a: &Site, b: &Site) -> Option<u16> {
    a.peers.inner.links.get(&b.node()).map(|link| link.version())
}

#[tokio::test(flavor = "multi_thread")]
async fn f43_nodes_of_two_versions_serve_each_other_and_go_back() {
    let (new, old) = (Site::start("new", "x").await, start_old("old").await);
    new.let_in(&old).await;
    assert_eq!((version_between(&new, &old), version_between(&old, &new)), (Some(1), Some(1)));
    // Records and blobs go both ways.
    let (first, second) = (new.push_image("first").await, old.push_image("second").await);
    until("both images are known", || new.tag("second") == Some(second) && old.tag("first") == Some(first)).await;
    let content = bytes(1, 3 << 20);
    let (digest, link) = new.push_blob(&content).await;
    assert!(old.fetch(digest, link).await.expect("fetch"));
    let (digest, link) = old.push_blob(&bytes(2, 3 << 20)).await;
    assert!(new.fetch(digest, link).await.expect("fetch"));
    // It has no datagrams and is alive all the same.
    let of_old = |site: &Site, node| site.peers.standings().get(&node).map(|standing| standing.condition);
    until("the old one is alive", || of_old(&new, old.node()) == Some(Condition::Alive)).await;
    until("the new one is alive", || of_old(&old, new.node()) == Some(Condition::Alive)).await;

    // The old one is upgraded.
    let old = old.stop().await.start().await;
    until("they speak the new version", || version_between(&new, &old) == Some(2) && version_between(&old, &new) == Some(2)).await;
    let third = old.push_image("third").await;
    until("and go on", || new.tag("third") == Some(third)).await;

    // And back: what the later version wrote is kept.
    let place = old.stop().await;
    let role = RoleChange { archiver: Some(false), ..RoleChange::default() };
    let node = place.identity().node();
    new.peers.change_role(node, role).await.expect("a record of the new version");
    let old = NEWEST.scope(version::OLDEST, place.start()).await;
    until("they speak the old version", || version_between(&new, &old) == Some(1)).await;
    until("all records are there", || old.store.vector().covers(&new.store.vector())).await;
    assert!(old.tag("third").is_some() && old.store.record(&Key::Role(node)).expect("readable").is_some());
}

#[tokio::test(flavor = "multi_thread")]
async fn f43_a_request_of_a_later_version_is_refused_and_nothing_else_ends() {
    let victim = Site::start("victim", "x").await;
    let impostor = Impostor::of(&victim).await;
    let ask = async |bytes: Vec<u8>| {
        let Stream { mut send, mut receive } = impostor.connection.open(&Raw(bytes)).await.expect("open");
        send.finish();
        async fn answer(receive: &mut Receiver) -> Option<Answer> {
            receive.message::<Answer>().await.expect("an answer")
        }
        answer(&mut receive).await
    };
    // A variant that does not exist yet; nothing; noise.
    for body in [vec![1, 200, 7, 7, 7], vec![], vec![1], vec![9, 9, 9], vec![255; 300]] {
        assert_eq!(ask(body.clone()).await, Some(Answer::Refused(Refusal::UNKNOWN)), "{body:?}");
    }
    let (answer, _) = impostor.connection.ask(&Request::WhoHas(vec![])).await.expect("the connection goes on");
    assert_eq!(answer, Answer::Holders(vec![]));
}

/// A request whose bytes are chosen.
#[derive(serde::Serialize, serde::Deserialize)]
struct Raw(Vec<u8>);

impl larder_protocol::message::Message for Raw {
    const KIND: larder_protocol::frame::Kind = larder_protocol::frame::Kind::Request;

    fn to_frame(&self) -> larder_protocol::frame::Frame {
        larder_protocol::frame::Frame { kind: Self::KIND.number(), body: self.0.clone() }
    }
}
