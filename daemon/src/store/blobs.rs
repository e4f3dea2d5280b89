//! Verified, immutable blobs: reading them, and the links that make them readable in a repository.

use std::fs::File;

use larder_protocol::digest::{CHUNK_SIZE, ChunkList, Digest, tree_hash};
use larder_protocol::name::RepositoryName;
use larder_protocol::record::{Key, Link, Value};

use super::edges;
use super::error::{Error, Result};
use super::garbage::rely;
use super::index::{BlobRow, Table};
use super::reading::{BlobFile, Content};
use super::removal;
use super::{Commit, Store};

/// Repositories in which what a link says is mended at a time; the others' pulls mend theirs.
const CORRECTED_MAX: usize = 1000;

impl Store {
    /// What the link of a blob in a repository says; `None` without a live link (I8). Needs no blob on this disk.
    pub fn link(&self, repository: &RepositoryName, digest: &Digest) -> Result<Option<Link>> {
        Ok(match self.live(&Key::Link(repository.clone(), *digest))? {
            Some(Value::Link(link)) => Some(link),
            _ => None,
        })
    }

    /// Size, root and CRC of a blob that is on this disk.
    pub fn blob(&self, digest: &Digest) -> Result<Option<Link>> {
        let row: Option<BlobRow> = self.inner.index.row(Table::Blob, &digest.to_key())?;
        Ok(row.map(|row| Link { size: row.size, root: row.root, crc64: row.crc64 }))
    }

    /// Opens a blob; `None` when it is not on this disk. Takes microseconds: may be called inline.
    ///
    /// # Errors
    /// `Damaged`: the index names a blob whose bytes are not there, or not all of them.
    pub fn open_blob(&self, digest: &Digest) -> Result<Option<Content>> {
        let (inner, key) = (&self.inner, digest.to_key());
        let row = match inner.index.row::<BlobRow>(Table::Blob, &key)? {
            Some(row) => row,
            None => match removal::adopt(inner, digest)? {
                Some(row) => row,
                None => return Ok(None),
            },
        };
        let damaged = |detail: String| Error::Damaged { what: format!("blob {digest}"), detail };
        if row.small {
            let bytes = inner.index.get(Table::Small, &key)?.ok_or_else(|| damaged("its bytes are gone from the index".to_owned()))?;
            if tree_hash(&bytes) != row.root {
                return Err(damaged("its bytes in the index are not what was written".to_owned()));
            }
            return Ok(Some(Content::Memory(bytes.into())));
        }
        let path = inner.folder.blob(digest);
        let file = File::open(&path).map_err(|error| damaged(format!("open {}: {error}", path.display())))?;
        let metadata = file.metadata().map_err(|error| damaged(format!("look at {}: {error}", path.display())))?;
        let (size, marks) = (metadata.len(), inner.known.of(digest, &metadata));
        if size != row.size {
            return Err(damaged(format!("{} has {size} bytes, it must have {}", path.display(), row.size)));
        }
        if size <= CHUNK_SIZE {
            return Ok(Some(Content::File(BlobFile::small(file, *digest, size, row.root).marked(marks))));
        }
        let values = self.chunk_values(digest)?.ok_or_else(|| damaged("its chunk list is gone from the index".to_owned()))?;
        let chunks = ChunkList::checked(size, values, &row.root).map_err(|error| damaged(error.to_string()))?;
        Ok(Some(Content::File(BlobFile::large(file, *digest, chunks).marked(marks))))
    }

    /// The chaining values of a blob above 1 MiB that is on this disk.
    pub fn chunk_values(&self, digest: &Digest) -> Result<Option<Vec<[u8; 32]>>> {
        let Some(bytes) = self.inner.index.get(Table::Chunks, &digest.to_key())? else { return Ok(None) };
        let (values, rest) = bytes.as_chunks::<32>();
        if !rest.is_empty() {
            return Err(Error::Damaged { what: format!("the chunk list of {digest}"), detail: format!("it has {} bytes", bytes.len()) });
        }
        Ok(Some(values.to_vec()))
    }

    /// Links a blob that `from` links into `to`; `false` when `from` has no link.
    pub fn mount(&self, from: &RepositoryName, to: &RepositoryName, digest: &Digest) -> Result<bool> {
        let inner = &self.inner;
        // A client that is told to push it mends it.
        if self.is_lost(digest)? {
            return Ok(false);
        }
        let mut writing = inner.journal.write(&inner.index);
        let Some(Value::Link(link)) = writing.live(&Key::Link(from.clone(), *digest))? else { return Ok(false) };
        rely(inner, &mut writing, Key::Link(to.clone(), *digest), link)?;
        writing.commit()?;
        Ok(true)
    }

    /// Repositories with a live link of a blob, in byte order, at most `limit`.
    pub fn repositories_linking(&self, digest: &Digest, limit: usize) -> Result<Vec<RepositoryName>> {
        edges::linking(&self.inner.index, digest).take(limit).collect()
    }

    /// Writes anew what links say of a blob that is here, where they say `wrong` (F24); in how many repositories.
    pub fn correct_links(&self, digest: &Digest, wrong: &Link) -> Result<usize> {
        let Some(right) = self.blob(digest)?.filter(|right| right != wrong && !self.is_reader()) else { return Ok(0) };
        let mut records = Vec::new();
        for repository in self.repositories_linking(digest, CORRECTED_MAX)? {
            if self.link(&repository, digest)?.as_ref() == Some(wrong) {
                records.push((Key::Link(repository, *digest), Some(Value::Link(right))));
            }
        }
        let count = records.len();
        if count > 0 {
            self.commit(Commit { records, ..Commit::default() })?;
        }
        Ok(count)
    }

    /// Removes a blob's link from a repository; `false` when there was none.
    pub fn unlink(&self, repository: &RepositoryName, digest: &Digest) -> Result<bool> {
        let inner = &self.inner;
        let mut writing = inner.journal.write(&inner.index);
        let key = Key::Link(repository.clone(), *digest);
        if writing.live(&key)?.is_none() {
            return Ok(false);
        }
        writing.record(key, None)?;
        writing.commit()?;
        Ok(true)
    }
}
