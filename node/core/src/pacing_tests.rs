use super::*;
use proptest::prelude::*;
use usher_shared::quantity::Term;

fn departing(connections: u32, pace: Option<TeamPace>, by_ms: u64) -> Departing {
    Departing {
        team: "T1".parse().unwrap(),
        epoch: Epoch::new(9).unwrap(),
        operation: "drain-1-1".parse().unwrap(),
        connections,
        after_ms: 0,
        by_ms,
        pace,
        reason: "drain".parse().unwrap(),
    }
}

fn pace(rate_per_s: u32, at_once: u32, first: u32) -> TeamPace {
    TeamPace {
        rate_per_s,
        at_once,
        first,
    }
}

fn told(rate_per_s: u32, at_once: u32, by_ms: u64) -> Pace {
    Pace {
        operation: "drain-1-1".parse().unwrap(),
        pace: pace(rate_per_s, at_once, 0),
        by_ms,
        term: Term::default(),
        number: 0,
    }
}

fn at(ms: u64) -> Timestamp {
    Timestamp::from_millis(ms)
}

/// Carries slots out until `end`; when how many went, and how many are left.
fn run(pacer: &mut Pacer, mut left: u32, end: u64) -> (Vec<(u64, u32)>, u32) {
    let mut went = Vec::new();
    while let Some(due) = pacer.next_due().filter(|due| due.as_millis() <= end) {
        let Some(slot) = pacer.pop(due) else { continue };
        let go = match slot.who {
            Who::Next(many) => many.min(left),
            Who::All => left,
        };
        if go > 0 {
            went.push((due.as_millis(), go));
        }
        left -= go;
        pacer.again(slot, left, due);
    }
    (went, left)
}

#[test]
fn a_team_that_fits_goes_together() {
    let mut pacer = Pacer::default();
    pacer.plan(&departing(2_000, Some(pace(200, 2_000, 0)), 10_000), at(0), 0);
    assert_eq!(run(&mut pacer, 2_000, 60_000), (vec![(0, 2_000)], 0));
    assert_eq!((pacer.next_due(), pacer.slots.len()), (None, 0));
}

#[test]
fn a_larger_one_goes_at_the_rate_whatever_it_is() {
    for rate in [1, 3, 10, 15, 20, 99, 200, 7_000] {
        let connections = rate * 6;
        let mut pacer = Pacer::default();
        pacer.plan(
            &departing(connections, Some(pace(rate, rate, 0)), 60_000),
            at(0),
            0,
        );
        let (went, left) = run(&mut pacer, connections, 59_000);
        assert_eq!(left, 0, "rate {rate}");
        let last = went.last().map_or(0, |(ms, _)| *ms);
        assert!((4_900..=6_200).contains(&last), "rate {rate}: {last} ms");
        for from in [1_000, 2_000, 3_000] {
            let in_a_second: u32 = went
                .iter()
                .filter(|(ms, _)| (from..from + 1_000).contains(ms))
                .map(|(_, many)| many)
                .sum();
            let most = rate + rate / 10 + 1;
            assert!(
                in_a_second >= rate - rate / 10 - u32::from(rate > 1) && in_a_second <= most,
                "rate {rate}: {in_a_second} in the second from {from}"
            );
        }
    }
}

#[test]
fn a_broker_that_names_no_pace_gets_the_nodes_own() {
    let mut pacer = Pacer::default();
    pacer.plan(&departing(1_000, None, 60_000), at(0), 0);
    let (went, left) = run(&mut pacer, 1_000, 59_000);
    assert_eq!((went[0], left), ((0, 20), 0));
    assert_eq!(went.last().map(|(ms, _)| *ms), Some(4_900));
}

#[test]
fn what_is_left_goes_at_the_deadline() {
    let mut pacer = Pacer::default();
    pacer.plan(&departing(600, Some(pace(20, 20, 0)), 10_000), at(0), 0);
    let (went, left) = run(&mut pacer, 600, 20_000);
    assert_eq!(left, 0);
    assert_eq!(went.last().map(|(ms, _)| *ms), Some(10_000));
}

