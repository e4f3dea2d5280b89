//! Write concern: a push is answered when its image is as safe as `push.ack` asks for.
//!
//! The manifest is stored by then; what is waited for is only the answer. A push that fails here leaves an image that can be pulled, and a
//! client that pushes again waits again, for what is still missing. A client that goes away ends its waiting and nothing else.
//!
//! At most [`WAITING_MAX`] pushes are worked for at a time; others wait for their turn, within their own time.

use std::sync::Arc;
use std::time::Duration;

use larder_protocol::digest::Digest;
use larder_protocol::name::{RepositoryName, Tag};
use tokio::sync::Semaphore;
use tokio::time::{Instant, timeout_at};

use super::Lookup;
use crate::archive;
use crate::config::{Ack, Push};
use crate::peers::Shortage;
use crate::store;

/// Pushes that are worked for at a time.
const WAITING_MAX: usize = 128;

/// Why a push can't be answered with success.
#[derive(Clone, Debug, thiserror::Error)]
pub enum NotSafe {
    /// There are fewer other nodes than the write concern asks for.
    #[error(
        "push.ack is peers:{wanted} on this node, and {}, so no push can be that safe; let more nodes join (`larder token`, `larder join`), or \
         set push.ack to less", others(.members)
    )]
    TooFew {
        /// How many other nodes it asks for.
        wanted: usize,
        /// How many there are.
        members: usize,
    },
    /// Other nodes did not have all of it in time.
    #[error("the image is stored on this node, but it is not on {} others within {within:?}, as push.ack asks: {}; {REPEAT}", .shortage.wanted, lack(.shortage))]
    Copies {
        /// How long was waited.
        within: Duration,
        /// What is missing.
        shortage: Shortage,
    },
    /// The archive did not have all of it in time.
    #[error(
        "the image is stored on this node, but it is not in the archive within {within:?}, as push.ack asks: {} of its blobs are missing there; \
         `larder archive status` says what is wrong; {REPEAT}", .missing.len()
    )]
    Archive {
        /// How long was waited.
        within: Duration,
        /// What is missing.
        missing: Vec<Digest>,
    },
    /// This node waits for as many pushes as it may.
    #[error(
        "the image is stored on this node, but so many pushes wait to be safe elsewhere that this one's turn has not come within {within:?}; {REPEAT}"
    )]
    Busy {
        /// How long was waited.
        within: Duration,
    },
    /// This disk refused.
    #[error("look for what keeps an image safe: {0}")]
    Store(Arc<store::Error>),
    /// The archive is not to be had at all.
    #[error("bring an image into the archive: {0}")]
    NoArchive(Arc<archive::Error>),
}

/// What a client can do.
const REPEAT: &str = "push again: nothing is sent twice";

impl NotSafe {
    /// The blobs that are missing, as far as that is known.
    pub fn missing(&self) -> &[Digest] {
        match self {
            Self::Copies { shortage, .. } => &shortage.missing,
            Self::Archive { missing, .. } => missing,
            Self::TooFew { .. } | Self::Busy { .. } | Self::Store(_) | Self::NoArchive(_) => &[],
        }
    }
}

/// What is asked for, and whose turn it is.
#[derive(Debug)]
pub(super) struct Acks {
    push: Push,
    turns: Semaphore,
}

impl Acks {
    pub(super) fn new(push: Push) -> Self {
        Self { push, turns: Semaphore::new(WAITING_MAX) }
    }
}

impl Lookup {
    /// Says at once when no push can ever be as safe as it has to be, before anything of it is stored.
    ///
    /// # Errors
    /// `TooFew`.
    pub fn can_acknowledge(&self) -> Result<(), NotSafe> {
        match self.acks.push.ack {
            Ack::Peers(wanted) if self.peers.other_writers() < wanted => {
                Err(NotSafe::TooFew { wanted, members: self.peers.other_writers() })
            }
            Ack::Local | Ack::Peers(_) | Ack::Archived => Ok(()),
        }
    }

    /// Waits until an image that was stored under these tags is as safe as it has to be.
    ///
    /// Cancel-safe: what other nodes or the bucket have by then stays there.
    ///
    /// # Errors
    /// It is not, and the time is over; or it can't be.
    pub async fn acknowledge(&self, repository: RepositoryName, digest: Digest, tags: Vec<Tag>) -> Result<(), NotSafe> {
        let Push { ack, ack_timeout: within } = self.acks.push.clone();
        if ack == Ack::Local {
            return Ok(());
        }
        let until = Instant::now() + within;
        let Ok(turn) = timeout_at(until, self.acks.turns.acquire()).await else { return Err(NotSafe::Busy { within }) };
        let _turn = turn.expect("never closed");
        let safe = match ack {
            Ack::Local => Ok(()),
            Ack::Peers(copies) => {
                let needs = self.store.run(move |store| store.needs(&repository, &digest, &tags)).await;
                let needs = needs.map_err(|error| NotSafe::Store(Arc::new(error)))?;
                self.peers.keep(digest, needs, copies, until).await.map_err(|shortage| match shortage.members < copies {
                    true => NotSafe::TooFew { wanted: copies, members: shortage.members },
                    false => NotSafe::Copies { within, shortage },
                })
            }
            Ack::Archived => match self.archive.secure(repository, digest, tags, until).await {
                Ok(None) => Ok(()),
                Ok(Some(archive::Unarchived { missing, .. })) => Err(NotSafe::Archive { within, missing }),
                Err(error) => Err(NotSafe::NoArchive(Arc::new(error))),
            },
        };
        self.metrics.unacknowledged_pushes.inc_by(u64::from(safe.is_err()));
        safe
    }
}

fn others(members: &usize) -> String {
    match members {
        0 => "no other node may write".to_owned(),
        1 => "there is 1 other writer".to_owned(),
        more => format!("there are {more} other writers"),
    }
}

fn lack(shortage: &Shortage) -> String {
    let Shortage { members, reached, missing, unknown, .. } = shortage;
    let what = match (missing.len(), unknown) {
        (0, _) => "its records are not known there".to_owned(),
        (count, _) => format!("{count} of its blobs are missing there"),
    };
    format!("{what}, and {reached} of {members} other nodes are in reach")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_pushed_is_told_what_is_stored_what_is_missing_and_what_to_do() {
        let within = Duration::from_secs(30);
        let shortage = Shortage { wanted: 2, members: 3, reached: 1, missing: vec![Digest::sha256(b"x")], unknown: false };
        let said = NotSafe::Copies { within, shortage }.to_string();
        let expected = "the image is stored on this node, but it is not on 2 others within 30s, as push.ack asks: 1 of its blobs are missing \
                        there, and 1 of 3 other nodes are in reach; push again: nothing is sent twice";
        assert_eq!(said, expected);
        assert!(NotSafe::TooFew { wanted: 2, members: 1 }.to_string().contains("there is 1 other writer, so no push can be that safe"));
        assert!(NotSafe::TooFew { wanted: 1, members: 0 }.to_string().contains("no other node may write"));
    }
}
