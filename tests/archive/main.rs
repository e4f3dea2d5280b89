//! The bucket: one PUT per pack, and everything back from nothing but it.

mod compact;
mod encrypted;
mod export;
mod faults;
mod front;
mod frozen;
mod iam;
mod packs;
mod parts;
mod real;
mod requests;
mod restore;
mod restores;

use std::time::Duration;

use larder_harness::s3::Operation;
use larder_harness::{CountingS3, Image, Node, NodeBuilder, Registry};

/// Until something that takes moments has happened on a machine that is busy with other tests.
const SOON: Duration = Duration::from_secs(30);

fn node(name: &str) -> NodeBuilder {
    Node::builder(env!("CARGO_BIN_EXE_larder")).name(name)
}

fn registry(node: &Node) -> Registry {
    Registry::new(node.url())
}

/// A node whose bucket is marked as its cluster's, which takes two requests: what is counted from here on is what packs take.
async fn marked(name: &str, s3: &CountingS3, prefix: &str) -> Node {
    marked_node(node(name).s3(s3, prefix), s3).await
}

async fn marked_node(builder: NodeBuilder, s3: &CountingS3) -> Node {
    let node = builder.start().await;
    registry(&node).push_image("team/first", "v1", &Image::from_seed(40, &[10])).await;
    assert_eq!(flush(&node).await, 1);
    s3.forget();
    node
}

/// PUTs of packs.
fn pack_puts(s3: &CountingS3) -> usize {
    s3.requests().iter().filter(|request| request.operation == Operation::Put && request.key.contains("/packs/")).count()
}

/// Keys and sizes of the packs in the bucket.
fn packs_in(s3: &CountingS3) -> Vec<(String, u64)> {
    s3.objects().into_iter().filter(|(key, _)| key.contains("/packs/")).collect()
}

/// Flushes a node's archive; how many packs came of it.
async fn flush(node: &Node) -> usize {
    let flushed = node.cli_json(&["archive", "flush"]).await;
    flushed["packs"].as_array().or(flushed.as_array()).expect("a list of packs").len()
}
