//! The operators' listener: REST under `/v1`, health, metrics.
//!
//! With an operator token everything under `/v1` needs it. `/metrics`, `/healthz` and `/readyz`
//! never do: they say nothing about single teams, and a scraper should not hold a token that can
//! empty a node.

use axum::Router;
use axum::body::Body;
use axum::extract::rejection::PathRejection;
use axum::extract::{Path, Request, State};
use axum::middleware::{self, Next};
use axum::response::{IntoResponse, Response};
use axum::routing::{any, get, post};
use http::header::{AUTHORIZATION, LOCATION, WWW_AUTHENTICATE};
use http::{HeaderValue, StatusCode};
use serde::Serialize;
use serde::de::DeserializeOwned;
use std::sync::Arc;
use usher_listen::answer::{self, Answer};
use usher_listen::health;
use usher_listen::telemetry::Telemetry;
use usher_placement::Ask;
use usher_shared::credential::Credential;
use usher_shared::id::{NodeId, OperationId, TeamId};
use usher_shared::rest::{
    DrainPost, NodesView, OperationState, OperationView, OperationsView, Problem, ShedPost, TeamPatch,
    TeamPut,
};

use crate::body::{self, Nothing};
use crate::clients::{healthy, ready};
use crate::figures::Figures;
use crate::handle::{CoreHandle, Denied, Granted};
use crate::origin::{Origins, Standing, may_be_rebound};
use crate::page::{TeamsQuery, no_query, operations_limit};
use crate::redirect::parse_team;

/// What the operators' listener answers from.
pub(crate) struct Admin {
    pub(crate) core: CoreHandle,
    pub(crate) telemetry: Telemetry,
    pub(crate) operator_token: Option<Credential>,
    /// Pages on loopback, while the listener is there.
    pub(crate) origins: Origins,
}

/// What the decisions of one team count for among the rows that may wait for the store.
const WHY_ROWS: u32 = 8;

type Shared = State<Arc<Admin>>;
type Answered = Result<Response, Failure>;

/// Every path of the listener.
pub(crate) fn router(admin: Admin) -> Router {
    let admin = Arc::new(admin);
    Router::new()
        .route("/", get(page))
        .route(health::HEALTH, any(health_of))
        .route(health::READY, any(health_of))
        .route("/metrics", get(metrics))
        .route("/v1/status", get(status))
        .route("/v1/teams", get(teams))
        .route(
            "/v1/teams/",
            get(no_team).put(no_team).patch(no_team).delete(no_team),
        )
        .route(
            "/v1/teams/{team}",
            get(team).put(put_team).patch(patch_team).delete(delete_team),
        )
        .route("/v1/teams/{team}/why", get(why))
        .route("/v1/nodes", get(nodes))
        .route("/v1/nodes/{node}", get(node))
        .route("/v1/nodes/{node}/drain", post(drain))
        .route("/v1/nodes/{node}/undrain", post(undrain))
        .route("/v1/nodes/{node}/shed", post(shed))
        .route("/v1/nodes/{node}/cordon", post(cordon))
        .route("/v1/nodes/{node}/uncordon", post(uncordon))
        .route("/v1/operations", get(operations))
        .route("/v1/operations/{operation}", get(operation))
        .route("/v1/self-preservation/release", post(release))
        .fallback(async || Failure(Problem::new(404, "not_found", "there is nothing at this path")))
        .method_not_allowed_fallback(async || {
            Failure(Problem::new(
                405,
                "wrong_method",
                "this path takes other methods, see the Allow header",
            ))
        })
        .layer(middleware::from_fn_with_state(Arc::clone(&admin), guard))
        .with_state(admin)
}

/// A problem as a response.
struct Failure(Problem);

impl From<Problem> for Failure {
    fn from(problem: Problem) -> Self {
        Self(problem)
    }
}

impl From<Denied> for Failure {
    fn from(denied: Denied) -> Self {
        Self(denied.problem())
    }
}

