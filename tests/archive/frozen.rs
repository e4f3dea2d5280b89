//! Layers in a class that must thaw: everything comes back, in its time, and nobody is lied to meanwhile.

use std::time::Duration;

use larder_harness::s3::Operation;
use larder_harness::{CountingS3, Image, Node, NodeBuilder, sha256, wait_until};
use serde_json::Value;

use super::encrypted::{RECIPIENTS, identity};
use super::{SOON, flush, node, packs_in, registry};

const CLASS: &str = "DEEP_ARCHIVE";

/// A node whose layers are put as [`CLASS`], and which looks each second whether something has thawed.
fn frozen(name: &str, s3: &CountingS3) -> NodeBuilder {
    node(name).s3(s3, "fleet").env("LARDER_ARCHIVE__BULK_CLASS", CLASS).env("LARDER_ARCHIVE__THAW_POLL", "1s")
}

fn image(number: u64) -> Image {
    Image::from_seed(3600 + number, &[150_000, 1_200_000, 10])
}

/// Archives `count` images one by one; their tags are in order of age.
async fn push_all(node: &Node, count: u64) -> Vec<Image> {
    let mut images = Vec::new();
    for number in 0..count {
        let image = image(number);
        registry(node).push_image("team/app", &format!("v{number}"), &image).await;
        assert_eq!(flush(node).await, 2, "the layers, and everything else");
        images.push(image);
    }
    images
}

/// Packs in the bucket that are frozen.
fn frozen_packs(s3: &CountingS3) -> Vec<String> {
    packs_in(s3).into_iter().map(|(key, _)| key).filter(|key| s3.class(key) == CLASS).collect()
}

/// What a GET of an image's layer answers: status, Retry-After, and the words.
async fn pull_layer(node: &Node, image: &Image, layer: usize) -> (u16, Option<u64>, String) {
    let answer = registry(node).get(&format!("/v2/team/app/blobs/{}", image.layers[layer].digest())).await;
    let retry = answer.header("retry-after").parse().ok();
    (answer.status, retry, String::from_utf8_lossy(&answer.body).into_owned())
}

async fn thaw_state(node: &Node) -> Value {
    node.cli_json(&["archive", "status"]).await["restore"]["thaw"].clone()
}

