//! What the S3 server sees, counted by the server.

use std::path::Path;

use larder_harness::s3::{Fault, Operation};
use larder_harness::{CountingS3, Image, wait_until};

use super::{SOON, flush, marked, node, pack_puts, packs_in, registry};

#[tokio::test(flavor = "multi_thread")]
async fn a_hundred_pushes_within_one_delay_are_one_put_and_nothing_else() {
    let s3 = CountingS3::start().await;
    let node = marked("node", &s3, "fleet").await;
    for seed in 0..100 {
        // Seven layers and the configuration: eight blobs, none of them shared.
        let image = Image::from_seed(1000 + seed, &[20_000; 7]);
        registry(&node).push_image("team/app", &format!("v{seed}"), &image).await;
    }
    assert_eq!(s3.requests().len(), 0, "nothing is asked before the delay is over");
    assert_eq!(flush(&node).await, 1);
    let requests = s3.requests();
    assert_eq!(requests.len(), 1, "{requests:?}");
    assert_eq!(requests[0].operation, Operation::Put);
    assert_eq!(flush(&node).await, 0, "nothing queued, no request");
    assert_eq!(s3.requests().len(), 1);
    // What the node says of itself is what the server saw.
    let cost = node.cli_json(&["archive", "cost"]).await;
    // With those of the mark and of the first pack.
    assert_eq!(cost["requests"]["put"], 3);
    assert_eq!(["get", "list", "head", "delete"].map(|kind| cost["requests"][kind].as_u64()), [Some(1), Some(0), Some(0), Some(0)]);
    println!("S3 requests for 100 pushes of an 8-blob image: {}", requests.len());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pack_is_sealed_by_age_and_by_size_without_being_asked() {
    let s3 = CountingS3::start().await;
    let old = node("old").s3(&s3, "old").env("LARDER_ARCHIVE__MAX_DELAY", "1s").start().await;
    registry(&old).push_image("team/app", "v1", &Image::from_seed(50, &[1000])).await;
    wait_until("a pack by age", SOON, async || (pack_puts(&s3) == 1).then_some(())).await;
    let large = node("large").s3(&s3, "large").env("LARDER_ARCHIVE__PACK_SIZE", "1MiB").start().await;
    registry(&large).push_image("team/app", "v1", &Image::from_seed(51, &[2 << 20])).await;
    wait_until("a pack by size", SOON, async || (pack_puts(&s3) == 2).then_some(())).await;
    // Each asked whose bucket it is, and marked it.
    assert_eq!(s3.requests().len(), 2 + 2 * 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn f26_a_bucket_that_is_down_disturbs_no_push_and_gets_all_of_it_later() {
    let s3 = CountingS3::start().await;
    let node = node("node").s3(&s3, "fleet").env("LARDER_ARCHIVE__MAX_DELAY", "1s").start().await;
    s3.fail_next(8);
    let image = Image::from_seed(52, &[100_000, 10]);
    registry(&node).push_image("team/app", "v1", &image).await;
    wait_until("the bucket was asked in vain", SOON, async || (s3.faults_left() < 8).then_some(())).await;
    registry(&node).push_image("team/app", "v2", &Image::from_seed(53, &[1000])).await;
    registry(&node).pull_image("team/app", "v1", &image).await;
    wait_until("it is archived when the bucket is up again", SOON, async || (!packs_in(&s3).is_empty()).then_some(())).await;
    // Failures cost requests, and no second object with the same content.
    wait_until("nothing waits any more", SOON, async || {
        let status = node.cli_json(&["archive", "status"]).await;
        (status["pending_records"] == 0).then_some(())
    })
    .await;
    assert!(packs_in(&s3).len() <= 2, "{:?}", s3.objects());
}

#[tokio::test(flavor = "multi_thread")]
async fn f27_a_put_whose_answer_was_lost_has_one_effect() {
    let s3 = CountingS3::start().await;
    let node = marked("node", &s3, "fleet").await;
    s3.inject(Operation::Put, Fault::DropAnswer);
    registry(&node).push_image("team/app", "v1", &Image::from_seed(54, &[50_000])).await;
    assert_eq!(flush(&node).await, 1);
    assert_eq!(s3.count(Operation::Put), 2, "the same again");
    assert_eq!(packs_in(&s3).len(), 2, "one object more");
}

#[tokio::test(flavor = "multi_thread")]
async fn f28_a_node_killed_between_put_and_record_loses_and_breaks_nothing() {
    for point in ["archive/pack/before-put", "archive/pack/put-not-recorded"] {
        let s3 = CountingS3::start().await;
        let mut node = node("node").s3(&s3, "fleet").env("LARDER_FAILPOINTS", format!("{point}=kill")).start().await;
        let image = Image::from_seed(55, &[50_000]);
        registry(&node).push_image("team/app", "v1", &image).await;
        assert!(node.cli(&["archive", "flush"]).await.is_err(), "{point}");
        node.ended(SOON).await;
        node.set_env("LARDER_FAILPOINTS", None);
        node.start().await;
        assert_eq!(flush(&node).await, 1, "{point}");
        assert_eq!(pack_puts(&s3), packs_in(&s3).len(), "{point}: every PUT has a name of its own: {:?}", s3.objects());
        registry(&node).pull_image("team/app", "v1", &image).await;
        // What stands in the bucket now is enough to bring it back.
        let fresh = super::node("fresh").s3(&s3, "fleet").start().await;
        fresh.cli(&["restore", &s3.url("fleet")]).await.expect("restore");
        registry(&fresh).pull_image("team/app", "v1", &image).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_fleet_puts_each_blob_once() {
    let s3 = CountingS3::start().await;
    let first = node("first").s3(&s3, "fleet").start().await;
    let second = node("second").s3(&s3, "fleet").start().await;
    let token = first.cli(&["token"]).await.expect("token");
    second.cli(&["join", &token]).await.expect("join");
    let image = Image::from_seed(56, &[3 << 20]);
    registry(&first).push_image("team/app", "v1", &image).await;
    assert_eq!(flush(&first).await, 1);
    // The second node takes another tag of the same image: its pack has the record and not the blob again.
    wait_until("the tag is on the second node", SOON, async || {
        (registry(&second).head("/v2/team/app/manifests/v1").await.status == 200).then_some(())
    })
    .await;
    wait_until("the pack is known there", SOON, async || (second.cli_json(&["archive", "status"]).await["packs"] == 1).then_some(())).await;
    registry(&second).push_image("team/app", "v2", &image).await;
    flush(&second).await;
    let sizes: Vec<_> = s3.objects().into_iter().map(|(_, size)| size).collect();
    assert_eq!(sizes.iter().filter(|size| **size > 1 << 20).count(), 1, "{sizes:?}");
    assert!(Path::new(&s3.bucket_dir()).exists());
}
