//! The round of the garbage collector: tags and manifests by the rules of retention, then links, then blobs, then the trash.
//!
//! ```text
//! a tag that no rule keeps            -> its tombstone, and those of the manifests that nothing holds then
//! a manifest that nothing holds       -> when a rule says so, after its time
//! a link that no manifest needs       -> after `gc.grace`, its tombstone
//! a blob that no repository links     -> the trash
//! what is in the trash                -> after `gc.trash`, off the disk
//! ```
//!
//! The first three are decided for the fleet, and only while every member is heard; the last two for this disk. Times count as
//! [`super::clock`] says. A round goes through the tables in parts of [`PART`] rows, each on a blocking thread, with a rest between.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use larder_protocol::codec;
use larder_protocol::digest::Digest;
use larder_protocol::name::{RepositoryName, Tag};
use larder_protocol::stamp::Stamp;
use serde::Serialize;
use tokio_util::sync::CancellationToken;

use super::Surroundings;
use super::clock::Clock;
use super::retention::{Age, Newest, is_about, is_about_tag, why};
use crate::config::{self, Retention};
use crate::glob::Pattern;
use crate::store::{Commit, Error, IdleManifest, Result, Store, TagInfo};
use crate::telemetry::Metrics;

/// Setting that holds the clock.
const CLOCK: &str = "gc/clock";
/// In front of the settings that say since when nothing holds a manifest.
const UNTAGGED: &str = "gc/untagged/";
/// Rows looked at in one go.
const PART: usize = 1000;
/// Between two goes, so that a round takes a part of one processor and no more.
const REST: Duration = Duration::from_millis(2);
/// How often the clock goes on, at most and at least.
const TICK_MAX: Duration = Duration::from_secs(60);
const TICK_MIN: Duration = Duration::from_millis(100);
/// Marks of the clock within the time that matters.
const MARKS: u32 = 64;
/// Things that a report lists; more are counted.
const LISTED_MAX: usize = 1000;

/// The garbage collector. Cheap to clone.
#[derive(Clone)]
pub struct Gc {
    inner: Arc<Inner>,
}

struct Inner {
    store: Store,
    config: config::Gc,
    rules: Vec<Retention>,
    immutable: Vec<Pattern>,
    surroundings: Arc<dyn Surroundings>,
    metrics: Arc<Metrics>,
    clock: Mutex<(Clock, Instant)>,
    /// One round at a time.
    round: tokio::sync::Mutex<()>,
}

/// What a round did, or would do.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Report {
    /// Nothing was done.
    pub dry_run: bool,
    /// Members that have to be heard before the fleet's garbage can be told.
    pub waiting_for: Vec<String>,
    /// Tags that went by a rule.
    pub tags: u64,
    /// Manifests that went with them, or by a rule.
    pub manifests: u64,
    /// Links that went.
    pub links: u64,
    /// Links that no manifest needs, and that are not old enough.
    pub links_waiting: u64,
    /// Blobs that went into the trash.
    pub trashed: u64,
    /// Their bytes.
    pub trashed_bytes: u64,
    /// Blobs that went off the disk.
    pub purged: u64,
    /// Their bytes.
    pub purged_bytes: u64,
    /// Blobs that wait in the trash.
    pub in_trash: u64,
    /// Their bytes.
    pub in_trash_bytes: u64,
    /// What went and why; the first of each kind.
    pub items: Vec<Item>,
}

/// One thing that went, or would go.
#[derive(Clone, Debug, Serialize)]
pub struct Item {
    /// `tag`, `manifest`, `link`, `blob` or `trash`.
    pub kind: &'static str,
    /// Its repository, where it has one.
    pub repository: Option<String>,
    /// The tag or the digest.
    pub name: String,
    /// Bytes, where it has any.
    pub size: Option<u64>,
    /// Why.
    pub why: String,
}

impl Gc {
    /// Takes up where the clock stood.
    ///
    /// # Errors
    /// The store can't be read.
    pub fn open(config: &config::Config, store: Store, surroundings: Arc<dyn Surroundings>, metrics: Arc<Metrics>) -> Result<Self> {
        // A damaged row is read as none: then everything is young.
        let clock = store.setting(CLOCK)?.and_then(|bytes| codec::decode(&bytes).ok()).unwrap_or_default();
        let inner = Inner {
            store,
            config: config.gc.clone(),
            rules: config.retention.clone(),
            immutable: config.registry.immutable_tags.clone(),
            surroundings,
            metrics,
            clock: Mutex::new((clock, Instant::now())),
            round: tokio::sync::Mutex::default(),
        };
        Ok(Self { inner: Arc::new(inner) })
    }

