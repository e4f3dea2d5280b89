//! What can go wrong with other nodes.

use std::io;
use std::path::PathBuf;

use larder_protocol::refusal::Refusal;
use larder_protocol::stamp::NodeId;

use crate::store;

/// What the room's calls give back.
pub type Result<T> = std::result::Result<T, Error>;

/// A failure with a peer.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The store refused.
    #[error(transparent)]
    Store(#[from] store::Error),
    /// The key file can't be used.
    #[error("{doing} {}: {why}; restore it from a copy, or remove it to become a new node", path.display())]
    Key {
        /// A verb phrase.
        doing: &'static str,
        /// The file.
        path: PathBuf,
        /// What is wrong.
        why: String,
    },
    /// The UDP port can't be opened.
    #[error("{doing}: {source}; stop the program that has the port, or choose another with --peer-listen")]
    Listen {
        /// A verb phrase.
        doing: &'static str,
        /// The system's words.
        source: io::Error,
    },
    /// No connection came about, or it broke.
    #[error("{doing} {}: {why}", short(peer))]
    Connection {
        /// A verb phrase.
        doing: &'static str,
        /// Who.
        peer: NodeId,
        /// What happened.
        why: String,
    },
    /// The peer said something that it must not say.
    #[error("{} sent {what}", short(peer))]
    Violation {
        /// Who.
        peer: NodeId,
        /// What.
        what: String,
    },
    /// The peer said no.
    #[error("{} refuses: {}", short(peer), refusal.meaning())]
    Refused {
        /// Who.
        peer: NodeId,
        /// Why.
        refusal: Refusal,
    },
    /// A text that is no token.
    #[error("this is no join token ({why}); copy the whole line that `larder token` printed")]
    Token {
        /// How it shows.
        why: &'static str,
    },
    /// A token whose time is over.
    #[error("the join token has expired; make another with `larder token`")]
    TokenExpired,
    /// A token of this node's own cluster, shown to itself.
    #[error("this node made the token itself; run `larder join` on the node that shall join")]
    OwnToken,
    /// The issuer was reached and hung up before it had said anything.
    #[error(
        "{} lets no stranger in: the token was used already, has expired or was withdrawn; make another with `larder token` ({why})",
        short(issuer)
    )]
    NotLetIn {
        /// Who made the token.
        issuer: NodeId,
        /// How the connection ended.
        why: String,
    },
    /// Nobody could call the issuer.
    #[error("nobody can call this node (peers.advertise is \"none\"), so nobody can join through it; make the token on another node")]
    NoAddress,
    /// As many tokens wait as may.
    #[error("{max} join tokens are waiting to be used; use them, or let them expire")]
    TooManyTokens {
        /// How many may wait.
        max: usize,
    },
    /// The node has company already.
    #[error(
        "this node belongs to a cluster of {members} nodes; leave it first: `larder peers remove {node}` on another node, then start this one with an empty data folder"
    )]
    HasPeers {
        /// How many it has, itself included.
        members: usize,
        /// This node.
        node: NodeId,
    },
    /// It has had as many keys as a node may have.
    #[error(
        "this node has had {max} keys after its first, and more are not kept; start it with an empty data folder, and let it join as another node"
    )]
    TooManyKeys {
        /// How many.
        max: usize,
    },
    /// Its key is not the one that is its id.
    #[error("this node's key was changed, so another cluster can't tell whose it is; join with an empty data folder, as a node of its own")]
    OtherKey,
    /// Nobody answered at any of the issuer's addresses.
    #[error(
        "the issuer of the token was not reached at {tried}; check that it runs, that its port is open for UDP, and peers.advertise there"
    )]
    Unreachable {
        /// Addresses, and what went wrong at each.
        tried: String,
    },
    /// No member of that name.
    #[error("no member's id starts with {text:?}; `larder peers` lists them")]
    UnknownMember {
        /// What was typed.
        text: String,
    },
    /// More than one member of that name.
    #[error("more than one member's id starts with {text:?}: type more of it")]
    AmbiguousMember {
        /// What was typed.
        text: String,
    },
    /// Nobody would be left who may write.
    #[error("no member but this one may write: make another one a writer first (`larder peers role ID writer`)")]
    LastWriter,
    /// A node can't expel itself.
    #[error("a node can't remove itself; run the command on another node")]
    Oneself,
}

/// The first letters of an id, enough to tell nodes apart in a sentence.
fn short(node: &NodeId) -> String {
    format!("node {}", &node.to_string()[..9])
}
