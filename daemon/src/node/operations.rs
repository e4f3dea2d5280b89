//! The commands of the command line, as far as they reach beyond the store.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use futures_util::future::BoxFuture;
use larder_protocol::digest::Digest;
use larder_protocol::record::Archived;

use crate::admin::Operations;
use crate::age::Identity;
use crate::archive::{self, Archive};
use crate::glob::Glob;
use crate::peers::{Joined, KeyChange, KeyChanged, PeerStatus, Peers, RoleChange};
use crate::telemetry::{Metrics, Risk};
use crate::upkeep::{self, Elsewhere, Gc, Scrub, Surroundings, Word};

/// Hands `admin` what the rooms offer, without letting it know the rooms.
pub(super) struct NodeOperations {
    peers: Peers,
    archive: Archive,
    gc: Gc,
    scrub: Scrub,
    metrics: Arc<Metrics>,
    ready: Arc<AtomicBool>,
}

impl NodeOperations {
    pub(super) fn new(peers: Peers, archive: Archive, (gc, scrub): (Gc, Scrub), metrics: Arc<Metrics>, ready: Arc<AtomicBool>) -> Self {
        Self { peers, archive, gc, scrub, metrics, ready }
    }
}

impl Operations for NodeOperations {
    fn token(&self, expires: Duration, role: RoleChange) -> BoxFuture<'_, Result<String>> {
        Box::pin(async move { self.peers.token(expires, role).await.context("make a join token") })
    }

    fn change_role<'a>(&'a self, node: &'a str, change: RoleChange) -> BoxFuture<'a, Result<Vec<&'static str>>> {
        Box::pin(async move {
            let id = self.peers.resolve(node)?;
            self.peers.change_role(id, change).await.with_context(|| format!("change the role of {id}"))
        })
    }

    fn set_site<'a>(&'a self, node: &'a str, repositories: Option<Vec<Glob>>) -> BoxFuture<'a, Result<()>> {
        Box::pin(async move {
            let id = self.peers.resolve(node)?;
            self.peers.set_site(id, repositories).await.with_context(|| format!("change what {id} may have"))
        })
    }

    fn join<'a>(&'a self, token: &'a str) -> BoxFuture<'a, Result<Joined>> {
        Box::pin(async move { self.peers.join(token).await.context("join a cluster") })
    }

    fn peers(&self) -> Vec<PeerStatus> {
        self.peers.list()
    }

    fn remove_peer<'a>(&'a self, node: &'a str) -> BoxFuture<'a, Result<()>> {
        Box::pin(async move {
            let id = self.peers.resolve(node)?;
            ensure!(self.peers.remove(id).await.with_context(|| format!("remove {id}"))?, "remove {id}: it is no member of this cluster");
            Ok(())
        })
    }

    fn change_key(&self, how: KeyChange) -> BoxFuture<'_, Result<KeyChanged>> {
        Box::pin(async move { self.peers.change_key(how).await.context("change this node's key") })
    }

    fn archive_status(&self) -> BoxFuture<'_, Result<archive::Status>> {
        Box::pin(async move { self.archive.status().await.context("read how the archive stands") })
    }

    fn archive_flush(&self) -> BoxFuture<'_, Result<Vec<archive::PackInfo>>> {
        Box::pin(async move { self.archive.flush().await.context("flush the archive") })
    }

    fn archive_packs(&self) -> BoxFuture<'_, Result<Vec<archive::PackInfo>>> {
        Box::pin(async move { self.archive.packs().await.context("list the packs") })
    }

    fn archive_cost(&self) -> BoxFuture<'_, Result<archive::Cost>> {
        Box::pin(async move { self.archive.cost().await.context("read the ledger") })
    }

    fn archive_export(&self, choices: Vec<archive::Choice>) -> BoxFuture<'_, Result<archive::Export>> {
        Box::pin(async move { self.archive.export(choices).await.context("export") })
    }

    fn archive_import(&self, size: u64, tail: u64, stream: archive::Incoming) -> BoxFuture<'_, Result<archive::Imported>> {
        Box::pin(async move { Ok(self.archive.import(size, tail, stream).await?) })
    }

    fn restore<'a>(&'a self, url: &'a str, options: archive::RestoreOptions) -> BoxFuture<'a, Result<archive::Restored>> {
        Box::pin(async move { self.archive.restore(url, options).await.with_context(|| format!("restore from {url}")) })
    }

    fn restoring(&self) -> BoxFuture<'_, Result<archive::Progress>> {
        Box::pin(async move { self.archive.restoring().await.context("read how the restore stands") })
    }

    fn archive_thaw(&self, request: archive::ThawRequest) -> BoxFuture<'_, Result<archive::ThawTold>> {
        Box::pin(async move { self.archive.thaw(request).await.context("thaw what is frozen") })
    }

    fn drill(&self, url: Option<String>, images: usize, identities: Vec<Arc<Identity>>) -> BoxFuture<'_, Result<archive::Drilled>> {
        Box::pin(async move { self.archive.drill(url, images, identities).await.context("try out a restore") })
    }

    fn archive_checkpoint(&self) -> BoxFuture<'_, Result<String>> {
        Box::pin(async move { self.archive.checkpoint().await.context("write a checkpoint") })
    }

    fn archive_verify(&self, subset: Option<archive::Subset>, mend: bool) -> BoxFuture<'_, Result<archive::Verified>> {
        Box::pin(async move { self.archive.verify(subset, mend).await.context("verify the archive") })
    }

    fn archive_plan_compaction(&self) -> BoxFuture<'_, Result<archive::Compaction>> {
        Box::pin(async move { self.archive.plan_compaction().await.context("plan a compaction of the archive") })
    }

    fn archive_compact(&self) -> BoxFuture<'_, Result<archive::Compaction>> {
        Box::pin(async move { self.archive.compact().await.context("compact the archive") })
    }

    fn archive_start_over(&self) -> BoxFuture<'_, Result<u64>> {
        Box::pin(async move { self.archive.start_over().await.context("start the archive over") })
    }

    fn gc(&self, dry_run: bool) -> BoxFuture<'_, Result<upkeep::Report>> {
        Box::pin(async move { self.gc.collect(dry_run).await.context("collect garbage") })
    }

    fn scrub(&self) -> BoxFuture<'_, Result<upkeep::Scrubbed>> {
        Box::pin(async move { self.scrub.pass().await.context("read everything that is kept") })
    }

    fn risk(&self) -> Risk {
        self.metrics.risk()
    }

    fn ready(&self) -> bool {
        self.ready.load(Ordering::Relaxed)
    }
}

/// What eviction asks of other places.
pub(super) struct Places {
    pub(super) peers: Peers,
    pub(super) archive: Archive,
    /// Whether a copy that is frozen counts as one.
    pub(super) with_frozen: bool,
}

impl Elsewhere for Places {
    fn gives_back(&self, pack: &Archived) -> bool {
        self.archive.gives_back(pack, self.with_frozen)
    }

    fn kept_by_owners(&self, digests: Vec<Digest>) -> BoxFuture<'static, Word> {
        let peers = self.peers.clone();
        Box::pin(async move {
            // ORDER: marked before anybody is asked.
            let marked = peers.mark_leaving(&digests);
            let given = peers.kept_by_owners(&digests).await;
            let stands = Box::new(move |digest: &Digest| {
                let _ = &marked;
                !peers.is_owner(digest)
            });
            Word { given, stands }
        })
    }
}

/// What upkeep asks of other nodes.
pub(super) struct Neighbours(pub(super) Peers);

impl Surroundings for Neighbours {
    fn unheard(&self) -> Vec<String> {
        self.0.unheard()
    }

    fn is_first_for(&self, digest: &Digest) -> bool {
        self.0.is_first_for(digest)
    }
}
