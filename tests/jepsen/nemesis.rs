//! What goes wrong, at random.

use crate::checks;
use crate::clients::{Clients, History};
use crate::fleet::{COUNT, Fleet};
use larder_harness::rig::proxy::Path;
use larder_harness::{Node, Random, fleet};
use std::path::{Path as FilePath, PathBuf};
use std::time::{Duration, Instant};

/// The file of a data folder that makes a node the same one as before.
const IDENTITY: &str = "node.key";
/// How far a clock is shifted at most, in milliseconds, either way. Twice this is below the model's skew.
const SHIFT_MS: u64 = 3000;

/// Everything that can be done; the first ones more often than the last, which take long.
#[derive(Debug, Clone, Copy)]
enum Fault {
    Halves,
    OneWay,
    Isolate,
    Lossy,
    Heal,
    Kill,
    Stop,
    Clock,
    Snapshot,
    Restore,
    WipeAll,
    WipeButKey,
}

/// Which of them, and how often.
const FAULTS: [(Fault, u64); 12] = [
    (Fault::Halves, 4),
    (Fault::OneWay, 4),
    (Fault::Isolate, 3),
    (Fault::Lossy, 2),
    (Fault::Heal, 5),
    (Fault::Kill, 5),
    (Fault::Stop, 2),
    (Fault::Clock, 4),
    (Fault::Snapshot, 3),
    (Fault::Restore, 3),
    (Fault::WipeAll, 1),
    (Fault::WipeButKey, 1),
];

/// An old copy of a node's data folder.
struct Copy {
    node: usize,
    folder: PathBuf,
}

/// Does one after the other until the time is over.
pub async fn run(fleet: &mut Fleet, history: &History, clients: &Clients, random: &mut Random, time: Duration) {
    let begin = Instant::now();
    let faults = chosen();
    let weights: u64 = faults.iter().map(|(_, weight)| weight).sum();
    let mut copy: Option<Copy> = None;
    while begin.elapsed() < time {
        let mut place = random.below(weights);
        let fault = faults
            .iter()
            .find(|(_, weight)| {
                place < *weight || {
                    place -= weight;
                    false
                }
            })
            .expect("within the weights")
            .0;
        let node = random.below(COUNT as u64) as usize;
        println!("{:6.1} s: {fault:?}, node-{}", begin.elapsed().as_secs_f64(), node + 1);
        match fault {
            Fault::Halves => {
                let side = random.below(1 << COUNT);
                fleet.proxy.part(|node| side >> node & 1 == 1);
            }
            Fault::OneWay => {
                for other in (0..COUNT).filter(|other| *other != node) {
                    if random.below(2) == 0 {
                        fleet.proxy.set(node, other, Path::CUT);
                    }
                }
            }
            Fault::Isolate => fleet.proxy.part(|other| other == node),
            Fault::Lossy => fleet.proxy.set_all(Path { delay: Duration::from_millis(40), loss: 0.2, ..Path::CLEAR }),
            Fault::Heal => fleet.proxy.set_all(Path::CLEAR),
            Fault::Kill => {
                fleet.nodes[node].kill();
                pause(random, 1500).await;
                fleet.nodes[node].start().await;
            }
            Fault::Stop => {
                fleet.nodes[node].stop().await;
                pause(random, 1000).await;
                fleet.nodes[node].start().await;
            }
            Fault::Clock if fleet.has_clocks => {
                let shift = random.below(2 * SHIFT_MS) as i64 - SHIFT_MS as i64;
                fleet.shift_clock(node, shift);
                // A node that starts sees another time at once; one that runs sees it jump.
            }
            Fault::Clock => {}
            Fault::Snapshot => {
                fleet.nodes[node].kill();
                let folder = fleet.nodes[node].scratch().join("copy");
                let _ = std::fs::remove_dir_all(&folder);
                copy_folder(fleet.nodes[node].data_dir(), &folder);
                copy = Some(Copy { node, folder });
                fleet.nodes[node].start().await;
            }
            Fault::Restore => {
                if let Some(copy) = copy.take() {
                    lose(fleet, history, clients, copy.node, |node| {
                        node.lose_disk();
                        std::fs::rename(&copy.folder, node.data_dir()).expect("put back a copy");
                    })
                    .await;
                }
            }
            Fault::WipeAll => {
                lose(fleet, history, clients, node, Node::lose_disk).await;
            }
            Fault::WipeButKey => {
                lose(fleet, history, clients, node, |node| {
                    let key = std::fs::read(node.data_dir().join(IDENTITY)).expect("the node's key");
                    node.lose_disk();
                    make_private(node.data_dir());
                    write_private(&node.data_dir().join(IDENTITY), &key);
                })
                .await;
            }
        }
        pause(random, 2500).await;
    }
}

