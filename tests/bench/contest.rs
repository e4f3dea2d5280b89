//! Larder beside Debian's docker-registry and nginx: the same loads, on one machine, in one run, in turns.
//!
//! Each load is run [`ROUNDS`] times against each contestant, one after the other, so that whatever else the machine does meets all of them;
//! the median counts, and the spread is told. Ratios are what counts: they hold when the machine is another one.
//!
//! Whether a client was the bottleneck is seen in the table: beside each figure stands how many processors the server and the client kept
//! busy. Where the client took more than the server did, the figure is a lower bound of what the server can, and marked (`c`).
//!
//! The JSON goes to peers.json in `$BENCH_OUT`, or else in `<target>/bench`: name, value, unit, against, ratio, goal, met.
//! `BENCH_ONLY=push` runs only the loads in whose names that stands; `BENCH_SECONDS` says how long each takes.

use std::sync::atomic::AtomicU64;
use std::time::Duration;

use larder_harness::figures::folder;
use serde_json::{Value, json};

use crate::contestants::{Contestant, Encryption, Goods};
use crate::loads::{Asked, Bench, Load, Sample, numbered};

const PROGRAM: &str = env!("CARGO_BIN_EXE_larder");
const ROUNDS: usize = 5;
const MEMORY_MAX_MIB: f64 = 200.0;
/// What the pushes of a load take of the page cache, all contestants together.
const TOUCHED_MAX: usize = 6 << 30;
/// Config, a layer, a large layer.
const SIZES: [usize; 3] = [330, 1_000_000, 512_000_000];

/// What was promised of a load: at least so many times as much as the registry, and as nginx; at most so much processor time as either.
#[derive(Clone, Copy, Default)]
struct Goals {
    registry: Option<f64>,
    nginx: Option<f64>,
    registry_cpu: Option<f64>,
    nginx_cpu: Option<f64>,
    /// Seconds of processors for each GB.
    cpu: Option<f64>,
    /// The most that the value itself may be.
    value: Option<f64>,
}

const NONE: Goals = Goals { registry: None, nginx: None, registry_cpu: None, nginx_cpu: None, cpu: None, value: None };
const LARGE: Goals = Goals { registry_cpu: Some(0.55), nginx_cpu: Some(1.5), nginx: Some(0.95), ..NONE };
const SMALL: Goals = Goals { registry: Some(40.0), nginx: Some(0.4), ..NONE };
const METADATA: Goals = Goals { registry: Some(40.0), nginx: Some(0.5), ..NONE };

/// Over plain HTTP.
const PLAIN: &[(&str, Load, Goals)] = &[
    ("GET 512 MB, 1 stream", Load::Throughput { blob: 2, streams: 1 }, LARGE),
    ("GET 512 MB, 64 streams", Load::Throughput { blob: 2, streams: 64 }, LARGE),
    ("GET 1 MB, 1 stream", Load::Throughput { blob: 1, streams: 1 }, NONE),
    ("GET 1 MB, 64 streams", Load::Requests { what: Asked::Blob(1) }, SMALL),
    ("GET 330 B, 64 streams", Load::Requests { what: Asked::Blob(0) }, SMALL),
    ("GET manifest by tag, 64 streams", Load::Requests { what: Asked::Manifest }, METADATA),
    ("HEAD manifest by tag, 64 streams", Load::Requests { what: Asked::ManifestHead }, METADATA),
    ("HEAD blob, 64 streams", Load::Requests { what: Asked::BlobHead }, METADATA),
    ("HEAD absent blob, 64 streams", Load::Requests { what: Asked::AbsentBlobHead }, NONE),
    ("first byte of 512 MB", Load::FirstByte, NONE),
    ("push 512 MB", Load::Push { chunked: false }, Goals { registry: Some(2.0), cpu: Some(1.7), ..NONE }),
    ("push 512 MB in chunks", Load::Push { chunked: true }, Goals { registry: Some(2.0), cpu: Some(1.7), ..NONE }),
    ("push closing PUT to 201", Load::Closing, Goals { value: Some(100.0), ..NONE }),
    ("push 1 MB, 64 at once", Load::SmallPushes, Goals { registry: Some(3.0), ..NONE }),
    ("push of 100 layers", Load::PushLayers, NONE),
    ("pull of 100 layers", Load::PullLayers, NONE),
];

