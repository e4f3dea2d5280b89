//! Connections: accepted up to a limit, made private, served with deadlines, and let go in peace.
//!
//! HTTP/1.1 or, where TLS says so, HTTP/2; no sniffing of versions. A client that says nothing is closed after `http.header_timeout`
//! (S18); what else a client may not do is watched by [`super::connection`]. One that is gone without a word is closed by the kernel, when
//! nothing was acknowledged for `http.idle_timeout`.
//!
//! Of HTTP/2, streams, windows, headers and resets are bounded (rapid reset, floods of CONTINUATION): by the library where it can, and
//! by the number of requests that a connection gave up.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use hyper::server::conn::{http1, http2};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use tokio::io::AsyncWriteExt;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use super::Front;
use super::connection::{Connection, Patience};
use super::direct::{Direct, Way};
use crate::config::Http;
use crate::limits::Shares;
use crate::tls::{Accepted, Client, Protocol, Tls};

/// Most headers of a request.
const HEADERS_MAX: usize = 100;
/// Bytes that a connection may buffer, and so the longest head of a request.
pub(super) const BUFFER_SIZE_MAX: usize = 128 << 10;
/// How long nothing is accepted after the system had no file or memory left for another connection.
const ACCEPT_PAUSE: Duration = Duration::from_millis(200);
/// Requests of one HTTP/2 connection at a time.
const STREAMS_MAX: u32 = 128;
/// All headers of an HTTP/2 request, unpacked.
const HEADER_LIST_SIZE_MAX: u32 = 32 << 10;
/// Bytes that a client may send on one stream, and on all of a connection, before they are taken.
const STREAM_WINDOW: u32 = 1 << 20;
const CONNECTION_WINDOW: u32 = 4 << 20;
/// Bytes of one answer that may wait on a connection.
const SEND_BUFFER_MAX: usize = 512 << 10;
/// Streams that were reset before they were looked at.
const RESETS_WAITING_MAX: usize = 32;
/// Streams that a client made us reset, by breaking the protocol on them.
const RESETS_CAUSED_MAX: usize = 256;
/// What a client hears that has too many connections, when it speaks plain HTTP.
const TOO_MANY: &[u8] = b"HTTP/1.1 429 Too Many Requests\r\nretry-after: 1\r\ncontent-type: application/json\r\ncontent-length: 95\r\n\
connection: close\r\n\r\n{\"errors\":[{\"code\":\"TOOMANYREQUESTS\",\"message\":\"too many connections come from this address\"}]}";

/// Accepts until it is told to stop; then waits for requests in flight, for the grace period at most, and drops the rest.
pub(super) async fn serve(listener: TcpListener, front: Arc<Front>, http: Http, tls: Option<Tls>, stopping: CancellationToken) {
    let mut connections = JoinSet::new();
    let grace = http.shutdown_grace;
    let door = Arc::new(Door { front, http, tls, stopping: stopping.clone() });
    let _ = stopping.run_until_cancelled(door.accept(&listener, &mut connections)).await;
    drop(listener);
    let all_end = async { while connections.join_next().await.is_some_and(|ended| log_panic(ended.err())) {} };
    if tokio::time::timeout(grace, all_end).await.is_err() {
        tracing::warn!(connections = connections.len(), ?grace, "dropping requests that did not end in time");
    }
    connections.shutdown().await;
}

/// What every connection needs.
struct Door {
    front: Arc<Front>,
    http: Http,
    tls: Option<Tls>,
    stopping: CancellationToken,
}

impl Door {
    async fn accept(self: &Arc<Self>, listener: &TcpListener, connections: &mut JoinSet<()>) {
        let places = Arc::new(Semaphore::new(self.http.connections_max));
        let shares = Shares::new(self.http.connections_max, self.http.connections_per_client_max);
        loop {
            // ORDER: a place first. While there is none, clients wait in the kernel's queue and cost nothing here.
            let place = places.clone().acquire_owned().await.expect("the semaphore is never closed");
            let (stream, address) = match listener.accept().await {
                Ok(accepted) => accepted,
                Err(error) => {
                    refused(&error).await;
                    continue;
                }
            };
            while connections.try_join_next().is_some_and(|ended| log_panic(ended.err())) {}
            let Ok(share) = shares.begin(address.ip()) else {
                tracing::debug!(client = %address, "a connection was refused: its address has too many");
                self.front.metrics.refused_connections.inc();
                if self.tls.is_none() {
                    turn_away(stream);
                }
                continue;
            };
            if let Err(error) = prepare(&stream, &self.http) {
                tracing::debug!(client = %address, %error, "a connection was gone before it was served");
                continue;
            }
            let door = Arc::clone(self);
            connections.spawn(async move {
                door.connection(stream, address).await;
                drop((place, share));
            });
        }
    }

