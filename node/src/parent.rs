//! The small parent of a node: starts it again when it dies, and tells the brokers at once.
//!
//! When the child is dead the kernel has closed its sockets, so the parent's word is proof, and the
//! brokers need not wait for a lease to run out.

use bytes::Bytes;
use http::header::{AUTHORIZATION, CONTENT_TYPE, HOST};
use http::{HeaderValue, Method, Request, StatusCode};
use http_body_util::Full;
use rustix::process::{Pid, Signal, getppid, kill_process, set_parent_process_death_signal};
use std::ffi::OsString;
use std::os::unix::process::ExitStatusExt as _;
use std::path::PathBuf;
use std::process::ExitStatus;
use std::time::Duration;
use tokio::process::{Child, Command};
use tokio::signal::unix::{Signal as SignalStream, SignalKind, signal};
use tokio::time::{Instant, sleep_until, timeout};
use usher_shared::credential::{Credential, Look};
use usher_shared::id::{Incarnation, NodeId};
use usher_shared::identity::Hidden;
use usher_shared::link::{EXITED_PATH, Exited};
use usher_shared::secret::Token;

use crate::ask::{SendError, send};
use crate::brokers::{BrokerAddress, BrokerAddressError};

/// The variable in which the child finds its incarnation, 32 hexadecimal digits.
pub const INCARNATION_VARIABLE: &str = "USHER_NODE_INCARNATION";
/// The variable in which the child finds its nonce, 32 hexadecimal digits.
pub const NONCE_VARIABLE: &str = "USHER_NODE_NONCE";
/// The variable in which the child finds its parent's process id.
pub const PARENT_VARIABLE: &str = "USHER_NODE_PARENT";
/// The exit code of a child that cannot start as configured: starting it again would not help.
pub const EXIT_CONFIGURATION: i32 = 2;

/// How long telling one broker may take.
const TELL_TIMEOUT: Duration = Duration::from_millis(500);
/// The same once this process is to stop: what comes after the stop budget has to be over within half a
/// second of it, since whoever set the budget counts on it.
const LAST_TELL_TIMEOUT: Duration = Duration::from_millis(200);
/// A child that still runs so long after its stop budget is killed: it keeps to the budget by itself unless
/// it hangs.
const OVERDUE: Duration = Duration::from_millis(200);
/// The wait before the first restart ...
const FIRST_RESTART: Duration = Duration::from_millis(100);
/// ... doubling to this.
const LAST_RESTART: Duration = Duration::from_secs(5);
/// A child that is younger may not listen to signals yet, and SIGHUP would end it. It has just read everything.
const LISTENS_AFTER: Duration = Duration::from_secs(2);
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
    pub token: Option<Credential>,
    /// The child's executable; resolved once, before it may be replaced by a newer one.
    pub program: PathBuf,
    /// The arguments with which it is the child.
    pub args: Vec<OsString>,
    /// How long the child may take to stop; it is killed soon after.
    pub stop_budget: Duration,
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
    Ok(Incarnation::from_bits(draw()?))
}

/// Draws a fresh nonce.
///
/// # Errors
/// [`ParentError::Random`].
pub fn draw_nonce() -> Result<Hidden, ParentError> {
    Ok(Hidden::from_bits(draw()?))
}

fn draw() -> Result<u128, ParentError> {
    let mut bytes = [0; 16];
    getrandom::fill(&mut bytes).map_err(ParentError::Random)?;
    Ok(u128::from_be_bytes(bytes))
}

