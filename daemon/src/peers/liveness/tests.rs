//! Liveness in a simulated network: loss, delays, one-way cuts, kills and restarts, by seeds.

use std::cmp::Reverse;

use larder_harness::{Random, for_seeds};

use super::*;

/// What QUIC does to a connection on which nothing is heard.
const IDLE: Duration = Duration::from_secs(20);
const KEEP_ALIVE: Duration = Duration::from_secs(5);
/// A death is known everywhere after so long.
const DETECTED: Duration = Duration::from_secs(60);
/// After the last fault, everyone is alive for everyone after so long.
const HEALED: Duration = Duration::from_secs(90);

fn node(index: usize) -> NodeId {
    NodeId([index as u8 + 1; 32])
}

struct Site {
    liveness: Option<Liveness>,
    life: u64,
    /// When each other one's connection last brought something; no entry: no connection.
    heard: HashMap<usize, Instant>,
    version: u16,
    since: Instant,
}

/// When it arrives, its number, from, to, bytes (none: a keep-alive).
type Packet = (Instant, u64, usize, usize, Option<Bytes>);

struct Network {
    now: Instant,
    dice: Random,
    sites: Vec<Site>,
    /// From, to: nothing passes.
    cuts: HashSet<(usize, usize)>,
    loss: u64,
    wire: BinaryHeap<Reverse<Packet>>,
    sent: u64,
    sent_bytes: u64,
}

impl Network {
    fn new(seed: u64, versions: &[u16]) -> Self {
        let mut network = Self {
            now: Instant::now(),
            dice: Random::new(seed),
            sites: Vec::new(),
            cuts: HashSet::new(),
            loss: 0,
            wire: BinaryHeap::new(),
            sent: 0,
            sent_bytes: 0,
        };
        for version in versions {
            let site = Site { liveness: None, life: 100, heard: HashMap::new(), version: *version, since: network.now };
            network.sites.push(site);
        }
        (0..versions.len()).for_each(|index| network.start(index));
        network
    }

    fn start(&mut self, index: usize) {
        let (count, now) = (self.sites.len(), self.now);
        let seed = self.dice.number();
        let site = &mut self.sites[index];
        site.life += 1;
        site.since = now;
        let mut liveness = Liveness::new(Life { node: node(index), number: site.life }, seed);
        liveness.members((0..count).map(node), now);
        site.liveness = Some(liveness);
    }

    /// Nobody hears a goodbye.
    fn kill(&mut self, index: usize) {
        self.sites[index].liveness = None;
        self.sites[index].heard.clear();
    }

    fn send(&mut self, from: usize, to: usize, bytes: Option<Bytes>) {
        self.sent += u64::from(bytes.is_some());
        self.sent_bytes += bytes.as_ref().map_or(0, |bytes| bytes.len() as u64);
        // QUIC sends a keep-alive again until it is acknowledged.
        if self.cuts.contains(&(from, to)) || bytes.is_some() && self.dice.below(100) < self.loss {
            return;
        }
        let delay = Duration::from_millis(1 + self.dice.below(150));
        self.sent += 1;
        self.wire.push(Reverse((self.now + delay, self.sent, from, to, bytes)));
    }

    fn can_talk(&self, a: usize, b: usize) -> bool {
        !self.cuts.contains(&(a, b)) && !self.cuts.contains(&(b, a)) && [a, b].iter().all(|site| self.sites[*site].liveness.is_some())
    }

    /// What the endpoints do once in a second: give up what is silent, call who has no connection.
    fn connect(&mut self) {
        let (count, now) = (self.sites.len(), self.now);
        for (a, b) in (0..count).flat_map(|a| (0..count).map(move |b| (a, b))).filter(|(a, b)| a != b) {
            if self.sites[a].heard.get(&b).is_some_and(|heard| now - *heard > IDLE) {
                self.sites[a].heard.remove(&b);
                if let Some(liveness) = &mut self.sites[a].liveness {
                    liveness.unlinked(&node(b));
                }
            }
            let is_half = !self.sites[a].heard.contains_key(&b) || !self.sites[b].heard.contains_key(&a);
            if a < b && is_half && self.can_talk(a, b) {
                let version = self.sites[a].version.min(self.sites[b].version);
                for (this, that) in [(a, b), (b, a)] {
                    let life = self.sites[that].life;
                    self.sites[this].heard.insert(that, now);
                    let liveness = self.sites[this].liveness.as_mut().expect("it can talk");
                    liveness.linked(node(that), life, version, now);
                }
            }
        }
    }

