//! Named tasks, one cancellation tree, one grace period.
//!
//! Every background task is started here, with a name. A core task that ends by itself, or panics, ends
//! the node: a registry without its front door or its sync must not look healthy.

use std::future::Future;
use std::time::Duration;

use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

/// Starts tasks, tells them to stop, and waits for them.
#[derive(Clone, Debug, Default)]
pub struct Tasks {
    stop: CancellationToken,
    tracker: TaskTracker,
}

impl Tasks {
    /// The token that is cancelled when the node stops.
    pub fn stopping(&self) -> CancellationToken {
        self.stop.clone()
    }

    /// Starts a task that runs until it is told to stop; when it ends before that, the node stops.
    pub fn core(&self, name: &'static str, task: impl Future<Output = ()> + Send + 'static) {
        let stop = self.stop.clone();
        self.tracker.spawn(async move {
            let ended = tokio::spawn(task).await;
            if !stop.is_cancelled() {
                tracing::error!(task = name, panicked = ended.is_err(), "a core task ended by itself: stopping the node");
                stop.cancel();
            }
        });
    }

    /// Starts a task that may end at any time; a panic in it ends the node.
    pub fn spawn(&self, name: &'static str, task: impl Future<Output = ()> + Send + 'static) {
        let stop = self.stop.clone();
        self.tracker.spawn(async move {
            if let Err(error) = tokio::spawn(task).await
                && error.is_panic()
            {
                tracing::error!(task = name, "a task panicked: stopping the node");
                stop.cancel();
            }
        });
    }

    /// Tells every task to stop and waits at most `grace`; `false` when some did not end in time.
    pub async fn stop(&self, grace: Duration) -> bool {
        self.stop.cancel();
        self.tracker.close();
        tokio::time::timeout(grace, self.tracker.wait()).await.is_ok()
    }
}
