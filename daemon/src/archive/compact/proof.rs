//! The end of packs that are off the catalogue: they are deleted when it is proven that nothing needs them.
//!
//! For each of them
//!
//! - the waiting time is over, and every member has heard that it is off the catalogue, and this node what each of them wrote before that: so nobody relies on it,
//!   and none will;
//! - a newer pack of its writer stands, by which a restore knows whom that writer knew;
//! - the two newest checkpoints that are whole were written since. Each brings everything that the pack's records cover, does not name the pack, and
//!   places every blob of it that it links in another pack, which the bucket lists with its size;
//! - the same holds of what this node knows now; and the ends of the packs that are relied on can be read.
//!
//! The end of a frozen pack can't be read. What lies in it was written down when it left the catalogue, and it brings no records; where what counts of it is frozen again, it must stand there as
//! it was put: of the size that the record says, whose checksum the bucket has compared. Nothing that can be read at once goes because of what is frozen.
//!
//! Where a blob turns out to be linked that stands nowhere else, the pack goes back into the catalogue.
//!
//! CRASH: whatever was proven is proven again; an object that is gone is not listed, and its row goes.

use std::collections::hash_map::Entry;
use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;

use larder_protocol::digest::Digest;
use larder_protocol::pack::{Contents, Covered};
use larder_protocol::record::{Archived, Key, Numbered, PackId, Value};
use larder_protocol::stamp::NodeId;
use larder_protocol::vector::{Origin, VersionVector};

use crate::failpoint;
use crate::store::{self, Commit, Store};

use super::super::bucket::{Bucket, Listed};
use super::super::{Error, Inner, Skipped, checkpoint, cluster, keys, tail, writer};
use super::catalogue::is_linked;
use super::rewrite::{Retired, relies, retired_prefix};
use super::{Outcome, Waiting};

/// Packs whose end comes in one run: their contents are in memory together.
const ENDED_MAX: usize = 200;
/// Checkpoints that agree.
const AGREE: usize = 2;

/// A pack whose time has come.
struct Doomed {
    retired: Retired,
    since_ms: u64,
    archived: Archived,
    /// Records that it brings.
    covers: BTreeMap<Origin, Covered>,
}

/// What a checkpoint says that bears on the doomed.
#[derive(Default)]
struct Said {
    key: String,
    created_ms: u64,
    seen: VersionVector,
    linked: HashSet<Digest>,
    places: HashMap<Digest, Vec<PackId>>,
    named: HashSet<PackId>,
}

/// What the bucket lists, and how it is known.
struct Standing {
    listed: HashMap<PackId, Listed>,
    /// In the catalogue, listed as it was written, and not frozen.
    whole: HashSet<PackId>,
    /// The same, and frozen.
    frozen: Arc<HashSet<PackId>>,
    /// What the doomed hold.
    wanted: HashSet<Digest>,
    /// What of that the ends of such packs say that these hold. Read when it is asked for.
    ends: HashMap<PackId, Result<HashSet<Digest>, String>>,
}

impl Standing {
    /// Whether what counts of `doomed` may stand in this pack.
    fn stands(&self, doomed: &Retired, pack: &PackId) -> bool {
        self.whole.contains(pack) || (doomed.is_frozen() && self.frozen.contains(pack))
    }
}

impl Inner {
    /// The rows of packs that are off the catalogue.
    pub(in super::super) async fn retired(&self, bucket: &str) -> Result<Vec<Retired>, Error> {
        let prefix = retired_prefix(bucket);
        let rows = self.store.run(move |store| store.settings(&prefix)).await?;
        Ok(rows.iter().filter_map(|(_, row)| serde_json::from_slice(row).ok()).collect())
    }

