//! Finding content: here, then a peer, then the archive; one search per digest at a time.
//!
//! The only room that knows where content may be found. A blob that is not on this disk is *staged*: a peer
//! fills the staged file from its start, and where no peer has it (or all of them end early) the archive goes on
//! from where they stopped. Whoever asked reads the staged file as it grows; whoever asks meanwhile joins the same
//! search. When the last byte is there the store checks the digest and commits, exactly as after a push.
//!
//! - A search goes on when the client that began it leaves: others may follow it, and the next pull finds the blob here.
//! - What an index that was lost has left in the blob's place is taken before anybody is asked (F9).
//! - Nobody gets the last byte of a blob before its digest was checked (the store holds it back).
//! - A blob that turns out to be damaged is put aside, and from then on it is one that is not on this disk.
//! - `searches` is a lock over the searches under way; it is never held across an await.
//! - What did not come whole stays in the store for a while: the next search goes on with it, also after a crash.
//!
//! [`copies`] keeps the copies that this node owes as an owner, and [`repair`] those that it came to owe later; [`risk`] counts what is on this
//! node alone; [`ack`] waits until a push is as safe as it has to be.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use larder_protocol::digest::Digest;
use larder_protocol::message::Class;
use larder_protocol::name::RepositoryName;
use larder_protocol::record::Link;
use tokio::sync::watch;

use crate::archive::{self, Archive};
use crate::config::Config;
use crate::peers::{self, Peers, Urgency};
use crate::store::{self, BlobFile, Content, StagedReader, Staging, Store};
use crate::tasks::Tasks;
use crate::telemetry::{KindLabel, Metrics};

mod ack;
mod copies;
mod owed;
mod repair;
mod risk;

pub use ack::NotSafe;

use ack::Acks;

/// Why content could not be had.
#[derive(Clone, Debug, thiserror::Error)]
pub enum Error {
    /// Neither here, nor at a reachable peer, nor in a readable pack.
    #[error("no node that can be reached has {digest}, and no pack in the archive")]
    NotFound {
        /// The blob.
        digest: Digest,
    },
    /// Only in a pack of a frozen class. Asked for: it can be had then.
    #[error("{}", frozen(.digest, *.ready_in))]
    Frozen {
        /// The blob.
        digest: Digest,
        /// How long until then, nearly always, where somebody has asked for it.
        ready_in: Option<Duration>,
    },
    /// This disk refused.
    #[error("bring {digest} onto this disk: {source}")]
    Store {
        /// The blob.
        digest: Digest,
        /// Why.
        source: Arc<store::Error>,
    },
}

/// What is said of a blob whose pack must thaw.
fn frozen(digest: &Digest, ready_in: Option<Duration>) -> String {
    match ready_in {
        None => format!(
            "{digest} is only in the archive, in a class that must thaw before it can be read, and nobody has asked for it: run `larder archive thaw` on this node"
        ),
        Some(left) if left < Duration::from_secs(90) => format!("{digest} is only in the archive and thaws; it is about to be readable"),
        Some(left) => {
            let minutes = left.as_secs().div_ceil(60);
            let left = if minutes < 120 { format!("{minutes} minutes") } else { format!("{} hours", minutes.div_ceil(60)) };
            format!("{digest} is only in the archive and thaws; it can be read within {left}")
        }
    }
}

/// The searches under way, and how urgent each is.
type Searches = HashMap<Digest, (watch::Receiver<Search>, Arc<Urgency>)>;

/// Finds content. Cheap to clone.
#[derive(Clone)]
pub struct Lookup {
    store: Store,
    peers: Peers,
    archive: Archive,
    tasks: Tasks,
    metrics: Arc<Metrics>,
    acks: Arc<Acks>,
    ledger: Arc<copies::Ledger>,
    risk: Arc<risk::Exposed>,
    /// Bytes a second.
    repair_rate: u64,
    searches: Arc<Mutex<Searches>>,
}

