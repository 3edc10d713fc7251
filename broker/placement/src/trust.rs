//! Do clients get to a node, and does it stay up?
//!
//! A link says that broker and node hear each other, and nothing of the way that clients take. So what is sent to
//! a node is held against what arrives there. Where several teams were sent, or came back, and nobody at all got
//! there, the node is kept for a last resort, tried again with a few teams after a while, and trusted
//! again once clients arrive. It is never shut out: the evidence is of clients, and clients can mislead.
//!
//! Who shows one sign of life from any client clears its node, so whoever has tickets and does not dial can
//! hold back a node that nobody is on, for a while, and no other.

use std::collections::BTreeMap;
use usher_shared::id::{Incarnation, NodeId, TeamId};
use usher_shared::link::Clients;
use usher_shared::planted::{self, Bug};
use usher_shared::quantity::Timestamp;
use usher_shared::rest::{Cause, DistrustView, Gate};

use crate::command::Command;
use crate::core::Core;
use crate::event::Knock;
use crate::node::Seen;
use crate::notice::{Notice, TrustChange};
use crate::score;
use crate::team::Owner;

/// How long nobody may have arrived: a dial takes up to a few seconds, a report of it one.
const PATIENCE_MS: u64 = 5_000;
/// Teams that came back with their tickets and show that nobody gets through: one may be a client with a
/// broken network of its own, and two may share it.
const CAME_BACK: usize = 3;
/// Teams that were sent and never seen, by what the broker saw at the node's URL itself.
const SENT_REFUSED: u32 = 3;
const SENT_UNKNOWN: u32 = 6;
const SENT_ANSWERED: u32 = 20;
/// With how few in a million by chance nobody would have come of so many, had they dialled as elsewhere.
const BY_CHANCE_PPM: u64 = 1_000;
/// Beyond so many it is taken that clients here ask and do not dial.
const SENT_MAX: u32 = 64;
/// How long a node that nobody gets to is left alone at first; doubled each time, up to the most.
const ALONE_MS: u64 = 10_000;
const ALONE_MAX_MS: u64 = 300_000;
/// New teams that try the way again.
const TRIAL_TEAMS: u32 = 2;
/// A node that was trusted for so long, or lived for so long, has no past.
const FORGIVEN_MS: u64 = 600_000;
/// Teams moved away in a second by clients that come back: their clients arrive elsewhere at that rate.
const MOVES_PER_S: u32 = 100;
/// A team whose own clients came back so often moves alone, where nobody else tells.
const TRIES: u32 = 3;
/// For so long it counts that a team came back: clients that cannot get in try again within seconds.
const RETURN_MS: u64 = 60_000;
/// Returns of one team within this are one.
const APART_MS: u64 = 1_000;
/// Teams whose returns are remembered of one node.
const REMEMBERED: usize = 64;
/// The second death within ten minutes keeps a node back for so long once it is up again; doubled by each more.
const CRASH_MS: u64 = 20_000;
const CRASH_MAX_MS: u64 = 600_000;
/// How soon a URL where nothing answered is looked at again, doubled up to the most: a load balancer may take a
/// while to let a new node in.
const LOOK_MS: u64 = 1_000;
const LOOK_MAX_MS: u64 = 60_000;
/// What is believed of clients before any was seen: half of what was sent is dialled, as strongly as ten say it.
const PRIOR: u64 = 10;
/// Asks and arrivals are counted in thousandths, so that they can fade.
const MILLI: u64 = 1_000;

/// What the broker saw at the URL that clients are sent to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum UrlSeen {
    /// Nobody has looked.
    #[default]
    Unknown,
    /// Something answered.
    Answered,
    /// Nothing did. It may be out of the broker's reach by design, so this alone keeps nobody away.
    Failed,
}

/// Why a node is not trusted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Evidence {
    /// So many teams came back with their tickets.
    CameBack(u32),
    /// So many teams were sent.
    Sent(u32),
}

