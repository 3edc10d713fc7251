//! What a broker does not take, and what it says instead.

mod support;

use futures_util::{SinkExt as _, StreamExt as _};
use serde_json::json;
use std::net::SocketAddr;
use support::{FakeNode, Running, config, dial, hello, http, raw, until};
use tokio_tungstenite::tungstenite::Message;
use usher_broker::keys::KeyError;
use usher_broker::store::StoreError;
use usher_broker::{Broker, BrokerError, Config};
use usher_shared::secret::Token;

#[tokio::test(flavor = "multi_thread")]
async fn bad_requests_to_the_admin_listener_are_problems_and_nothing_breaks() {
    let data = tempfile::tempdir().unwrap();
    let broker = Running::start(config(data.path())).await;
    let big = format!("{{\"x\":\"{}\"}}", "y".repeat(70_000));
    let long = format!("/v1/teams/{}", "x".repeat(129));
    for (method, path, body, status, code) in [
        ("PUT", "/v1/teams/..", "", 400, "bad_team"),
        ("PUT", "/v1/teams/.", "", 400, "bad_team"),
        ("PUT", "/v1/teams/", "", 400, "bad_team"),
        ("PUT", "/v1/teams/a%2Fb", "", 400, "bad_team"),
        ("PUT", "/v1/teams/a%00", "", 400, "bad_team"),
        ("PUT", "/v1/teams/%F0%9F%98%80", "", 400, "bad_team"),
        ("PUT", "/v1/teams/%FF", "", 400, "bad_team"),
        ("PUT", &long, "", 400, "bad_team"),
        ("PUT", "/v1/teams/a/b", "", 404, "not_found"),
        ("PUT", "/v1/teams/a", &big, 413, "too_large"),
        ("PUT", "/v1/teams/a", "{", 400, "bad_json"),
        ("PUT", "/v1/teams/a", "[]", 400, "bad_json"),
        ("PUT", "/v1/teams/a", r#"{"size":1}"#, 400, "bad_field"),
        ("PUT", "/v1/teams/a", r#"{"weight":0}"#, 400, "out_of_range"),
        ("PUT", "/v1/teams/a", r#"{"weight":null}"#, 400, "bad_field"),
        (
            "PUT",
            "/v1/teams/a",
            r#"{"labels":{"a":"1","a":"2"}}"#,
            400,
            "bad_field",
        ),
        ("GET", "/v1/teams/a", "", 404, "unknown_team"),
        ("GET", "/v1/teams/a/why", "", 404, "unknown_team"),
        ("DELETE", "/v1/teams/a", "", 404, "unknown_team"),
        ("GET", "/v1/teams?limit=0", "", 400, "bad_query"),
        ("GET", "/v1/nodes/n", "", 404, "unknown_node"),
        ("POST", "/v1/nodes/n/drain", "", 404, "unknown_node"),
        ("POST", "/v1/nodes/n/cordon", "", 404, "unknown_node"),
        ("POST", "/v1/nodes/n/cordon", r#"{"for":1}"#, 400, "bad_field"),
        ("POST", "/v1/nodes/n~/cordon", "", 400, "bad_node"),
        ("GET", "/v1/operations/x", "", 404, "unknown_operation"),
        ("GET", "/v2", "", 404, "not_found"),
        ("POST", "/v1/teams/a", "", 405, "wrong_method"),
        ("PATCH", "/v1/teams/a", "", 503, "no_node"),
        ("PATCH", "/v1/teams/a", r#"{"colour":"red"}"#, 400, "bad_field"),
    ] {
        let reply = broker.admin(method, path, body).await;
        assert_eq!(
            (reply.status, reply.code().as_str()),
            (status, code),
            "{method} {path} {body:.40}"
        );
        assert_eq!(reply.headers["content-type"], "application/problem+json");
    }
    let allow = broker.admin("POST", "/v1/teams/a", "").await;
    assert!(allow.headers["allow"].contains("PUT"), "{allow:?}");
    let huge = [
        ("content-type", "application/json"),
        ("content-length", "1099511627776"),
    ];
    assert_eq!(
        http(broker.admin, "PUT", "/v1/teams/a", &huge, "").await.status,
        413
    );
    let untyped = http(broker.admin, "PUT", "/v1/teams/a", &[], "{}").await;
    assert_eq!((untyped.status, untyped.code().as_str()), (415, "not_json"));
    assert_eq!(broker.admin("GET", "/v1/status", "").await.status, 200);
    broker.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_clients_listener_has_three_paths_and_reflects_nothing() {
    let data = tempfile::tempdir().unwrap();
    let broker = Running::start(config(data.path())).await;
    for path in [
        "/",
        "/v1/teams",
        "/metrics",
        "/connect",
        "/connect/a/b",
        "/secret-word",
    ] {
        let reply = http(broker.clients, "GET", path, &[], "").await;
        assert_eq!(
            (reply.status, reply.code().as_str()),
            (404, "not_found"),
            "{path}"
        );
        assert!(!reply.body.contains("secret-word"));
    }
    for (path, status) in [("/connect/..", 400), ("/connect/", 400), ("/connect/%00", 400)] {
        assert_eq!(
            http(broker.clients, "GET", path, &[], "").await.status,
            status,
            "{path}"
        );
    }
    let delete = http(broker.clients, "DELETE", "/connect/a", &[], "").await;
    assert_eq!((delete.status, delete.headers.contains_key("allow")), (405, true));
    for path in ["/healthz", "/readyz"] {
        assert_eq!(http(broker.clients, "GET", path, &[], "").await.status, 200);
    }
    let two_lengths = b"GET /healthz HTTP/1.1\r\nhost: x\r\ncontent-length: 1\r\ncontent-length: 2\r\n\r\n";
    assert_eq!(raw(broker.clients, two_lengths).await.status, 400);
    let fat = format!("GET /healthz HTTP/1.1\r\nx: {}\r\n\r\n", "y".repeat(40_000));
    assert_eq!(raw(broker.clients, fat.as_bytes()).await.status, 431);
    broker.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_preflight_is_answered_for_known_origins_only() {
    let data = tempfile::tempdir().unwrap();
    let broker = Running::start(config(data.path())).await;
    let ask = async |origin: &str| {
        let headers = [("origin", origin), ("access-control-request-method", "GET")];
        http(broker.clients, "OPTIONS", "/connect/T", &headers, "").await
    };
    let near = ask("http://localhost:5173").await;
    assert_eq!(near.status, 204);
    assert_eq!(
        near.headers["access-control-allow-origin"],
        "http://localhost:5173"
    );
    let far = ask("https://evil.tld").await;
    assert_eq!(far.status, 403);
    assert!(!far.headers.contains_key("access-control-allow-origin"));
    broker.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn tokens_are_asked_for_where_they_are_set_and_health_needs_none() {
    let data = tempfile::tempdir().unwrap();
    let token = "operator-token-0123";
    let broker = Running::start(Config {
        operator_token: Some(Token::new(token).unwrap().into()),
        node_token: Some(Token::new("node-token-012345").unwrap().into()),
        ..config(data.path())
    })
    .await;
    let refused = broker.admin("GET", "/v1/status", "").await;
    assert_eq!((refused.status, refused.code().as_str()), (401, "unauthorized"));
    assert!(refused.headers["www-authenticate"].starts_with("Bearer"));
    let bearer = |token: &str| format!("Bearer {token}");
    for (shown, status) in [(bearer(token), 200), (bearer("node-token-012345"), 401)] {
        let headers = [("authorization", shown.as_str())];
        assert_eq!(
            http(broker.admin, "GET", "/v1/status", &headers, "").await.status,
            status
        );
    }
    for path in ["/metrics", "/healthz", "/readyz"] {
        assert_eq!(
            http(broker.admin, "GET", path, &[], "").await.status,
            200,
            "{path}"
        );
    }
    let link = http(broker.node_link, "GET", "/v1/node-link", &[], "").await;
    assert_eq!(link.status, 401);
    let exited = http(broker.node_link, "POST", "/v1/node-exited", &[], "{}").await;
    assert_eq!(exited.status, 401);
    broker.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn without_a_token_a_foreign_page_may_not_operate() {
    let data = tempfile::tempdir().unwrap();
    let broker = Running::start(config(data.path())).await;
    for headers in [
        [("origin", "https://evil.tld")],
        [("origin", "null")],
        [("host", "evil.tld:7401")],
    ] {
        let reply = http(broker.admin, "PUT", "/v1/teams/T", &headers, "").await;
        assert_eq!(
            (reply.status, reply.code().as_str()),
            (403, "foreign_origin"),
            "{headers:?}"
        );
    }
    broker.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_page_can_neither_join_the_pool_nor_declare_a_node_dead() {
    let data = tempfile::tempdir().unwrap();
    let broker = Running::start(config(data.path())).await;
    let handshake = [
        ("connection", "Upgrade"),
        ("upgrade", "websocket"),
        ("sec-websocket-version", "13"),
        ("sec-websocket-key", "dGhlIHNhbXBsZSBub25jZQ=="),
    ];
    // A page on loopback is no node either.
    for origin in ["https://evil.tld", "null", "http://localhost:5173"] {
        let mut headers = handshake.to_vec();
        headers.push(("origin", origin));
        let link = http(broker.node_link, "GET", "/v1/node-link", &headers, "").await;
        assert_eq!((link.status, link.code().as_str()), (403, "foreign_origin"));
        let page = [("origin", origin), ("content-type", "application/json")];
        let exited = http(broker.node_link, "POST", "/v1/node-exited", &page, "{}").await;
        assert_eq!((exited.status, exited.code().as_str()), (403, "foreign_origin"));
    }
    broker.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_link_that_does_not_say_hello_properly_is_told_why_and_closed() {
    let data = tempfile::tempdir().unwrap();
    let broker = Running::start(config(data.path())).await;
    let mut old = hello("n", 1, "127.0.0.1:1");
    old["protocol"] = json!(0);
    let mut probe = hello("n", 1, "no-port");
    probe["probe"] = json!("no-port");
    let mut url = hello("n", 1, "127.0.0.1:1");
    url["url"] = json!("javascript:{team}");
    for (first, code) in [
        (Message::text("not json"), "bad_message"),
        (Message::text(r#"{"type":"bye","budget_ms":1}"#), "bad_message"),
        (Message::binary(vec![1, 2, 3]), "bad_message"),
        (Message::text(old.to_string()), "protocol"),
        (Message::text(probe.to_string()), "bad_message"),
        (Message::text(url.to_string()), "bad_message"),
    ] {
        let mut socket = dial(broker.node_link, "/v1/node-link", &[]).await;
        socket.send(first.clone()).await.unwrap();
        let Message::Text(text) = socket.next().await.unwrap().unwrap() else {
            panic!("no refusal to {first:?}");
        };
        let refused: serde_json::Value = serde_json::from_str(&text).unwrap();
        assert_eq!(
            (&refused["type"], &refused["code"]),
            (&json!("refused"), &json!(code))
        );
        assert!(matches!(socket.next().await, Some(Ok(Message::Close(_)))));
    }
    broker.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn nonsense_after_the_hello_closes_the_link_and_harms_nobody_else() {
    let data = tempfile::tempdir().unwrap();
    let broker = Running::start(config(data.path())).await;
    let _good = FakeNode::join(broker.node_link, "good", 1).await;
    broker.wait_ready(1).await;
    let mut bad = dial(broker.node_link, "/v1/node-link", &[]).await;
    bad.send(Message::text(hello("bad", 2, "127.0.0.1:1").to_string()))
        .await
        .unwrap();
    bad.send(Message::text("{\"type\":\"later\"}")).await.unwrap();
    bad.send(Message::text(
        "{\"type\":\"yielded\",\"team\":\"..\",\"epoch\":1}",
    ))
    .await
    .unwrap();
    let mut last = None;
    while let Some(Ok(message)) = bad.next().await {
        if let Message::Text(text) = message {
            last = Some(text);
        }
    }
    assert!(last.is_some_and(|text| text.contains("bad_message")));
    assert_eq!(
        broker.admin("PUT", "/v1/teams/T", "").await.json()["node"],
        "good"
    );
    broker.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_claims_a_live_nodes_name_is_refused() {
    let data = tempfile::tempdir().unwrap();
    let broker = Running::start(config(data.path())).await;
    let first = FakeNode::join(broker.node_link, "node-1", 1).await;
    broker.wait_ready(1).await;
    let mut claimer = dial(broker.node_link, "/v1/node-link", &[]).await;
    claimer
        .send(Message::text(hello("node-1", 2, "127.0.0.1:1").to_string()))
        .await
        .unwrap();
    let Message::Text(text) = claimer.next().await.unwrap().unwrap() else {
        panic!("no answer");
    };
    assert!(text.contains("name_taken"), "{text}");
    until("the first to be still there", async || {
        broker.admin("GET", "/v1/nodes/node-1", "").await.json()["state"] == "ready"
    })
    .await;
    drop(first);
    broker.stop().await;
}

async fn start_error(config: Config) -> BrokerError {
    match Broker::start(config).await {
        Ok(_) => panic!("it started"),
        Err(error) => error,
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_port_in_use_is_named_and_costs_no_term() {
    let data = tempfile::tempdir().unwrap();
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let error = start_error(Config {
        admin: taken.local_addr().unwrap(),
        ..config(data.path())
    })
    .await;
    assert!(matches!(error, BrokerError::Bind(_)));
    assert!(error.to_string().contains("--admin"), "{error}");
    let broker = Running::start(config(data.path())).await;
    assert_eq!(broker.term, 1);
    broker.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_second_broker_on_the_same_folder_is_refused() {
    let data = tempfile::tempdir().unwrap();
    let broker = Running::start(config(data.path())).await;
    let error = start_error(config(data.path())).await;
    assert!(
        matches!(error, BrokerError::Store(StoreError::InUse { .. })),
        "{error}"
    );
    broker.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_damaged_store_stops_the_start_with_a_remedy() {
    let data = tempfile::tempdir().unwrap();
    Running::start(config(data.path())).await.stop().await;
    let db = sled::open(data.path().join("store")).unwrap();
    db.insert("team/T", b"garbage".as_slice()).unwrap();
    db.flush().unwrap();
    drop(db);
    let error = start_error(config(data.path())).await;
    assert!(error.to_string().contains("`team/T`"), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn listeners_beyond_loopback_need_their_credentials() {
    let data = tempfile::tempdir().unwrap();
    let anywhere = SocketAddr::from(([0, 0, 0, 0], 0));
    let admin = Config {
        admin: anywhere,
        ..config(data.path())
    };
    let node_link = Config {
        node_link: anywhere,
        ..config(data.path())
    };
    for (config, setting) in [(admin, "operator_token"), (node_link, "node_token")] {
        let error = start_error(config).await;
        assert!(matches!(error, BrokerError::Keys(KeyError::Unlocked { .. })));
        assert!(error.to_string().contains(setting));
    }
}
