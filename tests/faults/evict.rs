//! Copies that are safe elsewhere make room, the coldest first; what is pinned, or only here, stays.

use larder_harness::{Body, Content, Image, Node, Registry, wait_until};

use super::mount::{Mount, holds};
use super::{SOON, node, registry};

const MIB: u64 = 1 << 20;

fn layer(image: &Image) -> String {
    image.layers[0].digest()
}

/// Pushes a blob whose size the node is told before; whether it took it.
async fn took(registry: &Registry, repository: &str, content: Content) -> bool {
    let path = format!("/v2/{repository}/blobs/uploads/?digest={}", content.digest());
    // The connection of a refused push may end before all of its body was sent.
    registry.try_request("POST", &path, &[], Body::content(content)).await.is_ok_and(|answer| answer.status == 201)
}

async fn evicted(node: &Node) -> u64 {
    let metrics = registry(node).get("/metrics").await;
    let text = String::from_utf8_lossy(&metrics.body).into_owned();
    let line = text.lines().find_map(|line| line.strip_prefix("larder_evicted_blobs_total ")).expect("the metric").to_owned();
    line.parse().expect("a number")
}

#[tokio::test(flavor = "multi_thread")]
async fn f6_what_the_archive_has_makes_room_for_a_push_the_coldest_first() {
    let Some(mount) = Mount::new(96 * MIB) else { return };
    let elsewhere = tempfile::tempdir().expect("a folder on another disk");
    let with = node("node").archive(&format!("file://{}", elsewhere.path().display()));
    let node = with.env("LARDER_DATA_DIR", mount.data().to_string_lossy()).env("LARDER_STORE__PINS", "base/**").start().await;
    let registry = registry(&node);
    let (pinned, warm, cold) = (Image::from_seed(1, &[15 * MIB]), Image::from_seed(2, &[20 * MIB]), Image::from_seed(3, &[20 * MIB]));
    registry.push_image("base/os", "v1", &pinned).await;
    registry.push_image("team/warm", "v1", &warm).await;
    registry.push_image("team/cold", "v1", &cold).await;
    registry.pull_image("team/warm", "v1", &warm).await;

    // Nothing of it is in the archive yet: nothing may go.
    let large = Content::new(4, 30 * MIB);
    let taken = took(&registry, "team/large", large).await;
    assert!(!taken && [&pinned, &warm, &cold].iter().all(|image| mount.holds(&layer(image))));

    node.cli(&["archive", "flush"]).await.expect("flush");
    wait_until("there is room for the push", SOON, async || took(&registry, "team/large", large).await.then_some(())).await;
    assert!(!mount.holds(&layer(&cold)), "the coldest goes first");
    assert!(mount.holds(&layer(&warm)), "no more goes than is needed");
    assert!(mount.holds(&layer(&pinned)), "what is pinned stays, however cold it is");

    // Whoever wants it gets it back, and something else makes room.
    wait_until("the cold image is pulled", SOON, async || {
        registry.pull_blob("team/cold", &layer(&cold)).await.ok().filter(|pulled| pulled.digest == layer(&cold))
    })
    .await;
    registry.pull_image("team/cold", "v1", &cold).await;
    registry.pull_image("team/warm", "v1", &warm).await;
    registry.pull_image("base/os", "v1", &pinned).await;
    assert!(mount.holds(&layer(&pinned)) && mount.holds(&large.digest()), "what is pinned, or only here, stays");
    assert!(evicted(&node).await >= 2);
}

/// A cluster of three without an archive, the last of them with little room for itself.
async fn three() -> Vec<Node> {
    let mut nodes: Vec<Node> = Vec::new();
    for number in 1..=3 {
        let mut with = node(&format!("node-{number}")).archive("none").env("LARDER_PEERS__REPLICAS", "2");
        if number == 3 {
            with = with.env("LARDER_STORE__SIZE_MAX", "64MiB");
        }
        let joining = with.start().await;
        if let Some(first) = nodes.first() {
            let token = first.cli(&["token"]).await.expect("token");
            joining.cli(&["join", &token]).await.expect("join");
        }
        nodes.push(joining);
    }
    for node in &nodes {
        wait_until("all are connected", SOON, async || {
            let peers = node.cli_json(&["peers", "list"]).await;
            let peers = peers.as_array()?.clone();
            (peers.len() == 3 && peers.iter().all(|peer| ["self", "connected"].iter().any(|state| peer["state"] == *state))).then_some(())
        })
        .await;
    }
    nodes
}

#[tokio::test(flavor = "multi_thread")]
async fn f6_what_other_nodes_owe_makes_room_and_each_layer_keeps_its_copies() {
    let nodes = three().await;
    let small = &nodes[2];
    let image = Image::from_seed(5, &[2 * MIB; 24]);
    registry(&nodes[0]).push_image("team/app", "v1", &image).await;
    let copies = |digest: &str| nodes.iter().filter(|node| holds(node.data_dir(), digest)).count();
    wait_until("the owners have their copies", SOON, async || image.layers.iter().all(|layer| copies(&layer.digest()) >= 2).then_some(()))
        .await;
    wait_until("the small node knows the tag", SOON, async || {
        (registry(small).head("/v2/team/app/manifests/v1").await.status == 200).then_some(())
    })
    .await;
    registry(small).pull_image("team/app", "v1", &image).await;
    assert!(image.layers.iter().all(|layer| holds(small.data_dir(), &layer.digest())), "a pull keeps what it brought");

    registry(small).push_bytes("team/other", &Content::new(6, 14 * MIB).bytes()).await;
    wait_until("something was evicted", SOON, async || (evicted(small).await > 0).then_some(())).await;
    for layer in &image.layers {
        assert!(copies(&layer.digest()) >= 2, "{} has lost a copy that somebody counted on", layer.digest());
    }
    Registry::new(small.url()).pull_image("team/app", "v1", &image).await;
}
