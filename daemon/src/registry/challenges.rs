//! The answers that an authority looks for over plain HTTP, on a port of their own; everything else there is 404.
//!
//! SPEC: RFC 8555, 8.3. Whoever asks is a stranger: connections are few, heads are short and quick, and nothing is read beyond them.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderValue, Method, Request, Response, StatusCode, header};
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;

use crate::tls::Challenges;

const PATH: &str = "/.well-known/acme-challenge/";
/// More connections than this wait in the kernel's queue.
const CONNECTIONS_MAX: usize = 64;
/// How long one may last.
const CONNECTION_TIME_MAX: Duration = Duration::from_secs(10);
/// After the system had no file left for another one.
const ACCEPT_PAUSE: Duration = Duration::from_millis(200);

/// Serves until it is told to stop.
pub async fn serve_challenges(listener: TcpListener, challenges: Challenges, stopping: CancellationToken) {
    let _ = stopping.run_until_cancelled(accept(listener, challenges)).await;
}

async fn accept(listener: TcpListener, challenges: Challenges) {
    let places = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    loop {
        let place = places.clone().acquire_owned().await.expect("the semaphore is never closed");
        let Ok((stream, _)) = listener.accept().await else {
            tokio::time::sleep(ACCEPT_PAUSE).await;
            continue;
        };
        let challenges = challenges.clone();
        tokio::spawn(async move {
            let _ = tokio::time::timeout(CONNECTION_TIME_MAX, connection(stream, challenges)).await;
            drop(place);
        });
    }
}

async fn connection(stream: TcpStream, challenges: Challenges) {
    let service = service_fn(move |request: Request<Incoming>| {
        let response = answer(request.method(), request.uri().path(), &challenges);
        async move { Ok::<_, Infallible>(response) }
    });
    let mut builder = http1::Builder::new();
    builder.timer(TokioTimer::new()).header_read_timeout(CONNECTION_TIME_MAX).keep_alive(false);
    let _ = builder.serve_connection(TokioIo::new(stream), service).await;
}

fn answer(method: &Method, path: &str, challenges: &Challenges) -> Response<Full<Bytes>> {
    let token = path.strip_prefix(PATH).filter(|_| method == Method::GET || method == Method::HEAD);
    let text = token.and_then(|token| challenges.text_for(token));
    let mut response =
        Response::new(Full::new(Bytes::from(text.clone().unwrap_or_else(|| "nothing is served under this address\n".into()))));
    if text.is_none() {
        *response.status_mut() = StatusCode::NOT_FOUND;
    }
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("text/plain"));
    headers.insert(header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    response
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_was_asked_for_is_answered() {
        let challenges = Challenges::default();
        assert_eq!(answer(&Method::GET, "/.well-known/acme-challenge/", &challenges).status(), 404);
        assert_eq!(answer(&Method::GET, "/.well-known/acme-challenge/token", &challenges).status(), 404);
        assert_eq!(answer(&Method::GET, "/v2/", &challenges).status(), 404);
        assert_eq!(answer(&Method::POST, "/.well-known/acme-challenge/token", &challenges).status(), 404);
    }
}
