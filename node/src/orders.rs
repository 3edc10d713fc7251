//! What the broker's messages do to the floor.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::sync::atomic::Ordering;
use tokio_tungstenite::tungstenite::Message;
use usher_shared::clock::{boottime, wall_ms};
use usher_shared::frame::{CloseCode, Control};
use usher_shared::id::TeamId;
use usher_shared::link::{
    Clients, EndedBy, Heartbeat, HotTeam, Inventory, LargeTeam, MAX_HOT, MAX_IDLE, MAX_LARGE, MAX_LIST,
    ToBroker, ToNode, Welcome,
};
use usher_shared::quantity::Timestamp;
use usher_shared::way::{LocationForm, split_scheme};

use crate::floor::{Broker, Floor, State, jitter};
use crate::outbox::{Goodbye, Outbox, Speaks};
use crate::send_back::Target;
use usher_node_core::authority::Disobey;
use usher_node_core::holdings::{Departing, Effect};
use usher_node_core::mandate::{Link, Unheeded};
use usher_node_core::pacing::{Slot, Who};

/// Clients of a team that is elsewhere come back within this time, not all at once.
const ELSEWHERE_MS: u64 = 2_000;
/// A slot is paced already; this only keeps team mates from knocking in the same millisecond.
const SLOT_RETRY_MS: u64 = 100;
/// Members of a large team that go in one slot come back at so many a second; nodes have taken more.
const TOGETHER_PER_S: u64 = 4_000;

/// The lease lapsed while the link stayed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Lapsed;

impl Floor {
    /// A broker welcomed this node: remembers it, and returns the inventory to send, in pages.
    pub(crate) fn welcome(&self, welcome: Welcome) -> Result<Vec<ToBroker>, Disobey> {
        let mut state = self.state.lock();
        let inventory = state.mandate.welcome(&welcome)?;
        let public_url = welcome.public_url.trim_end_matches('/').to_owned();
        if split_scheme(&public_url).is_none() {
            tracing::error!(%public_url, "the broker's public URL is not http:// or https://: set --public-url there");
        }
        state.broker = Some(std::sync::Arc::new(Broker {
            public_url,
            keys: welcome.ticket_keys,
            forget_ms: welcome.forget_ms,
        }));
        state.unwanted = None;
        self.figures.link_up.set(1);
        Ok(pages(inventory))
    }

    /// The link ended.
    pub(crate) fn link_ended(&self) {
        let mut state = self.state.lock();
        state.mandate.link_ended();
        state.outgoing.forget_answers();
        self.figures.link_up.set(0);
    }

    /// Obeys one message of the broker that welcomed this node.
    ///
    /// # Errors
    /// [`Lapsed`] when the link is to be begun anew.
    pub(crate) fn obey(&self, message: ToNode) -> Result<(), Lapsed> {
        let mut state = self.state.lock();
        let obeyed = state.mandate.obey(message, boottime());
        self.fence_by(&state);
        let effects = match obeyed {
            Ok(effects) => effects,
            Err(Unheeded::Lapsed) => return Err(Lapsed),
            Err(why @ Unheeded::OldTerm(_)) => {
                self.figures.link_stale.increment(1);
                tracing::warn!(%why, "a message of the broker was not obeyed");
                return Ok(());
            }
            Err(Unheeded::Unknown) => {
                self.figures.link_unknown.increment(1);
                return Ok(());
            }
        };
        for effect in effects {
            self.carry_out(&mut state, effect);
        }
        if state.mandate.link() == Link::Up {
            state.was_ready = true;
        }
        self.figures
            .teams
            .set(u32::try_from(state.mandate.holdings.held()).unwrap_or(u32::MAX));
        let emptied = state.mandate.holdings.is_empty();
        drop(state);
        if emptied {
            self.gone.notify_one();
        }
        Ok(())
    }

    fn carry_out(&self, state: &mut State, effect: Effect) {
        match effect {
            Effect::Say(message) => {
                state.outgoing.say(message);
                self.outgoing.notify_one();
            }
            Effect::Open(team) => state.open(&team),
            Effect::Depart(departing) => self.depart(state, &departing),
            Effect::Expect(team, connections) => self.expect(state, &team, connections),
            Effect::Pace(pace) => {
                state.pacer.change(&pace, boottime());
                self.planned.notify_one();
            }
            Effect::Close(team) => {
                for member in members(state, &team) {
                    let goodbye = Goodbye::retry(CloseCode::Elsewhere, "elsewhere", jitter(ELSEWHERE_MS));
                    member.close(goodbye, self.clock.now(), EndedBy::Client);
                }
            }
        }
    }

