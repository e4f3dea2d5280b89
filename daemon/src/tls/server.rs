//! From files to what a handshake needs.

use std::sync::Arc;

use rustls::crypto::CryptoProvider;
use rustls::crypto::aws_lc_rs;
use rustls::server::{ClientHello, NoServerSessionStorage, ResolvesServerCert, WebPkiClientVerifier};
use rustls::sign::CertifiedKey;
use rustls::version::{TLS12, TLS13};
use rustls::{ServerConfig, SupportedProtocolVersion};

use super::Error;
use super::files::Files;
use crate::config::ClientCertificates;

/// The names of protocols in ALPN.
pub(super) const HTTP_2: &[u8] = b"h2";
const HTTP_1: &[u8] = b"http/1.1";

/// S44: nothing older.
const VERSIONS: &[&SupportedProtocolVersion] = &[&TLS13, &TLS12];

pub(super) fn provider() -> Arc<CryptoProvider> {
    Arc::new(aws_lc_rs::default_provider())
}

/// The configuration for these files.
pub(super) fn config(files: &Files, clients: ClientCertificates) -> Result<Arc<ServerConfig>, Error> {
    let builder = ServerConfig::builder_with_provider(provider()).with_protocol_versions(VERSIONS).map_err(Error::unusable)?;
    let builder = match &files.client_roots {
        None => builder.with_no_client_auth(),
        Some(roots) => {
            let verifier = WebPkiClientVerifier::builder_with_provider(Arc::clone(roots), provider());
            let verifier = match clients {
                ClientCertificates::Required => verifier,
                ClientCertificates::Optional => verifier.allow_unauthenticated(),
            };
            builder.with_client_cert_verifier(verifier.build().map_err(Error::unusable)?)
        }
    };
    let mut config = builder.with_cert_resolver(Arc::new(One(Arc::clone(&files.certified))));
    config.alpn_protocols = vec![HTTP_2.to_vec(), HTTP_1.to_vec()];
    if files.client_roots.is_some() {
        // A resumed session repeats what was proven once: a certificate that ran out since, or whose authority was taken out.
        config.session_storage = Arc::new(NoServerSessionStorage {});
        config.send_tls13_tickets = 0;
    } else {
        config.ticketer = aws_lc_rs::Ticketer::new().map_err(Error::unusable)?;
    }
    Ok(Arc::new(config))
}

/// The configuration that shows one certificate and speaks one protocol, to whoever asks.
pub(super) fn answering(certified: Arc<CertifiedKey>, protocol: &[u8]) -> Result<Arc<ServerConfig>, Error> {
    let builder = ServerConfig::builder_with_provider(provider()).with_protocol_versions(VERSIONS).map_err(Error::unusable)?;
    let mut config = builder.with_no_client_auth().with_cert_resolver(Arc::new(One(certified)));
    config.alpn_protocols = vec![protocol.to_vec()];
    Ok(Arc::new(config))
}

/// Whatever name is asked for: clients reach a node by names that only they know, and check themselves whether it fits.
#[derive(Debug)]
struct One(Arc<CertifiedKey>);

impl ResolvesServerCert for One {
    fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(Arc::clone(&self.0))
    }
}
