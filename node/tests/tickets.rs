//! Who comes in, and how the others are sent back.

#![allow(clippy::unwrap_used, clippy::expect_used)] // Also outside of test functions, a test may fail.

mod support;

use support::*;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use usher_shared::frame::Control;
use usher_shared::id::Incarnation;
use usher_shared::link::{ToBroker, ToNode};
use usher_shared::secret::Key;
use usher_shared::ticket::{self, Claims, Scope};

#[tokio::test]
async fn a_good_ticket_opens_and_a_bad_one_goes_back_to_the_broker() {
    let mut rig = Rig::start().await;
    rig.gives("T1", 5).await;
    rig.joins("T1", 5).await;

    let good = rig.claims("T1", 5);
    let sign = |claims: &Claims| ticket::sign(claims, "k1", &key());
    let bad = [
        (
            "foreign node",
            sign(&Claims {
                aud: "node-2".parse().unwrap(),
                ..good.clone()
            }),
        ),
        (
            "earlier process",
            sign(&Claims {
                inc: Incarnation::from_bits(1),
                ..good.clone()
            }),
        ),
        (
            "foreign team",
            sign(&Claims {
                sub: team("T2"),
                ..good.clone()
            }),
        ),
        (
            "other purpose",
            sign(&Claims {
                scope: Scope::Post,
                ..good.clone()
            }),
        ),
        (
            "old epoch",
            sign(&Claims {
                epoch: epoch(4),
                ..good.clone()
            }),
        ),
        (
            "expired",
            sign(&Claims {
                iat: good.iat - 60,
                exp: good.iat - 30,
                ..good.clone()
            }),
        ),
        ("forged", ticket::sign(&good, "k1", &Key::from_bytes([8; 32]))),
        ("unknown key", ticket::sign(&good, "k2", &key())),
        ("malformed", "x.y.z".to_owned()),
    ];
    for (what, ticket) in bad {
        let answer = rig
            .turned_away(&format!("/teams/T1?a=1&ticket={ticket}&from=00"), &[])
            .await;
        let back = format!("ws://broker.test:7400/connect/T1?ticket={ticket}&a=1");
        assert_eq!(answer, (302, back), "{what}");
    }
    let missing = rig.turned_away("/teams/T1", &[]).await;
    assert_eq!(missing, (302, "ws://broker.test:7400/connect/T1".to_owned()));
}

#[tokio::test]
async fn a_used_ticket_replaces_the_connection_that_it_made() {
    let mut rig = Rig::start().await;
    rig.gives("T1", 5).await;
    let path = format!("/teams/T1?ticket={}", rig.ticket("T1", 5));
    let mut first = Client(rig.dial(&path, &[]).await.unwrap());
    let mut second = Client(rig.dial(&path, &[]).await.unwrap());
    assert_eq!(first.closed().await.0, 4309);
    let mut mate = rig.joins("T1", 5).await;
    mate.says("still here").await;
    assert_eq!(second.hears().await, "still here");
}

#[tokio::test]
async fn a_connection_is_called_after_the_ticket_that_opened_it() {
    let mut rig = Rig::start().await;
    rig.gives("T1", 5).await;
    let claims = rig.claims("T1", 5);
    let path = format!("/teams/T1?usher=1&ticket={}", ticket::sign(&claims, "k1", &key()));
    let name = async |rig: &Rig| {
        let mut client = Client(rig.dial(&path, &[]).await.unwrap());
        match client.told().await {
            Control::Welcome { connection, .. } => (client, connection.to_string()),
            other => panic!("not a welcome: {other:?}"),
        }
    };
    let (first, named) = name(&rig).await;
    assert_eq!(named, claims.jti);
    let (_second, named) = name(&rig).await;
    assert_ne!(named, claims.jti, "the first is still there, to be replaced");
    drop(first);
}

#[tokio::test]
async fn a_client_that_comes_before_the_assignment_waits_for_it() {
    let mut rig = Rig::start().await;
    let mut client = TcpStream::connect(rig.clients).await.unwrap();
    let handshake = format!(
        "GET /teams/T1?ticket={} HTTP/1.1\r\nhost: x\r\nupgrade: websocket\r\nconnection: upgrade\r\n\
         sec-websocket-version: 13\r\nsec-websocket-key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n",
        rig.ticket("T1", 5)
    );
    client.write_all(handshake.as_bytes()).await.unwrap();
    // Two heartbeats later the node has long read it.
    let mut heartbeats = 0;
    rig.broker
        .hears(|message| {
            heartbeats += u32::from(matches!(message, ToBroker::Heartbeat(_)));
            (heartbeats > 2).then_some(())
        })
        .await;
    let mut answer = [0; 12];
    assert!(client.try_read(&mut answer).is_err(), "nothing is answered yet");
    rig.broker.command(ToNode::Assign(assign("T1", 5)));
    within(client.read_exact(&mut answer)).await.unwrap();
    assert_eq!(&answer, b"HTTP/1.1 101");

    let path = format!("/teams/T2?ticket={}", rig.ticket("T2", 5));
    assert_eq!(rig.turned_away(&path, &[]).await.0, 302);
}

