//! A blob on its way in from a peer or the archive, and its readers.
//!
//! The writer appends in order, or puts chunks where they belong as they come; readers follow through a watched watermark, the end
//! of what is there without a gap, and read the file itself. The last byte stays behind the watermark until the digest was
//! checked, so nobody ever gets a whole blob that is wrong.
//!
//! The hashes follow the watermark: what came out of order is read again, from memory as a rule, when the gap before it closes.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::sync::Arc;

use bytes::Bytes;
use larder_protocol::chunks::ChunkSet;
use larder_protocol::digest::{CHUNK_SIZE, ChunkList, Digest};
use larder_protocol::record::Link;
use tokio::sync::watch;
use uuid::Uuid;

use super::error::{Error, Result};
use super::hashing::{Hashed, Hashes};
use super::layout::{open_file, remove_file};
use super::partial::{self, Partial};
use super::space::Hold;
use super::staged::Staged;
use super::{SMALL_MAX, Store};

/// Chunks that are hashed again at a time when a gap closes: readers get them before the next ones are looked at.
const CATCH_UP: u32 = 8;

/// How far readers may read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Progress {
    Coming(u64),
    Whole,
    Abandoned,
}

/// A blob on its way in. Dropped unfinished, its readers get an error; the chunks that were checked are kept for the next try.
#[derive(Debug)]
pub struct Staging {
    store: Store,
    digest: Digest,
    link: Link,
    /// `None` while a blocking thread has it, and once it is finished.
    staged: Option<Staged>,
    offset: u64,
    file: Arc<File>,
    path: PathBuf,
    /// Peers see it, and its file is kept.
    is_shared: bool,
    /// There was something in the file.
    is_resumed: bool,
    partial: Partial,
    progress: watch::Sender<Progress>,
    space: Hold,
}

/// Reads a blob while it comes in.
#[derive(Clone, Debug)]
pub struct StagedReader {
    size: u64,
    file: Arc<File>,
    progress: watch::Receiver<Progress>,
}

impl Store {
    /// Begins to stage a blob that comes from a peer or the archive; `link` says what it must be.
    ///
    /// # Errors
    /// - `TooLarge`: beyond `registry.blob_size_max`.
    /// - `Full`: there is no room for it.
    pub fn stage(&self, digest: Digest, link: Link) -> Result<Staging> {
        let limit = self.inner.options.blob_size_max;
        if link.size > limit {
            return Err(Error::TooLarge { limit });
        }
        let mut space = Hold::new(self, true);
        if let Err(error) = space.reserve(link.size) {
            // What did not come whole is the first to go.
            if self.inner.drop_partials() == 0 {
                return Err(error);
            }
            space.reserve(link.size)?;
        }
        let mut is_shared = !self.inner.partials.is_active(&digest);
        loop {
            // Of two who fetch one blob, which nobody does on purpose, the second has a file for himself.
            let path = if is_shared { self.inner.folder.partial(&digest) } else { self.inner.folder.upload(Uuid::new_v4()) };
            let staged = Staged::create(path.clone(), digest.algorithm())?;
            let length = staged.file.metadata().map_err(Error::io("look at", &path))?.len();
            if length > link.size {
                staged.file.set_len(link.size).map_err(Error::io("shorten", &path))?;
            }
            let file = Arc::new(staged.file.try_clone().map_err(Error::io("open", &path))?);
            let progress = watch::Sender::new(Progress::Coming(0));
            let partial = Partial::new(digest, link, Arc::clone(&file), progress.subscribe());
            if is_shared && !self.inner.partials.claim(digest, &partial) {
                is_shared = false;
                continue;
            }
            let (store, staged, is_resumed) = (self.clone(), Some(staged), length > 0);
            return Ok(Staging { store, digest, link, staged, offset: 0, file, path, is_shared, is_resumed, partial, progress, space });
        }
    }

    /// Makes a file a blob again that lies in the blob's place and that the index does not know: it is what an index that was lost has left
    /// (F9). It is read whole and checked, as everything that comes in. `false`: there is none, or its size is another.
    ///
    /// # Errors
    /// `DigestMismatch`, `Damaged`: it is not what `link` says. It stays where it is, known to nobody, until the blob comes from elsewhere and
    /// takes its place.
    pub fn adopt_file(&self, digest: Digest, link: Link) -> Result<bool> {
        let (inner, path) = (&self.inner, self.inner.folder.blob(&digest));
        if link.size <= SMALL_MAX || std::fs::symlink_metadata(&path).map_or(true, |found| found.len() != link.size) {
            return Ok(false);
        }
        let file = open_file(&path, false)?;
        let mut staged = Staged { path, file, hashes: Hashes::new(digest.algorithm()) };
        staged.rehash(digest.algorithm(), link.size)?;
        staged.commit(inner, digest, inner.relaxed(), |_, hashed| as_linked(&digest, &link, hashed))?;
        Ok(true)
    }
}

