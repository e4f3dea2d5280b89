//! What nothing reaches any more, and taking it away.
//!
//! Collecting never stops anything, because what is taken away is named together with the stamp that was seen. Its tombstone's stamp is the
//! very next one after that: it beats the version that was looked at and loses to every later one, wherever that was written. A link that was
//! renewed meanwhile stays, on all nodes. Links are renewed whenever a client relies on them ([`Store::check_blob`], the end of an upload, a mount, a
//! manifest), unless they are fresh; so a link's stamp is its lease, and `upkeep` decides by its age.
//!
//! A tombstone that kills a link which a manifest names here, because the manifest was not known where it was written, is answered with a
//! new link (see `journal`); the bytes are in the trash for so long.

use std::collections::HashSet;

use larder_protocol::digest::Digest;
use larder_protocol::name::{RepositoryName, Tag};
use larder_protocol::record::{Key, Link, Record, Value};
use larder_protocol::stamp::{HybridTime, Stamp};

use super::edges::{self, Holder, Naming};
use super::error::Result;
use super::index::{BlobRow, Index, RecordRow, Table, decode};
use super::journal::{self, Writing};
use super::manifests::ManifestView;
use super::{Inner, Store};

/// Most manifests that go with one.
const CASCADE_MAX: usize = 10_000;

/// A link that no manifest of its repository needs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct IdleLink {
    /// Where.
    pub repository: RepositoryName,
    /// The blob.
    pub digest: Digest,
    /// Its bytes.
    pub size: u64,
    /// When it was last relied on.
    pub stamp: Stamp,
}

/// A manifest that no tag names, no index lists, and whose subject, if it has one, is gone.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct IdleManifest {
    /// The manifest.
    pub digest: Digest,
    /// When it was pushed.
    pub stamp: Stamp,
}

/// What a look at a blob's link says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Checked {
    /// Whether it is there, and that will hold for a while.
    Known(Option<Link>),
    /// It was last relied on too long ago: it has to be renewed before anybody is told.
    Old,
}

/// A part of a long list: its entries, and where the next part begins.
pub type Part<T, Place = Vec<u8>> = (Vec<T>, Option<Place>);

impl Store {
    /// Links that nothing needs, among the next `limit` links from a place on.
    pub fn idle_links(&self, from: Option<&[u8]>, limit: usize) -> Result<Part<IdleLink>> {
        let index = &self.inner.index;
        self.part(Table::Link, b"", from, limit, |record| {
            let (Key::Link(repository, digest), Some(Value::Link(link))) = (record.key, record.value) else { return Ok(None) };
            let idle = !is_needed(index, &repository, &digest)?;
            Ok(idle.then_some(IdleLink { repository, digest, size: link.size, stamp: record.stamp }))
        })
    }

    /// Manifests of a repository that nothing holds, among the next `limit` from a place on.
    pub fn idle_manifests(&self, repository: &RepositoryName, from: Option<&[u8]>, limit: usize) -> Result<Part<IdleManifest>> {
        let prefix = [repository.as_str().as_bytes(), &[0]].concat();
        self.part(Table::Manifest, &prefix, from, limit, |record| {
            let (Key::Manifest(repository, digest), Some(_)) = (&record.key, &record.value) else { return Ok(None) };
            let held = is_held(&self.inner.index, repository, &record, &Gone::default())?;
            Ok((!held).then_some(IdleManifest { digest: *digest, stamp: record.stamp }))
        })
    }

    /// Blobs on this disk that no repository links, and their sizes, among the next `limit` behind `after`.
    pub fn idle_blobs(&self, after: Option<&Digest>, limit: usize) -> Result<Part<(Digest, u64), Digest>> {
        let from = after.map(|after| [&after.to_key()[..], &[0]].concat()).unwrap_or_default();
        let (mut idle, mut last, mut count) = (Vec::new(), None, 0);
        for row in self.inner.index.scan(Table::Blob, b"", &from).take(limit) {
            let (key, row) = row?;
            count += 1;
            let Some(digest) = Digest::from_key(&key) else { continue };
            last = Some(digest);
            if edges::linking(&self.inner.index, &digest).next().transpose()?.is_none() {
                let row: BlobRow = decode(Table::Blob, &row)?;
                idle.push((digest, row.size));
            }
        }
        Ok((idle, last.filter(|_| count == limit)))
    }

