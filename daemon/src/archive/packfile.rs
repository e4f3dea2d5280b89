//! A pack in a file on this host, encrypted or not, seen as one that is not.

use std::fs::File;
use std::io::{self, Read};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::age::{self, HEADER_READ_MAX, Identity, Invalid, Opened, VERSION};

use super::Error;

/// A file that is open, and its key.
#[derive(Debug)]
pub struct PackFile {
    path: PathBuf,
    file: File,
    size: u64,
    opened: Option<Arc<Opened>>,
}

impl PackFile {
    /// Opens a file; one that is encrypted by one of these identities.
    ///
    /// # Errors
    /// `Locked` when none fits; `Envelope` when it is damaged; `Io`.
    pub fn open(path: &Path, identities: &[Arc<Identity>]) -> Result<Self, Error> {
        let failed = |doing| move |source| Error::Io { doing, path: path.to_owned(), source };
        let file = File::open(path).map_err(failed("open"))?;
        let size = file.metadata().map_err(failed("look at"))?.len();
        let mut begin = Vec::new();
        (&file).take(HEADER_READ_MAX as u64).read_to_end(&mut begin).map_err(failed("read"))?;
        if !begin.starts_with(VERSION.as_bytes()) {
            return Ok(Self { path: path.to_owned(), file, size, opened: None });
        }
        let locked = |why| Error::Locked { key: path.display().to_string(), why };
        if identities.is_empty() {
            return Err(locked("and no identity is given to read it by"));
        }
        let opened = Opened::any(&begin, size, identities).map_err(|error| match error {
            Invalid::OtherRecipients => {
                locked("and none of the identities that are given opens it: it was written for others, or its first bytes are damaged")
            }
            source => Error::Envelope { key: path.display().to_string(), source },
        })?;
        Ok(Self { path: path.to_owned(), file, size: opened.size(), opened: Some(Arc::new(opened)) })
    }

    /// Bytes of its content.
    pub fn size(&self) -> u64 {
        self.size
    }

    /// Whether it is encrypted.
    pub fn is_encrypted(&self) -> bool {
        self.opened.is_some()
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Reads from `offset` as much as `buffer` takes. What is not as it was encrypted reads as zeros: digests tell.
    ///
    /// # Errors
    /// It has no so many bytes; the system's refusal.
    pub fn read_exact_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<()> {
        let Some(opened) = &self.opened else { return self.file.read_exact_at(buffer, offset) };
        let end = offset.checked_add(buffer.len() as u64).filter(|end| *end <= opened.size());
        let range = offset..end.ok_or(io::ErrorKind::UnexpectedEof)?;
        let mut within = opened.within_file(&range);
        let (mut opening, mut at) = (opened.opening(range), 0);
        let mut chunk = vec![0; age::CHUNK_SIZE as usize];
        while !within.is_empty() {
            let length = chunk.len().min((within.end - within.start) as usize);
            self.file.read_exact_at(&mut chunk[..length], within.start)?;
            within.start += length as u64;
            opening.push(&chunk[..length], |bytes| {
                buffer[at..at + bytes.len()].copy_from_slice(&bytes);
                at += bytes.len();
            });
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const IDENTITY: &str = include_str!("../../testdata/test-identity.txt");
    const OTHER: &str = include_str!("../../testdata/other-test-identity.txt");
    const PACK: &[u8] = include_bytes!("../../../protocol/testdata/v1/pack.tar");

    fn golden() -> PathBuf {
        Path::new(env!("CARGO_MANIFEST_DIR")).join("testdata/pack.tar.age")
    }

    fn identities(text: &str) -> Vec<Arc<Identity>> {
        age::parse_identities("test", text).expect("identities")
    }

    fn content(file: &PackFile) -> Vec<u8> {
        let mut content = vec![0; file.size() as usize];
        file.read_exact_at(&mut content, 0).expect("readable");
        content
    }

    #[test]
    fn an_encrypted_pack_of_today_opens_for_ever() {
        let file = PackFile::open(&golden(), &identities(IDENTITY)).expect("it opens");
        assert!(file.is_encrypted() && content(&file) == PACK);
        for (at, length) in [(0, 1), (512, 100), (PACK.len() as u64 - 1, 1), (PACK.len() as u64, 0)] {
            let mut part = vec![0; length];
            file.read_exact_at(&mut part, at).expect("readable");
            assert_eq!(part, PACK[at as usize..at as usize + length]);
        }
        assert!(file.read_exact_at(&mut [0; 2], PACK.len() as u64 - 1).is_err());
        assert!(file.read_exact_at(&mut [0], u64::MAX).is_err());
    }

    #[test]
    fn who_has_not_its_identity_is_told_what_is_missing() {
        let refused = |text: &[Arc<Identity>]| PackFile::open(&golden(), text).expect_err("locked").to_string();
        assert!(refused(&[]).contains("it is encrypted, and no identity is given"), "{}", refused(&[]));
        assert!(refused(&identities(OTHER)).contains("none of the identities that are given opens it"));
    }

    #[test]
    fn s37_a_file_that_was_cut_is_told_and_a_flipped_bit_reads_as_zeros() {
        let folder = tempfile::tempdir().expect("a folder");
        let (path, whole) = (folder.path().join("pack"), std::fs::read(golden()).expect("the golden pack"));
        for cut in [1, 17, whole.len() - 100, whole.len() - 2048] {
            std::fs::write(&path, &whole[..whole.len() - cut]).expect("written");
            assert!(matches!(PackFile::open(&path, &identities(IDENTITY)), Err(Error::Envelope { .. })), "{cut}");
        }
        let mut flipped = whole;
        flipped[age::HEADER_SIZE + 600] ^= 1;
        std::fs::write(&path, flipped).expect("written");
        let read = content(&PackFile::open(&path, &identities(IDENTITY)).expect("its header is whole"));
        assert!(read[..PACK.len().min(age::CHUNK_SIZE as usize)].iter().all(|byte| *byte == 0));
        // One that is not encrypted is read as it is, whoever has which identity.
        std::fs::write(&path, PACK).expect("written");
        let plain = PackFile::open(&path, &[]).expect("plain");
        assert!(!plain.is_encrypted() && content(&plain) == PACK);
    }
}
