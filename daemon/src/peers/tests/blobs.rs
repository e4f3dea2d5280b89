//! Blobs between nodes.

use larder_protocol::chunks::ChunkBits;
use larder_protocol::digest::{CHUNK_SIZE, chunk_value, tree_hash};
use larder_protocol::message::Standing;
use larder_protocol::opening::Opening;
use larder_protocol::refusal::Refusal;

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
        Request::Follow(_) => Reply::Answer(Answer::Standing(Standing::Whole)),
        Request::Chunk(chunk) => {
            let start = u64::from(chunk.index) * CHUNK_SIZE;
            let mut range = blob[start as usize..(start + CHUNK_SIZE).min(blob.len() as u64) as usize].to_vec();
            tamper(u64::from(chunk.index), &mut range);
            Reply::Bytes(Answer::Read { length: range.len() as u64 }, range.into())
        }
        Request::Opening(_) => Reply::Answer(Answer::Refused(Refusal::NOT_HERE)),
        Request::Describe(_) => Reply::Answer(Answer::Described(BlobLink { size: blob.len() as u64, root: tree_hash(blob), crc64: 0 })),
        _ => Reply::Silence,
    }
}

/// One of these, to fill a staged blob for.
fn client() -> Urgency {
    Urgency::new(Class::Client)
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
        assert!(b.peers.fill(&mut staging, &client()).await.expect("fill"), "from {have}");
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
    assert!(!b.peers.fill(&mut staging, &client()).await.expect("fill"));
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
        Request::Chunk(chunk) if chunk.index > 0 => Reply::Stall(Answer::Read { length: CHUNK_SIZE }, Bytes::from_static(b"slow")),
        _ => give(&half, &request, |_, _| ()),
    });
    let silent = Impostor::of(&b).await;
    silent.answer(|_| Reply::Silence);

    let begun = Instant::now();
    assert!(b.fetch(digest, link).await.expect("fetch"));
    let took = begun.elapsed();
    // It fell silent in the middle of a chunk: that is not waited out.
    assert!(took > Duration::from_millis(500) && took < Duration::from_secs(3), "{took:?}");
    assert!(b.metrics.hedged_chunks.get() > 0);

    // The silent one is waited for no longer than a moment.
    let (digest, link) = a.push_blob(&bytes(6, 100)).await;
    let begun = Instant::now();
    assert!(b.fetch(digest, link).await.expect("fetch"));
    assert!(begun.elapsed() < Duration::from_secs(1), "{:?}", begun.elapsed());
}

#[tokio::test(flavor = "multi_thread")]
async fn f21_chunks_of_a_peer_that_dies_are_asked_elsewhere_at_once() {
    let (a, b) = (Site::start("a", "default").await, Site::start("b", "default").await);
    b.let_in(&a).await;
    let blob = bytes(5, 12 * CHUNK_SIZE);
    let (digest, link) = a.push_blob(&blob).await;
    let dying = Impostor::of(&b).await;
    let (half, connection) = (blob.clone(), dying.connection.clone());
    let asked = Arc::new(std::sync::atomic::AtomicU32::new(0));
    dying.answer(move |request| {
        if matches!(request, Request::Chunk(_)) && asked.fetch_add(1, std::sync::atomic::Ordering::Relaxed) == 1 {
            connection.close("dead");
        }
        give(&half, &request, |_, _| ())
    });
    let begun = Instant::now();
    assert!(b.fetch(digest, link).await.expect("fetch"));
    // All of it, on a machine that does other things too; a chunk that is waited for takes longer alone.
    assert!(begun.elapsed() < Duration::from_secs(3), "{:?}", begun.elapsed());
    assert_eq!(b.store.blob(&digest).expect("blob"), Some(link));
}

#[tokio::test(flavor = "multi_thread")]
async fn f25_who_sends_next_to_nothing_and_is_the_only_one_is_given_up() {
    let b = Site::start("b", "default").await;
    let blob = bytes(5, 3 * CHUNK_SIZE);
    let (digest, link) = (Digest::sha256(&blob), BlobLink { size: blob.len() as u64, root: tree_hash(&blob), crc64: 0 });
    let stalled = Impostor::of(&b).await;
    let half = blob.clone();
    stalled.answer(move |request| match &request {
        Request::Chunk(_) => Reply::Stall(Answer::Read { length: CHUNK_SIZE }, Bytes::from_static(b"slow")),
        _ => give(&half, &request, |_, _| ()),
    });
    let begun = Instant::now();
    assert!(!b.fetch(digest, link).await.expect("fetch"), "then it is the archive's turn");
    assert!(begun.elapsed() < Duration::from_secs(15), "{:?}", begun.elapsed());
}

