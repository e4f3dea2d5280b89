//! The front door: the OCI HTTP API, over plain HTTP/1.1, or over HTTP/1.1 and HTTP/2 in TLS.
//!
//! # How a request goes through
//!
//! [`server`] accepts connections, [`connection`] watches over each, [`route`] turns a request line into a [`route::Route`] (from there on there are names and
//! digests and no text), one function in [`uploads`], [`blobs`], [`manifests`], [`tags`] or [`referrers`] does it, and every failure
//! leaves through [`error`]. Content comes in through [`body::Inflow`] and goes out through [`body::Outflow`].
//!
//! # What holds
//!
//! - Memory of a request is bounded, whatever it carries; so are headers, pages, tags, connections and the time that any of
//!   them may take (S5, S11, S18).
//! - Content is read through a live link of the repository that was asked, and in no other way (I8).
//! - A 201 is sent after the store said that it is durable (I1).
//! - A download that can't go on breaks the connection (I2).
//! - Locations are relative, or start with the configured address; never with what a client calls this host (S19).
//! - Clients hear what they did wrong, and nothing of paths or causes.
//!
//! - Nothing is answered before it is known who asks and that they may ([`auth`]); what may not be read is answered alike whether it is there
//!   or not (S8, S9, S10, S11).
//!
//! It must not know where content comes from (that is `lookup`), nor what is done with it later (peers and archive read the
//! journal), nor how anything is kept.
//!
//! # Tasks, locks, crashes
//!
//! Two core tasks: `registry` accepts connections and owns them, `upload-expiry` ends old sessions. A request that goes away in the
//! middle of an upload leaves a small task that saves the session where it stands. There are no locks. Nothing here survives a
//! crash, and nothing needs to: sessions are the store's.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures_util::future::BoxFuture;
use http::{HeaderMap, HeaderName, HeaderValue, Method, Request, Response, StatusCode, header};
use http_body_util::combinators::BoxBody;
use hyper::body::Incoming;

use crate::auth::{Auth, Caller};
use crate::config::Config;
use crate::limits::{Share, Shares};
use crate::lookup::Lookup;
use crate::store::{self, Store};
use crate::tasks::Tasks;
use crate::telemetry::{HttpLabels, Metrics};
use crate::tls::{Client, Tls};

mod auth;
mod blobs;
mod body;
mod challenges;
mod connection;
mod direct;
mod error;
#[cfg(test)]
mod fuzz;
mod login;
mod manifests;
mod noted;
pub(crate) mod query;
mod range;
mod referrers;
mod route;
mod server;
mod session;
mod tags;
mod token;
mod uploads;

use body::Inflow;
pub use challenges::serve_challenges;
use error::Error;
use route::Route;

/// The body of every answer.
pub type Body = BoxBody<Bytes, std::io::Error>;
/// Answers paths outside `/v2/` (health, metrics); given by `node`.
pub type Elsewhere = Arc<dyn Fn(Request<Incoming>) -> BoxFuture<'static, Response<Body>> + Send + Sync>;

const CONTENT_DIGEST: HeaderName = HeaderName::from_static("docker-content-digest");
const API_VERSION: HeaderName = HeaderName::from_static("docker-distribution-api-version");
/// How often old upload sessions are looked for; oftener when they may not grow old.
const EXPIRY_PERIOD_MAX: Duration = Duration::from_secs(300);
const EXPIRY_PERIOD_MIN: Duration = Duration::from_secs(1);

/// Serves the registry on a listener until the tasks are told to stop; then requests in flight get `http.shutdown_grace`, and what
/// is left is dropped. Also ends upload sessions older than `registry.upload_age_max`. Returns at once.
pub fn start(
    (listener, tls): (tokio::net::TcpListener, Option<Tls>),
    config: &Config,
    store: Store,
    (lookup, auth): (Lookup, Auth),
    elsewhere: Elsewhere,
    tasks: &Tasks,
    metrics: Arc<Metrics>,
) {
    let front = Front {
        store: store.clone(),
        lookup,
        auth,
        challenge: auth::Challenge::new(config),
        elsewhere,
        tasks: tasks.clone(),
        metrics,
        public_url: config.http.public_url.clone().unwrap_or_default(),
        idle_timeout: config.http.idle_timeout,
        manifest_size_max: config.registry.manifest_size_max,
        blob_size_max: config.registry.blob_size_max,
        requests: AtomicU64::new(0),
        under_way: Shares::new(config.http.requests_max, config.http.requests_per_client_max),
    };
    tasks.core("registry", server::serve(listener, Arc::new(front), config.http.clone(), tls, tasks.stopping()));
    let (age, stopping) = (config.registry.upload_age_max, tasks.stopping());
    tasks.core("upload-expiry", async move {
        let _ = stopping.run_until_cancelled(expire_uploads(store, age)).await;
    });
}

