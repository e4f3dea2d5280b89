//! Signing in for people: the authorization code flow of OpenID Connect, with PKCE.
//!
//! What is under way is kept here for some minutes, on the node where it began: a state that can't be guessed, the secret of the exchange, and a
//! mark that the browser has to bring back, so that nobody is signed in by a link that another has begun. An answer counts once.
//!
//! SPEC: OpenID Connect Core 1.0, 3.1; RFC 7636; RFC 9207.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use serde_json::{Map, Value};
use sha2::{Digest as _, Sha256};
use subtle::ConstantTimeEq as _;

use super::foreign::Issuer;
use super::keys::describe;
use super::policy::Who;
use super::random;
use crate::config::Oidc;

/// How long somebody may take to sign in.
const PATIENCE: Duration = Duration::from_secs(600);
/// Most that are under way; then the oldest is forgotten.
const UNDER_WAY_MAX: usize = 1_000;
/// What is asked about a person.
const SCOPE: &str = "openid email profile";
/// No secret is longer.
const SECRET_SIZE_MAX: u64 = 4096;

/// Sign-ins that are under way.
#[derive(Default)]
pub(super) struct Logins(Mutex<HashMap<String, UnderWay>>);

struct UnderWay {
    issuer: String,
    browser: String,
    nonce: String,
    verifier: String,
    redirect: String,
    begun: Instant,
}

/// Where a browser is sent, and what it has to bring back.
#[derive(Clone, Debug)]
pub struct Begun {
    /// The issuer's page.
    pub location: String,
    /// A mark for this browser.
    pub browser: String,
}

/// What a browser brings back.
#[derive(Clone, Copy, Debug)]
pub struct Returned<'a> {
    /// What was sent along.
    pub state: &'a str,
    /// What is exchanged for the identity.
    pub code: &'a str,
    /// Who says so, when the issuer does say it.
    pub issuer: Option<&'a str>,
    /// The mark.
    pub browser: &'a str,
}

impl Logins {
    /// Begins to sign somebody in.
    ///
    /// # Errors
    /// The issuer can't be asked, or does not sign people in.
    pub(super) async fn begin(&self, issuer: &Issuer, redirect: String) -> Result<Begun, String> {
        let client =
            issuer.config.client_id.as_ref().ok_or("no client_id is configured for this issuer, so people can't sign in through it")?;
        let description = describe(&issuer.fetcher, &issuer.config.issuer).await?;
        let page = description.authorization_endpoint.ok_or("the issuer has no page to sign in")?;
        let fresh = || URL_SAFE_NO_PAD.encode(random::<32>());
        let (state, browser, nonce, verifier) = (fresh(), fresh(), fresh(), fresh());
        let challenge = URL_SAFE_NO_PAD.encode(Sha256::digest(&verifier));
        let query = form(&[
            ("response_type", "code"),
            ("client_id", client),
            ("redirect_uri", &redirect),
            ("scope", SCOPE),
            ("state", &state),
            ("nonce", &nonce),
            ("code_challenge", &challenge),
            ("code_challenge_method", "S256"),
        ]);
        let location = format!("{page}{}{query}", if page.contains('?') { '&' } else { '?' });
        let issuer = issuer.config.name.clone();
        self.keep(state, UnderWay { issuer, browser: browser.clone(), nonce, verifier, redirect, begun: Instant::now() });
        Ok(Begun { location, browser })
    }

    fn keep(&self, state: String, under_way: UnderWay) {
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        all.retain(|_, one| one.begun.elapsed() < PATIENCE);
        if all.len() >= UNDER_WAY_MAX
            && let Some(oldest) = all.iter().min_by_key(|(_, one)| one.begun).map(|(state, _)| state.clone())
        {
            all.remove(&oldest);
        }
        all.insert(state, under_way);
    }

    /// What was begun under a state, once: whatever comes of it, it does not count again.
    fn take(&self, returned: &Returned<'_>) -> Result<UnderWay, String> {
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let under_way = all.remove(returned.state).filter(|one| one.begun.elapsed() < PATIENCE);
        let under_way = under_way.ok_or("this sign-in was not begun here, took too long, or was ended already; begin again")?;
        if bool::from(under_way.browser.as_bytes().ct_eq(returned.browser.as_bytes())) {
            Ok(under_way)
        } else {
            Err("this sign-in was begun in another browser".to_owned())
        }
    }

    /// Ends it: who has signed in.
    ///
    /// # Errors
    /// Nobody, or it can't be found out.
    pub(super) async fn end<'a>(&self, find: impl Fn(&str) -> Option<&'a Issuer>, returned: Returned<'_>) -> Result<Who, String> {
        let under_way = self.take(&returned)?;
        let issuer = find(&under_way.issuer).ok_or("the issuer is not configured any more")?;
        if returned.issuer.is_some_and(|said| said != issuer.config.issuer) {
            return Err("the answer is of another issuer".to_owned());
        }
        let client = issuer.config.client_id.as_ref().ok_or("the issuer has no client_id any more")?;
        let description = describe(&issuer.fetcher, &issuer.config.issuer).await?;
        let endpoint = description.token_endpoint.ok_or("the issuer exchanges no codes")?;
        let exchange = form(&[
            ("grant_type", "authorization_code"),
            ("code", returned.code),
            ("redirect_uri", &under_way.redirect),
            ("client_id", client),
            ("code_verifier", &under_way.verifier),
        ]);
        let basic = secret(issuer)?.map(|secret| STANDARD.encode(format!("{}:{}", encode(client), encode(&secret))));
        let answer = issuer.fetcher.post(&endpoint, exchange, basic).await.map_err(|error| error.to_string())?;
        let answer: Map<String, Value> = serde_json::from_slice(&answer).map_err(|error| format!("the issuer's answer: {error}"))?;
        let token = answer.get("id_token").and_then(Value::as_str).ok_or("the issuer's answer has no id_token")?;
        let (who, claims) = issuer.identify(token, &[client]).await.map_err(|error| error.to_string())?;
        let nonce = claims.get("nonce").and_then(Value::as_str).unwrap_or_default();
        if !bool::from(nonce.as_bytes().ct_eq(under_way.nonce.as_bytes())) {
            return Err("the issuer's answer is for another sign-in".to_owned());
        }
        Ok(who)
    }
}

