//! Every path on disk, drawn as a tree, and the lock on it.
//!
//! ```text
//! <data-dir>/              0700
//!   lock                   flock, held while the daemon runs
//!   node.key               this node's key, 0600 (peers)
//!   larder.sock            the command socket, 0600 (admin)
//!   index/                 RocksDB
//!   uploads/<uuid>         staged: a push's
//!   uploads/<algorithm>-<hex>.part        a blob on its way in, or what is kept of one
//!   blobs/<algorithm>/<2 hex>/<hex>
//!   quarantine/<algorithm>-<hex>-<time>   blob files that were found damaged
//!   closed                 there have been users here, 0600 (auth)
//!   audit/<time>.jsonl     what clients did, 0600 (auth)
//!   archive/               the default bucket (archive)
//! ```
//!
//! Only typed digests and uuids become paths; no name from a client or a peer ever does.

use std::fs::{self, DirBuilder, File, OpenOptions, TryLockError};
use std::io;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use larder_protocol::digest::Digest;
use uuid::Uuid;

use super::error::{Error, Result};
use super::partial::SUFFIX;

/// A data folder that this process owns: permissions checked, locked (`flock`), sub-folders made.
#[derive(Debug)]
pub struct DataFolder {
    path: PathBuf,
    /// Held open: closing it would release the lock.
    _lock: File,
}

impl DataFolder {
    /// Creates (0700) or checks the folder, takes its lock, makes its sub-folders.
    ///
    /// # Errors
    /// - `Locked`: another daemon has it (F12).
    /// - `Unsafe`: others may write there, it belongs to someone else, or a part of it is a symbolic link (S41).
    pub fn open(path: &Path) -> Result<Self> {
        make_folder(path)?;
        // Resolved once, so that a later change of the working directory can't move it.
        let path = fs::canonicalize(path).map_err(Error::io("resolve", path))?;
        check_folder(&path)?;
        let file = path.join("lock");
        let lock = OpenOptions::new()
            .create(true)
            .append(true)
            .mode(0o600)
            .custom_flags(NO_FOLLOW)
            .open(&file)
            .map_err(Error::io("open", &file))?;
        match lock.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => return Err(Error::Locked { path }),
            Err(TryLockError::Error(source)) => return Err(Error::io("lock", &file)(source)),
        }
        let folder = Self { path, _lock: lock };
        for part in ["index", "uploads", "quarantine", "blobs", "blobs/sha256", "blobs/sha512"] {
            let part = folder.path.join(part);
            make_folder(&part)?;
            check_folder(&part)?;
        }
        Ok(folder)
    }

    /// The folder.
    pub fn path(&self) -> &Path {
        &self.path
    }

    pub(super) fn index(&self) -> PathBuf {
        self.path.join("index")
    }

    pub(super) fn uploads(&self) -> PathBuf {
        self.path.join("uploads")
    }

    pub(super) fn upload(&self, id: Uuid) -> PathBuf {
        self.uploads().join(id.simple().to_string())
    }

    pub(super) fn partial(&self, digest: &Digest) -> PathBuf {
        self.uploads().join(format!("{}-{}{SUFFIX}", digest.algorithm().name(), digest.hex()))
    }

    pub(super) fn blob(&self, digest: &Digest) -> PathBuf {
        let hex = digest.hex();
        self.path.join("blobs").join(digest.algorithm().name()).join(&hex[..2]).join(hex)
    }
}

impl DataFolder {
    /// Moves a damaged blob file into the quarantine, where at most `most` are kept.
    pub(super) fn put_aside(&self, file: &Path, digest: &Digest, now_ms: u64, most: usize) -> Result<()> {
        let folder = self.path.join("quarantine");
        let target = folder.join(format!("{}-{}-{now_ms}", digest.algorithm().name(), digest.hex()));
        fs::rename(file, &target).map_err(Error::io("put aside", file))?;
        let listed = fs::read_dir(&folder).map_err(Error::io("list", &folder))?;
        let time = |path: &Path| path.file_name()?.to_str()?.rsplit_once('-')?.1.parse::<u64>().ok();
        let mut kept: Vec<_> =
            listed.filter_map(|entry| entry.ok().map(|entry| entry.path())).filter_map(|path| Some((time(&path)?, path))).collect();
        kept.sort();
        kept.iter().rev().skip(most).try_for_each(|(_, path)| remove_file(path))
    }
}

