//! Blobs of which a record says what nobody can hold (F24).
//!
//! Every chunk is checked against the size and the BLAKE3 root in the blob's link record. Whoever writes a wrong one there makes the blob one that nobody
//! can fetch, for what those have who hold it never adds up to it. When the ladder has come to its end, and for that reason perhaps, they are asked what
//! they hold, and the blob is fetched under that, one claim after the other. The digest decides, as it always does: before it was checked, nobody
//! gets the last byte.

use futures_util::future::join_all;
use larder_protocol::digest::Digest;
use larder_protocol::message::{Answer, Request};
use larder_protocol::record::Link as BlobLink;
use tokio::time::timeout;

use super::super::error::Result;
use super::super::swarms::Urgency;
use super::super::{Inner, Peers};
use super::ASK;

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
        for claim in claims(inner, digest, link).await.into_iter().take(TRIED_MAX) {
            let mut staging = match inner.store.run(move |store| store.stage(digest, claim)).await {
                Ok(staging) => staging,
                // It may be the claim that is too large.
                Err(error) => {
                    tracing::warn!(%digest, %error, "there is no place for what a peer says that this blob is");
                    continue;
                }
            };
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

/// What peers who have a blob say that it is, but for what its record says.
async fn claims(inner: &Inner, digest: Digest, link: BlobLink) -> Vec<BlobLink> {
    let (peers, question) = (inner.links.all(), Request::Describe(digest));
    let asked = join_all(peers.iter().map(|peer| timeout(ASK, peer.connection.ask(&question)))).await;
    let is_other = |a: &BlobLink, b: &BlobLink| (a.size, a.root) != (b.size, b.root);
    let mut claims = Vec::new();
    for (answer, _) in asked.into_iter().filter_map(|answer| answer.ok()?.ok()) {
        if let Answer::Described(claim) = answer
            && is_other(&claim, &link)
            && claims.iter().all(|other| is_other(&claim, other))
        {
            claims.push(claim);
        }
    }
    claims
}
