//! Which node is asked to keep what, so that an image lies on as many other nodes as were asked for: a plan, without I/O.
//!
//! Everything that an image needs is a *want*: its records are one, each blob is one. Of a want's candidates, in the order of its
//! owners, so many are asked that with those who have it there are enough; when one fails, the next takes its place, and the
//! one that failed is asked again later. Nobody is asked beyond that, so no copy is made that was not asked for.

use std::time::{Duration, Instant};

use larder_protocol::stamp::NodeId;

/// A node that failed is not asked again before.
const PAUSE: Duration = Duration::from_secs(1);

/// What is asked of one node: which of the wants, by number.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Ask {
    pub node: NodeId,
    pub wants: Vec<usize>,
}

/// An image on its way to other nodes.
#[derive(Debug)]
pub(super) struct Quorum {
    copies: usize,
    nodes: Vec<NodeId>,
    /// The records, then the blobs.
    wants: Vec<Want>,
}

#[derive(Debug, Default)]
struct Want {
    /// Candidates, numbers of `nodes`.
    order: Vec<u16>,
    held: Vec<u16>,
    asked: Vec<u16>,
    failed: Vec<(u16, Instant)>,
}

impl Quorum {
    /// `copies` other nodes shall have each want; its candidates stand in order. The first want are the records: whoever is asked for
    /// any other is asked for them too, and counts if it is a candidate.
    pub(super) fn new(copies: usize, candidates: &[Vec<NodeId>]) -> Self {
        let mut nodes: Vec<NodeId> = candidates.iter().flatten().copied().collect();
        nodes.sort_unstable();
        nodes.dedup();
        let number = |node: &NodeId| nodes.binary_search(node).ok().and_then(|number| u16::try_from(number).ok());
        let want = |order: &Vec<NodeId>| Want { order: order.iter().filter_map(number).collect(), ..Want::default() };
        let wants = candidates.iter().map(want).collect();
        Self { copies, nodes, wants }
    }

    /// Whom to ask for what now. Each of them is answered for with [`Quorum::answered`].
    pub(super) fn ask(&mut self, is_usable: impl Fn(&NodeId) -> bool, now: Instant) -> Vec<Ask> {
        let usable: Vec<bool> = self.nodes.iter().map(is_usable).collect();
        let mut asks: Vec<Vec<usize>> = vec![Vec::new(); self.nodes.len()];
        // ORDER: the records last, since whoever is asked for a blob is asked for them as well.
        for (number, want) in self.wants.iter_mut().enumerate().rev() {
            if number == 0 {
                for (node, _) in asks.iter().enumerate().filter(|(_, wants)| !wants.is_empty()) {
                    let node = node as u16;
                    if want.order.contains(&node) && !want.held.contains(&node) && !want.asked.contains(&node) {
                        want.asked.push(node);
                    }
                }
            }
            want.failed.retain(|(_, until)| *until > now);
            for node in want.order.iter().copied() {
                if want.held.len() + want.asked.len() >= self.copies {
                    break;
                }
                let is_known = want.held.contains(&node) || want.asked.contains(&node);
                if !is_known && usable[usize::from(node)] && !want.failed.iter().any(|(failed, _)| *failed == node) {
                    want.asked.push(node);
                    asks[usize::from(node)].push(number);
                }
            }
        }
        let asked = asks.into_iter().zip(&self.nodes).filter(|(wants, _)| !wants.is_empty());
        asked.map(|(wants, node)| Ask { node: *node, wants }).collect()
    }

    /// Takes note of an answer: whether the node knows the records, and which of the blobs that it was asked for it has.
    pub(super) fn answered(&mut self, ask: &Ask, knows: bool, has: impl Fn(usize) -> bool, now: Instant) {
        let Some(node) = self.nodes.binary_search(&ask.node).ok().and_then(|number| u16::try_from(number).ok()) else { return };
        for number in ask.wants.iter().copied().filter(|number| *number != 0).chain([0]) {
            let Some(want) = self.wants.get_mut(number) else { continue };
            want.asked.retain(|asked| *asked != node);
            // Without the records, a blob may be taken for garbage there.
            if knows && want.order.contains(&node) && (number == 0 || has(number)) {
                if !want.held.contains(&node) {
                    want.held.push(node);
                }
            } else if !want.held.contains(&node) {
                want.failed.push((node, now + PAUSE));
            }
        }
    }

    pub(super) fn is_done(&self) -> bool {
        self.wants.iter().all(|want| want.held.len() >= self.copies)
    }

    /// Wants that too few have.
    pub(super) fn missing(&self) -> impl Iterator<Item = usize> + '_ {
        self.wants.iter().enumerate().filter(|(_, want)| want.held.len() < self.copies).map(|(number, _)| number)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::{HashMap, HashSet};

