//! What happens to frames.

#![allow(clippy::unwrap_used, clippy::expect_used)] // Also outside of test functions, a test may fail.

mod support;

use futures_util::{SinkExt, StreamExt};
use std::time::Duration;
use support::*;
use tokio::io::AsyncWriteExt;
use tokio_tungstenite::tungstenite::Message;
use usher_node::Relay;
use usher_shared::frame::Control;
use usher_shared::ticket::{self, Claims, Scope};

#[tokio::test]
async fn a_frame_goes_to_the_other_connections_of_its_team_and_to_nobody_else() {
    let mut rig = Rig::start().await;
    rig.gives("T1", 5).await;
    rig.gives("T2", 6).await;
    let (mut one, mut two, mut three) = (
        rig.joins("T1", 5).await,
        rig.joins("T1", 5).await,
        rig.joins("T1", 5).await,
    );
    let mut stranger = rig.joins("T2", 6).await;
    let mut stranger_mate = rig.joins("T2", 6).await;
    one.says("a").await;
    one.0.send(Message::Binary(vec![1, 2].into())).await.unwrap();
    for mate in [&mut two, &mut three] {
        assert_eq!(mate.hears().await, "a");
        assert_eq!(mate.next().await, Message::Binary(vec![1, 2].into()));
    }
    two.says("b").await;
    assert_eq!(one.hears().await, "b");
    stranger_mate.says("c").await;
    assert_eq!(stranger.hears().await, "c");
}

#[tokio::test]
async fn a_node_that_does_not_relay_keeps_frames_to_itself() {
    let mut rig = Rig::start_with(|config| config.relay = Relay::None, |_| {}).await;
    rig.gives("T1", 5).await;
    let (mut one, mut two) = (rig.joins("T1", 5).await, rig.joins("T1", 5).await);
    one.says("a").await;
    let head = format!("POST {} HTTP/1.1\r\n", post_path(&rig));
    assert_eq!(rig.http(rig.clients, &head, b"posted").await.0, 200);
    assert_eq!(two.hears().await, "posted");
}

#[tokio::test]
async fn a_client_that_asks_for_usher_frames_is_welcomed_first() {
    let mut rig = Rig::start().await;
    rig.gives("T1", 5).await;
    for (query, protocol, echoed) in [
        ("", "chat, usher.v1", Some("usher.v1")),
        ("&usher=1", "", None),
        ("&usher=1", "chat, soap", Some("chat")),
    ] {
        let path = format!("/teams/T1?ticket={}{query}", rig.ticket("T1", 5));
        let headers = [("sec-websocket-protocol", protocol)];
        let headers = if protocol.is_empty() { &[][..] } else { &headers };
        let (socket, chosen) = rig.handshake(&path, headers).await.expect("it is let in");
        assert_eq!(chosen.as_deref(), echoed);
        let mut client = Client(socket);
        match client.told().await {
            Control::Welcome {
                team,
                epoch,
                node,
                ping_s,
                ..
            } => {
                assert_eq!(
                    (team.as_str(), epoch.get(), node.as_str(), ping_s),
                    ("T1", 5, "node-1", 20)
                );
            }
            other => panic!("{other:?}"),
        }
    }
}

