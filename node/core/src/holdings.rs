//! The teams that this node holds, and what each command of the broker does to them.
//!
//! Commands come again until they are answered, so each is idempotent; a command about an epoch
//! below the one held, or below the one that a team was taken away with, is from the past and changes
//! nothing.

use std::collections::{BTreeSet, HashMap, VecDeque};
use std::ops::Bound::{Excluded, Unbounded};
use usher_shared::id::{Label, OperationId, TeamId};
use usher_shared::link::{
    Activate, Assign, Confirm, Counted, Drain, Held, HoldState, MAX_LIST, Pace, Revoke, TeamCount, TeamEpoch,
    TeamPace, ToBroker,
};
use usher_shared::planted::{self, Bug};
use usher_shared::quantity::{Epoch, Timestamp};

/// How long the arrivals of a team that moved here are reported.
const REPORT_MS: u64 = 60_000;
/// How many teams that were taken away on this link are remembered, so that a command which comes
/// again late brings none of them back: some megabytes at most.
const MAX_TAKEN: usize = 65_536;

/// The teams of this node.
#[derive(Debug, Default)]
pub struct Holdings {
    /// By team: what is held, and what is being given up but still has connections.
    teams: HashMap<TeamId, Entry>,
    held: usize,
    taken: Taken,
    /// Held teams without a connection, longest first: each heartbeat tells of some, and must not look at all.
    empty: BTreeSet<(Timestamp, TeamId)>,
    /// The last of these that was told: the next heartbeat goes on after it.
    told_empty: Option<(Timestamp, TeamId)>,
}

/// Teams that were taken away on this link, and the epoch that they went with.
#[derive(Debug, Default)]
struct Taken {
    epochs: HashMap<TeamId, Epoch>,
    /// Oldest first.
    order: VecDeque<TeamId>,
}

impl Taken {
    fn note(&mut self, team: &TeamId, epoch: Epoch) {
        if let Some(known) = self.epochs.get_mut(team) {
            *known = (*known).max(epoch);
            return;
        }
        if self.order.len() == MAX_TAKEN
            && let Some(oldest) = self.order.pop_front()
        {
            self.epochs.remove(&oldest);
        }
        self.epochs.insert(team.clone(), epoch);
        self.order.push_back(team.clone());
    }

    /// Whether an assignment under this epoch is from before the team went.
    fn surpasses(&self, team: &TeamId, epoch: Epoch) -> bool {
        let taken = self.epochs.get(team).is_some_and(|taken| epoch <= *taken);
        taken && !planted::is(Bug::ForgetWhatWasTaken)
    }
}

impl Holdings {
    /// Shrinks what a wave of teams has left larger than it need be, down to `kept` entries.
    pub fn give_room_back(&mut self, kept: usize) {
        if self.teams.capacity() > 4 * self.teams.len() + kept {
            self.teams.shrink_to(kept);
        }
    }
}

#[derive(Debug)]
struct Entry {
    state: State,
    connections: u32,
}

#[derive(Debug)]
enum State {
    Held(Hold),
    Leaving(Leaving),
}

#[derive(Debug)]
struct Hold {
    epoch: Epoch,
    grant: String,
    state: HoldState,
    /// The last link on which the broker named the team under this epoch.
    confirmed: u64,
    /// Since when there has been no connection; means nothing while there is one.
    empty_since: Timestamp,
    report_until: Option<Timestamp>,
}

#[derive(Clone, Copy, Debug)]
struct Leaving {
    held_epoch: Epoch,
    /// The move that took the team away: its connections go at their slots.
    moved: Option<Epoch>,
    /// The revoke that took it away, or what a move had left of it: its connections go at once.
    revoked: Option<Epoch>,
}

impl Entry {
    /// Since when it is held without a connection, if so.
    fn empty_since(&self) -> Option<Timestamp> {
        match &self.state {
            State::Held(hold) if self.connections == 0 => Some(hold.empty_since),
            _ => None,
        }
    }
}

impl Hold {
    fn acts(&self, granted_on: u64) -> bool {
        self.state == HoldState::Owned && self.confirmed >= granted_on
    }
}

impl Leaving {
    /// The last command that took the team away.
    fn epoch(self) -> Epoch {
        self.moved.max(self.revoked).unwrap_or(self.held_epoch)
    }

