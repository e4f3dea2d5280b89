//! A bucket on S3, or on a server that speaks it; the only file that knows the SDK.
//!
//! A pack is one PutObject (above `archive.multipart_above`, in parts): its length and its CRC-64/NVME are announced, its bytes stream from the blob files and are read
//! again for a retry. The payload itself is not signed (that would cost a second pass over it), so it must travel over TLS or not leave
//! this host: other endpoints are refused. Credentials come from the SDK's default chain, and not before the first request.
//!
//! Every attempt is counted where it is handed to the network, retries included.

use std::fmt;
use std::net::IpAddr;
use std::ops::Range;
use std::time::Duration;

use aws_sdk_s3::Client;
use aws_sdk_s3::config::http::HttpRequest;
use aws_sdk_s3::config::interceptors::BeforeTransmitInterceptorContextRef;
use aws_sdk_s3::config::retry::RetryConfig;
use aws_sdk_s3::config::timeout::TimeoutConfig;
use aws_sdk_s3::config::{
    BehaviorVersion, ConfigBag, IdentityCache, Intercept, Region, RequestChecksumCalculation, ResponseChecksumValidation, RuntimeComponents,
};
use aws_sdk_s3::error::{BoxError, DisplayErrorContext, ProvideErrorMetadata, SdkError};
use aws_sdk_s3::primitives::{ByteStream, SdkBody};
use aws_sdk_s3::types::{ServerSideEncryption, StorageClass};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use futures_util::future::BoxFuture;
use futures_util::stream::{self, StreamExt};
use http::Uri;
use tokio::sync::OnceCell;

use crate::config::{Prices, Sse, Tier};

use super::bucket::{Bucket, Chunks, Object, Page, S3Settings};
use super::clock::Clock;
use super::ledger::{Ledger, Request};
use super::thaw::Seen;
use super::{Error, body, keys};

mod frozen;
mod mend;
mod parts;

/// Largest object: what S3 takes in parts.
const OBJECT_SIZE_MAX: u64 = 5 << 40;
/// Attempts of one request, the first included.
const ATTEMPTS_MAX: u32 = 4;
/// The longest wait between two of them.
const RETRY_DELAY_MAX: Duration = Duration::from_secs(20);
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// An answer must begin by then, besides the time that the request's bytes may take.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(60);
/// The slowest link, in bytes a second, on which a pack still gets through.
const PACE_MIN: u64 = 64 << 10;
/// Longest error text that is kept.
const DETAIL_LENGTH_MAX: usize = 600;

/// See the module.
pub struct S3 {
    id: String,
    bucket: String,
    prefix: String,
    settings: S3Settings,
    ledger: Ledger,
    client: OnceCell<Client>,
    mend: mend::Mend,
}

impl fmt::Debug for S3 {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "S3({})", self.id)
    }
}

impl S3 {
    /// Takes note of everything; asks for nothing.
    ///
    /// # Errors
    /// `Endpoint` when bytes would leave this host unprotected.
    pub fn new(bucket: &str, prefix: &str, settings: &S3Settings, ledger: Ledger) -> Result<Self, Error> {
        if let Some(endpoint) = &settings.endpoint {
            check_endpoint(endpoint)?;
        }
        let id = if prefix.is_empty() { format!("s3://{bucket}") } else { format!("s3://{bucket}/{prefix}") };
        let (bucket, prefix) = (bucket.to_owned(), prefix.to_owned());
        Ok(Self { id, bucket, prefix, settings: settings.clone(), ledger, client: OnceCell::new(), mend: mend::Mend::default() })
    }

    /// The time by which requests to this bucket are signed.
    pub(super) fn clock(&self) -> Clock {
        self.mend.clock.clone()
    }

    /// The client, made at the first request.
    async fn client(&self) -> &Client {
        self.client
            .get_or_init(|| async {
                // With the region given, loading reads files and environment only; credentials are looked for by the first request.
                let region = Region::new(self.settings.region.clone());
                let shared = aws_config::defaults(BehaviorVersion::latest())
                    .region(region.clone())
                    .credentials_provider(mend::Renewing::new(region, self.mend.clone()))
                    .identity_cache(IdentityCache::no_cache())
                    .load()
                    .await;
                self.configure(&shared)
            })
            .await
    }

