//! An image that is wanted in the bucket now: what a push waits for that is answered when it is archived.
//!
//! Many pushes may wait, and one pack takes all that is queued when it is planned. So one of them at a time asks for a pack, after a
//! moment in which others may join; the next finds itself archived, or asks for the pack after. Under steady pushes packs follow one another
//! as fast as the bucket takes them, and each holds what came during the one before.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use larder_protocol::digest::Digest;
use larder_protocol::name::{RepositoryName, Tag};
use larder_protocol::stamp::NodeId;
use tokio::time::Instant;

use crate::store::{Needs, Store};

use super::bucket::Bucket;
use super::{Archive, Error, Inner, queue};

/// How long the first of many waits for others to join its pack.
const JOIN: Duration = Duration::from_millis(50);
/// The wait after a pack that could not be written, or that lacked something.
const PAUSE: Duration = Duration::from_secs(1);

/// What of an image is not in the bucket.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Unarchived {
    /// Whether records are not.
    pub records: bool,
    /// Blobs that are not.
    pub missing: Vec<Digest>,
}

impl Unarchived {
    fn is_empty(&self) -> bool {
        !self.records && self.missing.is_empty()
    }
}

impl Archive {
    /// Brings an image into the bucket, its records and each of its blobs, and returns when it is there; or at `until`, with what is not.
    ///
    /// Cancel-safe: a pack that was begun is written nevertheless.
    ///
    /// # Errors
    /// `Off`; the store's refusal. A bucket that refuses is asked again.
    pub async fn secure(
        &self,
        repository: RepositoryName,
        digest: Digest,
        tags: Vec<Tag>,
        until: Instant,
    ) -> Result<Option<Unarchived>, Error> {
        let inner = &self.inner;
        let bucket = inner.bucket.clone().ok_or(Error::Off)?;
        let gone = inner.gone();
        let needs = inner.store.run(move |store| {
            let ours: HashSet<NodeId> = queue::origins(store, &*gone)?.into_iter().map(|(origin, _)| origin.node).collect();
            store.claim(&repository, &digest, |node| ours.contains(node))?;
            Ok::<_, Error>(Arc::new(store.needs(&repository, &digest, &tags)?))
        });
        let needs = needs.await?;
        loop {
            let left = match tokio::time::timeout_at(until, self.step(&bucket, &needs)).await {
                Ok(left) => left?,
                Err(_) => inner.lacks(&bucket, &needs).await?,
            };
            if left.is_empty() {
                return Ok(None);
            }
            if Instant::now() + PAUSE >= until {
                tokio::time::sleep_until(until).await;
                let left = inner.lacks(&bucket, &needs).await?;
                return Ok(Some(left).filter(|left| !left.is_empty()));
            }
            tokio::time::sleep(PAUSE).await;
        }
    }

    /// Has a pack written, unless another has brought everything meanwhile; what the bucket lacks then.
    async fn step(&self, bucket: &Arc<dyn Bucket>, needs: &Arc<Needs>) -> Result<Unarchived, Error> {
        let inner = &self.inner;
        let _turn = inner.hurry.lock().await;
        if inner.lacks(bucket, needs).await?.is_empty() {
            return Ok(Unarchived::default());
        }
        tokio::time::sleep(JOIN).await;
        if let Err(error) = self.flush().await {
            tracing::info!(bucket = bucket.id(), %error, "a push waits for the archive, which did not take a pack; trying again");
        }
        inner.lacks(bucket, needs).await
    }
}

impl Inner {
    async fn lacks(self: &Arc<Self>, bucket: &Arc<dyn Bucket>, needs: &Arc<Needs>) -> Result<Unarchived, Error> {
        let (this, id, needs) = (self.clone(), bucket.id().to_owned(), needs.clone());
        let lacks = self.store.run(move |store: &Store| {
            let mut lacks = Unarchived::default();
            for (origin, sequence) in needs.vector.iter() {
                lacks.records |= queue::cursor(store, &id, &origin)? < sequence;
            }
            let counting = &mut *this.counting.lock().expect("counting does not panic");
            for (digest, _) in &needs.blobs {
                if !counting.in_bucket.holds(store, &id, digest)? {
                    lacks.missing.push(*digest);
                }
            }
            Ok::<_, crate::store::Error>(lacks)
        });
        Ok(lacks.await?)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::Ordering;

    use super::super::tests::{app, node, push};
    use super::*;

    fn soon() -> Instant {
        Instant::now() + Duration::from_secs(20)
    }

    fn tag(name: &str) -> Vec<Tag> {
        vec![name.parse().expect("a tag")]
    }

    #[tokio::test]
    async fn many_pushes_that_wait_share_a_pack() {
        let folder = tempfile::tempdir().expect("a folder");
        let node = node(folder.path(), 1).await;
        let names: Vec<_> = (0..20).map(|number| format!("v{number}")).collect();
        let digests: Vec<_> = names.iter().map(|name| push(&node.store, name, &[b"{}", name.as_bytes()])).collect();
        let waits = names.iter().zip(digests).map(|(name, digest)| node.archive.secure(app(), digest, tag(name), soon()));
        for secured in futures_util::future::join_all(waits).await {
            assert_eq!(secured.expect("no failure"), None);
        }
        assert_eq!(node.archive.inner.ledger.tally().requests.put, 2, "the mark and a pack");
        // What is in the bucket already costs nothing more.
        let again = push(&node.store, "v0", &[b"{}", b"v0"]);
        assert_eq!(node.archive.secure(app(), again, tag("v0"), soon()).await.expect("no failure"), None);
        assert_eq!(node.archive.secure(app(), again, tag("v0"), soon()).await.expect("no failure"), None);
        assert_eq!(node.archive.inner.ledger.tally().requests.put, 3, "a push writes records anew, and they are archived once");
    }

    #[tokio::test]
    async fn f26_a_bucket_that_fails_is_asked_again_and_what_is_missing_is_said_in_time() {
        let folder = tempfile::tempdir().expect("a folder");
        let node = node(folder.path(), 1).await;
        let digest = push(&node.store, "v1", &[b"{}", b"layer"]);
        node.flaky.failures.store(usize::MAX, Ordering::SeqCst);
        let begun = Instant::now();
        let left = node.archive.secure(app(), digest, tag("v1"), begun + Duration::from_millis(1500)).await.expect("no failure");
        let left = left.expect("the bucket takes nothing");
        assert!(left.records && left.missing.contains(&Digest::sha256(b"layer")), "{left:?}");
        assert!(begun.elapsed() >= Duration::from_millis(1400) && begun.elapsed() < Duration::from_secs(5), "{:?}", begun.elapsed());
        node.flaky.failures.store(1, Ordering::SeqCst);
        assert_eq!(node.archive.secure(app(), digest, tag("v1"), soon()).await.expect("no failure"), None);
    }
}
