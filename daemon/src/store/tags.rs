//! Which manifest a tag names; the listings of tags and repositories.
//!
//! A listing is a seek behind `after` and a scan of what is live (see `listed`).

use larder_protocol::digest::Digest;
use larder_protocol::name::{RepositoryName, Tag};
use larder_protocol::record::{Key, RawRecord, Record, TagTarget, Value};
use larder_protocol::stamp::Stamp;

use super::error::{Error, Result};
use super::index::{Batch, Table, decode};
use super::journal::{self, Writing};
use super::{Inner, Store, conflicts, listed};

/// Versions of a tag that are kept besides the one it names.
const HISTORY_MAX: usize = 100;
/// Bytes at the end of a key of the history: time and node.
const HISTORY_KEY_TAIL: usize = 8 + 32;

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

/// What a tag named, or names.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TagVersion {
    /// The manifest.
    pub digest: Digest,
    /// When and by whom it was pushed.
    pub stamp: Stamp,
    /// What it replaced, a delete too, as its own node knew it.
    pub replaced: Option<Stamp>,
    /// When and by whom it was replaced or deleted; the next version that is known of may have come after others.
    pub until: Option<Stamp>,
    /// It is what the tag names now.
    pub current: bool,
    /// The push that it lost to, of which its own node did not know, nor the other way round.
    pub lost_to: Option<Stamp>,
}

impl Store {
    /// What a tag names; `None` when there is no such tag.
    pub fn tag(&self, repository: &RepositoryName, tag: &Tag) -> Result<Option<TagInfo>> {
        Ok(journal::read(&self.inner.index, &Key::Tag(repository.clone(), tag.clone()))?.and_then(info))
    }

    /// Live tags behind `after`, in byte order, at most `limit`.
    pub fn tags(&self, repository: &RepositoryName, after: Option<&str>, limit: usize) -> Result<Vec<TagInfo>> {
        listed::tags(&self.inner.index, repository, after).take(limit).collect()
    }

