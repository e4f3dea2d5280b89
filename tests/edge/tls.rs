//! TLS of the registry: versions, protocols, new certificates, certificates of clients, and words for what can't be.

use std::process::{Command, Stdio};
use std::time::Duration;

use bytes::Bytes;
use larder_harness::certificates::write;
use larder_harness::{Authority, Content, Node, http, sha256, wait_until};

use crate::builder;
use crate::client::{connect, request, shown};

const PATIENCE: Duration = Duration::from_secs(30);

/// A node with a certificate of its own authority for `name`, and what else it is told.
pub fn node_with(authority: &Authority, name: &str, more: &[(&str, &str)]) -> Node {
    let mut node = more.iter().fold(builder().name(name), |builder, (key, value)| builder.env(key, *value)).create();
    let (certificate, key) = authority.issue(name);
    let certificate = write(node.scratch(), "certificate.pem", &certificate);
    let key = write(node.scratch(), "key.pem", &key);
    node.set_env("LARDER_TLS__CERTIFICATE", certificate.to_str());
    node.set_env("LARDER_TLS__KEY", key.to_str());
    node
}

pub async fn node(authority: &Authority, name: &str, more: &[(&str, &str)]) -> Node {
    let mut node = node_with(authority, name, more);
    node.start().await;
    node
}

#[tokio::test]
async fn blobs_are_pushed_and_pulled_over_tls_in_both_protocols() {
    let authority = Authority::new("ca");
    let node = node(&authority, "node", &[]).await;
    for (number, protocol) in ["http/1.1", "h2"].into_iter().enumerate() {
        // More than every window and buffer on the way.
        let content: Vec<u8> = Content::new(number as u64, (9 << 20) + 5).chunks().flatten().collect();
        let (content, digest) = (Bytes::from(content.clone()), sha256(&content));
        let ask = async |method: &str, path: &str, body: Bytes| {
            let stream = connect(&node.address(), &authority, protocol, None).await.expect("a handshake");
            assert_eq!(stream.get_ref().1.alpn_protocol(), Some(protocol.as_bytes()));
            request(stream, method, path, body).await.expect("an answer")
        };
        let (status, headers, _) = ask("POST", "/v2/team/app/blobs/uploads/", Bytes::new()).await;
        assert_eq!(status, 202);
        let location = headers["location"].to_str().expect("text").to_owned();
        assert_eq!(ask("PUT", &format!("{location}?digest={digest}"), content.clone()).await.0, 201);
        let (status, _, body) = ask("GET", &format!("/v2/team/app/blobs/{digest}"), Bytes::new()).await;
        assert_eq!((status, body == content), (200, true), "{protocol}");
        assert_eq!(ask("GET", "/v2/team/none/tags/list", Bytes::new()).await.0, 404);
    }
}

#[tokio::test]
async fn s19_a_client_is_sent_for_a_token_to_the_name_that_the_certificate_proves() {
    let authority = Authority::new("ca");
    let node = node(&authority, "node", &[("LARDER_AUTH__REQUIRED", "true")]).await;
    for protocol in ["http/1.1", "h2"] {
        let stream = connect(&node.address(), &authority, protocol, None).await.expect("a handshake");
        let (status, headers, _) = request(stream, "GET", "/v2/", Bytes::new()).await.expect("an answer");
        let challenge = headers["www-authenticate"].to_str().expect("text");
        assert_eq!((status, challenge), (401, "Bearer realm=\"https://localhost/token\",service=\"larder\""), "{protocol}");
    }
    // A name that it is not for is no place to send a password to.
    let answer = raw(&node, &authority, "GET /v2/ HTTP/1.1\r\nhost: evil.example.org\r\nconnection: close\r\n\r\n").await;
    assert!(answer.contains("www-authenticate: Basic ") && !answer.contains("evil"), "{answer}");
}

/// Sends these bytes over a connection of their own; all that comes.
async fn raw(node: &Node, authority: &Authority, request: &str) -> String {
    let mut stream = connect(&node.address(), authority, "http/1.1", None).await.expect("a handshake");
    tokio::io::AsyncWriteExt::write_all(&mut stream, request.as_bytes()).await.expect("send");
    let mut answer = Vec::new();
    // It may end without a goodbye.
    let _ = tokio::io::AsyncReadExt::read_to_end(&mut stream, &mut answer).await;
    String::from_utf8_lossy(&answer).into_owned()
}

#[tokio::test]
async fn s45_a_session_over_tls_never_goes_in_the_clear_and_only_to_this_host() {
    let authority = Authority::new("ca");
    let node = node(&authority, "node", &[]).await;
    node.add_user("alice", "secret").await;
    let form = "username=alice&password=secret";
    let ask = async |host: &str| {
        let head = format!("POST /auth/session HTTP/1.1\r\nhost: {host}\r\nlarder-session: 1\r\nconnection: close\r\n");
        raw(&node, &authority, &format!("{head}content-length: {}\r\n\r\n{form}", form.len())).await
    };
    let answer = ask("localhost").await;
    let cookie = answer.lines().find_map(|line| line.strip_prefix("set-cookie: ")).unwrap_or_else(|| panic!("{answer}"));
    assert!(cookie.starts_with("__Host-larder_session=") && cookie.ends_with("; HttpOnly; SameSite=Strict; Secure"), "{cookie}");
    // Called by a name that the certificate does not prove it gives none.
    let answer = ask("evil.example.org").await;
    assert!(answer.starts_with("HTTP/1.1 403") && !answer.contains("set-cookie"), "{answer}");
}

