//! Repair: what became this node's share because others came, went or lost their disk; and what could not be had before.
//!
//! When other members count than before, all links are looked through once, a page at a time, and what this node owns now and lacks is
//! fetched at `peers.repair_rate`. The place in the links is written down, so a restart goes on there; when nothing changed, nothing is
//! read but once a day. What a node owns no more stays until there is need of room (`upkeep`).
//!
//! What could not be had is tried again later and later, and at once when somebody comes into reach.

use std::sync::Mutex;
use std::time::{Duration, Instant};

use futures_util::StreamExt;
use larder_protocol::digest::Digest;
use larder_protocol::message::Class;
use larder_protocol::record::Link;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::owed::Pace;
use super::{Error, Lookup};
use crate::store;

/// After a start, and after a change, so that those who are there can connect, and several changes are one.
const SETTLE: Duration = Duration::from_secs(2);
/// Links looked through at a time, and the pause between: a million take a minute.
const PAGE: usize = 1000;
const PAGE_PAUSE: Duration = Duration::from_millis(50);
/// What could not be had, tried in one go.
const RETRIED_MAX: usize = 200;
/// How often it is looked whether something is to be tried again.
const LOOK: Duration = Duration::from_secs(5);
/// Blobs fetched at a time.
const FETCHES: usize = 4;
/// When the disk is full, nothing is fetched for so long.
const FULL_PAUSE: Duration = Duration::from_secs(60);
/// When more could not be had than is remembered, all is looked through again after so long.
const AGAIN: Duration = Duration::from_secs(600);
/// And in any case after so long: records that were mended behind the cursor of `copies` are found then, and copies that others have lost.
const AGAIN_ANYWAY: Duration = Duration::from_secs(24 * 60 * 60);

/// Runs until the node stops.
pub(super) async fn run(lookup: Lookup) {
    let stopping = lookup.tasks.stopping();
    let _ = stopping.run_until_cancelled(Repair::new(lookup, &stopping).run()).await;
}

struct Repair {
    lookup: Lookup,
    stopping: CancellationToken,
    placement: watch::Receiver<std::sync::Arc<crate::peers::Placement>>,
    pace: Mutex<Pace>,
    again: Option<Instant>,
}

/// What came of fetching.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Brought {
    /// Each is here, or on the list.
    All,
    /// Others own what now.
    Changed,
    /// There is no room.
    Full,
}

impl Repair {
    fn new(lookup: Lookup, stopping: &CancellationToken) -> Self {
        let (placement, rate, now) = (lookup.peers.placement(), lookup.repair_rate, Instant::now());
        Self { lookup, stopping: stopping.clone(), placement, pace: Mutex::new(Pace::new(rate, now)), again: Some(now + AGAIN_ANYWAY) }
    }

    async fn run(mut self) {
        let (mut arrivals, mut lives) = (self.lookup.peers.arrivals(), self.lookup.store.lives());
        tokio::time::sleep(SETTLE).await;
        loop {
            let pause = match self.step().await {
                Ok(Some(pause)) => pause,
                Ok(None) => {
                    tokio::select! {
                        changed = self.placement.changed() => if changed.is_ok() { SETTLE } else { return self.stopping.cancelled().await },
                        came = arrivals.changed() => {
                            if came.is_ok() {
                                self.lookup.ledger.lock().owed.hasten(Instant::now());
                            }
                            SETTLE
                        }
                        // F11: records may come under numbers that `copies` has passed.
                        Ok(()) = lives.changed() => {
                            self.lookup.ledger.lock().scan.again();
                            SETTLE
                        }
                        () = tokio::time::sleep(LOOK) => Duration::ZERO,
                    }
                }
                Err(error) => {
                    tracing::warn!(%error, "looking for what became this node's share: will try again");
                    LOOK
                }
            };
            tokio::time::sleep(pause).await;
        }
    }

