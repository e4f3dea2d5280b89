//! What must be true when everything was mended.

use crate::clients::{History, REPOSITORIES, pull};
use crate::fleet::Fleet;
use crate::model::allowed;
use futures_util::future::{self, join_all};
use futures_util::{StreamExt, stream};
use larder_harness::{Body, Node, Registry, wait::try_until};
use std::collections::BTreeMap;
use std::time::Duration;

/// Until all nodes have the same state, once they are connected.
const CONVERGED: Duration = Duration::from_secs(60);
/// Until every blob can be had everywhere.
const COMPLETE: Duration = Duration::from_secs(60);

/// Images that are pulled from a node at a time.
const PULLS: usize = 16;

/// What a node answers about everything: each tag of each repository and what it means.
type State = BTreeMap<String, String>;

/// Waits until all nodes that run have one state, and gives it.
///
/// # Panics
/// When they don't come to it: says where they differ.
pub async fn converged(nodes: &[&Node], history: &History) -> State {
    let mut last = Vec::new();
    let same = try_until(CONVERGED, async || {
        last.clear();
        for node in nodes {
            last.push(state(node, history).await?);
        }
        last.windows(2).all(|pair| pair[0] == pair[1]).then(|| last[0].clone())
    });
    if let Some(state) = same.await {
        return state;
    }
    let names: Vec<&str> = nodes.iter().map(|node| node.name()).collect();
    let keys: std::collections::BTreeSet<&String> = last.iter().flat_map(BTreeMap::keys).collect();
    let differ = keys.into_iter().filter(|key| last.windows(2).any(|pair| pair[0].get(*key) != pair[1].get(*key)));
    for key in differ {
        println!("{key}: {:?}", last.iter().map(|state| state.get(key)).collect::<Vec<_>>());
    }
    for node in nodes {
        println!("{}: {}", node.name(), node.cli_json(&["peers", "list"]).await);
    }
    panic!("I5: {names:?} have different states {CONVERGED:?} after they could talk");
}

async fn state(node: &Node, history: &History) -> Option<State> {
    let registry = Registry::new(node.url());
    let mut state = State::new();
    for repository in REPOSITORIES {
        let listed = registry.try_request("GET", &format!("/v2/{repository}/tags/list?n=1000"), &[], Body::empty()).await.ok()?;
        let tags = if listed.status == 200 { listed.json()["tags"].clone() } else { serde_json::json!([]) };
        state.insert(repository.to_owned(), tags.to_string());
    }
    for ((repository, tag), _) in history.operations() {
        let path = format!("/v2/{repository}/manifests/{tag}");
        let answer = registry.try_request("HEAD", &path, &[], Body::empty()).await.ok()?;
        state.insert(format!("{repository}:{tag}"), format!("{} {}", answer.status, answer.header("docker-content-digest")));
    }
    for (repository, image) in history.pushed() {
        let path = format!("/v2/{repository}/manifests/{}", image.digest());
        let answer = registry.try_request("HEAD", &path, &[], Body::empty()).await.ok()?;
        state.insert(format!("{repository}@{}", image.digest()), answer.status.to_string());
    }
    Some(state)
}

/// All of them.
pub async fn all(fleet: &Fleet, history: &History) {
    println!("{}", history.summary());
    let nodes: Vec<&Node> = fleet.nodes.iter().collect();
    let state = converged(&nodes, history).await;
    tags_are_allowed(&state, history);
    let missing = join_all(nodes.iter().map(|node| incomplete(node, history))).await.concat();
    assert!(missing.is_empty(), "I10: acknowledged and not to be had:\n{}", missing.join("\n"));
    for node in &nodes {
        strangers_are_refused(node, history).await;
    }
}

fn tags_are_allowed(state: &State, history: &History) {
    let mut wrong = Vec::new();
    for ((repository, tag), operations) in history.operations() {
        let answer = &state[&format!("{repository}:{tag}")];
        let means = answer.strip_prefix("200 ").map(str::to_owned);
        let allowed = allowed(&operations);
        if !allowed.contains(&means) {
            wrong.push(format!("{repository}:{tag} is {means:?}, allowed were {allowed:?}, after {operations:#?}"));
        }
    }
    assert!(wrong.is_empty(), "I4, I10: a tag is not what the last writer said:\n{}", wrong.join("\n"));
}

/// What was acknowledged and can't be pulled from a node.
pub async fn incomplete(node: &Node, history: &History) -> Vec<String> {
    let registry = &Registry::new(node.url());
    let pulls = stream::iter(history.pushed()).map(|(repository, image)| async move {
        let mut last = None;
        let whole = try_until(COMPLETE, async || {
            last = Some(pull(registry, &repository, &image.digest()).await);
            matches!(last, Some(Ok(true))).then_some(())
        });
        let (digest, layer) = (image.digest(), image.layers[0].digest());
        match whole.await {
            Some(()) => None,
            None => Some(format!("{repository}@{digest} with layer {layer} from {}: {last:?}", node.name())),
        }
    });
    pulls.buffer_unordered(PULLS).filter_map(future::ready).collect().await
}

/// I8: no blob is read through the other repository. Every image is in one of them only.
async fn strangers_are_refused(node: &Node, history: &History) {
    let registry = Registry::new(node.url());
    for (repository, image) in history.pushed() {
        let other = REPOSITORIES[usize::from(repository == REPOSITORIES[0])];
        let path = format!("/v2/{other}/blobs/{}", image.layers[0].digest());
        assert_eq!(registry.head(&path).await.status, 404, "I8: {path} on {}", node.name());
    }
}
