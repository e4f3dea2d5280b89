//! What is secret stays so, and what is shown is no page.

use larder_harness::{Body, Image};

use super::{closed, node, registry};

#[tokio::test(flavor = "multi_thread")]
async fn s42_passwords_and_tokens_are_in_no_log_no_answer_and_no_event() {
    let node = node("node").env("LARDER_LOG__LEVEL", "trace").start().await;
    node.add_user("alice", "correct-horse-battery").await;
    node.allow("user:alice", "**", "admin").await;
    let robot = node.cli_json(&["robot", "add", "ci", "--allow", "ci/*:pull"]).await["token"].as_str().expect("a token").to_owned();
    let anyone = registry(&node);
    let alice = anyone.signed_in("alice", "correct-horse-battery");
    alice.push_image("team/app", "1", &Image::from_seed(1, &[100])).await;
    anyone.signed_in("robot+ci", &robot).get("/v2/").await.expect(200, "the robot is known");
    let token = alice.token("repository:team/app:pull").await.expect(200, "a token").json()["token"].as_str().expect("a token").to_owned();
    anyone.with_token(&token).get("/v2/team/app/tags/list").await.expect(200, "the token is good");
    let wrong = anyone.signed_in("alice", "wrong-but-close-horse").get("/v2/").await.expect(401, "wrong");
    let form = "grant_type=password&username=alice&password=correct-horse-battery";
    anyone.request("POST", "/token", &[("content-type", "application/x-www-form-urlencoded")], form).await.expect(200, "a token");
    let events = node.cli(&["audit", "--json"]).await.expect("the events");
    let listed = format!(
        "{}{}",
        node.cli(&["user", "list", "--json"]).await.expect("list"),
        node.cli(&["robot", "list", "--json"]).await.expect("list")
    );
    let answer = String::from_utf8_lossy(&wrong.body).into_owned();
    for (place, text) in [("the log", node.log()), ("the events", events), ("the lists", listed), ("the answer", answer)] {
        for secret in ["correct-horse-battery", "wrong-but-close-horse", &robot, &token, "$argon2id$"] {
            assert!(!text.contains(secret), "{secret} is in {place}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn s45_s46_what_a_client_sends_becomes_neither_a_page_nor_a_line() {
    let node = closed().await;
    let anyone = registry(&node);
    let hostile = "<script>alert(1)</script>\u{1b}[31m";
    anyone.signed_in(hostile, "x\ny").get("/v2/").await.expect(401, "nobody");
    let agent = [("user-agent", "<script>x</script>")];
    for path in ["/v2/<script>/tags/list", "/token?scope=<script>", "/auth/callback?error=<script>", "/auth/login?issuer=<script>", "/v2/"]
    {
        let answer = anyone.request("GET", &path.replace('<', "%3C").replace('>', "%3E"), &agent, Body::empty()).await;
        assert_eq!(answer.header("content-type"), "application/json", "{path}");
        assert_eq!(answer.header("x-content-type-options"), "nosniff", "{path}");
        let sent = answer.headers.iter().map(|(_, value)| value.to_str().unwrap_or("")).collect::<String>();
        assert!(!sent.contains("<script"), "{path}: {sent}");
    }
    let log = node.log();
    assert!(!log.contains('\u{1b}'), "a terminal would obey");
    let events = node.cli(&["audit", "--refused", "--json"]).await.expect("the events");
    assert_eq!(events.lines().count(), 1, "JSON on one line");
}
