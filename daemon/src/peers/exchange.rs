//! Record sync, the deeds: moving the messages of `sync` between the store and a stream.
//!
//! Each side pulls over one stream of its own, which stays open: what is written is pushed as it is written. After each
//! exchange the reader says how far it has come ([`Seen`]), so that each side knows what the other lacks.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use larder_protocol::message::{NumberedRecord, Request, Seen, Update};
use larder_protocol::record::Numbered;
use larder_protocol::vector::{Origin, VersionVector};
use tokio::time::Instant;

use super::endpoint::{Receiver, Sender, Stream};
use super::error::{Error, Result};
use super::links::Link;
use super::site::{self, Site};
use super::starts::{self, Telling};
use super::sync::{Gather, Pace, Part, may_wait, next_batch};
use super::{Inner, roles};
use crate::store::{self, Exchange, Store, Told};

/// When a stream whose records were refused is given up, so that the next one asks for them again.
const REFUSED_RETRY: Duration = Duration::from_secs(60);
/// The same, when a node in it had too many.
const QUOTA_RETRY: Duration = Duration::from_secs(3600);
/// When a stream that failed is opened again.
const RETRY: Duration = Duration::from_secs(2);
/// When a peer that sent nonsense is heard again.
const VIOLATION_RETRY: Duration = Duration::from_secs(60);

/// How often it is looked whether a peer that was away has caught up.
const HEARD_LOOK: Duration = Duration::from_millis(100);
/// How often it is looked whether a peer knows more of a former life.
const FORMER_LOOK: Duration = Duration::from_secs(2);
/// The protocol version that has brief requests.
const SINCE_BRIEF: u16 = 2;
/// The protocol version that has snapshots.
const SINCE_SNAPSHOT: u16 = 2;
/// The protocol version that says which lives are mixed.
const SINCE_MIXED: u16 = 2;

/// When a stream that has ended is opened again.
enum Next {
    AtOnce,
    Later,
}

/// Pulls from a peer for as long as the connection lasts, and does not end: its owner drops it.
pub(super) async fn pull(inner: &Inner, link: &Arc<Link>) {
    loop {
        let pulled = pull_once(inner, link).await;
        link.set_heard(false);
        let pause = match pulled {
            Err(error @ Error::Violation { .. }) => {
                tracing::warn!(%error, "records from a peer were not read");
                VIOLATION_RETRY
            }
            // The node is stopping.
            Err(Error::Store(store::Error::Closed)) => return std::future::pending().await,
            Err(error @ Error::Store(_)) => {
                tracing::warn!(%error, "records from a peer were not kept; trying again");
                RETRY
            }
            Ok(Next::AtOnce) => continue,
            Ok(Next::Later) | Err(_) => RETRY,
        };
        tokio::time::sleep(pause).await;
    }
}

