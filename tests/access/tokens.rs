//! `/token`: what clients are told to do, and what comes of it.

use larder_harness::{Body, Image, Registry, Response};

use super::{closed, node, registry, told};

fn token_of(answer: &Response) -> String {
    answer.json()["token"].as_str().expect("a token").to_owned()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_follows_the_challenge_to_a_token_that_does_what_it_asked_for() {
    let node = closed().await;
    let anyone = registry(&node);
    let refused = anyone.get("/v2/team/app/manifests/1").await.expect(401, "who is it?");
    let expected = format!("Bearer realm=\"{}/token\",service=\"larder\",scope=\"repository:team/app:pull\"", node.url());
    assert_eq!(refused.header("www-authenticate"), expected);
    let asked = anyone.signed_in("alice", "secret").token("repository:team/app:pull,push").await.expect(200, "a token");
    assert_eq!(asked.header("cache-control"), "no-store");
    assert_eq!(asked.json()["expires_in"], 300);
    assert_eq!(asked.json()["refresh_token"], serde_json::Value::Null);
    let (by_token, image) = (anyone.with_token(&token_of(&asked)), Image::from_seed(1, &[1000]));
    by_token.push_image("team/app", "1", &image).await;
    by_token.pull_image("team/app", "1", &image).await;
    let other = by_token.get("/v2/team/other/tags/list").await.expect(401, "the token is for something else");
    assert!(other.header("www-authenticate").contains("error=\"insufficient_scope\""), "{}", other.header("www-authenticate"));
    // Of what was asked for, as much as the rules give.
    let bobs = anyone.signed_in("bob", "secret2").token("repository:team/app:pull,push").await.expect(200, "a token");
    assert_eq!(bobs.json()["scope"], "repository:team/app:pull");
    let denied = anyone.with_token(&token_of(&bobs)).request("POST", "/v2/team/app/blobs/uploads/", &[], Body::empty()).await;
    denied.expect_error(403, "DENIED", "bob may not push");
}

#[tokio::test(flavor = "multi_thread")]
async fn nobody_gets_a_token_for_what_anybody_may_do() {
    let node = closed().await;
    node.allow("anonymous", "public/*", "pull").await;
    node.allow("user:alice", "public/*", "push").await;
    let (anyone, image) = (registry(&node), Image::from_seed(2, &[1000]));
    anyone.signed_in("alice", "secret").push_image("public/app", "1", &image).await;
    anyone.get("/v2/").await.expect(401, "a client is asked first");
    let asked = anyone.token("repository:public/app:pull").await.expect(200, "a token for nobody");
    anyone.with_token(&token_of(&asked)).pull_image("public/app", "1", &image).await;
    // Without any, too.
    anyone.pull_image("public/app", "1", &image).await;
    anyone.with_token(&token_of(&asked)).get("/v2/team/app/tags/list").await.expect(401, "and nothing else");
    anyone.signed_in("alice", "wrong").token("repository:public/app:pull").await.expect_error(401, "UNAUTHORIZED", "a wrong password");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_form_of_oauth_gives_tokens_for_passwords_and_for_refresh_tokens() {
    let node = closed().await;
    let anyone = registry(&node);
    let form = async |text: &str| {
        let headers = [("content-type", "application/x-www-form-urlencoded")];
        anyone.request("POST", "/token", &headers, text).await
    };
    let asked = form("grant_type=password&service=larder&client_id=docker&access_type=offline&username=alice&password=secret").await;
    let refresh = asked.expect(200, "a refresh token").json()["refresh_token"].as_str().expect("a token").to_owned();
    let again = form(&format!("grant_type=refresh_token&service=larder&refresh_token={refresh}&scope=repository:team/app:pull")).await;
    let token = token_of(&again.expect(200, "a token"));
    anyone.with_token(&token).get("/v2/team/app/tags/list").await.expect_error(404, "NAME_UNKNOWN", "it may look");
    anyone.with_token(&refresh).get("/v2/").await.expect(401, "a refresh token is not to be shown");
    form(&format!("grant_type=refresh_token&refresh_token={token}")).await.expect(401, "nor an access token to be refreshed");
    form("grant_type=password&username=alice&password=wrong").await.expect(401, "a wrong password");
    for nonsense in ["", "grant_type=password", "grant_type=password&username=alice", "grant_type=device", "grant_type=refresh_token"] {
        form(nonsense).await.expect_error(400, "UNSUPPORTED", nonsense);
    }
    anyone.request("POST", "/token", &[], vec![b'a'; 70_000]).await.expect(400, "too long");
    anyone.request("DELETE", "/token", &[], Body::empty()).await.expect(405, "no such method");
    // With the user both end.
    node.cli(&["user", "remove", "alice"]).await.expect("removed");
    form(&format!("grant_type=refresh_token&refresh_token={refresh}")).await.expect(401, "alice is gone");
    anyone.with_token(&token).get("/v2/team/app/tags/list").await.expect(401, "alice is gone");
}

#[tokio::test(flavor = "multi_thread")]
async fn tokens_end_and_so_do_robots() {
    let mut node = node("node").env("LARDER_AUTH__TOKEN_LIFE", "2s").env("LARDER_AUTH__REQUIRED", "true").start().await;
    let anyone = registry(&node);
    anyone.get("/v2/").await.expect(401, "required without any user");
    let made = node.cli_json(&["robot", "add", "ci", "--allow", "ci/*:pull,push", "--expires", "4s"]).await;
    let (login, secret) = (made["login"].as_str().expect("a name"), made["token"].as_str().expect("a token"));
    let robot = anyone.signed_in(login, secret);
    let token = token_of(&robot.token("repository:ci/app:pull,push").await.expect(200, "a token"));
    let by_token = anyone.with_token(&token);
    by_token.push_image("ci/app", "1", &Image::from_seed(3, &[10])).await;
    let until = async |who: &Registry, words: &str| {
        larder_harness::wait_until(words, std::time::Duration::from_secs(20), async || {
            let answer = who.get("/v2/ci/app/tags/list").await;
            (answer.status == 401 && told(&answer).contains(words)).then_some(())
        })
        .await;
    };
    until(&by_token, "the token has expired").await;
    until(&robot, "the token of robot+ci has expired").await;
    // A restart changes nothing.
    node.restart().await;
    robot.get("/v2/").await.expect(401, "still over");
    assert!(node.cli(&["robot", "list"]).await.expect("list").contains("(over)"));
    node.cli(&["robot", "remove", "ci"]).await.expect("removed");
    assert!(told(&robot.get("/v2/").await).contains("wrong"));
}
