//! Fetching a blob: who has it, then chunk by chunk, each checked before it goes anywhere.
//!
//! All connected peers are asked at once who has the blob whole. The first that has it is read from as soon as nearer ones
//! have had a moment to answer as well; a peer that is silent delays nobody. Near means: no strikes, then this zone, then
//! the measured round trip. Of one holder [`AHEAD`] chunks are under way at a time, and they are appended in order while
//! the next ones arrive. A holder that is slow, dies or lies gets a strike and is left, and the next one goes on from the bytes
//! that are there.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::future::{Future, join};
use futures_util::stream::{FuturesUnordered, Stream};
use futures_util::{StreamExt, pin_mut};
use larder_protocol::digest::{CHUNK_SIZE, ChunkList, Digest, tree_hash};
use larder_protocol::message::{Answer, Read, Request};
use larder_protocol::record::Link as BlobLink;
use tokio::time::{Instant, timeout, timeout_at};

use super::Inner;
use super::error::{Error, Result};
use super::links::Link;
use crate::store::Staging;

/// How long peers have to say whether they hold a blob.
const ASK: Duration = Duration::from_secs(2);
/// How long nearer peers have to say so once one does.
const MOMENT: Duration = Duration::from_millis(10);
/// How long the next chunk of one MiB may take, and the chunk list.
const CHUNK: Duration = Duration::from_secs(4);
/// How often peers are asked when connections ended meanwhile, and the time between.
const ROUNDS: usize = 3;
const PAUSE: Duration = Duration::from_millis(200);
/// Chunks under way at a time.
const AHEAD: usize = 8;

/// Fills a staged blob; `false` when no peer has it, or all that did ended early.
///
/// Of two connections to a peer one is given up soon after both came up, and a peer that restarts comes back: where a
/// connection ended meanwhile, the peers are asked again.
pub(super) async fn fill(inner: &Inner, staging: &mut Staging) -> Result<bool> {
    for _ in 0..ROUNDS {
        let links = inner.links.all();
        if fill_from_any(inner, &links, staging).await? {
            return Ok(true);
        }
        if !links.iter().any(|link| link.connection.is_closed()) {
            break;
        }
        tokio::time::sleep(PAUSE).await;
    }
    Ok(false)
}

async fn fill_from_any(inner: &Inner, links: &[Arc<Link>], staging: &mut Staging) -> Result<bool> {
    let digest = staging.digest();
    let asked = links.iter().map(|link| async move { holds(link, digest).await.then(|| Arc::clone(link)) });
    let mut asked = asked.collect::<FuturesUnordered<_>>();
    let mut holders = Vec::new();
    let until = Instant::now() + ASK;
    while let Some(holder) = next_holder(inner, &mut asked, &mut holders, until).await {
        let error = match fill_from(inner, &holder, staging).await {
            Ok(()) => return Ok(true),
            Err(error) => error,
        };
        let at = staging.offset();
        match &error {
            Error::Store(_) => return Err(error),
            Error::Violation { .. } => {
                holder.strike();
                inner.metrics.bad_chunks.inc();
                tracing::warn!(%digest, at, %error, "a peer's bytes were refused: going on with the next holder");
            }
            // It has lost the blob meanwhile, or its disk failed: it says so itself.
            Error::Refused { .. } => tracing::info!(%digest, at, %error, "going on with the next holder"),
            _ => {
                holder.strike();
                tracing::info!(%digest, at, %error, "going on with the next holder");
            }
        }
    }
    Ok(false)
}

async fn holds(link: &Link, digest: Digest) -> bool {
    let asked = timeout(ASK, link.connection.ask(&Request::WhoHas(vec![digest]))).await;
    matches!(asked, Ok(Ok((Answer::Holders(held), _))) if held == [true])
}

