//! The clients over TLS: a private authority whose certificate `larder setup` writes, a client's own certificate, and what they print when
//! either is wrong.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use larder_harness::{Node, Registry};
use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair};

use crate::node;
use crate::tools::{Client, root_file_system, run, text, try_run};

/// An authority, and who it vouches for.
struct Authority {
    pem: String,
    issuer: Issuer<'static, KeyPair>,
}

impl Authority {
    fn new() -> Self {
        let mut params = CertificateParams::default();
        params.distinguished_name.push(DnType::CommonName, "private authority");
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let key = KeyPair::generate().expect("a key");
        let pem = params.self_signed(&key).expect("a certificate").pem();
        Self { pem, issuer: Issuer::new(params, key) }
    }

    /// A certificate for 127.0.0.1, and its key, in two files.
    fn issue(&self, folder: &Path, name: &str) -> (PathBuf, PathBuf) {
        let mut params = CertificateParams::new(vec!["127.0.0.1".to_owned()]).expect("an address");
        params.distinguished_name.push(DnType::CommonName, name);
        let key = KeyPair::generate().expect("a key");
        let certificate = params.signed_by(&key, &self.issuer).expect("a certificate").pem();
        let (at, key_at) = (folder.join(format!("{name}.cert")), folder.join(format!("{name}.key")));
        fs::write(&at, certificate).expect("write");
        fs::write(&key_at, key.serialize_pem()).expect("write");
        fs::set_permissions(&key_at, fs::Permissions::from_mode(0o600)).expect("make it private");
        (at, key_at)
    }
}

/// A node with TLS, and its authority's file.
async fn encrypted(authority: &Authority, clients: bool) -> (Node, PathBuf) {
    let mut node = node("node").create();
    let (certificate, key) = authority.issue(node.scratch(), "server");
    let ca = node.scratch().join("ca.pem");
    fs::write(&ca, &authority.pem).expect("write");
    node.set_env("LARDER_TLS__CERTIFICATE", certificate.to_str());
    node.set_env("LARDER_TLS__KEY", key.to_str());
    if clients {
        node.set_env("LARDER_TLS__CLIENT_CA", ca.to_str());
        node.set_env("LARDER_TLS__CLIENT_CERTIFICATES", Some("required"));
    }
    node.start().await;
    (node, ca)
}

/// Writes what a client needs for the node where the tools of this test look: below its home.
async fn setup(node: &Node, ca: &Path) {
    let root = node.scratch().join("system");
    node.cli(&["setup", "podman", "--root", text(&root), "--write", "--ca", text(ca)]).await.expect("setup");
    fs::create_dir_all(node.scratch().join(".config")).expect("make a folder");
    std::os::unix::fs::symlink(root.join("etc/containers"), node.scratch().join(".config/containers")).expect("link a folder");
}

#[tokio::test(flavor = "multi_thread")]
async fn podman_buildah_and_skopeo_push_and_pull_with_a_private_authority_that_setup_wrote() {
    let authority = Authority::new();
    let (node, ca) = encrypted(&authority, false).await;
    let home = node.scratch();
    let name = format!("{}/team/app:1", node.address());
    let podman = Client::new("podman", home, "one");
    podman.run(&["import", text(&root_file_system(home, "tls").1), "hello"]);
    let said = podman.try_run(&["push", "hello", &name]).expect_err("nobody vouches for it yet");
    assert!(said.contains("certificate signed by unknown authority"), "{said}");
    let said = try_run(home, "skopeo", &["inspect", &format!("docker://{name}")]).expect_err("nobody vouches for it yet");
    assert!(said.contains("certificate signed by unknown authority"), "{said}");

    setup(&node, &ca).await;
    podman.run(&["push", "hello", &name]);
    for program in ["podman", "buildah"] {
        let pulled = Client::new(program, home, &format!("{program}-pulls")).run(&["pull", "--quiet", &name]);
        assert!(!pulled.is_empty(), "{program}");
    }
    assert!(run(home, "skopeo", &["list-tags", &format!("docker://{}/team/app", node.address())]).contains("\"1\""));
    // The nearest is measured over TLS too.
    let said = node.cli(&["nearest", &node.address(), "--ca", text(&ca)]).await.expect("nearest");
    assert!(said.contains(" ms"), "{said}");
    let said = node.cli(&["nearest", &node.address(), "--tls"]).await.expect_err("no public authority vouches for it");
    assert!(said.contains("no node answers"), "{said}");
}

