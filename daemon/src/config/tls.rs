//! `[tls]` and `[acme]`: how the front door proves who it is, and whom it asks to do the same.

use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};

use super::value::Value;
use super::{Config, Fault, Http};

/// Most names that one certificate is asked for.
const DOMAINS_MAX: usize = 32;
/// Longest name of a host. SPEC: RFC 1035.
const DOMAIN_LENGTH_MAX: usize = 253;

/// Whether clients have to show a certificate.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ClientCertificates {
    /// Who has none is let in, and is nobody.
    Optional,
    /// Who has none is not let in.
    Required,
}

/// `[tls]`
#[derive(Clone, Debug)]
pub struct Tls {
    /// PEM: the server's certificate, then those between it and its authority.
    pub certificate: Option<PathBuf>,
    /// PEM: its private key.
    pub key: Option<PathBuf>,
    /// PEM: the authorities that may vouch for clients.
    pub client_ca: Option<PathBuf>,
    /// Whether clients have to show a certificate.
    pub client_certificates: ClientCertificates,
}

/// How an authority sees that a name is this node's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AcmeChallenge {
    /// By HTTP on port 80.
    Http01,
    /// In a handshake on port 443.
    TlsAlpn01,
}

/// `[acme]`
#[derive(Clone, Debug)]
pub struct Acme {
    /// The names that a certificate is asked for; empty: none is.
    pub domains: Vec<String>,
    /// The authority.
    pub directory: String,
    /// Its terms of service are agreed to.
    pub terms_agreed: bool,
    /// Where it sends its warnings.
    pub email: Option<String>,
    /// How it sees that the names are this node's.
    pub challenge: AcmeChallenge,
    /// Where it looks for the answer over HTTP.
    pub http_listen: SocketAddr,
    /// PEM: who vouches for the authority's own server, when the system does not.
    pub ca: Option<PathBuf>,
}

impl Default for Tls {
    fn default() -> Self {
        Self { certificate: None, key: None, client_ca: None, client_certificates: ClientCertificates::Optional }
    }
}

impl Default for Acme {
    fn default() -> Self {
        Self {
            domains: Vec::new(),
            directory: "https://acme-v02.api.letsencrypt.org/directory".to_owned(),
            terms_agreed: false,
            email: None,
            challenge: AcmeChallenge::Http01,
            http_listen: SocketAddr::from((Ipv4Addr::UNSPECIFIED, 80)),
            ca: None,
        }
    }
}

impl Tls {
    /// The certificate and its key, when they are files.
    pub fn files(&self) -> Option<(&Path, &Path)> {
        self.certificate.as_deref().zip(self.key.as_deref())
    }
}

impl Config {
    /// Whether clients reach the registry by TLS, and only so.
    pub fn speaks_tls(&self) -> bool {
        self.tls.certificate.is_some() || !self.acme.domains.is_empty()
    }
}

/// What is wrong with the settings of the front door together, and at which of them.
pub(super) fn check(http: &Http, tls: &Tls, acme: &Acme) -> Result<(), (&'static str, Fault)> {
    let is_acme = !acme.domains.is_empty();
    let is_tls = tls.certificate.is_some() || is_acme;
    match (&tls.certificate, &tls.key) {
        (Some(_), None) => return Err(("tls.certificate", Fault::Lonely { other: "tls.key" })),
        (None, Some(_)) => return Err(("tls.key", Fault::Lonely { other: "tls.certificate" })),
        (Some(_), Some(_)) if is_acme => return Err(("acme.domains", Fault::TwoCertificates)),
        _ => {}
    }
    if is_acme && !acme.terms_agreed {
        return Err(("acme.domains", Fault::Terms));
    }
    if tls.client_ca.is_some() && !is_tls {
        return Err(("tls.client_ca", Fault::ClientsWithoutTls));
    }
    if tls.client_certificates == ClientCertificates::Required && tls.client_ca.is_none() {
        return Err(("tls.client_certificates", Fault::Lonely { other: "tls.client_ca" }));
    }
    if is_tls && http.insecure {
        return Err(("http.insecure", Fault::InsecureTls));
    }
    if !is_tls && !http.listen.ip().is_loopback() && !http.insecure {
        return Err(("http.listen", Fault::PlainHttp));
    }
    // Behind a proxy that speaks TLS with us and plain HTTP with the world nobody wants to be.
    if is_tls && http.public_url.as_deref().is_some_and(|url| url.starts_with("http://")) {
        return Err(("http.public_url", Fault::PlainPublicUrl));
    }
    Ok(())
}

