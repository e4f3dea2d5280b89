//! Another life for a data folder that is not the only one of its kind (F11).
//!
//! A folder that was restored from an older copy, or cloned, would give out numbers that others know already. It shows when a peer knows a
//! higher number of ours than we do, or a record of ours that was not written here. Then the node begins another life, on the disk
//! before anything else is written: a new origin that numbers from 1. Everything of the old one behind the *fork*, where both are still the same,
//! gets a number of the new one, because others may have something else under the old number and would never ask for it. What others
//! have of the old one behind the fork gets a new number too when it comes, for the same reason.
//!
//! A copy is put in its place before a start. So each start writes down the number that it found ([`Lives::starts`]), until every other member was
//! looked at since: the fork is one of these. Which one, the records of the starts tell ([`Starts`]), which are written with the first number after each.
//! They also show a copy that runs beside this folder, whenever that begins to write. A life that ends so gets one more mark at the fork, so that everyone
//! who knows of it hears that it is mixed.
//!
//! ```text
//! meta   lives -> [`Lives`]
//! ```

use std::collections::{BTreeSet, HashMap, HashSet};

use serde::{Deserialize, Serialize};

use larder_protocol::merge::{self, Here};
use larder_protocol::record::{Key, Numbered, Record, Value};
use larder_protocol::stamp::NodeId;
use larder_protocol::starts::{self, Known, Starts};
use larder_protocol::vector::Origin;
use tokio::sync::watch;

use super::Store;
use super::error::Result;
use super::index::{RecordRow, Table, decode};
use super::journal::{self, META_INCARNATION, Writing, journal_key, now_ms, origin_key, row_key, sequence_of, start_after, table_of};

/// Numbers that are given anew in one go; a folder that wrote more than so many records while it was out of everyone's reach
/// keeps the older ones' numbers.
const RENUMBERED_MAX: u64 = 100_000;
/// The row of [`Lives`].
pub(super) const META_LIVES: &[u8] = b"lives";
/// Starts that are remembered: the first, and the last ones.
const STARTS_MAX: usize = 16;
/// Earlier lives that are asked for once more.
const UNSURE_MAX: usize = 64;
/// Lives of a node whose lists of starts it is told.
const LIVES_TOLD: usize = 16;
/// A life goes on for so long before it ends because of a former one.
const FORMER_MIN_MS: u64 = 60_000;
/// Two copies that begin another life in the same moment begin different ones.
const SPREAD_MS: u64 = 1000;

/// What is not sure of this node's own numbers.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Lives {
    /// The last number at each start since which not every other member was looked at.
    starts: BTreeSet<u64>,
    /// Earlier lives in which another copy wrote too, and up to where both are the same.
    unsure: Vec<(Origin, u64)>,
}

impl Lives {
    /// A start finds this number.
    pub(super) fn start(&mut self, last: u64) {
        self.starts.insert(last);
        while self.starts.len() > STARTS_MAX {
            let second = *self.starts.iter().nth(1).expect("there are several");
            self.starts.remove(&second);
        }
    }

    /// Earlier lives in which another copy wrote too, and up to where both are the same.
    pub(super) fn unsure(&self) -> impl Iterator<Item = (&Origin, u64)> {
        self.unsure.iter().map(|(life, sure)| (life, *sure))
    }

    /// Whether a number of an origin may mean two things.
    pub(super) fn is_unsure(&self, origin: &Origin, sequence: u64) -> bool {
        self.unsure.iter().any(|(of, sure)| of == origin && sequence > *sure)
    }
}

impl Store {
    /// The last number at each start since which not every other member was looked at.
    pub fn starts(&self) -> BTreeSet<u64> {
        self.inner.journal.write(&self.inner.index).lives().starts.clone()
    }

    /// Every other member was looked at: this folder is the only one of its kind.
    pub fn settle_starts(&self) -> Result<()> {
        let mut writing = self.inner.journal.write(&self.inner.index);
        if writing.lives().starts.is_empty() {
            return Ok(());
        }
        let lives = Lives { starts: BTreeSet::new(), ..writing.lives().clone() };
        writing.set_lives(lives);
        writing.commit().map(drop)
    }

    /// Earlier lives in which another copy wrote too, and up to where both are the same: behind that, each peer is asked for what it has.
    pub fn unsure(&self) -> Vec<(Origin, u64)> {
        self.inner.journal.write(&self.inner.index).lives().unsure.clone()
    }

