//! Copies: as many as were promised, on whom they were promised, whoever goes and comes; and pushes that wait for them.

use std::time::{Duration, Instant};

use larder_harness::{Body, Content, Image, Node, Response, wait_until};

use super::{SOON, cluster, connected, join, node, registry, tag_is};

/// Until shares have moved: a takeover of two seconds, and what it takes on a machine that is busy with other tests.
const MOVED: Duration = Duration::from_secs(60);
/// Layers in files of their own, so that it can be looked where they are.
const LAYER: u64 = 100_000;

/// Whether a blob has a file on a node's disk.
fn holds(node: &Node, digest: &str) -> bool {
    let hex = digest.strip_prefix("sha256:").expect("a digest");
    node.data_dir().join("blobs/sha256").join(&hex[..2]).join(hex).exists()
}

fn copies(nodes: &[&Node], digest: &str) -> usize {
    nodes.iter().filter(|node| holds(node, digest)).count()
}

/// Waits until each layer of an image is on at least `wanted` of some disks.
async fn kept(what: &str, nodes: &[&Node], image: &Image, wanted: usize) {
    wait_until(what, MOVED, async || image.layers.iter().all(|layer| copies(nodes, &layer.digest()) >= wanted).then_some(())).await;
}

async fn metric(node: &Node, name: &str) -> u64 {
    let page = registry(node).get("/metrics").await;
    let page = String::from_utf8_lossy(&page.body).into_owned();
    let line = page.lines().find_map(|line| line.strip_prefix(&format!("{name} "))).unwrap_or_else(|| panic!("no {name} in {page}"));
    line.parse().expect("a number")
}

/// Pushes what an image names, and then its manifest; how that was answered.
async fn push(node: &Node, tag: &str, image: &Image) -> Response {
    registry(node).try_push_blobs("team/app", image).await.expect("push blobs");
    registry(node).put_manifest("team/app", tag, image.media_type(), image.manifest.clone()).await
}

/// Stops a process where it stands, or lets it go on: to others, it is there and says nothing.
fn signal(node: &Node, signal: rustix::process::Signal) {
    let id = rustix::process::Pid::from_raw(node.id() as i32).expect("a process");
    rustix::process::kill_process(id, signal).expect("signal a child");
}

