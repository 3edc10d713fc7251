//! Stories about nodes that die, fall silent, come back, and brokers that restart.

#![allow(clippy::unwrap_used)]

mod world;

use usher_placement::{Answer, Ask, Event, Evidence, Knock, NodeFault, Notice, ProbeOutcome, Settings};
use usher_shared::link::{HoldState, TeamEpoch};
use usher_shared::quantity::{Epoch, Term};
use usher_shared::rest::{BrokerState, Cause, NodeState, OperationKind};
use world::*;

fn teams_of(world: &World, name: &str) -> Vec<String> {
    let page = world.core.teams(Some(&node(name)), None, 1_000, world.now);
    page.teams.into_iter().map(|view| view.team.to_string()).collect()
}

#[test]
fn a_death_that_the_parent_reports_gives_every_team_a_new_owner_at_once() {
    let mut world = pool(&["a", "b", "c"], 90);
    let moved = teams_of(&world, "a");
    let before: Vec<Epoch> = moved.iter().map(|team| world.epoch(team)).collect();
    world.kill_with_witness("a");
    for (team, before) in moved.iter().zip(before) {
        let owner = world.owner(team).unwrap();
        assert_ne!(owner, "a");
        assert!(world.epoch(team) > before);
        let held = &world.nodes[&node(&owner)].held[&self::team(team)];
        assert_eq!(held.state, HoldState::Owned, "nobody is left to wait for");
    }
    let spread = world.spread();
    assert_eq!((spread["b"], spread["c"]), (45, 45));
    world.check();
}

#[test]
fn a_hint_of_death_moves_teams_at_once_and_effects_after_the_lease() {
    let mut world = pool(&["a", "b", "c"], 30);
    let moved = teams_of(&world, "a");
    let heard = world.now;
    world.kill("a");
    let state = |world: &World, team: &str| {
        let owner = world.owner(team).unwrap();
        world.nodes[&node(&owner)].held[&self::team(team)].state
    };
    for team in &moved {
        assert_ne!(world.owner(team).as_deref(), Some("a"));
        assert_eq!(
            state(&world, team),
            HoldState::Prepared,
            "its old owner may live on behind a cut"
        );
    }
    world.advance(5_000);
    assert_eq!(state(&world, &moved[0]), HoldState::Prepared);
    world.advance(2_500);
    assert!(world.now.since(heard) > 6_560);
    for team in &moved {
        assert_eq!(state(&world, team), HoldState::Owned);
    }
    world.check();
}

#[test]
fn a_late_report_of_the_exit_ends_the_wait_for_the_lease() {
    let mut world = pool(&["a", "b", "c"], 30);
    let moved = teams_of(&world, "a");
    let word = world.exit_of("a");
    world.kill("a");
    world.tell(Event::Exited(word));
    for team in &moved {
        let owner = world.owner(team).unwrap();
        assert_eq!(
            world.nodes[&node(&owner)].held[&self::team(team)].state,
            HoldState::Owned
        );
    }
}

#[test]
fn silence_alone_waits_for_the_lease() {
    let mut world = pool(&["a", "b", "c", "d"], 40);
    let moved = teams_of(&world, "a");
    world.nodes.get_mut(&node("a")).unwrap().beats = false;
    world.advance(5_500);
    assert_eq!(world.owner(&moved[0]).as_deref(), Some("a"));
    world.advance(2_500);
    for team in &moved {
        assert_ne!(world.owner(team).as_deref(), Some("a"));
    }
    assert!(world.noticed(|notice| matches!(
        notice,
        Notice::NodeDead {
            evidence: Evidence::Silent,
            ..
        }
    )));
    world.check();
}

#[test]
fn a_closed_link_whose_address_answers_is_no_death() {
    let mut world = pool(&["a", "b", "c"], 30);
    let incarnation = world.nodes[&node("a")].hello.incarnation;
    let before = world.spread();
    world.cut("a");
    assert_eq!(world.probes.last(), Some(&(node("a"), incarnation)));
    world.tell(Event::Probed {
        node: node("a"),
        incarnation,
        outcome: ProbeOutcome::Answered,
    });
    world.advance(2_000);
    world.connect("a");
    world.advance(2_000);
    assert_eq!(world.spread(), before);
    assert_eq!(
        world.core.node(&node("a"), world.now).unwrap().state,
        NodeState::Ready
    );
    world.check();
}

