//! What stands before the bucket: packs are read there, and from the bucket when it fails.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use larder_harness::s3::Operation;
use larder_harness::{CountingS3, Image};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

use super::{flush, node, registry};

/// Serves ranges of a folder's files, until it is told to refuse.
struct Cdn {
    url: String,
    served: Arc<AtomicU64>,
    refuses: Arc<AtomicU64>,
}

impl Cdn {
    async fn before(folder: PathBuf) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let url = format!("http://{}", listener.local_addr().expect("its address"));
        let (served, refuses) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicU64::new(0)));
        let (serves, refused) = (served.clone(), refuses.clone());
        tokio::spawn(async move {
            while let Ok((mut stream, _)) = listener.accept().await {
                let answered = if refused.load(Ordering::SeqCst) == 0 { serve(&mut stream, &folder).await } else { None };
                match answered {
                    Some(()) => _ = serves.fetch_add(1, Ordering::SeqCst),
                    None => _ = stream.write_all(b"HTTP/1.1 503 No\r\nContent-Length: 0\r\nConnection: close\r\n\r\n").await,
                }
            }
        });
        Self { url, served, refuses }
    }
}

async fn serve(stream: &mut TcpStream, folder: &Path) -> Option<()> {
    let mut head = Vec::new();
    while !head.windows(4).any(|window| window == b"\r\n\r\n") {
        stream.read_buf(&mut head).await.ok().filter(|read| *read > 0)?;
    }
    let head = String::from_utf8(head).ok()?;
    let key = head.lines().next()?.split(' ').nth(1)?.trim_start_matches('/').to_owned();
    let range = head.lines().find_map(|line| line.to_lowercase().strip_prefix("range: bytes=").map(str::to_owned))?;
    let (from, to) = range.split_once('-')?;
    let (from, to): (usize, usize) = (from.parse().ok()?, to.parse().ok()?);
    let bytes = std::fs::read(folder.join(key)).ok()?;
    let part = bytes.get(from..=to)?;
    let told = format!("Content-Range: bytes {from}-{to}/{}\r\nContent-Length: {}", bytes.len(), part.len());
    stream.write_all(format!("HTTP/1.1 206 Partial Content\r\n{told}\r\nConnection: close\r\n\r\n").as_bytes()).await.ok()?;
    stream.write_all(part).await.ok()
}

#[tokio::test(flavor = "multi_thread")]
async fn packs_are_read_before_the_bucket_and_from_the_bucket_when_that_fails() {
    let s3 = CountingS3::start().await;
    let cdn = Cdn::before(s3.bucket_dir()).await;
    let mut first = node("first").s3(&s3, "fleet").start().await;
    let images: Vec<Image> = (0..2).map(|seed| Image::from_seed(660 + seed, &[400_000, 70_000])).collect();
    for (number, image) in images.iter().enumerate() {
        registry(&first).push_image("team/app", &format!("v{number}"), image).await;
        assert_eq!(flush(&first).await, 1);
    }
    first.lose_disk();
    s3.forget();
    let restored = async |name: &str| {
        let fresh = node(name).s3(&s3, "fleet").env("LARDER_ARCHIVE__READ_URL", &cdn.url).start().await;
        fresh.cli(&["restore", "--metadata-only", &s3.url("fleet")]).await.expect("restore");
        for (number, image) in images.iter().enumerate() {
            registry(&fresh).pull_image("team/app", &format!("v{number}"), image).await;
        }
        fresh
    };
    let fresh = restored("fresh").await;
    // The mark is asked of the bucket; the ends of two packs and three blobs of each are not.
    assert_eq!((s3.count(Operation::Get), cdn.served.load(Ordering::SeqCst)), (1, 2 + 6), "{:?}", s3.requests());
    let cost = fresh.cli_json(&["archive", "cost"]).await;
    assert_eq!((cost["front_requests"].as_u64(), cost["front_failures"].as_u64()), (Some(8), Some(0)), "{cost}");
    cdn.refuses.store(1, Ordering::SeqCst);
    s3.forget();
    let fresh = restored("again").await;
    assert_eq!((s3.count(Operation::Get), cdn.served.load(Ordering::SeqCst)), (1 + 8, 8), "{:?}", s3.requests());
    let cost = fresh.cli_json(&["archive", "cost"]).await;
    assert_eq!((cost["front_requests"].as_u64(), cost["front_failures"].as_u64()), (Some(8), Some(8)), "{cost}");
    assert!(fresh.cli(&["archive", "cost"]).await.expect("a table").contains("8 requests, 8 of which the bucket answered"));
}
