//! The rooms of the `larder` program, from the front door to the cellar.
//!
//! ```text
//! main -> cli -> node -> registry -> lookup -> peers   -> store -> protocol
//!                                           -> archive ->
//!                                 -> auth   ----------->
//!                node -> admin, upkeep -> store    config, tasks, telemetry: handed in by node
//! ```
//!
//! Arrows go down only; `registry`, `peers` and `archive` never import each other. See ARCHITECTURE.md.

pub mod admin;
pub mod age;
pub mod archive;
pub mod auth;
pub mod cli;
pub mod config;
pub mod failpoint;
pub mod glob;
pub mod limits;
pub mod lookup;
pub mod node;
pub mod peers;
pub mod registry;
pub mod store;
pub mod tasks;
pub mod telemetry;
pub mod tls;
pub mod upkeep;
