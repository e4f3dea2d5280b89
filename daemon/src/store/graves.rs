//! What was deleted, after its tombstones are gone.
//!
//! ```text
//! sync   'g' | hash of kind and key (16) -> the stamp of the tombstone that was purged
//! sync   'h' | time | hash               -> nothing: the same, the oldest first
//! ```
//!
//! A tombstone ends when every member that counts has seen it. Who did not count, was put back from a copy, or got something from a member of
//! either kind, may still bring what it killed. So its stamp stays behind as its grave, 16 bytes of a hash for the key. When something comes
//! that is older than the grave of its key, this node tells the tombstone again, as a record of its own with the old stamp: it kills what came,
//! here and wherever that was told already, and nothing that was pushed later.

use larder_protocol::record::{Numbered, Record};
use larder_protocol::stamp::Stamp;

use super::Store;
use super::error::Result;
use super::horizon::brief;
use super::index::{RecordRow, Table};
use super::journal::Writing;

/// Graves that are kept; the oldest ones are forgotten.
pub(super) const GRAVES_MAX: usize = 1_000_000;
/// Graves that are forgotten in one writing.
const PART: usize = 5000;
const GRAVE: &[u8] = b"g";
const BY_TIME: &[u8] = b"h";

impl Writing<'_> {
    /// A tombstone goes for good.
    pub(super) fn dig(&mut self, tombstone: &RecordRow) -> Result<()> {
        let (hash, stamp) = (brief(tombstone.record.kind, &tombstone.record.key).to_be_bytes(), tombstone.record.stamp);
        if let Some(before) = self.grave(&hash)? {
            if before >= stamp {
                return Ok(());
            }
            self.index.delete(&mut self.batch, Table::Sync, &by_time(&before, &hash));
        }
        self.index.put_row(&mut self.batch, Table::Sync, &[GRAVE, &hash].concat(), &stamp);
        self.index.put(&mut self.batch, Table::Sync, &by_time(&stamp, &hash), b"");
        Ok(())
    }

    /// Tells the tombstone of a record again that would stand and was deleted; whether it does.
    pub(super) fn bury(&mut self, record: &Record) -> Result<bool> {
        if record.value.is_none() {
            return Ok(false);
        }
        let hash = brief(record.key.kind(), &record.key.to_bytes()).to_be_bytes();
        let Some(stamp) = self.grave(&hash)?.filter(|grave| *grave > record.stamp) else { return Ok(false) };
        tracing::info!(key = ?record.key, "what was deleted, and forgotten since, has come back from somewhere; it is deleted again");
        // What a reader tells is not taken; it only leaves alone what came.
        if !self.is_reader() {
            let origin = self.origin();
            let sequence = self.next_number(origin)?;
            self.stand(Numbered { origin, sequence, record: Record { key: record.key.clone(), value: None, stamp } })?;
        }
        Ok(true)
    }

    fn grave(&self, hash: &[u8; 16]) -> Result<Option<Stamp>> {
        self.index.row(Table::Sync, &[GRAVE, &hash[..]].concat())
    }
}

impl Store {
    /// Forgets the oldest graves, so that at most `max` stay; says how many. Reads the keys of all.
    pub(super) fn level_graves(&self, max: usize) -> Result<usize> {
        let index = &self.inner.index;
        let mut too_many = index.scan(Table::Sync, BY_TIME, b"").count().saturating_sub(max);
        let before = too_many;
        while too_many > 0 {
            let mut writing = self.inner.journal.write(index);
            let oldest = index.scan(Table::Sync, BY_TIME, b"").take(PART.min(too_many));
            for row in oldest.collect::<Result<Vec<_>>>()? {
                index.delete(&mut writing.batch, Table::Sync, &row.0);
                index.delete(&mut writing.batch, Table::Sync, &[GRAVE, &row.0[row.0.len() - 16..]].concat());
                too_many -= 1;
            }
            writing.commit()?;
        }
        Ok(before)
    }
}

fn by_time(stamp: &Stamp, hash: &[u8; 16]) -> Vec<u8> {
    [BY_TIME, &stamp.time.0.to_be_bytes(), hash].concat()
}

