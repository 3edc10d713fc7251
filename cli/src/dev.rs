//! `usher dev`: a broker and nodes on this machine, as processes of their own so that one can be killed.
//!
//! [`ports`] chooses the addresses, [`children`] runs the processes, [`screen`] shows what is up,
//! [`watch`] turns what the broker says into lines.

mod children;
mod ports;
mod screen;
mod watch;

use anyhow::Context as _;
use clap::Args;
use std::io::{Read as _, Seek as _, SeekFrom};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;
use tokio::time::{Instant, MissedTickBehavior, interval, sleep};
use tokio_util::sync::CancellationToken;
use usher_shared::rest::{NodeState, NodesView, OperationsView, StatusView};

use crate::api::{Api, ApiError};
use crate::duration::HumanDuration;
use crate::failure::Failure;
use crate::logging::{Lines, LogFilter, Losses};
use crate::{settings, signals};
use children::{Process, is_alive, stop, worker_of};
use ports::{Addresses, NODES_MAX, Ports, Wishes};
use screen::{Cluster, Scratch};
use watch::Watch;

/// How long everything may take to come up; a machine under load needs a few seconds.
const START: Duration = Duration::from_secs(60);
/// How often processes are looked at: a death should be timed well.
const GLANCE: Duration = Duration::from_millis(50);
/// How often the broker is asked, in quiet times.
const ASK: Duration = Duration::from_millis(500);
/// How long the broker, and the nodes beyond their budget, may take to stop before SIGKILL.
const STOP_GRACE: Duration = Duration::from_secs(5);

/// Run a broker and some nodes on this machine, to try things out
#[derive(Args)]
#[command(
    after_help = "Every process is a child of this one and ends with it. Nothing listens beyond this machine.\n\n\
    Examples:\n  usher dev\n  usher dev --nodes 5 --data ./usher-data\n  usher dev --ports 8000\n  \
    usher dev --ports auto --json"
)]
pub(crate) struct DevArgs {
    /// How many nodes
    #[arg(long, short, default_value_t = 3, value_name = "NUMBER", value_parser = clap::value_parser!(u32).range(1..=i64::from(NODES_MAX)))]
    nodes: u32,
    /// Keep the store and the logs here [default: a scratch folder, removed at the end]
    #[arg(long, value_name = "FOLDER")]
    data: Option<PathBuf>,
    /// The first port (nodes follow 10 above it, their admin listeners 110), or `auto` for free ones
    #[arg(long, alias = "base-port", default_value = "7400", value_name = "BASE|auto")]
    ports: Ports,
    /// Port of the broker's client listener
    #[arg(long, value_name = "PORT")]
    clients_port: Option<u16>,
    /// Port of the broker's admin listener
    #[arg(long, value_name = "PORT")]
    admin_port: Option<u16>,
    /// Port of the broker's node link
    #[arg(long, value_name = "PORT")]
    node_link_port: Option<u16>,
    /// Port of the first node; the others follow
    #[arg(long, value_name = "PORT")]
    node_port: Option<u16>,
    /// Port of the first node's admin listener; the others follow
    #[arg(long, value_name = "PORT")]
    node_admin_port: Option<u16>,
    /// How long nodes may take to be emptied at the end
    #[arg(long, default_value = "2s", value_name = "DURATION")]
    stop_budget: HumanDuration,
    /// What the processes log
    #[arg(long, default_value = "info", value_name = "FILTER")]
    log: LogFilter,
    /// Show the logs here as well
    #[arg(long)]
    logs: bool,
    /// Print one line of JSON when all is up, and nothing else
    #[arg(long, conflicts_with = "logs")]
    json: bool,
}

