//! Running other people's programs: bounded in time, away from the user's own storage, and loud when they fail.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// No client takes longer for the small images of this suite, even on a busy machine.
const SECONDS: &str = "120";
/// What `timeout` says when there is no such program.
const MISSING: i32 = 127;

/// Runs a program to its end; what it printed to stdout, trimmed.
///
/// # Panics
/// When it is missing, fails, or takes too long; with all it said.
pub fn run(home: &Path, program: &str, arguments: &[&str]) -> String {
    try_run(home, program, arguments).unwrap_or_else(|said| panic!("{program} {arguments:?}: {said}"))
}

/// Runs a program to its end; what it printed, or all it said when it failed.
///
/// # Panics
/// When it is missing.
pub fn try_run(home: &Path, program: &str, arguments: &[&str]) -> Result<String, String> {
    try_run_on(None, home, program, arguments)
}

/// What makes a program see the `etc` of a folder as if it lay in `/etc`, and nothing else see that.
const WITHIN: &str = "mount -t overlay overlay -o \"lowerdir=$0/etc:/etc\" /etc && exec \"$@\"";

/// The same on a host whose `/etc` has what is in the `etc` of a folder too: where `larder setup --root` has written.
///
/// # Panics
/// When it is missing.
pub fn try_run_on(system: Option<&Path>, home: &Path, program: &str, arguments: &[&str]) -> Result<String, String> {
    let mut command = Command::new("timeout");
    command.args(["--kill-after=5", SECONDS]);
    if let Some(system) = system {
        command.args(["unshare", "--mount", "--", "sh", "-c", WITHIN, text(system)]);
    }
    command.arg(program).args(arguments).stdin(Stdio::null());
    // What the user has configured for these clients stays out of it.
    command.env("HOME", home).env("XDG_RUNTIME_DIR", home).env("XDG_CONFIG_HOME", home.join(".config"));
    for name in ["DOCKER_CONFIG", "DOCKER_HOST", "REGISTRY_AUTH_FILE", "CONTAINERS_REGISTRIES_CONF", "CONTAINER_HOST", "STORAGE_DRIVER"] {
        command.env_remove(name);
    }
    command.env("no_proxy", "127.0.0.1").env("NO_PROXY", "127.0.0.1");
    let output = command.output().unwrap_or_else(|error| panic!("run timeout {program}: {error}"));
    assert_ne!(output.status.code(), Some(MISSING), "there is no {program}; `packaging/setup test` installs it");
    if output.status.success() {
        Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned())
    } else {
        Err(format!("{}: {}{}", output.status, String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr)))
    }
}

/// A Docker engine that belongs to a test; ended, with all its mounts, when it is dropped.
pub struct Engine {
    // Short, because sockets have short names.
    folder: tempfile::TempDir,
}

impl Engine {
    /// An engine as it is without any configuration.
    pub fn start() -> Self {
        Self::start_with("{}")
    }

    /// An engine with this `daemon.json`.
    pub fn start_with(configuration: &str) -> Self {
        Self::start_in(|folder| std::fs::write(folder.join("daemon.json"), configuration).expect("write daemon.json"))
    }

    /// An engine on a host whose `/etc` has what is in the `etc` of this folder too.
    pub fn start_on(system: &Path) -> Self {
        Self::start_in(|folder| std::os::unix::fs::symlink(system, folder.join("system")).expect("link the folder"))
    }

    fn start_in(prepare: impl FnOnce(&Path)) -> Self {
        let folder = tempfile::Builder::new().prefix("ld-").tempdir_in("/tmp").expect("temporary folder");
        prepare(folder.path());
        // Before it starts: what is left of a start that fails is ended too.
        let engine = Self { folder };
        run(engine.home(), text(&Self::script()), &["start", text(engine.home())]);
        engine
    }

    fn script() -> PathBuf {
        Path::new(env!("CARGO_MANIFEST_DIR")).join("../packaging/demo/dockerd")
    }

