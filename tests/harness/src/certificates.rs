//! Authorities and certificates made on the spot.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair};

/// Somebody who vouches for others.
#[derive(Debug)]
pub struct Authority {
    /// Its own certificate.
    pub certificate: rcgen::Certificate,
    issuer: Issuer<'static, KeyPair>,
}

impl Authority {
    /// Somebody of this name whom nobody vouches for.
    ///
    /// # Panics
    /// When the system gives no random bytes, as everything here.
    pub fn new(name: &str) -> Self {
        let mut params = CertificateParams::default();
        params.distinguished_name.push(DnType::CommonName, name);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let key = KeyPair::generate().expect("a key");
        let certificate = params.self_signed(&key).expect("a certificate");
        Self { certificate, issuer: Issuer::new(params, key) }
    }

    /// A certificate for this host, for whom the common name says, and its key; as PEM.
    pub fn issue(&self, name: &str) -> (String, String) {
        self.issue_for(name, &["localhost", "127.0.0.1"])
    }

    /// The same for other hosts.
    pub fn issue_for(&self, name: &str, hosts: &[&str]) -> (String, String) {
        let mut params = CertificateParams::new(hosts.iter().map(|host| (*host).to_owned()).collect::<Vec<_>>()).expect("names");
        params.distinguished_name.push(DnType::CommonName, name);
        let key = KeyPair::generate().expect("a key");
        let certificate = params.signed_by(&key, &self.issuer).expect("a certificate");
        (certificate.pem(), key.serialize_pem())
    }
}

/// Writes a file that only its owner may read, whole.
///
/// # Panics
/// When it can't.
pub fn write(folder: &Path, name: &str, text: &str) -> PathBuf {
    let (new, path) = (folder.join("new"), folder.join(name));
    fs::write(&new, text).expect("write");
    fs::set_permissions(&new, fs::Permissions::from_mode(0o600)).expect("make it private");
    fs::rename(&new, &path).expect("rename");
    path
}
