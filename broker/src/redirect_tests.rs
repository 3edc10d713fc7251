use super::*;
use http::Request;
use http::header::{HeaderValue, SEC_WEBSOCKET_PROTOCOL};
use usher_placement::{NodeEntry, Route};
use usher_shared::id::Incarnation;
use usher_shared::secret::{MasterKey, Token};

const NOW_S: u64 = 1_000_000;
const FIREFOX: &str = "Mozilla/5.0 (X11; Linux x86_64; rv:153.0) Gecko/20100101 Firefox/153.0";

struct World {
    redirector: Redirector,
    routes: Arc<RouteTable>,
    keys: Arc<Keyring>,
}

fn node() -> NodeId {
    "node-1".parse().unwrap()
}

fn entry(direct: bool) -> NodeEntry {
    NodeEntry {
        incarnation: Incarnation::from_bits(42),
        url: "ws://127.0.0.1:7410/teams/{team}".parse().unwrap(),
        direct,
    }
}

fn world_with(rules: Rules) -> World {
    let keys = Arc::new(Keyring::new(MasterKey::from_bytes([9; 32])));
    let routes = Arc::new(RouteTable::new(Arc::clone(&keys)));
    routes.set_node(&node(), Some(&entry(true)));
    let route = Route {
        node: node(),
        epoch: Epoch::new(5).unwrap(),
    };
    routes.set_team("T1".parse().unwrap(), Some(route));
    World {
        redirector: Redirector::new(Arc::clone(&routes), Arc::clone(&keys), rules),
        routes,
        keys,
    }
}

fn world() -> World {
    world_with(Rules {
        auto_create: true,
        client_token: None,
        origins: Origins::new(&["https://app.example.com".to_owned()], true).unwrap(),
        refuse_rebinding: true,
        security: Security::Plain,
    })
}

fn head(path: &str, headers: &[(&str, &str)]) -> Parts {
    let mut request = Request::builder().uri(path);
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    request.body(()).unwrap().into_parts().0
}

fn upgrade<'h>(more: &[(&'h str, &'h str)]) -> Vec<(&'h str, &'h str)> {
    let mut headers = vec![("upgrade", "websocket"), ("connection", "keep-alive, Upgrade")];
    headers.extend_from_slice(more);
    headers
}

impl World {
    fn decide(&self, path: &str, headers: &[(&str, &str)]) -> Decision {
        let head = head(path, headers);
        let segment = head.uri.path().strip_prefix("/connect/").unwrap().to_owned();
        self.redirector.decide(&head, &segment, NOW_S)
    }

    fn answer(&self, path: &str, headers: &[(&str, &str)]) -> Answer {
        match self.decide(path, headers) {
            Decision::Settled(Outcome::Answer(answer)) => answer,
            other => panic!("{other:?}"),
        }
    }

    fn farewell(&self, path: &str, headers: &[(&str, &str)]) -> Farewell {
        match self.decide(path, headers) {
            Decision::Settled(Outcome::InBand(farewell)) => farewell,
            other => panic!("{other:?}"),
        }
    }

    fn asked(&self, path: &str, headers: &[(&str, &str)]) -> (Ask, Visit) {
        match self.decide(path, headers) {
            Decision::Ask(asked) => *asked,
            other @ Decision::Settled(_) => panic!("{other:?}"),
        }
    }

    fn claims(&self, url: &str) -> Claims {
        let ticket = url.split("ticket=").nth(1).unwrap().split('&').next().unwrap();
        let key = self.keys.current_key(&node());
        let (claims, age) = ticket::verify(ticket, NOW_S, |kid| (kid == "1").then_some(&key)).unwrap();
        assert_eq!(age, Age::Fresh);
        claims
    }

    /// An old ticket for the node and epoch in the table, `age_s` old.
    fn ticket(&self, hop: u8, age_s: u64, change: impl FnOnce(&mut Claims)) -> String {
        let mut claims = Claims {
            sub: "T1".parse().unwrap(),
            aud: node(),
            inc: Incarnation::from_bits(42),
            epoch: Epoch::new(4).unwrap(),
            iat: NOW_S - age_s,
            exp: NOW_S - age_s + LIFE_S,
            jti: "0".repeat(16),
            hop,
            from: None,
            scope: Scope::Connect,
        };
        change(&mut claims);
        ticket::sign(&claims, "1", &self.keys.current_key(&claims.aud))
    }
}

fn location(answer: &Answer) -> &str {
    answer.headers()[LOCATION].to_str().unwrap()
}

