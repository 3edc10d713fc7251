//! Nodes that are heard well and that no client gets to, and nodes that die again and again.

#![allow(clippy::unwrap_used, clippy::expect_used)] // Also outside of test functions, a test may fail.

mod world;

use usher_placement::{Answer, Ask, Event, Knock, Notice, Refusal, Settings, TrustChange};
use usher_shared::link::{Clients, LargeTeam};
use usher_shared::rest::Gate;
use world::{World, node, pool, team};

const PING_MS: u64 = 20_000;

/// Every node counts its clients; some are there.
fn counting(names: &[&str], teams: u32) -> World {
    let mut world = pool(names, teams);
    for name in names {
        arrive(&mut world, name, 1);
    }
    world.advance(2_000);
    for name in names {
        hear_nobody(&mut world, name);
    }
    world.advance(2_000);
    world
}

fn arrive(world: &mut World, name: &str, more: u64) {
    let fake = world.nodes.get_mut(&node(name)).unwrap();
    let shown = fake.clients.map_or(0, |clients| clients.shown) + more;
    fake.clients = Some(Clients {
        shown,
        heard_ms: Some(0),
        ping_ms: PING_MS,
    });
}

fn hear_nobody(world: &mut World, name: &str) {
    let fake = world.nodes.get_mut(&node(name)).unwrap();
    if let Some(clients) = &mut fake.clients {
        clients.heard_ms = Some(60_000);
    }
}

fn sent(world: &mut World, name: &str, teams: std::ops::Range<u32>) {
    let bits = teams.clone().fold(0, |bits, team| bits | 1 << (team % 64));
    world.tell(Event::Sent {
        node: node(name),
        tickets: teams.len() as u64,
        teams: bits,
        over_ms: 1_000,
    });
}

fn url(world: &mut World, name: &str, failed: Option<&str>) {
    let incarnation = world.nodes[&node(name)].hello.incarnation;
    world.tell(Event::UrlProbed {
        node: node(name),
        incarnation,
        failed: failed.map(str::to_owned),
    });
}

/// On every other node whoever is sent arrives.
fn all_well(world: &mut World, names: &[&str]) {
    for _ in 0..20 {
        for name in names {
            sent(world, name, 0..8);
            arrive(world, name, 8);
        }
        world.advance(1_000);
    }
}

fn gates(world: &World, name: &str) -> Vec<Gate> {
    world.core.node(&node(name), world.now).unwrap().gates
}

fn knock(world: &mut World, name: &str) -> String {
    let owner = world.owner(name).unwrap();
    let knock = Knock {
        node: node(&owner),
        incarnation: world.nodes[&node(&owner)].hello.incarnation,
        epoch: world.epoch(name),
    };
    let ask = Ask::Connect {
        team: team(name),
        may_create: true,
        region: None,
        knock: Some(knock),
    };
    match world.ask(ask) {
        Ok(Answer::Assigned { route, .. }) => route.node.to_string(),
        other => panic!("{name}: {other:?}"),
    }
}

fn teams_of(world: &World, name: &str) -> Vec<String> {
    let page = world.core.teams(Some(&node(name)), None, 1_000, world.now);
    page.teams.into_iter().map(|view| view.team.to_string()).collect()
}

fn changes(world: &World) -> Vec<&'static str> {
    let change = |notice: &Notice| match notice {
        Notice::Trust { change, .. } => Some(change.as_str()),
        _ => None,
    };
    world.notices.iter().filter_map(change).collect()
}

