//! Upload sessions: a staged file, its running hashes, its offset. They survive a restart.
//!
//! A session's row in `meta` (`upload/<uuid>`) holds its repository, its algorithm, and the hash state at the last
//! saved offset. The state is saved when a request ends and every [`SAVE_EVERY`] bytes, without waiting for the disk: what a power cut takes is
//! received again. What it has changed fails the digest at the end, because the first request after a start reads the staged
//! file again and believes no state from before.
//!
//! `sessions` is the list of sessions in memory: how far each has come, its running hashes, and whether a request holds it. A session that no
//! request holds has no file open.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use larder_protocol::digest::{Algorithm, Digest};
use larder_protocol::name::RepositoryName;
use larder_protocol::record::{Key, Link};
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::error::{Error, Result};
use super::garbage::rely;
use super::hashing::{Hashes, SavedHashes};
use super::index::{Batch, Table, decode};
use super::journal::{lock, now_ms};
use super::layout::remove_file;
use super::space::{Hold, IndexPart};
use super::staged::Staged;
use super::{Inner, Store};
use crate::failpoint;

/// In front of the ids of sessions in `meta`.
const SESSION: &str = "upload/";
/// The client of sessions that nobody began, or nobody remembers who.
const NOBODY: &str = "";
/// Progress after which the state is saved in the middle of a request.
const SAVE_EVERY: u64 = 32 << 20;

/// A session's row.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct SessionRow {
    repository: RepositoryName,
    algorithm: Algorithm,
    touched_ms: u64,
    hashes: Option<SavedHashes>,
}

/// A session in memory.
#[derive(Debug)]
pub(super) struct Session {
    repository: RepositoryName,
    /// Who began it; nobody when that was before a restart.
    client: String,
    offset: AtomicU64,
    touched_ms: AtomicU64,
    busy: AtomicBool,
    /// Nobody has read the staged file since the node started: its saved state may be of bytes that are not there.
    unread: AtomicBool,
    /// Where the last request left them.
    hashes: Mutex<Option<Hashes>>,
}

/// Every session, and how many each client began.
#[derive(Debug, Default)]
pub(super) struct Sessions {
    by_id: HashMap<Uuid, Arc<Session>>,
    by_client: HashMap<String, usize>,
}

impl Sessions {
    fn insert(&mut self, id: Uuid, session: Arc<Session>) {
        *self.by_client.entry(session.client.clone()).or_default() += 1;
        self.by_id.insert(id, session);
    }

    fn remove(&mut self, id: &Uuid) {
        let Some(session) = self.by_id.remove(id) else { return };
        if let Some(count) = self.by_client.get_mut(&session.client) {
            *count -= 1;
            // The list of clients is no longer than that of sessions.
            if *count == 0 {
                self.by_client.remove(&session.client);
            }
        }
    }

    /// Bytes that they have taken, all together.
    pub(super) fn bytes(&self) -> u64 {
        self.by_id.values().map(|session| session.offset()).sum()
    }

    fn count_of(&self, client: &str) -> usize {
        self.by_client.get(client).copied().unwrap_or_default()
    }
}

/// An upload session that one request holds. Dropped without `suspend`, it goes on where the bytes end that were taken.
#[derive(Debug)]
pub struct Upload {
    id: Uuid,
    store: Store,
    session: Arc<Session>,
    /// `None` once the session has ended.
    staged: Option<Staged>,
    /// The offset that its row tells.
    saved: Option<u64>,
    space: Hold,
}

impl Session {
    /// Bytes on the disk.
    pub(super) fn offset(&self) -> u64 {
        self.offset.load(Ordering::Relaxed)
    }
}

