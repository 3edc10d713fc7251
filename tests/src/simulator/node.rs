//! A node's process: the real decisions about teams, lease and authority.

use std::collections::BTreeMap;
use usher_node::holdings::{Effect, Tenure};
use usher_node::mandate::{Mandate, Unheeded};
use usher_shared::id::{Incarnation, NodeId, TeamId};
use usher_shared::link::{
    Capacity, Descriptors, Health, Heartbeat, Hello, HoldState, Inventory, PROTOCOL, ToBroker, ToNode,
};
use usher_shared::quantity::{Epoch, Millicores, Timestamp, Weight};

/// One running process of a node.
pub(super) struct Process {
    pub(super) id: NodeId,
    pub(super) incarnation: Incarnation,
    mandate: Mandate,
    /// The link it speaks on, once it dialled.
    pub(super) link: Option<u64>,
    welcomed: bool,
    seq: u64,
    /// The highest epoch ever held, by team: it must never go back.
    pub(super) highest: BTreeMap<TeamId, Epoch>,
    /// Clients by team, to be told when it leaves.
    pub(super) clients: BTreeMap<TeamId, Vec<usize>>,
}

/// What comes of a message from the broker.
#[derive(Default)]
pub(super) struct Reaction {
    pub(super) say: Vec<ToBroker>,
    /// Clients whose connection is closed.
    pub(super) closed: Vec<usize>,
    /// The broker is not to be obeyed: the link is given up.
    pub(super) hang_up: bool,
}

impl Process {
    pub(super) fn start(id: NodeId, incarnation: Incarnation) -> Self {
        Self {
            id,
            incarnation,
            mandate: Mandate::default(),
            link: None,
            welcomed: false,
            seq: 0,
            highest: BTreeMap::new(),
            clients: BTreeMap::new(),
        }
    }

    pub(super) fn hello(&self) -> Option<Hello> {
        Some(Hello {
            protocol: PROTOCOL,
            node: self.id.clone(),
            incarnation: self.incarnation,
            version: "1".to_owned(),
            capabilities: Vec::new(),
            url: format!("ws://{}:1/teams/{{team}}", self.id).parse().ok()?,
            probe: format!("{}:1", self.id),
            region: None,
            zone: None,
            labels: BTreeMap::new(),
            weight: Weight::NODE,
            cores: Millicores::new(2_000)?,
            capacity: Capacity {
                teams: 1_000,
                connections: 1_000,
            },
            cluster: self.mandate.cluster(),
            highest_term: self.mandate.highest_term(),
            broker: self.mandate.broker(),
            highest_grant: self.mandate.highest_grant().cloned(),
        })
    }

    pub(super) fn dialled(&mut self, link: u64) {
        self.link = Some(link);
        self.welcomed = false;
        self.seq = 0;
    }

    pub(super) fn link_broke(&mut self) {
        self.link = None;
        self.welcomed = false;
        self.mandate.link_ended();
    }

    pub(super) fn heartbeat(&mut self, now: Timestamp) -> Option<ToBroker> {
        if !self.welcomed {
            return None;
        }
        self.seq += 1;
        self.mandate.sent(self.seq, now);
        let connections = self.clients.values().map(Vec::len).sum::<usize>();
        Some(ToBroker::Heartbeat(Box::new(Heartbeat {
            seq: self.seq,
            boot_ms: now.as_millis(),
            wall_ms: now.as_millis(),
            cpu_now: Millicores::default(),
            cpu_average: Millicores::default(),
            memory_bytes: 0,
            connections: u32::try_from(connections).unwrap_or(u32::MAX),
            teams: u32::try_from(self.mandate.holdings.held()).unwrap_or(u32::MAX),
            fds: Descriptors {
                used: 0,
                limit: 10_000,
            },
            health: Health::Good,
            idle_teams: Vec::new(),
            hot_teams: Vec::new(),
        })))
    }

    pub(super) fn receive(&mut self, message: ToNode, now: Timestamp) -> Reaction {
        let mut reaction = Reaction::default();
        let effects = match message {
            ToNode::Welcome(welcome) => {
                let Ok(mut teams) = self.mandate.welcome(&welcome) else {
                    reaction.hang_up = true;
                    return reaction;
                };
                self.welcomed = true;
                teams.sort_by(|one, other| one.team.cmp(&other.team));
                reaction
                    .say
                    .push(ToBroker::Inventory(Inventory { teams, more: false }));
                Vec::new()
            }
            ToNode::Refused(_) => {
                reaction.hang_up = true;
                Vec::new()
            }
            message => match self.mandate.obey(message, now) {
                Ok(effects) => effects,
                Err(why) => {
                    reaction.hang_up = why == Unheeded::Lapsed;
                    return reaction;
                }
            },
        };
        for effect in effects {
            match effect {
                Effect::Say(say) => reaction.say.push(say),
                Effect::Open(_) => {}
                Effect::Depart(departing) => self.close_team(&departing.team, now, &mut reaction),
                Effect::Close(team) => self.close_team(&team, now, &mut reaction),
            }
        }
        reaction
    }

    fn close_team(&mut self, team: &TeamId, now: Timestamp, reaction: &mut Reaction) {
        for client in self.clients.remove(team).unwrap_or_default() {
            reaction.closed.push(client);
            reaction.say.extend(self.mandate.holdings.closed(team, now).say);
        }
    }

    /// A client comes with a ticket for `epoch`. `None`: it may wait for the broker's word.
    pub(super) fn admit(
        &mut self,
        team: &TeamId,
        epoch: Epoch,
        client: usize,
        now: Timestamp,
    ) -> Option<bool> {
        match self.mandate.holdings.tenure(team) {
            Tenure::Held(held) if held == epoch => {
                self.mandate.holdings.opened(team, now);
                self.clients.entry(team.clone()).or_default().push(client);
                Some(true)
            }
            Tenure::Held(known) | Tenure::Leaving(known) if epoch <= known => Some(false),
            _ => None,
        }
    }

    /// Teams for which this process may have exclusive effects now.
    pub(super) fn exclusive(&self, now: Timestamp) -> Vec<(TeamId, Epoch)> {
        let held = self.mandate.holdings.inventory().into_iter();
        held.filter_map(|held| Some((self.mandate.may_act(&held.team, now)?, held.team)))
            .map(|(epoch, team)| (team, epoch))
            .collect()
    }

    /// What it holds, by team.
    pub(super) fn held(&self) -> BTreeMap<TeamId, (Epoch, HoldState)> {
        let held = self.mandate.holdings.inventory().into_iter();
        held.map(|held| (held.team, (held.epoch, held.state))).collect()
    }
}
