//! The cellar: the bucket, and what of this node's content stands in it.
//!
//! ```text
//! journal --queue--> plan --> sealed pack --put once--> bucket
//!    ^                                                    |
//!    +------------- Archived record, cursors <------------+        bucket --restore--> records
//!                                                                  bucket --fill-----> a staged blob
//! store --fold--> checkpoint --put once--> bucket                  bucket --refill---> all blobs
//! ```
//!
//! - **Packs** are sealed when the oldest record has waited `archive.max_delay`, when `archive.pack_size` waits, or when somebody
//!   asks. Each is one object and one request (format: [`larder_protocol::pack`]), encrypted where there are
//!   recipients (`encrypted`). Nothing queued, no request: the bucket is
//!   never polled.
//! - **Which records**: those of this node's origin, and of members without a bucket (`queue`). **Which blobs**: those that the
//!   manifests among them need, once for each bucket. What is not on this disk is brought here first; what nobody has is
//!   listed as missing, and looked for again with the next pack.
//! - **Compaction**: what nothing needs any more goes, and what is left of packs goes into others (`compact`).
//! - **Looking**: once a day one archiver lists the bucket and compares (`verify`).
//! - **Thawing**: packs of a frozen class are asked for when somebody says so, and read as they thaw (`thaw`, `thawing`).
//! - **Reading**: a blob is one ranged GET at the place that an `Archived` record names, from the configured bucket or from the one that
//!   this node was restored from.
//!
//! Invariants: a name in the bucket is used for one content only; a cursor moves in the commit that records the pack; nothing is deleted but by `compact`, and there
//! what is proven to be needed by nobody.
//! Pushes never wait for the bucket, unless `push.ack` says so (`hurry`): when it fails, the queue grows in the journal, and only its counts are in memory.
//! This room knows nothing of clients and peers: what it lacks it asks of the `Ensure` it was given.
//!
//! What a crash leaves: see `writer` and `restore`.
//!
//! Tasks: `archive`, `compaction`, `refill` that brings the blobs of a restored node, and `thaw`. Locks: `turn` (async) makes packs one after the other and keeps
//! restores apart from them; `hurry` (async) lets one push at a time ask for a pack; `compacting` (async) lets one compaction run at a time; `counting`, `source`
//! and `last_error` are held for moments, on blocking threads or without
//! waiting.

use std::collections::BTreeMap;
use std::fmt;
use std::path::PathBuf;
use std::sync::atomic::AtomicU64;
use std::sync::{Arc, Mutex, OnceLock};
use std::time::Duration;

use futures_util::future::BoxFuture;
use jiff::Timestamp;
use larder_protocol::digest::Digest;
use larder_protocol::name::RepositoryName;
use larder_protocol::record::{Archived, Link, PackId};
use larder_protocol::stamp::NodeId;
use larder_protocol::vector::VersionVector;
use serde::{Deserialize, Serialize};

use crate::age::{self, Identity};
use crate::config::{ArchiveUrl, Config, StorageClass};
use crate::store::{Staging, Store};
use crate::tasks::Tasks;
use crate::telemetry::Metrics;

use self::bucket::{Bucket, S3Settings};
use self::ledger::Ledger;
use self::plan::Limits;

mod body;
mod bucket;
mod checkpoint;
mod clock;
mod cluster;
mod compact;
mod cost;
mod directory;
mod drill;
mod encrypted;
mod ends;
mod error;
mod export;
mod fill;
mod front;
#[cfg(test)]
mod fuzz;
mod hashed;
mod held;
mod hurry;
mod import;
mod keys;
mod ledger;
mod packfile;
mod peer;
mod plan;
mod queue;
mod refill;
mod restore;
mod s3;
mod signed;
mod tail;
#[cfg(test)]
mod tests;
mod thaw;
mod thawing;
mod trust;
mod unpack;
mod verify;
mod vouch;
mod waking;
mod walked;
mod writer;

pub use compact::{Compaction, Going, Money, Outcome, Rewrite, Spent, Staying, Waiting};
pub use cost::{Cost, Dollars, Planned};
pub use drill::{Drilled, IMAGES_MAX as DRILL_IMAGES_MAX};
pub use error::Error;
pub use export::{Choice, Export};
pub use hurry::Unarchived;
pub use import::{Imported, Incoming};
pub use ledger::Requests;
pub use packfile::PackFile;
pub use refill::Progress;
pub use restore::RestoreOptions;
pub use tail::Gap;
pub use thawing::{DAYS_MAX as THAW_DAYS_MAX, ThawProgress, ThawRequest, ThawTold};
pub use trust::Stranger;
pub use unpack::{Unpacked, look, unpack};
pub use verify::{Subset, Verified};

