//! A client at the broker: answered from the route table, or by the core, with a ticket for its node.
//! The rules are those of the broker's redirects.

use usher_placement::{Ask, Event, Knock, RequestId};
use usher_shared::id::{ConnectionId, NodeId};
use usher_shared::quantity::Epoch;
use usher_shared::ticket::{self, Age, Claims, LIFE_S, MAX_HOPS, Scope};

use super::agenda::{ForClient, Which};
use super::broker::{Asker, KID, Reply};
use super::world::World;

/// A ticket that opened nothing and comes back sooner than this after it was issued is a hop of one chain.
const CHAIN_S: u64 = 10;
/// For this long after its end a ticket still tells where its bearer was.
const REMEMBERED_S: u64 = 600;

/// What an old ticket tells.
struct Returning {
    hop: u8,
    chain_left_ms: u64,
    from: Option<ConnectionId>,
    knock: Knock,
}

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
        let (mut hop, mut from, mut knock) = (0, had, None);
        if let Some(returning) = returning {
            if returning.hop >= MAX_HOPS {
                self.count("hop limit hit");
                let after_ms = returning.chain_left_ms + self.dice.within(500, 1_000);
                return self.client_told(client, serial, ForClient::Later { after_ms });
            }
            let knocked = returning.knock;
            if self.is_at(&team, &knocked) {
                self.came_back(&knocked.node, client);
            }
            (hop, from, knock) = (returning.hop, had.or(returning.from), Some(knocked));
        }
        let Some(broker) = &self.main else { return };
        if let Some(route) = broker.routes.get(&team)
            && let Some(entry) = broker.entries.get(&route.node)
            && entry.direct
            && !knock.as_ref().is_some_and(|knock| {
                knock.node == route.node
                    && knock.incarnation == entry.incarnation
                    && knock.epoch == route.epoch
            })
        {
            let (node, epoch) = (route.node.clone(), route.epoch);
            return self.send_on(client, serial, (hop, from), &node, epoch);
        }
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

    /// Whether a ticket is for the process that the team's route leads to.
    fn is_at(&self, team: &usher_shared::id::TeamId, knock: &Knock) -> bool {
        let Some(broker) = &self.main else { return false };
        let route = broker.routes.get(team);
        route.is_some_and(|route| route.node == knock.node && route.epoch == knock.epoch)
            && broker
                .entries
                .get(&knock.node)
                .is_some_and(|entry| entry.incarnation == knock.incarnation)
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
        let remembered = age == Age::Fresh || now_s <= claims.exp.saturating_add(REMEMBERED_S);
        if claims.sub != self.teams[self.clients[client].team] || !remembered {
            return None;
        }
        let age_s = now_s.saturating_sub(claims.iat);
        let named = claims.jti.parse().ok();
        let opened = named.is_some() && had == named;
        let entry = self
            .main
            .as_ref()
            .and_then(|broker| broker.entries.get(&claims.aud));
        let earlier_process = entry.is_some_and(|entry| entry.incarnation != claims.inc);
        let chained = age_s < CHAIN_S && !opened && !earlier_process;
        Some(Returning {
            hop: if chained { claims.hop.saturating_add(1) } else { 0 },
            chain_left_ms: CHAIN_S.saturating_sub(age_s) * 1_000,
            from: claims.from.filter(|_| chained).or(named),
            knock: Knock {
                node: claims.aud,
                incarnation: claims.inc,
                epoch: claims.epoch,
            },
        })
    }
}