    /// What the broker waits for when the last connection has gone.
    fn released(self, team: &TeamId) -> Vec<ToBroker> {
        let commands = [
            self.moved,
            self.revoked.filter(|revoked| self.moved != Some(*revoked)),
        ];
        commands
            .into_iter()
            .flatten()
            .map(|epoch| released(team, epoch))
            .collect()
    }
}

/// What a command asks the caller to do, in this order.
#[derive(Clone, Debug, PartialEq)]
pub enum Effect {
    /// Tell the broker.
    Say(ToBroker),
    /// Clients that wait for this team may come in.
    Open(TeamId),
    /// Give the team's connections their slots.
    Depart(Departing),
    /// Close the team's connections now: the team is elsewhere.
    Close(TeamId),
    /// So many connections of the team are on their way here.
    Expect(TeamId, u32),
    /// The connections of an operation's teams go at another pace from now on.
    Pace(Pace),
}

/// A team whose connections are to go.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Departing {
    /// The team.
    pub team: TeamId,
    /// The epoch of the move.
    pub epoch: Epoch,
    /// The operation that it goes by.
    pub operation: OperationId,
    /// Its connections here.
    pub connections: u32,
    /// Milliseconds from now to their slot.
    pub after_ms: u64,
    /// Milliseconds from now until what is left is closed.
    pub by_ms: u64,
    /// How fast they go, if the broker said so.
    pub pace: Option<TeamPace>,
    /// Why, for the client.
    pub reason: Label,
}

/// What a team is to this node, as far as a client is concerned.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Tenure {
    /// Not here.
    Absent,
    /// Here, under this epoch.
    Held(Epoch),
    /// Was here, and was taken away under this epoch.
    Leaving(Epoch),
}

/// What opening a connection means.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Opened {
    /// Nothing more.
    Quietly,
    /// The team moved here lately: report the arrival.
    Reported,
}

/// What closing a connection means.
#[derive(Clone, Debug, PartialEq)]
pub struct Closed {
    /// The epoch of the move that the connection went by.
    pub departed: Option<Epoch>,
    /// What to tell the broker when it was the last.
    pub say: Vec<ToBroker>,
}

impl Holdings {
    /// A new link is welcome: nothing that was said on the last one can come again.
    pub fn begin_link(&mut self) {
        self.taken = Taken::default();
    }

    /// The broker gives this node a team, on a link by its number.
    pub fn assign(&mut self, assign: &Assign, link: u64, now: Timestamp) -> Vec<Effect> {
        let team = &assign.team;
        let mut effects = Vec::new();
        let entry = self.teams.get_mut(team);
        let connections = entry.as_ref().map_or(0, |entry| entry.connections);
        match entry.map(|entry| &mut entry.state) {
            Some(State::Held(hold)) if assign.epoch < hold.epoch => return effects,
            Some(State::Held(hold)) if assign.epoch == hold.epoch => {
                // The same again. Once owned, a late `prepared` of the same epoch takes nothing back.
                if assign.state == HoldState::Owned {
                    hold.state = HoldState::Owned;
                }
                hold.grant.clone_from(&assign.grant);
                // Nor does it confirm what it does not say.
                if assign.state == hold.state {
                    hold.confirmed = link;
                }
            }
            None if self.taken.surpasses(team, assign.epoch) => return effects,
            // A team cannot come here by the very move that takes it away, or by an older one.
            Some(State::Leaving(leaving)) if assign.epoch <= leaving.epoch() => return effects,
            other => {
                if let Some(State::Leaving(leaving)) = other {
                    // It came back before all had gone: those that are left stay, so for the
                    // operation that took it away none is left.
                    effects.extend(leaving.released(team).into_iter().map(Effect::Say));
                    self.held += 1;
                } else if other.is_none() {
                    self.held += 1;
                }
                let hold = Hold {
                    epoch: assign.epoch,
                    grant: assign.grant.clone(),
                    state: assign.state,
                    confirmed: link,
                    empty_since: now,
                    report_until: assign.spec.moved.then(|| now.plus(REPORT_MS)),
                };
                let entry = Entry {
                    state: State::Held(hold),
                    connections,
                };
                let before = self.teams.insert(team.clone(), entry);
                let empty = before.as_ref().and_then(Entry::empty_since);
                self.keep_empty(team, empty);
            }
        }
        if assign.state == HoldState::Prepared {
            effects.push(Effect::Say(ToBroker::Prepared(named(team, assign.epoch))));
        }
        effects.push(Effect::Open(team.clone()));
        effects
    }

