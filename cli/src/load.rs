//! `usher load`: many clients over many teams, and a report of what became of them.
//!
//! [`ledger`] says which messages were lost or doubled, [`tally`] who was connected where and for
//! how long not; both are pure. [`member`] is one client; this file starts them all, sets their
//! pace, and ends them.

mod ledger;
mod member;
mod report;
mod tally;
mod wire;

use clap::Args;
use std::io::IsTerminal as _;
use std::process::ExitCode;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, sleep_until, timeout};
use tokio_util::sync::CancellationToken;
use usher_shared::id::TeamId;

use crate::client::BrokerArgs;
use crate::client::dial::{Options, Speaks};
use crate::client::session::{End, Session};
use crate::duration::HumanDuration;
use crate::failure::Failure;
use crate::{output, settings, signals};
use ledger::{Ledger, SETTLE_MS};
use member::Member;
use report::Report;
use tally::Tally;

/// Descriptors this process needs beside its connections: requests to brokers, the runtime, the terminal.
const SPARE_DESCRIPTORS: u64 = 600;
/// How long the last clients may take to connect after their turn, before the run goes on without them.
const STRAGGLERS: Duration = Duration::from_secs(30);
/// How long the clients may take to close.
const CLOSING: Duration = Duration::from_secs(5);
/// The largest team: each message remembers who is owed it, a bit for each.
const TEAM_MAX: usize = 10_000;

/// Open many connections over many teams, send, check, come back, and report
#[derive(Args)]
#[command(
    after_help = "Connection number i belongs to team i modulo --teams. Once all are connected, each sends\n\
    numbered messages and checks those of its team mates for --duration.\n\n\
    A message is DUE at every team mate that has come, and is received, lost or missed there.\n\
    LOST: sender and receiver both kept a connection for 5 s after the sending, and it did not\n\
    arrive. MISSED: it did not arrive, but one of the two was without a connection then or\n\
    meanwhile. DOUBLED: it arrived twice. A usher.v1 client that moves without a gap keeps its connection.\n\n\
    The exit code is 0 when nothing was lost or doubled and all were connected at the end.\n\
    A process holds as many connections as it has file descriptors; for more, run several with\n\
    different --team-prefix.\n\n\
    Examples:\n  usher load --connections 2000 --teams 1000 --message-rate 1\n  \
    usher load --connections 15000 --teams 5000 --hold --duration 5m\n  \
    usher load --connections 300 --teams 300 --usher-v1 off --json | jq .nodes"
)]
pub(crate) struct LoadArgs {
    /// How many connections
    #[arg(long, short, default_value_t = 100, value_name = "NUMBER", value_parser = clap::value_parser!(u32).range(1..))]
    connections: u32,
    /// How many teams they are spread over
    #[arg(long, short, default_value_t = 50, value_name = "NUMBER", value_parser = clap::value_parser!(u32).range(1..))]
    teams: u32,
    /// Connections opened a second
    #[arg(long, default_value_t = 500.0, value_name = "PER_SECOND", value_parser = positive)]
    rate: f64,
    /// Open them evenly over this time instead
    #[arg(long, conflicts_with = "rate", value_name = "DURATION")]
    ramp: Option<HumanDuration>,
    /// Messages that each connection sends a second
    #[arg(long, default_value_t = 1.0, value_name = "PER_SECOND", value_parser = positive)]
    message_rate: f64,
    /// Send nothing: hold idle connections
    #[arg(long)]
    hold: bool,
    /// The size of a message
    #[arg(long, default_value_t = 100, value_name = "BYTES", value_parser = clap::value_parser!(u32).range(0..=1_048_576))]
    size: u32,
    /// How long to send and check once all are connected
    #[arg(long, default_value = "30s", value_name = "DURATION")]
    duration: HumanDuration,
    /// Which clients speak usher.v1: on, off, or a share such as 50%
    #[arg(long, default_value = "on", value_name = "SHARE", value_parser = share)]
    usher_v1: u32,
    /// Teams are called this and a number
    #[arg(long, default_value = "load-", value_name = "TEXT")]
    team_prefix: String,
    /// Print the report as JSON
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    broker: BrokerArgs,
}

fn positive(text: &str) -> Result<f64, String> {
    let number: f64 = text.parse().map_err(|_| "not a number".to_owned())?;
    if number.is_finite() && number > 0.0 && number <= 1e6 {
        Ok(number)
    } else {
        Err("a rate is above 0 and at most 1000000".to_owned())
    }
}

/// Percent of the clients.
fn share(text: &str) -> Result<u32, String> {
    let percent = match text {
        "on" => Some(100),
        "off" => Some(0),
        _ => text
            .strip_suffix('%')
            .and_then(|percent| percent.parse().ok())
            .filter(|percent| *percent <= 100),
    };
    percent.ok_or_else(|| "it is on, off, or a share such as 50%".to_owned())
}

