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
    /// The origins in `given`, all of them with `*`, and pages on loopback when `loopback`.
    ///
    /// # Errors
    /// The first one that no browser and no web view would send, with what to do.
    pub fn new(given: &[String], loopback: bool) -> Result<Self, OriginError> {
        let mut listed = Vec::with_capacity(given.len());
        for origin in given.iter().filter(|origin| *origin != "*") {
            listed.push(as_sent(origin).map_err(|remedy| OriginError {
                given: origin.clone(),
                remedy,
            })?);
        }
        Ok(Self {
            any: given.iter().any(|origin| origin == "*"),
            listed,
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
        let near = || self.loopback && host_of(origin).is_some_and(is_loopback);
        self.listed.iter().any(|listed| listed == origin) || near()
    }
}

/// An origin that is in no request.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{given}`: {remedy}")]
pub struct OriginError {
    given: String,
    remedy: &'static str,
}

const AS_SENT: &str = "write it as browsers send it: scheme and host in lower case and perhaps a port, as in https://app.example.com, without a path";
const NO_NULL: &str = "pages of anybody send that (sandboxed frames, files, data: URLs), so it names nobody; serve the page from a host, or admit all with *";
const NO_PAGE: &str =
    "no page has an origin of that scheme; name the page's own, as in https://app.example.com";

/// The origin as a browser or a web view sends it, which leaves the scheme's own port out (RFC 6454
/// section 6.2).
fn as_sent(origin: &str) -> Result<String, &'static str> {
    if origin == "null" {
        return Err(NO_NULL);
    }
    let (scheme, authority) = origin.split_once("://").ok_or(AS_SENT)?;
    match scheme {
        "http" | "https" => {
            let host = host_of(origin).ok_or(AS_SENT)?;
            let port = authority[host.len()..].strip_prefix(':');
            // Digits that are a port: looked at before.
            let port: Option<u16> = port.and_then(|port| port.parse().ok());
            let own = if scheme == "http" { 80 } else { 443 };
            Ok(match port.filter(|port| *port != own) {
                Some(port) => format!("{scheme}://{host}:{port}"),
                None => format!("{scheme}://{host}"),
            })
        }
        "file" | "data" | "blob" | "about" | "javascript" => Err(NO_NULL),
        "ws" | "wss" | "ftp" => Err(NO_PAGE),
        // An app in a web view, or an extension, whose host is written as the app has it.
        _ => {
            let host = host_without_port(authority).ok_or(AS_SENT)?;
            let plain = |byte: u8| byte.is_ascii_alphanumeric() || b".-_".contains(&byte);
            let named = !host.is_empty() && host.bytes().all(plain);
            if is_scheme(scheme) && named {
                Ok(origin.to_owned())
            } else {
                Err(AS_SENT)
            }
        }
    }
}

/// RFC 3986 section 3.1, in lower case as every engine writes it.
fn is_scheme(text: &str) -> bool {
    let inner = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || b"+-.".contains(&byte);
    text.starts_with(|first: char| first.is_ascii_lowercase()) && text.bytes().all(inner)
}

/// The host of an origin of the web as a browser writes it: scheme and host in lower case, no path.
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
    fn an_origin_that_no_page_sends_is_refused_in_the_configuration_with_what_to_do() {
        for (bad, remedy) in [
            ("app.example.com", AS_SENT),
            ("https://app.example.com/", AS_SENT),
            ("https://App.example.com", AS_SENT),
            ("https://app.example.com:", AS_SENT),
            ("https://app.example.com:65536", AS_SENT),
            ("https://", AS_SENT),
            ("capacitor://", AS_SENT),
            ("capacitor://localhost/", AS_SENT),
            ("Capacitor://localhost", AS_SENT),
            ("://localhost", AS_SENT),
            ("ws://h", NO_PAGE),
            ("null", NO_NULL),
            ("file://", NO_NULL),
        ] {
            let error = Origins::new(&[bad.to_owned()], false).unwrap_err();
            assert_eq!((error.given.as_str(), error.remedy), (bad, remedy));
        }
        assert!(Origins::new(&["*".to_owned()], false).is_ok());
    }

    #[test]
    fn apps_in_a_web_view_and_extensions_are_admitted_by_name() {
        let apps = [
            "capacitor://localhost",
            "ionic://localhost",
            "tauri://localhost",
            "chrome-extension://abcdefghijklmnopabcdefghijklmnop",
            "moz-extension://0f8fad5b-d9cb-469f-a165-70867728950e",
            "safari-web-extension://0F8FAD5B-D9CB-469F-A165-70867728950E",
        ];
        for app in apps {
            let origins = Origins::new(&[app.to_owned()], false).unwrap();
            assert_eq!(origins.standing(&headers(&[app])), Standing::Admitted, "{app}");
            let none = Origins::new(&[], true).unwrap();
            assert_eq!(none.standing(&headers(&[app])), Standing::Foreign, "{app}");
        }
        let one = Origins::new(&["capacitor://localhost".to_owned()], false).unwrap();
        for foreign in [
            "capacitor://localhost.evil.tld",
            "https://localhost",
            "ionic://localhost",
        ] {
            assert_eq!(one.standing(&headers(&[foreign])), Standing::Foreign, "{foreign}");
        }
    }

    #[test]
    fn the_schemes_own_port_is_left_out_as_browsers_do() {
        for (given, sent) in [
            ("https://app.example.com:443", "https://app.example.com"),
            ("http://app.example.com:80", "http://app.example.com"),
            ("https://app.example.com:80", "https://app.example.com:80"),
            ("http://[fd00::1]:80", "http://[fd00::1]"),
            ("https://app.example.com:08443", "https://app.example.com:8443"),
        ] {
            let origins = Origins::new(&[given.to_owned()], false).unwrap();
            assert_eq!(origins.standing(&headers(&[sent])), Standing::Admitted, "{given}");
        }
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
