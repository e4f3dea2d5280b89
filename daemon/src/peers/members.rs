//! Who is in the cluster: the `Member` records, read anew when the store has changed.
//!
//! [`Members`] also says who gets through the gate of the port: who has a key that counts as a member's, and for as long as a join token waits to be
//! used, anyone who then has to show it. A key that was a member's and counts no more gets nobody in.

use std::collections::{HashMap, HashSet};
use std::sync::RwLock;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{SystemTime, UNIX_EPOCH};

use larder_protocol::codec;
use larder_protocol::keys::Counting;
use larder_protocol::record::{Member, Roles};
use larder_protocol::stamp::NodeId;

use super::error::{Error, Result};
use super::token::{self, Issued};
use crate::store::Store;

/// Most join tokens that may wait to be used.
pub(super) const TOKENS_MAX: usize = 1000;

/// The members as they were last read.
#[derive(Debug)]
pub(super) struct Members {
    own: NodeId,
    known: RwLock<HashMap<NodeId, Option<Member>>>,
    /// What nodes may do of which a record says so.
    roles: RwLock<HashMap<NodeId, Roles>>,
    keys: RwLock<Keys>,
    /// Until when strangers may knock, milliseconds since 1970.
    open_until_ms: AtomicU64,
    /// The tokens that wait to be used.
    tokens: RwLock<HashSet<String>>,
}

/// The keys of those nodes that have had others than their first.
#[derive(Debug, Default)]
struct Keys {
    /// `None`: what is said of the node's keys was not signed by them, and none counts.
    of: HashMap<NodeId, Option<Counting>>,
    /// Whose they are; `None`: they were somebody's, and prove nothing any more.
    whose: HashMap<NodeId, Option<NodeId>>,
}

/// The setting that keeps the key of a node that let this one in, until that node's own record has come: a token pins a key, and not the id.
const INTRODUCED: &str = "peers/introduced/";

/// The setting for a node that was met by this key.
pub(super) fn introduced(node: &NodeId, key: &NodeId) -> (String, Option<Vec<u8>>) {
    (format!("{INTRODUCED}{}", node.letters()), Some(key.0.to_vec()))
}

impl Keys {
    fn read(store: &Store) -> Result<Self> {
        let mut of = store.keys()?;
        for (name, key) in store.settings(INTRODUCED)? {
            let node = name.strip_prefix(INTRODUCED).and_then(NodeId::parse);
            if let (Some(node), Ok(key)) = (node, key.try_into()) {
                of.entry(node).or_insert_with(|| Some(Counting::first(NodeId(key))));
            }
        }
        let mut whose: HashMap<_, _> = of.keys().map(|node| (*node, None)).collect();
        for (node, counting) in &of {
            let Some(counting) = counting else { continue };
            whose.extend(counting.before.iter().map(|(key, _)| (*key, None)));
            whose.extend([Some(counting.used), counting.announced].into_iter().flatten().map(|key| (key, Some(*node))));
        }
        Ok(Self { of, whose })
    }
}

impl Members {
    pub(super) fn load(store: &Store) -> Result<Self> {
        let members = Self {
            own: store.origin().node,
            known: RwLock::default(),
            roles: RwLock::default(),
            keys: RwLock::default(),
            open_until_ms: AtomicU64::new(0),
            tokens: RwLock::default(),
        };
        members.refresh(store)?;
        members.refresh_gate(store)?;
        Ok(members)
    }

    /// Looks again until when strangers may knock: while the last token waits to be used.
    pub(super) fn refresh_gate(&self, store: &Store) -> Result<()> {
        let waiting = store.settings(token::SETTING)?;
        let last = waiting.iter().filter_map(|(_, row)| codec::decode::<Issued>(row).ok()).map(|issued| issued.expires_ms).max();
        self.open_until_ms.store(last.unwrap_or(0), Ordering::Relaxed);
        let names = waiting.into_iter().map(|(name, _)| name).collect();
        *self.tokens.write().unwrap_or_else(std::sync::PoisonError::into_inner) = names;
        Ok(())
    }

