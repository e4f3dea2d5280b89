//! A bucket's metadata back onto an empty node; its blobs follow (see `refill`).
//!
//! The bucket's mark says whom to believe first (see `trust`). LIST gives the checkpoints; the newest that is whole gives the state up to then, by one request for its end and one for the rest. LIST gives the packs
//! behind it; the end of each, one ranged GET, gives its footer, its index, its records and their manifests. What can't be used is named in the report
//! and left out; an earlier checkpoint, or the packs alone, say the same with more requests.
//!
//! How far each origin is known afterwards follows from the checkpoint and from what the packs say they cover. Where numbers are missing, the packs before
//! the checkpoint are read too; what nothing brings is a gap, which is told with its numbers, and only passed over when the
//! caller says so. What is behind a gap is here as well, but a peer that comes back is asked for it again.
//!
//! Of some repositories only, what is restored is written as this node's own, in the cluster that this node founded: it then does not
//! claim to know what it left out.
//!
//! A restore that was interrupted can be begun again with the same address: merging records twice changes nothing.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Instant;

use larder_protocol::record::{Archived, Key, Numbered, PackId, Value};
use larder_protocol::stamp::{NodeId, Stamp};
use larder_protocol::vector::{Origin, VersionVector};

use crate::age::Identity;
use crate::config::ArchiveUrl;
use crate::glob::Glob;
use crate::store::{ClusterId, Commit};

use super::bucket::{self, Bucket, Listed};
use super::trust::{Standing, Trust};
use super::{Error, Gap, Inner, Restored, Skipped, checkpoint, cluster, ends, keys, queue, refill, tail};

/// The setting that holds the address that blobs of a restored cluster come from.
pub const SOURCE: &str = "archive/source";
/// The setting that says that a restore was begun and not finished.
pub(super) const RESTORING: &str = "archive/restoring";
/// Checkpoints with which numbers are missing, before that is told.
const WITH_GAPS_MAX: usize = 3;
/// Records merged in one batch.
const APPLY_BATCH: usize = 5_000;

/// What to restore.
#[derive(Clone, Debug, Default)]
pub struct RestoreOptions {
    /// Only repositories that one of these matches; none: everything.
    pub repositories: Vec<Glob>,
    /// Blobs come on demand only.
    pub metadata_only: bool,
    /// Go on although numbers are missing.
    pub allow_gaps: bool,
    /// Nodes whose packs count, whether a member names them or not.
    pub trust: Vec<NodeId>,
    /// Go on without the packs of those who are neither members nor trusted.
    pub leave_strangers: bool,
    /// As whom encrypted packs are read, beside those that are configured; kept until this node stops.
    pub identities: Vec<Arc<Identity>>,
}

/// A restore under way.
pub(super) struct Work<'a> {
    pub inner: &'a Arc<Inner>,
    pub bucket: Arc<dyn Bucket>,
    pub options: &'a RestoreOptions,
    /// What is written down before anything is merged.
    begin: Vec<(String, Option<Vec<u8>>)>,
    /// Whom it believes.
    pub trust: Trust,
    /// What the checkpoint covers.
    pub seen: VersionVector,
    /// Its bucket and prefix, when they are others now.
    moved: Option<(String, String)>,
    /// Nothing says which cluster's bucket it is: that of the packs.
    pub any_cluster: bool,
    pub clusters: BTreeSet<ClusterId>,
    /// Packs that were listed and not opened.
    frozen: BTreeMap<PackId, Listed>,
    /// Of packs whose records were read: when they were last told of, and whether that was the end of them.
    pub told: BTreeMap<PackId, (Stamp, bool)>,
    pub report: Report,
}

/// What the bucket says.
struct Found {
    cluster: ClusterId,
    horizon: VersionVector,
    seen: VersionVector,
    gaps: Vec<Gap>,
}

/// What comes of it.
#[derive(Default)]
pub(super) struct Report {
    pub records: usize,
    pub packs: usize,
    pub skipped: Vec<Skipped>,
    checkpoint: Option<String>,
    pub as_of_ms: u64,
}

