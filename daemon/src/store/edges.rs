//! Reverse references: who holds on to a digest. Deletes, referrers and garbage collection ask here instead of scanning.
//!
//! ```text
//! key    digest key of what is held | repository | NUL | holder
//! holder nothing                    a link: the blob may be read in the repository
//!        digest key                 a manifest that names it; the row's one byte says as what
//!        0xff, tag                  a tag
//! ```
//!
//! Rows follow from live records and are written in their batch. A program of before wrote rows for manifests only, and empty
//! ones: [`ensure`] writes all of them anew when such a program was the last to write here.

use larder_protocol::digest::Digest;
use larder_protocol::name::{RepositoryName, Tag};
use larder_protocol::record::{Key, Manifest, Record, Value};

use super::error::{Error, Result};
use super::index::{Batch, Index, RecordRow, Table, decode};
use super::journal;
use super::listed;
use super::manifests::ManifestView;

/// The clock's floor when rows of today were last written: anything else than the clock's own row means that another program wrote since.
pub(super) const META_EDGES: &[u8] = b"derived";
/// In front of a tag, where a digest key has its algorithm.
const TAG: u8 = 0xff;
/// Rows written at a time when all are written anew.
const BATCH: usize = 10_000;

/// As what a manifest names a digest; one manifest may name it as several.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Naming(u8);

impl Naming {
    /// Its config or one of its layers.
    pub(super) const BLOB: Self = Self(1);
    /// An entry of an index.
    pub(super) const CHILD: Self = Self(2);
    /// What it is attached to.
    pub(super) const SUBJECT: Self = Self(4);

    pub(super) fn is(self, other: Self) -> bool {
        self.0 & other.0 != 0
    }

    fn and(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }
}

/// Who holds on to a digest within a repository.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Holder {
    /// A link.
    Link,
    /// A manifest.
    Manifest(Digest, Naming),
    /// A tag.
    Tag(Tag),
}

/// The rows that follow from a record, with what they hold; nothing from a tombstone.
pub(super) fn of_record(record: &Record) -> Vec<(Vec<u8>, Vec<u8>)> {
    match (&record.key, &record.value) {
        (Key::Link(repository, digest), Some(Value::Link(_))) => vec![(prefix(digest, repository), Vec::new())],
        (Key::Tag(repository, tag), Some(Value::Tag(target))) => {
            vec![([&prefix(&target.digest, repository)[..], &[TAG], tag.as_str().as_bytes()].concat(), Vec::new())]
        }
        (Key::Manifest(repository, digest), Some(Value::Manifest(Manifest { media_type, bytes }))) => {
            // What a later program lets in may be unreadable here: it is kept, and holds nothing.
            let Ok(view) = ManifestView::parse(media_type, bytes) else { return Vec::new() };
            let mut named = std::collections::BTreeMap::<Digest, Naming>::new();
            let kinds = [(&view.blobs[..], Naming::BLOB), (&view.children, Naming::CHILD), (view.subject.as_slice(), Naming::SUBJECT)];
            for (digests, naming) in kinds {
                for digest in digests {
                    let entry = named.entry(*digest).or_default();
                    *entry = entry.and(naming);
                }
            }
            let parent = digest.to_key();
            let row = |(child, naming): (Digest, Naming)| ([&prefix(&child, repository)[..], &parent].concat(), vec![naming.0]);
            named.into_iter().map(row).collect()
        }
        _ => Vec::new(),
    }
}

/// Every holder of a digest in one repository, in the order of their keys, behind `after` when it is given.
pub(super) fn holders<'a>(
    index: &'a Index,
    digest: &Digest,
    repository: &RepositoryName,
    after: Option<&Digest>,
) -> impl Iterator<Item = Result<Holder>> + 'a {
    let prefix = prefix(digest, repository);
    let from = after.map(|after| [&prefix[..], &after.to_key(), &[0]].concat()).unwrap_or_default();
    let length = prefix.len();
    index.scan(Table::Edge, &prefix, &from).map(move |row| {
        let (key, row) = row?;
        holder(&key[length..], &row)
    })
}

/// The repositories that link a digest.
pub(super) fn linking<'a>(index: &'a Index, digest: &Digest) -> impl Iterator<Item = Result<RepositoryName>> + 'a {
    let prefix = digest.to_key();
    let length = prefix.len();
    index.scan(Table::Edge, &prefix, b"").filter_map(move |row| {
        let (key, _) = match row {
            Ok(row) => row,
            Err(error) => return Some(Err(error)),
        };
        let name = key[length..].split_last().filter(|_| is_link(&key[length..]))?.1;
        std::str::from_utf8(name).ok().and_then(|name| name.parse().ok()).map(Ok)
    })
}

/// Whether what stands behind a digest is a link's: only that ends with the repository.
pub(super) fn is_link(rest: &[u8]) -> bool {
    rest.iter().position(|byte| *byte == 0).is_some_and(|end| end + 1 == rest.len())
}

