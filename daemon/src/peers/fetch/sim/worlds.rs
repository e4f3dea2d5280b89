//! Worlds, and what is promised of them.

use larder_harness::for_seeds;

use super::*;

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
    World {
        nodes,
        blobs: vec![chunks],
        at_once: 1,
        rtt: Duration::from_millis(1),
        far_rtt: Duration::from_millis(40),
        wan: None,
        dies_when_spread: None,
    }
}

/// The same for an image as `make bench-cluster` pulls it: eight layers, three at a time.
fn image(seed: u64, fetchers: usize) -> World {
    World { blobs: vec![64, 32, 16, 8, 4, 2, 1, 1], at_once: 3, ..crowd(seed, fetchers, 1, 0, 50 * MBIT) }
}

fn last(outcome: &Outcome) -> Duration {
    outcome.done.iter().flatten().max().copied().unwrap_or_default()
}

/// A large world for every so many of the small ones.
fn large_seeds() -> u64 {
    let seeds: u64 = std::env::var("SIM_SEEDS").ok().and_then(|seeds| seeds.parse().ok()).unwrap_or(1000);
    (seeds / 500).clamp(1, 200)
}

#[test]
fn sim_a_crowd_takes_about_as_long_as_one_node_and_costs_one_copy() {
    let alone = last(&crowd(0, 1, 1, 128, 50 * MBIT).run());
    for seed in 0..large_seeds() {
        let outcome = crowd(seed, 15, 1, 128, 50 * MBIT).run();
        assert!(outcome.done[1..].iter().all(Option::is_some), "seed {seed}: {outcome:?}");
        let ratio = last(&outcome).as_secs_f64() / alone.as_secs_f64();
        println!("crowd, seed {seed}: {ratio:.3} times {alone:?}, origin sent {:.3} copies", outcome.sent[0]);
        assert!(ratio <= 1.22, "seed {seed}: {ratio:.3} times {alone:?}");
        assert!(outcome.sent[0] <= 1.01, "seed {seed}: the origin sent {:.3} copies", outcome.sent[0]);
    }
}

/// The figure of `make bench-cluster`: what the layers of an image cost that are fetched a few at a time, each waiting for the one before.
#[test]
fn sim_a_crowd_that_pulls_many_layers_takes_little_longer_than_one_node() {
    let alone = last(&image(0, 1).run());
    for seed in 0..large_seeds() {
        let outcome = image(seed, 15).run();
        assert!(outcome.done[1..].iter().all(Option::is_some), "seed {seed}: {outcome:?}");
        let ratio = last(&outcome).as_secs_f64() / alone.as_secs_f64();
        println!("layers, seed {seed}: {ratio:.3} times {alone:?}, origin sent {:.3} copies", outcome.sent[0]);
        assert!(ratio <= 1.27, "seed {seed}: {ratio:.3} times {alone:?}");
        assert!(outcome.sent[0] <= 1.04, "seed {seed}: the origin sent {:.3} copies", outcome.sent[0]);
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

/// The same for an image of several layers: cables of 100 Mbit/s, and a line of 20 between the zones as in `make bench-cluster`; or a thinner one
/// and a smaller image, where a chunk takes many times as long as one that is late elsewhere.
#[test]
fn f20_sim_one_copy_of_each_layer_crosses_however_thin_the_line_is() {
    for (seed, mbit, part) in (0..large_seeds()).flat_map(|seed| [(seed, 20, 1), (seed, 5, 4), (seed, 2, 4)]) {
        let mut world = World { wan: Some(mbit * MBIT), ..image(seed, 7) };
        world.blobs.iter_mut().for_each(|chunks| *chunks = chunks.div_ceil(part));
        world.nodes.iter_mut().enumerate().for_each(|(at, node)| (node.zone, node.up, node.down) = (at as u8 % 2, 100 * MBIT, 100 * MBIT));
        let outcome = world.run();
        assert!(outcome.done[1..].iter().all(Option::is_some), "seed {seed}: {outcome:?}");
        let size = f64::from(world.blobs.iter().sum::<u32>()) * CHUNK_SIZE as f64;
        let beside_line = last(&outcome).as_secs_f64() / (size / (mbit * MBIT) as f64);
        println!("layers through {mbit} Mbit/s, seed {seed}: crossed {:.3}, last {beside_line:.2} times the line", outcome.crossed);
        assert!(outcome.crossed <= 1.04, "seed {seed}, {mbit} Mbit/s: {:.3} copies crossed", outcome.crossed);
        assert!(beside_line <= 1.06, "seed {seed}, {mbit} Mbit/s: {beside_line:.2} times the line");
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
        blobs: vec![random.between(1, 12) as u32],
        at_once: 1,
        rtt: Duration::from_millis(random.between(1, 20)),
        far_rtt: Duration::from_millis(random.between(20, 300)),
        wan: (random.below(2) == 0).then(|| random.between(5, 50) * MBIT),
        dies_when_spread: None,
    }
}

#[test]
fn sim_whatever_happens_who_can_have_the_blob_gets_it_and_nobody_hangs() {
    for_seeds(|seed| {
        let world = random_world(seed);
        let outcome = world.run();
        let honest = world.nodes.iter().any(|node| node.begins.is_none() && node.manner == Manner::Honest && node.death.is_none());
        for (at, _) in world.nodes.iter().enumerate().filter(|(_, node)| node.begins.is_some() && node.death.is_none()) {
            let (done, failed) = (outcome.done[at].is_some(), outcome.failed[at]);
            assert!(done || failed, "seed {seed}: node {at} hangs: {outcome:#?} in {world:#?}");
            assert!(done || !honest, "seed {seed}: node {at} gave up and a holder lives: {outcome:#?} in {world:#?}");
        }
    });
}