    /// Takes links away that still are as they were seen, and needed by nothing; says which.
    pub fn collect_links(&self, links: Vec<IdleLink>) -> Result<Vec<IdleLink>> {
        if self.is_reader() {
            return Ok(Vec::new());
        }
        let mut writing = self.inner.journal.write(&self.inner.index);
        let mut gone = Vec::new();
        for link in links {
            // F41: under the lock, so a manifest is either seen here, or finds the link gone.
            if !is_needed(&self.inner.index, &link.repository, &link.digest)?
                && writing.retire(Key::Link(link.repository.clone(), link.digest), link.stamp)?
            {
                gone.push(link);
            }
        }
        if !gone.is_empty() {
            writing.commit()?;
        }
        Ok(gone)
    }

    /// Takes tags away that still are as they were seen, and with them the manifests that nothing holds then; says how many manifests.
    pub fn retire_tags(&self, repository: &RepositoryName, tags: &[(Tag, Stamp)]) -> Result<usize> {
        if self.is_reader() {
            return Ok(0);
        }
        let mut writing = self.inner.journal.write(&self.inner.index);
        let (mut gone, mut roots) = (Gone::default(), Vec::new());
        for (tag, stamp) in tags {
            let key = Key::Tag(repository.clone(), tag.clone());
            let Some(Value::Tag(target)) = writing.live(&key)? else { continue };
            if writing.retire(key, *stamp)? {
                gone.tags.insert(tag.clone());
                roots.push(target.digest);
            }
        }
        if gone.tags.is_empty() {
            return Ok(0);
        }
        cascade(&mut writing, repository, roots, &mut gone)?;
        writing.commit()?;
        Ok(gone.manifests.len())
    }

    /// Takes manifests away that still are as they were seen, and held by nothing, with what they alone held; says how many.
    pub fn retire_manifests(&self, repository: &RepositoryName, manifests: &[IdleManifest]) -> Result<usize> {
        if self.is_reader() {
            return Ok(0);
        }
        let mut writing = self.inner.journal.write(&self.inner.index);
        let mut gone = Gone::default();
        for manifest in manifests {
            let standing = writing.standing(&Key::Manifest(repository.clone(), manifest.digest))?;
            if standing.is_some_and(|record| record.value.is_some() && record.stamp == manifest.stamp) {
                cascade(&mut writing, repository, vec![manifest.digest], &mut gone)?;
            }
        }
        if !gone.manifests.is_empty() {
            writing.commit()?;
        }
        Ok(gone.manifests.len())
    }

    /// What the link of a blob says, as [`Store::link`]; and the blob is good for a manifest for a while from now on.
    ///
    /// `None` also for one that was damaged and has not come back: a client that hears so pushes it again, and that mends it.
    pub fn check_blob(&self, repository: &RepositoryName, digest: &Digest) -> Result<Option<Link>> {
        if let Checked::Known(link) = self.known_blob(repository, digest)? {
            return Ok(link);
        }
        let (inner, key) = (&self.inner, Key::Link(repository.clone(), *digest));
        let mut writing = inner.journal.write(&inner.index);
        let Some(Value::Link(link)) = writing.live(&key)? else { return Ok(None) };
        rely(inner, &mut writing, key, link)?;
        writing.commit()?;
        Ok(Some(link))
    }

    /// The same, as far as it can be said without writing anything.
    pub fn known_blob(&self, repository: &RepositoryName, digest: &Digest) -> Result<Checked> {
        if self.is_lost(digest)? {
            return Ok(Checked::Known(None));
        }
        Ok(match journal::read(&self.inner.index, &Key::Link(repository.clone(), *digest))? {
            // Nobody can push a manifest to a reader, so nobody relies on its word.
            Some(Record { value: Some(Value::Link(link)), stamp, .. }) if self.inner.is_fresh(stamp) || self.is_reader() => {
                Checked::Known(Some(link))
            }
            Some(Record { value: Some(Value::Link(_)), .. }) => Checked::Old,
            _ => Checked::Known(None),
        })
    }

    pub(super) fn part<T>(
        &self,
        table: Table,
        prefix: &[u8],
        from: Option<&[u8]>,
        limit: usize,
        mut pick: impl FnMut(Record) -> Result<Option<T>>,
    ) -> Result<Part<T>> {
        let mut part = Vec::new();
        let mut rows = self.inner.index.scan(table, prefix, from.unwrap_or_default());
        for row in rows.by_ref().take(limit) {
            let row: RecordRow = decode(table, &row?.1)?;
            if row.record.value.is_some() {
                part.extend(pick(journal::parse(&row.record)?)?);
            }
        }
        let next = rows.next().transpose()?.map(|(key, _)| key.into_vec());
        Ok((part, next))
    }
}

