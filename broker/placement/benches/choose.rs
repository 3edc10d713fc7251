//! How long one placement takes, from the request to its commands, by size of the pool; and what the loop's
//! thread pays for each turn and each connection that moves.
#![allow(missing_docs, clippy::unwrap_used)]

use criterion::{BatchSize, BenchmarkId, Criterion, criterion_group, criterion_main};

#[path = "../tests/world/mod.rs"]
mod world;

use usher_placement::{Ask, Event, LinkId, RequestId, Settings};
use usher_shared::id::{ConnectionId, OperationId};
use usher_shared::link::{Arrival, Arrivals, Departure, Departures, EndedBy};
use usher_shared::quantity::Epoch;
use usher_shared::rest::{DrainPost, OperationState};
use world::{World, node, team};

/// A pool that refuses nobody: a run places millions, and a refusal is quicker than a placement.
fn unbounded() -> Settings {
    Settings {
        max_teams: usize::MAX,
        new_names: 100_000,
        ..Settings::default()
    }
}

fn choose(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("choose");
    for nodes in [10, 100, 1_000, 10_000] {
        let mut world = World::with(unbounded());
        for serial in 0..nodes {
            world.add_with(&format!("node-{serial}"), |hello| hello.capacity.teams = u32::MAX);
        }
        assert_eq!(world.core.nodes(world.now).len(), nodes);
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
        let mut world = World::with(unbounded());
        for serial in 0..nodes {
            world.add(&format!("node-{serial}"));
        }
        assert_eq!(world.core.nodes(world.now).len(), nodes);
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

/// Operations that are kept: `Settings::operations`.
const OPERATIONS: usize = 100;
/// Teams that each of them moved: as many as may be under way at once, so that it waits for them.
const MOVES: usize = 512;

/// A pool of so many nodes, of which a hundred are being emptied of their teams. `done`: the old nodes say that
/// the last connection left, so that the operations end.
fn emptied(nodes: usize, done: bool) -> (World, Vec<OperationId>) {
    let mut world = World::with(unbounded());
    for serial in 0..OPERATIONS {
        world.add(&format!("old-{serial}"));
    }
    for serial in 0..OPERATIONS * MOVES {
        world.place(&format!("team-{serial}"));
    }
    for serial in OPERATIONS..nodes {
        world.add(&format!("new-{serial}"));
    }
    assert_eq!(world.core.nodes(world.now).len(), nodes);
    for fake in world.nodes.values_mut() {
        fake.releases = done;
    }
    let drain = |serial| {
        let post = DrainPost {
            rate_per_s: Some(10_000),
            force: true,
            ..DrainPost::default()
        };
        world.drain_at(&format!("old-{serial}"), post)
    };
    let operations: Vec<OperationId> = (0..OPERATIONS).map(drain).collect();
    world.advance(if done { 15_000 } else { 2_000 });
    for operation in &operations {
        let view = world.operation(operation);
        assert_eq!(view.state == OperationState::Done, done, "{view:?}");
        assert!(view.teams_moved as usize > MOVES / 2, "{view:?}");
    }
    (world, operations)
}

/// What each turn of the loop asks twice, with nothing going on.
fn next_deadline(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("next_deadline");
    for nodes in [1_000, 10_000] {
        let (mut world, _) = emptied(nodes, true);
        world.core.handle_deadline(world.now);
        let wait_ms = world.core.next_deadline().since(world.now);
        assert!(wait_ms > 100, "something is going on, or it would wait longer");
        group.bench_with_input(BenchmarkId::from_parameter(nodes), &nodes, |bench, _| {
            bench.iter(|| std::hint::black_box(&world.core).next_deadline());
        });
    }
    group.finish();
}

/// One connection that leaves a node and comes in at another, while a hundred operations are going on.
fn count(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("count");
    let (mut world, operations) = emptied(10_000, false);
    // Of the operation that a search in the order of their names finds last.
    let last = operations.iter().max().unwrap();
    let source = world.operation(last).node;
    let moved = world
        .assigned
        .iter()
        .rev()
        .find(|assign| {
            let view = world.core.team(&assign.team, world.now).unwrap();
            view.moving_from.as_ref() == Some(&source) && view.epoch == assign.epoch
        })
        .cloned()
        .unwrap();
    let there = world.owner(moved.team.as_str()).unwrap();
    let link = |world: &World, name: &str| world.nodes[&node(name)].link.unwrap();
    let (from, to) = (link(&world, source.as_str()), link(&world, &there));
    group.bench_function(BenchmarkId::from_parameter(OPERATIONS), |bench| {
        bench.iter(|| {
            world.now = world.now.plus(1);
            come_and_go(&mut world, &moved.team, moved.epoch, from, to);
        });
    });
    group.finish();
}

fn come_and_go(world: &mut World, team: &usher_shared::id::TeamId, epoch: Epoch, from: LinkId, to: LinkId) {
    let connection: ConnectionId = "00000000000000ff".parse().unwrap();
    let departure = Departure {
        team: team.clone(),
        epoch,
        connection,
        by: EndedBy::Slot,
        age_ms: Some(0),
    };
    let arrival = Arrival {
        team: team.clone(),
        epoch,
        connection,
        from: Some(connection),
        age_ms: Some(0),
    };
    let events = [
        Event::Left {
            link: from,
            departures: Departures {
                connections: vec![departure],
            },
        },
        Event::Arrived {
            link: to,
            arrivals: Arrivals {
                connections: vec![arrival],
            },
        },
    ];
    for event in events {
        world.core.handle(event, world.now);
        while world.core.poll_command().is_some() {}
    }
}

criterion_group! {
    name = benches;
    config = Criterion::default().sample_size(20).measurement_time(std::time::Duration::from_secs(2));
    targets = choose, tick, next_deadline, count
}
criterion_main!(benches);
