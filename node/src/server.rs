//! A node in one process: its listeners, its tasks, and the order in which they stop.

use hyper::service::service_fn;
use std::convert::Infallible;
use std::net::{IpAddr, SocketAddr};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::TcpListener;
use tokio::task::JoinSet;
use tokio::time::{Instant, timeout_at};
use tokio_util::sync::CancellationToken;
use usher_listen::accept::{Limits, bind, serve};
use usher_listen::supervise::{once, restarted};
use usher_listen::telemetry::Telemetry;
use usher_node_core::lapse::OnLapse;
use usher_node_core::stopping::HASTY_CLOSES_MS;
use usher_shared::id::NodeId;
use usher_shared::template::NodeUrl;

use crate::NodeError;
use crate::brokers::BrokerAddress;
use crate::config::Config;
use crate::doors::{Doors, admin, probed};
use crate::floor::Floor;
use crate::link::{Introduction, keep};
use crate::load::Sampler;
use crate::name_lock::{NameLock, NameLockError};
use crate::outage::watch;
use crate::stop::{part_with_everybody, signals, wind_down};
use crate::upkeep::{pace, sample, sweep};

/// What listeners and the link get to end, even when nothing of the budget is left.
const LAST_WORDS: Duration = Duration::from_millis(100);

/// A node whose listeners are open.
pub struct Node {
    floor: Arc<Floor>,
    introduction: Introduction,
    sampler: Sampler,
    clients: TcpListener,
    probes: Option<TcpListener>,
    admin: TcpListener,
    client_address: SocketAddr,
    admin_address: SocketAddr,
    telemetry: Telemetry,
    /// A part that dies, for a test.
    #[cfg(test)]
    dies: Option<tests::Dies>,
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
        let lock = take_name(&config.node, &brokers)?;
        let clients = bind(config.listen, "the node's client listener", "--listen")?;
        let admin = bind(config.admin, "the node's admin listener", "--admin")?;
        let client_address = clients.local_addr().map_err(NodeError::Address)?;
        let admin_address = admin.local_addr().map_err(NodeError::Address)?;
        let url = match &config.url {
            Some(url) => url.clone(),
            None => derived_url(client_address)?,
        };
        let probes = match config.probe_listen {
            Some(listen) => Some(bind(listen, "the node's probe listener", "--probe-listen")?),
            None => None,
        };
        let probe_address = match &probes {
            Some(listener) => listener.local_addr().map_err(NodeError::Address)?,
            None => client_address,
        };
        let probe = probe_of(config.probe.as_deref(), probe_address)?;
        if is_local(&probe) && brokers.iter().any(|broker| !is_local(broker.authority())) {
            tracing::warn!(
                probe,
                "from another machine this probe address leads back to whoever dials it, and a broker of this node \
                 is on another machine: until --probe-listen or --probe names an address that leads here, this node's \
                 death is known by its parent's word or by the end of its lease, and no peer can ask it"
            );
        }
        let sampler = new_sampler();
        let introduction = Introduction {
            brokers,
            url,
            probe,
            cores: sampler.cores(),
            lock,
        };
        Ok(Self {
            floor: Arc::new(Floor::new(config)),
            introduction,
            sampler,
            clients,
            probes,
            admin,
            client_address,
            admin_address,
            telemetry,
            #[cfg(test)]
            dies: None,
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
    ///
    /// # Errors
    /// [`NodeError::Bug`] when a part of the node died that cannot begin again.
    pub async fn serve(self, stop: CancellationToken) -> Result<(), NodeError> {
        self.serve_until(stop, CancellationToken::new()).await
    }

    /// The same; `hasten` ends the budget at once.
    ///
    /// # Errors
    /// The same.
    pub async fn serve_until(
        self,
        stop: CancellationToken,
        hasten: CancellationToken,
    ) -> Result<(), NodeError> {
        let floor = self.floor;
        // Until nothing of this node acts any more: whoever holds it next proves that.
        let _name = self.introduction.lock.clone();
        if let Err(error) = floor.watchdog.start() {
            // Only a pool that fences owes anything to it, and it must not run unwatched.
            if floor.config.on_lapse == OnLapse::Fence {
                tracing::error!(%error, "no watchdog thread can be started, and this node is to fence");
                return Ok(());
            }
        }
        let listening = CancellationToken::new();
        let link_stop = CancellationToken::new();
        let doors = Doors::new(Arc::clone(&floor));
        // Each lives as long as the node. What can begin again from what the others see does so after a bug;
        // what cannot, or dies again and again, ends the node, and its parent starts it anew.
        let mut parts: JoinSet<Part> = JoinSet::new();
        let client_listener = serve(
            self.clients,
            Limits::of("clients"),
            listening.clone(),
            service_fn(move |request| {
                let doors = doors.clone();
                async move { Ok::<_, Infallible>(doors.answer(request).await) }
            }),
        );
        parts.spawn(async move {
            once(client_listener).await;
            Part::Clients
        });
        let for_admin = Arc::clone(&floor);
        let telemetry = self.telemetry.clone();
        let admin_listener = serve(
            self.admin,
            Limits {
                connections: 64,
                waiting: 16,
                ..Limits::of("admin")
            },
            listening.clone(),
            service_fn(move |request| {
                let answer = admin(&for_admin, &telemetry, &request);
                async move { Ok::<_, Infallible>(answer) }
            }),
        );
        parts.spawn(async move {
            once(admin_listener).await;
            Part::Admin
        });
        if let Some(listener) = self.probes {
            let for_probes = Arc::clone(&floor);
            let probe_listener = serve(
                listener,
                Limits {
                    connections: 64,
                    waiting: 16,
                    ..Limits::of("probes")
                },
                listening.clone(),
                service_fn(move |request| {
                    let answer = probed(&for_probes, &request);
                    async move { Ok::<_, Infallible>(answer) }
                }),
            );
            parts.spawn(async move {
                once(probe_listener).await;
                Part::Probes
            });
        }
        let (linked, introduction, ends) = (Arc::clone(&floor), self.introduction, link_stop.clone());
        parts.spawn(async move {
            restarted("the link to the broker", || {
                // A bug may have left it open.
                linked.link_ended();
                keep(Arc::clone(&linked), introduction.clone(), ends.clone())
            })
            .await;
            Part::Link
        });
        let mut sampler = Some(self.sampler);
        background(&mut parts, Part::Sampler, &floor, move |floor| {
            sample(floor, sampler.take().unwrap_or_else(new_sampler))
        });
        background(&mut parts, Part::Sweep, &floor, sweep);
        background(&mut parts, Part::Pacer, &floor, pace);
        background(&mut parts, Part::Lease, &floor, watch);
        let telemetry = self.telemetry;
        background(&mut parts, Part::Telemetry, &floor, move |_| {
            telemetry.clone().upkeep()
        });
        #[cfg(test)]
        if let Some(dies) = self.dies {
            background(&mut parts, Part::Sweep, &floor, move |_| dies.clone().run());
        }

        let died = tokio::select! {
            () = stop.cancelled() => None,
            died = parts.join_next() => Some(died.and_then(Result::ok).unwrap_or(Part::Unknown)),
        };
        let until = if let Some(part) = died {
            let _ = floor.bug.set(part.name());
            tracing::error!(
                part = part.name(),
                "a bug ended a part that this node cannot do without: it ends"
            );
            part_with_everybody(&floor, Instant::now() + Duration::from_millis(HASTY_CLOSES_MS)).await;
            Instant::now()
        } else {
            wind_down(&floor, &hasten).await
        };

        listening.cancel();
        link_stop.cancel();
        let mut last = vec![Part::Clients, Part::Admin, Part::Link];
        last.retain(|part| Some(*part) != died);
        let until = until.max(Instant::now() + LAST_WORDS);
        while !last.is_empty() {
            match timeout_at(until, parts.join_next()).await {
                Ok(Some(Ok(part))) => last.retain(|last| *last != part),
                Ok(Some(Err(_))) => {}
                Ok(None) => break,
                Err(_) => {
                    tracing::warn!("requests that were still open at the end of the stop budget were cut");
                    break;
                }
            }
        }
        died.map_or(Ok(()), |part| Err(NodeError::Bug { part: part.name() }))
    }
}

/// What a node is made of while it serves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Part {
    Clients,
    Admin,
    Probes,
    Link,
    Sampler,
    Sweep,
    Pacer,
    Lease,
    Telemetry,
    Unknown,
}

impl Part {
    const fn name(self) -> &'static str {
        match self {
            Self::Clients => "the clients' listener",
            Self::Admin => "the admin listener",
            Self::Probes => "the probe listener",
            Self::Link => "the link to the broker",
            Self::Sampler => "the sampler of CPU and memory",
            Self::Sweep => "the sweep over idle connections",
            Self::Pacer => "the pacer of a drain's slots",
            Self::Lease => "the watch over the lease",
            Self::Telemetry => "the upkeep of histograms",
            Self::Unknown => "a task",
        }
    }
}

