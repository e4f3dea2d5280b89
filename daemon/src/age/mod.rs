//! age: files that are encrypted to public keys. What is written here is opened by stock `age -d`, and what stock `age` has encrypted to X25519 keys is opened here.
//!
//! ```text
//! header         the file's key, wrapped for each recipient (see `header`)
//! nonce (16)
//! chunks         64 KiB of content each, and 16 bytes more (see `stream`)
//! ```
//!
//! - **Written twice, the same.** A [`Seal`] holds a key of its own in memory: whatever it encrypts again comes out the same, byte by byte, so an object can be sent again under its
//!   name. It is not kept anywhere: who has nothing but recipients can't read what it wrote.
//! - **Read in parts.** [`Opened`] says which bytes of the file have some bytes of the content. What this program writes has a header of [`HEADER_SIZE`], so a file's
//!   size says that of its content, without a key.
//! - **Never believed.** A header is parsed within limits, its MAC and each chunk are checked. A chunk that is not what was written reads as zeros, and is told: whoever reads has
//!   digests for what he reads, and the chunks beside it are whole.
//!
//! The format is small and the primitives are aws-lc's, as everywhere here. Rejected: the `age` crate, which encrypts from a stream once, with a key that can't be had again, and
//! brings a runtime for translations.

use std::fmt;
use std::ops::Range;
use std::sync::Arc;

use aws_lc_rs::rand;
use bytes::Bytes;

mod bech32;
#[cfg(test)]
mod fuzz;
mod header;
mod keys;
mod stream;
#[cfg(test)]
mod tests;

pub use header::VERSION;
pub use keys::{IDENTITIES_MAX, Identity, InvalidRecipient, Recipient, parse_identities, read_identities};
pub use stream::CHUNK_SIZE;

use stream::{Chunks, Opener, Sealer};

/// Bytes before the first chunk, in what this program writes.
pub const HEADER_SIZE: usize = 2048;
/// Most recipients: so many fit into the header.
pub const RECIPIENTS_MAX: usize = 16;
/// Most bytes before the first chunk that are read, in what others wrote.
pub const HEADER_READ_MAX: usize = header::READ_MAX + NONCE_SIZE;
/// Most bytes of content: more than any bucket takes.
const CONTENT_MAX: u64 = 1 << 50;
const NONCE_SIZE: usize = 16;

/// Why bytes are no age file that can be read.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Invalid {
    /// Something else.
    #[error("it is not encrypted by age: it does not begin as such a file does")]
    NotAge,
    /// The header breaks a rule.
    #[error("its age header is damaged: {what}")]
    Header {
        /// Which rule.
        what: &'static str,
    },
    /// No identity fits.
    #[error("it is encrypted to others than the identities that were given, or its header is damaged")]
    OtherRecipients,
    /// The header is not the one that was written.
    #[error("its age header is not the one that was written: changed or damaged")]
    Mac,
    /// A chunk is not what was written.
    #[error("the 64 KiB from byte {at} of its content are not what was written: changed, swapped or damaged")]
    Chunk {
        /// The chunk's first byte.
        at: u64,
    },
    /// No file has this size.
    #[error("it is cut short: no age file has {size} bytes")]
    Size {
        /// Bytes.
        size: u64,
    },
    /// A public key that is none.
    #[error("encrypt to {0}: nobody can have this key")]
    Recipient(Recipient),
}

/// A file that is to be written: its key, and where everything will lie.
pub struct Seal {
    header: Bytes,
    chunks: Chunks,
}

impl fmt::Debug for Seal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Seal({} bytes)", self.chunks.content)
    }
}

impl Seal {
    /// A new key for `content` bytes, which all of these can open.
    ///
    /// # Errors
    /// `Recipient` for one that no key could belong to.
    ///
    /// # Panics
    /// With no recipient, or more than [`RECIPIENTS_MAX`].
    pub fn new(recipients: &[Recipient], content: u64) -> Result<Self, Invalid> {
        assert!((1..=RECIPIENTS_MAX).contains(&recipients.len()) && content <= CONTENT_MAX, "checked where they were configured");
        let (mut file_key, mut nonce) = ([0; 16], [0; NONCE_SIZE]);
        rand::fill(&mut file_key).and_then(|()| rand::fill(&mut nonce)).expect("the system gives random bytes");
        let mut header = header::write(recipients, &file_key, content)?;
        header.extend_from_slice(&nonce);
        let key = header::cipher(&header::derive(&nonce, &file_key, b"payload"));
        Ok(Self { chunks: Chunks::new(key, header.len() as u64, content), header: header.into() })
    }

    /// Bytes of the file.
    pub fn size(&self) -> u64 {
        file_size(self.chunks.content)
    }

    /// Which bytes of the content are needed for these bytes of the file.
    pub fn needs(&self, file: &Range<u64>) -> Range<u64> {
        let start = self.chunks.start;
        self.chunks.content_of(&(file.start.saturating_sub(start)..file.end.saturating_sub(start)))
    }

    /// Encrypts for these bytes of the file; see [`Sealing`].
    pub fn sealing(&self, file: Range<u64>) -> Sealing<'_> {
        let from = self.needs(&file).start;
        let at = if file.start < self.chunks.start { 0 } else { self.chunks.within_file(&(from..from + 1)).start };
        Sealing { seal: self, sealer: Sealer::new(&self.chunks, from), at, file }
    }

    /// What opens the file that this writes.
    pub fn into_opened(self) -> Opened {
        Opened { chunks: self.chunks }
    }
}

