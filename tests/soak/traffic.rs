//! What the clients send, each thing in every way that clients have; and how often and how fast it was answered.

use larder_harness::{Body, Content, Random, Registry, Response, http};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

/// The largest blob.
const SIZE_MAX: u64 = 3 << 20;
/// Sizes on both sides of what the index holds itself, of a chunk and of nothing.
const EDGES: [u64; 9] = [0, 1, 65_535, 65_536, 65_537, (1 << 20) - 1, 1 << 20, (1 << 20) + 1, SIZE_MAX];
const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
const INDEX: &str = "application/vnd.oci.image.index.v1+json";

/// A blob that was or will be pushed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Blob {
    /// Its bytes.
    pub content: Content,
    /// Their digest.
    pub digest: String,
}

impl Blob {
    /// The blob of a seed, which also decides on its size: most are small, as configs are, and some have each size of [`EDGES`].
    pub fn of(seed: u64) -> Arc<Self> {
        let mut random = Random::new(seed ^ 0x5eed);
        let size = match random.below(10) {
            0 | 1 => EDGES[random.below(EDGES.len() as u64) as usize],
            2 => random.below(SIZE_MAX),
            3..=5 => random.below(256 << 10),
            _ => random.below(8 << 10),
        };
        let content = Content::new(seed, size);
        Arc::new(Self { digest: content.digest(), content })
    }
}

/// A manifest with what it names.
#[derive(Debug, Clone)]
pub struct Document {
    /// The digest of its bytes.
    pub digest: String,
    /// As they are pushed.
    pub bytes: bytes::Bytes,
    /// As what.
    pub media_type: &'static str,
    /// The blobs it names.
    pub blobs: Vec<Arc<Blob>>,
}

impl Document {
    /// An image of these blobs, the first of which is the config; `note` makes another one of the same blobs.
    pub fn image(note: u64, blobs: Vec<Arc<Blob>>) -> Self {
        let described: Vec<Value> = blobs
            .iter()
            .map(|blob| json!({"mediaType": "application/octet-stream", "digest": blob.digest, "size": blob.content.size}))
            .collect();
        let (config, layers) = described.split_first().expect("an image has a config");
        let body = json!({"schemaVersion": 2, "mediaType": MANIFEST, "config": config, "layers": layers, "annotations": {"note": note.to_string()}});
        Self::new(MANIFEST, &body, blobs)
    }

    /// An index of these images.
    pub fn index(note: u64, children: &[&Document]) -> Self {
        let described: Vec<Value> = children
            .iter()
            .map(|child| json!({"mediaType": child.media_type, "digest": child.digest, "size": child.bytes.len()}))
            .collect();
        let body = json!({"schemaVersion": 2, "mediaType": INDEX, "manifests": described, "annotations": {"note": note.to_string()}});
        Self::new(INDEX, &body, Vec::new())
    }

    fn new(media_type: &'static str, body: &Value, blobs: Vec<Arc<Blob>>) -> Self {
        let bytes = bytes::Bytes::from(body.to_string());
        Self { digest: larder_harness::sha256(&bytes), bytes, media_type, blobs }
    }
}

/// How often something was asked for, and how long it took.
#[derive(Debug, Clone, Copy, Default)]
struct Count {
    count: u64,
    total: Duration,
    longest: Duration,
}

/// The way to the node that all clients share.
#[derive(Debug)]
pub struct Traffic {
    registry: Registry,
    counts: Mutex<BTreeMap<&'static str, Count>>,
}

impl Traffic {
    /// The way to a node.
    pub fn new(url: String) -> Self {
        Self { registry: Registry::new(url), counts: Mutex::default() }
    }

    /// Takes note of something that happened.
    pub fn count(&self, what: &'static str, took: Duration) {
        let mut counts = self.counts.lock().unwrap_or_else(PoisonError::into_inner);
        let count = counts.entry(what).or_default();
        *count = Count { count: count.count + 1, total: count.total + took, longest: count.longest.max(took) };
    }

    /// How often it happened.
    pub fn counted(&self, what: &str) -> u64 {
        self.counts.lock().unwrap_or_else(PoisonError::into_inner).get(what).map_or(0, |count| count.count)
    }