fn background<F: Future<Output = ()> + Send + 'static>(
    parts: &mut JoinSet<Part>,
    part: Part,
    floor: &Arc<Floor>,
    mut begin: impl FnMut(Arc<Floor>) -> F + Send + 'static,
) {
    let floor = Arc::clone(floor);
    parts.spawn(async move {
        restarted(part.name(), || begin(Arc::clone(&floor))).await;
        part
    });
}

fn new_sampler() -> Sampler {
    let parallelism = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    Sampler::new(Path::new("/"), u32::try_from(parallelism).unwrap_or(1))
}

/// The lock of the name. Where the system gives none the node runs without, and a restart waits for the
/// lease of the process before it.
fn take_name(node: &NodeId, brokers: &[BrokerAddress]) -> Result<Option<Arc<NameLock>>, NodeError> {
    match NameLock::take(node, brokers) {
        Ok(lock) => Ok(Some(Arc::new(lock))),
        Err(NameLockError::Held(lock)) => Err(NodeError::NameHeld {
            node: node.clone(),
            lock,
        }),
        Err(NameLockError::System(error)) => {
            tracing::warn!(%error, "this system gives no lock for the node's name: only its parent can prove its end");
            Ok(None)
        }
    }
}

/// The address to be probed at: what was said, else where this listens.
fn probe_of(said: Option<&str>, address: SocketAddr) -> Result<String, NodeError> {
    let probe = said.map_or_else(|| address.to_string(), str::to_owned);
    let everywhere = probe
        .parse::<SocketAddr>()
        .is_ok_and(|probe| probe.ip().is_unspecified());
    // The broker would take a refusal at its own loopback for this node's death.
    if everywhere {
        return Err(NodeError::ProbeNeeded { address });
    }
    Ok(probe)
}