/// Content that goes in, in order; and the bytes of the file that come out.
pub struct Sealing<'a> {
    seal: &'a Seal,
    sealer: Sealer<'a>,
    /// Where the next byte that comes out stands in the file.
    at: u64,
    file: Range<u64>,
}

impl Sealing<'_> {
    /// Takes the next bytes of what [`Seal::needs`] names.
    ///
    /// # Errors
    /// Those of `take`.
    pub fn push<E>(&mut self, bytes: &[u8], mut take: impl FnMut(Bytes) -> Result<(), E>) -> Result<(), E> {
        let Self { seal, sealer, at, file } = self;
        begin(seal, at, file, &mut take)?;
        sealer.push(bytes, &mut |chunk| cut(chunk, at, file, &mut take))
    }

    /// They were all.
    ///
    /// # Errors
    /// Those of `take`.
    pub fn finish<E>(self, mut take: impl FnMut(Bytes) -> Result<(), E>) -> Result<(), E> {
        let Self { seal, sealer, mut at, file } = self;
        begin(seal, &mut at, &file, &mut take)?;
        sealer.finish(&mut |chunk| cut(chunk, &mut at, &file, &mut take))
    }
}

fn begin<E>(seal: &Seal, at: &mut u64, file: &Range<u64>, take: &mut impl FnMut(Bytes) -> Result<(), E>) -> Result<(), E> {
    if *at == 0 { cut(seal.header.clone(), at, file, take) } else { Ok(()) }
}

/// Hands on what of a piece is wanted.
fn cut<E>(piece: Bytes, at: &mut u64, file: &Range<u64>, take: &mut impl FnMut(Bytes) -> Result<(), E>) -> Result<(), E> {
    let (start, end) = (*at, *at + piece.len() as u64);
    *at = end;
    let (from, to) = (file.start.clamp(start, end), file.end.clamp(start, end));
    if from < to { take(piece.slice((from - start) as usize..(to - start) as usize)) } else { Ok(()) }
}

/// A file that can be read.
#[derive(Debug)]
pub struct Opened {
    chunks: Chunks,
}

impl Opened {
    /// Opens a file by its first [`HEADER_SIZE`] bytes, if this program wrote it.
    ///
    /// # Errors
    /// `OtherRecipients`; whatever is not as it was written.
    pub fn own(bytes: &[u8], identities: &[Arc<Identity>]) -> Result<Self, Invalid> {
        let header = header::Header::parse(bytes)?;
        let content = header.content.filter(|content| header.length + NONCE_SIZE == HEADER_SIZE && *content <= CONTENT_MAX);
        let content = content.ok_or(Invalid::Header { what: "it is not one that larder writes" })?;
        Self::by(bytes, &header, content, identities)
    }

    /// Opens any file of `size` bytes by its first [`HEADER_READ_MAX`] bytes, or all where it has fewer.
    ///
    /// # Errors
    /// As [`Opened::own`]; `Size`.
    pub fn any(bytes: &[u8], size: u64, identities: &[Arc<Identity>]) -> Result<Self, Invalid> {
        let header = header::Header::parse(bytes)?;
        let content = stream::content_size((header.length + NONCE_SIZE) as u64, size).ok_or(Invalid::Size { size })?;
        if header.content.is_some_and(|written| written != content) {
            return Err(Invalid::Size { size });
        }
        Self::by(bytes, &header, content, identities)
    }

    fn by(bytes: &[u8], header: &header::Header, content: u64, identities: &[Arc<Identity>]) -> Result<Self, Invalid> {
        let file_key = header.unwrap(bytes, identities)?;
        let nonce = bytes.get(header.length..header.length + NONCE_SIZE).ok_or(Invalid::Header { what: "it has no nonce" })?;
        let key = header::cipher(&header::derive(nonce, &file_key, b"payload"));
        Ok(Self { chunks: Chunks::new(key, (header.length + NONCE_SIZE) as u64, content) })
    }

    /// Bytes of the content.
    pub fn size(&self) -> u64 {
        self.chunks.content
    }

    /// Which bytes of the file have these bytes of the content.
    ///
    /// # Panics
    /// When they lie behind its end.
    pub fn within_file(&self, content: &Range<u64>) -> Range<u64> {
        assert!(content.start <= content.end && content.end <= self.size(), "{content:?} of {} bytes", self.size());
        self.chunks.within_file(content)
    }

    /// Decrypts what [`Opened::within_file`] names; see [`Opening`].
    pub fn opening(self: &Arc<Self>, content: Range<u64>) -> Opening {
        Opening { opened: self.clone(), opener: Opener::new(content) }
    }
}

/// Bytes of a file that go in, in order; and the content that comes out.
pub struct Opening {
    opened: Arc<Opened>,
    opener: Opener,
}

impl Opening {
    /// Takes the next bytes. A chunk that is not what was written comes out as zeros.
    pub fn push(&mut self, bytes: &[u8], mut take: impl FnMut(Bytes)) {
        self.opener.push(&self.opened.chunks, bytes, &mut take);
    }

    /// The first chunk that was not what was written.
    pub fn damaged(&self) -> Option<Invalid> {
        self.opener.damaged.map(|at| Invalid::Chunk { at })
    }
}

/// Bytes of a file that this program writes for so many bytes of content.
pub fn file_size(content: u64) -> u64 {
    stream::file_size(HEADER_SIZE as u64, content)
}

/// The opposite, without a key; `None`: this program writes no file of this size.
pub fn content_size(file: u64) -> Option<u64> {
    stream::content_size(HEADER_SIZE as u64, file).filter(|content| *content <= CONTENT_MAX)
}
