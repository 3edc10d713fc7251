//! What a client may see of Usher on its WebSocket: control frames and close codes.
//!
//! Control frames are text frames that start with the exact bytes `{"usher":`. Only clients that
//! asked for [`SUBPROTOCOL`] get them (except [`Control::Redirect`], for clients that cannot follow
//! an HTTP redirect), and no node relays an application frame that starts so.

use serde::{Deserialize, Serialize};

use crate::id::{ConnectionId, NodeId, TeamId};
use crate::quantity::Epoch;

/// The optional subprotocol.
pub const SUBPROTOCOL: &str = "usher.v1";
/// The exact start of every control frame.
pub const CONTROL_PREFIX: &str = "{\"usher\":";
/// The longest control frame of a client.
const MAX_SAID_BYTES: usize = 128;
/// RFC 6455 section 5.5: a control frame carries 125 bytes, 2 of them the close code.
pub const MAX_REASON_BYTES: usize = 123;

/// Why a connection was closed. One rule for clients: whatever is not [`CloseCode::is_final`] means
/// come back through the broker, a code that nobody here knows and a loss without a Close included.
///
/// All are private codes (RFC 6455 section 7.4.2). 1012 and 1013 would say the same, but came after
/// the RFC: many libraries take them for an error, report 1002 or 1006, and some lose the reason.
/// Never 1000 from us: some clients then never return.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u16)]
pub enum CloseCode {
    /// Go to the URL in the frame before this, or in the reason.
    Redirect = 4302,
    /// The client read too slowly, or did not finish a message: come back through the broker.
    TooSlow = 4308,
    /// The team is elsewhere: come back through the broker.
    Elsewhere = 4309,
    /// The client sent too much in a short time: come back through the broker, and send less.
    TooFast = 4310,
    /// Moved, or the node restarts: come back through the broker.
    Restart = 4312,
    /// Full just now: come back through the broker, later.
    TryAgain = 4313,
    /// Not a request that will ever work. Final.
    BadRequest = 4400,
    /// Not allowed. Final.
    Forbidden = 4403,
    /// A message over the bound. Final.
    TooLarge = 4413,
}

impl CloseCode {
    /// Every code, for metrics and documentation.
    pub const ALL: [Self; 9] = [
        Self::Redirect,
        Self::TooSlow,
        Self::Elsewhere,
        Self::TooFast,
        Self::Restart,
        Self::TryAgain,
        Self::BadRequest,
        Self::Forbidden,
        Self::TooLarge,
    ];

    /// The number on the wire.
    #[must_use]
    pub const fn number(self) -> u16 {
        self as u16
    }

    /// Whether coming back would be in vain. Every other code, of anybody, means come back.
    #[must_use]
    pub const fn is_final(self) -> bool {
        matches!(self, Self::BadRequest | Self::Forbidden | Self::TooLarge)
    }
}

/// The close reason: JSON of at most [`MAX_REASON_BYTES`].
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct CloseReason {
    /// Wait this long, then come back.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub retry_ms: Option<u64>,
    /// Why, in one word.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub code: Option<String>,
    /// Where to, when it fits.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub url: Option<String>,
}

impl CloseReason {
    /// A reason that names a code and when to come back.
    #[must_use]
    pub fn retry(code: &str, retry_ms: u64) -> Self {
        Self {
            retry_ms: Some(retry_ms),
            code: Some(code.to_owned()),
            url: None,
        }
    }

    /// The text for the wire; parts that do not fit are left out, the URL first.
    #[must_use]
    pub fn to_text(&self) -> String {
        let whole = serde_json::to_string(self).unwrap_or_default();
        if whole.len() <= MAX_REASON_BYTES {
            return whole;
        }
        let short = Self {
            url: None,
            ..self.clone()
        };
        let short = serde_json::to_string(&short).unwrap_or_default();
        if short.len() <= MAX_REASON_BYTES {
            short
        } else {
            "{}".to_owned()
        }
    }
}

