//! Record sync, the plan: what is gathered of an exchange, and when it is applied; how an exchange is cut into messages.
//!
//! A reader sends its vector and gets what it lacks: [`Update::Records`]..., then [`Update::Caught`] with the vector that it has by then.
//! Records are gathered until `Caught` and applied in one batch together with that vector: so a tag appears together with its
//! manifest and links. Only an exchange too large to gather is applied in parts; its vector counts at its end.
//!
//! A record that the store refused leaves a gap. The sender goes on from what it has sent, so for the rest of the stream the
//! vector must not pass that gap: its origin is *held* until a new stream asks again from what is really known.
//!
//! No I/O here; `exchange` moves the messages. A stream that ends early costs nothing: the next one begins with the vector as it is.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use larder_protocol::message::{NumberedRecord, Update};
use larder_protocol::record::{InvalidRecord, Key, Numbered};
use larder_protocol::vector::{Origin, VersionVector};

/// Records in one message.
const MESSAGE_RECORDS: usize = 500;
/// Bytes of records in one message, but for a single larger one.
const MESSAGE_BYTES: usize = 512 << 10;
/// Records that are gathered before a part of an exchange is applied.
const GATHER_RECORDS: usize = 10_000;
/// Their bytes.
const GATHER_BYTES: usize = 4 << 20;

/// What one stream has brought and what it may still move on.
#[derive(Debug)]
pub(super) struct Gather {
    records_max: usize,
    records: Vec<Numbered>,
    bytes: usize,
    held: BTreeSet<Origin>,
}

/// Records to be applied in one batch.
#[derive(Debug)]
pub(super) struct Part {
    pub records: Vec<Numbered>,
    /// What is known when they are applied; nothing new, unless they end an exchange.
    pub advance: VersionVector,
    /// Whether they end an exchange.
    pub whole: bool,
}

impl Default for Gather {
    fn default() -> Self {
        Self::with_limit(GATHER_RECORDS)
    }
}

impl Gather {
    pub(super) fn with_limit(records_max: usize) -> Self {
        Self { records_max, records: Vec::new(), bytes: 0, held: BTreeSet::new() }
    }

    /// Takes the next message; a part when there is one to apply.
    ///
    /// # Errors
    /// A record of a known kind that is damaged: the sender is not to be listened to.
    pub(super) fn take(&mut self, update: Update) -> Result<Option<Part>, InvalidRecord> {
        match update {
            Update::Records(records) => {
                for record in records {
                    self.bytes += size(&record);
                    self.records.push(record.parse()?);
                }
                let full = self.records.len() >= self.records_max || self.bytes >= GATHER_BYTES;
                Ok(full.then(|| self.part(VersionVector::default(), false)))
            }
            Update::Caught(vector) => {
                let advance = vector.iter().filter(|(origin, _)| !self.held.contains(origin)).collect();
                Ok(Some(self.part(advance, true)))
            }
            // What was not asked for.
            Update::Unlike | Update::Snapshot(_) | Update::Mixed(_) => Ok(None),
        }
    }

    fn part(&mut self, advance: VersionVector, whole: bool) -> Part {
        self.bytes = 0;
        Part { records: std::mem::take(&mut self.records), advance, whole }
    }

    /// Takes note that records of a part were refused: `origins` has the part's, `behind` tells whether the store is behind one.
    pub(super) fn hold(&mut self, origins: BTreeSet<Origin>, behind: impl Fn(&Origin) -> bool) {
        self.held.extend(origins.into_iter().filter(behind));
    }

    /// Whether something was refused: then a new stream must ask again, after a while.
    pub(super) fn is_holding(&self) -> bool {
        !self.held.is_empty()
    }
}

impl Part {
    /// Drops what `known` covers, which other streams have brought meanwhile; says whether anything is left to do.
    pub(super) fn trim(&mut self, known: &VersionVector) -> bool {
        // The starts of a life tell something in any case.
        let is_starts = |numbered: &Numbered| matches!(numbered.record.key, Key::Starts(_));
        self.records.retain(|numbered| numbered.sequence > known.get(&numbered.origin) || is_starts(numbered));
        !self.records.is_empty() || !known.covers(&self.advance)
    }

