//! A certificate from an authority that speaks ACME, had and renewed by itself. SPEC: RFC 8555.
//!
//! The certificate and its key stand in one file of the data folder, `acme/certificate.pem`, and the front door takes it from there as it
//! takes every file that changes. So nothing here touches what is being served, and a restart finds what was had before; the account's
//! key stands beside it. The folder is 0700 and its files 0600.
//!
//! A certificate is renewed when two thirds of its time are over, or when other names are configured. What fails is tried again
//! later and later: authorities count failures.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use instant_acme::{
    Account, AccountBuilder, AccountCredentials, AuthorizationStatus, ChallengeType, Identifier, NewAccount, NewOrder, Order, OrderStatus,
    RetryPolicy,
};
use tokio_util::sync::CancellationToken;

use super::{Challenges, Error, files};
use crate::config::{self, AcmeChallenge};

/// In the data folder.
const FOLDER: &str = "acme";
const CERTIFICATE: &str = "certificate.pem";
const ACCOUNT: &str = "account.json";
/// No account is longer.
const ACCOUNT_SIZE_MAX: u64 = 64 << 10;
/// How long after a failure the next try is, at first and at most. Let's Encrypt takes five failures an hour.
const RETRY_MIN: Duration = Duration::from_secs(60);
const RETRY_MAX: Duration = Duration::from_secs(6 * 60 * 60);
/// How often it is looked whether the time has come: clocks jump.
const LOOK_PERIOD: Duration = Duration::from_secs(60 * 60);
/// How long a whole order may take.
const ORDER_TIME_MAX: Duration = Duration::from_secs(5 * 60);

/// Keeps a certificate in a file.
pub struct Acme {
    settings: config::Acme,
    folder: PathBuf,
    challenges: Challenges,
}

/// Where the certificate is, or will be; also its key.
pub fn certificate_file(data_dir: &Path) -> PathBuf {
    data_dir.join(FOLDER).join(CERTIFICATE)
}

impl Acme {
    /// Makes the folder.
    ///
    /// # Errors
    /// It can't be made.
    pub fn open(settings: &config::Acme, data_dir: &Path, challenges: Challenges) -> Result<Self, Error> {
        let folder = data_dir.join(FOLDER);
        let made = DirBuilder::new().mode(0o700).create(&folder);
        if let Err(source) = made.or_else(|error| if error.kind() == io::ErrorKind::AlreadyExists { Ok(()) } else { Err(error) }) {
            return Err(Error::Read { doing: "make the folder", path: folder, source });
        }
        Ok(Self { settings: settings.clone(), folder, challenges })
    }

    /// Gets and renews until it is told to stop.
    pub async fn run(self, stopping: CancellationToken) {
        let _ = stopping.run_until_cancelled(self.keep()).await;
    }

    async fn keep(&self) {
        let mut retry = RETRY_MIN;
        loop {
            let due = due(&files::certificates(&self.folder.join(CERTIFICATE)).unwrap_or_default(), &self.settings.domains);
            let left = due.duration_since(SystemTime::now()).unwrap_or_default();
            if !left.is_zero() {
                tokio::time::sleep(left.min(LOOK_PERIOD)).await;
                continue;
            }
            let got = tokio::time::timeout(ORDER_TIME_MAX, self.renew()).await;
            self.challenges.clear();
            let result = got.unwrap_or_else(|_| Err(failed("get a certificate", format!("not done within {ORDER_TIME_MAX:?}"))));
            match result {
                Ok(()) => {
                    tracing::info!(names = ?self.settings.domains, authority = self.settings.directory, "got a certificate");
                    retry = RETRY_MIN;
                }
                Err(error) => {
                    tracing::warn!(%error, names = ?self.settings.domains, again_in = ?retry, "no certificate could be had");
                    tokio::time::sleep(retry).await;
                    retry = (retry * 2).min(RETRY_MAX);
                }
            }
        }
    }

