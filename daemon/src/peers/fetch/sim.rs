//! Many nodes' plans and holders' rules in virtual time: links with rates and delays, peers that die, lie, trickle or fall silent.
//!
//! One seed makes one world and everything that happens in it; a failure prints it. `SIM_SEEDS` says how many are tried.

use std::collections::{BTreeMap, BTreeSet, BinaryHeap};
use std::time::Duration;

use larder_protocol::chunks::ChunkSet;
use larder_protocol::digest::{CHUNK_SIZE, Digest};
use larder_protocol::message::Standing;
use larder_protocol::stamp::NodeId;

use super::plan::{Action, AskId, Event, Plan, State, TICK};
use super::sources::Peer;
use crate::peers::holder::Handed;

/// A step of virtual time.
const STEP: Duration = Duration::from_millis(10);
/// How often nodes say what has changed.
const TELL: Duration = Duration::from_millis(50);
/// Chunks that one peer is sent at a time.
const READS: usize = 4;
/// Chunks that a node sends at a time, to all; who takes longer than this counts no more.
const SLOTS: usize = 6;
const SLOT_TIME: Duration = Duration::from_secs(1);
/// How often a node that fetches, too, sends a chunk to a zone while others wait for other things.
const RELAYS: usize = 4;
/// A connection on which nothing is heard is given up after this time.
const IDLE: Duration = Duration::from_secs(20);
/// Longer than any world may take.
const END: Duration = Duration::from_secs(1200);

/// Random numbers of one seed (SplitMix64).
pub(super) struct Random(pub u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let number = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let number = (number ^ (number >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        number ^ (number >> 31)
    }

    fn below(&mut self, bound: u64) -> u64 {
        self.next() % bound.max(1)
    }

    fn between(&mut self, least: u64, most: u64) -> u64 {
        least + self.below(most - least + 1)
    }
}

/// What a node is like.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Manner {
    Honest,
    /// Every chunk that it sends is wrong.
    Liar,
    /// It sends a byte now and then.
    Trickle,
    /// It says that it has everything, and sends nothing.
    Mute,
}

/// How a node ends.
#[derive(Clone, Copy, Debug)]
struct Death {
    at: Duration,
    /// Its peers see the connection close, or only that nothing is heard.
    is_seen: bool,
}

/// A world before it begins.
#[derive(Clone, Debug)]
struct World {
    nodes: Vec<Node>,
    chunks: u32,
    rtt: Duration,
    /// Between zones.
    far_rtt: Duration,
    /// Bytes a second between two zones, each way; `None`: the nodes' own.
    wan: Option<u64>,
    /// The first node dies as soon as the others have all of the blob between them.
    dies_when_spread: Option<bool>,
}

#[derive(Clone, Debug)]
struct Node {
    zone: u8,
    /// Bytes a second.
    up: u64,
    down: u64,
    /// When it begins to fetch; `None`: it has the blob.
    begins: Option<Duration>,
    manner: Manner,
    death: Option<Death>,
}

/// What came of it.
#[derive(Debug)]
struct Outcome {
    /// When each node had the blob.
    done: Vec<Option<Duration>>,
    failed: Vec<bool>,
    /// Copies that each node sent.
    sent: Vec<f64>,
    /// Copies that crossed between zones.
    crossed: f64,
}

#[derive(Clone, Debug)]
enum Message {
    Follow,
    Standing(Standing),
    Ask { ask: AskId, index: u32, insist: bool },
    Cancel(AskId),
    Elsewhere(AskId, Vec<NodeId>),
    Refused(AskId),
    Chunk(AskId, u32, bool),
    Gone,
}

struct Transfer {
    ask: AskId,
    index: u32,
    left: f64,
    reported: f64,
    asked: u64,
    insist: bool,
    /// Since when it is being sent.
    since: Option<Duration>,
}

struct Running {
    plan: Option<Plan>,
    have: ChunkSet,
    coming: BTreeSet<u32>,
    /// Asks by number: of whom, for what.
    asks: BTreeMap<AskId, (usize, u32)>,
    followers: BTreeMap<usize, (ChunkSet, BTreeSet<u32>)>,
    handed: Handed,
    /// To each peer: what is being sent.
    sending: BTreeMap<usize, Vec<Transfer>>,
    alive: bool,
    done: Option<Duration>,
    failed: bool,
    sent: f64,
}

