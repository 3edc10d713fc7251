//! From a client's request to its node.
//!
//! Nothing here waits or locks for longer than a look into the route table. A request that the
//! table cannot settle comes back as [`Decision::Ask`]; whatever the core says then goes through
//! [`Visit::settle`], the same as a request that the table did settle.

use http::header::{
    ACCEPT, ACCEPT_ENCODING, ACCESS_CONTROL_ALLOW_ORIGIN, AUTHORIZATION, CONNECTION, HeaderName, LOCATION,
    ORIGIN, REFERRER_POLICY, UPGRADE, USER_AGENT, VARY,
};
use http::request::Parts;
use http::{HeaderMap, HeaderValue, Method, StatusCode};
use percent_encoding::percent_decode_str;
use std::sync::Arc;
use usher_listen::answer::{self, Answer};
use usher_placement::Ask;
use usher_placement::visit::{self, Direction, Lead, Returning};
use usher_shared::credential::Credential;
use usher_shared::frame::{CloseCode, CloseReason, Control};
use usher_shared::id::{ConnectionId, NodeId, TeamId};
use usher_shared::quantity::Epoch;
use usher_shared::rest::{ConnectView, Problem};
use usher_shared::ticket::{self, Age, Claims, LIFE_S, Scope};
use usher_shared::way::{Asker, LocationForm, Security, Wants, Way};

use crate::keys::Keyring;
use crate::origin::{Origins, Standing, may_be_rebound};
use crate::query::ClientQuery;
use crate::random;
use crate::routes::{NodeSlot, Reach, RouteTable};
use crate::telemetry::ClientCounters;

/// Whom the clients' listener lets do what.
#[derive(Clone, Debug, Default)]
pub struct Rules {
    /// Whether a first connect may make a team.
    pub auto_create: bool,
    /// With it, only who shows it may make a team.
    pub client_token: Option<Credential>,
    /// Whose pages may ask.
    pub origins: Origins,
    /// Whether browsers must name this machine by address or as localhost: without a public URL,
    /// any other name is somebody else's.
    pub refuse_rebinding: bool,
    /// Whether clients come over TLS, by the public URL.
    pub security: Security,
}

/// Answers clients from the route table.
#[derive(Debug)]
pub struct Redirector {
    routes: Arc<RouteTable>,
    keys: Arc<Keyring>,
    rules: Rules,
    counters: ClientCounters,
}

/// What is to be done with a request.
#[derive(Debug)]
pub enum Decision {
    /// It is settled.
    Settled(Outcome),
    /// Ask the core, then settle.
    Ask(Box<(Ask, Visit)>),
}

/// What a client gets.
#[derive(Debug)]
pub enum Outcome {
    /// An HTTP answer.
    Answer(Answer),
    /// Its upgrade is accepted, and this is all it is told.
    InBand(Farewell),
}

/// What is said on a socket that was accepted only to say it.
#[derive(Debug, PartialEq, Eq)]
pub struct Farewell {
    /// The text frame before the close, if any.
    pub frame: Option<String>,
    /// The close code.
    pub code: CloseCode,
    /// The close reason, at most 123 bytes.
    pub reason: String,
}

/// One request: what it takes to answer it once its team's node is known.
#[derive(Debug)]
pub struct Visit {
    team: Option<TeamId>,
    way: Way,
    wants: Wants,
    scope: Scope,
    hop: u8,
    from: Option<ConnectionId>,
    passed: String,
    /// The origin whose page may read the answer.
    allow_origin: Option<HeaderValue>,
}

/// Where a team is, ready for a ticket.
#[derive(Clone, Debug)]
pub struct Place {
    /// Its node.
    pub slot: Arc<NodeSlot>,
    /// How that is reached.
    pub reach: Arc<Reach>,
    /// The epoch of the assignment.
    pub epoch: Epoch,
}

impl Redirector {
    /// Answers from `routes`, with tickets signed by `keys`.
    #[must_use]
    pub fn new(routes: Arc<RouteTable>, keys: Arc<Keyring>, rules: Rules) -> Self {
        Self {
            routes,
            keys,
            rules,
            counters: ClientCounters::default(),
        }
    }

