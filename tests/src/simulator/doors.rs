//! A client at a node's door: its ticket is checked by the real rules.

use usher_node_core::admission::{Here, Refusal, Shown, Verdict, decide};
use usher_node_core::holdings::{Opened, Tenure};
use usher_node_core::mandate::Link;
use usher_node_core::tickets::{self, Resume};
use usher_shared::id::{ConnectionId, TeamId};
use usher_shared::link::{Arrival, EndedBy};
use usher_shared::ticket::{self, Claims, Scope};

use super::agenda::{ForClient, ForNode, Happens};
use super::node::{Member, Waiting};
use super::world::World;

/// How long a client with a ticket newer than the node's knowledge waits for the broker's `assign`.
const WAIT_MS: u64 = 1_000;

impl World {
    pub(super) fn client_arrives(
        &mut self,
        node: usize,
        client: usize,
        serial: u64,
        ticket: String,
        from: Option<ConnectionId>,
    ) {
        if self.clients[client].serial != serial {
            return;
        }
        let judged = self.judge(node, client, &ticket);
        if judged.0.is_some() {
            self.got_through(node);
            if let Some(process) = self.machines[node].process.as_mut() {
                process.shown += 1;
            }
        }
        match judged {
            (Some(claims), Verdict::Admit) => self.admit(node, client, serial, ticket, &claims, from),
            (Some(claims), Verdict::Wait) => {
                self.count("a client waited for its team");
                if let Some(process) = self.machines[node].process.as_mut() {
                    let waiting = process.waiting.entry(claims.sub).or_default();
                    waiting.push(Waiting {
                        client,
                        serial,
                        ticket,
                        from,
                    });
                }
                self.node_soon(node, WAIT_MS, ForNode::WaitedLong { client, serial });
            }
            (_, Verdict::SendBack(refusal)) => self.send_back(node, client, serial, ticket, refusal),
            (None, _) => self.send_back(node, client, serial, ticket, Refusal::NotGenuine),
        }
    }

    fn send_back(&mut self, node: usize, client: usize, serial: u64, ticket: String, refusal: Refusal) {
        self.count(match refusal {
            Refusal::Expired => "expired ticket sent back",
            Refusal::OtherNode => "ticket of an earlier process sent back",
            Refusal::OldEpoch => "ticket of an old epoch sent back",
            Refusal::BrokerHeard => "resume refused while the broker is heard",
            Refusal::NoLease => "ticket refused by a fenced node",
            Refusal::NotYetHere => "a team did not come in time",
            _ => "ticket sent back",
        });
        let after = self.dice.within(1, 30);
        let opened = self.opened_by(node, &ticket);
        let what = ForClient::SentBack { ticket, opened };
        self.soon(after, Happens::Client { client, serial, what });
    }

    /// The connection that a ticket opened at this process lately.
    fn opened_by(&self, node: usize, ticket: &str) -> Option<ConnectionId> {
        let process = self.machines[node].process.as_ref()?;
        let now_s = self.wall_s(node);
        let key = |kid: &str| process.keys.iter().find(|key| key.kid == kid).map(|key| &key.key);
        let (claims, _) = ticket::verify(ticket, now_s, key).ok()?;
        let named = claims.jti.parse().ok()?;
        process.spent.opened(&claims.jti).then_some(named)
    }

    /// Whose ticket it is, and what becomes of its bearer.
    fn judge(&mut self, node: usize, client: usize, text: &str) -> (Option<Claims>, Verdict) {
        let (now, now_s) = (self.local(node), self.wall_s(node));
        let team = self.teams[self.clients[client].team].clone();
        let machine = &self.machines[node];
        let Some(process) = &machine.process else {
            return (None, Verdict::SendBack(Refusal::NotGenuine));
        };
        let genuine = tickets::verify(Some(text), now_s, &process.keys, &process.resume_key);
        let (claims, age) = match genuine {
            Ok(genuine) => genuine,
            Err(refusal) => return (None, Verdict::SendBack(refusal)),
        };
        let shown = Shown {
            now_s,
            claims: &claims,
            age,
            team: &team,
            purpose: Scope::Connect,
        };
        let here = Here {
            node: &machine.id,
            incarnation: process.incarnation,
            contact: process.mandate.contact(now),
            tenure: process.mandate.holdings.tenure(&team),
        };
        let verdict = decide(shown, here);
        let linked = !matches!(process.mandate.link(), Link::Down | Link::Greeting);
        let hears = linked && process.mandate.remaining_ms(now) > 0;
        self.check_verdict(node, &claims, age, hears, verdict);
        (Some(claims), verdict)
    }

