//! Blobs that are coming in, as peers see them; and what is kept of those that did not come whole.
//!
//! A blob on its way in is written to `uploads/<algorithm>-<hex>.part`, chunk by chunk and in any order; [`Partial`] says which chunks
//! are here, so that they can be given to others while the rest comes. When nobody has the rest, the file stays: the next
//! fetch of the blob, also after a restart, checks each chunk that it finds there against the blob's chunk list and goes on.
//!
//! What is kept is bounded in number and age, counts as taken space, and is the first to go when room is short.
//!
//! CRASH: a file whose chunks nobody has vouched for; each is checked before it is used. Old ones go at the next start.

use std::collections::HashMap;
use std::fs::{self, File};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime};

use larder_protocol::chunks::ChunkSet;
use larder_protocol::digest::{CHUNK_SIZE, ChunkList, Digest};
use larder_protocol::record::Link;
use tokio::sync::watch;

use super::error::{Error, Result};
use super::journal::lock;
use super::layout::remove_file;
use super::reading::BlobFile;
use super::staging::Progress;
use super::{Inner, Store};

/// Most unfinished blobs that are kept.
const KEPT_MAX: usize = 64;
/// How long they are kept.
const KEPT_TIME: Duration = Duration::from_secs(24 * 3600);
/// The end of their files' names.
pub(super) const SUFFIX: &str = ".part";

/// A blob that is coming in. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Partial {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    digest: Digest,
    link: Link,
    file: Arc<File>,
    chunks: Mutex<Chunks>,
    changed: watch::Sender<u64>,
    progress: watch::Receiver<Progress>,
}

#[derive(Debug)]
struct Chunks {
    have: ChunkSet,
    coming: ChunkSet,
    /// What checks the chunks; never for a blob of one.
    list: Option<Arc<ChunkList>>,
}

/// How a blob that was coming in has ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ended {
    /// It is a blob now.
    Whole,
    /// It will not come.
    Abandoned,
}

impl Partial {
    pub(super) fn new(digest: Digest, link: Link, file: Arc<File>, progress: watch::Receiver<Progress>) -> Self {
        let count = ChunkList::count(link.size);
        let chunks = Chunks { have: ChunkSet::new(count), coming: ChunkSet::new(count), list: None };
        let shared = Shared { digest, link, file, chunks: Mutex::new(chunks), changed: watch::Sender::new(0), progress };
        Self { shared: Arc::new(shared) }
    }

    /// What its link says.
    pub fn link(&self) -> Link {
        self.shared.link
    }

    /// The chunks that are here, and those that were asked for.
    pub fn chunks(&self) -> (ChunkSet, ChunkSet) {
        let chunks = lock(&self.shared.chunks);
        (chunks.have.clone(), chunks.coming.clone())
    }

    /// Whether a chunk is here.
    pub fn has(&self, index: u32) -> bool {
        lock(&self.shared.chunks).have.has(index)
    }

    /// What checks the chunks, when it is known.
    pub fn list(&self) -> Option<Arc<ChunkList>> {
        lock(&self.shared.chunks).list.clone()
    }

    /// The file, to read chunks that are here.
    pub fn file(&self) -> Option<BlobFile> {
        let (shared, list) = (&self.shared, self.list());
        if shared.link.size <= CHUNK_SIZE {
            return Some(BlobFile::small_part(Arc::clone(&shared.file), shared.digest, shared.link.size, shared.link.root));
        }
        list.map(|list| BlobFile::part(Arc::clone(&shared.file), shared.digest, list))
    }

    /// Says which chunks have been asked for, and are no longer.
    pub fn expect(&self, index: u32, is_coming: bool) {
        {
            let mut chunks = lock(&self.shared.chunks);
            let changed = if is_coming { chunks.coming.insert(index) } else { chunks.coming.remove(index) };
            if !changed {
                return;
            }
        }
        self.changed();
    }