struct Sim<'a> {
    world: &'a World,
    nodes: Vec<Running>,
    queue: BinaryHeap<std::cmp::Reverse<(Duration, u64, usize, usize)>>,
    messages: BTreeMap<u64, Message>,
    next: u64,
    now: Duration,
    crossed: f64,
}

fn id(node: usize) -> NodeId {
    NodeId([node as u8 + 1; 32])
}

fn number(node: &NodeId) -> usize {
    usize::from(node.0[0]) - 1
}

fn digest() -> Digest {
    Digest::sha256(b"blob")
}

impl World {
    fn run(&self) -> Outcome {
        let count = u64::from(self.chunks);
        let running = |node: &Node| Running {
            plan: None,
            have: if node.begins.is_none() { ChunkSet::full(count) } else { ChunkSet::new(count) },
            coming: BTreeSet::new(),
            asks: BTreeMap::new(),
            followers: BTreeMap::new(),
            handed: Handed::default(),
            sending: BTreeMap::new(),
            alive: true,
            done: None,
            failed: false,
            sent: 0.0,
        };
        let nodes = self.nodes.iter().map(running).collect();
        let mut sim =
            Sim { world: self, nodes, queue: BinaryHeap::new(), messages: BTreeMap::new(), next: 0, now: Duration::ZERO, crossed: 0.0 };
        while sim.now < END && !sim.is_over() {
            sim.step();
        }
        let size = f64::from(self.chunks) * CHUNK_SIZE as f64;
        Outcome {
            done: sim.nodes.iter().map(|node| node.done).collect(),
            failed: sim.nodes.iter().map(|node| node.failed).collect(),
            sent: sim.nodes.iter().map(|node| node.sent / size).collect(),
            crossed: sim.crossed / size,
        }
    }

    fn rtt_of(&self, a: usize, b: usize) -> Duration {
        if self.nodes[a].zone == self.nodes[b].zone { self.rtt } else { self.far_rtt }
    }
}

