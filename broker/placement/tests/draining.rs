//! Stories about nodes that are emptied.

#![allow(clippy::unwrap_used)]

mod world;

use usher_placement::{Ask, Event, MoveOutcome, Notice, Settings};
use usher_shared::link::{
    Arrival, Arrivals, Capacity, Departure, Departures, EndedBy, HoldState, HotTeam, LargeTeam, TeamEpoch,
};
use usher_shared::rest::{Cause, DrainPost, NodeState, OperationState, Pin, PinStrength, ShedPost, TeamPut};
use world::*;

#[test]
fn a_drain_leaves_no_team_behind_and_reports_it() {
    let mut world = pool(&["a", "b", "c"], 90);
    world.nodes.get_mut(&node("a")).unwrap().connections = 60;
    world.advance(1_000);
    let operation = world.drain("a");
    world.advance(20_000);
    let report = world.operation(&operation);
    assert_eq!(
        (report.state, report.teams, report.teams_moved),
        (OperationState::Done, 30, 30)
    );
    assert_eq!(report.detail, "all moved");
    assert_eq!(world.spread()["a"], 0);
    assert_eq!(
        world.core.node(&node("a"), world.now).unwrap().state,
        NodeState::Drained
    );
    for fake in [&world.nodes[&node("b")], &world.nodes[&node("c")]] {
        assert!(
            fake.held.values().all(|held| held.state == HoldState::Owned),
            "yielded, so activated"
        );
    }
    world.check();
}

#[test]
fn a_drain_keeps_to_its_rate() {
    let mut world = pool(&["a", "b", "c"], 300);
    world.nodes.get_mut(&node("a")).unwrap().connections = 1_000;
    world.advance(1_000);
    let post = DrainPost {
        rate_per_s: Some(100),
        ..DrainPost::default()
    };
    world
        .ask(Ask::Drain {
            node: node("a"),
            post,
        })
        .unwrap();
    world.advance(5_000);
    let moved = 100 - world.spread()["a"];
    assert!(
        (45..=56).contains(&moved),
        "10 connections a team, 100 a second, 5 seconds: {moved} teams"
    );
    world.advance(10_000);
    assert_eq!(world.spread()["a"], 0);
}

#[test]
fn a_deadline_raises_the_rate() {
    let mut world = pool(&["a", "b", "c"], 300);
    world.nodes.get_mut(&node("a")).unwrap().connections = 10_000;
    world.advance(1_000);
    let post = DrainPost {
        deadline_s: Some(10),
        ..DrainPost::default()
    };
    let answer = world
        .ask(Ask::Drain {
            node: node("a"),
            post,
        })
        .unwrap();
    let usher_placement::Answer::Operation(operation) = answer else {
        panic!("an operation")
    };
    assert_eq!(world.operation(&operation).rate_per_s, 1_250);
    world.advance(10_000);
    assert_eq!(world.spread()["a"], 0);
}

#[test]
fn a_client_of_a_draining_node_is_answered_with_the_new_owner_at_once() {
    let mut world = pool(&["a", "b", "c"], 90);
    world.nodes.get_mut(&node("a")).unwrap().connections = 30_000;
    world.advance(1_000);
    world.drain("a");
    assert!(!world.entries[&node("a")].direct, "its clients must ask");
    let waiting = world
        .core
        .teams(Some(&node("a")), None, 100, world.now)
        .teams
        .pop()
        .unwrap()
        .team;
    let owner = world.place(waiting.as_str());
    assert_ne!(owner, "a");
    assert_eq!(
        world.core.why(&waiting, world.now).unwrap().decisions[0].cause,
        Cause::Drain
    );
    world.check();
}

#[test]
fn a_drain_that_the_rest_cannot_hold_is_refused_with_figures() {
    let mut world = World::new();
    world.add("a");
    for serial in 0..10 {
        world.place(&format!("t{serial}"));
    }
    world.add_with("b", |hello| {
        hello.capacity = Capacity {
            teams: 4,
            connections: 100,
        }
    });
    world.advance(1_000);
    let refused = world
        .ask(Ask::Drain {
            node: node("a"),
            post: Default::default(),
        })
        .unwrap_err();
    assert_eq!(
        refused.to_string(),
        "the other nodes have room for 4 of 10 teams; add a node, or send force"
    );
    let force = DrainPost {
        force: true,
        ..DrainPost::default()
    };
    world
        .ask(Ask::Drain {
            node: node("a"),
            post: force,
        })
        .unwrap();
    world.advance(5_000);
    assert_eq!(world.spread()["b"], 4, "as many as fit");
    assert_eq!(world.spread()["a"], 6, "the rest stays served");
    assert_eq!(
        world.core.operations(world.now)[0].detail,
        "waiting for a node that can take its teams"
    );
    world.add("c");
    world.advance(10_000);
    assert_eq!(world.spread()["a"], 0);
    world.check();
}

