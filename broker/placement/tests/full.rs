//! Stories about nodes that are full of connections.

#![allow(clippy::unwrap_used)]

mod world;

use usher_placement::{Ask, Notice, Refusal};
use usher_shared::link::LargeTeam;
use usher_shared::rest::{Cause, Gate, OperationKind, OperationState, Pin, PinStrength, TeamPut};
use world::*;

/// Two nodes of so much capacity, the first full with teams of these connections.
fn full_beside(capacity: u32, teams: &[(&str, u32)], other: u32) -> World {
    let mut world = World::new();
    world.add_with("full", |hello| hello.capacity.connections = capacity);
    for (name, _) in teams {
        world.place(name);
    }
    world.add_with("other", |hello| hello.capacity.connections = other);
    fill(&mut world, "full", teams);
    world.advance(2_100);
    world
}

fn fill(world: &mut World, name: &str, teams: &[(&str, u32)]) {
    let fake = world.nodes.get_mut(&node(name)).unwrap();
    fake.connections = teams.iter().map(|(_, connections)| connections).sum();
    fake.large_teams = teams
        .iter()
        .map(|(name, connections)| LargeTeam {
            team: team(name),
            connections: *connections,
        })
        .collect();
}

fn reliefs(world: &World) -> Vec<OperationState> {
    let all = world.core.operations(world.now).into_iter();
    all.filter(|operation| operation.kind == OperationKind::Relief)
        .map(|operation| operation.state)
        .collect()
}

#[test]
fn a_team_whose_node_is_full_moves_with_the_client_that_asks() {
    let mut world = full_beside(100, &[("large", 60), ("small", 40)], 100);
    assert!(world.noticed(|notice| matches!(
        notice,
        Notice::Full {
            by: Some(Gate::FullConnections),
            connections: 100,
            ..
        }
    )));
    assert!(
        !world.entries[&node("full")].direct,
        "clients ask the core meanwhile"
    );
    assert_eq!(world.place("small"), "other");
    let why = world.core.why(&team("small"), world.now).unwrap();
    assert_eq!(why.decisions[0].cause, Cause::Full);
    assert_eq!(why.decisions[0].from, Some(node("full")));
    assert_eq!(reliefs(&world), [OperationState::Running]);
    world.advance(8_000);
    assert_eq!(reliefs(&world), [OperationState::Done]);
    assert_eq!(world.place("large"), "full", "there is room now");
    assert!(world.entries[&node("full")].direct);
    assert!(world.noticed(|notice| matches!(notice, Notice::Full { by: None, .. })));
    world.check();
}

#[test]
fn a_client_that_was_just_refused_counts_before_the_next_report_does() {
    let mut world = full_beside(100, &[("large", 59), ("small", 40)], 100);
    assert_eq!(world.place("small"), "full", "one may still come");
    let route = world.routes[&team("small")].clone();
    let ask = Ask::Connect {
        team: team("small"),
        may_create: true,
        region: None,
        knock: Some(usher_placement::Knock {
            node: node("full"),
            incarnation: world.entries[&node("full")].incarnation,
            epoch: route.epoch,
        }),
    };
    world.ask(ask).unwrap();
    assert_eq!(world.owner("small").as_deref(), Some("other"));
}

#[test]
fn for_a_team_with_most_of_the_connections_others_make_room() {
    let teams: Vec<(String, u32)> = (0..20).map(|serial| (format!("t{serial}"), 2)).collect();
    let mut sizes: Vec<(&str, u32)> = teams.iter().map(|(name, size)| (name.as_str(), *size)).collect();
    sizes.push(("large", 60));
    let mut world = full_beside(100, &sizes, 100);
    let refused = world.try_connect("large").unwrap_err();
    assert_eq!(refused.code(), "node_full");
    assert!(
        refused
            .to_string()
            .contains("other teams are moving out of its way"),
        "{refused}"
    );
    assert!((1_000..=10_000).contains(&refused.retry_ms().unwrap()));
    world.advance(100);
    assert_eq!(
        world.spread()["other"],
        5,
        "a tenth of the connections, and no more"
    );
    world.advance(8_000);
    assert_eq!(world.place("large"), "full");
    assert_eq!(reliefs(&world), [OperationState::Done]);
    world.check();
}

