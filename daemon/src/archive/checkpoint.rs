//! Checkpoints: the state that all packs so far add up to, written so that a restore reads few of them.
//!
//! What waits for a pack still is not in it (see `held`).
//!
//! One is due when the packs since the last one are many or that one is old; each archiver waits a little longer than the one before it in an order that
//! all agree on, and looks into the bucket before it writes: so one of them does, and nobody needs to say so. It goes through a
//! file without a name on this disk, since its checksum must be known before it is sent.
//!
//! CRASH: the file has no name, and the object stands or does not: the next one is another.

use std::collections::BTreeMap;
use std::fs::{File, OpenOptions};
use std::io::{BufWriter, Write};
use std::sync::Arc;
use std::time::Duration;

use larder_protocol::checkpoint::{Directory, FOOTER_SIZE, Footer, InvalidCheckpoint, Scope, Writer};
use larder_protocol::digest::Digest;
use larder_protocol::record::{Key, Numbered, Value};
use larder_protocol::stamp::NodeId;
use larder_protocol::vector::Origin;
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::failpoint;
use crate::store::Commit;

use super::body::Body;
use super::bucket::{self, Bucket, Listed, Object};
use super::held::Held;
use super::writer::Turn;
use super::{Error, Inner, cluster, keys, queue, tail, writer};

/// Bytes of a checkpoint's end that are asked for at first: footer and directory, nearly always.
const SUFFIX_SIZE: u64 = 256 << 10;
/// Pages that are decompressed and read while others come.
const PAGES_AHEAD: usize = 2;
/// Checkpoints looked at in one restore, newest first.
pub(super) const TRIED_MAX: usize = 100;

/// What is remembered of the last checkpoint.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Last {
    /// When it was written.
    created_ms: u64,
    /// Its bytes.
    #[serde(default)]
    pub size: u64,
}

/// The setting that holds the [`Last`] of a bucket.
pub(super) fn last_setting(bucket: &str) -> String {
    format!("archive/checkpoint/{bucket}")
}

/// When a checkpoint is due.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Due {
    /// Packs since the last one.
    pub packs: u64,
    /// Its age; or that of the first pack, when there is none.
    pub age: Duration,
}

impl Due {
    /// Whether so many packs since then, the first of them written at `since_ms`, call for one by the archiver that is `rank` in the order.
    fn is_over(&self, packs: u64, since_ms: u64, now_ms: u64, rank: u64) -> bool {
        let patience = |full: u64| full.saturating_add(full / 10 * rank);
        let age = u64::try_from(self.age.as_millis()).unwrap_or(u64::MAX);
        packs >= patience(self.packs).max(1 + rank) || (packs > 0 && now_ms.saturating_sub(since_ms) >= patience(age))
    }
}

/// A checkpoint whose end was read and checked.
#[derive(Debug)]
pub(super) struct Opened {
    pub listed: Listed,
    pub footer: Footer,
    pub directory: Directory,
}

impl Inner {
    /// Writes a checkpoint when one is due; its key then.
    ///
    /// # Errors
    /// The bucket's or the store's refusal: it stays due.
    pub(super) async fn checkpoint_when_due(self: &Arc<Self>, bucket: &Arc<dyn Bucket>, turn: &mut Turn) -> Result<Option<String>, Error> {
        let setting = last_setting(bucket.id());
        let (node, wanted) = (self.store.origin().node, setting.clone());
        let gone = self.gone();
        let (last, archivers) = self
            .store
            .run(move |store| {
                let last = store.setting(&wanted)?.and_then(|bytes| serde_json::from_slice::<Last>(&bytes).ok()).unwrap_or_default();
                Ok::<_, Error>((last, queue::archivers(store, &*gone)?))
            })
            .await?;
        let rank = rank("checkpoint", &node, archivers);
        let tail = self.packs_since(bucket.id(), last).await?;
        let now = writer::now_ms();
        if !self.settings.checkpoint.is_over(tail.packs, tail.since(last), now, rank) {
            return Ok(None);
        }
        // Another may have written one: the listing says so, at the price of a part of a put.
        let newest = list(&**bucket, last.created_ms).await?.pop().map(|(created_ms, listed)| Last { created_ms, size: listed.size });
        if let Some(newest) = newest.filter(|newest| *newest > last) {
            self.save_last(&setting, newest).await?;
            let tail = self.packs_since(bucket.id(), newest).await?;
            if !self.settings.checkpoint.is_over(tail.packs, tail.since(newest), now, rank) {
                return Ok(None);
            }
        }
        let last = newest.unwrap_or(last);
        self.vouch(bucket, turn, last.created_ms).await?;
        self.write_checkpoint(bucket, last).await.map(Some)
    }

