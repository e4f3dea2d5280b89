//! Who is asking, and may they: which right each endpoint takes, and how a client is told to say who it is.
//!
//! What nobody may know without the right to read is answered alike whether it is there or not: `Denied` and `Unauthorized` come before anything is
//! looked up.
//!
//! A client is sent to `/token` (Bearer), under an address that is known to be this node's: the configured one; the one that the client has called, when
//! the certificate that it was shown is for that; or the one that the node listens on, when the client has said that it speaks to that. Where none is
//! so (plain HTTP on all addresses, or behind a proxy) it is asked for name and password themselves (Basic), which go where the client is already: the
//! address in a challenge is where a client sends its password to, and `Host` alone is not to be believed there (S19).

use http::{HeaderMap, header};
use larder_protocol::access::Actions;
use larder_protocol::name::RepositoryName;

use super::Front;
use super::error::Error;
use super::route::Route;
use super::token;
use crate::auth::{Caller, Permission, Refused, policy};
use crate::config::Config;
use crate::tls::Client;

/// What an endpoint takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Need<'a> {
    /// To have signed in.
    Name,
    /// To have signed in, or that anybody may do anything at all: what may be seen is picked out one by one.
    Anything,
    /// A right in a repository.
    Right(Actions, &'a RepositoryName),
}

/// How clients are told to say who they are.
#[derive(Debug)]
pub(super) struct Challenge {
    /// A token server: its realm, and what this registry is called there.
    server: Option<(String, String)>,
    address: Address,
}

/// Under which address this node is known to be found.
#[derive(Debug)]
enum Address {
    /// The configured one.
    Configured(String),
    /// The one that it listens on, for those who say that they speak to it.
    Listening {
        /// `http` or `https`.
        scheme: &'static str,
        host: String,
    },
    /// None.
    Unknown,
}

/// What this registry is called in challenges and tokens' requests.
const SERVICE: &str = "larder";

impl Challenge {
    pub(super) fn new(config: &Config) -> Self {
        let listen = config.http.listen;
        let server = config.token_server.realm.clone().map(|realm| (realm, config.token_server.service.clone()));
        let address = match &config.http.public_url {
            Some(url) => Address::Configured(url.clone()),
            None if listen.ip().is_unspecified() => Address::Unknown,
            None => Address::Listening { scheme: if config.speaks_tls() { "https" } else { "http" }, host: listen.to_string() },
        };
        Self { server, address }
    }

    /// Under which address this client finds this node, as far as that is known, without a slash at its end.
    pub(super) fn address(&self, headers: &HeaderMap, client: &Client) -> Option<String> {
        if let Address::Configured(url) = &self.address {
            return Some(url.clone());
        }
        let said = headers.get(header::HOST)?.to_str().ok()?;
        match &self.address {
            _ if client.proves(said) => Some(format!("https://{said}")),
            Address::Listening { scheme, host } if said == host => Some(format!("{scheme}://{host}")),
            Address::Configured(_) | Address::Listening { .. } | Address::Unknown => None,
        }
    }

    /// The challenge for a request, as `WWW-Authenticate` has it.
    pub(super) fn text(&self, headers: &HeaderMap, client: &Client, scope: Option<&str>, error: Option<&str>) -> String {
        let (realm, service) = match (&self.server, self.address(headers, client)) {
            (Some((realm, service)), _) => (realm.clone(), service.as_str()),
            (None, Some(address)) => (format!("{address}{}", token::PATH), SERVICE),
            (None, None) => return format!("Basic realm=\"{SERVICE}\", charset=\"UTF-8\""),
        };
        let mut text = format!("Bearer realm=\"{realm}\",service=\"{service}\"");
        for (name, value) in [("scope", scope), ("error", error)] {
            if let Some(value) = value {
                text.push_str(&format!(",{name}=\"{value}\""));
            }
        }
        text
    }
}

