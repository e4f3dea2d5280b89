//! Who is at the other end of a connection, as far as the connection tells.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use x509_parser::certificate::X509Certificate;
use x509_parser::extensions::GeneralName;
use x509_parser::prelude::FromDer;
use x509_parser::x509::X509Name;

/// Longest name that is taken out of a certificate, and most names of one kind.
const NAME_LENGTH_MAX: usize = 256;
const NAMES_MAX: usize = 16;

/// The client of a connection.
#[derive(Clone, Debug)]
pub struct Client {
    /// Where it connects from.
    pub address: SocketAddr,
    /// Whether what it sends is hidden from others on the way.
    pub is_encrypted: bool,
    certificate: Option<Arc<Certificate>>,
    /// The names in the certificate that it was shown.
    shown: Arc<[String]>,
}

impl Client {
    /// A client that speaks plain HTTP.
    pub fn plain(address: SocketAddr) -> Self {
        Self { address, is_encrypted: false, certificate: None, shown: Arc::default() }
    }

    /// A client that speaks TLS, with the certificate that it proved to have, which `tls.client_ca` vouches for; and the names in the one that it
    /// was shown.
    pub fn encrypted(address: SocketAddr, certificate: Option<Certificate>, shown: Arc<[String]>) -> Self {
        Self { address, is_encrypted: true, certificate: certificate.map(Arc::new), shown }
    }

    /// Whether this connection proves that `host`, a name or an address with or without a port, is this node: the certificate that the client was
    /// shown is for it. A name in lower and upper case is one; a wildcard stands for one label (RFC 6125, 6.4).
    pub fn proves(&self, host: &str) -> bool {
        let Some(host) = host_of(host) else { return false };
        self.shown.iter().any(|name| match name.strip_prefix("*.") {
            Some(parent) => host.split_once('.').is_some_and(|(label, rest)| !label.is_empty() && rest.eq_ignore_ascii_case(parent)),
            None => name.eq_ignore_ascii_case(host),
        })
    }

    /// Where it connects from, without the port.
    pub fn ip(&self) -> IpAddr {
        self.address.ip()
    }

    /// Its certificate, unless that has run out since the connection was made.
    pub fn certificate(&self) -> Option<&Certificate> {
        self.certificate.as_deref().filter(|certificate| SystemTime::now() < certificate.expires)
    }
}

/// The host in `host`, `host:port`, `[address]` or `[address]:port`, when it is made of what hosts are made of.
fn host_of(text: &str) -> Option<&str> {
    let is_port = |port: &str| port.parse::<u16>().is_ok_and(|number| number.to_string() == port);
    let (host, port) = match text.strip_prefix('[') {
        Some(rest) => {
            let (address, port) = rest.split_once(']')?;
            address.parse::<std::net::Ipv6Addr>().ok()?;
            (address, if port.is_empty() { None } else { Some(port.strip_prefix(':')?) })
        }
        None => text.split_once(':').map_or((text, None), |(host, port)| (host, Some(port))),
    };
    let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-._:".contains(&byte);
    (!host.is_empty() && host.bytes().all(is_plain) && port.is_none_or(is_port)).then_some(host)
}

/// What a client's certificate says of it. Whoever signed it vouches for the names; all of them are printable and bounded.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Certificate {
    /// The common name of the subject, or, when it has none, the first of its URIs, host names and mail addresses: whom to take it for.
    pub name: String,
    /// The organizations of the subject: which groups it is in.
    pub groups: Vec<String>,
    /// After that it proves nothing.
    pub expires: SystemTime,
    /// SHA-256 of the whole certificate, for the log.
    pub fingerprint: [u8; 32],
}

impl Certificate {
    /// Reads a certificate whose signature was checked by TLS. `None`: it names nobody, or has names that can't be used.
    pub fn read(der: &[u8]) -> Option<Self> {
        let (rest, certificate) = X509Certificate::from_der(der).ok()?;
        if !rest.is_empty() {
            return None;
        }
        let subject = certificate.subject();
        let name = match subject.iter_common_name().next() {
            Some(name) => usable(name.as_str().ok()?)?,
            None => alternative(&certificate)?,
        };
        let groups = organizations(subject)?;
        let seconds = u64::try_from(certificate.validity().not_after.timestamp()).ok()?;
        let expires = UNIX_EPOCH.checked_add(Duration::from_secs(seconds))?;
        let fingerprint = <sha2::Sha256 as sha2::Digest>::digest(der).into();
        Some(Self { name, groups, expires, fingerprint })
    }
}

/// A group that can't be used makes the whole certificate useless: rules may be about who is not in it.
fn organizations(subject: &X509Name<'_>) -> Option<Vec<String>> {
    let mut groups = Vec::new();
    for organization in subject.iter_organization() {
        if groups.len() == NAMES_MAX {
            return None;
        }
        groups.push(usable(organization.as_str().ok()?)?);
    }
    Some(groups)
}

