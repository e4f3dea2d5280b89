//! A month of pushes, and what the bucket sees of them.
//!
//! 10,000 pushes (`BENCH_PUSHES`; a few in the suite) of 8 blobs come at random moments of a month, their sizes spread as sizes of layers are (log-normal,
//! 40 MB for an image). They go through the real daemon, one after the other; the month passes on a clock of its own: where the
//! oldest content would have waited for the delay before the next push, the daemon is told to seal. What is large enough is sealed by the daemon itself. Sizes
//! are a four-hundredth of the real ones, and with them the size of a pack; what is in a pack beside them is not, so the bytes are counted apart.
//!
//! Beside it, docker-registry with its s3 driver takes a sample of the same pushes, on the same S3 server.

mod distribution;

use larder_harness::s3::Operation;
use larder_harness::{CountingS3, Figure, Image, Node, Random, Registry, figures, wait_until};
use std::time::Duration;

const PROGRAM: &str = env!("CARGO_BIN_EXE_larder");
const MONTH_S: f64 = 30.0 * 86_400.0;
const BLOBS: usize = 8;
/// Of the model's sizes and of `archive.pack_size`.
const SCALE: f64 = 400.0;
const IMAGE_SIZE: f64 = 40e6;
/// Spread of the logarithm of a layer's size.
const SIGMA: f64 = 1.2;
const WEEK_S: f64 = 7.0 * 86_400.0;
/// The delay, and the most requests for each push.
const DIALS: [(&str, f64, f64); 3] = [("60 s", 60.0, 0.85), ("15 min", 900.0, 0.25), ("1 h", 3600.0, 0.10)];
const SENT_MAX: f64 = 1.3;
/// How long a node is watched that has nothing to do.
const IDLE: Duration = Duration::from_secs(3);

/// A push of the month: when, and how large its blobs are.
struct Push {
    at_s: f64,
    sizes: Vec<u64>,
}

fn uniform(random: &mut Random) -> f64 {
    (random.below(1 << 53) as f64 + 1.0) / (1u64 << 53) as f64
}

/// The month: moments of a Poisson process, sizes log-normal with the model's mean.
fn month(pushes: u64) -> Vec<Push> {
    let mut random = Random::new(11);
    // A shorter sample has the same gaps as the whole.
    let gap = MONTH_S / 10_000.0;
    let mean = IMAGE_SIZE / SCALE / BLOBS as f64;
    let mu = mean.ln() - SIGMA * SIGMA / 2.0;
    let mut at_s = 0.0;
    let push = |_| {
        at_s -= gap * uniform(&mut random).ln();
        let size = |random: &mut Random| {
            let normal = (-2.0 * uniform(random).ln()).sqrt() * (std::f64::consts::TAU * uniform(random)).cos();
            ((mu + SIGMA * normal).exp() as u64).max(1)
        };
        // The configuration is one of the eight, and small.
        Push { at_s, sizes: (1..BLOBS).map(|_| size(&mut random)).collect() }
    };
    (0..pushes).map(push).collect()
}

fn image(number: usize, push: &Push) -> Image {
    Image::from_seed(100_000 + number as u64, &push.sizes)
}

async fn flush(node: &Node) {
    node.cli(&["archive", "flush"]).await.unwrap_or_else(|error| panic!("flush: {error}\n{}", node.log_tail()));
}

