//! Identities of a real OpenID Connect issuer: jobs of a CI system, and people with a browser.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use larder_harness::node::free_port;
use larder_harness::{Body, Image, Node, Registry, Response, http, wait_until};

use super::{node, registry, told};

/// An issuer that runs as long as this lives.
struct Issuer {
    child: Child,
    url: String,
}

impl Issuer {
    async fn start(scratch: &Path) -> Self {
        let cache = std::env::var_os("XDG_CACHE_HOME").map(PathBuf::from);
        let cache = cache.or_else(|| Some(PathBuf::from(std::env::var_os("HOME")?).join(".cache"))).expect("there is a HOME");
        let python = cache.join("larder/tools/bin/python");
        let port = free_port();
        let log = std::fs::File::create(scratch.join("issuer.log")).expect("a log");
        let mut command = Command::new(&python);
        command.args(["-W", "ignore", "-m", "oidc_provider_mock", "--port", &port.to_string()]);
        command.stdin(Stdio::null()).stdout(log.try_clone().expect("share the log")).stderr(log);
        let child = command.spawn().unwrap_or_else(|error| panic!("{}: {error}; `packaging/setup test` installs it", python.display()));
        let issuer = Self { child, url: format!("http://127.0.0.1:{port}") };
        wait_until("the issuer answers", Duration::from_secs(60), async || {
            http::request("GET", &issuer.at("/.well-known/openid-configuration"), &[], Body::empty())
                .await
                .ok()
                .filter(|it| it.status == 200)
        })
        .await;
        issuer
    }

    fn at(&self, path: &str) -> String {
        format!("{}{path}", self.url)
    }

    async fn ask(&self, method: &str, url: &str, content_type: &str, body: &str) -> Response {
        http::request(method, url, &[("content-type", content_type)], body).await.expect("the issuer answers")
    }

    /// Says what the issuer claims about somebody.
    async fn knows(&self, subject: &str, claims: &serde_json::Value) {
        let url = self.at(&format!("/users/{subject}"));
        self.ask("PUT", &url, "application/json", &claims.to_string()).await.expect(204, "tell the issuer");
    }

    /// Somebody agrees on the issuer's page; where the browser is sent.
    async fn agrees(&self, page: &str, subject: &str) -> String {
        let answer = self.ask("POST", page, "application/x-www-form-urlencoded", &format!("sub={subject}")).await;
        answer.expect(302, "the issuer's page").header("location").to_owned()
    }

    /// A token about somebody, for an audience.
    async fn token(&self, subject: &str, audience: &str) -> String {
        let page =
            self.at(&format!("/oauth2/authorize?response_type=code&client_id={audience}&redirect_uri=http://127.0.0.1/&scope=openid"));
        let sent = self.agrees(&page, subject).await;
        let (_, code) = sent.split_once("code=").expect("a code");
        let code = code.split('&').next().expect("a code");
        let form = format!("grant_type=authorization_code&code={code}&redirect_uri=http://127.0.0.1/&client_id={audience}&client_secret=x");
        let answer = self.ask("POST", &self.at("/oauth2/token"), "application/x-www-form-urlencoded", &form).await.expect(200, "a token");
        answer.json()["id_token"].as_str().expect("a token").to_owned()
    }
}

