//! Who may have exclusive effects: confirmations, restarts, deleted names, old stores, clocks.

#![allow(clippy::unwrap_used, clippy::expect_used)] // Also outside of test functions, a test may fail.

mod world;

use usher_placement::{Ask, Event, LinkId, Notice, Pace, Settings};
use usher_shared::id::BrokerId;
use usher_shared::link::{Granted, HoldState, RefusedCode, TeamEpoch};
use usher_shared::quantity::{Epoch, Term};
use usher_shared::rest::{Cause, Gate};
use world::{World, grants, node, pool, team};

/// What a node holds of a team, as it would show it.
fn state(world: &World, holder: &str, name: &str) -> Option<HoldState> {
    let held = &world.nodes[&node(holder)].held;
    held.get(&team(name)).map(|holding| holding.state)
}

fn other_than(owner: &str) -> &'static str {
    if owner == "a" { "b" } else { "a" }
}

fn regressed(world: &World) -> usize {
    let told = |notice: &&Notice| matches!(notice, Notice::StoreRegressed { .. });
    world.notices.iter().filter(told).count()
}

#[test]
fn a_new_link_confirms_what_stays_and_nothing_else() {
    let mut world = pool(&["a", "b"], 6);
    world.cut("a");
    let kept: Vec<TeamEpoch> = (0..6)
        .map(|serial| format!("t{serial}"))
        .filter(|name| world.owner(name).as_deref() == Some("a"))
        .map(|name| TeamEpoch {
            team: team(&name),
            epoch: world.epoch(&name),
        })
        .collect();
    let (deleted, kept) = kept.split_first().unwrap();
    world
        .ask(Ask::Delete {
            team: deleted.team.clone(),
        })
        .unwrap();
    world.connect("a");
    assert_eq!(world.nodes[&node("a")].confirmed, kept);
}

#[test]
fn an_acknowledgement_comes_after_the_confirmation_on_every_link() {
    let mut world = pool(&["a", "b"], 6);
    world.cut("a");
    let before = world.nodes[&node("a")].acks.len();
    let link = world.say_hello("a");
    world.beat("a");
    assert_eq!(
        world.nodes[&node("a")].acks.len(),
        before,
        "the inventory is not in yet"
    );
    assert!(world.nodes[&node("a")].confirmed.is_empty());
    world.say_inventory("a", link);
    assert_eq!(world.nodes[&node("a")].confirmed.len(), 3);
    world.beat("a");
    assert_eq!(world.nodes[&node("a")].acks.len(), before + 1);
}

#[test]
fn after_a_restart_a_new_owner_waits_until_no_lease_of_the_earlier_run_is_left() {
    let mut world = pool(&["a", "b"], 4);
    let owner = world.owner("t0").unwrap();
    let other = other_than(&owner);
    // Moved, and the broker dies before anybody hears of it: only the store knows.
    let epoch = world.epoch("t0").next();
    let incarnation = world.nodes[&node(other)].hello.incarnation;
    let record = world.store.teams.get_mut(&team("t0")).unwrap();
    record.owner = Some((node(other), incarnation));
    record.epoch = epoch;
    world.restart_broker(Settings::default());
    world.connect(other);
    assert_eq!(state(&world, other, "t0"), Some(HoldState::Prepared));
    world.advance(6_000);
    assert_eq!(
        state(&world, other, "t0"),
        Some(HoldState::Prepared),
        "the old owner may act still"
    );
    world.advance(700);
    assert_eq!(state(&world, other, "t0"), Some(HoldState::Owned));
}

#[test]
fn after_a_restart_an_owner_that_was_activated_is_confirmed_at_once() {
    let mut world = pool(&["a", "b"], 4);
    world.restart_broker(Settings::default());
    for name in ["a", "b"] {
        world.connect(name);
    }
    for name in ["a", "b"] {
        assert_eq!(world.nodes[&node(name)].confirmed.len(), 2);
    }
    world.check();
}

#[test]
fn an_activation_whose_word_was_lost_with_its_link_is_said_again() {
    let mut world = pool(&["a", "b"], 4);
    let owner = world.owner("t0").unwrap();
    let holding = world.nodes.get_mut(&node(&owner)).unwrap();
    holding.held.get_mut(&team("t0")).unwrap().state = HoldState::Prepared;
    world.cut(&owner);
    world.connect(&owner);
    assert_eq!(state(&world, &owner, "t0"), Some(HoldState::Owned));
}