    /// Ends what can be ended.
    pub(super) async fn end_retired(self: &Arc<Self>, bucket: &Arc<dyn Bucket>, adopt: bool, out: &mut Outcome) -> Result<(), Error> {
        let rows = self.retired(bucket.id()).await?;
        if rows.is_empty() && !adopt {
            return Ok(());
        }
        let (due, young) = self.ripe(bucket, rows).await?;
        out.waiting.extend(young);
        if due.is_empty() && !adopt {
            return Ok(());
        }
        self.check_bucket(bucket, &mut self.turn.lock().await.checked).await?;
        let mut standing = self.in_sight(bucket).await?;
        let adopted = if adopt { self.adopt(bucket, &standing).await? } else { Vec::new() };
        let (adopted, young) = self.ripe(bucket, adopted).await?;
        out.waiting.extend(young);
        let (doomed, gone) = self.doomed(bucket, due.into_iter().chain(adopted), &standing, out).await?;
        self.forget_rows(bucket, gone).await?;
        let Some(since_ms) = doomed.iter().map(|it| it.since_ms).max() else { return Ok(()) };
        let said = match self.agreeing(bucket, &doomed, since_ms, out).await? {
            Some(said) => said,
            None => return Ok(()),
        };
        failpoint::pass("archive/compact/checkpoints-not-proven").map_err(|source| failed("prove", bucket, &source))?;
        standing.wanted = doomed.iter().flat_map(|it| it.archived.contents.iter().map(|place| place.digest)).collect();
        let (mut proven, mut unsaid) = (Vec::new(), false);
        for it in doomed {
            match self.doubt(bucket, &it, &said, &mut standing).await? {
                None => proven.push(it),
                Some(Doubt::Relied(digest)) => {
                    tracing::warn!(key = it.retired.key, %digest, "a blob was linked again that stands only in a pack which was to go: the pack stays");
                    self.revive(bucket, it).await?;
                }
                Some(Doubt::Unsaid(why)) => {
                    unsaid = true;
                    out.waiting.push(waiting(&it.retired, it.since_ms, why));
                }
                Some(Doubt::Waits(why)) => out.waiting.push(waiting(&it.retired, it.since_ms, why)),
            }
        }
        if unsaid && proven.is_empty() {
            // They were written too early, by a clock that is ahead, or before everything was archived: the next run finds a later one.
            self.checkpoint_now().await?;
            out.checkpoints += 1;
        }
        if !proven.is_empty() {
            failpoint::pass("archive/compact/proven-not-deleted").map_err(|source| failed("delete", bucket, &source))?;
            // ORDER: checkpoints that may name what goes, then what goes.
            self.delete_checkpoints(bucket, &said, out).await?;
            for it in proven {
                self.delete(bucket, it, out).await?;
            }
        }
        Ok(())
    }

    /// Those whose time is over, and which everybody has heard of; what the others wait for.
    async fn ripe(&self, bucket: &Arc<dyn Bucket>, rows: Vec<Retired>) -> Result<(Vec<(Retired, u64)>, Vec<Waiting>), Error> {
        let (id, wait, everyone) = (bucket.id().to_owned(), self.settings.compact.wait, self.everyone.get().cloned());
        let due = self.store.run(move |store| {
            let (now, seen) = (writer::now_ms(), everyone.map_or_else(|| Some(store.vector()), |everyone| everyone()));
            let (mut due, mut waits, mut stale) = (Vec::new(), Vec::new(), Vec::new());
            for row in rows {
                let told = store.numbered(&Key::Archived(row.pack))?.filter(|told| told.record.value.is_none());
                let Some(Numbered { origin, sequence, record }) = told else {
                    // It is in the catalogue again.
                    stale.extend(row.no_rows(&id));
                    continue;
                };
                let since = record.stamp.time.ms();
                let is_heard = seen.as_ref().is_some_and(|seen| seen.get(&origin) >= sequence);
                if now < since.saturating_add(u64::try_from(wait.as_millis()).unwrap_or(u64::MAX)) {
                    waits.push(waiting(&row, since, "archive.compact_wait is not over".to_owned()));
                } else if !is_heard {
                    waits.push(waiting(&row, since, "not every member has been heard since".to_owned()));
                } else {
                    due.push((row, since));
                }
            }
            if !stale.is_empty() {
                store.commit(Commit { records: Vec::new(), settings: stale })?;
            }
            Ok::<_, store::Error>((due, waits))
        });
        Ok(due.await?)
    }

