//! A real node: the built program as a child process with a data folder, ports and a log of its own.
//!
//! The data folder goes when the [`Node`] is dropped, the log stays in `<target>/test-logs/<test>/<node>.log`. A node whose log holds
//! an ERROR or a panic fails its test when it is dropped, unless the test said that it expects one.

use crate::http::{self, Body};
use crate::rig::{self, Host};
use crate::s3::CountingS3;
use crate::wait::try_until;
use serde_json::Value;
use std::ffi::OsString;
use std::fs::{File, OpenOptions};
use std::io::Write;
use std::net::{Ipv4Addr, SocketAddrV4, TcpListener, UdpSocket};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

/// Until a node is ready: opening RocksDB on a machine that compiles at the same time takes its time.
const READY_DEADLINE: Duration = Duration::from_secs(60);
/// Until a node that was told to stop has stopped: its own grace period and some more.
const STOP_DEADLINE: Duration = Duration::from_secs(45);
/// How much of a log stands in a panic.
const LOG_TAIL_SIZE: usize = 4000;

/// What a node is started with.
#[derive(Debug, Clone)]
pub struct NodeBuilder {
    program: PathBuf,
    name: String,
    environment: Vec<(String, String)>,
    flags: Vec<String>,
    errors_expected: bool,
    host: Option<Host>,
    in_memory: bool,
    under: Vec<String>,
}

impl NodeBuilder {
    /// The node's name, also that of its log; `node` when it is left out.
    pub fn name(mut self, name: &str) -> Self {
        self.name = name.to_owned();
        self
    }

    /// One variable of the environment, such as `LARDER_ARCHIVE__MAX_DELAY`.
    pub fn env(mut self, key: &str, value: impl Into<String>) -> Self {
        self.environment.push((key.to_owned(), value.into()));
        self
    }

    /// One argument of `larder serve`.
    pub fn flag(mut self, flag: &str) -> Self {
        self.flags.push(flag.to_owned());
        self
    }

    /// The archive: `file:///...` or `none`; without it, a folder in the data folder.
    pub fn archive(self, url: &str) -> Self {
        self.env("LARDER_ARCHIVE__URL", url)
    }

    /// `prefix` of the server's bucket as the archive.
    pub fn s3(self, server: &CountingS3, prefix: &str) -> Self {
        server.environment(prefix).into_iter().fold(self, |builder, (key, value)| builder.env(key, value))
    }

    /// Runs the node on a host of a rig, at the host's address and [`rig::PORT`].
    pub fn on(mut self, host: &Host) -> Self {
        self.host = Some(host.clone());
        self.env("LARDER_HTTP__INSECURE", "true")
    }

    /// Keeps the data folder in memory: where many nodes share the disk of one machine, it would be what is measured.
    pub fn in_memory(mut self) -> Self {
        self.in_memory = true;
        self
    }

    /// Runs the daemon, not its commands, as the argument of another program, such as a debugger, with arguments of its own.
    pub fn under(mut self, program: &[String]) -> Self {
        self.under = program.to_vec();
        self
    }

    /// Lets the log hold errors; for tests that break something.
    pub fn errors_expected(mut self) -> Self {
        self.errors_expected = true;
        self
    }

    /// Makes the data folder, takes ports and starts the node; returns when it is ready.
    ///
    /// # Panics
    /// When it does not get ready in time, with its log.
    pub async fn start(self) -> Node {
        let mut node = self.create();
        node.start().await;
        node
    }

    /// Makes the data folder and takes ports, starts nothing yet.
    pub fn create(self) -> Node {
        let place = if self.in_memory { PathBuf::from("/dev/shm") } else { std::env::temp_dir() };
        let folder = tempfile::Builder::new().prefix("larder-").tempdir_in(place).expect("make a temporary folder");
        let thread = std::thread::current();
        let test = thread.name().unwrap_or("test").replace("::", "/");
        // The program is <target>/release/larder: the logs go beside what cargo makes, wherever that is.
        let target = self.program.ancestors().nth(2).expect("the program is in target/release").to_owned();
        let logs = target.join("test-logs").join(test);
        std::fs::create_dir_all(&logs).unwrap_or_else(|error| panic!("make {}: {error}", logs.display()));
        let log = logs.join(format!("{}.log", self.name));
        File::create(&log).unwrap_or_else(|error| panic!("make {}: {error}", log.display()));
        let address = match &self.host {
            Some(host) => SocketAddrV4::new(host.address(), rig::PORT),
            None => SocketAddrV4::new(Ipv4Addr::LOCALHOST, free_port()),
        };
        Node { data: folder.path().join("data"), folder, address, log, child: None, with: self }
    }
}

