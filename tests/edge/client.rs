//! Clients of a node that speaks TLS: whole requests by a library, and frames of HTTP/2 by hand for what no library sends.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper_util::rt::{TokioExecutor, TokioIo};
use larder_harness::Authority;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::{ClientConfig, RootCertStore};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

const PATIENCE: Duration = Duration::from_secs(60);

/// Connects with TLS, offering one protocol; shows a certificate when there is one.
pub async fn connect(
    address: &str,
    authority: &Authority,
    protocol: &str,
    shows: Option<&(String, String)>,
) -> io::Result<TlsStream<TcpStream>> {
    let mut roots = RootCertStore::empty();
    roots.add(authority.certificate.der().clone()).expect("an authority");
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let builder = ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions().expect("versions");
    let builder = builder.with_root_certificates(roots);
    let mut config = match shows {
        None => builder.with_no_client_auth(),
        Some((certificate, key)) => {
            let chain = vec![CertificateDer::from_pem_slice(certificate.as_bytes()).expect("PEM")];
            builder.with_client_auth_cert(chain, PrivateKeyDer::from_pem_slice(key.as_bytes()).expect("PEM")).expect("a pair")
        }
    };
    config.alpn_protocols = vec![protocol.as_bytes().to_vec()];
    let stream = TcpStream::connect(address).await?;
    let name = ServerName::try_from("localhost").expect("a name");
    TlsConnector::from(Arc::new(config)).connect(name, stream).await
}

/// The common name of the certificate that a server shows.
pub fn shown(stream: &TlsStream<TcpStream>) -> String {
    let (_, session) = stream.get_ref();
    let chain = session.peer_certificates().expect("a server shows one");
    larder::tls::Certificate::read(&chain[0]).expect("it has a name").name
}

/// Sends one request over a connection of its own, in HTTP/2 when that was agreed on; status and body.
pub async fn request(stream: TlsStream<TcpStream>, method: &str, path: &str, body: Bytes) -> io::Result<(u16, http::HeaderMap, Bytes)> {
    let is_http2 = stream.get_ref().1.alpn_protocol() == Some(b"h2");
    let request = http::Request::builder().method(method).header("content-length", body.len());
    let request = if is_http2 { request.uri(format!("https://localhost{path}")) } else { request.uri(path).header("host", "localhost") };
    let request = request.body(Full::new(body)).expect("a request");
    let asking = async {
        let response = if is_http2 {
            let made = hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(stream)).await;
            let (mut sender, connection) = made.map_err(io::Error::other)?;
            tokio::spawn(connection);
            sender.send_request(request).await
        } else {
            let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.map_err(io::Error::other)?;
            tokio::spawn(connection);
            sender.send_request(request).await
        };
        let (head, body) = response.map_err(io::Error::other)?.into_parts();
        let body = body.collect().await.map_err(io::Error::other)?.to_bytes();
        Ok((head.status.as_u16(), head.headers, body))
    };
    tokio::time::timeout(PATIENCE, asking).await.expect("an answer in time")
}

/// HTTP/2 by hand. SPEC: RFC 9113.
pub struct Frames<S>(pub S);

pub const DATA: u8 = 0;
pub const HEADERS: u8 = 1;
pub const RESET: u8 = 3;
pub const SETTINGS: u8 = 4;
pub const GOAWAY: u8 = 7;
pub const CONTINUATION: u8 = 9;
pub const END_STREAM: u8 = 1;
pub const END_HEADERS: u8 = 4;

impl<S: tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin> Frames<S> {
    /// Begins a connection; `window` is what the server may send on a stream.
    pub async fn begin(mut stream: S, window: u32) -> io::Result<Self> {
        stream.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n").await?;
        let mut frames = Self(stream);
        let mut settings = vec![0, 4];
        settings.extend(window.to_be_bytes());
        frames.send(SETTINGS, 0, 0, &settings).await?;
        Ok(frames)
    }

    pub async fn send(&mut self, kind: u8, flags: u8, stream: u32, payload: &[u8]) -> io::Result<()> {
        self.0.write_all(&frame(kind, flags, stream, payload)).await?;
        self.0.flush().await
    }

    /// The next frame: its kind, its stream, what it carries.
    pub async fn receive(&mut self) -> io::Result<(u8, u32, Vec<u8>)> {
        let mut head = [0; 9];
        self.0.read_exact(&mut head).await?;
        let size = u32::from_be_bytes([0, head[0], head[1], head[2]]);
        let mut payload = vec![0; size as usize];
        self.0.read_exact(&mut payload).await?;
        Ok((head[3], u32::from_be_bytes([head[5], head[6], head[7], head[8]]) & 0x7fff_ffff, payload))
    }

    /// Reads until the server closes, or the time is over; the kinds of what came. The last is whether it closed.
    pub async fn until_closed(&mut self, within: Duration) -> (Vec<u8>, bool) {
        let mut kinds = Vec::new();
        let reading = async {
            while let Ok((kind, _, _)) = self.receive().await {
                kinds.push(kind);
            }
        };
        let closed = tokio::time::timeout(within, reading).await.is_ok();
        (kinds, closed)
    }
}

/// One frame.
pub fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let size = u32::try_from(payload.len()).expect("small").to_be_bytes();
    let mut bytes = vec![size[1], size[2], size[3], kind, flags];
    bytes.extend(stream.to_be_bytes());
    bytes.extend(payload);
    bytes
}

/// The headers of a request, packed without any table: method, scheme, path, authority.
pub fn packed(method: &str, path: &str) -> Vec<u8> {
    let mut bytes = Vec::new();
    for (name, value) in [(":method", method), (":scheme", "https"), (":path", path), (":authority", "localhost")] {
        literal(&mut bytes, name, value);
    }
    bytes
}

/// One header, as a literal that is put into no table. SPEC: RFC 7541, 6.2.2.
pub fn literal(bytes: &mut Vec<u8>, name: &str, value: &str) {
    bytes.push(0);
    for text in [name, value] {
        integer(bytes, text.len());
        bytes.extend(text.as_bytes());
    }
}

/// An integer with a prefix of seven bits. SPEC: RFC 7541, 5.1.
fn integer(bytes: &mut Vec<u8>, number: usize) {
    if number < 127 {
        bytes.push(number as u8);
        return;
    }
    bytes.push(127);
    let mut rest = number - 127;
    while rest >= 128 {
        bytes.push((rest % 128) as u8 | 128);
        rest /= 128;
    }
    bytes.push(rest as u8);
}
