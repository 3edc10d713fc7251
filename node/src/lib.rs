//! An Usher node: holds the WebSockets of its teams, relays, reports its load, obeys drains.
//!
//! The decisions are in [`usher_node_core`], which knows no runtime and no clock; the moving average of CPU is in [`load`]. Around them
//! `floor` holds the state behind one lock, `orders` carries out what the broker says, `doors` and
//! `connection` serve clients, `link` talks to the broker, and [`parent`] starts the whole again
//! when it dies.

mod ask;
mod brokers;
mod config;
mod connection;
mod doors;
mod figures;
mod floor;
mod handshake;
mod link;
pub mod load;
mod name_lock;
mod orders;
mod outage;
mod outbox;
pub mod parent;
mod post;
mod roster;
mod send_back;
mod server;
mod stop;
mod unfinished;
mod upkeep;
mod watchdog;

pub use brokers::{BrokerAddress, BrokerAddressError};
pub use config::{Config, Relay};
pub use server::{Node, run};
pub use usher_node_core::OnLapse;

/// Why a node could not start or had to stop.
#[derive(Debug, thiserror::Error)]
pub enum NodeError {
    /// A listener could not be opened.
    #[error(transparent)]
    Bind(#[from] usher_listen::accept::BindError),
    /// A broker's address cannot be used.
    #[error(transparent)]
    Broker(#[from] BrokerAddressError),
    /// No broker was named.
    #[error("a node needs a broker: name one with --broker ws://host:7402")]
    NoBroker,
    /// Another process on this machine is the node already.
    #[error(
        "another process on this machine is node {node} of these brokers already: stop it, or give this one another --name (`ss -xlp | grep @{lock}` shows it)"
    )]
    NameHeld {
        /// The name.
        node: usher_shared::id::NodeId,
        /// The socket that it holds, in the abstract namespace.
        lock: String,
    },
    /// The node's URL cannot be made from its listener.
    #[error(
        "a node that listens on {address} needs the URL by which clients reach it: set --url, as in ws://host:port/teams/{{team}}"
    )]
    UrlNeeded {
        /// Where it listens.
        address: std::net::SocketAddr,
    },
    /// The address that the broker probes cannot be made from the listener.
    #[error(
        "a node that listens on {address} needs the address at which its broker reaches it: set --probe host:port"
    )]
    ProbeNeeded {
        /// Where it listens.
        address: std::net::SocketAddr,
    },
    /// A listener has no address.
    #[error("the address of a listener cannot be read")]
    Address(#[source] std::io::Error),
    /// Signals cannot be received.
    #[error("signals cannot be received")]
    Signals(#[source] std::io::Error),
    /// A part died that cannot begin again.
    #[error("a bug ended {part}; its message is in the log above. Start the node again")]
    Bug {
        /// Which.
        part: &'static str,
    },
    /// Another recorder of metrics is in place.
    #[error("metrics cannot be recorded: another recorder was installed first")]
    Telemetry(#[source] metrics_exporter_prometheus::BuildError),
}
