//! What this node holds, and the order in which it came to hold it.
//!
//! The floor that every other room stands on, and the only door to the disk.
//!
//! - **In, by one way** (`staged`): bytes go to a staged file and through the running hashes (`hashing`); then the file is synced,
//!   renamed into place, and one synced batch makes it visible. Pushes come through [`Upload`], everything else through [`Staging`].
//! - **One commit** (`journal`): index rows, records and the journal go in one RocksDB batch. Callers return when it is on the disk;
//!   one sync answers all that wait.
//! - **Out, by pulling**: [`Store::tail`] and [`Store::exchange`] read the journal from a cursor of the reader's; [`Store::changes`] says only
//!   that there is more.
//!
//! Invariants: the index never points at bytes that are not there; a blob is readable in a repository through a live link
//! only; a number of this node's origin is used once. The store knows nothing of peers, buckets or HTTP.
//!
//! CRASH: see `staged` and `uploads`; a start settles a short list of intents and removes staged files without a session. It never
//! walks the blobs.
//!
//! Locks: the journal's writer (held while a batch is read, built and handed over, not while it is synced), the sessions, the
//! sync's state. No task runs here; every method but [`Store::run`] and those of [`Staging`] may block on the disk.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use larder_protocol::digest::Digest;
use larder_protocol::record::{Archived, Key, Member, Numbered, PackId, Record, Roles, Value};
use larder_protocol::stamp::NodeId;
use larder_protocol::vector::{Origin, VersionVector};
use tokio::sync::watch;

use crate::config::Durability;
use crate::glob::Pattern;

mod access;
mod acknowledged;
mod blobs;
mod compare;
mod condition;
mod conflicts;
mod edges;
mod error;
mod folded;
mod forks;
mod garbage;
mod graves;
mod hashing;
mod horizon;
mod incarnation;
mod index;
mod journal;
mod known;
mod layout;
mod listed;
mod located;
mod manifests;
mod merge;
mod mixed;
mod needs;
mod partial;
mod pulls;
mod quarantine;
mod quota;
mod reading;
mod referrers;
mod removal;
mod space;
mod staged;
mod staging;
mod sums;
mod syncer;
mod tags;
#[cfg(test)]
mod tests;
mod uploads;
mod verify;

pub use acknowledged::Acknowledged;
pub use compare::Mark;
pub use condition::{Condition, Meant};
pub use conflicts::Conflict;
pub use error::{Error, InvalidManifest, Result};
pub use forks::Fork;
pub use garbage::{Checked, IdleLink, IdleManifest};
pub use horizon::Told;
pub use index::IndexMemory;
pub use layout::DataFolder;
pub use located::LocatedBlob;
pub use manifests::{ManifestPush, ManifestView, Stored, StoredManifest};
pub use needs::Needs;
pub use partial::{Ended, Partial};
pub use pulls::Cold;
pub use quarantine::Quarantined;
pub use reading::{BlobFile, Content};
pub use referrers::{Referrer, ReferrersPage, ReferrersQuery};
pub use removal::{Lost, Trashed};
pub use space::{Disk, SpaceLimits};
pub use staging::{StagedReader, Staging};
pub use tags::{TagInfo, TagVersion};
pub use uploads::Upload;
pub use verify::Verdict;

use index::{Batch, Index, RecordRow, Table, decode};
use journal::Journal;
use known::Known;
use partial::Partials;
use pulls::Pulls;
use removal::Digests;
use space::Space;
use uploads::Sessions;

/// The id of a cluster: random, given by its first node.
pub type ClusterId = [u8; 16];

/// Largest blob that lives in the index.
pub(crate) const SMALL_MAX: u64 = 64 << 10;
/// Records that an exchange reads at a time.
const EXCHANGE_BATCH: usize = 256;
const META_CLUSTER: &[u8] = b"cluster";

/// How a store is opened.
#[derive(Clone, Debug)]
pub struct Options {
    /// This node's id.
    pub node: NodeId,
    /// When a commit counts as done.
    pub durability: Durability,
    /// Stamps further ahead are refused.
    pub max_clock_drift: Duration,
    /// Most upload sessions at a time.
    pub uploads_max: usize,
    /// Most upload sessions at a time that one client address began.
    pub uploads_per_client_max: usize,
    /// Manifests may name what is not there.
    pub sparse_manifests: bool,
    /// Largest blob in bytes.
    pub blob_size_max: u64,
    /// A link that a client relies on is written anew when it is older.
    pub renew_after: Duration,
    /// Tags that keep the manifest they were first given.
    pub immutable_tags: Vec<Pattern>,
    /// How much of the disk may be taken.
    pub space: SpaceLimits,
}

