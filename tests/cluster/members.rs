//! Who is let in, and who is not.

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
