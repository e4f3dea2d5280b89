//! What becomes of a record that comes from elsewhere: decisions only, without disk or clock.
//!
//! A store and a simulation ask the same questions here, so that what the one proves holds for the other.

use crate::record::RawRecord;
use crate::vector::Origin;

/// What a node has that bears on a record that came.
#[derive(Clone, Copy, Debug, Default)]
pub struct Here<'a> {
    /// What stands under its key.
    pub standing: Option<&'a RawRecord>,
    /// What is known under its number; `None` also when that was superseded.
    pub numbered: Option<&'a RawRecord>,
}

/// What becomes of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// It is what its key means now.
    Stands,
    /// Something later stands.
    Lost,
    /// It is here already, under this number or another.
    Known,
    /// Its stamp lies too far ahead to be believed yet: it is kept aside until its time has come (S31).
    Waits,
    /// Another record has its number: somebody wrote twice under one origin (S32).
    Forked,
}

/// Judges a record of another origin. `is_far_ahead`: of what this node's clock believes.
pub fn judge(record: &RawRecord, here: Here<'_>, is_far_ahead: bool) -> Verdict {
    match here {
        Here { numbered: Some(numbered), .. } if numbered == record => Verdict::Known,
        Here { numbered: Some(_), .. } => Verdict::Forked,
        Here { standing: Some(standing), .. } if standing == record => Verdict::Known,
        Here { standing: Some(standing), .. } if !record.beats(standing) => Verdict::Lost,
        _ if is_far_ahead => Verdict::Waits,
        _ => Verdict::Stands,
    }
}

/// Whether the writer of a record that stands gave it another number in a later life: the one that counts now. Of the earlier life, in which a copy of its data
/// folder wrote as well, nobody may ever count that number as known, so nobody would be told of the record under it (F11).
pub fn is_renumbered(standing: &Origin, came: &Origin) -> bool {
    standing.node == came.node && standing.incarnation < came.incarnation
}

/// Whether a record that bears a node's own origin was written by another copy of its data folder (F11): the number was never given out
/// here, or to another record; or nothing here could have superseded it. `own`: the last sequence given out, and the one up to which
/// tombstones were purged.
pub fn is_foreign(record: &RawRecord, sequence: u64, here: Here<'_>, own: (u64, u64)) -> bool {
    let (last, purged) = own;
    if sequence > last || here.numbered.is_some_and(|numbered| numbered != record) {
        return true;
    }
    match here.standing {
        Some(standing) => record.beats(standing),
        None => record.value.is_some() || sequence > purged,
    }
}

/// What becomes of a record of a node that was away too long, when it takes a copy of another node's state.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fate {
    /// It stays, or loses to what came, by their stamps.
    Stays,
    /// The other node has seen it and has it no more: it was deleted.
    Goes,
}

/// Who has seen a record that is here, when a copy of another node's state is taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SeenBy {
    /// The other node: it knows the record's number, and means the same by it.
    pub other: bool,
    /// The copy has something under the record's key.
    pub copy: bool,
}

/// Decides that. What the other has never seen stays under the stamp that it has: who remembers that it was deleted says so again when it comes there.
pub fn fate(record: &RawRecord, seen: SeenBy) -> Fate {
    let is_gone = seen.other && !seen.copy && is_purged_once_seen(record.kind);
    if is_gone { Fate::Goes } else { Fate::Stays }
}

/// Whether tombstones of a kind end when everyone has seen them. Those of members never do: an expelled key must stay known (S29); nor do those
/// of kinds that are unknown here.
pub fn is_purged_once_seen(kind: u16) -> bool {
    use crate::record::kind;
    matches!(kind, kind::MANIFEST | kind::TAG | kind::LINK)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::stamp::{HybridTime, NodeId, Stamp};

    fn record(kind: u16, time: u64, value: Option<u8>) -> RawRecord {
        let stamp = Stamp { time: HybridTime(time), node: NodeId([1; 32]) };
        RawRecord { kind, key: vec![1], value: value.map(|value| vec![value]), stamp }
    }

    #[test]
    fn s32_one_number_has_one_record() {
        let (one, other) = (record(3, 1, Some(1)), record(3, 2, Some(2)));
        let here = |numbered| Here { standing: None, numbered };
        assert_eq!(judge(&one, here(Some(&one)), false), Verdict::Known);
        assert_eq!(judge(&other, here(Some(&one)), false), Verdict::Forked);
        // Also when it lies in the future: what is kept aside has its number too.
        assert_eq!(judge(&other, here(Some(&one)), true), Verdict::Forked);
        assert_eq!(judge(&one, here(Some(&one)), true), Verdict::Known);
        assert_eq!(judge(&one, here(None), false), Verdict::Stands);
    }

    #[test]
    fn f11_only_a_later_life_of_the_same_node_gives_a_record_another_number() {
        let [life, later, other] = [(1, 1), (1, 2), (2, 3)].map(|(node, incarnation)| Origin { node: NodeId([node; 32]), incarnation });
        assert!(is_renumbered(&life, &later));
        assert!(![(life, life), (later, life), (life, other)].iter().any(|(standing, came)| is_renumbered(standing, came)));
    }

    #[test]
    fn s31_the_future_waits_unless_something_later_stands() {
        let (one, later) = (record(3, 1, Some(1)), record(3, 2, None));
        let here = |standing| Here { standing, numbered: None };
        assert_eq!(judge(&one, here(None), true), Verdict::Waits);
        assert_eq!(judge(&one, here(Some(&later)), true), Verdict::Lost);
        assert_eq!(judge(&later, here(Some(&one)), true), Verdict::Waits);
        assert_eq!(judge(&one, here(Some(&one)), true), Verdict::Known);
    }

    #[test]
    fn f11_another_copys_records_are_told_from_own_ones_that_come_back() {
        let (old, new) = (record(3, 1, Some(1)), record(3, 2, Some(2)));
        let none = Here::default();
        assert!(is_foreign(&old, 9, none, (8, 0)), "a number that was never given out");
        let here = Here { standing: Some(&new), numbered: None };
        assert!(!is_foreign(&old, 5, here, (8, 0)), "superseded here");
        assert!(!is_foreign(&new, 5, Here { standing: Some(&new), numbered: Some(&new) }, (8, 0)));
        assert!(is_foreign(&old, 5, Here { standing: Some(&old), numbered: Some(&new) }, (8, 0)), "a number that another has");
        assert!(is_foreign(&new, 5, Here { standing: Some(&old), numbered: None }, (8, 0)), "later than all that was written here");
        let tombstone = record(3, 1, None);
        assert!(!is_foreign(&tombstone, 5, none, (8, 5)), "purged here and not there");
        assert!(is_foreign(&tombstone, 6, none, (8, 5)));
        assert!(is_foreign(&old, 5, none, (8, 5)));
    }

    #[test]
    fn f18_what_was_deleted_goes_and_what_the_other_never_saw_stays() {
        let (live, dead) = (record(3, 1, Some(1)), record(3, 1, None));
        let seen = |other, copy| SeenBy { other, copy };
        for record in [&live, &dead] {
            assert_eq!(fate(record, seen(true, false)), Fate::Goes);
            assert_eq!(fate(record, seen(false, false)), Fate::Stays, "what it deletes may be with a third, or nobody has seen it");
        }
        for record in [&live, &dead, &record(6, 1, None), &record(900, 1, Some(1))] {
            assert_eq!(fate(record, seen(true, record.kind == 3)), Fate::Stays);
        }
    }
}
