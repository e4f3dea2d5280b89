//! The starts of a node's life: how a copy of its data folder shows itself, and where it began.
//!
//! A folder that was restored from an older copy, or cloned, gives out numbers that others know already. A copy is put in its place before a
//! start. So each start draws a mark, and before the first record that is written after it the node writes which starts its life had. A peer that counts the number behind a start as known and does not know the start means something else by
//! that number; so does one that knows a start which this folder never had. Both name the place where the two folders were still the same.
//!
//! ```text
//! folder     0 ----- k ----- 7 ------- 12            [k]
//! copied                     |
//! restored                   7 - r - 8 - 9           [k, r after 7]      the fork is at 7
//! ```

use serde::{Deserialize, Serialize};

use crate::vector::Origin;

/// Starts that a record lists: the last ones.
pub const STARTS_MAX: usize = 64;

/// One start of a node in its life, after which it wrote.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Start {
    /// The last number before it.
    pub after: u64,
    /// Drawn at random.
    pub mark: u64,
}

/// The starts of one life, the first one first; that with which the life began is not among them.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Starts(pub Vec<Start>);

impl Starts {
    /// These and one more.
    #[must_use]
    pub fn with(mut self, start: Start) -> Self {
        self.0.push(start);
        self.0.drain(..self.0.len().saturating_sub(STARTS_MAX));
        self
    }

    /// The last number that may be the same in all copies, when one has another meaning.
    pub fn before(&self, wrong: u64) -> u64 {
        let starts = self.0.iter().map(|start| start.after);
        starts.filter(|after| *after < wrong).max().unwrap_or_else(|| wrong.saturating_sub(1))
    }

    /// What is too many, how many there are and how many may be.
    pub(crate) fn check(&self) -> Result<(), (&'static str, usize, usize)> {
        match self.0.len() {
            count if count > STARTS_MAX => Err(("starts", count, STARTS_MAX)),
            _ => Ok(()),
        }
    }

    /// Whether a start is among them, or so old that it may have been.
    fn has(&self, start: &Start) -> bool {
        let is_older = self.0.len() >= STARTS_MAX && self.0.first().is_some_and(|first| start.after < first.after);
        is_older || self.0.iter().any(|known| known.mark == start.mark)
    }
}

/// What a peer has of a life.
#[derive(Clone, Debug, Default)]
pub struct Known {
    /// Up to which number it means the same for sure, should it tell no list.
    pub sure: u64,
    /// Up to which number it counts as known.
    pub covered: u64,
    /// The lists of starts that it has, and their numbers in that life; see [`number_in`].
    pub lists: Vec<(Option<u64>, Starts)>,
}

/// What [`Known::lists`] has as the number of a list of a life: `None` when it has one of another life, because that one is over.
pub fn number_in(life: &Origin, origin: &Origin, sequence: u64) -> Option<u64> {
    match origin {
        own if own == life => Some(sequence),
        // A later life of the same node has taken it along.
        later if later.node == life.node => None,
        // Whoever numbered it anew may have had an older one: it names starts, and says of none that there were no more.
        _ => Some(0),
    }
}

