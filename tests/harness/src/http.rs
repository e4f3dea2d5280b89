//! A small HTTP/1.1 client: one connection for one request, nothing retried, nothing hidden.
//!
//! A pool would try again on another connection when a node has died, and a crash test would not see it.

use crate::content::Content;
use crate::rig;
use bytes::Bytes;
use futures_util::stream;
use http_body_util::{BodyExt, Full, StreamBody, combinators::UnsyncBoxBody};
use hyper::body::{Frame, Incoming};
use hyper::header::HeaderMap;
use hyper_util::rt::TokioIo;
use serde_json::Value;
use sha2::{Digest, Sha256};
use std::{io, time::Duration};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

/// No request of a test takes longer, a gigabyte on a busy machine included.
const DEADLINE: Duration = Duration::from_secs(300);
/// How long [`raw`] listens: longer than a node's header timeout, so that it sees the node close the connection.
const RAW_DEADLINE: Duration = Duration::from_secs(15);

/// What is sent with a request.
pub struct Body(UnsyncBoxBody<Bytes, io::Error>);

impl Body {
    /// No body.
    pub fn empty() -> Self {
        Bytes::new().into()
    }

    /// Content made while it is sent, with a Content-Length.
    pub fn content(content: Content) -> Self {
        Self(UnsyncBoxBody::new(SizedBody {
            inner: StreamBody::new(stream::iter(content.chunks().map(|chunk| Ok(Frame::data(chunk))))),
            left: content.size,
        }))
    }

    /// Chunks of unknown number, sent with `Transfer-Encoding: chunked`. An error breaks the connection in the middle.
    pub fn chunked(chunks: impl Iterator<Item = io::Result<Bytes>> + Send + 'static) -> Self {
        Self(UnsyncBoxBody::new(StreamBody::new(stream::iter(chunks.map(|chunk| chunk.map(Frame::data))))))
    }
}

impl From<Bytes> for Body {
    fn from(bytes: Bytes) -> Self {
        Self(UnsyncBoxBody::new(Full::new(bytes).map_err(|never| match never {})))
    }
}

impl From<Vec<u8>> for Body {
    fn from(bytes: Vec<u8>) -> Self {
        Bytes::from(bytes).into()
    }
}

impl From<&str> for Body {
    fn from(text: &str) -> Self {
        Bytes::copy_from_slice(text.as_bytes()).into()
    }
}

/// A stream whose size is known before it is made.
struct SizedBody<B> {
    inner: B,
    left: u64,
}

impl<B: hyper::body::Body<Data = Bytes> + Unpin> hyper::body::Body for SizedBody<B> {
    type Data = Bytes;
    type Error = B::Error;

    fn poll_frame(
        mut self: std::pin::Pin<&mut Self>,
        context: &mut std::task::Context<'_>,
    ) -> std::task::Poll<Option<Result<Frame<Bytes>, B::Error>>> {
        let polled = std::pin::Pin::new(&mut self.inner).poll_frame(context);
        if let std::task::Poll::Ready(Some(Ok(frame))) = &polled {
            self.left -= frame.data_ref().map_or(0, |data| data.len() as u64);
        }
        polled
    }

    fn size_hint(&self) -> hyper::body::SizeHint {
        hyper::body::SizeHint::with_exact(self.left)
    }
}

/// A whole answer.
#[derive(Debug, Clone)]
pub struct Response {
    /// The status code.
    pub status: u16,
    /// The headers, names in lower case.
    pub headers: HeaderMap,
    /// Everything that came after them.
    pub body: Bytes,
}

impl Response {
    /// The value of a header, or "".
    pub fn header(&self, name: &str) -> &str {
        self.headers.get(name).and_then(|value| value.to_str().ok()).unwrap_or("")
    }

    /// The body as JSON.
    ///
    /// # Panics
    /// When it is not.
    pub fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap_or_else(|error| panic!("the answer is not JSON ({error}): {self:?}"))
    }

    /// The code of the first error in a body as the OCI specification wants it, or "" when it is not such a body.
    pub fn error_code(&self) -> String {
        let body: Value = serde_json::from_slice(&self.body).unwrap_or_default();
        body["errors"][0]["code"].as_str().unwrap_or("").to_owned()
    }

    /// Asserts the status and gives the answer back.
    #[track_caller]
    pub fn expect(self, status: u16, doing: &str) -> Self {
        assert_eq!(self.status, status, "{doing}: {}", String::from_utf8_lossy(&self.body[..self.body.len().min(2000)]));
        self
    }

    /// Asserts status and OCI error code.
    #[track_caller]
    pub fn expect_error(self, status: u16, code: &str, doing: &str) -> Self {
        let answer = self.expect(status, doing);
        assert_eq!(answer.error_code(), code, "{doing}: {}", String::from_utf8_lossy(&answer.body));
        answer
    }
}