/// What came of looking at the evidence.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Turn {
    /// It is not trusted from now on, for so many milliseconds.
    Distrusted(Evidence, u64),
    /// It is tried again.
    OnTrial,
    /// Clients arrive again.
    Trusted,
    /// It is not known whether clients get there: each that asks is looked at.
    Suspected,
    /// They do.
    Cleared,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Stage {
    #[default]
    Trusted,
    Kept {
        since: Timestamp,
        until: Timestamp,
        why: Evidence,
    },
    Trial {
        since: Timestamp,
        /// Teams that may still be placed here.
        left: u32,
        why: Evidence,
    },
}

#[derive(Clone, Copy, Debug)]
struct Return {
    first: Timestamp,
    last: Timestamp,
    tries: u32,
}

/// Who was sent or came back while nobody arrived.
#[derive(Clone, Debug, Default)]
struct Vain {
    since: Option<Timestamp>,
    last: Timestamp,
    /// Teams that were sent, as a sketch: a bit for each, by a hash.
    teams: u64,
    /// Teams that were sent in two batches, and in three.
    again: u64,
    thrice: u64,
    came_back: BTreeMap<TeamId, Return>,
}

impl Vain {
    /// Something is added; since when nobody arrived.
    fn grow(&mut self, now: Timestamp) -> Timestamp {
        self.last = now;
        *self.since.get_or_insert(now)
    }

    /// What is old says nothing of now: who came back may have gone for good, or have been the last of a day.
    fn fade(&mut self, now: Timestamp) {
        if now.since(self.last) >= FORGIVEN_MS {
            *self = Self::default();
        }
        self.came_back
            .retain(|_, known| now.since(known.last) < RETURN_MS);
    }
}

/// Deaths of a node that is off the books: a loop may be slower than they forget.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Past {
    deaths: u32,
    last: Timestamp,
}

/// How clients get to one node, and how often its process died.
#[derive(Clone, Debug, Default)]
pub(crate) struct Trust {
    /// Tickets given for this process.
    pub(crate) sent: u64,
    /// Tickets shown at its door, as it counts them.
    pub(crate) arrived: Option<u64>,
    pub(crate) url: UrlSeen,
    /// When the URL is looked at again.
    look_at: Option<Timestamp>,
    look_wait_ms: u64,
    connections: u32,
    ping_ms: u64,
    last_beat: Timestamp,
    /// When somebody was last known to have got through.
    proof: Option<Timestamp>,
    vain: Vain,
    stage: Stage,
    /// Somebody is sent here again and again, and nobody arrives: who asks is looked at one by one.
    suspect: bool,
    /// How often it was distrusted lately, and since when it is trusted again.
    level: u32,
    proofs: u32,
    trusted_since: Timestamp,
    /// In which second so many teams were moved away.
    moved: (u64, u32),
    /// Teams asked for and not seen yet, arrivals that came before the word of their asking; both in the sums.
    owed: u64,
    early: u64,
    pub(crate) asked: u64,
    pub(crate) came: u64,
    deaths: u32,
    last_death: Option<Timestamp>,
    crashing: Option<(Timestamp, Timestamp)>,
}

impl Trust {
    /// A new process has the name: what was seen of the old one's way says nothing, its deaths do.
    pub(crate) fn begin_anew(&mut self) {
        *self = Self {
            deaths: self.deaths,
            last_death: self.last_death,
            crashing: self.crashing,
            ..Self::default()
        };
    }

    /// A heartbeat: whether anybody was heard since the last.
    pub(crate) fn hear(
        &mut self,
        clients: Option<&Clients>,
        connections: u32,
        now: Timestamp,
    ) -> Option<Turn> {
        let since_last = now.since(self.last_beat);
        self.last_beat = now;
        self.connections = connections;
        let got_through = match clients {
            // An older node says nothing of its clients: that it has any is all there is.
            None => connections > 0,
            Some(clients) => {
                self.ping_ms = clients.ping_ms;
                let before = self.arrived.replace(clients.shown);
                let more = before.map_or(0, |before| clients.shown.saturating_sub(before));
                self.count_arrivals(more);
                more > 0 || clients.heard_ms.is_some_and(|heard_ms| heard_ms <= since_last)
            }
        };
        if !got_through {
            return None;
        }
        self.proof = Some(now);
        self.vain = Vain::default();
        match &mut self.stage {
            Stage::Trusted if std::mem::take(&mut self.suspect) => return Some(Turn::Cleared),
            Stage::Trusted => return None,
            Stage::Trial { left, .. } => *left = (*left).max(TRIAL_TEAMS),
            Stage::Kept { since, why, .. } => {
                self.stage = Stage::Trial {
                    since: *since,
                    left: TRIAL_TEAMS,
                    why: *why,
                };
            }
        }
        self.proofs += 1;
        // The more often it was wrong to trust it, the more it takes.
        if self.proofs < 1 << self.level.saturating_sub(1).min(3) {
            return None;
        }
        self.stage = Stage::Trusted;
        self.trusted_since = now;
        Some(Turn::Trusted)
    }

