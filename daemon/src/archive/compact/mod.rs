//! Compaction: the bucket without what nothing needs any more, when that saves more than it costs.
//!
//! ```text
//! catalogue --weigh--> plan                 which packs nothing counts in, which are mostly dead or small, priced
//!                       |
//!                    1 rewrite             what counts of these goes into new packs, by the writer's ordinary way
//!                    2 recorded            each new pack, in the commit that follows its PUT
//!                    3 retire              the old ones leave the catalogue, once all that counts of them stands elsewhere: nobody relies on them any more
//!                    4 checkpoint
//!                    5 checkpoint          when archive.compact_wait is over and every member has heard
//!                    6 proof, DELETE       see `proof`
//! ```
//!
//! Nothing of this is kept in a plan of its own. What is written anew makes the old pack dead for whoever plans next; what is retired is told by a record, and
//! a row of this node says that the object may be there still. So a crash between any two steps leaves what the next run goes on with; a node that has lost
//! its rows finds retired packs in the listing.
//!
//! Invariants: a blob that is linked stands in a pack that is in the catalogue, or in one that is not deleted before somebody has looked again. Only one node
//! compacts the packs of a writer. Two that let go of a blob because of each other's pack find that out before either is deleted.

use std::sync::Arc;
use std::time::Duration;

use larder_protocol::record::PackId;
use tokio_util::sync::CancellationToken;

use serde::Serialize;

use crate::config::{Prices, StorageClass};
use crate::failpoint;
use crate::store::Commit;

use super::bucket::Bucket;
use super::{Archive, Error, Inner, Limits, Skipped, moment, restore, tail, writer};

use self::plan::{Group, Plan, Rates, Rules, Stays};

mod catalogue;
mod plan;
mod proof;
mod rewrite;

pub use self::plan::Spent;

const MONTH_S: f64 = 30.0 * 86_400.0;
/// Requests of a run whatever it does: two checkpoints are written, and read in two parts each; packs and checkpoints are listed twice.
const RUN_PUTS: f64 = 2.0;
const RUN_GETS: f64 = 4.0;
const RUN_LISTS: f64 = 4.0;
/// Packs that a report names.
const NAMED_MAX: usize = 1_000;
/// How often a node compacts by itself; the waiting time, where that is shorter.
const PERIOD: Duration = Duration::from_secs(86_400);
const PERIOD_MIN: Duration = Duration::from_secs(1);
/// The wait after a run that failed.
const RETRY_AFTER: Duration = Duration::from_secs(300);

/// `[archive]`, as far as compaction goes.
#[derive(Clone, Copy, Debug)]
pub(super) struct Dial {
    /// Whether this node begins runs by itself.
    pub by_itself: bool,
    /// How long a pack stays after everything in it stands elsewhere; and how old it must be to begin with.
    pub wait: Duration,
    /// Most months until what is spent has come in again.
    pub payback_max: f64,
    /// Most bytes that are written anew in one run.
    pub bytes_max: u64,
}

/// `larder archive compact`
#[derive(Clone, Debug, Default, Serialize)]
pub struct Compaction {
    /// Packs of the bucket that records tell of.
    pub packs: u64,
    /// Their bytes.
    pub bytes: u64,
    /// Packs that go because nothing in them counts any more.
    pub drops: Vec<Going>,
    /// Packs that go because what counts in them goes into new ones.
    pub rewrites: Vec<Rewrite>,
    /// Packs of which something is dead and that stay, by the reason.
    pub stays: Vec<Staying>,
    /// Dollars.
    pub money: Money,
    /// What was done; nothing, where only the plan was asked for.
    #[serde(flatten)]
    pub outcome: Outcome,
}

/// What a run has done.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Outcome {
    /// Keys of the packs that were written.
    pub written: Vec<String>,
    /// Their bytes.
    pub written_bytes: u64,
    /// Packs that left the catalogue.
    pub retired: u64,
    /// Checkpoints that were written.
    pub checkpoints: u64,
    /// Keys of the packs that were deleted.
    pub deleted: Vec<String>,
    /// Their bytes.
    pub deleted_bytes: u64,
    /// Older checkpoints that were deleted.
    pub checkpoints_deleted: u64,
    /// Packs that are out of the catalogue and in the bucket still.
    pub waiting: Vec<Waiting>,
    /// What the bucket did not let go.
    pub refused: Vec<Skipped>,
}

/// A pack that goes later.
#[derive(Clone, Debug, Serialize)]
pub struct Waiting {
    /// The object's key.
    pub key: String,
    /// Bytes.
    pub size: u64,
    /// Since when it is out of the catalogue: RFC 3339.
    pub since: String,
    /// For what.
    pub why: String,
}