impl Sim<'_> {
    fn is_over(&self) -> bool {
        let over = |(node, about): (&Running, &Node)| about.begins.is_none() || !node.alive || node.done.is_some() || node.failed;
        self.nodes.iter().zip(&self.world.nodes).all(over)
    }

    fn send(&mut self, from: usize, to: usize, message: Message) {
        self.send_after(self.world.rtt_of(from, to) / 2, from, to, message);
    }

    fn send_after(&mut self, after: Duration, from: usize, to: usize, message: Message) {
        self.messages.insert(self.next, message);
        self.queue.push(std::cmp::Reverse((self.now + after, self.next, from, to)));
        self.next += 1;
    }

    fn step(&mut self) {
        self.now += STEP;
        for node in 0..self.nodes.len() {
            let about = &self.world.nodes[node];
            let is_spread = || (0..self.world.chunks).all(|index| self.nodes[1..].iter().any(|node| node.have.has(index)));
            let spread = self.world.dies_when_spread.filter(|_| node == 0 && self.nodes[0].alive && is_spread());
            let spread = spread.map(|is_seen| Death { at: self.now, is_seen });
            if let Some(death) = about.death.or(spread)
                && death.at <= self.now
                && self.nodes[node].alive
            {
                self.nodes[node].alive = false;
                for other in (0..self.nodes.len()).filter(|other| *other != node) {
                    self.send_after(if death.is_seen { STEP } else { IDLE }, node, other, Message::Gone);
                }
            }
            if about.begins.is_some_and(|begins| begins <= self.now) && self.nodes[node].plan.is_none() && self.nodes[node].alive {
                self.nodes[node].plan = Some(Plan::new(digest(), id(node), self.nodes[node].have.clone()));
                for other in (0..self.nodes.len()).filter(|other| *other != node) {
                    self.follow(node, other);
                }
            }
        }
        while let Some(std::cmp::Reverse((_, number, from, to))) = self.queue.peek().copied().filter(|next| next.0.0 <= self.now) {
            self.queue.pop();
            let message = self.messages.remove(&number).expect("queued with its message");
            if self.nodes[to].alive {
                self.receive(from, to, message);
            }
        }
        self.transfer();
        if self.now.as_millis() % TELL.as_millis() < STEP.as_millis() {
            (0..self.nodes.len()).for_each(|node| self.tell(node));
        }
        if self.now.as_millis() % TICK.as_millis() < STEP.as_millis() {
            (0..self.nodes.len()).for_each(|node| self.plan(node, None));
        }
    }

    fn follow(&mut self, node: usize, other: usize) {
        let peer =
            Peer { near: self.world.nodes[node].zone == self.world.nodes[other].zone, rtt: self.world.rtt_of(node, other), strikes: 0 };
        self.plan(node, Some(Event::Asked(id(other), peer)));
        self.send(node, other, Message::Follow);
    }

    fn since_begin(&self, node: usize) -> Duration {
        self.now.saturating_sub(self.world.nodes[node].begins.unwrap_or_default())
    }

    /// Tells a node's plan what happened, and does what it says.
    fn plan(&mut self, node: usize, event: Option<Event>) {
        let now = self.since_begin(node);
        let running = &mut self.nodes[node];
        let Some(plan) = running.plan.as_mut().filter(|_| running.alive && running.done.is_none() && !running.failed) else { return };
        let mut actions = Vec::new();
        if let Some(event) = event {
            plan.event(now, event, &mut actions);
        }
        plan.step(now, &mut actions);
        let state = plan.state();
        for action in actions {
            match action {
                Action::Ask { ask, peer, index, insist } => {
                    let peer = number(&peer);
                    self.nodes[node].asks.insert(ask, (peer, index));
                    self.nodes[node].coming.insert(index);
                    self.send(node, peer, Message::Ask { ask, index, insist });
                }
                Action::Cancel(ask) => {
                    if let Some((peer, _)) = self.end_ask(node, ask) {
                        self.send(node, peer, Message::Cancel(ask));
                    }
                }
                Action::Strike(_) => {}
            }
        }
        match state {
            State::Going => {}
            State::Done => {
                self.nodes[node].done = Some(self.now);
                assert!(self.nodes[node].have.is_full(), "done without all chunks");
                self.end_follow(node, Standing::Whole);
            }
            State::Failed => {
                self.nodes[node].failed = true;
                self.end_follow(node, Standing::Nothing);
            }
        }
    }

    fn end_follow(&mut self, node: usize, standing: Standing) {
        for follower in std::mem::take(&mut self.nodes[node].followers).into_keys() {
            self.send(node, follower, Message::Standing(standing.clone()));
        }
    }

    fn end_ask(&mut self, node: usize, ask: AskId) -> Option<(usize, u32)> {
        let running = &mut self.nodes[node];
        let ended = running.asks.remove(&ask)?;
        if !running.asks.values().any(|(_, index)| *index == ended.1) {
            running.coming.remove(&ended.1);
        }
        Some(ended)
    }

    fn receive(&mut self, from: usize, to: usize, message: Message) {
        let manner = self.world.nodes[to].manner;
        match message {
            Message::Follow => {
                let node = &mut self.nodes[to];
                let standing = if manner != Manner::Honest || node.have.is_full() {
                    Standing::Whole
                } else if node.plan.is_some() && !node.failed {
                    let coming = node.coming.iter().copied().collect::<BTreeSet<_>>();
                    let mut bits = ChunkSet::new(u64::from(self.world.chunks));
                    coming.iter().for_each(|index| _ = bits.insert(*index));
                    node.followers.insert(from, (node.have.clone(), coming));
                    Standing::Part { have: node.have.to_bits(), coming: bits.to_bits() }
                } else {
                    Standing::Nothing
                };
                self.send(to, from, Message::Standing(standing));
                if self.nodes[to].plan.as_ref().is_some_and(|plan| plan.needs(&id(from))) {
                    self.follow(to, from);
                }
            }
            Message::Standing(standing) => self.plan(to, Some(Event::Says(id(from), standing))),
            Message::Ask { ask, index, insist } => {
                if !self.nodes[to].have.has(index) && manner == Manner::Honest {
                    return self.send(to, from, Message::Refused(ask));
                }
                // Who has it whole sends a chunk to a zone once; who fetches it too, as often as it has nothing else to do.
                if self.world.nodes[to].begins.is_none() {
                    let elsewhere = self.elsewhere(to, from, index, if insist { usize::MAX } else { 1 });
                    if !elsewhere.is_empty() {
                        return self.send(to, from, Message::Elsewhere(ask, elsewhere));
                    }
                }
                let transfer = Transfer { ask, index, left: CHUNK_SIZE as f64, reported: 0.0, asked: self.next, insist, since: None };
                self.next += 1;
                self.nodes[to].sending.entry(from).or_default().push(transfer);
            }
            Message::Cancel(ask) => {
                if let Some(sending) = self.nodes[to].sending.get_mut(&from)
                    && let Some(at) = sending.iter().position(|transfer| transfer.ask == ask)
                {
                    let transfer = sending.remove(at);
                    self.nodes[to].handed.failed((digest(), transfer.index), id(from));
                }
            }
            Message::Elsewhere(ask, nodes) => {
                if self.end_ask(to, ask).is_some() {
                    self.plan(to, Some(Event::Elsewhere(ask, nodes)));
                }
            }
            Message::Refused(ask) => {
                if self.end_ask(to, ask).is_some() {
                    self.plan(to, Some(Event::Failed(ask)));
                }
            }
            Message::Chunk(ask, index, is_right) => {
                if self.end_ask(to, ask).is_some() {
                    if is_right {
                        self.nodes[to].have.insert(index);
                    }
                    self.plan(to, Some(if is_right { Event::Landed(ask) } else { Event::Lied(ask) }));
                }
            }
            Message::Gone => {
                self.nodes[to].followers.remove(&from);
                self.nodes[to].sending.remove(&from);
                let asks: Vec<_> = self.nodes[to].asks.iter().filter(|(_, (peer, _))| *peer == from).map(|(ask, _)| *ask).collect();
                asks.into_iter().for_each(|ask| _ = self.end_ask(to, ask));
                self.plan(to, Some(Event::Left(id(from))));
            }
        }
    }

    /// Says to the followers of a node what has changed.
    fn tell(&mut self, node: usize) {
        let running = &mut self.nodes[node];
        if !running.alive || running.followers.is_empty() {
            return;
        }
        let (have, coming) = (running.have.clone(), running.coming.clone());
        let mut told = Vec::new();
        for (follower, (had, came)) in &mut running.followers {
            let landed = have.without(had);
            let new: Vec<_> = coming.difference(came).copied().collect();
            let dropped: Vec<_> = came.difference(&coming).filter(|index| !have.has(**index)).copied().collect();
            if !landed.is_empty() || !new.is_empty() || !dropped.is_empty() {
                told.push((*follower, Standing::Change { landed, coming: new, dropped }));
                (*had, *came) = (have.clone(), coming.clone());
            }
        }
        for (follower, standing) in told {
            self.send(node, follower, Message::Standing(standing));
        }
    }

    fn elsewhere(&mut self, holder: usize, asker: usize, index: u32, most: usize) -> Vec<NodeId> {
        let (zone, nodes) = (self.world.nodes[asker].zone, &self.world.nodes);
        let alive: Vec<_> = self.nodes.iter().map(|node| node.alive).collect();
        let is_mate = |node: &NodeId| nodes[number(node)].zone == zone && alive[number(node)];
        self.nodes[holder].handed.asked(self.now, (digest(), index), id(asker), most, is_mate)
    }

    /// Begins to send what was asked for first, when a slot is free.
    fn begin(&mut self) {
        let now = self.now;
        for holder in 0..self.nodes.len() {
            loop {
                let node = &mut self.nodes[holder];
                let holds = |transfer: &Transfer| transfer.since.is_some_and(|since| now.saturating_sub(since) < SLOT_TIME);
                if !node.alive || node.sending.values().flatten().filter(|transfer| holds(transfer)).count() >= SLOTS {
                    break;
                }
                let waiting = |(to, sending): (&usize, &Vec<Transfer>)| {
                    let at = (0..sending.len().min(READS)).find(|at| sending[*at].since.is_none())?;
                    Some((sending[at].asked, *to, at))
                };
                let waits: Vec<_> = node.sending.iter().filter_map(waiting).collect();
                let Some((_, to, at)) = waits.iter().min().copied() else { break };
                let Transfer { ask, index, insist, .. } = node.sending[&to][at];
                if self.world.nodes[holder].begins.is_some() {
                    let most = if insist || waits.len() == 1 { usize::MAX } else { RELAYS };
                    let elsewhere = self.elsewhere(holder, to, index, most);
                    if !elsewhere.is_empty() {
                        self.nodes[holder].sending.get_mut(&to).expect("it waits").remove(at);
                        self.send(holder, to, Message::Elsewhere(ask, elsewhere));
                        continue;
                    }
                }
                self.nodes[holder].sending.get_mut(&to).expect("it waits")[at].since = Some(now);
            }
        }
    }

    /// Moves bytes for one step: what a connection gets is its fair share of the narrowest link on its way.
    fn transfer(&mut self) {
        self.begin();
        let mut pairs = Vec::new();
        for (from, node) in self.nodes.iter().enumerate().filter(|(_, node)| node.alive) {
            let manner = self.world.nodes[from].manner;
            for (to, sending) in &node.sending {
                if sending.iter().any(|transfer| transfer.since.is_some()) && self.nodes[*to].alive && manner != Manner::Mute {
                    pairs.push((from, *to));
                }
            }
        }
        let rates = self.rates(&pairs);
        for ((from, to), rate) in pairs.into_iter().zip(rates) {
            let manner = self.world.nodes[from].manner;
            let mut room = if manner == Manner::Trickle { 1.0 } else { rate * STEP.as_secs_f64() };
            let mut events = Vec::new();
            let node = &mut self.nodes[from];
            let sending = node.sending.get_mut(&to).expect("a pair that sends");
            while room > 0.0 {
                // Of those under way, the earliest chunk goes first.
                let begun = (0..sending.len()).filter(|at| sending[*at].since.is_some());
                let Some(at) = begun.min_by_key(|at| sending[*at].index) else { break };
                let transfer = &mut sending[at];
                let moved = room.min(transfer.left);
                (room, transfer.left, node.sent) = (room - moved, transfer.left - moved, node.sent + moved);
                transfer.reported += moved;
                if self.world.nodes[from].zone != self.world.nodes[to].zone {
                    self.crossed += moved;
                }
                if transfer.reported >= 65536.0 || transfer.left <= 0.0 || manner == Manner::Trickle {
                    events.push((transfer.ask, transfer.reported as u64));
                    transfer.reported = 0.0;
                }
                if transfer.left <= 0.0 {
                    let transfer = sending.remove(at);
                    self.messages.insert(self.next, Message::Chunk(transfer.ask, transfer.index, manner != Manner::Liar));
                    self.queue.push(std::cmp::Reverse((self.now + self.world.rtt_of(from, to) / 2, self.next, from, to)));
                    self.next += 1;
                }
            }
            for (ask, bytes) in events {
                let now = self.since_begin(to);
                if self.nodes[to].asks.contains_key(&ask)
                    && let Some(plan) = &mut self.nodes[to].plan
                {
                    plan.event(now, Event::Bytes(ask, bytes), &mut Vec::new());
                }
            }
        }
    }

    /// Max-min fair rates: the narrowest link divides what it has among its connections, then the next.
    fn rates(&self, pairs: &[(usize, usize)]) -> Vec<f64> {
        let count = self.nodes.len();
        let zones = 8;
        let wan_of = |(from, to): (usize, usize)| {
            let (a, b) = (self.world.nodes[from].zone, self.world.nodes[to].zone);
            self.world.wan.filter(|_| a != b).map(|_| 2 * count + usize::from(a) * zones + usize::from(b))
        };
        let mut room = vec![f64::INFINITY; 2 * count + zones * zones];
        for (at, node) in self.world.nodes.iter().enumerate() {
            (room[at], room[count + at]) = (node.up as f64, node.down as f64);
        }
        if let Some(wan) = self.world.wan {
            room[2 * count..].fill(wan as f64);
        }
        let links: Vec<Vec<usize>> =
            pairs.iter().map(|pair| [Some(pair.0), Some(count + pair.1), wan_of(*pair)].into_iter().flatten().collect()).collect();
        let (mut rates, mut open) = (vec![0.0; pairs.len()], vec![true; pairs.len()]);
        let mut users = vec![0u32; room.len()];
        links.iter().flatten().for_each(|link| users[*link] += 1);
        while open.iter().any(|open| *open) {
            let narrowest = (0..room.len())
                .filter(|link| users[*link] > 0)
                .min_by(|a, b| (room[*a] / f64::from(users[*a])).total_cmp(&(room[*b] / f64::from(users[*b]))));
            let Some(narrowest) = narrowest else { break };
            let share = room[narrowest] / f64::from(users[narrowest]);
            for pair in (0..pairs.len()).filter(|pair| open[*pair] && links[*pair].contains(&narrowest)).collect::<Vec<_>>() {
                (rates[pair], open[pair]) = (share, false);
                for link in &links[pair] {
                    room[*link] = (room[*link] - share).max(0.0);
                    users[*link] -= 1;
                }
            }
        }
        rates
    }
}

