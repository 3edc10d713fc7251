//! What this node may do, and on whose word: which broker it obeys, how long its lease runs, what it
//! holds, and what it does when the lease is over.
//!
//! The order of a link: the node says hello, is welcomed, shows its inventory; the broker answers
//! with what is to change and then with what it confirms; only then does it acknowledge heartbeats.
//! So what an acknowledgement renews is what was named on its own link.

use usher_shared::id::{ClusterId, TeamId};
use usher_shared::link::{Granted, Held, MAX_LIST, ToNode, Welcome};
use usher_shared::quantity::{Epoch, Term, Timestamp};

use crate::admission::Contact;
use crate::authority::{Authority, Disobey};
use crate::holdings::{Effect, Holdings};
use crate::lapse::{Lapse, OnLapse, Step, Touch};
use crate::lease::{Lease, Renewal, Standing};

/// How the link to the broker is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Link {
    /// There is none.
    #[default]
    Down,
    /// Welcome, but the broker has not acknowledged the inventory yet.
    Welcome,
    /// A heartbeat of this link was answered.
    Up,
}

/// What this node may do.
#[derive(Debug, Default)]
pub struct Mandate {
    authority: Authority,
    lease: Lease,
    link: Link,
    lapse: Lapse,
    highest_grant: Option<Granted>,
    /// The teams, also for what clients do to them.
    pub holdings: Holdings,
}

/// Why a message of the broker was not obeyed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Unheeded {
    /// It came under a term that is over.
    #[error(transparent)]
    OldTerm(#[from] Disobey),
    /// Of a kind that this version does not know, out of its place, or beyond a bound.
    #[error("a message of an unknown kind, or out of its place")]
    Unknown,
    /// The lease lapsed while the link stayed: the link is to be begun anew.
    #[error("the lease had lapsed before the broker answered: the link is begun anew")]
    Lapsed,
}

impl Mandate {
    /// The mandate of a process that has met no broker yet.
    #[must_use]
    pub fn new(on_lapse: OnLapse) -> Self {
        Self {
            lapse: Lapse::new(on_lapse),
            ..Self::default()
        }
    }

    /// A broker welcomed this node; what to show it.
    ///
    /// # Errors
    /// [`Disobey`] when this broker is not to be obeyed.
    pub fn welcome(&mut self, welcome: &Welcome) -> Result<Vec<Held>, Disobey> {
        Lease::check(welcome.lease_ms, welcome.heartbeat_ms)?;
        self.authority
            .welcome(welcome.cluster, welcome.term, welcome.broker)?;
        self.lease.begin_link(welcome.lease_ms);
        self.holdings.begin_link();
        self.link = Link::Welcome;
        Ok(self.holdings.inventory())
    }

    /// The link ended.
    pub fn link_ended(&mut self) {
        self.link = Link::Down;
    }

    /// Obeys one message of the broker that welcomed this node.
    ///
    /// # Errors
    /// [`Unheeded`] when nothing was done.
    pub fn obey(&mut self, message: ToNode, now: Timestamp) -> Result<Vec<Effect>, Unheeded> {
        if let Some(term) = term_of(&message) {
            self.authority.command(term)?;
        }
        let link = self.lease.link();
        Ok(match message {
            ToNode::HeartbeatAck { seq, .. } => {
                match self.lease.answered(seq, now) {
                    Renewal::Renewed => self.link = Link::Up,
                    Renewal::Useless => {}
                    Renewal::Lapsed => return Err(Unheeded::Lapsed),
                }
                Vec::new()
            }
            ToNode::Assign(assign) => {
                if self
                    .highest_grant
                    .as_ref()
                    .is_none_or(|highest| assign.epoch > highest.epoch)
                {
                    self.highest_grant = Some(Granted {
                        team: assign.team.clone(),
                        epoch: assign.epoch,
                        grant: assign.grant.clone(),
                    });
                }
                self.holdings.assign(&assign, link, now)
            }
            ToNode::Activate(activate) => {
                self.holdings.activate(&activate, link);
                Vec::new()
            }
            ToNode::Confirm(confirm) if confirm.teams.len() <= MAX_LIST => {
                self.holdings.confirm(&confirm, link);
                Vec::new()
            }
            ToNode::Drain(drain) if drain.moves.len() <= MAX_LIST => self.holdings.drain(&drain),
            ToNode::Revoke(revoke) => self.holdings.revoke(&revoke),
            _ => return Err(Unheeded::Unknown),
        })
    }

