//! What is asked of a contestant, and what it cost: one number, and the processor time of server and client beside it.
//!
//! Large bodies and pushes are moved by [`crate::wire`]: threads that block; HEADs come from there as well. Small GETs come from wrk, and HTTP/2 from
//! h2load, both of Debian. Each load runs for a fixed time, so that a slow contestant does not make the run longer.

use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use crate::contestants::{Contestant, Encryption, Goods, REPOSITORY, TAG};
use crate::wire::{self, Numbered, Wire};

const GB: f64 = 1e9;
const MB: f64 = 1e6;
/// Of each chunk of a push in chunks.
const CHUNK_SIZE: usize = 16 << 20;
/// Without it the registry does not say what it has.
const ACCEPT: &str = "application/vnd.oci.image.manifest.v1+json";
const LAYERS: usize = 100;
const LAYER_SIZE: usize = 100_000;
/// Connections over which a client pushes or pulls the layers of an image.
const LAYERS_AT_ONCE: usize = 4;

/// One run of one load.
#[derive(Clone, Copy, Debug)]
pub struct Sample {
    /// In the load's unit.
    pub value: f64,
    /// Seconds of processors that the server took for each GB or each thousand requests.
    pub server: f64,
    /// How many processors the server kept busy, and the client.
    pub server_busy: f64,
    pub client_busy: f64,
}

/// One thing that is measured.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Load {
    /// MB/s of GETs of a blob.
    Throughput {
        blob: usize,
        streams: usize,
    },
    /// The same over HTTP/2, by connections with so many streams each.
    Throughput2 {
        blob: usize,
        connections: usize,
        streams: usize,
    },
    /// Requests per second with 64 connections.
    Requests {
        what: Asked,
    },
    /// The same over HTTP/2, by 8 connections with 8 streams each.
    Requests2 {
        what: Asked,
    },
    /// MB/s of pushes of 512 MB.
    Push {
        chunked: bool,
    },
    /// Pushes of 1 MB per second, 64 at a time.
    SmallPushes,
    /// ms of a PUT that closes an upload whose bytes are all there.
    Closing,
    /// ms until the first bytes of a large blob are there.
    FirstByte,
    /// Seconds of the push of an image of 100 layers, and of its pull.
    PushLayers,
    PullLayers,
}

/// What many ask for.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Asked {
    Blob(usize),
    BlobHead,
    AbsentBlobHead,
    Manifest,
    ManifestHead,
}

impl Asked {
    fn is_head(self) -> bool {
        matches!(self, Self::BlobHead | Self::AbsentBlobHead | Self::ManifestHead)
    }
}

/// Everything that a load needs.
pub struct Bench<'a> {
    pub goods: &'a Goods,
    pub tls: Option<&'a Encryption>,
    pub time: Duration,
    /// Pushed in one piece.
    pub large: &'a Numbered,
    pub small: &'a Numbered,
    pub layer: &'a Numbered,
    /// No blob is pushed twice.
    pub next: &'a AtomicU64,
}

impl Load {
    pub fn unit(self) -> &'static str {
        match self {
            Self::Throughput { .. } | Self::Throughput2 { .. } | Self::Push { .. } => "MB/s",
            Self::Requests { .. } | Self::Requests2 { .. } | Self::SmallPushes => "1/s",
            Self::Closing | Self::FirstByte => "ms",
            Self::PushLayers | Self::PullLayers => "s",
        }
    }

    /// What the server's time is divided by.
    pub fn server_unit(self) -> &'static str {
        match self {
            Self::Throughput { .. } | Self::Throughput2 { .. } | Self::Push { .. } | Self::SmallPushes => "CPU s/GB",
            _ => "CPU s/1000",
        }
    }

    /// Whether a server of files can do it.
    pub fn is_for_files(self) -> bool {
        !matches!(self, Self::Push { .. } | Self::SmallPushes | Self::Closing | Self::PushLayers | Self::PullLayers)
    }
}

