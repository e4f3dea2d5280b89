//! The registry API from outside, one node per test: each endpoint of the specification by its end-id, and the bad input of
//! the fault list by its number.

mod blobs;
mod configuration;
mod datagrams;
mod documents;
mod listings;
mod manifests;
mod names;
mod smuggling;
mod uploads;

use larder_harness::{Node, Registry};

/// A node with its defaults and without an archive, and its registry.
async fn node() -> (Node, Registry) {
    let node = Node::builder(env!("CARGO_BIN_EXE_larder")).archive("none").start().await;
    let registry = Registry::new(node.url());
    (node, registry)
}
