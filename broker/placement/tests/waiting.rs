//! Who is waited for before a team's owner may act, and for how long: stories that the simulator found.

#![allow(clippy::unwrap_used, clippy::expect_used)] // a test that cannot go on should stop

mod world;

use usher_placement::{Ask, Command, Event, Record, RequestId, Settings};
use usher_shared::link::{Held, HoldState, Inventory, TeamEpoch, ToNode};
use usher_shared::quantity::Epoch;
use usher_shared::rest::{Pin, PinStrength, TeamPut};
use world::*;

fn state_on(world: &World, name: &str, of: &str) -> Option<HoldState> {
    world.nodes[&node(name)]
        .held
        .get(&team(of))
        .map(|held| held.state)
}

/// Puts a node's ears out of action: its link stands, and no order comes through.
fn deafen(world: &mut World, name: &str) -> usher_placement::LinkId {
    world.nodes.get_mut(&node(name)).unwrap().link.take().unwrap()
}

fn ask(world: &mut World, ask: Ask) {
    assert!(world.ask(ask).is_ok());
}

#[test]
fn time_counts_finely_while_an_operation_runs_or_a_link_is_closed_and_coarsely_otherwise() {
    let mut world = pool(&["a", "b", "c"], 30);
    let step_ms = |world: &mut World| {
        // Past the tick, whose moment is a deadline, too.
        world.advance(1_000);
        world.core.handle_deadline(world.now);
        world.pump();
        world.core.next_deadline().since(world.now)
    };
    assert_eq!(step_ms(&mut world), 250);
    world.nodes.get_mut(&node("a")).unwrap().releases = false;
    world.drain("a");
    assert_eq!(step_ms(&mut world), 100);
    world.nodes.get_mut(&node("a")).unwrap().releases = true;
    world.ask(Ask::Undrain { node: node("a") }).unwrap();
    // What was leaving is given up after a while.
    world.advance(30_000);
    assert_eq!(step_ms(&mut world), 250);
    world.cut("b");
    assert_eq!(step_ms(&mut world), 100);
    world.connect("b");
    assert_eq!(step_ms(&mut world), 250);
    world.kill("c");
    world.advance(60_000);
    assert_eq!(step_ms(&mut world), 250);
}

#[test]
fn a_route_is_published_after_the_record_that_it_rests_on() {
    let mut world = pool(&["a", "b"], 2);
    let ask = Ask::Connect {
        team: team("new"),
        may_create: true,
        region: None,
        knock: None,
    };
    let request = RequestId(1_000);
    world.core.handle(Event::Request { request, ask }, world.now);
    let mut written = false;
    while let Some(command) = world.core.poll_command() {
        match command {
            Command::Write(Record::Team(..)) => written = true,
            Command::Route { .. } => assert!(written, "a crash could forget what this shows"),
            _ => {}
        }
    }
    assert!(written);
}

#[test]
fn a_stopping_node_is_waited_for_although_its_link_closes_when_it_has_no_team_left() {
    let mut world = pool(&["a", "b"], 4);
    let mine = world.nodes[&node("a")].held.keys().next().unwrap().to_string();
    let link = deafen(&mut world, "a");
    let budget_ms = 25_000;
    world.tell(Event::Bye { link, budget_ms });
    world.advance(1_500);
    assert_eq!(world.owner(&mine).as_deref(), Some("b"));
    world.tell(Event::LinkClosed { link });
    world.advance(2_000);
    assert_eq!(state_on(&world, "b", &mine), Some(HoldState::Prepared));
    world.advance(6_000);
    assert_eq!(state_on(&world, "b", &mine), Some(HoldState::Owned));
}

#[test]
fn a_dead_node_is_not_forgotten_before_its_lease_is_over() {
    let mut world = World::with(Settings {
        forget_ms: 1_000,
        ..Settings::default()
    });
    for name in ["a", "b", "c"] {
        world.add(name);
    }
    let owner = world.place("t0");
    world.advance(3_000);
    world.kill(&owner);
    let new = world.owner("t0").unwrap();
    world.advance(3_000);
    assert_eq!(state_on(&world, &new, "t0"), Some(HoldState::Prepared));
    world.advance(5_000);
    assert_eq!(state_on(&world, &new, "t0"), Some(HoldState::Owned));
}

#[test]
fn a_team_that_comes_back_to_its_old_owner_waits_for_nobody() {
    let mut world = pool(&["a"], 1);
    world.cut("a");
    world.advance(7_000);
    assert_eq!(world.owner("t0"), None);
    world
        .nodes
        .get_mut(&node("a"))
        .unwrap()
        .held
        .get_mut(&team("t0"))
        .unwrap()
        .state = HoldState::Prepared;
    world.connect("a");
    world.advance(1_000);
    assert_eq!(world.owner("t0").as_deref(), Some("a"));
    assert_eq!(state_on(&world, "a", "t0"), Some(HoldState::Owned));
}

#[test]
fn a_node_that_was_revoked_what_it_held_has_stopped() {
    let mut world = pool(&["a", "b"], 1);
    let owner = world.owner("t0").unwrap();
    let other = if owner == "a" { "b" } else { "a" };
    ask(&mut world, Ask::Cordon { node: node(other) });
    world.cut(&owner);
    world.advance(7_000);
    assert_eq!(world.owner("t0"), None);
    ask(&mut world, Ask::Cordon { node: node(&owner) });
    world
        .nodes
        .get_mut(&node(&owner))
        .unwrap()
        .held
        .get_mut(&team("t0"))
        .unwrap()
        .state = HoldState::Prepared;
    world.connect(&owner);
    ask(&mut world, Ask::Uncordon { node: node(other) });
    world.advance(1_000);
    assert_eq!(state_on(&world, other, "t0"), Some(HoldState::Owned));
}