fn alternative(certificate: &X509Certificate<'_>) -> Option<String> {
    let names = &certificate.subject_alternative_name().ok()??.value.general_names;
    let first = |pick: fn(&GeneralName<'_>) -> Option<String>| names.iter().take(NAMES_MAX).find_map(pick);
    let of = [
        |name: &GeneralName<'_>| if let GeneralName::URI(uri) = name { Some((*uri).to_owned()) } else { None },
        |name: &GeneralName<'_>| if let GeneralName::DNSName(host) = name { Some((*host).to_owned()) } else { None },
        |name: &GeneralName<'_>| if let GeneralName::RFC822Name(mail) = name { Some((*mail).to_owned()) } else { None },
    ];
    usable(&of.into_iter().find_map(first)?)
}

/// A name that can stand in a rule and in a log.
fn usable(name: &str) -> Option<String> {
    let good = !name.is_empty() && name.len() <= NAME_LENGTH_MAX && name == name.trim() && !name.chars().any(char::is_control);
    good.then(|| name.to_owned())
}

#[cfg(test)]
mod tests {
    use larder_harness::{Random, for_seeds};
    use rcgen::{CertificateParams, DnType, KeyPair, SanType};

    use super::*;

    fn made(change: impl FnOnce(&mut CertificateParams)) -> Vec<u8> {
        let mut params = CertificateParams::default();
        params.distinguished_name = rcgen::DistinguishedName::new();
        change(&mut params);
        let key = KeyPair::generate().expect("a key");
        params.self_signed(&key).expect("a certificate").der().to_vec()
    }

    fn named(common_name: &str) -> Vec<u8> {
        made(|params| params.distinguished_name.push(DnType::CommonName, common_name))
    }

    #[test]
    fn s19_only_a_host_that_the_certificate_is_for_is_proven() {
        let names = ["registry.example.org", "*.nodes.example.org", "127.0.0.1", "::1"].map(str::to_owned);
        let client = Client::encrypted(([127, 0, 0, 1], 1).into(), None, names.into());
        for host in
            ["registry.example.org", "Registry.Example.org:5000", "a.nodes.example.org:443", "127.0.0.1:5000", "[::1]:5000", "[::1]"]
        {
            assert!(client.proves(host), "{host}");
        }
        for host in [
            "evil.org",
            "evil.registry.example.org",
            "registry.example.org.evil.org",
            "registry.example.org:5000@evil.org",
            "registry.example.org:99999",
            "registry.example.org:+80",
            "registry.example.org:",
            "registry.example.org\"",
            "nodes.example.org",
            ".nodes.example.org",
            "a.b.nodes.example.org",
            "a\"b.nodes.example.org",
            "*.nodes.example.org",
            "127.0.0.1.evil.org",
            "::1",
            "[::1]x",
            "[::2]",
            "",
            ":5000",
        ] {
            assert!(!client.proves(host), "{host}");
        }
        assert!(!Client::plain(([127, 0, 0, 1], 1).into()).proves("127.0.0.1"));
    }

    #[test]
    fn a_certificate_tells_who_it_is_for_and_in_which_groups() {
        let certificate = Certificate::read(&made(|params| {
            params.distinguished_name.push(DnType::CommonName, "ci-runner");
            params.distinguished_name.push(DnType::OrganizationName, "builders");
            params.not_after = rcgen::date_time_ymd(2040, 1, 1);
        }));
        let certificate = certificate.expect("it names somebody");
        assert_eq!((certificate.name.as_str(), certificate.groups.as_slice()), ("ci-runner", &["builders".to_owned()][..]));
        assert_eq!(certificate.expires, UNIX_EPOCH + Duration::from_secs(2_208_988_800));
    }

    #[test]
    fn without_a_common_name_the_alternatives_are_taken_in_a_fixed_order() {
        let uri = || SanType::URI("spiffe://example.org/ci".try_into().expect("a URI"));
        let host = || SanType::DnsName("ci.example.org".try_into().expect("a name"));
        let mail = || SanType::Rfc822Name("ci@example.org".try_into().expect("an address"));
        let name = |names: Vec<SanType>| Certificate::read(&made(|params| params.subject_alt_names = names)).map(|read| read.name);
        assert_eq!(name(vec![mail(), host(), uri()]).as_deref(), Some("spiffe://example.org/ci"));
        assert_eq!(name(vec![mail(), host()]).as_deref(), Some("ci.example.org"));
        assert_eq!(name(vec![mail()]).as_deref(), Some("ci@example.org"));
        assert_eq!(name(Vec::new()), None);
    }

    #[test]
    fn s46_names_that_could_be_taken_for_others_in_a_log_or_a_rule_are_nobody() {
        for name in ["", " ann", "ann ", "ann\nERROR", "a\0b", &"x".repeat(NAME_LENGTH_MAX + 1)] {
            assert_eq!(Certificate::read(&named(name)), None, "{name:?}");
        }
        assert!(Certificate::read(&named(&"x".repeat(NAME_LENGTH_MAX))).is_some());
        let group = made(|params| {
            params.distinguished_name.push(DnType::CommonName, "ann");
            params.distinguished_name.push(DnType::OrganizationName, "a\tb");
        });
        assert_eq!(Certificate::read(&group), None);
    }

    #[test]
    fn a_certificate_that_ran_out_after_the_connection_was_made_proves_nothing_any_more() {
        let of = |expires| {
            let certificate = Certificate { name: "ann".to_owned(), groups: Vec::new(), expires, fingerprint: [0; 32] };
            Client::encrypted("127.0.0.1:1".parse().expect("an address"), Some(certificate), Arc::default())
        };
        assert!(of(SystemTime::now() + Duration::from_secs(60)).certificate().is_some());
        assert!(of(SystemTime::now() - Duration::from_secs(1)).certificate().is_none());
    }

    #[test]
    fn damaged_certificates_are_nobody_or_somebody_and_never_a_panic() {
        let good = named("ann");
        for_seeds(|seed| {
            let mut random = Random::new(seed);
            let mut bad = good.clone();
            for _ in 0..=random.below(4) {
                let place = random.below(bad.len() as u64) as usize;
                bad[place] = random.number() as u8;
            }
            bad.truncate(bad.len() - random.below(2) as usize * random.below(good.len() as u64) as usize);
            let _ = Certificate::read(&bad);
        });
    }
}