impl Inner {
    /// See [`super::Archive::restore`].
    pub async fn restore(self: &Arc<Self>, url: &str, options: &RestoreOptions) -> Result<Restored, Error> {
        let began = Instant::now();
        let address = bucket::parse_url(url)?;
        // A folder to archive into is made; one to restore from must be there.
        if let ArchiveUrl::Directory(path) = &address
            && !path.is_dir()
        {
            return Err(Error::Url { url: url.to_owned(), why: "there is no such folder".to_owned() });
        }
        let _turn = self.turn.lock().await;
        let own = url.to_owned();
        let ready = self.store.run(move |store| {
            let resumed = store.setting(RESTORING)?.is_some_and(|begun| begun == own.as_bytes());
            Ok::<_, crate::store::Error>(resumed || store.is_empty()?)
        });
        if !ready.await? {
            return Err(Error::NotEmpty { url: url.to_owned() });
        }
        self.settings.s3.keyring.add(options.identities.clone());
        let requests_before = self.ledger.tally().requests.total();
        let bucket = bucket::open(&address, &self.settings.s3, &self.ledger).await?;
        let begin = vec![
            (RESTORING.to_owned(), Some(url.as_bytes().to_vec())),
            (SOURCE.to_owned(), Some(bucket::display_url(&address).into_bytes())),
        ];
        *self.source.lock().expect("never held across a panic") = Some(bucket.clone());
        let mark = match cluster::marked(&*bucket).await {
            Ok(mark) => mark,
            // Whoever says whom to believe needs no mark.
            Err(error) if !options.trust.is_empty() => {
                tracing::warn!(%error, "whose bucket it is can't be read");
                None
            }
            Err(error) => return Err(error),
        };
        let founder = mark.as_ref().and_then(|mark| mark.founder);
        let trust = Trust::new(founder, options.trust.iter().copied().chain([self.store.origin().node, (self.signer)().0]));
        let mut work = Work {
            inner: self,
            bucket: bucket.clone(),
            options,
            begin,
            trust,
            seen: VersionVector::default(),
            moved: None,
            any_cluster: false,
            clusters: BTreeSet::new(),
            frozen: BTreeMap::new(),
            told: BTreeMap::new(),
            report: Report::default(),
        };
        let Found { cluster, horizon, seen, gaps } = match work.checkpoint().await? {
            Some(found) => found,
            None => work.packs_alone(url, mark.and_then(|mark| mark.cluster)).await?,
        };
        work.relocate().await?;
        work.place_frozen().await?;
        work.bury().await?;
        let Work { report, .. } = work;
        let partial = !options.repositories.is_empty();
        if !options.metadata_only {
            // ORDER: before the records count as known, and whoever keeps copies sees what is not here.
            self.filling.lock().expect("never held across a panic").state = "running".to_owned();
            self.write(vec![(refill::FILLING.to_owned(), Some(url.as_bytes().to_vec()))]).await?;
        }
        if partial {
            self.store.run(|store| store.write_anew()).await?;
            self.write(vec![(RESTORING.to_owned(), None)]).await?;
        } else {
            self.finish(&bucket, cluster, seen, horizon).await?;
        }
        if !options.metadata_only {
            self.refill.notify_one();
        }
        let counts = self.store.run(|store| store.counts()).await?;
        Ok(Restored {
            cluster: hex::encode(cluster),
            packs: report.packs,
            records: report.records,
            repositories: counts.repositories,
            tags: counts.tags,
            skipped: report.skipped,
            checkpoint: report.checkpoint,
            as_of: super::moment(report.as_of_ms),
            gaps,
            requests: self.ledger.tally().requests.total() - requests_before,
            founder: founder.as_ref().map(NodeId::letters),
            seconds: began.elapsed().as_secs_f64(),
        })
    }

    async fn write(&self, settings: Vec<(String, Option<Vec<u8>>)>) -> Result<(), Error> {
        self.store.run(move |store| store.commit(Commit { records: Vec::new(), settings })).await?;
        Ok(())
    }

    /// Everything is merged: what is known, who we are, and what needs not be archived again.
    async fn finish(
        &self,
        bucket: &Arc<dyn Bucket>,
        cluster: ClusterId,
        known: VersionVector,
        horizon: VersionVector,
    ) -> Result<(), Error> {
        // Cursors are kept for each bucket: if this node archives to another one, everything is new there.
        let cursor = |(origin, upto): (Origin, u64)| (queue::cursor_setting(bucket.id(), &origin), Some(upto.to_string().into()));
        let mut settings: Vec<(String, Option<Vec<u8>>)> = known.iter().map(cursor).collect();
        settings.push((RESTORING.to_owned(), None));
        let finished = self.store.run(move |store| {
            store.apply(Vec::new(), &known)?;
            store.learn_horizon(&horizon)?;
            // ORDER: the id last but one, the mark last: a restore that dies before can be begun again.
            store.adopt_cluster(cluster)?;
            store.commit(Commit { records: Vec::new(), settings }).map(|_| ())
        });
        Ok(finished.await?)
    }

