//! A broker on free ports, a node that speaks the link and nothing else, and a client that follows
//! nothing by itself.

#![allow(dead_code, unreachable_pub, clippy::expect_used, clippy::unwrap_used)]

use futures_util::{SinkExt as _, StreamExt as _};
use parking_lot::Mutex;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::task::JoinHandle;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::client::IntoClientRequest as _;
use tokio_util::sync::CancellationToken;
use usher_broker::store::Store;
use usher_broker::{Broker, BrokerError, Config};
use usher_shared::link::ToNode;

pub const DEADLINE: Duration = Duration::from_secs(20);

/// Loopback, free ports, and leases short enough to wait for.
pub fn config(data: &Path) -> Config {
    let free = SocketAddr::from(([127, 0, 0, 1], 0));
    Config {
        clients: free,
        admin: free,
        node_link: free,
        lease_ms: 1_500,
        heartbeat_ms: 100,
        ..Config::new(data.to_owned())
    }
}

pub struct Running {
    pub clients: SocketAddr,
    pub admin: SocketAddr,
    pub node_link: SocketAddr,
    pub term: u64,
    stop: CancellationToken,
    served: JoinHandle<Result<(), BrokerError>>,
}

impl Running {
    pub async fn start(config: Config) -> Self {
        Self::serve(Broker::start(config).await.unwrap())
    }

    pub async fn start_on(config: Config, store: impl Store + 'static) -> Self {
        Self::serve(Broker::start_on(config, store).await.unwrap())
    }

    fn serve(broker: Broker) -> Self {
        let addresses = broker.addresses();
        let term = broker.term().get();
        let stop = CancellationToken::new();
        let served = tokio::spawn(broker.serve(stop.clone()));
        Self {
            clients: addresses.clients,
            admin: addresses.admin,
            node_link: addresses.node_link,
            term,
            stop,
            served,
        }
    }

    /// Reads of teams that were refused with a code, as `/metrics` has it; of all brokers of this process.
    pub async fn reads_refused(&self, code: &str) -> u64 {
        let page = http(self.admin, "GET", "/metrics", &[], "").await.body;
        let name = format!("usher_reads_refused_total{{code=\"{code}\"}} ");
        let figure = page.lines().find_map(|line| line.strip_prefix(&name));
        figure.and_then(|figure| figure.parse().ok()).unwrap_or(u64::MAX)
    }

    pub async fn stop(self) {
        self.stop.cancel();
        tokio::time::timeout(DEADLINE, self.served)
            .await
            .unwrap()
            .unwrap()
            .unwrap();
    }

    pub async fn admin(&self, method: &str, path: &str, body: &str) -> Reply {
        let kind: &[(&str, &str)] = if body.is_empty() {
            &[]
        } else {
            &[("content-type", "application/json")]
        };
        http(self.admin, method, path, kind, body).await
    }

    pub async fn connect(&self, path: &str, headers: &[(&str, &str)]) -> Reply {
        http(self.clients, "GET", &format!("/connect/{path}"), headers, "").await
    }

    pub async fn wait_ready(&self, nodes: usize) {
        until("nodes to be ready", async || {
            let list = self.admin("GET", "/v1/nodes", "").await.json();
            let ready = list["nodes"].as_array().unwrap().iter();
            ready.filter(|node| node["state"] == "ready").count() == nodes
        })
        .await;
    }
}

