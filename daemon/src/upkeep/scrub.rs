//! Scrub: rereading what is on the disk before somebody needs it.
//!
//! A blob that nobody pulls may rot unseen. A cycle reads each of them once, in the order of digests, MiB by MiB against the values taken
//! when it came in, and then every row of the index, whose blocks RocksDB checks as they are read. What is damaged is put aside
//! (`store`), looked for elsewhere (the handle that `node` gives), and named. Where it stands is a setting, so that a
//! restart goes on. It is slow on purpose: `scrub.rate` bytes a second, and pages that it alone read are given back to the system.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use futures_util::future::BoxFuture;
use larder_protocol::codec;
use larder_protocol::digest::Digest;
use larder_protocol::record::Link;
use serde::Serialize;
use tokio_util::sync::CancellationToken;

use crate::config;
use crate::store::{Commit, Result, Store, Verdict};
use crate::telemetry::Metrics;

/// Has a blob from elsewhere; whether it came.
pub type Heal = Arc<dyn Fn(Digest, Link) -> BoxFuture<'static, bool> + Send + Sync>;

/// Setting that holds when the cycle began, and the last digest that was read.
const CURSOR: &str = "scrub/cursor";
/// Blobs listed in one go.
const PART: usize = 100;
/// Rows of the index read in one go.
const ROWS: usize = 10_000;
/// After so many bytes the cursor is saved.
const SAVE_EVERY: u64 = 1 << 30;
/// How often it is looked whether a cycle is due.
const PAUSE: Duration = Duration::from_secs(60);
/// Damaged blobs that a report names.
const NAMED_MAX: usize = 1000;

/// The scrubber. Cheap to clone.
#[derive(Clone)]
pub struct Scrub {
    inner: Arc<Inner>,
}

struct Inner {
    store: Store,
    config: config::Scrub,
    heal: Heal,
    metrics: Arc<Metrics>,
    /// Whether somebody waits for a pass at full speed; the slow one rests meanwhile.
    hurried: AtomicBool,
    last: Mutex<Option<Instant>>,
    /// One pass at full speed at a time.
    pass: tokio::sync::Mutex<()>,
}

/// What a pass found.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Scrubbed {
    /// Blobs that were read.
    pub blobs: u64,
    /// Their bytes.
    pub bytes: u64,
    /// Rows of the index that were read.
    pub rows: u64,
    /// What could not be read of the index.
    pub index_errors: Vec<String>,
    /// Blobs that were damaged; the first of them.
    pub damaged: Vec<Damaged>,
    /// How many there were.
    pub damaged_count: u64,
    /// How many of them are here again.
    pub healed_count: u64,
}

/// A damaged blob.
#[derive(Clone, Debug, Serialize)]
pub struct Damaged {
    /// Which.
    pub digest: String,
    /// What was wrong.
    pub why: String,
    /// It came back from elsewhere.
    pub healed: bool,
}

/// Where a cycle stands.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
struct Cursor {
    began_ms: u64,
    after: Option<Digest>,
    done: bool,
}

/// How fast a pass goes.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Pace {
    Slow,
    Full,
}

impl Scrub {
    /// Builds it; nothing is read yet.
    pub fn new(config: &config::Config, store: Store, heal: Heal, metrics: Arc<Metrics>) -> Self {
        let inner = Inner {
            store,
            config: config.scrub.clone(),
            heal,
            metrics,
            hurried: AtomicBool::new(false),
            last: Mutex::new(None),
            pass: tokio::sync::Mutex::default(),
        };
        Self { inner: Arc::new(inner) }
    }

    /// Reads everything once each `scrub.cycle`, slowly, until told to stop.
    pub async fn run(self, stopping: CancellationToken) {
        let inner = &self.inner;
        if inner.config.cycle.is_zero() {
            return stopping.cancelled().await;
        }
        while !stopping.is_cancelled() {
            let turn = async {
                tokio::time::sleep(PAUSE.min(inner.config.cycle)).await;
                inner.turn().await
            };
            match stopping.run_until_cancelled(turn).await {
                Some(Err(error)) => tracing::warn!(%error, "the scrub broke off; it goes on where it was"),
                Some(Ok(())) => {}
                None => break,
            }
        }
    }

    /// Reads everything once, now, at full speed.
    ///
    /// # Errors
    /// The store can't be asked what there is.
    pub async fn pass(&self) -> Result<Scrubbed> {
        let inner = &self.inner;
        let _one = inner.pass.lock().await;
        inner.hurried.store(true, Ordering::Relaxed);
        let mut report = Scrubbed::default();
        let passed = inner.read_all(Cursor::default(), Pace::Full, &mut report).await;
        inner.hurried.store(false, Ordering::Relaxed);
        passed.map(|()| report)
    }
}

