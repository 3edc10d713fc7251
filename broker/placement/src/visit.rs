//! Straight to its node, or to the core? Decided for every client that asks where its team is, from the route and
//! the ticket that it may have had before.
//!
//! A client that comes back with a ticket from exactly where its route leads found nobody there, or was sent back:
//! the route alone would send it round in a circle, so the core looks. What it was sent on counts as hops of one
//! chain, and a chain has an end.

use usher_shared::id::{ConnectionId, Incarnation, NodeId, TeamId};
use usher_shared::planted::{self, Bug};
use usher_shared::quantity::Epoch;
use usher_shared::ticket::{Age, Claims, MAX_HOPS};

use crate::event::Knock;

/// A ticket that opened nothing and comes back sooner than this after it was issued is a hop of one
/// chain. A client that merely re-dials an old URL comes later.
const CHAIN_S: u64 = 10;
/// For this long after its end a ticket still tells where its bearer was.
const REMEMBERED_S: u64 = 600;

/// Where a team's route leads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Lead<'a> {
    /// Its node.
    pub node: &'a NodeId,
    /// The process that runs there.
    pub incarnation: Incarnation,
    /// The epoch of the assignment.
    pub epoch: Epoch,
    /// Whether clients may be sent there without asking the core.
    pub direct: bool,
}

/// What a ticket from before tells of its bearer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Returning {
    /// How many redirects in a row this one would be, from 0.
    pub hop: u8,
    /// The connection that its bearer had, as far as is known.
    pub from: Option<ConnectionId>,
    /// Where it was.
    pub knock: Knock,
    /// Milliseconds until the chain it belongs to is forgotten.
    chain_left_ms: u64,
}

/// What is to be done with a client.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direction {
    /// Send it where its route leads.
    Straight,
    /// Ask the core.
    AskCore,
    /// Broker and nodes sent it round in a circle: stop it.
    Circle {
        /// Milliseconds until the chain is forgotten.
        retry_ms: u64,
    },
}

impl Returning {
    /// What a genuine ticket tells at `now_s` (wall clock) of a client that asks for `team`. `had` is the connection
    /// that it says it had, or that a node says its ticket opened; `today` the process that runs under the
    /// ticket's node today, if that is known. `None`: the ticket is another team's, or too old to tell anything.
    #[must_use]
    pub fn of(
        (claims, age): (Claims, Age),
        team: &TeamId,
        had: Option<ConnectionId>,
        today: Option<Incarnation>,
        now_s: u64,
    ) -> Option<Self> {
        let remembered = age == Age::Fresh || now_s <= claims.exp.saturating_add(REMEMBERED_S);
        if claims.sub != *team || !remembered {
            return None;
        }
        let age_s = now_s.saturating_sub(claims.iat);
        let named = claims.jti.parse().ok();
        let opened = named.is_some() && had == named;
        // None of an earlier process's tickets is issued any more, so none can be a step of a circle that goes
        // on; and that process is not there to say what it opened.
        let of_earlier_process = today.is_some_and(|today| today != claims.inc);
        let chained = age_s < CHAIN_S && !opened && !of_earlier_process;
        let counted = chained && !planted::is(Bug::HopsUncounted);
        Some(Self {
            hop: if counted { claims.hop.saturating_add(1) } else { 0 },
            // Within a chain of redirects the last ticket most likely opened nothing.
            from: had.or(claims.from.filter(|_| chained)).or(named),
            knock: Knock {
                node: claims.aud,
                incarnation: claims.inc,
                epoch: claims.epoch,
            },
            chain_left_ms: CHAIN_S.saturating_sub(age_s) * 1_000,
        })
    }

    /// Whether it was exactly where its team's route leads.
    #[must_use]
    pub fn was_at(&self, lead: &Lead<'_>) -> bool {
        self.knock.node == *lead.node
            && self.knock.incarnation == lead.incarnation
            && self.knock.epoch == lead.epoch
    }
}

