//! The clients over TLS, on a host where `larder setup` has written what they need where they look for it: a private authority, and a certificate to
//! show; and what they print when either is missing or wrong.
//!
//! The node is called by a name that leads to `[::1]`: of whatever is on 127.0.0.0/8 docker takes any certificate, and would prove nothing.

use std::path::{Path, PathBuf};

use larder_harness::certificates::write;
use larder_harness::{Authority, Node};
use tokio::net::{TcpListener, TcpStream};

use crate::access::{self, Closed, says};
use crate::node;
use crate::tools::{Client, Engine, root_file_system, text, try_run_on};

const NAME: &str = "registry.test";

/// A node with TLS that is called by a name, and a host that calls it.
struct Place {
    authority: Authority,
    node: Node,
    /// The name, with the port.
    address: String,
    /// What the host's `/etc` has.
    system: PathBuf,
}

impl Place {
    async fn new(more: &[(&str, &str)]) -> Self {
        let authority = Authority::new("private authority");
        let mut node = more.iter().fold(node("node"), |node, (key, value)| node.env(key, *value)).create();
        let scratch = node.scratch().to_owned();
        let (certificate, key) = authority.issue_for("server", &[NAME]);
        let certificate = write(&scratch, "certificate.pem", &certificate);
        let key = write(&scratch, "key.pem", &key);
        let ca = write(&scratch, "ca.pem", &authority.certificate.pem());
        node.set_env("LARDER_TLS__CERTIFICATE", certificate.to_str());
        node.set_env("LARDER_TLS__KEY", key.to_str());
        if more.iter().any(|(key, _)| *key == "LARDER_TLS__CLIENT_CERTIFICATES") {
            node.set_env("LARDER_TLS__CLIENT_CA", ca.to_str());
        }
        node.start().await;
        let listener = TcpListener::bind(("::1", 0)).await.expect("a port");
        let address = format!("{NAME}:{}", listener.local_addr().expect("an address").port());
        tokio::spawn(pass_on(listener, node.address()));
        let system = scratch.join("system");
        std::fs::create_dir_all(system.join("etc")).expect("make a folder");
        write(&system.join("etc"), "hosts", &format!("127.0.0.1 localhost\n::1 {NAME}\n"));
        Self { authority, node, address, system }
    }

    fn ca(&self) -> PathBuf {
        self.node.scratch().join("ca.pem")
    }

    /// Runs `larder setup` for a client of this host.
    async fn setup(&self, client: &str, more: &[&str]) -> String {
        let ca = self.ca();
        let arguments = ["setup", client, "--root", text(&self.system), "--write", "--address", &self.address, "--ca", text(&ca)];
        let arguments: Vec<_> = arguments.into_iter().chain(more.iter().copied()).collect();
        self.node.cli(&arguments).await.unwrap_or_else(|said| panic!("larder {arguments:?}: {said}"))
    }

    fn client<'a>(&'a self, program: &'static str, name: &str) -> Client<'a> {
        Client::new(program, self.node.scratch(), name).on(Some(&self.system))
    }

    fn run(&self, program: &str, arguments: &[&str]) -> Result<String, String> {
        try_run_on(Some(&self.system), self.node.scratch(), program, arguments)
    }

    /// A certificate for somebody, in two files.
    fn issue(&self, authority: &Authority, name: &str) -> (PathBuf, PathBuf) {
        let (certificate, key) = authority.issue_for(name, &[]);
        let folder = self.node.scratch();
        (write(folder, &format!("{name}.pem"), &certificate), write(folder, &format!("{name}-key.pem"), &key))
    }
}

/// Passes connections on.
async fn pass_on(listener: TcpListener, to: String) {
    while let Ok((mut near, _)) = listener.accept().await {
        let to = to.clone();
        tokio::spawn(async move {
            let mut far = TcpStream::connect(to).await?;
            tokio::io::copy_bidirectional(&mut near, &mut far).await
        });
    }
}

const UNKNOWN: &[&str] = &["certificate signed by unknown authority"];
/// What a client says that shows no certificate, or a strange one: the server's alert, in the words of the client's library.
const UNCERTIFIED: &[&str] = &["certificate required", "bad certificate", "unknown certificate authority"];

/// How tokens were asked for, by what was written down.
async fn tokens(node: &Node) -> usize {
    let events = node.cli_json(&["audit", "--limit", "10000"]).await;
    events.as_array().expect("a list").iter().filter(|event| event["action"] == "token").count()
}

