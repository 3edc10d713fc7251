//! From a team's first request to its node, over every way in, and over a restart.

mod support;

use futures_util::StreamExt as _;
use std::collections::BTreeSet;
use support::{FakeNode, Running, config, dial, http, until};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio_tungstenite::tungstenite::Message;
use usher_shared::link::ToNode;

const JSON: &[(&str, &str)] = &[("accept", "application/json")];
const UPGRADE: &[(&str, &str)] = &[
    ("upgrade", "websocket"),
    ("connection", "Upgrade"),
    ("sec-websocket-version", "13"),
    ("sec-websocket-key", "dGhlIHNhbXBsZSBub25jZQ=="),
];

#[tokio::test(flavor = "multi_thread")]
async fn a_put_assigns_a_team_once_and_says_so_again() {
    let data = tempfile::tempdir().unwrap();
    let broker = Running::start(config(data.path())).await;
    let node = FakeNode::join(broker.node_link, "node-1", 1).await;
    broker.wait_ready(1).await;
    let first = broker.admin("PUT", "/v1/teams/T1", "").await;
    assert_eq!(first.status, 201, "{first:?}");
    let again = broker.admin("PUT", "/v1/teams/T1", "{}").await;
    assert_eq!(again.status, 200);
    assert_eq!(first.json(), again.json());
    assert_eq!(first.json()["node"], "node-1");
    let url = first.json()["url"].as_str().unwrap().to_owned();
    assert_eq!(url, "ws://node-1.test:7410/teams/T1");
    until("the node to be told", async || {
        node.memory.lock().held.contains_key("T1")
    })
    .await;
    let why = broker.admin("GET", "/v1/teams/T1/why", "").await.json();
    assert_eq!(why["decisions"][0]["cause"], "put");
    let list = broker.admin("GET", "/v1/teams?node=node-1", "").await.json();
    assert_eq!(list["total"], 1);
    assert_eq!(broker.admin("DELETE", "/v1/teams/T1", "").await.status, 204);
    assert_eq!(
        broker.admin("GET", "/v1/teams/T1", "").await.code(),
        "unknown_team"
    );
    broker.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_hundred_puts_at_once_for_a_new_team_make_one_assignment() {
    let data = tempfile::tempdir().unwrap();
    let broker = Running::start(config(data.path())).await;
    let _one = FakeNode::join(broker.node_link, "node-1", 1).await;
    let _two = FakeNode::join(broker.node_link, "node-2", 2).await;
    broker.wait_ready(2).await;
    let admin = broker.admin;
    let asked: Vec<_> = (0..100)
        .map(|_| tokio::spawn(async move { http(admin, "PUT", "/v1/teams/new", &[], "").await }))
        .collect();
    let mut seen = BTreeSet::new();
    let mut created = 0;
    for asked in asked {
        let reply = asked.await.unwrap();
        created += usize::from(reply.status == 201);
        let view = reply.json();
        seen.insert((view["node"].to_string(), view["epoch"].to_string()));
    }
    assert_eq!((seen.len(), created), (1, 1));
    broker.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_store_that_was_restored_goes_on_far_above_what_it_may_have_granted() {
    let data = tempfile::tempdir().unwrap();
    let broker = Running::start(config(data.path())).await;
    let node = FakeNode::join(broker.node_link, "node-1", 1).await;
    broker.wait_ready(1).await;
    let first = broker.admin("PUT", "/v1/teams/before", "").await.json()["epoch"].as_u64();
    let term = broker.term;
    broker.stop().await;
    node.kill().await;

    let mut config = config(data.path());
    config.store_is = usher_broker::StoreIs::Restored;
    let broker = Running::start(config).await;
    assert_eq!(broker.term, term + 1_001);
    let _node = FakeNode::join(broker.node_link, "node-1", 2).await;
    broker.wait_ready(1).await;
    let later = broker.admin("PUT", "/v1/teams/after", "").await.json()["epoch"].as_u64();
    assert!(later > first.map(|first| first + 1_000_000), "{later:?}");
    broker.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_first_connect_makes_a_team_and_every_way_leads_to_its_node() {
    let data = tempfile::tempdir().unwrap();
    let broker = Running::start(config(data.path())).await;
    let _node = FakeNode::join(broker.node_link, "node-1", 1).await;
    broker.wait_ready(1).await;
    let json = broker.connect("T1", JSON).await;
    assert_eq!(json.status, 200, "{json:?}");
    let url = json.json()["url"].as_str().unwrap().to_owned();
    assert!(url.starts_with("ws://node-1.test:7410/teams/T1?ticket="), "{url}");
    let redirect = broker.connect("T1?usher=1", UPGRADE).await;
    assert_eq!(redirect.status, 302);
    assert_eq!(redirect.headers["cache-control"], "no-store");
    assert!(redirect.headers["location"].ends_with("&usher=1"));
    let post = http(broker.clients, "POST", "/connect/T1", &[], "").await;
    assert_eq!(post.status, 307);
    let team = broker.admin("GET", "/v1/teams/T1", "").await.json();
    assert_eq!(team["kind"], "auto");
    let page = http(broker.admin, "GET", "/metrics", &[], "").await.body;
    for line in [
        "usher_nodes{state=\"ready\"} 1",
        "usher_node_teams{node=\"node-1\"} 1",
        "usher_teams 1",
        "usher_store_failing 0",
    ] {
        assert!(
            page.lines().any(|found| found == line),
            "{line} is not in\n{page}"
        );
    }
    broker.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_browser_is_told_in_a_frame_and_one_close() {
    let data = tempfile::tempdir().unwrap();
    let broker = Running::start(config(data.path())).await;
    let _node = FakeNode::join(broker.node_link, "node-1", 1).await;
    broker.wait_ready(1).await;
    let browser = [
        ("user-agent", "Mozilla/5.0"),
        ("origin", "http://localhost:8000"),
        ("sec-websocket-protocol", "chat, usher.v1"),
    ];
    let mut socket = dial(broker.clients, "/connect/T1", &browser).await;
    let Message::Text(frame) = socket.next().await.unwrap().unwrap() else {
        panic!("no text frame");
    };
    assert!(frame.starts_with("{\"usher\":\"redirect\",\"url\":\"ws://node-1.test:7410/teams/T1?ticket="));
    let Message::Close(Some(close)) = socket.next().await.unwrap().unwrap() else {
        panic!("no close");
    };
    assert_eq!(u16::from(close.code), 4302);
    // The echo goes out on the next read, and the broker ends the connection without a word more.
    assert!(socket.next().await.is_none_or(|read| read.is_err()));
    broker.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn with_no_node_ready_a_client_is_told_when_to_come_back() {
    let data = tempfile::tempdir().unwrap();
    let broker = Running::start(config(data.path())).await;
    let reply = broker.connect("T1", UPGRADE).await;
    assert_eq!((reply.status, reply.code().as_str()), (503, "no_node"));
    assert!(reply.headers["retry-after"].parse::<u64>().unwrap() >= 1);
    assert_eq!(reply.headers["content-type"], "application/problem+json");
    let browser = [("user-agent", "Mozilla/5.0")];
    let mut socket = dial(broker.clients, "/connect/T1", &browser).await;
    let Message::Close(Some(close)) = socket.next().await.unwrap().unwrap() else {
        panic!("no close");
    };
    assert_eq!(u16::from(close.code), 4313);
    assert!(close.reason.contains("retry_ms"), "{}", close.reason);
    broker.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_restart_keeps_every_owner_and_redirects_at_once() {
    let data = tempfile::tempdir().unwrap();
    let broker = Running::start(config(data.path())).await;
    let node = FakeNode::join(broker.node_link, "node-1", 1).await;
    broker.wait_ready(1).await;
    for team in ["a", "b", "c"] {
        assert_eq!(
            broker.admin("PUT", &format!("/v1/teams/{team}"), "").await.status,
            201
        );
    }
    let before = broker.admin("GET", "/v1/teams", "").await.json();
    until("the node to hold them", async || {
        node.memory.lock().held.len() == 3
    })
    .await;
    let memory = std::sync::Arc::clone(&node.memory);
    let term = broker.term;
    broker.stop().await;
    node.kill().await;

    let broker = Running::start(config(data.path())).await;
    assert_eq!(broker.term, term + 1);
    // In its grace it answers from what the store knows, before any node is back.
    let reply = broker.connect("a", JSON).await;
    assert_eq!(
        (reply.status, reply.json()["node"].as_str()),
        (200, Some("node-1"))
    );
    let node = FakeNode::join_with(broker.node_link, "node-1", 1, memory).await;
    broker.wait_ready(1).await;
    assert_eq!(broker.admin("GET", "/v1/teams", "").await.json(), before);
    until("an acknowledgement", async || {
        let memory = node.memory.lock();
        memory
            .told
            .iter()
            .any(|told| matches!(told, ToNode::HeartbeatAck { .. }))
    })
    .await;
    assert_eq!(node.memory.lock().held.len(), 3);
    broker.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn teams_of_a_node_that_exited_get_a_new_owner() {
    let data = tempfile::tempdir().unwrap();
    let broker = Running::start(config(data.path())).await;
    let one = FakeNode::join(broker.node_link, "node-1", 1).await;
    broker.wait_ready(1).await;
    for team in 0..20 {
        broker.admin("PUT", &format!("/v1/teams/t{team}"), "").await;
    }
    let _two = FakeNode::join(broker.node_link, "node-2", 2).await;
    broker.wait_ready(2).await;
    one.kill().await;
    let exited = format!("{{\"node\":\"node-1\",\"incarnation\":\"{:032x}\"}}", 1);
    let reply = http(
        broker.node_link,
        "POST",
        "/v1/node-exited",
        &[("content-type", "application/json")],
        &exited,
    )
    .await;
    assert_eq!(reply.status, 204, "{reply:?}");
    until("the failover", async || {
        let list = broker.admin("GET", "/v1/teams?node=node-2", "").await.json();
        list["teams"].as_array().unwrap().len() == 20
    })
    .await;
    let reply = broker.connect("t0", JSON).await;
    assert_eq!(reply.json()["node"], "node-2");
    broker.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_drain_moves_every_team_and_says_how_far_it_is() {
    let data = tempfile::tempdir().unwrap();
    let broker = Running::start(config(data.path())).await;
    let _one = FakeNode::join(broker.node_link, "node-1", 1).await;
    broker.wait_ready(1).await;
    for team in 0..20 {
        broker.admin("PUT", &format!("/v1/teams/t{team}"), "").await;
    }
    let two = FakeNode::join(broker.node_link, "node-2", 2).await;
    broker.wait_ready(2).await;
    let began = broker.admin("POST", "/v1/nodes/node-1/drain", "").await;
    assert_eq!(began.status, 202, "{began:?}");
    let path = began.headers["location"].clone();
    let again = broker.admin("POST", "/v1/nodes/node-1/drain", "").await;
    assert!([200, 202].contains(&again.status), "{again:?}");
    assert_eq!(again.json()["operation"], began.json()["operation"]);
    until("the drain", async || {
        broker.admin("GET", &path, "").await.json()["state"] == "done"
    })
    .await;
    until("node-2 to hold all", async || two.memory.lock().held.len() == 20).await;
    let view = broker.admin("POST", "/v1/nodes/node-1/undrain", "").await;
    assert_eq!(
        (view.status, view.json()["node"].as_str()),
        (200, Some("node-1")),
        "{view:?}"
    );
    broker.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_can_check_the_tickets_that_clients_bring_with_what_its_welcome_said() {
    let data = tempfile::tempdir().unwrap();
    let broker = Running::start(config(data.path())).await;
    let node = FakeNode::join(broker.node_link, "node-1", 7).await;
    broker.wait_ready(1).await;
    let url = broker.connect("T1", JSON).await.json()["url"]
        .as_str()
        .unwrap()
        .to_owned();
    let text = url.split("ticket=").nth(1).unwrap();
    let memory = node.memory.lock();
    let Some(ToNode::Welcome(welcome)) = memory.told.first() else {
        panic!("no welcome");
    };
    let now_s = usher_shared::clock::wall_ms() / 1_000;
    let key = |kid: &str| {
        let mut keys = welcome.ticket_keys.iter();
        keys.find(|key| key.kid == kid).map(|key| &key.key)
    };
    let (claims, age) = usher_shared::ticket::verify(text, now_s, key).unwrap();
    assert_eq!((claims.aud.as_str(), claims.inc.bits()), ("node-1", 7));
    assert_eq!(age, usher_shared::ticket::Age::Fresh);
    assert_eq!(welcome.public_url, format!("http://{}", broker.clients));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_closed_link_and_a_refused_probe_move_teams_long_before_the_lease_ends() {
    let data = tempfile::tempdir().unwrap();
    let broker = Running::start(usher_broker::Config {
        lease_ms: 600_000,
        ..config(data.path())
    })
    .await;
    let one = FakeNode::join(broker.node_link, "node-1", 1).await;
    broker.wait_ready(1).await;
    assert_eq!(broker.admin("PUT", "/v1/teams/T1", "").await.status, 201);
    let _two = FakeNode::join(broker.node_link, "node-2", 2).await;
    broker.wait_ready(2).await;
    one.kill().await;
    until("the new owner", async || {
        broker.admin("GET", "/v1/teams/T1", "").await.json()["node"] == "node-2"
    })
    .await;
    broker.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn after_the_clients_close_no_second_close_frame_follows() {
    let data = tempfile::tempdir().unwrap();
    let broker = Running::start(config(data.path())).await;
    let _node = FakeNode::join(broker.node_link, "node-1", 1).await;
    broker.wait_ready(1).await;
    let mut socket = TcpStream::connect(broker.clients).await.unwrap();
    let request = "GET /connect/T1 HTTP/1.1\r\nhost: x.localhost\r\nuser-agent: Mozilla/5.0\r\n\
        upgrade: websocket\r\nconnection: Upgrade\r\nsec-websocket-version: 13\r\n\
        sec-websocket-key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n";
    socket.write_all(request.as_bytes()).await.unwrap();
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(socket.read_u8().await.unwrap());
    }
    let head = String::from_utf8(head).unwrap().to_ascii_lowercase();
    assert!(
        head.starts_with("http/1.1 101") && head.contains("s3pplmbitxaq9kygzzhzrbk+xoo="),
        "{head}"
    );
    // RFC 6455 section 5.2: a text frame with a 16-bit length, then a close with a 7-bit one.
    assert_eq!(socket.read_u8().await.unwrap(), 0x81);
    assert_eq!(socket.read_u8().await.unwrap(), 126);
    let length = socket.read_u16().await.unwrap();
    let mut text = vec![0; usize::from(length)];
    socket.read_exact(&mut text).await.unwrap();
    assert_eq!(socket.read_u8().await.unwrap(), 0x88);
    let length = socket.read_u8().await.unwrap();
    let code = socket.read_u16().await.unwrap();
    assert_eq!(code, 4302);
    let mut reason = vec![0; usize::from(length) - 2];
    socket.read_exact(&mut reason).await.unwrap();
    // The echo, masked with zeros.
    let [high, low] = code.to_be_bytes();
    socket
        .write_all(&[0x88, 0x82, 0, 0, 0, 0, high, low])
        .await
        .unwrap();
    let mut rest = Vec::new();
    let _ = tokio::time::timeout(support::DEADLINE, socket.read_to_end(&mut rest))
        .await
        .unwrap();
    assert_eq!(rest, b"");
    broker.stop().await;
}
