//! F39: the bucket made smaller, killed and failing at every step, and restored from at every moment.

use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::Command;

use larder_harness::s3::{Fault, Operation};
use larder_harness::{CountingS3, Image, Node, NodeBuilder, sha256, wait_until};
use serde_json::Value;

use super::{SOON, flush, marked_node, node, packs_in, registry};

const FAILPOINTS: &str = "LARDER_FAILPOINTS";
/// A class that must thaw, of a vendor who has no least days.
const COLD: &str = "frozen:Cold";

/// A node that compacts when it is asked to, whatever it saves, and deletes at once what it may.
fn compacting(name: &str) -> NodeBuilder {
    node(name).env("LARDER_ARCHIVE__COMPACT_WAIT", "0s").env("LARDER_ARCHIVE__COMPACT_PAYBACK", "1000000")
}

/// An image with layers of its own, as large as they are told, and the tag of its number.
fn image(number: u64, size: u64) -> (String, Image) {
    (format!("v{number}"), Image::from_seed(900 + number, &[size, 20_000]))
}

async fn delete(node: &Node, image: &Image) {
    let registry = registry(node);
    let path = format!("/v2/team/app/manifests/{}", image.digest());
    registry.request("DELETE", &path, &[], "").await.expect(202, "delete a manifest");
    for blob in image.layers.iter().map(|layer| layer.digest()).chain([sha256(&image.config)]) {
        let path = format!("/v2/team/app/blobs/{blob}");
        registry.request("DELETE", &path, &[], "").await.expect(202, "delete a blob");
    }
}

/// Archives images so that one pack is dead, two are mostly dead and two are small, beside the newest; those that are left.
async fn filled(node: &Node) -> Vec<(String, Image)> {
    let (mut left, mut gone) = (Vec::new(), Vec::new());
    for packed in
        [vec![(0, 30_000), (10, 900_000)], vec![(11, 700_000)], vec![(2, 1_500_000), (12, 2_500_000)], vec![(3, 50_000)], vec![(4, 40_000)]]
    {
        for (number, size) in packed {
            let (tag, image) = image(number, size);
            registry(node).push_image("team/app", &tag, &image).await;
            if number < 10 { left.push((tag, image)) } else { gone.push(image) }
        }
        flush(node).await;
    }
    for image in &gone {
        delete(node, image).await;
    }
    let (tag, image) = image(5, 60_000);
    registry(node).push_image("team/app", &tag, &image).await;
    flush(node).await;
    left.push((tag, image));
    left
}

fn count(report: &Value, what: &str) -> usize {
    report[what].as_array().map_or_else(|| report[what].as_u64().unwrap_or(0) as usize, Vec::len)
}

/// From a copy of the bucket as it is now, on an empty disk: every image that is left, every layer of it, and no gap. In the copy nothing freezes; what is said to
/// is read when somebody asks for it.
async fn restores(bucket: &Path, left: &[(String, Image)], what: &str) {
    let fresh = node("fresh").start().await;
    let copy = fresh.scratch().join("bucket");
    let copied = Command::new("cp").arg("-r").arg(bucket).arg(&copy).status().expect("run cp");
    assert!(copied.success());
    let restored = fresh.cli_json(&["restore", &format!("file://{}", copy.display())]).await;
    assert_eq!((restored["tags"].as_u64(), count(&restored, "gaps")), (Some(left.len() as u64), 0), "{what}: {restored}");
    let state = restored["blobs"]["state"].as_str();
    let is_frozen = what.contains(COLD);
    assert!((is_frozen || state == Some("done")) && restored["blobs"]["lost"].as_u64() == Some(0), "{what}: {restored}");
    for (tag, image) in left {
        for layer in image.layers.iter().filter(|_| is_frozen) {
            // One at a time is tried, to see whether what is said to be frozen is.
            let path = format!("/v2/team/app/blobs/{}", layer.digest());
            let comes = async || (registry(&fresh).get(&path).await.status == 200).then_some(());
            wait_until("a layer of a frozen class that can be read all the same", SOON, comes).await;
        }
        registry(&fresh).pull_image("team/app", tag, image).await;
    }
}

