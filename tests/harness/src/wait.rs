//! Waiting for something to become true, with a deadline, instead of sleeping and hoping.

use std::time::{Duration, Instant};

/// Between two looks: short against everything that is waited for, long enough to leave the two cores to the nodes.
const PAUSE: Duration = Duration::from_millis(20);

/// Asks `condition` again and again until it gives a value, which is returned.
///
/// # Panics
/// When `deadline` has passed: says what was waited for.
pub async fn wait_until<T>(what: &str, deadline: Duration, mut condition: impl AsyncFnMut() -> Option<T>) -> T {
    match try_until(deadline, &mut condition).await {
        Some(value) => value,
        None => panic!("waited {deadline:?} for: {what}"),
    }
}

/// The same, and `None` when the deadline has passed, for callers with more to say about it.
pub async fn try_until<T>(deadline: Duration, mut condition: impl AsyncFnMut() -> Option<T>) -> Option<T> {
    let begin = Instant::now();
    loop {
        if let Some(value) = condition().await {
            return Some(value);
        }
        if begin.elapsed() > deadline {
            return None;
        }
        tokio::time::sleep(PAUSE).await;
    }
}
