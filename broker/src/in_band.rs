//! Sockets that are accepted only to say where to go, because their client can be told no other way.

use futures_util::{SinkExt as _, StreamExt as _};
use http::header::{
    CONNECTION, SEC_WEBSOCKET_ACCEPT, SEC_WEBSOCKET_KEY, SEC_WEBSOCKET_PROTOCOL, SEC_WEBSOCKET_VERSION,
    UPGRADE,
};
use http::request::Parts;
use http::{HeaderMap, HeaderValue, Method, StatusCode, Version};
use hyper::upgrade::OnUpgrade;
use std::sync::Arc;
use std::time::Duration;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::handshake::derive_accept_key;
use tokio_tungstenite::tungstenite::protocol::frame::coding::CloseCode as WireCode;
use tokio_tungstenite::tungstenite::protocol::{CloseFrame, Role, WebSocketConfig};
use tokio_util::sync::CancellationToken;
use usher_listen::accept::PeerAddress;
use usher_listen::answer::{self, Answer};
use usher_listen::frames::FrameLimits;
use usher_listen::gate::Gate;
use usher_listen::places::{Place, Places};
use usher_listen::wire::upgraded;
use usher_shared::frame::SUBPROTOCOL;
use usher_shared::rest::Problem;

use crate::random;
use crate::redirect::{Farewell, asks_for_websocket};

/// How long the client may take to answer the close (RFC 6455 section 7.1.1 lets the server end
/// the TCP connection then).
const CLOSE_PATIENCE: Duration = Duration::from_secs(5);
/// Sockets at once, each with a descriptor for a few seconds at most. Beyond that the oldest goes for
/// a new one, first of the address that has the most.
const AT_ONCE: usize = 1_024;
/// What such a client may send while it is told; anything more ends the socket.
const MAX_INCOMING: usize = 16 * 1_024;

/// Room for such sockets.
#[derive(Clone, Debug)]
pub(crate) struct InBand {
    places: Arc<Places>,
}

impl InBand {
    pub(crate) fn new() -> Self {
        Self {
            places: Places::new("in_band", AT_ONCE),
        }
    }

    /// Accepts the upgrade, and says `farewell` once it is done.
    pub(crate) fn accept(&self, head: &Parts, upgrade: Option<OnUpgrade>, farewell: Farewell) -> Answer {
        let (accepted, upgrade) = match (accept_upgrade(head), upgrade) {
            (Handshake::Accepted(accepted), Some(upgrade)) => (accepted, upgrade),
            (Handshake::Refused(refused), _) => return refused,
            (Handshake::Accepted(_), None) => return answer::problem(&bad_upgrade()),
        };
        let cut = CancellationToken::new();
        let place = head
            .extensions
            .get::<PeerAddress>()
            .and_then(|PeerAddress(peer)| self.places.take(peer.ip(), &cut));
        let Some(place) = place else {
            let busy = Problem::new(503, "busy", "too many sockets are being sent on; come back later");
            return answer::problem(&busy.retry_after(random::jittered(1_000)));
        };
        tokio::spawn(say(upgrade, farewell, place, cut));
        accepted
    }
}

fn bad_upgrade() -> Problem {
    Problem::new(
        400,
        "bad_upgrade",
        "a WebSocket handshake is a GET with Connection: Upgrade, Upgrade: websocket, Sec-WebSocket-Version: 13 and a Sec-WebSocket-Key of 16 bytes in base64",
    )
}

/// The 101 to a handshake (RFC 6455 section 4.2.2), or the problem with it.
pub(crate) enum Handshake {
    /// Answer this and take over the socket.
    Accepted(Answer),
    /// Answer this.
    Refused(Answer),
}

