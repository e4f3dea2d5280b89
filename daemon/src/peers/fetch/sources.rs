//! What the plan knows of one peer: what it has of the blob, what is asked of it, how fast it answers.

use std::time::Duration;

use larder_protocol::chunks::ChunkSet;
use larder_protocol::digest::Digest;
use larder_protocol::stamp::NodeId;

/// Chunks asked of one peer at a time: at first, and at most. A crowd begins with as many asks as it has nodes and blobs, and who has it whole
/// serves all of them before anybody has a second one to pass on.
const WINDOW_FIRST: u32 = 1;
const WINDOW_MAX: u32 = 8;
/// A chunk that comes faster lets the window grow, one that comes slower lets it shrink; round trips come on top.
const QUICK: Duration = Duration::from_millis(500);
const SLOW: Duration = Duration::from_secs(1);
/// Round trips that belong to every chunk.
const ROUND_TRIPS: u32 = 3;
/// What a peer is taken to need for a chunk before it has given one.
const FIRST_GUESS: Duration = Duration::from_millis(100);
/// Fewer bytes a second are next to nothing.
const TRICKLE_RATE: f64 = 32_768.0;
/// How much worse each strike makes a peer look.
const STRIKE_COST: u32 = 4;
/// How long a peer that was struck is not asked at first.
pub(super) const STRUCK_REST: Duration = Duration::from_secs(1);

/// A peer, as far as one blob is concerned.
#[derive(Clone, Debug)]
pub(in crate::peers) struct Peer {
    /// In this node's zone.
    pub near: bool,
    /// Measured.
    pub rtt: Duration,
    /// What it did before.
    pub strikes: u32,
    /// What a chunk of another blob took from it lately; only of a peer in another zone, with which this node shares a line.
    pub took: Option<Duration>,
}

/// What it has.
#[derive(Clone, Debug)]
pub(super) enum Holding {
    /// It was asked and has not said.
    Unknown,
    Nothing,
    Whole,
    /// It fetches the blob, too.
    Part {
        have: ChunkSet,
        coming: ChunkSet,
    },
}

/// A peer and what is under way with it.
#[derive(Clone, Debug)]
pub(super) struct Source {
    pub peer: Peer,
    pub holding: Holding,
    /// It fetches the blob, or did while this node does.
    pub is_relay: bool,
    /// It has begun to fetch the blob; should it say that it has nothing, that is of before.
    pub takes_part: bool,
    /// Asks under way that are not given up on.
    pub outstanding: u32,
    pub window: u32,
    /// How long a chunk takes, smoothed.
    took: Option<Duration>,
    /// When a byte of any chunk last came from it.
    pub heard: Duration,
    /// Since when something is asked of it without a break, and the bytes that came since.
    pub busy: Option<(Duration, u64)>,
    /// How often nothing came of what was asked of it, without a chunk since; and until when it is not asked.
    pub stalls: u32,
    pub rests_until: Duration,
    /// Of no use any more for this blob.
    pub left: bool,
}

impl Source {
    pub(super) fn new(peer: Peer) -> Self {
        Self {
            took: peer.took,
            peer,
            holding: Holding::Unknown,
            is_relay: false,
            takes_part: false,
            outstanding: 0,
            window: WINDOW_FIRST,
            heard: Duration::ZERO,
            busy: None,
            stalls: 0,
            rests_until: Duration::ZERO,
            left: false,
        }
    }

    pub(super) fn is_whole(&self) -> bool {
        !self.left && matches!(self.holding, Holding::Whole)
    }

    pub(super) fn is_part(&self) -> bool {
        !self.left && matches!(self.holding, Holding::Part { .. })
    }

    pub(super) fn has(&self, index: u32) -> bool {
        !self.left
            && match &self.holding {
                Holding::Whole => true,
                Holding::Part { have, .. } => have.has(index),
                Holding::Unknown | Holding::Nothing => false,
            }
    }

    /// Whether more may be asked of it.
    pub(super) fn is_free(&self, now: Duration) -> bool {
        !self.left && self.outstanding < self.window && now >= self.rests_until
    }

    /// Whether next to nothing comes of what is asked of it.
    pub(super) fn is_trickle(&self, now: Duration) -> bool {
        self.busy.is_some_and(|(since, came)| (came as f64) < TRICKLE_RATE * now.saturating_sub(since).as_secs_f64())
    }

    /// What a chunk takes from it.
    pub(super) fn took(&self) -> Duration {
        self.took.unwrap_or(FIRST_GUESS + self.peer.rtt * ROUND_TRIPS)
    }

    /// How long one more chunk would take, about.
    pub(super) fn cost(&self) -> Duration {
        self.took() * (self.outstanding + 1) * (1 + STRIKE_COST * self.peer.strikes.min(8))
    }

    /// A chunk came whole after so long.
    pub(super) fn gave(&mut self, after: Duration) -> i32 {
        let trips = self.peer.rtt * ROUND_TRIPS;
        let step = i32::from(after < QUICK + trips) - i32::from(after > SLOW + trips);
        self.window = self.window.saturating_add_signed(step).clamp(1, WINDOW_MAX);
        self.took = Some(self.took.map_or(after, |took| (took * 3 + after) / 4));
        step
    }
}

/// What a node weighs for a blob; mixed with the index of a chunk, for that chunk.
pub(super) fn weight(digest: &Digest, node: &NodeId) -> u64 {
    let mut hasher = blake3::Hasher::new_keyed(&node.0);
    hasher.update(&digest.to_key());
    let hash = hasher.finalize();
    u64::from_le_bytes(hash.as_bytes()[..8].try_into().expect("8 of 32 bytes"))
}

/// Spreads a number over 64 bits (the finalizer of SplitMix64).
pub(super) fn mix(number: u64) -> u64 {
    let number = (number ^ (number >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let number = (number ^ (number >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    number ^ (number >> 31)
}
