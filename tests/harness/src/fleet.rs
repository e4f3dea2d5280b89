//! Several nodes as one cluster.

use crate::node::Node;
use crate::rig::proxy::Proxy;
use crate::wait::wait_until;
use futures_util::future::join_all;
use std::net::SocketAddr;
use std::time::Duration;

/// Until all of them know and reach each other, on a machine that is busy with something else.
const DEADLINE: Duration = Duration::from_secs(120);

/// Puts a proxy between nodes that have not been started yet: on the loopback, or at the switch of the first one's host.
pub fn proxied(nodes: &mut [Node], seed: u64) -> Proxy {
    let addresses: Vec<SocketAddr> = nodes.iter().map(|node| node.address().parse().expect("an address")).collect();
    let proxy = match nodes.first().and_then(Node::host) {
        Some(host) => Proxy::at_switch(host, &addresses, seed),
        None => Proxy::local(&addresses, seed),
    };
    for (number, node) in nodes.iter_mut().enumerate() {
        node.set_env("LARDER_PEERS__ADVERTISE", Some(&proxy.front(number).to_string()));
    }
    proxy
}

/// Starts nodes at once, lets all join the first one, and waits until each is connected with all others.
///
/// # Panics
/// When that does not come about in time.
pub async fn found(nodes: &mut [Node]) {
    join_all(nodes.iter_mut().map(Node::start)).await;
    let (first, others) = nodes.split_first().expect("at least one node");
    for node in others {
        join(first, node).await;
    }
    all_connected(nodes).await;
}

/// Lets a node join another one's cluster.
pub async fn join(issuer: &Node, joining: &Node) {
    let token = issuer.cli(&["token"]).await.unwrap_or_else(|error| panic!("token: {error}\n{}", issuer.log_tail()));
    joining.cli(&["join", &token]).await.unwrap_or_else(|error| panic!("join: {error}\n{}", joining.log_tail()));
}

/// Waits until each of these nodes, which are a whole cluster, is connected with all others.
pub async fn all_connected(nodes: &[Node]) {
    join_all(nodes.iter().map(|node| connected(node, nodes.len()))).await;
}

/// Waits until a node is connected with all others of a cluster of `count`.
pub async fn connected(node: &Node, count: usize) {
    wait_until(&format!("{} is connected with all others", node.name()), DEADLINE, async || {
        let peers = node.cli_json(&["peers", "list"]).await;
        let peers = peers.as_array()?.clone();
        (peers.len() == count && peers.iter().all(|peer| ["self", "connected"].contains(&peer["state"].as_str().unwrap_or(""))))
            .then_some(())
    })
    .await;
}
