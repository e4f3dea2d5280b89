//! Is the bucket what was written? What a look at it finds, and what is made of that.

use super::checkpoints::{archived, restored};
use super::*;

fn change(path: &std::path::Path, at: u64) {
    let mut bytes = std::fs::read(path).expect("readable");
    bytes[at as usize] ^= 1;
    std::fs::write(path, bytes).expect("written");
}

fn all() -> Option<Subset> {
    Some(Subset { part: 1, of: 1 })
}

#[tokio::test]
async fn a_bucket_that_is_whole_takes_two_listings_and_says_so() {
    let folder = tempfile::tempdir().expect("a folder");
    let node = node(folder.path(), 1).await;
    for number in 0..3 {
        archived(&node, &format!("v{number}")).await;
    }
    let before = node.archive.inner.ledger.tally().requests;
    let verified = node.archive.verify(None, false).await.expect("looked");
    assert_eq!((verified.packs, verified.objects, verified.is_whole(), verified.orphans.len()), (3, 3, true, 0));
    let after = node.archive.inner.ledger.tally().requests;
    assert_eq!((after.list - before.list, after.get - before.get), (2, 0));
    assert_eq!(node.archive.status().await.expect("a status").verified, Some(verified));
    // Read as well: the end and the blobs of each.
    let read = node.archive.verify(all(), false).await.expect("read").read.expect("read");
    assert_eq!((read.packs, read.blobs, read.damaged.len(), read.unreadable.len()), (3, 3 + 3 + 2, 0, 0));
    assert_eq!(node.archive.inner.ledger.tally().requests.get - after.get, 2 * 3);
}

#[tokio::test]
async fn f31_f35_what_is_missing_short_or_damaged_is_found_and_written_anew() {
    let folder = tempfile::tempdir().expect("a folder");
    let first = node(folder.path(), 1).await;
    let mut keys = Vec::new();
    for number in 0..4 {
        keys.push(archived(&first, &format!("v{number}")).await);
    }
    let path = |key: &str| folder.path().join(key);
    std::fs::remove_file(path(&keys[1])).expect("removed");
    let cut = std::fs::read(path(&keys[2])).expect("readable");
    std::fs::write(path(&keys[2]), &cut[..cut.len() - 700]).expect("written");
    std::fs::write(path("v1/packs/readme"), "x").expect("written");
    let (_, pack) = first.store.packs(None, 9).expect("readable").remove(3);
    let place = pack.contents.iter().find(|place| place.digest == Digest::sha256(b"v3")).expect("in it");
    change(&path(&keys[3]), place.offset);

    let found = first.archive.verify(all(), false).await.expect("looked");
    assert_eq!((found.missing.as_slice(), found.wrong_size.len()), (&keys[1..2], 1));
    assert_eq!(found.orphans, ["v1/packs/readme"]);
    let read = found.read.as_ref().expect("read");
    assert_eq!(read.damaged.iter().map(|it| it.digest).collect::<Vec<_>>(), [Digest::sha256(b"v3")]);
    assert!(!found.is_whole() && found.mended == 0);

    let mended = first.archive.verify(all(), true).await.expect("mended");
    assert_eq!(mended.mended, 3);
    let again = first.archive.verify(all(), false).await.expect("looked");
    assert!(again.is_whole(), "{again:?}");
    // What is left in a pack is read from there, what it had lost from another one.
    std::fs::remove_file(path("v1/packs/readme")).expect("removed");
    let own = tempfile::tempdir().expect("a folder");
    let (fresh, restored) = restored(folder.path(), own.path(), RestoreOptions::default()).await;
    assert_eq!(restored.expect("restored").tags, 4);
    for blob in [&b"v0"[..], b"v1", b"v2", b"v3", b"shared", b"{}"] {
        assert!(pull(&fresh, blob).await);
    }
}

#[tokio::test]
async fn f35_a_manifest_that_is_damaged_in_the_bucket_is_in_a_checkpoint_afterwards() {
    let folder = tempfile::tempdir().expect("a folder");
    let first = node(folder.path(), 1).await;
    let key = archived(&first, "v1").await;
    let manifest = first.store.tag(&app(), &"v1".parse().expect("a tag")).expect("readable").expect("there").digest;
    let (_, pack) = first.store.packs(None, 9).expect("readable").remove(0);
    let place = pack.contents.iter().find(|place| place.digest == manifest).expect("in it");
    change(&folder.path().join(&key), place.offset);
    // The end can't be read, since the manifest is a part of it.
    let found = first.archive.verify(all(), true).await.expect("looked");
    assert!(found.read.is_some_and(|read| read.unreadable.len() == 1) && found.mended == 1);
    let own = tempfile::tempdir().expect("a folder");
    let (fresh, restored) = restored(folder.path(), own.path(), RestoreOptions::default()).await;
    let restored = restored.expect("restored");
    assert!(restored.checkpoint.is_some() && restored.tags == 1, "{restored:?}");
    assert!(pull(&fresh, b"v1").await);
}

#[tokio::test]
async fn the_loop_looks_at_the_bucket_once_in_a_while_and_tells() {
    let folder = tempfile::tempdir().expect("a folder");
    let mut node = node(folder.path(), 1).await;
    let key = archived(&node, "v1").await;
    std::fs::remove_file(folder.path().join(&key)).expect("removed");
    Arc::get_mut(&mut node.archive.inner).expect("not shared yet").settings.verify_period = Duration::from_millis(50);
    let tasks = Tasks::default();
    node.archive.start(Arc::new(|_, _| Box::pin(async { false })), &tasks);
    let told = async {
        while node.archive.status().await.expect("a status").verified.is_none() {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(20), told).await.expect("a look in time");
    let verified = node.archive.status().await.expect("a status").verified.expect("looked");
    assert_eq!((verified.missing, verified.read), (vec![key], None));
    assert_eq!(node.archive.inner.metrics.archive_wrong_packs.get(), 1);
    assert!(tasks.stop(Duration::from_secs(5)).await);
}
