//! Why a broker could not start or had to stop.

use std::error::Error;
use std::fmt;

use crate::keys::KeyError;
use crate::random::NoRandomness;
use crate::store::StoreError;

/// Why a broker could not start or had to stop.
#[derive(Debug, thiserror::Error)]
pub enum BrokerError {
    /// A listener could not be opened.
    #[error(transparent)]
    Bind(#[from] usher_listen::accept::BindError),
    /// The keys are not in order, or a listener lacks its credential.
    #[error(transparent)]
    Keys(#[from] KeyError),
    /// The store could not be opened or read.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// Numbers that do not go together.
    #[error("the configured times do not go together")]
    Settings(#[from] usher_placement::SettingsError),
    /// The store has seen as many starts as a term can count.
    #[error("the store has reached the highest term; begin a new cluster with an empty data folder")]
    TermsUsedUp,
    /// The system gives no random numbers.
    #[error(transparent)]
    Random(#[from] NoRandomness),
    /// Another metrics recorder was there first.
    #[error("another metrics recorder is installed in this process")]
    Telemetry(#[source] Box<dyn Error + Send + Sync>),
    /// A bug: the loop that owns all state ended by itself.
    #[error("the event loop ended by itself; this is a bug, and its message is above. Restart the broker")]
    LoopEnded,
    /// The system gave no thread or no signal handler.
    #[error("the system refused a thread or a signal handler; check the limits of this user")]
    System(#[source] std::io::Error),
}

/// An error with its sources, on one line.
pub(crate) struct Chain<'e>(pub(crate) &'e dyn Error);

impl fmt::Display for Chain<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)?;
        let mut source = self.0.source();
        while let Some(error) = source {
            write!(f, ": {error}")?;
            source = error.source();
        }
        Ok(())
    }
}
