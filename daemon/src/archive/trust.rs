//! Whose packs and checkpoints a restore believes (S38): those of nodes that are, or once were, members of the cluster.
//!
//! A signature only shows that a pack is its writer's. Whoever may write to the bucket can make a key and sign with it; so a writer counts when
//! somebody who counts has named it as a member, in the signed [`Company`] of a pack or checkpoint. The first in that chain is whom the bucket's
//! `cluster` object names, or whom the operator names. Who was expelled counts for what others who count have told of: its key may be in
//! other hands by then.
//!
//! Who replaces the `cluster` object too is found out by the packs that are left: they name another founder. A bucket in which nothing of the old is left shows
//! nothing but its age and its cluster's id.

use std::collections::BTreeSet;

use larder_protocol::pack::Company;
use larder_protocol::stamp::NodeId;
use serde::Serialize;

/// Whom a restore has come to know.
#[derive(Clone, Debug, Default)]
pub(super) struct Trust {
    /// Whom the operator named, and this node itself: they count whatever anybody says.
    named: BTreeSet<NodeId>,
    known: BTreeSet<NodeId>,
    expelled: BTreeSet<NodeId>,
    founder: Option<NodeId>,
    other_founder: Option<NodeId>,
}

/// What a node is to the cluster.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Standing {
    /// Its packs count.
    Member,
    /// They count as far as others tell of them.
    Expelled,
    /// Nobody who counts has named it.
    Stranger,
}

/// A writer whom nobody who counts has named.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Stranger {
    /// Its id.
    pub node: String,
    /// Packs under its name.
    pub packs: usize,
}

impl Trust {
    /// Begins with whom the bucket's mark names and whom the operator does.
    pub(super) fn new(founder: Option<NodeId>, named: impl IntoIterator<Item = NodeId>) -> Self {
        let named: BTreeSet<NodeId> = named.into_iter().collect();
        let known = named.iter().copied().chain(founder).collect();
        Self { named, known, founder, ..Self::default() }
    }

    /// What a node is, as far as is known.
    pub(super) fn standing(&self, node: &NodeId) -> Standing {
        if self.named.contains(node) {
            Standing::Member
        } else if !self.known.contains(node) {
            Standing::Stranger
        } else if self.expelled.contains(node) {
            Standing::Expelled
        } else {
            Standing::Member
        }
    }

    /// Takes the word of `writer`, if that counts. Who is expelled himself says nothing about others.
    pub(super) fn learn(&mut self, writer: &NodeId, company: &Company) {
        if self.standing(writer) != Standing::Member {
            return;
        }
        self.known.extend(company.members.iter().chain(&company.expelled));
        self.expelled.extend(&company.expelled);
        if let (Some(marked), Some(told)) = (self.founder, company.founder)
            && marked != told
        {
            self.other_founder = Some(told);
        }
    }

    /// Whom somebody who counts has seen in the mark, when that is not whom it names now: then the mark is another, and whoever wrote it may
    /// have named everybody. `None` when the operator has named somebody, and so decided.
    pub(super) fn other_founder(&self) -> Option<(NodeId, NodeId)> {
        Some((self.founder?, self.other_founder?))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn node(name: u8) -> NodeId {
        NodeId([name; 32])
    }

    fn company(founder: u8, members: &[u8], expelled: &[u8]) -> Company {
        let nodes = |names: &[u8]| names.iter().map(|name| node(*name)).collect();
        Company { founder: Some(node(founder)), members: nodes(members), expelled: nodes(expelled) }
    }

    #[test]
    fn s38_trust_goes_from_the_founder_along_a_chain() {
        let mut trust = Trust::new(Some(node(1)), []);
        // A stranger's word is nobody's.
        trust.learn(&node(9), &company(1, &[9, 8], &[1]));
        assert_eq!([1, 8, 9].map(|name| trust.standing(&node(name))), [Standing::Member, Standing::Stranger, Standing::Stranger]);
        trust.learn(&node(1), &company(1, &[1, 2], &[]));
        trust.learn(&node(2), &company(1, &[1, 2, 3], &[]));
        assert_eq!([2, 3, 9].map(|name| trust.standing(&node(name))), [Standing::Member, Standing::Member, Standing::Stranger]);
        assert_eq!(trust.other_founder(), None);
    }

    #[test]
    fn s29_who_was_expelled_names_nobody() {
        let mut trust = Trust::new(Some(node(1)), []);
        trust.learn(&node(1), &company(1, &[1], &[2]));
        trust.learn(&node(2), &company(1, &[2, 3], &[1]));
        assert_eq!([1, 2, 3].map(|name| trust.standing(&node(name))), [Standing::Member, Standing::Expelled, Standing::Stranger]);
        // The operator knows better.
        let mut trust = Trust::new(Some(node(1)), [node(2)]);
        trust.learn(&node(1), &company(1, &[1], &[2]));
        assert_eq!(trust.standing(&node(2)), Standing::Member);
    }

    #[test]
    fn s38_a_mark_that_was_replaced_is_told_by_those_who_saw_the_old_one() {
        let mut trust = Trust::new(Some(node(9)), []);
        trust.learn(&node(9), &company(9, &[9, 1], &[]));
        trust.learn(&node(1), &company(1, &[1], &[]));
        assert_eq!(trust.other_founder(), Some((node(9), node(1))));
    }
}
