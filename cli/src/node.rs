//! `usher node`: the long-running node, and the small parent that restarts it.

use anyhow::{Context as _, bail};
use clap::Args;
use serde::{Deserialize, Serialize};
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;
use usher_node::parent::{self, INCARNATION_VARIABLE, NONCE_VARIABLE, PARENT_VARIABLE, ParentConfig};
use usher_node::{OnLapse, Relay};
use usher_shared::id::{Incarnation, Label, NodeId};
use usher_shared::identity::Hidden;
use usher_shared::link::{Capacity, MAX_LABELS};
use usher_shared::quantity::Weight;
use usher_shared::template::NodeUrl;

use crate::duration::HumanDuration;
use crate::failure::Failure;
use crate::logging::{self, LogFilter, LogFormat};
use crate::reload::{Level, Reload};
use crate::settings::{self, File, Labels, is_loopback};
use crate::signals;

/// What a node holds at most when nobody said: far above what one process has been seen to bear.
const TEAMS: u32 = 100_000;
/// Descriptors that the node keeps free, whatever its capacity: beyond that it turns clients away.
const LEAST_SPARE_DESCRIPTORS: u64 = 128;
/// Descriptors kept for everything that is not a client: listeners, the broker link, bridges, files.
const SPARE_DESCRIPTORS: u64 = 500;

/// What messages may hold that have begun and not ended: 128 of the largest at once.
const UNFINISHED_BYTES: u64 = 32 << 20;
/// In a small container it is this part of the memory: connections and what waits for slow readers need the rest.
const UNFINISHED_PART: u64 = 8;
/// Beyond one half clients that begin messages could by themselves bring a container near its end.
const UNFINISHED_MOST_PART: u64 = 2;
/// Frames a second of one client: a bot that passes on a busy channel sends tens, and a node carries
/// hundreds of thousands in all.
const FRAMES_PER_S: u32 = 2_000;
/// Pings and pongs a second: some libraries send one a second, none needs more than a few.
const CONTROLS_PER_S: u32 = 20;
/// Bytes a second: more than most lines of clients have, and 64 messages of the largest.
const BYTES_PER_S: u32 = 16 << 20;
/// A node that offers fewer connections without being asked to was most likely not meant to.
const FEW_CONNECTIONS: u32 = 4_096;

/// Run a node: it holds the WebSockets of its teams and relays between them
#[derive(Args)]
#[command(
    after_help = "The process you start is a small parent: it runs the node's work in a child, starts it anew\n\
    when it dies, and tells the broker so at once. --no-parent runs the work directly.\n\
    The node token comes from --node-token-file or USHER_NODE_TOKEN, never from a flag.\n\n\
    As TOML (--config FILE), names with underscores:\n  \
    [node]\n  name = \"chat-7\"\n  listen = \"0.0.0.0:7410\"\n  brokers = [\"ws://broker:7402\"]\n  \
    url = \"wss://chat.example.com/n/{node}/teams/{team}\"\n  node_token_file = \"/etc/usher/node\"\n\n\
    Examples:\n  usher node --name node-4 --listen 127.0.0.1:7413 --admin 127.0.0.1:7513\n  \
    usher node --config /etc/usher.toml --log-format json"
)]
pub(crate) struct NodeArgs {
    /// TOML file; its `node` table holds any of the settings below
    #[arg(long, env = "USHER_CONFIG", value_name = "FILE")]
    config: Option<PathBuf>,
    /// Do the work in this process, without the small parent
    #[arg(long)]
    no_parent: bool,
    #[command(flatten)]
    settings: NodeSettings,
}

