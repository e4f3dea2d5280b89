//! Thawing: what `thaw` plans, done. What is wanted of frozen packs is told in hours and dollars; once somebody has agreed, the bucket is asked for the
//! packs, and their blobs come onto this disk as they thaw.
//!
//! CRASH: the job is written down before anything is asked, and each pack's row after it was; a start plans anew with what is not here yet. A pack that
//! was asked for and has no row is asked for again, which the bucket answers with "I know".

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use larder_protocol::digest::Digest;
use serde::{Deserialize, Serialize};
use tokio_util::sync::CancellationToken;

use crate::config::{Prices, Tier};
use crate::store::Commit;

use super::bucket::Bucket;
use super::thaw::{self, Estimate, Pack, Plan, Step};
use super::{Choice, Error, Inner, keys, ledger, refill, tail, writer};

mod known;
mod wanted;

pub(super) use known::{Thaws, seen};

use known::Known;
use wanted::Readable;

/// The setting that holds the job.
const JOB: &str = "archive/thaw";
/// Settings that say when a pack was asked for, by bucket and key.
const ASKED: &str = "archive/thaw-asked/";
/// The longest pause before a job that could not be begun is begun again.
const PAUSE_MAX: Duration = Duration::from_secs(60);
/// How often it is told how a job stands, while it goes on.
const SHOWN_EVERY: Duration = Duration::from_millis(250);
/// The longest that a copy is kept.
pub const DAYS_MAX: u32 = 365;

/// What is to thaw.
#[derive(Clone, Debug)]
pub struct ThawRequest {
    /// These images; none: everything that is not on this disk.
    pub images: Vec<String>,
    /// How fast; none: it is only said what it would take.
    pub tier: Option<Tier>,
    /// How long the bucket keeps the copies.
    pub days: u32,
}

/// What it takes.
#[derive(Clone, Debug, Serialize)]
pub struct ThawTold {
    /// Packs that must thaw.
    pub packs: u64,
    /// Their bytes.
    pub bytes: u64,
    /// Of those, bytes of blobs that are wanted.
    pub wanted: u64,
    /// By tier, the cheapest first.
    pub tiers: Vec<TierTold>,
    /// Where and when these were the prices.
    pub source: String,
    /// Whether it was begun.
    pub begun: bool,
}

/// See [`Estimate`].
#[derive(Clone, Debug, Serialize)]
pub struct TierTold {
    /// Its name.
    pub tier: &'static str,
    /// Seconds until all of it can be read, nearly always.
    pub seconds: u64,
    /// Dollars for thawing.
    pub thaw: f64,
    /// Dollars for the copies.
    pub copies: f64,
    /// Dollars for the reading.
    pub reading: f64,
}

/// How a job stands.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct ThawProgress {
    /// How fast it was asked for.
    pub tier: String,
    /// Packs.
    pub packs: u64,
    /// Their bytes.
    pub bytes: u64,
    /// Asked for.
    pub asked: u64,
    /// Thawed, and what is wanted of them read.
    pub read: u64,
    /// Not in the bucket any more.
    pub lost: u64,
    /// Seconds until all have thawed, nearly always.
    pub ready_in_s: Option<u64>,
    /// Why the last step failed.
    pub last_error: Option<String>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Job {
    tier: String,
    days: u32,
    /// None: all.
    images: Vec<String>,
}

impl Inner {
    /// Takes up what was asked for before a restart: whoever pulls in the first moments is told that it comes.
    pub(super) async fn remember_thaws(&self) -> Result<(), Error> {
        let (job, asked) = self.store.run(|store| Ok::<_, Error>((store.setting(JOB)?, store.settings(ASKED)?))).await?;
        let Some(tier) = job.and_then(|row| read_job(&row)).and_then(|job| job.tier.parse().ok()) else { return Ok(()) };
        for (name, value) in asked {
            let Some((bucket, key)) = name.strip_prefix(ASKED).and_then(|name| name.split_once('\n')) else { continue };
            let Some(at) = std::str::from_utf8(&value).ok().and_then(|text| text.parse::<u64>().ok()) else { continue };
            let time = thaw::time_ms(&self.settings.s3.prices, keys::class_of(key).name(), tier);
            self.thaws.learn(bucket, key, Known::Thawing(at.saturating_add(time)));
        }
        Ok(())
    }