    fn count_arrivals(&mut self, more: u64) {
        let due = more.min(self.owed);
        self.owed -= due;
        self.came += due * MILLI;
        self.early = (self.early + more - due).min(u64::from(SENT_MAX));
    }

    /// Tickets were given for it in the last `over_ms`, for these teams.
    pub(crate) fn send(&mut self, tickets: u64, teams: u64, over_ms: u64, now: Timestamp) {
        self.sent += tickets;
        let distinct = u64::from(teams.count_ones());
        let seen = distinct.min(self.early);
        self.early = 0;
        self.asked += distinct * MILLI;
        self.came += seen * MILLI;
        self.owed = (self.owed + distinct - seen).min(u64::from(SENT_MAX));
        // Somebody arrived meanwhile: it may have been these.
        let proven = self.proof.is_some_and(|proof| proof >= now.minus(over_ms));
        if teams == 0 || proven {
            return;
        }
        self.vain.thrice |= self.vain.again & teams;
        self.vain.again |= self.vain.teams & teams;
        self.vain.teams |= teams;
        self.vain.grow(now);
    }

    /// A client came back with a ticket for this process, or asked once more of many times. Whether its team may go elsewhere although nothing else
    /// speaks against the node: nobody at all gets there, and it has tried again and again.
    pub(crate) fn come_back(&mut self, team: &TeamId, now: Timestamp) -> bool {
        if planted::is(Bug::KnockAtReadyIgnored) {
            return false;
        }
        let patience = self.patience_ms();
        let vain = &mut self.vain;
        let since = vain.grow(now);
        if vain.came_back.len() >= REMEMBERED && !vain.came_back.contains_key(team) {
            return false;
        }
        let entry = vain.came_back.entry(team.clone());
        let known = entry.or_insert(Return {
            first: now,
            last: now,
            tries: 0,
        });
        // Three at once are three clients.
        if known.tries == 0 || now.since(known.last) >= APART_MS {
            known.tries += 1;
            known.last = now;
        }
        known.tries >= TRIES && now.since(known.first) >= patience && now.since(since) >= patience
    }

    /// How long nobody may be heard: clients that are there answer a ping each.
    fn patience_ms(&self) -> u64 {
        let each = (3 * self.ping_ms)
            .checked_div(u64::from(self.connections))
            .unwrap_or(0);
        PATIENCE_MS.max(each.min(self.ping_ms * 3 / 2))
    }

    /// Looks at the evidence, once a second. `elsewhere` is how many in a million teams that were sent to other
    /// nodes got there.
    pub(crate) fn judge(&mut self, elsewhere: Option<u64>, now: Timestamp) -> Option<Turn> {
        self.vain.fade(now);
        if self.crashing.is_some_and(|(_, until)| now >= until) {
            self.crashing = None;
        }
        if self.stage == Stage::Trusted && self.level > 0 && now.since(self.trusted_since) >= FORGIVEN_MS {
            self.level = 0;
        }
        if let Stage::Kept { since, until, why } = self.stage {
            if now < until {
                return None;
            }
            self.try_again(since, why);
            return Some(Turn::OnTrial);
        }
        let over = self
            .vain
            .since
            .is_some_and(|since| now.since(since) >= self.patience_ms());
        if !over || planted::is(Bug::DistrustNeverBegins) {
            return None;
        }
        let Some(why) = self.evidence(elsewhere) else {
            let asked_again = self.vain.thrice > 0 && elsewhere.and_then(|ppm| self.needed(ppm)).is_some();
            let begins = asked_again && self.stage == Stage::Trusted && !self.suspect;
            self.suspect |= begins;
            return begins.then_some(Turn::Suspected);
        };
        self.suspect = false;
        self.level += 1;
        self.proofs = 0;
        let alone_ms = (ALONE_MS << (self.level - 1).min(16)).min(ALONE_MAX_MS);
        let since = match self.stage {
            Stage::Trial { since, .. } => since,
            _ => now,
        };
        self.stage = Stage::Kept {
            since,
            until: now.plus(alone_ms),
            why,
        };
        self.vain = Vain::default();
        Some(Turn::Distrusted(why, alone_ms))
    }

