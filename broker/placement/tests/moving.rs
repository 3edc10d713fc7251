//! Stories about connections that move: at which rate, whether they arrive, and what the report says.

#![allow(clippy::unwrap_used)]

mod world;

use usher_placement::{Ask, Event, Kept, Knock, Notice, Settings};
use usher_shared::link::{Arrival, Arrivals, Departure, Departures, EndedBy, PACED_MOVES};
use usher_shared::rest::{
    DrainPost, NodeState, OperationKind, OperationState, Pin, PinStrength, ShedPost, TeamPut,
};
use world::*;

fn at_rate(rate: u32) -> DrainPost {
    DrainPost {
        rate_per_s: Some(rate),
        ..DrainPost::default()
    }
}

fn forced() -> DrainPost {
    DrainPost {
        force: true,
        ..DrainPost::default()
    }
}

/// Teams of node a.
fn teams_of_a(world: &World) -> Vec<String> {
    let page = world.core.teams(Some(&node("a")), None, 1_000, world.now);
    page.teams.iter().map(|view| view.team.to_string()).collect()
}

/// A node whose teams have as many connections as `crowd` says for each in turn.
fn crowded(teams: u32, crowd: impl Fn(usize) -> u32) -> World {
    let mut world = counting_pool(&["a", "b", "c"], 3 * teams);
    for (at, team) in teams_of_a(&world).iter().enumerate() {
        world.crowd(team, crowd(at));
    }
    world.advance(1_000);
    world
}

fn every_second_is_the_rate(world: &mut World, rate: u32) {
    let began = world.now;
    let operation = world.drain_at("a", at_rate(rate));
    let view = world.operation(&operation);
    world.advance(view.estimate_ms + 10_000);
    let report = world.operation(&operation);
    assert_eq!(
        (report.state, report.connections_to_go),
        (OperationState::Done, 0)
    );
    let seconds: Vec<u64> = world
        .departures
        .iter()
        .map(|(at, _)| at.since(began) / 1_000)
        .collect();
    let last = *seconds.last().unwrap();
    for second in 1..last {
        let gone = seconds.iter().filter(|at| **at == second).count();
        let (gone, rate) = (gone as f64, f64::from(rate));
        assert!(
            (rate * 0.9 - 1.0..=rate * 1.1 + 1.0).contains(&gone),
            "{gone} in second {second} of {last}, at {rate}"
        );
    }
    let took = report.elapsed_ms.abs_diff(view.estimate_ms);
    assert!(
        took < view.estimate_ms / 10 + 1_500,
        "{report:?} against {}",
        view.estimate_ms
    );
}

fn a_rate_is_a_rate_with_a_large_team_among_many_small_ones() {
    let mut world = crowded(100, |at| if at == 50 { 300 } else { 1 });
    every_second_is_the_rate(&mut world, 10);
}

fn a_drain_that_nobody_survives_waits_with_most_connections_still_there() {
    let mut world = crowded(100, |_| 2);
    world.returning_percent = 0;
    let operation = world.drain_at("a", at_rate(10));
    world.advance(33_000);
    let report = world.operation(&operation);
    assert!(report.waits && report.connections_moved < 100, "{report:?}");
    assert!(report.detail.starts_with("waiting: "), "{}", report.detail);
    assert!(world.noticed(|notice| matches!(notice, Notice::OperationWaits { .. })));
}

fn a_death_counts_the_teams_that_their_clients_moved_before_it() {
    let mut world = counting_pool(&["a", "b", "c"], 30);
    let teams = teams_of_a(&world);
    for team in &teams {
        world.crowd(team, 3);
    }
    world.advance(1_000);
    let incarnation = world.nodes[&node("a")].hello.incarnation;
    world.nodes.get_mut(&node("a")).unwrap().beats = false;
    world.advance(3_000);
    for team_name in &teams[..4] {
        let epoch = world.epoch(team_name);
        let knock = Knock {
            node: node("a"),
            incarnation,
            epoch,
        };
        let ask = Ask::Connect {
            team: team(team_name),
            may_create: true,
            region: None,
            knock: Some(knock),
        };
        world.ask(ask).unwrap();
    }
    let running = world.core.operations(world.now);
    assert_eq!((running.len(), running[0].teams_moved), (1, 4), "{running:?}");
    world.kill_with_witness("a");
    for team_name in &teams {
        for _ in 0..3 {
            arrive(&mut world, team_name, None);
        }
    }
    world.advance(1_000);
    let operations = world.core.operations(world.now);
    let [report] = &operations[..] else {
        panic!("one operation: {operations:?}")
    };
    assert_eq!(report.kind, OperationKind::Failover);
    assert_eq!((report.teams, report.teams_moved), (10, 10), "{report:?}");
    assert_eq!(
        (
            report.connections,
            report.connections_back,
            report.connections_not_back
        ),
        (30, 30, 0)
    );
    assert_eq!(report.state, OperationState::Done);
}

