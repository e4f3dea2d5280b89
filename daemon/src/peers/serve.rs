//! Answering what peers ask. Members only: strangers may join, and nothing else.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use larder_protocol::digest::CHUNK_SIZE;
use larder_protocol::message::{Answer, Class, READ_MAX, Read, Request, WHO_HAS_MAX};
use larder_protocol::refusal::Refusal;

use super::Inner;
use super::endpoint::{Sender, Stream};
use super::error::{Error, Result};
use super::links::Link;
use super::{exchange, follow, keep, reconcile, site, swarm};
use crate::store::{self, Content};

/// How long a stream's request may take to come.
const REQUEST: Duration = Duration::from_secs(10);

/// Answers one stream of a member.
pub(super) async fn answer(inner: &Arc<Inner>, link: &Arc<Link>, mut stream: Stream) -> Result<()> {
    let peer = link.connection.peer();
    let late = |_| Error::Violation { peer, what: "a stream without a request".to_owned() };
    let request = stream.receive.message_in_turn::<Request>(&link.room);
    let (request, room) = match tokio::time::timeout(REQUEST, request).await.map_err(late)? {
        Ok(Some(request)) => request,
        Ok(None) => return Ok(()),
        // F43: a later program's request, which must hear so, or nonsense, which may.
        Err(error @ Error::Violation { .. }) => {
            refuse(&mut stream.send, Refusal::UNKNOWN).await?;
            return Err(error);
        }
        Err(error) => return Err(error),
    };
    if let Some(answer) = site::answer(inner, peer, &request).await? {
        stream.send.message(&answer).await?;
        stream.send.finish();
        return Ok(());
    }
    // What is said in one message is made, and kept until the peer takes it.
    let is_one_message = matches!(
        request,
        Request::WhoHas(_) | Request::ChunkList(_) | Request::Vouch(_) | Request::Compare(_) | Request::Places(_) | Request::Opening(_)
    );
    let _turn = match is_one_message {
        true => Some(link.answers.acquire().await.expect("never closed")),
        false => None,
    };
    // Boxed where it takes long: a peer has many streams, and those that wait for their turn take little memory.
    let answer = match request {
        Request::Sync(theirs) => {
            let _turn = link.syncs.acquire().await.expect("never closed");
            // It may last for ever, and there are few.
            drop(room);
            return Box::pin(exchange::serve(inner, link, stream, theirs)).await;
        }
        Request::Read(read) => {
            let _turn = link.reads.acquire().await.expect("never closed");
            return Box::pin(content(inner, link, &mut stream.send, read)).await;
        }
        Request::WhoHas(digests) if digests.len() > WHO_HAS_MAX => Answer::Refused(Refusal::TOO_MUCH),
        Request::WhoHas(digests) => {
            let held = inner
                .store
                .run(move |store| digests.iter().map(|digest| Ok(store.blob(digest)?.is_some())).collect::<store::Result<_>>())
                .await;
            held.map_or(Answer::Refused(Refusal::FAILED), Answer::Holders)
        }
        Request::ChunkList(digest) => match inner.store.run(move |store| store.chunk_values(&digest)).await {
            Ok(Some(values)) => Answer::ChunkList(values),
            Ok(None) => match inner.store.partial(&digest).and_then(|partial| partial.list()) {
                Some(list) => Answer::ChunkList(list.values().to_vec()),
                None => Answer::Refused(Refusal::NOT_HERE),
            },
            Err(_) => Answer::Refused(Refusal::FAILED),
        },
        Request::Keep(wanted) => return Box::pin(keep::answer(inner, link, stream, wanted)).await,
        Request::Vouch(digests) if digests.len() > WHO_HAS_MAX => Answer::Refused(Refusal::TOO_MUCH),
        Request::Vouch(digests) => keep::vouch(inner, digests).await.map_or(Answer::Refused(Refusal::FAILED), Answer::Holders),
        Request::Compare(theirs) => Answer::Compared(reconcile::compared(inner.store.run(store::Store::summary).await, &theirs)),
        Request::Places(kind) => Answer::Places(inner.store.run(move |store| store.places(kind)).await),
        Request::Reconcile(ask) => {
            let _turn = link.syncs.acquire().await.expect("never closed");
            return Box::pin(reconcile::serve(inner, link, stream, ask)).await;
        }
        Request::SyncBrief(theirs) => {
            let _turn = link.syncs.acquire().await.expect("never closed");
            return Box::pin(exchange::serve_brief(inner, link, stream, theirs)).await;
        }
        Request::Follow(digest) => {
            inner.swarms.takes_part(&digest, peer);
            return Box::pin(follow::tell(inner, &mut stream.send, digest)).await;
        }
        Request::Chunk(chunk) => return Box::pin(swarm::chunk(inner, link, &mut stream.send, chunk)).await,
        Request::Opening(digest) => swarm::opening(inner, digest).await,
        Request::Describe(digest) => match inner.store.run(move |store| store.blob(&digest)).await {
            Ok(Some(link)) => Answer::Described(link),
            Ok(None) => Answer::Refused(Refusal::NOT_HERE),
            Err(_) => Answer::Refused(Refusal::FAILED),
        },
        Request::Hello(_) | Request::Join(_) => Answer::Refused(Refusal::UNKNOWN),
    };
    stream.send.message(&answer).await?;
    stream.send.finish();
    Ok(())
}

