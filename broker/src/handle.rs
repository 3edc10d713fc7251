//! How the rest of the broker talks to the event loop.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, oneshot};
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
/// Decisions asked for and not answered yet, which a slow store makes grow; beyond it 503 `busy`.
const ASKS: usize = 8_192;
/// Rows of teams that wait for the store with the answers of reads, some tens of megabytes; beyond it 503 `busy`.
const READ_ROWS: usize = 50_000;
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
    Ask {
        ask: Ask,
        reply: ReplyTo<Result<Granted, Denied>>,
    },
    /// A look.
    Read(Read),
}

/// Looks at the core, and gives back the answer.
type Look = Box<dyn FnOnce(&Core, Timestamp) -> Box<dyn Reply> + Send>;

/// A look at the core.
pub(crate) enum Read {
    /// It shows who owns what: the answer waits until that is durable.
    Durable(Look),
    /// It shows figures only, and operators need it most while the store fails.
    AtOnce(Look),
}

/// The way back to whoever asked. Its place among those that wait is free once it is gone.
#[derive(Debug)]
pub(crate) struct ReplyTo<T> {
    to: oneshot::Sender<T>,
    _place: Option<OwnedSemaphorePermit>,
}

impl<T> ReplyTo<T> {
    pub(crate) const fn new(to: oneshot::Sender<T>, place: Option<OwnedSemaphorePermit>) -> Self {
        Self { to, _place: place }
    }
}

impl<T: Send + 'static> ReplyTo<T> {
    /// The answer, to be handed over once it may be.
    pub(crate) fn with(self, answer: T) -> Box<dyn Reply> {
        Box::new(Answered { reply: self, answer })
    }
}

/// An answer on its way.
pub(crate) trait Reply: Send {
    /// Hands it over.
    fn send(self: Box<Self>);

    /// Whether nobody waits for it any more.
    fn is_abandoned(&self) -> bool;
}

struct Answered<T> {
    reply: ReplyTo<T>,
    answer: T,
}

impl<T: Send> Reply for Answered<T> {
    fn send(self: Box<Self>) {
        let _ = self.reply.to.send(self.answer);
    }

    fn is_abandoned(&self) -> bool {
        self.reply.to.is_closed()
    }
}

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
    /// The code of the problem that the asker is told.
    pub(crate) fn code(&self) -> &'static str {
        match self {
            Self::Refused(refusal) => refusal.code(),
            Self::StoreFailing => "store_failing",
            Self::Busy => "busy",
            Self::Stopping => "stopping",
        }
    }

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
    /// Places of those that wait for a decision.
    asks: Arc<Semaphore>,
    /// Places of the rows that wait with the answers of reads.
    rows: Arc<Semaphore>,
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
            asks: Arc::new(Semaphore::new(ASKS)),
            rows: Arc::new(Semaphore::new(READ_ROWS)),
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
        let (to, answer) = oneshot::channel();
        let reply = ReplyTo::new(to, Some(places_of(&self.asks, 1)?));
        self.enqueue(Request::Ask { ask, reply })?;
        let answer = self.patiently(answer).await?;
        if places && answer.is_ok() {
            metrics::histogram!(telemetry::ASSIGN_DURATION).record(began.elapsed());
        }
        answer
    }

    /// Looks at who owns what, as far as it is durable: `rows` of it at most, which wait for the store if need be.
    /// Refused at once while the store fails. Who is refused is counted.
    pub(crate) async fn read<T: Send + 'static>(
        &self,
        rows: u32,
        look: impl FnOnce(&Core, Timestamp) -> T + Send + 'static,
    ) -> Result<T, Denied> {
        let seen = self.read_durable(rows, look).await;
        if let Err(denied) = &seen {
            metrics::counter!(telemetry::READS_REFUSED, "code" => denied.code()).increment(1);
        }
        seen
    }

    async fn read_durable<T: Send + 'static>(
        &self,
        rows: u32,
        look: impl FnOnce(&Core, Timestamp) -> T + Send + 'static,
    ) -> Result<T, Denied> {
        if self.vitals.store_failing() {
            return Err(Denied::StoreFailing);
        }
        let (look, answer) = look_and_send(look, Some(places_of(&self.rows, rows)?));
        self.enqueue(Request::Read(Read::Durable(look)))?;
        self.patiently(answer).await
    }

    /// Looks at figures, whatever the store does.
    pub(crate) async fn glance<T: Send + 'static>(
        &self,
        look: impl FnOnce(&Core, Timestamp) -> T + Send + 'static,
    ) -> Result<T, Denied> {
        let (look, answer) = look_and_send(look, None);
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

fn places_of(places: &Arc<Semaphore>, many: u32) -> Result<OwnedSemaphorePermit, Denied> {
    let taken = Arc::clone(places).try_acquire_many_owned(many);
    taken.map_err(|_| Denied::Busy)
}

fn look_and_send<T: Send + 'static>(
    look: impl FnOnce(&Core, Timestamp) -> T + Send + 'static,
    place: Option<OwnedSemaphorePermit>,
) -> (Look, oneshot::Receiver<T>) {
    let (to, answer) = oneshot::channel();
    let reply = ReplyTo::new(to, place);
    let look: Look = Box::new(move |core, now| reply.with(look(core, now)));
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