/// A control frame from node (or broker) to client; [`Said`] is the other way.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "usher", rename_all = "snake_case")]
pub enum Control {
    /// The first frame on a connection that speaks `usher.v1`.
    Welcome {
        /// The team.
        team: TeamId,
        /// Its epoch.
        epoch: Epoch,
        /// The node.
        node: NodeId,
        /// This connection's id: a client that moves shows it as `from`.
        connection: ConnectionId,
        /// A ticket for coming back to this node while the broker is away.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        resume: Option<String>,
        /// How often the node pings an idle connection, in seconds.
        ping_s: u32,
    },
    /// Open a new connection at `url` after `after_ms`; close this one once the new one is welcome.
    Move {
        /// The broker's `/connect/{team}`, with `from` set.
        url: String,
        /// The slot, in milliseconds from now.
        after_ms: u64,
        /// When the node closes what is left, in milliseconds from now.
        by_ms: u64,
        /// Why: `drain`, `shed`, `rebalance`.
        reason: String,
    },
    /// Something was refused; the connection stays.
    Error {
        /// Stable, for programs.
        code: String,
        /// For people.
        detail: String,
    },
    /// The answer to [`Said::Ping`].
    Pong {
        /// What the ping had.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        id: Option<u64>,
    },
    /// Sent once, before Close 4302, to a client that cannot follow a redirect.
    Redirect {
        /// Where the team is.
        url: String,
    },
}

/// A control frame from client to node.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "usher", rename_all = "snake_case")]
pub enum Said {
    /// Are you there? For pages, which neither see the pings of RFC 6455 nor can send any.
    Ping {
        /// Comes back in the answer.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        id: Option<u64>,
    },
}

impl Said {
    /// What a client says, if it is known; a later version may say more.
    #[must_use]
    pub fn from_text(text: &str) -> Option<Self> {
        let short = text.len() <= MAX_SAID_BYTES && pretends_control(text);
        short.then(|| serde_json::from_str(text).ok()).flatten()
    }
}

impl Control {
    /// The text of the frame. It starts with [`CONTROL_PREFIX`].
    #[must_use]
    pub fn to_text(&self) -> String {
        serde_json::to_string(self).unwrap_or_default()
    }
}

/// Whether an application frame pretends to be control.
#[must_use]
pub fn pretends_control(text: &str) -> bool {
    text.starts_with(CONTROL_PREFIX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_control_frame_starts_with_the_prefix() {
        let frames = [
            Control::Redirect {
                url: "ws://h/teams/T".to_owned(),
            },
            Control::Error {
                code: "x".to_owned(),
                detail: "y".to_owned(),
            },
            Control::Move {
                url: "u".to_owned(),
                after_ms: 1,
                by_ms: 2,
                reason: "drain".to_owned(),
            },
        ];
        for frame in frames {
            assert!(pretends_control(&frame.to_text()), "{}", frame.to_text());
        }
        assert!(!pretends_control("{ \"usher\":"));
    }

    #[test]
    fn only_private_codes_are_sent_because_every_library_hands_those_on() {
        for code in CloseCode::ALL {
            assert!((4_000..5_000).contains(&code.number()), "{code:?}");
            assert_eq!(code.is_final(), code.number() >= 4_400, "{code:?}");
        }
    }

    #[test]
    fn a_client_may_ask_whether_its_node_is_there() {
        let said = Said::from_text(r#"{"usher":"ping","id":7,"more":true}"#);
        assert_eq!(said, Some(Said::Ping { id: Some(7) }));
        assert_eq!(
            Said::from_text(r#"{"usher":"ping"}"#),
            Some(Said::Ping { id: None })
        );
        assert_eq!(
            Control::Pong { id: Some(7) }.to_text(),
            r#"{"usher":"pong","id":7}"#
        );
        let long = format!(r#"{{"usher":"ping","more":"{}"}}"#, "x".repeat(MAX_SAID_BYTES));
        for other in [
            r#"{"usher":"pong"}"#,
            r#"{"usher":"ping","id":-1}"#,
            r#"{ "usher":"ping"}"#,
            &long,
        ] {
            assert_eq!(Said::from_text(other), None, "{other}");
        }
    }

    #[test]
    fn a_reason_never_outgrows_a_control_frame() {
        let reason = CloseReason {
            retry_ms: Some(5),
            code: None,
            url: Some("w".repeat(200)),
        };
        assert_eq!(reason.to_text(), r#"{"retry_ms":5}"#);
        let endless = CloseReason {
            retry_ms: None,
            code: Some("c".repeat(200)),
            url: None,
        };
        assert_eq!(endless.to_text(), "{}");
    }
}
