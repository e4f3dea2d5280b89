//! Fetching a blob: from everybody who has some of it, chunk by chunk, each checked before it goes anywhere.
//!
//! - [`plan`] decides which chunk to ask of whom; it has no I/O and no clock, and `sim` tries it by the thousand in virtual time.
//! - [`sources`] is what the plan knows of one peer.
//! - [`run`] does what the plan says: it follows what others have, asks, checks, hands chunks to the store.
//! - [`doubt`] fetches what a record describes wrongly.
//!
//! All connected peers are asked at once what they have of the blob. Who fetches it too is followed, and follows this node:
//! chunks are passed on while the rest comes. Peers of version 1 are asked the old way, whether they have it whole.

use std::time::Duration;

use super::Inner;
use super::error::Result;
use super::swarms::Urgency;
use crate::store::Staging;

pub(super) use run::name as class_name;

mod counts;
mod doubt;
mod plan;
mod run;
#[cfg(test)]
mod sim;
mod sources;

/// How long peers have to say whether they hold a blob.
const ASK: Duration = Duration::from_secs(2);
/// How often peers are asked when connections ended meanwhile, and the time between.
const ROUNDS: usize = 3;
const PAUSE: Duration = Duration::from_millis(200);

/// Fills a staged blob; `false` when no peer has it, or all that did ended early.
///
/// Of two connections to a peer one is given up soon after both came up, and a peer that restarts comes back: where a
/// connection ended meanwhile, the peers are asked again.
pub(super) async fn fill(inner: &Inner, staging: &mut Staging, urgency: &Urgency) -> Result<bool> {
    let mut fetching = inner.swarms.begin(staging.digest());
    for _ in 0..ROUNDS {
        match run::run(inner, staging, urgency, &mut fetching).await? {
            run::End::Whole => return Ok(true),
            run::End::Nobody => break,
            run::End::Broken => tokio::time::sleep(PAUSE).await,
        }
    }
    Ok(false)
}
