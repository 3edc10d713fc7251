//! A client that wants to be where its team is, and comes back whenever it is thrown out.

use usher_placement::Knock;
use usher_shared::id::TeamId;

/// Where a client is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum At {
    /// Nowhere; it will ask the broker.
    Nowhere,
    /// On this node (by number).
    Node(usize),
}

/// One client.
#[derive(Clone, Debug)]
pub(super) struct Client {
    pub(super) team: TeamId,
    pub(super) at: At,
    /// The ticket that it could not use, shown to the broker next time.
    pub(super) knock: Option<Knock>,
}

impl Client {
    pub(super) fn new(team: TeamId) -> Self {
        Self {
            team,
            at: At::Nowhere,
            knock: None,
        }
    }
}
