//! Caps on bytes: `peers.bandwidth` for all peers together and `peers.bandwidth_zone` for those in other zones, as token buckets
//! that may be overdrawn by one piece. Among what waits, the class decides, and within a class the peers take turns.
//! Only blobs are paced; records, hellos and questions never wait here. Who is sent a chunk at all is decided in [`super::turns`].

use std::collections::{HashMap, VecDeque};
use std::sync::Mutex;
use std::time::{Duration, Instant};

use larder_protocol::message::Class;
use larder_protocol::stamp::NodeId;
use tokio::sync::{Notify, oneshot};

use super::links::lock;

/// What a bucket holds: the bytes of this time, and a piece at least.
const BURST: Duration = Duration::from_millis(20);
/// Bytes that are sent at a time.
pub(super) const PIECE: usize = 64 << 10;
/// The least that is slept for.
const NAP: Duration = Duration::from_millis(1);

const CLASSES: usize = 3;

fn rank(class: Class) -> usize {
    match class {
        Class::Client => 0,
        Class::Replication => 1,
        Class::Repair => 2,
    }
}

/// A bucket of bytes that fills at a rate.
#[derive(Debug)]
struct Bucket {
    rate: u64,
    level: f64,
    at: Duration,
}

impl Bucket {
    fn new(rate: u64) -> Self {
        Self { rate, level: 0.0, at: Duration::ZERO }
    }

    fn fill(&mut self, now: Duration) {
        let most = (self.rate as f64 * BURST.as_secs_f64()).max(PIECE as f64);
        self.level = (self.level + self.rate as f64 * now.saturating_sub(self.at).as_secs_f64()).min(most);
        self.at = now;
    }

    /// How long until something may be taken again.
    fn wait(&self) -> Duration {
        Duration::from_secs_f64(((-self.level).max(0.0) + 1.0) / self.rate as f64).max(NAP)
    }
}

/// One piece that waits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Piece {
    ticket: u64,
    is_far: bool,
    bytes: u64,
}

/// The caps, and what waits under them: without a clock.
#[derive(Debug)]
pub(super) struct Pace {
    all: Option<Bucket>,
    far: Option<Bucket>,
    next: u64,
    /// By class: the peers in turn, each with its pieces.
    waiting: [VecDeque<(NodeId, VecDeque<Piece>)>; CLASSES],
}

impl Pace {
    fn new(all: Option<u64>, far: Option<u64>) -> Self {
        Self { all: all.map(Bucket::new), far: far.map(Bucket::new), next: 0, waiting: Default::default() }
    }

    fn ask(&mut self, class: Class, peer: NodeId, is_far: bool, bytes: u64) -> u64 {
        let piece = Piece { ticket: self.next, is_far, bytes };
        self.next += 1;
        let waiting = &mut self.waiting[rank(class)];
        match waiting.iter_mut().find(|(waits, _)| *waits == peer) {
            Some((_, pieces)) => pieces.push_back(piece),
            None => waiting.push_back((peer, VecDeque::from([piece]))),
        }
        piece.ticket
    }

    /// The next piece that may go, if any may.
    fn grant(&mut self, now: Duration) -> Option<u64> {
        for bucket in [&mut self.all, &mut self.far].into_iter().flatten() {
            bucket.fill(now);
        }
        if self.all.as_ref().is_some_and(|all| all.level <= 0.0) {
            return None;
        }
        let far_is_dry = self.far.as_ref().is_some_and(|far| far.level <= 0.0);
        for waiting in &mut self.waiting {
            // What may not cross lets those pass who stay here.
            let Some(at) = waiting.iter().position(|(_, pieces)| !(far_is_dry && pieces[0].is_far)) else { continue };
            let (peer, mut pieces) = waiting.remove(at).expect("looked at just now");
            let piece = pieces.pop_front().expect("no peer waits with nothing");
            if !pieces.is_empty() {
                waiting.push_back((peer, pieces));
            }
            if let Some(all) = &mut self.all {
                all.level -= piece.bytes as f64;
            }
            if let Some(far) = self.far.as_mut().filter(|_| piece.is_far) {
                far.level -= piece.bytes as f64;
            }
            return Some(piece.ticket);
        }
        None
    }

    /// How long nothing more may go; `None`: nothing waits.
    fn wait(&self) -> Option<Duration> {
        if self.waiting.iter().all(VecDeque::is_empty) {
            return None;
        }
        let dry = [&self.all, &self.far].into_iter().flatten().filter(|bucket| bucket.level <= 0.0);
        Some(dry.map(Bucket::wait).min().unwrap_or(NAP))
    }
}

/// The caps at work.
#[derive(Debug)]
pub(super) struct Pacer {
    begun: Instant,
    is_limited: bool,
    state: Mutex<(Pace, HashMap<u64, oneshot::Sender<()>>)>,
    ring: Notify,
}

