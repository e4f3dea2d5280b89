//! Who may do what, against the real program: rights at every endpoint, tokens, what is told to whom, and that it holds on every node.

mod cluster;
mod keys;
mod oidc;
mod rights;
mod secrets;
mod sessions;
mod tokens;

use larder_harness::{Node, NodeBuilder, Registry, Response};

fn node(name: &str) -> NodeBuilder {
    Node::builder(env!("CARGO_BIN_EXE_larder")).name(name)
}

fn registry(node: &Node) -> Registry {
    Registry::new(node.url())
}

/// A node with alice, who may do everything below team, and bob, who may read there.
async fn closed() -> Node {
    let node = node("node").start().await;
    node.add_user("alice", "secret").await;
    node.add_user("bob", "secret2").await;
    node.allow("user:alice", "team/**", "pull,push,overwrite,delete").await;
    node.allow("user:bob", "team/**", "pull").await;
    node
}

/// The words of a refusal.
fn told(answer: &Response) -> String {
    answer.json()["errors"][0]["message"].as_str().unwrap_or_default().to_owned()
}