/// A node, running or not.
#[derive(Debug)]
pub struct Node {
    with: NodeBuilder,
    // Holds the folder until the node is dropped.
    folder: tempfile::TempDir,
    data: PathBuf,
    address: SocketAddrV4,
    log: PathBuf,
    child: Option<Child>,
}

impl Node {
    /// Prepares a node of `program`, which a suite knows as `env!("CARGO_BIN_EXE_larder")`.
    pub fn builder(program: &str) -> NodeBuilder {
        NodeBuilder {
            program: program.into(),
            name: "node".into(),
            environment: Vec::new(),
            flags: Vec::new(),
            errors_expected: false,
            host: None,
            in_memory: false,
            under: Vec::new(),
        }
    }

    /// `http://127.0.0.1:port`, or the same of its host.
    pub fn url(&self) -> String {
        format!("http://{}", self.address())
    }

    /// `127.0.0.1:port`, of HTTP over TCP and of the peers over UDP.
    pub fn address(&self) -> String {
        self.address.to_string()
    }

    /// The host of a rig that it runs on, if it does.
    pub fn host(&self) -> Option<&Host> {
        self.with.host.as_ref()
    }

    /// The node's name.
    pub fn name(&self) -> &str {
        &self.with.name
    }

    /// The data folder.
    pub fn data_dir(&self) -> &Path {
        &self.data
    }

    /// An empty folder beside the data folder, for a test's own files; gone with the node.
    pub fn scratch(&self) -> &Path {
        self.folder.path()
    }

    /// Changes a variable of the environment for the next start; `None` removes it.
    pub fn set_env(&mut self, key: &str, value: Option<&str>) {
        self.with.environment.retain(|(known, _)| known != key);
        self.with.environment.extend(value.map(|value| (key.to_owned(), value.to_owned())));
    }

    /// Lets the log hold errors from now on.
    pub fn expect_errors(&mut self) {
        self.with.errors_expected = true;
    }

    /// Starts the stopped node on its folder and ports, and waits until it is ready.
    ///
    /// # Panics
    /// When it does not get ready in time or ends, with its log.
    pub async fn start(&mut self) {
        self.spawn();
        let ready = format!("{}/readyz", self.url());
        let speaks_tls = self.with.environment.iter().any(|(key, _)| key == "LARDER_TLS__CERTIFICATE" || key == "LARDER_ACME__DOMAINS");
        let log = self.log.clone();
        let child = self.child.as_mut().expect("was just started");
        let state = try_until(READY_DEADLINE, async || match child.try_wait() {
            // Who may ask it, and with which certificate, is the test's matter.
            Ok(None) if speaks_tls => {
                let log = std::fs::read_to_string(&log).unwrap_or_default();
                log.rsplit("--- start").next().is_some_and(|log| log.contains("listening on https://")).then_some(Ok(()))
            }
            Ok(None) => match http::request("GET", &ready, &[], Body::empty()).await {
                Ok(answer) if answer.status == 200 => Some(Ok(())),
                _ => None,
            },
            ended => Some(Err(ended)),
        })
        .await;
        match state {
            Some(Ok(())) => {}
            Some(Err(ended)) => panic!("node {} ended while it started: {ended:?}\n{}", self.with.name, self.log_tail()),
            None => panic!("node {} is not ready after {READY_DEADLINE:?}\n{}", self.with.name, self.log_tail()),
        }
    }

    /// Starts the process and waits for nothing: for starts that are meant to fail.
    pub fn spawn(&mut self) {
        assert!(self.child.is_none(), "node {} runs already", self.with.name);
        let mut log = OpenOptions::new().append(true).open(&self.log).expect("open the node's log");
        writeln!(log, "--- start").expect("write to the node's log");
        let mut command = self.command_under(&self.with.under, ["serve"]);
        command.args(["--listen", &self.address(), "--peer-listen", &self.address()]).args(&self.with.flags);
        command.stdin(Stdio::null()).stdout(log.try_clone().expect("share the log")).stderr(log);
        let child = command.spawn().unwrap_or_else(|error| panic!("start {}: {error}", self.with.program.display()));
        self.child = Some(child);
    }

    /// Tells the node to stop (SIGTERM) and waits until it has.
    ///
    /// # Panics
    /// When it does not stop in time, or not with exit code 0.
    pub async fn stop(&mut self) {
        self.tell_to_stop();
        let status = self.ended(STOP_DEADLINE).await;
        assert!(status.success(), "node {} stopped with {status}\n{}", self.with.name, self.log_tail());
    }

