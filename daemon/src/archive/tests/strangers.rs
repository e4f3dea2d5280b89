//! Whose packs and checkpoints count: what a restore, and whoever takes over another's records, makes of those of a stranger.

use larder_protocol::record::{Key, Member, Value};

use super::checkpoints::{archived, checkpoints, restored, url};
use super::*;
use crate::store::Commit;

/// Somebody who can write to the bucket, with a key of his own, and calls himself one of the cluster.
async fn stranger(folder: &std::path::Path, of: &Node) -> Node {
    let eve = node(folder, 66).await;
    eve.store.adopt_cluster(of.store.cluster()).expect("adopted");
    eve
}

fn id(node: &Node) -> NodeId {
    node.store.origin().node
}

/// One node lets another in, or expels it.
fn name(node: &Node, other: &Node, is_member: bool) {
    let member = Member {
        name: "other".to_owned(),
        zone: String::new(),
        addresses: Vec::new(),
        bucket: Some(node.flaky.id().to_owned()),
        version: "1".to_owned(),
    };
    let records = vec![(Key::Member(id(other)), is_member.then_some(Value::Member(member)))];
    node.store.commit(Commit { records, settings: Vec::new() }).expect("written");
}

fn tagged(node: &Node, tag: &str) -> Option<Digest> {
    node.store.tag(&app(), &tag.parse().expect("a tag")).expect("readable").map(|info| info.digest)
}

#[tokio::test]
async fn s38_a_pack_of_a_stranger_is_not_believed_unless_the_operator_says_so() {
    let (folder, own) = (tempfile::tempdir().expect("a folder"), tempfile::tempdir().expect("a folder"));
    let first = node(folder.path(), 1).await;
    archived(&first, "v1").await;
    let right = tagged(&first, "v1").expect("pushed");
    let eve = stranger(folder.path(), &first).await;
    push(&eve.store, "v1", &[b"{}", b"something else"]);
    let forged = eve.archive.flush().await.expect("the bucket takes it").remove(0).key;

    let (second, refused) = restored(folder.path(), own.path(), RestoreOptions::default()).await;
    let Err(error @ Error::Strangers { .. }) = refused else { panic!("{refused:?}") };
    assert!(error.to_string().contains(&id(&eve).letters()) && error.to_string().contains("--trust"), "{error}");
    let options = RestoreOptions { leave_strangers: true, ..RestoreOptions::default() };
    let restored_without = second.archive.restore(&url(folder.path()), options).await.expect("restored");
    assert_eq!(restored_without.skipped.iter().map(|skipped| skipped.key.as_str()).collect::<Vec<_>>(), [forged.as_str()]);
    assert_eq!(tagged(&second, "v1"), Some(right));
    assert_eq!(restored_without.founder, Some(id(&first).letters()));

    let third_own = tempfile::tempdir().expect("a folder");
    let options = RestoreOptions { trust: vec![id(&eve)], ..RestoreOptions::default() };
    let (third, trusted) = restored(folder.path(), third_own.path(), options).await;
    assert_eq!(trusted.expect("restored").packs, 2);
    assert_ne!(tagged(&third, "v1"), Some(right));
}

#[tokio::test]
async fn s38_a_checkpoint_of_a_stranger_is_passed_over() {
    let (folder, own) = (tempfile::tempdir().expect("a folder"), tempfile::tempdir().expect("a folder"));
    let first = node(folder.path(), 1).await;
    archived(&first, "v1").await;
    let right = tagged(&first, "v1").expect("pushed");
    let honest = first.archive.checkpoint().await.expect("written");
    let eve = stranger(folder.path(), &first).await;
    push(&eve.store, "v1", &[b"{}", b"something else"]);
    name(&eve, &first, true);
    let forged = eve.archive.checkpoint().await.expect("the bucket takes it");
    assert_eq!(checkpoints(folder.path()).len(), 2);
    let (second, restored) = restored(folder.path(), own.path(), RestoreOptions::default()).await;
    let restored = restored.expect("restored");
    assert_eq!((restored.checkpoint.as_deref(), restored.skipped[0].key.as_str()), (Some(honest.as_str()), forged.as_str()));
    assert_eq!(tagged(&second, "v1"), Some(right));
}

#[tokio::test]
async fn s38_whom_a_member_names_is_believed_and_so_on_along_the_chain() {
    let (folder, own) = (tempfile::tempdir().expect("a folder"), tempfile::tempdir().expect("a folder"));
    let first = node(folder.path(), 1).await;
    archived(&first, "v1").await;
    let (second, third) = (node(folder.path(), 2).await, node(folder.path(), 3).await);
    for (issuer, joining, tag) in [(&first, &second, "v2"), (&second, &third, "v3")] {
        joining.store.adopt_cluster(first.store.cluster()).expect("adopted");
        name(issuer, joining, true);
        // That is worth a pack by itself.
        assert_eq!(issuer.archive.flush().await.expect("flushed").len(), 1);
        archived(joining, tag).await;
    }
    // Its writer is known by the chain only.
    let key = third.archive.checkpoint().await.expect("written");
    let (fresh, restored) = restored(folder.path(), own.path(), RestoreOptions::default()).await;
    let restored = restored.expect("restored");
    assert_eq!((restored.checkpoint, restored.skipped.len()), (Some(key), 0));
    assert!(["v1", "v2", "v3"].iter().all(|tag| tagged(&fresh, tag).is_some()));
}