pub(super) fn file(value: &Value) -> Result<Option<PathBuf>, Fault> {
    match value.text()? {
        "" => Ok(None),
        home if home == "~" || home.starts_with("~/") => Err(Fault::Home),
        path if path.chars().any(char::is_control) => Err(Fault::Path),
        path => Ok(Some(PathBuf::from(path))),
    }
}

pub(super) fn domains(value: &Value) -> Result<Vec<String>, Fault> {
    let list = value.list()?;
    if list.len() > DOMAINS_MAX {
        return Err(Fault::Bounds { least: "0".to_owned(), most: format!("{DOMAINS_MAX} names") });
    }
    list.into_iter().map(|name| if is_domain(&name) { Ok(name.to_ascii_lowercase()) } else { Err(Fault::Domain) }).collect()
}

/// A whole name of a host. Neither an address nor a pattern: an authority can't look at those in the ways that are offered here.
fn is_domain(name: &str) -> bool {
    let is_label = |label: &str| {
        let inner = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'-';
        !label.is_empty() && label.len() <= 63 && label.bytes().all(inner) && !label.starts_with('-') && !label.ends_with('-')
    };
    let is_number = name.rsplit('.').next().is_some_and(|last| last.bytes().all(|byte| byte.is_ascii_digit()));
    name.len() <= DOMAIN_LENGTH_MAX && name.split('.').all(is_label) && !is_number
}

pub(super) fn email(value: &Value) -> Result<Option<String>, Fault> {
    match value.text()? {
        "" => Ok(None),
        text if text.len() <= DOMAIN_LENGTH_MAX && text.split('@').count() == 2 && !text.contains([' ', ',', '\t', '\n', ':']) => {
            Ok(Some(text.to_owned()))
        }
        _ => Err(Fault::Email),
    }
}

/// The authority's address: always TLS, as what it says makes our certificate.
pub(super) fn directory(value: &Value) -> Result<String, Fault> {
    value.url()?.filter(|url| url.starts_with("https://")).ok_or(Fault::Directory)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_whole_names_of_hosts_are_domains() {
        for good in ["registry.example.org", "a", "a-1.b", "XN--abc.example"] {
            assert!(is_domain(good), "{good}");
        }
        for bad in ["", ".", "a..b", "*.example.org", "10.0.0.1", "-a.b", "a-.b", "a b", "a/b", &"a".repeat(64), &"a.".repeat(200)] {
            assert!(!is_domain(bad), "{bad}");
        }
    }

    #[test]
    fn s43_settings_of_tls_that_do_not_go_together_are_refused() {
        let http = super::super::Config::default().http;
        let public = || Http { listen: SocketAddr::from(([10, 0, 0, 7], 5000)), ..http.clone() };
        let files = || Tls { certificate: Some("c".into()), key: Some("k".into()), ..Tls::default() };
        let acme = || Acme { domains: vec!["a.example".to_owned()], terms_agreed: true, ..Acme::default() };
        let none = (Tls::default(), Acme::default());
        let check = |http: &Http, tls: Tls, acme: Acme| super::check(http, &tls, &acme).map_err(|(key, _)| key);
        assert_eq!(check(&http, none.0.clone(), none.1.clone()), Ok(()));
        assert_eq!(check(&public(), none.0.clone(), none.1.clone()), Err("http.listen"));
        assert_eq!(check(&public(), files(), Acme::default()), Ok(()));
        assert_eq!(check(&public(), Tls::default(), acme()), Ok(()));
        assert_eq!(check(&Http { insecure: true, ..public() }, files(), Acme::default()), Err("http.insecure"));
        assert_eq!(check(&http, Tls { key: None, ..files() }, Acme::default()), Err("tls.certificate"));
        assert_eq!(check(&http, Tls { certificate: None, ..files() }, Acme::default()), Err("tls.key"));
        assert_eq!(check(&http, files(), acme()), Err("acme.domains"));
        assert_eq!(check(&http, Tls::default(), Acme { terms_agreed: false, ..acme() }), Err("acme.domains"));
        assert_eq!(check(&http, Tls { client_ca: Some("a".into()), ..Tls::default() }, Acme::default()), Err("tls.client_ca"));
        let required = Tls { client_certificates: ClientCertificates::Required, ..files() };
        assert_eq!(check(&http, required.clone(), Acme::default()), Err("tls.client_certificates"));
        assert_eq!(check(&http, Tls { client_ca: Some("a".into()), ..required }, Acme::default()), Ok(()));
        let plain = Http { public_url: Some("http://registry.example.org".to_owned()), ..http.clone() };
        assert_eq!(check(&plain, files(), Acme::default()), Err("http.public_url"));
    }
}
