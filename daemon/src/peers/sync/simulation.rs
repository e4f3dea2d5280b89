//! Nodes that are maps, clocks and vectors, and take the same decisions as the store and the exchange do, in the same order: partitions, one-way ones
//! too, kills, wrong clocks, lost disks, restored copies, clones that run beside what they were copied from, and members that are away for longer than deletes are remembered.
//! Everything follows from a seed.
//!
//! What must hold at the end, when all is whole again: everyone knows the same and holds the same (I5); nothing that was deleted is there (I4); everything that
//! was acknowledged is there, unless every disk that had it was lost.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::Duration;

use larder_harness::{Random, for_seeds};
use larder_protocol::merge::{Verdict, judge};
use larder_protocol::name::{RepositoryName, Tag};
use larder_protocol::record::{Key, RawRecord, TagTarget, Value};

use super::*;
use disk::{Disk, Row};

mod disk;

const DRIFT_MS: u64 = 300_000;
const DAY_MS: u64 = 86_400_000;
const YEAR_MS: u64 = 365 * DAY_MS;
/// How old a tombstone is when it goes.
const KEPT_MS: u64 = DAY_MS / 2;
const LAPSE: Duration = Duration::from_millis(30 * DAY_MS);
/// Tags that are pushed again and again.
const NAMES: u64 = 3;

/// Nodes that are restored from a copy or cloned in one run, each once. One that is restored again and again, before it has met all others, can tell others under one
/// number what no vector shows; then what differs is found by its sums, and a delete may be undone.
const RESTORED_MAX: usize = 1;

type Place = (Origin, u64);

struct Node {
    disk: Disk,
    up: bool,
    /// How far its clock is ahead.
    skew_ms: u64,
    /// Which member it is: a clone is the same as another.
    member: usize,
    /// Whose knowledge of which own origin was looked at over the link that is up.
    checked: BTreeSet<(usize, Origin)>,
    /// The same since the start.
    looked_at: BTreeSet<(usize, Origin)>,
    /// The node that is linked with of each member.
    linked: BTreeMap<usize, usize>,
    copy: Option<Disk>,
}

impl Node {
    fn new(member: usize, disk: Disk) -> Self {
        let (checked, looked_at, linked) = (BTreeSet::new(), BTreeSet::new(), BTreeMap::new());
        Self { disk, up: true, skew_ms: 0, member, checked, looked_at, linked, copy: None }
    }

    fn begin(&mut self, mark: u64) {
        self.checked.clear();
        self.looked_at.clear();
        self.linked.clear();
        self.disk.start(mark);
    }

    fn start(&mut self, mark: u64) {
        if !std::mem::replace(&mut self.up, true) {
            self.begin(mark);
        }
    }
}

/// A stream on which one node pulls from another.
struct Pull {
    /// The puller's origin when it began.
    own: Origin,
    sent: VersionVector,
    is_first: bool,
    /// The number of the last list of its own starts that the peer has told.
    starts_told: u64,
    /// Lives of the reader's that the peer has told that they are mixed, and from where.
    mixed: BTreeMap<Origin, u64>,
    way: VecDeque<Update>,
    gather: Gather,
    snapshot: Option<(VersionVector, BTreeSet<Vec<u8>>)>,
    /// The same, as the reader has heard it.
    told_mixed: BTreeMap<Origin, u64>,
    /// Up to which own number the peer was sure to mean the same, and which further ones it does.
    sure: u64,
    confirmed: BTreeSet<u64>,
    /// What the peer has of the own starts.
    starts: Vec<Numbered>,
}

struct World {
    random: Random,
    now_ms: u64,
    /// Clones come last.
    nodes: Vec<Node>,
    members: usize,
    pulls: BTreeMap<(usize, usize), Pull>,
    /// From, to: nothing passes.
    cuts: BTreeSet<(usize, usize)>,
    incarnations: u64,
    marks: u64,
    restored: BTreeSet<usize>,
    things: u64,
    must_live: BTreeSet<Vec<u8>>,
    must_die: BTreeSet<Vec<u8>>,
    /// What happened, for whoever looks into a failure.
    story: Vec<String>,
}

