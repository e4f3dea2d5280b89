//! Docker, with an engine of its own that is started and ended here.

use std::path::{Path, PathBuf};

use larder_harness::{Node, Registry};

use crate::node;
use crate::tools::{root_file_system, run, text, try_run};

/// A Docker engine that belongs to a test.
struct Engine {
    // Short, because sockets have short names.
    folder: tempfile::TempDir,
}

fn script() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../packaging/demo/dockerd")
}

impl Engine {
    fn start() -> Self {
        let folder = tempfile::Builder::new().prefix("ld-").tempdir_in("/tmp").expect("temporary folder");
        run(folder.path(), text(&script()), &["start", text(folder.path())]);
        Self { folder }
    }

    fn docker(&self, arguments: &[&str]) -> String {
        let socket = format!("unix://{}/docker.sock", self.folder.path().display());
        let arguments: Vec<_> = ["-H", &socket].into_iter().chain(arguments.iter().copied()).collect();
        run(self.folder.path(), "/usr/bin/docker", &arguments)
    }
}

impl Drop for Engine {
    fn drop(&mut self) {
        if let Err(said) = try_run(self.folder.path(), text(&script()), &["stop", text(self.folder.path())]) {
            eprintln!("the test's Docker engine could not be ended: {said}");
        }
    }
}

async fn joined_pair() -> (Node, Node) {
    let (first, second) = (node("first").start().await, node("second").start().await);
    let token = first.cli(&["token"]).await.expect("token");
    second.cli(&["join", &token]).await.expect("join");
    (first, second)
}

#[tokio::test(flavor = "multi_thread")]
async fn docker_pushes_to_one_node_pulls_from_another_and_deletes_nothing_it_should_not() {
    let (first, second) = joined_pair().await;
    let engine = Engine::start();
    let (_, tar) = root_file_system(first.scratch(), "docker");
    engine.docker(&["import", "--change", "CMD [\"/bin/busybox\", \"cat\", \"/hello\"]", text(&tar), "hello"]);
    let image = engine.docker(&["image", "inspect", "--format", "{{.Id}}", "hello"]);
    let name = format!("{}/team/docker:1.0", first.address());
    engine.docker(&["tag", "hello", &name]);
    engine.docker(&["push", &name]);
    // Again: everything is there already.
    engine.docker(&["push", &name]);
    let digest = Registry::new(first.url())
        .pull_manifest("team/docker", "1.0")
        .await
        .expect(200, "the manifest")
        .header("docker-content-digest")
        .to_owned();

    for reference in [":1.0".to_owned(), format!("@{digest}")] {
        engine.docker(&["system", "prune", "--all", "--force"]);
        assert_eq!(engine.docker(&["image", "ls", "--quiet"]), "", "docker forgot every image, or the pull would prove nothing");
        let name = format!("{}/team/docker{reference}", second.address());
        larder_harness::wait_until("the manifest is on the second node", std::time::Duration::from_secs(20), async || {
            (Registry::new(second.url()).head(&format!("/v2/team/docker/manifests/{digest}")).await.status == 200).then_some(())
        })
        .await;
        engine.docker(&["pull", &name]);
        assert_eq!(engine.docker(&["image", "inspect", "--format", "{{.Id}}", &name]), image);
        engine.docker(&["image", "rm", &name]);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn docker_builds_on_a_pulled_image_and_mounts_its_layers() {
    let node = node("node").start().await;
    let engine = Engine::start();
    let (_, tar) = root_file_system(node.scratch(), "base");
    let base = format!("{}/library/base:1", node.address());
    engine.docker(&["import", text(&tar), &base]);
    engine.docker(&["push", &base]);
    let context = node.scratch().join("context");
    std::fs::create_dir_all(&context).expect("make a folder");
    std::fs::write(context.join("Dockerfile"), format!("FROM {base}\nCOPY Dockerfile /Dockerfile\n")).expect("write");
    let derived = format!("{}/team/derived:1", node.address());
    engine.docker(&["build", "--quiet", "--tag", &derived, text(&context)]);
    // Docker asks for the base's layers to be mounted from their repository.
    engine.docker(&["push", &derived]);
    let manifest = Registry::new(node.url()).pull_manifest("team/derived", "1").await.expect(200, "the manifest").json();
    assert_eq!(manifest["layers"].as_array().map(Vec::len), Some(2));
    assert_eq!(manifest["mediaType"], "application/vnd.docker.distribution.manifest.v2+json");
}
