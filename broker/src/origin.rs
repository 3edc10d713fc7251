//! Whose pages may talk to a listener.
//!
//! Browsers send `Origin` with every WebSocket and every fetch to another origin, and no page can
//! change it. Other clients may send anything, so an origin is a reason to refuse, never one to admit.

use http::HeaderMap;
use http::header::{HOST, ORIGIN};
use std::net::IpAddr;

/// Whose pages may fetch from a listener. Compared whole and exactly, after parsing.
#[derive(Clone, Debug, Default)]
pub struct Origins {
    any: bool,
    listed: Vec<String>,
    loopback: bool,
}

/// What an `Origin` header is to a listener.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Standing {
    /// There is none: no page, or a page of the same origin.
    Absent,
    /// Its pages may.
    Admitted,
    /// Its pages may not.
    Foreign,
}

impl Origins {
    /// The origins in `listed`, all of them with `*`, and pages on loopback when `loopback`.
    ///
    /// # Errors
    /// The first one that no browser would send.
    pub fn new(listed: &[String], loopback: bool) -> Result<Self, String> {
        let wrong = |origin: &&String| *origin != "*" && host_of(origin).is_none();
        if let Some(origin) = listed.iter().find(wrong) {
            return Err(origin.clone());
        }
        Ok(Self {
            any: listed.iter().any(|origin| origin == "*"),
            listed: listed.to_vec(),
            loopback,
        })
    }

    /// What the request's `Origin` is to this list.
    #[must_use]
    pub fn standing(&self, headers: &HeaderMap) -> Standing {
        let mut origins = headers.get_all(ORIGIN).iter();
        let Some(origin) = origins.next() else {
            return Standing::Absent;
        };
        let single = origins.next().is_none();
        let admitted = origin.to_str().is_ok_and(|origin| self.admits(origin));
        if self.any || (single && admitted) {
            Standing::Admitted
        } else {
            Standing::Foreign
        }
    }

    fn admits(&self, origin: &str) -> bool {
        let Some(host) = host_of(origin) else {
            return false;
        };
        (self.loopback && is_loopback(host)) || self.listed.iter().any(|listed| listed == origin)
    }
}

/// The host of an origin as a browser writes it: scheme and host in lower case, no path.
fn host_of(origin: &str) -> Option<&str> {
    let rest = origin
        .strip_prefix("http://")
        .or_else(|| origin.strip_prefix("https://"))?;
    let host = host_without_port(rest)?;
    let plain = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || b".-_".contains(&byte);
    let named = !host.is_empty() && !host.ends_with('.') && host.bytes().all(plain);
    (named || host.starts_with('[')).then_some(host)
}

fn host_without_port(authority: &str) -> Option<&str> {
    let end = if authority.starts_with('[') {
        authority.find(']')? + 1
    } else {
        authority.find(':').unwrap_or(authority.len())
    };
    let (host, port) = authority.split_at(end);
    let port_ok = port.is_empty()
        || port
            .strip_prefix(':')
            .is_some_and(|port| port.parse::<u16>().is_ok());
    port_ok.then_some(host)
}

fn address_of(host: &str) -> Option<IpAddr> {
    let bare = host.strip_prefix('[').and_then(|host| host.strip_suffix(']'));
    bare.unwrap_or(host).parse().ok()
}

fn is_loopback(host: &str) -> bool {
    host == "localhost"
        || host.ends_with(".localhost")
        || address_of(host).is_some_and(|address| address.is_loopback())
}

/// Whether `Host` is a name that somebody else may have pointed at this machine (DNS rebinding). A
/// page of such a name counts as same-origin and sends no `Origin`.
#[must_use]
pub fn may_be_rebound(headers: &HeaderMap) -> bool {
    let host = headers
        .get(HOST)
        .map(|host| host.to_str().ok().and_then(host_without_port));
    match host {
        None => false,
        Some(None) => true,
        Some(Some(host)) => {
            let host = host.to_ascii_lowercase();
            !is_loopback(&host) && address_of(&host).is_none()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use http::HeaderValue;

    fn headers(origins: &[&str]) -> HeaderMap {
        let mut headers = HeaderMap::new();
        for origin in origins {
            headers.append(ORIGIN, HeaderValue::from_str(origin).unwrap());
        }
        headers
    }

    #[test]
    fn only_the_exact_origin_is_admitted() {
        let origins = Origins::new(&["https://app.example.com".to_owned()], false).unwrap();
        let standing = |origin: &str| origins.standing(&headers(&[origin]));
        assert_eq!(standing("https://app.example.com"), Standing::Admitted);
        for foreign in [
            "https://evil.tld",
            "null",
            "https://app.example.com.evil.tld",
            "http://app.example.com",
            "https://app.example.com:444",
            "https://app.example.com.",
            "https://APP.example.com",
            "https://xn--pp-example.com",
            "https://app.example.com/",
            "http://localhost",
            "",
        ] {
            assert_eq!(standing(foreign), Standing::Foreign, "{foreign}");
        }
        let twice = headers(&["https://app.example.com", "https://app.example.com"]);
        assert_eq!(origins.standing(&twice), Standing::Foreign);
        assert_eq!(origins.standing(&HeaderMap::new()), Standing::Absent);
    }

    #[test]
    fn pages_on_loopback_are_admitted_on_loopback() {
        let origins = Origins::new(&[], true).unwrap();
        for near in [
            "http://localhost",
            "http://localhost:3000",
            "https://127.0.0.1:8443",
            "http://[::1]:80",
            "http://app.localhost",
        ] {
            assert_eq!(origins.standing(&headers(&[near])), Standing::Admitted, "{near}");
        }
        for far in [
            "http://localhost.evil.tld",
            "http://127.0.0.1.evil.tld",
            "http://10.0.0.1",
            "null",
            "http://localhost@evil.tld",
            "http://2130706433",
        ] {
            assert_eq!(origins.standing(&headers(&[far])), Standing::Foreign, "{far}");
        }
    }

    #[test]
    fn an_origin_that_no_browser_sends_is_refused_in_the_configuration() {
        for bad in [
            "app.example.com",
            "https://app.example.com/",
            "https://",
            "ws://h",
        ] {
            assert_eq!(Origins::new(&[bad.to_owned()], false).err().as_deref(), Some(bad));
        }
        assert!(Origins::new(&["*".to_owned()], false).is_ok());
    }

    #[test]
    fn a_host_by_name_may_be_rebound_and_an_address_may_not() {
        let with_host = |host: &str| {
            let mut headers = HeaderMap::new();
            headers.insert(HOST, HeaderValue::from_str(host).unwrap());
            headers
        };
        for safe in ["127.0.0.1:7401", "localhost:7401", "[::1]", "10.1.2.3"] {
            assert!(!may_be_rebound(&with_host(safe)), "{safe}");
        }
        for unsafe_host in ["evil.tld", "evil.tld:7401", "a b", "localhost.evil.tld"] {
            assert!(may_be_rebound(&with_host(unsafe_host)), "{unsafe_host}");
        }
    }
}
