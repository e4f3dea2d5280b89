//! Doing what the plan says.
//!
//! One loop owns the plan and the staged file. A task for each peer says what it has, and one for each ask brings a chunk; what
//! they find comes to the loop in one bounded channel. Dropped, all of it ends.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use larder_protocol::chunks::ChunkSet;
use larder_protocol::digest::{CHUNK_SIZE, ChunkList, Digest};
use larder_protocol::message::{Answer, ChunkRead, Class, Read, Request, Standing};
use larder_protocol::opening::OPENING_MAX;
use larder_protocol::record::Link as BlobLink;
use larder_protocol::stamp::NodeId;
use tokio::sync::mpsc;
use tokio::task::{AbortHandle, JoinSet};
use tokio::time::timeout;

use super::super::Inner;
use super::super::error::{Error, Result};
use super::super::links::Link;
use super::super::swarms::{Fetching, Urgency};
use super::ASK;
use super::plan::{Action, AskId, Event, Plan, State, TICK, chunk_size};
use super::sources::Peer;
use crate::store::Staging;
use crate::telemetry::TrafficLabels;

/// What has happened and was not looked at.
const EVENTS_MAX: usize = 256;
/// How long a chunk list may take.
const LIST: Duration = Duration::from_secs(10);
/// Peers that are asked for the chunk list at a time.
const LISTS_MAX: usize = 2;
/// A blob of this size is opened before its first chunk is here.
const OPENED_MIN: u64 = 64 << 10;
/// How often new connections are looked for.
const LOOK: Duration = Duration::from_millis(500);

/// How it ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum End {
    Whole,
    /// Nobody has what is missing.
    Nobody,
    /// The same, and connections ended meanwhile.
    Broken,
}

/// What the tasks find.
#[derive(Debug)]
enum Found {
    Says(NodeId, Standing),
    /// What it has can't be followed any more.
    Silent(NodeId),
    List(NodeId, Result<ChunkList>),
    Opening(Vec<u8>),
    Chunk(AskId, Bytes),
    Elsewhere(AskId, Vec<NodeId>),
    Failed(AskId, Error),
}

/// An ask under way.
struct Asked {
    peer: NodeId,
    index: u32,
    count: Arc<AtomicU64>,
    told: u64,
    task: AbortHandle,
}

struct Run<'a> {
    inner: &'a Inner,
    staging: &'a mut Staging,
    urgency: &'a Urgency,
    digest: Digest,
    link: BlobLink,
    begun: Instant,
    plan: Plan,
    links: HashMap<NodeId, Arc<Link>>,
    /// Of the bytes that came over a link, for all fetches of this node, how many the plan knows of.
    told: HashMap<NodeId, u64>,
    asks: BTreeMap<AskId, Asked>,
    /// Chunks that came before the list that checks them.
    unchecked: Vec<(AskId, Bytes)>,
    /// Who was asked for the list, and whether he has not answered.
    lists: HashMap<NodeId, bool>,
    is_opened: bool,
    /// Peers whose connection has ended.
    gone: HashSet<NodeId>,
    found: mpsc::Sender<Found>,
    tasks: JoinSet<()>,
}

