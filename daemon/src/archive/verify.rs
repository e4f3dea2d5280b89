//! Is the bucket what the records say it is? A listing against the catalogue, one request for a thousand objects; and, when asked, packs read from their first
//! byte and every blob in them hashed.
//!
//! The listing is looked through once in `archive.verify_period` by the first of the live archivers in rendezvous order. What is found missing, short or damaged is
//! told: in the log, as metrics, by `larder archive status`. It is mended with the next checkpoint, which looks at the packs before it vouches for them, or by
//! `larder archive verify --mend`: what a pack has lost goes into another one, from this disk or from whoever has it (F31, F35).
//!
//! What is compared is pure (`compare`); packs come and go meanwhile, so whatever is found is looked at again in the catalogue before it is told.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::Duration;

use larder_protocol::digest::Digest;
use larder_protocol::record::{Archived, Key, Located, PackId, Value};
use serde::{Deserialize, Serialize};

use crate::store::Commit;

use super::bucket::{Bucket, Listed};
use super::writer::{self, Turn};
use super::{Error, Inner, Skipped, checkpoint, hashed, keys, queue, tail};

/// Of each kind of finding, so many are named.
const NAMED_MAX: usize = 1_000;
/// Most parts that packs are divided into.
pub const PARTS_MAX: u64 = 10_000;

/// Which packs are read: of `of` parts, the `part`th.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Subset {
    /// From 1.
    pub part: u64,
    /// At least 1.
    pub of: u64,
}

impl std::str::FromStr for Subset {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let wrong = "this has to be n/m, the n-th of m parts, as in 1/30: from 1/1, which is everything, to 10000/10000";
        let (part, of) = text.split_once('/').ok_or(wrong)?;
        let (part, of) = (part.parse().map_err(|_| wrong)?, of.parse().map_err(|_| wrong)?);
        if (1..=of).contains(&part) && of <= PARTS_MAX { Ok(Self { part, of }) } else { Err(wrong) }
    }
}

impl Subset {
    /// Whether a pack is in it: the same packs each time, and each pack in one part.
    fn has(self, id: &PackId) -> bool {
        let key = Digest::sha256(id.to_string().as_bytes()).to_key();
        let number = key.last_chunk().map_or(0, |bytes| u64::from_le_bytes(*bytes));
        number % self.of == self.part - 1
    }
}

/// What a look at the bucket has found.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Verified {
    /// When, milliseconds since 1970.
    pub at_ms: u64,
    /// Objects listed: packs and checkpoints.
    pub objects: u64,
    /// Their bytes.
    pub bytes: u64,
    /// Packs that the records tell of.
    pub packs: u64,
    /// Packs by storage class, as the bucket tells it: how many, and their bytes.
    #[serde(default)]
    pub classes: BTreeMap<String, (u64, u64)>,
    /// Of those, not there.
    pub missing: Vec<String>,
    /// There with another length.
    pub wrong_size: Vec<WrongSize>,
    /// Objects that no record tells of: left by a crash between a pack and its record, or written by a node that this one has not heard.
    pub orphans: Vec<String>,
    /// Packs that compaction has taken off the catalogue, and that go later.
    #[serde(default)]
    pub retired: u64,
    /// What was read, when something was.
    pub read: Option<Read>,
    /// Packs whose losses went into others.
    pub mended: u64,
}

/// An object with another length than was written.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct WrongSize {
    /// Its key.
    pub key: String,
    /// Bytes that were written.
    pub written: u64,
    /// Bytes that are there.
    pub found: u64,
}

/// What came of reading packs.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Read {
    /// Packs.
    pub packs: u64,
    /// Packs that were to be read and are frozen.
    #[serde(default)]
    pub frozen: u64,
    /// Blobs and manifests in them.
    pub blobs: u64,
    /// Bytes that came.
    pub bytes: u64,
    /// Blobs that are not what their digests say.
    pub damaged: Vec<Damaged>,
    /// Packs whose ends can't be used, or that could not be read.
    pub unreadable: Vec<Skipped>,
}

/// A blob in the bucket that is not what it was.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Damaged {
    /// The pack's key.
    pub key: String,
    /// The blob.
    pub digest: Digest,
}

impl Verified {
    /// Whether all is as it was written. What no record tells of harms nobody.
    pub fn is_whole(&self) -> bool {
        let read = self.read.as_ref().is_none_or(|read| read.damaged.is_empty() && read.unreadable.is_empty());
        self.missing.is_empty() && self.wrong_size.is_empty() && read
    }
}

