//! Clients that write and read through random nodes, and the history of what they did.

use crate::fleet::Fleet;
use crate::model::{Action, Operation};
use larder_harness::{Body, Image, Random, Registry, sha256};
use std::collections::BTreeMap;
use std::io;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};
use tokio::sync::RwLock;
use tokio::task::JoinSet;

const CLIENTS: u64 = 4;
/// Few of each, so that they meet.
pub const REPOSITORIES: [&str; 2] = ["team/app", "other/thing"];
const TAGS: u64 = 5;
/// A client that gets no answer for so long gives up.
const PATIENCE: Duration = Duration::from_secs(8);
/// Between two operations of a client.
const PAUSE_MS: u64 = 60;
/// The layer of an image: large enough for a file of its own, so that it is fetched between nodes.
const LAYER: u64 = 70_000;

/// What was done so far.
#[derive(Clone)]
pub struct History {
    inner: Arc<Mutex<Told>>,
    begin: Instant,
    seeds: Arc<AtomicU64>,
}

#[derive(Default)]
struct Told {
    /// By repository and tag.
    operations: BTreeMap<(String, String), Vec<Operation>>,
    /// Images whose push was acknowledged, by repository and digest of the manifest.
    pushed: BTreeMap<(String, String), Image>,
    pulls: u64,
}

impl Default for History {
    fn default() -> Self {
        Self { inner: Arc::default(), begin: Instant::now(), seeds: Arc::new(AtomicU64::new(1)) }
    }
}

impl History {
    fn told(&self) -> MutexGuard<'_, Told> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// All operations on each tag.
    pub fn operations(&self) -> BTreeMap<(String, String), Vec<Operation>> {
        self.told().operations.clone()
    }

    /// Every image that has to be there: repository and image.
    pub fn pushed(&self) -> Vec<(String, Image)> {
        self.told().pushed.iter().map(|((repository, _), image)| (repository.clone(), image.clone())).collect()
    }

    /// One line about what was done.
    pub fn summary(&self) -> String {
        let told = self.told();
        let all: Vec<&Operation> = told.operations.values().flatten().collect();
        let acknowledged = all.iter().filter(|operation| operation.is_acknowledged).count();
        let deletes = all.iter().filter(|operation| operation.is_acknowledged && operation.action == Action::Delete).count();
        format!(
            "{} images, {} of {} operations on {} tags acknowledged, {deletes} of them deletes; {} pulls verified",
            told.pushed.len(),
            acknowledged,
            all.len(),
            told.operations.len(),
            told.pulls
        )
    }
}

/// The clients at work.
pub struct Clients {
    gate: Arc<RwLock<()>>,
    is_over: Arc<AtomicBool>,
    tasks: JoinSet<()>,
}

impl Clients {
    /// Lets every operation end and begins no new one, until what is returned is dropped.
    pub async fn pause(&self) -> tokio::sync::OwnedRwLockWriteGuard<()> {
        Arc::clone(&self.gate).write_owned().await
    }

    /// Lets every operation end.
    pub async fn stop(mut self) {
        self.is_over.store(true, Ordering::Relaxed);
        while let Some(ended) = self.tasks.join_next().await {
            ended.expect("a client found something wrong");
        }
    }
}

/// Starts them.
pub fn start(fleet: &Fleet, history: &History, random: &mut Random) -> Clients {
    let mut clients = Clients { gate: Arc::default(), is_over: Arc::default(), tasks: JoinSet::new() };
    for _ in 0..CLIENTS {
        let client = Client {
            registries: fleet.urls().into_iter().map(Registry::new).collect(),
            lives: fleet.lives(),
            history: history.clone(),
            random: Random::new(random.number()),
        };
        clients.tasks.spawn(client.run(Arc::clone(&clients.gate), Arc::clone(&clients.is_over)));
    }
    clients
}

struct Client {
    registries: Vec<Registry>,
    lives: Arc<Vec<AtomicU64>>,
    history: History,
    random: Random,
}

impl Client {
    async fn run(mut self, gate: Arc<RwLock<()>>, is_over: Arc<AtomicBool>) {
        while !is_over.load(Ordering::Relaxed) {
            let turn = gate.read().await;
            let (node, repository) = (self.random.below(self.registries.len() as u64) as usize, self.random.below(2) as usize);
            let (repository, tag) = (REPOSITORIES[repository], format!("t{}", self.random.below(TAGS)));
            match self.random.below(10) {
                0..4 => self.push(node, repository, &tag).await,
                4..6 => self.move_tag(node, repository, &tag).await,
                6..8 => self.delete(node, repository, &tag).await,
                _ => self.pull(node, repository, &tag).await,
            }
            drop(turn);
            tokio::time::sleep(Duration::from_millis(self.random.below(PAUSE_MS))).await;
        }
    }

