//! A node's message as an event for the core, once its bounds hold.

use usher_placement::{Event, LinkId};
use usher_shared::clock;
use usher_shared::link::{MAX_HOT, MAX_IDLE, MAX_LARGE, MAX_LIST, ToBroker};

/// The most characters of a node's words in a line of the log.
const MAX_LOGGED: usize = 256;

/// What a node must not send.
#[derive(Debug, thiserror::Error)]
pub(crate) enum BadMessage {
    #[error("messages are JSON in text frames; this one was binary")]
    Binary,
    #[error("the message cannot be read: {0}")]
    Json(#[from] serde_json::Error),
    #[error("a list has {length} entries and may have {most}")]
    List { length: usize, most: usize },
    #[error("a link says hello once; open another link to say it again")]
    SecondHello,
}

impl BadMessage {
    /// The metric's label.
    pub(crate) const fn what(&self) -> &'static str {
        match self {
            Self::SecondHello => "order",
            Self::Binary | Self::Json(_) | Self::List { .. } => "bound",
        }
    }
}

/// A node's words fit for a line of the log: an error can repeat a whole frame, line breaks included.
pub(crate) fn for_log(words: &str) -> String {
    words.escape_debug().take(MAX_LOGGED).collect()
}

/// The event in a message; none in one of a type that is not known here.
pub(crate) fn event_of(link: LinkId, message: ToBroker) -> Result<Option<Event>, BadMessage> {
    let event = match message {
        ToBroker::Hello(_) => return Err(BadMessage::SecondHello),
        ToBroker::Inventory(page) => {
            bounded(page.teams.len(), MAX_LIST)?;
            Event::Inventory { link, page }
        }
        ToBroker::Heartbeat(heartbeat) => {
            bounded(heartbeat.idle_teams.len(), MAX_IDLE)?;
            bounded(heartbeat.hot_teams.len(), MAX_HOT)?;
            bounded(heartbeat.large_teams.len(), MAX_LARGE)?;
            Event::Heartbeat {
                link,
                heartbeat,
                wall_ms: clock::wall_ms(),
            }
        }
        ToBroker::Prepared(held) => Event::Prepared { link, held },
        ToBroker::Yielded(held) => Event::Yielded { link, held },
        ToBroker::Released(held) => Event::Released { link, held },
        ToBroker::Arrived(arrivals) => {
            bounded(arrivals.connections.len(), MAX_LIST)?;
            Event::Arrived { link, arrivals }
        }
        ToBroker::Left(departures) => {
            bounded(departures.connections.len(), MAX_LIST)?;
            Event::Left { link, departures }
        }
        ToBroker::Counted(counted) => {
            bounded(counted.teams.len(), MAX_LIST)?;
            Event::Counted { link, counted }
        }
        ToBroker::Missed(missed) => {
            bounded(missed.teams.len(), MAX_LIST)?;
            Event::Missed { link, missed }
        }
        ToBroker::Bye { budget_ms } => Event::Bye { link, budget_ms },
        ToBroker::Unknown => return Ok(None),
    };
    Ok(Some(event))
}

fn bounded(length: usize, most: usize) -> Result<(), BadMessage> {
    if length <= most {
        Ok(())
    } else {
        Err(BadMessage::List { length, most })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Result<Option<Event>, BadMessage> {
        event_of(LinkId(1), serde_json::from_str(text)?)
    }

    #[test]
    fn a_list_over_its_bound_is_refused() {
        let entry = r#"{"team":"T","epoch":1,"grant":"g","state":"owned","connections":0}"#;
        let page = |count: usize| {
            let entries = vec![entry; count].join(",");
            format!(r#"{{"type":"inventory","teams":[{entries}],"more":false}}"#)
        };
        assert!(matches!(read(&page(MAX_LIST)), Ok(Some(Event::Inventory { .. }))));
        assert!(matches!(read(&page(MAX_LIST + 1)), Err(BadMessage::List { .. })));
    }

    #[test]
    fn what_a_node_says_cannot_forge_a_line_of_the_log() {
        let page = |state: &str| {
            let team = r#"{"team":"T","epoch":1,"grant":"g","state":"#;
            format!(r#"{{"type":"inventory","more":false,"teams":[{team}"{state}","connections":0}}]}}"#)
        };
        let refused = |state: &str| match read(&page(state)) {
            Err(bad) => for_log(&bad.to_string()),
            Ok(_) => panic!("{state} is no state"),
        };
        let forged = refused(r"\u001b[31m\nnode is ready");
        assert!(
            forged.contains(r"\nnode is ready") && !forged.contains(char::is_control),
            "{forged}"
        );
        assert_eq!(refused(&"x".repeat(100_000)).chars().count(), MAX_LOGGED);
    }

    #[test]
    fn an_unknown_type_is_no_event_and_no_error() {
        assert!(matches!(read(r#"{"type":"later"}"#), Ok(None)));
    }

    #[test]
    fn nonsense_is_refused() {
        for bad in [
            "",
            "[]",
            "{}",
            r#"{"type":"yielded","team":"..","epoch":1}"#,
            r#"{"type":"released","team":"T","epoch":9007199254740992}"#,
            r#"{"type":"bye","budget_ms":-1}"#,
        ] {
            assert!(matches!(read(bad), Err(BadMessage::Json(_))), "{bad}");
        }
    }
}
