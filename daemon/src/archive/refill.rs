//! The blobs of a restored node, from the bucket onto this disk, while it serves: those of the newest tags first, then the rest.
//!
//! Blobs that lie side by side in a pack come by one ranged GET together. What is here already is not asked for, so a restore that
//! was cut off goes on where it was: at most what was under way is had again. What can't be had is counted, and named as far as the list goes.
//!
//! When the disk has no room for more it ends, and says so: what is left comes on demand.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap, HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::stream::StreamExt;
use larder_protocol::digest::Digest;
use larder_protocol::name::{RepositoryName, Tag};
use larder_protocol::record::{Archived, Link, PackId};
use larder_protocol::stamp::HybridTime;
use serde::{Deserialize, Serialize};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::store::{self, Commit, Store};

use super::bucket::Bucket;
use super::thawing::ThawProgress;
use super::{Error, Inner, keys};

/// The setting that says that blobs are still to come.
pub(super) const FILLING: &str = "archive/filling";
/// The setting that holds what came of it.
const FILLED: &str = "archive/filled";
/// Tags that are put in order; beyond them, blobs come in the order of their repositories.
const TAGS_ORDERED_MAX: usize = 500_000;
/// Most bytes and blobs that are planned at a time.
const PLANNED_BYTES: u64 = 1 << 30;
const PLANNED_BLOBS: usize = 4_000;
/// Most bytes of one request, unless one blob is larger.
const RUN_BYTES: u64 = 256 << 20;
/// Bytes that nobody wants and that are read nevertheless, to save a request: headers and padding, and small blobs.
const HOLE_MAX: u64 = 64 << 10;
/// Requests at a time.
const RUNS: usize = 4;
/// Blobs of a run that are written while the next bytes come.
const COMMITS: usize = 32;
/// Names of blobs that could not be had.
const NAMED_MAX: usize = 1_000;
/// Most bytes that are handed to the store at a time.
const PIECE_SIZE_MAX: usize = 1 << 20;
/// The wait after a request that failed, which was tried again already.
const RETRY_AFTER: Duration = Duration::from_secs(30);
/// Links that are looked at together when the rest is had.
const LINKS_PAGE: usize = 4_000;

/// How the filling stands.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Progress {
    /// `none`, `running`, `done`, `full` (no room for more) or `failed`.
    pub state: String,
    /// Blobs that have come.
    pub blobs: u64,
    /// Their bytes.
    pub bytes: u64,
    /// Bytes of all blobs in the bucket's packs that the records tell of: about what will have come at the end.
    pub bytes_total: u64,
    /// Blobs whose packs must thaw first, which somebody has to ask for.
    #[serde(default)]
    pub frozen: u64,
    /// Their bytes.
    #[serde(default)]
    pub frozen_bytes: u64,
    /// How far that is, where it was asked for.
    #[serde(default, skip_deserializing)]
    pub thaw: Option<ThawProgress>,
    /// Blobs that could not be had.
    pub lost: u64,
    /// Some of them, or all.
    pub lost_blobs: Vec<Digest>,
}

/// A blob that is wanted, and where it lies.
#[derive(Clone, Copy, Debug)]
struct Wanted {
    digest: Digest,
    link: Link,
    offset: u64,
}

/// Blobs of one pack that come by one request.
#[derive(Debug)]
struct Run {
    key: String,
    blobs: Vec<Wanted>,
}

/// What came of a pack that has thawed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Filled {
    /// All that can be had is here.
    All,
    /// This disk takes no more.
    NoRoom,
}

/// Why a run ended early.
enum Ended {
    Full,
    Failed(Error),
}