/// Whether a blob that comes from elsewhere is what the record said that was sent ahead of it.
fn as_linked(digest: &Digest, link: &Link, hashed: &Hashed) -> Result<()> {
    if hashed.link == *link {
        return Ok(());
    }
    // The content is right and the record that described it is not: keeping the blob would keep the lie.
    Err(Error::Damaged { what: format!("the link record of {digest}"), detail: "size, BLAKE3 or CRC differ from the content's".to_owned() })
}

impl Staging {
    /// The blob.
    pub fn digest(&self) -> Digest {
        self.digest
    }

    /// What its link says.
    pub fn link(&self) -> Link {
        self.link
    }

    /// Bytes taken so far: where a source goes on.
    pub fn offset(&self) -> u64 {
        self.offset
    }

    /// Takes the next bytes, and lets readers have them. Not cancel-safe: a dropped call abandons the blob.
    ///
    /// # Errors
    /// - `TooLarge`: more comes than the link says; nothing of these bytes was taken.
    /// - `Io`: the disk refused.
    pub async fn append(&mut self, bytes: Bytes) -> Result<()> {
        let offset = self.offset + bytes.len() as u64;
        if offset > self.link.size {
            return Err(Error::TooLarge { limit: self.link.size });
        }
        let mut staged = self.staged.take().ok_or(Error::Abandoned)?;
        let list = self.partial.list();
        let (staged, appended) = self
            .store
            .run(move |_| {
                let closed = staged.hashes.values().len();
                let appended = staged.append(&bytes).map(|()| {
                    let (values, known) = (staged.hashes.values(), list.as_ref().map(|list| list.values()).unwrap_or_default());
                    (closed..values.len()).filter(|index| known.get(*index) == Some(&values[*index])).map(|index| index as u32).collect()
                });
                (staged, appended)
            })
            .await;
        self.staged = Some(staged);
        let right: Vec<u32> = appended?;
        self.space.written(offset - self.offset);
        self.moved(offset);
        if !right.is_empty() {
            right.into_iter().for_each(|index| _ = self.partial.landed(index));
            self.partial.changed();
        }
        Ok(())
    }

    /// What peers see of it.
    pub fn partial(&self) -> Partial {
        self.partial.clone()
    }

    /// Whether chunks can be put: what checks them is known.
    pub fn is_checkable(&self) -> bool {
        self.link.size <= CHUNK_SIZE || self.partial.list().is_some()
    }

    /// Whether an earlier try has left something that is of use once the chunk list is known.
    pub fn is_resumed(&self) -> bool {
        self.is_resumed && !self.is_checkable()
    }

    /// The chunks that are here.
    pub fn chunks(&self) -> ChunkSet {
        self.partial.chunks().0
    }

    /// Takes the list that checks the chunks, and looks for those that an earlier try has left here. Not cancel-safe.
    ///
    /// # Errors
    /// - `Damaged`: it is not this blob's list.
    /// - `Io`.
    pub async fn know(&mut self, list: ChunkList) -> Result<()> {
        if list.size() != self.link.size || list.root() != self.link.root {
            let detail = "it does not add up to the root in the blob's link record".to_owned();
            return Err(Error::Damaged { what: format!("the chunk list of {}", self.digest), detail });
        }
        let (file, path) = (Arc::clone(&self.file), self.path.clone());
        let is_resumed = std::mem::take(&mut self.is_resumed) || self.offset > 0;
        let looked = self.store.run(move |_| {
            let found = if is_resumed { partial::found(&file, &list).map_err(Error::io("read", &path))? } else { Vec::new() };
            Ok::<_, Error>((list, found))
        });
        let (list, found) = looked.await?;
        let size = |index: &u32| CHUNK_SIZE.min(self.link.size - u64::from(*index) * CHUNK_SIZE);
        let bytes: u64 = found.iter().map(size).sum();
        self.partial.know(list);
        if !found.is_empty() {
            tracing::info!(digest = %self.digest, chunks = found.len(), "going on with what an earlier try has left");
            self.space.written(bytes);
            found.into_iter().for_each(|index| _ = self.partial.landed(index));
        }
        self.partial.changed();
        self.catch_up(None).await
    }

    /// Takes a chunk that came out of order; `false` when it is not the blob's. Not cancel-safe: a dropped call abandons the blob.
    ///
    /// # Errors
    /// `Io`: the disk refused.
    pub async fn put_chunk(&mut self, index: u32, bytes: Bytes) -> Result<bool> {
        let staged = self.staged.take().ok_or(Error::Abandoned)?;
        let (partial, written) = (self.partial.clone(), bytes.clone());
        let (staged, put) = self
            .store
            .run(move |_| {
                let put = partial.file().filter(|file| file.holds(u64::from(index), &written)).map(|_| staged.put(index, &written));
                (staged, put)
            })
            .await;
        self.staged = Some(staged);
        let Some(put) = put else { return Ok(false) };
        put?;
        let size = bytes.len() as u64;
        if self.partial.landed(index) {
            self.space.written(size);
        }
        self.partial.changed();
        self.catch_up(Some((index, bytes))).await?;
        Ok(true)
    }

