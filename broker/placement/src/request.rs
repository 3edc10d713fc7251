//! What may a client's or an operator's request do?

use usher_shared::id::{Label, NodeId, TeamId};
use usher_shared::quantity::Timestamp;
use usher_shared::rest::{Cause, DrainPost, ShedPost, TeamKind};

use crate::command::{Answer, Command, Route};
use crate::core::Core;
use crate::event::{Ask, Knock, RequestId};
use crate::node::{Intent, Seen, Silence};
use crate::notice::MoveOutcome;
use crate::reconcile::Arrivals;
use crate::refusal::Refusal;
use crate::team::{Activation, Deleted, Move, Owner, Team};
use crate::warmth::Warmth;

/// The longest drain that is promised.
const DEADLINE_MAX_S: u64 = 86_400;
/// The highest rate of an operation.
const RATE_MAX: u32 = 10_000;

impl Core {
    pub(crate) fn request(&mut self, request: RequestId, ask: Ask, now: Timestamp) {
        let begins = matches!(ask, Ask::Drain { .. } | Ask::Shed { .. });
        let answer = match ask {
            Ask::Connect {
                team,
                may_create,
                region,
                knock,
            } => self.connect(&team, may_create, region, knock.as_ref(), now),
            Ask::Put { team, put } => self.put(&team, put, now),
            Ask::Patch { team, patch } => self.patch(&team, patch, now),
            Ask::Delete { team } => self.delete(&team, now),
            Ask::Cordon { node } => self.set_cordon(&node, Intent::Cordoned, now),
            Ask::Uncordon { node } => self.set_cordon(&node, Intent::Active, now),
            Ask::Drain { node, post } => self.ask_drain(&node, &post, now),
            Ask::Undrain { node } => self.ask_undrain(&node, now),
            Ask::Shed { node, post } => self.ask_shed(&node, &post, now),
            Ask::Release => {
                self.release(now);
                Ok(Answer::Done)
            }
        };
        match answer {
            // What is shown first starts from the truth.
            Ok(Answer::Operation(operation)) if begins => self.answer_when_counted(request, operation),
            answer => self.command(Command::Answer { request, answer }),
        }
    }

    fn connect(
        &mut self,
        id: &TeamId,
        may_create: bool,
        region: Option<Label>,
        knock: Option<&Knock>,
        now: Timestamp,
    ) -> Result<Answer, Refusal> {
        let Some(team) = self.teams.get(id) else {
            if !may_create {
                return Err(Refusal::UnknownTeam(id.clone()));
            }
            let team = Team {
                region,
                ..Team::new(TeamKind::Auto)
            };
            return self.create(id, team, Cause::Connect, knock, now);
        };
        match team.owner.clone() {
            None => {
                if !self.may_change_owners() || !self.place(id, Cause::Failover, now) {
                    return Err(self.why_not(id, Cause::Failover, now));
                }
            }
            Some(owner) => self.move_for_client(id, &owner, knock, now)?,
        }
        self.assigned(id, false)
    }

    /// A team stays where it is, unless its node is being emptied, or is full, or nobody gets there, or it is
    /// silent and its client has been there and come back, or the team is asked for again and again.
    fn move_for_client(
        &mut self,
        id: &TeamId,
        owner: &Owner,
        knock: Option<&Knock>,
        now: Timestamp,
    ) -> Result<(), Refusal> {
        if !self.may_change_owners() {
            return Ok(());
        }
        let asked = self.asked_in_vain(id, &owner.node, now);
        let knocked =
            knock.is_some_and(|knock| knock.node == owner.node && knock.incarnation == owner.incarnation);
        let out_of_reach = self.is_out_of_reach(id, owner, knocked, now);
        let Some(node) = self.nodes.get(&owner.node) else {
            return Ok(());
        };
        let silent = matches!(
            node.seen,
            Seen::Linked {
                silence: Silence::Missed,
                ..
            } | Seen::Unlinked { .. }
                | Seen::Expected { .. }
        );
        match &node.intent {
            // Without a target it stays, as a team does that is pinned hard to this node: the node
            // serves as long as it can.
            Intent::Draining(operation) => {
                let operation = operation.clone();
                let running = self
                    .operations
                    .get(&operation)
                    .is_some_and(crate::operation::Operation::is_running);
                if running {
                    self.move_now(id, Cause::Drain, Some(&operation), now);
                }
            }
            _ if silent && (knocked || asked) => {
                let node = owner.node.clone();
                self.move_knocked(id, &node, now);
            }
            _ if out_of_reach => self.move_within_reach(id, owner, now),
            _ if node.is_heard() && self.is_full_for(node, knocked) => {
                return self.relieve(id, &owner.node, now);
            }
            _ => {}
        }
        Ok(())
    }

