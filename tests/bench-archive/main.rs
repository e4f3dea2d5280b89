//! A month of pushes, replayed through the real program with a clock that is set forward: what the bucket is asked and sent, for each push.
//!
//! `make bench-archive` replays all of it (`PUSHES=10000`; the first 2,000 take a fifth of the time); as a part of the test suite, the first hours, which show
//! that it works.
//!
//! Bytes are scaled down by 512, and `archive.pack_size` with them, so that packs hold the same pushes and requests are those of the full size; nothing that is
//! counted depends on how many bytes a blob has. What grows beside blobs (headers, records, checkpoints) does not shrink with them: the bytes sent for a byte
//! pushed are given as they were counted, which is too much, and with that overhead beside blobs of full size.
//!
//! The node's wall clock is libfaketime's: it is set to each push, and to each moment at which a pack is due. Timers run by this machine's time, so the node is told
//! to seal at that moment (`archive flush`), which it would have done by itself; a pack that is full is one that is due. Each day it is waited for until it
//! has looked at the bucket's listing.

mod distribution;
mod month;

use larder_harness::s3::{Bill, Operation};
use larder_harness::{CountingS3, Figure, Image, Kind, Node, Registry, figures};
use month::{Push, SCALE, pushes};
use std::path::PathBuf;
use std::time::{Duration, Instant};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

const PROGRAM: &str = env!("CARGO_BIN_EXE_larder");
const CLOCK_LIBRARY: &str = "/usr/lib/x86_64-linux-gnu/faketime/libfaketimeMT.so.1";
/// Pushes of a month.
const MONTH: usize = 10_000;
/// Of the part that belongs to the test suite.
const SHORT: usize = 60;
/// From so many on, the goals are held: days and checkpoints are in them, and a pack more or less is nothing.
const HELD: usize = 2_000;
/// Of those, the ones that docker-registry gets too, with all of their bytes.
const SAMPLE: usize = 12;
const SAMPLE_SHORT: usize = 3;
/// What waits is sealed when it has so many bytes: 512 MiB, scaled.
const PACK_SIZE: u64 = (512 << 20) / SCALE;
const DAY_S: f64 = 86_400.0;
/// Until the node has looked at the bucket, of this machine's time.
const PATIENCE: Duration = Duration::from_secs(60);

/// A node whose clock is in our hands.
struct Replay {
    node: Node,
    registry: Registry,
    s3: CountingS3,
    clock: PathBuf,
    began: Instant,
    ahead: f64,
    /// When it last looked, by its own clock.
    looked_ms: u64,
}

/// What came of a replay.
struct Outcome {
    bill: Bill,
    requests: usize,
    packs: usize,
    sent: u64,
    /// Bytes of blobs, scaled and at full size.
    pushed: u64,
    pushed_full: u64,
    idle_hour: usize,
    idle_day: usize,
    /// What the node's own ledger says, and what it says of the other registry.
    ledger: u64,
    peer: f64,
}

impl Replay {
    async fn start(name: &str, delay_s: u64) -> Self {
        let s3 = CountingS3::start().await;
        let mut node = Node::builder(PROGRAM)
            .name(name)
            .in_memory()
            .s3(&s3, "fleet")
            .env("LARDER_ARCHIVE__MAX_DELAY", format!("{delay_s}s"))
            .env("LARDER_ARCHIVE__PACK_SIZE", format!("{PACK_SIZE}B"))
            .env("LARDER_STORE__DURABILITY", "relaxed")
            // Upkeep of the disk asks nothing of the bucket, and would go through everything each hour of that month.
            .env("LARDER_GC__PERIOD", "0s")
            .env("LARDER_SCRUB__CYCLE", "0s")
            // By this it is set how often the daily look is thought of.
            .env("LARDER_PEERS__TAKEOVER", "1s")
            .create();
        let clock = node.scratch().join("clock");
        std::fs::write(&clock, "+0").expect("write a file");
        node.set_env("LD_PRELOAD", Some(CLOCK_LIBRARY));
        node.set_env("FAKETIME_TIMESTAMP_FILE", Some(&clock.to_string_lossy()));
        node.set_env("FAKETIME_NO_CACHE", Some("1"));
        node.set_env("FAKETIME_DONT_FAKE_MONOTONIC", Some("1"));
        node.start().await;
        let registry = Registry::new(node.url());
        Self { node, registry, s3, clock, began: Instant::now(), ahead: 0.0, looked_ms: 0 }
    }

