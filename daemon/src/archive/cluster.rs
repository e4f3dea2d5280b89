//! Whose bucket it is: `<prefix>/v1/cluster`, written once before the first pack.
//!
//! ```text
//! {"larder":"cluster","version":1,"cluster":"<hex>","founder":"<node id>","created_ms":...}      and spaces up to 512 bytes
//! ```
//!
//! An archiver looks at it with its first pack after a start, then once a day, and after a failure. It stops when the object is missing though it stood
//! there before (the bucket was emptied or replaced: F38), or when it names another cluster.

use std::sync::Arc;

use bytes::Bytes;
use larder_protocol::pack::{Company, Piece, link_of};
use larder_protocol::stamp::NodeId;
use serde::{Deserialize, Serialize};

use crate::store::{self, ClusterId, Commit, Store};

use super::body::Body;
use super::bucket::{Bucket, Object, get_whole};
use super::{Error, Inner, keys, writer};

/// Bytes of the object: so it can be read by one request without asking for its size.
const SIZE: u64 = 512;
/// How often it is looked at.
const CHECKED_EVERY_MS: u64 = 24 * 3_600_000;

/// The object.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Mark {
    larder: String,
    version: u32,
    cluster: String,
    founder: String,
    created_ms: u64,
}

/// The setting that says that the mark was seen in a bucket, and whom it named.
fn seen_setting(bucket: &str) -> String {
    format!("archive/marked/{bucket}")
}

impl Inner {
    /// Makes sure that packs go where they belong. `checked`: when that was last seen.
    ///
    /// # Errors
    /// `Replaced`, `OtherCluster`; the bucket's refusal.
    pub(super) async fn check_bucket(&self, bucket: &Arc<dyn Bucket>, checked: &mut Option<u64>) -> Result<(), Error> {
        // By the wall clock: a host that slept has not looked.
        let now = writer::now_ms();
        if checked.is_some_and(|at| (at..at.saturating_add(CHECKED_EVERY_MS)).contains(&now)) {
            return Ok(());
        }
        let (setting, id) = (seen_setting(bucket.id()), bucket.id().to_owned());
        let found = read_mark(&**bucket).await?;
        let seen = {
            let setting = setting.clone();
            self.store.run(move |store| store.setting(&setting)).await?
        };
        let founder = match found {
            Some(mark) if mark.cluster == hex::encode(self.store.cluster()) || self.knows(&mark.founder).await? => mark.founder,
            Some(mark) => return Err(Error::OtherCluster { bucket: id, cluster: mark.cluster }),
            None if seen.is_some() => return Err(Error::Replaced { bucket: id }),
            None => self.write_mark(&**bucket).await?,
        };
        if seen.is_none_or(|seen| seen != founder.as_bytes()) {
            let settings = vec![(setting, Some(founder.into_bytes()))];
            self.store.run(move |store| store.commit(Commit { records: Vec::new(), settings })).await?;
        }
        *checked = Some(now);
        Ok(())
    }

    /// Whether a node is a member here: it may have begun to archive before it joined.
    async fn knows(&self, founder: &str) -> Result<bool, Error> {
        let Some(founder) = NodeId::parse(founder) else { return Ok(false) };
        Ok(self.store.run(|store| store.members()).await?.iter().any(|(node, member)| *node == founder && member.is_some()))
    }

    /// Writes it; whom it names.
    async fn write_mark(&self, bucket: &dyn Bucket) -> Result<String, Error> {
        let mark = Mark {
            larder: "cluster".to_owned(),
            version: 1,
            cluster: hex::encode(self.store.cluster()),
            founder: self.store.origin().node.letters(),
            created_ms: writer::now_ms(),
        };
        let mut bytes = serde_json::to_vec(&mark).expect("texts and numbers are JSON");
        bytes.resize(SIZE as usize - 1, b' ');
        bytes.push(b'\n');
        let crc64 = link_of(&bytes).crc64;
        let body = Body::new(vec![Piece::Bytes(Bytes::from(bytes))].into(), Arc::new(|_| Err(std::io::ErrorKind::NotFound.into())));
        bucket.put_once(Object { key: keys::cluster(bucket.prefix()), crc64, body }).await?;
        Ok(mark.founder)
    }