    use larder_harness::{Random, for_seeds};

    use super::*;

    fn node(number: u8) -> NodeId {
        NodeId([number; 32])
    }

    #[test]
    fn owners_are_asked_first_and_nobody_beyond_what_is_needed() {
        let now = Instant::now();
        let candidates = [vec![node(1), node(2), node(3)], vec![node(1), node(2), node(3)], vec![node(3), node(1), node(2)]];
        let mut quorum = Quorum::new(1, &candidates);
        let asks = quorum.ask(|_| true, now);
        assert_eq!(asks, [Ask { node: node(1), wants: vec![1] }, Ask { node: node(3), wants: vec![2] }]);
        assert_eq!(quorum.ask(|_| true, now), [], "all is asked for");
        quorum.answered(&asks[0], true, |_| true, now);
        assert_eq!(quorum.missing().collect::<Vec<_>>(), [2]);
        // It has the blob and not the records: that is no copy to rely on.
        quorum.answered(&asks[1], false, |_| true, now);
        assert_eq!(quorum.ask(|_| true, now), [Ask { node: node(1), wants: vec![2] }], "the next in order takes its place");
        assert!(!quorum.is_done());
        quorum.answered(&Ask { node: node(1), wants: vec![2] }, true, |_| true, now);
        assert!(quorum.is_done());
    }

    #[test]
    fn who_does_not_count_for_the_records_may_keep_a_blob_all_the_same() {
        let now = Instant::now();
        let mut quorum = Quorum::new(1, &[vec![node(2)], vec![node(1), node(2)]]);
        let asks = quorum.ask(|_| true, now);
        assert_eq!(asks, [Ask { node: node(1), wants: vec![1] }, Ask { node: node(2), wants: vec![0] }]);
        quorum.answered(&asks[0], true, |_| true, now);
        assert_eq!(quorum.missing().collect::<Vec<_>>(), [0]);
        quorum.answered(&asks[1], true, |_| false, now);
        assert!(quorum.is_done());
    }

    #[test]
    fn records_alone_are_asked_for_when_there_are_no_blobs() {
        let mut quorum = Quorum::new(2, &[vec![node(1), node(2), node(3)]]);
        let asks = quorum.ask(|node| node.0[0] != 2, Instant::now());
        assert_eq!(asks, [Ask { node: node(1), wants: vec![0] }, Ask { node: node(3), wants: vec![0] }]);
        asks.iter().for_each(|ask| quorum.answered(ask, true, |_| false, Instant::now()));
        assert!(quorum.is_done());
    }

    /// Nodes fail, come back, and have lost things: in the end each want has its copies, and none was made that nobody needs.
    fn simulate(seed: u64) {
        let mut random = Random::new(seed);
        let (nodes, blobs) = (1 + random.below(9) as u8, random.below(12) as usize);
        let copies = (1 + random.below(4) as usize).min(usize::from(nodes));
        let order = |random: &mut Random| {
            let mut order: Vec<_> = (0..nodes).map(node).collect();
            (1..order.len()).for_each(|at| order.swap(at, random.below(at as u64 + 1) as usize));
            order
        };
        let candidates: Vec<_> = (0..=blobs).map(|_| order(&mut random)).collect();
        let mut quorum = Quorum::new(copies, &candidates);
        let mut now = Instant::now();
        let (mut kept, mut steps) = (HashMap::<usize, HashSet<NodeId>>::new(), 0);
        while !quorum.is_done() {
            steps += 1;
            assert!(steps < 1000, "it does not come to an end");
            // After a while, all is well.
            let well = steps > 40;
            let up: HashSet<_> = (0..nodes).map(node).filter(|_| well || random.chance(70)).collect();
            for ask in quorum.ask(|node| up.contains(node), now) {
                assert!(up.contains(&ask.node), "who is not there is not asked");
                let knows = well || random.chance(50);
                let has: HashSet<_> = ask.wants.iter().copied().filter(|_| well || random.chance(60)).collect();
                for want in has.iter().copied().filter(|want| *want != 0 && knows) {
                    assert!(kept.entry(want).or_default().insert(ask.node), "nobody is asked for what it has said to have");
                }
                if knows {
                    kept.entry(0).or_default().insert(ask.node);
                }
                quorum.answered(&ask, knows, |want| has.contains(&want), now);
            }
            now += PAUSE / 3;
        }
        for want in 0..=blobs {
            let kept = kept.get(&want).map_or(0, HashSet::len);
            assert!(kept >= copies, "want {want} is on {kept} of {copies} nodes");
            assert!(want == 0 || kept == copies, "want {want} is on {kept} nodes, and was wanted on {copies}");
        }
    }

    #[test]
    fn a_quorum_comes_about_whoever_fails() {
        for_seeds(simulate);
    }
}