    async fn in_sight(&self, bucket: &Arc<dyn Bucket>) -> Result<Standing, Error> {
        let (packs, _) = tail::list(&**bucket, &BTreeMap::new()).await?;
        let listed: HashMap<PackId, Listed> = packs.into_iter().collect();
        let (mut whole, mut frozen) = (HashSet::new(), HashSet::new());
        self.each_pack(|id, archived| {
            let is_there = |it: &Listed| it.key == archived.object_key && it.size == archived.size;
            if archived.bucket == bucket.id() && listed.get(id).is_some_and(is_there) {
                let is_frozen = keys::class_of(&archived.object_key).is_frozen();
                if is_frozen { &mut frozen } else { &mut whole }.insert(*id);
            }
        })
        .await?;
        Ok(Standing { listed, whole, frozen: Arc::new(frozen), wanted: HashSet::new(), ends: HashMap::new() })
    }

    /// Packs in the bucket that were taken off the catalogue by somebody who has no row of it any more: this node before it was restored, or one that is gone.
    /// And what this node has put and never recorded.
    async fn adopt(&self, bucket: &Arc<dyn Bucket>, standing: &Standing) -> Result<Vec<Retired>, Error> {
        let compacts = self.compacts().await?;
        let turn = self.turn.lock().await;
        let (sealed, own) = (turn.sealed(), Origin { node: (self.signer)().0, ..self.store.origin() });
        let is_known = |id: &PackId| standing.whole.contains(id) || standing.frozen.contains(id);
        let orphans = standing.listed.iter().filter(|(id, _)| !is_known(id) && compacts(&id.origin.node));
        let orphans: Vec<Retired> = orphans.map(|(id, listed)| Retired { pack: *id, key: listed.key.clone(), size: listed.size }).collect();
        let bucket = bucket.id().to_owned();
        let adopted = self.store.run(move |store| {
            let (mut adopted, last) = (Vec::new(), writer::last_sequence(store)?);
            for orphan in orphans {
                let (records, contents) = match store.record(&Key::Archived(orphan.pack))? {
                    Some(record) if record.value.is_none() => (Vec::new(), None),
                    // A crash between its PUT and its record has left it: nobody ever heard that anything is there, and what it holds was put again.
                    // A number that this node has not given is that of a copy of its data folder; the end of such a pack says what it is, if it can be read.
                    None if orphan.pack.origin == own
                        && Some(orphan.pack) != sealed
                        && (orphan.pack.sequence <= last || !orphan.is_frozen()) =>
                    {
                        let (object_key, size) = (orphan.key.clone(), orphan.size);
                        let nothing =
                            Archived { bucket: bucket.clone(), object_key, size, created_ms: 0, records: 0, contents: Vec::new() };
                        (vec![(Key::Archived(orphan.pack), None)], Some(nothing))
                    }
                    _ => continue,
                };
                if store.setting(&orphan.name(&bucket))?.is_none() {
                    store.commit(Commit { records, settings: orphan.rows(&bucket, contents.as_ref()) })?;
                    adopted.push(orphan);
                }
            }
            Ok::<_, store::Error>(adopted)
        });
        Ok(adopted.await?)
    }

