//! Which chunk from whom: a plan without I/O and without a clock. What happened goes in, what to do comes out.
//!
//! For each chunk, in the order in which they are wanted (the next ones of the waiting client, then the rarest):
//!
//! 1. a peer of this zone that fetches the blob too and has the chunk: the least busy, fastest one;
//! 2. if such a peer says that the chunk is on its way to it, the chunk is waited for;
//! 3. who has the blob whole, and other zones: only for the chunks that are this node's *share*. Of the nodes of a zone that fetch
//!    a blob, each takes the chunks for which its own weight is the heaviest (as in [`super::super::placement`]), and gets the
//!    others' from them. So N nodes that want the same thing take one copy from whoever has it, and one copy crosses to each zone.
//!
//! Who starves takes from the shares of others, the next in weight first; who has waited too long *insists*, and then a holder
//! does not send him elsewhere. A chunk that is late, or whose peer fell silent in the middle of it, is asked for a second
//! time elsewhere, and the first answer counts.
//!
//! Peers that lie, and peers from which hardly anything comes, are left for the rest of the blob. One that is slow and the only one
//! is kept for as long as bytes come.

use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};
use std::time::Duration;

use larder_protocol::chunks::ChunkSet;
use larder_protocol::digest::{CHUNK_SIZE, Digest};
use larder_protocol::message::Standing;
use larder_protocol::stamp::NodeId;

use super::counts::{come, forget, renew, uncome};
use super::sources::{Holding, Peer, STRUCK_REST, Source, mix, weight};

/// Chunks that a waiting client will read next: asked for in order.
const READ_AHEAD: u32 = 8;
/// Chunks from the first missing one on that are looked at.
const HORIZON: u32 = 256;
/// Chunks under way at a time: as many as come in this time, within bounds.
const UNDER_WAY: Duration = Duration::from_millis(1500);
const UNDER_WAY_MIN: u32 = 4;
const UNDER_WAY_MAX: u32 = 32;
/// Chunks under way from other zones at first.
const FAR_WINDOW_FIRST: u32 = 2;
/// The time over which the rate is measured.
const RATE_TIME: Duration = Duration::from_secs(2);
/// Who has named others for a chunk is not asked for it again for so long.
const ASK_AGAIN: Duration = Duration::from_millis(500);
/// Who starves for this long takes from the next node's share.
const STEAL: Duration = Duration::from_secs(1);
/// How long it is waited for peers that say nothing of what they have, when nobody else has it.
const ANSWER: Duration = Duration::from_secs(2);
/// How long nobody may have what is missing before it is given up.
const HOPELESS: Duration = Duration::from_secs(1);

/// The number of an ask.
pub(in crate::peers) type AskId = u64;

/// What happened.
#[derive(Clone, Debug)]
pub(in crate::peers) enum Event {
    /// A peer was asked what it has.
    Asked(NodeId, Peer),
    /// A peer says what it has.
    Says(NodeId, Standing),
    /// A peer fetches the blob, too.
    TakesPart(NodeId),
    /// A peer is gone, with everything that was asked of it.
    Left(NodeId),
    /// Bytes of a chunk came.
    Bytes(AskId, u64),
    /// Bytes of other blobs' chunks came from a peer.
    Heard(NodeId, u64),
    /// A chunk came whole and right, and is on the disk.
    Landed(AskId),
    /// The chunk is to be had from these.
    Elsewhere(AskId, Vec<NodeId>),
    /// The peer does not have the chunk, or the stream broke.
    Failed(AskId),
    /// What came was not the chunk.
    Lied(AskId),
    /// A peer is not to be asked any more.
    Dropped(NodeId),
    /// These are here: an earlier try has left them.
    Found(ChunkSet),
}

/// What to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::peers) enum Action {
    /// Ask a peer for a chunk.
    Ask { ask: AskId, peer: NodeId, index: u32, insist: bool },
    /// Give up an ask.
    Cancel(AskId),
    /// Ask a peer what it has.
    Follow(NodeId),
    /// The peer was of no use.
    Strike(NodeId),
}

/// How the fetch stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::peers) enum State {
    Going,
    Done,
    /// Nobody has what is missing.
    Failed,
}

/// A chunk asked of a peer.
#[derive(Clone, Copy, Debug)]
struct Ask {
    peer: NodeId,
    index: u32,
    at: Duration,
    bytes: u64,
    /// A second ask of the same chunk.
    is_hedge: bool,
    /// Asked for elsewhere, too: its peer is not counted on.
    doubted: bool,
}

