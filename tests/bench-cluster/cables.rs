//! How full the cables were, second by second: where a crowd waits, and for whom.

use larder_harness::rig::{Host, Rate, Traffic};
use std::time::{Duration, Instant};
use tokio::task::JoinHandle;

const SECOND: Duration = Duration::from_secs(1);

/// What is looked at meanwhile; dropped, it ends.
pub struct Cables {
    begin: Instant,
    rate: Rate,
    origin: Host,
    before: Traffic,
    task: JoinHandle<()>,
}

impl Cables {
    /// Looks at the cables of hosts of this rate, of which the first has what the others want. BENCH_TRACE=1 prints what each second brought.
    pub fn watch(hosts: &[Host], rate: Rate) -> Self {
        let is_told = std::env::var_os("BENCH_TRACE").is_some();
        let watched = hosts.to_vec();
        let task = tokio::spawn(async move {
            if !is_told {
                return;
            }
            let mut before: Vec<Traffic> = watched.iter().map(Host::traffic).collect();
            let mut second = 0;
            loop {
                tokio::time::sleep(SECOND).await;
                second += 1;
                let now: Vec<Traffic> = watched.iter().map(Host::traffic).collect();
                let moved: Vec<Traffic> = now.iter().zip(&before).map(|(now, before)| *now - *before).collect();
                let percent = |bytes: u64| 100 * bytes / rate.bytes(SECOND);
                let sent: Vec<u64> = moved[1..].iter().map(|moved| percent(moved.sent)).collect();
                let received: Vec<u64> = moved[1..].iter().map(|moved| percent(moved.received)).collect();
                let mean = |numbers: &[u64]| numbers.iter().sum::<u64>() / numbers.len() as u64;
                println!(
                    "second {second:>3}: the origin sent {:>3} %; others sent {:>3} % {sent:?}, received {:>3} % {received:?}",
                    percent(moved[0].sent),
                    mean(&sent),
                    mean(&received)
                );
                before = now;
            }
        });
        let origin = hosts[0].clone();
        Self { begin: Instant::now(), rate, before: origin.traffic(), origin, task }
    }

    /// Percent of what the first host's cable could have sent since then.
    pub fn origin_used(&self) -> f64 {
        let sent = (self.origin.traffic() - self.before).sent;
        100.0 * sent as f64 / self.rate.bytes(self.begin.elapsed()) as f64
    }
}

impl Drop for Cables {
    fn drop(&mut self) {
        self.task.abort();
    }
}
