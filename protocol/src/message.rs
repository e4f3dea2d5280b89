//! Every message, grouped by the stream that carries it.
//!
//! Each bidirectional stream begins with one [`Request`]. Enums grow at their end only; structs don't change within a
//! [`crate::version`].
//!
//! ```text
//! Hello      -> Answer::Hello                       once per connection, by the side that dialled
//! Join       -> Answer::Joined                      the only stream that a node without membership may open
//! Sync       -> Update... (stays open)              and Seen... the other way
//! WhoHas     -> Answer::Holders
//! ChunkList  -> Answer::ChunkList
//! Read       -> Answer::Read, then `length` raw bytes
//! Follow     -> Answer::Standing... (stays open until it says how it ends)
//! Chunk      -> Answer::Read, then `length` raw bytes; or Answer::Elsewhere
//! Opening    -> Answer::Opening
//! Keep       -> Answer::Holders... (whether all is known, then each blob), now and then, the last when there is no more to come
//! Vouch      -> Answer::Holders
//! Compare, Places, Reconcile                        see `compare`
//! SyncBrief  -> as Sync, or Update::Unlike
//! Describe   -> Answer::Described
//! any        -> Answer::Refused
//! ```

use serde::{Deserialize, Serialize};

use crate::chunks::ChunkBits;
use crate::codec::{self, InvalidBytes};
use crate::digest::Digest;
use crate::frame::{Frame, Kind};
use crate::opening::Opening;
use crate::record::{InvalidRecord, Link, Member, Numbered, RawRecord};
use crate::refusal::Refusal;
use crate::stamp::NodeId;
use crate::state::Sum;
use crate::vector::{Origin, VersionVector};

pub mod compare;

use compare::{Reconcile, Summary};

/// Most digests in one `WhoHas`.
pub const WHO_HAS_MAX: usize = 1000;
/// Most bytes in one `Read`.
pub const READ_MAX: u64 = 16 << 20;

/// Most nodes that an answer names as holders of a chunk.
pub const ELSEWHERE_MAX: usize = 8;

/// What a stream is for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Request {
    /// Who is calling.
    Hello(Hello),
    /// Let me in.
    Join(Join),
    /// What I know: send me what I lack, now and as it is written.
    Sync(VersionVector),
    /// Which of these blobs do you have whole? At most [`WHO_HAS_MAX`].
    WhoHas(Vec<Digest>),
    /// The BLAKE3 chaining values of a blob above one MiB.
    ChunkList(Digest),
    /// Bytes of a blob.
    Read(Read),
    /// I am fetching this blob: what do you have of it, now and as it comes? Who fetches it too may ask the same back.
    Follow(Digest),
    /// One chunk of a blob, or who else has it.
    Chunk(ChunkRead),
    /// The first bytes of a blob and what proves them.
    Opening(Digest),
    /// Know this much and have these blobs whole, so that somebody may rely on it.
    Keep(Keep),
    /// Which of these blobs do you have whole, and are not about to drop? At most [`WHO_HAS_MAX`].
    Vouch(Vec<Digest>),
    /// Version 2: do we hold the same?
    Compare(Summary),
    /// Version 2: the sums of a kind.
    Places(u16),
    /// Version 2: which records differ?
    Reconcile(Reconcile),
    /// Version 2, as `Sync`: what I know has this hash. Two nodes that know the same need not tell each other what.
    SyncBrief([u8; 32]),
    /// Version 2: what is this blob, if you have it whole?
    Describe(Digest),
}

/// The first answer on a stream.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Answer {
    /// Who was called.
    Hello(Hello),
    /// You are a member now.
    Joined(Joined),
    /// For each digest asked for: whether it is here.
    Holders(Vec<bool>),
    /// The chaining values, in order.
    ChunkList(Vec<[u8; 32]>),
    /// So many raw bytes follow.
    Read {
        /// Bytes.
        length: u64,
    },
    /// No.
    Refused(Refusal),
    /// What is here of a blob that is followed.
    Standing(Standing),
    /// These have the chunk, or will soon: ask them. At most [`ELSEWHERE_MAX`].
    Elsewhere(Vec<NodeId>),
    /// The first bytes.
    Opening(Opening),
    /// What is held here.
    Compared(Summary),
    /// The sums, in order of their places.
    Places(Vec<Sum>),
    /// What a blob is.
    Described(Link),
}

/// What follows on a sync stream.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Update {
    /// Some of what you lack.
    Records(Vec<NumberedRecord>),
    /// That was all up to here: this is what you know now.
    Caught(VersionVector),
    /// Version 2: what you know has another hash than what is known here; ask again, in full.
    Unlike,
    /// Version 2: you were away too long: tombstones up to here were purged that you have not seen. What follows, up to the next
    /// `Caught`, is everything there is; what it does not have and its vector covers was deleted (F18).
    Snapshot(VersionVector),
    /// Version 2: these lives of yours, or after `Snapshot` of anyone's, were written by two copies of a data folder, and up to here both are the same (F11). A
    /// list of their starts can't always tell: of two lists the later one stands, and what stood under the numbers may have been deleted and purged.
    Mixed(VersionVector),
}

