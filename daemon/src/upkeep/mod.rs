//! Keeping the house: garbage, retention, room on the disk, damage; while everything goes on.
//!
//! Each part is a plan and its deeds: [`retention`] decides which tags go, [`clock`] how old something is in time that counts, and
//! [`gc`] goes through the store in small parts and does it. Nothing here stops a push or a pull, and nothing here needs a lock
//! across two steps: what is taken away is named with the stamp that was seen, and stays when it changed meanwhile (`store::garbage`).
//!
//! What this room needs to know of other nodes it asks of [`Surroundings`], which `node` implements. Any node may do any of
//! this; to spare the fleet the same deed by everybody, the node that comes first for a digest or a repository does it.
//!
//! [`evict`] keeps the disk below its marks; [`scrub`] rereads what nobody reads.
//!
//! Three core tasks, `upkeep`, `eviction` and `scrub`. A crash leaves nothing to mend: a round that was cut short begins anew.

use larder_protocol::digest::Digest;

mod clock;
mod evict;
mod gc;
mod retention;
mod scrub;

pub use evict::{Elsewhere, Evictor, Word};
pub use gc::{Gc, Report};
pub use scrub::{Scrub, Scrubbed};

/// What upkeep needs to know of other nodes.
pub trait Surroundings: Send + Sync + 'static {
    /// The members whose pushes may be unknown here, as people call them: out of reach, or not heard out yet.
    fn unheard(&self) -> Vec<String>;
    /// Whether this node is the first of those in reach for a digest.
    fn is_first_for(&self, digest: &Digest) -> bool;
}
