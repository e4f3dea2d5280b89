//! The front door from outside: TLS, HTTP/2, certificates from an authority, and what strangers may not take.

mod acme;
mod client;
mod http2;
mod limits;
mod tls;

use larder_harness::{Node, NodeBuilder};

/// A node without an archive.
fn builder() -> NodeBuilder {
    Node::builder(env!("CARGO_BIN_EXE_larder")).archive("none")
}
