//! A file that `larder export` wrote comes in: its blobs as everything that comes from elsewhere, its images as pushes.
//!
//! The file may come from another cluster, whose numbers and stamps mean nothing here. So no record is merged: blobs are staged and
//! checked, and what the records say is then written anew, as this node's own, in the order in which a client pushes.
//!
//! A pack is understood from its end, and comes in from its beginning. Its sender knows where the tables begin, so it sends them first:
//!
//! ```text
//! file:    [ blobs ................ | manifests, tables, footer ]
//! request: [ manifests, tables, footer | blobs ................ ]
//! ```

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::io;

use bytes::{Buf, Bytes, BytesMut};
use futures_util::stream::{BoxStream, StreamExt};
use larder_protocol::digest::Digest;
use larder_protocol::name::{RepositoryName, Tag};
use larder_protocol::pack::{Contents, Entry, FOOTER_SIZE, Footer, InvalidPack, TAIL_SIZE_MAX};
use larder_protocol::record::{Key, Manifest, Value};
use serde::Serialize;

use crate::store::{Commit, ManifestPush, ManifestView, Store};

use super::{Archive, Error, tail};

/// Most bytes that are handed to the store at a time.
const PIECE_SIZE_MAX: usize = 1 << 20;
/// Links written in one batch.
const LINKS_BATCH: usize = 500;
/// How an error calls the file.
const FILE: &str = "that was sent";

/// Bytes as they come.
pub type Incoming = BoxStream<'static, io::Result<Bytes>>;

/// What came of an import.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Imported {
    /// The cluster that the file is from, in hex.
    pub cluster: String,
    /// The node that wrote it.
    pub node: String,
    /// `repository:tag` of tags that name what the file has now.
    pub images: Vec<String>,
    /// Manifests written.
    pub manifests: usize,
    /// Blobs that were not here.
    pub blobs: usize,
    /// Their bytes.
    pub bytes: u64,
    /// What was not taken.
    pub refused: Vec<Refused>,
}

/// Something that was not taken.
#[derive(Clone, Debug, Serialize)]
pub struct Refused {
    /// `repository:tag`, `repository@digest`.
    pub name: String,
    /// Why.
    pub why: String,
}

/// What the records of a file say, by repository.
#[derive(Debug, Default)]
struct Told {
    links: BTreeSet<(RepositoryName, Digest)>,
    manifests: BTreeMap<(RepositoryName, Digest), Manifest>,
    tags: BTreeMap<(RepositoryName, Digest), Vec<Tag>>,
}

impl Archive {
    /// Takes in a file of `size` bytes, of which the last `tail` come first.
    ///
    /// # Errors
    /// `Import` when it is no such file or breaks off; `Store`. What came whole before stays.
    pub async fn import(&self, size: u64, tail: u64, stream: Incoming) -> Result<Imported, Error> {
        let invalid = |source: InvalidPack| Error::Import { why: source.to_string() };
        if !(FOOTER_SIZE..=TAIL_SIZE_MAX).contains(&tail) || tail > size {
            return Err(invalid(InvalidPack::NoFooter));
        }
        let mut inflow = Inflow { stream, ready: Bytes::new() };
        let end = inflow.exactly(tail).await?;
        let footer = Footer::parse(&end[end.len() - FOOTER_SIZE as usize..], size, tail::verify).map_err(invalid)?;
        if footer.tail_length() != tail {
            return Err(invalid(InvalidPack::Size { signed: footer.tail_length(), actual: tail }));
        }
        let (footer, contents) = tokio::task::spawn_blocking(move || Contents::parse(&footer, &end).map(|contents| (footer, contents)))
            .await
            .expect("reading a pack does not panic")
            .map_err(invalid)?;
        let mut imported =
            Imported { cluster: hex::encode(footer.cluster), node: footer.pack.origin.node.to_string(), ..Imported::default() };
        let told = Told::of(&contents);
        let mut at = 0;
        // Those behind the tail's beginning are manifests, which the records have.
        for entry in contents.index.iter().filter(|entry| entry.offset < footer.tail) {
            inflow.skip(entry.offset - at).await?;
            self.take(entry, &mut inflow, &mut imported).await?;
            at = entry.offset + entry.link.size;
        }
        self.inner.store.run(move |store| told.write(store, imported)).await
    }

