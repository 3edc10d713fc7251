use super::*;
use proptest::prelude::*;
use std::collections::BTreeMap;
use usher_shared::link::{Move, TeamSpec};
use usher_shared::quantity::Term;

fn epoch(number: u64) -> Epoch {
    Epoch::new(number).unwrap()
}

fn team(name: &str) -> TeamId {
    name.parse().unwrap()
}

fn at(ms: u64) -> Timestamp {
    Timestamp::from_millis(ms)
}

fn assign(number: u64, state: HoldState) -> Assign {
    Assign {
        team: team("T1"),
        epoch: epoch(number),
        grant: format!("grant-{number}"),
        state,
        term: Term::default(),
        spec: TeamSpec::default(),
    }
}

fn drain(number: u64) -> Drain {
    Drain {
        operation: "op-1".parse().unwrap(),
        reason: "drain".parse().unwrap(),
        moves: vec![Move {
            team: team("T1"),
            epoch: epoch(number),
            after_ms: 100,
        }],
        by_ms: 1_000,
        pace: None,
        term: Term::default(),
    }
}

fn revoke(number: u64) -> Revoke {
    Revoke {
        team: team("T1"),
        epoch: epoch(number),
        term: Term::default(),
    }
}

fn say(message: fn(TeamEpoch) -> ToBroker, number: u64) -> Effect {
    Effect::Say(message(named(&team("T1"), epoch(number))))
}

fn open() -> Effect {
    Effect::Open(team("T1"))
}

fn state_of(holdings: &Holdings) -> Option<(u64, HoldState)> {
    let held = holdings.inventory();
    held.first().map(|held| (held.epoch.get(), held.state))
}

const OWNED: HoldState = HoldState::Owned;
const PREPARED: HoldState = HoldState::Prepared;

#[test]
fn an_assignment_is_held_and_a_prepared_one_is_answered_each_time() {
    let mut holdings = Holdings::default();
    assert_eq!(holdings.assign(&assign(5, OWNED), 1, at(0)), [open()]);
    assert_eq!(state_of(&holdings), Some((5, OWNED)));
    let prepared = [say(ToBroker::Prepared, 7), open()];
    assert_eq!(holdings.assign(&assign(7, PREPARED), 1, at(0)), prepared);
    assert_eq!(holdings.assign(&assign(7, PREPARED), 1, at(0)), prepared);
    assert_eq!(state_of(&holdings), Some((7, PREPARED)));
    assert_eq!(holdings.held(), 1);
}

#[test]
fn prepared_never_beats_owned_at_one_epoch() {
    let mut holdings = Holdings::default();
    holdings.assign(&assign(5, PREPARED), 1, at(0));
    holdings.activate(
        &Activate {
            team: team("T1"),
            epoch: epoch(4),
            expected: None,
            term: Term::default(),
        },
        1,
    );
    assert_eq!(state_of(&holdings), Some((5, PREPARED)));
    holdings.activate(
        &Activate {
            team: team("T1"),
            epoch: epoch(5),
            expected: None,
            term: Term::default(),
        },
        1,
    );
    assert_eq!(state_of(&holdings), Some((5, OWNED)));
    holdings.assign(&assign(5, PREPARED), 1, at(0));
    assert_eq!(state_of(&holdings), Some((5, OWNED)));
}

#[test]
fn an_older_epoch_changes_nothing() {
    let mut holdings = Holdings::default();
    holdings.assign(&assign(5, OWNED), 1, at(0));
    assert_eq!(holdings.assign(&assign(4, OWNED), 1, at(0)), []);
    assert_eq!(holdings.drain(&drain(5)), []);
    // Nothing so old is left here, which is what the broker waits to hear.
    assert_eq!(
        holdings.drain(&drain(4)),
        [say(ToBroker::Yielded, 4), say(ToBroker::Released, 4)]
    );
    assert_eq!(holdings.revoke(&revoke(4)), [say(ToBroker::Released, 4)]);
    assert_eq!(state_of(&holdings), Some((5, OWNED)));
}

