//! Which team leaves next, and when is an operation done?

use usher_shared::id::{OperationId, TeamId};
use usher_shared::quantity::Timestamp;
use usher_shared::rest::{OperationKind, OperationState};

use crate::core::Core;
use crate::node::Node;
use crate::notice::Notice;
use crate::operation::Operation;
use crate::returns::Verdict;

/// Teams of one operation that may be under way at once.
const UNDER_WAY_MAX: usize = 512;
/// How long a failover's report waits for connections to come back, from the last team that got a node.
const FAILOVER_REPORT_MS: u64 = 30_000;
/// With more teams still to move a record is large, and progress is written this many times less often.
const LARGE_RECORD_TEAMS: usize = 1_000;
const LARGE_RECORD_SLOWER: u64 = 10;

impl Core {
    /// Moves every running operation on.
    pub(crate) fn step_operations(&mut self, now: Timestamp) {
        self.end_late_moves(now);
        let running: Vec<OperationId> = self
            .operations
            .values()
            .filter(|operation| operation.is_running())
            .map(|operation| operation.id.clone())
            .collect();
        for id in running {
            if self
                .operations
                .get(&id)
                .is_some_and(|operation| operation.kind != OperationKind::Failover)
            {
                self.refill(&id, now);
                self.look_at_returns(&id, now);
                self.start_moves(&id, now);
            }
            self.end_if_done(&id, now);
            self.write_progress(&id, now);
        }
    }

    fn refill(&mut self, id: &OperationId, now: Timestamp) {
        let Some(operation) = self.operations.get_mut(id) else {
            return;
        };
        operation.bucket.refill(now);
        if operation.is_late(now) {
            // Late: what is left goes now, as the deadline said.
            operation.bucket.open();
        }
    }

    /// Holds an operation whose connections do not arrive, and lets it go on when they do.
    fn look_at_returns(&mut self, id: &OperationId, now: Timestamp) {
        let settings = self.settings.clone();
        let Some(operation) = self.operations.get_mut(id) else {
            return;
        };
        let stopping = self.nodes.get(&operation.node).is_some_and(|node| node.stopping);
        let late = operation.is_late(now);
        let mut verdict = operation.returns.look(operation.connections, &settings, now);
        if stopping && late {
            // The process ends whatever its clients do: those that are told to go have the better chance.
            verdict = Verdict::Go;
        }
        let (began, was_held) = (!operation.waits, operation.held);
        let parked_for = operation
            .parked
            .as_ref()
            .and_then(|team| self.teams.get(team)?.owner.as_ref());
        let shown = operation.trusted
            || late
            || parked_for
                .and_then(|owner| operation.shown.get(&owner.node))
                .is_some_and(|arrived| *arrived >= settings.shown_by);
        let lets_go = operation.parked.is_some() && shown;
        if lets_go {
            operation.parked = None;
        }
        operation.waits = matches!(verdict, Verdict::Wait { .. });
        operation.held = verdict != Verdict::Go;
        let renews = operation.renews_hold(&settings, now);
        match verdict {
            Verdict::Go if was_held => operation.detail.clear(),
            Verdict::Go => {}
            Verdict::Slow { away } => {
                operation.detail = format!("slowed: {away} connections have left and are not back yet");
            }
            Verdict::Wait { gone, back } => {
                let further = if stopping {
                    "what is left goes when the stop budget is over, because the process ends then"
                } else {
                    "drain it again to let some more go, with force to go on to the end, or undrain it"
                };
                operation.detail = format!(
                    "waiting: {gone} connections have left and {back} arrived elsewhere. Are the other nodes' URLs reachable? Then {further}"
                );
                if began {
                    let notice = Notice::OperationWaits {
                        operation: id.clone(),
                        node: operation.node.clone(),
                        gone,
                        back,
                    };
                    operation.unwritten = true;
                    self.notice(notice);
                }
            }
        }
        let held = verdict != Verdict::Go;
        if held != was_held || lets_go || renews {
            self.send_pace(id, now);
        }
    }

    fn start_moves(&mut self, id: &OperationId, now: Timestamp) {
        let Some(operation) = self.operations.get(id) else {
            return;
        };
        if operation.counting.is_some() {
            return self.say(id, "waiting for the node to count its connections");
        }
        if operation.held {
            return;
        }
        if !self.may_change_owners() {
            return self.say(id, "waiting for the nodes to report after the broker's start");
        }
        let source = self.nodes.get(&operation.node);
        if !source.is_some_and(Node::is_heard) {
            // Moving the teams of a silent node would be a failover on silence alone.
            return self.say(id, "waiting for the node to be heard again");
        }
        if operation.parked.is_some() {
            return self.say(id, "waiting for the first of a large team to arrive");
        }
        let mut after: Option<TeamId> = None;
        loop {
            let Some(operation) = self.operations.get(id) else {
                return;
            };
            let under_way = operation.preparing.len() + operation.leaving.len();
            // What sets out in this moment is not away yet, and would all be at once.
            let exposed = operation.returns.is_watched()
                && !operation.is_late(now)
                && operation.exposed() >= self.settings.away_most(operation.connections);
            if exposed {
                return;
            }
            if !operation.bucket.has_room() || operation.parked.is_some() || under_way >= UNDER_WAY_MAX {
                return;
            }
            let Some(team) = self.next_to_move(operation, after.as_ref(), now) else {
                return self.say(id, "");
            };
            let mean_milli = self
                .nodes
                .get(&operation.node)
                .map_or(0, Node::connections_per_team_milli);
            let cost = operation.cost_milli(&team, mean_milli);
            if !self.prepare_move(&team, id, now) {
                if self.give_relief_up(id) {
                    return;
                }
                return self.say(id, "waiting for a node that can take its teams");
            }
            if let Some(operation) = self.operations.get_mut(id) {
                operation.charge(&team, cost);
                operation.detail.clear();
            }
            after = Some(team);
        }
    }

