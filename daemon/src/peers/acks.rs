//! What each member was last heard to know, also of those that are gone.
//!
//! Two things rest on it. Tombstones end when everyone has seen them. And of this node's own records a peer is asked, the first time in each
//! connection, for all behind the number up to which it is *sure* that both mean the same: so another copy of this data folder
//! shows itself by what it has told that peer (F11). What a peer says of our own numbers counts only when it was looked at.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use larder_protocol::stamp::NodeId;
use larder_protocol::vector::Origin;

use super::Inner;
use super::error::{Error, Result};
use super::links::{Link, take_note};
use super::sync::fork_point;
use crate::store::{self, Acknowledged, Store};

/// How often it is written down, and how often upkeep of the records looks at it.
pub(super) const REMEMBER: Duration = Duration::from_secs(60);
/// Of a peer that was never met, how many of the last own records are asked back.
const ASKED_BACK_MAX: u64 = 10_000;
/// A node does not begin another life more often; who says again that it must is not believed.
const LIFE_MIN: Duration = Duration::from_secs(60);

/// What members know, in memory; see `store::Acknowledged` for the rows.
#[derive(Debug)]
pub(super) struct Acks(Mutex<HashMap<NodeId, Acknowledged>>);

impl Acks {
    pub(super) fn load(store: &Store) -> store::Result<Self> {
        Ok(Self(Mutex::new(store.acknowledged()?.into_iter().collect())))
    }

    /// Up to which own number a peer is sure to mean the same, of those up to `last`. `first`: the number at the first start since which not every
    /// member was looked at.
    fn sure(&self, peer: &NodeId, own: &Origin, last: u64, first: Option<u64>) -> u64 {
        let said = self.lock().get(peer).map(|said| said.vector.get(own));
        let sure = match first {
            Some(first) => first.max(said.unwrap_or(0)),
            None => said.unwrap_or(last.saturating_sub(ASKED_BACK_MAX)),
        };
        sure.min(last)
    }

    /// Takes note of what the peer of a link knows. Of this node's own records only what was looked at counts.
    pub(super) fn note(&self, link: &Link, own: &Origin) {
        let peer = link.connection.peer();
        let known = link.known();
        let mut said = self.lock();
        let said = said.entry(peer).or_default();
        said.silent_ms = 0;
        take_note(&mut said.vector, known.iter().filter(|(origin, _)| origin != own || link.is_checked(own)));
    }

    /// Time passes in which nothing is heard of a member.
    pub(super) fn silent(&self, member: &NodeId, passed: Duration) {
        let mut said = self.lock();
        let said = said.entry(*member).or_default();
        said.silent_ms = said.silent_ms.saturating_add(u64::try_from(passed.as_millis()).unwrap_or(u64::MAX));
    }

    /// Forgets those who are no members any more; says who.
    pub(super) fn retain(&self, is_member: impl Fn(&NodeId) -> bool) -> Vec<NodeId> {
        let mut said = self.lock();
        let gone: Vec<_> = said.keys().filter(|node| !is_member(node)).copied().collect();
        gone.iter().for_each(|node| drop(said.remove(node)));
        gone
    }

    pub(super) fn all(&self) -> Vec<(NodeId, Acknowledged)> {
        self.lock().iter().map(|(node, said)| (*node, said.clone())).collect()
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<NodeId, Acknowledged>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Inner {
    /// Up to which of this node's own numbers the peer of a link is sure to mean the same.
    pub(super) fn sure(&self, link: &Link, own: &Origin) -> u64 {
        let last = self.store.vector().get(own);
        if link.is_checked(own) {
            return link.known().get(own).min(last);
        }
        self.acks.sure(&link.connection.peer(), own, last, self.store.starts().first().copied())
    }

    /// What a peer has of this node's own records was looked at.
    pub(super) async fn looked_at(&self, link: &Link, own: Origin) -> Result<()> {
        link.set_checked(own);
        let others = self.members.others();
        let all = {
            let mut looked_at = self.looked_at.lock().unwrap_or_else(PoisonError::into_inner);
            looked_at.insert((link.connection.peer(), own));
            others.iter().all(|(member, _)| looked_at.contains(&(*member, own)))
        };
        if all {
            self.store.run(|store| store.settle_starts()).await?;
        }
        Ok(())
    }

    /// Another copy of this data folder has written under its origin: takes another one. `fork`: the last number up to which both are the same, when the
    /// starts of both tell. `wrong`: the first number under which the peer has something else.
    pub(super) async fn begin_life(&self, link: &Link, own: Origin, fork: Option<u64>, wrong: Option<u64>) -> Result<()> {
        let now = std::time::Instant::now();
        {
            let mut last = self.life_begun.lock().unwrap_or_else(PoisonError::into_inner);
            if last.is_some_and(|last| now.duration_since(last) < LIFE_MIN) {
                let what = "again that records were written here that were not".to_owned();
                return Err(Error::Violation { peer: link.connection.peer(), what });
            }
            *last = Some(now);
        }
        let sure = match fork {
            Some(fork) => fork,
            None => fork_point(&self.store.all_starts()?, wrong).unwrap_or_else(|| self.sure(link, &own)),
        };
        let sure = wrong.map_or(sure, |wrong| sure.min(wrong.saturating_sub(1)));
        let metrics = Arc::clone(&self.metrics);
        // Counted with it: who waits here may be dropped meanwhile.
        self.store.run(move |store| store.begin_life(own, sure).map(|_| metrics.lives.inc())).await?;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn f11_of_a_peer_that_was_never_met_the_last_records_are_asked_back() {
        let (peer, own) = (NodeId([2; 32]), Origin { node: NodeId([1; 32]), incarnation: 1 });
        let acks = Acks(Mutex::default());
        let sure = |last, first| acks.sure(&peer, &own, last, first);
        assert_eq!((sure(7, None), sure(ASKED_BACK_MAX + 7, None), sure(7, Some(5)), sure(7, Some(9))), (0, 7, 5, 7));
        acks.silent(&peer, Duration::from_secs(1));
        assert_eq!(sure(7, None), 0);
        acks.lock().get_mut(&peer).expect("noted").vector.advance(own, 9);
        assert_eq!((sure(7, None), sure(12, None), sure(12, Some(5)), sure(12, Some(10))), (7, 9, 9, 10));
        assert_eq!(acks.all()[0].1.silent_ms, 1000);
        assert_eq!(acks.retain(|_| false), [peer]);
        assert!(acks.all().is_empty());
    }
}
