//! What counts of some packs into new ones, by the writer's ordinary way; and the old ones off the catalogue.

use std::collections::{BTreeMap, HashSet};
use std::sync::Arc;

use larder_protocol::codec;
use larder_protocol::digest::Digest;
use larder_protocol::pack::Covered;
use larder_protocol::record::{Archived, Key, Link, PackId};
use serde::{Deserialize, Serialize};

use crate::store::{self, Commit, Store, StoredManifest};

use super::super::bucket::Bucket;
use super::super::plan::{Limits, Offered, Plan};
use super::super::writer::Planned;
use super::super::{Error, Inner, PackInfo, keys, queue};
use super::catalogue::{Ranks, SIZE_COUNTED_MAX, is_linked, keeper_of};

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
    /// The rows, as they are written with a commit: of a pack whose end can't be read, what lies in it as well, if that is known.
    pub(super) fn rows(&self, bucket: &str, archived: Option<&Archived>) -> Vec<(String, Option<Vec<u8>>)> {
        let mut rows = vec![(self.name(bucket), Some(serde_json::to_vec(self).expect("texts and numbers are JSON")))];
        rows.extend(archived.filter(|_| self.is_frozen()).map(|archived| (self.contents_name(bucket), Some(codec::encode(archived)))));
        rows
    }

    /// The same rows, as they are taken away.
    pub(super) fn no_rows(&self, bucket: &str) -> [(String, Option<Vec<u8>>); 2] {
        [(self.name(bucket), None), (self.contents_name(bucket), None)]
    }

    pub(super) fn name(&self, bucket: &str) -> String {
        format!("{}{}", retired_prefix(bucket), self.pack)
    }

    fn contents_name(&self, bucket: &str) -> String {
        format!("archive/retired-contents/{bucket}/{}", self.pack)
    }

    /// Whether it must thaw before it can be read.
    pub(super) fn is_frozen(&self) -> bool {
        keys::class_of(&self.key).is_frozen()
    }

    /// What lies in it, where that was written down.
    pub(super) fn contents(&self, store: &Store, bucket: &str) -> Result<Option<Archived>, store::Error> {
        Ok(store.setting(&self.contents_name(bucket))?.and_then(|row| codec::decode(&row).ok()))
    }
}

/// Blobs that are on this disk.
type Blobs = Vec<(Digest, Link)>;

/// What counts of some packs.
#[derive(Default)]
struct Wanted {
    blobs: Blobs,
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
    pub(super) async fn rewrite(
        self: &Arc<Self>,
        bucket: &Arc<dyn Bucket>,
        packs: Vec<PackId>,
        is_frozen: bool,
        ranks: &Arc<Ranks>,
    ) -> Result<Vec<PackInfo>, Error> {
        let (here, mut manifests) =
            if is_frozen { (self.of_frozen(packs, ranks).await?, BTreeMap::new()) } else { self.of_readable(packs, ranks.clone()).await? };
        let (limits, mut written) = (Limits::default(), Vec::new());
        let mut left = here.into_iter().peekable();
        while left.peek().is_some() {
            let mut turn = self.turn.lock().await;
            self.check_bucket(bucket, &mut turn.checked).await?;
            let mut plan = Plan::default();
            // What was in packs of layers goes into packs of layers.
            plan.is_bulk = is_frozen && self.settings.bulk.is_some();
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
                if !plan.is_bulk {
                    plan.covers.insert(own, Covered { after: upto, upto });
                }
                written.push(self.write_moved(bucket, &mut turn, Planned { plan, missing: Vec::new(), found: Vec::new() }).await?);
            }
        }
        Ok(written)
    }

    /// What counts of packs that can be read, as far as it can be had, and manifests that go with it.
    async fn of_readable(&self, packs: Vec<PackId>, ranks: Arc<Ranks>) -> Result<(Blobs, BTreeMap<Digest, StoredManifest>), Error> {
        let Wanted { blobs, manifests } = self.store.run(move |store| wanted(store, &packs, &ranks)).await?;
        let mut here = Vec::with_capacity(blobs.len());
        for (digest, link) in blobs {
            // Before its turn: another node's answer must not keep packs of pushes waiting.
            here.extend(self.ensure(digest, link).await?.map(|link| (digest, link)));
        }
        Ok((here, manifests))
    }

    /// What counts of frozen packs, of each all or nothing: what is written for a pack that then has to stay is paid for, for months.
    async fn of_frozen(&self, packs: Vec<PackId>, ranks: &Arc<Ranks>) -> Result<Blobs, Error> {
        let mut all = Vec::new();
        'packs: for pack in packs {
            let ranks = ranks.clone();
            let Wanted { blobs, .. } = self.store.run(move |store| wanted(store, &[pack], &ranks)).await?;
            let mut here = Vec::with_capacity(blobs.len());
            for (digest, link) in blobs {
                let Some(link) = self.ensure(digest, link).await? else {
                    tracing::info!(%pack, %digest, "a frozen pack stays: a blob of it is on no disk, and nothing is thawed for this");
                    continue 'packs;
                };
                here.push((digest, link));
            }
            all.extend(here);
        }
        Ok(all)
    }

    /// Takes a pack off the catalogue, if everything of it that is linked stands in another pack too; `false`: something does not.
    ///
    /// From then on no node relies on it, as soon as it has heard. CRASH: one commit.
    pub(in super::super) async fn retire(&self, bucket: &Arc<dyn Bucket>, pack: PackId, ranks: &Arc<Ranks>) -> Result<bool, Error> {
        let (bucket, ranks) = (bucket.id().to_owned(), ranks.clone());
        let retired = self.store.run(move |store| {
            let Some(archived) = store.pack(&pack)?.filter(|archived| archived.bucket == bucket) else { return Ok(false) };
            let is_frozen = keys::class_of(&archived.object_key).is_frozen();
            // What can be read at once is not let go because it is frozen as well.
            let counts = |other: &PackId| ranks.get(other).is_some_and(|rank| rank.is_readable || is_frozen);
            if let Some(digest) = relies(store, &pack, &archived, counts)? {
                tracing::info!(%pack, %digest, "a pack stays: a blob of it could not be had, or was linked meanwhile");
                return Ok(false);
            }
            let retired = Retired { pack, key: archived.object_key.clone(), size: archived.size.min(SIZE_COUNTED_MAX) };
            let settings = retired.rows(&bucket, Some(&archived));
            store.commit(Commit { records: vec![(Key::Archived(pack), None)], settings })?;
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

fn wanted(store: &Store, packs: &[PackId], ranks: &Ranks) -> Result<Wanted, store::Error> {
    let (mut wanted, mut lying) = (Wanted::default(), HashSet::new());
    for id in packs {
        let Some(archived) = store.pack(id)? else { continue };
        for place in &archived.contents {
            lying.insert(place.digest);
            let Some(repository) = store.repositories_linking(&place.digest, 1)?.pop() else { continue };
            if keeper_of(store, &place.digest, ranks)? == Some(*id)
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
