//! Bodies: what clients send, gathered in batches; what they get, read from wherever the blob is.
//!
//! Memory is bounded in both directions, whatever the size of a blob: an upload holds two batches (one being written while
//! the next one comes in), a download holds two read buffers.
//!
//! - **In**: [`Inflow`] gathers frames into batches and watches the clock: a client must bring [`PROGRESS_MIN`] bytes in each
//!   `http.idle_timeout` (S18). What a refused request still has to send is read and thrown away for a moment, while the answer
//!   is already on its way: a connection that is closed with unread bytes in it takes the answer with it.
//! - **Out**: [`Outflow`] reads files MiB by MiB and checks each before any of it is sent, on the spot when the pages are in
//!   memory (`preadv2(RWF_NOWAIT)`), on a blocking thread when they are not. What was checked a moment ago and is in memory still goes out by
//!   [`super::direct`], where the connection can do that. When a MiB is damaged, it goes on from elsewhere.
//!   It ends cleanly after the announced bytes and in no other way: a read that fails or ends early
//!   breaks the connection, so that no client takes a part for the whole (I2).

use std::io::{self, IoSliceMut};
use std::ops::Range;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use futures_util::future::BoxFuture;
use http_body_util::{BodyExt, Full};
use hyper::body::{Body as HttpBody, Frame, Incoming, SizeHint};
use larder_protocol::digest::{CHUNK_SIZE, Digest};
use prometheus_client::metrics::counter::Counter;
use rustix::io::{ReadWriteFlags, preadv2};
use tokio::time::{Instant, timeout, timeout_at};
use tokio_util::sync::ReusableBoxFuture;

use super::error::Error;
use super::server::BUFFER_SIZE_MAX;
use super::{Body, direct};
use crate::lookup::Opened;
use crate::store::{self, BlobFile, Content, StagedReader};

/// Bytes that are gathered before they are written: one hop to a blocking thread for so many.
pub(super) const BATCH_SIZE: usize = 256 << 10;
/// A body may have so many bytes before it gets room for a batch.
const SMALL_BATCH_SIZE: usize = 16 << 10;
/// Bytes that a client must bring in each idle timeout.
const PROGRESS_MIN: usize = 1 << 10;
/// Frames in a row that carry nothing: in HTTP/2 they cost the client nine bytes each, and nothing of its window.
const EMPTY_FRAMES_MAX: usize = 100;
/// Most bytes of a refused body that are read and thrown away, and for how long.
const DRAIN_SIZE_MAX: u64 = 16 << 20;
const DRAIN_TIME_MAX: Duration = Duration::from_secs(5);
/// Most bytes that are handed to the connection at a time.
const READ_SIZE: usize = 256 << 10;
/// Chunks of one download that may be on their way at a time.
const READ_BUFFERS: usize = 2;
/// How often in a row a read may be turned to another place.
const HEALS_MAX: usize = 2;

/// A body that is in memory.
pub(super) fn whole(bytes: Bytes) -> Body {
    Full::new(bytes).map_err(|never| match never {}).boxed()
}

/// The body of a request.
#[derive(Debug)]
pub(super) struct Inflow<B = Incoming> {
    body: Option<B>,
    /// Whether it was asked for; a client that waits for `100 Continue` sends nothing before.
    asked: bool,
    idle: Duration,
}

