//! Nodes that are a map and a vector, joined by streams that break: whatever happens on the way, they agree in the end.
//! Everything follows from a seed, which is printed when a run fails.

use std::collections::{BTreeMap, VecDeque};

use larder_protocol::record::{Key, Record, Value};
use larder_protocol::stamp::{HybridTime, NodeId, Stamp};

use super::*;

const KIND: u16 = 900;
/// Keys that are written again and again, as tags are.
const NAMES: u64 = 3;

/// SplitMix64: small, and the same everywhere.
struct Random(u64);

impl Random {
    fn below(&mut self, n: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((z ^ (z >> 31)) % n as u64) as usize
    }
}

/// A store as sync sees it: what stands, by key; what is known; stamps from `refuses` on are refused for now.
#[derive(Clone)]
struct Model {
    origin: Origin,
    standing: BTreeMap<Vec<u8>, Numbered>,
    vector: VersionVector,
    refuses: u64,
}

impl Model {
    fn new(node: u8) -> Self {
        let origin = Origin { node: NodeId([node; 32]), incarnation: 1 };
        Self { origin, standing: BTreeMap::new(), vector: VersionVector::default(), refuses: u64::MAX }
    }

    /// A push: a thing of its own that stays, and a name for it that may have had another meaning. One commit.
    fn push(&mut self, time: u64, name: u64) {
        let thing = format!("thing/{time}");
        self.write(time, thing.clone().into_bytes(), thing.clone().into_bytes());
        self.write(time + 1, format!("name/{name}").into_bytes(), thing.into_bytes());
    }

    fn write(&mut self, time: u64, key: Vec<u8>, value: Vec<u8>) {
        let sequence = self.vector.get(&self.origin) + 1;
        self.vector.advance(self.origin, sequence);
        let stamp = Stamp { time: HybridTime(time), node: self.origin.node };
        let record = Record { key: Key::Unknown { kind: KIND, key }, value: Some(Value::Unknown(value)), stamp };
        self.stand(Numbered { origin: self.origin, sequence, record });
    }

    fn stand(&mut self, numbered: Numbered) {
        let key = numbered.record.key.to_bytes();
        if self.standing.get(&key).is_none_or(|old| numbered.record.beats(&old.record)) {
            self.standing.insert(key, numbered);
        }
    }

    fn lacks(&self, theirs: &VersionVector) -> Vec<Numbered> {
        let mut lacked: Vec<_> = self.standing.values().filter(|it| it.sequence > theirs.get(&it.origin)).cloned().collect();
        lacked.sort_by_key(|it| (it.origin, it.sequence));
        lacked
    }

    /// As the store does it: what is refused keeps its origin's vector back, in this batch.
    fn apply(&mut self, records: Vec<Numbered>, advance: &VersionVector) -> usize {
        let (bad, good): (Vec<_>, Vec<_>) = records.into_iter().partition(|it| it.record.stamp.time.0 >= self.refuses);
        good.into_iter().for_each(|it| self.stand(it));
        for (origin, sequence) in advance.iter() {
            if origin != self.origin && bad.iter().all(|it| it.origin != origin) {
                self.vector.advance(origin, sequence);
            }
        }
        bad.len()
    }

    /// Every name means a thing that is here.
    fn is_closed(&self) -> bool {
        let means = |it: &Numbered| match &it.record.value {
            Some(Value::Unknown(value)) => self.standing.contains_key(value),
            _ => false,
        };
        self.standing.iter().filter(|(key, _)| key.starts_with(b"name/")).all(|(_, it)| means(it))
    }
}

/// A stream on which one node pulls from another.
struct Pull {
    from: usize,
    to: usize,
    sent: VersionVector,
    /// On the way: cut anywhere, never reordered within the stream.
    way: VecDeque<Update>,
    gather: Gather,
}

impl Pull {
    fn open(nodes: &[Model], from: usize, to: usize, records_max: usize) -> Self {
        Self { from, to, sent: nodes[to].vector.clone(), way: VecDeque::new(), gather: Gather::with_limit(records_max) }
    }

    /// The sender sends what is new since what it sent last, one record a message.
    fn send(&mut self, nodes: &[Model]) {
        let from = &nodes[self.from];
        if self.sent.covers(&from.vector) {
            return;
        }
        let records = from.lacks(&self.sent);
        self.way.extend(records.iter().map(|it| Update::Records(vec![NumberedRecord::from(it)])));
        self.way.push_back(Update::Caught(from.vector.clone()));
        self.sent.merge(&from.vector);
    }

    /// The reader takes one message, and applies what is to be applied; the same steps as `exchange` takes.
    fn receive(&mut self, nodes: &mut [Model]) {
        let Some(update) = self.way.pop_front() else { return };
        let Some(mut part) = self.gather.take(update).expect("sound records") else { return };
        let to = &mut nodes[self.to];
        if !part.trim(&to.vector) {
            return;
        }
        let (origins, whole) = (part.origins(), part.whole);
        let wanted = part.advance.clone();
        if to.apply(part.records, &part.advance) > 0 {
            self.gather.hold(origins, |origin| !whole || to.vector.get(origin) < wanted.get(origin));
        }
    }
}

