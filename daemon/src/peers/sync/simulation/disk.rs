//! What one node of the simulation keeps, and the decisions it takes about it.

use std::collections::{BTreeMap, BTreeSet};

use larder_protocol::merge::{Fate, Here, SeenBy, Verdict, fate, is_foreign, judge};
use larder_protocol::record::{Key, RawRecord, Value};
use larder_protocol::stamp::{Clock, NodeId, Stamp};

use super::*;

#[derive(Clone, Debug, PartialEq)]
pub(super) struct Row {
    pub(super) origin: Origin,
    pub(super) sequence: u64,
    pub(super) raw: RawRecord,
}

/// What a restart finds, and a copy brings back.
#[derive(Clone)]
pub(super) struct Disk {
    pub(super) origin: Origin,
    pub(super) clock: Clock,
    pub(super) vector: VersionVector,
    pub(super) standing: BTreeMap<Vec<u8>, Row>,
    /// What is known under each number.
    pub(super) numbers: BTreeMap<Place, Vec<u8>>,
    pub(super) waiting: BTreeMap<Place, Row>,
    pub(super) horizon: VersionVector,
    /// What each other one knows, and for how long it was silent.
    pub(super) acks: BTreeMap<usize, (VersionVector, u64)>,
    /// The last number at each start since which not every other node was looked at: up to one of them the folder is what it was.
    pub(super) starts: BTreeSet<u64>,
    /// Earlier lives that another copy wrote in, and up to where they are sure.
    pub(super) unsure: BTreeMap<Origin, u64>,
    /// Origins that wrote twice under one number: behind which one nothing is sure.
    pub(super) forks: BTreeMap<Origin, u64>,
    /// Whose tombstones were ever here. No node keeps that; the check does.
    pub(super) buried: BTreeSet<Vec<u8>>,
}

impl Disk {
    pub(super) fn new(node: usize, incarnation: u64) -> Self {
        Self {
            origin: Origin { node: NodeId([node as u8 + 1; 32]), incarnation },
            clock: Clock::default(),
            vector: VersionVector::default(),
            standing: BTreeMap::new(),
            numbers: BTreeMap::new(),
            waiting: BTreeMap::new(),
            horizon: VersionVector::default(),
            acks: BTreeMap::new(),
            starts: BTreeSet::from([0]),
            unsure: BTreeMap::new(),
            forks: BTreeMap::new(),
            buried: BTreeSet::new(),
        }
    }

    /// The node starts.
    pub(super) fn start(&mut self) {
        self.starts.insert(self.vector.get(&self.origin));
    }

    pub(super) fn next_number(&mut self) -> u64 {
        let sequence = self.vector.get(&self.origin) + 1;
        self.vector.advance(self.origin, sequence);
        sequence
    }

    pub(super) fn write(&mut self, key: &Key, value: Option<Value>, now_ms: u64) -> Place {
        let stamp = Stamp { time: self.clock.tick(now_ms), node: self.origin.node };
        let sequence = self.next_number();
        let raw = RawRecord { kind: key.kind(), key: key.to_bytes(), value: value.map(|value| value.to_bytes()), stamp };
        self.stand(Row { origin: self.origin, sequence, raw });
        (self.origin, sequence)
    }

    pub(super) fn stand(&mut self, row: Row) {
        if row.raw.value.is_none() {
            self.buried.insert(row.raw.key.clone());
        }
        if let Some(before) = self.standing.get(&row.raw.key) {
            if !row.raw.beats(&before.raw) {
                return;
            }
            self.numbers.remove(&(before.origin, before.sequence));
        }
        // What its writer takes back.
        let (raw, origin) = (&row.raw, row.origin);
        let back = |it: &Row| it.raw.key == raw.key && it.origin.node == origin.node && it.origin.incarnation < origin.incarnation;
        let taken_back: Vec<_> = self.waiting.iter().filter(|(_, it)| back(it)).map(|(place, _)| *place).collect();
        for place in taken_back {
            self.waiting.remove(&place);
            self.numbers.remove(&place);
        }
        self.numbers.insert((row.origin, row.sequence), row.raw.key.clone());
        self.standing.insert(row.raw.key.clone(), row);
    }

