//! What this node may do, and on whose word: which broker it obeys, how long its lease runs, what it
//! holds, and what it does when the lease is over.
//!
//! The order of a link: the node says hello, is welcomed, shows its inventory; the broker answers
//! with what is to change and then with what it confirms; only then does it acknowledge heartbeats.
//! So what an acknowledgement renews is what was named on its own link.

use usher_shared::id::{BrokerId, ClusterId, TeamId};
use usher_shared::lease::check_stop;
use usher_shared::link::{Granted, Held, MAX_LIST, MAX_PEERS, Peer, ToNode, Welcome};
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
    /// A broker took the connection and has not welcomed this node yet.
    Greeting,
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
    peers: Vec<Peer>,
    /// The last broker that was asked says that another process has this one's name.
    displaced: bool,
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

    /// A broker took the connection: whatever it says to the hello, this node is not cut off from it.
    pub fn reached(&mut self) {
        self.link = Link::Greeting;
    }

    /// A broker has another process under this one's name, and does not let this one in. Its teams are
    /// others' once its lease is over, whatever its peers hear.
    pub fn name_taken(&mut self) {
        // One that was never let in has nothing to give up.
        self.displaced = self.authority.cluster().is_some();
    }

    /// Whether another process has this one's name.
    #[must_use]
    pub fn is_displaced(&self) -> bool {
        self.displaced
    }

    /// A broker welcomed this node; what to show it.
    ///
    /// # Errors
    /// [`Disobey`] when this broker is not to be obeyed.
    pub fn welcome(&mut self, welcome: &Welcome) -> Result<Vec<Held>, Disobey> {
        check_stop(welcome.lease_ms, welcome.heartbeat_ms)?;
        self.authority
            .welcome(welcome.cluster, welcome.term, welcome.broker)?;
        self.lease.begin_link(welcome.lease_ms);
        self.holdings.begin_link();
        self.link = Link::Welcome;
        self.displaced = false;
        self.peers = welcome.peers.iter().take(MAX_PEERS).cloned().collect();
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
        if let Some(term) = message.term() {
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
            ToNode::Activate(activate) => self.holdings.activate(&activate, link),
            ToNode::Confirm(confirm) if confirm.teams.len() <= MAX_LIST => {
                self.holdings.confirm(&confirm, link);
                Vec::new()
            }
            ToNode::Peers(told) if told.peers.len() <= MAX_PEERS => {
                self.peers = told.peers;
                Vec::new()
            }
            ToNode::Drain(drain) if drain.moves.len() <= MAX_LIST => self.holdings.drain(&drain),
            ToNode::Revoke(revoke) => self.holdings.revoke(&revoke),
            ToNode::Count(count) => {
                let counts = self.holdings.counts(&count.operation);
                counts.into_iter().map(Effect::Say).collect()
            }
            ToNode::Pace(pace) => vec![Effect::Pace(pace)],
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
            _ if self.displaced => Touch::Displaced,
            (_, Link::Down) => Touch::Lost,
            _ => Touch::Rejoining,
        };
        self.lapse.step(touch, connections, now)
    }

    /// How lapses are dealt with.
    pub fn lapse(&mut self) -> &mut Lapse {
        &mut self.lapse
    }

    /// Whether this node closes its connections because others hear the broker and it does not.
    #[must_use]
    pub fn is_cut_off(&self) -> bool {
        self.lapse.is_cut_off()
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
        } else if (lapsed || matches!(self.link, Link::Down | Link::Greeting)) && !self.lapse.is_cut_off() {
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

    /// Whom to ask whether they hear the broker.
    #[must_use]
    pub fn peers(&self) -> &[Peer] {
        &self.peers
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

    /// The broker of the highest term seen, once one was met.
    #[must_use]
    pub fn broker(&self) -> Option<BrokerId> {
        self.authority.broker()
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

#[cfg(test)]
mod tests {
    use super::*;
    use usher_shared::link::{
        Activate, Assign, Confirm, Drain, HoldState, Move, Peers, Revoke, TeamEpoch, TeamSpec,
    };

    fn at(ms: u64) -> Timestamp {
        Timestamp::from_millis(ms)
    }

    fn epoch(number: u64) -> Epoch {
        Epoch::new(number).unwrap()
    }

    fn term(number: u64) -> Term {
        Term::new(number).unwrap()
    }

    fn team() -> TeamId {
        "T1".parse().unwrap()
    }

    fn welcome() -> Welcome {
        Welcome {
            cluster: ClusterId::from_bits(1),
            broker: BrokerId::from_bits(1),
            term: term(1),
            lease_ms: 6_000,
            heartbeat_ms: 1_000,
            forget_ms: 1,
            ticket_keys: Vec::new(),
            public_url: String::new(),
            peers: Vec::new(),
        }
    }

    fn assign(number: u64, state: HoldState) -> ToNode {
        ToNode::Assign(Assign {
            team: team(),
            epoch: epoch(number),
            grant: format!("grant-{number}"),
            state,
            term: term(1),
            spec: TeamSpec::default(),
        })
    }

    fn confirm(number: u64) -> ToNode {
        ToNode::Confirm(Confirm {
            teams: vec![TeamEpoch {
                team: team(),
                epoch: epoch(number),
            }],
            term: term(1),
        })
    }

    fn acknowledge(mandate: &mut Mandate, seq: u64, now: u64) -> Result<Vec<Effect>, Unheeded> {
        mandate.sent(seq, at(now));
        let term = term(1);
        mandate.obey(ToNode::HeartbeatAck { seq, term }, at(now))
    }

    /// A mandate with T1 in full under epoch 5, acknowledged at 0.
    fn acting() -> Mandate {
        let mut mandate = Mandate::default();
        assert_eq!(mandate.welcome(&welcome()), Ok(Vec::new()));
        mandate.obey(assign(5, HoldState::Owned), at(0)).unwrap();
        assert_eq!(mandate.may_act(&team(), at(0)), None, "no lease yet");
        acknowledge(&mut mandate, 1, 0).unwrap();
        assert_eq!(mandate.may_act(&team(), at(0)), Some(epoch(5)));
        mandate
    }

    #[test]
    fn effects_end_with_the_lease_whatever_else_goes_on() {
        let mandate = acting();
        assert_eq!(mandate.may_act(&team(), at(5_439)), Some(epoch(5)));
        assert_eq!(mandate.may_act(&team(), at(5_440)), None);
        assert_eq!((mandate.acting(at(5_439)), mandate.acting(at(5_440))), (1, 0));
        assert_eq!(mandate.remaining_ms(at(5_000)), 440);
    }

    #[test]
    fn after_a_lapse_effects_go_on_only_for_what_the_new_link_named() {
        let mut mandate = acting();
        mandate.link_ended();
        assert_eq!(mandate.welcome(&welcome()).unwrap().len(), 1);
        acknowledge(&mut mandate, 1, 10_000).unwrap();
        assert_eq!(mandate.may_act(&team(), at(10_000)), None, "not named yet");
        mandate.obey(confirm(4), at(10_000)).unwrap();
        assert_eq!(mandate.may_act(&team(), at(10_000)), None, "another epoch");
        mandate.obey(confirm(5), at(10_000)).unwrap();
        assert_eq!(mandate.may_act(&team(), at(10_000)), Some(epoch(5)));
    }

    #[test]
    fn a_short_blip_of_the_link_does_not_stop_effects_and_the_next_acknowledgement_asks_for_the_name() {
        let mut mandate = acting();
        mandate.link_ended();
        assert_eq!(mandate.may_act(&team(), at(1_000)), Some(epoch(5)));
        mandate.welcome(&welcome()).unwrap();
        assert_eq!(mandate.may_act(&team(), at(1_000)), Some(epoch(5)));
        acknowledge(&mut mandate, 1, 1_000).unwrap();
        assert_eq!(mandate.may_act(&team(), at(1_000)), None);
        mandate.obey(assign(5, HoldState::Owned), at(1_000)).unwrap();
        assert_eq!(mandate.may_act(&team(), at(1_000)), Some(epoch(5)));
    }

    #[test]
    fn a_lapse_on_a_live_link_asks_for_a_new_one() {
        let mut mandate = acting();
        mandate.sent(2, at(5_000));
        let term = term(1);
        let late = mandate.obey(ToNode::HeartbeatAck { seq: 2, term }, at(6_000));
        assert_eq!(late, Err(Unheeded::Lapsed));
        assert_eq!(mandate.may_act(&team(), at(6_000)), None);
    }

    #[test]
    fn a_prepared_team_acts_once_it_is_activated_under_its_epoch() {
        let mut mandate = acting();
        mandate.obey(assign(7, HoldState::Prepared), at(10)).unwrap();
        assert_eq!(mandate.may_act(&team(), at(10)), None);
        let activate = |number| {
            ToNode::Activate(Activate {
                team: team(),
                epoch: epoch(number),
                expected: None,
                term: term(1),
            })
        };
        mandate.obey(activate(5), at(10)).unwrap();
        assert_eq!(mandate.may_act(&team(), at(10)), None);
        mandate.obey(activate(7), at(10)).unwrap();
        assert_eq!(mandate.may_act(&team(), at(10)), Some(epoch(7)));
        assert_eq!(mandate.highest_grant().map(|grant| grant.epoch), Some(epoch(7)));
    }

    #[test]
    fn a_late_assignment_brings_nothing_back_that_was_taken_on_this_link() {
        let mut mandate = acting();
        let revoke = ToNode::Revoke(Revoke {
            team: team(),
            epoch: epoch(6),
            term: term(1),
        });
        mandate.obey(revoke, at(10)).unwrap();
        for number in [5, 6] {
            assert_eq!(
                mandate.obey(assign(number, HoldState::Owned), at(20)),
                Ok(Vec::new())
            );
        }
        assert_eq!(mandate.may_act(&team(), at(20)), None);
        mandate.obey(assign(7, HoldState::Owned), at(30)).unwrap();
        assert_eq!(mandate.may_act(&team(), at(30)), Some(epoch(7)));
    }

    #[test]
    fn an_old_term_and_a_message_out_of_place_are_not_obeyed() {
        let mut mandate = acting();
        mandate.link_ended();
        let newer = Welcome {
            term: term(2),
            ..welcome()
        };
        mandate.welcome(&newer).unwrap();
        let old = mandate.obey(assign(9, HoldState::Owned), at(0));
        assert!(
            matches!(old, Err(Unheeded::OldTerm(Disobey::Term { .. }))),
            "{old:?}"
        );
        assert_eq!(mandate.highest_term(), term(2));
        let late = mandate.obey(ToNode::Welcome(Box::new(welcome())), at(0));
        assert_eq!(late, Err(Unheeded::Unknown));
        let mut many = Confirm {
            teams: Vec::new(),
            term: term(2),
        };
        many.teams = vec![
            TeamEpoch {
                team: team(),
                epoch: epoch(5)
            };
            MAX_LIST + 1
        ];
        assert_eq!(mandate.obey(ToNode::Confirm(many), at(0)), Err(Unheeded::Unknown));
    }

    #[test]
    fn peers_are_replaced_by_those_told_last_and_bounded() {
        let peer = |number: usize| Peer {
            node: format!("n{number}").parse().unwrap(),
            probe: format!("n{number}:1"),
        };
        let peers = |count: usize| (0..count).map(peer).collect::<Vec<_>>();
        let many = Welcome {
            peers: peers(MAX_PEERS + 1),
            ..welcome()
        };
        let mut mandate = Mandate::default();
        mandate.welcome(&many).unwrap();
        assert_eq!(mandate.peers(), peers(MAX_PEERS));
        let told = |count: usize| {
            ToNode::Peers(Peers {
                peers: peers(count),
                term: term(1),
            })
        };
        assert_eq!(mandate.obey(told(MAX_PEERS + 1), at(0)), Err(Unheeded::Unknown));
        assert_eq!(mandate.peers().len(), MAX_PEERS);
        mandate.obey(told(1), at(0)).unwrap();
        assert_eq!(mandate.peers(), peers(1));
        mandate.obey(told(MAX_PEERS), at(0)).unwrap();
        assert_eq!(mandate.peers(), peers(MAX_PEERS));
    }

    #[test]
    fn a_drain_is_obeyed_up_to_its_bound() {
        let moves = |count: usize| {
            ToNode::Drain(Drain {
                operation: "op".parse().unwrap(),
                reason: "drain".parse().unwrap(),
                moves: vec![
                    Move {
                        team: team(),
                        epoch: epoch(6),
                        after_ms: 0,
                    };
                    count
                ],
                by_ms: 0,
                pace: None,
                term: term(1),
            })
        };
        let mut mandate = acting();
        assert_eq!(mandate.obey(moves(MAX_LIST + 1), at(0)), Err(Unheeded::Unknown));
        assert_eq!(mandate.may_act(&team(), at(0)), Some(epoch(5)));
        assert!(mandate.obey(moves(MAX_LIST), at(0)).is_ok());
        assert_eq!(mandate.may_act(&team(), at(0)), None);
    }

    #[test]
    fn a_broker_whose_lease_leaves_no_time_to_stop_is_not_followed() {
        let short = Welcome {
            lease_ms: 2_000,
            ..welcome()
        };
        let mut mandate = Mandate::default();
        assert!(matches!(mandate.welcome(&short), Err(Disobey::Lease(_))));
        assert_eq!((mandate.cluster(), mandate.link()), (None, Link::Down));
    }

    #[test]
    fn clients_and_peers_are_told_how_it_is() {
        let cluster = ClusterId::from_bits(1);
        let mut mandate = acting();
        assert_eq!(mandate.contact(at(0)), Contact::Connected);
        assert!(mandate.hears(cluster, at(0)) && !mandate.hears(ClusterId::from_bits(2), at(0)));
        assert!(!mandate.hears(cluster, at(5_440)));
        assert_eq!(mandate.contact(at(5_440)), Contact::Lost);
        mandate.link_ended();
        assert_eq!(mandate.contact(at(0)), Contact::Lost);
        assert!(!mandate.hears(cluster, at(0)));
        assert_eq!(mandate.step(3, at(0)), Step::Nothing);
        assert_eq!(mandate.step(3, at(5_440)), Step::AskPeers);
        assert_eq!(mandate.fence_by(), None);
        mandate.reached();
        assert_eq!(
            mandate.contact(at(0)),
            Contact::Lost,
            "it has not said anything yet"
        );
        for ms in (5_440..60_000).step_by(100) {
            assert_eq!(mandate.step(3, at(ms)), Step::Nothing, "nobody is asked");
        }
        assert!(!mandate.lapse().is_cut_off());

        let mut fences = Mandate::new(OnLapse::Fence);
        assert_eq!(fences.step(3, at(0)), Step::Nothing, "it never had a lease");
        fences.welcome(&welcome()).unwrap();
        acknowledge(&mut fences, 1, 0).unwrap();
        assert_eq!(fences.fence_by(), Some(at(5_940)));
        assert_eq!(fences.contact(at(5_440)), Contact::Fenced);
        assert_eq!(fences.step(3, at(5_440)), Step::CloseAll);
        fences.lapse().closed();
        assert_eq!(fences.fence_by(), None);
    }
}
