//! Which blobs, child manifests and subject a manifest names; storing one, and what it takes to pull it whole.
//!
//! The bytes are kept and served as they were sent. They are read leniently, because registries hold more than
//! images, but within limits: nesting, number of descriptors, no key twice, sizes that a blob can have.

use std::collections::{BTreeSet, HashSet};
use std::fmt;

use bytes::Bytes;
use larder_protocol::digest::Digest;
use larder_protocol::name::{RepositoryName, Tag};
use larder_protocol::record::{Key, Link, Manifest, Value};
use serde::de::{self, DeserializeSeed, MapAccess, SeqAccess, Visitor};
use serde::{Deserialize, Deserializer};

use super::Store;
use super::condition::Condition;
use super::edges::{self, Holder, Naming};
use super::error::{Error, InvalidManifest, Result};
use super::garbage::rely;
use super::journal::Writing;
use super::space::IndexPart;
use super::{journal, tags};
use crate::failpoint;

/// Deepest nesting of a manifest.
const DEPTH_MAX: usize = 32;
/// Most descriptors that a manifest may hold.
const DESCRIPTORS_MAX: usize = 10_000;
/// Most manifests that are looked at to find what one needs.
const CLOSURE_MAX: usize = 10_000;

/// A manifest to be stored.
#[derive(Clone, Debug)]
pub struct ManifestPush {
    /// Where.
    pub repository: RepositoryName,
    /// Tags that shall name it.
    pub tags: Vec<Tag>,
    /// What it was pushed as; checked against the bytes.
    pub digest: Digest,
    /// `Content-Type` it was pushed with.
    pub media_type: String,
    /// Exactly as sent.
    pub bytes: Bytes,
}

/// A stored manifest.
#[derive(Clone, Debug)]
pub struct StoredManifest {
    /// `Content-Type` it was pushed with.
    pub media_type: String,
    /// Exactly as sent.
    pub bytes: Bytes,
}

/// What came of storing a manifest.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Stored {
    /// What it is attached to.
    pub subject: Option<Digest>,
    /// How much of what it names the repository lacks; only where that is allowed.
    pub missing: usize,
}

