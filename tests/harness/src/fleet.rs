//! Several nodes as one cluster.

use crate::node::Node;
use crate::wait::wait_until;
use futures_util::future::join_all;
use std::time::Duration;

/// Until all of them know and reach each other, on a machine that is busy with something else.
const DEADLINE: Duration = Duration::from_secs(120);

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
