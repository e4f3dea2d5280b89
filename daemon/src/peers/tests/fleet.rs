//! How a fleet behaves past what one machine can run: by simulation, and by measuring what one connection costs.
//!
//! `make bench-fleet` prints the table that ARCHITECTURE.md sums up; the suite runs the smallest fleet of each kind. The model: zones of
//! 32 or 100 nodes; 0.5 to 1.5 ms within a zone and 20 to 60 ms between zones; 1 packet of 100 is lost and sent again; one node
//! of 20 is dead and nobody knows it yet; applying a record takes 2 ms. Who is alive is told by the real state machine.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashSet};

use larder_harness::Random;
use larder_protocol::swim::Life;
use larder_protocol::vector::{Origin, VersionVector};

use super::super::liveness::{DATAGRAMS_SINCE, Liveness};
use super::*;

/// Neighbours in one's own zone that a node of a partial view picks; as many pick it.
const NEIGHBOURS: usize = 4;
/// Hubs of a zone.
const HUBS: usize = 2;
/// A tag with what goes with it, as it travels.
const RECORD_BYTES: u64 = 400;
/// What a node says that it knows, when that is little.
const SEEN_BYTES: u64 = 70;
const APPLY_US: u64 = 2_000;

/// Who has a connection with whom.
struct Fleet {
    zone: Vec<usize>,
    links: Vec<Vec<usize>>,
}

/// How a record that came from elsewhere is passed on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Relay {
    /// To everyone that is not known to have it.
    AtOnce,
    /// The same after a while, in which everyone says what it has.
    Patient,
}

const PATIENCE_US: u64 = 500_000;

fn weight(a: usize, b: usize) -> u64 {
    let mut mixed = (a as u64) << 32 ^ b as u64 ^ 0x9e37_79b9_7f4a_7c15;
    for _ in 0..3 {
        mixed = (mixed ^ mixed >> 31).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    }
    mixed
}

/// The `count` of `nodes` that weigh most with `key`.
fn heaviest(key: usize, nodes: &[usize], count: usize) -> Vec<usize> {
    let mut ranked: Vec<_> = nodes.iter().copied().filter(|node| *node != key).collect();
    ranked.sort_unstable_by_key(|node| Reverse(weight(key, *node)));
    ranked.truncate(count);
    ranked
}

impl Fleet {
    fn mesh(count: usize, zone_size: usize) -> Self {
        let links = (0..count).map(|node| (0..count).filter(|other| *other != node).collect()).collect();
        Self { zone: (0..count).map(|node| node / zone_size).collect(), links }
    }

    /// Each node has some neighbours in its zone and the zone's hubs; hubs have each other, across zones.
    fn partial(count: usize, zone_size: usize) -> Self {
        let zones: Vec<Vec<usize>> =
            (0..count.div_ceil(zone_size)).map(|zone| (zone * zone_size..count.min((zone + 1) * zone_size)).collect()).collect();
        // A key that is no node: the zone's.
        let hubs: Vec<Vec<usize>> = zones.iter().enumerate().map(|(zone, nodes)| heaviest(count + zone, nodes, HUBS)).collect();
        let mut links = vec![HashSet::new(); count];
        let mut link = |a: usize, b: usize| {
            if a != b {
                links[a].insert(b);
                links[b].insert(a);
            }
        };
        for (zone, nodes) in zones.iter().enumerate() {
            for node in nodes {
                heaviest(*node, nodes, NEIGHBOURS).into_iter().chain(hubs[zone].iter().copied()).for_each(|other| link(*node, other));
            }
            for hub in &hubs[zone] {
                hubs.iter().flatten().for_each(|other| link(*hub, *other));
            }
        }
        let links = links.into_iter().map(|links| links.into_iter().collect()).collect();
        Self { zone: (0..count).map(|node| node / zone_size).collect(), links }
    }

    fn delay_us(&self, from: usize, to: usize, random: &mut Random) -> u64 {
        let once = |random: &mut Random| {
            if self.zone[from] == self.zone[to] { 500 + random.below(1_000) } else { 20_000 + random.below(40_000) }
        };
        let mut delay = once(random);
        while random.below(100) == 0 {
            delay += 2 * once(random) + 10_000;
        }
        delay
    }
}