#[test]
fn draining_twice_is_one_operation() {
    let mut world = pool(&["a", "b"], 10);
    world.nodes.get_mut(&node("a")).unwrap().connections = 10_000;
    world.advance(1_000);
    assert_eq!(world.drain("a"), world.drain("a"));
}

#[test]
fn undrain_ends_the_drain_and_lets_teams_come_again() {
    let mut world = pool(&["a", "b"], 100);
    world.nodes.get_mut(&node("a")).unwrap().connections = 10_000;
    world.advance(1_000);
    let operation = world.drain("a");
    world.advance(1_000);
    world.ask(Ask::Undrain { node: node("a") }).unwrap();
    let report = world.operation(&operation);
    assert_eq!(report.state, OperationState::Cancelled);
    let left = world.spread()["a"];
    assert!(left > 0);
    world.advance(5_000);
    assert_eq!(world.spread()["a"], left);
    assert!(world.entries[&node("a")].direct);
    assert_eq!(
        world.core.node(&node("a"), world.now).unwrap().state,
        NodeState::Ready
    );
    world.check();
}

#[test]
fn a_shed_takes_the_busiest_teams_first_and_then_the_largest() {
    let mut world = pool(&["a", "b"], 40);
    let of_a: Vec<String> = world.nodes[&node("a")]
        .held
        .keys()
        .map(ToString::to_string)
        .collect();
    let (hot, large) = (&of_a[of_a.len() - 1], &of_a[of_a.len() - 2]);
    let fake = world.nodes.get_mut(&node("a")).unwrap();
    fake.hot_teams = vec![HotTeam {
        team: team(hot),
        connections: 1,
        frames_per_s: 900,
    }];
    fake.large_teams = vec![LargeTeam {
        team: team(large),
        connections: 50,
    }];
    world.advance(1_000);
    let post = ShedPost {
        teams: Some(2),
        ..ShedPost::default()
    };
    let shed = Ask::Shed {
        node: node("a"),
        post,
    };
    world.ask(shed).unwrap();
    world.advance(10_000);
    for name in &of_a {
        let goes = name == hot || name == large;
        assert_eq!(
            world.owner(name).as_deref(),
            Some(if goes { "b" } else { "a" }),
            "{name}"
        );
    }
}

#[test]
fn what_leaves_after_an_undrain_counts_until_the_last_of_its_teams_has_left_and_no_longer() {
    let mut world = counting_pool(&["a", "b"], 20);
    world.advance(1_000);
    let crowded = world.core.teams(Some(&node("a")), None, 1, world.now).teams[0]
        .team
        .to_string();
    world.crowd(&crowded, 40);
    world.advance(1_000);
    let post = DrainPost {
        rate_per_s: Some(10),
        force: true,
        ..DrainPost::default()
    };
    let operation = world.drain_at("a", post);
    let leaving = |world: &World| !world.nodes[&node("a")].leaving.is_empty();
    while !leaving(&world) {
        world.advance(20);
    }
    let epoch = world.epoch(&crowded);
    world.ask(Ask::Undrain { node: node("a") }).unwrap();
    let at_its_end = world.operation(&operation);
    assert_eq!(at_its_end.state, OperationState::Cancelled);
    while leaving(&world) {
        world.advance(100);
    }
    let over = world.operation(&operation);
    assert_eq!((over.connections_moved, over.teams_leaving), (40, 0));
    assert!(at_its_end.connections_moved < 40);
    // A report that comes late, or again.
    let connection = world.connection("a", 99);
    let departure = Departure {
        team: team(&crowded),
        epoch,
        connection,
        by: EndedBy::Slot,
        age_ms: Some(0),
    };
    let link = world.nodes[&node("a")].link.unwrap();
    world.tell(Event::Left {
        link,
        departures: Departures {
            connections: vec![departure],
        },
    });
    assert_eq!(world.operation(&operation), over);
    world.check();
}

#[test]
fn a_shed_gives_away_what_was_asked_and_no_more() {
    let mut world = pool(&["a", "b"], 100);
    let post = ShedPost {
        percent: Some(40),
        ..ShedPost::default()
    };
    world
        .ask(Ask::Shed {
            node: node("a"),
            post,
        })
        .unwrap();
    world.advance(10_000);
    assert_eq!((world.spread()["a"], world.spread()["b"]), (30, 70));
    assert_eq!(
        world.core.node(&node("a"), world.now).unwrap().state,
        NodeState::Ready
    );
    for bad in [
        ShedPost::default(),
        ShedPost {
            teams: Some(0),
            ..ShedPost::default()
        },
        ShedPost {
            percent: Some(101),
            ..ShedPost::default()
        },
        ShedPost {
            percent: Some(1),
            teams: Some(1),
            ..ShedPost::default()
        },
    ] {
        assert_eq!(
            world
                .ask(Ask::Shed {
                    node: node("a"),
                    post: bad
                })
                .unwrap_err()
                .code(),
            "out_of_range"
        );
    }
    world.check();
}

