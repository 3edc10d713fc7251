//! Who is believed to be a node, its parent, or the owner of an address: nodes played on the link.

#![allow(clippy::unwrap_used)] // Also outside of test functions, a test may fail.

mod support;

use futures_util::{SinkExt as _, StreamExt as _};
use serde_json::{Value, json};
use std::net::SocketAddr;
use std::time::Duration;
use support::{FakeNode, Running, Socket, config, dial, hello, http, until};
use tokio_tungstenite::tungstenite::Message;

const NONCE: &str = "feedfacefeedfacefeedfacefeedface";

/// Says hello; the link, and what is answered first.
async fn says(broker: SocketAddr, hello: &Value) -> (Socket, Value) {
    let mut socket = dial(broker, "/v1/node-link", &[]).await;
    socket.send(Message::text(hello.to_string())).await.unwrap();
    let answer = hears(&mut socket).await.unwrap();
    (socket, answer)
}

/// The next message; none when the link is closed.
async fn hears(socket: &mut Socket) -> Option<Value> {
    loop {
        match socket.next().await {
            Some(Ok(Message::Text(text))) => return Some(serde_json::from_str(&text).unwrap()),
            Some(Ok(Message::Close(_)) | Err(_)) | None => return None,
            _ => {}
        }
    }
}

/// Shows an empty inventory, and beats for as long as it is let.
async fn lives(mut socket: Socket) {
    let inventory = json!({"type": "inventory", "teams": [], "more": false});
    socket.send(Message::text(inventory.to_string())).await.unwrap();
    for seq in 1_u64.. {
        let beat = json!({
            "type": "heartbeat", "seq": seq, "boot_ms": usher_shared::clock::boottime().as_millis(),
            "wall_ms": usher_shared::clock::wall_ms(), "cpu_now": 0, "cpu_average": 0, "memory_bytes": 1,
            "connections": 0, "teams": 0, "fds": {"used": 1, "limit": 9_999}, "health": "good",
        });
        if socket.send(Message::text(beat.to_string())).await.is_err() {
            return;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

async fn exited(broker: &Running, body: &Value) -> (u16, String) {
    let kind = [("content-type", "application/json")];
    let reply = http(
        broker.node_link,
        "POST",
        "/v1/node-exited",
        &kind,
        &body.to_string(),
    )
    .await;
    let code = if reply.status == 204 {
        String::new()
    } else {
        reply.code()
    };
    (reply.status, code)
}

#[tokio::test(flavor = "multi_thread")]
async fn what_every_ticket_shows_neither_takes_a_link_over_nor_ends_a_node() {
    let data = tempfile::tempdir().unwrap();
    let broker = Running::start(config(data.path())).await;
    let mut known = hello("node-1", 1, "127.0.0.1:9");
    known["nonce"] = json!(NONCE);
    let (link, answer) = says(broker.node_link, &known).await;
    assert_eq!(answer["type"], "welcome");
    let life = tokio::spawn(lives(link));
    broker.wait_ready(1).await;
    let incarnation = format!("{:032x}", 1);
    for nonce in [Value::Null, json!("00".repeat(16))] {
        let mut claim = known.clone();
        claim["nonce"] = nonce.clone();
        let (_, answer) = says(broker.node_link, &claim).await;
        assert_eq!(
            (&answer["type"], &answer["code"]),
            (&json!("refused"), &json!("unproven"))
        );
        assert!(!answer.to_string().contains("key"), "{answer}");
        let mut word = json!({"node": "node-1", "incarnation": incarnation});
        if !nonce.is_null() {
            word["nonce"] = nonce;
        }
        assert_eq!(exited(&broker, &word).await, (403, "unproven".to_owned()));
    }
    // Its own parent's word waits for the link, which says that it lives.
    let word = json!({"node": "node-1", "incarnation": incarnation, "nonce": NONCE});
    assert_eq!(exited(&broker, &word).await, (204, String::new()));
    let state = broker.admin("GET", "/v1/nodes/node-1", "").await;
    assert_eq!(state.json()["state"], "ready");
    for path in ["/v1/nodes", "/v1/nodes/node-1", "/metrics"] {
        let shown = broker.admin("GET", path, "").await.body;
        assert!(!shown.contains(NONCE), "{path}");
    }
    let metrics = broker.admin("GET", "/metrics", "").await.body;
    assert!(
        metrics.contains("usher_nodes_refused_total{code=\"unproven\"} 2"),
        "{metrics}"
    );
    // The parent's own, too, if its link has contradicted it for two heartbeats by now.
    let disbelieved = ["2", "3"].map(|count| format!("usher_node_exits_disbelieved_total {count}\n"));
    assert!(disbelieved.iter().any(|line| metrics.contains(line)), "{metrics}");
    life.abort();
    until("the word is believed once the link is closed", async || {
        broker.admin("GET", "/v1/nodes/node-1", "").await.status == 404
    })
    .await;
    broker.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_address_is_a_nodes_once_that_very_node_has_answered_there() {
    let data = tempfile::tempdir().unwrap();
    let broker = Running::start(config(data.path())).await;
    let state = async |name: &str| {
        let view = broker.admin("GET", &format!("/v1/nodes/{name}"), "").await.json();
        view["probe_state"].as_str().unwrap_or_default().to_owned()
    };
    let first = FakeNode::join(broker.node_link, "node-1", 1).await;
    until("it is asked", async || state("node-1").await == "proven").await;
    // Another one names the address of the first, and a third one where nobody is.
    let there = broker.admin("GET", "/v1/nodes/node-1", "").await.json()["probe"]
        .as_str()
        .unwrap()
        .to_owned();
    let mut links = Vec::new();
    for (name, incarnation, probe) in [("node-2", 2, there.as_str()), ("node-3", 3, "127.0.0.1:9")] {
        let (link, _) = says(broker.node_link, &hello(name, incarnation, probe)).await;
        links.push(tokio::spawn(lives(link)));
    }
    until("both are asked", async || {
        state("node-2").await == "foreign" && state("node-3").await == "silent"
    })
    .await;
    links.iter().for_each(tokio::task::JoinHandle::abort);
    first.kill().await;
    broker.stop().await;
}
