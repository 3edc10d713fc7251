//! What a client does after a connection ended or could not be made. Pure: no clock, no dice.

use std::time::Duration;
use usher_shared::frame::{CloseCode, CloseReason};
use usher_shared::rest::Problem;

/// The first wait is up to this long, so that the clients of a dead node do not come back as one.
const FIRST_MS: u64 = 250;
/// No wait is longer, unless the server asked for it.
const LONGEST_MS: u64 = 10_000;
/// No server may park a client for longer.
const SERVER_LONGEST_MS: u64 = 300_000;
/// A connection that lived this long counts as good: after it the waits start anew.
pub(crate) const GOOD_AFTER: Duration = Duration::from_secs(5);
/// How often a client is sent on in a row before it waits: the broker cuts chains at 3 as well.
const SENT_ON_MAX: u32 = 3;

/// How a connection ended, or why there is none.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Ending {
    /// The other side closed it.
    Closed { code: u16, reason: String },
    /// It broke, or nobody answered.
    Cut(String),
    /// The broker said no.
    Refused(Problem),
    /// Something answered in HTTP that is not a WebSocket and not a problem.
    Answered { status: u16, retry_ms: Option<u64> },
    /// An HTTP redirect, or its frame.
    SentOn { url: String },
    /// Nothing that trying again would mend, such as a URL that this client cannot speak.
    Hopeless(String),
}

/// What to do next.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Next {
    /// Go to this URL at once.
    Follow { url: String },
    /// Come back through the broker, not sooner than this.
    ComeBack { not_before: Option<Duration> },
    /// Give up: it would never work.
    End,
}

/// What to do after `ending`.
pub(crate) fn after(ending: &Ending) -> Next {
    match ending {
        Ending::Closed { code, reason } => after_close(*code, reason),
        Ending::Cut(_) => Next::ComeBack { not_before: None },
        Ending::Refused(problem) => match problem.status {
            400..500 if !may_pass(problem.status) => Next::End,
            _ => come_back(problem.retry_ms),
        },
        Ending::Answered { status, retry_ms } => match status {
            // A node answers 4xx to a ticket that no longer fits; another ticket may fit.
            400 | 403 | 413 => Next::End,
            _ => come_back(*retry_ms),
        },
        Ending::SentOn { url } => Next::Follow { url: url.clone() },
        Ending::Hopeless(_) => Next::End,
    }
}

/// Client errors that may pass by themselves: RFC 9110 section 15.5.9, RFC 8470, RFC 6585.
const fn may_pass(status: u16) -> bool {
    matches!(status, 408 | 425 | 429)
}

fn after_close(code: u16, reason: &str) -> Next {
    let reason: CloseReason = serde_json::from_str(reason).unwrap_or_default();
    let ours = CloseCode::ALL.into_iter().find(|known| known.number() == code);
    match ours {
        Some(CloseCode::Redirect) => match reason.url {
            Some(url) => Next::Follow { url },
            None => come_back(reason.retry_ms),
        },
        Some(known) if known.is_final() => Next::End,
        // Whatever is not named final means come back: proxies and libraries put codes of their own
        // in place of those they do not know, 1002 and 1009 included.
        _ => come_back(reason.retry_ms),
    }
}

fn come_back(retry_ms: Option<u64>) -> Next {
    Next::ComeBack {
        not_before: retry_ms.map(|retry_ms| Duration::from_millis(retry_ms.min(SERVER_LONGEST_MS))),
    }
}

/// Waits that grow, with full jitter (AWS Architecture Blog, "Exponential Backoff And Jitter").
#[derive(Clone, Debug, Default)]
pub(crate) struct Backoff {
    attempt: u32,
    sent_on: u32,
}

impl Backoff {
    /// How long to wait now; `dice` is from 0 to 1. A wait that the server asked for is kept, and
    /// in a first attempt it is all there is: the server spread its clients already.
    pub(crate) fn wait(&mut self, not_before: Option<Duration>, dice: f64) -> Duration {
        let ceiling = FIRST_MS.saturating_mul(1 << self.attempt.min(16)).min(LONGEST_MS);
        let own = Duration::from_millis(ceiling).mul_f64(dice.clamp(0.0, 1.0));
        let first = self.attempt == 0;
        self.attempt = self.attempt.saturating_add(1);
        match not_before {
            Some(asked) if first => asked,
            Some(asked) => asked.max(own),
            None => own,
        }
    }

    /// Whether one may follow at once, or has been sent on too often in a row.
    pub(crate) fn may_follow(&mut self) -> bool {
        self.sent_on += 1;
        self.sent_on <= SENT_ON_MAX
    }

    /// A connection came about. Waits start anew only once it has proved good.
    pub(crate) fn connected(&mut self) {
        self.sent_on = 0;
    }

    /// A connection lived for `life`.
    pub(crate) fn lived(&mut self, life: Duration) {
        if life >= GOOD_AFTER {
            self.attempt = 0;
        }
    }
}