    /// Sets the clock to so many seconds behind the beginning; never back.
    fn set(&mut self, at: f64) {
        self.ahead = self.ahead.max(at - self.began.elapsed().as_secs_f64());
        let next = self.clock.with_extension("next");
        std::fs::write(&next, format!("+{:.3}", self.ahead)).expect("write a file");
        std::fs::rename(&next, &self.clock).expect("replace a file");
        self.s3.set_clock_ahead(self.ahead as i64);
    }

    /// Has everything that waits sealed, at a moment at which it is due; how many packs came of it. (None, where the node thought of it first.)
    async fn seal(&mut self, due: f64) -> usize {
        self.set(due);
        let socket = self.node.data_dir().join("larder.sock");
        let mut stream = tokio::net::UnixStream::connect(&socket).await.expect("connect to the command socket");
        let asked = "POST /api/v1/archive/flush HTTP/1.1\r\nhost: larder\r\nconnection: close\r\ncontent-length: 0\r\n\r\n";
        stream.write_all(asked.as_bytes()).await.expect("ask");
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer).await.expect("an answer");
        let answer = String::from_utf8_lossy(&answer);
        let body = answer.split_once("\r\n\r\n").map_or("", |(_, body)| body);
        let flushed: serde_json::Value = serde_json::from_str(body).unwrap_or_else(|_| panic!("flush: {answer}\n{}", self.node.log_tail()));
        flushed["packs"].as_array().unwrap_or_else(|| panic!("flush: {answer}")).len()
    }

    /// Waits until the node has looked at the listing, which is due.
    async fn look(&mut self, at: f64) {
        self.set(at);
        // It may have thought of it already.
        let before = self.looked_ms;
        let looked = larder_harness::wait_until("the daily look at the bucket", PATIENCE, async || {
            let verified = self.node.cli_json(&["archive", "status"]).await["verified"].clone();
            verified["at_ms"].as_u64().filter(|at_ms| *at_ms > before).map(|at_ms| (at_ms, verified))
        })
        .await;
        assert_eq!(looked.1["missing"].as_array().map(Vec::len), Some(0), "{}", looked.1);
        self.looked_ms = looked.0;
    }

    /// Pushes an image as clients do; its bytes that will wait.
    async fn push(&self, push: &Push) -> u64 {
        let image = push.image(SCALE);
        let blobs = image.layers.iter().copied().map(|layer| async move { self.registry.try_push_blob_at_once("team/app", layer).await });
        for pushed in futures_util::future::join_all(blobs).await {
            pushed.expect("push a blob");
        }
        let location = self.registry.open_upload("team/app").await;
        let digest = larder_harness::sha256(&image.config);
        let joint = if location.contains('?') { '&' } else { '?' };
        let put = format!("{location}{joint}digest={digest}");
        self.registry
            .request("PUT", &put, &[("content-type", "application/octet-stream")], image.config.clone())
            .await
            .expect(201, "a config");
        let path = format!("/v2/team/app/manifests/{}", push.tag());
        self.registry
            .request("PUT", &path, &[("content-type", Kind::Oci.manifest())], image.manifest.clone())
            .await
            .expect(201, "a manifest");
        size(&image) + image.manifest.len() as u64
    }

    async fn month(mut self, delay_s: u64, pushes: &[Push]) -> Outcome {
        let (mut waiting, mut oldest, mut next_look) = (0u64, None::<f64>, DAY_S + 60.0);
        let (mut pushed, mut pushed_full, mut seals) = (0, 0, 0);
        for push in pushes {
            if let Some(due) = oldest.map(|oldest| oldest + delay_s as f64 + 1.0).filter(|due| *due <= push.at) {
                self.seal(due).await;
                seals += 1;
                (waiting, oldest) = (0, None);
            }
            if push.at > next_look {
                self.look(push.at).await;
                next_look = push.at + DAY_S;
            }
            self.set(push.at);
            waiting += self.push(push).await;
            oldest = oldest.or(Some(push.at));
            pushed += size(&push.image(SCALE));
            pushed_full += size(&push.image(1));
            if waiting >= PACK_SIZE {
                self.seal(push.at + 1.0).await;
                seals += 1;
                (waiting, oldest) = (0, None);
            }
        }
        let mut now = pushes.last().map_or(0.0, |push| push.at);
        if let Some(due) = oldest.map(|oldest| oldest + delay_s as f64 + 1.0) {
            now = due.max(now);
            self.seal(now).await;
            seals += 1;
        }
        // What the last pack entails, a checkpoint perhaps, is under way.
        tokio::time::sleep(Duration::from_millis(1500)).await;
        let requests = self.s3.requests();
        let sent = requests.iter().filter(|request| request.operation == Operation::Put).map(|request| request.body_size).sum();
        let packs = requests.iter().filter(|request| request.operation == Operation::Put && request.key.contains("/packs/")).count();
        assert!(packs >= seals, "{packs} packs, {seals} were due");
        let (bill, requests) = (self.s3.bill(), requests.len());
        // An hour in which nothing happens, then the rest of a day; each long enough by this machine's time for the node to think of what is due.
        let mut idle = Vec::new();
        for hours in [1.0, 23.5] {
            let before = requests + idle.iter().sum::<usize>();
            now += hours * 3600.0;
            self.set(now);
            tokio::time::sleep(Duration::from_millis(1500)).await;
            assert_eq!(self.seal(now).await, 0, "nothing waits");
            idle.push(self.s3.requests().len() - before);
        }
        let cost = self.node.cli_json(&["archive", "cost"]).await;
        let ledger = cost["requests"].as_object().expect("requests").values().filter_map(serde_json::Value::as_u64).sum::<u64>();
        let peer = cost["distribution_requests"].as_f64().expect("a number");
        self.node.stop().await;
        let ledger = ledger - idle.iter().sum::<usize>() as u64;
        Outcome { bill, requests, packs, sent, pushed, pushed_full, idle_hour: idle[0], idle_day: idle[0] + idle[1], ledger, peer }
    }
}