#[test]
fn a_team_that_is_moved_away_yields_at_once_and_is_released_with_its_last_connection() {
    let mut holdings = Holdings::default();
    holdings.assign(&assign(5, OWNED), 1, at(0));
    holdings.opened(&team("T1"), at(0));
    holdings.opened(&team("T1"), at(0));
    let effects = holdings.drain(&drain(7));
    // How many are on their way is told first: the new owner is told with the order to begin.
    assert!(matches!(
        &effects[0],
        Effect::Say(ToBroker::Counted(counted)) if counted.teams[0].connections == 2 && counted.more
    ));
    assert_eq!(effects[1], say(ToBroker::Yielded, 7));
    assert!(matches!(&effects[2], Effect::Depart(going) if going.connections == 2 && going.after_ms == 100));
    assert_eq!(holdings.tenure(&team("T1")), Tenure::Leaving(epoch(7)));
    assert!(holdings.is_leaving_by(&team("T1"), epoch(7)));
    assert_eq!((holdings.held(), holdings.inventory().len()), (0, 0));
    // The same again is answered, but clients are not told twice.
    assert_eq!(holdings.drain(&drain(7)), [say(ToBroker::Yielded, 7)]);

    let first = holdings.closed(&team("T1"), at(1));
    assert_eq!((first.departed, first.say), (Some(epoch(7)), Vec::new()));
    let last = holdings.closed(&team("T1"), at(2));
    assert_eq!(last.say, [ToBroker::Released(named(&team("T1"), epoch(7)))]);
    assert!(holdings.is_empty());
    // Whoever had a connection and dials again is told so at once.
    assert_eq!(holdings.tenure(&team("T1")), Tenure::Leaving(epoch(7)));
}

#[test]
fn a_team_that_was_never_here_is_told_from_one_that_was_taken_away() {
    let mut holdings = Holdings::default();
    assert_eq!(holdings.tenure(&team("T1")), Tenure::Absent);
    holdings.assign(&assign(5, OWNED), 1, at(0));
    holdings.revoke(&revoke(6));
    assert_eq!(holdings.tenure(&team("T1")), Tenure::Leaving(epoch(6)));
    holdings.assign(&assign(8, OWNED), 1, at(0));
    assert_eq!(holdings.tenure(&team("T1")), Tenure::Held(epoch(8)));
    holdings.drain(&drain(9));
    assert_eq!(holdings.tenure(&team("T1")), Tenure::Leaving(epoch(9)));
    holdings.begin_link();
    assert_eq!(holdings.tenure(&team("T1")), Tenure::Absent);
}

#[test]
fn a_team_without_connections_or_not_held_is_released_at_once() {
    let both = [say(ToBroker::Yielded, 7), say(ToBroker::Released, 7)];
    let mut holdings = Holdings::default();
    assert_eq!(holdings.drain(&drain(7)), both);
    holdings.assign(&assign(5, OWNED), 1, at(0));
    assert_eq!(holdings.drain(&drain(7)), both);
    assert!(holdings.is_empty());
}

#[test]
fn a_team_that_comes_back_keeps_the_connections_that_had_not_left() {
    let mut holdings = Holdings::default();
    holdings.assign(&assign(5, OWNED), 1, at(0));
    holdings.opened(&team("T1"), at(0));
    holdings.drain(&drain(7));
    assert_eq!(holdings.assign(&assign(7, OWNED), 1, at(0)), []);
    assert_eq!(
        holdings.assign(&assign(9, PREPARED), 1, at(0)),
        [say(ToBroker::Released, 7), say(ToBroker::Prepared, 9), open()]
    );
    assert_eq!(holdings.tenure(&team("T1")), Tenure::Held(epoch(9)));
    assert!(!holdings.is_leaving_by(&team("T1"), epoch(7)));
    assert_eq!(holdings.inventory()[0].connections, 1);
    assert_eq!(holdings.closed(&team("T1"), at(0)).departed, None);
}

#[test]
fn a_revoked_team_is_closed_and_then_released() {
    let mut holdings = Holdings::default();
    holdings.assign(&assign(5, OWNED), 1, at(0));
    holdings.opened(&team("T1"), at(0));
    assert_eq!(holdings.revoke(&revoke(5)), [Effect::Close(team("T1"))]);
    assert_eq!(holdings.tenure(&team("T1")), Tenure::Leaving(epoch(5)));
    let closed = holdings.closed(&team("T1"), at(0));
    assert_eq!(
        (closed.departed, closed.say),
        (None, vec![ToBroker::Released(named(&team("T1"), epoch(5)))])
    );
    assert_eq!(holdings.revoke(&revoke(5)), [say(ToBroker::Released, 5)]);
}

