//! The recorder behind `/metrics`.

use metrics_exporter_prometheus::{BuildError, Matcher, PrometheusBuilder, PrometheusHandle};
use std::sync::{Mutex, OnceLock, PoisonError};
use std::time::Duration;
use usher_shared::figure::{LOG_LINES_DROPPED, PANICS};

/// Bounds for durations in seconds, from a quarter of a millisecond to half a minute: redirects
/// and fsyncs live at the lower end, reconnect gaps at the upper.
const SECONDS: [f64; 17] = [
    0.000_25, 0.000_5, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 20.0,
    30.0,
];

/// How often histograms are folded; without it they grow between scrapes.
const UPKEEP: Duration = Duration::from_secs(5);

static HANDLE: OnceLock<PrometheusHandle> = OnceLock::new();
/// Held during an installation, so that two at once get the same recorder.
static INSTALLING: Mutex<()> = Mutex::new(());

/// What every process counts, at 0 before the first.
fn describe() {
    let unit = metrics::Unit::Count;
    let dropped =
        "Log lines that were not written: their reader stands still or is gone, or the disk is full";
    metrics::describe_counter!(LOG_LINES_DROPPED, unit, dropped);
    metrics::describe_counter!(
        PANICS,
        unit,
        "Bugs that ended a task or a thread; the log says where"
    );
    metrics::describe_counter!(
        "usher_listener_cut_total",
        "Connections in HTTP, in-band sockets and links that gave way to new ones because no room was left, by what they were doing."
    );
    metrics::describe_counter!(
        "usher_listener_refused_total",
        "Requests answered with 503 `busy` because no room was left for 5 s."
    );
    metrics::counter!(LOG_LINES_DROPPED).increment(0);
    metrics::counter!(PANICS).increment(0);
}

/// The process's metrics.
#[derive(Clone)]
pub struct Telemetry {
    recorder: PrometheusHandle,
    process: metrics_process::Collector,
}

impl Telemetry {
    /// Installs the recorder, once a process; later calls get the same one.
    ///
    /// # Errors
    /// When another recorder was installed first.
    pub fn install() -> Result<Self, BuildError> {
        let _installing = INSTALLING.lock().unwrap_or_else(PoisonError::into_inner);
        let recorder = match HANDLE.get() {
            Some(handle) => handle.clone(),
            None => {
                let handle = PrometheusBuilder::new()
                    .set_buckets_for_metric(Matcher::Suffix("_seconds".to_owned()), &SECONDS)?
                    .install_recorder()?;
                HANDLE.get_or_init(|| handle).clone()
            }
        };
        let process = metrics_process::Collector::default();
        process.describe();
        describe();
        Ok(Self { recorder, process })
    }

    /// The page as Prometheus reads it.
    #[must_use]
    pub fn render(&self) -> String {
        self.process.collect();
        self.recorder.render()
    }

    /// Folds histograms now and then, for as long as the process runs.
    pub async fn upkeep(self) {
        let mut every = tokio::time::interval(UPKEEP);
        loop {
            every.tick().await;
            self.recorder.run_upkeep();
        }
    }
}
