//! How much may be under way at once: for one origin, and in all.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::origin;

/// Counts what is under way. Its memory follows the total, which is bounded.
#[derive(Debug)]
pub struct Shares {
    total_max: usize,
    origin_max: usize,
    counts: Mutex<Counts>,
}

#[derive(Debug, Default)]
struct Counts {
    total: usize,
    origins: HashMap<IpAddr, usize>,
}

/// One thing that is under way, until it is dropped.
#[derive(Debug)]
pub struct Share {
    shares: Arc<Shares>,
    origin: IpAddr,
}

/// Why something may not begin.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refused {
    /// This origin has all it may have.
    Origin {
        /// How much that is.
        limit: usize,
    },
    /// All together have.
    Total {
        /// How much that is.
        limit: usize,
    },
}

impl Shares {
    /// So many in all, and so many of one origin.
    pub fn new(total_max: usize, origin_max: usize) -> Arc<Self> {
        Arc::new(Self { total_max, origin_max, counts: Mutex::default() })
    }

    /// Begins one more.
    ///
    /// # Errors
    /// There are too many; the origin's own limit is told first.
    pub fn begin(self: &Arc<Self>, from: IpAddr) -> Result<Share, Refused> {
        let origin = origin(from);
        let mut counts = self.counts();
        let own = counts.origins.get(&origin).copied().unwrap_or(0);
        if own >= self.origin_max {
            return Err(Refused::Origin { limit: self.origin_max });
        }
        if counts.total >= self.total_max {
            return Err(Refused::Total { limit: self.total_max });
        }
        counts.origins.insert(origin, own + 1);
        counts.total += 1;
        Ok(Share { shares: Arc::clone(self), origin })
    }

    fn counts(&self) -> MutexGuard<'_, Counts> {
        // Nothing in here panics between two changes that belong together.
        self.counts.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Share {
    fn drop(&mut self) {
        let mut counts = self.shares.counts();
        counts.total -= 1;
        if let Some(own) = counts.origins.get_mut(&self.origin) {
            *own -= 1;
            if *own == 0 {
                counts.origins.remove(&self.origin);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;
    use std::net::Ipv4Addr;

    use larder_harness::{Random, for_seeds};

    use super::*;

    fn place(number: u32) -> IpAddr {
        Ipv4Addr::from_bits(number).into()
    }

    #[test]
    fn s18_one_origin_gets_its_share_and_leaves_the_rest_to_others() {
        let shares = Shares::new(5, 3);
        let mut begun: Vec<_> = (0..3).map(|_| shares.begin(place(1)).expect("its share")).collect();
        assert_eq!(shares.begin(place(1)).expect_err("more"), Refused::Origin { limit: 3 });
        begun.extend((2..4).map(|other| shares.begin(place(other)).expect("others go on")));
        assert_eq!(shares.begin(place(9)).expect_err("more than all"), Refused::Total { limit: 5 });
        begun.remove(0);
        begun.push(shares.begin(place(9)).expect("one ended"));
        drop(begun);
        assert!(shares.counts().origins.is_empty() && shares.counts().total == 0);
    }

    #[test]
    fn s18_whatever_begins_and_ends_the_counts_are_right() {
        for_seeds(|seed| {
            let mut random = Random::new(seed);
            let shares = Shares::new(20, 6);
            let mut begun: Vec<Share> = Vec::new();
            for _ in 0..120 {
                if random.below(2) == 0 && !begun.is_empty() {
                    begun.swap_remove(random.below(begun.len() as u64) as usize);
                } else {
                    let from = place(random.below(8) as u32);
                    let own = begun.iter().filter(|share| share.origin == from).count();
                    let expected = own < 6 && begun.len() < 20;
                    let share = shares.begin(from);
                    assert_eq!(share.is_ok(), expected, "seed {seed}");
                    begun.extend(share);
                }
                let mut counts: HashMap<IpAddr, usize> = HashMap::new();
                begun.iter().for_each(|share| *counts.entry(share.origin).or_default() += 1);
                let now = shares.counts();
                assert_eq!((now.total, &now.origins), (begun.len(), &counts), "seed {seed}");
            }
        });
    }
}
