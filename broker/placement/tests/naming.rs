//! Stories about processes that claim a name, an incarnation, a death.

#![allow(clippy::unwrap_used)]

mod world;

use usher_placement::{Event, Evidence, LinkId, Notice, ProbeOutcome, Settings};
use usher_shared::identity::Hidden;
use usher_shared::link::{Exited, Granted, Hello, HoldState, RefusedCode, TeamEpoch};
use usher_shared::quantity::Epoch;
use world::*;

fn teams_of(world: &World, name: &str) -> Vec<String> {
    let page = world.core.teams(Some(&node(name)), None, 1_000, world.now);
    page.teams.into_iter().map(|view| view.team.to_string()).collect()
}

/// How far the owner's assignment of a team has come, as the owner knows it.
fn state(world: &World, name: &str) -> HoldState {
    let owner = world.owner(name).unwrap();
    world.nodes[&node(&owner)].held[&team(name)].state
}

/// Says this hello on a link of its own; how it was refused, if it was.
fn claims(world: &mut World, link: u64, hello: Hello) -> Option<RefusedCode> {
    let (link, hello) = (LinkId(link), Box::new(hello));
    world.tell(Event::Hello { link, hello });
    let refused = world.closed.iter().rev().find(|(closed, _)| *closed == link);
    refused.map(|(_, refused)| refused.code)
}

/// The process of this name stands still from here on, and another one is started under it elsewhere.
fn twin_of(world: &mut World, name: &str) -> FakeNode {
    let mut first = world.nodes.remove(&node(name)).unwrap();
    first.link = None;
    world.advance(2_300);
    world.add(name);
    first
}

fn disbelieved(world: &World) -> usize {
    let told = |notice: &&Notice| matches!(notice, Notice::ExitDisbelieved { .. });
    world.notices.iter().filter(told).count()
}

#[test]
fn a_second_process_of_a_name_does_not_prove_that_the_first_has_ended() {
    let mut world = pool(&["a", "b", "c"], 30);
    let moved = teams_of(&world, "a");
    twin_of(&mut world, "a");
    for name in &moved {
        assert_ne!(world.owner(name).as_deref(), Some("a"), "clients go on at once");
        assert_eq!(
            state(&world, name),
            HoldState::Prepared,
            "the first may act still"
        );
    }
    world.advance(4_000);
    assert_eq!(state(&world, &moved[0]), HoldState::Prepared);
    world.advance(500);
    for name in &moved {
        assert_eq!(state(&world, name), HoldState::Owned);
    }
    assert!(world.noticed(|notice| matches!(
        notice,
        Notice::NodeDead {
            evidence: Evidence::Displaced,
            ..
        }
    )));
    world.check();
}

#[test]
fn a_successor_that_holds_the_same_lock_proves_that_the_first_has_ended() {
    for (lock, proves) in [(7, true), (8, false)] {
        let mut world = World::new();
        let mut hello = world.hello("a");
        hello.lock = Some(Hidden::from_bits(7));
        world.add_hello(hello);
        world.add("b");
        for serial in 0..10 {
            world.place(&format!("t{serial}"));
        }
        let moved = teams_of(&world, "a");
        world.cut("a");
        world.nodes.remove(&node("a"));
        let mut next = world.hello("a");
        next.lock = Some(Hidden::from_bits(lock));
        world.add_hello(next);
        let expected = if proves {
            HoldState::Owned
        } else {
            HoldState::Prepared
        };
        assert_eq!(state(&world, &moved[0]), expected);
    }
}

#[test]
fn a_lock_is_known_again_after_a_restart_of_the_broker_and_is_not_in_the_store() {
    let mut world = World::new();
    let mut hello = world.hello("a");
    (hello.lock, hello.nonce) = (Some(Hidden::from_bits(7)), Some(Hidden::from_bits(0xfeed)));
    let incarnation = hello.incarnation;
    world.add_hello(hello);
    world.place("t0");
    let kept = serde_json::to_string(&world.store.nodes[&node("a")]).unwrap();
    assert!(
        !kept.contains("feed") && !kept.contains(&Hidden::from_bits(7).expose()),
        "{kept}"
    );
    world.restart_broker(Settings::default());
    world.nodes.remove(&node("a"));
    let mut false_one = world.hello("a");
    false_one.incarnation = incarnation;
    assert_eq!(claims(&mut world, 900, false_one), Some(RefusedCode::Unproven));
    let mut next = world.hello("a");
    next.lock = Some(Hidden::from_bits(7));
    world.add_hello(next);
    assert!(world.noticed(|notice| matches!(
        notice,
        Notice::NodeDead {
            evidence: Evidence::Successor,
            ..
        }
    )));
}

