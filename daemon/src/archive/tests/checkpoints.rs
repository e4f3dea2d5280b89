//! Checkpoints, and what a restore makes of them when something is missing or damaged.

use std::path::{Path, PathBuf};

use super::*;

pub(super) fn url(folder: &Path) -> String {
    format!("file://{}", folder.display())
}

pub(super) fn checkpoints(folder: &Path) -> Vec<PathBuf> {
    let mut found: Vec<_> =
        std::fs::read_dir(folder.join("v1/checkpoints")).into_iter().flatten().map(|entry| entry.expect("an entry").path()).collect();
    found.sort();
    found
}

/// Pushes an image and archives it; the key of its pack.
pub(super) async fn archived(node: &Node, tag: &str) -> String {
    push(&node.store, tag, &[b"{}", tag.as_bytes(), b"shared"]);
    node.archive.flush().await.expect("flushed").remove(0).key
}

pub(super) async fn restored(folder: &Path, own: &Path, options: RestoreOptions) -> (Node, Result<Restored, Error>) {
    let node = node(own, 9).await;
    let restored = node.archive.restore(&url(folder), options).await;
    (node, restored)
}

#[tokio::test]
async fn a_restore_reads_the_checkpoint_and_only_the_packs_behind_it() {
    let (folder, own) = (tempfile::tempdir().expect("a folder"), tempfile::tempdir().expect("a folder"));
    let first = node(folder.path(), 1).await;
    for number in 0..6 {
        archived(&first, &format!("v{number}")).await;
    }
    let key = first.archive.checkpoint().await.expect("written");
    push(&first.store, "v6", &[b"{}", b"v6"]);
    first.store.delete_tag(&app(), &"v0".parse().expect("a tag")).expect("deleted");
    first.archive.flush().await.expect("flushed");

    let (second, restored) = restored(folder.path(), own.path(), RestoreOptions::default()).await;
    let restored = restored.expect("restored");
    assert_eq!((restored.packs, restored.tags, restored.checkpoint.as_deref()), (1, 6, Some(key.as_str())), "{restored:?}");
    // The mark, two listings, the checkpoint's end and its body, one pack's end.
    assert_eq!(second.archive.inner.ledger.tally().requests, Requests { list: 2, get: 4, ..Default::default() });
    // All but the record of the last pack itself, which no pack tells of yet.
    let origin = first.store.origin();
    assert_eq!(second.store.vector().get(&origin), first.store.vector().get(&origin) - 1);
    for blob in [&b"v1"[..], b"v6", b"shared"] {
        assert!(pull(&second, blob).await);
    }
    assert!(second.store.tag(&app(), &"v0".parse().expect("a tag")).expect("readable").is_none(), "I4");
}

#[tokio::test]
async fn i7_what_waits_for_a_pack_is_held_back_and_what_was_there_before_is_told() {
    let folder = tempfile::tempdir().expect("a folder");
    let first = node(folder.path(), 1).await;
    for tag in ["v0", "v1", "v4"] {
        archived(&first, tag).await;
    }
    let named = |node: &Node, tag: &str| node.store.tag(&app(), &tag.parse().expect("a tag")).expect("readable").map(|info| info.digest);
    let before = named(&first, "v1");
    // Waiting: one tag moved, one new, one that names what is in the bucket, one deleted.
    push(&first.store, "v1", &[b"{}", b"moved"]);
    push(&first.store, "v2", &[b"{}", b"new"]);
    first.store.restore_tag(&app(), &"v3".parse().expect("a tag"), &before.expect("there")).expect("tagged");
    first.store.delete_tag(&app(), &"v0".parse().expect("a tag")).expect("deleted");
    // I4: deleted, and pushed anew.
    first.store.delete_tag(&app(), &"v4".parse().expect("a tag")).expect("deleted");
    push(&first.store, "v4", &[b"{}", b"anew"]);
    first.archive.checkpoint().await.expect("written");

    let own = tempfile::tempdir().expect("a folder");
    let (second, report) = restored(folder.path(), own.path(), RestoreOptions::default()).await;
    let report = report.expect("restored");
    assert_eq!((report.packs, report.gaps.len()), (0, 0), "{report:?}");
    assert_eq!(["v0", "v1", "v2", "v3", "v4"].map(|tag| named(&second, tag)), [None, before, None, before, None]);
    assert!(second.archive.inner.clone().fill_all().await);
    assert_eq!(second.archive.restoring().await.expect("a progress").lost, 0, "nothing is named that is in no pack");
    let origin = first.store.origin();
    assert!(second.store.vector().get(&origin) < first.store.vector().get(&origin), "what was held back is asked for again");

    // The pack that brings it comes behind the checkpoint.
    first.archive.flush().await.expect("flushed");
    let own = tempfile::tempdir().expect("a folder");
    let (third, report) = restored(folder.path(), own.path(), RestoreOptions::default()).await;
    let report = report.expect("restored");
    assert_eq!((report.packs, report.gaps.len()), (1, 0), "{report:?}");
    for tag in ["v0", "v1", "v2", "v3", "v4"] {
        assert_eq!(named(&third, tag), named(&first, tag), "{tag}");
    }
    assert!(named(&third, "v1") != before && pull(&third, b"moved").await && pull(&third, b"new").await);
}

