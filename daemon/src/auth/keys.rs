//! Other issuers' keys, and what their tokens are checked by.
//!
//! Which keys and which algorithms may be used is configured; a token's header only has to agree (S14). A key is public, always: what could check by a
//! shared secret is not even read. Keys at a URL are read when they are needed, kept for an hour, and read anew before that when a token fits none of
//! them, but not more often than twice a minute, so that made-up tokens ask nobody.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use arc_swap::ArcSwap;
use jsonwebtoken::errors::ErrorKind;
use jsonwebtoken::jwk::{AlgorithmParameters, EllipticCurve, Jwk, PublicKeyUse};
use jsonwebtoken::{Algorithm, DecodingKey, Validation};
use serde_json::{Map, Value};
use tokio::sync::Mutex;

use super::fetch::Fetcher;
use super::policy::Claims;
use crate::config::KeySource;

/// Most keys of one issuer.
const KEYS_MAX: usize = 32;
/// How long keys are kept.
const KEPT: Duration = Duration::from_secs(3600);
/// How soon they are asked for again.
const ASKED_AGAIN: Duration = Duration::from_secs(30);
/// By how much other clocks may differ from this node's.
const LEEWAY_S: u64 = 30;
/// Longest token of another issuer.
const TOKEN_LENGTH_MAX: usize = 16 << 10;
/// Most claims that are looked at, entries of one, and bytes of all.
const CLAIMS_MAX: usize = 64;
const ENTRIES_MAX: usize = 64;
const CLAIMS_SIZE_MAX: usize = 6 << 10;

/// Why a token of another issuer counts for nothing.
#[derive(Debug, thiserror::Error)]
pub(super) enum Invalid {
    /// Signed by none of the keys.
    #[error("the token is not signed by {issuer}, or in a way that is not configured")]
    Signature {
        /// By whom it should be.
        issuer: String,
    },
    /// For somebody else, by somebody else, or at another time.
    #[error("the token of {issuer} does not count here: {why}")]
    Claims {
        /// Who issued it.
        issuer: String,
        /// Why.
        why: &'static str,
    },
    /// The keys are not to be had.
    #[error("the keys of {issuer} can't be read now")]
    NoKeys {
        /// Whose.
        issuer: String,
    },
}

/// An issuer, as far as its tokens can be checked.
pub(super) struct Keys {
    issuer: String,
    source: Option<KeySource>,
    algorithms: Vec<Algorithm>,
    fetcher: Fetcher,
    current: ArcSwap<Set>,
    /// When they were last asked for.
    asking: Mutex<Option<Instant>>,
}

#[derive(Default)]
struct Set {
    keys: Vec<(Algorithm, DecodingKey)>,
    read: Option<Instant>,
    mark: Option<SystemTime>,
}

impl Keys {
    /// Keys of `issuer`, at `source` or where its own description says.
    pub(super) fn new(issuer: &str, source: Option<KeySource>, algorithms: &[String], fetcher: Fetcher) -> Self {
        let algorithms = algorithms.iter().filter_map(|name| name.parse().ok()).collect();
        Self { issuer: issuer.to_owned(), source, algorithms, fetcher, current: ArcSwap::default(), asking: Mutex::default() }
    }

    /// Checks a token; what it claims.
    ///
    /// # Errors
    /// It counts for nothing.
    pub(super) async fn check(&self, token: &str, audiences: &[&str]) -> Result<Map<String, Value>, Invalid> {
        let fits_none = || Invalid::Signature { issuer: self.issuer.clone() };
        if token.len() > TOKEN_LENGTH_MAX {
            return Err(fits_none());
        }
        let set = self.get(None).await?;
        match self.check_with(&set, token, audiences) {
            Err(Invalid::Signature { .. }) => {
                // It may be signed by a key that is newer than ours.
                let newer = self.get(Some(&set)).await?;
                if Arc::ptr_eq(&set, &newer) { Err(fits_none()) } else { self.check_with(&newer, token, audiences) }
            }
            checked => checked,
        }
    }