async fn json<T: serde::de::DeserializeOwned>(answer: Answer) -> T {
    use http_body_util::BodyExt as _;
    let bytes = answer.into_body().collect().await.unwrap().to_bytes();
    serde_json::from_slice(&bytes).unwrap()
}

#[tokio::test]
async fn a_page_gets_json_with_a_ticket_in_the_url() {
    let world = world();
    let accept = ("accept", "application/json");
    let answer = world.answer(
        "/connect/T1?usher=1",
        &[accept, ("origin", "http://localhost:3000")],
    );
    assert_eq!(answer.status(), 200);
    let headers = answer.headers();
    assert_eq!(headers["cache-control"], "no-store");
    assert_eq!(headers["vary"], "Accept, Origin");
    assert_eq!(headers["access-control-allow-origin"], "http://localhost:3000");
    let view: ConnectView = json(answer).await;
    assert_eq!((view.team.as_str(), view.node.as_str()), ("T1", "node-1"));
    assert_eq!((view.expires_in, view.epoch.get()), (30, 5));
    assert!(
        view.url.starts_with("ws://127.0.0.1:7410/teams/T1?ticket="),
        "{}",
        view.url
    );
    assert!(view.url.ends_with("&usher=1"));
    let claims = world.claims(&view.url);
    assert_eq!(
        (claims.sub.as_str(), claims.aud, claims.epoch.get()),
        ("T1", node(), 5)
    );
    assert_eq!((claims.inc, claims.hop), (Incarnation::from_bits(42), 0));
    assert_eq!(
        (claims.iat, claims.exp, claims.jti.len()),
        (NOW_S, NOW_S + 30, 16)
    );
}

#[test]
fn each_client_gets_the_location_that_it_follows() {
    let world = world();
    let plain = world.answer("/connect/T1", &upgrade(&[]));
    assert_eq!(plain.status(), 302);
    assert!(location(&plain).starts_with("ws://127.0.0.1:7410/teams/T1?ticket="));
    let aiohttp = world.answer("/connect/T1", &upgrade(&[("accept", "*/*")]));
    assert!(location(&aiohttp).starts_with("//127.0.0.1:7410/teams/T1?ticket="));
    let forced = world.answer("/connect/T1?location=http&a=b", &upgrade(&[]));
    assert!(location(&forced).starts_with("http://127.0.0.1:7410/teams/T1?ticket="));
    assert!(location(&forced).ends_with("&a=b"));
    assert!(!location(&forced).contains("location="));
}

#[test]
fn a_post_stays_a_post_and_its_ticket_is_good_for_that_only() {
    let world = world();
    let mut head = head("/connect/T1", &[("accept", "*/*")]);
    head.method = Method::POST;
    let Decision::Settled(Outcome::Answer(answer)) = world.redirector.decide(&head, "T1", NOW_S) else {
        panic!("not settled");
    };
    assert_eq!(answer.status(), 307);
    assert!(location(&answer).starts_with("http://127.0.0.1:7410/teams/T1/messages?ticket="));
    assert_eq!(world.claims(location(&answer)).scope, Scope::Post);
}

#[test]
fn a_browser_is_told_in_band() {
    let world = world();
    let browser = upgrade(&[("user-agent", FIREFOX), ("origin", "https://app.example.com")]);
    let farewell = world.farewell("/connect/T1", &browser);
    assert_eq!(farewell.code, CloseCode::Redirect);
    let frame = farewell.frame.unwrap();
    assert!(frame.starts_with("{\"usher\":\"redirect\",\"url\":\"ws://127.0.0.1:7410/teams/T1?ticket="));
    assert!(farewell.reason.len() <= 123);
}

