//! Which frozen packs are asked for, in which order, and when it is looked whether they have thawed: a plan, without I/O and without a clock.
//!
//! ```text
//! look at the listing --> ask for each that is frozen, the most wanted first --> wait --> look --> read what has thawed --> wait ...
//! ```
//!
//! The bucket is asked for each pack once; again only when what had thawed is frozen anew before it was read, and not before the time that thawing
//! takes is over. It is looked at by listings, a page for a thousand packs, at a pace; where listings don't tell (other vendors), by a HEAD of the
//! next few. Everything else may fail at any time, and is tried again after a pause.
//!
//! Times are milliseconds since 1970.

use std::collections::HashMap;

use larder_protocol::record::PackId;

use crate::config::{Prices, Tier};

/// Objects looked at one by one between two looks at the listing.
const HEADS_MAX: usize = 20;
/// First pause after a failure; doubled each time, up to the time between two looks.
const PAUSE_MIN_MS: u64 = 1_000;
/// Tiers of a class of which nothing is known: what is usual.
const TIME_UNKNOWN_MS: u64 = 12 * 3_600_000;

/// A pack that is wanted and frozen, as far as its name says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pack {
    /// Its id.
    pub id: PackId,
    /// The bucket's id.
    pub bucket: String,
    /// The object's key.
    pub key: String,
    /// Its storage class, as the bucket calls it.
    pub class: String,
    /// Bytes of the object: all of them thaw.
    pub size: u64,
    /// Of those, bytes of blobs that are wanted.
    pub wanted: u64,
}

/// What a bucket says of an object.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Seen {
    /// It can be read.
    #[default]
    Readable,
    /// It is of a frozen class, and nothing is said of thawing: because nobody asked, or because the server does not tell.
    Frozen,
    /// It was asked for.
    Thawing,
    /// There is no such object.
    Missing,
}

/// What is to be done next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// List the packs; then [`Plan::looked`].
    Look,
    /// Ask for this pack; then [`Plan::asked`].
    Ask(usize),
    /// Look at this pack alone; then [`Plan::headed`].
    Head(usize),
    /// Read what is wanted of this pack; then [`Plan::filled`].
    Fill(usize),
    /// Nothing, for so long.
    Wait(u64),
    /// All is read, or lost.
    Done,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Unknown,
    Frozen,
    /// Asked for, and the listing does not tell.
    Silent,
    Thawing,
    Readable,
    Done,
    Lost,
}

#[derive(Clone, Debug)]
struct Entry {
    pack: Pack,
    state: State,
    asked_ms: Option<u64>,
    time_ms: u64,
    /// After a failure, others come first.
    not_before: u64,
}

/// How far it is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Packs in the plan.
    pub packs: u64,
    /// Their bytes.
    pub bytes: u64,
    /// Asked for.
    pub asked: u64,
    /// Thawed, and read.
    pub read: u64,
    /// Not in the bucket any more.
    pub lost: u64,
}

/// See the module.
#[derive(Clone, Debug)]
pub struct Plan {
    entries: Vec<Entry>,
    poll_ms: u64,
    looked_ms: Option<u64>,
    heads: usize,
    not_before: u64,
    failures: u32,
}

impl Plan {
    /// A plan for these packs, the most wanted first; `asked` tells when those were asked for that were, before a restart. Between two looks at the
    /// listing are `poll_ms`; `time_ms` says how long a class takes.
    pub fn new(packs: Vec<Pack>, asked: &HashMap<String, u64>, poll_ms: u64, time_ms: impl Fn(&str) -> u64) -> Self {
        let entry = |pack: Pack| {
            let (asked_ms, time_ms) = (asked.get(&pack.key).copied(), time_ms(&pack.class));
            Entry { pack, state: State::Unknown, asked_ms, time_ms, not_before: 0 }
        };
        Self { entries: packs.into_iter().map(entry).collect(), poll_ms, looked_ms: None, heads: 0, not_before: 0, failures: 0 }
    }

