//! Puts a file in place whole, and keeps a copy of what was there.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt, chown};
use std::path::{Path, PathBuf};

use anyhow::{Context, bail, ensure};

use super::{Change, read};

/// More copies than this are nobody's history.
const COPIES_MAX: usize = 100;

/// Writes the file; where the copy is of what was there.
///
/// A reader sees the old file or the new one, whenever it looks and whatever happens: the new one is written beside it and
/// renamed. The first copy is never written over; when what is there now differs from it, the next is numbered.
pub(super) fn install(change: &Change) -> anyhow::Result<Option<PathBuf>> {
    // A link stays one: what it leads to is replaced.
    let path = fs::canonicalize(&change.path).unwrap_or_else(|_| change.path.clone());
    let folder = path.parent().context("find the folder of the file")?;
    fs::create_dir_all(folder).with_context(|| format!("make the folder {}{}", folder.display(), hint()))?;
    ensure!(read(&path)? == change.before, "write {}: it was changed by somebody else just now; look at it, and try again", path.display());
    let copy = change.before.as_ref().map(|before| keep(&path, before, change.is_secret)).transpose()?;

    let new = beside(&path, ".larder-new");
    let write = || -> io::Result<()> {
        let _ = fs::remove_file(&new);
        write_new(&new, change.after.as_bytes(), &path, change.is_secret)?;
        // ORDER: the content is on the disk before the name leads to it.
        fs::rename(&new, &path)?;
        File::open(folder)?.sync_all()
    };
    write().with_context(|| format!("write {}{}", path.display(), hint()))?;
    Ok(copy)
}

/// Makes sure that there is a copy of the file; which.
fn keep(path: &Path, before: &str, is_secret: bool) -> anyhow::Result<PathBuf> {
    for number in 1..=COPIES_MAX {
        let ending = if number == 1 { ".before-larder".to_owned() } else { format!(".before-larder.{number}") };
        let copy = beside(path, &ending);
        match write_new(&copy, before.as_bytes(), path, is_secret) {
            Ok(()) => return Ok(copy),
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
                if fs::read(&copy).is_ok_and(|there| there == before.as_bytes()) {
                    return Ok(copy);
                }
            }
            Err(error) => return Err(error).with_context(|| format!("keep a copy of {} as {}{}", path.display(), copy.display(), hint())),
        }
    }
    bail!("keep a copy of {}: there are {COPIES_MAX} already; remove some", path.display())
}

/// Writes a file that must not be there yet, synced, for the same people as another one, or for all to read; a secret never for more than its owner.
fn write_new(path: &Path, content: &[u8], like: &Path, is_secret: bool) -> io::Result<()> {
    let like = fs::metadata(like).ok();
    let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(path)?;
    if let Some(like) = &like {
        // Only root may give files away; anybody else's files are their own.
        let own = file.metadata()?;
        if (own.uid(), own.gid()) != (like.uid(), like.gid()) {
            chown(path, Some(like.uid()), Some(like.gid()))?;
        }
    }
    let mode = like.map_or(0o644, |like| like.mode() & 0o7777);
    file.set_permissions(fs::Permissions::from_mode(if is_secret { mode & 0o600 } else { mode }))?;
    file.write_all(content)?;
    file.sync_all()
}

fn beside(path: &Path, ending: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(ending);
    PathBuf::from(name)
}

fn hint() -> &'static str {
    if rustix::process::geteuid().is_root() { "" } else { " (only root may change the configuration of this host: try sudo)" }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn change(path: &Path, before: Option<&str>, after: &str) -> Change {
        Change { path: path.to_owned(), before: before.map(str::to_owned), after: after.to_owned(), is_secret: false }
    }

    #[test]
    fn every_earlier_state_is_kept_once() {
        let folder = tempfile::tempdir().expect("a temp folder");
        let path = folder.path().join("a/b/daemon.json");
        let named = |ending: &str| beside(&path, ending);
        assert_eq!(install(&change(&path, None, "1")).expect("install"), None);
        fs::set_permissions(&path, fs::Permissions::from_mode(0o640)).expect("permissions");
        assert_eq!(install(&change(&path, Some("1"), "2")).expect("install"), Some(named(".before-larder")));
        assert_eq!(install(&change(&path, Some("2"), "1")).expect("install"), Some(named(".before-larder.2")));
        assert_eq!(install(&change(&path, Some("1"), "3")).expect("install"), Some(named(".before-larder")));
        assert_eq!(fs::read_to_string(&path).expect("read"), "3");
        assert_eq!(fs::read_to_string(named(".before-larder")).expect("read"), "1");
        assert_eq!(fs::metadata(&path).expect("metadata").mode() & 0o777, 0o640);
        assert_eq!(fs::read_dir(path.parent().expect("a folder")).expect("list").count(), 3, "nothing half-written is left");
    }

    #[test]
    fn s42_a_secret_and_its_copies_are_their_owners_alone() {
        let folder = tempfile::tempdir().expect("a temp folder");
        let path = folder.path().join("client.key");
        fs::write(&path, "old").expect("write");
        fs::set_permissions(&path, fs::Permissions::from_mode(0o644)).expect("permissions");
        install(&Change { is_secret: true, ..change(&path, Some("old"), "new") }).expect("install");
        let mode = |path: &Path| fs::metadata(path).expect("metadata").mode() & 0o777;
        assert_eq!((mode(&path), mode(&beside(&path, ".before-larder"))), (0o600, 0o600));
    }

    #[test]
    fn a_link_stays_a_link() {
        let folder = tempfile::tempdir().expect("a temp folder");
        let (target, link) = (folder.path().join("target"), folder.path().join("link"));
        fs::write(&target, "old").expect("write");
        std::os::unix::fs::symlink(&target, &link).expect("link");
        install(&change(&link, Some("old"), "new")).expect("install");
        assert!(fs::symlink_metadata(&link).expect("metadata").is_symlink());
        assert_eq!(fs::read_to_string(&target).expect("read"), "new");
    }

    #[test]
    fn what_somebody_else_changed_meanwhile_is_not_written_over() {
        let folder = tempfile::tempdir().expect("a temp folder");
        let path = folder.path().join("daemon.json");
        fs::write(&path, "theirs").expect("write");
        let error = install(&change(&path, Some("old"), "new")).expect_err("changed meanwhile");
        assert!(error.to_string().contains("changed by somebody else"), "{error}");
        assert_eq!(fs::read_to_string(&path).expect("read"), "theirs");
    }
}