    /// Lets the clock go on, and does a round every `gc.period`, until told to stop.
    pub async fn run(self, stopping: CancellationToken) {
        let inner = &self.inner;
        let mut tick = tokio::time::interval((inner.config.grace / 20).clamp(TICK_MIN, TICK_MAX));
        tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let (mut last_round, mut last_save) = (Instant::now(), Instant::now());
        loop {
            tokio::select! {
                _ = stopping.cancelled() => break,
                _ = tick.tick() => {}
            }
            inner.tick();
            if last_save.elapsed() >= TICK_MAX {
                last_save = Instant::now();
                inner.save().await;
            }
            if inner.config.period.is_zero() || last_round.elapsed() < inner.config.period {
                continue;
            }
            last_round = Instant::now();
            // Dropped between two parts when the node stops.
            match stopping.run_until_cancelled(self.collect(false)).await {
                Some(Ok(report)) => report.log(),
                Some(Err(error)) => tracing::warn!(%error, "a round of garbage collection broke off; the next one goes on"),
                None => break,
            }
        }
        inner.save().await;
    }

    /// Does one round now; with `dry_run`, only says what it would do at this moment.
    ///
    /// # Errors
    /// The store failed; what was done by then stays done.
    pub async fn collect(&self, dry_run: bool) -> Result<Report> {
        let inner = &self.inner;
        let _one = inner.round.lock().await;
        inner.tick();
        let mut report = Report { dry_run, waiting_for: inner.surroundings.unheard(), ..Report::default() };
        if report.waiting_for.is_empty() {
            inner.retain(&mut report).await?;
            inner.links(&mut report).await?;
        }
        inner.blobs(&mut report).await?;
        inner.trash(&mut report).await?;
        if !dry_run {
            inner.trim().await?;
            inner.save().await;
            inner.metrics.gc_blobs.inc_by(report.purged);
            inner.metrics.gc_bytes.inc_by(report.purged_bytes);
        }
        Ok(report)
    }
}

impl Inner {
    fn clock(&self) -> MutexGuard<'_, (Clock, Instant)> {
        self.clock.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn tick(&self) {
        let heard = self.surroundings.unheard().is_empty();
        let (clock, last) = &mut *self.clock();
        let passed = last.elapsed();
        *last = Instant::now();
        // Whoever was heard a moment ago and is heard now was heard all the time, if the moment was short.
        let counts = passed.min(2 * TICK_MAX);
        clock.tick(now_ms(), ms(counts), heard, ms(self.config.grace / MARKS));
    }

    async fn save(&self) {
        let bytes = codec::encode(&self.clock().0);
        let commit = Commit { settings: vec![(CLOCK.to_owned(), Some(bytes))], ..Commit::default() };
        if let Err(error) = self.store.run(move |store| store.commit(commit)).await {
            tracing::warn!(%error, "the collector's clock was not saved; after a restart, things are younger than they are");
        }
    }

    /// Tags that no rule keeps, and manifests that a rule wants gone.
    async fn retain(&self, report: &mut Report) -> Result<()> {
        if self.rules.is_empty() {
            return Ok(());
        }
        let mut after: Option<RepositoryName> = None;
        loop {
            let from = after.take();
            let page = self.store.run(move |store| store.repositories(from.as_ref().map(RepositoryName::as_str), PART)).await?;
            let more = page.len() == PART;
            after = page.last().cloned();
            for repository in page {
                let mine = self.surroundings.is_first_for(&Digest::sha256(repository.as_str().as_bytes()));
                if !mine && !report.dry_run {
                    continue;
                }
                for rule in self.rules.iter().filter(|rule| is_about(rule, repository.as_str())) {
                    self.tags(rule, &repository, report).await?;
                }
                let untagged = self.rules.iter().filter(|rule| is_about(rule, repository.as_str())).filter_map(|rule| rule.untagged);
                if let Some(keep) = untagged.min() {
                    self.manifests(&repository, keep, report).await?;
                }
            }
            if !more {
                return Ok(());
            }
        }
    }

    async fn tags(&self, rule: &Retention, repository: &RepositoryName, report: &mut Report) -> Result<()> {
        let mut newest = Newest::new(rule);
        let mut after = None;
        loop {
            let (tags, next) = self.tags_behind(rule, repository, after).await?;
            tags.iter().for_each(|tag| newest.see(age(tag)));
            after = next;
            if after.is_none() {
                break;
            }
        }
        let now = now_ms();
        loop {
            let (tags, next) = self.tags_behind(rule, repository, after).await?;
            let mut going = Vec::new();
            for tag in tags {
                let Some(why) = why(rule, &newest, age(&tag), now) else { continue };
                report.tags += 1;
                report.item(Item { kind: "tag", repository: Some(repository.to_string()), name: tag.tag.to_string(), size: None, why });
                going.push((tag.tag, tag.stamp));
            }
            if !going.is_empty() && !report.dry_run {
                let name = repository.clone();
                report.manifests += self.store.run(move |store| store.retire_tags(&name, &going)).await? as u64;
            }
            after = next;
            if after.is_none() {
                return Ok(());
            }
        }
    }

