//! A bucket whose packs and checkpoints are encrypted to `archive.recipients`, seen as one whose are not.
//!
//! ```text
//! pack, checkpoint --put--> seal, by a key of its own --put once--> <key>.age
//! range of content <--open-- chunks of 64 KiB <--one ranged GET-- <key>.age
//! ```
//!
//! Every object is an age file as a whole (see [`crate::age`]), so that `age -d < PACK | tar x` is all it takes without Larder. Sizes and offsets are those of the content, in
//! listings too; a name that ends in [`ENDING`] says that the object is encrypted, so that plain ones can lie beside it. What is not: names of objects,
//! their sizes, and the mark that says whose bucket it is.
//!
//! - **Put once, the same.** The checksum must be known before the first byte is sent, and is that of the encrypted bytes: they are made twice, once for it. The seal of a put that failed is
//!   kept, so what is put again under the same name is the same, byte by byte (F27). It is kept in memory only.
//! - **Read.** An object's key comes with one request for its header, and is then remembered; each range is one request, up to 128 KiB longer than what is wanted.
//! - **Not believed.** What is not as it was written reads as zeros, and is logged; whoever reads checks digests and signatures, which encryption does not replace: everybody may
//!   encrypt to a public key.
//!
//! A node that has recipients and no identity writes, lists and verifies by the listing; it reads nothing back, and evicts nothing because of what it can't read.

use std::collections::{HashMap, HashSet, VecDeque};
use std::fmt;
use std::ops::Range;
use std::sync::{Arc, Mutex, RwLock};

use bytes::Bytes;
use crc_fast::CrcAlgorithm::Crc64Nvme;
use futures_util::future::BoxFuture;
use futures_util::stream::{self, StreamExt};
use tokio::sync::OnceCell;

use crate::age::{self, HEADER_SIZE, Identity, Opened, Opening, Recipient, Seal};
use crate::config::{Prices, Tier};

use super::Error;
use super::bucket::{self, Bucket, Chunks, Listed, Object, Page};
use super::keys::{self, ENDING};
use super::thaw::Seen;

/// Seals of puts that failed.
const SEALS_KEPT: usize = 4;
/// Objects whose keys are remembered.
const OPENED_MAX: usize = 16_384;
/// Objects whose keys are asked for at a time, only to see whether they can be read.
const TRIED_AT_ONCE: usize = 4;

/// To whom this node encrypts, and as whom it can read.
#[derive(Debug, Default)]
pub struct Keyring {
    recipients: Vec<Recipient>,
    identities: RwLock<Vec<Arc<Identity>>>,
}

impl Keyring {
    /// With these identities, until more are given.
    pub fn new(recipients: Vec<Recipient>, identities: Vec<Arc<Identity>>) -> Self {
        Self { recipients, identities: RwLock::new(identities) }
    }

    /// More identities: those that somebody gave to a restore.
    pub fn add(&self, identities: Vec<Arc<Identity>>) {
        let mut known = self.identities.write().expect("never held across a panic");
        for identity in identities {
            if !known.iter().any(|known| known.recipient() == identity.recipient()) {
                known.push(identity);
            }
        }
    }

    /// A keyring of its own with more identities.
    pub fn with(&self, identities: Vec<Arc<Identity>>) -> Self {
        let other = Self::new(self.recipients.clone(), self.identities());
        other.add(identities);
        other
    }

    fn identities(&self) -> Vec<Arc<Identity>> {
        self.identities.read().expect("never held across a panic").clone()
    }

    /// Whether anything that is encrypted can be read.
    pub fn has_identities(&self) -> bool {
        !self.identities().is_empty()
    }

    /// Whether what this node writes is encrypted.
    pub fn encrypts(&self) -> bool {
        !self.recipients.is_empty()
    }

    /// Whether it can read back what it writes.
    pub fn reads_own(&self) -> bool {
        !self.encrypts() || self.identities().iter().any(|identity| self.recipients.contains(&identity.recipient()))
    }
}

/// See the module.
pub struct Encrypted {
    reader: Reader,
    seals: Mutex<VecDeque<Arc<Sealed>>>,
}

impl fmt::Debug for Encrypted {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Encrypted({:?})", self.reader.inner)
    }
}

/// What it takes to read. Cheap to clone.
#[derive(Clone)]
struct Reader {
    inner: Arc<dyn Bucket>,
    keyring: Arc<Keyring>,
    known: Arc<Mutex<Known>>,
    tries: Arc<tokio::sync::Semaphore>,
}

/// By object key.
#[derive(Default)]
struct Known {
    opened: HashMap<String, Arc<OnceCell<Arc<Opened>>>>,
    /// Those that could not be opened by so many identities.
    refused: HashSet<(String, usize)>,
}

