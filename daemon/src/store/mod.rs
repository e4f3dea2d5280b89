//! What this node holds, and the order in which it came to hold it.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use larder_protocol::digest::{Algorithm, Digest};
use larder_protocol::name::{RepositoryName, Tag};
use larder_protocol::record::{Archived, Key, Link, Member, Numbered, PackId, Record, Value};
use larder_protocol::stamp::{NodeId, Stamp};
use larder_protocol::vector::{Origin, VersionVector};
use tokio::sync::watch;
use uuid::Uuid;

use crate::config::Durability;

mod error;

pub use error::{Error, InvalidManifest};

/// SKELETON
type Result<T> = std::result::Result<T, Error>;

/// The id of a cluster: random, given by its first node.
pub type ClusterId = [u8; 16];

/// A data folder that this process owns: permissions checked, locked (`flock`), sub-folders made.
#[derive(Debug)]
pub struct DataFolder {
    path: PathBuf,
    lock: File,
}

impl DataFolder {
    /// Creates (0700) or checks the folder, takes its lock, makes its sub-folders.
    ///
    /// # Errors
    /// `Locked` when another daemon has it; `Unsafe` when others may write there or it is not ours (S41).
    pub fn open(path: &Path) -> Result<Self> {
        unimplemented!("{path:?}")
    }
    /// The folder.
    pub fn path(&self) -> &Path {
        &self.path
    }
}

/// How a store is opened.
#[derive(Clone, Debug)]
pub struct Options {
    /// This node's id.
    pub node: NodeId,
    /// When a commit counts as done.
    pub durability: Durability,
    /// Stamps further ahead are refused.
    pub max_clock_drift: Duration,
    /// Most upload sessions at a time.
    pub uploads_max: usize,
    /// Largest blob in bytes.
    pub blob_size_max: u64,
}

/// The store. Cheap to clone. Methods block on the disk unless they are `async` or say otherwise: call them through [`Store::run`]
/// (single point reads of the index may be called inline, they take microseconds).
#[derive(Clone, Debug)]
pub struct Store {}

/// A blob's bytes, opened.
#[derive(Clone, Debug)]
pub enum Content {
    /// A small blob, whole.
    Memory(Bytes),
    /// A file that holds exactly the blob, from its first byte.
    File {
        /// Opened for reading.
        file: Arc<File>,
        /// Bytes.
        size: u64,
    },
}

/// A manifest to be stored.
#[derive(Clone, Debug)]
pub struct ManifestPush {
    /// Where.
    pub repository: RepositoryName,
    /// Tags that shall name it.
    pub tags: Vec<Tag>,
    /// Its digest; already checked against the bytes by the caller? NO: put_manifest checks.
    pub digest: Digest,
    /// `Content-Type` it was pushed with.
    pub media_type: String,
    /// Exactly as sent.
    pub bytes: Bytes,
}

/// A stored manifest.
#[derive(Clone, Debug)]
pub struct StoredManifest {
    /// `Content-Type` it was pushed with.
    pub media_type: String,
    /// Exactly as sent.
    pub bytes: Bytes,
}

/// What a tag names now.
#[derive(Clone, Debug)]
pub struct TagInfo {
    /// The tag.
    pub tag: Tag,
    /// The manifest.
    pub digest: Digest,
    /// When and by whom it was pushed.
    pub stamp: Stamp,
}

/// One atomic writing: all of it or nothing, synced, in the journal.
#[derive(Clone, Debug, Default)]
pub struct Commit {
    /// Records to write under this node's origin; `None` is a tombstone.
    pub records: Vec<(Key, Option<Value>)>,
    /// Settings of other rooms (cursors, tokens): name -> bytes; `None` removes.
    pub settings: Vec<(String, Option<Vec<u8>>)>,
}

/// What came of applying records from elsewhere.
#[derive(Clone, Debug, Default)]
pub struct Applied {
    /// Keys whose record changed here.
    pub changed: Vec<Key>,
    /// Records refused because their stamp lies in the future.
    pub refused: usize,
}

/// The records that another vector lacks, read from one snapshot.
pub struct Exchange {}

impl Exchange {
    /// What is known when all of its records were taken.
    pub fn vector(&self) -> &VersionVector {
        unimplemented!()
    }
}