#[tokio::test(flavor = "multi_thread")]
async fn docker_and_containerd_take_the_authority_that_setup_writes() {
    let authority = Authority::new();
    let (node, ca) = encrypted(&authority, false).await;
    let (home, root) = (node.scratch(), node.scratch().join("system"));
    let address = node.address();
    for client in ["docker", "containerd"] {
        node.cli(&["setup", client, "--root", text(&root), "--write", "--ca", text(&ca)]).await.expect("setup");
    }
    let engine = crate::tools::Engine::start_with(&fs::read_to_string(root.join("etc/docker/daemon.json")).expect("read"));
    let name = format!("{address}/team/docker:1");
    engine.docker(&["import", text(&root_file_system(home, "docker").1), &name]);
    // Docker looks in one folder of the system only. (At this machine's own addresses it would also take a certificate of nobody's.)
    let place = Path::new("/etc/docker/certs.d").join(&address);
    let written = Written::copy(&root.join("etc/docker/certs.d").join(&address), &place);
    engine.docker(&["push", &name]);
    engine.forget();
    engine.docker(&["pull", &name]);
    drop(written);

    let hosts = root.join("etc/containerd/certs.d");
    let toml = hosts.join(&address).join("hosts.toml");
    let said = fs::read_to_string(&toml).expect("read").replace("/etc/containerd/certs.d", text(&hosts));
    fs::write(&toml, said).expect("write");
    let fetch = ["--address", text(&engine.containerd()), "content", "fetch", "--hosts-dir", text(&hosts), &name].map(str::to_owned);
    run(home, "ctr", &fetch.iter().map(String::as_str).collect::<Vec<_>>());
}

/// A folder of the system that is there for a moment.
struct Written(PathBuf);

impl Written {
    fn copy(from: &Path, to: &Path) -> Self {
        fs::create_dir_all(to).expect("make a folder");
        for entry in fs::read_dir(from).expect("list") {
            let entry = entry.expect("read");
            fs::copy(entry.path(), to.join(entry.file_name())).expect("copy");
        }
        Self(to.to_owned())
    }
}

impl Drop for Written {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn clients_show_a_certificate_and_say_what_is_wrong_without_one() {
    let authority = Authority::new();
    let (node, ca) = encrypted(&authority, true).await;
    let home = node.scratch();
    setup(&node, &ca).await;
    let name = format!("{}/team/app:1", node.address());
    let podman = Client::new("podman", home, "one");
    podman.run(&["import", text(&root_file_system(home, "certificate").1), "hello"]);
    let said = podman.try_run(&["push", "hello", &name]).expect_err("it shows none");
    assert!(said.contains("certificate required") || said.contains("bad certificate"), "{said}");
    // Of another authority.
    let strange = Authority::new();
    let folder = home.join("client");
    fs::create_dir(&folder).expect("make a folder");
    fs::copy(&ca, folder.join("ca.crt")).expect("copy");
    strange.issue(&folder, "mallory");
    let certificates = format!("--cert-dir={}", folder.display());
    let said = podman.try_run(&["push", &certificates, "hello", &name]).expect_err("nobody vouches for it");
    assert!(said.contains("tls: ") || said.contains("remote error"), "{said}");
    for file in ["mallory.cert", "mallory.key"] {
        fs::remove_file(folder.join(file)).expect("remove");
    }
    authority.issue(&folder, "ann");
    podman.run(&["push", &certificates, "hello", &name]);
    Client::new("buildah", home, "two").run(&["pull", "--quiet", &certificates, &name]);
    let inspect = ["inspect", "--raw", &format!("--cert-dir={}", folder.display()), &format!("docker://{name}")].map(str::to_owned);
    run(home, "skopeo", &inspect.iter().map(String::as_str).collect::<Vec<_>>());
    // Plain HTTP is not spoken here, and says nothing.
    assert!(Registry::new(node.url()).try_request("GET", "/v2/", &[], larder_harness::Body::empty()).await.is_err());
}
