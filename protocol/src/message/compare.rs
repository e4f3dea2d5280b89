//! Version 2: do we hold the same, and what is it that we don't.
//!
//! ```text
//! Request::Compare    -> Answer::Compared            whether sums can be compared; the sum of all kinds, or where that is not the same, of each
//! Request::Places     -> Answer::Places              the 256 sums of one kind
//! Request::Reconcile  -> Reconciling..., both ways   which records differ, then the records
//! ```
//!
//! On a stream of the last kind the asker begins: `Round` and `Round` until it knows which records differ; then it says `Want`, gets `Records`... and
//! `Done`; sends `Records`... and `Done`; and is answered `Done`.

use serde::{Deserialize, Serialize};

use super::{Message, NumberedRecord};
use crate::frame::Kind;
use crate::state::Sum;

/// Most kinds in one summary.
pub const KINDS_MAX: usize = crate::state::KINDS as usize + 1;
/// Stands in the place of all kinds, with the sum of their sums: who asks says no more, and gets no more back when it is the same there. A program that
/// does not know of it answers with the sums of all kinds, as does one that is asked with them.
pub const ALL_KINDS: u16 = u16::MAX;
/// Most records that one side may ask for on one stream.
pub const WANT_MAX: usize = 10_000;

/// What a node holds, in short.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Summary {
    /// Milliseconds since 1970 by its wall clock.
    pub now_ms: u64,
    /// Hash of its vector: with another one, other sums mean nothing.
    pub vector: [u8; 32],
    /// Hash of what waits for its time.
    pub waiting: [u8; 32],
    /// For each kind that has live records: their sum.
    pub kinds: Vec<(u16, Sum)>,
}

impl Summary {
    /// The same with the sum of all kinds alone; see [`ALL_KINDS`].
    #[must_use]
    pub fn in_short(&self) -> Self {
        let mut all = Sum::default();
        self.kinds.iter().for_each(|(_, sum)| all.plus(sum));
        Self { kinds: vec![(ALL_KINDS, all)], ..*self }
    }
}

/// Opens a stream that finds out which records differ.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Reconcile {
    /// Among the records of this kind,
    pub kind: u16,
    /// and of these places; at most 256.
    pub places: Vec<u8>,
}

/// What follows on it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Reconciling {
    /// A round of range-based set reconciliation, as the `negentropy` protocol writes it.
    Round(Vec<u8>),
    /// Send me the records with these ids; at most [`WANT_MAX`].
    Want(Vec<[u8; 32]>),
    /// Some of what you lack.
    Records(Vec<NumberedRecord>),
    /// That was all.
    Done,
}

impl Message for Reconciling {
    const KIND: Kind = Kind::Reconciling;
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use proptest::prelude::*;

    use super::super::{Answer, Request, Update};
    use super::*;
    use crate::frame::Frame;
    use crate::record::RawRecord;
    use crate::stamp::{HybridTime, NodeId, Stamp};
    use crate::vector::{Origin, VersionVector};

    fn frames() -> Vec<(&'static str, Frame)> {
        let mut sum = Sum::default();
        sum.add(&[9; 32]);
        let summary = Summary { now_ms: 1_700_000_000_000, vector: [1; 32], waiting: [2; 32], kinds: vec![(3, sum)] };
        let origin = Origin { node: NodeId([7; 32]), incarnation: 1 };
        let stamp = Stamp { time: HybridTime(5), node: origin.node };
        let record = RawRecord { kind: 900, key: vec![1], value: Some(vec![2]), stamp };
        let vector: VersionVector = [(origin, 42)].into_iter().collect();
        vec![
            ("request-compare", Request::Compare(summary.clone()).to_frame()),
            ("request-compare-short", Request::Compare(summary.in_short()).to_frame()),
            ("request-places", Request::Places(3).to_frame()),
            ("request-reconcile", Request::Reconcile(Reconcile { kind: 3, places: vec![0, 255] }).to_frame()),
            ("request-sync-brief", Request::SyncBrief([4; 32]).to_frame()),
            ("answer-compared", Answer::Compared(summary).to_frame()),
            ("answer-places", Answer::Places(vec![sum, Sum::default()]).to_frame()),
            ("update-unlike", Update::Unlike.to_frame()),
            ("update-snapshot", Update::Snapshot(vector.clone()).to_frame()),
            ("update-mixed", Update::Mixed(vector).to_frame()),
            ("reconciling-round", Reconciling::Round(vec![0x61]).to_frame()),
            ("reconciling-want", Reconciling::Want(vec![[6; 32]]).to_frame()),
            ("reconciling-records", Reconciling::Records(vec![NumberedRecord { origin, sequence: 8, record }]).to_frame()),
            ("reconciling-done", Reconciling::Done.to_frame()),
        ]
    }

    fn through(frame: &Frame) -> Option<Frame> {
        match frame.kind {
            1 => Request::from_frame(frame).ok().map(|message| message.to_frame()),
            2 => Answer::from_frame(frame).ok().map(|message| message.to_frame()),
            3 => Update::from_frame(frame).ok().map(|message| message.to_frame()),
            _ => Reconciling::from_frame(frame).ok().map(|message| message.to_frame()),
        }
    }

    #[test]
    fn golden_bytes_of_version_2_stand() {
        let folder = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("testdata/v2");
        for (name, frame) in frames() {
            let file = folder.join(format!("{name}.frame"));
            let expected = std::fs::read(&file).unwrap_or_else(|_| {
                std::fs::create_dir_all(&folder).expect("make the folder");
                std::fs::write(&file, frame.to_bytes()).expect("write the golden file");
                panic!("{} was missing and is written: look at it and commit it", file.display())
            });
            assert!(frame.to_bytes() == expected, "{name} is encoded differently from {}", file.display());
            assert_eq!(through(&frame), Some(frame), "{name}");
        }
    }

    #[test]
    fn s34_truncated_messages_are_errors() {
        for (name, frame) in frames() {
            for length in 0..frame.body.len() {
                let cut = Frame { kind: frame.kind, body: frame.body[..length].to_vec() };
                assert!(through(&cut).is_none(), "{name} cut at {length}");
            }
        }
    }

    proptest! {
        #[test]
        fn s34_random_bytes_and_flipped_bits_never_panic(body in prop::collection::vec(any::<u8>(), 0..400), which in 0usize..13, bit in any::<prop::sample::Index>()) {
            let _ = through(&Frame { kind: Kind::Reconciling.number(), body });
            let frames = frames();
            let mut frame = frames[which % frames.len()].1.clone();
            let at = bit.index(frame.body.len() * 8);
            frame.body[at / 8] ^= 1 << (at % 8);
            let _ = through(&frame);
        }
    }
}
