//! Shares, takeover, and a fleet that is simulated: nodes and zones fail, return, lose their disks and run out of room.

use std::collections::{BTreeMap, BTreeSet};

use larder_harness::{Random, for_seeds};

use super::*;

const TAKEOVER: Duration = Duration::from_secs(600);

fn place(number: u8, zone: u8) -> Place {
    Place { node: NodeId([number; 32]), zone: format!("z{zone}"), away: None }
}

fn members(count: u8, zones: u8) -> Vec<Place> {
    (0..count).map(|number| place(number, number % zones)).collect()
}

fn placement(members: Vec<Place>, replicas: usize, now: Instant) -> Placement {
    Placement::new(NodeId([0; 32]), members, (replicas, TAKEOVER), now)
}

fn digest(number: u32) -> Digest {
    Digest::sha256(&number.to_le_bytes())
}

fn digests() -> impl Iterator<Item = Digest> {
    (0..2000).map(digest)
}

#[test]
fn shares_are_even_and_zones_differ() {
    let placement = placement(members(9, 3), 2, Instant::now());
    let mut shares = [0u32; 9];
    for digest in digests() {
        let owners = placement.owners(&digest);
        assert_eq!(owners.len(), 2);
        assert_ne!(owners[0].0[0] % 3, owners[1].0[0] % 3, "two zones");
        owners.iter().for_each(|owner| shares[usize::from(owner.0[0])] += 1);
    }
    // 4000 copies on 9 nodes; four standard deviations.
    assert!(shares.iter().all(|share| (350..540).contains(share)), "{shares:?}");
}

#[test]
fn only_the_share_of_who_leaves_moves() {
    let now = Instant::now();
    let (all, fewer) = (placement(members(8, 1), 2, now), placement(members(7, 1), 2, now));
    assert_ne!(all.fingerprint(), fewer.fingerprint());
    for digest in digests() {
        let (before, after) = (all.owners(&digest), fewer.owners(&digest));
        let kept = before.iter().filter(|owner| after.contains(owner)).count();
        let left = before.iter().filter(|owner| owner.0[0] == 7).count();
        assert_eq!(kept, 2 - left);
    }
}

#[test]
fn a_small_cluster_owns_everything_everywhere() {
    let now = Instant::now();
    assert_eq!(placement(members(1, 1), 3, now).owners(&digest(0)).len(), 1);
    assert!(placement(vec![], 2, now).owners(&digest(0)).is_empty());
}

#[test]
fn a_share_is_taken_over_after_a_while_and_given_back_at_once() {
    let start = Instant::now();
    let all = placement(members(5, 1), 2, start);
    let mut with_one_away = members(5, 1);
    with_one_away[3].away = Some(start);
    let soon = placement(with_one_away.clone(), 2, start + TAKEOVER - Duration::from_secs(1));
    assert_eq!((&soon, soon.fingerprint()), (&all, all.fingerprint()), "a restart moves nothing");
    let later = placement(with_one_away.clone(), 2, start + TAKEOVER);
    for digest in digests() {
        let (before, after) = (all.owners(&digest), later.owners(&digest));
        let expected: Vec<_> = all.ranked(&digest).into_iter().filter(|node| node.0[0] != 3).take(2).collect();
        assert_eq!(after, expected, "the next in order stand in, and the others keep what they have: {before:?}");
    }
    with_one_away[3].away = None;
    assert_eq!(placement(with_one_away, 2, start + 2 * TAKEOVER), all);
    // A node that hears nobody still counts itself.
    let alone = (0..5).map(|number| Place { away: Some(start), ..place(number, 0) }).collect();
    assert_eq!(placement(alone, 2, start + TAKEOVER).owners(&digest(0)), [NodeId([0; 32])]);
}

/// A fleet as a model: who is up, who sees whom, who has what. Decisions are the program's, time is made up.
struct Fleet {
    random: Random,
    now: Instant,
    replicas: usize,
    zones: Vec<u8>,
    /// In which zone each node believes each to be.
    believed: Vec<Vec<u8>>,
    up: Vec<bool>,
    /// Since when each node misses each other.
    misses: Vec<BTreeMap<usize, Instant>>,
    disks: Vec<BTreeSet<u32>>,
    /// Blobs that a node has marked, and what it was told, of a round of eviction that is under way.
    rounds: Vec<Option<Round>>,
    moves: usize,
    digests: u32,
}

