//! Who is sent a chunk next.
//!
//! Few chunks are on their way at a time, so that each arrives soon and can be passed on while the next comes; a chunk that takes long
//! gives its turn back. Among those who wait:
//!
//! 1. clients' chunks go before copies, copies before repairs;
//! 2. then the peer to which least is on its way: so a crowd's nodes soon have different things to give each other, and who asks for much gets no
//!    more than who asks for little;
//! 3. then the smaller blob, since a client that pulls a few layers at a time goes on to the next ones when a small one is done, and all of a
//!    crowd then wait for the large ones together. Who has waited for long counts as small;
//! 4. then the peer that was served longest ago.
//!
//! [`Line`] decides, without a clock; the simulation of fetches uses it too. [`Turns`] is the line at work.

use std::collections::{BTreeMap, HashMap};
use std::sync::Mutex;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use larder_protocol::message::Class;
use larder_protocol::stamp::NodeId;
use tokio::sync::oneshot;

use super::links::lock;

/// Chunks that are sent at a time, to all peers together.
const TURNS: usize = 6;
/// After so long a chunk that is still on its way counts no more.
pub(super) const TURN_TIME: Duration = Duration::from_secs(1);
/// Chunks that are on their way to one peer at a time, a MiB of memory each; and when others want some, too: what is sent to many at a time is late
/// everywhere, and nobody can pass it on.
const EACH_MAX: usize = 4;
const EACH_OF_MANY: usize = 2;
/// Who has waited for so long goes before those who want smaller blobs: well before an asker takes a silent peer for one of no use.
const LONG: Duration = Duration::from_secs(5);
/// Places among the chunks that were begun, after which they are counted anew.
pub(super) const PLACES: u32 = 1 << 28;
/// Peers of which it is remembered when they were served.
const REMEMBERED_MAX: usize = 1024;

/// Who waits, and to whom something is on its way.
#[derive(Debug, Default)]
pub(super) struct Line {
    taken: usize,
    next: u64,
    waiting: BTreeMap<u64, Waiting>,
    peers: HashMap<NodeId, Served>,
}

#[derive(Clone, Copy, Debug)]
struct Waiting {
    class: Class,
    peer: NodeId,
    /// Bytes of the blob that it wants a chunk of.
    size: u64,
    since: Duration,
}

#[derive(Clone, Copy, Debug, Default)]
struct Served {
    /// Chunks on their way.
    count: usize,
    /// The ticket that was called last.
    last: Option<u64>,
}

impl Line {
    /// Queues up for a chunk of a blob of `size` bytes; gives a ticket.
    pub(super) fn queue(&mut self, now: Duration, class: Class, peer: NodeId, size: u64) -> u64 {
        self.next += 1;
        self.waiting.insert(self.next, Waiting { class, peer, size, since: now });
        self.next
    }

    /// Leaves the queue; whether the ticket was still waiting.
    pub(super) fn leave(&mut self, ticket: u64) -> bool {
        self.waiting.remove(&ticket).is_some()
    }

    /// The ticket whose turn it is, if a turn is free. It is taken with that.
    pub(super) fn call(&mut self, now: Duration) -> Option<u64> {
        if self.taken >= TURNS {
            return None;
        }
        let begun = self.peers.iter().filter(|(_, served)| served.count > 0).map(|(peer, _)| *peer);
        let mut peers = begun.chain(self.waiting.values().map(|waiting| waiting.peer));
        let first = peers.next();
        let each = if peers.any(|peer| Some(peer) != first) { EACH_OF_MANY } else { EACH_MAX };
        let place = |(ticket, waiting): (&u64, &Waiting)| {
            let served = self.peers.get(&waiting.peer).copied().unwrap_or_default();
            let size = if now.saturating_sub(waiting.since) < LONG { waiting.size } else { 0 };
            (served.count < each).then_some((waiting.class as u8, served.count, size, served.last, *ticket))
        };
        let (.., ticket) = self.waiting.iter().filter_map(place).min()?;
        let peer = self.waiting.remove(&ticket).expect("it was looked at just now").peer;
        if self.peers.len() >= REMEMBERED_MAX {
            self.peers.retain(|_, served| served.count > 0);
        }
        let called = self.next;
        let served = self.peers.entry(peer).or_default();
        (served.count, served.last) = (served.count + 1, Some(called));
        self.next += 1;
        self.taken += 1;
        Some(ticket)
    }