impl IntoResponse for Failure {
    fn into_response(self) -> Response {
        plain(answer::problem(&self.0))
    }
}

fn plain(answer: Answer) -> Response {
    answer.map(Body::new)
}

fn json(status: StatusCode, body: &impl Serialize) -> Response {
    let text = serde_json::to_vec(body).unwrap_or_default();
    plain(answer::body(status, "application/json", text))
}

/// Who may come in: whoever shows the token, or, where none is set, whoever is on this machine and
/// is not a page from elsewhere.
async fn guard(State(admin): Shared, request: Request, next: Next) -> Response {
    let headers = request.headers();
    if !request.uri().path().starts_with("/v1") {
        return next.run(request).await;
    }
    match &admin.operator_token {
        Some(token) => {
            let shown = headers.get(AUTHORIZATION).and_then(|value| value.to_str().ok());
            if !token.admits(shown) {
                let detail = match shown {
                    None => "send the operator token as `Authorization: Bearer ...`",
                    Some(_) => "this is not the broker's operator token",
                };
                let problem = Problem::new(401, "unauthorized", detail);
                let mut refused = plain(answer::problem(&problem));
                refused.headers_mut().insert(
                    WWW_AUTHENTICATE,
                    HeaderValue::from_static("Bearer realm=\"usher\""),
                );
                return refused;
            }
        }
        None => {
            let foreign = admin.origins.standing(headers) == Standing::Foreign;
            if foreign || may_be_rebound(headers) {
                let problem = Problem::new(
                    403,
                    "foreign_origin",
                    "without an operator token only this machine may ask: use 127.0.0.1 or localhost, and no page of another origin",
                );
                return plain(answer::problem(&problem));
            }
        }
    }
    let with_query = matches!(request.uri().path(), "/v1/teams" | "/v1/operations");
    if !with_query && let Err(problem) = no_query(request.uri().query().unwrap_or_default()) {
        return Failure(problem).into_response();
    }
    next.run(request).await
}

async fn page() -> Response {
    plain(answer::text(
        StatusCode::OK,
        "Usher broker, operators' listener\n\
         GET /v1/status  /v1/nodes  /v1/teams  /v1/operations  /metrics  /healthz  /readyz\n",
    ))
}

async fn health_of(State(admin): Shared, request: Request) -> Answered {
    let answer = health::answer(
        request.uri().path(),
        request.method(),
        || healthy(&admin.core),
        || ready(&admin.core),
    );
    Ok(plain(answer.ok_or_else(unknown_path)?))
}

async fn metrics(State(admin): Shared) -> Answered {
    let figures = admin.core.glance(Figures::take).await;
    let mut page = admin.telemetry.render();
    // A stuck loop must not hide the process's own figures.
    if let Ok(figures) = figures {
        page.push_str(&figures.render());
    }
    Ok(plain(answer::metrics(page)))
}

async fn status(State(admin): Shared) -> Answered {
    let mut status = admin.core.glance(|core, now| core.status(now)).await?;
    env!("CARGO_PKG_VERSION").clone_into(&mut status.version);
    let refused = admin.core.vitals().refusals().lately();
    status.links_refused = refused
        .into_iter()
        .map(|(code, count)| (code.to_owned(), count))
        .collect();
    Ok(json(StatusCode::OK, &status))
}

async fn teams(State(admin): Shared, request: Request) -> Answered {
    let query = TeamsQuery::parse(request.uri().query().unwrap_or_default())?;
    let rows = u32::try_from(query.limit).unwrap_or(u32::MAX);
    let page = admin
        .core
        .read(rows, move |core, now| {
            core.teams(query.node.as_ref(), query.after.as_ref(), query.limit, now)
        })
        .await?;
    Ok(json(StatusCode::OK, &page))
}

async fn no_team() -> Failure {
    Failure(parse_team("").err().unwrap_or_else(unknown_path))
}

