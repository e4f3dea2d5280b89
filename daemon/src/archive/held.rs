//! What a checkpoint does not say yet: that there is an image some of whose bytes are in no pack.
//!
//! A checkpoint is of this node's whole state, and part of that waits for a pack still, here or on another archiver. A tag that was moved to such an image
//! would come back pointing at nothing, though what it meant before is in the bucket. So these are held back: a manifest that has a blob in no pack, links
//! to such blobs, and tags that name such a manifest; of a tag, the newest version that is whole is told instead. Deletes are told at once: they need no bytes.
//!
//! Up to before the first that is held back, and no further, the checkpoint says that an origin is known: the pack that brings it comes behind the checkpoint.

use std::collections::{BTreeMap, HashMap};

use larder_protocol::digest::Digest;
use larder_protocol::name::RepositoryName;
use larder_protocol::record::{Key, Numbered, Record, TagTarget, Value};
use larder_protocol::stamp::Stamp;
use larder_protocol::vector::{Origin, VersionVector};

use crate::store::{Error, Store};

use super::queue::{self, InBucket};

/// What was written longer ago has been archived, or some of its blobs can't be had: it is told as it is.
const WAITS_MS_MAX: u64 = 24 * 3_600_000;
/// Versions of a tag that are looked at for one that is whole.
const VERSIONS_MAX: usize = 16;

/// Decides of each record of the state whether it is told.
pub(super) struct Held<'a> {
    store: &'a Store,
    bucket: &'a str,
    now_ms: u64,
    in_bucket: InBucket,
    cursors: HashMap<Origin, u64>,
    first: BTreeMap<Origin, u64>,
}

impl<'a> Held<'a> {
    pub(super) fn new(store: &'a Store, bucket: &'a str, now_ms: u64) -> Self {
        Self { store, bucket, now_ms, in_bucket: InBucket::default(), cursors: HashMap::new(), first: BTreeMap::new() }
    }

    /// The record, or what is told in its place; `None`: nothing.
    pub(super) fn pass(&mut self, numbered: Numbered) -> Result<Option<Numbered>, Error> {
        let Numbered { origin, sequence, record: Record { key, value, stamp } } = &numbered;
        if value.is_none() || !self.is_young(stamp) || *sequence <= self.cursor(origin)? {
            return Ok(Some(numbered));
        }
        let is_told = match (key, value) {
            (Key::Manifest(repository, digest), _) => self.is_whole(repository, digest)?,
            (Key::Link(_, digest), _) => self.in_bucket.holds(self.store, self.bucket, digest)?,
            (Key::Tag(repository, _), Some(Value::Tag(target))) => self.is_whole(repository, &target.digest)?,
            _ => true,
        };
        if is_told {
            return Ok(Some(numbered));
        }
        let first = self.first.entry(*origin).or_insert(*sequence);
        *first = (*first).min(*sequence);
        // Under the number of the newer one: whoever brings that one later replaces it.
        let before = self.before(key)?;
        Ok(before.map(|record| Numbered { record, ..numbered }))
    }

    /// How far a checkpoint without what was held back tells everything.
    pub(super) fn known(&self, seen: &VersionVector) -> VersionVector {
        let end = |(origin, upto): (Origin, u64)| (origin, self.first.get(&origin).map_or(upto, |first| upto.min(first.saturating_sub(1))));
        seen.iter().map(end).filter(|(_, upto)| *upto > 0).collect()
    }

    fn is_young(&self, stamp: &Stamp) -> bool {
        stamp.time.ms().saturating_add(WAITS_MS_MAX) > self.now_ms
    }

    fn cursor(&mut self, origin: &Origin) -> Result<u64, Error> {
        if let Some(cursor) = self.cursors.get(origin) {
            return Ok(*cursor);
        }
        let cursor = queue::cursor(self.store, self.bucket, origin)?;
        self.cursors.insert(*origin, cursor);
        Ok(cursor)
    }

    /// Whether a manifest is there and nothing of it waits for a pack.
    fn is_whole(&mut self, repository: &RepositoryName, digest: &Digest) -> Result<bool, Error> {
        let record = self.store.record(&Key::Manifest(repository.clone(), *digest))?;
        let Some(record) = record.filter(|record| record.value.is_some()) else { return Ok(false) };
        if !self.is_young(&record.stamp) {
            return Ok(true);
        }
        for (blob, _) in self.store.closure(repository, digest)? {
            if !self.in_bucket.holds(self.store, self.bucket, &blob)? {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// What a tag named before, and can be had from the bucket; or that it had been deleted.
    fn before(&mut self, key: &Key) -> Result<Option<Record>, Error> {
        let Key::Tag(repository, tag) = key else { return Ok(None) };
        let mut replaced = None;
        for version in self.store.tag_history(repository, tag, VERSIONS_MAX)? {
            // I4: what stood between the two versions was a delete.
            if let Some(stamp) = replaced.filter(|stamp| *stamp > version.stamp) {
                return Ok(Some(Record { key: key.clone(), value: None, stamp }));
            }
            if !version.current && self.is_whole(repository, &version.digest)? {
                let value = Some(Value::Tag(TagTarget { digest: version.digest, replaced: None }));
                return Ok(Some(Record { key: key.clone(), value, stamp: version.stamp }));
            }
            replaced = version.replaced;
        }
        Ok(replaced.map(|stamp| Record { key: key.clone(), value: None, stamp }))
    }
}
