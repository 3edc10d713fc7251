//! What happened in the cluster between two looks at it, one line each. Pure.

use std::collections::BTreeMap;
use usher_shared::id::{Incarnation, NodeId, OperationId};
use usher_shared::rest::{
    NodeState, NodesView, OperationKind, OperationState, OperationView, OperationsView,
};

use crate::duration::for_people;
use crate::operations::progress;
use crate::table::count;

/// How often a running operation is told of.
const PROGRESS_MS: u64 = 1_000;
/// How long after a death the broker is asked more often.
const CLOSER_LOOK_MS: u64 = 5_000;
/// How often the spread is told, while it changes.
const SPREAD_MS: u64 = 5_000;

/// What is known from the looks so far.
#[derive(Debug, Default)]
pub(super) struct Watch {
    looked: bool,
    nodes: BTreeMap<NodeId, (Incarnation, NodeState)>,
    operations: BTreeMap<OperationId, Told>,
    deaths: BTreeMap<NodeId, Death>,
    spread: String,
    spread_told_ms: u64,
    broker_away: bool,
}

/// The death of a node's process, seen from outside.
#[derive(Debug)]
struct Death {
    pid: u32,
    /// When it was last seen alive: what is counted from here is an upper bound.
    alive_ms: u64,
    told: bool,
}

#[derive(Debug, Default)]
struct Told {
    owners: bool,
    ended: bool,
    line: String,
    at_ms: u64,
}

impl Watch {
    /// A node's process is dead, and was last seen alive then.
    pub(super) fn died(&mut self, node: NodeId, pid: u32, alive_ms: u64) {
        let told = false;
        self.deaths.insert(node, Death { pid, alive_ms, told });
    }

    /// The broker did not answer.
    pub(super) fn no_answer(&mut self) -> Option<String> {
        let first = !std::mem::replace(&mut self.broker_away, true);
        first.then(|| "the broker does not answer; connections stay where they are".to_owned())
    }

    /// Whether something is going on that is worth a closer look.
    pub(super) fn is_exciting(&self, now_ms: u64) -> bool {
        self.deaths
            .values()
            .any(|death| now_ms < death.alive_ms + CLOSER_LOOK_MS)
    }

    /// What changed since the last look.
    pub(super) fn look(
        &mut self,
        nodes: &NodesView,
        operations: &OperationsView,
        now_ms: u64,
    ) -> Vec<String> {
        let mut lines = Vec::new();
        if std::mem::replace(&mut self.broker_away, false) {
            lines.push("the broker answers again".to_owned());
        }
        let oldest_first = || operations.operations.iter().rev();
        let is_failover = |operation: &&OperationView| operation.kind == OperationKind::Failover;
        for operation in oldest_first().filter(is_failover) {
            lines.extend(self.failover(operation, now_ms));
        }
        for node in &nodes.nodes {
            let now = (node.incarnation, node.state);
            let before = self.nodes.insert(node.node.clone(), now);
            if let Some(before) = before {
                lines.extend(self.end_of(&node.node, before.0, now));
                lines.extend(turn(&node.node, before, now));
            } else if self.looked {
                lines.push(format!("{} joined", node.node));
            }
        }
        for operation in oldest_first().filter(|operation| !is_failover(operation)) {
            lines.extend(self.drain(operation, now_ms));
        }
        lines.extend(self.spread(nodes, now_ms));
        if !self.looked {
            // What was there at the first look is no news.
            self.looked = true;
            lines.clear();
        }
        lines
    }

    fn failover(&mut self, view: &OperationView, now_ms: u64) -> Option<String> {
        let told = self.operations.entry(view.operation.clone()).or_default();
        if told.ended {
            return None;
        }
        told.ended = view.state != OperationState::Running;
        if told.owners {
            return told.ended.then(|| format!("{}: {}", view.node, came_back(view)));
        }
        // While its node is only silent, or nobody knows what it had, it is told of at its end.
        if view.teams_to_go > 0 || (!view.connections_known && !told.ended) {
            return None;
        }
        told.owners = true;
        let death = self.deaths.get_mut(&view.node).filter(|death| !death.told);
        let (pid, after) = match death {
            Some(death) => {
                death.told = true;
                let after = for_people(now_ms.saturating_sub(death.alive_ms));
                (format!(" (pid {})", death.pid), format!(" after {after}"))
            }
            None => (String::new(), String::new()),
        };
        let owners = if view.teams == 1 {
            "team has a new owner".to_owned()
        } else {
            format!("{} teams have new owners", view.teams)
        };
        let back = if told.ended {
            format!("; {}", came_back(view))
        } else {
            String::new()
        };
        Some(format!("{}{pid} died: its {owners}{after}{back}", view.node))
    }

