//! Whether a client with a ticket comes in.

use std::collections::{HashMap, VecDeque};
use usher_shared::id::{ConnectionId, Incarnation, NodeId, TeamId};
use usher_shared::planted::{self, Bug};
use usher_shared::quantity::Timestamp;
use usher_shared::ticket::{Age, Claims, LEEWAY_S, MAX_LIFE_S, RESUME_LIFE_S, Scope};

use crate::holdings::Tenure;

/// How many used tickets are remembered: a minute of 1,000 new connections a second.
const MAX_SPENT: usize = 65_536;
/// A ticket is remembered until no verifier takes it for fresh any more.
const SPENT_MS: u64 = (MAX_LIFE_S + 2 * LEEWAY_S) * 1000;

/// A ticket that was found genuine, and where it was shown.
#[derive(Clone, Copy, Debug)]
pub struct Shown<'a> {
    /// What it says.
    pub claims: &'a Claims,
    /// Whether it is in its time.
    pub age: Age,
    /// The wall clock, in seconds since the Unix epoch.
    pub now_s: u64,
    /// The team in the path.
    pub team: &'a TeamId,
    /// What the request is for.
    pub purpose: Scope,
}

/// What the node is when the ticket is shown.
#[derive(Clone, Copy, Debug)]
pub struct Here<'a> {
    /// Its name.
    pub node: &'a NodeId,
    /// Its incarnation.
    pub incarnation: Incarnation,
    /// Whether there is a broker to send anybody back to.
    pub contact: Contact,
    /// What the team is to it.
    pub tenure: Tenure,
}

/// Whether the node hears its broker.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Contact {
    /// The link is up and the lease runs.
    Connected,
    /// The link is down or the lease lapsed: a client that is sent back may find nobody.
    Lost,
    /// The lease lapsed, and this node serves nobody without one.
    Fenced,
}

/// What becomes of the client.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// It comes in.
    Admit,
    /// The broker's `assign` may be on its way: wait a little for it.
    Wait,
    /// It goes back to the broker.
    SendBack(Refusal),
}

/// Why a ticket does not open this door.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Refusal {
    /// None was shown.
    Missing,
    /// Malformed, forged, or signed with a key that is not known here.
    NotGenuine,
    /// For another node, or for an earlier process of this one.
    OtherNode,
    /// For another team.
    OtherTeam,
    /// For another purpose.
    OtherPurpose,
    /// Of an assignment that is over.
    OldEpoch,
    /// Past its time.
    Expired,
    /// Good only while the node has lost its broker, which it hears.
    BrokerHeard,
    /// The node has no lease, and its pool is one that fences.
    NoLease,
    /// Newer than anything that the broker told this node in time.
    NotYetHere,
}

impl Refusal {
    /// Stable, for metrics and problems.
    #[must_use]
    pub const fn code(self) -> &'static str {
        match self {
            Self::Missing => "missing",
            Self::NotGenuine => "not_genuine",
            Self::OtherNode => "other_node",
            Self::OtherTeam => "other_team",
            Self::OtherPurpose => "other_purpose",
            Self::OldEpoch => "old_epoch",
            Self::Expired => "expired",
            Self::BrokerHeard => "broker_heard",
            Self::NoLease => "no_lease",
            Self::NotYetHere => "not_yet_here",
        }
    }
}

