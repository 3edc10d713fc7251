//! What one redirect costs, from a request's head to its answer's, with nothing of HTTP around it.
#![allow(clippy::unwrap_used, missing_docs)]

use criterion::{Criterion, criterion_group, criterion_main};
use http::Request;
use http::request::Parts;
use std::hint::black_box;
use std::sync::Arc;
use usher_broker::keys::Keyring;
use usher_broker::redirect::{Redirector, Rules};
use usher_broker::routes::RouteTable;
use usher_placement::{NodeEntry, Route};
use usher_shared::id::{Incarnation, NodeId, TeamId};
use usher_shared::quantity::Epoch;
use usher_shared::secret::MasterKey;
use usher_shared::ticket::{self, Claims, LIFE_S, Scope};

const TEAMS: u64 = 100_000;
const NODES: u64 = 100;
const NOW_S: u64 = 1_800_000_000;

fn node(number: u64) -> NodeId {
    format!("node-{}", number % NODES).parse().unwrap()
}

fn team(number: u64) -> TeamId {
    format!("T{number:08}").parse().unwrap()
}

fn world() -> (Redirector, Arc<RouteTable>, Arc<Keyring>) {
    let keys = Arc::new(Keyring::new(MasterKey::from_bytes([7; 32])));
    let routes = Arc::new(RouteTable::new(Arc::clone(&keys)));
    for number in 0..NODES {
        let entry = NodeEntry {
            incarnation: Incarnation::from_bits(u128::from(number)),
            url: "wss://chat.example.com/n/{node}/teams/{team}".parse().unwrap(),
            direct: true,
        };
        routes.set_node(&node(number), Some(&entry));
    }
    for number in 0..TEAMS {
        let epoch = Epoch::new(number + 1).unwrap();
        routes.set_team(
            team(number),
            Some(Route {
                node: node(number),
                epoch,
            }),
        );
    }
    let redirector = Redirector::new(Arc::clone(&routes), Arc::clone(&keys), Rules::default());
    (redirector, routes, keys)
}

fn head(path: &str, headers: &[(&str, &str)]) -> Parts {
    let mut request = Request::builder().uri(path).header("host", "chat.example.com");
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    request.body(()).unwrap().into_parts().0
}

fn redirects(bench: &mut Criterion) {
    let (redirector, routes, keys) = world();
    let upgrade = [("upgrade", "websocket"), ("connection", "Upgrade")];
    let shown = [("accept", "application/json")];
    let cases = [
        ("a redirect", head("/connect/T00000042", &upgrade)),
        (
            "a redirect with a query",
            head(
                "/connect/T00000042?usher=1&from=00000000000000ff&room=blue",
                &upgrade,
            ),
        ),
        ("an answer in JSON", head("/connect/T00000042", &shown)),
    ];
    for (name, head) in &cases {
        bench.bench_function(name, |bench| {
            bench.iter(|| black_box(redirector.decide(black_box(head), "T00000042", NOW_S)));
        });
    }
    let mut number = 0;
    bench.bench_function("a look into the route table, 100,000 teams", |bench| {
        bench.iter(|| {
            number = (number + 7_919) % TEAMS;
            let team = team(number);
            black_box(routes.team(&team).and_then(|route| route.slot.reach()))
        });
    });
    let claims = Claims {
        sub: team(42),
        aud: node(42),
        inc: Incarnation::from_bits(42),
        epoch: Epoch::new(43).unwrap(),
        iat: NOW_S,
        exp: NOW_S + LIFE_S,
        jti: "00000000000000aa".to_owned(),
        hop: 0,
        from: None,
        scope: Scope::Connect,
    };
    let key = keys.current_key(&claims.aud);
    bench.bench_function("a ticket's signing alone", |bench| {
        bench.iter(|| black_box(ticket::sign(black_box(&claims), "1", &key)));
    });
    let old = ticket::sign(&claims, "1", &key);
    let returning = head(&format!("/connect/T00000042?ticket={old}"), &upgrade);
    bench.bench_function("a client that comes back with a ticket", |bench| {
        bench.iter(|| black_box(redirector.decide(black_box(&returning), "T00000042", NOW_S + 1)));
    });
}

criterion_group!(benches, redirects);
criterion_main!(benches);
