//! Asking an issuer over HTTP: its description, its keys, a token for a code. Bounded in time and size, and nowhere else than configured.
//!
//! No redirect is followed, and nothing is asked in the clear except of this host itself: an answer here decides who somebody is (S24, S25).

use std::time::Duration;

use bytes::Bytes;
use http::{Method, Request, StatusCode, Uri, header};
use http_body_util::{BodyExt, Full, Limited};
use hyper_rustls::{HttpsConnector, HttpsConnectorBuilder};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;

/// How long an answer may take.
const DEADLINE: Duration = Duration::from_secs(10);
/// Longest answer.
const ANSWER_SIZE_MAX: usize = 256 << 10;

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub(super) enum Error {
    /// Where nothing may be asked.
    #[error("{0} is neither https nor on this host: whoever is on the way could answer instead")]
    Untrusted(String),
    /// The system's certificates can't be read.
    #[error("read the system's certificates: {0}")]
    Roots(std::io::Error),
    /// It did not come.
    #[error("ask {url}: {why}")]
    Failed {
        /// What was asked.
        url: String,
        /// Why.
        why: String,
    },
}

/// Something that can ask.
#[derive(Clone, Debug)]
pub(super) struct Fetcher(Client<HttpsConnector<HttpConnector>, Full<Bytes>>);

impl Fetcher {
    /// Reads the system's certificates.
    pub(super) fn new() -> Result<Self, Error> {
        let provider = rustls::crypto::aws_lc_rs::default_provider();
        let builder = HttpsConnectorBuilder::new().with_provider_and_native_roots(provider).map_err(Error::Roots)?;
        let connector = builder.https_or_http().enable_http1().build();
        // One question an hour: nothing is kept open for the next.
        Ok(Self(Client::builder(TokioExecutor::new()).pool_max_idle_per_host(0).build(connector)))
    }

    /// Gets a document.
    pub(super) async fn get(&self, url: &str) -> Result<Bytes, Error> {
        self.ask(Method::GET, url, None, None).await
    }

    /// Sends a form, with name and password when there are any.
    pub(super) async fn post(&self, url: &str, form: String, basic: Option<String>) -> Result<Bytes, Error> {
        self.ask(Method::POST, url, Some(form), basic).await
    }

    async fn ask(&self, method: Method, url: &str, form: Option<String>, basic: Option<String>) -> Result<Bytes, Error> {
        let failed = |why: String| Error::Failed { url: url.to_owned(), why };
        let uri: Uri = url.parse().map_err(|error| failed(format!("{error}")))?;
        if !crate::config::is_trusted_url(&uri) {
            return Err(Error::Untrusted(url.to_owned()));
        }
        let mut request = Request::builder().method(method).uri(uri).header(header::ACCEPT, "application/json");
        if form.is_some() {
            request = request.header(header::CONTENT_TYPE, "application/x-www-form-urlencoded");
        }
        if let Some(basic) = basic {
            request = request.header(header::AUTHORIZATION, format!("Basic {basic}"));
        }
        let request = request.body(Full::new(Bytes::from(form.unwrap_or_default()))).map_err(|error| failed(error.to_string()))?;
        let answered = async {
            let response = self.0.request(request).await.map_err(|error| failed(causes(&error)))?;
            if response.status() != StatusCode::OK {
                return Err(failed(format!("it answered {}", response.status())));
            }
            let body = Limited::new(response.into_body(), ANSWER_SIZE_MAX).collect().await.map_err(|error| failed(error.to_string()))?;
            Ok(body.to_bytes())
        };
        tokio::time::timeout(DEADLINE, answered).await.unwrap_or_else(|_| Err(failed(format!("no answer in {DEADLINE:?}"))))
    }
}

/// What the client says is only that it failed; why stands behind.
fn causes(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text = format!("{text}: {cause}");
        source = cause.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn s24_nothing_is_asked_in_the_clear_of_another_host() {
        let fetcher = Fetcher::new().expect("certificates");
        for url in ["http://169.254.169.254/latest", "http://example.org/keys", "ftp://127.0.0.1/", "file:///etc/passwd", "keys"] {
            let error = fetcher.get(url).await.expect_err(url).to_string();
            assert!(error.contains("neither https") || error.contains("ask "), "{error}");
        }
    }

    #[tokio::test]
    async fn s25_redirects_are_not_followed() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("bind");
        let url = format!("http://{}/keys", listener.local_addr().expect("an address"));
        tokio::spawn(async move {
            use tokio::io::{AsyncReadExt, AsyncWriteExt};
            let (mut stream, _) = listener.accept().await.expect("accept");
            let _ = stream.read(&mut [0; 4096]).await;
            let answer = "HTTP/1.1 302 Found\r\nlocation: http://127.0.0.1:1/\r\ncontent-length: 0\r\n\r\n";
            stream.write_all(answer.as_bytes()).await.expect("write");
        });
        let error = Fetcher::new().expect("certificates").get(&url).await.expect_err("a redirect").to_string();
        assert!(error.contains("302"), "{error}");
    }

    /// What an issuer says of itself leads nowhere but where its word can be trusted, and is not believed when it is another's.
    #[tokio::test]
    async fn s24_an_issuer_leads_nowhere_in_the_clear_and_speaks_for_no_other() {
        use tokio::io::{AsyncReadExt, AsyncWriteExt};
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("bind");
        let issuer = format!("http://{}", listener.local_addr().expect("an address"));
        let said = std::sync::Arc::new(std::sync::Mutex::new(String::new()));
        let (says, asked) = (said.clone(), std::sync::Arc::new(std::sync::Mutex::new(Vec::new())));
        let heard = asked.clone();
        tokio::spawn(async move {
            while let Ok((mut stream, _)) = listener.accept().await {
                let mut head = vec![0; 4096];
                let read = stream.read(&mut head).await.unwrap_or(0);
                heard.lock().unwrap().push(String::from_utf8_lossy(&head[..read]).lines().next().unwrap_or_default().to_owned());
                let body = says.lock().unwrap().clone();
                let answer = format!("HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n{body}", body.len());
                let _ = stream.write_all(answer.as_bytes()).await;
            }
        });
        let fetcher = Fetcher::new().expect("certificates");
        let tried = async |description: serde_json::Value| {
            *said.lock().unwrap() = description.to_string();
            let keys = super::super::keys::Keys::new(&issuer, None, &["RS256".to_owned()], fetcher.clone());
            keys.check("e30.e30.e30", &["here"]).await.expect_err("no keys").to_string()
        };
        for elsewhere in ["http://169.254.169.254/latest/meta-data", "http://10.0.0.1/keys", "file:///etc/passwd", "gopher://127.0.0.1/"] {
            let why = tried(serde_json::json!({ "issuer": issuer, "jwks_uri": elsewhere })).await;
            assert!(why.contains("can't be read now"), "{why}");
        }
        let why = tried(serde_json::json!({ "issuer": "https://another.example.org", "jwks_uri": format!("{issuer}/keys") })).await;
        assert!(why.contains("can't be read now"), "{why}");
        let asked = asked.lock().unwrap();
        assert!(asked.len() == 5 && asked.iter().all(|line| line.contains("/.well-known/openid-configuration")), "{asked:?}");
    }
}
