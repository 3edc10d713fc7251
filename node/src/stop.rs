//! How the process leaves: signals, the wait until nothing is left, the last closes. When is decided in
//! [`usher_node_core::stopping`].

use std::time::Duration;
use tokio::signal::unix::{SignalKind, signal};
use tokio::time::{Instant, sleep_until, timeout_at};
use tokio_util::sync::CancellationToken;
use usher_node_core::mandate::Link;
use usher_node_core::stopping::{Step, Stopping, spread_ms};
use usher_shared::frame::CloseCode;
use usher_shared::link::EndedBy;
use usher_shared::quantity::Timestamp;

use crate::NodeError;
use crate::floor::{Floor, jitter};
use crate::outbox::Goodbye;

/// The first signal stops, the second hastens it.
pub(crate) fn signals(
    stop: CancellationToken,
    hasten: CancellationToken,
) -> Result<impl Future<Output = ()>, NodeError> {
    let mut terminate = signal(SignalKind::terminate()).map_err(NodeError::Signals)?;
    let mut interrupt = signal(SignalKind::interrupt()).map_err(NodeError::Signals)?;
    let mut quit = signal(SignalKind::quit()).map_err(NodeError::Signals)?;
    Ok(async move {
        for token in [stop, hasten] {
            tokio::select! {
                _ = terminate.recv() => {}
                _ = interrupt.recv() => {}
                _ = quit.recv() => {}
            }
            token.cancel();
        }
    })
}

/// Serves on until nothing is left, the budget is over, or `hasten`; then closes what is left. Returns by
/// when everything else must have ended, too.
pub(crate) async fn wind_down(floor: &Floor, hasten: &CancellationToken) -> Instant {
    let budget = floor.config.stop_budget;
    let began = Instant::now();
    floor.stopping.send_replace(Some(began + budget));
    let served = !floor.state.lock().mandate.holdings.is_empty();
    let budget_s = budget.as_secs_f32();
    if floor.state.lock().mandate.link() == Link::Down {
        tracing::info!(
            budget_s,
            "stopping, without a broker: serving on until the budget is over"
        );
    } else {
        tracing::info!(budget_s, "stopping: asked the broker to drain this node");
    }
    let now = || Timestamp::from_millis(millis(began.elapsed()));
    let at = |moment: Timestamp| began + Duration::from_millis(moment.as_millis());
    let mut stopping = Stopping::begin(millis(budget), served, now());
    let mut hastened = false;
    loop {
        let (connections, teams) = {
            let state = floor.state.lock();
            (state.connections, state.mandate.holdings.held())
        };
        match stopping.step(connections, teams, now()) {
            Step::Gone => return at(stopping.until()),
            Step::CloseAll { .. } => {
                tracing::warn!(connections, "the stop budget is over: closing what is left");
                part_with_everybody(floor, at(stopping.until())).await;
                return at(stopping.until());
            }
            Step::Wait { until } => tokio::select! {
                () = floor.gone.notified() => {}
                () = sleep_until(at(until)) => {}
                () = hasten.cancelled(), if !hastened => {
                    hastened = true;
                    stopping.hasten(now());
                }
            },
        }
    }
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

/// Closes what is left, so that it comes back spread in time.
pub(crate) async fn part_with_everybody(floor: &Floor, until: Instant) {
    let left = floor.everybody();
    let spread_ms = spread_ms(left.len() as u64);
    for member in left {
        let goodbye = Goodbye::retry(CloseCode::Restart, "stopping", jitter(spread_ms));
        member.close(goodbye, floor.clock.now(), EndedBy::Deadline);
    }
    let closed = async {
        while floor.state.lock().connections > 0 {
            floor.gone.notified().await;
        }
    };
    if timeout_at(until, closed).await.is_err() {
        tracing::warn!(
            connections = floor.state.lock().connections,
            "clients that did not answer a Close within the stop budget were cut"
        );
    }
}