    /// See [`super::Archive::thaw`].
    pub(super) async fn thaw(self: &Arc<Self>, request: ThawRequest) -> Result<ThawTold, Error> {
        let choices = choices(&request.images)?;
        let packs = self.frozen_packs(choices, Readable::Skipped).await?;
        let prices = self.settings.s3.prices.clone();
        let tiers = if packs.is_empty() { Vec::new() } else { thaw::estimates(&packs, &prices, request.days) };
        let told = ThawTold {
            packs: packs.len() as u64,
            bytes: sum(&packs, |pack| pack.size),
            wanted: sum(&packs, |pack| pack.wanted),
            tiers: tiers.iter().map(TierTold::new).collect(),
            source: source(&packs, &prices),
            begun: request.tier.is_some() && !packs.is_empty(),
        };
        let Some(tier) = request.tier.filter(|_| told.begun) else { return Ok(told) };
        if !tiers.iter().any(|known| known.tier == tier) {
            let known: Vec<&str> = tiers.iter().map(|tier| tier.tier.name()).collect();
            return Err(Error::Tier { tier: tier.name(), known: known.join(", ") });
        }
        let _job = self.thaws.job.lock().await;
        let old = self.store.run(|store| store.setting(JOB)).await?.and_then(|row| read_job(&row));
        // What was asked for before goes on.
        let images = match old {
            Some(old) if old.images.is_empty() || request.images.is_empty() => Vec::new(),
            Some(old) => old.images.into_iter().chain(request.images).collect::<std::collections::BTreeSet<_>>().into_iter().collect(),
            None => request.images,
        };
        let job = Job { tier: tier.name().to_owned(), days: request.days.clamp(1, DAYS_MAX), images };
        let row = serde_json::to_vec(&job).expect("texts and numbers are JSON");
        self.set(vec![(JOB.to_owned(), Some(row))]).await?;
        *self.thaws.progress.lock().expect("never held across a panic") =
            Some(ThawProgress { tier: job.tier, packs: told.packs, bytes: told.bytes, ..ThawProgress::default() });
        self.thaws.changed.notify_one();
        Ok(told)
    }

    /// Does the job there is, now and whenever there is another.
    pub(super) async fn thaw_jobs(self: Arc<Self>, stop: CancellationToken) {
        let mut pause = Duration::ZERO;
        loop {
            let job = self.store.run(|store| store.setting(JOB)).await;
            if let Ok(Some(row)) = job {
                tokio::select! {
                    () = stop.cancelled() => return,
                    () = self.thaws.changed.notified() => continue,
                    done = self.thaw_job(&row, pause) => match done {
                        Ok(()) => {
                            pause = Duration::ZERO;
                            continue;
                        }
                        Err(error) => {
                            tracing::warn!(%error, "thawing does not go on; trying again in a moment");
                            pause = self.settings.thaw_poll.min(PAUSE_MAX);
                            continue;
                        }
                    },
                }
            }
            tokio::select! {
                () = stop.cancelled() => return,
                () = self.thaws.changed.notified() => {}
            }
        }
    }

