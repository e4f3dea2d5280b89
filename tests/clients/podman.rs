//! Podman and buildah, with storage of their own.

use std::path::Path;

use larder_harness::Registry;

use crate::node;
use crate::tools::{root_file_system, run, text};

/// A client of containers/storage with a folder of its own.
struct Client<'a> {
    program: &'static str,
    home: &'a Path,
    storage: Vec<String>,
}

impl<'a> Client<'a> {
    fn new(program: &'static str, home: &'a Path, name: &str) -> Self {
        let folder = home.join(name);
        let storage = vec![
            format!("--root={}", folder.join("root").display()),
            format!("--runroot={}", folder.join("run").display()),
            "--storage-driver=vfs".to_owned(),
        ];
        Self { program, home, storage }
    }

    fn run(&self, arguments: &[&str]) -> String {
        let arguments: Vec<_> = self.storage.iter().map(String::as_str).chain(arguments.iter().copied()).collect();
        run(self.home, self.program, &arguments)
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn podman_pushes_and_another_podman_pulls_the_same_image() {
    let node = node("node").start().await;
    let (_, tar) = root_file_system(node.scratch(), "podman");
    let one = Client::new("podman", node.scratch(), "one");
    one.run(&["import", text(&tar), "hello"]);
    let name = format!("{}/team/podman:1.0", node.address());
    one.run(&["push", "--tls-verify=false", "hello", &name]);
    let other = Client::new("podman", node.scratch(), "other");
    other.run(&["pull", "--tls-verify=false", &name]);
    let id = |client: &Client<'_>, name: &str| client.run(&["image", "inspect", "--format", "{{.Id}}", name]);
    assert_eq!(id(&other, &name), id(&one, "hello"));
    assert_eq!(Registry::new(node.url()).tags("team/podman").await, ["1.0"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn buildah_builds_pushes_and_pulls_in_both_formats() {
    let node = node("node").start().await;
    let (root, _) = root_file_system(node.scratch(), "buildah");
    let buildah = Client::new("buildah", node.scratch(), "one");
    let container = buildah.run(&["from", "scratch"]);
    buildah.run(&["copy", &container, text(&root), "/"]);
    for (format, media_type) in
        [("oci", "application/vnd.oci.image.manifest.v1+json"), ("docker", "application/vnd.docker.distribution.manifest.v2+json")]
    {
        buildah.run(&["commit", "--format", format, &container, format]);
        let name = format!("docker://{}/team/buildah:{format}", node.address());
        buildah.run(&["push", "--tls-verify=false", format, &name]);
        let manifest = Registry::new(node.url()).pull_manifest("team/buildah", format).await.expect(200, "the manifest");
        assert_eq!(manifest.header("content-type"), media_type);
        let other = Client::new("buildah", node.scratch(), &format!("other-{format}"));
        let pulled = other.run(&["pull", "--tls-verify=false", &name]);
        assert!(pulled.lines().any(|line| line.len() == 64), "{pulled}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_multi_platform_index_is_pushed_and_copied_whole() {
    let node = node("node").start().await;
    let (root, _) = root_file_system(node.scratch(), "index");
    let buildah = Client::new("buildah", node.scratch(), "one");
    buildah.run(&["manifest", "create", "multi"]);
    for architecture in ["amd64", "arm64"] {
        let container = buildah.run(&["from", "--arch", architecture, "scratch"]);
        buildah.run(&["copy", &container, text(&root), "/"]);
        buildah.run(&["config", "--arch", architecture, "--label", &format!("for={architecture}"), &container]);
        buildah.run(&["commit", &container, architecture]);
        buildah.run(&["manifest", "add", "--arch", architecture, "multi", architecture]);
    }
    let name = format!("docker://{}/team/multi:latest", node.address());
    buildah.run(&["manifest", "push", "--all", "--tls-verify=false", "multi", &name]);
    let index = Registry::new(node.url()).pull_manifest("team/multi", "latest").await.expect(200, "the index").json();
    assert_eq!(index["manifests"].as_array().map(Vec::len), Some(2), "{index}");
    let copy = node.scratch().join("copy");
    run(node.scratch(), "skopeo", &["copy", "--all", "--src-tls-verify=false", &name, &format!("oci:{}:latest", copy.display())]);
    assert!(copy.join("index.json").is_file());
    let arm = run(
        node.scratch(),
        "skopeo",
        &["inspect", "--tls-verify=false", "--override-arch", "arm64", "--format", "{{.Architecture}}", &name],
    );
    assert_eq!(arm, "arm64");
}