impl<B> Inflow<B>
where
    B: HttpBody<Data = Bytes> + Unpin + Send + 'static,
    B::Error: std::fmt::Display,
{
    /// Takes a body that may rest for `idle` at most.
    pub(super) fn new(body: B, idle: Duration) -> Self {
        let body = Some(body).filter(|body| !body.is_end_stream());
        Self { body, asked: false, idle }
    }

    /// Whether everything has come.
    pub(super) fn is_ended(&self) -> bool {
        self.body.is_none()
    }

    /// Adds to `batch` until it holds [`BATCH_SIZE`] or the body ends; what came before an error is in it as well.
    ///
    /// # Errors
    /// `Stalled` when it makes no progress, `Broken` when it broke off. Cancel-safe.
    pub(super) async fn fill(&mut self, batch: &mut BytesMut) -> Result<(), Error> {
        self.asked = true;
        let (mut since, mut progress, mut empty) = (Instant::now(), 0, 0);
        while batch.len() < BATCH_SIZE {
            let Some(body) = &mut self.body else { return Ok(()) };
            match timeout_at(since + self.idle, body.frame()).await {
                Err(_) => return Err(Error::Stalled { seconds: self.idle.as_secs() }),
                Ok(None) => self.body = None,
                Ok(Some(Err(error))) => {
                    self.body = None;
                    return Err(Error::Broken { why: error.to_string() });
                }
                Ok(Some(Ok(frame))) => {
                    // Trailers mean nothing here.
                    let Ok(data) = frame.into_data() else { continue };
                    empty = if data.is_empty() { empty + 1 } else { 0 };
                    if empty > EMPTY_FRAMES_MAX {
                        self.body = None;
                        return Err(Error::Broken { why: format!("{EMPTY_FRAMES_MAX} frames in a row carried nothing") });
                    }
                    if batch.capacity() < BATCH_SIZE && batch.len() + data.len() > SMALL_BATCH_SIZE {
                        // At once: growing step by step would copy, and leave the allocator holes.
                        batch.reserve(BATCH_SIZE + BUFFER_SIZE_MAX - batch.len());
                    }
                    batch.extend_from_slice(&data);
                    progress += data.len();
                    if progress >= PROGRESS_MIN {
                        (since, progress) = (Instant::now(), 0);
                    }
                }
            }
        }
        Ok(())
    }

    /// The whole body, if it has at most `limit` bytes; reading stops soon after (S5).
    pub(super) async fn collect(&mut self, limit: u64) -> Result<Option<Bytes>, Error> {
        let mut all = BytesMut::new();
        while !self.is_ended() {
            let mut batch = BytesMut::new();
            self.fill(&mut batch).await?;
            if (all.len() + batch.len()) as u64 > limit {
                return Ok(None);
            }
            all.extend_from_slice(&batch);
        }
        Ok(Some(all.freeze()))
    }

    /// Gives the rest up. It is read and thrown away for a moment, in the background, so that the answer gets through.
    pub(super) fn abandon(&mut self) {
        let Some(mut body) = self.body.take().filter(|_| self.asked) else { return };
        tokio::spawn(timeout(DRAIN_TIME_MAX, async move {
            let mut drained = 0;
            while drained < DRAIN_SIZE_MAX
                && let Some(Ok(frame)) = body.frame().await
            {
                drained += frame.data_ref().map_or(0, |data| data.len() as u64);
            }
        }));
    }

    /// Says that the client sends its body without being asked, so that there is something to throw away.
    pub(super) fn expect_unasked(&mut self) {
        self.asked = true;
    }
}

/// Has a blob from elsewhere, when its file here turned out to be damaged, and for which reason.
pub(super) type Heal = Arc<dyn Fn(BlobFile, String) -> BoxFuture<'static, io::Result<Opened>> + Send + Sync>;

/// A part of a blob, on its way to a client.
pub(super) struct Outflow {
    source: Source,
    digest: Digest,
    /// What is still to be sent.
    left: Range<u64>,
    sent: Counter,
    heal: Heal,
    reading: Option<ReusableBoxFuture<'static, io::Result<Piece>>>,
}

enum Source {
    Memory(Bytes),
    File {
        file: BlobFile,
        /// The chunk that was read and checked last.
        chunk: Option<(u64, Bytes)>,
        buffers: Buffers,
    },
    Coming(StagedReader),
    /// A read is under way and has it.
    Away,
}

/// What a read gives: the bytes, and the source for the next one.
type Piece = (Source, Bytes);

