//! What goes into the next pack: decided here, without touching disk or bucket.
//!
//! Items come in the order of the journal. An item is a record and the blobs that must be in the bucket before the record means anything
//! there. The plan takes items until one doesn't fit; what is left is for the next pack. An image that fits in no pack goes in parts: its
//! blobs first, as packs without records; since they are in the bucket then, the rest fits at last.

use std::collections::{BTreeMap, HashMap, HashSet};

use bytes::Bytes;
use larder_protocol::digest::Digest;
use larder_protocol::pack::{Covered, ManifestPart, PACK_CONTENTS_MAX};
use larder_protocol::record::{Key, Link, Numbered, Record, Value};
use larder_protocol::vector::Origin;

/// How much a pack may hold.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Blobs and manifests.
    pub blobs: usize,
    /// Bytes of blobs; one blob alone may be larger.
    pub blob_bytes: u64,
    /// Records.
    pub records: usize,
    /// Bytes of their lines.
    pub line_bytes: u64,
    /// Bytes of manifests.
    pub manifest_bytes: u64,
}

impl Default for Limits {
    fn default() -> Self {
        Self { blobs: PACK_CONTENTS_MAX, blob_bytes: 4 << 30, records: 50_000, line_bytes: 32 << 20, manifest_bytes: 32 << 20 }
    }
}

/// How long blobs live, as far as their tags tell.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Lifetime {
    /// Of what is built again and again.
    Branch,
    /// Of what is kept.
    Release,
    /// Of several images: as long as the last of them.
    Shared,
}

/// Whether a tag looks like a release: `v1.2.3`, `2026.11`, `stable`.
fn is_release(tag: &str) -> bool {
    let numbers = tag.strip_prefix('v').unwrap_or(tag);
    let core = numbers.split(['-', '+', '_']).next().unwrap_or_default();
    let is_version = core.contains('.') && core.split('.').all(|part| !part.is_empty() && part.bytes().all(|byte| byte.is_ascii_digit()));
    is_version || ["stable", "lts"].contains(&tag) || tag.starts_with("release")
}

/// Of a full pack, the part below which a pack of its own is not worth a request.
const SPLIT_PARTS: u64 = 4;

/// A record and what must stand beside it.
#[derive(Clone, Debug)]
pub struct Item {
    /// The record.
    pub numbered: Numbered,
    /// Its line.
    pub line: String,
    /// Blobs that it needs and the bucket lacks; they are on this disk.
    pub blobs: Vec<(Digest, Link)>,
    /// Those that more than one repository has.
    pub shared: HashSet<Digest>,
}

/// What came of offering an item.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Offered {
    /// It is in.
    Taken,
    /// Seal what there is; offer it again for the next pack.
    Full,
}

/// A pack in the making.
#[derive(Clone, Debug, Default)]
pub struct Plan {
    /// In the order in which they shall lie.
    pub blobs: Vec<(Digest, Link)>,
    /// Their manifests.
    pub manifests: Vec<ManifestPart>,
    /// Lines of records.
    pub lines: Vec<String>,
    /// What the records cover.
    pub covers: BTreeMap<Origin, Covered>,
    /// Records that are worth a pack.
    pub reasons: u64,
    /// Layers alone, to be put as the class for those.
    pub is_bulk: bool,
    /// Which manifest brought a blob; none for those that many share.
    owner: HashMap<Digest, Option<Digest>>,
    in_pack: HashSet<Digest>,
    manifest_at: HashMap<Digest, usize>,
    tags: Vec<(Digest, String)>,
    blob_bytes: u64,
    line_bytes: u64,
    manifest_bytes: u64,
}

