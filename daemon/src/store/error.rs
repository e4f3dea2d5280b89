//! What can go wrong on this disk.

use std::io;
use std::path::PathBuf;

use larder_protocol::digest::Digest;
use larder_protocol::name::Tag;

use crate::glob::Pattern;

/// What the store's calls give back.
pub type Result<T> = std::result::Result<T, Error>;

/// A failure of the store. Facts, not sentences: the front door chooses the words for clients.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The operating system refused something.
    #[error("{doing} {}: {source}", path.display())]
    Io {
        /// A verb phrase.
        doing: &'static str,
        /// The file or folder.
        path: PathBuf,
        /// Its words.
        source: io::Error,
    },
    /// The index (RocksDB) refused something.
    #[error("{doing} in the index: {source}")]
    Index {
        /// A verb phrase.
        doing: &'static str,
        /// Its words.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// A row or a file of ours is not what was written.
    #[error("{what} is damaged: {detail}")]
    Damaged {
        /// Which.
        what: String,
        /// How it shows.
        detail: String,
    },
    /// Another daemon has the folder.
    #[error("another larder is running on {}; stop it, or choose another --data-dir", path.display())]
    Locked {
        /// The folder.
        path: PathBuf,
    },
    /// The folder is not safe to keep data in.
    #[error("data folder {} {why}; {mend}", path.display())]
    Unsafe {
        /// The folder.
        path: PathBuf,
        /// What is wrong.
        why: String,
        /// What to do.
        mend: String,
    },
    /// No such session, or not of this repository.
    #[error("no such upload session")]
    UploadUnknown,
    /// Another request is appending to the session.
    #[error("another request is using this upload session")]
    UploadBusy,
    /// As many sessions as are allowed.
    #[error("{limit} upload sessions are open, as many as {setting} allows; finish or cancel one, or wait until one expires")]
    TooManyUploads {
        /// How many may be open.
        limit: usize,
        /// The setting that says so.
        setting: &'static str,
    },
    /// More bytes than allowed, or than were announced.
    #[error("more than {limit} bytes")]
    TooLarge {
        /// How many may come.
        limit: u64,
    },
    /// The bytes are not what the digest says.
    #[error("content has digest {actual}, not {expected}")]
    DigestMismatch {
        /// What was asked for.
        expected: Digest,
        /// What came.
        actual: Digest,
    },
    /// A manifest that is none.
    #[error("{0}")]
    InvalidManifest(#[from] InvalidManifest),
    /// A manifest names what its repository lacks.
    #[error("{} of the blobs and manifests it names are not in this repository", .0.len())]
    Missing(Vec<Digest>),
    /// A push was to replace something else than what stands.
    #[error("{name} is {} now, which is not what this push is to replace: look at it again", .standing.map_or("absent".to_owned(), |digest| digest.to_string()))]
    Changed {
        /// The tag or digest.
        name: String,
        /// What it is now.
        standing: Option<Digest>,
    },
    /// A push was to let a tag name something else, without the right to.
    #[error("the tag {} names another image, and letting it name this one takes the right to overwrite", .tag.as_str())]
    Taken {
        /// The tag.
        tag: Tag,
    },
    /// A tag that keeps the manifest it was first given.
    #[error("tag {tag} is immutable here (registry.immutable_tags has {pattern}): push under another tag")]
    Immutable {
        /// The tag.
        tag: Tag,
        /// The setting's entry that says so.
        pattern: Pattern,
    },
    /// The disk has no room for it, as far as pushes may take any.
    #[error("no room on the disk: {need} bytes are needed and {have} can be had")]
    Full {
        /// Bytes that were wanted.
        need: u64,
        /// Bytes that could be had.
        have: u64,
    },
    /// The node may read and not write.
    #[error(
        "this node is a reader: what it writes counts nowhere; push and delete on a writer (`larder peers` says who is one), or make this node one there: `larder peers role ID writer`"
    )]
    Reader,
    /// A blob that was on its way will not come.
    #[error("the blob's source ended before the blob did")]
    Abandoned,
    /// The store is closed.
    #[error("the store is closed: the node is stopping")]
    Closed,
}

/// Why bytes are no manifest.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum InvalidManifest {
    /// Not JSON as a manifest has it.
    #[error("not a manifest: {0}")]
    Json(String),
    /// The body names another media type than the Content-Type.
    #[error("the body says mediaType {body:?}, the request says Content-Type {header:?}")]
    MediaType {
        /// In the body.
        body: String,
        /// In the request.
        header: String,
    },
    /// Valid as two kinds at once.
    #[error("a manifest has either `manifests` or `config` and `layers`, not both")]
    Ambiguous,
    /// More than is allowed.
    #[error("{what}: more than {max}")]
    TooMany {
        /// What there is too much of.
        what: &'static str,
        /// How much may be.
        max: usize,
    },
}

impl Error {
    /// Makes an `Io` failure of what the operating system said.
    pub(super) fn io(doing: &'static str, path: &std::path::Path) -> impl FnOnce(io::Error) -> Self {
        let path = path.to_owned();
        move |source| Error::Io { doing, path, source }
    }

    /// Makes an `Index` failure of what the index said.
    pub(super) fn index<E: std::error::Error + Send + Sync + 'static>(doing: &'static str) -> impl FnOnce(E) -> Self {
        move |source| Error::Index { doing, source: Box::new(source) }
    }

    /// Whether the same call may go well later.
    pub fn is_retryable(&self) -> bool {
        matches!(
            self,
            Error::Io { .. }
                | Error::Index { .. }
                | Error::Full { .. }
                | Error::UploadBusy
                | Error::TooManyUploads { .. }
                | Error::Abandoned
        )
    }

    /// Whether the disk is full.
    pub fn is_full(&self) -> bool {
        match self {
            Error::Full { .. } => true,
            Error::Io { source, .. } => matches!(source.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded),
            // The index has no kind for it that its binding shows; these are its words and the system's.
            Error::Index { source, .. } => {
                ["No space left", "NoSpace", "space limit"].iter().any(|words| source.to_string().contains(words))
            }
            _ => false,
        }
    }
}
