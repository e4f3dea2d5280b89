//! A pull through a node that has to get it from another one first.

use crate::pulls::{self, REPOSITORY, quiet};
use crate::{PROGRAM, behind_proxy, cluster, percentile, within};
use larder_harness::rig::machine::Busy;
use larder_harness::rig::proxy::Path;
use larder_harness::rig::{Host, Rate};
use larder_harness::{Content, Figure, Node, Registry, Rig, figures};
use std::time::Duration;

const NODES: usize = 3;
/// Blobs of which the first byte is waited for, at each distance.
const BLOBS: u64 = 60;
const BLOB_SIZE: u64 = 8 << 20;
const LARGE_SIZE: u64 = 192 << 20;
const CAP: Rate = Rate::mbit(200);
const DEADLINE: Duration = Duration::from_secs(400);

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "make bench-cluster"]
async fn the_first_byte_comes_soon() {
    let Some(mut rig) = Rig::new() else { return };
    let hosts: Vec<Host> = (0..NODES).map(|_| rig.host(0, None)).collect();
    let mut figures = Vec::new();
    within(DEADLINE, async {
        let (nodes, proxy) = behind_proxy(&hosts, |node| node.env("LARDER_PEERS__REPLICAS", "1")).await;
        for rtt_ms in [1, 20, 80] {
            let busy = Busy::start();
            let blobs: Vec<Content> = (0..BLOBS).map(|blob| Content::new(rtt_ms * 1000 + blob, BLOB_SIZE)).collect();
            for blob in &blobs {
                Registry::new(nodes[0].url()).try_push_blob(REPOSITORY, *blob).await.expect("push a blob");
            }
            quiet(&hosts).await;
            proxy.set_all(Path::rtt(Duration::from_millis(rtt_ms)));
            let mut seconds = Vec::new();
            // Owners have theirs already; what is neither here nor on its way is what a pull has to wait for.
            for blob in blobs.iter().filter(|blob| !has(&nodes[1], blob)) {
                seconds.push(pulls::blob(&nodes[1].url(), &blob.digest(), blob.size).await.expect("pull a blob").first_byte);
            }
            proxy.set_all(Path::CLEAR);
            let (median, slow) = (percentile(&mut seconds, 50), percentile(&mut seconds, 90));
            let goal = (2 * rtt_ms + 50) as f64;
            figures.extend([
                Figure::new(format!("first byte through another node, RTT {rtt_ms} ms, median"), median * 1e3, "ms").at_most(goal),
                Figure::new(format!("the same, nine of ten of {}", seconds.len()), slow * 1e3, "ms"),
                Figure::new("machine busy", busy.percent(), "%"),
            ]);
        }
    })
    .await;
    figures::publish(PROGRAM, "cluster-first-byte", &figures);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "make bench-cluster"]
async fn a_pull_through_another_node_is_as_fast_as_a_direct_one() {
    let Some(mut rig) = Rig::new() else { return };
    let hosts: Vec<Host> = (0..NODES).map(|_| rig.host(0, Some(CAP))).collect();
    let figures = within(DEADLINE, async {
        let nodes = cluster(&hosts, |node| node.env("LARDER_PEERS__REPLICAS", "1")).await;
        // One of a few is owned by neither of the other two.
        let mut seed = 0;
        let blob = loop {
            let blob = Content::new(seed, LARGE_SIZE);
            Registry::new(nodes[0].url()).try_push_blob(REPOSITORY, blob).await.expect("push a blob");
            quiet(&hosts).await;
            if !nodes[1..].iter().any(|node| has(node, &blob)) {
                break blob;
            }
            seed += 1;
        };
        let from = hosts[0].url_from(&hosts[1], larder_harness::rig::PORT);
        let direct = pulls::blob(&from, &blob.digest(), blob.size).await.expect("pull directly");
        let busy = Busy::start();
        let through = pulls::blob(&nodes[1].url(), &blob.digest(), blob.size).await.expect("pull through a node");
        let rate = |seconds: f64| blob.size as f64 / 1e6 / seconds;
        vec![
            Figure::new("a direct pull, over TCP", rate(direct.seconds), "MB/s"),
            Figure::new("a pull through a node that has to get it", rate(through.seconds), "MB/s"),
            Figure::new("beside the direct pull", direct.seconds / through.seconds, "x").at_least(0.9),
            Figure::new("machine busy", busy.percent(), "%"),
        ]
    });
    figures::publish(PROGRAM, "cluster-fetch-through", &figures.await);
}

fn has(node: &Node, blob: &Content) -> bool {
    pulls::has(node, &blob.digest())
}
