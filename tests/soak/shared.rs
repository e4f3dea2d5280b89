//! Repositories that all clients use at once. Which of two that race comes first nobody knows, so less can be said of an answer; what is
//! said is always true:
//!
//! - a tag names one of the manifests that somebody pushed under it;
//! - a `keep` tag that was pushed once is there ever after, whole: nobody deletes it, its manifests or their blobs;
//! - what a `free` tag names is whole too, unless somebody has begun to delete its manifest or that blob.

use crate::traffic::{Blob, Document, Traffic};
use crate::{GRACE, pool};
use larder_harness::Random;
use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// Repositories that are shared.
const REPOSITORIES: u64 = 3;
/// Tags of either kind in each.
const TAGS: u64 = 5;
/// Different images under `keep` tags.
const KEPT: u64 = 24;
/// Images under `free` tags that are left alone in each repository.
const FREE_MAX: usize = 40;

/// Noise of so many bytes is nobody else's.
const OWN_SIZE_MIN: u64 = 16;

/// All of them.
pub struct Shared {
    traffic: Arc<Traffic>,
    kept: Vec<Document>,
    states: Vec<Mutex<State>>,
}

/// What was begun (before a request is sent) and what was answered in one repository.
#[derive(Default)]
struct State {
    /// Under which `keep` tags an answered push stands.
    answered: HashSet<String>,
    /// What was pushed under `free` tags, by digest, with its tag.
    pushed: HashMap<String, (String, Document)>,
    /// In the order of pushes, without the deleted.
    order: Vec<String>,
    /// Manifests and blobs whose deletion was begun.
    deleted: HashSet<String>,
}

impl Shared {
    /// The repositories of a seed.
    pub fn new(traffic: Arc<Traffic>, seed: u64) -> Self {
        let mut random = Random::new(seed);
        let kept = (0..KEPT).map(|i| Document::image(i, vec![Blob::of(random.number()), pool(&mut random), pool(&mut random)]));
        Self { traffic, kept: kept.collect(), states: (0..REPOSITORIES).map(|_| Mutex::default()).collect() }
    }

    fn state(&self, at: usize) -> MutexGuard<'_, State> {
        self.states[at].lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Does one thing.
    pub async fn step(&self, random: &mut Random) {
        let at = random.below(REPOSITORIES) as usize;
        let tag = random.below(TAGS);
        match random.below(100) {
            0..20 => {
                let document = self.kept[random.below(KEPT) as usize].clone();
                let tag = format!("keep-{tag}");
                if self.push(at, random, &tag, &document).await {
                    self.state(at).answered.insert(tag);
                }
            }
            20..40 => self.push_free(at, random, &format!("free-{tag}")).await,
            40..65 => self.pull_kept(at, random, &format!("keep-{tag}")).await,
            65..80 => self.pull_free(at, random, &format!("free-{tag}")).await,
            80..84 => drop(self.traffic.delete("delete a tag", &format!("/v2/{}/manifests/free-{tag}", name(at))).await),
            84..88 => self.delete_free(at, random).await,
            88..91 => self.delete_blob(at, random).await,
            _ => self.list(at, random).await,
        }
    }

    /// Pushes an image as clients do: what is there is skipped. Whether it was taken, which it must be within the grace.
    async fn push(&self, at: usize, random: &mut Random, tag: &str, document: &Document) -> bool {
        let (name, begin) = (name(at), Instant::now());
        for blob in &document.blobs {
            if !self.traffic.has(&name, blob).await {
                self.traffic.upload(random, &name, blob).await;
            }
        }
        let taken = self.traffic.put(&name, tag, document).await;
        if !taken {
            assert!(begin.elapsed() > GRACE, "{name}:{tag} was refused {:?} after its blobs were seen to", begin.elapsed());
            self.traffic.count("pushed later than the grace", Duration::ZERO);
        }
        taken
    }

    async fn push_free(&self, at: usize, random: &mut Random, tag: &str) {
        // The first is nobody else's, so that it may be deleted.
        let document = Document::image(random.number(), vec![Blob::of(random.number()), pool(random), pool(random)]);
        self.state(at).pushed.insert(document.digest.clone(), (tag.to_owned(), document.clone()));
        self.push(at, random, tag, &document).await;
        self.state(at).order.push(document.digest);
        if self.state(at).order.len() > FREE_MAX {
            self.delete_free(at, random).await;
        }
    }