#[test]
fn a_node_that_is_restarted_without_proof_serves_its_teams_at_once_and_acts_after_the_lease() {
    let mut world = pool(&["a"], 5);
    world.cut("a");
    world.nodes.remove(&node("a"));
    world.add("a");
    for serial in 0..5 {
        let name = format!("t{serial}");
        assert_eq!(world.owner(&name).as_deref(), Some("a"));
        assert_eq!(state(&world, &name), HoldState::Prepared);
    }
    world.advance(6_700);
    assert_eq!(state(&world, "t0"), HoldState::Owned);
    world.check();
}

#[test]
fn two_live_processes_of_a_name_do_not_throw_each_other_out() {
    let mut world = pool(&["a", "b", "c"], 30);
    let first = twin_of(&mut world, "a");
    world.advance(500);
    let spread = world.spread();
    // It goes on, and finds its name taken; also while the second is silent for a moment.
    assert_eq!(
        claims(&mut world, 900, first.hello.clone()),
        Some(RefusedCode::NameTaken)
    );
    world.nodes.get_mut(&node("a")).unwrap().beats = false;
    world.advance(3_500);
    assert_eq!(
        claims(&mut world, 901, first.hello.clone()),
        Some(RefusedCode::NameTaken)
    );
    world.nodes.get_mut(&node("a")).unwrap().beats = true;
    world.advance(1_500);
    assert_eq!(world.spread(), spread);
    let rival = world.core.node(&node("a"), world.now).unwrap().rival.unwrap();
    assert_eq!(rival.refused, 2);
    // The second dies without a word: then the name is the first one's again.
    world.cut("a");
    world.nodes.remove(&node("a"));
    assert_eq!(
        claims(&mut world, 902, first.hello.clone()),
        Some(RefusedCode::NameTaken)
    );
    world.advance(7_000);
    assert_eq!(claims(&mut world, 903, first.hello), None);
}

#[test]
fn what_the_second_process_of_a_name_has_done_says_nothing_of_the_first() {
    let mut world = pool(&["a", "b"], 2);
    let name = teams_of(&world, "a")[0].clone();
    twin_of(&mut world, "a");
    // To the other node, and from there to the newcomer of the old name, and away again.
    assert_eq!(world.owner(&name).as_deref(), Some("b"));
    world.drain("b");
    world.advance(200);
    assert_eq!(world.owner(&name).as_deref(), Some("a"));
    world
        .ask(usher_placement::Ask::Undrain { node: node("b") })
        .unwrap();
    world.drain("a");
    world.advance(200);
    assert_eq!(world.owner(&name).as_deref(), Some("b"));
    assert_eq!(
        state(&world, &name),
        HoldState::Prepared,
        "the first may act still"
    );
    world.advance(6_000);
    assert_eq!(state(&world, &name), HoldState::Owned);
}

#[test]
fn the_parent_of_a_displaced_process_can_still_prove_its_end() {
    let mut world = pool(&["a", "b", "c"], 30);
    let moved = teams_of(&world, "a");
    let word = world.exit_of("a");
    twin_of(&mut world, "a");
    let without = Exited {
        nonce: None,
        ..word.clone()
    };
    assert!(!world.core.is_shown(&without) && world.core.is_shown(&word));
    world.tell(Event::Exited(without));
    assert_eq!(state(&world, &moved[0]), HoldState::Prepared);
    world.tell(Event::Exited(word));
    assert_eq!(state(&world, &moved[0]), HoldState::Owned);
    assert_eq!(disbelieved(&world), 1);
}