#[test]
fn a_held_team_stays_beyond_its_deadline_and_goes_on_at_the_new_pace() {
    let mut pacer = Pacer::default();
    pacer.plan(&departing(600, Some(pace(20, 20, 0)), 40_000), at(0), 0);
    let (_, left) = run(&mut pacer, 600, 1_950);
    assert_eq!(left, 560);
    for renewed in (2_000..100_000).step_by(10_000) {
        pacer.change(&told(0, 20, 40_000), at(renewed));
        assert_eq!(run(&mut pacer, left, renewed + 10_000), (vec![], 560));
    }
    pacer.change(&told(100, 100, 30_000), at(100_000));
    let (went, left) = run(&mut pacer, left, 129_000);
    assert_eq!(left, 0);
    let last = went.last().map_or(0, |(ms, _)| *ms);
    assert!((105_500..=105_800).contains(&last), "{last}");
}

#[test]
fn a_word_on_the_pace_that_comes_late_changes_nothing() {
    let numbered = |number, rate_per_s| Pace {
        number,
        ..told(rate_per_s, 2_000, 10_000)
    };
    let mut pacer = Pacer::default();
    pacer.plan(&departing(600, Some(pace(200, 2_000, 10)), 10_000), at(0), 0);
    assert_eq!(run(&mut pacer, 600, 1_000).1, 590);
    pacer.change(&numbered(2, 200), at(1_000));
    pacer.change(&numbered(1, 0), at(1_001));
    assert_eq!(run(&mut pacer, 590, 2_000).1, 0);
}

#[test]
fn only_the_first_go_until_they_have_shown_that_they_arrive() {
    let mut pacer = Pacer::default();
    pacer.plan(&departing(600, Some(pace(200, 2_000, 10)), 10_000), at(0), 0);
    let (went, left) = run(&mut pacer, 600, 20_000);
    assert_eq!((went, left), (vec![(0, 10)], 590));
    pacer.change(&told(0, 2_000, 10_000), at(20_000));
    let (went, left) = run(&mut pacer, left, 45_000);
    assert_eq!((went, left), (vec![], 590), "the hold was renewed");
    pacer.change(&told(200, 2_000, 10_000), at(46_000));
    let (went, left) = run(&mut pacer, left, 47_000);
    assert_eq!((went.len(), left), (1, 0));
}

#[test]
fn a_broker_that_forgets_a_hold_does_not_keep_a_team_for_ever() {
    let mut pacer = Pacer::default();
    pacer.plan(&departing(600, Some(pace(20, 20, 0)), 40_000), at(0), 0);
    pacer.change(&told(0, 20, 40_000), at(0));
    let (_, left) = run(&mut pacer, 600, HOLD_MS + 60_000);
    assert_eq!(left, 0);
}

proptest! {
    #[test]
    fn everybody_goes_by_the_deadline_and_slots_come_in_order(
        teams in prop::collection::vec((1_u32..3_000, 1_u32..500, 0_u64..20_000, any::<u64>()), 1..20),
    ) {
        for (connections, rate, by_ms, random) in teams {
            let mut pacer = Pacer::default();
            let departing = departing(connections, Some(pace(rate, rate, 0)), by_ms);
            pacer.plan(&departing, at(0), random);
            let (went, left) = run(&mut pacer, connections, by_ms + DEADLINE_JITTER_MS);
            prop_assert_eq!(left, 0);
            // A slot that was planned before the deadline took everybody is due within one step of it, and void.
            run(&mut pacer, left, by_ms + DEADLINE_JITTER_MS + step(pace(rate, rate, 0)).1);
            prop_assert!(went.windows(2).all(|two| two[0].0 <= two[1].0));
            prop_assert!(pacer.slots.is_empty());
        }
    }
}