pub(crate) async fn run(args: DevArgs) -> Result<ExitCode, Failure> {
    let wishes = Wishes {
        clients: args.clients_port,
        admin: args.admin_port,
        node_link: args.node_link_port,
        node: args.node_port,
        node_admin: args.node_admin_port,
    };
    let addresses = ports::choose(args.ports, wishes, args.nodes)?;
    settings::raise_descriptors()?;
    let mut hangup = signals::outlast().map_err(Failure::new)?;
    let stop_asked = signals::stop().map_err(Failure::new)?;
    let screen = Screen::start().map_err(Failure::new)?;
    // Dropped at the end of this function, and the folder with it.
    let (data, _scratch) = data_folder(args.data.as_deref())?;
    let mut dev = Dev::start(&args, &addresses, &data, screen.clone())?;
    let ended = tokio::select! {
        ended = dev.live(&args, &addresses, &data) => ended,
        () = stop_asked.cancelled() => Ok(()),
        // The terminal is gone, and with it whoever tried things out.
        _ = hangup.recv() => Ok(()),
    };
    if !args.json {
        screen.note("stopping");
    }
    dev.stop(args.stop_budget.0).await;
    screen.flush();
    ended.map(|()| ExitCode::SUCCESS)
}

/// The folder, and what removes it at the end when it is only for this run.
fn data_folder(asked: Option<&Path>) -> anyhow::Result<(PathBuf, Option<tempfile::TempDir>)> {
    let (data, scratch) = match asked {
        Some(data) => {
            std::fs::create_dir_all(data)
                .with_context(|| format!("cannot make the folder {}", data.display()))?;
            let data = data
                .canonicalize()
                .with_context(|| format!("cannot use {}", data.display()))?;
            (data, None)
        }
        None => {
            let scratch = tempfile::Builder::new()
                .prefix("usher-dev-")
                .tempdir()
                .context("cannot make a scratch folder; --data names another")?;
            (scratch.path().to_owned(), Some(scratch))
        }
    };
    std::fs::create_dir_all(data.join("logs"))
        .with_context(|| format!("cannot write in {}", data.display()))?;
    Ok((data, scratch))
}

/// What is shown. Who looks at it may stop reading or go away; the cluster runs on, and is still looked after.
#[derive(Clone)]
struct Screen {
    out: Lines,
    err: Lines,
}

impl Screen {
    fn start() -> std::io::Result<Self> {
        let losses = || Losses {
            count: |_| {},
            tell: |_| {},
        };
        Ok(Self {
            out: Lines::start("usher-out", &std::io::stdout(), losses())?,
            err: Lines::start("usher-err", &std::io::stderr(), losses())?,
        })
    }

    fn line(&self, line: &str) {
        self.text(&format!("{line}\n"));
    }

    fn text(&self, text: &str) {
        self.out.put(text.as_bytes());
    }

    fn note(&self, line: &str) {
        self.err.put(format!("{line}\n").as_bytes());
    }

    fn flush(&self) {
        for lines in [&self.out, &self.err] {
            lines.flush(Duration::from_millis(500));
        }
    }
}

/// The processes of a cluster.
struct Dev {
    api: Api,
    screen: Screen,
    broker: Vec<Process>,
    nodes: Vec<Process>,
    /// The process that does each node's work, where it is known.
    workers: Vec<Option<u32>>,
    began: Instant,
    /// When the processes were last looked at.
    glanced_ms: u64,
}

impl Dev {
    fn start(args: &DevArgs, addresses: &Addresses, data: &Path, screen: Screen) -> Result<Self, Failure> {
        let logs = data.join("logs");
        let broker = Process::start("broker", broker_arguments(args, addresses, data), &logs)?;
        let mut nodes = Vec::new();
        for node in &addresses.nodes {
            let arguments = node_arguments(args, addresses, node);
            nodes.push(Process::start(node.node.as_str(), arguments, &logs)?);
        }
        Ok(Self {
            api: Api::at(format!("http://{}", addresses.admin), None).map_err(Failure::new)?,
            screen,
            broker: vec![broker],
            workers: vec![None; nodes.len()],
            nodes,
            began: Instant::now(),
            glanced_ms: 0,
        })
    }

