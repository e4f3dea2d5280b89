//! A node with a million tags, a hundred thousand repositories and a million blobs: what it promises to be like then.
//!
//! `make bench-scale` does it with all of them (`SCALE=100`, in percent); as a part of the test suite, with a hundredth, which
//! shows that it works and holds the same goals.

mod store;

use larder_harness::{Figure, Image, Node, Registry, figures};
use std::time::{Duration, Instant};
use store::{Scale, generate};

const PROGRAM: &str = env!("CARGO_BIN_EXE_larder");
/// How often a page is asked for.
const TIMES: u64 = 50;
/// The most that the median of a page's time may be.
const PAGE_MS_MAX: f64 = 5.0;
/// From the start after SIGKILL until the node is ready.
const READY_MS_MAX: f64 = 2_000.0;
/// Memory of a node that only answers a few questions.
const MEMORY_MIB_MAX: f64 = 256.0;
/// More memory while all pages are read than before, once they have been read. The index's caches fill a little longer; what is kept of each row
/// would show in every reading.
const PAGING_MIB_MAX: f64 = 8.0;
/// Deleted tags that stand before a page, at full scale.
const DELETED: u64 = 100_000;
/// How long a node is left alone before its memory is read.
const IDLE: Duration = Duration::from_secs(3);
const MIB: f64 = (1 << 20) as f64;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn s12_a_million_tags_are_listed_and_started_with_as_a_few_are() {
    let percent: u64 = std::env::var("SCALE").ok().map_or(1, |text| text.parse().expect("SCALE is a number, in percent"));
    let scale = Scale { tags: 10_000 * percent, repositories: 1_000 * percent, deleted: DELETED * percent / 100 };
    let mut node = Node::builder(PROGRAM).name("scale").archive("none").create();
    let begin = Instant::now();
    let folder = node.data_dir().to_owned();
    tokio::task::spawn_blocking(move || generate(&folder, scale)).await.expect("generate a store");
    let mut figures = vec![
        Figure::new("tags of one repository", scale.tags as f64, ""),
        Figure::new("other repositories", scale.repositories as f64, ""),
        Figure::new("blobs", scale.repositories as f64 * 10.0, ""),
        Figure::new("generated in", begin.elapsed().as_secs_f64(), "s"),
    ];
    figures.push(Figure::new("first start until /readyz", start(&mut node).await, "ms"));
    let registry = Registry::new(node.url());
    for push in 0..20 {
        registry.push_image("team/before", &format!("v{push}"), &Image::from_seed(push, &[1000])).await;
    }
    node.kill();
    figures.push(Figure::new("start after SIGKILL until /readyz", start(&mut node).await, "ms").at_most(READY_MS_MAX));
    tokio::time::sleep(IDLE).await;
    figures.push(Figure::new("memory of the idle node", node.memory_bytes() as f64 / MIB, "MiB").at_most(MEMORY_MIB_MAX));

    figures.extend(pages(&registry).await);
    // The first time, the index's cache of blocks fills, to its limit.
    let filled = all_pages(&node, &registry, scale).await;
    let mut flat = all_pages(&node, &registry, scale).await;
    for _ in 0..2 {
        let next = all_pages(&node, &registry, scale).await;
        flat = if next.1 < flat.1 { next } else { flat };
    }
    figures.push(Figure::new("all pages of tags and repositories", flat.0, "s"));
    figures.push(Figure::new("memory that the first reading of them took", filled.1, "MiB"));
    figures.push(Figure::new("memory that a later reading took, least of three", flat.1, "MiB").at_most(PAGING_MIB_MAX));
    figures.extend(images(&registry).await);
    let begin = Instant::now();
    let status = node.cli_json(&["status"]).await;
    figures.push(Figure::new("larder status", begin.elapsed().as_secs_f64() * 1e3, "ms"));
    assert!(status["tags"].as_u64() > Some(scale.tags), "{status}");
    tokio::time::sleep(IDLE).await;
    figures.push(Figure::new("memory of the idle node afterwards", node.memory_bytes() as f64 / MIB, "MiB").at_most(MEMORY_MIB_MAX));
    figures::publish(PROGRAM, if percent == 100 { "scale" } else { "scale-small" }, &figures);
}

