//! Compaction through the room's door: what goes, what stays, and what a restore finds at each moment.

use larder_protocol::record::{Key, Value};

use super::checkpoints::{archived, checkpoints, restored};
use super::*;

/// Deletes an image, and these blobs of it.
pub(super) fn delete(node: &Node, tag: &str, blobs: &[&[u8]]) {
    let info = node.store.tag(&app(), &tag.parse().expect("a tag")).expect("readable").expect("there");
    assert!(node.store.delete_manifest(&app(), &info.digest).expect("deleted"));
    for blob in blobs {
        assert!(node.store.unlink(&app(), &Digest::sha256(blob)).expect("unlinked"));
    }
}

pub(super) fn packs_in(folder: &std::path::Path) -> usize {
    let writers = std::fs::read_dir(folder.join("v1/packs")).expect("packs").map(|entry| entry.expect("an entry").path());
    writers.map(|writer| std::fs::read_dir(writer).expect("packs").count()).sum()
}

/// A layer of which nothing will be left.
pub(super) fn large(number: u8) -> Vec<u8> {
    vec![number; 300_000]
}

/// Five packs: two that are mostly dead, one that is dead, a small one, and the newest.
async fn shrunk(folder: &std::path::Path) -> Node {
    let node = node(folder, 1).await;
    fill(&node).await;
    node
}

async fn fill(node: &Node) {
    push(&node.store, "v0", &[b"{}", b"v0", b"shared"]);
    push(&node.store, "v1", &[b"{}", &large(1)]);
    node.archive.flush().await.expect("flushed");
    push(&node.store, "v2", &[b"{}", &large(2)]);
    node.archive.flush().await.expect("flushed");
    push(&node.store, "v3", &[b"{}", b"v3", b"shared"]);
    push(&node.store, "v6", &[b"{}", &large(6)]);
    node.archive.flush().await.expect("flushed");
    for tag in ["v4", "v5"] {
        archived(node, tag).await;
    }
    for (tag, number) in [("v1", 1), ("v2", 2), ("v6", 6)] {
        delete(node, tag, &[&large(number)]);
    }
}

/// A restore brings every image that is left, every blob of it, and no gap.
async fn check(folder: &std::path::Path, tags: u64) {
    let own = tempfile::tempdir().expect("a folder");
    let (fresh, restored) = restored(folder, own.path(), RestoreOptions::default()).await;
    let restored = restored.expect("restored");
    assert_eq!((restored.tags, restored.gaps.len()), (tags, 0), "{restored:?}");
    for blob in [&b"v0"[..], b"v3", b"v4", b"v5", b"shared", b"{}"] {
        assert!(pull(&fresh, blob).await, "{blob:?}");
    }
}

fn wait(node: &mut Node, wait: Duration) {
    Arc::get_mut(&mut node.archive.inner).expect("not shared").settings.compact.wait = wait;
}

#[tokio::test]
async fn f39_what_is_dead_goes_and_what_counts_stands_in_new_packs() {
    let folder = tempfile::tempdir().expect("a folder");
    let node = shrunk(folder.path()).await;
    let plan = node.archive.plan_compaction().await.expect("planned");
    assert_eq!((plan.packs, plan.drops.len(), plan.rewrites.len()), (5, 1, 1), "{plan:?}");
    assert_eq!((plan.rewrites[0].packs.len(), packs_in(folder.path())), (3, 5), "nothing was done");

    let done = node.archive.compact().await.expect("compacted").outcome;
    assert_eq!((done.written.len(), done.retired, done.deleted.len(), done.refused.len()), (1, 4, 4, 0), "{done:?}");
    assert_eq!((packs_in(folder.path()), checkpoints(folder.path()).len()), (3, 2), "the tombstones went into one of their own");
    check(folder.path(), 4).await;
    let verified = node.archive.verify(Some(Subset { part: 1, of: 1 }), false).await.expect("looked");
    assert!(verified.is_whole() && verified.orphans.is_empty() && verified.retired == 0, "{verified:?}");
    let read = verified.read.expect("read");
    assert_eq!((read.packs, read.damaged.len()), (3, 0));
    // Deletes were counted, and pushes were not counted twice.
    let tally = node.archive.inner.ledger.tally();
    assert_eq!((tally.requests.delete, tally.pushes), (4, 7));
    // Nothing is left to do, and that is asked of nobody.
    let before = node.archive.inner.ledger.tally().requests;
    node.archive.inner.compact(false).await.expect("nothing to do");
    assert_eq!(node.archive.inner.ledger.tally().requests, before);
}