    async fn renew(&self) -> Result<(), Error> {
        let account = self.account().await?;
        let names: Vec<_> = self.settings.domains.iter().cloned().map(Identifier::Dns).collect();
        let order = account.new_order(&NewOrder::new(&names)).await;
        let mut order = order.map_err(|error| failed("order a certificate", error))?;
        self.answer(&mut order).await?;
        let patience = RetryPolicy::default().timeout(ORDER_TIME_MAX);
        let status = order.poll_ready(&patience).await.map_err(|error| failed("wait for the authority to look", error))?;
        if status != OrderStatus::Ready && status != OrderStatus::Valid {
            return Err(failed("show that the names are this node's", self.refusal(&mut order).await));
        }
        let key = order.finalize().await.map_err(|error| failed("ask for the certificate", error))?;
        let chain = order.poll_certificate(&patience).await.map_err(|error| failed("fetch the certificate", error))?;
        let path = self.folder.join(CERTIFICATE);
        write_private(&path, format!("{key}\n{chain}").as_bytes()).map_err(|source| Error::Read { doing: "write", path, source })
    }

    /// Makes the answers ready, and says so.
    async fn answer(&self, order: &mut Order) -> Result<(), Error> {
        let mut authorizations = order.authorizations();
        while let Some(authorization) = authorizations.next().await {
            let mut authorization = authorization.map_err(|error| failed("ask what is to be shown", error))?;
            if authorization.status == AuthorizationStatus::Valid {
                continue;
            }
            let (kind, word) = match self.settings.challenge {
                AcmeChallenge::Http01 => (ChallengeType::Http01, "http-01"),
                AcmeChallenge::TlsAlpn01 => (ChallengeType::TlsAlpn01, "tls-alpn-01"),
            };
            let challenge = authorization.challenge(kind);
            let mut challenge = challenge.ok_or_else(|| failed("show that a name is this node's", format!("{word} is not offered")))?;
            let answer = challenge.key_authorization();
            match self.settings.challenge {
                AcmeChallenge::Http01 => self.challenges.put_text(&challenge.token, answer.as_str()),
                AcmeChallenge::TlsAlpn01 => {
                    let name = challenge.identifier().to_string();
                    self.challenges.put_certificate(&name, answer.digest().as_ref())?;
                }
            }
            challenge.set_ready().await.map_err(|error| failed("say that an answer is ready", error))?;
        }
        Ok(())
    }

    /// What the authority did not like.
    async fn refusal(&self, order: &mut Order) -> String {
        let mut words = Vec::new();
        let mut authorizations = order.authorizations();
        while let Some(Ok(mut authorization)) = authorizations.next().await {
            // What is known of it is from before the authority looked.
            let _ = authorization.refresh().await;
            let problems = authorization.challenges.iter().filter_map(|challenge| challenge.error.as_ref());
            words.extend(problems.map(|problem| format!("{}: {problem}", authorization.identifier())));
        }
        if words.is_empty() { "the authority did not say why".to_owned() } else { words.join("; ") }
    }

    /// The account of before, or a new one.
    async fn account(&self) -> Result<Account, Error> {
        let path = self.folder.join(ACCOUNT);
        match fs::metadata(&path) {
            Ok(found) if found.len() <= ACCOUNT_SIZE_MAX => {
                let text = fs::read(&path).map_err(|source| Error::Read { doing: "read the account", path: path.clone(), source })?;
                let kept: Kept = serde_json::from_slice(&text).map_err(|error| Error::content("read the account", &path, error))?;
                // An account is one authority's.
                if kept.directory == self.settings.directory {
                    let account = self.builder()?.from_credentials(kept.credentials).await;
                    return account.map_err(|error| failed("use the account of before", error));
                }
            }
            _ => {}
        }
        let contact: Vec<_> = self.settings.email.iter().map(|email| format!("mailto:{email}")).collect();
        let contact: Vec<_> = contact.iter().map(String::as_str).collect();
        let new = NewAccount { contact: &contact, terms_of_service_agreed: self.settings.terms_agreed, only_return_existing: false };
        let made = self.builder()?.create(&new, self.settings.directory.clone(), None).await;
        let (account, credentials) = made.map_err(|error| failed("open an account", error))?;
        let kept = Kept { directory: self.settings.directory.clone(), credentials };
        let text = serde_json::to_vec(&kept).map_err(|error| failed("keep the account", error))?;
        write_private(&path, &text).map_err(|source| Error::Read { doing: "write", path, source })?;
        Ok(account)
    }