    /// Gives own records new numbers: those behind `after` and up to `upto` that a peer counts as known and has not sent back. It has superseded
    /// them, or something else had their numbers.
    pub fn renumber(&self, own: Origin, after: u64, upto: u64, confirmed: &HashSet<u64>) -> Result<usize> {
        let mut writing = self.inner.journal.write(&self.inner.index);
        if writing.origin() != own || after >= upto {
            return Ok(0);
        }
        let upto = upto.min(writing.vector.get(&own));
        let count = writing.renumber(own, own, after, upto, |sequence| confirmed.contains(&sequence))?;
        if count > 0 {
            writing.commit()?;
        }
        Ok(count)
    }

    /// This node's origins as they change. Does not block.
    pub fn lives(&self) -> watch::Receiver<Origin> {
        self.inner.journal.lives()
    }

    /// The first number of this node's origin under which one of these records was not written here.
    pub fn first_wrong(&self, records: &[Numbered]) -> Result<Option<u64>> {
        let (mut wrong, mut found) = (None::<u64>, HashMap::new());
        let (journal, index) = (&self.inner.journal, &self.inner.index);
        let writing = journal.write(index);
        let origin = journal.origin();
        let own = (writing.vector.get(&origin), writing.horizon().get(&origin));
        for numbered in records.iter().filter(|numbered| numbered.origin == origin) {
            let raw = numbered.record.to_raw();
            let standing: Option<RecordRow> = index.row(table_of(raw.kind), &row_key(raw.kind, &raw.key))?;
            let at_number = journal::at_number(index, &origin, numbered.sequence)?;
            let here = Here { standing: standing.as_ref().map(|row| &row.record), numbered: at_number.as_ref().map(|row| &row.record) };
            // Of two under one number one is foreign, also when both are superseded here.
            let is_twice = found.insert(numbered.sequence, &numbered.record).is_some_and(|other| *other != numbered.record);
            if is_twice || merge::is_foreign(&raw, numbered.sequence, here, own) {
                wrong = Some(wrong.map_or(numbered.sequence, |wrong| wrong.min(numbered.sequence)));
            }
        }
        Ok(wrong)
    }

    /// The last own number that a peer means the same by, when the starts of both show that it means something else behind it.
    pub fn fork(&self, own: Origin, known: &Known) -> Result<Option<u64>> {
        let writing = self.inner.journal.write(&self.inner.index);
        if writing.origin() != own {
            return Ok(None);
        }
        let ours = writing.starts_of(&own)?;
        Ok(starts::fork(&writing.fresh().into_iter().fold(ours, Starts::with), known))
    }

    /// The last number at each start of this life that is remembered.
    pub fn all_starts(&self) -> Result<BTreeSet<u64>> {
        let writing = self.inner.journal.write(&self.inner.index);
        let told = writing.starts_of(&writing.origin())?;
        let fresh = writing.fresh();
        let after = told.0.iter().chain(&fresh).map(|start| start.after);
        Ok(after.chain(writing.lives().starts.iter().copied()).collect())
    }

    /// The record of this life's starts, if there is one.
    pub fn own_starts(&self) -> Result<Option<Numbered>> {
        let Some(row) = self.row(&Key::Starts(self.origin()))? else { return Ok(None) };
        Ok(Some(Numbered { origin: row.origin, sequence: row.sequence, record: journal::parse(&row.record)? }))
    }

    /// The lists of starts of a node's last lives, as they stand or wait here.
    pub fn starts_of_node(&self, node: &NodeId) -> Result<Vec<Numbered>> {
        let writing = self.inner.journal.write(&self.inner.index);
        let lives: Vec<_> = writing.vector.iter().map(|(life, _)| life).filter(|life| life.node == *node).collect();
        let mut lists = Vec::new();
        for life in lives.iter().rev().take(LIVES_TOLD) {
            let key = Key::Starts(*life);
            lists.extend(journal::read_numbered(&self.inner.index, &key)?);
            for row in writing.waiting_under(&key)? {
                lists.push(Numbered { origin: row.origin, sequence: row.sequence, record: journal::parse(&row.record)? });
            }
        }
        Ok(lists)
    }