    fn evidence(&self, elsewhere: Option<u64>) -> Option<Evidence> {
        let on_trial = matches!(self.stage, Stage::Trial { .. });
        let came_back = self.vain.came_back.len();
        if came_back >= CAME_BACK || (on_trial && came_back > 0) {
            return Some(Evidence::CameBack(u32::try_from(came_back).unwrap_or(u32::MAX)));
        }
        let sent = self.vain.teams.count_ones();
        let needed = if on_trial { 1 } else { self.needed(elsewhere?)? };
        (sent + self.vain.again.count_ones() >= needed && sent > 0).then_some(Evidence::Sent(sent))
    }

    /// How many teams must have been sent in vain. What the broker saw at the URL itself weighs, and so does how
    /// many of those that ask dial at all: pages that only ask, checks and scripts are no reason.
    fn needed(&self, elsewhere: u64) -> Option<u32> {
        let least = match self.url {
            UrlSeen::Failed => SENT_REFUSED,
            UrlSeen::Unknown => SENT_UNKNOWN,
            UrlSeen::Answered => SENT_ANSWERED,
        };
        let misses = 1_000_000 - elsewhere.min(1_000_000);
        let (mut chance, mut teams) = (1_000_000, 0);
        while chance > BY_CHANCE_PPM {
            if teams == SENT_MAX {
                return None;
            }
            chance = chance * misses / 1_000_000;
            teams += 1;
        }
        Some(teams.max(least))
    }

    fn try_again(&mut self, since: Timestamp, why: Evidence) {
        self.vain = Vain::default();
        self.stage = Stage::Trial {
            since,
            left: TRIAL_TEAMS,
            why,
        };
    }

    /// The broker has looked at the URL. Whether it is tried with clients at once.
    pub(crate) fn see_url(&mut self, seen: UrlSeen) -> bool {
        let mended = self.url == UrlSeen::Failed && seen == UrlSeen::Answered;
        self.url = seen;
        if mended && let Stage::Kept { since, why, .. } = self.stage {
            self.try_again(since, why);
            return true;
        }
        false
    }

    /// Whether anything answers at its URL, as far as anybody has looked.
    pub(crate) fn url_answers(&self) -> Option<bool> {
        match self.url {
            UrlSeen::Unknown => None,
            UrlSeen::Answered => Some(true),
            UrlSeen::Failed => Some(false),
        }
    }

    /// A team was placed here.
    pub(crate) fn take(&mut self) {
        if let Stage::Trial { left, .. } = &mut self.stage {
            *left = left.saturating_sub(1);
        }
    }

    /// Whether a team may be moved away now for a client that cannot get here.
    pub(crate) fn may_move(&mut self, now: Timestamp) -> bool {
        let second = now.as_millis() / 1_000;
        if self.moved.0 != second {
            self.moved = (second, 0);
        }
        self.moved.1 += 1;
        self.moved.1 <= MOVES_PER_S
    }

    /// Whether clients may be sent here without asking.
    pub(crate) fn is_direct(&self) -> bool {
        self.stage == Stage::Trusted && !self.suspect
    }

    /// Whether a client that shows no ticket is taken for one that comes back.
    pub(crate) fn is_suspect(&self) -> bool {
        self.suspect
    }

    pub(crate) fn is_on_trial(&self) -> bool {
        matches!(self.stage, Stage::Trial { .. })
    }

    /// Whether it is kept from whoever asks, with or without a ticket.
    pub(crate) fn is_kept(&self) -> bool {
        matches!(self.stage, Stage::Kept { .. })
    }

