//! A real S3 server on a folder, which counts every HTTP request and fails on demand.
//!
//! It can be slow, answer 503, cut what it sends or takes, do what was asked and lose the answer, have another time than the client, refuse
//! credentials that were valid before, and thaw what is frozen.
//!
//! It counts where requests come in, before anything has judged them: a retry, a probe or a request with a wrong signature is
//! counted like any other, so a test that says "one PUT and nothing else" does not depend on what the daemon says about itself.

mod classes;
mod folder;
mod multipart;
mod prices;

use folder::Folder;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use s3s::auth::{S3Auth, SecretKey};
use s3s::config::{S3Config, StaticConfigProvider};
use s3s::service::{S3Service, S3ServiceBuilder};
use std::collections::{BTreeMap, HashMap, VecDeque};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime};
use tokio::net::TcpListener;

pub use classes::STANDARD;
pub use prices::Bill;

/// The bucket that every server has.
pub const BUCKET: &str = "larder-test";
const ACCESS_KEY: &str = "test-access-key";
const SECRET_KEY: &str = "test-secret-key";
const REGION: &str = "us-east-1";

/// What a request asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Operation {
    /// PutObject.
    Put,
    /// GetObject, of a range or the whole.
    Get,
    /// HeadObject or HeadBucket.
    Head,
    /// ListObjects, any version.
    List,
    /// DeleteObject.
    Delete,
    /// Anything else.
    Other,
    /// CreateMultipartUpload.
    Begin,
    /// UploadPart.
    Part,
    /// CompleteMultipartUpload.
    Complete,
    /// AbortMultipartUpload.
    Abort,
    /// RestoreObject.
    Restore,
}

/// One request that came in.
#[derive(Debug, Clone)]
pub struct Request {
    /// What it asked for.
    pub operation: Operation,
    /// The object's key, without the bucket; empty when it was about the bucket.
    pub key: String,
    /// The Range header, or "".
    pub range: String,
    /// How large its body said it is.
    pub body_size: u64,
    /// What it was answered; 0 when the answer was dropped.
    pub status: u16,
    /// How large the answer said it is.
    pub answer_size: u64,
    /// The storage class that it put an object as, or that the object has.
    pub class: String,
}

/// What goes wrong with a request. One fault is used up by one request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// 503 SlowDown; nothing is done.
    Unavailable,
    /// It is done, and then the connection is closed without an answer.
    DropAnswer,
    /// A PUT keeps only so many bytes and says that all is well.
    TruncatePut(u64),
    /// A GET's body ends after so many bytes, and the connection with it.
    TruncateGet(u64),
    /// It is done after this time.
    Stall(Duration),
    /// Nothing is done, and this is the answer: a status and a code of S3.
    Refuse(u16, &'static str),
    /// It is done, and the answer is 200 with an error as its body, as CompleteMultipartUpload may answer.
    ErrorIn200,
}

#[derive(Debug, Default)]
struct State {
    requests: Vec<Request>,
    faults: VecDeque<(Operation, Fault)>,
    /// Requests of every kind that still fail.
    unavailable_count: u64,
    classes: classes::Classes,
    uploads: BTreeMap<String, multipart::Upload>,
    next_upload: u64,
    /// Secrets by access key.
    credentials: HashMap<String, String>,
    /// Seconds that this server's clock is ahead.
    clock_ahead_s: i64,
}

/// Knows the credentials that are valid now.
struct Credentials(Arc<Mutex<State>>);

#[async_trait::async_trait]
impl S3Auth for Credentials {
    async fn get_secret_key(&self, access_key: &str) -> s3s::S3Result<SecretKey> {
        let state = self.0.lock().expect("no test panics while it holds this");
        match state.credentials.get(access_key) {
            Some(secret) => Ok(SecretKey::from(secret.clone())),
            None => Err(s3s::s3_error!(InvalidAccessKeyId, "The access key you provided is not valid any more")),
        }
    }
}

/// The server. Ends when it is dropped, and its folder goes with it.
#[derive(Debug)]
pub struct CountingS3 {
    folder: tempfile::TempDir,
    endpoint: String,
    state: Arc<Mutex<State>>,
    server: tokio::task::JoinHandle<()>,
}