fn secret(issuer: &Issuer) -> Result<Option<String>, String> {
    read_secret(&issuer.config)
}

/// The secret of this registry at an issuer, when it has one there.
///
/// # Errors
/// It can't be read, or everybody can (S42).
pub(super) fn read_secret(issuer: &Oidc) -> Result<Option<String>, String> {
    use std::io::Read as _;
    use std::os::unix::fs::MetadataExt as _;
    let Some(path) = &issuer.client_secret_file else { return Ok(None) };
    let failed = |why: String| format!("read the secret of this registry at {} in {}: {why}", issuer.name, path.display());
    let file = std::fs::File::open(path).map_err(|error| failed(error.to_string()))?;
    let mode = file.metadata().map_err(|error| failed(error.to_string()))?.mode() & 0o777;
    if mode & 0o007 != 0 {
        return Err(failed(format!("others may read or change it (mode {mode:03o}); make it private with: chmod 600")));
    }
    let mut text = String::new();
    file.take(SECRET_SIZE_MAX).read_to_string(&mut text).map_err(|error| failed(error.to_string()))?;
    Ok(Some(text.trim_end_matches(['\n', '\r']).to_owned()))
}

fn form(fields: &[(&str, &str)]) -> String {
    fields.iter().map(|(name, value)| format!("{name}={}", encode(value))).collect::<Vec<_>>().join("&")
}

fn encode(text: &str) -> String {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-._~".contains(&byte);
    text.bytes().map(|byte| if plain(byte) { char::from(byte).to_string() } else { format!("%{byte:02X}") }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn under_way(begun: Instant) -> UnderWay {
        let text = |text: &str| text.to_owned();
        UnderWay { issuer: text("i"), browser: text("mark"), nonce: text("n"), verifier: text("v"), redirect: text("r"), begun }
    }

    fn returned<'a>(state: &'a str, browser: &'a str) -> Returned<'a> {
        Returned { state, code: "c", issuer: None, browser }
    }

    #[test]
    fn an_answer_counts_once_and_in_its_own_browser() {
        let logins = Logins::default();
        logins.keep("a".to_owned(), under_way(Instant::now()));
        logins.keep("b".to_owned(), under_way(Instant::now()));
        assert!(logins.take(&returned("none", "mark")).is_err());
        assert!(logins.take(&returned("a", "mark")).is_ok());
        assert!(logins.take(&returned("a", "mark")).is_err(), "once");
        assert!(logins.take(&returned("b", "other")).is_err());
        assert!(logins.take(&returned("b", "mark")).is_err(), "and a wrong one ends it");
    }

    #[test]
    fn what_is_under_way_is_bounded() {
        let logins = Logins::default();
        for number in 0..UNDER_WAY_MAX + 5 {
            logins.keep(number.to_string(), under_way(Instant::now()));
        }
        assert_eq!(logins.0.lock().unwrap().len(), UNDER_WAY_MAX);
        if let Some(long_ago) = Instant::now().checked_sub(PATIENCE) {
            logins.keep("old".to_owned(), under_way(long_ago));
            assert!(logins.take(&returned("old", "mark")).is_err());
        }
    }

    #[test]
    fn s42_a_secret_that_everybody_may_read_is_refused() {
        use std::os::unix::fs::PermissionsExt as _;
        let folder = tempfile::tempdir().expect("a temp folder");
        let path = folder.path().join("secret");
        std::fs::write(&path, "s3cret\n").expect("write");
        let issuer = Oidc {
            name: "ci".to_owned(),
            issuer: String::new(),
            audience: String::new(),
            jwks: None,
            algorithms: Vec::new(),
            client_id: None,
            client_secret_file: Some(path.clone()),
        };
        for (mode, is_read) in [(0o644, false), (0o602, false), (0o640, true), (0o600, true)] {
            std::fs::set_permissions(&path, std::fs::Permissions::from_mode(mode)).expect("permissions");
            let read = read_secret(&issuer);
            assert_eq!(read.as_ref().is_ok_and(|secret| secret.as_deref() == Some("s3cret")), is_read, "{mode:o}");
            assert!(read.is_ok() || read.is_err_and(|why| why.contains("chmod 600") && !why.contains("s3cret")));
        }
    }

    #[test]
    fn fields_of_a_form_are_encoded() {
        assert_eq!(form(&[("a", "b c&d=é"), ("e", "")]), "a=b%20c%26d%3D%C3%A9&e=");
    }
}
