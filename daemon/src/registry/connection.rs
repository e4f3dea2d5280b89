//! One connection: what is under way on it, and what its client may not do.
//!
//! The HTTP library polls an answer's body when there is room on the connection, so a client that takes nothing is one whose answer is
//! not polled. Each answer that is being sent has a mark of when it was last asked for more; a look now and then at all of them finds the
//! one that stands still, in HTTP/1.1 and HTTP/2 alike. Waiting for a disk or a peer does not count against the client.
//!
//! A connection is dropped when
//!
//! - an answer made no progress for the idle timeout: less than a buffer (256 KiB) was taken in that time (S18);
//! - the client gave up more than [`GIVEN_UP_MAX`] requests within [`GIVEN_UP_PERIOD`] before they were answered: what is called rapid
//!   reset, where each costs the client a few bytes;
//! - it was asked to end, because nothing was under way for too long or the node stops, and did not.

use std::convert::Infallible;
use std::pin::{Pin, pin};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use futures_util::future::BoxFuture;
use http::{Request, Response};
use hyper::body::{Body as HttpBody, Frame, Incoming, SizeHint};
use hyper_util::server::graceful::GracefulConnection;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::{Body, Front};
use crate::limits::Share;
use crate::tls::Client;

/// Most requests that a client may give up before they are answered, in a period.
const GIVEN_UP_MAX: u32 = 200;
const GIVEN_UP_PERIOD: Duration = Duration::from_secs(10);
/// How long a connection may take to end that was asked to.
const END_TIME_MAX: Duration = Duration::from_secs(5);
/// How often a connection is looked at, in parts of its patience.
const LOOKS: u32 = 4;
/// The mark of an answer that waits for its source, and not for the client.
const WAITS_FOR_SOURCE: u64 = u64::MAX;

/// How long a client may take.
#[derive(Clone, Copy, Debug)]
pub(super) struct Patience {
    /// Without anything under way: before the first request, and after it.
    pub(super) idle: Option<(Duration, Duration)>,
    /// With an answer that it does not take.
    pub(super) stalled: Duration,
}

/// A connection that is being watched. Clones are the same one.
#[derive(Clone)]
pub(super) struct Connection {
    front: Arc<Front>,
    client: Arc<Client>,
    shared: Arc<Shared>,
}

struct Shared {
    started: Instant,
    state: Mutex<State>,
}

struct State {
    under_way: usize,
    has_asked: bool,
    idle_since: Instant,
    /// Given up in the period that began then.
    given_up: (Instant, u32),
    /// When each answer that is being sent was last asked for more, in ms since the start.
    sending: Vec<Arc<AtomicU64>>,
}

/// Why a connection is not kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Verdict {
    Keep,
    Idle,
    Stalled,
    GivesUp,
}

impl Connection {
    pub(super) fn new(front: Arc<Front>, client: Client) -> Self {
        let now = Instant::now();
        let state = State { under_way: 0, has_asked: false, idle_since: now, given_up: (now, 0), sending: Vec::new() };
        Self { front, client: Arc::new(client), shared: Arc::new(Shared { started: now, state: Mutex::new(state) }) }
    }

    /// What answers its requests.
    pub(super) fn service(&self) -> Service {
        Service(self.clone())
    }

    /// Serves until the connection ends or is ended.
    pub(super) async fn drive<C, E>(&self, connection: C, patience: Patience, stopping: &CancellationToken)
    where
        C: GracefulConnection<Error = E>,
        E: std::fmt::Display,
    {
        let mut connection = pin!(connection);
        let shortest = patience.idle.map_or(patience.stalled, |(first, later)| first.min(later).min(patience.stalled));
        let mut look = tokio::time::interval((shortest / LOOKS).max(Duration::from_millis(10)));
        look.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let client = self.client.address;
        let mut told = false;
        let mut ends_by: Option<Instant> = None;
        loop {
            tokio::select! {
                biased;
                ended = connection.as_mut() => {
                    if let Err(error) = ended {
                        tracing::debug!(%client, %error, "a connection ended");
                    }
                    return;
                }
                () = stopping.cancelled(), if !told => {
                    // Requests under way have the node's grace; the whole task is dropped when that is over.
                    told = true;
                    connection.as_mut().graceful_shutdown();
                }
                _ = look.tick() => match self.shared.verdict(patience, Instant::now()) {
                    Verdict::Keep => {}
                    Verdict::Idle => match ends_by {
                        None => {
                            ends_by = Some(Instant::now() + END_TIME_MAX.min(shortest));
                            connection.as_mut().graceful_shutdown();
                        }
                        Some(by) if Instant::now() >= by => return,
                        Some(_) => {}
                    },
                    why @ (Verdict::Stalled | Verdict::GivesUp) => {
                        self.front.metrics.dropped_connections.inc();
                        tracing::debug!(%client, ?why, "a connection was dropped");
                        return;
                    }
                },
            }
        }
    }