    /// A new image under a tag.
    async fn push(&mut self, node: usize, repository: &str, tag: &str) {
        let image = Image::from_seed(self.history.seeds.fetch_add(1, Ordering::Relaxed), &[LAYER]);
        let registry = &self.registries[node];
        if let Ok(Ok(())) = tokio::time::timeout(PATIENCE, registry.try_push_blobs(repository, &image)).await {
            self.put(node, repository, tag, &image).await;
        }
    }

    /// A tag to an image that was pushed before.
    async fn move_tag(&mut self, node: usize, repository: &str, tag: &str) {
        let known: Vec<Image> =
            self.history.pushed().into_iter().filter(|(other, _)| other == repository).map(|(_, image)| image).collect();
        if !known.is_empty() {
            let image = known[self.random.below(known.len() as u64) as usize].clone();
            self.put(node, repository, tag, &image).await;
        }
    }

    async fn put(&mut self, node: usize, repository: &str, tag: &str, image: &Image) {
        let path = format!("/v2/{repository}/manifests/{tag}");
        let headers = [("content-type", image.media_type())];
        let answered =
            self.changed(node, repository, tag, Action::Put(image.digest()), "PUT", &path, &headers, image.manifest.clone().into());
        if answered.await {
            self.history.told().pushed.insert((repository.to_owned(), image.digest()), image.clone());
        }
    }

    async fn delete(&mut self, node: usize, repository: &str, tag: &str) {
        let path = format!("/v2/{repository}/manifests/{tag}");
        self.changed(node, repository, tag, Action::Delete, "DELETE", &path, &[], Body::empty()).await;
    }

    /// Sends a request that changes a tag and writes it down; gives whether it was acknowledged.
    #[allow(clippy::too_many_arguments)]
    async fn changed(
        &self,
        node: usize,
        repository: &str,
        tag: &str,
        action: Action,
        method: &str,
        path: &str,
        headers: &[(&str, &str)],
        body: Body,
    ) -> bool {
        let life = self.lives[node].load(Ordering::SeqCst);
        let begin = self.history.begin.elapsed();
        let answer = tokio::time::timeout(PATIENCE, self.registries[node].try_request(method, path, headers, body)).await;
        let end = self.history.begin.elapsed();
        let is_acknowledged = match answer {
            Ok(Ok(answer)) if answer.status < 300 => true,
            // It was understood and not done.
            Ok(Ok(answer)) if answer.status < 500 => return false,
            _ => false,
        };
        let operation = Operation { action, node, life, begin, end, is_acknowledged };
        self.history.told().operations.entry((repository.to_owned(), tag.to_owned())).or_default().push(operation);
        is_acknowledged
    }

    /// Whatever a tag means: what is answered must be right. That it is not answered is no mistake now.
    async fn pull(&mut self, node: usize, repository: &str, tag: &str) {
        let registry = &self.registries[node];
        let pulled = tokio::time::timeout(PATIENCE, pull(registry, repository, tag)).await;
        if let Ok(Ok(true)) = pulled {
            self.history.told().pulls += 1;
        }
    }
}

/// Pulls an image; `false` when something of it is not to be had now.
///
/// # Panics
/// When a byte is wrong.
pub async fn pull(registry: &Registry, repository: &str, reference: &str) -> io::Result<bool> {
    let manifest = registry.try_request("GET", &format!("/v2/{repository}/manifests/{reference}"), &[], Body::empty()).await?;
    if manifest.status != 200 {
        return Ok(false);
    }
    assert_eq!(sha256(&manifest.body), manifest.header("docker-content-digest"), "I2: a manifest of {repository}:{reference}");
    let manifest = manifest.json();
    let layers = manifest["layers"].as_array().into_iter().flatten();
    for digest in layers.chain([&manifest["config"]]).map(|described| described["digest"].as_str().expect("a digest")) {
        let blob = registry.pull_blob(repository, digest).await?;
        if blob.status != 200 {
            return Ok(false);
        }
        assert_eq!(blob.digest, digest, "I2: a blob of {repository}:{reference}");
    }
    Ok(true)
}