    /// Reads the ends of those whose time has come; and which are gone already.
    async fn doomed(
        &self,
        bucket: &Arc<dyn Bucket>,
        due: impl Iterator<Item = (Retired, u64)>,
        standing: &Standing,
        out: &mut Outcome,
    ) -> Result<(Vec<Doomed>, Vec<Retired>), Error> {
        let (mut doomed, mut gone) = (Vec::new(), Vec::new());
        for (retired, since_ms) in due.take(ENDED_MAX) {
            let Some(listed) = standing.listed.get(&retired.pack) else {
                gone.push(retired);
                continue;
            };
            let (id, row) = (bucket.id().to_owned(), retired.clone());
            if let Some(archived) = self.store.run(move |store| row.contents(store, &id)).await? {
                if archived.object_key == listed.key && archived.size == listed.size {
                    doomed.push(Doomed { retired, since_ms, archived, covers: BTreeMap::new() });
                } else {
                    out.waiting.push(waiting(&retired, since_ms, "it is not listed as it was written".to_owned()));
                }
                continue;
            }
            match tail::read(&**bucket, retired.pack, listed).await {
                Ok((footer, contents)) => {
                    let archived = Archived {
                        bucket: bucket.id().to_owned(),
                        object_key: listed.key.clone(),
                        size: listed.size,
                        created_ms: footer.created_ms,
                        records: footer.record_count,
                        contents: contents.located(),
                    };
                    doomed.push(Doomed { retired, since_ms, archived, covers: contents.covers });
                }
                Err(Error::Frozen { .. }) => {
                    let why = "what lies in it is not known here, and it must thaw before that can be read: by the vendor's own tools";
                    out.waiting.push(waiting(&retired, since_ms, why.to_owned()));
                }
                Err(error) => out.waiting.push(waiting(&retired, since_ms, error.to_string())),
            }
        }
        Ok((doomed, gone))
    }

    /// What the two newest checkpoints say that are whole. They are written, as far as they are not there; `None`: they can't be read.
    async fn agreeing(
        self: &Arc<Self>,
        bucket: &Arc<dyn Bucket>,
        doomed: &[Doomed],
        since_ms: u64,
        out: &mut Outcome,
    ) -> Result<Option<Vec<Said>>, Error> {
        let there = checkpoint::list(&**bucket, since_ms).await?.len();
        for _ in there..AGREE {
            self.checkpoint_now().await?;
            out.checkpoints += 1;
        }
        let id = bucket.id().to_owned();
        let members: HashSet<NodeId> = self.store.run(move |store| cluster::company(store, &id)).await?.members.into_iter().collect();
        let wanted: Arc<HashSet<Digest>> =
            Arc::new(doomed.iter().flat_map(|it| it.archived.contents.iter().map(|place| place.digest)).collect());
        let packs: HashSet<PackId> = doomed.iter().map(|it| it.retired.pack).collect();
        let mut said = Vec::new();
        for (created_ms, listed) in checkpoint::list(&**bucket, since_ms).await?.into_iter().rev() {
            let key = listed.key.clone();
            match said_by(bucket, listed, created_ms, &members, &wanted, &packs).await {
                Ok(Some(it)) => said.push(it),
                Ok(None) => tracing::warn!(key, "a checkpoint of somebody who is no member proves nothing"),
                Err(error) => tracing::warn!(key, %error, "a checkpoint can't be read and proves nothing"),
            }
            if said.len() == AGREE {
                return Ok(Some(said));
            }
        }
        let why = "two checkpoints that can be read are needed to prove that nothing needs it";
        out.waiting.extend(doomed.iter().map(|it| waiting(&it.retired, it.since_ms, why.to_owned())));
        Ok(None)
    }

