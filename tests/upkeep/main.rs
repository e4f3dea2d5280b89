//! What a node does by itself, and when it is asked: garbage, retention, immutable tags, the history of tags.

mod cluster;
mod collection;
mod full_disk;
mod tags;

use std::time::Duration;

use larder_harness::{Node, NodeBuilder, Registry, wait_until};
use serde_json::Value;

/// Until something that takes milliseconds has happened on a machine that is busy with other tests.
const SOON: Duration = Duration::from_secs(20);
/// The grace that these nodes give; a link is old after it and a quarter.
const GRACE: Duration = Duration::from_secs(2);

/// A node that collects only when it is asked, and forgives little.
fn node(name: &str) -> NodeBuilder {
    Node::builder(env!("CARGO_BIN_EXE_larder"))
        .name(name)
        .env("LARDER_GC__PERIOD", "0s")
        .env("LARDER_GC__GRACE", format!("{}s", GRACE.as_secs()))
        .env("LARDER_GC__TRASH", "0s")
}

fn registry(node: &Node) -> Registry {
    Registry::new(node.url())
}

async fn gc(node: &Node) -> Value {
    node.cli_json(&["gc"]).await
}

/// Collects until so many links have gone in all; what a round reports is added up.
async fn collected(node: &Node, links: u64) {
    let mut gone = 0;
    wait_until(&format!("{links} links are collected"), SOON, async || {
        gone += gc(node).await["links"].as_u64().expect("a count");
        (gone >= links).then_some(())
    })
    .await;
    assert_eq!(gone, links);
}

fn blob(repository: &str, digest: &str) -> String {
    format!("/v2/{repository}/blobs/{digest}")
}

/// Files of blobs in a node's data folder.
fn files(node: &Node) -> usize {
    let mut folders = vec![node.data_dir().join("blobs")];
    let mut count = 0;
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(folder).expect("a folder of the node") {
            let path = entry.expect("readable").path();
            if path.is_dir() { folders.push(path) } else { count += 1 }
        }
    }
    count
}
