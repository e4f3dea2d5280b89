//! What can go wrong with other nodes.

/// A failure with a peer.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The store refused.
    #[error(transparent)]
    Store(#[from] crate::store::Error),
}