    /// Exclusive effects for a prepared team may start.
    pub fn activate(&mut self, activate: &Activate, link: u64) -> Vec<Effect> {
        if let Some(State::Held(hold)) = self.teams.get_mut(&activate.team).map(|entry| &mut entry.state)
            && (hold.epoch == activate.epoch || planted::is(Bug::ActivateAnyEpoch))
        {
            hold.state = HoldState::Owned;
            hold.confirmed = link;
            let expected = activate.expected.filter(|expected| *expected > 0);
            return expected
                .map(|connections| Effect::Expect(activate.team.clone(), connections))
                .into_iter()
                .collect();
        }
        Vec::new()
    }

    /// What the inventory of this link showed of these teams stays as it was.
    pub fn confirm(&mut self, confirm: &Confirm, link: u64) {
        for named in &confirm.teams {
            if let Some(State::Held(hold)) = self.teams.get_mut(&named.team).map(|entry| &mut entry.state)
                && hold.epoch == named.epoch
            {
                hold.confirmed = link;
            }
        }
    }

    /// The epoch under which exclusive effects for a team may happen, given the link on which the lease
    /// was granted that runs now. Whatever has such effects asks before each of them, and hands the
    /// epoch on with it.
    #[must_use]
    pub fn may_act(&self, team: &TeamId, granted_on: u64) -> Option<Epoch> {
        match &self.teams.get(team)?.state {
            State::Held(hold) if hold.acts(granted_on) => Some(hold.epoch),
            _ => None,
        }
    }

    /// For how many teams exclusive effects may happen.
    #[must_use]
    pub fn acting(&self, granted_on: u64) -> usize {
        let acts = |entry: &&Entry| matches!(&entry.state, State::Held(hold) if hold.acts(granted_on));
        self.teams.values().filter(acts).count()
    }

    /// The broker took teams away and gives their connections slots.
    pub fn drain(&mut self, drain: &Drain) -> Vec<Effect> {
        let mut effects = Vec::new();
        for one in &drain.moves {
            let Some(entry) = self.teams.get_mut(&one.team) else {
                self.taken.note(&one.team, one.epoch);
                effects.push(Effect::Say(yielded(&one.team, one.epoch)));
                effects.push(Effect::Say(released(&one.team, one.epoch)));
                continue;
            };
            let held_epoch = match &entry.state {
                // A team is not taken away by the epoch that it is held under.
                State::Held(hold) if hold.epoch == one.epoch => continue,
                State::Held(hold) if hold.epoch > one.epoch => {
                    // It came back since: of that move nothing is left to do.
                    effects.push(Effect::Say(yielded(&one.team, one.epoch)));
                    effects.push(Effect::Say(released(&one.team, one.epoch)));
                    continue;
                }
                State::Leaving(leaving) if leaving.moved >= Some(one.epoch) => {
                    // The same again: the slots stand, and clients are not told twice.
                    effects.push(Effect::Say(yielded(&one.team, one.epoch)));
                    continue;
                }
                State::Held(hold) => {
                    self.held -= 1;
                    hold.epoch
                }
                State::Leaving(leaving) => leaving.held_epoch,
            };
            if let Some(since) = entry.empty_since() {
                self.empty.remove(&(since, one.team.clone()));
            }
            let revoked = match &entry.state {
                State::Held(_) => None,
                State::Leaving(leaving) => leaving.revoked,
            };
            entry.state = State::Leaving(Leaving {
                held_epoch,
                moved: Some(one.epoch),
                revoked,
            });
            if entry.connections > 0 {
                // Before the answer that lets the new owner begin: it is told how many are on their way.
                effects.push(Effect::Say(counted(drain, one, entry.connections)));
            }
            effects.push(Effect::Say(yielded(&one.team, one.epoch)));
            if entry.connections == 0 {
                self.remove(&one.team);
                effects.push(Effect::Say(released(&one.team, one.epoch)));
            } else {
                effects.push(Effect::Depart(Departing {
                    team: one.team.clone(),
                    epoch: one.epoch,
                    operation: drain.operation.clone(),
                    connections: entry.connections,
                    after_ms: one.after_ms,
                    by_ms: drain.by_ms,
                    pace: drain.pace,
                    reason: drain.reason.clone(),
                }));
            }
        }
        effects
    }