#[test]
fn many_teams_of_a_full_node_move_at_a_pace_and_the_others_are_told_when_to_come_back() {
    let teams: Vec<(String, u32)> = (0..10).map(|serial| (format!("t{serial}"), 100)).collect();
    let sizes: Vec<(&str, u32)> = teams.iter().map(|(name, size)| (name.as_str(), *size)).collect();
    let mut world = full_beside(1_000, &sizes, 2_000);
    let mut refused = 0;
    for (name, _) in &sizes {
        if let Err(refusal) = world.try_connect(name) {
            assert_eq!(refusal.code(), "node_full");
            assert!((1_000..=10_000).contains(&refusal.retry_ms().unwrap()));
            refused += 1;
        }
    }
    assert_eq!(
        refused, 9,
        "a bucket of 200 connections a second lets one of 100 go at once"
    );
    for _ in 0..20 {
        // Whoever is there is replaced at once: it stays full.
        fill(&mut world, "full", &sizes);
        world.advance(1_000);
        for (name, _) in &sizes {
            let _ = world.try_connect(name);
        }
    }
    assert!(world.spread()["other"] >= 9, "{:?}", world.spread());
    assert_eq!(reliefs(&world).len(), 1, "one operation for all of them");
}

#[test]
fn where_no_node_has_room_the_refusal_says_so_and_nothing_moves() {
    // The other could take a client or two, and then refuse it: a team moves for good or not at all.
    for (capacity, room) in [(100, 100), (100, 45), (0, 0)] {
        let mut world = full_beside(100, &[("large", 60), ("small", 40)], capacity);
        world.nodes.get_mut(&node("other")).unwrap().connections = capacity - room.min(capacity);
        if room == 100 {
            world.nodes.get_mut(&node("other")).unwrap().connections = 100;
        }
        world.advance(1_000);
        for _ in 0..5 {
            for name in ["large", "small"] {
                let refused = world.try_connect(name).unwrap_err();
                assert!(matches!(refused, Refusal::NodeFull { .. }), "{refused:?}");
                assert!(
                    refused.to_string().contains("no other node has room"),
                    "{refused}"
                );
            }
            world.advance(2_000);
        }
        assert_eq!(world.spread()["other"], 0);
        assert!(
            reliefs(&world).is_empty(),
            "a history full of nothing tells nobody anything"
        );
    }
}

#[test]
fn a_team_that_is_pinned_hard_stays_and_others_make_room() {
    let mut world = World::new();
    world.add_with("full", |hello| hello.capacity.connections = 100);
    let put = TeamPut {
        pin: Some(Pin {
            node: node("full"),
            seconds: 3_600,
            strength: PinStrength::Hard,
        }),
        ..TeamPut::default()
    };
    world.put("pinned", put).unwrap();
    world.place("free");
    world.add("other");
    fill(&mut world, "full", &[("pinned", 60), ("free", 40)]);
    world.advance(2_100);
    assert_eq!(world.try_connect("pinned").unwrap_err().code(), "node_full");
    world.advance(8_000);
    assert_eq!(world.owner("free").as_deref(), Some("other"));
    assert_eq!(world.place("pinned"), "full");
}

#[test]
fn a_node_without_descriptors_is_as_full_as_one_without_capacity() {
    let mut world = full_beside(10_000, &[("large", 60), ("small", 40)], 10_000);
    assert_eq!(world.place("small"), "full");
    world.nodes.get_mut(&node("full")).unwrap().descriptors_left = 10;
    world.advance(1_000);
    assert_eq!(world.place("small"), "other");
}

#[test]
fn a_team_that_is_drained_goes_where_its_connections_fit() {
    let mut world = World::new();
    world.add("from");
    world.place("large");
    world.add_with("small", |hello| hello.capacity.connections = 200);
    world.add("roomy");
    for serial in 0..40 {
        let put = TeamPut {
            pin: Some(Pin {
                node: node("roomy"),
                seconds: 1_000,
                strength: PinStrength::Soft,
            }),
            ..TeamPut::default()
        };
        world.put(&format!("r{serial}"), put).unwrap();
    }
    fill(&mut world, "from", &[("large", 500)]);
    world.advance(2_100);
    world
        .ask(Ask::Drain {
            node: node("from"),
            post: Default::default(),
        })
        .unwrap();
    world.advance(2_000);
    assert_eq!(
        world.owner("large").as_deref(),
        Some("roomy"),
        "however much busier it is"
    );
}
