//! Keeping the copies that this node owes: it is an owner of a digest when `peers` says so.
//!
//! This task reads every origin's journal from a cursor of its own, and brings each linked blob that this node owns
//! onto this disk. What can't be had now is written down with the cursor, and [`super::repair`] tries it again; so a crash or a missed
//! wake-up costs time and never a copy. Cursors are written now and then, not at every step: reading a record twice is harmless.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use futures_util::StreamExt;
use larder_protocol::codec;
use larder_protocol::digest::Digest;
use larder_protocol::record::{Key, Link, Numbered, Record, Value};
use larder_protocol::vector::{Origin, VersionVector};

use super::Lookup;
use super::owed::{Owed, Scan};
use crate::store::{self, Commit};

/// Setting that holds how far each origin was read.
const CURSOR: &str = "copies/cursor";
/// Setting that holds how far all links were looked through.
const SCAN: &str = "copies/scan";
/// Settings that hold what could not be had yet: digest -> link.
const WAITING: &str = "copies/waiting/";
/// Records read at a time.
const BATCH: usize = 1000;
/// Blobs fetched at a time.
const FETCHES: usize = 4;
/// Lost blobs that are looked for in one round.
const LOST_RETRIED_MAX: usize = 100;
/// How often lost blobs are looked for, and what changed is written down.
const PAUSE: Duration = Duration::from_secs(10);

/// What is read and what is owed; shared by the tasks that keep copies.
#[derive(Debug, Default)]
pub(super) struct Ledger(Mutex<State>);

#[derive(Debug, Default)]
pub(super) struct State {
    cursor: VersionVector,
    pub(super) owed: Owed,
    pub(super) scan: Scan,
    /// Cursor and scan as they were written down last.
    written: (VersionVector, Scan),
}

impl Ledger {
    pub(super) fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Reads what was written down.
    pub(super) fn load(&self, store: &store::Store) -> Result<(), store::Error> {
        // A damaged row is read as none: everything is looked at once more.
        let read = |setting: Option<Vec<u8>>| setting.and_then(|bytes| codec::decode(&bytes).ok());
        let cursor: VersionVector = read(store.setting(CURSOR)?).unwrap_or_default();
        let scan: Scan = store.setting(SCAN)?.and_then(|bytes| codec::decode(&bytes).ok()).unwrap_or_default();
        let rows = store.settings(WAITING)?.into_iter();
        let owed = rows.filter_map(|(name, bytes)| Some((name.strip_prefix(WAITING)?.parse().ok()?, codec::decode(&bytes).ok()?)));
        let owed = Owed::new(owed, Instant::now());
        *self.lock() = State { written: (cursor.clone(), scan.clone()), cursor, owed, scan };
        Ok(())
    }

    /// Writes down what changed, all of it at once: a place is never written without what was owed before it.
    async fn save(&self, lookup: &Lookup) -> Result<(), store::Error> {
        let (cursor, mut scan, changes) = {
            let mut state = self.lock();
            (state.cursor.clone(), state.scan.clone(), state.owed.take_changes())
        };
        if scan.place().is_none() && lookup.risk.is_doubting() {
            // What nobody vouched for is in memory only: after a restart it has to be found again.
            scan.again();
        }
        if changes.is_empty() && self.lock().written == (cursor.clone(), scan.clone()) {
            return Ok(());
        }
        let mut settings = vec![(CURSOR.to_owned(), Some(codec::encode(&cursor))), (SCAN.to_owned(), Some(codec::encode(&scan)))];
        settings.extend(changes.iter().map(|(digest, link)| (format!("{WAITING}{digest}"), link.map(|link| codec::encode(&link)))));
        let saved = lookup.store.run(move |store| store.commit(Commit { settings, ..Commit::default() })).await;
        let mut state = self.lock();
        lookup.metrics.owed_blobs.set(i64::try_from(state.owed.len()).unwrap_or(i64::MAX));
        match saved {
            Ok(_) => state.written = (cursor, scan),
            Err(error) => {
                state.owed.put_back(changes);
                return Err(error);
            }
        }
        Ok(())
    }
}

