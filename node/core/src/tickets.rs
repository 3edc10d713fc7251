//! Whose ticket is that, and the ticket that a process gives out itself.
//!
//! Each key is good for its own kind: the broker's for tickets that open connections and post, the process's own for
//! `resume`, the way back in while the broker is away.

use usher_shared::id::{ConnectionId, Incarnation, NodeId, TeamId};
use usher_shared::link::TicketKey;
use usher_shared::quantity::Epoch;
use usher_shared::secret::Key;
use usher_shared::ticket::{self, Age, Claims, RESUME_LIFE_S, Scope};

use crate::admission::Refusal;

/// The name of the key that a process signs its own tickets with; no broker has one of that name.
const RESUME_KID: &str = "resume";

/// What a genuine ticket says. `keys`: the broker's, of the last welcome; `own`: this process's.
///
/// # Errors
/// [`Refusal::Missing`] when there is none, [`Refusal::NotGenuine`] when no key of its kind has signed it.
pub fn verify(
    text: Option<&str>,
    now_s: u64,
    keys: &[TicketKey],
    own: &Key,
) -> Result<(Claims, Age), Refusal> {
    let text = text.filter(|text| !text.is_empty()).ok_or(Refusal::Missing)?;
    let mut is_own = false;
    let key = |kid: &str| {
        is_own = kid == RESUME_KID;
        if is_own {
            return Some(own);
        }
        let found = keys.iter().find(|key| key.kid == kid);
        found.map(|found| &found.key)
    };
    match ticket::verify(text, now_s, key) {
        Ok((claims, _)) if is_own != (claims.scope == Scope::Resume) => Err(Refusal::NotGenuine),
        Ok(genuine) => Ok(genuine),
        Err(_) => Err(Refusal::NotGenuine),
    }
}

/// The way back in for a connection while the broker is away: it needs nobody but this process.
#[derive(Clone, Copy, Debug)]
pub struct Resume<'a> {
    /// Its team.
    pub team: &'a TeamId,
    /// This node.
    pub node: &'a NodeId,
    /// This process.
    pub incarnation: Incarnation,
    /// Under which the node holds the team.
    pub epoch: Epoch,
    /// The connection.
    pub connection: ConnectionId,
}

impl Resume<'_> {
    /// The ticket, from `now_s` (wall clock) on; `drawn` at random makes it unique.
    #[must_use]
    pub fn sign(&self, own: &Key, now_s: u64, drawn: u64) -> String {
        let claims = Claims {
            sub: self.team.clone(),
            aud: self.node.clone(),
            inc: self.incarnation,
            epoch: self.epoch,
            iat: now_s,
            exp: now_s + RESUME_LIFE_S,
            jti: format!("{drawn:016x}"),
            hop: 0,
            from: Some(self.connection),
            scope: Scope::Resume,
        };
        ticket::sign(&claims, RESUME_KID, own)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW_S: u64 = 1_000_000;

    fn own() -> Key {
        Key::from_bytes([1; 32])
    }

    fn keys() -> Vec<TicketKey> {
        vec![TicketKey {
            kid: "1".to_owned(),
            key: Key::from_bytes([2; 32]),
        }]
    }

    fn resume() -> String {
        let resume = Resume {
            team: &"T1".parse().unwrap(),
            node: &"n1".parse().unwrap(),
            incarnation: Incarnation::from_bits(1),
            epoch: Epoch::new(5).unwrap(),
            connection: ConnectionId::new(Incarnation::from_bits(1), 9),
        };
        resume.sign(&own(), NOW_S, 7)
    }

    #[test]
    fn a_ticket_of_this_process_is_good_for_coming_back_here() {
        let (claims, age) = verify(Some(&resume()), NOW_S, &keys(), &own()).unwrap();
        assert_eq!((claims.scope, age), (Scope::Resume, Age::Fresh));
        assert_eq!(claims.from, Some(ConnectionId::new(Incarnation::from_bits(1), 9)));
        let other = Key::from_bytes([3; 32]);
        let refused = verify(Some(&resume()), NOW_S, &keys(), &other);
        assert_eq!(refused, Err(Refusal::NotGenuine));
    }

    #[test]
    fn each_key_is_good_for_its_own_kind_of_ticket() {
        let (claims, _) = verify(Some(&resume()), NOW_S, &keys(), &own()).unwrap();
        let brokers = Key::from_bytes([2; 32]);
        let resume_by_broker = ticket::sign(&claims, "1", &brokers);
        assert_eq!(
            verify(Some(&resume_by_broker), NOW_S, &keys(), &own()),
            Err(Refusal::NotGenuine)
        );
        let connect = Claims {
            scope: Scope::Connect,
            exp: NOW_S + ticket::LIFE_S,
            ..claims
        };
        let by_broker = ticket::sign(&connect, "1", &brokers);
        assert!(verify(Some(&by_broker), NOW_S, &keys(), &own()).is_ok());
        let connect_by_itself = ticket::sign(&connect, RESUME_KID, &own());
        assert_eq!(
            verify(Some(&connect_by_itself), NOW_S, &keys(), &own()),
            Err(Refusal::NotGenuine)
        );
    }

    #[test]
    fn no_ticket_is_told_apart_from_a_bad_one() {
        for none in [None, Some("")] {
            assert_eq!(verify(none, NOW_S, &keys(), &own()), Err(Refusal::Missing));
        }
        assert_eq!(
            verify(Some("a.b.c"), NOW_S, &keys(), &own()),
            Err(Refusal::NotGenuine)
        );
    }
}
