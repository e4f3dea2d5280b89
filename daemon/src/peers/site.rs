//! Site policies: which repositories a node may have. What lies outside is neither told to it nor served.
//!
//! A `Site` record names the patterns of a reader's repositories; a reader without one may have everything. Only readers are so bounded: what they
//! pass on counts nowhere, so nobody misses what was withheld from one. Such a node
//!
//! - gets the records of its repositories, of members, and of who may do what; and of blobs those that such a repository links, as every node
//!   that serves it decides for itself (S28);
//! - owns nothing and is not compared with: it can't hold what all hold;
//! - asks for everything anew whenever it connects, because what it knows by number says nothing of what it was given. So a wider policy takes effect at
//!   once, and with a narrower one nothing more is told; what it has got it may have copied.

use std::sync::Arc;

use larder_protocol::access;
use larder_protocol::digest::Digest;
use larder_protocol::message::{Answer, Request};
use larder_protocol::record::{Key, Value};
use larder_protocol::refusal::Refusal;
use larder_protocol::stamp::NodeId;
use larder_protocol::vector::{Origin, VersionVector};

use super::error::Result;
use super::{Inner, Peers, RoleChange, roles};
use crate::glob::Glob;
use crate::store::{self, Commit, Store};

/// The setting of a node that may not have everything, or has not had it since.
const BOUNDED: &str = "peers/bounded";
/// Most repositories of a blob that are looked at.
const LINKING_MAX: usize = 10_000;

/// What a node may have, when that is not everything.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Site(Vec<Glob>);

impl Site {
    /// Whether it may have a repository.
    fn has(&self, repository: &str) -> bool {
        self.0.iter().any(|glob| glob.matches(repository))
    }

    /// Whether it may be told of a record. Of a kind that is unknown here, nobody can say whose it is.
    pub(super) fn may_hear(&self, key: &Key) -> bool {
        match key {
            Key::Manifest(repository, _) | Key::Tag(repository, _) | Key::Link(repository, _) => self.has(repository.as_str()),
            Key::Member(_) | Key::Role(_) | Key::Site(_) | Key::Keys(_) | Key::Starts(_) | Key::User(_) | Key::Robot(_) | Key::Rule(..) => {
                true
            }
            // It would tell what else there is.
            Key::Archived(_) | Key::Unknown { .. } => false,
        }
    }

    /// Whether it may have a blob: through a repository that it may have.
    fn may_read(&self, store: &Store, digest: &Digest) -> store::Result<bool> {
        Ok(store.repositories_linking(digest, LINKING_MAX)?.iter().any(|repository| self.has(repository.as_str())))
    }
}

/// What a node may have; `None`: everything.
pub(super) fn of(inner: &Inner, node: &NodeId) -> store::Result<Option<Site>> {
    if inner.members.roles(node).is_writer() {
        return Ok(None);
    }
    match inner.store.record(&Key::Site(*node))?.and_then(|record| record.value) {
        // A pattern that can't be read here lets nothing through.
        Some(Value::Site(site)) => Ok(Some(Site(site.repositories.iter().filter_map(|text| text.parse().ok()).collect()))),
        _ => Ok(None),
    }
}

/// Takes note, durably, of that this node may not have everything.
pub(super) async fn note(inner: &Inner) -> Result<()> {
    if of(inner, &inner.identity.node())?.is_some() && inner.store.setting(BOUNDED)?.is_none() {
        set(inner, Some(vec![1])).await?;
    }
    Ok(())
}

/// Whether this node may lack what it knows by number: it may not have everything, or could not until now.
pub(super) fn lacks(inner: &Inner) -> store::Result<bool> {
    Ok(inner.store.setting(BOUNDED)?.is_some() || of(inner, &inner.identity.node())?.is_some())
}

/// Takes note of that it has heard a peer out that has everything: then nothing is lacking any more, if it may have everything.
pub(super) async fn heard_all(inner: &Inner, peer: &NodeId) -> Result<()> {
    let is_whole = inner.members.roles(peer).is_writer() && of(inner, &inner.identity.node())?.is_none();
    if is_whole && inner.store.setting(BOUNDED)?.is_some() {
        set(inner, None).await?;
    }
    Ok(())
}

async fn set(inner: &Inner, value: Option<Vec<u8>>) -> Result<()> {
    let settings = vec![(BOUNDED.to_owned(), value)];
    inner.store.run(move |store| store.commit(Commit { settings, ..Commit::default() })).await?;
    Ok(())
}

/// What is known, for who may not have everything: of its own only.
pub(super) fn own_only(vector: VersionVector, own: &Origin) -> VersionVector {
    vector.iter().filter(|(origin, _)| origin.node == own.node).collect()
}

/// What is answered at once to a bounded peer; `None`: its request may be answered like anybody's.
pub(super) async fn answer(inner: &Arc<Inner>, peer: NodeId, request: &Request) -> Result<Option<Answer>> {
    let Some(site) = of(inner, &peer)? else { return Ok(None) };
    let (one, many): (Option<Digest>, &[Digest]) = match request {
        // Filtered where they are answered.
        Request::Sync(_) | Request::SyncBrief(_) | Request::Hello(_) | Request::Join(_) => return Ok(None),
        Request::Compare(_) | Request::Places(_) | Request::Reconcile(_) => return Ok(Some(Answer::Refused(Refusal::UNKNOWN))),
        Request::Read(read) => (Some(read.digest), &[]),
        Request::Chunk(chunk) => (Some(chunk.digest), &[]),
        Request::ChunkList(digest) | Request::Opening(digest) | Request::Follow(digest) | Request::Describe(digest) => (Some(*digest), &[]),
        Request::Keep(keep) => (None, &keep.digests),
        Request::WhoHas(digests) | Request::Vouch(digests) => (None, digests),
    };
    let asked: Vec<_> = one.iter().chain(many).take(larder_protocol::message::WHO_HAS_MAX).copied().collect();
    let may = inner.store.run(move |store| asked.iter().map(|digest| site.may_read(store, digest)).collect::<store::Result<Vec<_>>>());
    if may.await?.iter().all(|may| *may) {
        return Ok(None);
    }
    // As if there were nothing: also of those in one question that it may have, it asks again one by one.
    Ok(Some(match request {
        Request::WhoHas(digests) | Request::Vouch(digests) => Answer::Holders(vec![false; digests.len()]),
        _ => Answer::Refused(Refusal::NOT_HERE),
    }))
}

impl Peers {
    /// Bounds what a node may have, and makes it a reader; `None` lets it have everything again.
    ///
    /// # Errors
    /// It is the last writer, or this node may not write.
    pub async fn set_site(&self, node: NodeId, repositories: Option<Vec<Glob>>) -> Result<()> {
        if repositories.is_some() {
            roles::change(&self.inner, node, RoleChange::READER).await?;
        }
        let value = repositories.map(|globs| {
            let repositories = globs.iter().map(Glob::to_string).collect();
            Value::Site(access::Site { repositories, extra: Vec::new() })
        });
        let records = vec![(Key::Site(node), value)];
        self.inner.store.run(move |store| store.commit(Commit { records, ..Commit::default() })).await?;
        self.refresh()
    }
}