    /// What keeps new teams away unless nothing else is left.
    pub(crate) fn gate(&self) -> Option<Gate> {
        match self.stage {
            Stage::Kept { .. } | Stage::Trial { left: 0, .. } => Some(Gate::Unreachable),
            _ => self.crashing.map(|_| Gate::Crashing),
        }
    }

    /// Whether it is better to stay anywhere else: nobody gets here, or a team keeps coming back from here and
    /// nobody has been heard since.
    pub(crate) fn is_doubtful(&self) -> bool {
        let in_vain = || self.vain.came_back.values().any(|known| known.tries >= TRIES);
        self.gate() == Some(Gate::Unreachable) || in_vain()
    }

    /// Its place among last resorts: one that has died again and again is up now, one out of reach serves nobody.
    pub(crate) fn rank(&self) -> u8 {
        match self.gate() {
            None => 0,
            Some(Gate::Unreachable) => 2,
            Some(_) => 1,
        }
    }

    /// Its process died. Deaths within ten minutes of each other make a loop.
    pub(crate) fn die(&mut self, now: Timestamp) {
        let again = self.last_death.is_some_and(|last| now.since(last) < FORGIVEN_MS);
        self.deaths = if again { self.deaths + 1 } else { 1 };
        self.last_death = Some(now);
    }

    /// What outlives the record of the node.
    fn past(&self, now: Timestamp) -> Option<Past> {
        let last = self.last_death.filter(|last| now.since(*last) < FORGIVEN_MS)?;
        Some(Past {
            deaths: self.deaths,
            last,
        })
    }

    fn remember(&mut self, past: Past) {
        self.deaths = past.deaths;
        self.last_death = Some(past.last);
    }

    /// It takes teams from now on. For how long it is kept back, and after how many deaths.
    pub(crate) fn come_up(&mut self, now: Timestamp) -> Option<(u64, u32)> {
        let lately = self.last_death.is_some_and(|last| now.since(last) < FORGIVEN_MS);
        if !lately || self.deaths < 2 || planted::is(Bug::CrashesForgotten) {
            return None;
        }
        let back_ms = (CRASH_MS << (self.deaths - 2).min(16)).min(CRASH_MAX_MS);
        self.crashing = Some((now, now.plus(back_ms)));
        Some((back_ms, self.deaths))
    }

    /// For people.
    pub(crate) fn view(&self, now: Timestamp) -> Option<DistrustView> {
        let (since, until, why) = match (self.stage, self.crashing) {
            (Stage::Kept { since, until, why }, _) => (since, until, why.in_words()),
            (Stage::Trial { since, why, .. }, _) => {
                let why = format!("{}; a few teams try it now", why.in_words());
                (since, now, why)
            }
            (Stage::Trusted, Some((since, until))) => {
                let why = format!(
                    "its process died {} times within ten minutes of each other",
                    self.deaths
                );
                (since, until, why)
            }
            (Stage::Trusted, None) => return None,
        };
        let gate = if self.stage == Stage::Trusted {
            Gate::Crashing
        } else {
            Gate::Unreachable
        };
        Some(DistrustView {
            gate,
            since_ms: now.since(since),
            again_in_ms: until.since(now),
            why,
        })
    }
}

impl Evidence {
    pub(crate) fn in_words(self) -> String {
        match self {
            Self::CameBack(teams) => {
                format!("clients of {teams} teams came back again, and nobody got through")
            }
            Self::Sent(teams) => {
                format!("clients of {teams} teams were sent to its URL, and nobody got through")
            }
        }
    }
}

/// How many in a million teams that were sent got through, by these sums in thousandths.
pub(crate) fn got_through_ppm(asked: u64, came: u64) -> u64 {
    let (asked, came) = (asked + PRIOR * MILLI, came + PRIOR / 2 * MILLI);
    came * 1_000_000 / asked
}

impl Core {
    /// Tickets were given for a node since the last such word, as the route table counted them.
    pub(crate) fn sent(&mut self, id: &NodeId, tickets: u64, teams: u64, over_ms: u64, now: Timestamp) {
        if let Some(node) = self.nodes.get_mut(id) {
            node.trust.send(tickets, teams, over_ms, now);
        }
    }

