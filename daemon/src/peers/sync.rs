//! Record sync: their vector and ours make the records to send.
//!
//! Each side pulls over one stream of its own: it sends its vector, gets what it lacks, and the stream stays open for what is
//! new. Records are gathered until `Caught` says that an exchange is whole, and applied in one batch together with its
//! vector: so a tag appears together with its manifest and links. Only an exchange too large to gather is applied in
//! parts, in the order of sequences, and its vector counts at the end.
//!
//! A stream that ends early costs nothing: the next one begins with the vector as it is.

use std::sync::Arc;

use larder_protocol::message::{NumberedRecord, Request, Seen, Update};
use larder_protocol::record::Numbered;
use larder_protocol::vector::VersionVector;

use super::Inner;
use super::endpoint::{Receiver, Sender, Stream};
use super::error::{Error, Result};
use super::links::Link;
use crate::store::{Exchange, Store};

/// Records in one message.
const MESSAGE_RECORDS: usize = 500;
/// Bytes of records in one message, but for a single larger one.
const MESSAGE_BYTES: usize = 512 << 10;
/// Records that are gathered before a part of an exchange is applied.
const GATHER_RECORDS: usize = 10_000;
/// Their bytes.
const GATHER_BYTES: usize = 32 << 20;

/// Pulls from a peer until the connection breaks.
pub(super) async fn pull(inner: &Inner, link: &Arc<Link>) -> Result<()> {
    let mut stream = link.connection.open(&Request::Sync(inner.store.vector())).await?;
    let (mut gathered, mut bytes) = (Vec::new(), 0);
    while let Some(update) = stream.receive.message::<Update>().await? {
        match update {
            Update::Records(records) => {
                for record in records {
                    bytes += size(&record);
                    gathered
                        .push(record.parse().map_err(|error| Error::Violation { peer: link.connection.peer(), what: error.to_string() })?);
                }
                if gathered.len() >= GATHER_RECORDS || bytes >= GATHER_BYTES {
                    apply(inner, std::mem::take(&mut gathered), VersionVector::default()).await?;
                    bytes = 0;
                }
            }
            Update::Caught(vector) => {
                link.knows(&vector);
                apply(inner, std::mem::take(&mut gathered), vector).await?;
                bytes = 0;
                stream.send.message(&Seen(inner.store.vector())).await?;
            }
        }
    }
    Ok(())
}

async fn apply(inner: &Inner, records: Vec<Numbered>, vector: VersionVector) -> Result<()> {
    if records.is_empty() && inner.store.vector().covers(&vector) {
        return Ok(());
    }
    let applied = inner.store.run(move |store| store.apply(records, &vector)).await?;
    inner.metrics.merged_records.inc_by(applied.changed.len() as u64);
    inner.metrics.refused_records.inc_by(applied.refused as u64);
    Ok(())
}

/// Sends a peer what it lacks, now and as it is written.
pub(super) async fn serve(inner: &Inner, link: &Arc<Link>, stream: Stream, theirs: VersionVector) -> Result<()> {
    link.knows(&theirs);
    let Stream { mut send, receive } = stream;
    let mut changes = inner.store.changes();
    let listener = tokio::spawn(listen(receive, Arc::clone(link)));
    let _ended = AbortOnDrop(listener);
    // What it asked with, and not what it may have learnt since over another stream: this exchange is against that.
    let mut sent = theirs;
    loop {
        changes.mark_unchanged();
        sent.merge(&link.known());
        if !sent.covers(&inner.store.vector()) {
            let from = sent.clone();
            let exchange = inner.store.run(move |store| store.exchange(&from)).await?;
            let vector = exchange.vector().clone();
            send_records(&inner.store, &mut send, exchange).await?;
            send.message(&Update::Caught(vector.clone())).await?;
            sent.merge(&vector);
        }
        if changes.changed().await.is_err() {
            return Ok(());
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

/// The next records, as many as fit in one message.
fn next_batch(records: &mut impl Iterator<Item = crate::store::Result<Numbered>>) -> crate::store::Result<Vec<NumberedRecord>> {
    let (mut batch, mut bytes) = (Vec::new(), 0);
    while batch.len() < MESSAGE_RECORDS && bytes < MESSAGE_BYTES {
        let Some(numbered) = records.next() else { break };
        let record = NumberedRecord::from(&numbered?);
        bytes += size(&record);
        batch.push(record);
    }
    Ok(batch)
}

/// Takes note of how far the peer has come.
async fn listen(mut receive: Receiver, link: Arc<Link>) {
    while let Ok(Some(Seen(vector))) = receive.message().await {
        link.knows(&vector);
    }
}

/// Roughly the bytes that a record takes in memory.
fn size(record: &NumberedRecord) -> usize {
    128 + record.record.key.len() + record.record.value.as_ref().map_or(0, Vec::len)
}

/// A task that ends with its owner.
struct AbortOnDrop(tokio::task::JoinHandle<()>);

impl Drop for AbortOnDrop {
    fn drop(&mut self) {
        self.0.abort();
    }
}

#[cfg(test)]
mod tests {
    use larder_protocol::record::{Key, Record, Value};
    use larder_protocol::stamp::{HybridTime, NodeId, Stamp};
    use larder_protocol::vector::Origin;

    use super::*;

    fn record(sequence: u64, size: usize) -> Numbered {
        let origin = Origin { node: NodeId([1; 32]), incarnation: 1 };
        let stamp = Stamp { time: HybridTime(sequence), node: origin.node };
        let key = Key::Unknown { kind: 900, key: sequence.to_be_bytes().to_vec() };
        Numbered { origin, sequence, record: Record { key, value: Some(Value::Unknown(vec![0; size])), stamp } }
    }

    #[test]
    fn messages_are_cut_by_number_and_by_size_and_lose_nothing() {
        // Many small ones; then one that is larger than a message by itself.
        let mut records = (1..=1200).map(|sequence| Ok(record(sequence, 10))).chain([Ok(record(1201, 4 << 20)), Ok(record(1202, 1))]);
        let mut sequences = Vec::new();
        loop {
            let batch = next_batch(&mut records).expect("no disk is involved");
            if batch.is_empty() {
                break;
            }
            assert!(batch.len() <= MESSAGE_RECORDS);
            assert!(batch.iter().rev().skip(1).map(size).sum::<usize>() < MESSAGE_BYTES);
            sequences.extend(batch.iter().map(|record| record.sequence));
        }
        assert_eq!(sequences, (1..=1202).collect::<Vec<_>>());
    }
}