/// Asks until the blob is whole or nobody has what is missing.
pub(super) async fn run(inner: &Inner, staging: &mut Staging, urgency: &Urgency, fetching: &mut Fetching<'_>) -> Result<End> {
    let (digest, link) = (staging.digest(), staging.link());
    if staging.offset() == link.size {
        return Ok(End::Whole);
    }
    let (found, mut events) = mpsc::channel(EVENTS_MAX);
    let have = if staging.is_checkable() { staging.chunks() } else { ChunkSet::new(ChunkList::count(link.size)) };
    let plan = Plan::new(digest, inner.identity.node(), have);
    let mut run = Run {
        inner,
        is_opened: staging.offset() > 0 || link.size < OPENED_MIN,
        staging,
        urgency,
        digest,
        link,
        begun: Instant::now(),
        plan,
        links: HashMap::new(),
        told: HashMap::new(),
        asks: BTreeMap::new(),
        unchecked: Vec::new(),
        lists: HashMap::new(),
        gone: HashSet::new(),
        found,
        tasks: JoinSet::new(),
    };
    run.look();
    let (mut tick, mut look) = (tokio::time::interval(TICK), tokio::time::interval(LOOK));
    look.tick().await;
    loop {
        run.step();
        match run.plan.state() {
            State::Going => {}
            State::Done if run.staging.offset() == link.size => return Ok(End::Whole),
            // All chunks are here, and what was there before them was not what it should be.
            State::Done => return Ok(End::Nobody),
            State::Failed if run.gone.is_empty() => return Ok(End::Nobody),
            State::Failed => return Ok(End::Broken),
        }
        tokio::select! {
            found = events.recv() => {
                run.take(found.expect("the run has a sender")).await?;
                while let Ok(found) = events.try_recv() {
                    run.take(found).await?;
                }
            }
            newcomer = fetching.newcomers.recv() => if let Some(newcomer) = newcomer {
                run.event(Event::TakesPart(newcomer));
            },
            _ = tick.tick() => run.count(),
            _ = look.tick() => run.look(),
            Some(ended) = run.tasks.join_next() => if let Err(error) = ended && error.is_panic() {
                std::panic::resume_unwind(error.into_panic());
            },
        }
    }
}