const MBIT: u64 = 125_000;

fn fetcher(zone: u8, rate: u64, begins_ms: u64) -> Node {
    Node { zone, up: rate, down: rate, begins: Some(Duration::from_millis(begins_ms)), manner: Manner::Honest, death: None }
}

fn holder(zone: u8, rate: u64) -> Node {
    Node { begins: None, ..fetcher(zone, rate, 0) }
}

/// One holder and so many fetchers in so many zones.
fn crowd(seed: u64, fetchers: usize, zones: u8, chunks: u32, rate: u64) -> World {
    let mut random = Random(seed);
    let mut nodes = vec![holder(0, rate)];
    nodes.extend((0..fetchers).map(|i| fetcher((i + 1) as u8 % zones, rate, random.below(100))));
    World { nodes, chunks, rtt: Duration::from_millis(1), far_rtt: Duration::from_millis(40), wan: None, dies_when_spread: None }
}

fn last(outcome: &Outcome) -> Duration {
    outcome.done.iter().flatten().max().copied().unwrap_or_default()
}

fn seeds() -> u64 {
    std::env::var("SIM_SEEDS").ok().and_then(|seeds| seeds.parse().ok()).unwrap_or(1000)
}

/// A large world for every so many of the small ones.
fn large_seeds() -> u64 {
    (seeds() / 500).clamp(1, 200)
}

