//! The room through its door, on a store in a temporary folder and a bucket in another.

use std::ops::Range;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use aws_lc_rs::signature::{Ed25519KeyPair, KeyPair};
use bytes::Bytes;
use larder_protocol::digest::Algorithm;
use larder_protocol::name::{RepositoryName, Tag};
use larder_protocol::stamp::NodeId;

use super::bucket::{Chunks, Object, Page};
use super::directory::Directory;
use super::encrypted::{Encrypted, Keyring};
use super::*;
use crate::config::{Durability, Prices};
use crate::store::{DataFolder, ManifestPush, Options};

/// What the first pack takes: is the bucket marked, the mark, the pack.
const FIRST_PACK: Requests = Requests { put: 2, get: 1, list: 0, head: 0, delete: 0, thaw: 0 };

/// A bucket whose next puts do their work and then say that they failed.
#[derive(Debug)]
pub(super) struct Flaky {
    bucket: Directory,
    pub(super) failures: AtomicUsize,
    /// Frozen packs whose bytes were asked for: they are not given.
    pub(super) frozen_gets: AtomicUsize,
    /// Nothing may be deleted.
    pub(super) locked: AtomicBool,
    keys: Mutex<Vec<String>>,
}

impl Bucket for Flaky {
    fn id(&self) -> &str {
        self.bucket.id()
    }
    fn prefix(&self) -> &str {
        self.bucket.prefix()
    }
    fn object_size_max(&self) -> u64 {
        self.bucket.object_size_max()
    }
    fn prices(&self) -> &Prices {
        &crate::config::S3_STANDARD
    }
    fn put_once(&self, object: Object) -> BoxFuture<'_, Result<(), Error>> {
        Box::pin(async move {
            let key = object.key.clone();
            if key.ends_with("/cluster") {
                return self.bucket.put_once(object).await;
            }
            self.keys.lock().expect("no panic").push(key.clone());
            self.bucket.put_once(object).await?;
            match self.failures.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |left| left.checked_sub(1)) {
                Ok(_) => Err(Error::Bucket { doing: "put", key, bucket: "flaky".to_owned(), detail: "the answer was lost".to_owned() }),
                Err(_) => Ok(()),
            }
        })
    }
    fn get_range<'a>(&'a self, key: &'a str, range: Range<u64>) -> BoxFuture<'a, Result<Chunks, Error>> {
        if keys::class_of(key).is_frozen() {
            self.frozen_gets.fetch_add(1, Ordering::SeqCst);
            let error = Error::Frozen { key: key.to_owned(), bucket: self.id().to_owned(), ready_in: None };
            return Box::pin(std::future::ready(Err(error)));
        }
        self.bucket.get_range(key, range)
    }
    fn delete<'a>(&'a self, key: &'a str) -> BoxFuture<'a, Result<(), Error>> {
        Box::pin(async move {
            if self.locked.load(Ordering::SeqCst) {
                return Err(Error::Bucket {
                    doing: "delete",
                    key: key.to_owned(),
                    bucket: "flaky".to_owned(),
                    detail: "it is locked".to_owned(),
                });
            }
            self.bucket.delete(key).await
        })
    }
    fn list<'a>(&'a self, prefix: &'a str, after: Option<&'a str>) -> BoxFuture<'a, Result<Page, Error>> {
        self.bucket.list(prefix, after)
    }
}

pub(super) struct Node {
    _data: tempfile::TempDir,
    pub(super) archive: Archive,
    pub(super) store: Store,
    pub(super) flaky: Arc<Flaky>,
}

/// A node with an empty store that archives into `folder`.
pub(super) async fn node(folder: &std::path::Path, seed: u8) -> Node {
    node_with(folder, seed, Keyring::default()).await
}

