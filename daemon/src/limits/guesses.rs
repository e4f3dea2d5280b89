//! How often a password may be tried (S17).
//!
//! Each origin and each user has a bucket: some wrong tries are free, and then one comes back at a time. So nobody guesses faster
//! than that from one place, and nobody's password is guessed faster than that from all places together. A try is counted when it
//! begins, and given back when it was right: many that run at once are no way round the count, and one that is broken off was wrong.
//! So is one that was never looked at, because too many others were.
//! Being right never pays for having been wrong, or who has one account would guess at the others.
//!
//! A user who was right from somewhere lately is *known* there: his tries from there have a bucket of their own, so that neither
//! who guesses at his password from elsewhere, nor who guesses at others behind the same address, locks him out.
//!
//! Buckets stand in tables of a fixed size. Where there is no room, the bucket that is nearest to being forgotten goes, so that a
//! flood of new names does not wash out the one that is under attack. Names are kept as keyed hashes: nobody can choose who shares
//! a place with whom.

use std::net::IpAddr;
use std::time::Duration;

use super::origin;

/// Wrong tries of one user that are free, and how long one takes to come back.
const USER: Rate = Rate { free: 10, each_ms: 60_000 };
/// The same of one origin, behind which many users may be.
const ORIGIN: Rate = Rate { free: 20, each_ms: 10_000 };
/// For how long a user is known where he was right.
const KNOWN_FOR_MS: u64 = 24 * 60 * 60 * 1000;
/// Places that a key may have in a table.
const WAYS: usize = 8;
/// Groups of such places in each of the tables; all of them together take 2 MiB.
const SETS: usize = 4096;

#[derive(Clone, Copy)]
struct Rate {
    free: u64,
    each_ms: u64,
}

/// Who tried how often. `now` is any clock that does not run back, the same in all calls.
pub struct Guesses {
    secret: [u8; 32],
    users: Table,
    origins: Table,
    pairs: Table,
    known: Table,
}

/// One try that has begun; what has to be given back when it was right.
#[derive(Debug)]
#[must_use = "a try that is not ended counts as wrong"]
pub struct Attempt {
    user: u64,
    origin: u64,
    pair: u64,
}

impl Guesses {
    /// Nobody has tried anything. The secret makes the places in the tables unforeseeable: random bytes, new at each start.
    pub fn new(secret: [u8; 32]) -> Self {
        Self::sized(secret, SETS)
    }

    fn sized(secret: [u8; 32], sets: usize) -> Self {
        let table = || Table { places: vec![Entry::default(); sets * WAYS] };
        Self { secret, users: table(), origins: table(), pairs: table(), known: table() }
    }

    /// Before a password is looked at: may it be? The error is how long to wait; the password is not to be looked at then, or a
    /// right one would be told from a wrong one.
    pub fn begin(&mut self, now: Duration, from: IpAddr, user: &str) -> Result<Attempt, Duration> {
        let now = ms(now);
        let attempt = self.attempt(from, user);
        let wait = if self.known.until(attempt.pair) > now {
            self.pairs.wait(now, attempt.pair, USER)
        } else {
            self.users.wait(now, attempt.user, USER).max(self.origins.wait(now, attempt.origin, ORIGIN))
        };
        if wait > 0 {
            return Err(Duration::from_millis(wait));
        }
        self.users.take(now, attempt.user, USER);
        self.origins.take(now, attempt.origin, ORIGIN);
        self.pairs.take(now, attempt.pair, USER);
        Ok(attempt)
    }

    /// The password was right.
    pub fn right(&mut self, now: Duration, attempt: Attempt) {
        self.known.set(ms(now), attempt.pair, ms(now) + KNOWN_FOR_MS);
        self.withdraw(attempt);
    }

    /// The password was not looked at after all: nothing is known of it.
    pub fn withdraw(&mut self, attempt: Attempt) {
        self.users.give_back(attempt.user, USER);
        self.origins.give_back(attempt.origin, ORIGIN);
        self.pairs.give_back(attempt.pair, USER);
    }

