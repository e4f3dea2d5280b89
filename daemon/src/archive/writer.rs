//! Journal -> sealed pack -> bucket -> `Archived` record.
//!
//! One turn at a time, whoever asks (the loop, `larder archive flush`): plan from the cursors, bring what is not on this disk, seal, put,
//! and then write the `Archived` record and the new cursors in one commit.
//!
//! Where layers have a class of their own (`archive.bulk_class`), a turn puts two packs: first the layers, without records, and then everything
//! else, with the `Archived` record of the first. So a restore that can't read the first knows where everything lies in it.
//!
//! # What a crash leaves
//! - before the put: a sequence that no pack has;
//! - after the put, before the commit: an object that no record tells of. The next pack holds the same again under a name
//!   of its own; a restore reads both, which is harmless.
//! - between the two of a turn with layers: the record of the first is in the journal, and goes into the next pack with those that need it.
//!
//! # What a failed put leaves
//! It may have landed: the answer may be what was lost. So the sealed pack is kept, and the same bytes are put under the same
//! name next time, as long as its blobs are on this disk.

use std::collections::HashSet;
use std::io;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use crc_fast::CrcAlgorithm::Crc64Nvme;
use larder_protocol::digest::{CHUNK_SIZE, Digest};
use larder_protocol::pack::{BlobPart, Draft, Piece, record_line};
use larder_protocol::record::{Archived, Key, Link, Numbered, PackId, Value};
use larder_protocol::vector::{Origin, VersionVector};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use crate::failpoint;
use crate::store::{self, Commit, Content, Store};

use super::body::{self, Body, OpenBlob};
use super::bucket::{Bucket, Listed, Object};
use super::plan::{Item, Limits, Offered, Plan};
use super::queue::{self, TAIL_BATCH, Waiting};
use super::{Error, Inner, PackInfo, cluster, keys, ledger, tail};

/// The setting that holds the sequence of this node's last pack.
const SEQUENCE: &str = "archive/sequence";
/// Settings that hold the blobs that could not be had, by digest.
pub const MISSING: &str = "archive/missing/";
/// Missing blobs that are looked for again with a pack.
const MISSING_RETRIED_MAX: usize = 100;
/// Packs that are looked at when another's records are taken over.
const TAKEOVER_READS_MAX: usize = 8;
/// Room for the tables of a pack beside a blob that is nearly as large as an object may be.
const TABLES_SIZE_MAX: u64 = 192 << 20;
/// Changes that come within this time are looked at together.
const DEBOUNCE: Duration = Duration::from_millis(500);
/// First wait after a failure; doubled each time.
const BACKOFF_MIN: Duration = Duration::from_secs(1);
const BACKOFF_MAX: Duration = Duration::from_secs(300);
/// How often a changed ledger is saved when no pack saves it.
const LEDGER_SAVED_EVERY: Duration = Duration::from_secs(60);
/// Longest that one blob is waited for, besides the time its bytes take at [`ENSURE_PACE_MIN`].
const ENSURE_TIMEOUT: Duration = Duration::from_secs(60);
const ENSURE_PACE_MIN: u64 = 64 << 10;

/// What outlives one turn.
#[derive(Debug, Default)]
pub struct Turn {
    /// Put, but perhaps not landed.
    sealed: Option<Ready>,
    /// Blobs on this disk whose bytes are not what they were.
    rotten: HashSet<Digest>,
    /// Lines of the records of packs with layers, of which no other pack tells yet: the next one does, out of their turn.
    bulk: Vec<String>,
    /// Others' origins whose packs were looked at for how far they are archived.
    took_over: HashSet<Origin>,
    /// When it was last seen that the bucket is this cluster's, milliseconds since 1970.
    pub(super) checked: Option<u64>,
}

/// A pack that is ready to be put, and what is written once it stands.
#[derive(Clone, Debug)]
pub(super) struct Ready {
    id: PackId,
    pieces: Arc<[Piece]>,
    crc64: u64,
    archived: Archived,
    is_bulk: bool,
    settings: Vec<(String, Option<Vec<u8>>)>,
    manifests: u64,
    blob_sizes: Vec<u64>,
}