    fn run(&mut self, time: Duration, mut check: impl FnMut(&Self)) {
        let end = self.now + time;
        let (mut next_second, mut next_keep_alive) = (self.now, self.now);
        while self.now < end {
            if self.now >= next_second {
                next_second = self.now + Duration::from_secs(1);
                self.connect();
                check(self);
            }
            if self.now >= next_keep_alive {
                next_keep_alive = self.now + KEEP_ALIVE;
                let links: Vec<_> = (0..self.sites.len()).flat_map(|a| self.sites[a].heard.keys().map(move |b| (a, *b))).collect();
                links.into_iter().for_each(|(a, b)| self.send(a, b, None));
            }
            for index in 0..self.sites.len() {
                let now = self.now;
                let Some(liveness) = &mut self.sites[index].liveness else { continue };
                liveness.tick(now);
                for (to, bytes) in liveness.take() {
                    self.send(index, usize::from(to.0[0]) - 1, Some(bytes));
                }
            }
            let timers = self.sites.iter().filter_map(|site| site.liveness.as_ref()?.due()).min();
            let arrival = self.wire.peek().map(|next| next.0.0);
            self.now = [timers, arrival].into_iter().flatten().chain([next_second, next_keep_alive, end]).min().expect("one").max(self.now);
            while self.wire.peek().is_some_and(|next| next.0.0 <= self.now) {
                let Reverse((_, _, from, to, bytes)) = self.wire.pop().expect("looked at");
                let now = self.now;
                let site = &mut self.sites[to];
                let (Some(liveness), Some(heard)) = (&mut site.liveness, site.heard.get_mut(&from)) else { continue };
                *heard = now;
                match bytes {
                    Some(bytes) => assert!(liveness.datagram(node(from), &bytes, now), "a member's own words are taken"),
                    None => liveness.heard(&node(from), now),
                }
            }
        }
    }

    fn condition(&self, of: usize, at: usize) -> Condition {
        let conditions = self.sites[at].liveness.as_ref().expect("it runs").conditions(self.now);
        conditions.into_iter().find(|(id, _)| *id == node(of)).expect("a member").1
    }

    fn describe(&self) -> String {
        let seen = |at: usize| (0..self.sites.len()).filter(move |of| *of != at).map(move |of| (of, self.condition(of, at)));
        let all =
            self.up().into_iter().map(|at| format!("{at} for {:?}: {:?}", self.now - self.sites[at].since, seen(at).collect::<Vec<_>>()));
        all.collect::<Vec<_>>().join("; ")
    }

    fn up(&self) -> Vec<usize> {
        (0..self.sites.len()).filter(|index| self.sites[*index].liveness.is_some()).collect()
    }

    fn all_see(&self, of: usize, condition: Condition) -> bool {
        self.up().into_iter().filter(|at| *at != of).all(|at| self.condition(of, at) == condition)
    }
}

#[test]
fn the_dead_are_found_and_the_living_come_back_whatever_happened() {
    for_seeds(|seed| {
        let mut dice = Random::new(seed ^ 0xfeed);
        let count = 2 + dice.below(5) as usize;
        let mut network = Network::new(seed, &vec![2; count]);
        network.loss = [0, 0, 5, 30][dice.below(4) as usize];
        for _ in 0..dice.below(4) {
            let (a, b) = (dice.below(count as u64) as usize, dice.below(count as u64) as usize);
            match dice.below(3) {
                0 => {
                    network.cuts.insert((a, b));
                }
                1 if a != b => network.cuts.extend([(a, b), (b, a)]),
                _ if network.sites[a].liveness.is_some() => network.kill(a),
                _ => network.start(a),
            }
            let time = Duration::from_secs(1 + dice.below(40));
            network.run(time, |network| {
                // One's own eyes: whoever was heard a moment ago is not down.
                for (at, site) in network.sites.iter().enumerate().filter(|(_, site)| site.liveness.is_some()) {
                    for (of, _) in site.heard.iter().filter(|(_, heard)| network.now - **heard < FRESH) {
                        assert_eq!(network.condition(*of, at), Condition::Alive, "{of} seen by {at}");
                    }
                }
            });
        }
        network.cuts.clear();
        network.loss = 0;
        let dead: Vec<_> = (0..count).filter(|index| network.sites[*index].liveness.is_none()).collect();
        network.run(DETECTED, |_| ());
        assert!(dead.iter().all(|of| network.all_see(*of, Condition::Down)), "a death was not noticed: {}", network.describe());
        dead.into_iter().for_each(|index| network.start(index));
        network.run(HEALED, |_| ());
        assert!((0..count).all(|of| network.all_see(of, Condition::Alive)), "someone living is taken for dead: {}", network.describe());
    });
}

#[test]
fn f19_a_one_way_link_counts_as_down_in_time_and_alive_where_others_hear_it() {
    for seed in 0..20 {
        // Two nodes: what A sends does not reach B.
        let mut network = Network::new(seed, &[2, 2]);
        network.run(Duration::from_secs(10), |_| ());
        network.cuts.insert((0, 1));
        network.run(Duration::from_secs(120), |_| ());
        assert!(network.all_see(1, Condition::Down) && network.all_see(0, Condition::Down));
        assert!(network.sites.iter().all(|site| site.heard.is_empty()), "no half-open connection is left");

        // A third one hears both: they are alive, and have no connection.
        let mut network = Network::new(seed, &[2, 2, 2]);
        network.run(Duration::from_secs(10), |_| ());
        network.cuts.insert((0, 1));
        network.run(Duration::from_secs(120), |_| ());
        assert!(!network.sites[0].heard.contains_key(&1) && !network.sites[1].heard.contains_key(&0));
        let mut steady = 0;
        network.run(Duration::from_secs(60), |network| {
            steady += u32::from((0..3).all(|of| network.all_see(of, Condition::Alive)));
        });
        assert!(steady >= 57, "alive through the third in {steady} of 60 seconds");
    }
}

