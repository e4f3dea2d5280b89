//! Making other nodes keep an image now, and not in their own time: what a push waits for that is to survive this node.
//!
//! A node is asked with one stream ([`Keep`]): it waits until it knows the records durably, fetches what it lacks, and says
//! again and again how far it has come, so that silence tells a dead node from a slow one. [`Quorum`] decides who is asked.
//!
//! Dropped in the middle, everything that is under way ends with the streams; what was fetched stays where it is.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt;
use futures_util::stream::{self, FuturesUnordered};
use larder_protocol::digest::Digest;
use larder_protocol::message::{Answer, Keep, Request, WHO_HAS_MAX};
use larder_protocol::refusal::Refusal;
use larder_protocol::stamp::NodeId;
use larder_protocol::vector::VersionVector;
use tokio::time::{Instant, MissedTickBehavior, interval, sleep_until, timeout};

use super::endpoint::Stream;
use super::error::{Error, Result};
use super::links::Link;
use super::quorum::{Ask, Quorum};
use super::{Inner, Peers};
use crate::store::{self, Needs};

/// The first protocol version in which a node can be asked to keep something.
pub(super) const KEEP_SINCE: u16 = 2;
/// How often a node that was asked says how far it is.
const BEAT: Duration = Duration::from_secs(1);
/// A node that was asked and says nothing for so long is left.
const SILENCE: Duration = Duration::from_secs(4);
/// How often nodes are looked for that have come up, while there are too few.
const LOOK: Duration = Duration::from_millis(200);
/// Longest that a node works for one request.
const WORK_MAX: Duration = Duration::from_secs(10 * 60);
/// Blobs that are fetched at a time for one request.
const FETCHES: usize = 4;

/// Why an image is on fewer nodes than it should be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Shortage {
    /// On how many other nodes it should be.
    pub wanted: usize,
    /// How many others there are that may write.
    pub members: usize,
    /// How many of them are in reach.
    pub reached: usize,
    /// Blobs that too few have.
    pub missing: Vec<Digest>,
    /// Whether too few know its records.
    pub unknown: bool,
}

/// See [`super::Peers::keep`].
pub(super) async fn keep(
    inner: &Inner,
    manifest: Digest,
    needs: Needs,
    copies: usize,
    until: Instant,
) -> std::result::Result<(), Shortage> {
    let (placement, own) = (inner.placement(), inner.identity.node());
    // What a reader passes on is not taken: records that only readers know would be lost to all others.
    let members = inner.other_writers();
    let digests: Arc<[Digest]> = [manifest].into_iter().chain(needs.blobs.iter().map(|(digest, _)| *digest)).collect();
    let short = |reached, missing, unknown| Shortage { wanted: copies, members, reached, missing, unknown };
    if members < copies {
        return Err(short(members, Vec::new(), true));
    }
    let all = Arc::clone(&digests);
    let ranked = inner.store.run(move |_| {
        let others = |digest| placement.ranked(digest).into_iter().filter(|node| *node != own).collect();
        all.iter().map(others).collect::<Vec<Vec<_>>>()
    });
    let mut ranked = ranked.await;
    ranked[0].retain(|node| inner.members.roles(node).is_writer());
    let mut quorum = Quorum::new(copies, &ranked);
    let mut asked = FuturesUnordered::new();
    loop {
        if quorum.is_done() {
            return Ok(());
        }
        let links = inner.links.all().into_iter().filter(|link| link.version() >= KEEP_SINCE);
        let links: HashMap<_, _> = links.map(|link| (link.connection.peer(), link)).collect();
        for ask in quorum.ask(|node| links.contains_key(node), std::time::Instant::now()) {
            let link = Arc::clone(&links[&ask.node]);
            let wanted = ask.wants.iter().filter(|want| **want != 0).map(|want| digests[*want]).collect();
            let vector = needs.vector.clone();
            asked.push(async move { (ask, ask_to_keep(&link, vector, wanted).await) });
        }
        tokio::select! {
            Some((ask, told)) = asked.next() => settle(&mut quorum, &ask, &told),
            () = sleep_until(until.min(Instant::now() + LOOK)) => if Instant::now() >= until {
                let missing: Vec<_> = quorum.missing().collect();
                let blobs = missing.iter().filter(|want| **want != 0).map(|want| digests[*want]).collect();
                return Err(short(links.len(), blobs, missing.contains(&0)));
            },
        }
    }
}