/// The nearest of the holders that have answered; waits for one until all have answered, or for as long as they may take.
async fn next_holder(
    inner: &Inner,
    asked: &mut (impl Stream<Item = Option<Arc<Link>>> + Unpin),
    holders: &mut Vec<Arc<Link>>,
    until: Instant,
) -> Option<Arc<Link>> {
    while holders.is_empty() {
        holders.extend(timeout_at(until, asked.next()).await.ok()??);
    }
    let moment = until.min(Instant::now() + MOMENT);
    while let Ok(Some(answer)) = timeout_at(moment, asked.next()).await {
        holders.extend(answer);
    }
    let distance = |link: &Link| {
        let elsewhere = inner.members.zone(&link.connection.peer()).as_deref() != Some(inner.zone.as_str());
        (link.strikes(), elsewhere, link.connection.rtt())
    };
    let nearest = (0..holders.len()).min_by_key(|index| distance(&holders[*index]))?;
    Some(holders.swap_remove(nearest))
}

async fn fill_from(inner: &Inner, holder: &Link, staging: &mut Staging) -> Result<()> {
    let (digest, link) = (staging.digest(), staging.link());
    let (first, count) = (staging.offset() / CHUNK_SIZE, ChunkList::count(link.size));
    let chunks = (first..count).map(|index| read_chunk(holder, digest, link.size, index));
    let chunks = futures_util::stream::iter(chunks).buffered(AHEAD);
    pin_mut!(chunks);
    // The first chunks travel together with the list that checks them.
    let (list, mut next) = join(chunk_list(holder, digest, &link), in_time(holder, chunks.next())).await;
    let list = list?.map(Arc::new);
    for index in first..count {
        let chunk = next?.expect("one for each index")?;
        if !is_chunk(inner, list.clone(), &link, index, chunk.clone()).await {
            return Err(Error::Violation { peer: holder.connection.peer(), what: format!("wrong bytes as chunk {index} of {digest}") });
        }
        // Another source may have stopped in the middle of a chunk.
        let have = staging.offset() - index * CHUNK_SIZE;
        let appended;
        (appended, next) = join(staging.append(chunk.slice(have as usize..)), in_time(holder, chunks.next())).await;
        appended?;
    }
    Ok(())
}

/// Whether bytes are what the blob has there. Hashing a MiB is not for the async threads.
async fn is_chunk(inner: &Inner, list: Option<Arc<ChunkList>>, link: &BlobLink, index: u64, chunk: Bytes) -> bool {
    let root = link.root;
    let check = move |_: &_| match list {
        Some(list) => list.holds(index, &chunk),
        None => tree_hash(&chunk) == root,
    };
    inner.store.run(check).await
}

/// Waits for a chunk as long as one may take.
async fn in_time<T>(holder: &Link, work: impl Future<Output = T>) -> Result<T> {
    let late = || Error::Connection { doing: "read from", peer: holder.connection.peer(), why: format!("nothing within {CHUNK:?}") };
    timeout(CHUNK, work).await.map_err(|_| late())
}

/// The chunk list of a blob above one MiB, checked.
async fn chunk_list(holder: &Link, digest: Digest, link: &BlobLink) -> Result<Option<ChunkList>> {
    if link.size <= CHUNK_SIZE {
        return Ok(None);
    }
    let peer = holder.connection.peer();
    let violation = |what: String| Error::Violation { peer, what };
    let (answer, _) = in_time(holder, holder.connection.ask(&Request::ChunkList(digest))).await??;
    let Answer::ChunkList(values) = answer else { return Err(violation("something else than a chunk list".to_owned())) };
    let list = ChunkList::checked(link.size, values, &link.root);
    list.map(Some).map_err(|error| violation(format!("a wrong chunk list of {digest}: {error}")))
}

async fn read_chunk(holder: &Link, digest: Digest, size: u64, index: u64) -> Result<Bytes> {
    let offset = index * CHUNK_SIZE;
    let wanted = CHUNK_SIZE.min(size - offset);
    let (answer, mut rest) = holder.connection.ask(&Request::Read(Read { digest, offset, length: wanted })).await?;
    match answer {
        Answer::Read { length } if length == wanted => rest.raw(wanted as usize).await,
        _ => Err(Error::Violation { peer: holder.connection.peer(), what: format!("something else than chunk {index} of {digest}") }),
    }
}
