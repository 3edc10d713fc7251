//! `usher broker`: the long-running broker.

use clap::Args;
use serde::{Deserialize, Serialize};
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitCode;
use usher_broker::BrokerError;
use usher_broker::keys::KeyError;

use crate::duration::HumanDuration;
use crate::failure::Failure;
use crate::logging::{self, LogFilter, LogFormat};
use crate::reload::{Level, Reload};
use crate::settings::{self, File};
use crate::signals;

/// Where the store and the master key go when nobody says otherwise: the working directory, so that
/// a first try needs no rights.
const DATA: &str = "usher-data";

/// Run a broker: it scores nodes, assigns teams, redirects clients, moves teams
#[derive(Args)]
#[command(
    after_help = "Tokens and the master key come from files or from USHER_OPERATOR_TOKEN, USHER_NODE_TOKEN,\n\
    USHER_CLIENT_TOKEN and USHER_MASTER_KEY, never from a flag: `ps` shows flags to everybody.\n\
    A listener beyond loopback needs its token, or the broker does not start.\n\n\
    As TOML (--config FILE), names with underscores:\n  \
    [broker]\n  clients = \"0.0.0.0:7400\"\n  public_url = \"https://chat.example.com\"\n  \
    data = \"/var/lib/usher\"\n  client_token_file = \"/etc/usher/client\"\n\n\
    Examples:\n  usher broker --data ./data\n  usher broker --config /etc/usher.toml --log-format json"
)]
pub(crate) struct BrokerArgs {
    /// TOML file; its `broker` table holds any of the settings below
    #[arg(long, env = "USHER_CONFIG", value_name = "FILE")]
    config: Option<PathBuf>,
    /// The data folder is an old copy, and whatever ran on a newer one will not run again: go on above
    /// everything that it may have granted since. For this one start
    #[arg(long)]
    restored: bool,
    /// Make a new master key, because the old one is lost or known to others: tickets and grants of before are void,
    /// and nodes are asked anew what they hold. For this one start
    #[arg(long)]
    new_master_key: bool,
    #[command(flatten)]
    settings: BrokerSettings,
}