    /// Lets hashes and readers follow to the end of what is here without a gap. `fresh` need not be read.
    async fn catch_up(&mut self, fresh: Option<(u32, Bytes)>) -> Result<()> {
        loop {
            let first = (self.offset / CHUNK_SIZE) as u32;
            let run = self.partial.chunks().0.run(first).min(CATCH_UP);
            if run == 0 || self.offset == self.link.size {
                return Ok(());
            }
            let mut staged = self.staged.take().ok_or(Error::Abandoned)?;
            let (size, list, fresh) = (self.link.size, self.partial.list(), fresh.clone());
            let (staged, followed) = self
                .store
                .run(move |_| {
                    let followed = staged.follow(first..first + run, size, list.as_deref(), fresh);
                    (staged, followed)
                })
                .await;
            let offset = staged.hashes.size();
            self.staged = Some(staged);
            followed?;
            self.moved(offset);
        }
    }

    fn moved(&mut self, offset: u64) {
        self.offset = offset;
        self.progress.send_replace(Progress::Coming(offset.min(self.link.size.saturating_sub(1))));
    }

    /// A reader that follows.
    pub fn reader(&self) -> StagedReader {
        StagedReader { size: self.link.size, file: Arc::clone(&self.file), progress: self.progress.subscribe() }
    }

    /// Checks size, root and digest, and commits the blob. It gets no link: links are records.
    ///
    /// # Errors
    /// `DigestMismatch`, or `Damaged` when size, root or CRC are not the link's; the bytes go then.
    pub async fn finish(self) -> Result<()> {
        self.finish_as(as_linked).await.map(drop)
    }

    /// The same, when the link is in doubt: the digest decides. Says what the blob is.
    ///
    /// # Errors
    /// `DigestMismatch`; the bytes go then.
    pub async fn finish_by_digest(self) -> Result<Link> {
        self.finish_as(|_, _, _| Ok(())).await
    }

    async fn finish_as(mut self, check: impl FnOnce(&Digest, &Link, &Hashed) -> Result<()> + Send + 'static) -> Result<Link> {
        let staged = self.staged.take().ok_or(Error::Abandoned)?;
        let (digest, link) = (self.digest, self.link);
        let path = staged.path.clone();
        let committed = self.store.run(move |store| {
            let inner = &store.inner;
            let committed = staged.commit(inner, digest, inner.relaxed(), |_, hashed| check(&digest, &link, hashed));
            if committed.is_err() {
                remove_file(&path)?;
            }
            committed
        });
        let committed = committed.await;
        // ORDER: while it is in neither place, peers would be told that it is not here.
        if std::mem::take(&mut self.is_shared) {
            self.store.inner.partials.done(&digest);
        }
        let link = committed?.link;
        self.progress.send_replace(Progress::Whole);
        Ok(link)
    }
}

impl Drop for Staging {
    fn drop(&mut self) {
        self.progress.send_if_modified(|progress| {
            let ended = matches!(progress, Progress::Coming(_));
            if ended {
                *progress = Progress::Abandoned;
            }
            ended
        });
        if self.is_shared {
            return self.store.inner.leave_partial(self.digest, &self.partial, &self.path);
        }
        if self.staged.take().is_some()
            && let Err(error) = remove_file(&self.path)
        {
            tracing::info!(digest = %self.digest, %error, "a staged file is left until the next start");
        }
    }
}

impl StagedReader {
    /// Bytes of the whole blob.
    pub fn size(&self) -> u64 {
        self.size
    }

    /// Bytes from `offset`, at most `limit`, waiting until some are there; empty at the end of the blob.
    ///
    /// # Errors
    /// `Abandoned`: the blob will not come.
    pub async fn read(&mut self, offset: u64, limit: usize) -> Result<Bytes> {
        let waited = self.progress.wait_for(|progress| match progress {
            Progress::Coming(until) => *until > offset,
            Progress::Whole | Progress::Abandoned => true,
        });
        let until = match waited.await.map(|progress| *progress) {
            Ok(Progress::Coming(until)) => until,
            Ok(Progress::Whole) => self.size,
            Ok(Progress::Abandoned) | Err(_) => return Err(Error::Abandoned),
        };
        let length = usize::try_from(until.saturating_sub(offset)).map_or(limit, |length| length.min(limit));
        let file = Arc::clone(&self.file);
        let read = tokio::task::spawn_blocking(move || {
            let mut bytes = vec![0; length];
            file.read_exact_at(&mut bytes, offset).map(|()| Bytes::from(bytes))
        });
        read.await.expect("reading does not panic").map_err(Error::io("read the staged file of a blob", std::path::Path::new("uploads")))
    }
}