/// Whether `host:port` leads to whoever dials it.
fn is_local(address: &str) -> bool {
    let host = address.rsplit_once(':').map_or(address, |(host, _)| host);
    let host = host.trim_start_matches('[').trim_end_matches(']');
    host.eq_ignore_ascii_case("localhost")
        || host
            .parse::<IpAddr>()
            .is_ok_and(|ip| ip.to_canonical().is_loopback())
}

fn derived_url(address: SocketAddr) -> Result<NodeUrl, NodeError> {
    if address.ip().is_unspecified() {
        return Err(NodeError::UrlNeeded { address });
    }
    let url = format!("ws://{address}/teams/{{team}}");
    url.parse().map_err(|_| NodeError::UrlNeeded { address })
}

/// Runs a node until it is told to stop (SIGTERM, SIGINT or SIGQUIT) and has been emptied or its budget is
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
        version = env!("CARGO_PKG_VERSION"),
        capacity_connections = node.floor.config.capacity.connections,
        "node started"
    );
    let served = node.serve_until(stop, hasten).await;
    signals.abort();
    tracing::info!("node stopped");
    served
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicU32, Ordering};
    use tokio::time::{sleep, timeout};
    use usher_shared::link::Capacity;
    use usher_shared::quantity::Weight;

    /// Dies as often as it is told.
    #[derive(Clone)]
    pub(super) struct Dies {
        times: u32,
        begun: Arc<AtomicU32>,
    }

    impl Dies {
        pub(super) async fn run(self) {
            let begun = self.begun.fetch_add(1, Ordering::SeqCst);
            assert!(begun >= self.times, "injected");
            std::future::pending().await
        }
    }

    fn node_with_a_part_that_dies(times: u32) -> (Node, Arc<AtomicU32>) {
        let nowhere = SocketAddr::from(([127, 0, 0, 1], 0));
        let config = Config {
            // A name is one process's at a time, and tests run beside each other.
            node: format!("n{}-{times}", std::process::id()).parse().unwrap(),
            incarnation: usher_shared::id::Incarnation::from_bits(1),
            nonce: usher_shared::identity::Hidden::from_bits(1),
            probe_listen: None,
            listen: nowhere,
            admin: nowhere,
            brokers: vec!["ws://127.0.0.1:1".to_owned()],
            url: None,
            probe: None,
            region: None,
            zone: None,
            labels: std::collections::BTreeMap::default(),
            weight: Weight::NODE,
            capacity: Capacity {
                teams: 10,
                connections: 10,
            },
            relay: crate::Relay::Team,
            on_lapse: OnLapse::Hold,
            token: None,
            stop_budget: Duration::ZERO,
            ping: Duration::from_secs(25),
            message_bytes: 1_024,
            queue_bytes: 1_024,
            message_time: Duration::from_secs(60),
            unfinished_bytes: 1 << 20,
            frames_per_s: 100,
            controls_per_s: 100,
            bytes_per_s: 1 << 20,
        };
        let mut node = Node::bind(config).unwrap();
        let begun = Arc::new(AtomicU32::new(0));
        node.dies = Some(Dies {
            times,
            begun: Arc::clone(&begun),
        });
        (node, begun)
    }

    #[tokio::test]
    async fn a_walk_over_all_teams_leaves_the_door_open_between_its_slices() {
        let (node, _) = node_with_a_part_that_dies(0);
        let seat = |number: u32| {
            let team: usher_shared::id::TeamId = format!("T{number:04}").parse().unwrap();
            let roster = Arc::new(crate::roster::Roster::new(team.clone()));
            node.floor.state.lock().rosters.insert(team, roster);
        };
        (1..=1_000).for_each(seat);
        let mut met = std::collections::BTreeSet::new();
        let mut slices = 0;
        for slice in node.floor.slices() {
            slices += 1;
            for roster in &slice {
                assert!(met.insert(roster.team.clone()), "{} came twice", roster.team);
            }
            // Somebody goes that was met, and somebody comes where the walk has been.
            let mut state = node
                .floor
                .state
                .try_lock()
                .expect("the lock is held between slices");
            state.rosters.remove(&slice[0].team);
            drop(state);
            seat(0);
        }
        assert_eq!((met.len(), slices), (1_000, 4));
        let mut everybody = node.floor.slices().flatten();
        assert!(everybody.all(|roster| roster.is_empty()));
        node.floor.tidy(&[]);
    }

    #[tokio::test]
    async fn a_part_that_dies_once_begins_again_and_the_node_goes_on() {
        let (node, begun) = node_with_a_part_that_dies(1);
        let (floor, stop) = (Arc::clone(&node.floor), CancellationToken::new());
        let served = tokio::spawn(node.serve(stop.clone()));
        let again = async {
            while begun.load(Ordering::SeqCst) < 2 {
                sleep(Duration::from_millis(5)).await;
            }
        };
        assert!(timeout(Duration::from_secs(20), again).await.is_ok());
        assert_eq!(floor.bug.get(), None);
        stop.cancel();
        assert!(served.await.unwrap().is_ok());
    }

    #[tokio::test]
    async fn a_part_that_dies_again_and_again_ends_the_node_and_health_says_which() {
        let (node, _) = node_with_a_part_that_dies(u32::MAX);
        let floor = Arc::clone(&node.floor);
        let served = timeout(Duration::from_secs(30), node.serve(CancellationToken::new())).await;
        let bug = served.unwrap().unwrap_err();
        assert!(
            bug.to_string().contains("the sweep over idle connections"),
            "{bug}"
        );
        assert_eq!(floor.bug.get(), Some(&"the sweep over idle connections"));
    }
}