/// Starts the node; gives the milliseconds until it is ready.
async fn start(node: &mut Node) -> f64 {
    let begin = Instant::now();
    node.start().await;
    begin.elapsed().as_secs_f64() * 1e3
}

/// The first pages of the listings, and one from the middle.
async fn pages(registry: &Registry) -> Vec<Figure> {
    let mut figures = Vec::new();
    for count in [100, 1000] {
        let tags = format!("/v2/{}/tags/list?n={count}", store::LARGE);
        figures.extend(page(registry, &format!("first {count} tags"), &tags).await);
        let behind = format!("{tags}&last=build-0005000");
        figures.extend(page(registry, &format!("{count} tags further on"), &behind).await);
        figures.extend(page(registry, &format!("first {count} repositories"), &format!("/v2/_catalog?n={count}")).await);
        let behind = format!("/v2/_catalog?n={count}&last={}", store::repository(250));
        figures.extend(page(registry, &format!("{count} repositories further on"), &behind).await);
    }
    let deleted = format!("/v2/{}/tags/list?n=100", store::DELETED);
    let answer = registry.get(&deleted).await.expect(200, &deleted).json();
    assert!(answer["tags"].as_array().is_some_and(|tags| tags.iter().any(|tag| tag == store::LEFT)), "{answer}");
    figures.extend(page(registry, "the tags behind the deleted ones", &deleted).await);
    figures
}

async fn page(registry: &Registry, what: &str, path: &str) -> [Figure; 2] {
    let mut times = Vec::new();
    for _ in 0..TIMES {
        let begin = Instant::now();
        registry.get(path).await.expect(200, path);
        times.push(begin.elapsed().as_secs_f64() * 1e3);
    }
    times.sort_by(f64::total_cmp);
    let (median, longest) = (times[times.len() / 2], times[times.len() - 1]);
    [Figure::new(format!("{what}, median"), median, "ms").at_most(PAGE_MS_MAX), Figure::new(format!("{what}, longest"), longest, "ms")]
}

/// Reads all pages of both listings; gives the seconds, and how much more memory it took at most, in MiB.
async fn all_pages(node: &Node, registry: &Registry, scale: Scale) -> (f64, f64) {
    let before = node.memory_bytes();
    let (begin, mut most) = (Instant::now(), before);
    let tags = format!("/v2/{}/tags/list", store::LARGE);
    for (path, field, expected) in [(tags.as_str(), "tags", scale.tags), ("/v2/_catalog", "repositories", scale.repositories)] {
        let (mut count, mut next) = (0, Some(path.to_owned()));
        while let Some(path) = next {
            let answer = registry.get(&path).await.expect(200, &path);
            count += answer.json()[field].as_array().map_or(0, Vec::len) as u64;
            next = answer.header("link").split(['<', '>']).nth(1).map(str::to_owned);
            most = most.max(node.memory_bytes());
        }
        assert!(count >= expected, "{path} listed {count}");
    }
    (begin.elapsed().as_secs_f64(), most.saturating_sub(before) as f64 / MIB)
}

/// Pushes and pulls small images.
async fn images(registry: &Registry) -> Vec<Figure> {
    let (mut pushes, mut pulls) = (Vec::new(), Vec::new());
    for seed in 0..20 {
        let image = Image::from_seed(1_000 + seed, &[500, 4_000, 80_000]);
        let begin = Instant::now();
        registry.push_image("team/after", "v1", &image).await;
        pushes.push(begin.elapsed().as_secs_f64() * 1e3);
        let begin = Instant::now();
        registry.pull_image("team/after", "v1", &image).await;
        pulls.push(begin.elapsed().as_secs_f64() * 1e3);
    }
    [("push of an image of 4 blobs", pushes), ("its pull", pulls)]
        .into_iter()
        .map(|(what, mut times)| {
            times.sort_by(f64::total_cmp);
            Figure::new(format!("{what}, median"), times[times.len() / 2], "ms")
        })
        .collect()
}
