//! Upload sessions: start, append, finish, cancel; and the blob that another repository already has.
//!
//! A session belongs to the store; a request holds it as [`Writer`] while its body comes in. Bytes are written and hashed in
//! batches on blocking threads, one batch behind the wire, so that no thread waits for a client. However a request ends (done,
//! refused, stalled, its client gone), its session is saved with every byte that came, and the client goes on from there.

use std::net::IpAddr;
use std::time::{Duration, Instant};

use bytes::BytesMut;
use http::{HeaderMap, Response, StatusCode, header};
use larder_protocol::access::Actions;
use larder_protocol::digest::{Algorithm, Digest};
use larder_protocol::name::RepositoryName;
use tokio::task::JoinHandle;
use uuid::Uuid;

use super::body::Inflow;
use super::error::{Error, uploaded};
use super::range::{Chunk, chunk, number};
use super::{Body, Front, Pushed, empty, refuse_encoded, set, set_digest, text};
use crate::auth::Caller;
use crate::store::{self, Store, Upload};
use crate::tasks::Tasks;

/// How long a request waits for another one to let go of its session: that of a client that lost its connection and
/// comes back sooner than the loss is noticed here.
const BUSY_WAIT_MAX: Duration = Duration::from_secs(2);
const BUSY_WAIT_STEP: Duration = Duration::from_millis(20);
/// Most repositories that are tried when a blob is to be mounted from anywhere.
const MOUNT_SOURCES_MAX: usize = 16;

impl Front {
    /// Begins a session. SPEC: end-4a, end-4c.
    pub(super) async fn start_upload(
        &self,
        repository: RepositoryName,
        algorithm: Algorithm,
        client: IpAddr,
        caller: &Caller,
    ) -> Result<Response<Body>, Error> {
        let (name, owner) = (repository.clone(), owner(client, caller));
        let session = with_room(&self.store, move |store| {
            let upload = store.create_upload(&name, algorithm, &owner)?;
            let session = upload.id();
            upload.suspend()?;
            Ok(session)
        });
        let session = session.await?;
        Ok(self.stands_at(StatusCode::ACCEPTED, &repository, session, 0))
    }

    /// Takes a blob over from the repository that was named, or from any that has it; begins a session when there is none to take.
    /// SPEC: end-11.
    pub(super) async fn mount_blob(
        &self,
        repository: RepositoryName,
        digest: Digest,
        from: Option<RepositoryName>,
        request: Pushed<'_>,
    ) -> Result<Response<Body>, Error> {
        let (name, caller) = (repository.clone(), request.caller.clone());
        let mounted = self.store.run(move |store| {
            let sources = match from {
                Some(from) => vec![from],
                None => store.repositories_linking(&digest, MOUNT_SOURCES_MAX)?,
            };
            // S9: what may not be read is answered like what is not there.
            for source in sources.iter().filter(|source| caller.may(Actions::PULL, source.as_str())) {
                // Its link may have gone since it was listed.
                if store.mount(source, &name, &digest)? {
                    return Ok::<_, Error>(true);
                }
            }
            Ok(false)
        });
        if mounted.await? {
            return Ok(self.created(&repository, &digest));
        }
        self.start_upload(repository, digest.algorithm(), request.client.ip(), request.caller).await
    }

    /// Takes a whole blob in one request. SPEC: end-4b.
    pub(super) async fn push_blob(&self, repository: RepositoryName, digest: Digest, request: Pushed<'_>) -> Result<Response<Body>, Error> {
        refuse_encoded(request.headers)?;
        self.check_size(0, announced(request.headers))?;
        let (name, owner) = (repository.clone(), owner(request.client.ip(), request.caller));
        let upload = with_room(&self.store, move |store| store.create_upload(&name, digest.algorithm(), &owner)).await?;
        let mut writer = self.writer(upload);
        // Nobody was told this session's id, so nobody can go on with it.
        writer.when_dropped = WhenDropped::Cancel;
        let received = match writer.reserve(&self.store, announced(request.headers)).await {
            Ok(()) => self.receive(request.body, &mut writer, u64::MAX).await,
            Err(refused) => Err(refused.into()),
        };
        match received {
            Ok(_) => writer.finish(digest).await?,
            Err(error) => {
                writer.cancel().await;
                return Err(error);
            }
        }
        Ok(self.created(&repository, &digest))
    }

