//! Compaction of packs that must thaw before they can be read: nothing opens them.

use larder_protocol::record::{Key, Located, PackId, Value};

use super::checkpoints::{restored, url};
use super::compaction::{delete, large, packs_in};
use super::*;

/// A class of a vendor whose packs are paid for by the day.
const COLD: &str = "frozen:Cold";

/// A node that puts layers as [`COLD`].
async fn cold(folder: &std::path::Path, seed: u8) -> Node {
    let mut node = node(folder, seed).await;
    let inner = Arc::get_mut(&mut node.archive.inner).expect("not shared");
    inner.settings.bulk = Some(COLD.parse().expect("a class"));
    node
}

fn is_cold(key: &str) -> bool {
    key.contains("/00000000") && key.ends_with(".frozen-Cold.tar")
}

/// A layer that is half of its pack, and more.
fn larger(number: u8) -> Vec<u8> {
    vec![number; 900_000]
}

/// Three packs of layers: of one nothing counts, of one less than half does, of the last all; and a pack beside each with everything else.
async fn fill(node: &Node) {
    push(&node.store, "v1", &[b"{}", &large(1)]);
    node.archive.flush().await.expect("flushed");
    push(&node.store, "v2", &[b"{}", &larger(2), &large(3), &large(5)]);
    node.archive.flush().await.expect("flushed");
    push(&node.store, "v4", &[b"{}", &large(3), &large(4), &large(5)]);
    node.archive.flush().await.expect("flushed");
    delete(node, "v1", &[&large(1)]);
    delete(node, "v2", &[&larger(2)]);
}

/// Where the catalogue says that a blob lies, it lies; without thawing anything.
fn lies(node: &Node, folder: &std::path::Path, blob: &[u8]) -> Vec<String> {
    let places = node.store.locations(&Digest::sha256(blob)).expect("readable").into_iter();
    let lies = places.map(|(id, offset, length)| {
        let key = node.store.pack(&id).expect("readable").expect("in the catalogue").object_key;
        let bytes = std::fs::read(folder.join(&key)).expect("in the bucket");
        assert_eq!(&bytes[offset as usize..(offset + length) as usize], blob, "{key}");
        key
    });
    lies.collect()
}

/// What a restore knows of the layers that are left, and that the rest of the images is there.
async fn check(folder: &std::path::Path) {
    let own = tempfile::tempdir().expect("a folder");
    let (fresh, restored) = restored(folder, own.path(), RestoreOptions::default()).await;
    let restored = restored.expect("restored");
    assert_eq!((restored.tags, restored.gaps.len()), (1, 0), "{restored:?}");
    for number in 3..=5 {
        assert_eq!(lies(&fresh, folder, &large(number)).len(), 1, "{number}");
    }
    assert!(pull(&fresh, b"{}").await);
}

#[tokio::test]
async fn f39_what_is_frozen_goes_by_proof_and_is_never_opened() {
    let folder = tempfile::tempdir().expect("a folder");
    let node = cold(folder.path(), 1).await;
    fill(&node).await;
    let first: Vec<String> =
        node.archive.packs().await.expect("packs").into_iter().map(|pack| pack.key).filter(|key| is_cold(key)).collect();
    assert_eq!(first.len(), 3, "{first:?}");
    let plan = node.archive.plan_compaction().await.expect("planned");
    assert_eq!(plan.drops.iter().filter(|it| is_cold(&it.key)).count(), 1, "{plan:?}");
    let rewrites: Vec<_> = plan.rewrites.iter().filter(|group| group.packs.iter().any(|it| is_cold(&it.key))).collect();
    // What all counts in is small, and goes along.
    assert_eq!((rewrites.len(), rewrites[0].packs.len(), rewrites[0].spent.reading), (1, 2, 0.0), "{plan:?}");

    let done = node.archive.compact().await.expect("compacted").outcome;
    assert!(first.iter().all(|key| done.deleted.contains(key)) && done.waiting.is_empty(), "{done:?}");
    let written: Vec<_> = done.written.iter().filter(|key| is_cold(key)).collect();
    assert_eq!(written.len(), 1, "layers go into a pack of layers: {done:?}");
    assert_eq!(lies(&node, folder.path(), &large(3)), vec![written[0].clone()]);
    check(folder.path()).await;
    let verified = node.archive.verify(None, false).await.expect("looked");
    assert!(verified.is_whole() && verified.orphans.is_empty() && verified.retired == 0, "{verified:?}");
    assert_eq!(node.flaky.frozen_gets.load(Ordering::SeqCst), 0);
    assert!(node.store.settings("archive/retired").expect("readable").is_empty(), "no row is left");
}

#[tokio::test]
async fn f39_a_frozen_pack_stays_whose_blobs_are_on_no_disk() {
    let folder = tempfile::tempdir().expect("a folder");
    let node = cold(folder.path(), 1).await;
    fill(&node).await;
    let held = lies(&node, folder.path(), &large(3));
    assert!(node.store.evict(&Digest::sha256(&large(3))).expect("evicted").is_some());
    let done = node.archive.compact().await.expect("compacted").outcome;
    assert!(done.deleted.iter().filter(|key| is_cold(key)).count() >= 1 && !done.deleted.contains(&held[0]), "{done:?}");
    assert_eq!(lies(&node, folder.path(), &large(3)), held, "its old place counts");
    assert_eq!(lies(&node, folder.path(), &large(5)), held, "what is beside it is not put a second time");
    assert_eq!(node.flaky.frozen_gets.load(Ordering::SeqCst), 0, "nothing is thawed, and nobody asks whether it has");
    check(folder.path()).await;
}