    /// What is to be done now.
    pub fn next(&self, now: u64) -> Step {
        if self.entries.iter().all(Entry::is_over) {
            return Step::Done;
        }
        let first = |state: State| self.entries.iter().position(|entry| entry.state == state && now >= entry.not_before);
        if now < self.not_before {
            return Step::Wait(self.not_before - now);
        }
        let Some(looked_ms) = self.looked_ms else { return Step::Look };
        if let Some(at) = first(State::Frozen) {
            return Step::Ask(at);
        }
        if let Some(at) = first(State::Silent).filter(|_| self.heads < HEADS_MAX) {
            return Step::Head(at);
        }
        if let Some(at) = first(State::Readable) {
            return Step::Fill(at);
        }
        // A clock that went back does not make it wait longer.
        match (looked_ms.min(now) + self.poll_ms).checked_sub(now) {
            None | Some(0) => Step::Look,
            Some(left) => Step::Wait(left),
        }
    }

    /// The pack of a step.
    pub fn pack(&self, at: usize) -> &Pack {
        &self.entries[at].pack
    }

    /// All packs.
    pub fn packs(&self) -> impl ExactSizeIterator<Item = &Pack> {
        self.entries.iter().map(|entry| &entry.pack)
    }

    /// What a listing says, by key. What is not in it is lost.
    pub fn looked(&mut self, listing: &HashMap<String, Seen>, now: u64) {
        (self.looked_ms, self.heads, self.failures) = (Some(now), 0, 0);
        for entry in self.entries.iter_mut().filter(|entry| !entry.is_over()) {
            let seen = listing.get(&entry.pack.key).copied().unwrap_or(Seen::Missing);
            entry.state = match (seen, entry.asked_ms) {
                (Seen::Readable, _) => State::Readable,
                (Seen::Thawing, _) => {
                    entry.asked_ms.get_or_insert(now);
                    State::Thawing
                }
                (Seen::Frozen, None) => State::Frozen,
                (Seen::Frozen, Some(_)) => State::Silent,
                (Seen::Missing, _) => State::Lost,
            };
        }
    }

    /// A pack was asked for, or had been already.
    pub fn asked(&mut self, at: usize, now: u64) {
        self.failures = 0;
        let entry = &mut self.entries[at];
        (entry.state, entry.asked_ms) = (State::Thawing, Some(now));
    }

    /// What was found when a pack was looked at alone.
    pub fn headed(&mut self, at: usize, seen: Seen, now: u64) {
        (self.heads, self.failures) = (self.heads + 1, 0);
        let entry = &mut self.entries[at];
        entry.state = match seen {
            Seen::Readable => State::Readable,
            Seen::Thawing => State::Thawing,
            Seen::Missing => State::Lost,
            // It had thawed, and is frozen again; or it takes a moment until it says that it thaws.
            Seen::Frozen if entry.is_due(now) => State::Frozen,
            Seen::Frozen => State::Thawing,
        };
    }

    /// All that is wanted of a pack was read.
    pub fn filled(&mut self, at: usize) {
        self.failures = 0;
        self.entries[at].state = State::Done;
    }

    /// A pack that could be read is frozen again.
    pub fn refrozen(&mut self, at: usize) {
        self.entries[at].state = State::Unknown;
    }

    /// Nothing more is read; what there is may be asked for.
    pub fn give_up(&mut self) {
        self.entries.iter_mut().filter(|entry| !entry.is_over()).for_each(|entry| entry.state = State::Done);
    }

    /// A step failed: the next is after a pause, and about another pack if there is one.
    pub fn failed(&mut self, step: Step, now: u64) {
        let pause = PAUSE_MIN_MS.saturating_mul(1 << self.failures.min(20)).min(self.poll_ms.max(PAUSE_MIN_MS));
        (self.not_before, self.failures) = (now + pause, self.failures.saturating_add(1));
        if let Step::Ask(at) | Step::Head(at) | Step::Fill(at) = step {
            self.entries[at].not_before = now + pause + self.poll_ms;
        }
    }

    /// When a pack will have thawed, nearly always; none where it was not asked for.
    pub fn ready_ms(&self, at: usize) -> Option<u64> {
        let entry = &self.entries[at];
        Some(entry.asked_ms?.saturating_add(entry.time_ms))
    }

    /// Whether a pack can be read.
    pub fn is_readable(&self, at: usize) -> bool {
        matches!(self.entries[at].state, State::Readable | State::Done)
    }

