//! What counts of some packs into new ones, by the writer's ordinary way; and the old ones off the catalogue.

use std::collections::{BTreeMap, HashSet};
use std::sync::Arc;

use larder_protocol::digest::Digest;
use larder_protocol::pack::Covered;
use larder_protocol::record::{Archived, Key, Link, PackId};
use serde::{Deserialize, Serialize};

use crate::store::{self, Commit, Store, StoredManifest};

use super::super::bucket::Bucket;
use super::super::plan::{Limits, Offered, Plan};
use super::super::writer::Planned;
use super::super::{Error, Inner, PackInfo, queue};
use super::catalogue::{Ages, SIZE_COUNTED_MAX, is_linked, keeper_of};

/// Repositories in which the manifests of a blob are looked for, and manifests of one blob there.
const REPOSITORIES_MAX: usize = 4;
const MANIFESTS_MAX: usize = 100;

/// A pack that is off the catalogue and in the bucket still: the row that says so. When it was taken off is told by its record, a tombstone.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(in super::super) struct Retired {
    pub pack: PackId,
    /// The object's key.
    pub key: String,
    /// Bytes.
    pub size: u64,
}

/// What the settings of all retired packs of a bucket begin with.
pub(super) fn retired_prefix(bucket: &str) -> String {
    format!("archive/retired/{bucket}/")
}

impl Retired {
    /// The row, as it is written with a commit.
    pub(super) fn row(&self, bucket: &str) -> (String, Option<Vec<u8>>) {
        (self.name(bucket), Some(serde_json::to_vec(self).expect("texts and numbers are JSON")))
    }

    pub(super) fn name(&self, bucket: &str) -> String {
        format!("{}{}", retired_prefix(bucket), self.pack)
    }
}

/// What counts of some packs.
#[derive(Default)]
struct Wanted {
    blobs: Vec<(Digest, Link)>,
    /// Manifests of those blobs that lie in the old packs too: so that an image can be had from the new pack alone.
    manifests: BTreeMap<Digest, StoredManifest>,
}

impl Inner {
    /// Writes what counts of some packs into new ones; these.
    ///
    /// CRASH: what was put and not recorded is an object that nobody names; what was recorded holds blobs a second time, and the next plan finds the old packs
    /// dead by that much.
    ///
    /// # Errors
    /// The bucket's or the store's refusal. A blob that can't be had is left out: its old pack then stays.
    pub(super) async fn rewrite(self: &Arc<Self>, bucket: &Arc<dyn Bucket>, packs: Vec<PackId>) -> Result<Vec<PackInfo>, Error> {
        let ages = self.ages(bucket.id()).await?;
        let Wanted { blobs, mut manifests } = self.store.run(move |store| wanted(store, &packs, &ages)).await?;
        let mut here = Vec::with_capacity(blobs.len());
        for (digest, link) in blobs {
            // Before its turn: another node's answer must not keep packs of pushes waiting.
            here.extend(self.ensure(digest, link).await?.map(|link| (digest, link)));
        }
        let (limits, mut written) = (Limits::default(), Vec::new());
        let mut left = here.into_iter().peekable();
        while left.peek().is_some() {
            let mut turn = self.turn.lock().await;
            self.check_bucket(bucket, &mut turn.checked).await?;
            let mut plan = Plan::default();
            while let Some((digest, link)) = left.peek().copied() {
                let is_usable = self.usable(bucket, &digest, &link, turn.rotten(), &mut Vec::new());
                if is_usable && plan.offer_blob(digest, link, &limits) == Offered::Full {
                    break;
                }
                left.next();
            }
            while let Some((digest, manifest)) = manifests.pop_first() {
                if plan.offer_manifest(digest, &manifest.media_type, &manifest.bytes, &limits) == Offered::Full {
                    break;
                }
            }
            if plan.is_worth_it() {
                // It brings no records; but whoever takes over from this node reads in its newest pack how far it has come.
                let (own, id) = (self.store.origin(), bucket.id().to_owned());
                let upto = self.store.run(move |store| queue::cursor(store, &id, &own)).await?;
                plan.covers.insert(own, Covered { after: upto, upto });
                written.push(self.write_moved(bucket, &mut turn, Planned { plan, missing: Vec::new(), found: Vec::new() }).await?);
            }
        }
        Ok(written)
    }

    /// Takes a pack off the catalogue, if everything of it that is linked stands in another pack too; `false`: something does not.
    ///
    /// From then on no node relies on it, as soon as it has heard. CRASH: one commit.
    pub(in super::super) async fn retire(&self, bucket: &Arc<dyn Bucket>, pack: PackId, ages: &Arc<Ages>) -> Result<bool, Error> {
        let (bucket, ages) = (bucket.id().to_owned(), ages.clone());
        let retired = self.store.run(move |store| {
            let Some(archived) = store.pack(&pack)?.filter(|archived| archived.bucket == bucket) else { return Ok(false) };
            if let Some(digest) = relies(store, &pack, &archived, |other| ages.contains_key(other))? {
                tracing::info!(%pack, %digest, "a pack stays: a blob of it could not be had, or was linked meanwhile");
                return Ok(false);
            }
            let retired = Retired { pack, key: archived.object_key, size: archived.size.min(SIZE_COUNTED_MAX) };
            store.commit(Commit { records: vec![(Key::Archived(pack), None)], settings: vec![retired.row(&bucket)] })?;
            Ok::<_, store::Error>(true)
        });
        Ok(retired.await?)
    }
}

/// A blob that relies on a pack: linked, and in no other that `counts`.
pub(super) fn relies(
    store: &Store,
    pack: &PackId,
    archived: &Archived,
    counts: impl Fn(&PackId) -> bool,
) -> Result<Option<Digest>, store::Error> {
    for place in &archived.contents {
        let elsewhere = |(other, _, length): &(PackId, u64, u64)| other != pack && *length == place.length && counts(other);
        if is_linked(store, &place.digest)? && !store.locations(&place.digest)?.iter().any(elsewhere) {
            return Ok(Some(place.digest));
        }
    }
    Ok(None)
}

fn wanted(store: &Store, packs: &[PackId], ages: &Ages) -> Result<Wanted, store::Error> {
    let (mut wanted, mut lying) = (Wanted::default(), HashSet::new());
    for id in packs {
        let Some(archived) = store.pack(id)? else { continue };
        for place in &archived.contents {
            lying.insert(place.digest);
            let Some(repository) = store.repositories_linking(&place.digest, 1)?.pop() else { continue };
            if keeper_of(store, &place.digest, ages)? == Some(*id)
                && let Some(link) = store.link(&repository, &place.digest)?
            {
                wanted.blobs.push((place.digest, link));
            }
        }
    }
    for (blob, _) in &wanted.blobs {
        for repository in store.repositories_linking(blob, REPOSITORIES_MAX)? {
            for parent in store.manifests_naming(&repository, blob, MANIFESTS_MAX)? {
                if lying.contains(&parent)
                    && !wanted.manifests.contains_key(&parent)
                    && let Some(manifest) = store.manifest(&repository, &parent)?
                {
                    wanted.manifests.insert(parent, manifest);
                }
            }
        }
    }
    Ok(wanted)
}
