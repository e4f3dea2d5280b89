//! Which tags go by the rules of the configuration: a decision without I/O, made as the tags of a repository pass by twice.

use std::cmp::Reverse;
use std::collections::BinaryHeap;

use crate::config::Retention;

/// A tag, as far as rules care.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Age {
    /// When it was pushed, milliseconds since 1970; with what tells equals apart.
    pub pushed: (u64, u64),
}

/// What is known of a repository's tags after the first pass: from when on they are among the newest.
#[derive(Debug)]
pub(super) struct Newest {
    keep: usize,
    heap: BinaryHeap<Reverse<Age>>,
}

impl Newest {
    pub(super) fn new(rule: &Retention) -> Self {
        Self { keep: rule.keep_last.unwrap_or(0), heap: BinaryHeap::new() }
    }

    /// Sees a tag that the rule is about.
    pub(super) fn see(&mut self, tag: Age) {
        self.heap.push(Reverse(tag));
        if self.heap.len() > self.keep {
            self.heap.pop();
        }
    }

    fn has(&self, tag: Age) -> bool {
        self.heap.len() < self.keep || self.heap.peek().is_some_and(|Reverse(oldest)| tag >= *oldest)
    }
}

/// Why a tag goes; `None`: it stays.
pub(super) fn why(rule: &Retention, newest: &Newest, tag: Age, now_ms: u64) -> Option<String> {
    // A rule about manifests without a tag takes no tag away.
    if rule.keep_last.is_none() && rule.keep_for.is_none() {
        return None;
    }
    if rule.keep_last.is_some() && newest.has(tag) {
        return None;
    }
    let age_ms = now_ms.saturating_sub(tag.pushed.0);
    if rule.keep_for.is_some_and(|keep| u128::from(age_ms) < keep.as_millis()) {
        return None;
    }
    let days = age_ms / 86_400_000;
    let mut why = format!("pushed {days} days ago");
    if let Some(count) = rule.keep_last {
        why += &format!(", not among the newest {count}");
    }
    if let Some(keep) = rule.keep_for {
        why += &format!(", older than {} days", keep.as_secs() / 86_400);
    }
    Some(why)
}

/// Whether a rule is about a repository.
pub(super) fn is_about(rule: &Retention, repository: &str) -> bool {
    rule.repositories.iter().any(|glob| glob.matches(repository))
}

/// Whether a rule is about a tag of such a repository.
pub(super) fn is_about_tag(rule: &Retention, tag: &str) -> bool {
    rule.tags.iter().any(|glob| glob.matches(tag))
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::glob::Glob;

    const DAY: u64 = 86_400_000;

    fn rule(keep_last: Option<usize>, keep_days: Option<u64>) -> Retention {
        let keep_for = keep_days.map(|days| Duration::from_secs(days * 86_400));
        Retention { repositories: vec![Glob::any()], tags: vec![Glob::any()], keep_last, keep_for, untagged: None }
    }

    /// The ages in days of those that stay, of tags pushed 0, 1, ... 9 days ago.
    fn staying(rule: &Retention) -> Vec<u64> {
        let now = 100 * DAY;
        let tags: Vec<_> = (0..10).map(|days| Age { pushed: (now - days * DAY, days) }).collect();
        let mut newest = Newest::new(rule);
        // Not in the order of their age, as listings aren't.
        tags.iter().rev().chain(&[]).for_each(|tag| newest.see(*tag));
        let stays = |tag: &&Age| why(rule, &newest, **tag, now).is_none();
        tags.iter().filter(stays).map(|tag| tag.pushed.1).collect()
    }

    #[test]
    fn tags_stay_that_are_new_or_among_the_newest() {
        assert_eq!(staying(&rule(Some(3), None)), [0, 1, 2]);
        assert_eq!(staying(&rule(None, Some(5))), [0, 1, 2, 3, 4]);
        assert_eq!(staying(&rule(Some(3), Some(5))), [0, 1, 2, 3, 4]);
        assert_eq!(staying(&rule(Some(7), Some(5))), [0, 1, 2, 3, 4, 5, 6]);
        assert_eq!(staying(&rule(Some(100), None)).len(), 10);
        assert!(staying(&rule(Some(0), None)).is_empty());
        assert_eq!(staying(&rule(None, None)).len(), 10, "a rule about manifests without a tag");
    }

    #[test]
    fn equals_are_told_apart_so_that_no_more_stay_than_shall() {
        let rule = rule(Some(2), None);
        let tags: Vec<_> = (0..5).map(|i| Age { pushed: (7, i) }).collect();
        let mut newest = Newest::new(&rule);
        tags.iter().for_each(|tag| newest.see(*tag));
        assert_eq!(tags.iter().filter(|tag| why(&rule, &newest, **tag, 8).is_none()).count(), 2);
    }

    #[test]
    fn globs_say_what_a_rule_is_about() {
        let rule = Retention {
            repositories: vec!["ci/**".parse().expect("glob")],
            tags: vec!["pr-*".parse().expect("glob")],
            ..rule(Some(1), None)
        };
        assert!(is_about(&rule, "ci/a/b") && !is_about(&rule, "app"));
        assert!(is_about_tag(&rule, "pr-1") && !is_about_tag(&rule, "latest"));
    }
}