/// Compacts until nothing is left to do; the packs that are left in the bucket.
async fn completes(node: &Node, what: &str) -> usize {
    wait_until("nothing is left to compact", SOON, async || {
        let done = node.cli_json(&["archive", "compact"]).await;
        assert_eq!(count(&done, "refused"), 0, "{what}: {done}");
        let is_done = ["written", "retired", "waiting", "drops", "rewrites"].iter().all(|field| count(&done, field) == 0);
        is_done.then_some(())
    })
    .await;
    let verified = node.cli_json(&["archive", "verify", "--read-data-subset", "1/1"]).await;
    for field in ["missing", "wrong_size", "orphans", "retired"] {
        assert_eq!(count(&verified, field), 0, "{what}: {verified}");
    }
    verified["packs"].as_u64().expect("a number") as usize
}

/// Dies or fails at a step, with layers beside everything else, or in packs of a class that must thaw.
async fn interrupted(step: &str, kill: bool, bulk: &str) {
    let what = format!("{step}, {}, layers: {bulk}", if kill { "killed" } else { "failing" });
    let (s3, folder) = (CountingS3::start().await, tempfile::tempdir().expect("a folder"));
    let (builder, bucket) = if bulk == COLD {
        (compacting("node").s3(&s3, "fleet").env("LARDER_ARCHIVE__BULK_CLASS", bulk), s3.bucket_dir().join("fleet"))
    } else {
        (compacting("node").archive(&format!("file://{}", folder.path().display())), folder.path().to_owned())
    };
    let mut node = builder.start().await;
    let left = filled(&node).await;
    node.stop().await;
    node.set_env(FAILPOINTS, Some(&format!("{step}={}", if kill { "kill" } else { "error" })));
    node.start().await;
    let refused = node.cli(&["archive", "compact"]).await;
    if kill {
        assert!(refused.is_err(), "{what}: {refused:?}");
        let status = node.ended(SOON).await;
        assert_eq!(status.signal(), Some(9), "{what}: ended with {status}");
    } else {
        // What fails once may have been tried again by itself.
        node.stop().await;
    }
    restores(&bucket, &left, &what).await;
    node.set_env(FAILPOINTS, None);
    node.start().await;
    let packs = completes(&node, &what).await;
    // The newest with the records of what was deleted, what was written anew, and what a crash may have written twice.
    assert!(packs <= if bulk == COLD { 6 } else { 4 }, "{what}: {packs} packs");
    if bulk == COLD {
        let listed = node.cli_json(&["archive", "list"]).await;
        let cold = listed.as_array().expect("packs").iter().filter(|pack| pack["class"] == "Cold");
        let bytes: u64 = cold.map(|pack| pack["size"].as_u64().expect("bytes")).sum();
        assert!((1_500_000..2_000_000).contains(&bytes), "{what}: of what is frozen that is left which counts: {listed}");
    }
    for (tag, image) in &left {
        registry(&node).pull_image("team/app", tag, image).await;
    }
    node.lose_disk();
    restores(&bucket, &left, &what).await;
    assert!(s3.requests().iter().all(|it| it.class != "Cold" || ![Operation::Get, Operation::Restore].contains(&it.operation)), "{what}");
}

/// Until the old packs leave the catalogue.
const BEFORE: [&str; 4] =
    ["archive/compact/planned", "archive/pack/before-put", "archive/pack/put-not-recorded", "archive/compact/recorded-not-retired"];
/// Until they are gone.
const AFTER: [&str; 6] = [
    "archive/compact/retired-no-checkpoint",
    "archive/checkpoint/before-put",
    "archive/checkpoint/put-not-noted",
    "archive/compact/checkpoints-not-proven",
    "archive/compact/proven-not-deleted",
    "archive/compact/deleted-not-noted",
];

