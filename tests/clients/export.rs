//! A file that `larder export` wrote, read by those who know nothing of Larder.

use larder_harness::{Registry, sha256};

use crate::node;
use crate::tools::{Client, Engine, id_of, root_file_system, run, text};

#[tokio::test(flavor = "multi_thread")]
async fn docker_podman_and_skopeo_read_an_exported_file() {
    let node = node("node").start().await;
    let (home, registry) = (node.scratch(), Registry::new(node.url()));
    let podman = Client::new("podman", home, "storage");
    let (_, tar) = root_file_system(home, "export");
    podman.run(&["import", text(&tar), "hello"]);
    for format in ["oci", "v2s2"] {
        let name = format!("docker://{}/team/{format}:1.0", node.address());
        podman.run(&["push", "--tls-verify=false", "--format", format, "hello", &name]);
    }
    let file = home.join("images.tar");
    node.cli(&["export", "team/**", text(&file)]).await.expect("exported");

    let engine = Engine::start();
    let said = engine.docker(&["load", "--input", text(&file)]);
    let loaded = Client::new("podman", home, "loaded");
    loaded.run(&["load", "--quiet", "--input", text(&file)]);
    for format in ["oci", "v2s2"] {
        let manifest = registry.pull_manifest(&format!("team/{format}"), "1.0").await.expect(200, "the manifest");
        let name = format!("team/{format}:1.0");
        assert!(said.contains(&format!("Loaded image: {name}")), "{said}");
        // The id is the config's digest, and the engine has checked that the layers are those that it lists.
        assert_eq!(engine.id(&name), id_of(&manifest));
        // Skopeo finds images of Docker's format in an archive of Docker's only; the file is both.
        let archive = if format == "oci" { "oci-archive" } else { "docker-archive" };
        let (source, folder) = (format!("{archive}:{}:{name}", file.display()), home.join(format));
        run(home, "skopeo", &["copy", &source, &format!("dir:{}", folder.display())]);
        let copied = std::fs::read(folder.join("manifest.json")).expect("the copy");
        let copied: serde_json::Value = serde_json::from_slice(&copied).expect("a manifest");
        assert_eq!(copied["config"]["digest"], manifest.json()["config"]["digest"]);
        if format == "oci" {
            let raw = run(home, "skopeo", &["inspect", "--raw", &source]);
            assert_eq!(sha256(raw.as_bytes()), sha256(manifest.body.trim_ascii()));
        }
    }
}
