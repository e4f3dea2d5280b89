//! Packs whose ends are damaged: what a walk through them brings back.

use std::path::Path;

use larder_protocol::pack::{FOOTER_SIZE, Footer};

use super::checkpoints::{archived, restored, url};
use super::*;

fn damage(path: &Path, at: impl FnOnce(&Footer, usize) -> usize) {
    let mut bytes = std::fs::read(path).expect("readable");
    let size = bytes.len();
    let footer = Footer::parse(&bytes[size - FOOTER_SIZE as usize..], size as u64, super::super::tail::verify).expect("a pack");
    bytes[at(&footer, size)] ^= 1;
    std::fs::write(path, bytes).expect("written");
}

#[tokio::test]
async fn f34_with_a_damaged_index_a_pack_is_walked_and_nothing_is_lost() {
    let (folder, own) = (tempfile::tempdir().expect("a folder"), tempfile::tempdir().expect("a folder"));
    let (first, layer) = (node(folder.path(), 1).await, layer());
    push(&first.store, "v1", &[b"{}", &layer, b"small"]);
    let key = first.archive.flush().await.expect("flushed").remove(0).key;
    archived(&first, "v2").await;
    damage(&folder.path().join(&key), |footer, _| footer.index.offset as usize + 9);
    let (second, restored) = restored(folder.path(), own.path(), RestoreOptions::default()).await;
    let restored = restored.expect("its records are signed");
    assert_eq!((restored.tags, restored.gaps.len(), restored.skipped.len()), (2, 0, 1), "{restored:?}");
    assert!(restored.skipped[0].why.contains("4 whole blobs"), "{}", restored.skipped[0].why);
    assert_eq!(second.store.vector().get(&first.store.origin()), first.store.vector().get(&first.store.origin()) - 1);
    for blob in [&b"{}"[..], b"small", b"v2", &layer] {
        assert!(pull(&second, blob).await);
    }
}

#[tokio::test]
async fn f34_with_a_damaged_footer_blobs_are_had_and_records_are_not_believed() {
    let (folder, own) = (tempfile::tempdir().expect("a folder"), tempfile::tempdir().expect("a folder"));
    let first = node(folder.path(), 1).await;
    let key = archived(&first, "v1").await;
    // It has a layer that lies in the first pack alone.
    push_to(&first.store, &"team/other".parse().expect("a name"), "v2", &[b"{}", b"v2", b"shared"]);
    first.archive.flush().await.expect("flushed");
    damage(&folder.path().join(&key), |_, size| size - 300);
    let (second, refused) = restored(folder.path(), own.path(), RestoreOptions::default()).await;
    assert!(matches!(&refused, Err(Error::Gaps { gaps, .. }) if gaps.len() == 1), "{refused:?}");
    let options = RestoreOptions { allow_gaps: true, ..RestoreOptions::default() };
    let restored = second.archive.restore(&url(folder.path()), options).await.expect("restored");
    assert_eq!((restored.tags, restored.skipped.len()), (1, 1), "{restored:?}");
    for bytes in [&b"v2"[..], b"shared"] {
        let digest = Digest::sha256(bytes);
        let link = second.store.link(&"team/other".parse().expect("a name"), &digest).expect("readable").expect("linked");
        let mut staging = second.store.stage(digest, link).expect("staged");
        assert!(second.archive.fill(&mut staging).await.expect("filled"));
        staging.finish().await.expect("the right bytes");
    }
}

#[tokio::test]
async fn f34_of_a_walked_pack_only_whole_blobs_are_findable() {
    let (folder, own) = (tempfile::tempdir().expect("a folder"), tempfile::tempdir().expect("a folder"));
    let first = node(folder.path(), 1).await;
    let key = archived(&first, "v1").await;
    let (_, pack) = first.store.packs(None, 9).expect("readable").remove(0);
    let place = pack.contents.iter().find(|located| located.digest == Digest::sha256(b"shared")).expect("in it").offset;
    let path = folder.path().join(&key);
    damage(&path, |footer, _| footer.index.offset as usize + 9);
    let mut bytes = std::fs::read(&path).expect("readable");
    bytes[place as usize] ^= 1;
    std::fs::write(&path, bytes).expect("written");
    let (second, restored) = restored(folder.path(), own.path(), RestoreOptions::default()).await;
    let restored = restored.expect("restored");
    assert!(restored.skipped[0].why.contains("3 whole blobs, 1 are damaged"), "{}", restored.skipped[0].why);
    assert!(pull(&second, b"v1").await);
    assert!(second.store.locations(&Digest::sha256(b"shared")).expect("readable").is_empty());
}

#[tokio::test]
async fn f34_a_pack_that_is_no_tar_at_all_is_named_and_passed_over() {
    let (folder, own) = (tempfile::tempdir().expect("a folder"), tempfile::tempdir().expect("a folder"));
    let first = node(folder.path(), 1).await;
    archived(&first, "v1").await;
    let key = archived(&first, "v2").await;
    std::fs::write(folder.path().join(&key), vec![7; 10_000]).expect("written");
    let (_second, restored) = restored(folder.path(), own.path(), RestoreOptions::default()).await;
    let restored = restored.expect("nothing behind it shows that something is missing");
    assert_eq!((restored.tags, restored.skipped.len()), (1, 1));
    assert!(restored.skipped[0].why.contains("0 whole blobs (as far as it could be read"), "{}", restored.skipped[0].why);
}