#[tokio::test]
async fn f39_at_each_moment_a_restore_brings_everything() {
    let folder = tempfile::tempdir().expect("a folder");
    let mut node = shrunk(folder.path()).await;
    wait(&mut node, Duration::from_millis(1500));
    tokio::time::sleep(Duration::from_millis(1600)).await;
    let begun = node.archive.compact().await.expect("compacted").outcome;
    assert_eq!((begun.retired, begun.deleted.len(), begun.waiting.len()), (4, 0, 4), "{begun:?}");
    assert!(begun.waiting[0].why.contains("compact_wait"), "{begun:?}");
    // The old packs are there still, and a restore is not led to them.
    check(folder.path(), 4).await;
    let verified = node.archive.verify(None, false).await.expect("looked");
    assert_eq!((verified.is_whole(), verified.orphans.len(), verified.retired), (true, 0, 4));
    tokio::time::sleep(Duration::from_millis(1600)).await;
    let done = node.archive.inner.compact(false).await.expect("ended").outcome;
    assert_eq!((done.deleted.len(), done.checkpoints), (4, 1), "by itself, since it was asked for: {done:?}");
    check(folder.path(), 4).await;
    // Without its newest checkpoint the one before says the same.
    let newest = checkpoints(folder.path()).pop().expect("two");
    std::fs::write(&newest, b"damaged").expect("written");
    check(folder.path(), 4).await;
}

#[tokio::test]
async fn f39_a_blob_that_is_linked_again_keeps_its_pack() {
    let folder = tempfile::tempdir().expect("a folder");
    let mut node = shrunk(folder.path()).await;
    wait(&mut node, Duration::from_millis(300));
    tokio::time::sleep(Duration::from_millis(400)).await;
    assert_eq!(node.archive.compact().await.expect("compacted").outcome.retired, 4);
    assert!(node.store.locations(&Digest::sha256(&large(1))).expect("readable").is_empty(), "nobody relies on it any more");
    // Somebody did before he heard: it is linked, and in no pack; and checkpoints say so.
    let mut upload = node.store.create_upload(&app(), Algorithm::Sha256, "").expect("a session");
    upload.append(&large(1)).expect("append");
    upload.finish(Digest::sha256(&large(1))).expect("finish");
    push(&node.store, "v7", &[b"{}", b"v7"]);
    node.archive.flush().await.expect("flushed");
    for _ in 0..2 {
        node.archive.checkpoint().await.expect("written");
    }
    tokio::time::sleep(Duration::from_millis(400)).await;
    let done = node.archive.inner.compact(false).await.expect("ended").outcome;
    assert_eq!(done.deleted.len(), 3, "{done:?}");
    assert_eq!(node.store.locations(&Digest::sha256(&large(1))).expect("readable").len(), 1, "it is in the catalogue again");
    node.archive.checkpoint().await.expect("written");
    let own = tempfile::tempdir().expect("a folder");
    let (fresh, restored) = restored(folder.path(), own.path(), RestoreOptions::default()).await;
    assert_eq!(restored.expect("restored").tags, 5);
    assert!(pull(&fresh, &large(1)).await);
}

