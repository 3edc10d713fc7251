//! A real node in this process, with a broker that does what the test says.

#![allow(dead_code, unreachable_pub)] // Each test file uses a part of it.

use futures_util::{SinkExt, StreamExt};
use http::{HeaderName, HeaderValue};
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio::time::timeout;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::client::IntoClientRequest;
use tokio_tungstenite::tungstenite::{Error, Message};
use tokio_util::sync::CancellationToken;
use usher_node::{Config, Node, Relay};
use usher_shared::clock::wall_ms;
use usher_shared::frame::{CloseReason, Control};
use usher_shared::id::{BrokerId, ClusterId, Incarnation, TeamId};
use usher_shared::link::{
    Assign, Capacity, Drain, HoldState, Move, TeamSpec, TicketKey, ToBroker, ToNode, Welcome,
};
use usher_shared::quantity::{Epoch, Term, Weight};
use usher_shared::secret::Key;
use usher_shared::ticket::{self, Claims, Scope};

/// How long a test waits for anything.
pub const DEADLINE: Duration = Duration::from_secs(10);
pub const PUBLIC_URL: &str = "http://broker.test:7400";
pub const INCARNATION: Incarnation = Incarnation::from_bits(0xabcd << 112);

pub type Socket = WebSocketStream<TcpStream>;

pub fn epoch(number: u64) -> Epoch {
    Epoch::new(number).unwrap()
}

pub fn team(name: &str) -> TeamId {
    name.parse().unwrap()
}

pub async fn within<T>(future: impl Future<Output = T>) -> T {
    timeout(DEADLINE, future)
        .await
        .expect("it takes longer than it should")
}

/// The broker's side of one link after another.
pub struct FakeBroker {
    pub address: SocketAddr,
    said: mpsc::UnboundedReceiver<ToBroker>,
    commands: mpsc::UnboundedSender<ToNode>,
    answers: Arc<AtomicBool>,
    task: JoinHandle<()>,
}

impl FakeBroker {
    pub async fn start(change: impl Fn(&mut Welcome) + Send + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (say, said) = mpsc::unbounded_channel();
        let (commands, mut to_send) = mpsc::unbounded_channel();
        let answers = Arc::new(AtomicBool::new(true));
        let answering = Arc::clone(&answers);
        let task = tokio::spawn(async move {
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                let Ok(mut socket) = tokio_tungstenite::accept_async(stream).await else {
                    continue;
                };
                let mut welcome = welcome();
                change(&mut welcome);
                let term = welcome.term;
                one_link(&mut socket, welcome, term, &say, &mut to_send, &answering).await;
            }
        });
        Self {
            address,
            said,
            commands,
            answers,
            task,
        }
    }

    pub fn command(&self, message: ToNode) {
        self.commands.send(message).unwrap();
    }

    /// Whether heartbeats are answered.
    pub fn answers(&self, answers: bool) {
        self.answers.store(answers, Ordering::SeqCst);
    }

    /// The next message that fits, whatever comes before it.
    pub async fn hears<T>(&mut self, mut fits: impl FnMut(ToBroker) -> Option<T>) -> T {
        within(async {
            loop {
                let message = self.said.recv().await.expect("the broker runs");
                if let Some(found) = fits(message) {
                    return found;
                }
            }
        })
        .await
    }

    /// Closes the listener and the link for good.
    pub fn die(&self) {
        self.task.abort();
    }
}

pub fn welcome() -> Welcome {
    Welcome {
        cluster: ClusterId::from_bits(1),
        broker: BrokerId::from_bits(1),
        term: Term::new(1).unwrap(),
        lease_ms: 6_000,
        heartbeat_ms: 50,
        forget_ms: 600_000,
        ticket_keys: vec![TicketKey {
            kid: "k1".to_owned(),
            key: key(),
        }],
        public_url: PUBLIC_URL.to_owned(),
        peers: Vec::new(),
    }
}

