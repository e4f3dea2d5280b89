//! The bytes of a pack on their way out: headers from memory, blobs from their files, a small piece at a time.
//!
//! A body can be read more than once, because a PUT that failed is sent again; each reading opens the blobs anew. Nothing but
//! [`PIECES_AHEAD`] pieces is ever in memory: the reading thread waits for the network.

use std::fmt;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use http_body::{Frame, SizeHint};
use larder_protocol::digest::{CHUNK_SIZE, Digest};
use larder_protocol::pack::Piece;
use tokio::sync::mpsc;

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
    pieces: Arc<[Piece]>,
    open: OpenBlob,
    size: u64,
    damaged: Arc<AtomicBool>,
}

impl fmt::Debug for Body {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Body({} pieces, {} bytes)", self.pieces.len(), self.size)
    }
}

impl Body {
    /// The body of these pieces.
    pub fn new(pieces: Arc<[Piece]>, open: OpenBlob) -> Self {
        let size = pieces.iter().map(|piece| if let Piece::Blob { size, .. } = piece { *size } else { bytes_of(piece) }).sum();
        Self { pieces, open, size, damaged: Arc::default() }
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
    pub fn read(&self, mut take: impl FnMut(Bytes) -> io::Result<()>) -> io::Result<()> {
        for piece in self.pieces.iter() {
            match piece {
                Piece::Bytes(bytes) => take(bytes.clone())?,
                Piece::Blob { digest, size } => {
                    let read = (self.open)(digest).and_then(|content| read_blob(&content, digest, *size, &mut take));
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
        Reading { state: State::Waiting(self.clone()), left: self.size }
    }
}

/// Hands the bytes of a blob to `take`, in pieces. Blocks.
pub fn read_blob(content: &Content, digest: &Digest, size: u64, take: &mut impl FnMut(Bytes) -> io::Result<()>) -> io::Result<()> {
    let there = content.size();
    if there != size {
        return Err(io::Error::new(io::ErrorKind::InvalidData, format!("blob {digest} has {there} bytes and not {size}")));
    }
    match content {
        Content::Memory(bytes) => take(bytes.clone()),
        Content::File(file) => {
            for index in 0..size.div_ceil(CHUNK_SIZE) {
                let mut chunk = vec![0; file.chunk_size(index)];
                let wrong = |why| io::Error::new(io::ErrorKind::InvalidData, format!("blob {digest}: {why}"));
                file.read_chunk(index, &mut chunk).map_err(wrong)?;
                let mut chunk = Bytes::from(chunk);
                while !chunk.is_empty() {
                    take(chunk.split_to(chunk.len().min(PIECE_SIZE)))?;
                }
            }
            Ok(())
        }
    }
}

fn bytes_of(piece: &Piece) -> u64 {
    if let Piece::Bytes(bytes) = piece { bytes.len() as u64 } else { 0 }
}

/// One reading of a body.
pub struct Reading {
    state: State,
    left: u64,
}

enum State {
    Waiting(Body),
    Running(mpsc::Receiver<io::Result<Bytes>>),
}

impl http_body::Body for Reading {
    type Data = Bytes;
    type Error = io::Error;

    fn poll_frame(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<io::Result<Frame<Bytes>>>> {
        if let State::Waiting(body) = &self.state {
            let (sender, receiver) = mpsc::channel(PIECES_AHEAD);
            let body = body.clone();
            // Ends when the last piece was taken, or at the next piece after this reading was dropped.
            tokio::task::spawn_blocking(move || {
                let gone = || io::Error::from(io::ErrorKind::BrokenPipe);
                if let Err(error) = body.read(|bytes| sender.blocking_send(Ok(bytes)).map_err(|_| gone())) {
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
    async fn a_blob_that_shrank_is_an_error() {
        let (mut body, _) = body(vec![1; 100]);
        body.pieces = vec![Piece::Blob { digest: Digest::sha256(b""), size: 101 }].into();
        assert!(body.reading().collect().await.is_err());
    }
}