impl Drop for Issuer {
    fn drop(&mut self) {
        // It has no state that would be worth an orderly end.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A node that takes the word of an issuer.
async fn trusting() -> (Node, Issuer) {
    let mut node = node("node").create();
    let issuer = Issuer::start(node.scratch()).await;
    let file = node.scratch().join("larder.toml");
    let secret = node.scratch().join("secret");
    larder_harness::certificates::write(node.scratch(), "secret", "what the issuer knows\n");
    let text = format!(
        "[[oidc]]\nname = 'ci'\nissuer = '{}'\naudience = 'registry.example.org'\nclient_id = 'larder'\nclient_secret_file = '{}'\n",
        issuer.url,
        secret.display()
    );
    std::fs::write(&file, text).expect("write");
    node.set_env("LARDER_CONFIG", file.to_str());
    node.start().await;
    (node, issuer)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_job_of_a_ci_system_pushes_to_its_repository_and_nowhere_else() {
    let (node, issuer) = trusting().await;
    node.allow("claim:ci:repository=acme/app,ref=refs/heads/*", "acme/app", "pull,push,overwrite").await;
    let claims = |repository: &str, at: &str| serde_json::json!({ "repository": repository, "ref": at });
    issuer.knows("job1", &claims("acme/app", "refs/heads/main")).await;
    issuer.knows("job2", &claims("acme/app", "refs/pull/7/merge")).await;
    issuer.knows("job3", &claims("evil/app", "refs/heads/main")).await;
    let (anyone, image) = (registry(&node), Image::from_seed(1, &[1000]));
    anyone.get("/v2/").await.expect(401, "an issuer closes the door");
    // As a password, as docker login has it.
    let job = issuer.token("job1", "registry.example.org").await;
    let by_password = anyone.signed_in("oidc", &job);
    by_password.push_image("acme/app", "1", &image).await;
    let open =
        async |who: &Registry, repository: &str| who.request("POST", &format!("/v2/{repository}/blobs/uploads/"), &[], Body::empty()).await;
    for elsewhere in ["acme/other", "evil/app", "acme/app/sub"] {
        open(&by_password, elsewhere).await.expect_error(403, "DENIED", elsewhere);
    }
    // Exchanged for a token of the registry, as RFC 8693 has it.
    let exchange = async |token: &str| {
        let form = format!(
            "grant_type=urn:ietf:params:oauth:grant-type:token-exchange&subject_token_type=urn:ietf:params:oauth:token-type:jwt&\
             subject_token={token}&scope=repository:acme/app:pull,push"
        );
        anyone.request("POST", "/token", &[("content-type", "application/x-www-form-urlencoded")], form.as_str()).await
    };
    let given = exchange(&job).await.expect(200, "a token of the registry").json();
    assert_eq!((given["scope"].as_str(), &given["refresh_token"]), (Some("repository:acme/app:pull,push"), &serde_json::Value::Null));
    let by_token = anyone.with_token(given["token"].as_str().expect("a token"));
    by_token.push_image("acme/app", "2", &image).await;
    open(&by_token, "acme/other").await.expect_error(403, "DENIED", "no more than before");
    // It begins no session, which would outlast it.
    let form = format!("username=oidc&password={job}");
    let headers = [("larder-session", "1"), ("content-type", "application/x-www-form-urlencoded")];
    let refused = anyone.request("POST", "/auth/session", &headers, form.as_str()).await.expect(403, "for people only");
    assert!(refused.headers.get("set-cookie").is_none());
    // Other jobs of the same issuer may nothing.
    for other in ["job2", "job3"] {
        let token = issuer.token(other, "registry.example.org").await;
        open(&anyone.signed_in("oidc", &token), "acme/app").await.expect_error(403, "DENIED", other);
    }
    // S14: for another audience, changed, or of another issuer.
    let foreign = issuer.token("job1", "another.example.org").await;
    let refused = anyone.signed_in("oidc", &foreign).get("/v2/").await.expect(401, "for another audience");
    assert!(told(&refused).contains("another audience"), "{}", told(&refused));
    let (head, signature) = job.rsplit_once('.').expect("three parts");
    for wrong in [format!("{head}."), format!("{head}.{}", signature.chars().rev().collect::<String>()), "x".to_owned(), String::new()] {
        anyone.signed_in("oidc", &wrong).get("/v2/").await.expect(401, "changed");
        exchange(&wrong).await.expect(401, "changed");
    }
    anyone.with_token(&job).get("/v2/").await.expect(401, "an issuer's token is no token of the registry");
    let second = node.scratch().join("second");
    std::fs::create_dir(&second).expect("make a folder");
    let impostor = Issuer::start(&second).await;
    impostor.knows("job1", &claims("acme/app", "refs/heads/main")).await;
    let token = impostor.token("job1", "registry.example.org").await;
    anyone.signed_in("oidc", &token).get("/v2/").await.expect(401, "of an issuer that is not configured");
    // The rule goes, and with it the right, also of who has a token.
    node.cli(&["policy", "remove", "claim:ci:repository=acme/app,ref=refs/heads/*", "acme/app"]).await.expect("removed");
    open(&by_token, "acme/app").await.expect_error(403, "DENIED", "no rule");
    // What was done is written down, and the tokens are not.
    let events = node.cli(&["audit", "--repository", "acme/*"]).await.expect("the events");
    assert!(events.contains("claim:ci:job1") && events.contains("acme/app:1") && events.contains("refused"), "{events}");
    assert!(!node.log().contains(&job[job.len() - 40..]) && !events.contains(&job[job.len() - 40..]));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_person_signs_in_through_the_issuers_page() {
    let (node, issuer) = trusting().await;
    node.allow("claim:ci:email=alice@example.org", "team/*", "pull,push").await;
    issuer.knows("alice", &serde_json::json!({ "email": "alice@example.org" })).await;
    let anyone = registry(&node);
    anyone.get("/auth/login").await.expect(403, "through whom?");
    anyone.get("/auth/login?issuer=none").await.expect(403, "nobody of that name");
    let begin = async || {
        let begun = anyone.get("/auth/login?issuer=ci").await.expect(302, "to the issuer's page");
        let cookie = begun.header("set-cookie").to_owned();
        assert!(cookie.contains("HttpOnly") && cookie.contains("SameSite=Lax"), "{cookie}");
        let page = begun.header("location").to_owned();
        assert!(page.starts_with(&issuer.at("/oauth2/authorize?")) && page.contains("code_challenge_method=S256"), "{page}");
        (page, cookie.split(';').next().expect("a cookie").to_owned())
    };
    let (page, cookie) = begin().await;
    let back = issuer.agrees(&page, "alice").await;
    assert!(back.starts_with(&format!("{}/auth/callback?", node.url())), "{back}");
    // In another browser, it is nobody's; and then it is over.
    let callback = async |back: &str, cookie: &str| anyone.request("GET", back, &[("cookie", cookie)], Body::empty()).await;
    callback(&back, "larder_login=other").await.expect(403, "another browser");
    callback(&back, &cookie).await.expect(403, "it counts once");
    let (page, cookie) = begin().await;
    let back = issuer.agrees(&page, "alice").await;
    let begun = callback(&back, &cookie).await.expect(200, "signed in");
    callback(&back, &cookie).await.expect(403, "it counts once");
    assert_eq!(begun.json()["name"], "claim:ci:alice");
    let session = begun.header("set-cookie").split(';').next().expect("a cookie").to_owned();
    let asked = [("cookie", session.as_str()), ("larder-session", "1"), ("content-type", "application/x-www-form-urlencoded")];
    let scope = "scope=repository:team/app:pull,push";
    let given = anyone.request("POST", "/auth/session/token", &asked, scope).await.expect(200, "a token").json();
    let alice = anyone.with_token(given["token"].as_str().expect("a token"));
    alice.push_image("team/app", "1", &Image::from_seed(2, &[100])).await;
    alice.request("POST", "/v2/other/blobs/uploads/", &[], Body::empty()).await.expect_error(403, "DENIED", "no rule");
    // A state that was made up, and a code that was.
    callback("/auth/callback?state=x&code=y", &cookie).await.expect(403, "made up");
    let (page, cookie) = begin().await;
    let state = page.split("state=").nth(1).and_then(|rest| rest.split('&').next()).expect("a state");
    callback(&format!("/auth/callback?state={state}&code=made-up"), &cookie).await.expect(403, "made up");
}