impl std::fmt::Display for Ending {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Closed { code, reason } => {
                let name = match CloseCode::ALL.into_iter().find(|known| known.number() == *code) {
                    Some(CloseCode::Restart) => "moved or restarting",
                    Some(CloseCode::TryAgain) => "full just now",
                    Some(CloseCode::Redirect) => "sent on",
                    Some(CloseCode::TooSlow) => "too slow",
                    Some(CloseCode::Elsewhere) => "the team is elsewhere",
                    Some(CloseCode::TooFast) => "sent too much in a short time",
                    Some(CloseCode::BadRequest) => "not a good request",
                    Some(CloseCode::Forbidden) => "not allowed",
                    Some(CloseCode::TooLarge) => "a message was too large",
                    None => "closed",
                };
                write!(f, "{name} (close {code}")?;
                if !reason.is_empty() {
                    write!(f, ", {reason}")?;
                }
                f.write_str(")")
            }
            Self::Cut(why) | Self::Hopeless(why) => f.write_str(why),
            Self::Refused(problem) => write!(f, "{} ({})", problem.detail, problem.code),
            Self::Answered { status, .. } => write!(f, "HTTP {status} instead of a WebSocket"),
            Self::SentOn { url } => write!(f, "sent on to {}", without_query(url)),
        }
    }
}

impl Ending {
    /// A few words that many endings share, for counting.
    pub(crate) fn kind(&self) -> String {
        match self {
            Self::Closed { code, .. } => format!("close {code}"),
            Self::Cut(why) => format!("cut: {why}"),
            Self::Refused(problem) => format!("refused: {}", problem.code),
            Self::Answered { status, .. } => format!("http {status}"),
            Self::SentOn { .. } => "sent on".to_owned(),
            Self::Hopeless(why) => format!("hopeless: {why}"),
        }
    }
}

/// A URL without what may be secret in it.
pub(crate) fn without_query(url: &str) -> &str {
    url.split('?').next().unwrap_or(url)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn closed(code: u16, reason: &str) -> Next {
        after(&Ending::Closed {
            code,
            reason: reason.to_owned(),
        })
    }

    const BACK: Next = Next::ComeBack { not_before: None };

    #[test]
    fn a_client_comes_back_when_the_server_says_so() {
        for code in [4301, 4308, 4309, 4312, 4313] {
            assert_eq!(closed(code, ""), BACK, "{code}");
            assert_eq!(
                closed(code, r#"{"retry_ms":1500,"code":"x"}"#),
                Next::ComeBack {
                    not_before: Some(Duration::from_millis(1_500))
                },
                "{code}"
            );
        }
    }

    #[test]
    fn a_client_comes_back_after_a_loss_and_after_every_code_that_is_not_named_final() {
        assert_eq!(after(&Ending::Cut("reset".to_owned())), BACK);
        let others = [4000, 4401, 4499, 4999];
        for code in (1000..1016).chain(others) {
            assert_eq!(closed(code, "not json"), BACK, "{code}");
        }
    }

    #[test]
    fn final_codes_end_it() {
        for code in [4400, 4403, 4413] {
            assert_eq!(closed(code, r#"{"retry_ms":1}"#), Next::End, "{code}");
        }
    }

    #[test]
    fn a_redirect_is_followed_when_it_says_where() {
        let url = "http://h/connect/T".to_owned();
        assert_eq!(
            closed(4302, r#"{"url":"http://h/connect/T"}"#),
            Next::Follow { url: url.clone() }
        );
        assert_eq!(closed(4302, "{}"), BACK);
        assert_eq!(after(&Ending::SentOn { url: url.clone() }), Next::Follow { url });
    }

    #[test]
    fn a_refusal_is_final_only_when_it_is_the_clients_fault() {
        let refused = |status| after(&Ending::Refused(Problem::new(status, "x", "y")));
        for status in [400, 401, 403, 404] {
            assert_eq!(refused(status), Next::End, "{status}");
        }
        for status in [408, 429, 500, 503] {
            assert_eq!(refused(status), BACK, "{status}");
        }
        let later = Problem::new(503, "no_node", "y").retry_after(u64::MAX);
        assert_eq!(
            after(&Ending::Refused(later)),
            Next::ComeBack {
                not_before: Some(Duration::from_secs(300))
            }
        );
    }

    #[test]
    fn waits_grow_to_a_bound_and_start_anew_after_a_good_connection() {
        let mut backoff = Backoff::default();
        let waits: Vec<u64> = (0..8)
            .map(|_| u64::try_from(backoff.wait(None, 1.0).as_millis()).unwrap())
            .collect();
        assert_eq!(waits, [250, 500, 1_000, 2_000, 4_000, 8_000, 10_000, 10_000]);
        backoff.lived(Duration::from_secs(1));
        assert_eq!(backoff.wait(None, 0.5), Duration::from_secs(5));
        backoff.lived(GOOD_AFTER);
        assert_eq!(backoff.wait(None, 0.0), Duration::ZERO);
    }

    #[test]
    fn what_the_server_asked_for_is_kept() {
        let mut backoff = Backoff::default();
        let asked = Some(Duration::from_millis(700));
        assert_eq!(backoff.wait(asked, 1.0), Duration::from_millis(700));
        assert_eq!(backoff.wait(asked, 1.0), Duration::from_millis(700));
        assert_eq!(backoff.wait(asked, 1.0), Duration::from_millis(1_000));
    }

    #[test]
    fn a_chain_of_redirects_is_cut() {
        let mut backoff = Backoff::default();
        let follows = (0..5).filter(|_| backoff.may_follow()).count();
        assert_eq!(follows, 3);
        backoff.connected();
        assert!(backoff.may_follow());
    }
}
