//! Whether anybody still listens where a node said it does.

use std::sync::Arc;
use std::time::Duration;
use tokio::net::TcpStream;
use tokio::sync::Semaphore;
use tokio::time::Instant;
use usher_dial::dial_within;
use usher_placement::{Event, ProbeOutcome};
use usher_shared::id::{Incarnation, NodeId};

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
