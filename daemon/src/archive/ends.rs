//! The ends of packs, as a restore reads them: those of writers who count, as they come to be known (see `trust`), the newest of each first.
//!
//! A pack whose end is damaged is walked from its first byte instead (see `walked`). Packs of writers whom nobody has named are not opened at all.

use std::collections::{BTreeMap, BTreeSet};

use futures_util::stream::{self, BoxStream, StreamExt};
use larder_protocol::pack::Covered;
use larder_protocol::record::{Archived, Key, Numbered, PackId, Value};
use larder_protocol::stamp::NodeId;
use larder_protocol::vector::Origin;

use crate::store::{ClusterId, Commit};

use super::bucket::Listed;
use super::restore::{Work, is_wanted, note_packs};
use super::tail::{self, Opened};
use super::trust::{Standing, Stranger};
use super::{Error, Skipped, walked};

/// Packs whose ends are read at a time.
const READ_AHEAD: usize = 4;
/// Ends of newest packs that are kept until their turn; of more writers, they are read again.
const ENDS_KEPT_MAX: usize = 64;

/// Packs by writer, the newest last.
type ByWriter = BTreeMap<NodeId, Vec<(PackId, Listed)>>;
/// Ends as they are read.
type Ends = BoxStream<'static, (PackId, Listed, Result<Opened, Error>)>;
/// What packs say they cover.
pub(super) type Covers = Vec<(Origin, Covered)>;

