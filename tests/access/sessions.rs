//! Sessions of people with a browser: what a cookie is good for, and when it ends.

use std::time::{Duration, Instant};

use larder_harness::{Body, Image, Registry, Response, wait_until};

use super::cluster::{SOON, three};
use super::{node, registry};

const OWN: (&str, &str) = ("larder-session", "1");
const FORM: (&str, &str) = ("content-type", "application/x-www-form-urlencoded");

async fn sign_in(anyone: &Registry, password: &str) -> Response {
    anyone.request("POST", "/auth/session", &[OWN, FORM], format!("username=alice&password={password}").as_str()).await
}

/// The cookie as a browser sends it back.
fn cookie(answer: &Response) -> String {
    answer.header("set-cookie").split(';').next().expect("a cookie").to_owned()
}

async fn whose(anyone: &Registry, cookie: &str) -> Response {
    anyone.request("GET", "/auth/session", &[("cookie", cookie)], Body::empty()).await
}

#[tokio::test(flavor = "multi_thread")]
async fn s45_a_session_gets_tokens_for_pages_of_the_registry_and_is_good_for_nothing_else() {
    let node = super::closed().await;
    let anyone = registry(&node);
    sign_in(&anyone, "wrong").await.expect_error(401, "UNAUTHORIZED", "a wrong password");
    let begun = sign_in(&anyone, "secret").await.expect(200, "signed in");
    let given = begun.header("set-cookie").to_owned();
    for part in ["larder_session=", "HttpOnly", "SameSite=Strict", "Path=/", "Max-Age=43200"] {
        assert!(given.contains(part), "{given}");
    }
    assert!(!given.contains("Secure") && !given.contains("__Host-"), "without TLS a browser would not send it back: {given}");
    assert_eq!((begun.header("cache-control"), begun.header("x-content-type-options")), ("no-store", "nosniff"));
    let cookie = cookie(&begun);
    let told = whose(&anyone, &cookie).await.expect(200, "she has signed in").json();
    assert_eq!(told["name"], "user:alice");
    // The registry takes no cookies, and nothing is changed without the header that pages of other sites can't send.
    let with_cookie = [("cookie", cookie.as_str())];
    anyone.request("GET", "/v2/team/app/tags/list", &with_cookie, Body::empty()).await.expect(401, "a cookie is no token");
    anyone.request("GET", "/token?scope=repository:team/app:pull", &with_cookie, Body::empty()).await.expect(200, "nobody's token");
    let token = async |more: &[(&str, &str)]| {
        let headers: Vec<_> = [("cookie", cookie.as_str()), FORM].into_iter().chain(more.iter().copied()).collect();
        anyone.request("POST", "/auth/session/token", &headers, "scope=repository:team/app:pull,push").await
    };
    token(&[]).await.expect(403, "a form of another site");
    token(&[OWN, ("sec-fetch-site", "cross-site")]).await.expect(403, "a page of another site");
    let given = token(&[OWN, ("sec-fetch-site", "same-origin")]).await.expect(200, "a token").json();
    assert_eq!((given["scope"].as_str(), &given["refresh_token"]), (Some("repository:team/app:pull,push"), &serde_json::Value::Null));
    let alice = anyone.with_token(given["token"].as_str().expect("a token"));
    alice.push_image("team/app", "1", &Image::from_seed(1, &[100])).await;
    // Made up, twice, or of nobody.
    for wrong in ["larder_session=", "larder_session=x", "other=x", &format!("{cookie}; larder_session=x"), &format!("__Host-{cookie}")] {
        whose(&anyone, wrong).await.expect(401, wrong);
    }
    // Robots and tokens get none.
    let robot = node.cli_json(&["robot", "add", "ci", "--allow", "team/*:pull"]).await["token"].as_str().expect("a token").to_owned();
    let form = format!("username=robot%2Bci&password={robot}");
    anyone.request("POST", "/auth/session", &[OWN, FORM], form.as_str()).await.expect(403, "for people only");
    // Signed out, it is over, whoever has kept the cookie.
    let ended = anyone.request("DELETE", "/auth/session", &[OWN, ("cookie", &cookie)], Body::empty()).await.expect(204, "signed out");
    assert!(ended.header("set-cookie").contains("Max-Age=0"));
    whose(&anyone, &cookie).await.expect(401, "it is over");
    anyone.request("PUT", "/auth/session", &[OWN], Body::empty()).await.expect(405, "no such method");
    let events = node.cli(&["audit"]).await.expect("the events");
    assert!(events.contains("sign-in") && events.contains("sign-out") && !events.contains(&cookie[15..]), "{events}");
}

#[tokio::test(flavor = "multi_thread")]
async fn s16_a_session_ends_with_its_owner_on_every_node_and_at_its_time() {
    let nodes = three("5m").await;
    nodes[0].add_user("alice", "secret").await;
    let third = registry(&nodes[2]);
    let begun = wait_until("she may sign in on the third node", SOON, async || {
        let begun = sign_in(&third, "secret").await;
        (begun.status == 200).then_some(begun)
    })
    .await;
    let cookie_of_third = cookie(&begun);
    whose(&third, &cookie_of_third).await.expect(200, "signed in");
    whose(&registry(&nodes[0]), &cookie_of_third).await.expect(401, "it is of the node where she signed in");
    nodes[0].cli(&["user", "remove", "alice"]).await.expect("removed");
    let removed = Instant::now();
    wait_until("her session is over on the third node", SOON, async || (whose(&third, &cookie_of_third).await.status == 401).then_some(()))
        .await;
    assert!(removed.elapsed() < Duration::from_secs(1), "{:?}", removed.elapsed());
    // Another alice, later, is not her.
    nodes[2].add_user("alice", "secret").await;
    whose(&third, &cookie_of_third).await.expect(401, "over");
    drop(nodes);

    let mut short = node("node").env("LARDER_AUTH__SESSION_LIFE", "2s").start().await;
    short.add_user("alice", "secret").await;
    let anyone = registry(&short);
    let one = cookie(&sign_in(&anyone, "secret").await.expect(200, "signed in"));
    whose(&anyone, &one).await.expect(200, "good for now");
    // Another password.
    short.add_user("alice", "other").await;
    whose(&anyone, &one).await.expect(401, "she has another password now");
    let other = cookie(&sign_in(&anyone, "other").await.expect(200, "signed in"));
    wait_until("it ends at its time", SOON, async || (whose(&anyone, &other).await.status == 401).then_some(())).await;
    // A restart ends all of them.
    let last = cookie(&sign_in(&anyone, "other").await.expect(200, "signed in"));
    short.restart().await;
    whose(&anyone, &last).await.expect(401, "over");
}
