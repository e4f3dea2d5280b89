//! The figures that we promise, measured: a table for people, JSON for machines.
//!
//! Requests are counted by the S3 server and memory by the kernel: nothing here is what the daemon says about itself. The JSON
//! goes to larder.json in the folder `$BENCH_OUT`, or else in `<target>/bench`. A figure above its goal fails the run. What other
//! registries do on the same machine is in [`contest`]; what the core paths cost in instructions, in [`check`].

mod check;
mod contest;
mod contestants;
mod loads;
mod wire;

use larder_harness::s3::Operation;
use larder_harness::{Content, CountingS3, Figure, Image, Node, Registry, figures};
use std::time::Instant;

const PROGRAM: &str = env!("CARGO_BIN_EXE_larder");
const PUSH_COUNT: u64 = 100;
/// With the config, eight blobs: on both sides of what the index keeps itself.
const LAYER_SIZES: [u64; 7] = [500, 4_000, 20_000, 60_000, 80_000, 120_000, 200_000];
const LAYER_SIZE: u64 = 1 << 30;
const MEMORY_MAX: u64 = 200 << 20;
const MIB: f64 = (1 << 20) as f64;

/// What CNCF Distribution 2.8.2 on its s3 driver asked of S3 for one push of an image of 8 blobs and 40 MB: measured apart and with
/// larger images than those pushed here, so it is a mark to look at and no ratio of one run.
const DISTRIBUTION_REQUESTS: f64 = 228.0;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_promised_figures_hold() {
    // One after the other: they would disturb each other.
    let mut figures = requests().await;
    figures.extend(memory().await);
    figures::publish(PROGRAM, "larder", &figures);
}

/// 100 pushes of an image of eight blobs within one delay, then the flush that the delay would have brought.
async fn requests() -> Vec<Figure> {
    let s3 = CountingS3::start().await;
    let node = Node::builder(PROGRAM).name("requests").s3(&s3, "bench").env("LARDER_ARCHIVE__MAX_DELAY", "1h").start().await;
    let registry = Registry::new(node.url());
    let begin = Instant::now();
    for push in 0..PUSH_COUNT {
        registry.push_image("team/app", &format!("build-{push}"), &Image::from_seed(push, &LAYER_SIZES)).await;
    }
    let seconds = begin.elapsed().as_secs_f64();
    node.cli(&["archive", "flush"]).await.unwrap_or_else(|error| panic!("flush: {error}\n{}", node.log_tail()));
    let objects: Vec<_> = s3.objects().into_iter().filter(|(key, _)| key.ends_with(".tar")).collect();
    let puts = s3.requests().iter().filter(|request| request.operation == Operation::Put && request.key.ends_with(".tar")).count();
    let all = s3.requests().len();
    vec![
        Figure::new("pushes of an image of 8 blobs", PUSH_COUNT as f64, ""),
        Figure::new("a push took", seconds * 1000.0 / PUSH_COUNT as f64, "ms"),
        Figure::new("packs in the bucket", objects.len() as f64, "").at_most(1.0),
        Figure::new("bytes in the bucket", objects.iter().map(|(_, size)| *size as f64).sum::<f64>() / MIB, "MiB"),
        Figure::new("PUT requests to S3", puts as f64, "").at_most(objects.len() as f64),
        Figure::new("requests to S3 per push", all as f64 / PUSH_COUNT as f64, "").at_most(0.25).against(DISTRIBUTION_REQUESTS),
        // Whose bucket it is, asked and written down once in its life.
        Figure::new("other requests to S3", (all - puts) as f64, "").at_most(2.0),
    ]
}

/// A layer of 1 GiB, pushed and pulled; the peak is that of the whole process from its start on.
async fn memory() -> Vec<Figure> {
    let node = Node::builder(PROGRAM).name("memory").archive("none").start().await;
    let registry = Registry::new(node.url());
    let content = Content::new(1, LAYER_SIZE);
    let idle = node.memory_peak_bytes();
    let begin = Instant::now();
    registry.try_push_blob("team/big", content).await.expect("push 1 GiB");
    let push_seconds = begin.elapsed().as_secs_f64();
    let pushed = node.memory_peak_bytes();
    let begin = Instant::now();
    let pulled = registry.pull_blob("team/big", &content.digest()).await.expect("pull 1 GiB");
    let pull_seconds = begin.elapsed().as_secs_f64();
    assert_eq!((pulled.size, pulled.digest), (LAYER_SIZE, content.digest()));
    let both = node.memory_peak_bytes();
    vec![
        Figure::new("peak memory of an idle node", idle as f64 / MIB, "MiB"),
        Figure::new("peak memory after a push of 1 GiB", pushed as f64 / MIB, "MiB").at_most(MEMORY_MAX as f64 / MIB),
        Figure::new("peak memory after its pull", both as f64 / MIB, "MiB").at_most(MEMORY_MAX as f64 / MIB),
        Figure::new("push, with the client making and hashing it", LAYER_SIZE as f64 / MIB / push_seconds, "MiB/s"),
        Figure::new("pull, with the client hashing it", LAYER_SIZE as f64 / MIB / pull_seconds, "MiB/s"),
    ]
}
