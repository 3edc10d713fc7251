//! How to send a client on to another URL.
//!
//! No form of `Location` works for every WebSocket client, and some clients follow none at all
//! (measured on about 30 clients; browsers by the WHATWG standard, which sets the redirect mode of
//! a handshake to `error`). Broker and node both send clients on, so the rule is here.

/// How a client is sent on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Way {
    /// A JSON body with the URL in it: a page's fetch, or an SDK.
    Json,
    /// A `Location` that the client's library follows.
    Redirect(LocationForm),
    /// The socket is accepted, the URL is in its first frame, and Close 4302 ends it.
    InBand,
}

/// How a `Location` is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum LocationForm {
    /// `ws://host/path` or `wss://host/path`: tungstenite, websocket-client, niquests.
    Ws,
    /// `http://host/path` or `https://host/path`.
    Http,
    /// `//host/path`, which keeps the client's own scheme: aiohttp, OkHttp, reqwest, Go's `net/http`, curl.
    Net,
}

/// What a request says about its client.
#[derive(Clone, Copy, Debug, Default)]
pub struct Asker<'a> {
    /// The `Accept` header; several lines are joined with commas.
    pub accept: Option<&'a str>,
    /// The `Accept-Encoding` header.
    pub accept_encoding: Option<&'a str>,
    /// The `User-Agent` header.
    pub user_agent: Option<&'a str>,
    /// The `Sec-Fetch-Mode` header.
    pub fetch_mode: Option<&'a str>,
    /// Whether it asks for a WebSocket.
    pub wants: Wants,
    /// The query's `location`, which overrides the rule.
    pub location: Option<&'a str>,
}

/// What a request asks for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Wants {
    /// A WebSocket: the request has `Upgrade: websocket`.
    WebSocket,
    /// A document: a plain GET.
    #[default]
    Document,
}

/// How libraries begin their `User-Agent` that dial by HTTP and send no `Accept: */*`.
const HTTP_AGENTS: [&str; 3] = ["okhttp/", "Mojolicious", "lua-http/"];

impl Asker<'_> {
    /// The way that this client can go. An explicit `location` is believed: whoever sets it knows
    /// that the client follows.
    #[must_use]
    pub fn way(&self) -> Way {
        if self.wants == Wants::Document && self.accepts("application/json") {
            return Way::Json;
        }
        if let Some(form) = self.location.and_then(LocationForm::from_query) {
            return Way::Redirect(form);
        }
        if self.wants == Wants::WebSocket && self.cannot_follow() {
            return Way::InBand;
        }
        if self.dials_by_http() {
            Way::Redirect(LocationForm::Net)
        } else {
            Way::Redirect(LocationForm::Ws)
        }
    }

    /// Whether the library hands `Location` to an HTTP client, which knows no scheme `ws`.
    fn dials_by_http(&self) -> bool {
        let agent = self.user_agent.unwrap_or_default();
        if agent.starts_with("niquests/") {
            return false;
        }
        // Go's `net/http` asks for compression; gorilla, which writes its request by hand and lets
        // its user read `Location`, does not.
        let go = agent.starts_with("Go-http-client/") && self.accept_encoding.is_some();
        go || HTTP_AGENTS.iter().any(|known| agent.starts_with(known)) || self.accepts("*/*")
    }

    /// Browsers say `Mozilla/`, Deno its name; Node's own WebSocket says `Sec-Fetch-Mode: websocket`.
    /// `Origin` is no sign: websocket-client sends it and follows.
    fn cannot_follow(&self) -> bool {
        self.user_agent
            .is_some_and(|agent| agent.contains("Mozilla/") || agent.starts_with("Deno/"))
            || self
                .fetch_mode
                .is_some_and(|mode| mode.trim().eq_ignore_ascii_case("websocket"))
    }

    fn accepts(&self, wanted: &str) -> bool {
        let ranges = self.accept.unwrap_or_default().split(',');
        ranges
            .filter_map(|range| range.split(';').next())
            .any(|range| range.trim().eq_ignore_ascii_case(wanted))
    }
}

impl LocationForm {
    /// The form that a `location` query parameter names: `ws`, `http` or `net`.
    #[must_use]
    pub fn from_query(value: &str) -> Option<Self> {
        match value {
            "ws" => Some(Self::Ws),
            "http" => Some(Self::Http),
            "net" => Some(Self::Net),
            _ => None,
        }
    }