/// What a node has said of the records, and of the blobs in the order in which it was asked.
struct Told {
    knows: bool,
    has: Vec<bool>,
}

fn settle(quorum: &mut Quorum, ask: &Ask, told: &Told) {
    let blobs: Vec<_> = ask.wants.iter().filter(|want| **want != 0).collect();
    let has = |want: usize| blobs.iter().position(|blob| **blob == want).and_then(|at| told.has.get(at)).copied().unwrap_or(false);
    quorum.answered(ask, told.knows, has, std::time::Instant::now());
}

/// Asks one node, and waits while it gets on; what it has in the end.
async fn ask_to_keep(link: &Link, vector: VersionVector, digests: Vec<Digest>) -> Told {
    let mut told = Told { knows: false, has: Vec::with_capacity(digests.len()) };
    let mut parts: Vec<_> = digests.chunks(WHO_HAS_MAX).map(<[_]>::to_vec).collect();
    if parts.is_empty() {
        parts.push(Vec::new());
    }
    for part in parts {
        let count = part.len();
        let standing = match ask_for_part(link, Keep { vector: vector.clone(), digests: part }).await {
            Ok(standing) => standing,
            Err(error) => {
                tracing::debug!(%error, "a node that was asked to keep an image did not answer to the end");
                None
            }
        };
        let mut standing = standing.unwrap_or_else(|| vec![false; count + 1]);
        told.knows = standing.remove(0);
        told.has.extend(standing);
        if !told.knows {
            break;
        }
    }
    told
}

/// What a node said last; `None`, when it said nothing.
async fn ask_for_part(link: &Link, keep: Keep) -> Result<Option<Vec<bool>>> {
    let peer = link.connection.peer();
    let (count, mut last) = (keep.digests.len() + 1, None);
    let late = |_| Error::Connection { doing: "ask", peer, why: format!("nothing within {SILENCE:?}") };
    let mut stream = timeout(SILENCE, link.connection.open(&Request::Keep(keep))).await.map_err(late)??;
    stream.send.finish();
    loop {
        match timeout(SILENCE, stream.receive.message::<Answer>()).await {
            Ok(Ok(Some(Answer::Holders(standing)))) if standing.len() == count => {
                if standing.iter().all(|there| *there) {
                    return Ok(Some(standing));
                }
                last = Some(standing);
            }
            Ok(Ok(Some(Answer::Refused(refusal)))) => return Err(Error::Refused { peer, refusal }),
            Ok(Ok(Some(_))) => return Err(Error::Violation { peer, what: "something else than what it holds".to_owned() }),
            // What it said last counts: a blob that it has does not go away with the connection.
            Ok(Ok(None)) | Ok(Err(_)) | Err(_) => return Ok(last),
        }
    }
}