    fn attempt(&self, from: IpAddr, user: &str) -> Attempt {
        let address = match origin(from) {
            IpAddr::V4(address) => address.to_ipv6_mapped().octets(),
            IpAddr::V6(address) => address.octets(),
        };
        let key = |parts: &[&[u8]]| {
            let mut hash = blake3::Hasher::new_keyed(&self.secret);
            for part in parts {
                hash.update(part);
            }
            let bytes = hash.finalize();
            u64::from_le_bytes(bytes.as_bytes()[..8].try_into().expect("eight of 32 bytes"))
        };
        Attempt { user: key(&[b"u", user.as_bytes()]), origin: key(&[b"o", &address]), pair: key(&[b"p", &address, user.as_bytes()]) }
    }
}

fn ms(now: Duration) -> u64 {
    u64::try_from(now.as_millis()).unwrap_or(u64::MAX / 2)
}

/// A number of ms for a key: when its bucket will be full again, or until when something is known.
#[derive(Clone, Copy, Default)]
struct Entry {
    key: u64,
    at: u64,
}

struct Table {
    places: Vec<Entry>,
}

impl Table {
    fn set_of(&mut self, key: u64) -> &mut [Entry] {
        let sets = (self.places.len() / WAYS) as u64;
        let start = (key % sets) as usize * WAYS;
        &mut self.places[start..start + WAYS]
    }

    fn until(&mut self, key: u64) -> u64 {
        self.set_of(key).iter().find(|entry| entry.key == key).map_or(0, |entry| entry.at)
    }

    /// Until a try is free again.
    fn wait(&mut self, now: u64, key: u64, rate: Rate) -> u64 {
        // What the bucket lacks, in time; one more try must fit in.
        let lacks = self.until(key).saturating_sub(now);
        (lacks + rate.each_ms).saturating_sub(rate.free * rate.each_ms)
    }

    fn take(&mut self, now: u64, key: u64, rate: Rate) {
        let full = self.until(key).max(now) + rate.each_ms;
        self.set(now, key, full);
    }

    fn give_back(&mut self, key: u64, rate: Rate) {
        if let Some(entry) = self.set_of(key).iter_mut().find(|entry| entry.key == key) {
            entry.at = entry.at.saturating_sub(rate.each_ms);
        }
    }

    fn set(&mut self, now: u64, key: u64, at: u64) {
        let set = self.set_of(key);
        let place = match set.iter().position(|entry| entry.key == key) {
            Some(own) => own,
            // What is over counts as empty, and what is over soonest goes first.
            None => (0..WAYS).min_by_key(|place| set[*place].at.max(now)).expect("a set has places"),
        };
        set[place] = Entry { key, at };
    }
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use larder_harness::{Random, for_seeds};

    use super::*;