#[tokio::test]
async fn f39_a_pack_stays_whose_blobs_can_not_be_had() {
    let folder = tempfile::tempdir().expect("a folder");
    let node = shrunk(folder.path()).await;
    assert!(node.store.evict(&Digest::sha256(b"v0")).expect("evicted").is_some());
    let done = node.archive.compact().await.expect("compacted").outcome;
    assert_eq!((done.retired, done.deleted.len()), (3, 3), "{done:?}");
    assert_eq!(node.store.locations(&Digest::sha256(b"v0")).expect("readable").len(), 1, "its old place counts");
    check(folder.path(), 4).await;
}

#[tokio::test]
async fn f39_packs_on_their_way_out_are_out_of_the_catalogue_of_a_restored_node_too() {
    let folder = tempfile::tempdir().expect("a folder");
    let mut node = shrunk(folder.path()).await;
    wait(&mut node, Duration::from_millis(300));
    tokio::time::sleep(Duration::from_millis(400)).await;
    assert_eq!(node.archive.compact().await.expect("compacted").outcome.retired, 4);
    // No checkpoint tells of it, a pack does.
    push(&node.store, "v7", &[b"{}", b"v7"]);
    node.archive.flush().await.expect("flushed");
    checkpoints(folder.path()).iter().for_each(|checkpoint| std::fs::remove_file(checkpoint).expect("removed"));
    let own = tempfile::tempdir().expect("a folder");
    let (fresh, restored) = restored(folder.path(), own.path(), RestoreOptions::default()).await;
    let restored = restored.expect("restored");
    assert_eq!((restored.tags, restored.gaps.len(), packs_in(folder.path())), (5, 0, 8), "{restored:?}");
    assert_eq!(fresh.store.packs(None, 99).expect("readable").len(), 4);
    check(folder.path(), 5).await;
}

#[tokio::test]
async fn f39_what_is_locked_is_told_and_tried_again() {
    let folder = tempfile::tempdir().expect("a folder");
    let node = shrunk(folder.path()).await;
    node.flaky.locked.store(true, Ordering::SeqCst);
    let done = node.archive.compact().await.expect("compacted").outcome;
    assert_eq!((done.deleted.len(), done.refused.len(), packs_in(folder.path())), (0, 4, 7), "{done:?}");
    assert_eq!(node.archive.inner.metrics.compaction_refused.get(), 4);
    check(folder.path(), 4).await;
    node.flaky.locked.store(false, Ordering::SeqCst);
    // And with them the pack that told of what was deleted, which a checkpoint has.
    assert_eq!(node.archive.compact().await.expect("compacted").outcome.deleted.len(), 5);
    assert_eq!(node.archive.inner.metrics.compaction_refused.get(), 0);
    check(folder.path(), 4).await;
}

#[tokio::test]
async fn f39_a_node_that_has_lost_its_disk_ends_what_it_had_begun() {
    let folder = tempfile::tempdir().expect("a folder");
    let first = shrunk(folder.path()).await;
    first.flaky.locked.store(true, Ordering::SeqCst);
    assert_eq!(first.archive.compact().await.expect("compacted").outcome.refused.len(), 4);
    drop(first);
    // The same node, by its key, on an empty disk.
    let again = node(folder.path(), 1).await;
    let restored = again.archive.restore(&checkpoints::url(folder.path()), RestoreOptions::default()).await.expect("restored");
    assert_eq!((restored.tags, restored.gaps.len()), (4, 0), "{restored:?}");
    assert!(again.archive.inner.clone().fill_all().await);
    push(&again.store, "v9", &[b"{}", b"v9"]);
    again.archive.flush().await.expect("flushed");
    let done = again.archive.compact().await.expect("compacted").outcome;
    assert!(done.deleted.len() >= 4 && done.refused.is_empty(), "{done:?}");
    check(folder.path(), 5).await;
}