/// What came of one record.
#[derive(Debug)]
struct Spread {
    /// When half of the living had it, 99 of 100, and all.
    half_ms: f64,
    most_ms: f64,
    all_ms: f64,
    hops: usize,
    missed: usize,
    /// Per node: copies of the record that it got, and bytes in that matter.
    copies: f64,
    bytes: f64,
}

fn spread(fleet: &Fleet, relay: Relay, dead: &HashSet<usize>, seed: u64) -> Spread {
    enum Event {
        Record { from: usize, hop: usize },
        Seen { from: usize },
        Relay,
    }
    let count = fleet.links.len();
    let mut random = Random::new(seed);
    let origin = (0..count).find(|node| !dead.contains(node)).expect("someone lives");
    let mut events: Vec<Option<(usize, Event)>> = Vec::new();
    let mut queue = BinaryHeap::new();
    let push = |queue: &mut BinaryHeap<_>, events: &mut Vec<_>, at: u64, to: usize, event: Event| {
        queue.push(Reverse((at, events.len())));
        events.push(Some((to, event)));
    };
    let (mut has, mut hops, mut knows) = (vec![None; count], vec![0; count], vec![HashSet::new(); count]);
    let (mut copies, mut bytes) = (0u64, 0u64);
    has[origin] = Some(0);
    push(&mut queue, &mut events, 0, origin, Event::Relay);
    while let Some(Reverse((now, number))) = queue.pop() {
        let (node, event) = events[number].take().expect("each happens once");
        match event {
            Event::Record { from, hop } => {
                copies += 1;
                bytes += RECORD_BYTES;
                knows[node].insert(from);
                if has[node].is_some() {
                    continue;
                }
                has[node] = Some(now);
                hops[node] = hop;
                let (applied, patience) =
                    (now + APPLY_US, if relay == Relay::Patient { PATIENCE_US + random.below(PATIENCE_US) } else { 0 });
                push(&mut queue, &mut events, applied + patience, node, Event::Relay);
                // As it is today only the one that it came from is told; it knows already.
                if relay == Relay::Patient {
                    for other in fleet.links[node].iter().filter(|other| **other != from && !dead.contains(other)) {
                        let arrival = applied + fleet.delay_us(node, *other, &mut random);
                        push(&mut queue, &mut events, arrival, *other, Event::Seen { from: node });
                    }
                }
            }
            Event::Seen { from } => {
                bytes += SEEN_BYTES;
                knows[node].insert(from);
            }
            Event::Relay => {
                for other in fleet.links[node].iter().filter(|other| !knows[node].contains(other)) {
                    if !dead.contains(other) {
                        let arrival = now + fleet.delay_us(node, *other, &mut random);
                        push(&mut queue, &mut events, arrival, *other, Event::Record { from: node, hop: hops[node] + 1 });
                    }
                }
            }
        }
    }
    let living = count - dead.len();
    let mut times: Vec<u64> = has.iter().flatten().copied().collect();
    times.sort_unstable();
    let at = |part: usize| times.get(((times.len() - 1) * part) / 100).map_or(f64::NAN, |us| *us as f64 / 1000.0);
    Spread {
        half_ms: at(50),
        most_ms: at(99),
        all_ms: at(100),
        hops: hops.iter().copied().max().unwrap_or(0),
        missed: living - times.len(),
        copies: copies as f64 / living as f64,
        bytes: bytes as f64 / living as f64,
    }
}

fn some_dead(count: usize, seed: u64) -> HashSet<usize> {
    let mut random = Random::new(seed);
    (0..count / 20).map(|_| random.below(count as u64) as usize).collect()
}