    fn at(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    fn place(number: u32) -> IpAddr {
        Ipv4Addr::from_bits(0x0a00_0000 + number).into()
    }

    fn guesses() -> Guesses {
        Guesses::new([7; 32])
    }

    /// Tries once, wrong; whether it was looked at.
    fn wrong(guesses: &mut Guesses, now: Duration, from: u32, user: &str) -> bool {
        guesses.begin(now, place(from), user).is_ok()
    }

    fn right(guesses: &mut Guesses, now: Duration, from: u32, user: &str) -> bool {
        let begun = guesses.begin(now, place(from), user);
        begun.map(|attempt| guesses.right(now, attempt)).is_ok()
    }

    #[test]
    fn s17_one_user_is_not_guessed_at_faster_from_many_places_than_from_one() {
        let mut guesses = guesses();
        let looked_at = (0..10_000).filter(|from| wrong(&mut guesses, at(1), *from, "ann")).count();
        assert_eq!(looked_at as u64, USER.free);
        let wait = guesses.begin(at(1), place(1), "ann").expect_err("none is left");
        assert_eq!(wait, Duration::from_millis(USER.each_ms));
        assert!(!wrong(&mut guesses, at(60), 1, "ann"));
        assert!(wrong(&mut guesses, at(61), 1, "ann"), "one comes back");
        assert!(!wrong(&mut guesses, at(61), 2, "ann"), "and only one");
    }

    #[test]
    fn s17_one_place_does_not_guess_faster_at_many_users_than_at_one() {
        let mut guesses = guesses();
        let looked_at = (0..10_000).filter(|user| wrong(&mut guesses, at(1), 1, &format!("user-{user}"))).count();
        assert_eq!(looked_at as u64, ORIGIN.free);
        assert!(right(&mut guesses, at(1), 2, "user-0"), "another place is not meant");
    }

    #[test]
    fn s17_tries_that_run_at_once_are_counted_before_they_end() {
        let mut guesses = guesses();
        let begun: Vec<_> = (0..1000).filter_map(|_| guesses.begin(at(1), place(1), "ann").ok()).collect();
        assert_eq!(begun.len() as u64, USER.free);
    }

    #[test]
    fn s17_who_is_right_is_never_slowed_and_does_not_pay_for_wrong_ones() {
        let mut guesses = guesses();
        assert!((0..1000).all(|_| right(&mut guesses, at(1), 1, "ann")));
        // An account of one's own is no help.
        let mut looked_at = 0;
        for round in 0..10_000 {
            right(&mut guesses, at(1), 9, "mallory");
            looked_at += u64::from(wrong(&mut guesses, at(1), 9, &format!("user-{round}")));
        }
        assert_eq!(looked_at, ORIGIN.free);
    }

    #[test]
    fn s17_a_try_that_was_not_looked_at_is_no_wrong_guess() {
        let mut guesses = guesses();
        for _ in 0..1000 {
            let attempt = guesses.begin(at(1), place(1), "ann").expect("none was looked at");
            guesses.withdraw(attempt);
        }
        let looked_at = (0..1000).filter(|_| wrong(&mut guesses, at(1), 1, "ann")).count();
        assert_eq!(looked_at as u64, USER.free, "and it makes nobody known either");
    }

    #[test]
    fn s17_a_user_who_is_known_where_he_is_is_not_locked_out_by_others() {
        let mut guesses = guesses();
        assert!(right(&mut guesses, at(1), 1, "ann"));
        (0..10_000).for_each(|from| _ = wrong(&mut guesses, at(2), from, "ann"));
        (0..10_000).for_each(|user| _ = wrong(&mut guesses, at(2), 1, &format!("user-{user}")));
        assert!(right(&mut guesses, at(3), 1, "ann"), "neither by guesses at him nor by guesses of his neighbours");
        assert!(!right(&mut guesses, at(3), 2, "ann"), "from elsewhere he waits as others do");
        // Where he is known he can't be guessed at faster either.
        assert!((0..1000).filter(|_| wrong(&mut guesses, at(3), 1, "ann")).count() as u64 <= USER.free);
    }

    #[test]
    fn s17_a_flood_of_names_does_not_wash_out_who_is_under_attack() {
        let mut guesses = Guesses::sized([7; 32], 1);
        (0..USER.free as u32).for_each(|from| assert!(wrong(&mut guesses, at(1), 1000 + from, "ann")));
        for flood in 0..10_000 {
            wrong(&mut guesses, at(1), flood, &format!("nobody-{flood}"));
        }
        assert!(!wrong(&mut guesses, at(2), 7, "ann"));
        assert_eq!(guesses.users.places.len(), WAYS, "and takes no memory");
    }

    /// Whatever is tried, from wherever and when: no user is guessed at faster than the rate from where he is not known, and no
    /// place guesses faster than its rate at users who are not known there.
    #[test]
    fn s17_no_order_of_tries_gets_more_guesses_than_the_rates_give() {
        for_seeds(|seed| {
            let (mut guesses, mut random) = (guesses(), Random::new(seed));
            let (mut now, users, places) = (1, 4, 6);
            let mut wrong_of_user = vec![Vec::new(); users as usize];
            for _ in 0..600 {
                now += random.below(3) * random.below(20);
                let (user, from) = (random.below(users), random.below(places) as u32);
                let name = format!("user-{user}");
                let Ok(attempt) = guesses.begin(at(now), place(from), &name) else { continue };
                if from == 0 && random.below(2) == 0 {
                    guesses.right(at(now), attempt);
                } else if from != 0 {
                    wrong_of_user[user as usize].push(now);
                }
            }
            for tries in &wrong_of_user {
                for (first, begin) in tries.iter().enumerate() {
                    for (last, end) in tries.iter().enumerate().skip(first) {
                        let most = USER.free + (end - begin) * 1000 / USER.each_ms + 1;
                        assert!((last - first + 1) as u64 <= most, "seed {seed}: {} tries in {} s", last - first + 1, end - begin);
                    }
                }
            }
        });
    }
}