    fn configure(&self, shared: &aws_config::SdkConfig) -> Client {
        let mut config = aws_sdk_s3::config::Builder::from(shared)
            .force_path_style(self.settings.path_style)
            .request_checksum_calculation(RequestChecksumCalculation::WhenRequired)
            .response_checksum_validation(ResponseChecksumValidation::WhenRequired)
            .retry_config(RetryConfig::standard().with_max_attempts(ATTEMPTS_MAX).with_max_backoff(RETRY_DELAY_MAX))
            .timeout_config(timeouts(0))
            .time_source(self.mend.clone())
            .retry_classifier(self.mend.clone())
            .interceptor(Count(self.ledger.clone()));
        if let Some(endpoint) = &self.settings.endpoint {
            config = config.endpoint_url(endpoint);
        }
        Client::from_conf(config.build())
    }

    fn error<E>(&self, doing: &'static str, key: &str, error: SdkError<E>) -> Error
    where
        E: ProvideErrorMetadata + std::error::Error + 'static,
    {
        let status = error.raw_response().map(|response| response.status().as_u16());
        let mut detail = match (error.code(), status) {
            (Some(code), status) => {
                let status = status.map(|status| format!("{status} ")).unwrap_or_default();
                format!("{status}{code}: {}{}", error.message().unwrap_or("no message"), mend(code))
            }
            (None, Some(status)) => format!("answer {status} without a code: {}", DisplayErrorContext(&error)),
            (None, None) => DisplayErrorContext(&error).to_string(),
        };
        if error.code() == Some("InvalidObjectState") && doing == "get" {
            return Error::Frozen { key: key.to_owned(), bucket: self.id.clone(), ready_in: None };
        }
        if error.code() == Some("NoSuchKey") {
            return Error::NoObject { key: key.to_owned(), bucket: self.id.clone() };
        }
        if detail.len() > DETAIL_LENGTH_MAX {
            let end = (0..=DETAIL_LENGTH_MAX).rev().find(|end| detail.is_char_boundary(*end)).unwrap_or(0);
            detail.truncate(end);
            detail.push_str("...");
        }
        if doing == "put" && matches!(error.code(), Some("BadDigest" | "InvalidDigest" | "XAmzContentChecksumMismatch")) {
            return Error::Checksum { key: key.to_owned(), detail };
        }
        Error::Bucket { doing, key: key.to_owned(), bucket: self.id.clone(), detail }
    }
}

impl Bucket for S3 {
    fn id(&self) -> &str {
        &self.id
    }

    fn prefix(&self) -> &str {
        &self.prefix
    }

    fn object_size_max(&self) -> u64 {
        OBJECT_SIZE_MAX
    }

    fn prices(&self) -> &Prices {
        &self.settings.prices
    }

    fn put_once(&self, object: Object) -> BoxFuture<'_, Result<(), Error>> {
        Box::pin(async move {
            if object.body.size() > self.settings.multipart_above {
                return self.put_parts(object).await;
            }
            let Object { key, crc64, body } = object;
            let (size, checksum) = (body.size(), BASE64.encode(crc64.to_be_bytes()));
            let again = body.clone();
            let content = SdkBody::retryable(move || SdkBody::from_body_1_x::<body::Reading, std::io::Error>(again.reading()));
            let answer = self
                .client()
                .await
                .put_object()
                .bucket(&self.bucket)
                .key(&key)
                .body(ByteStream::new(content))
                .content_length(i64::try_from(size).unwrap_or(i64::MAX))
                .content_type("application/x-tar")
                .set_storage_class(class_of(&key))
                .checksum_crc64_nvme(&checksum)
                .set_server_side_encryption(self.settings.sse.algorithm())
                .set_ssekms_key_id(self.settings.sse_kms_key.clone())
                .customize()
                .config_override(aws_sdk_s3::config::Builder::new().timeout_config(timeouts(size)))
                .send()
                .await;
            let answer = match answer {
                Ok(answer) => answer,
                // F27: an attempt before may have landed, in a bucket that lets nobody write over what it holds.
                Err(error) if is_kept(&error) && self.stands(&key, size, &checksum).await => return Ok(()),
                Err(error) => return Err(self.error("put", &key, error)),
            };
            match answer.checksum_crc64_nvme() {
                // A gateway that cut the body short and stored the rest would say so here.
                Some(stored) if stored != checksum => {
                    Err(Error::Checksum { key, detail: format!("the bucket stored checksum {stored}, {checksum} was sent") })
                }
                _ => Ok(()),
            }
        })
    }

