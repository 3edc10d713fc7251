//! The one owner of the core.
//!
//! A thread of its own, so that neither a long decision holds up sockets nor a crowd of sockets
//! holds up the heartbeats. It takes in events and requests, hands the core's writes to the store's
//! thread, and carries out the rest in order once [`Pipeline`] lets it pass.

use std::collections::HashMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;
use usher_placement::{Answer, Ask, Command, Core, Event, Record, RequestId};
use usher_shared::clock;
use usher_shared::link::ToNode;
use usher_shared::quantity::Timestamp;

use crate::handle::{CoreHandle, Denied, Granted, Input, Read, Reply, ReplyTo, Request, Vitals};
use crate::keys::Keyring;
use crate::outlet::Outlets;
use crate::probe::Prober;
use crate::routes::RouteTable;
use crate::store::{Store, StoreError};
use crate::telemetry;
use crate::url_probe::UrlProber;
use usher_placement::pipeline::{Effect, Pace, Pipeline};

/// Inputs taken in before commands are carried out: enough to share one flush of the store, few
/// enough that the first of them does not wait for the last.
const BATCH: usize = 256;
/// Events that may wait; beyond it the links stop reading, and TCP slows the nodes down.
const EVENTS: usize = 4_096;
/// Requests that may wait to be taken in; beyond it the answer is 503 `busy`.
const REQUESTS: usize = 2_048;
/// The loop wakes at least this often: timers stop while a machine sleeps and leases do not.
const LONGEST_SLEEP_MS: u64 = 500;
/// How often a failing store is tried again.
const RETRY_MS: u64 = 1_000;
/// A batch that takes longer than this counts as stalled: half of what a node with the shortest
/// usual lease can wait for its acknowledgement.
const STALLED_MS: u64 = 1_000;
/// A store that is at one batch for so long counts as failing: clients are told so, and not only to wait.
const STUCK_MS: u64 = 5_000;
/// How often answers that wait for the store are looked through for those that nobody waits for any more.
const ABANDONED_MS: u64 = 500;
/// How often the core is told which tickets were given.
const GIVEN_MS: u64 = 1_000;
/// How long a stop waits for the last batch.
const LAST_BATCH: Duration = Duration::from_secs(5);

/// What the loop works on.
pub(crate) struct Parts {
    pub(crate) core: Core,
    pub(crate) store: Box<dyn Store>,
    pub(crate) routes: Arc<RouteTable>,
    pub(crate) keys: Arc<Keyring>,
    pub(crate) vitals: Arc<Vitals>,
    /// Ends the loop once everything else has stopped asking.
    pub(crate) stop: CancellationToken,
    /// Cancelled once the loop has ended, by `stop` or by a bug.
    pub(crate) ended: CancellationToken,
}

/// A batch that the store is done with.
struct StoreDone {
    batch: Vec<Record>,
    took: Duration,
    outcome: Result<(), StoreError>,
}

struct Pending {
    reply: ReplyTo<Result<Granted, Denied>>,
    subject: Subject,
}

/// What a request's answer shows besides the answer itself.
enum Subject {
    Route,
    Team,
    Node(usher_shared::id::NodeId),
    Nothing,
}

struct EventLoop {
    core: Core,
    routes: Arc<RouteTable>,
    keys: Arc<Keyring>,
    vitals: Arc<Vitals>,
    pipeline: Pipeline<Box<dyn Reply>>,
    outlets: Outlets,
    prober: Prober,
    url_prober: UrlProber,
    /// By the number each request was given here; every one is answered once and then gone.
    pending: HashMap<RequestId, Pending>,
    last_request: u64,
    to_store: std::sync::mpsc::SyncSender<Vec<Record>>,
    /// When the batch in flight was handed over.
    handed_over: Option<Timestamp>,
    /// A batch that failed, and when to try it again.
    failed: Option<(Vec<Record>, Timestamp)>,
    ready: Vec<Effect<Box<dyn Reply>>>,
    /// When answers were last looked through for those that nobody waits for.
    looked_through: Timestamp,
    /// When the core was last told which tickets were given.
    told_given: Timestamp,
}