    /// The next tags of a repository that a rule is about and may take away, and where to go on.
    async fn tags_behind(&self, rule: &Retention, repository: &RepositoryName, after: Option<Tag>) -> Result<(Vec<TagInfo>, Option<Tag>)> {
        let name = repository.clone();
        let mut page = self.store.run(move |store| store.tags(&name, after.as_ref().map(Tag::as_str), PART)).await?;
        let next = page.last().filter(|_| page.len() == PART).map(|tag| tag.tag.clone());
        page.retain(|tag| {
            let immutable = self.immutable.iter().any(|pattern| pattern.matches(repository.as_str(), tag.tag.as_str()));
            !immutable && is_about_tag(rule, tag.tag.as_str())
        });
        tokio::time::sleep(REST).await;
        Ok((page, next))
    }

    /// Manifests that nothing has held for `keep`. Since when is written down, because a manifest does not know when its tag left it.
    async fn manifests(&self, repository: &RepositoryName, keep: Duration, report: &mut Report) -> Result<()> {
        let prefix = format!("{UNTAGGED}{repository}@");
        let total = self.clock().0.total_ms();
        let known = {
            let prefix = prefix.clone();
            self.store.run(move |store| store.settings(&prefix)).await?
        };
        let mut known: HashMap<String, Vec<u8>> = known.into_iter().collect();
        let mut from = None;
        loop {
            let (name, place) = (repository.clone(), from.take());
            let (idle, next) = self.store.run(move |store| store.idle_manifests(&name, place.as_deref(), PART)).await?;
            let (mut going, mut settings) = (Vec::new(), Vec::new());
            for manifest in idle {
                let name = format!("{prefix}{}", manifest.digest);
                let since = known.remove(&name).and_then(|bytes| codec::decode::<(u64, Stamp)>(&bytes).ok());
                match since.filter(|(_, stamp)| *stamp == manifest.stamp) {
                    None => settings.push((name, Some(codec::encode(&(total, manifest.stamp))))),
                    Some((since, _)) if total.saturating_sub(since) >= ms(keep) => going.push(manifest),
                    Some(_) => {}
                }
            }
            self.retire_manifests(repository, going, keep, report).await?;
            if !settings.is_empty() && !report.dry_run {
                self.store.run(move |store| store.commit(Commit { settings, ..Commit::default() })).await?;
            }
            from = next;
            if from.is_none() {
                break;
            }
            tokio::time::sleep(REST).await;
        }
        // What is still here is held again, or gone.
        let settings: Vec<_> = known.into_keys().map(|name| (name, None)).collect();
        if !settings.is_empty() && !report.dry_run {
            self.store.run(move |store| store.commit(Commit { settings, ..Commit::default() })).await?;
        }
        Ok(())
    }

    async fn retire_manifests(
        &self,
        repository: &RepositoryName,
        going: Vec<IdleManifest>,
        keep: Duration,
        report: &mut Report,
    ) -> Result<()> {
        for manifest in &going {
            report.item(Item {
                kind: "manifest",
                repository: Some(repository.to_string()),
                name: manifest.digest.to_string(),
                size: None,
                why: format!("nothing has named it for {} hours", keep.as_secs() / 3600),
            });
        }
        if report.dry_run {
            report.manifests += going.len() as u64;
        } else if !going.is_empty() {
            let name = repository.clone();
            report.manifests += self.store.run(move |store| store.retire_manifests(&name, &going)).await? as u64;
        }
        Ok(())
    }

    /// Links that no manifest needs, and that nobody has relied on for long enough.
    async fn links(&self, report: &mut Report) -> Result<()> {
        let old_ms = ms(self.config.grace + self.config.renew_after());
        let mut from: Option<Vec<u8>> = None;
        loop {
            let place = from.take();
            let (idle, next) = self.store.run(move |store| store.idle_links(place.as_deref(), PART)).await?;
            let (old, young): (Vec<_>, Vec<_>) = {
                let clock = self.clock();
                idle.into_iter().partition(|link| clock.0.age_ms(link.stamp.time.ms()) >= old_ms)
            };
            report.links_waiting += young.len() as u64;
            let mut going: Vec<_> = old.into_iter().filter(|link| report.dry_run || self.surroundings.is_first_for(&link.digest)).collect();
            if !report.dry_run && !going.is_empty() {
                going = self.store.run(move |store| store.collect_links(going)).await?;
            }
            report.links += going.len() as u64;
            for link in going {
                report.item(Item {
                    kind: "link",
                    repository: Some(link.repository.to_string()),
                    name: link.digest.to_string(),
                    size: Some(link.size),
                    why: "no manifest of the repository names it, and no client asked for it lately".to_owned(),
                });
            }
            from = next;
            if from.is_none() {
                return Ok(());
            }
            tokio::time::sleep(REST).await;
        }
    }