impl Run<'_> {
    fn now(&self) -> Duration {
        self.begun.elapsed()
    }

    fn event(&mut self, event: Event) {
        let (now, mut actions) = (self.now(), Vec::new());
        self.plan.event(now, event, &mut actions);
        self.act(actions);
    }

    fn step(&mut self) {
        // ORDER: when this loop was kept waiting, bytes came meanwhile, and nobody was silent.
        self.count();
        // What an earlier try has left is not asked for again: the list will tell.
        if self.staging.is_resumed() && self.now() < ASK {
            return;
        }
        self.plan.fetches = self.inner.swarms.count();
        let (now, mut actions, hedges) = (self.now(), Vec::new(), self.plan.hedges);
        self.plan.step(now, &mut actions);
        self.inner.metrics.hedged_chunks.inc_by(self.plan.hedges - hedges);
        self.act(actions);
    }

    /// Asks every connected peer that was not asked yet what it has; and takes note of connections that are gone.
    fn look(&mut self) {
        let ended: Vec<_> = self.links.iter().filter(|(_, link)| link.connection.is_closed()).map(|(peer, _)| *peer).collect();
        for peer in ended {
            self.links.remove(&peer);
            self.gone.insert(peer);
            self.event(Event::Left(peer));
        }
        for link in self.inner.links.all() {
            let peer = link.connection.peer();
            if !self.links.contains_key(&peer) {
                if self.gone.contains(&peer) {
                    self.plan.back(peer);
                }
                self.follow(link);
            }
        }
    }

    /// Asks a peer what it has, now and as it comes.
    fn follow(&mut self, link: Arc<Link>) {
        let (peer, digest, found) = (link.connection.peer(), self.digest, self.found.clone());
        // Who was of no use before is asked when nobody nearer is left.
        let near = self.is_near(&peer) && link.strikes() == 0;
        let took = Some(link.took_ms.load(Ordering::Relaxed)).filter(|took| *took > 0 && !near).map(Duration::from_millis);
        self.event(Event::Asked(peer, Peer { near, rtt: link.connection.rtt(), strikes: link.strikes(), took }));
        self.links.insert(peer, Arc::clone(&link));
        self.tasks.spawn(async move {
            if follow(&link, digest, &found).await.is_err() {
                let _ = found.send(Found::Silent(peer)).await;
            }
        });
    }

    /// Takes what a task has found.
    async fn take(&mut self, found: Found) -> Result<()> {
        match found {
            Found::Says(peer, standing) => {
                let (is_whole, has_some) = (standing == Standing::Whole, matches!(standing, Standing::Whole | Standing::Part { .. }));
                self.event(Event::Says(peer, standing));
                if has_some {
                    self.ask_list(peer);
                }
                if is_whole {
                    self.ask_opening(peer);
                }
            }
            Found::Silent(peer) => match self.links.get(&peer) {
                Some(link) if !link.connection.is_closed() => self.event(Event::Says(peer, Standing::Nothing)),
                _ => self.look(),
            },
            Found::List(peer, list) => self.take_list(peer, list).await?,
            Found::Opening(bytes) => {
                if self.staging.offset() == 0 {
                    self.staging.append(bytes.into()).await?;
                }
            }
            Found::Chunk(ask, bytes) if self.staging.is_checkable() => self.take_chunk(ask, bytes).await?,
            Found::Chunk(ask, bytes) => self.unchecked.push((ask, bytes)),
            Found::Elsewhere(ask, nodes) => {
                self.inner.metrics.elsewhere_answers.inc();
                self.end_ask(ask);
                self.event(Event::Elsewhere(ask, nodes));
            }
            Found::Failed(ask, error) => self.take_failure(ask, &error),
        }
        Ok(())
    }

    async fn take_list(&mut self, peer: NodeId, list: Result<ChunkList>) -> Result<()> {
        self.lists.insert(peer, false);
        match list {
            Ok(list) if !self.staging.is_checkable() => {
                self.staging.know(list).await?;
                self.event(Event::Found(self.staging.chunks()));
                for (ask, bytes) in std::mem::take(&mut self.unchecked) {
                    self.take_chunk(ask, bytes).await?;
                }
            }
            Ok(_) => {}
            Err(error @ Error::Violation { .. }) => {
                self.say_lied(peer, &error);
                self.unchecked.retain(|(ask, _)| self.asks.get(ask).is_none_or(|asked| asked.peer != peer));
                self.strike(peer);
                self.event(Event::Dropped(peer));
            }
            Err(error) => tracing::debug!(digest = %self.digest, %error, "a peer gave no chunk list"),
        }
        // Whoever was passed over is asked now.
        if !self.staging.is_checkable() {
            for peer in self.plan.holders() {
                self.ask_list(peer);
            }
        }
        Ok(())
    }

    async fn take_chunk(&mut self, ask: AskId, bytes: Bytes) -> Result<()> {
        let Some(Asked { peer, index, .. }) = self.asks.get(&ask) else { return Ok(()) };
        let (peer, index, size) = (*peer, *index, bytes.len() as u64);
        self.count();
        let is_right = self.staging.put_chunk(index, bytes).await?;
        self.end_ask(ask);
        if is_right {
            let far = if self.is_near(&peer) { "same" } else { "other" };
            let labels = TrafficLabels { class: name(self.urgency.class()), zone: far };
            self.inner.metrics.peer_fetched_bytes.get_or_create(&labels).inc_by(size);
            self.event(Event::Landed(ask));
            if let (Some(link), Some(took)) = (self.links.get(&peer), self.plan.took(&peer)) {
                link.took_ms.store(took.as_millis().max(1) as u64, Ordering::Relaxed);
            }
        } else {
            self.inner.metrics.bad_chunks.inc();
            let what = format!("wrong bytes as chunk {index} of {}", self.digest);
            self.say_lied(peer, &Error::Violation { peer, what });
            self.event(Event::Lied(ask));
        }
        Ok(())
    }

    fn say_lied(&self, peer: NodeId, error: &Error) {
        tracing::warn!(digest = %self.digest, ?peer, %error, "a peer's bytes were refused: it is not asked for this blob again");
    }

    fn take_failure(&mut self, ask: AskId, error: &Error) {
        let Some(asked) = self.end_ask(ask) else { return };
        tracing::debug!(digest = %self.digest, %error, "a chunk did not come");
        match error {
            Error::Violation { .. } => {
                self.say_lied(asked.peer, error);
                self.event(Event::Lied(ask));
            }
            Error::Refused { .. } => self.event(Event::Failed(ask)),
            _ => {
                self.event(Event::Failed(ask));
                self.look();
            }
        }
    }

    fn is_near(&self, peer: &NodeId) -> bool {
        self.inner.members.zone(peer).as_deref() == Some(self.inner.zone.as_str())
    }

    fn strike(&self, peer: NodeId) {
        if let Some(link) = self.links.get(&peer) {
            link.strike();
        }
    }

    /// Tells the plan how many bytes have come of each ask, and from each peer for other fetches.
    fn count(&mut self) {
        let came = |(ask, asked): (&AskId, &mut Asked)| {
            let count = asked.count.load(Ordering::Relaxed);
            let new = count - asked.told;
            asked.told = count;
            (new > 0).then_some((*ask, asked.peer, new))
        };
        let came: Vec<_> = self.asks.iter_mut().filter_map(came).collect();
        for (ask, peer, bytes) in came {
            if let Some(link) = self.links.get(&peer) {
                link.came.fetch_add(bytes, Ordering::Relaxed);
                *self.told.entry(peer).or_default() += bytes;
            }
            self.event(Event::Bytes(ask, bytes));
        }
        let asked: HashSet<_> = self.asks.values().map(|asked| asked.peer).collect();
        for peer in asked {
            let Some(came) = self.links.get(&peer).map(|link| link.came.load(Ordering::Relaxed)) else { continue };
            let told = self.told.insert(peer, came).unwrap_or_default();
            if came > told {
                self.event(Event::Heard(peer, came - told));
            }
        }
    }

    fn act(&mut self, actions: Vec<Action>) {
        for action in actions {
            match action {
                Action::Ask { ask, peer, index, insist } => self.ask(ask, peer, index, insist),
                Action::Cancel(ask) => drop(self.end_ask(ask)),
                Action::Follow(peer) => {
                    if let Some(link) = self.inner.links.get(&peer) {
                        self.follow(link);
                    }
                }
                Action::Strike(peer) => {
                    tracing::info!(digest = %self.digest, ?peer, "a peer is of no use for this blob");
                    self.strike(peer);
                }
            }
        }
    }

    fn ask(&mut self, ask: AskId, peer: NodeId, index: u32, insist: bool) {
        let (digest, class, count, found) = (self.digest, self.urgency.class(), Arc::new(AtomicU64::new(0)), self.found.clone());
        let link = self.links.get(&peer).cloned();
        let length = chunk_size(self.link.size, index);
        self.staging.partial().expect(index, true);
        let counting = Arc::clone(&count);
        let task = self.tasks.spawn(async move {
            let asked = match &link {
                Some(link) => read(link, ChunkRead { digest, index, class, insist }, length, &counting).await,
                None => Err(Error::Connection { doing: "ask", peer, why: "it is gone".to_owned() }),
            };
            let answer = match asked {
                Ok(Got::Bytes(bytes)) => Found::Chunk(ask, bytes),
                Ok(Got::Elsewhere(nodes)) => Found::Elsewhere(ask, nodes),
                Err(error) => Found::Failed(ask, error),
            };
            let _ = found.send(answer).await;
        });
        if insist {
            tracing::debug!(%digest, index, ?peer, "insisting");
        }
        self.asks.insert(ask, Asked { peer, index, count, told: 0, task });
    }

    fn end_ask(&mut self, ask: AskId) -> Option<Asked> {
        let asked = self.asks.remove(&ask)?;
        asked.task.abort();
        if !self.asks.values().any(|other| other.index == asked.index) {
            self.staging.partial().expect(asked.index, false);
        }
        Some(asked)
    }

    /// Asks a peer for the chunk list, unless it is known or enough are asked.
    fn ask_list(&mut self, peer: NodeId) {
        let is_known = self.link.size <= CHUNK_SIZE || self.staging.is_checkable();
        if is_known || self.lists.contains_key(&peer) || self.lists.values().filter(|waits| **waits).count() >= LISTS_MAX {
            return;
        }
        let Some(link) = self.links.get(&peer).cloned() else { return };
        self.lists.insert(peer, true);
        let (digest, blob, found) = (self.digest, self.link, self.found.clone());
        self.tasks.spawn(async move {
            let late = |_| Err(Error::Connection { doing: "read from", peer, why: format!("no chunk list within {LIST:?}") });
            let list = timeout(LIST, chunk_list(&link, digest, &blob)).await.unwrap_or_else(late);
            let _ = found.send(Found::List(peer, list)).await;
        });
    }

    /// Asks a peer for the first bytes, for the client that waits.
    fn ask_opening(&mut self, peer: NodeId) {
        let Some(link) = self.links.get(&peer).filter(|link| link.version() >= 2).cloned() else { return };
        if self.is_opened || self.urgency.class() != Class::Client {
            return;
        }
        self.is_opened = true;
        let (digest, blob, found) = (self.digest, self.link, self.found.clone());
        self.tasks.spawn(async move {
            let Ok(Ok((Answer::Opening(opening), _))) = timeout(ASK, link.connection.ask(&Request::Opening(digest))).await else { return };
            if let Some(bytes) = opening.checked(blob.size, &blob.root).filter(|bytes| bytes.len() as u64 <= OPENING_MAX) {
                let _ = found.send(Found::Opening(bytes)).await;
            }
        });
    }
}

