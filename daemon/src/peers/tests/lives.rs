//! Data folders that are not the only ones of their kind: restored from a copy, cloned, lost.

use std::fs;
use std::path::Path;

use larder_harness::copy_folder;

use super::*;

/// Puts a copy in the place of a data folder.
fn restore(copied: &Path, place: &Place) {
    fs::remove_dir_all(&place.config.data_dir).expect("the newer state is lost");
    copy_folder(copied, &place.config.data_dir);
}

async fn all_have(sites: &[&Site], tags: &[(&str, Digest)]) {
    until("everyone has every tag", || sites.iter().all(|site| tags.iter().all(|(tag, digest)| site.tag(tag) == Some(*digest)))).await;
    until("everyone knows the same", || sites.iter().all(|site| site.store.vector() == sites[0].store.vector())).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn f11_a_node_restored_from_a_copy_takes_another_life_and_loses_nothing() {
    let (a, b) = (Site::start("a", "x").await, Site::start("b", "x").await);
    a.let_in(&b).await;
    let one = a.push_image("one").await;
    all_have(&[&a, &b], &[("one", one)]).await;
    let place = a.stop().await;
    let copied = tempfile::tempdir().expect("folder");
    copy_folder(&place.config.data_dir, copied.path());
    let a = place.start().await;
    let two = a.push_image("two").await;
    all_have(&[&a, &b], &[("one", one), ("two", two)]).await;
    let before = a.store.origin();
    let place = a.stop().await;
    restore(copied.path(), &place);
    let a = place.start().await;
    a.peers.settle().await;
    assert_ne!(a.store.origin(), before, "it has noticed before anything was written");
    let three = a.push_image("three").await;
    all_have(&[&a, &b], &[("one", one), ("two", two), ("three", three)]).await;
    assert_eq!(a.metrics.lives.get(), 1);
    // And it stays so.
    let (after, a) = (a.store.origin(), a.stop().await.start().await);
    assert_eq!(a.store.origin(), after);
    all_have(&[&a, &b], &[("one", one), ("two", two), ("three", three)]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn f11_what_a_restored_node_wrote_alone_is_not_lost() {
    let (a, b) = (Site::start("a", "x").await, Site::start("b", "x").await);
    a.let_in(&b).await;
    let one = a.push_image("one").await;
    all_have(&[&a, &b], &[("one", one)]).await;
    let place = a.stop().await;
    let copied = tempfile::tempdir().expect("folder");
    copy_folder(&place.config.data_dir, copied.path());
    let a = place.start().await;
    let two = a.push_image("two").await;
    all_have(&[&a, &b], &[("one", one), ("two", two)]).await;
    let (place, b) = (a.stop().await, b.stop().await);
    restore(copied.path(), &place);
    // More than was lost, so that its numbers go beyond those that others know; and over a restart.
    let a = place.start().await;
    let mut tags = vec![("one", one), ("two", two)];
    for tag in ["alone1", "alone2", "alone3"] {
        tags.push((tag, a.push_image(tag).await));
    }
    let a = a.stop().await.start().await;
    tags.push(("alone4", a.push_image("alone4").await));
    assert_eq!(a.metrics.lives.get(), 0);
    let b = b.start().await;
    all_have(&[&a, &b], &tags).await;
    assert_eq!(a.metrics.lives.get(), 1);
    assert_eq!(b.metrics.lives.get(), 0);
}

/// A site, stopped, and a copy of its folder that listens elsewhere.
async fn twice(site: Site) -> (Place, Place) {
    let place = site.stop().await;
    let folder = tempfile::tempdir().expect("folder");
    copy_folder(&place.config.data_dir, &folder.path().join("data"));
    let mut config = place.config.clone();
    config.data_dir = folder.path().join("data");
    config.peers.listen = UdpSocket::bind("127.0.0.1:0").and_then(|socket| socket.local_addr()).expect("a free port");
    (place, Place { config, _folder: folder })
}

/// Waits until what two of a kind wrote is with the third. They push each other off the wire, and each has its turns; who was pushed off waits longer
/// each time.
async fn both_have_told(b: &Site, tags: &[(&str, Digest)]) {
    let told = || tags.iter().all(|(tag, digest)| b.tag(tag) == Some(*digest));
    for _ in 0..400 {
        if told() {
            break;
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    until("what both wrote is with the third", told).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn f11_two_nodes_with_one_folder_are_found_out_and_lose_nothing() {
    let (a, b) = (Site::start("a", "x").await, Site::start("b", "x").await);
    a.let_in(&b).await;
    let one = a.push_image("one").await;
    all_have(&[&a, &b], &[("one", one)]).await;
    let (a, clone) = twice(a).await;
    let (a, clone) = (a.start().await, clone.start().await);
    assert_eq!(a.node(), clone.node());
    let (two, three) = (a.push_image("two").await, clone.push_image("three").await);
    both_have_told(&b, &[("two", two), ("three", three)]).await;
    until("and it has found the clone", || b.metrics.cloned_nodes.get() == 1).await;
    assert!(a.metrics.lives.get() + clone.metrics.lives.get() >= 1);
    drop(clone.stop().await);
    all_have(&[&a, &b], &[("one", one), ("two", two), ("three", three)]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn f11_a_clone_that_begins_to_write_when_all_were_looked_at_is_found_out() {
    let (a, b) = (Site::start("a", "x").await, Site::start("b", "x").await);
    a.let_in(&b).await;
    let one = a.push_image("one").await;
    all_have(&[&a, &b], &[("one", one)]).await;
    let (a, clone) = twice(a).await;
    // One after the other meets all members, and nothing is written: nobody has a reason to look again.
    let (a, clone) = (a.start().await, clone.start().await);
    until("both were looked at", || a.store.starts().is_empty() && clone.store.starts().is_empty()).await;
    let (two, three) = (a.push_image("two").await, clone.push_image("three").await);
    both_have_told(&b, &[("two", two), ("three", three)]).await;
    drop(clone.stop().await);
    all_have(&[&a, &b], &[("one", one), ("two", two), ("three", three)]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn f11_who_knows_a_life_to_be_mixed_tells_its_node_which_begins_another_one() {
    let (a, b) = (Site::start("a", "x").await, Site::start("b", "x").await);
    a.let_in(&b).await;
    let one = a.push_image("one").await;
    all_have(&[&a, &b], &[("one", one)]).await;
    // What a copy of its folder wrote was deleted and is forgotten: nothing but that is left of it.
    let (life, sure) = (a.store.origin(), a.store.vector().get(&a.store.origin()) - 1);
    assert!(b.store.mix(&[(life, sure)]).expect("written"));
    let two = b.push_image("two").await;
    until("it has begun another life", || a.store.origin() != life).await;
    all_have(&[&a, &b], &[("one", one), ("two", two)]).await;
    // It is told each time they meet, and has heard it already.
    let a = a.stop().await.start().await;
    let three = b.push_image("three").await;
    all_have(&[&a, &b], &[("three", three)]).await;
    assert_eq!((a.metrics.lives.get(), b.metrics.lives.get()), (0, 0));
}

#[tokio::test(flavor = "multi_thread")]
async fn f10_a_lost_folder_with_the_same_key_is_another_life_and_is_filled_by_peers() {
    let (a, b) = (Site::start("a", "x").await, Site::start("b", "x").await);
    a.let_in(&b).await;
    let one = a.push_image("one").await;
    all_have(&[&a, &b], &[("one", one)]).await;
    let before = a.store.origin();
    let cluster = a.store.cluster();
    let place = a.stop().await;
    let key = tempfile::tempdir().expect("folder");
    copy_folder(&place.config.data_dir, key.path());
    fs::remove_dir_all(&place.config.data_dir).expect("lost");
    fs::create_dir(&place.config.data_dir).expect("folder");
    for entry in fs::read_dir(key.path()).expect("list").map(|entry| entry.expect("entry")) {
        if entry.path().is_file() {
            fs::copy(entry.path(), place.config.data_dir.join(entry.file_name())).expect("the key is kept elsewhere");
        }
    }
    let a = place.start().await;
    assert_eq!(a.node(), before.node);
    assert_ne!(a.store.origin(), before);
    // Whoever has nothing founds a cluster of its own; it comes back by a token, as it came.
    assert_ne!(a.store.cluster(), cluster);
    b.let_in(&a).await;
    let two = a.push_image("two").await;
    all_have(&[&a, &b], &[("one", one), ("two", two)]).await;
    assert!(b.store.vector().get(&before) > 0, "what it wrote in its first life is kept");
}
