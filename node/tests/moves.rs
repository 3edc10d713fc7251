//! How a node obeys its broker, and how it stops.

#![allow(clippy::unwrap_used, clippy::expect_used)] // Also outside of test functions, a test may fail.

mod support;

use std::time::Duration;
use support::*;
use tokio::time::Instant;
use usher_shared::frame::Control;
use usher_shared::id::BrokerId;
use usher_shared::link::{
    Activate, Assign, Count, Drain, EndedBy, HoldState, Pace, Revoke, TeamEpoch, TeamPace, TeamSpec,
    ToBroker, ToNode,
};
use usher_shared::quantity::Term;

fn one(name: &str, number: u64) -> TeamEpoch {
    TeamEpoch {
        team: team(name),
        epoch: epoch(number),
    }
}

#[tokio::test]
async fn a_drain_tells_usher_clients_to_move_and_closes_plain_ones_at_their_slot() {
    let mut rig = Rig::start().await;
    rig.gives("T1", 5).await;
    let mut usher = rig.joins_with_usher("T1", 5).await;
    let Control::Welcome { connection, .. } = usher.told().await else {
        panic!("welcome comes first");
    };
    let mut plain = rig.joins("T1", 5).await;
    rig.broker.command(drain("T1", 7, 300, 1_000));

    // Until its slot the team is together.
    usher.says("still here").await;
    assert_eq!(plain.hears().await, "still here");
    let Control::Move {
        url,
        after_ms,
        by_ms,
        reason,
    } = usher.told().await
    else {
        panic!("it is told to move");
    };
    assert_eq!(url, format!("ws://broker.test:7400/connect/T1?from={connection}"));
    assert_eq!((after_ms, reason.as_str()), (0, "drain"));
    assert!(by_ms <= 700, "{by_ms} ms are left of the second");
    let yielded = rig.broker.hears(|message| match message {
        ToBroker::Yielded(which) => Some(which),
        ToBroker::Released(_) => panic!("released before yielded"),
        _ => None,
    });
    assert_eq!(yielded.await, one("T1", 7));

    let (code, reason) = plain.closed().await;
    assert_eq!((code, reason.code.as_deref()), (4312, Some("moved")));
    // A ticket of the old epoch leads back to the broker.
    let path = format!("/teams/T1?ticket={}", rig.ticket("T1", 5));
    assert_eq!(rig.turned_away(&path, &[]).await.0, 302);
    // This one never leaves by itself.
    assert_eq!(usher.closed().await.0, 4312);
    let mut left = Vec::new();
    let released = rig.broker.hears(|message| match message {
        ToBroker::Left(departures) => {
            left.extend(departures.connections);
            None
        }
        ToBroker::Released(which) => Some(which),
        _ => None,
    });
    assert_eq!(released.await, one("T1", 7));
    if left.len() < 2 {
        let more = rig.broker.hears(|message| match message {
            ToBroker::Left(departures) => Some(departures.connections),
            _ => None,
        });
        left.extend(more.await);
    }
    assert_eq!(
        left.iter().map(|left| left.by).collect::<Vec<_>>(),
        [EndedBy::Slot, EndedBy::Deadline]
    );
    assert_eq!(left[1].connection, connection);
}

