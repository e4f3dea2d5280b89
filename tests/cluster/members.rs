//! Who is let in, and who is not.

use larder_harness::http::Body;
use larder_harness::{Image, wait_until};

use super::{SOON, cluster, connected, join, node, registry, tag_is};

#[tokio::test(flavor = "multi_thread")]
async fn a_token_lets_one_node_in_and_what_was_pushed_before_is_there() {
    let (first, second) = (node("first").start().await, node("second").start().await);
    let image = Image::from_seed(1, &[100_000]);
    registry(&first).push_image("team/app", "v1", &image).await;
    join(&first, &second).await;
    tag_is(&second, "team/app", "v1", &image.digest()).await;
    registry(&second).pull_image("team/app", "v1", &image).await;
    let status = |status: &serde_json::Value| status["cluster"].as_str().expect("cluster").to_owned();
    assert_eq!(status(&first.cli_json(&["status"]).await), status(&second.cli_json(&["status"]).await));
}

#[tokio::test(flavor = "multi_thread")]
async fn s30_a_token_is_good_once_and_for_its_time_only() {
    let (first, second, third) = (node("first").start().await, node("second").start().await, node("third").start().await);
    let token = first.cli(&["token"]).await.expect("token");
    second.cli(&["join", &token]).await.expect("join");
    let replayed = third.cli(&["join", &token]).await.expect_err("a used token");
    assert!(replayed.contains("used already"), "{replayed}");

    let token = first.cli(&["token", "--expires", "1s"]).await.expect("token");
    let expired = wait_until("the token has expired", SOON, async || match third.cli(&["join", &token]).await {
        // The first tries may still be in time, and then this test has its node.
        Ok(_) => Some("expired".to_owned()),
        Err(error) => error.contains("expired").then_some(error),
    })
    .await;
    assert!(expired.contains("expired"), "{expired}");

    let token = first.cli(&["token"]).await.expect("token");
    let damaged = third.cli(&["join", &token[..token.len() - 3]]).await.expect_err("a damaged token");
    assert!(damaged.contains("token"), "{damaged}");
}

#[tokio::test(flavor = "multi_thread")]
async fn s27_a_stranger_gets_nothing() {
    let (member, stranger) = (node("member").start().await, node("stranger").start().await);
    let image = Image::from_seed(2, &[1000]);
    registry(&member).push_image("secret/app", "v1", &image).await;
    // A token that another cluster made for this address: the key behind it is not the one that answers there.
    let other = node("other").start().await;
    let token = other.cli(&["token"]).await.expect("token");
    drop(other);
    let refused = stranger.cli(&["join", &token]).await.expect_err("nobody is there");
    assert!(refused.contains("was not reached"), "{refused}");
    assert_eq!(registry(&stranger).head("/v2/secret/app/manifests/v1").await.status, 404);
    assert_eq!(member.cli_json(&["peers", "list"]).await.as_array().map(Vec::len), Some(1));
}