#[test]
fn a_target_that_does_not_answer_is_replaced_and_its_epoch_never_used_again() {
    let mut world = pool(&["a", "b", "c"], 3);
    let owner = world.owner("t0").unwrap();
    for fake in world.nodes.values_mut() {
        fake.prepares = false;
    }
    world.drain(&owner);
    world.advance(2_000);
    assert_eq!(world.owner("t0"), Some(owner.clone()), "nothing changed yet");
    for fake in world.nodes.values_mut() {
        fake.prepares = true;
    }
    world.advance(5_000);
    assert_ne!(world.owner("t0"), Some(owner));
    assert!(world.noticed(|notice| matches!(
        notice,
        Notice::Moved {
            outcome: MoveOutcome::Failed,
            ..
        }
    )));
    world.check();
}

#[test]
fn a_target_that_dies_while_it_makes_room_changes_nothing_but_the_target() {
    let mut world = pool(&["a", "b", "c"], 3);
    let owner = world.owner("t0").unwrap();
    for fake in world.nodes.values_mut() {
        fake.prepares = false;
    }
    world.drain(&owner);
    let others: Vec<String> = ["a", "b", "c"]
        .map(str::to_owned)
        .into_iter()
        .filter(|name| *name != owner)
        .collect();
    let target = others
        .iter()
        .find(|name| world.nodes[&node(name)].held.contains_key(&team("t0")))
        .cloned()
        .unwrap();
    for fake in world.nodes.values_mut() {
        fake.prepares = true;
    }
    world.kill_with_witness(&target);
    world.advance(5_000);
    let new = world.owner("t0").unwrap();
    assert!(new != owner && new != target);
    world.check();
}

#[test]
fn connections_that_never_leave_are_given_up_at_the_deadline() {
    let mut world = pool(&["a", "b"], 2);
    world.nodes.get_mut(&node("a")).unwrap().releases = false;
    let operation = world.drain("a");
    world.advance(10_000);
    assert_eq!(world.operation(&operation).state, OperationState::Running);
    world.advance(12_000);
    assert_eq!(world.operation(&operation).state, OperationState::Done);
    assert!(world.noticed(|notice| matches!(
        notice,
        Notice::Moved {
            outcome: MoveOutcome::TimedOut,
            ..
        }
    )));
}

#[test]
fn gaps_and_arrivals_of_a_drain_are_measured() {
    let mut world = pool(&["a", "b"], 2);
    let moved = world.core.teams(Some(&node("a")), None, 10, world.now).teams[0]
        .team
        .clone();
    world.nodes.get_mut(&node("a")).unwrap().releases = false;
    let operation = world.drain("a");
    world.advance(500);
    let epoch = world.core.team(&moved, world.now).unwrap().epoch;
    let (old, new) = (world.connection("a", 1), world.connection("b", 1));
    let (link_a, link_b) = (
        world.nodes[&node("a")].link.unwrap(),
        world.nodes[&node("b")].link.unwrap(),
    );
    let departure = Departure {
        team: moved.clone(),
        epoch,
        connection: old,
        by: EndedBy::Slot,
        age_ms: None,
    };
    world.tell(Event::Left {
        link: link_a,
        departures: Departures {
            connections: vec![departure],
        },
    });
    world.now = world.now.plus(120);
    let arrival = Arrival {
        team: moved.clone(),
        epoch,
        connection: new,
        from: Some(old),
        age_ms: None,
    };
    world.tell(Event::Arrived {
        link: link_b,
        arrivals: Arrivals {
            connections: vec![arrival],
        },
    });
    world.tell(Event::Released {
        link: link_a,
        held: TeamEpoch { team: moved, epoch },
    });
    world.advance(1_000);
    let report = world.operation(&operation);
    assert_eq!(report.state, OperationState::Done);
    assert_eq!(
        (
            report.connections_moved,
            report.connections_back,
            report.connections_matched
        ),
        (1, 1, 1)
    );
    assert_eq!(report.gap_max_ms, Some(120));
}

#[test]
fn a_drain_goes_on_after_the_broker_restarts() {
    let mut world = pool(&["a", "b", "c"], 300);
    world.nodes.get_mut(&node("a")).unwrap().connections = 2_000;
    world.advance(1_000);
    let operation = world.drain("a");
    world.advance(2_000);
    let left = world.spread()["a"];
    assert!(left > 0 && left < 100);
    world.restart_broker(Settings::default());
    for name in ["a", "b", "c"] {
        world.connect(name);
    }
    world.advance(30_000);
    assert_eq!(world.spread()["a"], 0);
    assert_eq!(world.operation(&operation).state, OperationState::Done);
    world.check();
}

