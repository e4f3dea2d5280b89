//! Random numbers that a printed seed repeats.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{SystemTime, UNIX_EPOCH};

/// A small generator (splitmix64): good enough to vary a test, the same on every machine, not secret.
#[derive(Debug, Clone)]
pub struct Random {
    state: u64,
}

/// How many seeds a simulation is run with when `SIM_SEEDS` doesn't say.
const SEEDS: u64 = 1000;

/// Runs a simulation with each of the seeds: as many as `SIM_SEEDS` says, or only the one in `SIM_SEED`. Says which seed it was that failed. More seeds
/// than usual are divided among all cores.
pub fn for_seeds(simulate: impl Fn(u64) + Sync) {
    struct Told<'a>(u64, &'a AtomicBool);
    impl Drop for Told<'_> {
        fn drop(&mut self) {
            if std::thread::panicking() {
                self.1.store(true, Ordering::Relaxed);
                eprintln!("it failed with SIM_SEED={}", self.0);
            }
        }
    }
    let given = |name: &str| std::env::var(name).ok().map(|text| text.parse().unwrap_or_else(|_| panic!("{name} is a number")));
    let seeds = given("SIM_SEED").map_or(0..given("SIM_SEEDS").unwrap_or(SEEDS), |seed: u64| seed..seed + 1);
    let threads = if seeds.end - seeds.start > SEEDS { std::thread::available_parallelism().map_or(1, usize::from) } else { 1 };
    let (next, has_failed) = (AtomicU64::new(seeds.start), AtomicBool::new(false));
    let run = || {
        while !has_failed.load(Ordering::Relaxed) {
            let seed = next.fetch_add(1, Ordering::Relaxed);
            if seed >= seeds.end {
                break;
            }
            let _told = Told(seed, &has_failed);
            simulate(seed);
        }
    };
    std::thread::scope(|scope| {
        (1..threads).for_each(|_| _ = scope.spawn(run));
        run();
    });
}

impl Random {
    /// The generator of `seed`.
    pub fn new(seed: u64) -> Self {
        Self { state: seed }
    }

    /// Takes the seed from LARDER_TEST_SEED or else from the clock, and prints it: cargo shows it when the test fails.
    pub fn printed(test: &str) -> Self {
        let given = std::env::var("LARDER_TEST_SEED").ok().map(|seed| seed.parse().expect("LARDER_TEST_SEED is a number"));
        let seed = given.unwrap_or_else(|| SystemTime::now().duration_since(UNIX_EPOCH).map_or(1, |time| time.as_nanos() as u64));
        println!("{test}: LARDER_TEST_SEED={seed}");
        Self::new(seed)
    }

    /// The next number.
    pub fn number(&mut self) -> u64 {
        self.state = self.state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.state;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    /// A number below `end`, which is not 0.
    pub fn below(&mut self, end: u64) -> u64 {
        self.number() % end
    }

    /// Whether something happens that happens in so many of a hundred cases.
    pub fn chance(&mut self, percent: u64) -> bool {
        self.below(100) < percent
    }

    /// Fills `bytes`.
    pub fn fill(&mut self, bytes: &mut [u8]) {
        for part in bytes.chunks_mut(8) {
            let number = self.number().to_le_bytes();
            part.copy_from_slice(&number[..part.len()]);
        }
    }
}
