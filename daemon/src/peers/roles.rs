//! Roles: who may write. What a reader says counts for nothing but what it says of itself.
//!
//! Records carry no signature, so what comes over a reader's connection is the reader's word, whosever numbers it bears: of records
//! only its own are looked at, and of those only its own `Member` and `Keys` records are taken (and the record of another member as it stands
//! here, which a node writes when it joins). So a box that was stolen can be made a reader, or was one from the
//! start, and can't push, delete or expel. What it wrote before it became one stays.

use larder_protocol::message::{NumberedRecord, Update};
use larder_protocol::record::{Key, Roles, Value};
use larder_protocol::stamp::NodeId;
use larder_protocol::vector::VersionVector;

use super::Inner;
use super::error::{Error, Result};
use super::links::Link;
use crate::store::{Commit, Store};

/// A change of roles; what is `None` stays as it is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RoleChange {
    /// Whether its records shall count.
    pub writer: Option<bool>,
    /// Whether it shall archive what other nodes wrote.
    pub archiver: Option<bool>,
}

impl RoleChange {
    /// What a node becomes that joins as a reader: it is not asked to archive for others either.
    pub const READER: Self = Self { writer: Some(false), archiver: Some(false) };
    /// What a node becomes that joins as a writer.
    pub const WRITER: Self = Self { writer: Some(true), archiver: Some(true) };

    pub(super) fn of(self, roles: Roles) -> Roles {
        let roles = self.writer.map_or(roles, |is_writer| roles.with_writer(is_writer));
        self.archiver.map_or(roles, |is_archiver| roles.with_archiver(is_archiver))
    }
}

/// The words for roles, in lists.
pub(super) fn words(roles: Roles) -> Vec<&'static str> {
    let mut words = vec![if roles.is_writer() { "writer" } else { "reader" }];
    words.extend(roles.is_archiver().then_some("archiver"));
    words
}

/// What is taken of what came over a peer's sync stream: all of it, unless the peer is a reader.
pub(super) async fn admit(inner: &Inner, link: &Link, update: Update) -> Result<Update> {
    let peer = link.connection.peer();
    if inner.members.roles(&peer).is_writer() {
        return Ok(update);
    }
    match update {
        Update::Records(records) => {
            let (own, count) =
                (records.into_iter().filter(|record| record.origin.node == peer).collect::<Vec<_>>(), |len: usize| len as u64);
            let before = own.len();
            let taken = inner.store.run(move |store| of_reader(store, peer, own)).await?;
            let refused = count(before - taken.len());
            if refused > 0 {
                inner.metrics.reader_records.inc_by(refused);
                if link.say_once() {
                    tracing::warn!(
                        ?peer,
                        refused,
                        "a reader has written records; they are not taken, nor any that follow (larder_reader_records counts them)"
                    );
                }
            }
            Ok(Update::Records(taken))
        }
        Update::Caught(vector) => Ok(Update::Caught(vector.iter().filter(|(origin, _)| origin.node == peer).collect::<VersionVector>())),
        // It has no word in what was deleted, nor in whose state is right.
        Update::Mixed(_) => Ok(Update::Records(Vec::new())),
        Update::Snapshot(_) | Update::Unlike => Ok(Update::Caught(VersionVector::default())),
    }
}

fn of_reader(store: &Store, peer: NodeId, records: Vec<NumberedRecord>) -> Result<Vec<NumberedRecord>> {
    let mut taken = Vec::new();
    for record in records {
        let Ok(parsed) = record.parse() else {
            return Err(Error::Violation { peer, what: "a damaged record".to_owned() });
        };
        let is_taken = match (&parsed.record.key, &parsed.record.value) {
            (Key::Member(node), Some(Value::Member(_))) | (Key::Keys(node), Some(Value::Keys(_))) if *node == peer => true,
            (key @ Key::Member(_), value @ Some(_)) => store.record(key)?.is_some_and(|standing| standing.value == *value),
            _ => false,
        };
        if is_taken {
            taken.push(record);
        }
    }
    Ok(taken)
}

/// Changes what a member may do; its roles then.
pub(super) async fn change(inner: &Inner, node: NodeId, change: RoleChange) -> Result<Roles> {
    let (before, members) = (inner.members.roles(&node), inner.members.live());
    let after = change.of(before);
    let others_write = members.iter().any(|(member, _)| *member != node && inner.members.roles(member).is_writer());
    if !after.is_writer() && !others_write {
        return Err(Error::LastWriter);
    }
    if after != before {
        let records = vec![(Key::Role(node), Some(Value::Role(after)))];
        inner.store.run(move |store| store.commit(Commit { records, ..Commit::default() })).await?;
    }
    Ok(after)
}