/// What an ask brings.
enum Got {
    Bytes(Bytes),
    Elsewhere(Vec<NodeId>),
}

/// Hands on what a peer says of a blob until it has said the last of it.
async fn follow(link: &Link, digest: Digest, found: &mpsc::Sender<Found>) -> Result<()> {
    let peer = link.connection.peer();
    if link.version() < 2 {
        let asked = timeout(ASK, link.connection.ask(&Request::WhoHas(vec![digest]))).await;
        let holds = matches!(asked, Ok(Ok((Answer::Holders(held), _))) if held == [true]);
        let _ = found.send(Found::Says(peer, if holds { Standing::Whole } else { Standing::Nothing })).await;
        return Ok(());
    }
    let (answer, mut rest) = link.connection.ask(&Request::Follow(digest)).await?;
    let mut next = Some(answer);
    while let Some(answer) = next {
        let Answer::Standing(standing) = answer else {
            return Err(Error::Violation { peer, what: format!("something else than what it has of {digest}") });
        };
        let is_last = matches!(standing, Standing::Nothing | Standing::Whole);
        if found.send(Found::Says(peer, standing)).await.is_err() || is_last {
            return Ok(());
        }
        next = rest.message::<Answer>().await?;
    }
    Err(Error::Connection { doing: "follow", peer, why: "it ended in the middle".to_owned() })
}

