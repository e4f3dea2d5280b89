//! The records that say who may do what: read all at once, and a number that tells when they have changed.

use std::collections::HashMap;

use aws_lc_rs::signature::{ED25519, UnparsedPublicKey};
use larder_protocol::codec;
use larder_protocol::keys::{Counting, Keys};
use larder_protocol::record::{Key, Record, Value};
use larder_protocol::stamp::NodeId;

use super::error::Result;
use super::index::{RecordRow, Table, decode};
use super::{Commit, Store, journal};

/// Whether a kind of records has a say in who may do what. Members and their roles do: their keys sign tokens.
pub(super) fn is_about(kind: u16) -> bool {
    let node = NodeId([0; 32]);
    let text = String::new;
    let kinds = [Key::Member(node), Key::Role(node), Key::Keys(node), Key::User(text()), Key::Robot(text()), Key::Rule(text(), text())];
    kinds.iter().any(|key| key.kind() == kind)
}

/// The settings that keep how far nodes' keys are known.
const KEPT: &str = "keys/";

/// How far a node's keys have come: how many there are, and whether the last is in use.
type Rank = (usize, bool);

fn rank(keys: &Keys) -> Rank {
    (keys.later.len(), keys.later.last().is_some_and(|last| last.before_until_ms.is_some()))
}

fn verify(key: &NodeId, bytes: &[u8], signature: &[u8; 64]) -> bool {
    UnparsedPublicKey::new(&ED25519, key.0).verify(bytes, signature).is_ok()
}

impl Store {
    /// Another number after each change of a record that says who may do what. Does not block.
    pub fn access_changes(&self) -> u64 {
        self.inner.journal.access_changes()
    }

    /// Which keys count as a node's, for those nodes that have had others than their first; `None`: what is said of them was not signed by them.
    ///
    /// Who has heard of a key goes on believing in it, whatever anybody says later that takes it back.
    pub fn keys(&self) -> Result<HashMap<NodeId, Option<Counting>>> {
        let mut best: HashMap<NodeId, Option<(Rank, Counting)>> = HashMap::new();
        for (node, keys) in self.kept_keys()?.into_iter().chain(self.said_keys()?) {
            let counting = keys.counting(node, verify).map(|counting| (rank(&keys), counting));
            let known = best.entry(node).or_default();
            // Of two that are as far the record goes first.
            if counting.as_ref().map(|(rank, _)| *rank) >= known.as_ref().map(|(rank, _)| *rank) {
                *known = counting;
            }
        }
        Ok(best.into_iter().map(|(node, known)| (node, known.map(|(_, counting)| counting))).collect())
    }

    /// Keeps what is said of nodes' keys, as far as it is signed and goes further than what is kept.
    pub fn keep_keys(&self) -> Result<()> {
        let kept: HashMap<_, _> = self.kept_keys()?.into_iter().collect();
        let mut settings = Vec::new();
        for (node, keys) in self.said_keys()? {
            let goes_further = kept.get(&node).is_none_or(|kept| rank(&keys) > rank(kept));
            if goes_further && keys.counting(node, verify).is_some() {
                settings.push((format!("{KEPT}{}", node.letters()), Some(codec::encode(&keys))));
            }
        }
        if !settings.is_empty() {
            self.commit(Commit { records: Vec::new(), settings })?;
        }
        Ok(())
    }

    fn said_keys(&self) -> Result<Vec<(NodeId, Keys)>> {
        self.of_kind(&Key::Keys(NodeId([0; 32])), |record| match (record.key, record.value) {
            (Key::Keys(node), Some(Value::Keys(keys))) => Some((node, keys)),
            _ => None,
        })
    }

    fn kept_keys(&self) -> Result<Vec<(NodeId, Keys)>> {
        let kept = self.settings(KEPT)?.into_iter();
        Ok(kept.filter_map(|(name, row)| Some((NodeId::parse(name.strip_prefix(KEPT)?)?, codec::decode(&row).ok()?))).collect())
    }

    /// All people, robots and rules; those that were removed too. What can't be read is left out: it grants nothing.
    pub fn access_records(&self) -> Result<Vec<Record>> {
        let text = String::new;
        let mut records = Vec::new();
        for key in [Key::User(text()), Key::Robot(text()), Key::Rule(text(), text())] {
            for row in self.inner.index.scan(Table::Record, &key.kind().to_be_bytes(), b"") {
                let row: RecordRow = decode(Table::Record, &row?.1)?;
                records.extend(journal::parse(&row.record));
            }
        }
        Ok(records)
    }
}

#[cfg(test)]
mod tests {
    use larder_protocol::access::User;
    use larder_protocol::record::Value;

    use super::super::tests::Place;
    use super::*;

    #[test]
    fn a_change_of_access_is_told_and_others_are_not() {
        let place = Place::new(1);
        let store = place.open();
        let commit = |key: Key, value| store.commit(Commit { records: vec![(key, value)], ..Commit::default() }).expect("written");
        let before = store.access_changes();
        commit(Key::Unknown { kind: 900, key: vec![1] }, Some(Value::Unknown(vec![])));
        assert_eq!(store.access_changes(), before);
        let user = User { hash: "x".to_owned(), groups: vec![], extra: vec![] };
        commit(Key::User("alice".to_owned()), Some(Value::User(user)));
        assert_ne!(store.access_changes(), before);
        commit(Key::User("alice".to_owned()), None);
        let records = store.access_records().expect("readable");
        assert_eq!(records.len(), 1, "a removed one is still known");
        assert!(records[0].value.is_none());
    }
}
