//! What this node owes and lacks: a list, a place in a scan, and a pace. Decisions only; `copies` and `repair` do the work.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use larder_protocol::digest::Digest;
use larder_protocol::record::Link;
use serde::{Deserialize, Serialize};

/// When what could not be had is tried again; doubled each time, up to the last.
const BACKOFF: (Duration, Duration) = (Duration::from_secs(10), Duration::from_secs(600));
/// Blobs that are remembered one by one. With more, the scan goes round again.
const OWED_MAX: usize = 100_000;

/// Blobs that are owed and could not be had yet.
#[derive(Debug, Default)]
pub(super) struct Owed {
    entries: HashMap<Digest, Entry>,
    /// What is not written down yet: `Some`, it is owed, `None`, it is not any more.
    changes: HashMap<Digest, Option<Link>>,
    /// There was more than is remembered.
    overflowed: bool,
}

#[derive(Debug)]
struct Entry {
    link: Link,
    pause: Duration,
    due: Instant,
}

impl Owed {
    /// The list as it was written down: all of it is tried at once.
    pub(super) fn new(rows: impl IntoIterator<Item = (Digest, Link)>, now: Instant) -> Self {
        let entries = rows.into_iter().map(|(digest, link)| (digest, Entry { link, pause: BACKOFF.0, due: now }));
        Self { entries: entries.collect(), ..Self::default() }
    }

    pub(super) fn len(&self) -> usize {
        self.entries.len()
    }

    pub(super) fn has(&self, digest: &Digest) -> bool {
        self.entries.contains_key(digest)
    }

    /// It could not be had.
    pub(super) fn failed(&mut self, digest: Digest, link: Link, now: Instant) {
        if let Some(entry) = self.entries.get_mut(&digest) {
            entry.due = now + entry.pause;
            entry.pause = (entry.pause * 2).min(BACKOFF.1);
        } else if self.entries.len() < OWED_MAX {
            self.entries.insert(digest, Entry { link, pause: BACKOFF.0 * 2, due: now + BACKOFF.0 });
            self.changes.insert(digest, Some(link));
        } else {
            self.overflowed = true;
        }
    }

    /// It is here, or not owed any more.
    pub(super) fn settled(&mut self, digest: &Digest) {
        if self.entries.remove(digest).is_some() {
            self.changes.insert(*digest, None);
        }
    }

    /// Somebody has come who may have what was missing.
    pub(super) fn hasten(&mut self, now: Instant) {
        for entry in self.entries.values_mut() {
            (entry.due, entry.pause) = (now, BACKOFF.0);
        }
    }

    /// What is to be tried now, at most `limit`.
    pub(super) fn due(&self, now: Instant, limit: usize) -> Vec<(Digest, Link)> {
        self.entries.iter().filter(|(_, entry)| entry.due <= now).take(limit).map(|(digest, entry)| (*digest, entry.link)).collect()
    }

    /// What has to be written down since the last time.
    pub(super) fn take_changes(&mut self) -> HashMap<Digest, Option<Link>> {
        std::mem::take(&mut self.changes)
    }

    /// Writing them down failed: they are to be written again, unless something newer is.
    pub(super) fn put_back(&mut self, changes: HashMap<Digest, Option<Link>>) {
        for (digest, change) in changes {
            self.changes.entry(digest).or_insert(change);
        }
    }

    /// Whether there was more than is remembered, since it was last asked.
    pub(super) fn take_overflow(&mut self) -> bool {
        std::mem::take(&mut self.overflowed)
    }
}

/// How far all links were looked through for what became this node's share. Written down, so that a restart goes on there.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Scan {
    /// For which placement.
    placement: [u8; 32],
    from: Option<Vec<u8>>,
    done: bool,
}

impl Scan {
    /// Begins anew when others own what than when it began.
    pub(super) fn follow(&mut self, placement: [u8; 32]) {
        if self.placement != placement {
            *self = Self { placement, from: None, done: false };
        }
    }

    /// Begins anew.
    pub(super) fn again(&mut self) {
        (self.from, self.done) = (None, false);
    }

    /// Where to go on; `None`: there is nothing to do.
    pub(super) fn place(&self) -> Option<Option<Vec<u8>>> {
        (!self.done).then(|| self.from.clone())
    }

    /// A part was looked through, for this placement; `next`: where the next one begins.
    pub(super) fn advance(&mut self, placement: [u8; 32], next: Option<Vec<u8>>) {
        if self.placement == placement {
            self.done = next.is_none();
            self.from = next;
        }
    }
}