    async fn thaw_job(self: &Arc<Self>, row: &[u8], pause: Duration) -> Result<(), Error> {
        tokio::time::sleep(pause).await;
        let Some((job, tier)) = read_job(row).and_then(|job| Some((job.clone(), job.tier.parse::<Tier>().ok()?))) else {
            return self.end_job(row).await;
        };
        let choices = self.standing(choices(&job.images)?).await?;
        // ORDER: before anything is planned: no choices at all would be everything.
        if choices.is_empty() && !job.images.is_empty() {
            tracing::info!(images = ?job.images, "the images that were to thaw are gone");
            return self.end_job(row).await;
        }
        let packs = self.frozen_packs(choices.clone(), Readable::Included).await?;
        let asked = self.store.run(|store| store.settings(ASKED)).await?;
        let asked: HashMap<String, u64> = asked.iter().filter_map(|(name, value)| asked_row(name, value)).collect();
        let prices = self.settings.s3.prices.clone();
        let poll_ms = u64::try_from(self.settings.thaw_poll.as_millis()).unwrap_or(u64::MAX);
        let mut plan = Plan::new(packs, &asked, poll_ms, |class| thaw::time_ms(&prices, class, tier));
        let wanted = if choices.is_empty() { None } else { Some(Arc::new(self.digests(choices).await?)) };
        tracing::info!(packs = plan.counts().packs, bytes = plan.counts().bytes, %tier, "packs are to thaw");
        let (mut error, mut shown) = (None, None::<Instant>);
        (0..plan.packs().len()).for_each(|at| self.learn_of(&plan, at));
        loop {
            let step = plan.next(writer::now_ms());
            if matches!(step, Step::Wait(_)) || shown.is_none_or(|shown| shown.elapsed() > SHOWN_EVERY) {
                self.show(&plan, tier, error.as_ref());
                shown = Some(Instant::now());
            }
            let done = match step {
                Step::Done => break,
                Step::Wait(ms) => {
                    tokio::time::sleep(Duration::from_millis(ms)).await;
                    continue;
                }
                Step::Look => self.look_at_thaws(&mut plan).await,
                Step::Ask(at) => self.ask(&mut plan, at, tier, job.days).await,
                Step::Head(at) => match self.reach(plan.pack(at)) {
                    Ok(bucket) => {
                        let seen = bucket.head_thaw(&plan.pack(at).key).await;
                        seen.map(|seen| plan.headed(at, seen, writer::now_ms()))
                    }
                    Err(error) => Err(error),
                },
                Step::Fill(at) => self.fill_thawed(&mut plan, at, wanted.as_ref()).await,
            };
            error = match done {
                Ok(()) => None,
                Err(failed) => {
                    if error.is_none() {
                        tracing::warn!(error = %failed, "a step of thawing failed; it is tried again");
                    }
                    plan.failed(step, writer::now_ms());
                    Some(failed.to_string())
                }
            };
            match step {
                Step::Ask(at) | Step::Head(at) | Step::Fill(at) => self.learn_of(&plan, at),
                Step::Look => (0..plan.packs().len()).for_each(|at| self.learn_of(&plan, at)),
                Step::Wait(_) | Step::Done => {}
            }
        }
        let counts = plan.counts();
        tracing::info!(packs = counts.read, lost = counts.lost, "what was to thaw has been read");
        self.end_job(row).await
    }

    /// Forgets a job, unless it has become another.
    async fn end_job(&self, row: &[u8]) -> Result<(), Error> {
        let _job = self.thaws.job.lock().await;
        let (job, rows) = self.store.run(|store| Ok::<_, Error>((store.setting(JOB)?, store.settings(ASKED)?))).await?;
        if job.as_deref() != Some(row) {
            return Ok(());
        }
        let settings = rows.into_iter().map(|(name, _)| (name, None)).chain([(JOB.to_owned(), None)]).collect();
        self.set(settings).await?;
        *self.thaws.progress.lock().expect("never held across a panic") = None;
        Ok(())
    }

    async fn look_at_thaws(self: &Arc<Self>, plan: &mut Plan) -> Result<(), Error> {
        let mut listing = HashMap::new();
        let wanted: HashSet<(&str, &str)> = plan.packs().map(|pack| (pack.bucket.as_str(), pack.key.as_str())).collect();
        let buckets: HashSet<&str> = plan.packs().map(|pack| pack.bucket.as_str()).collect();
        for id in buckets {
            let Some(bucket) = self.reachable(id) else { continue };
            let prefix = keys::packs(bucket.prefix());
            let of_bucket = || wanted.iter().filter(|(bucket, _)| *bucket == id).map(|(_, key)| *key);
            let (Some(first), Some(last)) = (of_bucket().min(), of_bucket().max()) else { continue };
            // A key without its end sorts right before it.
            let mut after = first.rsplit_once('.').map(|(start, _)| start.to_owned());
            let mut listed = 0;
            loop {
                let page = bucket.list_thaws(&prefix, after.as_deref()).await?;
                listed += page.objects.len();
                after = page.objects.last().map(|listed| listed.key.clone());
                listing
                    .extend(page.objects.into_iter().filter(|one| wanted.contains(&(id, one.key.as_str()))).map(|one| (one.key, one.seen)));
                if !page.more || after.as_deref().is_none_or(|after| after >= last) || listed >= tail::LISTED_MAX {
                    break;
                }
            }
        }
        plan.looked(&listing, writer::now_ms());
        Ok(())
    }