/// What may be said in flags, in variables and in the `[broker]` table.
#[derive(Args, Clone, Debug, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct BrokerSettings {
    /// Where clients ask for their node [default: 127.0.0.1:7400]
    #[arg(long, env = "USHER_BROKER_CLIENTS", value_name = "ADDRESS", value_parser = settings::address)]
    pub(crate) clients: Option<SocketAddr>,
    /// Where operators and Prometheus come [default: 127.0.0.1:7401]
    #[arg(long, env = "USHER_BROKER_ADMIN", value_name = "ADDRESS", value_parser = settings::address)]
    pub(crate) admin: Option<SocketAddr>,
    /// Where nodes dial in [default: 127.0.0.1:7402]
    #[arg(long, env = "USHER_BROKER_NODE_LINK", value_name = "ADDRESS", value_parser = settings::address)]
    pub(crate) node_link: Option<SocketAddr>,
    /// Where clients reach this broker, without a path [default: http://CLIENTS]
    #[arg(long, env = "USHER_BROKER_PUBLIC_URL", value_name = "URL")]
    pub(crate) public_url: Option<String>,
    /// Folder of the store and of the master key [default: usher-data]
    #[arg(long, env = "USHER_BROKER_DATA", value_name = "FOLDER")]
    pub(crate) data: Option<PathBuf>,
    /// File with the master key, 64 hexadecimal digits [default: made in the data folder]
    #[arg(long, env = "USHER_MASTER_KEY_FILE", value_name = "FILE")]
    pub(crate) master_key_file: Option<PathBuf>,
    /// File with the token that operators show
    #[arg(long, env = "USHER_OPERATOR_TOKEN_FILE", value_name = "FILE")]
    pub(crate) operator_token_file: Option<PathBuf>,
    /// File with the token that nodes show
    #[arg(long, env = "USHER_NODE_TOKEN_FILE", value_name = "FILE")]
    pub(crate) node_token_file: Option<PathBuf>,
    /// File with the token that clients show to make a team by connecting
    #[arg(long, env = "USHER_CLIENT_TOKEN_FILE", value_name = "FILE")]
    pub(crate) client_token_file: Option<PathBuf>,
    /// Whether a client's first connect makes its team [default: on loopback or with a client token]
    #[arg(long, env = "USHER_BROKER_AUTO_CREATE", value_name = "BOOL", num_args = 0..=1, default_missing_value = "true")]
    pub(crate) auto_create: Option<bool>,
    /// Origins whose pages may fetch /connect/TEAM, separated by commas; * admits all
    #[arg(
        long,
        env = "USHER_BROKER_ALLOW_ORIGINS",
        value_name = "ORIGINS",
        value_delimiter = ','
    )]
    pub(crate) allow_origins: Option<Vec<String>>,
    /// The most teams [default: 2000000]
    #[arg(long, env = "USHER_BROKER_MAX_TEAMS", value_name = "NUMBER")]
    pub(crate) max_teams: Option<usize>,
    /// The most client connections in HTTP at once [default: 4096]
    #[arg(long, env = "USHER_BROKER_MAX_CLIENT_CONNECTIONS", value_name = "NUMBER")]
    pub(crate) max_client_connections: Option<usize>,
    /// How long a node may go unheard before its teams move [default: 6s]
    #[arg(long, env = "USHER_BROKER_LEASE", value_name = "DURATION")]
    pub(crate) lease: Option<HumanDuration>,
    /// How often a node reports [default: 1s]
    #[arg(long, env = "USHER_BROKER_HEARTBEAT", value_name = "DURATION")]
    pub(crate) heartbeat: Option<HumanDuration>,
    /// When a team that a connect made is forgotten, after its last connection [default: 10m]
    #[arg(long, env = "USHER_BROKER_FORGET_AFTER", value_name = "DURATION")]
    pub(crate) forget_after: Option<HumanDuration>,
    /// How long at most too many nodes that are silent at once keep their teams [default: 1m]
    #[arg(long, env = "USHER_BROKER_SELF_PRESERVATION", value_name = "DURATION")]
    pub(crate) self_preservation: Option<HumanDuration>,
    /// What to log, as in `info` or `info,usher_broker=debug` [default: info]
    #[arg(long, env = "USHER_LOG", value_name = "FILTER")]
    pub(crate) log: Option<LogFilter>,
    /// How a log line looks [default: text]
    #[arg(long, env = "USHER_LOG_FORMAT", value_name = "FORMAT")]
    pub(crate) log_format: Option<LogFormat>,
}

pub(crate) async fn run(args: BrokerArgs) -> Result<ExitCode, Failure> {
    let hangup = signals::outlast().map_err(Failure::settings)?;
    let (config, settings) = configure(&args).map_err(Failure::settings)?;
    let filter = settings.log.clone().unwrap_or_default();
    let logging =
        logging::start(&filter, settings.log_format.unwrap_or_default()).map_err(Failure::settings)?;
    settings::raise_descriptors().map_err(Failure::settings)?;
    let credentials = [
        ("operator token", &config.operator_token),
        ("node token", &config.node_token),
        ("client token", &config.client_token),
    ];
    let reload = Reload {
        config: args.config.clone(),
        level: Level::of(args.settings.log.as_ref(), |file| file.broker.log),
        logging,
        credentials: credentials
            .into_iter()
            .filter_map(|(what, credential)| Some((what, credential.clone()?)))
            .collect(),
    };
    // In one task: a bug in either ends the process.
    let ended = tokio::select! {
        ended = usher_broker::run(config) => ended,
        never = reload.run(hangup) => match never {},
    };
    ended.map_err(|error| {
        let remedy = remedy(&error);
        let failure = Failure::settings(error);
        match remedy {
            Some(remedy) => failure.try_this(remedy),
            None => failure,
        }
    })?;
    Ok(ExitCode::SUCCESS)
}

