//! Ranges of packs by another address than the bucket's: what stands before it and keeps copies near (`archive.read_url`).
//!
//! Everything is written to the bucket, listed there, and read there when the other address fails, or breaks off: then from the byte that came last. Names of packs and checkpoints are used
//! once, so no copy is ever out of date; whose bucket it is, is always asked of the bucket. What comes is believed no more than what the bucket gives.
//!
//! Where it wants to know who asks, each request is signed (`signed`), by the time that the bucket goes by; a refusal whose time is another corrects that, and is asked once more (F14).

use std::fmt::{self, Write as _};
use std::ops::Range;
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use futures_util::future::BoxFuture;
use futures_util::stream::{self, StreamExt};
use http::{Request, Response, StatusCode, header};
use http_body_util::combinators::BoxBody;
use http_body_util::{BodyExt, BodyStream, Empty, Limited};
use hyper_rustls::{HttpsConnector, HttpsConnectorBuilder};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;

use crate::config::{Prices, Tier};

use super::bucket::{Bucket, Chunks, Object, Page};
use super::clock::Clock;
use super::ledger::Ledger;
use super::signed::{self, ReadUrl};
use super::thaw::Seen;
use super::{Error, keys};

/// An answer must begin by then, and go on by then.
const PATIENCE: Duration = Duration::from_secs(15);
/// Most bytes that are read of a refusal.
const REFUSAL_SIZE_MAX: usize = 16 << 10;
/// A request that was signed by a clock so far behind is worth another.
const SKEW_MIN: Duration = Duration::from_secs(60);

/// See the module.
pub struct Front {
    inner: Arc<dyn Bucket>,
    url: ReadUrl,
    client: Client<HttpsConnector<HttpConnector>, Empty<Bytes>>,
    clock: Clock,
    ledger: Ledger,
    /// The last refusal that a person was told of.
    told: Mutex<&'static str>,
}

impl fmt::Debug for Front {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Front({} of {:?})", self.url.base, self.inner)
    }
}

impl Front {
    /// The URL's base and a key are an object's address. Asks for nothing.
    ///
    /// # Errors
    /// The system's certificates can't be read.
    pub(super) fn new(inner: Arc<dyn Bucket>, url: &ReadUrl, clock: Clock, ledger: Ledger) -> Result<Self, Error> {
        let provider = rustls::crypto::aws_lc_rs::default_provider();
        let builder = HttpsConnectorBuilder::new().with_provider_and_native_roots(provider);
        let builder =
            builder.map_err(|source| Error::Io { doing: "read the system's certificates", path: "/etc/ssl/certs".into(), source })?;
        let client = Client::builder(TokioExecutor::new()).build(builder.https_or_http().enable_http1().build());
        Ok(Self { inner, url: url.clone(), client, clock, ledger, told: Mutex::new("") })
    }

    /// The bytes as they come, or why they don't.
    async fn ask(&self, key: &str, range: &Range<u64>) -> Result<Pieces, String> {
        let (mut answer, signed) = self.send(key, range).await?;
        if answer.status() == StatusCode::FORBIDDEN && self.url.signing.is_some() {
            if let Some(date) = answer.headers().get(header::DATE).and_then(|date| date.to_str().ok()) {
                self.clock.learn(date);
            }
            if self.clock.now().duration_since(signed).is_ok_and(|behind| behind > SKEW_MIN) {
                (answer, _) = self.send(key, range).await?;
            }
        }
        let found = answer.headers().get(header::CONTENT_RANGE).and_then(|found| found.to_str().ok()).unwrap_or("none").to_owned();
        if answer.status() != StatusCode::PARTIAL_CONTENT || !found.starts_with(&format!("bytes {}-{}/", range.start, range.end - 1)) {
            return Err(self.refusal(answer, &found).await);
        }
        let body = BodyStream::new(answer.into_body());
        Ok(body.filter_map(|frame| std::future::ready(frame.map(|frame| frame.into_data().ok()).transpose())).boxed())
    }