impl Inner {
    /// Fills when there is something to fill, now and whenever a restore asks for it.
    pub(super) async fn refill(self: Arc<Self>, stop: CancellationToken) {
        loop {
            let is_wanted = self.store.run(|store| store.setting(FILLING)).await;
            let mut pause = Duration::MAX;
            if matches!(is_wanted, Ok(Some(_))) {
                tokio::select! {
                    () = stop.cancelled() => return,
                    is_done = self.fill_all() => if !is_done { pause = RETRY_AFTER },
                }
            }
            tokio::select! {
                () = stop.cancelled() => return,
                () = self.refill.notified() => {}
                () = tokio::time::sleep(pause) => {}
            }
        }
    }

    /// How it stands.
    pub(super) async fn progress(&self) -> Result<Progress, Error> {
        Ok(Progress { thaw: self.thaws.progress(), ..self.filled().await? })
    }

    async fn filled(&self) -> Result<Progress, Error> {
        let now = self.filling.lock().expect("never held across a panic").clone();
        if !now.state.is_empty() {
            return Ok(now);
        }
        let (filling, filled) = self.store.run(|store| Ok::<_, Error>((store.setting(FILLING)?, store.setting(FILLED)?))).await?;
        if filling.is_some() {
            return Ok(Progress { state: "running".to_owned(), ..Progress::default() });
        }
        let saved = filled.and_then(|bytes| serde_json::from_slice(&bytes).ok());
        Ok(saved.unwrap_or_else(|| Progress { state: "none".to_owned(), ..Progress::default() }))
    }

    /// `false`: it must be tried again.
    pub(super) async fn fill_all(self: &Arc<Self>) -> bool {
        let mut total = 0u64;
        let counted =
            self.each_pack(|_, archived| total = archived.contents.iter().fold(total, |sum, located| sum.saturating_add(located.length)));
        if let Err(error) = counted.await {
            tracing::warn!(%error, "could not read the packs that blobs are restored from; trying again in {RETRY_AFTER:?}");
            return false;
        }
        *self.filling.lock().expect("never held across a panic") =
            Progress { state: "running".to_owned(), bytes_total: total, ..Progress::default() };
        let ended = self.fill_in_order().await;
        let state = match &ended {
            Ok(()) => "done",
            Err(Ended::Full) => "full",
            Err(Ended::Failed(_)) => "failed",
        };
        let progress = {
            let mut filling = self.filling.lock().expect("never held across a panic");
            state.clone_into(&mut filling.state);
            filling.clone()
        };
        match &ended {
            Ok(()) => tracing::info!(
                blobs = progress.blobs,
                bytes = progress.bytes,
                lost = progress.lost,
                "the blobs of the archive are on this disk"
            ),
            Err(Ended::Full) => tracing::info!("no room for more blobs of the archive; what is left comes on demand"),
            Err(Ended::Failed(error)) => {
                tracing::warn!(%error, "blobs of the archive are not on this disk; they come on demand, and the rest in {RETRY_AFTER:?}");
                return false;
            }
        }
        let settings =
            vec![(FILLING.to_owned(), None), (FILLED.to_owned(), Some(serde_json::to_vec(&progress).expect("numbers are JSON")))];
        if let Err(error) = self.store.run(move |store| store.commit(Commit { records: Vec::new(), settings })).await {
            tracing::warn!(%error, "that the blobs of the archive have come could not be written down; a restart looks again");
        }
        true
    }

