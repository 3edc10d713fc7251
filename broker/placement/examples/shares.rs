//! What the shares of the score do: `cargo run --release -p usher-placement --example shares`.
//!
//! Six nodes of four cores get 600 teams, which come and go, under different shares of team load, connections and
//! CPU. Teams are even (25 connections and 25 millicores each), or one in fifty is a room of 600 idle connections
//! (25 millicores), or one in fifty is hot (10 connections and 600 millicores) and the others are small (10 and 10).
//! In a burst a third of the teams comes within one second of an empty seventh node's arrival. Printed is the
//! busiest node over the mean, for teams, connections and CPU, taken each second over the last half of the run:
//! 1.00 is even.
#![allow(missing_docs, clippy::unwrap_used, clippy::print_stdout)]

#[path = "../tests/world/mod.rs"]
mod world;

use std::collections::BTreeMap;
use usher_placement::{Ask, Settings};
use usher_shared::quantity::Millicores;
use world::{World, node, team};

const NODES: usize = 6;
const CORES: u32 = 4_000;
const SECONDS: u64 = 600;
const TEAMS: usize = 600;

#[derive(Clone, Copy)]
enum Costs {
    Even,
    Rooms,
    Hot,
}

/// What one team makes its node bear.
#[derive(Clone, Copy)]
struct Cost {
    connections: u32,
    cpu: u32,
}

#[derive(Clone, Copy)]
enum Arrivals {
    Steady,
    Burst,
}

/// A generator of its own, so that the table is the same everywhere.
struct Dice(u64);

impl Dice {
    fn next(&mut self) -> u64 {
        self.0 = self
            .0
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        self.0 >> 33
    }
}

struct Run {
    world: World,
    dice: Dice,
    costs: BTreeMap<String, Cost>,
    averages: BTreeMap<String, f64>,
    serial: usize,
}

impl Run {
    fn place(&mut self, costs: Costs) {
        let name = format!("t{}", self.serial);
        self.serial += 1;
        let of = |connections, cpu| Cost { connections, cpu };
        let is_one_of_fifty = self.dice.next().is_multiple_of(50);
        let cost = match costs {
            Costs::Even => of(25, 25),
            Costs::Rooms if is_one_of_fifty => of(600, 25),
            Costs::Hot if is_one_of_fifty => of(10, 600),
            Costs::Rooms | Costs::Hot => of(10, 10),
        };
        self.world.place(&name);
        self.costs.insert(name, cost);
    }

    fn leave(&mut self) {
        if let Some(name) = self
            .costs
            .keys()
            .nth(self.dice.next() as usize % self.costs.len().max(1))
            .cloned()
        {
            self.costs.remove(&name);
            self.world.ask(Ask::Delete { team: team(&name) }).unwrap();
        }
    }

    /// One second: nodes take their average of what their teams really cost, and report it.
    fn second(&mut self) -> [f64; 3] {
        let mut real: BTreeMap<String, [f64; 3]> = BTreeMap::new();
        for name in self.world.nodes.keys() {
            real.insert(name.to_string(), [0.0, 0.0, 20.0]);
        }
        for (name, cost) in &self.costs {
            let entry = real.get_mut(&self.world.owner(name).unwrap()).unwrap();
            entry[0] += 1.0;
            entry[1] += f64::from(cost.connections);
            entry[2] += f64::from(cost.cpu);
        }
        let keep = (-1.0_f64 / 15.0).exp2();
        for (name, [_, connections, cpu]) in &real {
            let average = self.averages.entry(name.clone()).or_insert(*cpu);
            *average = *average * keep + cpu * (1.0 - keep);
            let fake = self.world.nodes.get_mut(&node(name)).unwrap();
            fake.cpu = *average as u32;
            fake.connections = *connections as u32;
        }
        self.world.advance(1_000);
        [0, 1, 2].map(|what| {
            let values: Vec<f64> = real.values().map(|of| of[what]).collect();
            let mean = values.iter().sum::<f64>() / values.len() as f64;
            values.into_iter().fold(0.0, f64::max) / mean
        })
    }
}

fn run(shares: [u64; 3], costs: Costs, arrivals: Arrivals) -> [f64; 3] {
    let [team_share_ppm, connection_share_ppm, cpu_share_ppm] = shares.map(|percent| percent * 10_000);
    let settings = Settings {
        team_share_ppm,
        connection_share_ppm,
        cpu_share_ppm,
        ..Settings::default()
    };
    let mut run = Run {
        world: World::with(settings),
        dice: Dice(7),
        costs: BTreeMap::new(),
        averages: BTreeMap::new(),
        serial: 0,
    };
    let add = |world: &mut World, name: String| {
        world.add_with(&name, |hello| hello.cores = Millicores::new(CORES).unwrap());
    };
    for serial in 0..NODES {
        add(&mut run.world, format!("n{serial}"));
    }
    let (mut sums, mut counted) = ([0.0; 3], 0.0);
    for second in 0..SECONDS {
        let burst = matches!(arrivals, Arrivals::Burst) && second == SECONDS / 2;
        if burst {
            add(&mut run.world, format!("n{NODES}"));
        }
        let wanted = match arrivals {
            Arrivals::Steady => TEAMS,
            Arrivals::Burst if second < SECONDS / 2 => TEAMS * 2 / 3,
            Arrivals::Burst => TEAMS,
        };
        let come = if burst {
            TEAMS / 3
        } else {
            (wanted.saturating_sub(run.costs.len())).min(8)
        };
        for _ in 0..come {
            run.place(costs);
        }
        if run.costs.len() > TEAMS / 2 {
            run.leave();
            run.leave();
        }
        let ratios = run.second();
        if second >= SECONDS / 2 {
            for (sum, ratio) in sums.iter_mut().zip(ratios) {
                *sum += ratio;
            }
            counted += 1.0;
        }
    }
    sums.map(|sum| sum / counted)
}

fn main() {
    println!("| teams | connections | CPU | even | rooms | hot teams | even, burst | rooms, burst |");
    println!("| --- | --- | --- | --- | --- | --- | --- | --- |");
    for shares in [
        [50, 0, 50],
        [40, 20, 40],
        [34, 33, 33],
        [25, 50, 25],
        [20, 20, 60],
    ] {
        let cell = |costs, arrivals| {
            let [teams, connections, cpu] = run(shares, costs, arrivals);
            format!("{teams:.2} / {connections:.2} / {cpu:.2}")
        };
        let [teams, connections, cpu] = shares;
        println!(
            "| {teams} % | {connections} % | {cpu} % | {} | {} | {} | {} | {} |",
            cell(Costs::Even, Arrivals::Steady),
            cell(Costs::Rooms, Arrivals::Steady),
            cell(Costs::Hot, Arrivals::Steady),
            cell(Costs::Even, Arrivals::Burst),
            cell(Costs::Rooms, Arrivals::Burst),
        );
    }
}