    /// An answer, and by what time it was asked for.
    async fn send(&self, key: &str, range: &Range<u64>) -> Result<(Response<Body>, SystemTime), String> {
        let now = self.clock.now();
        let mut url = format!("{}/{}", self.url.base, encoded(key));
        if let Some(signing) = &self.url.signing {
            url = signing.sign(&url, now)?;
        }
        let request = Request::get(url).header(header::RANGE, format!("bytes={}-{}", range.start, range.end - 1));
        let request = request.body(Empty::new()).map_err(|error| error.to_string())?;
        self.ledger.front_asked();
        let answer = tokio::time::timeout(PATIENCE, self.client.request(request)).await.map_err(|_| "no answer came".to_owned())?;
        let answer = answer.map_err(|error| error.to_string())?;
        Ok((answer.map(|body| body.map_err(|error| error.to_string()).boxed()), now))
    }

    /// What an answer says that is not what was asked for. Who can mend it is told once.
    async fn refusal(&self, answer: Response<Body>, found: &str) -> String {
        let status = answer.status();
        let why = format!("it answered {status} with range {found:?}");
        if status != StatusCode::FORBIDDEN {
            return why;
        }
        let body = tokio::time::timeout(PATIENCE, Limited::new(answer.into_body(), REFUSAL_SIZE_MAX).collect()).await;
        let body = body.ok().and_then(Result::ok).map(|body| body.to_bytes()).unwrap_or_default();
        let advice = signed::advice(self.url.signing.is_some(), &String::from_utf8_lossy(&body));
        if !advice.is_empty() && std::mem::replace(&mut *self.told.lock().expect("never held across a panic"), advice) != advice {
            tracing::warn!(url = self.url.base, "archive.read_url refuses what it is asked for, and the bucket is asked instead{advice}");
        }
        why
    }
}

/// A key as it stands in an URL: what is no plain letter of a path is escaped.
fn encoded(key: &str) -> String {
    key.bytes().fold(String::with_capacity(key.len()), |mut url, byte| {
        match byte {
            b'/' | b'-' | b'.' | b'_' | b'~' | b'0'..=b'9' | b'A'..=b'Z' | b'a'..=b'z' => url.push(byte.into()),
            _ => _ = write!(url, "%{byte:02X}"),
        }
        url
    })
}

/// An answer's.
type Body = BoxBody<Bytes, String>;
/// Bytes of an answer.
type Pieces = stream::BoxStream<'static, Result<Bytes, String>>;

/// A range on its way in.
struct Reading {
    inner: Arc<dyn Bucket>,
    ledger: Ledger,
    key: String,
    left: Range<u64>,
    from: From,
}

enum From {
    Front(Pieces),
    Bucket(Chunks),
}

impl Reading {
    async fn next(mut self) -> Result<Option<(Bytes, Self)>, Error> {
        if self.left.is_empty() {
            return Ok(None);
        }
        let why = match &mut self.from {
            From::Bucket(chunks) => match chunks.next().await {
                Some(bytes) => return bytes.map(|bytes| Some((bytes, self))),
                None => return Ok(None),
            },
            From::Front(pieces) => match tokio::time::timeout(PATIENCE, pieces.next()).await {
                Ok(Some(Ok(mut bytes))) => {
                    bytes.truncate(usize::try_from(self.left.end - self.left.start).unwrap_or(usize::MAX));
                    self.left.start += bytes.len() as u64;
                    self.ledger.received_from_front(bytes.len() as u64);
                    return Ok(Some((bytes, self)));
                }
                Ok(Some(Err(why))) => why,
                Ok(None) => "it ended too early".to_owned(),
                Err(_) => "nothing more came".to_owned(),
            },
        };
        failed(&self.ledger, &self.key, &why);
        let mut chunks = self.inner.get_range(&self.key, self.left.clone()).await?;
        let first = chunks.next().await.transpose()?;
        self.from = From::Bucket(chunks);
        Ok(first.map(|bytes| (bytes, self)))
    }
}