    fn depart(&self, state: &mut State, departing: &Departing) {
        state.pacer.plan(departing, boottime(), rand::random());
        for member in members(state, &departing.team) {
            // It may have been told by an earlier move, after which the team came back.
            member.set_told(false);
        }
        state
            .reasons
            .insert(departing.operation.clone(), departing.reason.clone());
        self.planned.notify_one();
    }

    /// Lets those go whose slots are due; when the next one is.
    pub(crate) fn run_slots(&self) -> Option<std::time::Duration> {
        let mut state = self.state.lock();
        let now = boottime();
        while let Some(slot) = state.pacer.pop(now) {
            if state.mandate.holdings.is_leaving_by(&slot.team, slot.epoch) {
                self.run_slot(&mut state, slot, now);
            }
        }
        let Some(next) = state.pacer.next_due() else {
            state.reasons.clear();
            return None;
        };
        Some(std::time::Duration::from_millis(next.since(boottime())))
    }

    fn run_slot(&self, state: &mut State, slot: Slot, now: Timestamp) {
        let members = members(state, &slot.team);
        let many = match slot.who {
            Who::Next(many) => usize::try_from(many).unwrap_or(usize::MAX),
            Who::All => {
                for member in members.iter().filter(|member| member.is_open()) {
                    let goodbye = Goodbye::retry(CloseCode::Restart, "moved", jitter(SLOT_RETRY_MS));
                    member.close(goodbye, self.clock.now(), EndedBy::Deadline);
                }
                return;
            }
        };
        let staying: Vec<_> = members.iter().filter(|member| member.stays()).collect();
        let going = staying.len().min(many);
        let broker = state.broker.as_ref();
        let connect = broker.and_then(|broker| Target::connect(&broker.public_url, &slot.team, "", None));
        // Many that go together still come one after another.
        let within_ms = SLOT_RETRY_MS.max(going as u64 * 1_000 / TOGETHER_PER_S);
        for (at, member) in staying.iter().take(going).enumerate() {
            member.set_told(true);
            match (&connect, member.speaks) {
                (Some(connect), Speaks::Usher) => {
                    let told = Control::Move {
                        // Told on a WebSocket, to be opened as one: few libraries take `http` for that.
                        url: format!("{}?from={}", connect.url(LocationForm::Ws), member.id),
                        after_ms: at as u64 * 1_000 / TOGETHER_PER_S,
                        by_ms: slot.by.since(now),
                        reason: state
                            .reasons
                            .get(&slot.operation)
                            .map_or_else(String::new, ToString::to_string),
                    };
                    let told = Message::text(told.to_text());
                    let _ = member.push(told, self.config.queue_bytes, self.clock.now());
                }
                _ => {
                    let goodbye = Goodbye::retry(CloseCode::Restart, "moved", jitter(within_ms));
                    member.close(goodbye, self.clock.now(), EndedBy::Slot);
                }
            }
        }
        let left = u32::try_from(staying.len() - going).unwrap_or(u32::MAX);
        state.pacer.again(slot, left, now);
    }

    /// Heartbeat `seq`, noted as sent now.
    pub(crate) fn heartbeat(&self, seq: u64, since_last: std::time::Duration) -> ToBroker {
        let load = *self.load.lock();
        let (hot_teams, large_teams) = self.notable_teams(since_last);
        let mut state = self.state.lock();
        let now = boottime();
        state.mandate.sent(seq, now);
        let forget_ms = state.broker.as_ref().map_or(u64::MAX, |broker| broker.forget_ms);
        ToBroker::Heartbeat(Box::new(Heartbeat {
            seq,
            boot_ms: now.as_millis(),
            wall_ms: wall_ms(),
            cpu_now: load.cpu_now,
            cpu_average: load.cpu_average,
            memory_bytes: load.memory_bytes,
            memory: load.memory,
            connections: state.connections,
            teams: u32::try_from(state.mandate.holdings.held()).unwrap_or(u32::MAX),
            fds: load.fds,
            health: load.health(),
            idle_teams: state.mandate.holdings.idle(now, forget_ms, MAX_IDLE),
            hot_teams,
            large_teams,
            clients: Some(self.clients(now)),
        }))
    }