    /// A death that no failover told of: the node had no teams.
    fn end_of(
        &mut self,
        node: &NodeId,
        before: Incarnation,
        now: (Incarnation, NodeState),
    ) -> Option<String> {
        if now.1 != NodeState::Dead && now.0 == before {
            return None;
        }
        let death = self.deaths.get_mut(node).filter(|death| !death.told)?;
        death.told = true;
        Some(format!("{node} (pid {}) died; it had no teams", death.pid))
    }

    fn drain(&mut self, view: &OperationView, now_ms: u64) -> Option<String> {
        let told = self.operations.entry(view.operation.clone()).or_default();
        if told.ended {
            return None;
        }
        told.ended = view.state != OperationState::Running;
        if told.ended {
            return Some(ended(view));
        }
        let line = progress(view);
        if line == told.line || (!told.line.is_empty() && now_ms < told.at_ms + PROGRESS_MS) {
            return None;
        }
        told.at_ms = now_ms;
        told.line.clone_from(&line);
        Some(line)
    }

    fn spread(&mut self, nodes: &NodesView, now_ms: u64) -> Option<String> {
        let parts: Vec<String> = nodes
            .nodes
            .iter()
            .map(|node| format!("{} {}/{}", node.node, node.teams, node.connections))
            .collect();
        let spread = parts.join(", ");
        if spread == self.spread || (self.looked && now_ms < self.spread_told_ms + SPREAD_MS) {
            return None;
        }
        self.spread_told_ms = now_ms;
        self.spread.clone_from(&spread);
        Some(format!("teams/connections: {spread}"))
    }
}

fn came_back(view: &OperationView) -> String {
    match view.connections {
        _ if !view.connections_known => format!(
            "{} came back, and how many it had is not known",
            count(u64::from(view.connections_back), "connection")
        ),
        0 => "it had no connections".to_owned(),
        all if view.connections_back >= all => format!(
            "{} back in {}",
            if all == 1 {
                "its connection".to_owned()
            } else {
                format!("all {all} connections")
            },
            for_people(view.elapsed_ms)
        ),
        all => format!("{} of {all} connections came back", view.connections_back),
    }
}

fn ended(view: &OperationView) -> String {
    let how = match view.state {
        OperationState::Cancelled => "was cancelled after",
        OperationState::Running | OperationState::Done => "is done after",
    };
    // More can come than had left: the teams' new clients are counted with the others.
    let connections = match view.connections {
        0 => "no connections to move".to_owned(),
        all => format!(
            "{} of {all} connections are back elsewhere",
            view.connections_back.min(all)
        ),
    };
    format!(
        "{} of {} {how} {}: {} moved, {connections} (`usher operation {}`)",
        view.kind.as_str(),
        view.node,
        for_people(view.elapsed_ms),
        count(u64::from(view.teams_moved), "team"),
        view.operation
    )
}

