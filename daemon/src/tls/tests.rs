//! The room through its door: files that change, files that can't be used, and what a handshake then shows.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use larder_harness::wait_until;
use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair};
use rustls::pki_types::{PrivateKeyDer, ServerName};
use rustls::{ClientConfig, RootCertStore};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsConnector;

use super::*;
use crate::config::ClientCertificates;

const PATIENCE: Duration = Duration::from_secs(30);

/// Somebody who vouches.
struct Authority {
    certificate: rcgen::Certificate,
    issuer: Issuer<'static, KeyPair>,
}

impl Authority {
    fn new(name: &str) -> Self {
        let mut params = CertificateParams::default();
        params.distinguished_name.push(DnType::CommonName, name);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let key = KeyPair::generate().expect("a key");
        let certificate = params.self_signed(&key).expect("a certificate");
        Self { certificate, issuer: Issuer::new(params, key) }
    }

    /// A certificate for localhost whose common name is `name`, and its key, as PEM.
    fn issue(&self, name: &str) -> (String, String) {
        let mut params = CertificateParams::new(vec!["localhost".to_owned()]).expect("names");
        params.distinguished_name.push(DnType::CommonName, name);
        let key = KeyPair::generate().expect("a key");
        let certificate = params.signed_by(&key, &self.issuer).expect("a certificate");
        (certificate.pem(), key.serialize_pem())
    }
}

/// Files of a server, and a client that trusts its authority.
struct Place {
    folder: tempfile::TempDir,
    authority: Authority,
}

