//! The five nodes, the proxy between them, and what was done to their clocks.

use larder_harness::rig::proxy::{Path, Proxy};
use larder_harness::{Node, fleet, wait_until};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

pub const COUNT: usize = 5;
/// What makes a program see another time, as Debian has it.
const CLOCK_LIBRARY: &str = "/usr/lib/x86_64-linux-gnu/faketime/libfaketimeMT.so.1";
/// Until all nodes are connected again after everything was mended: the idle timeout of connections, and calls with a pause between.
const MENDED: Duration = Duration::from_secs(90);

pub struct Fleet {
    pub nodes: Vec<Node>,
    pub proxy: Proxy,
    /// Counts the disks of each node.
    lives: Arc<Vec<AtomicU64>>,
    /// Whether clocks can be shifted.
    pub has_clocks: bool,
}

impl Fleet {
    pub async fn start(seed: u64) -> Self {
        let has_clocks = PathBuf::from(CLOCK_LIBRARY).exists();
        if !has_clocks {
            println!("skipped: clocks are not shifted, {CLOCK_LIBRARY} is missing");
        }
        let mut nodes: Vec<Node> = (1..=COUNT)
            .map(|number| {
                let node = Node::builder(env!("CARGO_BIN_EXE_larder")).name(&format!("node-{number}")).archive("none");
                node.in_memory().env("LARDER_HTTP__SHUTDOWN_GRACE", "1s").env("LARDER_LOG__LEVEL", "info,larder::peers=debug").create()
            })
            .collect();
        let proxy = fleet::proxied(&mut nodes, seed);
        for node in nodes.iter_mut().filter(|_| has_clocks) {
            let file = node.scratch().join("clock");
            std::fs::write(&file, "+0").expect("write a file");
            node.set_env("LD_PRELOAD", Some(CLOCK_LIBRARY));
            node.set_env("FAKETIME_TIMESTAMP_FILE", Some(&file.to_string_lossy()));
            // The wall clock jumps, and no timer does.
            node.set_env("FAKETIME_NO_CACHE", Some("1"));
            node.set_env("FAKETIME_DONT_FAKE_MONOTONIC", Some("1"));
        }
        fleet::found(&mut nodes).await;
        let lives = Arc::new((0..COUNT).map(|_| AtomicU64::new(0)).collect());
        Self { nodes, proxy, lives, has_clocks }
    }

    pub fn urls(&self) -> Vec<String> {
        self.nodes.iter().map(Node::url).collect()
    }

    pub fn lives(&self) -> Arc<Vec<AtomicU64>> {
        Arc::clone(&self.lives)
    }

    /// A node has another disk from now on.
    pub fn begin_life(&self, node: usize) {
        self.lives[node].fetch_add(1, Ordering::SeqCst);
    }

    /// Shifts a node's wall clock by so many milliseconds from the right time.
    pub fn shift_clock(&self, node: usize, milliseconds: i64) {
        let file = self.nodes[node].scratch().join("clock");
        // In one step: the node may look at any time.
        let new = file.with_extension("new");
        std::fs::write(&new, format!("{:+.3}", milliseconds as f64 / 1000.0)).expect("write a file");
        std::fs::rename(&new, &file).expect("replace a file");
    }

    /// Everything works again: the network, the clocks, and every node runs and reaches every other one.
    pub async fn mend(&mut self) {
        self.proxy.set_all(Path::CLEAR);
        for number in 0..COUNT {
            if self.has_clocks {
                self.shift_clock(number, 0);
            }
            if !self.nodes[number].is_running() {
                self.nodes[number].kill();
                self.nodes[number].start().await;
            }
        }
        for node in &self.nodes {
            wait_until(&format!("{} is connected with all others again", node.name()), MENDED, async || {
                let peers = node.cli_json(&["peers", "list"]).await;
                let connected = peers.as_array()?.iter().filter(|peer| peer["state"] == "connected").count();
                // Members that lost their disk and their key are in the list too, and gone for good.
                (connected == COUNT - 1).then_some(())
            })
            .await;
        }
    }
}
