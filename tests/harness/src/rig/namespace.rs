//! One network namespace, known to `ip netns` by a name that carries the id of this process.

use super::Traffic;
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};
use std::fs::File;
use std::io::{self, Write};
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// Where `ip netns` keeps them.
const FOLDER: &str = "/run/netns";
/// What the names of ours begin with; the process id follows.
const PREFIX: &str = "larder-test-";

#[derive(Debug)]
pub(crate) struct Namespace {
    pub(super) name: String,
    file: File,
}

impl Namespace {
    /// An empty one, with its loopback up.
    pub(super) fn new(name: &str) -> io::Result<Self> {
        let name = format!("{PREFIX}{}-{name}", std::process::id());
        run(Command::new("ip").args(["netns", "add", &name]), "")?;
        let namespace = Self { file: File::open(path(&name))?, name };
        namespace.ip("link set lo up\n")?;
        // Otherwise every device says now and then who it is, and the counters of an idle cable show it.
        namespace.run(|| std::fs::write("/proc/sys/net/ipv6/conf/all/disable_ipv6", "1").or(Ok::<_, io::Error>(())))?;
        Ok(namespace)
    }

    /// Runs `work` on a thread of its own inside.
    pub(super) fn run<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        let inside = || {
            move_into_link_name_space(self.file.as_fd(), Some(LinkNameSpaceType::Network)).expect("enter a namespace of ours");
            work()
        };
        let done = std::thread::scope(|scope| scope.spawn(inside).join());
        done.unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    }

    /// A program that runs inside. It takes the place of the program that brings it there, so the child's id is its own.
    pub(super) fn command(&self, program: impl AsRef<std::ffi::OsStr>) -> Command {
        let mut command = Command::new("nsenter");
        command.arg(format!("--net={}", path(&self.name).display())).arg("--").arg(program);
        command
    }

    /// Lines of `ip`.
    pub(super) fn ip(&self, lines: &str) -> io::Result<()> {
        run(Command::new("ip").args(["-n", &self.name, "-batch", "-"]), lines)
    }

    /// A line of `tc`.
    pub(super) fn tc(&self, line: &str) -> io::Result<()> {
        run(Command::new("tc").args(["-n", &self.name, "-batch", "-"]), &format!("{line}\n"))
    }

    /// What a port of a switch saw of the host behind it.
    pub(super) fn traffic(&self, device: &str) -> Traffic {
        let table = self.run(|| std::fs::read_to_string("/proc/thread-self/net/dev")).expect("the kernel counts bytes");
        let line = table.lines().find_map(|line| line.trim().strip_prefix(&format!("{device}:"))).expect("the device is there");
        let numbers: Vec<u64> = line.split_whitespace().map(|number| number.parse().expect("a number")).collect();
        // Eight columns of what came in, which is what the host sent, then those of what went out.
        Traffic { sent: numbers[0], received: numbers[8] }
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        let _ = run(Command::new("ip").args(["netns", "delete", &self.name]), "");
    }
}

/// Removes the namespaces of processes that are gone, and ends what still runs in them.
pub(super) fn remove_leftovers() {
    let Ok(entries) = std::fs::read_dir(FOLDER) else { return };
    for name in entries.filter_map(|entry| entry.ok()?.file_name().into_string().ok()) {
        let owner = name.strip_prefix(PREFIX).and_then(|rest| rest.split('-').next()).and_then(|id| id.parse::<u32>().ok());
        if owner.is_none_or(|owner| Path::new(&format!("/proc/{owner}")).exists()) {
            continue;
        }
        // Who else cleans up at the same time may be first.
        if let Ok(output) = Command::new("ip").args(["netns", "pids", &name]).output() {
            let inside = String::from_utf8_lossy(&output.stdout).into_owned();
            for process in inside.split_whitespace().filter_map(|id| rustix::process::Pid::from_raw(id.parse().ok()?)) {
                let _ = rustix::process::kill_process(process, rustix::process::Signal::KILL);
            }
        }
        let _ = run(Command::new("ip").args(["netns", "delete", &name]), "");
    }
}

fn path(name: &str) -> PathBuf {
    Path::new(FOLDER).join(name)
}

/// Runs a command with `input`; what it complains about is the error.
fn run(command: &mut Command, input: &str) -> io::Result<()> {
    let mut child = command.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::piped()).spawn()?;
    // A program that reads nothing has ended already: its status says why.
    let _ = child.stdin.take().expect("was asked for").write_all(input.as_bytes());
    let output = child.wait_with_output()?;
    if output.status.success() {
        return Ok(());
    }
    Err(io::Error::other(format!("{command:?}: {}", String::from_utf8_lossy(&output.stderr).trim())))
}
