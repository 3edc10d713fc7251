//! The server's half of the WebSocket handshake (RFC 6455 section 4.2).
//!
//! Done by hand over hyper: clients that followed a redirect come with a Host that is not ours and
//! with the key they showed the broker, and both must be accepted.

use http::header::{
    CONNECTION, SEC_WEBSOCKET_ACCEPT, SEC_WEBSOCKET_KEY, SEC_WEBSOCKET_PROTOCOL, SEC_WEBSOCKET_VERSION,
    UPGRADE,
};
use http::{HeaderMap, HeaderValue, Method, StatusCode, Version};
use http_body_util::Full;
use tokio::net::TcpStream;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::handshake::derive_accept_key;
use tokio_tungstenite::tungstenite::protocol::{Role, WebSocketConfig};
use usher_listen::answer::Answer;
use usher_listen::frames::FrameLimits;
use usher_listen::gate::Gate;
use usher_listen::wire::upgraded;
use usher_shared::frame::SUBPROTOCOL;
use usher_shared::way::Wants;

use crate::outbox::Speaks;

/// An upgrade that can be accepted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Offer {
    accept: String,
    /// What the client's subprotocol offer is answered with.
    protocol: Option<HeaderValue>,
}

/// Why a request is no handshake.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum NoOffer {
    /// It does not ask for a WebSocket.
    NotAsked,
    /// Another version than 13.
    Version,
    /// No key of 16 bytes in base64.
    Key,
}

/// What a request asks for.
pub(crate) fn wants(headers: &HeaderMap) -> Wants {
    let websocket = lists(headers, UPGRADE, "websocket") && lists(headers, CONNECTION, "upgrade");
    if websocket {
        Wants::WebSocket
    } else {
        Wants::Document
    }
}

/// Reads a handshake.
pub(crate) fn offer(method: &Method, version: Version, headers: &HeaderMap) -> Result<Offer, NoOffer> {
    if wants(headers) == Wants::Document || method != Method::GET || version != Version::HTTP_11 {
        return Err(NoOffer::NotAsked);
    }
    if headers
        .get(SEC_WEBSOCKET_VERSION)
        .is_none_or(|version| version.as_bytes() != b"13")
    {
        return Err(NoOffer::Version);
    }
    let key = headers.get(SEC_WEBSOCKET_KEY).map(HeaderValue::as_bytes);
    let key = key.filter(|key| is_key(key)).ok_or(NoOffer::Key)?;
    Ok(Offer {
        accept: derive_accept_key(key),
        protocol: chosen_protocol(headers),
    })
}

/// 16 bytes in base64 are 22 digits and `==`.
fn is_key(key: &[u8]) -> bool {
    let digit = |byte: &u8| byte.is_ascii_alphanumeric() || matches!(byte, b'+' | b'/');
    key.len() == 24 && key.ends_with(b"==") && key.iter().take(22).all(digit)
}

/// `usher.v1` if offered, else the first offered: browsers fail when they offered some and none came back.
fn chosen_protocol(headers: &HeaderMap) -> Option<HeaderValue> {
    let offered = || {
        headers
            .get_all(SEC_WEBSOCKET_PROTOCOL)
            .iter()
            .filter_map(|line| line.to_str().ok())
            .flat_map(|line| line.split(','))
            .map(str::trim)
            .filter(|protocol| !protocol.is_empty())
    };
    let chosen = offered()
        .find(|protocol| *protocol == SUBPROTOCOL)
        .or_else(|| offered().next())?;
    HeaderValue::from_str(chosen).ok()
}

impl Offer {
    /// What the client understands: `usher_parameter` is the query's `usher`.
    pub(crate) fn speaks(&self, usher_parameter: Option<&str>) -> Speaks {
        let by_protocol = self
            .protocol
            .as_ref()
            .is_some_and(|protocol| protocol == SUBPROTOCOL);
        if by_protocol || usher_parameter == Some("1") {
            Speaks::Usher
        } else {
            Speaks::Plain
        }
    }