/// Bytes a second that a node sends to tell who is alive; of `count` nodes, `restarts` of which restart in the minute that is measured.
fn liveness_bytes(count: usize, restarts: usize) -> f64 {
    let node = |index: usize| {
        let mut id = [7; 32];
        id[..8].copy_from_slice(&(index as u64).to_be_bytes());
        NodeId(id)
    };
    let index_of = |node: NodeId| u64::from_be_bytes(node.0[..8].try_into().expect("8 bytes")) as usize;
    let start = Instant::now();
    let mut lives = vec![1u64; count];
    let begin = |index: usize, life: u64, now: Instant| {
        let mut liveness = Liveness::new(Life { node: node(index), number: life }, index as u64);
        liveness.members((0..count).map(node), now);
        liveness
    };
    let mut sites: Vec<Liveness> = (0..count).map(|index| begin(index, 1, start)).collect();
    for (index, site) in sites.iter_mut().enumerate() {
        for other in (0..count).filter(|other| *other != index) {
            site.linked(node(other), 1, DATAGRAMS_SINCE, start);
        }
        // What is said when everyone meets everyone at once is no part of the figure.
        site.take();
    }
    let (mut wire, mut sent, mut random) = (BinaryHeap::new(), 0u64, Random::new(1));
    // By then everyone has told everyone that it is there.
    let warm = Duration::from_secs(if count > 500 { 180 } else { 30 });
    let end = warm + Duration::from_secs(60);
    let mut now = start;
    let mut restarted = 0;
    while now < start + end {
        if now >= start + warm + Duration::from_secs(60) / (restarts as u32 + 1) * (restarted as u32 + 1) && restarted < restarts {
            let index = random.below(count as u64) as usize;
            restarted += 1;
            lives[index] += 1;
            sites[index] = begin(index, lives[index], now);
            for other in (0..count).filter(|other| *other != index) {
                sites[index].linked(node(other), lives[other], DATAGRAMS_SINCE, now);
                sites[other].linked(node(index), lives[index], DATAGRAMS_SINCE, now);
            }
        }
        for (index, site) in sites.iter_mut().enumerate() {
            site.tick(now);
            for (to, bytes) in site.take() {
                if now >= start + warm {
                    sent += bytes.len() as u64;
                }
                wire.push(Reverse((now + Duration::from_millis(1 + random.below(40)), sent, wire.len(), index, index_of(to), bytes)));
            }
        }
        now += Duration::from_millis(10);
        while wire.peek().is_some_and(|Reverse(next)| next.0 <= now) {
            let Reverse((at, _, _, from, to, bytes)) = wire.pop().expect("looked at");
            sites[to].datagram(node(from), &bytes, at);
        }
    }
    let alive = sites.iter().all(|site| site.conditions(now).iter().all(|(_, condition)| *condition == Condition::Alive));
    assert!(alive, "someone living is taken for dead");
    sent as f64 / count as f64 / 60.0
}

#[test]
fn a_record_reaches_all_the_living_whatever_the_shape_of_the_fleet() {
    for seed in 0..3 {
        let dead = some_dead(128, seed);
        for (fleet, relay) in
            [(Fleet::mesh(128, 32), Relay::AtOnce), (Fleet::partial(128, 32), Relay::AtOnce), (Fleet::partial(128, 32), Relay::Patient)]
        {
            let spread = spread(&fleet, relay, &dead, seed);
            assert_eq!(spread.missed, 0, "seed {seed}: {spread:?}");
            assert!(spread.all_ms < 5_000.0, "seed {seed}: {spread:?}");
        }
    }
    assert!(Fleet::partial(1000, 100).links.iter().map(Vec::len).max() <= Some(128), "no hub of a thousand has more than a mesh of 128");
    assert!(liveness_bytes(16, 1) < 1_000.0);
}

/// Whether the long figures are wanted; the suite makes do with the smallest.
fn is_bench() -> bool {
    std::env::var_os("BENCH_FLEET").is_some()
}

