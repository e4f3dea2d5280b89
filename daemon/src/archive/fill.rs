//! A blob from a pack onto this disk: one ranged GET, streamed into its staging file from where that stands.

use std::time::Duration;

use futures_util::stream::StreamExt;
use larder_protocol::digest::Digest;
use larder_protocol::record::{Archived, PackId};

use crate::store::Staging;
use crate::telemetry::KindLabel;

use super::thaw::Seen;
use super::{Error, Inner};

/// Most bytes that are handed to the store at a time.
const PIECE_SIZE_MAX: usize = 1 << 20;

/// A pack, and the first byte of a blob in it.
type Place = (Archived, u64);

impl Inner {
    /// See [`super::Archive::fill`].
    pub async fn fill(&self, staging: &mut Staging) -> Result<bool, Error> {
        let size = staging.link().size;
        let mut failed = None;
        // What can be read at once goes first.
        let (frozen, readable) = self.places(staging.digest(), size).await?;
        for (archived, offset) in readable.into_iter().chain(frozen) {
            if let Some(ready_in) = self.thaws.refuses(&archived) {
                let Archived { object_key: key, bucket, .. } = archived;
                failed = Some(failed.unwrap_or(Error::Frozen { key, bucket, ready_in }));
                continue;
            }
            match self.fill_from(staging, &archived, offset, size).await {
                Ok(true) => {
                    self.thaws.found_readable(&archived);
                    self.metrics.fetched_blobs.get_or_create(&KindLabel { kind: "archive" }).inc();
                    return Ok(true);
                }
                Ok(false) => {}
                // The store's refusals are final; of the bucket's, another pack may know nothing.
                Err(error @ Error::Store(_)) => return Err(error),
                Err(error @ Error::Frozen { .. }) => {
                    self.thaws.found_frozen(&archived);
                    failed = Some(failed.unwrap_or(error));
                }
                Err(error) => failed = Some(error),
            }
        }
        failed.map_or(Ok(false), Err)
    }

    /// See [`super::Archive::thaws_first`].
    pub async fn thaws_first(&self, digest: Digest, size: u64) -> Result<Option<Option<Duration>>, Error> {
        let (frozen, readable) = self.places(digest, size).await?;
        if !readable.is_empty() {
            return Ok(None);
        }
        let mut first = None;
        for (archived, _) in frozen {
            let ready_in = match (self.thaws.refuses(&archived), self.reachable(&archived.bucket)) {
                (Some(ready_in), _) => ready_in,
                (None, None) => continue,
                // Its bytes would be asked for; whether they can be had is all that matters now.
                (None, Some(bucket)) => match bucket.head_thaw(&archived.object_key).await? {
                    Seen::Readable => {
                        self.thaws.found_readable(&archived);
                        return Ok(None);
                    }
                    Seen::Frozen | Seen::Thawing => {
                        self.thaws.found_frozen(&archived);
                        None
                    }
                    Seen::Missing => continue,
                },
            };
            first = first.or(Some(ready_in));
        }
        Ok(first)
    }

    /// The packs that hold a blob, and where in them it begins: those that must thaw, as far as is known, and those that can be read.
    async fn places(&self, digest: Digest, size: u64) -> Result<(Vec<Place>, Vec<Place>), Error> {
        let found = self.store.run(move |store| {
            let known = |(pack, offset, length): (PackId, u64, u64)| {
                let archived = store.pack(&pack)?;
                Ok(archived.filter(|archived| length == size && within(offset, length, archived.size)).map(|archived| (archived, offset)))
            };
            store.locations(&digest)?.into_iter().map(known).filter_map(Result::transpose).collect::<Result<Vec<_>, crate::store::Error>>()
        });
        Ok(found.await?.into_iter().partition(|(archived, _)| self.thaws.is_frozen(archived)))
    }

    async fn fill_from(&self, staging: &mut Staging, archived: &Archived, offset: u64, size: u64) -> Result<bool, Error> {
        let Some(bucket) = self.reachable(&archived.bucket) else { return Ok(false) };
        let start = staging.offset();
        if start >= size {
            return Ok(true);
        }
        let mut left = size - start;
        let mut chunks = bucket.get_range(&archived.object_key, offset + start..offset + size).await?;
        while left > 0 {
            let Some(chunk) = chunks.next().await else {
                let detail = format!("the answer ended {left} bytes too early");
                let (key, bucket) = (archived.object_key.clone(), archived.bucket.clone());
                return Err(Error::Bucket { doing: "get", key, bucket, detail });
            };
            let mut chunk = chunk?;
            chunk.truncate(usize::try_from(left).unwrap_or(usize::MAX));
            left -= chunk.len() as u64;
            self.metrics.fetched_bytes.get_or_create(&KindLabel { kind: "archive" }).inc_by(chunk.len() as u64);
            while !chunk.is_empty() {
                staging.append(chunk.split_to(chunk.len().min(PIECE_SIZE_MAX))).await?;
            }
        }
        Ok(true)
    }
}

/// Whether a place lies in an object: records come from other nodes.
fn within(offset: u64, length: u64, size: u64) -> bool {
    offset.checked_add(length).is_some_and(|end| end <= size)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn s37_places_outside_the_object_are_not_asked_for() {
        assert!(within(512, 488, 1000) && within(1000, 0, 1000));
        for (offset, length) in [(513, 488), (1001, 0), (u64::MAX, 1), (1, u64::MAX), (u64::MAX, u64::MAX)] {
            assert!(!within(offset, length, 1000));
        }
    }
}