/// Packs read from the store at a time: each lists its blobs.
const PACKS_PAGE: usize = 16;
/// Packs that `packs` lists.
const PACKS_LISTED_MAX: usize = 100_000;

/// Signs a pack's footer with the node's key.
pub type Sign = Arc<dyn Fn(&[u8]) -> [u8; 64] + Send + Sync>;
/// The key that this node signs by at this moment, and how. What is written to a bucket has the key for its writer: whoever reads it has nothing else to
/// check the signature by.
pub type Signer = Arc<dyn Fn() -> (NodeId, Sign) + Send + Sync>;
/// Brings a blob onto this disk, from wherever it is; given by `node`, so that a pack can hold what another node took. `false`: nobody has it.
pub type Ensure = Arc<dyn Fn(Digest, Link) -> BoxFuture<'static, bool> + Send + Sync>;

/// What every member has seen that counts; `None`: that can't be said now. Blocks for moments at most.
pub type Everyone = dyn Fn() -> Option<VersionVector> + Send + Sync;

/// The archive, as the rooms above see it. Cheap to clone.
#[derive(Clone)]
pub struct Archive {
    inner: Arc<Inner>,
}

impl fmt::Debug for Archive {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Archive({:?})", self.inner.bucket)
    }
}

/// What the private files of this room share.
struct Inner {
    settings: Settings,
    store: Store,
    signer: Signer,
    metrics: Arc<Metrics>,
    ledger: Ledger,
    bucket: Option<Arc<dyn Bucket>>,
    source: Mutex<Option<Arc<dyn Bucket>>>,
    ensure: OnceLock<Ensure>,
    gone: OnceLock<Arc<queue::Gone>>,
    turn: tokio::sync::Mutex<writer::Turn>,
    hurry: tokio::sync::Mutex<()>,
    /// What every member has seen.
    everyone: OnceLock<Arc<Everyone>>,
    /// One compaction at a time.
    compacting: tokio::sync::Mutex<()>,
    counting: Mutex<Counting>,
    last_error: Mutex<Option<String>>,
    /// There is something to fill.
    refill: tokio::sync::Notify,
    filling: Mutex<Progress>,
    /// A checkpoint that a restore is reading.
    waking: Mutex<Option<Arc<waking::Waking>>>,
    /// What is known of frozen packs.
    thaws: thawing::Thaws,
    /// Records that a restore has merged so far.
    restored_records: AtomicU64,
    /// When this was opened, milliseconds since 1970.
    began_ms: u64,
}

/// `[archive]`, as far as it is needed later.
#[derive(Clone)]
struct Settings {
    url: Option<ArchiveUrl>,
    s3: S3Settings,
    max_delay: Duration,
    pack_size: u64,
    checkpoint: checkpoint::Due,
    /// What packs are put as.
    class: StorageClass,
    /// What layers are put as, in packs of their own.
    bulk: Option<StorageClass>,
    /// How often it is looked whether packs have thawed.
    thaw_poll: Duration,
    /// How often the bucket is compared with what the records tell of it; zero: when somebody asks.
    verify_period: Duration,
    compact: compact::Dial,
    /// How often it is looked whose records are to be taken over, when nothing is written.
    recounted_every: Duration,
    /// Where files may be that nobody needs later.
    scratch: PathBuf,
}

/// What is counted of the queue.
#[derive(Default)]
struct Counting {
    queue: queue::Queue,
    in_bucket: queue::InBucket,
}

/// `larder archive status`
#[derive(Clone, Debug, Serialize)]
pub struct Status {
    /// As configured; `none` when switched off.
    pub url: String,
    /// The bucket's id in `Archived` records.
    pub bucket: Option<String>,
    /// Records waiting.
    pub pending_records: u64,
    /// Bytes waiting.
    pub pending_bytes: u64,
    /// How long the oldest has waited.
    pub oldest_pending_s: Option<u64>,
    /// Packs known in this bucket.
    pub packs: u64,
    /// Their bytes.
    pub pack_bytes: u64,
    /// Blobs that a manifest names and that could not be archived: nobody has them, they are damaged here, or too large for one object.
    pub missing: Vec<Digest>,
    /// Why the last attempt failed.
    pub last_error: Option<String>,
    /// How far the blobs of a restore have come, and packs that thaw.
    pub restore: Progress,
    /// What the last look at the bucket has found.
    pub verified: Option<Verified>,
}