async fn one_link(
    socket: &mut Socket,
    welcome: Welcome,
    term: Term,
    say: &mpsc::UnboundedSender<ToBroker>,
    to_send: &mut mpsc::UnboundedReceiver<ToNode>,
    answers: &AtomicBool,
) {
    let mut welcome = Some(welcome);
    loop {
        tokio::select! {
            message = socket.next() => {
                let Some(Ok(Message::Text(text))) = message else { return };
                let message: ToBroker = serde_json::from_str(&text).unwrap();
                let answer = match &message {
                    ToBroker::Hello(_) => welcome.take().map(|welcome| ToNode::Welcome(Box::new(welcome))),
                    ToBroker::Heartbeat(heartbeat) if answers.load(Ordering::SeqCst) => {
                        Some(ToNode::HeartbeatAck { seq: heartbeat.seq, term })
                    }
                    _ => None,
                };
                let _ = say.send(message);
                if let Some(answer) = answer {
                    send(socket, &answer).await;
                }
            }
            command = to_send.recv() => {
                let Some(command) = command else { return };
                send(socket, &command).await;
            }
        }
    }
}

async fn send(socket: &mut Socket, message: &ToNode) {
    let text = serde_json::to_string(message).unwrap();
    let _ = socket.send(Message::text(text)).await;
}

pub fn key() -> Key {
    Key::from_bytes([7; 32])
}

pub fn assign(name: &str, number: u64) -> Assign {
    Assign {
        team: team(name),
        epoch: epoch(number),
        grant: "grant".to_owned(),
        state: HoldState::Owned,
        term: Term::new(1).unwrap(),
        spec: TeamSpec::default(),
    }
}

pub fn drain(name: &str, number: u64, after_ms: u64, by_ms: u64) -> ToNode {
    ToNode::Drain(Drain {
        operation: "op-1".parse().unwrap(),
        reason: "drain".parse().unwrap(),
        moves: vec![Move {
            team: team(name),
            epoch: epoch(number),
            after_ms,
        }],
        by_ms,
        pace: None,
        term: Term::new(1).unwrap(),
    })
}

pub fn config(broker: SocketAddr) -> Config {
    let any: SocketAddr = "127.0.0.1:0".parse().unwrap();
    Config {
        node: "node-1".parse().unwrap(),
        incarnation: INCARNATION,
        nonce: usher_shared::identity::Hidden::from_bits(9),
        listen: any,
        admin: any,
        brokers: vec![format!("ws://{broker}")],
        url: None,
        probe_listen: None,
        probe: None,
        region: None,
        zone: None,
        labels: std::collections::BTreeMap::default(),
        weight: Weight::NODE,
        capacity: Capacity {
            teams: 100,
            connections: 100,
        },
        on_lapse: usher_node::OnLapse::Hold,
        relay: Relay::Team,
        token: None,
        stop_budget: Duration::from_secs(8),
        ping: Duration::from_secs(20),
        message_bytes: 64 * 1024,
        queue_bytes: 256 * 1024,
        message_time: Duration::from_secs(60),
        unfinished_bytes: 32 << 20,
        frames_per_s: 2_000,
        controls_per_s: 20,
        bytes_per_s: 16 << 20,
    }
}

/// A node, its broker, and the means to stop it.
pub struct Rig {
    pub broker: FakeBroker,
    pub clients: SocketAddr,
    pub admin: SocketAddr,
    pub stop: CancellationToken,
    pub hasten: CancellationToken,
    pub served: JoinHandle<()>,
}

static SERIAL: AtomicU64 = AtomicU64::new(1);

impl Rig {
    pub async fn start() -> Self {
        Self::start_with(|_| {}, |_| {}).await
    }

    /// A node that is ready, with a changed configuration and a changed welcome.
    pub async fn start_with(
        change: impl FnOnce(&mut Config),
        welcome: impl Fn(&mut Welcome) + Send + 'static,
    ) -> Self {
        let broker = FakeBroker::start(welcome).await;
        let mut config = config(broker.address);
        change(&mut config);
        let rig = Self::run(broker, config);
        rig.is_ready().await;
        rig
    }

