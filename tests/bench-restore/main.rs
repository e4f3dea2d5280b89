//! A node back from nothing but the bucket: how soon it serves, what that asks of the bucket, how fast all bytes come, and with how much memory.
//!
//! `make bench-restore` does it with 1,000,000 blobs in 100,000 images, and with gigabytes in large layers, one of them of 3 GiB (`SCALE=100`, in percent);
//! as a part of the test suite, with a hundredth. Data folders are in memory: a disk would be what is measured.

mod bucket;
mod encrypted;

use bucket::{BLOBS, Image, Size, fill, image};
use larder_harness::s3::Operation;
use larder_harness::{Content, CountingS3, Figure, Kind, Node, Registry, figures};
use larder_protocol::digest::Digest;
use std::collections::HashMap;
use std::time::{Duration, Instant};

const PROGRAM: &str = env!("CARGO_BIN_EXE_larder");
const MIB: f64 = (1 << 20) as f64;
/// Packs behind the checkpoint.
const TAIL: u64 = 5;
/// From `larder restore` until an image was pulled.
const FIRST_PULL_S_MAX: f64 = 10.0;
const REQUESTS_MAX: f64 = 12.0;
const RESTORE_MIB_MAX: f64 = 512.0;
const LAYER_MIB_MAX: f64 = 200.0;
const RATE_MIN: f64 = 400.0;
/// Beside the largest one, so many layers of [`LAYER`], at full scale.
const LAYERS: u64 = 16;
const LAYER: u64 = 64 << 20;
const LARGEST: u64 = 3 << 30;

fn percent() -> u64 {
    std::env::var("SCALE").ok().map_or(1, |text| text.parse().expect("SCALE is a number, in percent"))
}

/// Pulls an image, and checks each byte; `false` while it is not there.
async fn pull(registry: &Registry, image: &Image) -> bool {
    let manifest = registry.get(&format!("/v2/{}/manifests/{}", image.repository, image.tag)).await;
    if manifest.status != 200 {
        return false;
    }
    assert_eq!(manifest.body, image.manifest);
    for bytes in &image.blobs {
        let path = format!("/v2/{}/blobs/{}", image.repository, Digest::sha256(bytes));
        assert_eq!(registry.get(&path).await.expect(200, &path).body, bytes);
    }
    true
}

