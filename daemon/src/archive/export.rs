//! Images into a file: the pack format, on a stick instead of in a bucket.
//!
//! A file holds what the chosen tags need to be pulled whole: manifests, children, what is attached to them, blobs, and the records
//! that say in which repository each of them stands. Beside what every pack has lies a `manifest.json`, so that `docker load` takes the
//! file as it is. Its id has sequence 0, which no pack in a bucket has, and it covers no sequences: it tells nothing of what else there is.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::str::FromStr;

use larder_protocol::digest::{CHUNK_SIZE, Digest};
use larder_protocol::name::{RepositoryName, Tag};
use larder_protocol::pack::{
    BlobPart, Company, Draft, ManifestPart, PACK_CONTENTS_MAX, RECORDS_MAX, TAIL_SIZE_MAX, docker_json, record_line,
};
use larder_protocol::record::{Key, Link, Numbered, PackId};
use larder_protocol::stamp::NodeId;
use larder_protocol::vector::Origin;

use crate::glob::Pattern;
use crate::store::{ManifestView, ReferrersQuery, Store};

use super::body::{Body, Reading};
use super::{Archive, Error, writer};

/// Repositories, tags or referrers read from the store at a time.
const PAGE_SIZE: usize = 1_000;
/// Bytes of manifests in one file: they lie in its tail, with the tables, and that is read into memory.
const MANIFEST_BYTES_MAX: usize = (TAIL_SIZE_MAX / 2) as usize;

/// Which images: `repository:tag` with wildcards, `repository` for all of its tags, or `repository@digest`.
#[derive(Clone, Debug)]
pub struct Choice {
    text: String,
    what: What,
}

#[derive(Clone, Debug)]
enum What {
    Tags(Pattern),
    Manifest(RepositoryName, Digest),
}

impl FromStr for Choice {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let what = match text.split_once('@') {
            Some((repository, digest)) => What::Manifest(
                repository.parse().map_err(|error| format!("{text:?}: {error}"))?,
                digest.parse().map_err(|error| format!("{text:?}: {error}"))?,
            ),
            None => What::Tags(text.parse().map_err(|error| format!("{text:?}: {error}"))?),
        };
        Ok(Self { text: text.to_owned(), what })
    }
}

/// A file that is ready to be read.
#[derive(Debug)]
pub struct Export {
    body: Body,
    /// Bytes of the file.
    pub size: u64,
    /// Tags in it, and manifests that were chosen by digest.
    pub images: usize,
    /// Blobs in it, manifests included.
    pub blobs: usize,
}

impl Export {
    /// Its bytes. They break off when a blob is damaged or goes meanwhile.
    pub fn reading(self) -> Reading {
        self.body.reading()
    }
}

/// What goes in.
#[derive(Debug, Default)]
struct Gathered {
    images: usize,
    links: BTreeMap<(RepositoryName, Digest), Link>,
    manifests: Vec<ManifestPart>,
    at: HashMap<Digest, usize>,
    placed: BTreeSet<(RepositoryName, Digest)>,
    tags: BTreeSet<(RepositoryName, Tag)>,
    /// In the order in which they shall lie: those of one image side by side.
    blobs: Vec<(Digest, Link)>,
    listed: HashSet<Digest>,
    manifest_bytes: usize,
}

impl Archive {
    /// Lays out a file with these images; blobs that are elsewhere are brought onto this disk first.
    ///
    /// # Errors
    /// `Image` when a choice names nothing, or a blob can't be had; `TooMuch`; `Store`.
    pub async fn export(&self, choices: Vec<Choice>) -> Result<Export, Error> {
        let inner = &self.inner;
        let gathered = inner.store.run(move |store| Gathered::of(store, &choices)).await?;
        for (digest, link) in &gathered.blobs {
            if inner.ensure(*digest, *link).await?.is_none() {
                let image = gathered.links.keys().find(|(_, blob)| blob == digest).map(|(repository, _)| format!("{repository}@{digest}"));
                let why = "nobody has this blob: no node that can be reached, and no pack".to_owned();
                return Err(Error::Image { image: image.unwrap_or_else(|| digest.to_string()), why });
            }
        }
        let (key, sign) = (inner.signer)();
        let export = inner.store.run(move |store| {
            let images = gathered.images;
            let draft = gathered.draft(store, key)?;
            let architecture = match std::env::consts::ARCH {
                "x86_64" => "amd64",
                "aarch64" => "arm64",
                other => other,
            };
            let docker = docker_json(&draft.manifests, architecture).into();
            let blobs = draft.blobs.len() + draft.manifests.len();
            let sealed = draft.seal_with(vec![("manifest.json", docker)], |bytes| sign(bytes));
            let (size, body) = (sealed.size(), Body::new(sealed.pieces.into(), writer::open_blob(store.clone())));
            Ok::<_, Error>(Export { body, size, images, blobs })
        });
        export.await
    }
}

