//! Images that other nodes are asked to keep, and the word that they give.

use std::sync::Mutex;

use larder_protocol::message::{Keep, WHO_HAS_MAX};
use larder_protocol::refusal::Refusal;
use larder_protocol::vector::VersionVector;

use super::*;
use crate::store::Content;

/// Lets a node bring what another has; gives the digests that it was asked to bring.
fn bring(to: &Site, from: &Site) -> Arc<Mutex<Vec<Digest>>> {
    let brought = Arc::<Mutex<Vec<Digest>>>::default();
    let (asked, here, there) = (Arc::clone(&brought), to.store.clone(), from.store.clone());
    to.peers.start_keeping(Arc::new(move |digest, link| {
        asked.lock().expect("no panic").push(digest);
        let (here, there) = (here.clone(), there.clone());
        Box::pin(async move {
            let Ok(Some(Content::Memory(bytes))) = there.open_blob(&digest) else { return false };
            let mut staging = here.run(move |store| store.stage(digest, link)).await.expect("stage");
            staging.append(bytes).await.expect("append");
            staging.finish().await.is_ok()
        })
    }));
    brought
}

fn in_time(seconds: u64) -> tokio::time::Instant {
    tokio::time::Instant::now() + Duration::from_secs(seconds)
}

async fn needs(site: &Site, digest: Digest) -> Needs {
    site.store.run(move |store| store.needs(&repository(), &digest, &["v1".parse().expect("tag")])).await.expect("needs")
}

#[tokio::test(flavor = "multi_thread")]
async fn another_node_keeps_an_image_when_it_is_asked_to() {
    let (a, b) = (Site::start("a", "x").await, Site::start("b", "x").await);
    a.let_in(&b).await;
    let brought = bring(&b, &a);
    let digest = a.push_image("v1").await;
    let needed = needs(&a, digest).await;
    assert_eq!(a.peers.keep(digest, needed.clone(), 1, in_time(20)).await, Ok(()));
    assert_eq!(b.tag("v1"), Some(digest));
    assert!(b.store.blob(&needed.blobs[0].0).expect("row").is_some());
    assert_eq!(*brought.lock().expect("no panic"), [needed.blobs[0].0]);
    // What is there already is not brought again; and nobody waits for a clock.
    let begun = Instant::now();
    assert_eq!(a.peers.keep(digest, needed, 1, in_time(20)).await, Ok(()));
    assert!(begun.elapsed() < Duration::from_millis(900), "{:?}", begun.elapsed());
    assert_eq!(brought.lock().expect("no panic").len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_of_the_version_before_is_not_asked_and_does_not_count() {
    let a = Site::start("a", "x").await;
    let old = NEWEST.scope(KEEP_SINCE_BEFORE, Site::start("old", "x")).await;
    a.let_in(&old).await;
    let digest = a.push_image("v1").await;
    let needed = needs(&a, digest).await;
    let missing = vec![needed.blobs[0].0];
    let expected = Shortage { wanted: 1, members: 1, reached: 0, missing, unknown: true };
    assert_eq!(a.peers.keep(digest, needed.clone(), 1, in_time(1)).await, Err(expected));
    // And where there are too few in any case, nobody waits.
    let short = a.peers.keep(digest, needed, 2, in_time(60)).await.expect_err("one other node");
    assert_eq!((short.members, short.wanted), (1, 2));
}

const KEEP_SINCE_BEFORE: u16 = super::super::keep::KEEP_SINCE - 1;

#[tokio::test(flavor = "multi_thread")]
async fn s34_answers_that_are_none_count_for_nothing_and_silence_is_waited_for_in_bounds() {
    let (a, b) = (Site::start("a", "x").await, Site::start("b", "x").await);
    a.let_in(&b).await;
    bring(&b, &a);
    let digest = a.push_image("v1").await;
    let needed = needs(&a, digest).await;
    for script in [
        |_| Reply::Silence,
        |_| Reply::Answer(Answer::Holders(vec![true; 50])),
        |_| Reply::Answer(Answer::Holders(Vec::new())),
        |_| Reply::Answer(Answer::ChunkList(Vec::new())),
        |_| Reply::Answer(Answer::Refused(Refusal::FAILED)),
    ] {
        let odd = Impostor::of(&a).await;
        odd.answer(script);
        // All others have to be asked, so this one is.
        let begun = Instant::now();
        let short = a.peers.keep(digest, needed.clone(), 2, in_time(3)).await.expect_err("only one of them is honest");
        assert_eq!((short.missing.as_slice(), short.unknown), ([needed.blobs[0].0].as_slice(), true));
        assert!(begun.elapsed() < Duration::from_secs(5), "{:?}", begun.elapsed());
        // With one to rely on, the honest one is found, whoever is asked first.
        assert_eq!(a.peers.keep(digest, needed.clone(), 1, in_time(20)).await, Ok(()));
        assert!(begun.elapsed() < Duration::from_secs(12), "{:?}", begun.elapsed());
        drop(odd);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn s34_nobody_is_made_to_bring_what_no_repository_links_nor_too_much_at_once() {
    let (a, b) = (Site::start("a", "x").await, Site::start("b", "x").await);
    a.let_in(&b).await;
    let brought = bring(&b, &a);
    let digest = a.push_image("v1").await;
    let link = a.peers.inner.links.get(&b.node()).expect("connected");
    let ask = async |digests: Vec<Digest>| {
        let keep = Request::Keep(Keep { vector: VersionVector::default(), digests });
        let mut stream = link.connection.open(&keep).await.expect("open");
        let mut last = None;
        while let Ok(Some(answer)) = stream.receive.message::<Answer>().await {
            last = Some(answer);
        }
        last
    };
    assert_eq!(ask(vec![digest; WHO_HAS_MAX + 1]).await, Some(Answer::Refused(Refusal::TOO_MUCH)));
    let unlinked = Digest::sha256(b"nobody links it");
    assert_eq!(ask(vec![unlinked]).await, Some(Answer::Holders(vec![true, false])));
    assert_eq!(*brought.lock().expect("no panic"), []);
}

#[tokio::test(flavor = "multi_thread")]
async fn i10_nobody_vouches_for_what_it_is_about_to_drop() {
    let (a, b) = (Site::start("a", "x").await, Site::start("b", "y").await);
    a.let_in(&b).await;
    let blob = bytes(1, 100);
    let (digest, _) = a.push_blob(&blob).await;
    assert_eq!(a.peers.kept_by_another(&[digest]).await, [false]);
    b.push_blob(&blob).await;
    until("both count", || a.peers.placement().borrow().owners(&digest).len() == 2).await;
    assert_eq!(a.peers.kept_by_another(&[digest]).await, [true]);
    assert_eq!(a.peers.kept_by_owners(&[digest]).await, [false], "this node is an owner itself");
    let marked = b.peers.mark_leaving(&[digest]);
    assert_eq!(a.peers.kept_by_another(&[digest]).await, [false]);
    drop(marked);
    assert_eq!(a.peers.kept_by_another(&[digest]).await, [true]);
}
