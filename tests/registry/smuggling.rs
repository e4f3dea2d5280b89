//! S19: requests that two readers could cut differently, and hosts that are not ours.

use crate::node;
use larder_harness::{Node, http, sha256};

async fn raw(node: &Node, request: &str) -> String {
    String::from_utf8_lossy(&http::raw(&node.url(), request.as_bytes()).await.expect("connect and send")).into_owned()
}

fn statuses(answer: &str) -> Vec<&str> {
    answer.match_indices("HTTP/1.1 ").map(|(at, found)| &answer[at + found.len()..at + found.len() + 3]).collect()
}

#[tokio::test]
async fn s19_a_body_with_two_lengths_is_never_taken_for_a_second_request() {
    let (node, registry) = node().await;
    let hidden = "GET /v2/_catalog HTTP/1.1\r\nhost: x\r\n\r\n";
    let both = format!(
        "POST /v2/a/blobs/uploads/ HTTP/1.1\r\nhost: x\r\ncontent-length: 5\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n{hidden}"
    );
    let twice =
        format!("POST /v2/a/blobs/uploads/ HTTP/1.1\r\nhost: x\r\ncontent-length: 0\r\ncontent-length: {}\r\n\r\n{hidden}", hidden.len());
    let signed = format!("POST /v2/a/blobs/uploads/ HTTP/1.1\r\nhost: x\r\ncontent-length: +0\r\n\r\n{hidden}");
    let list = format!("POST /v2/a/blobs/uploads/ HTTP/1.1\r\nhost: x\r\ncontent-length: 0, 5\r\n\r\n{hidden}");
    let odd = format!("POST /v2/a/blobs/uploads/ HTTP/1.1\r\nhost: x\r\ntransfer-encoding: xchunked\r\n\r\n{hidden}");
    for request in [both, twice, signed, list, odd] {
        let answer = raw(&node, &request).await;
        assert!(!answer.contains("\"repositories\""), "the hidden request was answered:\n{request}\n{answer}");
        assert!(statuses(&answer).len() <= 1, "{request}\n{answer}");
    }
    registry.get("/v2/").await.expect(200, "the node goes on");
}

#[tokio::test]
async fn s19_heads_that_are_no_http_are_refused() {
    let (node, registry) = node().await;
    let requests = [
        "GET /v2/ HTTP/1.1\r\nhost: x\r\nbad header: y\r\n\r\n".to_owned(),
        "GET /v2/ HTTP/1.1\r\nhost: x\r\n folded: y\r\n\r\n".to_owned(),
        "GET /v2/\0 HTTP/1.1\r\nhost: x\r\n\r\n".to_owned(),
        "GET /v2/ HTTP/9.9\r\nhost: x\r\n\r\n".to_owned(),
        format!("GET /v2/ HTTP/1.1\r\nhost: x\r\nlong: {}\r\n\r\n", "y".repeat(2 << 20)),
        format!("GET /v2/ HTTP/1.1\r\nhost: x\r\n{}\r\n", "a: b\r\n".repeat(10_000)),
        "\x16\x03\x01\x02\x00\x01\x00\x01\u{fc}\x03\x03".to_owned() + "\r\n\r\n",
    ];
    for request in requests {
        let shown = &request[..request.len().min(80)];
        // A node that closes before all is sent breaks the connection, which is a refusal too.
        let Ok(answer) = http::raw(&node.url(), request.as_bytes()).await else { continue };
        let answer = String::from_utf8_lossy(&answer);
        assert!(answer.is_empty() || answer.starts_with("HTTP/1.1 4"), "{shown:?}: {answer}");
    }
    registry.get("/v2/").await.expect(200, "the node goes on");
}

#[tokio::test]
async fn s19_the_address_of_an_upload_never_comes_from_the_request() {
    let (node, _registry) = node().await;
    let requests = [
        "POST /v2/a/blobs/uploads/ HTTP/1.1\r\nhost: evil.example\r\ncontent-length: 0\r\nconnection: close\r\n\r\n",
        "POST http://evil.example/v2/a/blobs/uploads/ HTTP/1.1\r\nhost: evil.example\r\ncontent-length: 0\r\nconnection: close\r\n\r\n",
        "POST /v2/a/blobs/uploads/ HTTP/1.1\r\nhost: x\r\nx-forwarded-host: evil.example\r\nx-forwarded-proto: https\r\nforwarded: host=evil.example\r\ncontent-length: 0\r\nconnection: close\r\n\r\n",
    ];
    for request in requests {
        let answer = raw(&node, request).await;
        assert!(!answer.contains("evil.example"), "{request}\n{answer}");
        let line = answer.lines().find(|line| line.to_lowercase().starts_with("location:"));
        assert!(line.is_none_or(|line| line[9..].trim().starts_with("/v2/a/blobs/uploads/")), "{answer}");
    }
    let node = Node::builder(env!("CARGO_BIN_EXE_larder")).name("public").archive("none");
    let node = node.env("LARDER_HTTP__PUBLIC_URL", "https://registry.example.org").start().await;
    let answer = raw(&node, requests[0]).await.to_lowercase();
    assert!(answer.contains("location: https://registry.example.org/v2/a/blobs/uploads/"), "{answer}");
}

#[tokio::test]
async fn s18_a_head_that_never_ends_is_cut_off_while_others_are_served() {
    let node = Node::builder(env!("CARGO_BIN_EXE_larder")).archive("none").env("LARDER_HTTP__HEADER_TIMEOUT", "1s").start().await;
    let begin = std::time::Instant::now();
    let url = node.url();
    let slow = tokio::spawn(async move { http::raw(&url, b"GET /v2/ HTTP/1.1\r\nhost: x\r\nslow: ").await });
    let registry = larder_harness::Registry::new(node.url());
    registry.get(&format!("/v2/a/blobs/{}", sha256(b""))).await.expect(404, "another client");
    slow.await.expect("not cancelled").expect("connect and send");
    assert!(begin.elapsed().as_secs() < 10, "the connection stayed open for {:?}", begin.elapsed());
}
