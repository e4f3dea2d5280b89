//! F45: a node that is told to stop while transfers are under way.

use std::time::{Duration, Instant};

use larder_harness::registry::with_digest;
use larder_harness::{Content, Node, Registry, sha256, wait_until};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::builder;

/// More than the sockets between a node and a client that does not read can hold.
const LARGE: u64 = 64 << 20;
const SOON: Duration = Duration::from_secs(20);
/// From the signal to the end, whatever clients do; the default of `http.shutdown_grace` and a little.
const STOP_MAX: Duration = Duration::from_secs(40);

async fn connect(node: &Node) -> TcpStream {
    TcpStream::connect(node.address()).await.expect("connect")
}

/// Begins a request whose body has `size` bytes.
async fn begin(node: &Node, method: &str, path: &str, size: usize) -> TcpStream {
    let mut stream = connect(node).await;
    let head = format!("{method} {path} HTTP/1.1\r\nhost: x\r\ncontent-length: {size}\r\nconnection: close\r\n\r\n");
    stream.write_all(head.as_bytes()).await.expect("send a head");
    stream
}

/// Tells the node to stop, and waits until it takes no more connections.
async fn told_to_stop(node: &Node) {
    node.tell_to_stop();
    wait_until("no more connections are taken", SOON, async || TcpStream::connect(node.address()).await.is_err().then_some(())).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn f45_transfers_under_way_finish_and_nothing_new_is_begun() {
    let mut node = builder().start().await;
    let registry = Registry::new(node.url());
    let content = Content::new(1, LARGE);
    registry.try_push_blob("team/app", content).await.expect("push");
    // One that stays open and asks for nothing, an upload that is half done, a download whose client is slow.
    let mut idle = connect(&node).await;
    idle.write_all(b"GET /v2/ HTTP/1.1\r\nhost: x\r\n\r\n").await.expect("ask");
    assert!(idle.read(&mut [0; 1024]).await.expect("an answer") > 0);
    let bytes = Content::new(2, 3 << 20).bytes();
    let path = with_digest("/v2/team/app/blobs/uploads/", &sha256(&bytes));
    let mut upload = begin(&node, "POST", &path, bytes.len()).await;
    upload.write_all(&bytes[..1 << 20]).await.expect("send a part");
    let mut download = begin(&node, "GET", &format!("/v2/team/app/blobs/{}", content.digest()), 0).await;
    let mut downloaded = vec![0; 1000];
    download.read_exact(&mut downloaded).await.expect("the first bytes");

    let begin = Instant::now();
    told_to_stop(&node).await;
    assert_eq!(idle.read(&mut [0; 10]).await.expect("closed in order"), 0, "a connection that rests is closed");
    assert!(node.is_running(), "it went while transfers were under way");
    upload.write_all(&bytes[1 << 20..]).await.expect("send the rest");
    let mut answer = Vec::new();
    upload.read_to_end(&mut answer).await.expect("the answer to the upload");
    assert!(answer.starts_with(b"HTTP/1.1 201"), "{}", String::from_utf8_lossy(&answer));
    download.read_to_end(&mut downloaded).await.expect("the rest of the download");
    let body = downloaded.windows(4).position(|part| part == b"\r\n\r\n").expect("the end of the head") + 4;
    assert_eq!(sha256(&downloaded[body..]), content.digest());
    let status = node.ended(STOP_MAX).await;
    assert!(status.success(), "{status}\n{}", node.log_tail());
    assert!(begin.elapsed() < STOP_MAX, "it took {:?}", begin.elapsed());

    node.start().await;
    assert_eq!(registry.pull_blob("team/app", &sha256(&bytes)).await.expect("pull").digest, sha256(&bytes), "I1");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn f45_what_does_not_end_in_time_is_dropped_and_an_upload_goes_on_where_it_stood() {
    let mut node = builder().env("LARDER_HTTP__SHUTDOWN_GRACE", "1s").start().await;
    let registry = Registry::new(node.url());
    let bytes = Content::new(3, 2_000_000).bytes();
    let location = registry.open_upload("team/app").await;
    let half = bytes.len() / 2;
    let mut upload = begin(&node, "PATCH", &location, bytes.len()).await;
    upload.write_all(&bytes[..half]).await.expect("send a part");
    let stands_at = async |registry: &Registry| {
        let range = registry.get(&location).await.expect(204, "ask where it stands").header("range").to_owned();
        range.trim_start_matches("0-").parse::<usize>().expect("a range") + 1
    };
    // Of what is on the way, so much at least was taken.
    wait_until("the node has taken a batch", SOON, async || (stands_at(&registry).await > 1).then_some(())).await;

    let begin = Instant::now();
    told_to_stop(&node).await;
    let status = node.ended(STOP_MAX).await;
    assert!(status.success(), "{status}\n{}", node.log_tail());
    assert!(begin.elapsed() < Duration::from_secs(15), "the grace is 1 s, and it took {:?}", begin.elapsed());
    assert!(upload.write_all(&bytes[half..]).await.is_err() || upload.read(&mut [0; 10]).await.is_ok_and(|read| read == 0));

    node.start().await;
    let offset = stands_at(&registry).await;
    assert_eq!(offset, half, "everything that was sent is there");
    let range = format!("{offset}-{}", bytes.len() - 1);
    let location = with_digest(&location, &sha256(&bytes));
    registry.request("PUT", &location, &[("content-range", &range)], bytes.slice(offset..)).await.expect(201, "go on and finish");
    assert_eq!(registry.pull_blob("team/app", &sha256(&bytes)).await.expect("pull").digest, sha256(&bytes));
}