    async fn fill_in_order(self: &Arc<Self>) -> Result<(), Ended> {
        let failed = |error: store::Error| Ended::Failed(error.into());
        let mut done = HashSet::new();
        let mut tags = self.store.run(newest_tags).await.map_err(failed)?.into_iter().peekable();
        while tags.peek().is_some() {
            let (rest, wanted, back) = self
                .store
                .run(move |store| {
                    let mut wanted = Wants::default();
                    while !wanted.is_enough()
                        && let Some((_, repository, tag)) = tags.next()
                    {
                        let Some(info) = store.tag(&repository, &tag)? else { continue };
                        for (digest, link) in store.closure(&repository, &info.digest)? {
                            wanted.add(store, digest, link, &mut done)?;
                        }
                    }
                    Ok::<_, store::Error>((tags, wanted, done))
                })
                .await
                .map_err(failed)?;
            (tags, done) = (rest, back);
            self.fill_some(wanted).await?;
        }
        let mut from: Option<Vec<u8>> = None;
        loop {
            let (wanted, next, back) = self
                .store
                .run(move |store| {
                    let mut wanted = Wants::default();
                    let (links, next) = store.links(from.as_deref(), LINKS_PAGE)?;
                    for (digest, link) in links {
                        wanted.add(store, digest, link, &mut done)?;
                    }
                    Ok::<_, store::Error>((wanted, next, done))
                })
                .await
                .map_err(failed)?;
            done = back;
            // A link alone may be of a push that never ended: nothing that a manifest needs is missing with it.
            self.fill_some(Wants { nowhere: Vec::new(), ..wanted }).await?;
            if next.is_none() {
                return Ok(());
            }
            from = next;
        }
    }

    async fn fill_some(self: &Arc<Self>, wanted: Wants) -> Result<(), Ended> {
        let Wants { by_pack, nowhere, .. } = wanted;
        nowhere.into_iter().for_each(|digest| self.lost(digest));
        let mut runs: Vec<(Arc<dyn Bucket>, Run)> = Vec::new();
        for (archived, blobs) in by_pack.into_values() {
            if self.thaws.is_frozen(&archived) {
                self.frozen(&blobs);
                continue;
            }
            match self.reachable(&archived.bucket) {
                Some(bucket) => runs.extend(plan(&archived, blobs).into_iter().map(|run| (bucket.clone(), run))),
                None => blobs.iter().for_each(|wanted| self.lost(wanted.digest)),
            }
        }
        let mut running = JoinSet::new();
        for (bucket, run) in runs {
            if running.len() >= RUNS {
                ended(running.join_next().await)?;
            }
            let inner = self.clone();
            running.spawn(async move {
                let blobs = run.blobs.clone();
                match inner.fill_run(&bucket, run).await {
                    // A rule of the bucket has moved it to such a class.
                    Err(Ended::Failed(Error::Frozen { .. })) => {
                        inner.frozen(&blobs);
                        Ok(())
                    }
                    ended => ended,
                }
            });
        }
        while !running.is_empty() {
            ended(running.join_next().await)?;
        }
        Ok(())
    }

    /// Has the blobs of a run; those that are not what they should be are lost, and the others are not.
    async fn fill_run(self: &Arc<Self>, bucket: &Arc<dyn Bucket>, run: Run) -> Result<(), Ended> {
        let (Some(first), Some(last)) = (run.blobs.first(), run.blobs.last()) else { return Ok(()) };
        let mut at = first.offset;
        let end = last.offset + last.link.size;
        let mut commits = JoinSet::new();
        let left = run.blobs.into_iter();
        let mut chunks = match bucket.get_range(&run.key, at..end).await {
            Ok(chunks) => chunks,
            Err(error @ Error::NoObject { .. }) => {
                tracing::warn!(%error, "a pack is not in the bucket any more; what is only there is lost");
                for wanted in left {
                    self.fill_elsewhere(wanted).await?;
                }
                return Ok(());
            }
            Err(error) => return Err(Ended::Failed(error)),
        };
        let mut rest = Bytes::new();
        for wanted in left {
            // What is put in since then is no different.
            let staging = self.store.run(move |store| {
                if store.blob(&wanted.digest)?.is_some() { Ok(None) } else { store.stage(wanted.digest, wanted.link).map(Some) }
            });
            let mut staging = match staging.await {
                Ok(staging) => staging,
                Err(error) if error.is_full() => return Err(Ended::Full),
                Err(error @ store::Error::TooLarge { .. }) => {
                    tracing::warn!(digest = %wanted.digest, %error, "a blob of the archive is not taken");
                    self.lost(wanted.digest);
                    None
                }
                Err(error) => return Err(Ended::Failed(error.into())),
            };
            let stop = wanted.offset + wanted.link.size;
            while at < stop {
                if rest.is_empty() {
                    rest = match chunks.next().await {
                        Some(chunk) => chunk.map_err(Ended::Failed)?,
                        None => {
                            let (key, detail) = (run.key.clone(), format!("the answer ended {} bytes too early", end - at));
                            return Err(Ended::Failed(Error::Bucket { doing: "get", key, bucket: bucket.id().to_owned(), detail }));
                        }
                    };
                }
                let upto = if at < wanted.offset { wanted.offset } else { stop };
                let piece = rest.split_to(rest.len().min(usize::try_from(upto - at).unwrap_or(usize::MAX)).min(PIECE_SIZE_MAX));
                at += piece.len() as u64;
                if at > wanted.offset
                    && let Some(staging) = &mut staging
                {
                    staging.append(piece).await.map_err(|error| Ended::Failed(error.into()))?;
                }
            }
            let Some(staging) = staging else { continue };
            while commits.len() >= COMMITS {
                self.committed(commits.join_next().await)?;
            }
            commits.spawn(async move { (wanted, staging.finish().await) });
        }
        while !commits.is_empty() {
            self.committed(commits.join_next().await)?;
        }
        Ok(())
    }

