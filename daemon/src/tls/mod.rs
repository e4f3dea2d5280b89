//! TLS of the front door: certificates, handshakes, and who is at the other end.
//!
//! # How it goes
//!
//! [`files`] reads what `[tls]` names and checks that it belongs together, or [`acme`] gets a certificate from a certificate authority.
//! Either is made into one rustls configuration, which stands until a better one is there: [`Tls::watch`] looks at the files every few
//! seconds, and replaces all of it at once or nothing. A handshake takes the configuration of its moment; connections that
//! stand are not touched.
//!
//! [`Tls::accept`] does a handshake and gives a [`Client`]: its address, and the certificate that it showed, if `tls.client_ca`
//! vouches for it, and what the certificate is for that it was shown. Which names mean what is not decided here.
//!
//! # What holds
//!
//! - TLS 1.2 and up; HTTP/2 and HTTP/1.1 by ALPN, and HTTP/1.1 for who does not ask (S44).
//! - Files that can't be used never replace ones that can: the node says so once, and goes on with what it had.
//! - A certificate of a client is checked in every handshake: nothing is resumed where clients show certificates.
//! - Private keys are never logged, and not read from files that everybody can read (S42).
//!
//! It must not know HTTP, nor who may do what. One lock-free cell holds what stands; the tasks are `tls-reload` and `acme`.

use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use rustls::ServerConfig;
use rustls::server::{Acceptor, ClientHello};
use tokio::net::TcpStream;
use tokio_rustls::LazyConfigAcceptor;
use tokio_rustls::server::TlsStream;
use tokio_util::sync::CancellationToken;

use crate::config;
use crate::telemetry::Metrics;

pub mod acme;
mod challenge;
mod client;
mod connector;
mod error;
mod files;
mod server;
#[cfg(test)]
mod tests;

pub use challenge::Challenges;
pub use client::{Certificate, Client};
pub use connector::{Connector, connect, connector};
pub use error::Error;
pub use files::{certificates, check_pair, host_names, is_self_issued, pem, private_key};

use files::Files;

/// How often the files are looked at: a few system calls.
const LOOK_PERIOD: Duration = Duration::from_secs(2);
/// A certificate that ends so soon is worth a warning, and how often.
const EXPIRY_WARNED: Duration = Duration::from_secs(14 * 24 * 60 * 60);
const EXPIRY_WARNING_PERIOD: Duration = Duration::from_secs(24 * 60 * 60);

/// What a connection speaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Protocol {
    /// HTTP/1.1
    Http1,
    /// HTTP/2
    Http2,
}

/// A connection after its handshake.
pub struct Accepted {
    /// What goes over it.
    pub stream: TlsStream<TcpStream>,
    /// Who is at the other end.
    pub client: Client,
    /// What both want to speak.
    pub protocol: Protocol,
}

/// The TLS of the front door. Clones are the same one.
#[derive(Clone)]
pub struct Tls {
    shared: Arc<Shared>,
}

struct Shared {
    settings: config::Tls,
    /// `None`: there is no certificate yet, and handshakes fail.
    current: ArcSwap<Option<Current>>,
    challenges: Challenges,
    metrics: Arc<Metrics>,
    /// How the files stood before they were read first: what changes from then on is new.
    seen: files::State,
}

/// What stands.
struct Current {
    config: Arc<ServerConfig>,
    /// What the certificate is for.
    names: Arc<[String]>,
    expires: std::time::SystemTime,
}

impl Tls {
    /// Reads the files that `[tls]` names.
    ///
    /// # Errors
    /// They can't be used; the words say what to do.
    pub fn open(settings: &config::Tls, metrics: Arc<Metrics>) -> Result<Self, Error> {
        let tls = Self::to_come(settings, metrics);
        tls.put(&Files::read(settings)?)?;
        Ok(tls)
    }

    /// The same for a file that an authority's answer will be written to, when it is not there yet. Until then handshakes fail.
    ///
    /// # Errors
    /// The authorities of clients can't be read.
    pub fn open_acme(settings: &config::Tls, file: PathBuf, metrics: Arc<Metrics>) -> Result<Self, Error> {
        let settings = config::Tls { certificate: Some(file.clone()), key: Some(file), ..settings.clone() };
        settings.client_ca.as_deref().map(files::roots).transpose()?;
        let tls = Self::to_come(&settings, metrics);
        // What is there may be damaged, or another authority's; a new one comes.
        if let Err(error) = Files::read(&settings).and_then(|files| tls.put(&files)) {
            tracing::info!(%error, "there is no certificate yet; nobody can connect until there is one");
        }
        Ok(tls)
    }

    /// The answers to an authority's challenges.
    pub fn challenges(&self) -> &Challenges {
        &self.shared.challenges
    }

    fn to_come(settings: &config::Tls, metrics: Arc<Metrics>) -> Self {
        let current = ArcSwap::from_pointee(None);
        let seen = files::state(settings);
        let shared = Shared { settings: settings.clone(), current, challenges: Challenges::default(), metrics, seen };
        Self { shared: Arc::new(shared) }
    }

