//! The configuration: its defaults and its checks; parsed once into types that cannot be wrong.
//!
//! A setting has one name, `section.key`, and four places where it can stand. What comes later here goes before what
//! comes earlier: the default, the file (`larder.toml`), the environment (`LARDER_<SECTION>__<KEY>`), a flag.
//! Every place goes through the same table ([`settings`]), so that a value is checked in one way wherever it stands,
//! and also when another place overrules it: a mistake is found when it is made and not on the day the flag is dropped.
//!
//! Nothing is guessed. A name that is not in the table is an error, with the one that was probably meant, because a
//! misspelt key that is ignored leaves its safe-looking line in the file and the default in force. Combinations that
//! cannot work, or that open the registry to a network without being asked to, are errors as well. An [`Error`] says
//! where the value stands (file and line, variable or flag), what it is, what is wrong with it and what to write instead.
//!
//! There are no secrets here: credentials of a bucket come from where its vendor's tools look for them, and a URL that
//! carries any is refused, without repeating it.
//!
//! The file is read with the spans of its keys and values and without derived types: a derived reader names the first
//! unknown field of a section, but can't say which other section has it, and checks a file's text and a variable's text
//! with two different pieces of code.
//!
//! Private files: `settings` (the table), `value` (text to sizes, times, addresses), `layers` (the places and their order),
//! `url` (where packs go), `error`.

use std::ffi::OsString;
use std::fmt;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::age::Recipient;
use crate::glob::Pattern;

mod auth;
mod class;
mod error;
mod layers;
mod prices;
mod records;
mod retention;
mod sealing;
mod settings;
#[cfg(test)]
mod tests;
mod tls;
mod url;
mod value;

pub use auth::{AuditLevel, Auth, KeySource, Oidc, TokenServer, is_trusted_url};
pub use class::{ClassPrices, StorageClass, ThawPrice, Tier};
pub use error::{Error, Fault, Place};
pub use prices::{FOLDER, Prices, S3_STANDARD};
pub use records::Records;
pub use retention::Retention;
pub use sealing::Sse;
pub use tls::{Acme, AcmeChallenge, ClientCertificates, Tls};
pub use url::{ArchiveUrl, ArchiveUrlFault};
pub use value::{duration, is_host_port, size};

/// Where the data folder is when nobody says.
pub const DATA_DIR: &str = "./larder-data";
/// Where the packaged service keeps it.
pub const DATA_DIR_OF_SERVICE: &str = "/var/lib/larder";
/// The port of the registry, and of the peers.
pub const PORT: u16 = 5000;

/// What was said on the command line; each goes before the file and the environment.
#[derive(Clone, Debug, Default)]
pub struct Flags {
    /// `--data-dir`
    pub data_dir: Option<PathBuf>,
    /// `--listen`
    pub listen: Option<String>,
    /// `--peer-listen`
    pub peer_listen: Option<String>,
    /// `--archive`
    pub archive: Option<String>,
}

/// Everything that can be set. Field names are the keys of `larder.toml`.
#[derive(Clone, Debug)]
pub struct Config {
    /// Where everything is kept.
    pub data_dir: PathBuf,
    /// What this node is called, and where it stands.
    pub node: Node,
    /// The front door.
    pub http: Http,
    /// How it proves who it is.
    pub tls: Tls,
    /// Who signs its certificate by itself.
    pub acme: Acme,
    /// The disk.
    pub store: Store,
    /// Limits of the registry.
    pub registry: Registry,
    /// Who is let in.
    pub auth: Auth,
    /// Another server that issues tokens for this registry.
    pub token_server: TokenServer,
    /// Other issuers of identities.
    pub oidc: Vec<Oidc>,
    /// When a push is answered.
    pub push: Push,
    /// What nothing needs any more.
    pub gc: Gc,
    /// Rereading what is kept.
    pub scrub: Scrub,
    /// Which tags go by themselves.
    pub retention: Vec<Retention>,
    /// Other nodes.
    pub peers: Peers,
    /// What nodes tell each other of the metadata.
    pub records: Records,
    /// The bucket.
    pub archive: Archive,
    /// See [`Prices`].
    pub prices: Prices,
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
    /// Most of them from one address.
    pub connections_per_client_max: usize,
    /// Most requests that are under way at a time.
    pub requests_max: usize,
    /// Most of them from one address.
    pub requests_per_client_max: usize,
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
    /// Most bytes that blobs may take; `None`: as many as the disk has room for.
    pub size_max: Option<u64>,
    /// Bytes that stay free; `None`: by the size of the disk.
    pub reserve: Option<u64>,
    /// Percent of the disk, or of `size_max`, above which eviction begins.
    pub high_water: u64,
    /// Percent at which it ends.
    pub low_water: u64,
    /// Tags whose images are never evicted.
    pub pins: Vec<Pattern>,
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
    /// Most of them that one client address began.
    pub uploads_per_client_max: usize,
    /// Sessions without progress for so long are dropped.
    pub upload_age_max: Duration,
    /// Manifests may name what is not there.
    pub sparse_manifests: bool,
    /// Tags that keep the manifest they were first given.
    pub immutable_tags: Vec<Pattern>,
}

