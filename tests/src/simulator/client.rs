//! Clients: what each of them does when it is sent on, closed, told to move, or hears nothing.

use std::collections::BTreeMap;
use usher_shared::id::{ConnectionId, Incarnation};

use super::agenda::{ForBroker, ForClient, ForNode, Happens, Which};
use super::clock::Real;
use super::dice::Dice;
use super::world::World;

/// How long a client waits for an answer.
const PATIENCE_MS: u64 = 8_000;
/// A client that hears nothing on its connection for so long gives it up.
pub(super) const PING_MS: u64 = 20_000;
/// A lost connection is opened anew within this time, not by all at once.
const LOST_MS: u64 = 3_000;
/// The longest wait of a client between two attempts.
const LAST_RETRY_MS: u64 = 4_000;
/// Being sent on more often than this without a wait is going round in a circle.
const CIRCLE: u32 = 6;

/// What kind of client it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Manner {
    /// Knows nothing of the protocol: a close brings it back.
    Plain,
    /// Speaks it: moves when it is told, new connection first.
    Usher,
    /// Claims to, and stays until it is closed.
    Stubborn,
    /// Dials the last node's URL for ever, with the ticket that was in it.
    Redialler,
}

/// A connection, from the client's side.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Seat {
    pub(super) node: usize,
    pub(super) incarnation: Incarnation,
    pub(super) connection: ConnectionId,
}

/// One client.
#[derive(Clone, Debug)]
pub(super) struct Client {
    pub(super) team: usize,
    pub(super) manner: Manner,
    /// What is meant for an earlier attempt is told apart by this.
    pub(super) serial: u64,
    pub(super) seat: Option<Seat>,
    /// The ticket it was given last, shown to the broker when it comes back.
    ticket: Option<String>,
    /// The connection that it says it had.
    had: Option<ConnectionId>,
    /// Where it dials again.
    url: Option<(usize, String)>,
    /// A way back in that needs no broker.
    resume: Option<(usize, String)>,
    backoff_ms: u64,
    /// How often it was sent on since it last waited.
    pub(super) sent_on: u32,
    /// Which process ran on each machine that it was sent to, then.
    sent_to: BTreeMap<usize, Option<Incarnation>>,
    /// When it last lost its place, or came to be.
    pub(super) away_since: Real,
}

impl Client {
    pub(super) fn draw(teams: usize, dice: &mut Dice) -> Self {
        // Some teams are large.
        let team = if dice.percent(30) { 0 } else { dice.index(teams) };
        Self {
            team,
            manner: match dice.index(10) {
                0..=3 => Manner::Plain,
                4..=7 => Manner::Usher,
                8 => Manner::Stubborn,
                _ => Manner::Redialler,
            },
            serial: 0,
            seat: None,
            ticket: None,
            had: None,
            url: None,
            resume: None,
            backoff_ms: 200,
            sent_on: 0,
            sent_to: BTreeMap::new(),
            away_since: 0,
        }
    }

    /// The machine that it dials again.
    pub(super) fn dials(&self) -> Option<usize> {
        self.url.as_ref().map(|(node, _)| *node)
    }

    pub(super) fn speaks_usher(&self) -> bool {
        matches!(self.manner, Manner::Usher | Manner::Stubborn)
    }
}

impl World {
    /// Something will come to a client as it is now.
    pub(super) fn client_soon(&mut self, client: usize, after: u64, what: ForClient) {
        let serial = self.clients[client].serial;
        self.soon(after, Happens::Client { client, serial, what });
    }

    /// A client begins something new.
    pub(super) fn client_acts(&mut self, client: usize, after: u64) {
        self.clients[client].serial += 1;
        self.client_soon(client, after, ForClient::Act);
    }

    /// An attempt came to nothing.
    pub(super) fn client_later(&mut self, client: usize, serial: u64, after: u64) {
        self.soon(
            after,
            Happens::Client {
                client,
                serial,
                what: ForClient::Later { after_ms: 0 },
            },
        );
    }

