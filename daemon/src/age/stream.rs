//! The content of an age file: chunks of 64 KiB, each encrypted and authenticated by itself, with its number and whether it is the last one in the nonce. So a part
//! can be read alone, and none can be changed, swapped, repeated or cut off unnoticed.

use std::fmt;
use std::ops::Range;

use aws_lc_rs::aead::{Aad, LessSafeKey, Nonce};
use bytes::Bytes;

/// Bytes of content in a chunk; the last may have fewer.
pub const CHUNK_SIZE: u64 = 64 << 10;
/// What encryption adds to one.
const TAG_SIZE: u64 = 16;

/// Where the chunks of a file are, and the key to them.
pub(super) struct Chunks {
    key: LessSafeKey,
    /// First byte of the first one.
    pub(super) start: u64,
    /// Bytes of content.
    pub(super) content: u64,
}

impl fmt::Debug for Chunks {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Chunks({} bytes from {})", self.content, self.start)
    }
}

/// Bytes of a file whose chunks begin at `start`.
pub(super) fn file_size(start: u64, content: u64) -> u64 {
    start + content + TAG_SIZE * content.div_ceil(CHUNK_SIZE).max(1)
}

/// Bytes of content in a file of `size` bytes whose chunks begin at `start`; `None`: no such file has this size.
pub(super) fn content_size(start: u64, size: u64) -> Option<u64> {
    let chunks = size.checked_sub(start)?;
    let content = chunks.checked_sub(TAG_SIZE * chunks.div_ceil(CHUNK_SIZE + TAG_SIZE))?;
    (file_size(start, content) == size).then_some(content)
}

impl Chunks {
    pub(super) fn new(key: LessSafeKey, start: u64, content: u64) -> Self {
        Self { key, start, content }
    }

    fn last(&self) -> u64 {
        self.content.div_ceil(CHUNK_SIZE).saturating_sub(1)
    }

    /// Content of the chunk with this number.
    fn length(&self, index: u64) -> usize {
        (self.content - index * CHUNK_SIZE).min(CHUNK_SIZE) as usize
    }

    fn nonce(&self, index: u64) -> Nonce {
        let mut nonce = [0; 12];
        nonce[3..11].copy_from_slice(&index.to_be_bytes());
        nonce[11] = u8::from(index == self.last());
        Nonce::assume_unique_for_key(nonce)
    }

    /// The numbers of the chunks that have these bytes of content.
    fn numbers(&self, content: &Range<u64>) -> Range<u64> {
        content.start / CHUNK_SIZE..content.end.div_ceil(CHUNK_SIZE)
    }

    /// Which bytes of the file have these bytes of content; none for none.
    pub(super) fn within_file(&self, content: &Range<u64>) -> Range<u64> {
        if content.is_empty() {
            return self.start..self.start;
        }
        let place = |index: u64| self.start + index * (CHUNK_SIZE + TAG_SIZE);
        let Range { start, end } = self.numbers(content);
        place(start)..place(end).min(file_size(self.start, self.content))
    }

    /// The content of the chunks that lie in these bytes of the file, counted from the first chunk.
    pub(super) fn content_of(&self, chunks: &Range<u64>) -> Range<u64> {
        let size = CHUNK_SIZE + TAG_SIZE;
        chunks.start / size * CHUNK_SIZE..(chunks.end.div_ceil(size) * CHUNK_SIZE).min(self.content)
    }
}

/// Encrypts content as it comes, from the beginning of a chunk.
pub(super) struct Sealer<'a> {
    chunks: &'a Chunks,
    index: u64,
    held: Vec<u8>,
}

impl<'a> Sealer<'a> {
    /// From the chunk that begins with this byte of content.
    pub(super) fn new(chunks: &'a Chunks, at: u64) -> Self {
        let mut sealer = Self { chunks, index: at / CHUNK_SIZE, held: Vec::new() };
        sealer.hold();
        sealer
    }

    fn hold(&mut self) {
        self.held = Vec::with_capacity((CHUNK_SIZE + TAG_SIZE) as usize);
    }

    /// Takes the next bytes, and hands on the chunks that are whole.
    pub(super) fn push<E>(&mut self, mut bytes: &[u8], emit: &mut impl FnMut(Bytes) -> Result<(), E>) -> Result<(), E> {
        while !bytes.is_empty() {
            let length = self.chunks.length(self.index);
            let (now, later) = bytes.split_at((length - self.held.len()).min(bytes.len()));
            self.held.extend_from_slice(now);
            bytes = later;
            if self.held.len() == length {
                self.seal(emit)?;
            }
        }
        Ok(())
    }

    /// An empty content has one chunk nevertheless.
    pub(super) fn finish<E>(mut self, emit: &mut impl FnMut(Bytes) -> Result<(), E>) -> Result<(), E> {
        if self.chunks.content == 0 && self.index == 0 { self.seal(emit) } else { Ok(()) }
    }

    fn seal<E>(&mut self, emit: &mut impl FnMut(Bytes) -> Result<(), E>) -> Result<(), E> {
        let nonce = self.chunks.nonce(self.index);
        let sealed = self.chunks.key.seal_in_place_append_tag(nonce, Aad::empty(), &mut self.held);
        sealed.expect("a chunk is not too long to be encrypted");
        self.index += 1;
        let chunk = std::mem::take(&mut self.held);
        self.hold();
        emit(chunk.into())
    }
}

/// Decrypts the bytes of a file that [`Chunks::within_file`] names, as they come, and cuts out the content that is wanted.
pub(super) struct Opener {
    index: u64,
    wanted: Range<u64>,
    held: Vec<u8>,
    /// Where the first chunk begins, in content, that is not what was written.
    pub(super) damaged: Option<u64>,
}

impl Opener {
    pub(super) fn new(wanted: Range<u64>) -> Self {
        Self { index: wanted.start / CHUNK_SIZE, wanted, held: Vec::new(), damaged: None }
    }

    /// Takes the next bytes, and hands on the content of the chunks that are whole. For a chunk that is not what was written there are zeros, whose digest is
    /// nobody's: so it costs what lies in it and nothing else.
    pub(super) fn push(&mut self, chunks: &Chunks, mut bytes: &[u8], emit: &mut impl FnMut(Bytes)) {
        while !bytes.is_empty() && self.index <= chunks.last() {
            let length = chunks.length(self.index) + TAG_SIZE as usize;
            let (now, later) = bytes.split_at((length - self.held.len()).min(bytes.len()));
            self.held.extend_from_slice(now);
            bytes = later;
            if self.held.len() == length {
                let mut chunk = std::mem::take(&mut self.held);
                let at = self.index * CHUNK_SIZE;
                let is_whole = chunks.key.open_in_place(chunks.nonce(self.index), Aad::empty(), &mut chunk).is_ok();
                if !is_whole {
                    self.damaged.get_or_insert(at);
                    chunk.fill(0);
                }
                self.index += 1;
                chunk.truncate(length - TAG_SIZE as usize);
                let end = at + chunk.len() as u64;
                let (from, to) = (self.wanted.start.clamp(at, end), self.wanted.end.clamp(at, end));
                if from < to {
                    emit(Bytes::from(chunk).slice((from - at) as usize..(to - at) as usize));
                }
            }
        }
    }
}
