//! The whole state as records: what a checkpoint is made of.

use std::collections::{HashMap, HashSet};

use larder_protocol::record::Numbered;
use larder_protocol::stamp::HybridTime;
use larder_protocol::vector::VersionVector;

use super::Store;
use super::error::{Error, Result};
use super::index::{RecordRow, Table, decode};
use super::journal::parse;

/// What the keys of records begin with that wait for their time.
const WAITING: &[u8] = b"q";

impl Store {
    /// Hands every record to `take`, tombstones included: those of packs and members first, then repository by repository, the one with
    /// the newest tag first. What stands at the end is known to be on the disk.
    ///
    /// Returns the vector that was known when it began: all up to there was handed over, or something that superseded it.
    ///
    /// # Errors
    /// Those of the index, and of `take`.
    pub fn fold<E: From<Error>>(
        &self,
        mut take: impl FnMut(Numbered) -> std::result::Result<(), E>,
    ) -> std::result::Result<VersionVector, E> {
        let index = &self.inner.index;
        let seen = self.vector();
        let mut hand_over = |table: Table, prefix: &[u8]| -> std::result::Result<(), E> {
            for row in index.scan(table, prefix, b"") {
                take(numbered(table, &row?.1)?)?;
            }
            Ok(())
        };
        hand_over(Table::Record, b"")?;
        hand_over(Table::Pack, b"")?;
        let mut newest: HashMap<Vec<u8>, HybridTime> = HashMap::new();
        for row in index.scan(Table::Tag, b"", b"") {
            let (key, row) = row?;
            let row: RecordRow = decode(Table::Tag, &row)?;
            let time = newest.entry(repository_of(&key).to_vec()).or_default();
            *time = row.record.stamp.time.max(*time);
        }
        let mut repositories: Vec<(HybridTime, Vec<u8>)> = newest.into_iter().map(|(repository, time)| (time, repository)).collect();
        repositories.sort_unstable_by(|a, b| b.cmp(a));
        for (_, repository) in &repositories {
            for table in [Table::Tag, Table::Manifest, Table::Link] {
                hand_over(table, repository)?;
            }
        }
        // Those that no tag was ever in, or whose first tag has come meanwhile.
        let done: HashSet<&[u8]> = repositories.iter().map(|(_, repository)| &repository[..]).collect();
        for table in [Table::Tag, Table::Manifest, Table::Link] {
            for row in index.scan(table, b"", b"") {
                let (key, row) = row?;
                if !done.contains(repository_of(&key)) {
                    take(numbered(table, &row)?)?;
                }
            }
        }
        for row in index.scan(Table::Sync, WAITING, b"") {
            take(numbered(Table::Sync, &row?.1)?)?;
        }
        // ORDER: what is told outside must not be lost by a power cut, or its numbers would be given out again.
        index.sync()?;
        Ok(seen)
    }
}

/// The repository and the byte that ends it.
fn repository_of(key: &[u8]) -> &[u8] {
    let end = key.iter().position(|byte| *byte == 0).map_or(key.len(), |end| end + 1);
    &key[..end]
}

fn numbered(table: Table, row: &[u8]) -> Result<Numbered> {
    let row: RecordRow = decode(table, row)?;
    Ok(Numbered { origin: row.origin, sequence: row.sequence, record: parse(&row.record)? })
}

#[cfg(test)]
mod tests {
    use larder_protocol::vector::VersionVector;

    use super::super::tests::Place;
    use super::super::{Commit, Result};
    use larder_protocol::digest::Digest;
    use larder_protocol::record::{Key, Link, Numbered, TagTarget, Value};

    fn tag(repository: &str, tag: &str) -> (Key, Option<Value>) {
        let target = TagTarget { digest: Digest::sha256(tag.as_bytes()), replaced: None };
        (Key::Tag(repository.parse().expect("a name"), tag.parse().expect("a tag")), Some(Value::Tag(target)))
    }

    #[test]
    fn everything_is_told_once_and_the_newest_tags_first() {
        let place = Place::new(1);
        let store = place.open();
        let link = Link { size: 1, root: [1; 32], crc64: 2 };
        let untagged = Key::Link("zzz/untagged".parse().expect("a name"), Digest::sha256(b"x"));
        for records in [
            vec![tag("b/old", "v1")],
            vec![tag("a/new", "v1")],
            vec![(untagged.clone(), Some(Value::Link(link)))],
            vec![tag("b/old", "v1")],
        ] {
            store.commit(Commit { records, settings: Vec::new() }).expect("committed");
        }
        store.commit(Commit { records: vec![(tag("a/new", "gone").0, None)], settings: Vec::new() }).expect("committed");
        let mut told: Vec<Numbered> = Vec::new();
        let seen = store
            .fold(|numbered| -> Result<()> {
                told.push(numbered);
                Ok(())
            })
            .expect("readable");
        assert_eq!(seen, store.vector());
        let keys: Vec<_> = told.iter().map(|numbered| numbered.record.key.clone()).collect();
        assert_eq!(keys, [tag("a/new", "gone").0, tag("a/new", "v1").0, tag("b/old", "v1").0, untagged]);
        // As an exchange with somebody who has nothing.
        let mut exchanged: Vec<_> =
            store.exchange(&VersionVector::default()).expect("readable").map(|numbered| numbered.expect("readable")).collect();
        exchanged.sort_by_key(|numbered| numbered.sequence);
        told.sort_by_key(|numbered| numbered.sequence);
        assert_eq!(told, exchanged);
    }
}