impl Turn {
    /// The pack that was put, but perhaps not landed.
    pub(super) fn sealed(&self) -> Option<PackId> {
        self.sealed.as_ref().map(|ready| ready.id)
    }

    /// Blobs whose bytes are not what they were.
    pub(super) fn rotten(&self) -> &HashSet<Digest> {
        &self.rotten
    }
}

/// A plan, and the rows of [`MISSING`] that go with it.
pub(super) struct Planned {
    pub plan: Plan,
    pub missing: Vec<(Digest, Link)>,
    pub found: Vec<Digest>,
}

/// An item whose blobs were looked for on this disk.
struct Gathered {
    item: Item,
    absent: Vec<(Digest, Link)>,
}

/// Now, in milliseconds since 1970.
pub fn now_ms() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_millis() as u64)
}

impl Inner {
    /// Seals packs by age and size until told to stop. Reads the bucket never.
    pub async fn run(self: Arc<Self>, stop: CancellationToken) {
        let Some(bucket) = self.bucket.clone() else { return stop.cancelled().await };
        let mut changes = self.store.changes();
        let (mut failures, mut not_before) = (0u32, Instant::now());
        let mut saved = (self.ledger.tally(), Instant::now());
        let mut not_looked_before = Instant::now();
        if let Ok(Some(verified)) = self.looked(bucket.id()).await {
            self.measure(&verified);
        }
        while !stop.is_cancelled() {
            changes.mark_unchanged();
            let due = match self.count(&bucket).await {
                Ok(waiting) => self.due(&waiting, now_ms()).map(|wait| (Instant::now() + wait).max(not_before)),
                Err(error) => {
                    tracing::warn!(%error, "could not read the journal for the archive; trying again in {BACKOFF_MAX:?}");
                    Some(Instant::now() + BACKOFF_MAX)
                }
            };
            if saved.0 != self.ledger.tally() && saved.1.elapsed() > LEDGER_SAVED_EVERY {
                saved = (self.ledger.tally(), Instant::now());
                self.save_ledger().await;
            }
            let look = self.look_due(&bucket).await.ok().flatten().map(|wait| (Instant::now() + wait).max(not_looked_before));
            tokio::select! {
                () = stop.cancelled() => break,
                () = sleep_until(look) => {
                    tokio::select! {
                        () = stop.cancelled() => break,
                        looked = self.look_and_tell(&bucket) => if let Err(error) = looked {
                            not_looked_before = Instant::now() + BACKOFF_MAX;
                            tracing::warn!(bucket = bucket.id(), %error, "could not look whether the bucket holds what was written to it; trying again in {BACKOFF_MAX:?}");
                        },
                    }
                }
                changed = changes.changed() => match changed {
                    Ok(()) => { let _ = tokio::time::timeout(DEBOUNCE, stop.cancelled()).await; }
                    Err(_) => return stop.cancelled().await,
                },
                () = tokio::time::sleep(self.settings.recounted_every) => {}
                () = sleep_until(due) => {
                    let written = tokio::select! {
                        () = stop.cancelled() => break,
                        written = self.flush() => written,
                    };
                    let wait = match written {
                        Ok(_) => {
                            if failures > 0 {
                                tracing::info!(bucket = bucket.id(), failures, "the archive takes packs again");
                            }
                            failures = 0;
                            BACKOFF_MIN
                        }
                        Err(error) => {
                            if failures == 0 {
                                tracing::warn!(bucket = bucket.id(), %error, "could not archive; pushes go on, the next try is in a moment");
                            }
                            failures = failures.saturating_add(1);
                            backoff(failures, Uuid::new_v4().as_u128())
                        }
                    };
                    not_before = Instant::now() + wait;
                }
            }
        }
        self.save_ledger().await;
    }