#[test]
fn f43_peers_of_version_1_are_alive_while_they_are_heard() {
    let mut network = Network::new(1, &[2, 1, 2]);
    network.run(Duration::from_secs(30), |_| ());
    assert!((0..3).all(|of| network.all_see(of, Condition::Alive)));
    network.kill(1);
    network.run(Duration::from_secs(12), |_| ());
    assert!(network.all_see(1, Condition::Suspect), "silent, and its connection is still there");
    network.run(Duration::from_secs(12), |_| ());
    assert!(network.all_see(1, Condition::Down));
    network.start(1);
    network.run(Duration::from_secs(10), |_| ());
    assert!((0..3).all(|of| network.all_see(of, Condition::Alive)));
}

#[test]
fn a_member_that_is_expelled_is_not_asked_after_any_more() {
    let mut network = Network::new(1, &[2, 2, 2]);
    network.run(Duration::from_secs(20), |_| ());
    for index in 0..2 {
        let now = network.now;
        network.sites[index].liveness.as_mut().expect("runs").members((0..2).map(node), now);
    }
    network.kill(2);
    for site in &mut network.sites[..2] {
        site.heard.remove(&2);
        site.liveness.as_mut().expect("runs").unlinked(&node(2));
    }
    network.run(Duration::from_secs(60), |_| ());
    for site in &network.sites[..2] {
        let conditions = site.liveness.as_ref().expect("runs").conditions(network.now);
        assert!(conditions.iter().all(|(id, condition)| *id != node(2) && *condition == Condition::Alive) && conditions.len() == 1);
    }
}

#[test]
fn s36_what_is_said_in_anothers_name_or_about_strangers_is_not_heard() {
    let mut network = Network::new(1, &[2, 2, 2]);
    network.run(Duration::from_secs(20), |_| ());
    let life = |index: usize, number| Life { node: node(index), number };
    let now = network.now;
    let of = network.sites.iter().map(|site| site.life).collect::<Vec<_>>();
    let victim = network.sites[0].liveness.as_mut().expect("runs");
    let say = |from, to, news: Vec<News>| {
        let header = swim::Header { from, incarnation: 0, to, word: Word::Gossip, number: 0 };
        Datagram { header, news }.to_bytes()
    };
    let down = |life| News { life, incarnation: 9, state: swim::State::Down };
    // 1 speaks as 2, and to somebody else.
    assert!(!victim.datagram(node(1), &say(life(2, of[2]), life(0, of[0]), vec![]), now));
    assert!(!victim.datagram(node(1), &say(life(1, of[1]), life(2, of[2]), vec![]), now));
    assert!(!victim.datagram(node(1), b"", now) && !victim.datagram(node(1), &[swim::KIND; 400], now));
    // A stranger is not heard at all, and not heard of.
    assert!(!victim.datagram(node(7), &say(life(7, 1), life(0, of[0]), vec![]), now));
    let strangers = (10..30).map(|index| News { life: life(index, 1), incarnation: 0, state: swim::State::Alive }).collect();
    assert!(victim.datagram(node(1), &say(life(1, of[1]), life(0, of[0]), strangers), now));
    assert_eq!(victim.foca.num_members(), 2);
    let about = swim::Header { from: life(1, of[1]), incarnation: 0, to: life(0, of[0]), word: Word::PingRequest(life(9, 1)), number: 0 };
    assert!(!victim.datagram(node(1), &Datagram { header: about, news: vec![] }.to_bytes(), now));
    assert!(victim.take().is_empty(), "nobody is called for a stranger's sake");
    // A lie about one whom this node hears itself changes nothing.
    assert!(victim.datagram(node(1), &say(life(1, of[1]), life(0, of[0]), vec![down(life(2, of[2]))]), now));
    assert!(victim.conditions(now).iter().all(|(_, condition)| *condition == Condition::Alive));
    // And a flood is not listened to.
    let ping = say(life(1, of[1]), life(0, of[0]), vec![]);
    let taken = (0..10 * RATE_MAX).filter(|_| victim.datagram(node(1), &ping, now)).count();
    assert!(taken <= RATE_MAX as usize, "{taken}");
}

#[test]
fn a_life_that_was_declared_over_begins_another() {
    let mut network = Network::new(3, &[2, 2, 2]);
    network.run(Duration::from_secs(20), |_| ());
    // For long enough that both sides give the other up.
    for (a, b) in [(0, 1), (0, 2)] {
        network.cuts.extend([(a, b), (b, a)]);
    }
    network.run(DETECTED, |_| ());
    assert_eq!(network.condition(0, 1), Condition::Down);
    network.cuts.clear();
    network.run(HEALED, |_| ());
    for at in 0..3 {
        let foca = &network.sites[at].liveness.as_ref().expect("runs").foca;
        assert_eq!(foca.num_members(), 2, "SWIM itself agrees again at {at}");
    }
}
