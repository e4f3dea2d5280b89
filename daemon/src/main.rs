//! The `larder` program: a crypto library, a command.
//!
//! Everything else is in the library, where tests reach it. Logs, threads and the node itself start with `larder serve`;
//! other commands are short and go without.
//!
//! The allocator is the system's, with few arenas. Buffers of half a MiB are made on one thread and dropped on another here, on dozens of threads: mimalloc
//! kept so much of them that the soak's 64 clients took 1.6 GB within seconds, where the system's needs a tenth of it. Each arena keeps what was
//! freed in it: with eight for each core, as the system's makes them, memory grew for as long as the soak went on (210 MiB after five minutes; with two, 150
//! after two minutes, and no more).

use std::process::ExitCode;

use larder::cli::Cli;

/// Arenas that all threads share. `MALLOC_ARENA_MAX` in the environment goes before it.
#[cfg(target_env = "gnu")]
const ARENAS: i32 = 2;

#[cfg(target_env = "gnu")]
#[allow(unsafe_code, reason = "the one way to tell the system's allocator from within")]
fn limit_arenas() {
    if std::env::var_os("MALLOC_ARENA_MAX").is_none() {
        // SAFETY: a setting of two numbers, made before there is a second thread.
        unsafe { libc::mallopt(libc::M_ARENA_MAX, ARENAS) };
    }
}

fn main() -> ExitCode {
    #[cfg(target_env = "gnu")]
    limit_arenas();
    let command = Cli::read();
    // Two parts of the program use TLS, and neither shall choose for the other.
    let provider = rustls::crypto::aws_lc_rs::default_provider();
    provider.install_default().expect("nothing ran before this that could have installed another one");
    command.run()
}