    pub(super) fn remove(&mut self, key: &[u8]) {
        if let Some(row) = self.standing.remove(key) {
            self.numbers.remove(&(row.origin, row.sequence));
        }
    }

    pub(super) fn at_number(&self, place: &Place) -> Option<&Row> {
        let standing = self.standing.get(self.numbers.get(place)?).filter(|row| (row.origin, row.sequence) == *place);
        standing.or_else(|| self.waiting.get(place))
    }

    pub(super) fn here(&self, raw: &RawRecord, place: &Place) -> Here<'_> {
        Here { standing: self.standing.get(&raw.key).map(|row| &row.raw), numbered: self.at_number(place).map(|row| &row.raw) }
    }

    pub(super) fn apply(&mut self, records: Vec<Numbered>, advance: &VersionVector, now_ms: u64) {
        for numbered in records {
            let (raw, place) = (numbered.record.to_raw(), (numbered.origin, numbered.sequence));
            if numbered.origin == self.origin {
                continue;
            }
            let is_far = self.clock.observe(raw.stamp.time, now_ms, DRIFT_MS).is_err();
            let row = Row { origin: place.0, sequence: place.1, raw };
            match judge(&row.raw, self.here(&row.raw, &place), is_far) {
                Verdict::Stands if self.unsure.get(&place.0).is_some_and(|sure| place.1 > *sure) => {
                    let sequence = self.next_number();
                    self.stand(Row { origin: self.origin, sequence, raw: row.raw });
                }
                Verdict::Stands => self.stand(row),
                Verdict::Waits => {
                    self.numbers.insert(place, row.raw.key.clone());
                    self.waiting.insert(place, row);
                }
                Verdict::Forked => {
                    let sure = self.forks.entry(place.0).or_insert(u64::MAX);
                    *sure = (*sure).min(place.1 - 1);
                }
                Verdict::Lost | Verdict::Known => {}
            }
        }
        self.advance(advance);
    }

    pub(super) fn advance(&mut self, advance: &VersionVector) {
        for (origin, sequence) in advance.iter().filter(|(origin, _)| *origin != self.origin) {
            let last_life = self.vector.last_life(&origin.node).max(advance.last_life(&origin.node));
            let sure = self.forks.get(&origin).filter(|_| last_life.is_none_or(|last| last <= origin.incarnation));
            self.vector.advance(origin, sequence.min(sure.copied().unwrap_or(u64::MAX)));
        }
    }

    /// What is known, but for what is asked for once more of each peer.
    pub(super) fn known(&self, is_asked: impl Fn(&Origin) -> bool) -> VersionVector {
        let mut known = self.vector.clone();
        self.unsure.iter().filter(|(origin, _)| is_asked(origin)).for_each(|(origin, sure)| known.lower(origin, *sure));
        known
    }

    pub(super) fn release(&mut self, now_ms: u64) {
        let due: Vec<_> =
            self.waiting.iter().filter(|(_, row)| row.raw.stamp.time.ms() <= now_ms + DRIFT_MS).map(|(place, _)| *place).collect();
        for place in due {
            let Some(row) = self.waiting.remove(&place) else { continue };
            self.numbers.remove(&place);
            let _ = self.clock.observe(row.raw.stamp.time, now_ms, DRIFT_MS);
            self.stand(row);
        }
    }

    /// The first number under which a peer has something that was not written here.
    pub(super) fn first_wrong(&self, returned: &[Numbered]) -> Option<u64> {
        let own = (self.vector.get(&self.origin), self.horizon.get(&self.origin));
        let wrong = returned.iter().filter(|numbered| {
            let (raw, place) = (numbered.record.to_raw(), (numbered.origin, numbered.sequence));
            is_foreign(&raw, numbered.sequence, self.here(&raw, &place), own)
        });
        wrong.map(|numbered| numbered.sequence).min()
    }

    pub(super) fn begin_life(&mut self, sure: u64, incarnation: u64) {
        let old = self.origin;
        let (sure, last) = (sure.min(self.vector.get(&old)), self.vector.get(&old));
        self.origin = Origin { node: old.node, incarnation };
        self.renumber(old, sure, last, &BTreeSet::new());
        self.vector.lower(&old, sure);
        self.unsure.insert(old, sure);
        self.starts.clear();
    }

    /// Gives own records new numbers, but for those that are confirmed.
    pub(super) fn renumber(&mut self, of: Origin, after: u64, upto: u64, confirmed: &BTreeSet<u64>) {
        if after >= upto {
            return;
        }
        let own: Vec<_> = self.numbers.range((of, after + 1)..=(of, upto)).map(|(place, key)| (*place, key.clone())).collect();
        for (place, key) in own.into_iter().filter(|(place, _)| !confirmed.contains(&place.1)) {
            let sequence = self.next_number();
            self.numbers.remove(&place);
            self.numbers.insert((self.origin, sequence), key.clone());
            let row = self.standing.get_mut(&key).expect("own records stand");
            (row.origin, row.sequence) = (self.origin, sequence);
        }
    }

    pub(super) fn lacks(&self, sent: &VersionVector) -> Vec<Numbered> {
        let rows = self.standing.values().chain(self.waiting.values());
        let mut lacked: Vec<_> =
            rows.filter(|row| row.sequence > sent.get(&row.origin) && row.sequence <= self.vector.get(&row.origin)).collect();
        lacked.sort_by_key(|row| (row.origin, row.sequence));
        lacked
            .into_iter()
            .map(|row| Numbered { origin: row.origin, sequence: row.sequence, record: row.raw.parse().expect("sound") })
            .collect()
    }

    pub(super) fn take_snapshot(&mut self, told: &BTreeSet<Vec<u8>>, covered: &VersionVector, horizon: &VersionVector, now_ms: u64) {
        for row in self.standing.values().cloned().collect::<Vec<_>>() {
            let anyone = self.acks.values().any(|(vector, _)| row.sequence <= vector.get(&row.origin));
            let is_recent = row.raw.stamp.time.ms() > now_ms.saturating_sub(KEPT_MS);
            let seen = SeenBy { other: row.sequence <= covered.get(&row.origin), copy: told.contains(&row.raw.key), anyone, is_recent };
            match fate(&row.raw, seen) {
                Fate::Stays => {}
                Fate::Goes => self.remove(&row.raw.key),
                Fate::Anew => {
                    let record = row.raw.parse().expect("sound");
                    self.write(&record.key, record.value, now_ms);
                }
            }
        }
        self.advance(covered);
        self.horizon.merge(horizon);
    }

    pub(super) fn purge(&mut self, others: impl Iterator<Item = usize>, now_ms: u64) {
        let nothing = (VersionVector::default(), 0);
        let acks: Vec<_> = others.map(|other| self.acks.get(&other).unwrap_or(&nothing)).collect();
        let members = acks.iter().map(|(vector, silent_ms)| (vector, Duration::from_millis(*silent_ms)));
        let Some(seen) = seen_by_all(&self.vector, members, LAPSE) else { return };
        let is_old = |row: &Row| row.raw.stamp.time.ms() <= now_ms.saturating_sub(KEPT_MS);
        let dead = |row: &&Row| row.raw.value.is_none() && row.sequence <= seen.get(&row.origin) && is_old(row);
        for row in self.standing.values().filter(dead).cloned().collect::<Vec<_>>() {
            self.remove(&row.raw.key);
            self.horizon.advance(row.origin, row.sequence);
        }
    }

    pub(super) fn is_live(&self, key: &[u8]) -> bool {
        self.standing.get(key).is_some_and(|row| row.raw.value.is_some())
    }

    /// Whether a push is here, believed or not.
    pub(super) fn holds(&self, key: &[u8]) -> bool {
        self.is_live(key) || self.waiting.values().any(|row| row.raw.key == key && row.raw.value.is_some())
    }

    /// Whether a delete is known here.
    pub(super) fn knows_dead(&self, key: &[u8]) -> bool {
        let waits = self.waiting.values().any(|row| row.raw.key == key && row.raw.value.is_none());
        waits || (!self.is_live(key) && self.buried.contains(key))
    }
}