    fn check_with(&self, set: &Set, token: &str, audiences: &[&str]) -> Result<Map<String, Value>, Invalid> {
        for (algorithm, key) in &set.keys {
            let mut validation = Validation::new(*algorithm);
            validation.set_issuer(&[&self.issuer]);
            validation.set_audience(audiences);
            validation.set_required_spec_claims(&["exp", "iss", "aud"]);
            validation.leeway = LEEWAY_S;
            validation.validate_nbf = true;
            let why = match jsonwebtoken::decode::<Map<String, Value>>(token, key, &validation) {
                Ok(data) => return Ok(data.claims),
                // Said only of a token whose signature is right.
                Err(error) => match error.kind() {
                    ErrorKind::ExpiredSignature => "it has expired",
                    ErrorKind::ImmatureSignature => "it is not good yet; do the clocks agree?",
                    ErrorKind::InvalidAudience => "it is for another audience",
                    ErrorKind::InvalidIssuer => "it is of another issuer",
                    ErrorKind::MissingRequiredClaim(_) => "it does not say for whom, by whom and until when it is",
                    ErrorKind::InvalidClaimFormat(_) => "one of its claims is damaged",
                    _ => continue,
                },
            };
            return Err(Invalid::Claims { issuer: self.issuer.clone(), why });
        }
        Err(Invalid::Signature { issuer: self.issuer.clone() })
    }

    /// The keys; others than `old`, if there are any by now.
    async fn get(&self, old: Option<&Arc<Set>>) -> Result<Arc<Set>, Invalid> {
        let mark = self.file_mark();
        let is_fresh = |set: &Set| match &self.source {
            Some(KeySource::File(_)) => set.read.is_some() && set.mark == mark,
            _ => old.is_none() && set.read.is_some_and(|read| read.elapsed() < KEPT),
        };
        let current = self.current.load_full();
        if is_fresh(&current) {
            return Ok(current);
        }
        let mut asking = self.asking.lock().await;
        let current = self.current.load_full();
        // Somebody else has read them meanwhile, or it was tried just now.
        let is_newer = old.is_some_and(|old| !Arc::ptr_eq(old, &current));
        let too_soon = asking.is_some_and(|asked| asked.elapsed() < ASKED_AGAIN) && !matches!(self.source, Some(KeySource::File(_)));
        if is_fresh(&current) || is_newer || (too_soon && current.read.is_some()) {
            return Ok(current);
        }
        if too_soon {
            return Err(Invalid::NoKeys { issuer: self.issuer.clone() });
        }
        *asking = Some(Instant::now());
        match self.read().await {
            Ok(keys) => {
                let set = Arc::new(Set { keys, read: Some(Instant::now()), mark });
                self.current.store(set.clone());
                Ok(set)
            }
            Err(why) => {
                tracing::warn!(issuer = self.issuer, why, "the keys of an issuer could not be read; those from before count on");
                if current.read.is_some() { Ok(current) } else { Err(Invalid::NoKeys { issuer: self.issuer.clone() }) }
            }
        }
    }

    fn file_mark(&self) -> Option<SystemTime> {
        match &self.source {
            Some(KeySource::File(path)) => std::fs::metadata(path).and_then(|metadata| metadata.modified()).ok(),
            _ => None,
        }
    }

    async fn read(&self) -> Result<Vec<(Algorithm, DecodingKey)>, String> {
        let text = match &self.source {
            Some(KeySource::File(path)) => std::fs::read(path).map_err(|error| format!("read {}: {error}", path.display()))?.into(),
            Some(KeySource::Url(url)) => self.fetcher.get(url).await.map_err(|error| error.to_string())?,
            None => {
                let url = describe(&self.fetcher, &self.issuer).await?.jwks_uri;
                self.fetcher.get(&url).await.map_err(|error| error.to_string())?
            }
        };
        let keys = parse(&text, &self.algorithms)?;
        if keys.is_empty() { Err("there is no key for a configured algorithm among them".to_owned()) } else { Ok(keys) }
    }
}

/// What an issuer says of itself. SPEC: OpenID Connect Discovery 1.0, 3.
#[derive(Clone, Debug, serde::Deserialize)]
pub(super) struct Description {
    pub(super) issuer: String,
    pub(super) jwks_uri: String,
    #[serde(default)]
    pub(super) authorization_endpoint: Option<String>,
    #[serde(default)]
    pub(super) token_endpoint: Option<String>,
}