    /// What is to be done with a request for `/connect/{segment}` at `now_s` (wall clock).
    #[must_use]
    pub fn decide(&self, head: &Parts, segment: &str, now_s: u64) -> Decision {
        let query = ClientQuery::parse(head.uri.query().unwrap_or_default());
        let mut visit = self.visit(head, query.as_ref().ok().and_then(|query| query.location));
        let refused = |visit: &Visit, problem| Decision::Settled(visit.settle(self, Err(problem), now_s));

        let standing = self.rules.origins.standing(&head.headers);
        if standing == Standing::Admitted {
            visit.allow_origin = head.headers.get(ORIGIN).cloned();
        }
        // Only browsers and their ways are guarded so: other clients send any Origin, or none.
        let browser = is_browser(&head.headers);
        let by_browser = browser || matches!(visit.way, Way::Json | Way::InBand);
        let rebound = self.rules.refuse_rebinding && browser && may_be_rebound(&head.headers);
        if by_browser && (standing == Standing::Foreign || rebound) {
            return refused(
                &visit,
                Problem::new(
                    403,
                    "foreign_origin",
                    "pages of this origin may not connect; add it to allow_origins",
                ),
            );
        }
        let query = match query {
            Ok(query) => query,
            Err(error) => return refused(&visit, error.problem()),
        };
        let team = match parse_team(segment) {
            Ok(team) => team,
            Err(problem) => return refused(&visit, problem),
        };
        visit.from = query.from;
        visit.passed = query.passed.into_owned();
        visit.team = Some(team.clone());

        let returning = query
            .ticket
            .and_then(|ticket| self.returning(&team, ticket, query.from, now_s));
        if let Some(returning) = &returning {
            visit.hop = returning.hop;
            visit.from = returning.from;
        }
        let route = self.routes.team(&team);
        let reach = route.as_ref().and_then(|route| route.slot.reach());
        let lead = route.as_ref().zip(reach.as_ref()).map(|(route, reach)| Lead {
            node: &route.slot.node,
            incarnation: reach.incarnation,
            epoch: route.epoch,
            direct: reach.direct,
        });
        match visit::direct(lead.as_ref(), returning.as_ref()) {
            Direction::Circle { retry_ms } => {
                let problem = Problem::new(
                    503,
                    "too_many_hops",
                    "broker and nodes sent this client round in a circle; it was stopped",
                );
                return refused(&visit, problem.retry_after(retry_ms + random::jittered(500)));
            }
            Direction::Straight => {
                if let Some((route, reach)) = route.zip(reach) {
                    let place = Place {
                        slot: route.slot,
                        reach,
                        epoch: route.epoch,
                    };
                    return Decision::Settled(visit.settle(self, Ok(place), now_s));
                }
            }
            Direction::AskCore => {}
        }
        let ask = Ask::Connect {
            team,
            may_create: self.may_create(&head.headers),
            region: query.region,
            knock: returning.map(|returning| returning.knock),
        };
        Decision::Ask(Box::new((ask, visit)))
    }

    /// The place that the core assigned, if its node is reachable.
    #[must_use]
    pub fn place(&self, node: &NodeId, epoch: Epoch) -> Option<Place> {
        let slot = self.routes.node(node)?;
        let reach = slot.reach()?;
        Some(Place { slot, reach, epoch })
    }

    fn visit(&self, head: &Parts, location: Option<&str>) -> Visit {
        let headers = &head.headers;
        let wants = if asks_for_websocket(headers) {
            Wants::WebSocket
        } else {
            Wants::Document
        };
        let accept = joined(headers, &ACCEPT);
        let asker = Asker {
            accept: accept.as_deref(),
            accept_encoding: text(headers, &ACCEPT_ENCODING),
            user_agent: text(headers, &USER_AGENT),
            fetch_mode: text(headers, &HeaderName::from_static("sec-fetch-mode")),
            wants,
            location,
        };
        let post = head.method == Method::POST;
        let way = match asker.way() {
            // A POST is answered by the node; it has nothing to do with sockets.
            _ if post => Way::Redirect(
                location
                    .and_then(LocationForm::from_query)
                    .unwrap_or(LocationForm::Http),
            ),
            way => way,
        };
        Visit {
            team: None,
            way,
            wants,
            scope: if post { Scope::Post } else { Scope::Connect },
            hop: 0,
            from: None,
            passed: String::new(),
            allow_origin: None,
        }
    }