/// What may be said in flags, in variables and in the `[node]` table.
#[derive(Args, Clone, Debug, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct NodeSettings {
    /// The node's name, stable over restarts [default: the host name]
    #[arg(long, env = "USHER_NODE_NAME", value_name = "NODE")]
    pub(crate) name: Option<NodeId>,
    /// Where clients connect [default: 127.0.0.1:7410]
    #[arg(long, env = "USHER_NODE_LISTEN", value_name = "ADDRESS", value_parser = settings::address)]
    pub(crate) listen: Option<SocketAddr>,
    /// Where /metrics and health are [default: 127.0.0.1:7510]
    #[arg(long, env = "USHER_NODE_ADMIN", value_name = "ADDRESS", value_parser = settings::address)]
    pub(crate) admin: Option<SocketAddr>,
    /// Node-link listeners of the brokers, separated by commas [default: ws://127.0.0.1:7402]
    #[arg(
        long = "broker",
        env = "USHER_NODE_BROKERS",
        value_name = "URLS",
        value_delimiter = ','
    )]
    pub(crate) brokers: Option<Vec<String>>,
    /// Where clients reach the node; may hold {node}, must hold {team} [default: ws://LISTEN/teams/{team}]
    #[arg(long, env = "USHER_NODE_URL", value_name = "TEMPLATE")]
    pub(crate) url: Option<NodeUrl>,
    /// Where the broker's probes and peers are answered, beside LISTEN: needed where LISTEN cannot be reached
    /// from the broker's machine, as behind a local TLS proxy [default: none]
    #[arg(long, env = "USHER_NODE_PROBE_LISTEN", value_name = "ADDRESS")]
    pub(crate) probe_listen: Option<SocketAddr>,
    /// host:port that the broker tries when the link closes [default: PROBE_LISTEN, else LISTEN]
    #[arg(long, env = "USHER_NODE_PROBE", value_name = "HOST:PORT")]
    pub(crate) probe: Option<String>,
    /// Where it runs
    #[arg(long, env = "USHER_NODE_REGION")]
    pub(crate) region: Option<Label>,
    /// What it shares its fate with
    #[arg(long, env = "USHER_NODE_ZONE")]
    pub(crate) zone: Option<Label>,
    /// Free labels, as in disk=ssd,rack=a
    #[arg(long, env = "USHER_NODE_LABELS", value_name = "KEY=VALUE,..")]
    pub(crate) labels: Option<Labels>,
    /// What it can carry beside others, 1 to 10000 [default: 100]
    #[arg(long, env = "USHER_NODE_WEIGHT", value_name = "WEIGHT")]
    pub(crate) weight: Option<u32>,
    /// The most teams [default: 100000]
    #[arg(long, env = "USHER_NODE_CAPACITY_TEAMS", value_name = "NUMBER")]
    pub(crate) capacity_teams: Option<u32>,
    /// The most connections [default: what the limit of file descriptors leaves]
    #[arg(long, env = "USHER_NODE_CAPACITY_CONNECTIONS", value_name = "NUMBER")]
    pub(crate) capacity_connections: Option<u32>,
    /// What happens to a frame: to the rest of its team, or nothing [default: team]
    #[arg(long, env = "USHER_NODE_RELAY", value_name = "RELAY")]
    pub(crate) relay: Option<RelaySetting>,
    /// What happens to connections once the broker was not heard for a lease: `hold` keeps them until
    /// peers say that only this node is cut off, `fence` closes them at once [default: hold]
    #[arg(long, env = "USHER_NODE_ON_LAPSE", value_name = "ON_LAPSE")]
    pub(crate) on_lapse: Option<OnLapseSetting>,
    /// File with the token that the broker asks of nodes
    #[arg(long, env = "USHER_NODE_TOKEN_FILE", value_name = "FILE")]
    pub(crate) node_token_file: Option<PathBuf>,
    /// How long the node goes on after SIGTERM, to be emptied [default: 25s]
    #[arg(long, env = "USHER_NODE_STOP_BUDGET", value_name = "DURATION")]
    pub(crate) stop_budget: Option<HumanDuration>,
    /// How often a connection is pinged; three times as long without a word ends it [default: 25s]
    #[arg(long, env = "USHER_NODE_PING", value_name = "DURATION")]
    pub(crate) ping: Option<HumanDuration>,
    /// The largest message of a client, in bytes [default: 262144]
    #[arg(long, env = "USHER_NODE_MESSAGE_BYTES", value_name = "BYTES")]
    pub(crate) message_bytes: Option<usize>,
    /// The most that waits for a slow reader, in bytes; beyond it, Close 4308 [default: 1048576]
    #[arg(long, env = "USHER_NODE_QUEUE_BYTES", value_name = "BYTES")]
    pub(crate) queue_bytes: Option<usize>,
    /// How long a message may take from its first byte to its last; beyond it, Close 4308 [default: 60s]
    #[arg(long, env = "USHER_NODE_MESSAGE_TIME", value_name = "DURATION")]
    pub(crate) message_time: Option<HumanDuration>,
    /// What all messages may hold that have begun and not ended, in bytes; beyond it the oldest are
    /// closed with 4308 [default: 33554432, or an eighth of the container's memory if that is less]
    #[arg(long, env = "USHER_NODE_UNFINISHED_BYTES", value_name = "BYTES")]
    pub(crate) unfinished_bytes: Option<u64>,
    /// Frames a second that a client may send on average, ten times as many at once; beyond it,
    /// Close 4310 [default: 2000]
    #[arg(long, env = "USHER_NODE_FRAMES_PER_S", value_name = "NUMBER")]
    pub(crate) frames_per_s: Option<u32>,
    /// The same for pings and pongs [default: 20]
    #[arg(long, env = "USHER_NODE_CONTROLS_PER_S", value_name = "NUMBER")]
    pub(crate) controls_per_s: Option<u32>,
    /// The same for bytes [default: 16777216]
    #[arg(long, env = "USHER_NODE_BYTES_PER_S", value_name = "BYTES")]
    pub(crate) bytes_per_s: Option<u32>,
    /// What to log, as in `info` or `info,usher_node=debug` [default: info]
    #[arg(long, env = "USHER_LOG", value_name = "FILTER")]
    pub(crate) log: Option<LogFilter>,
    /// How a log line looks [default: text]
    #[arg(long, env = "USHER_LOG_FORMAT", value_name = "FORMAT")]
    pub(crate) log_format: Option<LogFormat>,
}