    /// The 101. Extensions are never accepted: permessage-deflate would open the way to CRIME-like attacks.
    pub(crate) fn answer(self) -> Answer {
        let mut answer = Answer::new(Full::default());
        *answer.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
        let headers = answer.headers_mut();
        headers.insert(UPGRADE, HeaderValue::from_static("websocket"));
        headers.insert(CONNECTION, HeaderValue::from_static("Upgrade"));
        if let Ok(accept) = HeaderValue::from_str(&self.accept) {
            headers.insert(SEC_WEBSOCKET_ACCEPT, accept);
        }
        if let Some(protocol) = self.protocol {
            headers.insert(SEC_WEBSOCKET_PROTOCOL, protocol);
        }
        answer
    }
}

/// Whether a header, over all its lines, lists a token.
fn lists(headers: &HeaderMap, name: http::HeaderName, token: &str) -> bool {
    headers
        .get_all(name)
        .iter()
        .filter_map(|line| line.to_str().ok())
        .flat_map(|line| line.split(','))
        .any(|part| part.trim().eq_ignore_ascii_case(token))
}

/// A client's WebSocket.
pub(crate) type Socket = WebSocketStream<Gate<TcpStream>>;

/// The WebSocket that an accepted upgrade becomes, on the bare TCP stream: hyper's wrapper around
/// it would cost each idle connection its buffers.
pub(crate) async fn websocket(
    upgrade: hyper::upgrade::OnUpgrade,
    config: WebSocketConfig,
    limits: FrameLimits,
) -> Option<Socket> {
    let (stream, early) = upgraded(upgrade).await?;
    let gate = Gate::new(stream, early, limits);
    Some(WebSocketStream::from_raw_socket(gate, Role::Server, Some(config)).await)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(lines: &[(&'static str, &'static str)]) -> HeaderMap {
        let mut headers = HeaderMap::new();
        for (name, value) in lines {
            headers.append(*name, HeaderValue::from_static(value));
        }
        headers
    }

    fn read(lines: &[(&'static str, &'static str)]) -> Result<Offer, NoOffer> {
        offer(&Method::GET, Version::HTTP_11, &headers(lines))
    }

    const GOOD: [(&str, &str); 4] = [
        ("connection", "keep-alive, Upgrade"),
        ("upgrade", "WebSocket"),
        ("sec-websocket-version", "13"),
        ("sec-websocket-key", "dGhlIHNhbXBsZSBub25jZQ=="),
    ];

    #[test]
    fn the_handshake_of_the_standard_is_accepted() {
        let offer = read(&GOOD).unwrap();
        assert_eq!(offer.accept, "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=");
        assert_eq!(offer.speaks(None), Speaks::Plain);
        assert_eq!(offer.speaks(Some("1")), Speaks::Usher);
    }

    #[test]
    fn what_is_not_a_handshake_is_told_apart() {
        assert_eq!(read(&[]), Err(NoOffer::NotAsked));
        assert_eq!(read(&GOOD[1..]), Err(NoOffer::NotAsked));
        let old = [GOOD[0], GOOD[1], ("sec-websocket-version", "12"), GOOD[3]];
        assert_eq!(read(&old), Err(NoOffer::Version));
        for key in ["", "dG9vIHNob3J0", "dGhlIHNhbXBsZSBub25jZ!=="] {
            let lines = [GOOD[0], GOOD[1], GOOD[2], ("sec-websocket-key", key)];
            assert_eq!(read(&lines), Err(NoOffer::Key), "{key}");
        }
        let post = offer(&Method::POST, Version::HTTP_11, &headers(&GOOD));
        assert_eq!(post, Err(NoOffer::NotAsked));
    }

    #[test]
    fn our_subprotocol_is_preferred_and_else_the_first_is_echoed() {
        let chosen = |lines: &[(&'static str, &'static str)]| chosen_protocol(&headers(lines));
        let name = "sec-websocket-protocol";
        assert_eq!(chosen(&[(name, "chat, usher.v1")]).unwrap(), "usher.v1");
        assert_eq!(chosen(&[(name, "chat"), (name, "soap")]).unwrap(), "chat");
        assert_eq!(chosen(&[(name, " , ")]), None);
        assert_eq!(chosen(&[]), None);
    }
}