    /// Blobs that no repository links, into the trash.
    async fn blobs(&self, report: &mut Report) -> Result<()> {
        let now = self.clock().0.total_ms();
        let mut after = None;
        loop {
            let dry_run = report.dry_run;
            let (gone, next) = self
                .store
                .run(move |store| {
                    let (mut idle, next) = store.idle_blobs(after.as_ref(), PART)?;
                    if !dry_run {
                        let mut gone = Vec::new();
                        for (digest, size) in idle {
                            if store.trash(&digest, now)? {
                                gone.push((digest, size));
                            }
                        }
                        idle = gone;
                    }
                    Ok::<_, Error>((idle, next))
                })
                .await?;
            for (digest, size) in gone {
                report.trashed += 1;
                report.trashed_bytes += size;
                let why = "no repository has it".to_owned();
                report.item(Item { kind: "blob", repository: None, name: digest.to_string(), size: Some(size), why });
            }
            after = next;
            if after.is_none() {
                return Ok(());
            }
            tokio::time::sleep(REST).await;
        }
    }

    /// What has been in the trash for long enough, off the disk.
    async fn trash(&self, report: &mut Report) -> Result<()> {
        let (now, keep_ms) = (self.clock().0.total_ms(), ms(self.config.trash));
        let mut after = None;
        loop {
            let dry_run = report.dry_run;
            let (page, gone) = self
                .store
                .run(move |store| {
                    let page = store.trashed(after.as_ref(), PART)?;
                    let mut gone = Vec::new();
                    for trashed in page.iter().filter(|trashed| now.saturating_sub(trashed.since) >= keep_ms) {
                        if dry_run || store.purge(&trashed.digest)?.is_some() {
                            gone.push(*trashed);
                        }
                    }
                    Ok::<_, Error>((page, gone))
                })
                .await?;
            report.in_trash += (page.len() - gone.len()) as u64;
            report.in_trash_bytes += page.iter().map(|trashed| trashed.size).sum::<u64>() - gone.iter().map(|gone| gone.size).sum::<u64>();
            for trashed in gone {
                report.purged += 1;
                report.purged_bytes += trashed.size;
                let why = "its time in the trash is over".to_owned();
                report.item(Item { kind: "trash", repository: None, name: trashed.digest.to_string(), size: Some(trashed.size), why });
            }
            after = page.last().map(|trashed| trashed.digest);
            if page.len() < PART {
                return Ok(());
            }
            tokio::time::sleep(REST).await;
        }
    }

    /// Versions of tags beyond those that are kept.
    async fn trim(&self) -> Result<()> {
        let mut from: Option<Vec<u8>> = None;
        loop {
            let place = from.take();
            let (_, next) = self.store.run(move |store| store.trim_history(place.as_deref(), PART)).await?;
            from = next;
            if from.is_none() {
                return Ok(());
            }
            tokio::time::sleep(REST).await;
        }
    }
}

impl Report {
    fn item(&mut self, item: Item) {
        if self.items.iter().filter(|listed| listed.kind == item.kind).count() < LISTED_MAX {
            self.items.push(item);
        }
    }

    fn log(&self) {
        if !self.waiting_for.is_empty() {
            tracing::info!(waiting_for = self.waiting_for.join(", "), "garbage of the fleet waits until these members are heard");
        }
        if self.tags + self.manifests + self.links + self.trashed + self.purged > 0 {
            let Self { tags, manifests, links, trashed, purged, purged_bytes, .. } = self;
            tracing::info!(tags, manifests, links, trashed, purged, purged_bytes, "collected garbage");
        }
    }
}

fn age(tag: &TagInfo) -> Age {
    let (time, node) = (tag.stamp.time, tag.stamp.node.0);
    // Tags of one moment are told apart by the clock's counter and, at the very last, by a part of the node's id.
    Age { pushed: (time.ms(), (time.0 & 0xffff) << 32 | u64::from(u32::from_be_bytes([node[0], node[1], node[2], node[3]]))) }
}

fn ms(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}

fn now_ms() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, ms)
}