    /// A blob goes onto this disk, unless it is there.
    async fn take(&self, entry: &Entry, inflow: &mut Inflow, imported: &mut Imported) -> Result<(), Error> {
        let (digest, link) = (entry.digest, entry.link);
        let store = &self.inner.store;
        if store.run(move |store| store.blob(&digest)).await?.is_some() {
            return inflow.skip(link.size).await;
        }
        let mut staging = store.run(move |store| store.stage(digest, link)).await?;
        // It may have been begun before, from a peer.
        inflow.skip(staging.offset()).await?;
        while staging.offset() < link.size {
            let piece = inflow.next((link.size - staging.offset()).min(PIECE_SIZE_MAX as u64)).await?;
            staging.append(piece).await?;
        }
        staging.finish().await?;
        imported.blobs += 1;
        imported.bytes += link.size;
        Ok(())
    }
}

/// Bytes that come, cut as they are needed.
struct Inflow {
    stream: Incoming,
    ready: Bytes,
}

impl Inflow {
    /// At least one byte, at most `limit`.
    async fn next(&mut self, limit: u64) -> Result<Bytes, Error> {
        while self.ready.is_empty() {
            self.ready = match self.stream.next().await {
                Some(Ok(bytes)) => bytes,
                Some(Err(error)) => return Err(Error::Import { why: format!("read the file {FILE}: {error}") }),
                None => return Err(Error::Import { why: format!("the file {FILE} broke off; import it again") }),
            };
        }
        Ok(self.ready.split_to(usize::try_from(limit).unwrap_or(usize::MAX).min(self.ready.len())))
    }

    async fn skip(&mut self, mut count: u64) -> Result<(), Error> {
        while count > 0 {
            count -= self.next(count).await?.remaining() as u64;
        }
        Ok(())
    }

    /// So many bytes, into memory; the caller has checked that it is not too many. Memory grows with what comes, not with what was announced.
    async fn exactly(&mut self, count: u64) -> Result<Bytes, Error> {
        let mut bytes = BytesMut::new();
        while (bytes.len() as u64) < count {
            let piece = self.next(count - bytes.len() as u64).await?;
            bytes.extend_from_slice(&piece);
        }
        Ok(bytes.freeze())
    }
}

impl Told {
    fn of(contents: &Contents) -> Self {
        let mut told = Self::default();
        for numbered in &contents.records {
            match (&numbered.record.key, &numbered.record.value) {
                (Key::Link(repository, digest), Some(_)) => _ = told.links.insert((repository.clone(), *digest)),
                (Key::Manifest(repository, digest), Some(Value::Manifest(manifest))) => {
                    told.manifests.insert((repository.clone(), *digest), manifest.clone());
                }
                (Key::Tag(repository, tag), Some(Value::Tag(target))) => {
                    told.tags.entry((repository.clone(), target.digest)).or_default().push(tag.clone());
                }
                _ => {}
            }
        }
        told
    }

    /// Writes everything as a client would push it: links, manifests from the bottom up, tags. Blocks.
    fn write(self, store: &Store, mut imported: Imported) -> Result<Imported, Error> {
        let mut links = Vec::new();
        for (repository, digest) in self.links {
            if let Some(link) = store.blob(&digest)? {
                links.push((Key::Link(repository, digest), Some(Value::Link(link))));
            }
        }
        for batch in links.chunks(LINKS_BATCH) {
            store.commit(Commit { records: batch.to_vec(), settings: Vec::new() })?;
        }
        for (repository, digest) in bottom_up(&self.manifests) {
            let manifest = &self.manifests[&(repository.clone(), digest)];
            let push = |tags| ManifestPush {
                repository: repository.clone(),
                tags,
                digest,
                media_type: manifest.media_type.clone(),
                bytes: manifest.bytes.clone().into(),
            };
            if let Err(error) = store.put_manifest(push(Vec::new())) {
                imported.refused.push(refuse(format!("{repository}@{digest}"), error)?);
                continue;
            }
            imported.manifests += 1;
            // One by one: a tag that may not move keeps no other from moving.
            for tag in self.tags.get(&(repository.clone(), digest)).into_iter().flatten() {
                let name = format!("{repository}:{tag}");
                match store.put_manifest(push(vec![tag.clone()])) {
                    Ok(_) => imported.images.push(name),
                    Err(error) => imported.refused.push(refuse(name, error)?),
                }
            }
        }
        Ok(imported)
    }
}