impl World {
    fn new(seed: u64) -> Self {
        let mut random = Random::new(seed);
        let count = 3 + random.below(3) as usize;
        Self {
            random,
            now_ms: 50 * YEAR_MS,
            nodes: (0..count).map(|member| Node::new(member, Disk::new(member, 1))).collect(),
            members: count,
            pulls: BTreeMap::new(),
            cuts: BTreeSet::new(),
            incarnations: 1,
            marks: 0,
            restored: BTreeSet::new(),
            things: 0,
            must_live: BTreeSet::new(),
            must_die: BTreeSet::new(),
            story: Vec::new(),
        }
    }

    fn clock(&self, node: usize) -> u64 {
        self.now_ms + self.nodes[node].skew_ms
    }

    fn passes(&self, from: usize, to: usize) -> bool {
        self.nodes[from].up && self.nodes[to].up && !self.cuts.contains(&(from, to))
    }

    fn tag(name: &str, digest: &[u8]) -> (Key, Value) {
        let repository: RepositoryName = "a".parse().expect("name");
        let target = TagTarget { digest: larder_protocol::digest::Digest::sha256(digest), replaced: None };
        (Key::Tag(repository, name.parse::<Tag>().expect("tag")), Value::Tag(target))
    }

    /// A push: a thing of its own, and a name that had another meaning.
    fn push(&mut self, node: usize) {
        self.things += 1;
        let (clock, name) = (self.clock(node), self.random.below(NAMES));
        let disk = &mut self.nodes[node].disk;
        let (key, value) = Self::tag(&format!("thing-{}", self.things), &self.things.to_le_bytes());
        disk.write(&key, Some(value), clock);
        self.must_live.insert(key.to_bytes());
        self.story.push(format!("{node} pushes thing-{} as {:?}", self.things, brief(&disk.numbers, &key.to_bytes())));
        let (key, value) = Self::tag(&format!("name-{name}"), &self.things.to_le_bytes());
        disk.write(&key, Some(value), clock);
    }

    fn delete(&mut self, node: usize) {
        let (clock, disk) = (self.clock(node), &mut self.nodes[node].disk);
        let live: Vec<_> = disk.standing.values().filter(|row| row.raw.value.is_some() && row.raw.key.starts_with(b"a\0thing")).collect();
        if live.is_empty() {
            return;
        }
        let key = live[self.random.below(live.len() as u64) as usize].raw.key.clone();
        let place = disk.write(&Key::parse(3, &key).expect("a tag"), None, clock);
        self.must_live.remove(&key);
        self.story.push(format!("{node} deletes {} as {}/{}", key.escape_ascii(), place.0.incarnation, place.1));
        // One that was written anew elsewhere in the same moment, by a clock that is ahead, may outlive it.
        let rows = self.nodes.iter().flat_map(|node| node.disk.standing.get(&key).into_iter().chain(node.disk.waiting.values()));
        let newest = rows.filter(|row| row.raw.key == key).max_by_key(|row| row.raw.stamp).expect("the tombstone itself");
        if newest.raw.value.is_none() {
            self.must_die.insert(key);
        }
    }

    /// A node's disk is another one now: what nobody has any more is forgiven.
    fn lost(&mut self, node: usize) {
        self.pulls.retain(|(from, to), _| *from != node && *to != node);
        let Node { checked, looked_at, linked, .. } = &mut self.nodes[node];
        (*checked, *looked_at, *linked) = Default::default();
        let nodes = &self.nodes;
        self.must_live.retain(|key| nodes.iter().any(|node| node.disk.holds(key)));
        self.must_die.retain(|key| nodes.iter().any(|node| node.disk.knows_dead(key)));
    }

    fn next_incarnation(&mut self) -> u64 {
        self.incarnations += 1;
        self.incarnations
    }

    fn next_mark(&mut self) -> u64 {
        self.marks += 1;
        self.marks
    }