    fn get_range<'a>(&'a self, key: &'a str, range: Range<u64>) -> BoxFuture<'a, Result<Chunks, Error>> {
        Box::pin(async move {
            if range.is_empty() {
                return Ok(stream::empty().boxed());
            }
            let request = self.client().await.get_object().bucket(&self.bucket).key(key);
            let answer = request
                .range(format!("bytes={}-{}", range.start, range.end - 1))
                .send()
                .await
                .map_err(|error| self.error("get", key, error))?;
            let failed = {
                let (key, bucket) = (key.to_owned(), self.id.clone());
                move |detail| Error::Bucket { doing: "get", key: key.clone(), bucket: bucket.clone(), detail }
            };
            // A server that ignores ranges would send the object from its first byte.
            let expected = format!("bytes {}-{}/", range.start, range.end - 1);
            if !answer.content_range().is_some_and(|found| found.starts_with(&expected)) {
                return Err(failed(format!(
                    "answered with range {:?}, {expected:?} was asked for",
                    answer.content_range().unwrap_or("none")
                )));
            }
            let (ledger, class) = (self.ledger.clone(), keys::class_of(key));
            let chunks = stream::try_unfold((answer.body, failed), move |(mut body, failed)| {
                let (ledger, class) = (ledger.clone(), class.clone());
                async move {
                    match body.next().await {
                        None => Ok(None),
                        Some(Ok(bytes)) => {
                            ledger.received(bytes.len() as u64, &class);
                            Ok(Some((bytes, (body, failed))))
                        }
                        Some(Err(error)) => Err(failed(format!("the answer broke off: {}", DisplayErrorContext(&error)))),
                    }
                }
            });
            Ok(chunks.boxed())
        })
    }

    fn delete<'a>(&'a self, key: &'a str) -> BoxFuture<'a, Result<(), Error>> {
        Box::pin(async move {
            let request = self.client().await.delete_object().bucket(&self.bucket).key(key);
            request.send().await.map(drop).map_err(|error| self.error("delete", key, error))
        })
    }

    fn list<'a>(&'a self, prefix: &'a str, after: Option<&'a str>) -> BoxFuture<'a, Result<Page, Error>> {
        Box::pin(self.list_page(prefix, after, false))
    }

    fn list_thaws<'a>(&'a self, prefix: &'a str, after: Option<&'a str>) -> BoxFuture<'a, Result<Page, Error>> {
        Box::pin(self.list_page(prefix, after, true))
    }

    fn head_thaw<'a>(&'a self, key: &'a str) -> BoxFuture<'a, Result<Seen, Error>> {
        Box::pin(self.head_of_frozen(key))
    }

    fn thaw<'a>(&'a self, key: &'a str, days: u32, tier: Tier) -> BoxFuture<'a, Result<bool, Error>> {
        Box::pin(self.ask_to_thaw(key, days, tier))
    }
}

/// What is said of an object's class: nothing, where it is the standard one.
fn class_of(key: &str) -> Option<StorageClass> {
    let class = keys::class_of(key);
    (!class.is_standard()).then(|| StorageClass::from(class.name()))
}

/// Whether a bucket may have refused to write over an object that is kept: by a lock, a policy, or a condition of its own.
fn is_kept<E>(error: &SdkError<E>) -> bool {
    error.raw_response().is_some_and(|response| matches!(response.status().as_u16(), 403 | 405 | 409 | 412))
}

/// Time for a request whose body has `size` bytes.
fn timeouts(size: u64) -> TimeoutConfig {
    let attempt = ANSWER_TIMEOUT + Duration::from_secs(size / PACE_MIN);
    TimeoutConfig::builder().connect_timeout(CONNECT_TIMEOUT).operation_attempt_timeout(attempt).build()
}

impl Sse {
    fn algorithm(self) -> Option<ServerSideEncryption> {
        match self {
            Self::None => None,
            Self::Aes256 => Some(ServerSideEncryption::Aes256),
            Self::Kms => Some(ServerSideEncryption::AwsKms),
        }
    }
}

