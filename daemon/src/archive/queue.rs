//! What waits to be archived: which origins are ours to archive, how far each is, how much waits and since when.
//!
//! A cursor per bucket and origin says up to where an origin's records are in packs. Behind it the journal is read once, as it grows,
//! and counted; nothing but the counts is kept in memory. After a pack the counting begins again at the new cursors.

use std::collections::{HashMap, HashSet};

use larder_protocol::digest::Digest;
use larder_protocol::record::{Key, Member, PackId, Value};
use larder_protocol::stamp::NodeId;
use larder_protocol::vector::Origin;

use crate::store::{self, Store};

use super::plan;

/// Records read from the journal at a time: each may be a manifest of some MiB.
pub const TAIL_BATCH: usize = 64;
/// Records that are counted; more are there, but counting them changes nothing.
const COUNTED_MAX: u64 = 100_000;
/// Packs whose bucket is remembered.
const PACKS_REMEMBERED_MAX: usize = 100_000;

/// How much waits. Beyond [`COUNTED_MAX`] records: at least so much.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Waiting {
    /// Records that are worth a pack.
    pub records: u64,
    /// Bytes of manifests, and of blobs that the bucket lacks.
    pub bytes: u64,
    /// When the oldest was written, milliseconds since 1970.
    pub oldest_ms: Option<u64>,
}

/// The count, and how far it has come.
#[derive(Debug, Default)]
pub struct Queue {
    read: HashMap<Origin, u64>,
    counted: HashSet<Digest>,
    waiting: Waiting,
}

/// Which packs are in one bucket.
#[derive(Debug, Default)]
pub struct InBucket(HashMap<PackId, bool>);

/// The setting that says up to where an origin is archived.
pub fn cursor_setting(bucket: &str, origin: &Origin) -> String {
    format!("archive/cursor/{bucket}/{}-{}", origin.node.letters(), origin.incarnation)
}

/// How far an origin is archived; 0 when nothing is.
pub fn cursor(store: &Store, bucket: &str, origin: &Origin) -> Result<u64, store::Error> {
    let bytes = store.setting(&cursor_setting(bucket, origin))?;
    Ok(bytes.and_then(|bytes| std::str::from_utf8(&bytes).ok()?.parse().ok()).unwrap_or(0))
}

/// The origins that this node archives for, and their last sequence.
pub fn origins(store: &Store) -> Result<Vec<(Origin, u64)>, store::Error> {
    let (this, members) = (store.origin().node, store.members()?);
    Ok(store.vector().iter().filter(|(origin, _)| archiver(&origin.node, &this, &members) == this).collect())
}

/// Which node archives what `writer` wrote: the writer itself when it has a bucket. Otherwise the first, in the order of a hash,
/// among those that have one, so that all nodes agree without talking. `this` node has one.
fn archiver(writer: &NodeId, this: &NodeId, members: &[(NodeId, Option<Member>)]) -> NodeId {
    let with_bucket =
        members.iter().filter(|(_, member)| member.as_ref().is_some_and(|member| member.bucket.is_some())).map(|(node, _)| node);
    let candidates: Vec<&NodeId> = with_bucket.chain([this]).collect();
    if candidates.contains(&writer) {
        return *writer;
    }
    let weight = |node: &NodeId| Digest::sha256(&[writer.0, node.0].concat());
    **candidates.iter().max_by_key(|node| weight(node)).expect("this node is one")
}

impl InBucket {
    /// Whether a pack of `bucket` holds the blob.
    pub fn holds(&mut self, store: &Store, bucket: &str, digest: &Digest) -> Result<bool, store::Error> {
        for (pack, ..) in store.locations(digest)? {
            let here = match self.0.get(&pack) {
                Some(here) => *here,
                None => {
                    let here = store.pack(&pack)?.is_some_and(|archived| archived.bucket == bucket);
                    if self.0.len() >= PACKS_REMEMBERED_MAX {
                        self.0.clear();
                    }
                    self.0.insert(pack, here);
                    here
                }
            };
            if here {
                return Ok(true);
            }
        }
        Ok(false)
    }
}

impl Queue {
    /// What waits, as far as it was counted.
    pub fn waiting(&self) -> Waiting {
        self.waiting
    }

    /// Counts what was written since the last count. Blocks.
    pub fn count(&mut self, store: &Store, bucket: &str, in_bucket: &mut InBucket, now_ms: u64) -> Result<(), store::Error> {
        for (origin, last) in origins(store)? {
            let mut after = match self.read.get(&origin) {
                Some(read) => *read,
                None => cursor(store, bucket, &origin)?,
            };
            while after < last && self.waiting.records < COUNTED_MAX {
                let batch = store.tail(&origin, after, TAIL_BATCH)?;
                let Some(end) = batch.last().map(|numbered| numbered.sequence) else {
                    after = last;
                    break;
                };
                for numbered in &batch {
                    if !plan::is_reason(&numbered.record) {
                        continue;
                    }
                    self.waiting.records += 1;
                    // A clock that runs ahead must not make a record wait longer than it may.
                    let written = numbered.record.stamp.time.ms().min(now_ms);
                    self.waiting.oldest_ms = Some(self.waiting.oldest_ms.map_or(written, |oldest| oldest.min(written)));
                    if let (Key::Manifest(repository, digest), Some(Value::Manifest(manifest))) =
                        (&numbered.record.key, &numbered.record.value)
                    {
                        self.waiting.bytes += manifest.bytes.len() as u64;
                        for (blob, link) in store.closure(repository, digest)? {
                            if !self.counted.contains(&blob) && !in_bucket.holds(store, bucket, &blob)? {
                                self.counted.insert(blob);
                                self.waiting.bytes = self.waiting.bytes.saturating_add(link.size);
                            }
                        }
                    }
                }
                after = end;
            }
            self.read.insert(origin, after);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn member(bucket: Option<&str>) -> Option<Member> {
        let text = String::new;
        Some(Member { name: text(), zone: text(), addresses: vec![], bucket: bucket.map(str::to_owned), version: text() })
    }

    #[test]
    fn every_origin_has_one_archiver_that_all_agree_on() {
        let node = |name| NodeId([name; 32]);
        let members = vec![(node(1), member(Some("b"))), (node(2), member(Some("b"))), (node(3), member(None)), (node(4), None)];
        for writer in 1..=9 {
            let choices: HashSet<NodeId> = [1, 2].map(|this| archiver(&node(writer), &node(this), &members)).into();
            assert_eq!(choices.len(), 1, "writer {writer}");
            let choice = *choices.iter().next().expect("one");
            assert!([node(1), node(2)].contains(&choice));
            assert!(writer > 2 || choice == node(writer));
        }
        // Before its own member record is there.
        assert_eq!(archiver(&node(8), &node(8), &members), node(8));
    }
}
