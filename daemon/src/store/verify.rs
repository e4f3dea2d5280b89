//! Reading what is kept in order to know that it is still what was kept: blobs one by one, the index row by row.

use std::num::NonZeroU64;

use larder_protocol::digest::{CHUNK_SIZE, Digest};

use super::error::{Error, Result};
use super::index::{BlobRow, Table, decode};
use super::reading::Content;
use super::{BlobFile, Store, known};

/// What came of reading a blob.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Every byte is as it came in.
    Good,
    /// It was damaged, and has been put aside.
    Damaged(String),
    /// It is not here any more.
    Gone,
}

impl Store {
    /// Blobs on this disk behind `after`, in the order of digests, with their sizes, at most `limit`.
    pub fn blobs_behind(&self, after: Option<&Digest>, limit: usize) -> Result<Vec<(Digest, u64)>> {
        let from = after.map(|after| [&after.to_key()[..], &[0]].concat()).unwrap_or_default();
        let mut blobs = Vec::new();
        for row in self.inner.index.scan(Table::Blob, b"", &from).take(limit) {
            let (key, row) = row?;
            let row: BlobRow = decode(Table::Blob, &row)?;
            blobs.extend(Digest::from_key(&key).map(|digest| (digest, row.size)));
        }
        Ok(blobs)
    }

    /// Reads a whole blob and puts it aside when it is damaged. What came into the page cache for this leaves it again.
    pub fn verify(&self, digest: &Digest) -> Result<Verdict> {
        let (file, why) = match self.open_blob(digest) {
            Ok(None) => return Ok(Verdict::Gone),
            Ok(Some(Content::Memory(_))) => return Ok(Verdict::Good),
            Ok(Some(Content::File(file))) => match read(&file) {
                Ok(()) => return Ok(Verdict::Good),
                Err(why) => (Some(file), why),
            },
            Err(error @ Error::Damaged { .. }) => (None, error.to_string()),
            Err(error) => return Err(error),
        };
        // Not so, when it was replaced or removed while it was read.
        Ok(if self.quarantine(digest, file.as_ref(), &why)? { Verdict::Damaged(why) } else { Verdict::Gone })
    }

    /// The tables of the index, by name.
    pub fn tables() -> impl Iterator<Item = &'static str> {
        Table::names()
    }

    /// Reads rows of a table from a place on, through at most `limit` of them: how many, their bytes, and where to go on.
    ///
    /// # Errors
    /// `Index`: a part of the table is damaged.
    pub fn read_rows(&self, table: &str, from: Option<&[u8]>, limit: usize) -> Result<(u64, u64, Option<Vec<u8>>)> {
        let Some(table) = Table::named(table) else { return Ok((0, 0, None)) };
        let (mut rows, mut bytes) = (0, 0);
        for row in self.inner.index.scan(table, b"", from.unwrap_or_default()) {
            let (key, row) = row?;
            if rows == limit as u64 {
                return Ok((rows, bytes, Some(key.into_vec())));
            }
            rows += 1;
            bytes += (key.len() + row.len()) as u64;
        }
        Ok((rows, bytes, None))
    }
}

fn read(file: &BlobFile) -> std::result::Result<(), String> {
    let mut buffer = vec![0; file.chunk_size(0)];
    for index in 0..file.size().div_ceil(CHUNK_SIZE) {
        buffer.resize(file.chunk_size(index), 0);
        let start = index * CHUNK_SIZE;
        let was_in_memory = known::is_in_memory(file.file(), start..start + buffer.len() as u64);
        file.read_chunk(index, &mut buffer)?;
        if !was_in_memory {
            // Best effort: a disk that can't be asked so is only slower for others.
            let _ = rustix::fs::fadvise(&**file.file(), start, NonZeroU64::new(buffer.len() as u64), rustix::fs::Advice::DontNeed);
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::FileExt;

    use super::super::SMALL_MAX;
    use super::super::tests::{Place, bytes, push};
    use super::*;

    type Harm = fn(&std::path::Path);
    const HARMS: [Harm; 4] = [
        |path| {
            let file = std::fs::OpenOptions::new().read(true).write(true).open(path).expect("open");
            let mut byte = [0];
            file.read_exact_at(&mut byte, 70_000).expect("read");
            file.write_all_at(&[byte[0] ^ 4], 70_000).expect("flip a bit");
        },
        |path| std::fs::OpenOptions::new().write(true).open(path).expect("open").set_len(5).expect("cut"),
        |path| std::fs::write(path, b"something else").expect("write"),
        |path| std::fs::remove_file(path).expect("remove"),
    ];

    #[test]
    fn f8_damage_is_found_put_aside_and_mended_by_a_push() {
        let place = Place::new(1);
        let store = place.open();
        // Of one chunk, and of several.
        for size in [SMALL_MAX + 10_000, 3 * CHUNK_SIZE + 5] {
            let blob = bytes(size, size);
            for harm in HARMS {
                let digest = push(&store, "a", &blob);
                assert_eq!(store.verify(&digest).expect("readable"), Verdict::Good);
                harm(&store.inner.folder.blob(&digest));
                assert!(matches!(store.verify(&digest).expect("readable"), Verdict::Damaged(_)));
                assert_eq!(store.verify(&digest).expect("readable"), Verdict::Gone);
                assert!(store.open_blob(&digest).expect("readable").is_none());
                assert_eq!(store.lost(None, 9).expect("list").iter().map(|lost| lost.digest).collect::<Vec<_>>(), [digest]);
                push(&store, "a", &blob);
                assert_eq!((store.verify(&digest).expect("readable"), store.lost(None, 9).expect("list")), (Verdict::Good, vec![]));
            }
        }
        let kept = std::fs::read_dir(place.folder().join("quarantine")).expect("folder").count();
        assert_eq!(kept, 6, "all but those that were gone");
    }

    #[test]
    fn f8_a_push_mends_damage_that_nobody_has_seen() {
        let place = Place::new(1);
        let store = place.open();
        let blob = bytes(5, 2 * CHUNK_SIZE);
        for harm in HARMS {
            let digest = push(&store, "a", &blob);
            harm(&store.inner.folder.blob(&digest));
            push(&store, "b", &blob);
            assert_eq!(store.verify(&digest).expect("readable"), Verdict::Good);
        }
    }

    #[test]
    fn a_file_that_was_replaced_meanwhile_is_not_put_aside() {
        let place = Place::new(1);
        let store = place.open();
        let blob = bytes(1, SMALL_MAX + 10_000);
        let digest = push(&store, "a", &blob);
        let Some(Content::File(before)) = store.open_blob(&digest).expect("readable") else { panic!("a file") };
        store.evict(&digest).expect("removed");
        push(&store, "a", &blob);
        assert!(!store.quarantine(&digest, Some(&before), "it was bad").expect("nothing to do"));
        assert_eq!(store.verify(&digest).expect("readable"), Verdict::Good);
    }

    #[test]
    fn every_row_of_the_index_is_read() {
        let place = Place::new(1);
        let store = place.open();
        push(&store, "a", b"blob");
        let mut names = Vec::new();
        for table in Store::tables() {
            let (rows, _, next) = store.read_rows(table, None, 100).expect("readable");
            assert!(next.is_none());
            if rows > 0 {
                names.push(table);
            }
        }
        for table in ["meta", "blob", "small", "link", "edge", "journal"] {
            assert!(names.contains(&table), "{table} has rows: {names:?}");
        }
        let (rows, bytes, next) = store.read_rows("meta", None, 1).expect("readable");
        assert!(rows == 1 && bytes > 0 && next.is_some());
    }
}