#[test]
fn a_name_that_comes_back_waits_for_whoever_had_it() {
    let mut world = pool(&["a", "b", "c"], 3);
    let owner = world.owner("t0").unwrap();
    // Deaf, but not known to be: its lease may run on.
    world.nodes.get_mut(&node(&owner)).unwrap().link = None;
    world.ask(Ask::Delete { team: team("t0") }).unwrap();
    world.ask(Ask::Cordon { node: node(&owner) }).unwrap();
    let new = world.place("t0");
    assert_ne!(new, owner);
    assert_eq!(state(&world, &new, "t0"), Some(HoldState::Prepared));
    world.advance(6_000);
    assert_eq!(state(&world, &new, "t0"), Some(HoldState::Prepared));
    world.advance(1_000);
    assert_eq!(state(&world, &new, "t0"), Some(HoldState::Owned));
}

#[test]
fn a_name_that_comes_back_waits_no_longer_than_its_last_owner_needs_to_say_so() {
    let mut world = pool(&["a", "b"], 2);
    let owner = world.owner("t0").unwrap();
    world.ask(Ask::Delete { team: team("t0") }).unwrap();
    world.ask(Ask::Cordon { node: node(&owner) }).unwrap();
    let new = world.place("t0");
    assert_eq!(
        state(&world, &new, "t0"),
        Some(HoldState::Owned),
        "it was released"
    );
}

#[test]
fn in_the_first_lease_after_a_restart_even_a_new_name_waits() {
    let mut world = pool(&["a", "b"], 4);
    world.restart_broker(Settings::default());
    world.connect("a");
    world.connect("b");
    let owner = world.place("fresh");
    assert_eq!(state(&world, &owner, "fresh"), Some(HoldState::Prepared));
    world.advance(6_700);
    assert_eq!(state(&world, &owner, "fresh"), Some(HoldState::Owned));
}

#[test]
fn a_team_that_an_old_store_lost_stays_where_it_is_under_a_new_epoch() {
    let mut world = pool(&["a", "b"], 4);
    let old = world.store.clone();
    let owner = world.place("later");
    let epoch = world.epoch("later");
    world.store = old;
    world.restart_broker(Settings::default());
    world.connect("a");
    world.connect("b");
    assert_eq!(world.owner("later"), Some(owner.clone()));
    assert!(world.epoch("later") > epoch, "it may have been surpassed");
    assert_eq!(
        world.nodes[&node(&owner)].held[&team("later")].epoch,
        world.epoch("later")
    );
    assert_eq!(regressed(&world), 1, "once for all that a node shows");
    assert_eq!(state(&world, &owner, "later"), Some(HoldState::Prepared));
    world.advance(7_000);
    assert_eq!(state(&world, &owner, "later"), Some(HoldState::Owned));
    world.check();
}

#[test]
fn the_highest_grant_of_any_node_tells_how_far_the_counter_had_come() {
    let mut world = pool(&["a", "b"], 4);
    let high = Epoch::new(5_000_000).unwrap();
    let grant = |signed_for: &str| Granted {
        team: team("gone"),
        epoch: high,
        grant: grants().sign(&team("gone"), &node(signed_for), high),
    };
    for (signed_for, raises) in [("b", false), ("a", true)] {
        world.cut("a");
        world.nodes.get_mut(&node("a")).unwrap().hello.highest_grant = Some(grant(signed_for));
        world.connect("a");
        world.place(&format!("after-{signed_for}"));
        let next = world.epoch(&format!("after-{signed_for}"));
        assert_eq!(next > high, raises, "{next}");
        assert_eq!(regressed(&world), usize::from(raises));
    }
    // Said again, it is no news.
    world.cut("a");
    world.connect("a");
    assert_eq!(regressed(&world), 1);
    world.check();
}

#[test]
fn a_lease_that_was_shortened_is_waited_for_as_long_as_it_was_granted() {
    let long = Settings {
        lease_ms: 20_000,
        ..Settings::default()
    };
    let mut world = World::with(long);
    for name in ["a", "b", "c"] {
        world.add(name);
    }
    world.place("t0");
    world.advance(1_000);
    let owner = world.owner("t0").unwrap();
    world.restart_broker(Settings::default());
    for name in ["a", "b", "c"] {
        world.connect(name);
    }
    // Silent from here on; the lease of before the restart may run for 20 s.
    world.nodes.get_mut(&node(&owner)).unwrap().beats = false;
    world.advance(19_000);
    assert_eq!(world.owner("t0"), Some(owner.clone()));
    world.advance(2_500);
    assert_ne!(world.owner("t0"), Some(owner));
}

