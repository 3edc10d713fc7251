//! The broker's REST API, as the operator's verbs use it.

use clap::Args;
use reqwest::Method;
use serde::Serialize;
use serde::de::DeserializeOwned;
use std::path::PathBuf;
use std::time::Duration;
use usher_shared::rest::Problem;
use usher_shared::secret::Token;

use crate::failure::Failure;
use crate::{names, output, settings};

/// A verb answers a person: after this long something is wrong and saying so is better than waiting.
const TIMEOUT: Duration = Duration::from_secs(20);

/// Where the broker is and how to show who asks.
#[derive(Args, Clone, Debug)]
pub(crate) struct AdminArgs {
    /// The broker's admin listener
    #[arg(
        long,
        env = "USHER_ADMIN",
        default_value = "http://127.0.0.1:7401",
        value_name = "URL"
    )]
    pub(crate) admin: String,
    /// File with the operator token; USHER_OPERATOR_TOKEN may hold the token itself
    #[arg(long, env = "USHER_OPERATOR_TOKEN_FILE", value_name = "FILE")]
    pub(crate) operator_token_file: Option<PathBuf>,
}

/// Where the broker is, and how to print its answer.
#[derive(Args, Clone, Debug)]
pub(crate) struct AskArgs {
    #[command(flatten)]
    pub(crate) admin: AdminArgs,
    /// Print the broker's answer as JSON
    #[arg(long)]
    pub(crate) json: bool,
}

/// Why the broker did not do what was asked.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ApiError {
    /// Nobody answered.
    #[error("no broker at {base}")]
    Unreachable {
        base: String,
        #[source]
        source: reqwest::Error,
    },
    /// The broker said no, and why.
    #[error("{}", .0.detail)]
    Problem(Problem),
    /// An answer that no broker gives.
    #[error("{base} answered {status}, which is not how a broker answers")]
    Foreign { base: String, status: u16 },
    /// An answer that cannot be read.
    #[error("the answer of {base} cannot be read; are `usher` and the broker of the same version?")]
    Unreadable {
        base: String,
        #[source]
        source: reqwest::Error,
    },
}

const ADMIN_REMEDY: &str =
    "check --admin: it must be the broker's admin listener, by default http://127.0.0.1:7401";

impl ApiError {
    fn remedy(&self) -> Option<String> {
        match self {
            Self::Unreachable { base, .. } if base.starts_with("https:") => Some(
                "this build speaks plain http; go through a tunnel, as in `ssh -L 7401:127.0.0.1:7401 host`"
                    .to_owned(),
            ),
            Self::Unreachable { .. } => Some(
                "start one with `usher dev`, or pass --admin URL (or set USHER_ADMIN) if it is elsewhere"
                    .to_owned(),
            ),
            Self::Problem(problem) => for_problem(problem),
            Self::Foreign { .. } => Some(ADMIN_REMEDY.to_owned()),
            Self::Unreadable { .. } => None,
        }
    }
}

/// What the command line can add to what the broker says. Its `detail` already holds the rest.
fn for_problem(problem: &Problem) -> Option<String> {
    match problem.status {
        401 | 403 => Some("set USHER_OPERATOR_TOKEN, or pass --operator-token-file FILE".to_owned()),
        404 => match &*problem.code {
            "unknown_team" => Some("`usher teams` lists the teams".to_owned()),
            "unknown_node" => Some("`usher nodes` lists the nodes".to_owned()),
            "unknown_operation" => Some("`usher operations` lists the operations".to_owned()),
            // Another listener of a broker or of a node answers so.
            "not_found" => Some(ADMIN_REMEDY.to_owned()),
            _ => None,
        },
        _ => problem
            .retry_ms
            .map(|retry_ms| format!("again in {}", crate::duration::for_people(retry_ms))),
    }
}

impl From<ApiError> for Failure {
    fn from(error: ApiError) -> Self {
        let remedy = error.remedy();
        let failure = match error {
            // The chain below a refused connection is three lines of the HTTP client's own words.
            ApiError::Unreachable { base, source } => {
                Self::say(format!("no broker at {base}: {}", innermost(&source)))
            }
            other => Self::new(other),
        };
        match remedy {
            Some(remedy) => failure.try_this(remedy),
            None => failure,
        }
    }
}

/// What the system said at the very bottom.
pub(crate) fn innermost(error: &dyn std::error::Error) -> String {
    let mut error = error;
    while let Some(source) = error.source() {
        error = source;
    }
    error.to_string()
}

