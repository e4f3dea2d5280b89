//! RocksDB: every column family, key and row; the only file that knows rocksdb.
//!
//! Rows are encoded by the protocol's codec, with its leading version byte. Keys are ordered so that
//! every listing is a seek and a range scan.
//!
//! | table | key | row |
//! | --- | --- | --- |
//! | meta | name | a setting of the store, or `setting/<name>` of another room |
//! | blob | digest key | [`BlobRow`] |
//! | small | digest key | the bytes of a blob up to 64 KiB |
//! | chunks | digest key | BLAKE3 chaining values, 32 bytes each |
//! | link, manifest, tag, pack, record | the record's key | [`RecordRow`] |
//! | edge | what is held, repository, NUL, who holds it | see `edges` |
//! | history | repository, NUL, tag, NUL, inverted time | the record that was replaced |
//! | journal | origin, sequence | kind, record key |
//! | location | digest key, pack id | offset, length |
//! | job | `trash/`, digest key | [`super::removal::TrashRow`] |
//! | lease | digest key | when it was last pulled |
//! | listed | kind, repository, NUL, tag or digest key | see `listed` |
//! | sync | a letter, and what it says | see `conflicts` |
//!
//! Manifests rest in their record's row; so their bytes are there as soon as the record is.

use std::cell::Cell;
use std::path::Path;

use larder_protocol::codec;
use larder_protocol::record::RawRecord;
use larder_protocol::vector::Origin;
use rocksdb::{
    BlockBasedIndexType, BlockBasedOptions, BoundColumnFamily, Cache, ColumnFamilyDescriptor, DBPinnableSlice, DBRecoveryMode,
    DBWithThreadMode, Direction, IteratorMode, MultiThreaded, Options, ReadOptions, ReadTier, WriteBatch,
};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use std::sync::Arc;

use super::error::{Error, Result};

/// Memory for blocks that were read, shared by all tables.
const BLOCK_CACHE_BYTES: usize = 32 << 20;
/// Memory for rows that are not in a file yet, all tables together.
const WRITE_BUFFERS_BYTES: usize = 32 << 20;
/// So many deletes among so many rows in a row, and the file is compacted soon: RocksDB's own tombstones are stepped over as well.
const COMPACT_DELETES: (usize, usize) = (1024, 512);
/// Files that the index keeps open.
const OPEN_FILES_MAX: i32 = 512;
/// Memory for new rows of one table. Also what RocksDB wants to find free before it goes on after a full disk: it asks for as much
/// as the largest table's, and looks every five seconds. It has to be well below the least `store.reserve`.
const TABLE_BUFFER_BYTES: usize = 8 << 20;
/// The table that RocksDB always has, and nobody uses. Left alone it would have a buffer of 64 MiB.
const UNUSED_TABLE: &str = "default";

/// The column families.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Table {
    Meta,
    Blob,
    Small,
    Chunks,
    Link,
    Manifest,
    Edge,
    Tag,
    History,
    Lease,
    Journal,
    Location,
    Pack,
    Job,
    Record,
    Listed,
    Sync,
}

impl Table {
    const ALL: [(Table, &'static str); 17] = [
        (Table::Meta, "meta"),
        (Table::Blob, "blob"),
        (Table::Small, "small"),
        (Table::Chunks, "chunks"),
        (Table::Link, "link"),
        (Table::Manifest, "manifest"),
        (Table::Edge, "edge"),
        (Table::Tag, "tag"),
        (Table::History, "history"),
        (Table::Lease, "lease"),
        (Table::Journal, "journal"),
        (Table::Location, "location"),
        (Table::Pack, "pack"),
        (Table::Job, "job"),
        (Table::Record, "record"),
        (Table::Listed, "listed"),
        (Table::Sync, "sync"),
    ];

    fn name(self) -> &'static str {
        Self::ALL[self as usize].1
    }

    /// Every table's name.
    pub(super) fn names() -> impl Iterator<Item = &'static str> {
        Self::ALL.iter().map(|(_, name)| *name)
    }

    /// The table of that name.
    pub(super) fn named(name: &str) -> Option<Self> {
        Self::ALL.iter().find(|(_, known)| *known == name).map(|(table, _)| *table)
    }
}

/// A blob that is on this disk.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct BlobRow {
    pub size: u64,
    pub root: [u8; 32],
    pub crc64: u64,
    pub created_ms: u64,
    /// In `small` when true, a file when not.
    pub small: bool,
}

/// The record that stands under a key, and its place in its origin's numbering.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct RecordRow {
    pub origin: Origin,
    pub sequence: u64,
    pub record: RawRecord,
}

