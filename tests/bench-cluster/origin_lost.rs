//! The node that an image was pushed to dies while everybody pulls it (F22).
//!
//! Its cable is twice as fast as the others', and everybody asks for all layers at once, so that all of the image is somewhere else when they have 60 % of
//! it: what nobody has asked for yet would be lost with it.

use crate::pulls::{Pushed, image_size, pull_all, quiet};
use crate::{PROGRAM, cluster, within};
use futures_util::future::join_all;
use larder_harness::rig::machine::Busy;
use larder_harness::rig::{Host, Rate};
use larder_harness::{Figure, Node, Rig, figures, wait_until};
use std::time::Duration;

const NODES: usize = 9;
const CAP: Rate = Rate::mbit(50);
const CAP_OF_ORIGIN: Rate = Rate::mbit(100);
const DEADLINE: Duration = Duration::from_secs(600);
/// What the others have of the image, on the average, when the origin goes.
const KILLED_AT: f64 = 0.6;
/// Copies that the origin must have sent by then: one, with the headers of its packets.
const SENT_AT_LEAST: f64 = 1.03;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "make bench-cluster"]
async fn f22_all_finish_without_the_origin() {
    let Some(mut rig) = Rig::new() else { return };
    let hosts: Vec<Host> = (0..NODES).map(|number| rig.host(0, Some(if number == 0 { CAP_OF_ORIGIN } else { CAP }))).collect();
    let figures = within(DEADLINE, async {
        let mut nodes = cluster(&hosts, |node| node).await;
        let whole = Pushed::new(1, image_size());
        push(&whole, &nodes).await;
        let (undisturbed, failed_before) = pull_all(&whole, &nodes[1..], usize::MAX).await;
        quiet(&hosts).await;

        let image = Pushed::new(2, image_size());
        let before: Vec<_> = hosts.iter().map(Host::traffic).collect();
        push(&image, &nodes).await;
        let busy = Busy::start();
        let (origin, others) = nodes.split_first_mut().expect("there are nodes");
        let killed = async {
            wait_until("the others have enough to go on", DEADLINE, async || {
                let received: u64 = (1..NODES).map(|number| (hosts[number].traffic() - before[number]).received).sum();
                let sent = image.copies((hosts[0].traffic() - before[0]).sent);
                let share = image.copies(received) / (NODES - 1) as f64;
                (share >= KILLED_AT && sent >= SENT_AT_LEAST).then_some((share, sent))
            })
            .await
        };
        let killed = async {
            let at = killed.await;
            origin.kill();
            println!("origin killed when the others had {:.2} of it, and it had sent {:.2} copies", at.0, at.1);
            at
        };
        let ((seconds, failed), killed_at) = tokio::join!(pull_all(&image, others, usize::MAX), killed);
        let last = |seconds: &[f64]| seconds.last().copied().unwrap_or(f64::INFINITY);
        vec![
            Figure::new("8 nodes pull at once, the origin lives: the last after", last(&undisturbed), "s"),
            Figure::new("pulls that failed then", failed_before as f64, "").at_most(0.0),
            Figure::new("the origin is killed when the others have", killed_at.0 * 100.0, "%"),
            Figure::new("it has sent by then", killed_at.1, "copies"),
            Figure::new("pulls that failed", failed as f64, "").at_most(0.0),
            Figure::new("the last is done after", last(&seconds), "s"),
            Figure::new("beside the time with the origin", last(&seconds) / last(&undisturbed), "x").at_most(1.20),
            Figure::new("machine busy", busy.percent(), "%"),
        ]
    });
    figures::publish(PROGRAM, "cluster-origin-lost", &figures.await);
}

async fn push(image: &Pushed, nodes: &[Node]) {
    image.push(&nodes[0].url()).await;
    join_all(nodes.iter().map(|node| image.visible(node))).await;
}
