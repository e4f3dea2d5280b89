//! Eviction: room on this disk, by dropping copies that are safe elsewhere.
//!
//! A round begins when somebody is short of room, or when a look at the disk finds it above the high mark, and goes on until the low
//! one. First goes the trash, then blobs, those first that nobody has pulled for longest. A blob may go when
//!
//! - a pack that this node can read, now and not only after it has thawed, holds it: none that is encrypted to others; or
//! - this node is no owner of it, and at this moment all of its owners vouch for it. Owners never rely on each other. And since nodes may
//!   differ in who owns what, a node that asks others for their word gives none for the same blobs until it is done, so that
//!   two can't both drop what each believes the other to keep;
//!
//! and no pin names an image that needs it. Whoever pulls it later gets it from there ([`Elsewhere`]), and it is here again.
//!
//! [`plan`] decides, [`Evictor`] reads, asks and does. One core task, `eviction`; it also writes down pulls and shows the disk in the metrics.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures_util::future::BoxFuture;
use larder_protocol::digest::Digest;
use larder_protocol::record::Archived;
use tokio_util::sync::CancellationToken;

use crate::glob::Pattern;
use crate::store::{Cold, Disk, Error, Result, Store};
use crate::telemetry::{KindLabel, Metrics};

/// How often the disk is looked at.
const TICK: Duration = Duration::from_secs(5);
/// How often pulls are written down.
const PULLS_SAVED_EVERY: Duration = Duration::from_secs(60);
/// After a round that could not free enough, the marks alone begin no other one for so long.
const REST: Duration = Duration::from_secs(60);
/// Candidates that are held in memory; and how often in one round the next ones are looked for.
const CANDIDATES_MAX: usize = 20_000;
const PAGES_MAX: usize = 10;
/// Blobs that are looked at, asked for and dropped in one go.
const PART: usize = 500;
/// Blobs that pins may keep. With more, nothing is evicted at all.
const PINNED_MAX: usize = 4_000_000;
const NAMES_PAGE: usize = 1000;

/// What eviction needs to know of other places.
pub trait Elsewhere: Send + Sync + 'static {
    /// Whether a pack can be read from here, as far as is known now.
    fn gives_back(&self, pack: &Archived) -> bool;
    /// For each blob, whether all of its owners are other nodes that vouch for it now.
    fn kept_by_owners(&self, digests: Vec<Digest>) -> BoxFuture<'static, Word>;
}

/// The word of a blob's owners. Until it is dropped, this node gives none of its own for the same blobs.
pub struct Word {
    /// Whether it was given, in the order in which it was asked for.
    pub given: Vec<bool>,
    /// Whether this node still is no owner of a blob. Asked at the last moment.
    pub stands: Box<dyn Fn(&Digest) -> bool + Send + Sync>,
}

/// A blob that could go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Candidate {
    cold: Cold,
    pinned: bool,
    /// Another place has it and keeps it.
    safe: bool,
    /// That place are its owners, who have given their word.
    by_word: bool,
}

/// The blobs to drop, the coldest first, until `excess` bytes are freed: none that is pinned or not safe, and none too many.
fn plan(mut candidates: Vec<Candidate>, excess: u64) -> Vec<Candidate> {
    candidates.retain(|candidate| candidate.safe && !candidate.pinned);
    candidates.sort_by_key(|candidate| candidate.cold);
    let mut freed = 0u64;
    let is_needed = |candidate: &Candidate| {
        let before = freed;
        freed = freed.saturating_add(candidate.cold.size);
        before < excess
    };
    candidates.into_iter().take_while(is_needed).collect()
}

/// Keeps the disk below its marks.
pub struct Evictor {
    store: Store,
    pins: Vec<Pattern>,
    elsewhere: Arc<dyn Elsewhere>,
    metrics: Arc<Metrics>,
}

/// What a round did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Round {
    trash_bytes: u64,
    blobs: u64,
    bytes: u64,
}

impl Round {
    fn freed(&self) -> u64 {
        self.trash_bytes + self.bytes
    }
}

impl Evictor {
    /// An evictor that starts nothing yet.
    pub fn new(store: Store, pins: Vec<Pattern>, elsewhere: Arc<dyn Elsewhere>, metrics: Arc<Metrics>) -> Self {
        Self { store, pins, elsewhere, metrics }
    }

    /// Looks at the disk and evicts, until told to stop.
    pub async fn run(self, stopping: CancellationToken) {
        let mut tick = tokio::time::interval(TICK);
        tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let (mut saved, mut resting): (_, Option<Instant>) = (Instant::now(), None);
        loop {
            let asked = tokio::select! {
                () = stopping.cancelled() => break,
                () = self.store.short_of_room() => true,
                _ = tick.tick() => false,
            };
            let may = asked || resting.is_none_or(|since| since.elapsed() >= REST);
            match stopping.run_until_cancelled(self.look(may)).await {
                Some(Ok(enough)) => resting = if enough { None } else { resting.filter(|_| !may).or(Some(Instant::now())) },
                Some(Err(error)) => tracing::info!(%error, "a round of eviction broke off; the next one goes on"),
                None => break,
            }
            if saved.elapsed() >= PULLS_SAVED_EVERY {
                saved = Instant::now();
                self.save_pulls().await;
            }
        }
        self.save_pulls().await;
    }

