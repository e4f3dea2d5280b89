//! The records, in the order in which this node came to know them, in the same batch as the index rows.
//!
//! Every writing goes through here: [`Journal::local`] numbers and stamps what this node writes,
//! [`Journal::merge`] takes what others wrote. Both hold one lock while they read, decide and hand the batch to RocksDB; then
//! they let go and wait for the disk together with whoever else is waiting ([`Syncer`]): one sync answers many pushes.
//!
//! What is not on the disk yet may be read on this node, but is told to nobody: [`Journal::vector`] covers a record of
//! this node only when it is durable, so that a power cut can't make it use a number twice.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use larder_protocol::record::{Key, Numbered, RawRecord, Record, Value};
use larder_protocol::stamp::{Clock, HybridTime, NodeId, Stamp};
use larder_protocol::vector::{Origin, VersionVector};
use tokio::sync::watch;

use super::error::{Error, Result};
use super::index::{Batch, Index, RecordRow, Table, decode};
use super::listed;
use super::{Applied, Commit, edges, garbage, tags};

pub(super) const META_CLOCK: &[u8] = b"clock";
const META_VECTOR: &[u8] = b"vector";
const META_INCARNATION: &[u8] = b"incarnation";
/// In front of the names of other rooms' settings.
pub(super) const SETTING: &str = "setting/";

/// Numbers, stamps and merges records.
#[derive(Debug)]
pub(super) struct Journal {
    origin: Origin,
    max_clock_drift: Duration,
    writer: Mutex<Writer>,
    syncer: Option<Syncer>,
    durable: Mutex<VersionVector>,
    /// This node may write nothing but what it says of itself.
    reader: AtomicBool,
    changes: watch::Sender<u64>,
}

/// What only one writing at a time may move on.
#[derive(Debug)]
struct Writer {
    clock: Clock,
    vector: VersionVector,
}

/// A writing under way: what it has read stands still until it is done.
pub(super) struct Writing<'a> {
    journal: &'a Journal,
    pub(super) index: &'a Index,
    writer: MutexGuard<'a, Writer>,
    pub(super) batch: Batch,
    numbered: Vec<Numbered>,
}

impl Journal {
    /// Reads where the numbering stands. `relaxed`: nobody waits for the disk.
    pub(super) fn open(index: &Index, node: NodeId, max_clock_drift: Duration, relaxed: bool) -> Result<Self> {
        let incarnation = match index.row::<u64>(Table::Meta, META_INCARNATION)? {
            Some(incarnation) => incarnation,
            None => {
                let mut batch = Batch::default();
                let incarnation = now_ms();
                index.put_row(&mut batch, Table::Meta, META_INCARNATION, &incarnation);
                index.write(batch)?;
                index.sync()?;
                incarnation
            }
        };
        let vector: VersionVector = index.row(Table::Meta, META_VECTOR)?.unwrap_or_default();
        let clock = Clock::new(index.row(Table::Meta, META_CLOCK)?.unwrap_or_default());
        Ok(Self {
            origin: Origin { node, incarnation },
            max_clock_drift,
            durable: Mutex::new(vector.clone()),
            writer: Mutex::new(Writer { clock, vector }),
            reader: AtomicBool::new(false),
            syncer: (!relaxed).then(Syncer::default),
            changes: watch::Sender::new(0),
        })
    }

    pub(super) fn origin(&self) -> Origin {
        self.origin
    }

    pub(super) fn set_reader(&self, is_reader: bool) {
        self.reader.store(is_reader, Ordering::Relaxed);
    }

    pub(super) fn is_reader(&self) -> bool {
        self.reader.load(Ordering::Relaxed)
    }

    pub(super) fn changes(&self) -> watch::Receiver<u64> {
        self.changes.subscribe()
    }

    /// What is known of each origin, as far as it is durable.
    pub(super) fn vector(&self) -> VersionVector {
        lock(&self.durable).clone()
    }

    /// Begins a writing: no other goes on until it is done.
    pub(super) fn write<'a>(&'a self, index: &'a Index) -> Writing<'a> {
        Writing { journal: self, index, writer: lock(&self.writer), batch: Batch::default(), numbered: Vec::new() }
    }

    /// Writes records of this node, and settings.
    pub(super) fn local(&self, index: &Index, commit: Commit) -> Result<Vec<Numbered>> {
        let mut writing = self.write(index);
        for (key, value) in commit.records {
            writing.record(key, value)?;
        }
        for (name, value) in commit.settings {
            writing.setting(&name, value.as_deref());
        }
        writing.commit()
    }

