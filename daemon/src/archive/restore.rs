//! A bucket's metadata back onto an empty node. Blobs stay where they are until somebody asks for them: see `fill`.
//!
//! LIST gives the packs; the end of each, one ranged GET, gives its footer, its index, its records and their manifests. A pack that can't be used is
//! named in the report and left out; the rest goes on.
//!
//! How far each origin is known afterwards follows from what the packs say they cover: up to the first gap, and no further. What is behind
//! a gap is here as well, but a peer that comes back is asked for it again.
//!
//! A restore that was interrupted can be begun again with the same address: merging records twice changes nothing.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use aws_lc_rs::signature::{ED25519, UnparsedPublicKey};
use bytes::Bytes;
use futures_util::stream::{self, StreamExt};
use larder_protocol::pack::{Contents, Covered, FOOTER_SIZE, Footer, InvalidPack};
use larder_protocol::record::{Archived, Key, Numbered, PackId, Value};
use larder_protocol::stamp::NodeId;
use larder_protocol::vector::{Origin, VersionVector};

use crate::config::ArchiveUrl;
use crate::store::{ClusterId, Commit};

use super::bucket::{self, Bucket, Listed};
use super::{Error, Inner, Restored, Skipped, keys, queue};

/// The setting that holds the address that blobs of a restored cluster come from.
pub const SOURCE: &str = "archive/source";
/// The setting that says that a restore was begun and not finished.
const RESTORING: &str = "archive/restoring";
/// Bytes of a pack's end that are asked for at first: nearly always all that is needed.
const SUFFIX_SIZE: u64 = 64 << 10;
/// Packs whose ends are read at a time.
const READ_AHEAD: usize = 4;
/// Records merged in one batch.
const APPLY_BATCH: usize = 500;
/// Packs listed in one restore.
const PACKS_MAX: usize = 1_000_000;

/// What a pack's end says.
struct Opened {
    listed: Listed,
    footer: Footer,
    contents: Contents,
}

impl Inner {
    /// See [`super::Archive::restore`].
    pub async fn restore(self: &Arc<Self>, url: &str) -> Result<Restored, Error> {
        let address = bucket::parse_url(url)?;
        // A folder to archive into is made; one to restore from must be there.
        if let ArchiveUrl::Directory(path) = &address
            && !path.is_dir()
        {
            return Err(Error::Url { url: url.to_owned(), why: "there is no such folder".to_owned() });
        }
        let _turn = self.turn.lock().await;
        let own = url.to_owned();
        let ready = self.store.run(move |store| {
            let resumed = store.setting(RESTORING)?.is_some_and(|begun| begun == own.as_bytes());
            Ok::<_, crate::store::Error>(resumed || store.is_empty()?)
        });
        if !ready.await? {
            return Err(Error::NotEmpty { url: url.to_owned() });
        }
        let bucket = bucket::open(&address, &self.settings.s3, &self.ledger).await?;
        let prefix = keys::packs(bucket.prefix());
        let (packs, mut skipped) = list(&*bucket, &prefix).await?;
        let cluster = self.cluster_of(&*bucket, url, &packs, &mut skipped).await?;
        let Some(cluster) = cluster else {
            return Err(Error::NoPacks { url: url.to_owned(), prefix, skipped: skipped.len() });
        };
        let begun = vec![
            (RESTORING.to_owned(), Some(url.as_bytes().to_vec())),
            (SOURCE.to_owned(), Some(bucket::display_url(&address).into_bytes())),
        ];
        self.store.run(move |store| store.commit(Commit { records: Vec::new(), settings: begun })).await?;

        // Newest first: a pack tells of the packs before it, so most `Archived` records come by themselves.
        let (mut read, mut records, mut covers) = (0, 0, Vec::new());
        let mut ends = stream::iter(packs.into_iter().rev())
            .map(|(id, listed)| {
                let bucket = bucket.clone();
                async move { open_pack(&*bucket, id, listed).await }
            })
            .buffered(READ_AHEAD);
        while let Some(opened) = ends.next().await {
            match opened {
                Ok(opened) => {
                    records += opened.contents.records.len();
                    read += 1;
                    let key = opened.listed.key.clone();
                    let covered = opened.contents.covers.clone();
                    let refused = self.merge(&*bucket, opened).await?;
                    if refused == 0 {
                        covers.extend(covered);
                    } else {
                        let why = format!("{refused} of its records lie in the future; set this host's clock and restore again");
                        skipped.push(Skipped { key, why });
                    }
                }
                Err((key, why)) => {
                    // Those that had to be opened for their cluster are in the report already.
                    if !skipped.iter().any(|skipped| skipped.key == key) {
                        skipped.push(Skipped { key, why });
                    }
                }
            }
        }
        drop(ends);
        self.finish(&bucket, cluster, dense(covers)).await?;
        let counts = self.store.run(|store| store.counts()).await?;
        *self.source.lock().expect("never held across a panic") = Some(bucket);
        let cluster = hex::encode(cluster);
        Ok(Restored { cluster, packs: read, records, repositories: counts.repositories, tags: counts.tags, skipped })
    }