/// Reads the sessions that the last shutdown left.
pub(super) fn load(inner: &Inner) -> Result<Sessions> {
    let mut sessions = Sessions::default();
    for row in inner.index.scan(Table::Meta, SESSION.as_bytes(), b"") {
        let (key, row) = row?;
        let Some(id) = std::str::from_utf8(&key).ok().and_then(|key| Uuid::parse_str(key.strip_prefix(SESSION)?).ok()) else { continue };
        let row: SessionRow = decode(Table::Meta, &row)?;
        // F5: after a power cut the disk may have less than was saved of it.
        let offset = Staged::stands_at(&inner.folder.upload(id), row.hashes.as_ref());
        let session = Session {
            repository: row.repository,
            client: NOBODY.to_owned(),
            offset: offset.into(),
            touched_ms: row.touched_ms.into(),
            busy: false.into(),
            unread: true.into(),
            hashes: Mutex::default(),
        };
        sessions.insert(id, Arc::new(session));
    }
    Ok(sessions)
}

impl Store {
    /// Begins a session for a client, named by its address; the empty one stands for nobody, and is bounded with all others only.
    ///
    /// # Errors
    /// - `TooManyUploads`: as many are open as `registry.uploads_max` or `registry.uploads_per_client_max` allows (F44).
    /// - `Full`: nothing can be pushed now.
    pub fn create_upload(&self, repository: &RepositoryName, algorithm: Algorithm, client: &str) -> Result<Upload> {
        self.inner.space.check(0, IndexPart::Pushes)?;
        let id = Uuid::new_v4();
        let session = Session {
            repository: repository.clone(),
            client: client.to_owned(),
            offset: 0.into(),
            touched_ms: now_ms().into(),
            busy: true.into(),
            unread: false.into(),
            hashes: Mutex::default(),
        };
        let session = Arc::new(session);
        {
            let mut sessions = lock(&self.inner.sessions);
            let options = &self.inner.options;
            let total = (sessions.by_id.len(), options.uploads_max, "registry.uploads_max");
            let own = (sessions.count_of(client), options.uploads_per_client_max, "registry.uploads_per_client_max");
            for (open, limit, setting) in [Some(total), Some(own).filter(|_| client != NOBODY)].into_iter().flatten() {
                if open >= limit {
                    return Err(Error::TooManyUploads { limit, setting });
                }
            }
            sessions.insert(id, Arc::clone(&session));
        }
        let mut upload = Upload { id, store: self.clone(), session, staged: None, saved: None, space: Hold::new(self, false) };
        let staged = Staged::create(self.inner.folder.upload(id), algorithm);
        match staged.and_then(|staged| {
            upload.staged = Some(staged);
            upload.save()
        }) {
            Ok(()) => Ok(upload),
            Err(error) => {
                lock(&self.inner.sessions).remove(&id);
                Err(error)
            }
        }
    }

    /// Takes up a session where the disk stands.
    ///
    /// # Errors
    /// - `UploadUnknown`: there is none, or it is another repository's.
    /// - `UploadBusy`: another request holds it.
    pub fn open_upload(&self, repository: &RepositoryName, id: Uuid) -> Result<Upload> {
        let session = self.session(repository, id)?;
        if session.busy.swap(true, Ordering::AcqRel) {
            return Err(Error::UploadBusy);
        }
        let mut upload = Upload { id, store: self.clone(), session, staged: None, saved: None, space: Hold::new(self, false) };
        let (path, kept) = (self.inner.folder.upload(id), lock(&upload.session.hashes).take());
        let kept = kept.map(|hashes| Staged::go_on(path.clone(), hashes)).transpose()?.flatten();
        let staged = match kept {
            Some(staged) => staged,
            None => {
                // It may have ended between the two steps.
                let row: SessionRow = self.inner.index.row(Table::Meta, &row_key(id))?.ok_or(Error::UploadUnknown)?;
                if upload.session.unread.load(Ordering::Acquire) {
                    Staged::reread(path, row.algorithm, row.hashes.as_ref())?
                } else {
                    Staged::resume(path, row.algorithm, row.hashes.as_ref())?
                }
            }
        };
        upload.session.unread.store(false, Ordering::Release);
        upload.saved = Some(staged.hashes.size());
        upload.session.offset.store(staged.hashes.size(), Ordering::Release);
        upload.staged = Some(staged);
        Ok(upload)
    }

