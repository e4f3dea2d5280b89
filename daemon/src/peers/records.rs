//! The upkeep of the records between nodes: what waits for its time, and what everybody knows.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use larder_protocol::vector::VersionVector;

use super::acks::REMEMBER;
use super::sync::seen_by_all;
use super::{Inner, Peers};
use crate::store;

/// How often it is looked whether the time of a record from the future has come.
const RELEASE: Duration = Duration::from_secs(1);

/// Keeps the records, until the node stops.
pub(super) async fn keep(peers: Peers) {
    let inner = &peers.inner;
    let stopping = inner.tasks.stopping();
    let mut tick = tokio::time::interval(RELEASE);
    tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let mut remembered = Instant::now();
    loop {
        tokio::select! {
            _ = stopping.cancelled() => break,
            _ = tick.tick() => {}
        }
        if let Err(error) = inner.release().await {
            tracing::warn!(%error, "records whose time has come wait on");
        }
        if remembered.elapsed() >= REMEMBER {
            let passed = remembered.elapsed();
            remembered = Instant::now();
            if let Err(error) = inner.remember(passed).await {
                tracing::warn!(%error, "what the members know was not written down");
            }
            match inner.forget().await {
                Ok(0) => {}
                Ok(tombstones) => tracing::debug!(tombstones, "what was deleted is forgotten: everyone has heard of it"),
                Err(error) => tracing::warn!(%error, "what was deleted is not forgotten yet"),
            }
        }
    }
    let _ = inner.remember(remembered.elapsed()).await;
}

impl Peers {
    /// What every member has seen that counts, when this node knows all that they knew then; `None`: nothing can be said. A member that is away counts with
    /// what it had seen, until it was silent for `records.lapse_after`.
    pub fn seen_by_all(&self) -> Option<VersionVector> {
        self.inner.seen_by_all()
    }
}

impl Inner {
    /// Lets the records stand whose time has come.
    async fn release(&self) -> store::Result<()> {
        if self.store.quarantined_count() > 0 {
            let (released, conflicts) = self.store.run(store::Store::release).await?;
            if released > 0 {
                tracing::info!(released, "the time of records from the future has come");
            }
            self.metrics.tag_conflicts.inc_by(conflicts.len() as u64);
        }
        self.count();
        Ok(())
    }

    /// Counts what came of records from a peer.
    pub(super) fn applied(&self, applied: &store::Applied) {
        self.metrics.merged_records.inc_by(applied.changed.len() as u64);
        self.metrics.refused_records.inc_by(applied.refused as u64);
        self.metrics.tag_conflicts.inc_by(applied.conflicts.len() as u64);
        if applied.quarantined + applied.forked > 0 {
            self.count();
        }
    }

    /// Shows what is put aside.
    fn count(&self) {
        self.metrics.quarantined_records.set(self.store.quarantined_count() as i64);
        self.metrics.forked_origins.set(self.store.forked_origins() as i64);
    }

    /// Writes down what every member was last heard to know.
    pub(super) async fn remember(&self, passed: Duration) -> store::Result<()> {
        let own = self.store.origin();
        for (member, _) in self.members.others() {
            match self.links.get(&member) {
                Some(link) => self.acks.note(&link, &own),
                None => self.acks.silent(&member, passed),
            }
        }
        let gone = self.acks.retain(|node| self.members.is_member(node));
        let rows = self.acks.all().into_iter().map(|(node, said)| (node, Some(said)));
        let rows = rows.chain(gone.into_iter().map(|node| (node, None))).collect();
        self.store.run(move |store| store.acknowledge(rows)).await
    }

    /// What everyone has seen that counts; `None`: nothing can be said.
    pub(super) fn seen_by_all(&self) -> Option<VersionVector> {
        let said: HashMap<_, _> = self.acks.all().into_iter().collect();
        let others = self.members.others();
        // A member that was never heard has seen nothing.
        let said: Vec<_> = others.iter().map(|(member, _)| said.get(member).cloned().unwrap_or_default()).collect();
        let members = said.iter().map(|said| (&said.vector, Duration::from_millis(said.silent_ms)));
        seen_by_all(&self.store.vector(), members, self.records.lapse_after)
    }

    /// Forgets what was deleted and everyone has heard of; says how much.
    pub(super) async fn forget(&self) -> store::Result<usize> {
        let Some(seen) = self.seen_by_all() else { return Ok(0) };
        let (archived, kept_ms) = (self.archived.get().cloned(), self.records.tombstones_kept.as_millis() as u64);
        let purged = self.store.run(move |store| {
            let archived: HashMap<_, _> = archived.map_or(Ok(Vec::new()), |archived| archived())?.into_iter().collect();
            store.purge_tombstones(&seen, kept_ms, |origin| archived.get(origin).copied().unwrap_or(u64::MAX))
        });
        purged.await
    }
}