/// Opening a symbolic link fails instead of following it.
const NO_FOLLOW: i32 = rustix::fs::OFlags::NOFOLLOW.bits() as i32;

/// Opens a file of ours for reading and writing, and never through a symbolic link.
pub(super) fn open_file(path: &Path, create: bool) -> Result<File> {
    let mut options = OpenOptions::new();
    options.read(true).write(true).create(create).mode(0o600).custom_flags(NO_FOLLOW);
    options.open(path).map_err(Error::io("open", path))
}

/// Makes a new name in a folder durable.
pub(super) fn sync_folder(path: &Path) -> Result<()> {
    File::open(path).and_then(|folder| folder.sync_all()).map_err(Error::io("sync folder", path))
}

/// Makes a folder, unless it is there.
pub(super) fn make_folder(path: &Path) -> Result<()> {
    match DirBuilder::new().recursive(true).mode(0o700).create(path) {
        Err(source) if source.kind() != io::ErrorKind::AlreadyExists => Err(Error::io("create folder", path)(source)),
        _ => Ok(()),
    }
}

/// Removes a file; one that is gone already is fine.
pub(super) fn remove_file(path: &Path) -> Result<()> {
    match fs::remove_file(path) {
        Err(source) if source.kind() != io::ErrorKind::NotFound => Err(Error::io("remove", path)(source)),
        _ => Ok(()),
    }
}

fn check_folder(path: &Path) -> Result<()> {
    let refuse = |why: String, mend: &str| Err(Error::Unsafe { path: path.to_owned(), why, mend: mend.to_owned() });
    let found = fs::symlink_metadata(path).map_err(Error::io("look at", path))?;
    if !found.is_dir() {
        return refuse("is no folder of its own (a symbolic link or a file)".into(), "move it away, or choose another --data-dir");
    }
    let user = rustix::process::geteuid().as_raw();
    if found.uid() != user {
        return refuse(format!("belongs to user {}, and this is user {user}", found.uid()), "change its owner, or run as that user");
    }
    let mode = found.permissions().mode() & 0o777;
    if mode & 0o022 != 0 {
        return refuse(format!("can be written by others (mode {mode:03o})"), "take that right away: chmod 0700");
    }
    Ok(())
}

/// The folders in which blobs of an algorithm lie; made when the first of them comes.
pub(super) fn shard(path: &Path) -> &Path {
    path.parent().expect("a blob's path has a folder")
}

#[cfg(test)]
mod tests {
    use larder_protocol::digest::Algorithm;

    use super::*;

    #[test]
    fn f12_a_second_daemon_is_refused_at_once() {
        let temporary = tempfile::tempdir().expect("temporary folder");
        let path = temporary.path().join("data");
        let first = DataFolder::open(&path).expect("first");
        assert!(matches!(DataFolder::open(&path), Err(Error::Locked { .. })));
        drop(first);
        DataFolder::open(&path).expect("again, after the first has ended");
    }

    #[test]
    fn s41_unsafe_folders_are_refused() {
        let temporary = tempfile::tempdir().expect("temporary folder");
        let open = temporary.path().join("open");
        drop(DataFolder::open(&open).expect("fresh"));
        assert_eq!(fs::metadata(&open).expect("there").permissions().mode() & 0o777, 0o700);
        fs::set_permissions(&open, fs::Permissions::from_mode(0o777)).expect("chmod");
        assert!(matches!(DataFolder::open(&open), Err(Error::Unsafe { .. })));

        let linked = temporary.path().join("linked");
        drop(DataFolder::open(&linked).expect("fresh"));
        fs::remove_dir(linked.join("uploads")).expect("empty");
        std::os::unix::fs::symlink("/tmp", linked.join("uploads")).expect("link");
        assert!(matches!(DataFolder::open(&linked), Err(Error::Unsafe { .. })));
    }

    #[test]
    fn blobs_lie_under_their_algorithm_and_first_letters() {
        let temporary = tempfile::tempdir().expect("temporary folder");
        let folder = DataFolder::open(&temporary.path().join("data")).expect("fresh");
        let path = folder.blob(&Digest::of(Algorithm::Sha512, b"x"));
        assert!(path.starts_with(folder.path().join("blobs/sha512")));
        assert_eq!(path.parent().and_then(Path::file_name).map(|name| name.len()), Some(2));
    }
}
