//! Figures of nodes, teams and operations, written at each scrape from what the core sees, so that
//! the series of a node that is gone are gone too.

use std::collections::BTreeMap;
use std::fmt::{Display, Write as _};
use usher_placement::Core;
use usher_shared::quantity::Timestamp;
use usher_shared::rest::{
    BrokerState, Gate, NodeState, NodeView, OperationKind, OperationState, OperationView, StatusView,
};

const PPM: f64 = 1_000_000.0;

/// What a scrape shows of the core.
#[derive(Debug)]
pub(crate) struct Figures {
    status: StatusView,
    nodes: Vec<NodeView>,
    operations: Vec<OperationView>,
}

impl Figures {
    /// Takes them from the core.
    pub(crate) fn take(core: &Core, now: Timestamp) -> Self {
        Self {
            status: core.status(now),
            nodes: core.nodes(now),
            operations: core.operations(now),
        }
    }

    /// The figures in Prometheus' text form.
    pub(crate) fn render(&self) -> String {
        let mut page = Page::default();
        self.render_nodes(&mut page);
        self.render_trust(&mut page);
        self.render_operations(&mut page);
        let status = &self.status;
        page.gauge("usher_teams", "Teams in all");
        page.value("usher_teams", &[], count(status.teams));
        page.gauge("usher_teams_unplaced", "Teams that no node may take just now");
        page.value("usher_teams_unplaced", &[], count(status.teams_unplaced));
        page.gauge(
            "usher_imbalance_ratio",
            "The busiest ready node over the mean of the ready ones, of teams, connections or CPU; 1 is even",
        );
        let imbalance = status.imbalance;
        for (of, ppm) in [
            ("teams", imbalance.teams_ppm),
            ("connections", imbalance.connections_ppm),
            ("cpu", imbalance.cpu_ppm),
        ] {
            page.value("usher_imbalance_ratio", &[("of", of)], count(ppm) / PPM);
        }
        page.gauge(
            "usher_self_preservation",
            "1 while too many nodes are silent, and nothing is re-assigned on silence alone",
        );
        let preserving = status.state == BrokerState::SelfPreservation;
        page.value("usher_self_preservation", &[], f64::from(u8::from(preserving)));
        page.gauge(
            "usher_self_preservation_ends_in_seconds",
            "Seconds until self-preservation ends by itself; 0 while it is not on",
        );
        let ends_in_ms = status.self_preservation.map_or(0, |view| view.ends_in_ms);
        page.value(
            "usher_self_preservation_ends_in_seconds",
            &[],
            count(ends_in_ms) / 1_000.0,
        );
        page.gauge("usher_term", "The broker's term, one more at each start");
        page.value("usher_term", &[], count(status.term.get()));
        page.text
    }

    fn render_nodes(&self, page: &mut Page) {
        page.gauge("usher_nodes", "Nodes by state");
        for state in NodeState::ALL {
            let nodes = self.nodes.iter().filter(|node| node.state == state).count();
            page.value("usher_nodes", &[("state", state.as_str())], count(nodes as u64));
        }
        page.gauge("usher_node_state", "1 for the state that a node is in");
        for node in &self.nodes {
            for state in NodeState::ALL {
                let labels = [("node", node.node.as_str()), ("state", state.as_str())];
                page.value(
                    "usher_node_state",
                    &labels,
                    f64::from(u8::from(node.state == state)),
                );
            }
        }
        type Figure = fn(&NodeView) -> f64;
        let figures: [(&str, &str, Figure); 9] = [
            ("usher_node_teams", "Teams that a node owns", |node| {
                f64::from(node.teams)
            }),
            (
                "usher_node_connections",
                "Connections that a node reported",
                |node| f64::from(node.connections),
            ),
            (
                "usher_node_cpu_ratio",
                "The moving average of a node's CPU over the cores that it may use",
                |node| f64::from(node.cpu_average.get()) / f64::from(node.cores.get().max(1)),
            ),
            (
                "usher_node_score",
                "How busy a node counts as; the lowest is chosen",
                |node| count(node.score.busy_ppm) / PPM,
            ),
            (
                "usher_node_memory_bytes",
                "Resident memory that a node reported",
                |node| count(node.memory_bytes),
            ),
            (
                "usher_node_heartbeat_age_seconds",
                "Seconds since a node's last heartbeat",
                |node| count(node.heartbeat_age_ms) / 1_000.0,
            ),
            (
                "usher_node_tickets_sent",
                "Tickets given for this process of the node since the broker met it",
                |node| count(node.sent),
            ),
            (
                "usher_node_tickets_arrived",
                "Tickets shown at the node's door since it started, as it counts them",
                |node| count(node.arrived.unwrap_or(0)),
            ),
            (
                "usher_node_url_shared",
                "1 while another live node announces the same URL to clients",
                |node| f64::from(u8::from(node.same_url.is_some())),
            ),
        ];
        self.render_gates(page);
        page.gauge(
            "usher_node_memory_ratio",
            "Memory in use over the limit of a node's container, or of its machine: the nearer one",
        );
        for node in &self.nodes {
            if let Some(memory) = node.memory {
                let ratio = count(memory.used_bytes) / count(memory.limit_bytes.max(1));
                page.value("usher_node_memory_ratio", &[("node", node.node.as_str())], ratio);
            }
        }
        for (name, help, figure) in figures {
            page.gauge(name, help);
            for node in &self.nodes {
                page.value(name, &[("node", node.node.as_str())], figure(node));
            }
        }
    }

