//! `/token`: where clients get the tokens that they show.
//!
//! GET with Basic, as docker does it, and POST with a form, as OAuth 2 has it. A client that asks for more than it may gets a token for what it may;
//! what is refused is refused where it is used, in words about that. Nobody gets a token too, for what anybody may do.
//!
//! SPEC: distribution, "Token Authentication Specification" and "OAuth2 Authentication"; RFC 6749.

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Method, Request, Response, StatusCode, header};
use hyper::body::Incoming;
use serde_json::{Value, json};

use super::body::{self, Inflow};
use super::error::Error;
use super::noted::Note;
use super::query::Query;
use super::{Body, Front};
use crate::auth::{Access, Caller, Refused, scope};
use crate::tls::Client;

/// Where tokens are given.
pub(super) const PATH: &str = "/token";
/// Label of its requests.
pub(super) const ENDPOINT: &str = "token";
/// Longest form: it may have a token of another issuer in it.
const FORM_SIZE_MAX: u64 = 64 << 10;

/// Whether an address is for here.
pub(super) fn is_about(path: &str) -> bool {
    path == PATH
}

/// What a client asks for.
pub(super) struct Asked {
    pub(super) caller: Caller,
    pub(super) access: Vec<Access>,
    pub(super) with_refresh: bool,
}

/// By what somebody asks.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Grant {
    Password {
        name: String,
        password: String,
    },
    Refresh(String),
    /// SPEC: RFC 8693.
    Exchange(String),
}

/// What a form asks for.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Form {
    pub(super) grant: Grant,
    pub(super) access: Vec<Access>,
    pub(super) with_refresh: bool,
}

impl Form {
    /// Reads a form.
    ///
    /// # Errors
    /// `TokenRequest`: it is none, or lacks something.
    pub(super) fn parse(bytes: &[u8]) -> Result<Self, Error> {
        let form = std::str::from_utf8(bytes).map_err(|_| Error::TokenRequest { why: "the form is no text" })?;
        let form = Query::parse(Some(form));
        let required = |name, why| form.first(name).map(str::to_owned).ok_or(Error::TokenRequest { why });
        let grant = match required("grant_type", "grant_type is missing")?.as_str() {
            "password" => Grant::Password {
                name: required("username", "username is missing")?,
                password: required("password", "password is missing")?,
            },
            "refresh_token" => Grant::Refresh(required("refresh_token", "refresh_token is missing")?),
            "urn:ietf:params:oauth:grant-type:token-exchange" => Grant::Exchange(required("subject_token", "subject_token is missing")?),
            _ => return Err(Error::TokenRequest { why: "grant_type has to be password, refresh_token or RFC 8693's token-exchange" }),
        };
        let with_refresh = form.first("access_type") == Some("offline") || matches!(grant, Grant::Refresh(_));
        Ok(Self { grant, access: scope::parse(form.all("scope")), with_refresh })
    }
}

impl Front {
    /// Answers a request for a token.
    pub(super) async fn answer_token(&self, request: Request<Incoming>, client: &Client, number: u64) -> Response<Body> {
        let (head, incoming) = request.into_parts();
        let note = Note::new("token", client.ip());
        let mut body = Inflow::new(incoming, self.idle_timeout);
        if !head.headers.contains_key(header::EXPECT) {
            body.expect_unasked();
        }
        let asked = match head.method {
            Method::GET => self.asked_by_query(&head.headers, &Query::parse(head.uri.query()), client).await,
            Method::POST => self.asked_by_form(&mut body, client).await,
            _ => Err(Error::Method { allow: "GET, POST".to_owned() }),
        };
        body.abandon();
        let result = asked.as_ref().map(|asked| asked.caller.who.clone());
        note.of_token(self.auth.audit(), result);
        let mut response = match asked {
            Ok(asked) => self.given(asked),
            Err(error) => super::refused(&error, ENDPOINT, number),
        };
        let headers = response.headers_mut();
        // SPEC: RFC 6749, 5.1.
        headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
        headers.insert(header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
        response
    }

    async fn asked_by_query(&self, headers: &HeaderMap, query: &Query, client: &Client) -> Result<Asked, Error> {
        let caller = self.identify_with_password(headers, client).await?;
        let wants = |name, value| query.first(name).is_some_and(|said| said == value);
        let with_refresh = wants("offline_token", "true") || wants("access_type", "offline");
        Ok(Asked { caller, access: scope::parse(query.all("scope")), with_refresh })
    }

    async fn asked_by_form(&self, body: &mut Inflow, client: &Client) -> Result<Asked, Error> {
        let Some(bytes) = body.collect(FORM_SIZE_MAX).await? else { return Err(Error::TokenRequest { why: "the form is too long" }) };
        let Form { grant, access, with_refresh } = Form::parse(&bytes)?;
        let known = match &grant {
            Grant::Password { name, password } => self.auth.sign_in(name, password.as_bytes(), client.ip()).await,
            Grant::Refresh(token) => self.auth.refresh(token),
            Grant::Exchange(token) => self.auth.exchange(token).await,
        };
        Ok(Asked { caller: known.map_err(|refused| self.not_identified(refused))?, access, with_refresh })
    }

    /// Who shows a name and a password, or nobody. A token gets no other token.
    async fn identify_with_password(&self, headers: &HeaderMap, client: &Client) -> Result<Caller, Error> {
        let shown = headers.get(header::AUTHORIZATION);
        let is_bearer = shown.is_some_and(|shown| shown.as_bytes().to_ascii_lowercase().starts_with(b"bearer"));
        if is_bearer {
            return Err(self.not_identified(Refused::Credentials("tokens are given for a name and a password".to_owned())));
        }
        self.auth.identify(shown.map(HeaderValue::as_bytes), client).await.map_err(|refused| self.not_identified(refused))
    }

    pub(super) fn not_identified(&self, refused: Refused) -> Error {
        match refused {
            Refused::Credentials(why) => Error::Unauthorized { why, challenge: "Basic realm=\"larder\", charset=\"UTF-8\"".to_owned() },
            other => Error::Identity(other),
        }
    }

    pub(super) fn given(&self, asked: Asked) -> Response<Body> {
        let issued = self.auth.issue(&asked.caller, asked.access, asked.with_refresh);
        let scope: Vec<_> = issued.access.iter().map(|one| format!("{}:{}:{}", one.kind, one.name, one.actions.join(","))).collect();
        let mut given = json!({
            "token": issued.token,
            "access_token": issued.token,
            "token_type": "Bearer",
            "expires_in": issued.expires_in.as_secs(),
            "issued_at": jiff::Timestamp::from_second(i64::try_from(issued.issued_at).unwrap_or(0)).unwrap_or_default().to_string(),
            "scope": scope.join(" "),
        });
        if let Some(refresh) = issued.refresh_token {
            given["refresh_token"] = Value::from(refresh);
        }
        let mut response = Response::new(body::whole(Bytes::from(given.to_string())));
        *response.status_mut() = StatusCode::OK;
        response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
        response
    }
}
