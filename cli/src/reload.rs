//! What changes while a process runs: its tokens, and what it logs.
//!
//! Files with tokens are looked at every few seconds; SIGHUP does so at once, and takes the level of the log
//! from the TOML file where neither a flag nor a variable has set it. Everything else is read at the start only.

use std::path::{Path, PathBuf};
use std::time::Duration;
use tokio::signal::unix::Signal;
use tokio::time::{Instant, MissedTickBehavior, interval_at};
use usher_shared::credential::{Credential, Look};

use crate::logging::{LogFilter, Logging};
use crate::settings::{self, File};

/// How often token files are looked at: soon enough for somebody who waits for it.
const LOOK_EVERY: Duration = Duration::from_secs(3);

/// What may change.
pub(crate) struct Reload {
    /// The TOML file.
    pub(crate) config: Option<PathBuf>,
    /// The level in the TOML file, while nothing beats it.
    pub(crate) level: Level,
    pub(crate) logging: Logging,
    /// Each with what it is.
    pub(crate) credentials: Vec<(&'static str, Credential)>,
}

/// Where the log's level comes from.
pub(crate) enum Level {
    /// A flag or a variable, which stay as they are.
    Fixed,
    /// The TOML file, by this look into it.
    File(fn(File) -> Option<LogFilter>),
}

impl Level {
    /// By whether a flag or a variable has said it.
    pub(crate) fn of(said: Option<&LogFilter>, look: fn(File) -> Option<LogFilter>) -> Self {
        said.map_or(Self::File(look), |_| Self::Fixed)
    }
}

impl Reload {
    /// Looks for as long as the process lives.
    pub(crate) async fn run(self, mut hangup: Signal) -> std::convert::Infallible {
        for file in self
            .credentials
            .iter()
            .filter_map(|(_, credential)| credential.file())
        {
            warn_if_exposed(file);
        }
        let mut every = interval_at(Instant::now() + LOOK_EVERY, LOOK_EVERY);
        every.set_missed_tick_behavior(MissedTickBehavior::Delay);
        // By credential, so that each failure is told once.
        let mut failed = vec![None; self.credentials.len()];
        loop {
            tokio::select! {
                _ = every.tick() => self.look_at_tokens(&mut failed).await,
                _ = hangup.recv() => {
                    failed.fill(None);
                    self.look_at_tokens(&mut failed).await;
                    self.look_at_level().await;
                }
            }
        }
    }

    async fn look_at_tokens(&self, failed: &mut [Option<String>]) {
        for ((what, credential), failed) in self.credentials.iter().zip(failed) {
            let Some(file) = credential.file().map(Path::to_owned) else {
                continue;
            };
            let looking = credential.clone();
            // A file on a disk that hangs must hold up nothing else.
            let Ok(looked) = tokio::task::spawn_blocking(move || looking.look()).await else {
                continue;
            };
            let shown = file.display();
            match looked {
                Ok(Look::Same) => *failed = None,
                Ok(Look::Changed) => {
                    *failed = None;
                    let tokens = credential.count();
                    tracing::info!(file = %shown, tokens, "{what}: the file has other tokens, which are in force now");
                    warn_if_exposed(&file);
                }
                Err(error) => {
                    let error = format!("{:#}", anyhow::Error::from(error));
                    if failed.as_ref() != Some(&error) {
                        tracing::error!(file = %shown, error, "{what}: the file is of no use now; what was in force stays so");
                        *failed = Some(error);
                    }
                }
            }
        }
    }

    async fn look_at_level(&self) {
        let Level::File(look) = self.level else {
            tracing::info!(
                "SIGHUP: token files were read again; the log's level is a flag's or a variable's, and stays"
            );
            return;
        };
        let config = self.config.clone();
        let read = tokio::task::spawn_blocking(move || File::read(config.as_deref())).await;
        match read {
            Ok(Ok(file)) => {
                let filter = look(file).unwrap_or_default();
                self.logging.set(&filter);
                tracing::info!(log = %filter, "SIGHUP: token files and the log's level were read again; other settings need a restart");
            }
            Ok(Err(error)) => {
                let error = format!("{error:#}");
                tracing::error!(
                    error,
                    "SIGHUP: token files were read again; the configuration is of no use now, and the log's level stays"
                );
            }
            Err(_) => {}
        }
    }
}

fn warn_if_exposed(file: &Path) {
    if let Some(what) = settings::exposed(file) {
        tracing::warn!("{what}");
    }
}