    /// Once a second: who is distrusted, who is tried again, whose URL is looked at again.
    pub(crate) fn tick_trust(&mut self, elapsed_ms: u64, now: Timestamp) {
        let keep = score::keep_ppm(elapsed_ms, FORGIVEN_MS).unsigned_abs();
        let (mut asked, mut came, mut heard) = (0, 0, 0_u32);
        for node in self.nodes.values_mut() {
            let trust = &mut node.trust;
            trust.asked = trust.asked * keep / 1_000_000;
            trust.came = trust.came * keep / 1_000_000;
            asked += trust.asked;
            came += trust.came;
            heard += u32::from(matches!(node.seen, Seen::Linked { .. }));
        }
        let (mut turns, mut looks) = (Vec::new(), Vec::new());
        for (id, node) in &mut self.nodes {
            if !node.is_heard() {
                continue;
            }
            let trust = &mut node.trust;
            // With nobody to compare it with, a node's own clients say how many dial, and where else would they go?
            let elsewhere = (heard > 1).then(|| got_through_ppm(asked - trust.asked, came - trust.came));
            if let Some(turn) = trust.judge(elsewhere, now) {
                turns.push((id.clone(), turn));
            }
            if trust.look_at.is_some_and(|at| at <= now) {
                looks.push(id.clone());
            }
        }
        for (id, turn) in turns {
            self.turned(&id, turn);
        }
        for id in looks {
            self.look_at_url(&id);
        }
    }

    /// The route table and whoever watches are told; the index is made anew by whoever asked.
    pub(crate) fn turned(&mut self, id: &NodeId, turn: Turn) {
        self.rekey(id);
        self.publish_node(id);
        let change = match turn {
            Turn::Distrusted(why, for_ms) => TrustChange::Distrusted {
                why: why.in_words(),
                for_ms,
            },
            Turn::OnTrial => TrustChange::OnTrial,
            // Nothing is decided yet: it only shows that asks are looked at.
            Turn::Suspected | Turn::Cleared => return,
            Turn::Trusted => {
                // As after a start: what it takes grows.
                if let Some(node) = self.nodes.get_mut(id) {
                    node.begin_young(self.placed, self.last_tick);
                }
                TrustChange::Trusted
            }
        };
        self.notice(Notice::Trust {
            node: id.clone(),
            change,
        });
    }

    /// A node's inventory is in: whether it died too often lately, and whether anything answers at its URL.
    pub(crate) fn meet(&mut self, id: &NodeId, now: Timestamp) {
        let Some(node) = self.nodes.get_mut(id) else {
            return;
        };
        if let Some((for_ms, deaths)) = node.trust.come_up(now) {
            let change = TrustChange::Crashing { deaths, for_ms };
            self.notice(Notice::Trust {
                node: id.clone(),
                change,
            });
        }
        self.look_at_url(id);
        self.note_url(id);
    }

    fn look_at_url(&mut self, id: &NodeId) {
        let Some(node) = self.nodes.get_mut(id) else {
            return;
        };
        node.trust.look_at = None;
        let (incarnation, url) = (node.incarnation(), node.hello.url.clone());
        self.command(Command::ProbeUrl {
            node: id.clone(),
            incarnation,
            url,
        });
    }

    /// What came of looking at a node's URL. A failure is told once, and looked at again and again.
    pub(crate) fn url_probed(
        &mut self,
        id: &NodeId,
        incarnation: Incarnation,
        failed: Option<String>,
        now: Timestamp,
    ) {
        let Some(node) = self
            .nodes
            .get_mut(id)
            .filter(|node| node.incarnation() == incarnation)
        else {
            return;
        };
        let trust = &mut node.trust;
        let before = trust.url;
        let seen = if failed.is_some() {
            UrlSeen::Failed
        } else {
            UrlSeen::Answered
        };
        if seen == UrlSeen::Failed {
            let wait_ms = trust.look_wait_ms.clamp(LOOK_MS, LOOK_MAX_MS);
            trust.look_wait_ms = wait_ms * 2;
            trust.look_at = Some(now.plus(wait_ms));
        }
        let tried = trust.see_url(seen);
        let url = node.hello.url.for_node(id);
        if before != seen && (before, seen) != (UrlSeen::Unknown, UrlSeen::Answered) {
            self.notice(Notice::UrlProbed {
                node: id.clone(),
                url,
                failed,
            });
        }
        if tried {
            self.turned(id, Turn::OnTrial);
        }
    }

