//! A blob on its way in from a peer or the archive, and its readers.
//!
//! The writer appends in order; readers follow through a watched watermark and read the file itself. The last byte
//! stays behind the watermark until the digest was checked, so nobody ever gets a whole blob that is wrong.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::sync::Arc;

use bytes::Bytes;
use larder_protocol::digest::Digest;
use larder_protocol::record::Link;
use tokio::sync::watch;
use uuid::Uuid;

use super::Store;
use super::error::{Error, Result};
use super::layout::remove_file;
use super::space::Hold;
use super::staged::Staged;

/// How far readers may read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Progress {
    Coming(u64),
    Whole,
    Abandoned,
}

/// A blob on its way in. Dropped unfinished, its bytes go and its readers get an error.
#[derive(Debug)]
pub struct Staging {
    store: Store,
    digest: Digest,
    link: Link,
    /// `None` while a blocking thread has it, and once it is finished.
    staged: Option<Staged>,
    offset: u64,
    file: Arc<File>,
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
        space.reserve(link.size)?;
        let staged = Staged::create(self.inner.folder.upload(Uuid::new_v4()), digest.algorithm())?;
        let file = staged.file.try_clone().map_err(Error::io("open", &staged.path))?;
        let progress = watch::Sender::new(Progress::Coming(0));
        Ok(Staging { store: self.clone(), digest, link, staged: Some(staged), offset: 0, file: Arc::new(file), progress, space })
    }
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
        let (staged, appended) = self
            .store
            .run(move |_| {
                let appended = staged.append(&bytes);
                (staged, appended)
            })
            .await;
        self.staged = Some(staged);
        appended?;
        self.space.written(offset - self.offset);
        self.offset = offset;
        self.progress.send_replace(Progress::Coming(offset.min(self.link.size.saturating_sub(1))));
        Ok(())
    }

    /// A reader that follows.
    pub fn reader(&self) -> StagedReader {
        StagedReader { size: self.link.size, file: Arc::clone(&self.file), progress: self.progress.subscribe() }
    }

    /// Checks size, root and digest, and commits the blob. It gets no link: links are records.
    ///
    /// # Errors
    /// `DigestMismatch`, or `Damaged` when size, root or CRC are not the link's; the bytes go then.
    pub async fn finish(mut self) -> Result<()> {
        let staged = self.staged.take().ok_or(Error::Abandoned)?;
        let (digest, link) = (self.digest, self.link);
        let path = staged.path.clone();
        let committed = self.store.run(move |store| {
            let inner = &store.inner;
            let committed = staged.commit(inner, digest, inner.relaxed(), |_, hashed| {
                if hashed.link == link {
                    return Ok(());
                }
                // The content is right and the record that described it is not: keeping the blob would keep the lie.
                Err(Error::Damaged {
                    what: format!("the link record of {digest}"),
                    detail: "size, BLAKE3 or CRC differ from the content's".to_owned(),
                })
            });
            if committed.is_err() {
                remove_file(&path)?;
            }
            committed
        });
        committed.await?;
        self.progress.send_replace(Progress::Whole);
        Ok(())
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
        if let Some(staged) = self.staged.take()
            && let Err(error) = remove_file(&staged.path)
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