/// All faults, or those whose names stand in JEPSEN_FAULTS.
fn chosen() -> Vec<(Fault, u64)> {
    let named = std::env::var("JEPSEN_FAULTS").ok();
    let is_named = |fault: &Fault| named.as_ref().is_none_or(|names| names.split(',').any(|name| name == format!("{fault:?}")));
    let chosen: Vec<(Fault, u64)> = FAULTS.into_iter().filter(|(fault, _)| is_named(fault)).collect();
    assert!(!chosen.is_empty(), "JEPSEN_FAULTS names no fault");
    chosen
}

async fn pause(random: &mut Random, most_ms: u64) {
    tokio::time::sleep(Duration::from_millis(random.below(most_ms))).await;
}

/// Takes a node's disk away, once all that was acknowledged is on other nodes as well: what nobody else has is lost with a disk, and no promise
/// is broken by that. Clients rest meanwhile.
async fn lose(fleet: &mut Fleet, history: &History, clients: &Clients, node: usize, how: impl FnOnce(&mut Node)) {
    let resting = clients.pause().await;
    fleet.mend().await;
    let all: Vec<&Node> = fleet.nodes.iter().collect();
    checks::converged(&all, history).await;
    fleet.nodes[node].kill();
    let other = (node + 1) % COUNT;
    let missing = checks::incomplete(&fleet.nodes[other], history).await;
    if !missing.is_empty() {
        println!("          not done: it is the only one that has {}", missing.join(", "));
        fleet.nodes[node].start().await;
        return;
    }
    let before = fleet.nodes[other].cli_json(&["peers", "list"]).await;
    how(&mut fleet.nodes[node]);
    fleet.begin_life(node);
    fleet.nodes[node].start().await;
    // Without its key it is a stranger, and the one that it was is gone for good.
    let id = fleet.nodes[node].cli_json(&["status"]).await["node"].clone();
    let was = before.as_array().and_then(|peers| peers.iter().find(|peer| peer["name"] == fleet.nodes[node].name()));
    if let Some(was) = was.filter(|was| was["node"] != id).and_then(|was| was["node"].as_str()) {
        fleet.nodes[other].cli(&["peers", "remove", was]).await.expect("remove the node that was");
    }
    if !knows_others(&fleet.nodes[node]).await {
        fleet::join(&fleet.nodes[other], &fleet.nodes[node]).await;
    }
    drop(resting);
}

async fn knows_others(node: &Node) -> bool {
    node.cli_json(&["peers", "list"]).await.as_array().is_some_and(|peers| peers.len() > 1)
}

fn copy_folder(from: &FilePath, to: &FilePath) {
    let copied = std::process::Command::new("cp").arg("-a").arg(from).arg(to).status();
    assert!(copied.is_ok_and(|status| status.success()), "copy {}", from.display());
}

fn make_private(folder: &FilePath) {
    use std::os::unix::fs::DirBuilderExt;
    std::fs::DirBuilder::new().mode(0o700).create(folder).expect("make a folder");
}

fn write_private(path: &FilePath, bytes: &[u8]) {
    use std::io::Write;
    use std::os::unix::fs::OpenOptionsExt;
    let file = std::fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(path);
    file.and_then(|mut file| file.write_all(bytes)).expect("write a key");
}