/// What happens to a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum RelaySetting {
    /// It goes to the other connections of the team
    Team,
    /// Nothing
    None,
}

/// What happens to connections once the lease is over.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum OnLapseSetting {
    /// They are kept, without exclusive effects
    Hold,
    /// They are closed: for pools where two owners are worse than none
    Fence,
}

pub(crate) async fn run(args: NodeArgs) -> Result<ExitCode, Failure> {
    let hangup = signals::outlast().map_err(Failure::settings)?;
    let descriptors = settings::raise_descriptors().map_err(Failure::settings)?;
    let memory = usher_node::load::container_memory();
    let (config, settings) = configure(&args, descriptors, memory).map_err(Failure::settings)?;
    let filter = settings.log.clone().unwrap_or_default();
    let logging =
        logging::start(&filter, settings.log_format.unwrap_or_default()).map_err(Failure::settings)?;
    let is_child = std::env::var_os(PARENT_VARIABLE).is_some();
    if is_child || args.no_parent {
        warn_of_descriptors(&config, &settings, descriptors);
        warn_of_memory(&settings, memory);
        parent::tie_to_parent().map_err(Failure::settings)?;
        let reload = Reload {
            config: args.config.clone(),
            level: Level::of(args.settings.log.as_ref(), |file| file.node.log),
            logging,
            credentials: config
                .token
                .iter()
                .map(|token| ("node token", token.clone()))
                .collect(),
        };
        // In one task: a bug in either ends the process.
        let ended = tokio::select! {
            ended = usher_node::run(config) => ended,
            never = reload.run(hangup) => match never {},
        };
        return match ended {
            Ok(()) => Ok(ExitCode::SUCCESS),
            // To start again as configured helps here, and the parent does.
            Err(error @ usher_node::NodeError::Bug { .. }) => Err(Failure::new(error)),
            Err(error) => Err(Failure::settings(error)),
        };
    }
    let program = std::env::current_exe()
        .context("the path of this executable cannot be read")
        .map_err(Failure::settings)?;
    let code = parent::supervise(ParentConfig {
        program,
        node: config.node,
        brokers: config.brokers,
        token: config.token,
        stop_budget: config.stop_budget,
        // The same words again: the child finds in its environment that it is the child.
        args: std::env::args_os().skip(1).collect(),
    })
    .await
    .map_err(Failure::settings)?;
    Ok(u8::try_from(code).map_or(ExitCode::FAILURE, ExitCode::from))
}