impl CountingS3 {
    /// Starts a server with the empty bucket [`BUCKET`] on a port of its own, inside the test's runtime.
    pub async fn start() -> Self {
        let folder = tempfile::Builder::new().prefix("larder-s3-").tempdir().expect("make a temporary folder");
        std::fs::create_dir(folder.path().join(BUCKET)).expect("make the bucket");
        let credentials = [(ACCESS_KEY.to_owned(), SECRET_KEY.to_owned())].into();
        let state = Arc::new(Mutex::new(State { credentials, ..State::default() }));
        let mut builder = S3ServiceBuilder::new(Folder { root: folder.path().to_owned(), state: state.clone() });
        builder.set_auth(Credentials(state.clone()));
        // It has a clock of its own (`set_clock_ahead`), by which it refuses.
        let mut config = S3Config::default();
        config.presigned_url_max_skew_time_secs = u32::MAX;
        builder.set_config(Arc::new(StaticConfigProvider::new(Arc::new(config))));
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("take a port");
        let endpoint = format!("http://{}", listener.local_addr().expect("a bound listener has an address"));
        let server = tokio::spawn(accept(listener, builder.build(), state.clone()));
        Self { folder, endpoint, state, server }
    }

    /// `http://127.0.0.1:port`.
    pub fn endpoint(&self) -> &str {
        &self.endpoint
    }

    /// The `s3://` address of `prefix` in the bucket.
    pub fn url(&self, prefix: &str) -> String {
        format!("s3://{BUCKET}/{prefix}")
    }

    /// What a node needs in its environment to use `prefix` of this server as its bucket.
    pub fn environment(&self, prefix: &str) -> Vec<(&'static str, String)> {
        vec![
            ("LARDER_ARCHIVE__URL", self.url(prefix)),
            ("LARDER_ARCHIVE__ENDPOINT", self.endpoint.clone()),
            ("LARDER_ARCHIVE__REGION", REGION.to_owned()),
            ("LARDER_ARCHIVE__PATH_STYLE", "true".to_owned()),
            ("AWS_ACCESS_KEY_ID", ACCESS_KEY.to_owned()),
            ("AWS_SECRET_ACCESS_KEY", SECRET_KEY.to_owned()),
            // Nobody answers there, and asking takes seconds.
            ("AWS_EC2_METADATA_DISABLED", "true".to_owned()),
        ]
    }

    /// Every request since the start or the last [`CountingS3::forget`], in the order in which they came.
    pub fn requests(&self) -> Vec<Request> {
        self.lock().requests.clone()
    }

    /// How many requests of this kind there were.
    pub fn count(&self, operation: Operation) -> usize {
        self.lock().requests.iter().filter(|request| request.operation == operation).count()
    }

    /// Begins to count anew.
    pub fn forget(&self) {
        self.lock().requests.clear();
    }

    /// Answers the next `count` requests, whatever they are, with 503.
    pub fn fail_next(&self, count: u64) {
        self.lock().unavailable_count = count;
    }

    /// Lets `fault` happen to the next request of the kind `operation`; further calls add further faults.
    pub fn inject(&self, operation: Operation, fault: Fault) {
        self.lock().faults.push_back((operation, fault));
    }

    /// What the requests since the start or the last [`CountingS3::forget`] would have cost.
    pub fn bill(&self) -> Bill {
        prices::bill(&self.lock().requests)
    }

    /// How long it takes from now on until an object that is asked for has thawed.
    pub fn set_thaw_time(&self, time: Duration) {
        self.lock().classes.thaw_time = time;
    }

    /// Everything that was asked for has thawed.
    pub fn finish_thaws(&self) {
        self.lock().classes.finish_thaws();
    }

    /// What was thawed is frozen again.
    pub fn freeze_all(&self) {
        self.lock().classes.freeze_all();
    }

    /// The storage class of an object.
    pub fn class(&self, key: &str) -> String {
        self.lock().classes.class(key).to_owned()
    }

    /// From now on only this access key and secret are taken.
    pub fn rotate_credentials(&self, access_key: &str, secret: &str) {
        self.lock().credentials = [(access_key.to_owned(), secret.to_owned())].into();
    }

    /// Sets this server's clock ahead of this host's, or behind.
    pub fn set_clock_ahead(&self, seconds: i64) {
        self.lock().clock_ahead_s = seconds;
    }

    /// Uploads in parts that were begun and neither completed nor given up.
    pub fn open_uploads(&self) -> usize {
        self.lock().uploads.len()
    }

    /// Forgets faults that no request has met.
    pub fn clear_faults(&self) {
        let mut state = self.lock();
        state.faults.clear();
        state.unavailable_count = 0;
    }