    /// Merges records in batches; says how many were refused.
    pub(super) async fn merge(&self, records: Vec<Numbered>) -> Result<usize, Error> {
        let count = records.len() as u64;
        let merged = self.store.run(move |store| {
            let (mut refused, mut records) = (0, records.into_iter().peekable());
            while records.peek().is_some() {
                let batch: Vec<Numbered> = records.by_ref().take(APPLY_BATCH).collect();
                refused += store.apply(batch, &VersionVector::default())?.refused;
            }
            Ok::<_, crate::store::Error>(refused)
        });
        let refused = merged.await?;
        self.restored_records.fetch_add(count, Ordering::Relaxed);
        Ok(refused)
    }
}

impl Work<'_> {
    /// From here on the store is one that is being restored.
    pub(super) async fn begin(&mut self) -> Result<(), Error> {
        match std::mem::take(&mut self.begin) {
            begin if begin.is_empty() => Ok(()),
            begin => self.inner.write(begin).await,
        }
    }

    /// Whether it can't be gone on after: what is encrypted to others is no loss before all identities were tried, unless the caller says so.
    pub(super) fn is_final(&self, error: &Error) -> bool {
        let goes_on = self.options.allow_gaps && self.inner.settings.s3.keyring.has_identities();
        matches!(error, Error::Locked { .. }) && !goes_on
    }

    /// Takes the newest checkpoint that is whole and whose writer counts, and what came behind it.
    async fn checkpoint(&mut self) -> Result<Option<Found>, Error> {
        let found = checkpoint::list(&*self.bucket, 0).await?;
        let (mut has_met_all, mut with_gaps) = (false, Vec::new());
        for (_, listed) in found.into_iter().rev().take(checkpoint::TRIED_MAX) {
            let key = listed.key.clone();
            let opened = match checkpoint::open(&*self.bucket, listed).await {
                Ok(opened) => Arc::new(opened),
                Err(error) if self.is_final(&error) => return Err(error),
                Err(error) => {
                    self.report.skipped.push(Skipped { key, why: error.to_string() });
                    continue;
                }
            };
            let writer = opened.footer.writer.node;
            if self.trust.standing(&writer) == Standing::Stranger && !std::mem::replace(&mut has_met_all, true) {
                // Whoever wrote it may be named by a pack of somebody who counts.
                let (packs, _) = self.list(&BTreeMap::new()).await?;
                self.meet(&mut ends::by_writer(packs), &mut BTreeSet::new(), &mut Vec::new()).await?;
            }
            if self.trust.standing(&writer) != Standing::Member {
                let why = format!("its writer, {}, is nobody whom a member of the cluster names, or was expelled", writer.letters());
                self.report.skipped.push(Skipped { key, why });
                continue;
            }
            self.begin().await?;
            let (packs_before, skipped_before) = (self.report.packs, self.report.skipped.len());
            match self.with(&opened).await {
                Ok(found) => {
                    self.report.as_of_ms = self.report.as_of_ms.max(opened.footer.created_ms);
                    self.report.checkpoint = Some(key);
                    return Ok(Some(found));
                }
                // A node that was cut off may have written a checkpoint that knows less than those before it, and packs that these bring are compacted since.
                Err(error @ Error::Gaps { .. }) if with_gaps.len() < WITH_GAPS_MAX => {
                    self.report.packs = packs_before;
                    self.report.skipped.truncate(skipped_before);
                    with_gaps.push(error);
                }
                Err(error @ Error::Gaps { .. }) => return Err(with_gaps.into_iter().next().unwrap_or(error)),
                Err(error @ (Error::Store(_) | Error::Strangers { .. } | Error::Founders { .. })) => return Err(error),
                Err(error) if self.is_final(&error) => return Err(error),
                // What was merged of it was signed; an earlier one and its tail bring the rest.
                Err(error) => {
                    self.report.packs = packs_before;
                    self.report.skipped.truncate(skipped_before);
                    self.report.skipped.push(Skipped { key, why: error.to_string() });
                }
            }
        }
        if let Some(gaps) = with_gaps.into_iter().next() {
            return Err(gaps);
        }
        self.seen = VersionVector::default();
        self.moved = None;
        Ok(None)
    }

    /// What came behind a checkpoint, then the checkpoint: so nobody is given what was superseded since.
    async fn with(&mut self, opened: &Arc<checkpoint::Opened>) -> Result<Found, Error> {
        let scope = &opened.directory.scope;
        self.trust.learn(&opened.footer.writer.node, &scope.company);
        self.seen = scope.seen.clone();
        let is_moved = scope.bucket != self.bucket.id() || scope.prefix != self.bucket.prefix();
        self.moved = is_moved.then(|| (scope.bucket.clone(), scope.prefix.clone()));
        let (packs, strange) = self.list(&scope.packs).await?;
        self.report.skipped.extend(strange);
        let mut covers = self.tail(packs).await?;
        let (mut seen, mut gaps) = tail::dense(self.seen.clone(), covers.clone());
        if !gaps.is_empty() {
            // What is missing may stand in a pack that the checkpoint's writer knew of, without knowing all that it brings.
            let (all, _) = self.list(&BTreeMap::new()).await?;
            let is_known = |id: &PackId| scope.packs.get(&id.origin).is_some_and(|last| id.sequence <= *last);
            self.read(all.into_iter().filter(|(id, _)| is_known(id)).collect(), &mut covers).await?;
            (seen, gaps) = tail::dense(self.seen.clone(), covers);
        }
        self.check(&gaps)?;
        if self.take_checkpoint(opened).await? > 0 {
            // Not all of it was believed: it must come again.
            seen = VersionVector::default();
        }
        Ok(Found { cluster: opened.footer.cluster, horizon: scope.horizon.clone(), seen, gaps })
    }

    /// What all packs say together.
    async fn packs_alone(&mut self, url: &str, marked: Option<ClusterId>) -> Result<Found, Error> {
        let (packs, strange) = self.list(&BTreeMap::new()).await?;
        self.report.skipped.extend(strange);
        self.any_cluster = marked.is_none();
        let covers = self.tail(packs).await?;
        // A mark without anything that can be read is nothing to restore.
        let readable = marked.or_else(|| self.clusters.first().copied()).filter(|_| self.report.packs > 0);
        let Some(cluster) = readable else {
            let prefix = keys::packs(self.bucket.prefix());
            return Err(Error::NoPacks { url: url.to_owned(), prefix, skipped: self.report.skipped.len() });
        };
        let (seen, gaps) = tail::dense(VersionVector::default(), covers);
        self.check(&gaps)?;
        Ok(Found { cluster, horizon: VersionVector::default(), seen, gaps })
    }

    /// The packs behind those that are known, without those that are frozen: they have no records, and others tell what lies in them.
    async fn list(&mut self, known: &BTreeMap<Origin, u64>) -> Result<(Vec<(PackId, Listed)>, Vec<Skipped>), Error> {
        let (packs, strange) = tail::list(&*self.bucket, known).await?;
        let (frozen, packs) = packs.into_iter().partition::<Vec<_>, _>(|(_, listed)| keys::class_of(&listed.key).is_frozen());
        self.frozen.extend(frozen);
        Ok((packs, strange))
    }

    /// Frozen packs that nothing has told of: a crash left them, or what told of them is lost. And those that were told of in another bucket, of which this one is
    /// a copy: of others the end says what lies in them, of these a record alone does.
    async fn place_frozen(&mut self) -> Result<(), Error> {
        let (frozen, bucket) = (std::mem::take(&mut self.frozen), self.bucket.id().to_owned());
        let placed = self.inner.store.run(move |store| {
            let (mut unknown, mut moved) = (Vec::new(), Vec::new());
            for (id, listed) in frozen {
                match store.pack(&id)? {
                    None => unknown.push(listed.key),
                    Some(archived) if archived.bucket != bucket && archived.size == listed.size => {
                        let archived = Archived { bucket: bucket.clone(), object_key: listed.key, ..archived };
                        moved.push((Key::Archived(id), Some(Value::Archived(archived))));
                    }
                    Some(_) => {}
                }
                if moved.len() >= PACKS_MOVED_AT_ONCE {
                    store.commit(Commit { records: std::mem::take(&mut moved), settings: Vec::new() })?;
                }
            }
            if !moved.is_empty() {
                store.commit(Commit { records: moved, settings: Vec::new() })?;
            }
            Ok::<_, crate::store::Error>(unknown)
        });
        let why = "it is frozen, and nothing tells what lies in it: a push that a crash cut off, or what a lost pack told of";
        self.report.skipped.extend(placed.await?.into_iter().map(|key| Skipped { key, why: why.to_owned() }));
        Ok(())
    }

    fn check(&self, gaps: &[Gap]) -> Result<(), Error> {
        if gaps.is_empty() || self.options.allow_gaps {
            return Ok(());
        }
        Err(Error::Gaps { bucket: self.bucket.id().to_owned(), gaps: gaps.to_vec() })
    }

    /// Merges the records of a checkpoint; how many were refused.
    async fn take_checkpoint(&mut self, opened: &Arc<checkpoint::Opened>) -> Result<usize, Error> {
        let (inner, options) = (self.inner, self.options);
        let waking = inner.begin_waking(&self.bucket, opened, options);
        let (mut records, mut pages, refused) = (0, 0, AtomicUsize::new(0));
        let told = &mut self.told;
        let (counter, waking) = (&refused, &waking);
        let read = checkpoint::read(&*self.bucket, opened, |page| {
            let wanted: Vec<Numbered> = page.into_iter().filter(|numbered| is_wanted(options, &numbered.record.key)).collect();
            records += wanted.len();
            note_packs(told, &wanted);
            pages += 1;
            let read = pages;
            async move {
                counter.fetch_add(inner.merge(wanted).await?, Ordering::Relaxed);
                waking.read(read);
                Ok(())
            }
        });
        read.await?;
        self.report.records += records;
        let refused = refused.into_inner();
        if refused > 0 {
            let why = format!("{refused} of its records were refused; set this host's clock and restore again");
            self.report.skipped.push(Skipped { key: opened.listed.key.clone(), why });
        }
        Ok(refused)
    }

    /// Packs that compaction has taken off the catalogue are there until their time is over, and were read as any other: they leave the catalogue again, as far
    /// as what is linked of them stands in others too.
    async fn bury(&self) -> Result<(), Error> {
        let dead: Vec<PackId> = self.told.iter().filter(|(_, (_, is_dead))| *is_dead).map(|(id, _)| *id).collect();
        if dead.is_empty() {
            return Ok(());
        }
        let ranks = Arc::new(self.inner.ranks(self.bucket.id()).await?);
        for id in dead {
            if ranks.contains_key(&id) {
                self.inner.retire(&self.bucket, id, &ranks).await?;
            }
        }
        Ok(())
    }

    /// A bucket that was copied: what the checkpoint says of its packs is true of those here.
    async fn relocate(&self) -> Result<(), Error> {
        let Some((from, old_prefix)) = self.moved.clone() else { return Ok(()) };
        let mut moved = Vec::new();
        self.inner
            .each_pack(|id, archived| {
                if archived.bucket == from {
                    moved.push((*id, archived.clone()));
                }
            })
            .await?;
        let (old, new) = (keys::packs(&old_prefix), keys::packs(self.bucket.prefix()));
        let bucket = self.bucket.id().to_owned();
        for part in moved.chunks(PACKS_MOVED_AT_ONCE) {
            let place = |(id, archived): &(PackId, Archived)| {
                let object_key = format!("{new}{}", archived.object_key.strip_prefix(&old)?);
                let archived = Archived { bucket: bucket.clone(), object_key, ..archived.clone() };
                Some((Key::Archived(*id), Some(Value::Archived(archived))))
            };
            let records = part.iter().filter_map(place).collect();
            self.inner.store.run(move |store| store.commit(Commit { records, settings: Vec::new() })).await?;
        }
        Ok(())
    }
}