#[test]
fn sim_a_crowd_takes_about_as_long_as_one_node_and_costs_one_copy() {
    let alone = last(&crowd(0, 1, 1, 128, 50 * MBIT).run());
    for seed in 0..large_seeds() {
        let outcome = crowd(seed, 15, 1, 128, 50 * MBIT).run();
        assert!(outcome.done[1..].iter().all(Option::is_some), "seed {seed}: {outcome:?}");
        let ratio = last(&outcome).as_secs_f64() / alone.as_secs_f64();
        println!("crowd, seed {seed}: {ratio:.3} times {alone:?}, origin sent {:.3} copies", outcome.sent[0]);
        assert!(ratio <= 1.26, "seed {seed}: {ratio:.3} times {alone:?}");
        assert!(outcome.sent[0] <= 1.05, "seed {seed}: the origin sent {:.3} copies", outcome.sent[0]);
    }
}

#[test]
fn sim_one_copy_crosses_to_each_zone() {
    for seed in 0..large_seeds() {
        let mut world = crowd(seed, 7, 2, 128, 50 * MBIT);
        world.wan = Some(20 * MBIT);
        let outcome = world.run();
        assert!(outcome.done[1..].iter().all(Option::is_some), "seed {seed}: {outcome:?}");
        println!("two zones, seed {seed}: last {:?}, crossed {:.3}, origin sent {:.3}", last(&outcome), outcome.crossed, outcome.sent[0]);
        assert!(outcome.crossed <= 1.05, "seed {seed}: {:.3} copies crossed", outcome.crossed);
        // 128 MiB through 20 Mbit/s, and a tenth.
        assert!(last(&outcome) < Duration::from_secs(60), "seed {seed}: {:?}", last(&outcome));
    }
}

