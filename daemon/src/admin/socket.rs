//! The management socket: how it comes to be, who may open it, and its connections.

use std::convert::Infallible;
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::server::graceful::GracefulShutdown;
use tokio::net::UnixListener;
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use super::{About, Office, Operations};
use crate::auth::Auth;
use crate::store::Store;
use crate::tasks::Tasks;

/// Most connections at a time.
const CONNECTIONS_MAX: usize = 64;
/// A request's head must be here by then.
const HEADER_TIMEOUT: Duration = Duration::from_secs(10);
/// Bytes that a connection may buffer.
const BUFFER_SIZE_MAX: usize = 64 << 10;
/// How long requests may go on after a stop was asked for.
const SHUTDOWN_GRACE: Duration = Duration::from_secs(5);
/// How long nothing is accepted after the system had no file or memory left for another connection.
const ACCEPT_PAUSE: Duration = Duration::from_millis(200);

/// Serves the management API on `<data-dir>/larder.sock` (0600) until the tasks are told to stop, and removes the socket then.
/// Must be called within a runtime; returns when the socket can be connected to.
///
/// # Errors
/// The socket can't be made; the text says which file, and what to do when its path is too long.
pub fn start(socket: &Path, about: About, (store, auth): (Store, Auth), operations: Arc<dyn Operations>, tasks: &Tasks) -> io::Result<()> {
    let listener = bind(socket)?;
    let office = Office { about, store, auth, operations, started: Instant::now() };
    tasks.core("admin", serve(listener, socket.to_owned(), Arc::new(office), tasks.stopping()));
    Ok(())
}

/// Makes the socket under another name first: it gets its permissions before anybody can find it, and the rename replaces what a
/// killed daemon left. Only the owner of the data folder's lock comes here, so nobody else's socket is in the way.
fn bind(socket: &Path) -> io::Result<UnixListener> {
    let draft = socket.with_extension("new");
    let explain = |error: io::Error| {
        let text = format!("make the management socket {}: {error}; a socket's path has at most 107 bytes", socket.display());
        io::Error::new(error.kind(), text)
    };
    match std::fs::remove_file(&draft) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(explain(error)),
        Ok(()) | Err(_) => {}
    }
    let listener = UnixListener::bind(&draft).map_err(explain)?;
    std::fs::set_permissions(&draft, std::fs::Permissions::from_mode(0o600)).map_err(explain)?;
    std::fs::rename(&draft, socket).map_err(explain)?;
    Ok(listener)
}

async fn serve(listener: UnixListener, socket: PathBuf, office: Arc<Office>, stopping: CancellationToken) {
    let graceful = GracefulShutdown::new();
    let mut connections = JoinSet::new();
    let _ = stopping.run_until_cancelled(accept(&listener, &office, &graceful, &mut connections)).await;
    // ORDER: the file goes before the listener, so that nobody finds a socket that nobody answers.
    if let Err(error) = std::fs::remove_file(&socket) {
        tracing::debug!(socket = %socket.display(), %error, "the management socket could not be removed; the next start replaces it");
    }
    drop(listener);
    if tokio::time::timeout(SHUTDOWN_GRACE, graceful.shutdown()).await.is_err() {
        tracing::debug!(connections = connections.len(), "dropping management requests that did not end in time");
    }
    connections.shutdown().await;
}

async fn accept(listener: &UnixListener, office: &Arc<Office>, graceful: &GracefulShutdown, connections: &mut JoinSet<()>) {
    let places = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    loop {
        let place = places.clone().acquire_owned().await.expect("the semaphore is never closed");
        let stream = match listener.accept().await {
            Ok((stream, _)) => stream,
            Err(error) => {
                tracing::warn!(%error, "no management connection could be accepted; pausing");
                tokio::time::sleep(ACCEPT_PAUSE).await;
                continue;
            }
        };
        while let Some(ended) = connections.try_join_next() {
            if let Err(error) = ended {
                tracing::error!(%error, "a management request panicked; its connection was dropped");
            }
        }
        let office = office.clone();
        let service = service_fn(move |request| {
            let office = office.clone();
            async move { Ok::<_, Infallible>(office.answer(request).await) }
        });
        let connection = http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(HEADER_TIMEOUT)
            .max_buf_size(BUFFER_SIZE_MAX)
            .serve_connection(TokioIo::new(stream), service);
        let connection = graceful.watch(connection);
        connections.spawn(async move {
            if let Err(error) = connection.await {
                tracing::debug!(%error, "a management connection ended");
            }
            drop(place);
        });
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::FileTypeExt;

    use super::*;

    #[tokio::test]
    async fn the_socket_is_for_its_owner_only_and_replaces_a_stale_one() {
        let folder = tempfile::tempdir().unwrap();
        let socket = folder.path().join("larder.sock");
        for _ in 0..2 {
            let listener = bind(&socket).unwrap();
            let metadata = std::fs::symlink_metadata(&socket).unwrap();
            assert!(metadata.file_type().is_socket());
            assert_eq!(metadata.permissions().mode() & 0o777, 0o600);
            assert!(tokio::net::UnixStream::connect(&socket).await.is_ok());
            drop(listener);
            assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 1);
        }
    }

    #[tokio::test]
    async fn a_path_that_is_too_long_is_named() {
        let folder = tempfile::tempdir().unwrap();
        let error = bind(&folder.path().join("x".repeat(120))).unwrap_err().to_string();
        assert!(error.contains("107 bytes") && error.contains("xxx"), "{error}");
    }
}
