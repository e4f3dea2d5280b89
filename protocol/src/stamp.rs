//! When something was written, and by which node: hybrid logical clock stamps.
//!
//! A [`HybridTime`] is 48 bits of milliseconds and 16 bits of counter, so that it follows wall time where clocks
//! agree, and never runs back where they don't (Kulkarni et al., "Logical Physical Clocks", 2014).
//! A [`Stamp`] adds the node, so that no two stamps are equal and every node orders them alike.
//! The clock reads no time itself: `now_ms` is handed in.

use std::fmt;

use serde::{Deserialize, Serialize};

/// Counter values within one millisecond.
const COUNTER_BITS: u32 = 16;

/// A node's identity: its Ed25519 public key.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct NodeId(pub [u8; 32]);

/// Letters of node ids: no i, l, o or u, which are misread aloud (Crockford's base 32).
const ALPHABET: &[u8; 32] = b"0123456789abcdefghjkmnpqrstvwxyz";
/// Letters in a node id without its dashes: 256 bits in fives.
const NODE_ID_LETTERS: usize = 52;

/// Milliseconds since 1970 in the upper 48 bits, a counter in the lower 16.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize)]
pub struct HybridTime(pub u64);

/// When a record was written, and by whom: the total order by which records merge.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Stamp {
    /// When.
    pub time: HybridTime,
    /// By whom; decides between equal times.
    pub node: NodeId,
}

/// A stamp that lies too far ahead of this node's clock to be believed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("stamp lies {ahead_ms} ms in the future, {max_ms} ms are allowed")]
pub struct FarFuture {
    /// How far ahead it is.
    pub ahead_ms: u64,
    /// How far it may be.
    pub max_ms: u64,
}

/// The clock that stamps this node's records; its floor is kept by the store.
#[derive(Clone, Copy, Debug, Default)]
pub struct Clock {
    floor: HybridTime,
}

impl NodeId {
    /// The id as 52 letters without dashes.
    pub fn letters(&self) -> String {
        let bit = |index: usize| self.0.get(index / 8).is_some_and(|byte| byte & (0x80 >> (index % 8)) != 0);
        (0..NODE_ID_LETTERS)
            .map(|letter| {
                let value = (0..5).fold(0, |value, i| value * 2 + usize::from(bit(letter * 5 + i)));
                char::from(ALPHABET[value])
            })
            .collect()
    }

    /// Reads an id with or without dashes, in either case; `None` for anything else.
    pub fn parse(text: &str) -> Option<Self> {
        let mut bytes = [0u8; 32];
        let mut letters = 0;
        for letter in text.bytes().filter(|byte| *byte != b'-') {
            let value = ALPHABET.iter().position(|known| *known == letter.to_ascii_lowercase())?;
            for i in 0..5 {
                if value & (0x10 >> i) != 0 {
                    let index = letters * 5 + i;
                    *bytes.get_mut(index / 8)? |= 0x80 >> (index % 8);
                }
            }
            letters += 1;
        }
        (letters == NODE_ID_LETTERS).then_some(Self(bytes))
    }
}

impl fmt::Display for NodeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, letter) in self.letters().char_indices() {
            if index > 0 && index % 4 == 0 {
                f.write_str("-")?;
            }
            write!(f, "{letter}")?;
        }
        Ok(())
    }
}

impl fmt::Debug for NodeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "node {}", &self.letters()[..8])
    }
}

impl HybridTime {
    /// The first time within a millisecond.
    pub fn from_ms(ms: u64) -> Self {
        Self(ms << COUNTER_BITS)
    }

    /// Milliseconds since 1970.
    pub fn ms(self) -> u64 {
        self.0 >> COUNTER_BITS
    }
}

impl Clock {
    /// A clock that never goes below `floor`.
    pub fn new(floor: HybridTime) -> Self {
        Self { floor }
    }

    /// The last time that was given out or seen.
    pub fn floor(&self) -> HybridTime {
        self.floor
    }

    /// A time later than every one given out or seen so far; the wall clock's, where it is.
    pub fn tick(&mut self, now_ms: u64) -> HybridTime {
        self.floor = HybridTime::from_ms(now_ms).max(HybridTime(self.floor.0 + 1));
        self.floor
    }

    /// Takes note of another node's stamp.
    ///
    /// # Errors
    /// `FarFuture` when it lies more than `max_ms` ahead of `now_ms`; then nothing is noted.
    pub fn observe(&mut self, time: HybridTime, now_ms: u64, max_ms: u64) -> Result<(), FarFuture> {
        let ahead_ms = time.ms().saturating_sub(now_ms);
        // A floor that was believed once must not make equal stamps unbelievable after the clock was set back.
        if ahead_ms > max_ms && time > self.floor {
            return Err(FarFuture { ahead_ms, max_ms });
        }
        self.floor = self.floor.max(time);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn node_ids_read_back_what_they_print() {
        for seed in 0..=255u8 {
            let id = NodeId(std::array::from_fn(|i| seed.wrapping_mul(31).wrapping_add(i as u8)));
            assert_eq!(NodeId::parse(&id.to_string()), Some(id));
            assert_eq!(NodeId::parse(&id.letters().to_uppercase()), Some(id));
        }
        for bad in ["", "0", "u", &"0".repeat(51), &"0".repeat(53), &"z".repeat(52), "ü"] {
            assert_eq!(NodeId::parse(bad), None, "{bad:?}");
        }
    }

    #[test]
    fn f13_time_never_runs_back() {
        let mut clock = Clock::default();
        let year = 365 * 86_400_000;
        let mut last = HybridTime::default();
        for now in [1_000, 1_000, year, 1_000, 999, year + 1] {
            let time = clock.tick(now);
            assert!(time > last);
            last = time;
        }
    }

    #[test]
    fn s31_the_far_future_is_refused_and_leaves_the_clock_alone() {
        let mut clock = Clock::default();
        assert!(clock.observe(HybridTime::from_ms(10_001), 5_000, 5_000).is_err());
        assert_eq!(clock.floor(), HybridTime::default());
        assert!(clock.observe(HybridTime::from_ms(10_000), 5_000, 5_000).is_ok());
        assert!(clock.tick(5_000) > HybridTime::from_ms(10_000));
        assert!(clock.observe(HybridTime(u64::MAX), 5_000, 5_000).is_err());
    }

    #[test]
    fn the_counter_carries_into_the_milliseconds() {
        let mut clock = Clock::default();
        for _ in 0..200_000 {
            clock.tick(7);
        }
        assert!(clock.floor().ms() > 7);
    }
}