    pub fn run(broker: FakeBroker, config: Config) -> Self {
        let node = Node::bind(config).unwrap();
        let (stop, hasten) = (CancellationToken::new(), CancellationToken::new());
        let (clients, admin) = (node.client_address(), node.admin_address());
        let serving = node.serve_until(stop.clone(), hasten.clone());
        let served = tokio::spawn(async move { serving.await.unwrap() });
        Self {
            broker,
            clients,
            admin,
            stop,
            hasten,
            served,
        }
    }

    pub async fn is_ready(&self) {
        self.eventually("the node is ready", async || self.status("/readyz").await == 200)
            .await;
    }

    /// Waits until it is so.
    pub async fn eventually(&self, what: &str, so: impl AsyncFn() -> bool) {
        let waiting = async {
            while !so().await {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        };
        assert!(timeout(DEADLINE, waiting).await.is_ok(), "in vain: {what}");
    }

    /// Gives the node a team and waits until it holds it.
    pub async fn gives(&mut self, name: &str, number: u64) {
        self.broker.command(ToNode::Assign(assign(name, number)));
        self.broker
            .hears(|message| match message {
                ToBroker::Heartbeat(heartbeat) if heartbeat.teams > 0 => Some(()),
                _ => None,
            })
            .await;
    }

    pub fn claims(&self, name: &str, number: u64) -> Claims {
        let now_s = wall_ms() / 1000;
        Claims {
            sub: team(name),
            aud: "node-1".parse().unwrap(),
            inc: INCARNATION,
            epoch: epoch(number),
            iat: now_s,
            exp: now_s + 30,
            jti: format!("{:016x}", SERIAL.fetch_add(1, Ordering::SeqCst)),
            hop: 0,
            from: None,
            scope: Scope::Connect,
        }
    }

    pub fn ticket(&self, name: &str, number: u64) -> String {
        ticket::sign(&self.claims(name, number), "k1", &key())
    }

    /// A connection of a team with a good ticket.
    pub async fn joins(&self, name: &str, number: u64) -> Client {
        let path = format!("/teams/{name}?ticket={}", self.ticket(name, number));
        Client(self.dial(&path, &[]).await.expect("the node lets it in"))
    }

    /// The same, speaking `usher.v1`.
    pub async fn joins_with_usher(&self, name: &str, number: u64) -> Client {
        let path = format!("/teams/{name}?usher=1&ticket={}", self.ticket(name, number));
        Client(self.dial(&path, &[]).await.expect("the node lets it in"))
    }

    pub async fn dial(&self, path: &str, headers: &[(&'static str, &str)]) -> Result<Socket, Box<Error>> {
        self.handshake(path, headers).await.map(|(socket, _)| socket)
    }

    /// The socket, and the subprotocol that the node chose.
    pub async fn handshake(
        &self,
        path: &str,
        headers: &[(&'static str, &str)],
    ) -> Result<(Socket, Option<String>), Box<Error>> {
        let mut request = format!("ws://{}{path}", self.clients)
            .into_client_request()
            .unwrap();
        for (name, value) in headers {
            let value = HeaderValue::from_str(value).unwrap();
            request.headers_mut().insert(HeaderName::from_static(name), value);
        }
        let stream = TcpStream::connect(self.clients).await.unwrap();
        let (socket, answer) = within(tokio_tungstenite::client_async(request, stream))
            .await
            .map_err(Box::new)?;
        let chosen = answer.headers().get("sec-websocket-protocol");
        Ok((socket, chosen.map(|chosen| chosen.to_str().unwrap().to_owned())))
    }

    /// Status and `Location` of a dial that is not let in.
    pub async fn turned_away(&self, path: &str, headers: &[(&'static str, &str)]) -> (u16, String) {
        match self.dial(path, headers).await {
            Ok(_) => panic!("it was let in"),
            Err(error) => match *error {
                Error::Http(answer) => {
                    let location = answer.headers().get("location");
                    let location = location.map(|location| location.to_str().unwrap().to_owned());
                    (answer.status().as_u16(), location.unwrap_or_default())
                }
                other => panic!("{other}"),
            },
        }
    }

    pub async fn status(&self, path: &str) -> u16 {
        self.http(self.clients, &format!("GET {path} HTTP/1.1\r\n"), b"")
            .await
            .0
    }

    /// Waits until the node serves without its broker, and says so.
    pub async fn has_lost_its_broker(&self) {
        self.eventually("the node has lost its broker", async || {
            let (status, answer) = self.http(self.clients, "GET /readyz HTTP/1.1\r\n", b"").await;
            status == 200 && answer.contains("without its broker")
        })
        .await;
    }

    /// One HTTP exchange: status and the whole answer as text. `head` ends with a line break.
    pub async fn http(&self, to: SocketAddr, head: &str, body: &[u8]) -> (u16, String) {
        within(async {
            let mut stream = TcpStream::connect(to).await.unwrap();
            let rest = format!(
                "host: x\r\nconnection: close\r\ncontent-length: {}\r\n\r\n",
                body.len()
            );
            let mut request = format!("{head}{rest}").into_bytes();
            request.extend_from_slice(body);
            stream.write_all(&request).await.unwrap();
            let mut answer = Vec::new();
            let _ = stream.read_to_end(&mut answer).await;
            let answer = String::from_utf8_lossy(&answer).into_owned();
            let status = answer.split(' ').nth(1).unwrap_or("0").parse().unwrap();
            (status, answer)
        })
        .await
    }
}

/// A client's connection.
pub struct Client(pub Socket);

impl Client {
    pub async fn says(&mut self, text: &str) {
        self.0.send(Message::text(text)).await.unwrap();
    }

    /// The next application or control frame, as text.
    pub async fn hears(&mut self) -> String {
        match self.next().await {
            Message::Text(text) => text.to_string(),
            other => panic!("{other:?}"),
        }
    }

    pub async fn told(&mut self) -> Control {
        serde_json::from_str(&self.hears().await).unwrap()
    }

    pub async fn next(&mut self) -> Message {
        within(async {
            loop {
                let message = self.0.next().await.expect("the socket is open").unwrap();
                if !message.is_ping() && !message.is_pong() {
                    return message;
                }
            }
        })
        .await
    }

    /// The code and reason of the Close that comes next, after whatever frames; then the end of the
    /// stream without a second Close.
    pub async fn closed(&mut self) -> (u16, CloseReason) {
        within(async {
            let mut found = None;
            while let Some(message) = self.0.next().await {
                match message {
                    Ok(Message::Close(Some(close))) => {
                        assert!(found.is_none(), "closed twice");
                        let reason = serde_json::from_str(&close.reason).unwrap();
                        found = Some((u16::from(close.code), reason));
                    }
                    Ok(_) => {}
                    Err(error) => panic!("{error}"),
                }
            }
            found.expect("a Close comes first")
        })
        .await
    }

    /// The same where the node shuts its side of the TCP connection after the Close.
    pub async fn closed_by_shutdown(&mut self) -> (u16, Option<String>) {
        within(async {
            loop {
                match self.0.next().await {
                    Some(Ok(Message::Close(Some(close)))) => {
                        let reason: CloseReason = serde_json::from_str(&close.reason).unwrap();
                        // The end of the stream, and no reset whatever is still under way to the
                        // node: on some systems a reset overtakes the Close.
                        let stream = self.0.get_mut();
                        let end = stream.read(&mut [0; 8]).await;
                        assert!(matches!(end, Ok(0)), "{end:?}");
                        for _ in 0..64 {
                            stream.write_all(&[0; 16_384]).await.unwrap();
                        }
                        return (u16::from(close.code), reason.code);
                    }
                    Some(Ok(_)) => {}
                    other => panic!("{other:?}"),
                }
            }
        })
        .await
    }
}
