//! `/auth/session`: what a page that shows the registry to people begins with: who has signed in, a token for what they may do, and signing out.
//!
//! A browser sends its cookie along whatever page makes it ask. So the cookie is good for nothing but this address, where nothing is changed by it: it gives
//! a token to whoever can read the answer, and other sites' pages can't. What is changed here takes a header that no form of another site can send
//! (S45). The registry itself takes no cookies.
//!
//! ```text
//! POST   /auth/session        username, password    signs in, besides /auth/login
//! GET    /auth/session                              who it is, and for how long
//! POST   /auth/session/token  scope                 a token, as /token gives it
//! DELETE /auth/session                              signs out
//! ```

use std::time::Duration;

use http::{HeaderMap, HeaderValue, Method, Request, Response, StatusCode, header};
use hyper::body::Incoming;
use serde_json::json;

use super::body::Inflow;
use super::error::Error;
use super::noted::Note;
use super::query::Query;
use super::token::Asked;
use super::{Body, Front, empty};
use crate::auth::{Caller, Refused, Who, scope};
use crate::tls::Client;

pub(super) const PATH: &str = "/auth/session";
const TOKEN: &str = "/auth/session/token";
/// What a page of this registry's own sends with whatever changes something: no other site's page can, without asking first (CORS).
const OWN: &str = "larder-session";
/// Longest form.
const FORM_SIZE_MAX: u64 = 16 << 10;
/// The cookie, as it is called over TLS: a browser takes it from this host only, and never sends it in the clear.
const COOKIE_SECURE: &str = "__Host-larder_session";
const COOKIE: &str = "larder_session";

/// Whether an address is for here.
pub(super) fn is_about(path: &str) -> bool {
    path == PATH || path == TOKEN
}

impl Front {
    pub(super) async fn answer_session(&self, request: Request<Incoming>, client: &Client) -> Result<Response<Body>, Error> {
        let (head, incoming) = request.into_parts();
        let mut body = Inflow::new(incoming, self.idle_timeout);
        if !head.headers.contains_key(header::EXPECT) {
            body.expect_unasked();
        }
        if head.method != Method::GET && !is_own(&head.headers) {
            return Err(Error::Login { why: format!("this takes the header {OWN}: 1, which only pages of this registry itself send") });
        }
        let answered = match (&head.method, head.uri.path()) {
            (&Method::GET, PATH) => self.who_is_it(&head.headers, client),
            (&Method::POST, PATH) => self.sign_in(&head.headers, &mut body, client).await,
            (&Method::POST, TOKEN) => self.token_of_session(&head.headers, &mut body, client).await,
            (&Method::DELETE, PATH) => Ok(self.sign_out(&head.headers, client)),
            (_, TOKEN) => Err(Error::Method { allow: "POST".to_owned() }),
            _ => Err(Error::Method { allow: "GET, POST, DELETE".to_owned() }),
        };
        body.abandon();
        answered
    }

    fn who_is_it(&self, headers: &HeaderMap, client: &Client) -> Result<Response<Body>, Error> {
        let (caller, left) = self.of_session(headers, client)?;
        Ok(super::json(&json!({ "name": caller.who.name(), "expires_in": left.as_secs() })))
    }

    async fn sign_in(&self, headers: &HeaderMap, body: &mut Inflow, client: &Client) -> Result<Response<Body>, Error> {
        let Some(form) = body.collect(FORM_SIZE_MAX).await? else { return Err(Error::TokenRequest { why: "the form is too long" }) };
        let form = std::str::from_utf8(&form).map_err(|_| Error::TokenRequest { why: "the form is no text" })?;
        let form = Query::parse(Some(form));
        let required = |name, why| form.first(name).ok_or(Error::TokenRequest { why });
        let (name, password) = (required("username", "username is missing")?, required("password", "password is missing")?);
        let caller = self.auth.sign_in(name, password.as_bytes(), client.ip()).await.map_err(|refused| self.not_identified(refused));
        Note::new("sign-in", client.ip()).of_token(self.auth.audit(), caller.as_ref().map(|caller| caller.who.clone()));
        let caller = caller?;
        // An issuer's token ends soon, and what comes of it must not outlast it: people come through the issuer's page.
        if !matches!(caller.who, Who::User { .. }) {
            return Err(Error::Login { why: "this is for people with a password".to_owned() });
        }
        self.begin_session(&caller, headers, client)
    }

    /// Answers who has signed in, with the cookie of a new session.
    pub(super) fn begin_session(&self, caller: &Caller, headers: &HeaderMap, client: &Client) -> Result<Response<Body>, Error> {
        let is_secure = self.is_secure(headers, client)?;
        let (secret, life) = self.auth.begin_session(caller).ok_or_else(|| Error::Login { why: "this is for people only".to_owned() })?;
        let mut response = super::json(&json!({ "name": caller.who.name(), "expires_in": life.as_secs() }));
        response.headers_mut().append(header::SET_COOKIE, cookie(&secret, life.as_secs(), is_secure));
        Ok(response)
    }