impl Source {
    fn new(opened: Opened) -> Self {
        match opened {
            Opened::Here(Content::Memory(bytes)) => Source::Memory(bytes),
            Opened::Here(Content::File(file)) => Source::File { file, chunk: None, buffers: Buffers::default() },
            Opened::Coming(reader) => Source::Coming(reader),
        }
    }
}

impl Outflow {
    /// Sends `range` of a blob, which must lie within it.
    pub(super) fn new(opened: Opened, digest: Digest, range: Range<u64>, sent: Counter, heal: Heal) -> Self {
        Self { source: Source::new(opened), digest, left: range, sent, heal, reading: None }
    }

    /// The bytes that can be had at once, or the read that brings them.
    fn read(&mut self) -> Result<Bytes, BoxFuture<'static, io::Result<Piece>>> {
        let left = self.left.clone();
        let source = match std::mem::replace(&mut self.source, Source::Away) {
            Source::Memory(bytes) => {
                let piece = of_memory(&bytes, &left);
                self.source = Source::Memory(bytes);
                return Ok(piece);
            }
            Source::File { file, mut chunk, mut buffers } => {
                let index = left.start / CHUNK_SIZE;
                let is_read = chunk.as_ref().is_some_and(|(at, _)| *at == index);
                if !is_read && file.is_known(index) {
                    let part = left.start..left.end.min((index + 1) * CHUNK_SIZE);
                    let piece = direct::stand_in(file.file(), part.clone()).or_else(|| buffers.read_known(&file, part));
                    if let Some(piece) = piece {
                        self.source = Source::File { file, chunk, buffers };
                        return Ok(piece);
                    }
                }
                if !is_read {
                    chunk = buffers.read_at_once(&file, index).map(|bytes| (index, bytes));
                }
                if let Some((_, bytes)) = &chunk {
                    let piece = of_chunk(index, bytes, &left);
                    self.source = Source::File { file, chunk, buffers };
                    return Ok(piece);
                }
                Source::File { file, chunk, buffers }
            }
            slow => slow,
        };
        Err(Box::pin(read_on(source, left, Arc::clone(&self.heal))))
    }
}

/// Reads on where it takes time: from a disk, from a blob that is on its way, from elsewhere.
async fn read_on(mut source: Source, left: Range<u64>, heal: Heal) -> io::Result<Piece> {
    let mut healed = 0;
    loop {
        match source {
            Source::Memory(bytes) => {
                let piece = of_memory(&bytes, &left);
                return Ok((Source::Memory(bytes), piece));
            }
            Source::File { file, mut buffers, .. } => {
                let index = left.start / CHUNK_SIZE;
                let read = tokio::task::spawn_blocking(move || {
                    let read = buffers.read(&file, index);
                    (file, buffers, read)
                });
                let (file, buffers, read) = read.await.map_err(io::Error::other)?;
                match read {
                    Ok(bytes) => {
                        let piece = of_chunk(index, &bytes, &left);
                        return Ok((Source::File { file, chunk: Some((index, bytes)), buffers }, piece));
                    }
                    // F7, F8: the client gets the rest from where it is right.
                    Err(why) if healed < HEALS_MAX => {
                        healed += 1;
                        source = Source::new(heal(file, why).await?);
                    }
                    Err(why) => return Err(io::Error::new(io::ErrorKind::InvalidData, why)),
                }
            }
            Source::Coming(mut reader) => {
                let limit = READ_SIZE.min(usize::try_from(left.end - left.start).unwrap_or(READ_SIZE));
                let piece = reader.read(left.start, limit).await.map_err(broken)?;
                return Ok((Source::Coming(reader), piece));
            }
            Source::Away => return Err(io::Error::other("read on after a failed read")),
        }
    }
}

fn of_memory(bytes: &Bytes, left: &Range<u64>) -> Bytes {
    let end = bytes.len().min(usize::try_from(left.end).unwrap_or(usize::MAX));
    bytes.slice(end.min(usize::try_from(left.start).unwrap_or(usize::MAX))..end)
}

