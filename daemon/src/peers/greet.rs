//! Taking calls: who is it, do we understand each other; then using the connection until it ends.
//!
//! A member says hello. A stranger, let through the gate because a token waits, may show it and nothing else. A member that shows
//! a token has been let in before and has not heard of it: it is told again.

use std::sync::Arc;
use std::time::Duration;

use larder_protocol::message::{Answer, Hello, Request};
use larder_protocol::refusal::Refusal;
use larder_protocol::stamp::NodeId;
use larder_protocol::version;
use tokio::sync::Semaphore;
use tokio::task::JoinSet;

use super::endpoint::Connection;
use super::error::{Error, Result};
use super::links::{Agreed, Link, Links};
use super::{Inner, Peers, exchange, join, pulse, reconcile, serve};

/// How long a hello may take.
pub(super) const HELLO: Duration = Duration::from_secs(5);
/// Peers that are shaking hands at a time; further calls wait.
const HANDSHAKES_MAX: usize = 64;
/// Strangers that are heard at a time; further ones are sent away.
const STRANGERS_MAX: usize = 8;

/// Takes in who calls.
pub(super) async fn accept(peers: Peers) {
    let stopping = peers.inner.tasks.stopping();
    let (handshakes, strangers) = (Arc::new(Semaphore::new(HANDSHAKES_MAX)), Arc::new(Semaphore::new(STRANGERS_MAX)));
    loop {
        let call = async {
            let turn = Arc::clone(&handshakes).acquire_owned().await.expect("never closed");
            Some((turn, peers.inner.endpoint.accept().await?))
        };
        let (turn, handshake) = tokio::select! {
            _ = stopping.cancelled() => return,
            call = call => match call {
                Some(call) => call,
                None => return,
            },
        };
        let (hearing, strangers) = (peers.clone(), Arc::clone(&strangers));
        peers.spawn(async move {
            let Some(connection) = handshake.await else { return };
            if hearing.inner.members.is_member(&connection.peer()) {
                connection.trust();
                let greeted = tokio::time::timeout(HELLO, greeted(&hearing.inner, &connection)).await;
                drop(turn);
                take_up(hearing, connection, greeted).await;
            } else {
                drop(turn);
                match strangers.try_acquire() {
                    Ok(_turn) => join::hear(&hearing.inner, &connection).await,
                    Err(_) => connection.close("too many are knocking; try again"),
                }
            }
        });
    }
}

async fn take_up(peers: Peers, connection: Connection, greeted: std::result::Result<Result<Option<Agreed>>, tokio::time::error::Elapsed>) {
    let peer = connection.peer();
    match greeted {
        Ok(Ok(Some(agreed))) => keep(peers, connection, peer, agreed).await,
        Ok(Ok(None)) => {}
        Ok(Err(Error::Refused { refusal, .. })) => {
            tracing::info!(?peer, why = refusal.meaning(), "a member was turned away: the two nodes don't fit");
            // It closes the connection when it has read the answer.
            let _ = tokio::time::timeout(HELLO, connection.closed()).await;
        }
        Ok(Err(error)) => tracing::info!(?peer, %error, "a member's call came to nothing"),
        Err(_) => connection.close("no hello"),
    }
}

/// Answers the first words of a member that called: what was agreed; `None` when it asked to join, and was answered.
async fn greeted(inner: &Inner, connection: &Connection) -> Result<Option<Agreed>> {
    let mut stream = connection.accept().await?;
    let answer = match stream.receive.message::<Request>().await? {
        Some(Request::Hello(theirs)) => match welcome(inner, &theirs) {
            Ok(agreed) => {
                stream.send.message(&Answer::Hello(inner.hello())).await?;
                stream.send.finish();
                return Ok(Some(agreed));
            }
            Err(refusal) => Answer::Refused(refusal),
        },
        Some(Request::Join(_)) => Answer::Joined(join::welcome(inner)),
        _ => return Err(Error::Violation { peer: connection.peer(), what: "something else than a hello".to_owned() }),
    };
    stream.send.message(&answer).await?;
    stream.send.finish();
    match answer {
        Answer::Refused(refusal) => Err(Error::Refused { peer: connection.peer(), refusal }),
        _ => {
            connection.closed().await;
            Ok(None)
        }
    }
}

/// Whether two nodes can talk, and how.
pub(super) fn welcome(inner: &Inner, theirs: &Hello) -> std::result::Result<Agreed, Refusal> {
    if theirs.cluster != inner.store.cluster() {
        return Err(Refusal::OTHER_CLUSTER);
    }
    let version = version::agree(theirs.oldest, theirs.newest.min(inner.newest)).ok_or(Refusal::VERSION)?;
    Ok(Agreed { life: theirs.life, version })
}

/// Uses a connection until it ends.
pub(super) async fn keep(peers: Peers, connection: Connection, dialler: NodeId, agreed: Agreed) {
    let inner = &peers.inner;
    let peer = connection.peer();
    let Some(link) = inner.links.add(Link::new(connection, dialler, agreed)) else { return };
    let up = Up { links: &inner.links, link, inner };
    up.count();
    // An expulsion that came between the handshake and now found no link to close.
    if !inner.members.is_member(&peer) {
        return up.link.connection.close("you are no member of this cluster");
    }
    if inner.clones.see(peer, agreed.life) {
        inner.metrics.cloned_nodes.set(inner.clones.count() as i64);
        tracing::warn!(
            ?peer,
            "two processes use this node's key: a clone runs. Stop one of them, remove the key from its data folder, and let it join as a node of its own"
        );
    }
    tracing::info!(?peer, "connected");
    let why = tokio::select! {
        why = up.link.connection.closed() => why,
        () = pulse::listen(inner, &up.link) => up.link.connection.closed().await,
        () = reconcile::watch(inner, &up.link) => "records are not compared any more".to_owned(),
        () = exchange::pull(inner, &up.link) => "records are not read any more".to_owned(),
        () = answer(&peers, &up.link) => up.link.connection.closed().await,
    };
    if up.link.connection.was_displaced() {
        // ORDER: before the redial that the end of the link asks for.
        inner.links.give_way(peer);
    }
    tracing::info!(?peer, why, "disconnected");
}

/// A link in the list of links, for as long as this lives.
struct Up<'a> {
    links: &'a Links,
    link: Arc<Link>,
    inner: &'a Inner,
}

impl Up<'_> {
    fn count(&self) {
        self.inner.metrics.peers_connected.set(self.links.all().len() as i64);
        self.inner.pulse.notify_one();
    }
}

impl Drop for Up<'_> {
    fn drop(&mut self) {
        self.link.connection.close("done");
        self.inner.acks.note(&self.link, &self.inner.store.origin());
        self.links.remove(&self.link);
        self.count();
        self.inner.redial.notify_one();
    }
}

/// Answers the peer's streams, each in a task of its own, until the connection ends; how many it may open is limited by
/// the endpoint.
async fn answer(peers: &Peers, link: &Arc<Link>) {
    let mut answers = JoinSet::new();
    loop {
        tokio::select! {
            stream = link.connection.accept() => {
                let Ok(stream) = stream else { return };
                let (peers, link) = (peers.clone(), Arc::clone(link));
                answers.spawn(async move {
                    if let Err(error) = serve::answer(&peers.inner, &link, stream).await {
                        tracing::debug!(%error, "a peer's request was not answered whole");
                    }
                });
            }
            Some(ended) = answers.join_next() => {
                if let Err(error) = ended && error.is_panic() {
                    std::panic::resume_unwind(error.into_panic());
                }
            }
        }
    }
}