async fn pull_once(inner: &Inner, link: &Arc<Link>) -> Result<Next> {
    let (mut lives, own) = (inner.store.lives(), inner.store.origin());
    site::note(inner).await?;
    // F11: of its own records a node asks back what the peer is not sure to have from here.
    let sure = inner.sure(link, &own);
    let mut ours = known(inner, link, &own);
    ours.lower(&own, sure);
    let brief = link.version() >= SINCE_BRIEF && link.may_be_brief();
    let request = if brief { Request::SyncBrief(ours.hash()) } else { Request::Sync(ours.clone()) };
    let mut stream = link.connection.open(&request).await?;
    // Its first message shows whether this node, too, lacks deletes that were forgotten there.
    let mut first = tokio::select! {
        first = stream.receive.message::<Update>() => first?,
        _ = lives.wait_for(|life| *life != own) => return Ok(Next::AtOnce),
    };
    let has_heard_all = !matches!(first, Some(Update::Snapshot(_)));
    if may_wait(inner.identity.node(), link.connection.peer(), has_heard_all) && !may_be_heard(inner, link).await {
        return Ok(Next::AtOnce);
    }
    let (mut gather, mut snapshot) = (Gather::default(), None);
    let (mut give_up, mut told) = (None, ours);
    let (mut over_quota, mut confirmed, mut starts, mut wrong) = (false, HashSet::new(), starts::Told::default(), None::<u64>);
    let mut pace = Pace::new(inner.records.rate);
    loop {
        let next = async {
            match first.take() {
                Some(first) => Ok(Some(first)),
                None => stream.receive.message::<Update>().await,
            }
        };
        // Cut short, the stream is dropped and never read again.
        let next = tokio::select! {
            next = next => next?,
            () = at(give_up) => return Ok(Next::Later),
            // Less is known of the old life now than the peer was told.
            _ = lives.wait_for(|life| *life != own) => return Ok(Next::AtOnce),
            () = former_life(inner, link, &own) => return Ok(Next::AtOnce),
        };
        let Some(update) = next else { return Ok(Next::Later) };
        match &update {
            // ORDER: before it is applied, so that it is not sent back to where it came from.
            Update::Caught(vector) => link.knows(vector),
            Update::Unlike => {
                link.be_whole();
                return Ok(Next::AtOnce);
            }
            // S33: what is not read yet keeps the sender waiting.
            Update::Records(records) => tokio::time::sleep(pace.take(std::time::Instant::now(), records.len())).await,
            Update::Mixed(lives) => starts.add_mixed(lives),
            Update::Snapshot(_) => {}
        }
        let update = roles::admit(inner, link, update).await?;
        let covered = match &update {
            Update::Caught(vector) => Some(vector.clone()),
            Update::Snapshot(horizon) => {
                snapshot = Some((horizon.clone(), Told::default()));
                None
            }
            _ => None,
        };
        let part = gather.take(update).map_err(|error| Error::Violation { peer: link.connection.peer(), what: error.to_string() })?;
        let Some(mut part) = part else { continue };
        starts.add(&inner.store, &part.records)?;
        let returned = part.returned(&own);
        if let Some((_, keys)) = &mut snapshot {
            keys.add(&part.records);
            keys.add(&returned);
        }
        let told_of_own = covered.as_ref().map_or(0, |covered| covered.get(&own));
        let is_more = told_of_own > inner.store.vector().get(&own);
        confirmed.extend(returned.iter().map(|numbered| numbered.sequence));
        if !returned.is_empty() {
            let found = inner.store.run(move |store| store.first_wrong(&returned)).await?;
            wrong = wrong.into_iter().chain(found).min();
        }
        let whole = part.whole;
        // ORDER: when all has come, so that the starts are among it.
        if whole {
            let fork = starts.fork(&inner.store, own, sure_by_starts(inner, link, sure), told_of_own)?;
            if wrong.is_some() || is_more || fork.is_some() {
                inner.begin_life(link, own, fork, wrong).await?;
                return Ok(Next::AtOnce);
            }
            let mixed = starts.mixed(&inner.store, &link.connection.peer(), covered.as_ref().unwrap_or(&told))?;
            if !mixed.is_empty() && inner.store.run(move |store| store.mix(&mixed)).await? {
                // A part of what it wrote has numbers that count as known: it comes whole when the peer has found out and begun another life.
                return Ok(Next::Later);
            }
        }
        if let Some((horizon, keys)) = snapshot.take_if(|_| whole) {
            // What is known counts when what the snapshot lacks is gone.
            part.advance = VersionVector::default();
            apply(inner, link, part, &mut gather).await?;
            if gather.is_holding() {
                tokio::time::sleep(REFUSED_RETRY).await;
                return Ok(Next::Later);
            }
            let covered = covered.expect("an exchange ends with a vector");
            // ORDER: before the snapshot asks by number.
            renumber(inner, link, own, sure, told_of_own, &mut confirmed).await?;
            let agreed = starts.agreed(&inner.store, &covered)?;
            let dropped = inner.store.run(move |store| store.take_snapshot(&keys, &covered, &agreed, &horizon)).await?;
            if site::lacks(inner)? {
                // It takes one whenever it connects.
                tracing::debug!(peer = ?link.connection.peer(), dropped, "took a copy");
            } else {
                tracing::warn!(
                    peer = ?link.connection.peer(), dropped,
                    "this node was away for so long that deletes were forgotten meanwhile: it has taken a copy of what its peer holds; what nobody had \
                     seen is kept"
                );
            }
        } else {
            over_quota |= apply(inner, link, part, &mut gather).await?;
            if whole {
                renumber(inner, link, own, sure, told_of_own, &mut confirmed).await?;
            }
        }
        if gather.is_holding() && give_up.is_none() {
            // S33: a flood is not asked for again and again.
            give_up = Some(Instant::now() + if over_quota { QUOTA_RETRY } else { REFUSED_RETRY });
        }
        if whole {
            inner.looked_at(link, own).await?;
            link.set_heard(!gather.is_holding());
            if !gather.is_holding() {
                site::heard_all(inner, &link.connection.peer()).await?;
            }
            let known = inner.store.vector();
            stream.send.message(&Seen(known.beyond(&told))).await?;
            told.merge(&known);
        }
    }
}

