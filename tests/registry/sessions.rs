//! Upload sessions that are opened and left: bounded, cheap while they wait, and gone in time (F44).

use std::time::Duration;

use crate::builder;
use larder_harness::registry::with_digest;
use larder_harness::{Body, Registry, sha256, wait_until};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpSocket;

const PATH: &str = "/v2/team/app/blobs/uploads/";
/// Far more than the node may have files open without any session.
const MANY: usize = 1500;
/// The index has its own files and logs, connections come and go.
const FILES_MAX: u64 = 300;

#[tokio::test]
async fn f44_sessions_that_wait_hold_no_file_little_memory_and_expire() {
    let many = MANY.to_string();
    let node = builder().env("LARDER_REGISTRY__UPLOADS_MAX", &*many).env("LARDER_REGISTRY__UPLOADS_PER_CLIENT_MAX", &*many);
    let mut node = node.start().await;
    let registry = Registry::new(node.url());
    let before = node.memory_peak_bytes();
    let mut last = String::new();
    for number in 0..MANY {
        last = registry.open_upload("team/app").await;
        // Some have a few bytes already.
        if number % 10 == 0 {
            registry.request("PATCH", &last, &[], "a few bytes").await.expect(202, "append");
        }
    }
    registry.request("POST", PATH, &[], Body::empty()).await.expect_error(429, "TOOMANYREQUESTS", "one more");
    assert!(node.open_files() < FILES_MAX, "{} files are open", node.open_files());
    let grown = node.memory_peak_bytes() - before;
    assert!(grown < 100 << 20, "{grown} bytes of memory for {MANY} sessions");
    // They are there after a restart too, and then they are old enough.
    node.stop().await;
    node.set_env("LARDER_REGISTRY__UPLOAD_AGE_MAX", Some("1s"));
    node.start().await;
    assert!(node.open_files() < FILES_MAX, "{} files are open", node.open_files());
    let staged = || std::fs::read_dir(node.data_dir().join("uploads")).expect("list the staged files").count();
    wait_until("the sessions expire", Duration::from_secs(60), async || (staged() == 0).then_some(())).await;
    registry.get(&last).await.expect_error(404, "BLOB_UPLOAD_UNKNOWN", "a session that expired");
    registry.open_upload("team/app").await;
}

/// Opens a session as the client at `address`; gives the head of the answer.
async fn open_from(node: &larder_harness::Node, address: &str) -> String {
    let socket = TcpSocket::new_v4().expect("a socket");
    socket.bind(format!("{address}:0").parse().expect("an address")).expect("an address of this machine");
    let mut stream = socket.connect(node.address().parse().expect("an address")).await.expect("connect");
    let request = format!("POST {PATH} HTTP/1.1\r\nhost: x\r\ncontent-length: 0\r\nconnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await.expect("send");
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.expect("an answer");
    answer
}

#[tokio::test]
async fn f44_a_client_with_many_sessions_is_told_to_wait_and_others_are_not() {
    let node = builder().env("LARDER_REGISTRY__UPLOADS_PER_CLIENT_MAX", "3").start().await;
    let registry = Registry::new(node.url());
    let mut sessions = Vec::new();
    for _ in 0..3 {
        sessions.push(registry.open_upload("team/app").await);
    }
    let digest = sha256(b"bytes");
    let at_once = with_digest(PATH, &digest);
    let mount = format!("{PATH}?mount={digest}&from=team/other");
    for path in [PATH, "/v2/team/other/blobs/uploads/", &at_once, &mount] {
        let refused = registry.request("POST", path, &[], "").await.expect_error(429, "TOOMANYREQUESTS", path);
        assert!(refused.header("retry-after").parse::<u64>().is_ok_and(|seconds| seconds > 0), "{path}: {refused:?}");
        assert!(String::from_utf8_lossy(&refused.body).contains("uploads_per_client_max"), "{refused:?}");
    }
    let other = open_from(&node, "127.0.0.2").await;
    assert!(other.starts_with("HTTP/1.1 202"), "another client: {other}");
    // What ended counts no more, whichever way it ended.
    let location = with_digest(&sessions[0], &digest);
    registry.request("PUT", &location, &[], "bytes").await.expect(201, "finish one");
    registry.request("DELETE", &sessions[1], &[], Body::empty()).await.expect(204, "cancel one");
    registry.request("PUT", &with_digest(&sessions[2], &sha256(b"other")), &[], "bytes").await.expect(400, "fail one");
    for number in 0..3 {
        registry.request("POST", PATH, &[], Body::empty()).await.expect(202, &format!("session {number} of the room that is free"));
    }
    registry.request("POST", PATH, &[], Body::empty()).await.expect(429, "and then no more");
}