/// Who a node is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hello {
    /// Its cluster.
    pub cluster: [u8; 16],
    /// Random, anew at each start: tells a restarted node from a second connection.
    pub life: u64,
    /// The program's version, for people.
    pub program: String,
    /// Oldest protocol version it speaks.
    pub oldest: u16,
    /// Newest protocol version it speaks.
    pub newest: u16,
}

/// A stranger's way in.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Join {
    /// Which token.
    pub token: [u8; 8],
    /// Its secret.
    pub secret: [u8; 16],
    /// What the node says of itself.
    pub member: Member,
}

/// A stranger's welcome.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Joined {
    /// The cluster.
    pub cluster: [u8; 16],
    /// The members by then, the new one included: node id and record.
    pub members: Vec<([u8; 32], Member)>,
}

/// A range of a blob: start included.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Read {
    /// The blob.
    pub digest: Digest,
    /// First byte.
    pub offset: u64,
    /// Bytes, at most [`READ_MAX`].
    pub length: u64,
}

/// For whom bytes are; what stands first goes first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum Class {
    /// A client waits.
    Client,
    /// A copy that its owner does not have yet.
    Replication,
    /// A copy that was lost, or moves.
    Repair,
}

/// One chunk of a blob.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ChunkRead {
    /// The blob.
    pub digest: Digest,
    /// From 0.
    pub index: u32,
    /// For whom.
    pub class: Class,
    /// Nobody else gives it to me: don't say who has it, send it.
    pub insist: bool,
}

/// What a node has of a blob. `Nothing` and `Whole` end the stream.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Standing {
    /// Nothing, and nothing is on its way.
    Nothing,
    /// All of it.
    Whole,
    /// Some chunks, and some that are on their way.
    Part {
        /// Here, and checked.
        have: ChunkBits,
        /// Asked for.
        coming: ChunkBits,
    },
    /// What changed since.
    Change {
        /// Here now.
        landed: Vec<u32>,
        /// Asked for now.
        coming: Vec<u32>,
        /// Not asked for any more.
        dropped: Vec<u32>,
    },
}

/// What a node is asked to have, now and not in its own time.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Keep {
    /// What it has to know of records.
    pub vector: VersionVector,
    /// The blobs that it has to have; they are linked by the records. At most [`WHO_HAS_MAX`].
    pub digests: Vec<Digest>,
}

/// A numbered record, as it travels.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NumberedRecord {
    /// Who numbered it.
    pub origin: Origin,
    /// From 1.
    pub sequence: u64,
    /// The record.
    pub record: RawRecord,
}

/// A message that is sent in frames of one kind.
pub trait Message: Serialize + serde::de::DeserializeOwned {
    /// The kind of frame that carries it.
    const KIND: Kind;

    /// The message as a frame.
    fn to_frame(&self) -> Frame {
        Frame { kind: Self::KIND.number(), body: codec::encode(self) }
    }

    /// Reads the message out of a frame.
    ///
    /// # Errors
    /// The frame is of another kind, or damaged.
    fn from_frame(frame: &Frame) -> Result<Self, InvalidMessage> {
        if frame.kind == Self::KIND.number() {
            Ok(codec::decode(&frame.body)?)
        } else {
            Err(InvalidMessage::Kind { expected: Self::KIND.number(), actual: frame.kind })
        }
    }
}

impl Message for Request {
    const KIND: Kind = Kind::Request;
}

impl Message for Answer {
    const KIND: Kind = Kind::Answer;
}

impl Message for Update {
    const KIND: Kind = Kind::Update;
}

/// How far the other side of a sync stream has come.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Seen(pub VersionVector);

impl Message for Seen {
    const KIND: Kind = Kind::Seen;
}

/// Why a frame is not the message that was expected.
#[derive(Debug, thiserror::Error)]
pub enum InvalidMessage {
    /// A frame of another kind.
    #[error("a frame of kind {actual} where kind {expected} was expected")]
    Kind {
        /// What should have come.
        expected: u16,
        /// What came.
        actual: u16,
    },
    /// The body is damaged.
    #[error(transparent)]
    Bytes(#[from] InvalidBytes),
}

impl From<&Numbered> for NumberedRecord {
    fn from(numbered: &Numbered) -> Self {
        Self { origin: numbered.origin, sequence: numbered.sequence, record: numbered.record.to_raw() }
    }
}

impl NumberedRecord {
    /// Understands the record.
    ///
    /// # Errors
    /// As [`RawRecord::parse`].
    pub fn parse(&self) -> Result<Numbered, InvalidRecord> {
        Ok(Numbered { origin: self.origin, sequence: self.sequence, record: self.record.parse()? })
    }
}

#[cfg(test)]
mod tests;