fn failed(ledger: &Ledger, key: &str, why: &str) {
    ledger.front_failed();
    tracing::info!(key, why, "archive.read_url did not give what it was asked for; the bucket is asked");
}

impl Bucket for Front {
    fn id(&self) -> &str {
        self.inner.id()
    }

    fn prefix(&self) -> &str {
        self.inner.prefix()
    }

    fn object_size_max(&self) -> u64 {
        self.inner.object_size_max()
    }

    fn prices(&self) -> &Prices {
        self.inner.prices()
    }

    fn put_once(&self, object: Object) -> BoxFuture<'_, Result<(), Error>> {
        self.inner.put_once(object)
    }

    fn get_range<'a>(&'a self, key: &'a str, range: Range<u64>) -> BoxFuture<'a, Result<Chunks, Error>> {
        if range.is_empty() || key == keys::cluster(self.prefix()) {
            return self.inner.get_range(key, range);
        }
        Box::pin(async move {
            let pieces = match self.ask(key, &range).await {
                Ok(pieces) => pieces,
                Err(why) => {
                    failed(&self.ledger, key, &why);
                    return self.inner.get_range(key, range).await;
                }
            };
            let (inner, ledger) = (self.inner.clone(), self.ledger.clone());
            let reading = Reading { inner, ledger, key: key.to_owned(), left: range, from: From::Front(pieces) };
            Ok(stream::try_unfold(reading, Reading::next).boxed())
        })
    }

    fn delete<'a>(&'a self, key: &'a str) -> BoxFuture<'a, Result<(), Error>> {
        self.inner.delete(key)
    }

    fn list_thaws<'a>(&'a self, prefix: &'a str, after: Option<&'a str>) -> BoxFuture<'a, Result<Page, Error>> {
        self.inner.list_thaws(prefix, after)
    }

    fn head_thaw<'a>(&'a self, key: &'a str) -> BoxFuture<'a, Result<Seen, Error>> {
        self.inner.head_thaw(key)
    }

    fn thaw<'a>(&'a self, key: &'a str, days: u32, tier: Tier) -> BoxFuture<'a, Result<bool, Error>> {
        self.inner.thaw(key, days, tier)
    }

    fn list<'a>(&'a self, prefix: &'a str, after: Option<&'a str>) -> BoxFuture<'a, Result<Page, Error>> {
        self.inner.list(prefix, after)
    }
}

#[cfg(test)]
mod tests {
    use super::super::body::Body as Content;
    use super::super::bucket::get_whole;
    use super::super::directory::Directory;
    use super::*;
    use larder_protocol::pack::{Piece, link_of};
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpListener;

    const KEY: &str = "v1/packs/x/1.tar";
    const CONTENT: &[u8] = b"the whole pack";

    /// Answers one request for each of `answers` and closes; what was asked for.
    async fn front(answers: Vec<String>) -> (String, tokio::task::JoinHandle<Vec<String>>) {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let base = format!("http://{}/cdn", listener.local_addr().expect("its address"));
        let serve = async move {
            let mut heads = Vec::new();
            for answer in answers {
                let (mut connection, _) = listener.accept().await.expect("a connection");
                let mut head = Vec::new();
                while !head.windows(4).any(|window| window == b"\r\n\r\n") {
                    assert!(connection.read_buf(&mut head).await.expect("a request") > 0);
                }
                heads.push(String::from_utf8(head).expect("text").to_lowercase());
                connection.write_all(answer.as_bytes()).await.expect("it is taken");
            }
            heads
        };
        (base, tokio::spawn(serve))
    }

