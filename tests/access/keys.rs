//! A node changes its own key, and neither clients nor other nodes have to stop for it.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use larder_harness::{Image, Node, Registry, wait_until};

use super::cluster::{SOON, three};
use super::{registry, told};

async fn token(of: &Registry) -> String {
    of.token("repository:team/app:pull").await.expect(200, "a token").json()["token"].as_str().expect("a token").to_owned()
}

fn tags(node: &Node, token: &str) -> impl Future<Output = larder_harness::Response> + use<> {
    let by_token = registry(node).with_token(token);
    async move { by_token.get("/v2/team/app/tags/list").await }
}

/// Pushes to the first node and pulls from the last, until it is told to stop; how often.
async fn busy(first: Registry, last: Registry, stop: Arc<AtomicBool>) -> u64 {
    let mut rounds = 0;
    while !stop.load(Ordering::Relaxed) {
        let image = Image::from_seed(1000 + rounds, &[100_000]);
        first.push_image("team/app", "busy", &image).await;
        first.pull_image("team/app", "busy", &image).await;
        let digest = image.digest();
        wait_until("it is on the last node", SOON, async || {
            (last.head(&format!("/v2/team/app/manifests/{digest}")).await.status == 200).then_some(())
        })
        .await;
        last.pull_image("team/app", &digest, &image).await;
        rounds += 1;
    }
    rounds
}

#[tokio::test(flavor = "multi_thread")]
async fn s29_a_node_changes_its_key_and_nothing_stops_and_what_the_old_one_signed_ends() {
    let nodes = three("8s").await;
    let (first, third) = (&nodes[0], &nodes[2]);
    first.add_user("alice", "secret").await;
    first.allow("user:alice", "team/*", "pull,push,overwrite").await;
    let alice = |node: &Node| registry(node).signed_in("alice", "secret");
    wait_until("the third node knows alice", SOON, async || alice(third).try_open_upload("team/app").await.ok()).await;
    alice(first).push_image("team/app", "first", &Image::from_seed(999, &[1000])).await;
    for node in &nodes {
        wait_until("the repository is there", SOON, async || (alice(node).get("/v2/team/app/tags/list").await.status == 200).then_some(()))
            .await;
    }
    let stop = Arc::new(AtomicBool::new(false));
    let changing = async {
        change(&nodes).await;
        stop.store(true, Ordering::Relaxed);
    };
    let (rounds, ()) = tokio::join!(busy(alice(first), alice(third), stop.clone()), changing);
    assert!(rounds > 2, "no push and no pull has failed in {rounds} rounds");
}

async fn change(nodes: &[Node]) {
    let [first, second, third] = nodes else { unreachable!("three were started") };
    let alice = |node: &Node| registry(node).signed_in("alice", "secret");
    let status = async |node: &Node| node.cli_json(&["status"]).await["node"].as_str().expect("an id").to_owned();
    let (id, before) = (status(first).await, token(&alice(first)).await);
    tags(third, &before).await.expect(200, "a token of the first key");

    let said = first.cli(&["peers", "rotate-key"]).await.expect("changed");
    assert!(said.starts_with("this node's key is "), "{said}");
    assert_eq!(status(first).await, id, "the id stays");
    for node in nodes {
        tags(node, &before).await.expect(200, "what the key before has signed counts until it ends");
        tags(node, &token(&alice(first)).await).await.expect(200, "and what the new one signs counts");
        wait_until("all know the key", SOON, async || {
            let peers = node.cli_json(&["peers"]).await;
            let of_first = peers.as_array()?.iter().find(|peer| peer["node"] == id.as_str())?.clone();
            said.contains(of_first["key"].as_str()?).then_some(())
        })
        .await;
    }
    wait_until("the token ends at its time", SOON, async || {
        let answer = tags(second, &before).await;
        (answer.status == 401 && told(&answer).contains("has expired")).then_some(())
    })
    .await;

    // A key that may be in other hands: what it has signed ends at once.
    let before = token(&alice(first)).await;
    let said = first.cli(&["peers", "rotate-key", "--revoke"]).await.expect("changed");
    assert!(said.starts_with("this node's key is "), "{said}");
    let begun = std::time::Instant::now();
    for node in nodes {
        wait_until("it counts for nothing", SOON, async || {
            let answer = tags(node, &before).await;
            (answer.status == 401 && told(&answer).contains("nobody who may issue")).then_some(())
        })
        .await;
    }
    assert!(begun.elapsed() < Duration::from_secs(2), "{:?}, and the token would have lived for 8 s", begun.elapsed());
    tags(third, &token(&alice(first)).await).await.expect(200, "a new one");
}