impl Inner {
    /// Goes on with the cycle, if one is due.
    async fn turn(&self) -> Result<()> {
        let saved = self.store.run(|store| store.setting(CURSOR)).await?;
        // A damaged row is read as none: everything is read once more.
        let mut cursor: Cursor = saved.and_then(|bytes| codec::decode(&bytes).ok()).unwrap_or_default();
        let now = now_ms();
        if cursor.done && u128::from(now.saturating_sub(cursor.began_ms)) < self.config.cycle.as_millis() {
            return Ok(());
        }
        if cursor.done || cursor.began_ms == 0 {
            cursor = Cursor { began_ms: now, ..Cursor::default() };
        }
        let mut report = Scrubbed::default();
        self.read_all(cursor, Pace::Slow, &mut report).await?;
        self.save(Cursor { after: None, done: true, ..cursor }).await?;
        self.metrics.scrub_finished.set(i64::try_from(now_ms() / 1000).unwrap_or(i64::MAX));
        let Scrubbed { blobs, bytes, damaged_count, healed_count, .. } = report;
        tracing::info!(blobs, bytes, damaged_count, healed_count, "a cycle of the scrub has ended");
        Ok(())
    }

    async fn read_all(&self, mut cursor: Cursor, pace: Pace, report: &mut Scrubbed) -> Result<()> {
        let mut unsaved = 0;
        loop {
            let after = cursor.after;
            let part = self.store.run(move |store| store.blobs_behind(after.as_ref(), PART)).await?;
            for (digest, size) in &part {
                self.read(*digest, *size, pace, report).await?;
                cursor.after = Some(*digest);
                unsaved += size;
                if pace == Pace::Slow && unsaved >= SAVE_EVERY {
                    unsaved = 0;
                    self.save(cursor).await?;
                }
            }
            if part.len() < PART {
                break;
            }
        }
        self.read_index(pace, report).await;
        Ok(())
    }

    /// Reads one blob, and puts it aside when it is damaged.
    async fn read(&self, digest: Digest, size: u64, pace: Pace, report: &mut Scrubbed) -> Result<()> {
        self.rest(size, pace).await;
        let verdict = self.store.run(move |store| store.verify(&digest)).await?;
        let why = match verdict {
            Verdict::Gone => return Ok(()),
            Verdict::Good => None,
            Verdict::Damaged(why) => Some(why),
        };
        report.blobs += 1;
        report.bytes += size;
        self.metrics.scrubbed_bytes.inc_by(size);
        let Some(why) = why else { return Ok(()) };
        self.metrics.quarantined_blobs.inc();
        let link = self.store.run(move |store| match store.repositories_linking(&digest, 1)?.pop() {
            Some(repository) => store.link(&repository, &digest),
            None => Ok(None),
        });
        let healed = match link.await? {
            Some(link) => (self.heal)(digest, link).await,
            None => false,
        };
        report.damaged_count += 1;
        report.healed_count += u64::from(healed);
        if report.damaged.len() < NAMED_MAX {
            report.damaged.push(Damaged { digest: digest.to_string(), why, healed });
        }
        Ok(())
    }

    /// Reads every row of the index; RocksDB checks what it reads.
    async fn read_index(&self, pace: Pace, report: &mut Scrubbed) {
        for table in Store::tables() {
            let mut from: Option<Vec<u8>> = None;
            loop {
                let place = from.take();
                match self.store.run(move |store| store.read_rows(table, place.as_deref(), ROWS)).await {
                    Ok((rows, bytes, next)) => {
                        report.rows += rows;
                        self.rest(bytes, pace).await;
                        from = next;
                    }
                    Err(error) => {
                        tracing::error!(%error, table, "a part of the index can't be read; `larder scrub` names it, the README says what to do");
                        report.index_errors.push(format!("table {table}: {error}"));
                    }
                }
                if from.is_none() {
                    break;
                }
            }
        }
    }

    /// Waits until the rate allows so many more bytes.
    async fn rest(&self, bytes: u64, pace: Pace) {
        if pace == Pace::Full {
            return;
        }
        while self.hurried.load(Ordering::Relaxed) {
            tokio::time::sleep(Duration::from_secs(1)).await;
        }
        let takes = Duration::from_secs_f64(bytes as f64 / self.config.rate.max(1) as f64);
        let until = {
            let mut last = self.last.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
            let until = last.map_or_else(Instant::now, |last| last.max(Instant::now())) + takes;
            *last = Some(until);
            until
        };
        tokio::time::sleep_until(until.into()).await;
    }

    async fn save(&self, cursor: Cursor) -> Result<()> {
        let settings = vec![(CURSOR.to_owned(), Some(codec::encode(&cursor)))];
        self.store.run(move |store| store.commit(Commit { settings, ..Commit::default() })).await.map(drop)
    }
}

fn now_ms() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| u64::try_from(since.as_millis()).unwrap_or(u64::MAX))
}