    /// Prints what happened.
    pub fn print(&self) {
        println!("{:<34} {:>8} {:>10} {:>10}", "what", "times", "mean ms", "longest ms");
        for (what, Count { count, total, longest }) in self.counts.lock().unwrap_or_else(PoisonError::into_inner).iter() {
            println!("{what:<34} {count:>8} {:>10.1} {:>10.0}", total.as_secs_f64() * 1e3 / *count as f64, longest.as_secs_f64() * 1e3);
        }
    }

    /// Sends a request. No answer, a failure of the node or a refusal for lack of room ends the soak.
    pub async fn send(&self, what: &'static str, method: &str, path: &str, headers: &[(&str, &str)], body: impl Into<Body>) -> Response {
        let begin = Instant::now();
        let answer = self.registry.try_request(method, path, headers, body).await;
        let answer = answer.unwrap_or_else(|error| panic!("{what}: {method} {path}: {error:?}"));
        let text = String::from_utf8_lossy(&answer.body[..answer.body.len().min(500)]);
        assert!(answer.status < 500 && answer.status != 429, "{what}: {method} {path}: {} {text}", answer.status);
        self.count(what, begin.elapsed());
        answer
    }

    /// Pushes a blob in one of the ways there are; gives when the request was sent that ended it.
    pub async fn upload(&self, random: &mut Random, repository: &str, blob: &Blob) -> Instant {
        let octets = [("content-type", "application/octet-stream")];
        let (content, digest) = (blob.content, &blob.digest);
        let start = format!("/v2/{repository}/blobs/uploads/");
        let way = random.below(4);
        if way == 0 {
            let path = format!("{start}?digest={digest}");
            let sent = Instant::now();
            self.send("push a blob in one POST", "POST", &path, &octets, Body::content(content)).await.expect(201, &path);
            return sent;
        }
        let opened = self.send("open an upload", "POST", &start, &[], Body::empty()).await.expect(202, &start);
        let mut location = opened.header("location").to_owned();
        let mut rest = Body::empty();
        match way {
            1 => rest = Body::content(content),
            2 => {
                let body = Body::chunked(content.chunks().map(Ok));
                location = self.patch(&location, &octets, body).await;
            }
            _ => {
                let bytes = content.bytes();
                let part = (16 << 10) + random.below(1 << 20) as usize;
                let mut begin = 0;
                while begin + part < bytes.len() {
                    let range = format!("{begin}-{}", begin + part - 1);
                    location =
                        self.patch(&location, &[octets[0], ("content-range", &range)], bytes.slice(begin..begin + part).into()).await;
                    begin += part;
                    if random.below(4) == 0 {
                        let status = self.send("ask for a session's offset", "GET", &location, &[], Body::empty()).await;
                        let status = status.expect(204, "ask for the offset of an upload");
                        assert_eq!(status.header("range"), format!("0-{}", begin - 1), "the offset of {location}");
                    }
                }
                rest = bytes.slice(begin..).into();
            }
        }
        let path = larder_harness::registry::with_digest(&location, digest);
        let sent = Instant::now();
        self.send("end an upload", "PUT", &path, &octets, rest).await.expect(201, &path);
        sent
    }

    /// Begins an upload and gives it up.
    pub async fn give_up(&self, random: &mut Random, repository: &str) {
        let start = format!("/v2/{repository}/blobs/uploads/");
        let opened = self.send("open an upload", "POST", &start, &[], Body::empty()).await.expect(202, &start);
        let body = Body::content(Content::new(random.number(), random.below(1 << 20)));
        let location = self.patch(opened.header("location"), &[("content-type", "application/octet-stream")], body).await;
        // What nobody cancels expires.
        if random.below(2) == 0 {
            self.send("cancel an upload", "DELETE", &location, &[], Body::empty()).await.expect(204, &location);
        }
    }

    async fn patch(&self, location: &str, headers: &[(&str, &str)], body: Body) -> String {
        let answer = self.send("append to an upload", "PATCH", location, headers, body).await.expect(202, location);
        answer.header("location").to_owned()
    }

    /// Whether a blob is there, by HEAD.
    pub async fn has(&self, repository: &str, blob: &Blob) -> bool {
        let path = format!("/v2/{repository}/blobs/{}", blob.digest);
        let answer = self.send("check a blob", "HEAD", &path, &[], Body::empty()).await;
        if answer.status == 404 {
            return false;
        }
        let answer = answer.expect(200, &path);
        assert_eq!(answer.header("content-length"), blob.content.size.to_string(), "size of {path}");
        true
    }