    /// Replaces what stands, all at once.
    fn put(&self, files: &Files) -> Result<(), Error> {
        let config = server::config(files, self.shared.settings.client_certificates)?;
        let expires = files.expires;
        self.shared.metrics.tls_certificate_expires.set(i64::try_from(files::seconds(expires)).unwrap_or(i64::MAX));
        self.shared.current.store(Arc::new(Some(Current { config, names: files.names.clone().into(), expires })));
        Ok(())
    }

    /// Looks at the files until it is told to stop, and takes what is new in them.
    pub async fn watch(self, stopping: CancellationToken) {
        let _ = stopping.run_until_cancelled(self.look()).await;
    }

    async fn look(&self) {
        let mut seen = self.shared.seen.clone();
        let mut told = String::new();
        let mut warned: Option<tokio::time::Instant> = None;
        loop {
            if warned.is_none_or(|at| at.elapsed() >= EXPIRY_WARNING_PERIOD) && self.warn_of_expiry() {
                warned = Some(tokio::time::Instant::now());
            }
            tokio::time::sleep(LOOK_PERIOD).await;
            // A certificate and its key are two files: one may be new while the other is old. Then it is tried again at the
            // next look, whether or not anything has changed.
            let state = files::state(&self.shared.settings);
            if state == seen && told.is_empty() {
                continue;
            }
            let settings = self.shared.settings.clone();
            let read = tokio::task::spawn_blocking(move || Files::read(&settings)).await;
            let taken = read.map_err(Error::panicked).and_then(|read| read);
            let taken = taken.and_then(|files| self.is_better(files)).and_then(|files| self.put(&files).map(|()| files));
            match taken {
                Ok(files) => {
                    tracing::info!(names = ?files.names, expires = %files::day(files.expires), "took a new certificate");
                    (seen, told, warned) = (state, String::new(), None);
                }
                Err(error) => {
                    let words = error.to_string();
                    if words != told {
                        tracing::warn!(%error, "the new certificate can't be used; going on with the one before");
                    }
                    (seen, told) = (state, words);
                }
            }
        }
    }

    /// A certificate that has run out does not replace one that has not.
    fn is_better(&self, files: Files) -> Result<Files, Error> {
        let now = std::time::SystemTime::now();
        let stands = self.shared.current.load().as_ref().as_ref().is_some_and(|current| current.expires > now);
        if stands && files.expires <= now {
            return Err(Error::unusable(format!("the new certificate ended on {}", files::day(files.expires))));
        }
        Ok(files)
    }

    fn warn_of_expiry(&self) -> bool {
        let current = self.shared.current.load();
        let Some(current) = current.as_ref().as_ref() else { return false };
        let left = current.expires.duration_since(std::time::SystemTime::now()).unwrap_or_default();
        let is_near = left < EXPIRY_WARNED;
        if is_near {
            let certificate = self.shared.settings.certificate.as_deref().unwrap_or("".as_ref()).display();
            tracing::warn!(%certificate, expires = %files::day(current.expires), "the certificate ends soon; clients will refuse it then");
        }
        is_near
    }

    /// Does the handshake of a new connection. Has no deadline of its own.
    ///
    /// # Errors
    /// It failed, or only answered a challenge.
    pub async fn accept(&self, stream: TcpStream, address: SocketAddr) -> io::Result<Option<Accepted>> {
        let start = LazyConfigAcceptor::new(Acceptor::default(), stream).await?;
        let challenge = self.challenge(&start.client_hello());
        if let Some(config) = challenge {
            // Who asks looks at the certificate and hangs up.
            start.into_stream(config).await?;
            return Ok(None);
        }
        let (config, names) = match self.shared.current.load().as_ref() {
            Some(current) => (Arc::clone(&current.config), Arc::clone(&current.names)),
            None => return Err(io::Error::other("there is no certificate yet")),
        };
        let stream = start.into_stream(config).await?;
        let (_, session) = stream.get_ref();
        let protocol = if session.alpn_protocol() == Some(server::HTTP_2) { Protocol::Http2 } else { Protocol::Http1 };
        let certificate = session.peer_certificates().and_then(|chain| chain.first()).and_then(|own| Certificate::read(own));
        Ok(Some(Accepted { client: Client::encrypted(address, certificate, names), stream, protocol }))
    }

    /// The answer to a challenge, when the client asks for one. RFC 8737: it offers that protocol and no other.
    fn challenge(&self, hello: &ClientHello<'_>) -> Option<Arc<ServerConfig>> {
        let mut offered = hello.alpn()?;
        let is_only = offered.next() == Some(challenge::PROTOCOL) && offered.next().is_none();
        if !is_only {
            return None;
        }
        self.shared.challenges.config_for(hello.server_name()?)
    }
}