fn unknown_path() -> Problem {
    Problem::new(404, "not_found", "there is nothing at this path")
}

async fn team(State(admin): Shared, path: TeamPath) -> Answered {
    let team = team_of(path)?;
    let asked = team.clone();
    let view = admin
        .core
        .read(1, move |core, now| core.team(&asked, now))
        .await?;
    let view = view.ok_or_else(|| unknown_team(team))?;
    Ok(json(StatusCode::OK, &view))
}

async fn why(State(admin): Shared, path: TeamPath) -> Answered {
    let team = team_of(path)?;
    let asked = team.clone();
    let view = admin
        .core
        .read(WHY_ROWS, move |core, now| core.why(&asked, now))
        .await?;
    let view = view.ok_or_else(|| unknown_team(team))?;
    Ok(json(StatusCode::OK, &view))
}

async fn put_team(State(admin): Shared, path: TeamPath, request: Request) -> Answered {
    let team = team_of(path)?;
    let put: TeamPut = body_of(request).await?;
    let ask = Ask::Put {
        team: team.clone(),
        put,
    };
    specified(&admin, team, ask).await
}

async fn patch_team(State(admin): Shared, path: TeamPath, request: Request) -> Answered {
    let team = team_of(path)?;
    let patch: TeamPatch = body_of(request).await?;
    let ask = Ask::Patch {
        team: team.clone(),
        patch,
    };
    specified(&admin, team, ask).await
}

async fn specified(admin: &Admin, team: TeamId, ask: Ask) -> Answered {
    match admin.core.ask(ask).await? {
        Granted::Assigned {
            view: Some(view),
            created,
            ..
        } => {
            let status = if created {
                StatusCode::CREATED
            } else {
                StatusCode::OK
            };
            Ok(json(status, &view))
        }
        // It was deleted in the same moment.
        _ => Err(Failure(unknown_team(team))),
    }
}

async fn delete_team(State(admin): Shared, path: TeamPath) -> Answered {
    let team = team_of(path)?;
    admin.core.ask(Ask::Delete { team }).await?;
    Ok(StatusCode::NO_CONTENT.into_response())
}

async fn nodes(State(admin): Shared) -> Answered {
    let nodes = admin.core.glance(|core, now| core.nodes(now)).await?;
    Ok(json(StatusCode::OK, &NodesView { nodes }))
}

async fn node(State(admin): Shared, path: NodePath) -> Answered {
    let node = node_of(path)?;
    let view = look_at_node(&admin, node.clone()).await?;
    Ok(json(StatusCode::OK, &view.ok_or_else(|| unknown_node(node))?))
}

async fn drain(State(admin): Shared, path: NodePath, request: Request) -> Answered {
    let node = node_of(path)?;
    let post: DrainPost = body_of(request).await?;
    began(admin.core.ask(Ask::Drain { node, post }).await?)
}

async fn shed(State(admin): Shared, path: NodePath, request: Request) -> Answered {
    let node = node_of(path)?;
    let post: ShedPost = body_of(request).await?;
    began(admin.core.ask(Ask::Shed { node, post }).await?)
}

async fn undrain(State(admin): Shared, path: NodePath, request: Request) -> Answered {
    let node = node_of(path)?;
    let Nothing {} = body_of(request).await?;
    let ask = Ask::Undrain { node: node.clone() };
    changed(&admin, node, ask).await
}

async fn cordon(State(admin): Shared, path: NodePath, request: Request) -> Answered {
    let node = node_of(path)?;
    let Nothing {} = body_of(request).await?;
    let ask = Ask::Cordon { node: node.clone() };
    changed(&admin, node, ask).await
}

async fn uncordon(State(admin): Shared, path: NodePath, request: Request) -> Answered {
    let node = node_of(path)?;
    let Nothing {} = body_of(request).await?;
    let ask = Ask::Uncordon { node: node.clone() };
    changed(&admin, node, ask).await
}