    /// How many injected faults are still waiting for a request.
    pub fn faults_left(&self) -> usize {
        let state = self.lock();
        state.faults.len() + state.unavailable_count as usize
    }

    /// Key and size of all objects, sorted by key; not counted as a request.
    pub fn objects(&self) -> Vec<(String, u64)> {
        folder::walk(&self.folder.path().join(BUCKET)).expect("read the bucket's folder")
    }

    /// Where an object lies, for tests that damage or remove it.
    pub fn object_path(&self, key: &str) -> PathBuf {
        self.bucket_dir().join(key)
    }

    /// The bucket as a folder.
    pub fn bucket_dir(&self) -> PathBuf {
        self.folder.path().join(BUCKET)
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, State> {
        self.state.lock().expect("no test panics while it holds this")
    }
}

impl Drop for CountingS3 {
    fn drop(&mut self) {
        self.server.abort();
    }
}

async fn accept(listener: TcpListener, service: S3Service, state: Arc<Mutex<State>>) {
    let mut connections = tokio::task::JoinSet::new();
    while let Ok((stream, _)) = listener.accept().await {
        while connections.try_join_next().is_some() {}
        let (service, state) = (service.clone(), state.clone());
        // Otherwise small answers wait for the client's delayed acknowledgement.
        let _ = stream.set_nodelay(true);
        connections.spawn(async move {
            let answer = service_fn(move |request| answer(service.clone(), state.clone(), request));
            // A client that goes away, or a fault that drops the answer, ends the connection with an error: nothing to say.
            let _ = http1::Builder::new().serve_connection(TokioIo::new(stream), answer).await;
        });
    }
}

/// Counts one request, and answers it or lets its fault happen.
async fn answer(
    service: S3Service,
    state: Arc<Mutex<State>>,
    request: hyper::Request<Incoming>,
) -> Result<hyper::Response<s3s::Body>, io::Error> {
    let (index, fault) = {
        let mut state = state.lock().expect("no test panics while it holds this");
        let mut described = describe(&request);
        if described.class.is_empty() {
            described.class = state.classes.class(&described.key).to_owned();
        }
        let fault = state.next_fault(described.operation);
        state.requests.push(described);
        (state.requests.len() - 1, fault)
    };
    let ahead = state.lock().expect("no test panics while it holds this").clock_ahead_s;
    if let Some(Fault::Stall(time)) = fault {
        tokio::time::sleep(time).await;
    }
    let refused = match fault {
        Some(Fault::Unavailable) => Some((503, "SlowDown")),
        Some(Fault::Refuse(status, code)) => Some((status, code)),
        _ if is_skewed(&request, ahead) => Some((403, "RequestTimeTooSkewed")),
        _ => None,
    };
    let answered = match refused {
        Some((status, code)) => {
            // Read to its end, as a proxy in front of S3 does: a client still sending would see a broken pipe, not the refusal.
            let _ = http_body_util::BodyExt::collect(request.into_body()).await;
            Ok(refusal(status, code))
        }
        None => hyper::service::Service::call(&service, request).await.map_err(io::Error::other),
    };
    let mut answered = match fault {
        Some(Fault::DropAnswer) => Err(io::Error::other("this answer is dropped on purpose")),
        Some(Fault::TruncateGet(keep)) => answered.map(|answer| answer.map(|body| folder::truncated(body, keep))),
        Some(Fault::ErrorIn200) => answered.map(|_| refusal(200, "InternalError")),
        _ => answered,
    };
    if let Ok(answer) = &mut answered {
        let date = s3s::dto::Timestamp::from(shifted(SystemTime::now(), ahead));
        let mut text = Vec::new();
        if date.format(s3s::dto::TimestampFormat::HttpDate, &mut text).is_ok() {
            answer.headers_mut().insert("date", hyper::header::HeaderValue::from_bytes(&text).expect("a date is a valid header"));
        }
    }
    let status = answered.as_ref().map_or(0, |answer| answer.status().as_u16());
    let length = |answer: &hyper::Response<s3s::Body>| answer.headers().get("content-length")?.to_str().ok()?.parse().ok();
    let answer_size = answered.as_ref().ok().and_then(length).unwrap_or(0);
    // A test may have begun to count anew meanwhile.
    if let Some(request) = state.lock().expect("no test panics while it holds this").requests.get_mut(index) {
        (request.status, request.answer_size) = (status, answer_size);
    }
    answered
}

/// Most seconds between a request's time and the server's.
const SKEW_MAX: i64 = 15 * 60;

/// Whether a request was signed at a time that is not the server's.
fn is_skewed(request: &hyper::Request<Incoming>, ahead: i64) -> bool {
    let date = request.headers().get("x-amz-date").and_then(|date| date.to_str().ok()).and_then(seconds);
    let now = shifted(SystemTime::now(), ahead).duration_since(SystemTime::UNIX_EPOCH).map_or(0, |since| since.as_secs() as i64);
    date.is_some_and(|date| (date - now).abs() > SKEW_MAX)
}

/// Seconds since 1970 of `20261125T210314Z`.
fn seconds(date: &str) -> Option<i64> {
    let number = |range: std::ops::Range<usize>| date.get(range)?.parse::<i64>().ok();
    let (year, month, day) = (number(0..4)?, number(4..6)?, number(6..8)?);
    // Days from the civil calendar, with the year beginning in March.
    let (year, month) = if month > 2 { (year, month - 3) } else { (year - 1, month + 9) };
    let days = 365 * year + year / 4 - year / 100 + year / 400 + (153 * month + 2) / 5 + day - 1 - 719_468;
    Some(days * 86_400 + number(9..11)? * 3600 + number(11..13)? * 60 + number(13..15)?)
}

fn shifted(time: SystemTime, seconds: i64) -> SystemTime {
    let by = Duration::from_secs(seconds.unsigned_abs());
    if seconds < 0 { time - by } else { time + by }
}

impl State {
    fn next_fault(&mut self, operation: Operation) -> Option<Fault> {
        if self.unavailable_count > 0 {
            self.unavailable_count -= 1;
            return Some(Fault::Unavailable);
        }
        let place = self.faults.iter().position(|(wanted, _)| *wanted == operation)?;
        // The folder itself takes this one, when the object is written.
        if matches!(self.faults[place].1, Fault::TruncatePut(_)) {
            return None;
        }
        self.faults.remove(place).map(|(_, fault)| fault)
    }