/// Starts the loop's thread and the store's. Returns once the core's first commands (the routes
/// it knows from its store) have been carried out.
pub(crate) async fn start(parts: Parts) -> std::io::Result<(CoreHandle, std::thread::JoinHandle<()>)> {
    let (to_store, batches) = std::sync::mpsc::sync_channel(1);
    let (done, store_done) = mpsc::channel(1);
    let mut store = parts.store;
    let store_thread = std::thread::Builder::new()
        .name("usher-store".to_owned())
        .spawn(move || commit_batches(store.as_mut(), &batches, &done))?;

    let (events, event_inbox) = mpsc::channel(EVENTS);
    let (requests, request_inbox) = mpsc::channel(REQUESTS);
    let handle = CoreHandle::new(events, requests, Arc::clone(&parts.vitals));
    let event_loop = EventLoop {
        core: parts.core,
        routes: parts.routes,
        keys: parts.keys,
        vitals: parts.vitals,
        pipeline: Pipeline::default(),
        outlets: Outlets::default(),
        prober: Prober::new(handle.clone(), tokio::runtime::Handle::current()),
        url_prober: UrlProber::new(handle.clone(), tokio::runtime::Handle::current()),
        pending: HashMap::new(),
        last_request: 0,
        to_store,
        handed_over: None,
        failed: None,
        ready: Vec::new(),
        looked_through: clock::boottime(),
        told_given: clock::boottime(),
    };
    let (settled, first_commands) = tokio::sync::oneshot::channel();
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .build()?;
    let (stop, ended) = (parts.stop, parts.ended.drop_guard());
    let loop_thread = std::thread::Builder::new()
        .name("usher-core".to_owned())
        .spawn(move || {
            let ended = ended;
            let inboxes = Inboxes {
                events: event_inbox,
                requests: request_inbox,
                store_done,
            };
            runtime.block_on(event_loop.run(inboxes, stop, settled));
            // The loop dropped its sender, so the store's thread ends, and with it the store's lock.
            let _ = store_thread.join();
            drop(ended);
        })?;
    let _ = first_commands.await;
    Ok((handle, loop_thread))
}

fn commit_batches(
    store: &mut dyn Store,
    batches: &std::sync::mpsc::Receiver<Vec<Record>>,
    done: &mpsc::Sender<StoreDone>,
) {
    while let Ok(batch) = batches.recv() {
        let began = Instant::now();
        // A panic must not end this thread in silence: the loop would wait for its answer for ever.
        let committed = catch_unwind(AssertUnwindSafe(|| store.commit(&batch)));
        let outcome = committed.unwrap_or_else(|_| Err(StoreError::GaveUp));
        let took = began.elapsed();
        if done.blocking_send(StoreDone { batch, took, outcome }).is_err() {
            return;
        }
    }
}

struct Inboxes {
    events: mpsc::Receiver<Input>,
    requests: mpsc::Receiver<Request>,
    store_done: mpsc::Receiver<StoreDone>,
}

impl EventLoop {
    async fn run(
        mut self,
        mut inboxes: Inboxes,
        stop: CancellationToken,
        settled: tokio::sync::oneshot::Sender<()>,
    ) {
        let now = clock::boottime();
        // Before anybody is told that it has started, or it would look stuck for a moment.
        self.vitals.beat(now);
        self.pump(now);
        let settle = ReplyTo::new(settled, None).with(());
        self.pipeline.push(Effect::Reply(settle), &mut self.ready);
        self.carry_out();
        loop {
            let now = clock::boottime();
            self.vitals.beat(now);
            let sleep = Duration::from_millis(self.wake_at().since(now).clamp(1, LONGEST_SLEEP_MS));
            tokio::select! {
                biased;
                () = stop.cancelled() => break,
                Some(done) = inboxes.store_done.recv() => self.store_done(done),
                Some(input) = inboxes.events.recv() => self.take(input, clock::boottime()),
                Some(request) = inboxes.requests.recv() => self.take_request(request, clock::boottime()),
                () = tokio::time::sleep(sleep) => {}
            }
            let now = clock::boottime();
            // As many of either, so that a crowd of clients cannot hold up the heartbeats, nor a
            // large pool the clients.
            for _ in 0..BATCH {
                let Ok(input) = inboxes.events.try_recv() else {
                    break;
                };
                self.take(input, now);
            }
            for _ in 0..BATCH {
                let Ok(request) = inboxes.requests.try_recv() else {
                    break;
                };
                self.take_request(request, now);
            }
            self.tell_given(now);
            if self.core.next_deadline() <= now {
                self.core.handle_deadline(now);
            }
            self.pump(now);
        }
        self.finish(&mut inboxes.store_done).await;
    }

