//! The small parent of a node: starts it again when it dies, and tells the brokers at once.
//!
//! When the child is dead the kernel has closed its sockets, so the parent's word is proof, and the
//! brokers need not wait for a lease to run out.

use bytes::Bytes;
use http::header::{AUTHORIZATION, CONTENT_TYPE, HOST};
use http::{HeaderValue, Method, Request};
use http_body_util::Full;
use rustix::process::{Pid, Signal, getppid, kill_process, set_parent_process_death_signal};
use std::ffi::OsString;
use std::os::unix::process::ExitStatusExt as _;
use std::path::PathBuf;
use std::process::ExitStatus;
use std::time::Duration;
use tokio::process::{Child, Command};
use tokio::signal::unix::{Signal as SignalStream, SignalKind, signal};
use tokio::time::{Instant, sleep, timeout};
use usher_shared::id::{Incarnation, NodeId};
use usher_shared::link::{EXITED_PATH, Exited};
use usher_shared::secret::Token;

use crate::ask::{SendError, send};
use crate::brokers::{BrokerAddress, BrokerAddressError};

/// The variable in which the child finds its incarnation, 32 hexadecimal digits.
pub const INCARNATION_VARIABLE: &str = "USHER_NODE_INCARNATION";
/// The variable in which the child finds its parent's process id.
pub const PARENT_VARIABLE: &str = "USHER_NODE_PARENT";
/// The exit code of a child that cannot start as configured: starting it again would not help.
pub const EXIT_CONFIGURATION: i32 = 2;

/// How long telling one broker may take.
const TELL_TIMEOUT: Duration = Duration::from_millis(500);
/// The wait before the first restart ...
const FIRST_RESTART: Duration = Duration::from_millis(100);
/// ... doubling to this.
const LAST_RESTART: Duration = Duration::from_secs(5);
/// A child that lived so long is restarted as if it were the first time.
const LIVED: Duration = Duration::from_secs(30);

/// What the parent is told.
#[derive(Clone, Debug)]
pub struct ParentConfig {
    /// The node's name.
    pub node: NodeId,
    /// Node-link listeners of the brokers: `ws://host:port`, without a path.
    pub brokers: Vec<String>,
    /// The node-link token, needed beyond loopback.
    pub token: Option<Token>,
    /// The child's executable; resolved once, before it may be replaced by a newer one.
    pub program: PathBuf,
    /// The arguments with which it is the child.
    pub args: Vec<OsString>,
}

