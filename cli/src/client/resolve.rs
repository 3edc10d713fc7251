//! Asks a broker where a team is, the JSON way: one GET, and the answer holds the node's URL.

use reqwest::RequestBuilder;
use reqwest::header::{ACCEPT, LOCATION, RETRY_AFTER};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;
use tokio::sync::Semaphore;
use usher_shared::id::{ConnectionId, Label, NodeId, TeamId};
use usher_shared::rest::{ConnectView, Problem};
use usher_shared::secret::Token;
use usher_shared::way;

use super::decide::Ending;
use crate::api::innermost;
use crate::failure::Failure;
use crate::names;

/// A redirect is answered from memory; a broker that takes longer is in trouble.
const TIMEOUT: Duration = Duration::from_secs(10);

/// Requests of one process at once. When a node dies under 10,000 clients of `usher load`, each
/// would else need a descriptor for its request at the same moment, beside the one it comes for.
const ASKING_MAX: usize = 512;

/// The brokers a client may ask.
#[derive(Debug)]
pub(crate) struct Brokers {
    urls: Vec<String>,
    region: Option<Label>,
    token: Option<Token>,
    http: reqwest::Client,
    /// The broker that answered last; the others are asked when it does not.
    preferred: AtomicUsize,
    asking: Semaphore,
}

/// How a client asks.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Knock {
    /// Where it was told to ask, instead of at a broker of its own choice.
    pub(crate) url: Option<String>,
    /// The ticket it had last: it tells the broker where the client was, or could not get in.
    pub(crate) ticket: Option<String>,
    /// The connection it had last.
    pub(crate) from: Option<ConnectionId>,
}

/// Where to dial.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Place {
    /// The node, when the broker named it.
    pub(crate) node: Option<NodeId>,
    /// Its URL, ticket included.
    pub(crate) url: String,
    /// What the connection will be called, when the broker said so.
    pub(crate) connection: Option<ConnectionId>,
}

impl Brokers {
    pub(crate) fn new(urls: &[String], region: Option<Label>, token: Option<Token>) -> Result<Self, Failure> {
        let mut cleaned = Vec::new();
        for url in urls {
            let url = url.trim_end_matches('/');
            if url.starts_with("https://") || url.starts_with("wss://") {
                return Err(Failure::settings(anyhow::anyhow!("--broker {url}: {NO_TLS}")));
            }
            // A WebSocket's URL names the same listener.
            let authority = url.strip_prefix("http://").or_else(|| url.strip_prefix("ws://"));
            let Some(authority) = authority.filter(|authority| !authority.is_empty()) else {
                return Err(Failure::settings(anyhow::anyhow!(
                    "--broker {url} is not a broker's URL; it looks like http://127.0.0.1:7400"
                )));
            };
            cleaned.push(format!("http://{authority}"));
        }
        let http = names::client_for(cleaned.iter().map(String::as_str))
            .timeout(TIMEOUT)
            .redirect(reqwest::redirect::Policy::none())
            .no_proxy()
            .build()
            .map_err(Failure::new)?;
        Ok(Self {
            urls: cleaned,
            region,
            token,
            http,
            preferred: AtomicUsize::new(0),
            asking: Semaphore::new(ASKING_MAX),
        })
    }

    /// The first broker, for messages.
    pub(crate) fn first(&self) -> &str {
        self.urls.first().map_or("", String::as_str)
    }

    /// Where `team` is. A broker that cannot be reached is passed over; one that says no is believed.
    pub(crate) async fn resolve(&self, team: &TeamId, knock: &Knock) -> Result<Place, Ending> {
        if let Some(url) = &knock.url {
            return match target(url) {
                Target::Node => Ok(Place {
                    node: None,
                    url: url.clone(),
                    connection: None,
                }),
                // Whoever sent us on has put the ticket, and all else that it wants known, in the URL.
                Target::Broker(url) => self.ask(self.http.get(&url)).await,
                Target::Unknown => Err(Ending::Cut("sent on to something that is no URL".to_owned())),
            };
        }
        let start = self.preferred.load(Ordering::Relaxed);
        let mut last = Ending::Hopeless("no broker is known".to_owned());
        for at in (0..self.urls.len()).map(|step| (start + step) % self.urls.len()) {
            let base = &self.urls[at];
            match self.ask(self.request(base, team, knock)).await {
                Err(cut @ Ending::Cut(_)) => last = cut,
                other => {
                    self.preferred.store(at, Ordering::Relaxed);
                    return other;
                }
            }
        }
        Err(last)
    }

    fn request(&self, base: &str, team: &TeamId, knock: &Knock) -> RequestBuilder {
        let mut request = self.http.get(format!("{base}/connect/{team}"));
        if let Some(token) = &self.token {
            request = request.bearer_auth(token.expose());
        }
        if let Some(region) = &self.region {
            request = request.query(&[("region", region.as_str())]);
        }
        if let Some(ticket) = &knock.ticket {
            request = request.query(&[("ticket", ticket)]);
        }
        if let Some(from) = knock.from {
            request = request.query(&[("from", from.to_string())]);
        }
        request
    }

