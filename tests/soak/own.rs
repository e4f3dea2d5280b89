//! Repositories that one client has to itself: the model knows what every answer must be.
//!
//! The one thing that the model may not know is whether a blob is still there that no manifest names: the node may collect it
//! once the grace is over that a push, a HEAD or a mount gives. Until then it must be there.

use crate::traffic::{Blob, Document, Traffic};
use crate::{GRACE, pool};
use larder_harness::{Body, Random};
use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Repositories of a client.
const REPOSITORIES: u64 = 3;
/// Tags that it uses in each.
const TAGS: u64 = 6;
/// Manifests that it keeps in each.
const MANIFESTS_MAX: usize = 8;

/// A client with its repositories.
pub struct Client {
    traffic: Arc<Traffic>,
    random: Random,
    repositories: Vec<Repository>,
}

#[derive(Default)]
struct Repository {
    name: String,
    blobs: HashMap<String, Held>,
    manifests: Vec<Document>,
    tags: BTreeMap<String, String>,
    used: bool,
}

/// A blob that was there when it was last seen.
struct Held {
    blob: Arc<Blob>,
    /// It is there until then even if no manifest names it.
    until: Instant,
}

impl Repository {
    /// Whether a blob must be there now: a manifest names it, or its grace is not over.
    fn must_have(&self, digest: &str) -> bool {
        let Some(held) = self.blobs.get(digest) else { return false };
        Instant::now() < held.until || self.names(digest)
    }

    fn names(&self, digest: &str) -> bool {
        self.manifests.iter().any(|manifest| manifest.blobs.iter().any(|blob| blob.digest == digest))
    }

    /// The node relied on a blob for us with a request that was sent at `sent`.
    fn hold(&mut self, blob: &Arc<Blob>, sent: Instant) {
        let until = sent + GRACE;
        let held = self.blobs.entry(blob.digest.clone()).or_insert_with(|| Held { blob: blob.clone(), until });
        held.until = held.until.max(until);
    }

    /// The node said that a blob is not there.
    fn miss(&mut self, digest: &str) {
        assert!(!self.must_have(digest), "{}: {digest} is gone, and {}", self.name, self.why(digest));
        self.blobs.remove(digest);
    }

    fn why(&self, digest: &str) -> String {
        match self.manifests.iter().find(|manifest| manifest.blobs.iter().any(|blob| blob.digest == digest)) {
            Some(manifest) => format!("manifest {} names it", manifest.digest),
            None => "its grace is not over".to_owned(),
        }
    }
}

impl Client {
    /// A client by its number.
    pub fn new(number: u64, traffic: Arc<Traffic>, random: Random) -> Self {
        let named = |i| Repository { name: format!("own/c{number}/r{i}"), ..Repository::default() };
        Self { traffic, random, repositories: (0..REPOSITORIES).map(named).collect() }
    }

    /// Does one thing.
    pub async fn step(&mut self) {
        let at = self.random.below(REPOSITORIES) as usize;
        match self.random.below(100) {
            0..35 => self.push(at).await,
            35..45 => self.push_skipping(at).await,
            45..49 => self.push_index(at).await,
            49..75 => self.pull(at).await,
            75..80 => self.list(at).await,
            80..82 => self.catalog().await,
            82..87 => self.delete_tag(at).await,
            87..92 => self.delete_manifest(at).await,
            92..97 => self.delete_blob(at).await,
            _ => {
                let name = self.repositories[at].name.clone();
                self.traffic.give_up(&mut self.random, &name).await;
            }
        }
    }

    /// Pushes an image of new and known blobs: uploads, mounts, and what is there already by HEAD.
    async fn push(&mut self, at: usize) {
        let count = 1 + self.random.below(4);
        let blobs: Vec<_> =
            (0..count).map(|_| if self.random.below(3) == 0 { Blob::of(self.random.number()) } else { pool(&mut self.random) }).collect();
        let mut known = Vec::new();
        for blob in &blobs {
            if self.repositories[at].blobs.contains_key(&blob.digest) && self.random.below(4) > 0 {
                known.push(blob.clone());
                continue;
            }
            let other = self.random.below(REPOSITORIES) as usize;
            if other != at && self.repositories[other].blobs.contains_key(&blob.digest) && self.mount(other, at, blob).await {
                continue;
            }
            self.upload(at, blob).await;
        }
        self.finish(at, blobs, known).await;
    }