/// Pushes, deliveries, cuts and partitions at random; then the net heals, clocks are right, and everyone must agree.
fn run(seed: u64, records_max: usize) {
    let mut random = Random(seed);
    let mut nodes: Vec<_> = (0..2 + random.below(4) as u8).map(Model::new).collect();
    let count = nodes.len();
    let mut pulls: BTreeMap<(usize, usize), Pull> = BTreeMap::new();
    let mut time = 1;
    for _ in 0..400 {
        let (from, to) = (random.below(count), random.below(count));
        match random.below(12) {
            0 | 1 => {
                time += 2;
                nodes[from].push(time, random.below(NAMES as usize) as u64);
            }
            // A link breaks, with what was on it.
            2 => drop(pulls.remove(&(from, to))),
            // A clock falls behind: what others write from now on lies in its future, until it is set.
            3 if random.below(3) == 0 => nodes[to].refuses = time + 1,
            4 => nodes[to].refuses = u64::MAX,
            5 | 6 if from != to => drop(pulls.entry((from, to)).or_insert_with(|| Pull::open(&nodes, from, to, records_max))),
            7 => pulls.values_mut().for_each(|pull| pull.send(&nodes)),
            _ => {
                let at = random.below(pulls.len().max(1));
                if let Some(pull) = pulls.values_mut().nth(at) {
                    pull.receive(&mut nodes);
                }
            }
        }
        if records_max > 1000 {
            assert!(nodes.iter().all(Model::is_closed), "seed {seed}: a name is visible without its thing");
        }
    }
    nodes.iter_mut().for_each(|node| node.refuses = u64::MAX);
    pulls.clear();
    for _ in 0..count {
        for from in 0..count {
            for to in (0..count).filter(|to| *to != from) {
                let mut pull = Pull::open(&nodes, from, to, records_max);
                pull.send(&nodes);
                while !pull.way.is_empty() {
                    pull.receive(&mut nodes);
                }
            }
        }
    }
    for node in &nodes {
        assert_eq!(node.vector, nodes[0].vector, "seed {seed}: vectors differ");
        assert_eq!(node.standing, nodes[0].standing, "seed {seed}: states differ under one vector (I5)");
    }
}

#[test]
fn i5_nodes_agree_after_cuts_partitions_and_refusals() {
    (0..500).for_each(|seed| run(seed, GATHER_RECORDS));
}

#[test]
fn i5_nodes_agree_when_exchanges_are_applied_in_parts() {
    (0..500).for_each(|seed| run(seed, 1 + seed as usize % 3));
}

fn record(sequence: u64, size: usize) -> Numbered {
    let origin = Origin { node: NodeId([1; 32]), incarnation: 1 };
    let stamp = Stamp { time: HybridTime(sequence), node: origin.node };
    let key = Key::Unknown { kind: KIND, key: sequence.to_be_bytes().to_vec() };
    Numbered { origin, sequence, record: Record { key, value: Some(Value::Unknown(vec![0; size])), stamp } }
}

#[test]
fn messages_are_cut_by_number_and_by_size_and_lose_nothing() {
    // Many small ones; then one that is larger than a message by itself.
    let many = (1..=1200).map(|sequence| record(sequence, 10));
    let mut records = many.chain([record(1201, 4 << 20), record(1202, 1)]).map(Ok::<_, std::convert::Infallible>);
    let mut sequences = Vec::new();
    loop {
        let batch = next_batch(&mut records).expect("no disk is involved");
        if batch.is_empty() {
            break;
        }
        assert!(batch.len() <= MESSAGE_RECORDS);
        assert!(batch.iter().rev().skip(1).map(size).sum::<usize>() < MESSAGE_BYTES);
        sequences.extend(batch.iter().map(|record| record.sequence));
    }
    assert_eq!(sequences, (1..=1202).collect::<Vec<_>>());
}

#[test]
fn a_full_message_with_the_largest_manifest_fits_in_a_frame() {
    use larder_protocol::frame::{HEADER_SIZE, Header};
    use larder_protocol::message::Message;
    let largest = 16 << 20;
    let mut records = (1..400).map(|sequence| record(sequence, 1000)).chain([record(400, largest)]).map(Ok::<_, std::convert::Infallible>);
    let batch = next_batch(&mut records).expect("no disk is involved");
    assert_eq!(batch.len(), 400);
    let frame = Update::Records(batch).to_frame();
    let header: [u8; HEADER_SIZE] = frame.to_bytes()[..HEADER_SIZE].try_into().expect("a header");
    assert!(Header::parse(&header).is_ok());
    assert!(Update::from_frame(&frame).is_ok());
}

#[test]
fn s34_a_damaged_record_of_a_known_kind_is_an_error_and_an_unknown_kind_is_not() {
    let mut damaged = NumberedRecord::from(&record(1, 1));
    assert!(Gather::default().take(Update::Records(vec![damaged.clone()])).is_ok());
    damaged.record.kind = Key::Member(NodeId([0; 32])).kind();
    assert!(Gather::default().take(Update::Records(vec![damaged])).is_err());
}
