//! How many instructions the daemon takes for each of its core paths, beside the numbers that are kept with the sources: a change that makes one of
//! them slow is seen on any machine, however busy it is.
//!
//! The program runs in callgrind, which counts what all its threads execute and knows neither AVX-512 nor the SHA instructions, so that processors
//! differ little. What the numbers leave out is what only a clock sees: the kernel, the disk, caches and locks.
//!
//! `make bench-check` compares, with some room for what threads do in another order; `BENCH_UPDATE=1 make bench-check` writes the numbers down anew, to be
//! committed with the change that moved them.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;

use larder_harness::Node;

use crate::contestants::{Goods, REPOSITORY, TAG};
use crate::wire::{Numbered, Wire};

const PROGRAM: &str = env!("CARGO_BIN_EXE_larder");
/// How much more than the number kept is taken for noise.
const ROOM: f64 = 0.10;
const ACCEPT: &str = "accept: application/vnd.oci.image.manifest.v1+json\r\n";
/// Small in memory, a file of one chunk, a file of several.
const SIZES: [usize; 3] = [330, 1_000_000, 8_000_000];

/// What is done, how often, and how.
type Counted = (&'static str, u64, fn(&mut Doing<'_>));

const PATHS: &[Counted] = &[
    ("GET manifest by tag", 500, |doing| doing.wire.get(&format!("/v2/{REPOSITORY}/manifests/{TAG}"))),
    ("HEAD manifest by tag", 500, |doing| doing.head(&format!("/v2/{REPOSITORY}/manifests/{TAG}"), 200)),
    ("HEAD blob", 500, |doing| doing.head(&doing.goods.blob_path(1), 200)),
    ("HEAD absent blob", 500, |doing| {
        let absent = doing.small.digest(u64::MAX);
        doing.head(&format!("/v2/{REPOSITORY}/blobs/{absent}"), 404);
    }),
    ("GET blob of 330 B", 500, |doing| doing.wire.get(&doing.goods.blob_path(0))),
    ("GET blob of 1 MB", 100, |doing| doing.wire.get(&doing.goods.blob_path(1))),
    ("GET blob of 8 MB", 20, |doing| doing.wire.get(&doing.goods.blob_path(2))),
    ("page of tags", 100, |doing| doing.wire.get(&format!("/v2/{REPOSITORY}/tags/list?n=100"))),
    ("push blob of 330 B", 50, |doing| doing.push(|doing| doing.tiny)),
    ("push blob of 1 MB", 10, |doing| doing.push(|doing| doing.small)),
    ("push manifest", 50, |doing| {
        doing.number += 1;
        let tag = format!("v{}", doing.number);
        doing.wire.push_manifest(REPOSITORY, &tag, &doing.goods.manifest);
    }),
];

/// What the paths are walked with.
struct Doing<'a> {
    wire: Wire,
    goods: &'a Goods,
    tiny: &'a Numbered,
    small: &'a Numbered,
    number: u64,
}

impl<'a> Doing<'a> {
    fn head(&mut self, path: &str, status: u16) {
        self.wire.ask("HEAD", path, ACCEPT);
        assert_eq!(self.wire.head().status, status, "{path}");
    }

    fn push(&mut self, which: fn(&Self) -> &'a Numbered) {
        self.number += 1;
        let blob = which(self);
        self.wire.push(REPOSITORY, blob, self.number);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "make bench-check"]
async fn the_core_paths_take_as_many_instructions_as_they_did() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let out = folder.path().join("count");
    let wrapper = ["valgrind", "--quiet", "--tool=callgrind", &format!("--callgrind-out-file={}", out.display())].map(str::to_owned);
    let mut node = Node::builder(PROGRAM).name("counted").archive("none").under(&wrapper).start().await;
    let (id, address) = (node.id(), node.address());
    let counted = tokio::task::spawn_blocking(move || {
        let (goods, tiny, small) = (Goods::new(SIZES), Numbered::new(SIZES[0]), Numbered::new(SIZES[1]));
        let mut doing = Doing { wire: Wire::connect(&address, None), goods: &goods, tiny: &tiny, small: &small, number: 1 };
        goods.push_all(&mut doing.wire);
        PATHS.iter().map(|(name, times, path)| (*name, count(id, &out, *times, || path(&mut doing)))).collect::<BTreeMap<_, _>>()
    });
    let counted = counted.await.expect("counting does not panic");
    node.kill();
    let kept = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../tests/bench/instructions.json");
    if std::env::var_os("BENCH_UPDATE").is_some() {
        std::fs::write(&kept, serde_json::to_string_pretty(&counted).expect("JSON") + "\n").expect("write the numbers");
    }
    let text = std::fs::read_to_string(&kept).unwrap_or_else(|error| panic!("read {}: {error}", kept.display()));
    let before: BTreeMap<String, u64> = serde_json::from_str(&text).expect("numbers by name");
    println!("{:<24} {:>14} {:>14} {:>8}", "instructions", "now", "kept", "");
    let mut slower = Vec::new();
    for (name, now) in &counted {
        let was = before.get(*name).copied();
        let change = was.map(|was| *now as f64 / was as f64 - 1.0);
        println!(
            "{name:<24} {now:>14} {:>14} {:>8}",
            was.unwrap_or(0),
            change.map_or("new".to_owned(), |by| format!("{:+.1} %", by * 100.0))
        );
        if change.is_none_or(|by| by > ROOM) {
            slower.push(*name);
        }
    }
    assert!(slower.is_empty(), "slower than before: {slower:?}; mend it, or write the numbers down with BENCH_UPDATE=1 make bench-check");
}

/// Instructions of the whole process for one time of `work`, once it is warm.
fn count(process: u32, out: &Path, times: u64, mut work: impl FnMut()) -> u64 {
    (0..3).for_each(|_| work());
    control(&["--zero"], process);
    (0..times).for_each(|_| work());
    control(&["--dump=path"], process);
    // Dumps are numbered; the last one is the one just made.
    let name = out.file_name().expect("a name").to_string_lossy().into_owned();
    let number = |path: &Path| path.file_name()?.to_str()?.strip_prefix(&name)?.strip_prefix('.')?.parse::<u64>().ok();
    let entries = std::fs::read_dir(out.parent().expect("a folder")).expect("read the folder");
    let dumps = entries.map(|entry| entry.expect("an entry").path()).filter_map(|path| Some((number(&path)?, path)));
    let (_, last) = dumps.max().expect("a dump");
    let text = std::fs::read_to_string(&last).expect("read a dump");
    let total = text.lines().find_map(|line| line.strip_prefix("totals: ").or(line.strip_prefix("summary: ")));
    total.and_then(|total| total.trim().parse::<u64>().ok()).unwrap_or_else(|| panic!("no total in {}", last.display())) / times
}

fn control(arguments: &[&str], process: u32) {
    let output = Command::new("callgrind_control").args(arguments).arg(process.to_string()).output();
    let output = output.unwrap_or_else(|error| panic!("run callgrind_control: {error}; `packaging/setup test` installs it"));
    assert!(output.status.success(), "callgrind_control {arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
}
