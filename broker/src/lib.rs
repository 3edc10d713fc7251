//! The Usher broker: the IO around [`usher_placement`], which decides.
//!
//! | question | file |
//! | --- | --- |
//! | who owns the core, and in what order is what it says carried out? | `event_loop`, and `pipeline` of the placement package |
//! | where does this client go, and how is it told? | [`redirect`], `query`, `origin`, `in_band` |
//! | what may be answered without the core? | [`routes`] |
//! | what does an operator see and do? | `admin`, `body`, `figures` |
//! | how do nodes and the core talk? | `node_link`, `link_message`, `outlet`, `probe` |
//! | what survives a crash? | [`store`] |
//! | who may come in? | [`keys`], `origin` |

mod admin;
mod body;
mod clients;
mod config;
mod error;
mod event_loop;
mod figures;
mod handle;
mod in_band;
pub mod keys;
mod link_message;
mod node_link;
pub mod origin;
mod outlet;
mod page;
mod probe;
pub mod query;
mod random;
pub mod redirect;
mod refusals;
pub mod routes;
pub mod store;
mod telemetry;
mod url_probe;

pub use config::{Config, MasterKeyIs, StoreIs};
pub use error::BrokerError;
pub use random::NoRandomness;

use hyper::service::service_fn;
use hyper_util::service::TowerToHyperService;
use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::TcpListener;
use tokio_util::sync::{CancellationToken, DropGuard};
use usher_listen::accept::{self, Limits};
use usher_listen::inflow::Inflow;
use usher_listen::supervise::restarted;
use usher_listen::telemetry::Telemetry;
use usher_placement::{Core, Settings};
use usher_shared::clock;
use usher_shared::grant::GrantSigner;
use usher_shared::id::{BrokerId, ClusterId};
use usher_shared::quantity::Term;
use usher_shared::way::{Security, split_scheme};

use crate::admin::Admin;
use crate::clients::Clients;
use crate::handle::{CoreHandle, Vitals};
use crate::in_band::InBand;
use crate::keys::{KeyError, Keyring};
use crate::node_link::NodeLinks;
use crate::origin::Origins;
use crate::redirect::{Redirector, Rules};
use crate::routes::RouteTable;
use crate::store::{SledStore, Store, StoreError};

/// How long links may take to close at a stop.
const LINK_STOP: Duration = Duration::from_secs(2);

/// A broker that has started: its listeners are bound, its routes are known, and it answers nobody
/// until [`Broker::serve`].
pub struct Broker {
    addresses: Addresses,
    term: Term,
    listeners: Listeners,
    core: CoreHandle,
    loop_thread: std::thread::JoinHandle<()>,
    /// Cancelled when the loop has ended, for whatever reason.
    loop_ended: CancellationToken,
    /// Ends the loop, also when the broker is dropped without having served.
    loop_stop: DropGuard,
    config: Config,
    origins: Origins,
    routes: Arc<RouteTable>,
    keys: Arc<Keyring>,
    telemetry: Telemetry,
}

/// Where a broker listens.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Addresses {
    /// Clients.
    pub clients: SocketAddr,
    /// Operators.
    pub admin: SocketAddr,
    /// Nodes.
    pub node_link: SocketAddr,
}

struct Listeners {
    clients: TcpListener,
    admin: TcpListener,
    node_link: TcpListener,
}

/// How many starts of a broker a restored store may be behind.
const RESTORED_TERMS: u64 = 1_000;
/// How many epochs it may be behind: a quarter of an hour of 1,000 assignments a second. Nodes that live
/// know better, and are believed.
const RESTORED_EPOCHS: u64 = 1_000_000;

impl Broker {
    /// Opens the store, binds the listeners, begins a term, and publishes the routes that the store
    /// knows. In this order, so that a port in use costs no term, and a damaged store no port.
    ///
    /// # Errors
    /// [`BrokerError`] with the remedy.
    pub async fn start(config: Config) -> Result<Self, BrokerError> {
        check(&config)?;
        keys::make_data_folder(&config.data)?;
        let data = config.data.clone();
        let store = blocking(move || SledStore::open(&data)).await?;
        Self::start_on(config, store).await
    }

