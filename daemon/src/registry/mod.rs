//! The front door: the OCI HTTP API.

use std::sync::Arc;

use bytes::Bytes;
use futures_util::future::BoxFuture;
use http::{Request, Response};
use http_body_util::combinators::BoxBody;
use hyper::body::Incoming;

use crate::config::Config;
use crate::lookup::Lookup;
use crate::store::Store;
use crate::tasks::Tasks;
use crate::telemetry::Metrics;

/// The body of every answer.
pub type Body = BoxBody<Bytes, std::io::Error>;
/// Answers paths outside `/v2/` (health, metrics); given by `node`.
pub type Elsewhere = Arc<dyn Fn(Request<Incoming>) -> BoxFuture<'static, Response<Body>> + Send + Sync>;

/// Serves the registry on a listener until the tasks are told to stop; then requests in flight get `http.shutdown_grace`. Also expires old
/// upload sessions now and then.
pub fn start(
    listener: tokio::net::TcpListener,
    config: &Config,
    store: Store,
    lookup: Lookup,
    elsewhere: Elsewhere,
    tasks: &Tasks,
    metrics: Arc<Metrics>,
) {
    let _ = (listener, config, store, lookup, elsewhere, tasks, metrics);
    unimplemented!()
}
