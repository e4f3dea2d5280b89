//! Docker, with an engine of its own.

use larder_harness::{Kind, Node, Registry, wait_until};

use crate::node;
use crate::tools::{Engine, root_file_system, text};

async fn joined_pair() -> (Node, Node) {
    let (first, second) = (node("first").start().await, node("second").start().await);
    let token = first.cli(&["token"]).await.expect("token");
    second.cli(&["join", &token]).await.expect("join");
    (first, second)
}

#[tokio::test(flavor = "multi_thread")]
async fn docker_pushes_to_one_node_and_pulls_from_another() {
    let (first, second) = joined_pair().await;
    let engine = Engine::start();
    let (_, tar) = root_file_system(first.scratch(), "docker");
    let name = format!("{}/team/docker:1.0", first.address());
    engine.docker(&["import", "--change", "CMD [\"/bin/busybox\", \"cat\", \"/hello\"]", text(&tar), &name]);
    let id = engine.id(&name);
    engine.docker(&["push", &name]);
    // Again: everything is there already.
    engine.docker(&["push", &name]);
    let manifest = Registry::new(first.url()).pull_manifest("team/docker", "1.0").await.expect(200, "the manifest");
    assert_eq!(manifest.header("content-type"), Kind::Docker.manifest());
    let digest = manifest.header("docker-content-digest");

    for reference in [":1.0".to_owned(), format!("@{digest}")] {
        engine.forget();
        let name = format!("{}/team/docker{reference}", second.address());
        wait_until("the manifest is on the second node", std::time::Duration::from_secs(20), async || {
            (Registry::new(second.url()).head(&format!("/v2/team/docker/manifests/{digest}")).await.status == 200).then_some(())
        })
        .await;
        engine.docker(&["pull", &name]);
        assert_eq!(engine.id(&name), id);
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
    engine.forget();
    let context = node.scratch().join("context");
    std::fs::create_dir_all(&context).expect("make a folder");
    std::fs::write(context.join("Dockerfile"), format!("FROM {base}\nCOPY Dockerfile /Dockerfile\n")).expect("write");
    let derived = format!("{}/team/derived:1", node.address());
    engine.docker(&["build", "--quiet", "--tag", &derived, text(&context)]);
    let said = engine.docker(&["push", &derived]);
    assert!(said.contains("Mounted from library/base"), "{said}");
    let manifest = Registry::new(node.url()).pull_manifest("team/derived", "1").await.expect(200, "the manifest");
    assert_eq!(manifest.json()["layers"].as_array().map(Vec::len), Some(2));
    engine.forget();
    engine.docker(&["pull", &derived]);
    assert_eq!(engine.id(&derived), crate::tools::id_of(&manifest));
}