/// A pack that goes.
#[derive(Clone, Debug, Serialize)]
pub struct Going {
    /// The object's key.
    pub key: String,
    /// Bytes.
    pub size: u64,
    /// RFC 3339.
    pub created: String,
    /// Blobs of it that count still.
    pub live_blobs: usize,
    /// Their bytes.
    pub live_bytes: u64,
    /// Dollars once, if this pack alone went.
    pub spent: f64,
    /// Dollars a month.
    pub saved_month: f64,
}

/// Packs whose living blobs go into new ones together.
#[derive(Clone, Debug, Serialize)]
pub struct Rewrite {
    /// The old ones.
    pub packs: Vec<Going>,
    /// Bytes that are written anew.
    pub moved: u64,
    /// Bytes that the bucket holds less afterwards.
    pub freed: u64,
    /// Dollars once.
    pub spent: Spent,
    /// Dollars a month.
    pub saved_month: f64,
    /// Months until what is spent has come in again; none: never, and it is done because it frees something and costs nothing.
    pub payback_months: Option<f64>,
}

/// Packs that stay.
#[derive(Clone, Debug, Serialize)]
pub struct Staying {
    /// Why.
    pub why: &'static str,
    /// How many.
    pub packs: u64,
    /// Bytes of them that are dead.
    pub dead_bytes: u64,
}

/// What a plan costs and saves, in sum.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Money {
    /// Dollars once, the run's own requests included.
    pub spent: f64,
    /// Dollars a month.
    pub saved_month: f64,
    /// Months until the one has brought in the other.
    pub payback_months: Option<f64>,
    /// The most that it may be.
    pub payback_months_max: f64,
    /// Bytes that are written anew.
    pub moved: u64,
    /// Bytes that the bucket holds less afterwards.
    pub freed: u64,
    /// Whose prices these are, and of when.
    pub source: String,
}

impl Archive {
    /// What compaction would do now, without doing it. Asks the bucket nothing.
    ///
    /// # Errors
    /// `Off`; the store can't be read.
    pub async fn plan_compaction(&self) -> Result<Compaction, Error> {
        let inner = self.inner.clone();
        let bucket = inner.bucket.clone().ok_or(Error::Off)?;
        let (plan, rules) = inner.plan_compaction(&bucket).await?;
        inner.told(&bucket, &plan, &rules, Outcome { waiting: inner.waiting(&bucket).await?, ..Outcome::default() }).await
    }

    /// Compacts now, and ends what earlier runs began, as far as its time has come.
    ///
    /// # Errors
    /// `Off`; the bucket's or the store's refusal: what was done by then stays, and the next run goes on.
    pub async fn compact(&self) -> Result<Compaction, Error> {
        let inner = self.inner.clone();
        tokio::spawn(async move { inner.compact(true).await }).await.expect("a compaction does not panic")
    }
}

impl Inner {
    /// Compacts once in a while, when that is switched on; ends what was begun in any case, since somebody has asked for it. Asks the bucket nothing when
    /// there is nothing to do.
    pub(super) async fn compaction(self: Arc<Self>, stop: CancellationToken) {
        let Some(bucket) = self.bucket.clone() else { return stop.cancelled().await };
        let period = self.settings.compact.wait.clamp(PERIOD_MIN, PERIOD);
        let mut last = self.last_run(&bucket).await.unwrap_or_else(|_| writer::now_ms());
        let mut not_before = Duration::ZERO;
        loop {
            // A clock that was set back must not make the wait longer.
            let waited = Duration::from_millis(writer::now_ms().saturating_sub(last));
            let wait = period.saturating_sub(waited).max(not_before);
            tokio::select! {
                () = stop.cancelled() => return,
                () = tokio::time::sleep(wait) => {}
            }
            let ran = tokio::select! {
                () = stop.cancelled() => return,
                ran = self.compact(false) => ran,
            };
            not_before = match ran {
                Ok(_) => {
                    last = writer::now_ms();
                    Duration::ZERO
                }
                Err(error) => {
                    tracing::warn!(bucket = bucket.id(), %error, "could not compact the archive; the next run goes on, in {RETRY_AFTER:?}");
                    RETRY_AFTER
                }
            };
        }
    }

    async fn last_run(&self, bucket: &Arc<dyn Bucket>) -> Result<u64, Error> {
        let name = last_setting(bucket.id());
        let row = self.store.run(move |store| store.setting(&name)).await?;
        Ok(row.and_then(|row| std::str::from_utf8(&row).ok()?.parse().ok()).unwrap_or(self.began_ms))
    }