#[tokio::test]
async fn s29_of_an_expelled_writer_those_packs_count_that_others_tell_of() {
    let (folder, own) = (tempfile::tempdir().expect("a folder"), tempfile::tempdir().expect("a folder"));
    let first = node(folder.path(), 1).await;
    archived(&first, "v1").await;
    let second = node(folder.path(), 2).await;
    second.store.adopt_cluster(first.store.cluster()).expect("adopted");
    name(&first, &second, true);
    first.archive.flush().await.expect("flushed");
    archived(&second, "before").await;
    // The first has all of it, expels the second, and archives what it had not.
    first.store.apply(second.store.tail(&second.store.origin(), 0, 100).expect("readable"), &second.store.vector()).expect("merged");
    name(&first, &second, false);
    first.archive.flush().await.expect("flushed");
    // Its key is in other hands.
    let forged = archived(&second, "after").await;
    let (fresh, restored) = restored(folder.path(), own.path(), RestoreOptions::default()).await;
    let restored = restored.expect("restored");
    assert_eq!(restored.skipped.iter().map(|skipped| skipped.key.as_str()).collect::<Vec<_>>(), [forged.as_str()]);
    assert!(tagged(&fresh, "before").is_some() && tagged(&fresh, "after").is_none());
    assert!(pull(&fresh, b"before").await);
}

#[tokio::test]
async fn s38_a_mark_that_was_replaced_is_found_out() {
    let (folder, own) = (tempfile::tempdir().expect("a folder"), tempfile::tempdir().expect("a folder"));
    let first = node(folder.path(), 1).await;
    archived(&first, "v1").await;
    std::fs::remove_file(folder.path().join("v1/cluster")).expect("removed");
    let eve = stranger(folder.path(), &first).await;
    name(&eve, &first, true);
    archived(&eve, "v1").await;
    let (second, refused) = restored(folder.path(), own.path(), RestoreOptions::default()).await;
    assert!(matches!(&refused, Err(Error::Founders { founder, .. }) if *founder == id(&eve).letters()), "{refused:?}");
    // Who is named by the operator begins the chain, too; the other is one whom the mark names.
    let options = RestoreOptions { trust: vec![id(&first)], ..RestoreOptions::default() };
    second.archive.restore(&url(folder.path()), options).await.expect("restored");
}

#[tokio::test]
async fn s38_who_takes_over_does_not_ask_a_stranger_how_far_the_other_was() {
    let folder = tempfile::tempdir().expect("a folder");
    let first = node(folder.path(), 1).await;
    archived(&first, "v1").await;
    push(&first.store, "v2", &[b"{}", b"v2"]);
    let (records, vector) = (first.store.tail(&first.store.origin(), 0, 100).expect("readable"), first.store.vector());
    // A pack of a stranger says that it has all that the first wrote.
    let eve = stranger(folder.path(), &first).await;
    eve.store.apply(records.clone(), &vector).expect("merged");
    let forged = eve.archive.flush().await.expect("the bucket takes it");
    assert_eq!(forged.len(), 1);
    let told = eve.store.packs(None, 100).expect("readable");
    let second = node(folder.path(), 2).await;
    second.store.adopt_cluster(first.store.cluster()).expect("adopted");
    second.store.apply(records, &vector).expect("merged");
    let records = told.into_iter().map(|(pack, archived)| (Key::Archived(pack), Some(Value::Archived(archived)))).collect();
    second.store.commit(Commit { records, settings: Vec::new() }).expect("written");
    let written = second.archive.flush().await.expect("flushed");
    assert_eq!(written.len(), 1, "what the first had not archived");
    assert!(written[0].records > 0);
}

#[tokio::test]
async fn s39_a_bucket_that_was_rolled_back_is_filled_again_by_who_knows_more() {
    let folder = tempfile::tempdir().expect("a folder");
    let first = node(folder.path(), 1).await;
    archived(&first, "v1").await;
    first.archive.checkpoint().await.expect("written");
    let as_it_was = tempfile::tempdir().expect("a folder");
    let copy = |from: &std::path::Path, to: &std::path::Path| {
        let run = std::process::Command::new("cp").arg("-a").arg(from.join("v1")).arg(to).status();
        assert!(run.expect("cp runs").success());
    };
    copy(folder.path(), as_it_was.path());
    archived(&first, "v2").await;
    archived(&first, "v3").await;
    std::fs::remove_dir_all(folder.path().join("v1")).expect("removed");
    copy(as_it_was.path(), folder.path());
    // It takes nothing back from there.
    assert!(matches!(first.archive.restore(&url(folder.path()), RestoreOptions::default()).await, Err(Error::NotEmpty { .. })));
    // From nothing, the age of what there is is told.
    let old_own = tempfile::tempdir().expect("a folder");
    let (old, of_then) = restored(folder.path(), old_own.path(), RestoreOptions::default()).await;
    let of_then = of_then.expect("restored");
    assert!(tagged(&old, "v2").is_none() && !of_then.as_of.is_empty());
    // What is missing is written anew before the next checkpoint.
    archived(&first, "v4").await;
    first.archive.checkpoint().await.expect("written");
    let own = tempfile::tempdir().expect("a folder");
    let (fresh, restored) = restored(folder.path(), own.path(), RestoreOptions::default()).await;
    let restored = restored.expect("restored");
    assert_eq!((restored.tags, restored.gaps.len()), (4, 0));
    assert!(restored.as_of > of_then.as_of);
    assert!(pull(&fresh, b"v2").await && pull(&fresh, b"v3").await && pull(&fresh, b"v4").await);
}
