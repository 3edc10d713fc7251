//! The nodes' listener: the node link, and the word of a parent that its node is dead.

use futures_util::stream::{SplitSink, SplitStream};
use futures_util::{FutureExt as _, SinkExt as _, StreamExt as _};
use http::header::{AUTHORIZATION, ORIGIN, WWW_AUTHENTICATE};
use http::request::Parts;
use http::{HeaderValue, Method, Request, StatusCode};
use hyper::upgrade::OnUpgrade;
use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;
use tokio::net::TcpStream;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::protocol::frame::coding::CloseCode as WireCode;
use tokio_tungstenite::tungstenite::protocol::{CloseFrame, Role, WebSocketConfig};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use usher_listen::accept::PeerAddress;
use usher_listen::answer::{self, Answer};
use usher_listen::frames::FrameLimits;
use usher_listen::gate::Gate;
use usher_listen::health;
use usher_listen::inflow::Inflow;
use usher_listen::places::Places;
use usher_listen::room::Stage;
use usher_listen::wire::upgraded;
use usher_placement::{Event, LinkId};
use usher_shared::credential::Credential;
use usher_shared::frame::CloseCode;
use usher_shared::link::{
    EXITED_PATH, Exited, Hello, MAX_FRAME_BYTES, PATH, PROTOCOL, Refused, RefusedCode, ToBroker, ToNode,
};
use usher_shared::rest::Problem;

use crate::body;
use crate::clients::{healthy, not_found, ready, wrong_method};
use crate::handle::{CoreHandle, Input};
use crate::in_band::{Handshake, accept_upgrade};
use crate::link_message::{BadMessage, event_of, for_log};
use crate::outlet::{Outgoing, OutgoingQueue, Outlet};
use crate::random;
use crate::telemetry;

/// How long a link may take to say hello.
const HELLO_PATIENCE: Duration = Duration::from_secs(5);
/// Links that have not said hello, at once. Beyond that the oldest goes for a new one, first of the
/// address that has the most.
const STRANGERS: usize = 256;
/// Links in all: as many as there may be nodes, and as many again while they reconnect. Beyond that an
/// address that has many gives one up for another that has few.
const LINKS: usize = 20_000;
/// Messages written before a flush.
const RUN: usize = 256;
/// When a refused node should try again, before jitter.
const RETRY_MS: u64 = 5_000;

type Socket = WebSocketStream<Gate<TcpStream>>;

/// What the nodes' listener answers from.
pub(crate) struct NodeLinks {
    core: CoreHandle,
    node_token: Option<Credential>,
    /// A link that says nothing for this long is closed: its node's lease is over by then.
    lease: Duration,
    links: Arc<Places>,
    strangers: Arc<Places>,
    last_link: AtomicU64,
    stop: CancellationToken,
    tasks: TaskTracker,
}

impl NodeLinks {
    pub(crate) fn new(
        core: CoreHandle,
        node_token: Option<Credential>,
        lease: Duration,
        stop: CancellationToken,
    ) -> Self {
        Self {
            core,
            node_token,
            lease,
            links: Places::new("links", LINKS),
            strangers: Places::new("strangers", STRANGERS),
            last_link: AtomicU64::new(0),
            stop,
            tasks: TaskTracker::new(),
        }
    }

    /// Waits until every link is closed; `stop` must have been cancelled.
    pub(crate) async fn closed(&self) {
        self.tasks.close();
        self.tasks.wait().await;
    }

    /// Answers one request.
    pub(crate) async fn answer(self: Arc<Self>, request: Request<Inflow>) -> Answer {
        let (mut head, body) = request.into_parts();
        if let Some(answer) = health::answer(
            head.uri.path(),
            &head.method,
            || healthy(&self.core),
            || ready(&self.core),
        ) {
            return answer;
        }
        match head.uri.path() {
            // Browsers send it with every WebSocket and every POST, nodes never: without a token a
            // page anywhere could otherwise join the pool of whoever reads it.
            PATH | EXITED_PATH if head.headers.contains_key(ORIGIN) => {
                self.refused("foreign_origin", &head);
                foreign()
            }
            PATH | EXITED_PATH if !self.admits(&head) => {
                self.refused("unauthorized", &head);
                unauthorized(&head)
            }
            PATH => {
                let upgrade = head.extensions.remove::<OnUpgrade>();
                self.open(&head, upgrade)
            }
            EXITED_PATH if head.method == Method::POST => match self.exited(&head, body).await {
                Ok(()) => answer::text(StatusCode::NO_CONTENT, ""),
                Err(problem) => answer::problem(&problem),
            },
            EXITED_PATH => wrong_method("POST"),
            _ => not_found(),
        }
    }