    /// A run. `asked`: somebody waits for it, and it may cost a listing whether there is anything to do or not.
    pub(super) async fn compact(self: &Arc<Self>, asked: bool) -> Result<Compaction, Error> {
        let bucket = self.bucket.clone().ok_or(Error::Off)?;
        let _one = self.compacting.lock().await;
        let mut outcome = Outcome::default();
        let mut planned = None;
        // Who has not read all of a bucket does not know what counts in it.
        let is_restoring = self.store.run(|store| store.setting(restore::RESTORING)).await?.is_some();
        let why_not = match (is_restoring, self.store.is_reader()) {
            (true, _) => Some("a restore was begun here and is not at its end; begin it again with the same address"),
            (false, true) => Some("this node is a reader, whose word counts nowhere; ask the node that wrote the packs"),
            (false, false) => None,
        };
        if let Some(why) = why_not {
            return if asked { Err(Error::NoCompaction { why }) } else { Ok(Compaction::default()) };
        }
        if asked || self.settings.compact.by_itself {
            let (plan, rules) = self.plan_compaction(&bucket).await?;
            if plan.groups().next().is_some() {
                self.begin(&bucket, &plan, &mut outcome).await?;
            }
            planned = Some((plan, rules));
        }
        self.end_retired(&bucket, asked || outcome.retired > 0, &mut outcome).await?;
        self.metrics.compaction_refused.set(outcome.refused.len() as i64);
        let settings = vec![(last_setting(bucket.id()), Some(writer::now_ms().to_string().into()))];
        self.store.run(move |store| store.commit(Commit { records: Vec::new(), settings })).await?;
        match planned {
            Some((plan, rules)) => self.told(&bucket, &plan, &rules, outcome).await,
            None => Ok(Compaction { outcome, ..Compaction::default() }),
        }
    }

    /// Writes anew what is to be written, and takes what goes off the catalogue.
    async fn begin(self: &Arc<Self>, bucket: &Arc<dyn Bucket>, plan: &Plan, outcome: &mut Outcome) -> Result<(), Error> {
        let failed = |source: std::io::Error| proof::failed("compact", bucket, &source);
        failpoint::pass("archive/compact/planned").map_err(failed)?;
        self.check_bucket(bucket, &mut self.turn.lock().await.checked).await?;
        // What waits goes first: else a checkpoint holds back what is younger, and a pack that was put and not recorded would be in the way.
        self.flush().await?;
        // What a group counts for stays so while others are written: a blob counts in one pack.
        let ranks = Arc::new(self.ranks(bucket.id()).await?);
        for group in &plan.rewrites {
            let is_frozen = group.packs[0].class.is_frozen();
            let written = self.rewrite(bucket, group.packs.iter().map(|pack| pack.id).collect(), is_frozen, &ranks).await?;
            outcome.written_bytes += written.iter().map(|pack| pack.size).sum::<u64>();
            outcome.written.extend(written.into_iter().map(|pack| pack.key));
        }
        failpoint::pass("archive/compact/recorded-not-retired").map_err(failed)?;
        let ranks = Arc::new(self.ranks(bucket.id()).await?);
        let going: Vec<PackId> = plan.groups().flat_map(|group| &group.packs).map(|pack| pack.id).collect();
        for pack in going {
            outcome.retired += u64::from(self.retire(bucket, pack, &ranks).await?);
        }
        if outcome.retired > 0 {
            failpoint::pass("archive/compact/retired-no-checkpoint").map_err(failed)?;
            self.checkpoint_now().await?;
            outcome.checkpoints += 1;
        }
        Ok(())
    }

    /// What is out of the catalogue and in the bucket still, as far as this node has a row of it.
    async fn waiting(&self, bucket: &Arc<dyn Bucket>) -> Result<Vec<Waiting>, Error> {
        let rows = self.retired(bucket.id()).await?;
        let waiting =
            |row: rewrite::Retired| Waiting { key: row.key, size: row.size, since: String::new(), why: "the next run looks".to_owned() };
        Ok(rows.into_iter().map(waiting).collect())
    }

    async fn told(&self, bucket: &Arc<dyn Bucket>, plan: &Plan, rules: &Rules, outcome: Outcome) -> Result<Compaction, Error> {
        let totals = self.totals(bucket.id()).await?;
        Ok(Compaction { packs: totals.packs, bytes: totals.bytes, outcome, ..report(plan, rules, bucket.prices()) })
    }

