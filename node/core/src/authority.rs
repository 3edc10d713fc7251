//! Which broker this node obeys.

use usher_shared::id::{BrokerId, ClusterId};
use usher_shared::planted::{self, Bug};
use usher_shared::quantity::Term;

use usher_shared::lease::LeaseError;

/// What the node remembers of the brokers it met, for as long as the process lives.
#[derive(Debug, Default)]
pub struct Authority {
    met: Option<Met>,
}

#[derive(Clone, Copy, Debug)]
struct Met {
    cluster: ClusterId,
    term: Term,
    broker: BrokerId,
}

/// Why a broker or a command is not obeyed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Disobey {
    /// The broker of another cluster.
    #[error(
        "the broker belongs to cluster {theirs}, this node to {ours}: check --broker, or restart the node to join the other cluster"
    )]
    Cluster {
        /// The node's cluster.
        ours: ClusterId,
        /// The broker's.
        theirs: ClusterId,
    },
    /// A broker, or a command, from before the one that the node follows.
    #[error("term {given} is over: this node follows term {highest}; stop the broker that was replaced")]
    Term {
        /// The highest term seen.
        highest: Term,
        /// The term given.
        given: Term,
    },
    /// Two brokers claim one term: one of them runs on a copied store.
    #[error("two brokers claim term {term}: one of them runs on a copy of the store and must be stopped")]
    TwoBrokers {
        /// The term that both claim.
        term: Term,
    },
    /// Its lease leaves no time to stop.
    #[error(transparent)]
    Lease(#[from] LeaseError),
}

impl Authority {
    /// A broker welcomed this node.
    ///
    /// # Errors
    /// [`Disobey`] when this broker is not to be obeyed.
    pub fn welcome(&mut self, cluster: ClusterId, term: Term, broker: BrokerId) -> Result<(), Disobey> {
        if let Some(met) = self.met {
            if met.cluster != cluster {
                return Err(Disobey::Cluster {
                    ours: met.cluster,
                    theirs: cluster,
                });
            }
            self.command(term)?;
            if met.term == term && met.broker != broker && !planted::is(Bug::FollowTwin) {
                return Err(Disobey::TwoBrokers { term });
            }
        }
        self.met = Some(Met {
            cluster,
            term,
            broker,
        });
        Ok(())
    }

    /// A command came under `term`.
    ///
    /// # Errors
    /// [`Disobey::Term`] when a higher term was seen.
    pub fn command(&self, term: Term) -> Result<(), Disobey> {
        match self.met {
            Some(met) if term < met.term && !planted::is(Bug::ObeyLowerTerm) => Err(Disobey::Term {
                highest: met.term,
                given: term,
            }),
            _ => Ok(()),
        }
    }

    /// The cluster, once one was met.
    #[must_use]
    pub fn cluster(&self) -> Option<ClusterId> {
        self.met.map(|met| met.cluster)
    }

    /// The broker of the highest term seen, once one was met.
    #[must_use]
    pub fn broker(&self) -> Option<BrokerId> {
        self.met.map(|met| met.broker)
    }

    /// The highest term seen; zero before the first.
    #[must_use]
    pub fn highest_term(&self) -> Term {
        self.met.map_or(Term::default(), |met| met.term)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn term(number: u64) -> Term {
        Term::new(number).unwrap()
    }

    #[test]
    fn a_node_follows_the_highest_term_of_its_own_cluster() {
        let (ours, theirs) = (ClusterId::from_bits(1), ClusterId::from_bits(2));
        let (first, second) = (BrokerId::from_bits(1), BrokerId::from_bits(2));
        let mut authority = Authority::default();
        assert_eq!(authority.highest_term(), term(0));
        assert_eq!(authority.welcome(ours, term(3), first), Ok(()));
        assert_eq!(authority.welcome(ours, term(3), first), Ok(()));
        assert_eq!(
            authority.welcome(ours, term(3), second),
            Err(Disobey::TwoBrokers { term: term(3) })
        );
        assert_eq!(
            authority.welcome(theirs, term(9), second),
            Err(Disobey::Cluster { ours, theirs })
        );
        assert_eq!(authority.welcome(ours, term(4), second), Ok(()));
        assert_eq!(
            authority.welcome(ours, term(3), first),
            Err(Disobey::Term {
                highest: term(4),
                given: term(3)
            })
        );
        assert!(authority.command(term(3)).is_err());
        assert!(authority.command(term(4)).is_ok());
        assert!(authority.command(term(5)).is_ok());
        assert_eq!(
            (authority.cluster(), authority.highest_term()),
            (Some(ours), term(4))
        );
    }
}
