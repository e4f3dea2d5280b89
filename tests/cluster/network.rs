//! Nodes whose network is cut, slow or lossy: a proxy stands between all of them.

use std::time::{Duration, Instant};

use futures_util::future::join_all;
use larder_harness::rig::Rate;
use larder_harness::rig::proxy::{Path, Proxy};
use larder_harness::{Body, Content, Image, Node, NodeBuilder, fleet, wait_until};

use super::{SOON, node, registry, tag_is};

/// Longer than a connection is kept on which nothing is heard, on both of its ends.
const GONE: Duration = Duration::from_secs(60);
/// How soon nodes agree after a partition has healed.
const AGREED: Duration = Duration::from_secs(5);

async fn cluster(count: usize, with: impl Fn(NodeBuilder, usize) -> NodeBuilder) -> (Vec<Node>, Proxy) {
    let mut nodes: Vec<Node> = (0..count).map(|number| with(node(&format!("node-{}", number + 1)), number).create()).collect();
    let proxy = fleet::proxied(&mut nodes, 1);
    fleet::found(&mut nodes).await;
    (nodes, proxy)
}

/// Waits until `here` says of each node in `others` that it is, or is not, connected.
async fn sees(here: &Node, others: &[&Node], connected: bool, deadline: Duration) {
    wait_until(&format!("{} is {connected} connected with {}", here.name(), others.len()), deadline, async || {
        let peers = here.cli_json(&["peers", "list"]).await;
        let state = |name: &str| peers.as_array().and_then(|peers| peers.iter().find(|peer| peer["name"] == name)?["state"].as_str());
        others.iter().all(|other| (state(other.name()) == Some("connected")) == connected).then_some(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn f16_both_sides_of_a_partition_push_a_tag_and_agree_when_it_heals() {
    let (nodes, proxy) = cluster(3, |node, _| node).await;
    let (earlier, later) = (Image::from_seed(60, &[1000]), Image::from_seed(61, &[1000]));
    proxy.part(|node| node == 0);
    registry(&nodes[0]).push_image("team/app", "latest", &earlier).await;
    registry(&nodes[2]).push_image("team/app", "latest", &later).await;
    tag_is(&nodes[1], "team/app", "latest", &later.digest()).await;
    let here = registry(&nodes[0]).head("/v2/team/app/manifests/latest").await;
    assert_eq!(here.header("docker-content-digest"), earlier.digest(), "nothing crosses a partition");
    // Until both sides have given each other up: the way back is a new connection.
    sees(&nodes[0], &[&nodes[1], &nodes[2]], false, GONE).await;
    proxy.set_all(Path::CLEAR);
    sees(&nodes[0], &[&nodes[1], &nodes[2]], true, SOON).await;
    let connected = Instant::now();
    for node in &nodes {
        tag_is(node, "team/app", "latest", &later.digest()).await;
    }
    assert!(connected.elapsed() < AGREED, "{:?}", connected.elapsed());
    for node in &nodes {
        registry(node).pull_image("team/app", &earlier.digest(), &earlier).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn f17_a_later_push_survives_a_delete_on_the_other_side() {
    let (nodes, proxy) = cluster(2, |node, _| node).await;
    let (old, new) = (Image::from_seed(62, &[1000]), Image::from_seed(63, &[1000]));
    for tag in ["replaced", "deleted"] {
        registry(&nodes[0]).push_image("team/app", tag, &old).await;
        tag_is(&nodes[1], "team/app", tag, &old.digest()).await;
    }
    proxy.part(|node| node == 0);
    let delete = async |tag: &str| {
        let path = format!("/v2/team/app/manifests/{tag}");
        registry(&nodes[0]).request("DELETE", &path, &[], Body::empty()).await.expect(202, "delete a tag");
    };
    delete("replaced").await;
    delete("deleted").await;
    registry(&nodes[1]).push_image("team/app", "replaced", &new).await;
    proxy.set_all(Path::CLEAR);
    for node in &nodes {
        tag_is(node, "team/app", "replaced", &new.digest()).await;
        let gone = async || (registry(node).head("/v2/team/app/manifests/deleted").await.status == 404).then_some(());
        wait_until("the deleted tag is gone", SOON, gone).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn f19_a_link_that_works_one_way_is_given_up_and_others_are_used() {
    let (nodes, proxy) = cluster(3, |node, _| node).await;
    let image = Image::from_seed(64, &[3_000_000]);
    registry(&nodes[0]).push_image("team/app", "v1", &image).await;
    for node in &nodes[1..] {
        tag_is(node, "team/app", "v1", &image.digest()).await;
    }
    registry(&nodes[2]).pull_image("team/app", "v1", &image).await;
    // The second node is heard by the first and hears nothing of it.
    proxy.set(0, 1, Path::CUT);
    let begin = Instant::now();
    registry(&nodes[1]).pull_image("team/app", "v1", &image).await;
    println!("pulled past a link that works one way in {:?}", begin.elapsed());
    // A source that says nothing is left after ten seconds, and after ten more when it was asked for the list of chunks first.
    assert!(begin.elapsed() < SOON * 3 / 2, "{:?}", begin.elapsed());
    sees(&nodes[1], &[&nodes[0]], false, GONE).await;
    sees(&nodes[0], &[&nodes[1]], false, GONE).await;
    println!("given up by both after {:?}", begin.elapsed());
    // What the one writes comes to the other by the third.
    let around = Image::from_seed(65, &[1000]);
    registry(&nodes[0]).push_image("team/app", "around", &around).await;
    tag_is(&nodes[1], "team/app", "around", &around.digest()).await;
    proxy.set_all(Path::CLEAR);
    sees(&nodes[1], &[&nodes[0]], true, SOON).await;
    sees(&nodes[0], &[&nodes[1]], true, SOON).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn f20_a_line_that_loses_a_third_is_slow_and_good_enough() {
    let (nodes, proxy) = cluster(2, |node, _| node.env("LARDER_PEERS__REPLICAS", "1")).await;
    let line = Path { delay: Duration::from_millis(150), loss: 0.3, rate: Some(Rate::mbit(1)), is_cut: false };
    proxy.set_all(line);
    let begin = Instant::now();
    let image = Image::from_seed(66, &[100_000, 1000, 30_000]);
    registry(&nodes[0]).push_image("team/app", "v1", &image).await;
    let path = "/v2/team/app/manifests/v1";
    wait_until("the tag crosses the line", GONE, async || (registry(&nodes[1]).head(path).await.status == 200).then_some(())).await;
    println!("a tag crossed the line in {:?}", begin.elapsed());
    let begin = Instant::now();
    wait_until("the image crosses the line", GONE * 2, async || {
        for layer in &image.layers {
            // One that could not be had in time is asked for again, and goes on from what is there.
            let pulled = registry(&nodes[1]).pull_blob("team/app", &layer.digest()).await.ok()?;
            (pulled.status == 200).then(|| assert_eq!(pulled.digest, layer.digest()))?;
        }
        Some(())
    })
    .await;
    println!("131,000 bytes crossed the line in {:?}", begin.elapsed());
}

#[tokio::test(flavor = "multi_thread")]
async fn f21_f22_pulls_go_on_when_the_node_that_they_read_from_is_cut_off_or_dies() {
    let (mut nodes, proxy) = cluster(5, |node, _| node.env("LARDER_PEERS__REPLICAS", "1")).await;
    let blob = Content::new(67, 12 << 20);
    registry(&nodes[0]).try_push_blob("team/app", blob).await.expect("push a blob");
    registry(&nodes[1]).pull_blob("team/app", &blob.digest()).await.expect("a second holder");
    // Half a second for each MiB of one holder: long enough to hit it in the middle.
    for to in 2..5 {
        for from in 0..2 {
            proxy.set(from, to, Path { rate: Some(Rate::mbit(16)), ..Path::CLEAR });
        }
    }
    let digest = blob.digest();
    let begin = Instant::now();
    let pulls = join_all(nodes[2..5].iter().map(|node| async { registry(node).pull_blob("team/app", &digest).await }));
    let faults = async {
        let passed = || (2..5).map(|to| proxy.passed_bytes(0, to)).sum::<u64>();
        // Whoever is read from first: the origin is cut off from one of the pulling nodes in the middle.
        let _ = larder_harness::wait::try_until(Duration::from_secs(5), async || (passed() > 2 << 20).then_some(())).await;
        proxy.set_both(0, 2, Path::CUT);
    };
    let (pulled, ()) = tokio::join!(pulls, faults);
    for pulled in pulled {
        let pulled = pulled.expect("a pull goes on with another holder");
        assert_eq!((pulled.status, pulled.size, pulled.digest), (200, blob.size, digest.clone()));
    }
    println!("three pulls with a cut in the middle took {:?}", begin.elapsed());

    // The same with a death: of the two nodes that have this one, the origin dies while it is read from.
    let blob = Content::new(68, 12 << 20);
    registry(&nodes[0]).try_push_blob("team/app", blob).await.expect("push a blob");
    registry(&nodes[1]).pull_blob("team/app", &blob.digest()).await.expect("a second holder");
    let digest = blob.digest();
    let before: u64 = (3..5).map(|to| proxy.passed_bytes(0, to)).sum();
    let (origin, others) = nodes.split_at_mut(1);
    let pulls = join_all(others[2..].iter().map(|node| async { registry(node).pull_blob("team/app", &digest).await }));
    let death = async {
        let passed = || (3..5).map(|to| proxy.passed_bytes(0, to)).sum::<u64>() - before;
        let _ = larder_harness::wait::try_until(Duration::from_secs(5), async || (passed() > 2 << 20).then_some(())).await;
        origin[0].kill();
    };
    let (pulled, ()) = tokio::join!(pulls, death);
    for pulled in pulled {
        let pulled = pulled.expect("a pull goes on with another holder");
        assert_eq!((pulled.status, pulled.size, pulled.digest), (200, blob.size, digest.clone()));
    }
}
