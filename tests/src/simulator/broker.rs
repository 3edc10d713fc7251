//! The broker's process: the real core behind the real pipeline, on a disk that forgets what was not
//! durable.

use std::collections::BTreeMap;
use usher_placement::pipeline::{Effect, Pipeline};
use usher_placement::{
    Answer, Ask, Command, Core, Event, LinkId, NodeEntry, ProbeOutcome, Record, Refusal, RequestId, Route,
    Settings,
};
use usher_shared::id::{BrokerId, ConnectionId, NodeId, TeamId};
use usher_shared::link::{Exited, ToBroker};
use usher_shared::quantity::{Epoch, Timestamp};

use super::agenda::{ForBroker, Happens, Which};
use super::clock::Real;
use super::disk::Contents;
use super::world::World;

/// Commands that one event may cause for each team and node.
const COMMANDS_EACH: usize = 24;
/// The name of the only key of tickets.
pub(super) const KID: &str = "1";

/// An answer on its way to whoever asked.
#[derive(Debug)]
pub(super) struct Reply {
    pub(super) request: RequestId,
    pub(super) answer: Result<Answer, Refusal>,
}

/// Who asked, and what the answer needs.
#[derive(Clone, Debug)]
pub(super) enum Asker {
    Client {
        client: usize,
        serial: u64,
        hop: u8,
        from: Option<ConnectionId>,
    },
    Operator(Box<Ask>),
}

/// A running broker.
pub(super) struct Broker {
    pub(super) core: Core,
    pub(super) run: u64,
    pub(super) settings: Settings,
    pub(super) pipeline: Pipeline<Reply>,
    /// Effects that wait for the store.
    pub(super) queued: usize,
    pub(super) batches: u64,
    pub(super) batch: Option<Vec<Record>>,
    /// By team, the epoch that it was written with last.
    written: BTreeMap<TeamId, Epoch>,
    wake_at: Real,
    /// What came while the process stood still.
    pub(super) deferred: Option<Vec<ForBroker>>,
    pub(super) routes: BTreeMap<TeamId, Route>,
    pub(super) entries: BTreeMap<NodeId, NodeEntry>,
    pub(super) asked: BTreeMap<RequestId, Asker>,
    /// Tickets given by node, and a bit for each of their teams, since the core was told.
    pub(super) given: BTreeMap<NodeId, (u64, u64)>,
    pub(super) told_given: Timestamp,
}

impl Broker {
    pub(super) fn is_paused(&self) -> bool {
        self.deferred.is_some()
    }

    /// Whether a batch is on its way to the disk.
    pub(super) fn take_batch(&mut self) -> Option<Vec<Record>> {
        self.batch.take()
    }
}

impl World {
    pub(super) fn start_broker(&mut self) {
        if self.main.is_some() {
            return;
        }
        self.disk.now.term = self.disk.now.term.next();
        let contents = self.disk.now.clone();
        self.mirror_starts(&contents);
        self.boot(Which::Main, &contents);
        self.check_nothing_lost();
    }

    /// Another broker starts on what the disk had when this one did.
    pub(super) fn start_twin(&mut self) {
        if self.twin.is_none() && self.main.is_some() {
            self.count("twin started");
            let contents = self.disk.now.clone();
            self.boot(Which::Twin, &contents);
            let after = self.dice.within(5_000, 20_000);
            self.soon(after, Happens::TwinEnds);
        }
    }

    pub(super) fn end_twin(&mut self) {
        if self.twin.take().is_some() {
            self.close_links_of(Which::Twin);
        }
    }

    fn boot(&mut self, which: Which, contents: &Contents) {
        self.broker_runs += 1;
        let run = self.broker_runs;
        let settings = Settings {
            lease_ms: self.next_lease_ms,
            heartbeat_ms: self.plan.heartbeat_ms,
            forget_ms: self.plan.forget_ms,
            decisions: 100,
            operations: 10,
            preserve_ms: 2 * self.next_lease_ms,
            ..Settings::default()
        };
        if let Err(error) = settings.check() {
            self.fail(format!("plan: {error}"));
        }
        let id = BrokerId::from_bits(u128::from(run));
        let core = Core::new(
            settings.clone(),
            contents.snapshot(),
            id,
            "http://broker".to_owned(),
            self.grants.clone(),
            self.broker_local(),
            self.broker_wall_ms(),
        );
        let broker = Broker {
            core,
            run,
            settings,
            pipeline: Pipeline::default(),
            queued: 0,
            batches: 0,
            batch: None,
            written: BTreeMap::new(),
            wake_at: 0,
            deferred: None,
            routes: BTreeMap::new(),
            entries: BTreeMap::new(),
            asked: BTreeMap::new(),
            given: BTreeMap::new(),
            told_given: self.broker_local(),
        };
        match which {
            Which::Twin => self.twin = Some(broker),
            _ => self.main = Some(broker),
        }
        self.pump(which);
    }