/// Whether a record alone is worth a pack. Packs and members are told of in packs, but never cause one: else each pack would cause the next.
/// That a node lets another in, or expels one, is: by it a restore knows whose packs count.
/// A link means nothing without its manifest, and is written anew as clients rely on it; only its end is worth telling.
pub fn is_reason(record: &Record) -> bool {
    match record.key {
        Key::Archived(_) | Key::Role(_) | Key::Site(_) | Key::Starts(_) => false,
        Key::Member(node) => record.stamp.node != node,
        Key::Link(..) => record.value.is_none(),
        Key::Manifest(..) | Key::Tag(..) | Key::User(_) | Key::Robot(_) | Key::Rule(..) | Key::Keys(_) | Key::Unknown { .. } => true,
    }
}

impl Plan {
    /// Whether the pack holds this blob already.
    pub fn holds(&self, digest: &Digest) -> bool {
        self.in_pack.contains(digest)
    }

    /// Whether there is any reason to write it.
    pub fn is_worth_it(&self) -> bool {
        self.reasons > 0 || !self.blobs.is_empty()
    }

    /// Takes an item, or says that the pack is full.
    pub fn offer(&mut self, item: Item, limits: &Limits) -> Offered {
        let manifest = match (&item.numbered.record.key, &item.numbered.record.value) {
            (Key::Manifest(_, digest), Some(Value::Manifest(manifest))) => Some((*digest, manifest)),
            _ => None,
        };
        let manifest_bytes = manifest.map_or(0, |(_, manifest)| manifest.bytes.len() as u64);
        let count = item.blobs.len() + usize::from(manifest.is_some());
        let bytes: u64 = item.blobs.iter().map(|(_, link)| link.size).sum();
        let fits = self.in_pack.len() + count <= limits.blobs
            && self.blob_bytes.saturating_add(bytes) <= limits.blob_bytes
            && self.lines.len() < limits.records
            && self.line_bytes + item.line.len() as u64 <= limits.line_bytes
            && self.manifest_bytes + manifest_bytes <= limits.manifest_bytes;
        if !fits {
            if !self.is_empty() {
                return Offered::Full;
            }
            // Alone it must go on: a part of its blobs, or, when they are no more the matter, all of it.
            if count > limits.blobs || (bytes > limits.blob_bytes && item.blobs.len() > 1) {
                for (digest, link) in item.blobs {
                    if self.offer_blob(digest, link, limits) == Offered::Full {
                        break;
                    }
                }
                return Offered::Full;
            }
        }
        for (digest, link) in &item.blobs {
            self.take_blob(*digest, *link);
            let owner = manifest.map(|(digest, _)| digest).filter(|_| !item.shared.contains(digest));
            // Two images that came together have it both.
            self.owner.entry(*digest).and_modify(|known| *known = known.filter(|known| Some(*known) == owner)).or_insert(owner);
        }
        if let Some((digest, manifest)) = manifest {
            self.take_manifest(digest, &manifest.media_type, &manifest.bytes);
        }
        if let (Key::Tag(repository, tag), Some(Value::Tag(target))) = (&item.numbered.record.key, &item.numbered.record.value) {
            self.tags.push((target.digest, format!("{repository}:{tag}")));
        }
        self.reasons += u64::from(is_reason(&item.numbered.record));
        self.line_bytes += item.line.len() as u64 + 1;
        self.lines.push(item.line);
        Offered::Taken
    }

    /// Takes a blob that belongs to a record of an earlier pack, or says that the pack is full.
    pub fn offer_blob(&mut self, digest: Digest, link: Link, limits: &Limits) -> Offered {
        let alone = self.blobs.is_empty();
        if self.in_pack.len() >= limits.blobs || (self.blob_bytes.saturating_add(link.size) > limits.blob_bytes && !alone) {
            return Offered::Full;
        }
        self.take_blob(digest, link);
        Offered::Taken
    }

    /// Takes a manifest that belongs to blobs of the pack, or says that the pack is full.
    pub fn offer_manifest(&mut self, digest: Digest, media_type: &str, bytes: &[u8], limits: &Limits) -> Offered {
        if self.in_pack.len() >= limits.blobs || self.manifest_bytes + bytes.len() as u64 > limits.manifest_bytes {
            return Offered::Full;
        }
        self.take_manifest(digest, media_type, bytes);
        Offered::Taken
    }

