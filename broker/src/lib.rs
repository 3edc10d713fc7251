//! The Usher broker.

mod config;

pub use config::Config;

/// Why a broker could not start or had to stop.
#[derive(Debug, thiserror::Error)]
pub enum BrokerError {
    /// A listener could not be opened.
    #[error(transparent)]
    Bind(#[from] usher_listen::accept::BindError),
}

/// Runs a broker until it is told to stop (SIGTERM or SIGINT).
///
/// # Errors
/// [`BrokerError`] with the remedy.
pub async fn run(config: Config) -> Result<(), BrokerError> {
    let _ = config;
    Ok(())
}