#[test]
fn a_shortened_lease_counts_once_the_longer_ones_are_over() {
    let long = Settings {
        lease_ms: 20_000,
        ..Settings::default()
    };
    let mut world = World::with(long);
    for name in ["a", "b", "c"] {
        world.add(name);
    }
    world.place("t0");
    let owner = world.owner("t0").unwrap();
    world.restart_broker(Settings::default());
    for name in ["a", "b", "c"] {
        world.connect(name);
    }
    assert_eq!(
        world.store.nodes[&node(&owner)].lease_ms,
        20_000,
        "the next start must know"
    );
    world.advance(22_000);
    assert_eq!(world.store.nodes[&node(&owner)].lease_ms, 6_000);
    world.nodes.get_mut(&node(&owner)).unwrap().beats = false;
    world.advance(7_800);
    assert_ne!(world.owner("t0"), Some(owner));
}

#[test]
fn a_node_whose_clock_runs_at_another_pace_gets_no_new_teams() {
    let mut world = pool(&["a", "b"], 0);
    world.nodes.get_mut(&node("a")).unwrap().clock_percent = 98;
    world.advance(120_000);
    let slow = |notice: &Notice| matches!(notice, Notice::ClockPace { node: slow, pace: Pace::Slow { .. } } if *slow == node("a"));
    assert!(world.noticed(slow));
    for serial in 0..4 {
        assert_eq!(world.place(&format!("t{serial}")), "b");
    }
    let decision = &world.core.why(&team("t0"), world.now).unwrap().decisions[0];
    assert!(decision.gated.contains_key(&Gate::Clock), "{decision:?}");
    assert_eq!(decision.cause, Cause::Connect);
}

#[test]
fn a_store_from_before_the_last_term_is_told_so_once_and_goes_on_above() {
    let mut world = pool(&["a", "b"], 2);
    for name in ["a", "b"] {
        world.cut(name);
        world.nodes.get_mut(&node(name)).unwrap().hello.highest_term = Term::new(7).unwrap();
        world.connect(name);
    }
    assert_eq!(regressed(&world), 1);
    assert_eq!(world.core.status(world.now).term, Term::new(8).unwrap());
    let link = world.nodes[&node("a")].link.unwrap();
    world.tell(Event::LinkClosed { link });
}

/// Whom a node would ask whether they hear the broker.
fn peers(world: &World, name: &str) -> Vec<String> {
    let told = &world.nodes[&node(name)].peers;
    told.iter().map(|peer| peer.node.to_string()).collect()
}

#[test]
fn a_node_is_told_of_other_peers_when_its_own_have_gone() {
    let mut world = pool(&["a", "b", "c", "d", "e"], 0);
    world.cut("c");
    world.connect("c");
    assert_eq!(peers(&world, "c"), ["d", "e", "a"]);
    world.kill_with_witness("d");
    world.kill_with_witness("e");
    world.advance(61_000);
    assert_eq!(peers(&world, "c"), ["a", "b"]);
    world.advance(120_000);
    assert_eq!(peers(&world, "a"), ["b", "c"]);
}

#[test]
fn the_first_node_back_after_a_restart_is_told_of_nodes_that_are_not_back_yet() {
    let mut world = pool(&["a", "b", "c"], 3);
    world.restart_broker(Settings::default());
    world.connect("b");
    assert_eq!(peers(&world, "b"), ["c", "a"]);
}

#[test]
fn a_node_that_follows_another_broker_of_the_same_term_is_refused_with_the_remedy() {
    let mut world = pool(&["a", "b"], 2);
    let before = world.core.status(world.now).term;
    world.cut("a");
    world.nodes.get_mut(&node("a")).unwrap().hello.broker = Some(BrokerId::from_bits(99));
    world.say_hello("a");
    let (_, refused) = world.closed.last().unwrap();
    assert_eq!(refused.code, RefusedCode::TwoBrokers);
    assert!(refused.detail.contains("--restored"), "{refused:?}");
    assert_eq!(world.core.status(world.now).term, before);
    // It lives, and its teams stay for as long as it says so.
    let teams = world.spread()["a"];
    for _ in 0..20 {
        world.nodes.get_mut(&node("a")).unwrap().link = None;
        world.say_hello("a");
        world.advance(1_000);
    }
    assert_eq!(world.spread()["a"], teams);
    let refused = world.closed.len();
    // One that followed it under an earlier term is welcome.
    world.restart_broker(Settings::default());
    world.say_hello("a");
    assert_eq!(world.closed.len(), refused);
}