    /// Waits until all are ready, shows them, and tells what happens until something cannot go on.
    async fn live(&mut self, args: &DevArgs, addresses: &Addresses, data: &Path) -> Result<(), Failure> {
        self.wait_until_ready().await?;
        let pids = self
            .nodes
            .iter()
            .zip(&self.workers)
            .map(|(node, worker)| (node.pid(), *worker));
        let cluster = Cluster::new(addresses, self.broker[0].pid(), pids.collect(), data);
        if args.json {
            self.screen
                .line(&serde_json::to_string(&cluster).map_err(Failure::new)?);
        } else {
            let command = std::env::args().next().unwrap_or_else(|| "usher".to_owned());
            let scratch = if args.data.is_some() {
                Scratch::Kept
            } else {
                Scratch::Removed
            };
            self.screen.text(&cluster.page(&command, scratch));
        }
        let shown = CancellationToken::new();
        let _stop_showing = shown.clone().drop_guard();
        if args.logs {
            for process in self.broker.iter().chain(&self.nodes) {
                let (name, log) = (process.name.clone(), process.log.clone());
                tokio::spawn(show_log(self.screen.clone(), name, log, shown.clone()));
            }
        }
        self.watch(args).await
    }

    async fn wait_until_ready(&mut self) -> Result<(), Failure> {
        let until = Instant::now() + START;
        loop {
            for process in self.broker.iter_mut().chain(&mut self.nodes) {
                if let Some(status) = process.ended() {
                    return Err(Failure::say(format!(
                        "{} could not start ({status}); the end of its log:\n{}",
                        process.name,
                        process.tail()
                    )));
                }
            }
            if self.all_ready().await {
                self.find_workers();
                if self.workers.iter().all(Option::is_some) {
                    return Ok(());
                }
            }
            if Instant::now() > until {
                return Err(Failure::say(format!(
                    "not all were ready after {} s; the end of the broker's log:\n{}",
                    START.as_secs(),
                    self.broker[0].tail()
                )));
            }
            sleep(GLANCE).await;
        }
    }

    async fn all_ready(&self) -> bool {
        if self.api.get::<StatusView>("/v1/status").await.is_err() {
            return false;
        }
        let Ok(view) = self.api.get::<NodesView>("/v1/nodes").await else {
            return false;
        };
        // Only the ones started here: a kept store may know nodes of another run. A node that was
        // cordoned or emptied before the restart is as ready as it will be.
        self.nodes.iter().all(|process| {
            view.nodes.iter().any(|node| {
                let up = matches!(
                    node.state,
                    NodeState::Ready | NodeState::Cordoned | NodeState::Draining | NodeState::Drained
                );
                node.node.as_str() == process.name && up
            })
        })
    }

    fn find_workers(&mut self) {
        for (process, worker) in self.nodes.iter().zip(&mut self.workers) {
            if worker.is_none() {
                *worker = process.pid().and_then(worker_of);
            }
        }
    }

    async fn watch(&mut self, args: &DevArgs) -> Result<(), Failure> {
        let mut watch = Watch::default();
        let mut glance = interval(GLANCE);
        glance.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut asked: Option<Instant> = None;
        let screen = self.screen.clone();
        let tell = |line: &str| {
            if !args.json {
                screen.line(line);
            }
        };
        loop {
            glance.tick().await;
            for line in self.bury(&mut watch)? {
                tell(&line);
            }
            let due = asked.is_none_or(|at| at.elapsed() >= ASK) || watch.is_exciting(self.now_ms());
            if !due {
                continue;
            }
            asked = Some(Instant::now());
            match self.ask().await {
                Ok((nodes, operations)) => {
                    for line in watch.look(&nodes, &operations, self.now_ms()) {
                        tell(&line);
                    }
                }
                Err(_) => {
                    if let Some(line) = watch.no_answer() {
                        tell(&line);
                    }
                }
            }
        }
    }

    fn now_ms(&self) -> u64 {
        u64::try_from(self.began.elapsed().as_millis()).unwrap_or(u64::MAX)
    }

