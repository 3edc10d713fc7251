//! Carries out what the end of the lease asks for: asks peers, closes connections.

use bytes::Bytes;
use futures_util::StreamExt as _;
use futures_util::stream::FuturesUnordered;
use http::header::HOST;
use http::{Request, StatusCode};
use http_body_util::{BodyExt as _, Full, Limited};
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::time::{MissedTickBehavior, interval, sleep, timeout};
use usher_listen::fold::{Fold, Said};
use usher_shared::clock::boottime;
use usher_shared::frame::CloseCode;
use usher_shared::id::{ClusterId, Incarnation};
use usher_shared::link::{EndedBy, HEARS_BROKER_PATH, HearsBroker, Peer};

use crate::ask::send;
use crate::floor::{Floor, jitter};
use crate::outbox::Goodbye;
use usher_node_core::lapse::{ANSWER_WITHIN_MS, CLOSES_PER_S, Hears, Step};
use usher_node_core::mandate::Link;
use usher_shared::lease::FENCING_MS;

/// How often the lease is looked at: a fifth of what fencing may take.
const LOOK_EVERY: Duration = Duration::from_millis(100);
/// How long a fenced connection may take to end by itself: half of what fencing may take.
const CLOSE_WITHIN: Duration = Duration::from_millis(FENCING_MS / 2);
/// A peer's answer is a few bytes.
const MAX_ANSWER_BYTES: usize = 1_024;
/// A client that is closed one by one comes back within this time: the pace was the node's.
const RETRY_MS: u64 = 1_000;

/// Looks at the lease for as long as the node lives.
pub(crate) async fn watch(floor: Arc<Floor>) {
    let mut every = interval(LOOK_EVERY);
    every.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut lapsed = Fold::default();
    loop {
        every.tick().await;
        let step = {
            let mut state = floor.state.lock();
            if state.mandate.link() == Link::Up
                && let Some(said) = lapsed.over(Instant::now())
            {
                let lasted_s = said.lasted.as_secs();
                tracing::info!(lasted_s, peers_asked = said.times, "the broker is heard again");
            }
            let connections = state.connections;
            let step = state.mandate.step(connections, boottime());
            floor
                .figures
                .cut_off
                .set(u8::from(state.mandate.lapse().is_cut_off()));
            step
        };
        match step {
            Step::Nothing => {}
            Step::AskPeers => {
                let (hears, peers) = ask_peers(&floor).await;
                if let Some(said) = lapsed.happened(hears, Instant::now()) {
                    tell(hears, peers, said);
                }
                floor
                    .state
                    .lock()
                    .mandate
                    .lapse()
                    .peers_answered(hears, boottime());
            }
            Step::Close(many) => close(&floor, many, RETRY_MS, "cut_off"),
            Step::CloseAll => {
                let connections = fence(&floor).await;
                floor.state.lock().mandate.lapse().closed();
                tracing::error!(
                    connections,
                    "the lease is over: every connection was closed, as this pool fences"
                );
            }
        }
        // After the closing: what was owed is done.
        floor.fence_by(&floor.state.lock());
    }
}

/// Closes everything, and drops what has not ended soon after: a client that does not answer a Close
/// would keep its socket for seconds. Returns how many there were.
async fn fence(floor: &Floor) -> usize {
    let members = floor.everybody();
    let spread_ms = RETRY_MS + members.len() as u64 * 1_000 / CLOSES_PER_S;
    for member in &members {
        let goodbye = Goodbye::retry(CloseCode::Restart, "fenced", jitter(spread_ms));
        member.close_at_once(goodbye, floor.clock.now(), EndedBy::Deadline);
    }
    sleep(CLOSE_WITHIN).await;
    for member in &members {
        member.kill();
    }
    members.len()
}

fn close(floor: &Floor, many: u32, retry_ms: u64, why: &'static str) {
    let open = floor.everybody().into_iter().filter(|member| member.is_open());
    for member in open.take(usize::try_from(many).unwrap_or(usize::MAX)) {
        let goodbye = Goodbye::retry(CloseCode::Restart, why, jitter(retry_ms));
        member.close(goodbye, floor.clock.now(), EndedBy::Deadline);
    }
}

fn tell(hears: Hears, peers: usize, said: Said) {
    let for_s = said.lasted.as_secs();
    match hears {
        Hears::Yes => tracing::warn!(
            peers,
            for_s,
            "the lease is over and a peer hears the broker: this node may be cut off"
        ),
        Hears::No => tracing::info!(
            peers,
            for_s,
            "the lease is over and no peer hears the broker: connections are kept"
        ),
    }
}

/// Whether any of the peers of the last welcome hears a broker of this node's cluster, and how many they are.
async fn ask_peers(floor: &Floor) -> (Hears, usize) {
    let (peers, cluster) = {
        let state = floor.state.lock();
        (state.mandate.peers().to_vec(), state.mandate.cluster())
    };
    let Some(cluster) = cluster else {
        return (Hears::No, peers.len());
    };
    let asked = peers
        .iter()
        .map(|peer| ask(peer, cluster, floor.config.incarnation));
    let mut answers: FuturesUnordered<_> = asked.collect();
    let any = async {
        while let Some(hears) = answers.next().await {
            if hears {
                return Hears::Yes;
            }
        }
        Hears::No
    };
    let hears = timeout(Duration::from_millis(ANSWER_WITHIN_MS), any)
        .await
        .unwrap_or(Hears::No);
    (hears, peers.len())
}

async fn ask(peer: &Peer, cluster: ClusterId, own: Incarnation) -> bool {
    let request = Request::get(format!("{HEARS_BROKER_PATH}?cluster={cluster}"))
        .header(HOST, &peer.probe)
        .body(Full::new(Bytes::new()));
    let Ok(request) = request else { return false };
    let answer = send(&peer.probe, request, async |answer| {
        if answer.status() != StatusCode::OK {
            return None;
        }
        let body = Limited::new(answer.into_body(), MAX_ANSWER_BYTES)
            .collect()
            .await
            .ok()?;
        serde_json::from_slice::<HearsBroker>(&body.to_bytes()).ok()
    });
    match answer.await {
        Ok(Some(answer)) => answer.hears && is_peer(&answer, peer, own),
        _ => false,
    }
}

/// Whether it is the peer that answered: its address may lead elsewhere from here, also back to this node.
/// One that does not say who it is runs an earlier version.
fn is_peer(answer: &HearsBroker, peer: &Peer, own: Incarnation) -> bool {
    let named = answer.node.as_ref().is_none_or(|node| *node == peer.node);
    let other = answer.incarnation.is_none_or(|incarnation| incarnation != own);
    if !(named && other) {
        tracing::warn!(
            peer = %peer.node,
            address = peer.probe,
            "another node answers at this peer's address, and does not count: give the peer --probe-listen or --probe"
        );
    }
    named && other
}
