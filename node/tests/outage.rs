//! What a node does while it does not hear its broker.

#![allow(clippy::unwrap_used, clippy::expect_used)] // Also outside of test functions, a test may fail.

mod support;

use std::net::SocketAddr;
use std::time::Duration;
use support::*;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;
use usher_node::OnLapse;
use usher_node_core::lapse::CUT_OFF_AFTER_MS;
use usher_shared::frame::Control;
use usher_shared::id::ClusterId;
use usher_shared::link::{Peer, ToBroker, Welcome};

/// A peer that gives everybody who asks the same answer.
async fn peer(answer: &'static str) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        loop {
            let (mut stream, _) = listener.accept().await.unwrap();
            let mut asked = [0; 1_024];
            let length = stream.read(&mut asked).await.unwrap();
            let asked = String::from_utf8_lossy(&asked[..length]).into_owned();
            let cluster = ClusterId::from_bits(1);
            assert!(
                asked.starts_with(&format!("GET /v1/hears-broker?cluster={cluster} ")),
                "{asked}"
            );
            let head = format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n", answer.len());
            let _ = stream.write_all(format!("{head}{answer}").as_bytes()).await;
        }
    });
    address
}

fn quick(welcome: &mut Welcome) {
    welcome.lease_ms = 1_000;
}

fn with_peers(peers: Vec<SocketAddr>) -> impl Fn(&mut Welcome) + Send + 'static {
    move |welcome| {
        quick(welcome);
        welcome.peers = peers
            .iter()
            .map(|address| Peer {
                node: "node-2".parse().unwrap(),
                probe: address.to_string(),
            })
            .collect();
    }
}

#[tokio::test]
async fn a_node_that_is_cut_off_alone_closes_its_connections_and_one_among_many_keeps_them() {
    let (hears, deaf) = (peer(r#"{"hears":true}"#).await, peer(r#"{"hears":false}"#).await);
    let mut alone = Rig::start_with(|_| {}, with_peers(vec![deaf, hears])).await;
    let mut among_many = Rig::start_with(|_| {}, with_peers(vec![deaf, deaf])).await;
    for rig in [&mut alone, &mut among_many] {
        rig.gives("T1", 5).await;
    }
    let mut closed = alone.joins("T1", 5).await;
    let (mut kept, mut mate) = (among_many.joins("T1", 5).await, among_many.joins("T1", 5).await);
    alone.broker.die();
    among_many.broker.die();
    let patience = Duration::from_millis(CUT_OFF_AFTER_MS + 8_000);
    let (code, reason) = tokio::time::timeout(patience, closed.closed()).await.unwrap();
    assert_eq!((code, reason.code.as_deref()), (4312, Some("cut_off")));
    assert!(reason.retry_ms.is_some());
    // Who comes with an expired ticket is better off at the broker now.
    let fresh = alone.claims("T1", 5);
    let expired = usher_shared::ticket::Claims {
        iat: fresh.iat - 3_600,
        exp: fresh.iat - 3_570,
        ..fresh
    };
    let path = format!(
        "/teams/T1?ticket={}",
        usher_shared::ticket::sign(&expired, "k1", &key())
    );
    assert_eq!(alone.turned_away(&path, &[]).await.0, 302);
    kept.says("still here").await;
    assert_eq!(mate.hears().await, "still here");
    among_many.dial(&path, &[]).await.unwrap();
}

#[tokio::test]
async fn a_fencing_node_closes_everything_when_its_lease_is_over_and_serves_again_on_a_new_one() {
    let fences = |config: &mut usher_node::Config| config.on_lapse = OnLapse::Fence;
    // Long enough that a busy machine does not lapse while all is well.
    let lease = |welcome: &mut Welcome| welcome.lease_ms = 3_000;
    let mut rig = Rig::start_with(fences, lease).await;
    rig.gives("T1", 5).await;
    let (mut one, mut two) = (rig.joins("T1", 5).await, rig.joins("T1", 5).await);
    rig.broker.answers(false);
    for client in [&mut one, &mut two] {
        let (code, reason) = client.closed().await;
        assert_eq!((code, reason.code.as_deref()), (4312, Some("fenced")));
    }
    let path = format!("/teams/T1?ticket={}", rig.ticket("T1", 5));
    assert_eq!(rig.turned_away(&path, &[]).await.0, 302);
    rig.broker.answers(true);
    rig.is_ready().await;
    rig.joins("T1", 5).await.says("served again").await;
}

#[tokio::test]
async fn a_resume_ticket_opens_its_own_node_while_the_broker_is_away_and_only_then() {
    let mut rig = Rig::start_with(|_| {}, quick).await;
    rig.gives("T1", 5).await;
    let mut client = rig.joins_with_usher("T1", 5).await;
    let Control::Welcome { resume, .. } = client.told().await else {
        panic!("a welcome comes first");
    };
    let resume = resume.expect("a welcome carries a resume ticket");
    let path = format!("/teams/T1?usher=1&ticket={resume}");
    assert_eq!(rig.turned_away(&path, &[]).await.0, 302, "the broker is heard");
    let post = format!("POST /teams/T1/messages?ticket={resume} HTTP/1.1\r\n");
    drop(client);
    rig.broker.die();
    rig.has_lost_its_broker().await;
    let mut again = rig.dial(&path, &[]).await.map(Client).unwrap();
    assert!(matches!(again.told().await, Control::Welcome { .. }));
    assert_eq!(
        rig.http(rig.clients, &post, b"x").await.0,
        409,
        "it is no ticket to post with"
    );
    let other_team = format!("/teams/T2?ticket={resume}");
    assert_eq!(rig.turned_away(&other_team, &[]).await.0, 302);
}

#[tokio::test]
async fn a_node_tells_its_peers_whether_it_hears_the_broker_of_their_cluster() {
    let mut rig = Rig::start_with(|_| {}, quick).await;
    let (ours, theirs) = (ClusterId::from_bits(1), ClusterId::from_bits(2));
    let ask = |cluster: String| format!("GET /v1/hears-broker{cluster} HTTP/1.1\r\n");
    let hears = async |cluster: ClusterId| {
        let (status, answer) = rig
            .http(rig.clients, &ask(format!("?cluster={cluster}")), b"")
            .await;
        assert_eq!(status, 200, "{answer}");
        answer.contains(r#""hears":true"#)
    };
    assert!(hears(ours).await);
    assert!(!hears(theirs).await);
    assert_eq!(rig.http(rig.clients, &ask(String::new()), b"").await.0, 400);
    assert_eq!(
        rig.http(rig.clients, &ask("?cluster=x".to_owned()), b"").await.0,
        400
    );
    rig.broker.die();
    rig.eventually("it does not hear it any more", async || !hears(ours).await)
        .await;
    rig.broker
        .hears(|message| matches!(message, ToBroker::Heartbeat(_)).then_some(()))
        .await;
}
