//! The records that say who may do what: read all at once, and a number that tells when they have changed.

use larder_protocol::record::{Key, Record};
use larder_protocol::stamp::NodeId;

use super::error::Result;
use super::index::{RecordRow, Table, decode};
use super::{Store, journal};

/// Whether a kind of records has a say in who may do what. Members and their roles do: their keys sign tokens.
pub(super) fn is_about(kind: u16) -> bool {
    let node = NodeId([0; 32]);
    let text = String::new;
    let kinds = [Key::Member(node), Key::Role(node), Key::User(text()), Key::Robot(text()), Key::Rule(text(), text())];
    kinds.iter().any(|key| key.kind() == kind)
}

impl Store {
    /// Another number after each change of a record that says who may do what. Does not block.
    pub fn access_changes(&self) -> u64 {
        self.inner.journal.access_changes()
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
    use crate::store::Commit;

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
