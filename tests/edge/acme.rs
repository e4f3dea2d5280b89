//! A certificate had by itself from a real authority's server: Let's Encrypt's own for tests, pebble, which sends nonces that it
//! then refuses, as real ones do at times. All names lead to this machine by a name server of its own.

use std::fs::File;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use larder_harness::certificates::write;
use larder_harness::node::free_port;
use larder_harness::{Authority, wait_until};
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;

use crate::builder;

const PATIENCE: Duration = Duration::from_secs(90);
const NAME: &str = "registry.example.org";

/// The authority's server and its name server, ended when this is dropped.
struct Pebble {
    children: Vec<Child>,
    directory: String,
}

impl Drop for Pebble {
    fn drop(&mut self) {
        for child in &mut self.children {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

/// `http_port` and `tls_port` are where it looks for answers.
async fn pebble(folder: &Path, authority: &Authority, http_port: u16, tls_port: u16) -> Pebble {
    let (certificate, key) = authority.issue("pebble");
    let (certificate, key) = (write(folder, "pebble.pem", &certificate), write(folder, "pebble-key.pem", &key));
    let (port, management, names) = (free_port(), free_port(), free_port());
    let configuration = serde_json::json!({"pebble": {
        "listenAddress": format!("127.0.0.1:{port}"), "managementListenAddress": format!("127.0.0.1:{management}"),
        "certificate": certificate, "privateKey": key, "httpPort": http_port, "tlsPort": tls_port,
        "ocspResponderURL": "", "externalAccountBindingRequired": false,
    }});
    let configuration = write(folder, "pebble.json", &configuration.to_string());
    let log = File::create(folder.join("pebble.log")).expect("a log");
    let start = |command: &mut Command| {
        let (out, error) = (log.try_clone().expect("share the log"), log.try_clone().expect("share the log"));
        let child = command.stdin(Stdio::null()).stdout(out).stderr(error).spawn();
        child.unwrap_or_else(|error| panic!("start pebble: {error}; `packaging/setup test` installs it"))
    };
    let dns = format!("127.0.0.1:{names}");
    let server = start(Command::new("pebble-challtestsrv").args([
        "-defaultIPv4",
        "127.0.0.1",
        "-defaultIPv6",
        "",
        "-dns01",
        &dns,
        "-http01",
        "",
        "-https01",
        "",
        "-tlsalpn01",
        "",
        "-management",
        "",
    ]));
    let pebble = start(
        Command::new("pebble")
            .args(["-config", configuration.to_str().expect("text"), "-dnsserver", &dns])
            .env("PEBBLE_VA_NOSLEEP", "1")
            .env("PEBBLE_WFE_NONCEREJECT", "5"),
    );
    wait_until("pebble listens", PATIENCE, async || std::net::TcpStream::connect(("127.0.0.1", port)).ok()).await;
    Pebble { children: vec![server, pebble], directory: format!("https://localhost:{port}/dir") }
}

async fn check(challenge: &str) {
    let authority = Authority::new("ca");
    let mut node = builder().name(challenge).create();
    let http_port = free_port();
    let own_port = node.address().rsplit_once(':').expect("a port").1.parse().expect("a number");
    let pebble = pebble(node.scratch(), &authority, http_port, own_port).await;
    let ca = write(node.scratch(), "pebble-ca.pem", &authority.certificate.pem());
    for (key, value) in [
        ("LARDER_ACME__DOMAINS", NAME),
        ("LARDER_ACME__TERMS_AGREED", "true"),
        ("LARDER_ACME__EMAIL", "ops@example.org"),
        ("LARDER_ACME__CHALLENGE", challenge),
        ("LARDER_ACME__DIRECTORY", &pebble.directory),
        ("LARDER_ACME__HTTP_LISTEN", &format!("127.0.0.1:{http_port}")),
        ("LARDER_ACME__CA", ca.to_str().expect("text")),
    ] {
        node.set_env(key, Some(value));
    }
    node.start().await;
    let file = node.data_dir().join("acme/certificate.pem");
    wait_until("there is a certificate", PATIENCE, async || {
        assert!(!node.log().contains("no certificate could be had"), "{}", node.log_tail());
        file.exists().then_some(())
    })
    .await;
    let chain: Vec<_> = CertificateDer::pem_file_iter(&file).expect("PEM").map(|read| read.expect("PEM")).collect();
    assert_eq!(larder::tls::host_names(&chain[0]), [NAME]);
    wait_until("it is shown", PATIENCE, async || (shown(&node.address()).await? == chain[0]).then_some(())).await;

    // A restart asks for nothing.
    let before = std::fs::read(&file).expect("read");
    node.restart().await;
    assert_eq!(shown(&node.address()).await, Some(chain[0].clone()), "shown at once");
    assert_eq!(std::fs::read(&file).expect("read"), before);
    // Another name does, with the account of before.
    let account = std::fs::read(node.data_dir().join("acme/account.json")).expect("read");
    node.stop().await;
    node.set_env("LARDER_ACME__DOMAINS", Some("registry.example.org,mirror.example.org"));
    node.start().await;
    wait_until("the new names are shown", PATIENCE, async || {
        let names = larder::tls::host_names(&shown(&node.address()).await?);
        (names.len() == 2 && names.contains(&"mirror.example.org".to_owned())).then_some(())
    })
    .await;
    assert_eq!(std::fs::read(node.data_dir().join("acme/account.json")).expect("read"), account);
}

/// The certificate that a node shows, whoever vouches for it.
async fn shown(address: &str) -> Option<CertificateDer<'static>> {
    let mut command = tokio::process::Command::new("openssl");
    command.args(["s_client", "-connect", address, "-servername", NAME]).stdin(Stdio::null());
    let output = command.output().await.expect("openssl: `packaging/setup test` installs it");
    CertificateDer::from_pem_slice(&output.stdout).ok()
}

#[tokio::test]
async fn a_certificate_is_had_by_http_and_kept_over_a_restart() {
    check("http-01").await;
}

#[tokio::test]
async fn a_certificate_is_had_by_a_handshake_and_kept_over_a_restart() {
    check("tls-alpn-01").await;
}

/// The authority looks where nobody answers.
#[tokio::test]
async fn an_authority_that_says_no_is_quoted_and_the_node_goes_on() {
    let authority = Authority::new("ca");
    let mut node = builder().create();
    let pebble = pebble(node.scratch(), &authority, free_port(), free_port()).await;
    let ca = write(node.scratch(), "pebble-ca.pem", &authority.certificate.pem());
    for (key, value) in [
        ("LARDER_ACME__DOMAINS", NAME),
        ("LARDER_ACME__TERMS_AGREED", "true"),
        ("LARDER_ACME__CHALLENGE", "tls-alpn-01"),
        ("LARDER_ACME__DIRECTORY", &pebble.directory),
        ("LARDER_ACME__CA", ca.to_str().expect("text")),
    ] {
        node.set_env(key, Some(value));
    }
    node.start().await;
    wait_until("it says why", PATIENCE, async || node.log().contains("no certificate could be had").then_some(())).await;
    let log = node.log();
    let line = log.lines().find(|line| line.contains("no certificate could be had")).expect("it is there");
    assert!(line.contains("tls-alpn-01 challenge") && line.contains("registry.example.org"), "{line}");
    assert!(node.is_running());
}