/// What the clients do just now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    /// Connecting; nobody sends.
    Ramp,
    /// Sending and checking.
    Sending,
    /// Nobody sends; what is under way may arrive.
    Settling,
}

/// What all clients of a run share.
struct Run {
    id: u32,
    began: Instant,
    tally: Mutex<Tally>,
    teams: Vec<Mutex<Ledger>>,
    phase: watch::Sender<Phase>,
    /// `None` holds idle connections.
    every: Option<Duration>,
    message_bytes: usize,
}

impl Run {
    fn now_ms(&self) -> u64 {
        u64::try_from(self.began.elapsed().as_millis()).unwrap_or(u64::MAX)
    }

    fn now_us(&self) -> u64 {
        u64::try_from(self.began.elapsed().as_micros()).unwrap_or(u64::MAX)
    }

    fn tally(&self) -> std::sync::MutexGuard<'_, Tally> {
        self.tally.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn team(&self, team: usize) -> std::sync::MutexGuard<'_, Ledger> {
        self.teams[team].lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn counts(&self) -> ledger::Counts {
        (0..self.teams.len())
            .map(|team| self.team(team).counts())
            .fold(ledger::Counts::default(), ledger::Counts::plus)
    }

    fn settle(&self) {
        let now_ms = self.now_ms();
        for team in 0..self.teams.len() {
            self.team(team).settle(now_ms);
        }
    }

    fn outstanding(&self) -> u64 {
        (0..self.teams.len())
            .map(|team| self.team(team).outstanding())
            .sum()
    }
}

