//! Stories about which node takes a team.

#![allow(clippy::unwrap_used)]

mod world;

use usher_placement::{Answer, Ask, Notice, Refusal, Settings};
use usher_shared::link::{Capacity, Health};
use usher_shared::quantity::{Millicores, Weight};
use usher_shared::rest::{Cause, Gate, Pin, PinStrength, TeamPatch, TeamPut};
use world::*;

#[test]
fn three_hundred_teams_spread_evenly_over_three_idle_nodes() {
    let mut world = World::new();
    for name in ["a", "b", "c"] {
        world.add(name);
    }
    for serial in 0..300 {
        world.place(&format!("t{serial}"));
        world.advance(7);
    }
    for (name, teams) in world.spread() {
        assert!((97..=103).contains(&teams), "{name} has {teams}");
    }
    world.check();
}

#[test]
fn a_busy_node_gets_few_of_the_next_teams_and_why_says_so() {
    let mut world = World::new();
    for name in ["a", "b", "c"] {
        world.add(name);
    }
    for serial in 0..300 {
        world.place(&format!("t{serial}"));
    }
    world.nodes.get_mut(&node("a")).unwrap().cpu = 1_000;
    world.advance(2_000);
    for serial in 300..600 {
        world.place(&format!("t{serial}"));
        world.advance(5);
    }
    let spread = world.spread();
    assert!(
        spread["a"] - 100 < 60,
        "the busy node got {} more",
        spread["a"] - 100
    );
    let why = world.core.why(&team("t599"), world.now).unwrap();
    let decision = &why.decisions[0];
    assert_eq!(decision.cause, Cause::Connect);
    assert_eq!(decision.best.len(), 3);
    let busy = decision
        .best
        .iter()
        .find(|score| score.node == node("a"))
        .unwrap();
    assert!(busy.cpu_ppm > 200_000, "the CPU part of {busy:?} tells why");
    assert!(decision.best[0].busy_ppm <= busy.busy_ppm);
}

#[test]
fn a_team_stays_where_it_is_however_busy_its_node_becomes() {
    let mut world = World::new();
    world.add("a");
    let first = world.place("t");
    world.add("b");
    world.nodes.get_mut(&node("a")).unwrap().cpu = 1_900;
    world.advance(30_000);
    assert_eq!(world.place("t"), first);
}

#[test]
fn many_teams_at_once_do_not_herd_onto_the_node_that_looked_idle() {
    let mut world = World::new();
    world.add("a");
    world.add("b");
    world.nodes.get_mut(&node("a")).unwrap().cpu = 200;
    world.advance(1_000);
    // No report comes between these: only what was placed can tell.
    for serial in 0..100 {
        world.place(&format!("t{serial}"));
    }
    let spread = world.spread();
    assert!(spread["a"] >= 30 && spread["b"] >= spread["a"], "{spread:?}");
}

#[test]
fn a_node_with_twice_the_weight_takes_twice_the_teams() {
    let mut world = World::new();
    world.add_with("big", |hello| hello.weight = Weight::new(200).unwrap());
    world.add("small");
    for serial in 0..300 {
        world.place(&format!("t{serial}"));
    }
    let spread = world.spread();
    assert!((195..=205).contains(&spread["big"]), "{spread:?}");
}

#[test]
fn heavy_teams_count_for_what_they_weigh() {
    let mut world = World::new();
    world.add("a");
    world.add("b");
    let heavy = TeamPut {
        weight: Weight::new(50),
        ..TeamPut::default()
    };
    world.put("heavy", heavy).unwrap();
    for serial in 0..50 {
        world.place(&format!("t{serial}"));
    }
    let spread = world.spread();
    let owner = world.owner("heavy").unwrap();
    assert!(
        spread[&owner] <= 3,
        "beside the heavy team there is hardly another: {spread:?}"
    );
}

