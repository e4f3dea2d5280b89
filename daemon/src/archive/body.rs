//! The bytes of a pack on their way out: headers from memory, blobs from their files, a small piece at a time.
//!
//! A body can be read more than once, because a PUT that failed is sent again; each reading opens the blobs anew. Nothing but
//! [`PIECES_AHEAD`] pieces is ever in memory: the reading thread waits for the network.

use std::fmt;
use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use http_body::{Frame, SizeHint};
use larder_protocol::digest::{CHUNK_SIZE, Digest};
use larder_protocol::pack::Piece;
use tokio::sync::mpsc;

use crate::age::Seal;
use crate::store::Content;

/// Most bytes that are handed on at a time.
const PIECE_SIZE: usize = 256 << 10;
/// Pieces that are read before the network has taken the one before.
const PIECES_AHEAD: usize = 2;

/// Opens a blob for reading.
pub type OpenBlob = Arc<dyn Fn(&Digest) -> io::Result<Content> + Send + Sync>;

/// What a pack is made of. Cheap to clone.
#[derive(Clone)]
pub struct Body {
    source: Source,
    size: u64,
    damaged: Arc<AtomicBool>,
}

#[derive(Clone)]
enum Source {
    Pieces(Arc<[Piece]>, OpenBlob),
    File(Arc<File>),
    /// What is read of another body is encrypted on the way.
    Sealed(Arc<Body>, Arc<Seal>),
}

impl fmt::Debug for Body {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Body({} bytes)", self.size)
    }
}

impl Body {
    /// The body of these pieces.
    pub fn new(pieces: Arc<[Piece]>, open: OpenBlob) -> Self {
        let size = pieces.iter().map(size_of).sum();
        Self { source: Source::Pieces(pieces, open), size, damaged: Arc::default() }
    }

    /// The body of a file that nobody changes.
    pub fn file(file: Arc<File>, size: u64) -> Self {
        Self { source: Source::File(file), size, damaged: Arc::default() }
    }

    /// The same, encrypted: every reading gives the same bytes.
    pub fn sealed(self, seal: Arc<Seal>) -> Self {
        let (size, damaged) = (seal.size(), self.damaged.clone());
        Self { source: Source::Sealed(Arc::new(self), seal), size, damaged }
    }

    /// Bytes.
    pub fn size(&self) -> u64 {
        self.size
    }

    /// Whether a reading ended because a blob on this disk is not what it was.
    pub fn is_damaged(&self) -> bool {
        self.damaged.load(Ordering::Acquire)
    }

    /// Hands every piece to `take`, in order. Blocks.
    ///
    /// # Errors
    /// Those of `take`; a blob that is not here, or not as long as it was.
    pub fn read(&self, take: impl FnMut(Bytes) -> io::Result<()>) -> io::Result<()> {
        self.read_range(0..self.size, take)
    }

    /// The same of a part.
    ///
    /// # Errors
    /// As [`Body::read`].
    pub fn read_range(&self, range: Range<u64>, mut take: impl FnMut(Bytes) -> io::Result<()>) -> io::Result<()> {
        self.read_part(range, &mut take)
    }

    /// Of one type whatever takes the bytes: a sealed body reads another one.
    fn read_part(&self, range: Range<u64>, mut take: &mut dyn FnMut(Bytes) -> io::Result<()>) -> io::Result<()> {
        let (pieces, open) = match &self.source {
            Source::Pieces(pieces, open) => (pieces, open),
            Source::Sealed(inner, seal) => {
                let needs = seal.needs(&range);
                let mut sealing = seal.sealing(range);
                inner.read_part(needs, &mut |bytes| sealing.push(&bytes, &mut *take))?;
                return sealing.finish(take);
            }
            Source::File(file) => {
                let mut at = range.start;
                while at < range.end {
                    let mut piece = vec![0; (PIECE_SIZE as u64).min(range.end - at) as usize];
                    file.read_exact_at(&mut piece, at)?;
                    at += piece.len() as u64;
                    take(piece.into())?;
                }
                return Ok(());
            }
        };
        let mut start = 0;
        for piece in pieces.iter() {
            let length = size_of(piece);
            // Of this piece, the bytes that are asked for.
            let (from, to) = (range.start.saturating_sub(start), range.end.saturating_sub(start).min(length));
            start += length;
            if from >= to {
                continue;
            }
            match piece {
                Piece::Bytes(bytes) => take(bytes.slice(from as usize..to as usize))?,
                Piece::Blob { digest, size } => {
                    let read = open(digest).and_then(|content| read_part(&content, digest, *size, from..to, &mut take));
                    if read.as_ref().is_err_and(|error| error.kind() == io::ErrorKind::InvalidData) {
                        self.damaged.store(true, Ordering::Release);
                    }
                    read?;
                }
            }
        }
        Ok(())
    }

    /// Begins a reading for the network. Nothing is read before it is polled.
    pub fn reading(&self) -> Reading {
        self.reading_of(0..self.size)
    }

    /// The same of a part.
    pub fn reading_of(&self, range: Range<u64>) -> Reading {
        Reading { left: range.end - range.start, state: State::Waiting(self.clone(), range) }
    }
}

/// Hands the bytes of a blob to `take`, in pieces. Blocks.
pub fn read_blob(content: &Content, digest: &Digest, size: u64, take: &mut impl FnMut(Bytes) -> io::Result<()>) -> io::Result<()> {
    read_part(content, digest, size, 0..size, take)
}