#[cfg(test)]
mod tests {
    use larder_protocol::record::Key;
    use larder_protocol::vector::VersionVector;

    use super::super::tests::{Place, push_image, repository, sync, tag};
    use super::*;

    const NAME: &str = "team/app";

    /// Both hear everything, and then forget what was deleted.
    fn forget(a: &Store, b: &Store) {
        sync(a, b);
        sync(b, a);
        let seen = a.vector().common(&b.vector());
        for store in [a, b] {
            store.purge_tombstones(&seen, 0, |_| u64::MAX).expect("purged");
        }
    }

    fn is_tagged(store: &Store, name: &str) -> bool {
        store.tag(&repository(NAME), &tag(name)).expect("readable").is_some()
    }

    fn graves(store: &Store) -> (usize, usize) {
        let count = |prefix| store.inner.index.scan(Table::Sync, prefix, b"").count();
        (count(GRAVE), count(BY_TIME))
    }

    #[test]
    fn i4_what_comes_back_after_its_tombstone_was_forgotten_is_deleted_again_everywhere() {
        let places = [1, 2, 3].map(Place::new);
        let [a, b, stranger] = [&places[0], &places[1], &places[2]].map(Place::open);
        push_image(&stranger, NAME, "gone", b"gone");
        push_image(&stranger, NAME, "stays", b"stays");
        sync(&stranger, &a);
        assert!(a.delete_tag(&repository(NAME), &tag("gone")).expect("deleted"));
        let stamp = a.record(&Key::Tag(repository(NAME), tag("gone"))).expect("readable").expect("a tombstone").stamp;
        forget(&a, &b);
        assert_eq!((graves(&a), graves(&b)), ((1, 1), (1, 1)));
        assert!(a.record(&Key::Tag(repository(NAME), tag("gone"))).expect("readable").is_none(), "forgotten");
        // One who has lost everything hears of it from the one that was away, and tells it on: its numbers cover nothing here.
        let lost = Place::new(4);
        let fresh = lost.open();
        sync(&stranger, &fresh);
        let records: Vec<_> = fresh.exchange(&VersionVector::default()).expect("exchange").map(|it| it.expect("record")).collect();
        b.apply(records, &VersionVector::default()).expect("applied");
        assert!(!is_tagged(&b, "gone") && is_tagged(&b, "stays"), "it is remembered");
        let told = b.record(&Key::Tag(repository(NAME), tag("gone"))).expect("readable").expect("told again");
        assert_eq!((told.value, told.stamp), (None, stamp), "as it was");
        for store in [&fresh, &stranger, &a] {
            sync(&b, store);
            assert!(!is_tagged(store, "gone") && is_tagged(store, "stays"));
            assert!(store.sums_are_right().expect("counted"));
        }
        // A push of later is another thing.
        push_image(&fresh, NAME, "gone", b"again");
        sync(&fresh, &b);
        assert!(is_tagged(&b, "gone"));
    }

    #[test]
    fn the_oldest_graves_are_forgotten_and_a_key_has_one() {
        let places = [1, 2].map(Place::new);
        let [a, b] = [&places[0], &places[1]].map(Place::open);
        for round in 0..3 {
            for name in ["x", "y", "z"] {
                push_image(&a, NAME, name, format!("{name}{round}").as_bytes());
                assert!(a.delete_tag(&repository(NAME), &tag(name)).expect("deleted"));
            }
            forget(&a, &b);
            assert_eq!(graves(&a), (3, 3));
        }
        assert_eq!((a.level_graves(3).expect("levelled"), a.level_graves(2).expect("levelled")), (0, 1));
        assert_eq!(graves(&a), (2, 2));
        let remembered = |name| {
            let hash = brief(3, &Key::Tag(repository(NAME), tag(name)).to_bytes()).to_be_bytes();
            a.inner.journal.write(&a.inner.index).grave(&hash).expect("readable").is_some()
        };
        assert_eq!(["x", "y", "z"].map(remembered), [false, true, true], "the one that was deleted first is forgotten first");
    }
}
