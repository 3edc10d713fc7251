//! The addresses of the brokers.

use std::str::FromStr;

/// A broker's node-link listener: `ws://host:port`, without a path.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BrokerAddress(String);

/// Why a text is not a broker's address.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{given:?} is not a broker's node-link address: write it as ws://host:port, without a path")]
pub struct BrokerAddressError {
    given: String,
}

impl BrokerAddress {
    /// `host:port`.
    #[must_use]
    pub fn authority(&self) -> &str {
        &self.0
    }
}

impl FromStr for BrokerAddress {
    type Err = BrokerAddressError;

    fn from_str(text: &str) -> Result<Self, BrokerAddressError> {
        let authority = text.strip_prefix("ws://").map(|rest| rest.trim_end_matches('/'));
        let parsed = authority.and_then(|authority| authority.parse::<http::uri::Authority>().ok());
        match parsed {
            Some(parsed) if parsed.port_u16().is_some() && !parsed.as_str().contains('@') => {
                Ok(Self(parsed.as_str().to_owned()))
            }
            _ => Err(BrokerAddressError {
                given: text.chars().take(256).collect(),
            }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_host_and_port_are_an_address() {
        for good in [
            "ws://127.0.0.1:7402",
            "ws://broker-1.internal:7402/",
            "ws://[::1]:7402",
        ] {
            assert!(good.parse::<BrokerAddress>().is_ok(), "{good}");
        }
        for bad in [
            "",
            "127.0.0.1:7402",
            "wss://h:1",
            "ws://h",
            "ws://h:1/path",
            "ws://u@h:1",
            "ws://h:99999",
        ] {
            assert!(bad.parse::<BrokerAddress>().is_err(), "{bad}");
        }
    }
}