#[test]
fn a_node_that_nobody_arrives_at_gets_no_new_teams_and_is_tried_again() {
    let mut world = counting(&["a", "b", "c"], 30);
    url(&mut world, "a", Some("connection refused"));
    all_well(&mut world, &["b", "c"]);
    assert!(
        gates(&world, "a").is_empty(),
        "that the broker cannot reach it says nothing alone"
    );
    sent(&mut world, "a", 0..3);
    world.advance(4_000);
    assert!(gates(&world, "a").is_empty(), "they may be dialling still");
    world.advance(2_500);
    assert_eq!(gates(&world, "a"), [Gate::Unreachable]);
    let view = world.core.node(&node("a"), world.now).unwrap().distrust.unwrap();
    assert!(
        view.gate == Gate::Unreachable && view.why.contains("3 teams"),
        "{view:?}"
    );
    for serial in 0..40 {
        assert_ne!(world.place(&format!("new{serial}")), "a");
    }
    assert!(
        world.core.why(&team("new0"), world.now).unwrap().decisions[0]
            .best
            .iter()
            .all(|score| score.node != node("a") || score.last_resort == Some(Gate::Unreachable))
    );
    world.advance(10_000);
    let tried = (0..40)
        .filter(|serial| world.place(&format!("trial{serial}")) == "a")
        .count();
    assert_eq!(tried, 2, "a few try it again");
    sent(&mut world, "a", 0..2);
    world.advance(7_000);
    assert_eq!(gates(&world, "a"), [Gate::Unreachable]);
    assert!(
        world
            .core
            .node(&node("a"), world.now)
            .unwrap()
            .distrust
            .unwrap()
            .again_in_ms
            > 10_000,
        "twice as long"
    );
    world.check();
}

#[test]
fn a_node_that_clients_arrive_at_again_is_trusted_again() {
    let mut world = counting(&["a", "b"], 20);
    url(&mut world, "a", Some("connection refused"));
    all_well(&mut world, &["b"]);
    sent(&mut world, "a", 0..4);
    world.advance(7_000);
    assert_eq!(gates(&world, "a"), [Gate::Unreachable]);
    assert!(!world.entries[&node("a")].direct);
    // Mended: it is not left alone for longer than that takes to see.
    url(&mut world, "a", None);
    arrive(&mut world, "a", 1);
    world.advance(1_500);
    assert!(gates(&world, "a").is_empty() && world.entries[&node("a")].direct);
    assert_eq!(changes(&world), ["unreachable", "on_trial", "trusted"]);
    world.check();
}

#[test]
fn who_asks_and_does_not_dial_holds_no_node_back() {
    let mut world = counting(&["a", "b", "c"], 30);
    for name in ["a", "b", "c"] {
        url(&mut world, name, None);
    }
    // Everywhere: pages that only look.
    for _ in 0..60 {
        for name in ["a", "b", "c"] {
            sent(&mut world, name, 0..40);
        }
        world.advance(1_000);
    }
    assert!(changes(&world).is_empty(), "{:?}", changes(&world));
    // Beside clients that dial: a check that asks each second for the same team, and a script for ten.
    let mut world = counting(&["a", "b", "c"], 30);
    url(&mut world, "a", None);
    all_well(&mut world, &["b", "c"]);
    for _ in 0..60 {
        sent(&mut world, "a", 0..1);
        world.advance(1_000);
    }
    sent(&mut world, "a", 1..9);
    world.advance(20_000);
    assert!(changes(&world).is_empty(), "{:?}", changes(&world));
}

#[test]
fn whoever_has_tickets_cannot_hold_back_a_node_that_hears_a_client() {
    let mut world = counting(&["a", "b"], 60);
    all_well(&mut world, &["b"]);
    world.nodes.get_mut(&node("a")).unwrap().connections = 2;
    for round in 0..60 {
        // Two idle connections: one is heard every ten seconds.
        if round % 10 == 0 {
            arrive(&mut world, "a", 0);
        } else {
            hear_nobody(&mut world, "a");
        }
        sent(&mut world, "a", 0..60);
        for name in teams_of(&world, "a").into_iter().take(10) {
            assert_eq!(knock(&mut world, &name), "a");
        }
        world.advance(1_000);
    }
    assert!(changes(&world).is_empty(), "{:?}", changes(&world));
}

#[test]
fn teams_of_a_gray_node_follow_their_clients() {
    let mut world = counting(&["a", "b", "c"], 30);
    url(&mut world, "a", None);
    let stuck = teams_of(&world, "a");
    for name in &stuck[..2] {
        knock(&mut world, name);
        knock(&mut world, name);
    }
    world.advance(7_000);
    assert!(gates(&world, "a").is_empty(), "two may share a broken network");
    let third = &stuck[2];
    assert_eq!(knock(&mut world, third), "a");
    world.advance(1_500);
    assert_eq!(gates(&world, "a"), [Gate::Unreachable]);
    for name in &stuck {
        assert_ne!(knock(&mut world, name), "a");
    }
    assert!(teams_of(&world, "a").is_empty());
    world.check();
}

