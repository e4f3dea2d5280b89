//! Giving peers single chunks of blobs that are here, or are coming in.

use bytes::Bytes;
use larder_protocol::digest::{CHUNK_SIZE, Digest};
use larder_protocol::message::{Answer, ChunkRead, Class};
use larder_protocol::opening::Opening;
use larder_protocol::refusal::Refusal;
use larder_protocol::stamp::NodeId;

use super::Inner;
use super::endpoint::Sender;
use super::error::Result;
use super::fetch::class_name;
use super::links::Link;
use super::pace::PIECE;
use super::serve::{piece, refuse};
use super::turns::{PLACES, TURN_TIME};
use crate::store::{self, Content};
use crate::telemetry::TrafficLabels;

/// Priorities of streams within a connection: a class is worth more than any place among those that were begun.
const CLASS_STEP: i32 = PLACES as i32;

/// Sends a chunk, or says who has it.
pub(super) async fn chunk(inner: &Inner, link: &Link, send: &mut Sender, chunk: ChunkRead) -> Result<()> {
    let peer = link.connection.peer();
    let key = (chunk.digest, chunk.index);
    // Who has the blob whole knows at once whether it was sent to the zone; who fetches it too, when it comes to it.
    let is_relay = inner.swarms.is_relay(&chunk.digest);
    if !is_relay && tell_elsewhere(inner, send, peer, &chunk, false).await? {
        return Ok(());
    }
    let mut handed = Handing { inner, key, peer, is_sent: false };
    let Some(size) = size(inner, chunk.digest).await else { return refuse(send, Refusal::NOT_HERE).await };
    let mut turn = inner.turns.take(chunk.class, peer, size).await;
    if is_relay && tell_elsewhere(inner, send, peer, &chunk, inner.turns.is_busy()).await? {
        handed.is_sent = true;
        return Ok(());
    }
    let content = match content(inner, chunk.digest, chunk.index).await {
        Ok(Some(content)) => content,
        Ok(None) => return refuse(send, Refusal::NOT_HERE).await,
        Err(error) => {
            tracing::warn!(digest = %chunk.digest, %error, "a blob can't be served to a peer");
            return refuse(send, Refusal::FAILED).await;
        }
    };
    let start = u64::from(chunk.index) * CHUNK_SIZE;
    if start >= content.size() {
        return refuse(send, Refusal::NOT_HERE).await;
    }
    let end = content.size().min(start + CHUNK_SIZE);
    let bytes = piece(inner, &content, start, end).await?;
    send.set_priority(-(chunk.class as i32 * CLASS_STEP + turn.place()));
    let sending = async {
        send.message(&Answer::Read { length: bytes.len() as u64 }).await?;
        self::send(inner, link, send, chunk.class, bytes).await?;
        send.finish();
        send.received().await;
        Ok(())
    };
    tokio::pin!(sending);
    let sent = match tokio::time::timeout(TURN_TIME, &mut sending).await {
        Ok(sent) => sent,
        Err(_) => {
            turn.give_back();
            sending.await
        }
    };
    handed.is_sent = sent.is_ok();
    sent
}

/// Sends bytes as fast as the caps allow.
pub(super) async fn send(inner: &Inner, link: &Link, send: &mut Sender, class: Class, mut bytes: Bytes) -> Result<()> {
    let peer = link.connection.peer();
    let is_far = inner.members.zone(&peer).as_deref() != Some(inner.zone.as_str());
    let labels = TrafficLabels { class: class_name(class), zone: if is_far { "other" } else { "same" } };
    while !bytes.is_empty() {
        let piece = bytes.split_to(bytes.len().min(PIECE));
        let size = piece.len() as u64;
        inner.pacer.pass(class, peer, is_far, size).await;
        inner.metrics.served_bytes.inc_by(size);
        inner.metrics.peer_served_bytes.get_or_create(&labels).inc_by(size);
        send.raw(piece).await?;
    }
    Ok(())
}

/// The first bytes of a blob with their proof.
pub(super) async fn opening(inner: &Inner, digest: Digest) -> Answer {
    let found = inner.store.run(move |store| {
        let (Some(content), values) = (store.open_blob(&digest)?, store.chunk_values(&digest)?.unwrap_or_default()) else {
            return Ok(None);
        };
        let size = content.size();
        let first = match content {
            Content::Memory(bytes) => bytes,
            Content::File(file) => {
                let mut first = vec![0; file.chunk_size(0)];
                let damaged = |detail| store::Error::Damaged { what: format!("the first MiB of {digest}"), detail };
                file.read_chunk(0, &mut first).map_err(damaged)?;
                first.into()
            }
        };
        // A row that does not fit its blob is found by whoever reads the whole.
        let fits = values.len() as u64 == if size > CHUNK_SIZE { size.div_ceil(CHUNK_SIZE) } else { 0 };
        Ok::<_, store::Error>((fits && first.len() as u64 == size.min(CHUNK_SIZE)).then(|| Opening::new(size, &values, &first)))
    });
    match found.await {
        Ok(Some(opening)) => Answer::Opening(opening),
        Ok(None) => Answer::Refused(Refusal::NOT_HERE),
        Err(_) => Answer::Refused(Refusal::FAILED),
    }
}

/// Says who has a chunk, if somebody else in the peer's zone shall be asked for it.
async fn tell_elsewhere(inner: &Inner, send: &mut Sender, peer: NodeId, chunk: &ChunkRead, is_busy: bool) -> Result<bool> {
    let zone = inner.members.zone(&peer);
    let is_mate = |node: &NodeId| inner.links.get(node).is_some() && inner.members.zone(node) == zone;
    let elsewhere = inner.swarms.elsewhere((chunk.digest, chunk.index), peer, chunk.insist, is_busy, is_mate);
    if elsewhere.is_empty() {
        return Ok(false);
    }
    send.message(&Answer::Elsewhere(elsewhere)).await?;
    send.finish();
    Ok(true)
}

/// Bytes of a blob that is here or coming in, if it is.
async fn size(inner: &Inner, digest: Digest) -> Option<u64> {
    // ORDER: what is coming first. It becomes a blob before it stops to come.
    let coming = inner.store.partial(&digest).map(|partial| partial.link());
    let here = async || inner.store.run(move |store| store.blob(&digest)).await.ok().flatten();
    let link = match coming {
        Some(link) => link,
        None => here().await?,
    };
    Some(link.size)
}

/// A blob that is here, or one that is coming in and has the chunk.
async fn content(inner: &Inner, digest: Digest, index: u32) -> store::Result<Option<Content>> {
    // ORDER: what is coming first. It becomes a blob before it stops to come.
    let coming = inner.store.partial(&digest).filter(|partial| partial.has(index)).and_then(|partial| partial.file());
    match inner.store.run(move |store| store.open_blob(&digest)).await? {
        Some(content) => Ok(Some(content)),
        None => Ok(coming.map(Content::File)),
    }
}

/// A chunk that counts as sent; unless it was, that is taken back.
struct Handing<'a> {
    inner: &'a Inner,
    key: (Digest, u32),
    peer: NodeId,
    is_sent: bool,
}

impl Drop for Handing<'_> {
    fn drop(&mut self) {
        if !self.is_sent {
            self.inner.swarms.failed(self.key, self.peer);
        }
    }
}