    /// A number that grows with every change.
    pub fn changes(&self) -> watch::Receiver<u64> {
        self.shared.changed.subscribe()
    }

    /// Waits until the blob is whole or will not come.
    pub async fn ended(&self) -> Ended {
        let mut progress = self.shared.progress.clone();
        match progress.wait_for(|progress| !matches!(progress, Progress::Coming(_))).await.map(|progress| *progress) {
            Ok(Progress::Whole) => Ended::Whole,
            _ => Ended::Abandoned,
        }
    }

    pub(super) fn know(&self, list: ChunkList) {
        lock(&self.shared.chunks).list = Some(Arc::new(list));
    }

    /// A chunk is on the disk and was checked; whether it was not before.
    pub(super) fn landed(&self, index: u32) -> bool {
        let mut chunks = lock(&self.shared.chunks);
        chunks.coming.remove(index);
        chunks.have.insert(index)
    }

    pub(super) fn changed(&self) {
        self.shared.changed.send_modify(|number| *number += 1);
    }

    /// Whether there is something worth keeping.
    fn is_worth(&self) -> bool {
        let chunks = lock(&self.shared.chunks);
        chunks.list.is_some() && !chunks.have.is_empty()
    }
}

/// The blobs that are coming in, and what is kept of others.
#[derive(Debug, Default)]
pub(super) struct Partials(Mutex<Table>);

#[derive(Debug, Default)]
struct Table {
    active: HashMap<Digest, Partial>,
    /// Files that wait for another fetch: bytes on the disk, and since when.
    kept: HashMap<Digest, (u64, SystemTime)>,
}

impl Partials {
    /// Bytes of what is kept.
    pub(super) fn kept_bytes(&self) -> u64 {
        lock(&self.0).kept.values().map(|(bytes, _)| bytes).sum()
    }

    /// Whether a blob may use its own file: nobody else fetches it. What was kept of it is his.
    pub(super) fn claim(&self, digest: Digest, partial: &Partial) -> bool {
        let mut table = lock(&self.0);
        if table.active.contains_key(&digest) {
            return false;
        }
        table.kept.remove(&digest);
        table.active.insert(digest, partial.clone());
        true
    }

    pub(super) fn is_active(&self, digest: &Digest) -> bool {
        lock(&self.0).active.contains_key(digest)
    }

    /// It is a blob now.
    pub(super) fn done(&self, digest: &Digest) {
        lock(&self.0).active.remove(digest);
    }
}

impl Inner {
    /// A blob did not come whole: its file is kept when there is something in it.
    pub(super) fn leave_partial(&self, digest: Digest, partial: &Partial, path: &Path) {
        let found = fs::symlink_metadata(path).ok().filter(|_| partial.is_worth());
        let mut table = lock(&self.partials.0);
        table.active.remove(&digest);
        let Some(found) = found else {
            drop(table);
            return tell(remove_file(path));
        };
        table.kept.insert(digest, (found.blocks() * 512, SystemTime::now()));
        self.bound(&mut table);
    }

    fn bound(&self, table: &mut Table) {
        let is_old = |since: &SystemTime| since.elapsed().is_ok_and(|age| age > KEPT_TIME);
        while let Some((digest, (_, since))) = table.kept.iter().min_by_key(|(_, (_, since))| *since).map(|(digest, kept)| (*digest, *kept))
            && (table.kept.len() > KEPT_MAX || is_old(&since))
        {
            table.kept.remove(&digest);
            tell(remove_file(&self.folder.partial(&digest)));
        }
    }

    /// Removes everything that is kept; its bytes.
    pub(super) fn drop_partials(&self) -> u64 {
        let mut table = lock(&self.partials.0);
        let mut bytes = 0;
        for (digest, (size, _)) in table.kept.drain() {
            tell(remove_file(&self.folder.partial(&digest)));
            bytes += size;
        }
        bytes
    }
}