/// A blob that can be read now.
#[derive(Debug)]
pub enum Opened {
    /// On this disk.
    Here(Content),
    /// On its way here: its source was found and its first bytes are there.
    Coming(StagedReader),
}

impl Opened {
    /// Bytes of the whole blob.
    pub fn size(&self) -> u64 {
        match self {
            Self::Here(content) => content.size(),
            Self::Coming(reader) => reader.size(),
        }
    }
}

/// Where a search stands.
#[derive(Clone, Debug)]
enum Search {
    Looking,
    Coming(StagedReader),
    Done,
    Failed(Error),
}

impl Lookup {
    /// Builds the ladder.
    pub fn new(config: &Config, store: Store, peers: Peers, archive: Archive, tasks: Tasks, metrics: Arc<Metrics>) -> Self {
        let acks = Arc::new(Acks::new(config.push.clone()));
        let (searches, ledger, risk) = Default::default();
        Self { store, peers, archive, tasks, metrics, searches, acks, ledger, risk, repair_rate: config.peers.repair_rate }
    }

    /// Starts keeping the copies that this node owes, and watching what is on this node alone.
    ///
    /// # Errors
    /// The store can't say which copies are owed.
    pub async fn start(&self) -> store::Result<()> {
        let ledger = Arc::clone(&self.ledger);
        self.store.run(move |store| ledger.load(store)).await?;
        self.tasks.core("copies", copies::keep(self.clone()));
        self.tasks.core("repair", repair::run(self.clone()));
        self.tasks.core("risk", risk::watch(self.clone()));
        Ok(())
    }

    /// Opens a blob for reading.
    ///
    /// Concurrent callers of one digest share one search. Cancel-safe: others are not disturbed.
    ///
    /// # Errors
    /// - `NotFound`: nobody has it.
    /// - `Frozen`: only in the archive, and it must thaw first.
    /// - `Store`: this disk can't take it.
    pub async fn open(&self, digest: Digest, link: Link) -> Result<Opened, Error> {
        loop {
            if let Some(content) = self.here(&digest).await? {
                self.store.touch(digest);
                if content.size() != link.size {
                    self.correct(digest, link).await;
                }
                return Ok(Opened::Here(content));
            }
            let Some(mut search) = self.search(digest, link, Class::Client) else { continue };
            let reader = match settled(&mut search, |search| !matches!(search, Search::Looking)).await {
                Search::Coming(reader) => reader,
                Search::Failed(error) => return Err(error),
                Search::Looking | Search::Done => continue,
            };
            // Only when the first byte is there has a source been found, and "not found" can no longer be the answer.
            if reader.clone().read(0, 1).await.is_ok() {
                return Ok(Opened::Coming(reader));
            }
            if let Search::Failed(error) = settled(&mut search, Search::has_ended).await {
                return Err(error);
            }
        }
    }

    /// Returns when what is known of a repository is here: at once, unless a restore is reading it from the archive.
    pub async fn awaken(&self, repository: &RepositoryName) {
        self.archive.awaken(repository).await;
    }

    /// Brings a blob onto this disk.
    ///
    /// # Errors
    /// As [`Lookup::open`].
    pub async fn ensure(&self, digest: Digest, link: Link) -> Result<(), Error> {
        self.ensure_for(digest, link, Class::Replication).await
    }

    /// The same; `class` says how urgent it is.
    ///
    /// # Errors
    /// As [`Lookup::open`].
    pub async fn ensure_for(&self, digest: Digest, link: Link, class: Class) -> Result<(), Error> {
        while self.here(&digest).await?.is_none() {
            let Some(mut search) = self.search(digest, link, class) else { break };
            if let Search::Failed(error) = settled(&mut search, Search::has_ended).await {
                return Err(error);
            }
        }
        Ok(())
    }