fn warn_of_descriptors(config: &usher_node::Config, settings: &NodeSettings, descriptors: u64) {
    let most = config.capacity.connections;
    if settings.capacity_connections.is_none() && most < FEW_CONNECTIONS {
        tracing::warn!(
            most,
            descriptors,
            "the limit of file descriptors allows few connections: raise it (`ulimit -n`, LimitNOFILE=)"
        );
    }
    if let Some(asked) = settings.capacity_connections.filter(|asked| *asked > most) {
        tracing::warn!(
            asked,
            most,
            descriptors,
            "the limit of file descriptors allows fewer connections than asked for: raise it (`ulimit -n`)"
        );
    }
}

fn warn_of_memory(settings: &NodeSettings, memory: Option<u64>) {
    if let Some(most) = unfinished_advised(settings.unfinished_bytes, memory) {
        tracing::warn!(
            asked = settings.unfinished_bytes,
            most,
            memory,
            "--unfinished-bytes is more than half of the container's memory, so that clients which never end their \
             messages can get the node killed: lower it, or give the container more"
        );
    }
}

/// What would still be sound, where more was asked for.
fn unfinished_advised(asked: Option<u64>, memory: Option<u64>) -> Option<u64> {
    let most = memory? / UNFINISHED_MOST_PART;
    (asked? > most).then_some(most)
}

/// The default; one message of the largest must fit in any case.
fn unfinished_default(memory: Option<u64>, message_bytes: usize) -> u64 {
    let part = memory.map_or(UNFINISHED_BYTES, |memory| memory / UNFINISHED_PART);
    part.min(UNFINISHED_BYTES).max(message_bytes as u64)
}

fn configure(
    args: &NodeArgs,
    descriptors: u64,
    memory: Option<u64>,
) -> anyhow::Result<(usher_node::Config, NodeSettings)> {
    let file = File::read(args.config.as_deref())?.node;
    let settings = settings::layered(&args.settings, &file)?;
    let token = settings::token(
        "USHER_NODE_TOKEN",
        args.settings.node_token_file.as_deref(),
        file.node_token_file.as_deref(),
    )?;
    let name = match settings.name.clone() {
        Some(name) => name,
        None => host_name()?,
    };
    let labels = settings.labels.clone().unwrap_or_default().0;
    if labels.len() > MAX_LABELS {
        bail!(
            "--labels: at most {MAX_LABELS} labels, and these are {}",
            labels.len()
        );
    }
    let weight = settings.weight.map_or(Some(Weight::NODE), Weight::new);
    let without = |spare| u32::try_from(descriptors.saturating_sub(spare)).unwrap_or(u32::MAX);
    let connections = match settings.capacity_connections {
        // The broker must not be told of room that there is not: it would send clients there in vain.
        Some(asked) => asked.min(without(LEAST_SPARE_DESCRIPTORS)),
        None => without(SPARE_DESCRIPTORS),
    };
    if connections == 0 && settings.capacity_connections != Some(0) {
        bail!(
            "this process may open {descriptors} files, which leaves none for clients: raise the limit (`ulimit -n`, LimitNOFILE=) above {SPARE_DESCRIPTORS}"
        );
    }
    let message_bytes = settings.message_bytes.unwrap_or(256 * 1024);
    let config = usher_node::Config {
        node: name,
        incarnation: incarnation()?,
        nonce: nonce()?,
        listen: settings
            .listen
            .unwrap_or(SocketAddr::from(([127, 0, 0, 1], 7410))),
        admin: settings.admin.unwrap_or(SocketAddr::from(([127, 0, 0, 1], 7510))),
        brokers: settings
            .brokers
            .clone()
            .unwrap_or_else(|| vec!["ws://127.0.0.1:7402".to_owned()]),
        url: settings.url.clone(),
        probe_listen: settings.probe_listen,
        probe: settings.probe.clone(),
        region: settings.region.clone(),
        zone: settings.zone.clone(),
        labels,
        weight: weight.with_context(|| format!("--weight is from 1 to {}", Weight::MAX))?,
        capacity: Capacity {
            teams: settings.capacity_teams.unwrap_or(TEAMS),
            connections,
        },
        relay: match settings.relay {
            Some(RelaySetting::None) => Relay::None,
            Some(RelaySetting::Team) | None => Relay::Team,
        },
        on_lapse: match settings.on_lapse {
            Some(OnLapseSetting::Fence) => OnLapse::Fence,
            Some(OnLapseSetting::Hold) | None => OnLapse::Hold,
        },
        token,
        stop_budget: or_seconds(settings.stop_budget, 25),
        ping: or_seconds(settings.ping, 25),
        message_bytes,
        queue_bytes: settings.queue_bytes.unwrap_or(1024 * 1024),
        message_time: or_seconds(settings.message_time, 60),
        unfinished_bytes: settings
            .unfinished_bytes
            .unwrap_or_else(|| unfinished_default(memory, message_bytes)),
        frames_per_s: settings.frames_per_s.unwrap_or(FRAMES_PER_S),
        controls_per_s: settings.controls_per_s.unwrap_or(CONTROLS_PER_S),
        bytes_per_s: settings.bytes_per_s.unwrap_or(BYTES_PER_S),
    };
    check(&config)?;
    Ok((config, settings))
}