    fn may_create(&self, headers: &HeaderMap) -> bool {
        let shown = || match &self.rules.client_token {
            Some(token) => token.admits(text(headers, &AUTHORIZATION)),
            None => true,
        };
        self.rules.auto_create && shown()
    }

    /// What an old ticket tells, if it is one of ours for this team. `from` is the connection that its
    /// bearer says it had, or that a node says it opened.
    fn returning(
        &self,
        team: &TeamId,
        text: &str,
        from: Option<ConnectionId>,
        now_s: u64,
    ) -> Option<Returning> {
        let told = self.genuine(text, now_s).and_then(|genuine| {
            let slot = self.routes.node(&genuine.0.aud);
            let today = slot.and_then(|slot| slot.reach()).map(|reach| reach.incarnation);
            Returning::of(genuine, team, from, today, now_s)
        });
        if told.is_none() {
            self.counters.bad_tickets.increment(1);
        }
        told
    }

    fn genuine(&self, text: &str, now_s: u64) -> Option<(Claims, Age)> {
        let node = ticket::peek_node(text)?;
        let mut found = None;
        let found = &mut found;
        let verified = ticket::verify(text, now_s, move |kid| {
            *found = self.keys.key(kid, &node);
            found.as_ref()
        });
        verified.ok()
    }
}

impl Visit {
    /// What the client gets, now that its place, or what is in the way, is known.
    #[must_use]
    pub fn settle(&self, redirector: &Redirector, place: Result<Place, Problem>, now_s: u64) -> Outcome {
        let place = match (place, &self.team) {
            (Ok(place), Some(team)) => Ok((place, team)),
            (Ok(_), None) => Err(Problem::new(400, "bad_team", TEAM_RULE)),
            (Err(problem), _) => Err(problem),
        };
        match place {
            Ok((place, team)) => self.send_on(redirector, team, &place, now_s),
            Err(problem) => {
                redirector.counters.refused(&problem.code);
                self.refuse(&problem)
            }
        }
    }

    fn send_on(&self, redirector: &Redirector, team: &TeamId, place: &Place, now_s: u64) -> Outcome {
        let claims = Claims {
            sub: team.clone(),
            aud: place.slot.node.clone(),
            inc: place.reach.incarnation,
            epoch: place.epoch,
            iat: now_s,
            exp: now_s + LIFE_S,
            jti: format!("{:016x}", random::quick()),
            hop: self.hop,
            from: self.from,
            scope: self.scope,
        };
        if self.scope == Scope::Connect {
            redirector.routes.gave(&place.slot, team);
        }
        let ticket = ticket::sign(&claims, redirector.keys.current_kid(), &place.slot.key);
        let mut rest = String::with_capacity(ticket.len() + self.passed.len() + 256);
        place.reach.write(team, &mut rest);
        if self.scope == Scope::Post {
            rest.push_str("/messages");
        }
        rest.push_str("?ticket=");
        rest.push_str(&ticket);
        if !self.passed.is_empty() {
            rest.push('&');
            rest.push_str(&self.passed);
        }
        let counters = &redirector.counters;
        match self.way {
            Way::Json => {
                counters.json.increment(1);
                let view = ConnectView {
                    team: team.clone(),
                    node: place.slot.node.clone(),
                    url: LocationForm::Ws.write(place.reach.security, &rest),
                    expires_in: LIFE_S,
                    epoch: place.epoch,
                    connection: claims.jti.parse().ok(),
                };
                let text = serde_json::to_vec(&view).unwrap_or_default();
                Outcome::Answer(self.dress(answer::body(StatusCode::OK, "application/json", text)))
            }
            Way::Redirect(form) => {
                let status = if self.scope == Scope::Post {
                    counters.post.increment(1);
                    StatusCode::TEMPORARY_REDIRECT
                } else {
                    counters.redirect.increment(1);
                    // Old clients follow 302 and not 307.
                    StatusCode::FOUND
                };
                // Libraries read no body of a handshake's answer; people with curl do.
                let hint = if self.wants == Wants::Document { HINT } else { "" };
                let mut answer = answer::text(status, hint);
                // All parts are visible ASCII: ids, a checked template, base64url, a checked query.
                let to = place.reach.security;
                let location = form.between(redirector.rules.security, to).write(to, &rest);
                if let Ok(location) = HeaderValue::try_from(location) {
                    answer.headers_mut().insert(LOCATION, location);
                }
                Outcome::Answer(self.dress(answer))
            }
            Way::InBand => {
                counters.in_band.increment(1);
                let url = LocationForm::Ws.write(place.reach.security, &rest);
                let reason = CloseReason {
                    retry_ms: None,
                    code: None,
                    url: Some(url.clone()),
                };
                Outcome::InBand(Farewell {
                    frame: Some(Control::Redirect { url }.to_text()),
                    code: CloseCode::Redirect,
                    reason: reason.to_text(),
                })
            }
        }
    }

