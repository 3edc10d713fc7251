//! Names of things. Each is checked once, where it enters, and cheap to clone after that.

use serde::{Deserialize, Serialize};
use std::borrow::Borrow;
use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

/// Why a text is not a name.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum IdError {
    /// Nothing was given.
    #[error("a {what} must not be empty")]
    Empty {
        /// What was being named.
        what: &'static str,
    },
    /// Longer than the bound.
    #[error("a {what} is at most {max} bytes; this one has {length}")]
    TooLong {
        /// What was being named.
        what: &'static str,
        /// The bound in bytes.
        max: usize,
        /// What was given, in bytes.
        length: usize,
    },
    /// A character outside the pattern.
    #[error("a {what} must match {pattern}; byte {at} of this one does not")]
    Pattern {
        /// What was being named.
        what: &'static str,
        /// The pattern it must match.
        pattern: &'static str,
        /// The offset of the first byte that does not fit.
        at: usize,
    },
}

fn check(
    text: &str,
    what: &'static str,
    pattern: &'static str,
    max: usize,
    extra: &[u8],
) -> Result<(), IdError> {
    if text.is_empty() {
        return Err(IdError::Empty { what });
    }
    if text.len() > max {
        return Err(IdError::TooLong {
            what,
            max,
            length: text.len(),
        });
    }
    for (at, byte) in text.bytes().enumerate() {
        let head = byte.is_ascii_alphanumeric() || byte == b'_';
        if !head && (at == 0 || !extra.contains(&byte)) {
            return Err(IdError::Pattern { what, pattern, at });
        }
    }
    Ok(())
}

macro_rules! name {
    ($(#[$doc:meta])* $name:ident, $what:literal, $pattern:literal, $max:literal, $extra:literal) => {
        $(#[$doc])*
        #[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
        #[serde(transparent)]
        pub struct $name(Arc<str>);

        impl $name {
            /// The pattern that every such name matches.
            pub const PATTERN: &'static str = $pattern;

            /// The name as text.
            #[must_use]
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl FromStr for $name {
            type Err = IdError;

            fn from_str(text: &str) -> Result<Self, IdError> {
                check(text, $what, $pattern, $max, $extra)?;
                Ok(Self(text.into()))
            }
        }

        impl Borrow<str> for $name {
            fn borrow(&self) -> &str {
                &self.0
            }
        }

        impl AsRef<str> for $name {
            fn as_ref(&self) -> &str {
                &self.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.pad(&self.0)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Debug::fmt(&*self.0, f)
            }
        }

        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: serde::Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
                let text = std::borrow::Cow::<'de, str>::deserialize(from)?;
                text.parse().map_err(serde::de::Error::custom)
            }
        }
    };
}

name! {
    /// A team: the unit of placement. 1 to 128 bytes.
    TeamId, "team id", "^[A-Za-z0-9_][A-Za-z0-9._~:@-]{0,127}$", 128, b"._~:@-"
}
name! {
    /// A node's name, stable over its restarts. 1 to 63 bytes, fit for a host label and a metric label.
    NodeId, "node name", "^[A-Za-z0-9_][A-Za-z0-9._-]{0,62}$", 63, b"._-"
}
name! {
    /// An operation: a drain, a shed, a failover.
    OperationId, "operation id", "^[A-Za-z0-9_][A-Za-z0-9._-]{0,62}$", 63, b"._-"
}
name! {
    /// A region, a zone, a label's key or value: what narrows the choice of nodes.
    Label, "label", "^[A-Za-z0-9_][A-Za-z0-9._:/-]{0,62}$", 63, b"._:/-"
}

macro_rules! random_bits {
    ($(#[$doc:meta])* $name:ident, $what:literal) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
        pub struct $name(u128);

        impl $name {
            /// A value from 128 bits that the caller drew at random.
            #[must_use]
            pub const fn from_bits(bits: u128) -> Self {
                Self(bits)
            }

            /// The bits.
            #[must_use]
            pub const fn bits(self) -> u128 {
                self.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{:032x}", self.0)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Display::fmt(self, f)
            }
        }

        impl FromStr for $name {
            type Err = IdError;

            fn from_str(text: &str) -> Result<Self, IdError> {
                let well_formed = text.len() == 32
                    && text.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'));
                let bits = well_formed.then(|| u128::from_str_radix(text, 16).ok()).flatten();
                bits.map(Self).ok_or(IdError::Pattern { what: $what, pattern: "^[0-9a-f]{32}$", at: 0 })
            }
        }

        impl Serialize for $name {
            fn serialize<S: serde::Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
                to.collect_str(self)
            }
        }

        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: serde::Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
                let text = std::borrow::Cow::<'de, str>::deserialize(from)?;
                text.parse().map_err(serde::de::Error::custom)
            }
        }
    };
}