#[tokio::test]
async fn each_client_is_sent_back_in_the_form_that_it_can_follow() {
    let rig = Rig::start().await;
    for (headers, location) in [
        (vec![], "ws://broker.test:7400/connect/T1"),
        (vec![("accept", "*/*")], "//broker.test:7400/connect/T1"),
        (
            vec![("user-agent", "okhttp/5.1")],
            "//broker.test:7400/connect/T1",
        ),
    ] {
        let answer = rig.turned_away("/teams/T1", &headers).await;
        assert_eq!(answer, (302, location.to_owned()), "{headers:?}");
    }
    let answer = rig.turned_away("/teams/T1?location=http", &[]).await;
    let location = "http://broker.test:7400/connect/T1?location=http";
    assert_eq!(answer, (302, location.to_owned()));
}

#[tokio::test]
async fn a_client_whose_ticket_opened_a_connection_is_sent_back_with_its_name() {
    let mut rig = Rig::start().await;
    rig.gives("T1", 5).await;
    let claims = rig.claims("T1", 5);
    let ticket = ticket::sign(&claims, "k1", &key());
    let path = format!("/teams/T1?ticket={ticket}&from=00000000000000cd");
    let mut client = Client(rig.dial(&path, &[]).await.unwrap());
    rig.broker.command(drain("T1", 7, 0, 1_000));
    assert_eq!(client.closed().await.0, 4312);
    drop(client);
    let released = rig.broker.hears(|message| match message {
        ToBroker::Released(which) => Some(which),
        _ => None,
    });
    released.await;
    let back = |from: &str| (302, format!("ws://broker.test:7400/connect/T1?ticket={from}"));
    let answer = rig.turned_away(&path, &[]).await;
    assert_eq!(answer, back(&format!("{ticket}&from={}", claims.jti)));
    // It had waited for nothing, had the node taken the team for one that is still to come.
    let (_, page) = rig.http(rig.admin, "GET /metrics HTTP/1.1\r\n", b"").await;
    assert!(
        page.contains("usher_tickets_refused_total{reason=\"old_epoch\"} 1"),
        "{page}"
    );
    // Another ticket of that epoch opened nothing.
    let other = rig.ticket("T1", 5);
    let answer = rig.turned_away(&format!("/teams/T1?ticket={other}"), &[]).await;
    assert_eq!(answer, back(&other));
}

#[tokio::test]
async fn a_parameter_of_ours_is_given_once() {
    let rig = Rig::start().await;
    for query in [
        "ticket=a&ticket=b",
        "usher=1&usher=1",
        "a=1&location=ws&location=ws",
    ] {
        assert_eq!(rig.status(&format!("/teams/T1?{query}")).await, 400, "{query}");
    }
}

#[tokio::test]
async fn a_browser_is_told_in_band_and_closed_once() {
    let rig = Rig::start().await;
    for headers in [
        [("user-agent", "Mozilla/5.0 Firefox/153.0")],
        [("sec-fetch-mode", "websocket")],
    ] {
        let socket = rig.dial("/teams/T1?usher=1", &headers).await.unwrap();
        let mut client = Client(socket);
        let url = "ws://broker.test:7400/connect/T1?usher=1".to_owned();
        assert_eq!(client.told().await, Control::Redirect { url: url.clone() });
        let (code, reason) = client.closed().await;
        assert_eq!((code, reason.url), (4302, Some(url)));
    }
}