/// The store. Cheap to clone. Methods block on the disk unless they are `async` or say otherwise: call them through [`Store::run`].
/// Reads of one row take microseconds and may be called inline.
#[derive(Clone, Debug)]
pub struct Store {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    folder: DataFolder,
    options: Options,
    index: Index,
    journal: Journal,
    sessions: Mutex<Sessions>,
    digests: Digests,
    space: Space,
    pulls: Pulls,
    partials: Partials,
    known: Known,
    cluster: Mutex<ClusterId>,
}

/// One atomic writing: all of it or nothing, synced, in the journal.
#[derive(Clone, Debug, Default)]
pub struct Commit {
    /// Records to write under this node's origin, each key once; `None` is a tombstone.
    pub records: Vec<(Key, Option<Value>)>,
    /// Settings of other rooms (cursors, tokens): name -> bytes; `None` removes.
    pub settings: Vec<(String, Option<Vec<u8>>)>,
}

/// What came of applying records from elsewhere.
#[derive(Clone, Debug, Default)]
pub struct Applied {
    /// Keys whose record changed here.
    pub changed: Vec<Key>,
    /// Records refused: they are not what they say, or lie in the future when too many others do.
    pub refused: usize,
    /// Records put aside, because their stamp lies in the future.
    pub quarantined: usize,
    /// Records refused because their node has too many.
    pub over_quota: usize,
    /// Records whose number had another record.
    pub forked: usize,
    /// Tags that were pushed twice; told once.
    pub conflicts: Vec<Conflict>,
}

/// The records that another vector lacks, by origin and sequence.
#[derive(Debug)]
pub struct Exchange {
    store: Store,
    vector: VersionVector,
    /// Per origin: behind which sequence, and up to which.
    origins: VecDeque<(Origin, u64, u64)>,
    ready: VecDeque<Numbered>,
}

/// Numbers for `larder status`.
#[derive(Clone, Copy, Debug, Default)]
pub struct Counts {
    /// Repositories with a manifest.
    pub repositories: u64,
    /// Live tags.
    pub tags: u64,
    /// Blobs on this disk.
    pub blobs: u64,
    /// Their bytes.
    pub blob_bytes: u64,
}

impl Inner {
    fn relaxed(&self) -> bool {
        self.options.durability == Durability::Relaxed
    }
}

impl Store {
    /// Opens or creates the store in a folder; finishes or undoes what the last shutdown left.
    pub fn open(folder: DataFolder, options: Options) -> Result<Self> {
        let index = Index::open(&folder.index())?;
        let relaxed = options.durability == Durability::Relaxed;
        let journal = Journal::open(&index, options.node, options.max_clock_drift, relaxed)?;
        let cluster = match index.row(Table::Meta, META_CLUSTER)? {
            Some(cluster) => cluster,
            None => {
                let cluster = *uuid::Uuid::new_v4().as_bytes();
                let mut batch = Batch::default();
                index.put_row(&mut batch, Table::Meta, META_CLUSTER, &cluster);
                index.write(batch)?;
                cluster
            }
        };
        edges::ensure(&index)?;
        let cluster = Mutex::new(cluster);
        let space = Space::open(folder.path(), options.space.clone(), &index)?;
        let (sessions, digests, pulls) = (Mutex::default(), Digests::default(), Mutex::default());
        let (partials, known) = (Partials::default(), Known::default());
        let mut inner = Inner { folder, options, index, journal, sessions, digests, space, pulls, partials, known, cluster };
        inner.sessions = Mutex::new(uploads::load(&inner)?);
        staged::settle(&inner)?;
        staged::sweep(&inner.folder.uploads(), |id| Ok(uploads::is_session(&inner, id)))?;
        partial::load(&inner)?;
        inner.index.sync()?;
        Ok(Self { inner: Arc::new(inner) })
    }

