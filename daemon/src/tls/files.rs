//! The files that `[tls]` names: read, and checked to belong together.

use std::fs::{self, File};
use std::io::Read;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rustls::RootCertStore;
use rustls::crypto::aws_lc_rs;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::sign::CertifiedKey;
use x509_parser::certificate::X509Certificate;
use x509_parser::extensions::GeneralName;
use x509_parser::prelude::FromDer;

use super::Error;
use crate::config;

/// No chain and no list of authorities is longer.
const FILE_SIZE_MAX: u64 = 4 << 20;
/// Longest chain of a server.
const CHAIN_LENGTH_MAX: usize = 16;

const READ_CERTIFICATE: &str = "read the certificate";
const READ_KEY: &str = "read the private key";
const READ_CLIENT_CA: &str = "read the authorities of clients";

/// What was read.
pub(super) struct Files {
    /// The chain and its key.
    pub(super) certified: Arc<CertifiedKey>,
    /// Who may vouch for clients.
    pub(super) client_roots: Option<Arc<RootCertStore>>,
    /// The names in the certificate.
    pub(super) names: Vec<String>,
    /// When the certificate ends.
    pub(super) expires: SystemTime,
}

impl Files {
    /// Reads all of them, or nothing.
    pub(super) fn read(settings: &config::Tls) -> Result<Self, Error> {
        let (certificate, key) = settings.files().ok_or_else(|| Error::unusable("neither tls.certificate nor acme.domains is set"))?;
        let chain = certificates(certificate)?;
        let key = private_key(key)?;
        Self::of(chain, key, settings, certificate)
    }

    /// Checks a chain and its key, wherever they come from; reads who vouches for clients.
    pub(super) fn of(
        chain: Vec<CertificateDer<'static>>,
        key: PrivateKeyDer<'static>,
        settings: &config::Tls,
        path: &Path,
    ) -> Result<Self, Error> {
        if chain.len() > CHAIN_LENGTH_MAX {
            return Err(Error::content(READ_CERTIFICATE, path, format!("a chain has at most {CHAIN_LENGTH_MAX} certificates")));
        }
        let (names, _, expires) = validity(&chain[0]).ok_or_else(|| Error::content(READ_CERTIFICATE, path, "it is damaged"))?;
        let certified = certified(chain, &key, path)?;
        let client_roots = settings.client_ca.as_deref().map(roots).transpose()?.map(Arc::new);
        Ok(Self { certified: Arc::new(certified), client_roots, names, expires })
    }
}

/// What tells that a file is another one: of each file its place, size and times.
pub(super) type State = Vec<Option<[i64; 6]>>;

/// How the files stand.
pub(super) fn state(settings: &config::Tls) -> State {
    let state = |path: &Path| {
        let found = fs::metadata(path).ok()?;
        let number = |number: u64| number as i64;
        Some([number(found.ino()), number(found.size()), found.mtime(), found.mtime_nsec(), found.ctime(), found.ctime_nsec()])
    };
    let files = [&settings.certificate, &settings.key, &settings.client_ca];
    files.into_iter().flatten().map(|path| state(path)).collect()
}

/// The certificates of a PEM file, at least one.
///
/// # Errors
/// It can't be read, or has none.
pub fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, Error> {
    let bytes = bytes(path, READ_CERTIFICATE)?;
    let chain: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&bytes).collect();
    let chain = chain.map_err(|error| Error::content(READ_CERTIFICATE, path, format!("it is damaged: {error}")))?;
    if chain.is_empty() {
        let why = "it has none; a PEM file with -----BEGIN CERTIFICATE----- is needed, the server's own certificate first";
        return Err(Error::content(READ_CERTIFICATE, path, why));
    }
    Ok(chain)
}

/// Checks that a certificate and a private key belong together, and that the key is private.
///
/// # Errors
/// They don't, or can't be read.
pub fn check_pair(certificate: &Path, key: &Path) -> Result<(), Error> {
    pair(certificate, key).map(drop)
}

/// A certificate and its private key.
pub(super) fn pair(certificate: &Path, key: &Path) -> Result<CertifiedKey, Error> {
    certified(certificates(certificate)?, &private_key(key)?, certificate)
}

fn certified(chain: Vec<CertificateDer<'static>>, key: &PrivateKeyDer<'static>, path: &Path) -> Result<CertifiedKey, Error> {
    let key = aws_lc_rs::sign::any_supported_type(key).map_err(|error| Error::content("use the private key of", path, error))?;
    let certified = CertifiedKey::new(chain, key);
    let why = "the private key is another certificate's; both files have to be of one pair";
    certified.keys_match().map_err(|_| Error::content(READ_CERTIFICATE, path, why))?;
    Ok(certified)
}