/// Decides. A used ticket is no matter here: it is as good as an unused one, and replaces the
/// connection that it made ([`SpentTickets`]), because a client whose 101 was lost has no other.
#[must_use]
pub fn decide(shown: Shown<'_>, here: Here<'_>) -> Verdict {
    let claims = shown.claims;
    let earlier_process = claims.inc != here.incarnation && !planted::is(Bug::TicketOfEarlierProcess);
    if claims.aud != *here.node || earlier_process {
        return Verdict::SendBack(Refusal::OtherNode);
    }
    if claims.sub != *shown.team {
        return Verdict::SendBack(Refusal::OtherTeam);
    }
    let resumes = claims.scope == Scope::Resume && shown.purpose == Scope::Connect;
    if claims.scope != shown.purpose && !resumes {
        return Verdict::SendBack(Refusal::OtherPurpose);
    }
    if here.contact == Contact::Fenced {
        return Verdict::SendBack(Refusal::NoLease);
    }
    let held = here.tenure == Tenure::Held(claims.epoch);
    let lost = here.contact == Contact::Lost;
    if resumes && !lost && !planted::is(Bug::ResumeWhileHeard) {
        return Verdict::SendBack(Refusal::BrokerHeard);
    }
    if resumes && !held {
        return Verdict::SendBack(Refusal::OldEpoch);
    }
    // As long as `resume` is good, and no longer: who holds an older one came in days ago, or found it in a log.
    let lately = shown.now_s <= claims.iat.saturating_add(RESUME_LIFE_S + LEEWAY_S);
    let kept = held && lately && (lost || planted::is(Bug::ExpiredTicketWhileConnected)) && !resumes;
    if shown.age == Age::Expired && !kept {
        return Verdict::SendBack(Refusal::Expired);
    }
    match here.tenure {
        _ if held => Verdict::Admit,
        Tenure::Held(epoch) | Tenure::Leaving(epoch) if claims.epoch <= epoch => {
            Verdict::SendBack(Refusal::OldEpoch)
        }
        _ => Verdict::Wait,
    }
}

/// The tickets used lately, and the connections that they made.
#[derive(Debug, Default)]
pub struct SpentTickets {
    /// By the ticket's `jti`.
    made: HashMap<Box<str>, ConnectionId>,
    /// In the order of use.
    order: VecDeque<(Timestamp, Box<str>)>,
}

impl SpentTickets {
    /// Notes that the ticket `jti` made `connection`; the connection that it made before, if any.
    pub fn spend(&mut self, jti: &str, connection: ConnectionId, now: Timestamp) -> Option<ConnectionId> {
        self.forget(now);
        if self.made.len() >= MAX_SPENT {
            self.drop_oldest();
        }
        let before = self.made.insert(jti.into(), connection);
        if before.is_none() {
            self.order.push_back((now.plus(SPENT_MS), jti.into()));
        }
        before
    }

    /// Whether the ticket `jti` opened a connection here lately.
    #[must_use]
    pub fn opened(&self, jti: &str) -> bool {
        self.made.contains_key(jti)
    }

    fn forget(&mut self, now: Timestamp) {
        while self.order.front().is_some_and(|(until, _)| *until <= now) {
            self.drop_oldest();
        }
        if self.made.is_empty() {
            // After a storm the memory goes back; it is never needed at that size again soon.
            self.made.shrink_to(256);
            self.order.shrink_to(256);
        }
    }