/// The keys that were asked for, in order.
fn asked(s3: &CountingS3) -> Vec<String> {
    let restores = s3.requests().into_iter().filter(|request| request.operation == Operation::Restore && request.status < 400);
    restores.map(|request| request.key).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn f36_layers_are_put_apart_and_the_metadata_stays_readable() {
    let s3 = CountingS3::start().await;
    let node = frozen("node", &s3).start().await;
    push_all(&node, 2).await;
    let (cold, all) = (frozen_packs(&s3), packs_in(&s3));
    assert_eq!((cold.len(), all.len()), (2, 4), "{all:?}");
    assert!(cold.iter().all(|key| key.ends_with(".DEEP_ARCHIVE.tar")), "{cold:?}");
    for (key, size) in &all {
        let is_bulk = cold.contains(key);
        assert_eq!(*size > 1_000_000, is_bulk, "{key}: layers, and nothing else of size");
    }
    // An image whose layers are all there already, and one without any that is large: one put each.
    registry(&node).push_image("team/app", "again", &image(0)).await;
    assert_eq!(flush(&node).await, 1);
    registry(&node).push_image("team/app", "small", &Image::from_seed(3699, &[500, 20])).await;
    assert_eq!(flush(&node).await, 1);
    // Told by a listing alone.
    s3.forget();
    let verified = node.cli_json(&["archive", "verify", "--read-data-subset", "1/1"]).await;
    assert_eq!((verified["classes"][CLASS][0].as_u64(), verified["read"]["frozen"].as_u64()), (Some(2), Some(2)), "{verified}");
    assert_eq!(verified["read"]["packs"].as_u64(), Some(4), "{verified}");
    assert!(
        s3.requests()
            .iter()
            .all(|request| request.operation != Operation::Restore && !(request.operation == Operation::Get && request.class == CLASS))
    );
    let cost = node.cli_json(&["archive", "cost"]).await;
    let deep =
        cost["classes"].as_array().and_then(|classes| classes.iter().find(|class| class["class"] == CLASS)).expect("its class").clone();
    assert_eq!((deep["requests"]["put"].as_u64(), deep["days_min"].as_u64()), (Some(2), Some(180)), "{deep}");
    let stored: u64 = all.iter().filter(|(key, _)| cold.contains(key)).map(|(_, size)| size).sum();
    assert_eq!(deep["stored"].as_u64(), Some(stored), "{deep}");
}

#[tokio::test(flavor = "multi_thread")]
async fn f36_metadata_is_served_at_once_and_layers_as_they_thaw_the_newest_first_whoever_is_killed() {
    let s3 = CountingS3::start().await;
    let mut first = frozen("first", &s3).env("LARDER_ARCHIVE__CHECKPOINT_PACKS", "5").start().await;
    let images = push_all(&first, 4).await;
    let cold = frozen_packs(&s3);
    first.lose_disk();
    s3.forget();
    let mut fresh = frozen("fresh", &s3).start().await;
    let refused = fresh.cli(&["restore", &s3.url("fleet"), "--thaw", "bulk"]).await.expect_err("nobody was asked");
    assert!(refused.contains("--yes"), "{refused}");
    let restored = fresh.cli(&["restore", &s3.url("fleet")]).await.expect("restore");
    assert!(restored.contains("4 packs") && restored.contains("bulk") && restored.contains("archive thaw"), "{restored}");
    // Nothing was asked for, and nothing frozen opened; but one, by who keeps copies, to see whether that is really so.
    let frozen_gets = s3.requests().iter().filter(|request| request.class == CLASS).count();
    assert!(frozen_gets <= 1 && s3.count(Operation::Restore) == 0, "{:?}", s3.requests());
    let manifests = registry(&fresh);
    for (number, image) in images.iter().enumerate() {
        let found = manifests.get(&format!("/v2/team/app/manifests/v{number}")).await;
        assert_eq!((found.status, found.body), (200, image.manifest.clone()));
        let config = manifests.get(&format!("/v2/team/app/blobs/{}", sha256(&image.config))).await;
        assert_eq!(config.status, 200, "configs are not frozen");
    }
    let (status, retry, words) = pull_layer(&fresh, &images[3], 0).await;
    assert_eq!((status, retry), (404, None), "{words}");
    assert!(words.contains("larder archive thaw") && words.contains("BLOB_UNKNOWN"), "{words}");
    // Asked for again and again, the bucket is not.
    s3.forget();
    for _ in 0..5 {
        assert_eq!(pull_layer(&fresh, &images[3], 1).await.0, 404);
    }
    assert!(s3.count(Operation::Get) <= 1, "{:?}", s3.requests());

    s3.forget();
    let begun = fresh.cli_json(&["archive", "thaw", "--tier", "bulk", "--days", "3", "--yes"]).await;
    assert_eq!((begun["begun"].as_bool(), begun["packs"].as_u64()), (Some(true), Some(4)), "{begun}");
    let newest_first: Vec<String> = cold.iter().rev().cloned().collect();
    wait_until("two are asked for", SOON, async || (asked(&s3).len() >= 2).then_some(())).await;
    fresh.kill();
    fresh.start().await;
    let (status, retry, words) = pull_layer(&fresh, &images[3], 0).await;
    assert_eq!((status, retry), (503, Some(6 * 3600)), "{words}");
    assert!(words.contains("48 hours"), "{words}");
    wait_until("all are asked for", SOON, async || (thaw_state(&fresh).await["asked"] == 4).then_some(())).await;
    let mut order = asked(&s3);
    // What was under way when it was killed may be asked for again, and is known then.
    order.dedup();
    assert_eq!(order, newest_first);
    let before = s3.requests().len();
    tokio::time::sleep(Duration::from_secs(3)).await;
    let looks = s3.requests().split_off(before);
    assert!(looks.len() <= 6 && looks.iter().all(|request| request.operation == Operation::List), "{looks:?}");
    s3.finish_thaws();
    wait_until("all are read", SOON, async || thaw_state(&fresh).await.is_null().then_some(())).await;
    s3.forget();
    for (number, image) in images.iter().enumerate() {
        registry(&fresh).pull_image("team/app", &format!("v{number}"), image).await;
    }
    assert!(s3.requests().is_empty(), "all of it is here: {:?}", s3.requests());
    let cost = fresh.cli_json(&["archive", "cost"]).await;
    assert!(cost["requests"]["thaw"].as_u64().is_some_and(|count| (4..=6).contains(&count)), "{cost}");
    assert!(cost["dollars"]["thaw"].as_f64().is_some_and(|dollars| dollars > 4.0 * 0.025 / 1000.0), "{cost}");
}

#[tokio::test(flavor = "multi_thread")]
async fn f36_a_restore_that_may_thaw_ends_when_all_is_here() {
    let s3 = CountingS3::start().await;
    s3.set_thaw_time(Duration::from_secs(2));
    let mut first = frozen("first", &s3).start().await;
    let images = push_all(&first, 2).await;
    first.lose_disk();
    let fresh = frozen("fresh", &s3).start().await;
    let restored = fresh.cli_json(&["restore", &s3.url("fleet"), "--thaw", "standard", "--yes"]).await;
    assert_eq!((restored["frozen"]["begun"].as_bool(), restored["frozen"]["packs"].as_u64()), (Some(true), Some(2)), "{restored}");
    s3.forget();
    for (number, image) in images.iter().enumerate() {
        registry(&fresh).pull_image("team/app", &format!("v{number}"), image).await;
    }
    assert!(s3.requests().is_empty(), "{:?}", s3.requests());
}

#[tokio::test(flavor = "multi_thread")]
async fn f36_one_image_thaws_alone_and_comes_when_it_is_pulled() {
    let s3 = CountingS3::start().await;
    s3.set_thaw_time(Duration::from_secs(1));
    let mut first = frozen("first", &s3).start().await;
    let images = push_all(&first, 2).await;
    registry(&first).push_image("other/app", "v1", &image(9)).await;
    assert_eq!(flush(&first).await, 2);
    first.lose_disk();
    let fresh = frozen("fresh", &s3).start().await;
    let restored = fresh.cli_json(&["restore", &s3.url("fleet"), "--metadata-only", "--repository", "team/*"]).await;
    assert_eq!(restored["frozen"]["packs"].as_u64(), Some(2), "of what was restored: {restored}");
    s3.forget();
    let told = fresh.cli_json(&["archive", "thaw", "team/app:v0"]).await;
    assert_eq!((told["packs"].as_u64(), told["begun"].as_bool(), asked(&s3).len()), (Some(1), Some(false), 0), "{told}");
    fresh.cli_json(&["archive", "thaw", "team/app:v0", "--tier", "bulk", "--yes"]).await;
    wait_until("it is read", SOON, async || thaw_state(&fresh).await.is_null().then_some(())).await;
    registry(&fresh).pull_image("team/app", "v0", &images[0]).await;
    assert_eq!((asked(&s3).len(), pull_layer(&fresh, &images[1], 0).await.0), (1, 404));
    let unknown = fresh.cli(&["archive", "thaw", "team/nothing:v1"]).await.expect_err("no such image");
    assert!(unknown.contains("no tag or manifest has this name"), "{unknown}");
    let expedited = fresh.cli(&["archive", "thaw", "--tier", "expedited", "--yes"]).await.expect_err("there is no such tier");
    assert!(expedited.contains("bulk, standard"), "{expedited}");
}

#[tokio::test(flavor = "multi_thread")]
async fn f36_a_drill_thaws_nothing_and_says_what_would_have_to() {
    let s3 = CountingS3::start().await;
    let node = frozen("node", &s3).start().await;
    push_all(&node, 2).await;
    registry(&node).push_image("team/app", "small", &Image::from_seed(3698, &[500, 20])).await;
    assert_eq!(flush(&node).await, 1);
    let drilled = node.cli_json(&["restore", "--drill", "3"]).await;
    assert_eq!((drilled["images"].as_u64(), drilled["frozen"].as_u64()), (Some(1), Some(2)), "{drilled}");
    assert_eq!((drilled["failed"].as_array().map(Vec::len), s3.count(Operation::Restore)), (Some(0), 0), "{drilled}");
}

#[tokio::test(flavor = "multi_thread")]
async fn f28_killed_between_the_layers_and_everything_else_nothing_is_lost() {
    for point in ["archive/pack/put-not-recorded", "archive/pack/bulk-recorded"] {
        let s3 = CountingS3::start().await;
        let mut first = frozen("first", &s3).env("LARDER_FAILPOINTS", format!("{point}=kill")).start().await;
        registry(&first).push_image("team/app", "v0", &image(0)).await;
        first.cli(&["archive", "flush"]).await.expect_err("it was killed");
        first.ended(SOON).await;
        let left = frozen_packs(&s3).len();
        assert_eq!((left, packs_in(&s3).len()), (1, 1), "{point}: the layers were put");
        first.set_env("LARDER_FAILPOINTS", None);
        first.start().await;
        let written = flush(&first).await;
        assert_eq!(written, if point.ends_with("bulk-recorded") { 1 } else { 2 }, "{point}");
        first.lose_disk();
        let fresh = frozen("fresh", &s3).start().await;
        let restored = fresh.cli_json(&["restore", "--metadata-only", &s3.url("fleet")]).await;
        assert_eq!(restored["frozen"]["packs"].as_u64(), Some(1), "{point}: {restored}");
        let orphans = restored["skipped"].as_array().map(Vec::len);
        assert_eq!(orphans, Some(usize::from(!point.ends_with("bulk-recorded"))), "{point}: {restored}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn f36_what_is_frozen_is_no_copy_for_whose_sake_another_may_go_unless_it_is_said_to_be() {
    const MIB: u64 = 1 << 20;
    let s3 = CountingS3::start().await;
    let mut node = frozen("node", &s3).env("LARDER_STORE__SIZE_MAX", "64MiB").start().await;
    let images = [Image::from_seed(3650, &[20 * MIB]), Image::from_seed(3651, &[20 * MIB])];
    for (number, image) in images.iter().enumerate() {
        registry(&node).push_image("team/app", &format!("v{number}"), image).await;
    }
    assert_eq!(flush(&node).await, 2);
    let third = Image::from_seed(3652, &[30 * MIB]);
    registry(&node).try_push_image("team/app", "v2", &third).await.expect_err("there is no room");
    for image in &images {
        assert_eq!(pull_layer(&node, image, 0).await.0, 200, "nothing was evicted");
    }
    node.set_env("LARDER_ARCHIVE__EVICT_FROZEN", Some("true"));
    node.restart().await;
    let pushed = async || registry(&node).try_push_image("team/app", "v2", &third).await.ok();
    wait_until("there is room", SOON, pushed).await;
    let mut gone = 0;
    for image in &images {
        gone += usize::from(pull_layer(&node, image, 0).await.0 != 200);
    }
    assert!(gone > 0, "what was frozen made room");
}

#[tokio::test(flavor = "multi_thread")]
async fn f36_what_is_encrypted_as_well_comes_back_by_the_identity_as_it_thaws() {
    let s3 = CountingS3::start().await;
    let keys = tempfile::tempdir().expect("a folder");
    let (file, recipient) = identity(keys.path(), "test-identity.txt");
    let encrypting = |name: &str| frozen(name, &s3).env(RECIPIENTS, &recipient);
    let mut first = encrypting("first").env("LARDER_ARCHIVE__CHECKPOINT_PACKS", "3").start().await;
    let images = push_all(&first, 3).await;
    let cold = frozen_packs(&s3);
    assert!(cold.len() == 3 && cold.iter().all(|key| key.ends_with(".DEEP_ARCHIVE.tar.age")), "{cold:?}");
    first.lose_disk();
    let mut fresh = encrypting("fresh").start().await;
    let refused = fresh.cli(&["restore", &s3.url("fleet")]).await.expect_err("without the identity");
    assert!(refused.contains("--identity FILE"), "{refused}");
    s3.forget();
    let restored = fresh.cli_json(&["restore", &s3.url("fleet"), "--identity", &file]).await;
    assert_eq!((restored["tags"].as_u64(), restored["frozen"]["packs"].as_u64()), (Some(3), Some(3)), "{restored}");
    let frozen_gets = |s3: &CountingS3| s3.requests().iter().filter(|it| it.operation == Operation::Get && it.class == CLASS).count();
    assert!(frozen_gets(&s3) <= 1 && s3.count(Operation::Restore) == 0, "{:?}", s3.requests());
    for image in &images {
        let config = registry(&fresh).get(&format!("/v2/team/app/blobs/{}", sha256(&image.config))).await;
        assert_eq!(config.status, 200, "configs are not frozen");
        let (status, _, words) = pull_layer(&fresh, image, 0).await;
        assert!(status == 404 && words.contains("larder archive thaw"), "{status}: {words}");
    }
    fresh.cli_json(&["archive", "thaw", "--tier", "bulk", "--yes"]).await;
    wait_until("all are asked for", SOON, async || (asked(&s3).len() == 3).then_some(())).await;
    let (status, retry, words) = pull_layer(&fresh, &images[0], 0).await;
    assert_eq!((status, retry), (503, Some(6 * 3600)), "{words}");

    // The identity was given for the restore and is not kept: after a restart somebody has to say where it is, and is told so.
    fresh.restart().await;
    s3.finish_thaws();
    wait_until("the job says what it lacks", SOON, async || {
        let state = thaw_state(&fresh).await;
        state["last_error"].as_str().is_some_and(|why| why.contains("archive.identity_file")).then_some(())
    })
    .await;
    fresh.set_env("LARDER_ARCHIVE__IDENTITY_FILE", Some(&file));
    fresh.restart().await;
    wait_until("all are read", SOON, async || thaw_state(&fresh).await.is_null().then_some(())).await;
    s3.forget();
    for (number, image) in images.iter().enumerate() {
        registry(&fresh).pull_image("team/app", &format!("v{number}"), image).await;
    }
    assert!(s3.requests().is_empty(), "all of it is here: {:?}", s3.requests());
}

#[tokio::test(flavor = "multi_thread")]
async fn f36_nothing_makes_room_for_what_must_thaw_first() {
    const MIB: u64 = 1 << 20;
    let s3 = CountingS3::start().await;
    let mut first = frozen("first", &s3).start().await;
    let wanted = Image::from_seed(3660, &[20 * MIB]);
    registry(&first).push_image("team/app", "v0", &wanted).await;
    assert_eq!(flush(&first).await, 2);
    first.lose_disk();
    let fresh = frozen("fresh", &s3).env("LARDER_ARCHIVE__BULK_CLASS", "none").env("LARDER_STORE__SIZE_MAX", "40MiB").start().await;
    fresh.cli_json(&["restore", "--metadata-only", &s3.url("fleet")]).await;
    // What fills the disk can go at any time: the archive has it, where it can be read.
    let own = Image::from_seed(3661, &[30 * MIB]);
    registry(&fresh).push_image("team/own", "v0", &own).await;
    assert_eq!(flush(&fresh).await, 1);
    s3.forget();
    for _ in 0..3 {
        let (status, _, words) = pull_layer(&fresh, &wanted, 0).await;
        assert!(status == 404 && words.contains("larder archive thaw"), "{status}: {words}");
    }
    assert!(s3.requests().len() <= 1, "one look at what is said to be frozen: {:?}", s3.requests());
    registry(&fresh).pull_image("team/own", "v0", &own).await;
    assert_eq!(s3.count(Operation::Get), 0, "all of it is still here: {:?}", s3.requests());
    // Asked for, it says for how long; thawed, it is worth the room.
    fresh.cli_json(&["archive", "thaw", "--tier", "bulk", "--yes"]).await;
    wait_until("it is asked for", SOON, async || (asked(&s3).len() == 1).then_some(())).await;
    assert_eq!(pull_layer(&fresh, &wanted, 0).await.0, 503);
    s3.finish_thaws();
    wait_until("it is pulled", SOON, async || (pull_layer(&fresh, &wanted, 0).await.0 == 200).then_some(())).await;
}