    /// Up to which of its own numbers `of` is sure that `peer` means the same.
    fn sure(&self, of: usize, peer: usize) -> u64 {
        let (disk, peer) = (&self.nodes[of].disk, self.nodes[peer].member);
        let (last, said) = (disk.vector.get(&disk.origin), disk.acks.get(&peer).map_or(0, |(vector, _)| vector.get(&disk.origin)));
        disk.starts.first().copied().unwrap_or(last).max(said).min(last)
    }

    /// A node hears how far a peer has come.
    fn hear(&mut self, node: usize, peer: usize, vector: &VersionVector) {
        let (own, member) = (self.nodes[node].disk.origin, self.nodes[peer].member);
        if vector.get(&own) > self.nodes[node].disk.vector.get(&own) {
            // What comes on its stream tells more.
            return;
        }
        let is_checked = self.nodes[node].checked.contains(&(member, own));
        let (known, silent_ms) = self.nodes[node].disk.acks.entry(member).or_default();
        known.merge(&vector.iter().filter(|(origin, _)| *origin != own || is_checked).collect());
        *silent_ms = 0;
    }

    fn begin_life(&mut self, node: usize, peer: usize, fork: Option<u64>, wrong: Option<u64>) {
        let (disk, member) = (&self.nodes[node].disk, self.nodes[peer].member);
        let said = disk.acks.get(&member).map_or(0, |(vector, _)| vector.get(&disk.origin));
        let sure = fork.or_else(|| fork_point(&disk.all_starts(), wrong)).unwrap_or(said);
        let sure = wrong.map_or(sure, |wrong| sure.min(wrong - 1));
        let own = self.nodes[node].disk.origin;
        self.end_lives(node, &[(own, sure)]);
    }

    /// A node begins another life when it turns out that two copies have written in one that is over.
    fn end_former_lives(&mut self, node: usize) {
        let disk = &self.nodes[node].disk;
        let ended = disk.former_lives();
        if !ended.is_empty() {
            self.end_lives(node, &ended);
        }
    }

    fn end_lives(&mut self, node: usize, ended: &[(Origin, u64)]) {
        let (incarnation, clock) = (self.next_incarnation(), self.clock(node));
        let sure: Vec<_> = ended.iter().map(|(life, sure)| (life.incarnation, sure)).collect();
        self.story.push(format!("{node} begins life {incarnation}; sure of {sure:?}"));
        self.nodes[node].disk.end_lives(ended, incarnation, clock);
    }

    /// A node is linked with one at a time of those that are the same member.
    fn link(&mut self, node: usize, peer: usize) {
        let member = self.nodes[peer].member;
        if self.nodes[node].linked.insert(member, peer) == Some(peer) {
            return;
        }
        let nodes = &self.nodes;
        self.pulls.retain(|(from, to), _| {
            let other = if *from == node { *to } else { *from };
            !(*from == node || *to == node) || other == peer || nodes[other].member != member
        });
        self.nodes[node].checked.retain(|(looked_at, _)| *looked_at != member);
    }

    fn open(&mut self, from: usize, to: usize) {
        let member = self.nodes[from].member;
        let is_same = member == self.nodes[to].member;
        if is_same || !self.passes(from, to) || !self.passes(to, from) || self.pulls.contains_key(&(from, to)) {
            return;
        }
        self.link(from, to);
        self.link(to, from);
        let own = self.nodes[to].disk.origin;
        let mut ours = self.nodes[to].disk.known(|origin| !self.nodes[to].checked.contains(&(member, *origin)));
        let sure = self.sure(to, from);
        ours.lower(&own, sure);
        self.hear(from, to, &ours);
        // The other says what it knows in its own request; before it has caught up it is not listened to.
        let (theirs, here) = (&self.nodes[from].disk, &self.nodes[to].disk);
        if !theirs.vector.covers(&here.horizon()) && may_wait(to, from, here.vector.covers(&theirs.horizon())) {
            return;
        }
        // Nothing is applied in parts here: see the last test of `tests`.
        let gather = Gather::with_limit(usize::MAX);
        self.pulls.insert(
            (from, to),
            Pull {
                own,
                sent: ours,
                is_first: true,
                starts_told: 0,
                mixed: BTreeMap::new(),
                told_mixed: BTreeMap::new(),
                way: VecDeque::new(),
                gather,
                snapshot: None,
                sure,
                confirmed: BTreeSet::new(),
                starts: Vec::new(),
            },
        );
    }