    /// Says where a session stands. SPEC: end-13.
    pub(super) async fn upload_status(&self, repository: RepositoryName, session: Uuid, caller: &Caller) -> Result<Response<Body>, Error> {
        self.is_own(&repository, session, caller)?;
        let name = repository.clone();
        let offset = self.store.run(move |store| store.upload_offset(&name, session)).await?;
        Ok(self.stands_at(StatusCode::NO_CONTENT, &repository, session, offset))
    }

    /// Adds bytes to a session. SPEC: end-5.
    pub(super) async fn append_upload(
        &self,
        repository: RepositoryName,
        session: Uuid,
        request: Pushed<'_>,
    ) -> Result<Response<Body>, Error> {
        let writer = self.take(&repository, session, request).await?;
        let offset = writer.suspend().await?;
        Ok(self.stands_at(StatusCode::ACCEPTED, &repository, session, offset))
    }

    /// Adds the last bytes, if any, and makes the session a blob. SPEC: end-6.
    pub(super) async fn finish_upload(
        &self,
        repository: RepositoryName,
        session: Uuid,
        digest: Digest,
        request: Pushed<'_>,
    ) -> Result<Response<Body>, Error> {
        let writer = self.take(&repository, session, request).await?;
        writer.finish(digest).await?;
        Ok(self.created(&repository, &digest))
    }

    /// Forgets a session. SPEC: end-14.
    pub(super) async fn cancel_upload(&self, repository: RepositoryName, session: Uuid, caller: &Caller) -> Result<Response<Body>, Error> {
        self.is_own(&repository, session, caller)?;
        patiently(&self.store, move |store| store.cancel_upload(&repository, session)).await?;
        Ok(empty(StatusCode::NO_CONTENT))
    }

    /// Opens a session and takes the body of a request into it; when that fails, the session is saved or, if it has become too large for
    /// any blob, forgotten.
    async fn take(&self, repository: &RepositoryName, session: Uuid, request: Pushed<'_>) -> Result<Writer, Error> {
        refuse_encoded(request.headers)?;
        self.is_own(repository, session, request.caller)?;
        let chunk = match request.headers.get(header::CONTENT_RANGE) {
            None => None,
            Some(value) => Some(value.to_str().ok().and_then(chunk).ok_or(Error::ContentRange)?),
        };
        let name = repository.clone();
        let upload = patiently(&self.store, move |store| store.open_upload(&name, session)).await?;
        let start = upload.offset();
        let mut writer = self.writer(upload);
        let announced = announced(request.headers);
        let location = || self.session(repository, session);
        let result = match check_chunk(start, announced, chunk) {
            Err(Misfit::Order) => Err(Error::OutOfOrder { offset: start, location: location() }),
            Err(Misfit::Size) => Err(Error::WrongSize { offset: start, location: location() }),
            Ok(()) => self.check_size(start, announced),
        };
        let result = match result {
            // Before the body: a client that asks first (`Expect: 100-continue`) sends none.
            Ok(()) => writer.reserve(&self.store, announced).await.map_err(Error::from),
            Err(refused) => Err(refused),
        };
        let result = match result {
            Ok(()) => self.receive(request.body, &mut writer, chunk.map_or(u64::MAX, |chunk| chunk.size)).await,
            Err(refused) => Err(refused),
        };
        match (result, chunk) {
            (Ok(Received::All), chunk) if chunk.is_none_or(|chunk| chunk.size == writer.received) => Ok(writer),
            (Ok(Received::All | Received::TooMuch), _) => {
                let offset = writer.suspend().await?;
                Err(Error::WrongSize { offset, location: location() })
            }
            (Err(error @ (Error::BlobTooLarge { .. } | Error::Store(store::Error::TooLarge { .. }))), _) => {
                writer.cancel().await;
                Err(error)
            }
            (Err(error), _) => {
                // ORDER: saved before the answer, so that a client that asks next hears the offset that counts.
                let saved = writer.suspend().await;
                tracing::debug!(%session, offset = ?saved.ok(), "an upload was interrupted");
                Err(error)
            }
        }
    }

