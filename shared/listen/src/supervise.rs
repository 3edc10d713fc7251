//! What becomes of a process when one of its tasks ends by a bug.
//!
//! A task that dies in silence is worse than a process that ends: the rest goes on and nobody knows that a part of
//! the work is not done any more. So every task that lives as long as its process runs under one of these.

use std::time::Duration;
use tokio::time::{Instant, sleep};
use tokio_util::task::AbortOnDropHandle;

/// A task that has died so often ...
const DEATHS: usize = 3;
/// ... within this time is given up: what it meets will not go away.
const WITHIN: Duration = Duration::from_secs(60);
/// A pause before it begins again, so that it cannot spin.
const PAUSE: Duration = Duration::from_millis(100);

/// How a task ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ended {
    /// It was done, or the runtime is going away.
    ByItself,
    /// By bugs.
    Bug,
}

/// Runs what `begin` makes, and again when it ends by a panic, but not for ever. `begin` starts from what other
/// tasks see, never from what the dead one had in hand.
pub async fn restarted<F>(what: &'static str, begin: impl FnMut() -> F) -> Ended
where
    F: Future<Output = ()> + Send + 'static,
{
    restarted_within(what, WITHIN, begin).await
}

async fn restarted_within<F>(what: &'static str, within: Duration, mut begin: impl FnMut() -> F) -> Ended
where
    F: Future<Output = ()> + Send + 'static,
{
    let mut deaths: Vec<Instant> = Vec::new();
    loop {
        if once(begin()).await == Ended::ByItself {
            return Ended::ByItself;
        }
        deaths.retain(|death| death.elapsed() < within);
        deaths.push(Instant::now());
        if deaths.len() >= DEATHS {
            tracing::error!(
                what,
                deaths = DEATHS,
                "a bug ends this task again and again: it is given up"
            );
            return Ended::Bug;
        }
        tracing::error!(what, "a bug ended this task: it begins again");
        sleep(PAUSE).await;
    }
}

/// Runs a task that cannot begin again.
pub async fn once(task: impl Future<Output = ()> + Send + 'static) -> Ended {
    match AbortOnDropHandle::new(tokio::spawn(task)).await {
        Err(error) if error.is_panic() => Ended::Bug,
        Ok(()) | Err(_) => Ended::ByItself,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;
    use std::sync::atomic::{AtomicUsize, Ordering};

    #[tokio::test]
    async fn a_task_that_dies_begins_again_until_it_has_died_too_often() {
        let begun = Arc::new(AtomicUsize::new(0));
        let count = Arc::clone(&begun);
        let ended = restarted("a test", move || {
            let count = Arc::clone(&count);
            async move {
                count.fetch_add(1, Ordering::SeqCst);
                panic!("a bug");
            }
        });
        assert_eq!(ended.await, Ended::Bug);
        assert_eq!(begun.load(Ordering::SeqCst), DEATHS);
    }

    #[tokio::test]
    async fn deaths_far_apart_are_borne_and_an_end_is_an_end() {
        let begun = Arc::new(AtomicUsize::new(0));
        let count = Arc::clone(&begun);
        let within = Duration::from_millis(20);
        let ended = restarted_within("a test", within, move || {
            let count = Arc::clone(&count);
            async move {
                sleep(2 * within).await;
                assert_eq!(count.fetch_add(1, Ordering::SeqCst), 2 * DEATHS);
            }
        });
        assert_eq!(ended.await, Ended::ByItself);
        assert_eq!(begun.load(Ordering::SeqCst), 2 * DEATHS + 1);
        assert_eq!(once(async {}).await, Ended::ByItself);
    }
}
