//! A node in one process: its listeners, its tasks, and the order in which they stop.

use hyper::service::service_fn;
use std::convert::Infallible;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep, timeout};
use tokio_util::sync::CancellationToken;
use usher_listen::accept::{Limits, bind, serve};
use usher_listen::telemetry::Telemetry;
use usher_shared::frame::CloseCode;
use usher_shared::link::EndedBy;
use usher_shared::template::NodeUrl;

use crate::NodeError;
use crate::brokers::BrokerAddress;
use crate::config::Config;
use crate::doors::{Doors, admin};
use crate::floor::{Floor, jitter};
use crate::lapse::OnLapse;
use crate::link::{Introduction, keep};
use crate::load::{EVERY, Sampler};
use crate::outage::watch;
use crate::outbox::{Goodbye, Swept};

/// After its last connection a stopping node stays this long, to send on clients that hold a ticket for it.
const LINGER: Duration = Duration::from_secs(1);
/// How long the last closes may take once the budget is over.
const LAST_CLOSES: Duration = Duration::from_secs(5);
/// Clients that are closed without a broker to go to come back spread so far that the pool takes
/// this many a second.
const RETURNS_PER_S: u64 = 200;

/// A node whose listeners are open.
pub struct Node {
    floor: Arc<Floor>,
    introduction: Introduction,
    sampler: Sampler,
    clients: TcpListener,
    admin: TcpListener,
    client_address: SocketAddr,
    admin_address: SocketAddr,
    telemetry: Telemetry,
}

impl Node {
    /// Checks the configuration and opens the listeners. Must be called inside a tokio runtime.
    ///
    /// # Errors
    /// [`NodeError`] with the remedy.
    pub fn bind(config: Config) -> Result<Self, NodeError> {
        let telemetry = Telemetry::install().map_err(NodeError::Telemetry)?;
        let brokers: Result<Vec<BrokerAddress>, _> =
            config.brokers.iter().map(|broker| broker.parse()).collect();
        let brokers = brokers?;
        if brokers.is_empty() {
            return Err(NodeError::NoBroker);
        }
        let clients = bind(config.listen, "the node's client listener", "--listen")?;
        let admin = bind(config.admin, "the node's admin listener", "--admin")?;
        let client_address = clients.local_addr().map_err(NodeError::Address)?;
        let admin_address = admin.local_addr().map_err(NodeError::Address)?;
        let url = match &config.url {
            Some(url) => url.clone(),
            None => derived_url(client_address)?,
        };
        let probe = match &config.probe {
            Some(probe) => probe.clone(),
            // The broker would take a refusal at its own loopback for this node's death.
            None if client_address.ip().is_unspecified() => {
                return Err(NodeError::ProbeNeeded {
                    address: client_address,
                });
            }
            None => client_address.to_string(),
        };
        let parallelism = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
        let sampler = Sampler::new(Path::new("/"), u32::try_from(parallelism).unwrap_or(1));
        let introduction = Introduction {
            brokers,
            url,
            probe,
            cores: sampler.cores(),
        };
        Ok(Self {
            floor: Arc::new(Floor::new(config)),
            introduction,
            sampler,
            clients,
            admin,
            client_address,
            admin_address,
            telemetry,
        })
    }

    /// Where clients connect.
    #[must_use]
    pub fn client_address(&self) -> SocketAddr {
        self.client_address
    }

    /// Where `/metrics` is.
    #[must_use]
    pub fn admin_address(&self) -> SocketAddr {
        self.admin_address
    }

    /// Serves until `stop`, and then until the node has been emptied or its budget is over.
    pub async fn serve(self, stop: CancellationToken) {
        self.serve_until(stop, CancellationToken::new()).await;
    }

    /// The same; `hasten` ends the budget at once.
    pub async fn serve_until(self, stop: CancellationToken, hasten: CancellationToken) {
        let floor = self.floor;
        if let Err(error) = floor.watchdog.start() {
            // Only a pool that fences owes anything to it, and it must not run unwatched.
            if floor.config.on_lapse == OnLapse::Fence {
                tracing::error!(%error, "no watchdog thread can be started, and this node is to fence");
                return;
            }
        }
        let listening = CancellationToken::new();
        let link_stop = CancellationToken::new();
        let doors = Doors::new(Arc::clone(&floor));
        let client_listener = tokio::spawn(serve(
            self.clients,
            Limits::default(),
            listening.clone(),
            service_fn(move |request| {
                let doors = doors.clone();
                async move { Ok::<_, Infallible>(doors.answer(request).await) }
            }),
        ));
        let for_admin = Arc::clone(&floor);
        let telemetry = self.telemetry.clone();
        let admin_listener = tokio::spawn(serve(
            self.admin,
            Limits {
                connections: 64,
                ..Limits::default()
            },
            listening.clone(),
            service_fn(move |request| {
                let answer = admin(&for_admin, &telemetry, &request);
                async move { Ok::<_, Infallible>(answer) }
            }),
        ));
        let background = Background(vec![
            tokio::spawn(sample(Arc::clone(&floor), self.sampler)),
            tokio::spawn(sweep(Arc::clone(&floor))),
            tokio::spawn(pace(Arc::clone(&floor))),
            tokio::spawn(watch(Arc::clone(&floor))),
            tokio::spawn(self.telemetry.upkeep()),
        ]);
        let link = tokio::spawn(keep(Arc::clone(&floor), self.introduction, link_stop.clone()));

        stop.cancelled().await;
        wind_down(&floor, &hasten).await;

        listening.cancel();
        link_stop.cancel();
        let _ = link.await;
        let _ = client_listener.await;
        let _ = admin_listener.await;
        drop(background);
    }
}