random_bits! {
    /// Drawn by a node at each start: the same name with another incarnation is another process.
    Incarnation, "incarnation"
}
random_bits! {
    /// Drawn once, when a store is made: nodes of one cluster never obey the broker of another.
    ClusterId, "cluster id"
}
random_bits! {
    /// Drawn by a broker at each start: two brokers that claim one term are told apart by it.
    BrokerId, "broker id"
}

/// One WebSocket: 16 hexadecimal digits. A node calls a connection after the `jti` of the ticket that
/// opened it, so that an old ticket tells which connection its bearer had.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ConnectionId(u64);

impl ConnectionId {
    /// For a connection whose ticket was used before: 24 bits of the incarnation, so that ids of
    /// different nodes do not meet, and 40 of a serial number.
    #[must_use]
    pub const fn new(incarnation: Incarnation, serial: u64) -> Self {
        let top = (incarnation.bits() >> 104) as u64;
        Self((top << 40) | (serial & ((1 << 40) - 1)))
    }
}

impl fmt::Display for ConnectionId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}", self.0)
    }
}

impl fmt::Debug for ConnectionId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for ConnectionId {
    type Err = IdError;

    fn from_str(text: &str) -> Result<Self, IdError> {
        let well_formed =
            text.len() == 16 && text.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'));
        let bits = well_formed.then(|| u64::from_str_radix(text, 16).ok()).flatten();
        bits.map(Self).ok_or(IdError::Pattern {
            what: "connection id",
            pattern: "^[0-9a-f]{16}$",
            at: 0,
        })
    }
}

impl Serialize for ConnectionId {
    fn serialize<S: serde::Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        to.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for ConnectionId {
    fn deserialize<D: serde::Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        let text = std::borrow::Cow::<'de, str>::deserialize(from)?;
        text.parse().map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn team_ids_outside_the_pattern_are_refused_with_the_place() {
        for bad in [
            ".",
            "..",
            "",
            "a/b",
            "a\0b",
            "\u{1f600}",
            "-a",
            "~a",
            "a b",
            "a%2f",
            "é",
        ] {
            assert!(bad.parse::<TeamId>().is_err(), "{bad:?}");
        }
        assert_eq!(
            "x".repeat(128).parse::<TeamId>().map(|team| team.as_str().len()),
            Ok(128)
        );
        assert!(matches!(
            "x".repeat(129).parse::<TeamId>(),
            Err(IdError::TooLong { length: 129, .. })
        ));
        assert!(matches!(
            "ab/c".parse::<TeamId>(),
            Err(IdError::Pattern { at: 2, .. })
        ));
    }

    #[test]
    fn team_ids_inside_the_pattern_pass() {
        for good in ["T0123ABC", "_", "a.b~c:d@e-f", "0"] {
            assert_eq!(good.parse::<TeamId>().unwrap().as_str(), good);
        }
    }

    #[test]
    fn random_ids_come_back_as_they_went() {
        let incarnation = Incarnation::from_bits(0x0123_4567_89ab_cdef_0123_4567_89ab_cdef);
        let text = serde_json::to_string(&incarnation).unwrap();
        assert_eq!(text, "\"0123456789abcdef0123456789abcdef\"");
        assert_eq!(serde_json::from_str::<Incarnation>(&text).unwrap(), incarnation);
        assert!("0123".parse::<Incarnation>().is_err());
        assert!("+123456789abcdef0123456789abcdef".parse::<Incarnation>().is_err());
    }

    #[test]
    fn connection_ids_of_two_incarnations_differ() {
        let one = ConnectionId::new(Incarnation::from_bits(1 << 104), 7);
        let two = ConnectionId::new(Incarnation::from_bits(2 << 104), 7);
        assert_ne!(one, two);
        assert_eq!(one.to_string().parse::<ConnectionId>(), Ok(one));
    }
}