/// Answers a [`Keep`].
pub(super) async fn answer(inner: &Inner, link: &Link, mut stream: Stream, keep: Keep) -> Result<()> {
    let Some(ensure) = inner.ensure.get().filter(|_| keep.digests.len() <= WHO_HAS_MAX) else {
        stream.send.message(&Answer::Refused(Refusal::TOO_MUCH)).await?;
        stream.send.finish();
        return Ok(());
    };
    let work = timeout(WORK_MAX, async {
        let _turn = link.keeps.acquire().await.expect("never closed");
        let mut changes = inner.store.changes();
        while !inner.store.vector().covers(&keep.vector) {
            if changes.changed().await.is_err() {
                return;
            }
        }
        let digests = keep.digests.clone();
        let absent = inner.store.run(move |store| absent(store, &digests)).await;
        let absent = absent.inspect_err(|error| tracing::warn!(%error, "look for what another node wants kept here")).unwrap_or_default();
        stream::iter(absent)
            .for_each_concurrent(FETCHES, |(digest, link)| async move {
                let _ = ensure(digest, link).await;
            })
            .await;
    });
    tokio::pin!(work);
    let mut beat = interval(BEAT);
    beat.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        let done = tokio::select! {
            // ORDER: first what is there already, so that who only wants to know need not wait.
            biased;
            _ = beat.tick() => false,
            _ = &mut work => true,
        };
        stream.send.message(&Answer::Holders(standing(inner, &keep).await?)).await?;
        if done {
            stream.send.finish();
            return Ok(());
        }
    }
}

/// What of these blobs is not here, as far as a repository links it.
fn absent(store: &store::Store, digests: &[Digest]) -> store::Result<Vec<(Digest, larder_protocol::record::Link)>> {
    let mut absent = Vec::new();
    for digest in digests {
        if store.blob(digest)?.is_some() {
            continue;
        }
        if let Some(repository) = store.repositories_linking(digest, 1)?.pop() {
            absent.extend(store.link(&repository, digest)?.map(|link| (*digest, link)));
        }
    }
    Ok(absent)
}

/// Whether the records are known, and which of the blobs are here to stay.
async fn standing(inner: &Inner, keep: &Keep) -> Result<Vec<bool>> {
    let knows = inner.store.vector().covers(&keep.vector);
    let mut standing = vec![knows];
    standing.extend(vouch(inner, keep.digests.clone()).await?.into_iter().map(|here| here && knows));
    Ok(standing)
}

impl Peers {
    /// Whether any other node in reach has a blob, and is not about to drop it.
    pub async fn anybody_has(&self, digest: Digest) -> bool {
        let others = self.inner.links.all().iter().map(|link| link.connection.peer()).collect();
        vouching(&self.inner, &[digest], &[others]).await.iter().any(|count| *count > 0)
    }
}

/// For each blob, how many of the nodes named beside it vouch for it now. All are asked at once.
pub(super) async fn vouching(inner: &Inner, digests: &[Digest], named: &[Vec<NodeId>]) -> Vec<usize> {
    let links = inner.links.all().into_iter().filter(|link| link.version() >= KEEP_SINCE);
    let asked = links.map(|link| {
        let peer = link.connection.peer();
        let indices: Vec<_> = (0..digests.len()).filter(|index| named[*index].contains(&peer)).collect();
        async move {
            let mut vouched = Vec::new();
            for part in indices.chunks(WHO_HAS_MAX) {
                let request = Request::Vouch(part.iter().map(|index| digests[*index]).collect());
                let Ok(Ok((Answer::Holders(answer), _))) = timeout(SILENCE, link.connection.ask(&request)).await else { break };
                if answer.len() != part.len() {
                    break;
                }
                vouched.extend(part.iter().zip(answer).filter(|(_, held)| *held).map(|(index, _)| *index));
            }
            vouched
        }
    });
    let mut counts = vec![0; digests.len()];
    for vouched in futures_util::future::join_all(asked).await {
        vouched.into_iter().for_each(|index| counts[index] += 1);
    }
    counts
}

/// Which blobs are here, and not about to be dropped.
pub(super) async fn vouch(inner: &Inner, digests: Vec<Digest>) -> store::Result<Vec<bool>> {
    let leaving = inner.leaving.clone();
    // ORDER: the mark first, so that a blob which goes in between is gone when it is looked for.
    inner
        .store
        .run(move |store| {
            digests.iter().map(|digest| Ok(!leaving.has(digest) && store.blob(digest)?.is_some())).collect::<store::Result<_>>()
        })
        .await
}