#[test]
fn the_first_node_of_a_new_pool_is_told_of_those_that_come_after_it() {
    let world = pool(&["a", "b", "c", "d", "e"], 0);
    assert_eq!(peers(&world, "a"), ["b", "c", "d"]);
}

/// A node that hears nothing from here on, on a link that stands: what it says comes through.
fn deaf(world: &mut World, name: &str) -> LinkId {
    world.nodes.get_mut(&node(name)).unwrap().link.take().unwrap()
}

#[test]
fn the_end_of_an_earlier_owner_gives_nothing_to_who_waits_for_a_later_one() {
    let mut world = pool(&["a", "b", "c"], 1);
    let first = world.owner("t0").unwrap();
    // Obeys, and so the second owns the team in full.
    world.drain(&first);
    world.advance(1_000);
    let second = world.owner("t0").unwrap();
    assert_eq!(state(&world, &second, "t0"), Some(HoldState::Owned));
    deaf(&mut world, &second);
    world.drain(&second);
    world.advance(1_000);
    let third = world.owner("t0").unwrap();
    assert!(third != first && third != second);
    assert_eq!(state(&world, &third, "t0"), Some(HoldState::Prepared));
    world.kill_with_witness(&first);
    world.advance(1_000);
    assert_eq!(
        state(&world, &third, "t0"),
        Some(HoldState::Prepared),
        "the second may act still"
    );
    world.advance(7_000);
    assert_eq!(state(&world, &third, "t0"), Some(HoldState::Owned));
}

#[test]
fn a_stale_word_of_the_last_owner_does_not_free_a_deleted_name() {
    let mut world = pool(&["a", "b", "c"], 3);
    let owner = world.owner("t0").unwrap();
    let stale = TeamEpoch {
        team: team("t0"),
        epoch: world.epoch("t0"),
    };
    // It goes away and comes back, under a newer epoch.
    world.drain(&owner);
    world.advance(1_000);
    assert_ne!(world.owner("t0").as_ref(), Some(&owner));
    world.ask(Ask::Undrain { node: node(&owner) }).unwrap();
    let now_at = world.owner("t0").unwrap();
    let link = deaf(&mut world, &now_at);
    world.ask(Ask::Delete { team: team("t0") }).unwrap();
    world.ask(Ask::Cordon { node: node(&now_at) }).unwrap();
    world.tell(Event::Released { link, held: stale });
    let new = world.place("t0");
    assert_eq!(state(&world, &new, "t0"), Some(HoldState::Prepared));
}

#[test]
fn a_prepared_owner_that_is_back_before_the_fence_waits_for_it() {
    let mut world = pool(&["a", "b"], 2);
    let owner = world.owner("t0").unwrap();
    let holding = world.nodes.get_mut(&node(&owner)).unwrap();
    holding.held.get_mut(&team("t0")).unwrap().state = HoldState::Prepared;
    world.restart_broker(Settings::default());
    world.connect(&owner);
    world.advance(6_000);
    assert_eq!(state(&world, &owner, "t0"), Some(HoldState::Prepared));
    world.advance(1_000);
    assert_eq!(state(&world, &owner, "t0"), Some(HoldState::Owned));
}

#[test]
fn a_deleted_team_stays_deleted_however_late_its_node_comes_back() {
    let mut world = pool(&["a", "b"], 4);
    let owner = world.owner("t0").unwrap();
    world.cut(&owner);
    world.ask(Ask::Delete { team: team("t0") }).unwrap();
    world.nodes.get_mut(&node(&owner)).unwrap().beats = false;
    world.advance(60_000);
    world.nodes.get_mut(&node(&owner)).unwrap().beats = true;
    world.connect(&owner);
    assert_eq!(world.core.team(&team("t0"), world.now), None);
    assert_eq!(state(&world, &owner, "t0"), None);
}