#[test]
fn every_gate_keeps_a_node_out_and_is_named() {
    let mut world = World::new();
    world.add("good");
    world.add("cordoned");
    world
        .ask(Ask::Cordon {
            node: node("cordoned"),
        })
        .unwrap();
    world.add_with("full", |hello| {
        hello.capacity = Capacity {
            teams: 0,
            connections: 10,
        }
    });
    world.add_with("crowded", |hello| {
        hello.capacity = Capacity {
            teams: 10,
            connections: 0,
        }
    });
    world.add("clock");
    world.nodes.get_mut(&node("clock")).unwrap().wall_skew_ms = 5_001;
    world.add("descriptors");
    world
        .nodes
        .get_mut(&node("descriptors"))
        .unwrap()
        .descriptors_left = 10;
    world.add("silent");
    world.nodes.get_mut(&node("silent")).unwrap().beats = false;
    world.advance(3_000);
    world.place("t");
    let why = world.core.why(&team("t"), world.now).unwrap();
    let decision = &why.decisions[0];
    assert_eq!(decision.node, Some(node("good")));
    let gates: Vec<(String, Gate)> = decision
        .gated_nodes
        .iter()
        .map(|(node, gate)| (node.to_string(), *gate))
        .collect();
    let expected = [
        ("clock", Gate::Clock),
        ("cordoned", Gate::Cordoned),
        ("crowded", Gate::FullConnections),
        ("descriptors", Gate::Descriptors),
        ("full", Gate::FullTeams),
        ("silent", Gate::Silent),
    ];
    assert_eq!(gates, expected.map(|(node, gate)| (node.to_owned(), gate)));
}

#[test]
fn when_every_node_is_gated_the_answer_is_a_refusal_that_says_why() {
    let mut world = World::new();
    let nobody = world.try_connect("t").unwrap_err();
    assert_eq!(nobody.code(), "no_node");
    assert!(nobody.to_string().contains("there are no nodes"), "{nobody}");
    world.add("a");
    world.ask(Ask::Cordon { node: node("a") }).unwrap();
    let cordoned = world.try_connect("t").unwrap_err();
    assert!(
        cordoned.to_string().contains("of 1 nodes: 1 cordoned"),
        "{cordoned}"
    );
    assert!(cordoned.retry_ms().is_some());
    assert_eq!(
        world.core.team(&team("t"), world.now),
        None,
        "a refused team leaves no trace"
    );
}

#[test]
fn a_node_that_stays_above_the_ceiling_or_under_pressure_is_the_last_resort() {
    let mut world = World::new();
    world.add("hot");
    world.add("pressed");
    world.add("loaded");
    for serial in 0..200 {
        let put = TeamPut {
            pin: Some(pin("loaded", PinStrength::Soft)),
            ..TeamPut::default()
        };
        world.put(&format!("l{serial}"), put).unwrap();
    }
    world.nodes.get_mut(&node("hot")).unwrap().cpu = 1_900;
    world.nodes.get_mut(&node("pressed")).unwrap().health = Health::Pressure;
    world.advance(60_000);
    assert_eq!(world.place("t"), "loaded");
    world.ask(Ask::Cordon { node: node("loaded") }).unwrap();
    assert_eq!(world.place("u"), "pressed");
    let why = world.core.why(&team("u"), world.now).unwrap();
    let best = &why.decisions[0].best[0];
    assert_eq!(best.last_resort, Some(Gate::Pressure));
    assert!(best.strain_ppm > 1_300_000, "{best:?}");
    let told =
        |by| world.noticed(|notice| matches!(notice, Notice::Strained { by: told, .. } if *told == by));
    assert!(told(Some(Gate::Pressure)) && told(Some(Gate::CpuCeiling)));
    world.nodes.get_mut(&node("pressed")).unwrap().health = Health::Good;
    world.advance(60_000);
    assert!(world.noticed(|notice| matches!(notice, Notice::Strained { by: None, .. })));
    let view = world.core.node(&node("pressed"), world.now).unwrap();
    assert!(
        view.score.strain_ppm < 100_000,
        "it is as good as the others again: {view:?}"
    );
}