    pub(crate) fn create(
        &mut self,
        id: &TeamId,
        team: Team,
        cause: Cause,
        knock: Option<&Knock>,
        now: Timestamp,
    ) -> Result<Answer, Refusal> {
        if self.teams.len() >= self.settings.max_teams {
            return Err(Refusal::TooManyTeams {
                max: self.settings.max_teams,
            });
        }
        let wall_ms = self.wall_ms(now);
        let leaving = knock.and_then(|knock| self.comes_in_vain_from(id, knock, now));
        let wish = team.wish(cause, leaving.as_ref(), wall_ms);
        let mut decision = self.choose(&wish, now);
        if decision.node.is_none() && leaving.is_some() {
            decision = self.choose(&team.wish(cause, None, wall_ms), now);
        }
        let Some(owner) = decision.node.clone().and_then(|chosen| self.owner_on(&chosen)) else {
            return Err(self.refusal(id, &wish, &decision));
        };
        decision.epoch = self.next_epoch();
        let activation = self.activation_of_new(id, now);
        self.teams.insert(
            id.clone(),
            Team {
                epoch: decision.epoch,
                activation,
                ..team
            },
        );
        self.await_activation(id, now);
        self.commit_owner(id, owner, decision);
        self.send_assign(id, Arrivals::Unreported);
        self.assigned(id, true)
    }

    pub(crate) fn why_not(&self, id: &TeamId, cause: Cause, now: Timestamp) -> Refusal {
        let wall_ms = self.wall_ms(now);
        match self.teams.get(id) {
            None => Refusal::UnknownTeam(id.clone()),
            Some(team) => {
                let leaving = team.owner.as_ref().map(|owner| &owner.node);
                let wish = team.wish(cause, leaving, wall_ms);
                let decision = self.choose(&wish, now);
                self.refusal(id, &wish, &decision)
            }
        }
    }

    pub(crate) fn assigned(&self, id: &TeamId, created: bool) -> Result<Answer, Refusal> {
        let team = self
            .teams
            .get(id)
            .ok_or_else(|| Refusal::UnknownTeam(id.clone()))?;
        match &team.owner {
            Some(owner) => {
                let route = Route {
                    node: owner.node.clone(),
                    epoch: team.epoch,
                };
                Ok(Answer::Assigned {
                    team: id.clone(),
                    route,
                    created,
                })
            }
            None => Err(Refusal::UnknownTeam(id.clone())),
        }
    }

    fn delete(&mut self, id: &TeamId, now: Timestamp) -> Result<Answer, Refusal> {
        if !self.teams.contains_key(id) {
            return Err(Refusal::UnknownTeam(id.clone()));
        }
        self.forget_team(id, now);
        Ok(Answer::Forgotten)
    }

    /// Takes a team off the books; what connections it has are sent back to the broker.
    pub(crate) fn forget_team(&mut self, id: &TeamId, now: Timestamp) {
        let leaving = match self.teams.get(id).and_then(|team| team.moving.as_ref()) {
            Some(Move::Leaving { from, .. }) => Some(from.node.clone()),
            _ => None,
        };
        self.drop_move(id, MoveOutcome::Undone, now);
        let owner = self.disown(id);
        let Some(team) = self.teams.remove(id) else { return };
        for node in owner.iter().map(|owner| &owner.node).chain(&leaving) {
            self.revoke(node, id, team.epoch);
        }
        self.leave_waiting(id, &team.activation);
        // The name may come back before whoever had it last has stopped.
        let epoch = team.epoch;
        let waits_for = match (team.activation, &owner) {
            (Activation::Owned, Some(before)) => Activation::After {
                before: before.clone(),
                since: epoch,
            },
            (waits_for, _) => waits_for,
        };
        if waits_for != Activation::Owned || owner.is_some() {
            let last = owner;
            let deleted = Deleted {
                waits_for,
                last,
                epoch,
            };
            self.deleted.insert(id.clone(), deleted);
        }
        self.unplaced.remove(id);
        for operation in self
            .operations
            .values_mut()
            .filter(|operation| operation.chosen.contains(id))
        {
            operation.chosen.remove(id);
        }
        self.forget_decisions(id);
        self.write_team(id);
        self.command(Command::Route {
            team: id.clone(),
            route: None,
        });
    }