#[test]
fn pages_that_ask_again_without_a_ticket_are_helped_too() {
    let mut world = counting(&["a", "b"], 20);
    url(&mut world, "a", None);
    all_well(&mut world, &["b"]);
    let stuck = teams_of(&world, "a");
    let direct = |world: &World| world.entries[&node("a")].direct;
    // From the route table, as long as nobody suspects anything.
    for _ in 0..4 {
        sent(&mut world, "a", 0..1);
        world.advance(2_000);
    }
    assert!(
        !direct(&world) && gates(&world, "a").is_empty(),
        "who asks is looked at, no more"
    );
    assert_eq!(world.place(&stuck[0]), "a");
    world.advance(3_000);
    assert_eq!(world.place(&stuck[0]), "a");
    world.advance(3_000);
    assert_eq!(world.place(&stuck[0]), "b", "alone");
    assert!(gates(&world, "a").is_empty());
    for name in &stuck[1..3] {
        world.place(name);
    }
    world.advance(1_500);
    assert_eq!(
        gates(&world, "a"),
        [Gate::Unreachable],
        "the third team that asks again"
    );
    world.check();
    // One arrival, and all is as it was.
    let mut world = counting(&["a", "b"], 20);
    all_well(&mut world, &["b"]);
    for _ in 0..4 {
        sent(&mut world, "a", 0..1);
        world.advance(2_000);
    }
    assert!(!direct(&world));
    arrive(&mut world, "a", 1);
    world.advance(1_500);
    assert!(direct(&world) && changes(&world).is_empty());
}

#[test]
fn the_one_team_of_a_node_that_nobody_gets_to_moves_when_its_clients_have_tried_three_times() {
    let mut world = counting(&["a", "b"], 2);
    let own = teams_of(&world, "a")[0].clone();
    for _ in 0..2 {
        assert_eq!(knock(&mut world, &own), "a");
        world.advance(2_000);
    }
    assert_eq!(knock(&mut world, &own), "a", "not in five seconds");
    world.advance(2_000);
    assert_eq!(knock(&mut world, &own), "b");
    world.check();
}

#[test]
fn a_team_that_is_forgotten_between_two_tries_does_not_go_round_in_a_circle() {
    let mut world = counting(&["a", "b"], 2);
    let own = teams_of(&world, "a")[0].clone();
    let knock = Knock {
        node: node("a"),
        incarnation: world.nodes[&node("a")].hello.incarnation,
        epoch: world.epoch(&own),
    };
    let mut went = Vec::new();
    for _ in 0..4 {
        world.ask(Ask::Delete { team: team(&own) }).unwrap();
        let ask = Ask::Connect {
            team: team(&own),
            may_create: true,
            region: None,
            knock: Some(knock.clone()),
        };
        let Ok(Answer::Assigned { route, .. }) = world.ask(ask) else {
            panic!("it is made anew")
        };
        went.push(route.node.to_string());
        world.advance(3_000);
    }
    assert_eq!(went[..3], ["a", "a", "b"], "{went:?}");
    world.check();
}

#[test]
fn with_every_node_out_of_reach_they_take_teams_all_the_same() {
    let mut world = counting(&["a", "b"], 20);
    for name in ["a", "b"] {
        for stuck in teams_of(&world, name) {
            knock(&mut world, &stuck);
        }
    }
    world.advance(7_000);
    assert_eq!(
        (gates(&world, "a"), gates(&world, "b")),
        (vec![Gate::Unreachable], vec![Gate::Unreachable])
    );
    let placed: Vec<String> = (0..20)
        .map(|serial| world.place(&format!("new{serial}")))
        .collect();
    assert!(
        placed.contains(&"a".to_owned()) && placed.contains(&"b".to_owned()),
        "{placed:?}"
    );
    let stuck = teams_of(&world, "a")[0].clone();
    assert_eq!(knock(&mut world, &stuck), "a", "and none goes in a circle");
    world.check();
}