/// Takes stock of what the last life of the program has left.
pub(super) fn load(inner: &Inner) -> Result<()> {
    let folder = inner.folder.uploads();
    let mut table = lock(&inner.partials.0);
    for entry in fs::read_dir(&folder).map_err(Error::io("list", &folder))? {
        let path = entry.map_err(Error::io("list", &folder))?.path();
        let Some(name) = path.file_name().and_then(|name| name.to_str()).and_then(|name| name.strip_suffix(SUFFIX)) else { continue };
        let digest = name.split_once('-').and_then(|(algorithm, hex)| format!("{algorithm}:{hex}").parse::<Digest>().ok());
        let (Some(digest), Ok(found)) = (digest, fs::symlink_metadata(&path)) else { continue };
        table.kept.insert(digest, (found.blocks() * 512, found.modified().unwrap_or(SystemTime::UNIX_EPOCH)));
    }
    inner.bound(&mut table);
    Ok(())
}

/// The chunks of a file that are the blob's: what was kept is not trusted.
pub(super) fn found(file: &File, list: &ChunkList) -> std::io::Result<Vec<u32>> {
    let length = file.metadata()?.len();
    let (mut found, mut buffer) = (Vec::new(), vec![0; CHUNK_SIZE as usize]);
    let mut offset = 0;
    while offset < length.min(list.size()) {
        // What was never written is not read.
        match rustix::fs::seek(file, rustix::fs::SeekFrom::Data(offset)) {
            Ok(data) => offset = data / CHUNK_SIZE * CHUNK_SIZE,
            Err(rustix::io::Errno::NXIO) => break,
            Err(_) => {}
        }
        let size = CHUNK_SIZE.min(list.size().saturating_sub(offset)) as usize;
        if offset + size as u64 > length || size == 0 {
            break;
        }
        file.read_exact_at(&mut buffer[..size], offset)?;
        if list.holds(offset / CHUNK_SIZE, &buffer[..size]) {
            found.push((offset / CHUNK_SIZE) as u32);
        }
        offset += size as u64;
    }
    Ok(found)
}

fn tell(removed: Result<()>) {
    if let Err(error) = removed {
        tracing::info!(%error, "an unfinished blob's file is left until the next start");
    }
}