/// The same, with keys of its own for what is encrypted.
pub(super) async fn node_with(folder: &std::path::Path, seed: u8, keyring: Keyring) -> Node {
    let data = tempfile::tempdir().expect("a folder");
    let key = Ed25519KeyPair::from_seed_unchecked(&[seed; 32]).expect("a key");
    let options = Options {
        node: NodeId(key.public_key().as_ref().try_into().expect("32 bytes")),
        durability: Durability::Relaxed,
        max_clock_drift: Duration::from_secs(300),
        uploads_max: 16,
        uploads_per_client_max: 16,
        sparse_manifests: false,
        blob_size_max: 1 << 30,
        renew_after: Duration::from_secs(3600),
        immutable_tags: Vec::new(),
        space: Default::default(),
    };
    let store = Store::open(DataFolder::open(&data.path().join("node")).expect("a data folder"), options).expect("a store");
    let metrics = Arc::<Metrics>::default();
    let ledger = Ledger::new(None, metrics.clone());
    let bucket = Directory::open(folder, ledger.clone()).await.expect("a bucket");
    let flaky = Arc::new(Flaky {
        bucket,
        failures: AtomicUsize::new(0),
        frozen_gets: AtomicUsize::new(0),
        locked: AtomicBool::new(false),
        keys: Mutex::default(),
    });
    let keyring = Arc::new(keyring);
    let bucket = Arc::new(Encrypted::new(flaky.clone(), keyring.clone()));
    let s3 = S3Settings {
        keyring,
        read_url: None,
        endpoint: None,
        region: "us-east-1".to_owned(),
        path_style: false,
        multipart_above: 5 << 30,
        sse: crate::config::Sse::None,
        sse_kms_key: None,
        prices: crate::config::S3_STANDARD,
    };
    let settings = Settings {
        class: crate::config::StorageClass::STANDARD,
        bulk: None,
        thaw_poll: Duration::from_secs(1),
        url: Some(crate::config::ArchiveUrl::Directory(folder.to_owned())),
        s3,
        max_delay: Duration::from_secs(900),
        pack_size: 512 << 20,
        checkpoint: checkpoint::Due { packs: 500, age: Duration::from_secs(7 * 86_400) },
        verify_period: Duration::ZERO,
        compact: compact::Dial { by_itself: false, wait: Duration::ZERO, payback_max: 1e9, bytes_max: 1 << 40 },
        recounted_every: Duration::from_secs(60),
        scratch: data.path().to_owned(),
    };
    let (sign, node): (Sign, _) = (Arc::new(move |bytes| key.sign(bytes).as_ref().try_into().expect("64 bytes")), store.origin().node);
    let inner = Inner::new(settings, store.clone(), Arc::new(move || (node, sign.clone())), metrics, ledger, Some(bucket), None);
    Node { _data: data, archive: Archive { inner: Arc::new(inner) }, store, flaky }
}

pub(super) fn app() -> RepositoryName {
    "team/app".parse().expect("a name")
}

/// Pushes an image of these blobs (the first is its config) under a tag, as a client does.
pub(super) fn push(store: &Store, tag: &str, blobs: &[&[u8]]) -> Digest {
    push_to(store, &app(), tag, blobs)
}

/// The same to another repository.
fn push_to(store: &Store, repository: &RepositoryName, tag: &str, blobs: &[&[u8]]) -> Digest {
    for bytes in blobs {
        let mut upload = store.create_upload(repository, Algorithm::Sha256, "").expect("a session");
        upload.append(bytes).expect("append");
        upload.finish(Digest::sha256(bytes)).expect("finish");
    }
    let descriptor = |bytes: &&[u8]| {
        let (media_type, size) = ("application/vnd.oci.image.layer.v1.tar", bytes.len());
        serde_json::json!({ "mediaType": media_type, "digest": Digest::sha256(bytes).to_string(), "size": size })
    };
    let media_type = "application/vnd.oci.image.manifest.v1+json";
    let manifest = serde_json::json!({
        "schemaVersion": 2,
        "mediaType": media_type,
        "config": descriptor(&blobs[0]),
        "layers": blobs[1..].iter().map(descriptor).collect::<Vec<_>>(),
    });
    let bytes = Bytes::from(manifest.to_string());
    let digest = Digest::sha256(&bytes);
    let tags = vec![tag.parse::<Tag>().expect("a tag")];
    store
        .put_manifest(ManifestPush { repository: repository.clone(), tags, digest, media_type: media_type.to_owned(), bytes })
        .expect("a manifest");
    digest
}

async fn pull(node: &Node, bytes: &[u8]) -> bool {
    let digest = Digest::sha256(bytes);
    let link = node.store.link(&app(), &digest).expect("readable").expect("linked");
    let mut staging = node.store.stage(digest, link).expect("staged");
    let filled = node.archive.fill(&mut staging).await.expect("filled");
    if filled {
        staging.finish().await.expect("the right bytes");
    }
    filled
}

fn layer() -> Vec<u8> {
    (0..(2 << 20) + 17u32).map(|i| (i.wrapping_mul(2_654_435_761) >> 24) as u8).collect()
}

fn gets(node: &Node) -> u64 {
    node.archive.inner.ledger.tally().requests.get
}

mod checkpoints;
mod compaction;
mod damage;
mod encryption;
mod frozen;
mod large;
mod strangers;
mod verify;