    /// Tells the node to stop (SIGTERM) and waits for nothing.
    pub fn tell_to_stop(&self) {
        self.signal(rustix::process::Signal::TERM);
    }

    /// Halts the node where it is (SIGSTOP); all that can be done with it then is to kill it.
    pub fn freeze(&self) {
        self.signal(rustix::process::Signal::STOP);
    }

    fn signal(&self, signal: rustix::process::Signal) {
        let id = rustix::process::Pid::from_child(self.child.as_ref().expect("the node runs"));
        rustix::process::kill_process(id, signal).expect("signal a child");
    }

    /// Ends the node at once (SIGKILL), as a crash would. Does nothing when it has ended already.
    pub fn kill(&mut self) {
        if let Some(mut child) = self.child.take() {
            // It may have died before, at a failpoint.
            let _ = child.kill();
            child.wait().expect("wait for a killed child");
        }
    }

    /// Waits until the node has ended by itself.
    ///
    /// # Panics
    /// When it still runs at `deadline`.
    pub async fn ended(&mut self, deadline: Duration) -> ExitStatus {
        let child = self.child.as_mut().expect("the node runs");
        let ended = try_until(deadline, async || child.try_wait().expect("ask for the child's state")).await;
        let status = ended.unwrap_or_else(|| panic!("node {} still runs after {deadline:?}\n{}", self.with.name, self.log_tail()));
        self.child = None;
        status
    }

    /// Whether the process runs.
    pub fn is_running(&mut self) -> bool {
        self.child.as_mut().is_some_and(|child| matches!(child.try_wait(), Ok(None)))
    }

    /// Kills the node and starts it again.
    pub async fn kill_and_restart(&mut self) {
        self.kill();
        self.start().await;
    }

    /// Stops the node in order and starts it again.
    pub async fn restart(&mut self) {
        self.stop().await;
        self.start().await;
    }

    /// Kills the node and removes its data folder: what is left is its name and ports.
    pub fn lose_disk(&mut self) {
        self.kill();
        std::fs::remove_dir_all(&self.data).expect("remove the data folder");
    }

