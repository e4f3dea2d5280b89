//! Which state of a tag is allowed, given what was done to it and when.
//!
//! The nodes order what they write by their hybrid clocks, which nobody outside sees. What is known from outside: on one node, what began after
//! something else had ended is later; and between two nodes, what began more than [`SKEW`] after something else had ended is later, because
//! no two clocks are further apart than that. An operation that was acknowledged and is later than another one has superseded it. What is left
//! of a tag in the end must be what an operation said that nothing has superseded.

use std::time::Duration;

/// The most that two clocks are ever apart, and some more for what a request takes.
pub const SKEW: Duration = Duration::from_secs(9);
/// How long an operation may still be carried out after its client has given up.
const AFTERMATH: Duration = Duration::from_secs(3);

/// What was asked of a tag.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Action {
    /// To mean the manifest of this digest.
    Put(String),
    /// To go.
    Delete,
}

/// One request that changes a tag.
#[derive(Debug, Clone)]
pub struct Operation {
    pub action: Action,
    /// Which node was asked, and in which of its lives: what it knew before it lost its disk, it knows no more.
    pub node: usize,
    pub life: u64,
    pub begin: Duration,
    pub end: Duration,
    /// Whether it was acknowledged. Otherwise nobody knows whether it was carried out.
    pub is_acknowledged: bool,
}

impl Operation {
    /// When it was carried out at the latest.
    fn latest(&self) -> Duration {
        if self.is_acknowledged { self.end } else { self.end + AFTERMATH }
    }

    /// Whether `later` has superseded it for certain.
    fn is_superseded_by(&self, later: &Self) -> bool {
        let same = (self.node, self.life) == (later.node, later.life);
        later.is_acknowledged && later.begin > self.latest() + if same { Duration::ZERO } else { SKEW }
    }
}

/// What a tag may mean after these operations; `None` stands for "is not there".
pub fn allowed(operations: &[Operation]) -> Vec<Option<String>> {
    let standing: Vec<&Operation> =
        operations.iter().filter(|operation| !operations.iter().any(|other| operation.is_superseded_by(other))).collect();
    let mut allowed: Vec<Option<String>> = standing
        .iter()
        .map(|operation| match &operation.action {
            Action::Put(digest) => Some(digest.clone()),
            Action::Delete => None,
        })
        .collect();
    // Nothing that is certain: it may never have been.
    if !operations.iter().any(|operation| operation.is_acknowledged) {
        allowed.push(None);
    }
    allowed
}

#[cfg(test)]
mod tests {
    use super::*;

    fn operation(action: Action, node: usize, seconds: (u64, u64), is_acknowledged: bool) -> Operation {
        let [begin, end] = [seconds.0, seconds.1].map(Duration::from_secs);
        Operation { action, node, life: 0, begin, end, is_acknowledged }
    }

    fn put(digest: &str) -> Action {
        Action::Put(digest.to_owned())
    }

    #[test]
    fn on_one_node_the_last_acknowledged_operation_stands() {
        let mut operations = vec![operation(put("a"), 0, (0, 1), true), operation(Action::Delete, 0, (2, 3), true)];
        assert_eq!(allowed(&operations), [None]);
        // Who was not answered may have come through or not; the one before it is superseded all the same.
        operations.push(operation(put("b"), 0, (4, 5), false));
        assert_eq!(allowed(&operations), [None, Some("b".to_owned())]);
    }

    #[test]
    fn of_two_nodes_either_may_be_last_unless_their_clocks_can_not_be_so_far_apart() {
        let first = operation(put("a"), 0, (0, 1), true);
        let soon = operation(put("b"), 1, (2, 3), true);
        assert_eq!(allowed(&[first.clone(), soon]).len(), 2);
        let far = 2 + SKEW.as_secs();
        let late = operation(Action::Delete, 1, (far, far + 1), true);
        assert_eq!(allowed(&[first, late]), [None]);
    }

    #[test]
    fn what_was_never_acknowledged_may_never_have_been_and_supersedes_nothing() {
        let unknown = operation(put("a"), 0, (0, 1), false);
        assert_eq!(allowed(std::slice::from_ref(&unknown)), [Some("a".to_owned()), None]);
        let before = operation(put("b"), 0, (0, 0), true);
        assert_eq!(allowed(&[before, unknown]).len(), 2);
        // The same node in another life has forgotten what it knew.
        let mut again = operation(Action::Delete, 0, (2, 3), true);
        again.life = 1;
        assert_eq!(allowed(&[operation(put("c"), 0, (0, 1), true), again]).len(), 2);
    }
}
