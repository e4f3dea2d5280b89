//! What one client may not take from the others: connections, requests, time.

use std::io;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use larder_harness::{Content, Node, Registry, wait_until};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpSocket, TcpStream};

use crate::builder;

const PATIENCE: Duration = Duration::from_secs(30);

/// Connects from another address of this machine: another client.
async fn connect(node: &Node, from: &str) -> io::Result<TcpStream> {
    let socket = TcpSocket::new_v4()?;
    socket.bind(SocketAddr::new(from.parse().expect("an address"), 0))?;
    socket.connect(node.address().parse().expect("an address")).await
}

/// The files that a node has open when nothing of what was asked before is under way, and connections that are idle for two seconds are let go of.
async fn files_at_rest(node: &Node) -> u64 {
    let (mut files, mut since) = (node.open_files(), Instant::now());
    wait_until("the node rests", PATIENCE, async || {
        let now = node.open_files();
        if now != files {
            (files, since) = (now, Instant::now());
        }
        (since.elapsed() >= Duration::from_secs(3)).then_some(files)
    })
    .await
}

/// Sends a request and gives what comes within a moment of its answer.
async fn ask(stream: &mut TcpStream, request: &str) -> String {
    stream.write_all(request.as_bytes()).await.expect("send");
    let mut bytes = vec![0; 4096];
    let read = tokio::time::timeout(PATIENCE, stream.read(&mut bytes)).await.expect("an answer in time").unwrap_or(0);
    String::from_utf8_lossy(&bytes[..read]).into_owned()
}

const PING: &str = "GET /v2/ HTTP/1.1\r\nhost: x\r\n\r\n";

#[tokio::test]
async fn s18_one_address_has_its_share_of_connections_and_is_told() {
    let node = builder().env("LARDER_HTTP__CONNECTIONS_PER_CLIENT_MAX", "5").start().await;
    let mut held = Vec::new();
    for _ in 0..5 {
        let mut stream = connect(&node, "127.0.0.7").await.expect("connect");
        assert!(ask(&mut stream, PING).await.starts_with("HTTP/1.1 200"));
        held.push(stream);
    }
    let mut more = connect(&node, "127.0.0.7").await.expect("connect");
    let mut answer = String::new();
    more.read_to_string(&mut answer).await.expect("it is told and let go");
    assert!(answer.starts_with("HTTP/1.1 429") && answer.contains("retry-after: 1") && answer.contains("TOOMANYREQUESTS"), "{answer}");
    // Others are served, and it is again when one of its own has ended.
    assert!(ask(&mut connect(&node, "127.0.0.8").await.expect("connect"), PING).await.starts_with("HTTP/1.1 200"));
    held.pop();
    wait_until("there is room again", PATIENCE, async || {
        ask(&mut connect(&node, "127.0.0.7").await.ok()?, PING).await.starts_with("HTTP/1.1 200").then_some(())
    })
    .await;
}

#[tokio::test]
async fn s18_one_address_has_its_share_of_requests_and_gets_429_for_more() {
    let node = builder().env("LARDER_HTTP__REQUESTS_PER_CLIENT_MAX", "3").start().await;
    let registry = Registry::new(node.url());
    let mut held = Vec::new();
    for _ in 0..3 {
        let session = registry.open_upload("a").await;
        let mut stream = connect(&node, "127.0.0.7").await.expect("connect");
        let head = format!("PATCH {session} HTTP/1.1\r\nhost: x\r\ncontent-length: 1000\r\n\r\nbegun");
        stream.write_all(head.as_bytes()).await.expect("send");
        held.push(stream);
    }
    let refused = wait_until("the fourth is refused", PATIENCE, async || {
        let answer = ask(&mut connect(&node, "127.0.0.7").await.ok()?, PING).await;
        answer.starts_with("HTTP/1.1 429").then_some(answer)
    })
    .await;
    assert!(refused.contains("retry-after: 1") && refused.contains("TOOMANYREQUESTS") && refused.contains("this address"), "{refused}");
    // Health is answered even so, and so are others.
    let health = ask(&mut connect(&node, "127.0.0.7").await.expect("connect"), "GET /readyz HTTP/1.1\r\nhost: x\r\n\r\n").await;
    assert!(health.starts_with("HTTP/1.1 200"), "{health}");
    registry.get("/v2/").await.expect(200, "another client");
    drop(held);
    wait_until("there is room again", PATIENCE, async || {
        ask(&mut connect(&node, "127.0.0.7").await.ok()?, PING).await.starts_with("HTTP/1.1 200").then_some(())
    })
    .await;
}

#[tokio::test]
async fn s18_a_client_that_takes_nothing_of_its_answer_is_dropped() {
    let node = builder().env("LARDER_HTTP__IDLE_TIMEOUT", "2s").start().await;
    let registry = Registry::new(node.url());
    // More than all the buffers between the two.
    let content = Content::new(1, 64 << 20);
    registry.try_push_blob("a", content).await.expect("push");
    let before = files_at_rest(&node).await;
    let mut stream = connect(&node, "127.0.0.7").await.expect("connect");
    let request = format!("GET /v2/a/blobs/{} HTTP/1.1\r\nhost: x\r\n\r\n", content.digest());
    stream.write_all(request.as_bytes()).await.expect("send");
    stream.readable().await.expect("the answer has begun");
    let begun = Instant::now();
    wait_until("the node lets go of it", PATIENCE, async || (node.open_files() <= before).then_some(())).await;
    assert!(begun.elapsed() >= Duration::from_secs(1));
    // Who takes it slowly, but takes it, keeps it: several times as long as the patience with one who takes nothing.
    let mut slow = connect(&node, "127.0.0.7").await.expect("connect");
    slow.write_all(request.as_bytes()).await.expect("send");
    let (mut taken, begun, mut piece) = (0, Instant::now(), vec![0; 1 << 20]);
    let mut pace = tokio::time::interval(Duration::from_millis(90));
    while taken < content.size {
        let read = slow.read(&mut piece).await.expect("it goes on");
        assert!(read > 0, "cut off after {taken} bytes and {:?}", begun.elapsed());
        taken += read as u64;
        if begun.elapsed() < Duration::from_secs(5) {
            pace.tick().await;
        }
    }
    assert!(begun.elapsed() > Duration::from_secs(4));
}