#[tokio::test(flavor = "multi_thread")]
async fn f24_what_a_poisoned_record_describes_comes_by_its_digest_and_the_record_is_struck_out() {
    let (a, b) = (Site::start("a", "x").await, Site::start("b", "x").await);
    a.let_in(&b).await;
    type Lie = fn(BlobLink) -> BlobLink;
    let (root, size): (Lie, Lie) = (|link| BlobLink { root: [7; 32], ..link }, |link| BlobLink { size: link.size + 1, ..link });
    let too_large: Lie = |link| BlobLink { size: u64::MAX, ..link };
    // Of several chunks, of one, and one that lies in the index.
    let lies = [(3 * CHUNK_SIZE + 5, root), (200_000, root), (100, root), (3 * CHUNK_SIZE + 6, size), (101, size), (200_001, too_large)];
    for (blob_size, lie) in lies {
        let (digest, link) = a.push_blob(&bytes(8, blob_size)).await;
        let linked = |site: &Site| site.store.link(&repository(), &digest).expect("readable");
        until("the record is there", || linked(&b) == Some(link)).await;
        let poisoned = lie(link);
        let records = vec![(Key::Link(repository(), digest), Some(Value::Link(poisoned)))];
        a.store.run(move |store| store.commit(Commit { records, ..Commit::default() })).await.expect("written");
        until("the lie has spread", || linked(&b) == Some(poisoned)).await;
        assert!(!b.fetch(digest, poisoned).await.unwrap_or_default(), "nothing that anybody has adds up to it");
        let urgency = Urgency::new(Class::Client);
        assert_eq!(b.peers.fetch_doubted(digest, poisoned, &urgency).await.expect("fetch"), Some(link));
        assert_eq!(b.store.blob(&digest).expect("readable"), Some(link));
        assert_eq!(b.store.correct_links(&digest, &poisoned).expect("written"), 1);
        until("the truth has spread", || linked(&a) == Some(link) && linked(&b) == Some(link)).await;
        // Of what nobody has, nobody says otherwise.
        let absent = Digest::sha256(&blob_size.to_le_bytes());
        assert_eq!(b.peers.fetch_doubted(absent, poisoned, &urgency).await.expect("fetch"), None);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn f24_of_several_claims_the_digest_decides() {
    let (a, b) = (Site::start("a", "x").await, Site::start("b", "x").await);
    a.let_in(&b).await;
    let (digest, link) = a.push_blob(&bytes(8, 3 * CHUNK_SIZE)).await;
    // Two more hold something else under that digest, and say so.
    let mut liars = Vec::new();
    for seed in [1, 2] {
        let (liar, other) = (Impostor::of(&b).await, bytes(seed, 3 * CHUNK_SIZE));
        liar.answer(move |request| give(&other, &request, |_, _| ()));
        liars.push(liar);
    }
    let poisoned = BlobLink { root: [7; 32], ..link };
    let found = b.peers.fetch_doubted(digest, poisoned, &Urgency::new(Class::Client)).await.expect("fetch");
    assert_eq!(found, Some(link));
    assert!(matches!(b.store.open_blob(&digest), Ok(Some(_))));
}

#[tokio::test(flavor = "multi_thread")]
async fn who_fetches_the_same_blob_shares_it() {
    let (a, b, c) = (Site::start("a", "x").await, Site::start("b", "x").await, Site::start("c", "x").await);
    a.let_in(&b).await;
    a.let_in(&c).await;
    until("all are connected", || b.sees(&c, "connected") && c.sees(&b, "connected")).await;
    let blob = bytes(7, 40 * CHUNK_SIZE);
    let (digest, link) = a.push_blob(&blob).await;
    let (left, right) = tokio::join!(b.fetch(digest, link), c.fetch(digest, link));
    assert!(left.expect("fetch") && right.expect("fetch"));
    let sent = a.metrics.served_bytes.get() as f64 / link.size as f64;
    let shared = (b.metrics.served_bytes.get() + c.metrics.served_bytes.get()) as f64 / link.size as f64;
    assert!(sent < 1.5, "{sent} copies by the holder, {shared} by those who fetch");
    assert!(sent + shared < 2.3, "{sent} copies by the holder, {shared} by those who fetch");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_fetch_goes_on_with_the_chunks_that_are_on_the_disk() {
    let (a, b) = (Site::start("a", "x").await, Site::start("b", "x").await);
    a.let_in(&b).await;
    let blob = bytes(8, 20 * CHUNK_SIZE + 5);
    let (digest, link) = a.push_blob(&blob).await;
    let chunk =
        |index: usize| Bytes::copy_from_slice(&blob[index * CHUNK_SIZE as usize..blob.len().min((index + 1) * CHUNK_SIZE as usize)]);
    let mut staging = b.store.run(move |store| store.stage(digest, link)).await.expect("stage");
    let list = larder_protocol::digest::ChunkList::new(link.size, values(&blob));
    staging.know(list).await.expect("its list");
    for index in [0, 1, 5, 19, 20] {
        assert!(staging.put_chunk(index, chunk(index as usize)).await.expect("put"));
    }
    assert!(!staging.put_chunk(3, chunk(4)).await.expect("put"), "not that chunk");
    drop(staging);
    // Another life of the program, and one of the chunks rots meanwhile.
    let place = b.stop().await;
    let uploads = place.config.data_dir.join("uploads");
    let part = std::fs::read_dir(&uploads).expect("list").next().expect("one is kept").expect("entry").path();
    let mut file = std::fs::read(&part).expect("read");
    file[5 * CHUNK_SIZE as usize + 3] ^= 1;
    std::fs::write(&part, file).expect("write");
    let b = place.start().await;
    until("they are connected again", || b.sees(&a, "connected")).await;
    let before = a.metrics.served_bytes.get();
    assert!(b.fetch(digest, link).await.expect("fetch"));
    assert_eq!(b.store.blob(&digest).expect("blob"), Some(link));
    // Four chunks were good, one of five bytes.
    assert_eq!(a.metrics.served_bytes.get() - before, link.size - 3 * CHUNK_SIZE - 5);
    assert_eq!(std::fs::read_dir(&uploads).expect("list").count(), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn f43_blobs_come_from_and_go_to_nodes_of_version_1() {
    let old = NEWEST.scope(1, Site::start("old", "x")).await;
    let new = Site::start("new", "x").await;
    new.let_in(&old).await;
    for (from, to) in [(&old, &new), (&new, &old)] {
        let (digest, link) = from.push_blob(&bytes(from.node().0[0].into(), 9 * CHUNK_SIZE + 3)).await;
        assert!(to.fetch(digest, link).await.expect("fetch"));
        assert_eq!(to.store.blob(&digest).expect("blob"), Some(link));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_gets_the_first_bytes_before_the_first_chunk_is_here() {
    let b = Site::start("b", "default").await;
    let blob = bytes(5, 3 * CHUNK_SIZE);
    let (digest, link) = (Digest::sha256(&blob), BlobLink { size: blob.len() as u64, root: tree_hash(&blob), crc64: 0 });
    let slow = Impostor::of(&b).await;
    let half = blob.clone();
    slow.answer(move |request| match &request {
        Request::Chunk(_) => Reply::Stall(Answer::Read { length: CHUNK_SIZE }, Bytes::from_static(b"slow")),
        Request::Opening(_) => {
            Reply::Answer(Answer::Opening(Opening::new(half.len() as u64, &values(&half), &half[..CHUNK_SIZE as usize])))
        }
        _ => give(&half, &request, |_, _| ()),
    });
    let mut staging = b.store.run(move |store| store.stage(digest, link)).await.expect("stage");
    let mut reader = staging.reader();
    let urgency = client();
    tokio::select! {
        filled = b.peers.fill(&mut staging, &urgency) => panic!("ended too early: {filled:?}"),
        first = reader.read(0, 1 << 20) => {
            let first = first.expect("bytes");
            assert!(!first.is_empty() && blob.starts_with(&first));
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn s34_nonsense_about_a_blob_harms_nobody() {
    let (a, b) = (Site::start("a", "far").await, Site::start("b", "default").await);
    b.let_in(&a).await;
    let blob = bytes(5, 3 * CHUNK_SIZE);
    let (digest, link) = a.push_blob(&blob).await;
    let babbling = Impostor::of(&b).await;
    babbling.answer(move |request| match &request {
        // Bits of another blob, then chunks far beyond this one.
        Request::Follow(_) => Reply::Answers(vec![
            Answer::Standing(Standing::Change { landed: vec![0, u32::MAX], coming: vec![1 << 30], dropped: vec![7] }),
            Answer::Standing(Standing::Part { have: ChunkBits(vec![255; 3]), coming: ChunkBits(vec![]) }),
            Answer::Standing(Standing::Part { have: ChunkBits(vec![7]), coming: ChunkBits(vec![7]) }),
            Answer::Standing(Standing::Change { landed: vec![0, u32::MAX], coming: vec![1 << 30, 2], dropped: vec![7, 2, 2] }),
        ]),
        Request::Chunk(_) => Reply::Answer(Answer::Elsewhere(vec![NodeId([9; 32]); 8])),
        _ => Reply::Silence,
    });
    assert!(b.fetch(digest, link).await.expect("fetch"));
    assert_eq!(b.store.blob(&digest).expect("blob"), Some(link));
}

#[tokio::test(flavor = "multi_thread")]
async fn f20_the_cap_on_what_is_sent_holds() {
    let (a, b) = (Site::start("a", "x").await, Site::start("b", "x").await);
    a.let_in(&b).await;
    let mut place = a.stop().await;
    place.config.peers.bandwidth = Some(2 * CHUNK_SIZE);
    let a = place.start().await;
    until("they are connected again", || b.sees(&a, "connected")).await;
    let (digest, link) = a.push_blob(&bytes(9, 4 * CHUNK_SIZE)).await;
    let begun = Instant::now();
    assert!(b.fetch(digest, link).await.expect("fetch"));
    let took = begun.elapsed();
    assert!(took > Duration::from_millis(1800) && took < Duration::from_secs(6), "{took:?} for four MiB at two a second");
}
