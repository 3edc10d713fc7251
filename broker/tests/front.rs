//! What a broker's listeners bear, and how they turn away.

#![allow(clippy::unwrap_used, clippy::expect_used)] // Also outside of test functions, a test may fail.

mod support;

use futures_util::StreamExt as _;
use std::net::SocketAddr;
use std::time::Duration;
use support::{DEADLINE, FakeNode, Running, config, dial, http, raw};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

/// Sends a body slowly, all of it, and then reads the status.
async fn uploads(address: SocketAddr, head: &str, bytes: usize) -> String {
    let mut stream = TcpStream::connect(address).await.unwrap();
    let head = format!("{head}host: {address}\r\ncontent-length: {bytes}\r\n\r\n");
    stream.write_all(head.as_bytes()).await.unwrap();
    let mut left = bytes;
    while left > 0 {
        let part = left.min(8_192);
        stream.write_all(&vec![b'x'; part]).await.unwrap();
        left -= part;
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    let mut status = [0; 12];
    let read = tokio::time::timeout(DEADLINE, stream.read_exact(&mut status)).await;
    read.expect("there is no answer").unwrap();
    String::from_utf8_lossy(&status).into_owned()
}

#[tokio::test(flavor = "multi_thread")]
async fn who_is_sent_on_or_turned_away_can_send_to_the_end() {
    let data = tempfile::tempdir().unwrap();
    let broker = Running::start(config(data.path())).await;
    let _node = FakeNode::join(broker.node_link, "node-1", 1).await;
    broker.wait_ready(1).await;
    for (address, head, status) in [
        (broker.clients, "POST /connect/T1 HTTP/1.1\r\n", "307"),
        (broker.clients, "POST /connect/.. HTTP/1.1\r\n", "400"),
        (broker.clients, "POST /nothing HTTP/1.1\r\n", "404"),
        (broker.clients, "PUT /connect/T1 HTTP/1.1\r\n", "405"),
        (broker.admin, "PUT /v1/teams/T1 HTTP/1.1\r\n", "413"),
        (
            broker.admin,
            "PUT /v1/teams/T1 HTTP/1.1\r\norigin: https://evil.tld\r\n",
            "403",
        ),
        (broker.admin, "POST /v1/teams HTTP/1.1\r\n", "405"),
        (broker.admin, "POST /v2 HTTP/1.1\r\n", "404"),
        (broker.node_link, "POST /v1/node-exited HTTP/1.1\r\n", "413"),
        (broker.node_link, "POST /v1/nothing HTTP/1.1\r\n", "404"),
    ] {
        let answer = uploads(address, head, 262_144).await;
        assert_eq!(answer, format!("HTTP/1.1 {status}"), "{head}");
    }
    broker.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn whoever_asks_before_sending_is_not_told_to_go_on_in_vain() {
    let data = tempfile::tempdir().unwrap();
    let broker = Running::start(config(data.path())).await;
    for (address, head) in [
        (broker.clients, "POST /connect/.. HTTP/1.1\r\n"),
        (broker.admin, "PUT /v1/teams/T1 HTTP/1.1\r\n"),
    ] {
        let rest =
            "host: 127.0.0.1\r\nexpect: 100-continue\r\ncontent-length: 262144\r\nconnection: close\r\n\r\n";
        let answer = raw(address, format!("{head}{rest}").as_bytes()).await;
        assert!(answer.status >= 400, "{answer:?}");
    }
    broker.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn every_listener_tells_its_health_to_whoever_only_asks() {
    let data = tempfile::tempdir().unwrap();
    let broker = Running::start(config(data.path())).await;
    for address in [broker.clients, broker.admin, broker.node_link] {
        for path in ["/healthz", "/readyz", "/%68ealthz"] {
            for method in ["GET", "HEAD", "OPTIONS"] {
                let answer = http(address, method, path, &[], "").await;
                assert_eq!(answer.status, 200, "{method} {path}");
            }
            let refused = http(address, "POST", path, &[], "").await;
            assert_eq!((refused.status, refused.code().as_str()), (405, "wrong_method"));
            assert_eq!(refused.headers["allow"], "GET, HEAD, OPTIONS");
        }
    }
    broker.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_node_link_takes_websockets_and_no_other_upgrade() {
    let data = tempfile::tempdir().unwrap();
    let broker = Running::start(config(data.path())).await;
    let version = ("sec-websocket-version", "13");
    let key = ("sec-websocket-key", "dGhlIHNhbXBsZSBub25jZQ==");
    for headers in [
        &[][..],
        &[("connection", "Upgrade"), ("upgrade", "h2c"), version, key],
        &[
            ("connection", "keep-alive"),
            ("upgrade", "websocket"),
            version,
            key,
        ],
        &[("connection", "Upgrade"), version, key],
        &[("connection", "Upgrade"), ("upgrade", "websocket"), key],
    ] {
        let mut text = "GET /v1/node-link HTTP/1.1\r\nhost: x\r\n".to_owned();
        for (name, value) in headers {
            text.push_str(&format!("{name}: {value}\r\n"));
        }
        let mut stream = TcpStream::connect(broker.node_link).await.unwrap();
        stream.write_all(format!("{text}\r\n").as_bytes()).await.unwrap();
        let mut answer = vec![0; 4_096];
        let read = tokio::time::timeout(DEADLINE, stream.read(&mut answer)).await;
        answer.truncate(read.unwrap().unwrap());
        let answer = String::from_utf8_lossy(&answer);
        assert!(answer.starts_with("HTTP/1.1 426 "), "{headers:?} {answer}");
        assert!(answer.contains("\r\nupgrade: websocket\r\n"), "{answer}");
        assert!(answer.contains("\r\nconnection: upgrade"), "{answer}");
    }
    broker.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_link_whose_frames_break_the_standard_is_closed() {
    let data = tempfile::tempdir().unwrap();
    let broker = Running::start(config(data.path())).await;
    let mut socket = dial(broker.node_link, "/v1/node-link", &[]).await;
    // Two bytes of length where one would do.
    let frame = [0x81, 0xfe, 0, 2, 0, 0, 0, 0, b'{', b'}'];
    socket.get_mut().write_all(&frame).await.unwrap();
    let next = tokio::time::timeout(DEADLINE, socket.next()).await.unwrap();
    assert!(
        !matches!(next, Some(Ok(message)) if message.is_text()),
        "it was read"
    );
    broker.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_team_is_the_same_however_its_url_is_written() {
    let data = tempfile::tempdir().unwrap();
    let broker = Running::start(config(data.path())).await;
    let _node = FakeNode::join(broker.node_link, "node-1", 1).await;
    broker.wait_ready(1).await;
    let json = [("accept", "application/json")];
    for path in ["/connect/a~b", "/connect/a%7Eb", "/c%6fnnect/%61%7eb"] {
        let answer = http(broker.clients, "GET", path, &json, "").await;
        assert_eq!(answer.json()["team"], "a~b", "{path}");
    }
    for path in ["/v1/teams/a%7Eb", "/v1/t%65ams/a~b"] {
        assert_eq!(broker.admin("GET", path, "").await.json()["team"], "a~b");
    }
    for path in ["/connect/a%7", "/connect/a%zz", "/connect/%%37E"] {
        assert_eq!(
            http(broker.clients, "GET", path, &json, "").await.status,
            400,
            "{path}"
        );
    }
    broker.stop().await;
}