#[tokio::test]
async fn a_page_that_fetches_gets_a_problem_and_a_plain_get_is_told_to_upgrade() {
    let mut rig = Rig::start().await;
    rig.gives("T1", 5).await;
    let (status, answer) = rig
        .http(
            rig.clients,
            "GET /teams/T1 HTTP/1.1\r\naccept: application/json\r\n",
            b"",
        )
        .await;
    assert_eq!(status, 409, "{answer}");
    assert!(answer.contains("\"code\":\"stale_ticket\""), "{answer}");

    let head = format!("GET /teams/T1?ticket={} HTTP/1.1\r\n", rig.ticket("T1", 5));
    let (status, answer) = rig.http(rig.clients, &head, b"").await;
    assert_eq!(status, 426, "{answer}");
    assert!(answer.contains("upgrade: websocket"), "{answer}");

    let old = [("sec-websocket-version", "8")];
    assert_eq!(rig.turned_away("/teams/T1", &old).await.0, 426);
    for (path, status) in [
        ("/teams/", 400),
        ("/teams/..", 400),
        ("/teams/%00", 400),
        ("/teams/T1/", 404),
        ("/", 404),
        ("/metrics", 404),
    ] {
        assert_eq!(rig.status(path).await, status, "{path}");
    }
}

#[tokio::test]
async fn while_the_broker_is_away_an_expired_ticket_of_a_held_team_is_good() {
    let mut rig = Rig::start().await;
    rig.gives("T1", 5).await;
    let mut stays = rig.joins("T1", 5).await;
    let claims = rig.claims("T1", 5);
    let expired = Claims {
        iat: claims.iat - 60,
        exp: claims.iat - 30,
        ..claims
    };
    let path = format!("/teams/T1?ticket={}", ticket::sign(&expired, "k1", &key()));
    assert_eq!(rig.turned_away(&path, &[]).await.0, 302);

    rig.broker.die();
    rig.has_lost_its_broker().await;
    let mut comes = Client(rig.dial(&path, &[]).await.expect("it is let in"));
    comes.says("hello").await;
    assert_eq!(stays.hears().await, "hello");
    assert_eq!(rig.status("/healthz").await, 200);
    // One of long ago is as bad as a resume ticket of then: it may have been found in a log.
    let fresh = rig.claims("T1", 5);
    for (ago, comes_in) in [(86_000, true), (86_410, false), (365 * 86_400, false)] {
        let of_then = Claims {
            iat: fresh.iat - ago,
            exp: fresh.iat - ago + 30,
            ..fresh.clone()
        };
        let path = format!("/teams/T1?ticket={}", ticket::sign(&of_then, "k1", &key()));
        assert_eq!(rig.dial(&path, &[]).await.is_ok(), comes_in, "{ago} s ago");
    }
}

#[tokio::test]
async fn a_node_that_never_met_its_broker_says_so() {
    let broker = FakeBroker::start(|_| {}).await;
    broker.die();
    let config = config(broker.address);
    let rig = Rig::run(broker, config);
    assert_eq!(rig.turned_away("/teams/T1", &[]).await.0, 503);
    let browser = [("user-agent", "Mozilla/5.0")];
    let mut client = Client(rig.dial("/teams/T1", &browser).await.unwrap());
    assert_eq!(client.closed().await.0, 4313);
    assert_eq!(rig.status("/readyz").await, 503);
}

#[tokio::test]
async fn a_full_node_says_so() {
    let mut rig = Rig::start_with(|config| config.capacity.connections = 1, |_| {}).await;
    rig.gives("T1", 5).await;
    let first = rig.joins("T1", 5).await;
    let path = |rig: &Rig| format!("/teams/T1?ticket={}", rig.ticket("T1", 5));
    assert_eq!(rig.turned_away(&path(&rig), &[]).await.0, 503);
    let browser = [("user-agent", "Mozilla/5.0")];
    let mut told = Client(rig.dial(&path(&rig), &browser).await.unwrap());
    let (code, reason) = told.closed().await;
    assert_eq!((code, reason.code.as_deref()), (4313, Some("node_full")));
    drop(first);
    rig.eventually("there is room again", async || {
        rig.dial(&path(&rig), &[]).await.is_ok()
    })
    .await;
}

#[tokio::test]
async fn a_client_that_was_cut_off_comes_back_with_the_ticket_it_had() {
    let mut rig = Rig::start().await;
    rig.gives("T1", 5).await;
    let path = format!("/teams/T1?ticket={}", rig.ticket("T1", 5));
    let cut = rig.dial(&path, &[]).await.unwrap();
    drop(cut);
    rig.broker
        .hears(|message| match message {
            ToBroker::Heartbeat(heartbeat) => (heartbeat.connections == 0).then_some(()),
            _ => None,
        })
        .await;
    let mut again = rig.dial(&path, &[]).await.map(Client).unwrap();
    let mut mate = rig.joins("T1", 5).await;
    mate.says("are you there").await;
    assert_eq!(again.hears().await, "are you there");
}