/// A chunk that others were named for.
#[derive(Clone, Debug, Default)]
struct Hint {
    /// Until when it is expected from them.
    until: Duration,
    /// Who said so, and until when they are not asked for it again.
    said: Vec<(NodeId, Duration)>,
}

/// The plan of one blob.
#[derive(Debug)]
pub(in crate::peers) struct Plan {
    digest: Digest,
    weight: u64,
    have: ChunkSet,
    first_missing: u32,
    asks: BTreeMap<AskId, Ask>,
    /// Asks by chunk.
    asked: HashMap<u32, Vec<AskId>>,
    next_ask: AskId,
    sources: BTreeMap<NodeId, (u64, Source)>,
    /// Of the peers of this zone that fetch the blob too: how many have a chunk, and to how many it comes.
    held: Vec<u16>,
    coming: HashMap<u32, (u16, Duration)>,
    /// Chunks that are expected from somebody who was named.
    hinted: HashMap<u32, Hint>,
    starving: Option<Duration>,
    /// How long a chunk that comes to another node is waited for.
    patience: Duration,
    /// Chunks asked of other zones at a time.
    far_window: u32,
    hopeless: Option<Duration>,
    landed: VecDeque<Duration>,
    state: State,
    /// Fetches that are under way on this node, this one included: they share what may be under way.
    pub fetches: u32,
    /// Chunks asked for a second time.
    pub hedges: u64,
}

impl Plan {
    /// A plan for what is missing of a blob.
    pub(in crate::peers) fn new(digest: Digest, own: NodeId, have: ChunkSet) -> Self {
        let first_missing = have.run(0);
        let state = if have.is_full() { State::Done } else { State::Going };
        Self {
            digest,
            weight: weight(&digest, &own),
            held: vec![0; have.count() as usize],
            have,
            first_missing,
            asks: BTreeMap::new(),
            asked: HashMap::new(),
            next_ask: 0,
            sources: BTreeMap::new(),
            coming: HashMap::new(),
            hinted: HashMap::new(),
            starving: None,
            patience: Duration::ZERO,
            far_window: FAR_WINDOW_FIRST,
            hopeless: None,
            landed: VecDeque::new(),
            state,
            fetches: 1,
            hedges: 0,
        }
    }

    pub(in crate::peers) fn state(&self) -> State {
        self.state
    }

    /// Who has some of it.
    pub(in crate::peers) fn holders(&self) -> Vec<NodeId> {
        self.sources.iter().filter(|(_, (_, source))| source.is_whole() || source.is_part()).map(|(node, _)| *node).collect()
    }

    /// What a chunk takes from a peer.
    pub(in crate::peers) fn took(&self, peer: &NodeId) -> Option<Duration> {
        self.sources.get(peer).map(|(_, source)| source.took())
    }

