//! Garbage collection on one node.

use bytes::Bytes;
use larder_harness::{Content, Image, sha256};

use crate::{GRACE, blob, collected, files, gc, node, registry};

/// Larger than what lives in the index.
const LAYER_SIZE: u64 = 100_000;

#[tokio::test]
async fn what_no_image_needs_goes_off_the_disk_and_everything_else_stays() {
    let node = node("node").start().await;
    let registry = registry(&node);
    let (kept, gone) = (Image::from_seed(1, &[LAYER_SIZE, LAYER_SIZE + 1]), Image::from_seed(2, &[LAYER_SIZE + 2]));
    registry.push_image("team/app", "kept", &kept).await;
    registry.push_image("team/app", "gone", &gone).await;
    assert_eq!(files(&node), 3);
    let path = format!("/v2/team/app/manifests/{}", gone.digest());
    registry.request("DELETE", &path, &[], Bytes::new()).await.expect(202, "delete the manifest");

    let dry = node.cli_json(&["gc", "--dry-run"]).await;
    assert_eq!((dry["links"].as_u64(), dry["links_waiting"].as_u64()), (Some(0), Some(2)), "they are young: {dry}");
    // Its config and its layer.
    collected(&node, 2).await;
    gc(&node).await;
    assert_eq!(files(&node), 2);
    registry.head(&blob("team/app", &gone.layers[0].digest())).await.expect(404, "a collected layer");
    registry.pull_image("team/app", "kept", &kept).await;
    // What was collected can be pushed again.
    registry.push_image("team/app", "gone", &gone).await;
    registry.pull_image("team/app", "gone", &gone).await;
}

#[tokio::test]
async fn f42_a_client_that_was_told_to_skip_an_upload_can_push_its_manifest() {
    let node = node("node").start().await;
    let registry = registry(&node);
    let image = Image::from_seed(3, &[LAYER_SIZE]);
    registry.try_push_blobs("team/app", &image).await.expect("blobs without a manifest");
    let digest = image.layers[0].digest();
    // For three times the grace, a client that asks again and again while the collector runs.
    let begin = std::time::Instant::now();
    while begin.elapsed() < 3 * GRACE {
        for digest in [&digest, &sha256(&image.config)] {
            registry.head(&blob("team/app", digest)).await.expect(200, "a blob that is asked for");
        }
        assert_eq!(gc(&node).await["links"], 0);
        tokio::time::sleep(GRACE / 5).await;
    }
    let manifest = registry.put_manifest("team/app", "latest", image.media_type(), image.manifest.clone()).await;
    manifest.expect(201, "the manifest");
    tokio::time::sleep(2 * GRACE).await;
    gc(&node).await;
    registry.pull_image("team/app", "latest", &image).await;
}

#[tokio::test]
async fn the_trash_gives_back_what_somebody_still_needs() {
    let node = node("node").env("LARDER_GC__TRASH", "1h").start().await;
    let registry = registry(&node);
    let content = Content::new(4, LAYER_SIZE);
    registry.try_push_blob("team/app", content).await.expect("push");
    collected(&node, 1).await;
    let report = gc(&node).await;
    assert_eq!((report["in_trash"].as_u64(), report["in_trash_bytes"].as_u64(), files(&node)), (Some(1), Some(LAYER_SIZE), 1), "{report}");
    registry.head(&blob("team/app", &content.digest())).await.expect(404, "in the trash");
    registry.try_push_blob("team/other", content).await.expect("push it again");
    registry.pull_blob("team/other", &content.digest()).await.expect("pull");
    assert_eq!(gc(&node).await["in_trash"], 0);
}

#[tokio::test]
async fn a_dry_run_touches_nothing_and_a_restart_makes_nothing_old() {
    let mut node = node("node").env("LARDER_GC__GRACE", "1h").start().await;
    let registry = registry(&node);
    registry.try_push_blob("team/app", Content::new(5, LAYER_SIZE)).await.expect("push");
    for _ in 0..2 {
        for arguments in [&["gc", "--dry-run"][..], &["gc"]] {
            let report = node.cli_json(arguments).await;
            assert_eq!((report["links"].as_u64(), report["links_waiting"].as_u64()), (Some(0), Some(1)), "{report}");
        }
        node.restart().await;
    }
    let text = node.cli(&["gc", "--dry-run"]).await.expect("a table");
    assert!(text.contains("not old enough: 1"), "{text}");
}

#[tokio::test]
async fn it_runs_by_itself() {
    let node = node("node").env("LARDER_GC__PERIOD", "1s").start().await;
    let registry = registry(&node);
    registry.try_push_blob("team/app", Content::new(6, LAYER_SIZE)).await.expect("push");
    larder_harness::wait_until("the file is gone, and counted", crate::SOON, async || {
        let metrics = String::from_utf8_lossy(&registry.get("/metrics").await.body).into_owned();
        (files(&node) == 0 && metrics.contains("larder_gc_blobs_total 1")).then_some(())
    })
    .await;
}
