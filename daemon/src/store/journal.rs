//! The records, in the order in which this node came to know them, in the same batch as the index rows.
//!
//! Every writing goes through here: [`Journal::local`] numbers and stamps what this node writes,
//! [`Journal::merge`] takes what others wrote. Both hold one lock while they read, decide and hand the batch to RocksDB; then
//! they let go and wait for the disk together with whoever else is waiting ([`Syncer`]): one sync answers many pushes.
//!
//! What is not on the disk yet may be read on this node, but is told to nobody: [`Journal::vector`] covers a record of
//! this node only when it is durable, so that a power cut can't make it use a number twice.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use larder_protocol::record::{Key, Numbered, RawRecord, Record, Value};
use larder_protocol::stamp::{Clock, FarFuture, HybridTime, NodeId, Stamp};
use larder_protocol::starts::Start;
use larder_protocol::vector::{Origin, VersionVector};
use tokio::sync::watch;

use super::error::{Error, Result};
use super::forks::Forks;
use super::incarnation::{Lives, META_LIVES};
use super::index::{Batch, Index, RecordRow, Table, decode};
use super::mixed::Mixed;
use super::quarantine::{self, Waiting};
use super::quota::{Counted, Counts, Quota};
use super::sums::{META_SUMMED, Moved, Sums};
use super::syncer::Syncer;
use super::{Commit, Conflict, edges, listed};

pub(super) const META_CLOCK: &[u8] = b"clock";
const META_VECTOR: &[u8] = b"vector";
pub(super) const META_INCARNATION: &[u8] = b"incarnation";
/// Up to where tombstones were purged; see `horizon`.
pub(super) const META_HORIZON: &[u8] = b"horizon";
/// In front of the names of other rooms' settings.
pub(super) const SETTING: &str = "setting/";

/// Numbers, stamps and merges records.
#[derive(Debug)]
pub(super) struct Journal {
    /// This node's origin; changes only while the writer is held.
    life: watch::Sender<Origin>,
    max_clock_drift: Duration,
    writer: Mutex<Writer>,
    syncer: Option<Syncer>,
    durable: Mutex<Durable>,
    /// This node may write nothing but what it says of itself.
    reader: AtomicBool,
    changes: watch::Sender<u64>,
    /// Grows when a record changes that says who may do what.
    access: AtomicU64,
    quota: Quota,
}

/// What is on the disk.
#[derive(Debug)]
struct Durable {
    vector: VersionVector,
    /// Whose vector it is: what was written in an earlier life and is synced in a later one is in the later one's vector.
    life: Origin,
}

/// What only one writing at a time may move on.
#[derive(Debug)]
struct Writer {
    clock: Clock,
    vector: VersionVector,
    waiting: Waiting,
    forks: Forks,
    mixed: Mixed,
    sums: Sums,
    counts: Counts,
    horizon: VersionVector,
    lives: Lives,
    /// The last start, while no number was given out since.
    fresh: Option<Start>,
}

/// What a writing moves on in the writer, once its batch is written.
#[derive(Debug, Default)]
pub(super) struct Moves {
    /// Records that are put aside, and those that are no more.
    pub waiting: Vec<(RecordRow, bool)>,
    /// Numbers under which two records were found.
    pub forked: Vec<(Origin, u64)>,
    /// Lives that two copies have written.
    pub mixed: Option<Mixed>,
    sums: Moved,
    counted: Counted,
    life: Option<Origin>,
    pub horizon: Option<VersionVector>,
    lives: Option<Lives>,
    /// A number is given out after the last start.
    is_start_past: bool,
    access: bool,
}

/// A writing under way: what it has read stands still until it is done.
pub(super) struct Writing<'a> {
    journal: &'a Journal,
    pub(super) index: &'a Index,
    writer: MutexGuard<'a, Writer>,
    pub(super) batch: Batch,
    /// What is known when it is written. Nothing in the writer says so before: if the batch fails, it is not known.
    pub(super) vector: VersionVector,
    pub(super) moves: Moves,
    numbered: Vec<Numbered>,
    pub(super) conflicts: Vec<Conflict>,
}