#[test]
fn a_node_that_died_again_and_again_is_better_than_one_out_of_reach() {
    let mut world = counting(&["a", "b"], 20);
    for _ in 0..3 {
        let hello = world.hello("b");
        world.kill_with_witness("b");
        world.advance(500);
        world.add_hello(hello);
    }
    assert_eq!(gates(&world, "b"), [Gate::Crashing]);
    let stuck = teams_of(&world, "a");
    assert_eq!(stuck.len(), 20);
    for name in &stuck[..3] {
        knock(&mut world, name);
    }
    world.advance(7_000);
    assert_eq!(gates(&world, "a"), [Gate::Unreachable]);
    assert_eq!(knock(&mut world, &stuck[0]), "b");
    // Also when it is the busier of the two by far.
    world.nodes.get_mut(&node("b")).unwrap().connections = 80_000;
    world.advance(2_000);
    let busy = |name| world.core.node(&node(name), world.now).unwrap().score.busy_ppm;
    assert!(busy("b") > busy("a"));
    assert_eq!(world.place("new"), "b");
    world.check();
}

#[test]
fn nobody_goes_for_want_of_room_where_a_team_comes_back_from() {
    let mut world = counting(&["full", "lost", "crowded"], 9);
    for name in ["full", "crowded"] {
        let teams = teams_of(&world, name);
        let fake = world.nodes.get_mut(&node(name)).unwrap();
        fake.connections = fake.hello.capacity.connections;
        let each = |name: &String| LargeTeam {
            team: team(name),
            connections: 1_000,
        };
        fake.large_teams = teams.iter().map(each).collect();
    }
    world.advance(2_000);
    let lost = teams_of(&world, "lost");
    for _ in 0..2 {
        assert_eq!(knock(&mut world, &lost[0]), "lost");
        world.advance(3_000);
    }
    assert_eq!(knock(&mut world, &lost[0]), "lost", "there is no better place");
    assert!(gates(&world, "lost").is_empty(), "one team proves nothing");
    let small = teams_of(&world, "full")[0].clone();
    let refused = world.try_connect(&small);
    assert!(matches!(refused, Err(Refusal::NodeFull { .. })), "{refused:?}");
    arrive(&mut world, "lost", 1);
    world.advance(2_000);
    assert_eq!(world.place(&small), "lost", "somebody got there");
    world.check();
}

#[test]
fn moves_away_from_a_node_are_paced() {
    let mut world = counting(&["a", "b"], 600);
    for stuck in teams_of(&world, "a").iter().take(5) {
        knock(&mut world, stuck);
    }
    world.advance(7_000);
    assert_eq!(gates(&world, "a"), [Gate::Unreachable]);
    let stuck = teams_of(&world, "a");
    let moved = stuck.iter().filter(|name| knock(&mut world, name) == "b").count();
    assert_eq!(moved, 100);
    world.advance(1_000);
    let moved = stuck.iter().filter(|name| world.place(name) == "b").count();
    assert_eq!(moved, 200, "and with or without a ticket");
}

#[test]
fn a_node_that_dies_again_and_again_gets_new_teams_for_a_last_resort_and_longer_each_time() {
    let mut world = pool(&["a", "b", "c"], 30);
    let mut held_back = Vec::new();
    for _ in 0..5 {
        let hello = world.hello("a");
        world.kill_with_witness("a");
        world.advance(500);
        world.add_hello(hello);
        let view = world.core.node(&node("a"), world.now).unwrap();
        held_back.push(view.distrust.map_or(0, |view| view.again_in_ms));
        let taken = (0..30).filter(|_| {
            let name = format!("x{}", world.now.as_millis());
            world.advance(10);
            world.place(&name) == "a"
        });
        let taken = taken.count();
        assert!(held_back.len() == 1 || taken == 0, "{taken} after {held_back:?}");
        world.advance(2_000);
    }
    assert_eq!(held_back, [0, 20_000, 40_000, 80_000, 160_000]);
    assert!(world.noticed(|notice| matches!(
        notice,
        Notice::Trust {
            change: TrustChange::Crashing { deaths: 5, .. },
            ..
        }
    )));
    world.advance(160_000);
    assert!(gates(&world, "a").is_empty());
    // It has lived for ten minutes: one more death is one death.
    world.advance(600_000);
    let hello = world.hello("a");
    world.kill_with_witness("a");
    world.add_hello(hello);
    assert!(gates(&world, "a").is_empty());
    world.check();
}

