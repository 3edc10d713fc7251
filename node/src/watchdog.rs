//! Ends a process that owes its pool an end and is too frozen to bring it about.
//!
//! In a pool that fences, every connection must be closed by the time the broker may give the teams
//! to others. The runtime does that; a thread outside it makes sure. It counts on no lock and no task
//! of the runtime: when the time has come and nobody has said that the fencing is done, it aborts the
//! process, and the kernel closes the sockets.

use std::fs::File;
use std::io::Write as _;
use std::os::fd::AsFd as _;
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
        let words = std::io::stderr().as_fd().try_clone_to_owned().map(File::from);
        let mut last_words = words.ok().map(LastWords::new).transpose()?;
        std::thread::Builder::new()
            .name("watchdog".to_owned())
            .spawn(move || {
                while let Some(watchdog) = watched.upgrade() {
                    if watchdog.is_overdue(boottime()) {
                        if let Some(last_words) = &mut last_words {
                            last_words.say();
                        }
                        std::process::abort();
                    }
                    drop(watchdog);
                    std::thread::sleep(LOOK_EVERY);
                }
            })?;
        Ok(())
    }
}

/// How long the last words may take: who reads them may be what hangs, and the abort must not wait for it.
const LAST_WORDS_WITHIN: Duration = Duration::from_millis(50);

/// A thread that waits to say why the process aborts. It is started while threads can still be started.
struct LastWords {
    speak: std::sync::mpsc::SyncSender<()>,
    said: std::sync::mpsc::Receiver<()>,
}

impl LastWords {
    fn new(mut to: File) -> std::io::Result<Self> {
        let (speak, told) = std::sync::mpsc::sync_channel(1);
        let (done, said) = std::sync::mpsc::sync_channel(1);
        std::thread::Builder::new()
            .name("last-words".to_owned())
            .spawn(move || {
                if told.recv().is_ok() {
                    let _ = to.write_all(
                    b"the lease is over and this process did not close its connections in time: aborting\n",
                );
                    let _ = done.send(());
                }
            })?;
        Ok(Self { speak, said })
    }

    fn say(&mut self) {
        let _ = self.speak.try_send(());
        let _ = self.said.recv_timeout(LAST_WORDS_WITHIN);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_words_do_not_wait_for_a_reader_that_stands_still() {
        let (reads, writes) = std::io::pipe().unwrap();
        let mut full = writes.try_clone().unwrap();
        std::thread::spawn(move || while full.write_all(&[b'x'; 4_096]).is_ok() {});
        std::thread::sleep(Duration::from_millis(50));
        let mut words = LastWords::new(File::from(std::os::fd::OwnedFd::from(writes))).unwrap();
        let (done, said) = std::sync::mpsc::channel();
        std::thread::spawn(move || {
            words.say();
            let _ = done.send(());
        });
        assert!(said.recv_timeout(Duration::from_secs(20)).is_ok());
        drop(reads);
    }

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
