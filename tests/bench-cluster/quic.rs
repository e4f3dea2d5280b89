//! The peers' path beside plain TCP: the same bytes, from one node's disk, with what it costs the processor.
//!
//! The cables have no rate here: the processor is the limit, so what counts is the ratio of one run, and seconds of processor for each
//! GB. A node that fetches also checks every chunk twice (BLAKE3 and SHA-256) and writes it; a client over TCP does neither.

use crate::pulls::{self, REPOSITORY};
use crate::{PROGRAM, cluster, within};
use futures_util::future::join_all;
use larder_harness::rig::machine::Busy;
use larder_harness::rig::{Host, PORT};
use larder_harness::{Content, Figure, Node, Registry, Rig, figures};
use std::time::{Duration, Instant};

const SIZE: u64 = 512 << 20;
/// Into how many blobs the same size is cut where several are pulled at a time.
const MANY: u64 = 8;
const DEADLINE: Duration = Duration::from_secs(400);
/// A copy that a node owes itself has begun after so long.
const BEGUN: Duration = Duration::from_secs(4);

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "make bench-cluster"]
async fn the_path_between_peers_beside_tcp() {
    let mut figures = Vec::new();
    for (frames, mtu) in [("", 1500), (", jumbo frames", 9000)] {
        let Some(mut rig) = Rig::new() else { return };
        let hosts: Vec<Host> = (0..2).map(|_| rig.host(0, None)).collect();
        hosts.iter().for_each(|host| host.set_mtu(mtu));
        figures.extend(within(DEADLINE, beside_tcp(&hosts, frames)).await);
    }
    figures::publish(PROGRAM, "cluster-quic", &figures);
}

async fn beside_tcp(hosts: &[Host], frames: &str) -> Vec<Figure> {
    let mut figures = Vec::new();
    // One replica: the second node gets nothing by itself but what it owns, and only what it does not own is pulled here.
    let nodes = cluster(hosts, |node| node.env("LARDER_PEERS__REPLICAS", "1")).await;
    for (what, count) in [("one blob", 1), ("8 blobs at once", MANY)] {
        let blobs = foreign(hosts, &nodes, count).await;
        let from = hosts[0].url_from(&hosts[1], PORT);
        let tcp = pulled(&from, &nodes, &blobs).await;
        let quic = pulled(&nodes[1].url(), &nodes, &blobs).await;
        figures.extend([
            Figure::new(format!("{what}, over TCP{frames}"), tcp.rate, "MB/s"),
            Figure::new(format!("{what}, over the peers' path{frames}"), quic.rate, "MB/s"),
            Figure::new(format!("{what}, the peers' path beside TCP"), quic.rate / tcp.rate, "x"),
            Figure::new(format!("{what}, processor of both nodes, TCP"), tcp.processor, "s/GB"),
            Figure::new(format!("{what}, processor of both nodes, peers' path"), quic.processor, "s/GB"),
            Figure::new("machine busy meanwhile", quic.busy, "%"),
        ]);
    }
    figures
}

struct Pulled {
    rate: f64,
    processor: f64,
    busy: f64,
}

async fn pulled(url: &str, nodes: &[Node], blobs: &[Content]) -> Pulled {
    let spent = || nodes.iter().map(Node::cpu_seconds).sum::<f64>();
    let digests: Vec<String> = blobs.iter().map(|blob| blob.digest()).collect();
    let (begin, before, busy) = (Instant::now(), spent(), Busy::start());
    let pulls = blobs.iter().zip(&digests).map(|(blob, digest)| pulls::blob(url, digest, blob.size));
    for pulled in join_all(pulls).await {
        pulled.expect("pull a blob");
    }
    let (seconds, gigabytes) = (begin.elapsed().as_secs_f64(), SIZE as f64 / 1e9);
    Pulled { rate: gigabytes * 1e3 / seconds, processor: (spent() - before) / gigabytes, busy: busy.percent() }
}

/// Pushes blobs to the first node until so many are there that the second one does not fetch by itself, and it has fetched all others.
async fn foreign(hosts: &[Host], nodes: &[Node], count: u64) -> Vec<Content> {
    let (mut found, mut numbers) = (Vec::new(), count * 1000..);
    while (found.len() as u64) < count {
        for number in numbers.by_ref().take(count as usize - found.len()) {
            let blob = Content::new(number, SIZE / count);
            Registry::new(nodes[0].url()).try_push_blob(REPOSITORY, blob).await.expect("push a blob");
            found.push(blob);
        }
        // Long enough for a copy that is owed to begin; it has a file when it is done.
        tokio::time::sleep(BEGUN).await;
        pulls::quiet(hosts).await;
        found.retain(|blob| !pulls::has(&nodes[1], &blob.digest()));
    }
    found
}
