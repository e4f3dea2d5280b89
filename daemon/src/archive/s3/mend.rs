//! What mends itself between two attempts of a request: credentials that ended or were rotated (F37), and a clock that is wrong (F14).
//!
//! A refusal that says so makes the next attempt look the credentials up anew, from environment, files and instance, or sign with the server's time (`clock`). The
//! server's answer came over a connection that is trusted with the bucket's content, so its `Date` is as well.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, SystemTime};

use aws_config::default_provider::credentials::DefaultCredentialsChain;
use aws_credential_types::provider::{self, future};
use aws_sdk_s3::config::retry::{ClassifyRetry, RetryAction};
use aws_sdk_s3::config::{Credentials, ProvideCredentials, Region};
use aws_smithy_async::time::TimeSource;
use aws_smithy_runtime_api::client::interceptors::context::InterceptorContext;

use super::super::clock::Clock;

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
    pub(super) clock: Clock,
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
            && let Some(date) = answer.headers().get("date")
            && self.clock.learn(date)
        {
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
        self.clock.now()
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refusals_code_is_found() {
        assert_eq!(code(b"<Error><Code>ExpiredToken</Code><Message>no</Message></Error>"), Some("ExpiredToken"));
        for bad in [&b""[..], b"<Code>", b"\xff<Code>x</Code>", b"<html>busy</html>"] {
            assert_eq!(code(bad), None);
        }
    }
}