/// Runs the node in a child, and starts it again when it dies, until SIGTERM, SIGINT or SIGQUIT, which are
/// passed on, as SIGHUP is. Returns the exit code to leave with: the child's, or 0 where it was told to stop and
/// had nothing left to do.
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
    let mut started_once = false;
    loop {
        let (incarnation, nonce) = (draw_incarnation()?, draw_nonce()?);
        let began = Instant::now();
        let restart_ms = backoff.as_millis();
        match start(&config, incarnation, nonce) {
            Ok(mut child) => {
                started_once = true;
                let (status, told_to_stop) = watch(&mut child, &mut signals, config.stop_budget).await?;
                let patience = match told_to_stop {
                    ToldToStop::Yes => LAST_TELL_TIMEOUT,
                    ToldToStop::No => TELL_TIMEOUT,
                };
                tell(&config, &brokers, (incarnation, nonce), patience).await;
                let code = exit_code(status);
                if told_to_stop == ToldToStop::Yes {
                    return Ok(if ended_by_what_was_passed_on(status) {
                        0
                    } else {
                        code
                    });
                }
                if code == EXIT_CONFIGURATION || code == 0 {
                    return Ok(code);
                }
                tracing::error!(%status, restart_ms, "the node process died");
            }
            // It could be started before: the machine is out of memory or of processes, for a while.
            Err(ParentError::Spawn(error)) if started_once => {
                tracing::error!(%error, restart_ms, "the node process cannot be started again just now");
            }
            Err(error) => return Err(error),
        }
        if began.elapsed() >= LIVED {
            backoff = FIRST_RESTART;
        }
        if told_to_stop_within(&mut signals, backoff).await == ToldToStop::Yes {
            return Ok(0);
        }
        backoff = (backoff * 2).min(LAST_RESTART);
    }
}

/// Waits between two children. There is nothing that could read anything again meanwhile.
async fn told_to_stop_within(signals: &mut Signals, wait: Duration) -> ToldToStop {
    let stop = async { while signals.next().await == Signal::HUP {} };
    match timeout(wait, stop).await {
        Ok(()) => ToldToStop::Yes,
        Err(_) => ToldToStop::No,
    }
}

