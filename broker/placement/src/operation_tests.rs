use super::*;
use usher_shared::id::Incarnation;

fn ms(millis: u64) -> Timestamp {
    Timestamp::from_millis(millis)
}

fn operation() -> Operation {
    let (id, node) = ("drain-1-1".parse().unwrap(), "n1".parse().unwrap());
    Operation::new(id, OperationKind::Drain, node, ms(1_000), 1_800_000_000_000)
}

fn team() -> TeamId {
    "T1".parse().unwrap()
}

fn target() -> NodeId {
    "n2".parse().unwrap()
}

fn connection() -> ConnectionId {
    ConnectionId::new(Incarnation::from_bits(1), 1)
}

#[test]
fn a_gap_is_the_time_between_leaving_and_coming_back() {
    let mut drain = operation();
    let left = At::of(Some(40), ms(2_000));
    assert_eq!(drain.departed(&team(), connection(), left, true, ms(2_000)), None);
    let there = At::of(Some(90), ms(2_300));
    assert_eq!(
        drain.arrived(&team(), Some(connection()), &target(), there, ms(2_300)),
        Some(250)
    );
    let view = drain.view(ms(3_000));
    assert_eq!((view.gap_max_ms, view.gap_error_ms), (Some(250), Some(0)));
    assert_eq!(
        (
            view.connections_moved,
            view.connections_back,
            view.connections_not_back,
            view.connections_matched
        ),
        (1, 1, 0, 1)
    );
}

#[test]
fn whoever_opened_the_new_connection_first_had_no_gap_whichever_report_came_first() {
    let (left_at, there_at) = (2_050, 2_000);
    for arrival_first in [true, false] {
        let mut drain = operation();
        // One node's report waits longer than the other's.
        let now = ms(2_120);
        let left = At::of(Some(2_120 - left_at), now);
        let there = At::of(Some(2_120 - there_at), now);
        let gap = if arrival_first {
            assert_eq!(
                drain.arrived(&team(), Some(connection()), &target(), there, now),
                None
            );
            drain.departed(&team(), connection(), left, true, now)
        } else {
            assert_eq!(drain.departed(&team(), connection(), left, true, now), None);
            drain.arrived(&team(), Some(connection()), &target(), there, now)
        };
        assert_eq!(gap, Some(0), "arrival first: {arrival_first}");
        assert_eq!(drain.view(now).gap_error_ms, Some(0));
    }
}

#[test]
fn a_node_that_does_not_say_how_old_its_reports_are_leaves_a_tenth_of_a_second_open() {
    let mut drain = operation();
    drain.departed(&team(), connection(), At::of(None, ms(2_000)), true, ms(2_000));
    let there = At::of(Some(0), ms(2_030));
    drain.arrived(&team(), Some(connection()), &target(), there, ms(2_030));
    let view = drain.view(ms(3_000));
    assert_eq!((view.gap_max_ms, view.gap_error_ms), (Some(30), Some(100)));
}

#[test]
fn a_team_pays_for_what_it_has_and_no_more() {
    let mut drain = operation();
    drain.bucket.set_rate(10);
    drain.has_counts = true;
    drain.counted.insert(team(), 20);
    drain.connections = 20;
    let cost = drain.cost_milli(&team(), 500);
    assert_eq!(cost, 20_000);
    drain.charge(&team(), cost);
    // Three came since it was counted, and one of them went before the team did.
    drain.recount(&team(), 23);
    for _ in 0..22 {
        drain.departed(&team(), connection(), At::of(Some(0), ms(2_000)), true, ms(2_000));
    }
    drain.settle(&team(), true);
    assert_eq!(drain.view(ms(2_000)).connections, 22);
    // 2.5 were saved: 19.5 are owed, which takes 1.95 s.
    drain.bucket.refill(ms(2_949));
    assert!(!drain.bucket.has_room());
    drain.bucket.refill(ms(2_951));
    assert!(drain.bucket.has_room());
}

#[test]
fn a_finished_operation_keeps_its_report_over_a_restart() {
    let mut drain = operation();
    drain.arrived(&team(), None, &target(), At::of(None, ms(2_000)), ms(2_000));
    drain.state = OperationState::Done;
    drain.ended = Some(ms(5_000));
    let record = drain.record(ms(6_000), 1_000_000);
    let again = Operation::from_record(record, ms(50), 2_000_000);
    assert_eq!(again.view(ms(60)), drain.view(ms(6_000)));
}

#[test]
fn a_running_operation_keeps_its_counts_and_gaps_over_a_restart() {
    let mut drain = operation();
    drain.connections = 7;
    drain.departed(&team(), connection(), At::of(Some(0), ms(2_000)), true, ms(2_000));
    let there = At::of(Some(0), ms(2_020));
    drain.arrived(&team(), Some(connection()), &target(), there, ms(2_020));
    drain.add_missed(3);
    let record = drain.record(ms(2_100), 1_000_000);
    let text = serde_json::to_string(&record).unwrap();
    let again = Operation::from_record(serde_json::from_str(&text).unwrap(), ms(50), 1_000_500);
    let view = again.view(ms(60));
    assert_eq!(
        (
            view.connections,
            view.connections_moved,
            view.connections_back,
            view.connections_matched
        ),
        (7, 1, 1, 1)
    );
    assert_eq!((view.gap_max_ms, view.deliveries_missed), (Some(20), Some(3)));
}

#[test]
fn an_operation_that_is_over_keeps_its_report_and_nothing_of_what_that_was_made_of() {
    let mut drain = operation();
    drain.has_counts = true;
    drain.connections = 600;
    for serial in 0..600 {
        let name: TeamId = format!("T{serial}").parse().unwrap();
        let one = ConnectionId::new(Incarnation::from_bits(1), serial);
        let at = ms(2_000 + serial);
        drain.counted.insert(name.clone(), 1);
        drain.charge(&name, 1_000);
        // A third left and was not seen again, a third arrived first, a third was matched.
        if serial % 3 != 1 {
            drain.departed(&name, one, At::of(Some(0), at), true, at);
        }
        if serial % 3 != 0 {
            drain.arrived(&name, Some(one), &target(), At::of(Some(0), at.plus(serial)), at);
        }
    }
    drain.chosen.insert(team());
    drain.keep(&[team()]);
    drain.state = OperationState::Cancelled;
    drain.ended = Some(ms(5_000));
    let report = drain.view(ms(5_000));
    assert_eq!((report.connections_matched, report.teams_kept), (200, 1));
    let kept = |drain: &Operation| {
        let by_team = drain.counted.len() + drain.going.len() + drain.away.len() + drain.chosen.len();
        let by_connection = drain.departed.len() + drain.succeeded.len() + drain.gaps.stored().len();
        by_team + by_connection + drain.shown.len() + drain.kept.len()
    };
    assert!(kept(&drain) > 1_600, "{}", kept(&drain));
    drain.settle_figures(ms(5_000));
    assert_eq!((kept(&drain), drain.view(ms(9_000))), (0, report.clone()));
    // Once is for good.
    drain.settle_figures(ms(9_000));
    assert_eq!(drain.view(ms(9_000)), report);
}
