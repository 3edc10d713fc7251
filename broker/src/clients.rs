//! The clients' listener: `/connect/{team}`, `/healthz`, `/readyz`, and nothing else.

use http::header::{
    ACCESS_CONTROL_ALLOW_HEADERS, ACCESS_CONTROL_ALLOW_METHODS, ACCESS_CONTROL_ALLOW_ORIGIN,
    ACCESS_CONTROL_MAX_AGE, ALLOW, ORIGIN, VARY,
};
use http::request::Parts;
use http::{HeaderValue, Method, Request, StatusCode};
use hyper::upgrade::OnUpgrade;
use std::sync::Arc;
use usher_listen::answer::{self, Answer};
use usher_listen::health;
use usher_listen::inflow::Inflow;
use usher_shared::clock;
use usher_shared::rest::Problem;

use crate::handle::{CoreHandle, Denied, Granted};
use crate::in_band::InBand;
use crate::origin::{Origins, Standing};
use crate::redirect::{Decision, Outcome, Place, Redirector};

/// What the clients' listener answers from.
pub(crate) struct Clients {
    pub(crate) redirector: Redirector,
    pub(crate) origins: Origins,
    pub(crate) core: CoreHandle,
    pub(crate) in_band: InBand,
}

impl Clients {
    /// Answers one request.
    pub(crate) async fn answer(self: Arc<Self>, request: Request<Inflow>) -> Answer {
        let (mut head, _body) = request.into_parts();
        let upgrade = head.extensions.remove::<OnUpgrade>();
        let path = head.uri.path();
        match health::answer(path, &head.method, || healthy(&self.core), || ready(&self.core)) {
            Some(answer) => answer,
            None => match path.strip_prefix("/connect/").filter(|rest| !rest.contains('/')) {
                Some(segment) => match head.method {
                    Method::GET | Method::HEAD | Method::POST => self.connect(&head, segment, upgrade).await,
                    Method::OPTIONS => self.preflight(&head),
                    _ => wrong_method("GET, HEAD, POST, OPTIONS"),
                },
                None => not_found(),
            },
        }
    }

    async fn connect(&self, head: &Parts, segment: &str, upgrade: Option<OnUpgrade>) -> Answer {
        let outcome = match self.redirector.decide(head, segment, wall_s()) {
            Decision::Settled(outcome) => outcome,
            Decision::Ask(asked) => {
                let (ask, visit) = *asked;
                let place = match self.core.ask(ask).await {
                    Ok(Granted::Assigned { route, .. }) => self.place(&route),
                    // The core answers a connect with an assignment or a refusal.
                    Ok(_) => Err(Denied::Busy.problem()),
                    Err(denied) => Err(denied.problem()),
                };
                visit.settle(&self.redirector, place, wall_s())
            }
        };
        match outcome {
            Outcome::Answer(answer) => answer,
            Outcome::InBand(farewell) => self.in_band.accept(head, upgrade, farewell),
        }
    }

    fn place(&self, route: &usher_placement::Route) -> Result<Place, Problem> {
        // The node can be forgotten between the decision and here.
        self.redirector
            .place(&route.node, route.epoch)
            .ok_or_else(|| Denied::Busy.problem())
    }

    /// The answer to a browser that asks whether its page may ask (CORS preflight).
    fn preflight(&self, head: &Parts) -> Answer {
        let mut answer = match self.origins.standing(&head.headers) {
            Standing::Admitted => answer::text(StatusCode::NO_CONTENT, ""),
            Standing::Absent | Standing::Foreign => answer::problem(&Problem::new(
                403,
                "foreign_origin",
                "pages of this origin may not connect; add it to allow_origins",
            )),
        };
        let allowed = answer.status() == StatusCode::NO_CONTENT;
        let headers = answer.headers_mut();
        headers.insert(VARY, HeaderValue::from_static("Accept, Origin"));
        if let Some(origin) = head.headers.get(ORIGIN).filter(|_| allowed) {
            headers.insert(ACCESS_CONTROL_ALLOW_ORIGIN, origin.clone());
            for (name, value) in [
                (ACCESS_CONTROL_ALLOW_METHODS, "GET, POST"),
                (
                    ACCESS_CONTROL_ALLOW_HEADERS,
                    "accept, authorization, content-type",
                ),
                (ACCESS_CONTROL_MAX_AGE, "600"),
            ] {
                headers.insert(name, HeaderValue::from_static(value));
            }
        }
        answer
    }
}

fn wall_s() -> u64 {
    clock::wall_ms() / 1_000
}

/// The process lives, and its event loop turns. Depends on nothing outside the process.
pub(crate) fn healthy(core: &CoreHandle) -> Answer {
    if core.vitals().is_dead() {
        return answer::text(
            StatusCode::SERVICE_UNAVAILABLE,
            "the event loop stands still: restart the broker\n",
        );
    }
    health::alive()
}

/// Whether the broker can do its work.
pub(crate) fn ready(core: &CoreHandle) -> Answer {
    match core.vitals().ailment() {
        None => answer::text(StatusCode::OK, "ready\n"),
        Some(ailment) => answer::text(StatusCode::SERVICE_UNAVAILABLE, format!("not ready: {ailment}\n")),
    }
}

/// Nothing here. Never says what was asked for.
pub(crate) fn not_found() -> Answer {
    answer::problem(&Problem::new(404, "not_found", "there is nothing at this path"))
}

/// Something here, but not for this method.
pub(crate) fn wrong_method(allowed: &'static str) -> Answer {
    let mut answer = answer::problem(&Problem::new(
        405,
        "wrong_method",
        format!("this path takes {allowed}"),
    ));
    answer
        .headers_mut()
        .insert(ALLOW, HeaderValue::from_static(allowed));
    answer
}