    /// How far it is.
    pub fn counts(&self) -> Counts {
        let count = |wanted: &dyn Fn(&Entry) -> bool| self.entries.iter().filter(|entry| wanted(entry)).count() as u64;
        Counts {
            packs: self.entries.len() as u64,
            bytes: self.entries.iter().fold(0, |sum: u64, entry| sum.saturating_add(entry.pack.size)),
            asked: count(&|entry| entry.asked_ms.is_some()),
            read: count(&|entry| entry.state == State::Done),
            lost: count(&|entry| entry.state == State::Lost),
        }
    }
}

impl Entry {
    fn is_over(&self) -> bool {
        matches!(self.state, State::Done | State::Lost)
    }

    fn is_due(&self, now: u64) -> bool {
        self.asked_ms.is_none_or(|asked| now >= asked.saturating_add(self.time_ms))
    }
}

/// How long a class takes in a tier, milliseconds.
pub fn time_ms(prices: &Prices, class: &str, tier: Tier) -> u64 {
    let class = prices.of(class);
    // A class that lacks the tier is asked for by another (see `tier_of`).
    let price = class.thaw(tier_of(&class, tier));
    price.map_or(TIME_UNKNOWN_MS, |price| u64::try_from(price.time.as_millis()).unwrap_or(u64::MAX))
}

/// The tier by which a class is asked for: the one that is wished, or the next slower that it has, or what every vendor has.
pub fn tier_of(class: &crate::config::ClassPrices, wished: Tier) -> Tier {
    let slower = Tier::ALL.into_iter().rev().filter(|tier| *tier <= wished);
    slower.into_iter().find(|tier| class.thaw(*tier).is_some()).unwrap_or(Tier::Standard)
}

/// What thawing some packs takes.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Estimate {
    /// Asked for so.
    pub tier: Tier,
    /// All of it can be read by then, nearly always; milliseconds.
    pub time_ms: u64,
    /// Dollars for the requests and for what thaws.
    pub thaw: f64,
    /// Dollars for the copies, which lie in the standard class for so many days.
    pub copies: f64,
    /// Dollars for reading what is wanted, and its way out of the vendor's network.
    pub reading: f64,
}