/// Takes note of what records say of packs.
pub(super) fn note_packs(told: &mut BTreeMap<PackId, (Stamp, bool)>, records: &[Numbered]) {
    for Numbered { record, .. } in records {
        if let Key::Archived(id) = record.key
            && told.get(&id).is_none_or(|(stamp, _)| *stamp < record.stamp)
        {
            told.insert(id, (record.stamp, record.value.is_none()));
        }
    }
}

/// Packs whose places are written anew in one commit.
const PACKS_MOVED_AT_ONCE: usize = 16;

/// Whether a record is among those that are restored. Of some repositories only, it is nothing that is said of nodes.
pub(super) fn is_wanted(options: &RestoreOptions, key: &Key) -> bool {
    if options.repositories.is_empty() {
        return true;
    }
    match key {
        Key::Manifest(repository, _) | Key::Tag(repository, _) | Key::Link(repository, _) => {
            options.repositories.iter().any(|glob| glob.matches(repository.as_str()))
        }
        Key::Archived(_) => true,
        Key::Member(_)
        | Key::Role(_)
        | Key::User(_)
        | Key::Robot(_)
        | Key::Rule(..)
        | Key::Site(_)
        | Key::Keys(_)
        | Key::Starts(_)
        | Key::Unknown { .. } => false,
    }
}