#[test]
fn a_node_that_comes_back_without_a_team_is_not_waited_for_by_who_gets_it_later() {
    let mut world = pool(&["a", "b"], 1);
    let owner = world.owner("t0").unwrap();
    let other = if owner == "a" { "b" } else { "a" };
    ask(&mut world, Ask::Cordon { node: node(other) });
    world.cut(&owner);
    world.advance(7_000);
    assert_eq!(world.owner("t0"), None);
    ask(&mut world, Ask::Cordon { node: node(&owner) });
    world.nodes.get_mut(&node(&owner)).unwrap().held.clear();
    world.connect(&owner);
    ask(&mut world, Ask::Uncordon { node: node(other) });
    world.advance(1_000);
    assert_eq!(state_on(&world, other, "t0"), Some(HoldState::Owned));
}

#[test]
fn a_node_that_comes_back_without_a_deleted_team_is_not_waited_for_when_it_is_made_anew() {
    let mut world = pool(&["a", "b"], 1);
    let owner = world.owner("t0").unwrap();
    let other = if owner == "a" { "b" } else { "a" };
    world.cut(&owner);
    ask(&mut world, Ask::Delete { team: team("t0") });
    world.nodes.get_mut(&node(&owner)).unwrap().held.clear();
    world.connect(&owner);
    ask(&mut world, Ask::Cordon { node: node(&owner) });
    world.place("t0");
    assert_eq!(state_on(&world, other, "t0"), Some(HoldState::Owned));
}

#[test]
fn what_a_node_gives_up_of_a_deleted_team_counts_for_all_that_it_was_ever_given() {
    let mut world = pool(&["a", "b"], 1);
    let owner = world.owner("t0").unwrap();
    let other = if owner == "a" { "b" } else { "a" };
    // It went away and came back, and the node heard neither.
    world.nodes.get_mut(&node(&owner)).unwrap().link = None;
    for to in [other, &owner] {
        let pin = Some(Pin {
            node: node(to),
            seconds: 60,
            strength: PinStrength::Soft,
        });
        let put = TeamPut {
            pin,
            ..TeamPut::default()
        };
        world.put("t0", put).unwrap();
    }
    ask(&mut world, Ask::Delete { team: team("t0") });
    world.connect(&owner);
    assert_eq!(state_on(&world, &owner, "t0"), None);
    ask(&mut world, Ask::Cordon { node: node(&owner) });
    world.place("t0");
    assert_eq!(state_on(&world, other, "t0"), Some(HoldState::Owned));
}

#[test]
fn an_owner_with_a_grant_of_another_key_is_granted_its_team_anew_and_not_revoked() {
    let mut world = pool(&["a"], 1);
    world.cut("a");
    let epoch = world.epoch("t0");
    let link = world.say_hello("a");
    let held = Held {
        team: team("t0"),
        epoch,
        grant: "AAAAAAAAAAAAAAAAAAAAAA".to_owned(),
        state: HoldState::Owned,
        connections: 0,
    };
    let page = Inventory {
        teams: vec![held],
        more: false,
    };
    world.core.handle(Event::Inventory { link, page }, world.now);
    let mut granted = None;
    while let Some(command) = world.core.poll_command() {
        match command {
            Command::Send { message, .. } => match *message {
                ToNode::Revoke(revoke) => panic!("{revoke:?}: it could not take the team back"),
                ToNode::Assign(assign) => granted = Some(assign),
                _ => {}
            },
            _ => continue,
        }
    }
    let granted = granted.unwrap();
    assert_eq!(granted.epoch, epoch);
    assert!(grants().verify(&team("t0"), &node("a"), epoch, &granted.grant));
}

#[test]
fn an_owner_that_says_it_dropped_its_team_gets_it_under_a_new_epoch() {
    let mut world = pool(&["a"], 1);
    let link = world.nodes[&node("a")].link.unwrap();
    let epoch = world.epoch("t0");
    let held = TeamEpoch {
        team: team("t0"),
        epoch,
    };
    world.tell(Event::Released { link, held });
    assert!(world.epoch("t0") > epoch);
    assert_eq!(world.nodes[&node("a")].held[&team("t0")].epoch, world.epoch("t0"));
}

#[test]
fn a_longer_lease_is_written_before_it_is_granted() {
    let mut world = pool(&["a"], 1);
    world.cut("a");
    world.connect("a");
    world.restart_broker(Settings {
        lease_ms: 10_000,
        ..Settings::default()
    });
    world.connect("a");
    assert_eq!(world.store.nodes[&node("a")].lease_ms, 10_000);
}

#[test]
fn an_epoch_that_a_later_entry_of_the_same_inventory_shows_is_not_given_out_for_an_earlier_one() {
    let mut world = pool(&["a"], 2);
    let reserved = world.store.epochs;
    let (old, new) = (Epoch::new(1).unwrap(), reserved);
    // The store is an old copy: it has neither team, and would give out next what the second is held under.
    world.cut("a");
    world.store.teams.clear();
    world.restart_broker(Settings::default());
    let link = world.say_hello("a");
    let held = |name: &str, epoch| Held {
        team: team(name),
        epoch,
        grant: grants().sign(&team(name), &node("a"), epoch),
        state: HoldState::Owned,
        connections: 0,
    };
    let teams = vec![held("t0", old), held("t1", new), held("s", reserved.plus(7))];
    world.tell(Event::Inventory {
        link,
        page: Inventory { teams, more: false },
    });
    let mut epochs = ["s", "t0", "t1"].map(|name| world.epoch(name).get()).to_vec();
    epochs.sort_unstable();
    epochs.dedup();
    assert_eq!(epochs.len(), 3, "each team has its own epoch");
    assert!(world.epoch("t0") > reserved.plus(7));
}