    fn wake_at(&self) -> Timestamp {
        let mut at = self.core.next_deadline();
        if let Some((_, retry_at)) = &self.failed {
            at = at.min(*retry_at);
        }
        if let Some(since) = self.handed_over {
            let now = clock::boottime();
            // What is past has been seen to, and must not keep the loop awake.
            let ahead = [STALLED_MS, STUCK_MS].map(|millis| since.plus(millis));
            for due in ahead.into_iter().filter(|due| *due > now) {
                at = at.min(due);
            }
        }
        at
    }

    /// Tells the core once a second which tickets were given: the hot path only counts them.
    fn tell_given(&mut self, now: Timestamp) {
        let over_ms = now.since(self.told_given);
        if over_ms < GIVEN_MS {
            return;
        }
        self.told_given = now;
        for (node, given) in self.routes.take_given() {
            let sent = Event::Sent {
                node,
                tickets: given.tickets,
                teams: given.teams,
                over_ms,
            };
            self.core.handle(sent, now);
        }
    }

    fn take(&mut self, input: Input, now: Timestamp) {
        match input {
            Input::Event(event) => {
                let closed = match &event {
                    Event::LinkClosed { link } => Some(*link),
                    _ => None,
                };
                self.core.handle(event, now);
                if let Some(link) = closed {
                    // Nothing more for it comes after this.
                    self.poll_commands(now);
                    self.pipeline.forget_link(link);
                    self.outlets.forget(link);
                }
            }
            Input::Hello { link, hello, outlet } => {
                self.outlets.open(link, hello.node.clone(), outlet);
                self.core.handle(Event::Hello { link, hello }, now);
            }
        }
    }

    fn take_request(&mut self, request: Request, now: Timestamp) {
        match request {
            Request::Ask { ask, reply } => {
                self.last_request += 1;
                let number = RequestId(self.last_request);
                let subject = Subject::of(&ask);
                self.pending.insert(number, Pending { reply, subject });
                self.core.handle(Event::Request { request: number, ask }, now);
            }
            Request::Read(Read::AtOnce(read)) => {
                // What was decided before this read shows in it; what has not been polled yet is
                // in the core's state already, so nothing needs pumping first.
                read(&self.core, now).send();
            }
            Request::Read(Read::Durable(read)) => {
                // The writes of earlier inputs must be in the batch that this answer waits for.
                self.poll_commands(now);
                let answer = read(&self.core, now);
                self.pipeline.push(Effect::Reply(answer), &mut self.ready);
            }
        }
    }

    /// Takes the core's commands, hands the store its next batch, carries out what may pass.
    fn pump(&mut self, now: Timestamp) {
        self.poll_commands(now);
        if let Some((_, retry_at)) = &self.failed
            && *retry_at <= now
            && let Some((batch, _)) = self.failed.take()
        {
            self.hand_over(batch, now);
        }
        if let Some(batch) = self.pipeline.next_batch() {
            self.hand_over(batch, now);
        }
        let at_it_ms = self.handed_over.map_or(0, |since| now.since(since));
        if self.pipeline.waiting() > 0 && now.since(self.looked_through) >= ABANDONED_MS {
            self.looked_through = now;
            self.pipeline.drop_replies(|reply| reply.is_abandoned());
        }
        if at_it_ms >= STALLED_MS {
            self.pipeline.set_pace(Pace::Stalled, &mut self.ready);
        }
        if at_it_ms >= STUCK_MS && !self.vitals.set_store_failing(true) {
            tracing::error!(
                at_it_ms,
                "the store has been at one batch for long; nothing is granted until it is done"
            );
        }
        self.carry_out();
    }

    fn poll_commands(&mut self, now: Timestamp) {
        while let Some(command) = self.core.poll_command() {
            match command {
                Command::Write(record) => self.pipeline.write(record),
                Command::Answer { request, answer } => {
                    let Some(pending) = self.pending.remove(&request) else {
                        continue;
                    };
                    let answer = answer
                        .map(|answer| self.grant(answer, pending.subject, now))
                        .map_err(Denied::Refused);
                    let reply = pending.reply.with(answer);
                    self.pipeline.push(Effect::Reply(reply), &mut self.ready);
                }
                other => self
                    .pipeline
                    .push(Effect::Command(Box::new(other)), &mut self.ready),
            }
        }
    }

