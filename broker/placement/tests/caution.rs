//! Too many nodes silent at once: what is held back, and what ends it.

#![allow(clippy::unwrap_used, clippy::expect_used)] // Also outside of test functions, a test may fail.

mod world;

use usher_placement::{Event, LinkId, Notice, Preservation, ProbeOutcome};
use usher_shared::rest::{BrokerState, Cause};
use world::{World, node, pool, team};

fn hush(world: &mut World, names: &[&str]) {
    for name in names {
        world.nodes.get_mut(&node(name)).unwrap().beats = false;
    }
}

fn one_of(world: &World, name: &str) -> String {
    let all = world.core.teams(Some(&node(name)), None, 1, world.now);
    all.teams[0].team.to_string()
}

fn changes(world: &World) -> Vec<Preservation> {
    let change = |notice: &Notice| match notice {
        Notice::SelfPreservation { change, .. } => Some(*change),
        _ => None,
    };
    world.notices.iter().filter_map(change).collect()
}

#[test]
fn self_preservation_ends_by_its_bound_in_time_and_says_so() {
    let mut world = pool(&["a", "b", "c", "d"], 40);
    hush(&mut world, &["a", "b"]);
    world.advance(30_000);
    let view = world.core.status(world.now).self_preservation.unwrap();
    assert_eq!((view.silent, view.nodes), (2, 4));
    assert!((25_000..35_000).contains(&view.ends_in_ms), "{view:?}");
    assert_eq!(world.spread()["a"], 10);
    world.advance(35_000);
    assert_eq!(world.spread()["a"] + world.spread()["b"], 0);
    assert_eq!(
        changes(&world),
        [Preservation::Begun { for_ms: 60_000 }, Preservation::Expired]
    );
    world.check();
}

#[test]
fn while_nobody_is_heard_who_could_take_the_teams_it_does_not_end() {
    let mut world = pool(&["a", "b", "c"], 30);
    let before = world.spread();
    hush(&mut world, &["a", "b", "c"]);
    world.advance(600_000);
    assert_eq!(
        world.spread(),
        before,
        "a route that may work is better than none"
    );
    // The first that is back does not condemn the others in the same moment.
    hush(&mut world, &[]);
    world.nodes.get_mut(&node("a")).unwrap().beats = true;
    world.cut("a");
    world.connect("a");
    world.advance(50_000);
    assert_eq!(world.spread(), before);
    world.advance(15_000);
    assert_eq!(world.spread()["a"], 30);
    world.check();
}

#[test]
fn a_node_that_comes_back_late_buys_the_others_a_lease() {
    let names = ["a", "b", "c", "d", "e", "f", "g", "h"];
    let mut world = pool(&names, 80);
    hush(&mut world, &names[..5]);
    world.advance(61_500);
    world.nodes.get_mut(&node("a")).unwrap().beats = true;
    world.cut("a");
    world.connect("a");
    world.advance(4_000);
    assert_eq!(world.spread()["b"], 10, "its way may be open again, too");
    world.advance(6_000);
    assert_eq!(world.spread()["b"], 0);
    assert_eq!(world.spread()["a"], 10 + 40 / 4);
    world.check();
}

#[test]
fn a_team_of_a_silent_node_that_is_asked_for_again_and_again_moves_without_a_ticket() {
    let mut world = pool(&["a", "b", "c", "d"], 40);
    hush(&mut world, &["a", "b"]);
    world.advance(3_000);
    let stuck = one_of(&world, "a");
    for _ in 0..3 {
        assert_eq!(world.place(&stuck), "a", "its lease is not over yet");
        world.advance(1_100);
    }
    world.advance(3_000);
    // Three at once are three clients.
    for _ in 0..3 {
        assert_eq!(world.place(&stuck), "a");
    }
    world.advance(2_500);
    assert_eq!(world.place(&stuck), "a");
    world.advance(2_600);
    let moved = world.place(&stuck);
    assert!(["c", "d"].contains(&moved.as_str()), "{moved}");
    assert_eq!(
        world.core.why(&team(&stuck), world.now).unwrap().decisions[0].cause,
        Cause::Knock
    );
    assert_eq!(world.spread()["a"], 9, "and no other");
    world.check();
}

#[test]
fn a_refusal_and_a_proof_are_believed_in_self_preservation() {
    let mut world = pool(&["a", "b", "c", "d"], 40);
    hush(&mut world, &["a", "b"]);
    world.advance(10_000);
    assert_eq!(world.core.status(world.now).state, BrokerState::SelfPreservation);
    let incarnation = |world: &World, name: &str| world.nodes[&node(name)].hello.incarnation;
    world.cut("a");
    let refused = Event::Probed {
        node: node("a"),
        incarnation: incarnation(&world, "a"),
        outcome: ProbeOutcome::Refused,
    };
    world.tell(refused);
    world.advance(200);
    assert_eq!((world.spread()["a"], world.spread()["b"]), (0, 10));
    let exited = world.exit_of("b");
    world.tell(Event::Exited(exited));
    assert_eq!(world.spread()["b"], 0);
    world.check();
}

#[test]
fn a_refusal_is_no_death_while_nobody_is_left_to_take_the_teams() {
    let mut world = pool(&["a", "b", "c"], 30);
    let before = world.spread();
    hush(&mut world, &["a", "b", "c"]);
    world.advance(5_000);
    for name in ["a", "b", "c"] {
        world.cut(name);
        let incarnation = world.nodes[&node(name)].hello.incarnation;
        world.tell(Event::Probed {
            node: node(name),
            incarnation,
            outcome: ProbeOutcome::Refused,
        });
    }
    world.advance(30_000);
    assert_eq!(world.spread(), before);
    world.check();
}

#[test]
fn names_that_hold_nothing_neither_hold_up_a_failover_nor_make_one_suspicious() {
    let mut world = pool(&["a", "b", "c", "d"], 40);
    for serial in 0..300 {
        let name = format!("made-up-{serial}");
        let hello = Box::new(world.hello(&name));
        let link = LinkId(1_000_000 + serial);
        world.tell(Event::Hello { link, hello });
        world.tell(Event::LinkClosed { link });
    }
    hush(&mut world, &["a"]);
    world.advance(8_000);
    assert_eq!(world.core.status(world.now).state, BrokerState::Ready);
    assert_eq!(world.spread()["a"], 0, "one of four is believed");
    // Nor do nodes that stand by empty dilute the silence of those that hold teams.
    let mut world = pool(&["a", "b", "c"], 30);
    for serial in 0..20 {
        world.add(&format!("spare-{serial}"));
    }
    hush(&mut world, &["a", "b"]);
    world.advance(8_000);
    assert_eq!(world.core.status(world.now).state, BrokerState::SelfPreservation);
    assert_eq!(world.spread()["a"], 10);
    world.check();
}