fn mend(code: &str) -> &'static str {
    match code {
        "NoSuchBucket" => "; create the bucket, or correct archive.url",
        "AccessDenied" | "InvalidAccessKeyId" | "SignatureDoesNotMatch" | "ExpiredToken" => "; check the credentials and what they allow",
        "NotImplemented" | "MethodNotAllowed" => {
            "; this server can't be asked to thaw: do so with its own tools, and what has thawed is read"
        }
        "GlacierExpeditedRetrievalNotAvailable" => "; the vendor has no room for more of this tier now",
        "PermanentRedirect" | "AuthorizationHeaderMalformed" => "; check archive.region",
        _ => "",
    }
}

/// Plain HTTP is for this host only: requests carry no signature of their payload.
fn check_endpoint(endpoint: &str) -> Result<(), Error> {
    let wrong = |why| Err(Error::Endpoint { endpoint: endpoint.to_owned(), why });
    let Ok(uri) = endpoint.parse::<Uri>() else { return wrong("not a URL") };
    match (uri.scheme_str(), uri.host()) {
        (Some("https"), Some(_)) => Ok(()),
        (Some("http"), Some(host)) => {
            let address = host.trim_start_matches('[').trim_end_matches(']').parse::<IpAddr>();
            if host == "localhost" || address.is_ok_and(|address| address.is_loopback()) {
                Ok(())
            } else {
                wrong("plain HTTP to another host would let anyone on the way read and change packs")
            }
        }
        _ => wrong("neither http:// nor https://"),
    }
}

/// Counts every attempt by what is really sent.
#[derive(Debug)]
struct Count(Ledger);