async fn release(State(admin): Shared, request: Request) -> Answered {
    let Nothing {} = body_of(request).await?;
    admin.core.ask(Ask::Release).await?;
    Ok(StatusCode::NO_CONTENT.into_response())
}

async fn operations(State(admin): Shared, request: Request) -> Answered {
    let limit = operations_limit(request.uri().query().unwrap_or_default())?;
    let mut operations = admin.core.glance(|core, now| core.operations(now)).await?;
    operations.truncate(limit);
    Ok(json(StatusCode::OK, &OperationsView { operations }))
}

async fn operation(State(admin): Shared, path: Result<Path<String>, PathRejection>) -> Answered {
    let id: OperationId = name_of(
        path,
        "bad_operation",
        "an operation id matches",
        OperationId::PATTERN,
    )?;
    let asked = id.clone();
    let view = admin
        .core
        .glance(move |core, now| core.operation(&asked, now))
        .await?;
    let view = view.ok_or_else(|| {
        let detail = format!("there is no operation {id}; GET /v1/operations lists the newest");
        Problem::new(404, "unknown_operation", detail)
    })?;
    Ok(json(StatusCode::OK, &view))
}

/// The node as it is after a change; whatever the core answered, that is what the operator wants to see.
async fn changed(admin: &Admin, node: NodeId, ask: Ask) -> Answered {
    let view = match admin.core.ask(ask).await? {
        Granted::Done(Some(view)) => Some(*view),
        _ => look_at_node(admin, node.clone()).await?,
    };
    Ok(json(StatusCode::OK, &view.ok_or_else(|| unknown_node(node))?))
}

async fn look_at_node(admin: &Admin, node: NodeId) -> Result<Option<usher_shared::rest::NodeView>, Denied> {
    admin.core.glance(move |core, now| core.node(&node, now)).await
}

/// 202 with the operation and where to follow it; 200 when there is nothing left to follow.
fn began(granted: Granted) -> Answered {
    match granted {
        Granted::Operation(Some(view)) => Ok(operation_answer(&view)),
        _ => Ok(StatusCode::NO_CONTENT.into_response()),
    }
}

fn operation_answer(view: &OperationView) -> Response {
    let status = if view.state == OperationState::Running {
        StatusCode::ACCEPTED
    } else {
        StatusCode::OK
    };
    let mut response = json(status, view);
    if let Ok(location) = HeaderValue::try_from(format!("/v1/operations/{}", view.operation)) {
        response.headers_mut().insert(LOCATION, location);
    }
    response
}

type TeamPath = Result<Path<String>, PathRejection>;
type NodePath = Result<Path<String>, PathRejection>;

fn team_of(path: TeamPath) -> Result<TeamId, Problem> {
    name_of(path, "bad_team", "a team id matches", TeamId::PATTERN)
}

fn node_of(path: NodePath) -> Result<NodeId, Problem> {
    name_of(path, "bad_node", "a node name matches", NodeId::PATTERN)
}

fn name_of<T: std::str::FromStr>(
    path: Result<Path<String>, PathRejection>,
    code: &'static str,
    rule: &str,
    pattern: &str,
) -> Result<T, Problem> {
    // axum has decoded the segment; it refuses only what is not UTF-8.
    let name = path.ok().and_then(|Path(name)| name.parse().ok());
    name.ok_or_else(|| Problem::new(400, code, format!("{rule} {pattern}")))
}

async fn body_of<T: DeserializeOwned + Default>(request: Request) -> Result<T, Problem> {
    let (head, body) = request.into_parts();
    let bytes = body::read(body).await?;
    body::parse(&head.headers, &bytes)
}

fn unknown_team(team: TeamId) -> Problem {
    Denied::Refused(usher_placement::Refusal::UnknownTeam(team)).problem()
}

fn unknown_node(node: NodeId) -> Problem {
    Denied::Refused(usher_placement::Refusal::UnknownNode(node)).problem()
}
