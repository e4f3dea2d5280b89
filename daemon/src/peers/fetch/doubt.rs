//! Blobs of which a record says what nobody can hold (F24).
//!
//! Every chunk is checked against the BLAKE3 root in the blob's link record. Whoever writes a wrong one there makes the blob one that nobody can fetch, for
//! what those have who hold it never adds up to it. When the ladder has come to its end, and for that reason perhaps, they are asked what their
//! chunks add up to, and the blob is fetched under that, one claim after the other. The digest decides, as it always does: before it was checked, nobody gets
//! the last byte.

use std::sync::atomic::AtomicU64;

use futures_util::future::join_all;
use larder_protocol::digest::{CHUNK_SIZE, ChunkList, Digest, TreeHash, tree_hash};
use larder_protocol::message::{Answer, Read, Request};
use larder_protocol::record::Link as BlobLink;
use tokio::time::timeout;

use super::super::error::Result;
use super::super::links::Link;
use super::super::swarms::Urgency;
use super::super::{Inner, Peers};
use super::run::LIST;

/// Peers that are asked.
const ASKED_MAX: usize = 16;
/// Claims that are tried.
const TRIED_MAX: usize = 3;

impl Peers {
    /// Fetches a blob by its digest alone, from peers that say otherwise than its link record does; says what it is, once it is on this disk.
    /// `None`: nobody says otherwise, or nobody who does has the blob.
    ///
    /// # Errors
    /// `Store`: this disk refused.
    pub async fn fetch_doubted(&self, digest: Digest, link: BlobLink, urgency: &Urgency) -> Result<Option<BlobLink>> {
        let inner = &self.inner;
        for root in claims(inner, digest, link).await.into_iter().take(TRIED_MAX) {
            let mut staging = inner.store.run(move |store| store.stage(digest, BlobLink { root, ..link })).await?;
            if !super::fill(inner, &mut staging, urgency).await? {
                continue;
            }
            match staging.finish_by_digest().await {
                Ok(right) => return Ok(Some(right)),
                Err(error) => tracing::warn!(%digest, %error, "peers gave something else under this digest; others are tried"),
            }
        }
        Ok(None)
    }
}

/// The roots that peers name of a blob, but for the one that its record has.
async fn claims(inner: &Inner, digest: Digest, link: BlobLink) -> Vec<TreeHash> {
    let peers: Vec<_> = inner.links.all().into_iter().take(ASKED_MAX).collect();
    let asked = join_all(peers.iter().map(|peer| timeout(LIST, root_at(peer, digest, link.size)))).await;
    let mut roots = Vec::new();
    for root in asked.into_iter().filter_map(|answer| answer.ok()?.ok()?) {
        if root != link.root && !roots.contains(&root) {
            roots.push(root);
        }
    }
    roots
}

/// What a peer's chunks of a blob add up to; `None` when it has none of it, or it has another size there.
async fn root_at(peer: &Link, digest: Digest, size: u64) -> Result<Option<TreeHash>> {
    if size > CHUNK_SIZE {
        let (answer, _) = peer.connection.ask(&Request::ChunkList(digest)).await?;
        return Ok(match answer {
            Answer::ChunkList(values) if values.len() as u64 == ChunkList::count(size) => Some(ChunkList::new(size, values).root()),
            _ => None,
        });
    }
    let (answer, mut rest) = peer.connection.ask(&Request::Read(Read { digest, offset: 0, length: size })).await?;
    match answer {
        // At most one chunk.
        Answer::Read { length } if length == size => Ok(Some(tree_hash(&rest.raw_counted(length as usize, &AtomicU64::new(0)).await?))),
        _ => Ok(None),
    }
}
