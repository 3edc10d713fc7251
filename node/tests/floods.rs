//! What one client may ask of a node: how much, how fast, how long.

#![allow(clippy::unwrap_used, clippy::expect_used)] // Also outside of test functions, a test may fail.

mod support;

use futures_util::{SinkExt, StreamExt};
use std::time::Duration;
use support::*;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio_tungstenite::tungstenite::Message;
use usher_node::Config;
use usher_shared::ticket;

/// A client's frame with a mask of zeros. `first` is FIN and opcode.
fn frame(first: u8, payload: &[u8]) -> Vec<u8> {
    let mut bytes = vec![first];
    let length = u16::try_from(payload.len()).unwrap();
    match u8::try_from(length) {
        Ok(short) if short < 126 => bytes.push(0x80 | short),
        _ => {
            bytes.push(0x80 | 126);
            bytes.extend(length.to_be_bytes());
        }
    }
    bytes.extend([0; 4]);
    bytes.extend(payload);
    bytes
}

async fn sends(client: &mut Client, bytes: &[u8]) {
    client.0.get_mut().write_all(bytes).await.unwrap();
}

async fn metric(rig: &Rig, line: &str) -> bool {
    let (_, page) = rig.http(rig.admin, "GET /metrics HTTP/1.1\r\n", b"").await;
    page.contains(line)
}

async fn rig(change: impl FnOnce(&mut Config)) -> Rig {
    let mut rig = Rig::start_with(change, |_| {}).await;
    rig.gives("T1", 5).await;
    rig
}

#[tokio::test]
async fn a_client_that_speaks_all_the_time_is_pinged_on_time() {
    let rig = rig(|config| config.ping = Duration::from_millis(200)).await;
    let mut chatty = rig.joins("T1", 5).await;
    let mut pings = 0;
    within(async {
        while pings < 3 {
            chatty.says("beat").await;
            let next = tokio::time::timeout(Duration::from_millis(20), chatty.0.next()).await;
            pings += u32::from(matches!(next, Ok(Some(Ok(Message::Ping(_))))));
        }
    })
    .await;
}

#[tokio::test]
async fn a_flood_is_cut_and_says_so_and_a_burst_is_not() {
    let mut rig = rig(|config| {
        config.frames_per_s = 10;
        config.controls_per_s = 2;
        config.bytes_per_s = 100_000;
    })
    .await;
    rig.gives("T2", 6).await;
    let mut mate = rig.joins("T1", 5).await;
    let mut burst = rig.joins("T1", 5).await;
    for _ in 0..90 {
        burst.says("x").await;
        assert_eq!(mate.hears().await, "x");
    }
    let pings = frame(0x89, b"").repeat(30);
    let endless = [frame(1, b""), frame(0, b"").repeat(200)].concat();
    let tiny = frame(0x81, b"").repeat(200);
    let large = frame(0x82, &[0; 60_000]).repeat(20);
    for (flood, what) in [
        (pings, "controls"),
        (endless, "frames"),
        (tiny, "frames"),
        (large, "bytes"),
    ] {
        let mut flooder = rig.joins("T2", 6).await;
        sends(&mut flooder, &flood).await;
        let (code, reason) = flooder.closed_by_shutdown().await;
        assert_eq!((code, reason.as_deref()), (4310, Some("too_fast")), "{what}");
        let counted = format!("usher_too_fast_total{{what=\"{what}\"}}");
        assert!(metric(&rig, &counted).await, "{what}");
    }
    burst.says("still here").await;
    assert_eq!(mate.hears().await, "still here");
}

#[tokio::test]
async fn what_breaks_the_protocol_is_answered_in_our_words() {
    let rig = rig(|_| {}).await;
    let long_length = [0x81, 0xfe, 0, 1, 0, 0, 0, 0, b'x'];
    let longer_length = [0x81, 0xff, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 0, b'x'];
    for bytes in [
        &long_length[..],
        &longer_length,
        &frame(0x88, &1005_u16.to_be_bytes()),
        &frame(0x88, &999_u16.to_be_bytes()),
        &frame(0x88, &5000_u16.to_be_bytes()),
        &frame(0x88, &[3]),
        &frame(0x80, b"x"),
    ] {
        let mut client = rig.joins("T1", 5).await;
        sends(&mut client, bytes).await;
        let (code, reason) = client.closed_by_shutdown().await;
        assert_eq!((code, reason.as_deref()), (1002, Some("protocol")), "{bytes:?}");
    }
}

