//! Metadata: on every node, soon, and the same everywhere in the end.

use std::time::{Duration, Instant};

use larder_harness::{Body, Image, wait_until};

use super::{SOON, cluster, registry, tag_is};

#[tokio::test(flavor = "multi_thread")]
async fn a_tag_is_visible_on_the_other_nodes_at_once_and_whole() {
    let nodes = cluster(3, |node| node).await;
    let mut times = Vec::new();
    for seed in 0..20 {
        let image = Image::from_seed(100 + seed, &[2000]);
        let (tag, from) = (format!("t{seed}"), seed as usize % 3);
        registry(&nodes[from]).push_image("team/app", &tag, &image).await;
        let pushed = Instant::now();
        for node in &nodes {
            tag_is(node, "team/app", &tag, &image.digest()).await;
        }
        times.push(pushed.elapsed());
        // With the tag come its manifest and links: nothing of it is missing now.
        registry(&nodes[(from + 1) % 3]).pull_image("team/app", &tag, &image).await;
    }
    times.sort();
    println!("tag visible on all nodes: median {:?}, slowest {:?}", times[10], times[19]);
    assert!(times[10] < Duration::from_millis(250), "median {:?}", times[10]);
}

#[tokio::test(flavor = "multi_thread")]
async fn deletes_spread_and_deleted_tags_stay_deleted() {
    let mut nodes = cluster(3, |node| node).await;
    let image = Image::from_seed(7, &[1000]);
    registry(&nodes[0]).push_image("team/app", "old", &image).await;
    for node in &nodes {
        tag_is(node, "team/app", "old", &image.digest()).await;
    }
    // One node is away while the tag goes, and comes back with the tag in its store.
    nodes[2].stop().await;
    registry(&nodes[1]).request("DELETE", "/v2/team/app/manifests/old", &[], Body::empty()).await.expect(202, "delete the tag");
    nodes[2].start().await;
    for node in &nodes {
        wait_until("the tag is gone", SOON, async || (registry(node).head("/v2/team/app/manifests/old").await.status == 404).then_some(()))
            .await;
    }
    // The manifest itself was not deleted.
    registry(&nodes[2]).pull_image("team/app", &image.digest(), &image).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn f16_after_a_partition_the_last_push_is_what_a_tag_means() {
    let mut nodes = cluster(2, |node| node).await;
    let (earlier, later) = (Image::from_seed(8, &[1000]), Image::from_seed(9, &[1000]));
    // Apart: each runs while the other does not.
    nodes[1].stop().await;
    registry(&nodes[0]).push_image("team/app", "latest", &earlier).await;
    nodes[0].stop().await;
    nodes[1].start().await;
    registry(&nodes[1]).push_image("team/app", "latest", &later).await;
    nodes[0].start().await;
    let healed = Instant::now();
    for node in &nodes {
        tag_is(node, "team/app", "latest", &later.digest()).await;
    }
    println!("both nodes agree {:?} after they could", healed.elapsed());
    // The other push is still there by its digest, everywhere.
    for node in &nodes {
        registry(node).pull_image("team/app", &earlier.digest(), &earlier).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_killed_node_catches_up() {
    let mut nodes = cluster(2, |node| node).await;
    for round in 0..3 {
        nodes[1].kill();
        let image = Image::from_seed(20 + round, &[3000]);
        registry(&nodes[0]).push_image("team/app", "latest", &image).await;
        nodes[1].start().await;
        tag_is(&nodes[1], "team/app", "latest", &image.digest()).await;
        registry(&nodes[1]).pull_image("team/app", "latest", &image).await;
    }
}
