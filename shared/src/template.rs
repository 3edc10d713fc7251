//! A node's public URL, which may be one name for a whole pool: `wss://chat.example.com/n/{node}/teams/{team}`.

use serde::{Deserialize, Serialize};
use std::fmt;
use std::str::FromStr;

use crate::id::{NodeId, TeamId};
use crate::way::Security;

/// Why a text cannot be a node's public URL.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TemplateError {
    /// Not ws:// or wss:// in lower case: no other form is followed by every client.
    #[error("a node URL starts with ws:// or wss://, in lower case")]
    Scheme,
    /// No host, or something in it that is neither host nor port.
    #[error("a node URL names a host and, if needed, a port, and no user")]
    Host,
    /// `{team}` must be in the path.
    #[error("a node URL holds {{team}} in its path, as in ws://host:port/teams/{{team}}")]
    Team,
    /// A character that does not belong in a URL, or a brace that is not `{team}` or `{node}`.
    #[error(
        "a node URL is at most 512 visible ASCII characters, has no `?`, `#` or `\\`, and no braces but {{team}} and {{node}}"
    )]
    Text,
}

/// A checked public URL with `{team}` and perhaps `{node}` in its path.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct NodeUrl {
    text: String,
    host_end: usize,
}

impl NodeUrl {
    /// `ws` or `wss`.
    #[must_use]
    pub fn scheme(&self) -> &str {
        self.text.split_once(':').map_or("ws", |(scheme, _)| scheme)
    }

    /// Whether the node is reached over TLS.
    #[must_use]
    pub fn security(&self) -> Security {
        if self.scheme() == "wss" {
            Security::Tls
        } else {
            Security::Plain
        }
    }

    /// The URL without its scheme, from `//` on, for `team` on `node`.
    #[must_use]
    pub fn authority_and_path(&self, node: &NodeId, team: &TeamId) -> String {
        // Neither id can hold a character that a path would need escaped.
        let from = self.scheme().len() + 1;
        self.text[from..]
            .replace("{node}", node.as_str())
            .replace("{team}", team.as_str())
    }

    /// The template with `{node}` filled in and `{team}` left open, for people.
    #[must_use]
    pub fn for_node(&self, node: &NodeId) -> String {
        self.text.replace("{node}", node.as_str())
    }

    /// Host and port as written.
    #[must_use]
    pub fn authority(&self) -> &str {
        &self.text[self.scheme().len() + 3..self.host_end]
    }
}

impl FromStr for NodeUrl {
    type Err = TemplateError;

    fn from_str(text: &str) -> Result<Self, TemplateError> {
        let rest = text.strip_prefix("ws://").or_else(|| text.strip_prefix("wss://"));
        let rest = rest.ok_or(TemplateError::Scheme)?;
        let visible = text.len() <= 512 && text.bytes().all(|byte| byte.is_ascii_graphic());
        let bare = text.replace("{node}", "").replace("{team}", "");
        if !visible || bare.contains(['{', '}', '?', '#', '\\', '"', '<', '>', '`', '|', '^']) {
            return Err(TemplateError::Text);
        }
        let (authority, path) = rest.split_once('/').ok_or(TemplateError::Team)?;
        if !path.contains("{team}") || authority.contains("{team}") {
            return Err(TemplateError::Team);
        }
        let authority_parsed = authority
            .replace("{node}", "n")
            .parse::<http_authority::Authority>();
        if authority_parsed.is_err() {
            return Err(TemplateError::Host);
        }
        Ok(Self {
            text: text.to_owned(),
            host_end: text.len() - path.len() - 1,
        })
    }
}

impl fmt::Display for NodeUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl Serialize for NodeUrl {
    fn serialize<S: serde::Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        to.serialize_str(&self.text)
    }
}

impl<'de> Deserialize<'de> for NodeUrl {
    fn deserialize<D: serde::Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        let text = std::borrow::Cow::<'de, str>::deserialize(from)?;
        text.parse().map_err(serde::de::Error::custom)
    }
}

mod http_authority {
    /// `host` or `host:port` or `[v6]:port`, no userinfo.
    pub(super) struct Authority;

    impl std::str::FromStr for Authority {
        type Err = ();

        fn from_str(text: &str) -> Result<Self, ()> {
            let (host, port) = if let Some(rest) = text.strip_prefix('[') {
                let (host, rest) = rest.split_once(']').ok_or(())?;
                host.parse::<std::net::Ipv6Addr>().map_err(|_| ())?;
                ("v6", rest.strip_prefix(':').or(rest.is_empty().then_some("80")))
            } else {
                match text.split_once(':') {
                    Some((host, port)) => (host, Some(port)),
                    None => (text, Some("80")),
                }
            };
            let port = port.ok_or(())?.parse::<u16>().map_err(|_| ())?;
            let host_ok = !host.is_empty()
                && host
                    .bytes()
                    .all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'-' | b'_'));
            if host_ok && port != 0 { Ok(Self) } else { Err(()) }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_template_is_filled_from_ids() {
        let url: NodeUrl = "wss://chat.example.com/n/{node}/teams/{team}".parse().unwrap();
        let (node, team) = ("node-1".parse().unwrap(), "T1".parse().unwrap());
        assert_eq!(
            url.authority_and_path(&node, &team),
            "//chat.example.com/n/node-1/teams/T1"
        );
        assert_eq!((url.scheme(), url.authority()), ("wss", "chat.example.com"));
    }

    #[test]
    fn what_is_not_a_node_url_is_refused() {
        for (text, error) in [
            ("http://h/teams/{team}", TemplateError::Scheme),
            ("WS://h/teams/{team}", TemplateError::Scheme),
            ("javascript:{team}", TemplateError::Scheme),
            ("ws://h/teams", TemplateError::Team),
            ("ws://{team}.h/", TemplateError::Team),
            ("ws://user@h/teams/{team}", TemplateError::Host),
            ("ws://:80/teams/{team}", TemplateError::Host),
            ("ws://h:0/teams/{team}", TemplateError::Host),
            ("ws://h:99999/teams/{team}", TemplateError::Host),
            ("ws://[::1/teams/{team}", TemplateError::Host),
            ("ws://h/{other}/{team}", TemplateError::Text),
            ("ws://h/{team}?x=1", TemplateError::Text),
            ("ws://h/{team}\r\nX: y", TemplateError::Text),
        ] {
            assert_eq!(text.parse::<NodeUrl>().err(), Some(error), "{text}");
        }
        assert!("ws://[::1]:7410/teams/{team}".parse::<NodeUrl>().is_ok());
        assert!(
            "ws://{node}.pool.example:80/teams/{team}"
                .parse::<NodeUrl>()
                .is_ok()
        );
    }
}