#[tokio::test]
async fn f33_a_damaged_checkpoint_is_named_and_the_one_before_serves() {
    let (folder, own) = (tempfile::tempdir().expect("a folder"), tempfile::tempdir().expect("a folder"));
    let first = node(folder.path(), 1).await;
    archived(&first, "v1").await;
    first.archive.checkpoint().await.expect("written");
    archived(&first, "v2").await;
    first.archive.checkpoint().await.expect("written");
    archived(&first, "v3").await;
    first.archive.checkpoint().await.expect("written");
    let written = checkpoints(folder.path());
    assert_eq!(written.len(), 3);
    // One page, one footer.
    for (path, at) in [(&written[2], 100), (&written[1], std::fs::metadata(&written[1]).expect("there").len() - 400)] {
        let mut bytes = std::fs::read(path).expect("readable");
        bytes[at as usize] ^= 1;
        std::fs::write(path, bytes).expect("written");
    }
    let (second, restored) = restored(folder.path(), own.path(), RestoreOptions::default()).await;
    let restored = restored.expect("restored");
    assert_eq!((restored.skipped.len(), restored.packs, restored.tags), (2, 2, 3), "{restored:?}");
    assert!(restored.checkpoint.is_some_and(|key| written[0].ends_with(key.rsplit('/').next().expect("a name"))));
    assert!(pull(&second, b"v3").await && pull(&second, b"v1").await);
}

#[tokio::test]
async fn f32_a_pack_that_is_missing_is_told_with_what_is_lost() {
    let (folder, own) = (tempfile::tempdir().expect("a folder"), tempfile::tempdir().expect("a folder"));
    let first = node(folder.path(), 1).await;
    let early = archived(&first, "v1").await;
    let lost = archived(&first, "v2").await;
    archived(&first, "v3").await;
    std::fs::remove_file(folder.path().join(&lost)).expect("removed");
    let (second, refused) = restored(folder.path(), own.path(), RestoreOptions::default()).await;
    let Err(Error::Gaps { gaps, .. }) = refused else { panic!("{refused:?}") };
    assert_eq!(gaps.len(), 1);
    let options = RestoreOptions { allow_gaps: true, ..RestoreOptions::default() };
    let restored = second.archive.restore(&url(folder.path()), options).await.expect("begun again");
    assert_eq!((restored.gaps, restored.tags), (gaps, 2));
    // A later checkpoint knows what the lost pack told.
    first.archive.checkpoint().await.expect("written");
    let third_own = tempfile::tempdir().expect("a folder");
    let third = node(third_own.path(), 3).await;
    let restored = third.archive.restore(&url(folder.path()), RestoreOptions::default()).await.expect("restored");
    assert_eq!((restored.gaps.len(), restored.tags), (0, 3));
    // Before it vouched for the packs it looked at them, and wrote what was lost anew.
    assert!(third.archive.inner.clone().fill_all().await);
    let progress = third.archive.restoring().await.expect("a progress");
    assert_eq!((progress.state.as_str(), progress.lost), ("done", 0));
    // What goes behind its back is lost, and says so.
    std::fs::remove_file(folder.path().join(&early)).expect("removed");
    let fourth_own = tempfile::tempdir().expect("a folder");
    let fourth = node(fourth_own.path(), 4).await;
    assert_eq!(fourth.archive.restore(&url(folder.path()), RestoreOptions::default()).await.expect("restored").tags, 3);
    assert!(fourth.archive.inner.clone().fill_all().await);
    let progress = fourth.archive.restoring().await.expect("a progress");
    let mut lost = progress.lost_blobs;
    lost.sort();
    let mut expected = [&b"{}"[..], b"v1", b"shared"].map(Digest::sha256);
    expected.sort();
    assert_eq!(lost, expected);
}

