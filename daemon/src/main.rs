//! The `larder` program: a crypto library, a command.
//!
//! Everything else is in the library, where tests reach it. Logs, threads and the node itself start with `larder serve`;
//! other commands are short and go without.
//!
//! The allocator is the system's. Buffers of half a MiB are made on one thread and dropped on another here, on dozens of threads: mimalloc
//! kept so much of them that the soak's 64 clients took 1.6 GB within seconds, where the system's needs a tenth of it.

use std::process::ExitCode;

use larder::cli::Cli;

fn main() -> ExitCode {
    let command = Cli::read();
    // Two parts of the program use TLS, and neither shall choose for the other.
    let provider = rustls::crypto::aws_lc_rs::default_provider();
    provider.install_default().expect("nothing ran before this that could have installed another one");
    command.run()
}