    async fn bucket(base: &str) -> (tempfile::TempDir, Front, Ledger) {
        let folder = tempfile::tempdir().expect("a folder");
        let ledger = Ledger::new(None, Default::default());
        let inner = Arc::new(Directory::open(folder.path(), ledger.clone()).await.expect("a bucket"));
        for key in [KEY, "v1/cluster"] {
            let body = Content::new(
                vec![Piece::Bytes(Bytes::from_static(CONTENT))].into(),
                Arc::new(|_| Err(std::io::ErrorKind::NotFound.into())),
            );
            inner.put_once(Object { key: key.to_owned(), crc64: link_of(CONTENT).crc64, body }).await.expect("put");
        }
        let url = ReadUrl { base: base.to_owned(), signing: None };
        let front = Front::new(inner, &url, Clock::default(), ledger.clone()).expect("certificates");
        (folder, front, ledger)
    }

    fn part(range: &str, length: usize, body: &str) -> String {
        format!(
            "HTTP/1.1 206 Partial Content\r\nContent-Range: bytes {range}/14\r\nContent-Length: {length}\r\nConnection: close\r\n\r\n{body}"
        )
    }

    #[test]
    fn keys_are_escaped_as_urls_want_them() {
        assert_eq!(encoded("fleet/v1/packs/a-1/000000000001.GLACIER.tar.age"), "fleet/v1/packs/a-1/000000000001.GLACIER.tar.age");
        assert_eq!(encoded("a team's/50%+\"\u{e9}"), "a%20team%27s/50%25%2B%22%C3%A9");
    }

    #[tokio::test]
    async fn ranges_come_from_the_front_and_are_counted_there() {
        let (base, heads) = front(vec![part("4-8", 5, "whole")]).await;
        let (_folder, front, ledger) = bucket(&base).await;
        assert_eq!(get_whole(&front, KEY, 4..9).await.expect("read"), "whole");
        let heads = heads.await.expect("it ended well");
        assert!(
            heads[0].starts_with("get /cdn/v1/packs/x/1.tar http/1.1\r\n") && heads[0].contains("range: bytes=4-8\r\n"),
            "{}",
            heads[0]
        );
        let tally = ledger.tally();
        assert_eq!((tally.front_requests, tally.front_bytes, tally.requests.get, tally.bytes_in), (1, 5, 0, 0));
        // Whose bucket it is, is asked of the bucket.
        assert_eq!(get_whole(&front, "v1/cluster", 0..3).await.expect("read"), "the");
        assert_eq!((ledger.tally().front_requests, ledger.tally().requests.get), (1, 1));
    }

    #[tokio::test]
    async fn what_the_front_does_not_give_comes_from_the_bucket() {
        let refused = "HTTP/1.1 403 Forbidden\r\nContent-Length: 2\r\nConnection: close\r\n\r\nno".to_owned();
        let whole = "HTTP/1.1 200 OK\r\nContent-Length: 14\r\nConnection: close\r\n\r\nthe whole pack".to_owned();
        let moved = "HTTP/1.1 302 Found\r\nLocation: http://127.0.0.1:1/\r\nContent-Length: 0\r\nConnection: close\r\n\r\n".to_owned();
        for answer in [refused, whole, moved, part("0-4", 5, "wrong"), part("4-8", 5, "wh"), part("4-8", 2, "wh"), String::new()] {
            let (base, heads) = front(vec![answer.clone()]).await;
            let (_folder, front, ledger) = bucket(&base).await;
            assert_eq!(get_whole(&front, KEY, 4..9).await.expect("read"), "whole", "{answer}");
            heads.await.expect("it ended well");
            let tally = ledger.tally();
            assert_eq!((tally.front_requests, tally.front_failures, tally.requests.get), (1, 1, 1), "{answer}");
            // What came before it broke off did not come again.
            assert_eq!(tally.front_bytes + tally.bytes_in, 5, "{answer}");
        }
        // Nobody is there.
        let (_folder, front, ledger) = bucket("http://127.0.0.1:1").await;
        assert_eq!(get_whole(&front, KEY, 4..9).await.expect("read"), "whole");
        assert_eq!(ledger.tally().front_failures, 1);
    }
}
