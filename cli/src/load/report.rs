//! What a run comes to, as text and as JSON.

use hdrhistogram::Histogram;
use serde::Serialize;
use std::collections::BTreeMap;
use std::fmt::Write as _;
use usher_shared::id::NodeId;

use super::{LoadArgs, Run};
use crate::duration::for_people;
use crate::table::{self, Column, count};

/// Interruptions told one by one in text.
const TOLD_MAX: usize = 10;

/// What a run comes to.
#[derive(Debug, Serialize)]
pub(super) struct Report {
    /// Connections asked for.
    connections: u32,
    /// Teams they were spread over.
    teams: u32,
    /// Connections open at the end.
    connected: usize,
    /// From the start until all were connected, in milliseconds.
    all_connected_ms: Option<u64>,
    /// Connections a second until then.
    connect_rate_per_s: Option<f64>,
    /// Teams and connections by node at the end.
    nodes: BTreeMap<NodeId, NodeShare>,
    /// Time from asking the broker to a usable connection.
    connect_ms: Quantiles,
    /// Time without a connection, of each loss that was made good.
    gap_ms: Quantiles,
    /// Time from a message's sending to its arrival.
    relay_ms: Quantiles,
    /// Moves without a gap.
    moves: u64,
    /// Times when not everybody was connected.
    interruptions: Vec<InterruptionReport>,
    /// Losses beyond the interruptions listed.
    interruptions_beyond: u64,
    messages: Messages,
    /// Clients that gave up.
    gave_up: u64,
    /// What went wrong, by kind.
    errors: BTreeMap<String, u64>,
}

#[derive(Debug, Serialize)]
struct NodeShare {
    teams: u64,
    connections: u64,
}

#[derive(Debug, Serialize)]
struct InterruptionReport {
    at_ms: u64,
    lost: u64,
    all_back_ms: Option<u64>,
}

#[derive(Debug, Default, Serialize)]
struct Messages {
    sent: u64,
    /// Deliveries that these should have made: `received` + `lost` + `missed`.
    due: u64,
    received: u64,
    lost: u64,
    missed: u64,
    doubled: u64,
    late: u64,
    echoed: u64,
    /// Messages of one team that came to another.
    crossed: u64,
}

#[derive(Debug, Serialize)]
struct Quantiles {
    count: u64,
    p50: f64,
    p90: f64,
    p99: f64,
    max: f64,
}

impl Quantiles {
    /// Of microseconds, in milliseconds.
    fn of(histogram: &Histogram<u64>) -> Self {
        let millis = |micros: u64| micros as f64 / 1_000.0;
        Self {
            count: histogram.len(),
            p50: millis(histogram.value_at_quantile(0.5)),
            p90: millis(histogram.value_at_quantile(0.9)),
            p99: millis(histogram.value_at_quantile(0.99)),
            max: millis(histogram.max()),
        }
    }
}

impl Report {
    pub(super) fn new(run: &Run, args: &LoadArgs, gave_up: u64) -> Self {
        let counts = run.counts();
        let tally = run.tally();
        let all_connected_ms = tally.all_up_ms();
        Self {
            connections: args.connections,
            teams: args.teams,
            connected: tally.connected_now(),
            all_connected_ms,
            connect_rate_per_s: all_connected_ms
                .map(|all| f64::from(args.connections) * 1_000.0 / all.max(1) as f64),
            nodes: tally
                .spread()
                .into_iter()
                .map(|(node, share)| {
                    let share = NodeShare {
                        teams: share.teams,
                        connections: share.connections,
                    };
                    (node, share)
                })
                .collect(),
            connect_ms: Quantiles::of(&tally.connect),
            gap_ms: Quantiles::of(&tally.gap),
            relay_ms: Quantiles::of(&tally.relay),
            moves: tally.moves,
            interruptions: tally
                .interruptions()
                .iter()
                .map(|one| InterruptionReport {
                    at_ms: one.began_ms,
                    lost: one.lost,
                    all_back_ms: one.all_back_ms,
                })
                .collect(),
            interruptions_beyond: tally.interruptions_beyond(),
            messages: Messages {
                sent: counts.sent,
                due: counts.due,
                received: counts.received,
                lost: counts.lost,
                missed: counts.missed,
                doubled: counts.doubled,
                late: counts.late,
                echoed: counts.echoed,
                crossed: tally.crossed,
            },
            gave_up,
            errors: tally.errors.clone(),
        }
    }

    /// Whether nothing was lost, doubled or misled, and all were connected at the end.
    pub(super) fn is_good(&self) -> bool {
        let messages = &self.messages;
        messages.lost == 0
            && messages.doubled == 0
            && messages.crossed == 0
            && self.connected == self.connections as usize
    }

    pub(super) fn render(&self) -> String {
        let mut text = format!(
            "{} of {} connected at the end, over {}",
            self.connected,
            count(u64::from(self.connections), "connection"),
            count(u64::from(self.teams), "team")
        );
        if let (Some(all), Some(rate)) = (self.all_connected_ms, self.connect_rate_per_s) {
            let _ = write!(
                text,
                "; all were up after {}, {rate:.0} a second",
                for_people(all)
            );
        }
        text.push_str("\n\n");
        text.push_str(&self.spread());
        text.push('\n');
        text.push_str(&self.times());
        let _ = writeln!(text, "\nmoves without a gap  {}", self.moves);
        text.push_str(&self.told_interruptions());
        text.push_str(&self.told_messages());
        if self.gave_up > 0 {
            let _ = writeln!(text, "gave up              {}", count(self.gave_up, "client"));
        }
        if !self.errors.is_empty() {
            text.push_str("\nwhat happened on the way:\n");
            for (kind, number) in &self.errors {
                let _ = writeln!(text, "  {number:>7}  {kind}");
            }
        }
        text
    }

