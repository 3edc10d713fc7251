//! What is done again and again while a node serves: sampling the load, the sweep over all connections, slots.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;
use tokio::time::{Instant, timeout};
use usher_shared::clock::boottime;
use usher_shared::link::EndedBy;

use crate::connection::unfinished_goodbye;
use crate::floor::{Floor, replaced_goodbye};
use crate::load::{EVERY, Reading, Sampler};
use crate::outbox::{Swept, elapsed};

/// Samples the load each second.
pub(crate) async fn sample(floor: Arc<Floor>, mut sampler: Sampler) {
    let mut every = tokio::time::interval(EVERY);
    every.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let mut last = Instant::now();
    let mut pressure = None;
    loop {
        every.tick().await;
        let now = Instant::now();
        let reading = sampler.sample(now.duration_since(last));
        if reading.pressure != pressure {
            pressure = reading.pressure;
            tell_pressure(&reading);
        }
        last = now;
        floor.figures.cpu_now.set(reading.cpu_now.get());
        floor.figures.cpu_average.set(reading.cpu_average.get());
        *floor.load.lock() = reading;
    }
}

fn tell_pressure(reading: &Reading) {
    let used_percent = reading
        .memory
        .map(|memory| memory.used_bytes.saturating_mul(100) / memory.limit_bytes.max(1));
    match reading.pressure {
        Some(pressure) => tracing::warn!(
            used_percent,
            "under pressure, and the broker is told to send new teams elsewhere: {}",
            pressure.words()
        ),
        None => tracing::info!(used_percent, "no longer under pressure"),
    }
}

/// Advances the coarse clock and looks after idle and stuck connections. One task for all of them:
/// a timer per connection would be most of an idle connection's cost.
pub(crate) async fn sweep(floor: Arc<Floor>) {
    let ping = floor.config.ping;
    let tick = (ping / 8).clamp(Duration::from_millis(20), Duration::from_secs(1));
    let ping_ms = u32::try_from(ping.as_millis()).unwrap_or(u32::MAX);
    let message_ms = u32::try_from(floor.config.message_time.as_millis()).unwrap_or(u32::MAX);
    let mut every = tokio::time::interval(tick);
    every.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let began = Instant::now();
    let mut last = 0;
    loop {
        every.tick().await;
        // Wraps after 49 days, as the readers expect.
        #[allow(clippy::cast_possible_truncation)]
        let now = began.elapsed().as_millis() as u32;
        floor.clock.set(now);
        let mut somebody = false;
        let since_last = elapsed(now, last);
        last = now;
        let mut missed = Vec::new();
        for slice in floor.slices() {
            for outbox in slice.iter().flat_map(|roster| roster.members()) {
                somebody |= outbox.silent_ms(now) <= since_last;
                match outbox.sweep(now, ping_ms, message_ms) {
                    Swept::Fine | Swept::Stuck => {}
                    Swept::Silent => floor.figures.silent.increment(1),
                    Swept::Unfinished => {
                        floor.figures.unfinished_time.increment(1);
                        outbox.fail(unfinished_goodbye(), now);
                    }
                    Swept::Retired => outbox.close(replaced_goodbye(), now, EndedBy::Client),
                }
            }
            missed.extend(slice.into_iter().filter(|roster| roster.has_missed()));
            tokio::task::yield_now().await;
        }
        if somebody {
            floor
                .client_heard
                .store(boottime().as_millis(), Ordering::Relaxed);
        }
        #[allow(clippy::cast_precision_loss)] // A gauge.
        floor
            .figures
            .unfinished_bytes
            .set(floor.unfinished.bytes() as f64);
        floor.tidy(&missed);
    }
}

/// Closes connections at their slots.
pub(crate) async fn pace(floor: Arc<Floor>) {
    loop {
        match floor.run_slots() {
            Some(wait) => {
                let _ = timeout(wait, floor.planned.notified()).await;
            }
            None => floor.planned.notified().await,
        }
    }
}
