//! The configuration: its defaults and its checks; parsed once into types that cannot be wrong.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

/// Everything that can be set. Field names are the keys of `larder.toml`.
#[derive(Clone, Debug)]
pub struct Config {
    /// Where everything is kept.
    pub data_dir: PathBuf,
    /// What this node is called, and where it stands.
    pub node: Node,
    /// The front door.
    pub http: Http,
    /// The disk.
    pub store: Store,
    /// Limits of the registry.
    pub registry: Registry,
    /// Other nodes.
    pub peers: Peers,
    /// The bucket.
    pub archive: Archive,
    /// Logs.
    pub log: Log,
}

/// `[node]`
#[derive(Clone, Debug)]
pub struct Node {
    /// What people call it; the host's name by default.
    pub name: String,
    /// Copies are spread over zones.
    pub zone: String,
}

/// `[http]`
#[derive(Clone, Debug)]
pub struct Http {
    /// TCP address of the registry.
    pub listen: SocketAddr,
    /// Plain HTTP off loopback was asked for.
    pub insecure: bool,
    /// Location headers start with it, when it is set; without a slash at its end.
    pub public_url: Option<String>,
    /// Most connections at a time.
    pub connections_max: usize,
    /// A request's head must be here by then.
    pub header_timeout: Duration,
    /// A body that makes no progress for so long is given up.
    pub idle_timeout: Duration,
    /// How long requests may go on after a stop was asked for.
    pub shutdown_grace: Duration,
}

/// When a commit counts as done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Durability {
    /// When it is on the disk: file, folder and index are synced.
    Strict,
    /// When the kernel has it: a power cut may take the last seconds.
    Relaxed,
}

/// `[store]`
#[derive(Clone, Debug)]
pub struct Store {
    /// When a commit counts as done.
    pub durability: Durability,
}

/// `[registry]`
#[derive(Clone, Debug)]
pub struct Registry {
    /// Largest manifest in bytes.
    pub manifest_size_max: u64,
    /// Largest blob in bytes.
    pub blob_size_max: u64,
    /// Most upload sessions at a time.
    pub uploads_max: usize,
    /// Sessions without progress for so long are dropped.
    pub upload_age_max: Duration,
}

/// `[peers]`
#[derive(Clone, Debug)]
pub struct Peers {
    /// UDP address for other nodes.
    pub listen: SocketAddr,
    /// `host:port` that other nodes dial; the listen address by default.
    pub advertise: Vec<String>,
    /// Nodes that keep a durable copy of each blob.
    pub replicas: usize,
    /// Stamps further ahead than this are refused.
    pub max_clock_drift: Duration,
}

/// Where packs go.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ArchiveUrl {
    /// A folder on this host.
    Directory(PathBuf),
    /// A bucket, and the prefix of every key in it (no slash at either end; may be empty).
    S3 {
        /// The bucket's name.
        bucket: String,
        /// The prefix.
        prefix: String,
    },
}

/// `[archive]`
#[derive(Clone, Debug)]
pub struct Archive {
    /// Where packs go; `None` switches the archive off on this node.
    pub url: Option<ArchiveUrl>,
    /// An S3 server that is not AWS.
    pub endpoint: Option<String>,
    /// The bucket's region.
    pub region: String,
    /// The bucket's name stands in the path and not in the host.
    pub path_style: bool,
    /// A pack is sealed when its oldest item has waited so long.
    pub max_delay: Duration,
    /// A pack is sealed when so many bytes wait.
    pub pack_size: u64,
}

/// How a log line looks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LogFormat {
    /// For people.
    Text,
    /// For machines: one JSON object a line.
    Json,
}

/// `[log]`
#[derive(Clone, Debug)]
pub struct Log {
    /// Directives of tracing's env-filter.
    pub level: String,
    /// How a line looks.
    pub format: LogFormat,
}