impl Pacer {
    /// Bytes a second; `None`: as many as go.
    pub(super) fn new(all: Option<u64>, far: Option<u64>) -> Self {
        let is_limited = all.is_some() || far.is_some();
        Self { begun: Instant::now(), is_limited, state: Mutex::new((Pace::new(all, far), HashMap::new())), ring: Notify::new() }
    }

    /// Waits until so many bytes may go to a peer. Dropped, its place is passed over, and counts as used.
    pub(super) async fn pass(&self, class: Class, peer: NodeId, is_far: bool, bytes: u64) {
        if !self.is_limited {
            return;
        }
        let waiting = {
            let mut state = lock(&self.state);
            let (ready, waiting) = oneshot::channel();
            let ticket = state.0.ask(class, peer, is_far, bytes);
            state.1.insert(ticket, ready);
            waiting
        };
        self.ring.notify_one();
        // The task that grants ends with the node; what is still to be sent then may go.
        let _ = waiting.await;
    }

    /// Grants what waits, until the node stops.
    pub(super) async fn run(&self, stopping: impl Future<Output = ()>) {
        tokio::pin!(stopping);
        loop {
            let wait = {
                let mut state = lock(&self.state);
                let now = self.begun.elapsed();
                while let Some(ticket) = state.0.grant(now) {
                    if let Some(ready) = state.1.remove(&ticket) {
                        let _ = ready.send(());
                    }
                }
                state.0.wait()
            };
            let nap = async {
                match wait {
                    Some(wait) => tokio::time::sleep(wait).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                () = &mut stopping => {
                    lock(&self.state).1.clear();
                    return;
                }
                () = self.ring.notified() => {}
                () = nap => {}
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;

    fn node(number: u8) -> NodeId {
        NodeId([number; 32])
    }

    /// Grants for so long, by milliseconds; who got how much.
    fn run(pace: &mut Pace, time: Duration, mut ask: impl FnMut(&mut Pace, &mut HashMap<u64, (u8, u64)>)) -> HashMap<u8, u64> {
        let (mut asked, mut got) = (HashMap::new(), HashMap::new());
        for ms in 0..time.as_millis() as u64 {
            ask(pace, &mut asked);
            while let Some(ticket) = pace.grant(Duration::from_millis(ms)) {
                let (who, bytes) = asked.remove(&ticket).expect("asked for");
                *got.entry(who).or_default() += bytes;
                ask(pace, &mut asked);
            }
        }
        got
    }

    /// Keeps so many pieces of a peer waiting.
    fn keep(pace: &mut Pace, asked: &mut HashMap<u64, (u8, u64)>, who: u8, class: Class, is_far: bool, count: usize) {
        while asked.values().filter(|(other, _)| *other == who).count() < count {
            asked.insert(pace.ask(class, node(who), is_far, PIECE as u64), (who, PIECE as u64));
        }
    }

    #[test]
    fn f20_a_cap_holds_and_a_greedy_peer_gets_no_more_than_another() {
        let mut pace = Pace::new(Some(10 * MIB), None);
        let got = run(&mut pace, Duration::from_secs(2), |pace, asked| {
            keep(pace, asked, 1, Class::Client, false, 50);
            keep(pace, asked, 2, Class::Client, false, 1);
        });
        let (greedy, modest) = (got[&1], got[&2]);
        assert!((19 * MIB..=21 * MIB).contains(&(greedy + modest)), "{greedy} and {modest}");
        assert!(greedy.abs_diff(modest) <= MIB, "{greedy} and {modest}");
    }

    #[test]
    fn clients_go_before_copies_and_copies_before_repairs() {
        let mut pace = Pace::new(Some(10 * MIB), None);
        let got = run(&mut pace, Duration::from_secs(1), |pace, asked| {
            keep(pace, asked, 1, Class::Repair, false, 4);
            keep(pace, asked, 2, Class::Replication, false, 4);
            keep(pace, asked, 3, Class::Client, false, 4);
        });
        assert!(!got.contains_key(&1) && !got.contains_key(&2) && got[&3] > 9 * MIB, "{got:?}");
        let got = run(&mut Pace::new(Some(10 * MIB), None), Duration::from_secs(1), |pace, asked| {
            keep(pace, asked, 1, Class::Repair, false, 4);
        });
        assert!(got[&1] > 9 * MIB, "who is alone has all of it");
    }

    #[test]
    fn what_crosses_to_another_zone_has_a_cap_of_its_own_and_lets_the_others_pass() {
        let mut pace = Pace::new(Some(10 * MIB), Some(2 * MIB));
        let got = run(&mut pace, Duration::from_secs(2), |pace, asked| {
            keep(pace, asked, 1, Class::Client, true, 8);
            keep(pace, asked, 2, Class::Replication, false, 8);
        });
        assert!((3 * MIB..=5 * MIB).contains(&got[&1]), "{got:?}");
        assert!((14 * MIB..=17 * MIB).contains(&got[&2]), "{got:?}");
    }
}
