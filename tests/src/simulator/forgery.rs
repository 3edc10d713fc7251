//! Those who say what is not so: nodes that claim teams they were never given, and whatever else answers
//! at a broker's address.

use usher_shared::id::{BrokerId, ClusterId};
use usher_shared::link::{Granted, Held, Hello, HoldState, TicketKey, ToBroker, ToNode, Welcome};
use usher_shared::quantity::{Epoch, Term};

use super::broker::KID;
use super::world::{World, cluster};

/// The epochs that a node that forges claims to hold.
pub(super) const FORGED_FROM: u64 = (1 << 53) - (1 << 20);

impl World {
    /// Tells the impostor's lie to a node.
    pub(super) fn impostor_hears(&mut self, link: u64, node: usize, message: ToBroker) {
        let ToBroker::Hello(hello) = message else { return };
        let foreign = self.dice.percent(50);
        let term = Term::new(hello.highest_term.get().saturating_sub(1));
        let welcome = Welcome {
            cluster: if foreign {
                ClusterId::from_bits(2)
            } else {
                cluster()
            },
            broker: BrokerId::from_bits(u128::MAX),
            term: term.unwrap_or_default(),
            lease_ms: self.plan.lease_ms,
            heartbeat_ms: self.plan.heartbeat_ms,
            forget_ms: self.plan.forget_ms,
            ticket_keys: vec![TicketKey {
                kid: KID.to_owned(),
                key: self.machines[node].key.clone(),
            }],
            public_url: "http://broker".to_owned(),
            peers: Vec::new(),
        };
        self.send_down(link, ToNode::Welcome(Box::new(welcome)));
    }

    pub(super) fn forge_hello(&mut self, node: usize, hello: Hello) -> Hello {
        if !self.machines[node].forges || !self.dice.percent(30) {
            return hello;
        }
        let mut hello = hello;
        let team = self.dice.index(self.teams.len());
        hello.highest_grant = Epoch::new(FORGED_FROM).map(|epoch| Granted {
            team: self.teams[team].clone(),
            epoch,
            grant: "AAAAAAAAAAAAAAAAAAAAAA".to_owned(),
        });
        hello
    }

    /// A bad node claims teams that it was never given.
    pub(super) fn forge_inventory(&mut self, node: usize, inventory: &mut Vec<Held>) {
        if !self.machines[node].forges || !self.dice.percent(60) {
            return;
        }
        let team = self.dice.index(self.teams.len());
        if self
            .mirror
            .owners
            .get(&self.teams[team])
            .is_some_and(|(owner, _)| *owner == self.machines[node].id)
        {
            return;
        }
        let other = inventory.first().map(|held| held.grant.clone());
        let epoch = if self.dice.percent(50) {
            Epoch::new(FORGED_FROM)
        } else {
            Epoch::new(self.truth.highest().get() + 1)
        };
        if let Some(epoch) = epoch {
            self.count("an entry was forged");
            inventory.push(Held {
                team: self.teams[team].clone(),
                epoch,
                grant: other.unwrap_or_default(),
                state: HoldState::Owned,
                connections: 1,
            });
        }
    }
}