/// What it takes in each tier that any of the packs' classes has, the cheapest first.
pub fn estimates(packs: &[Pack], prices: &Prices, days: u32) -> Vec<Estimate> {
    let has = |tier: Tier| packs.iter().any(|pack| prices.of(&pack.class).thaw(tier).is_some());
    let is_known = Tier::ALL.into_iter().any(has);
    let mut by_class = HashMap::<&str, (u64, u64, u64)>::new();
    for pack in packs {
        let sum = by_class.entry(pack.class.as_str()).or_default();
        *sum = (sum.0 + 1, sum.1.saturating_add(pack.size), sum.2.saturating_add(pack.wanted));
    }
    let estimate = |tier: Tier| {
        let mut all = Estimate { tier, time_ms: 0, thaw: 0.0, copies: 0.0, reading: 0.0 };
        for (name, (count, size, wanted)) in &by_class {
            let (class, gb) = (prices.of(name), |bytes: u64| bytes as f64 / 1e9);
            all.time_ms = all.time_ms.max(time_ms(prices, name, tier));
            if let Some(price) = class.thaw(tier_of(&class, tier)) {
                all.thaw += *count as f64 / 1000.0 * price.thousand + gb(*size) * price.gb;
            }
            all.copies += gb(*size) * prices.storage_gb_month * f64::from(days) / 30.0;
            all.reading += gb(*wanted) * (class.retrieval_gb + prices.transfer_gb);
        }
        all
    };
    Tier::ALL.into_iter().filter(|tier| has(*tier) || (!is_known && *tier == Tier::Standard)).map(estimate).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::S3_STANDARD;
    use larder_protocol::stamp::NodeId;
    use larder_protocol::vector::Origin;
    use rand::rngs::SmallRng;
    use rand::{RngExt, SeedableRng};

    fn pack(number: u64, class: &str, size: u64) -> Pack {
        let id = PackId { origin: Origin { node: NodeId([1; 32]), incarnation: 1 }, sequence: number };
        Pack { id, bucket: "b".to_owned(), key: format!("{number:04}"), class: class.to_owned(), size, wanted: size / 2 }
    }

    #[test]
    fn f36_an_estimate_says_hours_and_dollars_in_each_tier() {
        let deep = [pack(1, "DEEP_ARCHIVE", 600_000_000_000), pack(2, "DEEP_ARCHIVE", 400_000_000_000)];
        let told = estimates(&deep, &S3_STANDARD, 6);
        assert_eq!(
            told.iter().map(|one| (one.tier, one.time_ms / 3_600_000)).collect::<Vec<_>>(),
            [(Tier::Bulk, 48), (Tier::Standard, 12)]
        );
        let near = |is: f64, expected: f64| assert!((is - expected).abs() < 1e-6, "{is} and not {expected}");
        near(told[0].thaw, 2.0 * 0.025 / 1000.0 + 1000.0 * 0.0025);
        near(told[1].thaw, 2.0 * 0.1 / 1000.0 + 1000.0 * 0.02);
        near(told[0].copies, 1000.0 * 0.023 / 5.0);
        near(told[0].reading, 500.0 * 0.09);
        // Where one class has a faster tier, the other takes its own fastest.
        let mixed = estimates(&[pack(1, "DEEP_ARCHIVE", 1), pack(2, "GLACIER", 1_000_000_000)], &S3_STANDARD, 1);
        assert_eq!((mixed.len(), mixed[2].tier, mixed[2].time_ms), (3, Tier::Expedited, 12 * 3_600_000));
        near(mixed[2].thaw, 10.0 / 1000.0 + 0.03 + 0.1 / 1000.0);
        // Of a class that nobody has priced, what is usual.
        assert_eq!(estimates(&[pack(1, "Cold", 1)], &S3_STANDARD, 1).iter().map(|one| one.tier).collect::<Vec<_>>(), [Tier::Standard]);
        assert!(estimates(&[], &S3_STANDARD, 1).iter().all(|one| one.thaw == 0.0));
    }

    /// A bucket that thaws what it is asked for, and freezes it again.
    struct Thaws {
        tells: bool,
        life_ms: u64,
        ready: HashMap<String, u64>,
        missing: Vec<String>,
    }

    impl Thaws {
        fn seen(&self, key: &str, now: u64, is_told: bool) -> Seen {
            if self.missing.iter().any(|missing| missing == key) {
                return Seen::Missing;
            }
            match self.ready.get(key) {
                Some(ready) if now >= *ready && now < ready + self.life_ms => {
                    if is_told {
                        Seen::Readable
                    } else {
                        Seen::Frozen
                    }
                }
                Some(ready) if now < *ready && is_told => Seen::Thawing,
                _ => Seen::Frozen,
            }
        }
    }

    /// One run: requests fail, the node dies and begins again with what it had written down, sleeps through a thaw, or somebody deletes a pack.
    fn run(seed: u64) {
        let mut random = SmallRng::seed_from_u64(seed);
        let time = 10_000;
        let count = random.random_range(1..60);
        let packs: Vec<Pack> = (0..count).map(|number| pack((number * 7) % 61, "DEEP_ARCHIVE", 1)).collect();
        let poll = random.random_range(200..2_000);
        let mut bucket = Thaws {
            tells: random.random_bool(0.6),
            life_ms: random.random_range(8..40) * poll,
            ready: HashMap::new(),
            missing: Vec::new(),
        };
        let (mut asked, mut order, mut asks, mut filled) = (HashMap::new(), Vec::new(), HashMap::<String, Vec<u64>>::new(), Vec::new());
        let mut late = std::collections::HashSet::new();
        let (mut now, mut looks, mut heads, mut restarts, mut sleeps) = (1_000u64, 0u64, 0u64, 0u64, 0u64);
        // A thaw never takes longer than the tier says, or somewhat longer.
        let thaw_time = random.random_range(1..=12_000);
        let fresh = |asked: &HashMap<String, u64>, filled: &[String]| {
            let left = packs.iter().filter(|pack| !filled.contains(&pack.key)).cloned().collect();
            Plan::new(left, asked, poll, |_| time)
        };
        let mut plan = fresh(&asked, &filled);
        for _ in 0..20_000 {
            let fails = random.random_bool(0.05);
            match plan.next(now) {
                Step::Done => break,
                Step::Wait(ms) => {
                    assert!(ms > 0, "seed {seed}: waits for nothing");
                    now += ms;
                    if sleeps < 3 && random.random_bool(0.02) {
                        (now, sleeps) = (now + bucket.life_ms + time, sleeps + 1);
                    }
                }
                step if fails => {
                    if let Step::Ask(at) = step {
                        late.insert(plan.pack(at).key.clone());
                    }
                    plan.failed(step, now);
                }
                Step::Look => {
                    looks += 1;
                    if random.random_bool(0.005) {
                        bucket.missing.push(packs[0].key.clone());
                    }
                    let listing = packs.iter().map(|pack| (pack.key.clone(), bucket.seen(&pack.key, now, bucket.tells)));
                    plan.looked(&listing.filter(|(_, seen)| *seen != Seen::Missing).collect(), now);
                }
                Step::Head(at) => {
                    heads += 1;
                    let seen = bucket.seen(&plan.pack(at).key, now, true);
                    plan.headed(at, seen, now);
                }
                Step::Ask(at) => {
                    let key = plan.pack(at).key.clone();
                    let before = asks.entry(key.clone()).or_default();
                    assert!(
                        before.last().is_none_or(|last| now >= last + time.min(bucket.life_ms)),
                        "seed {seed}: {key} asked for again too soon"
                    );
                    if before.is_empty() {
                        order.push(key.clone());
                    }
                    before.push(now);
                    if bucket.seen(&key, now, true) == Seen::Frozen {
                        bucket.ready.insert(key.clone(), now + thaw_time);
                    }
                    asked.insert(key, now);
                    plan.asked(at, now);
                }
                Step::Fill(at) => {
                    now += 10;
                    let key = plan.pack(at).key.clone();
                    match bucket.seen(&key, now, true) {
                        Seen::Readable => {
                            filled.push(key);
                            plan.filled(at);
                        }
                        Seen::Missing => plan.filled(at),
                        _ => plan.refrozen(at),
                    }
                }
            }
            now += 1;
            if random.random_bool(0.01) {
                restarts += 1;
                plan = fresh(&asked, &filled);
            }
        }
        assert_eq!(plan.next(now), Step::Done, "seed {seed}: it ends");
        let there = packs.iter().filter(|pack| !bucket.missing.contains(&pack.key));
        assert!(there.clone().all(|pack| filled.contains(&pack.key)), "seed {seed}: all that is there is read");
        assert!(filled.iter().all(|key| filled.iter().filter(|other| *other == key).count() == 1), "seed {seed}: and once");
        order.retain(|key| !late.contains(key));
        let wanted: Vec<_> = packs.iter().map(|pack| pack.key.clone()).filter(|key| order.contains(key)).collect();
        assert_eq!(order, wanted, "seed {seed}: the most wanted first");
        // What it costs: looks at a pace, and of what listings don't tell, some each time.
        assert!(looks <= now / poll + restarts + 2, "seed {seed}: {looks} looks in {now} ms");
        assert!(
            heads <= looks * HEADS_MAX as u64 && (!bucket.tells || sleeps > 0 || heads <= looks + restarts * count),
            "seed {seed}: {heads} heads"
        );
    }

    #[test]
    fn f36_a_pack_that_can_not_be_asked_for_holds_up_no_other() {
        let mut plan = Plan::new(vec![pack(1, "GLACIER", 1), pack(2, "GLACIER", 1)], &HashMap::new(), 60_000, |_| 1);
        plan.looked(&[("0001".to_owned(), Seen::Frozen), ("0002".to_owned(), Seen::Frozen)].into(), 1);
        assert_eq!(plan.next(1), Step::Ask(0));
        plan.failed(Step::Ask(0), 1);
        assert_eq!((plan.next(1), plan.next(1 + PAUSE_MIN_MS)), (Step::Wait(PAUSE_MIN_MS), Step::Ask(1)));
        plan.asked(1, 2_000);
        assert_eq!(plan.next(70_000), Step::Ask(0), "and its turn comes again");
    }

    #[test]
    fn f36_what_is_wanted_is_asked_for_in_order_once_and_read_whatever_fails() {
        for seed in 0..1_000 {
            run(seed);
        }
    }
}