    /// Goes on after a blob's file turned out to be damaged: it is put aside, and had from elsewhere.
    ///
    /// # Errors
    /// As [`Lookup::open`].
    pub async fn heal(&self, link: Link, file: BlobFile, why: String) -> Result<Opened, Error> {
        let digest = *file.digest();
        self.put_aside(digest, Some(file), why).await?;
        self.open(digest, link).await
    }

    async fn here(&self, digest: &Digest) -> Result<Option<Content>, Error> {
        match self.store.open_blob(digest) {
            // F8: nobody gets it; what is asked for next is a blob that is not here.
            Err(error @ store::Error::Damaged { .. }) => {
                self.put_aside(*digest, None, error.to_string()).await?;
                self.store.open_blob(digest)
            }
            opened => opened,
        }
        .map_err(|source| Error::Store { digest: *digest, source: Arc::new(source) })
    }

    async fn put_aside(&self, digest: Digest, file: Option<BlobFile>, why: String) -> Result<(), Error> {
        let put_aside = self.store.run(move |store| store.quarantine(&digest, file.as_ref(), &why)).await;
        let put_aside = put_aside.map_err(|source| Error::Store { digest, source: Arc::new(source) })?;
        self.metrics.quarantined_blobs.inc_by(u64::from(put_aside));
        Ok(())
    }

    /// Joins the search for a digest, or begins it; `None` when the blob has just come in.
    fn search(&self, digest: Digest, link: Link, class: Class) -> Option<watch::Receiver<Search>> {
        let mut searches = self.searches.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((search, urgency)) = searches.get(&digest) {
            urgency.raise(class);
            return Some(search.clone());
        }
        // ORDER: a search commits its blob before it leaves the map, so asking again under the lock finds what ended just now.
        if matches!(self.store.open_blob(&digest), Ok(Some(_))) {
            return None;
        }
        let (state, search) = watch::channel(Search::Looking);
        let urgency = Arc::new(Urgency::new(class));
        searches.insert(digest, (search.clone(), Arc::clone(&urgency)));
        drop(searches);
        let lookup = self.clone();
        self.tasks.spawn("search", async move {
            let ended = match lookup.find(digest, link, &urgency, &state).await {
                Ok(()) => Search::Done,
                Err(error) => Search::Failed(error),
            };
            lookup.searches.lock().unwrap_or_else(PoisonError::into_inner).remove(&digest);
            state.send_replace(ended);
        });
        Some(search)
    }

    /// Has the blob by what its record says of it, or else by its digest alone, and commits it.
    async fn find(&self, digest: Digest, link: Link, urgency: &Urgency, state: &watch::Sender<Search>) -> Result<(), Error> {
        match self.store.run(move |store| store.adopt_file(digest, link)).await {
            Ok(false) => {}
            Ok(true) => {
                tracing::info!(%digest, "a blob file that the index did not know is a blob again");
                return Ok(());
            }
            Err(error) => {
                tracing::warn!(%digest, %error, "a blob file that the index does not know was not taken; it is had from elsewhere")
            }
        }
        let (source, size) = match self.find_as_recorded(digest, link, urgency, state).await {
            Ok(source) => (source, link.size),
            Err(error) => match self.find_by_digest(digest, link, urgency).await {
                Some(right) => ("peer", right.size),
                None => return Err(error),
            },
        };
        let label = KindLabel { kind: source };
        self.metrics.fetched_blobs.get_or_create(&label).inc();
        self.metrics.fetched_bytes.get_or_create(&label).inc_by(size);
        Ok(())
    }