    /// Writes everything that is queued now; the packs that came of it.
    pub async fn flush(self: &Arc<Self>) -> Result<Vec<PackInfo>, Error> {
        let bucket = self.bucket.clone().ok_or(Error::Off)?;
        let mut turn = self.turn.lock().await;
        let written = self.write_packs(&bucket, &mut turn).await;
        if written.as_ref().is_ok_and(|packs| !packs.is_empty())
            && let Err(error) = self.checkpoint_when_due(&bucket, &mut turn).await
        {
            tracing::warn!(bucket = bucket.id(), %error, "a checkpoint is due and could not be written; it is tried again with the next pack");
        }
        let this = self.clone();
        self.store.run(move |_| this.counting.lock().expect("counting does not panic").queue = Default::default()).await;
        *self.last_error.lock().expect("never held across a panic") = written.as_ref().err().map(ToString::to_string);
        let _ = self.count(&bucket).await;
        written
    }

    /// What waits.
    pub async fn count(self: &Arc<Self>, bucket: &Arc<dyn Bucket>) -> Result<Waiting, Error> {
        let (this, id, gone) = (self.clone(), bucket.id().to_owned(), self.gone());
        let waiting = self.store.run(move |store| {
            let counting = &mut *this.counting.lock().expect("counting does not panic");
            counting.queue.count(store, &*gone, &id, &mut counting.in_bucket, now_ms()).map(|()| counting.queue.waiting())
        });
        let waiting = waiting.await?;
        self.metrics.archive_pending_bytes.set(waiting.bytes);
        self.metrics.unarchived.set(waiting.bytes, waiting.oldest_ms);
        Ok(waiting)
    }

    /// How long until a pack must be sealed; `None` when nothing waits.
    fn due(&self, waiting: &Waiting, now_ms: u64) -> Option<Duration> {
        let oldest = waiting.oldest_ms?;
        let waited = Duration::from_millis(now_ms.saturating_sub(oldest));
        Some(if waiting.bytes >= self.settings.pack_size { Duration::ZERO } else { self.settings.max_delay.saturating_sub(waited) })
    }

    async fn write_packs(self: &Arc<Self>, bucket: &Arc<dyn Bucket>, turn: &mut Turn) -> Result<Vec<PackInfo>, Error> {
        let mut written = Vec::new();
        if self.store.is_reader() {
            // Nobody would believe it where its pack is.
            return Ok(written);
        }
        // Only what is queued now: under steady pushes a turn would otherwise never end.
        let until = self.store.vector();
        loop {
            let planned = match turn.sealed {
                Some(_) => None,
                None => match self.plan(bucket, &until, turn).await? {
                    Some(planned) => Some(planned),
                    None => return Ok(written),
                },
            };
            // ORDER: what a pack says of its writer's company has the name that the bucket's mark has.
            self.check_bucket(bucket, &mut turn.checked).await?;
            let ready = match (turn.sealed.take(), planned) {
                (Some(ready), _) => ready,
                (None, Some(planned)) => self.seal(bucket, planned).await?,
                (None, None) => return Ok(written),
            };
            match self.put(bucket, &ready).await {
                Ok(records) => {
                    if ready.is_bulk {
                        turn.bulk.extend(records.iter().map(|record| record_line(record, false)));
                    } else if ready.archived.records > 0 {
                        turn.bulk.clear();
                    }
                    written.push(PackInfo::new(&ready.id, &ready.archived));
                }
                Err(error @ Error::Checksum { .. }) => {
                    let Rotten { blobs: rotten, put_aside } = self.rotten(&ready).await?;
                    if rotten.is_empty() && put_aside == 0 {
                        return Err(error);
                    }
                    tracing::warn!(?rotten, put_aside, "blobs on this disk are not what was pushed; they are left out of the archive");
                    turn.rotten.extend(rotten);
                }
                Err(error) => {
                    turn.checked = None;
                    if self.intact(&ready).await? {
                        turn.sealed = Some(ready);
                    }
                    return Err(error);
                }
            }
        }
    }

