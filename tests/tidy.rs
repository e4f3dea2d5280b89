//! Checks on the source itself: who may import whom, one door for each dependency, sizes of files, no forgotten notes.
//!
//! They read the text, not the meaning: `use crate::peers` in a file of the registry is found, however it is reached by a macro is
//! not. That is enough to make somebody stop and think.

use std::fs;
use std::path::{Path, PathBuf};

/// No file is longer; most have a fourth of it.
const LINE_COUNT_MAX: usize = 700;
/// The longest that ARCHITECTURE.md may get, or nobody reads it.
const ARCHITECTURE_LINE_COUNT_MAX: usize = 320;

/// A room, and the rooms that it may name. What every room may use (configuration, tasks, telemetry, failpoints) is not listed.
const IMPORTS: [(&str, &[&str]); 8] = [
    ("store", &[]),
    ("archive", &["store"]),
    ("peers", &["store"]),
    ("lookup", &["archive", "peers", "store"]),
    ("auth", &["store"]),
    ("registry", &["auth", "lookup", "store"]),
    ("upkeep", &["store"]),
    // It shows what the others say of themselves, so it names their status values; its HTTP bodies and queries are the registry's.
    ("admin", &["archive", "auth", "peers", "registry", "store", "upkeep"]),
];
/// All rooms, and what only the top may name.
const ROOMS: [&str; 10] = ["auth", "store", "archive", "peers", "lookup", "registry", "upkeep", "admin", "node", "cli"];
/// A dependency, and the only places of the daemon that may name it.
const DOORS: [(&str, &[&str]); 19] = [
    ("rocksdb", &["store/index.rs"]),
    ("quinn", &["peers/endpoint.rs"]),
    ("quinn_proto", &["peers/endpoint.rs"]),
    ("foca", &["peers/liveness.rs"]),
    ("negentropy", &["peers/reconcile.rs"]),
    ("aws_sdk_s3", &["archive/s3.rs", "archive/s3/"]),
    ("aws_config", &["archive/s3.rs", "archive/s3/"]),
    ("aws_smithy_types", &["archive/s3.rs", "archive/s3/"]),
    ("aws_smithy_async", &["archive/s3/"]),
    ("aws_smithy_runtime_api", &["archive/s3/"]),
    ("aws_credential_types", &["archive/s3/"]),
    ("hyper", &["registry/", "admin/", "cli/"]),
    ("hyper_rustls", &["auth/fetch.rs", "archive/front.rs"]),
    ("jsonwebtoken", &["auth/keys.rs"]),
    ("tokio_rustls", &["tls/"]),
    ("instant_acme", &["tls/acme.rs"]),
    ("x509_parser", &["tls/"]),
    ("rcgen", &["tls/"]),
    ("bincode", &[]),
];
/// What the protocol must not know: it has no sockets, no files, no clock.
const NOT_IN_PROTOCOL: [&str; 6] = ["tokio", "std::net", "std::fs", "SystemTime", "Instant", "quinn"];

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("the daemon is a folder of the workspace").to_owned()
}

/// Every file of ours below `folder` with this ending: path from `folder`, and text.
fn files(folder: &str, ending: &str) -> Vec<(String, String)> {
    let base = root().join(folder);
    let (mut found, mut folders) = (Vec::new(), vec![base.clone()]);
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder).unwrap_or_else(|error| panic!("read {}: {error}", folder.display())) {
            let path = entry.expect("read a folder").path();
            if path.is_dir() {
                folders.push(path);
            } else if path.to_string_lossy().ends_with(ending) {
                let name = path.strip_prefix(&base).expect("it is below").to_string_lossy().into_owned();
                found.push((name, fs::read_to_string(&path).expect("source is text")));
            }
        }
    }
    assert!(!found.is_empty(), "nothing to check in {folder}");
    found.sort();
    found
}

/// Whether a file is only compiled for a room's own tests.
fn is_test(file: &str) -> bool {
    file.ends_with("tests.rs") || file.contains("/tests/")
}

/// The text without comments and without what stands behind `#[cfg(test)]`: tests may reach further.
fn code(text: &str) -> String {
    let text = text.split("#[cfg(test)]\nmod tests {").next().unwrap_or(text);
    text.lines().map(|line| line.split("//").next().unwrap_or(line)).collect::<Vec<_>>().join("\n")
}

/// Whether `text` has `word`, not as a part of a longer one.
fn names(text: &str, word: &str) -> bool {
    let inside = |byte: Option<u8>| byte.is_some_and(|byte| byte.is_ascii_alphanumeric() || byte == b'_');
    text.match_indices(word).any(|(at, _)| {
        let before = at.checked_sub(1).map(|at| text.as_bytes()[at]);
        !inside(before) && !inside(text.as_bytes().get(at + word.len()).copied())
    })
}