    /// Has a blob from any other pack that holds it: the one that was asked for may have been compacted since the checkpoint that tells of it.
    async fn fill_elsewhere(&self, wanted: Wanted) -> Result<(), Ended> {
        let staged = self.store.run(move |store| store.stage(wanted.digest, wanted.link)).await;
        let committed = match staged {
            Ok(mut staging) => match self.fill(&mut staging).await {
                Ok(true) => staging.finish().await,
                Ok(false) | Err(Error::NoObject { .. }) => {
                    self.lost(wanted.digest);
                    return Ok(());
                }
                Err(error) => return Err(Ended::Failed(error)),
            },
            Err(error) => Err(error),
        };
        self.committed(Some(Ok((wanted, committed))))
    }

    fn committed(&self, ended: Option<Result<(Wanted, store::Result<()>), tokio::task::JoinError>>) -> Result<(), Ended> {
        let Some(Ok((wanted, committed))) = ended else { return Ok(()) };
        match committed {
            Ok(()) => {
                let mut filling = self.filling.lock().expect("never held across a panic");
                filling.blobs += 1;
                filling.bytes += wanted.link.size;
            }
            Err(error @ (store::Error::DigestMismatch { .. } | store::Error::Damaged { .. })) => {
                tracing::warn!(digest = %wanted.digest, %error, "a blob in the bucket is not what was archived");
                self.lost(wanted.digest);
            }
            Err(error) if error.is_full() => return Err(Ended::Full),
            Err(error) => return Err(Ended::Failed(error.into())),
        }
        Ok(())
    }

    /// Has what is wanted of a pack that has thawed: of all blobs that are linked, or of these.
    ///
    /// # Errors
    /// `Frozen` when it is frozen again; the bucket's or the store's refusal.
    pub(super) async fn fill_pack(self: &Arc<Self>, id: PackId, only: Option<&Arc<HashSet<Digest>>>) -> Result<Filled, Error> {
        let only = only.cloned();
        let found = self.store.run(move |store| {
            let Some(archived) = store.pack(&id)? else { return Ok(None) };
            let mut wanted = Vec::new();
            for located in &archived.contents {
                let digest = located.digest;
                let within = located.offset.checked_add(located.length).is_some_and(|end| end <= archived.size);
                if !within || only.as_ref().is_some_and(|only| !only.contains(&digest)) || store.blob(&digest)?.is_some() {
                    continue;
                }
                if let Some(repository) = store.repositories_linking(&digest, 1)?.first()
                    && let Some(link) = store.link(repository, &digest)?.filter(|link| link.size == located.length)
                {
                    wanted.push(Wanted { digest, link, offset: located.offset });
                }
            }
            Ok::<_, Error>(Some((archived, wanted)))
        });
        let Some((archived, wanted)) = found.await? else { return Ok(Filled::All) };
        let Some(bucket) = self.reachable(&archived.bucket) else { return Ok(Filled::All) };
        for run in plan(&archived, wanted) {
            let count = run.blobs.len() as u64;
            match self.fill_run(&bucket, run).await {
                Ok(()) => {
                    let mut filling = self.filling.lock().expect("never held across a panic");
                    filling.frozen = filling.frozen.saturating_sub(count);
                }
                Err(Ended::Full) => return Ok(Filled::NoRoom),
                Err(Ended::Failed(error)) => return Err(error),
            }
        }
        Ok(Filled::All)
    }

