//! The registry API from outside, one node per test: each endpoint of the specification by its end-id, and the bad input of
//! the fault list by its number.

mod artifacts;
mod blobs;
mod configuration;
mod datagrams;
mod documents;
mod listings;
mod manifests;
mod names;
mod referrers;
mod requests;
mod sessions;
mod smuggling;
mod stopping;
mod uploads;

use larder_harness::{Node, NodeBuilder, Registry};

/// A node with its defaults and without an archive.
fn builder() -> NodeBuilder {
    Node::builder(env!("CARGO_BIN_EXE_larder")).archive("none")
}

/// The same, running, and its registry.
async fn node() -> (Node, Registry) {
    let node = builder().start().await;
    let registry = Registry::new(node.url());
    (node, registry)
}