    /// The answer with what its asker wants to see, as it was when it was decided.
    fn grant(&self, answer: Answer, subject: Subject, now: Timestamp) -> Granted {
        match answer {
            Answer::Assigned { team, route, created } => Granted::Assigned {
                view: match subject {
                    Subject::Team => self.core.team(&team, now).map(Box::new),
                    _ => None,
                },
                route,
                created,
            },
            Answer::Forgotten => Granted::Forgotten,
            Answer::Done => Granted::Done(match subject {
                Subject::Node(node) => self.core.node(&node, now).map(Box::new),
                _ => None,
            }),
            Answer::Operation(id) => Granted::Operation(self.core.operation(&id, now).map(Box::new)),
        }
    }

    fn hand_over(&mut self, batch: Vec<Record>, now: Timestamp) {
        self.handed_over = Some(now);
        // There is room for one and one is in flight at most, so this never blocks; it fails only
        // when the store's thread has died, which a later batch would not mend.
        if self.to_store.try_send(batch).is_err() {
            self.vitals.set_store_failing(true);
            tracing::error!("the store's thread is gone; restart the broker");
        }
    }

    fn store_done(&mut self, done: StoreDone) {
        metrics::histogram!(telemetry::STORE_FLUSH).record(done.took);
        self.handed_over = None;
        match done.outcome {
            Ok(()) => {
                if self.vitals.set_store_failing(false) {
                    tracing::info!("the store works again");
                }
                self.pipeline.set_pace(Pace::Steady, &mut self.ready);
                self.pipeline.committed(&mut self.ready);
            }
            Err(error) => {
                if !self.vitals.set_store_failing(true) {
                    tracing::error!(error = %crate::error::Chain(&error), "the store fails; nothing is granted until it works");
                }
                self.failed = Some((done.batch, clock::boottime().plus(RETRY_MS)));
                self.pipeline.set_pace(Pace::Stalled, &mut self.ready);
            }
        }
        self.carry_out();
    }

    fn carry_out(&mut self) {
        for effect in std::mem::take(&mut self.ready) {
            match effect {
                Effect::Reply(reply) => reply.send(),
                Effect::Command(command) => self.carry_out_one(*command),
            }
        }
    }

    fn carry_out_one(&mut self, command: Command) {
        match command {
            Command::Send { link, mut message } => {
                if let ToNode::Welcome(welcome) = message.as_mut()
                    && let Some(node) = self.outlets.node(link)
                {
                    welcome.ticket_keys = self.keys.ticket_keys(node);
                }
                self.outlets.send(link, message);
            }
            Command::Close { link, refused } => self.outlets.close(link, refused),
            Command::Route { team, route } => self.routes.set_team(team, route),
            Command::Node { node, entry } => self.routes.set_node(&node, entry.as_ref()),
            Command::Probe {
                node,
                incarnation,
                address,
            } => self.prober.probe(node, incarnation, address),
            Command::ProbeUrl {
                node,
                incarnation,
                url,
            } => self.url_prober.look(node, incarnation, &url),
            Command::AskWho {
                node,
                incarnation,
                address,
            } => self
                .prober
                .ask_who(node, incarnation, address, self.core.cluster()),
            Command::Notice(notice) => telemetry::note(&notice, self.vitals.refusals()),
            // `poll_commands` turned both into something else.
            Command::Write(_) | Command::Answer { .. } => {}
        }
    }

    /// Lets the batch in flight and the one after it become durable, for a while.
    async fn finish(&mut self, store_done: &mut mpsc::Receiver<StoreDone>) {
        let until = tokio::time::Instant::now() + LAST_BATCH;
        self.pump(clock::boottime());
        while !self.pipeline.is_durable() {
            match tokio::time::timeout_at(until, store_done.recv()).await {
                Ok(Some(done)) => {
                    self.store_done(done);
                    self.pump(clock::boottime());
                }
                _ => {
                    tracing::warn!(
                        "stopped with writes that the store did not take; nothing of them was granted"
                    );
                    return;
                }
            }
        }
    }
}

impl Subject {
    fn of(ask: &Ask) -> Self {
        match ask {
            Ask::Connect { .. } => Self::Route,
            Ask::Put { .. } | Ask::Patch { .. } => Self::Team,
            Ask::Cordon { node } | Ask::Uncordon { node } | Ask::Undrain { node } => Self::Node(node.clone()),
            Ask::Delete { .. } | Ask::Drain { .. } | Ask::Shed { .. } | Ask::Release => Self::Nothing,
        }
    }
}