    /// Runs a command of the program on this node's data folder; gives what it printed, trimmed.
    ///
    /// # Errors
    /// What it said to stderr, when it did not end with 0.
    pub async fn cli(&self, arguments: &[&str]) -> Result<String, String> {
        let mut command = self.command(arguments);
        // The commands of a busy node may take a while, and other nodes of the test have to go on meanwhile.
        let output = tokio::task::spawn_blocking(move || command.stdin(Stdio::null()).output()).await;
        let output = output.expect("not cancelled").unwrap_or_else(|error| panic!("run larder {arguments:?}: {error}"));
        if output.status.success() {
            Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned())
        } else {
            Err(format!("{}: {}", output.status, String::from_utf8_lossy(&output.stderr).trim()))
        }
    }

    /// The same for a command that reads `input` from standard input.
    pub async fn cli_with(&self, arguments: &[&str], input: &str) -> Result<String, String> {
        let mut command = self.command(arguments);
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().unwrap_or_else(|error| panic!("run larder {arguments:?}: {error}"));
        // Little enough for a pipe, so that nobody waits for anybody.
        child.stdin.take().expect("piped").write_all(input.as_bytes()).expect("write to the command");
        let output = tokio::task::spawn_blocking(move || child.wait_with_output()).await.expect("not cancelled").expect("wait");
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).trim().to_owned();
        if output.status.success() { Ok(text(&output.stdout)) } else { Err(format!("{}: {}", output.status, text(&output.stderr))) }
    }

    /// Adds somebody to the registry.
    pub async fn add_user(&self, name: &str, password: &str) {
        self.cli_with(&["user", "add", name, "--password-stdin"], password).await.expect("add a user");
    }

    /// Gives a subject a right.
    pub async fn allow(&self, subject: &str, repositories: &str, actions: &str) {
        self.cli(&["policy", "allow", subject, repositories, actions]).await.expect("allow");
    }

    /// Runs a command with --json and parses its answer.
    ///
    /// # Panics
    /// When it fails.
    pub async fn cli_json(&self, arguments: &[&str]) -> Value {
        let arguments: Vec<&str> = arguments.iter().copied().chain(["--json"]).collect();
        let text = self.cli(&arguments).await.unwrap_or_else(|error| panic!("larder {arguments:?}: {error}\n{}", self.log_tail()));
        serde_json::from_str(&text).unwrap_or_else(|error| panic!("larder {arguments:?} printed no JSON ({error}): {text}"))
    }

    /// The most memory the process ever had (VmHWM), in bytes, as the kernel knows it.
    pub fn memory_peak_bytes(&self) -> u64 {
        self.kernel_bytes("VmHWM:")
    }

    /// The memory that the process has now (VmRSS), in bytes.
    pub fn memory_bytes(&self) -> u64 {
        self.kernel_bytes("VmRSS:")
    }

    /// Seconds that processors have spent on the process so far.
    pub fn cpu_seconds(&self) -> f64 {
        rig::machine::cpu_seconds(self.id())
    }

    /// How many files, sockets included, the process has open now.
    pub fn open_files(&self) -> u64 {
        let entries = std::fs::read_dir(format!("/proc/{}/fd", self.id())).expect("list the open files of a running child");
        entries.count() as u64
    }

    /// The process id.
    ///
    /// # Panics
    /// When the node does not run.
    pub fn id(&self) -> u32 {
        self.child.as_ref().expect("the node runs").id()
    }

    fn kernel_bytes(&self, name: &str) -> u64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.id())).expect("read the state of a running child");
        let line = status.lines().find_map(|line| line.strip_prefix(name)).expect("the kernel says it");
        let kib: u64 = line.trim().trim_end_matches(" kB").parse().expect("a number in kB");
        kib * 1024
    }

    /// Everything that the node has logged, over all its starts.
    pub fn log(&self) -> String {
        String::from_utf8_lossy(&std::fs::read(&self.log).unwrap_or_default()).into_owned()
    }

    /// The end of the log, with its path.
    pub fn log_tail(&self) -> String {
        let log = self.log();
        let begin = log.ceil_char_boundary(log.len().saturating_sub(LOG_TAIL_SIZE));
        format!("--- end of {}\n{}", self.log.display(), &log[begin..])
    }

    /// Asserts that nothing in the log asks for a person.
    pub fn assert_no_errors(&self) {
        let log = self.log();
        let wrong: Vec<&str> = log.lines().filter(|line| line.contains("ERROR") || line.contains(" panicked at ")).collect();
        assert!(wrong.is_empty(), "node {} logged errors:\n{}\nin {}", self.with.name, wrong.join("\n"), self.log.display());
    }

    /// The program with `arguments` and the node's environment, and nothing of the environment of the person who tests.
    pub fn command<S: Into<OsString>>(&self, arguments: impl IntoIterator<Item = S>) -> Command {
        self.command_under(&[], arguments)
    }

    fn command_under<S: Into<OsString>>(&self, under: &[String], arguments: impl IntoIterator<Item = S>) -> Command {
        let program = under.first().map_or(self.with.program.as_path(), Path::new);
        let mut command = match &self.with.host {
            Some(host) => host.command(program),
            None => Command::new(program),
        };
        if let Some((_, more)) = under.split_first() {
            command.args(more).arg(&self.with.program);
        }
        command.args(arguments.into_iter().map(Into::into));
        for (key, _) in std::env::vars_os() {
            let text = key.to_string_lossy();
            if text.starts_with("LARDER_") || text.starts_with("AWS_") || text == "RUST_LOG" || text == "NOTIFY_SOCKET" {
                command.env_remove(&key);
            }
        }
        command.env("HOME", self.folder.path()).current_dir(self.folder.path());
        command.env("LARDER_DATA_DIR", &self.data).env("LARDER_NODE__NAME", &self.with.name);
        command.envs(self.with.environment.iter().map(|(key, value)| (key, value)));
        command
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        self.kill();
        if std::thread::panicking() {
            eprintln!("{}", self.log_tail());
        } else if !self.with.errors_expected {
            self.assert_no_errors();
        }
    }
}

/// A port that is free for TCP and UDP, and that no other test of this process has got.
///
/// Below the range from which the kernel takes ports for outgoing connections: those could take it between this and the start.
pub fn free_port() -> u16 {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    const FIRST: u32 = 10_000;
    const COUNT: u32 = 20_000;
    for _ in 0..COUNT {
        // Suites may run at once: each process begins somewhere else.
        let place = std::process::id().wrapping_mul(977) + NEXT.fetch_add(1, Ordering::Relaxed);
        let port = (FIRST + place % COUNT) as u16;
        if TcpListener::bind(("127.0.0.1", port)).is_ok() && UdpSocket::bind(("127.0.0.1", port)).is_ok() {
            return port;
        }
    }
    panic!("no port from {FIRST} on is free");
}