    /// The records that bear this node's own origin: they come back, or another copy of its folder wrote them.
    pub(super) fn returned(&mut self, own: &Origin) -> Vec<Numbered> {
        let (own, others) = std::mem::take(&mut self.records).into_iter().partition(|numbered| numbered.origin == *own);
        self.records = others;
        own
    }

    /// Whose records it has.
    pub(super) fn origins(&self) -> BTreeSet<Origin> {
        self.records.iter().map(|numbered| numbered.origin).collect()
    }
}

/// What everyone has seen that counts: a member that was silent for too long does not, as long as more than half of all are there. `None`: so many
/// are away, or so much that others know is unknown here, that nothing can be said. `members`: what each other one knows, and for how long it was silent.
pub(super) fn seen_by_all<'a>(
    ours: &VersionVector,
    members: impl IntoIterator<Item = (&'a VersionVector, Duration)>,
    lapse_after: Duration,
) -> Option<VersionVector> {
    let (mut seen, mut here, mut all) = (ours.clone(), 1, 1);
    for (vector, silent) in members {
        all += 1;
        if silent < lapse_after {
            // Something that another knows may be what a tombstone here is about.
            if !ours.covers(vector) {
                return None;
            }
            here += 1;
            seen = seen.common(vector);
        }
    }
    // Of two parts that are cut off from each other, at most one forgets.
    (here == all || here * 2 > all).then_some(seen)
}

/// Whether a node that has forgotten deletes of which a peer has not heard waits until the peer has taken a copy of its state. Each may have forgotten what the other
/// has not heard of: then the one with the larger id takes the first copy, or they would wait for each other for ever.
pub(super) fn may_wait<T: Ord>(own: T, peer: T, has_heard_all: bool) -> bool {
    has_heard_all || own < peer
}

/// Up to which own number a data folder is what others know, when it turns out that another copy of it was written in: a copy is put in its place before
/// a start, so up to the last number of one of the `starts`: the last one, or the last before the first number that is `wrong`.
pub(super) fn fork_point(starts: &BTreeSet<u64>, wrong: Option<u64>) -> Option<u64> {
    match wrong {
        Some(wrong) => starts.range(..wrong).next_back().or(starts.first()).copied(),
        None => starts.last().copied(),
    }
}

/// How fast records are taken from one peer.
#[derive(Debug)]
pub(super) struct Pace {
    per_second: u64,
    /// When everything that was taken is paid for.
    paid: Option<Instant>,
}

impl Pace {
    pub(super) fn new(per_second: u64) -> Self {
        Self { per_second: per_second.max(1), paid: None }
    }

    /// So many were taken: how long to wait before more are. A second's worth may come at once.
    pub(super) fn take(&mut self, now: Instant, count: usize) -> Duration {
        let costs = Duration::from_secs_f64(count as f64 / self.per_second as f64);
        let paid = self.paid.map_or(now, |paid| paid.max(now)) + costs;
        self.paid = Some(paid);
        paid.saturating_duration_since(now).saturating_sub(Duration::from_secs(1))
    }
}

/// The next records, as many as fit in one message; none at the end.
pub(super) fn next_batch<E>(records: &mut impl Iterator<Item = Result<Numbered, E>>) -> Result<Vec<NumberedRecord>, E> {
    let (mut batch, mut bytes) = (Vec::new(), 0);
    while batch.len() < MESSAGE_RECORDS && bytes < MESSAGE_BYTES {
        let Some(numbered) = records.next() else { break };
        let record = NumberedRecord::from(&numbered?);
        bytes += size(&record);
        batch.push(record);
    }
    Ok(batch)
}

/// Roughly the bytes that a record takes in memory.
fn size(record: &NumberedRecord) -> usize {
    128 + record.record.key.len() + record.record.value.as_ref().map_or(0, Vec::len)
}

#[cfg(test)]
mod simulation;
#[cfg(test)]
mod tests;