async fn read(link: &Link, chunk: ChunkRead, length: u64, count: &AtomicU64) -> Result<Got> {
    let request = match link.version() {
        1 => Request::Read(Read { digest: chunk.digest, offset: u64::from(chunk.index) * CHUNK_SIZE, length }),
        _ => Request::Chunk(chunk),
    };
    let (answer, mut rest) = link.connection.ask(&request).await?;
    match answer {
        Answer::Read { length: given } if given == length => Ok(Got::Bytes(rest.raw_counted(length as usize, count).await?)),
        Answer::Elsewhere(nodes) if !chunk.insist => Ok(Got::Elsewhere(nodes)),
        _ => {
            let what = format!("something else than chunk {} of {}", chunk.index, chunk.digest);
            Err(Error::Violation { peer: link.connection.peer(), what })
        }
    }
}

/// The chunk list of a blob above one MiB, checked.
async fn chunk_list(link: &Link, digest: Digest, blob: &BlobLink) -> Result<ChunkList> {
    let peer = link.connection.peer();
    let violation = |what: String| Error::Violation { peer, what };
    let (answer, _) = link.connection.ask(&Request::ChunkList(digest)).await?;
    let Answer::ChunkList(values) = answer else { return Err(violation("something else than a chunk list".to_owned())) };
    ChunkList::checked(blob.size, values, &blob.root).map_err(|error| violation(format!("a wrong chunk list of {digest}: {error}")))
}

/// The class as metrics say it.
pub(in crate::peers) fn name(class: Class) -> &'static str {
    match class {
        Class::Client => "client",
        Class::Replication => "replication",
        Class::Repair => "repair",
    }
}