/// A key and its row, as they are stored.
pub(super) type Row = (Box<[u8]>, Box<[u8]>);

/// Rows to write together.
#[derive(Default)]
pub(super) struct Batch(WriteBatch);

/// The index of a data folder.
pub(super) struct Index {
    db: DBWithThreadMode<MultiThreaded>,
    cache: Cache,
    /// For rows that are had from memory or not at all.
    memory_only: ReadOptions,
}

/// What the index has in memory, in bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct IndexMemory {
    /// Blocks that were read.
    pub cache: u64,
    /// Rows that are in no file yet.
    pub buffers: u64,
    /// What is kept of each open file.
    pub readers: u64,
}

impl std::fmt::Debug for Index {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Index")
    }
}

/// Where this thread looks for rows.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Looking {
    Everywhere,
    InMemory,
    /// In memory, where something was not.
    Missed,
}

thread_local! {
    static LOOKING: Cell<Looking> = const { Cell::new(Looking::Everywhere) };
}

/// Does `work` without reading the disk for any row; `None` when one was not in memory.
pub(super) fn in_memory<T>(work: impl FnOnce() -> T) -> Option<T> {
    /// Also when `work` panics.
    struct Restored;
    impl Drop for Restored {
        fn drop(&mut self) {
            LOOKING.set(Looking::Everywhere);
        }
    }
    let _restored = Restored;
    LOOKING.set(Looking::InMemory);
    let done = work();
    (LOOKING.get() == Looking::InMemory).then_some(done)
}

impl Index {
    /// Opens or creates it.
    pub(super) fn open(path: &Path) -> Result<Self> {
        let cache = Cache::new_lru_cache(BLOCK_CACHE_BYTES);
        let mut blocks = BlockBasedOptions::default();
        blocks.set_block_cache(&cache);
        blocks.set_cache_index_and_filter_blocks(true);
        blocks.set_ribbon_filter(10.0);
        // In one piece the index of a file of many rows is hundreds of KiB, and does not stay in the cache when there are a million: each row that is
        // read would read all of it.
        blocks.set_index_type(BlockBasedIndexType::TwoLevelIndexSearch);
        blocks.set_partition_filters(true);
        blocks.set_pin_top_level_index_and_filter(true);
        let mut options = Options::default();
        options.create_if_missing(true);
        options.create_missing_column_families(true);
        options.set_wal_recovery_mode(DBRecoveryMode::PointInTime);
        options.set_db_write_buffer_size(WRITE_BUFFERS_BYTES);
        options.set_max_total_wal_size(4 * WRITE_BUFFERS_BYTES as u64);
        options.set_max_open_files(OPEN_FILES_MAX);
        options.set_keep_log_file_num(2);
        options.set_max_log_file_size(1 << 20);
        let tables = Table::ALL.iter().map(|(kind, name)| {
            let mut table = Options::default();
            table.set_block_based_table_factory(&blocks);
            table.set_compression_type(rocksdb::DBCompressionType::Lz4);
            table.set_write_buffer_size(TABLE_BUFFER_BYTES);
            if *kind == Table::Listed {
                let (window, deletes) = COMPACT_DELETES;
                table.add_compact_on_deletion_collector_factory(window, deletes, 0.5);
            }
            if *kind == Table::Meta {
                table.set_merge_operator_associative("larder sum", sum);
            }
            ColumnFamilyDescriptor::new(*name, table)
        });
        let mut unused = Options::default();
        unused.set_write_buffer_size(TABLE_BUFFER_BYTES);
        // F43: a later program's tables are opened and left alone; without them RocksDB would refuse to open the others.
        let known = |name: &String| name == UNUSED_TABLE || Table::ALL.iter().any(|(_, known)| known == name);
        let there = if path.join("CURRENT").exists() { DBWithThreadMode::<MultiThreaded>::list_cf(&options, path) } else { Ok(Vec::new()) };
        let later: Vec<_> = there.map_err(|error| unopened(path, error))?.into_iter().filter(|name| !known(name)).collect();
        let later = later.into_iter().map(|name| ColumnFamilyDescriptor::new(name, Options::default()));
        let tables = tables.chain([ColumnFamilyDescriptor::new(UNUSED_TABLE, unused)]).chain(later);
        let db = DBWithThreadMode::open_cf_descriptors(&options, path, tables).map_err(|error| unopened(path, error))?;
        let mut memory_only = ReadOptions::default();
        memory_only.set_read_tier(ReadTier::BlockCache);
        Ok(Self { db, cache, memory_only })
    }