#[tokio::test]
async fn a_message_that_does_not_end_is_closed_after_a_while() {
    let rig = rig(|config| config.message_time = Duration::from_millis(300)).await;
    for began in [
        frame(1, b"half"),
        frame(0x81, &[b'x'; 10_000])[..5_000].to_vec(),
        [frame(1, b""), frame(0x89, b"")].concat(),
    ] {
        let mut client = rig.joins("T1", 5).await;
        sends(&mut client, &began).await;
        let (code, reason) = client.closed_by_shutdown().await;
        assert_eq!((code, reason.as_deref()), (4308, Some("unfinished")));
    }
    assert!(metric(&rig, "usher_unfinished_closed_total{for=\"time\"}").await);
}

#[tokio::test]
async fn unfinished_messages_share_a_bound_and_the_oldest_go() {
    let rig = rig(|config| config.unfinished_bytes = 150_000).await;
    let mut mate = rig.joins("T1", 5).await;
    let begins = async || {
        let mut client = rig.joins("T1", 5).await;
        let begun = [frame(2, &[0; 60_000]), frame(0x89, b"")].concat();
        sends(&mut client, &begun).await;
        assert!(matches!(
            within(client.0.next()).await,
            Some(Ok(Message::Pong(_)))
        ));
        client
    };
    let (mut first, mut second, mut third) = (begins().await, begins().await, begins().await);
    let (code, reason) = first.closed_by_shutdown().await;
    assert_eq!((code, reason.as_deref()), (4308, Some("unfinished")));
    assert!(metric(&rig, "usher_unfinished_closed_total{for=\"room\"}").await);
    for client in [&mut second, &mut third] {
        sends(client, &frame(0x80, b".")).await;
        assert_eq!(mate.next().await.len(), 60_001);
    }
    // Both have given back what they held.
    let (mut fourth, mut fifth) = (begins().await, begins().await);
    for client in [&mut fourth, &mut fifth] {
        sends(client, &frame(0x80, b".")).await;
        assert_eq!(mate.next().await.len(), 60_001);
    }
}

#[tokio::test]
async fn whoever_says_which_connection_it_had_has_one_and_not_two() {
    let rig = rig(|_| {}).await;
    let ticket = |jti: &str, from: Option<&str>| {
        let mut claims = rig.claims("T1", 5);
        claims.jti = jti.to_owned();
        claims.from = from.map(|from| from.parse().unwrap());
        ticket::sign(&claims, "k1", &key())
    };
    let joins = async |ticket: &str, more: &str| {
        let path = format!("/teams/T1?ticket={ticket}{more}");
        Client(rig.dial(&path, &[]).await.expect("the node lets it in"))
    };
    let mut plain = joins(&ticket("00000000000000a1", None), "").await;
    let mut speaks = joins(&ticket("00000000000000a2", None), "&usher=1").await;
    let mut other = joins(&ticket("00000000000000a3", None), "").await;
    let mut plain_again = joins(&ticket("00000000000000b1", Some("00000000000000a1")), "").await;
    let (code, reason) = plain.closed().await;
    assert_eq!((code, reason.code.as_deref()), (4309, Some("replaced")));
    let _speaks_again = joins(&ticket("00000000000000b2", Some("00000000000000a2")), "&usher=1").await;
    speaks.told().await;
    // It may be moving, and is left the time to close the old one itself.
    other.says("x").await;
    assert_eq!(speaks.hears().await, "x");
    assert_eq!(plain_again.hears().await, "x");
    let (code, reason) = speaks.closed().await;
    assert_eq!((code, reason.code.as_deref()), (4309, Some("replaced")));
    // A name that nobody here has does nothing.
    let _stranger = joins(&ticket("00000000000000b3", Some("00000000000000ff")), "").await;
    other.says("y").await;
    assert_eq!(plain_again.hears().await, "y");
}