/// The last number up to which a peer means the same as this folder, when the starts of both show that it means something else behind it. `ours`: all
/// starts of this folder, also one after which nothing was written yet.
pub fn fork(ours: &Starts, theirs: &Known) -> Option<u64> {
    let is_known = |start: &Start| {
        let mut behind = theirs.lists.iter().filter(|(number, _)| number.is_none_or(|number| number > start.after)).peekable();
        behind.peek().is_some() && behind.all(|(_, list)| list.has(start))
    };
    let sure = if theirs.lists.is_empty() { theirs.sure } else { 0 };
    let unknown_there = ours.0.iter().filter(|start| start.after >= sure && start.after < theirs.covered && !is_known(start));
    let foreign = theirs.lists.iter().flat_map(|(_, list)| &list.0);
    let unknown_here = foreign.filter(|start| !ours.has(start));
    unknown_there.chain(unknown_here).map(|start| start.after).min()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::stamp::NodeId;

    fn starts(list: &[(u64, u64)]) -> Starts {
        Starts(list.iter().map(|(after, mark)| Start { after: *after, mark: *mark }).collect())
    }

    fn known(sure: u64, covered: u64, lists: &[(u64, &[(u64, u64)])]) -> Known {
        Known { sure, covered, lists: lists.iter().map(|(number, list)| (Some(*number), starts(list))).collect() }
    }

    #[test]
    fn f11_the_first_start_that_only_one_of_two_knows_is_the_fork() {
        let ours = starts(&[(3, 1), (7, 2)]);
        assert_eq!(fork(&ours, &known(0, 9, &[(8, &[(3, 1), (7, 2)])])), None, "the same");
        assert_eq!(fork(&ours, &known(0, 7, &[(4, &[(3, 1)])])), None, "it has not heard of the last start");
        assert_eq!(fork(&ours, &known(0, 8, &[(4, &[(3, 1)])])), Some(7), "it knows another number 8");
        assert_eq!(fork(&ours, &known(0, 9, &[])), Some(3));
        assert_eq!(fork(&ours, &known(7, 9, &[])), Some(7), "it was sure of 7");
        assert_eq!(fork(&ours, &known(8, 9, &[])), None, "it was sure of more");
        assert_eq!(fork(&ours, &known(8, 9, &[(4, &[(3, 1)])])), Some(7), "it has told what it knows");
        assert_eq!(fork(&ours, &known(0, 9, &[(6, &[(3, 1), (5, 9)])])), Some(5), "another copy was started after 5");
        assert_eq!(fork(&ours, &known(0, 5, &[(4, &[(3, 1), (3, 9)])])), Some(3), "also when it knows less");
        assert_eq!(fork(&ours, &known(0, 9, &[(4, &[(3, 1)]), (8, &[(3, 1), (7, 2)])])), None, "lists of earlier don't say no");
        assert_eq!(fork(&Starts::default(), &known(0, 9, &[])), None, "no start was told of");
    }

    #[test]
    fn f11_what_is_told_under_another_life_counts_as_all_that_there_was() {
        let known = |list: &[(u64, u64)]| Known { sure: 0, covered: 9, lists: vec![(None, starts(list))] };
        assert_eq!(fork(&starts(&[(3, 1)]), &known(&[(3, 1)])), None);
        assert_eq!(fork(&starts(&[(3, 1)]), &known(&[(3, 1), (5, 9)])), Some(5), "a start that is not known here");
        assert_eq!(fork(&starts(&[(3, 1), (4, 2)]), &known(&[(3, 1)])), Some(4), "one that was not known there");
    }

    #[test]
    fn f11_who_numbers_a_list_anew_names_starts_and_says_of_none_that_it_was_not() {
        let [life, later, other] = [(1, 1), (1, 2), (2, 1)].map(|(node, incarnation)| Origin { node: NodeId([node; 32]), incarnation });
        let numbers = [life, later, other].map(|origin| number_in(&life, &origin, 7));
        assert_eq!(numbers, [Some(7), None, Some(0)]);
        let ours = starts(&[(3, 1), (4, 2)]);
        let theirs = |list: &[(u64, u64)]| Known {
            sure: 4,
            covered: 9,
            lists: vec![(numbers[2], starts(list)), (Some(5), starts(&[(3, 1), (4, 2)]))],
        };
        assert_eq!(fork(&ours, &theirs(&[(3, 1)])), None, "an older list");
        assert_eq!(fork(&ours, &theirs(&[(3, 1), (5, 9)])), Some(5), "a start that is not known here");
    }

    #[test]
    fn f11_starts_that_are_too_old_for_a_list_say_nothing() {
        let list =
            |from: u64| (from..from + STARTS_MAX as u64).fold(Starts::default(), |starts, after| starts.with(Start { after, mark: after }));
        let theirs = Known { sure: 0, covered: 1000, lists: vec![(Some(1000), list(5))] };
        assert_eq!(fork(&list(5), &theirs), None);
        assert_eq!(fork(&list(1), &theirs), Some(5 + STARTS_MAX as u64 - 4), "its last ones are not known here");
        assert_eq!(fork(&list(9), &theirs), Some(5 + STARTS_MAX as u64), "the last ones are not known there");
        assert_eq!(starts(&[(3, 1), (7, 2)]).before(7), 3);
        assert_eq!((starts(&[(3, 1)]).before(3), Starts::default().before(0)), (2, 0), "without a start, up to the number before");
    }

    #[test]
    fn a_list_has_the_last_starts_and_is_bounded() {
        let many = (0..100).fold(Starts::default(), |starts, after| starts.with(Start { after, mark: after }));
        assert_eq!((many.0.len(), many.0[0].after), (STARTS_MAX, 100 - STARTS_MAX as u64));
        assert!(many.check().is_ok());
        let [mut more, last] = [many.clone(), many];
        more.0.push(last.0[0]);
        assert!(more.check().is_err());
    }
}
