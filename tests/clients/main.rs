//! The clients that people have: docker, podman, skopeo and buildah, as Debian ships them, against a real node.

mod docker;
mod large;
mod podman;
mod skopeo;
mod tools;

use larder_harness::{Node, NodeBuilder};

fn node(name: &str) -> NodeBuilder {
    Node::builder(env!("CARGO_BIN_EXE_larder")).name(name)
}
