//! A layer of 1 GiB, and how much memory the daemon takes for it: as the kernel says.

use larder_harness::{Content, Image, Kind, Node, Registry, wait_until};

use crate::node;

const LAYER: u64 = 1 << 30;
/// More than this and something stands in memory that should flow through it.
const MEMORY_MAX: u64 = 200 << 20;

fn assert_small(node: &Node, doing: &str) {
    let peak = node.memory_peak_bytes();
    println!("{doing}: {} had at most {} MiB", node.name(), peak >> 20);
    assert!(peak < MEMORY_MAX, "{doing}: {} MiB", peak >> 20);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_layer_of_a_gibibyte_flows_through_little_memory() {
    let first = node("first").archive("none").start().await;
    let image = Image::of_layers(Kind::Oci, 9, vec![Content::new(9, LAYER)]);
    Registry::new(first.url()).push_image("team/large", "v1", &image).await;
    assert_small(&first, "push");
    Registry::new(first.url()).pull_image("team/large", "v1", &image).await;
    assert_small(&first, "pull");
    // And through a second node, which fetches it while it serves it.
    let second = node("second").archive("none").start().await;
    let token = first.cli(&["token"]).await.expect("token");
    second.cli(&["join", &token]).await.expect("join");
    wait_until("the tag is there", std::time::Duration::from_secs(20), async || {
        (Registry::new(second.url()).head("/v2/team/large/manifests/v1").await.status == 200).then_some(())
    })
    .await;
    Registry::new(second.url()).pull_image("team/large", "v1", &image).await;
    assert_small(&second, "pull through a peer");
    assert_small(&first, "serving a peer");
}