fn or_seconds(setting: Option<HumanDuration>, seconds: u64) -> Duration {
    setting.map_or(Duration::from_secs(seconds), |setting| setting.0)
}

fn check(config: &usher_node::Config) -> anyhow::Result<()> {
    for (name, flag, address) in [
        ("client", "--listen", Some(config.listen)),
        ("admin", "--admin", Some(config.admin)),
        ("probe", "--probe-listen", config.probe_listen),
    ] {
        let Some(address) = address else { continue };
        if !is_loopback(address) && config.token.is_none() {
            bail!(
                "the {name} listener on {address} can be reached from other machines and the node has no token; set USHER_NODE_TOKEN or --node-token-file (the same as the broker's), or keep it on 127.0.0.1 with {flag}"
            );
        }
    }
    if config.unfinished_bytes < config.message_bytes as u64 {
        bail!(
            "--unfinished-bytes {} is below --message-bytes {}: no message of that size could ever be finished",
            config.unfinished_bytes,
            config.message_bytes
        );
    }
    if u64::from(config.bytes_per_s) * 10 < config.message_bytes as u64 {
        bail!(
            "--bytes-per-s {}: ten seconds' worth must hold one message of --message-bytes {}",
            config.bytes_per_s,
            config.message_bytes
        );
    }
    for (flag, rate) in [
        ("--frames-per-s", config.frames_per_s),
        ("--controls-per-s", config.controls_per_s),
    ] {
        if rate == 0 {
            bail!("{flag} 0 lets nobody say anything: it is at least 1");
        }
    }
    if config.queue_bytes < config.message_bytes {
        bail!(
            "--queue-bytes {} is below --message-bytes {}: a message that may be sent must fit in the queue of its reader",
            config.queue_bytes,
            config.message_bytes
        );
    }
    Ok(())
}

/// What the parent drew for this child, else a fresh one.
fn incarnation() -> anyhow::Result<Incarnation> {
    match settings::variable(INCARNATION_VARIABLE) {
        Some(text) => text.parse().with_context(|| {
            format!("{INCARNATION_VARIABLE} is set by the node's parent and by nobody else")
        }),
        None => Ok(parent::draw_incarnation()?),
    }
}

