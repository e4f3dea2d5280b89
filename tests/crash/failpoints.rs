//! A kill and a failure at each named step of a commit.

use larder_harness::registry::with_digest;
use larder_harness::{Content, Image, Node, Registry, sha256};
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::time::Duration;

const VARIABLE: &str = "LARDER_FAILPOINTS";
const DEADLINE: Duration = Duration::from_secs(20);
/// On either side of what the index keeps itself.
const SMALL: u64 = 1000;
const LARGE: u64 = 300_000;

fn builder() -> larder_harness::NodeBuilder {
    Node::builder(env!("CARGO_BIN_EXE_larder"))
}

/// A node that has `old:v1` and the given failpoints.
async fn armed(failpoints: &str) -> (Node, Registry, Image) {
    let old = Image::from_seed(1, &[SMALL, LARGE]);
    let mut node = builder().start().await;
    let registry = Registry::new(node.url());
    registry.push_image("old", "v1", &old).await;
    node.stop().await;
    node.set_env(VARIABLE, Some(failpoints));
    node.start().await;
    (node, registry, old)
}

/// Waits for the death and starts the node again, unarmed.
async fn died(node: &mut Node, step: &str) {
    let status = node.ended(DEADLINE).await;
    assert_eq!(status.signal(), Some(9), "{step}: ended with {status}");
    node.set_env(VARIABLE, None);
    node.start().await;
}

/// Dies at `step` of the push of a blob, restarts, and finds it as `expected` says; a second push succeeds.
async fn check_blob(step: &str, size: u64, expected: u16) {
    let (mut node, registry, old) = armed(&format!("{step}=kill")).await;
    let content = Content::new(2, size);
    let pushed = registry.try_push_blob("new", content).await;
    assert!(pushed.is_err(), "{step}, {size} bytes: acknowledged and dead");
    died(&mut node, step).await;
    registry.pull_image("old", "v1", &old).await;
    let path = format!("/v2/new/blobs/{}", content.digest());
    assert_eq!(registry.head(&path).await.status, expected, "{step}, {size} bytes: after the restart");
    if expected == 200 {
        assert_eq!(registry.pull_blob("new", &content.digest()).await.expect("pull").digest, content.digest());
    }
    registry.try_push_blob("new", content).await.unwrap_or_else(|error| panic!("{step}, {size} bytes: push again: {error}"));
    assert_eq!(registry.pull_blob("new", &content.digest()).await.expect("pull").digest, content.digest());
    // F2: no file lies there that no blob names.
    let files = count_files(&node.data_dir().join("blobs"));
    let large = 1 + usize::from(size > SMALL);
    assert_eq!(files, large, "{step}, {size} bytes: blob files");
}

fn count_files(folder: &Path) -> usize {
    let Ok(entries) = std::fs::read_dir(folder) else { return 0 };
    entries.map(|entry| entry.expect("read a folder").path()).map(|path| if path.is_dir() { count_files(&path) } else { 1 }).sum()
}

#[tokio::test]
async fn f2_a_blob_whose_commit_was_cut_off_is_not_there_and_can_be_pushed_again() {
    check_blob("store/blob/staged-not-synced", LARGE, 404).await;
    check_blob("store/blob/synced-not-renamed", LARGE, 404).await;
    check_blob("store/blob/renamed-not-indexed", LARGE, 404).await;
    check_blob("store/blob/renamed-not-indexed", SMALL, 404).await;
}

#[tokio::test]
async fn f3_a_blob_that_was_indexed_before_the_answer_is_there() {
    check_blob("store/blob/indexed-not-answered", LARGE, 200).await;
    check_blob("store/blob/indexed-not-answered", SMALL, 200).await;
}

