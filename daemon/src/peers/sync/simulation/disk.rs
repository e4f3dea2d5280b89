//! What one node of the simulation keeps, and the decisions it takes about it.

use std::collections::{BTreeMap, BTreeSet};

use larder_protocol::merge::{Fate, Here, SeenBy, Verdict, fate, is_foreign, is_renumbered, judge};
use larder_protocol::record::{Key, RawRecord, Value};
use larder_protocol::stamp::{Clock, NodeId, Stamp};
use larder_protocol::starts::{Known, Start, Starts, fork, number_in};

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
    horizon: VersionVector,
    /// What each other one knows, and for how long it was silent.
    pub(super) acks: BTreeMap<usize, (VersionVector, u64)>,
    /// The last number at each start since which not every other node was looked at: up to one of them the folder is what it was.
    pub(super) starts: BTreeSet<u64>,
    /// The last start, when nothing was written since.
    pub(super) fresh: Option<Start>,
    /// Earlier lives that another copy wrote in, and up to where they are sure.
    pub(super) unsure: BTreeMap<Origin, u64>,
    /// Origins that wrote twice under one number: behind which one nothing is sure.
    pub(super) forks: BTreeMap<Origin, u64>,
    /// What was found under such numbers.
    pub(super) evidence: Vec<Row>,
    /// Lives whose starts show that two copies wrote them, and up to where both are the same.
    pub(super) mixed: BTreeMap<Origin, u64>,
    /// The stamps of tombstones that are purged.
    pub(super) graves: BTreeMap<Vec<u8>, Stamp>,
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
            fresh: None,
            unsure: BTreeMap::new(),
            forks: BTreeMap::new(),
            evidence: Vec::new(),
            mixed: BTreeMap::new(),
            graves: BTreeMap::new(),
            buried: BTreeSet::new(),
        }
    }

    /// The node starts.
    pub(super) fn start(&mut self, mark: u64) {
        let after = self.vector.get(&self.origin);
        self.starts.insert(after);
        self.fresh = Some(Start { after, mark });
    }

    /// The starts of a life as far as they are known here.
    fn told(&self, of: &Origin) -> Starts {
        let key = Key::Starts(*of).to_bytes();
        let rows = self.standing.get(&key).into_iter().chain(self.waiting.values().filter(|row| row.raw.key == key));
        match rows.max_by_key(|row| row.raw.stamp).and_then(|row| row.raw.parse().expect("sound").value) {
            Some(Value::Starts(told)) => told,
            _ => Starts::default(),
        }
    }

    /// The starts of this life.
    fn life(&self) -> Starts {
        self.fresh.iter().fold(self.told(&self.origin), |told, start| told.with(*start))
    }

    /// The numbers at the starts of this life, settled or not.
    pub(super) fn all_starts(&self) -> BTreeSet<u64> {
        self.starts.iter().copied().chain(self.life().0.iter().map(|start| start.after)).collect()
    }

    /// Where this folder and what a peer has of its life part, as far as starts tell.
    pub(super) fn fork(&self, told: &[Numbered], sure: u64, covered: u64) -> Option<u64> {
        fork(&self.life(), &Known { sure, covered, lists: lists(told, &self.origin) })
    }

    /// Two lists of the starts of one life show that it was written twice.
    pub(super) fn compare_starts(&mut self, row: &Row) {
        let Ok(larder_protocol::record::Record { key: Key::Starts(life), value: Some(Value::Starts(list)), .. }) = row.raw.parse() else {
            return;
        };
        let number = number_in(&life, &row.origin, row.sequence);
        let known = Known { sure: 0, covered: number.unwrap_or(u64::MAX), lists: vec![(number, list)] };
        let fork = fork(&self.told(&life), &known).filter(|fork| *fork < self.vector.get(&life) && life != self.origin);
        if let Some(fork) = fork {
            self.mix(life, fork);
        }
    }

    /// Behind a number of a life two copies have written different things.
    fn mix(&mut self, life: Origin, sure: u64) {
        let known = self.mixed.entry(life).or_insert(u64::MAX);
        *known = (*known).min(sure);
    }

    /// What a peer covers, but for what it means something else by than this node does.
    pub(super) fn agreed(&self, records: &[Numbered], covered: &VersionVector) -> VersionVector {
        let mut agreed = covered.clone();
        self.mixed.iter().for_each(|(origin, sure)| agreed.lower(origin, *sure));
        for (origin, covered) in covered.iter().filter(|(origin, _)| *origin != self.origin) {
            let known = Known { sure: 0, covered, lists: lists(records, &origin) };
            if let Some(fork) = fork(&self.told(&origin), &known) {
                agreed.lower(&origin, fork);
            }
        }
        agreed
    }

    /// The next own number. The first one after a start that is not settled tells of the starts.
    pub(super) fn next_number(&mut self, now_ms: u64) -> u64 {
        let life = self.life();
        if self.fresh.take().is_some() {
            self.write(&Key::Starts(self.origin), Some(Value::Starts(life)), now_ms);
        }
        let sequence = self.vector.get(&self.origin) + 1;
        self.vector.advance(self.origin, sequence);
        sequence
    }

    pub(super) fn write(&mut self, key: &Key, value: Option<Value>, now_ms: u64) -> Place {
        let stamp = Stamp { time: self.clock.tick(now_ms), node: self.origin.node };
        let sequence = self.next_number(now_ms);
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

    /// Lets a record stand that comes; under a number of this node's, when another copy of its folder may mean something else by the one that it has.
    pub(super) fn stand_under_a_sure_number(&mut self, mut row: Row, now_ms: u64) {
        if self.unsure.get(&row.origin).is_some_and(|sure| row.sequence > *sure) {
            let sequence = self.next_number(now_ms);
            (row.origin, row.sequence) = (self.origin, sequence);
        }
        self.stand(row);
    }

    /// A record that stands gets the number that its writer gave it in a later life.
    fn take_number(&mut self, row: &Row) {
        let standing =
            self.standing.get_mut(&row.raw.key).filter(|standing| standing.raw == row.raw && is_renumbered(&standing.origin, &row.origin));
        if let Some(standing) = standing {
            self.numbers.remove(&(standing.origin, standing.sequence));
            self.numbers.insert((row.origin, row.sequence), row.raw.key.clone());
            (standing.origin, standing.sequence) = (row.origin, row.sequence);
        }
    }

    pub(super) fn remove(&mut self, key: &[u8]) {
        if let Some(row) = self.standing.get(key).filter(|row| row.raw.value.is_none()) {
            self.graves.insert(key.to_vec(), row.raw.stamp);
        }
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

    /// Tells the purged tombstone of a record again when the record comes back; whether it did.
    pub(super) fn bury(&mut self, raw: &RawRecord, place: &Place, now_ms: u64) -> bool {
        let grave = self.graves.get(&raw.key).filter(|grave| raw.value.is_some() && **grave > raw.stamp).copied();
        let Some(stamp) = grave.filter(|_| judge(raw, self.here(raw, place), false) == Verdict::Stands) else { return false };
        let sequence = self.next_number(now_ms);
        self.stand(Row { origin: self.origin, sequence, raw: RawRecord { value: None, stamp, ..raw.clone() } });
        true
    }

    pub(super) fn apply(&mut self, records: Vec<Numbered>, advance: &VersionVector, now_ms: u64) {
        for numbered in records {
            let (raw, place) = (numbered.record.to_raw(), (numbered.origin, numbered.sequence));
            if numbered.origin == self.origin {
                continue;
            }
            let is_far = self.clock.observe(raw.stamp.time, now_ms, DRIFT_MS).is_err();
            let row = Row { origin: place.0, sequence: place.1, raw };
            self.compare_starts(&row);
            if self.bury(&row.raw, &place, now_ms) {
                continue;
            }
            match judge(&row.raw, self.here(&row.raw, &place), is_far) {
                Verdict::Stands => self.stand_under_a_sure_number(row, now_ms),
                Verdict::Waits => {
                    self.numbers.insert(place, row.raw.key.clone());
                    self.waiting.insert(place, row);
                }
                Verdict::Forked => {
                    let sure = self.forks.entry(place.0).or_insert(u64::MAX);
                    *sure = (*sure).min(place.1 - 1);
                    self.mix(place.0, self.told(&place.0).before(place.1));
                    let both = self.at_number(&place).cloned().into_iter().chain([row]);
                    self.evidence.extend(both.filter(|row| !self.evidence.contains(row)).collect::<Vec<_>>());
                }
                Verdict::Known => self.take_number(&row),
                Verdict::Lost => {}
            }
        }
        self.advance(advance);
    }

    /// A peer that covers so much tells of lives that are mixed.
    pub(super) fn mix_as_told(&mut self, told: &BTreeMap<Origin, u64>, covered: &VersionVector) {
        let own = self.origin;
        for (life, sure) in told.iter().filter(|(life, _)| **life != own) {
            if self.vector.get(life).max(covered.get(life)) > 0 {
                self.mix(*life, *sure);
            }
        }
    }

    /// Lives of this node that are over, in which it turns out that two copies have written, and up to where each is sure.
    pub(super) fn former_lives(&self) -> Vec<(Origin, u64)> {
        let is_former = |life: &Origin| life.node == self.origin.node && *life < self.origin;
        let is_news = |(life, sure): &(&Origin, &u64)| is_former(life) && self.unsure.get(life).is_none_or(|known| *sure < known);
        self.mixed.iter().filter(is_news).map(|(life, sure)| (*life, *sure)).collect()
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
            if !self.bury(&row.raw, &(row.origin, row.sequence), now_ms) {
                self.stand_under_a_sure_number(row, now_ms);
            }
        }
    }

    /// The first number under which a peer has something that was not written here.
    pub(super) fn first_wrong(&self, returned: &[Numbered]) -> Option<u64> {
        let own = (self.vector.get(&self.origin), self.horizon.get(&self.origin));
        let wrong = returned.iter().filter(|numbered| {
            let (raw, place) = (numbered.record.to_raw(), (numbered.origin, numbered.sequence));
            let is_twice = returned.iter().any(|other| other.sequence == numbered.sequence && other.record != numbered.record);
            is_twice || is_foreign(&raw, numbered.sequence, self.here(&raw, &place), own)
        });
        wrong.map(|numbered| numbered.sequence).min()
    }

    /// Ends lives, each behind the number up to which it is sure, and begins another one.
    pub(super) fn end_lives(&mut self, ended: &[(Origin, u64)], incarnation: u64, now_ms: u64) {
        let lists: Vec<_> = ended.iter().map(|(life, sure)| (*life, *sure, self.told(life))).collect();
        self.origin = Origin { node: self.origin.node, incarnation };
        self.fresh = None;
        for (life, sure) in ended {
            let last = self.vector.get(life);
            let sure = last.min(*sure);
            self.renumber(*life, (sure, u64::MAX), &BTreeSet::new(), now_ms);
            self.vector.lower(life, sure);
            self.unsure.insert(*life, sure);
        }
        self.starts.clear();
        for (life, sure, list) in lists {
            // Whoever knows of that life hears that it is mixed.
            let list = list.with(Start { after: sure, mark: incarnation << 32 });
            self.write(&Key::Starts(life), Some(Value::Starts(list)), now_ms);
        }
    }

    /// Gives own records new numbers, but for those that are confirmed.
    pub(super) fn renumber(&mut self, of: Origin, (after, upto): (u64, u64), confirmed: &BTreeSet<u64>, now_ms: u64) {
        if after >= upto {
            return;
        }
        let own: Vec<_> = self.numbers.range((of, after + 1)..=(of, upto)).map(|(place, key)| (*place, key.clone())).collect();
        let stands = |place: &Place, key: &Vec<u8>| self.standing.get(key).is_some_and(|row| (row.origin, row.sequence) == *place);
        let own: Vec<_> = own.into_iter().filter(|(place, key)| !confirmed.contains(&place.1) && stands(place, key)).collect();
        for (place, key) in own {
            let sequence = self.next_number(now_ms);
            self.numbers.remove(&place);
            self.numbers.insert((self.origin, sequence), key.clone());
            let row = self.standing.get_mut(&key).expect("it stands");
            (row.origin, row.sequence) = (self.origin, sequence);
        }
    }

    /// The starts of all lives of a node, as they stand here.
    pub(super) fn starts_of(&self, node: &NodeId) -> Vec<Numbered> {
        let rows = self.standing.values().chain(self.waiting.values()).filter_map(|row| Some((row, row.raw.parse().ok()?)));
        let rows = rows.filter(|(_, record)| matches!(&record.key, Key::Starts(life) if life.node == *node));
        rows.map(|(row, record)| Numbered { origin: row.origin, sequence: row.sequence, record }).collect()
    }

    /// What shows a node that another copy of its folder has written.
    pub(super) fn evidence_of(&self, node: &NodeId) -> Vec<Numbered> {
        let rows = self.evidence.iter().filter(|row| row.origin.node == *node);
        rows.map(|row| Numbered { origin: row.origin, sequence: row.sequence, record: row.raw.parse().expect("sound") }).collect()
    }

    /// The record of the own starts.
    pub(super) fn own_starts(&self) -> Option<Numbered> {
        let row = self.standing.get(&Key::Starts(self.origin).to_bytes())?;
        Some(Numbered { origin: row.origin, sequence: row.sequence, record: row.raw.parse().expect("sound") })
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

    /// Ends the taking of a snapshot: `agreed` is what its sender covers and means the same by.
    pub(super) fn take_snapshot(&mut self, told: &BTreeSet<Vec<u8>>, [covered, agreed, horizon]: [&VersionVector; 3]) {
        let goes = |row: &Row| {
            let seen = SeenBy { other: row.sequence <= agreed.get(&row.origin), copy: told.contains(&row.raw.key) };
            fate(&row.raw, seen) == Fate::Goes
        };
        for row in self.standing.values().filter(|row| goes(row)).cloned().collect::<Vec<_>>() {
            self.remove(&row.raw.key);
        }
        for place in self.waiting.iter().filter(|(_, row)| goes(row)).map(|(place, _)| *place).collect::<Vec<_>>() {
            self.waiting.remove(&place);
            self.numbers.remove(&place);
        }
        // It is the whole state, also where something was written twice.
        self.vector.merge(&covered.iter().filter(|(origin, _)| *origin != self.origin).collect());
        self.horizon.merge(horizon);
    }

    /// Up to where tombstones were purged, as far as all mean the same by the numbers.
    pub(super) fn horizon(&self) -> VersionVector {
        let mut horizon = self.horizon.clone();
        self.mixed.iter().chain(&self.unsure).for_each(|(life, sure)| horizon.lower(life, *sure));
        horizon
    }

    pub(super) fn purge(&mut self, others: impl Iterator<Item = usize>, now_ms: u64) {
        let nothing = (VersionVector::default(), 0);
        let acks: Vec<_> = others.map(|other| self.acks.get(&other).unwrap_or(&nothing)).collect();
        let members = acks.iter().map(|(vector, silent_ms)| (vector, Duration::from_millis(*silent_ms)));
        let Some(seen) = seen_by_all(&self.vector, members, LAPSE) else { return };
        let is_old = |row: &Row| row.raw.stamp.time.ms() <= now_ms.saturating_sub(KEPT_MS);
        let is_sure = |row: &Row| self.mixed.get(&row.origin).is_none_or(|sure| row.sequence <= *sure);
        let dead = |row: &&Row| row.raw.value.is_none() && row.sequence <= seen.get(&row.origin) && is_old(row) && is_sure(row);
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

fn lists(records: &[Numbered], of: &Origin) -> Vec<(Option<u64>, Starts)> {
    let lists = records.iter().filter_map(|numbered| match (&numbered.record.key, &numbered.record.value) {
        (Key::Starts(life), Some(Value::Starts(list))) if life == of => {
            Some((number_in(life, &numbered.origin, numbered.sequence), list.clone()))
        }
        _ => None,
    });
    lists.collect()
}
