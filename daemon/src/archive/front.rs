//! Ranges of packs by another address than the bucket's: what stands before it and keeps copies near (`archive.read_url`).
//!
//! Everything is written to the bucket, listed there, and read there when the other address fails, or breaks off: then from the byte that came last. Names of packs and checkpoints are used
//! once, so no copy is ever out of date; whose bucket it is, is always asked of the bucket. What comes is believed no more than what the bucket gives.

use std::fmt;
use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::future::BoxFuture;
use futures_util::stream::{self, StreamExt};
use http::{Request, StatusCode, header};
use http_body_util::{BodyExt, BodyStream, Empty};
use hyper_rustls::{HttpsConnector, HttpsConnectorBuilder};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;

use crate::config::{Prices, Tier};

use super::bucket::{Bucket, Chunks, Object, Page};
use super::ledger::Ledger;
use super::thaw::Seen;
use super::{Error, keys};

/// An answer must begin by then, and go on by then.
const PATIENCE: Duration = Duration::from_secs(15);

/// See the module.
pub struct Front {
    inner: Arc<dyn Bucket>,
    /// Without a slash at its end.
    base: String,
    client: Client<HttpsConnector<HttpConnector>, Empty<Bytes>>,
    ledger: Ledger,
}

impl fmt::Debug for Front {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Front({} of {:?})", self.base, self.inner)
    }
}

impl Front {
    /// `base` and a key are an object's address. Asks for nothing.
    ///
    /// # Errors
    /// The system's certificates can't be read.
    pub fn new(inner: Arc<dyn Bucket>, base: &str, ledger: Ledger) -> Result<Self, Error> {
        let provider = rustls::crypto::aws_lc_rs::default_provider();
        let builder = HttpsConnectorBuilder::new().with_provider_and_native_roots(provider);
        let builder =
            builder.map_err(|source| Error::Io { doing: "read the system's certificates", path: "/etc/ssl/certs".into(), source })?;
        let client = Client::builder(TokioExecutor::new()).build(builder.https_or_http().enable_http1().build());
        Ok(Self { inner, base: base.to_owned(), client, ledger })
    }

    /// The bytes as they come, or why they don't.
    async fn ask(&self, key: &str, range: &Range<u64>) -> Result<Pieces, String> {
        let last = range.end - 1;
        let request = Request::get(format!("{}/{key}", self.base)).header(header::RANGE, format!("bytes={}-{last}", range.start));
        let request = request.body(Empty::new()).map_err(|error| error.to_string())?;
        self.ledger.front_asked();
        let answer = tokio::time::timeout(PATIENCE, self.client.request(request)).await.map_err(|_| "no answer came".to_owned())?;
        let answer = answer.map_err(|error| error.to_string())?;
        let found = answer.headers().get(header::CONTENT_RANGE).and_then(|found| found.to_str().ok()).unwrap_or("none").to_owned();
        if answer.status() != StatusCode::PARTIAL_CONTENT || !found.starts_with(&format!("bytes {}-{last}/", range.start)) {
            return Err(format!("it answered {} with range {found:?}", answer.status()));
        }
        let body = BodyStream::new(answer.into_body().map_err(|error| error.to_string()));
        Ok(body.filter_map(|frame| std::future::ready(frame.map(|frame| frame.into_data().ok()).transpose())).boxed())
    }
}

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
    use super::super::body::Body;
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
            let body =
                Body::new(vec![Piece::Bytes(Bytes::from_static(CONTENT))].into(), Arc::new(|_| Err(std::io::ErrorKind::NotFound.into())));
            inner.put_once(Object { key: key.to_owned(), crc64: link_of(CONTENT).crc64, body }).await.expect("put");
        }
        let front = Front::new(inner, base, ledger.clone()).expect("certificates");
        (folder, front, ledger)
    }

    fn part(range: &str, length: usize, body: &str) -> String {
        format!(
            "HTTP/1.1 206 Partial Content\r\nContent-Range: bytes {range}/14\r\nContent-Length: {length}\r\nConnection: close\r\n\r\n{body}"
        )
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