impl Store {
    /// The blob, if it is coming in at this moment. Does not block.
    pub fn partial(&self, digest: &Digest) -> Option<Partial> {
        lock(&self.inner.partials.0).active.get(digest).cloned()
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use larder_protocol::digest::{chunk_value, tree_hash};

    use super::super::tests::{Place, bytes};
    use super::*;

    /// More than two chunks, the last of them short.
    const SIZE: u64 = 3 * CHUNK_SIZE + 100;

    fn blob() -> (Vec<u8>, Digest, Link, ChunkList) {
        let blob = bytes(3, SIZE);
        let crc64 = crc_fast::checksum(crc_fast::CrcAlgorithm::Crc64Nvme, &blob);
        let link = Link { size: SIZE, root: tree_hash(&blob), crc64 };
        let values = blob.chunks(CHUNK_SIZE as usize).enumerate().map(|(index, chunk)| chunk_value(index as u64, chunk)).collect();
        let digest = Digest::sha256(&blob);
        (blob, digest, link, ChunkList::new(SIZE, values))
    }

    fn chunk(blob: &[u8], index: u32) -> Bytes {
        Bytes::copy_from_slice(blob.chunks(CHUNK_SIZE as usize).nth(index as usize).expect("such a chunk"))
    }

    #[tokio::test]
    async fn chunks_come_in_any_order_and_readers_follow_to_the_first_gap() {
        let (blob, digest, link, list) = blob();
        // Every order of four chunks.
        for order in (0..256u32).map(|code| [code % 4, code / 4 % 4, code / 16 % 4, code / 64]).filter(|order| {
            let set: std::collections::HashSet<_> = order.iter().collect();
            set.len() == 4
        }) {
            let place = Place::new(1);
            let store = place.open();
            let mut staging = store.stage(digest, link).expect("stage");
            staging.know(list.clone()).await.expect("its list");
            let mut reader = staging.reader();
            let partial = store.partial(&digest).expect("it is coming in");
            for (done, index) in order.into_iter().enumerate() {
                partial.expect(index, true);
                assert!(partial.chunks().1.has(index) && !partial.has(index));
                assert!(staging.put_chunk(index, chunk(&blob, index)).await.expect("put"));
                assert!(partial.has(index) && partial.chunks().1.is_empty());
                let run = partial.chunks().0.run(0);
                let whole = (u64::from(run) * CHUNK_SIZE).min(SIZE);
                assert_eq!(staging.offset(), whole, "{order:?} after {done}");
                // What is here can be given to others.
                let mut buffer = vec![0; chunk(&blob, index).len()];
                partial.file().expect("checkable").read_chunk(u64::from(index), &mut buffer).expect("the chunk");
                if whole > 0 {
                    let got = reader.read(0, usize::MAX).await.expect("read");
                    assert!(blob.starts_with(&got) && got.len() as u64 == whole.min(SIZE - 1));
                }
            }
            staging.finish().await.expect("whole");
            assert_eq!(partial.ended().await, Ended::Whole);
            assert!(store.partial(&digest).is_none() && store.open_blob(&digest).expect("open").is_some());
        }
    }

    #[tokio::test]
    async fn f23_a_wrong_chunk_is_not_taken_and_a_wrong_list_neither() {
        let (blob, digest, link, list) = blob();
        let place = Place::new(1);
        let store = place.open();
        let mut staging = store.stage(digest, link).expect("stage");
        assert!(!staging.put_chunk(0, chunk(&blob, 0)).await.expect("put"), "nothing checks it yet");
        let mut values = list.values().to_vec();
        values.swap(0, 1);
        assert!(matches!(staging.know(ChunkList::new(SIZE, values)).await, Err(Error::Damaged { .. })));
        staging.know(list).await.expect("its list");
        for (index, wrong) in [(0, chunk(&blob, 1)), (3, chunk(&blob, 0)), (7, chunk(&blob, 0)), (0, Bytes::new())] {
            assert!(!staging.put_chunk(index, wrong).await.expect("put"), "{index}");
        }
        assert!(staging.chunks().is_empty() && staging.offset() == 0);
    }

    #[tokio::test]
    async fn what_did_not_come_whole_is_kept_within_limits_and_goes_when_room_is_short() {
        let (blob, digest, link, list) = blob();
        let place = Place::new(1);
        let store = place.open();
        let part = place.folder().join("uploads").join(format!("sha256-{}{SUFFIX}", digest.hex()));
        drop(store.stage(digest, link).expect("stage"));
        assert!(!part.exists(), "nothing is nothing to keep");
        let mut staging = store.stage(digest, link).expect("stage");
        staging.know(list.clone()).await.expect("its list");
        assert!(staging.put_chunk(2, chunk(&blob, 2)).await.expect("put"));
        drop(staging);
        assert!(part.exists() && store.inner.partials.kept_bytes() >= CHUNK_SIZE);

        let mut staging = store.stage(digest, link).expect("stage");
        assert_eq!(store.inner.partials.kept_bytes(), 0, "it is in use");
        // In order, as the archive does: over what is there.
        staging.append(Bytes::copy_from_slice(&blob[..CHUNK_SIZE as usize + 5])).await.expect("append");
        staging.know(list).await.expect("its list");
        assert_eq!(staging.chunks().iter().collect::<Vec<_>>(), [0, 2]);
        for index in [1, 3] {
            assert!(staging.put_chunk(index, chunk(&blob, index)).await.expect("put"));
        }
        assert_eq!(staging.offset(), SIZE);
        drop(staging);
        assert!(part.exists());
        assert!(store.inner.drop_partials() > 0 && !part.exists());
    }
}
