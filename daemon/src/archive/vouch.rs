//! Before a checkpoint vouches for packs, the bucket is asked whether they stand, and whole: a gateway may have taken a pack, said that all is well, and kept a
//! part of it (F31).
//!
//! One listing tells a thousand of them. A pack that is missing or has another length is forgotten, which every node hears; its blobs go into
//! another, from this disk or from whoever has them; its records are in the checkpoint that follows.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use larder_protocol::digest::Digest;
use larder_protocol::record::{Key, Link, PackId, Value};
use larder_protocol::vector::Origin;

use crate::store::Commit;

use super::bucket::Bucket;
use super::plan::{Limits, Offered, Plan};
use super::writer::{Planned, Turn};
use super::{Error, Inner, tail};

/// Packs that are forgotten in one round; where more are wrong, it is not a pack that is.
const FORGOTTEN_MAX: usize = 100;

impl Inner {
    /// Looks at the packs that were written behind `since_ms`.
    ///
    /// # Errors
    /// The bucket's or the store's refusal; `Replaced` when nearly nothing is there.
    pub(super) async fn vouch(self: &Arc<Self>, bucket: &Arc<dyn Bucket>, turn: &mut Turn, since_ms: u64) -> Result<(), Error> {
        let (mut before, mut expected) = (BTreeMap::<Origin, u64>::new(), HashMap::<String, (PackId, u64)>::new());
        self.each_pack(|id, archived| {
            if archived.bucket == bucket.id() && archived.created_ms > since_ms {
                expected.insert(archived.object_key.clone(), (*id, archived.size));
            } else if archived.bucket == bucket.id() {
                let last = before.entry(id.origin).or_insert(0);
                *last = id.sequence.max(*last);
            }
        })
        .await?;
        // A clock that went back may have put an older one behind.
        for (id, _) in expected.values() {
            if let Some(last) = before.get_mut(&id.origin) {
                *last = (*last).min(id.sequence - 1);
            }
        }
        let (found, _) = tail::list(&**bucket, &before).await?;
        let sizes: HashMap<&str, u64> = found.iter().map(|(_, listed)| (listed.key.as_str(), listed.size)).collect();
        let wrong: Vec<(PackId, String)> = expected
            .iter()
            .filter(|(key, (_, size))| sizes.get(key.as_str()) != Some(size))
            .map(|(key, (id, _))| (*id, key.clone()))
            .collect();
        if wrong.is_empty() {
            return Ok(());
        }
        if wrong.len() > FORGOTTEN_MAX {
            return Err(Error::Replaced { bucket: bucket.id().to_owned() });
        }
        for (id, key) in wrong {
            tracing::error!(key, found = ?sizes.get(key.as_str()), "a pack is not in the bucket as it was written; its blobs go into another");
            let lost = self.store.run(move |store| store.pack(&id)).await?.map(|archived| archived.contents).unwrap_or_default();
            let lost = lost.into_iter().map(|place| place.digest).collect();
            self.write_anew(bucket, turn, (Key::Archived(id), None), lost).await?;
        }
        Ok(())
    }

    /// Writes what a pack still holds, and puts the blobs that it has lost into another: from this disk, or from whoever has them.
    ///
    /// # Errors
    /// The bucket's or the store's refusal.
    pub(super) async fn write_anew(
        self: &Arc<Self>,
        bucket: &Arc<dyn Bucket>,
        turn: &mut Turn,
        left: (Key, Option<Value>),
        lost: Vec<Digest>,
    ) -> Result<(), Error> {
        let lost = self.store.run(move |store| {
            let mut links: Vec<(Digest, Link)> = Vec::new();
            for digest in lost {
                // A manifest has no link, and rests in its record.
                if let Some(repository) = store.repositories_linking(&digest, 1)?.first()
                    && let Some(link) = store.link(repository, &digest)?
                {
                    links.push((digest, link));
                }
            }
            store.commit(Commit { records: vec![left], settings: Vec::new() })?;
            Ok::<_, Error>(links)
        });
        // What one pack held fits into one; what can't be had is looked for again with later packs.
        let mut planned = Planned { plan: Plan::default(), missing: Vec::new(), found: Vec::new() };
        for (digest, link) in lost.await? {
            match self.ensure(digest, link).await? {
                Some(link) if planned.plan.offer_blob(digest, link, &Limits::default()) == Offered::Taken => {}
                _ => planned.missing.push((digest, link)),
            }
        }
        if planned.plan.is_worth_it() {
            self.check_bucket(bucket, &mut turn.checked).await?;
            let ready = self.seal(bucket, planned).await?;
            self.put(bucket, &ready).await?;
        }
        Ok(())
    }
}