fn size(image: &Image) -> u64 {
    image.layers.iter().map(|layer| layer.size).sum::<u64>() + image.config.len() as u64
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_month_of_pushes_takes_few_requests() {
    if !PathBuf::from(CLOCK_LIBRARY).exists() {
        println!("skipped: {CLOCK_LIBRARY} is missing; packaging/setup test installs it");
        return;
    }
    let count: usize = std::env::var("PUSHES").ok().map_or(SHORT, |text| text.parse().expect("PUSHES is a number"));
    let is_full = count >= HELD;
    let all = pushes(count, MONTH);
    let begin = Instant::now();
    let delays = [("60 s", 60, 0.85), ("15 min", 900, 0.25), ("1 h", 3600, 0.10)];
    let delays = if is_full { &delays[..] } else { &delays[1..2] };
    let replays = delays.iter().map(|&(name, delay_s, _)| {
        let pushes = &all;
        async move { Replay::start(&format!("delay-{}", name.replace(' ', "-")), delay_s).await.month(delay_s, pushes).await }
    });
    let outcomes: Vec<Outcome> = futures_util::future::join_all(replays).await;
    let replayed_s = begin.elapsed().as_secs_f64();
    let other = distribution::sample(&all[..if is_full { SAMPLE } else { SAMPLE_SHORT }.min(all.len())]).await;

    let mut table = vec![
        Figure::new("pushes of 8 blobs", count as f64, ""),
        Figure::new("bytes of a push, at full size", outcomes[0].pushed_full as f64 / count as f64 / 1e6, "MB"),
        Figure::new("bytes are scaled down by", SCALE as f64, ""),
        Figure::new("days that were replayed", all.last().map_or(0.0, |push| push.at) / 86_400.0, "d"),
        Figure::new("it took", replayed_s, "s"),
    ];
    for ((name, _, goal), outcome) in delays.iter().zip(&outcomes) {
        let each = |number: f64| number / count as f64;
        assert_eq!(outcome.ledger, outcome.requests as u64, "{name}: the node counts what the server counts");
        let requests = Figure::new(format!("{name}: requests for a push"), each(outcome.requests as f64), "");
        let requests = if is_full { requests.at_most(*goal) } else { requests };
        table.push(match &other {
            Some(other) => requests.against(other.requests),
            None => requests,
        });
        table.push(Figure::new(format!("{name}: packs"), outcome.packs as f64, ""));
        let dollars =
            Figure::new(format!("{name}: dollars for 1,000,000 pushes, requests alone"), outcome.bill.dollars / count as f64 * 1e6, "$");
        table.push(match &other {
            Some(other) => dollars.against(other.dollars * 1e6),
            None => dollars,
        });
        table.push(Figure::new(format!("{name}: the ledger says that Distribution takes"), each(outcome.peer), ""));
        let overhead = outcome.sent as f64 - outcome.pushed as f64;
        table.push(Figure::new(format!("{name}: bytes sent for a byte pushed, scaled"), outcome.sent as f64 / outcome.pushed as f64, ""));
        let full = 1.0 + overhead / outcome.pushed_full as f64;
        table.push(Figure::new(format!("{name}: the same at full size"), full, "").at_most(1.3));
        table.push(Figure::new(format!("{name}: requests of an idle hour"), outcome.idle_hour as f64, "").at_most(0.0));
        table.push(Figure::new(format!("{name}: of an idle day, with its look at the listing"), outcome.idle_day as f64, ""));
    }
    figures::publish(PROGRAM, if is_full { "archive" } else { "archive-short" }, &table);
}