async fn expire_uploads(store: Store, age: Duration) {
    loop {
        tokio::time::sleep((age / 4).clamp(EXPIRY_PERIOD_MIN, EXPIRY_PERIOD_MAX)).await;
        match store.run(move |store| store.expire_uploads(age)).await {
            Ok(0) => {}
            Ok(count) => tracing::info!(count, "ended upload sessions that made no progress"),
            Err(error) => tracing::warn!(%error, "old upload sessions could not be ended; trying again later"),
        }
    }
}

/// What every request needs.
struct Front {
    store: Store,
    lookup: Lookup,
    auth: Auth,
    /// How clients are told to say who they are.
    challenge: auth::Challenge,
    elsewhere: Elsewhere,
    tasks: Tasks,
    metrics: Arc<Metrics>,
    /// Empty: locations are relative.
    public_url: String,
    idle_timeout: Duration,
    manifest_size_max: u64,
    blob_size_max: u64,
    /// Numbers requests, so that a client's error and the log's cause find each other.
    requests: AtomicU64,
    /// Who has how many under way.
    under_way: Arc<Shares>,
}

/// What an endpoint gets of a request besides its route.
struct Pushed<'a> {
    headers: &'a HeaderMap,
    body: &'a mut Inflow,
    /// Who is at the other end.
    client: &'a Client,
    /// Who asks.
    caller: &'a Caller,
}

impl Front {
    /// Answers one request; it counts as under way until what comes with the answer is dropped.
    async fn answer(&self, mut request: Request<Incoming>, client: &Client) -> (Response<Body>, Option<Share>) {
        // SPEC: RFC 9113, 8.3.1: what HTTP/1.1 says as Host, HTTP/2 says as the authority.
        if request.version() == http::Version::HTTP_2
            && let Some(host) = request.uri().authority().and_then(|said| HeaderValue::try_from(said.as_str()).ok())
        {
            request.headers_mut().insert(header::HOST, host);
        }
        let started = Instant::now();
        let number = self.requests.fetch_add(1, Ordering::Relaxed) + 1;
        let (method, uri) = (request.method().clone(), request.uri().clone());
        let is_registry = uri.path() == "/v2" || uri.path().starts_with("/v2/");
        let (is_token, is_login) = (token::is_about(uri.path()), login::is_about(uri.path()));
        // Health and metrics are answered also when there is too much else.
        let share = (is_registry || is_token || is_login).then(|| self.under_way.begin(client.ip()));
        let (endpoint, response) = match &share {
            Some(Ok(_)) if is_token => (token::ENDPOINT, self.answer_token(request, client, number).await),
            Some(Ok(_)) if is_login => (login::ENDPOINT, self.answer_login(request, client, number).await),
            Some(Ok(_)) => self.answer_registry(request, client, number).await,
            Some(Err(refusal)) => {
                self.metrics.refused_requests.inc();
                (route::OTHER, refused(&Error::TooManyRequests(*refusal), route::OTHER, number))
            }
            None => (route::OTHER, (self.elsewhere)(request).await),
        };
        let status = response.status().as_u16();
        self.metrics.http_requests.get_or_create(&HttpLabels { method: label(&method), endpoint, status }).inc();
        let ms = started.elapsed().as_secs_f64() * 1e3;
        tracing::debug!(request = number, client = %client.address, method = method.as_str(), path = uri.path(), endpoint, status, ms, "answered");
        (response, share.and_then(Result::ok))
    }