    /// What speaks against the end of a pack.
    async fn doubt(
        &self,
        bucket: &Arc<dyn Bucket>,
        doomed: &Doomed,
        said: &[Said],
        standing: &mut Standing,
    ) -> Result<Option<Doubt>, Error> {
        let pack = doomed.retired.pack;
        let waits = |why: String| Ok(Some(Doubt::Waits(why)));
        let is_newest = !standing.whole.iter().any(|other| other.origin.node == pack.origin.node && *other > pack);
        // Of a frozen one nobody reads whom its writer knew.
        if is_newest && !doomed.retired.is_frozen() {
            return waits("it is the newest of its writer".to_owned());
        }
        let (archived, frozen, is_frozen) = (doomed.archived.clone(), standing.frozen.clone(), doomed.retired.is_frozen());
        let relied = self.store.run(move |store| {
            let anywhere = relies(store, &pack, &archived, |other| is_frozen || !frozen.contains(other))?;
            Ok::<_, store::Error>((anywhere, holders(store, &archived)?))
        });
        let (anywhere, holders) = relied.await?;
        if let Some(digest) = anywhere {
            return Ok(Some(Doubt::Relied(digest)));
        }
        if let Some(why) = said.iter().find_map(|said| objection(doomed, said, standing)) {
            return Ok(Some(Doubt::Unsaid(why)));
        }
        for (digest, holders) in holders {
            let mut why = format!("{digest} is in no other pack that the bucket lists as it was written");
            let mut stands = false;
            for holder in holders {
                if !standing.stands(&doomed.retired, &holder) {
                    continue;
                }
                if standing.frozen.contains(&holder) {
                    stands = true;
                    continue;
                }
                match end_of(bucket, holder, standing).await {
                    Ok(held) if held.contains(&digest) => stands = true,
                    Ok(_) => why = format!("{holder} does not say that it holds {digest}"),
                    Err(error) => why = format!("what counts of it is in another that can't be read: {error}"),
                }
            }
            if !stands {
                return waits(why);
            }
        }
        Ok(None)
    }

    /// Back into the catalogue.
    async fn revive(&self, bucket: &Arc<dyn Bucket>, doomed: Doomed) -> Result<(), Error> {
        let settings = doomed.retired.no_rows(bucket.id()).into();
        let records = vec![(Key::Archived(doomed.retired.pack), Some(Value::Archived(doomed.archived)))];
        self.store.run(move |store| store.commit(Commit { records, settings })).await?;
        Ok(())
    }

    async fn delete_checkpoints(&self, bucket: &Arc<dyn Bucket>, said: &[Said], out: &mut Outcome) -> Result<(), Error> {
        let oldest = said.iter().map(|it| it.created_ms).min().unwrap_or(0);
        for (created_ms, listed) in checkpoint::list(&**bucket, 0).await? {
            if created_ms < oldest && !said.iter().any(|it| it.key == listed.key) {
                match bucket.delete(&listed.key).await {
                    Ok(()) => out.checkpoints_deleted += 1,
                    Err(error) => out.refused.push(Skipped { key: listed.key, why: error.to_string() }),
                }
            }
        }
        Ok(())
    }

    async fn delete(&self, bucket: &Arc<dyn Bucket>, doomed: Doomed, out: &mut Outcome) -> Result<(), Error> {
        // By the key that the listing has: that of a record may be anybody's.
        let (retired, key, size) = (doomed.retired, doomed.archived.object_key, doomed.archived.size);
        match bucket.delete(&key).await {
            Ok(()) => {
                failpoint::pass("archive/compact/deleted-not-noted").map_err(|source| failed("delete", bucket, &source))?;
                tracing::info!(key, size, "a pack of which nothing counts any more is deleted");
                self.metrics.compacted_packs.inc();
                out.deleted.push(key);
                out.deleted_bytes += size;
                self.forget_rows(bucket, vec![retired]).await
            }
            // Under a lock, or without the right to: it is tried again by the next run.
            Err(error) => {
                tracing::warn!(key, %error, "the bucket does not let a pack go that nothing needs");
                out.refused.push(Skipped { key, why: error.to_string() });
                Ok(())
            }
        }
    }

    async fn forget_rows(&self, bucket: &Arc<dyn Bucket>, rows: Vec<Retired>) -> Result<(), Error> {
        if rows.is_empty() {
            return Ok(());
        }
        let settings = rows.iter().flat_map(|row| row.no_rows(bucket.id())).collect();
        self.store.run(move |store| store.commit(Commit { records: Vec::new(), settings })).await?;
        Ok(())
    }
}

/// What speaks against it.
enum Doubt {
    /// This blob needs it.
    Relied(Digest),
    /// A checkpoint does not agree.
    Unsaid(String),
    /// Something else.
    Waits(String),
}