/// An object that was encrypted, and perhaps not landed.
struct Sealed {
    key: String,
    /// Of its content.
    crc64: u64,
    size: u64,
    seal: Arc<Seal>,
    /// Of what is sent.
    sent_crc64: u64,
}

impl Encrypted {
    /// A bucket that encrypts what goes into `inner`.
    pub fn new(inner: Arc<dyn Bucket>, keyring: Arc<Keyring>) -> Self {
        let tries = Arc::new(tokio::sync::Semaphore::new(TRIED_AT_ONCE));
        Self { reader: Reader { inner, keyring, known: Arc::default(), tries }, seals: Mutex::default() }
    }

    /// Encrypts an object for the first time, for its checksum; or finds how that was done before.
    async fn seal(&self, object: &Object) -> Result<Arc<Sealed>, Error> {
        let Object { key, crc64, body } = object.clone();
        let size = body.size();
        let is_same = |sealed: &&Arc<Sealed>| (&sealed.key, sealed.crc64, sealed.size) == (&key, crc64, size);
        if let Some(sealed) = self.seals.lock().expect("never held across a panic").iter().find(is_same) {
            return Ok(sealed.clone());
        }
        let (recipients, bucket) = (self.reader.keyring.recipients.clone(), self.reader.inner.id().to_owned());
        let sealed = tokio::task::spawn_blocking(move || {
            let failed = |detail: String| Error::Bucket { doing: "encrypt", key: key.clone(), bucket: bucket.clone(), detail };
            let seal = Seal::new(&recipients, size).map_err(|error| failed(error.to_string()))?;
            let (mut content, mut sent) = (crc_fast::Digest::new(Crc64Nvme), crc_fast::Digest::new(Crc64Nvme));
            let mut sealing = seal.sealing(0..seal.size());
            let mut take = |bytes: Bytes| {
                sent.update(&bytes);
                Ok(())
            };
            let read = body.read(|bytes| {
                content.update(&bytes);
                sealing.push(&bytes, &mut take)
            });
            read.and_then(|()| sealing.finish(&mut take)).map_err(|error| failed(error.to_string()))?;
            if content.finalize() != crc64 {
                return Err(Error::Checksum { key, detail: "they have another checksum when they are encrypted".to_owned() });
            }
            Ok(Arc::new(Sealed { key, crc64, size, seal: Arc::new(seal), sent_crc64: sent.finalize() }))
        });
        let sealed = sealed.await.expect("encrypting does not panic")?;
        let mut seals = self.seals.lock().expect("never held across a panic");
        seals.truncate(SEALS_KEPT - 1);
        seals.push_front(sealed.clone());
        Ok(sealed)
    }
}

impl Bucket for Encrypted {
    fn id(&self) -> &str {
        self.reader.inner.id()
    }

    fn prefix(&self) -> &str {
        self.reader.inner.prefix()
    }

    fn object_size_max(&self) -> u64 {
        let most = self.reader.inner.object_size_max();
        // Each chunk of 64 KiB has 16 bytes more.
        most - most / 4096 - HEADER_SIZE as u64 - 16
    }

    fn prices(&self) -> &Prices {
        self.reader.inner.prices()
    }

    fn ending(&self) -> &'static str {
        if self.reader.keyring.encrypts() { ENDING } else { "" }
    }

    fn reads(&self, key: &str) -> bool {
        !is_encrypted(key) || self.reader.reads(key)
    }

    fn put_once(&self, object: Object) -> BoxFuture<'_, Result<(), Error>> {
        Box::pin(async move {
            if !self.reader.keyring.encrypts() || object.key == keys::cluster(self.prefix()) {
                return self.reader.inner.put_once(object).await;
            }
            assert!(is_encrypted(&object.key), "{} would go out as it is", object.key);
            let sealed = self.seal(&object).await?;
            let body = object.body.sealed(sealed.seal.clone());
            self.reader.inner.put_once(Object { key: object.key, crc64: sealed.sent_crc64, body }).await?;
            self.seals.lock().expect("never held across a panic").retain(|kept| kept.key != sealed.key);
            Ok(())
        })
    }

    fn get_range<'a>(&'a self, key: &'a str, range: Range<u64>) -> BoxFuture<'a, Result<Chunks, Error>> {
        if !is_encrypted(key) {
            return self.reader.inner.get_range(key, range);
        }
        Box::pin(async move {
            let opened = self.reader.open(key).await?;
            if range.is_empty() {
                return Ok(stream::empty().boxed());
            }
            if range.end > opened.size() {
                let detail = format!("bytes up to {} are asked for, and it has {}", range.end, opened.size());
                return Err(Error::Bucket { doing: "get", key: key.to_owned(), bucket: self.id().to_owned(), detail });
            }
            let chunks = self.reader.inner.get_range(key, opened.within_file(&range)).await?;
            let reading = Reading { chunks, opening: opened.opening(range), ready: VecDeque::new(), key: key.to_owned(), is_told: false };
            Ok(stream::try_unfold(reading, Reading::next).boxed())
        })
    }

    fn list<'a>(&'a self, prefix: &'a str, after: Option<&'a str>) -> BoxFuture<'a, Result<Page, Error>> {
        Box::pin(async move { self.reader.inner.list(prefix, after).await.map(contents) })
    }

    fn delete<'a>(&'a self, key: &'a str) -> BoxFuture<'a, Result<(), Error>> {
        self.reader.inner.delete(key)
    }

    fn list_thaws<'a>(&'a self, prefix: &'a str, after: Option<&'a str>) -> BoxFuture<'a, Result<Page, Error>> {
        Box::pin(async move { self.reader.inner.list_thaws(prefix, after).await.map(contents) })
    }

    fn head_thaw<'a>(&'a self, key: &'a str) -> BoxFuture<'a, Result<Seen, Error>> {
        self.reader.inner.head_thaw(key)
    }

    fn thaw<'a>(&'a self, key: &'a str, days: u32, tier: Tier) -> BoxFuture<'a, Result<bool, Error>> {
        self.reader.inner.thaw(key, days, tier)
    }
}