/// Over TLS.
const ENCRYPTED: &[(&str, Load, Goals)] = &[
    ("TLS GET 512 MB, 1 stream", Load::Throughput { blob: 2, streams: 1 }, NONE),
    ("TLS GET 512 MB, 64 streams", Load::Throughput { blob: 2, streams: 64 }, NONE),
    ("TLS GET 1 MB, 64 streams", Load::Requests { what: Asked::Blob(1) }, NONE),
    ("TLS GET 330 B, 64 streams", Load::Requests { what: Asked::Blob(0) }, NONE),
    ("TLS GET manifest, 64 streams", Load::Requests { what: Asked::Manifest }, NONE),
    ("HTTP/2 GET 512 MB, 1 stream", Load::Throughput2 { blob: 2, connections: 1, streams: 1 }, NONE),
    ("HTTP/2 GET 512 MB, 8 x 8 streams", Load::Throughput2 { blob: 2, connections: 8, streams: 8 }, NONE),
    ("HTTP/2 GET 1 MB, 8 x 8 streams", Load::Throughput2 { blob: 1, connections: 8, streams: 8 }, NONE),
    ("HTTP/2 GET 330 B, 8 x 8 streams", Load::Requests2 { what: Asked::Blob(0) }, NONE),
    ("HTTP/2 GET manifest, 8 x 8 streams", Load::Requests2 { what: Asked::Manifest }, NONE),
];

/// What one contestant did in one load.
struct Result {
    value: f64,
    least: f64,
    most: f64,
    server: f64,
    server_busy: f64,
    client_busy: f64,
}

