//! Ctrl-C and SIGTERM.

use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;

/// What a process gives that was interrupted: 128 and the signal's number.
const INTERRUPTED: i32 = 130;

/// A token that the first Ctrl-C or SIGTERM sets. The second ends the process at once, for those
/// who will not wait.
pub(crate) fn stop() -> std::io::Result<CancellationToken> {
    let token = CancellationToken::new();
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut terminate = signal(SignalKind::terminate())?;
    let set = token.clone();
    tokio::spawn(async move {
        for first in [true, false] {
            tokio::select! {
                _ = interrupt.recv() => {}
                _ = terminate.recv() => {}
            }
            if first {
                set.cancel();
            } else {
                std::process::exit(INTERRUPTED);
            }
        }
    });
    Ok(token)
}
