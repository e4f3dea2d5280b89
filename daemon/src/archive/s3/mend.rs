//! What mends itself between two attempts of a request: credentials that ended or were rotated (F37), and a clock that is wrong (F14).
//!
//! A refusal that says so makes the next attempt look the credentials up anew, from environment, files and instance, or sign with the server's time. The
//! server's answer came over a connection that is trusted with the bucket's content, so its `Date` is as well.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI64, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use aws_config::default_provider::credentials::DefaultCredentialsChain;
use aws_credential_types::provider::{self, future};
use aws_sdk_s3::config::retry::{ClassifyRetry, RetryAction};
use aws_sdk_s3::config::{Credentials, ProvideCredentials, Region};
use aws_sdk_s3::primitives::{DateTime, DateTimeFormat};
use aws_smithy_async::time::TimeSource;
use aws_smithy_runtime_api::client::interceptors::context::InterceptorContext;

/// Codes that new credentials may answer.
const CREDENTIALS: [&str; 6] =
    ["ExpiredToken", "ExpiredTokenException", "TokenRefreshRequired", "InvalidAccessKeyId", "InvalidToken", "InvalidClientTokenId"];
/// Codes that another time may answer.
const TIME: [&str; 2] = ["RequestTimeTooSkewed", "RequestExpired"];
/// Credentials are looked up anew so long before they end.
const MARGIN: Duration = Duration::from_secs(300);
/// Most bytes of a refusal that are looked through for its code.
const REFUSAL_SIZE_MAX: usize = 64 << 10;

/// What was learnt from refusals. Cheap to clone.
#[derive(Clone, Debug, Default)]
pub(super) struct Mend {
    stale: Arc<AtomicBool>,
    /// Seconds that the server's clock is ahead of this host's.
    ahead: Arc<AtomicI64>,
}

impl ClassifyRetry for Mend {
    fn classify_retry(&self, context: &InterceptorContext) -> RetryAction {
        let Some(answer) = context.response() else { return RetryAction::NoActionIndicated };
        let Some(code) = answer.body().bytes().and_then(code) else { return RetryAction::NoActionIndicated };
        // It is asked more than once about one answer, and says the same each time; the attempts have a limit of their own.
        if CREDENTIALS.contains(&code) {
            self.stale.store(true, Ordering::Release);
            return RetryAction::transient_error();
        }
        if TIME.contains(&code)
            && let Some(ahead) = answer.headers().get("date").and_then(|date| seconds_ahead(date, SystemTime::now()))
        {
            if (self.ahead.swap(ahead, Ordering::AcqRel) - ahead).abs() > 1 {
                tracing::warn!(ahead, "this host's clock is not the bucket's: requests are signed with the bucket's time; set the clock");
            }
            return RetryAction::transient_error();
        }
        RetryAction::NoActionIndicated
    }

    fn name(&self) -> &'static str {
        "credentials and clock"
    }
}

impl TimeSource for Mend {
    fn now(&self) -> SystemTime {
        shifted(SystemTime::now(), self.ahead.load(Ordering::Acquire))
    }
}

/// Credentials by the usual chain, looked up anew when they end or were refused.
#[derive(Debug)]
pub(super) struct Renewing {
    region: Region,
    mend: Mend,
    held: tokio::sync::Mutex<Option<(DefaultCredentialsChain, Credentials)>>,
}

impl Renewing {
    pub(super) fn new(region: Region, mend: Mend) -> Self {
        Self { region, mend, held: tokio::sync::Mutex::new(None) }
    }

    async fn current(&self) -> provider::Result {
        let mut held = self.held.lock().await;
        let is_stale = self.mend.stale.load(Ordering::Acquire);
        let chain = match held.take() {
            Some((chain, credentials)) if !is_stale => {
                if credentials.expiry().is_none_or(|expiry| expiry > self.mend.now() + MARGIN) {
                    *held = Some((chain, credentials.clone()));
                    return Ok(credentials);
                }
                chain
            }
            // A chain remembers what it read of files.
            _ => DefaultCredentialsChain::builder().region(self.region.clone()).build().await,
        };
        let credentials = chain.provide_credentials().await?;
        if is_stale {
            tracing::info!("the bucket's credentials were looked up anew");
        }
        *held = Some((chain, credentials.clone()));
        self.mend.stale.store(false, Ordering::Release);
        Ok(credentials)
    }
}

impl ProvideCredentials for Renewing {
    fn provide_credentials<'a>(&'a self) -> future::ProvideCredentials<'a>
    where
        Self: 'a,
    {
        future::ProvideCredentials::new(self.current())
    }
}

/// The code in S3's words of a refusal.
fn code(body: &[u8]) -> Option<&str> {
    let text = std::str::from_utf8(&body[..body.len().min(REFUSAL_SIZE_MAX)]).ok()?;
    Some(text.split_once("<Code>")?.1.split_once("</Code>")?.0.trim())
}

fn seconds_ahead(date: &str, now: SystemTime) -> Option<i64> {
    let server = DateTime::from_str(date, DateTimeFormat::HttpDate).ok()?.secs();
    let own = i64::try_from(now.duration_since(UNIX_EPOCH).ok()?.as_secs()).ok()?;
    server.checked_sub(own)
}

fn shifted(time: SystemTime, seconds: i64) -> SystemTime {
    let by = Duration::from_secs(seconds.unsigned_abs());
    let shifted = if seconds < 0 { time.checked_sub(by) } else { time.checked_add(by) };
    shifted.unwrap_or(time)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn f14_the_servers_time_is_read_and_followed() {
        let boot = UNIX_EPOCH + Duration::from_secs(60);
        let ahead = seconds_ahead("Wed, 25 Nov 2026 21:00:00 GMT", boot).expect("a date");
        assert_eq!(shifted(boot, ahead), UNIX_EPOCH + Duration::from_secs(1_795_640_400));
        assert_eq!(seconds_ahead("Wed, 25 Nov 2026 21:00:00 GMT", UNIX_EPOCH + Duration::from_secs(1_795_640_500)), Some(-100));
        assert_eq!(seconds_ahead("yesterday", boot), None);
    }

    #[test]
    fn a_refusals_code_is_found() {
        assert_eq!(code(b"<Error><Code>ExpiredToken</Code><Message>no</Message></Error>"), Some("ExpiredToken"));
        for bad in [&b""[..], b"<Code>", b"\xff<Code>x</Code>", b"<html>busy</html>"] {
            assert_eq!(code(bad), None);
        }
    }
}