impl Bench<'_> {
    /// Runs a load against one of them.
    pub fn run(&self, load: Load, on: &Contestant) -> Sample {
        if !load.is_for_files() {
            // What one contestant left unwritten is not to be written in another one's time.
            rustix::fs::sync();
        }
        let (server, client, begun) = (on.cpu(), own_cpu(), Instant::now());
        // The value, and how many GB or thousands of requests it took.
        let (value, amount) = match load {
            Load::Throughput { blob, streams } => self.throughput(on, blob, streams),
            Load::Throughput2 { blob, connections, streams } => self.h2load(on, &self.goods.blob_path(blob), connections, streams).0,
            Load::Requests { what } if what.is_head() => self.heads(on, what),
            Load::Requests { what } => self.wrk(on, what),
            Load::Requests2 { what } => self.h2load(on, &self.path(what), 8, 8).1,
            Load::Push { chunked } => self.push(on, chunked),
            Load::SmallPushes => self.small_pushes(on),
            Load::Closing => self.closing(on),
            Load::FirstByte => self.first_byte(on),
            Load::PushLayers => self.push_layers(on),
            Load::PullLayers => self.pull_layers(on),
        };
        let seconds = begun.elapsed().as_secs_f64();
        let (server, client) = (on.cpu() - server, own_cpu() - client);
        Sample { value, server: server / amount, server_busy: server / seconds, client_busy: client / seconds }
    }

    fn connect(&self, on: &Contestant) -> Wire {
        Wire::connect(&on.address, self.tls.map(|tls| &tls.client))
    }

    fn throughput(&self, on: &Contestant, blob: usize, streams: usize) -> (f64, f64) {
        let (path, total) = (self.goods.blob_path(blob), AtomicU64::new(0));
        let begun = Instant::now();
        let until = begun + self.time;
        std::thread::scope(|scope| {
            for _ in 0..streams {
                scope.spawn(|| {
                    let mut wire = self.connect(on);
                    while Instant::now() < until {
                        wire.ask("GET", &path, "");
                        let head = wire.head();
                        assert_eq!(head.status, 200);
                        if wire.drain(head.length, Some(until), &total).is_err() {
                            return;
                        }
                    }
                });
            }
        });
        let bytes = total.load(Ordering::Relaxed) as f64;
        (bytes / MB / begun.elapsed().as_secs_f64(), bytes / GB)
    }

    fn path(&self, what: Asked) -> String {
        match what {
            Asked::Blob(place) => self.goods.blob_path(place),
            Asked::BlobHead => self.goods.blob_path(0),
            Asked::AbsentBlobHead => format!("/v2/{REPOSITORY}/blobs/{}", larder_harness::sha256(b"nobody has it")),
            Asked::Manifest | Asked::ManifestHead => format!("/v2/{REPOSITORY}/manifests/{TAG}"),
        }
    }

    fn url(&self, on: &Contestant, path: &str) -> String {
        let (scheme, port) = (if self.tls.is_some() { "https" } else { "http" }, on.address.rsplit_once(':').expect("a port").1);
        format!("{scheme}://localhost:{port}{path}")
    }

    fn wrk(&self, on: &Contestant, what: Asked) -> (f64, f64) {
        let script = std::env::temp_dir().join(format!("larder-bench-{}.lua", std::process::id()));
        std::fs::write(&script, format!("wrk.headers[\"Accept\"] = \"{ACCEPT}\"\n")).expect("write a script");
        let mut command = Command::new("wrk");
        command.args(["-t2", "-c64", &format!("-d{}", self.time.as_secs_f64()), "-s"]).arg(&script).arg(self.url(on, &self.path(what)));
        let said = output(&mut command);
        let _ = std::fs::remove_file(&script);
        assert!(!said.contains("Non-2xx"), "{}: {said}", on.name);
        let requests = number_after(&said, " requests in ", true);
        (number_after(&said, "Requests/sec:", false), requests / 1000.0)
    }

    /// wrk waits for the body that an answer to HEAD announces.
    fn heads(&self, on: &Contestant, what: Asked) -> (f64, f64) {
        let request = format!("HEAD {} HTTP/1.1\r\nhost: {}\r\naccept: {ACCEPT}\r\n\r\n", self.path(what), on.address);
        let status = if what == Asked::AbsentBlobHead { "404" } else { "200" };
        let begun = Instant::now();
        let count: u64 = std::thread::scope(|scope| {
            let threads = [0; 2].map(|_| scope.spawn(|| wire::heads(&on.address, request.as_bytes(), status, 32, begun + self.time)));
            threads.into_iter().map(|thread| thread.join().expect("a client does not panic")).sum()
        });
        (count as f64 / begun.elapsed().as_secs_f64(), count as f64 / 1000.0)
    }

    /// MB/s and GB; requests per second and thousands of them.
    fn h2load(&self, on: &Contestant, path: &str, connections: usize, streams: usize) -> ((f64, f64), (f64, f64)) {
        let mut command = Command::new("h2load");
        let time = self.time.as_secs_f64().max(1.0);
        command.args(["-t1", "-w24", "-W26", &format!("-D{}", time as u64), &format!("-c{connections}"), &format!("-m{streams}")]);
        let said = output(command.arg(format!("-Haccept: {ACCEPT}")).arg(self.url(on, path)));
        let line = said.lines().find(|line| line.starts_with("traffic:")).unwrap_or_else(|| panic!("h2load: {said}"));
        let bytes: f64 = line.split(['(', ')']).nth(1).and_then(|number| number.parse().ok()).unwrap_or_else(|| panic!("h2load: {line}"));
        let done = number_after(&said, " total, ", true);
        assert!(!said.contains("status codes: 0 2xx") || bytes > 1e6, "{}: {said}", on.name);
        let rate = said.lines().find(|line| line.starts_with("finished in")).and_then(|line| line.split(", ").nth(1));
        let rate = rate.and_then(|rate| rate.split(' ').next()?.parse().ok()).unwrap_or(0.0);
        let seconds = (self.time.as_secs_f64().max(1.0) as u64) as f64;
        ((bytes / MB / seconds, bytes / GB), (rate, done / 1000.0))
    }

    fn push(&self, on: &Contestant, chunked: bool) -> (f64, f64) {
        let mut wire = self.connect(on);
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        let time = if chunked {
            wire.push_chunked(REPOSITORY, self.large, number, CHUNK_SIZE).0
        } else {
            wire.push(REPOSITORY, self.large, number)
        };
        let size = self.large.size() as f64;
        (size / MB / time.as_secs_f64(), size / GB)
    }

    fn closing(&self, on: &Contestant) -> (f64, f64) {
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        let (_, closing) = self.connect(on).push_chunked(REPOSITORY, self.large, number, CHUNK_SIZE);
        (closing.as_secs_f64() * 1e3, 0.001)
    }

    fn small_pushes(&self, on: &Contestant) -> (f64, f64) {
        let (begun, count) = (Instant::now(), AtomicU64::new(0));
        let until = begun + self.time;
        std::thread::scope(|scope| {
            for _ in 0..64 {
                scope.spawn(|| {
                    let mut wire = self.connect(on);
                    while Instant::now() < until {
                        wire.push(REPOSITORY, self.small, self.next.fetch_add(1, Ordering::Relaxed));
                        count.fetch_add(1, Ordering::Relaxed);
                    }
                });
            }
        });
        let count = count.load(Ordering::Relaxed) as f64;
        (count / begun.elapsed().as_secs_f64(), count * self.small.size() as f64 / GB)
    }

    fn first_byte(&self, on: &Contestant) -> (f64, f64) {
        let mut times = Vec::new();
        for _ in 0..20 {
            let mut wire = self.connect(on);
            let begun = Instant::now();
            wire.ask("GET", &self.goods.blob_path(2), "");
            assert_eq!(wire.head().status, 200);
            wire.drain(1, None, &AtomicU64::new(0)).expect("a byte");
            times.push(begun.elapsed().as_secs_f64() * 1e3);
        }
        times.sort_unstable_by(f64::total_cmp);
        (times[times.len() / 2], times.len() as f64 / 1000.0)
    }

    fn push_layers(&self, on: &Contestant) -> (f64, f64) {
        let first = self.next.fetch_add(LAYERS as u64, Ordering::Relaxed);
        let begun = Instant::now();
        self.each_layer(on, |wire, place| {
            // As clients do: they ask first.
            wire.ask("HEAD", &format!("/v2/{REPOSITORY}/blobs/{}", self.layer.digest(first + place)), "");
            assert_eq!(wire.head().status, 404);
            wire.push(REPOSITORY, self.layer, first + place);
        });
        let descriptor = |number: u64, kind: &str| serde_json::json!({"mediaType": format!("application/vnd.oci.image.{kind}"), "digest": self.layer.digest(number), "size": LAYER_SIZE});
        let layers: Vec<_> = (0..LAYERS as u64).map(|place| descriptor(first + place, "layer.v1.tar")).collect();
        let manifest = serde_json::json!({
            "schemaVersion": 2, "mediaType": "application/vnd.oci.image.manifest.v1+json",
            "config": descriptor(first, "config.v1+json"), "layers": layers,
        });
        self.connect(on).push_manifest(REPOSITORY, &format!("layers-{first}"), &serde_json::to_vec(&manifest).expect("JSON"));
        (begun.elapsed().as_secs_f64(), LAYERS as f64 / 1000.0)
    }

    /// Does something for each layer of an image, over as many connections as a client has.
    fn each_layer(&self, on: &Contestant, work: impl Fn(&mut Wire, u64) + Sync) {
        let next = AtomicU64::new(0);
        std::thread::scope(|scope| {
            for _ in 0..LAYERS_AT_ONCE {
                scope.spawn(|| {
                    let mut wire = self.connect(on);
                    loop {
                        let place = next.fetch_add(1, Ordering::Relaxed);
                        if place >= LAYERS as u64 {
                            return;
                        }
                        work(&mut wire, place);
                    }
                });
            }
        });
    }

    /// Pulls an image that was pushed just before, untimed.
    fn pull_layers(&self, on: &Contestant) -> (f64, f64) {
        let first = self.next.load(Ordering::Relaxed);
        self.push_layers(on);
        let begun = Instant::now();
        self.connect(on).get(&format!("/v2/{REPOSITORY}/manifests/layers-{first}"));
        self.each_layer(on, |wire, place| wire.get(&format!("/v2/{REPOSITORY}/blobs/{}", self.layer.digest(first + place))));
        (begun.elapsed().as_secs_f64(), LAYERS as f64 / 1000.0)
    }
}

