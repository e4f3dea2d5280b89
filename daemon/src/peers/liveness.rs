//! Who is alive: a state machine without I/O around SWIM, and the only file that knows foca.
//!
//! Calls bring what happened and the time; what is to be sent lies in [`Liveness::take`]. Datagrams go only over connections that are
//! up, so everything that comes in was said by the member whose key was proven there: a datagram in another's name is dropped, and so
//! is what it says of those who are no members. Nothing in it is an address.
//!
//! One's own eyes go first: whoever was heard over a connection a moment ago is alive, whatever others say. About members
//! without a connection, and those that have fallen silent, SWIM decides. A peer of protocol version 1 has no datagrams: it is
//! alive while something is heard over its connection.
//!
//! A member may lie about another one that this node has no connection with, in both directions. It is a member: it could as well
//! delete every tag. Expel it.

use std::cmp::Ordering;
use std::collections::{BinaryHeap, HashMap, HashSet};
use std::num::{NonZeroU8, NonZeroUsize};
use std::time::{Duration, Instant};

use bytes::{Buf, BufMut, Bytes};
use foca::{Config, Foca, Header, Member, Message, NoCustomBroadcast, Notification, PeriodicParams, Runtime, Timer};
use larder_protocol::stamp::NodeId;
use larder_protocol::swim::{self, Datagram, Life, News, Word};
use rand::SeedableRng;
use rand::rngs::SmallRng;

use super::standing::Condition;

/// The first protocol version with datagrams.
pub(super) const DATAGRAMS_SINCE: u16 = 2;
/// Whoever was heard so lately is alive. A connection that is idle is heard from every few seconds, by its keep-alive.
pub(super) const FRESH: Duration = Duration::from_secs(8);
/// Datagrams of one peer that are read in a second: a fleet that talks much needs a tenth.
const RATE_MAX: u32 = 200;

/// How often one member is asked whether it is there.
const PROBE_PERIOD: Duration = Duration::from_secs(2);
/// When others are asked to ask it.
const PROBE_ANSWER: Duration = Duration::from_millis(700);
const PROBE_OTHERS: usize = 3;
/// How long a suspect may object.
const SUSPICION: Duration = Duration::from_secs(6);
/// How long it is remembered that a life is over.
const REMEMBERED: Duration = Duration::from_secs(60 * 60);
/// How often a piece of news is passed on.
const TOLD: u8 = 10;
/// How often news is passed on beside questions and answers, while there is any, and to how many.
const GOSSIP: (Duration, usize) = (Duration::from_millis(500), 3);
/// How often someone is asked for all it knows, and someone who is down whether it is.
const ANNOUNCE: (Duration, usize) = (Duration::from_secs(30), 1);

/// What this node knows about who is alive.
pub(super) struct Liveness {
    own: NodeId,
    foca: Foca<Id, Wire, SmallRng, NoCustomBroadcast>,
    outbox: Outbox,
    timers: BinaryHeap<Due>,
    /// Tells timers of one instant apart.
    timers_made: u64,
    members: HashSet<NodeId>,
    links: HashMap<NodeId, Direct>,
}

/// A connection, as far as liveness cares.
#[derive(Debug)]
struct Direct {
    life: u64,
    version: u16,
    heard: Instant,
    /// Datagrams since the second began.
    rate: (Instant, u32),
}

impl Liveness {
    /// `seed` decides who is asked in which order.
    pub(super) fn new(own: Life, seed: u64) -> Self {
        let some = |count| NonZeroUsize::new(count).expect("not 0");
        let often = |(frequency, count)| Some(PeriodicParams { frequency, num_members: some(count) });
        let config = Config {
            probe_period: PROBE_PERIOD,
            probe_rtt: PROBE_ANSWER,
            num_indirect_probes: some(PROBE_OTHERS),
            max_transmissions: NonZeroU8::new(TOLD).expect("not 0"),
            suspect_to_down_after: SUSPICION,
            remove_down_after: Some(REMEMBERED),
            // The kind stands before it.
            max_packet_size: some(swim::DATAGRAM_MAX - 1),
            notify_down_members: true,
            periodic_announce: often(ANNOUNCE),
            periodic_announce_to_down_members: often(ANNOUNCE),
            periodic_gossip: often(GOSSIP),
        };
        let foca = Foca::new(Id(own), config, SmallRng::seed_from_u64(seed), Wire);
        Self {
            own: own.node,
            foca,
            outbox: Outbox::default(),
            timers: BinaryHeap::new(),
            timers_made: 0,
            members: HashSet::new(),
            links: HashMap::new(),
        }
    }

