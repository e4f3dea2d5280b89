//! `[auth]`, `[token_server]` and `[[oidc]]`: who is let in, and who else may say who somebody is.

use std::path::PathBuf;
use std::time::Duration;

use toml::de::{DeArray, DeTable, DeValue};

use super::layers::of_toml;
use super::value::{Value, is_name};
use super::{DAY, Error, Fault, Place};

/// Most issuers.
const ISSUERS_MAX: usize = 16;
pub(super) const KEYS: [&str; 7] = ["name", "issuer", "audience", "jwks", "algorithms", "client_id", "client_secret_file"];
/// Algorithms of signatures that others may use: none that is checked with a secret.
const ALGORITHMS: [&str; 9] = ["EdDSA", "ES256", "ES384", "RS256", "RS384", "RS512", "PS256", "PS384", "PS512"];

/// What is written down of what clients do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AuditLevel {
    /// Nothing.
    Off,
    /// Pushes, deletes, tokens, and whatever was refused.
    Changes,
    /// Pulls too.
    Everything,
}

/// `[auth]`
#[derive(Clone, Debug)]
pub struct Auth {
    /// Ask for names also while nobody has one.
    pub required: bool,
    /// A password file.
    pub htpasswd: Option<PathBuf>,
    /// How long a token is good.
    pub token_life: Duration,
    /// How long a client may get new ones without a password.
    pub refresh_life: Duration,
    /// How long a browser stays signed in.
    pub session_life: Duration,
    /// What is written down.
    pub audit: AuditLevel,
    /// How long it is kept.
    pub audit_kept: Duration,
}

/// `[token_server]`: another server's tokens are taken, and clients are sent to it.
#[derive(Clone, Debug)]
pub struct TokenServer {
    /// Where clients get tokens.
    pub realm: Option<String>,
    /// What this registry is called there; also the audience of tokens for it.
    pub service: String,
    /// Who issues them.
    pub issuer: String,
    /// Its keys: a file, or a URL.
    pub jwks: Option<KeySource>,
    /// How they sign.
    pub algorithms: Vec<String>,
}

/// `[[oidc]]`: an issuer of identities.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Oidc {
    /// What rules call it.
    pub name: String,
    /// Its URL, as its tokens have it.
    pub issuer: String,
    /// For whom its tokens have to be.
    pub audience: String,
    /// Its keys, when they are not where its own description says.
    pub jwks: Option<KeySource>,
    /// How it signs.
    pub algorithms: Vec<String>,
    /// As what this registry is known to it, when people sign in through it.
    pub client_id: Option<String>,
    /// A file with the secret that goes with that.
    pub client_secret_file: Option<PathBuf>,
}

/// Where keys are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum KeySource {
    /// In a file.
    File(PathBuf),
    /// At a URL.
    Url(String),
}

impl Default for Auth {
    fn default() -> Self {
        Self {
            required: false,
            htpasswd: None,
            token_life: Duration::from_secs(5 * 60),
            refresh_life: 30 * DAY,
            session_life: Duration::from_secs(12 * 3600),
            audit: AuditLevel::Changes,
            audit_kept: 7 * DAY,
        }
    }
}

impl Default for TokenServer {
    fn default() -> Self {
        let algorithms = ["EdDSA", "ES256", "RS256"].map(str::to_owned).to_vec();
        Self { realm: None, service: String::new(), issuer: String::new(), jwks: None, algorithms }
    }
}

/// A path, or nothing.
pub(super) fn path(value: &Value) -> Result<Option<PathBuf>, Fault> {
    match value.text()? {
        "" => Ok(None),
        home if home == "~" || home.starts_with("~/") => Err(Fault::Home),
        path if path.contains(char::is_control) => Err(Fault::Type { wanted: "a path" }),
        path => Ok(Some(PathBuf::from(path))),
    }
}

/// A name that stands in headers and tokens, or nothing.
pub(super) fn word(value: &Value) -> Result<String, Fault> {
    let text = value.text()?;
    let is_plain = text.bytes().all(|byte| byte.is_ascii_graphic() && byte != b'"' && byte != b'\\');
    if is_plain { Ok(text.to_owned()) } else { Err(Fault::Type { wanted: "visible letters without quotes and spaces" }) }
}

/// The URL of somebody whose word is taken: nobody on the way may change it.
pub(super) fn trusted_url(value: &Value) -> Result<String, Fault> {
    let text = value.text()?;
    // The checks of an URL that ends up in a header; it itself is kept as it is written, because it is compared.
    value.url()?.ok_or(Fault::Empty)?;
    if is_trusted(text) { Ok(text.to_owned()) } else { Err(Fault::PlainIssuer) }
}

fn is_trusted(text: &str) -> bool {
    text.parse().is_ok_and(|uri| is_trusted_url(&uri))
}

