//! Which frozen packs hold what is not on this disk: those of the newest tags first, or of some images.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use larder_protocol::digest::Digest;
use larder_protocol::record::{Archived, Link, PackId};

use crate::store::{self, Store};

use super::super::thaw::Pack;
use super::super::{Choice, Error, Inner, keys, refill};

/// Records of packs that are read at a time: each names all that lies in its pack.
const PACKS_PAGE: usize = 16;
/// Blobs that one job may want.
const WANTED_MAX: usize = 4_000_000;

impl Inner {
    /// The choices that name something still.
    pub(super) async fn standing(&self, choices: Vec<Choice>) -> Result<Vec<Choice>, Error> {
        self.store
            .run(move |store| {
                let mut standing = Vec::new();
                for choice in choices {
                    match choice.each(store, |_, _, _| Ok(())) {
                        Ok(()) => standing.push(choice),
                        Err(Error::Image { .. }) => {}
                        Err(error) => return Err(error),
                    }
                }
                Ok(standing)
            })
            .await
    }

    pub(super) async fn digests(&self, choices: Vec<Choice>) -> Result<HashSet<Digest>, Error> {
        self.store
            .run(move |store| {
                let mut digests = HashSet::new();
                each_blob_of(store, &choices, |digest, _| {
                    digests.insert(digest);
                    Ok(())
                })?;
                Ok(digests)
            })
            .await
    }

    /// The packs that must thaw for blobs that are not here and nowhere else in the archive: those of the newest tags first, or of some images.
    pub(super) async fn frozen_packs(self: &Arc<Self>, choices: Vec<Choice>, readable: Readable) -> Result<Vec<Pack>, Error> {
        let this = self.clone();
        self.store
            .run(move |store| {
                // Mostly there is none, and the blobs of all tags need not be gone through.
                if !this.has_frozen(store, readable)? {
                    return Ok(Vec::new());
                }
                let mut frozen =
                    Frozen { inner: &this, readable, packs: Vec::new(), at: HashMap::new(), known: HashMap::new(), done: HashSet::new() };
                let add = |digest, link| frozen.add(store, digest, link).map_err(Error::from);
                if choices.is_empty() { refill::each_blob(store, add) } else { each_blob_of(store, &choices, add) }?;
                Ok(frozen.packs)
            })
            .await
    }

    fn has_frozen(&self, store: &Store, readable: Readable) -> store::Result<bool> {
        let mut after = None;
        loop {
            let packs = store.packs(after.as_ref(), PACKS_PAGE)?;
            let Some((last, _)) = packs.last() else { return Ok(false) };
            if packs.iter().any(|(_, archived)| self.is_frozen(archived, readable)) {
                return Ok(true);
            }
            after = Some(*last);
        }
    }

    fn is_frozen(&self, archived: &Archived, readable: Readable) -> bool {
        match readable {
            Readable::Included => self.thaws.was_frozen(archived),
            Readable::Skipped => self.thaws.is_frozen(archived),
        }
    }
}

/// Every blob of some images.
fn each_blob_of(store: &Store, choices: &[Choice], mut take: impl FnMut(Digest, Link) -> Result<(), Error>) -> Result<(), Error> {
    choices.iter().try_for_each(|choice| {
        choice.each(store, |repository, _, manifest| {
            store.closure(repository, &manifest)?.into_iter().try_for_each(|(digest, link)| take(digest, link))
        })
    })
}

/// What is done about packs that have thawed, as far as is known.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Readable {
    /// Nothing need be paid for them.
    Skipped,
    /// Nothing need be asked, and they are to be read.
    Included,
}

/// Frozen packs as they are found.
struct Frozen<'a> {
    inner: &'a Inner,
    readable: Readable,
    packs: Vec<Pack>,
    at: HashMap<PackId, usize>,
    /// Without what lies in them.
    known: HashMap<PackId, Option<Archived>>,
    done: HashSet<u64>,
}

impl Frozen<'_> {
    fn add(&mut self, store: &Store, digest: Digest, link: Link) -> store::Result<()> {
        if self.done.len() >= WANTED_MAX || !self.done.insert(refill::brief(&digest)) || store.blob(&digest)?.is_some() {
            return Ok(());
        }
        let mut frozen = None;
        for (id, _, length) in store.locations(&digest)? {
            let archived = match self.known.get(&id) {
                Some(archived) => archived.clone(),
                None => {
                    let archived = store.pack(&id)?.map(|archived| Archived { contents: Vec::new(), ..archived });
                    self.known.insert(id, archived.clone());
                    archived
                }
            };
            let Some(archived) = archived else { continue };
            if length != link.size || self.inner.reachable(&archived.bucket).is_none() {
                continue;
            }
            if !self.inner.is_frozen(&archived, self.readable) {
                return Ok(());
            }
            frozen.get_or_insert((id, archived));
        }
        let Some((id, Archived { bucket, object_key: key, size, .. })) = frozen else { return Ok(()) };
        let packs = &mut self.packs;
        let at = *self.at.entry(id).or_insert_with(|| {
            let class = keys::class_of(&key).name().to_owned();
            packs.push(Pack { id, bucket, key, class, size, wanted: 0 });
            packs.len() - 1
        });
        self.packs[at].wanted += link.size;
        Ok(())
    }
}
