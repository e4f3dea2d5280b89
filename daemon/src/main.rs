//! The `larder` program: an allocator, a crypto library, a command.
//!
//! Everything else is in the library, where tests reach it. Logs, threads and the node itself start with `larder serve`;
//! other commands are short and go without.

use std::process::ExitCode;

use larder::cli::Cli;

/// Buffers of blobs are made on one thread and dropped on another, many at a time: that is what this allocator is made for.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    let command = Cli::read();
    // Two parts of the program use TLS, and neither shall choose for the other.
    let provider = rustls::crypto::aws_lc_rs::default_provider();
    provider.install_default().expect("nothing ran before this that could have installed another one");
    command.run()
}