/// The next bytes of what is left, out of chunk `index`, which holds the first of them.
fn of_chunk(index: u64, chunk: &Bytes, left: &Range<u64>) -> Bytes {
    let start = index * CHUNK_SIZE;
    let end = (left.end - start).min(chunk.len() as u64) as usize;
    let from = ((left.start - start) as usize).min(end);
    chunk.slice(from..end.min(from + READ_SIZE))
}

fn broken(error: store::Error) -> io::Error {
    match error {
        store::Error::Io { source, .. } => source,
        other => io::Error::other(other),
    }
}

impl HttpBody for Outflow {
    type Data = Bytes;
    type Error = io::Error;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<io::Result<Frame<Bytes>>>> {
        let this = &mut *self;
        if this.left.is_empty() {
            return Poll::Ready(None);
        }
        let read = if this.reading.is_some() { None } else { Some(this.read()) };
        let piece = match read {
            Some(Ok(piece)) => Ok(piece),
            pending => {
                if let Some(Err(future)) = pending {
                    this.reading = Some(ReusableBoxFuture::new(future));
                }
                let reading = this.reading.as_mut().expect("a read is under way");
                let read = ready!(reading.poll(cx));
                this.reading = None;
                read.map(|(source, piece)| {
                    this.source = source;
                    piece
                })
            }
        };
        let wanted = this.left.end - this.left.start;
        let error = match piece {
            Ok(piece) if !piece.is_empty() && piece.len() as u64 <= wanted => {
                this.left.start += piece.len() as u64;
                this.sent.inc_by(piece.len() as u64);
                return Poll::Ready(Some(Ok(Frame::data(piece))));
            }
            Ok(_) => io::Error::from(io::ErrorKind::UnexpectedEof),
            Err(error) => error,
        };
        tracing::warn!(digest = %this.digest, offset = this.left.start, %error, "a download was broken off: its blob could not be read on");
        Poll::Ready(Some(Err(error)))
    }

    fn is_end_stream(&self) -> bool {
        self.left.is_empty()
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact(self.left.end - self.left.start)
    }
}

/// Read buffers that are used again once the connection has let go of them.
#[derive(Default)]
struct Buffers(Vec<Arc<Vec<u8>>>);

struct Shared(Arc<Vec<u8>>);

impl AsRef<[u8]> for Shared {
    fn as_ref(&self) -> &[u8] {
        &self.0
    }
}

impl Buffers {
    /// Chunk `index`, checked, when its pages are in memory. Otherwise, and when anything is wrong with it, nothing: the read
    /// that waits tells what is real.
    fn read_at_once(&mut self, file: &BlobFile, index: u64) -> Option<Bytes> {
        let mut buffer = self.take(file.chunk_size(index));
        let whole = file.read_chunk_at_once(index, Arc::get_mut(&mut buffer).expect("a buffer that nobody else has"));
        self.give(buffer, whole)
    }

    /// The first bytes of a part that is known to be right. What can't be had at once is not had here.
    fn read_known(&mut self, file: &BlobFile, part: Range<u64>) -> Option<Bytes> {
        let mut buffer = self.take(usize::try_from(part.end - part.start).map_or(READ_SIZE, |size| size.min(READ_SIZE)));
        let space = Arc::get_mut(&mut buffer).expect("a buffer that nobody else has");
        let read = preadv2(&**file.file(), &mut [IoSliceMut::new(space)], part.start, ReadWriteFlags::NOWAIT);
        let whole = read.is_ok_and(|count| count == buffer.len());
        self.give(buffer, whole)
    }

