//! Ends a process that owes its pool an end and is too frozen to bring it about.
//!
//! In a pool that fences, every connection must be closed by the time the broker may give the teams
//! to others. The runtime does that; a thread outside it makes sure. It counts on no lock and no task
//! of the runtime: when the time has come and nobody has said that the fencing is done, it aborts the
//! process, and the kernel closes the sockets.

use std::io::Write as _;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;
use usher_shared::clock::boottime;
use usher_shared::quantity::Timestamp;

/// How often the thread looks: a tenth of the time that fencing may take.
const LOOK_EVERY: Duration = Duration::from_millis(50);
/// Nothing is owed.
const NEVER: u64 = u64::MAX;

/// What the process owes, shared by the runtime and the thread.
#[derive(Debug)]
pub(crate) struct Watchdog {
    /// Milliseconds of the clock that counts suspend.
    fence_by: AtomicU64,
}

impl Default for Watchdog {
    fn default() -> Self {
        Self {
            fence_by: AtomicU64::new(NEVER),
        }
    }
}

impl Watchdog {
    /// The process is to be ended unless something else is said by then; `None`: nothing is owed.
    pub(crate) fn expect(&self, fence_by: Option<Timestamp>) {
        let fence_by = fence_by.map_or(NEVER, Timestamp::as_millis);
        self.fence_by.store(fence_by, Ordering::Release);
    }

    fn is_overdue(&self, now: Timestamp) -> bool {
        now.as_millis() >= self.fence_by.load(Ordering::Acquire)
    }

    /// Watches from a thread of its own for as long as the process lives, or until `self` is all that
    /// is left of what it watches.
    ///
    /// # Errors
    /// When no thread can be started.
    pub(crate) fn start(self: &Arc<Self>) -> std::io::Result<()> {
        let watched = Arc::downgrade(self);
        std::thread::Builder::new()
            .name("watchdog".to_owned())
            .spawn(move || {
                while let Some(watchdog) = watched.upgrade() {
                    if watchdog.is_overdue(boottime()) {
                        // Not by the log: its writer may be what hangs.
                        let _ = std::io::stderr().write_all(
                            b"the lease is over and this process did not close its connections in time: aborting\n",
                        );
                        std::process::abort();
                    }
                    drop(watchdog);
                    std::thread::sleep(LOOK_EVERY);
                }
            })?;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_is_owed_and_past_its_time_is_overdue() {
        let watchdog = Watchdog::default();
        let at = Timestamp::from_millis;
        assert!(!watchdog.is_overdue(at(u64::MAX - 1)));
        watchdog.expect(Some(at(1_000)));
        assert!(!watchdog.is_overdue(at(999)));
        assert!(watchdog.is_overdue(at(1_000)));
        watchdog.expect(None);
        assert!(!watchdog.is_overdue(at(1_000)));
    }
}