#[tokio::test]
async fn s44_only_tls_1_2_and_1_3_are_spoken_and_plain_http_is_not() {
    let authority = Authority::new("ca");
    let node = node(&authority, "node", &[]).await;
    let speaks = |version: &str| {
        let arguments = ["s_client", "-connect", &node.address(), version, "-cipher", "ALL:@SECLEVEL=0"];
        let mut command = Command::new("openssl");
        let output = command.args(arguments).stdin(Stdio::null()).output().expect("openssl: `packaging/setup test` installs it");
        let said = String::from_utf8_lossy(&output.stdout).into_owned();
        said.contains("Cipher is ") && !said.contains("Cipher is (NONE)")
    };
    assert_eq!(["-tls1", "-tls1_1", "-tls1_2", "-tls1_3"].map(speaks), [false, false, true, true]);
    let answer = http::raw(&node.url(), b"GET /v2/ HTTP/1.1\r\nhost: x\r\n\r\n").await.unwrap_or_default();
    assert!(!answer.starts_with(b"HTTP/"), "{}", String::from_utf8_lossy(&answer));
}

#[tokio::test]
async fn s44_a_new_certificate_is_taken_while_it_runs_and_a_broken_one_is_not() {
    let authority = Authority::new("ca");
    let node = node(&authority, "first", &[]).await;
    let stands = connect(&node.address(), &authority, "http/1.1", None).await.expect("a handshake");
    assert_eq!(shown(&stands), "first");
    write(node.scratch(), "certificate.pem", "nothing of use\n");
    wait_until("it says that it can't be used", PATIENCE, async || node.log().contains("the new certificate can't be used").then_some(()))
        .await;
    let after = connect(&node.address(), &authority, "http/1.1", None).await.expect("the one before stays");
    assert_eq!(shown(&after), "first");
    let (certificate, key) = authority.issue("second");
    write(node.scratch(), "key.pem", &key);
    write(node.scratch(), "certificate.pem", &certificate);
    wait_until("the new one is shown", PATIENCE, async || {
        let stream = connect(&node.address(), &authority, "http/1.1", None).await.ok()?;
        (shown(&stream) == "second").then_some(())
    })
    .await;
    assert_eq!(request(stands, "GET", "/v2/", Bytes::new()).await.expect("a connection that stands is not touched").0, 200);
}

#[tokio::test]
async fn clients_that_have_to_show_a_certificate_are_let_in_by_it_alone() {
    let (authority, strange) = (Authority::new("ca"), Authority::new("other"));
    for (setting, without) in [("required", false), ("optional", true)] {
        let mut node = node_with(&authority, "node", &[("LARDER_TLS__CLIENT_CERTIFICATES", setting)]);
        let clients = write(node.scratch(), "clients.pem", &authority.certificate.pem());
        node.set_env("LARDER_TLS__CLIENT_CA", clients.to_str());
        node.start().await;
        let is_let_in = async |shows: Option<&(String, String)>| {
            // In TLS 1.3 a server refuses after the client's part of the handshake is done.
            let Ok(stream) = connect(&node.address(), &authority, "http/1.1", shows).await else { return false };
            request(stream, "GET", "/v2/", Bytes::new()).await.is_ok_and(|(status, _, _)| status == 200)
        };
        assert!(is_let_in(Some(&authority.issue("ann"))).await, "{setting}");
        assert!(!is_let_in(Some(&strange.issue("mallory"))).await, "{setting}");
        assert_eq!(is_let_in(None).await, without, "{setting}");
    }
}

#[tokio::test]
async fn s42_s43_a_node_that_could_not_be_private_does_not_start_and_says_why() {
    let authority = Authority::new("ca");
    let check = async |change: fn(&mut Node), expected: &str| {
        let mut node = node_with(&authority, "node", &[]);
        node.expect_errors();
        change(&mut node);
        node.spawn();
        assert!(!node.ended(Duration::from_secs(60)).await.success());
        assert!(node.log().contains(expected), "{}", node.log_tail());
    };
    check(|node| _ = write(node.scratch(), "certificate.pem", "x"), "-----BEGIN CERTIFICATE-----").await;
    check(|node| node.set_env("LARDER_TLS__KEY", None), "this is of no use without tls.key").await;
    check(|node| node.set_env("LARDER_HTTP__INSECURE", Some("true")), "speaks TLS only").await;
    let open = |node: &mut Node| {
        let mode = std::os::unix::fs::PermissionsExt::from_mode(0o644);
        std::fs::set_permissions(node.scratch().join("key.pem"), mode).expect("open it");
    };
    check(open, "chmod 600").await;
}