#[test]
fn a_refused_browser_is_told_with_a_close_it_can_read() {
    let world = world();
    let browser = upgrade(&[("user-agent", FIREFOX), ("origin", "http://127.0.0.1:1")]);
    let bad = world.farewell("/connect/a%2fb", &browser);
    assert_eq!((bad.frame, bad.code), (None, CloseCode::BadRequest));
    assert_eq!(bad.reason, r#"{"code":"bad_team"}"#);
    let foreign = upgrade(&[("user-agent", FIREFOX), ("origin", "https://evil.tld")]);
    let foreign = world.farewell("/connect/T1", &foreign);
    assert_eq!(foreign.code, CloseCode::Forbidden);
    let (_, visit) = world.asked("/connect/new", &browser);
    let problem = Problem::new(503, "no_node", "x").retry_after(1_500);
    let Outcome::InBand(full) = visit.settle(&world.redirector, Err(problem), NOW_S) else {
        panic!("not in band");
    };
    assert_eq!(full.code, CloseCode::TryAgain);
    assert_eq!(full.reason, r#"{"retry_ms":1500,"code":"no_node"}"#);
}

#[test]
fn pages_of_a_foreign_origin_get_no_ticket() {
    let world = world();
    for origin in ["https://evil.tld", "null", "https://app.example.com.evil.tld"] {
        let answer = world.answer(
            "/connect/T1",
            &[("accept", "application/json"), ("origin", origin)],
        );
        assert_eq!(answer.status(), 403);
        assert!(!answer.headers().contains_key("access-control-allow-origin"));
    }
    // What a form or a `no-cors` fetch sends counts as well: it could post, and make teams.
    let simple = [
        ("accept", "*/*"),
        ("user-agent", FIREFOX),
        ("origin", "https://evil.tld"),
    ];
    assert_eq!(world.answer("/connect/T1", &simple).status(), 403);
    // A name that somebody pointed at this machine; such a page counts as same-origin.
    let rebound = [
        ("accept", "application/json"),
        ("user-agent", FIREFOX),
        ("host", "evil.tld:7400"),
    ];
    assert_eq!(world.answer("/connect/T1", &rebound).status(), 403);
}

#[test]
fn host_and_forwarding_headers_change_nothing() {
    let world = world();
    let evil = [
        ("host", "evil.tld"),
        ("x-forwarded-host", "evil.tld"),
        ("forwarded", "host=evil.tld"),
    ];
    let answer = world.answer("/connect/T1", &upgrade(&evil));
    assert!(location(&answer).starts_with("ws://127.0.0.1:7410/teams/T1?ticket="));
    let next = world.answer("/connect/T1?next=//evil.tld&x=https:evil", &upgrade(&[]));
    assert!(location(&next).starts_with("ws://127.0.0.1:7410/teams/T1?ticket="));
}

#[test]
fn malformed_teams_are_refused_before_anything_else_is_looked_at() {
    let world = world();
    let long = "x".repeat(129);
    for bad in [
        ".",
        "..",
        "",
        "%2e%2e",
        "a%2fb",
        "a%00",
        "%f0%9f%98%80",
        "%ff",
        "-a",
        long.as_str(),
        "a%20b",
    ] {
        let head = head("/connect/x", &[]);
        let Decision::Settled(Outcome::Answer(answer)) = world.redirector.decide(&head, bad, NOW_S) else {
            panic!("{bad:?}");
        };
        assert_eq!(answer.status(), 400, "{bad:?}");
        assert_eq!(answer.headers()["content-type"], "application/problem+json");
    }
}

#[test]
fn control_characters_in_a_query_are_refused() {
    let world = world();
    let answer = world.answer("/connect/T1?a=%0d%0aSet-Cookie:%20x", &upgrade(&[]));
    assert_eq!(answer.status(), 400);
    assert!(!answer.headers().contains_key("set-cookie"));
    let long = format!("/connect/T1?a={}", "x".repeat(2_100));
    assert_eq!(world.answer(&long, &upgrade(&[])).status(), 414);
}

#[test]
fn a_chain_of_redirects_is_cut_at_three_hops() {
    let world = world();
    for (hop, next) in [(0, 1), (1, 2)] {
        let ticket = world.ticket(hop, 3, |_| ());
        let answer = world.answer(&format!("/connect/T1?ticket={ticket}"), &upgrade(&[]));
        assert_eq!(world.claims(location(&answer)).hop, next);
        assert!(
            !location(&answer).contains(&ticket),
            "the old ticket is not passed on"
        );
    }
    let ticket = world.ticket(2, 3, |_| ());
    let answer = world.answer(&format!("/connect/T1?ticket={ticket}"), &upgrade(&[]));
    assert_eq!(answer.status(), 503);
    assert_eq!(answer.headers()["retry-after"], "8");
}

#[test]
fn a_ticket_that_opened_a_connection_is_no_hop() {
    let world = world();
    let hop = |path: &str| {
        let answer = world.answer(path, &upgrade(&[]));
        (answer.status() == 302).then(|| world.claims(location(&answer)))
    };
    let earlier = "00000000000000ff";
    let ticket = world.ticket(2, 3, |claims| {
        claims.jti = "00000000000000ab".to_owned();
        claims.from = earlier.parse().ok();
    });
    let opened = hop(&format!("/connect/T1?ticket={ticket}&from=00000000000000ab")).unwrap();
    assert_eq!(opened.hop, 0);
    assert_eq!(opened.from, "00000000000000ab".parse().ok());
    // Another connection says nothing of this ticket: it may have opened nothing, again and again.
    for other in ["", "&from=00000000000000ac", "&from=00000000000000ff"] {
        assert_eq!(
            hop(&format!("/connect/T1?ticket={ticket}{other}")),
            None,
            "{other}"
        );
    }
}

#[test]
fn a_ticket_for_a_process_that_is_no_more_is_no_hop() {
    let world = world();
    let ticket = world.ticket(2, 3, |claims| claims.inc = Incarnation::from_bits(41));
    let answer = world.answer(&format!("/connect/T1?ticket={ticket}"), &upgrade(&[]));
    assert_eq!(world.claims(location(&answer)).hop, 0);
    // A node that nobody knows today may come back as the same process.
    world.routes.set_node(&"node-9".parse().unwrap(), None);
    let ticket = world.ticket(2, 3, |claims| claims.aud = "node-9".parse().unwrap());
    let answer = world.answer(&format!("/connect/T1?ticket={ticket}"), &upgrade(&[]));
    assert_eq!(answer.status(), 503);
}

#[tokio::test]
async fn the_json_way_tells_what_the_connection_will_be_called() {
    let world = world();
    let view: ConnectView = json(world.answer("/connect/T1", &[("accept", "application/json")])).await;
    let claims = world.claims(&view.url);
    assert_eq!(view.connection.map(|id| id.to_string()), Some(claims.jti));
}

#[test]
fn a_location_without_scheme_is_absolute_where_broker_and_node_differ_in_tls() {
    let world = world_with(Rules {
        security: Security::Tls,
        ..Rules::default()
    });
    let aiohttp = upgrade(&[("accept", "*/*")]);
    let answer = world.answer("/connect/T1", &aiohttp);
    assert!(location(&answer).starts_with("http://127.0.0.1:7410/teams/T1?ticket="));
    let forced = world.answer("/connect/T1?location=net", &upgrade(&[]));
    assert!(location(&forced).starts_with("http://127.0.0.1:7410/teams/T1?ticket="));
    let plain = world.answer("/connect/T1", &upgrade(&[]));
    assert!(location(&plain).starts_with("ws://127.0.0.1:7410/teams/T1?ticket="));
}

#[tokio::test]
async fn a_person_with_curl_is_told_where_to_look() {
    use http_body_util::BodyExt as _;
    let world = world();
    let answer = world.answer("/connect/T1", &[("accept", "*/*")]);
    let text = answer.into_body().collect().await.unwrap().to_bytes();
    assert!(text.starts_with(b"the team's node is in the Location header"));
    let handshake = world.answer("/connect/T1", &upgrade(&[("accept", "*/*")]));
    assert!(
        handshake
            .into_body()
            .collect()
            .await
            .unwrap()
            .to_bytes()
            .is_empty()
    );
}

#[test]
fn a_client_that_re_dials_an_old_url_for_ever_never_adds_up_hops() {
    let world = world();
    for age_s in [10, 40, 600] {
        let ticket = world.ticket(2, age_s, |_| ());
        let answer = world.answer(&format!("/connect/T1?ticket={ticket}"), &upgrade(&[]));
        assert_eq!(world.claims(location(&answer)).hop, 0, "{age_s} s");
    }
}

#[test]
fn a_ticket_that_is_not_ours_counts_as_absent() {
    let world = world();
    let foreign_key = ticket::sign(
        &world.claims(location(&world.answer("/connect/T1", &upgrade(&[])))),
        "1",
        &usher_shared::secret::Key::from_bytes([1; 32]),
    );
    let other_team = world.ticket(2, 1, |claims| claims.sub = "T2".parse().unwrap());
    let ancient = world.ticket(2, 5_000, |_| ());
    let oversized = "x".repeat(2_040);
    for bad in [
        foreign_key.as_str(),
        &other_team,
        &ancient,
        "x.y.z",
        "",
        &oversized,
    ] {
        let answer = world.answer(&format!("/connect/T1?ticket={bad}"), &upgrade(&[]));
        assert_eq!(answer.status(), 302, "{bad}");
        assert_eq!(world.claims(location(&answer)).hop, 0);
    }
}

#[test]
fn a_client_sent_back_from_exactly_its_node_knocks_at_the_core() {
    let world = world();
    let here = world.ticket(0, 20, |claims| claims.epoch = Epoch::new(5).unwrap());
    let (ask, _) = world.asked(&format!("/connect/T1?ticket={here}"), &upgrade(&[]));
    let Ask::Connect {
        knock: Some(knock), ..
    } = ask
    else {
        panic!("{ask:?}");
    };
    assert_eq!((knock.node, knock.epoch.get()), (node(), 5));
    let elsewhere = world.ticket(0, 20, |claims| claims.inc = Incarnation::from_bits(41));
    let answer = world.answer(&format!("/connect/T1?ticket={elsewhere}"), &upgrade(&[]));
    assert_eq!(answer.status(), 302);
}

#[test]
fn what_the_table_cannot_settle_goes_to_the_core() {
    let world = world();
    let (ask, _) = world.asked("/connect/new?region=eu", &upgrade(&[]));
    let Ask::Connect {
        may_create, region, ..
    } = ask
    else {
        panic!("{ask:?}");
    };
    assert!(may_create && region.is_some_and(|region| region.as_str() == "eu"));
    world.routes.set_node(&node(), Some(&entry(false)));
    let (_, visit) = world.asked("/connect/T1", &upgrade(&[]));
    let place = world.redirector.place(&node(), Epoch::new(6).unwrap()).unwrap();
    let Outcome::Answer(answer) = visit.settle(&world.redirector, Ok(place), NOW_S) else {
        panic!("in band");
    };
    assert_eq!(world.claims(location(&answer)).epoch.get(), 6);
    world.routes.set_node(&node(), None);
    world.asked("/connect/T1", &upgrade(&[]));
}

#[test]
fn with_a_client_token_only_its_bearer_may_make_a_team() {
    let world = world_with(Rules {
        auto_create: true,
        client_token: Some(Token::new("0123456789abcdef").unwrap().into()),
        ..Rules::default()
    });
    let may_create = |headers: &[(&str, &str)]| match world.asked("/connect/new", &upgrade(headers)).0 {
        Ask::Connect { may_create, .. } => may_create,
        other => panic!("{other:?}"),
    };
    assert!(!may_create(&[]));
    assert!(!may_create(&[("authorization", "Bearer wrong-wrong-wrong")]));
    assert!(may_create(&[("authorization", "Bearer 0123456789abcdef")]));
}

#[test]
fn the_connection_that_is_replaced_goes_into_the_ticket() {
    let world = world();
    let answer = world.answer("/connect/T1?from=00000000000000ff&usher=1", &upgrade(&[]));
    let claims = world.claims(location(&answer));
    assert_eq!(claims.from.unwrap().to_string(), "00000000000000ff");
    assert!(location(&answer).ends_with("&usher=1"));
}

#[test]
fn an_old_ticket_tells_which_connection_its_bearer_had() {
    let world = world();
    let from = |ticket: &str, extra: &str| {
        let path = format!("/connect/T1?ticket={ticket}{extra}");
        let claims = world.claims(location(&world.answer(&path, &upgrade(&[]))));
        claims.from.map(|from| from.to_string())
    };
    let first = world.ticket(0, 60, |claims| claims.jti = "00000000000000a1".to_owned());
    assert_eq!(from(&first, "").as_deref(), Some("00000000000000a1"));
    assert_eq!(
        from(&first, "&from=00000000000000ff").as_deref(),
        Some("00000000000000ff"),
        "what the client says itself comes first"
    );
    let within_a_chain = world.ticket(1, 1, |claims| {
        claims.jti = "00000000000000b2".to_owned();
        claims.from = "00000000000000a1".parse().ok();
    });
    assert_eq!(
        from(&within_a_chain, "").as_deref(),
        Some("00000000000000a1"),
        "the second ticket of a chain opened nothing"
    );
}

#[test]
fn an_upgrade_needs_both_headers() {
    let headers = |upgrade: &'static str, connection: &'static str| {
        let mut headers = HeaderMap::new();
        headers.insert(UPGRADE, HeaderValue::from_static(upgrade));
        headers.insert(CONNECTION, HeaderValue::from_static(connection));
        headers.insert(SEC_WEBSOCKET_PROTOCOL, HeaderValue::from_static("x"));
        headers
    };
    assert!(asks_for_websocket(&headers("WebSocket", "keep-alive, Upgrade")));
    assert!(!asks_for_websocket(&headers("h2c", "Upgrade")));
    assert!(!asks_for_websocket(&headers("websocket", "close")));
}