    async fn save_pulls(&self) {
        if let Err(error) = self.store.run(Store::save_pulls).await {
            tracing::info!(%error, "pulls were not written down; the next try is in a minute");
        }
    }

    /// Shows the disk, and evicts when it is too full; `false` when it still is afterwards.
    async fn look(&self, may_evict: bool) -> Result<bool> {
        let disk = self.store.run(Store::begin_round).await?;
        self.show(&disk);
        let round = if disk.excess > 0 && may_evict { self.evict(disk.excess).await } else { Ok(Round::default()) };
        // ORDER: whoever waits is told even when the round broke off.
        let (excess, freed) = (if may_evict { disk.excess } else { 0 }, round.as_ref().map_or(0, Round::freed));
        self.store.run(move |store| store.end_round(excess, freed)).await?;
        let round = round?;
        if round.freed() > 0 {
            let Round { trash_bytes, blobs, bytes } = round;
            tracing::info!(wanted = disk.excess, trash_bytes, blobs, bytes, "made room on the disk");
        }
        Ok(disk.excess <= round.freed())
    }

    fn show(&self, disk: &Disk) {
        self.metrics.disk_capacity_bytes.set(disk.capacity);
        self.metrics.disk_free_bytes.set(disk.free);
        self.metrics.disk_reserved_bytes.set(disk.reserved);
        self.metrics.disk_reserve_bytes.set(disk.reserve);
        self.metrics.disk_blob_bytes.set(disk.blobs);
        let memory = self.store.index_memory();
        for (kind, bytes) in [("cache", memory.cache), ("buffers", memory.buffers), ("readers", memory.readers)] {
            self.metrics.index_memory_bytes.get_or_create(&KindLabel { kind }).set(bytes);
        }
    }

    async fn evict(&self, excess: u64) -> Result<Round> {
        let mut round = Round { trash_bytes: self.empty_trash(excess).await?, ..Round::default() };
        if round.freed() >= excess {
            return Ok(round);
        }
        let pins = self.pins.clone();
        let Some(pinned) = self.store.run(move |store| pinned(store, &pins)).await? else {
            tracing::warn!(limit = PINNED_MAX, "store.pins keeps too many layers to remember: nothing is evicted");
            return Ok(round);
        };
        let mut after: Option<Cold> = None;
        for _ in 0..PAGES_MAX {
            let coldest = self.store.run(move |store| store.coldest(after.as_ref(), CANDIDATES_MAX)).await?;
            for part in coldest.chunks(PART) {
                let (candidates, word) = self.judge(part, &pinned).await?;
                let victims = plan(candidates, excess - round.freed());
                let gone = self.store.run(move |store| {
                    // ORDER: each is asked for right before it goes, and the word is held until the last has gone.
                    let stands =
                        |victim: &&Candidate| !victim.by_word || word.as_ref().is_some_and(|word| (word.stands)(&victim.cold.digest));
                    let evicted = victims.iter().filter(stands).map(|victim| store.evict(&victim.cold.digest));
                    evicted.filter_map(Result::transpose).collect::<Result<Vec<u64>>>()
                });
                let gone = gone.await?;
                let bytes = gone.iter().sum::<u64>();
                (round.blobs, round.bytes) = (round.blobs + gone.len() as u64, round.bytes + bytes);
                self.metrics.evicted_blobs.inc_by(gone.len() as u64);
                self.metrics.evicted_bytes.inc_by(bytes);
                if round.freed() >= excess {
                    return Ok(round);
                }
            }
            after = coldest.last().copied();
            if coldest.len() < CANDIDATES_MAX {
                break;
            }
        }
        Ok(round)
    }

    /// Purges what is in the trash until so much is freed; says how much it was.
    async fn empty_trash(&self, excess: u64) -> Result<u64> {
        let (mut after, mut freed) = (None, 0);
        loop {
            let (last, bytes, count) = self
                .store
                .run(move |store| {
                    let (page, mut bytes) = (store.trashed(after.as_ref(), PART)?, 0);
                    for trashed in &page {
                        if freed + bytes >= excess {
                            break;
                        }
                        bytes += store.purge(&trashed.digest)?.unwrap_or(0);
                    }
                    Ok::<_, Error>((page.last().map(|trashed| trashed.digest), bytes, page.len()))
                })
                .await?;
            freed += bytes;
            if freed >= excess || count < PART {
                return Ok(freed);
            }
            after = last;
        }
    }