    fn spread(&self) -> String {
        const COLUMNS: [Column; 3] = [
            Column::Text("NODE"),
            Column::Number("TEAMS"),
            Column::Number("CONNECTIONS"),
        ];
        let rows = self.nodes.iter().map(|(node, share)| {
            vec![
                node.to_string(),
                share.teams.to_string(),
                share.connections.to_string(),
            ]
        });
        table::render(&COLUMNS, rows)
    }

    fn times(&self) -> String {
        const COLUMNS: [Column; 6] = [
            Column::Text("MILLISECONDS"),
            Column::Number("COUNT"),
            Column::Number("P50"),
            Column::Number("P90"),
            Column::Number("P99"),
            Column::Number("MAX"),
        ];
        let named = [
            ("time to connect", &self.connect_ms),
            ("gap after a loss", &self.gap_ms),
            ("message to mate", &self.relay_ms),
        ];
        let rows = named
            .into_iter()
            .filter(|(_, times)| times.count > 0)
            .map(|(name, times)| {
                let mut row = vec![name.to_owned(), times.count.to_string()];
                row.extend([times.p50, times.p90, times.p99, times.max].map(|millis| format!("{millis:.1}")));
                row
            });
        table::render(&COLUMNS, rows)
    }

    fn told_interruptions(&self) -> String {
        let mut text = String::new();
        for one in self.interruptions.iter().take(TOLD_MAX) {
            let end = match one.all_back_ms {
                Some(all_back) => format!("all back in {}", for_people(all_back)),
                None => "not all came back".to_owned(),
            };
            let _ = writeln!(
                text,
                "interruption         {} into the run: {} lost, {end}",
                for_people(one.at_ms),
                count(one.lost, "connection")
            );
        }
        let more = self.interruptions.len().saturating_sub(TOLD_MAX);
        if more > 0 {
            let _ = writeln!(text, "                     and {more} more; --json lists them");
        }
        text
    }

    fn told_messages(&self) -> String {
        let messages = &self.messages;
        if messages.sent == 0 {
            return String::new();
        }
        let mut text = format!(
            "messages             {} sent, {} due at mates: {} received, {} lost, {} missed while somebody was away",
            messages.sent, messages.due, messages.received, messages.lost, messages.missed
        );
        for (number, what) in [
            (messages.doubled, "doubled"),
            (messages.late, "late"),
            (messages.echoed, "back to their sender"),
            (messages.crossed, "IN A WRONG TEAM"),
        ] {
            if number > 0 {
                let _ = write!(text, ", {number} {what}");
            }
        }
        text.push('\n');
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn report() -> Report {
        let times = |count| Quantiles {
            count,
            p50: 1.5,
            p90: 2.0,
            p99: 12.25,
            max: 80.0,
        };
        Report {
            connections: 4,
            teams: 2,
            connected: 4,
            all_connected_ms: Some(2_000),
            connect_rate_per_s: Some(2.0),
            nodes: BTreeMap::from([(
                "node-1".parse().unwrap(),
                NodeShare {
                    teams: 2,
                    connections: 4,
                },
            )]),
            connect_ms: times(6),
            gap_ms: times(2),
            relay_ms: times(0),
            moves: 1,
            interruptions: vec![InterruptionReport {
                at_ms: 5_000,
                lost: 2,
                all_back_ms: Some(400),
            }],
            interruptions_beyond: 0,
            messages: Messages {
                sent: 10,
                due: 10,
                received: 9,
                missed: 1,
                ..Messages::default()
            },
            gave_up: 0,
            errors: BTreeMap::from([("lost: cut: connection reset".to_owned(), 2)]),
        }
    }

    #[test]
    fn a_report_reads_in_one_go() {
        assert_eq!(
            report().render(),
            "4 of 4 connections connected at the end, over 2 teams; all were up after 2.0 s, 2 a second\n\
             \nNODE    TEAMS  CONNECTIONS\nnode-1      2            4\n\
             \nMILLISECONDS      COUNT  P50  P90   P99   MAX\n\
             time to connect       6  1.5  2.0  12.2  80.0\n\
             gap after a loss      2  1.5  2.0  12.2  80.0\n\
             \nmoves without a gap  1\n\
             interruption         5.0 s into the run: 2 connections lost, all back in 400 ms\n\
             messages             10 sent, 10 due at mates: 9 received, 0 lost, 1 missed while somebody was away\n\
             \nwhat happened on the way:\n        2  lost: cut: connection reset\n"
        );
    }

    #[test]
    fn a_run_is_good_when_nothing_was_lost_or_doubled_and_all_are_there() {
        assert!(report().is_good());
        let spoilt: [fn(&mut Report); 4] = [
            |report| report.messages.lost = 1,
            |report| report.messages.doubled = 1,
            |report| report.messages.crossed = 1,
            |report| report.connected = 3,
        ];
        for spoil in spoilt {
            let mut report = report();
            spoil(&mut report);
            assert!(!report.is_good());
        }
    }
}