/// Asks again until it is so, for a while.
pub async fn until(what: &str, mut so: impl AsyncFnMut() -> bool) {
    let end = tokio::time::Instant::now() + DEADLINE;
    while !so().await {
        assert!(tokio::time::Instant::now() < end, "waited too long for {what}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

#[derive(Debug)]
pub struct Reply {
    pub status: u16,
    pub headers: BTreeMap<String, String>,
    pub body: String,
}

impl Reply {
    pub fn json(&self) -> Value {
        serde_json::from_str(&self.body).unwrap_or_else(|error| panic!("{error}: {self:?}"))
    }

    pub fn code(&self) -> String {
        self.json()["code"].as_str().unwrap().to_owned()
    }
}

pub async fn http(
    address: SocketAddr,
    method: &str,
    path: &str,
    headers: &[(&str, &str)],
    body: &str,
) -> Reply {
    let mut text = format!("{method} {path} HTTP/1.1\r\nconnection: close\r\n");
    if !headers.iter().any(|(name, _)| *name == "host") {
        text.push_str(&format!("host: {address}\r\n"));
    }
    for (name, value) in headers {
        text.push_str(&format!("{name}: {value}\r\n"));
    }
    let has_length = headers.iter().any(|(name, _)| *name == "content-length");
    if !has_length && (!body.is_empty() || method != "GET") {
        text.push_str(&format!("content-length: {}\r\n", body.len()));
    }
    text.push_str("\r\n");
    text.push_str(body);
    raw(address, text.as_bytes()).await
}

/// Sends bytes as they are and reads one answer.
pub async fn raw(address: SocketAddr, bytes: &[u8]) -> Reply {
    let mut socket = TcpStream::connect(address).await.unwrap();
    // A broker that has read enough to refuse may close before all is sent.
    let _ = socket.write_all(bytes).await;
    let mut answer = Vec::new();
    let _ = tokio::time::timeout(DEADLINE, socket.read_to_end(&mut answer))
        .await
        .unwrap();
    let answer = String::from_utf8_lossy(&answer);
    let (head, body) = answer
        .split_once("\r\n\r\n")
        .unwrap_or_else(|| panic!("no answer: {answer:?}"));
    let mut lines = head.lines();
    let status = lines.next().unwrap().split(' ').nth(1).unwrap().parse().unwrap();
    let headers = lines
        .filter_map(|line| line.split_once(": "))
        .map(|(name, value)| (name.to_ascii_lowercase(), value.to_owned()))
        .collect();
    Reply {
        status,
        headers,
        body: body.to_owned(),
    }
}

/// What a fake node holds and was told.
#[derive(Default)]
pub struct Memory {
    /// Team -> (epoch, grant, state).
    pub held: BTreeMap<String, (u64, String, String)>,
    pub told: Vec<ToNode>,
}

/// A node that speaks the link: hello, inventory, heartbeats, and an answer to each command.
pub struct FakeNode {
    pub name: String,
    pub memory: Arc<Mutex<Memory>>,
    /// Says who is there, so that a probe is answered while the node lives.
    probe: JoinHandle<()>,
    task: JoinHandle<()>,
}

impl FakeNode {
    pub async fn join(broker: SocketAddr, name: &str, incarnation: u128) -> Self {
        Self::join_with(broker, name, incarnation, Arc::default()).await
    }

    /// The same process after its link was lost: it still holds what it held.
    pub async fn join_with(
        broker: SocketAddr,
        name: &str,
        incarnation: u128,
        memory: Arc<Mutex<Memory>>,
    ) -> Self {
        let probe = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let hello = hello(name, incarnation, &probe.local_addr().unwrap().to_string());
        let probe = tokio::spawn(say_who(probe, name.to_owned(), incarnation));
        let task = tokio::spawn(speak(broker, hello, Arc::clone(&memory)));
        Self {
            name: name.to_owned(),
            memory,
            probe,
            task,
        }
    }

    /// Gone at once, like a process that was killed: its sockets close.
    pub async fn kill(self) {
        self.task.abort();
        self.probe.abort();
        let _ = (self.task.await, self.probe.await);
    }
}

/// Answers whoever comes with the name and the incarnation of a node.
async fn say_who(listener: tokio::net::TcpListener, name: String, incarnation: u128) {
    let body = json!({"hears": true, "node": name, "incarnation": format!("{incarnation:032x}")}).to_string();
    let head = format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n", body.len());
    while let Ok((mut socket, _)) = listener.accept().await {
        // A probe only looks whether the connection stays; what asks has sent its request at once.
        let asked = tokio::time::timeout(Duration::from_secs(1), socket.read(&mut [0; 1_024])).await;
        if matches!(asked, Ok(Ok(length)) if length > 0) {
            let _ = socket.write_all(format!("{head}{body}").as_bytes()).await;
        }
    }
}

pub fn hello(name: &str, incarnation: u128, probe: &str) -> Value {
    json!({
        "type": "hello", "protocol": 1, "node": name,
        "incarnation": format!("{incarnation:032x}"), "version": "1.0.0",
        "url": format!("ws://{name}.test:7410/teams/{{team}}"), "probe": probe,
        "weight": 100, "cores": 1000,
        "capacity": {"teams": 100_000, "connections": 100_000},
    })
}

pub type Socket = tokio_tungstenite::WebSocketStream<TcpStream>;

pub async fn dial(address: SocketAddr, path: &str, headers: &[(&str, &str)]) -> Socket {
    let mut request = format!("ws://{address}{path}").into_client_request().unwrap();
    for (name, value) in headers {
        let name: http::HeaderName = name.parse().unwrap();
        request.headers_mut().insert(name, value.parse().unwrap());
    }
    let socket = TcpStream::connect(address).await.unwrap();
    tokio_tungstenite::client_async(request, socket).await.unwrap().0
}

async fn speak(broker: SocketAddr, hello: Value, memory: Arc<Mutex<Memory>>) {
    let mut socket = dial(broker, "/v1/node-link", &[]).await;
    let send = |value: Value| Message::text(value.to_string());
    socket.send(send(hello)).await.unwrap();
    let mut seq = 0;
    let mut beat = tokio::time::interval(Duration::from_millis(100));
    let mut welcome = false;
    loop {
        tokio::select! {
            _ = beat.tick(), if welcome => {
                seq += 1;
                let teams = memory.lock().held.len();
                let heartbeat = json!({
                    "type": "heartbeat", "seq": seq,
                    "boot_ms": usher_shared::clock::boottime().as_millis(),
                    "wall_ms": usher_shared::clock::wall_ms(),
                    "cpu_now": 0, "cpu_average": 0, "memory_bytes": 1, "connections": 0,
                    "teams": teams, "fds": {"used": 10, "limit": 1000}, "health": "good",
                });
                if socket.send(send(heartbeat)).await.is_err() { return; }
            }
            message = socket.next() => {
                let Some(Ok(message)) = message else { return };
                let Message::Text(text) = message else { continue };
                let message: ToNode = serde_json::from_str(&text).unwrap();
                let mut replies = Vec::new();
                {
                    let mut memory = memory.lock();
                    match &message {
                        ToNode::Welcome(_) => {
                            welcome = true;
                            let teams: Vec<_> = memory.held.iter().map(|(team, (epoch, grant, state))| json!({
                                "team": team, "epoch": epoch, "grant": grant, "state": state, "connections": 0,
                            })).collect();
                            replies.push(json!({"type": "inventory", "teams": teams, "more": false}));
                        }
                        ToNode::Assign(assign) => {
                            let state = serde_json::to_value(assign.state).unwrap().as_str().unwrap().to_owned();
                            if state == "prepared" {
                                replies.push(json!({"type": "prepared", "team": assign.team, "epoch": assign.epoch}));
                            }
                            memory.held.insert(
                                assign.team.to_string(),
                                (assign.epoch.get(), assign.grant.clone(), state),
                            );
                        }
                        ToNode::Activate(activate) => {
                            if let Some(held) = memory.held.get_mut(activate.team.as_str()) {
                                held.2 = "owned".to_owned();
                            }
                        }
                        ToNode::Drain(drain) => for a_move in &drain.moves {
                            memory.held.remove(a_move.team.as_str());
                            for kind in ["yielded", "released"] {
                                replies.push(json!({"type": kind, "team": a_move.team, "epoch": a_move.epoch}));
                            }
                        },
                        ToNode::Revoke(revoke) => { memory.held.remove(revoke.team.as_str()); }
                        _ => {}
                    }
                    memory.told.push(message);
                }
                for reply in replies {
                    if socket.send(send(reply)).await.is_err() { return; }
                }
            }
        }
    }
}
