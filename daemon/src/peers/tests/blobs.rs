//! Blobs between nodes.

use larder_protocol::digest::{CHUNK_SIZE, chunk_value};

use super::*;

/// Chunk values of a blob, as an honest peer gives them.
fn values(blob: &[u8]) -> Vec<[u8; 32]> {
    blob.chunks(CHUNK_SIZE as usize).enumerate().map(|(i, chunk)| chunk_value(i as u64, chunk)).collect()
}

/// Gives what was asked for of `blob`, through `tamper`.
fn give(blob: &[u8], request: &Request, tamper: impl Fn(u64, &mut Vec<u8>)) -> Reply {
    match request {
        Request::WhoHas(_) => Reply::Answer(Answer::Holders(vec![true])),
        Request::ChunkList(_) => Reply::Answer(Answer::ChunkList(values(blob))),
        Request::Read(read) => {
            let mut range = blob[read.offset as usize..(read.offset + read.length) as usize].to_vec();
            tamper(read.offset / CHUNK_SIZE, &mut range);
            Reply::Bytes(Answer::Read { length: read.length }, range.into())
        }
        _ => Reply::Silence,
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn blobs_of_every_size_come_whole_from_a_peer() {
    let (a, b) = (Site::start("a", "x").await, Site::start("b", "x").await);
    a.let_in(&b).await;
    // Nothing; what lives in the index; around one chunk; more chunks than are under way at a time.
    for size in [0, 1, 64 << 10, CHUNK_SIZE - 1, CHUNK_SIZE, CHUNK_SIZE + 1, 20 * CHUNK_SIZE + 77] {
        let blob = bytes(size, size);
        let (digest, link) = a.push_blob(&blob).await;
        assert!(b.fetch(digest, link).await.expect("fetch"), "{size} bytes");
        assert_eq!(b.store.blob(&digest).expect("blob"), Some(link));
    }
    assert!(a.metrics.served_bytes.get() >= 20 * CHUNK_SIZE);
    assert_eq!(b.metrics.bad_chunks.get(), 0);
    let nobodys = bytes(99, 10);
    let link = BlobLink { size: 10, root: larder_protocol::digest::tree_hash(&nobodys), crc64: 0 };
    assert!(!b.fetch(Digest::sha256(&nobodys), link).await.expect("fetch"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_fetch_goes_on_in_the_middle_of_a_chunk() {
    let (a, b) = (Site::start("a", "x").await, Site::start("b", "x").await);
    a.let_in(&b).await;
    let blob = bytes(3, 3 * CHUNK_SIZE + 5);
    let (digest, link) = a.push_blob(&blob).await;
    // Inside a chunk, at its edges, inside the last one, at the end.
    for have in [1, CHUNK_SIZE - 1, CHUNK_SIZE, CHUNK_SIZE + 1, 3 * CHUNK_SIZE + 1, link.size] {
        let mut staging = b.store.run(move |store| store.stage(digest, link)).await.expect("stage");
        staging.append(blob[..have as usize].to_vec().into()).await.expect("append");
        assert!(b.peers.fill(&mut staging).await.expect("fill"), "from {have}");
        assert_eq!(staging.offset(), link.size, "from {have}");
        staging.finish().await.expect("the bytes are the blob's");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn f23_a_lying_peer_is_left_and_its_bytes_go_nowhere() {
    let (a, b) = (Site::start("a", "far").await, Site::start("b", "default").await);
    b.let_in(&a).await;
    let blob = bytes(5, 5 * CHUNK_SIZE + 9);
    let (digest, link) = a.push_blob(&blob).await;
    // In the zone of the fetcher, so that it is asked first; honest for two chunks.
    let liar = Impostor::of(&b).await;
    let lies = blob.clone();
    liar.answer(move |request| give(&lies, &request, |index, chunk| chunk[0] ^= u8::from(index >= 2)));
    assert!(b.fetch(digest, link).await.expect("fetch"));
    assert_eq!(b.metrics.bad_chunks.get(), 1);
    assert_eq!(b.store.blob(&digest).expect("blob"), Some(link));

    // A list that does not add up is found before a byte is taken; and who has lied is asked last.
    let (digest, link) = a.push_blob(&bytes(6, 2 * CHUNK_SIZE)).await;
    assert!(b.fetch(digest, link).await.expect("fetch"));
    assert_eq!(b.metrics.bad_chunks.get(), 1);
    drop(a.stop().await);
    until("the honest one is gone", || b.peers.inner.links.all().len() == 1).await;
    let (wrong, other) = (bytes(7, 2 * CHUNK_SIZE), bytes(8, 2 * CHUNK_SIZE));
    let c = Site::start("c", "x").await;
    let (digest, link) = c.push_blob(&wrong).await;
    liar.answer(move |request| give(&other, &request, |_, _| ()));
    let mut staging = b.store.run(move |store| store.stage(digest, link)).await.expect("stage");
    assert!(!b.peers.fill(&mut staging).await.expect("fill"));
    assert_eq!(staging.offset(), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn f25_a_peer_that_stalls_is_left_in_time_and_one_that_is_silent_costs_none() {
    let (a, b) = (Site::start("a", "far").await, Site::start("b", "default").await);
    b.let_in(&a).await;
    let blob = bytes(5, 3 * CHUNK_SIZE);
    let (digest, link) = a.push_blob(&blob).await;
    let stalled = Impostor::of(&b).await;
    let half = blob.clone();
    stalled.answer(move |request| match &request {
        Request::Read(read) if read.offset > 0 => Reply::Stall(Answer::Read { length: read.length }, Bytes::from_static(b"slow")),
        _ => give(&half, &request, |_, _| ()),
    });
    let silent = Impostor::of(&b).await;
    silent.answer(|_| Reply::Silence);

    let begun = Instant::now();
    assert!(b.fetch(digest, link).await.expect("fetch"));
    let took = begun.elapsed();
    // One deadline for one chunk, and no more.
    assert!(took > Duration::from_secs(3) && took < Duration::from_secs(7), "{took:?}");

    // The one that stalled has a strike, and the silent one is waited for no longer than a moment.
    let (digest, link) = a.push_blob(&bytes(6, 100)).await;
    let begun = Instant::now();
    assert!(b.fetch(digest, link).await.expect("fetch"));
    assert!(begun.elapsed() < Duration::from_secs(1), "{:?}", begun.elapsed());
}