    /// Merges records from elsewhere; see `Store::apply`.
    pub(super) fn merge(&self, index: &Index, records: Vec<Numbered>, advance: &VersionVector) -> Result<Applied> {
        let mut writing = self.write(index);
        let (mut applied, mut refused) = (Applied::default(), Vec::new());
        let max_ms = u64::try_from(self.max_clock_drift.as_millis()).unwrap_or(u64::MAX);
        for numbered in records {
            let observed = writing.writer.clock.observe(numbered.record.stamp.time, now_ms(), max_ms);
            if let Err(why) = observed.map_err(|far| far.to_string()).and_then(|()| acceptable(&numbered.record)) {
                tracing::warn!(origin = ?numbered.origin, sequence = numbered.sequence, key = ?numbered.record.key, why, "a record was refused");
                applied.refused += 1;
                refused.push(numbered.origin);
                continue;
            }
            let key = numbered.record.key.clone();
            // A reader leaves that to the writers.
            if !self.is_reader()
                && let Some(link) = writing.needed(&numbered.record)?
            {
                // What is written now beats the tombstone, which so need not stand here at all.
                tracing::debug!(?key, "a link was collected elsewhere that a manifest needs; it is written anew");
                writing.record(key, Some(link))?;
                continue;
            }
            if writing.stand(numbered)? {
                applied.changed.push(key);
            }
        }
        for (origin, sequence) in advance.iter() {
            // What this node wrote itself is numbered by this node alone.
            if origin != self.origin && !refused.contains(&origin) {
                writing.writer.vector.advance(origin, sequence);
            }
        }
        writing.commit()?;
        Ok(applied)
    }

    /// Reads at most `limit` places of an origin behind `after`; of this node's own only what is durable.
    pub(super) fn page(&self, index: &Index, origin: &Origin, after: u64, limit: usize) -> Result<Page> {
        let until = if *origin == self.origin { self.vector().get(origin) } else { u64::MAX };
        let prefix = origin_key(origin);
        let from = journal_key(origin, after.saturating_add(1));
        let mut page = Page::default();
        for row in index.scan(Table::Journal, &prefix, &from).take(limit) {
            let (place, key) = row?;
            let sequence = sequence_of(&place)?;
            if sequence > until {
                break;
            }
            page.read = Some(sequence);
            let (kind, key): (u16, Vec<u8>) = decode(Table::Journal, &key)?;
            let standing = index.row::<RecordRow>(table_of(kind), &row_key(kind, &key))?;
            // Superseded between the two reads: it stands elsewhere in the journal now, and is read there.
            if let Some(row) = standing.filter(|row| row.origin == *origin && row.sequence == sequence) {
                page.records.push(Numbered { origin: row.origin, sequence, record: parse(&row.record)? });
            }
        }
        Ok(page)
    }
}

/// A part of an origin's journal.
#[derive(Debug, Default)]
pub(super) struct Page {
    /// Its records, by sequence.
    pub records: Vec<Numbered>,
    /// How far was read; further than the last record where later ones were superseded. `None`: nothing is left.
    pub read: Option<u64>,
}

