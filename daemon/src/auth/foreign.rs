//! Who others say somebody is: a token server, and issuers of identities (OpenID Connect).
//!
//! A token server decides itself what its tokens allow. An issuer only says who somebody is, by claims; what these may do is for the rules.

use serde_json::{Map, Value};

use super::fetch::{self, Fetcher};
use super::keys::{Invalid, Keys, issuer_of, said};
use super::policy::Who;
use super::scope::{self, Access};
use crate::config::{Config, Oidc};

/// Longest name that an issuer may give somebody.
const SUBJECT_LENGTH_MAX: usize = 256;

/// Those whose word is taken.
pub(super) struct Foreign {
    server: Option<(String, Keys)>,
    issuers: Vec<Issuer>,
}

/// An issuer of identities.
pub(super) struct Issuer {
    pub(super) config: Oidc,
    pub(super) keys: Keys,
    pub(super) fetcher: Fetcher,
}

impl Foreign {
    /// Those of the configuration. Asks nobody yet.
    pub(super) fn new(config: &Config) -> Result<Self, fetch::Error> {
        if config.token_server.realm.is_none() && config.oidc.is_empty() {
            return Ok(Self { server: None, issuers: Vec::new() });
        }
        let fetcher = Fetcher::new()?;
        let server = &config.token_server;
        let keys = Keys::new(&server.issuer, server.jwks.clone(), &server.algorithms, fetcher.clone());
        let issuer = |oidc: &Oidc| {
            let keys = Keys::new(&oidc.issuer, oidc.jwks.clone(), &oidc.algorithms, fetcher.clone());
            Issuer { config: oidc.clone(), keys, fetcher: fetcher.clone() }
        };
        Ok(Self {
            server: server.realm.is_some().then(|| (server.service.clone(), keys)),
            issuers: config.oidc.iter().map(issuer).collect(),
        })
    }

    /// Whether there is a token server.
    pub(super) fn has_server(&self) -> bool {
        self.server.is_some()
    }

    /// The issuer of a name.
    pub(super) fn issuer(&self, name: &str) -> Option<&Issuer> {
        self.issuers.iter().find(|issuer| issuer.config.name == name)
    }

    /// Whom the token server means.
    ///
    /// # Errors
    /// The token counts for nothing.
    pub(super) async fn by_server(&self, token: &str) -> Result<Who, Invalid> {
        let none = || Invalid::Signature { issuer: "a token server".to_owned() };
        let (service, keys) = self.server.as_ref().ok_or_else(none)?;
        let claims = keys.check(token, &[service]).await?;
        let access = claims.get("access").cloned().unwrap_or(Value::Array(Vec::new()));
        // What can't be read allows nothing.
        let access: Vec<Access> = serde_json::from_value(access).unwrap_or_default();
        let repositories = access.into_iter().take(scope::SCOPES_MAX).filter(|one| one.kind == "repository");
        let grants = repositories.map(|one| {
            let actions = one.allowed(&one.name.clone());
            (one.name, actions)
        });
        let grants = grants.collect();
        Ok(Who::External { subject: subject(&claims), grants })
    }

    /// Whom a configured issuer means.
    ///
    /// # Errors
    /// The token counts for nothing.
    pub(super) async fn by_issuer(&self, token: &str) -> Result<Who, Invalid> {
        let named = issuer_of(token);
        let of_issuer = self.issuers.iter().filter(|issuer| Some(&issuer.config.issuer) == named.as_ref());
        let mut failed = Invalid::Signature { issuer: "any configured issuer".to_owned() };
        // One issuer may be configured for several audiences.
        for issuer in of_issuer {
            match issuer.identify(token, &[&issuer.config.audience]).await {
                Ok((who, _)) => return Ok(who),
                Err(error) => failed = error,
            }
        }
        Err(failed)
    }
}

impl Issuer {
    /// Whom a token for one of these audiences means, and all that it claims.
    pub(super) async fn identify(&self, token: &str, audiences: &[&str]) -> Result<(Who, Map<String, Value>), Invalid> {
        let claims = self.keys.check(token, audiences).await?;
        let who = Who::Workload { issuer: self.config.name.clone(), subject: subject(&claims), claims: said(&claims) };
        Ok((who, claims))
    }
}

/// Who is meant, for people and logs.
fn subject(claims: &Map<String, Value>) -> String {
    let subject = claims.get("sub").and_then(Value::as_str).unwrap_or("nameless");
    subject.chars().filter(|letter| !letter.is_control()).take(SUBJECT_LENGTH_MAX).collect()
}