    async fn pull_kept(&self, at: usize, random: &mut Random, tag: &str) {
        let (name, expected) = (name(at), self.state(at).answered.contains(tag));
        let Some(answer) = self.traffic.manifest(&name, tag).await else {
            assert!(!expected, "{name}:{tag} is lost");
            return;
        };
        let document = self.kept.iter().find(|document| document.bytes == answer.body);
        let document = document.unwrap_or_else(|| panic!("{name}:{tag} is what nobody pushed: {answer:?}"));
        for blob in &document.blobs {
            assert!(self.traffic.pull(random, &name, blob).await, "{} of {name}:{tag} is lost", blob.digest);
        }
    }

    async fn pull_free(&self, at: usize, random: &mut Random, tag: &str) {
        let name = name(at);
        let Some(answer) = self.traffic.manifest(&name, tag).await else { return };
        let pushed = self.state(at).pushed.get(answer.header("docker-content-digest")).cloned();
        let (under, document) = pushed.unwrap_or_else(|| panic!("{name}:{tag} is what nobody pushed: {answer:?}"));
        assert_eq!(under, tag, "the tag under which {} was pushed in {name}", document.digest);
        for blob in &document.blobs {
            let found = self.traffic.pull(random, &name, blob).await;
            let deleted = [&document.digest, &blob.digest].into_iter().any(|digest| self.state(at).deleted.contains(digest));
            assert!(found || deleted, "{} of {name}:{tag} ({}) is lost", blob.digest, document.digest);
        }
    }

    async fn delete_free(&self, at: usize, random: &mut Random) {
        let digest = {
            let mut state = self.state(at);
            if state.order.is_empty() {
                return;
            }
            let oldest = if state.order.len() > FREE_MAX { 0 } else { random.below(state.order.len() as u64) as usize };
            let digest = state.order.remove(oldest);
            state.deleted.insert(digest.clone());
            digest
        };
        // It may never have been taken, if its push came too late.
        self.traffic.delete("delete a manifest", &format!("/v2/{}/manifests/{digest}", name(at))).await;
    }

    async fn delete_blob(&self, at: usize, random: &mut Random) {
        let digest = {
            let mut state = self.state(at);
            let Some(document) = state.order.get(random.below(FREE_MAX as u64) as usize).map(|digest| &state.pushed[digest].1) else {
                return;
            };
            let blob = document.blobs[0].clone();
            // The shortest blobs are many images', whatever their seed.
            if blob.content.size < OWN_SIZE_MIN {
                return;
            }
            let digest = blob.digest.clone();
            state.deleted.insert(digest.clone());
            digest
        };
        self.traffic.delete("delete a blob", &format!("/v2/{}/blobs/{digest}", name(at))).await;
    }

    async fn list(&self, at: usize, random: &mut Random) {
        let (path, answered) = (format!("/v2/{}/tags/list", name(at)), self.state(at).answered.clone());
        let tags = self.traffic.list("list tags", &path, "tags", 1 + random.below(12)).await;
        let Some(tags) = tags else {
            assert!(answered.is_empty(), "{path} is 404");
            return;
        };
        for tag in answered {
            assert!(tags.contains(&tag), "{path} lacks {tag}: {tags:?}");
        }
        for tag in tags {
            assert!(tag.starts_with("keep-") || tag.starts_with("free-"), "{path} lists {tag}");
        }
    }

    /// Reads everything that must be there.
    pub async fn check_all(&self, random: &mut Random) {
        for at in 0..self.states.len() {
            for tag in 0..TAGS {
                self.pull_kept(at, random, &format!("keep-{tag}")).await;
                self.pull_free(at, random, &format!("free-{tag}")).await;
            }
            self.list(at, random).await;
        }
    }

    /// The blobs that manifests may name, by digest, and their sizes.
    pub fn named(&self) -> Vec<(String, u64)> {
        let mut all: Vec<&Document> = self.kept.iter().collect();
        let states: Vec<_> = (0..self.states.len()).map(|at| self.state(at)).collect();
        for state in &states {
            all.extend(state.pushed.iter().filter(|(digest, _)| !state.deleted.contains(*digest)).map(|(_, (_, document))| document));
        }
        all.iter().flat_map(|document| &document.blobs).map(|blob| (blob.digest.clone(), blob.content.size)).collect()
    }
}

fn name(at: usize) -> String {
    format!("shared/r{at}")
}