#[test]
fn a_loop_that_is_slower_than_names_are_forgotten_is_a_loop_too() {
    let mut world = World::with(Settings {
        forget_ms: 4_000,
        ..Settings::default()
    });
    for name in ["a", "b"] {
        world.add(name);
    }
    for _ in 0..3 {
        world.kill_with_witness("a");
        world.advance(8_000);
        assert!(world.core.node(&node("a"), world.now).is_none(), "off the books");
        world.add("a");
    }
    assert_eq!(gates(&world, "a"), [Gate::Crashing]);
    let view = world.core.node(&node("a"), world.now).unwrap().distrust.unwrap();
    assert!(view.why.contains("3 times"), "{view:?}");
}

#[test]
fn a_node_that_was_stopped_has_not_died() {
    let mut world = pool(&["a", "b"], 4);
    for _ in 0..4 {
        let link = world.nodes[&node("a")].link.unwrap();
        world.tell(Event::Bye {
            link,
            budget_ms: 25_000,
        });
        world.advance(3_000);
        world.cut("a");
        let hello = world.hello("a");
        world.add_hello(hello);
        assert!(gates(&world, "a").is_empty());
        world.advance(3_000);
    }
}

#[test]
fn two_live_nodes_with_one_url_are_told() {
    let mut world = pool(&["a"], 0);
    world.add_with("b", |hello| {
        hello.url = "ws://a:7410/teams/{team}".parse().unwrap()
    });
    assert!(world.noticed(|notice| matches!(notice, Notice::UrlShared { node: late, other, .. } if *late == node("b") && *other == node("a"))));
    let same = |world: &World, name: &str| world.core.node(&node(name), world.now).unwrap().same_url;
    assert_eq!(
        (same(&world, "a"), same(&world, "b")),
        (Some(node("b")), Some(node("a")))
    );
    // Names in the pattern tell them apart, and who is dead announces nothing.
    world.kill_with_witness("a");
    assert_eq!(same(&world, "b"), None);
    world.add_with("c", |hello| {
        hello.url = "wss://chat/n/{node}/{team}".parse().unwrap()
    });
    world.add_with("d", |hello| {
        hello.url = "wss://chat/n/{node}/{team}".parse().unwrap()
    });
    assert_eq!((same(&world, "c"), same(&world, "d")), (None, None));
}

#[test]
fn a_url_where_nothing_answers_is_told_once_and_looked_at_again_and_again() {
    let mut world = pool(&["a"], 0);
    assert_eq!(world.url_probes.len(), 1);
    for _ in 0..3 {
        url(&mut world, "a", Some("connection refused"));
        world.advance(10_000);
    }
    let told = |world: &World| {
        world
            .notices
            .iter()
            .filter(|notice| matches!(notice, Notice::UrlProbed { .. }))
            .count()
    };
    assert_eq!(told(&world), 1);
    assert_eq!(world.url_probes.len(), 4);
    assert_eq!(
        world.core.node(&node("a"), world.now).unwrap().url_answers,
        Some(false)
    );
    url(&mut world, "a", None);
    world.advance(200_000);
    assert_eq!((told(&world), world.url_probes.len()), (2, 4));
}

#[cfg(feature = "planted-bugs")]
mod planted {
    use usher_shared::planted::{Bug, plant};

    #[test]
    fn it_is_found_by_its_story() {
        plant(Some(Bug::DistrustNeverBegins));
        let told = std::panic::catch_unwind(
            super::a_node_that_nobody_arrives_at_gets_no_new_teams_and_is_tried_again,
        );
        plant(None);
        assert!(told.is_err(), "it was not found");
        super::a_node_that_nobody_arrives_at_gets_no_new_teams_and_is_tried_again();
    }
}
