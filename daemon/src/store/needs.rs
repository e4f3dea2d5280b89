//! What has to be somewhere else before an image is safe there: its records, and the blobs that they name.

use std::collections::HashSet;

use larder_protocol::digest::Digest;
use larder_protocol::name::{RepositoryName, Tag};
use larder_protocol::record::{Key, Link, Value};
use larder_protocol::stamp::NodeId;
use larder_protocol::vector::{Origin, VersionVector};

use super::Store;
use super::error::Result;
use super::garbage::Part;
use super::index::{RecordRow, Table};
use super::journal::{row_key, table_of};

/// What an image needs.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Needs {
    /// Who knows this much knows every record of it.
    pub vector: VersionVector,
    /// Its blobs, each once.
    pub blobs: Vec<(Digest, Link)>,
}

impl Store {
    /// What an image needs: the records of its manifest, of the tags, of its children and of all links, and the blobs. Of what it names and
    /// the repository lacks nothing is said, as in [`Store::closure`].
    pub fn needs(&self, repository: &RepositoryName, digest: &Digest, tags: &[Tag]) -> Result<Needs> {
        let blobs = self.closure(repository, digest)?;
        let mut vector = VersionVector::default();
        let (mut seen, mut left) = (HashSet::new(), vec![*digest]);
        let named = tags.iter().map(|tag| Key::Tag(repository.clone(), tag.clone()));
        let links = blobs.iter().map(|(blob, _)| Key::Link(repository.clone(), *blob));
        for key in named.chain(links) {
            let row = self.row(&key)?;
            row.iter().for_each(|row| vector.advance(row.origin, row.sequence));
        }
        while let Some(manifest) = left.pop() {
            let Some(row) = self.row(&Key::Manifest(repository.clone(), manifest))? else { continue };
            vector.advance(row.origin, row.sequence);
            left.extend(self.children(repository, &manifest)?.into_iter().filter(|child| seen.insert(*child)));
        }
        Ok(Needs { vector, blobs })
    }

    /// Writes the records of an image anew under this node's origin, as far as they stand under one whose records are not `ours` to
    /// archive: so that all of them can go into a pack of this node.
    pub fn claim(&self, repository: &RepositoryName, digest: &Digest, ours: impl Fn(&NodeId) -> bool) -> Result<()> {
        let mut keys: Vec<_> = self.closure(repository, digest)?.into_iter().map(|(blob, _)| Key::Link(repository.clone(), blob)).collect();
        let (mut seen, mut left) = (HashSet::from([*digest]), vec![*digest]);
        while let Some(manifest) = left.pop() {
            keys.push(Key::Manifest(repository.clone(), manifest));
            left.extend(self.children(repository, &manifest)?.into_iter().filter(|child| seen.insert(*child)));
        }
        let mut foreign = Vec::new();
        for key in keys {
            if self.row(&key)?.is_some_and(|row| !ours(&row.origin.node)) {
                foreign.push(key);
            }
        }
        if foreign.is_empty() {
            return Ok(());
        }
        let mut writing = self.inner.journal.write(&self.inner.index);
        for key in foreign {
            // Deleted meanwhile: it stays so.
            if let Some(value) = writing.live(&key)? {
                writing.record(key, Some(value))?;
            }
        }
        writing.commit()?;
        Ok(())
    }

    /// Live links from a place on, repository by repository, among the next `limit` rows; and where to go on.
    pub fn links(&self, from: Option<&[u8]>, limit: usize) -> Result<Part<(Digest, Link)>> {
        self.part(Table::Link, b"", from, limit, |record| match (record.key, record.value) {
            (Key::Link(_, digest), Some(Value::Link(link))) => Ok(Some((digest, link))),
            _ => Ok(None),
        })
    }

    fn children(&self, repository: &RepositoryName, digest: &Digest) -> Result<Vec<Digest>> {
        let Some(Value::Manifest(manifest)) = self.live(&Key::Manifest(repository.clone(), *digest))? else { return Ok(Vec::new()) };
        Ok(super::ManifestView::parse(&manifest.media_type, &manifest.bytes).map(|view| view.children).unwrap_or_default())
    }