impl Iterator for Exchange {
    type Item = Result<Numbered>;
    fn next(&mut self) -> Option<Self::Item> {
        unimplemented!()
    }
}

/// Numbers for `larder status`.
#[derive(Clone, Copy, Debug, Default)]
pub struct Counts {
    /// Repositories with a manifest.
    pub repositories: u64,
    /// Live tags.
    pub tags: u64,
    /// Blobs on this disk.
    pub blobs: u64,
    /// Their bytes.
    pub blob_bytes: u64,
}

impl Store {
    /// Opens or creates the store in a folder; finishes or undoes what the last shutdown left; never walks the blob tree.
    pub fn open(folder: DataFolder, options: Options) -> Result<Self> {
        unimplemented!("{folder:?}{options:?}")
    }
    /// Runs `work` on a blocking thread.
    pub async fn run<T: Send + 'static>(&self, work: impl FnOnce(&Store) -> T + Send + 'static) -> T {
        let store = self.clone();
        tokio::task::spawn_blocking(move || work(&store)).await.expect("store work does not panic")
    }
    /// Flushes and closes; afterwards every call fails.
    pub fn close(&self) {
        unimplemented!()
    }
    /// This node's origin: its id and this life of its data folder. Does not block.
    pub fn origin(&self) -> Origin {
        unimplemented!()
    }
    /// The cluster that this node belongs to; a fresh folder founds its own. Does not block.
    pub fn cluster(&self) -> ClusterId {
        unimplemented!()
    }
    /// Joins or restores another cluster.
    pub fn adopt_cluster(&self, cluster: ClusterId) -> Result<()> {
        unimplemented!("{cluster:?}")
    }
    /// Whether it holds no manifest, no tag and no link (member records don't count).
    pub fn is_empty(&self) -> Result<bool> {
        unimplemented!()
    }
    /// A number that grows with every commit: "there is more"; says nothing else. Does not block.
    pub fn changes(&self) -> watch::Receiver<u64> {
        unimplemented!()
    }
    /// Numbers for people.
    pub fn counts(&self) -> Result<Counts> {
        unimplemented!()
    }

    // --- uploads ---
    /// Begins a session. Errors: `TooManyUploads`.
    pub fn create_upload(&self, repository: &RepositoryName, algorithm: Algorithm) -> Result<Upload> {
        unimplemented!("{repository:?}{algorithm:?}")
    }
    /// Takes up a session where the disk stands. Errors: `UploadUnknown` (also: of another repository), `UploadBusy`.
    pub fn open_upload(&self, repository: &RepositoryName, id: Uuid) -> Result<Upload> {
        unimplemented!("{repository:?}{id:?}")
    }
    /// The offset at which a session goes on, without taking it (also while a request is appending to it).
    pub fn upload_offset(&self, repository: &RepositoryName, id: Uuid) -> Result<u64> {
        unimplemented!("{repository:?}{id:?}")
    }
    /// Ends a session and forgets its bytes.
    pub fn cancel_upload(&self, repository: &RepositoryName, id: Uuid) -> Result<()> {
        unimplemented!("{repository:?}{id:?}")
    }
    /// Drops sessions without progress since `age`; says how many.
    pub fn expire_uploads(&self, age: Duration) -> Result<usize> {
        unimplemented!("{age:?}")
    }
    /// Begins to stage a blob that comes from a peer or the archive.
    pub fn stage(&self, digest: Digest, link: Link) -> Result<Staging> {
        unimplemented!("{digest:?}{link:?}")
    }

    // --- blobs ---
    /// What the link of a blob in a repository says; `None` without a live link (I8).
    pub fn link(&self, repository: &RepositoryName, digest: &Digest) -> Result<Option<Link>> {
        unimplemented!("{repository:?}{digest:?}")
    }
    /// Size, root and CRC of a blob that is on this disk.
    pub fn blob(&self, digest: &Digest) -> Result<Option<Link>> {
        unimplemented!("{digest:?}")
    }
    /// Opens a blob that is on this disk; `None` when it is not here. Fast enough to be called inline.
    pub fn open_blob(&self, digest: &Digest) -> Result<Option<Content>> {
        unimplemented!("{digest:?}")
    }
    /// The chaining values of a blob above 1 MiB that is on this disk.
    pub fn chunk_values(&self, digest: &Digest) -> Result<Option<Vec<[u8; 32]>>> {
        unimplemented!("{digest:?}")
    }
    /// Links a blob that `from` links into `to`; `false` when `from` has no link.
    pub fn mount(&self, from: &RepositoryName, to: &RepositoryName, digest: &Digest) -> Result<bool> {
        unimplemented!("{from:?}{to:?}{digest:?}")
    }
    /// Removes a blob's link from a repository; `false` when there was none.
    pub fn unlink(&self, repository: &RepositoryName, digest: &Digest) -> Result<bool> {
        unimplemented!("{repository:?}{digest:?}")
    }

    // --- manifests and tags ---
    /// Stores a manifest and its tags in one batch.
    /// Errors: `InvalidManifest`, `DigestMismatch`, `Missing(Vec<Digest>)` when it names blobs or manifests that the repository lacks.
    pub fn put_manifest(&self, push: ManifestPush) -> Result<()> {
        unimplemented!("{push:?}")
    }
    /// A manifest by digest.
    pub fn manifest(&self, repository: &RepositoryName, digest: &Digest) -> Result<Option<StoredManifest>> {
        unimplemented!("{repository:?}{digest:?}")
    }
    /// What a tag names.
    pub fn tag(&self, repository: &RepositoryName, tag: &Tag) -> Result<Option<TagInfo>> {
        unimplemented!("{repository:?}{tag:?}")
    }
    /// Live tags behind `after`, in byte order, at most `limit`: a seek and a scan.
    pub fn tags(&self, repository: &RepositoryName, after: Option<&str>, limit: usize) -> Result<Vec<TagInfo>> {
        unimplemented!("{repository:?}{after:?}{limit}")
    }
    /// Repositories with at least one live manifest, behind `after`, in byte order, at most `limit`.
    pub fn repositories(&self, after: Option<&str>, limit: usize) -> Result<Vec<RepositoryName>> {
        unimplemented!("{after:?}{limit}")
    }
    /// Whether a repository has a live manifest (or had one pushed: an empty tag list is then not "unknown").
    pub fn repository_exists(&self, repository: &RepositoryName) -> Result<bool> {
        unimplemented!("{repository:?}")
    }
    /// Deletes a tag; `false` when there was none.
    pub fn delete_tag(&self, repository: &RepositoryName, tag: &Tag) -> Result<bool> {
        unimplemented!("{repository:?}{tag:?}")
    }
    /// Deletes a manifest and every tag that names it; `false` when there was none.
    pub fn delete_manifest(&self, repository: &RepositoryName, digest: &Digest) -> Result<bool> {
        unimplemented!("{repository:?}{digest:?}")
    }
    /// Everything that must be at hand for a manifest to be pulled whole: the blobs it names, its children's, and theirs,
    /// with what their links say. Ends on cycles. Non-distributable layers are left out. Missing manifests are skipped.
    pub fn closure(&self, repository: &RepositoryName, digest: &Digest) -> Result<Vec<(Digest, Link)>> {
        unimplemented!("{repository:?}{digest:?}")
    }

    // --- records ---
    /// Writes records of this node and settings in one synced batch; returns the records as numbered.
    pub fn commit(&self, commit: Commit) -> Result<Vec<Numbered>> {
        unimplemented!("{commit:?}")
    }
    /// Merges records from elsewhere in one batch, keeps their numbers, and then raises the vector by `advance`
    /// (but not for origins of which a record was refused).
    pub fn apply(&self, records: Vec<Numbered>, advance: &VersionVector) -> Result<Applied> {
        unimplemented!("{records:?}{advance:?}")
    }
    /// What is known of each origin, this node's own included. Does not block.
    pub fn vector(&self) -> VersionVector {
        unimplemented!()
    }
    /// The records that `theirs` lacks, by origin and sequence.
    pub fn exchange(&self, theirs: &VersionVector) -> Result<Exchange> {
        unimplemented!("{theirs:?}")
    }
    /// Records of one origin behind `after`, at most `limit`.
    pub fn tail(&self, origin: &Origin, after: u64, limit: usize) -> Result<Vec<Numbered>> {
        unimplemented!("{origin:?}{after}{limit}")
    }
    /// One record, tombstones included.
    pub fn record(&self, key: &Key) -> Result<Option<Record>> {
        unimplemented!("{key:?}")
    }
    /// Every member record; `None`: expelled.
    pub fn members(&self) -> Result<Vec<(NodeId, Option<Member>)>> {
        unimplemented!()
    }
    /// A setting of another room.
    pub fn setting(&self, name: &str) -> Result<Option<Vec<u8>>> {
        unimplemented!("{name}")
    }
    /// Settings whose name starts so.
    pub fn settings(&self, prefix: &str) -> Result<Vec<(String, Vec<u8>)>> {
        unimplemented!("{prefix}")
    }

    // --- archive ---
    /// Where packs hold a blob: pack, offset, length.
    pub fn locations(&self, digest: &Digest) -> Result<Vec<(PackId, u64, u64)>> {
        unimplemented!("{digest:?}")
    }
    /// A pack's record.
    pub fn pack(&self, pack: &PackId) -> Result<Option<Archived>> {
        unimplemented!("{pack:?}")
    }
    /// Every live pack, without contents if `Archived` is large? With contents; callers page by `after`.
    pub fn packs(&self, after: Option<&PackId>, limit: usize) -> Result<Vec<(PackId, Archived)>> {
        unimplemented!("{after:?}{limit}")
    }
}

