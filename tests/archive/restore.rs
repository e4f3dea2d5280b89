//! Everything back from nothing but the bucket.

use larder_harness::s3::Operation;
use larder_harness::{CountingS3, Image, Kind};

use super::{flush, node, packs_in, registry};

#[tokio::test(flavor = "multi_thread")]
async fn i7_a_fleet_comes_back_from_the_bucket_alone() {
    let s3 = CountingS3::start().await;
    let mut node = node("node").s3(&s3, "fleet").start().await;
    let images: Vec<_> = (0..4).map(|seed| Image::from_seed(70 + seed, &[200_000, 1_200_000, 10])).collect();
    for (number, image) in images.iter().enumerate() {
        registry(&node).push_image("team/app", &format!("v{number}"), image).await;
        assert_eq!(flush(&node).await, 1);
    }
    let index = registry(&node).push_index("team/multi", "latest", Kind::Oci, &images[..2]).await;
    registry(&node).request("DELETE", "/v2/team/app/manifests/v3", &[], larder_harness::Body::empty()).await.expect(202, "delete a tag");
    assert_eq!(flush(&node).await, 1);
    let cluster = node.cli_json(&["status"]).await["cluster"].clone();
    node.lose_disk();

    s3.forget();
    let fresh = super::node("fresh").s3(&s3, "fleet").env("LARDER_PEERS__REPLICAS", "1").start().await;
    let restored = fresh.cli_json(&["restore", "--metadata-only", &s3.url("fleet")]).await;
    assert_eq!((restored["packs"].as_u64(), restored["tags"].as_u64()), (Some(5), Some(4)), "{restored}");
    assert_eq!(fresh.cli_json(&["status"]).await["cluster"], cluster);
    for (number, image) in images[..3].iter().enumerate() {
        registry(&fresh).pull_image("team/app", &format!("v{number}"), image).await;
    }
    assert_eq!(registry(&fresh).head("/v2/team/app/manifests/v3").await.status, 404, "I4");
    assert_eq!(registry(&fresh).pull_manifest("team/multi", "latest").await.body, index);
    // What it asked for: which checkpoints and packs there are, whose they are, the ends of the packs, and each blob once.
    let blobs = 4 * 4;
    assert_eq!(s3.count(Operation::List), 2);
    let gets = s3.count(Operation::Get);
    assert!(gets <= 2 * 5 + 2 + blobs, "{gets} GETs for 5 packs and {blobs} blobs");
    assert!(s3.requests().iter().filter(|request| request.operation == Operation::Get).all(|request| !request.range.is_empty()));
    assert_eq!(s3.count(Operation::Put), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_restored_node_goes_on_archiving_and_can_be_lost_again() {
    let s3 = CountingS3::start().await;
    let mut first = node("first").s3(&s3, "fleet").start().await;
    let (old, new) = (Image::from_seed(80, &[100_000]), Image::from_seed(81, &[100_000]));
    registry(&first).push_image("team/app", "old", &old).await;
    flush(&first).await;
    first.lose_disk();
    let mut second = node("second").s3(&s3, "fleet").start().await;
    second.cli(&["restore", &s3.url("fleet")]).await.expect("restore");
    registry(&second).push_image("team/app", "new", &new).await;
    assert_eq!(flush(&second).await, 1);
    second.lose_disk();
    let third = node("third").s3(&s3, "fleet").start().await;
    // Nobody who was there before could name it: the operator does, by the id that the refusal tells (S38).
    let refused = third.cli(&["restore", &s3.url("fleet")]).await.expect_err("a stranger's pack");
    let id = refused.split("names: ").nth(1).and_then(|text| text.split(' ').next()).expect("it is named");
    assert!(refused.contains("(1 packs)") && id.len() == 52, "{refused}");
    third.cli(&["restore", &s3.url("fleet"), "--trust", id]).await.expect("restore again");
    registry(&third).pull_image("team/app", "old", &old).await;
    registry(&third).pull_image("team/app", "new", &new).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn f35_a_damaged_pack_is_named_and_the_others_serve() {
    let s3 = CountingS3::start().await;
    let mut node = node("node").s3(&s3, "fleet").start().await;
    let (good, bad) = (Image::from_seed(90, &[300_000]), Image::from_seed(91, &[300_000]));
    registry(&node).push_image("team/good", "v1", &good).await;
    flush(&node).await;
    registry(&node).push_image("team/bad", "v1", &bad).await;
    flush(&node).await;
    node.lose_disk();
    let packs = packs_in(&s3);
    assert_eq!(packs.len(), 2);
    // The footer of the second pack: its signature no longer fits.
    let path = s3.object_path(&packs[1].0);
    let mut bytes = std::fs::read(&path).expect("read the pack");
    let at = bytes.len() - 300;
    bytes[at] ^= 0x40;
    std::fs::write(&path, &bytes).expect("damage the pack");
    let fresh = super::node("fresh").s3(&s3, "fleet").start().await;
    // It was the last: nothing later shows that something is missing, and it is named.
    let restored = fresh.cli_json(&["restore", &s3.url("fleet")]).await;
    assert_eq!(restored["skipped"].as_array().map(Vec::len), Some(1), "{restored}");
    assert_eq!(restored["skipped"][0]["key"], packs[1].0.as_str());
    registry(&fresh).pull_image("team/good", "v1", &good).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn s37_a_blob_that_was_changed_in_the_bucket_is_never_served_whole() {
    let s3 = CountingS3::start().await;
    let mut node = node("node").s3(&s3, "fleet").start().await;
    let image = Image::from_seed(92, &[2_000_000]);
    registry(&node).push_image("team/app", "v1", &image).await;
    flush(&node).await;
    node.lose_disk();
    let path = s3.object_path(&packs_in(&s3)[0].0);
    let mut bytes = std::fs::read(&path).expect("read the pack");
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    std::fs::write(&path, &bytes).expect("damage the pack");
    // It says so: the content from elsewhere was not kept.
    let fresh = super::node("fresh").s3(&s3, "fleet").errors_expected().start().await;
    fresh.cli(&["restore", &s3.url("fleet")]).await.expect("restore");
    let digest = image.layers[0].digest();
    if let Ok(pulled) = registry(&fresh).pull_blob("team/app", &digest).await {
        assert_ne!(pulled.status, 200, "a whole body with a wrong byte");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn only_an_empty_node_is_restored() {
    let s3 = CountingS3::start().await;
    let node = node("node").s3(&s3, "fleet").start().await;
    let nothing = node.cli(&["restore", &s3.url("nowhere")]).await.expect_err("an empty bucket");
    assert!(nothing.contains("nowhere"), "{nothing}");
    registry(&node).push_image("team/app", "v1", &Image::from_seed(93, &[1000])).await;
    flush(&node).await;
    let refused = node.cli(&["restore", &s3.url("fleet")]).await.expect_err("it has content");
    assert!(refused.contains("empty"), "{refused}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_folder_restores_like_a_bucket() {
    let shared = tempfile::tempdir().expect("temporary folder");
    let url = format!("file://{}", shared.path().join("archive").display());
    let mut first = node("first").archive(&url).start().await;
    let image = Image::from_seed(94, &[1_100_000, 10]);
    registry(&first).push_image("team/app", "v1", &image).await;
    assert_eq!(flush(&first).await, 1);
    first.lose_disk();
    let second = node("second").archive(&url).start().await;
    second.cli(&["restore", &url]).await.expect("restore");
    registry(&second).pull_image("team/app", "v1", &image).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn s38_what_was_archived_before_and_after_a_change_of_keys_comes_back() {
    let s3 = CountingS3::start().await;
    let mut node = node("node").s3(&s3, "fleet").start().await;
    let images: Vec<_> = (0..3).map(|seed| Image::from_seed(90 + seed, &[100_000])).collect();
    let push = async |node: &larder_harness::Node, number: usize| {
        registry(node).push_image("team/app", &format!("v{number}"), &images[number]).await;
    };
    push(&node, 0).await;
    assert_eq!(flush(&node).await, 1);
    // What waits goes with the old key, which names the new one.
    push(&node, 1).await;
    let said = node.cli(&["peers", "rotate-key"]).await.expect("changed");
    assert!(said.starts_with("this node's key is "), "{said}");
    push(&node, 2).await;
    flush(&node).await;
    node.cli(&["peers", "rotate-key", "--revoke"]).await.expect("changed again");
    node.lose_disk();
    let fresh = super::node("fresh").s3(&s3, "fleet").start().await;
    fresh.cli(&["restore", &s3.url("fleet")]).await.expect("all its keys are believed");
    for (number, image) in images.iter().enumerate() {
        registry(&fresh).pull_image("team/app", &format!("v{number}"), image).await;
    }
}
