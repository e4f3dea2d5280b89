//! Keeping the copies that this node owes: it is an owner of a digest when `peers` says so.
//!
//! One task reads every origin's journal from a cursor of its own, and brings each linked blob that this node owns
//! onto this disk. What can't be had now is written down with the cursor and tried again, so a crash or a missed wake-up
//! costs time and never a copy. Cursors are written now and then, not at every step: reading a record twice is harmless.

use std::collections::HashMap;
use std::time::Duration;

use futures_util::StreamExt;
use larder_protocol::codec;
use larder_protocol::digest::Digest;
use larder_protocol::record::{Key, Link, Numbered, Record, Value};
use larder_protocol::vector::{Origin, VersionVector};

use super::Lookup;
use crate::store::{self, Commit};

/// Setting that holds how far each origin was read.
const CURSOR: &str = "copies/cursor";
/// Settings that hold what could not be had yet: digest -> link.
const WAITING: &str = "copies/waiting/";
/// Records read at a time.
const BATCH: usize = 1000;
/// Blobs fetched at a time.
const FETCHES: usize = 4;
/// Lost blobs that are looked for in one round.
const LOST_RETRIED_MAX: usize = 100;
/// How often what could not be had is tried again, and cursors are written.
const PAUSE: Duration = Duration::from_secs(10);

/// Runs until the node stops.
pub async fn keep(lookup: Lookup) {
    let stopping = lookup.tasks.stopping();
    let mut changes = lookup.store.changes();
    let mut work = match lookup.store.run(Work::load).await {
        Ok(work) => work,
        Err(error) => {
            tracing::error!(%error, "read which copies are owed");
            return;
        }
    };
    let mut pause = tokio::time::interval(PAUSE);
    pause.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        let retry = tokio::select! {
            _ = stopping.cancelled() => break,
            changed = changes.changed() => if changed.is_ok() { false } else { break },
            _ = pause.tick() => true,
        };
        tokio::select! {
            _ = stopping.cancelled() => break,
            result = work.round(&lookup, retry) => if let Err(error) = result {
                tracing::warn!(%error, "keeping copies: will try again");
            },
        }
    }
    if let Err(error) = work.save(&lookup).await {
        tracing::warn!(%error, "write down which copies are owed");
    }
}

/// What is read, and what is owed.
#[derive(Default)]
struct Work {
    cursor: VersionVector,
    waiting: HashMap<Digest, Link>,
    /// Changes since the last save: the cursor moved, and these blobs came or must wait.
    moved: bool,
    settled: Vec<(Digest, Option<Link>)>,
}

impl Work {
    fn load(store: &store::Store) -> Result<Self, store::Error> {
        // A damaged row is read as none: everything is looked at once more.
        let cursor = store.setting(CURSOR)?.and_then(|bytes| codec::decode(&bytes).ok()).unwrap_or_default();
        let waiting = store
            .settings(WAITING)?
            .into_iter()
            .filter_map(|(name, bytes)| Some((name.strip_prefix(WAITING)?.parse().ok()?, codec::decode(&bytes).ok()?)));
        Ok(Self { cursor, waiting: waiting.collect(), ..Self::default() })
    }

    async fn round(&mut self, lookup: &Lookup, retry: bool) -> Result<(), store::Error> {
        if retry {
            let waiting: Vec<_> = self.waiting.iter().map(|(digest, link)| (*digest, *link)).collect();
            self.fetch(lookup, waiting).await;
            bring_back(lookup).await?;
        }
        for (origin, known) in lookup.store.vector().iter() {
            while let Some(links) = self.read(lookup, origin, known).await? {
                let owed = links.into_iter().filter(|(digest, _)| lookup.peers.is_owner(digest)).collect();
                self.fetch(lookup, owed).await;
            }
        }
        if retry { self.save(lookup).await } else { Ok(()) }
    }

    /// The links among the next records of an origin; `None` at its end.
    ///
    /// Beyond `known`, an exchange is under way and earlier records may still come: they are read when it has ended.
    async fn read(&mut self, lookup: &Lookup, origin: Origin, known: u64) -> Result<Option<Vec<(Digest, Link)>>, store::Error> {
        let after = self.cursor.get(&origin);
        let mut records = lookup.store.run(move |store| store.tail(&origin, after, BATCH)).await?;
        records.retain(|numbered| numbered.sequence <= known);
        let Some(last) = records.last() else { return Ok(None) };
        self.cursor.advance(origin, last.sequence);
        self.moved = true;
        Ok(Some(records.into_iter().filter_map(linked).collect()))
    }

    async fn fetch(&mut self, lookup: &Lookup, owed: Vec<(Digest, Link)>) {
        let fetches = owed.into_iter().map(|(digest, link)| async move { (digest, link, lookup.ensure(digest, link).await) });
        let mut fetches = futures_util::stream::iter(fetches).buffer_unordered(FETCHES);
        while let Some((digest, link, fetched)) = fetches.next().await {
            match fetched {
                Ok(()) => {
                    if self.waiting.remove(&digest).is_some() {
                        self.settled.push((digest, None));
                    }
                }
                Err(error) => {
                    tracing::debug!(%digest, %error, "a copy has to wait");
                    if self.waiting.insert(digest, link).is_none() {
                        self.settled.push((digest, Some(link)));
                    }
                }
            }
        }
    }

    async fn save(&mut self, lookup: &Lookup) -> Result<(), store::Error> {
        if !std::mem::take(&mut self.moved) && self.settled.is_empty() {
            return Ok(());
        }
        let mut settings = vec![(CURSOR.to_owned(), Some(codec::encode(&self.cursor)))];
        settings.extend(self.settled.drain(..).map(|(digest, link)| (format!("{WAITING}{digest}"), link.map(|link| codec::encode(&link)))));
        lookup.store.run(move |store| store.commit(Commit { settings, ..Commit::default() })).await?;
        Ok(())
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

fn linked(numbered: Numbered) -> Option<(Digest, Link)> {
    match numbered.record {
        Record { key: Key::Link(_, digest), value: Some(Value::Link(link)), .. } => Some((digest, link)),
        _ => None,
    }
}