#[test]
fn of_the_next_teams_a_node_that_says_it_is_under_pressure_gets_none() {
    let mut world = World::new();
    for name in ["a", "b", "pressed"] {
        world.add(name);
    }
    world.nodes.get_mut(&node("pressed")).unwrap().health = Health::Pressure;
    world.advance(1_100);
    for serial in 0..20 {
        world.place(&format!("t{serial}"));
    }
    assert_eq!(world.spread()["pressed"], 0);
}

#[test]
fn a_burst_does_not_go_as_a_whole_to_the_last_node_to_tell_of_pressure() {
    // Both nodes are on one machine. The one has told, the other will within a heartbeat.
    for standing in [0, 60, 600] {
        let mut world = World::new();
        world.add("told");
        world.add("untold");
        for serial in 0..standing {
            world.place(&format!("s{serial}"));
        }
        world.advance(120_000);
        let before = world.spread();
        world.nodes.get_mut(&node("told")).unwrap().health = Health::Pressure;
        world.beat("told");
        for serial in 0..150 {
            world.place(&format!("t{serial}"));
            world.advance(4);
        }
        world.nodes.get_mut(&node("untold")).unwrap().health = Health::Pressure;
        world.beat("untold");
        for serial in 150..300 {
            world.place(&format!("t{serial}"));
            world.advance(4);
        }
        let got = world.spread()["told"] - before["told"];
        assert!((100..=160).contains(&got), "{got} of 300 beside {standing} teams");
    }
}

#[test]
fn nodes_that_cross_the_cpu_ceiling_one_after_the_other_share_a_burst() {
    let mut world = World::new();
    world.add("a");
    world.add("b");
    world.advance(120_000);
    world.nodes.get_mut(&node("a")).unwrap().cpu = 1_810;
    world.nodes.get_mut(&node("b")).unwrap().cpu = 1_790;
    world.advance(1_000);
    for serial in 0..300 {
        world.place(&format!("t{serial}"));
    }
    let spread = world.spread();
    assert!(spread["a"] >= 100, "{spread:?}");
}

#[test]
fn a_node_with_most_of_the_connections_gets_few_of_the_next_teams_whatever_its_capacity() {
    for capacity in [1_100, 20_000, 1_000_000, u32::MAX] {
        let mut world = World::new();
        for name in ["a", "b", "c"] {
            world.add_with(name, |hello| {
                hello.capacity.connections = capacity;
            });
        }
        for serial in 0..3 {
            world.place(&format!("r{serial}"));
        }
        world.nodes.get_mut(&node("a")).unwrap().connections = 1_000;
        world.nodes.get_mut(&node("a")).unwrap().descriptors_left = u32::MAX;
        world.advance(2_000);
        for serial in 0..30 {
            world.place(&format!("t{serial}"));
        }
        let more = world.spread()["a"] - 1;
        assert!(
            more <= 5,
            "{more} of 30 went to the node with all the connections of {capacity}"
        );
        let imbalance = world.core.status(world.now).imbalance;
        assert_eq!(imbalance.connections_ppm, 3_000_000);
        assert_eq!(imbalance.cpu_ppm, 1_000_000);
        assert_eq!(world.core.status(world.now).imbalance_ppm, 3_000_000);
        let why = world.core.why(&team("t0"), world.now).unwrap();
        let best = &why.decisions[0].best;
        let crowded = best.iter().find(|score| score.node == node("a")).unwrap();
        assert!(
            crowded.connections_ppm >= 600_000 && crowded.connections == 1_000,
            "{crowded:?}"
        );
    }
}

#[test]
fn a_node_keeps_its_last_room_for_the_teams_that_it_has() {
    // Connections are even. What differs is how much each may still take.
    let mut world = World::new();
    world.add_with("small", |hello| hello.capacity.connections = 1_000);
    world.add("large");
    for name in ["small", "large"] {
        world.nodes.get_mut(&node(name)).unwrap().connections = 900;
    }
    world.advance(2_000);
    for serial in 0..100 {
        world.place(&format!("t{serial}"));
    }
    let spread = world.spread();
    assert!(spread["small"] <= 30, "{spread:?}");
}

