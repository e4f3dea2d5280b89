//! What it costs two nodes that hold a million records to find the ten that differ, and that nothing does.

use crate::store::{Scale, generate};
use crate::{PROGRAM, within};
use larder_harness::rig::machine::Busy;
use larder_harness::rig::proxy::{Path, Proxy};
use larder_harness::{Figure, Image, Node, Registry, figures, fleet, wait_until};
use larder_protocol::message::{Message, Request};
use larder_protocol::stamp::NodeId;
use larder_protocol::vector::{Origin, VersionVector};
use std::time::{Duration, Instant};

/// Records, nearly all of them tags of one repository. BENCH_RECORDS makes it less.
const RECORDS: u64 = 1_000_000;
const DIFFERENT: u64 = 10;
const ORIGINS: u8 = 16;
const REPOSITORY: &str = "bench/tags";
/// A new member takes all of them.
const TAKEN: Duration = Duration::from_secs(400);
const DEADLINE: Duration = Duration::from_secs(900);

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "make bench-cluster"]
async fn ten_records_of_a_million_differ() {
    let figures = within(DEADLINE, async {
        let records = std::env::var("BENCH_RECORDS").map_or(RECORDS, |count| count.parse().expect("BENCH_RECORDS is a number"));
        let node = |name: &str| Node::builder(PROGRAM).name(name).in_memory().archive("none").create();
        let mut nodes = vec![node("full"), node("empty")];
        let proxy = fleet::proxied(&mut nodes, 1);
        let (folder, scale) = (nodes[0].data_dir().to_owned(), Scale { tags: records, repositories: 0, deleted: 0 });
        tokio::task::spawn_blocking(move || generate(&folder, scale)).await.expect("generate a store");
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
            Figure::new("ten differ: bytes both ways, with the new connection", worst(&bytes), "").at_most(65_536.0),
            Figure::new("ten differ: from the connection until they are readable", worst(&seconds), "s").at_most(1.0),
            Figure::new("two nodes that know 16 origins find nothing new", nothing_new() as f64, "bytes").at_most(512.0),
        ]
    });
    figures::publish(PROGRAM, "cluster-records", &figures.await);
}

/// Cuts the two off from each other, lets each write, and joins them again; gives seconds and bytes until both have all.
async fn differ(nodes: &[Node], proxy: &Proxy, base: &Image, round: u64) -> (f64, u64) {
    proxy.set_all(Path::CUT);
    for node in nodes {
        connected(node, false).await;
    }
    let tags: Vec<String> = (0..DIFFERENT).map(|number| format!("r{round}-{number}")).collect();
    for (number, tag) in tags.iter().enumerate() {
        let registry = Registry::new(nodes[number % 2].url());
        registry.put_manifest(REPOSITORY, tag, base.media_type(), base.manifest.clone()).await.expect(201, "push a tag");
    }
    let before = proxy.passed_bytes_in_all();
    proxy.set_all(Path::CLEAR);
    connected(&nodes[0], true).await;
    let begin = Instant::now();
    for node in nodes {
        for tag in &tags {
            readable(node, tag, Duration::from_secs(30)).await;
        }
    }
    (begin.elapsed().as_secs_f64(), proxy.passed_bytes_in_all() - before)
}

async fn connected(node: &Node, is_connected: bool) {
    wait_until(&format!("{} is connected: {is_connected}", node.name()), Duration::from_secs(90), async || {
        let peers = node.cli_json(&["peers", "list"]).await;
        let is = peers.as_array()?.iter().any(|peer| peer["state"] == "connected");
        (is == is_connected).then_some(())
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

/// Bytes of the request with which a node asks for what is new, when both know so many origins and the same of them.
fn nothing_new() -> usize {
    let origins = (0..ORIGINS).map(|number| (Origin { node: NodeId([number; 32]), incarnation: 1 }, 1_000_000));
    let vector: VersionVector = origins.collect();
    Request::SyncBrief(vector.hash()).to_frame().to_bytes().len()
}