    /// What was seen of clients: the broker holds it against what it sent here.
    fn clients(&self, now: Timestamp) -> Clients {
        let heard = self.client_heard.load(Ordering::Relaxed);
        Clients {
            shown: self.shown.load(Ordering::Relaxed),
            heard_ms: (heard > 0).then(|| now.as_millis().saturating_sub(heard)),
            ping_ms: u64::try_from(self.config.ping.as_millis()).unwrap_or(u64::MAX),
        }
    }

    /// Writes the figures that are true only at the moment they are read.
    pub(crate) fn refresh_figures(&self) {
        let state = self.state.lock();
        let now = boottime();
        let remaining_ms = state.mandate.remaining_ms(now);
        let acting = u32::try_from(state.mandate.acting(now)).unwrap_or(u32::MAX);
        self.figures.acting.set(acting);
        #[allow(clippy::cast_precision_loss)] // A lease is far below 2^52 milliseconds.
        self.figures.lease_remaining.set(remaining_ms as f64 / 1000.0);
    }
}

fn members(state: &State, team: &TeamId) -> Vec<std::sync::Arc<Outbox>> {
    let roster = state.rosters.get(team);
    roster.map(|roster| roster.members()).unwrap_or_default()
}

/// The inventory in messages of a bounded size; at least one, so that the broker knows it is complete.
fn pages(held: Vec<usher_shared::link::Held>) -> Vec<ToBroker> {
    let mut held = held.into_iter().peekable();
    let mut pages = Vec::new();
    loop {
        let teams = held.by_ref().take(MAX_LIST).collect();
        let more = held.peek().is_some();
        pages.push(ToBroker::Inventory(Inventory { teams, more }));
        if !more {
            return pages;
        }
    }
}

impl Floor {
    /// The busiest teams and the largest ones.
    fn notable_teams(&self, since_last: std::time::Duration) -> (Vec<HotTeam>, Vec<LargeTeam>) {
        let window_ms = u64::try_from(since_last.as_millis()).unwrap_or(u64::MAX).max(1);
        let (mut busy, mut large) = (Top::new(MAX_HOT), Top::new(MAX_LARGE));
        for roster in self.slices().flatten() {
            let (connections, frames) = roster.activity();
            let connections = u32::try_from(connections).unwrap_or(u32::MAX);
            let frames_per_s = u64::from(frames) * 1000 / window_ms;
            if frames_per_s > 0 {
                busy.put((frames_per_s, connections, roster.team.clone()));
            }
            large.put((connections, roster.team.clone()));
        }
        let hot_teams = busy
            .into_sorted()
            .map(|(frames_per_s, connections, team)| HotTeam {
                team,
                connections,
                frames_per_s: u32::try_from(frames_per_s).unwrap_or(u32::MAX),
            });
        let large_teams = large
            .into_sorted()
            .map(|(connections, team)| LargeTeam { team, connections });
        (hot_teams.collect(), large_teams.collect())
    }
}

/// The greatest of many, without keeping the others.
struct Top<T> {
    most: usize,
    kept: BinaryHeap<Reverse<T>>,
}

impl<T: Ord> Top<T> {
    fn new(most: usize) -> Self {
        Self {
            most,
            kept: BinaryHeap::with_capacity(most + 1),
        }
    }

    fn put(&mut self, one: T) {
        self.kept.push(Reverse(one));
        if self.kept.len() > self.most {
            self.kept.pop();
        }
    }

    /// Greatest first.
    fn into_sorted(self) -> impl Iterator<Item = T> {
        self.kept.into_sorted_vec().into_iter().map(|Reverse(one)| one)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_greatest_come_first_and_no_more_of_them_than_asked_for() {
        let mut top = Top::new(3);
        for number in [4, 1, 9, 7, 2] {
            top.put(number);
        }
        assert_eq!(top.into_sorted().collect::<Vec<_>>(), [9, 7, 4]);
    }
}