    /// The starts of a life, as far as they are known here.
    pub fn starts_of(&self, life: &Origin) -> Result<Starts> {
        self.inner.journal.write(&self.inner.index).starts_of(life)
    }

    /// Begins another life, unless `old` is over already; `sure`: up to which number of the old one others have what is here.
    pub fn begin_life(&self, old: Origin, sure: u64) -> Result<Origin> {
        let writing = self.inner.journal.write(&self.inner.index);
        if writing.origin() != old {
            return Ok(writing.origin());
        }
        self.end_lives(writing, &[(old, sure)])
    }

    /// Begins another life when it turns out that two copies have written in one that is over: what stands under its numbers gets new ones, and everyone
    /// hears that there is a later life.
    pub(super) fn end_former_lives(&self) -> Result<()> {
        let writing = self.inner.journal.write(&self.inner.index);
        let own = writing.origin();
        let is_known = |life: &Origin, sure: u64| writing.lives().unsure.iter().any(|(of, known)| of == life && *known <= sure);
        let is_news = |(life, sure): &(Origin, u64)| life.incarnation < own.incarnation && !is_known(life, *sure);
        let ended: Vec<_> = writing.mixed().of(&own.node).into_iter().filter(is_news).collect();
        // Whoever says again and again that lives are mixed is believed now and then.
        if ended.is_empty() || now_ms() < own.incarnation.saturating_add(FORMER_MIN_MS) {
            return Ok(());
        }
        self.end_lives(writing, &ended).map(drop)
    }

    /// Ends lives of this node, each behind the number up to which it is sure, and begins another one.
    fn end_lives(&self, mut writing: Writing<'_>, ended: &[(Origin, u64)]) -> Result<Origin> {
        let (index, old) = (&self.inner.index, writing.origin());
        let known = writing.vector.last_life(&old.node).unwrap_or(0).max(old.incarnation);
        let spread = uuid::Uuid::new_v4().as_u64_pair().0 % SPREAD_MS;
        let new = Origin { node: old.node, incarnation: now_ms().max(known) + 1 + spread };
        let (mut renumbered, mut unsure) = (0, writing.lives().unsure.clone());
        for (life, sure) in ended {
            let last = writing.vector.get(life);
            let sure = (*sure).min(last).max(last.saturating_sub(RENUMBERED_MAX));
            let (key, told) = (Key::Starts(*life), writing.starts_of(life)?);
            let list = journal::read_numbered(index, &key)?.filter(|it| it.origin == *life).map(|it| it.sequence);
            renumbered += writing.renumber(*life, new, sure, u64::MAX, |sequence| list == Some(sequence))?;
            writing.vector.lower(life, sure);
            if !writing.is_reader() {
                // Whoever knows of that life hears that it is mixed.
                writing.record_in(new, key, Some(Value::Starts(told.with(start_after(sure)))))?;
            }
            unsure.retain(|(of, _)| of != life);
            unsure.push((*life, sure));
        }
        index.put_row(&mut writing.batch, Table::Meta, META_INCARNATION, &new.incarnation);
        unsure.drain(..unsure.len().saturating_sub(UNSURE_MAX));
        writing.set_lives(Lives { starts: BTreeSet::new(), unsure });
        writing.begin(new);
        writing.commit()?;
        tracing::warn!(
            old = old.incarnation,
            new = new.incarnation,
            renumbered,
            "another copy of this data folder has written under this node's name: this node goes on under a new number and loses nothing. Was the \
             folder restored from a copy, or does a clone run? A clone must get a key of its own"
        );
        Ok(new)
    }
}

