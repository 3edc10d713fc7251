//! Seeded simulation of broker core, nodes and clients. See [`usher_tests::simulator`].

// The functions that the tests share are not seen as tests by the lint.
#![allow(clippy::unwrap_used, clippy::print_stdout)]

use std::collections::BTreeMap;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;
use usher_tests::simulator::{Outcome, Story, Violation, run};

fn number(name: &str) -> Option<u64> {
    std::env::var(name).ok().and_then(|text| text.parse().ok())
}

/// States that are reached seldom, and that prove nothing while no seed comes to them.
const RARE: [&str; 45] = [
    "a copy arrived late",
    "a restored broker was started once more",
    "a stale write was refused downstream",
    "a used ticket replaced its connection",
    "activation after a lease",
    "activation after a restart",
    "activation after proof",
    "activation after yield",
    "adopted",
    "clock pace noticed",
    "cut off by peers",
    "death by a hint",
    "death by a hint in self-preservation",
    "death by a new process",
    "death by silence",
    "death by the parent's word",
    "deleted and made anew",
    "expired ticket good while lost",
    "failover three times in a row",
    "fenced",
    "foreign cluster refused",
    "forged entry refused",
    "grace ended early",
    "grace timed out",
    "held while no peer heard the broker",
    "hop limit hit",
    "lapsed while the link stood",
    "late duplicate ignored",
    "lease shortened",
    "lower term refused",
    "moved for a knock",
    "moved for a knock in self-preservation",
    "move undone",
    "moved off a full node",
    "own pause noticed",
    "resume used",
    "self-preservation entered",
    "self-preservation expired",
    "self-preservation left",
    "self-preservation released",
    "store regressed by epoch",
    "store regressed by grant",
    "store regressed by term",
    "the watchdog aborted",
    "twin refused",
];

/// Runs seeds on every core; what they came to, or the lowest seed that failed.
fn run_all(seeds: Vec<u64>) -> Result<Outcome, u64> {
    let next = AtomicU64::new(0);
    let sum = Mutex::new((Outcome::default(), None::<u64>));
    let cores = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    std::thread::scope(|scope| {
        for _ in 0..cores {
            scope.spawn(|| {
                loop {
                    let at = usize::try_from(next.fetch_add(1, Ordering::Relaxed)).unwrap();
                    let Some(&seed) = seeds.get(at) else { return };
                    let came_to = run(seed, Story::Untold);
                    let mut sum = sum.lock().unwrap();
                    match came_to {
                        Ok(outcome) => {
                            sum.0.steps += outcome.steps;
                            for (what, count) in outcome.seen {
                                *sum.0.seen.entry(what).or_insert(0) += count;
                            }
                        }
                        Err(violation) => {
                            println!("seed {seed}, at {} ms: {}", violation.at_ms, violation.what);
                            sum.1 = Some(sum.1.map_or(seed, |lowest| lowest.min(seed)));
                        }
                    }
                    if sum.1.is_some() && number("USHER_SIM_ALL").is_none() {
                        return;
                    }
                }
            });
        }
    });
    let (outcome, failed) = sum.into_inner().unwrap();
    failed.map_or(Ok(outcome), Err)
}

/// Seeds that once failed.
fn old_seeds() -> Vec<u64> {
    let lines = include_str!("seeds.txt").lines();
    lines
        .filter_map(|line| line.split('#').next()?.trim().parse().ok())
        .collect()
}

fn tell(seed: u64, violation: &Violation) -> String {
    format!(
        "{}\nseed {seed}, at {} ms, after {} events:\n{}\n\nreplay it with: USHER_SIM_SEED={seed} cargo test -p usher-tests --test simulation whatever",
        violation.story.join("\n"),
        violation.at_ms,
        violation.steps,
        violation.what
    )
}

#[test]
fn whatever_breaks_what_is_promised_holds() {
    let seeds: Vec<u64> = match number("USHER_SIM_SEED") {
        Some(seed) => vec![seed],
        None => {
            let first = number("USHER_SIM_FIRST").unwrap_or(1);
            let fresh = first..first + number("USHER_SIM_SEEDS").unwrap_or(400);
            old_seeds().into_iter().chain(fresh).collect()
        }
    };
    let (count, began) = (seeds.len(), Instant::now());
    match run_all(seeds) {
        Ok(outcome) => {
            let seconds = began.elapsed().as_secs_f64();
            let rate = outcome.steps as f64 / seconds;
            println!(
                "{count} seeds, {} steps, {seconds:.1} s, {rate:.0} steps/s",
                outcome.steps
            );
            let seen: &BTreeMap<&str, u64> = &outcome.seen;
            for (what, count) in seen {
                println!("{count:>9}  {what}");
            }
            let unseen: Vec<_> = RARE.into_iter().filter(|rare| !seen.contains_key(rare)).collect();
            assert!(count < 400 || unseen.is_empty(), "no seed came to: {unseen:?}");
        }
        Err(seed) => {
            // The whole of a story may be 200,000 lines.
            let lines = number("USHER_SIM_LINES").and_then(|lines| usize::try_from(lines).ok());
            let lines = lines.unwrap_or(40);
            let violation = run(seed, Story::Told(lines)).unwrap_err();
            panic!("{}", tell(seed, &violation));
        }
    }
}

#[test]
fn the_same_seed_gives_the_same_trace() {
    for seed in [1, 42, 43] {
        assert_eq!(run(seed, Story::Untold), run(seed, Story::Untold));
    }
    let trace = |seed| run(seed, Story::Untold).map(|outcome| outcome.trace);
    assert_ne!(trace(42), trace(43));
}