    /// The broker drops everything up to and including an epoch.
    pub fn revoke(&mut self, revoke: &Revoke) -> Vec<Effect> {
        let Some(entry) = self.teams.get_mut(&revoke.team) else {
            self.taken.note(&revoke.team, revoke.epoch);
            return vec![Effect::Say(released(&revoke.team, revoke.epoch))];
        };
        let (held_epoch, moved, revoked) = match &entry.state {
            State::Held(hold) => (hold.epoch, None, None),
            State::Leaving(leaving) => (leaving.held_epoch, leaving.moved, leaving.revoked),
        };
        if held_epoch > revoke.epoch {
            // Nothing that old is left here.
            return vec![Effect::Say(released(&revoke.team, revoke.epoch))];
        }
        if matches!(entry.state, State::Held(_)) {
            self.held -= 1;
        }
        if let Some(since) = entry.empty_since() {
            self.empty.remove(&(since, revoke.team.clone()));
        }
        if entry.connections == 0 {
            self.remove(&revoke.team);
            self.taken.note(&revoke.team, revoke.epoch);
            return vec![Effect::Say(released(&revoke.team, revoke.epoch))];
        }
        entry.state = State::Leaving(Leaving {
            held_epoch,
            moved,
            revoked: revoked.max(Some(revoke.epoch)),
        });
        vec![Effect::Close(revoke.team.clone())]
    }

    /// Nothing is left of a team that was taken away.
    fn remove(&mut self, team: &TeamId) {
        if let Some(entry) = self.teams.remove(team)
            && let State::Leaving(leaving) = entry.state
        {
            self.taken.note(team, leaving.epoch());
        }
    }

    /// A connection of a held team came in.
    pub fn opened(&mut self, team: &TeamId, now: Timestamp) -> Opened {
        let Some(entry) = self.teams.get_mut(team) else {
            return Opened::Quietly;
        };
        if let Some(since) = entry.empty_since() {
            self.empty.remove(&(since, team.clone()));
        }
        entry.connections += 1;
        match &entry.state {
            State::Held(hold) if hold.report_until.is_some_and(|until| now < until) => Opened::Reported,
            _ => Opened::Quietly,
        }
    }

    /// A connection went.
    pub fn closed(&mut self, team: &TeamId, now: Timestamp) -> Closed {
        let mut closed = Closed {
            departed: None,
            say: Vec::new(),
        };
        let Some(entry) = self.teams.get_mut(team) else {
            return closed;
        };
        let before = entry.empty_since();
        entry.connections = entry.connections.saturating_sub(1);
        match &mut entry.state {
            State::Held(hold) => {
                hold.empty_since = now;
                self.keep_empty(team, before);
            }
            State::Leaving(leaving) => {
                closed.departed = leaving.moved.filter(|_| leaving.revoked.is_none());
                if entry.connections == 0 {
                    closed.say = leaving.released(team);
                    self.remove(team);
                }
            }
        }
        closed
    }

    /// Puts a team where it belongs among those without a connection; `before` is where it stood.
    fn keep_empty(&mut self, team: &TeamId, before: Option<Timestamp>) {
        if let Some(before) = before {
            self.empty.remove(&(before, team.clone()));
        }
        if let Some(since) = self.teams.get(team).and_then(Entry::empty_since) {
            self.empty.insert((since, team.clone()));
        }
    }

    /// What a team is to this node. One that has gone with its last connection is told from one that
    /// was never here: who comes with a ticket from before need not wait for it to be assigned.
    #[must_use]
    pub fn tenure(&self, team: &TeamId) -> Tenure {
        match self.teams.get(team).map(|entry| &entry.state) {
            None => match self.taken.epochs.get(team) {
                Some(taken) => Tenure::Leaving(*taken),
                None => Tenure::Absent,
            },
            Some(State::Held(hold)) => Tenure::Held(hold.epoch),
            Some(State::Leaving(leaving)) => Tenure::Leaving(leaving.epoch()),
        }
    }