#[test]
fn a_burst_between_two_reports_does_not_herd_onto_the_node_with_the_fewest_connections() {
    let mut world = World::new();
    for name in ["a", "b", "c"] {
        world.add(name);
    }
    for serial in 0..300 {
        world.place(&format!("t{serial}"));
    }
    world.advance(60_000);
    for (name, connections) in [("a", 3_000), ("b", 3_000), ("c", 2_000)] {
        world.nodes.get_mut(&node(name)).unwrap().connections = connections;
    }
    world.advance(2_000);
    // No report comes between these: only the connections that they are expected to bring can tell.
    for serial in 300..600 {
        world.place(&format!("t{serial}"));
    }
    let spread = world.spread();
    assert!((100..=150).contains(&(spread["c"] - 100)), "{spread:?}");
    let coming = world
        .core
        .node(&node("c"), world.now)
        .unwrap()
        .score
        .connections_pending;
    assert!(coming > 2_000, "{coming}");
}

fn pin(name: &str, strength: PinStrength) -> Pin {
    Pin {
        node: node(name),
        seconds: 60,
        strength,
    }
}

#[test]
fn a_soft_pin_is_a_wish_and_a_hard_one_an_order() {
    let mut world = World::new();
    world.add("a");
    world.add("b");
    let soft = TeamPut {
        pin: Some(pin("b", PinStrength::Soft)),
        ..TeamPut::default()
    };
    let hard = TeamPut {
        pin: Some(pin("b", PinStrength::Hard)),
        ..TeamPut::default()
    };
    world.put("soft", soft.clone()).unwrap();
    world.put("hard", hard).unwrap();
    assert_eq!(world.owner("soft").as_deref(), Some("b"));
    assert_eq!(world.owner("hard").as_deref(), Some("b"));
    let refused = world
        .ask(Ask::Drain {
            node: node("b"),
            post: Default::default(),
        })
        .unwrap_err();
    assert_eq!(refused.code(), "pinned_here");
    world.kill_with_witness("b");
    assert_eq!(world.owner("soft").as_deref(), Some("a"));
    assert_eq!(world.owner("hard"), None);
    assert_eq!(world.try_connect("hard").unwrap_err().code(), "pinned");
    world.advance(61_000);
    assert_eq!(world.place("hard"), "a", "a pin ends with its time");
    world.check();
}

#[test]
fn region_and_labels_narrow_the_candidates() {
    let mut world = World::new();
    world.add_with("eu", |hello| hello.region = Some("eu".parse().unwrap()));
    world.add_with("us", |hello| {
        hello.region = Some("us".parse().unwrap());
        hello
            .labels
            .insert("gpu".parse().unwrap(), "yes".parse().unwrap());
    });
    let region = TeamPut {
        region: Some("eu".parse().unwrap()),
        ..TeamPut::default()
    };
    let mut labels = TeamPut::default();
    labels
        .labels
        .insert("gpu".parse().unwrap(), "yes".parse().unwrap());
    for serial in 0..5 {
        world.put(&format!("r{serial}"), region.clone()).unwrap();
        world.put(&format!("l{serial}"), labels.clone()).unwrap();
    }
    assert_eq!(world.spread()["eu"], 5);
    let nowhere = TeamPut {
        region: Some("mars".parse().unwrap()),
        ..TeamPut::default()
    };
    let refused = world.put("m", nowhere).unwrap_err();
    assert!(refused.to_string().contains("2 in another region"), "{refused}");
}

#[test]
fn a_put_that_changes_the_wishes_moves_the_team() {
    let mut world = World::new();
    world.add("a");
    world.add("b");
    let owner = world.place("t");
    let other = if owner == "a" { "b" } else { "a" };
    let before = world.epoch("t");
    let put = TeamPut {
        pin: Some(pin(other, PinStrength::Soft)),
        ..TeamPut::default()
    };
    world.put("t", put).unwrap();
    assert_eq!(world.owner("t").as_deref(), Some(other));
    assert!(world.epoch("t") > before);
    world.check();
}

