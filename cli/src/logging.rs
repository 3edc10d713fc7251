//! What the long-running processes say, on standard error.

mod filter;
mod lines;

pub(crate) use filter::LogFilter;
pub(crate) use lines::{Lines, Losses};

use serde::{Deserialize, Serialize};
use std::sync::OnceLock;
use std::time::Duration;
use tracing_subscriber::layer::SubscriberExt as _;
use tracing_subscriber::util::SubscriberInitExt as _;
use tracing_subscriber::{filter::Targets, fmt, registry::Registry, reload};
use usher_shared::figure::{LOG_LINES_DROPPED, PANICS};

/// How long the end of a process waits for its last lines.
const LAST_LINES: Duration = Duration::from_millis(500);

static LOG: OnceLock<Lines> = OnceLock::new();

/// How a log line looks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum LogFormat {
    /// For people.
    #[default]
    Text,
    /// One JSON object a line.
    Json,
}

/// The way to another level.
#[derive(Clone)]
pub(crate) struct Logging(reload::Handle<Targets, Registry>);

impl Logging {
    /// Logs by `filter` from now on.
    pub(crate) fn set(&self, filter: &LogFilter) {
        // It fails only once nothing logs any more.
        let _ = self.0.reload(filter.targets());
    }
}

/// Starts logging. From here on a panic is a line of the log as well.
pub(crate) fn start(filter: &LogFilter, format: LogFormat) -> anyhow::Result<Logging> {
    let lines = Lines::start("usher-log", &std::io::stderr(), LOSSES)
        .map_err(|error| anyhow::anyhow!("cannot start the thread that writes the log: {error}"))?;
    let _ = LOG.set(lines.clone());
    let (targets, handle) = reload::Layer::new(filter.targets());
    let to = tracing_subscriber::registry().with(targets);
    // A line that could not be formatted would otherwise be told by `eprintln!`, which panics.
    let layer = fmt::layer().with_writer(lines).log_internal_errors(false);
    let started = match format {
        LogFormat::Text => to.with(layer.with_ansi(false)).try_init(),
        LogFormat::Json => to.with(layer.json().flatten_event(true)).try_init(),
    };
    started.map_err(|error| anyhow::anyhow!("cannot start logging: {error}"))?;
    std::panic::set_hook(Box::new(note_panic));
    Ok(Logging(handle))
}

const LOSSES: Losses = Losses {
    count: |lines| metrics::counter!(LOG_LINES_DROPPED).increment(lines),
    tell: |dropped| {
        tracing::warn!(
            dropped,
            "log lines are missing before this one: they were not read in time, or could not be written"
        );
    },
};

/// The standard hook writes to standard error by itself, and waits there for whoever reads it.
fn note_panic(panic: &std::panic::PanicHookInfo<'_>) {
    metrics::counter!(PANICS).increment(1);
    let thread = std::thread::current();
    let at = panic.location().map(ToString::to_string).unwrap_or_default();
    let payload = panic.payload();
    let words = payload.downcast_ref::<&str>().copied();
    let words = words.or_else(|| payload.downcast_ref::<String>().map(String::as_str));
    let what = words.unwrap_or("a panic without words");
    let backtrace = std::backtrace::Backtrace::capture();
    match backtrace.status() {
        std::backtrace::BacktraceStatus::Captured => {
            tracing::error!(thread = thread.name(), at, %backtrace, "this is a bug: {what}");
        }
        _ => tracing::error!(thread = thread.name(), at, "this is a bug: {what}"),
    }
}

/// Waits a little for the last lines. To be called before a process ends.
pub(crate) fn flush() {
    if let Some(lines) = LOG.get() {
        lines.flush(LAST_LINES);
    }
}

/// Calls [`flush`] at the end of its scope, however that is left.
pub(crate) struct FlushAtEnd;

impl Drop for FlushAtEnd {
    fn drop(&mut self) {
        flush();
    }
}