    /// A turn is over, or was given back.
    pub(super) fn give_back(&mut self) {
        self.taken -= 1;
    }

    /// Nothing more of what was called for a peer is on its way to it.
    pub(super) fn end(&mut self, peer: &NodeId) {
        if let Some(served) = self.peers.get_mut(peer) {
            served.count = served.count.saturating_sub(1);
        }
    }

    /// Whether others wait.
    pub(super) fn is_busy(&self) -> bool {
        !self.waiting.is_empty()
    }
}

/// The line at work.
#[derive(Debug)]
pub(super) struct Turns {
    begun: Instant,
    begun_count: AtomicU32,
    state: Mutex<(Line, HashMap<u64, oneshot::Sender<()>>)>,
}

/// A place in the line, and then a turn; dropped, the next one has it.
#[derive(Debug)]
pub(super) struct Turn<'a> {
    turns: &'a Turns,
    peer: NodeId,
    ticket: u64,
    place: u32,
    is_given_back: bool,
}

impl Turns {
    pub(super) fn new() -> Self {
        Self { begun: Instant::now(), begun_count: AtomicU32::new(0), state: Mutex::default() }
    }

    /// Waits for the turn of a chunk of a blob of `size` bytes. Cancel-safe.
    pub(super) async fn take(&self, class: Class, peer: NodeId, size: u64) -> Turn<'_> {
        let (ready, called) = oneshot::channel();
        let ticket = {
            let mut state = lock(&self.state);
            let ticket = state.0.queue(self.begun.elapsed(), class, peer, size);
            state.1.insert(ticket, ready);
            ticket
        };
        // Made before the wait, so that a turn which comes while this is dropped is passed on.
        let mut turn = Turn { turns: self, peer, ticket, place: 0, is_given_back: false };
        self.call();
        called.await.expect("turns outlive those who wait");
        turn.place = self.begun_count.fetch_add(1, Ordering::Relaxed) % PLACES;
        turn
    }

    /// Whether others wait.
    pub(super) fn is_busy(&self) -> bool {
        lock(&self.state).0.is_busy()
    }

    fn call(&self) {
        let (line, ready) = &mut *lock(&self.state);
        while let Some(ticket) = line.call(self.begun.elapsed()) {
            if let Some(ready) = ready.remove(&ticket) {
                // Who does not hear it any more drops its turn.
                let _ = ready.send(());
            }
        }
    }
}