    /// Heartbeat `seq` is about to be sent. Must be called before the first byte leaves.
    pub fn sent(&mut self, seq: u64, now: Timestamp) {
        self.lease.sent(seq, now);
    }

    /// The epoch under which exclusive effects for a team may happen at `now`. Asked before each of
    /// them; the epoch goes with the effect, so that whatever it reaches can refuse an older one.
    #[must_use]
    pub fn may_act(&self, team: &TeamId, now: Timestamp) -> Option<Epoch> {
        self.holdings.may_act(team, self.lease.granted_on(now)?)
    }

    /// For how many teams exclusive effects may happen at `now`.
    #[must_use]
    pub fn acting(&self, now: Timestamp) -> usize {
        let link = self.lease.granted_on(now);
        link.map_or(0, |link| self.holdings.acting(link))
    }

    /// What the end of the lease asks for at `now`, if anything.
    pub fn step(&mut self, connections: u32, now: Timestamp) -> Step {
        let touch = match (self.lease.deadline(), self.link) {
            (None, _) => Touch::Leased,
            (Some(deadline), _) if now < deadline => Touch::Leased,
            (_, Link::Down) => Touch::Lost,
            _ => Touch::Rejoining,
        };
        self.lapse.step(touch, connections, now)
    }

    /// How lapses are dealt with.
    pub fn lapse(&mut self) -> &mut Lapse {
        &mut self.lapse
    }

    /// When a process that has not fenced by then is to be ended from outside its runtime.
    #[must_use]
    pub fn fence_by(&self) -> Option<Timestamp> {
        self.lapse.fence_by(self.lease.deadline())
    }

    /// What clients with tickets are to be told of the broker.
    #[must_use]
    pub fn contact(&self, now: Timestamp) -> Contact {
        let lapsed = self.lease.standing(now) == Standing::Lapsed;
        if lapsed && self.lapse.fences() {
            Contact::Fenced
        } else if (lapsed || self.link == Link::Down) && !self.lapse.is_cut_off() {
            Contact::Lost
        } else {
            Contact::Connected
        }
    }

    /// Whether this node hears a broker of `cluster`, for a peer that does not.
    #[must_use]
    pub fn hears(&self, cluster: ClusterId, now: Timestamp) -> bool {
        self.link == Link::Up
            && self.authority.cluster() == Some(cluster)
            && self.lease.standing(now) != Standing::Lapsed
    }

    /// How the link to the broker is.
    #[must_use]
    pub fn link(&self) -> Link {
        self.link
    }

    /// The cluster, once one was met.
    #[must_use]
    pub fn cluster(&self) -> Option<ClusterId> {
        self.authority.cluster()
    }

    /// The highest term seen; zero before the first.
    #[must_use]
    pub fn highest_term(&self) -> Term {
        self.authority.highest_term()
    }

    /// The grant with the highest epoch that this process ever got.
    #[must_use]
    pub fn highest_grant(&self) -> Option<&Granted> {
        self.highest_grant.as_ref()
    }

    /// Milliseconds until the lease lapses.
    #[must_use]
    pub fn remaining_ms(&self, now: Timestamp) -> u64 {
        self.lease.remaining_ms(now)
    }
}

fn term_of(message: &ToNode) -> Option<Term> {
    match message {
        ToNode::HeartbeatAck { term, .. } => Some(*term),
        ToNode::Assign(assign) => Some(assign.term),
        ToNode::Activate(activate) => Some(activate.term),
        ToNode::Confirm(confirm) => Some(confirm.term),
        ToNode::Drain(drain) => Some(drain.term),
        ToNode::Revoke(revoke) => Some(revoke.term),
        ToNode::Welcome(_) | ToNode::Refused(_) | ToNode::Unknown => None,
    }
}
