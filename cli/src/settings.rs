//! Settings in layers: a flag beats a `USHER_*` variable, a variable beats the TOML file, the file
//! beats the default.
//!
//! The settings of a process are one struct of `Option`s that clap fills from flags and variables
//! and serde from the file. [`layered`] joins the two, field by field, without naming a field.

use anyhow::Context as _;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::Path;
use std::str::FromStr;
use usher_shared::credential::{Credential, readable_by_all};
use usher_shared::id::Label;
use usher_shared::secret::MasterKey;

use crate::broker::BrokerSettings;
use crate::node::NodeSettings;

/// The TOML file: a table for each process, so that one file can serve a whole machine.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct File {
    pub(crate) broker: BrokerSettings,
    pub(crate) node: NodeSettings,
}

impl File {
    /// The file at `path`, or an empty one when none is named.
    pub(crate) fn read(path: Option<&Path>) -> anyhow::Result<Self> {
        let Some(path) = path else {
            return Ok(Self::default());
        };
        let shown = path.display();
        let text = std::fs::read_to_string(path).with_context(|| format!("cannot read --config {shown}"))?;
        // The parser's text has the line, the key and the keys it would have taken.
        Self::parse(&text).with_context(|| format!("{shown} is not a good configuration"))
    }

    fn parse(text: &str) -> anyhow::Result<Self> {
        Ok(toml::from_str(text)?)
    }
}

/// `over` with its gaps filled from `under`. Both serialise to an object, with nulls for gaps.
pub(crate) fn layered<T: Serialize + DeserializeOwned>(over: &T, under: &T) -> anyhow::Result<T> {
    let mut joined = serde_json::to_value(under)?;
    if let (Some(joined), serde_json::Value::Object(over)) =
        (joined.as_object_mut(), serde_json::to_value(over)?)
    {
        joined.extend(over.into_iter().filter(|(_, value)| !value.is_null()));
    }
    Ok(serde_json::from_value(joined)?)
}

/// Tokens: from the file that a flag names, else from `variable`, else from the file that the TOML names.
///
/// They are never a plain flag: `ps` shows flags to everybody on the machine.
pub(crate) fn token(
    variable: &str,
    flag: Option<&Path>,
    toml: Option<&Path>,
) -> anyhow::Result<Option<Credential>> {
    secret(variable, flag, toml, Credential::parse, Credential::read)
}

/// What to say of a file with a secret in it that every user of the machine can read.
pub(crate) fn exposed(path: &Path) -> Option<String> {
    readable_by_all(path).map(|mode| {
        let path = path.display();
        format!("every user of this machine can read {path} (mode {mode:03o}), and the secret in it: run `chmod o-r {path}`")
    })
}

/// The variable, where it holds anything: an empty one is how many a unit file and template says "none".
pub(crate) fn variable(name: &str) -> Option<String> {
    std::env::var(name).ok().filter(|text| !text.is_empty())
}

/// The command line, deaf to variables that are set to nothing.
pub(crate) fn without_empty_variables(command: clap::Command) -> clap::Command {
    let verbs: Vec<String> = command
        .get_subcommands()
        .map(|verb| verb.get_name().to_owned())
        .collect();
    let command = command.mut_args(|argument| match argument.get_env().map(std::env::var_os) {
        Some(Some(text)) if text.is_empty() => argument.env(clap::builder::Resettable::Reset),
        _ => argument,
    });
    verbs.into_iter().fold(command, |command, verb| {
        command.mut_subcommand(verb, without_empty_variables)
    })
}

/// The master key, from the same places as a [`token`].
pub(crate) fn master_key(
    variable: &str,
    flag: Option<&Path>,
    toml: Option<&Path>,
) -> anyhow::Result<Option<MasterKey>> {
    secret(variable, flag, toml, MasterKey::from_hex, |path| {
        let text =
            std::fs::read_to_string(path).map_err(|source| usher_shared::secret::SecretError::File {
                path: path.display().to_string(),
                source,
            })?;
        MasterKey::from_hex(text.lines().next().unwrap_or_default())
    })
}

fn secret<S, E: std::error::Error + Send + Sync + 'static>(
    variable: &str,
    flag: Option<&Path>,
    toml: Option<&Path>,
    parse: impl Fn(&str) -> Result<S, E>,
    read: impl Fn(&Path) -> Result<S, E>,
) -> anyhow::Result<Option<S>> {
    let from_file = |path: &Path| read(path).with_context(|| format!("{} is of no use", path.display()));
    match (flag, self::variable(variable), toml) {
        (Some(path), _, _) => from_file(path).map(Some),
        (None, Some(text), _) => parse(&text)
            .map(Some)
            .with_context(|| format!("{variable} is of no use")),
        (None, None, Some(path)) => from_file(path).map(Some),
        (None, None, None) => Ok(None),
    }
}