    pub(super) fn reaches_client(&mut self, client: usize, serial: u64, what: ForClient) {
        match &what {
            // About a connection, whatever the client does beside.
            ForClient::Closed { connection, after_ms } => {
                return self.client_closed(client, *connection, *after_ms);
            }
            ForClient::Move { connection } => return self.client_told_to_move(client, *connection),
            ForClient::Ping { connection } => return self.client_pings(client, *connection),
            ForClient::Strolls => return self.client_strolls(client),
            ForClient::Seated {
                node,
                incarnation,
                connection,
                resume,
            } => {
                let seat = Seat {
                    node: *node,
                    incarnation: *incarnation,
                    connection: *connection,
                };
                return self.client_seated(client, serial, seat, resume.clone());
            }
            _ => {}
        }
        if self.clients[client].serial != serial {
            return;
        }
        match what {
            ForClient::Act => self.client_does(client),
            ForClient::SentOn { node, ticket } => {
                // Each process of a node begins a chain anew: nobody of the earlier one is there to send it round.
                let process = self.machines[node]
                    .process
                    .as_ref()
                    .map(|process| process.incarnation);
                let before = self.clients[client].sent_to.insert(node, process);
                if before.is_some_and(|before| before != process) {
                    self.clients[client].sent_on = 0;
                }
                self.clients[client].sent_on += 1;
                if self.clients[client].sent_on > CIRCLE {
                    self.fail(format!(
                        "L5: client {client} was sent on {CIRCLE} times without a wait"
                    ));
                }
                self.clients[client].ticket = Some(ticket.clone());
                self.clients[client].url = Some((node, ticket.clone()));
                self.client_dials(client, node, ticket);
            }
            ForClient::SentBack { ticket, opened } => {
                self.clients[client].ticket = Some(ticket);
                self.clients[client].had = opened;
                self.client_asks(client);
            }
            ForClient::Later { after_ms } => {
                let backoff = self.clients[client].backoff_ms;
                self.clients[client].backoff_ms = (backoff * 2).min(LAST_RETRY_MS);
                self.clients[client].sent_on = 0;
                let wait = after_ms + self.dice.within(backoff / 2, backoff);
                self.client_acts(client, wait);
            }
            ForClient::TimedOut => {
                self.count("a client heard nothing");
                self.clients[client].sent_on = 0;
                let wait = self.dice.within(1, 500);
                self.client_acts(client, wait);
            }
            _ => {}
        }
    }

    fn client_does(&mut self, client: usize) {
        let known = &self.clients[client];
        if known.manner == Manner::Redialler
            && let Some((node, ticket)) = known.url.clone()
        {
            return self.client_dials(client, node, ticket);
        }
        self.client_asks(client);
    }

    fn client_asks(&mut self, client: usize) {
        let way = self.dice.within(1, 20);
        let Some(run) = self.main.as_ref().map(|broker| broker.run) else {
            let known = &mut self.clients[client];
            // Nobody listens there. Who was given a way back in that needs no broker tries that.
            if let Some((node, resume)) = known.resume.take() {
                return self.client_dials(client, node, resume);
            }
            let serial = known.serial;
            return self.client_later(client, serial, way);
        };
        let known = &self.clients[client];
        let (serial, ticket, had) = (known.serial, known.ticket.clone(), known.had);
        let what = ForBroker::Visit {
            client,
            serial,
            ticket,
            had,
        };
        self.soon(
            way,
            Happens::Broker {
                which: Which::Main,
                run,
                what,
            },
        );
        self.client_soon(client, PATIENCE_MS, ForClient::TimedOut);
    }

    fn client_dials(&mut self, client: usize, node: usize, ticket: String) {
        let way = self.dice.within(1, 30);
        let known = &mut self.clients[client];
        known.serial += 1;
        let (serial, from) = (known.serial, known.seat.map(|seat| seat.connection));
        let machine = &self.machines[node];
        let Some(process) = &machine.process else {
            // Refused, or, when the machine is off, unanswered.
            known_url_is_dead(&mut self.clients[client]);
            self.clients[client].sent_on = 0;
            let wait = if machine.is_off { 3_000 } else { 0 } + self.dice.within(1, LOST_MS);
            return self.client_acts(client, wait);
        };
        if machine.client_cut || machine.is_off {
            self.clients[client].sent_on = 0;
            let wait = 3_000 + self.dice.within(1, LOST_MS);
            return self.client_acts(client, wait);
        }
        let incarnation = process.incarnation;
        let what = ForNode::Arrives {
            client,
            serial,
            ticket,
            from,
        };
        self.soon(
            way,
            Happens::Node {
                node,
                incarnation,
                what,
            },
        );
        self.client_soon(client, PATIENCE_MS, ForClient::TimedOut);
    }