/// What differs between the catalogue (key to size) and a listing: by key, what was written and what is there.
fn compare(catalogue: &BTreeMap<String, u64>, listed: &[Listed]) -> BTreeMap<String, (Option<u64>, Option<u64>)> {
    let mut differ: BTreeMap<String, (Option<u64>, Option<u64>)> =
        catalogue.iter().map(|(key, size)| (key.clone(), (Some(*size), None))).collect();
    for Listed { key, size, .. } in listed {
        match differ.get(key) {
            Some((Some(written), _)) if written == size => drop(differ.remove(key)),
            Some((written, _)) => drop(differ.insert(key.clone(), (*written, Some(*size)))),
            None => drop(differ.insert(key.clone(), (None, Some(*size)))),
        }
    }
    differ
}

/// The setting that holds what the last look has found.
fn setting(bucket: &str) -> String {
    format!("archive/verified/{bucket}")
}

impl Inner {
    /// See [`super::Archive::verify`].
    pub(super) async fn verify(self: &Arc<Self>, subset: Option<Subset>, mend: bool) -> Result<Verified, Error> {
        let bucket = self.bucket.clone().ok_or(Error::Off)?;
        let (mut verified, mut wrong) = self.look(&bucket).await?;
        if let Some(subset) = subset {
            let (read, damaged) = self.read_packs(&bucket, subset, &wrong).await?;
            verified.read = Some(read);
            wrong.extend(damaged);
        }
        if mend && !wrong.is_empty() {
            let mut turn = self.turn.lock().await;
            verified.mended = self.mend(&bucket, &mut turn, wrong).await?;
        }
        self.keep(&bucket, &verified).await?;
        Ok(verified)
    }

    /// How long until the bucket is to be looked at; `None` when that is another's matter, or nobody's.
    pub(super) async fn look_due(&self, bucket: &Arc<dyn Bucket>) -> Result<Option<Duration>, Error> {
        let period = self.settings.verify_period;
        if period.is_zero() {
            return Ok(None);
        }
        let (id, gone) = (bucket.id().to_owned(), self.gone());
        let (last, archivers, has_packs) = self
            .store
            .run(move |store| {
                let last = store.setting(&setting(&id))?.and_then(|row| serde_json::from_slice::<Verified>(&row).ok());
                Ok::<_, Error>((last, queue::archivers(store, &*gone)?, !store.packs(None, 1)?.is_empty()))
            })
            .await?;
        if !has_packs || checkpoint::rank("verify", &self.store.origin().node, archivers) > 0 {
            return Ok(None);
        }
        // A node that never looked begins a period after its start: it has just been told that all is well.
        let since = last.map_or(self.began_ms, |last| last.at_ms);
        let waited = Duration::from_millis(writer::now_ms().saturating_sub(since));
        Ok(Some(period.saturating_sub(waited)))
    }

    /// The daily look: at the listing alone.
    pub(super) async fn look_and_tell(self: &Arc<Self>, bucket: &Arc<dyn Bucket>) -> Result<(), Error> {
        let (verified, _) = self.look(bucket).await?;
        if verified.is_whole() {
            tracing::info!(packs = verified.packs, orphans = verified.orphans.len(), "the bucket holds what was written to it");
        } else {
            let (missing, wrong_size) = (verified.missing.len(), verified.wrong_size.len());
            tracing::error!(
                missing,
                wrong_size,
                "packs are not in the bucket as they were written; `larder archive verify --mend` writes them anew"
            );
        }
        self.keep(bucket, &verified).await
    }

    /// What the last look has found.
    pub(super) async fn looked(&self, bucket: &str) -> Result<Option<Verified>, Error> {
        let name = setting(bucket);
        let row = self.store.run(move |store| store.setting(&name)).await?;
        Ok(row.and_then(|row| serde_json::from_slice(&row).ok()))
    }

    async fn keep(&self, bucket: &Arc<dyn Bucket>, verified: &Verified) -> Result<(), Error> {
        self.measure(verified);
        let row = serde_json::to_vec(verified).expect("texts and numbers are JSON");
        let settings = vec![(setting(bucket.id()), Some(row))];
        self.store.run(move |store| store.commit(Commit { records: Vec::new(), settings })).await?;
        Ok(())
    }

    /// Sets the metrics to what was found.
    pub(super) fn measure(&self, verified: &Verified) {
        let damaged = verified.read.as_ref().map_or(0, |read| read.damaged.len() + read.unreadable.len());
        self.metrics.archive_wrong_packs.set((verified.missing.len() + verified.wrong_size.len()) as i64);
        self.metrics.archive_damaged_blobs.set(damaged as i64);
        self.metrics.archive_orphans.set(verified.orphans.len() as i64);
        self.metrics.archive_verified.set((verified.at_ms / 1000) as i64);
    }

