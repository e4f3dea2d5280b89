//! What waits to be archived: which origins are ours to archive, how far each is, how much waits and since when.
//!
//! A cursor per bucket and origin says up to where an origin's records are in packs. Behind it the journal is read once, as it grows,
//! and counted; nothing but the counts is kept in memory. After a pack the counting begins again at the new cursors.

use std::collections::{BTreeMap, HashMap, HashSet};

use larder_protocol::digest::Digest;
use larder_protocol::record::{Key, PackId, Value};
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

/// What the settings of all origins in a bucket begin with.
pub fn cursor_prefix(bucket: &str) -> String {
    format!("archive/cursor/{bucket}/")
}

/// How far an origin is archived; 0 when nothing is.
pub fn cursor(store: &Store, bucket: &str, origin: &Origin) -> Result<u64, store::Error> {
    let bytes = store.setting(&cursor_setting(bucket, origin))?;
    Ok(bytes.and_then(|bytes| std::str::from_utf8(&bytes).ok()?.parse().ok()).unwrap_or(0))
}

/// Whether a member has been away for so long that others take over.
pub type Gone = dyn Fn(&NodeId) -> bool + Send + Sync;

/// The origins that this node archives for, and their last sequence.
pub fn origins(store: &Store, gone: &Gone) -> Result<Vec<(Origin, u64)>, store::Error> {
    let (this, fleet) = (store.origin().node, fleet(store, gone)?);
    Ok(store.vector().iter().filter(|(origin, _)| archiver(&origin.node, &this, &fleet) == Some(this)).collect())
}

/// Whether this node archives what a member wrote.
pub fn archives_for(store: &Store, gone: &Gone) -> Result<impl Fn(&NodeId) -> bool + Send + Sync + use<>, store::Error> {
    let (this, fleet) = (store.origin().node, fleet(store, gone)?);
    Ok(move |writer: &NodeId| archiver(writer, &this, &fleet) == Some(this))
}

/// The members that archive for others at this moment.
pub fn archivers(store: &Store, gone: &Gone) -> Result<Vec<NodeId>, store::Error> {
    Ok(fleet(store, gone)?.into_iter().filter(|(_, place)| place.stands_in).map(|(node, _)| node).collect())
}

/// A member, as far as archiving cares.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Place {
    /// It has a bucket, may write there, and is not gone.
    archives: bool,
    /// And it may archive what others wrote.
    stands_in: bool,
}

fn fleet(store: &Store, gone: &Gone) -> Result<BTreeMap<NodeId, Place>, store::Error> {
    let (this, roles) = (store.origin().node, store.roles()?.into_iter().collect::<HashMap<_, _>>());
    let mut fleet: BTreeMap<NodeId, Place> = BTreeMap::new();
    for (node, member) in store.members()? {
        let is_there = member.is_some_and(|member| node == this || (member.bucket.is_some() && !gone(&node)));
        let role = roles.get(&node).copied();
        let archives = is_there && role.is_none_or(|role| role.is_writer());
        fleet.insert(node, Place { archives, stands_in: archives && role.is_none_or(|role| role.is_archiver()) });
    }
    // Before its own member record is there.
    fleet.entry(this).or_insert(Place { archives: true, stands_in: true });
    Ok(fleet)
}

/// Which node archives what `writer` wrote: the writer itself when it has a bucket and is there. Otherwise the first, in the order of a hash,
/// among those that may, so that all who see the same agree without talking; two who don't write the same twice, which is harmless. `this` node has a bucket.
fn archiver(writer: &NodeId, this: &NodeId, fleet: &BTreeMap<NodeId, Place>) -> Option<NodeId> {
    if writer == this || fleet.get(writer).is_some_and(|place| place.archives) {
        return Some(*writer);
    }
    let weight = |node: &NodeId| Digest::sha256(&[writer.0, node.0].concat());
    fleet.iter().filter(|(_, place)| place.stands_in).map(|(node, _)| *node).max_by_key(weight)
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
    pub fn count(&mut self, store: &Store, gone: &Gone, bucket: &str, in_bucket: &mut InBucket, now_ms: u64) -> Result<(), store::Error> {
        let origins = origins(store, gone)?;
        if self.read.keys().any(|counted| !origins.iter().any(|(origin, _)| origin == counted)) {
            // Somebody is back and archives for itself.
            *self = Self::default();
        }
        for (origin, last) in origins {
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

    #[test]
    fn every_origin_has_one_archiver_that_all_agree_on() {
        let node = |name| NodeId([name; 32]);
        let place = |archives, stands_in| Place { archives, stands_in };
        // Two that archive for anyone, one for itself only, one that has no bucket, or is gone.
        let fleet: BTreeMap<NodeId, Place> =
            [(1, place(true, true)), (2, place(true, true)), (3, place(true, false)), (4, place(false, false))]
                .map(|(name, place)| (node(name), place))
                .into();
        for writer in 1..=9 {
            let choices: HashSet<Option<NodeId>> = [1, 2, 3].map(|this| archiver(&node(writer), &node(this), &fleet)).into();
            assert_eq!(choices.len(), 1, "writer {writer}");
            let choice = choices.into_iter().flatten().next().expect("somebody");
            assert!(if writer <= 3 { choice == node(writer) } else { [node(1), node(2)].contains(&choice) }, "writer {writer}");
        }
        // Whose turn it is when its first choice is gone: only its share moves.
        let mut without = fleet.clone();
        without.insert(node(2), place(false, false));
        for writer in 4..=30 {
            let before = archiver(&node(writer), &node(1), &fleet);
            let after = archiver(&node(writer), &node(1), &without);
            assert_eq!(after, Some(node(1)));
            assert!(before == Some(node(2)) || before == after);
        }
        assert_eq!(archiver(&node(2), &node(1), &without), Some(node(1)), "what it wrote before is taken over");
    }
}