pub(crate) fn accept_upgrade(head: &Parts) -> Handshake {
    let (method, headers) = (&head.method, &head.headers);
    let version = headers.get(SEC_WEBSOCKET_VERSION).map(HeaderValue::as_bytes);
    let asked = asks_for_websocket(headers) && head.version == Version::HTTP_11;
    if !asked || version != Some(b"13") {
        let mut refused = answer::problem(&Problem {
            status: 426,
            ..bad_upgrade()
        });
        // RFC 9110 sections 15.5.22 and 7.8 want the first two, RFC 6455 section 4.4 the third.
        let headers = refused.headers_mut();
        headers.insert(UPGRADE, HeaderValue::from_static("websocket"));
        headers.insert(CONNECTION, HeaderValue::from_static("upgrade"));
        headers.insert(SEC_WEBSOCKET_VERSION, HeaderValue::from_static("13"));
        return Handshake::Refused(refused);
    }
    let key = headers.get(SEC_WEBSOCKET_KEY).map(HeaderValue::as_bytes);
    // 16 bytes are 22 digits and two signs of padding.
    let sound = |key: &&[u8]| {
        let digit = |byte: &u8| byte.is_ascii_alphanumeric() || matches!(byte, b'+' | b'/');
        key.len() == 24 && key.ends_with(b"==") && key[..22].iter().all(digit)
    };
    let Some(key) = key.filter(sound).filter(|_| *method == Method::GET) else {
        return Handshake::Refused(answer::problem(&bad_upgrade()));
    };
    let mut accepted = answer::text(StatusCode::SWITCHING_PROTOCOLS, "");
    let ours = accepted.headers_mut();
    ours.clear();
    ours.insert(UPGRADE, HeaderValue::from_static("websocket"));
    ours.insert(CONNECTION, HeaderValue::from_static("Upgrade"));
    if let Ok(accept) = HeaderValue::try_from(derive_accept_key(key)) {
        ours.insert(SEC_WEBSOCKET_ACCEPT, accept);
    }
    if let Some(protocol) = chosen_protocol(headers) {
        ours.insert(SEC_WEBSOCKET_PROTOCOL, protocol);
    }
    Handshake::Accepted(accepted)
}

/// Ours if offered, else the first: a browser fails a connection whose offer was not taken up.
fn chosen_protocol(headers: &HeaderMap) -> Option<HeaderValue> {
    let offers = headers
        .get_all(SEC_WEBSOCKET_PROTOCOL)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','))
        .map(str::trim)
        .filter(|offer| !offer.is_empty());
    let mut first = None;
    for offer in offers {
        if offer == SUBPROTOCOL {
            return Some(HeaderValue::from_static(SUBPROTOCOL));
        }
        first = first.or(Some(offer));
    }
    first.and_then(|offer| HeaderValue::from_str(offer).ok())
}

async fn say(upgrade: OnUpgrade, farewell: Farewell, place: Place, cut: CancellationToken) {
    let spoken = tokio::time::timeout(CLOSE_PATIENCE, async {
        let Some((stream, early)) = upgraded(upgrade).await else {
            return;
        };
        let config = WebSocketConfig::default()
            .read_buffer_size(1_024)
            .write_buffer_size(0)
            .max_write_buffer_size(64 * 1_024)
            .max_message_size(Some(MAX_INCOMING))
            .max_frame_size(Some(MAX_INCOMING));
        let socket = Gate::new(stream, early, FrameLimits::of_messages(MAX_INCOMING));
        let mut socket = WebSocketStream::from_raw_socket(socket, Role::Server, Some(config)).await;
        if let Some(frame) = farewell.frame
            && socket.send(Message::text(frame)).await.is_err()
        {
            return;
        }
        let close = CloseFrame {
            code: WireCode::from(farewell.code.number()),
            reason: farewell.reason.into(),
        };
        if socket.send(Message::Close(Some(close))).await.is_err() {
            return;
        }
        // Read until the client's echo. Nothing is sent in answer to it: a second close frame turns
        // the code that the page sees into 1006 in Chromium.
        let mut incoming = 0;
        while let Some(Ok(message)) = socket.next().await {
            incoming += message.len();
            if incoming > MAX_INCOMING {
                return;
            }
        }
    });
    tokio::select! {
        _ = spoken => {}
        () = cut.cancelled() => {}
    }
    drop(place);
}