    fn set_cordon(&mut self, id: &NodeId, intent: Intent, now: Timestamp) -> Result<Answer, Refusal> {
        let Some(node) = self.nodes.get_mut(id) else {
            return Err(Refusal::UnknownNode(id.clone()));
        };
        if node.is_draining() {
            return Err(Refusal::WrongState {
                node: id.clone(),
                state: "being drained, or drained",
                remedy: "undrain it first",
            });
        }
        if node.intent != intent {
            if intent == Intent::Active {
                node.warmth = Warmth::begin(now, self.placed);
            }
            node.intent = intent;
            self.write_node(id);
            self.rebuild_index();
        }
        Ok(Answer::Done)
    }

    fn ask_drain(&mut self, id: &NodeId, post: &DrainPost, now: Timestamp) -> Result<Answer, Refusal> {
        check_rate(post.rate_per_s)?;
        if post
            .deadline_s
            .is_some_and(|seconds| !(1..=DEADLINE_MAX_S).contains(&seconds))
        {
            return Err(Refusal::OutOfRange {
                field: "deadline_s",
                bounds: "must be from 1 to 86400",
            });
        }
        let Some(node) = self.nodes.get(id) else {
            return Err(Refusal::UnknownNode(id.clone()));
        };
        if node.is_dead() {
            return Err(Refusal::WrongState {
                node: id.clone(),
                state: "dead",
                remedy: "its teams have other nodes already",
            });
        }
        if !node.is_draining() && !post.force {
            self.fits_elsewhere(id)?;
            let held = self.held_here(id, now);
            if let Some(first) = held.first() {
                return Err(Refusal::PinnedHere {
                    node: id.clone(),
                    count: held.len(),
                    first: first.clone(),
                });
            }
        }
        let again = node.is_draining();
        let operation = self.begin_drain(id, post, now);
        if again {
            self.resume(id, post.force, now);
        }
        Ok(Answer::Operation(operation))
    }

    fn ask_undrain(&mut self, id: &NodeId, now: Timestamp) -> Result<Answer, Refusal> {
        let Some(node) = self.nodes.get(id) else {
            return Err(Refusal::UnknownNode(id.clone()));
        };
        if node.stopping {
            if let Some(node) = self.nodes.get_mut(id)
                && matches!(node.wish_before, Some(Intent::Draining(_)))
            {
                // The process goes all the same; the next one of its name takes teams.
                node.wish_before = None;
                self.write_node(id);
                return Ok(Answer::Done);
            }
            return Err(Refusal::WrongState {
                node: id.clone(),
                state: "stopping",
                remedy: "its process got SIGTERM and will be gone; start it again instead",
            });
        }
        Ok(self.undrain(id, now).map_or(Answer::Done, Answer::Operation))
    }

    fn ask_shed(&mut self, id: &NodeId, post: &ShedPost, now: Timestamp) -> Result<Answer, Refusal> {
        check_rate(post.rate_per_s)?;
        match (post.teams, post.percent) {
            (Some(teams), None) if (1..=100_000).contains(&teams) => {}
            (None, Some(percent)) if (1..=100).contains(&percent) => {}
            (Some(_), None) => {
                return Err(Refusal::OutOfRange {
                    field: "teams",
                    bounds: "must be from 1 to 100000",
                });
            }
            (None, Some(_)) => {
                return Err(Refusal::OutOfRange {
                    field: "percent",
                    bounds: "must be from 1 to 100",
                });
            }
            _ => {
                return Err(Refusal::OutOfRange {
                    field: "teams or percent",
                    bounds: "must be given, and only one of them",
                });
            }
        }
        let Some(node) = self.nodes.get(id) else {
            return Err(Refusal::UnknownNode(id.clone()));
        };
        if node.is_draining() || !node.is_linked() {
            return Err(Refusal::WrongState {
                node: id.clone(),
                state: node.state().as_str(),
                remedy: "only a node that is up and not being drained gives teams away",
            });
        }
        match self.begin_shed(id, post, now) {
            Some(operation) => Ok(Answer::Operation(operation)),
            None => Err(Refusal::UnknownNode(id.clone())),
        }
    }
}

fn check_rate(rate_per_s: Option<u32>) -> Result<(), Refusal> {
    if rate_per_s.is_some_and(|rate| !(1..=RATE_MAX).contains(&rate)) {
        return Err(Refusal::OutOfRange {
            field: "rate_per_s",
            bounds: "must be from 1 to 10000",
        });
    }
    Ok(())
}
