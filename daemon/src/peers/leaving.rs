//! Blobs that may be about to leave this disk because other nodes have them.
//!
//! A node that asks others for their word marks the blob first, and gives its own word for no marked blob. Of any nodes that would
//! drop a blob on each other's word, the last to mark it finds that the others don't vouch for it, or that they never will drop it:
//! whoever vouches has no mark yet, and would find *this* mark when it asks. So the copies that the last of them has counted stay, however
//! different the nodes' views are of who owns what: of who is away, and which zone a member is in.
//!
//! The same marks keep a node from saying to a push that it has what it is about to drop.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use larder_protocol::digest::Digest;

/// The marks; a blob may be marked by several rounds.
#[derive(Clone, Debug, Default)]
pub(super) struct Leaving(Arc<Mutex<HashMap<Digest, usize>>>);

/// Blobs that are marked for as long as this lives.
#[derive(Debug)]
pub struct Marked {
    leaving: Leaving,
    digests: Vec<Digest>,
}

impl Leaving {
    pub(super) fn mark(&self, digests: &[Digest]) -> Marked {
        let mut marks = self.lock();
        digests.iter().for_each(|digest| *marks.entry(*digest).or_default() += 1);
        Marked { leaving: self.clone(), digests: digests.to_vec() }
    }

    pub(super) fn has(&self, digest: &Digest) -> bool {
        self.lock().contains_key(digest)
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<Digest, usize>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Marked {
    fn drop(&mut self) {
        let mut marks = self.leaving.lock();
        for digest in &self.digests {
            if let Some(count) = marks.get_mut(digest) {
                *count -= 1;
                if *count == 0 {
                    marks.remove(digest);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mark_stays_until_the_last_round_lets_go() {
        let (leaving, one, other) = (Leaving::default(), Digest::sha256(b"one"), Digest::sha256(b"other"));
        let first = leaving.mark(&[one, other]);
        let second = leaving.mark(&[one]);
        drop(first);
        assert!(leaving.has(&one) && !leaving.has(&other));
        drop(second);
        assert!(!leaving.has(&one));
    }
}