    pub(crate) fn say(&mut self, id: &OperationId, detail: &str) {
        if let Some(operation) = self.operations.get_mut(id)
            && operation.detail != detail
        {
            detail.clone_into(&mut operation.detail);
        }
    }

    pub(crate) fn next_to_move(
        &self,
        operation: &Operation,
        after: Option<&TeamId>,
        now: Timestamp,
    ) -> Option<TeamId> {
        use std::ops::Bound::{Excluded, Unbounded};
        let node = self.nodes.get(&operation.node)?;
        let set = if operation.kind == OperationKind::Drain {
            &node.teams
        } else {
            &operation.chosen
        };
        let from = after.map_or(Unbounded, Excluded);
        set.range::<TeamId, _>((from, Unbounded))
            .find(|id| {
                self.teams.get(*id).is_some_and(|team| {
                    team.is_owned_by(&operation.node)
                        && team.moving.is_none()
                        && !self.is_held_here(team, &operation.node, now)
                })
            })
            .cloned()
    }

    fn end_if_done(&mut self, id: &OperationId, now: Timestamp) {
        let Some(operation) = self.operations.get(id).filter(|operation| operation.is_running()) else {
            return;
        };
        let quiet = now.since(operation.touched) >= self.settings.settle_ms;
        let detail = if operation.kind == OperationKind::Failover {
            let Some(detail) = self.failover_over(operation, quiet, now) else {
                return;
            };
            detail
        } else {
            let under_way = !operation.preparing.is_empty() || !operation.leaving.is_empty();
            let waiting = operation.counting.is_some() || self.next_to_move(operation, None, now).is_some();
            // A relief goes on while clients ask: a new one for each of them would begin with a full bucket.
            let asked_for =
                operation.kind == OperationKind::Relief && (!quiet || !operation.bucket.has_room());
            if under_way || waiting || asked_for || (operation.back < operation.gone && !quiet) {
                return;
            }
            let held = self.held_here(&operation.node, now);
            let missing = operation.gone.saturating_sub(operation.back);
            if operation.kind == OperationKind::Drain
                && let Some(operation) = self.operations.get_mut(id)
            {
                operation.keep(&held);
            }
            match self
                .operations
                .get(id)
                .map_or(0, |operation| operation.kept_count)
            {
                0 if missing == 0 => "all moved".to_owned(),
                0 => format!("all moved; {missing} connections have not come back"),
                1 => format!("not empty: team {} is pinned hard to the node and stays", held[0]),
                many => format!(
                    "not empty: {many} teams are pinned hard to the node and stay, {} among them",
                    held[0]
                ),
            }
        };
        self.end_operation(&id.clone(), OperationState::Done, detail, now);
    }

    /// How a failover ended, if it has.
    fn failover_over(&self, operation: &Operation, quiet: bool, now: Timestamp) -> Option<String> {
        let Some(died) = operation.died else {
            let heard = self.nodes.get(&operation.node).is_none_or(Node::is_heard);
            let over = heard && quiet && operation.leaving.is_empty();
            return over.then(|| {
                "the node is back; what moved meanwhile had been asked for by its clients".to_owned()
            });
        };
        let placed = operation.chosen.is_empty();
        let all_back = operation.connections_known && operation.back >= operation.connections;
        let over = now.since(died.max(operation.placed_at)) >= FAILOVER_REPORT_MS;
        if (!all_back || !placed) && !over {
            return None;
        }
        let unplaced = operation.chosen.len();
        let mut detail = operation.detail.clone();
        if !placed {
            detail.push_str(&format!(
                "; {unplaced} teams still wait for a node that can take them"
            ));
        }
        Some(detail)
    }

    fn write_progress(&mut self, id: &OperationId, now: Timestamp) {
        let Some(operation) = self
            .operations
            .get_mut(id)
            .filter(|operation| operation.is_running())
        else {
            return;
        };
        let slower = if operation.chosen.len() > LARGE_RECORD_TEAMS {
            LARGE_RECORD_SLOWER
        } else {
            1
        };
        if operation.unwritten && now.since(operation.written) >= self.settings.progress_ms * slower {
            operation.unwritten = false;
            operation.written = now;
            self.write_operation(id, now);
        }
    }
}
