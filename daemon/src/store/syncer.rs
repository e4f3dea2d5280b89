//! Lets many writings wait for one sync: whoever comes first syncs for all that have written by then.

use std::sync::{Condvar, Mutex, PoisonError};

use super::error::Result;
use super::journal::lock;

/// Who waits for the disk, and who is at it.
#[derive(Debug, Default)]
pub(super) struct Syncer {
    state: Mutex<State>,
    done: Condvar,
}

#[derive(Debug, Default)]
struct State {
    written: u64,
    synced: u64,
    running: bool,
}

impl Syncer {
    /// Takes note of a writing; called in the order of writings.
    pub(super) fn written(&self) -> u64 {
        let mut state = lock(&self.state);
        state.written += 1;
        state.written
    }

    /// Waits until that writing is on the disk.
    pub(super) fn wait(&self, ticket: u64, sync: impl Fn() -> Result<()>) -> Result<()> {
        let mut state = lock(&self.state);
        while state.synced < ticket {
            if state.running {
                state = self.done.wait(state).unwrap_or_else(PoisonError::into_inner);
                continue;
            }
            state.running = true;
            let covers = state.written;
            drop(state);
            let synced = sync();
            state = lock(&self.state);
            state.running = false;
            if synced.is_ok() {
                state.synced = covers;
            }
            self.done.notify_all();
            synced?;
        }
        Ok(())
    }
}
