//! What two nodes, or a node and a bucket years later, agree on.
//!
//! No tokio, no sockets, no files and no clock: everything here is a value or a
//! function of values, so that it can be tested by seeds and read on its own.
//!
//! - **Content** has a [`digest::Digest`] (its identity, from the OCI specification) and a
//!   [`digest::ChunkList`] (BLAKE3, checks each MiB while it travels between nodes).
//! - **Metadata** is [`record::Record`]s: a key, a value or a tombstone, and the
//!   [`stamp::Stamp`] that decides which of two writings stands.
//! - **What was seen** is a [`vector::VersionVector`]: how far each origin's numbered
//!   records are known.
//!
//! # Between nodes
//!
//! One QUIC connection per pair of nodes, ALPN [`version::ALPN`]. Each stream begins with one
//! [`message::Request`]; what follows is named there. All messages travel in frames:
//!
//! ```text
//!  0        2            6                6+length
//!  +--------+------------+----------------+
//!  | kind   | length     | body           |      kind u16, length u32, little-endian
//!  +--------+------------+----------------+      length <= frame::LENGTH_MAX, checked before reading
//! ```
//!
//! Who is alive is told in datagrams beside the streams: [`swim`].
//!
//! The body is what [`codec`] makes of the message. Blob bytes follow a frame raw and are never encoded.
//!
//! # In the bucket
//!
//! [`pack`] has the format of what is archived: a tar that is also an OCI image layout. [`checkpoint`] is the state that all packs add up to.

pub mod access;
pub mod checkpoint;
pub mod chunks;
pub mod codec;
pub mod digest;
pub mod frame;
pub mod keys;
pub mod merge;
pub mod message;
pub mod name;
pub mod opening;
pub mod pack;
mod raw;
pub mod record;
pub mod refusal;
pub mod stamp;
pub mod starts;
pub mod state;
pub mod swim;
pub mod vector;
pub mod version;