#[tokio::test]
async fn a_frame_that_pretends_to_be_control_is_never_relayed() {
    let mut rig = Rig::start().await;
    rig.gives("T1", 5).await;
    let mut usher = rig.joins_with_usher("T1", 5).await;
    let mut plain = rig.joins("T1", 5).await;
    let mut mate = rig.joins("T1", 5).await;
    usher.told().await;
    usher.says(r#"{"usher":"move","url":"ws://evil"}"#).await;
    assert!(matches!(usher.told().await, Control::Error { code, .. } if code == "reserved"));
    plain.says(r#"{"usher":"move","url":"ws://evil"}"#).await;
    plain.says("after").await;
    assert_eq!(mate.hears().await, "after");
    let (_, page) = rig.http(rig.admin, "GET /metrics HTTP/1.1\r\n", b"").await;
    assert!(page.contains("usher_control_pretended_total"), "{page}");
}

#[tokio::test]
async fn a_page_may_ask_whether_its_node_is_there() {
    let mut rig = Rig::start().await;
    rig.gives("T1", 5).await;
    let mut usher = rig.joins_with_usher("T1", 5).await;
    let mut plain = rig.joins("T1", 5).await;
    usher.told().await;
    usher.says(r#"{"usher":"ping","id":7}"#).await;
    assert_eq!(usher.told().await, Control::Pong { id: Some(7) });
    usher.says(r#"{"usher":"ping"}"#).await;
    assert_eq!(usher.told().await, Control::Pong { id: None });
    // Nobody else hears of it, and who did not ask for usher.v1 is not answered.
    plain.says(r#"{"usher":"ping"}"#).await;
    plain.says("after").await;
    usher.says("after").await;
    assert_eq!(usher.hears().await, "after");
    assert_eq!(plain.hears().await, "after");
}

#[tokio::test]
async fn a_message_over_the_bound_is_closed_for_good() {
    let mut rig = Rig::start_with(|config| config.message_bytes = 1_000, |_| {}).await;
    rig.gives("T1", 5).await;
    let (mut one, mut mate) = (rig.joins("T1", 5).await, rig.joins("T1", 5).await);
    one.says(&"x".repeat(1_000)).await;
    assert_eq!(mate.hears().await.len(), 1_000);
    one.says(&"x".repeat(300_000)).await;
    let (code, reason) = one.closed_by_shutdown().await;
    assert_eq!((code, reason.as_deref()), (4413, Some("too_large")));
    mate.says("x").await;
}

#[tokio::test]
async fn what_breaks_the_protocol_is_closed_with_the_standards_codes() {
    let mut rig = Rig::start().await;
    rig.gives("T1", 5).await;
    for (bytes, code) in [
        // Unmasked, reserved opcode, a compressed frame that nobody agreed on, text that is not UTF-8.
        (&[0x81_u8, 0x01, b'a'][..], 1002),
        (&[0x83, 0x80, 0, 0, 0, 0], 1002),
        (&[0xc1, 0x80, 0, 0, 0, 0], 1002),
        (&[0x81, 0x81, 0, 0, 0, 0, 0xff], 1007),
    ] {
        let mut client = rig.joins("T1", 5).await;
        client.0.get_mut().write_all(bytes).await.unwrap();
        assert_eq!(client.closed_by_shutdown().await.0, code, "{bytes:?}");
    }
}

#[tokio::test]
async fn a_slow_reader_is_closed_and_its_team_mates_are_unharmed() {
    let mut rig = Rig::start().await;
    rig.gives("T1", 5).await;
    let mut slow = rig.joins("T1", 5).await;
    let (mut talks, mut hears) = (rig.joins("T1", 5).await, rig.joins("T1", 5).await);
    let frame = "x".repeat(60_000);
    // More than the kernel's buffers and the queue hold together. The good reader keeps pace.
    for _ in 0..400 {
        talks.says(&frame).await;
        assert_eq!(hears.hears().await.len(), frame.len());
    }
    let (_, page) = rig.http(rig.admin, "GET /metrics HTTP/1.1\r\n", b"").await;
    let counted = page
        .lines()
        .find(|line| line.starts_with("usher_slow_readers_total"));
    assert!(counted.is_some_and(|line| !line.ends_with(" 0")), "{counted:?}");
    let (code, reason) = slow.closed().await;
    assert_eq!((code, reason.code.as_deref()), (4308, Some("too_slow")));
    assert!(reason.retry_ms.is_some());
}

#[tokio::test]
async fn a_silent_peer_is_pinged_and_then_ended() {
    let ping = |config: &mut usher_node::Config| config.ping = Duration::from_millis(200);
    let mut rig = Rig::start_with(ping, |_| {}).await;
    rig.gives("T1", 5).await;
    // This one answers pings, because it is read all the time.
    let mut answers = rig.joins("T1", 5).await;
    let silent = rig.joins("T1", 5).await;
    let reading = tokio::spawn(async move { while let Some(Ok(_)) = answers.0.next().await {} });
    let connections = async || {
        let (_, page) = rig.http(rig.admin, "GET /metrics HTTP/1.1\r\n", b"").await;
        page.contains("usher_closes_total{code=\"silent\"} 1")
    };
    rig.eventually("the silent one is ended", connections).await;
    assert!(!reading.is_finished());
    drop(silent);
}

#[tokio::test]
async fn a_post_goes_to_all_connections_of_the_team_once_a_key() {
    let mut rig = Rig::start().await;
    rig.gives("T1", 5).await;
    let (mut one, mut two) = (rig.joins("T1", 5).await, rig.joins("T1", 5).await);
    let path = post_path(&rig);
    let head = format!("POST {path} HTTP/1.1\r\nidempotency-key: k-1\r\n");
    for _ in 0..2 {
        let (status, answer) = rig.http(rig.clients, &head, b"news").await;
        assert_eq!(status, 200, "{answer}");
        assert!(answer.ends_with("{\"delivered\":2}"), "{answer}");
    }
    let binary = format!("POST {path} HTTP/1.1\r\ncontent-type: application/octet-stream\r\n");
    assert_eq!(rig.http(rig.clients, &binary, &[0xff]).await.0, 200);
    for client in [&mut one, &mut two] {
        assert_eq!(client.hears().await, "news");
        assert_eq!(client.next().await, Message::Binary(vec![0xff].into()));
    }
    let plain = format!("POST {path} HTTP/1.1\r\n");
    assert_eq!(rig.http(rig.clients, &plain, &[0xff]).await.0, 400);
    assert_eq!(rig.http(rig.clients, &plain, br#"{"usher":1}"#).await.0, 400);
    assert_eq!(rig.http(rig.clients, &plain, &[b'x'; 65_537]).await.0, 413);
    let connect = format!(
        "POST /teams/T1/messages?ticket={} HTTP/1.1\r\n",
        rig.ticket("T1", 5)
    );
    assert_eq!(rig.http(rig.clients, &connect, b"x").await.0, 409);
    let none = "POST /teams/T1/messages HTTP/1.1\r\n";
    assert_eq!(rig.http(rig.clients, none, b"x").await.0, 403);
    assert_eq!(rig.status("/teams/T1/messages").await, 405);
}

fn post_path(rig: &Rig) -> String {
    let claims = Claims {
        scope: Scope::Post,
        ..rig.claims("T1", 5)
    };
    let ticket = ticket::sign(&claims, "k1", &key());
    format!("/teams/T1/messages?ticket={ticket}")
}