/// What became of a node.
fn turn(
    node: &NodeId,
    (incarnation_before, before): (Incarnation, NodeState),
    (incarnation, now): (Incarnation, NodeState),
) -> Option<String> {
    if incarnation != incarnation_before {
        return Some(match now {
            NodeState::Dead => format!("{node} came back and died again"),
            _ => format!("{node} is back, as a new process"),
        });
    }
    if before == now {
        return None;
    }
    Some(match now {
        NodeState::Ready => match before {
            NodeState::Silent => format!("{node} is heard again"),
            _ => format!("{node} takes teams"),
        },
        NodeState::Joining => format!("{node} is joining"),
        NodeState::Cordoned => format!("{node} is cordoned: it takes no new teams"),
        NodeState::Draining => format!("{node} is being emptied"),
        NodeState::Drained => format!("{node} is empty"),
        NodeState::Silent => format!("{node} is silent"),
        // Told with what became of its teams.
        NodeState::Dead => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::nodes::tests::node;
    use crate::operations::tests::operation;

    fn nodes(list: &[(&str, u128, NodeState, u32)]) -> NodesView {
        NodesView {
            nodes: list
                .iter()
                .map(|(name, incarnation, state, teams)| node(name, *incarnation, *state, *teams))
                .collect(),
        }
    }

    fn none() -> OperationsView {
        OperationsView {
            operations: Vec::new(),
        }
    }

    fn one(operation: OperationView) -> OperationsView {
        OperationsView {
            operations: vec![operation],
        }
    }

    #[test]
    fn the_first_look_is_no_news_and_an_unchanged_one_neither() {
        let mut watch = Watch::default();
        let view = nodes(&[("node-1", 1, NodeState::Ready, 0)]);
        assert_eq!(watch.look(&view, &none(), 0), [""; 0]);
        assert_eq!(watch.look(&view, &none(), 500), [""; 0]);
    }

    #[test]
    fn a_death_is_told_with_what_became_of_the_teams() {
        let mut watch = Watch::default();
        let before = nodes(&[("node-1", 1, NodeState::Ready, 0)]);
        let _ = watch.look(&before, &none(), 0);
        watch.died("node-1".parse().unwrap(), 77, 1_000);
        assert!(watch.is_exciting(1_001));
        let failover = OperationView {
            teams: 7,
            teams_moved: 7,
            teams_to_go: 0,
            connections: 14,
            connections_back: 3,
            ..operation(OperationKind::Failover, OperationState::Running)
        };
        let back = nodes(&[("node-1", 2, NodeState::Ready, 0)]);
        assert_eq!(
            watch.look(&back, &one(failover.clone()), 1_400),
            [
                "node-1 (pid 77) died: its 7 teams have new owners after 400 ms",
                "node-1 is back, as a new process"
            ]
        );
        let done = OperationView {
            state: OperationState::Done,
            connections_back: 14,
            elapsed_ms: 1_250,
            ..failover
        };
        assert_eq!(
            watch.look(&back, &one(done.clone()), 2_500)[..1],
            ["node-1: all 14 connections back in 1.2 s"]
        );
        assert_eq!(watch.look(&back, &one(done), 3_000), [""; 0]);
    }

    #[test]
    fn a_death_without_teams_is_told_too() {
        let mut watch = Watch::default();
        let _ = watch.look(&nodes(&[("node-1", 1, NodeState::Ready, 0)]), &none(), 0);
        watch.died("node-1".parse().unwrap(), 77, 1_000);
        let dead = nodes(&[("node-1", 1, NodeState::Dead, 0)]);
        assert_eq!(
            watch.look(&dead, &none(), 1_100),
            ["node-1 (pid 77) died; it had no teams"]
        );
        assert_eq!(watch.look(&dead, &none(), 1_200), [""; 0]);
    }

    #[test]
    fn a_drain_is_told_each_second_and_at_its_end() {
        let mut watch = Watch::default();
        let view = nodes(&[("node-1", 1, NodeState::Draining, 0)]);
        let _ = watch.look(&view, &none(), 0);
        let running = operation(OperationKind::Drain, OperationState::Running);
        let told = watch.look(&view, &one(running.clone()), 10);
        assert!(
            told[0].starts_with("drain of node-1: 40 of 100 teams"),
            "{told:?}"
        );
        let further = OperationView {
            teams_moved: 41,
            ..running.clone()
        };
        assert_eq!(watch.look(&view, &one(further.clone()), 500), [""; 0]);
        assert_eq!(watch.look(&view, &one(further.clone()), 1_010).len(), 1);
        let done = OperationView {
            state: OperationState::Done,
            ..further
        };
        assert_eq!(
            watch.look(&view, &one(done), 1_100),
            [
                "drain of node-1 is done after 4.1 s: 41 teams moved, 780 of 2000 connections are back elsewhere (`usher operation drain-7-1`)"
            ]
        );
    }

    #[test]
    fn more_connections_than_there_were_are_not_told() {
        let mut watch = Watch::default();
        let view = nodes(&[("node-1", 1, NodeState::Ready, 0)]);
        let _ = watch.look(&view, &none(), 0);
        let shed = OperationView {
            teams_moved: 3,
            connections: 0,
            connections_back: 2,
            elapsed_ms: 4,
            ..operation(OperationKind::Shed, OperationState::Done)
        };
        let told = watch.look(&view, &one(shed), 100);
        assert!(
            told[0].contains("3 teams moved, no connections to move ("),
            "{told:?}"
        );
    }

    #[test]
    fn the_spread_is_told_now_and_then() {
        let mut watch = Watch::default();
        let _ = watch.look(&nodes(&[("node-1", 1, NodeState::Ready, 0)]), &none(), 0);
        let more = nodes(&[("node-1", 1, NodeState::Ready, 3)]);
        assert_eq!(watch.look(&more, &none(), 1_000), [""; 0]);
        assert_eq!(
            watch.look(&more, &none(), 5_000),
            ["teams/connections: node-1 3/6"]
        );
    }

    #[test]
    fn a_broker_that_is_away_is_told_once() {
        let mut watch = Watch::default();
        let view = nodes(&[("node-1", 1, NodeState::Ready, 0)]);
        let _ = watch.look(&view, &none(), 0);
        assert!(watch.no_answer().is_some() && watch.no_answer().is_none());
        assert_eq!(watch.look(&view, &none(), 10), ["the broker answers again"]);
    }
}