fn configure(args: &BrokerArgs) -> anyhow::Result<(usher_broker::Config, BrokerSettings)> {
    let file = File::read(args.config.as_deref())?.broker;
    let settings = settings::layered(&args.settings, &file)?;
    let mut config = usher_broker::Config::new(settings.data.clone().unwrap_or_else(|| DATA.into()));
    let flags = &args.settings;
    config.master_key = settings::master_key(
        "USHER_MASTER_KEY",
        flags.master_key_file.as_deref(),
        file.master_key_file.as_deref(),
    )?;
    config.operator_token = settings::token(
        "USHER_OPERATOR_TOKEN",
        flags.operator_token_file.as_deref(),
        file.operator_token_file.as_deref(),
    )?;
    config.node_token = settings::token(
        "USHER_NODE_TOKEN",
        flags.node_token_file.as_deref(),
        file.node_token_file.as_deref(),
    )?;
    config.client_token = settings::token(
        "USHER_CLIENT_TOKEN",
        flags.client_token_file.as_deref(),
        file.client_token_file.as_deref(),
    )?;
    if args.restored {
        config.store_is = usher_broker::StoreIs::Restored;
    }
    if args.new_master_key {
        config.master_key_is = usher_broker::MasterKeyIs::New;
    }
    config.public_url = settings.public_url.clone().or(config.public_url);
    config.auto_create = settings.auto_create.or(config.auto_create);
    set(&mut config.clients, settings.clients);
    set(&mut config.admin, settings.admin);
    set(&mut config.node_link, settings.node_link);
    set(&mut config.allow_origins, settings.allow_origins.clone());
    set(&mut config.max_teams, settings.max_teams);
    set(
        &mut config.max_client_connections,
        settings.max_client_connections,
    );
    set(&mut config.lease_ms, settings.lease.map(HumanDuration::as_millis));
    set(
        &mut config.heartbeat_ms,
        settings.heartbeat.map(HumanDuration::as_millis),
    );
    set(
        &mut config.forget_ms,
        settings.forget_after.map(HumanDuration::as_millis),
    );
    set(
        &mut config.preserve_ms,
        settings.self_preservation.map(HumanDuration::as_millis),
    );
    Ok((config, settings))
}

fn set<T>(field: &mut T, value: Option<T>) {
    if let Some(value) = value {
        *field = value;
    }
}

/// How the command line names what the broker says is missing.
fn remedy(error: &BrokerError) -> Option<String> {
    let BrokerError::Keys(error) = error else {
        return None;
    };
    match error {
        KeyError::Unlocked { setting, .. } => {
            let flag = setting.replace('_', "-");
            let variable = setting.to_uppercase();
            Some(format!(
                "USHER_{variable} or --{flag}-file FILE (`openssl rand -hex 32` makes one), or keep it on 127.0.0.1"
            ))
        }
        KeyError::Lost { .. } | KeyError::Other { .. } => Some(
            "put the key back, or name the right folder by --data; --new-master-key makes a new one on purpose"
                .to_owned(),
        ),
        KeyError::NoPublicUrl { .. } => {
            Some("--public-url https://HOST, or keep --clients on 127.0.0.1".to_owned())
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_broker_refuses_to_open_has_its_flag_named() {
        let mut config = usher_broker::Config::new("x".into());
        config.admin = "0.0.0.0:7401".parse().unwrap();
        let error = usher_broker::keys::check_locks(&config).unwrap_err();
        let told = remedy(&BrokerError::Keys(error)).unwrap();
        assert!(
            told.contains("USHER_OPERATOR_TOKEN") && told.contains("--operator-token-file"),
            "{told}"
        );
        config.admin = "127.0.0.1:7401".parse().unwrap();
        config.clients = "0.0.0.0:7400".parse().unwrap();
        let error = usher_broker::keys::check_locks(&config).unwrap_err();
        assert!(
            remedy(&BrokerError::Keys(error))
                .unwrap()
                .contains("--public-url")
        );
    }
}
