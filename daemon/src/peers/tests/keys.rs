//! A node changes its key while it runs.

use larder_protocol::message::Join;

use super::token::Token;
use super::*;
use crate::peers::KeyChange;

const WAIT: KeyChange = KeyChange { now: false, revoke: false };

/// Whether whoever has the key of this folder gets as far as a hello.
async fn says_hello(from: &Place, to: &Site) -> bool {
    let impostor = Impostor::with_key_of(from, to).await;
    impostor.connection.ask(&Request::Hello(to.peers.inner.hello())).await.is_ok()
}

/// A copy of what a node's folder has of keys now, as a thief has it.
fn stolen(site: &Site) -> Place {
    let folder = tempfile::tempdir().expect("temporary folder");
    for name in ["node.key", "node.keys"] {
        let from = site.place.config.data_dir.join(name);
        if from.exists() {
            std::fs::copy(from, folder.path().join(name)).expect("copy");
        }
    }
    let mut config = site.place.config.clone();
    config.data_dir = folder.path().to_owned();
    Place { config, _folder: folder }
}

fn are_connected(sites: &[&Site]) -> bool {
    sites.iter().all(|one| sites.iter().all(|other| one.node() == other.node() || one.sees(other, "connected")))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_changes_its_key_and_all_follow_and_the_old_one_gets_nobody_in() {
    let (a, b, c) = (Site::start("a", "x").await, Site::start("b", "x").await, Site::start("c", "x").await);
    a.let_in(&b).await;
    a.let_in(&c).await;
    until("all are connected", || are_connected(&[&a, &b, &c])).await;
    let id = a.node();
    for round in 0..2 {
        let thief = stolen(&a);
        assert!(says_hello(&thief, &b).await, "as long as the key is in use");
        let changed = a.peers.change_key(WAIT).await.expect("changed");
        assert_eq!((changed.waiting_for, changed.node), (vec![], id.to_string()));
        let key = a.peers.inner.identity.used().key();
        assert!(key != id && key.to_string() == changed.key);
        for other in [&b, &c] {
            until("it has heard", || other.peers.inner.members.keys(&id).expect("signed").used == key).await;
            until("connections of the old key are gone", || {
                other.peers.inner.links.get(&id).is_some_and(|link| link.connection.key() == key)
            })
            .await;
        }
        until("all are connected", || are_connected(&[&a, &b, &c])).await;
        let tag = format!("round-{round}");
        let mark = a.push_image(&tag).await;
        until("what it pushes comes through", || b.tag(&tag) == Some(mark) && c.tag(&tag) == Some(mark)).await;
        // Neither as a member, nor as a stranger while a token waits.
        assert!(!says_hello(&thief, &b).await);
        let token = b.peers.token(Duration::from_secs(60), RoleChange::WRITER).await.expect("token");
        assert!(!says_hello(&thief, &b).await);
        let token = Token::parse(&token).expect("own token");
        let join = Request::Join(Join { token: token.id, secret: token.secret, member: a.peers.inner.own.clone() });
        let thief = Impostor::with_key_of(&thief, &b).await;
        assert!(thief.connection.ask(&join).await.is_err(), "with the id of another it can't join either");
    }
    // A restart changes nothing.
    let a = a.stop().await.start().await;
    assert_eq!(a.node(), id);
    until("all are connected", || are_connected(&[&a, &b, &c])).await;
    // Through a node that has changed its key others join as through any, and know whom they have met.
    let d = Site::start("d", "x").await;
    let token = a.peers.token(Duration::from_secs(60), RoleChange::WRITER).await.expect("token");
    assert_eq!(d.peers.join(&token).await.expect("joined").issuer, id);
    until("all are connected", || are_connected(&[&a, &b, &c, &d])).await;
    // Expelled, it is out with its last key too; and comes back with a token, as whom it was.
    assert!(b.peers.remove(id).await.expect("removed"));
    until("its connections are closed", || [&b, &c, &d].iter().all(|site| site.peers.inner.links.get(&id).is_none())).await;
    let a = a.stop().await;
    assert!(!says_hello(&a, &b).await);
    let a = a.start().await;
    let token = b.peers.token(Duration::from_secs(60), RoleChange::WRITER).await.expect("token");
    a.peers.join(&token).await.expect("joined again");
    until("all are connected", || are_connected(&[&a, &b, &c, &d])).await;
    assert_eq!(b.peers.list().len(), 4);
}

#[tokio::test(flavor = "multi_thread")]
async fn who_is_away_is_waited_for_over_a_restart_unless_there_is_no_time() {
    let (a, b) = (Site::start("a", "x").await, Site::start("b", "x").await);
    a.let_in(&b).await;
    until("they are connected", || are_connected(&[&a, &b])).await;
    let b = b.stop().await;
    until("b is gone", || a.peers.inner.links.all().is_empty()).await;
    let changed = a.peers.change_key(WAIT).await.expect("announced");
    assert_eq!(changed.waiting_for.len(), 1, "{:?}", changed.waiting_for);
    assert!(changed.waiting_for[0].starts_with("b ("));
    let a = a.stop().await.start().await;
    assert_eq!(a.peers.inner.identity.used().key(), a.node(), "the old one is in use still");
    let b = b.start().await;
    until("it goes on by itself", || a.peers.inner.identity.used().key() != a.node()).await;
    until("b has followed", || {
        b.peers.inner.links.get(&a.node()).is_some_and(|link| link.connection.key() == a.peers.inner.identity.used().key())
    })
    .await;
    // Without waiting.
    let b = b.stop().await;
    until("b is gone", || a.peers.inner.links.all().is_empty()).await;
    let before = a.peers.inner.identity.used().key();
    assert!(a.peers.change_key(KeyChange { now: true, revoke: true }).await.expect("changed").waiting_for.is_empty());
    let used = a.peers.inner.identity.used().key();
    assert_ne!(used, before);
    let ended = a.peers.inner.identity.keys().later.last().expect("a change").before_until_ms.expect("in use");
    assert!(ended <= super::super::members::now_ms(), "what the old one has signed ends now");
    let b = b.start().await;
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert!(a.peers.inner.links.all().is_empty() && b.peers.inner.links.all().is_empty(), "it can't tell it from a stranger");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_others_say_of_a_nodes_keys_is_believed_only_with_its_signature_and_put_right() {
    let (a, b) = (Site::start("a", "x").await, Site::start("b", "x").await);
    a.let_in(&b).await;
    until("they are connected", || are_connected(&[&a, &b])).await;
    a.peers.change_key(WAIT).await.expect("changed");
    let (id, key) = (a.node(), a.peers.inner.identity.used().key());
    until("b has followed", || b.peers.inner.links.get(&id).is_some_and(|link| link.connection.key() == key)).await;
    // Made up by another writer: it stands for a moment, counts for nothing, and is put right.
    let mut keys = a.peers.inner.identity.keys();
    keys.later[0].key = NodeId([9; 32]);
    let records = vec![(Key::Keys(id), Some(larder_protocol::record::Value::Keys(keys)))];
    b.store.commit(crate::store::Commit { records, ..Default::default() }).expect("written");
    until("it is put right", || {
        let said = b.store.record(&Key::Keys(id)).expect("readable").and_then(|record| record.value);
        said == Some(larder_protocol::record::Value::Keys(a.peers.inner.identity.keys()))
    })
    .await;
    assert!(!b.peers.inner.members.keys(&id).expect("signed").proves(&NodeId([9; 32])));
}