#[tokio::test]
async fn f40_filling_goes_on_where_it_was_cut_off() {
    let (folder, own) = (tempfile::tempdir().expect("a folder"), tempfile::tempdir().expect("a folder"));
    let (first, layer) = (node(folder.path(), 1).await, layer());
    push(&first.store, "v1", &[b"{}", &layer, b"small"]);
    first.archive.flush().await.expect("flushed");
    push(&first.store, "v2", &[b"{}", b"another"]);
    first.archive.flush().await.expect("flushed");
    let (second, restored) = restored(folder.path(), own.path(), RestoreOptions::default()).await;
    restored.expect("restored");
    assert!(pull(&second, &layer).await);
    let before = gets(&second);
    assert!(second.archive.inner.clone().fill_all().await);
    // Two packs; in the first, what lies around the layer that is here.
    assert!((2..=3).contains(&(gets(&second) - before)), "{}", gets(&second) - before);
    for blob in [&b"{}"[..], b"small", b"another", &layer] {
        assert!(second.store.blob(&Digest::sha256(blob)).expect("readable").is_some());
    }
    let progress = second.archive.restoring().await.expect("a progress");
    assert_eq!((progress.state.as_str(), progress.blobs, progress.lost), ("done", 3, 0), "{progress:?}");
    let before = gets(&second);
    assert!(second.archive.inner.clone().fill_all().await);
    assert_eq!(gets(&second), before, "nothing is had twice");
}

#[tokio::test]
async fn f35_of_a_pack_with_a_flipped_bit_only_the_blob_is_lost() {
    let (folder, own) = (tempfile::tempdir().expect("a folder"), tempfile::tempdir().expect("a folder"));
    let first = node(folder.path(), 1).await;
    let key = archived(&first, "v1").await;
    let (_, archived) = first.store.packs(None, 9).expect("readable").remove(0);
    let place = archived.contents.iter().find(|located| located.digest == Digest::sha256(b"shared")).expect("in it");
    let path = folder.path().join(&key);
    let mut bytes = std::fs::read(&path).expect("readable");
    bytes[place.offset as usize] ^= 1;
    std::fs::write(&path, bytes).expect("written");
    let (second, restored) = restored(folder.path(), own.path(), RestoreOptions::default()).await;
    restored.expect("restored");
    assert!(second.archive.inner.clone().fill_all().await);
    let progress = second.archive.restoring().await.expect("a progress");
    assert_eq!((progress.blobs, progress.lost_blobs), (2, vec![Digest::sha256(b"shared")]));
}

#[tokio::test]
async fn f34_a_pack_whose_footer_is_damaged_serves_what_others_tell_of_it() {
    let (folder, own) = (tempfile::tempdir().expect("a folder"), tempfile::tempdir().expect("a folder"));
    let first = node(folder.path(), 1).await;
    let key = archived(&first, "v1").await;
    archived(&first, "v2").await;
    first.archive.checkpoint().await.expect("written");
    let path = folder.path().join(&key);
    let mut bytes = std::fs::read(&path).expect("readable");
    let at = bytes.len() - 300;
    bytes[at] ^= 1;
    std::fs::write(&path, bytes).expect("written");
    let (second, restored) = restored(folder.path(), own.path(), RestoreOptions::default()).await;
    assert_eq!(restored.expect("restored").skipped.len(), 0, "nobody reads it");
    assert!(pull(&second, b"v1").await);
}

