//! What can be wrong with a configuration, and how to mend it.

use std::fmt;
use std::io;
use std::path::PathBuf;

use super::ArchiveUrlFault;
use crate::age::InvalidRecipient;
use crate::glob::InvalidGlob;

/// Where a value stands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Place {
    /// In a file; lines are counted from 1.
    File {
        /// The file, as it was named.
        path: PathBuf,
        /// The line.
        line: usize,
    },
    /// In a variable of the environment.
    Variable(String),
    /// In a flag of the command line.
    Flag(&'static str),
    /// Nowhere: it is the default.
    Default,
}

impl fmt::Display for Place {
    fn fmt(&self, to: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::File { path, line } => write!(to, "{}:{line}", path.display()),
            Self::Variable(name) => write!(to, "environment variable {name}"),
            Self::Flag(name) => write!(to, "flag {name}"),
            Self::Default => write!(to, "default"),
        }
    }
}

/// Why the configuration can't be used. Its text is one line for people: where, what, what is wrong, what to write.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The file can't be read.
    #[error("read the configuration {}: {source}", .path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The file is far longer than any configuration.
    #[error("read the configuration {}: it has more than {most} bytes; is it the right file?", .path.display())]
    Long {
        /// The file.
        path: PathBuf,
        /// The limit.
        most: u64,
    },
    /// The file is no TOML.
    #[error("{place}: {what}")]
    Syntax {
        /// Where.
        place: Place,
        /// In the parser's words, on one line.
        what: String,
    },
    /// There is no such key, section or variable.
    #[error("{place}: {}{}", unknown(.place, .name), mend(.near.as_deref()))]
    Unknown {
        /// Where.
        place: Place,
        /// `section.key`, `[section]`, or the variable.
        name: String,
        /// What was probably meant.
        near: Option<String>,
    },
    /// A value can't be used.
    #[error("{place}: {key} = {value}: {fault}")]
    Value {
        /// Where.
        place: Place,
        /// `section.key`
        key: &'static str,
        /// The value as it was written, shortened.
        value: String,
        /// What is wrong.
        fault: Fault,
    },
}