/// The rooms that `text` imports from `crate`, also in a group: `use crate::{store, peers::Peers}`.
fn imported(text: &str) -> Vec<&'static str> {
    let mut found = Vec::new();
    for room in ROOMS {
        let grouped = text.match_indices("crate::{").any(|(at, _)| {
            let group = text[at..].split(';').next().unwrap_or("");
            names(group, room)
        });
        if names(text, &format!("crate::{room}")) || grouped {
            found.push(room);
        }
    }
    found
}

fn check(wrong: Vec<String>) {
    assert!(wrong.is_empty(), "\n{}", wrong.join("\n"));
}

#[test]
fn rooms_import_only_what_is_below_them() {
    let mut wrong = Vec::new();
    for (file, text) in files("daemon/src", ".rs") {
        let room = file.split(['/', '.']).next().unwrap_or("");
        let Some((_, allowed)) = IMPORTS.iter().find(|(name, _)| *name == room) else { continue };
        // A room's own tests may build what stands above it.
        if is_test(&file) {
            continue;
        }
        for other in imported(&code(&text)) {
            if other != room && !allowed.contains(&other) {
                wrong.push(format!("daemon/src/{file} names {other}; {room} may name only {allowed:?}"));
            }
        }
    }
    check(wrong);
}

#[test]
fn each_dependency_has_one_door() {
    let mut wrong = Vec::new();
    for (file, text) in files("daemon/src", ".rs") {
        let text = code(&text);
        for (dependency, doors) in DOORS {
            let is_door = doors.iter().any(|door| file == *door || door.ends_with('/') && file.starts_with(door));
            if !is_door && (names(&text, &format!("{dependency}::")) || names(&text, &format!("use {dependency}"))) {
                wrong.push(format!("daemon/src/{file} names {dependency}; its door is {doors:?}"));
            }
        }
    }
    for (file, text) in files("protocol/src", ".rs") {
        let text = code(&text);
        if file != "codec.rs" && names(&text, "bincode") {
            wrong.push(format!("protocol/src/{file} names bincode; its door is codec.rs"));
        }
        for word in NOT_IN_PROTOCOL.into_iter().filter(|word| !is_test(&file) && names(&text, word)) {
            wrong.push(format!("protocol/src/{file} names {word}"));
        }
    }
    check(wrong);
}

#[test]
fn every_file_fits_a_head() {
    let mut wrong = Vec::new();
    for folder in ["daemon/src", "protocol/src", "tests"] {
        for (file, text) in files(folder, ".rs") {
            let count = text.lines().count();
            if count > LINE_COUNT_MAX {
                wrong.push(format!("{folder}/{file} has {count} lines, more than {LINE_COUNT_MAX}"));
            }
        }
    }
    let count = fs::read_to_string(root().join("ARCHITECTURE.md")).expect("ARCHITECTURE.md").lines().count();
    if count > ARCHITECTURE_LINE_COUNT_MAX {
        wrong.push(format!("ARCHITECTURE.md has {count} lines, more than {ARCHITECTURE_LINE_COUNT_MAX}"));
    }
    check(wrong);
}

#[test]
fn no_note_and_no_unfinished_place_is_left() {
    // Put together here, so that this file does not find itself.
    let words = [["TO", "DO"], ["FIX", "ME"], ["XX", "X"], ["to", "do!("], ["unimple", "mented!("], ["SKE", "LETON"], ["#[ig", "nore"]];
    let mut wrong = Vec::new();
    for folder in ["daemon/src", "protocol/src", "tests", "packaging"] {
        for (file, text) in files(folder, "") {
            for (number, line) in text.lines().enumerate() {
                // One with an issue's number may stay, and a figure that a command of its own prints.
                let is_explained = line.contains("issue ") || line.contains("= \"make ");
                if words.iter().any(|word| line.contains(&word.concat())) && !is_explained {
                    wrong.push(format!("{folder}/{file}:{}: {}", number + 1, line.trim()));
                }
            }
        }
    }
    check(wrong);
}

#[test]
fn every_module_says_what_it_is() {
    let mut wrong = Vec::new();
    for folder in ["daemon/src", "protocol/src", "tests"] {
        for (file, text) in files(folder, ".rs") {
            if !is_test(&file) && !text.starts_with("//!") {
                wrong.push(format!("{folder}/{file} does not begin with //!"));
            }
        }
    }
    check(wrong);
}

#[test]
fn the_checks_find_what_they_look_for() {
    assert_eq!(imported("use crate::peers::Peers;"), ["peers"]);
    assert_eq!(imported("use crate::{store::Store, archive};"), ["store", "archive"]);
    assert_eq!(imported("use crate::storehouse; use super::store;"), Vec::<&str>::new());
    assert_eq!(code("a // use crate::peers\nb\n#[cfg(test)]\nmod tests {\nc"), "a \nb");
    assert!(names("quinn::Endpoint", "quinn") && !names("a quinny", "quinn"));
}