    /// Moves a body into a session, but not more than `most` bytes; reading stops a batch later at the latest.
    async fn receive(&self, body: &mut Inflow, writer: &mut Writer, most: u64) -> Result<Received, Error> {
        loop {
            let filled = body.fill(&mut writer.batch).await;
            let left = usize::try_from(most - writer.received).unwrap_or(usize::MAX);
            let surplus = writer.batch.len() > left;
            writer.batch.truncate(left);
            writer.received += writer.batch.len() as u64;
            self.metrics.http_received_bytes.inc_by(writer.batch.len() as u64);
            // ORDER: what came before an error is kept, then the error counts.
            writer.flush(&self.store).await?;
            filled?;
            if surplus || body.is_ended() {
                writer.settle().await?;
                return Ok(if surplus { Received::TooMuch } else { Received::All });
            }
        }
    }

    /// S20: a session that somebody began after signing in is theirs alone. To others it is not there.
    fn is_own(&self, repository: &RepositoryName, session: Uuid, caller: &Caller) -> Result<(), Error> {
        let began = self.store.upload_client(repository, session)?;
        match began.strip_prefix(SIGNED_IN) {
            Some(name) if name != caller.who.name() => Err(Error::SessionUnknown),
            _ => Ok(()),
        }
    }

    fn check_size(&self, offset: u64, announced: Option<u64>) -> Result<(), Error> {
        let limit = self.blob_size_max;
        if announced.is_some_and(|size| size > limit.saturating_sub(offset)) { Err(Error::BlobTooLarge { limit }) } else { Ok(()) }
    }

    fn writer(&self, upload: Upload) -> Writer {
        Writer {
            batch: BytesMut::new(),
            spare: BytesMut::new(),
            received: 0,
            state: State::Idle(Box::new(upload)),
            when_dropped: WhenDropped::Save,
            tasks: self.tasks.clone(),
        }
    }

    fn session(&self, repository: &RepositoryName, session: Uuid) -> String {
        self.location(format_args!("{repository}/blobs/uploads/{session}"))
    }

    fn stands_at(&self, status: StatusCode, repository: &RepositoryName, session: Uuid, offset: u64) -> Response<Body> {
        let mut response = empty(status);
        set(&mut response, header::LOCATION, self.session(repository, session));
        set(&mut response, header::RANGE, uploaded(offset));
        set(&mut response, "docker-upload-uuid", session);
        response
    }

    fn created(&self, repository: &RepositoryName, digest: &Digest) -> Response<Body> {
        let mut response = empty(StatusCode::CREATED);
        set(&mut response, header::LOCATION, self.location(format_args!("{repository}/blobs/{digest}")));
        set_digest(&mut response, digest);
        response
    }
}

/// Stands in front of the names of those who have signed in, in the names of sessions' owners: no address begins so.
const SIGNED_IN: char = '@';

/// In whose name sessions are counted: who has signed in has a name; others have one address, but with IPv6 a network of them.
fn owner(client: IpAddr, caller: &Caller) -> String {
    if caller.who.is_known() {
        return format!("{SIGNED_IN}{}", caller.who.name());
    }
    crate::limits::origin(client).to_string()
}

/// What came of a body.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Received {
    /// It is in the session, whole.
    All,
    /// It had more than was allowed; as much as was allowed is in the session.
    TooMuch,
}

/// How a chunk does not fit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Misfit {
    /// It begins elsewhere.
    Order,
    /// Its body has another size.
    Size,
}

