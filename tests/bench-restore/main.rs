//! Everything back from nothing but the bucket, at size: a million blobs and a hundred thousand manifests, and how fast large blobs come.
//!
//! `make bench-restore` does it with all of them (`SCALE=100`, in percent); as a part of the test suite, with a hundredth, which shows that it works and
//! holds the same goals.

mod bucket;

use bucket::Generated;
use larder_harness::s3::Operation;
use larder_harness::{Content, CountingS3, Figure, Image, Node, Registry, figures, wait_until};
use std::time::{Duration, Instant};

const PROGRAM: &str = env!("CARGO_BIN_EXE_larder");
const PREFIX: &str = "fleet";
/// From `larder restore` on an empty disk until the first image was pulled.
const FIRST_PULL_S_MAX: f64 = 10.0;
/// Requests until pulls are served, besides one for each pack behind the checkpoint.
const REQUESTS_MAX: f64 = 12.0;
/// Memory while all of it goes on.
const MEMORY_MIB_MAX: f64 = 512.0;
/// Large blobs, all of them onto the disk.
const RESTORE_MB_S_MIN: f64 = 400.0;
const LONG: Duration = Duration::from_secs(900);
const MIB: f64 = (1 << 20) as f64;
/// Packs behind the checkpoint.
const TAIL: u64 = 3;

fn percent() -> u64 {
    std::env::var("SCALE").ok().map_or(1, |text| text.parse().expect("SCALE is a number, in percent"))
}

/// A restore that was asked for and goes on while others pull.
fn ask(node: &Node, words: &[&str]) -> tokio::process::Child {
    let mut command = tokio::process::Command::new(PROGRAM);
    command.args(["restore", "--json"]).args(words).arg("--data-dir").arg(node.data_dir());
    command.stdout(std::process::Stdio::piped()).kill_on_drop(true).spawn().expect("run larder restore")
}

async fn told(child: tokio::process::Child) -> serde_json::Value {
    let output = child.wait_with_output().await.expect("larder restore ends");
    assert!(output.status.success(), "larder restore failed");
    serde_json::from_slice(&output.stdout).expect("JSON")
}

