//! How long one placement takes, from the request to its commands, by size of the pool.
#![allow(missing_docs, clippy::unwrap_used)]

use criterion::{BatchSize, BenchmarkId, Criterion, criterion_group, criterion_main};

#[path = "../tests/world/mod.rs"]
mod world;

use usher_placement::{Ask, Event, RequestId, Settings};
use world::{World, team};

fn choose(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("choose");
    for nodes in [10, 100, 1_000, 10_000] {
        // No bound on teams: a run places millions, and a refusal is quicker than a placement.
        let mut world = World::with(Settings {
            max_teams: usize::MAX,
            ..Settings::default()
        });
        for serial in 0..nodes {
            world.add_with(&format!("node-{serial}"), |hello| hello.capacity.teams = u32::MAX);
        }
        world.advance(1_100);
        for serial in 0..nodes {
            world.place(&format!("warm-{serial}"));
        }
        let mut serial = 0;
        group.bench_with_input(BenchmarkId::from_parameter(nodes), &nodes, |bench, _| {
            bench.iter_batched(
                || {
                    serial += 1;
                    Event::Request {
                        request: RequestId(serial),
                        ask: Ask::Connect {
                            team: team(&format!("team-{serial}")),
                            may_create: true,
                            region: None,
                            knock: None,
                        },
                    }
                },
                |event| {
                    world.core.handle(event, world.now);
                    while world.core.poll_command().is_some() {}
                },
                BatchSize::SmallInput,
            );
        });
    }
    group.finish();
}

fn tick(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("tick");
    for nodes in [10, 100, 1_000, 10_000] {
        let mut world = World::new();
        for serial in 0..nodes {
            world.add(&format!("node-{serial}"));
        }
        group.bench_with_input(BenchmarkId::from_parameter(nodes), &nodes, |bench, _| {
            bench.iter(|| {
                world.now = world.now.plus(1_000);
                world.core.handle_deadline(world.now);
                while world.core.poll_command().is_some() {}
            });
        });
    }
    group.finish();
}

criterion_group! {
    name = benches;
    config = Criterion::default().sample_size(20).measurement_time(std::time::Duration::from_secs(2));
    targets = choose, tick
}
criterion_main!(benches);