/// The private key of a PEM file: PKCS #8, PKCS #1 or SEC 1.
///
/// # Errors
/// It can't be read, has no such key, or others may read it.
pub fn private_key(path: &Path) -> Result<PrivateKeyDer<'static>, Error> {
    let found = fs::metadata(path).map_err(|source| Error::Read { doing: READ_KEY, path: path.to_owned(), source })?;
    // S42: a group may be meant, as Debian's ssl-cert is; everybody never is.
    if found.mode() & 0o007 != 0 || found.mode() & 0o020 != 0 {
        let why = format!("others may read or change it (mode {:03o}); make it private with: chmod 600", found.mode() & 0o777);
        return Err(Error::content(READ_KEY, path, why));
    }
    let bytes = bytes(path, READ_KEY)?;
    PrivateKeyDer::from_pem_slice(&bytes).map_err(|_| {
        Error::content(READ_KEY, path, "it has none; a PEM file with -----BEGIN PRIVATE KEY-----, without a password, is needed")
    })
}

/// Everybody in the file is trusted to vouch for others.
pub(super) fn roots(path: &Path) -> Result<RootCertStore, Error> {
    let mut roots = RootCertStore::empty();
    for authority in certificates(path)? {
        roots.add(authority).map_err(|error| Error::content(READ_CLIENT_CA, path, error))?;
    }
    Ok(roots)
}

fn bytes(path: &Path, doing: &'static str) -> Result<Vec<u8>, Error> {
    let failed = |source| Error::Read { doing, path: path.to_owned(), source };
    let mut bytes = Vec::new();
    File::open(path).and_then(|file| file.take(FILE_SIZE_MAX + 1).read_to_end(&mut bytes)).map_err(failed)?;
    if bytes.len() as u64 > FILE_SIZE_MAX {
        return Err(Error::content(doing, path, format!("it has more than {FILE_SIZE_MAX} bytes; is it the right file?")));
    }
    Ok(bytes)
}

/// The names that a certificate is for, and when it begins and ends. `None`: it can't be read.
pub(super) fn validity(certificate: &CertificateDer<'_>) -> Option<(Vec<String>, SystemTime, SystemTime)> {
    let (_, read) = X509Certificate::from_der(certificate).ok()?;
    let time = |seconds: i64| UNIX_EPOCH + Duration::from_secs(u64::try_from(seconds).unwrap_or(0));
    Some((names(&read), time(read.validity().not_before.timestamp()), time(read.validity().not_after.timestamp())))
}

fn names(certificate: &X509Certificate<'_>) -> Vec<String> {
    let Ok(Some(alternatives)) = certificate.subject_alternative_name() else { return Vec::new() };
    let name = |name: &GeneralName<'_>| match name {
        GeneralName::DNSName(host) => Some((*host).to_owned()),
        GeneralName::IPAddress(bytes) => match bytes.len() {
            4 => <[u8; 4]>::try_from(*bytes).ok().map(|bytes| std::net::Ipv4Addr::from(bytes).to_string()),
            _ => <[u8; 16]>::try_from(*bytes).ok().map(|bytes| std::net::Ipv6Addr::from(bytes).to_string()),
        },
        _ => None,
    };
    alternatives.value.general_names.iter().filter_map(name).collect()
}

/// The hosts and addresses that a certificate is for.
pub fn host_names(certificate: &CertificateDer<'_>) -> Vec<String> {
    validity(certificate).map(|(names, _, _)| names).unwrap_or_default()
}

/// Whether a certificate was signed by whom it is for: then nobody else vouches for it, and clients have to be given it.
pub fn is_self_issued(certificate: &CertificateDer<'_>) -> bool {
    X509Certificate::from_der(certificate).is_ok_and(|(_, read)| read.subject() == read.issuer())
}

/// A certificate as text.
pub fn pem(certificate: &CertificateDer<'_>) -> String {
    const LINE: usize = 64;
    let text = base64::Engine::encode(&base64::engine::general_purpose::STANDARD, certificate);
    let lines: Vec<_> = text.as_bytes().chunks(LINE).map(|line| String::from_utf8_lossy(line)).collect();
    format!("-----BEGIN CERTIFICATE-----\n{}\n-----END CERTIFICATE-----\n", lines.join("\n"))
}

/// Seconds since 1970.
pub(super) fn seconds(time: SystemTime) -> u64 {
    time.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs()
}

/// A time for people.
pub(super) fn day(time: SystemTime) -> String {
    jiff::Timestamp::try_from(time).map(|time| time.to_string()).unwrap_or_default()
}