/// A pack, as it is listed.
#[derive(Clone, Debug, Serialize)]
pub struct PackInfo {
    /// Its id.
    pub id: String,
    /// The object's key.
    pub key: String,
    /// The bucket's id.
    pub bucket: String,
    /// Its storage class, as it was put.
    pub class: String,
    /// Bytes.
    pub size: u64,
    /// Records in it.
    pub records: u64,
    /// Blobs in it, manifests included.
    pub blobs: usize,
    /// RFC 3339.
    pub created: String,
}

/// What came of a restore.
#[derive(Clone, Debug, Serialize)]
pub struct Restored {
    /// The cluster's id, in hex.
    pub cluster: String,
    /// Packs read.
    pub packs: usize,
    /// Records applied.
    pub records: usize,
    /// Repositories there now.
    pub repositories: u64,
    /// Tags there now.
    pub tags: u64,
    /// Packs and checkpoints that could not be used, and why.
    pub skipped: Vec<Skipped>,
    /// The checkpoint that it began with.
    pub checkpoint: Option<String>,
    /// The newest that was found is of then: RFC 3339. What was pushed later is not in the bucket.
    pub as_of: String,
    /// Numbers whose records are lost.
    pub gaps: Vec<Gap>,
    /// Whom the bucket's mark names: the first of the chain of those who were believed.
    pub founder: Option<String>,
    /// Requests that it took.
    pub requests: u64,
    /// Until pulls were served.
    pub seconds: f64,
}

/// A pack that could not be used.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Skipped {
    /// The object's key.
    pub key: String,
    /// Why.
    pub why: String,
}

impl Archive {
    /// Opens the configured bucket, without a request; starts nothing.
    ///
    /// # Errors
    /// `Io` when the folder of a `file://` bucket can't be made or read; `Endpoint` when packs would travel unprotected; `Store`.
    pub async fn open(config: &Config, store: Store, signer: Signer, metrics: Arc<Metrics>) -> Result<Self, Error> {
        let it = &config.archive;
        let keyring = Arc::new(keyring(it)?);
        if !keyring.reads_own() && it.identity_file.is_some() {
            tracing::warn!(
                "no identity in archive.identity_file belongs to archive.recipients: this node can't read back what it archives"
            );
        }
        let s3 = S3Settings {
            keyring,
            read_url: signed::read_url(it)?,
            endpoint: it.endpoint.clone(),
            region: it.region.clone(),
            path_style: it.path_style,
            multipart_above: it.multipart_above,
            sse: it.sse,
            sse_kms_key: it.sse_kms_key.clone(),
            prices: config.prices.clone(),
        };
        let read = |store: &Store| {
            let is_filling = store.setting(refill::FILLING)?.is_some();
            Ok::<_, Error>((store.setting(ledger::SETTING)?, store.setting(restore::SOURCE)?, is_filling))
        };
        let (saved, source, is_filling) = store.run(read).await?;
        let ledger = Ledger::new(saved.as_deref(), metrics.clone());
        let bucket = match &it.url {
            Some(url) => Some(bucket::open(url, &s3, &ledger).await?),
            None => None,
        };
        let source = match source.and_then(|bytes| bucket::parse_url(std::str::from_utf8(&bytes).ok()?).ok()) {
            // The folder it was restored from may be gone by now; only the blobs that are still there alone are lost with it.
            Some(url) => match bucket::open(&url, &s3, &ledger).await {
                Ok(source) => Some(source),
                Err(error) => {
                    tracing::warn!(%error, "the bucket that this node was restored from can't be opened; blobs that are only there can't be pulled");
                    None
                }
            },
            None => None,
        };
        let settings = Settings {
            url: it.url.clone(),
            s3,
            max_delay: it.max_delay,
            pack_size: it.pack_size,
            checkpoint: checkpoint::Due { packs: it.checkpoint_packs, age: it.checkpoint_age },
            class: it.storage_class.clone(),
            bulk: it.bulk_class.clone().filter(|class| *class != it.storage_class),
            thaw_poll: it.thaw_poll,
            verify_period: it.verify_period,
            compact: compact::Dial {
                by_itself: it.compact,
                wait: it.compact_wait,
                payback_max: it.compact_payback as f64,
                bytes_max: it.compact_bytes,
            },
            recounted_every: (config.peers.takeover / 4).clamp(Duration::from_millis(500), Duration::from_secs(60)),
            scratch: config.data_dir.join("uploads"),
        };
        let inner = Inner::new(settings, store, signer, metrics, ledger, bucket, source);
        inner.remember_thaws().await?;
        if is_filling {
            // ORDER: before anybody who keeps copies has a look.
            inner.filling.lock().expect("never held across a panic").state = "running".to_owned();
        }
        Ok(Self { inner: Arc::new(inner) })
    }

