//! Who owns a digest: rendezvous hashing over the members, spread over zones.
//!
//! Every node gives every digest a weight; the heaviest nodes own it, one of each zone first (Thaler and Ravishankar,
//! "A Name-Based Mapping Scheme for Rendezvous", 1996). No table, no coordinator; when a member comes or goes, only its share moves.

use std::collections::HashSet;

use larder_protocol::digest::Digest;
use larder_protocol::stamp::NodeId;

/// A member, as far as placement cares.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Place {
    pub node: NodeId,
    pub zone: String,
}

/// The `replicas` owners of a digest, the first of them first; all members when there are fewer.
pub(super) fn owners(digest: &Digest, members: &[Place], replicas: usize) -> Vec<NodeId> {
    let mut ranked: Vec<_> = members.iter().map(|member| (weight(digest, &member.node), member)).collect();
    ranked.sort_unstable_by_key(|(weight, _)| std::cmp::Reverse(*weight));
    let mut zones = HashSet::new();
    let (first_of_zone, others): (Vec<_>, Vec<_>) = ranked.into_iter().partition(|(_, member)| zones.insert(member.zone.as_str()));
    first_of_zone.into_iter().chain(others).take(replicas).map(|(_, member)| member.node).collect()
}

fn weight(digest: &Digest, node: &NodeId) -> [u8; 32] {
    let mut hasher = blake3::Hasher::new_keyed(&node.0);
    hasher.update(&digest.to_key());
    *hasher.finalize().as_bytes()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn members(count: u8, zones: u8) -> Vec<Place> {
        (0..count).map(|i| Place { node: NodeId([i; 32]), zone: format!("z{}", i % zones) }).collect()
    }

    fn digests() -> impl Iterator<Item = Digest> {
        (0..2000u32).map(|i| Digest::sha256(&i.to_le_bytes()))
    }

    #[test]
    fn shares_are_even_and_zones_differ() {
        let members = members(9, 3);
        let mut shares = [0u32; 9];
        for digest in digests() {
            let owners = owners(&digest, &members, 2);
            assert_eq!(owners.len(), 2);
            assert_ne!(owners[0].0[0] % 3, owners[1].0[0] % 3, "two zones");
            owners.iter().for_each(|owner| shares[usize::from(owner.0[0])] += 1);
        }
        // 4000 copies on 9 nodes; four standard deviations.
        assert!(shares.iter().all(|share| (350..540).contains(share)), "{shares:?}");
    }

    #[test]
    fn only_the_share_of_who_leaves_moves() {
        let (all, fewer) = (members(8, 1), members(7, 1));
        for digest in digests() {
            let (before, after) = (owners(&digest, &all, 2), owners(&digest, &fewer, 2));
            let kept = before.iter().filter(|owner| after.contains(owner)).count();
            let left = before.iter().filter(|owner| owner.0[0] == 7).count();
            assert_eq!(kept, 2 - left);
        }
    }

    #[test]
    fn a_small_cluster_owns_everything_everywhere() {
        assert_eq!(owners(&Digest::sha256(b""), &members(1, 1), 3).len(), 1);
        assert!(owners(&Digest::sha256(b""), &[], 2).is_empty());
    }
}
