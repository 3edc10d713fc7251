//! Every bug that can be planted is found by the simulator. Built with `--features planted-bugs`.
#![cfg(feature = "planted-bugs")]
// The functions that the tests share are not seen as tests by the lint.
#![allow(clippy::unwrap_used)]

use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Instant;
use usher_shared::planted::{Bug, plant};
use usher_tests::simulator::{Story, run};

/// Seeds in which a bug must be found, beside those that once failed.
const BUDGET: u64 = 1_000;

struct Found {
    bug: Bug,
    /// How many seeds were tried, the last of them, and what it showed; `None`: it was not found.
    after: Option<(u64, u64, String)>,
    seconds: f64,
}

/// Seeds that once failed.
fn old_seeds() -> Vec<u64> {
    let lines = include_str!("seeds.txt").lines();
    lines
        .filter_map(|line| line.split('#').next()?.trim().parse().ok())
        .collect()
}

fn look_for(bug: Bug, budget: u64) -> Found {
    let began = Instant::now();
    plant(Some(bug));
    // Some came to light only after thousands of seeds: those that did are tried first.
    let seeds = old_seeds().into_iter().chain(1..=budget);
    let found = seeds.zip(1..).find_map(|(seed, tried)| {
        let what = run(seed, Story::Untold).err()?.what;
        // What fails with nothing planted, too, finds nothing.
        plant(None);
        let is_its_own = run(seed, Story::Untold).is_ok();
        plant(Some(bug));
        is_its_own.then_some((tried, seed, what))
    });
    plant(None);
    Found {
        bug,
        after: found,
        seconds: began.elapsed().as_secs_f64(),
    }
}

#[test]
fn every_planted_bug_is_found() {
    let budget = std::env::var("USHER_PLANTED_SEEDS")
        .ok()
        .and_then(|text| text.parse().ok());
    let budget = budget.unwrap_or(BUDGET);
    let only = std::env::var("USHER_PLANTED_BUG").ok();
    let chosen = |bug: &&Bug| only.as_ref().is_none_or(|name| format!("{bug:?}") == *name);
    let bugs: Vec<Bug> = Bug::ALL.iter().filter(chosen).copied().collect();
    assert!(!bugs.is_empty(), "no planted bug is called {only:?}");
    let (next, all) = (AtomicUsize::new(0), Mutex::new(Vec::new()));
    let cores = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    std::thread::scope(|scope| {
        for _ in 0..cores {
            scope.spawn(|| {
                while let Some(bug) = bugs.get(next.fetch_add(1, Ordering::Relaxed)) {
                    let found = look_for(*bug, budget);
                    all.lock().unwrap().push(found);
                }
            });
        }
    });
    let mut all = all.into_inner().unwrap();
    all.sort_by_key(|found| Bug::ALL.iter().position(|bug| *bug == found.bug));
    let mut missed = Vec::new();
    for Found { bug, after, seconds } in &all {
        let name = format!("{bug:?}");
        match after {
            Some((tried, seed, what)) => {
                println!("{name:28} {tried:>4} seeds, seed {seed:>4}, {seconds:>5.1} s  {what}");
            }
            None => {
                println!("{name:28} not found in {budget} seeds, {seconds:.1} s");
                missed.push(name);
            }
        }
    }
    assert!(missed.is_empty(), "not found: {missed:?}");
}

#[test]
fn with_nothing_planted_the_same_build_finds_nothing() {
    plant(None);
    for seed in 1..=60 {
        if let Err(violation) = run(seed, Story::Untold) {
            panic!("seed {seed}: {}", violation.what);
        }
    }
}