#[tokio::test]
async fn a_bucket_brings_back_what_was_pushed() {
    let folder = tempfile::tempdir().expect("a folder");
    let (first, layer) = (node(folder.path(), 1).await, layer());
    let digest = push(&first.store, "v1", &[b"{}", &layer, b""]);
    push(&first.store, "v2", &[b"{}", &layer, b"more"]);
    let packs = first.archive.flush().await.expect("flushed");
    assert_eq!(packs.len(), 1);
    let tally = first.archive.inner.ledger.tally();
    // One put for everything, after the bucket was marked; the blobs that both images share are in it once.
    assert_eq!((tally.requests, tally.pushes, tally.blobs), (FIRST_PACK, 2, 4));

    let second = node(&folder.path().join("its-own"), 2).await;
    let restored =
        second.archive.restore(&format!("file://{}", folder.path().display()), RestoreOptions::default()).await.expect("restored");
    assert_eq!((restored.packs, restored.repositories, restored.tags, restored.skipped.len()), (1, 1, 2, 0));
    assert_eq!(second.store.cluster(), first.store.cluster());
    assert_eq!(second.store.tag(&app(), &"v1".parse().expect("a tag")).expect("readable").expect("there").digest, digest);
    assert!(second.store.manifest(&app(), &digest).expect("readable").is_some());
    assert!(second.store.vector().get(&first.store.origin()) > 0);
    // One ranged GET a blob.
    let before = gets(&second);
    assert!(pull(&second, &layer).await);
    assert_eq!(gets(&second) - before, 1);
    assert!(second.store.blob(&Digest::sha256(&layer)).expect("readable").is_some());
    // Not a second time over it.
    let again = second.archive.restore(&format!("file://{}", folder.path().display()), RestoreOptions::default()).await;
    assert!(matches!(again, Err(Error::NotEmpty { .. })), "{again:?}");
}

#[tokio::test]
async fn nothing_queued_is_no_request() {
    let folder = tempfile::tempdir().expect("a folder");
    let node = node(folder.path(), 1).await;
    assert!(node.archive.flush().await.expect("flushed").is_empty());
    push(&node.store, "v1", &[b"{}"]);
    assert_eq!(node.archive.flush().await.expect("flushed").len(), 1);
    // The record of the pack itself waits for the next push.
    assert!(node.archive.flush().await.expect("flushed").is_empty());
    assert_eq!(node.archive.inner.ledger.tally().requests, FIRST_PACK);
    assert_eq!(node.archive.status().await.expect("a status").pending_records, 0);
    // A second tag of the same image brings no blob again.
    push(&node.store, "v2", &[b"{}"]);
    assert!(node.archive.status().await.expect("a status").pending_records > 0);
    let packs = node.archive.flush().await.expect("flushed");
    assert!(node.store.packs(None, 9).expect("readable").iter().all(|(_, archived)| archived.contents.len() <= 2), "{packs:?}");
}

#[tokio::test]
async fn concurrent_flushes_write_everything_once() {
    let folder = tempfile::tempdir().expect("a folder");
    let node = node(folder.path(), 1).await;
    push(&node.store, "v1", &[b"{}"]);
    let (a, b, c) = tokio::join!(node.archive.flush(), node.archive.flush(), node.archive.flush());
    assert_eq!([a, b, c].map(|packs| packs.expect("flushed").len()).iter().sum::<usize>(), 1);
}

#[tokio::test]
async fn f27_a_put_whose_answer_was_lost_is_put_again_under_its_name() {
    let folder = tempfile::tempdir().expect("a folder");
    let node = node(folder.path(), 1).await;
    push(&node.store, "v1", &[b"{}", b"layer"]);
    node.flaky.failures.store(2, Ordering::SeqCst);
    assert!(node.archive.flush().await.is_err());
    assert!(node.archive.status().await.expect("a status").last_error.expect("an error").contains("the answer was lost"));
    assert!(node.archive.flush().await.is_err());
    assert_eq!(node.archive.flush().await.expect("flushed").len(), 1);
    let keys = node.flaky.keys.lock().expect("no panic").clone();
    assert!(keys.len() == 3 && keys.iter().all(|key| *key == keys[0]), "{keys:?}");
    assert!(node.archive.status().await.expect("a status").last_error.is_none());
}