/// Writes all rows anew, unless this program was the last to write here.
pub(super) fn ensure(index: &Index) -> Result<()> {
    let (seen, clock) = (index.get(Table::Meta, META_EDGES)?, index.get(Table::Meta, journal::META_CLOCK)?);
    if seen == clock {
        return Ok(());
    }
    tracing::info!("writing the reverse references and listings anew: another version of this program was here");
    let mut batch = Batch::default();
    let mut count = 0;
    let mut write = |index: &Index, batch: &mut Batch, last: bool| {
        count += 1;
        if last || count % BATCH == 0 { index.write(std::mem::take(batch)) } else { Ok(()) }
    };
    for table in [Table::Edge, Table::Listed] {
        for row in index.scan(table, b"", b"") {
            index.delete(&mut batch, table, &row?.0);
            write(index, &mut batch, false)?;
        }
    }
    for table in [Table::Link, Table::Manifest, Table::Tag] {
        for row in index.scan(table, b"", b"") {
            let row: RecordRow = decode(table, &row?.1)?;
            let record = journal::parse(&row.record)?;
            let listed = listed::of_record(&record).map(|row| (Table::Listed, row));
            for (table, (key, row)) in of_record(&record).into_iter().map(|row| (Table::Edge, row)).chain(listed) {
                index.put(&mut batch, table, &key, &row);
                write(index, &mut batch, false)?;
            }
        }
    }
    if let Some(clock) = clock {
        index.put(&mut batch, Table::Meta, META_EDGES, &clock);
    }
    write(index, &mut batch, true)
}

fn prefix(digest: &Digest, repository: &RepositoryName) -> Vec<u8> {
    [&digest.to_key()[..], repository.as_str().as_bytes(), &[0]].concat()
}

fn holder(bytes: &[u8], row: &[u8]) -> Result<Holder> {
    let found = match bytes {
        [] => Some(Holder::Link),
        [TAG, tag @ ..] => std::str::from_utf8(tag).ok().and_then(|tag| tag.parse().ok()).map(Holder::Tag),
        digest => Digest::from_key(digest).zip(row.first()).map(|(digest, naming)| Holder::Manifest(digest, Naming(*naming))),
    };
    found.ok_or_else(|| Error::Damaged { what: "a reverse reference".to_owned(), detail: format!("its key ends in {bytes:02x?}") })
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::super::tests::{IMAGE, Place, image, push, put, repository, tag};
    use super::super::{Key, Store};
    use super::*;

    fn all(store: &Store) -> BTreeMap<Box<[u8]>, Box<[u8]>> {
        store.inner.index.scan(Table::Edge, b"", b"").collect::<Result<_>>().expect("readable")
    }

    #[test]
    fn rows_follow_from_records_and_go_with_them() {
        let (place, name) = (Place::new(1), repository("team/app"));
        let store = place.open();
        let layer = push(&store, "team/app", b"layer");
        let bytes = image(&[(layer, 5), (layer, 5)]);
        let digest = put(&store, "team/app", &["latest", "v1"], IMAGE, &bytes).expect("stored");
        let held = |digest: &Digest| holders(&store.inner.index, digest, &name, None).collect::<Result<Vec<_>>>().expect("readable");
        assert_eq!(held(&layer), [Holder::Link, Holder::Manifest(digest, Naming::BLOB)]);
        assert_eq!(held(&digest), [Holder::Tag(tag("latest")), Holder::Tag(tag("v1"))]);
        assert_eq!(store.repositories_linking(&layer, 9).expect("readable"), vec![name.clone()]);

        assert!(store.delete_manifest(&name, &digest).expect("deleted"));
        assert_eq!((held(&layer), held(&digest)), (vec![Holder::Link], vec![]));
        assert!(store.tag(&name, &tag("v1")).expect("readable").is_none());
        assert!(store.unlink(&name, &layer).expect("unlinked"));
        assert!(all(&store).is_empty());
    }

    #[test]
    fn f43_rows_are_written_anew_when_an_older_program_was_here() {
        let place = Place::new(1);
        let store = place.open();
        let layer = push(&store, "team/app", b"layer");
        put(&store, "team/app", &["latest"], IMAGE, &image(&[(layer, 5)])).expect("stored");
        let rows = all(&store);
        assert_eq!(rows.len(), 3, "a link, a config, a tag");
        // What an older one leaves: its own kind of rows, and a clock that has moved on.
        let mut batch = Batch::default();
        for key in rows.keys() {
            store.inner.index.delete(&mut batch, Table::Edge, key);
        }
        store.inner.index.put(&mut batch, Table::Edge, &[&prefix(&layer, &repository("team/app"))[..], &layer.to_key()].concat(), &[]);
        store.inner.index.put(&mut batch, Table::Meta, META_EDGES, b"before");
        store.inner.index.write(batch).expect("written");
        store.close();
        drop(store);
        let store = place.open();
        assert_eq!(all(&store), rows);
        assert!(store.record(&Key::Tag(repository("team/app"), tag("latest"))).expect("readable").is_some());
    }
}
