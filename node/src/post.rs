//! A message posted to all connections of a team.

use bytes::Bytes;
use http::header::CONTENT_TYPE;
use http::{HeaderMap, StatusCode};
use http_body_util::{BodyExt as _, Limited};
use hyper::body::Body as _;
use parking_lot::Mutex;
use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, OnceLock};
use std::time::Duration;
use tokio_tungstenite::tungstenite::{Message, Utf8Bytes};
use usher_listen::answer::{Answer, body, problem};
use usher_listen::inflow::Inflow;
use usher_shared::clock::boottime;
use usher_shared::frame::{CONTROL_PREFIX, pretends_control};
use usher_shared::id::TeamId;
use usher_shared::quantity::Timestamp;
use usher_shared::rest::Problem;

use crate::floor::{Floor, Knock};

/// How long a body may take.
const BODY_TIMEOUT: Duration = Duration::from_secs(10);
/// How long an `Idempotency-Key` is remembered.
const REMEMBER_MS: u64 = 10 * 60 * 1000;
/// How many are remembered.
const MAX_REMEMBERED: usize = 8_192;
/// The longest key.
const MAX_KEY_BYTES: usize = 128;

/// Posts lately done, by team and `Idempotency-Key`.
#[derive(Debug, Default)]
pub(crate) struct Done {
    by_key: Mutex<DoneByKey>,
}

#[derive(Debug, Default)]
struct DoneByKey {
    /// How many connections each went to; empty until it has gone to all of them.
    delivered: HashMap<(TeamId, Box<str>), Arc<OnceLock<u32>>>,
    order: VecDeque<(Timestamp, (TeamId, Box<str>))>,
}

impl Done {
    /// How many connections the post with this key went to: `deliver` runs once a key, also when
    /// the same post comes twice at the same time. Posts with other keys wait for none of that.
    fn once(&self, team: &TeamId, key: &str, now: Timestamp, deliver: impl FnOnce() -> u32) -> u32 {
        *self.of(team, key, now).get_or_init(deliver)
    }

    fn of(&self, team: &TeamId, key: &str, now: Timestamp) -> Arc<OnceLock<u32>> {
        let mut done = self.by_key.lock();
        while done.order.front().is_some_and(|(until, _)| *until <= now) {
            done.drop_oldest();
        }
        let name = (team.clone(), Box::from(key));
        if let Some(delivered) = done.delivered.get(&name) {
            return Arc::clone(delivered);
        }
        if done.order.len() >= MAX_REMEMBERED {
            done.drop_oldest();
        }
        let delivered = Arc::default();
        done.delivered.insert(name.clone(), Arc::clone(&delivered));
        done.order.push_back((now.plus(REMEMBER_MS), name));
        delivered
    }
}

impl DoneByKey {
    fn drop_oldest(&mut self) {
        if let Some((_, oldest)) = self.order.pop_front() {
            self.delivered.remove(&oldest);
        }
    }
}

/// Writes the body to the connections of the team that the ticket names.
pub(crate) async fn post(
    floor: &Floor,
    done: &Done,
    knock: &Knock,
    headers: &HeaderMap,
    incoming: Inflow,
) -> Answer {
    let key = match headers.get("idempotency-key").map(|key| key.to_str()) {
        None => None,
        Some(Ok(key)) if (1..=MAX_KEY_BYTES).contains(&key.len()) => Some(key),
        Some(_) => {
            let detail = format!("an Idempotency-Key is 1 to {MAX_KEY_BYTES} visible ASCII characters");
            return problem(&Problem::new(400, "bad_idempotency_key", detail));
        }
    };
    let frame = match read(floor, headers, incoming).await {
        Ok(frame) => frame,
        Err(refused) => return problem(&refused),
    };
    let roster = match floor.address(knock).await {
        Ok(roster) => roster,
        Err(refusal) => {
            floor.figures.refused(refusal);
            let detail = "the ticket opens nothing here; post to the broker again";
            return problem(&Problem::new(409, "stale_ticket", detail));
        }
    };
    let deliver = || {
        let Some(roster) = roster else { return 0 };
        let given = roster.give(None, floor.config.queue_bytes, floor.clock.now(), || frame);
        floor.figures.slow_readers.increment(u64::from(given.too_slow));
        given.queued
    };
    let delivered = match key {
        Some(key) => done.once(&knock.team, key, boottime(), deliver),
        None => deliver(),
    };
    body(
        StatusCode::OK,
        "application/json",
        format!("{{\"delivered\":{delivered}}}"),
    )
}

