//! The link to the broker: dials, introduces the node, reports, and hands commands to the floor.
//!
//! No connection of a client depends on it.

use futures_util::{SinkExt as _, StreamExt as _};
use http::header::AUTHORIZATION;
use http::{HeaderValue, StatusCode};
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::TcpStream;
use tokio::time::{Instant, sleep, sleep_until, timeout};
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::client::IntoClientRequest as _;
use tokio_tungstenite::tungstenite::protocol::WebSocketConfig;
use tokio_tungstenite::tungstenite::{self, Message};
use tokio_util::sync::CancellationToken;
use usher_dial::dial;
use usher_listen::fold::{Fold, Said};
use usher_shared::clock::boottime;
use usher_shared::credential::{Credential, Look};
use usher_shared::link::{
    Hello, MAX_FRAME_BYTES, PACED_MOVES, PATH, PROTOCOL, Refused, RefusedCode, ToBroker, ToNode, Welcome,
};
use usher_shared::quantity::Millicores;
use usher_shared::template::NodeUrl;

use crate::brokers::BrokerAddress;
use crate::floor::Floor;
use crate::name_lock::NameLock;
use crate::orders::Lapsed;
use usher_node_core::authority::Disobey;

/// From the dialling to the welcome.
const WELCOME_TIMEOUT: Duration = Duration::from_secs(5);
/// A broker that does not read for so long is as good as gone.
const SEND_TIMEOUT: Duration = Duration::from_secs(5);
/// The first wait after a link broke: short, because a restarted broker should see its nodes at once.
const FIRST_RETRY_MS: u64 = 50;
/// The longest wait between two attempts.
const LAST_RETRY_MS: u64 = 2_000;
/// Arrivals and departures are collected for so long.
const REPORT_EVERY: Duration = Duration::from_millis(100);
/// Bounds on what a broker may ask for, against a typing error there.
const HEARTBEAT_MS: std::ops::RangeInclusive<u64> = 20..=60_000;
/// The same for its wish when to come back.
const RETRY_MS: std::ops::RangeInclusive<u64> = FIRST_RETRY_MS..=60_000;

type Socket = WebSocketStream<TcpStream>;

/// What a node says of itself that only its start knows.
#[derive(Clone, Debug)]
pub(crate) struct Introduction {
    pub(crate) brokers: Vec<BrokerAddress>,
    pub(crate) url: NodeUrl,
    pub(crate) probe: String,
    pub(crate) cores: Millicores,
    /// What no other process of this name on this machine holds.
    pub(crate) lock: Option<Arc<NameLock>>,
}