impl Route {
    /// What it takes.
    pub(super) fn need(&self) -> Need<'_> {
        match self {
            Route::Ping => Need::Name,
            Route::ListRepositories(_) => Need::Anything,
            Route::ListTags { repository, .. }
            | Route::ListReferrers { repository, .. }
            | Route::CheckBlob { repository, .. }
            | Route::PullBlob { repository, .. }
            | Route::PullManifest { repository, .. } => Need::Right(Actions::PULL, repository),
            Route::PushManifest { repository, .. }
            | Route::StartUpload { repository, .. }
            | Route::PushBlob { repository, .. }
            | Route::MountBlob { repository, .. }
            | Route::UploadStatus { repository, .. }
            | Route::AppendUpload { repository, .. }
            | Route::FinishUpload { repository, .. }
            | Route::CancelUpload { repository, .. } => Need::Right(Actions::PUSH, repository),
            Route::DeleteBlob { repository, .. } | Route::DeleteManifest { repository, .. } => Need::Right(Actions::DELETE, repository),
        }
    }
}

/// What a client has to ask a token for.
fn scope(need: &Need<'_>) -> Option<String> {
    match need {
        Need::Name => None,
        Need::Anything => Some("registry:catalog:*".to_owned()),
        Need::Right(Actions::PUSH, repository) => Some(format!("repository:{repository}:pull,push")),
        Need::Right(actions, repository) => Some(format!("repository:{repository}:{}", policy::words(*actions).join(","))),
    }
}

impl Front {
    /// Finds out who asks.
    pub(super) async fn identify(&self, headers: &HeaderMap, route: Option<&Route>, client: &Client) -> Result<Caller, Error> {
        let mut shown = headers.get_all(header::AUTHORIZATION).iter();
        let (first, second) = (shown.next(), shown.next());
        let identified = match second {
            None => self.auth.identify(first.map(http::HeaderValue::as_bytes), client).await,
            Some(_) => Err(Refused::Credentials("there is more than one Authorization".to_owned())),
        };
        identified.map_err(|refused| match refused {
            Refused::Credentials(why) => {
                let scope = route.and_then(|route| scope(&route.need()));
                Error::Unauthorized { why, challenge: self.challenge.text(headers, client, scope.as_deref(), Some("invalid_token")) }
            }
            Refused::Busy | Refused::Slowed(_) | Refused::Store(_) => Error::Identity(refused),
        })
    }

