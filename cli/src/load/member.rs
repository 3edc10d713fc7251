//! One client of a run: it sends at its pace and checks what comes in.

use std::sync::Arc;
use std::time::Duration;
use tokio::sync::watch;
use tokio::time::{Instant, Interval, MissedTickBehavior, interval_at};

use super::ledger::Arrival;
use super::wire::Stamp;
use super::{Phase, Run};
use crate::client::session::{Application, Event, How};

/// One client of a run.
pub(super) struct Member {
    run: Arc<Run>,
    client: usize,
    team: usize,
    /// Its place in the team.
    place: usize,
    phase: watch::Receiver<Phase>,
    pace: Option<Interval>,
}

impl Member {
    pub(super) fn new(run: Arc<Run>, client: usize, team: usize, place: usize) -> Self {
        let phase = run.phase.subscribe();
        Self {
            run,
            client,
            team,
            place,
            phase,
            pace: None,
        }
    }

    fn text(&mut self, text: &str) {
        let Some(stamp) = Stamp::read(text).filter(|stamp| stamp.run == self.run.id) else {
            return;
        };
        if stamp.team != self.team {
            self.run.tally().crossed += 1;
            return;
        }
        let arrival = self
            .run
            .team(self.team)
            .receive(self.place, stamp.sender, stamp.number);
        if arrival == Arrival::Good {
            let took = self.run.now_us().saturating_sub(stamp.sent_us);
            self.run.tally().relay.saturating_record(took.max(1));
        }
    }

    fn message(&self) -> String {
        let number = self.run.team(self.team).send(self.place, self.run.now_ms());
        Stamp {
            run: self.run.id,
            team: self.team,
            sender: self.place,
            number,
            sent_us: self.run.now_us(),
        }
        .write(self.run.message_bytes)
    }
}

impl Application for Member {
    fn on(&mut self, event: Event<'_>) {
        let now_ms = self.run.now_ms();
        match event {
            Event::Connected { node, took, how } => {
                let mut tally = self.run.tally();
                if how == How::Moved {
                    tally.moved(self.client, self.team, node);
                    return;
                }
                tally.connected(self.client, self.team, node, now_ms);
                tally.connect.saturating_record(micros(took));
                if let How::Back(gap) = how {
                    tally.gap.saturating_record(micros(gap));
                }
                drop(tally);
                self.run.team(self.team).connected(self.place, now_ms);
            }
            Event::Lost(ending) => {
                let mut tally = self.run.tally();
                tally.lost(self.client, now_ms);
                tally.error(format!("lost: {}", ending.kind()));
                drop(tally);
                self.run.team(self.team).disconnected(self.place);
            }
            Event::Failed(ending) => self
                .run
                .tally()
                .error(format!("no connection: {}", ending.kind())),
            Event::Text(text) => self.text(text),
            Event::Binary(_) | Event::Control(_) | Event::Waiting(_) => {}
        }
    }

    async fn outgoing(&mut self) -> Option<String> {
        let Some(every) = self.run.every else {
            return std::future::pending().await;
        };
        loop {
            if *self.phase.borrow_and_update() != Phase::Sending {
                self.pace = None;
                // The sender of phases lives in the run, which this client holds.
                let _ = self.phase.changed().await;
                continue;
            }
            let pace = self.pace.get_or_insert_with(|| {
                // Each starts somewhere in its period, or all would send in one moment.
                let mut pace = interval_at(Instant::now() + every.mul_f64(rand::random()), every);
                pace.set_missed_tick_behavior(MissedTickBehavior::Delay);
                pace
            });
            tokio::select! {
                _ = pace.tick() => return Some(self.message()),
                _ = self.phase.changed() => {}
            }
        }
    }
}

/// At least one: the histograms begin there.
fn micros(duration: Duration) -> u64 {
    u64::try_from(duration.as_micros()).unwrap_or(u64::MAX).max(1)
}
