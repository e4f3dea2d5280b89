//! HTTP/2 from who means no good: what a library would never send.

use std::time::{Duration, Instant};

use bytes::Bytes;
use larder_harness::{Authority, Node};
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;
use tokio_rustls::client::TlsStream;

use crate::client::{
    CONTINUATION, DATA, END_HEADERS, END_STREAM, Frames, GOAWAY, HEADERS, RESET, SETTINGS, connect, frame, literal, packed, request,
};
use crate::tls::node;

const WINDOW: u32 = 65_535;
const PATIENCE: Duration = Duration::from_secs(30);
const MAX_CONCURRENT_STREAMS: u16 = 3;
const MAX_HEADER_LIST_SIZE: u16 = 6;

async fn begin(node: &Node, authority: &Authority, window: u32) -> Frames<TlsStream<TcpStream>> {
    let stream = connect(&node.address(), authority, "h2", None).await.expect("a handshake");
    Frames::begin(stream, window).await.expect("a beginning")
}

async fn others_are_served(node: &Node, authority: &Authority) {
    let stream = connect(&node.address(), authority, "h2", None).await.expect("a handshake");
    assert_eq!(request(stream, "GET", "/v2/", Bytes::new()).await.expect("an answer").0, 200);
}

/// Pushes a blob that no window holds; its address.
async fn large_blob(node: &Node, authority: &Authority) -> String {
    let content = Bytes::from(vec![7; 8 << 20]);
    let digest = larder_harness::sha256(&content);
    let stream = connect(&node.address(), authority, "http/1.1", None).await.expect("a handshake");
    let (_, headers, _) = request(stream, "POST", "/v2/a/blobs/uploads/", Bytes::new()).await.expect("an answer");
    let location = headers["location"].to_str().expect("text").to_owned();
    let stream = connect(&node.address(), authority, "http/1.1", None).await.expect("a handshake");
    assert_eq!(request(stream, "PUT", &format!("{location}?digest={digest}"), content).await.expect("an answer").0, 201);
    format!("/v2/a/blobs/{digest}")
}

#[tokio::test]
async fn s18_streams_and_headers_are_bounded_and_clients_are_told() {
    let authority = Authority::new("ca");
    let node = node(&authority, "node", &[]).await;
    let mut frames = begin(&node, &authority, WINDOW).await;
    let (kind, _, payload) = frames.receive().await.expect("the server begins with its settings");
    assert_eq!(kind, SETTINGS);
    let setting = |id: u16| {
        let found = payload.chunks(6).find(|entry| entry[..2] == id.to_be_bytes());
        found.map(|entry| u32::from_be_bytes([entry[2], entry[3], entry[4], entry[5]]))
    };
    assert!(setting(MAX_CONCURRENT_STREAMS).is_some_and(|streams| streams <= 128));
    assert!(setting(MAX_HEADER_LIST_SIZE).is_some_and(|size| size <= 64 << 10));
    // What has more headers than that is refused, and the connection goes on.
    let mut headers = packed("GET", "/v2/");
    (0..60).for_each(|_| literal(&mut headers, "x", &"y".repeat(1000)));
    let (first, rest) = headers.split_at(16_000);
    frames.send(HEADERS, END_STREAM, 1, first).await.expect("send");
    let parts: Vec<_> = rest.chunks(16_000).collect();
    for (number, part) in parts.iter().enumerate() {
        let flags = if number + 1 == parts.len() { END_HEADERS } else { 0 };
        frames.send(CONTINUATION, flags, 1, part).await.expect("send");
    }
    let answered = async {
        loop {
            let (kind, stream, _) = frames.receive().await.expect("the connection stands");
            if stream == 1 && (kind == HEADERS || kind == RESET) {
                return;
            }
        }
    };
    tokio::time::timeout(PATIENCE, answered).await.expect("it is refused");
    others_are_served(&node, &authority).await;
}