/// What the parent drew for this child, else a fresh one.
fn nonce() -> anyhow::Result<Hidden> {
    match std::env::var(NONCE_VARIABLE) {
        Ok(text) => text
            .parse()
            .with_context(|| format!("{NONCE_VARIABLE} is set by the node's parent and by nobody else")),
        Err(_) => Ok(parent::draw_nonce()?),
    }
}

fn host_name() -> anyhow::Result<NodeId> {
    let uname = rustix::system::uname();
    let name = uname.nodename().to_string_lossy();
    name.parse()
        .with_context(|| format!("the host name {name:?} cannot be the node's name; give one with --name"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use usher_shared::secret::Token;

    fn config_within(
        descriptors: u64,
        memory: Option<u64>,
        settings: NodeSettings,
    ) -> anyhow::Result<usher_node::Config> {
        let args = NodeArgs {
            config: None,
            no_parent: true,
            settings: NodeSettings {
                name: settings.name.or("node-1".parse().ok()),
                ..settings
            },
        };
        configure(&args, descriptors, memory).map(|(config, _)| config)
    }

    fn config(settings: NodeSettings) -> anyhow::Result<usher_node::Config> {
        config_within(20_000, None, settings)
    }

    #[test]
    fn no_more_connections_are_offered_than_there_are_descriptors_for() {
        let with = |asked| NodeSettings {
            capacity_connections: asked,
            ..NodeSettings::default()
        };
        let room = |descriptors, asked| {
            config_within(descriptors, None, with(asked)).map(|config| config.capacity.connections)
        };
        assert_eq!(room(1_024, None).unwrap(), 524);
        assert_eq!(room(1_024, Some(50)).unwrap(), 50);
        assert_eq!(room(1_024, Some(5_000)).unwrap(), 896);
        let none = room(200, None).unwrap_err().to_string();
        assert!(none.contains("ulimit -n"), "{none}");
    }

    #[test]
    fn unfinished_messages_get_a_part_of_a_small_container() {
        let held = |memory| {
            let config = config_within(20_000, memory, NodeSettings::default());
            config.unwrap().unfinished_bytes
        };
        assert_eq!(held(None), 32 << 20);
        assert_eq!(held(Some(1 << 30)), 32 << 20);
        assert_eq!(held(Some(64 << 20)), 8 << 20);
        assert_eq!(held(Some(1 << 20)), 256 << 10, "one message fits in any case");
    }

    #[test]
    fn more_than_half_of_a_container_for_unfinished_messages_is_warned_of() {
        let container = Some(64 << 20);
        assert_eq!(unfinished_advised(Some(33 << 20), container), Some(32 << 20));
        assert_eq!(unfinished_advised(Some(32 << 20), container), None);
        assert_eq!(unfinished_advised(Some(33 << 20), None), None);
        assert_eq!(unfinished_advised(None, container), None);
    }

    #[test]
    fn defaults_fit_each_other() {
        let config = config(NodeSettings::default()).unwrap();
        assert_eq!(config.capacity.connections, 19_500);
        assert_eq!(config.brokers, ["ws://127.0.0.1:7402"]);
        assert_eq!(config.stop_budget, Duration::from_secs(25));
    }

    #[test]
    fn a_listener_beyond_loopback_needs_the_token() {
        let mut open = config(NodeSettings::default()).unwrap();
        open.listen = "0.0.0.0:7410".parse().unwrap();
        let error = check(&open).unwrap_err().to_string();
        assert!(
            error.contains("USHER_NODE_TOKEN") && error.contains("0.0.0.0:7410"),
            "{error}"
        );
        open.token = Token::new("0123456789abcdef").ok().map(Into::into);
        assert!(check(&open).is_ok());
    }

    #[test]
    fn nonsense_is_refused_with_the_flag() {
        let refused = |settings: NodeSettings| config(settings).unwrap_err().to_string();
        let weight = refused(NodeSettings {
            weight: Some(0),
            ..NodeSettings::default()
        });
        assert!(weight.contains("--weight"), "{weight}");
        let queue = refused(NodeSettings {
            queue_bytes: Some(10),
            ..NodeSettings::default()
        });
        assert!(queue.contains("--queue-bytes"), "{queue}");
    }
}
