//! `usher connect`: an interactive client.

use clap::Args;
use std::io::IsTerminal as _;
use std::process::ExitCode;
use std::sync::Arc;
use tokio::sync::mpsc;
use usher_shared::frame::Control;
use usher_shared::id::TeamId;

use crate::client::BrokerArgs;
use crate::client::decide::without_query;
use crate::client::dial::{Options, Speaks};
use crate::client::session::{Application, End, Event, How, Session};
use crate::duration::for_people;
use crate::failure::Failure;
use crate::output;
use crate::signals;

/// Lines typed ahead while there is no connection; beyond it the keyboard waits.
const TYPED_AHEAD: usize = 1_000;
/// The largest message shown.
const MESSAGE_BYTES: usize = 16 << 20;

/// Connect to a team: what you type is sent, what team mates send is printed
#[derive(Args)]
#[command(
    after_help = "Goes through the broker, moves to another node when told to, and comes back after a loss.\n\
    Frames go to standard output as they are; what happens to the connection is told on standard\n\
    error, after `*`. Ends with Ctrl-C or Ctrl-D.\n\n\
    Examples:\n  usher connect T1\n  echo hello | usher connect T1\n  usher connect T1 --listen | jq ."
)]
pub(crate) struct ConnectArgs {
    /// The team
    team: TeamId,
    /// Be any WebSocket client, without the usher.v1 subprotocol
    #[arg(long)]
    plain: bool,
    /// Send nothing, and do not end when standard input does
    #[arg(long)]
    listen: bool,
    /// Say nothing about the connection
    #[arg(long, short)]
    quiet: bool,
    #[command(flatten)]
    broker: BrokerArgs,
}

pub(crate) async fn run(args: ConnectArgs) -> Result<ExitCode, Failure> {
    let options = Options {
        brokers: Arc::new(args.broker.brokers()?),
        speaks: if args.plain {
            Speaks::Plain
        } else {
            Speaks::UsherV1
        },
        message_bytes: MESSAGE_BYTES,
    };
    let stop = signals::stop().map_err(Failure::new)?;
    let keyboard = Keyboard {
        lines: (!args.listen).then(read_lines),
        voice: if args.quiet { Voice::Quiet } else { Voice::Aloud },
        team: args.team.clone(),
    };
    let broker = options.brokers.first().to_owned();
    match Session::new(Arc::new(options), args.team, keyboard, stop)
        .run()
        .await
    {
        End::Finished | End::Stopped => Ok(ExitCode::SUCCESS),
        End::GaveUp(ending) => Err(Failure::say(ending).try_this(format!(
            "see that {broker} is the broker's client listener and that it may make or knows the team"
        ))),
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Voice {
    Aloud,
    Quiet,
}

/// The person at the terminal.
struct Keyboard {
    lines: Option<mpsc::Receiver<String>>,
    voice: Voice,
    team: TeamId,
}

impl Keyboard {
    fn say(&self, text: &str) {
        if self.voice == Voice::Aloud {
            output::note(&format!("* {text}"));
        }
    }
}

impl Application for Keyboard {
    fn on(&mut self, event: Event<'_>) {
        match event {
            Event::Text(text) => output::line(text),
            Event::Binary(bytes) => output::line(&String::from_utf8_lossy(bytes)),
            other => {
                if let Some(line) = line(&self.team, &other) {
                    self.say(&line);
                }
            }
        }
    }

    async fn outgoing(&mut self) -> Option<String> {
        match &mut self.lines {
            Some(lines) => lines.recv().await,
            None => std::future::pending().await,
        }
    }
}

/// What to tell of an event, in one line.
fn line(team: &TeamId, event: &Event<'_>) -> Option<String> {
    Some(match event {
        Event::Connected { node, took, how } => {
            let node = node.map_or("its node", |node| node.as_str());
            match how {
                How::First => format!("{team} is on {node}, connected in {}", millis(*took)),
                How::Back(gap) => format!("back on {node} after {}", millis(*gap)),
                How::Moved => format!("now on {node}; the old connection is closed"),
            }
        }
        Event::Control(Control::Move {
            url,
            after_ms,
            by_ms,
            reason,
        }) => format!(
            "told to move ({reason}) in {}, at the latest in {}, by way of {}",
            for_people(*after_ms),
            for_people(*by_ms),
            without_query(url)
        ),
        Event::Control(Control::Error { code, detail }) => format!("refused: {detail} ({code})"),
        Event::Control(Control::Welcome { .. } | Control::Redirect { .. } | Control::Pong { .. }) => {
            return None;
        }
        Event::Lost(ending) => format!("lost: {ending}"),
        Event::Failed(ending) => format!("no connection: {ending}"),
        Event::Waiting(wait) => format!("trying again in {}", millis(*wait)),
        Event::Text(_) | Event::Binary(_) => return None,
    })
}

fn millis(duration: std::time::Duration) -> String {
    for_people(u64::try_from(duration.as_millis()).unwrap_or(u64::MAX))
}

/// Lines of standard input. A thread of its own reads them, because a read of a terminal cannot be
/// cut short; the process ends without waiting for it.
fn read_lines() -> mpsc::Receiver<String> {
    let (lines, receiver) = mpsc::channel(TYPED_AHEAD);
    std::thread::spawn(move || {
        for line in std::io::stdin().lines() {
            let Ok(line) = line else { break };
            if lines.blocking_send(line).is_err() {
                return;
            }
        }
        if !std::io::stdin().is_terminal() {
            // A pipe that ended: its last line is on its way, and an answer may be.
            std::thread::sleep(std::time::Duration::from_millis(500));
        }
    });
    receiver
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::client::decide::Ending;
    use std::time::Duration;

    #[test]
    fn events_are_told_in_plain_words() {
        let team: TeamId = "T1".parse().unwrap();
        let node = "node-2".parse().unwrap();
        let told = |event: Event<'_>| line(&team, &event);
        assert_eq!(
            told(Event::Connected {
                node: Some(&node),
                took: Duration::from_millis(12),
                how: How::First
            }),
            Some("T1 is on node-2, connected in 12 ms".to_owned())
        );
        assert_eq!(
            told(Event::Lost(&Ending::Closed {
                code: 4312,
                reason: String::new()
            })),
            Some("lost: moved or restarting (close 4312)".to_owned())
        );
        let moved = Control::Move {
            url: "http://h/connect/T1?from=1".to_owned(),
            after_ms: 300,
            by_ms: 5_000,
            reason: "drain".to_owned(),
        };
        assert_eq!(
            told(Event::Control(&moved)),
            Some(
                "told to move (drain) in 300 ms, at the latest in 5.0 s, by way of http://h/connect/T1"
                    .to_owned()
            )
        );
        assert_eq!(told(Event::Text("x")), None);
    }
}
