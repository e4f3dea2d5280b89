//! Blobs: fetched from whoever has them, verified, kept where they belong.

use std::net::UdpSocket;
use std::path::Path;

use larder::store::Commit;
use larder_harness::{Content, Image, Random, wait_until};
use larder_protocol::digest::Digest;
use larder_protocol::name::RepositoryName;
use larder_protocol::record::{Key, Link, Value};
use larder_protocol::stamp::NodeId;

use super::store::open;
use super::{SOON, cluster, node, registry, tag_is};

/// Above 1 MiB, so that it travels in chunks; and not a whole number of them.
const LAYER: u64 = (5 << 20) + 12_345;

async fn blobs_on(node: &larder_harness::Node) -> u64 {
    node.cli_json(&["status"]).await["blobs"].as_u64().expect("a number")
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pull_on_another_node_fetches_and_keeps_what_it_lacks() {
    // One copy is enough here, so nothing comes before it is asked for but what is owed.
    let mut nodes = cluster(2, |node| node.env("LARDER_PEERS__REPLICAS", "1")).await;
    let image = Image::from_seed(30, &[LAYER, 1 << 20, 70_000, 10]);
    registry(&nodes[0]).push_image("team/app", "v1", &image).await;
    tag_is(&nodes[1], "team/app", "v1", &image.digest()).await;
    registry(&nodes[1]).pull_image("team/app", "v1", &image).await;
    // Now it has a copy of its own.
    nodes[0].kill();
    registry(&nodes[1]).pull_image("team/app", "v1", &image).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn many_clients_of_one_missing_blob_share_one_fetch() {
    let nodes = cluster(2, |node| node.env("LARDER_PEERS__REPLICAS", "1")).await;
    let layer = Content::new(31, 8 * LAYER);
    registry(&nodes[0]).try_push_blob("team/app", layer).await.expect("push");
    let image = Image::from_seed(32, &[10]);
    registry(&nodes[0]).push_image("team/app", "v1", &image).await;
    tag_is(&nodes[1], "team/app", "v1", &image.digest()).await;
    let pulls = (0..8).map(|_| {
        let registry = registry(&nodes[1]);
        tokio::spawn(async move { registry.pull_blob("team/app", &layer.digest()).await.expect("pull") })
    });
    for pull in futures_util::future::join_all(pulls).await {
        let pulled = pull.expect("no panic");
        assert_eq!((pulled.size, pulled.digest), (layer.size, layer.digest()));
    }
    let metrics = registry(&nodes[0]).get("/metrics").await;
    let metrics = String::from_utf8_lossy(&metrics.body).into_owned();
    let served = metrics.lines().find_map(|line| line.strip_prefix("larder_served_bytes_total ")).expect("the metric");
    let served: u64 = served.parse().expect("a number");
    assert!(served < layer.size + layer.size / 2, "{served} bytes were served for a blob of {}", layer.size);
}

#[tokio::test(flavor = "multi_thread")]
async fn i10_owners_keep_copies_that_outlive_the_origin() {
    let mut nodes = cluster(3, |node| node.env("LARDER_PEERS__REPLICAS", "2")).await;
    let image = Image::from_seed(33, &[LAYER, 200_000, 300_000, 10]);
    registry(&nodes[0]).push_image("team/app", "v1", &image).await;
    // Five blobs, two copies of each, and the origin's own may be a third.
    let blobs = 5;
    wait_until("the owners have their copies", SOON, async || {
        let mut all = 0;
        for node in &nodes[1..] {
            all += blobs_on(node).await;
        }
        (all >= blobs).then_some(())
    })
    .await;
    nodes[0].lose_disk();
    for node in &nodes[1..] {
        registry(node).pull_image("team/app", "v1", &image).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn i8_a_blob_is_read_through_its_own_repository_on_every_node() {
    let nodes = cluster(2, |node| node).await;
    let image = Image::from_seed(34, &[100_000]);
    registry(&nodes[0]).push_image("team/app", "v1", &image).await;
    tag_is(&nodes[1], "team/app", "v1", &image.digest()).await;
    let layer = image.layers[0].digest();
    for node in &nodes {
        assert_eq!(registry(node).head(&format!("/v2/other/app/blobs/{layer}")).await.status, 404);
        assert_eq!(registry(node).head(&format!("/v2/team/app/blobs/{layer}")).await.status, 200);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn f22_a_blob_that_nobody_has_is_not_found_and_the_rest_is_served() {
    let mut nodes = cluster(2, |node| node.env("LARDER_PEERS__REPLICAS", "1").archive("none")).await;
    // Of many blobs some are owed by the origin alone.
    let image = Image::from_seed(35, &[80_000; 12]);
    registry(&nodes[0]).push_image("team/app", "v1", &image).await;
    tag_is(&nodes[1], "team/app", "v1", &image.digest()).await;
    nodes[0].kill();
    let mut missing = 0;
    for layer in &image.layers {
        let answer = registry(&nodes[1]).get(&format!("/v2/team/app/blobs/{}", layer.digest())).await;
        match answer.status {
            200 => assert_eq!(larder_harness::sha256(&answer.body), layer.digest()),
            404 => {
                missing += 1;
                assert_eq!(answer.error_code(), "BLOB_UNKNOWN");
            }
            other => panic!("status {other}"),
        }
    }
    println!("{missing} of 12 blobs were on the dead node alone");
    nodes[0].start().await;
    wait_until("all is there again", SOON, async || {
        let answer = registry(&nodes[1]).pull_blob("team/app", &image.layers[0].digest()).await.ok()?;
        (answer.status == 200).then_some(())
    })
    .await;
    registry(&nodes[1]).pull_image("team/app", "v1", &image).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn s34_garbage_on_the_peers_port_disturbs_nobody() {
    let nodes = cluster(2, |node| node).await;
    let socket = UdpSocket::bind("127.0.0.1:0").expect("a socket");
    let mut random = Random::new(36);
    for round in 0..2000 {
        let mut datagram = vec![0; 1 + round % 1400];
        random.fill(&mut datagram);
        // A long header with QUIC's fixed bit gets further than noise does.
        datagram[0] |= if round % 2 == 0 { 0xc0 } else { 0x40 };
        socket.send_to(&datagram, nodes[0].address()).expect("send");
    }
    let image = Image::from_seed(37, &[100_000]);
    registry(&nodes[0]).push_image("team/app", "v1", &image).await;
    tag_is(&nodes[1], "team/app", "v1", &image.digest()).await;
    registry(&nodes[1]).pull_image("team/app", "v1", &image).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_alone_serves_what_it_has() {
    let alone = node("alone").start().await;
    let image = Image::from_seed(38, &[LAYER]);
    registry(&alone).push_image("team/app", "v1", &image).await;
    registry(&alone).pull_image("team/app", "v1", &image).await;
}

/// Writes, in the name of a node that does not run, that a blob is something else than it is.
fn poison(folder: &Path, node: NodeId, repository: &str, digest: &str, lie: impl Fn(Link) -> Link) {
    let store = open(folder, node);
    let (repository, digest): (RepositoryName, Digest) = (repository.parse().expect("a name"), digest.parse().expect("a digest"));
    let link = store.link(&repository, &digest).expect("readable").expect("there");
    let records = vec![(Key::Link(repository, digest), Some(Value::Link(lie(link))))];
    store.commit(Commit { records, ..Commit::default() }).expect("written");
    store.close();
}

#[tokio::test(flavor = "multi_thread")]
async fn f24_a_record_that_says_of_a_layer_what_it_is_not_does_not_keep_it_from_anybody() {
    let mut nodes = cluster(2, |node| node.env("LARDER_PEERS__REPLICAS", "1").archive("none")).await;
    let status = nodes[0].cli_json(&["status"]).await;
    let id = status["node"].as_str().and_then(NodeId::parse).expect("a node's id");
    nodes[1].stop().await;
    let image = Image::from_seed(41, &[LAYER, 70_000, LAYER + 1, 300_000]);
    registry(&nodes[0]).push_image("team/app", "v1", &image).await;
    nodes[0].stop().await;
    let root = |link| Link { root: [7; 32], ..link };
    let size = |link: Link| Link { size: link.size + 1, ..link };
    let too_large = |link| Link { size: u64::MAX, ..link };
    let lies: [&dyn Fn(Link) -> Link; 4] = [&root, &size, &too_large, &root];
    for (layer, lie) in image.layers.iter().zip(lies) {
        poison(nodes[0].data_dir(), id, "team/app", &layer.digest(), lie);
    }
    for node in &mut nodes {
        node.start().await;
    }
    tag_is(&nodes[1], "team/app", "v1", &image.digest()).await;
    // All bytes are right of a blob that should have one more: a pull may break off there, and a client tries again.
    let whole = async || registry(&nodes[1]).pull_blob("team/app", &image.layers[1].digest()).await.ok();
    wait_until("the one that is too long was pulled", SOON, whole).await;
    registry(&nodes[1]).pull_image("team/app", "v1", &image).await;
    wait_until("all lies were struck out", SOON, async || (nodes[1].log().matches("was written anew").count() == lies.len()).then_some(()))
        .await;
    // It is counted what came, not what was said.
    let metrics = registry(&nodes[1]).get("/metrics").await;
    let metrics = String::from_utf8_lossy(&metrics.body).into_owned();
    let fetched = metrics.lines().find_map(|line| line.strip_prefix("larder_fetched_bytes_total{kind=\"peer\"} ")).expect("the metric");
    let size = image.layers.iter().map(|layer| layer.size).sum::<u64>() + image.config.len() as u64;
    assert_eq!(fetched, size.to_string());
}
