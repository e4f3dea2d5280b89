//! What a node holds after it died: at random moments of concurrent pushes, and at each named step of a commit; killed, or without power.

mod failpoints;
mod folder;
mod kills;
mod ledger;
mod power;
