//! What the plan is made from: of every pack, how much counts, and where that is.

use std::collections::HashMap;
use std::sync::Arc;

use larder_protocol::digest::Digest;
use larder_protocol::record::{Archived, PackId};
use larder_protocol::stamp::NodeId;

use crate::config::Prices;
use crate::store::{self, LocatedBlob, Store};

use super::super::bucket::Bucket;
use super::super::{Error, Inner, keys, queue};
use super::plan::{Pack, Rank, Rates, keeper};

/// No object is larger; what records of others say adds up to something that can be counted with.
pub(super) const SIZE_COUNTED_MAX: u64 = 1 << 43;

/// Blobs that are weighed at a time: for a moment of a blocking thread.
const BLOBS_PAGE: usize = 4_096;

/// How much the packs of a bucket count.
pub(in super::super) type Ranks = HashMap<PackId, Rank>;
/// Whether this node compacts a writer's packs.
pub(super) type Compacts = dyn Fn(&NodeId) -> bool + Send + Sync;

impl Inner {
    /// Weighs every pack of a bucket. Reads the records of all packs once, and then all blobs that they hold, in order.
    pub(super) async fn weighed(&self, bucket: &Arc<dyn Bucket>) -> Result<Vec<Pack>, Error> {
        let (compacts, mut scales) = (self.compacts().await?, Scales::default());
        self.each_pack(|id, archived| {
            if archived.bucket == bucket.id() {
                scales.add(id, archived, bucket.prices(), compacts(&id.origin.node));
            }
        })
        .await?;
        let mut after = None;
        loop {
            let page = self.store.run(move |store| {
                let page = store.located(after.as_ref(), BLOBS_PAGE)?;
                page.iter().for_each(|blob| scales.weigh(blob));
                Ok::<_, store::Error>((scales, page.last().map(|blob| blob.digest)))
            });
            (scales, after) = page.await?;
            if after.is_none() {
                return Ok(scales.packs);
            }
        }
    }

    /// Whether this node compacts the packs of a writer: its own, and those of writers that are gone or have no bucket when it is the first of the
    /// live archivers in their order; the same that archives their records.
    pub(super) async fn compacts(&self) -> Result<Arc<Compacts>, Error> {
        let gone = self.gone();
        let compacts = self.store.run(move |store| {
            let mut nodes = HashMap::new();
            // Writers are keys; a node may have had several.
            for (node, counting) in store.keys()? {
                let keys =
                    counting.into_iter().flat_map(|it| it.before.into_iter().map(|(key, _)| key).chain([it.used]).chain(it.announced));
                nodes.extend(keys.map(|key| (key, node)));
            }
            let archives_for = queue::archives_for(store, &*gone)?;
            Ok::<_, store::Error>(Arc::new(move |key: &NodeId| archives_for(nodes.get(key).unwrap_or(key))) as Arc<Compacts>)
        });
        Ok(compacts.await?)
    }

    /// How much each pack of a bucket counts.
    pub(in super::super) async fn ranks(&self, bucket: &str) -> Result<Ranks, Error> {
        let mut ranks = Ranks::new();
        self.each_pack(|id, archived| {
            if archived.bucket == bucket {
                let is_readable = !keys::class_of(&archived.object_key).is_frozen();
                ranks.insert(*id, Rank { is_readable, created_ms: archived.created_ms });
            }
        })
        .await?;
        Ok(ranks)
    }
}

/// The packs of a bucket, as far as they are weighed.
#[derive(Default)]
struct Scales {
    packs: Vec<Pack>,
    at: HashMap<PackId, usize>,
}

impl Scales {
    fn add(&mut self, id: &PackId, archived: &Archived, prices: &Prices, is_ours: bool) {
        let class = keys::class_of(&archived.object_key);
        self.at.insert(*id, self.packs.len());
        self.packs.push(Pack {
            id: *id,
            key: archived.object_key.clone(),
            rates: Rates::of(prices, &class),
            class,
            size: archived.size.min(SIZE_COUNTED_MAX),
            created_ms: archived.created_ms,
            live_blobs: 0,
            live_bytes: 0,
            away_blobs: 0,
            away_bytes: 0,
            is_ours,
        });
    }

    /// Gives a blob to the pack that counts as holding it.
    fn weigh(&mut self, blob: &LocatedBlob) {
        if !blob.is_linked {
            return;
        }
        let ranked = blob.packs.iter().filter_map(|(id, _)| {
            let pack = &self.packs[*self.at.get(id)?];
            Some((Rank { is_readable: !pack.class.is_frozen(), created_ms: pack.created_ms }, *id))
        });
        let Some(id) = keeper(ranked) else { return };
        let pack = &mut self.packs[self.at[&id]];
        let length = blob.packs.iter().find(|(holder, _)| *holder == id).map_or(0, |(_, length)| *length);
        if length > pack.size {
            return;
        }
        pack.live_blobs += 1;
        pack.live_bytes = (pack.live_bytes + length).min(pack.size);
        if !blob.is_here {
            pack.away_blobs += 1;
            pack.away_bytes = (pack.away_bytes + length).min(pack.size);
        }
    }
}

/// Whether any repository links a blob. Manifests have no links: they rest in their records.
pub(super) fn is_linked(store: &Store, digest: &Digest) -> Result<bool, store::Error> {
    Ok(!store.repositories_linking(digest, 1)?.is_empty())
}

/// Which pack counts as holding a blob.
pub(super) fn keeper_of(store: &Store, digest: &Digest, ranks: &Ranks) -> Result<Option<PackId>, store::Error> {
    let holders = store.locations(digest)?.into_iter().filter_map(|(id, _, _)| Some((*ranks.get(&id)?, id)));
    Ok(keeper(holders))
}