    fn send(&mut self, peer: usize, to: usize) {
        let (is_cut, reader) = (!self.passes(peer, to), self.nodes[to].disk.origin.node);
        let (Some(pull), disk) = (self.pulls.get_mut(&(peer, to)), &self.nodes[peer].disk) else { return };
        // A copy of the reader's folder has written too: it is told what is known behind the place.
        let mixed = disk.mixed.iter().filter(|(life, sure)| life.node == reader && pull.mixed.get(life).is_none_or(|told| *sure < told));
        let mixed: Vec<_> = mixed.map(|(life, sure)| (*life, *sure)).collect();
        let is_news = !mixed.is_empty();
        if is_cut || (!pull.is_first && pull.sent.covers(&disk.vector) && !is_news) {
            return;
        }
        if !pull.sent.covers(&disk.horizon()) {
            if !pull.is_first {
                return drop(self.pulls.remove(&(peer, to)));
            }
            pull.way.push_back(Update::Snapshot(disk.horizon()));
            pull.way.push_back(Update::Mixed(disk.mixed.iter().map(|(life, sure)| (*life, *sure)).collect()));
            pull.sent = VersionVector::default();
        }
        let mut from = pull.sent.clone();
        if pull.is_first {
            let starts: Vec<_> = disk.starts_of(&reader).iter().map(NumberedRecord::from).collect();
            pull.way.extend((!starts.is_empty()).then_some(Update::Records(starts)));
        }
        if is_news {
            mixed.iter().for_each(|(life, sure)| from.lower(life, *sure));
            pull.way.push_back(Update::Mixed(mixed.iter().copied().collect()));
            pull.way.extend(disk.evidence_of(&reader).iter().map(|it| Update::Records(vec![NumberedRecord::from(it)])));
            pull.mixed.extend(mixed);
        }
        if let Some(starts) = disk.own_starts().filter(|it| it.sequence > std::mem::replace(&mut pull.starts_told, it.sequence)) {
            let is_covered = starts.sequence <= pull.sent.get(&starts.origin);
            pull.way.extend(is_covered.then(|| Update::Records(vec![NumberedRecord::from(&starts)])));
        }
        pull.way.extend(disk.lacks(&from).iter().map(|it| Update::Records(vec![NumberedRecord::from(it)])));
        pull.way.push_back(Update::Caught(disk.vector.beyond(&from)));
        pull.sent.merge(&disk.vector);
        pull.is_first = false;
    }