/// Why a link ended.
#[derive(Debug, thiserror::Error)]
enum LinkError {
    #[error("no answer within {} s", WELCOME_TIMEOUT.as_secs())]
    TimedOut,
    #[error("the connection failed")]
    Connect(#[source] std::io::Error),
    #[error("the WebSocket failed")]
    Socket(#[from] tungstenite::Error),
    #[error("the broker closed the link")]
    Closed,
    #[error("the broker was silent for {0} ms")]
    Silent(u128),
    #[error("the lease had lapsed before the broker answered: the broker looks at what is held here again")]
    Lapsed,
    #[error("the broker does not read")]
    NotReading,
    #[error("the broker answered with something else than a welcome")]
    NotWelcome,
    #[error("the token cannot be sent in a header")]
    Token,
    #[error("{}", .0.detail)]
    Refused(Refused),
    #[error(transparent)]
    Disobey(#[from] Disobey),
}

impl LinkError {
    /// What makes it the same trouble as before.
    fn trouble(&self) -> Trouble {
        match self {
            Self::Refused(refused) => Trouble::Refused(refused.code),
            Self::Disobey(_) => Trouble::Disobeyed,
            Self::Socket(tungstenite::Error::Http(answer)) if answer.status() == StatusCode::UNAUTHORIZED => {
                Trouble::Token
            }
            _ => Trouble::NoLink,
        }
    }
}

/// Why there is no link, as far as it is told apart in the log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Trouble {
    NoLink,
    Token,
    Refused(RefusedCode),
    Disobeyed,
}

/// Keeps a link to one of the brokers until `stop`.
pub(crate) async fn keep(floor: Arc<Floor>, introduction: Introduction, stop: CancellationToken) {
    let mut backoff_ms = FIRST_RETRY_MS;
    let mut troubles: Vec<Fold<Trouble>> = introduction.brokers.iter().map(|_| Fold::default()).collect();
    let mut turn = 0;
    loop {
        let at = turn % introduction.brokers.len();
        turn += 1;
        let (broker, trouble) = (&introduction.brokers[at], &mut troubles[at]);
        let began = Instant::now();
        let ended = tokio::select! {
            () = stop.cancelled() => return,
            ended = one_link(&floor, &introduction, broker, trouble) => ended,
        };
        floor.link_ended();
        let Err(error) = ended;
        let retry_ms = note(&floor, &error);
        if let Some(said) = trouble.happened(error.trouble(), std::time::Instant::now()) {
            tell(broker, &error, said);
        } else {
            tracing::debug!(broker = broker.authority(), %error, "no link to the broker");
        }
        if began.elapsed() > Duration::from_secs(5) {
            backoff_ms = FIRST_RETRY_MS;
        }
        // Full jitter over the upper half: nodes that lost one broker together do not return together.
        let wait_ms = retry_ms.unwrap_or(rand::random_range(backoff_ms / 2..=backoff_ms));
        backoff_ms = (backoff_ms * 2).min(LAST_RETRY_MS);
        tokio::select! {
            () = stop.cancelled() => return,
            () = sleep(Duration::from_millis(wait_ms)) => {}
        }
    }
}

/// Takes in why a link ended; the wait that it asks for.
fn note(floor: &Floor, error: &LinkError) -> Option<u64> {
    match error {
        LinkError::Refused(refused) => {
            if matches!(refused.code, RefusedCode::NameTaken | RefusedCode::Superseded) {
                floor.state.lock().unwanted = Some(refused.code);
            }
            if refused.code == RefusedCode::NameTaken {
                floor.state.lock().mandate.name_taken();
            }
            Some(refused.retry_ms.clamp(*RETRY_MS.start(), *RETRY_MS.end()))
        }
        LinkError::Disobey(_) => Some(LAST_RETRY_MS),
        // The token may have been exchanged since this process read it.
        error if error.trouble() == Trouble::Token => {
            let credential = floor.config.token.as_ref()?;
            let exchanged = matches!(credential.look(), Ok(Look::Changed));
            if exchanged {
                tracing::info!("the node token's file has another token: trying it");
            }
            exchanged.then_some(FIRST_RETRY_MS)
        }
        _ => None,
    }
}

/// Logs why there is no link.
fn tell(broker: &BrokerAddress, error: &LinkError, said: Said) {
    let (broker, attempts, for_s) = (broker.authority(), said.times, said.lasted.as_secs());
    match error {
        LinkError::Refused(refused) => match refused.code {
            RefusedCode::Superseded => {
                tracing::info!(%broker, code = refused.code.as_str(), "the broker ended the link");
            }
            code => tracing::error!(
                %broker,
                code = code.as_str(),
                detail = %refused.detail,
                attempts,
                for_s,
                "the broker refused this node"
            ),
        },
        LinkError::Disobey(why) => {
            tracing::error!(%broker, %why, attempts, for_s, "this node refused a broker");
        }
        error if error.trouble() == Trouble::Token => tracing::error!(
            %broker,
            attempts,
            for_s,
            "the broker does not know this node's token: give both the same, with --node-token-file or USHER_NODE_TOKEN; a file is read again by itself"
        ),
        error => {
            let source = std::error::Error::source(error).map(ToString::to_string);
            tracing::warn!(%broker, %error, source, attempts, for_s, "no link to the broker; connections go on");
        }
    }
}

async fn one_link(
    floor: &Floor,
    introduction: &Introduction,
    broker: &BrokerAddress,
    trouble: &mut Fold<Trouble>,
) -> Result<std::convert::Infallible, LinkError> {
    let (mut socket, welcome) = timeout(WELCOME_TIMEOUT, greet(floor, introduction, broker))
        .await
        .map_err(|_| LinkError::TimedOut)??;
    let pulse = Pulse::of(&welcome);
    let (term, cluster) = (welcome.term.get(), welcome.cluster);
    let inventory = floor.welcome(*welcome)?;
    let broker = broker.authority();
    match trouble.over(std::time::Instant::now()) {
        None => tracing::info!(%broker, term, %cluster, "linked to the broker"),
        Some(said) => {
            let (attempts, away_s) = (said.times, said.lasted.as_secs());
            tracing::info!(%broker, term, %cluster, attempts, away_s, "linked to the broker again");
        }
    }
    for page in inventory {
        send(&mut socket, &page).await?;
    }
    converse(floor, &mut socket, pulse).await
}

async fn greet(
    floor: &Floor,
    introduction: &Introduction,
    broker: &BrokerAddress,
) -> Result<(Socket, Box<Welcome>), LinkError> {
    let mut request = format!("ws://{}{PATH}", broker.authority()).into_client_request()?;
    if let Some(token) = floor.config.token.as_ref().and_then(Credential::shown) {
        let mut bearer =
            HeaderValue::from_str(&format!("Bearer {}", token.expose())).map_err(|_| LinkError::Token)?;
        bearer.set_sensitive(true);
        request.headers_mut().insert(AUTHORIZATION, bearer);
    }
    let stream = dial(broker.authority()).await.map_err(LinkError::Connect)?;
    stream.set_nodelay(true).map_err(LinkError::Connect)?;
    let from = stream.local_addr().map_err(LinkError::Connect)?.ip();
    let limits = WebSocketConfig::default()
        .read_buffer_size(16 * 1024)
        .write_buffer_size(0)
        .max_write_buffer_size(4 * MAX_FRAME_BYTES)
        .max_message_size(Some(MAX_FRAME_BYTES))
        .max_frame_size(Some(MAX_FRAME_BYTES));
    let (mut socket, _) = tokio_tungstenite::client_async_with_config(request, stream, Some(limits)).await?;
    floor.state.lock().mandate.reached();
    let hello = ToBroker::Hello(Box::new(hello(floor, introduction, from)));
    send(&mut socket, &hello).await?;
    loop {
        match receive(&mut socket).await? {
            Some(ToNode::Welcome(welcome)) => return Ok((socket, welcome)),
            Some(ToNode::Refused(refused)) => return Err(LinkError::Refused(refused)),
            Some(ToNode::Unknown) | None => floor.figures.link_unknown.increment(1),
            Some(_) => return Err(LinkError::NotWelcome),
        }
    }
}

fn hello(floor: &Floor, introduction: &Introduction, from: IpAddr) -> Hello {
    let config = &floor.config;
    let state = floor.state.lock();
    Hello {
        protocol: PROTOCOL,
        node: config.node.clone(),
        incarnation: config.incarnation,
        nonce: Some(config.nonce),
        lock: introduction.lock.as_ref().and_then(|lock| lock.shown(from)),
        version: env!("CARGO_PKG_VERSION").to_owned(),
        capabilities: PACED_MOVES.parse().into_iter().collect(),
        url: introduction.url.clone(),
        probe: introduction.probe.clone(),
        region: config.region.clone(),
        zone: config.zone.clone(),
        labels: config.labels.clone(),
        weight: config.weight,
        cores: introduction.cores,
        capacity: config.capacity,
        cluster: state.mandate.cluster(),
        highest_term: state.mandate.highest_term(),
        broker: state.mandate.broker(),
        highest_grant: state.mandate.highest_grant().cloned(),
    }
}

/// How often this link beats, and how long silence on it is borne.
#[derive(Clone, Copy, Debug)]
struct Pulse {
    heartbeat: Duration,
    lease: Duration,
}

impl Pulse {
    fn of(welcome: &Welcome) -> Self {
        let heartbeat_ms = welcome
            .heartbeat_ms
            .clamp(*HEARTBEAT_MS.start(), *HEARTBEAT_MS.end());
        Self {
            heartbeat: Duration::from_millis(heartbeat_ms),
            lease: Duration::from_millis(welcome.lease_ms.max(4 * heartbeat_ms)),
        }
    }

    /// A tenth more or less: the heartbeats of a pool that started together drift apart.
    fn next(self) -> Duration {
        self.heartbeat.mul_f64(rand::random_range(0.9..1.1))
    }

    /// Half a lease without a word is jeopardy: time to try the other brokers. A broker that is
    /// still reconciling owes no answer yet, so a link that never had one is borne for a whole lease.
    fn patience(self, acknowledged: Acknowledged) -> Duration {
        match acknowledged {
            Acknowledged::NotYet => self.lease,
            Acknowledged::Yes => self.lease / 2,
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Acknowledged {
    NotYet,
    Yes,
}

async fn converse(
    floor: &Floor,
    socket: &mut Socket,
    pulse: Pulse,
) -> Result<std::convert::Infallible, LinkError> {
    let mut stopping = floor.stopping.subscribe();
    stopping.mark_changed();
    let mut seq = 0;
    let mut beat_at = Instant::now();
    let mut last_beat = beat_at;
    let mut heard = beat_at;
    let mut acknowledged = Acknowledged::NotYet;
    let mut report_at: Option<Instant> = None;
    // The first after a quiet time goes at once: the broker times the gap of a move by its coming.
    let mut may_report_at = beat_at;
    // Something may wait from before this link.
    floor.outgoing.notify_one();
    loop {
        let silent_at = heard + pulse.patience(acknowledged);
        tokio::select! {
            received = receive(socket) => {
                heard = Instant::now();
                match received? {
                    Some(ToNode::Refused(refused)) => return Err(LinkError::Refused(refused)),
                    Some(message) => {
                        if matches!(message, ToNode::HeartbeatAck { .. }) {
                            acknowledged = Acknowledged::Yes;
                        }
                        floor.obey(message).map_err(|Lapsed| LinkError::Lapsed)?;
                    }
                    None => floor.figures.link_unknown.increment(1),
                }
            }
            () = sleep_until(beat_at) => {
                seq += 1;
                let now = Instant::now();
                let heartbeat = floor.heartbeat(seq, now.duration_since(last_beat));
                last_beat = now;
                send(socket, &heartbeat).await?;
                beat_at = now + pulse.next();
            }
            () = floor.outgoing.notified() => {
                let (due, reports) = {
                    let mut state = floor.state.lock();
                    let due = state.outgoing.take_due(boottime()).map_err(|_| LinkError::NotReading)?;
                    (due, state.outgoing.has_reports())
                };
                for message in &due {
                    send(socket, message).await?;
                }
                if reports && report_at.is_none() {
                    report_at = Some(may_report_at.max(Instant::now()));
                }
            }
            () = at(report_at) => {
                report_at = None;
                may_report_at = Instant::now() + REPORT_EVERY;
                let reports = floor.state.lock().outgoing.take_reports(boottime());
                for report in reports {
                    send(socket, &report).await?;
                }
            }
            _ = stopping.changed() => {
                let until = *stopping.borrow_and_update();
                if let Some(until) = until {
                    let budget = until.saturating_duration_since(Instant::now());
                    let budget_ms = u64::try_from(budget.as_millis()).unwrap_or(u64::MAX);
                    send(socket, &ToBroker::Bye { budget_ms }).await?;
                }
            }
            () = sleep_until(silent_at) => {
                return Err(LinkError::Silent(heard.elapsed().as_millis()));
            }
        }
    }
}

/// At that time, or never.
async fn at(time: Option<Instant>) {
    match time {
        Some(time) => sleep_until(time).await,
        None => std::future::pending().await,
    }
}

async fn send(socket: &mut Socket, message: &ToBroker) -> Result<(), LinkError> {
    // Plain structs with text keys: there is nothing in them that JSON cannot carry.
    let text = serde_json::to_string(message).unwrap_or_default();
    timeout(SEND_TIMEOUT, socket.send(Message::text(text)))
        .await
        .map_err(|_| LinkError::NotReading)??;
    Ok(())
}

/// The next message; `None` for one that cannot be read, which is dropped.
async fn receive(socket: &mut Socket) -> Result<Option<ToNode>, LinkError> {
    loop {
        let message = socket.next().await.ok_or(LinkError::Closed)??;
        let text = match message {
            Message::Text(text) => text,
            Message::Close(_) => return Err(LinkError::Closed),
            _ => continue,
        };
        return Ok(match serde_json::from_str(&text) {
            Ok(message) => Some(message),
            Err(error) => {
                // Not what the parser says of it: that may quote a key.
                let (line, column) = (error.line(), error.column());
                tracing::warn!(
                    bytes = text.len(),
                    line,
                    column,
                    "a message of the broker could not be read"
                );
                None
            }
        });
    }
}
