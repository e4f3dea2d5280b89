//! Named steps at which a test can kill this process, or make a step fail.
//!
//! `LARDER_FAILPOINTS="store/blob/renamed-not-indexed=kill;archive/pack/before-put=error@3"` is read once, at the first
//! step that is passed. `kill` ends the process as a power button would, `error` makes the step fail;
//! `@n` waits for the n-th pass. Without the variable a step costs one comparison.

use std::collections::HashMap;
use std::io;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};

struct Armed {
    kill: bool,
    at: u64,
    passed: AtomicU64,
}

fn armed() -> &'static HashMap<String, Armed> {
    static ARMED: OnceLock<HashMap<String, Armed>> = OnceLock::new();
    ARMED.get_or_init(|| std::env::var("LARDER_FAILPOINTS").map(|text| parse(&text)).unwrap_or_default())
}

fn parse(text: &str) -> HashMap<String, Armed> {
    text.split(';')
        .filter_map(|part| {
            let (name, action) = part.split_once('=')?;
            let (action, at) = action.split_once('@').unwrap_or((action, "1"));
            Some((name.to_owned(), Armed { kill: action == "kill", at: at.parse().ok()?, passed: AtomicU64::new(0) }))
        })
        .collect()
}

/// Passes the step `name`.
///
/// # Errors
/// Only where a test armed the step with `error`.
pub fn pass(name: &'static str) -> io::Result<()> {
    let Some(armed) = armed().get(name) else { return Ok(()) };
    if armed.passed.fetch_add(1, Ordering::SeqCst) + 1 != armed.at {
        return Ok(());
    }
    if armed.kill {
        // The same end as `kill -9`: no destructor runs, nothing is flushed.
        let _ = rustix::process::kill_process(rustix::process::getpid(), rustix::process::Signal::KILL);
        loop {
            std::thread::park();
        }
    }
    Err(io::Error::other(format!("failpoint {name}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_variable_names_steps_actions_and_passes() {
        let armed = parse("a/b=kill;c=error@3;broken;d=kill@x");
        assert_eq!(armed.len(), 2);
        assert!(armed["a/b"].kill && armed["a/b"].at == 1);
        assert!(!armed["c"].kill && armed["c"].at == 3);
    }
}