    fn refused(&self, code: &str, head: &Parts) {
        let peer = head
            .extensions
            .get::<PeerAddress>()
            .map(|peer| peer.0.to_string());
        let refusals = self.core.vitals().refusals();
        refusals.refused(code, &peer.unwrap_or_default(), "");
    }

    fn admits(&self, head: &Parts) -> bool {
        let shown = head
            .headers
            .get(AUTHORIZATION)
            .and_then(|value| value.to_str().ok());
        self.node_token.as_ref().is_none_or(|token| token.admits(shown))
    }

    async fn exited(&self, head: &Parts, body: Inflow) -> Result<(), Problem> {
        let bytes = body::read(body).await?;
        let exited: Exited = body::parse_required(&head.headers, &bytes)?;
        let word = exited.clone();
        let shown = self.core.glance(move |core, _| core.is_shown(&word)).await;
        // Told in either case: one that is not believed is counted.
        let told = self.core.tell(Input::Event(Event::Exited(exited))).await;
        told.map_err(|denied| denied.problem())?;
        match shown {
            Ok(false) => Err(Problem::new(
                403,
                "unproven",
                "the process is known by its nonce: send the `nonce` of its hello, as its parent knows it",
            )),
            // A broker that is too busy to look has been told all the same.
            Ok(true) | Err(_) => Ok(()),
        }
    }

    fn open(self: &Arc<Self>, head: &Parts, upgrade: Option<OnUpgrade>) -> Answer {
        let accepted = match accept_upgrade(head) {
            Handshake::Accepted(accepted) => accepted,
            Handshake::Refused(refused) => return refused,
        };
        let Some(upgrade) = upgrade else {
            let problem = Problem::new(
                400,
                "bad_upgrade",
                "the node link is a WebSocket; ask with Upgrade: websocket",
            );
            return answer::problem(&problem);
        };
        let cut = CancellationToken::new();
        let peer = head.extensions.get::<PeerAddress>();
        let take = |places: &Arc<Places>| peer.and_then(|PeerAddress(peer)| places.take(peer.ip(), &cut));
        let (Some(link), Some(stranger)) = (take(&self.links), take(&self.strangers)) else {
            self.refused("busy", head);
            let busy = Problem::new(503, "busy", "too many nodes are connecting; come back later");
            return answer::problem(&busy.retry_after(random::jittered(1_000)));
        };
        let links = Arc::clone(self);
        let peer = head
            .extensions
            .get::<PeerAddress>()
            .map(|peer| peer.0.to_string())
            .unwrap_or_default();
        self.tasks.spawn(async move {
            let greeted = tokio::select! {
                greeted = tokio::time::timeout(HELLO_PATIENCE, greet(upgrade)) => greeted.ok().flatten(),
                () = cut.cancelled() => None,
            };
            link.turn(Stage::Busy);
            drop(stranger);
            match greeted {
                Some((socket, Ok(hello))) => links.serve(socket, hello, cut).await,
                Some((socket, Err(refused))) => {
                    let detail = for_log(&refused.detail);
                    links
                        .core
                        .vitals()
                        .refusals()
                        .refused(refused.code.as_str(), &peer, &detail);
                    turn_away(socket, refused).await;
                }
                // No WebSocket, or no word in time: there is nobody to say anything to.
                None => tracing::debug!("a link closed without a hello"),
            }
            drop(link);
        });
        accepted
    }