#[tokio::test(flavor = "multi_thread")]
async fn podman_skopeo_and_buildah_take_the_authority_that_setup_wrote() {
    let place = Place::new(&[]).await;
    let name = format!("{}/team/app:1", place.address);
    let skopeo = || place.run("skopeo", &["inspect", "--raw", &format!("docker://{name}")]);
    says(place.client("podman", "before").try_run(&["pull", &name]), UNKNOWN);
    says(place.client("buildah", "before").try_run(&["pull", &name]), UNKNOWN);
    says(skopeo(), UNKNOWN);
    place.setup("podman", &[]).await;
    let Place { node, address, system, .. } = place;
    let closed = Closed::new(node, address, Some(system)).await;
    access::podman_skopeo_and_buildah_are_told_what_they_may_not(&closed);
    assert!(tokens(&closed.node).await > 0, "they were sent to /token under the name that they called");
}

#[tokio::test(flavor = "multi_thread")]
async fn docker_and_containerd_take_the_authority_that_setup_wrote() {
    let place = Place::new(&[]).await;
    let name = format!("{}/team/app:1", place.address);
    let engine = Engine::start_on(&place.system);
    says(engine.try_docker(&["pull", &name]), UNKNOWN);
    drop(engine);
    place.setup("docker", &[]).await;
    place.setup("containerd", &[]).await;
    let ca = place.ca();
    let Place { node, address, system, .. } = place;
    let closed = Closed::new(node, address, Some(system.clone())).await;
    let engine = Engine::start_on(&system);
    access::docker_is_told_what_it_may_not(&closed, &engine);
    assert!(tokens(&closed.node).await > 0, "docker was sent to /token under the name that it called");
    let socket = engine.containerd();
    let hosts = Path::new("/etc/containerd/certs.d");
    let fetch = ["--address", text(&socket), "content", "fetch", "--hosts-dir", text(hosts), "--user", "alice:secret", &name];
    try_run_on(Some(&system), closed.node.scratch(), "ctr", &fetch).expect("containerd");
    // The nearest is measured over TLS too: at the address, which the certificate is not for, nobody is believed.
    let nearest = async |more: &[&str]| closed.node.cli(&[&["nearest", &closed.node.address()], more].concat()).await;
    says(nearest(&["--ca", text(&ca)]).await, &["no node answers"]);
    says(nearest(&["--tls"]).await, &["no node answers"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn clients_show_the_certificate_that_setup_wrote_and_say_what_is_wrong_without_one() {
    let place = Place::new(&[("LARDER_TLS__CLIENT_CERTIFICATES", "required")]).await;
    let name = format!("{}/team/app:1", place.address);
    let said = place.node.cli(&["setup", "podman", "--root", text(&place.system)]).await;
    says(said, &["asks for a certificate"]);
    for client in ["podman", "docker", "containerd"] {
        place.setup(client, &[]).await;
    }
    let podman = place.client("podman", "one");
    podman.run(&["import", text(&root_file_system(place.node.scratch(), "certificate").1), "hello"]);
    let push = || podman.try_run(&["push", "hello", &name]);
    let skopeo = || place.run("skopeo", &["inspect", "--raw", &format!("docker://{name}")]);
    // An engine sees what lay in the folder when it was started; on a host it reads its certificates anew for each request.
    let engine = || Engine::start_on(&place.system);
    for said in [push(), skopeo(), engine().try_docker(&["pull", &name])] {
        says(said, UNCERTIFIED);
    }
    // Of another authority; then of the right one.
    let strange = Authority::new("strange authority");
    for (authority, who) in [(&strange, "mallory"), (&place.authority, "ann")] {
        let (certificate, key) = place.issue(authority, who);
        for client in ["podman", "docker", "containerd"] {
            let said = place.setup(client, &["--client-certificate", text(&certificate), "--client-key", text(&key)]).await;
            assert!(!said.contains("PRIVATE KEY"), "{said}");
        }
        if who == "mallory" {
            for said in [push(), skopeo(), engine().try_docker(&["pull", &name])] {
                says(said, &[UNCERTIFIED, &["tls: "]].concat());
            }
        }
    }
    push().expect("ann may");
    place.client("buildah", "two").run(&["pull", "--quiet", &name]);
    skopeo().expect("ann may");
    let engine = engine();
    engine.docker(&["pull", &name]);
    let fetch =
        ["--address", text(&engine.containerd()), "content", "fetch", "--hosts-dir", "/etc/containerd/certs.d", &name].map(str::to_owned);
    place.run("ctr", &fetch.iter().map(String::as_str).collect::<Vec<_>>()).expect("containerd");
    // A file that is no pair with the other is refused before anything is written.
    let (_, key) = place.issue(&place.authority, "bob");
    let certificate = place.node.scratch().join("ann.pem");
    let arguments =
        ["setup", "podman", "--address", &place.address, "--client-certificate", text(&certificate), "--client-key", text(&key)];
    says(place.node.cli(&arguments).await, &["both files have to be of one pair"]);
    // Who it is is told by the certificate.
    place.node.add_user("alice", "secret").await;
    says(skopeo(), &["unauthorized", "denied", "authentication required", "may not pull"]);
    place.node.allow("user:ann", "team/*", "pull").await;
    skopeo().expect("ann may read");
    says(push(), &["user:ann may not push", "denied"]);
}