impl Writing<'_> {
    /// The record that stands under a key.
    pub(super) fn standing(&self, key: &Key) -> Result<Option<Record>> {
        read(self.index, key)
    }

    /// The live value under a key.
    pub(super) fn live(&self, key: &Key) -> Result<Option<Value>> {
        Ok(self.standing(key)?.and_then(|record| record.value))
    }

    /// Writes a record of this node. It must be the only one of its key in this writing.
    pub(super) fn record(&mut self, key: Key, value: Option<Value>) -> Result<()> {
        if self.journal.is_reader() && key != Key::Member(self.journal.origin.node) {
            return Err(Error::Reader);
        }
        let time = self.writer.clock.tick(now_ms());
        self.record_at(key, value, time)
    }

    /// Writes a record of this node with a time of the past, which must be later than that of what stands.
    pub(super) fn record_at(&mut self, key: Key, value: Option<Value>, time: HybridTime) -> Result<()> {
        let origin = self.journal.origin;
        let sequence = self.writer.vector.get(&origin) + 1;
        self.writer.vector.advance(origin, sequence);
        let numbered = Numbered { origin, sequence, record: Record { key, value, stamp: Stamp { time, node: origin.node } } };
        let stands = self.stand(numbered.clone())?;
        assert!(stands, "a stamp of now beats what stood before, since the clock never runs back; and others are chosen to");
        self.numbered.push(numbered);
        Ok(())
    }

    /// The link that a tombstone from elsewhere would take away as garbage, when a manifest needs it: it was pushed where the garbage
    /// was collected after that was decided.
    fn needed(&self, tombstone: &Record) -> Result<Option<Value>> {
        let (Key::Link(repository, digest), None) = (&tombstone.key, &tombstone.value) else { return Ok(None) };
        let Some(standing) = self.standing(&tombstone.key)?.filter(|standing| garbage::retires(tombstone, standing)) else {
            return Ok(None);
        };
        Ok(if garbage::is_needed(self.index, repository, digest)? { standing.value } else { None })
    }

    /// Writes or removes a setting of another room.
    pub(super) fn setting(&mut self, name: &str, value: Option<&[u8]>) {
        let key = format!("{SETTING}{name}");
        match value {
            Some(value) => self.index.put(&mut self.batch, Table::Meta, key.as_bytes(), value),
            None => self.index.delete(&mut self.batch, Table::Meta, key.as_bytes()),
        }
    }

    /// Lets a record stand if it beats what stands, with all rows that follow from it; says whether it does.
    fn stand(&mut self, numbered: Numbered) -> Result<bool> {
        let (index, raw) = (self.index, numbered.record.to_raw());
        let (table, key) = (table_of(raw.kind), row_key(raw.kind, &raw.key));
        let before: Option<RecordRow> = index.row(table, &key)?;
        if let Some(before) = &before {
            if !raw.beats(&before.record) {
                return Ok(false);
            }
            index.delete(&mut self.batch, Table::Journal, &journal_key(&before.origin, before.sequence));
        }
        let before = before.map(|row| parse(&row.record)).transpose()?;
        self.follow(&numbered.record, before.as_ref());
        let place = journal_key(&numbered.origin, numbered.sequence);
        index.put_row(&mut self.batch, Table::Journal, &place, &(raw.kind, &raw.key));
        index.put_row(&mut self.batch, table, &key, &RecordRow { origin: numbered.origin, sequence: numbered.sequence, record: raw });
        Ok(true)
    }

    /// The rows that follow from a record: edges, listings, locations, history.
    fn follow(&mut self, record: &Record, before: Option<&Record>) {
        let (index, batch) = (self.index, &mut self.batch);
        for (key, _) in before.map(edges::of_record).unwrap_or_default() {
            index.delete(batch, Table::Edge, &key);
        }
        for (key, row) in edges::of_record(record) {
            index.put(batch, Table::Edge, &key, &row);
        }
        if let Some((key, _)) = before.and_then(listed::of_record) {
            index.delete(batch, Table::Listed, &key);
        }
        if let Some((key, row)) = listed::of_record(record) {
            index.put(batch, Table::Listed, &key, &row);
        }
        match (&record.key, before.and_then(|before| before.value.as_ref()), &record.value) {
            // A tag that names what it named before has no other version.
            (Key::Tag(_, _), Some(Value::Tag(old)), Some(Value::Tag(new))) if old.digest == new.digest => {}
            (Key::Tag(repository, tag), Some(Value::Tag(_)), _) => {
                let before = before.expect("its value was there");
                let newest_first = !before.stamp.time.0;
                let prefix = tags::history_prefix(repository, tag);
                let key = [&prefix[..], &newest_first.to_be_bytes(), &before.stamp.node.0].concat();
                index.put_row(batch, Table::History, &key, &before.to_raw());
            }
            (Key::Archived(pack), old, new) => {
                for (value, put) in [(old, false), (new.as_ref(), true)] {
                    let Some(Value::Archived(archived)) = value else { continue };
                    for located in &archived.contents {
                        let key = [&located.digest.to_key()[..], &pack.to_bytes()].concat();
                        if put {
                            index.put_row(batch, Table::Location, &key, &(located.offset, located.length));
                        } else {
                            index.delete(batch, Table::Location, &key);
                        }
                    }
                }
            }
            _ => {}
        }
    }

    /// Hands the batch to the index, lets other writings go on, and waits until it is on the disk.
    pub(super) fn commit(mut self) -> Result<Vec<Numbered>> {
        for name in [META_CLOCK, edges::META_EDGES] {
            self.index.put_row(&mut self.batch, Table::Meta, name, &self.writer.clock.floor());
        }
        self.index.put_row(&mut self.batch, Table::Meta, META_VECTOR, &self.writer.vector);
        let Self { journal, index, writer, batch, numbered } = self;
        let vector = writer.vector.clone();
        // CRASH: what fails here was not written at all; its numbers stay a gap, which no record fills.
        index.write(batch)?;
        let ticket = journal.syncer.as_ref().map(Syncer::written);
        drop(writer);
        if let (Some(syncer), Some(ticket)) = (&journal.syncer, ticket) {
            syncer.wait(ticket, || index.sync())?;
        }
        lock(&journal.durable).merge(&vector);
        journal.changes.send_modify(|number| *number += 1);
        Ok(numbered)
    }
}

