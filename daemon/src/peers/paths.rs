//! How large packets may be on the way to an address: found once, and known to the connections that follow.
//!
//! Looking for the size costs a connection some 50 kB each way, which is more than all else that two nodes have to say to each other when they meet again
//! after an hour. So what one has found is where the next one begins, and ends. A path that takes less than before is noticed by what is
//! lost (a black hole), and forgotten; one that takes more, after [`KNOWN`].

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::Mutex;
use std::time::{Duration, Instant};

use super::links::lock;

/// How long a size counts since it was found.
const KNOWN: Duration = Duration::from_secs(24 * 3600);
/// On a path that takes less than the largest packets the look for the size may take so long.
const LOOKED: Duration = Duration::from_secs(60);
/// Addresses that are kept.
const PATHS_MAX: usize = 1024;

/// By address without port: packets take one way to all who are behind it.
#[derive(Debug, Default)]
pub(super) struct Paths(Mutex<HashMap<IpAddr, (u16, Instant)>>);

/// What a connection has seen of its path.
#[derive(Clone, Copy, Debug)]
pub(super) struct Path {
    /// Bytes of the largest packet that got through.
    pub size: u16,
    /// Whether none is larger.
    pub is_largest: bool,
    /// How often large packets were lost that had got through before.
    pub holes: u64,
    /// For how long the connection was up.
    pub age: Duration,
}

impl Paths {
    /// Bytes of the largest packet that is known to pass.
    pub(super) fn size(&self, address: IpAddr, now: Instant) -> Option<u16> {
        let paths = lock(&self.0);
        let (size, found) = paths.get(&address.to_canonical())?;
        (now.saturating_duration_since(*found) < KNOWN).then_some(*size)
    }

    /// Takes note of what a connection has seen.
    pub(super) fn note(&self, address: IpAddr, path: &Path, now: Instant) {
        let (mut paths, address) = (lock(&self.0), address.to_canonical());
        if path.holes > 0 {
            paths.remove(&address);
            return;
        }
        if paths.len() >= PATHS_MAX {
            paths.retain(|_, (_, found)| now.saturating_duration_since(*found) < KNOWN);
        }
        let is_found = path.is_largest || path.age >= LOOKED;
        // Who began with what was known has not looked for more, however long it is up.
        let has_looked = paths.get(&address).is_none_or(|(_, found)| now.saturating_duration_since(*found) >= KNOWN + path.age);
        if is_found && has_looked && (paths.len() < PATHS_MAX || paths.contains_key(&address)) {
            paths.insert(address, (path.size, now));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SIZE: u16 = 1452;

    fn path(age: u64) -> Path {
        Path { size: SIZE, is_largest: false, holes: 0, age: Duration::from_secs(age) }
    }

    #[test]
    fn a_size_counts_for_a_day_or_until_packets_of_that_size_are_lost() {
        let (paths, start, address) = (Paths::default(), Instant::now(), IpAddr::from([10, 0, 0, 1]));
        let of = |hours: u64| paths.size(address, start + Duration::from_secs(hours * 3600));
        paths.note(address, &path(10), start);
        assert_eq!(of(0), None, "it was looking still");
        paths.note(address, &Path { size: 6500, is_largest: true, ..path(1) }, start);
        assert_eq!(of(0), Some(6500), "nothing larger is looked for");
        paths.note(address, &path(100), start + Duration::from_secs(23 * 3600));
        assert_eq!((of(23), of(24)), (Some(6500), None), "not found anew");
        paths.note(address, &path(25 * 3600), start + Duration::from_secs(25 * 3600));
        assert_eq!(of(25), None, "nor by who is up since then");
        paths.note(address, &path(100), start + Duration::from_secs(25 * 3600));
        assert_eq!(of(26), Some(SIZE));
        assert_eq!(
            paths.size("::ffff:10.0.0.1".parse().expect("an address"), start),
            Some(SIZE),
            "the same, from a socket for both families"
        );
        paths.note(address, &Path { holes: 1, ..path(100) }, start);
        assert_eq!(of(26), None);
    }

    #[test]
    fn only_so_many_are_kept() {
        let (paths, now) = (Paths::default(), Instant::now());
        (0..=PATHS_MAX as u32).for_each(|number| paths.note(IpAddr::from(number.to_be_bytes()), &path(100), now));
        assert_eq!(lock(&paths.0).len(), PATHS_MAX);
        paths.note(IpAddr::from([1, 1, 1, 1]), &path(100), now + KNOWN);
        assert_eq!(lock(&paths.0).len(), 1, "what is old makes room");
    }
}