    /// Climbs the ladder until the blob is whole, then commits it; says who gave the last byte.
    async fn find_as_recorded(
        &self,
        digest: Digest,
        link: Link,
        urgency: &Urgency,
        state: &watch::Sender<Search>,
    ) -> Result<&'static str, Error> {
        let refused = |source| Error::Store { digest, source: Arc::new(source) };
        let mut staged = self.store.run(move |store| store.stage(digest, link)).await;
        if let Err(store::Error::Full { need, .. }) = staged {
            // Nothing goes from this disk for what nobody can give yet.
            if let Some(ready_in) = self.thaws_first(digest, link).await {
                return Err(Error::Frozen { digest, ready_in });
            }
            self.store.make_room(need).await;
            staged = self.store.run(move |store| store.stage(digest, link)).await;
        }
        let mut staging = staged.map_err(refused)?;
        state.send_replace(Search::Coming(staging.reader()));
        let source = self.fill(&mut staging, urgency).await?;
        let finished = staging.finish().await;
        finished.map(|()| source).map_err(|error| {
            tracing::warn!(%digest, source, %error, "what came from elsewhere was not kept");
            refused(error)
        })
    }

    /// Goes on when the ladder has ended: the record may be wrong by which all that came was judged (F24). Then it is struck out. What the blob is, if it is
    /// here now.
    async fn find_by_digest(&self, digest: Digest, link: Link, urgency: &Urgency) -> Option<Link> {
        let found = self.peers.fetch_doubted(digest, link, urgency).await.unwrap_or_else(|error| {
            tracing::info!(%digest, %error, "fetch from a peer failed");
            None
        });
        if found.is_some() {
            self.correct(digest, link).await;
        }
        found
    }

    /// Strikes out what records say of a blob that is here and is something else.
    async fn correct(&self, digest: Digest, wrong: Link) {
        match self.store.run(move |store| store.correct_links(&digest, &wrong)).await {
            Ok(0) => {}
            Ok(repositories) => {
                tracing::warn!(%digest, ?wrong, repositories, "a link record said of a blob what it is not, and was written anew: a member wrote it that is broken or lies")
            }
            Err(error) => {
                tracing::warn!(%digest, ?wrong, %error, "a link record says of a blob what it is not, and could not be written anew")
            }
        }
    }

    /// Whether a blob is only in the archive and must thaw first; then in how long, where that was asked for.
    async fn thaws_first(&self, digest: Digest, link: Link) -> Option<Option<Duration>> {
        // What can't be told now is found out on the way.
        let ready_in = self.archive.thaws_first(digest, link.size).await.ok().flatten()?;
        (!self.peers.anybody_has(digest).await).then_some(ready_in)
    }

    /// Asks peers, then the archive; says who gave the last byte.
    async fn fill(&self, staging: &mut Staging, urgency: &Urgency) -> Result<&'static str, Error> {
        let digest = staging.digest();
        match self.peers.fill(staging, urgency).await {
            Ok(true) => return Ok("peer"),
            Ok(false) => {}
            Err(error @ peers::Error::Store(_)) => tracing::warn!(%digest, %error, "fetch from a peer failed on this disk"),
            Err(error) => tracing::info!(%digest, %error, "fetch from a peer failed"),
        }
        match self.archive.fill(staging).await {
            Ok(true) => return Ok("archive"),
            Ok(false) => {}
            Err(archive::Error::Frozen { ready_in, .. }) => return Err(Error::Frozen { digest, ready_in }),
            Err(error @ archive::Error::Store(_)) => tracing::warn!(%digest, %error, "fetch from the archive failed on this disk"),
            Err(error) => tracing::warn!(%digest, %error, "fetch from the archive failed"),
        }
        Err(Error::NotFound { digest })
    }
}

impl Search {
    fn has_ended(&self) -> bool {
        matches!(self, Search::Done | Search::Failed(_))
    }
}

/// Waits until a search is in the state asked for. A search whose task was dropped counts as it was last seen.
async fn settled(search: &mut watch::Receiver<Search>, wanted: impl Fn(&Search) -> bool) -> Search {
    let waited = search.wait_for(|search| wanted(search)).await.map(|search| search.clone());
    waited.unwrap_or_else(|_| search.borrow().clone())
}