/// An upload session that one request holds. Dropped without `suspend`, it goes on at the last saved offset.
#[derive(Debug)]
pub struct Upload {}

impl Upload {
    /// The session's id.
    pub fn id(&self) -> Uuid {
        unimplemented!()
    }
    /// Bytes taken so far.
    pub fn offset(&self) -> u64 {
        unimplemented!()
    }
    /// Takes bytes: writes and hashes them. Blocks. Errors: `TooLarge`, `Io`.
    pub fn append(&mut self, bytes: &[u8]) -> Result<()> {
        unimplemented!("{bytes:?}")
    }
    /// Saves where it stands, for a later request; returns the offset. Blocks.
    pub fn suspend(self) -> Result<u64> {
        unimplemented!()
    }
    /// Checks the digest, syncs, renames, indexes the blob and links it in the repository: then it is durable. Blocks.
    /// Errors: `DigestMismatch` (the session is gone then).
    pub fn finish(self, expected: Digest) -> Result<Link> {
        unimplemented!("{expected:?}")
    }
    /// Forgets the session and its bytes. Blocks.
    pub fn cancel(self) -> Result<()> {
        unimplemented!()
    }
}

/// A blob on its way in from a peer or the archive; its readers follow it. Dropped unfinished, its bytes go and readers get an error.
#[derive(Debug)]
pub struct Staging {}