fn read_part(
    content: &Content,
    digest: &Digest,
    size: u64,
    part: Range<u64>,
    take: &mut impl FnMut(Bytes) -> io::Result<()>,
) -> io::Result<()> {
    let there = content.size();
    if there != size {
        return Err(io::Error::new(io::ErrorKind::InvalidData, format!("blob {digest} has {there} bytes and not {size}")));
    }
    match content {
        Content::Memory(bytes) => take(bytes.slice(part.start as usize..part.end as usize)),
        Content::File(file) => {
            for index in part.start / CHUNK_SIZE..part.end.div_ceil(CHUNK_SIZE) {
                let mut chunk = vec![0; file.chunk_size(index)];
                let wrong = |why| io::Error::new(io::ErrorKind::InvalidData, format!("blob {digest}: {why}"));
                file.read_chunk(index, &mut chunk).map_err(wrong)?;
                let (first, chunk) = (index * CHUNK_SIZE, Bytes::from(chunk));
                let (from, to) = (part.start.saturating_sub(first), (part.end - first).min(chunk.len() as u64));
                let mut chunk = chunk.slice(from as usize..to as usize);
                while !chunk.is_empty() {
                    take(chunk.split_to(chunk.len().min(PIECE_SIZE)))?;
                }
            }
            Ok(())
        }
    }
}

fn size_of(piece: &Piece) -> u64 {
    match piece {
        Piece::Bytes(bytes) => bytes.len() as u64,
        Piece::Blob { size, .. } => *size,
    }
}

/// One reading of a body.
pub struct Reading {
    state: State,
    left: u64,
}

enum State {
    Waiting(Body, Range<u64>),
    Running(mpsc::Receiver<io::Result<Bytes>>),
}

impl http_body::Body for Reading {
    type Data = Bytes;
    type Error = io::Error;

    fn poll_frame(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<io::Result<Frame<Bytes>>>> {
        if let State::Waiting(body, range) = &self.state {
            let (sender, receiver) = mpsc::channel(PIECES_AHEAD);
            let (body, range) = (body.clone(), range.clone());
            // Ends when the last piece was taken, or at the next piece after this reading was dropped.
            tokio::task::spawn_blocking(move || {
                let gone = || io::Error::from(io::ErrorKind::BrokenPipe);
                if let Err(error) = body.read_range(range, |bytes| sender.blocking_send(Ok(bytes)).map_err(|_| gone())) {
                    let _ = sender.blocking_send(Err(error));
                }
            });
            self.state = State::Running(receiver);
        }
        let State::Running(receiver) = &mut self.state else { unreachable!("set above") };
        let next = ready!(receiver.poll_recv(context));
        if let Some(Ok(bytes)) = &next {
            self.left = self.left.saturating_sub(bytes.len() as u64);
        }
        Poll::Ready(next.map(|piece| piece.map(Frame::data)))
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact(self.left)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::BlobFile;
    use http_body_util::BodyExt;
    use larder_protocol::digest::tree_hash;
    use std::io::Write;

    fn body(blob: Vec<u8>) -> (Body, Vec<u8>) {
        let mut file = tempfile::tempfile().expect("a file");
        file.write_all(&blob).expect("write");
        let content = Content::File(BlobFile::small(file, Digest::sha256(&blob), blob.len() as u64, tree_hash(&blob)));
        let pieces =
            vec![Piece::Bytes(Bytes::from_static(b"head")), Piece::Blob { digest: Digest::sha256(&blob), size: blob.len() as u64 }];
        (Body::new(pieces.into(), Arc::new(move |_| Ok(content.clone()))), [b"head", &blob[..]].concat())
    }

    #[tokio::test]
    async fn a_body_reads_the_same_twice() {
        // One byte more than two pieces of a file.
        let (body, expected) = body((0..(2 << 18) + 1).map(|i: u32| (i % 251) as u8).collect());
        assert_eq!(body.size(), expected.len() as u64);
        for _ in 0..2 {
            let read = body.reading().collect().await.expect("readable").to_bytes();
            assert_eq!(read, expected);
        }
    }

    #[tokio::test]
    async fn parts_of_a_body_add_up_to_it() {
        // A blob and what stands before it; of several chunks, the tests of uploads in parts have some.
        let (body, expected) = body((0..(1 << 20) - 5).map(|i: u32| (i % 251) as u8).collect());
        for step in [5_003, 1 << 18, (1 << 18) + 1, 700_001, expected.len() as u64] {
            let mut read = Vec::new();
            for start in (0..body.size()).step_by(step as usize) {
                let part = body.reading_of(start..(start + step).min(body.size())).collect().await.expect("readable").to_bytes();
                assert_eq!(part.len() as u64, step.min(body.size() - start));
                read.extend_from_slice(&part);
            }
            assert!(read == expected, "{step}");
        }
    }

    #[tokio::test]
    async fn a_file_is_read_whole_and_again() {
        let bytes: Vec<u8> = (0..(PIECE_SIZE as u32) + 9).map(|i| (i % 251) as u8).collect();
        let mut file = tempfile::tempfile().expect("a file");
        file.write_all(&bytes).expect("write");
        let body = Body::file(Arc::new(file), bytes.len() as u64);
        for _ in 0..2 {
            assert_eq!(body.reading().collect().await.expect("readable").to_bytes(), bytes);
        }
    }

    #[tokio::test]
    async fn a_blob_that_shrank_is_an_error() {
        let (body, _) = body(vec![1; 100]);
        let Source::Pieces(_, open) = body.source else { panic!("made of pieces") };
        let body = Body::new(vec![Piece::Blob { digest: Digest::sha256(b""), size: 101 }].into(), open);
        assert!(body.reading().collect().await.is_err());
    }
}
