//! One node, 64 clients that do everything at once, and a collector that is always at work; a model says what may come back.
//!
//! - [`own`]: repositories of one client, where every answer is known;
//! - [`shared`]: repositories of all, where answers are known to be one of several;
//! - [`watch`]: memory and open files.
//!
//! `SOAK_SECONDS` says for how long. The seed is printed and repeats what the clients want, not in which order the node gets it.

mod own;
mod shared;
mod traffic;
mod watch;

use larder_harness::{Node, Random, wait_until};
use own::Client;
use shared::Shared;
use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::task::JoinSet;
use traffic::{Blob, Traffic};
use watch::Watch;

const PROGRAM: &str = env!("CARGO_BIN_EXE_larder");
/// Clients at a time.
const CLIENTS: u64 = 64;
/// For how long, when nobody says.
const SECONDS: u64 = 60;
/// How long the node leaves alone what nothing names: short, so that a client that relies on it longer than it may is seen.
pub const GRACE: Duration = Duration::from_secs(2);
/// And how long its bytes stay on the disk then.
const TRASH: Duration = Duration::from_secs(1);
/// Between two rounds of the collector.
const COLLECT_PAUSE: Duration = Duration::from_millis(700);
/// Different blobs that many images of all clients have.
const POOL: u64 = 150;
/// A client rests so long between two things, at most.
const REST_MS: u64 = 100;
/// Until the last garbage must be gone.
const EMPTY_DEADLINE: Duration = Duration::from_secs(60);
/// What the index keeps itself lies in no file.
const SMALL_MAX: u64 = 64 << 10;

/// A blob that others have too.
pub fn pool(random: &mut Random) -> Arc<Blob> {
    Blob::of(random.below(POOL))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn f41_f42_everything_at_once_loses_nothing_and_leaves_nothing() {
    let seconds = std::env::var("SOAK_SECONDS").ok().map_or(SECONDS, |text| text.parse().expect("SOAK_SECONDS is a number"));
    let mut random = Random::printed("soak");
    let seconds_of = |time: Duration| format!("{}s", time.as_secs());
    let node = Node::builder(PROGRAM).name("soak").archive("none").env("LARDER_REGISTRY__UPLOAD_AGE_MAX", "5s");
    let node = node.env("LARDER_GC__GRACE", seconds_of(GRACE)).env("LARDER_GC__TRASH", seconds_of(TRASH)).env("LARDER_GC__PERIOD", "0s");
    let node = node.start().await;
    let traffic = Arc::new(Traffic::new(node.url()));
    let shared = Arc::new(Shared::new(traffic.clone(), random.number()));
    let end = Instant::now() + Duration::from_secs(seconds);

    let mut clients = JoinSet::new();
    for number in 0..CLIENTS {
        let (shared, seed) = (shared.clone(), random.number());
        let mut client = Client::new(number, traffic.clone(), Random::new(seed));
        clients.spawn(async move {
            let mut random = Random::new(!seed);
            while Instant::now() < end {
                match random.below(3) {
                    0 => shared.step(&mut random).await,
                    _ => client.step().await,
                }
                tokio::time::sleep(Duration::from_millis(random.below(REST_MS))).await;
            }
            client.check_all().await;
            client
        });
    }
    let (mut watch, mut clients_left) = (Watch::default(), Vec::new());
    let collecting = collect(&node, &traffic, end);
    let watching = async {
        while Instant::now() < end {
            watch.look(&node);
            tokio::time::sleep(watch::PAUSE).await;
        }
    };
    let joining = async {
        // The first that is wrong ends the soak.
        while let Some(client) = clients.join_next().await {
            clients_left.push(client.unwrap_or_else(|failed| std::panic::resume_unwind(failed.into_panic())));
        }
    };
    tokio::join!(collecting, watching, joining);
    shared.check_all(&mut random).await;

    // Nobody pushes now, so what is on the disk a little later is what manifests name and nothing else.
    let mut named: HashMap<String, u64> = shared.named().into_iter().collect();
    named.extend(clients_left.iter().flat_map(Client::named).map(|(digest, size)| (digest.to_owned(), size)));
    let most = named.values().filter(|size| **size > SMALL_MAX).count();
    wait_until("the garbage to be gone", EMPTY_DEADLINE, async || {
        node.cli(&["gc"]).await.unwrap_or_else(|error| panic!("larder gc: {error}"));
        tokio::time::sleep(COLLECT_PAUSE).await;
        (files(&node.data_dir().join("blobs")) <= most).then_some(())
    })
    .await;
    for client in &mut clients_left {
        client.check_all().await;
    }
    shared.check_all(&mut random).await;

    traffic.print();
    watch.assert_flat();
    assert!(traffic.counted("skipped by HEAD, and pushed") > 0, "nothing was skipped");
    assert_eq!(node.log().lines().filter(|line| line.contains("WARN")).count(), 0, "a healthy node warns of nothing\n{}", node.log_tail());
}

/// Runs the collector until `end`, every third time only to hear what it would do.
async fn collect(node: &Node, traffic: &Traffic, end: Instant) {
    let mut round = 0;
    while Instant::now() < end {
        let (begin, arguments): (_, &[&str]) = (Instant::now(), if round % 3 == 2 { &["gc", "--dry-run"] } else { &["gc"] });
        node.cli(arguments).await.unwrap_or_else(|error| panic!("larder {arguments:?}: {error}"));
        traffic.count("larder gc", begin.elapsed());
        round += 1;
        tokio::time::sleep(COLLECT_PAUSE).await;
    }
}

/// Files below a folder.
fn files(folder: &std::path::Path) -> usize {
    let Ok(entries) = std::fs::read_dir(folder) else { return 0 };
    entries.filter_map(Result::ok).map(|entry| if entry.path().is_dir() { files(&entry.path()) } else { 1 }).sum()
}
