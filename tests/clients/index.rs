//! Multi-platform images: an index over manifests, whole and by platform.

use std::path::Path;

use larder_harness::{Kind, Registry, sha256};
use serde_json::Value;

use crate::node;
use crate::tools::{Client, Engine, root_file_system, run, text};

const ARCHITECTURES: [&str; 2] = ["amd64", "arm64"];

/// Builds an index over one image for each architecture, named `multi`, in the storage of the client that is given back.
fn build(home: &Path) -> Client<'_> {
    let (root, _) = root_file_system(home, "index");
    let buildah = Client::new("buildah", home, "builds");
    buildah.run(&["manifest", "create", "multi"]);
    for architecture in ARCHITECTURES {
        let container = buildah.run(&["from", "--arch", architecture, "scratch"]);
        buildah.run(&["copy", &container, text(&root), "/"]);
        buildah.run(&["config", "--arch", architecture, "--label", &format!("for={architecture}"), &container]);
        buildah.run(&["commit", &container, architecture]);
        buildah.run(&["manifest", "add", "--arch", architecture, "multi", architecture]);
    }
    buildah
}

/// The digest of the manifest for an architecture.
fn for_architecture(index: &Value, architecture: &str) -> String {
    let manifests = index["manifests"].as_array().expect("an index lists manifests");
    assert_eq!(manifests.len(), ARCHITECTURES.len(), "{index}");
    let found = manifests.iter().find(|manifest| manifest["platform"]["architecture"] == architecture);
    found.and_then(|manifest| manifest["digest"].as_str()).unwrap_or_else(|| panic!("no {architecture} in {index}")).to_owned()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_multi_platform_index_is_pushed_copied_whole_and_pulled_by_platform() {
    let node = node("node").start().await;
    let (home, registry) = (node.scratch(), Registry::new(node.url()));
    let engine = Engine::start();
    let buildah = build(home);
    for (format, kind) in [("oci", Kind::Oci), ("v2s2", Kind::Docker)] {
        let repository = format!("team/{format}");
        let name = format!("{}/{repository}:latest", node.address());
        buildah.run(&["manifest", "push", "--all", "--format", format, "--tls-verify=false", "multi", &format!("docker://{name}")]);
        let index = registry.pull_manifest(&repository, "latest").await.expect(200, "the index");
        assert_eq!(index.header("content-type"), kind.index());

        // Out and in again under another name, with all it holds: the same to the last byte.
        let copy = home.join(format!("copy-{format}"));
        let folder = format!("dir:{}", copy.display());
        run(home, "skopeo", &["copy", "--all", "--src-tls-verify=false", &format!("docker://{name}"), &folder]);
        let bytes = std::fs::read(copy.join("manifest.json")).expect("read the copy's index");
        assert_eq!(sha256(&bytes), sha256(&index.body), "the copy of {name}");
        let again = format!("again/{format}");
        run(home, "skopeo", &["copy", "--all", "--dest-tls-verify=false", &folder, &format!("docker://{}/{again}:latest", node.address())]);
        assert_eq!(registry.pull_manifest(&again, "latest").await.expect(200, "the index again").body, index.body);
        let raw = run(home, "skopeo", &["inspect", "--raw", "--tls-verify=false", &format!("docker://{name}")]);
        assert_eq!(raw.as_bytes(), index.body.trim_ascii());

        // By platform: each client takes the manifest that is meant for it.
        for architecture in ARCHITECTURES {
            let digest = for_architecture(&index.json(), architecture);
            let manifest = registry.pull_manifest(&again, &digest).await.expect(200, "a manifest of the index");
            let id = crate::tools::id_of(&manifest);
            let other = Client::new("podman", home, &format!("pulls-{format}-{architecture}"));
            let pulled = other.run(&["pull", "--quiet", "--tls-verify=false", "--arch", architecture, &name]);
            assert_eq!(format!("sha256:{pulled}"), id, "podman's {architecture} of {name}");
            engine.forget();
            engine.docker(&["pull", "--platform", &format!("linux/{architecture}"), &name]);
            assert_eq!(engine.id(&name), id, "docker's {architecture} of {name}");
        }
    }
}