/// Tasks that end with the node.
struct Background(Vec<JoinHandle<()>>);

impl Drop for Background {
    fn drop(&mut self) {
        for task in &self.0 {
            task.abort();
        }
    }
}

fn derived_url(address: SocketAddr) -> Result<NodeUrl, NodeError> {
    if address.ip().is_unspecified() {
        return Err(NodeError::UrlNeeded { address });
    }
    let url = format!("ws://{address}/teams/{{team}}");
    url.parse().map_err(|_| NodeError::UrlNeeded { address })
}

/// Runs a node until it is told to stop (SIGTERM or SIGINT) and has been emptied or its budget is
/// over. A second signal ends the budget.
///
/// # Errors
/// [`NodeError`] with the remedy.
pub async fn run(config: Config) -> Result<(), NodeError> {
    let node = Node::bind(config)?;
    let (stop, hasten) = (CancellationToken::new(), CancellationToken::new());
    let signals = tokio::spawn(signals(stop.clone(), hasten.clone())?);
    tracing::info!(
        node = %node.floor.config.node,
        clients = %node.client_address,
        admin = %node.admin_address,
        url = %node.introduction.url,
        "node started"
    );
    node.serve_until(stop, hasten).await;
    signals.abort();
    tracing::info!("node stopped");
    Ok(())
}

fn signals(
    stop: CancellationToken,
    hasten: CancellationToken,
) -> Result<impl Future<Output = ()>, NodeError> {
    let mut terminate = signal(SignalKind::terminate()).map_err(NodeError::Signals)?;
    let mut interrupt = signal(SignalKind::interrupt()).map_err(NodeError::Signals)?;
    Ok(async move {
        for token in [stop, hasten] {
            tokio::select! {
                _ = terminate.recv() => {}
                _ = interrupt.recv() => {}
            }
            token.cancel();
        }
    })
}

/// Serves on until nothing is left, the budget is over, or `hasten`; then closes what is left.
async fn wind_down(floor: &Floor, hasten: &CancellationToken) {
    let budget = floor.config.stop_budget;
    floor.stopping.send_replace(Some(Instant::now() + budget));
    let served = !floor.state.lock().mandate.holdings.is_empty();
    tracing::info!(
        budget_s = budget.as_secs(),
        "stopping: asked the broker to drain this node"
    );
    let emptied = async {
        emptied(floor).await;
        if served {
            sleep(LINGER).await;
        }
    };
    tokio::select! {
        () = emptied => return,
        () = sleep(budget) => {}
        () = hasten.cancelled() => {}
    }
    let left = floor.everybody();
    tracing::warn!(
        connections = left.len(),
        "the stop budget is over: closing what is left"
    );
    let spread_ms = 1_000 + left.len() as u64 * 1_000 / RETURNS_PER_S;
    for member in left {
        let goodbye = Goodbye::retry(CloseCode::Restart, "stopping", jitter(spread_ms));
        member.close(goodbye, floor.clock.now(), EndedBy::Deadline);
    }
    let _ = timeout(LAST_CLOSES, async {
        while floor.state.lock().connections > 0 {
            floor.gone.notified().await;
        }
    })
    .await;
}

/// Returns once no connection and no team is left.
async fn emptied(floor: &Floor) {
    loop {
        {
            let state = floor.state.lock();
            if state.connections == 0 && state.mandate.holdings.is_empty() {
                return;
            }
        }
        floor.gone.notified().await;
    }
}

/// Samples the load each second.
async fn sample(floor: Arc<Floor>, mut sampler: Sampler) {
    let mut every = tokio::time::interval(EVERY);
    every.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let mut last = Instant::now();
    loop {
        every.tick().await;
        let now = Instant::now();
        let reading = sampler.sample(now.duration_since(last));
        last = now;
        floor.figures.cpu_now.set(reading.cpu_now.get());
        floor.figures.cpu_average.set(reading.cpu_average.get());
        *floor.load.lock() = reading;
    }
}

/// Advances the coarse clock and looks after idle and stuck connections. One task for all of them:
/// a timer per connection would be most of an idle connection's cost.
async fn sweep(floor: Arc<Floor>) {
    let ping = floor.config.ping;
    let tick = (ping / 8).clamp(Duration::from_millis(20), Duration::from_secs(1));
    let ping_ms = u32::try_from(ping.as_millis()).unwrap_or(u32::MAX);
    let mut every = tokio::time::interval(tick);
    every.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let began = Instant::now();
    loop {
        every.tick().await;
        // Wraps after 49 days, as the readers expect.
        #[allow(clippy::cast_possible_truncation)]
        let now = began.elapsed().as_millis() as u32;
        floor.clock.set(now);
        for outbox in floor.everybody() {
            if outbox.sweep(now, ping_ms) == Swept::Silent {
                floor.figures.silent.increment(1);
            }
        }
        floor.tidy();
    }
}

/// Closes connections at their slots.
async fn pace(floor: Arc<Floor>) {
    loop {
        match floor.run_slots() {
            Some(wait) => {
                let _ = timeout(wait, floor.planned.notified()).await;
            }
            None => floor.planned.notified().await,
        }
    }
}
