//! Versions of a tag of which the later one's writer did not know the earlier one.
//!
//! All versions of a tag stand in one order, by their stamps, and a push says which version it replaced: the latest that was known where it was
//! taken. So a push that replaced something older than the version right before it did not know that one. The two are a conflict: the
//! later is what the tag means, everywhere; the earlier is kept in the history with a mark that names what it lost to.
//!
//! ```text
//! sync   'c' | key of the loser in the history -> the winner's stamp
//! ```
//!
//! A conflict is told once on each node, when its mark is written: whichever of the two came first, and however often. A version that comes late and
//! lies between the two takes the mark over, when it is what the loser had become. What a node has never seen it can't tell:
//! of a push that replaced one that never came here, only its writer's side knows whom it passed over.

use larder_protocol::digest::Digest;
use larder_protocol::name::{RepositoryName, Tag};
use larder_protocol::record::{Key, RawRecord, Record, TagTarget, Value};
use larder_protocol::stamp::Stamp;

use super::error::Result;
use super::index::{Batch, Index, Table, decode};
use super::journal::{Writing, parse};
use super::tags::history_prefix;

/// What the keys of marks begin with.
const MARK: &[u8] = b"c";
/// Versions among which the neighbours of a late one are looked for; more are there only until the next round of upkeep.
const LOOKED_AT_MAX: usize = 1000;
/// Conflicts of one writing that are logged one by one.
const LOGGED_MAX: usize = 20;

/// A tag that was pushed on two nodes that did not know of each other.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Conflict {
    /// Where.
    pub repository: RepositoryName,
    /// The tag.
    pub tag: Tag,
    /// What it means.
    pub winner: Stamp,
    /// What it does not mean, and could.
    pub loser: (Digest, Stamp),
}

/// A version of a tag, as far as its place in the order is concerned.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Version {
    digest: Digest,
    replaced: Option<Stamp>,
    stamp: Stamp,
}

impl Version {
    fn of(record: &Record) -> Option<Self> {
        match &record.value {
            Some(Value::Tag(TagTarget { digest, replaced })) => Some(Self { digest: *digest, replaced: *replaced, stamp: record.stamp }),
            _ => None,
        }
    }

    /// Whether it was passed over by a later version that did not know it.
    fn lost_to(&self, later: &Self) -> bool {
        self.digest != later.digest && self.stamp < later.stamp && later.replaced < Some(self.stamp)
    }
}

impl Writing<'_> {
    /// Keeps the version that a tag's new record replaces, and says so when the two are a conflict.
    pub(super) fn replaced(&mut self, record: &Record, before: Option<&Record>) -> Result<()> {
        let (Key::Tag(repository, tag), Some(before)) = (&record.key, before) else { return Ok(()) };
        let Some(old) = Version::of(before) else { return Ok(()) };
        let new = Version::of(record);
        // A tag that names what it named before has no other version.
        if new.is_some_and(|new| new.digest == old.digest) {
            return Ok(());
        }
        self.keep(repository, tag, before);
        match new {
            Some(new) if old.lost_to(&new) => self.mark(repository, tag, &old, new.stamp, Told::Now),
            _ => Ok(()),
        }
    }

    /// Keeps a version of a tag that came after a later one.
    pub(super) fn came_late(&mut self, record: &Record, standing: &Record) -> Result<()> {
        let (Key::Tag(repository, tag), Some(late)) = (&record.key, Version::of(record)) else { return Ok(()) };
        let current = Version::of(standing);
        let is_known = late.stamp == standing.stamp || current.is_some_and(|current| current.digest == late.digest);
        if is_known || self.index.get(Table::History, &history_key(repository, tag, late.stamp))?.is_some() {
            return Ok(());
        }
        let (later, earlier) = neighbours(self.index, repository, tag, current, &late)?;
        self.keep(repository, tag, record);
        let marked = match &earlier {
            Some(earlier) => winner(self.index, &history_key(repository, tag, earlier.stamp))?,
            None => None,
        };
        let mut told = Told::Now;
        if let Some(earlier) = earlier {
            if earlier.lost_to(&late) {
                if marked.is_none() {
                    self.mark(repository, tag, &earlier, late.stamp, Told::Now)?;
                }
            } else if marked.is_some() && marked == later.map(|later| later.stamp) {
                // What lost was this one, which had taken the place of the other.
                let key = mark_key(&history_key(repository, tag, earlier.stamp));
                self.index.delete(&mut self.batch, Table::Sync, &key);
                told = Told::Before;
            }
        }
        match later {
            Some(later) if late.lost_to(&later) => self.mark(repository, tag, &late, later.stamp, told),
            _ => Ok(()),
        }
    }

    fn keep(&mut self, repository: &RepositoryName, tag: &Tag, record: &Record) {
        self.index.put_row(&mut self.batch, Table::History, &history_key(repository, tag, record.stamp), &record.to_raw());
    }

    fn mark(&mut self, repository: &RepositoryName, tag: &Tag, loser: &Version, winner: Stamp, told: Told) -> Result<()> {
        let key = history_key(repository, tag, loser.stamp);
        if self::winner(self.index, &key)?.is_some() {
            return Ok(());
        }
        self.index.put_row(&mut self.batch, Table::Sync, &mark_key(&key), &winner);
        if told == Told::Now {
            let (repository, tag, loser) = (repository.clone(), tag.clone(), (loser.digest, loser.stamp));
            self.conflicts.push(Conflict { repository, tag, winner, loser });
        }
        Ok(())
    }
}