pub fn numbered() -> (Numbered, Numbered, Numbered) {
    (Numbered::new(512_000_000), Numbered::new(1_000_000), Numbered::new(LAYER_SIZE))
}

/// Seconds of processors that this process and the clients that it ran have taken.
fn own_cpu() -> f64 {
    let text = std::fs::read_to_string("/proc/self/stat").expect("the kernel says it");
    let after = text.rsplit_once(')').expect("the name ends").1;
    // User and system time of itself and of the children that have ended. (Servers end later.)
    let ticks: u64 = after.split_whitespace().skip(11).take(4).map(|number| number.parse::<u64>().expect("a number")).sum();
    ticks as f64 / 100.0
}

fn output(command: &mut Command) -> String {
    let program = command.get_program().to_string_lossy().into_owned();
    let output = command.stdin(Stdio::null()).output();
    let output = output.unwrap_or_else(|error| panic!("run {program}: {error}; `packaging/setup test` installs it"));
    format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}

/// The number right after a text, or right before it.
fn number_after(said: &str, text: &str, before: bool) -> f64 {
    let at = said.find(text).unwrap_or_else(|| panic!("there is no {text:?} in: {said}"));
    let word = if before { said[..at].split_whitespace().next_back() } else { said[at + text.len()..].split_whitespace().next() };
    word.and_then(|word| word.parse().ok()).unwrap_or_else(|| panic!("no number at {text:?} in: {said}"))
}