    /// Takes note of what happened.
    pub(in crate::peers) fn event(&mut self, now: Duration, event: Event, actions: &mut Vec<Action>) {
        match event {
            Event::Asked(peer, about) => {
                // Whoever has lied is asked when the others have had their turn (F23).
                let mut new = Source::new(about);
                new.rests_until = if new.peer.strikes > 0 { now + STRUCK_REST } else { now };
                let source = self.sources.entry(peer).or_insert_with(|| (weight(&self.digest, &peer), new));
                if !source.1.left && matches!(source.1.holding, Holding::Nothing) {
                    source.1.holding = Holding::Unknown;
                }
            }
            Event::Says(peer, standing) => self.says(now, peer, standing, actions),
            Event::TakesPart(peer) => match self.sources.get_mut(&peer) {
                Some((_, source)) if source.left => {}
                // What it is about to say may be of the time before.
                Some((_, source)) if !matches!(source.holding, Holding::Nothing) => source.takes_part = true,
                _ => actions.push(Action::Follow(peer)),
            },
            Event::Left(peer) | Event::Dropped(peer) => self.leave(now, peer, actions),
            Event::Found(chunks) => {
                for index in chunks.iter().filter(|index| !self.have.has(*index)).collect::<Vec<_>>() {
                    for ask in self.asked.get(&index).cloned().unwrap_or_default() {
                        actions.push(Action::Cancel(ask));
                        self.end_ask(now, ask);
                    }
                    self.have.insert(index);
                }
                self.first_missing += self.have.run(self.first_missing);
                if self.have.is_full() {
                    self.state = State::Done;
                }
            }
            Event::Bytes(ask, bytes) => {
                if let Some(ask) = self.asks.get_mut(&ask) {
                    ask.bytes += bytes;
                    let peer = ask.peer;
                    self.heard(now, peer, bytes);
                }
            }
            Event::Heard(peer, bytes) => self.heard(now, peer, bytes),
            Event::Landed(ask) => self.land(now, ask, actions),
            Event::Elsewhere(ask, nodes) => {
                let Some(ask) = self.end_ask(now, ask) else { return };
                nodes.iter().for_each(|node| self.named(node));
                // Whoever is named but can't be reached from here has nothing to offer.
                let in_reach = nodes.iter().any(|node| self.sources.get(node).is_some_and(|(_, source)| !source.left));
                let hint = self.hinted.entry(ask.index).or_default();
                hint.said.retain(|(node, _)| *node != ask.peer);
                if in_reach {
                    hint.until = hint.until.max(now + self.patience);
                    hint.said.push((ask.peer, now + ASK_AGAIN));
                } else {
                    hint.until = now;
                }
            }
            Event::Failed(ask) => {
                if let Some(ask) = self.end_ask(now, ask)
                    && let Some((_, source)) = self.sources.get_mut(&ask.peer)
                {
                    if let Holding::Whole = source.holding {
                        forget(&mut self.held, &mut self.coming, source);
                        source.holding = Holding::Nothing;
                    } else if let Holding::Part { have, .. } = &mut source.holding
                        && have.remove(ask.index)
                        && source.peer.near
                    {
                        self.held[ask.index as usize] -= 1;
                    }
                }
            }
            Event::Lied(ask) => {
                if let Some(ask) = self.asks.get(&ask).copied() {
                    actions.push(Action::Strike(ask.peer));
                    self.leave(now, ask.peer, actions);
                }
            }
        }
    }

    fn heard(&mut self, now: Duration, peer: NodeId, bytes: u64) {
        let Some((_, source)) = self.sources.get_mut(&peer) else { return };
        source.heard = now;
        if let Some((_, came)) = &mut source.busy {
            *came += bytes;
        }
    }

    /// A holder names a peer: if that has the blob whole it gives as who fetched it does, and nobody waits for it. It may be named
    /// before it has said so itself: a holder that is idle answers sooner than who passes things on.
    fn named(&mut self, peer: &NodeId) {
        let Some((_, source)) = self.sources.get_mut(peer) else { return };
        if source.peer.near && source.is_whole() && !source.is_relay {
            self.held.iter_mut().for_each(|held| *held += 1);
        }
        source.is_relay = true;
    }

    fn says(&mut self, now: Duration, peer: NodeId, standing: Standing, actions: &mut Vec<Action>) {
        let count = u64::from(self.have.count());
        let Some((_, source)) = self.sources.get_mut(&peer) else { return };
        if source.left {
            return;
        }
        let near = source.peer.near;
        match standing {
            Standing::Change { landed, coming, dropped } => {
                let Holding::Part { have, coming: underway } = &mut source.holding else { return };
                let is_alive = !landed.is_empty();
                for index in landed {
                    if underway.remove(index) && near {
                        uncome(&mut self.coming, index);
                    }
                    if have.insert(index) && near {
                        self.held[index as usize] += 1;
                    }
                }
                // Who gets something gets the rest, too: it is waited for.
                if is_alive && near {
                    underway.iter().for_each(|index| renew(&mut self.coming, index, now));
                }
                for index in dropped {
                    if underway.remove(index) && near {
                        uncome(&mut self.coming, index);
                    }
                }
                for index in coming {
                    if !have.has(index) && underway.insert(index) && near {
                        come(&mut self.coming, index, now);
                    }
                }
            }
            standing => {
                // ORDER: it is taken out of the counts as what it was.
                forget(&mut self.held, &mut self.coming, source);
                source.is_relay |= matches!(standing, Standing::Part { .. });
                source.holding = match standing {
                    Standing::Whole => Holding::Whole,
                    Standing::Part { have, coming } => match (have.to_set(count), coming.to_set(count)) {
                        (Some(have), Some(coming)) => Holding::Part { have, coming },
                        _ => Holding::Nothing,
                    },
                    _ => Holding::Nothing,
                };
                match &source.holding {
                    Holding::Part { have, coming } if near => {
                        have.iter().for_each(|index| self.held[index as usize] += 1);
                        coming.iter().for_each(|index| come(&mut self.coming, index, now));
                    }
                    Holding::Whole if near && source.is_relay => self.held.iter_mut().for_each(|held| *held += 1),
                    Holding::Nothing if std::mem::take(&mut source.takes_part) => actions.push(Action::Follow(peer)),
                    _ => {}
                }
            }
        }
    }