    /// Writes a pack of blobs that were archived before: no push came with it.
    pub(super) async fn write_moved(&self, bucket: &Arc<dyn Bucket>, turn: &mut Turn, planned: Planned) -> Result<PackInfo, Error> {
        let ready = Ready { manifests: 0, blob_sizes: Vec::new(), ..self.seal(bucket, planned).await? };
        match self.put(bucket, &ready).await {
            Ok(_) => Ok(PackInfo::new(&ready.id, &ready.archived)),
            Err(error @ Error::Checksum { .. }) => {
                // What is put aside is had from elsewhere the next time.
                turn.rotten.extend(self.rotten(&ready).await?.blobs);
                Err(error)
            }
            Err(error) => {
                turn.checked = None;
                if self.intact(&ready).await? {
                    turn.sealed = Some(ready);
                }
                Err(error)
            }
        }
    }

    /// Puts a pack and records it; the record.
    pub(super) async fn put(&self, bucket: &Arc<dyn Bucket>, ready: &Ready) -> Result<Vec<Numbered>, Error> {
        let key = ready.archived.object_key.clone();
        let failed = |source: io::Error| Error::Bucket {
            doing: "put",
            key: ready.archived.object_key.clone(),
            bucket: bucket.id().to_owned(),
            detail: source.to_string(),
        };
        failpoint::pass("archive/pack/before-put").map_err(failed)?;
        let body = Body::new(ready.pieces.clone(), open_blob(self.store.clone()));
        let put = bucket.put_once(Object { key: key.clone(), crc64: ready.crc64, body: body.clone() }).await;
        if let Err(error) = put {
            return Err(if body.is_damaged() { Error::Checksum { key, detail: error.to_string() } } else { error });
        }
        // CRASH: the object stands and nobody knows; see the module. Cursors have not moved, so everything goes into the next pack again.
        failpoint::pass("archive/pack/put-not-recorded").map_err(failed)?;
        // What stood there until now; this pack counts from now on.
        self.ledger.stored(&self.totals(bucket.id()).await?.by_class, now_ms());
        self.ledger.archived(ready.manifests, ready.blob_sizes.clone());
        let mut settings = ready.settings.clone();
        settings.push((ledger::SETTING.to_owned(), Some(self.ledger.to_bytes())));
        let records = vec![(Key::Archived(ready.id), Some(Value::Archived(ready.archived.clone())))];
        let records = self.store.run(move |store| store.commit(Commit { records, settings })).await?;
        self.metrics.packs_sealed.inc();
        let class = keys::class_of(&ready.archived.object_key);
        tracing::info!(pack = %ready.id, %class, size = ready.archived.size, records = ready.archived.records, "archived a pack");
        if ready.is_bulk {
            // CRASH: the layers are where they belong, and the records that need them follow: see the module.
            failpoint::pass("archive/pack/bulk-recorded").map_err(failed)?;
        }
        Ok(records)
    }

