use super::*;

fn origin(last: u8) -> Origin {
    Origin::from(IpAddr::from([10, 0, 0, last]))
}

/// A room of four in which each of `from` has come in turn, a millisecond apart, from 1 on.
fn room(from: &[u8]) -> (Room, Vec<PlaceId>) {
    let mut room = Room::new(4);
    let enter = |(at, last): (usize, &u8)| room.enter(origin(*last), at as u64 + 1).unwrap().place;
    let places = from.iter().enumerate().map(enter).collect();
    (room, places)
}

fn goes(room: &mut Room, last: u8, now_ms: u64) -> Option<(PlaceId, Stage)> {
    room.enter(origin(last), now_ms).unwrap().instead_of
}

#[test]
fn while_there_is_room_one_origin_may_have_it_all() {
    let (mut room, _) = room(&[1, 1, 1, 1]);
    assert_eq!(room.held(), 4);
    // And the next of the same waits until one of its own has been silent for a while.
    assert_eq!(room.enter(origin(1), 500), Err(Full));
    assert!(goes(&mut room, 1, 1_001).is_some());
    assert_eq!(room.held(), 4);
}

#[test]
fn the_longest_idle_goes_first() {
    let (mut room, places) = room(&[1, 1, 1, 1]);
    for (place, at) in [(2, 10), (0, 20)] {
        room.turn(places[place], Stage::Busy, at);
        room.turn(places[place], Stage::Idle, at + 5);
    }
    assert_eq!(goes(&mut room, 1, 30), Some((places[2], Stage::Idle)));
    assert_eq!(goes(&mut room, 1, 30), Some((places[0], Stage::Idle)));
    assert_eq!(room.enter(origin(1), 30), Err(Full));
}

#[test]
fn the_origin_that_holds_most_makes_room_for_others() {
    let (mut room, places) = room(&[2, 1, 1, 1]);
    room.turn(places[0], Stage::Idle, 5);
    // Not the idle one of 2, although it is idle: 1 has more, and of 1 the oldest goes, at any age.
    assert_eq!(goes(&mut room, 3, 6), Some((places[1], Stage::Silent)));
    assert_eq!(goes(&mut room, 2, 2_000), Some((places[0], Stage::Idle)));
}

#[test]
fn whoever_has_half_of_all_costs_only_its_own() {
    let (mut room, places) = room(&[2, 2, 1, 1]);
    room.turn(places[0], Stage::Idle, 10);
    assert_eq!(room.enter(origin(1), 20), Err(Full));
    assert_eq!(goes(&mut room, 1, 1_020), Some((places[2], Stage::Silent)));
    // A newcomer that has nothing may have the idle one.
    let (mut room, places) = self::room(&[2, 4, 5, 6]);
    room.turn(places[0], Stage::Idle, 10);
    assert_eq!(goes(&mut room, 3, 20), Some((places[0], Stage::Idle)));
}

#[test]
fn a_request_in_progress_gives_way_to_another_origin_only_and_late() {
    let (mut room, places) = room(&[1, 1, 1, 1]);
    for place in &places {
        room.turn(*place, Stage::Busy, 10);
    }
    assert_eq!(room.enter(origin(2), 2_009), Err(Full));
    assert_eq!(room.enter(origin(1), 60_000), Err(Full));
    assert_eq!(goes(&mut room, 2, 2_010), Some((places[0], Stage::Busy)));
}

#[test]
fn a_place_is_given_up_once() {
    let (mut room, places) = room(&[1, 1, 1, 1]);
    assert_eq!(goes(&mut room, 2, 5), Some((places[0], Stage::Silent)));
    room.turn(places[0], Stage::Idle, 6);
    room.leave(places[0]);
    assert_eq!(room.held(), 4);
    for place in &places {
        room.leave(*place);
    }
    assert_eq!((room.held(), room.shares.len(), room.ranking.len()), (1, 1, 1));
    assert!(room.all.iter().map(BTreeSet::len).sum::<usize>() == 1);
}

#[test]
fn an_ipv6_host_is_its_network_and_a_mapped_address_is_ipv4() {
    let of = |text: &str| Origin::from(text.parse::<IpAddr>().unwrap());
    assert_eq!(of("2001:db8::1"), of("2001:db8::ffff:1"));
    assert_ne!(of("2001:db8::1"), of("2001:db8:0:1::1"));
    assert_eq!(of("::ffff:10.0.0.1"), of("10.0.0.1"));
}