#[test]
fn an_address_that_answered_once_is_tried_again_until_the_lease_ends() {
    let mut world = pool(&["a", "b", "c"], 30);
    let incarnation = world.nodes[&node("a")].hello.incarnation;
    world.cut("a");
    world.nodes.remove(&node("a"));
    let told = |outcome| Event::Probed {
        node: node("a"),
        incarnation,
        outcome,
    };
    world.tell(told(ProbeOutcome::Answered));
    world.advance(1_000);
    assert_eq!(world.probes.len(), 2, "a dying process may have answered");
    world.tell(told(ProbeOutcome::Refused));
    assert!(teams_of(&world, "a").is_empty());
    world.check();
}

#[test]
fn a_presumed_dead_node_that_comes_back_gives_up_what_it_lost() {
    let mut world = pool(&["a", "b", "c", "d"], 40);
    world.nodes.get_mut(&node("a")).unwrap().beats = false;
    world.advance(8_000);
    assert!(teams_of(&world, "a").is_empty());
    world.nodes.get_mut(&node("a")).unwrap().beats = true;
    assert!(!world.nodes[&node("a")].held.is_empty(), "it does not know yet");
    world.connect("a");
    assert!(world.nodes[&node("a")].held.is_empty(), "it was told");
    world.check();
}

#[test]
fn heartbeats_are_not_acknowledged_before_the_inventory_is_in() {
    let mut world = pool(&["a", "b"], 10);
    world.cut("a");
    let link = world.say_hello("a");
    world.nodes.get_mut(&node("a")).unwrap().acks.clear();
    world.beat("a");
    assert!(world.nodes[&node("a")].acks.is_empty());
    world.say_inventory("a", link);
    world.beat("a");
    assert_eq!(world.nodes[&node("a")].acks, [2]);
}

#[test]
fn an_inventory_without_grants_of_ours_is_not_believed() {
    let mut world = pool(&["a", "b"], 10);
    let stolen = teams_of(&world, "b")[0].clone();
    let forged = Holding {
        epoch: Epoch::new(1 << 50).unwrap(),
        state: HoldState::Owned,
        grant: "AAAA".to_owned(),
    };
    world.cut("a");
    world
        .nodes
        .get_mut(&node("a"))
        .unwrap()
        .held
        .extend([team(&stolen), team("ghost")].map(|team| (team, forged.clone())));
    world.connect("a");
    let told = |notice: &Notice| {
        matches!(
            notice,
            Notice::BadMessage {
                fault: NodeFault::Ungranted(2),
                ..
            }
        )
    };
    assert!(world.noticed(told), "one notice for all entries");
    assert_eq!(world.owner(&stolen).as_deref(), Some("b"));
    assert!(
        world.store.epochs < Epoch::new(1 << 40).unwrap(),
        "the counter was not poisoned"
    );
    assert!(!world.nodes[&node("a")].held.contains_key(&team(&stolen)));
    world.check();
}

#[test]
fn too_many_silent_nodes_at_once_move_nothing_until_an_operator_says_so() {
    let mut world = pool(&["a", "b", "c", "d", "e", "f"], 60);
    let before = world.spread();
    for name in ["a", "b", "c"] {
        world.nodes.get_mut(&node(name)).unwrap().beats = false;
    }
    world.advance(20_000);
    assert_eq!(world.core.status(world.now).state, BrokerState::SelfPreservation);
    assert_eq!(world.spread(), before);
    world.ask(Ask::Release).unwrap();
    assert_eq!(world.spread()["a"] + world.spread()["b"] + world.spread()["c"], 0);
    world.check();
}

#[test]
fn self_preservation_ends_by_itself_when_the_nodes_are_heard_again() {
    let mut world = pool(&["a", "b", "c", "d", "e", "f"], 60);
    let before = world.spread();
    for name in ["a", "b", "c"] {
        world.nodes.get_mut(&node(name)).unwrap().beats = false;
    }
    world.advance(20_000);
    for name in ["a", "b", "c"] {
        world.nodes.get_mut(&node(name)).unwrap().beats = true;
    }
    world.advance(3_000);
    assert_eq!(world.core.status(world.now).state, BrokerState::Ready);
    assert_eq!(world.spread(), before);
}