    fn refuse(&self, problem: &Problem) -> Outcome {
        if self.way != Way::InBand {
            return Outcome::Answer(self.dress(answer::problem(problem)));
        }
        // A browser shows its page nothing of an HTTP answer to a handshake; a close it does.
        let code = match problem.status {
            401 | 403 => CloseCode::Forbidden,
            503 => CloseCode::TryAgain,
            _ => CloseCode::BadRequest,
        };
        let reason = CloseReason {
            retry_ms: problem.retry_ms,
            code: Some(problem.code.to_string()),
            url: None,
        };
        Outcome::InBand(Farewell {
            frame: None,
            code,
            reason: reason.to_text(),
        })
    }

    /// What every answer about a team carries: it differs by client, and its URL is a secret.
    fn dress(&self, mut answer: Answer) -> Answer {
        let headers = answer.headers_mut();
        headers.insert(VARY, HeaderValue::from_static("Accept, Origin"));
        headers.insert(REFERRER_POLICY, HeaderValue::from_static("no-referrer"));
        if let Some(origin) = &self.allow_origin {
            headers.insert(ACCESS_CONTROL_ALLOW_ORIGIN, origin.clone());
        }
        answer
    }
}

const HINT: &str =
    "the team's node is in the Location header; with `Accept: application/json` you get its URL as JSON\n";
const TEAM_RULE: &str = "a team id is one path segment that matches ^[A-Za-z0-9_][A-Za-z0-9._~:@-]{0,127}$";

/// A team from a path segment, decoded first, so that `%2f` and `%00` are what they stand for.
///
/// # Errors
/// The 400 that says what a team id is.
pub fn parse_team(segment: &str) -> Result<TeamId, Problem> {
    let decoded = percent_decode_str(segment).decode_utf8();
    decoded
        .ok()
        .and_then(|text| text.parse().ok())
        .ok_or_else(|| Problem::new(400, "bad_team", TEAM_RULE))
}

/// Whether a request asks for a WebSocket (RFC 6455 section 4.2.1): both headers are lists of tokens.
#[must_use]
pub fn asks_for_websocket(headers: &HeaderMap) -> bool {
    has_token(headers, &UPGRADE, "websocket") && has_token(headers, &CONNECTION, "upgrade")
}

fn has_token(headers: &HeaderMap, name: &HeaderName, token: &str) -> bool {
    let values = headers
        .get_all(name)
        .iter()
        .filter_map(|value| value.to_str().ok());
    values
        .flat_map(|value| value.split(','))
        .any(|part| part.trim().eq_ignore_ascii_case(token))
}

fn is_browser(headers: &HeaderMap) -> bool {
    text(headers, &USER_AGENT).is_some_and(|agent| agent.contains("Mozilla/"))
}

fn text<'h>(headers: &'h HeaderMap, name: &HeaderName) -> Option<&'h str> {
    headers.get(name)?.to_str().ok()
}

fn joined<'h>(headers: &'h HeaderMap, name: &HeaderName) -> Option<std::borrow::Cow<'h, str>> {
    let mut values = headers
        .get_all(name)
        .iter()
        .filter_map(|value| value.to_str().ok());
    let first = values.next()?;
    let mut all = std::borrow::Cow::Borrowed(first);
    for more in values {
        let all = all.to_mut();
        all.push(',');
        all.push_str(more);
    }
    Some(all)
}

#[cfg(test)]
#[path = "redirect_tests.rs"]
mod tests;