fn arrive(world: &mut World, team_name: &str, from: Option<usher_shared::id::ConnectionId>) {
    let owner = world.owner(team_name).unwrap();
    let epoch = world.epoch(team_name);
    let link = world.nodes[&node(&owner)].link.unwrap();
    let arrival = Arrival {
        team: team(team_name),
        epoch,
        connection: world.connection(&owner, 99),
        from,
        age_ms: Some(0),
    };
    let connections = vec![arrival];
    world.tell(Event::Arrived {
        link,
        arrivals: Arrivals { connections },
    });
}

fn a_restart_forgets_no_more_than_the_last_moment() {
    let mut world = crowded(30, |_| 2);
    let operation = world.drain_at("a", at_rate(10));
    world.advance(3_000);
    let before = world.operation(&operation);
    assert!(
        before.teams_moved > 10 && before.connections_moved > 20,
        "{before:?}"
    );
    world.restart_broker(Settings::default());
    for name in ["a", "b", "c"] {
        world.connect(name);
    }
    world.advance(20_000);
    let report = world.operation(&operation);
    assert_eq!((report.teams, report.teams_moved), (30, 30), "{report:?}");
    let lost = 60 - report.connections_moved;
    assert!(
        lost <= 10,
        "at 10 a second, half a second between two writes: {report:?}"
    );
    assert_eq!(report.connections, report.connections_moved);
}

fn a_client_that_opens_the_new_connection_first_has_no_gap() {
    let mut world = counting_pool(&["a", "b"], 2);
    let moved = teams_of_a(&world).remove(0);
    world.nodes.get_mut(&node("a")).unwrap().releases = false;
    let operation = world.drain("a");
    world.advance(500);
    let epoch = world.epoch(&moved);
    let old = world.connection("a", 1);
    let link = world.nodes[&node("a")].link.unwrap();
    // The old node's report is quick, the new one's waits for its turn.
    let departure = Departure {
        team: team(&moved),
        epoch,
        connection: old,
        by: EndedBy::Client,
        age_ms: Some(0),
    };
    world.tell(Event::Left {
        link,
        departures: Departures {
            connections: vec![departure],
        },
    });
    world.now = world.now.plus(70);
    let link = world.nodes[&node("b")].link.unwrap();
    let arrival = Arrival {
        team: team(&moved),
        epoch,
        connection: world.connection("b", 1),
        from: Some(old),
        age_ms: Some(90),
    };
    world.tell(Event::Arrived {
        link,
        arrivals: Arrivals {
            connections: vec![arrival],
        },
    });
    let report = world.operation(&operation);
    assert_eq!((report.gap_max_ms, report.gap_error_ms), (Some(0), Some(0)));
    assert!(world.noticed(|notice| *notice
        == Notice::Departed {
            by: EndedBy::Client,
            connections: 1
        }));
}

#[test]
fn the_rate_holds() {
    a_rate_is_a_rate_with_a_large_team_among_many_small_ones();
}

#[test]
fn the_rate_holds_for_small_teams_and_for_one_large_one() {
    every_second_is_the_rate(&mut crowded(100, |_| 1), 10);
    every_second_is_the_rate(&mut crowded(1, |_| 600), 20);
    every_second_is_the_rate(&mut crowded(40, |at| if at % 2 == 0 { 0 } else { 5 }), 10);
}

#[test]
fn what_does_not_arrive_is_waited_for() {
    a_drain_that_nobody_survives_waits_with_most_connections_still_there();
}

