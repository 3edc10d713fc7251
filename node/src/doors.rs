//! The routes of both listeners.

use http::header::{ALLOW, CONNECTION, SEC_WEBSOCKET_VERSION, UPGRADE};
use http::{HeaderValue, Method, Request, StatusCode};
use percent_encoding::percent_decode_str;
use std::sync::Arc;
use tokio_util::sync::CancellationToken;
use usher_listen::accept::PeerAddress;
use usher_listen::answer::{Answer, json, metrics, problem, text};
use usher_listen::health;
use usher_listen::inflow::Inflow;
use usher_listen::places::Places;
use usher_listen::telemetry::Telemetry;
use usher_shared::clock::boottime;
use usher_shared::frame::{CloseCode, CloseReason, Control};
use usher_shared::id::{ConnectionId, TeamId};
use usher_shared::link::{HEARS_BROKER_PATH, HearsBroker};
use usher_shared::rest::Problem;
use usher_shared::way::{LocationForm, Way, parameter};

use crate::connection::{frame_limits, say_and_close, socket_config, spawn};
use crate::floor::{Floor, Turned, jitter};
use crate::handshake::{NoOffer, Offer, offer, wants, websocket};
use crate::outbox::Goodbye;
use crate::post::{Done, post};
use crate::send_back::{Target, redirect, stale, way};
use usher_node_core::admission::Refusal;

/// Sockets that are told in band where to go, at once; each lives up to 5 s. Beyond that the oldest goes
/// for a new one, first of the address that has the most.
const TELLING: usize = 1_024;
/// When a client that found the node full, or without a broker, may come back.
const RETRY_MS: u64 = 2_000;

/// The routes of the clients' listener.
#[derive(Clone)]
pub(crate) struct Doors {
    floor: Arc<Floor>,
    done: Arc<Done>,
    telling: Arc<Places>,
}

impl Doors {
    pub(crate) fn new(floor: Arc<Floor>) -> Self {
        Self {
            floor,
            done: Arc::default(),
            telling: Places::new("in_band", TELLING),
        }
    }

    pub(crate) async fn answer(&self, request: Request<Inflow>) -> Answer {
        let path = request.uri().path();
        if let Some(answer) = health_of(&self.floor, &request) {
            return answer;
        }
        if path == HEARS_BROKER_PATH {
            return hears_broker(&self.floor, &request);
        }
        let Some(rest) = path.strip_prefix("/teams/") else {
            return not_found();
        };
        let (team, what) = match rest.split_once('/') {
            None => (rest, None),
            Some((team, what)) => (team, Some(what)),
        };
        if !matches!(what, None | Some("messages")) {
            return not_found();
        }
        // What a team id may hold and a path need not encode was spelled out before; `:` and `@` were not.
        let decoded = percent_decode_str(team).decode_utf8();
        let team = match decoded.ok().and_then(|team| team.parse::<TeamId>().ok()) {
            Some(team) => team,
            None => {
                let detail = format!("a team id is one path segment that matches {}", TeamId::PATTERN);
                return problem(&Problem::new(400, "bad_team", detail));
            }
        };
        match (what, request.method()) {
            (None, &Method::GET) => self.connect(team, request).await,
            (Some(_), &Method::POST) => self.post(team, request).await,
            (None, _) => not_allowed("GET"),
            (Some(_), _) => not_allowed("POST"),
        }
    }

    async fn post(&self, team: TeamId, request: Request<Inflow>) -> Answer {
        let query = request.uri().query().unwrap_or_default();
        if let Some(answer) = given_twice(query) {
            return answer;
        }
        let ticket = parameter(query, "ticket");
        let knock = match self.floor.verify(&team, ticket) {
            Ok(knock) => knock,
            Err(refusal) => {
                self.floor.figures.refused(refusal);
                let detail = "a post needs the ticket that the broker's 307 carries; post to the broker";
                return problem(&Problem::new(403, "bad_ticket", detail));
            }
        };
        let (parts, body) = request.into_parts();
        post(&self.floor, &self.done, &knock, &parts.headers, body).await
    }