#[tokio::test]
async fn f39_a_pack_that_is_relied_on_and_can_not_be_read_keeps_the_old_one() {
    let folder = tempfile::tempdir().expect("a folder");
    let mut node = shrunk(folder.path()).await;
    wait(&mut node, Duration::from_millis(300));
    tokio::time::sleep(Duration::from_millis(400)).await;
    let begun = node.archive.compact().await.expect("compacted").outcome;
    let new = folder.path().join(&begun.written[0]);
    let mut bytes = std::fs::read(&new).expect("readable");
    let end = bytes.len() - 100;
    bytes[end] ^= 1;
    std::fs::write(&new, bytes).expect("written");
    tokio::time::sleep(Duration::from_millis(400)).await;
    let done = node.archive.inner.compact(false).await.expect("ended").outcome;
    // What nobody links goes; what the new pack should hold stays.
    assert_eq!((done.deleted.len(), done.waiting.len()), (1, 3), "{done:?}");
    assert!(done.waiting.iter().all(|it| it.why.contains("can't be read")), "{done:?}");
}

/// Says that a node is a member.
fn join(store: &Store, node: &Node) {
    let member = larder_protocol::record::Member {
        name: "node".to_owned(),
        zone: String::new(),
        addresses: Vec::new(),
        bucket: node.archive.bucket(),
        version: "test".to_owned(),
    };
    let records = vec![(Key::Member(node.store.origin().node), Some(Value::Member(member)))];
    store.commit(crate::store::Commit { records, settings: Vec::new() }).expect("committed");
}

/// Two nodes that archive into one bucket, and what each was last told to know.
struct Pair {
    folder: tempfile::TempDir,
    nodes: [Node; 2],
    acked: [Arc<Mutex<VersionVector>>; 2],
}

impl Pair {
    async fn new() -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        let nodes = [node(folder.path(), 1).await, node(folder.path(), 2).await];
        nodes[1].store.adopt_cluster(nodes[0].store.cluster()).expect("one cluster");
        let acked = [Arc::<Mutex<VersionVector>>::default(), Arc::default()];
        for (number, node) in nodes.iter().enumerate() {
            join(&node.store, node);
            let (store, acked) = (node.store.clone(), acked[1 - number].clone());
            node.archive.heard_by(Arc::new(move || {
                let (ours, theirs) = (store.vector(), acked.lock().expect("no panic").clone());
                ours.covers(&theirs).then(|| ours.common(&theirs))
            }));
        }
        let pair = Self { folder, nodes, acked };
        pair.meet();
        pair
    }

    /// Each hears the other out, and then what the other knows.
    fn meet(&self) {
        for (from, to) in [(0, 1), (1, 0)] {
            let exchange = self.nodes[from].store.exchange(&self.nodes[to].store.vector()).expect("readable");
            let vector = exchange.vector().clone();
            let records = exchange.collect::<Result<Vec<_>, _>>().expect("readable");
            self.nodes[to].store.apply(records, &vector).expect("applied");
        }
        for (acked, node) in self.acked.iter().zip(&self.nodes) {
            *acked.lock().expect("no panic") = node.store.vector();
        }
    }

    /// After all has been said and archived, everything that is linked comes from the bucket alone.
    async fn check(&self, blobs: &[Vec<u8>], what: &str) {
        for _ in 0..2 {
            self.meet();
            for node in &self.nodes {
                node.archive.flush().await.expect("flushed");
            }
        }
        let own = tempfile::tempdir().expect("a folder");
        let (fresh, restored) = restored(self.folder.path(), own.path(), RestoreOptions::default()).await;
        let restored = restored.unwrap_or_else(|error| panic!("{what}: {error}"));
        assert!(restored.gaps.is_empty(), "{what}: {restored:?}");
        for blob in blobs {
            let digest = Digest::sha256(blob);
            let linked = |node: &Node| node.store.link(&app(), &digest).expect("readable").is_some();
            let is_linked = linked(&self.nodes[0]);
            assert_eq!(is_linked, linked(&fresh), "{what}: {digest}");
            if is_linked {
                assert!(pull(&fresh, blob).await, "{what}: {digest} is lost");
            }
        }
    }
}