    /// The reader takes one message; the same steps as `exchange` takes.
    fn receive(&mut self, from: usize, to: usize) {
        let clock = self.clock(to);
        let Some(mut pull) = self.pulls.remove(&(from, to)) else { return };
        if !self.passes(from, to) {
            return drop(self.pulls.insert((from, to), pull));
        }
        let Some(update) = pull.way.pop_front() else { return drop(self.pulls.insert((from, to), pull)) };
        let covered = match &update {
            Update::Caught(vector) => {
                self.hear(to, from, vector);
                vector.clone()
            }
            Update::Snapshot(horizon) => {
                pull.snapshot = Some((horizon.clone(), BTreeSet::new()));
                VersionVector::default()
            }
            Update::Mixed(lives) => {
                pull.told_mixed.extend(lives.iter());
                VersionVector::default()
            }
            _ => VersionVector::default(),
        };
        if self.nodes[to].disk.origin != pull.own {
            // Another life: the stream is opened again, with what is known in it.
            return;
        }
        if let Some(mut part) = pull.gather.take(update).expect("sound") {
            let disk = &mut self.nodes[to].disk;
            let returned = part.returned(&pull.own);
            if let Some((_, told)) = &mut pull.snapshot {
                told.extend(part.records.iter().chain(&returned).map(|it| it.record.key.to_bytes()));
            }
            let is_more = covered.get(&pull.own) > disk.vector.get(&pull.own);
            let wrong = disk.first_wrong(&returned);
            let told = returned.iter().chain(&part.records).filter(|it| matches!(it.record.key, Key::Starts(_)));
            pull.starts.extend(told.cloned());
            // What the peer said meanwhile may be what another copy of this folder has told others.
            let sure = disk.starts.first().map_or(pull.sure, |first| pull.sure.min(*first));
            let fork = disk.fork(&pull.starts, sure, covered.get(&pull.own));
            let fork = fork.into_iter().chain(pull.told_mixed.get(&pull.own).copied()).min();
            if wrong.is_some() || is_more || fork.is_some() {
                return self.begin_life(to, from, fork, wrong);
            }
            disk.mix_as_told(&pull.told_mixed, &covered);
            pull.confirmed.extend(returned.iter().map(|it| it.sequence));
            let agreed = disk.agreed(&part.records, &covered);
            let (advance, nothing) = (part.advance.clone(), VersionVector::default());
            part.trim(&disk.known(|_| true));
            let snapshot = pull.snapshot.take();
            disk.apply(part.records, if snapshot.is_some() { &nothing } else { &advance }, clock);
            self.end_former_lives(to);
            let (members, member) = (self.members, self.nodes[from].member);
            let is_first = !self.nodes[to].checked.contains(&(member, pull.own));
            let disk = &mut self.nodes[to].disk;
            if is_first {
                // ORDER: before the snapshot asks by number. What the peer counts as known and has not sent back was superseded there, or is not what it knows.
                let after = disk.starts.last().copied().unwrap_or(pull.sure).max(pull.sure);
                disk.renumber(pull.own, (after, covered.get(&pull.own)), &pull.confirmed, clock);
            }
            if let Some((horizon, told)) = snapshot {
                disk.take_snapshot(&told, [&covered, &agreed, &horizon]);
                self.story.push(format!("{to} takes a snapshot of {from}"));
            }
            let node = &mut self.nodes[to];
            let looked_at = node.disk.unsure.keys().chain([&pull.own]).map(|origin| (member, *origin));
            node.checked.extend(looked_at.clone());
            node.looked_at.extend(looked_at);
            if (0..members).all(|other| other == node.member || node.looked_at.contains(&(other, pull.own))) {
                node.disk.starts.clear();
            }
            if self.passes(to, from) {
                let vector = self.nodes[to].disk.vector.clone();
                self.hear(from, to, &vector);
            }
        }
        self.pulls.insert((from, to), pull);
    }

    /// A copy of a node's folder runs beside it.
    fn clone_node(&mut self, node: usize) {
        self.restored.insert(node);
        let marks = [self.next_mark(), self.next_mark()];
        let mut clone = Node::new(self.nodes[node].member, self.nodes[node].disk.clone());
        clone.begin(marks[0]);
        self.pulls.retain(|(from, to), _| *from != node && *to != node);
        self.nodes[node].begin(marks[1]);
        let disk = &clone.disk;
        self.story.push(format!(
            "{} is a clone of {node}, in life {} at {}",
            self.nodes.len(),
            disk.origin.incarnation,
            disk.vector.get(&disk.origin)
        ));
        self.nodes.push(clone);
    }

    fn days(&mut self, days: u64) {
        self.story.push(format!("{days} days pass; cuts {:?}", self.cuts));
        // Who was connected for a day has heard everything, and has compared it a thousand times.
        self.pulls.clear();
        self.settle(2);
        self.mend();
        self.now_ms += days * DAY_MS;
        for node in (0..self.nodes.len()).filter(|node| self.nodes[*node].up).collect::<Vec<_>>() {
            for other in (0..self.members).filter(|other| *other != self.nodes[node].member).collect::<Vec<_>>() {
                let is_there =
                    (0..self.nodes.len()).any(|it| self.nodes[it].member == other && self.passes(node, it) && self.passes(it, node));
                let (_, silent_ms) = self.nodes[node].disk.acks.entry(other).or_default();
                *silent_ms = if is_there { 0 } else { *silent_ms + days * DAY_MS };
            }
        }
    }