impl Staging {
    /// The blob.
    pub fn digest(&self) -> Digest {
        unimplemented!()
    }
    /// What its link says.
    pub fn link(&self) -> Link {
        unimplemented!()
    }
    /// Bytes taken so far: where a source goes on.
    pub fn offset(&self) -> u64 {
        unimplemented!()
    }
    /// Takes the next bytes: writes and hashes them on a blocking thread, then lets readers have them, except for the very last
    /// byte of the blob, which waits for `finish` (so that nobody ever gets a whole blob that fails its digest).
    /// Errors: `TooLarge` when more comes than the link says.
    pub async fn append(&mut self, bytes: Bytes) -> Result<()> {
        unimplemented!("{bytes:?}")
    }
    /// A reader that follows.
    pub fn reader(&self) -> StagedReader {
        unimplemented!()
    }
    /// Checks size, root and digest, commits the blob (no link: links are records). On mismatch the bytes go.
    pub async fn finish(self) -> Result<()> {
        unimplemented!()
    }
}

/// Reads a blob while it comes in.
#[derive(Clone, Debug)]
pub struct StagedReader {}

impl StagedReader {
    /// Bytes from `offset`, at most `limit`, waiting until some are there; empty at the end of the blob.
    /// Errors: `Abandoned` when the blob will not come.
    pub async fn read(&mut self, offset: u64, limit: usize) -> Result<Bytes> {
        unimplemented!("{offset}{limit}")
    }
}
