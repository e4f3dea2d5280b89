//! The clients that people have: docker, podman, skopeo and buildah, as Debian ships them, and ORAS, against a real node.
//!
//! Every image is made on the spot of Debian's busybox, so no test needs a network; every client has storage and configuration of
//! its own below the test's temporary folder. Images are told by their ids, which are the digests of their configurations and so of
//! all their layers.

mod access;
mod crossing;
mod docker;
mod export;
mod index;
mod large;
mod oras;
mod podman;
mod setup;
mod skopeo;
mod tls;
mod tools;

use larder_harness::{Node, NodeBuilder};

fn node(name: &str) -> NodeBuilder {
    Node::builder(env!("CARGO_BIN_EXE_larder")).name(name)
}