async fn read(floor: &Floor, headers: &HeaderMap, incoming: Inflow) -> Result<Message, Problem> {
    let limit = floor.config.message_bytes;
    let too_large = || Problem::new(413, "too_large", format!("a message is at most {limit} bytes"));
    // Before the first byte: a client that waits for `100 Continue` need not send any.
    if incoming.size_hint().lower() > limit as u64 {
        return Err(too_large());
    }
    let collected = tokio::time::timeout(BODY_TIMEOUT, Limited::new(incoming, limit).collect()).await;
    let bytes: Bytes = match collected {
        Ok(Ok(collected)) => collected.to_bytes(),
        Ok(Err(error)) if error.is::<http_body_util::LengthLimitError>() => {
            return Err(too_large());
        }
        Ok(Err(_)) => return Err(Problem::new(400, "bad_body", "the body ended early")),
        Err(_) => return Err(Problem::new(408, "slow_body", "the body took longer than 10 s")),
    };
    let binary = headers
        .get(CONTENT_TYPE)
        .and_then(|kind| kind.to_str().ok())
        .and_then(|kind| kind.split(';').next())
        .is_some_and(|kind| kind.trim().eq_ignore_ascii_case("application/octet-stream"));
    if binary {
        return Ok(Message::Binary(bytes));
    }
    let text = Utf8Bytes::try_from(bytes).map_err(|_| {
        let detail = "a text message is UTF-8; send other bytes as application/octet-stream";
        Problem::new(400, "not_utf8", detail)
    })?;
    if pretends_control(&text) {
        let detail = format!("a text message must not start with {CONTROL_PREFIX}");
        return Err(Problem::new(400, "reserved", detail));
    }
    Ok(Message::Text(text))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_is_delivered_once_until_it_is_forgotten() {
        let done = Done::default();
        let (team, other): (TeamId, TeamId) = ("T1".parse().unwrap(), "T2".parse().unwrap());
        let at = Timestamp::from_millis;
        assert_eq!(done.once(&team, "k", at(0), || 3), 3);
        assert_eq!(done.once(&team, "k", at(REMEMBER_MS - 1), || 9), 3);
        assert_eq!(done.once(&other, "k", at(1), || 4), 4);
        assert_eq!(done.once(&other, "x", at(REMEMBER_MS), || 1), 1);
        assert_eq!(done.once(&team, "k", at(REMEMBER_MS), || 9), 9);
    }

    #[test]
    fn a_post_waits_for_its_own_key_and_for_no_other() {
        let done = Done::default();
        let (team, now) = ("T1".parse().unwrap(), Timestamp::from_millis(0));
        let (say, said) = std::sync::mpsc::channel();
        std::thread::scope(|scope| {
            let (done, team) = (&done, &team);
            // While one is being delivered, another goes its way, and a third of the first's key has its answer.
            let first = move || {
                let said = said.recv_timeout(Duration::from_secs(20));
                assert_eq!(said, Ok(2), "another key waited for this one");
                1
            };
            let first = scope.spawn(move || done.once(team, "a", now, first));
            while done.by_key.try_lock().is_none_or(|known| known.order.is_empty()) {
                std::thread::yield_now();
            }
            let same = scope.spawn(move || done.once(team, "a", now, || 9));
            say.send(done.once(team, "b", now, || 2)).unwrap();
            assert_eq!((first.join().unwrap(), same.join().unwrap()), (1, 1));
        });
    }

    #[test]
    fn the_memory_of_keys_is_bounded() {
        let done = Done::default();
        let team: TeamId = "T1".parse().unwrap();
        for number in 0..MAX_REMEMBERED + 5 {
            done.once(&team, &number.to_string(), Timestamp::from_millis(0), || 1);
        }
        let inner = done.by_key.lock();
        assert_eq!(
            (inner.delivered.len(), inner.order.len()),
            (MAX_REMEMBERED, MAX_REMEMBERED)
        );
    }
}
