//! Connections: accepted up to a limit, served with deadlines, and let go in peace.
//!
//! HTTP/1.1 only and no sniffing of versions: a client that says nothing is closed after `http.header_timeout` (S18). One that does
//! not take its answer is closed by the kernel, when nothing was acknowledged for `http.idle_timeout`.

use std::convert::Infallible;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::server::graceful::GracefulShutdown;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use super::Front;
use crate::config::Http;
use crate::tls::Client;

/// Most headers of a request.
const HEADERS_MAX: usize = 100;
/// Bytes that a connection may buffer, and so the longest head of a request.
const BUFFER_SIZE_MAX: usize = 128 << 10;
/// How long nothing is accepted after the system had no file or memory left for another connection.
const ACCEPT_PAUSE: Duration = Duration::from_millis(200);

/// Accepts until it is told to stop; then waits for requests in flight, for the grace period at most, and drops the rest.
pub(super) async fn serve(listener: TcpListener, front: Arc<Front>, http: Http, stopping: CancellationToken) {
    let graceful = GracefulShutdown::new();
    let mut connections = JoinSet::new();
    let _ = stopping.run_until_cancelled(accept(&listener, &front, &http, &graceful, &mut connections)).await;
    drop(listener);
    if tokio::time::timeout(http.shutdown_grace, graceful.shutdown()).await.is_err() {
        tracing::warn!(connections = connections.len(), grace = ?http.shutdown_grace, "dropping requests that did not end in time");
    }
    connections.shutdown().await;
}

async fn accept(listener: &TcpListener, front: &Arc<Front>, http: &Http, graceful: &GracefulShutdown, connections: &mut JoinSet<()>) {
    let places = Arc::new(Semaphore::new(http.connections_max));
    loop {
        // ORDER: a place first. While there is none, clients wait in the kernel's queue and cost nothing here.
        let place = places.clone().acquire_owned().await.expect("the semaphore is never closed");
        let (stream, client) = match listener.accept().await {
            Ok(accepted) => accepted,
            Err(error) => {
                refused(&error).await;
                continue;
            }
        };
        while connections.try_join_next().is_some_and(|ended| log_panic(ended.err())) {}
        if let Err(error) = prepare(&stream, http) {
            tracing::debug!(%client, %error, "a connection was gone before it was served");
            continue;
        }
        let connection = graceful.watch(connection(stream, client, front.clone(), http.header_timeout));
        connections.spawn(async move {
            if let Err(error) = connection.await {
                tracing::debug!(%client, %error, "a connection ended");
            }
            drop(place);
        });
    }
}

fn prepare(stream: &TcpStream, http: &Http) -> io::Result<()> {
    stream.set_nodelay(true)?;
    let patience_ms = u32::try_from(http.idle_timeout.as_millis()).unwrap_or(u32::MAX);
    Ok(rustix::net::sockopt::set_tcp_user_timeout(stream, patience_ms)?)
}

fn connection(
    stream: TcpStream,
    client: SocketAddr,
    front: Arc<Front>,
    header_timeout: Duration,
) -> impl hyper_util::server::graceful::GracefulConnection<Error = hyper::Error> {
    let client = Arc::new(Client::plain(client));
    let service = service_fn(move |request| {
        let (front, client) = (front.clone(), client.clone());
        async move { Ok::<_, Infallible>(front.answer(request, &client).await) }
    });
    http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(header_timeout)
        .max_headers(HEADERS_MAX)
        .max_buf_size(BUFFER_SIZE_MAX)
        .serve_connection(TokioIo::new(stream), service)
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
