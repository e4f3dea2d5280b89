//! What a crowd costs: figures of many nodes on hosts with cables of a known rate. `make bench-cluster` runs them, one by one.
//!
//! The cables are slow enough that the network is the limit and not the processors of the one machine below all hosts; how busy those
//! were stands beside every figure. Data folders are in memory: sixteen hosts have sixteen disks, and this machine has one. Bytes are
//! counted by the kernel on the cables, headers and repeats included, and every byte that a client gets is verified.
//!
//! BENCH_QUICK=1 leaves out what is measured beside CNCF Distribution, which takes minutes; BENCH_MIB=32 makes images smaller,
//! BENCH_TRACE=1 tells of every second how full the cables were.

mod cables;
mod fan_out;
mod fetch_through;
mod origin_lost;
mod pulls;
mod quic;
mod records;
#[path = "../scale/store.rs"]
#[allow(dead_code)]
mod store;
mod tags;
mod zones;

use larder_harness::rig::Host;
use larder_harness::rig::proxy::Proxy;
use larder_harness::{Node, NodeBuilder, fleet};
use std::time::Duration;

const PROGRAM: &str = env!("CARGO_BIN_EXE_larder");

/// A node on a host, with its data in memory and no archive.
fn node(number: usize, host: &Host) -> NodeBuilder {
    Node::builder(PROGRAM).name(&format!("node-{number:02}")).on(host).in_memory().archive("none")
}

/// A cluster of one node on each host.
async fn cluster(hosts: &[Host], with: impl Fn(NodeBuilder) -> NodeBuilder) -> Vec<Node> {
    let mut nodes: Vec<Node> = hosts.iter().enumerate().map(|(number, host)| with(node(number + 1, host)).create()).collect();
    fleet::found(&mut nodes).await;
    nodes
}

/// The same with a proxy between all of them.
async fn behind_proxy(hosts: &[Host], with: impl Fn(NodeBuilder) -> NodeBuilder) -> (Vec<Node>, Proxy) {
    let mut nodes: Vec<Node> = hosts.iter().enumerate().map(|(number, host)| with(node(number + 1, host)).create()).collect();
    let proxy = fleet::proxied(&mut nodes, 1);
    fleet::found(&mut nodes).await;
    (nodes, proxy)
}

/// Of a hundred of these numbers so many are smaller, or as large.
fn percentile(numbers: &mut [f64], percent: usize) -> f64 {
    numbers.sort_by(f64::total_cmp);
    numbers[(numbers.len() * percent).div_ceil(100).saturating_sub(1)]
}

/// Ends a scenario that does not end by itself.
async fn within<T>(deadline: Duration, scenario: impl Future<Output = T>) -> T {
    tokio::time::timeout(deadline, scenario).await.unwrap_or_else(|_| panic!("not done after {deadline:?}"))
}

fn is_quick() -> bool {
    std::env::var_os("BENCH_QUICK").is_some()
}