pub(crate) async fn run(args: LoadArgs) -> Result<ExitCode, Failure> {
    let connections = args.connections as usize;
    let teams = args.teams as usize;
    check(&args)?;
    let brokers = Arc::new(args.broker.brokers()?);
    let options = |speaks| {
        Arc::new(Options {
            brokers: Arc::clone(&brokers),
            speaks,
            message_bytes: 4 << 20,
        })
    };
    let (usher, plain) = (options(Speaks::UsherV1), options(Speaks::Plain));
    let stop = signals::stop().map_err(Failure::new)?;
    let run = Arc::new(Run {
        id: rand::random(),
        began: Instant::now(),
        tally: Mutex::new(Tally::new(connections, teams).map_err(Failure::new)?),
        teams: (0..teams)
            .map(|team| Mutex::new(Ledger::new(members(connections, teams, team))))
            .collect(),
        phase: watch::Sender::new(Phase::Ramp),
        every: (!args.hold).then(|| Duration::from_secs_f64(1.0 / args.message_rate)),
        message_bytes: args.size as usize,
    });
    let closing = CancellationToken::new();
    let mut clients = JoinSet::new();
    let progress = tokio::spawn(show_progress(Arc::clone(&run), connections));
    let apart = args
        .ramp
        .map_or(Duration::from_secs_f64(1.0 / args.rate), |ramp| {
            ramp.0.div_f64(f64::from(args.connections))
        });
    for client in 0..connections {
        let turn = run.began + apart.mul_f64(client as f64);
        tokio::select! {
            () = sleep_until(turn) => {}
            () = stop.cancelled() => break,
        }
        let team = client % teams;
        let name: TeamId = format!("{}{team}", args.team_prefix)
            .parse()
            .map_err(Failure::settings)?;
        let options = if speaks_usher(client, args.usher_v1) {
            &usher
        } else {
            &plain
        };
        let member = Member::new(Arc::clone(&run), client, team, client / teams);
        clients.spawn(Session::new(Arc::clone(options), name, member, closing.clone()).run());
    }
    let gave_up = pass(&run, &stop, &mut clients, connections, args.duration.0).await;
    progress.abort();
    clear_line();
    let report = Report::new(&run, &args, gave_up);
    closing.cancel();
    let _ = timeout(CLOSING, async { while clients.join_next().await.is_some() {} }).await;
    if args.json {
        output::line(&serde_json::to_string_pretty(&report).map_err(Failure::new)?);
    } else {
        output::text(&report.render());
    }
    Ok(if report.is_good() {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

fn check(args: &LoadArgs) -> Result<(), Failure> {
    let (connections, teams) = (args.connections as usize, args.teams as usize);
    let name = format!("{}{}", args.team_prefix, args.teams);
    let name = name.parse::<TeamId>();
    name.map_err(|error| Failure::settings(error).try_this("another --team-prefix"))?;
    if members(connections, teams, 0) > TEAM_MAX {
        return Err(Failure::settings(anyhow::anyhow!(
            "{} connections in a team; `usher load` checks at most {TEAM_MAX}",
            members(connections, teams, 0)
        ))
        .try_this("more --teams"));
    }
    let descriptors = settings::raise_descriptors()?;
    let room = descriptors.saturating_sub(SPARE_DESCRIPTORS);
    if connections as u64 > room {
        let processes = (connections as u64).div_ceil(room.max(1));
        let each = (connections as u64).div_ceil(processes);
        return Err(Failure::settings(anyhow::anyhow!(
            "{connections} connections do not fit: this process may have {descriptors} file descriptors"
        ))
        .try_this(format!(
            "{processes} processes, as in `usher load --connections {each} --team-prefix a-` and `--team-prefix b-`; or a higher `ulimit -n`"
        )));
    }
    Ok(())
}

/// How many of the connections are in a team.
fn members(connections: usize, teams: usize, team: usize) -> usize {
    (connections + teams - 1 - team.min(teams - 1)) / teams
}

/// Spreads the share evenly over the clients, in every team alike.
fn speaks_usher(client: usize, percent: u32) -> bool {
    // A stride that is prime to 100 visits every hundredth once.
    (client * 37) % 100 < percent as usize
}

/// From the ramp's end to the moment when everything that was sent has been judged. Returns how many
/// clients gave up.
async fn pass(
    run: &Run,
    stop: &CancellationToken,
    clients: &mut JoinSet<End>,
    connections: usize,
    duration: Duration,
) -> u64 {
    let mut gave_up = 0;
    let stragglers = Instant::now() + STRAGGLERS;
    while run.tally().connected_now() < connections && Instant::now() < stragglers && !stop.is_cancelled() {
        gave_up += reap(run, clients);
        if clients.is_empty() {
            break;
        }
        sleep(Duration::from_millis(20)).await;
    }
    if !stop.is_cancelled() && !clients.is_empty() {
        run.phase.send_replace(Phase::Sending);
        let end = Instant::now() + duration;
        while Instant::now() < end && !stop.is_cancelled() && !clients.is_empty() {
            tokio::select! {
                () = sleep_until(end.min(Instant::now() + Duration::from_millis(500))) => {}
                () = stop.cancelled() => {}
            }
            run.settle();
            gave_up += reap(run, clients);
        }
    }
    run.phase.send_replace(Phase::Settling);
    let settled = Instant::now() + Duration::from_millis(SETTLE_MS + 100);
    while run.outstanding() > 0 && Instant::now() < settled {
        sleep(Duration::from_millis(50)).await;
        run.settle();
    }
    for team in 0..run.teams.len() {
        run.team(team).finish();
    }
    gave_up + reap(run, clients)
}

/// Takes note of clients that ended by themselves.
fn reap(run: &Run, clients: &mut JoinSet<End>) -> u64 {
    let mut gave_up = 0;
    while let Some(ended) = clients.try_join_next() {
        gave_up += 1;
        run.tally().error(match ended {
            Ok(End::GaveUp(ending)) => format!("gave up: {}", ending.kind()),
            Ok(End::Finished | End::Stopped) => "ended".to_owned(),
            Err(error) => format!("client failed: {error}"),
        });
    }
    gave_up
}

/// A line each second on a terminal, every ten seconds elsewhere, on standard error.
async fn show_progress(run: Arc<Run>, connections: usize) {
    let moving = std::io::stderr().is_terminal();
    let every = Duration::from_secs(if moving { 1 } else { 10 });
    let mut ticks = tokio::time::interval_at(Instant::now() + every, every);
    let mut before = ledger::Counts::default();
    loop {
        ticks.tick().await;
        let counts = run.counts();
        let per_s = |now: u64, then: u64| (now - then) as f64 / every.as_secs_f64();
        let line = format!(
            "{:>5.0} s  {}/{connections} connected  sent {:.0}/s  received {:.0}/s  lost {}  doubled {}",
            run.began.elapsed().as_secs_f64(),
            run.tally().connected_now(),
            per_s(counts.sent, before.sent),
            per_s(counts.received, before.received),
            counts.lost,
            counts.doubled,
        );
        before = counts;
        if moving {
            output::moving_note(&line);
        } else {
            output::note(&line);
        }
    }
}

fn clear_line() {
    if std::io::stderr().is_terminal() {
        output::moving_note("");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn connections_are_dealt_to_teams_evenly() {
        for (connections, teams) in [(10, 3), (3, 10), (7, 7), (1, 1), (20_000, 7)] {
            let dealt: Vec<usize> = (0..teams)
                .map(|team| (0..connections).filter(|client| client % teams == team).count())
                .collect();
            let told: Vec<usize> = (0..teams).map(|team| members(connections, teams, team)).collect();
            assert_eq!(dealt, told, "{connections} over {teams}");
        }
    }

    #[test]
    fn a_share_of_the_clients_speaks_usher() {
        for percent in [0, 1, 50, 99, 100] {
            let speaking = (0..1_000).filter(|client| speaks_usher(*client, percent)).count();
            assert_eq!(speaking, percent as usize * 10);
        }
        assert_eq!(
            (share("on"), share("off"), share("25%")),
            (Ok(100), Ok(0), Ok(25))
        );
        assert!(share("101%").is_err() && share("half").is_err());
    }

    #[test]
    fn rates_are_above_zero() {
        assert!(positive("0").is_err() && positive("-1").is_err() && positive("nan").is_err());
        assert_eq!(positive("0.5"), Ok(0.5));
    }
}
