//! All blobs that packs hold, in the order of their digests: where, whether anybody links them, and whether they are here. Three tables are read side by side, none of them by key.

use larder_protocol::digest::Digest;
use larder_protocol::record::PackId;

use super::error::Result;
use super::index::{Table, decode, successor};
use super::{Store, edges};

/// A blob that packs hold.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LocatedBlob {
    /// The blob.
    pub digest: Digest,
    /// Who holds it, and how many bytes he says that it has.
    pub packs: Vec<(PackId, u64)>,
    /// Whether any repository links it.
    pub is_linked: bool,
    /// Whether it is on this disk.
    pub is_here: bool,
}

impl Store {
    /// Blobs that packs hold behind `after`, at most `limit`. Takes about as long as reading the rows in between. Blocks.
    ///
    /// # Errors
    /// A table can't be read.
    pub fn located(&self, after: Option<&Digest>, limit: usize) -> Result<Vec<LocatedBlob>> {
        let index = &self.inner.index;
        let from = after.and_then(|digest| successor(&digest.to_key())).unwrap_or_default();
        let mut blobs: Vec<LocatedBlob> = Vec::new();
        for row in index.scan(Table::Location, b"", &from) {
            let (key, row) = row?;
            let Some((digest, pack)) = split(&key) else { continue };
            if blobs.last().is_none_or(|last| last.digest != digest) {
                if blobs.len() >= limit {
                    break;
                }
                blobs.push(LocatedBlob { digest, packs: Vec::new(), is_linked: false, is_here: false });
            }
            let (_, length): (u64, u64) = decode(Table::Location, &row)?;
            if let (Some(pack), Some(blob)) = (PackId::from_bytes(pack), blobs.last_mut()) {
                blob.packs.push((pack, length));
            }
        }
        self.beside(&mut blobs, Table::Edge, |blob, rest| blob.is_linked |= edges::is_link(rest))?;
        self.beside(&mut blobs, Table::Blob, |blob, _| blob.is_here = true)?;
        Ok(blobs)
    }

    /// Shows each blob the rows of a table that are about it.
    fn beside(&self, blobs: &mut [LocatedBlob], table: Table, show: impl Fn(&mut LocatedBlob, &[u8])) -> Result<()> {
        let Some(first) = blobs.first() else { return Ok(()) };
        let (from, mut at) = (first.digest.to_key(), 0);
        for row in self.inner.index.scan(table, b"", &from) {
            let (key, _) = row?;
            let Some((digest, rest)) = split(&key) else { continue };
            // Digests are in the order of their keys: the algorithm's, and then that of the bytes.
            while at < blobs.len() && blobs[at].digest < digest {
                at += 1;
            }
            match blobs.get_mut(at) {
                Some(blob) if blob.digest == digest => show(blob, rest),
                Some(_) => {}
                None => break,
            }
        }
        Ok(())
    }
}

/// A key that begins with a digest's, and what comes behind that.
fn split(key: &[u8]) -> Option<(Digest, &[u8])> {
    let length = match key.first()? {
        0 => 33,
        1 => 65,
        _ => return None,
    };
    let (digest, rest) = key.split_at_checked(length)?;
    Some((Digest::from_key(digest)?, rest))
}

#[cfg(test)]
mod tests {
    use larder_protocol::digest::Digest;
    use larder_protocol::record::{Archived, Key, Located, Value};
    use larder_protocol::vector::Origin;

    use super::super::Commit;
    use super::super::tests::{Place, push, push_image};
    use super::*;

    #[test]
    fn what_is_read_side_by_side_is_what_is_found_one_by_one() {
        let place = Place::new(1);
        let store = place.open();
        let mut digests: Vec<Digest> = (0..20u8).map(|number| push(&store, ["a/b", "c"][usize::from(number) % 2], &[number; 9])).collect();
        push_image(&store, "team/app", "v1", b"an image");
        // Not here, not linked, and of another algorithm.
        digests.extend((0..10u8).map(|number| Digest::sha256(&[number, 1])));
        digests.extend((0..10u8).map(|number| Digest::Sha512([number; 64])));
        for digest in &digests[5..8] {
            store.unlink(&"c".parse().expect("a name"), digest).expect("unlinked");
        }
        let id = |sequence| PackId { origin: Origin { incarnation: 1, ..store.origin() }, sequence };
        let pack = |sequence: u64| {
            let held = digests.iter().enumerate().filter(|(at, _)| !(*at as u64).is_multiple_of(sequence + 1));
            let contents = held.map(|(at, digest)| Located { digest: *digest, offset: at as u64, length: sequence }).collect();
            let archived = Archived { bucket: "b".to_owned(), object_key: "k".to_owned(), size: 9, created_ms: 1, records: 0, contents };
            (Key::Archived(id(sequence)), Some(Value::Archived(archived)))
        };
        store.commit(Commit { records: (1..5).map(pack).collect(), settings: Vec::new() }).expect("recorded");
        digests.sort_unstable();
        let expected: Vec<LocatedBlob> = digests
            .into_iter()
            .map(|digest| LocatedBlob {
                digest,
                packs: store.locations(&digest).expect("readable").into_iter().map(|(pack, _, length)| (pack, length)).collect(),
                is_linked: !store.repositories_linking(&digest, 1).expect("readable").is_empty(),
                is_here: store.blob(&digest).expect("readable").is_some(),
            })
            .filter(|blob| !blob.packs.is_empty())
            .collect();
        assert!(expected.len() > 30 && expected.iter().any(|blob| blob.is_linked) && expected.iter().any(|blob| !blob.is_here));
        for limit in [1, 2, 7, expected.len(), 1_000] {
            let (mut found, mut after) = (Vec::new(), None);
            loop {
                let page = store.located(after.as_ref(), limit).expect("readable");
                assert!(page.len() <= limit);
                let Some(last) = page.last() else { break };
                after = Some(last.digest);
                found.extend(page);
            }
            assert_eq!(found, expected, "{limit} at a time");
        }
    }
}
