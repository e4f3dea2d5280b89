//! A bucket on S3, or on a server that speaks it; the only file that knows the SDK.
//!
//! A pack is one PutObject: its length and its CRC-64/NVME are announced, its bytes stream from the blob files and are read
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
    BehaviorVersion, ConfigBag, Intercept, Region, RequestChecksumCalculation, ResponseChecksumValidation, RuntimeComponents,
};
use aws_sdk_s3::error::{BoxError, DisplayErrorContext, ProvideErrorMetadata, SdkError};
use aws_sdk_s3::primitives::{ByteStream, SdkBody};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use futures_util::future::BoxFuture;
use futures_util::stream::{self, StreamExt};
use http::Uri;
use tokio::sync::OnceCell;

use super::bucket::{Bucket, Chunks, Listed, Object, Page, S3Settings};
use super::ledger::{self, Ledger, Prices, Request};
use super::{Error, body};

/// Largest object that one PutObject may write.
const OBJECT_SIZE_MAX: u64 = 5 << 30;
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
        Ok(Self { id, bucket, prefix, settings: settings.clone(), ledger, client: OnceCell::new() })
    }

    /// The client, made at the first request.
    async fn client(&self) -> &Client {
        self.client
            .get_or_init(|| async {
                // With the region given, loading reads files and environment only; credentials are looked for by the first request.
                let region = Region::new(self.settings.region.clone());
                let shared = aws_config::defaults(BehaviorVersion::latest()).region(region).load().await;
                let mut config = aws_sdk_s3::config::Builder::from(&shared)
                    .force_path_style(self.settings.path_style)
                    .request_checksum_calculation(RequestChecksumCalculation::WhenRequired)
                    .response_checksum_validation(ResponseChecksumValidation::WhenRequired)
                    .retry_config(RetryConfig::standard().with_max_attempts(ATTEMPTS_MAX).with_max_backoff(RETRY_DELAY_MAX))
                    .timeout_config(timeouts(0))
                    .interceptor(Count(self.ledger.clone()));
                if let Some(endpoint) = &self.settings.endpoint {
                    config = config.endpoint_url(endpoint);
                }
                Client::from_conf(config.build())
            })
            .await
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

    fn prices(&self) -> &'static Prices {
        &ledger::S3_STANDARD
    }

    fn put_once(&self, object: Object) -> BoxFuture<'_, Result<(), Error>> {
        Box::pin(async move {
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
                .checksum_crc64_nvme(&checksum)
                .customize()
                .config_override(aws_sdk_s3::config::Builder::new().timeout_config(timeouts(size)))
                .send()
                .await
                .map_err(|error| self.error("put", &key, error))?;
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
            let ledger = self.ledger.clone();
            let chunks = stream::try_unfold((answer.body, failed), move |(mut body, failed)| {
                let ledger = ledger.clone();
                async move {
                    match body.next().await {
                        None => Ok(None),
                        Some(Ok(bytes)) => {
                            ledger.received(bytes.len() as u64);
                            Ok(Some((bytes, (body, failed))))
                        }
                        Some(Err(error)) => Err(failed(format!("the answer broke off: {}", DisplayErrorContext(&error)))),
                    }
                }
            });
            Ok(chunks.boxed())
        })
    }

    fn list<'a>(&'a self, prefix: &'a str, after: Option<&'a str>) -> BoxFuture<'a, Result<Page, Error>> {
        Box::pin(async move {
            let request = self.client().await.list_objects_v2().bucket(&self.bucket).prefix(prefix);
            let answer =
                request.set_start_after(after.map(str::to_owned)).send().await.map_err(|error| self.error("list", prefix, error))?;
            let object = |object: &aws_sdk_s3::types::Object| {
                Some(Listed { key: object.key()?.to_owned(), size: u64::try_from(object.size()?).ok()? })
            };
            Ok(Page { objects: answer.contents().iter().filter_map(object).collect(), more: answer.is_truncated().unwrap_or(false) })
        })
    }
}

/// Time for a request whose body has `size` bytes.
fn timeouts(size: u64) -> TimeoutConfig {
    let attempt = ANSWER_TIMEOUT + Duration::from_secs(size / PACE_MIN);
    TimeoutConfig::builder().connect_timeout(CONNECT_TIMEOUT).operation_attempt_timeout(attempt).build()
}

fn mend(code: &str) -> &'static str {
    match code {
        "NoSuchBucket" => "; create the bucket, or correct archive.url",
        "AccessDenied" | "InvalidAccessKeyId" | "SignatureDoesNotMatch" | "ExpiredToken" => "; check the credentials and what they allow",
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
        let kind = match request.method() {
            "PUT" | "POST" => Request::Put,
            "GET" if request.uri().contains("list-type=2") => Request::List,
            "HEAD" => Request::Head,
            "DELETE" => Request::Delete,
            _ => Request::Get,
        };
        self.0.request(kind);
        if kind == Request::Put {
            self.0.sent(request.headers().get("content-length").and_then(|length| length.parse().ok()).unwrap_or(0));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn plain_http_is_for_this_host_only() {
        for good in ["https://s3.example.org", "http://127.0.0.1:8333", "http://[::1]:1", "http://localhost:3900/"] {
            assert!(check_endpoint(good).is_ok(), "{good}");
        }
        for bad in ["http://s3.example.org", "http://10.0.0.1:9000", "http://localhost.example.org", "s3.example.org", "ftp://x", ""] {
            assert!(matches!(check_endpoint(bad), Err(Error::Endpoint { .. })), "{bad}");
        }
    }

    #[tokio::test]
    async fn nothing_is_asked_before_the_first_request() {
        let settings = S3Settings { endpoint: Some("http://127.0.0.1:1".to_owned()), region: "us-east-1".to_owned(), path_style: true };
        let ledger = Ledger::new(None, Default::default());
        let bucket = S3::new("b", "p", &settings, ledger.clone()).expect("a bucket");
        assert_eq!(bucket.id(), "s3://b/p");
        assert!(bucket.client.get().is_none());
        assert_eq!(ledger.tally(), Default::default());
    }
}