#[test]
fn a_patch_changes_what_it_names_and_keeps_the_rest() {
    let mut world = World::new();
    world.add_with("eu", |hello| hello.region = Some("eu".parse().unwrap()));
    let patch = |json: &str| serde_json::from_str::<TeamPatch>(json).unwrap();
    let full = r#"{"weight":20,"region":"eu","pin":{"node":"eu","seconds":3600}}"#;
    world.patch("t", patch(full)).unwrap();
    let before = world.view("t");
    world.patch("t", patch("{}")).unwrap();
    assert_eq!(world.view("t"), before);
    world.patch("t", patch(r#"{"region":null}"#)).unwrap();
    let view = world.view("t");
    assert_eq!((view.weight, &view.region), (before.weight, &None));
    assert_eq!(view.pin, before.pin);
    world.patch("t", patch(r#"{"weight":null,"pin":null}"#)).unwrap();
    let view = world.view("t");
    assert_eq!((view.weight.get(), view.pin), (1, None));
    world.check();
}

#[test]
fn wishes_that_nobody_can_meet_change_nothing() {
    let mut world = World::new();
    world.add_with("eu", |hello| {
        hello
            .labels
            .insert("gpu".parse().unwrap(), "yes".parse().unwrap());
    });
    let heavy = serde_json::from_str::<TeamPut>(r#"{"weight":20,"labels":{"gpu":"yes"}}"#).unwrap();
    world.put("t", heavy).unwrap();
    let before = (world.view("t"), world.stored("t"));
    for json in [r#"{"region":"mars"}"#, r#"{"weight":7,"labels":{"gpu":"no"}}"#] {
        let put = serde_json::from_str::<TeamPut>(json).unwrap();
        let patch = serde_json::from_str::<TeamPatch>(json).unwrap();
        assert!(world.put("t", put).is_err());
        assert!(world.patch("t", patch).is_err());
        assert_eq!((world.view("t"), world.stored("t")), before);
        world.check();
    }
}

#[test]
fn putting_twice_is_putting_once() {
    let mut world = World::new();
    world.add("a");
    world.add("b");
    let first = world.put("t", TeamPut::default()).unwrap();
    let second = world.put("t", TeamPut::default()).unwrap();
    let (
        Answer::Assigned {
            route: one,
            created: true,
            ..
        },
        Answer::Assigned {
            route: two,
            created: false,
            ..
        },
    ) = (first, second)
    else {
        panic!("first created, then found")
    };
    assert_eq!(one, two);
}

#[test]
fn a_new_node_takes_at_most_twice_its_share_at_first() {
    let mut world = World::new();
    for name in ["a", "b", "c"] {
        world.add(name);
    }
    for serial in 0..300 {
        world.place(&format!("t{serial}"));
    }
    world.advance(61_000);
    world.add("new");
    for serial in 300..400 {
        world.place(&format!("t{serial}"));
    }
    let new = world.spread()["new"];
    assert!(
        (38..=42).contains(&new),
        "twice what each of the three others got, not all: {new}"
    );
}

/// How many of 250 teams in a row go to an empty node beside full ones, and the longest run of them.
fn burst_beside(world: &mut World, name: &str) -> (u32, u32) {
    let (mut got, mut run, mut longest) = (0, 0, 0);
    for serial in 0..250 {
        if world.place(&format!("burst{serial}")) == name {
            got += 1;
            run += 1;
            longest = longest.max(run);
        } else {
            run = 0;
        }
    }
    (got, longest)
}

#[test]
fn what_a_new_node_takes_in_a_row_grows_with_its_age_and_never_jumps() {
    for (others, age_s, most, in_a_row) in [
        (3, 0, 110, 17),
        (3, 59, 110, 33),
        (3, 61, 110, 34),
        (3, 120, 120, 66),
        (1, 61, 170, 34),
        (9, 61, 60, 34),
        (3, 900, 250, 250),
    ] {
        let mut world = World::new();
        for serial in 0..others {
            world.add(&format!("old{serial}"));
        }
        for serial in 0..300 * others {
            world.place(&format!("t{serial}"));
        }
        world.advance(600_000);
        world.add("new");
        world.advance(age_s * 1_000);
        let (got, longest) = burst_beside(&mut world, "new");
        assert!(
            got >= 30 && got <= most && longest <= in_a_row,
            "after {age_s} s beside {others}: {got} of 250, {longest} in a row"
        );
    }
}

#[test]
fn a_node_that_is_let_in_again_warms_up_as_a_new_one_does() {
    for drained in [false, true] {
        let mut world = World::new();
        for name in ["a", "b", "c", "back"] {
            world.add(name);
        }
        let id = node("back");
        if drained {
            world.drain("back");
        } else {
            world.ask(Ask::Cordon { node: id.clone() }).unwrap();
        }
        for serial in 0..900 {
            world.place(&format!("t{serial}"));
        }
        world.advance(3_600_000);
        let again = if drained {
            Ask::Undrain { node: id }
        } else {
            Ask::Uncordon { node: id }
        };
        world.ask(again).unwrap();
        world.advance(61_000);
        let (got, longest) = burst_beside(&mut world, "back");
        assert!(got <= 110 && longest <= 34, "{got} of 250, {longest} in a row");
    }
}

#[test]
fn teams_that_trickle_in_all_go_to_the_empty_node_however_young_it_is() {
    let mut world = World::new();
    for name in ["a", "b", "c"] {
        world.add(name);
    }
    for serial in 0..300 {
        world.place(&format!("t{serial}"));
    }
    world.advance(600_000);
    world.add("new");
    for serial in 300..330 {
        assert_eq!(world.place(&format!("t{serial}")), "new");
        world.advance(5_000);
    }
}

#[test]
fn a_nodes_version_decides_nothing() {
    let mut world = World::new();
    world.add("a");
    world.add_with("b", |hello| hello.version = "1.1.0".to_owned());
    world.add_with("c", |hello| hello.version = "mini-0.1".to_owned());
    for serial in 0..300 {
        world.place(&format!("t{serial}"));
    }
    for (name, teams) in world.spread() {
        assert!((97..=103).contains(&teams), "{name} has {teams}");
    }
}

#[test]
fn teams_have_a_bound() {
    let mut world = World::with(Settings {
        max_teams: 2,
        ..Settings::default()
    });
    world.add("a");
    world.place("t1");
    world.place("t2");
    assert_eq!(world.try_connect("t3"), Err(Refusal::TooManyTeams { max: 2 }));
    world.ask(Ask::Delete { team: team("t1") }).unwrap();
    world.place("t3");
    assert!(
        !world.nodes[&node("a")].held.contains_key(&team("t1")),
        "the node dropped the forgotten team"
    );
}

#[test]
fn a_client_that_may_not_create_is_told_that_the_team_is_unknown() {
    let mut world = World::new();
    world.add("a");
    let ask = Ask::Connect {
        team: team("t"),
        may_create: false,
        region: None,
        knock: None,
    };
    assert_eq!(world.ask(ask), Err(Refusal::UnknownTeam(team("t"))));
}

#[test]
fn expected_cpu_is_at_most_half_of_the_score() {
    let mut world = World::with(Settings {
        cost_min_weights: 1,
        ..Settings::default()
    });
    world.add("a");
    world.add("b");
    for serial in 0..10 {
        world.place(&format!("t{serial}"));
    }
    // Each team seems to cost 50 millicores, the cap.
    world.nodes.get_mut(&node("a")).unwrap().cpu = 1_000;
    world.nodes.get_mut(&node("b")).unwrap().cpu = 1_000;
    world.advance(2_100);
    for serial in 10..60 {
        world.place(&format!("t{serial}"));
    }
    for view in world.core.nodes(world.now) {
        let share = u64::from(view.score.cpu_pending.get()) * 400_000 / 2_000;
        let known = view.score.teams_ppm + 400_000 * u64::from(view.cpu_average.get()) / 2_000;
        assert!(view.score.cpu_pending > Millicores::default());
        assert!(view.score.busy_ppm <= known + share.min(known), "{view:?}");
    }
}
