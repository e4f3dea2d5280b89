//! What we need from an object store: put an object once, read ranges of it, list names, remove it. Two implementations stand behind it:
//! [`super::s3`] and [`super::directory`].

use std::fmt;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use futures_util::future::BoxFuture;
use futures_util::stream::{BoxStream, StreamExt};

use crate::config::{ArchiveUrl, ArchiveUrlFault, Prices, Sse, Tier};

use super::Error;
use super::body::Body;
use super::directory::Directory;
use super::encrypted::{Encrypted, Keyring};
use super::front::Front;
use super::ledger::Ledger;
use super::s3::S3;
use super::signed::ReadUrl;
use super::thaw::Seen;

/// An object on its way in.
#[derive(Clone, Debug)]
pub struct Object {
    /// Its key.
    pub key: String,
    /// CRC-64/NVME of its bytes: the bucket refuses others.
    pub crc64: u64,
    /// Its bytes.
    pub body: Body,
}

/// An object in a listing.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Listed {
    /// Its key.
    pub key: String,
    /// Bytes.
    pub size: u64,
    /// Its storage class, where the bucket tells it.
    pub class: Option<String>,
    /// Whether it can be read; of [`Bucket::list_thaws`] only.
    pub seen: Seen,
}

impl Listed {
    /// An object of which nothing else is known.
    pub fn new(key: String, size: u64) -> Self {
        Self { key, size, ..Self::default() }
    }
}

/// One page of a listing, in byte order of keys.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Page {
    /// The objects.
    pub objects: Vec<Listed>,
    /// Whether there is more behind the last.
    pub more: bool,
}

/// Bytes as they come.
pub type Chunks = BoxStream<'static, Result<Bytes, Error>>;

/// An object store. Every request is written into the ledger it was opened with.
pub trait Bucket: Send + Sync + fmt::Debug {
    /// What `Archived` records call it: the same on every node that reaches it.
    fn id(&self) -> &str;
    /// What every key in it begins with; without a slash at its end.
    fn prefix(&self) -> &str;
    /// Largest object that one put can write.
    fn object_size_max(&self) -> u64;
    /// What its requests cost.
    fn prices(&self) -> &Prices;
    /// What the names of packs and checkpoints have to end in, when they are encrypted there.
    fn ending(&self) -> &'static str {
        ""
    }
    /// Whether an object can be read from here, as far as is known: one may be encrypted to others.
    fn reads(&self, _key: &str) -> bool {
        true
    }
    /// Writes an object under a name that is used only for these bytes: putting it again does no harm.
    ///
    /// # Errors
    /// `Checksum` when the bytes are not those that were announced; nothing stands under the name then.
    fn put_once(&self, object: Object) -> BoxFuture<'_, Result<(), Error>>;
    /// Reads bytes of an object, with one request.
    fn get_range<'a>(&'a self, key: &'a str, range: Range<u64>) -> BoxFuture<'a, Result<Chunks, Error>>;
    /// Removes an object; what is not there is removed already.
    fn delete<'a>(&'a self, key: &'a str) -> BoxFuture<'a, Result<(), Error>>;
    /// Lists objects whose key begins with `prefix`, behind `after`.
    fn list<'a>(&'a self, prefix: &'a str, after: Option<&'a str>) -> BoxFuture<'a, Result<Page, Error>>;
    /// The same, with what the bucket says of thawing. Where nothing ever freezes, all can be read.
    fn list_thaws<'a>(&'a self, prefix: &'a str, after: Option<&'a str>) -> BoxFuture<'a, Result<Page, Error>> {
        self.list(prefix, after)
    }
    /// Whether one object can be read, where listings don't tell.
    fn head_thaw<'a>(&'a self, _key: &'a str) -> BoxFuture<'a, Result<Seen, Error>> {
        Box::pin(async { Ok(Seen::Readable) })
    }
    /// Asks an object to thaw, for so many days; `false` when that was asked already, or is not needed.
    fn thaw<'a>(&'a self, _key: &'a str, _days: u32, _tier: Tier) -> BoxFuture<'a, Result<bool, Error>> {
        Box::pin(async { Ok(false) })
    }
}

/// How to speak to S3 servers, and what is encrypted on the way.
#[derive(Clone, Debug)]
pub struct S3Settings {
    /// To whom packs are encrypted, and as whom they are read.
    pub keyring: Arc<Keyring>,
    /// Where packs are read, when that is not the bucket itself.
    pub read_url: Option<ReadUrl>,
    /// A server that is not AWS.
    pub endpoint: Option<String>,
    /// The bucket's region.
    pub region: String,
    /// The bucket's name stands in the path and not in the host.
    pub path_style: bool,
    /// Larger objects go in parts.
    pub multipart_above: u64,
    /// How the bucket encrypts what it stores.
    pub sse: Sse,
    /// By which key of its key service; its own when there is none.
    pub sse_kms_key: Option<String>,
    /// What it costs.
    pub prices: Prices,
}

/// Opens the bucket of an address; sends no request.
///
/// # Errors
/// A folder that can't be made, an endpoint that is not safe.
pub async fn open(url: &ArchiveUrl, settings: &S3Settings, ledger: &Ledger) -> Result<Arc<dyn Bucket>, Error> {
    let inner: Arc<dyn Bucket> = match url {
        ArchiveUrl::Directory(path) => Arc::new(Directory::open(path, ledger.clone()).await?),
        ArchiveUrl::S3 { bucket, prefix } => {
            let s3 = Arc::new(S3::new(bucket, prefix, settings, ledger.clone())?);
            match &settings.read_url {
                Some(url) => Arc::new(Front::new(s3.clone(), url, s3.clock(), ledger.clone())?),
                None => s3,
            }
        }
    };
    Ok(Arc::new(Encrypted::new(inner, settings.keyring.clone())))
}

/// Reads the address of a bucket, as people write it.
///
/// # Errors
/// `Url`.
pub fn parse_url(url: &str) -> Result<ArchiveUrl, Error> {
    url.parse().map_err(|fault: ArchiveUrlFault| Error::Url { url: url.to_owned(), why: fault.to_string() })
}

/// Writes an address as [`parse_url`] reads it.
pub fn display_url(url: &ArchiveUrl) -> String {
    match url {
        ArchiveUrl::Directory(path) => ArchiveUrl::Directory(absolute(path)).to_string(),
        bucket => bucket.to_string(),
    }
}

/// Reads `range` into memory; the caller has checked that it is small enough.
pub async fn get_whole(bucket: &dyn Bucket, key: &str, range: Range<u64>) -> Result<Bytes, Error> {
    let expected = range.end - range.start;
    let mut chunks = bucket.get_range(key, range).await?;
    let mut bytes = BytesMut::new();
    while let Some(chunk) = chunks.next().await {
        bytes.extend_from_slice(&chunk?);
        if bytes.len() as u64 > expected {
            break;
        }
    }
    if bytes.len() as u64 != expected {
        let detail = format!("{} bytes came, {expected} were asked for", bytes.len());
        return Err(Error::Bucket { doing: "get", key: key.to_owned(), bucket: bucket.id().to_owned(), detail });
    }
    Ok(bytes.freeze())
}

fn absolute(path: &Path) -> PathBuf {
    std::path::absolute(path).unwrap_or_else(|_| path.to_owned())
}