impl Journal {
    /// Reads where the numbering stands. `relaxed`: nobody waits for the disk.
    pub(super) fn open(index: &Index, node: NodeId, max_clock_drift: Duration, relaxed: bool) -> Result<Self> {
        let known = index.row::<u64>(Table::Meta, META_INCARNATION)?;
        let incarnation = match known {
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
        let life = Origin { node, incarnation };
        let mut lives: Lives = index.row(Table::Meta, META_LIVES)?.unwrap_or_default();
        lives.start(vector.get(&life));
        // A life that begins now has no copy.
        let fresh = known.map(|_| start_after(vector.get(&life)));
        let mut batch = Batch::default();
        index.put_row(&mut batch, Table::Meta, META_LIVES, &lives);
        index.write(batch)?;
        let writer = Writer {
            clock: Clock::new(index.row(Table::Meta, META_CLOCK)?.unwrap_or_default()),
            vector: vector.clone(),
            waiting: Waiting::open(index)?,
            forks: Forks::open(index)?,
            mixed: Mixed::open(index)?,
            // ORDER: the sums are counted anew when they must be, and with them the counts.
            sums: Sums::open(index)?,
            counts: Counts::read(index)?,
            horizon: index.row(Table::Meta, META_HORIZON)?.unwrap_or_default(),
            lives,
            fresh,
        };
        Ok(Self {
            life: watch::Sender::new(life),
            max_clock_drift,
            durable: Mutex::new(Durable { vector, life }),
            writer: Mutex::new(writer),
            reader: AtomicBool::new(false),
            syncer: (!relaxed).then(Syncer::default),
            changes: watch::Sender::new(0),
            access: AtomicU64::new(0),
            quota: Quota::default(),
        })
    }

    pub(super) fn origin(&self) -> Origin {
        *self.life.borrow()
    }

    pub(super) fn access_changes(&self) -> u64 {
        self.access.load(Ordering::Acquire)
    }

    pub(super) fn quota(&self) -> &Quota {
        &self.quota
    }

    pub(super) fn lives(&self) -> watch::Receiver<Origin> {
        self.life.subscribe()
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
        lock(&self.durable).vector.clone()
    }

    /// Begins a writing: no other goes on until it is done.
    pub(super) fn write<'a>(&'a self, index: &'a Index) -> Writing<'a> {
        let writer = lock(&self.writer);
        let vector = writer.vector.clone();
        let (batch, moves) = (Batch::default(), Moves::default());
        Writing { journal: self, index, writer, batch, vector, moves, numbered: Vec::new(), conflicts: Vec::new() }
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

    /// Reads at most `limit` places of an origin behind `after`; of this node's own only what is durable.
    pub(super) fn page(&self, index: &Index, origin: &Origin, after: u64, limit: usize) -> Result<Page> {
        let until = if *origin == self.origin() { self.vector().get(origin) } else { u64::MAX };
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
            let standing = standing.filter(|row| row.origin == *origin && row.sequence == sequence);
            let row = match standing {
                Some(row) => Some(row),
                None => quarantine::read(index, origin, sequence)?,
            };
            // Superseded between the two reads: it stands elsewhere in the journal now, and is read there.
            if let Some(row) = row {
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
        let own = self.journal.origin().node;
        if self.journal.is_reader() && key != Key::Member(own) && key != Key::Keys(own) {
            return Err(Error::Reader);
        }
        let stamp = self.stamp();
        self.record_at(key, value, stamp.time)
    }

    /// The stamp of what is written now.
    pub(super) fn stamp(&mut self) -> Stamp {
        Stamp { time: self.writer.clock.tick(now_ms()), node: self.origin().node }
    }

    /// Writes a record of this node with a time of the past, which must be later than that of what stands.
    pub(super) fn record_at(&mut self, key: Key, value: Option<Value>, time: HybridTime) -> Result<()> {
        let origin = self.origin();
        let sequence = self.next_number(origin)?;
        let numbered = Numbered { origin, sequence, record: Record { key, value, stamp: Stamp { time, node: origin.node } } };
        let stands = self.stand(numbered.clone())?;
        assert!(stands, "a stamp of now beats what stood before, since the clock never runs back; and others are chosen to");
        self.numbered.push(numbered);
        Ok(())
    }

    /// The next number of one of this node's origins. The first one after a start tells of the start: so a copy of this folder shows itself.
    pub(super) fn next_number(&mut self, origin: Origin) -> Result<u64> {
        if let Some(start) = self.fresh().filter(|_| origin == self.origin()) {
            self.moves.is_start_past = true;
            if !self.is_reader() {
                let starts = self.starts_of(&origin)?.with(start);
                let time = self.stamp().time;
                self.record_at(Key::Starts(origin), Some(Value::Starts(starts)), time)?;
            }
        }
        let sequence = self.vector.get(&origin) + 1;
        self.vector.advance(origin, sequence);
        // Given out, whatever becomes of the batch.
        self.writer.vector.advance(origin, sequence);
        Ok(sequence)
    }

    /// The last start, while nothing was numbered since.
    pub(super) fn fresh(&self) -> Option<Start> {
        self.writer.fresh.filter(|_| !self.moves.is_start_past)
    }

    /// Puts a record's row and its place in the journal, where `before` stood.
    pub(super) fn place(&mut self, before: Option<&RecordRow>, row: RecordRow) {
        let (table, key) = (table_of(row.record.kind), row_key(row.record.kind, &row.record.key));
        self.moved(before, Some(&row));
        let place = journal_key(&row.origin, row.sequence);
        self.index.put_row(&mut self.batch, Table::Journal, &place, &(row.record.kind, &row.record.key));
        self.index.put_row(&mut self.batch, table, &key, &row);
    }

    /// Lives that two copies have written, as they were before this writing.
    pub(super) fn mixed(&self) -> &Mixed {
        &self.writer.mixed
    }

    pub(super) fn lives(&self) -> &Lives {
        &self.writer.lives
    }

    pub(super) fn set_lives(&mut self, lives: Lives) {
        self.index.put_row(&mut self.batch, Table::Meta, META_LIVES, &lives);
        self.moves.lives = Some(lives);
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
    pub(super) fn stand(&mut self, numbered: Numbered) -> Result<bool> {
        let (index, raw) = (self.index, numbered.record.to_raw());
        let (table, key) = (table_of(raw.kind), row_key(raw.kind, &raw.key));
        let before: Option<RecordRow> = index.row(table, &key)?;
        if let Some(before) = &before {
            if !raw.beats(&before.record) {
                let standing = parse(&before.record)?;
                self.came_late(&numbered.record, &standing)?;
                return Ok(false);
            }
            index.delete(&mut self.batch, Table::Journal, &journal_key(&before.origin, before.sequence));
        }
        let row = RecordRow { origin: numbered.origin, sequence: numbered.sequence, record: raw };
        let standing = before.as_ref().map(|row| parse(&row.record)).transpose()?;
        self.replaced(&numbered.record, standing.as_ref())?;
        self.take_back(&row.record, &row.origin)?;
        self.follow(&numbered.record, standing.as_ref());
        self.place(before.as_ref(), row);
        Ok(true)
    }

    /// The rows that follow from a record: edges, listings, locations.
    pub(super) fn follow(&mut self, record: &Record, before: Option<&Record>) {
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
        let Key::Archived(pack) = &record.key else { return };
        for (value, put) in [(before.and_then(|before| before.value.as_ref()), false), (record.value.as_ref(), true)] {
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

    /// Takes note of another node's stamp.
    pub(super) fn observe(&mut self, time: HybridTime, now_ms: u64) {
        // Beyond what is believed it moves nothing.
        let _: std::result::Result<(), FarFuture> = self.believes(time, now_ms);
    }

    /// Whether a stamp may be believed; then the clock has taken note of it.
    pub(super) fn believes(&mut self, time: HybridTime, now_ms: u64) -> std::result::Result<(), FarFuture> {
        self.writer.clock.observe(time, now_ms, quarantine::as_ms(self.journal.max_clock_drift))
    }

    /// This node's origin, for as long as this goes on.
    pub(super) fn origin(&self) -> Origin {
        self.journal.origin()
    }

    pub(super) fn is_reader(&self) -> bool {
        self.journal.is_reader()
    }

    pub(super) fn waiting(&self) -> &Waiting {
        &self.writer.waiting
    }

    pub(super) fn forks(&self) -> &Forks {
        &self.writer.forks
    }

    pub(super) fn sums(&self) -> &Sums {
        &self.writer.sums
    }

    /// A row takes the place of another, or of none: what adds up over all rows follows.
    pub(super) fn moved(&mut self, before: Option<&RecordRow>, after: Option<&RecordRow>) {
        self.moves.sums.replace(before.map(|row| &row.record), after.map(|row| &row.record));
        self.moves.counted.replace(before, after);
        self.moves.access |= before.into_iter().chain(after).any(|row| super::access::is_about(row.record.kind));
        self.died(before, after);
    }

    /// Whether a node has so many records that a new one is too much.
    pub(super) fn is_over_quota(&self, node: &NodeId) -> bool {
        self.journal.quota.is_over(node, &self.writer.counts, &self.moves.counted)
    }

    /// Up to where tombstones were purged.
    pub(super) fn horizon(&self) -> &VersionVector {
        &self.writer.horizon
    }

    /// This writing begins another life of the node.
    pub(super) fn begin(&mut self, life: Origin) {
        self.moves.life = Some(life);
    }

    /// Hands the batch to the index, lets other writings go on, and waits until it is on the disk.
    pub(super) fn commit(mut self) -> Result<Vec<Numbered>> {
        for name in [META_CLOCK, edges::META_EDGES, META_SUMMED] {
            self.index.put_row(&mut self.batch, Table::Meta, name, &self.writer.clock.floor());
        }
        self.index.put_row(&mut self.batch, Table::Meta, META_VECTOR, &self.vector);
        self.writer.sums.put(self.index, &mut self.batch, &self.moves.sums);
        self.writer.counts.put(self.index, &mut self.batch, &self.moves.counted);
        let Self { journal, index, mut writer, batch, vector, moves, numbered, .. } = self;
        // CRASH: what fails here was not written at all; its numbers stay a gap, which no record fills.
        index.write(batch)?;
        // ORDER: behind the rows: who sees the number reads what it counts.
        if moves.access {
            journal.access.fetch_add(1, Ordering::Release);
        }
        writer.follow(moves, &journal.life);
        writer.vector = vector.clone();
        let life = journal.origin();
        let ticket = journal.syncer.as_ref().map(Syncer::written);
        drop(writer);
        if let (Some(syncer), Some(ticket)) = (&journal.syncer, ticket) {
            syncer.wait(ticket, || index.sync())?;
        }
        let mut durable = lock(&journal.durable);
        match durable.life.cmp(&life) {
            std::cmp::Ordering::Equal => durable.vector.merge(&vector),
            // The first that is synced in a new life, in which less may be known of the old one.
            std::cmp::Ordering::Less => *durable = Durable { vector, life },
            std::cmp::Ordering::Greater => {}
        }
        drop(durable);
        journal.changes.send_modify(|number| *number += 1);
        Ok(numbered)
    }
}

impl Writer {
    /// Moves on with what was written.
    fn follow(&mut self, moves: Moves, life: &watch::Sender<Origin>) {
        for (row, waits) in &moves.waiting {
            if *waits { self.waiting.add(row) } else { self.waiting.remove(row) }
        }
        for (origin, sequence) in moves.forked {
            self.forks.note(origin, sequence);
        }
        if let Some(mixed) = moves.mixed {
            self.mixed = mixed;
        }
        self.sums.follow(moves.sums);
        self.counts.follow(moves.counted);
        if let Some(lives) = moves.lives {
            self.lives = lives;
        }
        if let Some(horizon) = moves.horizon {
            self.horizon = horizon;
        }
        if moves.is_start_past || moves.life.is_some() {
            self.fresh = None;
        }
        if let Some(new) = moves.life {
            life.send_replace(new);
        }
    }
}

/// A start that finds this number.
pub(super) fn start_after(after: u64) -> Start {
    Start { after, mark: uuid::Uuid::new_v4().as_u64_pair().0 }
}

/// The record that stands under a key.
pub(super) fn read(index: &Index, key: &Key) -> Result<Option<Record>> {
    let (kind, bytes) = (key.kind(), key.to_bytes());
    index.row::<RecordRow>(table_of(kind), &row_key(kind, &bytes))?.map(|row| parse(&row.record)).transpose()
}

/// The same, with its number.
pub(super) fn read_numbered(index: &Index, key: &Key) -> Result<Option<Numbered>> {
    let (kind, bytes) = (key.kind(), key.to_bytes());
    let row = index.row::<RecordRow>(table_of(kind), &row_key(kind, &bytes))?;
    row.map(|row| Ok(Numbered { origin: row.origin, sequence: row.sequence, record: parse(&row.record)? })).transpose()
}

/// Understands a record of ours.
pub(super) fn parse(raw: &RawRecord) -> Result<Record> {
    raw.parse().map_err(|error| Error::Damaged { what: "a record in the index".to_owned(), detail: error.to_string() })
}

/// The record that is known under a number: standing, or kept aside.
pub(super) fn at_number(index: &Index, origin: &Origin, sequence: u64) -> Result<Option<RecordRow>> {
    let Some((kind, key)) = index.row::<(u16, Vec<u8>)>(Table::Journal, &journal_key(origin, sequence))? else { return Ok(None) };
    let standing = index.row::<RecordRow>(table_of(kind), &row_key(kind, &key))?;
    match standing.filter(|row| row.origin == *origin && row.sequence == sequence) {
        Some(row) => Ok(Some(row)),
        None => quarantine::read(index, origin, sequence),
    }
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

pub(super) fn origin_key(origin: &Origin) -> Vec<u8> {
    origin.to_bytes()
}

pub(super) fn journal_key(origin: &Origin, sequence: u64) -> Vec<u8> {
    [&origin_key(origin)[..], &sequence.to_be_bytes()].concat()
}

pub(super) fn sequence_of(place: &[u8]) -> Result<u64> {
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