    async fn ask(self: &Arc<Self>, plan: &mut Plan, at: usize, tier: Tier, days: u32) -> Result<(), Error> {
        let Pack { bucket: id, key, class, size, .. } = plan.pack(at).clone();
        let bucket = self.reach(plan.pack(at))?;
        let tier = thaw::tier_of(&self.settings.s3.prices.of(&class), tier);
        if bucket.thaw(&key, days, tier).await? {
            self.ledger.thawing(size, &keys::class_of(&key), tier);
        }
        let now = writer::now_ms();
        plan.asked(at, now);
        // What costs money is counted with what it was for.
        let row = (format!("{ASKED}{id}\n{key}"), Some(now.to_string().into()));
        self.set(vec![row, (ledger::SETTING.to_owned(), Some(self.ledger.to_bytes()))]).await
    }

    async fn fill_thawed(self: &Arc<Self>, plan: &mut Plan, at: usize, wanted: Option<&Arc<HashSet<Digest>>>) -> Result<(), Error> {
        let pack = plan.pack(at).clone();
        self.thaws.learn(&pack.bucket, &pack.key, Known::Readable);
        match self.fill_pack(pack.id, wanted).await {
            Ok(refill::Filled::All) => plan.filled(at),
            Ok(refill::Filled::NoRoom) => {
                tracing::info!("no room for more blobs; what has thawed and is not here comes on demand, while the bucket keeps it");
                plan.give_up();
            }
            Err(Error::Frozen { .. }) => plan.refrozen(at),
            Err(error) => return Err(error),
        }
        Ok(())
    }

    fn reach(&self, pack: &Pack) -> Result<Arc<dyn Bucket>, Error> {
        self.reachable(&pack.bucket).ok_or(Error::Off)
    }

    /// Tells those who pull what is known of a pack.
    fn learn_of(&self, plan: &Plan, at: usize) {
        let Pack { bucket, key, .. } = plan.pack(at);
        if plan.is_readable(at) {
            self.thaws.learn(bucket, key, Known::Readable);
        } else if let Some(ready_ms) = plan.ready_ms(at) {
            self.thaws.learn(bucket, key, Known::Thawing(ready_ms));
        }
    }

    /// Tells how a plan stands.
    fn show(&self, plan: &Plan, tier: Tier, last_error: Option<&String>) {
        let counts = plan.counts();
        let now = writer::now_ms();
        let last = (0..plan.packs().len()).filter(|at| !plan.is_readable(*at)).filter_map(|at| plan.ready_ms(at)).max();
        *self.thaws.progress.lock().expect("never held across a panic") = Some(ThawProgress {
            tier: tier.name().to_owned(),
            packs: counts.packs,
            bytes: counts.bytes,
            asked: counts.asked,
            read: counts.read,
            lost: counts.lost,
            ready_in_s: last.map(|last| last.saturating_sub(now) / 1000),
            last_error: last_error.cloned(),
        });
    }

    async fn set(&self, settings: Vec<(String, Option<Vec<u8>>)>) -> Result<(), Error> {
        self.store.run(move |store| store.commit(Commit { records: Vec::new(), settings })).await?;
        Ok(())
    }
}

impl TierTold {
    fn new(of: &Estimate) -> Self {
        let Estimate { tier, time_ms, thaw, copies, reading } = *of;
        Self { tier: tier.name(), seconds: time_ms / 1000, thaw, copies, reading }
    }
}

fn read_job(row: &[u8]) -> Option<Job> {
    serde_json::from_slice(row).ok()
}

fn asked_row(name: &str, value: &[u8]) -> Option<(String, u64)> {
    let (_, key) = name.strip_prefix(ASKED)?.split_once('\n')?;
    Some((key.to_owned(), std::str::from_utf8(value).ok()?.parse().ok()?))
}

fn choices(images: &[String]) -> Result<Vec<Choice>, Error> {
    images.iter().map(|image| image.parse().map_err(|why| Error::Image { image: image.clone(), why })).collect()
}

fn sum(packs: &[Pack], of: impl Fn(&Pack) -> u64) -> u64 {
    packs.iter().fold(0, |sum: u64, pack| sum.saturating_add(of(pack)))
}

/// Where the prices of these packs' classes are from, each once.
fn source(packs: &[Pack], prices: &Prices) -> String {
    let mut sources: Vec<String> = packs.iter().map(|pack| prices.of(&pack.class).source.into_owned()).collect();
    sources.sort();
    sources.dedup();
    sources.join("; ")
}
