//! Lives that were written by two copies of one data folder: behind which number two nodes may mean different things.
//!
//! Their lists of starts show it, or two records under one number.
//!
//! ```text
//! meta   mixed -> origin -> the last number up to which all copies are the same
//! ```
//!
//! Such numbers say nothing about what the other has seen: who takes a copy of another node's state keeps what it has under them
//! (see `Store::take_snapshot`). The node whose life it is is told everything that is known behind them, so that it finds out and numbers anew what it has.

use std::collections::BTreeMap;

use larder_protocol::record::{Key, Numbered, Value};
use larder_protocol::stamp::NodeId;
use larder_protocol::starts::{Known, fork, number_in};
use larder_protocol::vector::{Origin, VersionVector};

use super::Store;
use super::error::Result;
use super::index::{Index, Table};
use super::journal::Writing;

/// The row of all of them.
const META_MIXED: &[u8] = b"mixed";
/// Lives that are remembered.
const MIXED_MAX: usize = 1000;

/// Lives, and up to where each is sure.
#[derive(Clone, Debug, Default)]
pub(super) struct Mixed(BTreeMap<Origin, u64>);

impl Mixed {
    pub(super) fn open(index: &Index) -> Result<Self> {
        Ok(Self(index.row(Table::Meta, META_MIXED)?.unwrap_or_default()))
    }

    /// Up to which number of a life all mean the same.
    pub(super) fn sure(&self, life: &Origin) -> u64 {
        self.0.get(life).copied().unwrap_or(u64::MAX)
    }

    /// What a vector says of numbers by which all mean the same.
    pub(super) fn sure_part(&self, vector: &VersionVector) -> VersionVector {
        let mut sure = vector.clone();
        self.0.iter().for_each(|(life, upto)| sure.lower(life, *upto));
        sure
    }

    /// All of them.
    fn all(&self) -> Vec<(Origin, u64)> {
        self.0.iter().map(|(life, sure)| (*life, *sure)).collect()
    }

    /// Those of one node.
    pub(super) fn of(&self, node: &NodeId) -> Vec<(Origin, u64)> {
        self.all().into_iter().filter(|(life, _)| life.node == *node).collect()
    }

    /// Takes note of one; says whether that is news.
    fn add(&mut self, life: Origin, sure: u64) -> bool {
        let known = self.0.get(&life).copied();
        let is_news = known.map_or(self.0.len() < MIXED_MAX, |known| sure < known);
        if is_news {
            self.0.insert(life, sure);
        }
        is_news
    }
}

impl Writing<'_> {
    /// Compares the list of a life's starts that comes with the one that is known.
    pub(super) fn compare_starts(&mut self, numbered: &Numbered) -> Result<()> {
        let (Key::Starts(life), Some(Value::Starts(list))) = (&numbered.record.key, &numbered.record.value) else { return Ok(()) };
        let number = number_in(life, &numbered.origin, numbered.sequence);
        let theirs = Known { sure: 0, covered: number.unwrap_or(u64::MAX), lists: vec![(number, list.clone())] };
        match fork(&self.starts_of(life)?, &theirs).filter(|fork| *fork < self.vector.get(life)) {
            Some(sure) => self.mix(*life, sure).map(drop),
            None => Ok(()),
        }
    }

    /// Takes note that two copies have written different things behind a number of a life; says whether that is news. This node's own life ends before
    /// that counts for it.
    pub(super) fn mix(&mut self, life: Origin, sure: u64) -> Result<bool> {
        if life == self.origin() {
            return Ok(false);
        }
        let mut mixed = self.moves.mixed.take().unwrap_or_else(|| self.mixed().clone());
        let is_news = mixed.add(life, sure);
        if is_news {
            tracing::warn!(
                ?life,
                sure,
                "two copies of a node's data folder have written under its name; what they wrote is kept, and numbered anew when the node finds out"
            );
            self.index.put_row(&mut self.batch, Table::Meta, META_MIXED, &mixed.0);
        }
        self.moves.mixed = Some(mixed);
        Ok(is_news)
    }
}

impl Store {
    /// What a peer covers, but for numbers that may mean two things.
    pub fn unmixed(&self, covered: &VersionVector) -> VersionVector {
        self.inner.journal.write(&self.inner.index).mixed().sure_part(covered)
    }

    /// The lives of a node that are mixed, and up to where each is sure.
    pub fn mixed_of(&self, node: &NodeId) -> Vec<(Origin, u64)> {
        self.inner.journal.write(&self.inner.index).mixed().of(node)
    }

    /// All lives that are mixed, and up to where each is sure.
    pub fn all_mixed(&self) -> Vec<(Origin, u64)> {
        self.inner.journal.write(&self.inner.index).mixed().all()
    }

    /// Takes note of lives that are mixed; says whether one of them is news. Another life of this node begins when one is a former one of its own.
    pub fn mix(&self, lives: &[(Origin, u64)]) -> Result<bool> {
        let mut writing = self.inner.journal.write(&self.inner.index);
        let mut is_news = false;
        for (life, sure) in lives {
            is_news |= writing.mix(*life, *sure)?;
        }
        if is_news {
            writing.commit()?;
            self.end_former_lives()?;
        }
        Ok(is_news)
    }
}

#[cfg(test)]
mod tests {
    use larder_harness::copy_folder;
    use larder_protocol::digest::Digest;
    use larder_protocol::record::TagTarget;

    use super::super::tests::{Place, push_image, sync};
    use super::*;