    /// What was asked of a peer is free again.
    fn give_up(&mut self, now: Duration, peer: NodeId, actions: &mut Vec<Action>) {
        let asks: Vec<_> = self.asks.iter().filter(|(_, ask)| ask.peer == peer).map(|(id, _)| *id).collect();
        for ask in asks {
            actions.push(Action::Cancel(ask));
            self.end_ask(now, ask);
        }
    }

    /// A peer is of no use any more.
    fn leave(&mut self, now: Duration, peer: NodeId, actions: &mut Vec<Action>) {
        self.give_up(now, peer, actions);
        if let Some((_, source)) = self.sources.get_mut(&peer) {
            forget(&mut self.held, &mut self.coming, source);
            source.holding = Holding::Nothing;
            source.left = true;
        }
    }

    /// A peer that had left is back: it may be asked again.
    pub(in crate::peers) fn back(&mut self, peer: NodeId) {
        if let Some((_, source)) = self.sources.get_mut(&peer) {
            *source = Source::new(source.peer.clone());
        }
    }

    fn land(&mut self, now: Duration, ask: AskId, actions: &mut Vec<Action>) {
        let Some(ask) = self.end_ask(now, ask) else { return };
        if let Some((_, source)) = self.sources.get_mut(&ask.peer) {
            let window = source.gave(now.saturating_sub(ask.at));
            source.stalls = 0;
            if !source.peer.near {
                self.far_window = self.far_window.saturating_add_signed(window).clamp(1, UNDER_WAY_MAX);
            }
        }
        for other in self.asked.remove(&ask.index).unwrap_or_default() {
            actions.push(Action::Cancel(other));
            self.end_ask(now, other);
        }
        self.hinted.remove(&ask.index);
        self.have.insert(ask.index);
        self.first_missing += self.have.run(self.first_missing);
        self.landed.push_back(now);
        self.starving = None;
        if self.have.is_full() {
            self.state = State::Done;
        }
    }

    fn end_ask(&mut self, now: Duration, id: AskId) -> Option<Ask> {
        let ask = self.asks.remove(&id)?;
        if let Some(asks) = self.asked.get_mut(&ask.index) {
            asks.retain(|other| *other != id);
            if asks.is_empty() {
                self.asked.remove(&ask.index);
            }
        }
        let others = self.asks.values().any(|other| other.peer == ask.peer);
        let (_, source) = self.sources.get_mut(&ask.peer)?;
        if !ask.doubted {
            source.outstanding -= 1;
        }
        source.busy = source.busy.filter(|_| others);
        let _ = now;
        Some(ask)
    }

    /// What to do now. To be called after events, and every [`TICK`] at least.
    pub(in crate::peers) fn step(&mut self, now: Duration, actions: &mut Vec<Action>) {
        if self.state != State::Going {
            return;
        }
        self.be_patient(now);
        self.leave_stalled(now, actions);
        self.hedge(now, actions);
        let asked = self.fill(now, actions);
        let under_way = self.asks.values().filter(|ask| !ask.doubted).count() as u32;
        if asked
            || self.far() >= self.far_limit()
            || under_way >= self.limit(now)
            || self.asked.len() as u32 == self.have.count() - self.have.len()
        {
            self.starving = None;
        } else {
            self.starving.get_or_insert(now);
        }
        self.look_for_hope(now);
    }

    /// Who has named others for a chunk, and is not asked for it again yet.
    fn said(&self, index: u32, now: Duration) -> Vec<NodeId> {
        let said = self.hinted.get(&index).map(|hint| hint.said.as_slice()).unwrap_or_default();
        said.iter().filter(|(_, until)| now < *until).map(|(node, _)| *node).collect()
    }

