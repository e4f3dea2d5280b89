//! Every failure -> a status, a code of the specification, and words that are safe for strangers.
//!
//! Clients see the status, the code and what they did wrong. Paths, causes and whatever an operating system had to say go to
//! the log, under the request's number, which the client gets instead. Nothing is caught by `_`: a new failure below has to
//! be decided here.

use bytes::Bytes;
use bytesize::ByteSize;
use http::{HeaderName, HeaderValue, Response, StatusCode, header};
use larder_protocol::digest::{Digest, InvalidDigest};
use larder_protocol::name::{InvalidName, RepositoryName};
use serde_json::{Value, json};

use super::Body;
use super::body::whole;
use crate::auth;
use crate::limits::Refused;
use crate::lookup::{self, NotSafe};
use crate::store;

/// Most digests that one answer lists as missing.
const MISSING_LISTED_MAX: usize = 100;
/// When a client should come back that met a full disk, or a node that is stopping.
const RETRY_FULL_S: u64 = 30;
/// When a client should come back that met a limit or another request.
const RETRY_BUSY_S: u64 = 1;

/// When a client should come back for what thaws: not sooner, and not later, since it may have thawed before its time.
const RETRY_FROZEN_S: (u64, u64) = (60, 6 * 3600);

/// When a client should come back whose push is not as safe as it has to be: work for it goes on meanwhile.
const RETRY_UNSAFE_S: u64 = 5;