    fn drop_oldest(&mut self) {
        if let Some((_, jti)) = self.order.pop_front() {
            self.made.remove(&jti);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use usher_shared::quantity::Epoch;

    fn epoch(number: u64) -> Epoch {
        Epoch::new(number).unwrap()
    }

    fn claims() -> Claims {
        Claims {
            sub: "T1".parse().unwrap(),
            aud: "n1".parse().unwrap(),
            inc: Incarnation::from_bits(7),
            epoch: epoch(5),
            iat: 0,
            exp: 30,
            jti: "00ff".to_owned(),
            hop: 0,
            from: None,
            scope: Scope::Connect,
        }
    }

    fn verdict(claims: &Claims, age: Age, contact: Contact, tenure: Tenure) -> Verdict {
        verdict_at(60, claims, age, contact, tenure)
    }

    fn verdict_at(now_s: u64, claims: &Claims, age: Age, contact: Contact, tenure: Tenure) -> Verdict {
        let (team, node) = ("T1".parse().unwrap(), "n1".parse().unwrap());
        let shown = Shown {
            claims,
            age,
            now_s,
            team: &team,
            purpose: Scope::Connect,
        };
        let here = Here {
            node: &node,
            incarnation: Incarnation::from_bits(7),
            contact,
            tenure,
        };
        decide(shown, here)
    }

    #[test]
    fn a_ticket_opens_the_door_it_was_made_for() {
        let held = Tenure::Held(epoch(5));
        let connected = Contact::Connected;
        assert_eq!(verdict(&claims(), Age::Fresh, connected, held), Verdict::Admit);
        let foreign = [
            (
                Claims {
                    aud: "n2".parse().unwrap(),
                    ..claims()
                },
                Refusal::OtherNode,
            ),
            (
                Claims {
                    inc: Incarnation::from_bits(8),
                    ..claims()
                },
                Refusal::OtherNode,
            ),
            (
                Claims {
                    sub: "T2".parse().unwrap(),
                    ..claims()
                },
                Refusal::OtherTeam,
            ),
            (
                Claims {
                    scope: Scope::Post,
                    ..claims()
                },
                Refusal::OtherPurpose,
            ),
            (
                Claims {
                    epoch: epoch(4),
                    ..claims()
                },
                Refusal::OldEpoch,
            ),
        ];
        for (claims, refusal) in foreign {
            assert_eq!(
                verdict(&claims, Age::Fresh, connected, held),
                Verdict::SendBack(refusal)
            );
        }
    }

    #[test]
    fn a_ticket_that_is_newer_than_what_is_held_waits() {
        for tenure in [Tenure::Absent, Tenure::Held(epoch(4)), Tenure::Leaving(epoch(4))] {
            let verdict = verdict(&claims(), Age::Fresh, Contact::Connected, tenure);
            assert_eq!(verdict, Verdict::Wait, "{tenure:?}");
        }
        for tenure in [Tenure::Leaving(epoch(5)), Tenure::Leaving(epoch(6))] {
            let verdict = verdict(&claims(), Age::Fresh, Contact::Connected, tenure);
            assert_eq!(verdict, Verdict::SendBack(Refusal::OldEpoch), "{tenure:?}");
        }
    }

    #[test]
    fn an_expired_ticket_is_good_for_a_team_held_here_while_the_broker_is_away() {
        let held = Tenure::Held(epoch(5));
        let expired = Verdict::SendBack(Refusal::Expired);
        assert_eq!(
            verdict(&claims(), Age::Expired, Contact::Connected, held),
            expired
        );
        assert_eq!(
            verdict(&claims(), Age::Expired, Contact::Lost, held),
            Verdict::Admit
        );
        for tenure in [Tenure::Absent, Tenure::Held(epoch(6)), Tenure::Leaving(epoch(6))] {
            assert_eq!(verdict(&claims(), Age::Expired, Contact::Lost, tenure), expired);
        }
    }

    #[test]
    fn a_ticket_that_expired_long_ago_is_as_bad_as_a_resume_of_then() {
        let held = Tenure::Held(epoch(5));
        let (last, year) = (RESUME_LIFE_S + LEEWAY_S, 365 * 86_400);
        let at = |now_s| verdict_at(now_s, &claims(), Age::Expired, Contact::Lost, held);
        assert_eq!(at(last), Verdict::Admit);
        assert_eq!(at(last + 1), Verdict::SendBack(Refusal::Expired));
        assert_eq!(at(year), Verdict::SendBack(Refusal::Expired));
    }

    #[test]
    fn a_ticket_used_again_names_the_connection_it_made_until_it_is_over() {
        let at = Timestamp::from_millis;
        let [first, second, third] =
            [1, 2, 3].map(|serial| ConnectionId::new(Incarnation::from_bits(0), serial));
        let mut spent = SpentTickets::default();
        assert_eq!(spent.spend("a", first, at(0)), None);
        assert!(spent.opened("a") && !spent.opened("b"));
        assert_eq!(spent.spend("a", second, at(10)), Some(first));
        assert_eq!(spent.spend("b", third, at(10)), None);
        assert_eq!(spent.spend("a", third, at(SPENT_MS)), None);
    }

    #[test]
    fn the_memory_of_used_tickets_is_bounded() {
        let mut spent = SpentTickets::default();
        let connection = ConnectionId::new(Incarnation::from_bits(0), 1);
        for number in 0..MAX_SPENT + 10 {
            spent.spend(&number.to_string(), connection, Timestamp::from_millis(0));
        }
        assert_eq!((spent.made.len(), spent.order.len()), (MAX_SPENT, MAX_SPENT));
        assert_eq!(spent.spend("0", connection, Timestamp::from_millis(0)), None);
    }
}
