//! Who listens where a node said it does, and whether anybody still does.

use bytes::Bytes;
use http::header::HOST;
use http::{Request, StatusCode};
use http_body_util::{BodyExt as _, Empty, Limited};
use hyper_util::rt::TokioIo;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::TcpStream;
use tokio::sync::Semaphore;
use tokio::time::Instant;
use usher_dial::dial_within;
use usher_placement::{Event, ProbeOutcome};
use usher_shared::id::{ClusterId, Incarnation, NodeId};
use usher_shared::link::{HEARS_BROKER_PATH, HearsBroker};
use usher_shared::rest::ProbeState;

use crate::handle::{CoreHandle, Input};

/// How long an address is tried: a restarting process is back within this or is not, and a team's
/// clients are to have a new node within a second.
const TRIED_FOR: Duration = Duration::from_millis(300);
/// How long after a refusal it is tried again.
const PAUSE: Duration = Duration::from_millis(50);
/// How long one address of a name has before the next is tried beside it: all are to have a part of
/// the time above.
const STAGGER: Duration = Duration::from_millis(50);
/// Probes at once, each with a descriptor; the rest wait.
const AT_ONCE: usize = 512;

/// When a node that has just joined is asked who it is: its listener is open by then, but a proxy before it
/// may have to notice.
const WHO_PAUSES: [Duration; 3] = [Duration::ZERO, Duration::from_millis(500), Duration::from_secs(2)];
/// How long an answer may take.
const WHO_PATIENCE: Duration = Duration::from_secs(1);
/// An answer is a few bytes.
const WHO_BYTES: usize = 1_024;

/// Tries the addresses of nodes whose links closed.
#[derive(Clone)]
pub(crate) struct Prober {
    core: CoreHandle,
    room: Arc<Semaphore>,
    sockets: tokio::runtime::Handle,
}

impl Prober {
    /// `sockets` is the runtime to connect on; the loop's own has no sockets.
    pub(crate) fn new(core: CoreHandle, sockets: tokio::runtime::Handle) -> Self {
        Self {
            core,
            room: Arc::new(Semaphore::new(AT_ONCE)),
            sockets,
        }
    }

    /// Tries `address` and tells the loop how it went. The core asks once for each link that
    /// closed, which bounds how many wait.
    pub(crate) fn probe(&self, node: NodeId, incarnation: Incarnation, address: String) {
        let (core, room) = (self.core.clone(), Arc::clone(&self.room));
        self.sockets.spawn(async move {
            let permit = room.acquire_owned().await;
            let outcome = try_address(&address).await;
            drop(permit);
            tracing::debug!(%node, %address, ?outcome, "probed");
            let event = Event::Probed {
                node,
                incarnation,
                outcome,
            };
            let _ = core.tell(Input::Event(event)).await;
        });
    }

    /// Asks who is at `address`, and tells the loop.
    pub(crate) fn ask_who(
        &self,
        node: NodeId,
        incarnation: Incarnation,
        address: String,
        cluster: ClusterId,
    ) {
        let (core, room) = (self.core.clone(), Arc::clone(&self.room));
        self.sockets.spawn(async move {
            let mut state = ProbeState::Silent;
            for pause in WHO_PAUSES {
                tokio::time::sleep(pause).await;
                let permit = room.acquire().await;
                let answer = tokio::time::timeout(WHO_PATIENCE, who_is_at(&address, cluster)).await;
                drop(permit);
                state = match answer.ok().flatten() {
                    Some(who) if who == (node.clone(), incarnation) => ProbeState::Proven,
                    Some(_) => ProbeState::Foreign,
                    None => ProbeState::Silent,
                };
                if state == ProbeState::Proven {
                    break;
                }
            }
            tracing::debug!(%node, %address, state = state.as_str(), "asked who is there");
            let event = Event::WhoAnswered {
                node,
                incarnation,
                state,
            };
            let _ = core.tell(Input::Event(event)).await;
        });
    }
}

/// The process that says that it is at `address`.
async fn who_is_at(address: &str, cluster: ClusterId) -> Option<(NodeId, Incarnation)> {
    let request = Request::get(format!("{HEARS_BROKER_PATH}?cluster={cluster}"))
        .header(HOST, address)
        .body(Empty::<Bytes>::new())
        .ok()?;
    let stream = TcpStream::connect(address).await.ok()?;
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream))
        .await
        .ok()?;
    let asked = async {
        let answer = sender.send_request(request).await.ok()?;
        if answer.status() != StatusCode::OK {
            return None;
        }
        let body = Limited::new(answer.into_body(), WHO_BYTES).collect().await.ok()?;
        let answer: HearsBroker = serde_json::from_slice(&body.to_bytes()).ok()?;
        answer.node.zip(answer.incarnation)
    };
    // The answer comes through the connection, which ends with it or before.
    tokio::pin!(connection, asked);
    let mut open = true;
    loop {
        tokio::select! {
            answer = &mut asked => return answer,
            _ = &mut connection, if open => open = false,
        }
    }
}

/// Answered if somebody accepts and does not hang up at once; refused if the tries end refused.
pub(crate) async fn try_address(address: &str) -> ProbeOutcome {
    let until = Instant::now() + TRIED_FOR;
    loop {
        let outcome = match tokio::time::timeout_at(until, dial_within(address, STAGGER)).await {
            // The kernel accepts for a process whose sockets are just being closed, too.
            Ok(Ok(socket)) if stays_open(&socket).await => return ProbeOutcome::Answered,
            Ok(Ok(_)) => ProbeOutcome::Silent,
            Ok(Err(error)) if error.kind() == std::io::ErrorKind::ConnectionRefused => ProbeOutcome::Refused,
            Ok(Err(_)) | Err(_) => return ProbeOutcome::Silent,
        };
        if Instant::now() + PAUSE >= until {
            return outcome;
        }
        tokio::time::sleep(PAUSE).await;
    }
}

async fn stays_open(socket: &TcpStream) -> bool {
    match tokio::time::timeout(PAUSE, socket.readable()).await {
        // Whoever speaks first is alive, and so is whoever waits.
        Ok(_) => socket.try_read(&mut [0]).is_ok_and(|length| length > 0),
        Err(_) => true,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_listening_address_answers_and_a_closed_one_refuses() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap().to_string();
        assert_eq!(try_address(&address).await, ProbeOutcome::Answered);
        drop(listener);
        assert_eq!(try_address(&address).await, ProbeOutcome::Refused);
    }

    #[tokio::test]
    async fn a_listener_that_is_being_closed_does_not_count_as_an_answer() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let tried = tokio::spawn(async move { try_address(&address).await });
        // Taken into the backlog, and then reset with it.
        let (socket, _) = listener.accept().await.unwrap();
        drop((socket, listener));
        assert_eq!(tried.await.unwrap(), ProbeOutcome::Refused);
    }

    #[tokio::test]
    async fn what_is_no_address_is_silent_and_never_a_hint_of_death() {
        assert_eq!(try_address("no address at all").await, ProbeOutcome::Silent);
    }
}