impl Turn<'_> {
    /// Its place among all that were called: what was begun first is sent first, so that it is soon whole and can be passed on.
    pub(super) fn place(&self) -> i32 {
        self.place as i32
    }

    /// Lets the next one begin, though this chunk is still on its way.
    pub(super) fn give_back(&mut self) {
        if !std::mem::replace(&mut self.is_given_back, true) {
            lock(&self.turns.state).0.give_back();
            self.turns.call();
        }
    }
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        {
            let (line, ready) = &mut *lock(&self.turns.state);
            ready.remove(&self.ticket);
            if !line.leave(self.ticket) {
                line.end(&self.peer);
                if !self.is_given_back {
                    line.give_back();
                }
            }
        }
        self.turns.call();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: Duration = Duration::ZERO;
    const LARGE: u64 = 1 << 30;

    fn node(number: u8) -> NodeId {
        NodeId([number; 32])
    }

    #[test]
    fn peers_come_one_after_the_other_and_a_greedy_one_gets_no_more() {
        let mut line = Line::default();
        let greedy: Vec<u64> = (0..20).map(|_| line.queue(NOW, Class::Client, node(1), LARGE)).collect();
        let others: Vec<u64> = (2..5).map(|peer| line.queue(NOW, Class::Client, node(peer), LARGE)).collect();
        let called: Vec<u64> = std::iter::from_fn(|| line.call(NOW)).collect();
        assert_eq!(called, [greedy[0], others[0], others[1], others[2], greedy[1]]);
        // Those to whom nothing is on its way any more come first again.
        line.end(&node(3));
        line.give_back();
        let again = line.queue(NOW, Class::Client, node(3), LARGE);
        assert_eq!((line.call(NOW), line.call(NOW)), (Some(again), None));
    }

    #[test]
    fn s35_one_peer_has_only_so_many_on_their_way_whatever_it_asks_for() {
        let mut line = Line::default();
        (0..100).for_each(|_| _ = line.queue(NOW, Class::Client, node(1), LARGE));
        let mut called = 0;
        // Its chunks take long, and give their turns back.
        while line.call(NOW).is_some() {
            line.give_back();
            called += 1;
        }
        assert_eq!(called, EACH_MAX);
        line.end(&node(1));
        assert!(line.call(NOW).is_some(), "one has arrived");
        line.give_back();
        let other = line.queue(NOW, Class::Repair, node(2), LARGE);
        assert_eq!(line.call(NOW), Some(other), "others are served");
        // As long as they are there, the greedy one has fewer.
        (EACH_OF_MANY..EACH_MAX).for_each(|_| line.end(&node(1)));
        assert_eq!(line.call(NOW), None);
        line.end(&node(1));
        assert!(line.call(NOW).is_some());
    }

    #[test]
    fn a_small_blob_goes_first_until_another_has_waited_for_long() {
        let mut line = Line::default();
        let large = line.queue(NOW, Class::Client, node(1), LARGE);
        let small = line.queue(NOW, Class::Client, node(2), 10);
        assert_eq!(line.call(NOW), Some(small));
        let next = line.queue(LONG, Class::Client, node(3), 10);
        assert_eq!((line.call(LONG), line.call(LONG)), (Some(large), Some(next)));
    }

    #[test]
    fn clients_go_before_copies_and_copies_before_repairs() {
        let mut line = Line::default();
        let classes = [Class::Repair, Class::Replication, Class::Client];
        let tickets = classes.map(|class| line.queue(NOW, class, node(1), 10));
        let called: Vec<u64> = std::iter::from_fn(|| line.call(NOW)).collect();
        assert_eq!(called, [tickets[2], tickets[1], tickets[0]]);
    }

    #[tokio::test]
    async fn a_turn_goes_to_who_is_next_and_none_is_lost() {
        let turns = Turns::new();
        let mut taken = Vec::new();
        for peer in 0..TURNS as u8 {
            taken.push(turns.take(Class::Repair, node(peer), 1).await);
        }
        let (repair, client) = (turns.take(Class::Repair, node(101), 1), turns.take(Class::Client, node(100), 1));
        tokio::pin!(repair, client);
        assert!(futures_util::poll!(&mut repair).is_pending() && futures_util::poll!(&mut client).is_pending());
        assert!(turns.is_busy());
        taken.pop();
        assert!(futures_util::poll!(&mut repair).is_pending());
        let std::task::Poll::Ready(mut given) = futures_util::poll!(&mut client) else { panic!("it is the client's turn") };
        // Who leaves while it waits is passed over, and so is who was called and does not hear it any more.
        for is_called in [false, true] {
            let leaving = turns.take(Class::Client, node(102), 1);
            tokio::pin!(leaving);
            assert!(futures_util::poll!(&mut leaving).is_pending());
            if is_called {
                taken.pop();
            }
        }
        assert!(futures_util::poll!(&mut repair).is_ready());
        assert!(!turns.is_busy());
        given.give_back();
        drop(given);
        taken.clear();
        assert_eq!(lock(&turns.state).0.taken, 0);
        assert!(lock(&turns.state).1.is_empty());
    }
}