    /// The same, on a store of the caller's.
    ///
    /// # Errors
    /// [`BrokerError`] with the remedy.
    pub async fn start_on(config: Config, store: impl Store + 'static) -> Result<Self, BrokerError> {
        let (settings, origins) = check(&config)?;
        let telemetry = Telemetry::install().map_err(|error| BrokerError::Telemetry(Box::new(error)))?;
        telemetry::describe();

        keys::make_data_folder(&config.data)?;
        let mut store: Box<dyn Store> = Box::new(store);
        let (mut store, mut stored) = blocking(move || store.load().map(|stored| (store, stored))).await?;
        let master = match config.master_key.clone() {
            Some(master) => master,
            // After the store was locked, so that two brokers do not each make one.
            None => keys::master_key(&config.data, stored.cluster.is_some(), config.master_key_is)?,
        };
        keys::check_key(&config.data, &master, config.master_key_is)?;
        let (listeners, addresses) = Listeners::bind(&config)?;

        let (teams, nodes) = (stored.teams.len(), stored.nodes.len());
        let vitals = Arc::new(Vitals::default());
        let cluster = match stored.cluster {
            Some(cluster) => cluster,
            None => {
                vitals.refusals().began_cluster();
                ClusterId::from_bits(random::bits()?)
            }
        };
        if config.store_is == StoreIs::Restored {
            stored.term = stored.term.plus(RESTORED_TERMS);
            stored.epochs_reserved = stored.epochs_reserved.plus(RESTORED_EPOCHS);
        }
        let term = stored.term.next();
        if term == stored.term {
            return Err(BrokerError::TermsUsedUp);
        }
        store = blocking(move || store.begin(cluster, term).map(|()| store)).await?;

        let keys = Arc::new(Keyring::new(master.clone()));
        let routes = Arc::new(RouteTable::new(Arc::clone(&keys)));
        let public_url = match &config.public_url {
            Some(url) => url.clone(),
            None => format!("http://{}", addresses.clients),
        };
        let core = Core::new(
            settings,
            stored.into_snapshot(cluster, term),
            BrokerId::from_bits(random::bits()?),
            public_url,
            GrantSigner::new(master.grant_key(), cluster),
            clock::boottime(),
            clock::wall_ms(),
        );
        let loop_stop = CancellationToken::new();
        let loop_ended = CancellationToken::new();
        let (core, loop_thread) = event_loop::start(event_loop::Parts {
            core,
            store,
            routes: Arc::clone(&routes),
            keys: Arc::clone(&keys),
            vitals,
            stop: loop_stop.clone(),
            ended: loop_ended.clone(),
        })
        .await
        .map_err(BrokerError::System)?;
        tracing::info!(
            clients = %addresses.clients,
            admin = %addresses.admin,
            node_link = %addresses.node_link,
            version = env!("CARGO_PKG_VERSION"),
            data = %config.data.display(),
            lease_ms = config.lease_ms,
            teams,
            nodes,
            %cluster,
            term = term.get(),
            "broker started"
        );
        Ok(Self {
            addresses,
            term,
            listeners,
            core,
            loop_thread,
            loop_ended,
            loop_stop: loop_stop.drop_guard(),
            config,
            origins,
            routes,
            keys,
            telemetry,
        })
    }

    /// Where it listens; a port that was given as 0 is the one that the system chose.
    #[must_use]
    pub const fn addresses(&self) -> Addresses {
        self.addresses
    }

    /// Its term.
    #[must_use]
    pub const fn term(&self) -> Term {
        self.term
    }

