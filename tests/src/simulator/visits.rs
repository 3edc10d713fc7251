//! A client at the broker: answered from the route table, or by the core, with a ticket for its node.
//! The rules are those of the broker's redirects.

use usher_placement::visit::{self, Direction, Lead, Returning};
use usher_placement::{Ask, Event, RequestId};
use usher_shared::id::{ConnectionId, NodeId};
use usher_shared::quantity::Epoch;
use usher_shared::ticket::{self, Claims, LIFE_S, Scope};

use super::agenda::{ForClient, Which};
use super::broker::{Asker, KID, Reply};
use super::world::World;

impl World {
    pub(super) fn visit(
        &mut self,
        client: usize,
        serial: u64,
        ticket: Option<&str>,
        had: Option<ConnectionId>,
    ) {
        let now_s = self.broker_wall_ms() / 1_000;
        let team = self.teams[self.clients[client].team].clone();
        let returning = ticket.and_then(|text| self.returning(client, text, had, now_s));
        let (hop, from) = returning
            .as_ref()
            .map_or((0, had), |returning| (returning.hop, returning.from));
        let Some(broker) = &self.main else { return };
        let route = broker.routes.get(&team).cloned();
        let entry = route.as_ref().and_then(|route| broker.entries.get(&route.node));
        let lead = route.as_ref().zip(entry).map(|(route, entry)| Lead {
            node: &route.node,
            incarnation: entry.incarnation,
            epoch: route.epoch,
            direct: entry.direct,
        });
        let direction = visit::direct(lead.as_ref(), returning.as_ref());
        let came_back = returning
            .as_ref()
            .zip(lead)
            .is_some_and(|(returning, lead)| returning.was_at(&lead));
        match (direction, &route) {
            (Direction::Circle { retry_ms }, _) => {
                self.count("hop limit hit");
                let after_ms = retry_ms + self.dice.within(500, 1_000);
                return self.client_told(client, serial, ForClient::Later { after_ms });
            }
            (Direction::Straight, Some(route)) if came_back => {
                let what = format!(
                    "S25: client {client} came back from {} under epoch {} and was sent there again without a look",
                    route.node, route.epoch
                );
                return self.fail(what);
            }
            (Direction::Straight, Some(route)) => {
                return self.send_on(client, serial, (hop, from), &route.node, route.epoch);
            }
            _ => {}
        }
        if let Some(returning) = returning.as_ref().filter(|_| came_back) {
            self.came_back(&returning.knock.node, client);
        }
        let knock = returning.map(|returning| returning.knock);
        self.last_request += 1;
        let request = RequestId(self.last_request);
        let asker = Asker::Client {
            client,
            serial,
            hop,
            from,
        };
        if let Some(broker) = &mut self.main {
            broker.asked.insert(request, asker);
        }
        let ask = Ask::Connect {
            team,
            may_create: true,
            region: None,
            knock,
        };
        self.tell(Which::Main, Event::Request { request, ask });
    }

    pub(super) fn answered(&mut self, reply: Reply) {
        let Reply { request, answer } = reply;
        let asker = self
            .main
            .as_mut()
            .and_then(|broker| broker.asked.remove(&request));
        match (asker, answer) {
            (
                Some(Asker::Client {
                    client,
                    serial,
                    hop,
                    from,
                }),
                Ok(usher_placement::Answer::Assigned { route, .. }),
            ) => self.send_on(client, serial, (hop, from), &route.node, route.epoch),
            (Some(Asker::Client { client, serial, .. }), answer) => {
                let retry_ms = answer
                    .err()
                    .and_then(|refusal| refusal.retry_ms())
                    .unwrap_or(1_000);
                self.count("no node for a client");
                let after_ms = retry_ms / 4 + self.dice.within(0, retry_ms / 4);
                self.client_told(client, serial, ForClient::Later { after_ms });
            }
            (Some(Asker::Operator(_)), _) | (None, _) => {}
        }
    }

    fn client_told(&mut self, client: usize, serial: u64, what: ForClient) {
        let after = self.dice.within(1, 20);
        self.soon(after, super::agenda::Happens::Client { client, serial, what });
    }

    /// Makes a ticket for the place that is known, and sends the client there.
    fn send_on(
        &mut self,
        client: usize,
        serial: u64,
        (hop, from): (u8, Option<ConnectionId>),
        node: &NodeId,
        epoch: Epoch,
    ) {
        let entry = self
            .main
            .as_ref()
            .and_then(|broker| broker.entries.get(node).cloned());
        let Some(entry) = entry else {
            return self.client_told(client, serial, ForClient::Later { after_ms: 1_000 });
        };
        let team = self.clients[client].team;
        self.count_given(node, team);
        self.check_redirect(node, &entry);
        let at = entry.url.for_node(node);
        let there = |machine: &super::node::Machine| machine.url.for_node(&machine.id) == at;
        let Some(target) = self.machines.iter().position(there) else {
            return;
        };
        let now_s = self.broker_wall_ms() / 1_000;
        let claims = Claims {
            sub: self.teams[self.clients[client].team].clone(),
            aud: node.clone(),
            inc: entry.incarnation,
            epoch,
            iat: now_s,
            exp: now_s + LIFE_S,
            jti: format!("{:016x}", self.dice.next()),
            hop,
            from,
            scope: Scope::Connect,
        };
        let text = ticket::sign(&claims, KID, &self.machines[target].key);
        self.client_told(
            client,
            serial,
            ForClient::SentOn {
                node: target,
                ticket: text,
            },
        );
    }

    /// What an old ticket tells, if it is one of ours for this team.
    fn returning(
        &self,
        client: usize,
        text: &str,
        had: Option<ConnectionId>,
        now_s: u64,
    ) -> Option<Returning> {
        let node = self.node_named(&ticket::peek_node(text)?)?;
        let key = &self.machines[node].key;
        let (claims, age) = ticket::verify(text, now_s, |kid| (kid == KID).then_some(key)).ok()?;
        let today = self
            .main
            .as_ref()
            .and_then(|broker| broker.entries.get(&claims.aud))
            .map(|entry| entry.incarnation);
        let team = &self.teams[self.clients[client].team];
        Returning::of((claims, age), team, had, today, now_s)
    }
}
