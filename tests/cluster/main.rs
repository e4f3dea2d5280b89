//! Several nodes: joining and expelling, records that spread, blobs that are fetched while they are served.

mod content;
mod members;
mod network;
mod owners;
mod records;
#[path = "../scale/store.rs"]
#[allow(dead_code)]
mod store;

use std::time::Duration;

use larder_harness::{Node, NodeBuilder, Registry, wait_until};

/// Until something that takes milliseconds has happened on a machine that is busy with other tests.
const SOON: Duration = Duration::from_secs(20);

fn node(name: &str) -> NodeBuilder {
    Node::builder(env!("CARGO_BIN_EXE_larder")).name(name)
}

fn registry(node: &Node) -> Registry {
    Registry::new(node.url())
}

/// A cluster of so many nodes, all of them connected; `with` changes how each is started.
async fn cluster(count: usize, with: impl Fn(NodeBuilder) -> NodeBuilder) -> Vec<Node> {
    let mut nodes: Vec<Node> = Vec::new();
    for number in 1..=count {
        let joining = with(node(&format!("node-{number}"))).start().await;
        if let Some(first) = nodes.first() {
            join(first, &joining).await;
        }
        nodes.push(joining);
    }
    for node in &nodes {
        connected(node, count).await;
    }
    nodes
}

async fn join(issuer: &Node, joining: &Node) {
    let token = issuer.cli(&["token"]).await.expect("token");
    joining.cli(&["join", &token]).await.expect("join");
}

/// Waits until a node is connected with all others of a cluster of `count`.
async fn connected(node: &Node, count: usize) {
    wait_until(&format!("{} is connected with all others", node.name()), SOON, async || {
        let peers = node.cli_json(&["peers", "list"]).await;
        let peers = peers.as_array()?.clone();
        (peers.len() == count && peers.iter().all(|peer| ["self", "connected"].iter().any(|state| peer["state"] == *state))).then_some(())
    })
    .await;
}

/// Waits until a tag means this digest on a node.
async fn tag_is(node: &Node, repository: &str, tag: &str, digest: &str) {
    wait_until(&format!("{repository}:{tag} is {digest} on {}", node.name()), SOON, async || {
        let answer = registry(node).head(&format!("/v2/{repository}/manifests/{tag}")).await;
        (answer.status == 200 && answer.header("docker-content-digest") == digest).then_some(())
    })
    .await;
}