    /// Lists the bucket beside the catalogue; what is wrong with which pack, too.
    async fn look(self: &Arc<Self>, bucket: &Arc<dyn Bucket>) -> Result<(Verified, Wrong), Error> {
        let at_ms = writer::now_ms();
        let catalogue = self.catalogue(bucket.id()).await?;
        let (packs, strange) = tail::list(&**bucket, &BTreeMap::new()).await?;
        let checkpoints = checkpoint::list(&**bucket, 0).await?;
        let listed: Vec<Listed> = packs.into_iter().map(|(_, listed)| listed).collect();
        let mut classes = BTreeMap::<String, (u64, u64)>::new();
        for one in &listed {
            let class = one.class.clone().unwrap_or_else(|| keys::class_of(&one.key).name().to_owned());
            let sum = classes.entry(class).or_default();
            *sum = (sum.0 + 1, sum.1.saturating_add(one.size));
        }
        let sizes: BTreeMap<String, u64> = catalogue.iter().map(|(key, (_, size))| (key.clone(), *size)).collect();
        let differ = compare(&sizes, &listed);
        // What was recorded or forgotten meanwhile is not wrong.
        let now = if differ.is_empty() { catalogue.clone() } else { self.catalogue(bucket.id()).await? };
        let count = listed.len() + strange.len() + checkpoints.len();
        let bytes = listed.iter().chain(checkpoints.iter().map(|(_, listed)| listed)).map(|listed| listed.size).sum();
        let mut verified = Verified { at_ms, objects: count as u64, bytes, packs: now.len() as u64, classes, ..Verified::default() };
        let mut wrong = Wrong::new();
        for (key, (written, found)) in differ {
            let (was, is) = (catalogue.get(&key), now.get(&key));
            match (written, found) {
                (None, _) if is.is_none() && self.is_retired(bucket, &key).await? => verified.retired += 1,
                (None, _) if is.is_none() => verified.orphans.push(key),
                (Some(written), found) if is == was => {
                    wrong.extend(is.map(|(id, _)| (*id, None)));
                    match found {
                        None => verified.missing.push(key),
                        Some(found) => verified.wrong_size.push(WrongSize { key, written, found }),
                    }
                }
                _ => {}
            }
        }
        verified.orphans.extend(strange.into_iter().map(|skipped| skipped.key));
        verified.orphans.truncate(NAMED_MAX);
        verified.missing.truncate(NAMED_MAX);
        verified.wrong_size.truncate(NAMED_MAX);
        Ok((verified, wrong))
    }

    /// Whether a pack was taken off the catalogue.
    async fn is_retired(&self, bucket: &Arc<dyn Bucket>, key: &str) -> Result<bool, Error> {
        let Some(id) = keys::parse_pack(bucket.prefix(), key) else { return Ok(false) };
        let record = self.store.run(move |store| store.record(&Key::Archived(id))).await?;
        Ok(record.is_some_and(|record| record.value.is_none()))
    }

    /// Key to id and size of the packs that records tell of in a bucket.
    async fn catalogue(&self, bucket: &str) -> Result<HashMap<String, (PackId, u64)>, Error> {
        let mut catalogue = HashMap::new();
        self.each_pack(|id, archived| {
            if archived.bucket == bucket {
                catalogue.insert(archived.object_key.clone(), (*id, archived.size));
            }
        })
        .await?;
        Ok(catalogue)
    }

    /// Reads packs and hashes what is in them; one after the other, so that nobody who pulls is slowed.
    async fn read_packs(&self, bucket: &Arc<dyn Bucket>, subset: Subset, wrong: &Wrong) -> Result<(Read, Wrong), Error> {
        let (mut read, mut damaged) = (Read::default(), Wrong::new());
        let mut ids = Vec::new();
        self.each_pack(|id, archived| {
            if archived.bucket == bucket.id() && subset.has(id) && !wrong.contains_key(id) {
                // Nobody thaws to look.
                if self.thaws.is_frozen(archived) { read.frozen += 1 } else { ids.push(*id) }
            }
        })
        .await?;
        for id in ids {
            // It may have been forgotten meanwhile.
            let Some(archived) = self.store.run(move |store| store.pack(&id)).await? else { continue };
            let listed = Listed::new(archived.object_key.clone(), archived.size);
            if let Err(error) = tail::read(&**bucket, id, &listed).await {
                // Not damaged: nobody here can tell.
                if matches!(error, Error::Locked { .. }) {
                    return Err(error);
                }
                read.unreadable.push(Skipped { key: listed.key.clone(), why: error.to_string() });
                damaged.entry(id).or_default();
            }
            let mut places = archived.contents.clone();
            places.retain(|place| place.offset.checked_add(place.length).is_some_and(|end| end <= archived.size));
            let outside = archived.contents.iter().filter(|place| !places.contains(place)).map(|place| place.digest).collect::<Vec<_>>();
            let found = match hashed::check(bucket, &listed.key, places).await {
                Ok(found) => found,
                Err(error) => {
                    read.unreadable.push(Skipped { key: listed.key, why: error.to_string() });
                    continue;
                }
            };
            read.packs += 1;
            read.blobs += archived.contents.len() as u64;
            read.bytes += found.bytes;
            let lost: Vec<Digest> = found.damaged.into_iter().chain(outside).collect();
            if !lost.is_empty() {
                let named = lost.iter().map(|digest| Damaged { key: archived.object_key.clone(), digest: *digest });
                read.damaged.extend(named.take(NAMED_MAX.saturating_sub(read.damaged.len())));
                damaged.insert(id, Some(lost));
            }
        }
        Ok((read, damaged))
    }