    /// Writes a checkpoint now.
    ///
    /// # Errors
    /// The bucket's or the store's refusal.
    pub(super) async fn write_checkpoint(self: &Arc<Self>, bucket: &Arc<dyn Bucket>, last: Last) -> Result<String, Error> {
        // ORDER: later than all before, so that the newest is the last in order of keys even when a clock went back.
        let created_ms = writer::now_ms().max(last.created_ms + 1);
        let (signing_key, sign) = (self.signer)();
        let (id, prefix, folder) = (bucket.id().to_owned(), bucket.prefix().to_owned(), self.settings.scratch.clone());
        let (file, written) = self
            .store
            .run(move |store| {
                let path = folder.join(Uuid::new_v4().to_string());
                let failed = |source| Error::Io { doing: "write a checkpoint through", path: path.clone(), source };
                let file = OpenOptions::new().read(true).write(true).create_new(true).open(&path).map_err(failed)?;
                std::fs::remove_file(&path).map_err(failed)?;
                let mut out = Writer::new(BufWriter::new(&file));
                let mut packs = BTreeMap::new();
                let mut held = Held::new(store, &id, writer::now_ms());
                let seen = store.fold(|numbered: Numbered| {
                    if let (Key::Archived(pack), Some(Value::Archived(archived))) = (&numbered.record.key, &numbered.record.value)
                        && archived.bucket == id
                    {
                        let last = packs.entry(pack.origin).or_insert(0);
                        *last = pack.sequence.max(*last);
                    }
                    held.pass(numbered)?.map_or(Ok(()), |told| out.push(&told).map_err(failed))
                })?;
                let seen = held.known(&seen);
                let company = cluster::company(store, &id)?;
                let scope = Scope { bucket: id, prefix, seen, horizon: store.horizon(), packs, company };
                let written = out
                    .finish(&scope, store.cluster(), (Origin { node: signing_key, ..store.origin() }, created_ms), |bytes| sign(bytes))
                    .map_err(failed)?;
                (&file).flush().map_err(failed)?;
                Ok::<_, Error>((file, written))
            })
            .await?;
        let key = keys::checkpoint(bucket.prefix(), created_ms, &signing_key) + bucket.ending();
        let failed = |source: std::io::Error| Error::Bucket {
            doing: "put",
            key: key.clone(),
            bucket: bucket.id().to_owned(),
            detail: source.to_string(),
        };
        failpoint::pass("archive/checkpoint/before-put").map_err(failed)?;
        let body = Body::file(Arc::<File>::new(file), written.footer.size);
        bucket.put_once(Object { key: key.clone(), crc64: written.crc64, body }).await?;
        failpoint::pass("archive/checkpoint/put-not-noted").map_err(failed)?;
        self.save_last(&last_setting(bucket.id()), Last { created_ms, size: written.footer.size }).await?;
        tracing::info!(key, size = written.footer.size, records = written.footer.record_count, "wrote a checkpoint");
        Ok(key)
    }

    /// A checkpoint whether it is due or not: what `larder archive flush --checkpoint` asks for.
    ///
    /// # Errors
    /// `Off`; the bucket's or the store's refusal.
    pub(super) async fn checkpoint_now(self: &Arc<Self>) -> Result<String, Error> {
        let bucket = self.bucket.clone().ok_or(Error::Off)?;
        let mut turn = self.turn.lock().await;
        self.check_bucket(&bucket, &mut turn.checked).await?;
        let last = self.last_checkpoint(&bucket).await?;
        self.vouch(&bucket, &mut turn, last.created_ms).await?;
        self.write_checkpoint(&bucket, last).await
    }