#[test]
fn a_waiting_drain_goes_on_a_little_when_it_is_asked_again_and_to_the_end_with_force() {
    let mut world = crowded(100, |_| 2);
    world.returning_percent = 0;
    let operation = world.drain("a");
    world.advance(10_000);
    let first = world.operation(&operation);
    assert!(first.waits && first.connections_moved <= 60, "{first:?}");
    assert_eq!(world.drain("a"), operation);
    world.advance(10_000);
    let second = world.operation(&operation);
    assert!(second.waits, "{second:?}");
    assert!(
        second.connections_moved > first.connections_moved + 30,
        "{second:?}"
    );
    assert!(second.connections_moved <= 120, "{second:?}");
    assert_eq!(world.drain_at("a", forced()), operation);
    world.advance(20_000);
    let report = world.operation(&operation);
    assert_eq!(
        (report.state, report.connections_moved),
        (OperationState::Done, 200)
    );
    assert_eq!(report.connections_not_back, 200);
}

#[test]
fn a_large_team_on_a_node_that_nobody_reaches_stays_where_it_is() {
    for rate in [None, Some(20)] {
        let mut world = crowded(1, |_| 600);
        world.returning_percent = 0;
        let operation = world.drain_at(
            "a",
            DrainPost {
                rate_per_s: rate,
                ..DrainPost::default()
            },
        );
        world.advance(60_000);
        let report = world.operation(&operation);
        assert!(report.waits && report.connections_moved < 300, "{report:?}");
        assert_eq!(report.state, OperationState::Running);
        world.drain_at("a", forced());
        world.advance(60_000);
        assert_eq!(world.operation(&operation).connections_moved, 600);
    }
}

#[test]
fn a_large_team_goes_together_once_its_first_have_arrived() {
    let mut world = crowded(1, |_| 2_000);
    let began = world.now;
    let operation = world.drain("a");
    world.advance(10_000);
    let report = world.operation(&operation);
    assert_eq!(
        (report.state, report.connections_back),
        (OperationState::Done, 2_000)
    );
    let last = world.departures.last().unwrap().0;
    assert!(
        last.since(began) < 1_000,
        "cut in two for {} ms",
        last.since(began)
    );
}

#[test]
fn a_drain_is_not_held_up_by_clients_that_never_come_back_or_take_their_time() {
    let mut world = crowded(200, |_| 2);
    world.returning_percent = 80;
    world.return_after_ms = 4_000;
    let operation = world.drain_at("a", at_rate(20));
    world.advance(35_000);
    let report = world.operation(&operation);
    assert_eq!(
        (report.state, report.connections_moved),
        (OperationState::Done, 400)
    );
    assert!(!world.noticed(|notice| matches!(notice, Notice::OperationWaits { .. })));
    assert_eq!(report.connections_back + report.connections_not_back, 400);
}

#[test]
fn a_stopping_node_does_not_wait_beyond_its_time() {
    let mut world = crowded(100, |_| 2);
    world.returning_percent = 0;
    let link = world.nodes[&node("a")].link.unwrap();
    world.tell(Event::Bye {
        link,
        budget_ms: 25_000,
    });
    world.advance(15_000);
    let operation = world.core.operations(world.now).remove(0);
    assert!(
        operation.waits && operation.connections_moved < 100,
        "{operation:?}"
    );
    assert!(operation.detail.contains("stop budget"), "{}", operation.detail);
    world.advance(7_000);
    assert_eq!(world.spread()["a"], 0);
    assert_eq!(world.operation(&operation.operation).connections_moved, 200);
}

#[test]
fn another_rate_is_obeyed_whichever_way_it_goes() {
    let mut world = crowded(300, |_| 1);
    let operation = world.drain_at("a", at_rate(100));
    world.advance(1_000);
    assert_eq!(world.drain_at("a", at_rate(5)), operation);
    assert_eq!(world.operation(&operation).rate_per_s, 5);
    let before = world.operation(&operation).connections_moved;
    world.advance(10_000);
    let slowly = world.operation(&operation).connections_moved - before;
    assert!((45..=56).contains(&slowly), "{slowly} in 10 s at 5 a second");
    world.drain_at("a", at_rate(1_000));
    world.advance(6_000);
    assert_eq!(world.operation(&operation).state, OperationState::Done);
}

#[test]
fn a_drain_that_is_done_names_what_stays() {
    let mut world = counting_pool(&["a", "b"], 4);
    let pin = Pin {
        node: node("a"),
        seconds: 600,
        strength: PinStrength::Hard,
    };
    let put = TeamPut {
        pin: Some(pin),
        ..TeamPut::default()
    };
    world.put("hp", put).unwrap();
    let operation = world.drain_at("a", forced());
    world.advance(5_000);
    let report = world.operation(&operation);
    assert_eq!(report.state, OperationState::Done);
    assert_eq!((report.teams_kept, report.teams_to_go), (1, 0));
    assert_eq!(report.teams_kept_named, [team("hp")]);
    assert_eq!(
        report.detail,
        "not empty: team hp is pinned hard to the node and stays"
    );
}

