//! How old something is, in time that counts: while this node was awake and in touch with all others.
//!
//! Only then can it know that nobody relied on a thing. Time asleep, switched off or cut off does not count, so that a laptop
//! that wakes, or a node that returns, does not find everything old (F15). The clock counts milliseconds, and keeps marks of how far it was
//! at which wall time. No I/O; the times are handed in.

use std::collections::VecDeque;

use serde::{Deserialize, Serialize};

/// Marks that are kept.
const MARKS_MAX: usize = 128;

/// The clock, as it is saved.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Clock {
    total_ms: u64,
    /// Wall time, and the total then; each later than the one before.
    marks: VecDeque<(u64, u64)>,
}

impl Clock {
    /// Goes on. `passed_ms`: by a clock that stands while the machine sleeps, since the last call; `heard`: whether all of it counts.
    /// Marks are `spacing_ms` apart, or more.
    pub(super) fn tick(&mut self, wall_ms: u64, passed_ms: u64, heard: bool, spacing_ms: u64) {
        if heard {
            self.total_ms = self.total_ms.saturating_add(passed_ms);
        }
        let last = self.marks.back().copied();
        if last.is_some_and(|(wall, _)| wall_ms < wall) {
            // The wall clock was set back: no mark says any more what came before what.
            self.marks.clear();
        }
        let due = self.marks.back().is_none_or(|(wall, _)| wall_ms - wall >= spacing_ms);
        if due && heard {
            if self.marks.len() == MARKS_MAX {
                self.marks.pop_front();
            }
            self.marks.push_back((wall_ms, self.total_ms));
        }
    }

    /// How much time has counted since a wall time; never too much.
    pub(super) fn age_ms(&self, wall_ms: u64) -> u64 {
        // Whatever was written at that wall time was written before the first mark behind it.
        self.marks.iter().find(|(wall, _)| *wall >= wall_ms).map_or(0, |(_, total)| self.total_ms - total)
    }

    /// The time that has counted in all.
    pub(super) fn total_ms(&self) -> u64 {
        self.total_ms
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOUR: u64 = 3_600_000;

    /// A clock that has run from wall time 0 for some hours, in steps of one.
    fn run(hours: u64, heard: impl Fn(u64) -> bool) -> Clock {
        let mut clock = Clock::default();
        for hour in 0..=hours {
            clock.tick(hour * HOUR, if hour == 0 { 0 } else { HOUR }, heard(hour), HOUR);
        }
        clock
    }

    #[test]
    fn only_time_counts_in_which_all_others_were_heard() {
        let clock = run(48, |hour| !(10..34).contains(&hour));
        assert_eq!(clock.age_ms(0), 24 * HOUR);
        assert_eq!(clock.age_ms(20 * HOUR), 14 * HOUR);
        assert_eq!(clock.age_ms(47 * HOUR + 1), 0);
        assert_eq!(clock.age_ms(u64::MAX), 0);
        assert_eq!(run(48, |_| false).age_ms(0), 0);
    }

    #[test]
    fn f15_sleep_does_not_make_things_old() {
        let mut clock = run(1, |_| true);
        // Eight hours by the wall, a second by the clock that stands while the machine sleeps.
        clock.tick(9 * HOUR, 1000, true, HOUR);
        assert_eq!(clock.age_ms(0), HOUR + 1000);
    }

    #[test]
    fn f13_a_wall_clock_that_is_set_back_makes_nothing_old() {
        let mut clock = run(40, |_| true);
        clock.tick(5 * HOUR, 1000, true, HOUR);
        assert_eq!(clock.age_ms(HOUR), 0, "what was written when is no longer known");
        clock.tick(6 * HOUR, HOUR, true, HOUR);
        assert_eq!(clock.age_ms(5 * HOUR), HOUR);
    }

    #[test]
    fn marks_are_bounded_and_old_things_stay_old() {
        let clock = run(10_000, |_| true);
        assert_eq!(clock.marks.len(), MARKS_MAX);
        assert!(clock.age_ms(0) >= (MARKS_MAX as u64 - 1) * HOUR);
    }
}
