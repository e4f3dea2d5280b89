//! What can be wrong with certificates, and how to mend it.

use std::io;
use std::path::{Path, PathBuf};

/// Why certificates can't be used.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A file can't be read.
    #[error("{doing} {}: {source}; it is named in [tls]", .path.display())]
    Read {
        /// A verb phrase.
        doing: &'static str,
        /// The file.
        path: PathBuf,
        /// The system's words.
        source: io::Error,
    },
    /// A file is not what it should be.
    #[error("{doing} {}: {why}", .path.display())]
    Content {
        /// A verb phrase.
        doing: &'static str,
        /// The file.
        path: PathBuf,
        /// What is wrong, and what to do.
        why: String,
    },
    /// What was read can't be made into a TLS server.
    #[error("put certificate and key to use: {why}")]
    Unusable {
        /// The TLS library's words.
        why: String,
    },
    /// A certificate could not be had from an authority.
    #[error("{doing}: {why}")]
    Acme {
        /// A verb phrase.
        doing: &'static str,
        /// What happened.
        why: String,
    },
}

impl Error {
    pub(super) fn content(doing: &'static str, path: &Path, why: impl ToString) -> Self {
        Self::Content { doing, path: path.to_owned(), why: why.to_string() }
    }

    pub(super) fn unusable(why: impl ToString) -> Self {
        Self::Unusable { why: why.to_string() }
    }

    pub(super) fn panicked(error: tokio::task::JoinError) -> Self {
        Self::unusable(error)
    }
}