impl Choice {
    /// Every manifest that it names, with the tag that names it.
    ///
    /// # Errors
    /// `Image` when there is none; `Store`; those of `take`.
    pub(super) fn each(
        &self,
        store: &Store,
        mut take: impl FnMut(&RepositoryName, Option<&Tag>, Digest) -> Result<(), Error>,
    ) -> Result<(), Error> {
        let mut count = 0;
        match &self.what {
            What::Tags(pattern) => each_tag(store, pattern, |repository, tag, digest| {
                count += 1;
                take(repository, Some(tag), digest)
            })?,
            What::Manifest(repository, digest) => {
                if store.manifest(repository, digest)?.is_some() {
                    count += 1;
                    take(repository, None, *digest)?;
                }
            }
        }
        if count == 0 {
            let why = "no tag or manifest has this name; `larder repo list` and `larder tag list` show what there is".to_owned();
            return Err(Error::Image { image: self.text.clone(), why });
        }
        Ok(())
    }
}

fn each_tag(
    store: &Store,
    pattern: &Pattern,
    mut take: impl FnMut(&RepositoryName, &Tag, Digest) -> Result<(), Error>,
) -> Result<(), Error> {
    let mut after: Option<RepositoryName> = None;
    loop {
        let page = store.repositories(after.as_ref().map(RepositoryName::as_str), PAGE_SIZE)?;
        after = page.get(PAGE_SIZE - 1).cloned();
        for repository in page.iter().filter(|repository| pattern.is_about(repository.as_str())) {
            let mut last: Option<Tag> = None;
            loop {
                let tags = store.tags(repository, last.as_ref().map(Tag::as_str), PAGE_SIZE)?;
                last = tags.get(PAGE_SIZE - 1).map(|info| info.tag.clone());
                for info in tags.into_iter().filter(|info| pattern.matches(repository.as_str(), info.tag.as_str())) {
                    take(repository, &info.tag, info.digest)?;
                }
                if last.is_none() {
                    break;
                }
            }
        }
        if after.is_none() {
            return Ok(());
        }
    }
}

impl Gathered {
    fn of(store: &Store, choices: &[Choice]) -> Result<Self, Error> {
        let mut gathered = Self::default();
        for choice in choices {
            choice.each(store, |repository, tag, digest| {
                gathered.image(store, repository, digest)?;
                if let Some(tag) = tag {
                    gathered.name(repository, tag, &digest);
                }
                Ok(())
            })?;
        }
        // The same bytes may have been pushed as a blob too: they lie where manifests lie, once.
        let Self { blobs, at, .. } = &mut gathered;
        blobs.retain(|(digest, _)| !at.contains_key(digest));
        Ok(gathered)
    }

