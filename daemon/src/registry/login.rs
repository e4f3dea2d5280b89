//! `/auth/login` and `/auth/callback`: people sign in through an issuer, and get a session ([`super::session`]).
//!
//! The browser keeps one cookie between the two, which only says that both are the same browser; it gives no right to anything, and ends with
//! the sign-in. What comes of it is JSON, who has signed in, and the session's own cookie.

use http::{HeaderMap, HeaderValue, Method, Request, Response, StatusCode, header};
use hyper::body::Incoming;

use super::error::Error;
use super::noted::Note;
use super::query::Query;
use super::{Body, Front, empty, session};
use crate::auth::Returned;
use crate::tls::Client;

const BEGIN: &str = "/auth/login";
const END: &str = "/auth/callback";
/// Label of their requests.
pub(super) const ENDPOINT: &str = "login";
const COOKIE: &str = "larder_login";
/// Seconds for which the browser keeps it.
const COOKIE_LIFE_S: u32 = 600;

/// Whether an address is for here.
pub(super) fn is_about(path: &str) -> bool {
    path == BEGIN || path == END || session::is_about(path)
}

impl Front {
    /// Answers a browser.
    pub(super) async fn answer_login(&self, request: Request<Incoming>, client: &Client, number: u64) -> Response<Body> {
        let query = Query::parse(request.uri().query());
        let answered = match (request.method(), request.uri().path()) {
            (_, path) if session::is_about(path) => self.answer_session(request, client).await,
            (&Method::GET, BEGIN) => self.begin_login(request.headers(), &query, client).await,
            (&Method::GET, _) => self.end_login(request.headers(), &query, client).await,
            _ => Err(Error::Method { allow: "GET".to_owned() }),
        };
        let mut response = answered.unwrap_or_else(|error| super::refused(&error, ENDPOINT, number));
        let headers = response.headers_mut();
        headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
        headers.insert(header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
        headers.insert(header::REFERRER_POLICY, HeaderValue::from_static("no-referrer"));
        headers.insert(header::CONTENT_SECURITY_POLICY, HeaderValue::from_static("default-src 'none'; frame-ancestors 'none'"));
        response
    }

    async fn begin_login(&self, headers: &HeaderMap, query: &Query, client: &Client) -> Result<Response<Body>, Error> {
        let failed = |why: String| Error::Login { why };
        let issuer = query.first("issuer").ok_or_else(|| failed("say through whom: /auth/login?issuer=NAME".to_owned()))?;
        // Never under an address that only the client has named (S19).
        let address = self.challenge.address(headers, client);
        let address = address.ok_or_else(|| failed("http.public_url has to be configured for this".to_owned()))?;
        let is_secure = address.starts_with("https://");
        let begun = self.auth.begin_login(issuer, format!("{address}{END}")).await.map_err(failed)?;
        let mut response = empty(StatusCode::FOUND);
        let location = HeaderValue::try_from(begun.location).map_err(|_| failed("the issuer's address is none".to_owned()))?;
        response.headers_mut().insert(header::LOCATION, location);
        response.headers_mut().insert(header::SET_COOKIE, cookie(&begun.browser, COOKIE_LIFE_S, is_secure));
        Ok(response)
    }

    async fn end_login(&self, headers: &HeaderMap, query: &Query, client: &Client) -> Result<Response<Body>, Error> {
        let failed = |why: String| Error::Login { why };
        if let Some(error) = query.first("error") {
            return Err(failed(format!("the issuer says no: {:.200}", error.escape_default().to_string())));
        }
        let (Some(state), Some(code)) = (query.first("state"), query.first("code")) else {
            return Err(failed("state and code are missing: begin at /auth/login".to_owned()));
        };
        let browser = brought_back(headers).unwrap_or_default();
        let ended = self.auth.end_login(Returned { state, code, issuer: query.first("iss"), browser }).await;
        let caller = ended.map_err(failed);
        Note::new("sign-in", client.ip())
            .of_token(self.auth.audit(), caller.as_ref().map(|caller: &crate::auth::Caller| caller.who.clone()));
        let caller = caller?;
        let mut response = self.begin_session(&caller, headers, client)?;
        response.headers_mut().append(header::SET_COOKIE, cookie("", 0, false));
        Ok(response)
    }
}

fn cookie(value: &str, life_s: u32, is_secure: bool) -> HeaderValue {
    let secure = if is_secure { "; Secure" } else { "" };
    let text = format!("{COOKIE}={value}; Path=/auth; Max-Age={life_s}; HttpOnly; SameSite=Lax{secure}");
    HeaderValue::try_from(text).expect("marks are made of letters, digits, dashes and underscores")
}

/// The mark that a browser was given.
fn brought_back(headers: &HeaderMap) -> Option<&str> {
    let cookies = headers.get_all(header::COOKIE).iter().filter_map(|value| value.to_str().ok());
    cookies.flat_map(|text| text.split(';')).find_map(|one| one.trim().strip_prefix(COOKIE)?.strip_prefix('='))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_mark_comes_back_as_it_was_given() {
        let mut headers = HeaderMap::new();
        assert_eq!(brought_back(&headers), None);
        headers.insert(header::COOKIE, "a=b; larder_login=x_y-z; c=d".parse().unwrap());
        assert_eq!(brought_back(&headers), Some("x_y-z"));
        headers.insert(header::COOKIE, "larder_logins=evil".parse().unwrap());
        assert_eq!(brought_back(&headers), None);
        assert!(cookie("x", 1, true).to_str().unwrap().ends_with("HttpOnly; SameSite=Lax; Secure"));
    }
}