/// Whether nobody on the way can change what an URL answers: it is https, or on this host.
pub fn is_trusted_url(uri: &http::Uri) -> bool {
    let host = uri.host().unwrap_or_default().trim_matches(['[', ']']);
    let is_loopback = host == "localhost" || host.parse::<std::net::IpAddr>().is_ok_and(|address| address.is_loopback());
    uri.scheme_str() == Some("https") || (uri.scheme_str() == Some("http") && is_loopback)
}

/// Where keys are: a URL, or a path.
pub(super) fn key_source(value: &Value) -> Result<Option<KeySource>, Fault> {
    let text = value.text()?;
    if text.starts_with("http://") || text.starts_with("https://") {
        return trusted_url(value).map(|url| Some(KeySource::Url(url)));
    }
    Ok(path(value)?.map(KeySource::File))
}

/// Algorithms that a configured issuer may use.
pub(super) fn algorithms(value: &Value) -> Result<Vec<String>, Fault> {
    let list = value.list()?;
    if !list.is_empty() && list.iter().all(|name| ALGORITHMS.contains(&name.as_str())) { Ok(list) } else { Err(Fault::Choice(&ALGORITHMS)) }
}

/// Reads the array of issuers.
pub(super) fn read(issuers: &DeArray<'_>, place: &impl Fn(usize) -> Place) -> Result<Vec<Oidc>, Error> {
    let mut read: Vec<Oidc> = Vec::new();
    for issuer in issuers.iter() {
        let here = place(issuer.span().start);
        let wrong = |what: String| Err(Error::Syntax { place: here.clone(), what });
        let DeValue::Table(table) = issuer.get_ref() else {
            return wrong("oidc is a list of issuers; write each as [[oidc]]".to_owned());
        };
        if read.len() == ISSUERS_MAX {
            return wrong(format!("there are more than {ISSUERS_MAX} issuers"));
        }
        let one = one(table, &here, place)?;
        if read.iter().any(|known| known.name == one.name || (&known.issuer, &known.audience) == (&one.issuer, &one.audience)) {
            return wrong("two issuers have one name, or one issuer and one audience; rules could not tell them apart".to_owned());
        }
        read.push(one);
    }
    Ok(read)
}

fn one(table: &DeTable<'_>, here: &Place, place: &impl Fn(usize) -> Place) -> Result<Oidc, Error> {
    let mut oidc = Oidc {
        name: String::new(),
        issuer: String::new(),
        audience: String::new(),
        jwks: None,
        algorithms: vec!["RS256".to_owned(), "ES256".to_owned()],
        client_id: None,
        client_secret_file: None,
    };
    for (key, value) in table.iter() {
        let shown = of_toml(value.get_ref());
        let text = || shown.text().map(str::to_owned);
        let (name, done) = match key.get_ref().as_ref() {
            "name" => {
                ("oidc.name", text().and_then(|text| if is_name(&text) { Ok(text) } else { Err(Fault::Name) }).map(|text| oidc.name = text))
            }
            "issuer" => ("oidc.issuer", trusted_url(&shown).map(|url| oidc.issuer = url)),
            "audience" => ("oidc.audience", text().map(|text| oidc.audience = text)),
            "jwks" => ("oidc.jwks", key_source(&shown).map(|source| oidc.jwks = source)),
            "algorithms" => ("oidc.algorithms", algorithms(&shown).map(|names| oidc.algorithms = names)),
            "client_id" => ("oidc.client_id", text().map(|text| oidc.client_id = Some(text).filter(|text| !text.is_empty()))),
            "client_secret_file" => ("oidc.client_secret_file", path(&shown).map(|path| oidc.client_secret_file = path)),
            other => {
                let near = KEYS.iter().find(|known| known.starts_with(other) || other.starts_with(**known));
                let near = near.map(|near| (*near).to_owned());
                return Err(Error::Unknown { place: place(key.span().start), name: format!("oidc.{other}"), near });
            }
        };
        done.map_err(|fault| Error::Value { place: place(value.span().start), key: name, value: shown.shown(), fault })?;
    }
    let wrong = |what: &str| Err(Error::Syntax { place: here.clone(), what: what.to_owned() });
    if oidc.name.is_empty() || oidc.issuer.is_empty() {
        return wrong("an issuer needs a name, by which rules know it, and issuer = \"https://...\"");
    }
    // Without it, a token that was made for any other service would be good here too.
    if oidc.audience.is_empty() {
        return wrong("an issuer needs an audience: for whom its tokens have to be, such as the address of this registry");
    }
    if oidc.client_secret_file.is_some() && oidc.client_id.is_none() {
        return wrong("an issuer with client_secret_file needs a client_id too");
    }
    Ok(oidc)
}