async fn each(steps: &[&str], bulk: &str) {
    for step in steps {
        interrupted(step, true, bulk).await;
        interrupted(step, false, bulk).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn f39_a_crash_or_a_failure_before_the_old_packs_leave_the_catalogue() {
    each(&BEFORE, "none").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn f39_a_crash_or_a_failure_before_frozen_packs_leave_the_catalogue() {
    each(&BEFORE, COLD).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn f39_a_crash_or_a_failure_until_the_old_packs_are_gone() {
    each(&AFTER, "none").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn f39_a_crash_or_a_failure_until_frozen_packs_are_gone() {
    each(&AFTER, COLD).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn f39_packs_go_from_s3_when_it_lets_them_and_a_plan_asks_nothing() {
    let s3 = CountingS3::start().await;
    let mut node = marked_node(compacting("node").s3(&s3, "fleet"), &s3).await;
    let left = filled(&node).await;
    let (before, bytes) = (packs_in(&s3).len(), packs_in(&s3).iter().map(|(_, size)| size).sum::<u64>());
    s3.forget();
    let plan = node.cli_json(&["archive", "compact", "--dry-run"]).await;
    assert_eq!((count(&plan, "drops"), count(&plan, "rewrites")), (1, 1), "{plan}");
    assert!(
        plan["money"]["saved_month"].as_f64().expect("dollars") > 0.0 && plan["money"]["spent"].as_f64().expect("dollars") > 0.0,
        "{plan}"
    );
    let shown = node.cli(&["archive", "compact", "--dry-run"]).await.expect("a plan");
    assert!(shown.contains("paid back in") && shown.contains("written anew, in group 1"), "{shown}");
    assert!(s3.requests().is_empty(), "{:?}", s3.requests());
    // One of them is under a lock.
    s3.inject(Operation::Delete, Fault::Refuse(403, "AccessDenied"));
    let done = node.cli_json(&["archive", "compact"]).await;
    assert_eq!(count(&done, "refused"), 1, "{done}");
    assert!(count(&done, "deleted") >= 3 && done["refused"][0]["why"].as_str().is_some_and(|why| why.contains("AccessDenied")), "{done}");
    let deletes = s3.count(Operation::Delete);
    assert_eq!(deletes, count(&done, "deleted") + 1 + count(&done, "checkpoints_deleted"));
    let metrics = registry(&node).get("/metrics").await;
    assert!(String::from_utf8_lossy(&metrics.body).contains("compacted_packs_total"), "compaction is measured");
    let packs = completes(&node, "s3").await;
    let after = packs_in(&s3);
    assert!(packs == after.len() && packs < before && after.iter().map(|(_, size)| size).sum::<u64>() < bytes / 2, "{before}: {after:?}");
    // Nothing to do is no request, by itself.
    node.restart().await;
    s3.forget();
    tokio::time::sleep(std::time::Duration::from_millis(1500)).await;
    assert!(s3.requests().is_empty(), "{:?}", s3.requests());
    node.lose_disk();
    let fresh = super::node("fresh").s3(&s3, "fleet").start().await;
    let restored = fresh.cli_json(&["restore", &s3.url("fleet")]).await;
    assert_eq!((count(&restored, "gaps"), restored["blobs"]["lost"].as_u64()), (0, Some(0)), "{restored}");
    for (tag, image) in &left {
        registry(&fresh).pull_image("team/app", tag, image).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_is_told_to_compacts_by_itself() {
    let s3 = CountingS3::start().await;
    let node = compacting("node").s3(&s3, "fleet").env("LARDER_ARCHIVE__COMPACT", "on").start().await;
    let left = filled(&node).await;
    wait_until("the bucket is smaller", SOON, async || (packs_in(&s3).iter().map(|(_, size)| size).sum::<u64>() < 2_500_000).then_some(()))
        .await;
    for (tag, image) in &left {
        registry(&node).pull_image("team/app", tag, image).await;
    }
}