    /// Pulls a blob; whether it was there. Every byte of it is compared.
    pub async fn pull(&self, random: &mut Random, repository: &str, blob: &Blob) -> bool {
        let (path, size) = (format!("/v2/{repository}/blobs/{}", blob.digest), blob.content.size);
        if size > 1 && random.below(4) == 0 {
            return self.pull_part(random, &path, blob).await;
        }
        let begin = Instant::now();
        let answer = http::summary(&self.registry.at(&path)).await.unwrap_or_else(|error| panic!("pull {path}: {error:?}"));
        self.count("pull a blob", begin.elapsed());
        if answer.status == 404 {
            return false;
        }
        assert_eq!((answer.status, answer.size, &answer.digest), (200, size, &blob.digest), "pull {path}");
        true
    }

    async fn pull_part(&self, random: &mut Random, path: &str, blob: &Blob) -> bool {
        let first = random.below(blob.content.size);
        let last = first + random.below(blob.content.size - first);
        let range = format!("bytes={first}-{last}");
        let answer = self.send("pull a part of a blob", "GET", path, &[("range", &range)], Body::empty()).await;
        if answer.status == 404 {
            return false;
        }
        let answer = answer.expect(206, path);
        assert!(answer.body == blob.content.bytes()[first as usize..=last as usize], "bytes {range} of {path}");
        true
    }

    /// Pushes a manifest; whether it was taken. It is refused when it names a blob that is not there.
    pub async fn put(&self, repository: &str, reference: &str, document: &Document) -> bool {
        let path = format!("/v2/{repository}/manifests/{reference}");
        let headers = [("content-type", document.media_type)];
        let answer = self.send("push a manifest", "PUT", &path, &headers, document.bytes.clone()).await;
        if answer.status == 201 {
            assert_eq!(answer.header("docker-content-digest"), document.digest, "digest of {path}");
            return true;
        }
        assert_eq!(answer.error_code(), "MANIFEST_BLOB_UNKNOWN", "{path}: {} {}", answer.status, String::from_utf8_lossy(&answer.body));
        false
    }

    /// Reads a manifest; `None` when there is none. Its bytes hash to what its header says.
    pub async fn manifest(&self, repository: &str, reference: &str) -> Option<Response> {
        let path = format!("/v2/{repository}/manifests/{reference}");
        let headers = [("accept", larder_harness::registry::ACCEPT)];
        let answer = self.send("pull a manifest", "GET", &path, &headers, Body::empty()).await;
        if answer.status == 404 {
            return None;
        }
        let answer = answer.expect(200, &path);
        assert_eq!(larder_harness::sha256(&answer.body), answer.header("docker-content-digest"), "digest of {path}");
        Some(answer)
    }

    /// Deletes a tag, a manifest or a blob; whether it was there.
    pub async fn delete(&self, what: &'static str, path: &str) -> bool {
        let answer = self.send(what, "DELETE", path, &[], Body::empty()).await;
        if answer.status == 404 {
            return false;
        }
        answer.expect(202, path);
        true
    }

    /// A whole listing, page by page.
    pub async fn list(&self, what: &'static str, path: &str, field: &str, page: u64) -> Option<Vec<String>> {
        let (mut all, mut next) = (Vec::new(), Some(format!("{path}?n={page}")));
        while let Some(path) = next {
            let answer = self.send(what, "GET", &path, &[], Body::empty()).await;
            if answer.status == 404 && all.is_empty() {
                return None;
            }
            let answer = answer.expect(200, &path);
            let entries = answer.json()[field].as_array().cloned().unwrap_or_else(|| panic!("{path} has no list"));
            assert!(entries.len() as u64 <= page, "{path} has {} entries", entries.len());
            all.extend(entries.iter().map(|entry| entry.as_str().expect("a listing of texts").to_owned()));
            next = answer.header("link").split(['<', '>']).nth(1).map(str::to_owned);
        }
        assert!(all.is_sorted_by(|a, b| a < b), "{path} is not sorted: {all:?}");
        Some(all)
    }
}
