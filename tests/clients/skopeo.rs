//! Skopeo: copies between places, looks and deletes.

use larder_harness::{Image, Kind, Registry, sha256};

use crate::node;
use crate::tools::{Client, root_file_system, run, text, try_run};

#[tokio::test(flavor = "multi_thread")]
async fn skopeo_copies_inspects_lists_and_deletes() {
    let node = node("node").start().await;
    let (home, registry) = (node.scratch(), Registry::new(node.url()));
    let image = Image::of_kind(Kind::Oci, 5, &[300_000, 20]);
    registry.push_image("team/app", "1.0", &image).await;
    let at = |name: &str| format!("docker://{}/{name}", node.address());
    let raw = run(home, "skopeo", &["inspect", "--raw", "--tls-verify=false", &at("team/app:1.0")]);
    assert_eq!(sha256(raw.as_bytes()), image.digest());
    // Out to a folder, and in again under another name: the layers are checked on both ways.
    let folder = format!("dir:{}", home.join("copy").display());
    run(home, "skopeo", &["copy", "--src-tls-verify=false", &at("team/app:1.0"), &folder]);
    run(home, "skopeo", &["copy", "--dest-tls-verify=false", &folder, &at("other/app:2.0")]);
    registry.pull_image("other/app", "2.0", &image).await;
    // Between two repositories of one registry.
    run(home, "skopeo", &["copy", "--src-tls-verify=false", "--dest-tls-verify=false", &at("other/app:2.0"), &at("third/app:3.0")]);
    registry.pull_image("third/app", "3.0", &image).await;
    let tags = run(home, "skopeo", &["list-tags", "--tls-verify=false", &at("team/app")]);
    assert!(tags.contains("\"1.0\""), "{tags}");
    run(home, "skopeo", &["delete", "--tls-verify=false", &at("team/app:1.0")]);
    assert!(try_run(home, "skopeo", &["inspect", "--raw", "--tls-verify=false", &at("team/app:1.0")]).is_err());
    // Only there.
    registry.pull_image("other/app", "2.0", &image).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn skopeo_converts_between_the_formats_on_the_way() {
    let node = node("node").start().await;
    let (home, registry) = (node.scratch(), Registry::new(node.url()));
    // Skopeo makes layers that are compressed in the way the format says, so these have to be real ones.
    let (_, tar) = root_file_system(home, "convert");
    let podman = Client::new("podman", home, "storage");
    podman.run(&["import", text(&tar), "hello"]);
    let at = |tag: &str| format!("docker://{}/team/app:{tag}", node.address());
    podman.run(&["push", "--tls-verify=false", "--format", "v2s2", "hello", &at("docker")]);
    let both = ["--src-tls-verify=false", "--dest-tls-verify=false"];
    for (from, to, format, kind) in [("docker", "oci", "oci", Kind::Oci), ("oci", "again", "v2s2", Kind::Docker)] {
        run(home, "skopeo", &["copy", both[0], both[1], "--format", format, &at(from), &at(to)]);
        let manifest = registry.pull_manifest("team/app", to).await.expect(200, "the manifest");
        assert_eq!(manifest.header("content-type"), kind.manifest());
        let raw = run(home, "skopeo", &["inspect", "--raw", "--tls-verify=false", &at(to)]);
        assert_eq!(raw.as_bytes(), manifest.body.trim_ascii());
    }
    let tags = run(home, "skopeo", &["list-tags", "--tls-verify=false", &format!("docker://{}/team/app", node.address())]);
    let tags: serde_json::Value = serde_json::from_str(&tags).expect("skopeo prints JSON");
    assert_eq!(tags["Tags"], serde_json::json!(["again", "docker", "oci"]));
}
