//! An Usher node: holds the WebSockets of its teams.

mod config;

pub use config::{Config, Relay};

/// Why a node could not start or had to stop.
#[derive(Debug, thiserror::Error)]
pub enum NodeError {
    /// A listener could not be opened.
    #[error(transparent)]
    Bind(#[from] usher_listen::accept::BindError),
}

/// Runs a node until it is told to stop (SIGTERM or SIGINT) and has been emptied or its budget is over.
///
/// # Errors
/// [`NodeError`] with the remedy.
pub async fn run(config: Config) -> Result<(), NodeError> {
    let _ = config;
    Ok(())
}