    async fn answer_registry(&self, request: Request<Incoming>, client: &Client, number: u64) -> (&'static str, Response<Body>) {
        let (head, body) = request.into_parts();
        let mut body = Inflow::new(body, self.idle_timeout);
        if !head.headers.contains_key(header::EXPECT) {
            body.expect_unasked();
        }
        let (endpoint, route) = route::parse(&head.method, &head.uri);
        let mut note = self.noted(&head.headers, route.as_ref().ok(), client.ip());
        let result = match self.identify(&head.headers, route.as_ref().ok(), client).await {
            Err(error) => Err(error),
            // ORDER: who may nothing hears of nothing, not even what is wrong with a name.
            Ok(caller) => {
                note.is(&caller);
                match route {
                    Err(error) => Err(error),
                    Ok(route) => {
                        let request = Pushed { headers: &head.headers, body: &mut body, client, caller: &caller };
                        self.dispatch(route, request).await
                    }
                }
            }
        };
        note.take(self.auth.audit(), &result);
        body.abandon();
        let mut response = result.unwrap_or_else(|error| {
            if let Some((need, have)) = error.shortage() {
                self.store.refused_full(need, have);
            }
            refused(&error, endpoint, number)
        });
        let headers = response.headers_mut();
        headers.insert(API_VERSION, HeaderValue::from_static("registry/2.0"));
        headers.insert(header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
        (endpoint, response)
    }

    async fn dispatch(&self, route: Route, request: Pushed<'_>) -> Result<Response<Body>, Error> {
        self.permit(request.caller, &route, request.headers, request.client)?;
        // Before a byte of it is taken; the store would refuse it at the end.
        if route.is_write() && self.store.is_reader() {
            return Err(store::Error::Reader.into());
        }
        if let Some(repository) = route.repository() {
            self.lookup.awaken(repository).await;
        }
        match route {
            Route::Ping => Ok(json(&serde_json::json!({}))),
            Route::ListRepositories(page) => self.list_repositories(page, request.caller).await,
            Route::ListTags { repository, page } => self.list_tags(repository, page).await,
            Route::ListReferrers { repository, subject, artifact_type, page } => {
                self.list_referrers(repository, subject, artifact_type, page).await
            }
            Route::CheckBlob { repository, digest } => self.check_blob(repository, digest, request.headers).await,
            Route::PullBlob { repository, digest } => self.pull_blob(repository, digest, request.headers).await,
            Route::DeleteBlob { repository, digest } => self.delete_blob(repository, digest).await,
            Route::PullManifest { repository, reference } => self.pull_manifest(repository, reference, request.headers).await,
            Route::PushManifest { repository, digest, tags } => self.push_manifest(repository, digest, tags, request).await,
            Route::DeleteManifest { repository, reference } => self.delete_manifest(repository, reference).await,
            Route::StartUpload { repository, algorithm } => {
                self.start_upload(repository, algorithm, request.client.ip(), request.caller).await
            }
            Route::PushBlob { repository, digest } => self.push_blob(repository, digest, request).await,
            Route::MountBlob { repository, digest, from } => self.mount_blob(repository, digest, from, request).await,
            Route::UploadStatus { repository, session } => self.upload_status(repository, session, request.caller).await,
            Route::AppendUpload { repository, session } => self.append_upload(repository, session, request).await,
            Route::FinishUpload { repository, session, digest } => self.finish_upload(repository, session, digest, request).await,
            Route::CancelUpload { repository, session } => self.cancel_upload(repository, session, request.caller).await,
        }
    }

    /// The address of something of this registry, for a header.
    fn location(&self, path: std::fmt::Arguments<'_>) -> String {
        format!("{}/v2/{path}", self.public_url)
    }
}

/// The answer to a request that failed; the cause goes to the log.
fn refused(error: &Error, endpoint: &'static str, number: u64) -> Response<Body> {
    let refusal = error.refusal();
    let (status, code) = (refusal.status.as_u16(), refusal.code);
    match status {
        _ if error.shortage().is_some() => tracing::debug!(request = number, endpoint, %error, "the disk is full"),
        500 => tracing::error!(request = number, endpoint, %error, "a request failed"),
        501.. => tracing::warn!(request = number, endpoint, status, %error, "a request was put off"),
        _ => tracing::debug!(request = number, endpoint, status, code, %error, "a request was refused"),
    }
    refusal.response(number)
}

/// The method as a metric's label: clients can't invent new ones.
fn label(method: &Method) -> &'static str {
    const KNOWN: [Method; 6] = [Method::GET, Method::HEAD, Method::PUT, Method::POST, Method::PATCH, Method::DELETE];
    match KNOWN.iter().position(|known| known == method) {
        Some(index) => ["GET", "HEAD", "PUT", "POST", "PATCH", "DELETE"][index],
        None => "other",
    }
}