    pub(super) fn memory(&self) -> IndexMemory {
        let of = |property: &str| -> u64 {
            let each = Table::ALL.iter().map(|(table, _)| self.db.property_int_value_cf(&self.table(*table), property));
            each.map(|value| value.ok().flatten().unwrap_or(0)).sum()
        };
        let (buffers, readers) = (of("rocksdb.size-all-mem-tables"), of("rocksdb.estimate-table-readers-mem"));
        IndexMemory { cache: self.cache.get_usage() as u64, buffers, readers }
    }

    fn table(&self, table: Table) -> Arc<BoundColumnFamily<'_>> {
        self.db.cf_handle(table.name()).expect("every table was opened")
    }

    pub(super) fn get(&self, table: Table, key: &[u8]) -> Result<Option<Vec<u8>>> {
        Ok(self.pinned(table, key)?.map(|bytes| bytes.to_vec()))
    }

    fn pinned(&self, table: Table, key: &[u8]) -> Result<Option<DBPinnableSlice<'_>>> {
        if LOOKING.get() != Looking::InMemory {
            return self.db.get_pinned_cf(&self.table(table), key).map_err(Error::index("read a row"));
        }
        let read = self.db.get_pinned_cf_opt(&self.table(table), key, &self.memory_only);
        // Of a file that is not open RocksDB says that the key may be there, by an empty row.
        let is_missed = match &read {
            Ok(row) => row.as_ref().is_some_and(|bytes| bytes.is_empty()),
            Err(error) => error.kind() == rocksdb::ErrorKind::Incomplete,
        };
        if is_missed {
            LOOKING.set(Looking::Missed);
        }
        read.map_err(Error::index("read a row"))
    }

    /// A row that the codec wrote.
    pub(super) fn row<T: DeserializeOwned>(&self, table: Table, key: &[u8]) -> Result<Option<T>> {
        self.pinned(table, key)?.map(|bytes| decode(table, &bytes)).transpose()
    }

    /// Rows whose key starts with `prefix`, from `from` on, in order. Stops at the first damaged read.
    pub(super) fn scan<'a>(&'a self, table: Table, prefix: &[u8], from: &[u8]) -> impl Iterator<Item = Result<Row>> + use<'a> {
        let mut options = ReadOptions::default();
        if let Some(end) = successor(prefix) {
            options.set_iterate_upper_bound(end);
        }
        let start = from.max(prefix).to_vec();
        let mode = IteratorMode::From(&start, Direction::Forward);
        self.db.iterator_cf_opt(&self.table(table), options, mode).map(|row| row.map_err(Error::index("scan rows")))
    }

    /// Goes from key to key: `next` is given the first key from where it said last, beginning with `from`, and says where to go on.
    pub(super) fn leap(&self, table: Table, from: Vec<u8>, mut next: impl FnMut(&[u8]) -> Option<Vec<u8>>) -> Result<()> {
        let mut rows = self.db.raw_iterator_cf(&self.table(table));
        let mut from = Some(from);
        while let Some(at) = from.take() {
            rows.seek(&at);
            match rows.key() {
                Some(key) => from = next(key),
                None => rows.status().map_err(Error::index("scan rows"))?,
            }
        }
        Ok(())
    }

    /// Writes rows, in the order of calls, without waiting for the disk.
    pub(super) fn write(&self, batch: Batch) -> Result<()> {
        self.db.write(batch.0).map_err(Error::index("write rows"))
    }

    /// Waits until everything written so far is on the disk.
    pub(super) fn sync(&self) -> Result<()> {
        self.db.flush_wal(true).map_err(Error::index("sync"))
    }

    /// Ends background work; what was written is synced first.
    pub(super) fn close(&self) {
        if let Err(error) = self.sync() {
            tracing::error!(%error, "close the index");
        }
        self.db.cancel_all_background_work(true);
    }

    pub(super) fn put(&self, batch: &mut Batch, table: Table, key: &[u8], row: &[u8]) {
        batch.0.put_cf(&self.table(table), key, row);
    }

    pub(super) fn put_row<T: Serialize>(&self, batch: &mut Batch, table: Table, key: &[u8], row: &T) {
        self.put(batch, table, key, &codec::encode(row));
    }

    /// Adds to a sum in `meta`, whatever other writings add to it at the same time.
    pub(super) fn add(&self, batch: &mut Batch, key: &[u8], by: i64) {
        batch.0.merge_cf(&self.table(Table::Meta), key, by.to_le_bytes());
    }

    /// A sum in `meta`; `None` when nothing was ever added.
    pub(super) fn sum(&self, key: &[u8]) -> Result<Option<i64>> {
        Ok(self.get(Table::Meta, key)?.and_then(|bytes| bytes.try_into().ok()).map(i64::from_le_bytes))
    }

    pub(super) fn delete(&self, batch: &mut Batch, table: Table, key: &[u8]) {
        batch.0.delete_cf(&self.table(table), key);
    }
}

