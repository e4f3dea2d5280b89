//! Record sync, the deeds: moving the messages of `sync` between the store and a stream.
//!
//! Each side pulls over one stream of its own, which stays open: what is written is pushed as it is written. After each
//! exchange the reader says how far it has come ([`Seen`]), so that each side knows what the other lacks.

use std::sync::Arc;
use std::time::Duration;

use larder_protocol::message::{Request, Seen, Update};
use larder_protocol::vector::VersionVector;
use tokio::time::Instant;

use super::Inner;
use super::endpoint::{Receiver, Sender, Stream};
use super::error::{Error, Result};
use super::links::Link;
use super::roles;
use super::sync::{Gather, Part, next_batch};
use crate::store::{self, Exchange, Store};

/// When a stream whose records were refused is given up, so that the next one asks for them again.
const REFUSED_RETRY: Duration = Duration::from_secs(60);
/// When a stream that failed is opened again.
const RETRY: Duration = Duration::from_secs(2);
/// When a peer that sent nonsense is heard again.
const VIOLATION_RETRY: Duration = Duration::from_secs(60);

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
            Ok(()) | Err(_) => RETRY,
        };
        tokio::time::sleep(pause).await;
    }
}

async fn pull_once(inner: &Inner, link: &Arc<Link>) -> Result<()> {
    let mut stream = link.connection.open(&Request::Sync(inner.store.vector())).await?;
    let mut gather = Gather::default();
    let mut give_up = None;
    loop {
        let next = stream.receive.message::<Update>();
        let next = match give_up {
            None => next.await?,
            // Cut short, the stream is dropped and never read again.
            Some(at) => match tokio::time::timeout_at(at, next).await {
                Ok(next) => next?,
                Err(_) => return Ok(()),
            },
        };
        let Some(update) = next else { return Ok(()) };
        if let Update::Caught(vector) = &update {
            // ORDER: before it is applied, so that it is not sent back to where it came from.
            link.knows(vector);
        }
        let update = roles::admit(inner, link, update).await?;
        let part = gather.take(update).map_err(|error| Error::Violation { peer: link.connection.peer(), what: error.to_string() })?;
        let Some(part) = part else { continue };
        let whole = part.whole;
        apply(inner, part, &mut gather).await?;
        if gather.is_holding() && give_up.is_none() {
            give_up = Some(Instant::now() + REFUSED_RETRY);
        }
        if whole {
            link.set_heard(!gather.is_holding());
            stream.send.message(&Seen(inner.store.vector())).await?;
        }
    }
}

async fn apply(inner: &Inner, mut part: Part, gather: &mut Gather) -> Result<()> {
    if !part.trim(&inner.store.vector()) {
        return Ok(());
    }
    let (origins, whole) = (part.origins(), part.whole);
    let Part { records, advance, .. } = part;
    let wanted = advance.clone();
    let applied = inner.store.run(move |store| store.apply(records, &advance)).await?;
    inner.metrics.merged_records.inc_by(applied.changed.len() as u64);
    inner.metrics.refused_records.inc_by(applied.refused as u64);
    if applied.refused > 0 {
        // In the middle of an exchange nothing tells whose record was refused: then all who wrote the part are suspect.
        let known = inner.store.vector();
        gather.hold(origins, |origin| !whole || known.get(origin) < wanted.get(origin));
    }
    Ok(())
}

/// Sends a peer what it lacks, now and as it is written, until it ends the stream.
pub(super) async fn serve(inner: &Inner, link: &Arc<Link>, stream: Stream, theirs: VersionVector) -> Result<()> {
    link.knows(&theirs);
    let Stream { mut send, receive } = stream;
    let mut changes = inner.store.changes();
    // A task of its own, so that no read is ever cut short and taken up again.
    let mut listener = AbortOnDrop(tokio::spawn(listen(receive, Arc::clone(link))));
    let mut sent = theirs;
    loop {
        changes.mark_unchanged();
        // What it has applied from others need not be sent again.
        sent.merge(&link.known());
        if !sent.covers(&inner.store.vector()) {
            let from = sent.clone();
            let exchange = inner.store.run(move |store| store.exchange(&from)).await?;
            let vector = exchange.vector().clone();
            send_records(&inner.store, &mut send, exchange).await?;
            send.message(&Update::Caught(vector.clone())).await?;
            sent.merge(&vector);
        }
        tokio::select! {
            changed = changes.changed() => if changed.is_err() { return Ok(()) },
            _ = &mut listener.0 => return Ok(()),
        }
    }
}

async fn send_records(store: &Store, send: &mut Sender, mut exchange: Exchange) -> Result<()> {
    loop {
        let (rest, batch) = store
            .run(move |_| {
                let batch = next_batch(&mut exchange);
                (exchange, batch)
            })
            .await;
        exchange = rest;
        let batch = batch?;
        if batch.is_empty() {
            return Ok(());
        }
        send.message(&Update::Records(batch)).await?;
    }
}

/// Takes note of how far the peer has come, until it ends the stream.
async fn listen(mut receive: Receiver, link: Arc<Link>) {
    while let Ok(Some(Seen(vector))) = receive.message().await {
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