    async fn ask(&self) -> Result<(NodesView, OperationsView), ApiError> {
        let nodes = self.api.get("/v1/nodes").await?;
        Ok((nodes, self.api.get("/v1/operations").await?))
    }

    /// Takes note of the dead, and starts those again that have no parent of their own to do it.
    fn bury(&mut self, watch: &mut Watch) -> Result<Vec<String>, Failure> {
        let mut lines = Vec::new();
        let now_ms = self.now_ms();
        let alive_ms = std::mem::replace(&mut self.glanced_ms, now_ms);
        for at in 0..self.nodes.len() {
            let name = self.nodes[at].name.clone();
            match self.workers[at] {
                Some(pid) if !is_alive(pid) => {
                    self.workers[at] = None;
                    watch.died(name.parse().map_err(Failure::new)?, pid, alive_ms);
                }
                Some(_) => {}
                None => {
                    self.workers[at] = self.nodes[at].pid().and_then(worker_of);
                    if let Some(pid) = self.workers[at] {
                        lines.push(format!("{name} was started again, pid {pid}"));
                    }
                }
            }
        }
        for process in self.broker.iter_mut().chain(&mut self.nodes) {
            if let Some(status) = process.ended() {
                process.start_again()?;
                let pid = process.pid().map_or(String::new(), |pid| format!(", pid {pid}"));
                lines.push(format!(
                    "{} ended ({status}) and was started again{pid}",
                    process.name
                ));
            }
        }
        Ok(lines)
    }

    /// Nodes first, so that each can say goodbye to the broker.
    async fn stop(&mut self, budget: Duration) {
        let nodes = stop(&mut self.nodes, budget + STOP_GRACE).await;
        let broker = stop(&mut self.broker, STOP_GRACE).await;
        if nodes + broker > 0 {
            let killed = nodes + broker;
            self.screen
                .note(&format!("{killed} did not stop in time and had to be killed"));
        }
    }
}

fn broker_arguments(args: &DevArgs, addresses: &Addresses, data: &Path) -> Vec<String> {
    let data = data.join("broker").display().to_string();
    [
        "broker",
        "--clients",
        &addresses.clients.to_string(),
        "--admin",
        &addresses.admin.to_string(),
        "--node-link",
        &addresses.node_link.to_string(),
        "--data",
        &data,
        "--log",
        &args.log.to_string(),
    ]
    .map(str::to_owned)
    .to_vec()
}

fn node_arguments(args: &DevArgs, addresses: &Addresses, node: &ports::NodeAddresses) -> Vec<String> {
    [
        "node",
        "--name",
        node.node.as_str(),
        "--listen",
        &node.listen.to_string(),
        "--admin",
        &node.admin.to_string(),
        "--broker",
        &format!("ws://{}", addresses.node_link),
        "--stop-budget",
        &args.stop_budget.to_string(),
        "--log",
        &args.log.to_string(),
    ]
    .map(str::to_owned)
    .to_vec()
}

/// Prints what is added to a log, each line after the name of its process.
async fn show_log(screen: Screen, name: String, log: PathBuf, stop: CancellationToken) {
    let mut read = 0;
    let mut rest = String::new();
    while !stop.is_cancelled() {
        if let Ok(added) = added_since(&log, read) {
            read += added.len() as u64;
            rest.push_str(&String::from_utf8_lossy(&added));
            while let Some(end) = rest.find('\n') {
                let line: String = rest.drain(..=end).collect();
                screen.text(&format!("{name} | {line}"));
            }
        }
        sleep(Duration::from_millis(200)).await;
    }
}

fn added_since(log: &Path, at: u64) -> std::io::Result<Vec<u8>> {
    let mut file = std::fs::File::open(log)?;
    file.seek(SeekFrom::Start(at))?;
    let mut added = Vec::new();
    file.take(1 << 20).read_to_end(&mut added)?;
    Ok(added)
}
