//! The bucket: one PUT per pack, and everything back from nothing but it.

mod export;
mod packs;
mod requests;
mod restore;

use std::time::Duration;

use larder_harness::{Node, NodeBuilder, Registry};

/// Until something that takes moments has happened on a machine that is busy with other tests.
const SOON: Duration = Duration::from_secs(30);

fn node(name: &str) -> NodeBuilder {
    Node::builder(env!("CARGO_BIN_EXE_larder")).name(name)
}

fn registry(node: &Node) -> Registry {
    Registry::new(node.url())
}

/// Flushes a node's archive; how many packs came of it.
async fn flush(node: &Node) -> usize {
    let flushed = node.cli_json(&["archive", "flush"]).await;
    flushed["packs"].as_array().or(flushed.as_array()).expect("a list of packs").len()
}