#[tokio::test(flavor = "multi_thread")]
async fn f10_a_node_that_lost_its_disk_gets_its_share_back_and_others_stand_in_for_the_lost_one() {
    let mut nodes = cluster(3, |node| node.archive("none").env("LARDER_PEERS__TAKEOVER", "2s")).await;
    let image = Image::from_seed(400, &[LAYER; 12]);
    registry(&nodes[0]).push_image("team/app", "v1", &image).await;
    kept("the owners have their copies", &[&nodes[0], &nodes[1], &nodes[2]], &image, 2).await;
    nodes[1].lose_disk();
    kept("the two that are left have everything", &[&nodes[0], &nodes[2]], &image, 2).await;
    nodes[1].start().await;
    join(&nodes[2], &nodes[1]).await;
    tag_is(&nodes[1], "team/app", "v1", &image.digest()).await;
    // Of 12 layers with two owners among three nodes, it would take luck to own none.
    wait_until("the node has a share again", MOVED, async || {
        image.layers.iter().any(|layer| holds(&nodes[1], &layer.digest())).then_some(())
    })
    .await;
    registry(&nodes[1]).pull_image("team/app", "v1", &image).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn i10_the_share_of_a_dead_node_is_taken_over_and_given_back() {
    let mut nodes = cluster(4, |node| node.archive("none").env("LARDER_PEERS__TAKEOVER", "2s")).await;
    let (old, new) = (Image::from_seed(410, &[LAYER; 12]), Image::from_seed(411, &[LAYER; 12]));
    registry(&nodes[0]).push_image("team/app", "old", &old).await;
    // The pusher's own copies may be gone one day: they don't count where it is no owner.
    kept("the owners have their copies", &[&nodes[0], &nodes[1], &nodes[2], &nodes[3]], &old, 2).await;
    nodes[3].kill();
    kept("others have replicas again", &[&nodes[0], &nodes[1], &nodes[2]], &old, 2).await;
    registry(&nodes[1]).push_image("team/app", "new", &new).await;
    kept("what is new is kept without it", &[&nodes[0], &nodes[1], &nodes[2]], &new, 2).await;
    nodes[3].start().await;
    for node in &nodes {
        connected(node, 4).await;
    }
    tag_is(&nodes[3], "team/app", "new", &new.digest()).await;
    wait_until("it has its share of what is new", MOVED, async || {
        new.layers.iter().any(|layer| holds(&nodes[3], &layer.digest())).then_some(())
    })
    .await;
    // Who stood in keeps what it has, until it needs room.
    assert!(old.layers.iter().chain(&new.layers).all(|layer| copies(&[&nodes[0], &nodes[1], &nodes[2]], &layer.digest()) >= 2));
    registry(&nodes[3]).pull_image("team/app", "old", &old).await;
    registry(&nodes[3]).pull_image("team/app", "new", &new).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn i10_a_push_to_peers_survives_the_loss_of_the_node_that_answered_it() {
    let (node_of, concern) = (|name: &str| node(name).archive("none"), ("LARDER_PUSH__ACK", "peers:1"));
    let keeper = node_of("keeper").start().await;
    let mut times = Vec::new();
    for round in 0..20 {
        let mut pushing = node_of(&format!("pushing-{round}")).env(concern.0, concern.1).start().await;
        join(&keeper, &pushing).await;
        let image = Image::from_seed(420 + round, &[(1 << 20) + 7, LAYER, 10]);
        let tag = format!("v{round}");
        registry(&pushing).try_push_blobs("team/app", &image).await.expect("push blobs");
        let begun = Instant::now();
        registry(&pushing).put_manifest("team/app", &tag, image.media_type(), image.manifest.clone()).await.expect(201, "push a manifest");
        times.push(begun.elapsed());
        pushing.lose_disk();
        // At once, and with nobody else to ask.
        registry(&keeper).pull_image("team/app", &tag, &image).await;
    }
    times.sort();
    println!("a push to one peer is answered after: median {:?}, slowest {:?}", times[10], times[19]);
}

#[tokio::test(flavor = "multi_thread")]
async fn i10_an_index_pushed_to_peers_is_whole_without_the_node_that_answered_it() {
    let mut nodes = cluster(3, |node| node.archive("none").env("LARDER_PUSH__ACK", "peers:1").env("LARDER_PEERS__REPLICAS", "1")).await;
    let images = [Image::from_seed(450, &[LAYER; 3]), Image::from_seed(451, &[LAYER; 3])];
    let index = registry(&nodes[0]).push_index("team/multi", "v1", larder_harness::Kind::Oci, &images).await;
    nodes[0].lose_disk();
    for other in &nodes[1..] {
        // Its records are on one of the others, which tells the second.
        tag_is(other, "team/multi", "v1", &larder_harness::sha256(&index)).await;
        for image in &images {
            registry(other).pull_image("team/multi", &image.digest(), image).await;
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn f21_another_node_takes_the_place_of_one_that_falls_silent_while_a_push_waits() {
    let mut nodes = cluster(4, |node| node.archive("none").env("LARDER_PUSH__ACK", "peers:2").env("LARDER_PEERS__REPLICAS", "3")).await;
    // Of twelve layers, each on two of three others, every node is asked for some.
    let image = Image::from_seed(455, &[LAYER; 12]);
    registry(&nodes[0]).try_push_blobs("team/app", &image).await.expect("push blobs");
    signal(&nodes[3], rustix::process::Signal::STOP);
    let begun = Instant::now();
    let answer = registry(&nodes[0]).put_manifest("team/app", "v1", image.media_type(), image.manifest.clone()).await;
    println!("answered {:?} after one of three was stopped", begun.elapsed());
    answer.expect(201, "push a manifest");
    assert!(begun.elapsed() < Duration::from_secs(20), "{:?}", begun.elapsed());
    nodes[0].lose_disk();
    signal(&nodes[3], rustix::process::Signal::KILL);
    // Two have all of it, so one may be lost as well.
    for other in &nodes[1..3] {
        assert!(image.layers.iter().all(|layer| holds(other, &layer.digest())), "{} was to have everything", other.name());
        registry(other).pull_image("team/app", "v1", &image).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cluster_that_is_too_small_for_the_write_concern_says_so_at_once() {
    let nodes = cluster(2, |node| node.env("LARDER_PUSH__ACK", "peers:2")).await;
    let image = Image::from_seed(460, &[LAYER]);
    let begun = Instant::now();
    let answer = push(&nodes[0], "v1", &image).await;
    assert!(begun.elapsed() < Duration::from_secs(10), "{:?}", begun.elapsed());
    assert_eq!((answer.status, answer.error_code()), (503, "UNAVAILABLE".into()));
    let said = String::from_utf8_lossy(&answer.body).into_owned();
    assert!(said.contains("push.ack is peers:2") && said.contains("there is 1 other writer") && said.contains("larder token"), "{said}");
    // Nothing of it is half there.
    assert_eq!(registry(&nodes[0]).head("/v2/team/app/manifests/v1").await.status, 404);
}

#[tokio::test(flavor = "multi_thread")]
async fn f19_a_push_fails_in_time_when_the_others_are_silent_and_a_repeated_one_goes_on() {
    let nodes = cluster(2, |node| node.archive("none").env("LARDER_PUSH__ACK", "peers:1").env("LARDER_PUSH__ACK_TIMEOUT", "3s")).await;
    signal(&nodes[1], rustix::process::Signal::STOP);
    let image = Image::from_seed(470, &[LAYER, 10]);
    registry(&nodes[0]).try_push_blobs("team/app", &image).await.expect("push blobs");
    let begun = Instant::now();
    let answer = registry(&nodes[0]).put_manifest("team/app", "v1", image.media_type(), image.manifest.clone()).await;
    let took = begun.elapsed();
    let said = String::from_utf8_lossy(&answer.body).into_owned();
    assert_eq!(answer.status, 503, "{said}");
    assert!(took >= Duration::from_secs(3) && took < Duration::from_secs(8), "{took:?}");
    assert!(answer.header("retry-after").parse::<u64>().is_ok_and(|seconds| seconds > 0), "{said}");
    assert!(said.contains("stored on this node") && said.contains("not on 1 others") && said.contains("push again"), "{said}");
    assert!(said.contains(&image.layers[0].digest()), "what is missing is named: {said}");
    assert_eq!(metric(&nodes[0], "larder_unacknowledged_pushes_total").await, 1);
    // Nothing is lost: it is here, and it gets there by itself or by a repeated push.
    registry(&nodes[0]).pull_image("team/app", "v1", &image).await;
    signal(&nodes[1], rustix::process::Signal::CONT);
    wait_until("a repeated push is answered", SOON, async || (push(&nodes[0], "v1", &image).await.status == 201).then_some(())).await;
    let mut nodes = nodes;
    nodes[0].lose_disk();
    registry(&nodes[1]).pull_image("team/app", "v1", &image).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn i7_a_push_that_waits_for_the_archive_comes_back_from_the_bucket_alone() {
    let bucket = tempfile::tempdir().expect("a folder");
    let url = format!("file://{}", bucket.path().display());
    // Nothing would be archived for a quarter of an hour.
    let mut nodes = cluster(2, |node| node.archive(&url).env("LARDER_PUSH__ACK", "archived")).await;
    let images: Vec<_> = (0..8).map(|seed| Image::from_seed(480 + seed, &[LAYER, 10])).collect();
    let shared = Content::new(490, LAYER);
    // A layer that came through another node: its link was written there.
    registry(&nodes[1]).try_push_blob("team/app", shared).await.expect("push");
    let both = Image::of_layers(larder_harness::Kind::Oci, 491, vec![shared]);
    let pushes = images.iter().enumerate().map(|(number, image)| push(&nodes[0], if number == 0 { "v0" } else { "v" }, image));
    for answer in futures_util::future::join_all(pushes).await {
        assert_eq!(answer.status, 201, "{}", String::from_utf8_lossy(&answer.body));
    }
    wait_until("the link is known", SOON, async || {
        let head = registry(&nodes[0]).head(&format!("/v2/team/app/blobs/{}", shared.digest())).await;
        (head.status == 200).then_some(())
    })
    .await;
    push(&nodes[0], "both", &both).await.expect(201, "push an image with a layer of another node");
    let packs = nodes[0].cli_json(&["archive", "list"]).await.as_array().map_or(0, Vec::len);
    assert!(packs <= 6, "{packs} packs for nine pushes, of which eight came at once");
    nodes.iter_mut().for_each(Node::lose_disk);
    let fresh = node("fresh").archive("none").start().await;
    fresh.cli(&["restore", &url]).await.expect("restore");
    registry(&fresh).pull_image("team/app", "v0", &images[0]).await;
    registry(&fresh).pull_image("team/app", "both", &both).await;
    for image in &images {
        registry(&fresh).pull_image("team/app", &image.digest(), image).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_on_one_node_alone_is_counted_and_grows_older() {
    let first = node("first").archive("none").start().await;
    let image = Image::from_seed(500, &[LAYER, LAYER]);
    registry(&first).push_image("team/app", "v1", &image).await;
    wait_until("all of it is on one node", SOON, async || (metric(&first, "larder_single_copy_bytes").await >= 2 * LAYER).then_some(()))
        .await;
    wait_until("it grows older", SOON, async || (metric(&first, "larder_single_copy_age_seconds").await >= 1).then_some(())).await;
    let mut second = node("second").archive("none").start().await;
    join(&first, &second).await;
    wait_until("it is on two nodes", MOVED, async || (metric(&first, "larder_single_copy_bytes").await == 0).then_some(())).await;
    assert_eq!(metric(&first, "larder_single_copy_age_seconds").await, 0);
    second.stop().await;
    registry(&first).push_image("team/app", "v2", &Image::from_seed(501, &[LAYER])).await;
    let risk = wait_until("the new one is on one node", SOON, async || {
        let risk = first.cli_json(&["status"]).await["risk"].clone();
        (risk["single_copy_bytes"].as_u64()? >= LAYER).then_some(risk)
    })
    .await;
    assert!(risk["single_copy_age_s"].is_u64() && risk["unarchived_bytes"] == 0, "{risk}");
    assert!(first.cli(&["status"]).await.expect("status").contains("on this node alone"));
    // A restart forgets nothing of it.
    let mut first = first;
    first.kill_and_restart().await;
    wait_until("it still is on one node", SOON, async || (metric(&first, "larder_single_copy_bytes").await >= LAYER).then_some(())).await;
    second.start().await;
    wait_until("it is on two nodes", MOVED, async || (metric(&first, "larder_single_copy_bytes").await == 0).then_some(())).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_waits_for_the_archive_is_counted() {
    let alone = node("alone").start().await;
    registry(&alone).push_image("team/app", "v1", &Image::from_seed(510, &[LAYER])).await;
    wait_until("it waits", SOON, async || (metric(&alone, "larder_unarchived_bytes").await >= LAYER).then_some(())).await;
    wait_until("it grows older", SOON, async || (metric(&alone, "larder_unarchived_age_seconds").await >= 1).then_some(())).await;
    alone.cli(&["archive", "flush"]).await.expect("flush");
    wait_until("nothing waits", SOON, async || (metric(&alone, "larder_unarchived_bytes").await == 0).then_some(())).await;
    assert_eq!(metric(&alone, "larder_unarchived_age_seconds").await, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn f6_while_a_zone_is_out_nothing_goes_that_was_promised() {
    const MIB: u64 = 1 << 20;
    let mut nodes: Vec<Node> = Vec::new();
    for zone in ["x", "y", "z"] {
        let mut with = node(zone).archive("none").env("LARDER_NODE__ZONE", zone);
        if zone == "z" {
            with = with.env("LARDER_STORE__SIZE_MAX", "64MiB");
        }
        let joining = with.start().await;
        if let Some(first) = nodes.first() {
            join(first, &joining).await;
        }
        nodes.push(joining);
    }
    for node in &nodes {
        connected(node, 3).await;
    }
    let image = Image::from_seed(520, &[2 * MIB; 24]);
    registry(&nodes[0]).push_image("team/app", "v1", &image).await;
    kept("the owners have their copies", &[&nodes[0], &nodes[1], &nodes[2]], &image, 2).await;
    tag_is(&nodes[2], "team/app", "v1", &image.digest()).await;
    registry(&nodes[2]).pull_image("team/app", "v1", &image).await;
    assert!(image.layers.iter().all(|layer| holds(&nodes[2], &layer.digest())), "a pull keeps what it brought");

    // The owners of what the small node may drop are in the other zones, and one of these is out.
    nodes[1].kill();
    let more = Content::new(521, 14 * MIB);
    registry(&nodes[2]).try_push_blob_at_once("team/other", more).await.expect("it still fits");
    // Several rounds look at the disk meanwhile, and find it too full.
    let begun = Instant::now();
    while begun.elapsed() < Duration::from_secs(8) {
        assert!(image.layers.iter().all(|layer| holds(&nodes[2], &layer.digest())), "an owner is out, and cannot have given its word");
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
    nodes[1].start().await;
    // After a round that freed nothing, the next one is a minute away.
    wait_until("all owners are there, and there is room again", 2 * MOVED, async || {
        let full = metric(&nodes[2], "larder_evicted_blobs_total").await == 0;
        (!full).then_some(())
    })
    .await;
    let all: Vec<_> = nodes.iter().collect();
    assert!(image.layers.iter().all(|layer| copies(&all, &layer.digest()) >= 2), "no copy went that somebody counted on");
    registry(&nodes[2])
        .request("GET", &format!("/v2/team/app/blobs/{}", image.layers[0].digest()), &[], Body::empty())
        .await
        .expect(200, "pull");
}