    /// Whether a pack can give back what lies in it: this node reads its bucket, it is not encrypted to others, and it need not thaw first, unless `with_frozen`
    /// ones will do. Of one that is encrypted and was not met before, this is found out meanwhile; until then it can't.
    pub fn gives_back(&self, archived: &Archived, with_frozen: bool) -> bool {
        let key = &archived.object_key;
        (with_frozen || !keys::class_of(key).is_frozen()) && self.inner.reachable(&archived.bucket).is_some_and(|bucket| bucket.reads(key))
    }

    /// What it takes to thaw what is not on this disk; begins it, when a tier is named.
    ///
    /// # Errors
    /// `Image` when there is no such image; `Tier`; the store's refusal.
    pub async fn thaw(&self, request: ThawRequest) -> Result<ThawTold, Error> {
        let inner = self.inner.clone();
        tokio::spawn(async move { inner.thaw(request).await }).await.expect("planning a thaw does not panic")
    }

    /// Says who is gone: what such a node wrote and did not archive, others archive. Without it, nobody ever is.
    pub fn take_over_from(&self, gone: Arc<queue::Gone>) {
        let _ = self.inner.gone.set(gone);
    }

    /// Says what every member has seen; `None`: nobody knows. A pack is deleted when all know that they must not rely on it. Without it, there is nobody else.
    pub fn heard_by(&self, everyone: Arc<Everyone>) {
        let _ = self.inner.everyone.set(everyone);
    }

    /// Starts the loop that seals packs by age and size.
    pub fn start(&self, ensure: Ensure, tasks: &Tasks) {
        let _ = self.inner.ensure.set(ensure);
        tasks.core("archive", self.inner.clone().run(tasks.stopping()));
        tasks.core("compaction", self.inner.clone().compaction(tasks.stopping()));
        tasks.core("refill", self.inner.clone().refill(tasks.stopping()));
        tasks.core("thaw", self.inner.clone().thaw_jobs(tasks.stopping()));
    }

    /// The bucket's id for this node's `Member` record; `None` when switched off.
    pub fn bucket(&self) -> Option<String> {
        self.inner.bucket.as_ref().map(|bucket| bucket.id().to_owned())
    }

    /// Up to where the origins that this node archives are in the bucket: what was deleted must be told there before it is forgotten. Nothing when
    /// this node has no bucket. Blocks.
    ///
    /// # Errors
    /// The store can't be read.
    pub fn archived_upto(&self) -> Result<Vec<(larder_protocol::vector::Origin, u64)>, crate::store::Error> {
        let (inner, store) = (&self.inner, &self.inner.store);
        let Some(bucket) = &inner.bucket else { return Ok(Vec::new()) };
        let origins = queue::origins(store, &*inner.gone())?.into_iter();
        origins.map(|(origin, _)| Ok((origin, queue::cursor(store, bucket.id(), &origin)?))).collect()
    }

    /// Fills a staged blob from a pack, from where it stands, by one ranged GET. `false`: no readable pack has it.
    ///
    /// # Errors
    /// Every pack that has it failed, or the store refused. The staging can go on from another source.
    pub async fn fill(&self, staging: &mut Staging) -> Result<bool, Error> {
        self.inner.fill(staging).await
    }

    /// Whether packs have a blob, and each must thaw first: then the time that is left, where it was asked for. `None`: one can be read, or none has it.
    /// May take one HEAD, to see whether what is said to be frozen is.
    ///
    /// # Errors
    /// The store's or the bucket's refusal: it is not known.
    pub async fn thaws_first(&self, digest: Digest, size: u64) -> Result<Option<Option<Duration>>, Error> {
        self.inner.thaws_first(digest, size).await
    }