    /// Takes who the other members are. Nobody asks after those who are none any more.
    pub(super) fn members(&mut self, members: impl IntoIterator<Item = NodeId>, now: Instant) {
        let members: HashSet<_> = members.into_iter().filter(|node| *node != self.own).collect();
        let gone: Vec<_> = self.foca.iter_members().filter(|known| !members.contains(&known.id().0.node)).cloned().collect();
        self.members = members;
        if !gone.is_empty() {
            let gone = gone.into_iter().map(|known| Member::new(*known.id(), known.incarnation(), foca::State::Down));
            let _ = self.foca.apply_many(gone, false, &mut self.outbox);
            self.schedule(now);
        }
    }

    /// A connection has come up.
    pub(super) fn linked(&mut self, peer: NodeId, life: u64, version: u16, now: Instant) {
        self.links.insert(peer, Direct { life, version, heard: now, rate: (now, 0) });
        if version >= DATAGRAMS_SINCE && self.members.contains(&peer) {
            let id = Id(Life { node: peer, number: life });
            let _ = self.foca.apply_many([Member::alive(id)].into_iter(), true, &mut self.outbox);
            // It may know more, or take this node for dead.
            let _ = self.foca.announce(id, &mut self.outbox);
            self.schedule(now);
        }
    }

    /// A connection has ended.
    pub(super) fn unlinked(&mut self, peer: &NodeId) {
        self.links.remove(peer);
    }

    /// The connections that it was told of: peer and life.
    pub(super) fn links(&self) -> impl Iterator<Item = (NodeId, u64)> {
        self.links.iter().map(|(node, link)| (*node, link.life))
    }

    /// Something came over a peer's connection.
    pub(super) fn heard(&mut self, peer: &NodeId, now: Instant) {
        if let Some(link) = self.links.get_mut(peer) {
            link.heard = now;
        }
    }

    /// A datagram came over a peer's connection; `false` when it was refused.
    pub(super) fn datagram(&mut self, peer: NodeId, bytes: &[u8], now: Instant) -> bool {
        let Some(link) = self.links.get_mut(&peer).filter(|link| link.version >= DATAGRAMS_SINCE) else { return false };
        link.heard = now;
        if now.saturating_duration_since(link.rate.0) >= Duration::from_secs(1) {
            link.rate = (now, 0);
        }
        link.rate.1 += 1;
        if link.rate.1 > RATE_MAX {
            return false;
        }
        let Some(packet) = self.admit(peer, bytes) else { return false };
        if let Err(error) = self.foca.handle_data(&packet, &mut self.outbox) {
            tracing::debug!(?peer, %error, "a datagram was not understood");
        }
        self.schedule(now);
        true
    }

    /// What is read of a datagram: it must come from whom it says it does; what it says of strangers is left out.
    fn admit(&self, peer: NodeId, bytes: &[u8]) -> Option<Vec<u8>> {
        let mut datagram = Datagram::parse(bytes).ok()?;
        let is_known = |node: &NodeId| *node == self.own || self.members.contains(node);
        let header = &datagram.header;
        let about = match header.word {
            Word::PingRequest(life) | Word::IndirectPing(life) | Word::IndirectAck(life) | Word::ForwardedAck(life) => Some(life.node),
            Word::Ping | Word::Ack | Word::Announce | Word::Feed | Word::Gossip | Word::TurnUndead => None,
        };
        if header.from.node != peer || header.to.node != self.own || !is_known(&peer) || about.is_some_and(|node| !is_known(&node)) {
            return None;
        }
        datagram.news.retain(|news| is_known(&news.life.node));
        Some(datagram.to_bytes().split_off(1))
    }