/// Pulls an image by its tag as soon as that is possible; the seconds since `begin`.
async fn first_pull(registry: &Registry, image: &bucket::Made, begin: Instant) -> f64 {
    let path = format!("/v2/{}/manifests/{}", image.repository, image.tag);
    wait_until("the first manifest", LONG, async || (registry.get(&path).await.status == 200).then_some(())).await;
    for digest in &image.blobs {
        let pulled = registry.pull_blob(&image.repository, digest).await.expect("pull a blob");
        assert_eq!((pulled.status, &pulled.digest), (200, digest));
    }
    begin.elapsed().as_secs_f64()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_million_blobs_are_served_from_the_bucket_in_moments() {
    let percent = percent();
    let images = 1_000 * percent;
    let s3 = CountingS3::start().await;
    let begin = Instant::now();
    let folder = s3.object_path(PREFIX);
    let Generated { newest, random, checkpoint_size, records } =
        tokio::task::spawn_blocking(move || bucket::generate(&folder, images)).await.expect("generate a bucket");
    let mut figures = vec![
        Figure::new("manifests", images as f64, ""),
        Figure::new("blobs", (images * bucket::BLOBS) as f64, ""),
        Figure::new("records in the checkpoint", records as f64, ""),
        Figure::new("checkpoint", checkpoint_size as f64 / MIB, "MiB"),
        Figure::new("generated in", begin.elapsed().as_secs_f64(), "s"),
    ];
    let node = Node::builder(PROGRAM).name("fresh").s3(&s3, PREFIX).start().await;
    let registry = Registry::new(node.url());
    // A tail behind the checkpoint, by a node of the same cluster: restored before, and lost again.
    tail(&s3).await;
    s3.forget();
    let begin = Instant::now();
    let asked = ask(&node, &["--metadata-only", &s3.url(PREFIX)]);
    let newest_s = first_pull(&registry, &newest, begin).await;
    let random_s = first_pull(&registry, &random, begin).await;
    let restored = told(asked).await;
    let all_s = begin.elapsed().as_secs_f64();
    assert_eq!(restored["tags"].as_u64(), Some(images + TAIL), "{restored}");
    let requests = restored["requests"].as_u64().expect("a number");
    let lists = s3.count(Operation::List);
    s3.forget();
    let again = registry.pull_blob(&random.repository, &random.blobs[0]).await.expect("pull a blob");
    assert_eq!((again.status, s3.requests().len()), (200, 0), "a blob comes once");
    let fresh = bucket::made(images / 3);
    first_pull(&registry, &fresh, Instant::now()).await;
    let gets = s3.count(Operation::Get) as f64 / fresh.blobs.len() as f64;
    figures.extend([
        Figure::new("larder restore until the newest image was pulled", newest_s, "s").at_most(FIRST_PULL_S_MAX),
        Figure::new("until another one was, too", random_s, "s").at_most(FIRST_PULL_S_MAX),
        Figure::new("until all metadata was there", all_s, "s"),
        Figure::new("requests for it, without the packs of the tail", (requests - TAIL) as f64, "").at_most(REQUESTS_MAX),
        Figure::new("listings among them", lists as f64, ""),
        Figure::new("GETs for each blob", gets, "").at_most(1.0),
        Figure::new("peak memory", node.memory_peak_bytes() as f64 / MIB, "MiB").at_most(MEMORY_MIB_MAX),
    ]);
    figures::publish(PROGRAM, if percent == 100 { "restore" } else { "restore-small" }, &figures);
}

/// Restores the generated bucket on a node that then pushes a few images, and is lost.
async fn tail(s3: &CountingS3) {
    let mut node = Node::builder(PROGRAM).name("before").s3(s3, PREFIX).start().await;
    node.cli(&["restore", "--metadata-only", &s3.url(PREFIX)])
        .await
        .unwrap_or_else(|error| panic!("restore: {error}\n{}", node.log_tail()));
    for number in 0..TAIL {
        Registry::new(node.url()).push_image("team/tail", &format!("v{number}"), &Image::from_seed(number, &[20_000])).await;
        node.cli(&["archive", "flush"]).await.expect("flush");
    }
    node.lose_disk();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn large_blobs_come_as_fast_as_the_disk_takes_them() {
    let s3 = CountingS3::start().await;
    let mut first = Node::builder(PROGRAM).name("first").s3(&s3, "large").start().await;
    let registry = Registry::new(first.url());
    let (images, layers) = if percent() >= 100 { (8, [32 << 20; 8]) } else { (2, [4 << 20; 8]) };
    for seed in 0..images {
        registry.push_image("team/app", &format!("v{seed}"), &Image::from_seed(7_000 + seed, &layers)).await;
    }
    first.cli(&["archive", "flush"]).await.expect("flush");
    first.cli(&["archive", "checkpoint"]).await.expect("checkpoint");
    first.lose_disk();
    let node = Node::builder(PROGRAM).name("fresh").s3(&s3, "large").start().await;
    s3.forget();
    let begin = Instant::now();
    let restored = told(ask(&node, &[&s3.url("large")])).await;
    let seconds = begin.elapsed().as_secs_f64();
    let blobs = &restored["blobs"];
    assert_eq!((blobs["state"].as_str(), blobs["lost"].as_u64()), (Some("done"), Some(0)), "{restored}");
    let bytes = blobs["bytes"].as_u64().expect("a number") as f64;
    let content = Content::new(1, 256 << 20);
    let file = node.scratch().join("reference");
    let reference = tokio::task::spawn_blocking(move || {
        use std::io::Write;
        let mut file = std::fs::File::create(file).expect("create");
        let begin = Instant::now();
        content.chunks().for_each(|chunk| file.write_all(&chunk).expect("write"));
        file.sync_all().expect("sync");
        (256 << 20) as f64 / 1e6 / begin.elapsed().as_secs_f64()
    });
    let reference = reference.await.expect("written");
    let speed = Figure::new("full restore", bytes / 1e6 / seconds, "MB/s");
    let figures = [
        Figure::new("bytes restored", bytes / MIB, "MiB"),
        if percent() >= 100 { speed.at_least(RESTORE_MB_S_MIN) } else { speed },
        Figure::new("one file of 256 MiB onto the same disk, made and synced", reference, "MB/s"),
        Figure::new("requests for it", s3.requests().len() as f64, ""),
        Figure::new("peak memory", node.memory_peak_bytes() as f64 / MIB, "MiB").at_most(MEMORY_MIB_MAX),
    ];
    figures::publish(PROGRAM, if percent() >= 100 { "restore-large" } else { "restore-large-small" }, &figures);
}
