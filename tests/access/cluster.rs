//! What is said on one node holds on all of them.

use std::time::{Duration, Instant};

use larder_harness::{Image, Node, wait_until};

use super::{node, registry};

pub const SOON: Duration = Duration::from_secs(20);

/// Three nodes that know each other.
pub async fn three(token_life: &str) -> Vec<Node> {
    let mut nodes: Vec<Node> = Vec::new();
    for number in 1..=3 {
        let joining = node(&format!("node-{number}")).env("LARDER_AUTH__TOKEN_LIFE", token_life).start().await;
        if let Some(first) = nodes.first() {
            let token = first.cli(&["token"]).await.expect("token");
            joining.cli(&["join", &token]).await.expect("join");
        }
        nodes.push(joining);
    }
    for node in &nodes {
        wait_until("all are connected", SOON, async || {
            let peers = node.cli_json(&["peers", "list"]).await;
            let peers = peers.as_array()?.clone();
            (peers.len() == 3 && peers.iter().all(|peer| peer["state"] == "self" || peer["state"] == "connected")).then_some(())
        })
        .await;
    }
    nodes
}

#[tokio::test(flavor = "multi_thread")]
async fn s16_a_user_who_is_removed_on_one_node_is_refused_on_another_within_a_second() {
    let nodes = three("5m").await;
    nodes[0].add_user("alice", "secret").await;
    nodes[1].allow("user:alice", "team/*", "pull,push").await;
    let alice = registry(&nodes[2]).signed_in("alice", "secret");
    wait_until("alice may push on the third node", SOON, async || alice.try_open_upload("team/app").await.ok()).await;
    let image = Image::from_seed(1, &[1000]);
    alice.push_image("team/app", "1", &image).await;
    // A token of the first node is good on the third.
    let token = registry(&nodes[0]).signed_in("alice", "secret").token("repository:team/app:pull").await.expect(200, "a token").json();
    let by_token = registry(&nodes[2]).with_token(token["token"].as_str().expect("a token"));
    by_token.pull_image("team/app", "1", &image).await;
    nodes[0].cli(&["user", "remove", "alice"]).await.expect("removed");
    let removed = Instant::now();
    for who in [&alice, &by_token] {
        wait_until("she is refused on the third node", SOON, async || {
            (who.get("/v2/team/app/tags/list").await.status == 401).then_some(())
        })
        .await;
    }
    println!("refused on the third node {:?} after the removal", removed.elapsed());
    assert!(removed.elapsed() < Duration::from_secs(1), "{:?}", removed.elapsed());
}

#[tokio::test(flavor = "multi_thread")]
async fn while_nodes_are_apart_tokens_end_at_their_time() {
    let mut nodes = three("10s").await;
    nodes[0].add_user("alice", "secret").await;
    nodes[0].allow("user:alice", "team/*", "pull").await;
    let third = registry(&nodes[2]);
    wait_until("the third node knows alice", SOON, async || {
        (third.signed_in("alice", "secret").get("/v2/team/app/tags/list").await.status == 404).then_some(())
    })
    .await;
    nodes[2].stop().await;
    let token = registry(&nodes[0]).signed_in("alice", "secret").token("repository:team/app:pull").await.expect(200, "a token").json();
    nodes[0].cli(&["user", "remove", "alice"]).await.expect("removed");
    // Apart: the third comes back where nobody can tell it.
    nodes[0].stop().await;
    nodes[1].stop().await;
    nodes[2].start().await;
    let by_token = third.with_token(token["token"].as_str().expect("a token"));
    by_token.get("/v2/team/app/tags/list").await.expect(404, "it has not heard, and the token is good");
    wait_until("the token has ended", SOON, async || {
        let answer = by_token.get("/v2/team/app/tags/list").await;
        (answer.status == 401 && super::told(&answer).contains("has expired")).then_some(())
    })
    .await;
}