    fn client_seated(&mut self, client: usize, serial: u64, seat: Seat, resume: Option<String>) {
        let known = &mut self.clients[client];
        if known.serial != serial {
            // It has given this attempt up.
            return self.hang_up(seat);
        }
        known.serial += 1;
        let team = self.teams[known.team].clone();
        // It may have been closed before the client heard that it was open.
        if !self
            .members(seat.node, &team)
            .iter()
            .any(|member| member.connection == seat.connection)
        {
            let after = self.dice.within(100, LOST_MS);
            return self.client_soon(client, after, ForClient::Act);
        }
        let known = &mut self.clients[client];
        known.backoff_ms = 200;
        known.sent_on = 0;
        let old = known.seat.replace(seat);
        // Whoever knows nothing of the protocol shows no connection.
        known.had = known.speaks_usher().then_some(seat.connection);
        if known.manner == Manner::Usher {
            known.resume = resume.map(|resume| (seat.node, resume));
        }
        known.away_since = Real::MAX;
        if let Some(old) = old.filter(|old| *old != seat) {
            self.count("moved without a gap");
            self.hang_up(old);
        }
        if self.dice.percent(10) {
            let after = self.dice.within(2_000, 40_000);
            self.client_soon(client, after, ForClient::Strolls);
        }
        let connection = seat.connection;
        self.client_soon(client, PING_MS, ForClient::Ping { connection });
    }

    fn hang_up(&mut self, seat: Seat) {
        let Seat {
            node,
            incarnation,
            connection,
        } = seat;
        // Behind a cut the node finds out by its own pings.
        let after = if self.machines[node].client_cut {
            PING_MS
        } else {
            self.dice.within(1, 30)
        };
        let what = ForNode::Hangs { connection };
        self.soon(
            after,
            Happens::Node {
                node,
                incarnation,
                what,
            },
        );
    }

    fn client_closed(&mut self, client: usize, connection: ConnectionId, after_ms: u64) {
        let known = &mut self.clients[client];
        if known.seat.is_none_or(|seat| seat.connection != connection) {
            return;
        }
        known.seat = None;
        known.away_since = self.now;
        // One that is on its way to a new place already goes on.
        self.client_acts(client, after_ms);
    }

    fn client_told_to_move(&mut self, client: usize, connection: ConnectionId) {
        let known = &self.clients[client];
        let here = known.seat.is_some_and(|seat| seat.connection == connection);
        if here && known.manner == Manner::Usher {
            self.clients[client].serial += 1;
            self.client_asks(client);
        }
    }

    /// Whoever is behind a cut, or on a process that stands still, gives up after a while.
    fn client_pings(&mut self, client: usize, connection: ConnectionId) {
        let Some(seat) = self.clients[client]
            .seat
            .filter(|seat| seat.connection == connection)
        else {
            return;
        };
        let machine = &self.machines[seat.node];
        let answers = !machine.client_cut
            && machine
                .process
                .as_ref()
                .is_some_and(|process| process.incarnation == seat.incarnation && process.still.is_none());
        if answers {
            return self.client_soon(client, PING_MS, ForClient::Ping { connection });
        }
        self.count("a client gave its connection up");
        self.hang_up(seat);
        self.client_closed(client, connection, 0);
    }

    /// A client goes away for a while.
    fn client_strolls(&mut self, client: usize) {
        if self.phase == super::world::Phase::Healed {
            return;
        }
        if let Some(seat) = self.clients[client].seat.take() {
            self.hang_up(seat);
            self.clients[client].away_since = self.now;
            let long = self.dice.within(100, 45_000);
            self.client_acts(client, long);
        }
    }

    /// The clients of a node notice that something is wrong with it, each at its time.
    pub(super) fn clients_notice(&mut self, node: usize, within: u64) {
        let seated: Vec<(usize, ConnectionId)> = self
            .clients
            .iter()
            .enumerate()
            .filter_map(|(client, known)| Some((client, known.seat.filter(|seat| seat.node == node)?)))
            .map(|(client, seat)| (client, seat.connection))
            .collect();
        for (client, connection) in seated {
            let after = self.dice.within(within / 2, within);
            self.client_soon(client, after, ForClient::Ping { connection });
        }
    }

    /// The process that held these connections is no more.
    pub(super) fn clients_lose(&mut self, node: usize, incarnation: Incarnation) {
        let off = self.machines[node].is_off || self.machines[node].client_cut;
        for client in 0..self.clients.len() {
            let seat = self.clients[client].seat;
            let Some(seat) = seat.filter(|seat| seat.node == node && seat.incarnation == incarnation) else {
                continue;
            };
            let connection = seat.connection;
            let after_ms = self.dice.within(0, LOST_MS);
            let seen = if off { PING_MS } else { self.dice.within(0, 200) };
            self.client_soon(client, seen, ForClient::Closed { connection, after_ms });
        }
    }
}

/// A client that dials again and again does so as long as somebody has that name.
fn known_url_is_dead(client: &mut Client) {
    if client.manner != Manner::Redialler {
        client.url = None;
    }
}