    /// Forgets what a bucket held: everything is archived there anew.
    ///
    /// # Errors
    /// The store's refusal.
    pub(super) async fn start_over(&self, bucket: &Arc<dyn Bucket>) -> Result<u64, Error> {
        let mut turn = self.turn.lock().await;
        *turn = writer::Turn::default();
        let mut gone = Vec::new();
        self.each_pack(|id, archived| {
            if archived.bucket == bucket.id() {
                gone.push(*id);
            }
        })
        .await?;
        let (seen, cursors) = (seen_setting(bucket.id()), super::queue::cursor_prefix(bucket.id()));
        let checkpoint = super::checkpoint::last_setting(bucket.id());
        let count = gone.len() as u64;
        self.store
            .run(move |store| {
                let records = gone.into_iter().map(|id| (larder_protocol::record::Key::Archived(id), None)).collect();
                let mut settings = vec![(seen, None), (checkpoint, None)];
                settings.extend(store.settings(&cursors)?.into_iter().map(|(name, _)| (name, None)));
                store.commit(Commit { records, settings })
            })
            .await?;
        *self.counting.lock().expect("counting does not panic") = super::Counting::default();
        Ok(count)
    }
}

/// Whom this node knows, for what it writes to a bucket.
pub(super) fn company(store: &Store, bucket: &str) -> Result<Company, store::Error> {
    let founder = store.setting(&seen_setting(bucket))?;
    let mut company = Company { founder: founder.and_then(|bytes| NodeId::parse(std::str::from_utf8(&bytes).ok()?)), ..Company::default() };
    let (own, keys) = (store.origin().node, store.keys()?);
    let now = writer::now_ms();
    // Writers are keys: those that count as a member's, and for some time those that it had before.
    let mut add = |node: NodeId| match keys.get(&node) {
        None => company.members.push(node),
        Some(None) => {}
        Some(Some(counting)) => {
            company.members.extend([Some(counting.used), counting.announced].into_iter().flatten());
            for (key, until_ms) in &counting.before {
                if *until_ms > now { company.members.push(*key) } else { company.expelled.push(*key) }
            }
        }
    };
    // Before its own member record is there.
    add(own);
    let mut expelled = Vec::new();
    for (node, member) in store.members()? {
        match member {
            Some(_) if node == own => {}
            Some(_) => add(node),
            None => {
                expelled.push(node);
                let known = keys.get(&node).iter().filter_map(|counting| counting.as_ref()).collect::<Vec<_>>();
                expelled.extend(known.iter().flat_map(|counting| {
                    let later = [Some(counting.used), counting.announced].into_iter().flatten();
                    later.chain(counting.before.iter().map(|(key, _)| *key)).filter(|key| *key != node).collect::<Vec<_>>()
                }));
            }
        }
    }
    company.expelled.extend(expelled);
    Ok(company)
}

/// What a bucket's mark says.
#[derive(Clone, Copy, Debug)]
pub(super) struct Marked {
    /// Whose it is.
    pub cluster: Option<ClusterId>,
    /// Who wrote it.
    pub founder: Option<NodeId>,
}

/// Reads a bucket's mark, if there is one.
pub(super) async fn marked(bucket: &dyn Bucket) -> Result<Option<Marked>, Error> {
    let Some(mark) = read_mark(bucket).await? else { return Ok(None) };
    let mut cluster = ClusterId::default();
    let is_cluster = hex::decode_to_slice(&mark.cluster, &mut cluster).is_ok();
    Ok(Some(Marked { cluster: is_cluster.then_some(cluster), founder: NodeId::parse(&mark.founder) }))
}

/// The mark; one that can't be read is of a later program.
async fn read_mark(bucket: &dyn Bucket) -> Result<Option<Mark>, Error> {
    let key = keys::cluster(bucket.prefix());
    let bytes = match get_whole(bucket, &key, 0..SIZE).await {
        Ok(bytes) => bytes,
        Err(Error::NoObject { .. }) => return Ok(None),
        Err(error) => return Err(error),
    };
    match serde_json::from_slice::<Mark>(&bytes) {
        Ok(mark) if mark.larder == "cluster" => Ok(Some(mark)),
        _ => {
            let detail = "it does not name a cluster as this program writes it".to_owned();
            Err(Error::Bucket { doing: "read", key, bucket: bucket.id().to_owned(), detail })
        }
    }
}