#[tokio::test]
async fn a_team_that_comes_back_keeps_its_connections() {
    let mut rig = Rig::start().await;
    rig.gives("T1", 5).await;
    let mut stays = rig.joins("T1", 5).await;
    rig.broker.command(drain("T1", 7, 400, 1_000));
    rig.broker.command(ToNode::Assign(assign("T1", 9)));
    let released = rig.broker.hears(|message| match message {
        ToBroker::Released(which) => Some(which),
        _ => None,
    });
    assert_eq!(released.await, one("T1", 7));
    let mut comes = rig.joins("T1", 9).await;
    let began = Instant::now();
    while began.elapsed() < Duration::from_millis(1_200) {
        comes.says("hello").await;
        assert_eq!(stays.hears().await, "hello");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

#[tokio::test]
async fn a_node_counts_its_connections_when_it_is_asked() {
    let mut rig = Rig::start().await;
    rig.gives("T1", 5).await;
    rig.gives("T2", 6).await;
    let _clients = (rig.joins("T1", 5).await, rig.joins("T1", 5).await);
    rig.broker.command(ToNode::Count(Count {
        operation: "drain-1-1".parse().unwrap(),
        term: Term::new(1).unwrap(),
    }));
    let counted = rig.broker.hears(|message| match message {
        ToBroker::Counted(counted) => Some(counted),
        _ => None,
    });
    let counted = counted.await;
    assert_eq!((counted.connections, counted.more), (2, false));
    let teams = counted
        .teams
        .iter()
        .map(|one| (one.team.as_str(), one.connections));
    assert_eq!(teams.collect::<Vec<_>>(), [("T1", 2)]);
}

#[tokio::test]
async fn what_is_held_stays_until_the_broker_lets_it_go() {
    let mut rig = Rig::start().await;
    rig.gives("T1", 5).await;
    let mut client = rig.joins("T1", 5).await;
    let pace = |rate_per_s| TeamPace {
        rate_per_s,
        at_once: 10,
        first: 0,
    };
    let ToNode::Drain(drain) = drain("T1", 7, 0, 200) else {
        panic!("a drain")
    };
    let operation = drain.operation.clone();
    let held = Drain {
        pace: Some(pace(0)),
        ..drain
    };
    rig.broker.command(ToNode::Drain(held));
    tokio::time::sleep(Duration::from_millis(400)).await;
    client.says("held").await;
    rig.broker.command(ToNode::Pace(Pace {
        operation,
        pace: pace(10),
        by_ms: 5_000,
        term: Term::new(1).unwrap(),
        number: 1,
    }));
    let (_, reason) = client.closed().await;
    assert_eq!(reason.code.as_deref(), Some("moved"));
}

#[tokio::test]
async fn what_members_on_the_other_node_miss_is_counted() {
    let mut rig = Rig::start().await;
    rig.broker.command(ToNode::Assign(Assign {
        spec: TeamSpec { moved: true },
        ..assign("T1", 5)
    }));
    rig.broker.command(ToNode::Activate(Activate {
        team: team("T1"),
        epoch: epoch(5),
        expected: Some(3),
        term: Term::new(1).unwrap(),
    }));
    let mut first = rig.joins("T1", 5).await;
    first.says("two are not here yet").await;
    let missed = rig.broker.hears(|message| match message {
        ToBroker::Missed(missed) => Some(missed),
        _ => None,
    });
    let missed = missed.await;
    assert_eq!((missed.teams[0].epoch, missed.teams[0].deliveries), (epoch(5), 2));
}

#[tokio::test]
async fn a_revoked_team_is_closed_at_once() {
    let mut rig = Rig::start().await;
    rig.gives("T1", 5).await;
    let mut client = rig.joins("T1", 5).await;
    rig.broker.command(ToNode::Revoke(Revoke {
        team: team("T1"),
        epoch: epoch(5),
        term: Term::new(1).unwrap(),
    }));
    let (code, reason) = client.closed().await;
    assert_eq!((code, reason.code.as_deref()), (4309, Some("elsewhere")));
    assert!(reason.retry_ms.is_some());
}

#[tokio::test]
async fn commands_of_an_older_term_are_not_obeyed() {
    let mut rig = Rig::start_with(|_| {}, |welcome| welcome.term = Term::new(2).unwrap()).await;
    rig.broker.command(ToNode::Assign(assign("T1", 5)));
    let current = Assign {
        term: Term::new(2).unwrap(),
        state: HoldState::Prepared,
        ..assign("T2", 6)
    };
    rig.broker.command(ToNode::Assign(current));
    let prepared = rig.broker.hears(|message| match message {
        ToBroker::Prepared(which) => Some(which),
        _ => None,
    });
    assert_eq!(prepared.await, one("T2", 6));
    let teams = rig.broker.hears(|message| match message {
        ToBroker::Heartbeat(heartbeat) => Some(heartbeat.teams),
        _ => None,
    });
    assert_eq!(teams.await, 1);
}

#[tokio::test]
async fn a_second_broker_that_claims_the_same_term_is_refused() {
    let genuine = FakeBroker::start(|_| {}).await;
    let mut copy = FakeBroker::start(|welcome| welcome.broker = BrokerId::from_bits(2)).await;
    let mut config = config(genuine.address);
    config.brokers.push(format!("ws://{}", copy.address));
    let mut rig = Rig::run(genuine, config);
    rig.is_ready().await;
    rig.gives("T1", 5).await;
    let mut client = rig.joins("T1", 5).await;
    rig.broker.die();
    let highest = copy.hears(|message| match message {
        ToBroker::Hello(hello) => Some(hello.highest_term),
        _ => None,
    });
    assert_eq!(highest.await, Term::new(1).unwrap());
    // It says hello again and again, and nothing else.
    let next = copy.hears(|message| Some(matches!(message, ToBroker::Hello(_))));
    assert!(next.await);
    rig.has_lost_its_broker().await;
    client.says("still served").await;
}

#[tokio::test]
async fn after_a_new_link_the_inventory_says_what_is_held() {
    let mut rig = Rig::start().await;
    rig.gives("T1", 5).await;
    let _client = rig.joins("T1", 5).await;
    // A refusal ends the link; the node comes back when it was asked to.
    rig.broker.command(ToNode::Refused(usher_shared::link::Refused {
        code: usher_shared::link::RefusedCode::Superseded,
        detail: "later".to_owned(),
        retry_ms: 50,
    }));
    let held = rig.broker.hears(|message| match message {
        ToBroker::Inventory(page) if !page.teams.is_empty() => Some(page),
        _ => None,
    });
    let page = held.await;
    assert!(!page.more);
    let held = &page.teams[0];
    assert_eq!(
        (
            held.team.as_str(),
            held.epoch,
            held.grant.as_str(),
            held.connections
        ),
        ("T1", epoch(5), "grant", 1)
    );
}

#[tokio::test]
async fn a_broker_that_falls_silent_is_left_and_connections_stay() {
    let quick = |welcome: &mut usher_shared::link::Welcome| welcome.lease_ms = 1_000;
    let mut rig = Rig::start_with(|_| {}, quick).await;
    rig.gives("T1", 5).await;
    let (mut one, mut two) = (rig.joins("T1", 5).await, rig.joins("T1", 5).await);
    rig.broker.answers(false);
    rig.broker
        .hears(|message| matches!(message, ToBroker::Hello(_)).then_some(()))
        .await;
    one.says("still here").await;
    assert_eq!(two.hears().await, "still here");
    rig.broker.answers(true);
    rig.is_ready().await;
}

#[tokio::test]
async fn arrivals_of_a_moved_team_are_reported_with_the_connection_they_replace() {
    let mut rig = Rig::start().await;
    rig.broker.command(ToNode::Assign(Assign {
        spec: TeamSpec { moved: true },
        ..assign("T1", 5)
    }));
    let claims = usher_shared::ticket::Claims {
        from: Some("00000000000000ff".parse().unwrap()),
        ..rig.claims("T1", 5)
    };
    let ticket = usher_shared::ticket::sign(&claims, "k1", &key());
    let _client = rig
        .dial(&format!("/teams/T1?ticket={ticket}"), &[])
        .await
        .unwrap();
    let arrived = rig.broker.hears(|message| match message {
        ToBroker::Arrived(arrivals) => Some(arrivals.connections),
        _ => None,
    });
    let arrived = arrived.await;
    assert_eq!(arrived.len(), 1);
    assert!(arrived[0].age_ms.is_some());
    assert_eq!((arrived[0].epoch, arrived[0].from), (epoch(5), claims.from));
}

#[tokio::test]
async fn a_stopping_node_asks_to_be_drained_serves_on_and_ends_when_it_is_empty() {
    let mut rig = Rig::start().await;
    rig.gives("T1", 5).await;
    let mut client = rig.joins("T1", 5).await;
    rig.stop.cancel();
    let budget = rig.broker.hears(|message| match message {
        ToBroker::Bye { budget_ms } => Some(budget_ms),
        _ => None,
    });
    let budget = budget.await;
    assert!((1..=8_000).contains(&budget), "{budget}");
    assert_eq!(
        (rig.status("/readyz").await, rig.status("/healthz").await),
        (503, 200)
    );
    let mut late = rig.joins("T1", 5).await;
    late.says("still serving").await;
    assert_eq!(client.hears().await, "still serving");

    rig.broker.command(drain("T1", 7, 0, 500));
    assert_eq!((client.closed().await.0, late.closed().await.0), (4312, 4312));
    within(rig.served).await.unwrap();
}

#[tokio::test]
async fn a_node_without_teams_stops_at_once() {
    let rig = Rig::start().await;
    rig.stop.cancel();
    within(rig.served).await.unwrap();
}

#[tokio::test]
async fn at_the_end_of_the_budget_what_is_left_is_closed_with_a_time_to_return() {
    let short = |config: &mut usher_node::Config| config.stop_budget = Duration::from_millis(300);
    let mut rig = Rig::start_with(short, |_| {}).await;
    rig.gives("T1", 5).await;
    let mut client = rig.joins("T1", 5).await;
    rig.broker.die();
    rig.stop.cancel();
    let (code, reason) = client.closed().await;
    assert_eq!((code, reason.code.as_deref()), (4312, Some("stopping")));
    assert!(reason.retry_ms.is_some());
    within(rig.served).await.unwrap();
}

#[tokio::test]
async fn a_second_signal_ends_the_budget() {
    let mut rig = Rig::start_with(|config| config.stop_budget = Duration::from_secs(3_600), |_| {}).await;
    rig.gives("T1", 5).await;
    let mut client = rig.joins("T1", 5).await;
    rig.stop.cancel();
    rig.hasten.cancel();
    assert_eq!(client.closed().await.0, 4312);
    within(rig.served).await.unwrap();
}