#[test]
fn f22_sim_the_origin_dies_and_all_finish_when_the_union_is_complete() {
    let whole = last(&crowd(0, 15, 1, 128, 50 * MBIT).run());
    for seed in 0..large_seeds() {
        for is_seen in [true, false] {
            let mut world = crowd(seed, 15, 1, 128, 50 * MBIT);
            world.dies_when_spread = Some(is_seen);
            let outcome = world.run();
            assert!(outcome.done[1..].iter().all(Option::is_some), "seed {seed}: {outcome:?}");
            let ratio = last(&outcome).as_secs_f64() / whole.as_secs_f64();
            println!("origin dies, seed {seed}: {ratio:.3} times {whole:?}");
            assert!(ratio <= 1.2, "seed {seed}: {ratio:.3} times {whole:?}");
        }
    }
}

#[test]
fn f21_sim_a_node_of_the_crowd_dies() {
    let whole = last(&crowd(0, 15, 1, 64, 50 * MBIT).run());
    for seed in 0..large_seeds() {
        for is_seen in [true, false] {
            let mut world = crowd(seed, 15, 1, 64, 50 * MBIT);
            world.nodes[3].death = Some(Death { at: Duration::from_secs(4), is_seen });
            let outcome = world.run();
            let others: Vec<_> = (1..16).filter(|node| *node != 3).collect();
            assert!(others.iter().all(|node| outcome.done[*node].is_some()), "seed {seed}: {outcome:?}");
            let ratio = last(&outcome).as_secs_f64() / whole.as_secs_f64();
            println!("one dies, seed {seed}, seen {is_seen}: {ratio:.3} times {whole:?}, origin sent {:.3}", outcome.sent[0]);
            assert!(ratio <= 1.2, "seed {seed}, seen: {is_seen}: {ratio:.3} times {whole:?}");
        }
    }
}