/// A round of eviction between asking and doing.
struct Round {
    blob: u32,
    owners: Vec<usize>,
    told: Vec<bool>,
}

impl Fleet {
    fn new(seed: u64) -> Self {
        let mut random = Random::new(seed);
        let zone_count = 1 + random.below(4) as u8;
        let count = 2 + random.below(7) as usize;
        let digests = 40;
        let zones: Vec<_> = (0..count).map(|node| node as u8 % zone_count).collect();
        let mut fleet = Self {
            replicas: 1 + random.below(3) as usize,
            now: Instant::now(),
            believed: vec![zones.clone(); count],
            zones,
            up: vec![true; count],
            misses: vec![BTreeMap::new(); count],
            disks: vec![BTreeSet::new(); count],
            rounds: (0..count).map(|_| None).collect(),
            moves: 0,
            digests,
            random,
        };
        // Each was pushed somewhere, and its owners have fetched it.
        for number in 0..digests {
            let pusher = fleet.random.below(count as u64) as usize;
            fleet.disks[pusher].insert(number);
        }
        fleet.settle();
        fleet
    }

    fn placement(&self, node: usize) -> Placement {
        let member =
            |other: usize| Place { away: self.misses[node].get(&other).copied(), ..place(other as u8, self.believed[node][other]) };
        let members = (0..self.zones.len()).map(member).collect();
        Placement::new(NodeId([node as u8; 32]), members, (self.replicas, TAKEOVER), self.now)
    }

    fn numbered(owners: Vec<NodeId>) -> Vec<usize> {
        owners.iter().map(|owner| usize::from(owner.0[0])).collect()
    }

    /// Time passes; who is down is missed, each noticed by each other in its own time.
    fn pass(&mut self, time: Duration) {
        self.now += time;
        for node in (0..self.zones.len()).filter(|node| self.up[*node]) {
            for other in (0..self.zones.len()).filter(|other| *other != node) {
                if self.up[other] {
                    self.misses[node].remove(&other);
                } else {
                    let late = Duration::from_secs(self.random.below(30));
                    self.misses[node].entry(other).or_insert(self.now + late);
                }
            }
        }
    }

    /// A node fetches some of what it owns and lacks, from whoever is up.
    fn repair(&mut self, node: usize, most: usize) {
        let placement = self.placement(node);
        let owed: Vec<u32> =
            (0..self.digests).filter(|blob| !self.disks[node].contains(blob) && placement.is_owner(&digest(*blob))).collect();
        for blob in owed.into_iter().take(most) {
            if (0..self.zones.len()).any(|other| self.up[other] && self.disks[other].contains(&blob)) {
                self.disks[node].insert(blob);
                self.moves += 1;
            }
        }
    }

    fn vouches(&self, node: usize, blob: u32) -> bool {
        let is_marked = self.rounds[node].as_ref().is_some_and(|round| round.blob == blob);
        self.up[node] && !is_marked && self.disks[node].contains(&blob)
    }

    /// A node that is short of room goes one step on with dropping a blob: it marks, asks one owner after the other, and drops.
    fn evict(&mut self, node: usize) {
        match self.rounds[node].take() {
            None => {
                let blobs: Vec<_> = self.disks[node].iter().copied().collect();
                if blobs.is_empty() {
                    return;
                }
                let blob = blobs[self.random.below(blobs.len() as u64) as usize];
                let owners = Self::numbered(self.placement(node).owners(&digest(blob)));
                if !owners.contains(&node) {
                    self.rounds[node] = Some(Round { blob, owners, told: Vec::new() });
                }
            }
            Some(mut round) if round.told.len() < round.owners.len() => {
                round.told.push(self.vouches(round.owners[round.told.len()], round.blob));
                self.rounds[node] = Some(round);
            }
            Some(Round { blob, told, .. }) => {
                let still = !self.placement(node).is_owner(&digest(blob));
                if still && told.iter().all(|vouched| *vouched) {
                    self.disks[node].remove(&blob);
                    let left = self.disks.iter().filter(|disk| disk.contains(&blob)).count();
                    assert!(left >= self.replicas, "{left} copies are left, and {} are promised", self.replicas);
                }
            }
        }
    }

    /// All are up and see each other for long: everyone gets what it owns.
    fn settle(&mut self) {
        self.up.fill(true);
        self.pass(2 * TAKEOVER);
        for node in 0..self.zones.len() {
            self.repair(node, usize::MAX);
        }
    }