#[test]
fn a_death_counts_knocked_teams() {
    a_death_counts_the_teams_that_their_clients_moved_before_it();
}

#[test]
fn a_death_of_which_all_teams_were_moved_by_their_clients_has_its_report() {
    let mut world = counting_pool(&["a", "b"], 2);
    let name = teams_of_a(&world).remove(0);
    world.crowd(&name, 2);
    world.advance(1_000);
    let fake = world.nodes[&node("a")].hello.clone();
    world.cut("a");
    let knock = Knock {
        node: node("a"),
        incarnation: fake.incarnation,
        epoch: world.epoch(&name),
    };
    let ask = Ask::Connect {
        team: team(&name),
        may_create: true,
        region: None,
        knock: Some(knock),
    };
    world.ask(ask).unwrap();
    world.nodes.remove(&node("a"));
    world.tell(Event::Probed {
        node: node("a"),
        incarnation: fake.incarnation,
        outcome: usher_placement::ProbeOutcome::Refused,
    });
    let report = world.core.operations(world.now).remove(0);
    assert_eq!(
        (report.kind, report.teams, report.teams_moved),
        (OperationKind::Failover, 1, 1)
    );
    assert_eq!(report.connections, 2);
}

#[test]
fn a_silent_node_that_comes_back_ends_its_failover_without_a_death() {
    let mut world = counting_pool(&["a", "b"], 4);
    let name = teams_of_a(&world).remove(0);
    world.nodes.get_mut(&node("a")).unwrap().beats = false;
    world.advance(3_000);
    let knock = Knock {
        node: node("a"),
        incarnation: world.nodes[&node("a")].hello.incarnation,
        epoch: world.epoch(&name),
    };
    let ask = Ask::Connect {
        team: team(&name),
        may_create: true,
        region: None,
        knock: Some(knock),
    };
    world.ask(ask).unwrap();
    world.nodes.get_mut(&node("a")).unwrap().beats = true;
    world.advance(10_000);
    let report = world.core.operations(world.now).remove(0);
    assert_eq!((report.state, report.teams_moved), (OperationState::Done, 1));
    assert!(report.detail.contains("back"), "{}", report.detail);
}

#[test]
fn a_death_in_the_grace_is_reported_once_its_teams_have_a_node() {
    let mut world = counting_pool(&["a", "b"], 4);
    world.restart_broker(Settings::default());
    // It was restarted while the broker was away, and comes first.
    let hello = world.hello("a");
    world.add_with("a", |fresh| {
        *fresh = hello;
        fresh.capabilities = vec![PACED_MOVES.parse().unwrap()];
    });
    world.connect("b");
    world.advance(1_000);
    let report = world.core.operations(world.now).remove(0);
    assert_eq!(
        (report.kind, report.teams, report.teams_moved),
        (OperationKind::Failover, 2, 2)
    );
    assert!(!report.connections_known, "{report:?}");
    world.advance(31_000);
    let report = world.core.operations(world.now).remove(0);
    assert_eq!(report.state, OperationState::Done);
    assert!(report.detail.contains("not known"), "{}", report.detail);
}

#[test]
fn counts_live_over_a_restart() {
    a_restart_forgets_no_more_than_the_last_moment();
}

#[test]
fn no_gap_is_told_as_none() {
    a_client_that_opens_the_new_connection_first_has_no_gap();
}

#[test]
fn a_client_that_is_away_while_its_team_goes_on_belongs_to_the_operation_by_which_it_left() {
    let mut world = counting_pool(&["a", "b", "c"], 3);
    let name = teams_of_a(&world).remove(0);
    world.crowd(&name, 1);
    world.returning_percent = 0;
    let first = world.drain("a");
    world.advance(300);
    assert_eq!(world.operation(&first).connections_moved, 1);
    let next = world.owner(&name).unwrap();
    let second = world.drain(&next);
    world.advance(300);
    assert_ne!(world.owner(&name).unwrap(), next);
    arrive(&mut world, &name, None);
    assert_eq!(world.operation(&first).connections_back, 1);
    assert_eq!(world.operation(&second).connections_back, 0);
}