    /// Says of each blob whether it may go, and on whose word.
    async fn judge(&self, part: &[Cold], pinned: &HashSet<Digest>) -> Result<(Vec<Candidate>, Option<Word>)> {
        let (cold, elsewhere) = (part.to_vec(), Arc::clone(&self.elsewhere));
        let archived =
            self.store.run(move |store| cold.iter().map(|cold| is_archived(store, cold, &*elsewhere)).collect::<Result<Vec<_>>>());
        let archived = archived.await?;
        let judged = |(cold, safe): (&Cold, bool)| Candidate { cold: *cold, pinned: pinned.contains(&cold.digest), safe, by_word: false };
        let mut candidates: Vec<_> = part.iter().zip(archived).map(judged).collect();
        let open: Vec<_> = candidates.iter().filter(|one| !one.safe && !one.pinned).map(|one| one.cold.digest).collect();
        if open.is_empty() {
            return Ok((candidates, None));
        }
        let word = self.elsewhere.kept_by_owners(open).await;
        let mut given = word.given.iter().copied();
        for candidate in candidates.iter_mut().filter(|one| !one.safe && !one.pinned) {
            candidate.by_word = given.next().unwrap_or(false);
            candidate.safe = candidate.by_word;
        }
        Ok((candidates, Some(word)))
    }
}

/// Whether a pack that can be read from here holds a blob, whole.
fn is_archived(store: &Store, cold: &Cold, elsewhere: &dyn Elsewhere) -> Result<bool> {
    for (pack, offset, length) in store.locations(&cold.digest)? {
        let Some(archived) = store.pack(&pack)? else { continue };
        let within = offset.checked_add(length).is_some_and(|end| end <= archived.size);
        if within && length == cold.size && elsewhere.gives_back(&archived) {
            return Ok(true);
        }
    }
    Ok(false)
}

/// Every blob that an image needs which a pin names; `None`: more than can be remembered.
fn pinned(store: &Store, pins: &[Pattern]) -> Result<Option<HashSet<Digest>>> {
    let mut pinned = HashSet::new();
    if pins.is_empty() {
        return Ok(Some(pinned));
    }
    let mut after: Option<String> = None;
    loop {
        let page = store.repositories(after.as_deref(), NAMES_PAGE)?;
        for repository in &page {
            if !pins.iter().any(|pin| pin.is_about(repository.as_str())) {
                continue;
            }
            let mut last: Option<String> = None;
            loop {
                let tags = store.tags(repository, last.as_deref(), NAMES_PAGE)?;
                for tag in tags.iter().filter(|tag| pins.iter().any(|pin| pin.matches(repository.as_str(), tag.tag.as_str()))) {
                    pinned.extend(store.closure(repository, &tag.digest)?.into_iter().map(|(digest, _)| digest));
                    if pinned.len() > PINNED_MAX {
                        return Ok(None);
                    }
                }
                if tags.len() < NAMES_PAGE {
                    break;
                }
                last = tags.last().map(|tag| tag.tag.to_string());
            }
        }
        if page.len() < NAMES_PAGE {
            return Ok(Some(pinned));
        }
        after = page.last().map(|repository| repository.to_string());
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn candidate(number: u32, pulled_ms: u64, size: u64, (pinned, safe): (bool, bool)) -> Candidate {
        Candidate { cold: Cold { pulled_ms, digest: Digest::sha256(&number.to_le_bytes()), size }, pinned, safe, by_word: safe }
    }

    #[test]
    fn the_coldest_go_first_and_no_more_than_needed() {
        let all = vec![candidate(1, 30, 10, (false, true)), candidate(2, 10, 10, (false, true)), candidate(3, 20, 10, (false, true))];
        let pulled = |excess| plan(all.clone(), excess).iter().map(|victim| victim.cold.pulled_ms).collect::<Vec<_>>();
        assert_eq!(pulled(0), [0u64; 0]);
        assert_eq!(pulled(1), [10]);
        assert_eq!(pulled(10), [10]);
        assert_eq!(pulled(11), [10, 20]);
        assert_eq!(pulled(1000), [10, 20, 30]);
    }

    proptest! {
        #[test]
        fn a_plan_keeps_what_is_pinned_or_only_here_and_ends_in_time(
            all in prop::collection::vec((0u64..20, 1u64..1000, any::<bool>(), any::<bool>()), 0..60),
            excess in 0u64..20_000,
        ) {
            let all: Vec<_> = all.into_iter().enumerate()
                .map(|(number, (pulled, size, pinned, safe))| candidate(number as u32, pulled, size, (pinned, safe))).collect();
            let victims: Vec<_> = plan(all.clone(), excess).into_iter().map(|victim| victim.cold).collect();
            let may_go: Vec<_> = all.iter().filter(|one| one.safe && !one.pinned).map(|one| one.cold).collect();
            prop_assert!(victims.iter().all(|victim| may_go.contains(victim)));
            let freed: u64 = victims.iter().map(|victim| victim.size).sum();
            // Enough, or everything that may go; without the last one it was not enough.
            prop_assert!(freed >= excess || victims.len() == may_go.len());
            prop_assert!(victims.last().is_none_or(|last| freed - last.size < excess));
            // Nothing stays that is colder than what goes.
            let hottest = victims.last().copied();
            prop_assert!(may_go.iter().all(|one| victims.contains(one) || hottest.is_none_or(|hottest| *one > hottest)));
        }
    }
}
