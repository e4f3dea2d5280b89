//! Podman and buildah, with storage of their own.

use larder_harness::{Kind, Registry};

use crate::node;
use crate::tools::{Client, id_of, root_file_system, text};

#[tokio::test(flavor = "multi_thread")]
async fn podman_pushes_and_another_podman_pulls_the_same_image() {
    let node = node("node").start().await;
    let (_, tar) = root_file_system(node.scratch(), "podman");
    let one = Client::new("podman", node.scratch(), "one");
    one.run(&["import", text(&tar), "hello"]);
    let id = one.run(&["image", "inspect", "--format", "{{.Id}}", "hello"]);
    let name = format!("{}/team/podman:1.0", node.address());
    one.run(&["push", "--tls-verify=false", "hello", &name]);
    assert_eq!(Client::new("podman", node.scratch(), "other").pull(&name), id);
    assert_eq!(Registry::new(node.url()).tags("team/podman").await, ["1.0"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn buildah_builds_pushes_and_pulls_in_both_formats() {
    let node = node("node").start().await;
    let (root, _) = root_file_system(node.scratch(), "buildah");
    std::fs::write(root.join("Containerfile"), "FROM scratch\nCOPY . /\nCMD [\"/bin/busybox\", \"cat\", \"/hello\"]\n").expect("write");
    let buildah = Client::new("buildah", node.scratch(), "one");
    for (format, kind) in [("oci", Kind::Oci), ("docker", Kind::Docker)] {
        let name = format!("{}/team/buildah:{format}", node.address());
        buildah.run(&["build", "--isolation", "chroot", "--format", format, "--tag", &name, text(&root)]);
        buildah.run(&["push", "--tls-verify=false", &name]);
        let manifest = Registry::new(node.url()).pull_manifest("team/buildah", format).await.expect(200, "the manifest");
        assert_eq!(manifest.header("content-type"), kind.manifest());
        let pulled = Client::new("buildah", node.scratch(), &format!("other-{format}")).pull(&name);
        assert_eq!(format!("sha256:{pulled}"), id_of(&manifest));
    }
}
