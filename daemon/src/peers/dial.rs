//! Keeping connections up: to every member that has an address and none yet.
//!
//! Addresses come from `Member` records and join tokens only; nothing else that a peer says becomes a dial target.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use larder_protocol::message::{Answer, Hello, Request};
use larder_protocol::refusal::Refusal;
use larder_protocol::stamp::NodeId;
use larder_protocol::version;

use super::endpoint::Connection;
use super::error::{Error, Result};
use super::links::Link;
use super::{Inner, Peers, join, serve, sync};

/// How long after the first failure a member is dialled again; doubled up to the last.
const BACKOFF: (Duration, Duration) = (Duration::from_millis(200), Duration::from_secs(5));
/// How often the members without a connection are looked at.
const LOOK: Duration = Duration::from_millis(500);
/// How long a hello may take.
const HELLO: Duration = Duration::from_secs(5);
/// Most addresses of one member that are tried.
const ADDRESSES_MAX: usize = 8;
/// Peers that are shaking hands at a time.
const HANDSHAKES_MAX: usize = 64;

/// Takes in who calls.
pub(super) async fn accept(peers: Peers) {
    let stopping = peers.inner.tasks.stopping();
    let handshakes = Arc::new(tokio::sync::Semaphore::new(HANDSHAKES_MAX));
    loop {
        let handshake = tokio::select! {
            _ = stopping.cancelled() => return,
            handshake = peers.inner.endpoint.accept() => match handshake {
                Some(handshake) => handshake,
                None => return,
            },
        };
        // Beyond that, who calls waits in the kernel's buffer and calls again.
        let Ok(permit) = Arc::clone(&handshakes).acquire_owned().await else { return };
        let peers = peers.clone();
        tokio::spawn(async move {
            let connection = handshake.await;
            let Some(connection) = connection else { return };
            if !peers.inner.members.is_member(&connection.peer()) {
                join::hear(&peers.inner, &connection).await;
                return;
            }
            let greeted = tokio::time::timeout(HELLO, greeted(&peers.inner, &connection)).await;
            drop(permit);
            match greeted {
                Ok(Ok(life)) => keep(&peers, connection, None, life).await,
                Ok(Err(error)) => tracing::info!(%error, "a member's call came to nothing"),
                Err(_) => connection.close("no hello"),
            }
        });
    }
}

/// Dials members that have no connection.
pub(super) async fn dial(peers: Peers) {
    let stopping = peers.inner.tasks.stopping();
    // When to dial a member again, and how long to wait after that.
    let mut waiting: HashMap<NodeId, (Instant, Duration)> = HashMap::new();
    loop {
        let members = peers.inner.members.others();
        waiting.retain(|node, _| members.iter().any(|(member, _)| member == node));
        let due = members.into_iter().filter(|(node, member)| {
            !member.addresses.is_empty()
                && peers.inner.links.get(node).is_none()
                && waiting.get(node).is_none_or(|(at, _)| *at <= Instant::now())
        });
        let attempts = due.map(|(node, member)| {
            let peers = peers.clone();
            async move { (node, call(&peers, node, &member.addresses).await) }
        });
        for (node, called) in futures_util::future::join_all(attempts).await {
            let Err(why) = called else {
                waiting.remove(&node);
                continue;
            };
            tracing::debug!(peer = ?node, why, "not reached");
            let pause = waiting.get(&node).map_or(BACKOFF.0, |(_, pause)| (*pause * 2).min(BACKOFF.1));
            // Not all at once after an outage: spread by this node's id.
            let jitter = pause.mul_f64(f64::from(peers.inner.identity.node().0[0]) / 1024.0);
            waiting.insert(node, (Instant::now() + pause + jitter, pause));
        }
        tokio::select! {
            _ = stopping.cancelled() => return,
            _ = peers.inner.redial.notified() => waiting.clear(),
            _ = tokio::time::sleep(LOOK) => {}
        }
    }
}

