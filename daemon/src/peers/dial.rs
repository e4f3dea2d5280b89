//! Keeping connections up: to every member that has an address and none yet.
//!
//! Addresses come from `Member` records and join tokens only; nothing else that a peer says becomes a dial target. Each call
//! is a task of its own: a node that doesn't answer delays nobody else's.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use larder_protocol::message::{Answer, Request};
use larder_protocol::stamp::NodeId;
use tokio::task::JoinSet;

use super::endpoint::Connection;
use super::error::{Error, Result};
use super::greet::{self, HELLO};
use super::{Inner, Peers};

/// How long after the first call a member is called again; doubled up to the last.
const BACKOFF: (Duration, Duration) = (Duration::from_millis(200), Duration::from_secs(5));
/// A connection that was up for so long clears its member's record of calls.
const STEADY: Duration = Duration::from_secs(10);
/// How often the members without a connection are looked at.
const LOOK: Duration = Duration::from_millis(100);
/// Most addresses of one member that are tried, and most that a name may mean.
pub(super) const ADDRESSES_MAX: usize = 8;
/// Calls under way at a time.
const CALLS_MAX: usize = 32;

/// When each member may be called again.
#[derive(Debug, Default)]
struct Backoff(HashMap<NodeId, Wait>);

#[derive(Debug)]
struct Wait {
    calling: bool,
    until: Instant,
    pause: Duration,
    /// Where it was called: at a new address it is called at once.
    addresses: Vec<String>,
    /// What went wrong the last time.
    why: String,
}

impl Backoff {
    fn is_due(&self, node: &NodeId, addresses: &[String], now: Instant) -> bool {
        self.0.get(node).is_none_or(|wait| !wait.calling && (wait.until <= now || wait.addresses != addresses))
    }

    /// A call begins. `spread`, from 0 to 1, lengthens the pause, so that not everyone calls at once after an outage.
    fn begin(&mut self, node: NodeId, addresses: &[String], now: Instant, spread: f64) {
        let last = self.0.remove(&node);
        let pause = last.as_ref().map_or(BACKOFF.0, |wait| (wait.pause * 2).min(BACKOFF.1));
        let until = now + pause.mul_f64(1.0 + spread / 4.0);
        let why = last.map(|wait| wait.why).unwrap_or_default();
        self.0.insert(node, Wait { calling: true, until, pause, addresses: addresses.to_owned(), why });
    }

    /// A call has ended; says whether it failed in a way that the last one did not.
    fn end(&mut self, node: &NodeId, failed: Option<&str>) -> bool {
        let Some(wait) = self.0.get_mut(node) else { return false };
        wait.calling = false;
        let why = failed.unwrap_or_default();
        !std::mem::replace(&mut wait.why, why.to_owned()).eq(why) && failed.is_some()
    }

    fn forget(&mut self, node: &NodeId) {
        self.0.remove(node);
    }
}

/// Dials members that have no connection.
pub(super) async fn dial(peers: Peers) {
    let inner = &peers.inner;
    let stopping = inner.tasks.stopping();
    let mut backoff = Backoff::default();
    let mut calls = JoinSet::new();
    loop {
        let members = inner.members.others();
        backoff.0.retain(|node, wait| wait.calling || members.iter().any(|(member, _)| member == node));
        for (node, member) in members {
            if let Some(link) = inner.links.get(&node) {
                if link.age() >= STEADY {
                    backoff.forget(&node);
                }
                continue;
            }
            let now = Instant::now();
            if inner.links.gives_way(&node) {
                continue;
            }
            if member.addresses.is_empty() || calls.len() >= CALLS_MAX || !backoff.is_due(&node, &member.addresses, now) {
                continue;
            }
            backoff.begin(node, &member.addresses, now, f64::from(inner.identity.node().0[0]) / 255.0);
            let peers = peers.clone();
            calls.spawn(async move { (node, call(&peers, node, &member.addresses).await) });
        }
        tokio::select! {
            _ = stopping.cancelled() => return,
            _ = inner.redial.notified() => {}
            _ = tokio::time::sleep(LOOK) => {}
            Some(called) = calls.join_next() => {
                let (node, called) = called.expect("a call does not panic");
                let failed = called.err().map(|error| (matches!(error, Error::Refused { .. }), error.to_string()));
                let is_news = backoff.end(&node, failed.as_ref().map(|(_, why)| why.as_str()));
                match failed {
                    Some((true, why)) if is_news => tracing::warn!(peer = ?node, why, "a member does not talk to this node; trying on"),
                    Some((false, why)) if is_news => tracing::info!(peer = ?node, why, "not reached; trying on"),
                    Some((_, why)) => tracing::debug!(peer = ?node, why, "not reached"),
                    None => {}
                }
            }
        }
    }
}

/// Reaches a node at one of its addresses; on failure, what went wrong at each.
pub(super) async fn reach(inner: &Inner, node: NodeId, addresses: &[String]) -> std::result::Result<Connection, String> {
    let Some(keys) = inner.members.keys(&node) else {
        return Err("nothing that is said of its keys is signed by it, so nobody can prove to be it".to_owned());
    };
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
            match inner.endpoint.dial(node, &keys, socket).await {
                Ok(connection) => return Ok(connection),
                Err(why) => tried.push(format!("{socket} ({why})")),
            }
        }
    }
    Err(if tried.is_empty() { "no address".to_owned() } else { tried.join(", ") })
}

async fn call(peers: &Peers, node: NodeId, addresses: &[String]) -> Result<()> {
    let inner = &peers.inner;
    let failed = |why: String| Error::Connection { doing: "connect to", peer: node, why };
    let connection = reach(inner, node, addresses).await.map_err(failed)?;
    let hello = Request::Hello(inner.hello());
    let answer = tokio::time::timeout(HELLO, connection.ask(&hello)).await.map_err(|_| failed("no hello".to_owned()))??;
    let (Answer::Hello(theirs), _) = answer else {
        return Err(Error::Violation { peer: node, what: "something else than a hello".to_owned() });
    };
    let agreed = greet::welcome(inner, &theirs).map_err(|refusal| Error::Refused { peer: node, refusal })?;
    let dialler = inner.identity.node();
    peers.spawn(greet::keep(peers.clone(), connection, dialler, agreed));
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_member_that_never_answers_is_called_ever_less_often_and_at_a_new_address_at_once() {
        let (node, start) = (NodeId([1; 32]), Instant::now());
        let (old, new) = (["a:1".to_owned()], ["b:1".to_owned()]);
        let mut backoff = Backoff::default();
        let (mut now, mut calls) = (start, 0);
        while now < start + Duration::from_secs(60) {
            if backoff.is_due(&node, &old, now) {
                backoff.begin(node, &old, now, 1.0);
                assert!(!backoff.is_due(&node, &old, now + STEADY), "one call at a time");
                assert_eq!(backoff.end(&node, Some("timeout")), calls == 0, "the same failure is told once");
                calls += 1;
            }
            now += Duration::from_millis(50);
        }
        // Five while the pause grows, then one in six seconds.
        assert!((10..=16).contains(&calls), "{calls} calls in a minute");
        assert!(!backoff.is_due(&node, &old, now) || backoff.is_due(&node, &new, now));
        backoff.begin(node, &old, now, 0.0);
        backoff.end(&node, None);
        assert!(!backoff.is_due(&node, &old, now) && backoff.is_due(&node, &new, now));
        // One whose connections come up and break at once is not called in a circle.
        assert!(backoff.0[&node].pause >= BACKOFF.1);
        backoff.forget(&node);
        assert!(backoff.is_due(&node, &old, now));
    }
}
