//! Who owns a digest: rendezvous hashing over the members, spread over zones.
//!
//! Every node gives every digest a weight; the heaviest nodes own it, one of each zone first (Thaler and Ravishankar,
//! "A Name-Based Mapping Scheme for Rendezvous", 1996). No table, no coordinator; when a member comes or goes, only its share moves.
//!
//! A member that is away keeps its share for `takeover`: a restart moves nothing. Then it is left out, so the next in order take its share
//! over; when it is back it counts again, the share is its own again, and who stood in for it is an owner no more.
//!
//! Nodes need not agree on who is away. What two of them think at one time may differ; that costs a copy too many, and never one: see
//! [`super::leaving`].

use std::collections::HashSet;
use std::time::{Duration, Instant};

use larder_protocol::digest::Digest;
use larder_protocol::stamp::NodeId;

/// A member, as far as placement cares.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Place {
    pub node: NodeId,
    pub zone: String,
    /// Since when nobody reaches it from here; `None`: it is there.
    pub away: Option<Instant>,
}

/// The members that count at a moment, in the order of their ids.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Placement {
    own: NodeId,
    replicas: usize,
    places: Vec<Counted>,
}

/// A member that counts.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Counted {
    node: NodeId,
    zone: String,
}

impl Placement {
    /// Leaves out who is away for longer than `takeover`, but never this node itself.
    pub(super) fn new(own: NodeId, members: Vec<Place>, (replicas, takeover): (usize, Duration), now: Instant) -> Self {
        let counts = |place: &Place| place.node == own || place.away.is_none_or(|since| now.saturating_duration_since(since) < takeover);
        let mut places: Vec<_> = members.into_iter().filter(counts).map(|place| Counted { node: place.node, zone: place.zone }).collect();
        places.sort_unstable_by_key(|place| place.node);
        Self { own, replicas, places }
    }

    /// The owners of a digest, the first of them first; all members that count when there are fewer.
    pub fn owners(&self, digest: &Digest) -> Vec<NodeId> {
        let mut ranked = self.ranked(digest);
        ranked.truncate(self.replicas);
        ranked
    }

    /// Whether this node is one of them.
    pub fn is_owner(&self, digest: &Digest) -> bool {
        self.owners(digest).contains(&self.own)
    }

    /// Everyone that counts, in the order in which they would own a digest.
    pub(super) fn ranked(&self, digest: &Digest) -> Vec<NodeId> {
        let mut ranked: Vec<_> = self.places.iter().map(|place| (weight(digest, &place.node), place)).collect();
        ranked.sort_unstable_by_key(|(weight, _)| std::cmp::Reverse(*weight));
        let mut zones = HashSet::new();
        let (first_of_zone, others): (Vec<_>, Vec<_>) = ranked.into_iter().partition(|(_, place)| zones.insert(place.zone.as_str()));
        first_of_zone.into_iter().chain(others).map(|(_, place)| place.node).collect()
    }

    /// Tells placements with other owners apart, also in another life of the program.
    pub fn fingerprint(&self) -> [u8; 32] {
        let mut hasher = blake3::Hasher::new();
        hasher.update(&self.own.0).update(&(self.replicas as u64).to_be_bytes());
        for place in &self.places {
            hasher.update(&place.node.0).update(&(place.zone.len() as u64).to_be_bytes()).update(place.zone.as_bytes());
        }
        *hasher.finalize().as_bytes()
    }
}

fn weight(digest: &Digest, node: &NodeId) -> [u8; 32] {
    let mut hasher = blake3::Hasher::new_keyed(&node.0);
    hasher.update(&digest.to_key());
    *hasher.finalize().as_bytes()
}

#[cfg(test)]
mod tests;