/// Waits until a peer has seen all tombstones that are purged here: before that it may hold what they killed, and takes a copy of this node's
/// state first (F18). `false`: what it sends on this stream is of the time before.
async fn may_be_heard(inner: &Inner, link: &Arc<Link>) -> bool {
    let mut was_behind = false;
    loop {
        let (horizon, known) = (inner.store.horizon(), link.known());
        if known.covers(&horizon) {
            return !was_behind;
        }
        // Until its own request has come, it has said nothing.
        was_behind |= !known.is_empty();
        tokio::time::sleep(HEARD_LOOK).await;
    }
}

/// Waits until a peer says that it knows more of a former life of this node than is known here, and was not asked for it yet. It may believe that
/// this node knows that, because it did before it took another life; so it sends it only to who asks anew.
async fn former_life(inner: &Inner, link: &Link, own: &Origin) {
    loop {
        tokio::time::sleep(FORMER_LOOK).await;
        let (theirs, ours) = (link.known(), inner.store.vector());
        let mut more = theirs.iter().filter(|(origin, upto)| origin.node == own.node && origin != own && *upto > ours.get(origin));
        if more.any(|(origin, upto)| link.ask_again(origin, upto)) {
            return;
        }
    }
}

/// Waits until then; without a time for ever.
async fn at(time: Option<Instant>) {
    match time {
        Some(time) => tokio::time::sleep_until(time).await,
        None => std::future::pending().await,
    }
}

/// What is known, but for what a peer is asked for once more: what it has of earlier lives of this node in which another copy wrote too.
fn known(inner: &Inner, link: &Link, own: &Origin) -> VersionVector {
    let mut known = inner.store.vector();
    if site::lacks(inner).unwrap_or(true) {
        known = site::own_only(known, own);
    }
    if !link.is_checked(own) {
        inner.store.unsure().iter().for_each(|(origin, sure)| known.lower(origin, *sure));
    }
    known
}

/// Up to which own number a peer that tells no list of this life's starts is sure to mean the same. What it has said of later ones than the first start that is not
/// settled may be what another copy of this folder has told others.
fn sure_by_starts(inner: &Inner, link: &Link, sure: u64) -> u64 {
    let first = inner.store.starts().first().copied().filter(|_| link.version() >= SINCE_MIXED);
    first.map_or(sure, |first| sure.min(first))
}

/// At the end of the first exchange of a link: what the peer counts as known of this node's own and has not sent back was superseded there, or has a
/// number that means something else there; it gets another number.
async fn renumber(inner: &Inner, link: &Link, own: Origin, sure: u64, upto: u64, confirmed: &mut HashSet<u64>) -> Result<()> {
    let confirmed = std::mem::take(confirmed);
    if link.is_checked(&own) {
        return Ok(());
    }
    let after = inner.store.starts().last().copied().unwrap_or(sure).max(sure);
    let count = inner.store.run(move |store| store.renumber(own, after, upto, &confirmed)).await?;
    if count > 0 {
        tracing::debug!(peer = ?link.connection.peer(), count, "own records have new numbers: a peer knows theirs and has not sent them back");
    }
    Ok(())
}

/// Applies a part; says whether a node in it has too many records.
async fn apply(inner: &Inner, link: &Link, mut part: Part, gather: &mut Gather) -> Result<bool> {
    if !part.trim(&known(inner, link, &inner.store.origin())) {
        return Ok(false);
    }
    let (origins, whole) = (part.origins(), part.whole);
    let Part { records, advance, .. } = part;
    let wanted = advance.clone();
    let applied = inner.store.run(move |store| store.apply(records, &advance)).await?;
    inner.applied(&applied);
    if applied.refused > 0 {
        // In the middle of an exchange nothing tells whose record was refused: then all who wrote the part are suspect.
        let known = inner.store.vector();
        gather.hold(origins, |origin| !whole || known.get(origin) < wanted.get(origin));
    }
    Ok(applied.over_quota > 0)
}

/// The same for a peer that says only the hash of what it knows.
pub(super) async fn serve_brief(inner: &Arc<Inner>, link: &Arc<Link>, mut stream: Stream, theirs: [u8; 32]) -> Result<()> {
    let ours = inner.store.vector();
    if ours.hash() == theirs {
        return serve(inner, link, stream, ours).await;
    }
    stream.send.message(&Update::Unlike).await?;
    stream.send.finish();
    Ok(())
}