#[test]
fn when_a_silent_half_comes_back_node_by_node_the_last_has_a_lease_to_do_so() {
    let mut world = pool(&["a", "b", "c", "d"], 40);
    let before = world.spread();
    for name in ["a", "b"] {
        world.cut(name);
        world.nodes.get_mut(&node(name)).unwrap().beats = false;
    }
    world.advance(20_000);
    assert_eq!(world.core.status(world.now).state, BrokerState::SelfPreservation);
    world.nodes.get_mut(&node("a")).unwrap().beats = true;
    world.connect("a");
    world.advance(6_000);
    assert_eq!(world.core.status(world.now).state, BrokerState::Ready);
    assert_eq!(world.spread(), before);
    world.nodes.get_mut(&node("b")).unwrap().beats = true;
    world.connect("b");
    world.advance(10_000);
    assert_eq!(world.spread(), before);
    // The same, and this time it stays away.
    for name in ["a", "b"] {
        world.cut(name);
        world.nodes.get_mut(&node(name)).unwrap().beats = false;
    }
    world.advance(20_000);
    world.nodes.get_mut(&node("a")).unwrap().beats = true;
    world.connect("a");
    world.advance(8_000);
    assert_eq!(world.spread()["b"], 0, "its lease is over once more");
    world.check();
}

#[test]
fn proven_deaths_do_not_make_the_next_silence_suspicious() {
    let mut world = pool(&["a", "b", "c", "d"], 40);
    world.kill_with_witness("a");
    world.kill_with_witness("b");
    world.nodes.get_mut(&node("c")).unwrap().beats = false;
    world.advance(8_000);
    assert_eq!(world.spread()["d"], 40);
    world.check();
}

#[test]
fn a_whole_zone_that_falls_silent_is_believed() {
    let mut world = World::new();
    for name in ["a1", "a2", "b1", "b2", "b3"] {
        world.add_with(name, |hello| hello.zone = Some(name[..1].parse().unwrap()));
    }
    for serial in 0..50 {
        world.place(&format!("t{serial}"));
    }
    world.advance(2_000);
    for name in ["a1", "a2"] {
        world.nodes.get_mut(&node(name)).unwrap().beats = false;
    }
    world.advance(9_000);
    assert_eq!(world.spread()["a1"] + world.spread()["a2"], 0);
    world.check();
}

#[test]
fn in_self_preservation_a_team_moves_when_its_client_knocks_again() {
    let mut world = pool(&["a", "b", "c", "d"], 40);
    for name in ["a", "b"] {
        world.nodes.get_mut(&node(name)).unwrap().beats = false;
    }
    world.advance(10_000);
    let stuck = teams_of(&world, "a")[0].clone();
    let incarnation = world.nodes[&node("a")].hello.incarnation;
    assert_eq!(
        world.place(&stuck),
        "a",
        "the first connect is sent where the team is"
    );
    let knock = Some(Knock {
        node: node("a"),
        incarnation,
        epoch: world.epoch(&stuck),
    });
    let ask = Ask::Connect {
        team: team(&stuck),
        may_create: true,
        region: None,
        knock,
    };
    let Ok(Answer::Assigned { route, .. }) = world.ask(ask) else {
        panic!("it is moved")
    };
    assert!(["c", "d"].contains(&route.node.as_str()));
    assert_eq!(
        world.core.why(&team(&stuck), world.now).unwrap().decisions[0].cause,
        Cause::Knock
    );
    world.check();
}

#[test]
fn with_every_node_dead_teams_wait_and_the_first_node_takes_them() {
    let mut world = pool(&["a"], 20);
    world.kill_with_witness("a");
    assert_eq!(world.core.status(world.now).teams_unplaced, 20);
    assert!(world.try_connect("t0").is_err());
    assert!(world.try_connect("new").is_err());
    world.add("b");
    assert_eq!(world.core.status(world.now).teams_unplaced, 0);
    assert_eq!(world.spread()["b"], 20);
    world.check();
}