    fn step(&mut self) {
        let count = self.nodes.len() as u64;
        let (a, b) = (self.random.below(count) as usize, self.random.below(count) as usize);
        let is_up = self.nodes[a].up;
        self.now_ms += self.random.below(10_000);
        match self.random.below(40) {
            0..=3 if is_up => self.push(a),
            4..=5 if is_up => self.delete(a),
            6..=11 => self.open(a, b),
            12..=15 => self.pulls.keys().copied().collect::<Vec<_>>().into_iter().for_each(|(from, to)| self.send(from, to)),
            16 => drop(self.pulls.remove(&(a, b))),
            17 if a != b => drop(self.cuts.insert((a, b))),
            18 => drop(self.cuts.pop_first()),
            19 if self.random.chance(30) => self.cuts.clear(),
            20 if self.random.chance(30) => {
                self.nodes[a].up = false;
                self.pulls.retain(|(from, to), _| *from != a && *to != a);
            }
            21 => {
                let mark = self.next_mark();
                self.nodes[a].start(mark);
            }
            22 if self.random.chance(30) => self.nodes[a].skew_ms = [0, 1000, 2 * DRIFT_MS, YEAR_MS][self.random.below(4) as usize],
            23 => self.nodes[a].skew_ms = 0,
            // A clone whose disk is lost has nothing to tell.
            24 if self.random.chance(20) && a < self.members => {
                let incarnation = self.next_incarnation();
                self.story.push(format!("{a} loses its disk, and begins life {incarnation}"));
                self.nodes[a].disk = Disk::new(self.nodes[a].member, incarnation);
                self.lost(a);
            }
            25 => self.nodes[a].copy = Some(self.nodes[a].disk.clone()),
            26 if self.random.chance(40) && self.restored.len() < RESTORED_MAX => {
                if let Some(copy) = self.nodes[a].copy.clone().filter(|_| self.restored.insert(a)) {
                    self.story.push(format!("{a} is restored to life {} at {}", copy.origin.incarnation, copy.vector.get(&copy.origin)));
                    self.nodes[a].disk = copy;
                    let mark = self.next_mark();
                    self.nodes[a].begin(mark);
                    self.lost(a);
                }
            }
            31 if self.random.chance(30) && self.restored.len() < RESTORED_MAX => self.clone_node(a),
            27 if self.random.chance(30) => {
                let days = 1 + self.random.below(40);
                self.days(days);
            }
            28..=29 if is_up => {
                let before = self.nodes[a].disk.standing.len();
                let clock = self.clock(a);
                let own = self.nodes[a].member;
                self.nodes[a].disk.purge((0..self.members).filter(|other| *other != own), clock);
                if self.nodes[a].disk.standing.len() < before {
                    self.story.push(format!("{a} forgets what was deleted"));
                }
            }
            30 if is_up => {
                let clock = self.clock(a);
                self.nodes[a].disk.release(clock);
            }
            _ => {
                let pulls: Vec<_> = self.pulls.keys().copied().collect();
                if !pulls.is_empty() {
                    let (from, to) = pulls[self.random.below(pulls.len() as u64) as usize];
                    self.receive(from, to);
                }
            }
        }
    }

    /// All is whole, clocks are right, and then the future comes.
    fn heal(&mut self) {
        self.cuts.clear();
        self.pulls.clear();
        for node in &mut self.nodes {
            self.marks += 1;
            node.start(self.marks);
            node.skew_ms = 0;
        }
        self.settle(2);
        self.now_ms += 3 * YEAR_MS;
        self.settle(4 * self.nodes.len());
        // Clones are found out, and stopped.
        self.pulls.clear();
        self.nodes.truncate(self.members);
        let nodes = &self.nodes;
        self.must_die.retain(|key| nodes.iter().any(|node| node.disk.knows_dead(key)));
    }

    /// Streams between all that reach each other bring what they have, some times over.
    fn settle(&mut self, rounds: usize) {
        let count = self.nodes.len();
        for _ in 0..rounds {
            for from in 0..count {
                for to in 0..count {
                    self.open(from, to);
                    while let Some(pull) = self.pulls.get(&(from, to)) {
                        if pull.way.is_empty() {
                            let before = pull.sent.clone();
                            self.send(from, to);
                            if self.pulls[&(from, to)].sent == before && self.pulls[&(from, to)].way.is_empty() {
                                break;
                            }
                        }
                        if !self.passes(from, to) {
                            break;
                        }
                        self.receive(from, to);
                    }
                    self.pulls.remove(&(from, to));
                }
                let clock = self.clock(from);
                self.nodes[from].disk.release(clock);
            }
        }
    }

