//! How busy the machine was, so that a figure says whether the network or the processor was its limit.

use std::time::Instant;

/// Of the kernel's clock as programs see it, on every machine that we build for.
const TICKS_PER_SECOND: f64 = 100.0;

/// From now on.
#[derive(Debug, Clone, Copy)]
pub struct Busy {
    begin: Instant,
    before: Ticks,
}

#[derive(Debug, Clone, Copy)]
struct Ticks {
    all: u64,
    idle: u64,
}

impl Busy {
    /// Begins to look.
    pub fn start() -> Self {
        Self { begin: Instant::now(), before: ticks() }
    }

    /// Percent of all processors that were busy since then, with whatever else runs on the machine.
    pub fn percent(&self) -> f64 {
        let now = ticks();
        let all = (now.all - self.before.all).max(1);
        100.0 * (1.0 - (now.idle - self.before.idle) as f64 / all as f64)
    }

    /// Seconds since then.
    pub fn seconds(&self) -> f64 {
        self.begin.elapsed().as_secs_f64()
    }
}

/// The first line of /proc/stat: user, nice, system, idle, iowait, ...
fn ticks() -> Ticks {
    let text = std::fs::read_to_string("/proc/stat").expect("the kernel counts ticks");
    let line = text.lines().next().expect("the line of all processors");
    let numbers: Vec<u64> = line.split_whitespace().skip(1).take(8).map(|number| number.parse().expect("a number")).collect();
    Ticks { all: numbers.iter().sum(), idle: numbers[3] + numbers[4] }
}

/// Seconds that processors have spent on a running process so far.
pub fn cpu_seconds(process: u32) -> f64 {
    let text = std::fs::read_to_string(format!("/proc/{process}/stat")).expect("read the state of a running process");
    // The name, in brackets, may hold anything; user and system time are the 12th and 13th after it.
    let after = text.rsplit_once(')').expect("the name ends").1;
    let ticks: u64 = after.split_whitespace().skip(11).take(2).map(|number| number.parse::<u64>().expect("a number")).sum();
    ticks as f64 / TICKS_PER_SECOND
}
