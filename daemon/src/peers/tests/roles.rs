//! Readers: what they write counts nowhere.

use larder_protocol::record::{Numbered, Record, Roles};
use larder_protocol::stamp::{HybridTime, Stamp};
use larder_protocol::vector::{Origin, VersionVector};

use super::*;
use crate::store;

#[tokio::test(flavor = "multi_thread")]
async fn s28_a_reader_serves_and_its_own_registry_takes_nothing() {
    let (a, b) = (Site::start("a", "x").await, Site::start("b", "x").await);
    let token = a.peers.token(Duration::from_secs(60), RoleChange::READER).await.expect("token");
    b.peers.join(&token).await.expect("join");
    until("it has heard that it is a reader", || b.store.is_reader()).await;
    let image = a.push_image("v1").await;
    until("it has what is pushed elsewhere", || b.tag("v1") == Some(image)).await;
    let roles = |site: &Site| {
        let id = b.node().to_string();
        site.peers.list().into_iter().find(|status| status.node == id).map(|status| status.roles).unwrap_or_default()
    };
    assert_eq!((roles(&a), roles(&b)), (vec!["reader"], vec!["reader"]));
    assert!(!b.peers.is_archiver() && a.peers.is_archiver() && !a.peers.may_archive(&b.node()));
    let refused = |result: store::Result<bool>| matches!(result, Err(store::Error::Reader));
    assert!(refused(b.store.run(|store| store.delete_tag(&repository(), &"v1".parse().expect("tag"))).await));
    assert!(matches!(b.peers.remove(a.node()).await, Err(Error::Store(store::Error::Reader))));
    assert!(matches!(b.peers.token(Duration::from_secs(60), RoleChange::WRITER).await, Err(Error::Store(store::Error::Reader))));
    // It does not hold up what waits for everyone to be heard, nor is anything left to it.
    until("nobody waits for it", || a.peers.unheard().is_empty()).await;
    assert!((0..64u8).all(|i| a.peers.is_first_for(&Digest::sha256(&[i])) && !b.peers.is_first_for(&Digest::sha256(&[i]))));

    // It still says where it is, when it starts anew.
    let mut place = b.stop().await;
    place.config.node.name = "renamed".to_owned();
    let b = place.start().await;
    assert!(b.store.is_reader(), "from its own disk, before anyone has told it");
    let node = b.node();
    let name = || a.peers.inner.members.live().into_iter().find(|(id, _)| *id == node).map(|(_, member)| member.name);
    until("its new name is known", || name().as_deref() == Some("renamed")).await;
    until("replicas with one vector hold one state", || a.store.vector() == b.store.vector()).await;

    // And it may write again when a writer says so; not before.
    let change = RoleChange { writer: Some(true), ..RoleChange::default() };
    assert!(matches!(b.peers.change_role(node, change).await, Err(Error::Store(store::Error::Reader))));
    assert_eq!(a.peers.change_role(node, change).await.expect("change"), ["writer"]);
    until("it has heard", || !b.store.is_reader()).await;
    let image = b.push_image("v2").await;
    until("what it pushes counts", || a.tag("v2") == Some(image)).await;
    // Somebody has to be left who may write.
    let reader = RoleChange { writer: Some(false), ..RoleChange::default() };
    a.peers.change_role(node, reader).await.expect("change");
    assert!(matches!(a.peers.change_role(a.node(), reader).await, Err(Error::LastWriter)));
}

#[tokio::test(flavor = "multi_thread")]
async fn s28_what_a_stolen_reader_writes_is_taken_by_nobody() {
    let (a, b, thief) = (Site::start("a", "x").await, Site::start("b", "x").await, Site::start("thief", "x").await);
    a.let_in(&b).await;
    a.let_in(&thief).await;
    until("all are connected", || b.sees(&thief, "connected") && thief.sees(&b, "connected")).await;
    let early = thief.push_image("early").await;
    until("what it wrote as a writer is known", || a.tag("early") == Some(early) && b.tag("early") == Some(early)).await;
    a.peers.change_role(thief.node(), RoleChange::READER).await.expect("change");
    until("all know it", || [&a, &b].iter().all(|site| !site.peers.inner.members.roles(&thief.node()).is_writer())).await;
    until("it has heard", || thief.store.is_reader()).await;
    // The thief has the disk, and writes on it that it may write.
    let own = thief.store.origin();
    let standing = thief.store.record(&Key::Role(thief.node())).expect("readable").expect("there");
    let stamp = Stamp { time: HybridTime::from_ms(standing.stamp.time.ms() + 1000), node: thief.node() };
    let forged = Numbered {
        origin: Origin { incarnation: own.incarnation + 1, ..own },
        sequence: 1,
        record: Record { key: Key::Role(thief.node()), value: Some(Value::Role(Roles::default())), stamp },
    };
    thief.store.run(move |store| store.apply(vec![forged], &VersionVector::default())).await.expect("its own disk takes all");
    until("its program believes it", || !thief.store.is_reader()).await;
    let _late = thief.push_image("late").await;
    let (a_id, thief_id) = (a.node(), thief.node());
    // Also under the number of another.
    let forged = Numbered {
        origin: b.store.origin(),
        sequence: 1000,
        record: thief.store.record(&Key::Tag(repository(), "late".parse().expect("tag"))).expect("readable").expect("there"),
    };
    let vector = [(b.store.origin(), 1000)].into_iter().collect();
    thief.store.run(move |store| store.apply(vec![forged], &vector)).await.expect("its own disk takes all");
    until("it was offered and refused", || [&a, &b].iter().all(|site| site.metrics.reader_records.get() >= 3)).await;
    // It expels one; its own program hangs up on that one, and the other hears it.
    let before = b.metrics.reader_records.get();
    let records = vec![(Key::Member(a_id), None), (Key::Role(thief_id), Some(Value::Role(Roles::default())))];
    thief.store.run(move |store| store.commit(Commit { records, ..Commit::default() })).await.expect("it writes what it likes");
    until("that was refused", || b.metrics.reader_records.get() >= before + 2).await;
    // What others write goes on, past everything that was refused.
    let image = b.push_image("after").await;
    until("the writers go on", || a.tag("after") == Some(image)).await;
    for site in [&a, &b] {
        assert!(site.tag("late").is_none() && site.tag("early") == Some(early), "what it wrote before stays");
        assert!(site.peers.inner.members.is_member(&a_id) && !site.peers.inner.members.roles(&thief_id).is_writer());
        assert!(site.store.vector().get(&own) >= 1);
    }
    assert!(a.store.vector().get(&b.store.origin()) < 1000);
}
