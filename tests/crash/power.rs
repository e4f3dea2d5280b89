//! F5: the power goes in the middle of concurrent pushes. What was acknowledged is there, whatever the file system had not yet written.
//!
//! The node keeps its data on a file system of its own, made as unkind as ext4 can be: nothing but a sync ever writes its log, and a
//! rename does not write the file first. It is then told to forget all that was not synced, with the node frozen, and is mounted anew.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use larder_harness::{Node, Random, Registry};

use crate::kills::Client;
use crate::ledger::{Death, Ledger};

/// How often the power goes.
const CUTS: u64 = 15;
const CLIENTS: u64 = 4;
/// It goes at most so long after the clients have begun.
const LIFE_MAX: Duration = Duration::from_millis(900);
/// Sparse: it takes what is written to it.
const DISK: u64 = 2 << 30;
/// Asks a file system to shut down without writing its log: the call that testers of file systems know as `godown`.
const GO_DOWN: &str = "import fcntl, os, struct, sys
fcntl.ioctl(os.open(sys.argv[1], os.O_RDONLY), 0x8004587d, struct.pack('I', 2))";

/// A file system in a file. Declare it before the node that uses it, so that the node ends first.
struct Disk {
    _folder: tempfile::TempDir,
    file: PathBuf,
    mounted: PathBuf,
}

impl Disk {
    /// `None`, and says so, when this user may not mount anything.
    fn new() -> Option<Self> {
        let folder = tempfile::Builder::new().prefix("larder-power-").tempdir().expect("make a temporary folder");
        let (file, mounted) = (folder.path().join("disk"), folder.path().join("mounted"));
        std::fs::File::create(&file).and_then(|file| file.set_len(DISK)).expect("make a sparse file");
        std::fs::create_dir(&mounted).expect("make a folder");
        let made = run(Command::new("mkfs.ext4").args(["-q", "-F"]).arg(&file)).and_then(|()| mount(&file, &mounted));
        if let Err(why) = made {
            println!("skipped: no file system can be mounted here: {why}");
            return None;
        }
        Some(Self { _folder: folder, file, mounted })
    }

    fn data(&self) -> PathBuf {
        self.mounted.join("data")
    }

    /// Takes the power away from the disk; from then on it refuses everything.
    fn cut(&self) {
        run(Command::new("python3").args(["-c", GO_DOWN]).arg(&self.mounted)).expect("shut the file system down");
    }

    /// Mounts what was written before.
    fn restore(&self) {
        run(Command::new("umount").arg(&self.mounted)).expect("unmount a file system that nobody uses");
        mount(&self.file, &self.mounted).expect("mount it again");
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        // Lazily: the node may still run when its test has failed.
        let unmounted = run(Command::new("umount").arg("-l").arg(&self.mounted));
        assert!(unmounted.is_ok() || std::thread::panicking(), "unmount {}", self.mounted.display());
    }
}

fn mount(file: &Path, folder: &Path) -> Result<(), String> {
    run(Command::new("mount").args(["-o", "loop,commit=300,noauto_da_alloc"]).arg(file).arg(folder))
}

fn run(command: &mut Command) -> Result<(), String> {
    let output = command.output().map_err(|error| format!("{command:?}: {error}"))?;
    if output.status.success() { Ok(()) } else { Err(format!("{command:?}: {}", String::from_utf8_lossy(&output.stderr).trim())) }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn f5_everything_acknowledged_survives_power_cuts_during_concurrent_pushes() {
    let Some(disk) = Disk::new() else { return };
    let mut random = Random::printed("power_cuts");
    let node = Node::builder(env!("CARGO_BIN_EXE_larder")).env("LARDER_ARCHIVE__MAX_DELAY", "1s");
    let mut node = node.env("LARDER_DATA_DIR", disk.data().to_string_lossy()).start().await;
    let registry = Registry::new(node.url());
    let mut all = Ledger::default();
    for cut in 0..CUTS {
        let ledger = Arc::new(Mutex::new(Ledger::default()));
        let clients: Vec<_> = (0..CLIENTS)
            .map(|client| {
                let random = Random::new(random.number());
                tokio::spawn(Client::new(registry.clone(), format!("team/app-{client}"), random, ledger.clone()).run())
            })
            .collect();
        // As with the kills: the moment is what the seed decides.
        tokio::time::sleep(LIFE_MAX.mul_f64(random.below(1000) as f64 / 1000.0)).await;
        // ORDER: a node that runs on without its disk would answer 500, which is no power cut.
        node.freeze();
        disk.cut();
        node.kill();
        for client in clients {
            client.await.expect("a client met only silence");
        }
        disk.restore();
        node.start().await;
        let mut round = std::mem::take(&mut *ledger.lock().expect("all clients are done"));
        round.verify(&registry).await;
        round.resume(&registry, Death::PowerCut).await;
        all.take(&mut round);
        println!("cut {cut}: {:?} blobs, tags and deletions acknowledged so far", all.acknowledged());
    }
    let (blobs, tags, deletions) = all.acknowledged();
    assert!(blobs > 50 && tags > 25 && deletions > 2, "too little was acknowledged to mean anything: {:?}", all.acknowledged());
    all.verify(&registry).await;
    node.stop().await;
}
