//! What a node may answer instead, as numbers whose meaning never changes.

use serde::{Deserialize, Serialize};

/// A refusal; numbers that a later program adds are read as they are and count as `UNKNOWN`'s kin.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Refusal(pub u16);

impl Refusal {
    /// The request was not understood.
    pub const UNKNOWN: Refusal = Refusal(1);
    /// The node belongs to another cluster.
    pub const OTHER_CLUSTER: Refusal = Refusal(2);
    /// No protocol version in common.
    pub const VERSION: Refusal = Refusal(3);
    /// The join token is not known: wrong, used, or withdrawn.
    pub const TOKEN_UNKNOWN: Refusal = Refusal(4);
    /// The join token's time is over.
    pub const TOKEN_EXPIRED: Refusal = Refusal(5);
    /// The blob is not here, or no longer.
    pub const NOT_HERE: Refusal = Refusal(6);
    /// Too much was asked for at once.
    pub const TOO_MUCH: Refusal = Refusal(7);
    /// This node's disk refused; another node may do better.
    pub const FAILED: Refusal = Refusal(8);

    /// What it means, for people.
    pub fn meaning(self) -> &'static str {
        match self {
            Refusal::UNKNOWN => "it does not understand the request",
            Refusal::OTHER_CLUSTER => "it belongs to another cluster",
            Refusal::VERSION => "it speaks no protocol version that this node speaks; upgrade the older of the two",
            Refusal::TOKEN_UNKNOWN => "it does not know the token: it was used already, or never issued; make another with `larder token`",
            Refusal::TOKEN_EXPIRED => "the token has expired; make another with `larder token`",
            Refusal::NOT_HERE => "it does not have the blob",
            Refusal::TOO_MUCH => "too much was asked for at once",
            Refusal::FAILED => "its disk failed",
            _ => "for a reason of a later version",
        }
    }
}