/// A listing with the sizes of contents.
fn contents(mut page: Page) -> Page {
    for Listed { key, size, .. } in &mut page.objects {
        if is_encrypted(key) {
            // What has a size that nothing encrypted has is not what was written: it shows as that.
            *size = age::content_size(*size).unwrap_or(0);
        }
    }
    page
}

fn is_encrypted(key: &str) -> bool {
    key.ends_with(ENDING)
}

impl Reader {
    /// The key of an object, by one request unless it is remembered.
    async fn open(&self, key: &str) -> Result<Arc<Opened>, Error> {
        let identities = self.keyring.identities();
        if identities.is_empty() {
            return Err(Error::Locked { key: key.to_owned(), why: "and this node has no identity to read it by" });
        }
        let cell = {
            let mut known = self.known.lock().expect("never held across a panic");
            if known.opened.len() >= OPENED_MAX {
                *known = Known::default();
            }
            known.opened.entry(key.to_owned()).or_default().clone()
        };
        let open = || async {
            let header = bucket::get_whole(&*self.inner, key, 0..HEADER_SIZE as u64).await?;
            match Opened::own(&header, &identities) {
                Ok(opened) => Ok(Arc::new(opened)),
                Err(age::Invalid::OtherRecipients) => {
                    let why = "and none of this node's identities opens it: it was written for others, or its first bytes are damaged";
                    Err(Error::Locked { key: key.to_owned(), why })
                }
                Err(source) => Err(Error::Envelope { key: key.to_owned(), source }),
            }
        };
        cell.get_or_try_init(open).await.cloned()
    }

    /// Whether an object is known to be readable. Of one that was not met before this is found out meanwhile, and it is not, until then.
    fn reads(&self, key: &str) -> bool {
        let identities = self.keyring.identities().len();
        let tried = (key.to_owned(), identities);
        {
            let known = self.known.lock().expect("never held across a panic");
            if known.opened.get(key).is_some_and(|cell| cell.initialized()) {
                return true;
            }
            if identities == 0 || known.refused.contains(&tried) {
                return false;
            }
        }
        if let (Ok(permit), Ok(runtime)) = (self.tries.clone().try_acquire_owned(), tokio::runtime::Handle::try_current()) {
            let reader = self.clone();
            runtime.spawn(async move {
                if let Err(error @ (Error::Locked { .. } | Error::Envelope { .. } | Error::Frozen { .. })) = reader.open(&tried.0).await {
                    tracing::warn!(%error, "what is only there stays on this disk");
                    reader.known.lock().expect("never held across a panic").refused.insert(tried);
                }
                drop(permit);
            });
        }
        false
    }
}

/// A range on its way in.
struct Reading {
    chunks: Chunks,
    opening: Opening,
    ready: VecDeque<Bytes>,
    key: String,
    is_told: bool,
}

impl Reading {
    async fn next(mut self) -> Result<Option<(Bytes, Self)>, Error> {
        loop {
            if let Some(bytes) = self.ready.pop_front() {
                return Ok(Some((bytes, self)));
            }
            let Some(bytes) = self.chunks.next().await else { return Ok(None) };
            // A piece of what the network brings is decrypted in less time than a task may take.
            let Self { opening, ready, .. } = &mut self;
            opening.push(&bytes?, |content| ready.push_back(content));
            if let Some(error) = self.opening.damaged().filter(|_| !std::mem::replace(&mut self.is_told, true)) {
                tracing::warn!(key = self.key, %error, "a part of an object in the bucket is damaged");
            }
        }
    }
}
