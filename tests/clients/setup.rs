//! `larder setup`: the clients themselves read what it writes, and then find the node without being told how to reach it, also for
//! images that they would ask Docker Hub for. (The names in here are nobody's there.)

use std::path::Path;

use larder_harness::{Node, Registry};

use crate::node;
use crate::tools::{Client, Engine, id_of, root_file_system, run, text, try_run};

const HUB_IMAGE: &str = "larder-test-of-nobody/hello";

/// Runs `larder setup` for a client with `root` as the root of the file system.
async fn setup(node: &Node, client: &str, root: &Path, more: &[&str]) -> String {
    let address = node.address();
    let arguments: Vec<&str> =
        ["setup", client, "--address", &address, "--root", text(root)].into_iter().chain(more.iter().copied()).collect();
    node.cli(&arguments).await.unwrap_or_else(|said| panic!("larder {arguments:?}: {said}"))
}

/// Pushes a small image; gives its id.
async fn push(node: &Node, repository: &str) -> String {
    let podman = Client::new("podman", node.scratch(), "pushes");
    podman.run(&["import", text(&root_file_system(node.scratch(), "setup").1), "hello"]);
    podman.run(&["push", "--tls-verify=false", "hello", &format!("{}/{repository}:1", node.address())]);
    id_of(&Registry::new(node.url()).pull_manifest(repository, "1").await.expect(200, "the manifest"))
}

#[tokio::test(flavor = "multi_thread")]
async fn docker_takes_the_configuration_that_setup_writes_and_keeps_what_stood_there() {
    let node = node("node").start().await;
    let root = node.scratch().join("system");
    let file = root.join("etc/docker/daemon.json");
    std::fs::create_dir_all(file.parent().expect("it has a folder")).expect("make a folder");
    let before = "{\"max-concurrent-downloads\": 2}\n";
    std::fs::write(&file, before).expect("write");

    let printed = setup(&node, "docker", &root, &[]).await;
    assert!(printed.contains(&format!("\"http://{}\"", node.address())), "{printed}");
    assert_eq!(std::fs::read_to_string(&file).expect("read"), before, "without --write nothing is written");
    setup(&node, "docker", &root, &["--write"]).await;
    assert_eq!(std::fs::read_to_string(root.join("etc/docker/daemon.json.before-larder")).expect("the copy"), before);
    let written = std::fs::read_to_string(&file).expect("read");
    assert!(written.contains("max-concurrent-downloads"), "{written}");

    let id = push(&node, HUB_IMAGE).await;
    let engine = Engine::start_with(&written);
    engine.docker(&["pull", &format!("{HUB_IMAGE}:1")]);
    assert_eq!(engine.id(&format!("{HUB_IMAGE}:1")), id);
}

#[tokio::test(flavor = "multi_thread")]
async fn containerd_takes_the_configuration_that_setup_writes() {
    let node = node("node").start().await;
    let root = node.scratch().join("system");
    setup(&node, "containerd", &root, &["--write"]).await;
    push(&node, HUB_IMAGE).await;
    // Docker's engine brings a containerd along.
    let engine = Engine::start();
    let (socket, hosts) = (engine.containerd(), root.join("etc/containerd/certs.d"));
    for name in [format!("{}/{HUB_IMAGE}:1", node.address()), format!("docker.io/{HUB_IMAGE}:1")] {
        let fetch = ["--address", text(&socket), "content", "fetch", "--hosts-dir", text(&hosts), &name];
        run(node.scratch(), "ctr", &fetch);
        let listed = run(node.scratch(), "ctr", &["--address", text(&socket), "images", "list"]);
        let manifest = Registry::new(node.url()).pull_manifest(HUB_IMAGE, "1").await.expect(200, "the manifest");
        let line = listed.lines().find(|line| line.starts_with(&name)).unwrap_or_else(|| panic!("{name} is not in {listed}"));
        assert!(line.contains(manifest.header("docker-content-digest")), "{line}");
    }
}

/// The names in here are nobody's at Docker Hub, so what comes was here.
#[tokio::test(flavor = "multi_thread")]
async fn a_host_without_a_node_pulls_from_the_nearest_and_from_the_next_when_that_is_down() {
    let (mut first, second) = (node("first").start().await, node("second").start().await);
    let (home, root) = (first.scratch().to_owned(), first.scratch().join("system"));
    let image = format!("docker.io/{HUB_IMAGE}");
    let id = push(&first, &image).await;
    // One machine has no distances, so the order is only that all answer; a dead one is left out.
    let client = Client::new("podman", &home, "copies");
    client.run(&["pull", "--quiet", "--tls-verify=false", &format!("{}/{image}:1", first.address())]);
    client.run(&["push", "--tls-verify=false", &format!("{}/{image}:1", first.address()), &format!("{}/{image}:1", second.address())]);
    let (one, two) = (first.address(), second.address());
    let arguments = ["setup", "podman", "--root", text(&root), "--write", "--node", &one, &two, "127.0.0.1:1"];
    let said = second.cli(&arguments).await.expect("setup");
    assert!(said.contains("127.0.0.1:1 is left out") && said.contains(&format!("{one} answers in")), "{said}");
    std::fs::create_dir_all(home.join(".config")).expect("make a folder");
    std::os::unix::fs::symlink(root.join("etc/containers"), home.join(".config/containers")).expect("link a folder");
    let pull = |name: &str| {
        let client = Client::new("podman", &home, name);
        format!("sha256:{}", client.run(&["pull", "--quiet", &format!("{image}:1")]))
    };
    assert_eq!(pull("both"), id);
    first.stop().await;
    assert_eq!(pull("one-left"), id);
}

#[tokio::test(flavor = "multi_thread")]
async fn podman_buildah_and_skopeo_take_the_configuration_that_setup_writes() {
    let node = node("node").start().await;
    let (home, root) = (node.scratch(), node.scratch().join("system"));
    let id = push(&node, &format!("docker.io/{HUB_IMAGE}")).await;
    let own = format!("{}/docker.io/{HUB_IMAGE}:1", node.address());
    let refused = try_run(home, "skopeo", &["inspect", "--raw", &format!("docker://{own}")]);
    assert!(refused.expect_err("no TLS here").contains("HTTP response to HTTPS client"), "it is the configuration that lets them in");

    setup(&node, "podman", &root, &["--write"]).await;
    // They look below the user's home too, which is the test's own.
    std::fs::create_dir_all(home.join(".config")).expect("make a folder");
    std::os::unix::fs::symlink(root.join("etc/containers"), home.join(".config/containers")).expect("link a folder");
    for (number, name) in [own, format!("docker.io/{HUB_IMAGE}:1")].iter().enumerate() {
        for program in ["podman", "buildah"] {
            let client = Client::new(program, home, &format!("{program}-{number}"));
            assert_eq!(format!("sha256:{}", client.run(&["pull", "--quiet", name])), id, "{program} pulls {name}");
        }
        let raw = run(home, "skopeo", &["inspect", "--raw", &format!("docker://{name}")]);
        assert!(raw.contains(&id), "{raw}");
    }
}