#[test]
fn a_name_that_changes_hands_too_often_within_a_lease_stays_where_it_is() {
    let mut world = pool(&["a", "b"], 4);
    for _ in 0..8 {
        world.cut("a");
        world.nodes.remove(&node("a"));
        world.add("a");
    }
    world.cut("a");
    let ninth = world.hello("a");
    assert_eq!(
        claims(&mut world, 900, ninth.clone()),
        Some(RefusedCode::NameTaken)
    );
    world.advance(7_000);
    assert_eq!(claims(&mut world, 901, ninth), None);
}

#[test]
fn the_lease_of_a_displaced_process_outlives_a_restart_of_the_broker() {
    let long = Settings {
        lease_ms: 20_000,
        ..Settings::default()
    };
    let mut world = World::with(long);
    world.add("a");
    world.place("t0");
    world.advance(1_000);
    world.restart_broker(Settings::default());
    world.connect("a");
    twin_of(&mut world, "a");
    world.restart_broker(Settings::default());
    world.connect("a");
    world.advance(15_000);
    assert_eq!(
        state(&world, "t0"),
        HoldState::Prepared,
        "granted before both restarts, for 20 s"
    );
    world.advance(6_000);
    assert_eq!(state(&world, "t0"), HoldState::Owned);
}

#[test]
fn an_incarnation_is_no_proof_of_who_says_it() {
    let mut world = pool(&["a", "b"], 10);
    let before = world.spread();
    let known = world.nodes[&node("a")].hello.clone();
    for nonce in [None, Some(Hidden::from_bits(0xbad))] {
        let hello = Hello {
            nonce,
            ..known.clone()
        };
        assert_eq!(claims(&mut world, 900, hello), Some(RefusedCode::Unproven));
    }
    assert!(world.core.node(&node("a"), world.now).unwrap().rival.is_some());
    world.advance(3_000);
    assert_eq!(world.spread(), before);
    // Not while the link is down either.
    world.cut("a");
    let hello = Hello { nonce: None, ..known };
    assert_eq!(claims(&mut world, 901, hello), Some(RefusedCode::Unproven));
    world.connect("a");
    world.advance(1_000);
    assert_eq!(world.spread(), before);
    world.check();
}

#[test]
fn a_report_that_a_live_link_contradicts_is_not_believed() {
    let mut world = pool(&["a", "b", "c"], 30);
    let before = world.spread();
    let word = world.exit_of("a");
    world.tell(Event::Exited(word));
    assert_eq!(world.spread(), before);
    world.advance(4_000);
    assert_eq!(disbelieved(&world), 1);
    // And a break of the link later does not make it true.
    world.cut("a");
    assert_eq!(world.spread(), before);
    world.connect("a");
    world.advance(1_000);
    assert_eq!(world.spread(), before);
    world.check();
}

#[test]
fn a_report_is_believed_as_soon_as_the_link_closes_or_falls_silent() {
    for closes in [true, false] {
        let mut world = pool(&["a", "b", "c"], 30);
        let moved = teams_of(&world, "a");
        let word = world.exit_of("a");
        world.tell(Event::Exited(word));
        assert_eq!(world.owner(&moved[0]).as_deref(), Some("a"));
        if closes {
            world.cut("a");
        } else {
            world.nodes.get_mut(&node("a")).unwrap().beats = false;
            world.advance(2_300);
        }
        assert_ne!(world.owner(&moved[0]).as_deref(), Some("a"));
        assert_eq!(state(&world, &moved[0]), HoldState::Owned);
        assert_eq!(disbelieved(&world), 0);
    }
}

#[test]
fn a_report_without_the_nonce_is_not_believed_whatever_the_link_does() {
    let mut world = pool(&["a", "b", "c"], 30);
    let before = world.spread();
    let word = Exited {
        nonce: None,
        ..world.exit_of("a")
    };
    world.tell(Event::Exited(word.clone()));
    world.cut("a");
    world.tell(Event::Exited(word));
    assert_eq!(world.spread(), before);
    assert_eq!(disbelieved(&world), 2);
}

#[test]
fn a_node_without_a_nonce_is_known_by_its_incarnation() {
    let mut world = World::new();
    for name in ["a", "b"] {
        let hello = Hello {
            nonce: None,
            ..world.hello(name)
        };
        world.add_hello(hello);
    }
    for serial in 0..4 {
        world.place(&format!("t{serial}"));
    }
    world.cut("a");
    world.connect("a");
    let moved = teams_of(&world, "a");
    world.kill_with_witness("a");
    assert_eq!(state(&world, &moved[0]), HoldState::Owned);
}