    /// Plans the next pack; `None` when nothing is worth one.
    async fn plan(self: &Arc<Self>, bucket: &Arc<dyn Bucket>, until: &VersionVector, turn: &mut Turn) -> Result<Option<Planned>, Error> {
        let Turn { rotten, took_over, bulk, .. } = turn;
        let limits = Limits::default();
        let mut planned = Planned { plan: Plan::default(), missing: Vec::new(), found: Vec::new() };
        let mut tried = HashSet::new();
        let gone = self.gone();
        'origins: for (origin, _) in self.store.run(move |store| queue::origins(store, &*gone)).await? {
            let last = until.get(&origin);
            let id = bucket.id().to_owned();
            if origin.node != self.store.origin().node && took_over.insert(origin) {
                self.take_over(bucket, origin).await?;
            }
            let start = self.store.run(move |store| queue::cursor(store, &id, &origin)).await?;
            let mut after = start;
            while after < last {
                let batch = self.store.run(move |store| store.tail(&origin, after, TAIL_BATCH)).await?;
                // A record behind `last` was written since; it is for the next turn.
                let batch: Vec<Numbered> = batch.into_iter().filter(|numbered| numbered.sequence <= last).collect();
                if batch.is_empty() {
                    after = last;
                }
                for numbered in batch {
                    let sequence = numbered.sequence;
                    let Gathered { mut item, absent } = self.gather(bucket, numbered).await?;
                    item.blobs.retain(|(digest, link)| self.usable(bucket, digest, link, rotten, &mut planned.missing));
                    for (digest, link) in absent {
                        if planned.plan.holds(&digest) || !tried.insert(digest) {
                            continue;
                        }
                        match self.ensure(digest, link).await? {
                            Some(link) if self.usable(bucket, &digest, &link, rotten, &mut planned.missing) => {
                                item.blobs.push((digest, link))
                            }
                            Some(_) => {}
                            None => planned.missing.push((digest, link)),
                        }
                    }
                    if planned.plan.offer(item, &limits) == Offered::Full {
                        planned.plan.cover(origin, start, after);
                        break 'origins;
                    }
                    after = sequence;
                }
            }
            planned.plan.cover(origin, start, last.max(start));
        }
        if !planned.plan.is_worth_it() {
            return Ok(None);
        }
        self.retry_missing(bucket, &mut planned, &mut tried, rotten, &limits).await?;
        let alone = |plan| Ok(Some(Planned { plan, missing: Vec::new(), found: Vec::new() }));
        let part = planned.plan.split_off(self.settings.pack_size);
        if self.settings.bulk.is_some()
            && let Some(layers) = part.as_ref().unwrap_or(&planned.plan).split_bulk(store::SMALL_MAX)
        {
            return alone(layers);
        }
        if let Some(part) = part {
            return alone(part);
        }
        planned.plan.lines.extend_from_slice(bulk);
        planned.plan.name_manifests();
        Ok(Some(planned))
    }

    /// Learns how far another's records are archived, from the newest packs of each writer: what stands there need not be written again. Where nothing can
    /// be learnt, more is archived than must be, which is harmless.
    async fn take_over(&self, bucket: &Arc<dyn Bucket>, origin: Origin) -> Result<(), Error> {
        let (id, setting) = (bucket.id().to_owned(), queue::cursor_setting(bucket.id(), &origin));
        let known = self.store.run(move |store| queue::cursor(store, &id, &origin)).await?;
        if known >= self.store.vector().get(&origin) {
            return Ok(());
        }
        // A member's word counts, and that of the one who is gone about itself (S38).
        let id = bucket.id().to_owned();
        let members: HashSet<_> = self.store.run(move |store| cluster::company(store, &id)).await?.members.into_iter().collect();
        let mut newest = std::collections::BTreeMap::new();
        self.each_pack(|id, archived| {
            let counts = id.origin.node == origin.node || members.contains(&id.origin.node);
            // Those with layers alone say nothing of it, and may be frozen.
            if archived.bucket == bucket.id() && counts && archived.records > 0 {
                newest.insert(id.origin.node, (*id, Listed::new(archived.object_key.clone(), archived.size)));
            }
        })
        .await?;
        // Its own packs first: they nearly always say it.
        let own = newest.remove(&origin.node);
        let mut upto = known;
        for (pack, listed) in own.into_iter().chain(newest.into_values()).take(TAKEOVER_READS_MAX) {
            match tail::read(&**bucket, pack, &listed).await {
                Ok((_, contents)) => upto = upto.max(contents.covers.get(&origin).map_or(0, |covered| covered.upto)),
                Err(error) => tracing::info!(%error, "could not learn how far a node that is gone was archived"),
            }
        }
        tracing::info!(node = %origin.node, known, upto, "archiving for a node that has no bucket or is gone");
        let settings = vec![(setting, Some(upto.to_string().into()))];
        self.store.run(move |store| store.commit(Commit { records: Vec::new(), settings })).await?;
        Ok(())
    }

    /// Looks again for blobs of earlier records that nobody had.
    async fn retry_missing(
        self: &Arc<Self>,
        bucket: &Arc<dyn Bucket>,
        planned: &mut Planned,
        tried: &mut HashSet<Digest>,
        rotten: &HashSet<Digest>,
        limits: &Limits,
    ) -> Result<(), Error> {
        let rows = self.store.run(|store| store.settings(MISSING)).await?;
        for (digest, link) in rows.iter().filter_map(|(name, value)| missing_row(name, value)).take(MISSING_RETRIED_MAX) {
            let (this, id) = (self.clone(), bucket.id().to_owned());
            let there = self.store.run(move |store| {
                let counting = &mut *this.counting.lock().expect("counting does not panic");
                counting.in_bucket.holds(store, &id, &digest)
            });
            if planned.plan.holds(&digest) || there.await? {
                planned.found.push(digest);
            } else if tried.insert(digest)
                && !rotten.contains(&digest)
                && let Some(link) = self.ensure(digest, link).await?
                && self.usable(bucket, &digest, &link, rotten, &mut Vec::new())
                && planned.plan.offer_blob(digest, link, limits) == Offered::Taken
            {
                planned.found.push(digest);
            }
        }
        Ok(())
    }

    /// A record, its line, and its blobs that the bucket lacks: those on this disk, and those that are not.
    async fn gather(self: &Arc<Self>, bucket: &Arc<dyn Bucket>, numbered: Numbered) -> Result<Gathered, Error> {
        let (this, id) = (self.clone(), bucket.id().to_owned());
        let gathered = self.store.run(move |store| {
            let (mut blobs, mut absent) = (Vec::new(), Vec::new());
            let mut shared = HashSet::new();
            if let (Key::Manifest(repository, digest), Some(_)) = (&numbered.record.key, &numbered.record.value) {
                let counting = &mut *this.counting.lock().expect("counting does not panic");
                for (digest, link) in store.closure(repository, digest)? {
                    if !counting.in_bucket.holds(store, &id, &digest)? {
                        if store.repositories_linking(&digest, 2)?.len() > 1 {
                            shared.insert(digest);
                        }
                        match store.blob(&digest)? {
                            Some(link) => blobs.push((digest, link)),
                            None => absent.push((digest, link)),
                        }
                    }
                }
            }
            let line = record_line(&numbered, false);
            Ok::<_, store::Error>(Gathered { item: Item { numbered, line, blobs, shared }, absent })
        });
        Ok(gathered.await?)
    }

    /// Whether a blob can go into a pack; one that can't is listed as missing.
    pub(super) fn usable(
        &self,
        bucket: &Arc<dyn Bucket>,
        digest: &Digest,
        link: &Link,
        rotten: &HashSet<Digest>,
        missing: &mut Vec<(Digest, Link)>,
    ) -> bool {
        let usable = !rotten.contains(digest) && link.size <= bucket.object_size_max() - TABLES_SIZE_MAX;
        if !usable {
            missing.push((*digest, *link));
        }
        usable
    }

    /// Brings a blob onto this disk; `None` when nobody has it.
    pub(super) async fn ensure(&self, digest: Digest, link: Link) -> Result<Option<Link>, Error> {
        let here = self.store.run(move |store| store.blob(&digest)).await?;
        let (None, Some(ensure)) = (here, self.ensure.get()) else { return Ok(here) };
        let patience = ENSURE_TIMEOUT + Duration::from_secs(link.size / ENSURE_PACE_MIN);
        match tokio::time::timeout(patience, ensure(digest, link)).await {
            Ok(true) => Ok(self.store.run(move |store| store.blob(&digest)).await?),
            Ok(false) | Err(_) => Ok(None),
        }
    }

    /// Gives the pack its number, lays it out and signs it.
    pub(super) async fn seal(&self, bucket: &Arc<dyn Bucket>, planned: Planned) -> Result<Ready, Error> {
        let (bucket_id, prefix, (key, sign)) = (bucket.id().to_owned(), bucket.prefix().to_owned(), (self.signer)());
        let is_bulk = planned.plan.is_bulk;
        let class = self.settings.bulk.clone().filter(|_| is_bulk).unwrap_or_else(|| self.settings.class.clone());
        let ending = bucket.ending();
        let ready = self.store.run(move |store| {
            let Planned { plan, missing, found } = planned;
            let sequence = last_sequence(store)? + 1;
            // ORDER: the number is durable before an object has it, so that no name is ever used for two contents.
            store.commit(Commit { records: Vec::new(), settings: vec![(SEQUENCE.to_owned(), Some(sequence.to_string().into()))] })?;
            let id = PackId { origin: Origin { node: key, ..store.origin() }, sequence };
            let mut settings: Vec<(String, Option<Vec<u8>>)> = Vec::new();
            for (origin, covered) in &plan.covers {
                settings.push((queue::cursor_setting(&bucket_id, origin), Some(covered.upto.to_string().into())));
            }
            settings.extend(found.iter().map(|digest| (format!("{MISSING}{digest}"), None)));
            let row = |link: &Link| serde_json::to_vec(link).expect("numbers are JSON");
            settings.extend(missing.iter().map(|(digest, link)| (format!("{MISSING}{digest}"), Some(row(link)))));
            let mut blobs = Vec::with_capacity(plan.blobs.len());
            for (digest, link) in plan.blobs {
                let chunks = if link.size > CHUNK_SIZE { store.chunk_values(&digest)? } else { None };
                blobs.push(BlobPart { digest, link, chunks });
            }
            let (manifests, created_ms) = (plan.manifests.len() as u64, now_ms());
            let blob_sizes = blobs.iter().map(|part| part.link.size).collect();
            let draft = Draft {
                cluster: store.cluster(),
                pack: id,
                created_ms,
                blobs,
                manifests: plan.manifests,
                records: plan.lines,
                covers: plan.covers,
                company: cluster::company(store, &bucket_id)?,
            };
            let sealed = draft.seal(|bytes| sign(bytes));
            let archived = Archived {
                bucket: bucket_id,
                object_key: keys::pack_of(&prefix, &id, &class) + ending,
                size: sealed.size(),
                created_ms,
                records: sealed.footer.record_count,
                contents: sealed.contents,
            };
            Ok::<_, store::Error>(Ready {
                id,
                pieces: sealed.pieces.into(),
                crc64: sealed.crc64,
                archived,
                is_bulk,
                settings,
                manifests,
                blob_sizes,
            })
        });
        Ok(ready.await?)
    }

    /// Whether every blob of a pack is still on this disk.
    async fn intact(&self, ready: &Ready) -> Result<bool, Error> {
        let pieces = ready.pieces.clone();
        let intact = self.store.run(move |store| {
            for piece in pieces.iter() {
                if let Piece::Blob { digest, .. } = piece
                    && store.blob(digest)?.is_none()
                {
                    return Ok::<_, store::Error>(false);
                }
            }
            Ok(true)
        });
        Ok(intact.await?)
    }

    /// The blobs of a pack whose bytes are not what they were when they came in. What is damaged is put aside, and is then one that is not here.
    async fn rotten(&self, ready: &Ready) -> Result<Rotten, Error> {
        let (pieces, open) = (ready.pieces.clone(), open_blob(self.store.clone()));
        let rotten = self.store.run(move |store| {
            let mut rotten = Rotten::default();
            for piece in pieces.iter() {
                if let Piece::Blob { digest, size } = piece {
                    let mut crc = crc_fast::Digest::new(Crc64Nvme);
                    let content = open(digest);
                    let read = content.as_ref().map_err(ToString::to_string).and_then(|content| {
                        let mut add = |bytes: bytes::Bytes| {
                            crc.update(&bytes);
                            Ok(())
                        };
                        body::read_blob(content, digest, *size, &mut add).map_err(|error| error.to_string())
                    });
                    if let Err(why) = &read {
                        let file = if let Ok(Content::File(file)) = &content { Some(file) } else { None };
                        if store.quarantine(digest, file, why)? {
                            rotten.put_aside += 1;
                            continue;
                        }
                    }
                    let known = store.blob(digest)?.map(|link| link.crc64);
                    if read.is_err() || known != Some(crc.finalize()) {
                        rotten.blobs.push(*digest);
                    }
                }
            }
            Ok::<_, store::Error>(rotten)
        });
        let rotten = rotten.await?;
        self.metrics.quarantined_blobs.inc_by(rotten.put_aside);
        Ok(rotten)
    }

    async fn save_ledger(&self) {
        let settings = vec![(ledger::SETTING.to_owned(), Some(self.ledger.to_bytes()))];
        if let Err(error) = self.store.run(move |store| store.commit(Commit { records: Vec::new(), settings })).await {
            tracing::debug!(%error, "the ledger was not saved; the next pack saves it");
        }
    }
}

