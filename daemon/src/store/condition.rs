//! What a push may ask of what stands before it, so that it replaces what its client has seen and nothing else.

use larder_protocol::digest::Digest;

/// Which contents are meant.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Meant {
    /// Any at all.
    Any,
    /// These.
    These(Vec<Digest>),
}

/// A condition of a push. It is asked of every tag that the push names, or of the manifest itself when it names none. Asked and acted
/// upon in one writing: of two pushes that mean to replace the same, one does.
///
/// SPEC: RFC 9110, 13.1.1 and 13.1.2.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Condition {
    /// It stands, and is one of these.
    pub is: Option<Meant>,
    /// It does not stand, or is none of these.
    pub is_not: Option<Meant>,
    /// A tag that stands may not be made to name something else: who pushes has no right to that (S15).
    pub keeps_tags: bool,
}

impl Condition {
    /// Whether it holds where `standing` is what stands now.
    pub(super) fn holds(&self, standing: Option<&Digest>) -> bool {
        let meant = |meant: &Meant| match (meant, standing) {
            (_, None) => false,
            (Meant::Any, Some(_)) => true,
            (Meant::These(digests), Some(digest)) => digests.contains(digest),
        };
        self.is.as_ref().is_none_or(meant) && !self.is_not.as_ref().is_some_and(meant)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_condition_is_about_what_stands_and_whether_anything_does() {
        let (a, b) = (Digest::sha256(b"a"), Digest::sha256(b"b"));
        let these = || Some(Meant::These(vec![a]));
        for (is, is_not, on_nothing, on_a, on_b) in [
            (None, None, true, true, true),
            (Some(Meant::Any), None, false, true, true),
            (these(), None, false, true, false),
            (None, Some(Meant::Any), true, false, false),
            (None, these(), true, false, true),
            (Some(Meant::Any), these(), false, false, true),
            (Some(Meant::These(vec![])), None, false, false, false),
        ] {
            let condition = Condition { is, is_not, keeps_tags: false };
            let held = [None, Some(&a), Some(&b)].map(|standing| condition.holds(standing));
            assert_eq!(held, [on_nothing, on_a, on_b], "{condition:?}");
        }
    }
}