/// Sends a peer what it lacks, now and as it is written, until it ends the stream.
pub(super) async fn serve(inner: &Arc<Inner>, link: &Arc<Link>, stream: Stream, theirs: VersionVector) -> Result<()> {
    link.knows(&theirs);
    let Stream { mut send, receive } = stream;
    let mut changes = inner.store.changes();
    // A task of its own, so that no read is ever cut short and taken up again.
    let mut listener = AbortOnDrop(tokio::spawn(listen(receive, Arc::clone(link))));
    let horizon = inner.store.horizon();
    // Of origins without end (S35) those are kept that mean anything here.
    let of_use = |vector: &VersionVector, ours: &VersionVector| -> VersionVector {
        vector.iter().filter(|(origin, _)| ours.get(origin) > 0 || horizon.get(origin) > 0).collect()
    };
    let (mut sent, mut is_first, mut telling) = (of_use(&theirs, &inner.store.vector()), true, Telling::new(link.connection.peer()));
    drop(theirs);
    let mut copied = None;
    if !sent.covers(&horizon) {
        if link.version() < SINCE_SNAPSHOT {
            let what = "records that are older than what was deleted here and forgotten; upgrade it, and it takes a fresh copy".to_owned();
            return Err(Error::Violation { peer: link.connection.peer(), what });
        }
        send.message(&Update::Snapshot(horizon.clone())).await?;
        // What it says by such numbers is not what others mean by them.
        send.message(&Update::Mixed(inner.store.all_mixed().into_iter().collect())).await?;
        sent = VersionVector::default();
        copied = Some(horizon.clone());
    }
    let (peer, bounds) = (link.connection.peer(), site::of(inner, &link.connection.peer())?);
    loop {
        changes.mark_unchanged();
        // Another policy holds for what was passed over too: the peer asks anew.
        if site::of(inner, &peer)? != bounds {
            return Ok(());
        }
        if !is_first {
            // What it has applied from others need not be sent again. At first it gets exactly what it asks for: it may ask its own back.
            sent.merge(&of_use(&link.known(), &inner.store.vector()));
        }
        // The first exchange has an end even when nothing is sent: now it has heard this node out.
        if is_first || telling.has_news(&inner.store) || !sent.covers(&inner.store.vector()) {
            let (mut from, mut tells) = (sent.clone(), telling);
            let exchange = inner.store.run(move |store| {
                let told = tells.tell(store, &mut from)?;
                Ok::<_, store::Error>((told, store.exchange(&from)?, from, tells))
            });
            let ((mixed, records), exchange, from, tells) = exchange.await?;
            telling = tells;
            let vector = exchange.vector().clone();
            if !mixed.is_empty() && link.version() >= SINCE_MIXED {
                send.message(&Update::Mixed(mixed)).await?;
            }
            if !records.is_empty() {
                send.message(&Update::Records(records.iter().map(NumberedRecord::from).collect())).await?;
            }
            send_records(&inner.store, &mut send, exchange, bounds.clone()).await?;
            // ORDER: after the records. What was purged while they were read is not among them, and it may be that the peer has not seen it, whatever it said in
            // an earlier life: it must not count that as known.
            if !copied.take().as_ref().unwrap_or(&sent).covers(&inner.store.horizon()) {
                return Ok(());
            }
            // Only what is new: everything that is said of a vector is added to what was said.
            send.message(&Update::Caught(vector.beyond(&from))).await?;
            sent.merge(&vector);
        }
        is_first = false;
        tokio::select! {
            changed = changes.changed() => if changed.is_err() { return Ok(()) },
            _ = &mut listener.0 => return Ok(()),
        }
    }
}

async fn send_records(store: &Store, send: &mut Sender, mut exchange: Exchange, mut bounds: Option<Site>) -> Result<()> {
    loop {
        let (rest, still, batch) = store
            .run(move |_| {
                let may_hear = |bounds: &Option<Site>, record: &store::Result<Numbered>| match (bounds, record) {
                    (Some(site), Ok(numbered)) => site.may_hear(&numbered.record.key),
                    (None, _) | (_, Err(_)) => true,
                };
                let batch = next_batch(&mut (&mut exchange).filter(|record| may_hear(&bounds, record)));
                (exchange, bounds, batch)
            })
            .await;
        (exchange, bounds) = (rest, still);
        let batch = batch?;
        if batch.is_empty() {
            return Ok(());
        }
        send.message(&Update::Records(batch)).await?;
    }
}

/// Takes note of how far the peer has come, until it ends the stream.
async fn listen(mut receive: Receiver, link: Arc<Link>) {
    while let Ok(Some((Seen(vector), _room))) = receive.message_in_turn(&link.room).await {
        link.knows(&vector);
    }
}

/// A task that ends with its owner.
struct AbortOnDrop(tokio::task::JoinHandle<()>);

impl Drop for AbortOnDrop {
    fn drop(&mut self) {
        self.0.abort();
    }
}
