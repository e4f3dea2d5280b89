//! A store as a large registry has it, made in minutes: through the library and without a client.

use larder::config::Durability;
use larder::store::{Commit, DataFolder, ManifestPush, Options, SpaceLimits, Store};
use larder_harness::{Content, Random};
use larder_protocol::digest::{Algorithm, Digest};
use larder_protocol::name::RepositoryName;
use larder_protocol::record::{Key, TagTarget, Value};
use larder_protocol::stamp::NodeId;
use serde_json::json;
use std::path::Path;
use std::time::Duration;

/// The repository that has most of the tags.
pub const LARGE: &str = "scale/large";
/// The repository in which so many tags were deleted, and one left behind them.
pub const DELETED: &str = "scale/deleted";
/// The tag that is left there.
pub const LEFT: &str = "z-left";
const MEDIA_TYPE: &str = "application/vnd.oci.image.manifest.v1+json";
/// Blobs of each small repository.
const BLOBS_EACH: u64 = 10;
/// Records written at a time.
const BATCH: u64 = 5_000;
/// Blobs that lie in files.
const FILES: u64 = 200;
const FILE_SIZE: u64 = 100 << 10;

/// How much of everything.
#[derive(Debug, Clone, Copy)]
pub struct Scale {
    /// Tags of one repository.
    pub tags: u64,
    /// Other repositories, with one tag and one manifest of ten blobs each.
    pub repositories: u64,
    /// Deleted tags.
    pub deleted: u64,
}

/// The name of a small repository.
pub fn repository(number: u64) -> RepositoryName {
    name(&format!("team-{:03}/app-{number:06}", number % 500))
}

/// A tag of the large repository.
fn tag(number: u64) -> String {
    format!("build-{number:07}")
}

/// Fills a data folder; its node must not run.
pub fn generate(folder: &Path, scale: Scale) {
    let store = open(folder, NodeId([7; 32]));
    let mut random = Random::new(1);
    for number in 0..scale.repositories {
        small(&store, &repository(number), number, &mut random);
    }
    let large = name(LARGE);
    let manifest = small(&store, &large, u64::MAX, &mut random);
    write(&store, scale.tags, |number| (tag_key(&large, &tag(number)), target(manifest)));
    let deleted = name(DELETED);
    let manifest = small(&store, &deleted, u64::MAX - 1, &mut random);
    write(&store, scale.deleted, |number| (tag_key(&deleted, &tag(number)), target(manifest)));
    write(&store, scale.deleted, |number| (tag_key(&deleted, &tag(number)), None));
    write(&store, 1, |_| (tag_key(&deleted, LEFT), target(manifest)));
    for number in 0..FILES {
        let content = Content::new(number, FILE_SIZE);
        push(&store, &large, &content.chunks().collect::<Vec<_>>());
    }
    store.close();
}

/// Writes a record in a data folder as if it were another node's.
#[allow(dead_code)]
pub fn write_as(folder: &Path, node: u8) {
    let store = open(folder, NodeId([node; 32]));
    write(&store, 1, |_| (Key::Unknown { kind: 900, key: vec![node] }, Some(Value::Unknown(vec![node]))));
    store.close();
}

/// Opens the store of a node that does not run.
pub fn open(folder: &Path, node: NodeId) -> Store {
    let options = Options {
        node,
        // Nobody waits for the disk: what a crash takes is generated again.
        durability: Durability::Relaxed,
        max_clock_drift: Duration::from_secs(300),
        uploads_max: 1,
        uploads_per_client_max: 1,
        sparse_manifests: false,
        blob_size_max: 1 << 30,
        renew_after: Duration::from_secs(3600),
        immutable_tags: Vec::new(),
        space: SpaceLimits::default(),
    };
    Store::open(DataFolder::open(folder).expect("open the folder"), options).expect("open the store")
}

/// Pushes an image of ten small blobs to a repository, under one tag.
fn small(store: &Store, repository: &RepositoryName, number: u64, random: &mut Random) -> Digest {
    let described: Vec<_> = (0..BLOBS_EACH)
        .map(|_| {
            let mut bytes = vec![0; 40 + random.below(100) as usize];
            random.fill(&mut bytes);
            let digest = push(store, repository, &[bytes.as_slice()]);
            json!({"mediaType": "application/octet-stream", "digest": digest.to_string(), "size": bytes.len()})
        })
        .collect();
    let body = json!({"schemaVersion": 2, "mediaType": MEDIA_TYPE, "config": described[0], "layers": described[1..]}).to_string();
    let digest = Digest::sha256(body.as_bytes());
    let push = ManifestPush {
        repository: repository.clone(),
        tags: vec![format!("v{}", number % 100).parse().expect("a tag")],
        digest,
        media_type: MEDIA_TYPE.to_owned(),
        bytes: body.into(),
    };
    store.put_manifest(push).expect("store a manifest");
    digest
}

/// Pushes a blob as clients do, without the wire.
fn push(store: &Store, repository: &RepositoryName, parts: &[impl AsRef<[u8]>]) -> Digest {
    let digest = Digest::sha256(&parts.iter().flat_map(AsRef::as_ref).copied().collect::<Vec<u8>>());
    let mut upload = store.create_upload(repository, Algorithm::Sha256, "").expect("open an upload");
    parts.iter().for_each(|part| upload.append(part.as_ref()).expect("append to an upload"));
    upload.finish(digest).expect("finish an upload");
    digest
}

fn write(store: &Store, count: u64, record: impl Fn(u64) -> (Key, Option<Value>)) {
    for begin in (0..count).step_by(BATCH as usize) {
        let records = (begin..count.min(begin + BATCH)).map(&record).collect();
        store.commit(Commit { records, settings: Vec::new() }).expect("write records");
    }
}

fn name(text: &str) -> RepositoryName {
    text.parse().expect("a name")
}

fn tag_key(repository: &RepositoryName, tag: &str) -> Key {
    Key::Tag(repository.clone(), tag.parse().expect("a tag"))
}

fn target(digest: Digest) -> Option<Value> {
    Some(Value::Tag(TagTarget { digest, replaced: None }))
}