#[tokio::test]
async fn s38_forged_and_damaged_packs_are_left_out_by_name() {
    let folder = tempfile::tempdir().expect("a folder");
    let first = node(folder.path(), 1).await;
    let mut keys = Vec::new();
    for tag in ["a", "b", "c"] {
        push(&first.store, tag, &[b"{}", tag.as_bytes()]);
        keys.push(first.archive.flush().await.expect("flushed").remove(0).key);
    }
    // A footer that somebody else changed; a pack cut short; a name that is none; a pack under another's name.
    let path = |key: &str| folder.path().join(key);
    let mut forged = std::fs::read(path(&keys[0])).expect("readable");
    let at = forged.len() - 500;
    forged[at] ^= 1;
    std::fs::write(path(&keys[0]), forged).expect("written");
    let cut = std::fs::read(path(&keys[1])).expect("readable");
    std::fs::write(path(&keys[1]), &cut[..cut.len() - 1]).expect("written");
    std::fs::write(path("v1/packs/readme"), "x").expect("written");
    let renamed = keys[2].replace("000000000003", "000000000009");
    std::fs::copy(path(&keys[2]), path(&renamed)).expect("copied");

    let second = node(&folder.path().join("its-own"), 2).await;
    let url = format!("file://{}", folder.path().display());
    let refused = second.archive.restore(&url, RestoreOptions::default()).await;
    assert!(matches!(&refused, Err(Error::Gaps { gaps, .. }) if gaps.len() == 1), "{refused:?}");
    let options = RestoreOptions { allow_gaps: true, ..RestoreOptions::default() };
    let restored = second.archive.restore(&url, options).await.expect("restored");
    let mut skipped: Vec<&str> = restored.skipped.iter().map(|skipped| skipped.key.as_str()).collect();
    skipped.sort_unstable();
    let mut expected = vec![keys[0].as_str(), &keys[1], &renamed, "v1/packs/readme"];
    expected.sort_unstable();
    assert_eq!(skipped, expected, "{restored:?}");
    assert_eq!((restored.packs, restored.tags), (1, 1));
    // What came behind a gap is not taken for everything.
    assert_eq!(second.store.vector().get(&first.store.origin()), 0);
}

#[tokio::test]
async fn two_clusters_in_one_bucket_are_told_apart() {
    let folder = tempfile::tempdir().expect("a folder");
    let first = node(folder.path(), 1).await;
    push(&first.store, "v1", &[b"{}", &[1]]);
    first.archive.flush().await.expect("flushed");
    let second = node(folder.path(), 2).await;
    push(&second.store, "v1", &[b"{}", &[2]]);
    let refused = second.archive.flush().await;
    assert!(matches!(&refused, Err(Error::OtherCluster { cluster, .. }) if *cluster == hex::encode(first.store.cluster())), "{refused:?}");
    // As programs of before have left it: without a mark.
    let mark = folder.path().join("v1/cluster");
    std::fs::remove_file(&mark).expect("removed");
    second.archive.flush().await.expect("flushed");
    std::fs::remove_file(&mark).expect("removed");
    let third = node(&folder.path().join("its-own"), 3).await;
    let url = format!("file://{}", folder.path().display());
    let refused = third.archive.restore(&url, RestoreOptions::default()).await;
    assert!(
        matches!(&refused, Err(Error::Strangers { strangers, .. }) if strangers.len() == 2),
        "nobody says whom to believe: {refused:?}"
    );
    let options = RestoreOptions { trust: vec![first.store.origin().node, second.store.origin().node], ..RestoreOptions::default() };
    let restored = third.archive.restore(&url, options).await;
    assert!(matches!(&restored, Err(Error::Clusters { clusters, .. }) if clusters.len() == 2), "{restored:?}");
    let nowhere = third.archive.restore(&format!("file://{}", folder.path().join("nothing").display()), RestoreOptions::default()).await;
    assert!(matches!(&nowhere, Err(Error::Url { .. })), "{nowhere:?}");
    let empty = third.archive.restore(&format!("file://{}", folder.path().join("its-own").display()), RestoreOptions::default()).await;
    assert!(matches!(&empty, Err(Error::NoPacks { .. })), "{empty:?}");
}

