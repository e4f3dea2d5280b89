//! Who is alive, as this node sees it: one standing for each member, and since when.
//!
//! What is seen over a connection of one's own goes before what others say. The times are of the monotonic clock: a wall clock
//! that jumps makes nobody dead for ten minutes.

use std::collections::HashMap;
use std::sync::{PoisonError, RwLock};
use std::time::{Duration, Instant};

use larder_protocol::stamp::NodeId;
use tokio::sync::watch;

/// Whether a member can be counted on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Condition {
    /// It answers, here or where others ask it.
    Alive,
    /// It did not answer lately, and may still say why.
    Suspect,
    /// Nobody hears it.
    Down,
}

impl Condition {
    /// The word for it, in lists and metrics.
    pub fn word(self) -> &'static str {
        match self {
            Condition::Alive => "alive",
            Condition::Suspect => "suspect",
            Condition::Down => "down",
        }
    }
}

/// A member's condition, and since when it is in it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Standing {
    /// How it is.
    pub condition: Condition,
    /// Since when. Who was never heard is down since this node started, or learned of it.
    pub since: Instant,
}

impl Standing {
    /// For how long nobody has heard it; `None` unless it is down.
    pub fn down_for(&self, now: Instant) -> Option<Duration> {
        (self.condition == Condition::Down).then(|| now.saturating_duration_since(self.since))
    }
}

/// The standings as they were last told; this node itself is not among them.
#[derive(Debug)]
pub(super) struct Standings {
    known: RwLock<HashMap<NodeId, Standing>>,
    /// Counts the changes.
    changed: watch::Sender<u64>,
}

impl Default for Standings {
    fn default() -> Self {
        Self { known: RwLock::default(), changed: watch::channel(0).0 }
    }
}

impl Standings {
    pub(super) fn all(&self) -> HashMap<NodeId, Standing> {
        self.known.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    pub(super) fn of(&self, node: &NodeId) -> Option<Standing> {
        self.known.read().unwrap_or_else(PoisonError::into_inner).get(node).copied()
    }

    /// Changes whenever a member's condition does, or one comes or goes.
    pub(super) fn changes(&self) -> watch::Receiver<u64> {
        self.changed.subscribe()
    }

    /// Takes the conditions of all members; who is in the same as before keeps its time.
    pub(super) fn tell(&self, conditions: &[(NodeId, Condition)], now: Instant) {
        let mut known = self.known.write().unwrap_or_else(PoisonError::into_inner);
        let mut is_news = known.len() != conditions.len();
        let mut next = HashMap::with_capacity(conditions.len());
        for (node, condition) in conditions {
            let before = known.get(node).filter(|before| before.condition == *condition);
            is_news |= before.is_none();
            next.insert(*node, before.copied().unwrap_or(Standing { condition: *condition, since: now }));
        }
        *known = next;
        drop(known);
        if is_news {
            self.changed.send_modify(|count| *count += 1);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_stays_as_it_was_keeps_its_time() {
        let (standings, start) = (Standings::default(), Instant::now());
        let (a, b) = (NodeId([1; 32]), NodeId([2; 32]));
        let mut changes = standings.changes();
        let mut told = |conditions: &[(NodeId, Condition)], after: u64| {
            standings.tell(conditions, start + Duration::from_secs(after));
            let is_news = changes.has_changed().expect("open");
            changes.mark_unchanged();
            is_news
        };
        assert!(told(&[(a, Condition::Down), (b, Condition::Alive)], 0));
        assert!(!told(&[(b, Condition::Alive), (a, Condition::Down)], 5));
        assert!(told(&[(a, Condition::Down), (b, Condition::Suspect)], 6));
        let of = |node| standings.of(&node).expect("a member");
        assert_eq!(of(a).down_for(start + Duration::from_secs(700)), Some(Duration::from_secs(700)));
        assert_eq!((of(b).since, of(b).down_for(start)), (start + Duration::from_secs(6), None));
        assert!(told(&[(b, Condition::Suspect)], 7), "one has gone");
        assert!(standings.of(&a).is_none());
        assert!(told(&[(b, Condition::Suspect), (a, Condition::Down)], 8), "and came again: its time begins anew");
        assert_eq!(of(a).since, start + Duration::from_secs(8));
    }
}