    /// Pushes an image of blobs that are there already, or were; the config too.
    async fn push_skipping(&mut self, at: usize) {
        let held: Vec<_> = self.repositories[at].blobs.values().map(|held| held.blob.clone()).collect();
        if held.is_empty() {
            return;
        }
        let count = 1 + self.random.below(3);
        // Not sorted by anything that a seed repeats: which blobs are left depends on the collector anyway.
        let blobs: Vec<_> = (0..count).map(|_| held[self.random.below(held.len() as u64) as usize].clone()).collect();
        self.finish(at, blobs.clone(), blobs).await;
    }

    async fn finish(&mut self, at: usize, blobs: Vec<Arc<Blob>>, known: Vec<Arc<Blob>>) {
        let skips = !known.is_empty();
        for blob in known {
            let sent = Instant::now();
            if self.traffic.has(&self.repositories[at].name, &blob).await {
                self.repositories[at].hold(&blob, sent);
            } else {
                self.repositories[at].miss(&blob.digest);
                self.upload(at, &blob).await;
            }
        }
        let document = Document::image(self.random.number(), blobs);
        if self.put(at, document).await && skips {
            self.traffic.count("skipped by HEAD, and pushed", Duration::ZERO);
        }
    }

    async fn push_index(&mut self, at: usize) {
        let images: Vec<_> = self.repositories[at].manifests.iter().filter(|manifest| !manifest.blobs.is_empty()).take(3).collect();
        if images.is_empty() {
            return;
        }
        let document = Document::index(self.random.number(), &images);
        self.put(at, document).await;
    }

    /// Pushes a manifest by tag, by digest, or by digest with a tag.
    async fn put(&mut self, at: usize, document: Document) -> bool {
        let tag = format!("t{}", self.random.below(TAGS));
        let (reference, tagged) = match self.random.below(10) {
            0 => (document.digest.clone(), false),
            1 | 2 => (format!("{}?tag={tag}", document.digest), true),
            _ => (tag.clone(), true),
        };
        let taken = self.traffic.put(&self.repositories[at].name, &reference, &document).await;
        let repository = &mut self.repositories[at];
        if !taken {
            let lost = document.blobs.iter().any(|blob| !repository.must_have(&blob.digest));
            assert!(lost, "{}: {} was refused, and all its blobs must be there", repository.name, document.digest);
            self.traffic.count("pushed later than the grace", Duration::ZERO);
            return false;
        }
        if tagged {
            repository.tags.insert(tag, document.digest.clone());
        }
        repository.used = true;
        for blob in &document.blobs {
            // It was there in that moment, whatever we thought.
            repository.hold(blob, Instant::now() - GRACE);
        }
        repository.manifests.push(document);
        if repository.manifests.len() > MANIFESTS_MAX {
            self.remove_manifest(at, 0).await;
        }
        true
    }

    async fn upload(&mut self, at: usize, blob: &Arc<Blob>) {
        let sent = self.traffic.upload(&mut self.random, &self.repositories[at].name, blob).await;
        self.repositories[at].hold(blob, sent);
    }

    async fn mount(&mut self, from: usize, to: usize, blob: &Arc<Blob>) -> bool {
        let (name, source) = (&self.repositories[to].name, &self.repositories[from].name);
        let path = format!("/v2/{name}/blobs/uploads/?mount={}&from={source}", blob.digest);
        let sent = Instant::now();
        let answer = self.traffic.send("mount a blob", "POST", &path, &[], Body::empty()).await;
        if answer.status == 201 {
            self.repositories[to].hold(blob, sent);
            return true;
        }
        let opened = answer.expect(202, &path);
        self.repositories[from].miss(&blob.digest);
        self.traffic.send("cancel an upload", "DELETE", opened.header("location"), &[], Body::empty()).await.expect(204, &path);
        false
    }

    async fn pull(&mut self, at: usize) {
        let repository = &self.repositories[at];
        if repository.manifests.is_empty() {
            return;
        }
        let tags: Vec<_> = repository.tags.iter().collect();
        let (reference, digest) = match self.random.below(3) {
            0 if !tags.is_empty() => {
                let (tag, digest) = tags[self.random.below(tags.len() as u64) as usize];
                (tag.clone(), digest.clone())
            }
            1 => {
                let tag = format!("t{}", self.random.below(TAGS));
                if !repository.tags.contains_key(&tag) {
                    let found = self.traffic.manifest(&repository.name, &tag).await;
                    assert!(found.is_none(), "{}:{tag} was deleted and is back", repository.name);
                    return;
                }
                (tag.clone(), repository.tags[&tag].clone())
            }
            _ => {
                let digest = &repository.manifests[self.random.below(repository.manifests.len() as u64) as usize].digest;
                (digest.clone(), digest.clone())
            }
        };
        self.check(at, &reference, &digest).await;
    }