    /// Seals what is queued now; the packs that came of it (none when nothing was queued). Goes on when the caller no longer waits.
    ///
    /// # Errors
    /// `Off`; the bucket's or the store's refusal: what was not written stays queued.
    pub async fn flush(&self) -> Result<Vec<PackInfo>, Error> {
        let inner = self.inner.clone();
        tokio::spawn(async move { inner.flush().await }).await.expect("a flush does not panic")
    }

    /// How it stands.
    pub async fn status(&self) -> Result<Status, Error> {
        let inner = &self.inner;
        let (waiting, totals) = match &inner.bucket {
            Some(bucket) => (inner.count(bucket).await?, inner.totals(bucket.id()).await?),
            None => Default::default(),
        };
        let missing = inner.store.run(|store| store.settings(writer::MISSING)).await?;
        let (now, restore) = (writer::now_ms(), inner.progress().await?);
        let verified = match &inner.bucket {
            Some(bucket) => inner.looked(bucket.id()).await?,
            None => None,
        };
        Ok(Status {
            url: inner.settings.url.as_ref().map_or_else(|| "none".to_owned(), bucket::display_url),
            bucket: self.bucket(),
            pending_records: waiting.records,
            pending_bytes: waiting.bytes,
            oldest_pending_s: waiting.oldest_ms.map(|oldest| now.saturating_sub(oldest) / 1000),
            packs: totals.packs,
            pack_bytes: totals.bytes,
            missing: missing.iter().filter_map(|(name, value)| writer::missing_row(name, value)).map(|(digest, _)| digest).collect(),
            last_error: inner.last_error.lock().expect("never held across a panic").clone(),
            restore,
            verified,
        })
    }

    /// The packs this node knows of, in any bucket.
    pub async fn packs(&self) -> Result<Vec<PackInfo>, Error> {
        let mut packs = Vec::new();
        self.inner.each_pack(|id, archived| packs.push(PackInfo::new(id, archived))).await?;
        Ok(packs)
    }

    /// Reads a bucket's metadata into this (empty) store; from then on its blobs are fetched on demand, and the rest meanwhile.
    ///
    /// # Errors
    /// `Url`, `NotEmpty`, `NoPacks`, `Clusters`, `Gaps`; the bucket's or the store's refusal. It can be begun again with the same address.
    pub async fn restore(&self, url: &str, options: RestoreOptions) -> Result<Restored, Error> {
        let (inner, url) = (self.inner.clone(), url.to_owned());
        tokio::spawn(async move { inner.restore(&url, &options).await }).await.expect("a restore does not panic")
    }

    /// Returns when what the bucket knows of a repository is here; at once, unless a restore is reading it.
    pub async fn awaken(&self, repository: &RepositoryName) {
        self.inner.awaken(repository).await;
    }

    /// Whether the blobs of a restore are coming: then nobody else needs to have them. Does not block.
    pub fn is_filling(&self) -> bool {
        self.inner.filling.lock().expect("never held across a panic").state == "running"
    }

    /// How far the blobs of a restore have come.
    ///
    /// # Errors
    /// The store can't be read.
    pub async fn restoring(&self) -> Result<Progress, Error> {
        self.inner.progress().await
    }

    /// Restores some images, chosen at random, to a temporary place, from this node's bucket or another.
    ///
    /// # Errors
    /// `Off`, and those of a restore.
    pub async fn drill(&self, url: Option<String>, images: usize, identities: Vec<Arc<Identity>>) -> Result<Drilled, Error> {
        let inner = self.inner.clone();
        tokio::spawn(async move { inner.drill(url, images, identities).await }).await.expect("a drill does not panic")
    }

    /// Writes a checkpoint whether it is due or not; its key.
    ///
    /// # Errors
    /// `Off`; the bucket's or the store's refusal.
    pub async fn checkpoint(&self) -> Result<String, Error> {
        let inner = self.inner.clone();
        tokio::spawn(async move { inner.checkpoint_now().await }).await.expect("a checkpoint does not panic")
    }

    /// Compares the bucket with what the records tell of it; reads a part of the packs and checks every blob in them, when one is given. With `mend`, what
    /// packs have lost goes into others.
    ///
    /// # Errors
    /// `Off`; the bucket's or the store's refusal.
    pub async fn verify(&self, subset: Option<Subset>, mend: bool) -> Result<Verified, Error> {
        let inner = self.inner.clone();
        tokio::spawn(async move { inner.verify(subset, mend).await }).await.expect("verifying does not panic")
    }