    /// Repositories with at least one live manifest, behind `after`, in byte order, at most `limit`.
    pub fn repositories(&self, after: Option<&str>, limit: usize) -> Result<Vec<RepositoryName>> {
        listed::repositories(&self.inner.index, after, limit)
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

    /// The versions of a tag, the newest first, at most `limit`: what it names now, if anything, and what it named before.
    pub fn tag_history(&self, repository: &RepositoryName, tag: &Tag, limit: usize) -> Result<Vec<TagVersion>> {
        let mut versions: Vec<TagVersion> = Vec::new();
        let mut add = |record: Record, current, lost_to| {
            let until = record.value.is_none().then_some(record.stamp).or(versions.last().map(|version| version.stamp));
            let replaced = if let Some(Value::Tag(target)) = &record.value { target.replaced } else { None };
            if let Some(info) = info(record) {
                versions.push(TagVersion { digest: info.digest, stamp: info.stamp, replaced, until, current, lost_to });
            }
            versions.len() < limit
        };
        let standing = journal::read(&self.inner.index, &Key::Tag(repository.clone(), tag.clone()))?;
        let deleted = standing.as_ref().filter(|record| record.value.is_none()).map(|record| record.stamp);
        let mut more = standing.is_none_or(|record| add(record, true, None));
        for row in self.inner.index.scan(Table::History, &history_prefix(repository, tag), b"") {
            if !more {
                break;
            }
            let (key, row) = row?;
            let row: RawRecord = decode(Table::History, &row)?;
            more = add(journal::parse(&row)?, false, conflicts::winner(&self.inner.index, &key)?);
        }
        if let (Some(deleted), Some(newest)) = (deleted, versions.first_mut()) {
            newest.until = Some(deleted);
        }
        Ok(versions)
    }

    /// Lets a tag name a manifest that is in its repository; `false` when it did so already.
    ///
    /// # Errors
    /// - `Missing`: the manifest is not there any more.
    /// - `Immutable`: the tag may not be changed.
    pub fn restore_tag(&self, repository: &RepositoryName, tag: &Tag, digest: &Digest) -> Result<bool> {
        let inner = &self.inner;
        let mut writing = inner.journal.write(&inner.index);
        if writing.live(&Key::Manifest(repository.clone(), *digest))?.is_none() {
            return Err(Error::Missing(vec![*digest]));
        }
        if may_point(inner, &writing, repository, tag, digest)? {
            return Ok(false);
        }
        point(&mut writing, repository, tag.clone(), *digest)?;
        writing.commit()?;
        Ok(true)
    }

    /// Forgets all but the newest versions of tags, from a place on, through at least `limit` rows; says how many, and where to go on.
    pub fn trim_history(&self, from: Option<&[u8]>, limit: usize) -> Result<(usize, Option<Vec<u8>>)> {
        let (mut trimmed, mut batch) = (0, Batch::default());
        let (mut name, mut count) = (Vec::new(), 0);
        for (read, row) in self.inner.index.scan(Table::History, b"", from.unwrap_or_default()).enumerate() {
            let (key, _) = row?;
            let of = &key[..key.len().saturating_sub(HISTORY_KEY_TAIL)];
            if name != of {
                // Only between two tags: within one, the count would be lost.
                if read >= limit {
                    self.inner.index.write(batch)?;
                    return Ok((trimmed, Some(key.into_vec())));
                }
                (name, count) = (of.to_vec(), 0);
            }
            count += 1;
            if count > HISTORY_MAX {
                self.inner.index.delete(&mut batch, Table::History, &key);
                conflicts::forget(&self.inner.index, &mut batch, &key);
                trimmed += 1;
                if trimmed % limit == 0 {
                    self.inner.index.write(std::mem::take(&mut batch))?;
                }
            }
        }
        self.inner.index.write(batch)?;
        Ok((trimmed, None))
    }

    /// Deletes a tag; `false` when there was none.
    ///
    /// # Errors
    /// `Immutable`: the tag may not be changed.
    pub fn delete_tag(&self, repository: &RepositoryName, tag: &Tag) -> Result<bool> {
        let inner = &self.inner;
        let mut writing = inner.journal.write(&inner.index);
        let key = Key::Tag(repository.clone(), tag.clone());
        if writing.live(&key)?.is_none() {
            return Ok(false);
        }
        may_change(inner, repository, tag)?;
        writing.record(key, None)?;
        writing.commit()?;
        Ok(true)
    }
}

/// Lets a tag name a manifest; also when it does so already, because a push is later than what is not known here yet.
pub(super) fn point(writing: &mut Writing<'_>, repository: &RepositoryName, tag: Tag, digest: Digest) -> Result<()> {
    let key = Key::Tag(repository.clone(), tag);
    // Also a tombstone is replaced: else a push after it would seem to know nothing of what was there before.
    let replaced = writing.standing(&key)?.map(|record| record.stamp);
    writing.record(key, Some(Value::Tag(TagTarget { digest, replaced })))
}

/// Whether a tag names this manifest already; refuses to let it name another one when it is there and immutable.
pub(super) fn may_point(inner: &Inner, writing: &Writing<'_>, repository: &RepositoryName, tag: &Tag, digest: &Digest) -> Result<bool> {
    match writing.live(&Key::Tag(repository.clone(), tag.clone()))? {
        Some(Value::Tag(target)) if target.digest == *digest => Ok(true),
        Some(_) => may_change(inner, repository, tag).map(|()| false),
        None => Ok(false),
    }
}

/// Refuses to change a tag that is there and immutable.
pub(super) fn may_change(inner: &Inner, repository: &RepositoryName, tag: &Tag) -> Result<()> {
    let pattern = inner.options.immutable_tags.iter().find(|pattern| pattern.matches(repository.as_str(), tag.as_str()));
    match pattern {
        Some(pattern) => Err(Error::Immutable { tag: tag.clone(), pattern: pattern.clone() }),
        None => Ok(()),
    }
}

/// What the keys of a tag's history begin with.
pub(super) fn history_prefix(repository: &RepositoryName, tag: &Tag) -> Vec<u8> {
    [repository.as_str().as_bytes(), &[0], tag.as_str().as_bytes(), &[0]].concat()
}

fn info(record: Record) -> Option<TagInfo> {
    match record {
        Record { key: Key::Tag(_, tag), value: Some(Value::Tag(target)), stamp } => Some(TagInfo { tag, digest: target.digest, stamp }),
        _ => None,
    }
}