#[test]
fn a_restarted_broker_keeps_every_owner_and_every_epoch() {
    let mut world = pool(&["a", "b", "c"], 90);
    let before: Vec<_> = (0..90)
        .map(|serial| {
            (
                world.owner(&format!("t{serial}")),
                world.epoch(&format!("t{serial}")),
            )
        })
        .collect();
    world.restart_broker(Settings::default());
    assert_eq!(world.core.status(world.now).state, BrokerState::Grace);
    assert_eq!(
        Some(world.place("t3")),
        before[3].0,
        "answered from the table before any node is back"
    );
    for name in ["a", "b", "c"] {
        world.connect(name);
    }
    assert_eq!(
        world.core.status(world.now).state,
        BrokerState::Ready,
        "everyone has reported"
    );
    world.advance(20_000);
    let after: Vec<_> = (0..90)
        .map(|serial| {
            (
                world.owner(&format!("t{serial}")),
                world.epoch(&format!("t{serial}")),
            )
        })
        .collect();
    assert_eq!(before, after);
    let fresh = world.place("fresh");
    assert!(!fresh.is_empty() && before.iter().all(|(_, epoch)| *epoch < world.epoch("fresh")));
    world.check();
}

#[test]
fn in_the_grace_after_a_start_owners_change_on_proof_only() {
    let mut world = pool(&["a", "b", "c"], 90);
    world.restart_broker(Settings::default());
    world.connect("a");
    world.connect("b");
    let of_c = teams_of(&world, "c");
    world.advance(4_000);
    assert_eq!(
        teams_of(&world, "c"),
        of_c,
        "it has not come back, and gets its time"
    );
    let fresh = world.place("fresh");
    assert!(
        fresh == "a" || fresh == "b",
        "new teams go to nodes that have reported"
    );
    let word = world.exit_of("c");
    world.tell(Event::Exited(word));
    assert!(teams_of(&world, "c").is_empty(), "proof is proof");
    world.check();
}

#[test]
fn in_the_grace_neither_a_knock_nor_a_drain_nor_a_wish_moves_a_team() {
    let mut world = pool(&["a", "b", "c"], 90);
    let (of_a, of_c) = (teams_of(&world, "a"), teams_of(&world, "c"));
    world.restart_broker(Settings::default());
    world.connect("a");
    world.connect("b");
    let incarnation = world.nodes[&node("c")].hello.incarnation;
    let knock = Some(Knock {
        node: node("c"),
        incarnation,
        epoch: world.epoch(&of_c[0]),
    });
    let ask = Ask::Connect {
        team: team(&of_c[0]),
        may_create: true,
        region: None,
        knock,
    };
    world.ask(ask).unwrap();
    assert_eq!(world.owner(&of_c[0]).as_deref(), Some("c"));
    world.drain("a");
    assert_eq!(world.place(&of_a[0]), "a");
    world.advance(4_000);
    assert_eq!(
        (teams_of(&world, "a"), teams_of(&world, "c")),
        (of_a.clone(), of_c)
    );
    world.advance(10_000);
    assert!(teams_of(&world, "a").is_empty() && teams_of(&world, "c").is_empty());
    world.check();
}

#[test]
fn after_the_grace_a_node_that_did_not_come_back_is_dead() {
    let mut world = pool(&["a", "b", "c"], 90);
    world.restart_broker(Settings::default());
    world.connect("a");
    world.connect("b");
    world.advance(7_000);
    assert!(teams_of(&world, "c").is_empty());
    world.check();
}

#[test]
fn a_restored_old_store_learns_from_the_nodes() {
    let mut world = pool(&["a", "b", "c"], 30);
    let old = world.store.clone();
    let first = world.owner("t0").unwrap();
    world.kill_with_witness(&first);
    world.advance(1_000);
    // More than one block of epochs, so that the copy cannot know the last of them.
    for serial in 100..1_200 {
        world.place(&format!("t{serial}"));
    }
    let (owner, epoch) = (world.owner("t0").unwrap(), world.epoch("t0"));
    world.store = old;
    world.restart_broker(Settings::default());
    let alive: Vec<String> = world.nodes.keys().map(|id| id.to_string()).collect();
    for name in &alive {
        world.connect(name);
    }
    assert_eq!((world.owner("t0"), world.epoch("t0")), (Some(owner), epoch));
    assert!(
        world.owner("t1190").is_some(),
        "a team that only a node knew is back"
    );
    assert!(world.noticed(|notice| matches!(notice, Notice::StoreRegressed { .. })));
    let next = world.place("after");
    assert!(!next.is_empty() && world.epoch("after") > epoch);
    world.check();
}