/// Sends the month through a node; the figures of this dial.
async fn replay(pushes: &[Push], (name, delay_s, most): (&str, f64, f64)) -> Vec<Figure> {
    let s3 = CountingS3::start().await;
    let pack_size = format!("{}KiB", 512 * 1024 / SCALE as u64);
    let builder = Node::builder(PROGRAM).name("month").s3(&s3, "month").env("LARDER_STORE__DURABILITY", "relaxed");
    let node = builder.env("LARDER_ARCHIVE__MAX_DELAY", "30d").env("LARDER_ARCHIVE__PACK_SIZE", pack_size).start().await;
    let registry = Registry::new(node.url());
    let (mut oldest_s, mut pushed, mut checkpoint_s) = (None::<f64>, 0u64, 0.0);
    let packs = |s3: &CountingS3| s3.objects().len();
    for (number, push) in pushes.iter().enumerate() {
        if let Some(oldest) = oldest_s.filter(|oldest| push.at_s - oldest >= delay_s) {
            flush(&node).await;
            oldest_s = None;
            // By the daemon's own rule a checkpoint is due when the last one is a week old.
            if oldest + delay_s - checkpoint_s >= WEEK_S {
                node.cli(&["archive", "checkpoint"]).await.expect("checkpoint");
                checkpoint_s = oldest + delay_s;
            }
        }
        let image = image(number, push);
        pushed += image.config.len() as u64 + image.manifest.len() as u64 + push.sizes.iter().sum::<u64>();
        let before = packs(&s3);
        registry.push_image(&format!("team/app-{}", number % 50), &format!("build-{number}"), &image).await;
        // What the daemon sealed by size, meanwhile, waits no more.
        oldest_s = if packs(&s3) > before { None } else { oldest_s.or(Some(push.at_s)) };
    }
    flush(&node).await;
    wait_until("nothing is under way", IDLE * 10, async || {
        (node.cli_json(&["archive", "status"]).await["pending_records"] == 0).then_some(())
    })
    .await;
    let (requests, bill, count) = (s3.requests(), s3.bill(), pushes.len() as f64);
    let sent: u64 = requests.iter().filter(|request| request.operation == Operation::Put).map(|request| request.body_size).sum();
    // What packs hold beside blobs does not shrink with them.
    let beside = sent.saturating_sub(pushed) as f64 / count;
    s3.forget();
    tokio::time::sleep(IDLE).await;
    let cost = node.cli_json(&["archive", "cost"]).await;
    vec![
        Figure::new(format!("{name}: requests per push"), requests.len() as f64 / count, "").at_most(most),
        Figure::new(format!("{name}: packs"), packs(&s3) as f64, ""),
        Figure::new(format!("{name}: dollars for the requests of 10,000 pushes"), bill.dollars / count * 1e4, "$"),
        Figure::new(format!("{name}: bytes sent per byte pushed, at these small sizes"), sent as f64 / pushed as f64, ""),
        Figure::new(format!("{name}: the same at the model's sizes"), 1.0 + beside / IMAGE_SIZE, "").at_most(SENT_MAX),
        Figure::new(format!("{name}: requests while idle"), s3.requests().len() as f64, "").at_most(0.0),
        Figure::new(
            format!("{name}: requests that the node counted less those that the server saw"),
            cost["requests"].as_object().into_iter().flatten().filter_map(|(_, count)| count.as_f64()).sum::<f64>() - requests.len() as f64,
            "",
        )
        .at_most(0.0),
    ]
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_month_of_pushes_costs_few_requests() {
    let count: u64 = std::env::var("BENCH_PUSHES").ok().map_or(60, |text| text.parse().expect("BENCH_PUSHES is a number"));
    let pushes = month(count);
    let mut figures = vec![
        Figure::new("pushes of 8 blobs", count as f64, ""),
        Figure::new(
            "mean image at the model's size",
            pushes.iter().flat_map(|push| &push.sizes).sum::<u64>() as f64 / count as f64 * SCALE / 1e6,
            "MB",
        ),
    ];
    let theirs = distribution::sample(
        &pushes[..pushes.len().min(20)].iter().enumerate().map(|(number, push)| image(number, push)).collect::<Vec<_>>(),
    )
    .await;
    for dial in DIALS {
        let mut of_dial = replay(&pushes, dial).await;
        if let Some(theirs) = &theirs {
            of_dial[0].against = Some(theirs.per_push);
            of_dial[2].against = Some(theirs.dollars_per_push * 1e4);
        }
        figures.extend(of_dial);
    }
    if let Some(theirs) = theirs {
        figures.push(Figure::new("docker-registry on S3: pushes in the sample", theirs.pushes as f64, ""));
        figures.push(Figure::new("docker-registry on S3: requests per push", theirs.per_push, ""));
    } else {
        println!("skipped: docker-registry is not on this machine, or does not take pushes from this S3 server");
    }
    figures::publish(PROGRAM, if count >= 10_000 { "archive" } else { "archive-small" }, &figures);
}