    /// Something comes to a broker process; one that stands still gets it later.
    pub(super) fn reaches_broker(&mut self, which: Which, run: u64, what: ForBroker) {
        let Some(broker) = self.broker_mut(which).filter(|broker| broker.run == run) else {
            return;
        };
        if let Some(deferred) = &mut broker.deferred {
            deferred.push(what);
            return;
        }
        self.broker_does(which, what);
    }

    fn broker_does(&mut self, which: Which, what: ForBroker) {
        let now = self.broker_local();
        let wall_ms = self.broker_wall_ms();
        let event = match what {
            ForBroker::Wake { at } => {
                let Some(broker) = self.broker_mut(which).filter(|broker| broker.wake_at == at) else {
                    return;
                };
                broker.wake_at = 0;
                let lease_ms = broker.settings.lease_ms;
                let due = broker.core.next_deadline() <= now;
                if which == Which::Main {
                    self.tell_given(now);
                }
                if due {
                    if which == Which::Main {
                        self.mirror.wakes(lease_ms, now);
                    }
                    if let Some(broker) = self.broker_mut(which) {
                        broker.core.handle_deadline(now);
                    }
                }
                self.pump(which);
                if which == Which::Main {
                    self.check_caution_ends();
                }
                return;
            }
            ForBroker::StoreDone { batch, kept } => return self.store_done(which, batch, kept),
            ForBroker::Stalled { batch } => return self.stalled(which, batch),
            ForBroker::TryAgain => return self.hand_over(which),
            ForBroker::Visit {
                client,
                serial,
                ticket,
                had,
            } => {
                return self.visit(client, serial, ticket.as_deref(), had);
            }
            ForBroker::Message { link, message } => match event_of(LinkId(link), *message, wall_ms) {
                Some(event) => event,
                None => return,
            },
            ForBroker::Closed { link } => Event::LinkClosed { link: LinkId(link) },
            ForBroker::Probed {
                node,
                incarnation,
                outcome,
            } => {
                if outcome == ProbeOutcome::Refused {
                    self.count("probe refused");
                }
                Event::Probed {
                    node,
                    incarnation,
                    outcome,
                }
            }
            ForBroker::UrlProbed {
                node,
                incarnation,
                failed,
            } => Event::UrlProbed {
                node,
                incarnation,
                failed,
            },
            ForBroker::WhoAnswered {
                node,
                incarnation,
                state,
            } => Event::WhoAnswered {
                node,
                incarnation,
                state,
            },
            ForBroker::Exited {
                node,
                incarnation,
                nonce,
            } => Event::Exited(Exited {
                node,
                incarnation,
                nonce,
            }),
            ForBroker::Operator { request, ask } => {
                if let Some(broker) = self.broker_mut(which) {
                    broker.asked.insert(request, Asker::Operator(ask.clone()));
                }
                Event::Request { request, ask: *ask }
            }
        };
        self.tell(which, event);
    }

    /// Tells a core what happened, and carries out what it says.
    pub(super) fn tell(&mut self, which: Which, event: Event) {
        let now = self.broker_local();
        if which == Which::Main {
            self.mirror_hears(&event, now);
        }
        let closed = match &event {
            Event::LinkClosed { link } => Some(*link),
            _ => None,
        };
        if let Some(broker) = self.broker_mut(which) {
            broker.core.handle(event, now);
        }
        self.pump(which);
        if let Some(link) = closed
            && let Some(broker) = self.broker_mut(which)
        {
            let void = broker.pipeline.forget_link(link);
            broker.queued = broker.queued.saturating_sub(void);
        }
    }