    /// What packs have lost goes into others; how many packs that were.
    async fn mend(self: &Arc<Self>, bucket: &Arc<dyn Bucket>, turn: &mut Turn, wrong: Wrong) -> Result<u64, Error> {
        self.check_bucket(bucket, &mut turn.checked).await?;
        let (mut mended, mut lost_records) = (0, false);
        for (id, lost) in wrong {
            let archived = self.store.run(move |store| store.pack(&id)).await?;
            let Some(archived) = archived else { continue };
            lost_records |= lost.is_none();
            let (kept, lost): (Vec<Located>, Vec<Located>) = match lost {
                Some(lost) => archived.contents.iter().partition(|place| !lost.contains(&place.digest)),
                None => (Vec::new(), archived.contents.clone()),
            };
            if lost.is_empty() {
                continue;
            }
            // What is left of it stays where it is; of nothing, the record goes.
            let record = if kept.is_empty() { None } else { Some(Value::Archived(Archived { contents: kept, ..archived })) };
            let lost: Vec<Digest> = lost.into_iter().map(|place| place.digest).collect();
            let digests = lost.clone();
            // A manifest has no link; without it the records of its pack can't be read.
            lost_records |= self
                .store
                .run(move |store| {
                    let is_blob = |digest: &Digest| Ok::<_, crate::store::Error>(!store.repositories_linking(digest, 1)?.is_empty());
                    digests.iter().map(is_blob).collect::<Result<Vec<bool>, _>>()
                })
                .await?
                .contains(&false);
            self.write_anew(bucket, turn, (Key::Archived(id), record), lost).await?;
            mended += 1;
        }
        if lost_records {
            let last = self.last_checkpoint(bucket).await?;
            self.write_checkpoint(bucket, last).await?;
        }
        Ok(mended)
    }
}

/// By pack: the blobs that are lost; `None` for all of them.
type Wrong = BTreeMap<PackId, Option<Vec<Digest>>>;

#[cfg(test)]
mod tests {
    use super::*;
    use larder_protocol::stamp::NodeId;
    use larder_protocol::vector::Origin;

    #[test]
    fn a_listing_and_a_catalogue_differ_in_three_ways() {
        let listed = |key: &str, size| Listed::new(key.to_owned(), size);
        let catalogue = [("a", 1), ("b", 2), ("c", 3)].map(|(key, size)| (key.to_owned(), size)).into();
        let differ = compare(&catalogue, &[listed("a", 1), listed("b", 9), listed("d", 4)]);
        let expected = [("b", (Some(2), Some(9))), ("c", (Some(3), None)), ("d", (None, Some(4)))];
        assert_eq!(differ, expected.map(|(key, sizes)| (key.to_owned(), sizes)).into());
    }

    #[test]
    fn every_pack_is_in_one_part() {
        let origin = Origin { node: NodeId([1; 32]), incarnation: 1 };
        let parts: Vec<u64> = (1..=7)
            .map(|part| (0..700).filter(|sequence| Subset { part, of: 7 }.has(&PackId { origin, sequence: *sequence })).count() as u64)
            .collect();
        assert_eq!(parts.iter().sum::<u64>(), 700);
        assert!(parts.iter().all(|count| (50..150).contains(count)), "{parts:?}");
    }

    #[test]
    fn a_subset_is_n_of_m() {
        assert_eq!("2/30".parse(), Ok(Subset { part: 2, of: 30 }));
        for bad in ["", "1", "0/3", "4/3", "1/0", "-1/3", "1/10001", "a/b", "1/3/5"] {
            assert!(bad.parse::<Subset>().is_err(), "{bad}");
        }
    }
}