    /// When so much waits that it fills packs anyway: the blobs of one lifetime, as a pack of their own. Then what is deleted together lies together, and
    /// packs die whole. What is left is planned again, without them; little is never split, since each pack costs a request.
    pub fn split_off(&self, pack_size: u64) -> Option<Plan> {
        if self.blob_bytes < pack_size {
            return None;
        }
        let released: HashSet<Digest> = self
            .tags
            .iter()
            .filter(|(_, name)| is_release(name.rsplit(':').next().unwrap_or_default()))
            .map(|(digest, _)| *digest)
            .collect();
        let lifetime = |digest: &Digest| match self.owner.get(digest) {
            Some(Some(manifest)) if released.contains(manifest) => Lifetime::Release,
            Some(Some(_)) => Lifetime::Branch,
            Some(None) | None => Lifetime::Shared,
        };
        let mut bytes = BTreeMap::<Lifetime, u64>::new();
        for (digest, link) in &self.blobs {
            *bytes.entry(lifetime(digest)).or_default() += link.size;
        }
        // Two that are each worth a request.
        let mut worth = bytes.into_iter().filter(|(_, bytes)| *bytes >= pack_size / SPLIT_PARTS);
        let (first, _) = worth.next()?;
        worth.next()?;
        let mut part = Plan::default();
        self.blobs.iter().filter(|(digest, _)| lifetime(digest) == first).for_each(|(digest, link)| part.take_blob(*digest, *link));
        Some(part)
    }

    /// The blobs that are larger than `small`, as a pack of their own in the class for layers. What is left, records and small blobs, is planned again.
    pub fn split_bulk(&self, small: u64) -> Option<Plan> {
        let mut part = Plan { is_bulk: true, ..Plan::default() };
        self.blobs.iter().filter(|(_, link)| link.size > small).for_each(|(digest, link)| part.take_blob(*digest, *link));
        (!part.blobs.is_empty()).then_some(part)
    }

    /// Says that everything of `origin` behind `after` and up to `upto` was offered and taken.
    pub fn cover(&mut self, origin: Origin, after: u64, upto: u64) {
        if upto > after {
            self.covers.insert(origin, Covered { after, upto });
        }
    }

    /// Gives the manifests their tags' names.
    pub fn name_manifests(&mut self) {
        for (digest, name) in std::mem::take(&mut self.tags) {
            if let Some(at) = self.manifest_at.get(&digest) {
                self.manifests[*at].names.push(name);
            }
        }
    }

    fn is_empty(&self) -> bool {
        self.lines.is_empty() && self.in_pack.is_empty()
    }

    fn take_blob(&mut self, digest: Digest, link: Link) {
        if self.in_pack.insert(digest) {
            self.blob_bytes = self.blob_bytes.saturating_add(link.size);
            self.blobs.push((digest, link));
        }
    }