    /// Whether the team is still going by exactly this move: a slot of another is void.
    #[must_use]
    pub fn is_leaving_by(&self, team: &TeamId, epoch: Epoch) -> bool {
        match self.teams.get(team).map(|entry| &entry.state) {
            Some(State::Leaving(leaving)) => leaving.moved == Some(epoch),
            _ => false,
        }
    }

    /// What to show a broker that has just welcomed this node. Teams that are leaving are not held
    /// any more, and their connections keep their slots whatever the broker knows of them.
    #[must_use]
    pub fn inventory(&self) -> Vec<Held> {
        let held = self.teams.iter().filter_map(|(team, entry)| match &entry.state {
            State::Held(hold) => Some(Held {
                team: team.clone(),
                epoch: hold.epoch,
                grant: hold.grant.clone(),
                state: hold.state,
                connections: entry.connections,
            }),
            State::Leaving(_) => None,
        });
        held.collect()
    }

    /// Up to `most` teams that have been without a connection for longer than `forget_ms`, in turn: some of them stay,
    /// and must not keep the others from being told. O(`most`).
    #[must_use]
    pub fn idle(&mut self, now: Timestamp, forget_ms: u64, most: usize) -> Vec<TeamEpoch> {
        let after = self.told_empty.take();
        let from = after.as_ref().map_or(Unbounded, Excluded);
        let idle = |(since, _): &&(Timestamp, TeamId)| now.since(*since) > forget_ms;
        let later = self.empty.range((from, Unbounded)).take_while(idle);
        let again = self.empty.iter().take_while(idle);
        let again = again.take_while(|one| after.as_ref().is_some_and(|after| *one <= after));
        let told: Vec<&(Timestamp, TeamId)> = later.chain(again).take(most).collect();
        self.told_empty = told.last().map(|last| (*last).clone());
        told.into_iter()
            .filter_map(|(_, team)| match &self.teams.get(team)?.state {
                State::Held(hold) => Some(named(team, hold.epoch)),
                State::Leaving(_) => None,
            })
            .collect()
    }

    /// The connections of each team that is held and has any, in messages of a bounded size; at least one.
    #[must_use]
    pub fn counts(&self, operation: &OperationId) -> Vec<ToBroker> {
        let connections = self
            .teams
            .values()
            .fold(0, |sum: u32, entry| sum.saturating_add(entry.connections));
        let held = self.teams.iter().filter_map(|(team, entry)| match &entry.state {
            State::Held(hold) if entry.connections > 0 => Some(TeamCount {
                team: team.clone(),
                epoch: hold.epoch,
                connections: entry.connections,
            }),
            _ => None,
        });
        let teams: Vec<TeamCount> = held.collect();
        let pages = teams.len().div_ceil(MAX_LIST).max(1);
        let mut teams = teams.into_iter();
        (1..=pages)
            .map(|page| {
                ToBroker::Counted(Counted {
                    operation: operation.clone(),
                    connections,
                    teams: teams.by_ref().take(MAX_LIST).collect(),
                    more: page < pages,
                })
            })
            .collect()
    }

    /// How many teams are held.
    #[must_use]
    pub fn held(&self) -> usize {
        self.held
    }

    /// Whether nothing is held and nothing is left to go.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.teams.is_empty()
    }
}

fn named(team: &TeamId, epoch: Epoch) -> TeamEpoch {
    TeamEpoch {
        team: team.clone(),
        epoch,
    }
}

fn counted(drain: &Drain, one: &usher_shared::link::Move, connections: u32) -> ToBroker {
    ToBroker::Counted(Counted {
        operation: drain.operation.clone(),
        connections,
        teams: vec![TeamCount {
            team: one.team.clone(),
            epoch: one.epoch,
            connections,
        }],
        more: true,
    })
}

fn yielded(team: &TeamId, epoch: Epoch) -> ToBroker {
    ToBroker::Yielded(named(team, epoch))
}

fn released(team: &TeamId, epoch: Epoch) -> ToBroker {
    ToBroker::Released(named(team, epoch))
}

#[cfg(test)]
#[path = "holdings_tests.rs"]
mod tests;