#[test]
fn figures_of_a_fleet() {
    let counts = if is_bench() { &[(128, 32), (1_000, 100), (10_000, 100)][..] } else { &[(128, 32)] };
    let fleets = if is_bench() { &[(16, 0), (128, 0), (128, 10), (1_000, 10)][..] } else { &[(16, 0)] };
    println!(
        "| nodes | shape | passed on | connections, most / median | half, 99 %, all have it (ms) | hops | missed | copies per node | bytes in per node and record |"
    );
    println!("| --- | --- | --- | --- | --- | --- | --- | --- | --- |");
    for (count, zone_size) in counts.iter().copied() {
        let dead = some_dead(count, 7);
        for (name, is_mesh) in [("mesh", true), ("partial", false)] {
            // A mesh of 10,000 has 50 million connections: counted, not run.
            if is_mesh && count > 1_000 {
                println!("| {count} | mesh | | {} / {} | one hop | 1 | | |", count - 1, count - 1);
                continue;
            }
            let fleet = if is_mesh { Fleet::mesh(count, zone_size) } else { Fleet::partial(count, zone_size) };
            let mut degrees: Vec<_> = fleet.links.iter().map(Vec::len).collect();
            degrees.sort_unstable();
            for relay in [Relay::AtOnce, Relay::Patient] {
                let spread = spread(&fleet, relay, &dead, 3);
                println!(
                    "| {count} | {name} | {relay:?} | {} / {} | {:.0}, {:.0}, {:.0} | {} | {} | {:.1} | {:.0} |",
                    degrees[count - 1],
                    degrees[count / 2],
                    spread.half_ms,
                    spread.most_ms,
                    spread.all_ms,
                    spread.hops,
                    spread.missed,
                    spread.copies,
                    spread.bytes
                );
            }
        }
    }
    for (count, restarts) in fleets.iter().copied() {
        println!(
            "liveness, {count} nodes, {restarts} restarts in a minute: {:.0} bytes/s sent by each node",
            liveness_bytes(count, restarts)
        );
    }
    for count in [128, 1_000, 10_000] {
        println!("a vector of {count} origins: {} bytes; one is kept for each connection", vector_bytes(count));
    }
}

/// What a vector of so many origins takes, as the system counts it.
fn vector_bytes(origins: usize) -> usize {
    const COPIES: usize = 200;
    let vector: VersionVector = (0..origins)
        .map(|index| {
            let mut id = [0; 32];
            id[..8].copy_from_slice(&weight(index, 1).to_be_bytes());
            (Origin { node: NodeId(id), incarnation: 1_700_000_000_000 }, 42)
        })
        .collect();
    let before = resident();
    let copies: Vec<_> = (0..COPIES).map(|_| vector.clone()).collect();
    let taken = resident().saturating_sub(before);
    drop(copies);
    taken / COPIES
}

/// Bytes of this process that are in memory.
fn resident() -> usize {
    let status = std::fs::read_to_string("/proc/self/status").expect("the system says so");
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).expect("it is among it");
    line.trim().trim_end_matches(" kB").parse::<usize>().expect("a number") << 10
}

#[tokio::test(flavor = "multi_thread")]
async fn figures_of_a_connection() {
    let wanted = if is_bench() { 500 } else { 50 };
    let (server, client) = (Site::start("server", "x").await, Site::start("client", "x").await);
    server.let_in(&client).await;
    let (server, client) = (server.stop().await, client.stop().await);
    let listening = Endpoint::open("127.0.0.1:0".parse().expect("address"), &server.identity(), Arc::new(|key| Some(*key))).expect("port");
    let dialling = Endpoint::open("127.0.0.1:0".parse().expect("address"), &client.identity(), Arc::new(|key| Some(*key))).expect("port");
    let (address, node) = (listening.address(), server.identity().node());
    let accepting = tokio::spawn(async move {
        let mut accepted = Vec::new();
        while accepted.len() < wanted {
            let Some(handshake) = listening.accept().await else { break };
            accepted.extend(handshake.await);
        }
        (listening, accepted)
    });
    let before = resident();
    let mut dialled = Vec::new();
    while dialled.len() < wanted {
        dialled.push(dialling.dial(node, &Counting::first(node), address).await.expect("dial"));
    }
    let accepted = accepting.await.expect("accepted");
    let each = resident().saturating_sub(before) / (2 * wanted);
    println!("an idle connection takes {each} bytes on each side; that of a member has two streams open and a vector besides");
    assert_eq!(accepted.1.len(), wanted);
    // Among other tests, what they take is counted too.
    assert!(each < 200_000 || !is_bench(), "{each} bytes");
}