/// Whether a chunk goes on where the session stands, and is what it says it is, as far as can be told before its body (S21).
fn check_chunk(offset: u64, announced: Option<u64>, chunk: Option<Chunk>) -> Result<(), Misfit> {
    match chunk {
        Some(chunk) if chunk.start != offset => Err(Misfit::Order),
        Some(chunk) if announced.is_some_and(|size| size != chunk.size) => Err(Misfit::Size),
        Some(_) | None => Ok(()),
    }
}

fn announced(headers: &HeaderMap) -> Option<u64> {
    text(headers, &header::CONTENT_LENGTH).and_then(number)
}

/// Does something that needs room, and once more when there was none and somebody had a moment to make some.
pub(super) async fn with_room<T: Send + 'static>(
    store: &Store,
    work: impl Fn(&Store) -> Result<T, store::Error> + Clone + Send + 'static,
) -> Result<T, store::Error> {
    match store.run(work.clone()).await {
        Err(store::Error::Full { need, .. }) => {
            store.make_room(need).await;
            store.run(work).await
        }
        done => done,
    }
}

/// Does something with a session, waiting a moment when another request has it.
async fn patiently<T: Send + 'static>(
    store: &Store,
    work: impl Fn(&Store) -> Result<T, store::Error> + Clone + Send + 'static,
) -> Result<T, store::Error> {
    let deadline = Instant::now() + BUSY_WAIT_MAX;
    loop {
        match store.run(work.clone()).await {
            Err(store::Error::UploadBusy) if Instant::now() < deadline => tokio::time::sleep(BUSY_WAIT_STEP).await,
            done => return done,
        }
    }
}

/// A session in the hands of a request. Dropped, it is saved in the background with every byte that came, or forgotten.
struct Writer {
    /// What comes in while the batch before is being written.
    batch: BytesMut,
    /// What the batch before was in.
    spare: BytesMut,
    /// Bytes that this request brought.
    received: u64,
    state: State,
    when_dropped: WhenDropped,
    tasks: Tasks,
}

/// What becomes of a session whose request goes away.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum WhenDropped {
    /// Its client may come back.
    Save,
    /// Its client does not know it.
    Cancel,
}

enum State {
    Idle(Box<Upload>),
    Writing(JoinHandle<Written>),
    Gone,
}

type Written = (Box<Upload>, BytesMut, Result<(), store::Error>);

fn write(mut upload: Box<Upload>, mut batch: BytesMut) -> Written {
    let result = upload.append(&batch);
    batch.clear();
    (upload, batch, result)
}

impl Writer {
    /// Makes sure that there is room for what was announced, evicting something if need be.
    async fn reserve(&mut self, store: &Store, announced: Option<u64>) -> Result<(), store::Error> {
        let Some(size) = announced else { return Ok(()) };
        self.with_room(store, move |upload| upload.reserve(size)).await
    }

    /// Reserves, and once more when there was no room and somebody had a moment to make some. Cancel-safe.
    async fn with_room(&mut self, store: &Store, reserve: impl Fn(&mut Upload) -> Result<(), store::Error>) -> Result<(), store::Error> {
        self.settle().await?;
        let State::Idle(upload) = &mut self.state else { return Ok(()) };
        let Err(store::Error::Full { need, .. }) = reserve(upload) else { return Ok(()) };
        store.make_room(need).await;
        reserve(upload)
    }

    /// Starts to write the batch; waits for the one before. Cancel-safe: nothing is lost.
    async fn flush(&mut self, store: &Store) -> Result<(), store::Error> {
        let size = self.batch.len() as u64;
        self.with_room(store, move |upload| upload.reserve_step(size)).await?;
        if self.batch.is_empty() {
            return Ok(());
        }
        if let State::Idle(upload) = std::mem::replace(&mut self.state, State::Gone) {
            let batch = std::mem::replace(&mut self.batch, std::mem::take(&mut self.spare));
            self.state = State::Writing(tokio::task::spawn_blocking(move || write(upload, batch)));
        }
        Ok(())
    }

