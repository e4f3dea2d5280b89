//! What would be lost with this node: blobs that no other owner has yet, in bytes and age.
//!
//! New content comes through pushes, which stand in this node's own journal; content that came from elsewhere is somewhere else. So the
//! journal is read from a cursor, and what it links is *exposed* until an owner that is another node vouches for it. The cursor
//! moves up to the first that is exposed, so a restart begins there. When members go or come, `repair` casts doubt on what this
//! node owns, and what nobody vouches for is exposed again.
//!
//! Nothing is asked while nothing is exposed.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use larder_protocol::codec;
use larder_protocol::digest::Digest;
use larder_protocol::record::{Key, Link, Numbered, Value};
use larder_protocol::vector::Origin;

use super::Lookup;
use crate::store::{self, Commit};

/// Setting that holds up to where nothing is exposed any more.
const CURSOR: &str = "risk/cursor";
/// Records read at a time.
const BATCH: usize = 1000;
/// Blobs that are remembered one by one; of more it is said "at least".
const EXPOSED_MAX: usize = 100_000;
/// Blobs that others are asked for in one round.
const ASKED_MAX: usize = 1000;
/// How often others are asked, while something is exposed: doubled up to the last while nobody has it.
const ASK: (Duration, Duration) = (Duration::from_millis(500), Duration::from_secs(10));
/// How often the cursor is written down.
const SAVE: Duration = Duration::from_secs(60);

/// What is exposed.
#[derive(Debug, Default)]
pub(super) struct Exposed(Mutex<State>);

#[derive(Debug, Default)]
struct State {
    origin: Option<Origin>,
    read: u64,
    blobs: HashMap<Digest, Blob>,
    /// Whom to ask for next: the digests behind this one.
    asked: Option<Digest>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Blob {
    size: u64,
    since_ms: u64,
    /// Its place in the journal; `None` for one that was doubted.
    sequence: Option<u64>,
}

impl State {
    /// Another life has numbers of its own: its journal is read from the beginning. What was exposed in the one before still is.
    fn follow(&mut self, origin: Origin) {
        if self.origin != Some(origin) {
            (self.origin, self.read) = (Some(origin), 0);
            self.blobs.values_mut().for_each(|blob| blob.sequence = None);
        }
    }

    fn expose(&mut self, digest: Digest, blob: Blob) {
        if self.blobs.len() < EXPOSED_MAX {
            self.blobs.entry(digest).or_insert(blob);
        }
    }

    /// The next digests to ask for, in a circle.
    fn next(&mut self, most: usize) -> Vec<Digest> {
        let mut digests: Vec<_> = self.blobs.keys().copied().collect();
        digests.sort_unstable();
        let behind = self.asked.map_or(0, |asked| digests.partition_point(|digest| *digest <= asked));
        digests.rotate_left(behind);
        digests.truncate(most);
        self.asked = digests.last().copied();
        digests
    }

    /// Up to where nothing is exposed.
    fn cursor(&self) -> u64 {
        let first = self.blobs.values().filter_map(|blob| blob.sequence).min();
        first.map_or(self.read, |first| first.saturating_sub(1).min(self.read))
    }

    fn totals(&self) -> (u64, Option<u64>) {
        (self.blobs.values().map(|blob| blob.size).sum(), self.blobs.values().map(|blob| blob.since_ms).min())
    }
}

impl Exposed {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether something is exposed that the journal's cursor does not remember.
    pub(super) fn is_doubting(&self) -> bool {
        self.lock().blobs.values().any(|blob| blob.sequence.is_none())
    }