    /// One link from its hello to its end, which comes early when it has to give way to another.
    async fn serve(&self, socket: Socket, hello: Box<Hello>, gives_way: CancellationToken) {
        let link = LinkId(self.last_link.fetch_add(1, Ordering::Relaxed) + 1);
        let node = hello.node.clone();
        tracing::debug!(%node, link = link.0, "link open");
        let cut = self.stop.child_token();
        let (outlet, outgoing) = Outlet::new(cut.clone());
        let complain = outlet.clone();
        let (sink, mut stream) = socket.split();
        let opened = Input::Hello { link, hello, outlet };
        if self.core.tell(opened).await.is_err() {
            return;
        }
        let writing = write(sink, outgoing, self.lease, self.stop.clone(), cut.clone());
        let reading = async {
            if let Err(bad) = self.read(&mut stream, link, &cut).await {
                let reason = for_log(&bad.to_string());
                tracing::warn!(%node, reason, "the node broke the protocol; its link is closed");
                metrics::counter!(telemetry::BAD_MESSAGES, "what" => bad.what()).increment(1);
                complain.close(refusal(RefusedCode::BadMessage, bad.to_string()));
                // Read on until the node has closed, or what it is told could be lost in a reset.
                let rest = async { while stream.next().await.is_some_and(|read| read.is_ok()) {} };
                let _ = tokio::time::timeout(HELLO_PATIENCE, rest).await;
            }
            cut.cancel();
        };
        // A bug in either ends this link, and the core must hear of that as of any other end.
        let conversation = AssertUnwindSafe(async { tokio::join!(writing, reading) }).catch_unwind();
        let giving_way = async {
            gives_way.cancelled().await;
            tracing::warn!(%node, link = link.0, "too many links: this one gives way to another address's");
            cut.cancel();
            std::future::pending::<()>().await;
        };
        tokio::select! {
            ended = conversation => if ended.is_err() {
                cut.cancel();
            },
            () = giving_way => {}
        }
        tracing::debug!(%node, link = link.0, "link closed");
        // When the broker stops it is not the node that went: nothing must follow from it.
        if !self.stop.is_cancelled() {
            let _ = self.core.tell(Input::Event(Event::LinkClosed { link })).await;
        }
    }

    /// Reads until the link ends; an error is what the node must be told.
    async fn read(
        &self,
        stream: &mut SplitStream<Socket>,
        link: LinkId,
        cut: &CancellationToken,
    ) -> Result<(), BadMessage> {
        loop {
            let next = tokio::select! {
                () = cut.cancelled() => return Ok(()),
                next = tokio::time::timeout(self.lease, stream.next()) => next,
            };
            let message = match next {
                Ok(Some(Ok(message))) => message,
                Ok(Some(Err(error))) => {
                    tracing::debug!(link = link.0, %error, "link failed");
                    return Ok(());
                }
                Ok(None) => return Ok(()),
                Err(_) => {
                    tracing::debug!(link = link.0, "link silent");
                    return Ok(());
                }
            };
            let text = match message {
                Message::Text(text) => text,
                Message::Binary(_) => return Err(BadMessage::Binary),
                _ => continue,
            };
            let message: ToBroker = serde_json::from_str(&text)?;
            if let Some(event) = event_of(link, message)? {
                if self.core.tell(Input::Event(event)).await.is_err() {
                    return Ok(());
                }
            } else {
                metrics::counter!(telemetry::BAD_MESSAGES, "what" => "unknown").increment(1);
            }
        }
    }
}

fn foreign() -> Answer {
    let detail = "the node link is for nodes, and nodes send no Origin: pages may not use it";
    answer::problem(&Problem::new(403, "foreign_origin", detail))
}

fn unauthorized(head: &Parts) -> Answer {
    let detail = match head.headers.get(AUTHORIZATION) {
        None => "send the node token as `Authorization: Bearer ...`",
        Some(_) => "this is not the broker's node token",
    };
    let problem = Problem::new(401, "unauthorized", detail);
    let mut refused = answer::problem(&problem);
    refused.headers_mut().insert(
        WWW_AUTHENTICATE,
        HeaderValue::from_static("Bearer realm=\"usher nodes\""),
    );
    refused
}

fn refusal(code: RefusedCode, detail: impl Into<String>) -> Refused {
    Refused {
        code,
        detail: detail.into(),
        retry_ms: random::jittered(RETRY_MS),
    }
}

/// Ends the upgrade and takes the hello.
async fn greet(upgrade: OnUpgrade) -> Option<(Socket, Result<Box<Hello>, Refused>)> {
    let (stream, early) = upgraded(upgrade).await?;
    let config = WebSocketConfig::default()
        .read_buffer_size(16 * 1_024)
        .write_buffer_size(64 * 1_024)
        .max_write_buffer_size(4 * MAX_FRAME_BYTES)
        .max_message_size(Some(MAX_FRAME_BYTES))
        .max_frame_size(Some(MAX_FRAME_BYTES));
    let gate = Gate::new(stream, early, FrameLimits::of_messages(MAX_FRAME_BYTES));
    let mut socket = WebSocketStream::from_raw_socket(gate, Role::Server, Some(config)).await;
    loop {
        return match socket.next().await?.ok()? {
            Message::Text(text) => {
                let hello = hello_of(&text);
                if hello.is_err() {
                    metrics::counter!(telemetry::BAD_MESSAGES, "what" => "bound").increment(1);
                }
                Some((socket, hello))
            }
            Message::Binary(_) => {
                let refused = refusal(RefusedCode::BadMessage, BadMessage::Binary.to_string());
                Some((socket, Err(refused)))
            }
            Message::Close(_) => None,
            _ => continue,
        };
    }
}