/// The API of one broker.
#[derive(Clone, Debug)]
pub(crate) struct Api {
    base: String,
    http: reqwest::Client,
    token: Option<Token>,
}

impl Api {
    /// From the flags; the token from its file or else from its variable.
    pub(crate) fn new(args: &AdminArgs) -> Result<Self, Failure> {
        let file = args.operator_token_file.as_deref();
        let token = settings::token("USHER_OPERATOR_TOKEN", file, None).map_err(Failure::settings)?;
        if let Some(what) = file.and_then(settings::exposed) {
            output::note(&format!("warning: {what}"));
        }
        let token = token.and_then(|token| token.shown());
        let base = args.admin.trim_end_matches('/').to_owned();
        if !base.starts_with("http://") && !base.starts_with("https://") {
            return Err(Failure::settings(anyhow::anyhow!(
                "--admin {base} is not a URL; it looks like http://127.0.0.1:7401"
            )));
        }
        Self::at(base, token).map_err(Failure::new)
    }

    /// The API at `base`, without a slash at its end.
    pub(crate) fn at(base: String, token: Option<Token>) -> Result<Self, reqwest::Error> {
        let http = names::client_for([base.as_str()])
            .timeout(TIMEOUT)
            // A proxy from the environment is for the way out, not for the own broker.
            .no_proxy()
            .build()?;
        Ok(Self { base, http, token })
    }

    pub(crate) async fn get<T: DeserializeOwned>(&self, path: &str) -> Result<T, ApiError> {
        let answer = self.send(Method::GET, path, None::<&()>).await?;
        self.read(answer).await
    }

    pub(crate) async fn patch<T: DeserializeOwned>(
        &self,
        path: &str,
        body: &impl Serialize,
    ) -> Result<T, ApiError> {
        let answer = self.send(Method::PATCH, path, Some(body)).await?;
        self.read(answer).await
    }

    pub(crate) async fn post<T: DeserializeOwned>(
        &self,
        path: &str,
        body: &impl Serialize,
    ) -> Result<T, ApiError> {
        let answer = self.send(Method::POST, path, Some(body)).await?;
        self.read(answer).await
    }

    /// A `POST` without a body; what it answers does not matter.
    pub(crate) async fn ask_for(&self, path: &str) -> Result<(), ApiError> {
        self.send(Method::POST, path, None::<&()>).await.map(drop)
    }

    /// A `DELETE`; what it answers does not matter.
    pub(crate) async fn delete(&self, path: &str) -> Result<(), ApiError> {
        self.send(Method::DELETE, path, None::<&()>).await.map(drop)
    }

    async fn send(
        &self,
        method: Method,
        path: &str,
        body: Option<&impl Serialize>,
    ) -> Result<reqwest::Response, ApiError> {
        let mut request = self.http.request(method, format!("{}{path}", self.base));
        if let Some(token) = &self.token {
            request = request.bearer_auth(token.expose());
        }
        if let Some(body) = body {
            request = request.json(body);
        }
        let answer = request.send().await.map_err(|source| ApiError::Unreachable {
            base: self.base.clone(),
            source,
        })?;
        let status = answer.status();
        if status.is_success() {
            return Ok(answer);
        }
        Err(match answer.json::<Problem>().await {
            Ok(problem) => ApiError::Problem(problem),
            Err(_) => ApiError::Foreign {
                base: self.base.clone(),
                status: status.as_u16(),
            },
        })
    }

    async fn read<T: DeserializeOwned>(&self, answer: reqwest::Response) -> Result<T, ApiError> {
        answer.json().await.map_err(|source| ApiError::Unreadable {
            base: self.base.clone(),
            source,
        })
    }
}

/// A view as the JSON that `--json` prints.
pub(crate) fn json(view: &impl Serialize) -> Result<String, Failure> {
    serde_json::to_string_pretty(view).map_err(Failure::new)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_problem_is_printed_with_its_remedy() {
        let problem = Problem::new(404, "unknown_team", "there is no team T9");
        assert_eq!(
            Failure::from(ApiError::Problem(problem)).to_string(),
            "error: there is no team T9\n  try: `usher teams` lists the teams"
        );
        let problem = Problem::new(503, "no_node", "no node can take the team").retry_after(2_500);
        assert_eq!(
            Failure::from(ApiError::Problem(problem)).to_string(),
            "error: no node can take the team\n  try: again in 2.5 s"
        );
    }
}