    /// The one cluster that writes to the bucket. A node may have archived before it joined: what counts is its newest readable pack.
    async fn cluster_of(
        &self,
        bucket: &dyn Bucket,
        url: &str,
        packs: &[(PackId, Listed)],
        skipped: &mut Vec<Skipped>,
    ) -> Result<Option<ClusterId>, Error> {
        let mut writers: BTreeMap<NodeId, Vec<&(PackId, Listed)>> = BTreeMap::new();
        for pack in packs {
            writers.entry(pack.0.origin.node).or_default().push(pack);
        }
        let mut clusters = BTreeSet::new();
        for mut packs in writers.into_values() {
            packs.sort_by_key(|(id, _)| *id);
            for (id, listed) in packs.into_iter().rev() {
                match open_pack(bucket, *id, listed.clone()).await {
                    Ok(opened) => {
                        clusters.insert(opened.footer.cluster);
                        break;
                    }
                    Err((key, why)) => skipped.push(Skipped { key, why }),
                }
            }
        }
        match clusters.len() {
            0 | 1 => Ok(clusters.pop_first()),
            _ => Err(Error::Clusters { url: url.to_owned(), clusters: clusters.into_iter().map(hex::encode).collect() }),
        }
    }

    /// Merges a pack's records and makes its blobs findable; says how many records were refused.
    async fn merge(&self, bucket: &dyn Bucket, opened: Opened) -> Result<usize, Error> {
        let Opened { listed, footer, contents } = opened;
        let archived = Archived {
            bucket: bucket.id().to_owned(),
            object_key: listed.key,
            size: footer.size,
            created_ms: footer.created_ms,
            records: footer.record_count,
            contents: contents.located(),
        };
        let merged = self.store.run(move |store| {
            let (mut refused, mut records) = (0, contents.records.into_iter().peekable());
            while records.peek().is_some() {
                let batch: Vec<Numbered> = records.by_ref().take(APPLY_BATCH).collect();
                refused += store.apply(batch, &VersionVector::default())?.refused;
            }
            let known = store.pack(&footer.pack)?;
            if known.is_none_or(|known| (&known.bucket, &known.object_key) != (&archived.bucket, &archived.object_key)) {
                let records = vec![(Key::Archived(footer.pack), Some(Value::Archived(archived)))];
                store.commit(Commit { records, settings: Vec::new() })?;
            }
            Ok::<_, crate::store::Error>(refused)
        });
        Ok(merged.await?)
    }

    /// Everything is merged: what is known, who we are, and what needs not be archived again.
    async fn finish(&self, bucket: &Arc<dyn Bucket>, cluster: ClusterId, known: VersionVector) -> Result<(), Error> {
        // Cursors are kept for each bucket: if this node archives to another one, everything is new there.
        let cursor = |(origin, upto): (Origin, u64)| (queue::cursor_setting(bucket.id(), &origin), Some(upto.to_string().into()));
        let mut settings: Vec<(String, Option<Vec<u8>>)> = known.iter().map(cursor).collect();
        settings.push((RESTORING.to_owned(), None));
        let finished = self.store.run(move |store| {
            store.apply(Vec::new(), &known)?;
            // ORDER: the id last but one, the mark last: a restore that dies before can be begun again.
            store.adopt_cluster(cluster)?;
            store.commit(Commit { records: Vec::new(), settings }).map(|_| ())
        });
        Ok(finished.await?)
    }
}