#[tokio::test]
async fn f38_an_emptied_bucket_gets_nothing_until_somebody_says_so() {
    let folder = tempfile::tempdir().expect("a folder");
    let node = node(folder.path(), 1).await;
    push(&node.store, "v1", &[b"{}", b"one"]);
    node.archive.flush().await.expect("flushed");
    std::fs::remove_dir_all(folder.path().join("v1")).expect("emptied");
    // It is looked at once a day, and after each start.
    node.archive.inner.turn.lock().await.checked = None;
    push(&node.store, "v2", &[b"{}", b"two"]);
    assert!(matches!(node.archive.flush().await, Err(Error::Replaced { .. })));
    assert!(matches!(node.archive.checkpoint().await, Err(Error::Replaced { .. })));
    assert!(!folder.path().join("v1").exists());
    assert_eq!(node.archive.start_over().await.expect("forgotten"), 1);
    assert_eq!(node.archive.flush().await.expect("flushed").len(), 1);
    let fresh = super::tests::node(&folder.path().join("its-own"), 2).await;
    let restored =
        fresh.archive.restore(&format!("file://{}", folder.path().display()), RestoreOptions::default()).await.expect("restored");
    assert_eq!((restored.tags, restored.gaps.len()), (2, 0));
    assert!(pull(&fresh, b"one").await && pull(&fresh, b"two").await);
}

#[tokio::test]
async fn a_restored_node_goes_on_archiving_and_can_be_restored_again() {
    let folder = tempfile::tempdir().expect("a folder");
    let url = format!("file://{}", folder.path().display());
    let first = node(folder.path(), 1).await;
    push(&first.store, "v1", &[b"{}", b"one"]);
    first.archive.flush().await.expect("flushed");
    let second = node(folder.path(), 2).await;
    second.archive.restore(&url, RestoreOptions::default()).await.expect("restored");
    assert!(second.archive.flush().await.expect("flushed").is_empty(), "what was restored is archived already");
    push(&second.store, "v2", &[b"{}", b"two"]);
    assert_eq!(second.archive.flush().await.expect("flushed").len(), 1);
    let third = node(folder.path(), 3).await;
    // Nobody of the lost ones could name the second.
    let options = RestoreOptions { trust: vec![second.store.origin().node], ..RestoreOptions::default() };
    let restored = third.archive.restore(&url, options).await.expect("restored");
    assert_eq!((restored.packs, restored.tags, restored.skipped.len()), (2, 2, 0));
    assert!(pull(&third, b"one").await && pull(&third, b"two").await);
}

#[tokio::test]
async fn a_blob_that_nobody_has_is_named_and_archived_when_it_comes() {
    let folder = tempfile::tempdir().expect("a folder");
    let (first, second) = (node(&folder.path().join("a"), 1).await, node(&folder.path().join("b"), 2).await);
    push(&first.store, "v1", &[b"{}", b"late"]);
    // The records arrive, the blobs don't; the first node has no bucket that the second knows of, so the second archives for it.
    let (origin, vector) = (first.store.origin(), first.store.vector());
    second.store.apply(first.store.tail(&origin, 0, 100).expect("readable"), &vector).expect("merged");
    assert_eq!(second.archive.flush().await.expect("flushed").len(), 1);
    let mut missing = second.archive.status().await.expect("a status").missing;
    missing.sort();
    let mut expected = vec![Digest::sha256(b"{}"), Digest::sha256(b"late")];
    expected.sort();
    assert_eq!(missing, expected);
    // Missing blobs alone are no reason for a pack.
    assert!(second.archive.flush().await.expect("flushed").is_empty());

    for bytes in [&b"{}"[..], b"late"] {
        let digest = Digest::sha256(bytes);
        let link = second.store.link(&app(), &digest).expect("readable").expect("linked");
        let mut staging = second.store.stage(digest, link).expect("staged");
        staging.append(Bytes::from_static(bytes)).await.expect("appended");
        staging.finish().await.expect("the right bytes");
    }
    push(&second.store, "v2", &[b"{}"]);
    assert_eq!(second.archive.flush().await.expect("flushed").len(), 1);
    assert!(second.archive.status().await.expect("a status").missing.is_empty());
    assert_eq!(second.store.locations(&Digest::sha256(b"late")).expect("readable").len(), 1);
}

#[tokio::test]
async fn the_loop_seals_what_has_waited_long_enough_and_then_rests() {
    let folder = tempfile::tempdir().expect("a folder");
    let mut node = node(folder.path(), 1).await;
    Arc::get_mut(&mut node.archive.inner).expect("not shared yet").settings.max_delay = Duration::from_millis(20);
    let tasks = Tasks::default();
    node.archive.start(Arc::new(|_, _| Box::pin(async { false })), &tasks);
    for round in 1..=2usize {
        push(&node.store, "v1", &[b"{}", &[round as u8]]);
        let written = async {
            while node.store.packs(None, 9).expect("readable").len() < round {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        };
        tokio::time::timeout(Duration::from_secs(20), written).await.expect("a pack in time");
    }
    assert!(tasks.stop(Duration::from_secs(5)).await);
    assert_eq!(node.flaky.keys.lock().expect("no panic").len(), 2);
}