/// The seconds until an image can be pulled.
async fn first_pull(node: &Node, image: &Image, begin: Instant) -> f64 {
    let registry = Registry::new(node.url());
    while !pull(&registry, image).await {
        assert!(begin.elapsed() < Duration::from_secs(300), "{}:{} does not come\n{}", image.repository, image.tag, node.log_tail());
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    begin.elapsed().as_secs_f64()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_is_back_from_the_bucket_and_serves_at_once() {
    let percent = percent();
    let size = Size { images: 1_000 * percent, tail: TAIL };
    let s3 = CountingS3::start().await;
    let (folder, id) = (s3.bucket_dir(), s3.url("fleet"));
    let begin = Instant::now();
    tokio::task::spawn_blocking(move || fill(&folder, &id, size)).await.expect("fill a bucket");
    let mut figures = vec![
        Figure::new("images in the bucket", size.images as f64, ""),
        Figure::new("blobs", (size.images * BLOBS as u64) as f64, ""),
        Figure::new("packs behind the checkpoint", TAIL as f64, ""),
        Figure::new("the bucket was made in", begin.elapsed().as_secs_f64(), "s"),
    ];
    let node = Node::builder(PROGRAM).name("many").in_memory().s3(&s3, "fleet").start().await;
    // The newest, which comes first; one of the tail; and one in the middle, which is read before its turn.
    let (newest, tail, middle) = (image(size.images - 1), image(size.images + TAIL - 1), image(size.images / 3));
    let begin = Instant::now();
    let url = s3.url("fleet");
    let command = ["restore", "--metadata-only", url.as_str()];
    let restoring = async {
        let restored = node.cli_json(&command).await;
        (restored, begin.elapsed().as_secs_f64())
    };
    let ((restored, all_s), newest_s, tail_s, middle_s) =
        tokio::join!(restoring, first_pull(&node, &newest, begin), first_pull(&node, &tail, begin), first_pull(&node, &middle, begin));
    assert_eq!(restored["tags"].as_u64(), Some(size.images + TAIL), "{restored}");
    assert_eq!(restored["skipped"].as_array().map(Vec::len), Some(0), "{restored}");
    let asked = s3.requests();
    // Of packs, the ends of the tail, the blobs that were pulled, and some that this node, being alone, owes a copy of: each by one request.
    let mut of_packs = HashMap::<(&str, &str), usize>::new();
    for request in asked.iter().filter(|request| request.operation == Operation::Get && request.key.contains("/packs/")) {
        *of_packs.entry((&request.key, &request.range)).or_default() += 1;
    }
    assert!(of_packs.len() as u64 >= TAIL + 3 * BLOBS as u64, "{of_packs:?}");
    let most = of_packs.values().copied().max().unwrap_or(0);
    let others = asked.len() - of_packs.values().sum::<usize>();
    figures.extend([
        Figure::new("first pull: the image that was pushed last", newest_s.min(tail_s), "s").at_most(FIRST_PULL_S_MAX),
        Figure::new("first pull: any other", middle_s, "s").at_most(FIRST_PULL_S_MAX),
        Figure::new("all metadata is here", all_s, "s"),
        Figure::new("requests, beside one for each blob and pack of the tail", others as f64, "").at_most(REQUESTS_MAX),
        Figure::new("most requests for one blob", most as f64, "").at_most(1.0),
        Figure::new("peak memory of the restore", node.memory_peak_bytes() as f64 / MIB, "MiB").at_most(RESTORE_MIB_MAX),
    ]);
    figures::publish(PROGRAM, if percent == 100 { "restore-many" } else { "restore-many-short" }, &figures);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn large_layers_go_into_packs_and_come_back_without_standing_in_memory() {
    let percent = percent();
    let s3 = CountingS3::start().await;
    let mut node =
        Node::builder(PROGRAM).name("large").in_memory().s3(&s3, "fleet").env("LARDER_STORE__DURABILITY", "relaxed").start().await;
    let registry = Registry::new(node.url());
    let sizes = std::iter::once(LARGEST).chain(std::iter::repeat_n(LAYER, LAYERS as usize));
    let layers: Vec<Content> = sizes.enumerate().map(|(seed, size)| Content::new(7_000 + seed as u64, size * percent / 100)).collect();
    let total: u64 = layers.iter().map(|layer| layer.size).sum();
    for (number, layer) in layers.iter().enumerate() {
        let image = larder_harness::Image::of_layers(Kind::Oci, number as u64, vec![*layer]);
        registry.push_image("team/app", &format!("v{number}"), &image).await;
    }
    node.cli(&["archive", "flush"]).await.expect("flush");
    let peak = node.memory_peak_bytes() as f64 / MIB;
    let uploads = std::fs::read_dir(node.data_dir().join("uploads")).map_or(0, Iterator::count);
    assert_eq!(uploads, 0, "nothing is spooled");
    let packs = s3.objects().iter().filter(|(key, _)| key.contains("/packs/")).count();
    node.lose_disk();
    let fresh = Node::builder(PROGRAM).name("fresh").in_memory().s3(&s3, "fleet").start().await;
    let begin = Instant::now();
    let restored = fresh.cli_json(&["restore", &s3.url("fleet")]).await;
    let restored_s = begin.elapsed().as_secs_f64();
    assert_eq!((restored["blobs"]["state"].as_str(), restored["blobs"]["lost"].as_u64()), (Some("done"), Some(0)), "{restored}");
    let rate = Figure::new("all of it restored", total as f64 / 1e6 / restored_s, "MB/s");
    // A hundredth is here in a moment, most of which is waiting for the next look.
    let rate = if percent == 100 { rate.at_least(RATE_MIN) } else { rate };
    let figures = [
        Figure::new("bytes of layers", total as f64 / 1e9, "GB"),
        Figure::new("the largest layer", layers[0].size as f64 / MIB, "MiB"),
        Figure::new("packs", packs as f64, ""),
        Figure::new("peak memory, pushed and archived", peak, "MiB").at_most(LAYER_MIB_MAX),
        rate,
        Figure::new("peak memory of the restore", fresh.memory_peak_bytes() as f64 / MIB, "MiB").at_most(RESTORE_MIB_MAX),
    ];
    figures::publish(PROGRAM, if percent == 100 { "restore-large" } else { "restore-large-short" }, &figures);
}