    /// What the sums and the reconciliation do between two nodes that know the same: each takes what the other has; what bears a number that
    /// is taken here gets one of this node's.
    fn mend(&mut self) {
        let count = self.nodes.len();
        for (from, to) in (0..count * count).map(|pair| (pair / count, pair % count)).filter(|(from, to)| from != to) {
            let is_alike = self.nodes[from].disk.vector == self.nodes[to].disk.vector;
            if !is_alike || self.nodes[from].member == self.nodes[to].member || !self.passes(from, to) || !self.passes(to, from) {
                continue;
            }
            let clock = self.clock(to);
            let rows: Vec<_> = self.nodes[from].disk.standing.values().cloned().collect();
            let disk = &mut self.nodes[to].disk;
            for row in rows {
                let place = (row.origin, row.sequence);
                disk.compare_starts(&row);
                if disk.bury(&row.raw, &place, clock) {
                    continue;
                }
                match judge(&row.raw, disk.here(&row.raw, &place), false) {
                    Verdict::Stands => {
                        let _ = disk.clock.observe(row.raw.stamp.time, clock, DRIFT_MS);
                        disk.stand_under_a_sure_number(row, clock);
                    }
                    Verdict::Forked if disk.standing.get(&row.raw.key).is_none_or(|standing| row.raw.beats(&standing.raw)) => {
                        let sequence = disk.next_number(clock);
                        disk.stand(Row { origin: disk.origin, sequence, raw: row.raw });
                    }
                    _ => {}
                }
            }
            self.end_former_lives(to);
        }
    }

    fn check(&self, seed: u64) {
        let live = |node: &Node| -> BTreeMap<Vec<u8>, RawRecord> {
            let live = node.disk.standing.iter().filter(|(_, row)| row.raw.value.is_some());
            live.map(|(key, row)| (key.clone(), row.raw.clone())).collect()
        };
        let first = live(&self.nodes[0]);
        for (index, node) in self.nodes.iter().enumerate() {
            assert_eq!(node.disk.vector, self.nodes[0].disk.vector, "seed {seed}: {index} knows something else\n{}", self.story.join("\n"));
            let other = live(node);
            let differ: Vec<_> = first.keys().chain(other.keys()).filter(|key| first.get(*key) != other.get(*key)).collect();
            let differ: BTreeSet<_> = differ.into_iter().map(|key| key.escape_ascii().to_string()).collect();
            assert!(differ.is_empty(), "seed {seed}: {index} holds something else (I5): {differ:?}\n{}", self.story.join("\n"));
            assert!(node.disk.waiting.is_empty(), "seed {seed}: something waits for ever");
        }
        for key in &self.must_live {
            assert!(first.contains_key(key), "seed {seed}: {} was acknowledged and is lost\n{}", key.escape_ascii(), self.story.join("\n"));
        }
        for key in &self.must_die {
            assert!(
                !first.contains_key(key),
                "seed {seed}: {} was deleted and is back (I4)\n{}",
                key.escape_ascii(),
                self.story.join("\n")
            );
        }
    }
}

fn brief(numbers: &BTreeMap<Place, Vec<u8>>, key: &[u8]) -> Option<(u64, u64)> {
    numbers.iter().find(|(_, known)| *known == key).map(|(place, _)| (place.0.incarnation, place.1))
}

#[test]
fn i4_i5_nothing_is_lost_and_nothing_comes_back() {
    for_seeds(|seed| {
        let mut world = World::new(seed);
        let steps = 200 + world.random.below(600);
        for _ in 0..steps {
            world.step();
        }
        world.heal();
        for _ in 0..3 {
            world.mend();
            world.settle(4 * world.nodes.len());
        }
        world.check(seed);
    });
}