    /// Chunk `index`, checked. Blocks.
    fn read(&mut self, file: &BlobFile, index: u64) -> Result<Bytes, String> {
        let mut buffer = self.take(file.chunk_size(index));
        let read = file.read_chunk(index, Arc::get_mut(&mut buffer).expect("a buffer that nobody else has"));
        let bytes = self.give(buffer, read.is_ok());
        read.map(|()| bytes.expect("it was read"))
    }

    fn take(&mut self, size: usize) -> Arc<Vec<u8>> {
        match self.0.iter().position(|buffer| Arc::strong_count(buffer) == 1 && buffer.len() == size) {
            Some(free) => self.0.swap_remove(free),
            None => {
                // One of another size would only be in the way.
                self.0.pop_if(|buffer| Arc::strong_count(buffer) == 1);
                Arc::new(vec![0; size])
            }
        }
    }

    fn give(&mut self, buffer: Arc<Vec<u8>>, filled: bool) -> Option<Bytes> {
        if self.0.len() < READ_BUFFERS {
            self.0.push(Arc::clone(&buffer));
        }
        filled.then(|| Bytes::from_owner(Shared(buffer)))
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use http_body_util::StreamBody;
    use larder_protocol::digest::{ChunkList, chunk_value, tree_hash};
    use tokio::sync::mpsc;

    use super::*;

    /// Real time: long for a test that does not stall, short for a person.
    const IDLE: Duration = Duration::from_millis(400);

    fn inflow(
        receiver: mpsc::Receiver<Result<Frame<Bytes>, &'static str>>,
    ) -> Inflow<impl HttpBody<Data = Bytes, Error = &'static str> + Unpin + Send> {
        let stream =
            futures_util::stream::unfold(receiver, |mut receiver| async move { receiver.recv().await.map(|frame| (frame, receiver)) });
        Inflow::new(StreamBody::new(Box::pin(stream)), IDLE)
    }

    /// A file of which `proof` is the proof, with other bytes where a test wants to see damage.
    fn file(proof: &[u8], bytes: &[u8]) -> Opened {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(bytes).unwrap();
        let digest = Digest::sha256(proof);
        let file = if proof.len() as u64 <= CHUNK_SIZE {
            BlobFile::small(file, digest, proof.len() as u64, tree_hash(proof))
        } else {
            let values = proof.chunks(CHUNK_SIZE as usize).enumerate().map(|(index, chunk)| chunk_value(index as u64, chunk)).collect();
            BlobFile::large(file, digest, ChunkList::new(proof.len() as u64, values))
        };
        Opened::Here(Content::File(file))
    }

    fn nowhere() -> Heal {
        Arc::new(|_, why| Box::pin(std::future::ready(Err(io::Error::other(why)))))
    }

    async fn collected(opened: Opened, range: Range<u64>, heal: Heal) -> io::Result<Bytes> {
        let sent = Counter::default();
        let size = range.end - range.start;
        let outflow = Outflow::new(opened, Digest::sha256(b""), range, sent.clone(), heal);
        assert_eq!(outflow.size_hint().exact(), Some(size));
        let bytes = outflow.collect().await?.to_bytes();
        assert_eq!(sent.get(), size);
        Ok(bytes)
    }

    fn blob(size: usize) -> Vec<u8> {
        (0..size).map(|i| (i * 31 % 251) as u8).collect()
    }

    /// One byte, around a piece, around a chunk, several chunks.
    const SIZES: [usize; 8] =
        [1, READ_SIZE - 1, READ_SIZE, READ_SIZE + 1, CHUNK_SIZE as usize, CHUNK_SIZE as usize + 1, 2 << 20, (3 << 20) + 7];

    #[tokio::test]
    async fn a_part_of_a_file_or_of_memory_is_sent_as_asked() {
        for size in SIZES {
            let bytes = blob(size);
            for range in [0..size, size / 2..size, 0..size / 2 + 1, size - 1..size] {
                let (part, wanted) = (bytes[range.clone()].to_vec(), range.start as u64..range.end as u64);
                assert_eq!(collected(file(&bytes, &bytes), wanted.clone(), nowhere()).await.unwrap(), part);
                assert_eq!(collected(Opened::Here(Content::Memory(bytes.clone().into())), wanted, nowhere()).await.unwrap(), part);
            }
        }
    }

