//! Many nodes' plans and holders' rules in virtual time: links with rates and delays, peers that die, lie, trickle or fall silent.
//!
//! One seed makes one world and everything that happens in it; a failure prints it. `SIM_SEEDS` says how many are tried.

mod worlds;

use std::collections::{BTreeMap, BTreeSet, BinaryHeap};
use std::time::Duration;

use larder_protocol::chunks::ChunkSet;
use larder_protocol::digest::{CHUNK_SIZE, Digest};
use larder_protocol::message::{Class, Standing};
use larder_protocol::stamp::NodeId;

use super::plan::{Action, AskId, Event, Plan, State, TICK};
use super::sources::Peer;
use crate::peers::holder::Handed;
use crate::peers::swarms::COPIES;
use crate::peers::turns::{Line, TURN_TIME};

/// A step of virtual time.
const STEP: Duration = Duration::from_millis(10);
/// How often nodes say what has changed.
const TELL: Duration = Duration::from_millis(50);
/// What a look into the index takes.
const LOOK: Duration = Duration::from_millis(20);
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
    /// The chunks of each blob: an image's layers.
    blobs: Vec<u32>,
    /// Blobs that a node fetches at a time.
    at_once: usize,
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
    /// When it begins to fetch; `None`: it has all blobs.
    begins: Option<Duration>,
    manner: Manner,
    death: Option<Death>,
}

/// What came of it.
#[derive(Debug)]
struct Outcome {
    /// When each node had all blobs.
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
    blob: usize,
    ask: AskId,
    index: u32,
    left: f64,
    reported: f64,
    ticket: u64,
    insist: bool,
    /// Since when it is being sent.
    since: Option<Duration>,
    /// Its turn was given back.
    is_late: bool,
}

/// A blob on a node.
struct Blob {
    plan: Option<Plan>,
    /// When it began to fetch it.
    since: Duration,
    have: ChunkSet,
    coming: BTreeSet<u32>,
    /// Asks by number: of whom, for what.
    asks: BTreeMap<AskId, (usize, u32)>,
    followers: BTreeMap<usize, (ChunkSet, BTreeSet<u32>)>,
}

struct Running {
    blobs: Vec<Blob>,
    handed: Handed,
    line: Line,
    /// What a chunk took from each peer.
    took: BTreeMap<usize, Duration>,
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
    messages: BTreeMap<u64, (usize, Message)>,
    next: u64,
    now: Duration,
    crossed: f64,
}

impl Running {
    /// A transfer has ended, or never began.
    fn end(&mut self, to: usize, transfer: &Transfer) {
        if !self.line.leave(transfer.ticket) {
            self.line.end(&id(to));
            if !transfer.is_late {
                self.line.give_back();
            }
        }
    }
}

fn id(node: usize) -> NodeId {
    NodeId([node as u8 + 1; 32])
}

fn number(node: &NodeId) -> usize {
    usize::from(node.0[0]) - 1
}

fn digest(blob: usize) -> Digest {
    Digest::sha256(&[blob as u8])
}

