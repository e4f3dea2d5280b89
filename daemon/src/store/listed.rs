//! What there is to list: a row for each live tag and each live manifest, and none for what was deleted.
//!
//! ```text
//! key    0 | repository | NUL | digest key      a manifest; its row is empty
//!        1 | repository | NUL | tag             a tag; its row has what it names, and the stamp
//! ```
//!
//! The records can't be listed themselves as fast: a deleted tag leaves its tombstone among them for ever, and the repositories lie as far
//! apart as the bytes of their manifests are long. Rows follow from records, are written in their batch, and anew when another
//! version of the program was here (see `edges`).

use larder_protocol::codec;
use larder_protocol::digest::Digest;
use larder_protocol::name::RepositoryName;
use larder_protocol::record::{Key, Record, Value};
use larder_protocol::stamp::Stamp;

use super::error::{Error, Result};
use super::index::{Index, Table, decode};
use super::tags::TagInfo;

const MANIFEST: u8 = 0;
const TAG: u8 = 1;

/// The row that follows from a record; none from a tombstone, and from what is not listed.
pub(super) fn of_record(record: &Record) -> Option<(Vec<u8>, Vec<u8>)> {
    match (&record.key, &record.value) {
        (Key::Manifest(repository, digest), Some(Value::Manifest(_))) => {
            Some(([&prefix(MANIFEST, repository)[..], &digest.to_key()].concat(), Vec::new()))
        }
        (Key::Tag(repository, tag), Some(Value::Tag(target))) => {
            let row = codec::encode(&(target.digest, record.stamp));
            Some(([&prefix(TAG, repository)[..], tag.as_str().as_bytes()].concat(), row))
        }
        _ => None,
    }
}

/// Live tags of a repository behind `after`, in byte order.
pub(super) fn tags<'a>(index: &'a Index, repository: &RepositoryName, after: Option<&str>) -> impl Iterator<Item = Result<TagInfo>> + 'a {
    let prefix = prefix(TAG, repository);
    // The smallest key behind `after` is `after` with a NUL.
    let from = after.map(|after| [&prefix, after.as_bytes(), &[0]].concat()).unwrap_or_default();
    let length = prefix.len();
    index.scan(Table::Listed, &prefix, &from).map(move |row| {
        let (key, row) = row?;
        let tag = std::str::from_utf8(&key[length..]).ok().and_then(|tag| tag.parse().ok()).ok_or_else(|| damaged(&key))?;
        let (digest, stamp): (Digest, Stamp) = decode(Table::Listed, &row)?;
        Ok(TagInfo { tag, digest, stamp })
    })
}

/// How many tags are live, in all repositories.
pub(super) fn tag_count(index: &Index) -> Result<u64> {
    index.scan(Table::Listed, &[TAG], b"").try_fold(0, |count, row| row.map(|_| count + 1))
}

/// Repositories with a live manifest behind `after`, in byte order, at most `limit`.
pub(super) fn repositories(index: &Index, after: Option<&str>, limit: usize) -> Result<Vec<RepositoryName>> {
    let mut repositories = Vec::new();
    if limit == 0 {
        return Ok(repositories);
    }
    // Behind all rows of a repository: its name and the byte that follows NUL.
    let behind = |name: &[u8]| [&[MANIFEST], name, &[1]].concat();
    let from = after.map_or_else(|| vec![MANIFEST], |after| behind(after.as_bytes()));
    let mut wrong = None;
    index.leap(Table::Listed, from, |key| {
        let name = key.strip_prefix(&[MANIFEST])?.split(|byte| *byte == 0).next()?;
        match std::str::from_utf8(name).ok().and_then(|name| name.parse().ok()) {
            Some(repository) => repositories.push(repository),
            None => wrong = Some(damaged(key)),
        }
        (repositories.len() < limit && wrong.is_none()).then(|| behind(name))
    })?;
    wrong.map_or(Ok(repositories), Err)
}

fn prefix(kind: u8, repository: &RepositoryName) -> Vec<u8> {
    [&[kind], repository.as_str().as_bytes(), &[0]].concat()
}

fn damaged(key: &[u8]) -> Error {
    Error::Damaged { what: "a row of what is listed".to_owned(), detail: format!("its key is \"{}\"", key.escape_ascii()) }
}

#[cfg(test)]
mod tests {
    use super::super::tests::{IMAGE, Place, image, push, put, repository, tag};

    #[test]
    fn what_was_deleted_leaves_nothing_to_step_over() {
        let place = Place::new(1);
        let store = place.open();
        let rows = || store.inner.index.scan(super::Table::Listed, b"", b"").count();
        for name in ["team/app", "team/app-b", "team"] {
            let layer = push(&store, name, b"layer");
            let digest = put(&store, name, &["b", "a", "c"], IMAGE, &image(&[(layer, 5)])).expect("stored");
            assert!(store.delete_tag(&repository(name), &tag("b")).expect("deleted"));
            let left: Vec<_> = store.tags(&repository(name), None, 9).expect("readable").into_iter().map(|info| info.tag).collect();
            assert_eq!(
                (left, store.tag(&repository(name), &tag("c")).expect("readable").map(|info| info.digest)),
                (vec![tag("a"), tag("c")], Some(digest))
            );
        }
        let names = |after, limit| store.repositories(after, limit).expect("readable").iter().map(ToString::to_string).collect::<Vec<_>>();
        assert_eq!(names(None, 9), ["team", "team/app", "team/app-b"]);
        assert_eq!(
            (names(None, 1), names(Some("team"), 1), names(Some("team/app"), 9)),
            (vec!["team".into()], vec!["team/app".into()], vec!["team/app-b".into()])
        );
        assert_eq!((names(None, 0), names(Some("u"), 9)), (vec![], vec![]));
        assert_eq!((rows(), store.counts().expect("readable").tags), (9, 6));
        for name in ["team/app", "team/app-b", "team"] {
            let digest = store.tag(&repository(name), &tag("a")).expect("readable").expect("there").digest;
            assert!(store.delete_manifest(&repository(name), &digest).expect("deleted"));
        }
        assert_eq!((names(None, 9), rows()), (vec![], 0));
    }
}