    /// Does what is due.
    pub(super) fn tick(&mut self, now: Instant) {
        while self.timers.peek().is_some_and(|due| due.at <= now) {
            let due = self.timers.pop().expect("looked at");
            if let Err(error) = self.foca.handle_timer(due.timer, &mut self.outbox) {
                tracing::debug!(%error, "a round of questions was cut short");
            }
            self.schedule(now);
        }
        // After beginning another life, foca asks nobody until somebody speaks to it; and if they all have died, never.
        let _ = self.foca.apply_many(std::iter::empty(), false, &mut self.outbox);
        self.schedule(now);
    }

    /// When [`Liveness::tick`] is due.
    pub(super) fn due(&self) -> Option<Instant> {
        self.timers.peek().map(|due| due.at)
    }

    /// What is to be sent, and to whom; only over connections that are up.
    pub(super) fn take(&mut self) -> Vec<(NodeId, Bytes)> {
        let links = &self.links;
        let has_datagrams = |node: &NodeId| links.get(node).is_some_and(|link| link.version >= DATAGRAMS_SINCE);
        self.outbox.sends.drain(..).filter(|(to, _)| has_datagrams(to)).collect()
    }

    /// How every other member is.
    pub(super) fn conditions(&self, now: Instant) -> Vec<(NodeId, Condition)> {
        let told: HashMap<_, _> = self.foca.iter_membership_state().map(|known| (known.id().0.node, known.state())).collect();
        let condition = |node: &NodeId| {
            let link = self.links.get(node);
            let is_fresh = link.is_some_and(|link| now.saturating_duration_since(link.heard) < FRESH);
            match told.get(node) {
                _ if is_fresh => Condition::Alive,
                Some(foca::State::Alive) => Condition::Alive,
                Some(foca::State::Suspect) => Condition::Suspect,
                // Nobody else is asked about it.
                None if link.is_some() => Condition::Suspect,
                Some(foca::State::Down) | None => Condition::Down,
            }
        };
        self.members.iter().map(|node| (*node, condition(node))).collect()
    }

    fn schedule(&mut self, now: Instant) {
        for (timer, after) in self.outbox.timers.drain(..) {
            self.timers_made += 1;
            self.timers.push(Due { at: now + after, made: self.timers_made, timer });
        }
    }
}

/// A life, as foca names members. Of two lives of one node the later one stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Id(Life);

impl foca::Identity for Id {
    type Addr = NodeId;

    fn renew(&self) -> Option<Self> {
        Some(Id(Life { node: self.0.node, number: self.0.number.checked_add(1)? }))
    }

    fn addr(&self) -> NodeId {
        self.0.node
    }

    fn win_addr_conflict(&self, adversary: &Self) -> bool {
        self.0.number > adversary.0.number
    }
}

/// What foca wants done.
#[derive(Default)]
struct Outbox {
    sends: Vec<(NodeId, Bytes)>,
    timers: Vec<(Timer<Id>, Duration)>,
}

impl Runtime<Id> for Outbox {
    fn notify(&mut self, _: Notification<'_, Id>) {}

    fn send_to(&mut self, to: Id, data: &[u8]) {
        let mut bytes = Vec::with_capacity(1 + data.len());
        bytes.push(swim::KIND);
        bytes.extend_from_slice(data);
        self.sends.push((to.0.node, bytes.into()));
    }

    fn submit_after(&mut self, timer: Timer<Id>, after: Duration) {
        self.timers.push((timer, after));
    }
}

/// A timer; the first to fire is the greatest.
struct Due {
    at: Instant,
    made: u64,
    timer: Timer<Id>,
}

impl Ord for Due {
    fn cmp(&self, other: &Self) -> Ordering {
        (other.at, other.made).cmp(&(self.at, self.made))
    }
}

impl PartialOrd for Due {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl PartialEq for Due {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other).is_eq()
    }
}

impl Eq for Due {}

/// foca's words as the protocol writes them.
struct Wire;