    /// Each digest has its copies, in as many zones as there can be.
    fn is_whole(&self) -> Result<(), String> {
        let among: Vec<_> = (0..self.zones.len()).filter(|node| self.up[*node]).collect();
        let zones: BTreeSet<_> = among.iter().map(|node| self.zones[*node]).collect();
        for blob in 0..self.digests {
            let holders: Vec<_> = among.iter().filter(|node| self.disks[**node].contains(&blob)).collect();
            let in_zones: BTreeSet<_> = holders.iter().map(|node| self.zones[**node]).collect();
            if holders.len() < self.replicas.min(among.len()) || in_zones.len() < self.replicas.min(zones.len()) {
                return Err(format!("blob {blob} is on {holders:?} in zones {in_zones:?}, with {among:?} up and {} wanted", self.replicas));
            }
        }
        Ok(())
    }
}

fn simulate(seed: u64) {
    let mut fleet = Fleet::new(seed);
    fleet.is_whole().expect("it begins well");
    let count = fleet.zones.len();
    for _ in 0..120 {
        let node = fleet.random.below(count as u64) as usize;
        match fleet.random.below(12) {
            0 => {
                fleet.up[node] = false;
                fleet.rounds[node] = None;
            }
            1 => {
                let zone = fleet.zones[node];
                for other in (0..count).filter(|other| fleet.zones[*other] == zone) {
                    fleet.up[other] = false;
                    fleet.rounds[other] = None;
                }
            }
            2..=4 => {
                // Back, and it has to see for itself who is there.
                fleet.up[node] = true;
                fleet.misses[node].clear();
            }
            5 => fleet.pass(TAKEOVER / 2),
            6..=8 => fleet.evict(node),
            _ if fleet.up[node] => fleet.repair(node, 5),
            _ => {}
        }
        fleet.pass(Duration::from_secs(5));
        for other in 0..count {
            if fleet.up[other] && fleet.random.chance(50) {
                fleet.evict(other);
            }
        }
    }
    // Some are lost for good: their share goes to the others, as long as one copy was left somewhere.
    fleet.settle();
    fleet.is_whole().expect("all are back");
    let lost = fleet.random.below(count as u64) as usize;
    if fleet.replicas > 1 && count > 1 {
        let before = fleet.moves;
        let share = (0..fleet.digests)
            .filter(|blob| fleet.placement((lost + 1) % count).owners(&digest(*blob)).contains(&NodeId([lost as u8; 32])));
        let share = share.count();
        fleet.up[lost] = false;
        fleet.disks[lost].clear();
        fleet.rounds[lost] = None;
        fleet.pass(Duration::from_secs(1));
        fleet.pass(TAKEOVER + Duration::from_secs(60));
        for node in (0..count).filter(|node| *node != lost) {
            fleet.repair(node, usize::MAX);
        }
        fleet.is_whole().expect("others have taken over");
        assert!(fleet.moves - before <= share, "{} copies were made for a share of {share}", fleet.moves - before);
        // The wiped node takes its share back, and nobody else fetches anything.
        let before = fleet.moves;
        fleet.up[lost] = true;
        fleet.misses[lost].clear();
        fleet.settle();
        fleet.is_whole().expect("its share is back");
        assert!(fleet.moves - before <= share, "{} copies were made for a share of {share}", fleet.moves - before);
    }
}

/// Each node has its own idea of who is away and who stands where, changes it all the time, and wants to be rid of everything.
fn disagree(seed: u64) {
    let mut fleet = Fleet::new(seed);
    let count = fleet.zones.len();
    fleet.digests = 3;
    fleet.disks = vec![(0..fleet.digests).collect(); count];
    for _ in 0..300 {
        let node = fleet.random.below(count as u64) as usize;
        if fleet.random.chance(10) {
            let others = (0..count).filter(|other| *other != node && fleet.random.chance(40));
            let long_ago = fleet.now;
            fleet.misses[node] = others.map(|other| (other, long_ago)).collect();
            fleet.now += TAKEOVER;
            fleet.believed[node] = (0..count).map(|_| fleet.random.below(3) as u8).collect();
        }
        fleet.evict(node);
    }
}

#[test]
fn i10_nodes_that_differ_in_who_owns_what_never_drop_the_copies_that_were_promised() {
    for_seeds(disagree);
}

#[test]
fn i10_nothing_falls_below_its_copies_whatever_fails_and_all_is_whole_again_afterwards() {
    for_seeds(simulate);
}