    /// Serves until `stop`, then closes the links (nodes go on without a broker), makes durable what
    /// was decided, and gives the store free.
    ///
    /// # Errors
    /// [`BrokerError::LoopEnded`] when the event loop died.
    pub async fn serve(self, stop: CancellationToken) -> Result<(), BrokerError> {
        let telemetry = self.telemetry.clone();
        let upkeep = tokio::spawn(async move {
            restarted("the upkeep of histograms", || telemetry.clone().upkeep()).await;
        });
        let stop = stop.child_token();
        let config = &self.config;
        let limits = Limits {
            connections: config.max_client_connections,
            ..Limits::of("clients")
        };
        let on_loopback = config.clients.ip().is_loopback();
        let rules = Rules {
            auto_create: config
                .auto_create
                .unwrap_or(on_loopback || config.client_token.is_some()),
            client_token: config.client_token.clone(),
            origins: self.origins.clone(),
            refuse_rebinding: on_loopback && config.public_url.is_none(),
            security: config
                .public_url
                .as_deref()
                .and_then(split_scheme)
                .map_or(Security::Plain, |(security, _)| security),
        };
        let clients = Arc::new(Clients {
            redirector: Redirector::new(self.routes, Arc::clone(&self.keys), rules),
            origins: self.origins,
            core: self.core.clone(),
            in_band: InBand::new(),
        });
        let clients = accept::serve(
            self.listeners.clients,
            limits,
            stop.clone(),
            service_fn(move |request: http::Request<Inflow>| {
                let clients = Arc::clone(&clients);
                async move { Ok::<_, Infallible>(clients.answer(request).await) }
            }),
        );

        let router = admin::router(Admin {
            core: self.core.clone(),
            telemetry: self.telemetry,
            operator_token: config.operator_token.clone(),
            origins: Origins::new(&[], config.admin.ip().is_loopback()).unwrap_or_default(),
        });
        let limits = |name| Limits {
            connections: 1_024,
            ..Limits::of(name)
        };
        let admin = accept::serve(
            self.listeners.admin,
            limits("admin"),
            stop.clone(),
            TowerToHyperService::new(router),
        );

        let links = Arc::new(NodeLinks::new(
            self.core,
            config.node_token.clone(),
            Duration::from_millis(config.lease_ms),
            stop.clone(),
        ));
        let link_service = Arc::clone(&links);
        let node_link = accept::serve(
            self.listeners.node_link,
            limits("node_link"),
            stop.clone(),
            service_fn(move |request: http::Request<Inflow>| {
                let links = Arc::clone(&link_service);
                async move { Ok::<_, Infallible>(links.answer(request).await) }
            }),
        );

        let watch = async {
            tokio::select! {
                () = self.loop_ended.cancelled() => {
                    stop.cancel();
                    Err(BrokerError::LoopEnded)
                }
                () = stop.cancelled() => Ok(()),
            }
        };
        let (watched, (), (), ()) = tokio::join!(watch, clients, admin, node_link);
        let _ = tokio::time::timeout(LINK_STOP, links.closed()).await;
        drop(self.loop_stop);
        let thread = self.loop_thread;
        let _ = tokio::task::spawn_blocking(move || thread.join()).await;
        upkeep.abort();
        tracing::info!("broker stopped");
        watched
    }
}

/// Runs a broker until it is told to stop (SIGTERM, SIGINT or SIGQUIT).
///
/// # Errors
/// [`BrokerError`] with the remedy.
pub async fn run(config: Config) -> Result<(), BrokerError> {
    use tokio::signal::unix::{SignalKind, signal};
    let mut terminate = signal(SignalKind::terminate()).map_err(BrokerError::System)?;
    let mut interrupt = signal(SignalKind::interrupt()).map_err(BrokerError::System)?;
    let mut quit = signal(SignalKind::quit()).map_err(BrokerError::System)?;
    let broker = Broker::start(config).await?;
    let stop = CancellationToken::new();
    let told = stop.clone();
    let waiting = tokio::spawn(async move {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
            _ = quit.recv() => {}
        }
        told.cancel();
    });
    let served = broker.serve(stop).await;
    waiting.abort();
    served
}

impl Listeners {
    fn bind(config: &Config) -> Result<(Self, Addresses), BrokerError> {
        let clients = accept::bind(config.clients, "the clients' listener", "--clients")?;
        let admin = accept::bind(config.admin, "the admin listener", "--admin")?;
        let node_link = accept::bind(config.node_link, "the node link", "--node-link")?;
        let addresses = Addresses {
            clients: clients.local_addr().map_err(BrokerError::System)?,
            admin: admin.local_addr().map_err(BrokerError::System)?,
            node_link: node_link.local_addr().map_err(BrokerError::System)?,
        };
        let listeners = Self {
            clients,
            admin,
            node_link,
        };
        Ok((listeners, addresses))
    }
}

/// Everything about a configuration that can be known to be wrong without touching anything.
fn check(config: &Config) -> Result<(Settings, Origins), BrokerError> {
    keys::check_locks(config)?;
    let settings = Settings {
        lease_ms: config.lease_ms,
        heartbeat_ms: config.heartbeat_ms,
        forget_ms: config.forget_ms,
        max_teams: config.max_teams,
        preserve_ms: config.preserve_ms,
        ..Settings::default()
    };
    settings.check()?;
    let mut listed = config.allow_origins.clone();
    // Pages of the broker's own public URL may ask, too.
    listed.extend(config.public_url.clone());
    let on_loopback = config.clients.ip().is_loopback();
    let origins = Origins::new(&listed, on_loopback).map_err(KeyError::Origin)?;
    Ok((settings, origins))
}

/// Runs what blocks where it may block.
async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, StoreError> + Send + 'static,
) -> Result<T, StoreError> {
    match tokio::task::spawn_blocking(work).await {
        Ok(done) => done,
        Err(error) => match error.try_into_panic() {
            Ok(panic) => std::panic::resume_unwind(panic),
            Err(error) => Err(StoreError::Io {
                path: String::new(),
                source: Box::new(error),
            }),
        },
    }
}