    /// The form for a client that came `by` one security and is sent `to` another. `//host` would
    /// keep the scheme it came by, and show its ticket in the clear to a TLS port, or speak TLS to a
    /// port that has none. Whoever follows that form follows `http://` and `https://`, too.
    #[must_use]
    pub const fn between(self, by: Security, to: Security) -> Self {
        match (self, by, to) {
            (Self::Net, Security::Plain, Security::Tls) | (Self::Net, Security::Tls, Security::Plain) => {
                Self::Http
            }
            _ => self,
        }
    }

    /// The `Location` for `rest`, which starts with `//host`.
    #[must_use]
    pub fn write(self, security: Security, rest: &str) -> String {
        let scheme = match (self, security) {
            (Self::Ws, Security::Plain) => "ws:",
            (Self::Ws, Security::Tls) => "wss:",
            (Self::Http, Security::Plain) => "http:",
            (Self::Http, Security::Tls) => "https:",
            (Self::Net, _) => "",
        };
        format!("{scheme}{rest}")
    }
}

/// Whether a URL is reached over TLS.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Security {
    /// `ws`, `http`.
    #[default]
    Plain,
    /// `wss`, `https`.
    Tls,
}

/// Splits a URL into its security and the rest from `//` on; `None` when the scheme is none of
/// `http`, `https`, `ws` and `wss`.
#[must_use]
pub fn split_scheme(url: &str) -> Option<(Security, &str)> {
    let (scheme, rest) = url.split_once(':')?;
    let security = match scheme {
        "http" | "ws" => Security::Plain,
        "https" | "wss" => Security::Tls,
        _ => return None,
    };
    rest.starts_with("//").then_some((security, rest))
}

/// The first value of a query parameter, as written (nothing of ours needs decoding).
#[must_use]
pub fn parameter<'q>(query: &'q str, name: &str) -> Option<&'q str> {
    query.split('&').find_map(|pair| {
        let (key, value) = pair.split_once('=')?;
        (key == name).then_some(value)
    })
}