fn hello_of(text: &str) -> Result<Box<Hello>, Refused> {
    let bad = |detail: String| refusal(RefusedCode::BadMessage, detail);
    let message = serde_json::from_str::<ToBroker>(text).map_err(|error| bad(error.to_string()))?;
    let ToBroker::Hello(hello) = message else {
        return Err(bad("the first message on a link is hello".to_owned()));
    };
    if hello.protocol != PROTOCOL {
        let detail = format!(
            "this broker speaks protocol {PROTOCOL}, and the node {}; update the older of the two",
            hello.protocol
        );
        return Err(refusal(RefusedCode::Protocol, detail));
    }
    hello.check().map_err(bad)?;
    let port = hello
        .probe
        .rsplit_once(':')
        .map(|(host, port)| (host, port.parse::<u16>()));
    match port {
        Some((host, Ok(port))) if !host.is_empty() && port != 0 => Ok(hello),
        _ => Err(bad("probe is host:port".to_owned())),
    }
}

async fn turn_away(mut socket: Socket, refused: Refused) {
    let told = async {
        let text = serde_json::to_string(&ToNode::Refused(refused)).unwrap_or_default();
        socket.send(Message::text(text)).await?;
        socket.send(Message::Close(Some(policy_close()))).await?;
        while socket.next().await.is_some_and(|read| read.is_ok()) {}
        Ok::<_, tokio_tungstenite::tungstenite::Error>(())
    };
    let _ = tokio::time::timeout(HELLO_PATIENCE, told).await;
}

fn policy_close() -> CloseFrame {
    CloseFrame {
        code: WireCode::Policy,
        reason: "refused".into(),
    }
}

/// Writes until the link ends. `patience` bounds each run of messages: a node that takes longer to
/// read them has lost its lease.
async fn write(
    mut sink: SplitSink<Socket, Message>,
    mut outgoing: OutgoingQueue,
    patience: Duration,
    stop: CancellationToken,
    cut: CancellationToken,
) {
    let mut run = Vec::with_capacity(RUN);
    loop {
        tokio::select! {
            biased;
            () = stop.cancelled() => {
                // Nodes go on serving: this says only that the broker restarts.
                let restart = CloseFrame {
                    code: WireCode::from(CloseCode::Restart.number()),
                    reason: "broker stopping".into(),
                };
                let closing = sink.send(Message::Close(Some(restart)));
                let _ = tokio::time::timeout(Duration::from_secs(1), closing).await;
                return;
            }
            () = cut.cancelled() => return,
            taken = outgoing.recv_many(&mut run, RUN) => {
                if taken == 0 {
                    return;
                }
            }
        }
        let written = async {
            let mut last = None;
            for outgoing in run.drain(..) {
                match outgoing {
                    Outgoing::Message(message) => {
                        let text = serde_json::to_string(&message).unwrap_or_default();
                        sink.feed(Message::text(text)).await?;
                    }
                    Outgoing::Last(refused) => {
                        last = Some(refused);
                        break;
                    }
                }
            }
            if let Some(refused) = last {
                let text = serde_json::to_string(&ToNode::Refused(refused)).unwrap_or_default();
                sink.feed(Message::text(text)).await?;
                sink.send(Message::Close(Some(policy_close()))).await?;
                return Ok(Written::Last);
            }
            sink.flush().await?;
            Ok::<_, tokio_tungstenite::tungstenite::Error>(Written::More)
        };
        match tokio::time::timeout(patience, written).await {
            Ok(Ok(Written::More)) => {}
            Ok(Ok(Written::Last)) => {
                // The node answers the close, which ends the reader; one that does not is cut off.
                let _ = tokio::time::timeout(HELLO_PATIENCE, cut.cancelled()).await;
                cut.cancel();
                return;
            }
            Ok(Err(_)) | Err(_) => {
                cut.cancel();
                return;
            }
        }
    }
}

enum Written {
    More,
    Last,
}
