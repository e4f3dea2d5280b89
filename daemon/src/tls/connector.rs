//! TLS towards other servers, for the commands.

use std::io;
use std::path::Path;
use std::sync::Arc;

use rustls::pki_types::ServerName;
use rustls::sign::SingleCertAndKey;
use rustls::{ClientConfig, RootCertStore};
use tokio::net::TcpStream;
pub use tokio_rustls::TlsConnector as Connector;
use tokio_rustls::client::TlsStream;

use super::{Error, files, server};

/// What a connection to a server needs whose certificate this authority vouches for; without one, the system's authorities do. `client`: the
/// certificate that is shown when the server asks for one, and its key.
///
/// # Errors
/// A file can't be used, or the system has no authorities.
pub fn connector(authority: Option<&Path>, client: Option<(&Path, &Path)>) -> Result<Connector, Error> {
    let roots = match authority {
        Some(path) => files::roots(path)?,
        None => {
            let mut roots = RootCertStore::empty();
            roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
            roots
        }
    };
    let builder = ClientConfig::builder_with_provider(server::provider()).with_safe_default_protocol_versions().map_err(Error::unusable)?;
    let builder = builder.with_root_certificates(roots);
    let config = match client {
        None => builder.with_no_client_auth(),
        Some((certificate, key)) => builder.with_client_cert_resolver(Arc::new(SingleCertAndKey::from(files::pair(certificate, key)?))),
    };
    Ok(Connector::from(Arc::new(config)))
}

/// Does the handshake with `host:port`, whose certificate has to be for that host.
///
/// # Errors
/// The handshake failed; the words say why the certificate was not taken.
pub async fn connect(connector: &Connector, address: &str, stream: TcpStream) -> io::Result<TlsStream<TcpStream>> {
    let host = address.rsplit_once(':').map_or(address, |(host, _)| host).trim_matches(['[', ']']);
    let name = ServerName::try_from(host.to_owned()).map_err(io::Error::other)?;
    connector.connect(name, stream).await
}