#[tokio::test]
async fn s18_rapid_reset_ends_the_connection_and_nobody_elses() {
    let authority = Authority::new("ca");
    let node = node(&authority, "node", &[]).await;
    let path = large_blob(&node, &authority).await;
    let frames = begin(&node, &authority, 0).await;
    let (reader, mut writer) = tokio::io::split(frames.0);
    // What the server says is read, or it would wait for that and not for us.
    let closed = tokio::spawn(async move { Frames(tokio::io::join(reader, tokio::io::sink())).until_closed(2 * PATIENCE).await.1 });
    let headers = packed("GET", &path);
    let mut sent = 0;
    let begun = Instant::now();
    // Each is given up at once; a server that bears it would get a million.
    while sent < 1_000_000 && begun.elapsed() < PATIENCE {
        let id = 1 + 2 * sent;
        let pair = [frame(HEADERS, END_HEADERS | END_STREAM, id, &headers), frame(RESET, 0, id, &8u32.to_be_bytes())].concat();
        if writer.write_all(&pair).await.is_err() || writer.flush().await.is_err() {
            break;
        }
        sent += 1;
        if sent % 500 == 0 {
            others_are_served(&node, &authority).await;
        }
    }
    assert!(sent < 100_000, "{sent} requests were given up on one connection");
    drop(writer);
    assert!(closed.await.expect("not cancelled"), "it is closed");
    others_are_served(&node, &authority).await;
}

#[tokio::test]
async fn s18_a_flood_of_continuations_ends_the_connection() {
    let authority = Authority::new("ca");
    let node = node(&authority, "node", &[]).await;
    let before = node.memory_bytes();
    let mut frames = begin(&node, &authority, WINDOW).await;
    frames.send(HEADERS, END_STREAM, 1, &packed("GET", "/v2/")).await.expect("send");
    let mut part = Vec::new();
    literal(&mut part, "x", &"y".repeat(10_000));
    let mut sent = 0;
    while sent < 10_000 && frames.send(CONTINUATION, 0, 1, &part).await.is_ok() {
        sent += 1;
    }
    assert!(sent < 10_000, "100 MB of headers were taken");
    assert!(node.memory_bytes() < before + (32 << 20));
    others_are_served(&node, &authority).await;
}

#[tokio::test]
async fn s18_a_flood_of_empty_frames_ends_the_upload() {
    let authority = Authority::new("ca");
    let node = node(&authority, "node", &[]).await;
    let mut frames = begin(&node, &authority, WINDOW).await;
    let stream = connect(&node.address(), &authority, "http/1.1", None).await.expect("a handshake");
    let (_, answer, _) = request(stream, "POST", "/v2/a/blobs/uploads/", Bytes::new()).await.expect("an answer");
    let headers = packed("PATCH", answer["location"].to_str().expect("text"));
    frames.send(HEADERS, END_HEADERS, 1, &headers).await.expect("send");
    let flood = frame(DATA, 0, 1, &[]).repeat(100);
    let (reader, mut writer) = tokio::io::split(frames.0);
    let flooding = tokio::spawn(async move {
        let begun = Instant::now();
        while begun.elapsed() < PATIENCE && writer.write_all(&flood).await.is_ok() && writer.flush().await.is_ok() {
            tokio::task::yield_now().await;
        }
    });
    let mut reader = Frames(tokio::io::join(reader, tokio::io::sink()));
    let refused = async {
        loop {
            match reader.receive().await {
                // The answer to the stream, or the end of all of them.
                Ok((HEADERS | RESET | GOAWAY, _, _)) | Err(_) => return,
                Ok(_) => {}
            }
        }
    };
    tokio::time::timeout(PATIENCE, refused).await.expect("it is refused");
    flooding.abort();
    others_are_served(&node, &authority).await;
}

#[tokio::test]
async fn s18_who_does_not_take_an_answer_is_dropped_and_who_says_nothing_too() {
    let authority = Authority::new("ca");
    let limits = [("LARDER_HTTP__IDLE_TIMEOUT", "2s"), ("LARDER_HTTP__HEADER_TIMEOUT", "1s")];
    let node = node(&authority, "node", &limits).await;
    let path = large_blob(&node, &authority).await;
    let begun = Instant::now();
    // A window of nothing: the answer can never be sent, however long the connection is kept alive.
    let mut stalls = begin(&node, &authority, 0).await;
    stalls.send(HEADERS, END_HEADERS | END_STREAM, 1, &packed("GET", &path)).await.expect("send");
    let mut silent = begin(&node, &authority, WINDOW).await;
    let mute = connect(&node.address(), &authority, "h2", None).await.expect("a handshake");
    let mut mute = Frames(mute);
    let plain = TcpStream::connect(node.address()).await.expect("connect");
    let mut plain = Frames(plain);
    for closed in [
        stalls.until_closed(PATIENCE).await.1,
        silent.until_closed(PATIENCE).await.1,
        mute.until_closed(PATIENCE).await.1,
        plain.until_closed(PATIENCE).await.1,
    ] {
        assert!(closed, "still open after {:?}", begun.elapsed());
    }
    assert!(begun.elapsed() >= Duration::from_secs(1));
    others_are_served(&node, &authority).await;
}