    async fn plan_compaction(&self, bucket: &Arc<dyn Bucket>) -> Result<(Plan, Rules), Error> {
        let packs = self.weighed(bucket).await?;
        let checkpoint = self.last_checkpoint(bucket).await?.size;
        let rules = self.rules(bucket.prices(), packs.len(), checkpoint);
        let planned = tokio::task::spawn_blocking(move || (plan::plan(packs, &rules), rules));
        Ok(planned.await.expect("planning does not panic"))
    }

    fn rules(&self, prices: &Prices, packs: usize, checkpoint: u64) -> Rules {
        let Dial { wait, payback_max, bytes_max, .. } = self.settings.compact;
        let rates = Rates::of(prices, &self.settings.class);
        let period = self.settings.verify_period.as_secs_f64();
        let pages = packs.min(tail::LISTED_MAX).div_ceil(1000).max(1) as f64;
        Rules {
            now_ms: writer::now_ms(),
            wait_ms: u64::try_from(wait.as_millis()).unwrap_or(u64::MAX),
            payback_max,
            bytes_max,
            pack_size: self.settings.pack_size,
            blobs_max: Limits::default().blobs / 2,
            looks_month: if period > 0.0 { MONTH_S / period } else { 0.0 },
            run_cost: RUN_PUTS * (rates.put + checkpoint as f64 / 1e9 * rates.reading_gb)
                + RUN_GETS * rates.get
                + RUN_LISTS * pages * rates.list,
            rates,
            frozen_rates: self.settings.bulk.as_ref().map_or(rates, |class| Rates::of(prices, class)),
        }
    }
}

impl Rates {
    fn of(prices: &Prices, class: &StorageClass) -> Self {
        let class = prices.of(class.name());
        Self {
            put: class.put_thousand / 1000.0,
            get: class.get_thousand / 1000.0,
            list: prices.put_thousand / 1000.0,
            storage_gb_month: class.storage_gb_month,
            reading_gb: class.retrieval_gb + prices.transfer_gb,
            days_min: class.days_min,
        }
    }
}

/// The setting that says when the last run was.
fn last_setting(bucket: &str) -> String {
    format!("archive/compacted/{bucket}")
}

/// The plan, for people.
fn report(plan: &Plan, rules: &Rules, prices: &Prices) -> Compaction {
    let spent = plan.groups().map(|group| group.spent.total()).sum::<f64>();
    let spent = if plan.groups().next().is_some() { spent + plan.run_cost } else { 0.0 };
    let saved_month = plan.groups().map(|group| group.saved_month).sum();
    Compaction {
        drops: plan.drops.iter().flat_map(|group| going(group, rules)).take(NAMED_MAX).collect(),
        rewrites: plan.rewrites.iter().map(|group| rewrite(group, rules)).take(NAMED_MAX).collect(),
        stays: plan.stays.iter().map(|(why, (packs, dead))| Staying { why: words(*why), packs: *packs, dead_bytes: *dead }).collect(),
        money: Money {
            spent,
            saved_month,
            payback_months: plan::payback(spent, saved_month),
            payback_months_max: rules.payback_max,
            moved: plan.groups().map(|group| group.moved).sum(),
            freed: plan.groups().map(|group| group.freed).sum(),
            source: prices.source.to_string(),
        },
        ..Compaction::default()
    }
}

fn rewrite(group: &Group, rules: &Rules) -> Rewrite {
    let Group { moved, freed, spent, saved_month, .. } = group;
    Rewrite {
        packs: going(group, rules),
        moved: *moved,
        freed: *freed,
        spent: *spent,
        saved_month: *saved_month,
        payback_months: group.payback(),
    }
}

fn going(group: &Group, rules: &Rules) -> Vec<Going> {
    let going = |pack: &plan::Pack| {
        let alone = plan::group(vec![pack.clone()], rules);
        Going {
            key: pack.key.clone(),
            size: pack.size,
            created: moment(pack.created_ms),
            live_blobs: pack.live_blobs,
            live_bytes: pack.live_bytes,
            spent: alone.spent.total(),
            saved_month: alone.saved_month,
        }
    };
    group.packs.iter().map(going).collect()
}

fn words(why: Stays) -> &'static str {
    match why {
        Stays::Others => "another node compacts them",
        Stays::Young => "they are younger than archive.compact_wait, or than what their class is paid for at least",
        Stays::Newest => "they are the newest of their writers",
        Stays::Useful => "most of what is in them counts",
        Stays::Dear => "it would cost more than it saves within archive.compact_payback",
        Stays::Later => "a later run takes them: archive.compact_bytes bounds one",
    }
}
