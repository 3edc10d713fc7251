//! Properties: choosing against a slow and obvious model, and what must hold after any story.

#![allow(clippy::unwrap_used)]

mod world;

use proptest::prelude::*;
use std::collections::BTreeMap;
use usher_placement::{Ask, Event, RequestId, Settings};
use usher_shared::link::Capacity;
use usher_shared::quantity::{Epoch, Millicores, Weight};
use world::*;

/// A node as the model sees it.
#[derive(Clone, Debug)]
struct Plain {
    weight: u32,
    cores: u32,
    cpu: u32,
    capacity: u32,
    connections: u32,
    room: u32,
    pressed: bool,
    cordoned: bool,
}

fn plain_node() -> impl Strategy<Value = Plain> {
    let weight = prop_oneof![Just(100_u32), 1..=400_u32];
    let capacity = prop_oneof![4 => Just(1_000_u32), 1 => 0..=8_u32];
    (
        weight,
        500..=8_000_u32,
        0..=2_000_u32,
        capacity,
        prop_oneof![2 => Just(0_u32), 1 => 0..=3_000_u32],
        prop_oneof![2 => Just(100_000_u32), 1 => 0..=400_u32],
        prop::bool::weighted(0.2),
        prop::bool::weighted(0.1),
    )
        .prop_map(
            |(weight, cores, cpu, capacity, connections, room, pressed, cordoned)| Plain {
                weight,
                cores,
                cpu,
                capacity,
                connections,
                room,
                pressed,
                cordoned,
            },
        )
}

/// Nothing on its way counts, nobody is young and strain is all there at once, so that the state is all in the
/// model's hands.
fn settled() -> Settings {
    Settings {
        cost_cap_millicores: 0,
        connections_cap: 0,
        strain_lasting_ppm: 0,
        warm_up_ms: 0,
        ..Settings::default()
    }
}