/// Why the parent cannot go on.
#[derive(Debug, thiserror::Error)]
pub enum ParentError {
    /// A broker's address cannot be used.
    #[error(transparent)]
    Broker(#[from] BrokerAddressError),
    /// The child cannot be started.
    #[error("the node process cannot be started from this executable; check that it is still in place")]
    Spawn(#[source] std::io::Error),
    /// Signals cannot be received.
    #[error("signals cannot be received")]
    Signals(#[source] std::io::Error),
    /// The kernel gave no randomness.
    #[error("the system has no randomness to give")]
    Random(#[source] getrandom::Error),
    /// The child outlived its parent before it was tied to it.
    #[error("the parent process is gone; start the node again")]
    Orphan,
    /// The kernel refused to tie the child to its parent.
    #[error("this process cannot be tied to its parent")]
    Tie(#[source] std::io::Error),
}

/// Draws a fresh incarnation.
///
/// # Errors
/// [`ParentError::Random`].
pub fn draw_incarnation() -> Result<Incarnation, ParentError> {
    let mut bytes = [0; 16];
    getrandom::fill(&mut bytes).map_err(ParentError::Random)?;
    Ok(Incarnation::from_bits(u128::from_be_bytes(bytes)))
}

/// Runs the node in a child, and starts it again when it dies, until SIGTERM or SIGINT, which are
/// passed on. Returns the exit code to leave with: the child's.
///
/// Must be run on a thread that lives as long as the process (`block_on` in `main`): the kernel ties
/// a child to the thread that started it.
///
/// # Errors
/// [`ParentError`] when the child cannot be run at all.
pub async fn supervise(config: ParentConfig) -> Result<i32, ParentError> {
    let brokers: Result<Vec<BrokerAddress>, _> = config.brokers.iter().map(|broker| broker.parse()).collect();
    let brokers = brokers?;
    let mut signals = Signals::new()?;
    let mut backoff = FIRST_RESTART;
    loop {
        let incarnation = draw_incarnation()?;
        let began = Instant::now();
        let mut child = start(&config, incarnation)?;
        let (status, told_to_stop) = watch(&mut child, &mut signals).await?;
        tell(&config, &brokers, incarnation).await;
        let code = exit_code(status);
        if told_to_stop == ToldToStop::Yes || code == EXIT_CONFIGURATION || code == 0 {
            return Ok(code);
        }
        if began.elapsed() >= LIVED {
            backoff = FIRST_RESTART;
        }
        tracing::error!(%status, restart_ms = backoff.as_millis(), "the node process died");
        tokio::select! {
            () = sleep(backoff) => {}
            _ = signals.next() => return Ok(code),
        }
        backoff = (backoff * 2).min(LAST_RESTART);
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum ToldToStop {
    Yes,
    No,
}

struct Signals {
    terminate: SignalStream,
    interrupt: SignalStream,
}

impl Signals {
    fn new() -> Result<Self, ParentError> {
        Ok(Self {
            terminate: signal(SignalKind::terminate()).map_err(ParentError::Signals)?,
            interrupt: signal(SignalKind::interrupt()).map_err(ParentError::Signals)?,
        })
    }

    async fn next(&mut self) -> Signal {
        tokio::select! {
            _ = self.terminate.recv() => Signal::TERM,
            _ = self.interrupt.recv() => Signal::INT,
        }
    }
}

fn start(config: &ParentConfig, incarnation: Incarnation) -> Result<Child, ParentError> {
    Command::new(&config.program)
        .args(&config.args)
        .env(INCARNATION_VARIABLE, incarnation.to_string())
        .env(PARENT_VARIABLE, std::process::id().to_string())
        // A terminal sends Ctrl-C to the whole group. The child must get each signal once, from
        // here, since a second one makes it hurry.
        .process_group(0)
        .kill_on_drop(true)
        .spawn()
        .map_err(ParentError::Spawn)
}

async fn watch(child: &mut Child, signals: &mut Signals) -> Result<(ExitStatus, ToldToStop), ParentError> {
    let mut told = ToldToStop::No;
    loop {
        let pid = child.id();
        tokio::select! {
            status = child.wait() => return Ok((status.map_err(ParentError::Spawn)?, told)),
            signal = signals.next() => {
                told = ToldToStop::Yes;
                let pid = pid.and_then(|pid| i32::try_from(pid).ok()).and_then(Pid::from_raw);
                if let Some(pid) = pid {
                    // If the child is gone already, its end is about to be seen above.
                    let _ = kill_process(pid, signal);
                }
            }
        }
    }
}

/// The child's code; 128 and the signal's number for one that a signal ended, as shells have it.
fn exit_code(status: ExitStatus) -> i32 {
    status
        .code()
        .unwrap_or_else(|| 128 + status.signal().unwrap_or(0))
}

/// Tells every broker, at once, that the incarnation is no more.
async fn tell(config: &ParentConfig, brokers: &[BrokerAddress], incarnation: Incarnation) {
    let exited = Exited {
        node: config.node.clone(),
        incarnation,
    };
    let body = Bytes::from(serde_json::to_vec(&exited).unwrap_or_default());
    let telling = brokers.iter().map(|broker| {
        let body = body.clone();
        async move {
            let told = timeout(TELL_TIMEOUT, tell_one(broker, config.token.as_ref(), body)).await;
            if !matches!(told, Ok(Ok(()))) {
                tracing::warn!(
                    broker = broker.authority(),
                    "the broker could not be told of the death"
                );
            }
        }
    });
    futures_util::future::join_all(telling).await;
}

async fn tell_one(broker: &BrokerAddress, token: Option<&Token>, body: Bytes) -> Result<(), TellError> {
    let mut request = Request::builder()
        .method(Method::POST)
        .uri(EXITED_PATH)
        .header(HOST, broker.authority())
        .header(CONTENT_TYPE, "application/json");
    if let Some(token) = token {
        let mut bearer = HeaderValue::from_str(&format!("Bearer {}", token.expose()))?;
        bearer.set_sensitive(true);
        request = request.header(AUTHORIZATION, bearer);
    }
    let request = request.body(Full::new(body))?;
    let took = send(broker.authority(), request, async |answer| {
        answer.status().is_success()
    })
    .await?;
    if took { Ok(()) } else { Err(TellError::Refused) }
}

#[derive(Debug, thiserror::Error)]
enum TellError {
    #[error(transparent)]
    Send(#[from] SendError),
    #[error("the request cannot be made")]
    Request(#[from] http::Error),
    #[error("the token cannot be sent in a header")]
    Token(#[from] http::header::InvalidHeaderValue),
    #[error("the broker did not take it")]
    Refused,
}

/// Ties this process to its parent: when the parent dies, however it dies, the kernel ends this
/// one, so that there is never a node without somebody to report its death. The child calls it
/// first thing. Does nothing in a process that no [`supervise`] started.
///
/// # Errors
/// [`ParentError::Orphan`] when the parent died before this was called.
pub fn tie_to_parent() -> Result<(), ParentError> {
    let Ok(parent) = std::env::var(PARENT_VARIABLE) else {
        return Ok(());
    };
    set_parent_process_death_signal(Some(Signal::KILL)).map_err(|error| ParentError::Tie(error.into()))?;
    // The parent may have died between the start and the line above; then no signal will come.
    let now = getppid().map(|pid| pid.as_raw_nonzero().get().to_string());
    if now.as_deref() == Some(parent.as_str()) {
        Ok(())
    } else {
        Err(ParentError::Orphan)
    }
}