/// What was found when the bytes of a pack were read again.
#[derive(Default)]
struct Rotten {
    /// Blobs whose checksum is not theirs, though their bytes are: they are left out until a restart.
    blobs: Vec<Digest>,
    /// How many were damaged and put aside.
    put_aside: u64,
}

/// Opens blobs of a store for a pack's body.
pub(super) fn open_blob(store: Store) -> OpenBlob {
    Arc::new(move |digest| match store.open_blob(digest) {
        Ok(Some(content)) => Ok(content),
        Ok(None) => Err(io::Error::new(io::ErrorKind::NotFound, format!("blob {digest} is no longer on this disk"))),
        Err(error @ store::Error::Damaged { .. }) => Err(io::Error::new(io::ErrorKind::InvalidData, error)),
        Err(error) => Err(io::Error::other(error)),
    })
}

/// Reads a row of [`MISSING`].
pub fn missing_row(name: &str, value: &[u8]) -> Option<(Digest, Link)> {
    Some((name.strip_prefix(MISSING)?.parse().ok()?, serde_json::from_slice(value).ok()?))
}

/// The sequence of this node's last pack; 0 before the first.
pub(super) fn last_sequence(store: &Store) -> Result<u64, store::Error> {
    Ok(store.setting(SEQUENCE)?.and_then(|bytes| std::str::from_utf8(&bytes).ok()?.parse().ok()).unwrap_or(0))
}

