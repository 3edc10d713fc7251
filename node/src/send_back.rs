//! Sends a client back to the broker.

use http::header::{ACCEPT, ACCEPT_ENCODING, CACHE_CONTROL, LOCATION, USER_AGENT};
use http::{HeaderMap, HeaderValue, StatusCode};
use http_body_util::Full;
use usher_listen::answer::{Answer, problem};
use usher_shared::id::{ConnectionId, TeamId};
use usher_shared::rest::Problem;
use usher_shared::way::{
    Asker, LocationForm, Security, Wants, Way, parameter, split_scheme, without_parameters,
};

use usher_node_core::admission::Refusal;

/// Parameters of a node's URL that end here. `usher=1` is the client's wish and goes with it.
const OURS: [&str; 3] = ["ticket", "from", "location"];

/// Where a client is sent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Target {
    security: Security,
    /// From `//` on.
    rest: String,
}

impl Target {
    /// The broker's `/connect/{team}` with the old ticket, by which the broker sees where the client
    /// was, with the connection that it `opened` if it did, and with the parameters that are not ours.
    /// `None` when the broker's URL is not known.
    pub(crate) fn connect(
        public_url: &str,
        team: &TeamId,
        query: &str,
        opened: Option<ConnectionId>,
    ) -> Option<Self> {
        let (security, base) = split_scheme(public_url)?;
        let mut rest = format!("{base}/connect/{team}");
        let ticket = parameter(query, "ticket").filter(|ticket| is_ticket_like(ticket));
        let ticket = ticket.map(|ticket| format!("ticket={ticket}"));
        let theirs = without_parameters(query, &OURS);
        let theirs = (!theirs.is_empty()).then_some(theirs);
        let location = parameter(query, "location")
            .filter(|form| LocationForm::from_query(form).is_some())
            .map(|form| format!("location={form}"));
        let from = opened.map(|connection| format!("from={connection}"));
        let parts: Vec<String> = [ticket, from, location, theirs].into_iter().flatten().collect();
        if !parts.is_empty() {
            rest.push('?');
            rest.push_str(&parts.join("&"));
        }
        Some(Self { security, rest })
    }

    /// The URL in the form that is asked for.
    pub(crate) fn url(&self, form: LocationForm) -> String {
        form.write(self.security, &self.rest)
    }

    /// The `Location` for a client that came here `by` this security.
    pub(crate) fn location(&self, form: LocationForm, by: Security) -> String {
        self.url(form.between(by, self.security))
    }
}

fn is_ticket_like(text: &str) -> bool {
    let digit = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.');
    text.len() <= usher_shared::ticket::MAX_BYTES && text.bytes().all(digit)
}

/// The way that the sender of these headers can go.
pub(crate) fn way(headers: &HeaderMap, wants: Wants, query: &str) -> Way {
    let accept: Vec<&str> = headers
        .get_all(ACCEPT)
        .iter()
        .filter_map(|line| line.to_str().ok())
        .collect();
    let accept = accept.join(",");
    let text = |name: &str| headers.get(name).and_then(|value| value.to_str().ok());
    let asker = Asker {
        accept: Some(&accept),
        accept_encoding: text(ACCEPT_ENCODING.as_str()),
        user_agent: text(USER_AGENT.as_str()),
        fetch_mode: text("sec-fetch-mode"),
        wants,
        location: parameter(query, "location"),
    };
    asker.way()
}

/// A redirect, never cached and never told to other sites.
pub(crate) fn redirect(status: StatusCode, location: &str) -> Answer {
    let mut answer = Answer::new(Full::default());
    let Ok(location) = HeaderValue::from_str(location) else {
        return problem(&Problem::new(400, "bad_query", "the query cannot be sent on"));
    };
    *answer.status_mut() = status;
    let headers = answer.headers_mut();
    headers.insert(LOCATION, location);
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    headers.insert("referrer-policy", HeaderValue::from_static("no-referrer"));
    answer
}

/// The problem for a page's fetch, which cannot follow to a WebSocket.
pub(crate) fn stale(refusal: Refusal, connect: &str) -> Answer {
    let detail = format!("the ticket opens nothing here; ask {connect} for another");
    let mut problem_of = Problem::new(409, "stale_ticket", detail);
    problem_of.title = format!("stale ticket: {}", refusal.code().replace('_', " "));
    problem(&problem_of)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn url(query: &str, form: LocationForm) -> String {
        let target = Target::connect("https://broker.example.com", &"T1".parse().unwrap(), query, None);
        target.unwrap().url(form)
    }

    #[test]
    fn the_old_ticket_and_foreign_parameters_go_back_with_the_client() {
        assert_eq!(
            url("a=1&ticket=x.y-z_&from=9&usher=1", LocationForm::Ws),
            "wss://broker.example.com/connect/T1?ticket=x.y-z_&a=1&usher=1"
        );
        assert_eq!(url("", LocationForm::Net), "//broker.example.com/connect/T1");
        assert_eq!(
            url("ticket=%0d%0a&location=http", LocationForm::Http),
            "https://broker.example.com/connect/T1?location=http"
        );
    }

    #[test]
    fn a_location_without_scheme_is_absolute_where_broker_and_node_differ_in_tls() {
        let team = "T1".parse().unwrap();
        let target = Target::connect("https://broker.example.com", &team, "", None).unwrap();
        let location = |by| target.location(LocationForm::Net, by);
        assert_eq!(location(Security::Tls), "//broker.example.com/connect/T1");
        assert_eq!(location(Security::Plain), "https://broker.example.com/connect/T1");
    }

    #[test]
    fn without_a_usable_broker_url_there_is_nowhere_to_go() {
        assert_eq!(Target::connect("", &"T1".parse().unwrap(), "", None), None);
    }

    #[test]
    fn the_broker_is_told_which_connection_the_old_ticket_opened() {
        let (team, opened) = ("T1".parse().unwrap(), "00000000000000ab".parse().ok());
        let query = "ticket=x&from=00000000000000cd&a=1";
        let target = Target::connect("http://broker", &team, query, opened).unwrap();
        assert_eq!(
            target.url(LocationForm::Ws),
            "ws://broker/connect/T1?ticket=x&from=00000000000000ab&a=1"
        );
    }
}