/// Whether a conflict was told already.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Told {
    Now,
    Before,
}

/// Logs what was found in one writing.
pub(super) fn log(conflicts: &[Conflict]) {
    for Conflict { repository, tag, winner, loser: (digest, stamp) } in conflicts.iter().take(LOGGED_MAX) {
        tracing::warn!(
            %repository, %tag, loser = %digest, pushed_by = ?stamp.node, winner = ?winner.node,
            "a tag was pushed twice, on nodes that did not know of each other's push; the later one stands, and `larder tag restore` brings the other back"
        );
    }
    if let Some(more) = conflicts.len().checked_sub(LOGGED_MAX).filter(|more| *more > 0) {
        tracing::warn!(more, "further tags were pushed twice; `larder tag history` shows them");
    }
}

/// What a version in the history lost to, when it lost a conflict.
pub(super) fn winner(index: &Index, history_key: &[u8]) -> Result<Option<Stamp>> {
    index.row(Table::Sync, &mark_key(history_key))
}

/// Forgets the mark of a version that the history forgets.
pub(super) fn forget(index: &Index, batch: &mut Batch, history_key: &[u8]) {
    index.delete(batch, Table::Sync, &mark_key(history_key));
}

/// The versions right after and right before one, among what the tag means and its history.
fn neighbours(
    index: &Index,
    repository: &RepositoryName,
    tag: &Tag,
    current: Option<Version>,
    of: &Version,
) -> Result<(Option<Version>, Option<Version>)> {
    let mut later = current.filter(|current| current.stamp > of.stamp);
    for row in index.scan(Table::History, &history_prefix(repository, tag), b"").take(LOOKED_AT_MAX) {
        let raw: RawRecord = decode(Table::History, &row?.1)?;
        let Some(version) = Version::of(&parse(&raw)?) else { continue };
        if version.stamp < of.stamp {
            return Ok((later, Some(version)));
        }
        later = Some(version);
    }
    Ok((later, None))
}

/// The key of a version in the history: the newest come first.
fn history_key(repository: &RepositoryName, tag: &Tag, stamp: Stamp) -> Vec<u8> {
    [&history_prefix(repository, tag)[..], &(!stamp.time.0).to_be_bytes(), &stamp.node.0].concat()
}

fn mark_key(history_key: &[u8]) -> Vec<u8> {
    [MARK, history_key].concat()
}

#[cfg(test)]
mod tests {
    use larder_protocol::record::Numbered;
    use larder_protocol::stamp::{HybridTime, NodeId};
    use larder_protocol::vector::{Origin, VersionVector};

    use super::super::Store;
    use super::super::tests::{Place, push_image, repository, sync, tag};
    use super::*;

    const NAME: &str = "team/app";

    /// The digests in the history and whether each lost a conflict; the newest first.
    fn history(store: &Store) -> Vec<(Digest, bool)> {
        let versions = store.tag_history(&repository(NAME), &tag("t"), 99).expect("readable");
        versions.into_iter().map(|version| (version.digest, version.lost_to.is_some())).collect()
    }

    /// Waits until the clocks say another millisecond, so that what comes next is later on every node.
    fn later() {
        let before = super::super::journal::now_ms();
        while super::super::journal::now_ms() <= before + 1 {
            std::hint::spin_loop();
        }
    }

    fn version(node: u8, time: u64, replaced: Option<u64>, by: u8) -> Numbered {
        let stamp = |time, node| Stamp { time: HybridTime(time), node: NodeId([node; 32]) };
        let target = TagTarget { digest: Digest::sha256(&time.to_be_bytes()), replaced: replaced.map(|time| stamp(time, by)) };
        let record = Record { key: Key::Tag(repository(NAME), tag("t")), value: Some(Value::Tag(target)), stamp: stamp(time, node) };
        Numbered { origin: Origin { node: NodeId([node; 32]), incarnation: 1 }, sequence: time, record }
    }