    #[tokio::test]
    async fn f8_not_one_byte_of_a_damaged_chunk_is_sent() {
        for size in SIZES {
            let good = blob(size);
            for place in [0, size / 2, size - 1] {
                let mut bad = good.clone();
                bad[place] ^= 1;
                let sent = Counter::default();
                let outflow = Outflow::new(file(&good, &bad), Digest::sha256(b""), 0..size as u64, sent.clone(), nowhere());
                outflow.collect().await.unwrap_err();
                assert_eq!(sent.get(), place as u64 / CHUNK_SIZE * CHUNK_SIZE, "{size} bytes, damaged at {place}");
            }
        }
    }

    #[tokio::test]
    async fn f8_a_download_goes_on_from_elsewhere() {
        let size = (3 << 20) + 7;
        let good = blob(size);
        let mut bad = good.clone();
        bad[(1 << 20) + 5] ^= 1;
        let elsewhere = good.clone();
        let heal: Heal = Arc::new(move |_, _| Box::pin(std::future::ready(Ok(file(&elsewhere, &elsewhere)))));
        for range in [0..size as u64, (1 << 20)..size as u64] {
            let part = good[range.start as usize..range.end as usize].to_vec();
            assert_eq!(collected(file(&good, &bad), range, Arc::clone(&heal)).await.unwrap(), part);
        }
        // Damaged there too, and there, and so on: it ends.
        let (proof, worse) = (good.clone(), bad.clone());
        let heal: Heal = Arc::new(move |_, _| Box::pin(std::future::ready(Ok(file(&proof, &worse)))));
        collected(file(&good, &bad), 0..size as u64, heal).await.unwrap_err();
    }

    #[tokio::test]
    async fn a_file_that_is_shorter_than_it_should_be_breaks_the_body_off() {
        collected(file(b"longer", b"short"), 0..6, nowhere()).await.unwrap_err();
    }

    #[tokio::test]
    async fn frames_are_gathered_and_what_came_before_an_error_is_kept() {
        let (sender, receiver) = mpsc::channel(8);
        let mut inflow = inflow(receiver);
        for frame in [Ok(Frame::data(Bytes::from_static(b"ab"))), Ok(Frame::data(Bytes::from_static(b"c"))), Err("reset")] {
            sender.send(frame).await.unwrap();
        }
        let mut batch = BytesMut::new();
        assert!(matches!(inflow.fill(&mut batch).await, Err(Error::Broken { .. })));
        assert_eq!(&batch[..], b"abc");
        assert!(inflow.is_ended());
    }

    #[tokio::test]
    async fn s18_a_body_that_stalls_or_trickles_is_given_up() {
        let (sender, receiver) = mpsc::channel(1);
        let mut inflow = inflow(receiver);
        tokio::spawn(async move {
            while sender.send(Ok(Frame::data(Bytes::from_static(b"x")))).await.is_ok() {
                tokio::time::sleep(IDLE / 4).await;
            }
        });
        let started = Instant::now();
        assert!(matches!(inflow.fill(&mut BytesMut::new()).await, Err(Error::Stalled { .. })));
        assert!(started.elapsed() >= IDLE);
    }

    #[tokio::test]
    async fn s18_a_flood_of_empty_frames_is_cut_off() {
        let (sender, receiver) = mpsc::channel(8);
        let mut inflow = inflow(receiver);
        let sent = tokio::spawn(async move {
            let mut sent = 0;
            while sent < 100 * EMPTY_FRAMES_MAX && sender.send(Ok(Frame::data(Bytes::new()))).await.is_ok() {
                sent += 1;
            }
            sent
        });
        assert!(matches!(inflow.fill(&mut BytesMut::new()).await, Err(Error::Broken { .. })));
        assert!(sent.await.unwrap() < 2 * EMPTY_FRAMES_MAX);
    }