/// The wait after so many failures in a row: doubled each time, and spread so that nodes don't come back all at once.
fn backoff(failures: u32, random: u128) -> Duration {
    let full = BACKOFF_MIN.saturating_mul(1 << failures.min(16)).min(BACKOFF_MAX);
    full / 2 + full.mul_f64((random % 1000) as f64 / 2000.0)
}

async fn sleep_until(due: Option<Instant>) {
    match due {
        Some(due) => tokio::time::sleep_until(due).await,
        None => std::future::pending().await,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn f26_waits_grow_up_to_a_limit_and_differ() {
        for failures in [1, 2, 5, 20, u32::MAX] {
            let (short, long) = (backoff(failures, 0), backoff(failures, 999));
            assert!(short < long && long <= BACKOFF_MAX && short >= BACKOFF_MIN, "{failures}: {short:?} to {long:?}");
        }
        assert!(backoff(20, 0) >= BACKOFF_MAX / 2);
    }

    #[test]
    fn missing_rows_read_back() {
        let (digest, link) = (Digest::sha256(b"x"), Link { size: 1, root: [2; 32], crc64: 3 });
        let row = serde_json::to_vec(&link).expect("JSON");
        assert_eq!(missing_row(&format!("{MISSING}{digest}"), &row), Some((digest, link)));
        assert_eq!(missing_row("archive/missing/x", &row), None);
    }
}