    fn take_manifest(&mut self, digest: Digest, media_type: &str, bytes: &[u8]) {
        if self.manifest_at.contains_key(&digest) {
            return;
        }
        // The same bytes may have been pushed as a blob too. They lie where manifests lie, once.
        if !self.in_pack.insert(digest) {
            self.blobs.retain(|(blob, _)| *blob != digest);
        }
        self.manifest_bytes += bytes.len() as u64;
        self.manifest_at.insert(digest, self.manifests.len());
        let (media_type, bytes) = (media_type.to_owned(), Bytes::copy_from_slice(bytes));
        self.manifests.push(ManifestPart { digest, media_type, bytes, names: Vec::new() });
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use larder_protocol::pack::record_line;
    use larder_protocol::record::{Manifest, PackId, TagTarget};
    use larder_protocol::stamp::{HybridTime, NodeId, Stamp};

    const ORIGIN: Origin = Origin { node: NodeId([1; 32]), incarnation: 1 };

    fn item(key: Key, value: Option<Value>, blobs: &[(u8, u64)]) -> Item {
        let record = Record { key, value, stamp: Stamp { time: HybridTime(1), node: ORIGIN.node } };
        let numbered = Numbered { origin: ORIGIN, sequence: 1, record };
        let line = record_line(&numbered, false);
        Item { numbered, line, blobs: blobs.iter().map(|(name, size)| blob(*name, *size)).collect(), shared: HashSet::new() }
    }

    fn blob(name: u8, size: u64) -> (Digest, Link) {
        (Digest::sha256(&[name]), Link { size, root: [0; 32], crc64: 0 })
    }

    fn image(text: &str, blobs: &[(u8, u64)]) -> Item {
        let manifest = Manifest { media_type: "m".to_owned(), bytes: text.as_bytes().to_vec() };
        let key = Key::Manifest("app".parse().expect("a name"), Digest::sha256(text.as_bytes()));
        item(key, Some(Value::Manifest(manifest)), blobs)
    }

    fn small() -> Limits {
        Limits { blobs: 4, blob_bytes: 100, ..Limits::default() }
    }

    #[test]
    fn a_shared_blob_lies_in_a_pack_once() {
        let mut plan = Plan::default();
        assert_eq!(plan.offer(image("a", &[(1, 10), (2, 10)]), &Limits::default()), Offered::Taken);
        assert_eq!(plan.offer(image("b", &[(2, 10), (3, 10)]), &Limits::default()), Offered::Taken);
        assert_eq!(plan.blobs.iter().map(|(digest, _)| *digest).collect::<Vec<_>>(), [1, 2, 3].map(|name| blob(name, 0).0));
        assert_eq!((plan.manifests.len(), plan.lines.len(), plan.reasons), (2, 2, 2));
    }

    #[test]
    fn layers_have_a_pack_of_their_own_where_they_have_a_class() {
        let mut plan = Plan::default();
        assert_eq!(plan.offer(image("a", &[(1, 64), (2, 65), (3, 900)]), &Limits::default()), Offered::Taken);
        let bulk = plan.split_bulk(64).expect("two are larger");
        assert_eq!(bulk.blobs, [blob(2, 65), blob(3, 900)]);
        assert!(bulk.is_bulk && bulk.lines.is_empty() && bulk.covers.is_empty() && bulk.manifests.is_empty());
        assert!(plan.split_bulk(900).is_none() && plan.blobs.len() == 3);
    }

    #[test]
    fn what_does_not_fit_waits_for_the_next_pack() {
        let mut plan = Plan::default();
        assert_eq!(plan.offer(image("a", &[(1, 60)]), &small()), Offered::Taken);
        assert_eq!(plan.offer(image("b", &[(2, 60)]), &small()), Offered::Full);
        assert_eq!((plan.blobs.len(), plan.lines.len()), (1, 1));
        assert_eq!(plan.offer(image("c", &[(3, 1), (4, 1), (5, 1)]), &small()), Offered::Full);
        assert_eq!(plan.offer(image("d", &[(3, 1)]), &small()), Offered::Taken);
    }

    #[test]
    fn an_image_larger_than_a_pack_goes_in_parts() {
        let blobs = [(1, 60), (2, 30), (3, 60), (4, 150)];
        let mut there: Vec<u8> = Vec::new();
        let mut packs = Vec::new();
        loop {
            let mut plan = Plan::default();
            let left: Vec<_> = blobs.iter().copied().filter(|(name, _)| !there.contains(name)).collect();
            let offered = plan.offer(image("a", &left), &small());
            there.extend(left.iter().filter(|(name, _)| plan.holds(&blob(*name, 0).0)).map(|(name, _)| *name));
            packs.push((plan.blobs.len(), plan.lines.len()));
            assert!(plan.is_worth_it() && packs.len() < 9);
            if offered == Offered::Taken {
                break;
            }
        }
        // 60 + 30, then 60, then the one that is too large for any pack, with the record.
        assert_eq!(packs, [(2, 0), (1, 0), (1, 1)]);
    }

    #[test]
    fn packs_and_members_are_no_reason_for_a_pack() {
        let mut plan = Plan::default();
        plan.offer(item(Key::Archived(PackId { origin: ORIGIN, sequence: 1 }), None, &[]), &Limits::default());
        plan.offer(item(Key::Member(ORIGIN.node), None, &[]), &Limits::default());
        assert!(!plan.is_worth_it());
        assert_eq!(plan.lines.len(), 2);
        let mut admits = plan.clone();
        admits.offer(item(Key::Member(NodeId([2; 32])), None, &[]), &Limits::default());
        assert!(admits.is_worth_it(), "who comes and goes is told");
        plan.offer(item(Key::Tag("a".parse().expect("a name"), "b".parse().expect("a tag")), None, &[]), &Limits::default());
        assert!(plan.is_worth_it());
    }

    #[test]
    fn what_lives_equally_long_lies_together_when_there_is_much_of_it() {
        let tag = |name: &str, text: &str| {
            let target = Value::Tag(TagTarget { digest: Digest::sha256(text.as_bytes()), replaced: None });
            item(Key::Tag("app".parse().expect("a name"), name.parse().expect("a tag")), Some(target), &[])
        };
        let mut plan = Plan::default();
        for (name, text, blobs) in
            [("v1.2.0", "a", [(1, 60), (9, 10)]), ("main-17", "b", [(2, 50), (9, 10)]), ("2026.11", "c", [(3, 10), (4, 1)])]
        {
            plan.offer(image(text, &blobs), &Limits::default());
            plan.offer(tag(name, text), &Limits::default());
        }
        let names = |plan: &Plan| plan.blobs.iter().map(|(digest, _)| *digest).collect::<Vec<_>>();
        assert!(plan.split_off(142).is_none(), "little is not split");
        let branch = plan.split_off(131).expect("enough");
        assert_eq!((names(&branch), branch.lines.len(), branch.is_worth_it()), (vec![blob(2, 0).0], 0, true));
        // The rest, as it is planned again; what both images share is no part of it, being too little.
        let mut plan = Plan::default();
        plan.offer(image("a", &[(1, 60), (9, 10)]), &Limits::default());
        plan.offer(tag("v1.2.0", "a"), &Limits::default());
        plan.offer(image("b", &[(9, 10)]), &Limits::default());
        assert!(plan.split_off(70).is_none());
        for (tag, expected) in
            [("v1.0", true), ("1.2.3-rc1", true), ("stable", true), ("main", false), ("1", false), ("v", false), ("pr-1.2", false)]
        {
            assert_eq!(is_release(tag), expected, "{tag}");
        }
    }

    #[test]
    fn tags_name_the_manifests_of_their_pack() {
        let mut plan = Plan::default();
        let (app, target) = ("app".parse().expect("a name"), Digest::sha256(b"a"));
        let target = Value::Tag(TagTarget { digest: target, replaced: None });
        plan.offer(item(Key::Tag(app, "v1".parse().expect("a tag")), Some(target), &[]), &Limits::default());
        plan.offer(image("a", &[]), &Limits::default());
        plan.name_manifests();
        assert_eq!(plan.manifests[0].names, ["app:v1"]);
    }

    #[test]
    fn a_manifest_that_is_a_blob_too_lies_there_once() {
        let mut plan = Plan::default();
        let manifest = Digest::sha256(b"a");
        let mut other = image("b", &[]);
        other.blobs.push((manifest, Link { size: 1, root: [0; 32], crc64: 0 }));
        plan.offer(other.clone(), &Limits::default());
        plan.offer(image("a", &[]), &Limits::default());
        plan.offer(other, &Limits::default());
        assert!(plan.blobs.is_empty());
        assert_eq!(plan.manifests.len(), 2);
    }
}