/// Asks an issuer for its description.
pub(super) async fn describe(fetcher: &Fetcher, issuer: &str) -> Result<Description, String> {
    let url = format!("{}/.well-known/openid-configuration", issuer.trim_end_matches('/'));
    let text = fetcher.get(&url).await.map_err(|error| error.to_string())?;
    let description: Description = serde_json::from_slice(&text).map_err(|error| format!("the description at {url}: {error}"))?;
    if description.issuer != issuer {
        return Err(format!("the description at {url} is of another issuer: {:.200}", description.issuer));
    }
    Ok(description)
}

/// The keys of a JWK set that a configured algorithm can use. What can't be read is left out.
pub(super) fn parse(text: &[u8], algorithms: &[Algorithm]) -> Result<Vec<(Algorithm, DecodingKey)>, String> {
    #[derive(serde::Deserialize)]
    struct Jwks {
        keys: Vec<Value>,
    }
    let jwks: Jwks = serde_json::from_slice(text).map_err(|error| format!("these are no keys: {error}"))?;
    let mut keys = Vec::new();
    for jwk in jwks.keys.into_iter().take(KEYS_MAX) {
        let Ok(jwk) = serde_json::from_value::<Jwk>(jwk) else { continue };
        if jwk.common.public_key_use.as_ref().is_some_and(|purpose| *purpose != PublicKeyUse::Signature) {
            continue;
        }
        let family: &[Algorithm] = match &jwk.algorithm {
            AlgorithmParameters::RSA(_) => {
                &[Algorithm::RS256, Algorithm::RS384, Algorithm::RS512, Algorithm::PS256, Algorithm::PS384, Algorithm::PS512]
            }
            AlgorithmParameters::EllipticCurve(curve) if curve.curve == EllipticCurve::P256 => &[Algorithm::ES256],
            AlgorithmParameters::EllipticCurve(curve) if curve.curve == EllipticCurve::P384 => &[Algorithm::ES384],
            AlgorithmParameters::OctetKeyPair(_) => &[Algorithm::EdDSA],
            // A shared secret is none of ours to know.
            _ => &[],
        };
        let said: Option<Algorithm> = jwk.common.key_algorithm.and_then(|said| said.to_string().parse().ok());
        let Ok(key) = DecodingKey::from_jwk(&jwk) else { continue };
        let used = family.iter().filter(|one| algorithms.contains(one) && said.is_none_or(|said| said == **one));
        keys.extend(used.map(|algorithm| (*algorithm, key.clone())));
    }
    Ok(keys)
}

/// Whether there is a key among them; for fuzzing.
#[cfg(test)]
pub(super) fn parses(text: &[u8]) -> bool {
    let keys = parse(text, &[Algorithm::EdDSA, Algorithm::RS256, Algorithm::ES256]).unwrap_or_default();
    assert!(keys.len() <= KEYS_MAX * 6 && keys.iter().all(|(algorithm, _)| *algorithm != Algorithm::HS256));
    !keys.is_empty()
}

/// What a token says, as rules see it: names, and texts. What has another form is left out, and so is what is too much.
pub(super) fn said(claims: &Map<String, Value>) -> Claims {
    let text = |value: &Value| match value {
        Value::String(text) => Some(text.clone()),
        Value::Bool(value) => Some(value.to_string()),
        Value::Number(number) => Some(number.to_string()),
        _ => None,
    };
    let (mut said, mut size) = (Claims::new(), 0);
    for (name, value) in claims {
        if matches!(name.as_str(), "exp" | "iat" | "nbf" | "jti" | "nonce" | "at_hash" | "auth_time") || said.len() == CLAIMS_MAX {
            continue;
        }
        let values: Vec<String> = match value {
            Value::Array(entries) => entries.iter().take(ENTRIES_MAX).filter_map(text).collect(),
            other => text(other).into_iter().collect(),
        };
        let bytes = name.len() + values.iter().map(String::len).sum::<usize>();
        if !values.is_empty() && size + bytes <= CLAIMS_SIZE_MAX {
            size += bytes;
            said.insert(name.clone(), values);
        }
    }
    said
}

/// The issuer that a token names, to find out by whom it has to be signed. Nothing else of it is believed.
pub(super) fn issuer_of(token: &str) -> Option<String> {
    if token.len() > TOKEN_LENGTH_MAX {
        return None;
    }
    let claims: HashMap<String, Value> = jsonwebtoken::dangerous::insecure_decode_claims(token).ok()?;
    claims.get("iss")?.as_str().map(str::to_owned)
}

#[cfg(test)]
#[path = "keys/tests.rs"]
mod tests;