impl Work<'_> {
    /// Merges the packs of all who count; what they cover.
    ///
    /// # Errors
    /// `Strangers` when some don't, unless they are to be left out; `Founders`, `Clusters`; the store's refusal.
    pub(super) async fn tail(&mut self, packs: Vec<(PackId, Listed)>) -> Result<Covers, Error> {
        let (mut left, mut covers) = (by_writer(packs), Covers::new());
        let mut met = BTreeSet::new();
        loop {
            let ends = self.meet(&mut left, &mut met, &mut covers).await?;
            self.check_clusters(&ends)?;
            let (ends, expelled): (Vec<_>, Vec<_>) = ends.into_iter().partition(|end| self.counts(&end.footer.pack.origin.node));
            for Opened { listed, footer, .. } in expelled {
                left.entry(footer.pack.origin.node).or_default().push((footer.pack, listed));
            }
            let ready: Vec<NodeId> = met.iter().copied().filter(|node| self.counts(node)).collect();
            let rest: Vec<_> = ready.iter().filter_map(|node| left.remove(node)).flatten().collect();
            if ends.is_empty() && rest.is_empty() {
                break;
            }
            self.begin().await?;
            for end in ends {
                self.take(end, &mut covers).await?;
            }
            // An older pack may name those who had gone when the newest was written.
            self.read(rest, &mut covers).await?;
        }
        if let Some((founder, other)) = self.trust.other_founder()
            && self.options.trust.is_empty()
        {
            return Err(Error::Founders { bucket: self.bucket.id().to_owned(), founder: founder.letters(), other: other.letters() });
        }
        self.take_of_expelled(&mut left, &mut covers).await?;
        self.leave_strangers(left)?;
        Ok(covers)
    }

    /// Comes to know as many writers as can be, by the newest pack of each; merges nothing. What was opened is taken out of `left`.
    pub(super) async fn meet(
        &mut self,
        left: &mut ByWriter,
        met: &mut BTreeSet<NodeId>,
        covers: &mut Covers,
    ) -> Result<Vec<Opened>, Error> {
        let mut ends = Vec::new();
        loop {
            let unmet = left.iter_mut().filter(|(node, _)| !met.contains(*node) && self.counts(node));
            let newest: Vec<_> = unmet.filter_map(|(_, packs)| packs.pop()).collect();
            left.retain(|_, packs| !packs.is_empty());
            if newest.is_empty() {
                return Ok(ends);
            }
            let mut opened = self.open(newest);
            while let Some((id, listed, end)) = opened.next().await {
                match end {
                    Ok(end) => {
                        met.insert(id.origin.node);
                        self.trust.learn(&id.origin.node, &end.contents.company);
                        if ends.len() < ENDS_KEPT_MAX {
                            ends.push(end);
                        } else {
                            left.entry(id.origin.node).or_default().push((id, listed));
                        }
                    }
                    Err(error) => self.mend(id, listed, error, covers).await?,
                }
            }
        }
    }

    /// Reads and merges these packs, whoever wrote them.
    pub(super) async fn read(&mut self, packs: Vec<(PackId, Listed)>, covers: &mut Covers) -> Result<(), Error> {
        let mut opened = self.open(packs.into_iter().rev().collect());
        while let Some((id, listed, end)) = opened.next().await {
            match end {
                Ok(end) => {
                    self.trust.learn(&id.origin.node, &end.contents.company);
                    self.take(end, covers).await?;
                }
                Err(error) => self.mend(id, listed, error, covers).await?,
            }
        }
        Ok(())
    }

    fn counts(&self, node: &NodeId) -> bool {
        self.trust.standing(node) == Standing::Member
    }

    fn open(&self, packs: Vec<(PackId, Listed)>) -> Ends {
        let bucket = self.bucket.clone();
        stream::iter(packs)
            .map(move |(id, listed)| {
                let bucket = bucket.clone();
                async move {
                    let end = tail::open(&*bucket, id, listed.clone()).await;
                    (id, listed, end)
                }
            })
            .buffered(READ_AHEAD)
            .boxed()
    }

    /// A pack that could not be opened: what can be had of it otherwise, and a line in the report.
    async fn mend(&mut self, id: PackId, listed: Listed, error: Error, covers: &mut Covers) -> Result<(), Error> {
        if self.is_final(&error) {
            return Err(error);
        }
        let key = listed.key.clone();
        let mut why = error.to_string();
        if matches!(error, Error::Pack { .. }) {
            let is_placed = self.inner.store.run(move |store| store.pack(&id)).await?.is_some_and(|known| known.object_key == key);
            match walked::walk(&self.bucket, id, &listed, is_placed).await {
                Ok(None) => why = format!("{why}; where its blobs are is told by others, its records can't be proven and don't count"),
                Ok(Some(walked)) => {
                    self.begin().await?;
                    why = format!("{why}; {}", walked.what());
                    self.place(id, walked.archived).await?;
                    if let Some(opened) = walked.opened {
                        self.trust.learn(&id.origin.node, &opened.contents.company);
                        self.take(opened, covers).await?;
                    }
                }
                Err(error) => why = format!("{why}; walking through it: {error}"),
            }
        }
        self.report.skipped.push(Skipped { key: listed.key, why });
        Ok(())
    }

    /// Merges what a pack says.
    async fn take(&mut self, opened: Opened, covers: &mut Covers) -> Result<(), Error> {
        self.report.packs += 1;
        self.report.as_of_ms = self.report.as_of_ms.max(opened.footer.created_ms);
        let (key, covered) = (opened.listed.key.clone(), opened.contents.covers.clone());
        let refused = self.merge_pack(opened).await?;
        if refused == 0 {
            covers.extend(covered);
        } else {
            let why = format!("{refused} of its records lie in the future; set this host's clock and restore again");
            self.report.skipped.push(Skipped { key, why });
        }
        Ok(())
    }

    /// Merges a pack's records and makes its blobs findable; says how many records were refused.
    async fn merge_pack(&mut self, opened: Opened) -> Result<usize, Error> {
        let Opened { listed, footer, contents } = opened;
        let archived = Archived {
            bucket: self.bucket.id().to_owned(),
            object_key: listed.key,
            size: footer.size,
            created_ms: footer.created_ms,
            records: footer.record_count,
            contents: contents.located(),
        };
        // What the checkpoint covers is in it, or was deleted and forgotten since.
        let (seen, options) = (&self.seen, self.options);
        let is_new = |numbered: &Numbered| numbered.sequence > seen.get(&numbered.origin) && is_wanted(options, &numbered.record.key);
        let records: Vec<Numbered> = contents.records.into_iter().filter(is_new).collect();
        self.report.records += records.len();
        note_packs(&mut self.told, &records);
        let refused = self.inner.merge(records).await?;
        self.place(footer.pack, archived).await?;
        Ok(refused)
    }

    /// Makes the blobs of a pack findable.
    async fn place(&self, id: PackId, archived: Archived) -> Result<(), Error> {
        let placed = self.inner.store.run(move |store| {
            let known = store.pack(&id)?;
            if known.is_none_or(|known| (&known.bucket, &known.object_key) != (&archived.bucket, &archived.object_key)) {
                let records = vec![(Key::Archived(id), Some(Value::Archived(archived)))];
                store.commit(Commit { records, settings: Vec::new() })?;
            }
            Ok::<_, crate::store::Error>(())
        });
        Ok(placed.await?)
    }

    /// Of those who were expelled, the packs that others tell of.
    async fn take_of_expelled(&mut self, left: &mut ByWriter, covers: &mut Covers) -> Result<(), Error> {
        let expelled: Vec<NodeId> = left.keys().copied().filter(|node| self.trust.standing(node) == Standing::Expelled).collect();
        for node in expelled {
            let packs = left.remove(&node).unwrap_or_default();
            let ids: Vec<(PackId, Listed)> = packs.clone();
            let told = self.inner.store.run(move |store| {
                let told = |(id, listed): &(PackId, Listed)| Ok(store.pack(id)?.is_some_and(|known| known.object_key == listed.key));
                ids.iter().map(told).collect::<Result<Vec<bool>, crate::store::Error>>()
            });
            let (mut vouched, mut alone) = (Vec::new(), Vec::new());
            for (pack, told) in packs.into_iter().zip(told.await?) {
                if told { vouched.push(pack) } else { alone.push(pack) }
            }
            self.read(vouched, covers).await?;
            let why = "its writer was expelled, and nobody else tells of it";
            self.report.skipped.extend(alone.into_iter().map(|(_, listed)| Skipped { key: listed.key, why: why.to_owned() }));
        }
        Ok(())
    }

    fn leave_strangers(&mut self, left: ByWriter) -> Result<(), Error> {
        let strangers: Vec<Stranger> = left.iter().map(|(node, packs)| Stranger { node: node.letters(), packs: packs.len() }).collect();
        if !strangers.is_empty() && !self.options.leave_strangers {
            return Err(Error::Strangers { bucket: self.bucket.id().to_owned(), strangers });
        }
        let why = "its writer is nobody whom a member of the cluster names";
        let packs = left.into_values().flatten();
        self.report.skipped.extend(packs.map(|(_, listed)| Skipped { key: listed.key, why: why.to_owned() }));
        Ok(())
    }

    /// Where nothing says whose bucket it is, all must be of one cluster. A node may have archived before it joined: its newest pack counts.
    fn check_clusters(&mut self, ends: &[Opened]) -> Result<(), Error> {
        if !self.any_cluster {
            return Ok(());
        }
        self.clusters.extend(ends.iter().map(|end| end.footer.cluster));
        if self.clusters.len() > 1 {
            let clusters = self.clusters.iter().map(hex::encode::<&ClusterId>).collect();
            return Err(Error::Clusters { url: self.bucket.id().to_owned(), clusters });
        }
        Ok(())
    }
}

/// Sorts packs by writer and age.
pub(super) fn by_writer(packs: Vec<(PackId, Listed)>) -> ByWriter {
    let mut left = ByWriter::new();
    for pack in packs {
        left.entry(pack.0.origin.node).or_default().push(pack);
    }
    left.values_mut().for_each(|packs| packs.sort_by_key(|(id, _)| *id));
    left
}
