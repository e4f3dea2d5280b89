//! A blob from a pack onto this disk: one ranged GET, streamed into its staging file from where that stands.

use futures_util::stream::StreamExt;
use larder_protocol::record::{Archived, PackId};

use crate::store::Staging;
use crate::telemetry::KindLabel;

use super::{Error, Inner};

/// Most bytes that are handed to the store at a time.
const PIECE_SIZE_MAX: usize = 1 << 20;

impl Inner {
    /// See [`super::Archive::fill`].
    pub async fn fill(&self, staging: &mut Staging) -> Result<bool, Error> {
        let (digest, size) = (staging.digest(), staging.link().size);
        let places: Vec<(Archived, u64)> = {
            let found = self.store.run(move |store| {
                let known = |(pack, offset, length): (PackId, u64, u64)| {
                    let archived = store.pack(&pack)?;
                    Ok(archived
                        .filter(|archived| length == size && within(offset, length, archived.size))
                        .map(|archived| (archived, offset)))
                };
                store.locations(&digest)?.into_iter().map(known).filter_map(Result::transpose).collect::<Result<_, crate::store::Error>>()
            });
            found.await?
        };
        let mut failed = None;
        // What can be read at once goes first.
        let (frozen, places): (Vec<_>, Vec<_>) = places.into_iter().partition(|(archived, _)| self.thaws.is_frozen(archived));
        for (archived, offset) in places.into_iter().chain(frozen) {
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