/// Where to listen, as a flag or a variable says it.
pub(crate) fn address(text: &str) -> Result<SocketAddr, String> {
    text.parse().map_err(|_| {
        "an address is an IP and a port, as in 127.0.0.1:8400, 0.0.0.0:8400 or [::1]:8400; names are not looked up"
            .to_owned()
    })
}

/// Whether everybody who reaches `address` is on this machine.
pub(crate) fn is_loopback(address: SocketAddr) -> bool {
    address.ip().to_canonical().is_loopback()
}

/// As many file descriptors as the system allows; returns how many that are.
pub(crate) fn raise_descriptors() -> anyhow::Result<u64> {
    rlimit::increase_nofile_limit(u64::MAX).context("cannot raise the limit of file descriptors")
}

/// Labels: `disk=ssd,rack=a` on the command line, a table in TOML.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub(crate) struct Labels(pub(crate) BTreeMap<Label, Label>);

impl FromStr for Labels {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> anyhow::Result<Self> {
        let mut labels = BTreeMap::new();
        for pair in text.split(',').filter(|pair| !pair.is_empty()) {
            let (key, value) = label(pair)?;
            labels.insert(key, value);
        }
        Ok(Self(labels))
    }
}

/// One `key=value`.
pub(crate) fn label(pair: &str) -> anyhow::Result<(Label, Label)> {
    let (key, value) = pair
        .split_once('=')
        .with_context(|| format!("`{pair}` is not key=value"))?;
    Ok((key.parse()?, value.parse()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_flag_beats_the_file_and_the_file_fills_the_gaps() {
        let file = File::parse(
            "[broker]\nclients = \"127.0.0.1:1\"\nadmin = \"127.0.0.1:2\"\nlease = \"9s\"\nallow_origins = [\"*\"]",
        )
        .unwrap();
        let flags = BrokerSettings {
            clients: Some("127.0.0.1:3".parse().unwrap()),
            ..BrokerSettings::default()
        };
        let joined = layered(&flags, &file.broker).unwrap();
        assert_eq!(joined.clients, Some("127.0.0.1:3".parse().unwrap()));
        assert_eq!(joined.admin, Some("127.0.0.1:2".parse().unwrap()));
        assert_eq!(joined.lease.map(|lease| lease.to_string()), Some("9s".to_owned()));
        assert_eq!(joined.allow_origins, Some(vec!["*".to_owned()]));
        assert_eq!(joined.node_link, None);
    }

    #[test]
    fn an_unknown_key_is_named() {
        for (text, key) in [
            ("[broker]\nclient = \"127.0.0.1:1\"", "unknown field `client`"),
            ("[node]\nlease = \"9s\"", "unknown field `lease`"),
            ("[brokers]\n", "unknown field `brokers`"),
            ("log = \"info\"", "unknown field `log`"),
        ] {
            let error = format!("{:#}", File::parse(text).unwrap_err());
            assert!(error.contains(key) && error.contains("line"), "{error}");
        }
    }

    #[test]
    fn a_wrong_value_is_named_with_its_line() {
        let error = format!("{:#}", File::parse("[broker]\nlease = \"soon\"").unwrap_err());
        assert!(error.contains("line 2") && error.contains("25s"), "{error}");
    }

    #[test]
    fn every_setting_of_the_file_survives_the_layers() {
        let text = r#"
            name = "node-7"
            listen = "127.0.0.1:0"
            brokers = ["ws://a:1", "ws://b:2"]
            url = "wss://chat.example.com/n/{node}/teams/{team}"
            labels = { disk = "ssd" }
            weight = 50
            relay = "none"
            stop_budget = "40s"
        "#;
        let settings: NodeSettings = toml::from_str(text).unwrap();
        let joined = layered(&NodeSettings::default(), &settings).unwrap();
        assert_eq!(format!("{joined:?}"), format!("{settings:?}"));
    }

    #[test]
    fn a_number_without_a_unit_and_a_name_for_an_address_are_told_how_to_write_it() {
        let error = format!("{:#}", File::parse("[broker]\nlease = 6").unwrap_err());
        assert!(error.contains("\"25s\""), "{error}");
        for bad in ["localhost:8400", "8400", ":8400"] {
            assert!(address(bad).unwrap_err().contains("127.0.0.1:8400"));
        }
    }

    #[test]
    fn labels_are_pairs() {
        let labels: Labels = "disk=ssd,rack=a".parse().unwrap();
        assert_eq!(labels.0.len(), 2);
        assert!("disk".parse::<Labels>().is_err());
        assert!("=x".parse::<Labels>().is_err());
    }
}