    /// Runs `work` on a blocking thread.
    pub async fn run<T: Send + 'static>(&self, work: impl FnOnce(&Store) -> T + Send + 'static) -> T {
        let store = self.clone();
        tokio::task::spawn_blocking(move || work(&store)).await.expect("store work does not panic")
    }

    /// Looks rows up: here, when all of them are in memory, and otherwise on a blocking thread. `work` may be called twice, must not write, and must look up
    /// single rows only.
    pub async fn look_up<T: Send + 'static, E: Send + 'static>(
        &self,
        work: impl Fn(&Store) -> std::result::Result<T, E> + Send + 'static,
    ) -> std::result::Result<T, E> {
        match index::in_memory(|| work(self)) {
            Some(done) => done,
            None => self.run(work).await,
        }
    }

    /// What the index has in memory.
    pub fn index_memory(&self) -> IndexMemory {
        self.inner.index.memory()
    }

    /// How it was opened.
    pub fn options(&self) -> &Options {
        &self.inner.options
    }

    /// Syncs what was written and ends background work. Nothing may be written afterwards.
    pub fn close(&self) {
        self.inner.index.close();
    }

    /// This node's origin: its id and this life of its data folder. Does not block.
    pub fn origin(&self) -> Origin {
        self.inner.journal.origin()
    }

    /// The cluster that this node belongs to; a fresh folder founds its own. Does not block.
    pub fn cluster(&self) -> ClusterId {
        *journal::lock(&self.inner.cluster)
    }

    /// Joins or restores another cluster.
    pub fn adopt_cluster(&self, cluster: ClusterId) -> Result<()> {
        let mut batch = Batch::default();
        self.inner.index.put_row(&mut batch, Table::Meta, META_CLUSTER, &cluster);
        self.inner.index.write(batch)?;
        self.inner.index.sync()?;
        *journal::lock(&self.inner.cluster) = cluster;
        Ok(())
    }

    /// Whether it never held a manifest, a tag or a link (member records don't count).
    pub fn is_empty(&self) -> Result<bool> {
        for table in [Table::Manifest, Table::Tag, Table::Link] {
            if self.inner.index.scan(table, b"", b"").next().transpose()?.is_some() {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// A number that grows with every commit: "there is more", and nothing else. Does not block.
    pub fn changes(&self) -> watch::Receiver<u64> {
        self.inner.journal.changes()
    }

    /// Numbers for people. Scans the tags and blobs.
    pub fn counts(&self) -> Result<Counts> {
        let mut counts = Counts { repositories: self.repositories(None, usize::MAX)?.len() as u64, ..Counts::default() };
        counts.tags = listed::tag_count(&self.inner.index)?;
        for row in self.inner.index.scan(Table::Blob, b"", b"") {
            let row: index::BlobRow = decode(Table::Blob, &row?.1)?;
            counts.blobs += 1;
            counts.blob_bytes += row.size;
        }
        Ok(counts)
    }

    /// Writes records of this node and settings in one synced batch; returns the records as numbered.
    pub fn commit(&self, commit: Commit) -> Result<Vec<Numbered>> {
        self.inner.journal.local(&self.inner.index, commit)
    }

    /// Merges records from elsewhere in one batch, keeps their numbers, and then raises the vector by `advance`
    /// (but not for origins of which a record was refused, so that it is sent again).
    pub fn apply(&self, records: Vec<Numbered>, advance: &VersionVector) -> Result<Applied> {
        self.inner.space.check(0, space::IndexPart::Records)?;
        let applied = self.inner.journal.merge(&self.inner.index, records, advance)?;
        self.end_former_lives()?;
        Ok(applied)
    }

    /// What is durably known of each origin, this node's own included. Does not block.
    pub fn vector(&self) -> VersionVector {
        self.inner.journal.vector()
    }

    /// The records that `theirs` lacks, as far as they are durable here.
    pub fn exchange(&self, theirs: &VersionVector) -> Result<Exchange> {
        let vector = self.vector();
        let origins =
            vector.iter().filter(|(origin, known)| theirs.get(origin) < *known).map(|(origin, known)| (origin, theirs.get(&origin), known));
        let origins = origins.collect();
        Ok(Exchange { store: self.clone(), vector, origins, ready: VecDeque::new() })
    }

    /// Records of one origin behind `after`, at most `limit`, by sequence; none only where nothing is left.
    pub fn tail(&self, origin: &Origin, mut after: u64, limit: usize) -> Result<Vec<Numbered>> {
        loop {
            let page = self.inner.journal.page(&self.inner.index, origin, after, limit)?;
            match page.read {
                // All of it was superseded while it was read.
                Some(read) if page.records.is_empty() => after = read,
                _ => return Ok(page.records),
            }
        }
    }

    /// One record, tombstones included.
    pub fn record(&self, key: &Key) -> Result<Option<Record>> {
        journal::read(&self.inner.index, key)
    }

    /// The same, with its number.
    pub fn numbered(&self, key: &Key) -> Result<Option<Numbered>> {
        journal::read_numbered(&self.inner.index, key)
    }

    /// Every member record; `None`: expelled.
    pub fn members(&self) -> Result<Vec<(NodeId, Option<Member>)>> {
        let member = |record: Record| match (record.key, record.value) {
            (Key::Member(node), Some(Value::Member(member))) => Some((node, Some(member))),
            (Key::Member(node), _) => Some((node, None)),
            _ => None,
        };
        self.of_kind(&Key::Member(NodeId([0; 32])), member)
    }

    /// What nodes may do of which a record says so.
    pub fn roles(&self) -> Result<Vec<(NodeId, Roles)>> {
        let roles = |record: Record| match (record.key, record.value) {
            (Key::Role(node), Some(Value::Role(roles))) => Some((node, roles)),
            _ => None,
        };
        self.of_kind(&Key::Role(NodeId([0; 32])), roles)
    }

    fn of_kind<T>(&self, key: &Key, pick: impl Fn(Record) -> Option<T>) -> Result<Vec<T>> {
        let mut picked = Vec::new();
        for row in self.inner.index.scan(Table::Record, &key.kind().to_be_bytes(), b"") {
            let row: RecordRow = decode(Table::Record, &row?.1)?;
            picked.extend(pick(journal::parse(&row.record)?));
        }
        Ok(picked)
    }

    /// From now on this node may write nothing but what it says of itself (`Member`, `Keys`), or again everything.
    pub fn set_reader(&self, is_reader: bool) {
        self.inner.journal.set_reader(is_reader);
    }

    /// Whether this node may write nothing but what it says of itself. Does not block.
    pub fn is_reader(&self) -> bool {
        self.inner.journal.is_reader()
    }

    /// A setting of another room.
    pub fn setting(&self, name: &str) -> Result<Option<Vec<u8>>> {
        self.inner.index.get(Table::Meta, format!("{}{name}", journal::SETTING).as_bytes())
    }

    /// Settings whose name starts so.
    pub fn settings(&self, prefix: &str) -> Result<Vec<(String, Vec<u8>)>> {
        let prefix = format!("{}{prefix}", journal::SETTING);
        let rows = self.inner.index.scan(Table::Meta, prefix.as_bytes(), b"");
        rows.map(|row| {
            let (key, value) = row?;
            let name = String::from_utf8_lossy(&key[journal::SETTING.len()..]).into_owned();
            Ok((name, value.into_vec()))
        })
        .collect()
    }

    /// Where packs hold a blob: pack, offset, length.
    pub fn locations(&self, digest: &Digest) -> Result<Vec<(PackId, u64, u64)>> {
        let prefix = digest.to_key();
        let mut locations = Vec::new();
        for row in self.inner.index.scan(Table::Location, &prefix, b"") {
            let (key, row) = row?;
            let (offset, length) = decode(Table::Location, &row)?;
            locations.extend(PackId::from_bytes(&key[prefix.len()..]).map(|pack| (pack, offset, length)));
        }
        Ok(locations)
    }

    /// A pack's record.
    pub fn pack(&self, pack: &PackId) -> Result<Option<Archived>> {
        Ok(match self.live(&Key::Archived(*pack))? {
            Some(Value::Archived(archived)) => Some(archived),
            _ => None,
        })
    }

    /// Live packs behind `after`, by writer and sequence, at most `limit`.
    pub fn packs(&self, after: Option<&PackId>, limit: usize) -> Result<Vec<(PackId, Archived)>> {
        let from = after.map(|after| [&after.to_bytes()[..], &[0]].concat()).unwrap_or_default();
        let mut packs = Vec::new();
        for row in self.inner.index.scan(Table::Pack, b"", &from) {
            if packs.len() >= limit {
                break;
            }
            let row: RecordRow = decode(Table::Pack, &row?.1)?;
            if let Record { key: Key::Archived(pack), value: Some(Value::Archived(archived)), .. } = journal::parse(&row.record)? {
                packs.push((pack, archived));
            }
        }
        Ok(packs)
    }
}

impl Exchange {
    /// What is known when all of its records were taken.
    pub fn vector(&self) -> &VersionVector {
        &self.vector
    }
}

impl Iterator for Exchange {
    type Item = Result<Numbered>;

    fn next(&mut self) -> Option<Self::Item> {
        while self.ready.is_empty() {
            let (origin, after, until) = *self.origins.front()?;
            let inner = &self.store.inner;
            let page = match inner.journal.page(&inner.index, &origin, after, EXCHANGE_BATCH) {
                Ok(page) => page,
                Err(error) => {
                    self.origins.clear();
                    return Some(Err(error));
                }
            };
            // What was superseded in between is sent under its new number, in this exchange or the next.
            match page.read {
                Some(read) if read < until => self.origins[0].1 = read,
                _ => drop(self.origins.pop_front()),
            }
            self.ready.extend(page.records.into_iter().filter(|numbered| numbered.sequence <= until));
        }
        self.ready.pop_front().map(Ok)
    }
}