#[tokio::test]
async fn f1_a_session_killed_in_a_patch_goes_on_at_its_last_saved_offset() {
    let step = "store/upload/appended-not-saved";
    let (mut node, registry, _) = armed(&format!("{step}=kill@2")).await;
    let bytes = Content::new(3, LARGE).bytes();
    let location = registry.open_upload("new").await;
    let append = async |begin: usize, end: usize| {
        let range = format!("{begin}-{}", end - 1);
        registry.try_request("PATCH", &location, &[("content-range", &range)], bytes.slice(begin..end)).await
    };
    append(0, 1000).await.expect("the first part").expect(202, "the first part");
    assert!(append(1000, 2000).await.is_err(), "the second part is acknowledged and the node dead");
    died(&mut node, step).await;
    registry.get(&format!("/v2/new/blobs/{}", sha256(&bytes))).await.expect(404, "half a blob");
    let status = registry.get(&location).await.expect(204, "ask where it stands");
    assert_eq!(status.header("range"), "0-999");
    let url = with_digest(&location, &sha256(&bytes));
    let range = format!("1000-{}", bytes.len() - 1);
    registry.request("PUT", &url, &[("content-range", &range)], bytes.slice(1000..)).await.expect(201, "finish");
    assert_eq!(registry.pull_blob("new", &sha256(&bytes)).await.expect("pull").digest, sha256(&bytes));
}

async fn check_manifest(step: &str, expected: u16) {
    let (mut node, registry, old) = armed(&format!("{step}=kill")).await;
    let image = Image::from_seed(4, &[SMALL, LARGE]);
    assert!(registry.try_push_image("new", "v1", &image).await.is_err(), "{step}: acknowledged and dead");
    died(&mut node, step).await;
    registry.pull_image("old", "v1", &old).await;
    for reference in ["v1", &image.digest()] {
        assert_eq!(registry.pull_manifest("new", reference).await.status, expected, "{step}: {reference}");
    }
    let tags = registry.tags("new").await;
    assert_eq!(tags.len(), usize::from(expected == 200), "{step}: {tags:?}");
    registry.push_image("new", "v1", &image).await;
    registry.pull_image("new", "v1", &image).await;
}

#[tokio::test]
async fn f4_a_manifest_and_its_tag_are_both_there_or_both_not() {
    check_manifest("store/manifest/before-commit", 404).await;
    check_manifest("store/manifest/committed-not-answered", 200).await;
}

#[tokio::test]
async fn f28_a_node_killed_around_a_pack_archives_everything_after_its_restart() {
    for step in ["archive/pack/before-put", "archive/pack/put-not-recorded"] {
        let (mut node, registry, old) = armed(&format!("{step}=kill")).await;
        // The pack of `old` is still pending, because the delay is long.
        assert!(node.cli(&["archive", "flush"]).await.is_err(), "{step}: a dead node has flushed");
        died(&mut node, step).await;
        registry.pull_image("old", "v1", &old).await;
        node.cli(&["archive", "flush"]).await.unwrap_or_else(|error| panic!("{step}: flush again: {error}"));
        let status = node.cli_json(&["archive", "status"]).await;
        assert_eq!(status["pending_records"], 0, "{step}: {status}");
        let bucket = format!("file://{}", node.data_dir().join("archive").display());
        node.stop().await;
        let fresh = builder().name("fresh").archive(&bucket).start().await;
        let restored = fresh.cli(&["restore", &bucket]).await;
        restored.unwrap_or_else(|error| panic!("{step}: restore: {error}\n{}", fresh.log_tail()));
        Registry::new(fresh.url()).pull_image("old", "v1", &old).await;
    }
}

#[tokio::test]
async fn a_step_that_fails_refuses_one_push_and_the_next_one_succeeds() {
    let steps = [
        "store/upload/appended-not-saved",
        "store/blob/staged-not-synced",
        "store/blob/synced-not-renamed",
        "store/blob/renamed-not-indexed",
        "store/blob/indexed-not-answered",
        "store/manifest/before-commit",
        "store/manifest/committed-not-answered",
    ];
    for step in steps {
        let mut node = builder().archive("none").env(VARIABLE, format!("{step}=error")).errors_expected().start().await;
        let registry = Registry::new(node.url());
        let image = Image::from_seed(5, &[LARGE]);
        let failed = registry.try_push_image("new", "v1", &image).await.expect_err(step).to_string();
        assert!(failed.contains(": 5"), "{step} is no failure of ours: {failed}");
        assert!(!failed.contains(&*node.data_dir().to_string_lossy()), "{step} shows a path: {failed}");
        registry.push_image("new", "v1", &image).await;
        registry.pull_image("new", "v1", &image).await;
        node.restart().await;
        registry.pull_image("new", "v1", &image).await;
    }
}