    fn builder(&self) -> Result<AccountBuilder, Error> {
        let builder = match &self.settings.ca {
            Some(path) => Account::builder_with_root(path),
            None => Account::builder(),
        };
        builder.map_err(|error| failed("prepare to speak with the authority", error))
    }
}

/// What stands in the account's file.
#[derive(serde::Serialize, serde::Deserialize)]
struct Kept {
    directory: String,
    credentials: AccountCredentials,
}

fn failed(doing: &'static str, why: impl ToString) -> Error {
    Error::Acme { doing, why: why.to_string() }
}

/// When a certificate has to be had: now, when there is none or not for these names.
fn due(chain: &[rustls::pki_types::CertificateDer<'_>], domains: &[String]) -> SystemTime {
    let Some((names, begins, ends)) = chain.first().and_then(|own| files::validity(own)) else { return SystemTime::UNIX_EPOCH };
    if domains.iter().any(|domain| !names.contains(domain)) {
        return SystemTime::UNIX_EPOCH;
    }
    begins + ends.duration_since(begins).unwrap_or_default() / 3 * 2
}

/// Puts a file in place whole, which nobody else may read.
fn write_private(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let new = path.with_extension("new");
    let _ = fs::remove_file(&new);
    let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&new)?;
    file.write_all(bytes)?;
    file.sync_all()?;
    // ORDER: the content is on the disk before the name leads to it.
    fs::rename(&new, path)?;
    File::open(path.parent().unwrap_or(Path::new(".")))?.sync_all()
}

#[cfg(test)]
mod tests {
    use rcgen::{CertificateParams, KeyPair};

    use super::*;

    #[test]
    fn a_certificate_is_renewed_when_two_thirds_of_its_time_are_over_or_its_names_are_others() {
        let mut params = CertificateParams::new(vec!["a.example".to_owned(), "b.example".to_owned()]).expect("names");
        params.not_before = rcgen::date_time_ymd(2030, 1, 1);
        params.not_after = rcgen::date_time_ymd(2030, 4, 1);
        let made = params.self_signed(&KeyPair::generate().expect("a key")).expect("a certificate");
        let chain = [made.der().clone()];
        let names = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect::<Vec<_>>();
        let begin = SystemTime::UNIX_EPOCH + Duration::from_secs(1_893_456_000);
        assert_eq!(due(&chain, &names(&["a.example"])), begin + Duration::from_secs(60 * 24 * 60 * 60));
        assert_eq!(due(&chain, &names(&["a.example", "c.example"])), SystemTime::UNIX_EPOCH);
        assert_eq!(due(&[], &names(&["a.example"])), SystemTime::UNIX_EPOCH);
    }

    #[test]
    fn s42_what_is_kept_is_private_from_its_first_byte() {
        use std::os::unix::fs::PermissionsExt;
        let folder = tempfile::tempdir().expect("a temp folder");
        let path = folder.path().join("certificate.pem");
        for text in ["one", "two"] {
            write_private(&path, text.as_bytes()).expect("write");
            assert_eq!(fs::read_to_string(&path).expect("read"), text);
            assert_eq!(fs::metadata(&path).expect("there").permissions().mode() & 0o777, 0o600);
        }
        assert_eq!(fs::read_dir(folder.path()).expect("list").count(), 1);
    }
}
