//! How the rest of the broker talks to the event loop.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};
use tokio::sync::{mpsc, oneshot};
use usher_placement::{Ask, Core, Event, LinkId, Refusal, Route};
use usher_shared::clock;
use usher_shared::link::Hello;
use usher_shared::quantity::Timestamp;
use usher_shared::rest::{NodeView, OperationView, Problem, TeamView};

use crate::outlet::Outlet;
use crate::random;
use crate::refusals::Refusals;
use crate::telemetry;

/// How long a request waits for the loop and the store.
const PATIENCE: Duration = Duration::from_secs(10);
/// A loop that has not come round for this long is stuck. It wakes every half second.
const STUCK_MS: u64 = 5_000;
/// A loop that has not come round for this long will not.
const DEAD_MS: u64 = 30_000;
/// When to come back after the broker could not answer, before jitter.
const RETRY_MS: u64 = 1_000;

/// What happened, for the loop.
pub(crate) enum Input {
    /// Something that the core takes as it is.
    Event(Event),
    /// A node introduced itself; from here on the loop can write to it.
    Hello {
        link: LinkId,
        hello: Box<Hello>,
        outlet: Outlet,
    },
}

/// What somebody wants of the loop.
pub(crate) enum Request {
    /// A decision.
    Ask { ask: Ask, reply: ReplyTo },
    /// A look.
    Read(Read),
}

/// Looks at the core, and gives back what hands over the answer.
type Look = Box<dyn FnOnce(&Core, Timestamp) -> Box<dyn FnOnce() + Send> + Send>;

/// A look at the core.
pub(crate) enum Read {
    /// It shows who owns what: the answer waits until that is durable.
    Durable(Look),
    /// It shows figures only, and operators need it most while the store fails.
    AtOnce(Look),
}

pub(crate) type ReplyTo = oneshot::Sender<Result<Granted, Denied>>;

/// What came of a request.
#[derive(Debug)]
pub(crate) enum Granted {
    /// The team has this node; the view is there when the request was a `PUT`.
    Assigned {
        view: Option<Box<TeamView>>,
        route: Route,
        created: bool,
    },
    /// The team is gone.
    Forgotten,
    /// It is so now; the node, when the request was about one.
    Done(Option<Box<NodeView>>),
    /// An operation began, ended, or was going on already.
    Operation(Option<Box<OperationView>>),
}

/// Why a request was not met.
#[derive(Debug)]
pub(crate) enum Denied {
    /// The core said no.
    Refused(Refusal),
    /// Nothing can be made durable, so nothing can be granted.
    StoreFailing,
    /// More requests are waiting than there may be.
    Busy,
    /// The broker is going away.
    Stopping,
}

impl Denied {
    /// The problem that the asker is told.
    pub(crate) fn problem(&self) -> Problem {
        let later =
            |code, detail: &str| Problem::new(503, code, detail).retry_after(random::jittered(RETRY_MS));
        match self {
            Self::StoreFailing => later(
                "store_failing",
                "the broker cannot write its store; existing assignments go on. See the broker's log",
            ),
            Self::Busy => later("busy", "too many requests are waiting; come back later"),
            Self::Stopping => later("stopping", "the broker is stopping; come back later"),
            Self::Refused(refusal) => {
                let status = match refusal {
                    Refusal::UnknownTeam(_) | Refusal::UnknownNode(_) => 404,
                    Refusal::NoNode { .. }
                    | Refusal::NodeFull { .. }
                    | Refusal::Pinned { .. }
                    | Refusal::TooManyTeams { .. } => 503,
                    Refusal::WouldNotFit { .. } | Refusal::PinnedHere { .. } | Refusal::WrongState { .. } => {
                        409
                    }
                    Refusal::OutOfRange { .. } => 400,
                };
                let problem = Problem::new(status, refusal.code(), refusal.to_string());
                match refusal.retry_ms() {
                    Some(retry_ms) => problem.retry_after(random::jittered(retry_ms)),
                    None if status == 503 => problem.retry_after(random::jittered(10 * RETRY_MS)),
                    None => problem,
                }
            }
        }
    }
}

/// How the rest of the broker talks to the event loop.
#[derive(Clone)]
pub(crate) struct CoreHandle {
    events: mpsc::Sender<Input>,
    requests: mpsc::Sender<Request>,
    vitals: Arc<Vitals>,
}

impl CoreHandle {
    pub(crate) fn new(
        events: mpsc::Sender<Input>,
        requests: mpsc::Sender<Request>,
        vitals: Arc<Vitals>,
    ) -> Self {
        Self {
            events,
            requests,
            vitals,
        }
    }

    /// Tells the loop what happened; waits while its inbox is full, which holds back whoever said it.
    pub(crate) async fn tell(&self, input: Input) -> Result<(), Denied> {
        self.events.send(input).await.map_err(|_| Denied::Stopping)
    }