/// The least busy node by the formula of the design, node by node, with no index and nothing kept.
fn obvious_choice(
    nodes: &BTreeMap<String, Plain>,
    teams: &BTreeMap<String, u32>,
    chosen_at: &BTreeMap<String, u64>,
) -> Option<String> {
    let load = |name: &str| u64::from(teams[name]) * 1_000 * 100 / u64::from(nodes[name].weight);
    let ready: Vec<&String> = nodes
        .iter()
        .filter(|(_, node)| !node.cordoned)
        .map(|(name, _)| name)
        .collect();
    let mean = |load: &dyn Fn(&str) -> u64| {
        let sum: u64 = ready.iter().map(|name| load(name)).sum();
        sum.checked_div(ready.len() as u64).unwrap_or(0)
    };
    let connected =
        |name: &str| u64::from(nodes[name].connections) * 1_000 * 100 / u64::from(nodes[name].weight);
    let (mean_load, mean_connected) = (mean(&load), mean(&connected));
    let candidates = ready
        .iter()
        .filter(|name| teams[**name] < nodes[**name].capacity && nodes[**name].room > 0);
    candidates
        .min_by_key(|name| {
            let name = name.as_str();
            let node = &nodes[name];
            let cpu = u64::from(node.cpu) * 1_000_000 / u64::from(node.cores);
            let by_teams = 400_000 * load(name) / mean_load.max(10_000);
            let beside_others = 200_000 * connected(name) / mean_connected.max(50_000);
            let crowded = 200_000 * u64::from(node.connections) / u64::from(node.room);
            let by_cpu = 400_000 * u64::from(node.cpu) / u64::from(node.cores);
            let strain = if node.pressed || cpu > 900_000 { 500_000 } else { 0 };
            (
                by_teams + beside_others + crowded.min(2_000_000) + by_cpu + strain,
                teams[name],
                chosen_at.get(name).copied().unwrap_or(0),
                name.to_owned(),
            )
        })
        .map(|name| (*name).clone())
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 128, ..ProptestConfig::default() })]

    #[test]
    fn the_index_chooses_what_the_obvious_model_chooses(
        nodes in prop::collection::vec(plain_node(), 1..12),
        placements in 1..40_usize,
    ) {
        let mut world = World::with(settled());
        let nodes: BTreeMap<String, Plain> =
            nodes.into_iter().enumerate().map(|(serial, node)| (format!("n{serial}"), node)).collect();
        for (name, plain) in &nodes {
            world.add_with(name, |hello| {
                hello.weight = Weight::new(plain.weight).unwrap();
                hello.cores = Millicores::new(plain.cores).unwrap();
                hello.capacity = Capacity { teams: plain.capacity, connections: plain.connections + plain.room };
            });
            let fake = world.nodes.get_mut(&node(name)).unwrap();
            fake.cpu = plain.cpu;
            fake.connections = plain.connections;
            fake.descriptors_left = u32::MAX;
            if plain.pressed {
                fake.health = usher_shared::link::Health::Pressure;
            }
            if plain.cordoned {
                world.ask(Ask::Cordon { node: node(name) }).unwrap();
            }
        }
        let mut teams: BTreeMap<String, u32> = nodes.keys().map(|name| (name.clone(), 0)).collect();
        let mut chosen_at = BTreeMap::new();
        for serial in 0..placements {
            // A tick, so that the mean is of this moment.
            world.advance(1_100);
            let expected = obvious_choice(&nodes, &teams, &chosen_at);
            let got = match world.try_connect(&format!("t{serial}")) {
                Ok(_) => world.owner(&format!("t{serial}")),
                Err(_) => None,
            };
            prop_assert_eq!(&got, &expected);
            if let Some(name) = got {
                *teams.get_mut(&name).unwrap() += 1;
                chosen_at.insert(name, serial as u64 + 1);
            }
        }
    }

    #[test]
    fn choosing_twice_from_the_same_state_gives_the_same_answer(
        names in 2..8_usize,
        cpus in prop::collection::vec(0..2_000_u32, 8),
        teams in 0..60_usize,
    ) {
        let mut world = World::new();
        for (serial, cpu) in cpus.iter().enumerate().take(names) {
            world.add(&format!("n{serial}"));
            world.nodes.get_mut(&node(&format!("n{serial}"))).unwrap().cpu = *cpu;
        }
        world.advance(1_500);
        for serial in 0..teams {
            world.place(&format!("t{serial}"));
        }
        let ask = Event::Request {
            request: RequestId(1 << 40),
            ask: Ask::Connect { team: team("next"), may_create: true, region: None, knock: None },
        };
        let (mut one, mut other) = (world.core.clone(), world.core.clone());
        one.handle(ask.clone(), world.now);
        other.handle(ask, world.now);
        loop {
            let (first, second) = (one.poll_command(), other.poll_command());
            prop_assert_eq!(&first, &second);
            if first.is_none() {
                break;
            }
        }
    }

    #[test]
    fn after_any_story_owners_live_and_epochs_only_grew(
        steps in prop::collection::vec((0..12_u8, 0..6_usize, 0..30_usize, 1..4_000_u64), 1..80),
    ) {
        let mut world = World::new();
        for serial in 0..4 {
            world.add(&format!("n{serial}"));
        }
        let mut epochs: BTreeMap<String, Epoch> = BTreeMap::new();
        for (what, which_node, which_team, millis) in steps {
            tell_a_step(&mut world, what, &format!("n{which_node}"), &format!("t{which_team}"), millis);
            world.check();
            check_epochs(&world, &mut epochs)?;
        }
        // Faults stop: everyone who is missing comes up, and every team has an owner again.
        for serial in 0..6 {
            let name = format!("n{serial}");
            let _ = world.ask(Ask::Undrain { node: node(&name) });
            let _ = world.ask(Ask::Uncordon { node: node(&name) });
            match world.nodes.get(&node(&name)).map(|fake| fake.link) {
                None => world.add(&name),
                Some(None) => world.connect(&name),
                Some(Some(_)) => {}
            }
        }
        world.advance(60_000);
        world.check();
        let status = world.core.status(world.now);
        prop_assert_eq!(status.teams_unplaced, 0);
        for (name, fake) in &world.nodes {
            let page = world.core.teams(Some(name), None, 1_000, world.now);
            for view in &page.teams {
                let held = fake.held.get(&view.team);
                prop_assert_eq!(held.map(|held| held.epoch), Some(view.epoch), "{} holds {}", name, view.team);
                prop_assert_eq!(held.map(|held| held.state), Some(usher_shared::link::HoldState::Owned));
            }
            prop_assert_eq!(fake.held.len(), page.teams.len(), "{} holds nothing else", name);
        }
    }
}

fn tell_a_step(world: &mut World, what: u8, name: &str, team_name: &str, millis: u64) {
    let known = world.nodes.contains_key(&node(name));
    let linked = world
        .nodes
        .get(&node(name))
        .is_some_and(|fake| fake.link.is_some());
    match what {
        0..=3 => {
            let _ = world.try_connect(team_name);
        }
        4 => world.advance(millis),
        5 if linked => world.kill(name),
        6 if linked => world.kill_with_witness(name),
        7 if linked => world.cut(name),
        7 if known => world.connect(name),
        8 if !known => world.add(name),
        9 if linked => {
            let force = usher_shared::rest::DrainPost {
                force: true,
                ..Default::default()
            };
            let _ = world.ask(Ask::Drain {
                node: node(name),
                post: force,
            });
        }
        9 if known => world.connect(name),
        10 => {
            let _ = world.ask(Ask::Delete {
                team: team(team_name),
            });
        }
        11 if millis < 1_000 => world.restart_broker(Settings::default()),
        11 => {
            let _ = world.ask(Ask::Undrain { node: node(name) });
        }
        _ => {}
    }
}

fn check_epochs(world: &World, epochs: &mut BTreeMap<String, Epoch>) -> Result<(), TestCaseError> {
    for view in world.core.teams(None, None, 1_000, world.now).teams {
        let last = epochs
            .insert(view.team.to_string(), view.epoch)
            .unwrap_or_default();
        prop_assert!(
            view.epoch >= last,
            "the epoch of {} went from {} to {}",
            view.team,
            last,
            view.epoch
        );
    }
    Ok(())
}
