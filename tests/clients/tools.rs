//! Running other people's programs: bounded in time, away from the user's own storage, and loud when they fail.

use std::path::Path;
use std::process::Command;

/// No client takes longer for the small images of this suite, even on a busy machine.
const SECONDS: &str = "120";

/// Runs a program to its end; what it printed to stdout, trimmed.
///
/// # Panics
/// When it is missing, fails, or takes too long; with all it said.
pub fn run(home: &Path, program: &str, arguments: &[&str]) -> String {
    try_run(home, program, arguments).unwrap_or_else(|said| panic!("{program} {arguments:?}: {said}"))
}

/// Runs a program to its end; what it printed, or all it said when it failed.
pub fn try_run(home: &Path, program: &str, arguments: &[&str]) -> Result<String, String> {
    let mut command = Command::new("timeout");
    command.args(["--kill-after=5", SECONDS, program]).args(arguments);
    // What the user has configured for these clients stays out of it.
    command
        .env("HOME", home)
        .env("XDG_RUNTIME_DIR", home)
        .env("XDG_CONFIG_HOME", home)
        .env_remove("DOCKER_CONFIG")
        .env_remove("REGISTRY_AUTH_FILE");
    command.env("no_proxy", "127.0.0.1").env("NO_PROXY", "127.0.0.1");
    let output = command.output().unwrap_or_else(|error| panic!("run timeout {program}: {error}"));
    assert_ne!(output.status.code(), Some(127), "there is no {program}; `packaging/setup test` installs it");
    if output.status.success() {
        Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned())
    } else {
        Err(format!("{}: {}{}", output.status, String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr)))
    }
}

/// A folder with a root file system of a few files, made of Debian's static busybox, and it as a tar beside it.
pub fn root_file_system(scratch: &Path, seed: &str) -> (std::path::PathBuf, std::path::PathBuf) {
    let (root, tar) = (scratch.join("root"), scratch.join("root.tar"));
    std::fs::create_dir_all(root.join("bin")).expect("make a folder");
    std::fs::copy("/bin/busybox", root.join("bin/busybox")).expect("/bin/busybox: `packaging/setup test` installs it");
    std::fs::write(root.join("hello"), seed).expect("write");
    run(scratch, "tar", &["--create", "--file", text(&tar), "--directory", text(&root), "."]);
    (root, tar)
}

/// A path as an argument.
pub fn text(path: &Path) -> &str {
    path.to_str().expect("temporary paths are UTF-8")
}