    /// Asks who else has blobs of this node's share, after others own what; those that nobody vouches for are exposed.
    pub(super) async fn doubt(&self, lookup: &Lookup, held: Vec<(Digest, Link)>) {
        if held.is_empty() || lookup.peers.others() == 0 {
            return;
        }
        let digests: Vec<_> = held.iter().map(|(digest, _)| *digest).collect();
        let vouched = lookup.peers.kept_by_another(&digests).await;
        let mut state = self.lock();
        for ((digest, link), vouched) in held.into_iter().zip(vouched) {
            if !vouched {
                state.expose(digest, Blob { size: link.size, since_ms: now_ms(), sequence: None });
            }
        }
    }
}

/// Runs until the node stops.
pub(super) async fn watch(lookup: Lookup) {
    let stopping = lookup.tasks.stopping();
    let mut changes = lookup.store.changes();
    let (mut wait, mut saved) = (ASK.0, (0, tokio::time::Instant::now()));
    if let Err(error) = load(&lookup).await {
        tracing::warn!(%error, "read since when what is pushed is safe elsewhere: all of it is asked for again");
    }
    loop {
        let before = lookup.risk.lock().blobs.len();
        match round(&lookup).await {
            // ORDER: slower only while nothing gets better.
            Ok(()) if lookup.risk.lock().blobs.len() < before => wait = ASK.0,
            Ok(()) => wait = (wait * 2).min(ASK.1),
            Err(error) => {
                tracing::warn!(%error, "looking for what is on this node alone: will try again");
                wait = ASK.1;
            }
        }
        let cursor = lookup.risk.lock().cursor();
        if cursor != saved.0 && saved.1.elapsed() >= SAVE {
            saved = (cursor, tokio::time::Instant::now());
            save(&lookup, cursor).await;
        }
        let is_idle = lookup.risk.lock().blobs.is_empty() && lookup.peers.others() > 0;
        tokio::select! {
            () = stopping.cancelled() => break,
            changed = changes.changed() => {
                if changed.is_err() {
                    return stopping.cancelled().await;
                }
                wait = ASK.0;
                // What comes within a moment is asked for together.
                let _ = tokio::time::timeout(ASK.0, stopping.cancelled()).await;
            }
            () = tokio::time::sleep(if is_idle { SAVE } else { wait }) => {}
        }
    }
    let cursor = lookup.risk.lock().cursor();
    save(&lookup, cursor).await;
}

async fn load(lookup: &Lookup) -> Result<(), store::Error> {
    let read = lookup.store.run(|store| store.setting(CURSOR)).await?;
    let own = lookup.store.origin();
    let read = read.and_then(|bytes| codec::decode::<(Origin, u64)>(&bytes).ok()).filter(|(origin, _)| *origin == own);
    let mut state = lookup.risk.lock();
    (state.origin, state.read) = (Some(own), read.map_or(0, |(_, sequence)| sequence));
    Ok(())
}

async fn save(lookup: &Lookup, cursor: u64) {
    let settings = vec![(CURSOR.to_owned(), Some(codec::encode(&(lookup.store.origin(), cursor))))];
    if let Err(error) = lookup.store.run(move |store| store.commit(Commit { settings, ..Commit::default() })).await {
        tracing::debug!(%error, "what is safe elsewhere was not written down; more is asked for after a restart");
    }
}

async fn round(lookup: &Lookup) -> Result<(), store::Error> {
    if lookup.peers.replicas() < 2 {
        // One copy is all that was asked for.
        lookup.metrics.single_copy.set(0, None);
        return Ok(());
    }
    if lookup.peers.others() == 0 {
        return alone(lookup).await;
    }
    read(lookup).await?;
    let digests = lookup.risk.lock().next(ASKED_MAX);
    if !digests.is_empty() {
        let vouched = lookup.peers.kept_by_another(&digests).await;
        let asked = digests.clone();
        let here =
            lookup.store.run(move |store| asked.iter().map(|digest| Ok(store.blob(digest)?.is_some())).collect::<store::Result<Vec<_>>>());
        let here = here.await?;
        let mut state = lookup.risk.lock();
        for ((digest, vouched), here) in digests.iter().zip(vouched).zip(here) {
            if vouched || !here {
                state.blobs.remove(digest);
            }
        }
    }
    let (bytes, oldest_ms) = lookup.risk.lock().totals();
    lookup.metrics.single_copy.set(bytes, oldest_ms);
    Ok(())
}

/// Without another node, everything is on this one alone, and nothing of it needs to be remembered.
async fn alone(lookup: &Lookup) -> Result<(), store::Error> {
    let origin = lookup.store.origin();
    let read = {
        let mut state = lookup.risk.lock();
        state.follow(origin);
        state.read
    };
    let (disk, first) = lookup.store.run(move |store| Ok::<_, store::Error>((store.disk()?, store.tail(&origin, read, BATCH)?))).await?;
    let oldest = first.iter().filter(|numbered| is_link(numbered)).map(|numbered| numbered.record.stamp.time.ms()).min();
    lookup.metrics.single_copy.set(disk.blobs, oldest.filter(|_| disk.blobs > 0));
    Ok(())
}

/// Exposes what this node has linked since the last round and has on its disk.
async fn read(lookup: &Lookup) -> Result<(), store::Error> {
    let origin = lookup.store.origin();
    loop {
        let (read, full) = {
            let mut state = lookup.risk.lock();
            state.follow(origin);
            (state.read, state.blobs.len() >= EXPOSED_MAX)
        };
        let known = lookup.store.vector().get(&origin);
        if full || read >= known {
            return Ok(());
        }
        let page = lookup.store.run(move |store| {
            let records = store.tail(&origin, read, BATCH)?;
            let last = records.last().map(|last| last.sequence);
            let mut found = Vec::new();
            for numbered in records.iter().filter(|numbered| is_link(numbered)) {
                let (Key::Link(_, digest), Some(Value::Link(link))) = (&numbered.record.key, &numbered.record.value) else { continue };
                if store.blob(digest)?.is_some() {
                    let since_ms = numbered.record.stamp.time.ms();
                    found.push((*digest, Blob { size: link.size, since_ms, sequence: Some(numbered.sequence) }));
                }
            }
            Ok::<_, store::Error>((found, last.unwrap_or(known)))
        });
        let (found, last) = page.await?;
        let mut state = lookup.risk.lock();
        found.into_iter().for_each(|(digest, blob)| state.expose(digest, blob));
        state.read = last;
    }
}

fn is_link(numbered: &Numbered) -> bool {
    matches!((&numbered.record.key, &numbered.record.value), (Key::Link(..), Some(_)))
}

fn now_ms() -> u64 {
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    since.map_or(0, |since| u64::try_from(since.as_millis()).unwrap_or(u64::MAX))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn digest(number: u32) -> Digest {
        Digest::sha256(&number.to_le_bytes())
    }

    #[test]
    fn the_cursor_stands_before_the_first_that_is_exposed() {
        let mut state = State { read: 9, ..State::default() };
        assert_eq!((state.cursor(), state.totals()), (9, (0, None)));
        state.expose(digest(1), Blob { size: 10, since_ms: 5, sequence: Some(4) });
        state.expose(digest(2), Blob { size: 20, since_ms: 3, sequence: None });
        state.expose(digest(1), Blob { size: 10, since_ms: 50, sequence: Some(8) });
        assert_eq!((state.cursor(), state.totals()), (3, (30, Some(3))), "a blob counts once, since it first came");
        state.blobs.remove(&digest(1));
        assert_eq!((state.cursor(), state.totals()), (9, (20, Some(3))), "what was doubted holds no cursor back");
    }

    #[test]
    fn f11_another_life_is_read_from_the_beginning_and_forgets_nothing_exposed() {
        let origin = |incarnation| Origin { node: larder_protocol::stamp::NodeId([1; 32]), incarnation };
        let mut state = State { origin: Some(origin(1)), read: 9, ..State::default() };
        state.expose(digest(1), Blob { size: 10, since_ms: 5, sequence: Some(4) });
        state.follow(origin(1));
        assert_eq!(state.cursor(), 3);
        state.follow(origin(2));
        assert_eq!((state.cursor(), state.totals()), (0, (10, Some(5))));
        state.read = 2;
        assert_eq!(state.cursor(), 2, "a number of the life before holds nothing back");
    }

    #[test]
    fn everything_gets_its_turn_to_be_asked_for() {
        let mut state = State::default();
        (0..10).for_each(|number| state.expose(digest(number), Blob { size: 1, since_ms: 1, sequence: None }));
        let mut asked: Vec<_> = (0..4).flat_map(|_| state.next(3)).collect();
        asked.sort_unstable();
        asked.dedup();
        assert_eq!(asked.len(), 10);
        assert_eq!(State::default().next(3), []);
    }
}