/// Bytes a second: each piece of work pays for the one before it.
#[derive(Debug)]
pub(super) struct Pace {
    rate: u64,
    free: Instant,
}

impl Pace {
    pub(super) fn new(rate: u64, now: Instant) -> Self {
        Self { rate, free: now }
    }

    /// When the next `size` bytes may begin.
    pub(super) fn take(&mut self, size: u64, now: Instant) -> Instant {
        let begin = self.free.max(now);
        self.free = begin + Duration::from_secs_f64(size as f64 / self.rate.max(1) as f64);
        begin
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn digest(number: u32) -> Digest {
        Digest::sha256(&number.to_le_bytes())
    }

    const LINK: Link = Link { size: 1, root: [0; 32], crc64: 0 };

    #[test]
    fn what_can_not_be_had_is_tried_ever_less_often_and_at_once_when_somebody_comes() {
        let start = Instant::now();
        let at = |seconds| start + Duration::from_secs(seconds);
        let mut owed = Owed::default();
        let (mut tries, mut now) = (0, start);
        owed.failed(digest(1), LINK, now);
        while now < at(3600) {
            for (digest, link) in owed.due(now, 9) {
                owed.failed(digest, link, now);
                tries += 1;
            }
            now += Duration::from_secs(1);
        }
        // After 10, 30, 70, 150, 310, 630 seconds, and then every ten minutes.
        assert!((9..=12).contains(&tries), "{tries} tries in an hour");
        assert!(owed.due(now, 9).is_empty());
        owed.hasten(now);
        assert_eq!(owed.due(now, 9), [(digest(1), LINK)]);
        owed.failed(digest(1), LINK, now);
        assert_eq!(owed.due(now + BACKOFF.0, 9).len(), 1, "and soon again");
    }

    #[test]
    fn what_is_owed_is_written_down_once_and_crossed_out() {
        let now = Instant::now();
        let mut owed = Owed::new([(digest(1), LINK)], now);
        owed.failed(digest(1), LINK, now);
        assert!(owed.take_changes().is_empty(), "it is written down already");
        owed.failed(digest(2), LINK, now);
        owed.settled(&digest(1));
        owed.settled(&digest(3));
        let changes = owed.take_changes();
        assert_eq!(changes, HashMap::from([(digest(1), None), (digest(2), Some(LINK))]));
        owed.settled(&digest(2));
        owed.put_back(changes);
        assert_eq!(owed.take_changes(), HashMap::from([(digest(1), None), (digest(2), None)]), "the newer one counts");
    }

    #[test]
    fn more_than_is_remembered_makes_the_scan_go_round_again() {
        let now = Instant::now();
        let mut owed = Owed::default();
        (0..=OWED_MAX as u32).for_each(|number| owed.failed(digest(number), LINK, now));
        assert_eq!(owed.len(), OWED_MAX);
        assert!(owed.take_overflow() && !owed.take_overflow());
    }

    #[test]
    fn a_scan_goes_on_where_it_was_and_begins_anew_for_another_placement() {
        let (one, other) = ([1; 32], [2; 32]);
        let mut scan = Scan::default();
        scan.follow(one);
        assert_eq!(scan.place(), Some(None));
        scan.advance(one, Some(vec![7]));
        scan.follow(one);
        assert_eq!(scan.place(), Some(Some(vec![7])));
        scan.follow(other);
        assert_eq!(scan.place(), Some(None));
        scan.advance(one, None);
        assert_eq!(scan.place(), Some(None), "what was looked through for another placement does not count");
        scan.advance(other, None);
        scan.follow(other);
        assert_eq!(scan.place(), None);
        let read: Scan = larder_protocol::codec::decode(&larder_protocol::codec::encode(&scan)).expect("own bytes");
        assert_eq!(read, scan);
    }

    #[test]
    fn a_pace_is_kept_over_time_and_nothing_is_saved_up() {
        let start = Instant::now();
        let mut pace = Pace::new(100, start);
        let after = |begin: Instant| begin.saturating_duration_since(start).as_millis();
        assert_eq!([50, 200, 10].map(|size| after(pace.take(size, start))), [0, 500, 2500]);
        let late = start + Duration::from_secs(60);
        assert_eq!([after(pace.take(100, late)), after(pace.take(100, late))], [60_000, 61_000]);
    }
}