#[tokio::test]
async fn f39_checkpoints_of_a_node_that_knew_less_prove_nothing() {
    let pair = Pair::new().await;
    let [first, second] = &pair.nodes;
    fill(first).await;
    let begun = first.archive.compact().await.expect("compacted").outcome;
    assert_eq!((begun.retired, begun.deleted.len()), (4, 0), "{begun:?}");
    assert!(begun.waiting.iter().all(|it| it.why.contains("member")), "the other has not heard: {begun:?}");
    // Later than all, and of somebody who knows nothing of it.
    for _ in 0..2 {
        second.archive.checkpoint().await.expect("written");
    }
    pair.meet();
    let refused = first.archive.compact().await.expect("compacted").outcome;
    assert_eq!(refused.deleted.len(), 0, "{refused:?}");
    assert!(refused.waiting.iter().any(|it| it.why.contains("does not have all of what it says")), "{refused:?}");
    // It has written others meanwhile.
    pair.meet();
    let done = first.archive.compact().await.expect("compacted").outcome;
    assert!(done.deleted.len() >= 4 && done.checkpoints_deleted >= 2, "{done:?}");
    check(pair.folder.path(), 4).await;
    // A member that comes from far away writes the newest checkpoint, of nothing.
    let third = node(pair.folder.path(), 3).await;
    third.store.adopt_cluster(first.store.cluster()).expect("one cluster");
    join(&first.store, &third);
    first.archive.flush().await.expect("flushed");
    first.archive.checkpoint().await.expect("written");
    third.archive.checkpoint().await.expect("written");
    check(pair.folder.path(), 4).await;
}

#[tokio::test]
async fn f39_two_nodes_that_hear_each_other_seldom_never_let_go_of_a_blob_together() {
    let seeds = std::env::var("SIM_SEEDS").ok().and_then(|text| text.parse().ok()).unwrap_or(6);
    for seed in 0..seeds {
        let mut random = larder_harness::Random::new(seed);
        let pair = Pair::new().await;
        let blobs: Vec<Vec<u8>> = (0..10u8).map(|number| vec![number; 2_000 + usize::from(number) * 30_000]).collect();
        let what = format!("seed {seed}");
        let mut deleted = 0;
        for step in 0..80 {
            let node = &pair.nodes[random.below(2) as usize];
            let chosen = random.below(10) as usize;
            match random.below(10) {
                0..4 => {
                    push(&node.store, &format!("v{}", random.below(6)), &[b"{}", &blobs[chosen], &blobs[random.below(10) as usize]]);
                }
                4 => {
                    // An image goes, and what it alone held.
                    let tag = format!("v{}", random.below(6)).parse().expect("a tag");
                    let Some(info) = node.store.tag(&app(), &tag).expect("readable") else { continue };
                    node.store.delete_manifest(&app(), &info.digest).expect("deleted");
                    for blob in &blobs {
                        let digest = Digest::sha256(blob);
                        if node.store.manifests_naming(&app(), &digest, 1).expect("readable").is_empty() {
                            node.store.unlink(&app(), &digest).expect("unlinked");
                        }
                    }
                }
                5 | 6 => drop(node.archive.flush().await.expect("flushed")),
                7 => pair.meet(),
                _ => deleted += node.archive.compact().await.expect("compacted").outcome.deleted.len(),
            }
            if step % 40 == 39 {
                pair.check(&blobs, &what).await;
            }
        }
        pair.meet();
        for node in pair.nodes.iter().chain(&pair.nodes) {
            deleted += node.archive.compact().await.expect("compacted").outcome.deleted.len();
            pair.meet();
        }
        assert!(deleted > 0, "{what}: nothing was ever deleted");
        pair.check(&blobs, &what).await;
    }
}
