//! What can go wrong with the bucket.

use std::io;
use std::path::PathBuf;
use std::time::Duration;

use larder_protocol::checkpoint::InvalidCheckpoint;
use larder_protocol::pack::InvalidPack;

use crate::age::Invalid;

use super::tail::Gap;
use super::trust::Stranger;

/// A failure of the archive.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The store refused.
    #[error(transparent)]
    Store(Box<crate::store::Error>),
    /// This node has no bucket.
    #[error("the archive is switched off on this node; set archive.url")]
    Off,
    /// Not the address of a bucket.
    #[error("bucket {url:?}: {why}")]
    Url {
        /// What was given.
        url: String,
        /// What is wrong with it, and how it should look.
        why: String,
    },
    /// Plain HTTP to another host.
    #[error("archive.endpoint {endpoint}: {why}; use an https:// endpoint")]
    Endpoint {
        /// What was given.
        endpoint: String,
        /// What is wrong with it.
        why: &'static str,
    },
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
    /// The bucket refused something, or could not be reached.
    #[error("{doing} {key} in {bucket}: {detail}")]
    Bucket {
        /// A verb phrase.
        doing: &'static str,
        /// The object's key, or a prefix of keys.
        key: String,
        /// The bucket's id.
        bucket: String,
        /// Its words.
        detail: String,
    },
    /// There is no such object.
    #[error("get {key} in {bucket}: there is no such object")]
    NoObject {
        /// The object's key.
        key: String,
        /// The bucket's id.
        bucket: String,
    },
    /// It must thaw before it can be read.
    #[error(
        "get {key} in {bucket}: it is in a storage class that must thaw before it can be read; `larder archive thaw` says what that takes, and asks for it"
    )]
    Frozen {
        /// The object's key.
        key: String,
        /// The bucket's id.
        bucket: String,
        /// How long until then, nearly always, where it was asked for.
        ready_in: Option<Duration>,
    },
    /// No class of what is to thaw has this tier.
    #[error("thaw as {tier}: there is no such tier for what is frozen; it has {known}")]
    Tier {
        /// What was wished.
        tier: &'static str,
        /// What there is.
        known: String,
    },
    /// A bucket that was known to hold this cluster's packs does not say so any more.
    #[error(
        "{bucket} was emptied or replaced: its cluster object is gone; nothing is archived until it is back. If it is to be filled anew, run \
         `larder archive start-over`"
    )]
    Replaced {
        /// The bucket's id.
        bucket: String,
    },
    /// Another cluster writes there.
    #[error("{bucket} belongs to cluster {cluster}; nothing is archived there. Give each cluster a prefix of its own in archive.url")]
    OtherCluster {
        /// The bucket's id.
        bucket: String,
        /// The cluster that it names.
        cluster: String,
    },
    /// A checkpoint that can't be used.
    #[error("read checkpoint {key}: {source}")]
    Checkpoint {
        /// The object's key.
        key: String,
        /// What is wrong with it.
        source: Box<InvalidCheckpoint>,
    },
    /// Packs are missing.
    #[error(
        "restore {bucket}: packs are missing, and with them what was written under these numbers: {}. Bring the objects back if you can; \
         or restore what there is with --allow-gaps",
        .gaps.iter().map(|gap| format!("{} to {} of node {} (life {})", gap.after + 1, gap.upto, gap.node, gap.incarnation)).collect::<Vec<_>>().join(", ")
    )]
    Gaps {
        /// The bucket's id.
        bucket: String,
        /// The numbers.
        gaps: Vec<Gap>,
    },
    /// Somebody wrote there whom no member names.
    #[error(
        "restore {bucket}: packs are there of nodes that no member of the cluster names: {}. If they are yours (a node that was restored here before is \
         such a one), say --trust ID for each; if not, restore without them by --leave-strangers",
        .strangers.iter().map(|stranger| format!("{} ({} packs)", stranger.node, stranger.packs)).collect::<Vec<_>>().join(", ")
    )]
    Strangers {
        /// The bucket's id.
        bucket: String,
        /// Who they are.
        strangers: Vec<Stranger>,
    },
    /// The mark is not the one that was there.
    #[error(
        "restore {bucket}: its cluster object names node {founder} as the first, and packs say that it named node {other}: somebody has replaced it. \
         Say whom to believe by --trust ID"
    )]
    Founders {
        /// The bucket's id.
        bucket: String,
        /// Whom it names now.
        founder: String,
        /// Whom it named.
        other: String,
    },
    /// Nothing can be compacted here, or not now.
    #[error("compact the archive: {why}")]
    NoCompaction {
        /// Why, and what to do.
        why: &'static str,
    },
    /// The bytes that were sent are not those whose checksum was announced.
    #[error("put {key}: the bytes of its blobs are not what they were when they were pushed: {detail}")]
    Checksum {
        /// The object's key.
        key: String,
        /// Who noticed, and how.
        detail: String,
    },
    /// A pack that can't be used.
    #[error("read pack {key}: {source}")]
    Pack {
        /// The object's key.
        key: String,
        /// What is wrong with it.
        source: Box<InvalidPack>,
    },
    /// A restore needs an empty node.
    #[error("restore {url}: this node has content already; restore into an empty --data-dir")]
    NotEmpty {
        /// What was to be restored.
        url: String,
    },
    /// Nothing to restore.
    #[error("restore {url}: no pack that can be read under {prefix} ({skipped} are there); check the address")]
    NoPacks {
        /// What was to be restored.
        url: String,
        /// Where packs should be.
        prefix: String,
        /// How many objects could not be read.
        skipped: usize,
    },
    /// More than one cluster writes there.
    #[error("restore {url}: packs of more than one cluster are there ({}); give each cluster a prefix of its own", .clusters.join(", "))]
    Clusters {
        /// What was to be restored.
        url: String,
        /// Their ids, in hex.
        clusters: Vec<String>,
    },
    /// Something that was asked for is not there.
    #[error("{image}: {why}")]
    Image {
        /// As it was asked for, or which part of it.
        image: String,
        /// What is wrong with it.
        why: String,
    },
    /// More than one pack holds.
    #[error("{count} {what} and more, a pack holds at most {max}; export fewer images at a time")]
    TooMuch {
        /// Of what.
        what: &'static str,
        /// How many there are, or how many there were when it was given up.
        count: usize,
        /// How many there may be.
        max: usize,
    },
    /// An identity, or the file that has it.
    #[error("{0}")]
    Identity(String),
    /// The private key of `archive.read_url_key_file`.
    #[error("sign what archive.read_url is asked for: {0}")]
    SigningKey(String),
    /// An object that is encrypted, and not for this node.
    #[error("read {key}: it is encrypted, {why}; name a file with the identity in archive.identity_file, or give it by --identity FILE")]
    Locked {
        /// The object's key, or a file.
        key: String,
        /// What there is instead.
        why: &'static str,
    },
    /// An object whose encryption is not as it was written.
    #[error("read {key}: {source}")]
    Envelope {
        /// The object's key, or a file.
        key: String,
        /// What is wrong with it.
        source: Invalid,
    },
    /// A file that can't be taken in.
    #[error("import: {why}")]
    Import {
        /// What is wrong with it, and what to do.
        why: String,
    },
}

impl From<crate::store::Error> for Error {
    fn from(source: crate::store::Error) -> Self {
        Error::Store(Box::new(source))
    }
}