    async fn answer(self, request: Request<Incoming>) -> Response<Sending> {
        let asked = Asked::begin(Arc::clone(&self.shared));
        let (response, share) = self.front.answer(request, &self.client).await;
        let mark = asked.answered();
        response.map(|body| Sending { body, mark, _share: share })
    }
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn verdict(&self, patience: Patience, now: Instant) -> Verdict {
        let state = self.state();
        if state.given_up.1 > GIVEN_UP_MAX {
            return Verdict::GivesUp;
        }
        let since = |mark: u64| now.saturating_duration_since(self.started + Duration::from_millis(mark));
        let marks = state.sending.iter().map(|mark| mark.load(Ordering::Relaxed));
        if marks.filter(|mark| *mark != WAITS_FOR_SOURCE).any(|mark| since(mark) >= patience.stalled) {
            return Verdict::Stalled;
        }
        let Some((first, later)) = patience.idle.filter(|_| state.under_way == 0) else { return Verdict::Keep };
        let idle = if state.has_asked { later } else { first };
        if now.saturating_duration_since(state.idle_since) >= idle { Verdict::Idle } else { Verdict::Keep }
    }

    fn now_ms(&self) -> u64 {
        u64::try_from(self.started.elapsed().as_millis()).unwrap_or(WAITS_FOR_SOURCE - 1)
    }
}

/// A request that is not answered yet; given up when it is dropped.
struct Asked {
    shared: Arc<Shared>,
    is_answered: bool,
}

impl Asked {
    fn begin(shared: Arc<Shared>) -> Self {
        let mut state = shared.state();
        state.under_way += 1;
        state.has_asked = true;
        drop(state);
        Self { shared, is_answered: false }
    }

    fn answered(mut self) -> Mark {
        self.is_answered = true;
        let mark = Arc::new(AtomicU64::new(self.shared.now_ms()));
        self.shared.state().sending.push(Arc::clone(&mark));
        Mark { shared: Arc::clone(&self.shared), last: mark }
    }
}

impl Drop for Asked {
    fn drop(&mut self) {
        if self.is_answered {
            return;
        }
        let (now, mut state) = (Instant::now(), self.shared.state());
        state.under_way -= 1;
        state.idle_since = now;
        if now.saturating_duration_since(state.given_up.0) > GIVEN_UP_PERIOD {
            state.given_up = (now, 0);
        }
        state.given_up.1 += 1;
    }
}

/// An answer that is being sent, until it is dropped.
struct Mark {
    shared: Arc<Shared>,
    last: Arc<AtomicU64>,
}

impl Drop for Mark {
    fn drop(&mut self) {
        let mut state = self.shared.state();
        state.under_way -= 1;
        state.idle_since = Instant::now();
        if let Some(place) = state.sending.iter().position(|mark| Arc::ptr_eq(mark, &self.last)) {
            state.sending.swap_remove(place);
        }
    }
}

/// The body of an answer, and what it holds while it is sent.
pub(super) struct Sending {
    body: Body,
    mark: Mark,
    /// The request counts as under way for so long.
    _share: Option<Share>,
}

impl HttpBody for Sending {
    type Data = Bytes;
    type Error = std::io::Error;

    fn poll_frame(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<std::io::Result<Frame<Bytes>>>> {
        let this = &mut *self;
        let polled = Pin::new(&mut this.body).poll_frame(context);
        let mark = if polled.is_pending() { WAITS_FOR_SOURCE } else { this.mark.shared.now_ms() };
        this.mark.last.store(mark, Ordering::Relaxed);
        polled
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

/// Hands requests to the front door.
pub(super) struct Service(Connection);

impl hyper::service::Service<Request<Incoming>> for Service {
    type Response = Response<Sending>;
    type Error = Infallible;
    type Future = BoxFuture<'static, Result<Response<Sending>, Infallible>>;

    fn call(&self, request: Request<Incoming>) -> Self::Future {
        let connection = self.0.clone();
        Box::pin(async move { Ok(connection.answer(request).await) })
    }
}