    /// Two live nodes with one URL cannot both be right. It is told, and nothing is decided by it: which of
    /// the two it leads to is not known here.
    fn note_url(&mut self, id: &NodeId) {
        let Some(node) = self.nodes.get(id) else { return };
        let url = node.hello.url.for_node(id);
        self.urls.entry(url.clone()).or_default().insert(id.clone());
        if let Some(other) = self.same_url(id) {
            self.notice(Notice::UrlShared {
                node: id.clone(),
                other,
                url,
            });
        }
    }

    /// A node goes off the books: its deaths are kept for as long as they count.
    pub(crate) fn keep_past(&mut self, id: &NodeId, now: Timestamp) {
        self.past.retain(|_, past| now.since(past.last) < FORGIVEN_MS);
        let past = self.nodes.get(id).and_then(|node| node.trust.past(now));
        if let Some(past) = past
            && self.past.len() < self.settings.max_nodes
        {
            self.past.insert(id.clone(), past);
        }
    }

    /// A name that is on the books again.
    pub(crate) fn recall_past(&mut self, id: &NodeId) {
        if let Some(past) = self.past.remove(id)
            && let Some(node) = self.nodes.get_mut(id)
        {
            node.trust.remember(past);
        }
    }

    /// Another node that is not dead and announces the same URL.
    pub(crate) fn same_url(&self, id: &NodeId) -> Option<NodeId> {
        let own = self.nodes.get(id).filter(|node| !node.is_dead())?;
        let url = own.hello.url.for_node(id);
        let announces = |other: &&NodeId| {
            self.nodes
                .get(*other)
                .is_some_and(|node| *other != id && !node.is_dead() && node.hello.url.for_node(other) == url)
        };
        self.urls.get(&url)?.iter().find(announces).cloned()
    }

    /// A node goes off the books, or comes back with another URL.
    pub(crate) fn forget_url(&mut self, id: &NodeId) {
        let Some(node) = self.nodes.get(id) else { return };
        let url = node.hello.url.for_node(id);
        if let Some(announced) = self.urls.get_mut(&url) {
            announced.remove(id);
            if announced.is_empty() {
                self.urls.remove(&url);
            }
        }
    }

    /// Whether nobody can get to a team's node although it is heard: then its client takes it elsewhere.
    pub(crate) fn is_out_of_reach(
        &mut self,
        id: &TeamId,
        owner: &Owner,
        knocked: bool,
        now: Timestamp,
    ) -> bool {
        let Some(node) = self.nodes.get_mut(&owner.node).filter(|node| node.is_heard()) else {
            return false;
        };
        let trust = &mut node.trust;
        let alone = (knocked || trust.is_suspect()) && trust.come_back(id, now);
        alone || trust.is_kept() || (knocked && trust.is_on_trial())
    }

    /// The node that the client of a team which was forgotten meanwhile cannot get to, if it has tried so often.
    pub(crate) fn comes_in_vain_from(
        &mut self,
        id: &TeamId,
        knock: &Knock,
        now: Timestamp,
    ) -> Option<NodeId> {
        let node = self.nodes.get_mut(&knock.node)?;
        let here = node.is_heard() && node.incarnation() == knock.incarnation;
        (here && node.trust.come_back(id, now)).then(|| knock.node.clone())
    }

    /// Moves a team off a node that nobody gets to, to one that clients get to, as fast as they can arrive.
    pub(crate) fn move_within_reach(&mut self, id: &TeamId, owner: &Owner, now: Timestamp) {
        let wall_ms = self.wall_ms(now);
        let Some(team) = self.teams.get(id) else { return };
        let decision = self.choose(&team.wish(Cause::Knock, Some(&owner.node), wall_ms), now);
        if decision.node.is_none() {
            return;
        }
        let paced = self
            .nodes
            .get_mut(&owner.node)
            .is_some_and(|node| node.trust.may_move(now));
        if paced {
            self.move_now(id, Cause::Knock, None, now);
        }
    }
}