    /// How many bytes of the object that is being written are to be kept, when not all.
    fn take_put_limit(&mut self) -> Option<u64> {
        let place = self.faults.iter().position(|(_, fault)| matches!(fault, Fault::TruncatePut(_)))?;
        match self.faults.remove(place) {
            Some((_, Fault::TruncatePut(keep))) => Some(keep),
            _ => None,
        }
    }
}

fn describe(request: &hyper::Request<Incoming>) -> Request {
    let path = request.uri().path().trim_start_matches('/');
    let (_, key) = path.split_once('/').unwrap_or((path, ""));
    let query: Vec<&str> = request.uri().query().unwrap_or("").split('&').map(|pair| pair.split('=').next().unwrap_or("")).collect();
    let about = |name| query.contains(&name);
    let operation = match (request.method().as_str(), key.is_empty()) {
        ("POST", false) if about("uploads") => Operation::Begin,
        ("PUT", false) if about("uploadId") => Operation::Part,
        ("POST", false) if about("uploadId") => Operation::Complete,
        ("DELETE", false) if about("uploadId") => Operation::Abort,
        ("POST", false) if about("restore") => Operation::Restore,
        _ if about("uploads") || about("uploadId") => Operation::Other,
        ("PUT", false) => Operation::Put,
        ("GET", false) => Operation::Get,
        ("GET", true) => Operation::List,
        ("HEAD", _) => Operation::Head,
        ("DELETE", false) => Operation::Delete,
        _ => Operation::Other,
    };
    let header = |name: &str| request.headers().get(name).and_then(|value| value.to_str().ok()).unwrap_or("").to_owned();
    let (range, class) = (header("range"), header("x-amz-storage-class"));
    let body_size = header("content-length").parse().unwrap_or(0);
    Request { operation, key: key.to_owned(), range, body_size, status: 0, answer_size: 0, class }
}

fn refusal(status: u16, code: &str) -> hyper::Response<s3s::Body> {
    let body =
        format!("<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n<Error><Code>{code}</Code><Message>Refused on purpose.</Message></Error>");
    let answer = hyper::Response::builder().status(status).header("content-type", "application/xml");
    answer.body(s3s::Body::from(body)).expect("these headers are valid")
}

/// The object's file below `root`, when the key does not lead out of it.
fn object_path(root: &Path, bucket: &str, key: &str) -> Option<PathBuf> {
    let normal = key.split('/').all(|part| !part.is_empty() && part != "." && part != "..");
    normal.then(|| root.join(bucket).join(key))
}
