//! What the plan is made from: of every pack, how much counts, and where that is.

use std::collections::HashMap;
use std::sync::Arc;

use larder_protocol::digest::Digest;
use larder_protocol::record::{Archived, PackId};
use larder_protocol::stamp::NodeId;

use crate::config::Prices;
use crate::store::{self, Store};

use super::super::bucket::Bucket;
use super::super::{Error, Inner, PACKS_LISTED_MAX, PACKS_PAGE, keys, queue};
use super::plan::{Pack, Rank, Rates, keeper};

/// No object is larger; what records of others say adds up to something that can be counted with.
pub(super) const SIZE_COUNTED_MAX: u64 = 1 << 43;

/// How much the packs of a bucket count.
pub(in super::super) type Ranks = HashMap<PackId, Rank>;
/// Whether this node compacts a writer's packs.
pub(super) type Compacts = dyn Fn(&NodeId) -> bool + Send + Sync;

impl Inner {
    /// Weighs every pack of a bucket. Takes two looks at the records of each pack, and three at the index for each blob.
    pub(super) async fn weighed(&self, bucket: &Arc<dyn Bucket>) -> Result<Vec<Pack>, Error> {
        let (ranks, compacts) = (Arc::new(self.ranks(bucket.id()).await?), self.compacts().await?);
        let (mut packs, mut after) = (Vec::with_capacity(ranks.len()), None::<PackId>);
        loop {
            let (ranks, compacts, bucket) = (ranks.clone(), compacts.clone(), bucket.clone());
            let page = self.store.run(move |store| {
                let page = store.packs(after.as_ref(), PACKS_PAGE)?;
                let here = page.iter().filter(|(id, archived)| archived.bucket == bucket.id() && ranks.contains_key(id));
                let weighed = here.map(|(id, archived)| weigh(store, id, archived, &ranks, bucket.prices(), compacts(&id.origin.node)));
                Ok::<_, store::Error>((weighed.collect::<Result<Vec<_>, _>>()?, page.last().map(|(id, _)| *id)))
            });
            let (weighed, last) = page.await?;
            packs.extend(weighed);
            if last.is_none() || packs.len() >= PACKS_LISTED_MAX {
                return Ok(packs);
            }
            after = last;
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

fn weigh(store: &Store, id: &PackId, archived: &Archived, ranks: &Ranks, prices: &Prices, is_ours: bool) -> Result<Pack, store::Error> {
    let class = keys::class_of(&archived.object_key);
    let mut pack = Pack {
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
    };
    let size = pack.size;
    for place in archived.contents.iter().filter(|place| place.length <= size) {
        if is_linked(store, &place.digest)? && keeper_of(store, &place.digest, ranks)? == Some(*id) {
            pack.live_blobs += 1;
            pack.live_bytes = (pack.live_bytes + place.length).min(size);
            if store.blob(&place.digest)?.is_none() {
                pack.away_blobs += 1;
                pack.away_bytes = (pack.away_bytes + place.length).min(size);
            }
        }
    }
    Ok(pack)
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