    async fn token_of_session(&self, headers: &HeaderMap, body: &mut Inflow, client: &Client) -> Result<Response<Body>, Error> {
        let (caller, _) = self.of_session(headers, client)?;
        let Some(form) = body.collect(FORM_SIZE_MAX).await? else { return Err(Error::TokenRequest { why: "the form is too long" }) };
        let form = std::str::from_utf8(&form).map_err(|_| Error::TokenRequest { why: "the form is no text" })?;
        let access = scope::parse(Query::parse(Some(form)).all("scope"));
        Note::new("token", client.ip()).of_token(self.auth.audit(), Ok(caller.who.clone()));
        Ok(self.given(Asked { caller, access, with_refresh: false }))
    }

    fn sign_out(&self, headers: &HeaderMap, client: &Client) -> Response<Body> {
        if let Ok((caller, _)) = self.of_session(headers, client) {
            Note::new("sign-out", client.ip()).of_token(self.auth.audit(), Ok(caller.who));
        }
        let mut response = empty(StatusCode::NO_CONTENT);
        if let Ok(is_secure) = self.is_secure(headers, client) {
            shown(headers, is_secure).for_each(|secret| self.auth.end_session(secret));
            response.headers_mut().append(header::SET_COOKIE, cookie("", 0, is_secure));
        }
        response
    }

    /// Whose session a browser shows.
    fn of_session(&self, headers: &HeaderMap, client: &Client) -> Result<(Caller, Duration), Error> {
        // A browser would ask for a password in a window of its own, if it knew how to take up this challenge.
        let nobody = |why: String| Error::Unauthorized { why, challenge: "Larder-Session".to_owned() };
        let is_secure = self.is_secure(headers, client)?;
        // Of two of one name neither can be told to be ours.
        let mut shown = shown(headers, is_secure);
        let (Some(secret), None) = (shown.next(), shown.next()) else {
            return Err(nobody("nobody has signed in with this browser".to_owned()));
        };
        self.auth.by_session(secret).map_err(|refused| match refused {
            Refused::Credentials(why) => nobody(why),
            other => Error::Identity(other),
        })
    }

    /// Whether this node is called over TLS, here or before a proxy. Where nobody knows, no secret goes out or comes in.
    fn is_secure(&self, headers: &HeaderMap, client: &Client) -> Result<bool, Error> {
        let address = self.challenge.address(headers, client);
        let address = address.ok_or_else(|| Error::Login { why: "http.public_url has to be configured for this".to_owned() })?;
        Ok(address.starts_with("https://"))
    }
}

/// Whether a page of this registry's own asks, or a program; both say so.
fn is_own(headers: &HeaderMap) -> bool {
    let is_said = headers.get(OWN).is_some_and(|value| value == "1");
    // What browsers say of themselves, and no page can change.
    let is_foreign = headers.get("sec-fetch-site").is_some_and(|site| site != "same-origin" && site != "none");
    is_said && !is_foreign
}

fn cookie(secret: &str, life_s: u64, is_secure: bool) -> HeaderValue {
    let (name, secure) = if is_secure { (COOKIE_SECURE, "; Secure") } else { (COOKIE, "") };
    let text = format!("{name}={secret}; Path=/; Max-Age={life_s}; HttpOnly; SameSite=Strict{secure}");
    HeaderValue::try_from(text).expect("secrets are made of letters, digits, dashes and underscores")
}

/// The secrets that a browser shows.
fn shown(headers: &HeaderMap, is_secure: bool) -> impl Iterator<Item = &str> {
    let name = if is_secure { COOKIE_SECURE } else { COOKIE };
    let texts = headers.get_all(header::COOKIE).iter().filter_map(|value| value.to_str().ok());
    let cookies = texts.flat_map(|text| text.split(';')).filter_map(|one| one.trim().split_once('='));
    cookies.filter(move |(called, _)| *called == name).map(|(_, secret)| secret)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn s45_only_pages_of_this_registry_and_programs_change_anything() {
        let asks = |pairs: &[(&'static str, &str)]| {
            let headers = pairs.iter().map(|(name, value)| (http::HeaderName::from_static(name), value.parse().expect("a value")));
            is_own(&headers.collect())
        };
        assert!(asks(&[(OWN, "1")]) && asks(&[(OWN, "1"), ("sec-fetch-site", "same-origin")]));
        assert!(!asks(&[]) && !asks(&[(OWN, "0")]));
        assert!(!asks(&[(OWN, "1"), ("sec-fetch-site", "cross-site")]) && !asks(&[(OWN, "1"), ("sec-fetch-site", "same-site")]));
    }

    #[test]
    fn a_cookie_is_taken_under_the_name_that_it_was_given_under() {
        let headers =
            HeaderMap::from_iter([(header::COOKIE, "a=b; larder_session=plain; __Host-larder_session=s".parse().expect("a value"))]);
        assert_eq!(shown(&headers, true).collect::<Vec<_>>(), ["s"]);
        assert_eq!(shown(&headers, false).collect::<Vec<_>>(), ["plain"]);
        let given = cookie("s", 5, true);
        assert_eq!(given, "__Host-larder_session=s; Path=/; Max-Age=5; HttpOnly; SameSite=Strict; Secure");
    }
}