/// Size and digest of a body that was read without being kept.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Summary {
    /// The status code.
    pub status: u16,
    /// How many bytes came.
    pub size: u64,
    /// `sha256:<hex>` of them.
    pub digest: String,
}

/// Sends a request to `http://host:port/path` and reads the whole answer.
///
/// # Errors
/// When the connection cannot be made, or breaks before the answer is complete.
pub async fn request(method: &str, url: &str, headers: &[(&str, &str)], body: impl Into<Body>) -> io::Result<Response> {
    timed(async {
        let (parts, body) = send(method, url, headers, body.into()).await?.into_parts();
        let body = body.collect().await.map_err(io::Error::other)?.to_bytes();
        Ok(Response { status: parts.status.as_u16(), headers: parts.headers, body })
    })
    .await
}

/// Like [`request`] for a body that is too large to keep: hashes it as it comes.
pub async fn summary(url: &str) -> io::Result<Summary> {
    summary_with(url, &[]).await
}

/// The same with headers.
pub async fn summary_with(url: &str, headers: &[(&str, &str)]) -> io::Result<Summary> {
    timed(async {
        let (parts, mut body) = send("GET", url, headers, Body::empty()).await?.into_parts();
        let (mut hash, mut size) = (Sha256::new(), 0);
        while let Some(frame) = body.frame().await {
            if let Ok(data) = frame.map_err(io::Error::other)?.into_data() {
                size += data.len() as u64;
                hash.update(&data);
            }
        }
        Ok(Summary { status: parts.status.as_u16(), size, digest: format!("sha256:{}", hex::encode(hash.finalize())) })
    })
    .await
}

/// Sends `bytes` as they are to `host:port` of `url`, and returns all that comes back until the other side closes.
///
/// For requests that a decent client cannot send. An answer after which the connection stays open is returned after a while.
pub async fn raw(url: &str, bytes: &[u8]) -> io::Result<Vec<u8>> {
    let mut stream = connect(authority(url)?).await?;
    stream.write_all(bytes).await?;
    let mut answer = Vec::new();
    // A reset after the answer is as good as an orderly close here: what came before it counts.
    let _ = tokio::time::timeout(RAW_DEADLINE, stream.read_to_end(&mut answer)).await;
    Ok(answer)
}

async fn timed<T>(work: impl Future<Output = io::Result<T>>) -> io::Result<T> {
    tokio::time::timeout(DEADLINE, work).await.map_err(|_| io::Error::new(io::ErrorKind::TimedOut, format!("no answer in {DEADLINE:?}")))?
}

/// Sends a request and returns as soon as the head of the answer is there; the body comes as it is read.
pub async fn send(method: &str, url: &str, headers: &[(&str, &str)], body: Body) -> io::Result<hyper::Response<Incoming>> {
    let authority = authority(url)?;
    let stream = connect(authority).await?;
    stream.set_nodelay(true)?;
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.map_err(io::Error::other)?;
    // Ends with the connection: after the answer's body is read or dropped. Its error is the sender's or the body's too.
    tokio::spawn(async move {
        let _ = connection.await;
    });
    let path = &url["http://".len() + authority.len()..];
    let host = authority.split_once('@').map_or(authority, |(_, host)| host);
    let mut request = hyper::Request::builder().method(method).uri(if path.is_empty() { "/" } else { path }).header("host", host);
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    let request = request.body(body.0).map_err(io::Error::other)?;
    sender.send_request(request).await.map_err(io::Error::other)
}

/// Connects with a server on this machine, or with one on a host of a [`rig`].
async fn connect(authority: &str) -> io::Result<TcpStream> {
    match rig::connect(authority).await {
        Some(connected) => connected,
        None => TcpStream::connect(authority).await,
    }
}

fn authority(url: &str) -> io::Result<&str> {
    let rest = url.strip_prefix("http://").ok_or_else(|| io::Error::other(format!("{url} does not start with http://")))?;
    Ok(rest.split('/').next().unwrap_or(rest))
}