    async fn connection(&self, stream: TcpStream, address: SocketAddr) {
        let Some(tls) = &self.tls else {
            let way = Way::default();
            let io = TokioIo::new(Direct::new(stream, way.clone()));
            return way.scope(self.http1(io, Client::plain(address))).await;
        };
        let handshake = tokio::time::timeout(self.http.header_timeout, tls.accept(stream, address));
        let handshake = self.stopping.run_until_cancelled(handshake).await;
        match handshake {
            Some(Ok(Ok(Some(Accepted { stream, client, protocol })))) => match protocol {
                Protocol::Http1 => self.http1(TokioIo::new(stream), client).await,
                Protocol::Http2 => self.http2(TokioIo::new(stream), client).await,
            },
            Some(Ok(Err(error))) => {
                self.front.metrics.tls_handshakes_failed.inc();
                tracing::debug!(client = %address, %error, "a handshake failed");
            }
            Some(Err(_)) => {
                self.front.metrics.tls_handshakes_failed.inc();
                tracing::debug!(client = %address, "a handshake took too long");
            }
            Some(Ok(Ok(None))) | None => {}
        }
    }

    async fn http1<I>(&self, io: I, client: Client)
    where
        I: hyper::rt::Read + hyper::rt::Write + Unpin + 'static,
    {
        let watched = Connection::new(Arc::clone(&self.front), client);
        let connection = http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(self.http.header_timeout)
            .max_headers(HEADERS_MAX)
            .max_buf_size(BUFFER_SIZE_MAX)
            .serve_connection(io, watched.service());
        // The library closes one that asks nothing: by the deadline for a request's head.
        watched.drive(connection, Patience { idle: None, stalled: self.http.idle_timeout }, &self.stopping).await;
    }

    async fn http2<I>(&self, io: I, client: Client)
    where
        I: hyper::rt::Read + hyper::rt::Write + Unpin + 'static,
    {
        let watched = Connection::new(Arc::clone(&self.front), client);
        let connection = http2::Builder::new(TokioExecutor::new())
            .timer(TokioTimer::new())
            .max_concurrent_streams(STREAMS_MAX)
            .max_header_list_size(HEADER_LIST_SIZE_MAX)
            .initial_stream_window_size(STREAM_WINDOW)
            .initial_connection_window_size(CONNECTION_WINDOW)
            .max_send_buf_size(SEND_BUFFER_MAX)
            .max_pending_accept_reset_streams(RESETS_WAITING_MAX)
            .max_local_error_reset_streams(RESETS_CAUSED_MAX)
            .serve_connection(io, watched.service());
        let patience = Patience { idle: Some((self.http.header_timeout, self.http.idle_timeout)), stalled: self.http.idle_timeout };
        watched.drive(connection, patience, &self.stopping).await;
    }
}

fn prepare(stream: &TcpStream, http: &Http) -> io::Result<()> {
    stream.set_nodelay(true)?;
    let patience_ms = u32::try_from(http.idle_timeout.as_millis()).unwrap_or(u32::MAX);
    Ok(rustix::net::sockopt::set_tcp_user_timeout(stream, patience_ms)?)
}

/// Says why, as far as the socket takes it at once: nobody waits for a client that has too much already.
fn turn_away(mut stream: TcpStream) {
    use futures_util::FutureExt;
    let _ = stream.write_all(TOO_MANY).now_or_never();
}

/// Waits when the system is out of something; a client that hung up in the queue is nothing to wait for.
async fn refused(error: &io::Error) {
    use io::ErrorKind::{ConnectionAborted, ConnectionRefused, ConnectionReset, Interrupted};
    if !matches!(error.kind(), ConnectionAborted | ConnectionRefused | ConnectionReset | Interrupted) {
        tracing::warn!(%error, "no connection could be accepted; pausing");
        tokio::time::sleep(ACCEPT_PAUSE).await;
    }
}

/// Always true, so that it can stand in a loop's condition.
fn log_panic(error: Option<tokio::task::JoinError>) -> bool {
    if let Some(error) = error.filter(tokio::task::JoinError::is_panic) {
        tracing::error!(%error, "a request panicked; its connection was dropped");
    }
    true
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_said_to_who_has_too_many_connections_is_a_whole_answer() {
        let text = std::str::from_utf8(TOO_MANY).expect("text");
        let (head, body) = text.split_once("\r\n\r\n").expect("a head and a body");
        let length: usize =
            head.lines().find_map(|line| line.strip_prefix("content-length: ")).expect("a length").parse().expect("a number");
        assert_eq!(length, body.len());
        serde_json::from_str::<serde_json::Value>(body).expect("JSON");
    }
}