/// What a checkpoint says against the end of a pack.
fn objection(doomed: &Doomed, said: &Said, standing: &Standing) -> Option<String> {
    if said.named.contains(&doomed.retired.pack) {
        return Some(format!("{} names it", said.key));
    }
    let unseen = doomed.covers.iter().find(|(origin, covered)| said.seen.get(origin) < covered.upto);
    if let Some((origin, covered)) = unseen {
        return Some(format!("{} does not have all of what it says of node {}, up to {}", said.key, origin.node.letters(), covered.upto));
    }
    let stands =
        |digest: &Digest| said.places.get(digest).is_some_and(|packs| packs.iter().any(|pack| standing.stands(&doomed.retired, pack)));
    let lost = doomed.archived.contents.iter().find(|place| said.linked.contains(&place.digest) && !stands(&place.digest));
    lost.map(|place| format!("{} places {} in no other pack", said.key, place.digest))
}

/// For each linked blob of a pack those that hold it.
fn holders(store: &Store, archived: &Archived) -> Result<Vec<(Digest, Vec<PackId>)>, store::Error> {
    let mut holders = Vec::new();
    for place in &archived.contents {
        if is_linked(store, &place.digest)? {
            let packs = store.locations(&place.digest)?.into_iter().filter(|(_, _, length)| *length == place.length);
            holders.push((place.digest, packs.map(|(pack, _, _)| pack).collect()));
        }
    }
    Ok(holders)
}

/// What the signed end of a pack says that it holds.
async fn end_of<'a>(bucket: &Arc<dyn Bucket>, holder: PackId, standing: &'a mut Standing) -> &'a Result<HashSet<Digest>, String> {
    let Standing { listed, wanted, ends, .. } = standing;
    match ends.entry(holder) {
        Entry::Occupied(known) => known.into_mut(),
        Entry::Vacant(unknown) => {
            let end = match listed.get(&holder) {
                Some(listed) => tail::read(&**bucket, holder, listed).await.map_err(|error| error.to_string()),
                None => Err("it is not there".to_owned()),
            };
            let held = |contents: Contents| {
                contents.index.into_iter().map(|entry| entry.digest).filter(|digest| wanted.contains(digest)).collect()
            };
            unknown.insert(end.map(|(_, contents)| held(contents)))
        }
    }
}

/// Reads a whole checkpoint; `None` when its writer's word does not count.
async fn said_by(
    bucket: &Arc<dyn Bucket>,
    listed: Listed,
    created_ms: u64,
    members: &HashSet<NodeId>,
    wanted: &Arc<HashSet<Digest>>,
    doomed: &HashSet<PackId>,
) -> Result<Option<Said>, Error> {
    let opened = checkpoint::open(&**bucket, listed).await?;
    if !members.contains(&opened.footer.writer.node) {
        return Ok(None);
    }
    let mut said = Said { key: opened.listed.key.clone(), created_ms, seen: opened.directory.scope.seen.clone(), ..Said::default() };
    let taken = &mut said;
    checkpoint::read(&**bucket, &opened, |page| {
        for Numbered { record, .. } in page {
            match (record.key, record.value) {
                (Key::Archived(pack), Some(Value::Archived(archived))) if archived.bucket == bucket.id() => {
                    if doomed.contains(&pack) {
                        taken.named.insert(pack);
                    }
                    for place in archived.contents.iter().filter(|place| wanted.contains(&place.digest)) {
                        taken.places.entry(place.digest).or_default().push(pack);
                    }
                }
                (Key::Link(_, digest), Some(_)) if wanted.contains(&digest) => drop(taken.linked.insert(digest)),
                _ => {}
            }
        }
        std::future::ready(Ok(()))
    })
    .await?;
    Ok(Some(said))
}

fn waiting(retired: &Retired, since_ms: u64, why: String) -> Waiting {
    Waiting { key: retired.key.clone(), size: retired.size, since: super::moment(since_ms), why }
}

pub(super) fn failed(doing: &'static str, bucket: &Arc<dyn Bucket>, source: &std::io::Error) -> Error {
    Error::Bucket { doing, key: "packs".to_owned(), bucket: bucket.id().to_owned(), detail: source.to_string() }
}
