//! What is logged: a level, and others for parts.

use serde::{Deserialize, Serialize};
use std::fmt;
use std::str::FromStr;
use tracing_subscriber::filter::{LevelFilter, Targets};

/// The packages whose lines are ours. What others write below `info` is what passes through them: frames with
/// ticket keys, heads with tokens, addresses with tickets.
const OURS: [&str; 6] = [
    "usher",
    "usher_broker",
    "usher_listen",
    "usher_node",
    "usher_placement",
    "usher_shared",
];

/// What is logged, as in `info` or `info,usher_broker=debug`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub(crate) struct LogFilter {
    /// As it was written.
    text: String,
    everything: LevelFilter,
    parts: Vec<(String, LevelFilter)>,
}

/// Why a text is not one.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum BadFilter {
    #[error(
        "`{0}` is no level; they are error, warn, info, debug, trace and off, and one part has its own as in `info,usher_broker=debug`"
    )]
    Level(String),
    #[error("there is no part `{0}`; the parts are {list} and their modules", list = OURS.join(", "))]
    Part(String),
    #[error("`{0}`: below info other libraries' lines hold tokens, keys and tickets, and are never written")]
    Foreign(String),
    #[error(
        "`{0}` gives a second level to everything; one is for all, the others are as in usher_broker=debug"
    )]
    Twice(String),
}

impl Default for LogFilter {
    fn default() -> Self {
        Self {
            text: "info".to_owned(),
            everything: LevelFilter::INFO,
            parts: Vec::new(),
        }
    }
}

impl LogFilter {
    /// The same for `tracing`.
    pub(crate) fn targets(&self) -> Targets {
        let foreign = self.everything.min(LevelFilter::INFO);
        Targets::new()
            .with_default(foreign)
            .with_target("usher", self.everything)
            .with_targets(self.parts.iter().cloned())
    }
}

impl FromStr for LogFilter {
    type Err = BadFilter;

    fn from_str(text: &str) -> Result<Self, BadFilter> {
        let mut everything = None;
        let mut parts = Vec::new();
        for word in text.split(',').map(str::trim) {
            match word.split_once('=') {
                None => {
                    let level = level(word)?;
                    if everything.replace(level).is_some() {
                        return Err(BadFilter::Twice(word.to_owned()));
                    }
                }
                Some((part, word_of_level)) => {
                    let level = level(word_of_level)?;
                    let package = part.split("::").next().unwrap_or_default();
                    if OURS.contains(&package) {
                    } else if package.is_empty() || package.starts_with("usher") {
                        return Err(BadFilter::Part(part.to_owned()));
                    } else if level > LevelFilter::INFO {
                        return Err(BadFilter::Foreign(word.to_owned()));
                    }
                    parts.push((part.to_owned(), level));
                }
            }
        }
        Ok(Self {
            text: text.to_owned(),
            everything: everything.unwrap_or(LevelFilter::INFO),
            parts,
        })
    }
}

fn level(word: &str) -> Result<LevelFilter, BadFilter> {
    // Numbers and nothing at all are levels to `tracing`, and a mistake here.
    match word.parse() {
        Ok(level) if word.bytes().all(|byte| byte.is_ascii_alphabetic()) && !word.is_empty() => Ok(level),
        _ => Err(BadFilter::Level(word.to_owned())),
    }
}

impl TryFrom<String> for LogFilter {
    type Error = BadFilter;

    fn try_from(text: String) -> Result<Self, BadFilter> {
        text.parse()
    }
}

impl From<LogFilter> for String {
    fn from(filter: LogFilter) -> Self {
        filter.text
    }
}

impl fmt::Display for LogFilter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tracing::Level;

    fn would_log(filter: &str, target: &str, level: Level) -> bool {
        filter
            .parse::<LogFilter>()
            .unwrap()
            .targets()
            .would_enable(target, &level)
    }

    #[test]
    fn words_that_are_no_level_are_refused_with_those_that_are() {
        for bad in [
            "warning",
            "verbose",
            "",
            "info,",
            "info,chatty",
            "usher_node=loud",
            "2",
            "usher_node=",
        ] {
            let error = bad.parse::<LogFilter>().unwrap_err();
            assert!(matches!(error, BadFilter::Level(_)), "{bad}: {error}");
            assert!(error.to_string().contains("error, warn, info"), "{error}");
        }
        assert_eq!(
            "usher_brokr=debug".parse::<LogFilter>(),
            Err(BadFilter::Part("usher_brokr".to_owned()))
        );
        assert_eq!(
            "info,debug".parse::<LogFilter>(),
            Err(BadFilter::Twice("debug".to_owned()))
        );
    }

    #[test]
    fn what_is_not_named_keeps_its_level() {
        assert!(would_log("usher_broker=debug", "usher_node::link", Level::INFO));
        assert!(would_log(
            "usher_broker=debug",
            "usher_broker::probe",
            Level::DEBUG
        ));
        assert!(!would_log("warn,usher_broker=debug", "usher_node", Level::INFO));
        assert!(would_log(
            "OFF,usher_node::link=trace",
            "usher_node::link",
            Level::TRACE
        ));
        assert!(!would_log(
            "off,usher_node::link=trace",
            "usher_node::floor",
            Level::ERROR
        ));
    }

    #[test]
    fn what_other_libraries_say_of_frames_and_heads_is_never_written() {
        for foreign in [
            "tungstenite::protocol",
            "hyper::proto::h1",
            "reqwest::connect",
            "tokio_tungstenite",
            "log",
        ] {
            assert!(!would_log("trace", foreign, Level::DEBUG), "{foreign}");
            assert!(would_log("trace", foreign, Level::INFO), "{foreign}");
        }
        assert!(would_log("trace", "usher_node::link", Level::TRACE));
        let error = "info,tungstenite=trace".parse::<LogFilter>().unwrap_err();
        assert_eq!(error, BadFilter::Foreign("tungstenite=trace".to_owned()));
        assert!(!would_log("info,sled=error", "sled::pagecache", Level::WARN));
    }
}
