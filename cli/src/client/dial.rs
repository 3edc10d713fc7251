//! Opens one connection: asks the broker, dials the node, and waits for its welcome.

use futures_util::StreamExt as _;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_tungstenite::tungstenite::client::IntoClientRequest as _;
use tokio_tungstenite::tungstenite::error::ProtocolError;
use tokio_tungstenite::tungstenite::http::header::{
    HeaderValue, LOCATION, RETRY_AFTER, SEC_WEBSOCKET_PROTOCOL,
};
use tokio_tungstenite::tungstenite::http::{HeaderMap, HeaderName};
use tokio_tungstenite::tungstenite::protocol::WebSocketConfig;
use tokio_tungstenite::tungstenite::{Error, Message};
use tokio_tungstenite::{WebSocketStream, client_async_with_config};
use usher_shared::frame::{Control, SUBPROTOCOL, pretends_control};
use usher_shared::id::{ConnectionId, NodeId, TeamId};

use super::decide::Ending;
use super::resolve::{Brokers, Knock, NO_TLS, ticket};

/// Longer than a loaded node needs; a dial that hangs says that the node is gone.
const DIAL: Duration = Duration::from_secs(10);
/// The welcome is a node's first frame; it may have to wait a second for the broker's `assign`.
const WELCOME: Duration = Duration::from_secs(10);
/// tungstenite takes 128 KiB a socket by itself, which is 2.5 GB for 20,000 of them.
const READ_BUFFER: usize = 2_048;
/// The most that waits in one socket to be sent.
const WRITE_BUFFER_MAX: usize = 4 << 20;

/// A client's connection to a node.
pub(crate) type Socket = WebSocketStream<TcpStream>;

/// How the clients of a process connect.
#[derive(Debug)]
pub(crate) struct Options {
    pub(crate) brokers: Arc<Brokers>,
    pub(crate) speaks: Speaks,
    /// The largest message it takes.
    pub(crate) message_bytes: usize,
}

/// Whether a client asks for `usher.v1`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Speaks {
    /// It does: it is told when to move, and moves without a gap.
    UsherV1,
    /// It is any WebSocket client.
    Plain,
}

/// A connection in use.
pub(crate) struct Live {
    pub(crate) socket: Socket,
    pub(crate) url: String,
    pub(crate) node: Option<NodeId>,
    /// Its id, as the broker announced or the node said it.
    pub(crate) connection: Option<ConnectionId>,
    /// The node's own ticket, good there while it has lost its broker.
    pub(crate) resume: Option<String>,
    /// How often the node pings, when it said so.
    pub(crate) ping: Option<Duration>,
    /// What came in while the welcome was awaited, welcome included.
    pub(crate) early: Vec<Message>,
}

/// Why there is no connection, and the ticket that did not help.
pub(crate) struct Failed {
    pub(crate) ending: Ending,
    /// None when no node was dialled: it was the broker that did not answer, or refused.
    pub(crate) ticket: Option<String>,
}

/// Asks the broker and dials the node it names.
pub(crate) async fn open(options: Arc<Options>, team: TeamId, knock: Knock) -> Result<Live, Failed> {
    let place = options
        .brokers
        .resolve(&team, &knock)
        .await
        .map_err(|ending| Failed { ending, ticket: None })?;
    let url = place.url.clone();
    let failed = |ending| Failed {
        ending,
        ticket: ticket(&url),
    };
    let (socket, answer) = timeout(DIAL, dial(&place.url, &options))
        .await
        .map_err(|_| failed(Ending::Cut("node: time-out".to_owned())))?
        .map_err(&failed)?;
    let mut live = Live {
        socket,
        url: place.url,
        node: place.node,
        connection: place.connection,
        resume: None,
        ping: None,
        early: Vec::new(),
    };
    let usher = answer
        .get(SEC_WEBSOCKET_PROTOCOL)
        .is_some_and(|chosen| chosen.as_bytes() == SUBPROTOCOL.as_bytes());
    if usher {
        timeout(WELCOME, welcome(&mut live))
            .await
            .unwrap_or_else(|_| Err(Ending::Cut("node: no welcome in time".to_owned())))
            .map_err(&failed)?;
    }
    Ok(live)
}