#[tokio::test]
async fn f39_what_can_be_read_is_not_let_go_for_what_is_frozen() {
    let folder = tempfile::tempdir().expect("a folder");
    let node = node(folder.path(), 1).await;
    push(&node.store, "v1", &[b"{}", &large(1)]);
    let warm = node.archive.flush().await.expect("flushed").remove(0);
    for tag in ["v2", "v3"] {
        push(&node.store, tag, &[b"{}", tag.as_bytes()]);
        node.archive.flush().await.expect("flushed");
    }
    // Somebody has put it as a frozen pack as well, later.
    let id = PackId { sequence: 1_000, origin: node.store.packs(None, 1).expect("readable")[0].0.origin };
    let object_key = keys::pack_of("", &id, &COLD.parse().expect("a class"));
    let contents = vec![Located { digest: Digest::sha256(&large(1)), offset: 0, length: 300_000 }];
    let bucket = node.archive.bucket().expect("a bucket");
    let archived = Archived { bucket, object_key: object_key.clone(), size: 300_000, created_ms: writer::now_ms(), records: 0, contents };
    let records = vec![(Key::Archived(id), Some(Value::Archived(archived)))];
    node.store.commit(crate::store::Commit { records, settings: Vec::new() }).expect("committed");
    std::fs::write(folder.path().join(&object_key), large(1)).expect("written");

    let plan = node.archive.plan_compaction().await.expect("planned");
    assert_eq!(plan.drops.iter().map(|it| it.key.as_str()).collect::<Vec<_>>(), [object_key.as_str()], "{plan:?}");
    let done = node.archive.compact().await.expect("compacted").outcome;
    assert_eq!(done.deleted, [object_key], "{done:?}");
    assert_eq!(lies(&node, folder.path(), &large(1)), [warm.key]);
    // Where it is taken off all the same, by hand, it does not go.
    let ranks = Arc::new(node.archive.inner.ranks(&node.archive.bucket().expect("a bucket")).await.expect("readable"));
    let bucket = node.archive.inner.bucket.clone().expect("a bucket");
    let first = node.store.packs(None, 1).expect("readable")[0].0;
    assert!(!node.archive.inner.retire(&bucket, first, &ranks).await.expect("refused"));
}

#[tokio::test]
async fn f39_a_blob_that_is_linked_again_keeps_its_frozen_pack() {
    let folder = tempfile::tempdir().expect("a folder");
    let node = cold(folder.path(), 1).await;
    fill(&node).await;
    node.flaky.locked.store(true, Ordering::SeqCst);
    let begun = node.archive.compact().await.expect("compacted").outcome;
    assert!(begun.refused.iter().any(|it| is_cold(&it.key)), "{begun:?}");
    // Somebody pushed it before he heard that it is off the catalogue; its place comes back as it was written down.
    push(&node.store, "v5", &[b"{}", &large(1)]);
    let mut dead = node.store.packs(None, 99).expect("readable");
    dead.retain(|(_, archived)| archived.contents.iter().any(|place| place.digest == Digest::sha256(&large(1))));
    assert!(dead.is_empty(), "{dead:?}");
    node.flaky.locked.store(false, Ordering::SeqCst);
    let done = node.archive.inner.compact(false).await.expect("ended").outcome;
    assert!(done.deleted.iter().any(|key| is_cold(key)), "what nobody links goes: {done:?}");
    assert_eq!(lies(&node, folder.path(), &large(1)).len(), 1, "it is in the catalogue again");
}

#[tokio::test]
async fn f39_a_node_that_has_lost_its_disk_can_not_tell_what_lay_in_frozen_packs_and_lets_them_be() {
    let folder = tempfile::tempdir().expect("a folder");
    let first = cold(folder.path(), 1).await;
    fill(&first).await;
    first.flaky.locked.store(true, Ordering::SeqCst);
    let begun = first.archive.compact().await.expect("compacted").outcome;
    let frozen = begun.refused.iter().filter(|it| is_cold(&it.key)).count();
    assert_eq!(frozen, 3, "{begun:?}");
    drop(first);
    let again = cold(folder.path(), 1).await;
    again.archive.restore(&url(folder.path()), RestoreOptions::default()).await.expect("restored");
    push(&again.store, "v9", &[b"{}", b"v9"]);
    again.archive.flush().await.expect("flushed");
    let done = again.archive.compact().await.expect("compacted").outcome;
    let waiting: Vec<_> = done.waiting.iter().filter(|it| is_cold(&it.key)).collect();
    assert_eq!(waiting.len(), 3, "{done:?}");
    assert!(waiting.iter().all(|it| it.why.contains("must thaw")), "{done:?}");
    assert!(packs_in(folder.path()) >= 5 && done.deleted.iter().all(|key| !is_cold(key)), "{done:?}");
}
