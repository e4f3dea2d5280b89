//! What breaks under a running node, and what it makes of it: disks that are full, blobs and indexes that rot.

mod damage;
mod evict;
mod full;
mod index;
mod mount;

use std::time::Duration;

use larder_harness::{Node, NodeBuilder, Registry};

/// Until something that takes moments has happened on a machine that is busy with other tests.
const SOON: Duration = Duration::from_secs(40);

fn node(name: &str) -> NodeBuilder {
    Node::builder(env!("CARGO_BIN_EXE_larder")).name(name)
}

fn registry(node: &Node) -> Registry {
    Registry::new(node.url())
}

/// How often a text stands in a node's log.
fn logged(node: &Node, text: &str) -> usize {
    node.log().matches(text).count()
}