    fn frozen(&self, blobs: &[Wanted]) {
        let mut filling = self.filling.lock().expect("never held across a panic");
        filling.frozen += blobs.len() as u64;
        filling.frozen_bytes += blobs.iter().map(|wanted| wanted.link.size).sum::<u64>();
    }

    fn lost(&self, digest: Digest) {
        let mut filling = self.filling.lock().expect("never held across a panic");
        filling.lost += 1;
        if filling.lost_blobs.len() < NAMED_MAX {
            filling.lost_blobs.push(digest);
        }
    }
}

/// How a run ended; one that was called off, because another ended badly, is not asked.
fn ended(run: Option<Result<Result<(), Ended>, tokio::task::JoinError>>) -> Result<(), Ended> {
    match run {
        Some(Ok(ended)) => ended,
        Some(Err(_)) | None => Ok(()),
    }
}

/// What is wanted next.
#[derive(Default)]
struct Wants {
    by_pack: BTreeMap<PackId, (Archived, Vec<Wanted>)>,
    nowhere: Vec<Digest>,
    blobs: usize,
    bytes: u64,
    packs: HashMap<PackId, Option<Archived>>,
}

impl Wants {
    fn is_enough(&self) -> bool {
        self.bytes >= PLANNED_BYTES || self.blobs >= PLANNED_BLOBS
    }

    /// Adds a blob that is not on this disk, and that was not wanted before.
    fn add(&mut self, store: &Store, digest: Digest, link: Link, done: &mut HashSet<u64>) -> store::Result<()> {
        if !done.insert(brief(&digest)) || store.blob(&digest)?.is_some() {
            return Ok(());
        }
        let mut frozen = None;
        for (pack, offset, length) in store.locations(&digest)? {
            let archived = match self.packs.get(&pack) {
                Some(archived) => archived.clone(),
                None => {
                    let archived = store.pack(&pack)?.map(|archived| Archived { contents: Vec::new(), ..archived });
                    self.packs.insert(pack, archived.clone());
                    archived
                }
            };
            let within = |archived: &Archived| offset.checked_add(length).is_some_and(|end| end <= archived.size);
            if let Some(archived) = archived.filter(|archived| length == link.size && within(archived)) {
                if keys::class_of(&archived.object_key).is_frozen() {
                    frozen.get_or_insert((pack, archived, offset));
                    continue;
                }
                self.take(pack, archived, Wanted { digest, link, offset });
                return Ok(());
            }
        }
        match frozen {
            Some((pack, archived, offset)) => self.take(pack, archived, Wanted { digest, link, offset }),
            None => self.nowhere.push(digest),
        }
        Ok(())
    }

    fn take(&mut self, pack: PackId, archived: Archived, wanted: Wanted) {
        self.by_pack.entry(pack).or_insert_with(|| (archived, Vec::new())).1.push(wanted);
        self.blobs += 1;
        self.bytes = self.bytes.saturating_add(wanted.link.size);
    }
}

/// Eight bytes of a digest: two blobs that share them, of which one then comes on demand, are as likely as not in a store of five thousand million.
pub(super) fn brief(digest: &Digest) -> u64 {
    let key = digest.to_key();
    key.last_chunk().map_or(0, |bytes| u64::from_le_bytes(*bytes))
}