#[test]
fn a_revoke_closes_what_a_move_left_behind() {
    let mut holdings = Holdings::default();
    holdings.assign(&assign(5, OWNED), 1, at(0));
    holdings.opened(&team("T1"), at(0));
    holdings.drain(&drain(7));
    assert_eq!(holdings.revoke(&revoke(4)), [say(ToBroker::Released, 4)]);
    assert_eq!(holdings.revoke(&revoke(5)), [Effect::Close(team("T1"))]);
    let closed = holdings.closed(&team("T1"), at(0));
    // Each command that took it away has its answer.
    let answers = [7, 5].map(|number| ToBroker::Released(named(&team("T1"), epoch(number))));
    assert_eq!(closed.say, answers);
}

#[test]
fn only_teams_long_without_a_connection_are_idle() {
    let mut holdings = Holdings::default();
    holdings.assign(&assign(5, OWNED), 1, at(0));
    assert_eq!(holdings.idle(at(100), 100, 9), []);
    assert_eq!(holdings.idle(at(101), 100, 9), [named(&team("T1"), epoch(5))]);
    assert_eq!(holdings.idle(at(101), 100, 0), []);
    holdings.opened(&team("T1"), at(200));
    assert_eq!(holdings.idle(at(900), 100, 9), []);
    holdings.closed(&team("T1"), at(1_000));
    assert_eq!(holdings.idle(at(1_100), 100, 9), []);
    assert_eq!(holdings.idle(at(1_101), 100, 9).len(), 1);
}

#[test]
fn idle_teams_are_told_in_turn_so_that_those_that_stay_hold_up_no_other() {
    let mut holdings = Holdings::default();
    let given = |number: u64| Assign {
        team: team(&format!("T{number}")),
        ..assign(5, OWNED)
    };
    for number in 0..700 {
        holdings.assign(&given(number), 1, at(number));
    }
    let mut told = std::collections::BTreeSet::new();
    for _ in 0..3 {
        let some = holdings.idle(at(10_000), 100, 256);
        assert_eq!(some.len(), 256);
        told.extend(some.into_iter().map(|one| one.team));
    }
    assert_eq!(told.len(), 700);
    // One that is left over when the others are used again is told once.
    for number in 1..700 {
        holdings.opened(&team(&format!("T{number}")), at(10_000));
    }
    assert_eq!(holdings.idle(at(10_000), 100, 256).len(), 1);
    assert_eq!(holdings.idle(at(10_000), 100, 256).len(), 1);
}

#[test]
fn arrivals_are_reported_for_a_minute_after_a_move() {
    let mut holdings = Holdings::default();
    let moved = Assign {
        spec: TeamSpec { moved: true },
        ..assign(5, OWNED)
    };
    holdings.assign(&moved, 1, at(0));
    assert_eq!(holdings.opened(&team("T1"), at(59_999)), Opened::Reported);
    assert_eq!(holdings.opened(&team("T1"), at(60_000)), Opened::Quietly);
    holdings.assign(&assign(6, OWNED), 1, at(0));
    assert_eq!(holdings.opened(&team("T1"), at(1)), Opened::Quietly);
}

#[derive(Clone, Copy, Debug)]
enum Step {
    Assign(u64, HoldState),
    Drain(u64),
    Revoke(u64),
    Open,
    Close,
}

fn step() -> impl Strategy<Value = Step> {
    let number = 1_u64..12;
    prop_oneof![
        (number.clone(), any::<bool>())
            .prop_map(|(number, owned)| Step::Assign(number, if owned { OWNED } else { PREPARED })),
        number.clone().prop_map(Step::Drain),
        number.prop_map(Step::Revoke),
        Just(Step::Open),
        Just(Step::Close),
    ]
}

fn apply(holdings: &mut Holdings, step: Step) -> Vec<Effect> {
    match step {
        Step::Assign(number, state) => holdings.assign(&assign(number, state), 1, at(0)),
        Step::Drain(number) => holdings.drain(&drain(number)),
        Step::Revoke(number) => holdings.revoke(&revoke(number)),
        Step::Open | Step::Close => Vec::new(),
    }
}

