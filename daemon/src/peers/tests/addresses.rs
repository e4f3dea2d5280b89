//! Nodes that move, that nobody can call, and that lie about where others are.

use super::*;

impl Site {
    /// A node that others can't call.
    async fn start_behind_nat(name: &str) -> Self {
        let folder = tempfile::tempdir().expect("temporary folder");
        let mut config = Config { data_dir: folder.path().join("data"), ..Config::default() };
        config.peers.listen = "127.0.0.1:0".parse().expect("address");
        config.peers.advertise = Vec::new();
        config.node.name = name.to_owned();
        Place { config, _folder: folder }.start().await
    }

    fn advertises(&self, node: NodeId) -> Vec<String> {
        self.peers.inner.members.live().into_iter().find(|(id, _)| *id == node).map(|(_, member)| member.addresses).unwrap_or_default()
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_behind_nat_calls_the_others_and_requests_go_both_ways() {
    let (a, nat) = (Site::start("a", "x").await, Site::start_behind_nat("nat").await);
    a.let_in(&nat).await;
    assert!(matches!(nat.peers.token(Duration::from_secs(60), RoleChange::WRITER).await, Err(Error::NoAddress)));
    let content = bytes(7, 3 << 20);
    let (digest, link) = nat.push_blob(&content).await;
    let (other, other_link) = a.push_blob(&bytes(8, 3 << 20)).await;
    assert!(a.fetch(digest, link).await.expect("fetch from behind the NAT"));
    assert!(nat.fetch(other, other_link).await.expect("fetch the other way"));
    // Two that can't call each other are alive for each other through the third.
    let second = Site::start_behind_nat("second").await;
    a.let_in(&second).await;
    until("they know of each other", || nat.sees(&second, "indirect") && second.sees(&nat, "indirect")).await;
    // Whoever restarts is found again.
    let a = a.stop().await.start().await;
    until("they have called again", || a.sees(&nat, "connected") && a.sees(&second, "connected")).await;
    let nat = nat.stop().await.start().await;
    until("it has called again", || a.sees(&nat, "connected") && nat.sees(&a, "connected")).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_connection_goes_on_when_its_dialler_gets_another_port() {
    let (a, nat) = (Site::start("a", "x").await, Site::start_behind_nat("nat").await);
    a.let_in(&nat).await;
    let link = a.peers.inner.links.get(&nat.node()).expect("connected");
    let before = nat.peers.inner.endpoint.address();
    nat.peers.inner.endpoint.rebind();
    assert_ne!(nat.peers.inner.endpoint.address(), before);
    let image = nat.push_image("moved").await;
    until("what is written goes over", || a.tag("moved") == Some(image)).await;
    let (digest, blob) = a.push_blob(&bytes(9, 3 << 20)).await;
    assert!(nat.fetch(digest, blob).await.expect("fetch"));
    let now = a.peers.inner.links.get(&nat.node()).expect("still connected");
    assert!(Arc::ptr_eq(&link, &now), "it is the same connection");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_moves_says_so_and_is_called_there() {
    let (a, b, c) = (Site::start("a", "x").await, Site::start("b", "x").await, Site::start("c", "x").await);
    a.let_in(&b).await;
    a.let_in(&c).await;
    until("all are connected", || b.sees(&c, "connected") && c.sees(&b, "connected")).await;
    let mut place = b.stop().await;
    let before = place.config.peers.advertise.clone();
    place.config.peers.listen = UdpSocket::bind("127.0.0.1:0").and_then(|socket| socket.local_addr()).expect("a free port");
    place.config.peers.advertise = vec![place.config.peers.listen.to_string()];
    let b = place.start().await;
    assert_ne!(b.place.config.peers.advertise, before);
    let node = b.node();
    until("all know where it is", || [&a, &c].iter().all(|site| site.advertises(node) == b.place.config.peers.advertise)).await;
    // It is called there: it calls nobody itself while its own list of members says nobody has an address.
    until("all are connected", || a.sees(&b, "connected") && c.sees(&b, "connected")).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn s36_where_a_member_is_said_to_be_by_another_it_says_itself_again() {
    let (a, b) = (Site::start("a", "x").await, Site::start("b", "x").await);
    a.let_in(&b).await;
    let (node, own) = (b.node(), b.place.config.peers.advertise.clone());
    let lie = Member { addresses: vec!["127.0.0.1:6379".to_owned()], ..b.peers.inner.own.clone() };
    let records = vec![(Key::Member(node), Some(Value::Member(lie)))];
    a.store.run(move |store| store.commit(Commit { records, ..Commit::default() })).await.expect("a lie");
    until("the truth is known again", || {
        a.store.record(&Key::Member(node)).expect("readable").is_some_and(|record| record.stamp.node == node)
    })
    .await;
    until("by all", || a.advertises(node) == own && b.advertises(node) == own).await;
}
