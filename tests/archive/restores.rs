//! Checkpoints, and all blobs back, as the bucket sees it.

use larder_harness::s3::{Fault, Operation};
use larder_harness::{CountingS3, Image, Node, wait_until};
use serde_json::Value;

use super::{SOON, flush, node, packs_in, registry};

/// Archives `count` images one by one, each in a pack of its own.
async fn packs(node: &Node, count: u64) -> Vec<Image> {
    let mut images = Vec::new();
    for number in 0..count {
        let image = Image::from_seed(500 + number, &[150_000, 1_200_000, 10]);
        registry(node).push_image("team/app", &format!("v{number}"), &image).await;
        assert_eq!(flush(node).await, 1);
        images.push(image);
    }
    images
}

#[tokio::test(flavor = "multi_thread")]
async fn everything_comes_back_with_few_requests_and_is_then_here() {
    let s3 = CountingS3::start().await;
    let mut first = node("first").s3(&s3, "fleet").env("LARDER_ARCHIVE__CHECKPOINT_PACKS", "6").start().await;
    let images = packs(&first, 8).await;
    first.lose_disk();
    s3.forget();
    let fresh = node("fresh").s3(&s3, "fleet").start().await;
    let restored = fresh.cli_json(&["restore", &s3.url("fleet")]).await;
    assert!(restored["checkpoint"].as_str().is_some_and(|key| key.contains("/checkpoints/")), "{restored}");
    assert_eq!((restored["packs"].as_u64(), restored["tags"].as_u64()), (Some(2), Some(8)), "{restored}");
    assert_eq!((restored["blobs"]["state"].as_str(), restored["blobs"]["blobs"].as_u64()), (Some("done"), Some(8 * 4)), "{restored}");
    // Two listings; the bucket's mark; the checkpoint's end and body; the ends of two packs; and the blobs of each pack by one request.
    assert_eq!((s3.count(Operation::List), s3.count(Operation::Get)), (2, 1 + 2 + 2 + 8), "{:?}", s3.requests());
    s3.forget();
    for (number, image) in images.iter().enumerate() {
        registry(&fresh).pull_image("team/app", &format!("v{number}"), image).await;
    }
    assert!(s3.requests().is_empty(), "all of it is here: {:?}", s3.requests());
    let bill = s3.bill();
    assert_eq!(bill.dollars, 0.0);
}

#[tokio::test(flavor = "multi_thread")]
async fn f40_a_node_killed_in_the_middle_of_a_restore_goes_on_and_has_nothing_twice() {
    let s3 = CountingS3::start().await;
    let mut first = node("first").s3(&s3, "fleet").start().await;
    let images = packs(&first, 6).await;
    first.lose_disk();
    let mut fresh = node("fresh").s3(&s3, "fleet").start().await;
    fresh.cli(&["restore", "--metadata-only", &s3.url("fleet")]).await.expect("restore");
    fresh.lose_disk();
    // The metadata first, then some of the blobs.
    for stall_after in [0, 2] {
        let mut fresh = node("again").s3(&s3, "fleet").create();
        fresh.start().await;
        s3.forget();
        for _ in 0..6 + 1 + stall_after {
            s3.inject(Operation::Get, Fault::Stall(std::time::Duration::from_millis(1)));
        }
        for _ in 0..8 {
            s3.inject(Operation::Get, Fault::Stall(SOON));
        }
        let asked = fresh.cli(&["restore", "--no-wait", &s3.url("fleet")]).await;
        asked.expect("pulls are served");
        wait_until("blobs come, and then no more", SOON, async || (s3.faults_left() <= 8).then_some(())).await;
        fresh.kill();
        s3.clear_faults();
        s3.forget();
        fresh.start().await;
        wait_until("all blobs are there", SOON, async || {
            let status = fresh.cli_json(&["archive", "status"]).await;
            (status["restore"]["state"] == "done").then_some(())
        })
        .await;
        // At most what was under way is had again.
        assert!(s3.count(Operation::Get) <= 6 && s3.count(Operation::List) == 0, "{:?}", s3.requests());
        s3.forget();
        for (number, image) in images.iter().enumerate() {
            registry(&fresh).pull_image("team/app", &format!("v{number}"), image).await;
        }
        assert!(s3.requests().is_empty());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn f35_verify_finds_a_flipped_bit_and_mends_it_and_a_listing_is_a_request_for_each_kind() {
    let s3 = CountingS3::start().await;
    let node = node("node").s3(&s3, "fleet").start().await;
    packs(&node, 3).await;
    s3.forget();
    let verified = node.cli(&["archive", "verify"]).await.expect("all is well");
    assert!(verified.contains("3: 0 missing, 0 with another length"), "{verified}");
    assert_eq!((s3.count(Operation::List), s3.requests().len()), (2, 2), "{:?}", s3.requests());
    let key = packs_in(&s3)[1].0.clone();
    let mut bytes = std::fs::read(s3.object_path(&key)).expect("a pack");
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    std::fs::write(s3.object_path(&key), bytes).expect("damage it");
    let refused = node.cli(&["archive", "verify", "--read-data-subset", "1/1"]).await.expect_err("it is damaged");
    assert!(refused.contains("--mend"), "{refused}");
    let mended = node.cli_json(&["archive", "verify", "--read-data-subset", "1/1", "--mend"]).await;
    assert_eq!((mended["mended"].as_u64(), mended["read"]["damaged"].as_array().map(Vec::len)), (Some(1), Some(1)), "{mended}");
    let whole = node.cli(&["archive", "verify", "--read-data-subset", "1/1"]).await.expect("all is well again");
    assert!(whole.contains("4: 0 missing") && whole.contains("0 damaged"), "{whole}");
    assert!(node.cli(&["archive", "status"]).await.expect("status").contains("4 packs as they were written"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_drill_says_what_a_restore_would_take() {
    let s3 = CountingS3::start().await;
    let node = node("node").s3(&s3, "fleet").start().await;
    packs(&node, 3).await;
    node.cli(&["archive", "checkpoint"]).await.expect("write a checkpoint");
    s3.forget();
    let drilled = node.cli_json(&["restore", "--drill", "2"]).await;
    assert_eq!((drilled["images"].as_u64(), drilled["blobs"].as_u64()), (Some(2), Some(8)), "{drilled}");
    assert_eq!(drilled["failed"].as_array().map(Vec::len), Some(0), "{drilled}");
    let asked = drilled["requests"].as_object().expect("requests").values().filter_map(Value::as_u64).sum::<u64>();
    assert_eq!(asked as usize, s3.requests().len(), "{drilled}");
    // And what would not come.
    let lost = packs_in(&s3)[0].0.clone();
    std::fs::remove_file(s3.object_path(&lost)).expect("remove a pack");
    let drilled = node.cli_json(&["restore", "--drill", "3"]).await;
    assert_eq!((drilled["images"].as_u64(), drilled["failed"].as_array().map(Vec::len)), (Some(2), Some(1)), "{drilled}");
}