impl Writing<'_> {
    /// See [`Store::starts_of`].
    pub(super) fn starts_of(&self, life: &Origin) -> Result<Starts> {
        let key = Key::Starts(*life);
        let mut known = Vec::from_iter(self.standing(&key)?);
        for row in self.waiting_under(&key)? {
            known.push(journal::parse(&row.record)?);
        }
        let last = known.into_iter().max_by_key(|record| record.stamp);
        let Some(Value::Starts(starts)) = last.and_then(|record| record.value) else { return Ok(Starts::default()) };
        Ok(starts)
    }

    /// Writes a record as the first ones of a life that begins.
    fn record_in(&mut self, new: Origin, key: Key, value: Option<Value>) -> Result<()> {
        let sequence = self.next_number(new)?;
        let record = Record { key, value, stamp: self.stamp() };
        self.stand(Numbered { origin: new, sequence, record }).map(drop)
    }

    /// Gives records of one of this node's origins numbers of another; says how many.
    fn renumber(&mut self, old: Origin, new: Origin, after: u64, upto: u64, stays: impl Fn(u64) -> bool) -> Result<usize> {
        let mut count = 0;
        let index = self.index;
        for row in index.scan(Table::Journal, &origin_key(&old), &journal_key(&old, after.saturating_add(1))) {
            let (place, key) = row?;
            let sequence = sequence_of(&place)?;
            if sequence > upto {
                break;
            }
            let (kind, key): (u16, Vec<u8>) = decode(Table::Journal, &key)?;
            let standing: Option<RecordRow> = index.row(table_of(kind), &row_key(kind, &key))?;
            let is_it = |row: &RecordRow| row.origin == old && row.sequence == sequence && !stays(sequence);
            let Some(before) = standing.filter(is_it) else { continue };
            index.delete(&mut self.batch, Table::Journal, &place);
            let number = self.next_number(new)?;
            self.place(Some(&before), RecordRow { origin: new, sequence: number, record: before.record.clone() });
            count += 1;
        }
        Ok(count)
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use larder_harness::copy_folder;

    use super::super::tests::{Place, push_image, sync};
    use super::*;

    fn lists(store: &Store, life: &Origin) -> Vec<u64> {
        store.starts_of(life).expect("readable").0.iter().map(|start| start.after).collect()
    }

    #[test]
    fn f11_the_first_number_after_a_start_tells_of_it() {
        let places = [1, 2].map(Place::new);
        let (place, b) = (&places[0], places[1].open());
        let open = |settles: bool, pushes: usize| {
            let store = place.open();
            if settles {
                store.settle_starts().expect("written");
            }
            for push in 0..pushes {
                push_image(&store, "team/app", &format!("t{push}"), b"image");
            }
            sync(&store, &b);
            let (life, last) = (store.origin(), store.vector().get(&store.origin()));
            store.close();
            (life, last)
        };
        let (life, first) = open(false, 1);
        assert_eq!(lists(&b, &life), [0; 0], "a folder that is new has no copy");
        let (_, second) = open(false, 2);
        assert_eq!(lists(&b, &life), [first], "once, before what is written");
        assert_eq!(open(false, 0).1, second, "nothing is written, nothing is told");
        assert_eq!(lists(&b, &life), [first]);
        let (_, third) = open(true, 1);
        assert_eq!(lists(&b, &life), [first, second], "a copy may show itself later than all were looked at");
        open(false, 1);
        assert_eq!(lists(&b, &life), [first, second, third]);
    }

    #[test]
    fn f11_the_starts_show_where_a_copy_began() {
        let places = [1, 2].map(Place::new);
        let (place, b) = (&places[0], places[1].open());
        let run = |name: &str| {
            let store = place.open();
            push_image(&store, "team/app", name, name.as_bytes());
            let at = store.vector().get(&store.origin());
            (store, at)
        };
        let (store, copied) = run("before");
        let own = store.origin();
        sync(&store, &b);
        store.close();
        drop(store);
        let copied_to = tempfile::tempdir().expect("folder");
        copy_folder(&place.folder(), copied_to.path());
        let (store, _) = run("after");
        sync(&store, &b);
        store.close();
        drop(store);
        fs::remove_dir_all(place.folder()).expect("the newer state is lost");
        copy_folder(copied_to.path(), &place.folder());
        let (store, _) = run("elsewhere");
        let list = b.starts_of(&own).expect("readable");
        let known = |lists| Known { sure: 0, covered: b.vector().get(&own), lists };
        let fork = |known: &Known| store.fork(own, known).expect("readable");
        assert_eq!(fork(&known(vec![(Some(copied + 1), list)])), Some(copied));
        assert_eq!(fork(&known(vec![])), Some(copied), "it knows numbers and no start");
        assert_eq!(fork(&Known { covered: copied, ..known(vec![]) }), None, "what it knows is what was written before");
        let ours = store.starts_of(&own).expect("readable");
        assert_eq!(fork(&known(vec![(Some(copied + 1), ours)])), None, "the same");
    }
}