/// Runs until the node stops.
pub(super) async fn keep(lookup: Lookup) {
    let stopping = lookup.tasks.stopping();
    let mut changes = lookup.store.changes();
    let mut pause = tokio::time::interval(PAUSE);
    pause.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        let now_and_then = tokio::select! {
            _ = stopping.cancelled() => break,
            changed = changes.changed() => if changed.is_ok() { false } else { break },
            _ = pause.tick() => true,
        };
        tokio::select! {
            _ = stopping.cancelled() => break,
            result = round(&lookup, now_and_then) => if let Err(error) = result {
                tracing::warn!(%error, "keeping copies: will try again");
            },
        }
    }
    if let Err(error) = lookup.ledger.save(&lookup).await {
        tracing::warn!(%error, "write down which copies are owed");
    }
}

async fn round(lookup: &Lookup, now_and_then: bool) -> Result<(), store::Error> {
    if lookup.archive.is_filling() {
        // They come by large requests; one by one they would come twice.
        return Ok(());
    }
    if now_and_then {
        bring_back(lookup).await?;
    }
    for (origin, known) in lookup.store.vector().iter() {
        while let Some((links, read)) = read(lookup, origin, known).await? {
            let owed: Vec<_> = links.into_iter().filter(|(digest, _)| lookup.peers.is_owner(digest)).collect();
            fetch(lookup, owed).await;
            // ORDER: what could not be had is on the list before the cursor passes it.
            lookup.ledger.lock().cursor.advance(origin, read);
        }
    }
    if now_and_then { lookup.ledger.save(lookup).await } else { Ok(()) }
}

/// The links among the next records of an origin, and how far that is; `None` at its end.
///
/// Beyond `known`, an exchange is under way and earlier records may still come: they are read when it has ended.
async fn read(lookup: &Lookup, origin: Origin, known: u64) -> Result<Option<(Vec<(Digest, Link)>, u64)>, store::Error> {
    let after = lookup.ledger.lock().cursor.get(&origin);
    let mut records = lookup.store.run(move |store| store.tail(&origin, after, BATCH)).await?;
    records.retain(|numbered| numbered.sequence <= known);
    let Some(last) = records.last().map(|last| last.sequence) else { return Ok(None) };
    Ok(Some((records.into_iter().filter_map(linked).collect(), last)))
}

async fn fetch(lookup: &Lookup, owed: Vec<(Digest, Link)>) {
    let fetches = owed.into_iter().map(|(digest, link)| async move { (digest, link, lookup.ensure(digest, link).await) });
    let mut fetches = futures_util::stream::iter(fetches).buffer_unordered(FETCHES);
    while let Some((digest, link, fetched)) = fetches.next().await {
        let mut state = lookup.ledger.lock();
        match fetched {
            Ok(()) => state.owed.settled(&digest),
            Err(error) => {
                tracing::debug!(%digest, %error, "a copy has to wait");
                state.owed.failed(digest, link, Instant::now());
            }
        }
    }
}

/// Looks elsewhere for blobs that were damaged and put aside; those that no repository has any more are forgotten.
async fn bring_back(lookup: &Lookup) -> Result<(), store::Error> {
    let lost = lookup.store.run(|store| store.lost(None, LOST_RETRIED_MAX)).await?;
    for digest in lost.iter().map(|lost| lost.digest) {
        let link = lookup.store.run(move |store| {
            let Some(repository) = store.repositories_linking(&digest, 1)?.pop() else {
                store.give_up(&digest)?;
                return Ok(None);
            };
            store.link(&repository, &digest)
        });
        let Some(link) = link.await? else { continue };
        match lookup.ensure(digest, link).await {
            Ok(()) => tracing::info!(%digest, "a blob that was damaged is here again"),
            Err(error) => tracing::debug!(%digest, %error, "a blob that was damaged is not to be had now"),
        }
    }
    let left = lookup.store.run(|store| store.lost(None, LOST_RETRIED_MAX)).await?;
    lookup.metrics.lost_blobs.set(i64::try_from(left.len()).unwrap_or(i64::MAX));
    Ok(())
}

pub(super) fn linked(numbered: Numbered) -> Option<(Digest, Link)> {
    match numbered.record {
        Record { key: Key::Link(_, digest), value: Some(Value::Link(link)), .. } => Some((digest, link)),
        _ => None,
    }
}
