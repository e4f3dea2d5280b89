//! How soon a tag that is pushed on one node is readable on all.

use crate::pulls::REPOSITORY;
use crate::{PROGRAM, behind_proxy, percentile, within};
use futures_util::future::join_all;
use larder_harness::rig::Host;
use larder_harness::rig::machine::Busy;
use larder_harness::rig::proxy::Path;
use larder_harness::{Figure, Image, Node, Registry, Rig, figures};
use std::time::{Duration, Instant};

const NODES: usize = 8;
const TAGS: u64 = 100;
/// Between two looks at a node that has not got it yet.
const LOOK: Duration = Duration::from_millis(1);
/// A tag that takes longer is an error and no figure.
const LATE: Duration = Duration::from_secs(20);
const DEADLINE: Duration = Duration::from_secs(400);

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "make bench-cluster"]
async fn a_tag_is_readable_everywhere_at_once() {
    let Some(mut rig) = Rig::new() else { return };
    let hosts: Vec<Host> = (0..NODES).map(|_| rig.host(0, None)).collect();
    let mut figures = Vec::new();
    within(DEADLINE, async {
        let (nodes, proxy) = behind_proxy(&hosts, |node| node).await;
        for (rtt_ms, goal) in [(1, 250.0), (80, 3.0 * 80.0 + 100.0)] {
            proxy.set_all(Path::rtt(Duration::from_millis(rtt_ms)));
            let busy = Busy::start();
            let mut seconds = Vec::new();
            for number in 0..TAGS {
                seconds.push(spread(&nodes, rtt_ms * 1000 + number).await);
            }
            let (half, most) = (percentile(&mut seconds, 50), percentile(&mut seconds, 99));
            figures.extend([
                Figure::new(format!("tag readable on 8 nodes, RTT {rtt_ms} ms, p50"), half * 1e3, "ms"),
                Figure::new(format!("tag readable on 8 nodes, RTT {rtt_ms} ms, p99"), most * 1e3, "ms").at_most(goal),
                Figure::new("machine busy", busy.percent(), "%"),
            ]);
        }
    })
    .await;
    figures::publish(PROGRAM, "cluster-tags", &figures);
}

/// Pushes an image on one of the nodes; gives the seconds from its 201 until all others answer with it.
async fn spread(nodes: &[Node], number: u64) -> f64 {
    let image = Image::from_seed(number, &[1000]);
    let (tag, from) = (format!("t{number}"), number as usize % nodes.len());
    let registry = Registry::new(nodes[from].url());
    registry.try_push_blobs(REPOSITORY, &image).await.expect("push blobs");
    registry.put_manifest(REPOSITORY, &tag, image.media_type(), image.manifest.clone()).await.expect(201, "push a manifest");
    let begin = Instant::now();
    let path = format!("/v2/{REPOSITORY}/manifests/{tag}");
    let readable = nodes.iter().map(|node| async {
        let registry = Registry::new(node.url());
        while registry.head(&path).await.status != 200 {
            assert!(begin.elapsed() < LATE, "{tag} is not on {} after {LATE:?}\n{}", node.name(), node.log_tail());
            tokio::time::sleep(LOOK).await;
        }
    });
    join_all(readable).await;
    begin.elapsed().as_secs_f64()
}