impl Result {
    fn of(samples: &[Sample]) -> Self {
        let sorted = |of: fn(&Sample) -> f64| {
            let mut values: Vec<f64> = samples.iter().map(of).collect();
            values.sort_unstable_by(f64::total_cmp);
            values
        };
        let median = |of: fn(&Sample) -> f64| sorted(of)[samples.len() / 2];
        let values = sorted(|sample| sample.value);
        Self {
            value: values[values.len() / 2],
            least: values[0],
            most: values[values.len() - 1],
            server: median(|sample| sample.server),
            server_busy: median(|sample| sample.server_busy),
            client_busy: median(|sample| sample.client_busy),
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "make bench"]
async fn larder_beside_docker_registry_and_nginx() {
    let goods = Goods::new(SIZES);
    let (large, small, layer) = numbered();
    let seconds = std::env::var("BENCH_SECONDS").ok().map_or(2, |text| text.parse().expect("BENCH_SECONDS is a number"));
    let next = AtomicU64::new(1);
    let bench =
        |tls| Bench { goods: &goods, tls, time: Duration::from_secs(seconds), large: &large, small: &small, layer: &layer, next: &next };
    let mut entries = Vec::new();
    println!("{:<34} {:>30} {:>30} {:>30} {:>9} {:>9}", "", "larder", "docker-registry", "nginx", "/registry", "/nginx");
    let encryption = Encryption::new();
    for (tls, loads) in [(None, PLAIN), (Some(&encryption), ENCRYPTED)] {
        let wanted = std::env::var("BENCH_ONLY").unwrap_or_default();
        let loads: Vec<_> = loads.iter().filter(|(name, _, _)| name.contains(&wanted)).collect();
        if loads.is_empty() {
            continue;
        }
        let contestants =
            [Contestant::larder(PROGRAM, &goods, tls).await, Contestant::registry(&goods, tls).await, Contestant::nginx(&goods, tls).await];
        for (name, load, goals) in loads {
            if !load.is_for_files() {
                touch_memory();
            }
            let mut samples: [Vec<Sample>; 3] = Default::default();
            for _ in 0..ROUNDS {
                for (contestant, samples) in contestants.iter().zip(&mut samples) {
                    if contestant.name != "nginx" || load.is_for_files() {
                        samples.push(tokio::task::block_in_place(|| bench(tls).run(*load, contestant)));
                    }
                }
            }
            let results = samples.map(|samples| (!samples.is_empty()).then(|| Result::of(&samples)));
            entries.extend(compare(name, *load, goals, &results));
        }
        for contestant in &contestants {
            let goal = (contestant.name == "larder").then_some(MEMORY_MAX_MIB);
            let name = format!("{}peak memory of {}", if tls.is_some() { "TLS " } else { "" }, contestant.name);
            let (value, met) = (contestant.memory_peak(), goal.is_none_or(|most| contestant.memory_peak() <= most));
            println!("{name:<34} {value:>10.1} MiB{}", if met { "" } else { "  MISSED" });
            entries.push(json!({"name": name, "value": value, "unit": "MiB", "against": null, "ratio": null, "goal": goal, "met": met}));
        }
    }
    let missed = entries.iter().filter(|entry| entry["met"] == false).count();
    let path = folder(PROGRAM).join("peers.json");
    std::fs::create_dir_all(folder(PROGRAM)).expect("make a folder");
    std::fs::write(&path, serde_json::to_string_pretty(&entries).expect("JSON") + "\n").expect("write");
    println!("{} figures, {missed} missed; written to {}", entries.len(), path.display());
}

/// Uses as much memory as the files of a load will take. On a virtual machine a page that was not used lately costs a fault in the host, and who pays for it
/// would be chance.
fn touch_memory() {
    let text = std::fs::read_to_string("/proc/meminfo").expect("the kernel says it");
    let free =
        text.lines().find_map(|line| line.strip_prefix("MemAvailable:")).and_then(|line| line.trim().trim_end_matches(" kB").parse().ok());
    let bytes = free.map_or(0, |kib: usize| kib / 10 * 8 * 1024).min(TOUCHED_MAX);
    let mut touched = vec![0u8; bytes];
    touched.iter_mut().step_by(4096).for_each(|byte| *byte = 1);
    std::hint::black_box(&touched);
}

/// Prints a line, and gives what the JSON says of it.
fn compare(name: &str, load: Load, goals: &Goals, results: &[Option<Result>; 3]) -> Vec<Value> {
    let shown = |result: &Option<Result>| match result {
        None => String::new(),
        Some(it) => {
            let mark = if it.client_busy > it.server_busy { "c" } else { "" };
            format!(
                "{:.5} [{:.4} {:.4}] {:.2}/{:.2}{mark}",
                Short(it.value),
                Short(it.least),
                Short(it.most),
                it.server_busy,
                it.client_busy
            )
        }
    };
    let larder = results[0].as_ref().expect("it takes part in everything");
    let ratio = |other: &Option<Result>| other.as_ref().map(|other| larder.value / other.value);
    let cpu_ratio = |other: &Option<Result>| other.as_ref().filter(|other| other.server > 0.0).map(|other| larder.server / other.server);
    let (to_registry, to_nginx) = (ratio(&results[1]), ratio(&results[2]));
    let text = |ratio: Option<f64>| ratio.map_or(String::new(), |ratio| format!("{ratio:.2}"));
    println!(
        "{name:<34} {:>30} {:>30} {:>30} {:>9} {:>9}",
        format!("{} {}", shown(&results[0]), load.unit()),
        shown(&results[1]),
        shown(&results[2]),
        text(to_registry),
        text(to_nginx)
    );
    let at_least = |goal: Option<f64>, is: Option<f64>| goal.zip(is).is_none_or(|(goal, is)| is >= goal);
    let at_most = |goal: Option<f64>, is: Option<f64>| goal.zip(is).is_none_or(|(goal, is)| is <= goal);
    let entry = |what: String, value: f64, unit: &str, against: Option<f64>, ratio: Option<f64>, goal: Option<f64>, met: bool| {
        if !met {
            println!("{:>34} MISSED: {what}: {value:.3} {unit}, ratio {}, promised {}", "", text(ratio), text(goal));
        }
        json!({
            "name": what, "value": value, "unit": unit, "against": against, "ratio": ratio, "goal": goal, "met": met,
            "least": larder.least, "most": larder.most, "server_busy": larder.server_busy, "client_busy": larder.client_busy,
        })
    };
    let mut entries = Vec::new();
    let of = |place: usize| results[place].as_ref();
    for (place, whose, goal, cpu_goal) in
        [(1, "docker-registry", goals.registry, goals.registry_cpu), (2, "nginx", goals.nginx, goals.nginx_cpu)]
    {
        let Some(other) = of(place) else { continue };
        let is = Some(larder.value / other.value);
        entries.push(entry(format!("{name} / {whose}"), larder.value, load.unit(), Some(other.value), is, goal, at_least(goal, is)));
        let is = cpu_ratio(&results[place]);
        let what = format!("{name}: {} / {whose}", load.server_unit());
        entries.push(entry(what, larder.server, load.server_unit(), Some(other.server), is, cpu_goal, at_most(cpu_goal, is)));
    }
    println!(
        "{:<34} {:>30} {:>30} {:>30} {:>9} {:>9}",
        "",
        format!("{:.3} {}", larder.server, load.server_unit()),
        of(1).map_or(String::new(), |it| format!("{:.3}", it.server)),
        of(2).map_or(String::new(), |it| format!("{:.3}", it.server)),
        text(cpu_ratio(&results[1])),
        text(cpu_ratio(&results[2]))
    );
    if goals.cpu.is_some() {
        let met = at_most(goals.cpu, Some(larder.server));
        entries.push(entry(format!("{name}: {}", load.server_unit()), larder.server, load.server_unit(), None, None, goals.cpu, met));
    }
    if goals.value.is_some() {
        let met = at_most(goals.value, Some(larder.value));
        entries.push(entry(name.to_owned(), larder.value, load.unit(), None, None, goals.value, met));
    }
    entries
}

/// A number with about as many digits as its precision says.
struct Short(f64);

impl std::fmt::Display for Short {
    fn fmt(&self, to: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let digits = to.precision().unwrap_or(4);
        let whole = self.0.abs().max(1.0).log10() as usize + 1;
        write!(to, "{:.*}", digits.saturating_sub(whole + 1).min(3), self.0)
    }
}