impl Intercept for Count {
    fn name(&self) -> &'static str {
        "count"
    }

    fn read_before_transmit(
        &self,
        context: &BeforeTransmitInterceptorContextRef<'_>,
        _: &RuntimeComponents,
        _: &mut ConfigBag,
    ) -> Result<(), BoxError> {
        let request: &HttpRequest = context.request();
        let (path, query) = request.uri().split_once('?').unwrap_or((request.uri(), ""));
        let kind = match request.method() {
            "POST" if query.split('&').any(|part| part == "restore") => Request::Thaw,
            "PUT" | "POST" => Request::Put,
            "GET" if query.contains("list-type=2") => Request::List,
            "HEAD" => Request::Head,
            "DELETE" => Request::Delete,
            _ => Request::Get,
        };
        self.0.request(kind, &keys::class_of(path));
        if kind == Request::Put {
            self.0.sent(request.headers().get("content-length").and_then(|length| length.parse().ok()).unwrap_or(0));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::super::bucket::{Listed, get_whole};
    use super::*;
    use aws_sdk_s3::config::Credentials;
    use bytes::Bytes;
    use larder_protocol::pack::Piece;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpListener;

    #[test]
    fn plain_http_is_for_this_host_only() {
        for good in ["https://s3.example.org", "http://127.0.0.1:8333", "http://[::1]:1", "http://localhost:3900/"] {
            assert!(check_endpoint(good).is_ok(), "{good}");
        }
        for bad in ["http://s3.example.org", "http://10.0.0.1:9000", "http://localhost.example.org", "s3.example.org", "ftp://x", ""] {
            assert!(matches!(check_endpoint(bad), Err(Error::Endpoint { .. })), "{bad}");
        }
    }

    fn bucket(endpoint: &str) -> (S3, Ledger) {
        bucket_with(endpoint, Sse::None, None)
    }

    fn bucket_with(endpoint: &str, sse: Sse, key: Option<&str>) -> (S3, Ledger) {
        let settings = S3Settings {
            keyring: Default::default(),
            read_url: None,
            endpoint: Some(endpoint.to_owned()),
            region: "us-east-1".to_owned(),
            path_style: true,
            multipart_above: 5 << 30,
            sse,
            sse_kms_key: key.map(str::to_owned),
            prices: crate::config::S3_STANDARD,
        };
        let ledger = Ledger::new(None, Default::default());
        (S3::new("b", "p", &settings, ledger.clone()).expect("a bucket"), ledger)
    }

    #[tokio::test]
    async fn nothing_is_asked_before_the_first_request() {
        let (bucket, ledger) = bucket("http://127.0.0.1:1");
        assert_eq!(bucket.id(), "s3://b/p");
        assert!(bucket.client.get().is_none());
        assert_eq!(ledger.tally(), Default::default());
    }

    /// Answers one request per connection with the next of `answers`; gives the head and the body of each.
    pub(super) async fn server(answers: Vec<String>) -> (String, tokio::task::JoinHandle<Vec<(String, Vec<u8>)>>) {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let endpoint = format!("http://{}", listener.local_addr().expect("its address"));
        let serve = async move {
            let mut requests = Vec::new();
            for answer in answers {
                let (mut connection, _) = listener.accept().await.expect("a connection");
                let mut bytes = Vec::new();
                let end = loop {
                    assert!(connection.read_buf(&mut bytes).await.expect("a request") > 0);
                    if let Some(end) = bytes.windows(4).position(|window| window == b"\r\n\r\n") {
                        break end + 4;
                    }
                };
                let head = String::from_utf8(bytes[..end].to_vec()).expect("text").to_lowercase();
                let length = head.lines().find_map(|line| line.strip_prefix("content-length: ")?.parse().ok()).unwrap_or(0);
                while bytes.len() < end + length {
                    assert!(connection.read_buf(&mut bytes).await.expect("a body") > 0);
                }
                requests.push((head, bytes.split_off(end)));
                connection.write_all(answer.as_bytes()).await.expect("an answer is taken");
            }
            requests
        };
        (endpoint, tokio::spawn(serve))
    }

    /// A bucket that speaks to `endpoint` with credentials of its own.
    pub(super) fn bucket_at(endpoint: &str) -> (S3, Ledger) {
        with_credentials(bucket(endpoint))
    }

    fn with_credentials((bucket, ledger): (S3, Ledger)) -> (S3, Ledger) {
        let credentials = Credentials::builder().access_key_id("AK").secret_access_key("SK").provider_name("test").build();
        let shared = aws_config::SdkConfig::builder()
            .behavior_version(BehaviorVersion::latest())
            .region(Region::new("us-east-1"))
            .credentials_provider(aws_sdk_s3::config::SharedCredentialsProvider::new(credentials))
            .build();
        bucket.client.set(bucket.configure(&shared)).expect("not set before");
        (bucket, ledger)
    }

    pub(super) fn answer(status: &str, headers: &str, body: &str) -> String {
        format!("HTTP/1.1 {status}\r\n{headers}Content-Length: {}\r\nConnection: close\r\n\r\n{body}", body.len())
    }

    pub(super) fn pack(bytes: &'static [u8]) -> Object {
        let pieces = vec![Piece::Bytes(Bytes::from_static(bytes))];
        let body = body::Body::new(pieces.into(), std::sync::Arc::new(|_| Err(std::io::ErrorKind::NotFound.into())));
        Object { key: "p/v1/packs/x/1.tar".to_owned(), crc64: 0x0102_0304_0506_0708, body }
    }

    #[tokio::test]
    async fn f27_a_pack_is_one_put_and_a_retry_sends_the_same() {
        let busy = answer("503 Slow Down", "", "<Error><Code>SlowDown</Code><Message>busy</Message></Error>");
        let (endpoint, requests) = server(vec![busy, answer("200 OK", "", "")]).await;
        let (bucket, ledger) = bucket_at(&endpoint);
        bucket.put_once(pack(b"the whole pack")).await.expect("put");
        let requests = requests.await.expect("the server ended well");
        for (head, body) in &requests {
            assert!(head.starts_with("put /b/p/v1/packs/x/1.tar?x-id=putobject http/1.1\r\n"), "{head}");
            assert!(head.contains("content-length: 14\r\n") && head.contains("x-amz-checksum-crc64nvme: aqidbaugbwg="), "{head}");
            assert!(head.contains("x-amz-content-sha256: unsigned-payload\r\n") && !head.contains("aws-chunked"), "{head}");
            assert_eq!(body, b"the whole pack");
        }
        let tally = ledger.tally();
        assert_eq!((tally.requests.put, tally.bytes_out), (2, 28));
    }

    #[tokio::test]
    async fn a_bucket_is_told_how_to_encrypt_what_it_stores() {
        for (sse, expected, key) in [
            (Sse::Aes256, "x-amz-server-side-encryption: aes256\r\n", None),
            (Sse::Kms, "x-amz-server-side-encryption: aws:kms\r\n", Some("alias/packs")),
            (Sse::Kms, "x-amz-server-side-encryption: aws:kms\r\n", None),
        ] {
            let (endpoint, requests) = server(vec![answer("200 OK", "", "")]).await;
            let (bucket, _) = with_credentials(bucket_with(&endpoint, sse, key));
            bucket.put_once(pack(b"x")).await.expect("put");
            let head = &requests.await.expect("the server ended well")[0].0;
            assert!(head.contains(expected), "{head}");
            let named = head.lines().find_map(|line| line.strip_prefix("x-amz-server-side-encryption-aws-kms-key-id: "));
            assert_eq!(named, key, "{head}");
        }
    }

    #[tokio::test]
    async fn f27_a_pack_that_landed_in_a_bucket_that_keeps_everything_counts() {
        let locked = || answer("403 Forbidden", "", "<Error><Code>AccessDenied</Code><Message>it is locked</Message></Error>");
        let there = |size: u64, sum: &str| format!("HTTP/1.1 200 OK\r\n{sum}Content-Length: {size}\r\nConnection: close\r\n\r\n");
        let (right, wrong) = ("x-amz-checksum-crc64nvme: AQIDBAUGBwg=\r\n", "x-amz-checksum-crc64nvme: AAIDBAUGBwg=\r\n");
        for (head, lands) in [(there(14, right), true), (there(14, wrong), false), (there(13, right), false), (there(14, ""), true)] {
            let (endpoint, requests) = server(vec![locked(), head.clone()]).await;
            let (bucket, ledger) = bucket_at(&endpoint);
            let put = bucket.put_once(pack(b"the whole pack")).await;
            assert_eq!(put.is_ok(), lands, "{head}: {put:?}");
            assert!(requests.await.expect("the server ended well")[1].0.starts_with("head "));
            assert_eq!((ledger.tally().requests.put, ledger.tally().requests.head), (1, 1));
        }
    }

    #[tokio::test]
    async fn refusals_say_what_to_do() {
        let error = |code: &str| format!("<Error><Code>{code}</Code><Message>no</Message></Error>");
        let (endpoint, _requests) =
            server(vec![answer("404 Not Found", "", &error("NoSuchBucket")), answer("400 Bad Request", "", &error("BadDigest"))]).await;
        let (bucket, _) = bucket_at(&endpoint);
        let refused = bucket.put_once(pack(b"x")).await.expect_err("no such bucket").to_string();
        assert_eq!(refused, "put p/v1/packs/x/1.tar in s3://b/p: 404 NoSuchBucket: no; create the bucket, or correct archive.url");
        assert!(matches!(bucket.put_once(pack(b"x")).await, Err(Error::Checksum { .. })));
    }

    #[tokio::test]
    async fn a_range_is_one_get_and_must_be_that_range() {
        let good = answer("206 Partial Content", "Content-Range: bytes 5-8/100\r\n", "blob");
        let (endpoint, requests) = server(vec![good, answer("200 OK", "", "the whole object")]).await;
        let (bucket, ledger) = bucket_at(&endpoint);
        assert_eq!(get_whole(&bucket, "k", 5..9).await.expect("get"), "blob");
        assert!(get_whole(&bucket, "k", 5..9).await.is_err());
        let requests = requests.await.expect("the server ended well");
        assert!(requests[0].0.contains("range: bytes=5-8\r\n"), "{}", requests[0].0);
        assert_eq!((ledger.tally().requests.get, ledger.tally().bytes_in), (2, 4));
    }

    #[tokio::test]
    async fn a_listing_has_sizes_and_says_whether_there_is_more() {
        let xml = "<ListBucketResult><IsTruncated>true</IsTruncated><Contents><Key>p/a</Key><Size>7</Size></Contents></ListBucketResult>";
        let (endpoint, requests) = server(vec![answer("200 OK", "", xml)]).await;
        let (bucket, ledger) = bucket_at(&endpoint);
        let page = bucket.list("p/", Some("p/0")).await.expect("list");
        assert_eq!(page, Page { objects: vec![Listed::new("p/a".to_owned(), 7)], more: true });
        assert!(requests.await.expect("the server ended well")[0].0.contains("start-after=p%2f0"));
        assert_eq!(ledger.tally().requests, crate::archive::Requests { list: 1, ..Default::default() });
    }
}