#[tokio::test]
async fn some_repositories_are_restored_as_content_of_their_own() {
    let (folder, own) = (tempfile::tempdir().expect("a folder"), tempfile::tempdir().expect("a folder"));
    let first = node(folder.path(), 1).await;
    archived(&first, "v1").await;
    first.archive.checkpoint().await.expect("written");
    archived(&first, "v2").await;
    let options = |glob: &str| RestoreOptions { repositories: vec![glob.parse().expect("a glob")], ..RestoreOptions::default() };
    let (second, nothing) = restored(folder.path(), own.path(), options("other/**")).await;
    assert_eq!(nothing.expect("restored").tags, 0);
    let restored = second.archive.restore(&url(folder.path()), options("**")).await.expect("restored");
    assert_eq!(restored.tags, 2);
    assert_ne!(second.store.cluster(), first.store.cluster());
    assert_eq!(second.store.vector().get(&first.store.origin()), 0, "it does not claim to know the rest");
    assert!(pull(&second, b"v2").await);
    // It goes into the new cluster's own bucket with the next pack.
    second.archive.flush().await.expect("flushed");
    let third_own = tempfile::tempdir().expect("a folder");
    let third = node(third_own.path(), 3).await;
    assert_eq!(third.archive.restore(&url(own.path()), RestoreOptions::default()).await.expect("restored").tags, 2);
}

#[tokio::test]
async fn a_checkpoint_follows_so_many_packs_and_says_nothing_twice() {
    let folder = tempfile::tempdir().expect("a folder");
    let mut node = node(folder.path(), 1).await;
    Arc::get_mut(&mut node.archive.inner).expect("not shared yet").settings.checkpoint.packs = 3;
    for number in 0..7 {
        archived(&node, &format!("v{number}")).await;
        assert_eq!(checkpoints(folder.path()).len(), (number + 1) / 3, "{number}");
    }
    let tally = node.archive.inner.ledger.tally();
    // The mark, the packs, the checkpoints; before each of them a listing of checkpoints and one of packs.
    assert_eq!(tally.requests, Requests { put: 1 + 7 + 2, get: 1, list: 4, ..Default::default() });
}

#[tokio::test]
async fn a_bucket_that_was_copied_elsewhere_restores_from_there() {
    let (folder, copy, own) = (tempfile::tempdir().expect("f"), tempfile::tempdir().expect("f"), tempfile::tempdir().expect("f"));
    let first = node(folder.path(), 1).await;
    archived(&first, "v1").await;
    first.archive.checkpoint().await.expect("written");
    let run = std::process::Command::new("cp").arg("-a").arg(folder.path().join("v1")).arg(copy.path()).status();
    assert!(run.expect("cp runs").success());
    drop(folder);
    let (second, restored) = restored(copy.path(), own.path(), RestoreOptions::default()).await;
    restored.expect("restored");
    assert!(pull(&second, b"v1").await);
}

#[tokio::test]
async fn a_drill_restores_images_elsewhere_and_leaves_nothing() {
    let folder = tempfile::tempdir().expect("a folder");
    let node = node(folder.path(), 1).await;
    for number in 0..4 {
        archived(&node, &format!("v{number}")).await;
    }
    node.archive.checkpoint().await.expect("written");
    let before = (node.archive.inner.ledger.tally(), node.store.vector());
    let drilled = node.archive.drill(None, 3, Vec::new()).await.expect("tried");
    assert_eq!((drilled.images, drilled.failed.len()), (3, 0), "{drilled:?}");
    assert_eq!(drilled.blobs, 3 + 2, "each its own, and two that all share");
    assert!(drilled.requests.get as u64 >= drilled.blobs && drilled.bytes_in > drilled.bytes);
    assert_eq!(before, (node.archive.inner.ledger.tally(), node.store.vector()), "nothing of this node's has changed");
    let left: Vec<_> = std::fs::read_dir(&node.archive.inner.settings.scratch).expect("there").collect();
    assert!(left.iter().all(|entry| !entry.as_ref().expect("an entry").file_name().to_string_lossy().starts_with("drill-")), "{left:?}");
}
