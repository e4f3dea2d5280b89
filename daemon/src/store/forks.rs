//! Two records under one number: somebody writes twice under one origin, a cloned node or a lying one (S32).
//!
//! ```text
//! sync   'f' | origin | sequence | which (0, 1...) -> a record that was found there
//! ```
//!
//! Both are kept as evidence. The vector does not pass the place, so that others are asked for what they have there: until a
//! later life of that node is known, in which an honest one has written everything anew that others may lack (see `incarnation`).

use std::collections::BTreeMap;

use larder_protocol::record::{Key, Numbered, RawRecord};
use larder_protocol::stamp::{NodeId, Stamp};
use larder_protocol::vector::Origin;

use super::Store;
use super::error::Result;
use super::index::{Index, RecordRow, Row, Table, decode};
use super::journal::{Writing, journal_key, parse};

/// What the keys of evidence begin with.
const EVIDENCE: &[u8] = b"f";
/// Places of which evidence is kept; of others it is only known that there are some.
const EVIDENCE_MAX: usize = 1000;
/// Records that are kept of one place.
const PER_PLACE_MAX: u8 = 4;

/// Origins that have two records under one number: behind which sequence nothing is sure.
#[derive(Debug, Default)]
pub(super) struct Forks {
    sure: BTreeMap<Origin, u64>,
    places: usize,
}

/// One place where two records stood.
#[derive(Clone, Debug)]
pub struct Fork {
    /// Who wrote twice.
    pub origin: Origin,
    /// Under which number.
    pub sequence: u64,
    /// What was found there.
    pub records: Vec<(Key, Stamp)>,
}

impl Forks {
    pub(super) fn open(index: &Index) -> Result<Self> {
        let mut forks = Self::default();
        for fork in read(index)? {
            forks.note(fork.origin, fork.sequence);
        }
        Ok(forks)
    }

    pub(super) fn note(&mut self, origin: Origin, sequence: u64) {
        let sure = self.sure.entry(origin).or_insert(u64::MAX);
        *sure = (*sure).min(sequence - 1);
        self.places += 1;
    }

    /// How far an origin may be said to be known: no further than the first number with two records, unless a later life is known.
    pub(super) fn limit(&self, origin: &Origin, last_life: Option<u64>) -> u64 {
        match self.sure.get(origin) {
            Some(sure) if last_life.is_none_or(|last| last <= origin.incarnation) => *sure,
            _ => u64::MAX,
        }
    }
}

impl Writing<'_> {
    /// Keeps what has been found under a number that has another record; says whether that is news.
    pub(super) fn forked(&mut self, numbered: &Numbered, standing: &RawRecord) -> Result<bool> {
        let place = [EVIDENCE, &journal_key(&numbered.origin, numbered.sequence)].concat();
        let mut known = Vec::new();
        for row in self.index.scan(Table::Sync, &place, b"") {
            let row: RecordRow = decode(Table::Sync, &row?.1)?;
            known.push(row.record);
        }
        let is_first = known.is_empty();
        let full = self.forks().places + self.moves.forked.len() >= EVIDENCE_MAX && is_first;
        let found = [standing.clone(), numbered.record.to_raw()].into_iter().filter(|record| !known.contains(record));
        for (which, record) in (0..PER_PLACE_MAX).skip(known.len()).zip(found) {
            if !full {
                let row = RecordRow { origin: numbered.origin, sequence: numbered.sequence, record };
                self.index.put_row(&mut self.batch, Table::Sync, &[&place[..], &[which]].concat(), &row);
            }
        }
        if is_first {
            self.moves.forked.push((numbered.origin, numbered.sequence));
        }
        Ok(is_first)
    }
}

impl Store {
    /// Numbers under which two records were found, as far as they are kept.
    pub fn forks(&self) -> Result<Vec<Fork>> {
        read(&self.inner.index)
    }

    /// What was found under numbers of a node's lives that have two records: what shows it that another copy of its folder has written.
    pub fn evidence_of(&self, node: &NodeId) -> Result<Vec<Numbered>> {
        let prefix = [EVIDENCE, &node.0].concat();
        let rows = self.inner.index.scan(Table::Sync, &prefix, b"");
        let numbered = |row: Result<Row>| {
            let row: RecordRow = decode(Table::Sync, &row?.1)?;
            Ok(Numbered { origin: row.origin, sequence: row.sequence, record: parse(&row.record)? })
        };
        rows.map(numbered).collect()
    }

    /// How many origins have written twice under one number.
    pub fn forked_origins(&self) -> usize {
        self.inner.journal.write(&self.inner.index).forks().sure.len()
    }
}

fn read(index: &Index) -> Result<Vec<Fork>> {
    let mut forks: Vec<Fork> = Vec::new();
    for row in index.scan(Table::Sync, EVIDENCE, b"") {
        let row: RecordRow = decode(Table::Sync, &row?.1)?;
        let record = parse(&row.record)?;
        match forks.last_mut().filter(|fork| (fork.origin, fork.sequence) == (row.origin, row.sequence)) {
            Some(fork) => fork.records.push((record.key, record.stamp)),
            None => forks.push(Fork { origin: row.origin, sequence: row.sequence, records: vec![(record.key, record.stamp)] }),
        }
    }
    Ok(forks)
}