async fn dial(url: &str, options: &Options) -> Result<(Socket, HeaderMap), Ending> {
    if url.starts_with("wss://") {
        return Err(Ending::Hopeless(NO_TLS.to_owned()));
    }
    let mut request = url
        .into_client_request()
        .map_err(|_| Ending::Hopeless("the broker named a URL that is none".to_owned()))?;
    if options.speaks == Speaks::UsherV1 {
        request
            .headers_mut()
            .insert(SEC_WEBSOCKET_PROTOCOL, HeaderValue::from_static(SUBPROTOCOL));
    }
    let host = request.uri().host().unwrap_or_default();
    let host = host.trim_start_matches('[').trim_end_matches(']').to_owned();
    let port = request.uri().port_u16().unwrap_or(80);
    let stream = usher_dial::dial((host, port))
        .await
        .map_err(|error| Ending::Cut(format!("node: {}", error.kind())))?;
    let _ = stream.set_nodelay(true);
    let config = WebSocketConfig::default()
        .read_buffer_size(READ_BUFFER)
        .write_buffer_size(0)
        .max_write_buffer_size(WRITE_BUFFER_MAX)
        .max_message_size(Some(options.message_bytes))
        .max_frame_size(Some(options.message_bytes));
    match client_async_with_config(request, stream, Some(config)).await {
        Ok((socket, answer)) => Ok((socket, answer.into_parts().0.headers)),
        Err(error) => Err(ending_of(&error)),
    }
}

/// Reads up to the welcome. Anything else a node sends first is kept for the application.
async fn welcome(live: &mut Live) -> Result<(), Ending> {
    loop {
        let message = match live.socket.next().await {
            Some(Ok(message)) => message,
            Some(Err(error)) => return Err(ending_of(&error)),
            None => return Err(Ending::Cut("node: connection ended".to_owned())),
        };
        let text = match &message {
            Message::Text(text) => text.as_str(),
            Message::Close(Some(frame)) => {
                return Err(Ending::Closed {
                    code: frame.code.into(),
                    reason: frame.reason.to_string(),
                });
            }
            Message::Close(None) => return Err(Ending::Cut("node: closed before its welcome".to_owned())),
            Message::Binary(_) => "",
            Message::Ping(_) | Message::Pong(_) | Message::Frame(_) => continue,
        };
        let control = pretends_control(text)
            .then(|| serde_json::from_str::<Control>(text).ok())
            .flatten();
        match control {
            Some(Control::Redirect { url }) => return Err(Ending::SentOn { url }),
            Some(Control::Welcome {
                node,
                connection,
                resume,
                ping_s,
                ..
            }) => {
                live.node = Some(node);
                live.connection = Some(connection);
                live.resume = resume;
                live.ping = Some(Duration::from_secs(u64::from(ping_s.max(1))));
                live.early.push(message);
                return Ok(());
            }
            _ => live.early.push(message),
        }
        // A node that sends this much before its welcome is none of ours: take it as it is.
        if live.early.len() >= 16 {
            return Ok(());
        }
    }
}

/// What an error of the WebSocket means, in words that many such errors share.
pub(crate) fn ending_of(error: &Error) -> Ending {
    let header = |answer: &HeaderMap, name: HeaderName| {
        answer
            .get(name)
            .and_then(|value| value.to_str().ok())
            .map(str::to_owned)
    };
    match error {
        Error::Http(answer) => {
            let status = answer.status();
            match header(answer.headers(), LOCATION) {
                Some(url) if status.is_redirection() => Ending::SentOn { url },
                _ => Ending::Answered {
                    status: status.as_u16(),
                    retry_ms: header(answer.headers(), RETRY_AFTER)
                        .and_then(|seconds| seconds.parse::<u64>().ok())
                        .map(|seconds| seconds.saturating_mul(1_000)),
                },
            }
        }
        Error::ConnectionClosed | Error::AlreadyClosed => Ending::Cut("connection ended".to_owned()),
        Error::Protocol(ProtocolError::ResetWithoutClosingHandshake) => {
            Ending::Cut("connection reset without a close".to_owned())
        }
        Error::Protocol(ProtocolError::SecWebSocketSubProtocolError(_)) => Ending::Hopeless(format!(
            "the node does not speak {SUBPROTOCOL}; try --usher-v1 off"
        )),
        Error::Io(error) => Ending::Cut(error.kind().to_string()),
        other => Ending::Cut(other.to_string()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio_tungstenite::tungstenite::http::Response;

    fn answered(status: u16, name: HeaderName, value: &str) -> Ending {
        let answer = Response::builder()
            .status(status)
            .header(name, value)
            .body(None)
            .unwrap();
        ending_of(&Error::Http(Box::new(answer)))
    }

    #[test]
    fn an_answer_in_http_is_a_redirect_or_a_refusal() {
        assert_eq!(
            answered(302, LOCATION, "ws://h/connect/T"),
            Ending::SentOn {
                url: "ws://h/connect/T".to_owned()
            }
        );
        assert_eq!(
            answered(503, RETRY_AFTER, "2"),
            Ending::Answered {
                status: 503,
                retry_ms: Some(2_000)
            }
        );
    }

    #[test]
    fn a_reset_is_a_cut() {
        let error = Error::Io(std::io::Error::from(std::io::ErrorKind::ConnectionReset));
        assert_eq!(ending_of(&error), Ending::Cut("connection reset".to_owned()));
    }
}