    /// Forgets what the configured bucket held, so that all of it is archived there anew; how many packs that were.
    ///
    /// # Errors
    /// `Off`; the store's refusal.
    pub async fn start_over(&self) -> Result<u64, Error> {
        let inner = self.inner.clone();
        let bucket = inner.bucket.clone().ok_or(Error::Off)?;
        tokio::spawn(async move { inner.start_over(&bucket).await }).await.expect("starting over does not panic")
    }
}

/// Packs of one bucket.
#[derive(Clone, Debug, Default)]
struct Totals {
    packs: u64,
    bytes: u64,
    by_class: BTreeMap<StorageClass, u64>,
}

impl Inner {
    fn new(
        settings: Settings,
        store: Store,
        signer: Signer,
        metrics: Arc<Metrics>,
        ledger: Ledger,
        bucket: Option<Arc<dyn Bucket>>,
        source: Option<Arc<dyn Bucket>>,
    ) -> Self {
        Self {
            settings,
            store,
            signer,
            metrics,
            ledger,
            bucket,
            source: Mutex::new(source),
            ensure: OnceLock::new(),
            gone: OnceLock::new(),
            turn: Default::default(),
            hurry: Default::default(),
            everyone: OnceLock::new(),
            compacting: Default::default(),
            counting: Default::default(),
            last_error: Default::default(),
            refill: Default::default(),
            filling: Default::default(),
            waking: Default::default(),
            thaws: Default::default(),
            restored_records: AtomicU64::new(0),
            began_ms: writer::now_ms(),
        }
    }

    fn gone(&self) -> Arc<queue::Gone> {
        self.gone.get().cloned().unwrap_or_else(|| Arc::new(|_| false))
    }

    /// The bucket with this id, if this node reaches it.
    fn reachable(&self, id: &str) -> Option<Arc<dyn Bucket>> {
        let source = self.source.lock().expect("never held across a panic").clone();
        self.bucket.iter().chain(&source).find(|bucket| bucket.id() == id).cloned()
    }

    async fn totals(&self, bucket: &str) -> Result<Totals, Error> {
        let mut totals = Totals::default();
        self.each_pack(|_, archived| {
            if archived.bucket == bucket {
                totals.packs += 1;
                totals.bytes += archived.size;
                *totals.by_class.entry(keys::class_of(&archived.object_key)).or_default() += archived.size;
            }
        })
        .await?;
        Ok(totals)
    }

    async fn each_pack(&self, mut take: impl FnMut(&PackId, &Archived)) -> Result<(), Error> {
        let (mut after, mut taken) = (None::<PackId>, 0);
        while taken < PACKS_LISTED_MAX {
            let page = self.store.run(move |store| store.packs(after.as_ref(), PACKS_PAGE)).await?;
            let Some((last, _)) = page.last() else { break };
            after = Some(*last);
            taken += page.len();
            page.iter().for_each(|(id, archived)| take(id, archived));
        }
        Ok(())
    }
}

impl PackInfo {
    fn new(id: &PackId, archived: &Archived) -> Self {
        Self {
            id: id.to_string(),
            key: archived.object_key.clone(),
            bucket: archived.bucket.clone(),
            class: keys::class_of(&archived.object_key).name().to_owned(),
            size: archived.size,
            records: archived.records,
            blobs: archived.contents.len(),
            created: moment(archived.created_ms),
        }
    }
}

/// To whom packs are encrypted, and as whom they are read. Blocks for a moment.
fn keyring(config: &crate::config::Archive) -> Result<encrypted::Keyring, Error> {
    let identities = match &config.identity_file {
        Some(path) => {
            let text = age::read_identities(path).map_err(Error::Identity)?;
            age::parse_identities(&path.display().to_string(), &text).map_err(Error::Identity)?
        }
        None => Vec::new(),
    };
    Ok(encrypted::Keyring::new(config.recipients.clone(), identities))
}

/// RFC 3339; nothing for what no calendar has.
fn moment(ms: u64) -> String {
    let moment = i64::try_from(ms).ok().and_then(|ms| Timestamp::from_millisecond(ms).ok());
    moment.map(|moment| moment.to_string()).unwrap_or_default()
}