#[tokio::test(flavor = "multi_thread")]
async fn s29_an_expelled_node_hears_nothing_more() {
    let nodes = cluster(3, |node| node).await;
    let [first, second, third] = &nodes[..] else { unreachable!("three were started") };
    let id = third.cli_json(&["status"]).await["node"].as_str().expect("id").to_owned();
    let before = Image::from_seed(9, &[1000]);
    registry(third).push_image("team/app", "before", &before).await;
    tag_is(first, "team/app", "before", &before.digest()).await;
    // The first letters are enough to name it.
    first.cli(&["peers", "remove", &id[..14]]).await.expect("remove");
    for node in [first, second] {
        connected(node, 2).await;
    }
    let image = Image::from_seed(3, &[1000]);
    registry(first).push_image("team/app", "after", &image).await;
    tag_is(second, "team/app", "after", &image.digest()).await;
    assert_eq!(registry(third).head("/v2/team/app/manifests/after").await.status, 404);
    // What it writes goes nowhere either.
    registry(third).push_image("team/app", "theirs", &Image::from_seed(4, &[1000])).await;
    let image = Image::from_seed(5, &[1000]);
    registry(second).push_image("team/app", "later", &image).await;
    tag_is(first, "team/app", "later", &image.digest()).await;
    assert_eq!(registry(first).head("/v2/team/app/manifests/theirs").await.status, 404);
    // What it wrote while it was a member stays.
    registry(first).pull_image("team/app", "before", &before).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn s28_a_reader_serves_pulls_and_says_what_to_do_to_whoever_pushes() {
    let (writer, reader) = (node("writer").start().await, node("reader").start().await);
    let token = writer.cli(&["token", "--role", "reader"]).await.expect("token");
    reader.cli(&["join", &token]).await.expect("join");
    let image = Image::from_seed(6, &[300_000, 1000]);
    registry(&writer).push_image("team/app", "v1", &image).await;
    tag_is(&reader, "team/app", "v1", &image.digest()).await;
    registry(&reader).pull_image("team/app", "v1", &image).await;
    let peers = reader.cli_json(&["peers"]).await;
    let own = peers.as_array().expect("a list").iter().find(|peer| peer["state"] == "self").expect("itself").clone();
    assert_eq!(own["roles"], serde_json::json!(["reader"]));

    let open = async || registry(&reader).request("POST", "/v2/team/app/blobs/uploads/", &[], Body::empty()).await;
    let told = open().await.expect_error(403, "DENIED", "a push to a reader").json();
    assert!(told["errors"][0]["message"].as_str().is_some_and(|words| words.contains("larder peers role ID writer")), "{told}");
    let deleted = registry(&reader).request("DELETE", "/v2/team/app/manifests/v1", &[], Body::empty()).await;
    deleted.expect_error(403, "DENIED", "a delete on a reader");
    let id = own["node"].as_str().expect("id");
    assert!(reader.cli(&["peers", "role", id, "writer"]).await.expect_err("a reader").contains("is a reader"));

    let said = writer.cli(&["peers", "role", id, "writer", "--archiver", "no"]).await.expect("change");
    assert!(said.ends_with("is writer"), "{said}");
    wait_until("it takes pushes", SOON, async || (open().await.status == 202).then_some(())).await;
    let image = Image::from_seed(7, &[1000]);
    registry(&reader).push_image("team/app", "v2", &image).await;
    tag_is(&writer, "team/app", "v2", &image.digest()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_nearest_node_is_found_without_one_here() {
    let (first, second) = (node("first").start().await, node("second").start().await);
    let (near, far) = (first.address(), second.address());
    let listed = first.cli(&["nearest", &near, &far, "127.0.0.1:1", "--json"]).await.expect("two answer");
    let listed: serde_json::Value = serde_json::from_str(&listed).expect("JSON");
    let answering = |entry: &&serde_json::Value| entry["rtt_ms"].is_f64();
    assert_eq!(listed.as_array().expect("a list").iter().filter(answering).count(), 2, "{listed}");
    assert_eq!(listed[2]["address"], "127.0.0.1:1");
    let nobody = first.cli(&["nearest", "127.0.0.1:1"]).await.expect_err("nobody is there");
    assert!(nobody.contains("no node answers at 127.0.0.1:1"), "{nobody}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_with_company_does_not_leave_it_for_another() {
    let nodes = cluster(2, |node| node).await;
    let other = node("other").start().await;
    let token = other.cli(&["token"]).await.expect("token");
    let refused = nodes[0].cli(&["join", &token]).await.expect_err("it has company");
    assert!(refused.contains("belongs to a cluster of 2 nodes"), "{refused}");
    let oneself = nodes[0].cli_json(&["status"]).await["node"].as_str().expect("id").to_owned();
    assert!(nodes[0].cli(&["peers", "remove", &oneself]).await.expect_err("itself").contains("can't remove itself"));
    assert!(nodes[0].cli(&["peers", "remove", "zzzz-zzzz"]).await.expect_err("nobody").contains("no member"));
}

#[tokio::test(flavor = "multi_thread")]
async fn s33_a_node_that_floods_the_others_is_stopped_there_and_they_go_on() {
    const MOST: usize = 1000;
    let nodes = cluster(3, |node| node.env("LARDER_RECORDS__PER_NODE_MAX", MOST.to_string())).await;
    let [flood, other, third] = &nodes[..] else { unreachable!("three were started") };
    let image = Image::from_seed(10, &[1000]);
    registry(flood).push_image("flood/app", "t0", &image).await;
    for number in 1..=MOST + 100 {
        let pushed = registry(flood).put_manifest("flood/app", &format!("t{number}"), image.media_type(), image.manifest.clone()).await;
        pushed.expect(201, "a node's own records are its own affair");
    }
    for node in [other, third] {
        wait_until("it is told whose records are too many", SOON, async || node.log().contains("per_node_max").then_some(())).await;
    }
    // The others hear each other, and give what they have.
    let image = Image::from_seed(11, &[300_000]);
    registry(other).push_image("team/app", "v1", &image).await;
    tag_is(third, "team/app", "v1", &image.digest()).await;
    registry(third).pull_image("team/app", "v1", &image).await;
    tag_is(flood, "team/app", "v1", &image.digest()).await;
    for node in [other, third] {
        let tags = registry(node).tags("flood/app").await.len();
        assert!((MOST - 100..=MOST).contains(&tags), "{tags} tags of the flood");
    }
}