/// Straight to its node, or to the core? `lead`: where the team's route leads, if it has one.
#[must_use]
pub fn direct(lead: Option<&Lead<'_>>, returning: Option<&Returning>) -> Direction {
    if let Some(returning) = returning.filter(|returning| returning.hop >= MAX_HOPS) {
        return Direction::Circle {
            retry_ms: returning.chain_left_ms,
        };
    }
    let knocks = |lead: &Lead<'_>| {
        returning.is_some_and(|returning| returning.was_at(lead)) && !planted::is(Bug::KnockNotHeard)
    };
    match lead {
        Some(lead) if lead.direct && !knocks(lead) => Direction::Straight,
        _ => Direction::AskCore,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use usher_shared::ticket::{LIFE_S, Scope};

    const NOW_S: u64 = 1_000_000;

    fn node() -> NodeId {
        "n1".parse().unwrap()
    }

    fn team() -> TeamId {
        "T1".parse().unwrap()
    }

    fn epoch(number: u64) -> Epoch {
        Epoch::new(number).unwrap()
    }

    fn claims(issued_s: u64, hop: u8) -> Claims {
        Claims {
            sub: team(),
            aud: node(),
            inc: Incarnation::from_bits(1),
            epoch: epoch(5),
            iat: issued_s,
            exp: issued_s + LIFE_S,
            jti: "00000000000000aa".to_owned(),
            hop,
            from: None,
            scope: Scope::Connect,
        }
    }

    fn returning(issued_s: u64, hop: u8, had: Option<ConnectionId>) -> Returning {
        let today = Some(Incarnation::from_bits(1));
        Returning::of((claims(issued_s, hop), Age::Fresh), &team(), had, today, NOW_S).unwrap()
    }

    fn lead(node: &NodeId) -> Lead<'_> {
        Lead {
            node,
            incarnation: Incarnation::from_bits(1),
            epoch: epoch(5),
            direct: true,
        }
    }

    #[test]
    fn a_newcomer_goes_straight_where_the_route_leads_if_it_may() {
        let node = node();
        let lead = lead(&node);
        assert_eq!(direct(Some(&lead), None), Direction::Straight);
        let asks = Lead {
            direct: false,
            ..lead
        };
        assert_eq!(direct(Some(&asks), None), Direction::AskCore);
        assert_eq!(direct(None, None), Direction::AskCore);
    }

    #[test]
    fn whoever_comes_from_where_the_route_leads_is_looked_at_by_the_core() {
        let node = node();
        let back = returning(NOW_S - 1, 0, None);
        assert_eq!(direct(Some(&lead(&node)), Some(&back)), Direction::AskCore);
        let elsewhere = [
            Lead {
                epoch: epoch(6),
                ..lead(&node)
            },
            Lead {
                incarnation: Incarnation::from_bits(2),
                ..lead(&node)
            },
        ];
        for lead in elsewhere {
            assert_eq!(direct(Some(&lead), Some(&back)), Direction::Straight);
        }
    }

    #[test]
    fn a_chain_of_redirects_ends_and_is_forgotten() {
        let node = node();
        let hops = |hop| returning(NOW_S - 4, hop, None);
        assert_eq!(hops(MAX_HOPS - 2).hop, MAX_HOPS - 1);
        let last = hops(MAX_HOPS - 1);
        assert_eq!(
            direct(Some(&lead(&node)), Some(&last)),
            Direction::Circle { retry_ms: 6_000 }
        );
        let later = returning(NOW_S - CHAIN_S, MAX_HOPS - 1, None);
        assert_eq!(later.hop, 0);
    }

    #[test]
    fn a_ticket_that_opened_a_connection_or_is_of_an_earlier_process_is_no_hop() {
        let named: ConnectionId = "00000000000000aa".parse().unwrap();
        let opened = returning(NOW_S - 1, 3, Some(named));
        assert_eq!((opened.hop, opened.from), (0, Some(named)));
        let today = Some(Incarnation::from_bits(2));
        let earlier = Returning::of((claims(NOW_S - 1, 3), Age::Fresh), &team(), None, today, NOW_S).unwrap();
        assert_eq!((earlier.hop, earlier.from), (0, Some(named)));
    }

    #[test]
    fn within_a_chain_the_connection_of_before_counts_and_not_the_ticket_that_opened_nothing() {
        let before: ConnectionId = "00000000000000bb".parse().unwrap();
        let chained = Claims {
            from: Some(before),
            ..claims(NOW_S - 1, 0)
        };
        let told = Returning::of((chained, Age::Fresh), &team(), None, None, NOW_S).unwrap();
        assert_eq!((told.hop, told.from), (1, Some(before)));
    }

    #[test]
    fn a_ticket_of_another_team_or_from_long_ago_tells_nothing() {
        let other: TeamId = "T2".parse().unwrap();
        let fresh = || (claims(NOW_S - 1, 0), Age::Fresh);
        assert_eq!(Returning::of(fresh(), &other, None, None, NOW_S), None);
        let over_s = claims(0, 0).exp;
        let at = |now_s| Returning::of((claims(0, 0), Age::Expired), &team(), None, None, now_s);
        assert!(at(over_s + REMEMBERED_S).is_some());
        assert_eq!(at(over_s + REMEMBERED_S + 1), None);
    }
}