#[test]
fn a_team_deleted_while_its_node_was_away_stays_deleted() {
    let mut world = pool(&["a", "b"], 4);
    let gone = teams_of(&world, "a")[0].clone();
    world.cut("a");
    world.ask(Ask::Delete { team: team(&gone) }).unwrap();
    world.connect("a");
    assert_eq!(world.core.team(&team(&gone), world.now), None);
    assert!(!world.nodes[&node("a")].held.contains_key(&team(&gone)));
    world.check();
}

#[test]
fn a_broker_that_meets_a_higher_term_goes_on_above_it() {
    let mut world = pool(&["a", "b"], 4);
    world.cut("a");
    world.nodes.get_mut(&node("a")).unwrap().hello.highest_term = Term::new(41).unwrap();
    world.connect("a");
    assert_eq!(world.core.status(world.now).term, Term::new(42).unwrap());
    assert_eq!(world.store.term, Term::new(42).unwrap());
}

#[test]
fn a_term_that_no_cluster_reaches_is_not_believed() {
    let mut world = pool(&["a", "b"], 4);
    let before = world.core.status(world.now).term;
    world.cut("b");
    world.nodes.get_mut(&node("b")).unwrap().hello.highest_term = Term::new((1 << 53) - 1).unwrap();
    world.say_hello("b");
    assert!(world.noticed(|notice| matches!(notice, Notice::NodeRefused { .. })));
    assert_eq!(world.core.status(world.now).term, before);
    assert_eq!(world.store.term, before);
}

#[test]
fn a_broker_that_stood_still_accuses_nobody() {
    let mut world = pool(&["a", "b", "c"], 30);
    let before = world.spread();
    world.now = world.now.plus(60_000);
    world.core.handle_deadline(world.now);
    world.pump();
    assert_eq!(world.core.status(world.now).state, BrokerState::Grace);
    assert_eq!(world.spread(), before);
    world.advance(10_000);
    assert_eq!(world.core.status(world.now).state, BrokerState::Ready);
    assert_eq!(world.spread(), before);
}

#[test]
fn a_broker_that_stands_still_just_after_a_longer_lease_was_set_waits_as_after_a_start() {
    let mut world = pool(&["a", "b", "c"], 90);
    let settings = Settings {
        lease_ms: 10_000,
        ..Settings::default()
    };
    world.restart_broker(settings);
    world.now = world.now.plus(5_001);
    world.core.handle_deadline(world.now);
    world.pump();
    world.connect("a");
    world.connect("b");
    world.advance(9_000);
    assert_eq!(world.core.status(world.now).state, BrokerState::Grace);
    assert_eq!(teams_of(&world, "c").len(), 30);
    world.advance(2_000);
    assert!(teams_of(&world, "c").is_empty());
    world.check();
}

#[test]
fn a_failover_has_a_report() {
    let mut world = pool(&["a", "b", "c"], 30);
    world.nodes.get_mut(&node("a")).unwrap().connections = 20;
    world.advance(1_000);
    world.kill_with_witness("a");
    let report = &world.core.operations(world.now)[0];
    assert_eq!(
        (report.kind, report.teams, report.teams_moved, report.connections),
        (OperationKind::Failover, 10, 10, 20)
    );
    assert_eq!(report.elapsed_ms, 0, "all owners changed in one go");
    let asked = world.assigned.iter().filter(|assign| assign.spec.moved).count();
    assert_eq!(asked, 10, "the new owners report who comes back");
}

#[test]
fn a_yield_of_an_earlier_move_does_not_count_for_a_later_one() {
    let mut world = pool(&["a", "b", "c"], 3);
    let owner = world.owner("t0").unwrap();
    let link = world.nodes[&node(&owner)].link.unwrap();
    let stale = TeamEpoch {
        team: team("t0"),
        epoch: Epoch::new(world.epoch("t0").get() - 1).unwrap(),
    };
    // Deaf to orders from here on, its link still up.
    world.nodes.get_mut(&node(&owner)).unwrap().link = None;
    world.drain(&owner);
    world.advance(1_000);
    let new = world.owner("t0").unwrap();
    assert_ne!(new, owner);
    world.tell(Event::Yielded { link, held: stale });
    assert_eq!(
        world.nodes[&node(&new)].held[&team("t0")].state,
        HoldState::Prepared
    );
    let good = TeamEpoch {
        team: team("t0"),
        epoch: world.epoch("t0"),
    };
    world.tell(Event::Yielded { link, held: good });
    assert_eq!(world.nodes[&node(&new)].held[&team("t0")].state, HoldState::Owned);
}