/// An answer without a body.
fn empty(status: StatusCode) -> Response<Body> {
    let mut response = Response::new(body::whole(Bytes::new()));
    *response.status_mut() = status;
    response
}

/// A 200 with JSON.
fn json(value: &serde_json::Value) -> Response<Body> {
    let mut response = Response::new(body::whole(Bytes::from(value.to_string())));
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    response
}

/// Sets a header whose value is made of names, digests and numbers, which all may stand in one.
fn set(response: &mut Response<Body>, name: impl http::header::IntoHeaderName, value: impl ToString) {
    let value = HeaderValue::try_from(value.to_string()).expect("names, digests and numbers are legal in headers");
    response.headers_mut().insert(name, value);
}

/// Sets what says which content this is: its digest, also as an entity tag.
fn set_digest(response: &mut Response<Body>, digest: &larder_protocol::digest::Digest) {
    let tag = Bytes::from(format!("\"{digest}\""));
    let value = |bytes| HeaderValue::from_maybe_shared(bytes).expect("a digest is legal in headers");
    let headers = response.headers_mut();
    headers.insert(CONTENT_DIGEST, value(tag.slice(1..tag.len() - 1)));
    headers.insert(header::ETAG, value(tag));
}

/// Whether the client says that it has this content. SPEC: RFC 9110, 13.1.2.
fn has_already(headers: &HeaderMap, digest: &larder_protocol::digest::Digest) -> bool {
    if !headers.contains_key(header::IF_NONE_MATCH) {
        return false;
    }
    let tag = format!("\"{digest}\"");
    let values = headers.get_all(header::IF_NONE_MATCH).iter().filter_map(|value| value.to_str().ok());
    values.flat_map(|value| value.split(',')).map(str::trim).any(|value| value == "*" || value.strip_prefix("W/").unwrap_or(value) == tag)
}

/// Refuses content that is encoded for the way: it is never decoded here (S23).
fn refuse_encoded(headers: &HeaderMap) -> Result<(), Error> {
    let encoded = headers.get_all(header::CONTENT_ENCODING).iter().any(|value| value != "identity");
    if encoded { Err(Error::Encoded) } else { Ok(()) }
}

/// A header's text; `None` when it is absent or no text.
fn text<'a>(headers: &'a HeaderMap, name: &http::HeaderName) -> Option<&'a str> {
    headers.get(name).and_then(|value| value.to_str().ok())
}

#[cfg(test)]
mod tests {
    use larder_protocol::digest::Digest;

    use super::*;

    #[test]
    fn a_client_that_has_the_content_is_recognised_by_its_tag() {
        let digest = Digest::sha256(b"x");
        for (value, expected) in [
            (format!("\"{digest}\""), true),
            (format!("W/\"{digest}\""), true),
            (format!("\"a\", \"{digest}\""), true),
            ("*".into(), true),
            (digest.to_string(), false),
            ("\"a\"".into(), false),
        ] {
            let mut headers = HeaderMap::new();
            headers.insert(header::IF_NONE_MATCH, value.parse().unwrap());
            assert_eq!(has_already(&headers, &digest), expected, "{value}");
        }
        assert!(!has_already(&HeaderMap::new(), &digest));
    }

    #[test]
    fn s23_encoded_uploads_are_refused() {
        for (value, taken) in [(None, true), (Some("identity"), true), (Some("gzip"), false), (Some("zstd"), false)] {
            let mut headers = HeaderMap::new();
            value.map(|value| headers.insert(header::CONTENT_ENCODING, value.parse().unwrap()));
            assert_eq!(refuse_encoded(&headers).is_ok(), taken, "{value:?}");
        }
    }
}