#[tokio::test]
async fn a_team_is_the_same_however_its_url_is_written() {
    let mut rig = rig(|_| {}).await;
    rig.gives("a~b:c", 6).await;
    for path in ["a~b:c", "a%7Eb:c", "a%7eb%3Ac", "%61~b%3ac"] {
        let path = format!("/teams/{path}?ticket={}", rig.ticket("a~b:c", 6));
        assert!(rig.dial(&path, &[]).await.is_ok(), "{path}");
    }
    for path in ["a%7", "a%zz", "a%2Fb", "a%00", "%ff", "%%37Eb", "%252e"] {
        let path = format!("/teams/{path}?ticket={}", rig.ticket("a~b:c", 6));
        assert_eq!(rig.turned_away(&path, &[]).await.0, 400, "{path}");
    }
}

#[tokio::test]
async fn the_health_is_told_to_whoever_only_asks() {
    let rig = rig(|_| {}).await;
    for listener in [rig.clients, rig.admin] {
        for (method, path, status) in [
            ("OPTIONS", "/healthz", 200),
            ("HEAD", "/healthz", 200),
            ("OPTIONS", "/readyz", 200),
            ("GET", "/health%7A", 200),
            ("DELETE", "/healthz", 405),
        ] {
            let answer = rig
                .http(listener, &format!("{method} {path} HTTP/1.1\r\n"), b"")
                .await;
            assert_eq!(answer.0, status, "{method} {path}");
        }
    }
}

#[tokio::test]
async fn a_426_and_a_101_name_what_they_are_about() {
    let rig = rig(|_| {}).await;
    let path = format!("/teams/T1?ticket={}", rig.ticket("T1", 5));
    let (status, answer) = rig
        .http(rig.clients, &format!("GET {path} HTTP/1.1\r\n"), b"")
        .await;
    assert_eq!(status, 426);
    let connection = answer.lines().find(|line| line.starts_with("connection:"));
    assert!(
        connection.is_some_and(|line| line.contains("upgrade")),
        "{answer}"
    );
    let mut stream = tokio::net::TcpStream::connect(rig.clients).await.unwrap();
    let ask = format!(
        "GET {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\nconnection: Upgrade\r\nupgrade: websocket\r\n\
         sec-websocket-version: 13\r\nsec-websocket-key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
    );
    // A frame right behind the request is heard, too.
    stream
        .write_all(&[ask.as_bytes(), &frame(0x89, b"early")].concat())
        .await
        .unwrap();
    let mut answer = Vec::new();
    within(async {
        while !answer.ends_with(b"\x8a\x05early") {
            answer.push(stream.read_u8().await.unwrap());
        }
    })
    .await;
    let answer = String::from_utf8_lossy(&answer);
    assert!(answer.contains("\r\nconnection: Upgrade\r\n"), "{answer}");
}

#[tokio::test]
async fn a_post_that_is_refused_can_be_sent_to_its_end() {
    let rig = rig(|_| {}).await;
    for (path, status) in [
        ("/teams/T1/messages", "403"),
        ("/teams/T1/nothing", "404"),
        ("/teams/T1", "405"),
        ("/teams/../messages", "400"),
    ] {
        let mut stream = tokio::net::TcpStream::connect(rig.clients).await.unwrap();
        let head = format!("POST {path} HTTP/1.1\r\nhost: x\r\ncontent-length: 400000\r\n\r\n");
        stream.write_all(head.as_bytes()).await.unwrap();
        for _ in 0..40 {
            stream.write_all(&[b'x'; 10_000]).await.unwrap();
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
        let mut answer = [0; 12];
        within(stream.read_exact(&mut answer)).await.unwrap();
        assert_eq!(
            String::from_utf8_lossy(&answer),
            format!("HTTP/1.1 {status}"),
            "{path}"
        );
    }
}

#[tokio::test]
async fn a_close_of_the_client_is_answered_with_its_own_code() {
    let rig = rig(|_| {}).await;
    let mut client = rig.joins("T1", 5).await;
    client.0.send(Message::Close(None)).await.unwrap();
    assert!(matches!(
        within(client.0.next()).await,
        Some(Ok(Message::Close(None)))
    ));
    let mut client = rig.joins("T1", 5).await;
    sends(&mut client, &frame(0x88, &3_001_u16.to_be_bytes())).await;
    match within(client.0.next()).await {
        Some(Ok(Message::Close(Some(close)))) => assert_eq!(u16::from(close.code), 3_001),
        other => panic!("{other:?}"),
    }
}
