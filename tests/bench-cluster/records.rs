//! What it costs two nodes that hold a million records to find the ten that differ, and that nothing does.

use crate::store::{Scale, generate, write_as};
use crate::{PROGRAM, within};
use larder_harness::rig::machine::Busy;
use larder_harness::rig::proxy::{Path, Proxy};
use larder_harness::{Figure, Image, Node, Registry, figures, fleet, wait_until};
use std::time::{Duration, Instant};

/// Records, nearly all of them tags of one repository. BENCH_RECORDS makes it less.
const RECORDS: u64 = 1_000_000;
const DIFFERENT: u64 = 10;
/// With the two nodes' own.
const ORIGINS: u8 = 16;
const REPOSITORY: &str = "bench/tags";
/// A new member takes all of them.
const TAKEN: Duration = Duration::from_secs(400);
const DEADLINE: Duration = Duration::from_secs(900);
/// The cables are at rest when in so long a time no more bytes pass than two nodes need to know that the other is alive.
const REST: (Duration, u64) = (Duration::from_secs(20), 12_000);
/// Two nodes compare what they hold at least once in this time.
const IDLE: Duration = Duration::from_secs(80);

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "make bench-cluster"]
async fn ten_records_of_a_million_differ() {
    let figures = within(DEADLINE, async {
        let records = std::env::var("BENCH_RECORDS").map_or(RECORDS, |count| count.parse().expect("BENCH_RECORDS is a number"));
        let node = |name: &str| Node::builder(PROGRAM).name(name).in_memory().archive("none").create();
        let mut nodes = vec![node("full"), node("empty")];
        let proxy = fleet::proxied(&mut nodes, 1);
        let (folder, scale) = (nodes[0].data_dir().to_owned(), Scale { tags: records, repositories: 0, deleted: 0 });
        let filled = tokio::task::spawn_blocking(move || {
            // The one who generates is an origin as well.
            (8..5 + ORIGINS).for_each(|node| write_as(&folder, node));
            generate(&folder, scale);
        });
        filled.await.expect("generate a store");
        let base = Image::from_seed(1, &[1000]);
        let (busy, begin) = (Busy::start(), Instant::now());
        nodes[0].start().await;
        Registry::new(nodes[0].url()).push_image(REPOSITORY, "last", &base).await;
        nodes[1].start().await;
        fleet::join(&nodes[0], &nodes[1]).await;
        readable(&nodes[1], "last", TAKEN).await;
        wait_until("nothing is missing", TAKEN, async || {
            let peers = nodes[0].cli_json(&["peers", "list"]).await;
            peers.as_array()?.iter().all(|peer| peer["behind"] == 0).then_some(())
        })
        .await;
        let (taken, passed) = (begin.elapsed().as_secs_f64(), proxy.passed_bytes_in_all());
        let busy_taking = busy.percent();
        // What it owns of the generated blobs is not counted as anything's cost.
        at_rest(&proxy).await;
        let before = proxy.passed_bytes_in_all();
        tokio::time::sleep(IDLE).await;
        let idle = (proxy.passed_bytes_in_all() - before) as f64 / IDLE.as_secs_f64();

        // One is away while ten tags are moved, half of them here and half of them there.
        let (mut seconds, mut bytes) = (Vec::new(), Vec::new());
        for round in 0..5 {
            let (second, byte) = differ(&nodes, &proxy, &base, round).await;
            seconds.push(second);
            bytes.push(byte as f64);
        }
        println!("rounds: {seconds:.3?} s, {bytes:?} bytes");
        let worst = |numbers: &[f64]| numbers.iter().copied().fold(0.0, f64::max);
        vec![
            Figure::new("records", records as f64, ""),
            Figure::new("a new member takes all of them in", taken, "s"),
            Figure::new("bytes for each record", passed as f64 / records as f64, ""),
            Figure::new("machine busy meanwhile", busy_taking, "%"),
            Figure::new("ten differ: bytes both ways in the first second of a new connection", worst(&bytes), "").at_most(65_536.0),
            Figure::new("ten differ: from before the connection until they are readable", worst(&seconds), "s").at_most(1.0),
            // Most of it asks whether the other is alive. What an exchange is of it, `peers::tests::costs` counts, and that it is at most 512.
            Figure::new("idle, 16 origins: bytes both ways in a second", idle, ""),
        ]
    });
    figures::publish(PROGRAM, "cluster-records", &figures.await);
}

/// Cuts the two off from each other, lets each write, and joins them again; gives seconds and bytes until both have all.
async fn differ(nodes: &[Node], proxy: &Proxy, base: &Image, round: u64) -> (f64, u64) {
    proxy.set_all(Path::CUT);
    for node in nodes {
        let up = async || (!is_connected(node).await).then_some(());
        wait_until(&format!("{} has lost its peer", node.name()), Duration::from_secs(90), up).await;
    }
    let tags: Vec<String> = (0..DIFFERENT).map(|number| format!("r{round}-{number}")).collect();
    for (number, tag) in tags.iter().enumerate() {
        let registry = Registry::new(nodes[number % 2].url());
        registry.put_manifest(REPOSITORY, tag, base.media_type(), base.manifest.clone()).await.expect(201, "push a tag");
    }
    let before = proxy.passed_bytes_in_all();
    proxy.set_all(Path::CLEAR);
    let begin = wait_until("they are connected", Duration::from_secs(90), async || {
        let before = Instant::now();
        is_connected(&nodes[0]).await.then_some(before)
    })
    .await;
    for node in nodes {
        for tag in &tags {
            readable(node, tag, Duration::from_secs(30)).await;
        }
    }
    let seconds = begin.elapsed().as_secs_f64();
    tokio::time::sleep_until((begin + Duration::from_secs(1)).into()).await;
    (seconds, proxy.passed_bytes_in_all() - before)
}

/// Whether there is a connection, even one over which nothing is heard at the moment.
async fn is_connected(node: &Node) -> bool {
    let peers = node.cli_json(&["peers", "list"]).await;
    peers.as_array().is_some_and(|peers| peers.iter().any(|peer| peer["bytes_in"].is_u64()))
}

async fn at_rest(proxy: &Proxy) {
    wait_until("all blobs are where they should be", TAKEN, async || {
        let before = proxy.passed_bytes_in_all();
        tokio::time::sleep(REST.0).await;
        (proxy.passed_bytes_in_all() - before < REST.1).then_some(())
    })
    .await;
}

async fn readable(node: &Node, tag: &str, deadline: Duration) {
    let path = format!("/v2/{REPOSITORY}/manifests/{tag}");
    wait_until(&format!("{tag} is on {}", node.name()), deadline, async || {
        (Registry::new(node.url()).head(&path).await.status == 200).then_some(())
    })
    .await;
}