/// Lets many writings wait for one sync: whoever comes first syncs for all that have written by then.
#[derive(Debug, Default)]
struct Syncer {
    state: Mutex<SyncState>,
    done: Condvar,
}

#[derive(Debug, Default)]
struct SyncState {
    written: u64,
    synced: u64,
    running: bool,
}

impl Syncer {
    /// Takes note of a writing; called in the order of writings.
    fn written(&self) -> u64 {
        let mut state = lock(&self.state);
        state.written += 1;
        state.written
    }

    fn wait(&self, ticket: u64, sync: impl Fn() -> Result<()>) -> Result<()> {
        let mut state = lock(&self.state);
        while state.synced < ticket {
            if state.running {
                state = self.done.wait(state).unwrap_or_else(PoisonError::into_inner);
                continue;
            }
            state.running = true;
            let covers = state.written;
            drop(state);
            let synced = sync();
            state = lock(&self.state);
            state.running = false;
            if synced.is_ok() {
                state.synced = covers;
            }
            self.done.notify_all();
            synced?;
        }
        Ok(())
    }
}

/// The record that stands under a key.
pub(super) fn read(index: &Index, key: &Key) -> Result<Option<Record>> {
    let (kind, bytes) = (key.kind(), key.to_bytes());
    index.row::<RecordRow>(table_of(kind), &row_key(kind, &bytes))?.map(|row| parse(&row.record)).transpose()
}

/// Understands a record of ours.
pub(super) fn parse(raw: &RawRecord) -> Result<Record> {
    raw.parse().map_err(|error| Error::Damaged { what: "a record in the index".to_owned(), detail: error.to_string() })
}

/// The table in which records of a kind stand.
pub(super) fn table_of(kind: u16) -> Table {
    match kind {
        2 => Table::Manifest,
        3 => Table::Tag,
        4 => Table::Link,
        5 => Table::Pack,
        _ => Table::Record,
    }
}

/// The record's key in its table; kinds that share a table have their number in front.
pub(super) fn row_key(kind: u16, key: &[u8]) -> Vec<u8> {
    match table_of(kind) {
        Table::Record => [&kind.to_be_bytes(), key].concat(),
        _ => key.to_vec(),
    }
}

/// What a peer may say: its bytes must be what its key names.
fn acceptable(record: &Record) -> std::result::Result<(), String> {
    match (&record.key, &record.value) {
        (Key::Manifest(_, digest), Some(Value::Manifest(manifest))) => {
            let actual = larder_protocol::digest::Digest::of(digest.algorithm(), &manifest.bytes);
            if actual == *digest { Ok(()) } else { Err(format!("its manifest has digest {actual}")) }
        }
        _ => Ok(()),
    }
}

fn origin_key(origin: &Origin) -> Vec<u8> {
    [&origin.node.0[..], &origin.incarnation.to_be_bytes()].concat()
}

fn journal_key(origin: &Origin, sequence: u64) -> Vec<u8> {
    [&origin_key(origin)[..], &sequence.to_be_bytes()].concat()
}

fn sequence_of(place: &[u8]) -> Result<u64> {
    let damaged = || Error::Damaged { what: "a key of the journal".to_owned(), detail: format!("it has {} bytes", place.len()) };
    place.last_chunk().map(|bytes| u64::from_be_bytes(*bytes)).ok_or_else(damaged)
}

/// Milliseconds since 1970, by the wall clock.
pub(super) fn now_ms() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| u64::try_from(since.as_millis()).unwrap_or(u64::MAX >> 16))
}

/// What a lock guards stays usable when a thread panicked: every writing leaves it whole.
pub(super) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