    async fn connect(&self, team: TeamId, mut request: Request<Inflow>) -> Answer {
        let query = request.uri().query().unwrap_or_default().to_owned();
        if let Some(answer) = given_twice(&query) {
            return answer;
        }
        let handshake = offer(request.method(), request.version(), request.headers());
        match handshake {
            Err(NoOffer::Version) => return wrong_version(),
            Err(NoOffer::Key) => {
                let detail = "Sec-WebSocket-Key must be 16 bytes in base64";
                return problem(&Problem::new(400, "bad_handshake", detail));
            }
            _ => {}
        }
        let knock = match self.floor.verify(&team, parameter(&query, "ticket")) {
            Ok(knock) => knock,
            Err(refusal) => return self.send_back(refusal, (&team, None), &query, handshake.ok(), request),
        };
        let Ok(accepted) = handshake else {
            return upgrade_required();
        };
        let speaks = accepted.speaks(parameter(&query, "usher"));
        // Boxed: hyper keeps a service's future for as long as the connection is in HTTP.
        let seat = match Box::pin(self.floor.enter(&knock, speaks)).await {
            Ok(seat) => seat,
            Err(Turned::Back(refusal)) => {
                let opened = self.floor.opened_by(&knock.claims);
                return self.send_back(refusal, (&team, opened), &query, Some(accepted), request);
            }
            Err(Turned::Full) => return self.full(&query, accepted, request),
        };
        let upgrade = hyper::upgrade::on(&mut request);
        let config = socket_config(self.floor.config.message_bytes);
        let limits = frame_limits(&self.floor.config);
        // The connection gets a task of its own after the upgrade, so that its task is no larger
        // than it needs to be. If the upgrade fails, the seat is given up.
        tokio::spawn(async move {
            if let Some(socket) = websocket(upgrade, config, limits).await {
                spawn(socket, seat);
            }
        });
        accepted.answer()
    }

    /// Sends a client back to the broker, which is told what connection its ticket opened here.
    fn send_back(
        &self,
        refusal: Refusal,
        (team, opened): (&TeamId, Option<ConnectionId>),
        query: &str,
        handshake: Option<Offer>,
        request: Request<Inflow>,
    ) -> Answer {
        self.floor.figures.refused(refusal);
        let way = way(request.headers(), wants(request.headers()), query);
        let broker = self.floor.state.lock().broker.clone();
        let target = broker.and_then(|broker| Target::connect(&broker.public_url, team, query, opened));
        let retry_ms = RETRY_MS + jitter(RETRY_MS);
        match (target, way, handshake) {
            (Some(target), Way::Json, _) => stale(refusal, &target.url(LocationForm::Http)),
            (Some(target), Way::InBand, Some(offer)) => {
                let url = target.url(LocationForm::Ws);
                let frame = Control::Redirect { url: url.clone() };
                let reason = CloseReason {
                    retry_ms: None,
                    code: None,
                    url: Some(url),
                };
                let goodbye = Goodbye::new(CloseCode::Redirect, &reason);
                self.tell(offer, request, Some(frame.to_text()), goodbye)
            }
            (Some(target), Way::Redirect(form), _) => redirect(
                StatusCode::FOUND,
                &target.location(form, self.floor.config.security()),
            ),
            (Some(target), Way::InBand, None) => redirect(StatusCode::FOUND, &target.url(LocationForm::Ws)),
            (None, Way::InBand, Some(offer)) => {
                let goodbye = Goodbye::retry(CloseCode::TryAgain, "no_broker", retry_ms);
                self.tell(offer, request, None, goodbye)
            }
            (None, _, _) => {
                let detail = "this node has not met its broker yet; come back later";
                problem(&Problem::new(503, "no_broker", detail).retry_after(retry_ms))
            }
        }
    }

    fn full(&self, query: &str, offer: Offer, request: Request<Inflow>) -> Answer {
        let retry_ms = RETRY_MS + jitter(RETRY_MS);
        if way(request.headers(), wants(request.headers()), query) == Way::InBand {
            let goodbye = Goodbye::retry(CloseCode::TryAgain, "node_full", retry_ms);
            return self.tell(offer, request, None, goodbye);
        }
        node_full(retry_ms)
    }

    /// Accepts a socket only to say something on it: a client that follows no redirect and reads no
    /// status has no other ear.
    fn tell(
        &self,
        offer: Offer,
        mut request: Request<Inflow>,
        frame: Option<String>,
        goodbye: Goodbye,
    ) -> Answer {
        let cut = CancellationToken::new();
        let peer = request.extensions().get::<PeerAddress>();
        let Some(place) = peer.and_then(|PeerAddress(peer)| self.telling.take(peer.ip(), &cut)) else {
            return node_full(RETRY_MS + jitter(RETRY_MS));
        };
        let upgrade = hyper::upgrade::on(&mut request);
        let config = socket_config(self.floor.config.message_bytes);
        let limits = frame_limits(&self.floor.config);
        self.floor.figures.closed(goodbye.code);
        tokio::spawn(async move {
            let telling = async {
                if let Some(socket) = websocket(upgrade, config, limits).await {
                    say_and_close(socket, frame, goodbye).await;
                }
            };
            tokio::select! {
                () = telling => {}
                () = cut.cancelled() => {}
            }
            drop(place);
        });
        offer.answer()
    }
}