/// How safe an image is when the push of its manifest is answered with success.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ack {
    /// It is on this node's disk.
    Local,
    /// So many other nodes have it on theirs too.
    Peers(usize),
    /// It is in the archive.
    Archived,
}

impl fmt::Display for Ack {
    fn fmt(&self, to: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Local => write!(to, "local"),
            Self::Peers(count) => write!(to, "peers:{count}"),
            Self::Archived => write!(to, "archived"),
        }
    }
}

/// `[push]`
#[derive(Clone, Debug)]
pub struct Push {
    /// How safe an image has to be.
    pub ack: Ack,
    /// A push that is not so safe by then fails; what was pushed stays.
    pub ack_timeout: Duration,
}

/// `[gc]`
#[derive(Clone, Debug)]
pub struct Gc {
    /// How often garbage is collected by itself; zero: only when it is asked for.
    pub period: Duration,
    /// A blob that no manifest needs stays this long after a client relied on it.
    pub grace: Duration,
    /// How long the bytes then stay in the trash.
    pub trash: Duration,
}

/// `[scrub]`
#[derive(Clone, Debug)]
pub struct Scrub {
    /// How often everything is read once; zero: only when it is asked for.
    pub cycle: Duration,
    /// Bytes a second.
    pub rate: u64,
}

impl Gc {
    /// A link that a client relies on is written anew when it is older. What is younger than grace and this together was
    /// relied on less than grace ago, as far as anybody knows.
    pub fn renew_after(&self) -> Duration {
        self.grace / 4
    }
}