/// Reaches a node at one of its addresses; on failure, what went wrong at each.
pub(super) async fn reach(inner: &Inner, node: NodeId, addresses: &[String]) -> std::result::Result<Connection, String> {
    let mut tried = Vec::new();
    for address in addresses.iter().take(ADDRESSES_MAX) {
        let resolved = match tokio::net::lookup_host(address).await {
            Ok(resolved) => resolved,
            Err(error) => {
                tried.push(format!("{address} ({error})"));
                continue;
            }
        };
        for socket in resolved.take(ADDRESSES_MAX) {
            match inner.endpoint.dial(node, socket).await {
                Ok(connection) => return Ok(connection),
                Err(error) => tried.push(format!("{socket} ({error})")),
            }
        }
    }
    Err(if tried.is_empty() { "no address".to_owned() } else { tried.join(", ") })
}

async fn call(peers: &Peers, node: NodeId, addresses: &[String]) -> std::result::Result<(), String> {
    let inner = &peers.inner;
    let connection = reach(inner, node, addresses).await?;
    let hello = Request::Hello(inner.hello());
    let answer = tokio::time::timeout(HELLO, connection.ask(&hello)).await.map_err(|_| "no hello".to_owned())?;
    let life = match answer {
        Ok((Answer::Hello(theirs), _)) => welcome(inner, &theirs).map_err(|refusal| refusal.meaning().to_owned())?,
        Ok(_) => return Err("it answered a hello with something else".to_owned()),
        Err(error) => return Err(error.to_string()),
    };
    let peers = peers.clone();
    tokio::spawn(async move { keep(&peers, connection, Some(peers.inner.identity.node()), life).await });
    Ok(())
}

/// Answers the hello of who called; its life.
async fn greeted(inner: &Inner, connection: &Connection) -> Result<u64> {
    let mut stream = connection.accept().await?;
    let Some(Request::Hello(theirs)) = stream.receive.message::<Request>().await? else {
        return Err(Error::Violation { peer: connection.peer(), what: "something else than a hello".to_owned() });
    };
    let answer = match welcome(inner, &theirs) {
        Ok(_) => Answer::Hello(inner.hello()),
        Err(refusal) => Answer::Refused(refusal),
    };
    stream.send.message(&answer).await?;
    stream.send.finish();
    match answer {
        Answer::Refused(refusal) => Err(Error::Refused { peer: connection.peer(), refusal }),
        _ => Ok(theirs.life),
    }
}

/// Whether two nodes can talk; the other's life.
fn welcome(inner: &Inner, theirs: &Hello) -> std::result::Result<u64, Refusal> {
    if theirs.cluster != inner.store.cluster() {
        return Err(Refusal::OTHER_CLUSTER);
    }
    version::agree(theirs.oldest, theirs.newest).map(|_| theirs.life).ok_or(Refusal::VERSION)
}

/// Uses a connection until it ends. `dialler`: `None` when the peer called.
async fn keep(peers: &Peers, connection: Connection, dialler: Option<NodeId>, life: u64) {
    let inner = &peers.inner;
    let peer = connection.peer();
    let Some(link) = inner.links.add(Link::new(connection, dialler.unwrap_or(peer), life)) else { return };
    tracing::info!(?peer, "connected");
    inner.metrics.peers_connected.set(inner.links.all().len() as i64);
    tokio::select! {
        why = link.connection.closed() => tracing::info!(?peer, why, "disconnected"),
        _ = pull(inner, &link) => {}
        _ = answer(peers, &link) => {}
    }
    link.connection.close("done");
    inner.links.remove(&link);
    inner.metrics.peers_connected.set(inner.links.all().len() as i64);
    inner.redial.notify_one();
}

/// Pulls records, again after every failure of the stream.
async fn pull(inner: &Inner, link: &Arc<Link>) {
    loop {
        match sync::pull(inner, link).await {
            Err(error @ Error::Violation { .. }) => {
                tracing::warn!(%error, "sync ended");
                return;
            }
            Err(error @ Error::Store(_)) => tracing::warn!(%error, "sync ended, and will begin again"),
            Ok(()) | Err(_) => {}
        }
        tokio::time::sleep(BACKOFF.1).await;
    }
}

/// Answers the peer's streams, each in a task of its own; how many it may open is limited by the endpoint.
async fn answer(peers: &Peers, link: &Arc<Link>) {
    let mut answers = tokio::task::JoinSet::new();
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
            Some(_) = answers.join_next() => {}
        }
    }
}