    #[test]
    fn f16_two_nodes_push_a_tag_and_each_tells_one_conflict() {
        let places = [1, 2, 3].map(Place::new);
        let [a, b, c] = [&places[0], &places[1], &places[2]].map(Place::open);
        let first = push_image(&a, NAME, "t", b"first");
        later();
        let second = push_image(&b, NAME, "t", b"second");
        sync(&a, &b);
        sync(&b, &a);
        // Once more, and to one that has pushed nothing, in the other order.
        sync(&a, &b);
        sync(&b, &c);
        sync(&a, &c);
        for store in [&a, &b] {
            assert_eq!(history(store), [(second, false), (first, true)]);
            assert_eq!(store.tag(&repository(NAME), &tag("t")).expect("readable").expect("there").digest, second);
        }
        // It can be had again, and that is no conflict.
        assert!(a.restore_tag(&repository(NAME), &tag("t"), &first).expect("restored"));
        sync(&a, &b);
        assert_eq!(history(&b).iter().filter(|(_, lost)| *lost).count(), 1);
        assert_eq!(b.tag(&repository(NAME), &tag("t")).expect("readable").expect("there").digest, first);
    }

    #[test]
    fn f17_a_later_push_survives_a_delete_and_an_earlier_one_stays_dead() {
        let places = [1, 2].map(Place::new);
        let [a, b] = [&places[0], &places[1]].map(Place::open);
        let old = push_image(&a, NAME, "t", b"old");
        sync(&a, &b);
        assert!(a.delete_tag(&repository(NAME), &tag("t")).expect("deleted"));
        later();
        let new = push_image(&b, NAME, "t", b"new");
        sync(&a, &b);
        sync(&b, &a);
        for store in [&a, &b] {
            assert_eq!(store.tag(&repository(NAME), &tag("t")).expect("readable").expect("there").digest, new);
        }
        // The other way round: pushed before the delete, known after it.
        push_image(&b, NAME, "t", b"earlier");
        sync(&b, &a);
        push_image(&b, NAME, "t", b"too early");
        later();
        assert!(a.delete_tag(&repository(NAME), &tag("t")).expect("deleted"));
        sync(&b, &a);
        sync(&a, &b);
        for store in [&a, &b] {
            assert!(store.tag(&repository(NAME), &tag("t")).expect("readable").is_none(), "deleted after it was pushed");
            assert_eq!(store.tag_history(&repository(NAME), &tag("t"), 99).expect("readable").len(), 4, "{old}");
        }
    }

    #[test]
    fn a_push_after_a_delete_replaces_the_delete() {
        let places = [1, 2].map(Place::new);
        let [a, b] = [&places[0], &places[1]].map(Place::open);
        push_image(&a, NAME, "t", b"old");
        sync(&a, &b);
        assert!(a.delete_tag(&repository(NAME), &tag("t")).expect("deleted"));
        push_image(&a, NAME, "t", b"new");
        // The delete never comes to the other, which must not take the two pushes for strangers.
        sync(&a, &b);
        assert!(history(&b).iter().all(|(_, lost)| !lost), "{:?}", history(&b));
    }

    #[test]
    fn f16_the_order_of_arrival_changes_neither_meaning_nor_number_of_conflicts() {
        // What each writer had seen: 2 came after 1; 3 knew neither; 4 came after 2.
        let versions = [version(1, 1, None, 1), version(1, 2, Some(1), 1), version(2, 3, None, 1), version(1, 4, Some(2), 1)];
        let mut orders = vec![vec![]];
        for _ in 0..versions.len() {
            orders = orders
                .into_iter()
                .flat_map(|order: Vec<usize>| {
                    (0..versions.len()).filter(|next| !order.contains(next)).map(|next| [&order[..], &[next]].concat()).collect::<Vec<_>>()
                })
                .collect();
        }
        assert_eq!(orders.len(), 24);
        for order in orders {
            let place = Place::new(9);
            let store = place.open();
            let mut told = 0;
            for index in order.iter().chain(&order) {
                let applied = store.apply(vec![versions[*index].clone()], &VersionVector::default());
                told += applied.expect("applied").conflicts.len();
            }
            let lost: Vec<bool> = history(&store).into_iter().map(|(_, lost)| lost).collect();
            // 4 passed over 3, which had passed over 2.
            assert_eq!((told, &lost[..]), (2, &[false, true, true, false][..]), "{order:?}");
        }
    }

    #[test]
    fn a_batch_that_has_a_tag_twice_is_taken_as_two() {
        let place = Place::new(9);
        let store = place.open();
        let both = vec![version(2, 3, None, 1), version(1, 2, None, 1)];
        let applied = store.apply(both, &VersionVector::default()).expect("applied");
        assert_eq!(applied.conflicts.len(), 1);
        assert_eq!(history(&store).into_iter().map(|(_, lost)| lost).collect::<Vec<_>>(), [false, true]);
    }
}