    /// The offset at which a session goes on; also while a request is appending to it.
    ///
    /// # Errors
    /// `UploadUnknown`.
    pub fn upload_offset(&self, repository: &RepositoryName, id: Uuid) -> Result<u64> {
        Ok(self.session(repository, id)?.offset.load(Ordering::Acquire))
    }

    /// Who began a session, as [`Store::create_upload`] was told.
    ///
    /// # Errors
    /// `UploadUnknown`.
    pub fn upload_client(&self, repository: &RepositoryName, id: Uuid) -> Result<String> {
        Ok(self.session(repository, id)?.client.clone())
    }

    /// Ends a session and forgets its bytes.
    ///
    /// # Errors
    /// `UploadUnknown`, `UploadBusy`.
    pub fn cancel_upload(&self, repository: &RepositoryName, id: Uuid) -> Result<()> {
        let session = self.session(repository, id)?;
        if session.busy.swap(true, Ordering::AcqRel) {
            return Err(Error::UploadBusy);
        }
        self.forget(id)
    }

    /// Drops sessions that nobody touched for `age`; says how many.
    pub fn expire_uploads(&self, age: Duration) -> Result<usize> {
        let before = now_ms().saturating_sub(u64::try_from(age.as_millis()).unwrap_or(u64::MAX));
        let expired: Vec<_> = lock(&self.inner.sessions)
            .by_id
            .iter()
            .filter(|(_, session)| session.touched_ms.load(Ordering::Relaxed) < before && !session.busy.swap(true, Ordering::AcqRel))
            .map(|(id, _)| *id)
            .collect();
        for id in &expired {
            self.forget(*id)?;
        }
        Ok(expired.len())
    }

    fn session(&self, repository: &RepositoryName, id: Uuid) -> Result<Arc<Session>> {
        lock(&self.inner.sessions).by_id.get(&id).filter(|session| session.repository == *repository).cloned().ok_or(Error::UploadUnknown)
    }

    fn forget(&self, id: Uuid) -> Result<()> {
        let mut batch = Batch::default();
        self.inner.index.delete(&mut batch, Table::Meta, &row_key(id));
        self.inner.index.write(batch)?;
        remove_file(&self.inner.folder.upload(id))?;
        lock(&self.inner.sessions).remove(&id);
        Ok(())
    }
}

impl Upload {
    /// The session's id.
    pub fn id(&self) -> Uuid {
        self.id
    }

    /// Bytes taken so far.
    pub fn offset(&self) -> u64 {
        self.session.offset.load(Ordering::Acquire)
    }

    /// Makes sure that there is room for `size` more bytes; what is not used goes back when this is dropped.
    ///
    /// # Errors
    /// `Full`: there is not; the session stands where it stood.
    pub fn reserve(&mut self, size: u64) -> Result<()> {
        self.space.reserve(size)
    }

    /// Makes sure that there is room for `size` more bytes, of nobody knows how many. When there is much, some more is taken
    /// at once.
    ///
    /// # Errors
    /// As [`Upload::reserve`].
    pub fn reserve_step(&mut self, size: u64) -> Result<()> {
        self.space.reserve_step(size)
    }

    /// Takes bytes: writes and hashes them. Blocks.
    ///
    /// # Errors
    /// - `TooLarge`: beyond `registry.blob_size_max`; nothing of these bytes was taken.
    /// - `Full`, `Io`: the disk refused; the session stands where it stood.
    pub fn append(&mut self, bytes: &[u8]) -> Result<()> {
        let limit = self.store.inner.options.blob_size_max;
        if self.offset().saturating_add(bytes.len() as u64) > limit {
            return Err(Error::TooLarge { limit });
        }
        self.space.reserve_step(bytes.len() as u64)?;
        let staged = self.staged.as_mut().expect("a held session has its file");
        staged.append(bytes)?;
        self.space.written(bytes.len() as u64);
        let size = staged.hashes.size();
        failpoint::pass("store/upload/appended-not-saved").map_err(Error::io("save the state of", &staged.path))?;
        self.session.offset.store(size, Ordering::Release);
        if size - self.saved.unwrap_or(0) >= SAVE_EVERY { self.save() } else { Ok(()) }
    }