/// Sends a range of a blob.
async fn content(inner: &Inner, link: &Link, send: &mut Sender, read: Read) -> Result<()> {
    if read.length > READ_MAX {
        return refuse(send, Refusal::TOO_MUCH).await;
    }
    let opened = inner.store.run(move |store| store.open_blob(&read.digest)).await;
    let content = match opened {
        Ok(Some(content)) => content,
        Ok(None) => return refuse(send, Refusal::NOT_HERE).await,
        Err(error) => {
            tracing::warn!(digest = %read.digest, %error, "a blob can't be served to a peer");
            return refuse(send, Refusal::FAILED).await;
        }
    };
    let size = content.size();
    let Some(end) = read.offset.checked_add(read.length).filter(|end| *end <= size) else {
        return refuse(send, Refusal::NOT_HERE).await;
    };
    // Of the chunks that a peer has asked for, the earlier one is wanted first.
    send.set_priority(-i32::try_from(read.offset / CHUNK_SIZE).unwrap_or(i32::MAX));
    send.message(&Answer::Read { length: read.length }).await?;
    let mut offset = read.offset;
    while offset < end {
        let piece = piece(inner, &content, offset, end).await?;
        offset += piece.len() as u64;
        swarm::send(inner, link, send, Class::Client, piece).await?;
    }
    send.finish();
    Ok(())
}

/// Some bytes from `offset` on, checked with the whole MiB that they lie in; at least one.
pub(super) async fn piece(inner: &Inner, content: &Content, offset: u64, end: u64) -> Result<Bytes> {
    match content {
        Content::Memory(bytes) => Ok(bytes.slice(offset as usize..end as usize)),
        Content::File(file) => {
            let (file, index) = (file.clone(), offset / CHUNK_SIZE);
            let read = inner.store.run(move |store| {
                let mut chunk = vec![0; file.chunk_size(index)];
                let read = file.read_chunk(index, &mut chunk);
                let put_aside = match &read {
                    Ok(()) => false,
                    Err(why) => store.quarantine(file.digest(), Some(&file), why)?,
                };
                Ok::<_, store::Error>((read.map(|()| Bytes::from(chunk)), put_aside))
            });
            let (chunk, put_aside) = read.await?;
            inner.metrics.quarantined_blobs.inc_by(u64::from(put_aside));
            let damaged = |detail| store::Error::Damaged { what: "a blob that a peer asked for".to_owned(), detail };
            let (chunk, start) = (chunk.map_err(damaged)?, index * CHUNK_SIZE);
            Ok(chunk.slice((offset - start) as usize..(end - start).min(chunk.len() as u64) as usize))
        }
    }
}

pub(super) async fn refuse(send: &mut Sender, refusal: Refusal) -> Result<()> {
    send.message(&Answer::Refused(refusal)).await?;
    send.finish();
    Ok(())
}