    fn home(&self) -> &Path {
        self.folder.path()
    }

    /// The socket of the containerd that the engine runs.
    pub fn containerd(&self) -> PathBuf {
        self.home().join("exec/containerd/containerd.sock")
    }

    /// Runs a docker command with this engine.
    pub fn docker(&self, arguments: &[&str]) -> String {
        self.try_docker(arguments).unwrap_or_else(|said| panic!("docker {arguments:?}: {said}"))
    }

    /// The same; what it said when it failed.
    pub fn try_docker(&self, arguments: &[&str]) -> Result<String, String> {
        let socket = format!("unix://{}/docker.sock", self.home().display());
        let arguments: Vec<_> = ["-H", &socket].into_iter().chain(arguments.iter().copied()).collect();
        try_run(self.home(), "/usr/bin/docker", &arguments)
    }

    /// The id of an image that the engine has.
    pub fn id(&self, name: &str) -> String {
        self.docker(&["image", "inspect", "--format", "{{.Id}}", name])
    }

    /// Makes the engine forget every image: docker asks only for what it lacks, and a pull would prove nothing.
    pub fn forget(&self) {
        self.docker(&["system", "prune", "--all", "--force"]);
        assert_eq!(self.docker(&["image", "ls", "--all", "--quiet"]), "", "docker still has images");
    }
}

impl Drop for Engine {
    fn drop(&mut self) {
        if let Err(said) = try_run(self.home(), text(&Self::script()), &["stop", text(self.home())]) {
            eprintln!("the test's Docker engine could not be ended: {said}");
        }
    }
}

/// Podman or buildah with storage of its own.
pub struct Client<'a> {
    program: &'static str,
    home: &'a Path,
    system: Option<&'a Path>,
    storage: Vec<String>,
}

impl<'a> Client<'a> {
    /// `program` with empty storage in the folder `name` of `home`.
    pub fn new(program: &'static str, home: &'a Path, name: &str) -> Self {
        let folder = home.join(name);
        let storage = vec![
            format!("--root={}", folder.join("root").display()),
            format!("--runroot={}", folder.join("run").display()),
            "--storage-driver=vfs".to_owned(),
        ];
        Self { program, home, system: None, storage }
    }

    /// The same on a host whose `/etc` has what is in the `etc` of this folder too.
    pub fn on(mut self, system: Option<&'a Path>) -> Self {
        self.system = system;
        self
    }

    /// Runs one of its commands.
    pub fn run(&self, arguments: &[&str]) -> String {
        self.try_run(arguments).unwrap_or_else(|said| panic!("{} {arguments:?}: {said}", self.program))
    }

    /// The same; what it said when it failed.
    pub fn try_run(&self, arguments: &[&str]) -> Result<String, String> {
        let arguments: Vec<_> = self.storage.iter().map(String::as_str).chain(arguments.iter().copied()).collect();
        try_run_on(self.system, self.home, self.program, &arguments)
    }

    /// Pulls over plain HTTP; gives the image's id.
    pub fn pull(&self, name: &str) -> String {
        self.run(&["pull", "--quiet", "--tls-verify=false", name])
    }
}

/// The id of the image that a manifest in a registry describes.
pub fn id_of(manifest: &larder_harness::Response) -> String {
    manifest.json()["config"]["digest"].as_str().expect("a manifest names its config").to_owned()
}

/// A folder with a root file system of a few files, made of Debian's static busybox, and it as a tar beside it.
pub fn root_file_system(scratch: &Path, seed: &str) -> (PathBuf, PathBuf) {
    let (root, tar) = (scratch.join(format!("{seed}-root")), scratch.join(format!("{seed}.tar")));
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

#[test]
#[should_panic(expected = "there is no no-such-client; `packaging/setup test` installs it")]
fn a_client_that_is_missing_fails_its_test_and_is_not_skipped() {
    run(Path::new("/tmp"), "no-such-client", &[]);
}