/// What matters of the state, in a form that can be compared.
fn picture(holdings: &Holdings) -> BTreeMap<String, String> {
    let entries = holdings.teams.iter();
    entries
        .map(|(team, entry)| (team.to_string(), format!("{entry:?}")))
        .collect()
}

proptest! {
    #[test]
    fn any_command_twice_leaves_the_same_as_once_and_epochs_never_fall(
        steps in prop::collection::vec(step(), 1..60),
    ) {
        let mut holdings = Holdings::default();
        let name = team("T1");
        let mut connections = 0_u32;
        let mut held_before = None;
        for step in steps {
            match step {
                // A client comes in only while the team is held, and goes whenever it likes.
                Step::Open if matches!(holdings.tenure(&name), Tenure::Held(_)) => {
                    holdings.opened(&name, at(0));
                    connections += 1;
                }
                Step::Close if connections > 0 => {
                    connections -= 1;
                    let closed = holdings.closed(&name, at(0));
                    prop_assert!(closed.say.is_empty() || connections == 0);
                }
                step => {
                    apply(&mut holdings, step);
                    let once = picture(&holdings);
                    apply(&mut holdings, step);
                    prop_assert_eq!(&picture(&holdings), &once);
                }
            }
            let counted = holdings.teams.get(&name).map_or(0, |entry| entry.connections);
            prop_assert_eq!(counted, connections);
            prop_assert_eq!(holdings.held(), holdings.inventory().len());
            let walked = holdings.teams.iter().filter_map(|(team, entry)| Some((entry.empty_since()?, team.clone())));
            prop_assert_eq!(&holdings.empty, &walked.collect());
            // While it is known at all, the epoch only grows.
            let now = match holdings.tenure(&name) {
                Tenure::Absent => None,
                Tenure::Held(epoch) | Tenure::Leaving(epoch) => Some(epoch),
            };
            if let (Some(before), Some(now)) = (held_before, now) {
                prop_assert!(now >= before);
            }
            held_before = now;
        }
    }
}

#[test]
fn what_was_taken_is_remembered_for_its_link_only() {
    let mut holdings = Holdings::default();
    assert_eq!(holdings.revoke(&revoke(6)), [say(ToBroker::Released, 6)]);
    assert_eq!(holdings.assign(&assign(6, OWNED), 1, at(0)), []);
    holdings.begin_link();
    assert_eq!(holdings.assign(&assign(6, OWNED), 2, at(0)), [open()]);
}

#[test]
fn the_memory_of_what_was_taken_is_bounded_and_forgets_the_oldest_first() {
    let mut holdings = Holdings::default();
    let named = |number: usize| team(&format!("X{number}"));
    for number in 0..=MAX_TAKEN {
        let taken = Revoke {
            team: named(number),
            ..revoke(6)
        };
        let _ = holdings.revoke(&taken);
    }
    let given = |number: usize| Assign {
        team: named(number),
        ..assign(5, OWNED)
    };
    assert_eq!(holdings.assign(&given(1), 1, at(0)), []);
    assert_eq!(holdings.assign(&given(MAX_TAKEN), 1, at(0)), []);
    assert_eq!(holdings.assign(&given(0), 1, at(0)), [Effect::Open(named(0))]);
    assert_eq!(holdings.taken.order.len(), MAX_TAKEN);
}

#[test]
fn a_later_move_of_a_team_that_is_leaving_gives_its_connections_new_slots() {
    let mut holdings = Holdings::default();
    holdings.assign(&assign(5, OWNED), 1, at(0));
    holdings.opened(&team("T1"), at(0));
    assert_eq!(holdings.drain(&drain(7)).len(), 3);
    let effects = holdings.drain(&drain(9));
    assert_eq!(effects[1], say(ToBroker::Yielded, 9));
    assert!(matches!(&effects[2], Effect::Depart(departing) if departing.epoch == epoch(9)));
    assert!(holdings.is_leaving_by(&team("T1"), epoch(9)));
    assert_eq!(holdings.drain(&drain(8)), [say(ToBroker::Yielded, 8)]);
    assert_eq!(holdings.acting(1), 0);
}
