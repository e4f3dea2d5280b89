//! What stands before the bucket: packs are read there, and from the bucket when it fails.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use larder_harness::s3::Operation;
use larder_harness::{CountingS3, Image, Node};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

use super::packs::run;
use super::{flush, node, registry};

/// Serves ranges of a folder's files, until it is told to refuse; to whoever signed what he asks for, when it has a key to check that by.
struct Cdn {
    url: String,
    served: Arc<AtomicU64>,
    refuses: Arc<AtomicU64>,
    /// Seconds that its clock is ahead.
    ahead: Arc<AtomicU64>,
}

/// Whom it trusts: the id of a key, and the file that has it.
type Trusted = Option<(&'static str, PathBuf)>;

impl Cdn {
    async fn before(folder: PathBuf) -> Self {
        Self::trusting(folder, None).await
    }

    async fn trusting(folder: PathBuf, trusted: Trusted) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let url = format!("http://{}", listener.local_addr().expect("its address"));
        let (served, refuses, ahead) = (Arc::<AtomicU64>::default(), Arc::<AtomicU64>::default(), Arc::<AtomicU64>::default());
        let it = Self { url: url.clone(), served: served.clone(), refuses: refuses.clone(), ahead: ahead.clone() };
        tokio::spawn(async move {
            while let Ok((mut stream, _)) = listener.accept().await {
                let refuses = refuses.load(Ordering::SeqCst) > 0;
                let answered = if refuses { None } else { serve(&mut stream, &folder, &url, &trusted, ahead.load(Ordering::SeqCst)).await };
                match answered {
                    Some(true) => _ = served.fetch_add(1, Ordering::SeqCst),
                    Some(false) => (),
                    None => _ = stream.write_all(b"HTTP/1.1 503 No\r\nContent-Length: 0\r\nConnection: close\r\n\r\n").await,
                }
            }
        });
        it
    }
}

/// Whether the bytes were given; `None`: it can't.
async fn serve(stream: &mut TcpStream, folder: &Path, url: &str, trusted: &Trusted, ahead: u64) -> Option<bool> {
    let mut head = Vec::new();
    while !head.windows(4).any(|window| window == b"\r\n\r\n") {
        stream.read_buf(&mut head).await.ok().filter(|read| *read > 0)?;
    }
    let head = String::from_utf8(head).ok()?;
    let target = head.lines().next()?.split(' ').nth(1)?;
    let (path, query) = target.split_once('?').unwrap_or((target, ""));
    let now = SystemTime::now() + Duration::from_secs(ahead);
    if let Some((id, file)) = trusted
        && let Err(refusal) = check(&format!("{url}{path}"), query, id, file, now)
    {
        let body = format!("<?xml version=\"1.0\" encoding=\"UTF-8\"?><Error>{refusal}</Error>");
        let told = format!("Date: {}\r\nContent-Type: text/xml\r\nContent-Length: {}", http_date(now), body.len());
        stream.write_all(format!("HTTP/1.1 403 Forbidden\r\n{told}\r\nConnection: close\r\n\r\n{body}").as_bytes()).await.ok()?;
        return Some(false);
    }
    let range = head.lines().find_map(|line| line.to_lowercase().strip_prefix("range: bytes=").map(str::to_owned))?;
    let (from, to) = range.split_once('-')?;
    let (from, to): (usize, usize) = (from.parse().ok()?, to.parse().ok()?);
    let bytes = std::fs::read(folder.join(path.trim_start_matches('/'))).ok()?;
    let part = bytes.get(from..=to)?;
    let told = format!("Content-Range: bytes {from}-{to}/{}\r\nContent-Length: {}", bytes.len(), part.len());
    stream.write_all(format!("HTTP/1.1 206 Partial Content\r\n{told}\r\nConnection: close\r\n\r\n").as_bytes()).await.ok()?;
    stream.write_all(part).await.ok()?;
    Some(true)
}

/// What CloudFront says of a signed URL that is not good, and by what it tells: the signature by OpenSSL.
fn check(url: &str, query: &str, id: &str, file: &Path, now: SystemTime) -> Result<(), &'static str> {
    let denied = "<Code>AccessDenied</Code><Message>Access denied</Message>";
    let value = |name: &str| query.split('&').find_map(|part| part.strip_prefix(name)?.strip_prefix('=')).unwrap_or("");
    match value("Key-Pair-Id") {
        "" => return Err("<Code>MissingKey</Code><Message>Missing Key-Pair-Id query parameter or cookie value</Message>"),
        named if named != id => return Err("<Code>InvalidKey</Code><Message>Unknown Key</Message>"),
        _ => {}
    }
    let expires: u64 = value("Expires").parse().map_err(|_| denied)?;
    if value("Hash-Algorithm") != "SHA256" || expires <= now.duration_since(UNIX_EPOCH).expect("after 1970").as_secs() {
        return Err(denied);
    }
    let scratch = tempfile::tempdir().expect("a folder");
    let place = |name: &str| scratch.path().join(name).to_str().expect("UTF-8").to_owned();
    let signature = value("Signature").replace('-', "+").replace('_', "=").replace('~', "/");
    std::fs::write(place("text"), signature).expect("write");
    std::fs::write(
        place("policy"),
        format!("{{\"Statement\":[{{\"Resource\":\"{url}\",\"Condition\":{{\"DateLessThan\":{{\"AWS:EpochTime\":{expires}}}}}}}]}}"),
    )
    .expect("write");
    let openssl = |arguments: &[&str]| {
        let ran = Command::new("openssl").args(arguments).output().expect("openssl: `packaging/setup test` installs it");
        ran.status.success()
    };
    let is_good = openssl(&["base64", "-d", "-A", "-in", &place("text"), "-out", &place("signature")])
        && openssl(&["dgst", "-sha256", "-verify", file.to_str().expect("UTF-8"), "-signature", &place("signature"), &place("policy")]);
    if is_good { Ok(()) } else { Err(denied) }
}

