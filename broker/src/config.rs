//! What a broker is told at its start.

use std::net::SocketAddr;
use std::path::PathBuf;
use usher_shared::credential::Credential;
use usher_shared::secret::MasterKey;

/// What a broker is told at its start.
#[derive(Clone, Debug)]
pub struct Config {
    /// Where clients ask for their node.
    pub clients: SocketAddr,
    /// Where operators and Prometheus come.
    pub admin: SocketAddr,
    /// Where nodes dial in.
    pub node_link: SocketAddr,
    /// Where clients reach the broker, without a path; `http://<clients>` when not given.
    pub public_url: Option<String>,
    /// The folder of the store and of the master key.
    pub data: PathBuf,
    /// Whether that store goes on from where it ended.
    pub store_is: StoreIs,
    /// The master key; made in `data` at the first start and kept there when not given.
    pub master_key: Option<MasterKey>,
    /// Whether the master key is the one that this store was run with.
    pub master_key_is: MasterKeyIs,
    /// The operators' token, needed when `admin` is beyond loopback.
    pub operator_token: Option<Credential>,
    /// The nodes' token, needed when `node_link` is beyond loopback.
    pub node_token: Option<Credential>,
    /// The clients' token. With it, only clients that show it may make a team by connecting.
    pub client_token: Option<Credential>,
    /// Whether a client's first connect makes its team; by default only when `clients` is on
    /// loopback or a `client_token` is set.
    pub auto_create: Option<bool>,
    /// Origins whose pages may fetch `/connect/{team}`; `*` admits all. Loopback origins always may
    /// while `clients` is on loopback.
    pub allow_origins: Vec<String>,
    /// The most teams.
    pub max_teams: usize,
    /// The most connections to `clients` in HTTP at once.
    pub max_client_connections: usize,
    /// How long a lease lasts, in milliseconds.
    pub lease_ms: u64,
    /// How often a node reports, in milliseconds.
    pub heartbeat_ms: u64,
    /// After how long without a connection an auto-created team is forgotten, in milliseconds.
    pub forget_ms: u64,
    /// How long self-preservation lasts at most, in milliseconds.
    pub preserve_ms: u64,
}

/// What an operator says of the store.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum StoreIs {
    /// The one that the last broker of this cluster ran on.
    #[default]
    Current,
    /// A copy from before, and whatever ran on a newer one will not run again: the broker goes on far
    /// above every term and epoch that it may have given out since.
    Restored,
}

/// What an operator says of the master key.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum MasterKeyIs {
    /// The one of before; a store without it is a mistake.
    #[default]
    Kept,
    /// Another one, because the old one is lost or known to others: tickets and grants of before are void.
    New,
}

impl Config {
    /// The defaults, on loopback, with the store in `data`.
    #[must_use]
    pub fn new(data: PathBuf) -> Self {
        Self {
            clients: SocketAddr::from(([127, 0, 0, 1], 7400)),
            admin: SocketAddr::from(([127, 0, 0, 1], 7401)),
            node_link: SocketAddr::from(([127, 0, 0, 1], 7402)),
            public_url: None,
            data,
            store_is: StoreIs::Current,
            master_key: None,
            master_key_is: MasterKeyIs::Kept,
            operator_token: None,
            node_token: None,
            client_token: None,
            auto_create: None,
            allow_origins: Vec::new(),
            max_teams: 2_000_000,
            max_client_connections: 4_096,
            lease_ms: 6_000,
            heartbeat_ms: 1_000,
            forget_ms: 600_000,
            preserve_ms: 60_000,
        }
    }
}