/// `[peers]`
#[derive(Clone, Debug)]
pub struct Peers {
    /// UDP address for other nodes.
    pub listen: SocketAddr,
    /// `host:port` that other nodes dial. Never empty: the listen address when nothing else was said.
    pub advertise: Vec<String>,
    /// Nodes that keep a durable copy of each blob.
    pub replicas: usize,
    /// The share of a node that is away for longer goes to others, until it returns.
    pub takeover: Duration,
    /// Bytes a second with which a node fetches what became its share.
    pub repair_rate: u64,
    /// Stamps further ahead than this are refused.
    pub max_clock_drift: Duration,
    /// Most bytes of blobs a second to all peers together.
    pub bandwidth: Option<u64>,
    /// The same to those of other zones.
    pub bandwidth_zone: Option<u64>,
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
    /// Larger objects go in parts.
    pub multipart_above: u64,
    /// Where packs are read, when that is not the bucket itself; without a slash at its end.
    pub read_url: Option<String>,
    /// What the CDN there calls the key that signs what it is asked for.
    pub read_url_key_id: Option<String>,
    /// PEM: that private key.
    pub read_url_key_file: Option<PathBuf>,
    /// Who can read what this node archives; nobody in particular when there is none.
    pub recipients: Vec<Recipient>,
    /// The file with the identities by which this node reads what is encrypted.
    pub identity_file: Option<PathBuf>,
    /// How the bucket encrypts what it stores.
    pub sse: Sse,
    /// By which key of its vendor's key service; the bucket's own when there is none.
    pub sse_kms_key: Option<String>,
    /// A checkpoint is written when there are so many packs since the last one.
    pub checkpoint_packs: u64,
    /// Or when the last one is so old.
    pub checkpoint_age: Duration,
    /// How often the bucket's listing is compared with the records; zero: never by itself.
    pub verify_period: Duration,
    /// How often it is looked whether packs that were asked for have thawed.
    pub thaw_poll: Duration,
    /// What packs are put as: never a class that is frozen.
    pub storage_class: StorageClass,
    /// What layers are put as, in packs of their own; none: they lie with everything else.
    pub bulk_class: Option<StorageClass>,
    /// Whether a blob may leave this disk when its only other copy is frozen.
    pub evict_frozen: bool,
    /// Whether this node compacts by itself.
    pub compact: bool,
    /// How long a pack stays in the bucket after compaction has put all that counts of it elsewhere, and how old it must be before that.
    pub compact_wait: Duration,
    /// Most months after which a compaction has saved what it cost.
    pub compact_payback: usize,
    /// Most bytes that a compaction writes anew at a time.
    pub compact_bytes: u64,
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

impl Default for Config {
    /// What `larder serve` runs with when nothing is configured.
    fn default() -> Self {
        let listen = SocketAddr::from((Ipv4Addr::LOCALHOST, PORT));
        let data_dir = PathBuf::from(DATA_DIR);
        let archive = data_dir.join(ARCHIVE_FOLDER);
        Self {
            data_dir,
            node: Node { name: host_name(), zone: "default".to_owned() },
            http: Http {
                listen,
                insecure: false,
                public_url: None,
                connections_max: 4096,
                connections_per_client_max: 1024,
                requests_max: 4096,
                requests_per_client_max: 1024,
                header_timeout: Duration::from_secs(10),
                idle_timeout: Duration::from_secs(60),
                shutdown_grace: Duration::from_secs(30),
            },
            tls: Tls::default(),
            acme: Acme::default(),
            store: Store { durability: Durability::Strict, size_max: None, reserve: None, high_water: 90, low_water: 80, pins: Vec::new() },
            registry: Registry {
                manifest_size_max: 4 * MIB,
                blob_size_max: 64 * 1024 * MIB,
                uploads_max: 1024,
                uploads_per_client_max: 256,
                upload_age_max: DAY,
                sparse_manifests: false,
                immutable_tags: Vec::new(),
            },
            auth: Auth::default(),
            token_server: TokenServer::default(),
            oidc: Vec::new(),
            push: Push { ack: Ack::Local, ack_timeout: Duration::from_secs(30) },
            gc: Gc { period: Duration::from_secs(60 * 60), grace: DAY, trash: DAY },
            scrub: Scrub { cycle: 30 * DAY, rate: 16 * MIB },
            retention: Vec::new(),
            peers: Peers {
                listen,
                advertise: vec![listen.to_string()],
                replicas: 2,
                takeover: Duration::from_secs(10 * 60),
                repair_rate: 64 * MIB,
                max_clock_drift: Duration::from_secs(5 * 60),
                bandwidth: None,
                bandwidth_zone: None,
            },
            records: Records::default(),
            archive: Archive {
                url: Some(ArchiveUrl::Directory(archive)),
                endpoint: None,
                region: "us-east-1".to_owned(),
                path_style: false,
                max_delay: Duration::from_secs(15 * 60),
                pack_size: 512 * MIB,
                multipart_above: 5 * 1024 * MIB,
                read_url: None,
                read_url_key_id: None,
                read_url_key_file: None,
                recipients: Vec::new(),
                identity_file: None,
                sse: Sse::None,
                sse_kms_key: None,
                checkpoint_packs: 500,
                checkpoint_age: Duration::from_secs(7 * 86_400),
                verify_period: Duration::from_secs(86_400),
                thaw_poll: Duration::from_secs(15 * 60),
                storage_class: StorageClass::STANDARD,
                bulk_class: None,
                evict_frozen: false,
                compact: false,
                compact_wait: 7 * DAY,
                compact_payback: 3,
                compact_bytes: 8192 * MIB,
            },
            prices: S3_STANDARD,
            log: Log { level: "info".to_owned(), format: LogFormat::Text },
        }
    }
}

impl Config {
    /// Reads the configuration: `flags` over `environment` over the file over the defaults.
    ///
    /// The file is `path`, or else the one that `LARDER_CONFIG` names, or else none. Of the environment, everything that
    /// does not begin with `LARDER_` is skipped. Reads one file and the host's name; touches nothing.
    ///
    /// # Errors
    /// The first mistake, wherever it stands; see [`Error`].
    pub fn load(path: Option<&Path>, flags: &Flags, environment: impl IntoIterator<Item = (OsString, OsString)>) -> Result<Self, Error> {
        layers::load(path, flags, environment)
    }
}

/// Where the data folder of a running daemon may be, for the commands that talk to it, the likeliest first.
///
/// The one that was said (`flag`, `LARDER_DATA_DIR`, or the `data_dir` of the file that `path` or `LARDER_CONFIG` names) is
/// the only one; when nothing was said, the default and the packaged service's.
///
/// # Errors
/// The file can't be used.
pub fn data_dirs(flag: Option<&Path>, path: Option<&Path>, environment: &[(OsString, OsString)]) -> Result<Vec<PathBuf>, Error> {
    let (folder, file) = layers::folder_and_file(environment.iter().cloned());
    if let Some(folder) = flag.map(Path::to_owned).or(folder) {
        return Ok(vec![folder]);
    }
    if path.is_some() || file.is_some() {
        return Ok(vec![Config::load(path, &Flags::default(), environment.iter().cloned())?.data_dir]);
    }
    Ok(vec![PathBuf::from(DATA_DIR), PathBuf::from(DATA_DIR_OF_SERVICE)])
}

/// The folder of the default bucket, in the data folder.
const ARCHIVE_FOLDER: &str = "archive";
const MIB: u64 = 1024 * 1024;
const DAY: Duration = Duration::from_secs(24 * 60 * 60);

/// The host's name, as far as it can serve as a node's; it is only shown to people.
fn host_name() -> String {
    let name = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    let name = name.trim();
    if value::is_name(name) { name.to_owned() } else { "larder".to_owned() }
}