    #[tokio::test]
    async fn s18_a_slow_body_that_makes_progress_is_taken() {
        let (sender, receiver) = mpsc::channel(1);
        let mut inflow = inflow(receiver);
        tokio::spawn(async move {
            for _ in 0..10 {
                let _ = sender.send(Ok(Frame::data(Bytes::from(vec![0; PROGRESS_MIN])))).await;
                tokio::time::sleep(IDLE / 4).await;
            }
        });
        let mut batch = BytesMut::new();
        inflow.fill(&mut batch).await.unwrap();
        assert_eq!(batch.len(), 10 * PROGRESS_MIN);
    }

    #[tokio::test]
    async fn s5_a_body_is_collected_up_to_its_limit() {
        for (size, fits) in [(0, true), (9, true), (10, true), (11, false), (BATCH_SIZE + 1, false)] {
            let (sender, receiver) = mpsc::channel(1);
            let mut inflow = inflow(receiver);
            let sent = Bytes::from(vec![7; size]);
            let frame = Frame::data(sent.clone());
            tokio::spawn(async move { sender.send(Ok(frame)).await });
            assert_eq!(inflow.collect(10).await.unwrap(), Some(sent).filter(|_| fits), "{size}");
        }
    }

    /// Serves one connection that refuses every body, sends `request` on it and reads to the end.
    async fn refused(request: Vec<u8>) -> String {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        tokio::spawn(async move {
            let (stream, _) = listener.accept().await.unwrap();
            let service = hyper::service::service_fn(async |request: http::Request<Incoming>| {
                let mut inflow = Inflow::new(request.into_body(), IDLE);
                inflow.expect_unasked();
                inflow.abandon();
                http::Response::builder().status(413).body(whole(Bytes::from_static(b"too much")))
            });
            let _ = hyper::server::conn::http1::Builder::new().serve_connection(hyper_util::rt::TokioIo::new(stream), service).await;
        });
        let client = move || {
            use std::io::Read as _;
            let mut stream = std::net::TcpStream::connect(address)?;
            stream.write_all(&request)?;
            stream.shutdown(std::net::Shutdown::Write)?;
            let mut answer = String::new();
            stream.read_to_string(&mut answer)?;
            Ok::<_, io::Error>(answer)
        };
        tokio::task::spawn_blocking(client).await.unwrap().unwrap()
    }

    #[tokio::test]
    async fn a_client_that_sends_on_after_a_refusal_gets_the_answer() {
        // More than any socket buffer holds: without the draining the connection is reset under the client's hands.
        let size = (DRAIN_SIZE_MAX / 2) as usize;
        let mut request = format!("PUT / HTTP/1.1\r\nhost: a\r\ncontent-length: {size}\r\n\r\n").into_bytes();
        request.resize(request.len() + size, b'x');
        let answer = refused(request).await;
        assert!(answer.starts_with("HTTP/1.1 413") && answer.ends_with("too much"), "{answer}");
    }

    #[tokio::test]
    async fn s19_a_request_with_two_lengths_is_the_last_of_its_connection() {
        let smuggled = "GET /smuggled HTTP/1.1\r\nhost: a\r\n\r\n";
        for lengths in ["content-length: 4\r\ntransfer-encoding: chunked", "transfer-encoding: chunked\r\ncontent-length: 4"] {
            let request = format!("POST / HTTP/1.1\r\nhost: a\r\n{lengths}\r\n\r\n0\r\n\r\n{smuggled}");
            assert_eq!(refused(request.into_bytes()).await.matches("HTTP/1.1").count(), 1, "{lengths}");
        }
        let twice = "POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 4\r\ncontent-length: 5\r\n\r\nabcde";
        assert!(refused(twice.into()).await.starts_with("HTTP/1.1 400"));
    }
}
