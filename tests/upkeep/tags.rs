//! Tags that go by rules, tags that don't change, and what tags named before.

use bytes::Bytes;
use larder_harness::{Image, Node, Registry};

use crate::{SOON, files, gc, node, registry};

/// A node with these lines at the end of its configuration.
async fn configured(lines: &str) -> Node {
    let mut node = node("node").create();
    let file = node.scratch().join("larder.toml");
    std::fs::write(&file, lines).expect("write the configuration");
    node.set_env("LARDER_CONFIG", Some(file.to_str().expect("a path of letters")));
    node.start().await;
    node
}

async fn push(registry: &Registry, tag: &str, seed: u64) -> Image {
    let image = Image::from_seed(seed, &[100_000]);
    registry.push_image("ci/app", tag, &image).await;
    image
}

#[tokio::test]
async fn retention_takes_old_tags_and_their_images_and_says_why_before() {
    let rule = "[[retention]]\nrepositories = ['ci/**']\ntags = ['pr-*']\nkeep_last = 2\n";
    let node = configured(rule).await;
    let registry = registry(&node);
    for number in 0..5 {
        push(&registry, &format!("pr-{number}"), number).await;
    }
    let release = push(&registry, "v1", 0).await;
    let dry = node.cli_json(&["gc", "--dry-run"]).await;
    assert_eq!(dry["tags"], 3, "{dry}");
    assert!(dry["items"][0]["why"].as_str().is_some_and(|why| why.contains("not among the newest 2")), "{dry}");
    assert_eq!(registry.tags("ci/app").await.len(), 6, "nothing was touched");
    let text = node.cli(&["gc", "--dry-run"]).await.expect("a table");
    assert!(text.contains("pr-0") && text.contains("tags would go"), "{text}");

    let report = gc(&node).await;
    // The image of pr-0 is also v1.
    assert_eq!((report["tags"].as_u64(), report["manifests"].as_u64()), (Some(3), Some(2)), "{report}");
    assert_eq!(registry.tags("ci/app").await, ["pr-3", "pr-4", "v1"]);
    registry.pull_image("ci/app", "v1", &release).await;
    larder_harness::wait_until("the layers are off the disk", SOON, async || {
        gc(&node).await;
        (files(&node) == 3).then_some(())
    })
    .await;
}

#[tokio::test]
async fn images_that_nothing_names_go_when_a_rule_says_so() {
    let node = configured("[[retention]]\nrepositories = ['**']\nuntagged = '1s'\n").await;
    let registry = registry(&node);
    let (old, new) = (push(&registry, "latest", 1).await, push(&registry, "latest", 2).await);
    larder_harness::wait_until("the old image is gone", SOON, async || {
        gc(&node).await;
        (registry.head(&format!("/v2/ci/app/manifests/{}", old.digest())).await.status == 404).then_some(())
    })
    .await;
    registry.pull_image("ci/app", "latest", &new).await;
}

#[tokio::test]
async fn immutable_tags_can_be_pushed_once() {
    let node = configured("[registry]\nimmutable_tags = ['ci/**:v*']\n[[retention]]\nrepositories = ['**']\nkeep_last = 0\n").await;
    let registry = registry(&node);
    let first = push(&registry, "v1", 1).await;
    push(&registry, "v1", 1).await;
    let other = Image::from_seed(2, &[100_000]);
    registry.try_push_blobs("ci/app", &other).await.expect("blobs");
    let refused = registry.put_manifest("ci/app", "v1", other.media_type(), other.manifest.clone()).await;
    refused.expect_error(409, "DENIED", "an immutable tag");
    for path in ["v1", &first.digest()] {
        let refused = registry.request("DELETE", &format!("/v2/ci/app/manifests/{path}"), &[], Bytes::new()).await;
        refused.expect_error(409, "DENIED", "deleting what an immutable tag names");
    }
    let error = node.cli(&["tag", "delete", "ci/app:v1"]).await.expect_err("immutable");
    assert!(error.contains("registry.immutable_tags"), "{error}");
    gc(&node).await;
    registry.pull_image("ci/app", "v1", &first).await;
}

#[tokio::test]
async fn a_wrong_latest_is_undone_in_one_command() {
    let node = node("node").start().await;
    let registry = registry(&node);
    let (good, bad) = (push(&registry, "latest", 1).await, push(&registry, "latest", 2).await);
    let history = node.cli_json(&["tag", "history", "ci/app:latest"]).await;
    let digests: Vec<_> = history.as_array().expect("a list").iter().map(|version| version["digest"].as_str().expect("a digest")).collect();
    assert_eq!(digests, [bad.digest(), good.digest()]);
    let said = node.cli(&["tag", "restore", "ci/app:latest", &good.digest()]).await.expect("restored");
    assert!(said.contains("now names"), "{said}");
    registry.pull_image("ci/app", "latest", &good).await;

    registry.request("DELETE", "/v2/ci/app/manifests/latest", &[], Bytes::new()).await.expect(202, "delete the tag");
    let text = node.cli(&["tag", "history", "ci/app:latest"]).await.expect("a table");
    assert!(text.contains(&good.digest()) && text.contains("here"), "{text}");
    node.cli(&["tag", "restore", "ci/app:latest", &bad.digest()]).await.expect("restored");
    registry.pull_image("ci/app", "latest", &bad).await;
    let unknown = format!("sha256:{}", "0".repeat(64));
    let error = node.cli(&["tag", "restore", "ci/app:latest", &unknown]).await.expect_err("no such manifest");
    assert!(error.contains("tag history ci/app:latest"), "{error}");
    assert!(node.cli(&["tag", "history", "ci/app:never"]).await.is_err());
}