    async fn ask(&self, request: RequestBuilder) -> Result<Place, Ending> {
        let _turn = self.asking.acquire().await;
        let request = request.header(ACCEPT, "application/json");
        let answer = request.send().await.map_err(|error| {
            let what = if error.is_timeout() {
                "time-out".to_owned()
            } else {
                innermost(&error)
            };
            Ending::Cut(format!("broker: {what}"))
        })?;
        let status = answer.status();
        if status.is_success() {
            let view: ConnectView = answer
                .json()
                .await
                .map_err(|error| Ending::Cut(format!("broker's answer: {}", innermost(&error))))?;
            return Ok(Place {
                node: Some(view.node),
                url: view.url,
                connection: view.connection,
            });
        }
        let text = |name| answer.headers().get(name).and_then(|value| value.to_str().ok());
        if let (true, Some(url)) = (status.is_redirection(), text(LOCATION)) {
            return Err(Ending::SentOn { url: url.to_owned() });
        }
        let retry_ms = text(RETRY_AFTER).and_then(|seconds| seconds.parse::<u64>().ok());
        let retry_ms = retry_ms.map(|seconds| seconds.saturating_mul(1_000));
        match answer.json::<Problem>().await {
            Ok(problem) => Err(Ending::Refused(Problem {
                retry_ms: problem.retry_ms.or(retry_ms),
                ..problem
            })),
            Err(_) => Err(Ending::Answered {
                status: status.as_u16(),
                retry_ms,
            }),
        }
    }
}

/// What to say of `https` and `wss`.
pub(crate) const NO_TLS: &str =
    "this build of `usher` speaks plain http:// and ws://; go to the listener behind the TLS proxy";

#[derive(Debug, PartialEq)]
enum Target {
    /// The URL of a broker's `/connect/{team}`, as HTTP.
    Broker(String),
    Node,
    Unknown,
}

/// What a URL that a client was sent to is. Nodes send to the broker in the scheme that other
/// clients follow, which may be `ws`.
fn target(url: &str) -> Target {
    let Some((security, rest)) = way::split_scheme(url) else {
        return Target::Unknown;
    };
    let path = rest[2..].split_once('/').map_or("", |(_, path)| path);
    if path.starts_with("connect/") {
        return Target::Broker(way::LocationForm::Http.write(security, rest));
    }
    if url.starts_with("ws") {
        Target::Node
    } else {
        Target::Unknown
    }
}

/// The ticket in a node's URL.
pub(crate) fn ticket(url: &str) -> Option<String> {
    let (_, query) = url.split_once('?')?;
    way::parameter(query, "ticket").map(str::to_owned)
}

/// A node's URL with another ticket.
pub(crate) fn with_ticket(url: &str, ticket: &str) -> String {
    let (base, query) = url.split_once('?').unwrap_or((url, ""));
    let others = way::without_parameters(query, &["ticket"]);
    let more = if others.is_empty() { "" } else { "&" };
    format!("{base}?ticket={ticket}{more}{others}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_url_is_a_brokers_or_a_nodes() {
        assert_eq!(
            target("ws://h:1/connect/T?from=0"),
            Target::Broker("http://h:1/connect/T?from=0".to_owned())
        );
        assert_eq!(
            target("https://h/connect/T"),
            Target::Broker("https://h/connect/T".to_owned())
        );
        assert_eq!(target("ws://h:1/teams/connect/T"), Target::Node);
        assert_eq!(target("ftp://h/connect/T"), Target::Unknown);
        assert_eq!(target("http://h/teams/T"), Target::Unknown);
        assert_eq!(target("ws://h"), Target::Node);
    }

    #[test]
    fn the_ticket_is_taken_from_the_query() {
        assert_eq!(
            ticket("ws://h/teams/T?a=1&ticket=x.y.z"),
            Some("x.y.z".to_owned())
        );
        assert_eq!(ticket("ws://h/teams/T"), None);
    }

    #[test]
    fn a_ticket_is_replaced_and_the_rest_stays() {
        assert_eq!(
            with_ticket("ws://h/teams/T?ticket=x.y.z&usher=1", "r"),
            "ws://h/teams/T?ticket=r&usher=1"
        );
        assert_eq!(with_ticket("ws://h/teams/T", "r"), "ws://h/teams/T?ticket=r");
    }

    #[test]
    fn a_broker_url_is_checked() {
        for good in ["http://h:1/", "ws://h:1"] {
            let brokers = Brokers::new(&[good.to_owned()], None, None).unwrap();
            assert_eq!(brokers.first(), "http://h:1");
        }
        for bad in ["https://h", "wss://h", "h:1", "http://"] {
            assert!(Brokers::new(&[bad.to_owned()], None, None).is_err(), "{bad}");
        }
    }
}