    /// What is remembered of the last one.
    pub(super) async fn last_checkpoint(&self, bucket: &Arc<dyn Bucket>) -> Result<Last, Error> {
        let setting = last_setting(bucket.id());
        let last = self.store.run(move |store| store.setting(&setting)).await?;
        Ok(last.and_then(|bytes| serde_json::from_slice(&bytes).ok()).unwrap_or_default())
    }

    async fn save_last(&self, setting: &str, last: Last) -> Result<(), Error> {
        let row = serde_json::to_vec(&last).expect("numbers are JSON");
        let settings = vec![(setting.to_owned(), Some(row))];
        self.store.run(move |store| store.commit(Commit { records: Vec::new(), settings })).await?;
        Ok(())
    }

    async fn packs_since(&self, bucket: &str, last: Last) -> Result<Tail, Error> {
        let mut tail = Tail::default();
        self.each_pack(|_, archived| {
            if archived.bucket == bucket && archived.created_ms > last.created_ms {
                tail.packs += 1;
                tail.first_ms = Some(tail.first_ms.map_or(archived.created_ms, |first| first.min(archived.created_ms)));
            }
        })
        .await?;
        Ok(tail)
    }
}

/// The packs behind a checkpoint.
#[derive(Clone, Copy, Debug, Default)]
struct Tail {
    packs: u64,
    first_ms: Option<u64>,
}

impl Tail {
    /// Since when a checkpoint is owed.
    fn since(&self, last: Last) -> u64 {
        if last.created_ms > 0 { last.created_ms } else { self.first_ms.unwrap_or(u64::MAX) }
    }
}

impl PartialOrd for Last {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        self.created_ms.partial_cmp(&other.created_ms)
    }
}

/// This node's place in the order in which archivers do what one of them has to.
pub(super) fn rank(what: &str, node: &NodeId, archivers: Vec<NodeId>) -> u64 {
    let weight = |node: &NodeId| Digest::sha256(&[what.as_bytes(), &node.0].concat());
    let own = weight(node);
    archivers.iter().filter(|other| weight(other) > own).count() as u64
}

/// The checkpoints of a bucket that were written at `from_ms` or later, oldest first.
pub(super) async fn list(bucket: &dyn Bucket, from_ms: u64) -> Result<Vec<(u64, Listed)>, Error> {
    let prefix = keys::checkpoints(bucket.prefix());
    let (mut found, mut after) = (Vec::new(), (from_ms > 0).then(|| keys::checkpoint_from(bucket.prefix(), from_ms)));
    loop {
        let page = bucket.list(&prefix, after.as_deref()).await?;
        after = page.objects.last().map(|listed| listed.key.clone());
        let parsed = |listed: Listed| keys::parse_checkpoint(bucket.prefix(), &listed.key).map(|(created_ms, _)| (created_ms, listed));
        found.extend(page.objects.into_iter().filter_map(parsed));
        if !page.more || after.is_none() || found.len() > tail::LISTED_MAX {
            found.sort_by_key(|(created_ms, _)| *created_ms);
            return Ok(found);
        }
    }
}

/// Reads and checks the end of a checkpoint: one request, or two when it is a very large one.
///
/// # Errors
/// `Checkpoint` when it can't be used; the bucket's refusal.
pub(super) async fn open(bucket: &dyn Bucket, listed: Listed) -> Result<Opened, Error> {
    let Listed { key, size, .. } = listed.clone();
    let invalid = |source| Error::Checkpoint { key: key.clone(), source: Box::new(source) };
    if size < FOOTER_SIZE {
        return Err(invalid(InvalidCheckpoint::NoFooter));
    }
    let start = size.saturating_sub(SUFFIX_SIZE);
    let suffix = bucket::get_whole(bucket, &key, start..size).await?;
    let footer = Footer::parse(&suffix[suffix.len() - FOOTER_SIZE as usize..], size, tail::verify).map_err(invalid)?;
    let named = keys::parse_checkpoint(bucket.prefix(), &key);
    if named != Some((footer.created_ms, footer.writer.node)) {
        return Err(invalid(InvalidCheckpoint::Rule { what: "another time or writer than its name" }));
    }
    let (from, to) = (footer.directory.offset, footer.directory.offset + footer.directory.length);
    let bytes = if from >= start {
        suffix.slice((from - start) as usize..(to - start) as usize)
    } else {
        bucket::get_whole(bucket, &key, from..to).await?
    };
    let directory = Directory::parse(&footer, &bytes).map_err(invalid)?;
    Ok(Opened { listed, footer, directory })
}

