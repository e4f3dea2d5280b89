//! Folders on the disk, as tests treat them.

use std::fs;
use std::path::Path;

/// Copies a data folder into another one. What is no file can't be copied, and is not worth it: the socket of commands.
///
/// # Panics
/// A folder that can't be read or written, or a file that can't be copied.
pub fn copy_folder(from: &Path, to: &Path) {
    fs::create_dir_all(to).expect("folder");
    for entry in fs::read_dir(from).expect("list") {
        let entry = entry.expect("entry");
        let (kind, to) = (entry.file_type().expect("its type"), to.join(entry.file_name()));
        if kind.is_dir() {
            copy_folder(&entry.path(), &to);
        } else if kind.is_file() {
            fs::copy(entry.path(), to).expect("copied");
        }
    }
}