/// The query without the parameters in `ours` and without empty ones, as written, in order.
#[must_use]
pub fn without_parameters(query: &str, ours: &[&str]) -> String {
    let theirs = query.split('&').filter(|pair| {
        let key = pair.split('=').next().unwrap_or_default();
        !pair.is_empty() && !ours.contains(&key)
    });
    theirs.collect::<Vec<_>>().join("&")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn upgrade() -> Asker<'static> {
        Asker {
            wants: Wants::WebSocket,
            ..Asker::default()
        }
    }

    const FIREFOX: &str = "Mozilla/5.0 (X11; Linux x86_64; rv:153.0) Gecko/20100101 Firefox/153.0";

    #[test]
    fn a_plain_request_for_json_gets_json() {
        for accept in [
            "application/json",
            "Application/JSON;q=0.9",
            "application/json, text/plain, */*",
        ] {
            let asker = Asker {
                accept: Some(accept),
                user_agent: Some(FIREFOX),
                ..Asker::default()
            };
            assert_eq!(asker.way(), Way::Json, "{accept}");
        }
        let socket = Asker {
            accept: Some("application/json"),
            ..upgrade()
        };
        assert_eq!(socket.way(), Way::Redirect(LocationForm::Ws));
    }

    #[test]
    fn a_client_without_signs_gets_an_absolute_ws_location() {
        assert_eq!(upgrade().way(), Way::Redirect(LocationForm::Ws));
        let origin_senders = Asker {
            user_agent: Some("Python/3.12 websockets/16.1"),
            ..upgrade()
        };
        assert_eq!(origin_senders.way(), Way::Redirect(LocationForm::Ws));
    }

    #[test]
    fn aiohttp_reqwest_and_okhttp_get_a_location_without_scheme() {
        let aiohttp = Asker {
            accept: Some("*/*"),
            user_agent: Some("Python/3.12 aiohttp/3.12"),
            ..upgrade()
        };
        let okhttp = Asker {
            user_agent: Some("okhttp/5.1.0"),
            ..upgrade()
        };
        let curl = Asker {
            accept: Some("*/*"),
            user_agent: Some("curl/8.14"),
            ..Asker::default()
        };
        let go = Asker {
            user_agent: Some("Go-http-client/1.1"),
            accept_encoding: Some("gzip"),
            ..upgrade()
        };
        let mojo = Asker {
            user_agent: Some("Mojolicious (Perl)"),
            accept_encoding: Some("gzip"),
            ..upgrade()
        };
        let lua = Asker {
            user_agent: Some("lua-http/0.4"),
            ..upgrade()
        };
        for asker in [aiohttp, okhttp, curl, go, mojo, lua] {
            assert_eq!(asker.way(), Way::Redirect(LocationForm::Net), "{asker:?}");
        }
    }

    #[test]
    fn what_only_looks_like_a_library_that_dials_by_http_gets_an_absolute_ws_location() {
        let gorilla = Asker {
            user_agent: Some("Go-http-client/1.1"),
            ..upgrade()
        };
        let niquests = Asker {
            accept: Some("*/*"),
            user_agent: Some("niquests/3.21.2"),
            ..upgrade()
        };
        for asker in [gorilla, niquests] {
            assert_eq!(asker.way(), Way::Redirect(LocationForm::Ws), "{asker:?}");
        }
    }

    #[test]
    fn a_location_without_scheme_is_for_a_client_that_keeps_its_security() {
        use Security::{Plain, Tls};
        for (by, to, form) in [
            (Plain, Plain, LocationForm::Net),
            (Tls, Tls, LocationForm::Net),
            (Plain, Tls, LocationForm::Http),
            (Tls, Plain, LocationForm::Http),
        ] {
            assert_eq!(LocationForm::Net.between(by, to), form, "{by:?} {to:?}");
        }
        assert_eq!(LocationForm::Ws.between(Plain, Tls), LocationForm::Ws);
    }

    #[test]
    fn browsers_deno_and_nodes_own_websocket_are_told_in_band() {
        let browser = Asker {
            user_agent: Some(FIREFOX),
            ..upgrade()
        };
        let node = Asker {
            accept: Some("*/*"),
            user_agent: Some("node"),
            fetch_mode: Some("websocket"),
            ..upgrade()
        };
        let deno = Asker {
            user_agent: Some("Deno/2.9.6"),
            ..upgrade()
        };
        for asker in [browser, node, deno] {
            assert_eq!(asker.way(), Way::InBand, "{asker:?}");
        }
        let navigation = Asker {
            user_agent: Some(FIREFOX),
            accept: Some("text/html"),
            ..Asker::default()
        };
        assert_eq!(navigation.way(), Way::Redirect(LocationForm::Ws));
    }

    #[test]
    fn an_explicit_location_overrides_the_rule() {
        for (value, form) in [
            ("ws", LocationForm::Ws),
            ("http", LocationForm::Http),
            ("net", LocationForm::Net),
        ] {
            let asker = Asker {
                user_agent: Some(FIREFOX),
                location: Some(value),
                ..upgrade()
            };
            assert_eq!(asker.way(), Way::Redirect(form));
        }
        let nonsense = Asker {
            location: Some("evil"),
            ..upgrade()
        };
        assert_eq!(nonsense.way(), Way::Redirect(LocationForm::Ws));
    }

    #[test]
    fn a_location_is_written_in_its_form() {
        let (security, rest) = split_scheme("https://chat.example.com/x").unwrap();
        assert_eq!(LocationForm::Ws.write(security, rest), "wss://chat.example.com/x");
        assert_eq!(
            LocationForm::Http.write(security, rest),
            "https://chat.example.com/x"
        );
        assert_eq!(LocationForm::Net.write(security, rest), "//chat.example.com/x");
        assert_eq!(LocationForm::Ws.write(Security::Plain, "//h:1/x"), "ws://h:1/x");
        assert_eq!(split_scheme("javascript://x"), None);
        assert_eq!(split_scheme("http:x"), None);
    }

    #[test]
    fn foreign_parameters_are_kept_as_written() {
        let query = "a=1&ticket=x.y.z&b=%2f%2F&&from=0&c&location=ws";
        assert_eq!(parameter(query, "ticket"), Some("x.y.z"));
        assert_eq!(parameter(query, "c"), None);
        assert_eq!(
            without_parameters(query, &["ticket", "from", "location"]),
            "a=1&b=%2f%2F&c"
        );
        assert_eq!(without_parameters("", &[]), "");
    }
}
