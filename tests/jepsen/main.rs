//! Five nodes, clients that write through all of them, and a network, clocks and disks that fail at random; then everything is mended, and
//! what is left is compared with what was promised.
//!
//! ```text
//! JEPSEN_SECONDS=600 LARDER_TEST_SEED=1234 cargo test --release -p larder --test jepsen -- --nocapture
//! ```
//!
//! - `clients` push images, move tags, delete them, pull, and write down when each began, ended, and what was answered.
//! - `nemesis` parts the network (also in one direction), loses packets, kills, stops, shifts clocks, wipes disks and puts back old copies of
//!   them. A disk is only lost when what it holds is on another one that lives.
//! - `model` knows which states are allowed after all that, from the times alone.
//!
//! Checked at the end, on every node: all of them have the same state (I5); every push that was acknowledged is there with all its blobs, byte
//! for byte (I1, I2, I3, I10); each tag means what one of the last writers said (I4: what was deleted stays so); no blob is read through a
//! repository that never had it (I8). While it runs, every byte that a client gets is verified (I2).
//!
//! The seed decides what is tried and not how the machine's threads run: the same seed is the same plan and not the same run.

mod checks;
mod clients;
mod fleet;
mod model;
mod nemesis;

use larder_harness::Random;
use std::time::Duration;

/// How long faults and clients go on in `make test`.
const SECONDS: u64 = 25;

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn nothing_acknowledged_is_lost_and_nothing_deleted_comes_back() {
    let seconds = std::env::var("JEPSEN_SECONDS").map_or(SECONDS, |text| text.parse().expect("JEPSEN_SECONDS is a number"));
    let mut random = Random::printed("jepsen");
    let mut fleet = fleet::Fleet::start(random.number()).await;
    let history = clients::History::default();
    let clients = clients::start(&fleet, &history, &mut random);
    nemesis::run(&mut fleet, &history, &clients, &mut random, Duration::from_secs(seconds)).await;
    clients.stop().await;
    fleet.mend().await;
    checks::all(&fleet, &history).await;
}