impl Inner {
    /// Whether a link was written so lately that relying on it needs no writing.
    pub(super) fn is_fresh(&self, stamp: Stamp) -> bool {
        let renew_ms = u64::try_from(self.options.renew_after.as_millis()).unwrap_or(u64::MAX);
        journal::now_ms().saturating_sub(stamp.time.ms()) < renew_ms
    }
}

/// Writes a link, unless it stands and is fresh.
pub(super) fn rely(inner: &Inner, writing: &mut Writing<'_>, key: Key, link: Link) -> Result<()> {
    let value = Some(Value::Link(link));
    match writing.standing(&key)? {
        Some(record) if record.value == value && inner.is_fresh(record.stamp) => Ok(()),
        _ => writing.record(key, value),
    }
}

/// Whether a manifest of the repository names a digest as a part of it.
pub(super) fn is_needed(index: &Index, repository: &RepositoryName, digest: &Digest) -> Result<bool> {
    for holder in edges::holders(index, digest, repository, None) {
        if let Holder::Manifest(_, naming) = holder?
            && (naming.is(Naming::BLOB) || naming.is(Naming::CHILD))
        {
            return Ok(true);
        }
    }
    Ok(false)
}

/// Whether a tombstone is the work of [`Writing::retire`] on this very version.
pub(super) fn retires(tombstone: &Record, version: &Record) -> bool {
    tombstone.value.is_none() && tombstone.stamp.time == after(version.stamp)
}

fn after(stamp: Stamp) -> HybridTime {
    HybridTime(stamp.time.0 + 1)
}

impl Writing<'_> {
    /// Deletes a record if it stands as it was seen, and in a way that every later writing beats; says whether it did.
    fn retire(&mut self, key: Key, seen: Stamp) -> Result<bool> {
        let standing = self.standing(&key)?.is_some_and(|record| record.value.is_some() && record.stamp == seen);
        if standing {
            self.record_at(key, None, after(seen))?;
        }
        Ok(standing)
    }
}

/// What goes in one writing; the index does not know of it yet.
#[derive(Default)]
struct Gone {
    tags: HashSet<Tag>,
    manifests: HashSet<Digest>,
}

/// Takes manifests away that nothing holds, then their children and what is attached to them, as far as nothing holds these.
fn cascade(writing: &mut Writing<'_>, repository: &RepositoryName, roots: Vec<Digest>, gone: &mut Gone) -> Result<()> {
    let mut left = roots;
    while let Some(digest) = left.pop() {
        let key = Key::Manifest(repository.clone(), digest);
        let Some(record) = writing.standing(&key)?.filter(|record| record.value.is_some()) else { continue };
        if gone.manifests.len() >= CASCADE_MAX || gone.manifests.contains(&digest) || is_held(writing.index, repository, &record, gone)? {
            continue;
        }
        gone.manifests.insert(digest);
        writing.retire(key, record.stamp)?;
        left.extend(view(&record).children);
        for holder in edges::holders(writing.index, &digest, repository, None) {
            match holder? {
                Holder::Manifest(referrer, naming) if naming.is(Naming::SUBJECT) => left.push(referrer),
                _ => {}
            }
        }
    }
    Ok(())
}

/// Whether a tag names a manifest, an index lists it, or it is attached to one that is there.
fn is_held(index: &Index, repository: &RepositoryName, record: &Record, gone: &Gone) -> Result<bool> {
    let Key::Manifest(_, digest) = &record.key else { return Ok(true) };
    for holder in edges::holders(index, digest, repository, None) {
        let holds = match holder? {
            Holder::Link => false,
            Holder::Tag(tag) => !gone.tags.contains(&tag),
            // One that lists itself would hold itself for ever.
            Holder::Manifest(parent, naming) => naming.is(Naming::CHILD) && parent != *digest && !gone.manifests.contains(&parent),
        };
        if holds {
            return Ok(true);
        }
    }
    let Some(subject) = view(record).subject.filter(|subject| subject != digest && !gone.manifests.contains(subject)) else {
        return Ok(false);
    };
    Ok(journal::read(index, &Key::Manifest(repository.clone(), subject))?.is_some_and(|subject| subject.value.is_some()))
}

/// What a manifest's record names; nothing when it can't be read.
fn view(record: &Record) -> ManifestView {
    match &record.value {
        Some(Value::Manifest(manifest)) => ManifestView::parse(&manifest.media_type, &manifest.bytes).unwrap_or_default(),
        _ => ManifestView::default(),
    }
}

#[cfg(test)]
mod tests;
