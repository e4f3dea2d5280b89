//! What one client pushed, every other one pulls: they differ in media types, compression and what they ask before they push.

use std::path::Path;

use larder_harness::{Registry, Response, sha256};

use crate::node;
use crate::tools::{Client, Engine, id_of, root_file_system, run, text};

const PLAIN: [&str; 2] = ["--src-tls-verify=false", "--dest-tls-verify=false"];

/// Pushes an image of each client's own making to `team/by-<client>:1`, and checks that it is what the client has.
async fn push_with_each(home: &Path, address: &str, engine: &Engine, registry: &Registry) -> Vec<(&'static str, Response)> {
    let name = |client: &str| format!("{address}/team/by-{client}:1");
    let mut ids = Vec::new();

    engine.docker(&["import", text(&root_file_system(home, "docker").1), &name("docker")]);
    engine.docker(&["push", &name("docker")]);
    ids.push(("docker", engine.id(&name("docker"))));

    let podman = Client::new("podman", home, "podman-pushes");
    podman.run(&["import", text(&root_file_system(home, "podman").1), &name("podman")]);
    podman.run(&["push", "--tls-verify=false", &name("podman")]);
    ids.push(("podman", format!("sha256:{}", podman.run(&["image", "inspect", "--format", "{{.Id}}", &name("podman")]))));

    let buildah = Client::new("buildah", home, "buildah-pushes");
    let container = buildah.run(&["from", "scratch"]);
    buildah.run(&["copy", &container, text(&root_file_system(home, "buildah").0), "/"]);
    let id = buildah.run(&["commit", "--quiet", &container, &name("buildah")]);
    buildah.run(&["push", "--tls-verify=false", &name("buildah")]);
    ids.push(("buildah", format!("sha256:{id}")));

    // Skopeo makes no images: it takes buildah's, by way of a folder.
    let layout = format!("oci:{}:1", home.join("layout").display());
    run(home, "skopeo", &["copy", PLAIN[0], &format!("docker://{}", name("buildah")), &layout]);
    run(home, "skopeo", &["copy", PLAIN[1], &layout, &format!("docker://{}", name("skopeo"))]);
    ids.push(("skopeo", ids[2].1.clone()));

    let mut pushed = Vec::new();
    for (client, id) in ids {
        let manifest = registry.pull_manifest(&format!("team/by-{client}"), "1").await.expect(200, "the manifest");
        assert_eq!(id_of(&manifest), id, "what {client} pushed");
        pushed.push((client, manifest));
    }
    pushed
}

#[tokio::test(flavor = "multi_thread")]
async fn every_client_pulls_what_every_client_pushed() {
    let node = node("node").start().await;
    let (home, registry) = (node.scratch(), Registry::new(node.url()));
    let engine = Engine::start();
    let pushed = push_with_each(home, &node.address(), &engine, &registry).await;

    engine.forget();
    let podman = Client::new("podman", home, "podman-pulls");
    let buildah = Client::new("buildah", home, "buildah-pulls");
    for (client, manifest) in pushed {
        let name = format!("{}/team/by-{client}:1", node.address());
        let id = id_of(&manifest);
        engine.docker(&["pull", &name]);
        assert_eq!(engine.id(&name), id, "docker pulled what {client} pushed");
        assert_eq!(format!("sha256:{}", podman.pull(&name)), id, "podman pulled what {client} pushed");
        assert_eq!(format!("sha256:{}", buildah.pull(&name)), id, "buildah pulled what {client} pushed");
        // As it is, to the last byte of the manifest; skopeo verifies the blobs.
        let copy = home.join(format!("copy-{client}"));
        run(home, "skopeo", &["copy", PLAIN[0], &format!("docker://{name}"), &format!("dir:{}", copy.display())]);
        let bytes = std::fs::read(copy.join("manifest.json")).expect("read the copy's manifest");
        assert_eq!(sha256(&bytes), sha256(&manifest.body), "skopeo pulled what {client} pushed");
    }
}
