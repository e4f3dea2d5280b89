//! Two sites with a thin line between them: how often an image crosses it when everybody wants it.

use crate::pulls::{LAYERS_AT_ONCE, Pushed, image_size, pull_all, quiet};
use crate::{PROGRAM, cluster, within};
use futures_util::future::join_all;
use larder_harness::rig::machine::Busy;
use larder_harness::rig::{Host, Rate};
use larder_harness::{Figure, Rig, figures};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

const NODES_EACH: usize = 4;
const CAP: Rate = Rate::mbit(100);
const WAN: Rate = Rate::mbit(20);
const DEADLINE: Duration = Duration::from_secs(600);

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "make bench-cluster"]
async fn two_zones_share_what_crossed_the_line_between_them() {
    let Some(mut rig) = Rig::new() else { return };
    let second = rig.zone();
    let wan = rig.wan(0, second, Some(WAN));
    let zones: Vec<usize> = [[0; NODES_EACH], [second; NODES_EACH]].concat();
    let hosts: Vec<Host> = zones.iter().map(|zone| rig.host(*zone, Some(CAP))).collect();
    let figures = within(DEADLINE, async {
        let next = AtomicUsize::new(0);
        let nodes = cluster(&hosts, |node| {
            let zone = zones[next.fetch_add(1, Ordering::Relaxed)];
            node.env("LARDER_NODE__ZONE", format!("zone-{zone}"))
        });
        let nodes = nodes.await;
        let image = Pushed::new(1, image_size());
        let before = wan.traffic();
        image.push(&nodes[0].url()).await;
        join_all(nodes.iter().map(|node| image.visible(node))).await;
        let busy = Busy::start();
        let (near, far) = nodes.split_at(NODES_EACH);
        let ((near, near_failed), (far, far_failed)) =
            tokio::join!(pull_all(&image, near, LAYERS_AT_ONCE), pull_all(&image, far, LAYERS_AT_ONCE));
        let percent = busy.percent();
        let crossed = wan.traffic() - before;
        quiet(&hosts).await;
        let in_the_end = wan.traffic() - before;
        let slowest = |seconds: &[f64]| seconds.last().copied().unwrap_or(f64::INFINITY);
        let line = image.size as f64 / WAN.bytes(Duration::from_secs(1)) as f64;
        vec![
            Figure::new("8 nodes in 2 zones: crossed the line", image.copies(crossed.sent), "copies").at_most(1.05),
            Figure::new("the same, when owners have their copies", image.copies(in_the_end.sent), "copies"),
            Figure::new("crossed it back", image.copies(in_the_end.received), "copies"),
            Figure::new("last of the zone of the origin", slowest(&near), "s"),
            Figure::new("last of the other zone", slowest(&far), "s"),
            Figure::new("the same, beside the time of the line itself", slowest(&far) / line, "x"),
            Figure::new("pulls that failed", (near_failed + far_failed) as f64, "").at_most(0.0),
            Figure::new("machine busy", percent, "%"),
        ]
    });
    figures::publish(PROGRAM, "cluster-zones", &figures.await);
}
