//! Memory and open files of the node over time, as the kernel knows them.

use larder_harness::Node;
use std::time::Duration;

/// More memory after the warm-up than this is a leak: caches and write buffers of the index come and go within it.
const MEMORY_GROWTH_MAX: u64 = 64 << 20;
/// Never more than the node may have with 64 transfers.
const MEMORY_MAX: u64 = 512 << 20;
/// More open files after the warm-up than this: the index opens a few more as it gets larger, clients come and go.
const FILES_GROWTH_MAX: u64 = 96;
/// Between two looks.
pub const PAUSE: Duration = Duration::from_millis(500);

/// What was seen, in order.
#[derive(Default)]
pub struct Watch {
    memory: Vec<u64>,
    files: Vec<u64>,
}

impl Watch {
    /// Looks once.
    pub fn look(&mut self, node: &Node) {
        self.memory.push(node.memory_bytes());
        self.files.push(node.open_files());
    }

    /// Asserts that the last quarter is like the second: by then everything that is filled once was filled.
    pub fn assert_flat(&self) {
        let (memory, files) = (quarters(&self.memory), quarters(&self.files));
        let mib: Vec<u64> = memory.iter().map(|bytes| bytes >> 20).collect();
        let most = self.memory.iter().max().copied().unwrap_or(0);
        println!("memory by quarters: {mib:?} MiB, {} at most; open files by quarters: {files:?}", most >> 20);
        assert!(memory[3] <= memory[1] + MEMORY_GROWTH_MAX, "memory grows: {mib:?} MiB");
        assert!(most <= MEMORY_MAX, "{} MiB of memory", most >> 20);
        assert!(files[3] <= files[1] + FILES_GROWTH_MAX, "open files grow: {files:?}");
    }
}

/// The median of each quarter.
fn quarters(samples: &[u64]) -> [u64; 4] {
    let quarter = samples.len() / 4;
    assert!(quarter > 0, "too short a time for four quarters: {} samples", samples.len());
    std::array::from_fn(|i| {
        let mut part = samples[i * quarter..(i + 1) * quarter].to_vec();
        part.sort_unstable();
        part[quarter / 2]
    })
}