/// The routes of the admin listener.
pub(crate) fn admin(floor: &Floor, telemetry: &Telemetry, request: &Request<Inflow>) -> Answer {
    if let Some(answer) = health_of(floor, request) {
        return answer;
    }
    match (request.uri().path(), request.method()) {
        ("/metrics", &Method::GET) => {
            floor.refresh_figures();
            metrics(telemetry.render())
        }
        ("/metrics", _) => not_allowed("GET"),
        _ => not_found(),
    }
}

fn health_of(floor: &Floor, request: &Request<Inflow>) -> Option<Answer> {
    health::answer(
        request.uri().path(),
        request.method(),
        || healthy(floor),
        || ready(floor),
    )
}

fn healthy(floor: &Floor) -> Answer {
    match floor.bug.get() {
        None => health::alive(),
        Some(part) => {
            let detail = format!("a bug ended {part}; this process is about to end");
            problem(&Problem::new(503, "bug", detail))
        }
    }
}

fn ready(floor: &Floor) -> Answer {
    let readiness = floor.readiness();
    if readiness.serves() {
        text(StatusCode::OK, format!("{}\n", readiness.text()))
    } else {
        problem(&Problem::new(503, "not_ready", readiness.text()).retry_after(1_000))
    }
}

/// What the listener for the broker's probes and for peers answers.
pub(crate) fn probed(floor: &Floor, request: &Request<Inflow>) -> Answer {
    match request.uri().path() {
        HEARS_BROKER_PATH => hears_broker(floor, request),
        _ => health_of(floor, request).unwrap_or_else(not_found),
    }
}

/// Tells a peer that lost its broker whether this node hears it, and who says so.
fn hears_broker(floor: &Floor, request: &Request<Inflow>) -> Answer {
    if request.method() != Method::GET {
        return not_allowed("GET");
    }
    let cluster = parameter(request.uri().query().unwrap_or_default(), "cluster");
    let Some(cluster) = cluster.and_then(|cluster| cluster.parse().ok()) else {
        let detail = "say whose broker: ?cluster= with the cluster's id, as a welcome has it";
        return problem(&Problem::new(400, "bad_cluster", detail));
    };
    let hears = floor.state.lock().mandate.hears(cluster, boottime());
    json(&HearsBroker {
        hears,
        node: Some(floor.config.node.clone()),
        incarnation: Some(floor.config.incarnation),
    })
}

/// Which one would count? Whoever looked at the request before may have read the other.
fn given_twice(query: &str) -> Option<Answer> {
    const OURS: [&str; 4] = ["ticket", "from", "location", "usher"];
    let twice = |name: &&str| {
        let given = query
            .split('&')
            .filter(|pair| pair.split('=').next() == Some(*name));
        given.count() > 1
    };
    OURS.into_iter().find(twice).map(|name| {
        let detail = format!("{name} is given once at most");
        problem(&Problem::new(400, "bad_query", detail))
    })
}

fn not_found() -> Answer {
    problem(&Problem::new(404, "not_found", "there is nothing at this path"))
}

fn not_allowed(allowed: &'static str) -> Answer {
    let mut answer = problem(&Problem::new(
        405,
        "method_not_allowed",
        format!("only {allowed} is answered here"),
    ));
    answer
        .headers_mut()
        .insert(ALLOW, HeaderValue::from_static(allowed));
    answer
}

fn node_full(retry_ms: u64) -> Answer {
    let detail = "this node holds as many connections as it may; come back through the broker";
    problem(&Problem::new(503, "node_full", detail).retry_after(retry_ms))
}

fn upgrade_required() -> Answer {
    let detail = "this URL is a WebSocket; connect with a WebSocket client";
    upgrade_to_websocket(&Problem::new(426, "upgrade_required", detail))
}

fn wrong_version() -> Answer {
    let detail = "only version 13 (RFC 6455) is spoken here";
    let mut answer = upgrade_to_websocket(&Problem::new(426, "websocket_version", detail));
    answer
        .headers_mut()
        .insert(SEC_WEBSOCKET_VERSION, HeaderValue::from_static("13"));
    answer
}

/// RFC 9110 section 7.8: whoever sends `Upgrade` names it in `Connection`, too.
fn upgrade_to_websocket(refusal: &Problem) -> Answer {
    let mut answer = problem(refusal);
    let headers = answer.headers_mut();
    headers.insert(UPGRADE, HeaderValue::from_static("websocket"));
    headers.insert(CONNECTION, HeaderValue::from_static("upgrade"));
    answer
}
