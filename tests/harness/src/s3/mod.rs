//! A real S3 server on a folder, which counts every HTTP request and fails on demand.
//!
//! It counts where requests come in, before anything has judged them: a retry, a probe or a request with a wrong signature is
//! counted like any other, so a test that says "one PUT and nothing else" does not depend on what the daemon says about itself.

mod folder;

use folder::Folder;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use s3s::auth::SimpleAuth;
use s3s::service::{S3Service, S3ServiceBuilder};
use std::collections::VecDeque;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use tokio::net::TcpListener;

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
    /// Anything else, parts of multipart uploads among them.
    Other,
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
}

#[derive(Debug, Default)]
struct State {
    requests: Vec<Request>,
    faults: VecDeque<(Operation, Fault)>,
    /// Requests of every kind that still fail.
    unavailable_count: u64,
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
        let state = Arc::new(Mutex::new(State::default()));
        let mut builder = S3ServiceBuilder::new(Folder { root: folder.path().to_owned(), state: state.clone() });
        builder.set_auth(SimpleAuth::from_single(ACCESS_KEY, SECRET_KEY));
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
        let described = describe(&request);
        let fault = state.next_fault(described.operation);
        state.requests.push(described);
        (state.requests.len() - 1, fault)
    };
    let answered = match fault {
        Some(Fault::Unavailable) => {
            // Read to its end, as a proxy in front of S3 does: a client still sending would see a broken pipe, not the 503.
            let _ = http_body_util::BodyExt::collect(request.into_body()).await;
            Ok(unavailable())
        }
        _ => hyper::service::Service::call(&service, request).await.map_err(io::Error::other),
    };
    let answered = match fault {
        Some(Fault::DropAnswer) => Err(io::Error::other("this answer is dropped on purpose")),
        Some(Fault::TruncateGet(keep)) => answered.map(|answer| answer.map(|body| folder::truncated(body, keep))),
        _ => answered,
    };
    let status = answered.as_ref().map_or(0, |answer| answer.status().as_u16());
    // A test may have begun to count anew meanwhile.
    if let Some(request) = state.lock().expect("no test panics while it holds this").requests.get_mut(index) {
        request.status = status;
    }
    answered
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
    let multipart = request.uri().query().is_some_and(|query| query.contains("upload"));
    let operation = match (request.method().as_str(), key.is_empty()) {
        _ if multipart => Operation::Other,
        ("PUT", false) => Operation::Put,
        ("GET", false) => Operation::Get,
        ("GET", true) => Operation::List,
        ("HEAD", _) => Operation::Head,
        ("DELETE", false) => Operation::Delete,
        _ => Operation::Other,
    };
    let header = |name: &str| request.headers().get(name).and_then(|value| value.to_str().ok()).unwrap_or("").to_owned();
    Request { operation, key: key.to_owned(), range: header("range"), body_size: header("content-length").parse().unwrap_or(0), status: 0 }
}

fn unavailable() -> hyper::Response<s3s::Body> {
    let body = "<?xml version=\"1.0\" encoding=\"UTF-8\"?><Error><Code>SlowDown</Code><Message>Reduce your request rate.</Message></Error>";
    let answer = hyper::Response::builder().status(503).header("content-type", "application/xml");
    answer.body(s3s::Body::from(body.to_owned())).expect("these headers are valid")
}

/// The object's file below `root`, when the key does not lead out of it.
fn object_path(root: &Path, bucket: &str, key: &str) -> Option<PathBuf> {
    let normal = key.split('/').all(|part| !part.is_empty() && part != "." && part != "..");
    normal.then(|| root.join(bucket).join(key))
}