    /// A manifest, and everything below it and attached to it.
    fn image(&mut self, store: &Store, repository: &RepositoryName, digest: Digest) -> Result<(), Error> {
        self.images += 1;
        let mut waiting = vec![digest];
        while let Some(digest) = waiting.pop() {
            if !self.placed.insert((repository.clone(), digest)) {
                continue;
            }
            let Some(manifest) = store.manifest(repository, &digest)? else {
                self.placed.remove(&(repository.clone(), digest));
                // An index may list blobs as its children, and a repository may lack some of them.
                if let Some(link) = store.link(repository, &digest)? {
                    self.blob(repository, digest, link)?;
                }
                continue;
            };
            if let Ok(view) = ManifestView::parse(&manifest.media_type, &manifest.bytes) {
                for blob in view.blobs {
                    if let Some(link) = store.link(repository, &blob)? {
                        self.blob(repository, blob, link)?;
                    }
                }
                waiting.extend(view.children);
            }
            if !self.at.contains_key(&digest) {
                self.manifest_bytes += manifest.bytes.len();
                if self.manifest_bytes > MANIFEST_BYTES_MAX {
                    return Err(Error::TooMuch { what: "bytes of manifests", count: self.manifest_bytes, max: MANIFEST_BYTES_MAX });
                }
                self.at.insert(digest, self.manifests.len());
                let (media_type, bytes) = (manifest.media_type, manifest.bytes);
                self.manifests.push(ManifestPart { digest, media_type, bytes, names: Vec::new() });
            }
            self.check_count()?;
            let mut after = None;
            loop {
                let query = ReferrersQuery { subject: digest, artifact_type: None, after, limit: PAGE_SIZE };
                let page = store.referrers(repository, &query)?;
                waiting.extend(page.referrers.iter().map(|referrer| referrer.digest));
                after = page.next;
                if after.is_none() {
                    break;
                }
            }
        }
        Ok(())
    }

    fn name(&mut self, repository: &RepositoryName, tag: &Tag, digest: &Digest) {
        if self.tags.insert((repository.clone(), tag.clone()))
            && let Some(at) = self.at.get(digest)
        {
            self.manifests[*at].names.push(format!("{repository}:{tag}"));
        }
    }

    fn blob(&mut self, repository: &RepositoryName, digest: Digest, link: Link) -> Result<(), Error> {
        self.links.insert((repository.clone(), digest), link);
        if self.listed.insert(digest) {
            self.blobs.push((digest, link));
        }
        self.check_count()
    }

    fn check_count(&self) -> Result<(), Error> {
        let count = self.blobs.len() + self.manifests.len();
        if count > PACK_CONTENTS_MAX {
            return Err(Error::TooMuch { what: "blobs and manifests", count, max: PACK_CONTENTS_MAX });
        }
        let (count, max) = (self.links.len() + self.placed.len() + self.tags.len(), RECORDS_MAX as usize);
        if count > max { Err(Error::TooMuch { what: "records", count, max }) } else { Ok(()) }
    }

    fn draft(self, store: &Store, key: NodeId) -> Result<Draft, Error> {
        let mut records = Vec::new();
        let links = self.links.into_keys().map(|(repository, digest)| Key::Link(repository, digest));
        let manifests = self.placed.into_iter().map(|(repository, digest)| Key::Manifest(repository, digest));
        let tags = self.tags.into_iter().map(|(repository, tag)| Key::Tag(repository, tag));
        for key in links.chain(manifests).chain(tags) {
            // Deleted while this was gathered: then it is not told of.
            if let Some(record) = store.record(&key)?.filter(|record| record.value.is_some()) {
                records.push(record_line(&Numbered { origin: store.origin(), sequence: 0, record }, false));
            }
        }
        let mut blobs = Vec::with_capacity(self.blobs.len());
        for (digest, link) in self.blobs {
            // What is on this disk decides: what a link says was another node's word.
            let link = store.blob(&digest)?.unwrap_or(link);
            let chunks = if link.size > CHUNK_SIZE { store.chunk_values(&digest)? } else { None };
            blobs.push(BlobPart { digest, link, chunks });
        }
        Ok(Draft {
            cluster: store.cluster(),
            pack: PackId { origin: Origin { node: key, ..store.origin() }, sequence: 0 },
            created_ms: writer::now_ms(),
            blobs,
            manifests: self.manifests,
            records,
            covers: BTreeMap::new(),
            company: Company::default(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn images_are_chosen_by_name_wildcard_or_digest() {
        let digest = Digest::sha256(b"x");
        for good in ["team/app", "team/app:v1", "team/**:v*", "*", &format!("team/app@{digest}")] {
            assert!(good.parse::<Choice>().is_ok(), "{good}");
        }
        for bad in ["", ":", "team/app:", "team app", "team/app@sha256:12", &format!("team/*@{digest}"), "a:b:c"] {
            let error = bad.parse::<Choice>().expect_err(bad);
            assert!(error.starts_with(&format!("{bad:?}")), "{error}");
        }
    }
}