/// Adds what was merged into a row of 8 bytes; anything else counts as nothing.
fn sum(_: &[u8], standing: Option<&[u8]>, added: &rocksdb::MergeOperands) -> Option<Vec<u8>> {
    let number = |bytes: &[u8]| bytes.try_into().map_or(0, i64::from_le_bytes);
    let total = added.iter().fold(standing.map_or(0, number), |total, by| total.saturating_add(number(by)));
    Some(total.to_le_bytes().to_vec())
}

/// Why the index was not opened; of a damaged one, what to do (F9).
fn unopened(path: &Path, error: rocksdb::Error) -> Error {
    if error.kind() != rocksdb::ErrorKind::Corruption {
        return Error::index("open it")(error);
    }
    let detail = format!(
        "{error}; nothing was changed: move that folder away and start again, then `larder join` the other nodes or `larder restore` the \
         archive. That brings back every image that one of them knows of, with the layers that still lie in this data folder"
    );
    Error::Damaged { what: format!("the index in {}", path.display()), detail }
}

/// Reads a row that the codec wrote.
pub(super) fn decode<T: DeserializeOwned>(table: Table, bytes: &[u8]) -> Result<T> {
    codec::decode(bytes).map_err(|error| Error::Damaged { what: format!("a row of table {}", table.name()), detail: error.to_string() })
}

/// The first key behind all keys that start with `prefix`; `None` when there is none.
pub(super) fn successor(prefix: &[u8]) -> Option<Vec<u8>> {
    let last = prefix.iter().rposition(|byte| *byte != 0xff)?;
    let mut end = prefix[..=last].to_vec();
    end[last] += 1;
    Some(end)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tables_stand_where_their_number_says() {
        for (number, (table, _)) in Table::ALL.iter().enumerate() {
            assert_eq!(*table as usize, number);
        }
    }

    #[test]
    fn golden_rows_of_version_1_stand() {
        use larder_protocol::stamp::{HybridTime, NodeId, Stamp};

        let blob = BlobRow { size: 70_000, root: [1; 32], crc64: 2, created_ms: 3, small: false };
        super::super::tests::golden("blob.row", &codec::encode(&blob));
        let origin = Origin { node: NodeId([4; 32]), incarnation: 5 };
        let stamp = Stamp { time: HybridTime(6), node: NodeId([4; 32]) };
        let record = RawRecord { kind: 3, key: b"team/app\0latest".to_vec(), value: Some(vec![7]), stamp };
        super::super::tests::golden("record.row", &codec::encode(&RecordRow { origin, sequence: 8, record }));
    }

    #[test]
    fn f43_the_tables_of_a_later_program_are_left_alone() {
        let folder = tempfile::tempdir().expect("a temp folder");
        let index = Index::open(folder.path()).expect("new");
        index.db.create_cf("later", &Options::default()).expect("a table of a later program");
        drop(index);
        let index = Index::open(folder.path()).expect("with the table");
        assert!(index.db.cf_handle("later").is_some());
    }

    #[test]
    fn what_is_not_in_memory_is_not_looked_up_there() {
        let folder = tempfile::tempdir().expect("a temp folder");
        let index = Index::open(folder.path()).expect("new");
        let mut batch = Batch::default();
        index.put(&mut batch, Table::Small, b"key", b"row");
        index.write(batch).expect("written");
        let look = |index: &Index| in_memory(|| index.get(Table::Small, b"key"));
        assert_eq!(look(&index).expect("not in a file yet").expect("read"), Some(b"row".to_vec()));
        index.db.flush_cf(&index.table(Table::Small)).expect("flushed");
        drop(index);
        let index = Index::open(folder.path()).expect("again");
        assert!(look(&index).is_none(), "in a file that nobody has read");
        assert_eq!(index.get(Table::Small, b"key").expect("read"), Some(b"row".to_vec()));
        assert_eq!(look(&index).expect("read a moment ago").expect("read"), Some(b"row".to_vec()));
        assert_eq!(in_memory(|| index.get(Table::Meta, b"none")).expect("an empty table").expect("read"), None);
    }

    #[test]
    fn a_scan_ends_with_its_prefix() {
        assert_eq!(successor(b"ab"), Some(b"ac".to_vec()));
        assert_eq!(successor(b"a\xff"), Some(b"b".to_vec()));
        assert_eq!(successor(b"\xff"), None);
        assert_eq!(successor(b""), None);
    }
}