/// What is wrong with a value.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Fault {
    /// It is of another type.
    #[error("this has to be {wanted}")]
    Type {
        /// The type, with an example.
        wanted: &'static str,
    },
    /// No size.
    #[error("this is no size; write a number and a unit: 512MiB, 4GiB")]
    Size,
    /// No time.
    #[error("this is no time; write whole numbers with units ms, s, m, h, d: 30s, 15m, 1h30m")]
    Duration,
    /// Below or above what works.
    #[error("this has to be from {least} to {most}")]
    Bounds {
        /// The least that works.
        least: String,
        /// The most that works.
        most: String,
    },
    /// No socket address.
    #[error("this is no address with a port; write numbers, not a name: 127.0.0.1:5000, [::1]:5000")]
    Address,
    /// A port that nobody could be told.
    #[error("with port 0 nobody would know where to connect; choose a port, such as 5000")]
    PortZero,
    /// No `host:port`.
    #[error("other nodes need a host and a port to dial: build-07.example.org:5000, 10.0.0.7:5000")]
    HostPort,
    /// None of the words that are known.
    #[error("this has to be {}", choices(.0))]
    Choice(&'static [&'static str]),
    /// No write concern.
    #[error("this has to be \"local\", \"archived\", or \"peers:N\" for N other nodes, from peers:1 to peers:9")]
    Ack,
    /// Pushes would wait for an archive that is switched off.
    #[error("the archive is switched off on this node (archive.url = \"none\"); name a bucket there, or wait for other nodes: \"peers:1\"")]
    AckWithoutArchive,
    /// No name.
    #[error("a name has 1 to 64 letters, digits, dots, dashes and underscores")]
    Name,
    /// No pattern.
    #[error("{0}")]
    Glob(InvalidGlob),
    /// Nothing.
    #[error("this can't be empty")]
    Empty,
    /// Somebody whose word is taken, over a line on which anybody may change it.
    #[error("whoever is on the way could change what this says; it has to be https://, or an address of this host")]
    PlainIssuer,
    /// A token server of which something is missing.
    #[error("a token server needs all of realm, service, issuer and jwks; without one of them its tokens could not be told from others")]
    TokenServer,
    /// No URL.
    #[error("this is no URL; write https://host or http://host:port, without ? and #")]
    Url,
    /// An URL with a user in it.
    #[error("credentials don't belong in a URL, where logs would show them; give them as AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY")]
    Credentials,
    /// No place for packs.
    #[error("{0}; \"none\" switches the archive off on this node")]
    ArchiveUrl(#[from] ArchiveUrlFault),
    /// A path that only a shell understands.
    #[error("~ is understood by shells only; write the whole path")]
    Home,
    /// Eviction would end before it begins.
    #[error("eviction begins at store.high_water ({high}) and ends at store.low_water, which has to be lower")]
    WaterMarks {
        /// Where it begins.
        high: u64,
    },
    /// A word that would silence the logs.
    #[error("{0:?} is no level; use off, error, warn, info, debug or trace, or target=level: info,larder::peers=debug")]
    Level(String),
    /// Plain HTTP that others can reach.
    #[error(
        "other hosts can reach this address, and plain HTTP lets everybody on the way read and change images; set http.insecure = true if \
         that is wanted, give it a certificate in [tls] or [acme], or listen on 127.0.0.1 behind a TLS proxy"
    )]
    PlainHttp,
    /// TLS was asked for, and none.
    #[error("the registry has a certificate and speaks TLS only, so that nothing is insecure; take this out, or the certificate")]
    InsecureTls,
    /// One half of two.
    #[error("this is of no use without {other}; set that too")]
    Lonely {
        /// The other half.
        other: &'static str,
    },
    /// A certificate in a file, and one that an authority gives.
    #[error("a certificate is named in tls.certificate as well; a node has one or the other")]
    TwoCertificates,
    /// An account with an authority needs a person's consent.
    #[error("the authority in acme.directory wants its terms of service agreed to; read them, and set acme.terms_agreed = true")]
    Terms,
    /// Certificates of clients over plain HTTP.
    #[error("clients can show certificates only over TLS; set tls.certificate and tls.key, or acme.domains")]
    ClientsWithoutTls,
    /// An address that says the opposite.
    #[error("this begins with http:// and the registry speaks TLS; write https://")]
    PlainPublicUrl,
    /// No name of a host.
    #[error("an authority signs whole names of hosts, such as registry.example.org; no addresses, no stars")]
    Domain,
    /// No address of mail.
    #[error("this is no mail address")]
    Email,
    /// No address of an authority.
    #[error("an authority is reached under https://")]
    Directory,
    /// No path.
    #[error("a path has no control characters")]
    Path,
    /// An address that can be listened on, but not dialed.
    #[error("other nodes can't dial this address; say in peers.advertise what they can dial: [\"build-07.example.org:5000\"]")]
    Undialable,
    /// No storage class that is known here.
    #[error(
        "this has to be one of {0}; another vendor's class is written with what has to be known of it, as instant:COLDLINE, or frozen:ColdArchive where objects must be thawed before they can be read"
    )]
    StorageClass(String),
    /// Packs that could not be read.
    #[error(
        "the packs with the metadata must be readable at any time, to restore from; set archive.bulk_class to keep layers in this class"
    )]
    FrozenClass,
    /// A folder has one class.
    #[error("a folder has no storage classes; name a bucket in archive.url, or leave this out")]
    ClassOfFolder,
    /// Content over a line on which anybody may read it.
    #[error("whoever is on the way could read what comes from there; it has to be https://, or an address of this host")]
    PlainReadUrl,
    /// No name of a CDN's key.
    #[error("a public key at CloudFront is named by its id: K2JCJMDEHXQW5F")]
    KeyId,
    /// Nobody to encrypt to.
    #[error("{0}")]
    Recipient(InvalidRecipient),
    /// No name of a key.
    #[error("a key of the key service is named by its id, its ARN or an alias: alias/packs")]
    KmsKey,
    /// An S3 server, but no bucket.
    #[error("this is the server of a bucket, and no bucket is named; set archive.url = \"s3://bucket/prefix\", or leave the endpoint out")]
    NoBucket,
}

fn unknown(place: &Place, name: &str) -> String {
    match place {
        Place::Variable(_) => "there is no such setting".to_owned(),
        _ if name.starts_with('[') => format!("there is no section {name}"),
        _ => format!("there is no key {name}"),
    }
}

fn mend(near: Option<&str>) -> String {
    near.map(|near| format!("; did you mean {near}?")).unwrap_or_else(|| "; take it out".to_owned())
}

fn choices(choices: &[&str]) -> String {
    choices.iter().map(|choice| format!("{choice:?}")).collect::<Vec<_>>().join(" or ")
}