impl Place {
    fn new() -> Self {
        let place = Self { folder: tempfile::tempdir().expect("a temp folder"), authority: Authority::new("ca") };
        place.put("one");
        place
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn write(&self, name: &str, text: &str) {
        let new = self.path("new");
        fs::write(&new, text).expect("write");
        fs::set_permissions(&new, fs::Permissions::from_mode(0o600)).expect("make it private");
        fs::rename(&new, self.path(name)).expect("rename");
    }

    fn put(&self, name: &str) {
        let (certificate, key) = self.authority.issue(name);
        self.write("certificate.pem", &certificate);
        self.write("key.pem", &key);
    }

    fn settings(&self) -> config::Tls {
        config::Tls { certificate: Some(self.path("certificate.pem")), key: Some(self.path("key.pem")), ..config::Tls::default() }
    }

    fn open(&self, settings: &config::Tls) -> Result<Tls, Error> {
        Tls::open(settings, Arc::default())
    }

    /// Shakes hands with the server once: what both see. Of the client's certificate, the PEM and its key.
    async fn meet(&self, tls: &Tls, shows: Option<(String, String)>) -> (io::Result<String>, io::Result<Option<Client>>) {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let mut roots = RootCertStore::empty();
        roots.add(self.authority.certificate.der().clone()).expect("an authority");
        let builder = ClientConfig::builder_with_provider(server::provider()).with_safe_default_protocol_versions().expect("versions");
        let builder = builder.with_root_certificates(roots);
        let config = match shows {
            None => builder.with_no_client_auth(),
            Some((certificate, key)) => {
                use rustls::pki_types::pem::PemObject;
                let chain = vec![rustls::pki_types::CertificateDer::from_pem_slice(certificate.as_bytes()).expect("PEM")];
                builder.with_client_auth_cert(chain, PrivateKeyDer::from_pem_slice(key.as_bytes()).expect("PEM")).expect("a pair")
            }
        };
        let client = async {
            let stream = TcpStream::connect(listener.local_addr()?).await?;
            let name = ServerName::try_from("localhost").expect("a name");
            let mut stream = TlsConnector::from(Arc::new(config)).connect(name, stream).await?;
            let shown = stream.get_ref().1.peer_certificates().and_then(|chain| Certificate::read(&chain[0])).map(|read| read.name);
            // In TLS 1.3 a server's refusal comes after the handshake.
            tokio::io::AsyncWriteExt::shutdown(&mut stream).await?;
            tokio::io::AsyncReadExt::read(&mut stream, &mut [0; 1]).await?;
            Ok(shown.unwrap_or_default())
        };
        let server = async {
            let (stream, address) = listener.accept().await?;
            let Some(Accepted { mut stream, client, .. }) = tls.accept(stream, address).await? else { return Ok(None) };
            tokio::io::AsyncWriteExt::shutdown(&mut stream).await?;
            Ok(Some(client))
        };
        tokio::join!(client, server)
    }

    async fn shown(&self, tls: &Tls) -> String {
        self.meet(tls, None).await.1.map(|_| ()).expect("the server's side");
        self.meet(tls, None).await.0.expect("the client's side")
    }
}

fn why(result: Result<Tls, Error>) -> String {
    result.err().map(|error| error.to_string()).unwrap_or_default()
}

#[tokio::test]
async fn s44_new_files_are_taken_and_broken_ones_never_replace_what_works() {
    let place = Place::new();
    let tls = place.open(&place.settings()).expect("a certificate and its key");
    assert_eq!(place.shown(&tls).await, "one");
    let stop = CancellationToken::new();
    let watching = tokio::spawn(tls.clone().watch(stop.clone()));
    place.put("two");
    wait_until("the new certificate is shown", PATIENCE, async || (place.shown(&tls).await == "two").then_some(())).await;

    // One after the other, as tools do it: in between, the two are no pair.
    let (certificate, key) = place.authority.issue("three");
    place.write("certificate.pem", &certificate);
    tokio::time::sleep(LOOK_PERIOD + Duration::from_millis(500)).await;
    assert_eq!(place.shown(&tls).await, "two");
    place.write("key.pem", &key);
    wait_until("the pair is shown", PATIENCE, async || (place.shown(&tls).await == "three").then_some(())).await;

    place.write("certificate.pem", "no certificate\n");
    tokio::time::sleep(LOOK_PERIOD + Duration::from_millis(500)).await;
    assert_eq!(place.shown(&tls).await, "three");
    fs::remove_file(place.path("certificate.pem")).expect("remove");
    tokio::time::sleep(LOOK_PERIOD + Duration::from_millis(500)).await;
    assert_eq!(place.shown(&tls).await, "three");
    place.put("four");
    wait_until("it goes on", PATIENCE, async || (place.shown(&tls).await == "four").then_some(())).await;
    stop.cancel();
    watching.await.expect("it ends when it is told to");
}

#[tokio::test]
async fn a_client_is_who_its_certificate_says_when_the_authority_vouches_for_it() {
    let place = Place::new();
    place.write("clients.pem", &place.authority.certificate.pem());
    let optional = config::Tls { client_ca: Some(place.path("clients.pem")), ..place.settings() };
    let required = config::Tls { client_certificates: ClientCertificates::Required, ..optional.clone() };
    let (good, strange) = (place.authority.issue("ann"), Authority::new("other").issue("mallory"));
    for settings in [&optional, &required] {
        let tls = place.open(settings).expect("files");
        let client = place.meet(&tls, Some(good.clone())).await.1.expect("let in").expect("no challenge");
        assert!(client.is_encrypted);
        assert_eq!(client.certificate().map(|certificate| certificate.name.as_str()), Some("ann"));
        place.meet(&tls, Some(strange.clone())).await.1.map(|_| ()).expect_err("nobody vouches for it");
    }
    let nobody = place.meet(&place.open(&optional).expect("files"), None).await.1.expect("let in").expect("no challenge");
    assert!(nobody.certificate().is_none());
    let (client, server) = place.meet(&place.open(&required).expect("files"), None).await;
    server.map(|_| ()).expect_err("it has to show one");
    client.expect_err("and is told so");
    // Without an authority for clients nobody asks for certificates, and none counts.
    let plain = place.meet(&place.open(&place.settings()).expect("files"), Some(good)).await.1.expect("let in").expect("no challenge");
    assert!(plain.certificate().is_none());
}

#[test]
fn s42_s44_files_that_cannot_be_used_are_refused_with_what_to_do() {
    let place = Place::new();
    let check = |name: &str, text: &str, expected: &str| {
        let before = fs::read_to_string(place.path(name)).expect("read");
        place.write(name, text);
        let said = why(place.open(&place.settings()));
        assert!(said.contains(expected) && said.contains(name) && !said.contains('\n'), "{said}");
        place.write(name, &before);
    };
    check("certificate.pem", "", "-----BEGIN CERTIFICATE-----");
    check("certificate.pem", "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n", "damaged");
    check("certificate.pem", &place.authority.issue("other").0, "both files have to be of one pair");
    check("key.pem", "", "-----BEGIN PRIVATE KEY-----");
    check("key.pem", "-----BEGIN ENCRYPTED PRIVATE KEY-----\nAAAA\n-----END ENCRYPTED PRIVATE KEY-----\n", "without a password");
    fs::set_permissions(place.path("key.pem"), fs::Permissions::from_mode(0o644)).expect("open it");
    assert!(why(place.open(&place.settings())).contains("chmod 600"));
    fs::set_permissions(place.path("key.pem"), fs::Permissions::from_mode(0o640)).expect("a group may read it");
    assert_eq!(why(place.open(&place.settings())), "");
    let gone = config::Tls { key: Some(place.path("none.pem")), ..place.settings() };
    assert!(why(place.open(&gone)).contains("none.pem: No such file"));
    let clients = config::Tls { client_ca: Some(Path::new("/dev/null").to_owned()), ..place.settings() };
    assert!(why(place.open(&clients)).contains("/dev/null"));
}