/// Reads all records of a checkpoint by one request, and hands them to `take` a page at a time, checked.
///
/// # Errors
/// `Checkpoint` at the first page that is not as it was signed; the bucket's refusal; those of `take`.
pub(super) async fn read<F>(bucket: &dyn Bucket, opened: &Opened, mut take: impl FnMut(Vec<Numbered>) -> F) -> Result<(), Error>
where
    F: Future<Output = Result<(), Error>>,
{
    use futures_util::stream::{self, StreamExt};
    let key = &opened.listed.key;
    let end = opened.footer.directory.offset;
    if end == 0 {
        return Ok(());
    }
    let chunks = bucket.get_range(key, 0..end).await?;
    let reader = PageReader { chunks, rest: bytes::BytesMut::new(), key: key.clone(), bucket: bucket.id().to_owned() };
    let pages = stream::try_unfold((reader, opened.directory.pages.clone().into_iter()), |(mut reader, mut pages)| async move {
        let Some(page) = pages.next() else { return Ok::<_, Error>(None) };
        let bytes = reader.next(page.section.length as usize).await?;
        Ok(Some(((page, bytes), (reader, pages))))
    });
    let parsed = pages.map(|page| async move {
        let (page, bytes) = page?;
        let parsed = tokio::task::spawn_blocking(move || page.parse(&bytes)).await.expect("reading a page does not panic");
        parsed.map_err(|source| Error::Checkpoint { key: key.clone(), source: Box::new(source) })
    });
    let mut parsed = std::pin::pin!(parsed.buffered(PAGES_AHEAD));
    while let Some(records) = parsed.next().await {
        take(records?).await?;
    }
    Ok(())
}

/// Cuts what comes into pages.
struct PageReader {
    chunks: bucket::Chunks,
    rest: bytes::BytesMut,
    key: String,
    bucket: String,
}

impl PageReader {
    /// The next `length` bytes; the directory was checked, so that no page is larger than a page may be.
    async fn next(&mut self, length: usize) -> Result<bytes::Bytes, Error> {
        use futures_util::StreamExt;
        while self.rest.len() < length {
            let Some(chunk) = self.chunks.next().await else {
                let detail = format!("the answer ended {} bytes too early", length - self.rest.len());
                return Err(Error::Bucket { doing: "get", key: self.key.clone(), bucket: self.bucket.clone(), detail });
            };
            self.rest.extend_from_slice(&chunk?);
        }
        Ok(self.rest.split_to(length).freeze())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_checkpoint_is_due_by_number_or_age_and_one_archiver_comes_first() {
        let due = Due { packs: 500, age: Duration::from_secs(7 * 86_400) };
        let week = 7 * 86_400_000;
        assert!(due.is_over(500, 0, 1, 0) && !due.is_over(499, 0, 1, 0));
        assert!(due.is_over(1, 0, week, 0) && !due.is_over(1, 0, week - 1, 0));
        assert!(!due.is_over(0, 0, u64::MAX, 0), "nothing new, nothing to write");
        assert!(!due.is_over(549, 0, week + 1000, 1) && due.is_over(550, 0, 1, 1));
        let nodes: Vec<NodeId> = (1..=5).map(|name| NodeId([name; 32])).collect();
        let mut ranks: Vec<u64> = nodes.iter().map(|node| rank("checkpoint", node, nodes.clone())).collect();
        ranks.sort_unstable();
        assert_eq!(ranks, [0, 1, 2, 3, 4]);
    }
}