    /// Reads a manifest that must be there, and all its blobs.
    async fn check(&mut self, at: usize, reference: &str, digest: &str) {
        let repository = &self.repositories[at];
        let here = format!("{}:{reference}", repository.name);
        let document = repository.manifests.iter().find(|manifest| manifest.digest == *digest).expect("tags name what is there").clone();
        let answer = self.traffic.manifest(&repository.name, reference).await.unwrap_or_else(|| panic!("{here} is lost"));
        assert!(answer.body == document.bytes, "{here} is another manifest than {digest}");
        assert_eq!(answer.header("content-type"), document.media_type, "media type of {here}");
        for blob in &document.blobs {
            let known = self.repositories[at].blobs.contains_key(&blob.digest);
            let found = self.traffic.pull(&mut self.random, &self.repositories[at].name, blob).await;
            assert_eq!(found, known, "blob {} of {here} (true: it is there)", blob.digest);
        }
    }

    async fn list(&mut self, at: usize) {
        let repository = &self.repositories[at];
        let path = format!("/v2/{}/tags/list", repository.name);
        let Some(tags) = self.traffic.list("list tags", &path, "tags", 1 + self.random.below(8)).await else {
            assert!(!repository.used || repository.manifests.is_empty(), "{path} is 404");
            return;
        };
        assert_eq!(tags, repository.tags.keys().cloned().collect::<Vec<_>>(), "{path}");
    }

    async fn catalog(&mut self) {
        let all = self.traffic.list("list repositories", "/v2/_catalog", "repositories", 50 + self.random.below(50)).await;
        let all = all.expect("there is always a catalog");
        for repository in &self.repositories {
            let listed = all.binary_search(&repository.name).is_ok();
            assert_eq!(listed, !repository.manifests.is_empty(), "{} in the catalog (true: it is there)", repository.name);
        }
    }

    async fn delete_tag(&mut self, at: usize) {
        let repository = &mut self.repositories[at];
        let tag = format!("t{}", self.random.below(TAGS));
        let found = self.traffic.delete("delete a tag", &format!("/v2/{}/manifests/{tag}", repository.name)).await;
        let known = repository.tags.remove(&tag).is_some();
        assert_eq!(found, known, "delete {}:{tag} (true: it was there)", repository.name);
    }

    async fn delete_manifest(&mut self, at: usize) {
        let count = self.repositories[at].manifests.len() as u64;
        if count > 0 {
            let which = self.random.below(count) as usize;
            self.remove_manifest(at, which).await;
        }
    }

    async fn remove_manifest(&mut self, at: usize, which: usize) {
        let repository = &mut self.repositories[at];
        let digest = repository.manifests[which].digest.clone();
        let path = format!("/v2/{}/manifests/{digest}", repository.name);
        assert!(self.traffic.delete("delete a manifest", &path).await, "{path} is lost");
        repository.manifests.remove(which);
        repository.tags.retain(|_, named| *named != digest);
    }

    /// Deletes a blob; one that a manifest names now and then too, which is then broken and not repaired by anybody but us.
    async fn delete_blob(&mut self, at: usize) {
        let repository = &mut self.repositories[at];
        let named_too = self.random.below(4) == 0;
        let held: Vec<_> = repository.blobs.keys().filter(|digest| named_too || !repository.names(digest)).cloned().collect();
        if held.is_empty() {
            return;
        }
        let digest = &held[self.random.below(held.len() as u64) as usize];
        let found = self.traffic.delete("delete a blob", &format!("/v2/{}/blobs/{digest}", repository.name)).await;
        if !found {
            repository.miss(digest);
        }
        repository.blobs.remove(digest);
    }

    /// Reads everything that must be there.
    pub async fn check_all(&mut self) {
        for at in 0..self.repositories.len() {
            self.list(at).await;
            let mut all: Vec<_> = self.repositories[at].tags.iter().map(|(tag, digest)| (tag.clone(), digest.clone())).collect();
            all.extend(self.repositories[at].manifests.iter().map(|manifest| (manifest.digest.clone(), manifest.digest.clone())));
            for (reference, digest) in all {
                self.check(at, &reference, &digest).await;
            }
        }
        self.catalog().await;
    }

    /// The blobs that live manifests name, by digest, and their sizes.
    pub fn named(&self) -> impl Iterator<Item = (&str, u64)> {
        let manifests = self.repositories.iter().flat_map(|repository| &repository.manifests);
        manifests.flat_map(|manifest| &manifest.blobs).map(|blob| (blob.digest.as_str(), blob.content.size))
    }
}