    /// Takes the core's commands, hands the store its next batch, carries out what may pass.
    pub(super) fn pump(&mut self, which: Which) {
        let bound = 200 + COMMANDS_EACH * (self.teams.len() + self.machines.len() + 64);
        let mut ready = Vec::new();
        let mut taken = 0;
        while let Some(command) = self
            .broker_mut(which)
            .and_then(|broker| broker.core.poll_command())
        {
            taken += 1;
            if which == Which::Main {
                self.mirror_sees(&command);
            }
            let Some(broker) = self.broker_mut(which) else {
                return;
            };
            broker.queued += 1;
            match command {
                Command::Write(record) => {
                    broker.queued -= 1;
                    if let Record::Team(team, Some(record)) = &record {
                        broker.written.insert(team.clone(), record.epoch);
                    }
                    broker.pipeline.write(record);
                }
                Command::Answer { request, answer } => {
                    broker
                        .pipeline
                        .push(Effect::Reply(Reply { request, answer }), &mut ready);
                }
                other => broker.pipeline.push(Effect::Command(Box::new(other)), &mut ready),
            }
        }
        if taken > bound {
            self.fail(format!("S23: one event made {taken} commands"));
        }
        if which == Which::Main {
            self.mirror_done();
        }
        let Some(broker) = self.broker_mut(which) else {
            return;
        };
        if broker.batch.is_none()
            && let Some(batch) = broker.pipeline.next_batch()
        {
            broker.batches += 1;
            let gone = batch.iter().filter_map(|record| match record {
                Record::Team(team, None) => Some((team.clone(), *broker.written.get(team)?)),
                _ => None,
            });
            let gone: Vec<_> = gone.collect();
            broker.batch = Some(batch);
            if which == Which::Main {
                self.truth.last_before_delete = gone.into_iter().collect();
            }
            self.hand_over(which);
        }
        self.carry_out(which, ready);
        self.schedule_wake(which);
    }

    pub(super) fn schedule_wake(&mut self, which: Which) {
        let (clock, now) = (self.broker_clock, self.now);
        let Some(broker) = self.broker_mut(which) else {
            return;
        };
        let at = clock.when(broker.core.next_deadline()).max(now + 1);
        if broker.wake_at == 0 || at < broker.wake_at {
            broker.wake_at = at;
            let run = broker.run;
            let what = ForBroker::Wake { at };
            self.at(at, Happens::Broker { which, run, what });
        }
    }

    pub(super) fn crash_broker(&mut self) {
        let Some(mut broker) = self.main.take() else {
            return;
        };
        self.count("broker crashed");
        // Whether the batch in flight came to the disk, nobody was told.
        if let Some(batch) = broker.take_batch()
            && self.dice.percent(50)
        {
            self.commit(batch);
        }
        let reserved = self.disk.now.epochs;
        self.truth.crashed(reserved);
        self.close_links_of(Which::Main);
        for asker in broker.asked.into_values() {
            if let Asker::Client { client, serial, .. } = asker {
                self.client_later(client, serial, 200);
            }
        }
    }

    pub(super) fn close_links_of(&mut self, which: Which) {
        let links: Vec<u64> = self
            .links
            .iter()
            .filter(|(_, link)| link.which == which)
            .map(|(id, _)| *id)
            .collect();
        for link in links {
            self.broker_closes(link, true);
        }
    }
}

fn event_of(link: LinkId, message: ToBroker, wall_ms: u64) -> Option<Event> {
    Some(match message {
        ToBroker::Hello(hello) => Event::Hello { link, hello },
        ToBroker::Inventory(page) => Event::Inventory { link, page },
        ToBroker::Heartbeat(heartbeat) => Event::Heartbeat {
            link,
            heartbeat,
            wall_ms,
        },
        ToBroker::Prepared(held) => Event::Prepared { link, held },
        ToBroker::Yielded(held) => Event::Yielded { link, held },
        ToBroker::Released(held) => Event::Released { link, held },
        ToBroker::Arrived(arrivals) => Event::Arrived { link, arrivals },
        ToBroker::Left(departures) => Event::Left { link, departures },
        ToBroker::Counted(counted) => Event::Counted { link, counted },
        ToBroker::Missed(missed) => Event::Missed { link, missed },
        ToBroker::Bye { budget_ms } => Event::Bye { link, budget_ms },
        ToBroker::Unknown => return None,
    })
}

/// Kept here so that every file that reads a broker's clock agrees on what it is.
pub(super) type BrokerTime = Timestamp;