    /// Asks for a decision, and returns once it is durable.
    pub(crate) async fn ask(&self, ask: Ask) -> Result<Granted, Denied> {
        if self.vitals.store_failing() {
            return Err(Denied::StoreFailing);
        }
        let places = matches!(ask, Ask::Connect { .. } | Ask::Put { .. } | Ask::Patch { .. });
        let began = Instant::now();
        let (reply, answer) = oneshot::channel();
        self.enqueue(Request::Ask { ask, reply })?;
        let answer = self.patiently(answer).await?;
        if places && answer.is_ok() {
            metrics::histogram!(telemetry::ASSIGN_DURATION).record(began.elapsed());
        }
        answer
    }

    /// Looks at who owns what, as far as it is durable.
    pub(crate) async fn read<T: Send + 'static>(
        &self,
        look: impl FnOnce(&Core, Timestamp) -> T + Send + 'static,
    ) -> Result<T, Denied> {
        let (look, answer) = look_and_send(look);
        self.enqueue(Request::Read(Read::Durable(look)))?;
        self.patiently(answer).await
    }

    /// Looks at figures, whatever the store does.
    pub(crate) async fn glance<T: Send + 'static>(
        &self,
        look: impl FnOnce(&Core, Timestamp) -> T + Send + 'static,
    ) -> Result<T, Denied> {
        let (look, answer) = look_and_send(look);
        self.enqueue(Request::Read(Read::AtOnce(look)))?;
        self.patiently(answer).await
    }

    /// How the loop and the store are.
    pub(crate) fn vitals(&self) -> &Vitals {
        &self.vitals
    }

    fn enqueue(&self, request: Request) -> Result<(), Denied> {
        self.requests.try_send(request).map_err(|error| match error {
            mpsc::error::TrySendError::Full(_) => Denied::Busy,
            mpsc::error::TrySendError::Closed(_) => Denied::Stopping,
        })
    }

    async fn patiently<T>(&self, answer: oneshot::Receiver<T>) -> Result<T, Denied> {
        match tokio::time::timeout(PATIENCE, answer).await {
            Ok(Ok(answer)) => Ok(answer),
            Ok(Err(_)) => Err(Denied::Stopping),
            Err(_) if self.vitals.store_failing() => Err(Denied::StoreFailing),
            Err(_) => Err(Denied::Busy),
        }
    }
}

fn look_and_send<T: Send + 'static>(
    look: impl FnOnce(&Core, Timestamp) -> T + Send + 'static,
) -> (Look, oneshot::Receiver<T>) {
    let (reply, answer) = oneshot::channel();
    let look: Look = Box::new(move |core, now| {
        let seen = look(core, now);
        Box::new(move || {
            let _ = reply.send(seen);
        })
    });
    (look, answer)
}

/// How the loop and the store are, for health pages.
#[derive(Debug, Default)]
pub(crate) struct Vitals {
    store_failing: AtomicBool,
    last_beat_ms: AtomicU64,
    refusals: Refusals,
}

impl Vitals {
    /// Whether the last batch could not be written.
    pub(crate) fn store_failing(&self) -> bool {
        self.store_failing.load(Ordering::Relaxed)
    }

    /// Notes how the store is; returns how it was.
    pub(crate) fn set_store_failing(&self, failing: bool) -> bool {
        metrics::gauge!(telemetry::STORE_FAILING).set(if failing { 1.0 } else { 0.0 });
        self.store_failing.swap(failing, Ordering::Relaxed)
    }

    /// Links of nodes that were refused.
    pub(crate) fn refusals(&self) -> &Refusals {
        &self.refusals
    }

    /// The loop has come round.
    pub(crate) fn beat(&self, now: Timestamp) {
        self.last_beat_ms.store(now.as_millis(), Ordering::Relaxed);
    }

    /// What keeps the broker from doing its work, if anything.
    pub(crate) fn ailment(&self) -> Option<&'static str> {
        let last = Timestamp::from_millis(self.last_beat_ms.load(Ordering::Relaxed));
        if self.store_failing() {
            Some("the store fails")
        } else if clock::boottime().since(last) > STUCK_MS {
            Some("the event loop is stuck")
        } else if self.refusals.looks_misplaced() {
            Some(
                "this broker began a new cluster, and only nodes of another one come: is --data the right folder?",
            )
        } else {
            None
        }
    }

    /// Whether only a restart can help: the one loop that decides everything has stood still for so long that
    /// every lease is over.
    pub(crate) fn is_dead(&self) -> bool {
        let last = Timestamp::from_millis(self.last_beat_ms.load(Ordering::Relaxed));
        last.as_millis() > 0 && clock::boottime().since(last) > DEAD_MS
    }
}