    /// Does a piece of what is to be done; how long to wait before the next one, `None` when nothing is left.
    async fn step(&mut self) -> Result<Option<Duration>, store::Error> {
        if self.lookup.archive.is_filling() {
            // All of it comes by large requests.
            return Ok(Some(LOOK));
        }
        let now = Instant::now();
        let due = self.lookup.ledger.lock().owed.due(now, RETRIED_MAX);
        if !due.is_empty() {
            let still = self.still_owed(due).await?;
            if self.bring(still).await == Brought::Full {
                return Ok(Some(FULL_PAUSE));
            }
        }
        let fingerprint = self.placement.borrow_and_update().fingerprint();
        let place = {
            let mut state = self.lookup.ledger.lock();
            state.scan.follow(fingerprint);
            if self.again.is_some_and(|again| again <= now) {
                self.again = None;
                state.scan.again();
            }
            state.scan.place()
        };
        let Some(from) = place else { return Ok(None) };
        let (placement, ledger) = (std::sync::Arc::clone(&self.placement.borrow()), std::sync::Arc::clone(&self.lookup.ledger));
        let peers = self.lookup.peers.clone();
        let page = self.lookup.store.run(move |store| {
            let (links, next) = store.links(from.as_deref(), PAGE)?;
            let (mut lacking, mut held) = (Vec::new(), Vec::new());
            for (digest, link) in links {
                if !placement.is_owner(&digest) || ledger.lock().owed.has(&digest) {
                    continue;
                }
                // What is about to go is as good as gone.
                match store.blob(&digest)?.is_some() && !peers.is_leaving(&digest) {
                    true => held.push((digest, link)),
                    false => lacking.push((digest, link)),
                }
            }
            Ok::<_, store::Error>((lacking, held, next))
        });
        let (lacking, held, next) = page.await?;
        self.lookup.risk.doubt(&self.lookup, held).await;
        match self.bring(lacking).await {
            Brought::All => {
                let mut state = self.lookup.ledger.lock();
                state.scan.advance(fingerprint, next);
                if state.scan.place().is_none() {
                    self.again = Some(now + if state.owed.take_overflow() { AGAIN } else { AGAIN_ANYWAY });
                    tracing::info!(owed = state.owed.len(), "looked through all links for what became this node's share");
                }
                Ok(Some(PAGE_PAUSE))
            }
            Brought::Changed => Ok(Some(SETTLE)),
            Brought::Full => Ok(Some(FULL_PAUSE)),
        }
    }

    /// Crosses out what is not owed any more, or here meanwhile; the rest.
    async fn still_owed(&self, owed: Vec<(Digest, Link)>) -> Result<Vec<(Digest, Link)>, store::Error> {
        let placement = std::sync::Arc::clone(&self.placement.borrow());
        let sorted = self.lookup.store.run(move |store| {
            let (mut left, mut settled) = (Vec::new(), Vec::new());
            for (digest, link) in owed {
                let is_owed = placement.is_owner(&digest) && !store.repositories_linking(&digest, 1)?.is_empty();
                if is_owed { left.push((digest, link)) } else { settled.push(digest) }
            }
            Ok::<_, store::Error>((left, settled))
        });
        let (left, settled) = sorted.await?;
        let mut state = self.lookup.ledger.lock();
        settled.iter().for_each(|digest| state.owed.settled(digest));
        Ok(left)
    }

    /// Fetches blobs at the pace that is set.
    async fn bring(&self, lacking: Vec<(Digest, Link)>) -> Brought {
        let fetches = lacking.into_iter().map(|(digest, link)| async move {
            let begin = self.pace.lock().expect("a pace does not panic").take(link.size, Instant::now());
            tokio::time::sleep_until(begin.into()).await;
            if self.placement.has_changed().unwrap_or(false) && !self.lookup.peers.is_owner(&digest) {
                return (digest, link, None);
            }
            if self.lookup.peers.is_leaving(&digest) {
                return (digest, link, Some(Err(Error::NotFound { digest })));
            }
            (digest, link, Some(self.lookup.ensure_for(digest, link, Class::Repair).await))
        });
        let mut fetches = futures_util::stream::iter(fetches).buffer_unordered(FETCHES);
        let mut brought = Brought::All;
        while let Some((digest, link, fetched)) = fetches.next().await {
            let mut state = self.lookup.ledger.lock();
            match fetched {
                None => brought = Brought::Changed,
                Some(Ok(())) => {
                    state.owed.settled(&digest);
                    self.lookup.metrics.repaired_blobs.inc();
                    self.lookup.metrics.repaired_bytes.inc_by(link.size);
                }
                Some(Err(Error::Store { source, .. })) if source.is_full() => {
                    tracing::info!(%digest, "the disk has no room for what became this node's share: waiting");
                    return Brought::Full;
                }
                Some(Err(error)) => {
                    tracing::debug!(%digest, %error, "a copy has to wait");
                    state.owed.failed(digest, link, Instant::now());
                }
            }
        }
        brought
    }
}
