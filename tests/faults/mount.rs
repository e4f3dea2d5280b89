//! A small file system of its own, in memory, that can be filled to the last byte.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Command;

/// Mounted until it is dropped. Declare it before the node that uses it, so that the node ends first.
pub struct Mount {
    folder: tempfile::TempDir,
}

impl Mount {
    /// `None`, and says so, when this user may not mount anything.
    pub fn new(size: u64) -> Option<Self> {
        let folder = tempfile::Builder::new().prefix("larder-disk-").tempdir().expect("make a temporary folder");
        let mounted =
            Command::new("mount").args(["-t", "tmpfs", "-o", &format!("size={size},mode=0700"), "tmpfs"]).arg(folder.path()).output();
        match mounted {
            Ok(output) if output.status.success() => Some(Self { folder }),
            refused => {
                println!("skipped: no file system can be mounted here: {refused:?}");
                None
            }
        }
    }

    /// Where a data folder can be.
    pub fn data(&self) -> PathBuf {
        self.folder.path().join("data")
    }

    /// Another program takes all that is free; gives the file that has it.
    pub fn fill(&self) -> PathBuf {
        let path = self.folder.path().join("others");
        let mut file = std::fs::OpenOptions::new().create(true).append(true).open(&path).expect("make a file");
        for piece in [vec![1; 1 << 20], vec![1; 4096], vec![1; 1]] {
            while file.write_all(&piece).is_ok() {}
        }
        path
    }

    /// Whether a blob has a file on this disk.
    pub fn holds(&self, digest: &str) -> bool {
        holds(&self.data(), digest)
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        let unmounted = Command::new("umount").arg("-l").arg(self.folder.path()).status();
        assert!(unmounted.is_ok_and(|status| status.success()) || std::thread::panicking(), "unmount {}", self.folder.path().display());
    }
}

/// Whether a blob has a file in a data folder.
pub fn holds(data: &Path, digest: &str) -> bool {
    let hex = digest.strip_prefix("sha256:").expect("a digest");
    data.join("blobs/sha256").join(&hex[..2]).join(hex).exists()
}