    fn admit(
        &mut self,
        node: usize,
        client: usize,
        serial: u64,
        ticket: String,
        claims: &Claims,
        from: Option<ConnectionId>,
    ) {
        let (now, now_s) = (self.local(node), self.wall_s(node));
        let drawn = self.dice.next();
        let usher = self.clients[client].speaks_usher();
        let team = claims.sub.clone();
        let machine = &mut self.machines[node];
        let (capacity, id) = (machine.capacity, machine.id.clone());
        let Some(process) = machine.process.as_mut() else {
            return;
        };
        if process.connections >= capacity.connections || machine.no_descriptors {
            self.count("a full node turned a client away");
            let after_ms = self.dice.within(1_000, 2_000);
            let what = ForClient::Later { after_ms };
            return self.soon(10, Happens::Client { client, serial, what });
        }
        let taken = |process: &super::node::Process, id: ConnectionId| {
            process
                .rooms
                .get(&team)
                .is_some_and(|members| members.iter().any(|member| member.connection == id))
        };
        // What is still on its way about an earlier connection of that name must not hit this one: a
        // socket is what it is, and here it is its name.
        let fresh = |process: &super::node::Process, id: &ConnectionId| {
            !taken(process, *id) && !process.every_name.contains(id)
        };
        let named: Option<ConnectionId> = claims.jti.parse().ok().filter(|id| fresh(process, id));
        let connection = named.unwrap_or_else(|| {
            process.serial += 1;
            ConnectionId::new(process.incarnation, process.serial)
        });
        process.every_name.insert(connection);
        let member = Member {
            connection,
            client,
            usher,
            told: false,
        };
        process.rooms.entry(team.clone()).or_default().push(member);
        process.connections += 1;
        let incarnation = process.incarnation;
        if process.mandate.holdings.opened(&team, now) == Opened::Reported {
            let arrival = Arrival {
                team: team.clone(),
                epoch: claims.epoch,
                connection,
                from: claims.from.or(from),
                age_ms: None,
            };
            process.outgoing.arrived(arrival, now);
        }
        let replaced = process.spent.spend(&claims.jti, connection, now);
        let resume = match process.mandate.holdings.tenure(&team) {
            Tenure::Held(epoch) if usher => {
                let resume = Resume {
                    team: &team,
                    node: &id,
                    incarnation,
                    epoch,
                    connection,
                };
                Some(resume.sign(&process.resume_key, now_s, drawn))
            }
            _ => None,
        };
        if claims.scope == Scope::Resume {
            self.count("resume used");
        }
        drop(ticket);
        if let Some(replaced) = replaced.filter(|replaced| *replaced != connection) {
            self.replace(node, &team, replaced);
        }
        let after = self.dice.within(1, 30);
        let what = ForClient::Seated {
            node,
            incarnation,
            connection,
            resume,
        };
        self.soon(after, Happens::Client { client, serial, what });
        self.flush(node);
    }

    /// A ticket that was used before: the connection it made gives way.
    fn replace(&mut self, node: usize, team: &TeamId, connection: ConnectionId) {
        let member = self
            .members(node, team)
            .into_iter()
            .find(|member| member.connection == connection);
        if let Some(member) = member {
            self.count("a used ticket replaced its connection");
            let after = self.jitter(1_000);
            self.close_member(node, team, &member, after, EndedBy::Client);
        }
    }

    /// Clients that wait for this team look again.
    pub(super) fn open_doors(&mut self, node: usize, team: &TeamId) {
        let Some(process) = self.machines[node].process.as_mut() else {
            return;
        };
        for waiting in process.waiting.remove(team).unwrap_or_default() {
            let Waiting {
                client,
                serial,
                ticket,
                from,
            } = waiting;
            self.client_arrives(node, client, serial, ticket, from);
        }
    }

    pub(super) fn waited_long(&mut self, node: usize, client: usize, serial: u64) {
        let Some(process) = self.machines[node].process.as_mut() else {
            return;
        };
        let mut late = None;
        for waiting in process.waiting.values_mut() {
            if let Some(at) = waiting
                .iter()
                .position(|one| one.client == client && one.serial == serial)
            {
                late = Some(waiting.remove(at));
            }
        }
        if let Some(Waiting { ticket, .. }) = late {
            self.send_back(node, client, serial, ticket, Refusal::NotYetHere);
        }
    }
}
