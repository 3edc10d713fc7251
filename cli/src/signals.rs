//! What signals do to a process: some ask it to stop, SIGHUP asks it to read again what may have changed,
//! and the rest do nothing.

use rustix::process::Signal;
use tokio::signal::unix::{Signal as Signals, SignalKind, signal};
use tokio_util::sync::CancellationToken;

use crate::logging;

/// What a process gives that was interrupted: 128 and the signal's number.
const INTERRUPTED: i32 = 130;

/// Signals that end a process by default and have no meaning here. SIGPIPE is ignored by the standard library.
/// SIGXFSZ is a log that has reached its limit: the write fails, and is counted.
const MEANINGLESS: [Signal; 9] = [
    Signal::USR1,
    Signal::USR2,
    Signal::ALARM,
    Signal::VTALARM,
    Signal::PROF,
    Signal::IO,
    Signal::STKFLT,
    Signal::POWER,
    Signal::XFSZ,
];
/// The real-time signals that are not the C library's own (signal(7)).
const REAL_TIME: std::ops::RangeInclusive<i32> = 34..=64;

/// A token that the first Ctrl-C, SIGTERM or SIGQUIT sets. The second ends the process at once, for those
/// who will not wait.
pub(crate) fn stop() -> std::io::Result<CancellationToken> {
    let token = CancellationToken::new();
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut terminate = signal(SignalKind::terminate())?;
    let mut quit = signal(SignalKind::quit())?;
    let set = token.clone();
    tokio::spawn(async move {
        for first in [true, false] {
            tokio::select! {
                _ = interrupt.recv() => {}
                _ = terminate.recv() => {}
                _ = quit.recv() => {}
            }
            if first {
                set.cancel();
            } else {
                logging::flush();
                std::process::exit(INTERRUPTED);
            }
        }
    });
    Ok(token)
}

/// From now on no signal without a meaning here ends this process. Returns SIGHUP, which has one.
pub(crate) fn outlast() -> std::io::Result<Signals> {
    let meaningless = MEANINGLESS.map(Signal::as_raw);
    for number in meaningless.into_iter().chain(REAL_TIME) {
        // What is installed here stays for as long as the process lives.
        let _ = signal(SignalKind::from_raw(number))?;
    }
    signal(SignalKind::hangup())
}