    /// Refuses what somebody may not do.
    pub(super) fn permit(&self, caller: &Caller, route: &Route, headers: &HeaderMap, client: &Client) -> Result<(), Error> {
        let need = route.need();
        let permission = match need {
            Need::Name if caller.is_asked() && !caller.who.is_known() => Permission::Denied,
            Need::Anything if caller.is_asked() && !caller.who.is_known() && !caller.has_any() => Permission::Denied,
            Need::Name | Need::Anything => Permission::Allowed,
            Need::Right(actions, repository) => caller.permission(actions, repository.as_str()),
        };
        let ask_again = |why: String, error| {
            let challenge = self.challenge.text(headers, client, scope(&need).as_deref(), error);
            Err(Error::Unauthorized { why, challenge })
        };
        match permission {
            Permission::Allowed => Ok(()),
            Permission::OtherToken => {
                ask_again("the token is for something else; ask for another one".to_owned(), Some("insufficient_scope"))
            }
            Permission::Denied if !caller.who.is_known() => ask_again("sign in first: nobody may do this without a name".to_owned(), None),
            Permission::Denied => {
                let Need::Right(actions, repository) = need else { unreachable!("who has signed in has a name") };
                let (who, words) = (caller.who.name(), policy::words(actions).join(","));
                let why = format!("{who} may not {words} in {repository}; `larder policy explain` says why, on a node");
                Err(Error::Denied { why })
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(host: &str) -> HeaderMap {
        HeaderMap::from_iter([(header::HOST, host.parse().expect("a header"))])
    }

    #[test]
    fn s19_a_password_is_asked_for_only_at_an_address_that_is_known() {
        let mut config = Config::default();
        let plain = Client::plain(([127, 0, 0, 1], 1).into());
        let ask = |config: &Config, host: &str, client: &Client| {
            Challenge::new(config).text(&headers(host), client, Some("repository:a:pull"), None)
        };
        let text = |config: &Config, host: &str| ask(config, host, &plain);
        let bearer = "Bearer realm=\"http://127.0.0.1:5000/token\",service=\"larder\",scope=\"repository:a:pull\"";
        assert_eq!(text(&config, "127.0.0.1:5000"), bearer);
        for host in ["evil.example.org", "localhost:5000", "127.0.0.1:5000.evil.org", "\"", ""] {
            assert!(text(&config, host).starts_with("Basic "), "{host}");
        }
        config.tls.certificate = Some("c".into());
        assert_eq!(text(&config, "127.0.0.1:5000"), bearer.replace("http:", "https:"));
        config.http.listen = "0.0.0.0:5000".parse().expect("an address");
        assert!(text(&config, "0.0.0.0:5000").starts_with("Basic "));
        // What the certificate is for that this client was shown.
        let encrypted = Client::encrypted(([127, 0, 0, 1], 1).into(), None, ["n.example.org".to_owned()].into());
        assert_eq!(ask(&config, "n.example.org:7", &encrypted), bearer.replace("http://127.0.0.1:5000", "https://n.example.org:7"));
        assert!(ask(&config, "evil.example.org", &encrypted).starts_with("Basic "));
        config.http.public_url = Some("https://r.example.org".to_owned());
        assert!(text(&config, "evil.example.org").starts_with("Bearer realm=\"https://r.example.org/token\""));
        config.token_server.realm = Some("https://t.example.org/token".to_owned());
        config.token_server.service = "r".to_owned();
        assert!(text(&config, "x").starts_with("Bearer realm=\"https://t.example.org/token\",service=\"r\""));
    }

    #[test]
    fn each_endpoint_takes_a_right_in_its_own_repository() {
        let digest = larder_protocol::digest::Digest::sha256(b"x");
        for (method, address, expected) in [
            ("GET", "/v2/".to_owned(), None),
            ("GET", "/v2/_catalog".to_owned(), None),
            ("GET", "/v2/a/tags/list".to_owned(), Some(Actions::PULL)),
            ("GET", format!("/v2/a/referrers/{digest}"), Some(Actions::PULL)),
            ("HEAD", format!("/v2/a/blobs/{digest}"), Some(Actions::PULL)),
            ("GET", format!("/v2/a/blobs/{digest}"), Some(Actions::PULL)),
            ("GET", "/v2/a/manifests/x".to_owned(), Some(Actions::PULL)),
            ("PUT", "/v2/a/manifests/x".to_owned(), Some(Actions::PUSH)),
            ("POST", "/v2/a/blobs/uploads/".to_owned(), Some(Actions::PUSH)),
            ("POST", format!("/v2/a/blobs/uploads/?mount={digest}&from=b"), Some(Actions::PUSH)),
            ("POST", format!("/v2/a/blobs/uploads/?digest={digest}"), Some(Actions::PUSH)),
            ("GET", "/v2/a/blobs/uploads/0190c2a1-7b5e-4c3d-8f00-112233445566".to_owned(), Some(Actions::PUSH)),
            ("DELETE", "/v2/a/blobs/uploads/0190c2a1-7b5e-4c3d-8f00-112233445566".to_owned(), Some(Actions::PUSH)),
            ("DELETE", "/v2/a/manifests/x".to_owned(), Some(Actions::DELETE)),
            ("DELETE", format!("/v2/a/blobs/{digest}"), Some(Actions::DELETE)),
        ] {
            let (_, route) = super::super::route::parse(&method.parse().expect("a method"), &address.parse().expect("an address"));
            let route = route.expect("a route");
            match (route.need(), expected) {
                (Need::Right(actions, repository), Some(expected)) => {
                    assert_eq!((actions, repository.as_str()), (expected, "a"), "{method} {address}");
                }
                (Need::Name | Need::Anything, None) => {}
                (need, _) => panic!("{method} {address} takes {need:?}"),
            }
        }
    }
}