/// A refusal of one image, if the others may go on.
fn refuse(name: String, error: crate::store::Error) -> Result<Refused, Error> {
    use crate::store::Error as Store;
    match error {
        Store::Missing(_) | Store::Immutable { .. } | Store::InvalidManifest(_) | Store::DigestMismatch { .. } => {
            Ok(Refused { name, why: error.to_string() })
        }
        other => Err(other.into()),
    }
}

/// Every manifest behind those that it names.
fn bottom_up(manifests: &BTreeMap<(RepositoryName, Digest), Manifest>) -> Vec<(RepositoryName, Digest)> {
    let children: HashMap<&(RepositoryName, Digest), Vec<Digest>> = manifests
        .iter()
        .map(|(place, manifest)| {
            let view = ManifestView::parse(&manifest.media_type, &manifest.bytes).unwrap_or_default();
            (place, view.children)
        })
        .collect();
    let (mut ordered, mut seen) = (Vec::new(), HashSet::new());
    // Each is looked at twice: on the way down, and when all below it are there. Cycles end at what was seen.
    let mut waiting: Vec<((RepositoryName, Digest), bool)> = manifests.keys().rev().map(|place| (place.clone(), false)).collect();
    while let Some((place, is_ready)) = waiting.pop() {
        if is_ready {
            ordered.push(place);
        } else if children.contains_key(&place) && seen.insert(place.clone()) {
            let below: Vec<_> = children[&place].iter().map(|child| ((place.0.clone(), *child), false)).collect();
            waiting.push((place, true));
            waiting.extend(below);
        }
    }
    ordered
}

#[cfg(test)]
mod tests {
    use super::*;

    fn inflow(pieces: &[&[u8]]) -> Inflow {
        let pieces: Vec<_> = pieces.iter().map(|piece| Ok(Bytes::copy_from_slice(piece))).collect();
        Inflow { stream: futures_util::stream::iter(pieces).boxed(), ready: Bytes::new() }
    }

    #[tokio::test]
    async fn bytes_are_cut_where_they_are_needed() {
        let mut inflow = inflow(&[b"ab", b"", b"cdef", b"g"]);
        assert_eq!(inflow.exactly(3).await.expect("there"), "abc");
        inflow.skip(2).await.expect("there");
        assert_eq!(inflow.next(9).await.expect("there"), "f");
        assert!(matches!(inflow.exactly(2).await, Err(Error::Import { .. })));
    }

    #[test]
    fn children_come_before_their_parents() {
        let app: RepositoryName = "app".parse().expect("a name");
        let mut manifests = BTreeMap::new();
        let mut below: Vec<Digest> = Vec::new();
        for depth in 0..9 {
            let named: Vec<_> = below.iter().map(|digest| format!(r#"{{"digest":"{digest}","size":1}}"#)).collect();
            let bytes = format!(r#"{{"depth":{depth},"manifests":[{}]}}"#, named.join(",")).into_bytes();
            let digest = Digest::sha256(&bytes);
            manifests.insert((app.clone(), digest), Manifest { media_type: "index".to_owned(), bytes });
            below.push(digest);
        }
        let ordered: Vec<Digest> = bottom_up(&manifests).into_iter().map(|(_, digest)| digest).collect();
        assert_eq!(ordered, below);
    }
}
