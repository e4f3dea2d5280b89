//! What can go wrong with the bucket.

/// A failure of the archive.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The store refused.
    #[error(transparent)]
    Store(#[from] crate::store::Error),
}