/// Whether a child that was told to stop ended before it could listen to signals.
fn ended_by_what_was_passed_on(status: ExitStatus) -> bool {
    let ended_by = status.signal();
    [Signal::TERM, Signal::INT, Signal::QUIT]
        .iter()
        .any(|signal| ended_by == Some(signal.as_raw()))
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum ToldToStop {
    Yes,
    No,
}

struct Signals {
    terminate: SignalStream,
    interrupt: SignalStream,
    quit: SignalStream,
    hangup: SignalStream,
}

impl Signals {
    fn new() -> Result<Self, ParentError> {
        Ok(Self {
            terminate: signal(SignalKind::terminate()).map_err(ParentError::Signals)?,
            interrupt: signal(SignalKind::interrupt()).map_err(ParentError::Signals)?,
            quit: signal(SignalKind::quit()).map_err(ParentError::Signals)?,
            hangup: signal(SignalKind::hangup()).map_err(ParentError::Signals)?,
        })
    }

    async fn next(&mut self) -> Signal {
        tokio::select! {
            _ = self.terminate.recv() => Signal::TERM,
            _ = self.interrupt.recv() => Signal::INT,
            _ = self.quit.recv() => Signal::QUIT,
            _ = self.hangup.recv() => Signal::HUP,
        }
    }
}

fn start(config: &ParentConfig, incarnation: Incarnation, nonce: Hidden) -> Result<Child, ParentError> {
    Command::new(&config.program)
        .args(&config.args)
        .env(INCARNATION_VARIABLE, incarnation.to_string())
        .env(NONCE_VARIABLE, nonce.expose())
        .env(PARENT_VARIABLE, std::process::id().to_string())
        // A terminal sends Ctrl-C to the whole group. The child must get each signal once, from
        // here, since a second one makes it hurry.
        .process_group(0)
        .kill_on_drop(true)
        .spawn()
        .map_err(ParentError::Spawn)
}

async fn watch(
    child: &mut Child,
    signals: &mut Signals,
    stop_budget: Duration,
) -> Result<(ExitStatus, ToldToStop), ParentError> {
    let mut told = ToldToStop::No;
    let mut kill_at: Option<Instant> = None;
    let listens_at = Instant::now() + LISTENS_AFTER;
    let mut hangup_waits = false;
    loop {
        tokio::select! {
            status = child.wait() => return Ok((status.map_err(ParentError::Spawn)?, told)),
            signal = signals.next() => match signal {
                Signal::HUP => hangup_waits = true,
                stop => {
                    told = ToldToStop::Yes;
                    kill_at.get_or_insert_with(|| Instant::now() + stop_budget + OVERDUE);
                    pass_on(child, stop);
                }
            },
            () = at(kill_at) => {
                tracing::error!("the node process outlived its stop budget and is killed");
                child.start_kill().map_err(ParentError::Spawn)?;
                kill_at = None;
            }
            () = sleep_until(listens_at), if hangup_waits => {
                hangup_waits = false;
                pass_on(child, Signal::HUP);
            }
        }
    }
}

/// At that time, or never.
async fn at(time: Option<Instant>) {
    match time {
        Some(time) => sleep_until(time).await,
        None => std::future::pending().await,
    }
}

fn pass_on(child: &Child, signal: Signal) {
    let pid = child.id().and_then(|pid| i32::try_from(pid).ok());
    if let Some(pid) = pid.and_then(Pid::from_raw) {
        // If the child is gone already, its end is about to be seen.
        let _ = kill_process(pid, signal);
    }
}

/// The child's code; 128 and the signal's number for one that a signal ended, as shells have it.
fn exit_code(status: ExitStatus) -> i32 {
    status
        .code()
        .unwrap_or_else(|| 128 + status.signal().unwrap_or(0))
}

/// Tells every broker, at once, that the incarnation is no more.
async fn tell(
    config: &ParentConfig,
    brokers: &[BrokerAddress],
    (incarnation, nonce): (Incarnation, Hidden),
    patience: Duration,
) {
    let exited = Exited {
        node: config.node.clone(),
        incarnation,
        nonce: Some(nonce),
    };
    let body = Bytes::from(serde_json::to_vec(&exited).unwrap_or_default());
    let telling = brokers.iter().map(|broker| {
        let body = body.clone();
        async move {
            let told = timeout(patience, tell_one(broker, config.token.as_ref(), body)).await;
            let failed = match told {
                Ok(Ok(())) => return,
                Ok(Err(error)) => error.to_string(),
                Err(_) => format!("no answer within {} ms", patience.as_millis()),
            };
            tracing::warn!(
                broker = broker.authority(),
                error = failed,
                "the broker could not be told of the death"
            );
        }
    });
    futures_util::future::join_all(telling).await;
}

async fn tell_one(
    broker: &BrokerAddress,
    credential: Option<&Credential>,
    body: Bytes,
) -> Result<(), TellError> {
    let shown = || credential.and_then(Credential::shown);
    let told = tell_with(broker, shown().as_ref(), body.clone()).await;
    let exchanged =
        || credential.is_some_and(|credential| credential.look().is_ok_and(|look| look == Look::Changed));
    match told {
        // The token may have been exchanged since this process read it.
        Err(TellError::Refused(StatusCode::UNAUTHORIZED)) if exchanged() => {
            tell_with(broker, shown().as_ref(), body).await
        }
        told => told,
    }
}

async fn tell_with(broker: &BrokerAddress, token: Option<&Token>, body: Bytes) -> Result<(), TellError> {
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
    let status = send(broker.authority(), request, async |answer| answer.status()).await?;
    if status.is_success() {
        Ok(())
    } else {
        Err(TellError::Refused(status))
    }
}

#[derive(Debug, thiserror::Error)]
enum TellError {
    #[error(transparent)]
    Send(#[from] SendError),
    #[error("the request cannot be made")]
    Request(#[from] http::Error),
    #[error("the token cannot be sent in a header")]
    Token(#[from] http::header::InvalidHeaderValue),
    #[error("the broker did not take it (status {})", .0.as_u16())]
    Refused(StatusCode),
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
