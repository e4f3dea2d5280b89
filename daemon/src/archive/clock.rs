//! The time by which requests are signed: this host's, corrected by what a server said when it refused it (F14).

use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::{Duration, SystemTime};

use jiff::Timestamp;
use jiff::fmt::rfc2822;

/// See the module. Cheap to clone; clones learn from each other.
#[derive(Clone, Debug, Default)]
pub(super) struct Clock {
    /// Seconds that the servers' clocks are ahead of this host's.
    ahead: Arc<AtomicI64>,
}

impl Clock {
    /// The time, as far as it is known.
    pub(super) fn now(&self) -> SystemTime {
        shifted(SystemTime::now(), self.ahead.load(Ordering::Acquire))
    }

    /// Takes the time from an answer's `Date`; `false`: it is none.
    pub(super) fn learn(&self, date: &str) -> bool {
        let Some(ahead) = seconds_ahead(date, SystemTime::now()) else { return false };
        if ahead.abs_diff(self.ahead.swap(ahead, Ordering::AcqRel)) > 1 {
            tracing::warn!(ahead, "this host's clock is not the bucket's: requests are signed with the bucket's time; set the clock");
        }
        true
    }
}

fn seconds_ahead(date: &str, now: SystemTime) -> Option<i64> {
    // SPEC: RFC 9110, 5.6.7: the one form of a date that servers send is one that mails may have.
    let server = rfc2822::DateTimeParser::new().parse_timestamp(date).ok()?.as_second();
    server.checked_sub(Timestamp::try_from(now).ok()?.as_second())
}

fn shifted(time: SystemTime, seconds: i64) -> SystemTime {
    let by = Duration::from_secs(seconds.unsigned_abs());
    let shifted = if seconds < 0 { time.checked_sub(by) } else { time.checked_add(by) };
    shifted.unwrap_or(time)
}

#[cfg(test)]
mod tests {
    use std::time::UNIX_EPOCH;

    use super::*;

    #[test]
    fn f14_the_servers_time_is_read_and_followed() {
        let boot = UNIX_EPOCH + Duration::from_secs(60);
        let ahead = seconds_ahead("Wed, 25 Nov 2026 21:00:00 GMT", boot).expect("a date");
        assert_eq!(shifted(boot, ahead), UNIX_EPOCH + Duration::from_secs(1_795_640_400));
        assert_eq!(seconds_ahead("Wed, 25 Nov 2026 21:00:00 GMT", UNIX_EPOCH + Duration::from_secs(1_795_640_500)), Some(-100));
        for bad in ["yesterday", "", "Wed, 25 Nov 2026 21:00:00", "\u{e9}"] {
            assert_eq!(seconds_ahead(bad, boot), None, "{bad}");
        }
    }

    #[test]
    fn f14_what_is_learnt_holds_for_all_who_sign() {
        let (clock, other) = (Clock::default(), Clock::default());
        let clone = clock.clone();
        assert!(clock.learn("Mon, 25 Nov 2126 21:00:00 GMT") && !clock.learn("soon"));
        let later = SystemTime::now() + Duration::from_secs(3600);
        assert!(clone.now() > later && other.now() < later);
    }
}