    /// Waits until what was flushed is written. Cancel-safe.
    async fn settle(&mut self) -> Result<(), store::Error> {
        let State::Writing(writing) = &mut self.state else { return Ok(()) };
        let (upload, spare, result) = writing.await.expect("appending to an upload does not panic");
        self.state = State::Idle(upload);
        self.spare = spare;
        result
    }

    /// Saves where the session stands; returns the offset.
    async fn suspend(mut self) -> Result<u64, store::Error> {
        let settled = self.settle().await;
        let upload = self.release();
        let offset = tokio::task::spawn_blocking(move || upload.suspend()).await.expect("suspending an upload does not panic")?;
        settled.map(|()| offset)
    }

    /// Makes the session a blob.
    async fn finish(mut self, digest: Digest) -> Result<(), store::Error> {
        self.settle().await?;
        let upload = self.release();
        tokio::task::spawn_blocking(move || upload.finish(digest)).await.expect("finishing an upload does not panic").map(|_| ())
    }

    /// Forgets the session; what could not be removed expires.
    async fn cancel(mut self) {
        let _ = self.settle().await;
        let upload = self.release();
        let cancelled = tokio::task::spawn_blocking(move || upload.cancel()).await.expect("cancelling an upload does not panic");
        if let Err(error) = cancelled {
            tracing::warn!(%error, "an upload session could not be removed; it expires later");
        }
    }

    fn release(&mut self) -> Box<Upload> {
        match std::mem::replace(&mut self.state, State::Gone) {
            State::Idle(upload) => upload,
            State::Writing(_) | State::Gone => unreachable!("settled before, and released once"),
        }
    }
}

impl Drop for Writer {
    /// CRASH: a kill before this task ends leaves the session at its last saved offset, as any kill in an upload does.
    fn drop(&mut self) {
        let state = std::mem::replace(&mut self.state, State::Gone);
        if matches!(state, State::Gone) || tokio::runtime::Handle::try_current().is_err() {
            return;
        }
        let batch = std::mem::take(&mut self.batch);
        let when_dropped = self.when_dropped;
        self.tasks.spawn("save an interrupted upload", async move {
            let (upload, _, result) = match state {
                State::Idle(upload) => (upload, BytesMut::new(), Ok(())),
                State::Writing(writing) => writing.await.expect("appending to an upload does not panic"),
                State::Gone => return,
            };
            let saved = tokio::task::spawn_blocking(move || {
                if when_dropped == WhenDropped::Cancel {
                    return upload.cancel();
                }
                // After a batch that failed the next one would stand at the wrong place.
                let (upload, _, result) = if result.is_ok() { write(upload, batch) } else { (upload, batch, result) };
                upload.suspend()?;
                result
            });
            if let Err(error) = saved.await.expect("suspending an upload does not panic") {
                tracing::debug!(%error, "an interrupted upload goes on at its last saved offset");
            }
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn s21_a_chunk_must_go_on_where_the_session_stands() {
        let of = |start, size| Some(Chunk { start, size });
        for (offset, announced, chunk, expected) in [
            (0, Some(5), None, Ok(())),
            (0, Some(5), of(0, 5), Ok(())),
            (5, Some(5), of(5, 5), Ok(())),
            (5, None, of(5, 5), Ok(())),
            (5, Some(5), of(0, 5), Err(Misfit::Order)),
            (5, Some(5), of(4, 5), Err(Misfit::Order)),
            (5, Some(5), of(6, 5), Err(Misfit::Order)),
            (0, Some(5), of(u64::MAX, 1), Err(Misfit::Order)),
            (0, Some(6), of(0, 5), Err(Misfit::Size)),
            (0, Some(4), of(0, 5), Err(Misfit::Size)),
            (0, Some(5), of(0, u64::MAX), Err(Misfit::Size)),
        ] {
            assert_eq!(check_chunk(offset, announced, chunk), expected, "{offset} {announced:?} {chunk:?}");
        }
    }
}
