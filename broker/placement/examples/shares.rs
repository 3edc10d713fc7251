//! What the shares of the score do: `cargo run --release -p usher-placement --example shares`.
//!
//! Six nodes of four cores get 2,000 teams, which come and go, under different shares of team load and CPU. Costs
//! are even (every team 8 millicores) or skewed (one team in fifty costs 200, the others 4). In a burst a third
//! of the teams comes within one second of an empty seventh node's arrival. Printed is the busiest node over the
//! mean, for CPU and for teams, taken each second over the last half of the run: 1.00 is even.
#![allow(missing_docs, clippy::unwrap_used, clippy::print_stdout)]

#[path = "../tests/world/mod.rs"]
mod world;

use std::collections::BTreeMap;
use usher_placement::{Ask, Settings};
use usher_shared::quantity::Millicores;
use world::{World, node, team};

const NODES: usize = 6;
const CORES: u32 = 4_000;
const SECONDS: u64 = 1_200;
const TEAMS: usize = 2_000;

#[derive(Clone, Copy)]
enum Costs {
    Even,
    Skewed,
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
    costs: BTreeMap<String, u32>,
    averages: BTreeMap<String, f64>,
    serial: usize,
}

impl Run {
    fn place(&mut self, costs: Costs) {
        let name = format!("t{}", self.serial);
        self.serial += 1;
        let cost = match costs {
            Costs::Even => 8,
            Costs::Skewed if self.dice.next().is_multiple_of(50) => 200,
            Costs::Skewed => 4,
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
    fn second(&mut self) -> (f64, f64) {
        let mut real: BTreeMap<String, (f64, f64)> = BTreeMap::new();
        for name in self.world.nodes.keys() {
            real.insert(name.to_string(), (20.0, 0.0));
        }
        for (name, cost) in &self.costs {
            let entry = real.get_mut(&self.world.owner(name).unwrap()).unwrap();
            entry.0 += f64::from(*cost);
            entry.1 += 1.0;
        }
        let keep = (-1.0_f64 / 15.0).exp2();
        for (name, (cpu, _)) in &real {
            let average = self.averages.entry(name.clone()).or_insert(*cpu);
            *average = *average * keep + cpu * (1.0 - keep);
            self.world.nodes.get_mut(&node(name)).unwrap().cpu = *average as u32;
        }
        self.world.advance(1_000);
        let over_mean = |values: Vec<f64>| {
            let mean = values.iter().sum::<f64>() / values.len() as f64;
            values.into_iter().fold(0.0, f64::max) / mean
        };
        (
            over_mean(real.values().map(|(cpu, _)| *cpu).collect()),
            over_mean(real.values().map(|(_, teams)| *teams).collect()),
        )
    }
}

fn run(team_share: u64, costs: Costs, arrivals: Arrivals) -> (f64, f64) {
    let settings = Settings {
        team_share_ppm: team_share * 10_000,
        cpu_share_ppm: (100 - team_share) * 10_000,
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
    let (mut cpu, mut teams, mut counted) = (0.0, 0.0, 0.0);
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
        let (by_cpu, by_teams) = run.second();
        if second >= SECONDS / 2 {
            cpu += by_cpu;
            teams += by_teams;
            counted += 1.0;
        }
    }
    (cpu / counted, teams / counted)
}

fn main() {
    println!("| team share | CPU share | even, steady | skewed, steady | even, burst | skewed, burst |");
    println!("| --- | --- | --- | --- | --- | --- |");
    for team_share in [100, 75, 50, 25, 0] {
        let cell = |costs, arrivals| {
            let (cpu, teams) = run(team_share, costs, arrivals);
            format!("{cpu:.2} / {teams:.2}")
        };
        println!(
            "| {team_share} % | {} % | {} | {} | {} | {} |",
            100 - team_share,
            cell(Costs::Even, Arrivals::Steady),
            cell(Costs::Skewed, Arrivals::Steady),
            cell(Costs::Even, Arrivals::Burst),
            cell(Costs::Skewed, Arrivals::Burst),
        );
    }
}