#[test]
fn a_node_that_says_bye_is_drained_and_then_forgotten() {
    let mut world = pool(&["a", "b"], 20);
    let link = world.nodes[&node("a")].link.unwrap();
    world.tell(Event::Bye {
        link,
        budget_ms: 25_000,
    });
    world.advance(3_000);
    assert_eq!(world.spread()["a"], 0);
    assert_eq!(
        world.ask(Ask::Undrain { node: node("a") }).unwrap_err().code(),
        "wrong_state"
    );
    world.cut("a");
    assert!(world.core.node(&node("a"), world.now).is_none());
    assert!(!world.store.nodes.contains_key(&node("a")));
    world.check();
}

#[test]
fn the_next_process_of_a_name_is_not_emptied_by_the_drain_of_the_one_before() {
    let mut world = counting_pool(&["a", "b"], 20);
    let crowded = world.core.teams(Some(&node("a")), None, 1, world.now).teams[0]
        .team
        .to_string();
    world.crowd(&crowded, 50);
    world.advance(2_000);
    let hello = world.hello("a");
    let link = world.nodes[&node("a")].link.unwrap();
    world.tell(Event::Bye {
        link,
        budget_ms: 25_000,
    });
    while world.spread()["a"] > 0 || !world.nodes[&node("a")].leaving.is_empty() {
        world.advance(20);
    }
    let running = world.core.operations(world.now).remove(0);
    assert_eq!(running.state, OperationState::Running, "some are on their way");
    world.cut("a");
    assert!(world.core.node(&node("a"), world.now).is_none());
    world.add_hello(hello);
    let drain = world.operation(&running.operation);
    assert_eq!(drain.state, OperationState::Done, "{drain:?}");
    let new: Vec<String> = (0..10).map(|serial| format!("new{serial}")).collect();
    let there = new.iter().filter(|name| world.place(name) == "a").count();
    world.advance(5_000);
    let stay = new
        .iter()
        .filter(|name| world.owner(name).as_deref() == Some("a"));
    assert!(there > 0 && stay.count() == there);
    world.check();
}

#[test]
fn the_last_node_that_says_bye_keeps_its_teams_until_another_comes() {
    let mut world = pool(&["a"], 5);
    let link = world.nodes[&node("a")].link.unwrap();
    world.tell(Event::Bye {
        link,
        budget_ms: 25_000,
    });
    world.advance(2_000);
    assert_eq!(world.place("t0"), "a");
    assert!(world.try_connect("new").is_err());
    world.add("b");
    world.advance(3_000);
    assert_eq!(world.spread()["b"], 5);
}

#[test]
fn a_node_that_dies_while_it_is_drained_fails_over_the_rest() {
    let mut world = pool(&["a", "b", "c"], 90);
    world.nodes.get_mut(&node("a")).unwrap().connections = 20_000;
    world.advance(1_000);
    let operation = world.drain("a");
    world.advance(500);
    world.kill_with_witness("a");
    assert_eq!(world.spread()["b"] + world.spread()["c"], 90);
    let report = world.operation(&operation);
    assert_eq!(report.state, OperationState::Done);
    assert!(report.detail.contains("died"), "{}", report.detail);
    world.check();
}

#[test]
fn cordon_takes_no_new_teams_and_keeps_the_old() {
    let mut world = pool(&["a", "b"], 10);
    world.ask(Ask::Cordon { node: node("a") }).unwrap();
    let before = world.spread()["a"];
    for serial in 10..20 {
        assert_eq!(world.place(&format!("t{serial}")), "b");
    }
    assert_eq!(world.spread()["a"], before);
    world.ask(Ask::Uncordon { node: node("a") }).unwrap();
    assert_eq!(world.place("u"), "a");
}

#[test]
fn a_forced_drain_leaves_hard_pinned_teams_where_they_are_also_when_their_clients_ask() {
    let mut world = pool(&["a", "b"], 10);
    let pin = Pin {
        node: node("a"),
        seconds: 600,
        strength: PinStrength::Hard,
    };
    let put = TeamPut {
        pin: Some(pin),
        ..TeamPut::default()
    };
    world.put("held", put).unwrap();
    world.nodes.get_mut(&node("a")).unwrap().connections = 10_000;
    world.advance(1_000);
    let force = DrainPost {
        force: true,
        ..DrainPost::default()
    };
    world
        .ask(Ask::Drain {
            node: node("a"),
            post: force,
        })
        .unwrap();
    assert_eq!(world.place("held"), "a");
    world.advance(120_000);
    assert_eq!(world.spread()["a"], 1);
    assert_eq!(
        world.core.operations(world.now)[0].detail,
        "not empty: team held is pinned hard to the node and stays"
    );
    world.check();
}
