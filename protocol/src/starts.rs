//! The starts of a node's life: how a copy of its data folder shows itself, and where it began.
//!
//! A folder that was restored from an older copy, or cloned, gives out numbers that others know already. A copy is put in its place before a
//! start. So each start draws a mark, and before the first record that is written after it, as long as not every member was looked at since, the node
//! writes which starts its life had. A peer that counts the number behind a start as known and does not know the start means something else by
//! that number; so does one that knows a start which this folder never had. Both name the place where the two folders were still the same.
//!
//! ```text
//! folder     0 ----- k ----- 7 ------- 12            [k]
//! copied                     |
//! restored                   7 - r - 8 - 9           [k, r after 7]      the fork is at 7
//! ```

use serde::{Deserialize, Serialize};

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

    /// What is too many, how many there are and how many may be.
    pub(crate) fn check(&self) -> Result<(), (&'static str, usize, usize)> {
        match self.0.len() {
            count if count > STARTS_MAX => Err(("starts", count, STARTS_MAX)),
            _ => Ok(()),
        }
    }

    fn has(&self, start: &Start) -> bool {
        self.0.iter().any(|known| known.mark == start.mark)
    }
}

/// What a peer has of a life.
#[derive(Clone, Debug, Default)]
pub struct Known {
    /// Up to which number it was sure, before it was asked, to mean the same.
    pub sure: u64,
    /// Up to which number it counts as known.
    pub covered: u64,
    /// The lists of starts that it has behind `sure`, and their numbers in that life; `None`: it has a number of another one, because the life is over.
    pub lists: Vec<(Option<u64>, Starts)>,
}

/// The last number up to which a peer means the same as this folder, when the starts of both show that it means something else behind it. `ours`: all
/// starts of this folder, also one after which nothing was written yet.
pub fn fork(ours: &Starts, theirs: &Known) -> Option<u64> {
    let is_known = |start: &Start| {
        let mut behind = theirs.lists.iter().filter(|(number, _)| number.is_none_or(|number| number > start.after)).peekable();
        behind.peek().is_some() && behind.all(|(_, list)| list.has(start))
    };
    let unknown_there = ours.0.iter().filter(|start| start.after >= theirs.sure && start.after < theirs.covered && !is_known(start));
    let foreign = theirs.lists.iter().flat_map(|(_, list)| &list.0);
    let unknown_here = foreign.filter(|start| start.after >= theirs.sure && !ours.has(start));
    unknown_there.chain(unknown_here).map(|start| start.after).min()
}

#[cfg(test)]
mod tests {
    use super::*;

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
    fn a_list_has_the_last_starts_and_is_bounded() {
        let many = (0..100).fold(Starts::default(), |starts, after| starts.with(Start { after, mark: after }));
        assert_eq!((many.0.len(), many.0[0].after), (STARTS_MAX, 100 - STARTS_MAX as u64));
        assert!(many.check().is_ok());
        let [mut more, last] = [many.clone(), many];
        more.0.push(last.0[0]);
        assert!(more.check().is_err());
    }
}