/// Every pack in the bucket, in order of its key, and what lies among them that is none.
async fn list(bucket: &dyn Bucket, prefix: &str) -> Result<(Vec<(PackId, Listed)>, Vec<Skipped>), Error> {
    let (mut packs, mut skipped, mut after) = (Vec::new(), Vec::new(), None::<String>);
    loop {
        let page = bucket.list(prefix, after.as_deref()).await?;
        after = page.objects.last().map(|listed| listed.key.clone());
        for listed in page.objects {
            match keys::parse_pack(bucket.prefix(), &listed.key) {
                Some(id) => packs.push((id, listed)),
                None => skipped.push(Skipped { key: listed.key, why: "its name is not that of a pack".to_owned() }),
            }
        }
        if !page.more || after.is_none() || packs.len() >= PACKS_MAX {
            return Ok((packs, skipped));
        }
    }
}

/// Reads and checks the end of a pack; on failure: its key, and why.
async fn open_pack(bucket: &dyn Bucket, id: PackId, listed: Listed) -> Result<Opened, (String, String)> {
    match read_pack(bucket, id, &listed).await {
        Ok((footer, contents)) => Ok(Opened { listed, footer, contents }),
        Err(error) => Err((listed.key, error.to_string())),
    }
}

async fn read_pack(bucket: &dyn Bucket, id: PackId, listed: &Listed) -> Result<(Footer, Contents), Error> {
    let Listed { key, size } = listed;
    let invalid = |source| Error::Pack { key: key.clone(), source: Box::new(source) };
    if *size < FOOTER_SIZE {
        return Err(invalid(InvalidPack::NoFooter));
    }
    let start = size.saturating_sub(SUFFIX_SIZE);
    let suffix = bucket::get_whole(bucket, key, start..*size).await?;
    let footer = Footer::parse(&suffix[suffix.len() - FOOTER_SIZE as usize..], *size, verify).map_err(invalid)?;
    if footer.pack != id {
        return Err(invalid(InvalidPack::Footer { what: "another pack than its name does" }));
    }
    let tail: Bytes = if footer.tail >= start {
        suffix.slice((footer.tail - start) as usize..)
    } else {
        let before = bucket::get_whole(bucket, key, footer.tail..start).await?;
        [before, suffix].concat().into()
    };
    tokio::task::spawn_blocking(move || Contents::parse(&footer, &tail).map(|contents| (footer, contents)))
        .await
        .expect("reading a pack does not panic")
        .map_err(invalid)
}

/// Whether a signature is a node's: its id is its public key.
pub(super) fn verify(node: &NodeId, bytes: &[u8], signature: &[u8; 64]) -> bool {
    UnparsedPublicKey::new(&ED25519, &node.0).verify(bytes, signature).is_ok()
}

/// How far each origin is covered without a gap.
fn dense(mut covers: Vec<(Origin, Covered)>) -> VersionVector {
    covers.sort_by_key(|(origin, covered)| (*origin, covered.after));
    let mut known = VersionVector::default();
    for (origin, covered) in covers {
        if covered.after <= known.get(&origin) {
            known.advance(origin, covered.upto);
        }
    }
    known
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn f32_what_is_known_ends_at_the_first_gap() {
        let origin = |name| Origin { node: NodeId([name; 32]), incarnation: 1 };
        let cover = |name, after, upto| (origin(name), Covered { after, upto });
        let known = dense(vec![cover(1, 10, 20), cover(1, 0, 12), cover(1, 30, 40), cover(2, 5, 9), cover(3, 0, 7), cover(3, 0, 3)]);
        assert_eq!((known.get(&origin(1)), known.get(&origin(2)), known.get(&origin(3))), (20, 0, 7));
    }
}
