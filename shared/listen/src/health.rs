//! `/healthz` and `/readyz`, the same on every listener: any method that only asks is answered, since
//! load balancers ask with `GET`, `HEAD` or `OPTIONS`.

use http::header::ALLOW;
use http::{HeaderValue, Method, StatusCode};
use usher_shared::rest::Problem;

use crate::answer::{Answer, problem, text};

/// The process lives.
pub const HEALTH: &str = "/healthz";
/// It can do its work.
pub const READY: &str = "/readyz";
const ALLOWED: &str = "GET, HEAD, OPTIONS";

/// Whether somebody asks how the process is.
#[must_use]
pub fn asks(path: &str) -> bool {
    matches!(path, HEALTH | READY)
}

/// What [`HEALTH`] is answered with by a process to which nothing happened.
#[must_use]
pub fn alive() -> Answer {
    text(StatusCode::OK, "ok\n")
}

/// The answer to whoever asks how the process is; `None` for another path. `healthy` is called for
/// [`HEALTH`], `ready` for [`READY`].
pub fn answer(
    path: &str,
    method: &Method,
    healthy: impl FnOnce() -> Answer,
    ready: impl FnOnce() -> Answer,
) -> Option<Answer> {
    if !asks(path) {
        return None;
    }
    if !matches!(*method, Method::GET | Method::HEAD | Method::OPTIONS) {
        let mut refused = problem(&Problem::new(
            405,
            "wrong_method",
            format!("this path takes {ALLOWED}"),
        ));
        refused
            .headers_mut()
            .insert(ALLOW, HeaderValue::from_static(ALLOWED));
        return Some(refused);
    }
    let mut answer = if path == HEALTH { healthy() } else { ready() };
    if *method == Method::OPTIONS {
        answer
            .headers_mut()
            .insert(ALLOW, HeaderValue::from_static(ALLOWED));
    }
    Some(answer)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whoever_only_asks_is_answered() {
        let unready = || text(StatusCode::SERVICE_UNAVAILABLE, "no\n");
        let status = |path, method: Method| {
            let answer = answer(path, &method, alive, unready)?;
            Some((answer.status().as_u16(), answer.headers().contains_key(ALLOW)))
        };
        assert_eq!(status("/healthz", Method::GET), Some((200, false)));
        assert_eq!(status("/healthz", Method::HEAD), Some((200, false)));
        assert_eq!(status("/healthz", Method::OPTIONS), Some((200, true)));
        assert_eq!(status("/readyz", Method::OPTIONS), Some((503, true)));
        assert_eq!(status("/healthz", Method::DELETE), Some((405, true)));
        assert_eq!(status("/healthz/", Method::GET), None);
    }
}
