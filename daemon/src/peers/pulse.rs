//! The task that asks who is alive: moves datagrams and time between `liveness` and the connections.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use bytes::Bytes;
use larder_protocol::stamp::NodeId;
use larder_protocol::swim::Life;
use tokio::sync::mpsc;

use super::links::Link;
use super::liveness::{DATAGRAMS_SINCE, Liveness};
use super::{Inner, Peers};

/// How often the connections are looked at when nothing rings.
const LOOK: Duration = Duration::from_millis(500);

/// Keeps the standings of all members up to date.
pub(super) async fn follow(peers: Peers, mut datagrams: mpsc::Receiver<(NodeId, Bytes)>) {
    let inner = &peers.inner;
    let stopping = inner.tasks.stopping();
    let own = Life { node: inner.identity.node(), number: inner.life };
    let mut liveness = Liveness::new(own, inner.life);
    // Packets that had come over each connection when it was last looked at.
    let mut packets = HashMap::new();
    let mut next_look = Instant::now();
    loop {
        let now = Instant::now();
        if next_look <= now {
            look(inner, &mut liveness, &mut packets, now);
            next_look = now + LOOK;
        }
        liveness.tick(now);
        for (to, datagram) in liveness.take() {
            if let Some(link) = inner.links.get(&to) {
                link.connection.send_datagram(datagram);
            }
        }
        inner.standings.tell(&liveness.conditions(now), now);
        let until = liveness.due().map_or(next_look, |due| due.min(next_look));
        tokio::select! {
            _ = stopping.cancelled() => return,
            _ = inner.pulse.notified() => next_look = now,
            _ = tokio::time::sleep_until(until.into()) => {}
            datagram = datagrams.recv() => {
                // The sender lives as long as this task's peers do.
                let Some((from, bytes)) = datagram else { return };
                if !liveness.datagram(from, &bytes, Instant::now()) {
                    inner.metrics.refused_datagrams.inc();
                }
            }
        }
    }
}

/// Looks who is a member, who is connected, and whose connection has moved.
fn look(inner: &Inner, liveness: &mut Liveness, packets: &mut HashMap<NodeId, u64>, now: Instant) {
    liveness.members(inner.members.others().into_iter().map(|(node, _)| node), now);
    let links: HashMap<_, _> = inner.links.all().into_iter().map(|link| (link.connection.peer(), link)).collect();
    let known: HashMap<_, _> = liveness.links().collect();
    for node in known.keys().filter(|node| !links.contains_key(node)) {
        liveness.unlinked(node);
        packets.remove(node);
    }
    for (node, link) in links {
        // While it is up: where it ends, the next one may begin before the end is noticed.
        link.connection.note_path(link.age());
        let came = link.connection.traffic().packets_in;
        if known.get(&node) != Some(&link.life()) {
            liveness.linked(node, link.life(), link.version(), now);
        } else if packets.get(&node) != Some(&came) {
            liveness.heard(&node, now);
        }
        packets.insert(node, came);
    }
}

/// Hands on the datagrams of a peer until its connection ends; of a flood, what is too much is lost.
pub(super) async fn listen(inner: &Inner, link: &Link) {
    if link.version() < DATAGRAMS_SINCE {
        return std::future::pending().await;
    }
    while let Ok(datagram) = link.connection.datagram().await {
        let _ = inner.datagrams.try_send((link.connection.peer(), datagram));
    }
}