    /// Under which number a record stands; `None`: there is none.
    pub fn place_of(&self, key: &Key) -> Result<Option<(Origin, u64)>> {
        Ok(self.row(key)?.map(|row| (row.origin, row.sequence)))
    }

    pub(super) fn row(&self, key: &Key) -> Result<Option<RecordRow>> {
        let kind = key.kind();
        self.inner.index.row(table_of(kind), &row_key(kind, &key.to_bytes()))
    }
}

#[cfg(test)]
mod tests {
    use larder_protocol::record::{Numbered, Record, TagTarget};
    use larder_protocol::stamp::{HybridTime, Stamp};

    use super::super::journal::now_ms;
    use super::super::tests::{IMAGE, IMAGE_INDEX, Place, image, push, put, repository, tag};
    use super::*;

    fn index(children: &[Digest]) -> Vec<u8> {
        let children: Vec<_> = children.iter().map(|digest| serde_json::json!({"mediaType": IMAGE, "digest": digest, "size": 1})).collect();
        serde_json::json!({"schemaVersion": 2, "mediaType": IMAGE_INDEX, "manifests": children}).to_string().into()
    }

    #[test]
    fn an_image_needs_its_blobs_and_every_record_on_the_way_to_them() {
        let place = Place::new(1);
        let store = place.open();
        let (first, second) = (push(&store, "a", b"first"), push(&store, "a", b"second"));
        let one = put(&store, "a", &[], IMAGE, &image(&[(first, 5)])).expect("stored");
        let two = put(&store, "a", &[], IMAGE, &image(&[(second, 6), (first, 5)])).expect("stored");
        let of_one = store.needs(&repository("a"), &one, &[]).expect("needs");
        assert_eq!(of_one.blobs.iter().map(|(digest, _)| *digest).collect::<Vec<_>>(), [first]);
        assert!(!of_one.vector.covers(&store.vector()), "what came later is not needed");
        let both = put(&store, "a", &["v1"], IMAGE_INDEX, &index(&[one, two])).expect("stored");
        let needs = store.needs(&repository("a"), &both, &[tag("v1")]).expect("needs");
        let blobs: HashSet<_> = needs.blobs.iter().map(|(digest, _)| *digest).collect();
        assert_eq!((needs.blobs.len(), blobs), (2, HashSet::from([first, second])));
        assert_eq!(needs.vector, store.vector());
        assert_eq!(store.needs(&repository("b"), &both, &[]).expect("needs"), Needs::default());
    }

    #[test]
    fn records_of_others_are_claimed_and_own_ones_left_alone() {
        let place = Place::new(1);
        let store = place.open();
        let (blob, theirs) = (push(&store, "a", b"blob"), push(&store, "b", b"theirs"));
        let link = store.link(&repository("b"), &theirs).expect("row").expect("link");
        let other = Origin { node: NodeId([9; 32]), incarnation: 7 };
        let stamp = Stamp { time: HybridTime::from_ms(now_ms()), node: other.node };
        let record = Record { key: Key::Link(repository("a"), theirs), value: Some(Value::Link(link)), stamp };
        store.apply(vec![Numbered { origin: other, sequence: 5, record }], &[(other, 5)].into_iter().collect()).expect("applied");
        let digest = put(&store, "a", &["v1"], IMAGE, &image(&[(blob, 4), (theirs, 6)])).expect("stored");
        assert_eq!(store.needs(&repository("a"), &digest, &[]).expect("needs").vector.get(&other), 5);
        let (own, before) = (store.origin(), store.vector());
        store.claim(&repository("a"), &digest, |_| true).expect("claim");
        assert_eq!(store.vector(), before);
        store.claim(&repository("a"), &digest, |node| *node == own.node).expect("claim");
        assert_eq!(store.vector().get(&own), before.get(&own) + 1, "one record was another's");
        assert_eq!(store.needs(&repository("a"), &digest, &[]).expect("needs").vector.get(&other), 0);
        // What it means is the same.
        assert_eq!(store.link(&repository("a"), &theirs).expect("row"), Some(link));
        let target = store.live(&Key::Tag(repository("a"), tag("v1"))).expect("row");
        assert!(matches!(target, Some(Value::Tag(TagTarget { digest: named, .. })) if named == digest));
    }
}