#[derive(Debug, thiserror::Error)]
enum WireError {
    #[error(transparent)]
    Damaged(#[from] swim::InvalidDatagram),
    #[error("no room left in the datagram")]
    Full,
    #[error("no word of the protocol")]
    Word,
}

impl foca::Codec<Id> for Wire {
    type Error = WireError;

    fn encode_header(&mut self, header: &Header<Id>, buffer: impl BufMut) -> Result<(), WireError> {
        let (word, number) = match header.message.clone() {
            Message::Ping(number) => (Word::Ping, number),
            Message::Ack(number) => (Word::Ack, number),
            Message::PingReq { target, probe_number } => (Word::PingRequest(target.0), probe_number),
            Message::IndirectPing { origin, probe_number } => (Word::IndirectPing(origin.0), probe_number),
            Message::IndirectAck { target, probe_number } => (Word::IndirectAck(target.0), probe_number),
            Message::ForwardedAck { origin, probe_number } => (Word::ForwardedAck(origin.0), probe_number),
            Message::Announce => (Word::Announce, 0),
            Message::Feed => (Word::Feed, 0),
            Message::Gossip => (Word::Gossip, 0),
            Message::TurnUndead => (Word::TurnUndead, 0),
            Message::Broadcast => return Err(WireError::Word),
        };
        let header = swim::Header { from: header.src.0, incarnation: header.src_incarnation, to: header.dst.0, word, number };
        put(buffer, |bytes| header.write(bytes))
    }

    fn decode_header(&mut self, buffer: impl Buf) -> Result<Header<Id>, WireError> {
        let header = get(buffer, swim::Header::read)?;
        let number = header.number;
        let message = match header.word {
            Word::Ping => Message::Ping(number),
            Word::Ack => Message::Ack(number),
            Word::PingRequest(life) => Message::PingReq { target: Id(life), probe_number: number },
            Word::IndirectPing(life) => Message::IndirectPing { origin: Id(life), probe_number: number },
            Word::IndirectAck(life) => Message::IndirectAck { target: Id(life), probe_number: number },
            Word::ForwardedAck(life) => Message::ForwardedAck { origin: Id(life), probe_number: number },
            Word::Announce => Message::Announce,
            Word::Feed => Message::Feed,
            Word::Gossip => Message::Gossip,
            Word::TurnUndead => Message::TurnUndead,
        };
        Ok(Header { src: Id(header.from), src_incarnation: header.incarnation, dst: Id(header.to), message })
    }

    fn encode_member(&mut self, member: &Member<Id>, buffer: impl BufMut) -> Result<(), WireError> {
        let state = match member.state() {
            foca::State::Alive => swim::State::Alive,
            foca::State::Suspect => swim::State::Suspect,
            foca::State::Down => swim::State::Down,
        };
        let news = News { life: member.id().0, incarnation: member.incarnation(), state };
        put(buffer, |bytes| news.write(bytes))
    }

    fn decode_member(&mut self, buffer: impl Buf) -> Result<Member<Id>, WireError> {
        let news = get(buffer, News::read)?;
        let state = match news.state {
            swim::State::Alive => foca::State::Alive,
            swim::State::Suspect => foca::State::Suspect,
            swim::State::Down => foca::State::Down,
        };
        Ok(Member::new(Id(news.life), news.incarnation, state))
    }
}

fn put(mut buffer: impl BufMut, write: impl FnOnce(&mut Vec<u8>)) -> Result<(), WireError> {
    let mut bytes = Vec::new();
    write(&mut bytes);
    if buffer.remaining_mut() < bytes.len() {
        return Err(WireError::Full);
    }
    buffer.put_slice(&bytes);
    Ok(())
}

fn get<T>(mut buffer: impl Buf, read: impl FnOnce(&mut &[u8]) -> Result<T, swim::InvalidDatagram>) -> Result<T, WireError> {
    let whole = buffer.chunk();
    let mut rest = whole;
    let value = read(&mut rest)?;
    let taken = whole.len() - rest.len();
    buffer.advance(taken);
    Ok(value)
}

#[cfg(test)]
mod tests;