#[test]
fn a_false_hello_keeps_nobody_alive() {
    let mut world = pool(&["a", "b", "c", "d"], 40);
    let moved = teams_of(&world, "a");
    let hello = Hello {
        nonce: None,
        broker: Some(usher_shared::id::BrokerId::from_bits(99)),
        ..world.nodes[&node("a")].hello.clone()
    };
    world.cut("a");
    world.nodes.remove(&node("a"));
    for serial in 0..8 {
        world.advance(1_000);
        claims(&mut world, 900 + serial, hello.clone());
    }
    assert_ne!(world.owner(&moved[0]).as_deref(), Some("a"));
}

#[test]
fn made_up_names_come_in_at_a_pace_and_are_told() {
    let settings = Settings {
        new_names: 10,
        new_names_per_s: 2,
        ..Settings::default()
    };
    let mut world = World::with(settings);
    let mut let_in = 0;
    for serial in 0..3_000 {
        let hello = world.hello(&format!("made-up-{serial}"));
        let_in += usize::from(claims(&mut world, 1_000 + serial, hello).is_none());
    }
    assert_eq!(let_in, 10);
    assert!(world.noticed(
        |notice| matches!(notice, Notice::NodeRefused { code: RefusedCode::TooManyNames, detail, .. } if detail.contains("token"))
    ));
    world.advance(1_000);
    let hello = world.hello("late");
    assert_eq!(claims(&mut world, 9_000, hello), None);
    // A node that was given something by this cluster is known, whatever its store has lost.
    let epoch = Epoch::new(3).unwrap();
    let mut stranger = world.hello("stranger");
    stranger.highest_grant = Some(Granted {
        team: team("t"),
        epoch,
        grant: grants().sign(&team("t"), &node("another"), epoch),
    });
    let hello = world.hello("last");
    assert_eq!(claims(&mut world, 9_001, hello), None);
    assert_eq!(
        claims(&mut world, 9_002, stranger.clone()),
        Some(RefusedCode::TooManyNames)
    );
    let mut vouched = stranger;
    vouched.highest_grant = Some(Granted {
        team: team("t"),
        epoch,
        grant: grants().sign(&team("t"), &node("stranger"), epoch),
    });
    assert_eq!(claims(&mut world, 9_003, vouched), None);
}

#[test]
fn a_name_that_never_held_a_team_is_forgotten_as_soon_as_it_is_dead() {
    let mut world = pool(&["a", "b", "c", "d"], 0);
    world.cut("d");
    world.nodes.remove(&node("d"));
    world.advance(7_500);
    assert!(world.core.node(&node("d"), world.now).is_none());
    let serials = (0..30).map(|serial| format!("t{serial}"));
    for name in serials {
        world.place(&name);
    }
    world.kill("c");
    world.advance(7_500);
    assert!(world.core.node(&node("c"), world.now).is_some(), "it had teams");
}

#[test]
fn a_probe_of_an_earlier_process_says_nothing_of_the_next() {
    let mut world = pool(&["a", "b"], 4);
    let before = world.nodes[&node("a")].hello.incarnation;
    world.cut("a");
    world.nodes.remove(&node("a"));
    world.add("a");
    let spread = world.spread();
    world.cut("a");
    world.tell(Event::Probed {
        node: node("a"),
        incarnation: before,
        outcome: ProbeOutcome::Refused,
    });
    assert_eq!(world.spread(), spread);
    world.tell(Event::Yielded {
        link: LinkId(12_345),
        held: TeamEpoch {
            team: team("t0"),
            epoch: Epoch::new(1).unwrap(),
        },
    });
}

#[cfg(feature = "planted-bugs")]
mod planted {
    use usher_shared::planted::{Bug, plant};

    #[test]
    fn it_is_found_by_its_story() {
        plant(Some(Bug::NamesakeAnswers));
        let told = std::panic::catch_unwind(
            super::what_the_second_process_of_a_name_has_done_says_nothing_of_the_first,
        );
        plant(None);
        assert!(told.is_err(), "it was not found");
        super::what_the_second_process_of_a_name_has_done_says_nothing_of_the_first();
    }
}
