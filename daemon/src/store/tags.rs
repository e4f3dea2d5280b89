//! Which manifest a tag names; the listings of tags and repositories.
//!
//! A listing is a seek behind `after` and a scan; tombstones are stepped over.

use larder_protocol::digest::Digest;
use larder_protocol::name::{RepositoryName, Tag};
use larder_protocol::record::{Key, Record, Value};
use larder_protocol::stamp::Stamp;

use super::Store;
use super::error::Result;
use super::index::{RecordRow, Table, decode};
use super::journal;

/// What a tag names now.
#[derive(Clone, Debug)]
pub struct TagInfo {
    /// The tag.
    pub tag: Tag,
    /// The manifest.
    pub digest: Digest,
    /// When and by whom it was pushed.
    pub stamp: Stamp,
}

impl Store {
    /// What a tag names; `None` when there is no such tag.
    pub fn tag(&self, repository: &RepositoryName, tag: &Tag) -> Result<Option<TagInfo>> {
        Ok(journal::read(&self.inner.index, &Key::Tag(repository.clone(), tag.clone()))?.and_then(info))
    }

    /// Live tags behind `after`, in byte order, at most `limit`.
    pub fn tags(&self, repository: &RepositoryName, after: Option<&str>, limit: usize) -> Result<Vec<TagInfo>> {
        let prefix = [repository.as_str().as_bytes(), &[0]].concat();
        // The smallest key behind `after` is `after` with a NUL.
        let from = after.map_or_else(|| prefix.clone(), |after| [&prefix, after.as_bytes(), &[0]].concat());
        let mut tags = Vec::new();
        for row in self.inner.index.scan(Table::Tag, &prefix, &from) {
            if tags.len() >= limit {
                break;
            }
            let row: RecordRow = decode(Table::Tag, &row?.1)?;
            if row.record.value.is_some() {
                tags.extend(info(journal::parse(&row.record)?));
            }
        }
        Ok(tags)
    }

    /// Repositories with at least one live manifest, behind `after`, in byte order, at most `limit`.
    pub fn repositories(&self, after: Option<&str>, limit: usize) -> Result<Vec<RepositoryName>> {
        let mut repositories = Vec::new();
        // Behind all keys of a repository: its name and the byte that follows NUL.
        let mut from = after.map(|after| [after.as_bytes(), &[1]].concat()).unwrap_or_default();
        'repositories: while repositories.len() < limit {
            for row in self.inner.index.scan(Table::Manifest, b"", &from) {
                let row: RecordRow = decode(Table::Manifest, &row?.1)?;
                if row.record.value.is_none() {
                    continue;
                }
                if let Key::Manifest(repository, _) = journal::parse(&row.record)?.key {
                    from = [repository.as_str().as_bytes(), &[1]].concat();
                    repositories.push(repository);
                    continue 'repositories;
                }
            }
            break;
        }
        Ok(repositories)
    }

    /// Whether a manifest was ever pushed to a repository: its empty tag list is then not "unknown".
    pub fn repository_exists(&self, repository: &RepositoryName) -> Result<bool> {
        let prefix = [repository.as_str().as_bytes(), &[0]].concat();
        for table in [Table::Manifest, Table::Link] {
            if self.inner.index.scan(table, &prefix, b"").next().transpose()?.is_some() {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// Deletes a tag; `false` when there was none.
    pub fn delete_tag(&self, repository: &RepositoryName, tag: &Tag) -> Result<bool> {
        let inner = &self.inner;
        let mut writing = inner.journal.write(&inner.index);
        let key = Key::Tag(repository.clone(), tag.clone());
        if writing.live(&key)?.is_none() {
            return Ok(false);
        }
        writing.record(key, None)?;
        writing.commit()?;
        Ok(true)
    }
}

fn info(record: Record) -> Option<TagInfo> {
    match record {
        Record { key: Key::Tag(_, tag), value: Some(Value::Tag(target)), stamp } => Some(TagInfo { tag, digest: target.digest, stamp }),
        _ => None,
    }
}
