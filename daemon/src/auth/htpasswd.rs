//! A password file as `htpasswd -B` writes it: `name:hash` in each line.
//!
//! Hashes are bcrypt or argon2; the older ones that such files may have are refused, with the line that has one: they are cracked in no time.

use std::collections::BTreeMap;
use std::io::Read;
use std::path::Path;

use super::password;
use super::policy::is_name;

/// No such file is longer.
const SIZE_MAX: u64 = 16 << 20;

/// Why a file can't be used.
#[derive(Debug, thiserror::Error)]
pub enum InvalidFile {
    /// It can't be read.
    #[error("read {path}: {source}")]
    Read {
        /// The file.
        path: String,
        /// Why.
        source: std::io::Error,
    },
    /// It is longer than any such file.
    #[error("read {path}: it has more than {SIZE_MAX} bytes; is it the right file?")]
    Long {
        /// The file.
        path: String,
    },
    /// A line of it says nothing.
    #[error("{path}:{line}: {what}")]
    Line {
        /// The file.
        path: String,
        /// Counted from 1.
        line: usize,
        /// What is wrong, and what to do.
        what: String,
    },
}

/// Reads a file: hashes by name.
///
/// # Errors
/// It can't be read, or a line is none.
pub fn read(path: &Path) -> Result<BTreeMap<String, String>, InvalidFile> {
    let shown = || path.display().to_string();
    let failed = |source| InvalidFile::Read { path: shown(), source };
    let mut text = String::new();
    std::fs::File::open(path).map_err(failed)?.take(SIZE_MAX + 1).read_to_string(&mut text).map_err(failed)?;
    if text.len() as u64 > SIZE_MAX {
        return Err(InvalidFile::Long { path: shown() });
    }
    parse(&text).map_err(|(line, what)| InvalidFile::Line { path: shown(), line, what })
}

/// Reads a file's text: hashes by name; or the line that is wrong, and how.
pub fn parse(text: &str) -> Result<BTreeMap<String, String>, (usize, String)> {
    let mut entries = BTreeMap::new();
    for (index, line) in text.lines().enumerate() {
        let line = line.trim();
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        let wrong = |what: &str| (index + 1, what.to_owned());
        let (name, hash) = line.split_once(':').ok_or_else(|| wrong("this is no name:hash"))?;
        if !is_name(name) {
            return Err(wrong("this is no name: visible letters, but none of : , / \\ ' \" *"));
        }
        if super::is_reserved(name) {
            return Err(wrong(&format!("the name {name} means something else here; choose another")));
        }
        password::check_hash(hash).map_err(|fault| wrong(&format!("the hash of {name}: {fault}")))?;
        if entries.insert(name.to_owned(), hash.to_owned()).is_some() {
            return Err(wrong(&format!("{name} stands here twice")));
        }
    }
    Ok(entries)
}

#[cfg(test)]
mod tests {
    use super::*;

    const BCRYPT: &str = "$2y$05$c4WoMPo3SXsafkva.HHa6uXQZWr7oboPiC2bT/r7q1BB8I2s0BRqC";

    #[test]
    fn a_file_of_htpasswd_is_read_as_it_is() {
        let argon2 = password::hash(b"secret").expect("a hash");
        let text = format!("# people\n\nalice:{BCRYPT}\r\nbob@example.org:{argon2}\n");
        let entries = parse(&text).expect("read");
        assert_eq!(entries.keys().collect::<Vec<_>>(), ["alice", "bob@example.org"]);
        assert_eq!(entries["alice"], BCRYPT);
    }

    #[test]
    fn what_is_no_safe_entry_is_refused_with_its_line() {
        for (text, line, what) in [
            ("alice", 1, "no name:hash"),
            ("\nalice:$apr1$x$y", 2, "htpasswd -B"),
            ("alice:{SHA}W6ph5Mm5Pz8GgiULbPgzG37mj9g=", 1, "htpasswd -B"),
            ("alice:plain", 1, "htpasswd -B"),
            ("a b:$2y$05$c4WoMPo3SXsafkva.HHa6uXQZWr7oboPiC2bT/r7q1BB8I2s0BRqC", 1, "no name"),
            ("robot+x:$2y$05$c4WoMPo3SXsafkva.HHa6uXQZWr7oboPiC2bT/r7q1BB8I2s0BRqC", 1, "means something else"),
            ("alice:$2y$31$c4WoMPo3SXsafkva.HHa6uXQZWr7oboPiC2bT/r7q1BB8I2s0BRqC", 1, "cost"),
        ] {
            let (at, said) = parse(text).expect_err(text);
            assert_eq!(at, line, "{text}");
            assert!(said.contains(what), "{text}: {said}");
        }
        let twice = format!("alice:{BCRYPT}\nalice:{BCRYPT}\n");
        assert_eq!(parse(&twice).expect_err("twice").0, 2);
    }
}
