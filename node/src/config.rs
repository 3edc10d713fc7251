//! What a node is told at its start.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::Duration;
use usher_shared::credential::Credential;
use usher_shared::id::{Incarnation, Label, NodeId};
use usher_shared::identity::Hidden;
use usher_shared::link::Capacity;
use usher_shared::quantity::Weight;
use usher_shared::template::NodeUrl;
use usher_shared::way::Security;

use usher_node_core::lapse::OnLapse;

/// What a node is told at its start.
#[derive(Clone, Debug)]
pub struct Config {
    /// The node's name.
    pub node: NodeId,
    /// Drawn by the parent, so that it can report this very process when it dies.
    pub incarnation: Incarnation,
    /// Drawn with it, and told to nobody but the broker.
    pub nonce: Hidden,
    /// Where clients connect.
    pub listen: SocketAddr,
    /// Where `/metrics` and health are.
    pub admin: SocketAddr,
    /// Node-link listeners of the brokers, tried in turn: `ws://host:port`, without a path.
    pub brokers: Vec<String>,
    /// Where clients reach the node; `ws://<listen>/teams/{team}` when not given.
    pub url: Option<NodeUrl>,
    /// Where the broker's probes and peers are answered, beside `listen`.
    pub probe_listen: Option<SocketAddr>,
    /// `host:port` that the broker tries when the link closes; `probe_listen`, else `listen`, when not given.
    pub probe: Option<String>,
    /// Where it runs.
    pub region: Option<Label>,
    /// What it shares its fate with.
    pub zone: Option<Label>,
    /// Free labels.
    pub labels: BTreeMap<Label, Label>,
    /// What it can carry beside others.
    pub weight: Weight,
    /// What it will hold at most.
    pub capacity: Capacity,
    /// What happens to a frame.
    pub relay: Relay,
    /// What happens to connections when the lease is over.
    pub on_lapse: OnLapse,
    /// The node-link token, needed beyond loopback.
    pub token: Option<Credential>,
    /// How long the node goes on after SIGTERM.
    pub stop_budget: Duration,
    /// How often a connection is pinged; three times as long without a word ends it.
    pub ping: Duration,
    /// The largest message of a client, in bytes.
    pub message_bytes: usize,
    /// How long a message may take from its first byte to its last; beyond it the connection is closed with 4308.
    pub message_time: Duration,
    /// What all messages may hold that have begun and not ended, in bytes; beyond it the oldest go.
    pub unfinished_bytes: u64,
    /// Frames of messages that a connection may send in a second, on average; ten times as many at
    /// once. Beyond it the connection is closed with 4310.
    pub frames_per_s: u32,
    /// The same for pings and pongs.
    pub controls_per_s: u32,
    /// The same for bytes.
    pub bytes_per_s: u32,
    /// The most that waits for a slow reader, in bytes; beyond it the connection is closed with 4308.
    pub queue_bytes: usize,
}

impl Config {
    /// Whether clients come over TLS, by the public URL.
    pub(crate) fn security(&self) -> Security {
        self.url.as_ref().map_or(Security::Plain, NodeUrl::security)
    }
}

/// What happens to an application frame.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Relay {
    /// It goes to the other connections of the team.
    #[default]
    Team,
    /// Nothing.
    None,
}
