//! Fetching a blob: who has it, then chunk by chunk, each checked before it goes anywhere.
//!
//! All connected peers are asked at once who has the blob whole; holders are tried in order of nearness: this zone first,
//! then by measured round trip. Of one holder [`AHEAD`] chunks are under way at a time, and they are appended in order. A holder that is
//! slow, dies or lies is left, and the next one goes on from the bytes that are there.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::StreamExt;
use futures_util::future::join_all;
use larder_protocol::digest::{CHUNK_SIZE, ChunkList, Digest, tree_hash};
use larder_protocol::message::{Answer, Read, Request};
use larder_protocol::record::Link as BlobLink;

use super::Inner;
use super::error::{Error, Result};
use super::links::Link;
use crate::store::Staging;

/// How long peers have to say whether they hold a blob.
const ASK: Duration = Duration::from_secs(2);
/// How long the next chunk may take; the first one also waits for the chunk list.
const CHUNK: Duration = Duration::from_secs(4);
/// How often peers are asked when connections broke, and the time between.
const ROUNDS: usize = 3;
const PAUSE: Duration = Duration::from_millis(200);
/// Chunks under way at a time.
const AHEAD: usize = 8;

/// Fills a staged blob; `false` when no peer has it, or all that did ended early.
///
/// Of two connections to a peer one is given up soon after both came up, and a peer that restarts comes back: where a
/// connection broke, the peers are asked again.
pub(super) async fn fill(inner: &Inner, staging: &mut Staging) -> Result<bool> {
    for _ in 0..ROUNDS {
        let (holders, mut broken) = holders(inner, staging.digest()).await;
        for holder in holders {
            match fill_from(&holder, staging).await {
                Ok(()) => return Ok(true),
                Err(error @ Error::Store(_)) => return Err(error),
                Err(error) => broken |= note(inner, staging, &error),
            }
        }
        if !broken {
            return Ok(false);
        }
        tokio::time::sleep(PAUSE).await;
    }
    Ok(false)
}

/// Takes note of a source that is left; says whether it is worth asking again.
fn note(inner: &Inner, staging: &Staging, error: &Error) -> bool {
    let (digest, at) = (staging.digest(), staging.offset());
    if matches!(error, Error::Violation { .. }) {
        inner.metrics.bad_chunks.inc();
        tracing::warn!(%digest, at, %error, "a peer's bytes were refused: going on with the next holder");
    } else {
        tracing::info!(%digest, at, %error, "going on with the next holder");
    }
    matches!(error, Error::Connection { .. })
}

/// Connected peers that have a blob whole, nearest first; and whether one could not be asked.
async fn holders(inner: &Inner, digest: Digest) -> (Vec<Arc<Link>>, bool) {
    let asked = inner.links.all().into_iter().map(|link| async move {
        let answer = tokio::time::timeout(ASK, link.connection.ask(&Request::WhoHas(vec![digest]))).await;
        (link, answer)
    });
    let (mut holders, mut broken) = (Vec::new(), false);
    for (link, answer) in join_all(asked).await {
        match answer {
            Ok(Ok((Answer::Holders(held), _))) if held == [true] => holders.push(link),
            Ok(Err(Error::Connection { .. })) => broken = true,
            _ => {}
        }
    }
    holders.sort_by_cached_key(|link| {
        let elsewhere = inner.members.zone(&link.connection.peer()).as_deref() != Some(inner.zone.as_str());
        (elsewhere, link.connection.rtt())
    });
    (holders, broken)
}

async fn fill_from(holder: &Link, staging: &mut Staging) -> Result<()> {
    let (digest, link) = (staging.digest(), staging.link());
    let list = if link.size > CHUNK_SIZE { Some(chunk_list(holder, digest, &link).await?) } else { None };
    let first = staging.offset() / CHUNK_SIZE;
    let chunks = (first..ChunkList::count(link.size)).map(|index| read_chunk(holder, digest, link.size, index));
    let mut chunks = futures_util::stream::iter(chunks).buffered(AHEAD);
    for index in first..ChunkList::count(link.size) {
        let late = || Error::Connection { doing: "read from", peer: holder.connection.peer(), why: format!("no chunk within {CHUNK:?}") };
        let chunk = tokio::time::timeout(CHUNK, chunks.next()).await.map_err(|_| late())?.expect("one for each index")?;
        let honest = match &list {
            Some(list) => list.holds(index, &chunk),
            None => tree_hash(&chunk) == link.root,
        };
        if !honest {
            return Err(Error::Violation { peer: holder.connection.peer(), what: format!("wrong bytes as chunk {index} of {digest}") });
        }
        // Another source may have stopped in the middle of a chunk.
        let have = staging.offset() - index * CHUNK_SIZE;
        staging.append(chunk.slice(have as usize..)).await?;
    }
    Ok(())
}

async fn chunk_list(holder: &Link, digest: Digest, link: &BlobLink) -> Result<ChunkList> {
    let peer = holder.connection.peer();
    let violation = |what: String| Error::Violation { peer, what };
    let asked = tokio::time::timeout(CHUNK, holder.connection.ask(&Request::ChunkList(digest))).await;
    let (answer, _) =
        asked.map_err(|_| Error::Connection { doing: "read from", peer, why: format!("no chunk list within {CHUNK:?}") })??;
    let Answer::ChunkList(values) = answer else { return Err(violation("something else than a chunk list".to_owned())) };
    ChunkList::checked(link.size, values, &link.root).map_err(|error| violation(format!("a wrong chunk list of {digest}: {error}")))
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