    /// A store and a copy of its folder; each is started once more, and writes something else.
    fn two_copies(place: &Place, other: &Place) -> [Store; 2] {
        let store = place.open();
        push_image(&store, "team/app", "before", b"before");
        store.close();
        drop(store);
        copy_folder(&place.folder(), &other.folder());
        let stores = [place.open(), other.open()];
        for (number, store) in stores.iter().enumerate() {
            push_image(store, "team/app", &format!("copy-{number}"), &[number as u8; 10]);
        }
        stores
    }

    #[test]
    fn f11_who_hears_two_copies_tells_their_node_and_a_life_that_ends_tells_everyone() {
        let [place, copied, there, elsewhere] = [Place::new(1), Place::new(1), Place::new(2), Place::new(3)];
        let [one, other] = two_copies(&place, &copied);
        let (life, node) = (one.origin(), one.origin().node);
        assert_eq!(other.origin(), life);
        let (b, c) = (there.open(), elsewhere.open());
        sync(&one, &b);
        sync(&one, &c);
        let fork = one.all_starts().expect("readable").last().copied().expect("it was started");
        assert!(b.mixed_of(&node).is_empty() && b.evidence_of(&node).expect("readable").is_empty());
        // It covers all of their numbers, and is told of the start and of one record under a number that it has.
        let all = other.exchange(&VersionVector::default()).expect("exchange").map(|numbered| numbered.expect("record"));
        b.apply(all.collect(), &other.vector()).expect("applied");
        assert_eq!(b.mixed_of(&node), [(life, fork)]);
        assert_eq!(b.unmixed(&b.vector()).get(&life), fork);
        let evidence = b.evidence_of(&node).expect("readable");
        for store in [&one, &other] {
            assert!(store.first_wrong(&evidence).expect("readable").is_some_and(|wrong| wrong > fork));
            assert!(store.mixed_of(&node).is_empty(), "its own life ends before");
        }
        // Another life of either tells those who have met one of the copies only.
        assert!(c.mixed_of(&node).is_empty());
        let new = one.begin_life(life, fork).expect("begun");
        assert_eq!(one.vector().get(&life), fork);
        sync(&one, &c);
        assert_eq!(c.mixed_of(&node), [(life, fork)]);
        assert!(c.vector().get(&new) > 0);
    }

    #[test]
    fn f11_what_came_under_a_number_that_can_never_count_is_told_under_the_one_of_the_next_life() {
        let [place, copied, there, elsewhere] = [Place::new(1), Place::new(1), Place::new(2), Place::new(3)];
        let [one, other] = two_copies(&place, &copied);
        let life = one.origin();
        let (b, c) = (there.open(), elsewhere.open());
        sync(&one, &b);
        sync(&one, &c);
        let counted = one.vector().get(&life);
        push_image(&other, "team/app", "late", b"late");
        push_image(&other, "team/app", "later", b"later");
        let all = other.exchange(&VersionVector::default()).expect("exchange").map(|numbered| numbered.expect("record"));
        b.apply(all.collect(), &other.vector()).expect("applied");
        let tag = Key::Tag("team/app".parse().expect("name"), "later".parse().expect("tag"));
        let place_of = |store: &Store| store.row(&tag).expect("readable").map(|row| (row.origin, row.sequence));
        assert!(place_of(&b).is_some_and(|(origin, sequence)| origin == life && sequence > b.vector().get(&life)));
        assert_eq!(b.vector().get(&life), counted, "what it says of that life does not reach the number");
        let new = other.begin_life(life, b.mixed_of(&life.node)[0].1).expect("begun");
        sync(&other, &b);
        assert_eq!(place_of(&b).expect("there").0, new);
        assert_eq!(place_of(&b), place_of(&other));
        // The copy is gone for good.
        sync(&b, &c);
        assert!(place_of(&c).is_some());
        assert!(b.sums_are_right().expect("counted") && c.sums_are_right().expect("counted"));
    }

    #[test]
    fn f11_a_former_life_that_turns_out_to_be_mixed_further_ahead_is_ended_there() {
        let place = Place::new(1);
        let store = place.open();
        for tag in ["one", "two", "three"] {
            push_image(&store, "team/app", tag, tag.as_bytes());
        }
        let (life, last) = (store.origin(), store.vector().get(&store.origin()));
        store.begin_life(life, last - 1).expect("begun");
        assert!(store.mix(&[(life, last - 2)]).expect("written") && !store.mix(&[(life, last - 2)]).expect("written"));
        assert_eq!(store.all_mixed(), [(life, last - 2)]);
    }

    #[test]
    fn f11_of_two_records_under_one_own_number_one_is_foreign_even_when_neither_stands() {
        let place = Place::new(1);
        let store = place.open();
        push_image(&store, "team/app", "latest", b"one");
        let (own, first) = (store.origin(), store.vector().get(&store.origin()));
        let tag = store.exchange(&VersionVector::default()).expect("exchange").last().expect("a tag").expect("record");
        push_image(&store, "team/app", "latest", b"two");
        let under = |image: &[u8]| {
            let mut it = Numbered { origin: own, sequence: first, ..tag.clone() };
            it.record.value = Some(Value::Tag(TagTarget { digest: Digest::sha256(image), replaced: None }));
            it
        };
        assert!(matches!(tag.record.key, Key::Tag(..)) && tag.sequence == first);
        let wrong = |records: &[Numbered]| store.first_wrong(records).expect("readable");
        assert_eq!((wrong(&[under(b"a")]), wrong(&[under(b"b")])), (None, None), "each may have been superseded here");
        assert_eq!(wrong(&[under(b"a"), under(b"b")]), Some(first));
        assert_eq!(wrong(&[under(b"a"), under(b"a")]), None);
    }
}