impl World {
    fn run(&self) -> Outcome {
        let blob = |is_here: bool, chunks: u32| Blob {
            plan: None,
            since: Duration::ZERO,
            have: if is_here { ChunkSet::full(chunks.into()) } else { ChunkSet::new(chunks.into()) },
            coming: BTreeSet::new(),
            asks: BTreeMap::new(),
            followers: BTreeMap::new(),
        };
        let running = |node: &Node| Running {
            blobs: self.blobs.iter().map(|chunks| blob(node.begins.is_none(), *chunks)).collect(),
            handed: Handed::default(),
            line: Line::default(),
            took: BTreeMap::new(),
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
        let size = f64::from(self.blobs.iter().sum::<u32>()) * CHUNK_SIZE as f64;
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

    fn send(&mut self, from: usize, to: usize, blob: usize, message: Message) {
        self.send_after(self.world.rtt_of(from, to) / 2, from, to, (blob, message));
    }

    fn send_after(&mut self, after: Duration, from: usize, to: usize, message: (usize, Message)) {
        self.messages.insert(self.next, message);
        self.queue.push(std::cmp::Reverse((self.now + after, self.next, from, to)));
        self.next += 1;
    }

    fn step(&mut self) {
        self.now += STEP;
        for node in 0..self.nodes.len() {
            let about = &self.world.nodes[node];
            let others_have = |blob: usize, index| self.nodes[1..].iter().any(|node| node.blobs[blob].have.has(index));
            let is_spread = || (0..self.world.blobs.len()).all(|blob| (0..self.world.blobs[blob]).all(|index| others_have(blob, index)));
            let spread = self.world.dies_when_spread.filter(|_| node == 0 && self.nodes[0].alive && is_spread());
            let spread = spread.map(|is_seen| Death { at: self.now, is_seen });
            if let Some(death) = about.death.or(spread)
                && death.at <= self.now
                && self.nodes[node].alive
            {
                self.nodes[node].alive = false;
                for other in (0..self.nodes.len()).filter(|other| *other != node) {
                    self.send_after(if death.is_seen { STEP } else { IDLE }, node, other, (0, Message::Gone));
                }
            }
            if about.begins.is_some_and(|begins| begins <= self.now) && self.nodes[node].alive {
                self.begin_blobs(node);
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
            (0..self.nodes.len()).for_each(|node| (0..self.world.blobs.len()).for_each(|blob| self.plan(node, blob, None)));
        }
    }

    /// Begins to fetch what comes next, up to as many blobs as are fetched at a time.
    fn begin_blobs(&mut self, node: usize) {
        for blob in 0..self.world.blobs.len() {
            let going = self.going(node);
            let running = &mut self.nodes[node];
            if running.blobs[blob].plan.is_none() && going < self.world.at_once && !running.failed {
                let have = running.blobs[blob].have.clone();
                running.blobs[blob].since = self.now;
                running.blobs[blob].plan = Some(Plan::new(digest(blob), id(node), have));
                for other in (0..self.nodes.len()).filter(|other| *other != node) {
                    self.follow(node, other, blob);
                }
            }
        }
    }

    /// How many blobs a node fetches at the moment.
    fn going(&self, node: usize) -> usize {
        self.nodes[node].blobs.iter().filter_map(|blob| blob.plan.as_ref()).filter(|plan| plan.state() == State::Going).count()
    }

    fn follow(&mut self, node: usize, other: usize, blob: usize) {
        let near = self.world.nodes[node].zone == self.world.nodes[other].zone;
        let took = self.nodes[node].took.get(&other).copied().filter(|_| !near);
        let peer = Peer { near, rtt: self.world.rtt_of(node, other), strikes: 0, took };
        self.plan(node, blob, Some(Event::Asked(id(other), peer)));
        self.send(node, other, blob, Message::Follow);
    }

    /// Tells a node's plan what happened, and does what it says.
    fn plan(&mut self, node: usize, number_of_blob: usize, event: Option<Event>) {
        let fetches = self.going(node) as u32;
        let running = &mut self.nodes[node];
        let blob = &mut running.blobs[number_of_blob];
        let now = self.now - blob.since;
        let is_going = |plan: &&mut Plan| running.alive && !running.failed && plan.state() == State::Going;
        let Some(plan) = blob.plan.as_mut().filter(is_going) else { return };
        let mut actions = Vec::new();
        if let Some(event) = event {
            plan.event(now, event, &mut actions);
        }
        plan.fetches = fetches;
        plan.step(now, &mut actions);
        let state = plan.state();
        for action in actions {
            match action {
                Action::Ask { ask, peer, index, insist } => {
                    let (peer, blob) = (number(&peer), &mut self.nodes[node].blobs[number_of_blob]);
                    blob.asks.insert(ask, (peer, index));
                    blob.coming.insert(index);
                    self.send(node, peer, number_of_blob, Message::Ask { ask, index, insist });
                }
                Action::Cancel(ask) => {
                    if let Some((peer, _)) = self.end_ask(node, number_of_blob, ask) {
                        self.send(node, peer, number_of_blob, Message::Cancel(ask));
                    }
                }
                Action::Follow(peer) => self.follow(node, number(&peer), number_of_blob),
                Action::Strike(_) => {}
            }
        }
        match state {
            State::Going => {}
            State::Done => {
                assert!(self.nodes[node].blobs[number_of_blob].have.is_full(), "done without all chunks");
                self.end_follow(node, number_of_blob, Standing::Whole);
                self.begin_blobs(node);
                if self.nodes[node].blobs.iter().all(|blob| blob.have.is_full()) {
                    self.nodes[node].done = Some(self.now);
                }
            }
            State::Failed => {
                self.nodes[node].failed = true;
                self.end_follow(node, number_of_blob, Standing::Nothing);
            }
        }
    }

    fn end_follow(&mut self, node: usize, blob: usize, standing: Standing) {
        for follower in std::mem::take(&mut self.nodes[node].blobs[blob].followers).into_keys() {
            self.send(node, follower, blob, Message::Standing(standing.clone()));
        }
    }

    fn end_ask(&mut self, node: usize, blob: usize, ask: AskId) -> Option<(usize, u32)> {
        let blob = &mut self.nodes[node].blobs[blob];
        let ended = blob.asks.remove(&ask)?;
        if !blob.asks.values().any(|(_, index)| *index == ended.1) {
            blob.coming.remove(&ended.1);
        }
        Some(ended)
    }

    fn receive(&mut self, from: usize, to: usize, (blob, message): (usize, Message)) {
        let manner = self.world.nodes[to].manner;
        match message {
            Message::Follow => {
                let node = &mut self.nodes[to];
                let about = &mut node.blobs[blob];
                let standing = if manner != Manner::Honest || about.have.is_full() {
                    Standing::Whole
                } else if about.plan.is_some() && !node.failed {
                    let mut bits = ChunkSet::new(self.world.blobs[blob].into());
                    about.coming.iter().for_each(|index| _ = bits.insert(*index));
                    about.followers.insert(from, (about.have.clone(), about.coming.clone()));
                    Standing::Part { have: about.have.to_bits(), coming: bits.to_bits() }
                } else {
                    Standing::Nothing
                };
                // Who has nothing looks into its index before it says so, and may have begun to fetch when that arrives.
                let look = if standing == Standing::Nothing { LOOK } else { Duration::ZERO };
                self.send_after(self.world.rtt_of(to, from) / 2 + look, to, from, (blob, Message::Standing(standing)));
                self.plan(to, blob, Some(Event::TakesPart(id(from))));
            }
            Message::Standing(standing) => self.plan(to, blob, Some(Event::Says(id(from), standing))),
            Message::Ask { ask, index, insist } => {
                if !self.nodes[to].blobs[blob].have.has(index) && manner == Manner::Honest {
                    return self.send(to, from, blob, Message::Refused(ask));
                }
                // Who has it whole sends a chunk to a zone once; who fetches it too, as often as it has nothing else to do.
                if self.world.nodes[to].begins.is_none() {
                    let elsewhere = self.elsewhere(to, from, (blob, index), if insist { usize::MAX } else { COPIES });
                    if !elsewhere.is_empty() {
                        return self.send(to, from, blob, Message::Elsewhere(ask, elsewhere));
                    }
                }
                let size = u64::from(self.world.blobs[blob]) * CHUNK_SIZE;
                let ticket = self.nodes[to].line.queue(self.now, Class::Client, id(from), size);
                let left = CHUNK_SIZE as f64;
                let transfer = Transfer { blob, ask, index, left, reported: 0.0, ticket, insist, since: None, is_late: false };
                self.nodes[to].sending.entry(from).or_default().push(transfer);
            }
            Message::Cancel(ask) => {
                if let Some(sending) = self.nodes[to].sending.get_mut(&from)
                    && let Some(at) = sending.iter().position(|transfer| transfer.blob == blob && transfer.ask == ask)
                {
                    let transfer = sending.remove(at);
                    self.nodes[to].end(from, &transfer);
                    self.nodes[to].handed.failed((digest(blob), transfer.index), id(from));
                }
            }
            Message::Elsewhere(ask, nodes) => {
                if self.end_ask(to, blob, ask).is_some() {
                    self.plan(to, blob, Some(Event::Elsewhere(ask, nodes)));
                }
            }
            Message::Refused(ask) => {
                if self.end_ask(to, blob, ask).is_some() {
                    self.plan(to, blob, Some(Event::Failed(ask)));
                }
            }
            Message::Chunk(ask, index, is_right) => {
                if self.end_ask(to, blob, ask).is_some() {
                    if is_right {
                        self.nodes[to].blobs[blob].have.insert(index);
                    }
                    self.plan(to, blob, Some(if is_right { Event::Landed(ask) } else { Event::Lied(ask) }));
                    if let Some(took) = self.nodes[to].blobs[blob].plan.as_ref().and_then(|plan| plan.took(&id(from))) {
                        self.nodes[to].took.insert(from, took);
                    }
                }
            }
            Message::Gone => {
                for transfer in self.nodes[to].sending.remove(&from).unwrap_or_default() {
                    self.nodes[to].end(from, &transfer);
                }
                for blob in 0..self.world.blobs.len() {
                    let about = &mut self.nodes[to].blobs[blob];
                    about.followers.remove(&from);
                    let asks: Vec<_> = about.asks.iter().filter(|(_, (peer, _))| *peer == from).map(|(ask, _)| *ask).collect();
                    asks.into_iter().for_each(|ask| _ = self.end_ask(to, blob, ask));
                    self.plan(to, blob, Some(Event::Left(id(from))));
                }
            }
        }
    }

    /// Says to the followers of a node what has changed.
    fn tell(&mut self, node: usize) {
        if !self.nodes[node].alive {
            return;
        }
        for blob in 0..self.world.blobs.len() {
            let Blob { have, coming, followers, .. } = &mut self.nodes[node].blobs[blob];
            let mut told = Vec::new();
            for (follower, (had, came)) in followers {
                let landed = have.without(had);
                let new: Vec<_> = coming.difference(came).copied().collect();
                let dropped: Vec<_> = came.difference(coming).filter(|index| !have.has(**index)).copied().collect();
                if !landed.is_empty() || !new.is_empty() || !dropped.is_empty() {
                    told.push((*follower, Standing::Change { landed, coming: new, dropped }));
                    (*had, *came) = (have.clone(), coming.clone());
                }
            }
            for (follower, standing) in told {
                self.send(node, follower, blob, Message::Standing(standing));
            }
        }
    }

    fn elsewhere(&mut self, holder: usize, asker: usize, (blob, index): (usize, u32), most: usize) -> Vec<NodeId> {
        let (zone, nodes) = (self.world.nodes[asker].zone, &self.world.nodes);
        let alive: Vec<_> = self.nodes.iter().map(|node| node.alive).collect();
        let is_mate = |node: &NodeId| nodes[number(node)].zone == zone && alive[number(node)];
        self.nodes[holder].handed.asked(self.now, (digest(blob), index), id(asker), most, is_mate)
    }

    /// Begins to send what comes next, when a turn is free.
    fn begin(&mut self) {
        let now = self.now;
        for holder in 0..self.nodes.len() {
            let Running { sending, line, .. } = &mut self.nodes[holder];
            for transfer in sending.values_mut().flatten() {
                if !transfer.is_late && transfer.since.is_some_and(|since| now.saturating_sub(since) >= TURN_TIME) {
                    transfer.is_late = true;
                    line.give_back();
                }
            }
            while let Some(called) = self.nodes[holder].line.call(now) {
                let node = &self.nodes[holder];
                let find =
                    |(to, sending): (&usize, &Vec<Transfer>)| Some((*to, sending.iter().position(|transfer| transfer.ticket == called)?));
                let (to, at) = node.sending.iter().find_map(find).expect("who waits has a transfer");
                let Transfer { blob, ask, index, insist, .. } = node.sending[&to][at];
                if self.world.nodes[holder].begins.is_some() {
                    let most = if insist || !node.line.is_busy() { usize::MAX } else { COPIES };
                    let elsewhere = self.elsewhere(holder, to, (blob, index), most);
                    if !elsewhere.is_empty() {
                        let transfer = self.nodes[holder].sending.get_mut(&to).expect("it waits").remove(at);
                        self.nodes[holder].end(to, &transfer);
                        self.send(holder, to, blob, Message::Elsewhere(ask, elsewhere));
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
            let (mut events, mut landed, mut ended) = (Vec::new(), Vec::new(), Vec::new());
            let node = &mut self.nodes[from];
            let sending = node.sending.get_mut(&to).expect("a pair that sends");
            while room > 0.0 {
                // What was begun first goes first.
                let begun = (0..sending.len()).filter(|at| sending[*at].since.is_some());
                let Some(at) = begun.min_by_key(|at| sending[*at].since) else { break };
                let transfer = &mut sending[at];
                let moved = room.min(transfer.left);
                (room, transfer.left, node.sent) = (room - moved, transfer.left - moved, node.sent + moved);
                transfer.reported += moved;
                if self.world.nodes[from].zone != self.world.nodes[to].zone {
                    self.crossed += moved;
                }
                if transfer.reported >= 8192.0 || transfer.left <= 0.0 || manner == Manner::Trickle {
                    events.push((transfer.blob, transfer.ask, transfer.reported as u64));
                    transfer.reported = 0.0;
                }
                if transfer.left <= 0.0 {
                    let transfer = sending.remove(at);
                    landed.push((transfer.blob, Message::Chunk(transfer.ask, transfer.index, manner != Manner::Liar)));
                    ended.push(transfer);
                }
            }
            ended.iter().for_each(|transfer| self.nodes[from].end(to, transfer));
            let came = events.iter().map(|(.., bytes)| bytes).sum();
            for blob in self.nodes[to].blobs.iter_mut().filter(|_| came > 0) {
                if let Some(plan) = &mut blob.plan {
                    plan.event(self.now - blob.since, Event::Heard(id(from), came), &mut Vec::new());
                }
            }
            for (blob, message) in landed {
                self.send(from, to, blob, message);
            }
            for (blob, ask, bytes) in events {
                let blob = &mut self.nodes[to].blobs[blob];
                if blob.asks.contains_key(&ask)
                    && let Some(plan) = &mut blob.plan
                {
                    plan.event(self.now - blob.since, Event::Bytes(ask, bytes), &mut Vec::new());
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