fn http_date(time: SystemTime) -> String {
    let seconds = time.duration_since(UNIX_EPOCH).expect("after 1970").as_secs();
    run("date", &["-u", "-d", &format!("@{seconds}"), "+%a, %d %b %Y %H:%M:%S GMT"]).trim().to_owned()
}

/// A pair of keys, as people are told to make it: the private one, and what is given to the CDN.
fn pair(folder: &Path, name: &str, make: &[&str]) -> (String, PathBuf) {
    let (private, public) = (folder.join(name), folder.join(format!("{name}.pub")));
    let text = |path: &Path| path.to_str().expect("UTF-8").to_owned();
    run("openssl", &[make, &["-out", &text(&private)]].concat());
    run("openssl", &["pkey", "-in", &text(&private), "-pubout", "-out", &text(&public)]);
    run("chmod", &["600", &text(&private)]);
    (text(&private), public)
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

/// A bucket with two images in it.
async fn filled(s3: &CountingS3) -> Vec<Image> {
    let mut first = node("first").s3(s3, "fleet").start().await;
    let images: Vec<Image> = (0..2).map(|seed| Image::from_seed(670 + seed, &[400_000, 70_000])).collect();
    for (number, image) in images.iter().enumerate() {
        registry(&first).push_image("team/app", &format!("v{number}"), image).await;
        assert_eq!(flush(&first).await, 1);
    }
    first.lose_disk();
    images
}

/// A node that was restored from it by a CDN, and has served all of it; the requests that it made of the CDN, and how many of them the bucket answered.
async fn served(s3: &CountingS3, cdn: &Cdn, key: Option<(&str, &str)>, images: &[Image]) -> (Node, u64, u64) {
    let mut builder = node("fresh").s3(s3, "fleet").env("LARDER_ARCHIVE__READ_URL", &cdn.url);
    if let Some((id, file)) = key {
        builder = builder.env("LARDER_ARCHIVE__READ_URL_KEY_ID", id).env("LARDER_ARCHIVE__READ_URL_KEY_FILE", file);
    }
    let fresh = builder.start().await;
    fresh.cli(&["restore", "--metadata-only", &s3.url("fleet")]).await.expect("restore");
    for (number, image) in images.iter().enumerate() {
        registry(&fresh).pull_image("team/app", &format!("v{number}"), image).await;
    }
    let cost = fresh.cli_json(&["archive", "cost"]).await;
    let count = |name: &str| cost[name].as_u64().expect("a number");
    let counts = (count("front_requests"), count("front_failures"));
    (fresh, counts.0, counts.1)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cdn_that_asks_who_it_is_gets_urls_that_are_signed() {
    let s3 = CountingS3::start().await;
    let keys = tempfile::tempdir().expect("a folder");
    let images = filled(&s3).await;
    let elliptic = pair(keys.path(), "elliptic", &["ecparam", "-name", "prime256v1", "-genkey", "-noout"]);
    let rsa = pair(keys.path(), "rsa", &["genrsa", "-traditional"]);
    for (private, public) in [&elliptic, &rsa] {
        let cdn = Cdn::trusting(s3.bucket_dir(), Some(("K2JCJMDEHXQW5F", public.clone()))).await;
        s3.forget();
        let (_fresh, requests, failures) = served(&s3, &cdn, Some(("K2JCJMDEHXQW5F", private)), &images).await;
        // The ends of two packs, and three blobs of each; the mark is asked of the bucket.
        assert_eq!((requests, failures, s3.count(Operation::Get)), (8, 0, 1), "{:?}", s3.requests());
    }
    // Whoever can't say who he is gets all of it from the bucket, and is told once what to do.
    let cdn = Cdn::trusting(s3.bucket_dir(), Some(("K2JCJMDEHXQW5F", rsa.1.clone()))).await;
    for (key, advice) in [
        (None, "set archive.read_url_key_id and archive.read_url_key_file"),
        (Some(("K1", rsa.0.as_str())), "archive.read_url_key_id is no key that the distribution trusts"),
        (Some(("K2JCJMDEHXQW5F", elliptic.0.as_str())), "archive.read_url_key_file is not the private half"),
    ] {
        let (fresh, requests, failures) = served(&s3, &cdn, key, &images).await;
        assert_eq!((requests, failures), (8, 8), "{advice}");
        let log = fresh.log_tail();
        // For the bucket that it has, and for the one that it was restored from.
        assert!((1..=2).contains(&log.matches(advice).count()), "{advice}: {log}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn f14_what_is_signed_for_a_cdn_is_signed_by_its_time() {
    let s3 = CountingS3::start().await;
    let keys = tempfile::tempdir().expect("a folder");
    let images = filled(&s3).await;
    let (private, public) = pair(keys.path(), "key", &["ecparam", "-name", "prime256v1", "-genkey", "-noout"]);
    let cdn = Cdn::trusting(s3.bucket_dir(), Some(("K1", public))).await;
    cdn.ahead.store(3 * 3600, Ordering::SeqCst);
    s3.set_clock_ahead(3 * 3600);
    let (_fresh, requests, failures) = served(&s3, &cdn, Some(("K1", &private)), &images).await;
    // What had ended by then is asked for anew, and nothing of it from the bucket.
    assert_eq!((failures, cdn.served.load(Ordering::SeqCst)), (0, 8));
    // Each at most twice: several are under way when the first is refused.
    assert!((8..=16).contains(&requests), "{requests}");
}