    /// Asks for chunks until enough are under way; whether any was asked for.
    fn fill(&mut self, now: Duration, actions: &mut Vec<Action>) -> bool {
        let limit = self.limit(now);
        // Who has it whole serves a crowd in turn: what is asked of him may wait long, and keeps nothing from coming from the others.
        let is_relayed = |ask: &&Ask| self.sources[&ask.peer].1.is_relay;
        let counted = || self.asks.values().filter(|ask| !ask.doubted);
        let mut relayed = counted().filter(is_relayed).count() as u32;
        let mut direct = counted().count() as u32 - relayed;
        let mut far = self.far();
        let far_limit = self.far_limit();
        let end = self.have.count().min(self.first_missing.saturating_add(HORIZON));
        let next = self.first_missing.saturating_add(READ_AHEAD).min(end);
        let mut wanted: Vec<u32> =
            (self.first_missing..end).filter(|index| !self.have.has(*index) && !self.asked.contains_key(index)).collect();
        let behind = wanted.partition_point(|index| *index < next);
        // First what nobody near has: this node's share of it, in order, so that who has it whole is never idle. Then the rarest;
        // among equals each node has an order of its own, so that they have different things to give each other.
        let key = |index: &u32| match self.held[*index as usize] {
            0 => (0, u64::from(*index)),
            held => (held, mix(self.weight ^ u64::from(*index))),
        };
        wanted[behind..].sort_by_cached_key(key);
        let mut asked = false;
        // Whose share is done helps with the others' in an order of his own, so that not all help with the same.
        let is_orphan = |index: &u32| self.held[*index as usize] == 0 && !self.coming.contains_key(index);
        let is_done = !wanted.iter().any(|index| is_orphan(index) && self.rank(*index) == 0);
        if is_done {
            let orphans = wanted[behind..].partition_point(|index| self.held[*index as usize] == 0);
            wanted[behind..behind + orphans].sort_by_cached_key(|index| mix(self.weight ^ u64::from(*index)));
        }
        for index in wanted {
            let is_held = self.held[index as usize] > 0;
            let (count, most) =
                if is_held { (&mut relayed, limit) } else { (&mut direct, (UNDER_WAY_MAX / self.fetches.max(1)).max(limit)) };
            if *count < most
                && let Some((peer, insist)) = self.choose(now, index, index < next, is_done)
                && (self.sources[&peer].1.peer.near || far < far_limit)
            {
                *count += 1;
                far += u32::from(!self.sources[&peer].1.peer.near);
                self.ask(now, peer, index, insist, false, actions);
                asked = true;
            }
        }
        asked
    }

    /// Chunks under way from other zones.
    fn far(&self) -> u32 {
        self.asks.values().filter(|ask| !ask.doubted && !self.sources[&ask.peer].1.peer.near).count() as u32
    }

    /// How many of them there may be.
    fn far_limit(&self) -> u32 {
        (self.far_window / self.fetches.max(1)).max(1)
    }

    /// Whether somebody in this zone has the blob whole.
    fn is_near(&self) -> bool {
        self.sources.values().any(|(_, source)| source.peer.near && source.is_whole())
    }

    /// Of whom to ask for a chunk now, if of anybody.
    fn choose(&self, now: Duration, index: u32, is_next: bool, is_done: bool) -> Option<(NodeId, bool)> {
        let starving = self.starving.map_or(Duration::ZERO, |since| now.saturating_sub(since));
        if self.held[index as usize] > 0 {
            let said = self.said(index, now);
            let may_ask = |node: &NodeId| !said.contains(node);
            let relay = self.best(index, |node, source| {
                source.peer.near && source.is_relay && source.is_free(now) && source.has(index) && may_ask(node)
            });
            if relay.is_some() || starving < self.patience {
                return relay.map(|relay| (relay, false));
            }
        }
        let rank = self.rank(index);
        let announced = self.coming.get(&index).map(|(_, since)| *since);
        let hinted = self.hinted.get(&index).map(|hint| hint.until);
        let insist = match (announced, hinted) {
            (None, None) => starving >= self.patience,
            (announced, hinted) => {
                let until = announced.map(|since| since + self.patience).max(hinted).unwrap_or_default() + STEAL * rank;
                if now < until || !(is_next || starving > STEAL) {
                    return None;
                }
                true
            }
        };
        let is_near = self.is_near();
        if !insist && rank > 0 && !(is_done && is_near) && starving < STEAL * rank {
            return None;
        }
        let whole = self.best(index, |_, source| source.peer.near && source.is_whole() && source.is_free(now));
        if whole.is_some() {
            return whole.map(|whole| (whole, insist));
        }
        if is_near && !insist {
            return None;
        }
        self.best(index, |_, source| !source.peer.near && source.is_free(now) && source.has(index)).map(|far| (far, insist))
    }