    /// Saves where it stands, for a later request; returns the offset. Blocks.
    pub fn suspend(mut self) -> Result<u64> {
        self.save()?;
        Ok(self.offset())
    }

    /// Checks the digest, then makes the blob durable and links it in the repository. Blocks.
    ///
    /// # Errors
    /// `DigestMismatch`: the session is gone then. After any other error it goes on where it stood.
    pub fn finish(mut self, expected: Digest) -> Result<Link> {
        // The state must be there if the commit fails: the client then tries again.
        self.save()?;
        let staged = self.staged.take().expect("a held session has its file");
        let (inner, id) = (&self.store.inner, self.id);
        let key = Key::Link(self.session.repository.clone(), expected);
        let committed = staged.commit(inner, expected, inner.relaxed(), |writing, hashed| {
            rely(inner, writing, key.clone(), hashed.link)?;
            writing.index.delete(&mut writing.batch, Table::Meta, &row_key(id));
            Ok(())
        });
        match committed {
            Ok(hashed) => {
                lock(&inner.sessions).remove(&id);
                Ok(hashed.link)
            }
            Err(error @ Error::DigestMismatch { .. }) => {
                self.store.forget(id)?;
                Err(error)
            }
            Err(error) => Err(error),
        }
    }

    /// Forgets the session and its bytes. Blocks.
    pub fn cancel(mut self) -> Result<()> {
        self.staged = None;
        self.store.forget(self.id)
    }

    fn save(&mut self) -> Result<()> {
        let Some(staged) = &self.staged else { return Ok(()) };
        let (inner, now, size) = (&self.store.inner, now_ms(), staged.hashes.size());
        self.session.touched_ms.store(now, Ordering::Relaxed);
        if self.saved == Some(size) {
            return Ok(());
        }
        let row = SessionRow {
            repository: self.session.repository.clone(),
            algorithm: staged.hashes.algorithm(),
            touched_ms: now,
            hashes: Some(staged.hashes.save()),
        };
        let mut batch = Batch::default();
        inner.index.put_row(&mut batch, Table::Meta, &row_key(self.id), &row);
        inner.index.write(batch)?;
        self.saved = Some(size);
        Ok(())
    }
}

impl Drop for Upload {
    fn drop(&mut self) {
        if let Err(error) = self.save() {
            tracing::info!(upload = %self.id, %error, "the session goes on at an earlier offset");
            self.session.offset.store(self.saved.unwrap_or(0), Ordering::Release);
        } else if let Some(staged) = self.staged.take() {
            *lock(&self.session.hashes) = Some(staged.hashes);
        }
        self.session.busy.store(false, Ordering::Release);
    }
}

fn row_key(id: Uuid) -> Vec<u8> {
    format!("{SESSION}{}", id.simple()).into_bytes()
}

/// Whether a staged file belongs to a session.
pub(super) fn is_session(inner: &Inner, id: Uuid) -> bool {
    lock(&inner.sessions).by_id.contains_key(&id)
}

#[cfg(test)]
mod tests {
    use larder_protocol::codec;

    use super::*;
    use crate::store::hashing::Hashes;

    #[test]
    fn golden_session_rows_of_version_1_stand() {
        for algorithm in [Algorithm::Sha256, Algorithm::Sha512] {
            let mut hashes = Hashes::new(algorithm);
            hashes.update(b"the first bytes");
            let repository = "team/app".parse().expect("name");
            let row = SessionRow { repository, algorithm, touched_ms: 9, hashes: Some(hashes.save()) };
            crate::store::tests::golden(&format!("session-{algorithm}.row"), &codec::encode(&row));
        }
    }
}