/// What a manifest names.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ManifestView {
    /// Blobs that must be in the repository.
    pub blobs: Vec<Digest>,
    /// Children of an index: manifests, or blobs with some older clients.
    pub children: Vec<Digest>,
    /// What it is attached to; may be missing.
    pub subject: Option<Digest>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Document {
    media_type: Option<String>,
    config: Option<Descriptor>,
    layers: Option<Vec<Descriptor>>,
    blobs: Option<Vec<Descriptor>>,
    manifests: Option<Vec<Descriptor>>,
    subject: Option<Descriptor>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Descriptor {
    #[serde(default)]
    media_type: String,
    digest: Digest,
    size: i64,
    #[serde(default)]
    urls: Vec<String>,
}

impl Descriptor {
    /// Whether the content lies elsewhere and is never pushed.
    fn is_foreign(&self) -> bool {
        !self.urls.is_empty() || self.media_type.contains("nondistributable") || self.media_type.contains(".foreign.")
    }
}

impl ManifestView {
    /// Reads a manifest that was pushed as `media_type`.
    ///
    /// # Errors
    /// It is no JSON object within the limits, contradicts itself or its media type (S6, S7).
    pub fn parse(media_type: &str, bytes: &[u8]) -> std::result::Result<Self, InvalidManifest> {
        let invalid = |error: serde_json::Error| InvalidManifest::Json(error.to_string());
        let mut reader = serde_json::Deserializer::from_slice(bytes);
        Shape { depth: 0 }.deserialize(&mut reader).and_then(|()| reader.end()).map_err(invalid)?;
        let document: Document = serde_json::from_slice(bytes).map_err(invalid)?;
        let header = media_type.split(';').next().unwrap_or_default().trim();
        if let Some(body) = document.media_type.filter(|body| body != header) {
            return Err(InvalidManifest::MediaType { body, header: header.to_owned() });
        }
        if document.manifests.is_some() && (document.config.is_some() || document.layers.is_some()) {
            return Err(InvalidManifest::Ambiguous);
        }
        let is_index = header.ends_with("image.index.v1+json") || header.ends_with("manifest.list.v2+json");
        let is_image = header.ends_with("image.manifest.v1+json") || header.ends_with("distribution.manifest.v2+json");
        if is_index && document.manifests.is_none() {
            return Err(InvalidManifest::Json(format!("a {header} has `manifests`, this one has none")));
        }
        if is_image && (document.config.is_none() || document.layers.is_none()) {
            return Err(InvalidManifest::Json(format!("a {header} has `config` and `layers`, this one lacks one of them")));
        }
        let blobs: Vec<_> =
            document.config.into_iter().chain(document.layers.into_iter().flatten()).chain(document.blobs.into_iter().flatten()).collect();
        let children = document.manifests.unwrap_or_default();
        if blobs.len() + children.len() > DESCRIPTORS_MAX {
            return Err(InvalidManifest::TooMany { what: "descriptors", max: DESCRIPTORS_MAX });
        }
        if blobs.iter().chain(&children).chain(&document.subject).any(|descriptor| descriptor.size < 0) {
            return Err(InvalidManifest::Json("a descriptor has a negative size".to_owned()));
        }
        let named = |descriptors: Vec<Descriptor>| descriptors.into_iter().filter(|one| !one.is_foreign()).map(|one| one.digest).collect();
        Ok(Self { blobs: named(blobs), children: named(children), subject: document.subject.map(|subject| subject.digest) })
    }

    /// Everything it names.
    pub fn names(&self) -> impl Iterator<Item = &Digest> {
        self.blobs.iter().chain(&self.children).chain(&self.subject)
    }
}

/// Checks nesting and repeated keys, and keeps nothing.
#[derive(Clone, Copy)]
struct Shape {
    depth: usize,
}

impl<'de> DeserializeSeed<'de> for Shape {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> std::result::Result<(), D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl Shape {
    fn deeper<E: de::Error>(self) -> std::result::Result<Self, E> {
        if self.depth < DEPTH_MAX { Ok(Self { depth: self.depth + 1 }) } else { Err(E::custom(format!("nested deeper than {DEPTH_MAX}"))) }
    }
}

impl<'de> Visitor<'de> for Shape {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a JSON object")
    }

    fn visit_bool<E: de::Error>(self, _: bool) -> std::result::Result<(), E> {
        self.deeper().map(drop)
    }

    fn visit_i64<E: de::Error>(self, _: i64) -> std::result::Result<(), E> {
        self.deeper().map(drop)
    }

    fn visit_u64<E: de::Error>(self, _: u64) -> std::result::Result<(), E> {
        self.deeper().map(drop)
    }

    fn visit_f64<E: de::Error>(self, _: f64) -> std::result::Result<(), E> {
        self.deeper().map(drop)
    }

    fn visit_str<E: de::Error>(self, _: &str) -> std::result::Result<(), E> {
        self.deeper().map(drop)
    }

    fn visit_unit<E: de::Error>(self) -> std::result::Result<(), E> {
        self.deeper().map(drop)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> std::result::Result<(), A::Error> {
        let within = self.deeper()?;
        while list.next_element_seed(within)?.is_some() {}
        Ok(())
    }

    fn visit_map<A: MapAccess<'de>>(self, mut object: A) -> std::result::Result<(), A::Error> {
        let within = self.deeper()?;
        let mut keys = HashSet::new();
        while let Some(key) = object.next_key::<String>()? {
            object.next_value_seed(within)?;
            if !keys.insert(key.clone()) {
                return Err(de::Error::custom(format!("key {key:?} stands twice")));
            }
        }
        Ok(())
    }
}

/// Asks a condition of what a push is to replace.
fn check(writing: &Writing<'_>, push: &ManifestPush, condition: &Condition) -> Result<()> {
    let ask = |name: &dyn fmt::Display, standing: Option<Digest>| match condition.holds(standing.as_ref()) {
        true => Ok(()),
        false => Err(Error::Changed { name: name.to_string(), standing }),
    };
    for tag in &push.tags {
        let standing = match writing.live(&Key::Tag(push.repository.clone(), tag.clone()))? {
            Some(Value::Tag(target)) => Some(target.digest),
            _ => None,
        };
        if condition.keeps_tags && standing.is_some_and(|standing| standing != push.digest) {
            return Err(Error::Taken { tag: tag.clone() });
        }
        ask(tag, standing)?;
    }
    if push.tags.is_empty() {
        let standing = writing.live(&Key::Manifest(push.repository.clone(), push.digest))?;
        ask(&push.digest, standing.map(|_| push.digest))?;
    }
    Ok(())
}

impl Store {
    /// Stores a manifest and its tags in one batch.
    ///
    /// # Errors
    /// - `DigestMismatch`, `InvalidManifest`.
    /// - `Full`: less than the reserve is free.
    /// - `Missing`: it names blobs or manifests that this repository lacks (S8), and `registry.sparse_manifests` does not allow it.
    ///   A missing subject is fine.
    /// - `Immutable`: a tag that may not be changed names another manifest.
    pub fn put_manifest(&self, push: ManifestPush) -> Result<Stored> {
        self.put_manifest_if(push, &Condition::default())
    }

    /// The same, when a condition holds.
    ///
    /// # Errors
    /// `Changed`: it does not. The others as above.
    pub fn put_manifest_if(&self, push: ManifestPush, condition: &Condition) -> Result<Stored> {
        let actual = Digest::of(push.digest.algorithm(), &push.bytes);
        if actual != push.digest {
            return Err(Error::DigestMismatch { expected: push.digest, actual });
        }
        let view = ManifestView::parse(&push.media_type, &push.bytes)?;
        let inner = &self.inner;
        inner.space.check(push.bytes.len() as u64, IndexPart::Pushes)?;
        let mut writing = inner.journal.write(&inner.index);
        // ORDER: asked while nobody else writes.
        if *condition != Condition::default() {
            check(&writing, &push, condition)?;
        }
        let mut missing = Vec::new();
        for named in view.blobs.iter().chain(&view.children).copied().collect::<BTreeSet<_>>() {
            let key = Key::Link(push.repository.clone(), named);
            if let Some(Value::Link(link)) = writing.live(&key)? {
                rely(inner, &mut writing, key, link)?;
            } else if view.blobs.contains(&named) || writing.live(&Key::Manifest(push.repository.clone(), named))?.is_none() {
                missing.push(named);
            }
        }
        if !missing.is_empty() && !inner.options.sparse_manifests {
            return Err(Error::Missing(missing));
        }
        let key = Key::Manifest(push.repository.clone(), push.digest);
        let value = Value::Manifest(Manifest { media_type: push.media_type, bytes: push.bytes.to_vec() });
        // F17: also what is there and the same. A delete elsewhere that is not known here is older than this push, and must lose.
        writing.record(key, Some(value))?;
        for tag in push.tags.into_iter().collect::<HashSet<_>>() {
            tags::may_point(inner, &writing, &push.repository, &tag, &push.digest)?;
            tags::point(&mut writing, &push.repository, tag, push.digest)?;
        }
        let failed = |source| Error::Io { doing: "store a manifest in", path: inner.folder.path().to_owned(), source };
        failpoint::pass("store/manifest/before-commit").map_err(failed)?;
        writing.commit()?;
        failpoint::pass("store/manifest/committed-not-answered").map_err(failed)?;
        Ok(Stored { subject: view.subject, missing: missing.len() })
    }

    /// A manifest by digest; `None` when the repository has none such.
    pub fn manifest(&self, repository: &RepositoryName, digest: &Digest) -> Result<Option<StoredManifest>> {
        let value = self.live(&Key::Manifest(repository.clone(), *digest))?;
        Ok(match value {
            Some(Value::Manifest(Manifest { media_type, bytes })) => Some(StoredManifest { media_type, bytes: bytes.into() }),
            _ => None,
        })
    }

    /// Manifests of a repository that name a blob, at most `limit`.
    pub fn manifests_naming(&self, repository: &RepositoryName, blob: &Digest, limit: usize) -> Result<Vec<Digest>> {
        let holders = edges::holders(&self.inner.index, blob, repository, None);
        let manifests = holders.filter_map(|holder| match holder {
            Ok(Holder::Manifest(digest, naming)) => naming.is(Naming::BLOB).then_some(Ok(digest)),
            Ok(_) => None,
            Err(error) => Some(Err(error)),
        });
        manifests.take(limit).collect()
    }

    /// Deletes a manifest and every tag that names it; `false` when there was none.
    ///
    /// # Errors
    /// `Immutable`: a tag that may not be changed names it.
    pub fn delete_manifest(&self, repository: &RepositoryName, digest: &Digest) -> Result<bool> {
        let inner = &self.inner;
        let mut writing = inner.journal.write(&inner.index);
        let key = Key::Manifest(repository.clone(), *digest);
        if writing.live(&key)?.is_none() {
            return Ok(false);
        }
        for holder in edges::holders(&inner.index, digest, repository, None) {
            if let Holder::Tag(tag) = holder? {
                tags::may_change(inner, repository, &tag)?;
                writing.record(Key::Tag(repository.clone(), tag), None)?;
            }
        }
        writing.record(key, None)?;
        writing.commit()?;
        Ok(true)
    }

    /// Everything that must be at hand for a manifest to be pulled whole: the blobs it names, its children's, and theirs,
    /// with what their links say. Ends on cycles; what is not linked, and what lies elsewhere, is left out.
    pub fn closure(&self, repository: &RepositoryName, digest: &Digest) -> Result<Vec<(Digest, Link)>> {
        let (mut seen, mut blobs) = (HashSet::from([*digest]), Vec::new());
        let mut manifests = vec![*digest];
        while let Some(next) = manifests.pop() {
            let Some(manifest) = self.manifest(repository, &next)? else {
                // An index may list blobs as its children.
                blobs.extend(self.link(repository, &next)?.map(|link| (next, link)));
                continue;
            };
            let Ok(view) = ManifestView::parse(&manifest.media_type, &manifest.bytes) else { continue };
            for blob in view.blobs {
                if seen.insert(blob) {
                    blobs.extend(self.link(repository, &blob)?.map(|link| (blob, link)));
                }
            }
            for child in view.children {
                if seen.len() < CLOSURE_MAX + DESCRIPTORS_MAX && seen.insert(child) {
                    manifests.push(child);
                }
            }
        }
        Ok(blobs)
    }

    pub(super) fn live(&self, key: &Key) -> Result<Option<Value>> {
        Ok(journal::read(&self.inner.index, key)?.and_then(|record| record.value))
    }
}
