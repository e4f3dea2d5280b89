//! `/livez`, `/readyz` and `/metrics`, for the front listener: they say nothing that a stranger should not know.

use std::sync::Arc;

use bytes::Bytes;
use futures_util::future::BoxFuture;
use http::{HeaderValue, Method, Request, Response, StatusCode, header};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;

use super::Operations;
use crate::registry::{Body, Elsewhere};
use crate::telemetry::Metrics;

/// SPEC: OpenMetrics 1.0, "Protocol Negotiation".
const OPEN_METRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";
const TEXT: &str = "text/plain; charset=utf-8";

/// Serves `/livez`, `/readyz` and `/metrics` for the front door; anything else is 404.
pub fn public(operations: Arc<dyn Operations>, metrics: Arc<Metrics>) -> Elsewhere {
    Arc::new(move |request: Request<Incoming>| -> BoxFuture<'static, Response<Body>> {
        let response = answer(request.method(), request.uri().path(), || operations.ready(), &metrics);
        Box::pin(std::future::ready(response))
    })
}

fn answer(method: &Method, path: &str, ready: impl Fn() -> bool, metrics: &Metrics) -> Response<Body> {
    if !matches!(path, "/livez" | "/readyz" | "/metrics") {
        return page(StatusCode::NOT_FOUND, TEXT, "nothing is served under this address\n".into());
    }
    if method != Method::GET && method != Method::HEAD {
        let mut response = page(StatusCode::METHOD_NOT_ALLOWED, TEXT, "this address takes GET, HEAD\n".into());
        response.headers_mut().insert(header::ALLOW, HeaderValue::from_static("GET, HEAD"));
        return response;
    }
    match path {
        "/metrics" => page(StatusCode::OK, OPEN_METRICS, metrics.encode()),
        "/readyz" if !ready() => page(StatusCode::SERVICE_UNAVAILABLE, TEXT, "not ready\n".into()),
        _ => page(StatusCode::OK, TEXT, "ok\n".into()),
    }
}

fn page(status: StatusCode, content_type: &'static str, text: String) -> Response<Body> {
    let mut response = Response::new(Full::new(Bytes::from(text)).map_err(|never| match never {}).boxed());
    *response.status_mut() = status;
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(content_type));
    headers.insert(header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    response
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(method: Method, path: &str, ready: bool, status: u16) -> Response<Body> {
        let response = answer(&method, path, || ready, &Metrics::default());
        assert_eq!(response.status().as_u16(), status, "{method} {path}");
        response
    }

    #[test]
    fn health_follows_the_node_and_other_paths_are_not_served() {
        check(Method::GET, "/livez", false, 200);
        check(Method::GET, "/readyz", false, 503);
        check(Method::HEAD, "/readyz", true, 200);
        check(Method::GET, "/", true, 404);
        check(Method::GET, "/api/v1/status", true, 404);
        let response = check(Method::POST, "/metrics", true, 405);
        assert_eq!(response.headers()[header::ALLOW], "GET, HEAD");
    }

    #[tokio::test]
    async fn metrics_are_in_the_format_that_their_content_type_names() {
        let response = check(Method::GET, "/metrics", true, 200);
        assert_eq!(response.headers()[header::CONTENT_TYPE], OPEN_METRICS);
        let text = response.into_body().collect().await.unwrap().to_bytes();
        assert!(text.ends_with(b"# EOF\n"), "{text:?}");
    }
}
