//! What a bucket and the way to it may do: each fault once, and what comes of it.

use std::time::Duration;

use larder_harness::s3::{Fault, Operation};
use larder_harness::{CountingS3, Image, wait_until};

use super::{SOON, flush, marked, marked_node, node, pack_puts, packs_in, registry};

/// A file of credentials as Amazon's tools write it.
fn credentials(key: &str, secret: &str) -> String {
    format!("[default]\naws_access_key_id = {key}\naws_secret_access_key = {secret}\n")
}

#[tokio::test(flavor = "multi_thread")]
async fn f37_credentials_that_are_rotated_in_a_file_are_found_by_the_same_put() {
    let s3 = CountingS3::start().await;
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("credentials");
    s3.rotate_credentials("KEY1", "first-secret");
    std::fs::write(&file, credentials("KEY1", "first-secret")).expect("write credentials");
    let mut builder = node("node").s3(&s3, "fleet").env("AWS_SHARED_CREDENTIALS_FILE", file.to_str().expect("UTF-8"));
    builder = builder.env("AWS_ACCESS_KEY_ID", "").env("AWS_SECRET_ACCESS_KEY", "");
    let node = marked_node(builder, &s3).await;
    s3.rotate_credentials("KEY2", "second-secret");
    std::fs::write(&file, credentials("KEY2", "second-secret")).expect("write credentials");
    registry(&node).push_image("team/app", "v1", &Image::from_seed(400, &[50_000])).await;
    assert_eq!(flush(&node).await, 1);
    let puts: Vec<_> = s3.requests().into_iter().map(|request| (request.key, request.status)).collect();
    // The client asks with what it had once or twice before it reads the file again.
    let (last, refused) = puts.split_last().expect("a put");
    assert!((1..=2).contains(&refused.len()) && last.1 == 200, "refused, then taken: {puts:?}");
    assert!(refused.iter().all(|put| *put == (last.0.clone(), 403)), "{puts:?}");
    // A token that has ended is found out in the same way.
    s3.inject(Operation::Put, Fault::Refuse(400, "ExpiredToken"));
    registry(&node).push_image("team/app", "v2", &Image::from_seed(401, &[50_000])).await;
    assert_eq!(flush(&node).await, 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn f14_a_clock_that_is_wrong_is_corrected_by_the_buckets() {
    let s3 = CountingS3::start().await;
    for ahead in [3 * 3600, -40 * 365 * 86_400] {
        let prefix = format!("clock{ahead}");
        s3.set_clock_ahead(0);
        let node = marked("node", &s3, &prefix).await;
        s3.set_clock_ahead(ahead);
        for tag in ["v1", "v2"] {
            registry(&node).push_image("team/app", tag, &Image::from_seed(402, &[50_000, tag.len() as u64])).await;
            assert_eq!(flush(&node).await, 1, "{ahead}");
        }
        let statuses: Vec<_> = s3.requests().iter().map(|request| request.status).collect();
        let refused = statuses.iter().take_while(|status| **status == 403).count();
        // Learnt within the first pack; the second knows it.
        assert!((1..=3).contains(&refused) && statuses[refused..] == [200, 200], "{ahead}: {statuses:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn f26_an_hour_of_refusals_costs_no_push_and_makes_no_second_object() {
    let s3 = CountingS3::start().await;
    let node = marked_node(node("node").s3(&s3, "fleet").env("LARDER_ARCHIVE__MAX_DELAY", "1s"), &s3).await;
    for _ in 0..6 {
        s3.inject(Operation::Put, Fault::Refuse(500, "InternalError"));
        s3.inject(Operation::Put, Fault::Stall(Duration::from_millis(300)));
        s3.inject(Operation::Put, Fault::Unavailable);
    }
    let mut slowest = Duration::ZERO;
    for number in 0..20 {
        let begin = std::time::Instant::now();
        registry(&node).push_image("team/app", &format!("v{number}"), &Image::from_seed(410 + number, &[20_000])).await;
        slowest = slowest.max(begin.elapsed());
    }
    println!("slowest push while the bucket refused: {slowest:?}");
    wait_until("nothing waits any more", SOON * 4, async || {
        (node.cli_json(&["archive", "status"]).await["pending_records"] == 0).then_some(())
    })
    .await;
    // Every object has other content: what was refused was put again under its name.
    let names: std::collections::HashSet<_> =
        s3.requests().into_iter().filter(|request| request.operation == Operation::Put).map(|request| request.key).collect();
    assert_eq!(names.len() + 1, packs_in(&s3).len(), "{:?}", s3.requests());
    assert!(s3.bill().not_billed > 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn f27_a_put_that_stalls_and_whose_answer_is_lost_has_one_effect() {
    let s3 = CountingS3::start().await;
    let node = marked("node", &s3, "fleet").await;
    for fault in [Fault::Stall(Duration::from_millis(500)), Fault::DropAnswer, Fault::DropAnswer] {
        s3.inject(Operation::Put, fault);
    }
    let image = Image::from_seed(403, &[2_000_000]);
    registry(&node).push_image("team/app", "v1", &image).await;
    assert_eq!(flush(&node).await, 1);
    assert_eq!(packs_in(&s3).len(), 2, "{:?}", s3.requests());
    registry(&node).push_image("team/app", "v2", &Image::from_seed(404, &[20_000])).await;
    assert_eq!(flush(&node).await, 1);
    let keys: Vec<_> = packs_in(&s3).into_iter().map(|(key, _)| key).collect();
    assert_eq!((keys.len(), pack_puts(&s3)), (3, 4), "{keys:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn f29_a_node_killed_at_each_step_of_a_checkpoint_writes_another() {
    for point in ["archive/checkpoint/before-put", "archive/checkpoint/put-not-noted"] {
        let s3 = CountingS3::start().await;
        let mut node = node("node").s3(&s3, "fleet").env("LARDER_FAILPOINTS", format!("{point}=kill")).start().await;
        let image = Image::from_seed(405, &[50_000]);
        registry(&node).push_image("team/app", "v1", &image).await;
        flush(&node).await;
        assert!(node.cli(&["archive", "checkpoint"]).await.is_err(), "{point}");
        node.ended(SOON).await;
        node.set_env("LARDER_FAILPOINTS", None);
        node.start().await;
        node.cli(&["archive", "checkpoint"]).await.expect("another");
        node.lose_disk();
        let fresh = super::node("fresh").s3(&s3, "fleet").start().await;
        let restored = fresh.cli_json(&["restore", &s3.url("fleet")]).await;
        assert!(restored["checkpoint"].is_string() && restored["skipped"].as_array().is_some_and(Vec::is_empty), "{point}: {restored}");
        registry(&fresh).pull_image("team/app", "v1", &image).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn f31_a_pack_of_which_the_bucket_kept_a_part_is_found_and_written_anew() {
    let s3 = CountingS3::start().await;
    // It says so: a person should look at such a gateway.
    let mut node = marked_node(node("node").s3(&s3, "fleet").errors_expected(), &s3).await;
    let (good, cut, gone) = (Image::from_seed(420, &[50_000]), Image::from_seed(421, &[400_000]), Image::from_seed(422, &[60_000]));
    registry(&node).push_image("team/app", "good", &good).await;
    flush(&node).await;
    s3.inject(Operation::Put, Fault::TruncatePut(100_000));
    registry(&node).push_image("team/app", "cut", &cut).await;
    flush(&node).await;
    let before: Vec<_> = packs_in(&s3).into_iter().map(|(key, _)| key).collect();
    registry(&node).push_image("team/app", "gone", &gone).await;
    flush(&node).await;
    let lost = packs_in(&s3).into_iter().map(|(key, _)| key).find(|key| !before.contains(key)).expect("a pack more");
    std::fs::remove_file(s3.object_path(&lost)).expect("remove it");
    s3.forget();
    node.cli(&["archive", "checkpoint"]).await.expect("write a checkpoint");
    assert_eq!((s3.count(Operation::List), pack_puts(&s3)), (1, 2), "one listing, and what was lost anew: {:?}", s3.requests());
    node.lose_disk();
    let fresh = super::node("fresh").s3(&s3, "fleet").start().await;
    let restored = fresh.cli_json(&["restore", &s3.url("fleet")]).await;
    assert_eq!(restored["blobs"]["lost"], 0, "{restored}");
    for (tag, image) in [("good", &good), ("cut", &cut), ("gone", &gone)] {
        registry(&fresh).pull_image("team/app", tag, image).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_restore_stands_a_bucket_that_cuts_and_refuses() {
    let s3 = CountingS3::start().await;
    let mut first = node("first").s3(&s3, "fleet").start().await;
    let image = Image::from_seed(406, &[3_000_000, 100_000]);
    registry(&first).push_image("team/app", "v1", &image).await;
    flush(&first).await;
    first.cli(&["archive", "checkpoint"]).await.expect("write a checkpoint");
    first.lose_disk();
    let fresh = node("fresh").s3(&s3, "fleet").start().await;
    s3.inject(Operation::List, Fault::Unavailable);
    s3.inject(Operation::Get, Fault::Refuse(500, "InternalError"));
    fresh.cli(&["restore", "--metadata-only", &s3.url("fleet")]).await.expect("restore");
    // A blob whose answer breaks off: whoever waits for it is not given a whole one, and the next gets it.
    s3.inject(Operation::Get, Fault::TruncateGet(1_000_000));
    let digest = image.layers[0].digest();
    let _ = registry(&fresh).pull_blob("team/app", &digest).await;
    registry(&fresh).pull_image("team/app", "v1", &image).await;
    // Whoever keeps copies may have had the blob before.
    assert!(s3.faults_left() <= 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn f38_a_bucket_that_was_emptied_gets_nothing_until_somebody_says_so() {
    let s3 = CountingS3::start().await;
    let mut node = node("node").s3(&s3, "fleet").start().await;
    let image = Image::from_seed(407, &[50_000]);
    registry(&node).push_image("team/app", "v1", &image).await;
    flush(&node).await;
    std::fs::remove_dir_all(s3.object_path("fleet")).expect("empty the bucket");
    node.kill();
    node.start().await;
    registry(&node).push_image("team/app", "v2", &image).await;
    let refused = node.cli(&["archive", "flush"]).await.expect_err("the bucket is another");
    assert!(refused.contains("start-over"), "{refused}");
    assert!(s3.objects().is_empty(), "{:?}", s3.objects());
    node.cli(&["archive", "start-over"]).await.expect("start over");
    assert_eq!(flush(&node).await, 1);
    node.lose_disk();
    let fresh = super::node("fresh").s3(&s3, "fleet").start().await;
    fresh.cli(&["restore", &s3.url("fleet")]).await.expect("restore");
    for tag in ["v1", "v2"] {
        registry(&fresh).pull_image("team/app", tag, &image).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_dead_node_did_not_archive_another_takes_over() {
    let s3 = CountingS3::start().await;
    let env = |name: &str| {
        let builder = node(name).s3(&s3, "fleet").env("LARDER_PEERS__TAKEOVER", "2s").env("LARDER_ARCHIVE__MAX_DELAY", "3s");
        builder.env("LARDER_PEERS__REPLICAS", "2")
    };
    let mut first = env("first").start().await;
    let second = env("second").start().await;
    let token = first.cli(&["token"]).await.expect("token");
    second.cli(&["join", &token]).await.expect("join");
    let (old, new) = (Image::from_seed(408, &[200_000]), Image::from_seed(409, &[200_000]));
    registry(&first).push_image("team/app", "old", &old).await;
    flush(&first).await;
    // From here on the first can't reach the bucket; the second can.
    s3.forget();
    first.kill();
    first.set_env("LARDER_ARCHIVE__MAX_DELAY", Some("1d"));
    first.start().await;
    registry(&first).push_image("team/app", "new", &new).await;
    wait_until("the second has all of it", SOON, async || {
        let there = registry(&second).head("/v2/team/app/manifests/new").await.status == 200;
        let blobs = second.cli_json(&["status"]).await["blobs"].as_u64().unwrap_or(0);
        (there && blobs >= 4).then_some(())
    })
    .await;
    first.kill();
    // Beside those that tell who let whom in.
    let large = || packs_in(&s3).iter().filter(|(_, size)| *size > 150_000).count();
    wait_until("the second archives it", SOON * 4, async || (large() >= 2).then_some(())).await;
    // What the first archived is not written again.
    assert_eq!(large(), 2, "{:?}", packs_in(&s3));
    assert!(packs_in(&s3).iter().all(|(_, size)| *size < 350_000), "each blob once: {:?}", packs_in(&s3));
    let fresh = node("fresh").s3(&s3, "fleet").start().await;
    fresh.cli(&["restore", &s3.url("fleet")]).await.expect("restore");
    registry(&fresh).pull_image("team/app", "old", &old).await;
    registry(&fresh).pull_image("team/app", "new", &new).await;
}