#[test]
fn f20_sim_a_slow_only_source_is_kept() {
    for rtt_ms in [10, 300] {
        let mut world = crowd(1, 1, 1, 6, MBIT);
        world.rtt = Duration::from_millis(rtt_ms);
        let outcome = world.run();
        assert!(outcome.done[1].is_some(), "{outcome:?}");
        assert!(outcome.sent[0] < 1.01, "nothing is sent twice: {outcome:?}");
    }
}

/// A small world with everything that can go wrong in it.
fn random_world(seed: u64) -> World {
    let mut random = Random(seed.wrapping_mul(0x0005_deec_e66d).wrapping_add(11));
    let zones = random.between(1, 3) as u8;
    let mut nodes = vec![holder(0, random.between(2, 100) * MBIT)];
    for _ in 0..random.between(1, 7) {
        let mut node = fetcher(random.below(u64::from(zones)) as u8, random.between(2, 100) * MBIT, random.below(3000));
        node.down = random.between(2, 100) * MBIT;
        match random.below(12) {
            0 => node = Node { manner: Manner::Liar, begins: None, ..node },
            1 => node = Node { manner: Manner::Trickle, begins: None, ..node },
            2 => node = Node { manner: Manner::Mute, begins: None, ..node },
            3 => node = Node { begins: None, ..node },
            4 | 5 => node.death = Some(Death { at: Duration::from_millis(random.between(10, 8000)), is_seen: random.below(2) == 0 }),
            _ => {}
        }
        nodes.push(node);
    }
    if random.below(3) == 0 {
        nodes[0].death = Some(Death { at: Duration::from_millis(random.between(10, 8000)), is_seen: random.below(2) == 0 });
    }
    World {
        nodes,
        chunks: random.between(1, 12) as u32,
        rtt: Duration::from_millis(random.between(1, 20)),
        far_rtt: Duration::from_millis(random.between(20, 300)),
        wan: (random.below(2) == 0).then(|| random.between(5, 50) * MBIT),
        dies_when_spread: None,
    }
}

#[test]
fn sim_whatever_happens_who_can_have_the_blob_gets_it_and_nobody_hangs() {
    let first = std::env::var("SIM_SEED").ok().and_then(|seed| seed.parse().ok());
    let range = first.map_or(0..seeds(), |seed: u64| seed..seed + 1);
    for seed in range {
        let world = random_world(seed);
        let outcome = world.run();
        let honest = world.nodes.iter().any(|node| node.begins.is_none() && node.manner == Manner::Honest && node.death.is_none());
        for (at, _) in world.nodes.iter().enumerate().filter(|(_, node)| node.begins.is_some() && node.death.is_none()) {
            let (done, failed) = (outcome.done[at].is_some(), outcome.failed[at]);
            assert!(done || failed, "seed {seed}: node {at} hangs: {outcome:#?} in {world:#?}");
            assert!(done || !honest, "seed {seed}: node {at} gave up and a holder lives: {outcome:#?} in {world:#?}");
        }
    }
}
