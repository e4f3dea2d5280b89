//! The holder's rule: a chunk is sent to a zone once, and after that the nodes of the zone are told who has it.
//!
//! So a crowd that wants the same new image costs its holder about one copy. Who gets no answer from those who are named insists,
//! and is served. What was sent is forgotten after a while: then the crowd is over.

use std::collections::{HashMap, VecDeque};
use std::time::Duration;

use larder_protocol::digest::Digest;
use larder_protocol::message::ELSEWHERE_MAX;
use larder_protocol::stamp::NodeId;

/// How long it is remembered to whom a chunk was sent.
const REMEMBERED_TIME: Duration = Duration::from_secs(60);
/// Most sendings that are remembered.
const REMEMBERED_MAX: usize = 1 << 16;

/// To whom which chunk was sent lately.
#[derive(Debug, Default)]
pub(super) struct Handed {
    sent: HashMap<(Digest, u32), Vec<NodeId>>,
    order: VecDeque<(Duration, Digest, u32, NodeId)>,
}

impl Handed {
    /// Who shall be asked instead for a chunk; empty: send it, which is remembered. `is_mate` says who is in reach and in the
    /// zone of the one that asks.
    pub(super) fn asked(
        &mut self,
        now: Duration,
        (digest, index): (Digest, u32),
        peer: NodeId,
        most: usize,
        is_mate: impl Fn(&NodeId) -> bool,
    ) -> Vec<NodeId> {
        while self.order.len() >= REMEMBERED_MAX || self.order.front().is_some_and(|(at, ..)| now.saturating_sub(*at) > REMEMBERED_TIME) {
            let (_, digest, index, node) = self.order.pop_front().expect("one was looked at");
            self.forget((digest, index), node);
        }
        let known = self.sent.get(&(digest, index)).map(Vec::as_slice).unwrap_or_default();
        let elsewhere: Vec<_> = known.iter().filter(|node| **node != peer && is_mate(node)).take(ELSEWHERE_MAX).copied().collect();
        if elsewhere.len() >= most {
            return elsewhere;
        }
        self.sent.entry((digest, index)).or_default().push(peer);
        self.order.push_back((now, digest, index, peer));
        Vec::new()
    }

    /// It was not sent after all.
    pub(super) fn failed(&mut self, chunk: (Digest, u32), peer: NodeId) {
        self.forget(chunk, peer);
    }

    fn forget(&mut self, chunk: (Digest, u32), peer: NodeId) {
        if let Some(nodes) = self.sent.get_mut(&chunk) {
            if let Some(at) = nodes.iter().position(|node| *node == peer) {
                nodes.remove(at);
            }
            if nodes.is_empty() {
                self.sent.remove(&chunk);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn node(number: u8) -> NodeId {
        NodeId([number; 32])
    }

    #[test]
    fn a_zone_is_served_once_and_then_told_who_has_it() {
        let mut handed = Handed::default();
        let chunk = (Digest::sha256(b"blob"), 3);
        let at = Duration::from_secs;
        // Zones: even and odd numbers.
        let mate_of = |number: u8| move |node: &NodeId| node.0[0] % 2 == number % 2;
        assert!(handed.asked(at(0), chunk, node(2), 1, mate_of(2)).is_empty());
        assert_eq!(handed.asked(at(1), chunk, node(4), 1, mate_of(4)), [node(2)]);
        assert!(handed.asked(at(1), chunk, node(2), 1, mate_of(2)).is_empty(), "who asks again has lost it");
        assert!(handed.asked(at(1), chunk, node(3), 1, mate_of(3)).is_empty(), "the other zone's first");
        assert!(handed.asked(at(1), (chunk.0, 4), node(4), 1, mate_of(4)).is_empty(), "another chunk");
        assert!(handed.asked(at(2), chunk, node(4), usize::MAX, mate_of(4)).is_empty(), "who insists is served");
        assert!(handed.asked(at(3), chunk, node(6), 1, |_| false).is_empty(), "nobody is left whom to name");
        assert!(handed.asked(at(99), chunk, node(8), 1, mate_of(8)).is_empty(), "it was long ago");
    }

    #[test]
    fn what_failed_was_not_sent_and_memory_is_bounded() {
        let mut handed = Handed::default();
        let chunk = (Digest::sha256(b"blob"), 0);
        assert!(handed.asked(Duration::ZERO, chunk, node(1), 1, |_| true).is_empty());
        handed.failed(chunk, node(1));
        assert!(handed.asked(Duration::ZERO, chunk, node(2), 1, |_| true).is_empty());
        for index in 0..REMEMBERED_MAX as u32 + 10 {
            handed.asked(Duration::ZERO, (chunk.0, index), node(3), usize::MAX, |_| true);
        }
        assert!(handed.order.len() <= REMEMBERED_MAX && handed.sent.len() <= REMEMBERED_MAX);
    }
}