    fn render_trust(&self, page: &mut Page) {
        page.gauge(
            "usher_node_distrusted",
            "1 while a node that is heard is kept back, by why",
        );
        for node in &self.nodes {
            for (word, gate) in [("unreachable", Gate::Unreachable), ("crashing", Gate::Crashing)] {
                let is_it = node
                    .distrust
                    .as_ref()
                    .is_some_and(|distrust| distrust.gate == gate);
                let labels = [("node", node.node.as_str()), ("gate", word)];
                page.value("usher_node_distrusted", &labels, f64::from(u8::from(is_it)));
            }
        }
    }

    fn render_gates(&self, page: &mut Page) {
        page.gauge(
            "usher_node_gate",
            "1 for each gate that keeps new teams from a node",
        );
        for node in &self.nodes {
            for gate in &node.gates {
                let labels = [("node", node.node.as_str()), ("gate", gate.as_str())];
                page.value("usher_node_gate", &labels, 1);
            }
        }
    }

    fn render_operations(&self, page: &mut Page) {
        let kinds = [
            OperationKind::Drain,
            OperationKind::Shed,
            OperationKind::Failover,
            OperationKind::Relief,
        ];
        let mut remaining: BTreeMap<OperationKind, u64> = kinds.into_iter().map(|kind| (kind, 0)).collect();
        for operation in &self.operations {
            if operation.state == OperationState::Running {
                *remaining.entry(operation.kind).or_default() +=
                    u64::from(operation.teams_to_go) + u64::from(operation.teams_leaving);
            }
        }
        page.gauge(
            "usher_operation_remaining_connections",
            "Connections that running operations still have to move, by kind",
        );
        page.gauge(
            "usher_operations_waiting",
            "Running operations that wait for an operator, because what left does not arrive elsewhere",
        );
        for kind in kinds {
            let of_kind = || {
                self.operations.iter().filter(move |operation| {
                    operation.state == OperationState::Running && operation.kind == kind
                })
            };
            let labels = [("kind", kind.as_str())];
            let to_go: u64 = of_kind()
                .map(|operation| u64::from(operation.connections_to_go))
                .sum();
            page.value("usher_operation_remaining_connections", &labels, count(to_go));
            let waiting = of_kind().filter(|operation| operation.waits).count();
            page.value("usher_operations_waiting", &labels, count(waiting as u64));
        }
        page.gauge(
            "usher_operation_remaining_teams",
            "Teams that running operations still have to move, by kind",
        );
        for (kind, teams) in remaining {
            page.value(
                "usher_operation_remaining_teams",
                &[("kind", kind.as_str())],
                count(teams),
            );
        }
    }
}

/// Exact below 2^53, as every figure here is.
#[allow(clippy::cast_precision_loss)]
fn count(value: u64) -> f64 {
    value as f64
}

#[derive(Default)]
struct Page {
    text: String,
}

impl Page {
    fn gauge(&mut self, name: &str, help: &str) {
        let _ = write!(self.text, "# HELP {name} {help}\n# TYPE {name} gauge\n");
    }

    /// Labels are names of nodes and our own words: none holds a character that needs escaping.
    fn value(&mut self, name: &str, labels: &[(&str, &str)], value: impl Display) {
        self.text.push_str(name);
        for (at, (label, text)) in labels.iter().enumerate() {
            let open = if at == 0 { '{' } else { ',' };
            let _ = write!(self.text, "{open}{label}=\"{text}\"");
        }
        let close = if labels.is_empty() { "" } else { "}" };
        let _ = writeln!(self.text, "{close} {value}");
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use usher_shared::id::{BrokerId, ClusterId};
    use usher_shared::quantity::Term;
    use usher_shared::rest::Imbalance;

    fn status() -> StatusView {
        StatusView {
            cluster: ClusterId::from_bits(1),
            broker: BrokerId::from_bits(1),
            term: Term::new(3).unwrap(),
            version: String::new(),
            state: BrokerState::SelfPreservation,
            uptime_ms: 0,
            nodes: BTreeMap::new(),
            teams: 7,
            teams_unplaced: 0,
            connections: 0,
            imbalance_ppm: 1_500_000,
            imbalance: Imbalance {
                connections_ppm: 1_500_000,
                ..Imbalance::default()
            },
            operations_running: 0,
            links_refused: std::collections::BTreeMap::new(),
            self_preservation: None,
        }
    }

    #[test]
    fn every_state_and_kind_has_a_series_even_without_a_node() {
        let figures = Figures {
            status: status(),
            nodes: Vec::new(),
            operations: Vec::new(),
        };
        let page = figures.render();
        assert!(page.contains("usher_nodes{state=\"ready\"} 0\n"), "{page}");
        assert!(page.contains("usher_operation_remaining_teams{kind=\"drain\"} 0\n"));
        assert!(!page.contains("usher_node_teams{"));
        for line in [
            "usher_imbalance_ratio{of=\"teams\"} 1",
            "usher_imbalance_ratio{of=\"connections\"} 1.5",
            "usher_self_preservation 1",
            "usher_term 3",
            "usher_teams 7",
        ] {
            assert!(page.lines().any(|found| found == line), "{line} in {page}");
        }
    }
}
