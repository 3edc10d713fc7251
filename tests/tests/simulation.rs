//! Seeded simulation of broker core, nodes and clients. See [`usher_tests::simulator`].

use std::collections::BTreeMap;
use usher_tests::simulator::{Plan, run};

fn number(name: &str, default: u64) -> u64 {
    std::env::var(name)
        .ok()
        .and_then(|text| text.parse().ok())
        .unwrap_or(default)
}

#[test]
fn whatever_breaks_a_team_has_one_owner_and_epochs_only_grow() {
    let first = number("USHER_SIM_SEED", 1);
    let count = if std::env::var_os("USHER_SIM_SEED").is_some() {
        1
    } else {
        number("USHER_SIM_SEEDS", 200)
    };
    let (mut steps, mut seen) = (0, BTreeMap::new());
    for seed in first..first + count {
        match run(seed, Plan::default()) {
            Ok(outcome) => {
                steps += outcome.steps;
                for (what, count) in outcome.seen {
                    *seen.entry(what).or_insert(0) += count;
                }
            }
            Err(fault) => panic!(
                "seed {seed}: {fault}\nreplay it with: USHER_SIM_SEED={seed} cargo test -p usher-tests --test simulation"
            ),
        }
    }
    println!("{count} seeds, {steps} steps, seen: {seen:#?}");
    if count >= 200 {
        for rare in [
            "node crashed",
            "broker crashed",
            "link broken",
            "self-preservation",
            "operation ended",
        ] {
            assert!(seen.contains_key(rare), "no seed came to: {rare}");
        }
    }
}

#[test]
fn the_same_seed_gives_the_same_trace() {
    let plan = Plan {
        faults_ms: 20_000,
        heal_ms: 30_000,
        ..Plan::default()
    };
    assert_eq!(run(42, plan), run(42, plan));
    assert_ne!(
        run(42, plan).map(|outcome| outcome.trace),
        run(43, plan).map(|outcome| outcome.trace)
    );
}