/// Why a request is refused.
#[derive(Debug, thiserror::Error)]
pub(super) enum Error {
    /// Nothing of the API stands at this address.
    #[error("nothing is served under this address")]
    NoSuchPath,
    /// The address is known, the method is not one of its own.
    #[error("this address takes {allow}")]
    Method { allow: String },
    /// A name, tag or reference breaks its grammar.
    #[error(transparent)]
    Name(#[from] InvalidName),
    /// A digest breaks its grammar.
    #[error(transparent)]
    Digest(InvalidDigest),
    /// `n` of a listing is no number.
    #[error("n is a number of entries, 0 or more")]
    Page,
    /// More tags than one push may name.
    #[error("one push names at most {limit} tags")]
    TooManyTags { limit: usize },
    /// No such upload session in this repository.
    #[error("no such upload session: it ended, expired, or belongs to another repository; start a new one")]
    SessionUnknown,
    /// The repository has no such blob.
    #[error("this repository has no blob {digest}")]
    BlobUnknown { digest: Digest },
    /// The repository has no such manifest or tag.
    #[error("this repository has no manifest {reference}")]
    ManifestUnknown { reference: String },
    /// Nothing was ever pushed there.
    #[error("no repository {name}")]
    RepositoryUnknown { name: RepositoryName },
    /// Content is stored as it is named: undoing an encoding would change its digest.
    #[error("uploads with a Content-Encoding are not taken; send the content as its digest has it")]
    Encoded,
    /// Neither the request nor the manifest says what it is.
    #[error("a manifest needs a media type, in Content-Type or in its mediaType: {why}")]
    MediaType { why: &'static str },
    /// The manifest is larger than allowed.
    #[error("a manifest has at most {limit} bytes here (registry.manifest_size_max)")]
    ManifestTooLarge { limit: u64 },
    /// The blob is larger than allowed.
    #[error("a blob has at most {limit} bytes here (registry.blob_size_max)")]
    BlobTooLarge { limit: u64 },
    /// `Content-Range` can't be read.
    #[error("Content-Range is <first>-<last>, both included")]
    ContentRange,
    /// A chunk does not begin where the session stands.
    #[error("the session goes on at offset {offset}")]
    OutOfOrder { offset: u64, location: String },
    /// A chunk has more or fewer bytes than its `Content-Range` says.
    #[error("the chunk does not have the size that its Content-Range says; the session goes on at offset {offset}")]
    WrongSize { offset: u64, location: String },
    /// No byte of the range asked for is there.
    #[error("the blob has {size} bytes")]
    Unsatisfiable { size: u64 },
    /// The body did not come on.
    #[error("the body made no progress for {seconds} s")]
    Stalled { seconds: u64 },
    /// The body broke off, or was no HTTP.
    #[error("the body broke off: {why}")]
    Broken { why: String },
    /// Too many requests are under way.
    #[error("{}", too_many(.0))]
    TooManyRequests(Refused),
    /// The store refused.
    #[error(transparent)]
    Store(#[from] store::Error),
    /// The content could not be had.
    #[error(transparent)]
    Lookup(#[from] lookup::Error),
    /// Nobody has signed in.
    #[error("sign in: {why}")]
    Login { why: String },
    /// No request for a token.
    #[error("this is no request for a token: {why}")]
    TokenRequest { why: &'static str },
    /// Nobody who may do this, and somebody who can say who they are may.
    #[error("{why}")]
    Unauthorized { why: String, challenge: String },
    /// Somebody who may not do this.
    #[error("{why}")]
    Denied { why: String },
    /// It can't be checked now who asks.
    #[error(transparent)]
    Identity(#[from] auth::Refused),
    /// A push was stored, and is not as safe as it has to be.
    #[error(transparent)]
    NotSafe(#[from] lookup::NotSafe),
}

/// What a client is told.
#[derive(Debug)]
pub(super) struct Refusal {
    pub(super) status: StatusCode,
    pub(super) code: &'static str,
    /// Safe words; `None`: only the log has them.
    message: Option<String>,
    /// One error is listed for each.
    details: Vec<Value>,
    headers: Vec<(HeaderName, String)>,
}

impl Refusal {
    fn new(status: StatusCode, code: &'static str, message: impl ToString) -> Self {
        Self { status, code, message: Some(message.to_string()), details: Vec::new(), headers: Vec::new() }
    }

    /// A failure of ours, whose cause only the log has.
    fn internal() -> Self {
        Self { status: StatusCode::INTERNAL_SERVER_ERROR, code: "UNKNOWN", message: None, details: Vec::new(), headers: Vec::new() }
    }

    fn header(mut self, name: HeaderName, value: impl ToString) -> Self {
        self.headers.push((name, value.to_string()));
        self
    }

    fn detail(mut self, detail: Value) -> Self {
        self.details.push(detail);
        self
    }

    /// The answer to request `number`.
    pub(super) fn response(self, number: u64) -> Response<Body> {
        let message = self.message.unwrap_or_else(|| format!("the node failed; its log says why, under request {number}"));
        let entry = |detail: Option<&Value>| match detail {
            Some(detail) => json!({"code": self.code, "message": message, "detail": detail}),
            None => json!({"code": self.code, "message": message}),
        };
        let errors: Vec<_> =
            if self.details.is_empty() { vec![entry(None)] } else { self.details.iter().map(|detail| entry(Some(detail))).collect() };
        let bytes = Bytes::from(json!({ "errors": errors }).to_string());
        let mut response = Response::new(whole(bytes));
        *response.status_mut() = self.status;
        let headers = response.headers_mut();
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
        for (name, value) in self.headers {
            headers.insert(name, HeaderValue::try_from(value).expect("header values here are numbers, methods and paths"));
        }
        response
    }
}

impl Error {
    /// What was wanted and what could be had, when the disk is full; that is in the log once, and not for each request.
    pub(super) fn shortage(&self) -> Option<(u64, u64)> {
        let error = match self {
            Error::Store(error) => error,
            Error::Lookup(lookup::Error::Store { source, .. }) => source.as_ref(),
            _ => return None,
        };
        match error {
            store::Error::Full { need, have } => Some((*need, *have)),
            // The system said no where the ledger had said yes: another program takes the space.
            other => other.is_full().then_some((0, 0)),
        }
    }

    /// What the client is told.
    pub(super) fn refusal(&self) -> Refusal {
        let refuse = |status, code| Refusal::new(status, code, self);
        match self {
            Error::NoSuchPath => refuse(StatusCode::NOT_FOUND, "UNSUPPORTED"),
            Error::Method { allow } => refuse(StatusCode::METHOD_NOT_ALLOWED, "UNSUPPORTED").header(header::ALLOW, allow),
            Error::Name(InvalidName::Repository) => refuse(StatusCode::BAD_REQUEST, "NAME_INVALID"),
            Error::Name(InvalidName::Tag) => refuse(StatusCode::BAD_REQUEST, "MANIFEST_INVALID"),
            Error::Name(InvalidName::Digest(_)) | Error::Digest(_) => refuse(StatusCode::BAD_REQUEST, "DIGEST_INVALID"),
            Error::Page => refuse(StatusCode::BAD_REQUEST, "PAGINATION_NUMBER_INVALID"),
            Error::TooManyTags { .. } => refuse(StatusCode::URI_TOO_LONG, "MANIFEST_INVALID"),
            Error::SessionUnknown => refuse(StatusCode::NOT_FOUND, "BLOB_UPLOAD_UNKNOWN"),
            Error::BlobUnknown { digest } => refuse(StatusCode::NOT_FOUND, "BLOB_UNKNOWN").detail(json!({ "digest": digest })),
            Error::ManifestUnknown { reference } => {
                refuse(StatusCode::NOT_FOUND, "MANIFEST_UNKNOWN").detail(json!({ "reference": reference }))
            }
            Error::RepositoryUnknown { name } => refuse(StatusCode::NOT_FOUND, "NAME_UNKNOWN").detail(json!({ "name": name.as_str() })),
            Error::Encoded => refuse(StatusCode::UNSUPPORTED_MEDIA_TYPE, "UNSUPPORTED"),
            Error::MediaType { .. } => refuse(StatusCode::BAD_REQUEST, "MANIFEST_INVALID"),
            Error::ManifestTooLarge { .. } | Error::BlobTooLarge { .. } => refuse(StatusCode::PAYLOAD_TOO_LARGE, "SIZE_INVALID"),
            Error::ContentRange => refuse(StatusCode::BAD_REQUEST, "BLOB_UPLOAD_INVALID"),
            Error::OutOfOrder { offset, location } => refuse(StatusCode::RANGE_NOT_SATISFIABLE, "BLOB_UPLOAD_INVALID")
                .header(header::RANGE, uploaded(*offset))
                .header(header::LOCATION, location),
            Error::WrongSize { offset, location } => refuse(StatusCode::RANGE_NOT_SATISFIABLE, "SIZE_INVALID")
                .header(header::RANGE, uploaded(*offset))
                .header(header::LOCATION, location),
            Error::Unsatisfiable { size } => {
                refuse(StatusCode::RANGE_NOT_SATISFIABLE, "SIZE_INVALID").header(header::CONTENT_RANGE, format!("bytes */{size}"))
            }
            Error::Stalled { .. } => refuse(StatusCode::REQUEST_TIMEOUT, "BLOB_UPLOAD_INVALID").header(header::CONNECTION, "close"),
            Error::Broken { .. } => refuse(StatusCode::BAD_REQUEST, "BLOB_UPLOAD_INVALID").header(header::CONNECTION, "close"),
            Error::Unauthorized { challenge, .. } => {
                refuse(StatusCode::UNAUTHORIZED, "UNAUTHORIZED").header(header::WWW_AUTHENTICATE, challenge)
            }
            Error::Login { .. } => refuse(StatusCode::FORBIDDEN, "DENIED"),
            Error::TokenRequest { .. } => refuse(StatusCode::BAD_REQUEST, "UNSUPPORTED"),
            Error::Denied { .. } => refuse(StatusCode::FORBIDDEN, "DENIED"),
            Error::Identity(auth::Refused::Credentials(_)) => refuse(StatusCode::UNAUTHORIZED, "UNAUTHORIZED"),
            Error::Identity(auth::Refused::Slowed(wait)) => {
                refuse(StatusCode::TOO_MANY_REQUESTS, "TOOMANYREQUESTS").header(header::RETRY_AFTER, wait.as_secs().max(1))
            }
            Error::Identity(auth::Refused::Busy) => {
                refuse(StatusCode::TOO_MANY_REQUESTS, "TOOMANYREQUESTS").header(header::RETRY_AFTER, RETRY_BUSY_S)
            }
            Error::Identity(auth::Refused::Store(error)) | Error::Store(error) => of_store(error),
            Error::TooManyRequests(_) => refuse(StatusCode::TOO_MANY_REQUESTS, "TOOMANYREQUESTS").header(header::RETRY_AFTER, RETRY_BUSY_S),
            Error::Lookup(lookup::Error::NotFound { .. }) => refuse(StatusCode::NOT_FOUND, "BLOB_UNKNOWN"),
            // It does not help to come back, until somebody asks for it.
            Error::Lookup(lookup::Error::Frozen { ready_in: None, .. }) => refuse(StatusCode::NOT_FOUND, "BLOB_UNKNOWN"),
            Error::Lookup(lookup::Error::Frozen { ready_in: Some(left), .. }) => {
                let left = left.as_secs().clamp(RETRY_FROZEN_S.0, RETRY_FROZEN_S.1);
                refuse(StatusCode::SERVICE_UNAVAILABLE, "UNAVAILABLE").header(header::RETRY_AFTER, left)
            }
            Error::Lookup(lookup::Error::Store { digest: _, source }) => of_fetch(source),
            Error::NotSafe(NotSafe::Store(error)) => of_store(error),
            Error::NotSafe(NotSafe::NoArchive(_)) => Refusal::internal(),
            // It does not help to come back soon.
            Error::NotSafe(NotSafe::TooFew { .. }) => refuse(StatusCode::SERVICE_UNAVAILABLE, "UNAVAILABLE"),
            Error::NotSafe(error @ (NotSafe::Copies { .. } | NotSafe::Archive { .. } | NotSafe::Busy { .. })) => {
                let mut refusal = refuse(StatusCode::SERVICE_UNAVAILABLE, "UNAVAILABLE").header(header::RETRY_AFTER, RETRY_UNSAFE_S);
                refusal.details = error.missing().iter().take(MISSING_LISTED_MAX).map(|digest| json!({ "digest": digest })).collect();
                refusal
            }
        }
    }
}

/// How a session's progress is written: the first and the last byte that are there. An empty session says `0-0`, as other registries do.
pub(super) fn uploaded(offset: u64) -> String {
    format!("0-{}", offset.saturating_sub(1))
}

fn too_many(refused: &Refused) -> String {
    match refused {
        Refused::Origin { limit } => format!("{limit} requests from this address are under way (http.requests_per_client_max); try again"),
        Refused::Total { limit } => format!("{limit} requests are under way here (http.requests_max); try again, or another node"),
    }
}

fn of_store(error: &store::Error) -> Refusal {
    use store::Error as E;
    if let E::Full { need, have } = error {
        let message = format!(
            "this node's disk is full: {} more are needed and {} are left; delete images that nobody needs and run `larder gc`, give the \
             node more disk space, or push to another node",
            ByteSize::b(*need),
            ByteSize::b(*have)
        );
        return Refusal::new(StatusCode::SERVICE_UNAVAILABLE, "UNAVAILABLE", message).header(header::RETRY_AFTER, RETRY_FULL_S);
    }
    if error.is_full() {
        return Refusal::new(StatusCode::SERVICE_UNAVAILABLE, "UNAVAILABLE", "this node's disk is full: nothing can be pushed to it now")
            .header(header::RETRY_AFTER, RETRY_FULL_S);
    }
    let refuse = |status, code| Refusal::new(status, code, error);
    match error {
        E::Io { .. } | E::Index { .. } | E::Damaged { .. } | E::Locked { .. } | E::Unsafe { .. } | E::Full { .. } => Refusal::internal(),
        E::UploadUnknown => Error::SessionUnknown.refusal(),
        E::UploadBusy => refuse(StatusCode::CONFLICT, "BLOB_UPLOAD_INVALID").header(header::RETRY_AFTER, RETRY_BUSY_S),
        E::TooManyUploads { .. } => refuse(StatusCode::TOO_MANY_REQUESTS, "TOOMANYREQUESTS").header(header::RETRY_AFTER, RETRY_FULL_S),
        E::TooLarge { .. } => refuse(StatusCode::PAYLOAD_TOO_LARGE, "SIZE_INVALID"),
        E::DigestMismatch { expected, actual } => {
            refuse(StatusCode::BAD_REQUEST, "DIGEST_INVALID").detail(json!({ "expected": expected, "actual": actual }))
        }
        E::InvalidManifest(_) => refuse(StatusCode::BAD_REQUEST, "MANIFEST_INVALID"),
        E::Missing(digests) => {
            let mut refusal = refuse(StatusCode::BAD_REQUEST, "MANIFEST_BLOB_UNKNOWN");
            refusal.details = digests.iter().take(MISSING_LISTED_MAX).map(|digest| json!({ "digest": digest })).collect();
            refusal
        }
        E::Immutable { .. } => refuse(StatusCode::CONFLICT, "DENIED"),
        E::Taken { .. } => refuse(StatusCode::FORBIDDEN, "DENIED"),
        E::Changed { standing, .. } => {
            let refusal = refuse(StatusCode::PRECONDITION_FAILED, "DENIED");
            match standing {
                Some(digest) => refusal.header(header::ETAG, format!("\"{digest}\"")),
                None => refusal,
            }
        }
        E::Reader => refuse(StatusCode::FORBIDDEN, "DENIED"),
        E::Abandoned => Refusal::new(StatusCode::SERVICE_UNAVAILABLE, "UNAVAILABLE", "the blob's source went away; try again")
            .header(header::RETRY_AFTER, RETRY_BUSY_S),
        E::Closed => {
            Refusal::new(StatusCode::SERVICE_UNAVAILABLE, "UNAVAILABLE", "this node is stopping").header(header::RETRY_AFTER, RETRY_FULL_S)
        }
    }
}

/// A failure while content was brought here: whatever it was, the client that asked for the content did nothing wrong.
fn of_fetch(error: &store::Error) -> Refusal {
    use store::Error as E;
    match error {
        E::Io { .. }
        | E::Index { .. }
        | E::Damaged { .. }
        | E::Locked { .. }
        | E::Unsafe { .. }
        | E::Full { .. }
        | E::Abandoned
        | E::Closed => of_store(error),
        E::DigestMismatch { .. } | E::TooLarge { .. } => of_store(&E::Abandoned),
        E::UploadUnknown
        | E::UploadBusy
        | E::TooManyUploads { .. }
        | E::InvalidManifest(_)
        | E::Missing(_)
        | E::Changed { .. }
        | E::Taken { .. }
        | E::Immutable { .. }
        | E::Reader => Refusal::internal(),
    }
}

#[cfg(test)]
mod tests {
    use std::io;

    use http_body_util::BodyExt;

    use super::*;

    async fn told(error: Error) -> (u16, Value, http::HeaderMap) {
        let response = error.refusal().response(7);
        let (head, body) = response.into_parts();
        let body = serde_json::from_slice(&body.collect().await.unwrap().to_bytes()).unwrap();
        (head.status.as_u16(), body, head.headers)
    }

    fn io_error(kind: io::ErrorKind) -> Error {
        Error::Store(store::Error::Io { doing: "append to", path: "/secret/uploads/1".into(), source: kind.into() })
    }

    fn fetched(source: store::Error) -> Error {
        lookup::Error::Store { digest: Digest::sha256(b""), source: std::sync::Arc::new(source) }.into()
    }

    #[tokio::test]
    async fn each_failure_has_its_status_and_code() {
        let digest = Digest::sha256(b"");
        for (error, status, code) in [
            (Error::Name(InvalidName::Repository), 400, "NAME_INVALID"),
            (Error::Name(InvalidName::Digest(InvalidDigest::Hex)), 400, "DIGEST_INVALID"),
            (Error::SessionUnknown, 404, "BLOB_UPLOAD_UNKNOWN"),
            (Error::BlobUnknown { digest }, 404, "BLOB_UNKNOWN"),
            (Error::ManifestUnknown { reference: "x".into() }, 404, "MANIFEST_UNKNOWN"),
            (Error::Encoded, 415, "UNSUPPORTED"),
            (Error::ManifestTooLarge { limit: 1 }, 413, "SIZE_INVALID"),
            (Error::TooManyRequests(Refused::Origin { limit: 1 }), 429, "TOOMANYREQUESTS"),
            (Error::Stalled { seconds: 60 }, 408, "BLOB_UPLOAD_INVALID"),
            (store::Error::UploadUnknown.into(), 404, "BLOB_UPLOAD_UNKNOWN"),
            (store::Error::UploadBusy.into(), 409, "BLOB_UPLOAD_INVALID"),
            (store::Error::TooManyUploads { limit: 1, setting: "registry.uploads_max" }.into(), 429, "TOOMANYREQUESTS"),
            (store::Error::TooLarge { limit: 1 }.into(), 413, "SIZE_INVALID"),
            (store::Error::DigestMismatch { expected: digest, actual: digest }.into(), 400, "DIGEST_INVALID"),
            (store::Error::InvalidManifest(store::InvalidManifest::Ambiguous).into(), 400, "MANIFEST_INVALID"),
            (store::Error::Missing(vec![digest]).into(), 400, "MANIFEST_BLOB_UNKNOWN"),
            (store::Error::Closed.into(), 503, "UNAVAILABLE"),
            (lookup::Error::NotFound { digest }.into(), 404, "BLOB_UNKNOWN"),
            (lookup::Error::Frozen { digest, ready_in: None }.into(), 404, "BLOB_UNKNOWN"),
            (lookup::Error::Frozen { digest, ready_in: Some(std::time::Duration::ZERO) }.into(), 503, "UNAVAILABLE"),
            (fetched(store::Error::DigestMismatch { expected: digest, actual: digest }), 503, "UNAVAILABLE"),
            (fetched(store::Error::Abandoned), 503, "UNAVAILABLE"),
            (NotSafe::TooFew { wanted: 2, members: 1 }.into(), 503, "UNAVAILABLE"),
            (NotSafe::Archive { within: std::time::Duration::from_secs(1), missing: vec![digest] }.into(), 503, "UNAVAILABLE"),
            (io_error(io::ErrorKind::PermissionDenied), 500, "UNKNOWN"),
        ] {
            let words = error.to_string();
            let (actual, body, _) = told(error).await;
            assert_eq!((actual, body["errors"][0]["code"].as_str()), (status, Some(code)), "{words}");
        }
    }

    #[tokio::test]
    async fn causes_and_paths_stay_in_the_log() {
        let (status, body, _) = told(io_error(io::ErrorKind::PermissionDenied)).await;
        assert_eq!(status, 500);
        assert!(!body.to_string().contains("secret"), "{body}");
        assert!(body.to_string().contains("request 7"), "{body}");
    }

    #[tokio::test]
    async fn f6_a_full_disk_asks_the_client_to_come_back() {
        let (status, body, headers) = told(io_error(io::ErrorKind::StorageFull)).await;
        assert_eq!(status, 503);
        assert!(headers.contains_key(header::RETRY_AFTER));
        assert!(!body.to_string().contains("secret"), "{body}");
    }

    #[tokio::test]
    async fn f36_what_thaws_says_for_how_long_and_what_nobody_asked_for_says_so() {
        let digest = Digest::sha256(b"");
        let thaws = |seconds| lookup::Error::Frozen { digest, ready_in: Some(std::time::Duration::from_secs(seconds)) };
        for (left, retry, words) in [(0, "60", "about to be readable"), (3600, "3600", "60 minutes"), (40 * 3600, "21600", "40 hours")] {
            let (_, body, headers) = told(thaws(left).into()).await;
            assert_eq!(headers[header::RETRY_AFTER], retry);
            assert!(body.to_string().contains(words), "{body}");
        }
        let (_, body, headers) = told(lookup::Error::Frozen { digest, ready_in: None }.into()).await;
        assert!(body.to_string().contains("larder archive thaw") && !headers.contains_key(header::RETRY_AFTER), "{body}");
    }

    #[tokio::test]
    async fn a_chunk_out_of_order_is_told_where_the_session_stands() {
        let (status, _, headers) = told(Error::OutOfOrder { offset: 10, location: "/v2/a/blobs/uploads/x".into() }).await;
        assert_eq!(
            (status, &headers[header::RANGE], &headers[header::LOCATION]),
            (416, &"0-9".parse().unwrap(), &"/v2/a/blobs/uploads/x".parse().unwrap())
        );
        let (status, _, headers) = told(Error::Unsatisfiable { size: 5 }).await;
        assert_eq!((status, &headers[header::CONTENT_RANGE]), (416, &"bytes */5".parse().unwrap()));
    }

    #[tokio::test]
    async fn missing_blobs_are_listed_up_to_a_limit() {
        let digests = (0..MISSING_LISTED_MAX as u32 + 5).map(|i| Digest::sha256(&i.to_le_bytes())).collect();
        let (_, body, _) = told(store::Error::Missing(digests).into()).await;
        assert_eq!(body["errors"].as_array().unwrap().len(), MISSING_LISTED_MAX);
        assert!(body["errors"][0]["detail"]["digest"].as_str().unwrap().starts_with("sha256:"));
    }
}