#[test]
fn an_operators_drain_outlasts_the_process_and_one_by_sigterm_does_not() {
    for (drained, stopped) in [(true, true), (true, false), (false, true)] {
        let mut world = counting_pool(&["a", "b"], 4);
        if drained {
            world.drain("a");
            world.advance(10_000);
        }
        let link = world.nodes[&node("a")].link.unwrap();
        if stopped {
            world.tell(Event::Bye {
                link,
                budget_ms: 25_000,
            });
            world.advance(3_000);
            world.cut("a");
            world.nodes.remove(&node("a"));
        } else {
            world.kill_with_witness("a");
        }
        world.advance(1_000);
        world.add("a");
        world.advance(2_000);
        let state = world.core.node(&node("a"), world.now).unwrap().state;
        let told = world.noticed(|notice| {
            matches!(
                notice,
                Notice::KeptAway {
                    wish: Kept::Drained,
                    ..
                }
            )
        });
        if drained {
            assert_eq!((state, told), (NodeState::Drained, true), "stopped: {stopped}");
            world.ask(Ask::Undrain { node: node("a") }).unwrap();
            let state = world.core.node(&node("a"), world.now).unwrap().state;
            assert_eq!(state, NodeState::Ready);
        } else {
            assert_eq!((state, told), (NodeState::Ready, false));
        }
    }
}

#[test]
fn a_cordon_outlasts_a_stop_too() {
    let mut world = counting_pool(&["a", "b"], 4);
    world.ask(Ask::Cordon { node: node("a") }).unwrap();
    let link = world.nodes[&node("a")].link.unwrap();
    world.tell(Event::Bye {
        link,
        budget_ms: 25_000,
    });
    world.advance(3_000);
    world.cut("a");
    world.add("a");
    world.advance(2_000);
    let state = world.core.node(&node("a"), world.now).unwrap().state;
    assert_eq!(state, NodeState::Cordoned);
}

#[test]
fn a_shed_is_charged_what_its_teams_have() {
    let mut world = crowded(10, |at| if at < 5 { 40 } else { 0 });
    let answer = world.ask(Ask::Shed {
        node: node("a"),
        post: ShedPost {
            teams: Some(5),
            rate_per_s: Some(20),
            ..ShedPost::default()
        },
    });
    let Ok(usher_placement::Answer::Operation(operation)) = answer else {
        panic!("{answer:?}")
    };
    let view = world.operation(&operation);
    assert_eq!((view.teams, view.connections), (5, 200));
    world.advance(5_000);
    let moved = world.operation(&operation).connections_moved;
    assert!((90..=110).contains(&moved), "{moved} in 5 s at 20 a second");
    world.advance(10_000);
    assert_eq!(world.operation(&operation).state, OperationState::Done);
}

#[test]
fn a_drain_starts_from_what_is_there_and_not_from_the_last_heartbeat() {
    let mut world = counting_pool(&["a", "b"], 4);
    world.advance(1_000);
    for name in teams_of_a(&world) {
        world.crowd(&name, 7);
    }
    // No heartbeat since.
    let operation = world.drain("a");
    assert_eq!(world.operation(&operation).connections, 14);
}

#[cfg(feature = "planted-bugs")]
mod planted {
    use usher_shared::planted::{Bug, plant};

    #[test]
    fn each_is_found_by_its_story() {
        let stories: [(Bug, fn()); 5] = [
            (
                Bug::DrainChargesMean,
                super::a_rate_is_a_rate_with_a_large_team_among_many_small_ones,
            ),
            (
                Bug::DrainNeverWaits,
                super::a_drain_that_nobody_survives_waits_with_most_connections_still_there,
            ),
            (
                Bug::KnocksLeftOut,
                super::a_death_counts_the_teams_that_their_clients_moved_before_it,
            ),
            (
                Bug::RestartForgetsMoves,
                super::a_restart_forgets_no_more_than_the_last_moment,
            ),
            (
                Bug::GapsByReport,
                super::a_client_that_opens_the_new_connection_first_has_no_gap,
            ),
        ];
        for (bug, story) in stories {
            plant(Some(bug));
            let told = std::panic::catch_unwind(story);
            plant(None);
            assert!(told.is_err(), "{bug:?} was not found");
            story();
        }
    }
}