    /// How many of those who fetch the blob in this zone come before this node for a chunk; 0: it is this node's share.
    fn rank(&self, index: u32) -> u32 {
        let own = mix(self.weight ^ u64::from(index));
        let near = || self.sources.values().filter(|(_, source)| source.peer.near);
        let others = near().filter(|(_, source)| source.is_part()).count();
        // With as many who have it whole as fetch it, nobody has to share.
        if near().filter(|(_, source)| source.is_whole()).count() > others {
            return 0;
        }
        near().filter(|(weight, source)| source.is_part() && mix(weight ^ u64::from(index)) > own).count() as u32
    }

    /// The source that fits and costs least.
    fn best(&self, index: u32, fits: impl Fn(&NodeId, &Source) -> bool) -> Option<NodeId> {
        let fitting = self.sources.iter().filter(|(node, (_, source))| fits(node, source));
        let order = |(weight, source): &(u64, Source)| (source.cost().as_millis() / 50, mix(weight ^ self.weight ^ u64::from(index)));
        fitting.min_by_key(|(_, source)| order(source)).map(|(node, _)| *node)
    }

    fn ask(&mut self, now: Duration, peer: NodeId, index: u32, insist: bool, is_hedge: bool, actions: &mut Vec<Action>) {
        let ask = self.next_ask;
        self.next_ask += 1;
        self.asks.insert(ask, Ask { peer, index, at: now, bytes: 0, is_hedge, doubted: false });
        self.asked.entry(index).or_default().push(ask);
        let source = &mut self.sources.get_mut(&peer).expect("chosen among the sources").1;
        source.outstanding += 1;
        source.busy.get_or_insert((now, 0));
        actions.push(Action::Ask { ask, peer, index, insist });
    }

    /// How many chunks may be under way. Among many who give a little each, one of each at least.
    fn limit(&mut self, now: Duration) -> u32 {
        while self.landed.front().is_some_and(|at| now.saturating_sub(*at) > RATE_TIME) {
            self.landed.pop_front();
        }
        let sources = self.sources.values().filter(|(_, source)| source.is_part() || source.is_whole()).count() as u32;
        let least = (sources.clamp(UNDER_WAY_MIN, UNDER_WAY_MAX / 2) / self.fetches.max(1)).max(UNDER_WAY_MIN / 2);
        let time = RATE_TIME.min(now).max(Duration::from_millis(1));
        let wanted = self.landed.len() as f64 * UNDER_WAY.as_secs_f64() / time.as_secs_f64();
        (wanted.ceil() as u32).clamp(least, (UNDER_WAY_MAX / self.fetches.max(1)).max(least))
    }

    /// Gives up when nobody has what is missing, and nobody may still say that he has.
    fn look_for_hope(&mut self, now: Duration) {
        let live = || self.sources.values().map(|(_, source)| source).filter(|source| !source.left);
        let end = self.have.count();
        let hope = !self.asks.is_empty()
            || live().any(Source::is_whole)
            || (now < ANSWER && live().any(|source| matches!(source.holding, Holding::Unknown)))
            || (live().any(Source::is_part)
                && (self.first_missing..end).filter(|index| !self.have.has(*index)).any(|index| {
                    live().any(|source| matches!(&source.holding, Holding::Part { have, coming } if have.has(index) || coming.has(index)))
                }));
        if hope {
            self.hopeless = None;
            return;
        }
        let since = *self.hopeless.get_or_insert(now);
        // Who fetches it too may have found something meanwhile.
        let may_come = live().any(Source::is_part);
        if !may_come || now.saturating_sub(since) >= HOPELESS {
            self.state = State::Failed;
        }
    }
}

/// How often a plan is looked at when nothing happens.
pub(in crate::peers) const TICK: Duration = Duration::from_millis(100);

/// Bytes of a chunk.
pub(in crate::peers) fn chunk_size(size: u64, index: u32) -> u64 {
    CHUNK_SIZE.min(size.saturating_sub(u64::from(index) * CHUNK_SIZE))
}

mod late;
#[cfg(test)]
mod tests;