    /// Whether a token of this id waits to be used.
    pub(super) fn is_token(&self, id: &[u8; 8]) -> bool {
        self.tokens.read().unwrap_or_else(std::sync::PoisonError::into_inner).contains(&token::setting(id))
    }

    /// Reads the records again.
    pub(super) fn refresh(&self, store: &Store) -> Result<()> {
        let known = store.members()?.into_iter().collect();
        let roles = store.roles()?.into_iter().collect();
        store.keep_keys()?;
        let keys = Keys::read(store)?;
        *self.keys.write().unwrap_or_else(std::sync::PoisonError::into_inner) = keys;
        *self.known.write().unwrap_or_else(std::sync::PoisonError::into_inner) = known;
        *self.roles.write().unwrap_or_else(std::sync::PoisonError::into_inner) = roles;
        let is_reader = !self.roles(&self.own).is_writer();
        if is_reader != store.is_reader() {
            store.set_reader(is_reader);
            tracing::info!(role = if is_reader { "reader" } else { "writer" }, "this node's role has changed");
        }
        Ok(())
    }

    /// What a node may do.
    pub(super) fn roles(&self, node: &NodeId) -> Roles {
        self.roles.read().unwrap_or_else(std::sync::PoisonError::into_inner).get(node).copied().unwrap_or_default()
    }

    fn read(&self) -> std::sync::RwLockReadGuard<'_, HashMap<NodeId, Option<Member>>> {
        self.known.read().unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    pub(super) fn is_member(&self, node: &NodeId) -> bool {
        matches!(self.read().get(node), Some(Some(_)))
    }

    /// Whose key gets through the handshake; `None`: nobody's.
    pub(super) fn may_enter(&self, key: &NodeId) -> Option<NodeId> {
        let keys = self.keys.read().unwrap_or_else(std::sync::PoisonError::into_inner);
        // S29: a key that was changed proves nothing, neither for the node whose it was nor for a stranger who would be called by it.
        let node = keys.whose.get(key).copied().unwrap_or(Some(*key))?;
        (self.is_member(&node) || now_ms() < self.open_until_ms.load(Ordering::Relaxed)).then_some(node)
    }

    /// Which keys count as a node's; `None`: it has had others than its first, and nothing that is said of them is signed by it.
    pub(super) fn keys(&self, node: &NodeId) -> Option<Counting> {
        let keys = self.keys.read().unwrap_or_else(std::sync::PoisonError::into_inner);
        keys.of.get(node).cloned().unwrap_or_else(|| Some(Counting::first(*node)))
    }

    /// Live members, this node included, in the order of their ids.
    pub(super) fn live(&self) -> Vec<(NodeId, Member)> {
        let mut live: Vec<_> = self.read().iter().filter_map(|(node, member)| Some((*node, member.clone()?))).collect();
        live.sort_unstable_by_key(|(node, _)| *node);
        live
    }

    /// Live members but this node.
    pub(super) fn others(&self) -> Vec<(NodeId, Member)> {
        self.live().into_iter().filter(|(node, _)| *node != self.own).collect()
    }

    pub(super) fn zone(&self, node: &NodeId) -> Option<String> {
        self.read().get(node)?.as_ref().map(|member| member.zone.clone())
    }

    /// The member whose id a person typed, whole or its first letters.
    pub(super) fn resolve(&self, text: &str) -> Result<NodeId> {
        if let Some(node) = NodeId::parse(text) {
            return Ok(node);
        }
        let letters: String = text.chars().filter(|letter| *letter != '-').collect::<String>().to_lowercase();
        let unknown = || Error::UnknownMember { text: text.to_owned() };
        if letters.is_empty() {
            return Err(unknown());
        }
        let mut found = self.live().into_iter().map(|(node, _)| node).filter(|node| node.letters().starts_with(&letters));
        match (found.next(), found.next()) {
            (Some(node), None) => Ok(node),
            (None, _) => Err(unknown()),
            (Some(_), Some(_)) => Err(Error::AmbiguousMember { text: text.to_owned() }),
        }
    }
}

/// Milliseconds since 1970, by the wall clock.
pub(super) fn now_ms() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| u64::try_from(since.as_millis()).unwrap_or(u64::MAX))
}