/// Blobs that lie close together come together.
fn plan(archived: &Archived, mut blobs: Vec<Wanted>) -> Vec<Run> {
    blobs.sort_by_key(|wanted| wanted.offset);
    let mut runs: Vec<Run> = Vec::new();
    let (mut start, mut end) = (0, 0);
    for wanted in blobs {
        let stop = wanted.offset + wanted.link.size;
        match runs.last_mut() {
            Some(run) if wanted.offset >= end && wanted.offset - end <= HOLE_MAX && stop - start <= RUN_BYTES => run.blobs.push(wanted),
            _ => {
                start = wanted.offset;
                runs.push(Run { key: archived.object_key.clone(), blobs: vec![wanted] });
            }
        }
        end = stop;
    }
    runs
}

/// Every blob that is linked, those of the newest tags first; some more than once.
pub(super) fn each_blob(store: &Store, mut take: impl FnMut(Digest, Link) -> Result<(), Error>) -> Result<(), Error> {
    for (_, repository, tag) in newest_tags(store)? {
        let Some(info) = store.tag(&repository, &tag)? else { continue };
        store.closure(&repository, &info.digest)?.into_iter().try_for_each(|(digest, link)| take(digest, link))?;
    }
    let mut from: Option<Vec<u8>> = None;
    loop {
        let (links, next) = store.links(from.as_deref(), LINKS_PAGE)?;
        links.into_iter().try_for_each(|(digest, link)| take(digest, link))?;
        if next.is_none() {
            return Ok(());
        }
        from = next;
    }
}

/// All tags, the newest first; of very many, the newest.
pub(super) fn newest_tags(store: &Store) -> store::Result<Vec<(HybridTime, RepositoryName, Tag)>> {
    let mut newest: BinaryHeap<Reverse<(HybridTime, RepositoryName, Tag)>> = BinaryHeap::new();
    let mut repository_after = None::<String>;
    loop {
        let repositories = store.repositories(repository_after.as_deref(), LINKS_PAGE)?;
        let Some(last) = repositories.last() else { break };
        repository_after = Some(last.to_string());
        for repository in repositories {
            let mut after = None::<String>;
            loop {
                let tags = store.tags(&repository, after.as_deref(), LINKS_PAGE)?;
                let Some(last) = tags.last() else { break };
                after = Some(last.tag.to_string());
                for info in tags {
                    newest.push(Reverse((info.stamp.time, repository.clone(), info.tag)));
                    if newest.len() > TAGS_ORDERED_MAX {
                        newest.pop();
                    }
                }
            }
        }
    }
    Ok(newest.into_sorted_vec().into_iter().map(|Reverse(tag)| tag).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wanted(offset: u64, size: u64) -> Wanted {
        Wanted { digest: Digest::sha256(&offset.to_be_bytes()), link: Link { size, root: [0; 32], crc64: 0 }, offset }
    }

    #[test]
    fn blobs_side_by_side_come_by_one_request() {
        let archived =
            Archived { bucket: "b".to_owned(), object_key: "k".to_owned(), size: 1 << 40, created_ms: 0, records: 0, contents: Vec::new() };
        let lens = |blobs: Vec<Wanted>| plan(&archived, blobs).iter().map(|run| run.blobs.len()).collect::<Vec<_>>();
        assert_eq!(lens(vec![wanted(2048, 100), wanted(512, 1000), wanted(4096, 9)]), [3]);
        assert_eq!(lens(vec![wanted(0, 10), wanted(10 + HOLE_MAX, 5), wanted(16 + 2 * HOLE_MAX, 5)]), [2, 1]);
        assert_eq!(lens(vec![wanted(0, RUN_BYTES), wanted(RUN_BYTES, 1)]), [1, 1], "no request without an end");
        assert_eq!(lens(vec![wanted(0, 100), wanted(50, 100)]), [1, 1], "what lies over something else is had by itself");
        assert_eq!(lens(Vec::new()), Vec::<usize>::new());
    }
}
