//! What the black-box suites share: real nodes, a real S3 server that counts, images made from a seed, a small client.
//!
//! A suite is a `[[test]]` of the daemon, so cargo builds the program and says where it is:
//!
//! ```text
//! let node = Node::builder(env!("CARGO_BIN_EXE_larder")).start().await;
//! let image = Image::from_seed(7, &[1000, 2000]);
//! let registry = Registry::new(node.url());
//! registry.push_image("team/app", "v1", &image).await;
//! registry.pull_image("team/app", "v1", &image).await;
//! node.stop().await;
//! ```
//!
//! - [`Node`]: start, stop, kill and restart the program; its log, its memory, its commands.
//! - [`Registry`]: push and pull as clients do, and verify every byte that comes back.
//! - [`Image`], [`Content`]: what is pushed; the same seed gives the same bytes on every machine.
//! - [`CountingS3`]: an S3 server on a folder that counts every HTTP request and fails on demand.
//! - [`Rig`]: hosts with cables of a known rate, and a proxy that delays, loses and cuts, for nodes that talk over a network.
//! - [`Authority`]: certificates for TLS.
//! - [`http`]: the client below all of them, for requests that no client would send.
//! - [`Figure`]: what was measured, beside what was promised.
//! - [`fuzz()`]: inputs that nobody thought of.
//! - [`wait_until`]: instead of sleeping.
//!
//! What the harness itself cannot do (no port, no program, a node that does not get ready) ends the test with a panic that shows
//! the node's log; what a test wants to look at comes back as a value.

pub mod certificates;
pub mod content;
pub mod figures;
pub mod fleet;
pub mod folder;
pub mod fuzz;
pub mod http;
pub mod image;
pub mod node;
pub mod random;
pub mod registry;
pub mod rig;
pub mod s3;
pub mod wait;

pub use certificates::Authority;
pub use content::{Content, sha256};
pub use figures::Figure;
pub use folder::copy_folder;
pub use fuzz::{fuzz, fuzz_bytes};
pub use http::{Body, Response};
pub use image::{Image, Kind};
pub use node::{Node, NodeBuilder};
pub use random::{Random, for_seeds};
pub use registry::Registry;
pub use rig::Rig;
pub use s3::CountingS3;
pub use wait::wait_until;
