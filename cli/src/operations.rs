//! `usher operations` and `usher operation ID`, and how every verb shows and follows an operation.

use clap::Args;
use std::io::IsTerminal as _;
use std::process::ExitCode;
use std::time::Duration;
use usher_shared::id::OperationId;
use usher_shared::rest::{OperationKind, OperationState, OperationView, OperationsView};

use crate::api::{Api, ApiError, AskArgs, json};
use crate::duration::for_people;
use crate::failure::Failure;
use crate::output;
use crate::table::{self, Column, count};

/// How often a followed operation is looked at: quick enough for a moving line.
const LOOK: Duration = Duration::from_millis(250);
/// The exit code of a process that SIGINT ended, as shells have it.
const INTERRUPTED: u8 = 130;
/// How long a broker may be away while an operation is followed; a restart takes a few seconds.
const BROKER_AWAY: Duration = Duration::from_secs(60);

/// The newest drains, sheds and failovers
#[derive(Args)]
#[command(after_help = "Example:\n  usher operations")]
pub(crate) struct OperationsArgs {
    #[command(flatten)]
    ask: AskArgs,
}

/// One drain, shed or failover: its progress, or its report
#[derive(Args)]
#[command(after_help = "Examples:\n  usher operation drain-7-1\n  usher operation drain-7-1 --wait")]
pub(crate) struct OperationArgs {
    /// Its id, as `usher operations` lists it [default: the newest]
    operation: Option<OperationId>,
    /// Follow it to its end; exit code 0 when done, 1 when cancelled
    #[arg(long)]
    wait: bool,
    #[command(flatten)]
    ask: AskArgs,
}

pub(crate) async fn list(args: OperationsArgs) -> Result<ExitCode, Failure> {
    let view: OperationsView = Api::new(&args.ask.admin)?.get("/v1/operations").await?;
    if args.ask.json {
        output::line(&json(&view)?);
    } else if view.operations.is_empty() {
        output::line("no operation yet; `usher drain NODE` is one");
    } else {
        output::text(&render_list(&view));
    }
    Ok(ExitCode::SUCCESS)
}

pub(crate) async fn one(args: OperationArgs) -> Result<ExitCode, Failure> {
    let api = Api::new(&args.ask.admin)?;
    let view = match &args.operation {
        Some(operation) => api.get(&format!("/v1/operations/{operation}")).await?,
        None => newest(&api).await?,
    };
    if args.wait {
        return follow(&api, view, args.ask.json).await;
    }
    if args.ask.json {
        output::line(&json(&view)?);
    } else {
        output::text(&report(&view));
    }
    Ok(ExitCode::SUCCESS)
}

async fn newest(api: &Api) -> Result<OperationView, Failure> {
    let view: OperationsView = api.get("/v1/operations?limit=1").await?;
    let newest = view.operations.into_iter().next();
    newest.ok_or_else(|| {
        Failure::new(anyhow::anyhow!("there is no operation yet"))
            .try_this("`usher drain NODE` is one".to_owned())
    })
}

/// Prints what was started, or with `wait` follows it to its end.
pub(crate) async fn started(
    api: &Api,
    view: OperationView,
    wait: bool,
    as_json: bool,
) -> Result<ExitCode, Failure> {
    if wait {
        return follow(api, view, as_json).await;
    }
    if as_json {
        output::line(&json(&view)?);
    } else {
        output::line(&plan(&view));
        output::line(&format!(
            "follow it with `usher operation {} --wait`",
            view.operation
        ));
    }
    Ok(ExitCode::SUCCESS)
}

/// Shows progress until the operation ends, then its report. A moving line on a terminal, else a
/// line at each change; standard output gets only the report.
async fn follow(api: &Api, view: OperationView, as_json: bool) -> Result<ExitCode, Failure> {
    let moving = std::io::stderr().is_terminal();
    output::note(&plan(&view));
    let goes_on = goes_on(&view);
    let view = tokio::select! {
        ended = watch(api, view, moving) => ended?,
        _ = tokio::signal::ctrl_c() => {
            output::note(&goes_on);
            return Ok(ExitCode::from(INTERRUPTED));
        }
    };
    if moving {
        output::moving_note("");
    }
    if as_json {
        output::line(&json(&view)?);
    } else {
        output::text(&report(&view));
    }
    match view.state {
        OperationState::Done if view.kind == OperationKind::Drain && view.teams_kept > 0 => Err(kept(&view)),
        OperationState::Done => Ok(ExitCode::SUCCESS),
        OperationState::Running | OperationState::Cancelled => Ok(ExitCode::FAILURE),
    }
}

/// What whoever stops watching should know.
fn goes_on(view: &OperationView) -> String {
    let stop = match view.kind {
        OperationKind::Drain => format!("; `usher undrain {}` stops it", view.node),
        OperationKind::Shed | OperationKind::Failover | OperationKind::Relief => String::new(),
    };
    format!(
        "the {} goes on{stop}; `usher operation {} --wait` follows it again",
        view.kind.as_str(),
        view.operation
    )
}

async fn watch(api: &Api, mut view: OperationView, moving: bool) -> Result<OperationView, ApiError> {
    let path = format!("/v1/operations/{}", view.operation);
    let mut shown = String::new();
    while view.state == OperationState::Running {
        let line = progress(&view);
        if line != shown {
            if moving {
                output::moving_note(&line);
            } else {
                output::note(&line);
            }
            shown = line;
        }
        tokio::time::sleep(LOOK).await;
        view = look(api, &path).await?;
    }
    Ok(view)
}

/// A drain that is done and left teams behind: whoever waits for an empty node must not go on.
fn kept(view: &OperationView) -> Failure {
    let named: Vec<String> = view.teams_kept_named.iter().map(ToString::to_string).collect();
    let more = match view.teams_kept as usize - named.len().min(view.teams_kept as usize) {
        0 => String::new(),
        more => format!(" and {more} more"),
    };
    let first = named.first().cloned().unwrap_or_else(|| "TEAM".to_owned());
    Failure::new(anyhow::anyhow!(
        "{} is not empty: {} pinned hard to it: {}{more}",
        view.node,
        if view.teams_kept == 1 {
            "a team is".to_owned()
        } else {
            format!("{} teams are", view.teams_kept)
        },
        named.join(", ")
    ))
    .try_this(format!(
        "take the pin off with `usher assign {first}` and drain again, or `usher undrain {}`",
        view.node
    ))
}

/// The operation now. A broker that is away for a while is waited for: operations survive its restart.
async fn look(api: &Api, path: &str) -> Result<OperationView, ApiError> {
    let began = tokio::time::Instant::now();
    loop {
        match api.get(path).await {
            Err(ApiError::Unreachable { .. }) if began.elapsed() < BROKER_AWAY => {
                tokio::time::sleep(LOOK).await;
            }
            other => return other,
        }
    }
}

fn render_list(view: &OperationsView) -> String {
    const COLUMNS: [Column; 9] = [
        Column::Text("OPERATION"),
        Column::Text("KIND"),
        Column::Text("NODE"),
        Column::Text("STATE"),
        Column::Text("BEGAN"),
        Column::Number("TEAMS MOVED"),
        Column::Number("CONNECTIONS MOVED"),
        Column::Number("BACK"),
        Column::Number("TOOK"),
    ];
    let rows = view.operations.iter().map(|operation| {
        vec![
            operation.operation.to_string(),
            operation.kind.as_str().to_owned(),
            operation.node.to_string(),
            state(operation).to_owned(),
            time_of_day(operation.began_unix_ms),
            format!("{}/{}", operation.teams_moved, operation.teams),
            format!("{}/{}", operation.connections_moved, connections(operation)),
            operation.connections_back.to_string(),
            for_people(operation.elapsed_ms),
        ]
    });
    table::render(&COLUMNS, rows)
}

const fn state(operation: &OperationView) -> &'static str {
    match operation.state {
        OperationState::Running if operation.waits => "waiting",
        OperationState::Running => "running",
        OperationState::Done => "done",
        OperationState::Cancelled => "cancelled",
    }
}

/// How many connections it is about, where that is known.
fn connections(operation: &OperationView) -> String {
    if operation.connections_known {
        operation.connections.to_string()
    } else {
        "?".to_owned()
    }
}

/// A moment as RFC 3339 has it, in UTC: the same on every machine that shows it.
fn time_of_day(unix_ms: u64) -> String {
    let seconds = unix_ms / 1_000;
    let (days, of_day) = (seconds / 86_400, seconds % 86_400);
    // Howard Hinnant, "chrono-Compatible Low-Level Date Algorithms", civil_from_days; years begin in March.
    let era_day = days + 719_468;
    let era = era_day / 146_097;
    let day_of_era = era_day % 146_097;
    let year_of_era = (day_of_era - day_of_era / 1_460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * shifted + 2) / 5 + 1;
    let month = if shifted < 10 { shifted + 3 } else { shifted - 9 };
    let year = year_of_era + era * 400 + u64::from(month <= 2);
    let (hour, minute, second) = (of_day / 3_600, of_day / 60 % 60, of_day % 60);
    format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}Z")
}

/// What an operation sets out to do, in one line.
pub(crate) fn plan(view: &OperationView) -> String {
    let rate = match view.rate_per_s {
        0 => String::new(),
        rate => format!(" at {rate} connections/s, about {}", for_people(view.estimate_ms)),
    };
    format!(
        "{} of {} ({}): {}, {}{rate}",
        view.kind.as_str(),
        view.node,
        view.operation,
        count(u64::from(view.teams), "team"),
        count(u64::from(view.connections), "connection"),
    )
}

/// How far it is, in one line.
pub(crate) fn progress(view: &OperationView) -> String {
    let detail = if view.detail.is_empty() {
        String::new()
    } else {
        format!("; {}", view.detail)
    };
    let rest = match view.rate_per_s {
        rate if rate > 0 && view.connections_to_go > 0 && !view.waits => {
            let millis = u64::from(view.connections_to_go) * 1_000 / u64::from(rate);
            format!(" (about {})", for_people(millis))
        }
        _ => String::new(),
    };
    format!(
        "{} of {}: {} of {} teams and {} of {} connections moved, {} to go{rest}, {} back{detail}",
        view.kind.as_str(),
        view.node,
        view.teams_moved,
        view.teams,
        view.connections_moved,
        connections(view),
        view.connections_to_go,
        view.connections_back,
    )
}

/// Everything about it, several lines.
pub(crate) fn report(view: &OperationView) -> String {
    let ended = match view.state {
        OperationState::Running => "running for",
        OperationState::Done => "done in",
        OperationState::Cancelled => "cancelled after",
    };
    let estimate = match view.estimate_ms {
        0 => String::new(),
        estimate => format!(" (estimate {})", for_people(estimate)),
    };
    let mut text = format!(
        "{} of {} ({}): {ended} {}{estimate}\n",
        view.kind.as_str(),
        view.node,
        view.operation,
        for_people(view.elapsed_ms)
    );
    text.push_str(&match view.ended_unix_ms {
        Some(ended) => format!(
            "  from {} to {}\n",
            time_of_day(view.began_unix_ms),
            time_of_day(ended)
        ),
        None => format!("  since {}\n", time_of_day(view.began_unix_ms)),
    });
    if !view.detail.is_empty() {
        text.push_str(&format!("  {}\n", view.detail));
    }
    text.push_str(&format!(
        "  teams        {} of {} moved",
        view.teams_moved, view.teams
    ));
    for (teams, what) in [
        (view.teams_to_go, "to go"),
        (view.teams_leaving, "on their way"),
        (view.teams_kept, "pinned here and kept"),
    ] {
        if teams > 0 {
            text.push_str(&format!(", {teams} {what}"));
        }
    }
    text.push_str(&format!(
        "\n  connections  {} of {} moved",
        view.connections_moved,
        connections(view)
    ));
    if view.connections_to_go > 0 {
        text.push_str(&format!(", {} to go", view.connections_to_go));
    }
    text.push_str(&format!(", {} back elsewhere", view.connections_back));
    if view.state == OperationState::Done {
        text.push_str(&format!(", {} not seen again", view.connections_not_back));
    }
    text.push('\n');
    if let Some(deliveries) = view.deliveries_missed {
        text.push_str(&format!(
            "  messages     {} not delivered, to members that were on the other node or away\n",
            count(deliveries, "copy").replace("copys", "copies")
        ));
    }
    text.push_str(&gaps(view));
    text
}

fn gaps(view: &OperationView) -> String {
    match (view.gap_p50_ms, view.gap_p99_ms, view.gap_max_ms) {
        (Some(half), Some(most), Some(longest)) => {
            let error = match view.gap_error_ms {
                Some(error) if error > 0 => format!(", each +-{error} ms"),
                _ => String::new(),
            };
            format!(
                "  gap          p50 {half} ms, p99 {most} ms, max {longest} ms{error} (of {} told apart)\n",
                count(u64::from(view.connections_matched), "connection")
            )
        }
        _ if view.connections_back > 0 => {
            "  gap          unknown: none of them said which connection it had before\n".to_owned()
        }
        _ => String::new(),
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    pub(crate) fn operation(kind: OperationKind, state: OperationState) -> OperationView {
        OperationView {
            operation: "drain-7-1".parse().unwrap(),
            kind,
            node: "node-1".parse().unwrap(),
            state,
            detail: String::new(),
            waits: false,
            teams: 100,
            teams_moved: 40,
            teams_to_go: 60,
            teams_leaving: 3,
            teams_kept: 0,
            teams_kept_named: Vec::new(),
            connections: 2_000,
            connections_known: true,
            connections_moved: 790,
            connections_left: 790,
            connections_to_go: 1_210,
            connections_back: 780,
            connections_arrived: 780,
            connections_not_back: 10,
            connections_matched: 400,
            gap_p50_ms: Some(0),
            gap_p99_ms: Some(31),
            gap_max_ms: Some(80),
            gap_error_ms: Some(0),
            deliveries_missed: Some(0),
            rate_per_s: 200,
            estimate_ms: 10_000,
            elapsed_ms: 4_100,
            began_unix_ms: 1_795_656_174_000,
            ended_unix_ms: None,
        }
    }

    #[test]
    fn whoever_stops_watching_is_told_that_it_goes_on() {
        let drain = operation(OperationKind::Drain, OperationState::Running);
        assert_eq!(
            goes_on(&drain),
            "the drain goes on; `usher undrain node-1` stops it; `usher operation drain-7-1 --wait` follows it again"
        );
        let shed = operation(OperationKind::Shed, OperationState::Running);
        assert!(!goes_on(&shed).contains("undrain"));
    }

    #[test]
    fn a_running_drain_shows_its_plan_and_its_progress() {
        let view = operation(OperationKind::Drain, OperationState::Running);
        assert_eq!(
            plan(&view),
            "drain of node-1 (drain-7-1): 100 teams, 2000 connections at 200 connections/s, about 10 s"
        );
        assert_eq!(
            progress(&view),
            "drain of node-1: 40 of 100 teams and 790 of 2000 connections moved, 1210 to go (about 6.0 s), 780 back"
        );
        assert_eq!(
            report(&view),
            "drain of node-1 (drain-7-1): running for 4.1 s (estimate 10 s)\n  \
             since 2026-11-26T01:22:54Z\n  \
             teams        40 of 100 moved, 60 to go, 3 on their way\n  \
             connections  790 of 2000 moved, 1210 to go, 780 back elsewhere\n  \
             messages     0 copies not delivered, to members that were on the other node or away\n  \
             gap          p50 0 ms, p99 31 ms, max 80 ms (of 400 connections told apart)\n"
        );
    }

    #[test]
    fn a_report_marks_what_it_cannot_know() {
        let view = OperationView {
            teams_moved: 100,
            teams_to_go: 0,
            teams_leaving: 0,
            connections_known: false,
            connections_moved: 2_000,
            connections_to_go: 0,
            connections_back: 1_990,
            connections_not_back: 10,
            connections_matched: 0,
            gap_p50_ms: None,
            gap_p99_ms: None,
            gap_max_ms: None,
            deliveries_missed: None,
            detail: "no team is left".to_owned(),
            ended_unix_ms: Some(1_795_656_178_100),
            ..operation(OperationKind::Drain, OperationState::Done)
        };
        assert_eq!(
            report(&view),
            "drain of node-1 (drain-7-1): done in 4.1 s (estimate 10 s)\n  \
             from 2026-11-26T01:22:54Z to 2026-11-26T01:22:58Z\n  no team is left\n  \
             teams        100 of 100 moved\n  \
             connections  2000 of ? moved, 1990 back elsewhere, 10 not seen again\n  \
             gap          unknown: none of them said which connection it had before\n"
        );
    }

    #[test]
    fn gaps_that_may_be_off_say_by_how_much() {
        let view = OperationView {
            gap_error_ms: Some(100),
            ..operation(OperationKind::Drain, OperationState::Running)
        };
        assert!(report(&view).contains("max 80 ms, each +-100 ms (of 400"));
    }

    #[test]
    fn a_drain_that_left_teams_behind_names_them_and_what_to_do() {
        let view = OperationView {
            teams_kept: 12,
            teams_kept_named: vec!["hp".parse().unwrap(), "hq".parse().unwrap()],
            ..operation(OperationKind::Drain, OperationState::Done)
        };
        let told = format!("{:?}", kept(&view));
        assert!(
            told.contains("12 teams are pinned hard") && told.contains("hp, hq and 10 more"),
            "{told}"
        );
        assert!(told.contains("usher undrain node-1"), "{told}");
    }

    #[test]
    fn moments_are_told_in_utc() {
        for (unix_ms, text) in [
            (0, "1970-01-01T00:00:00Z"),
            (951_827_696_000, "2000-02-29T12:34:56Z"),
            (4_107_542_399_999, "2100-02-28T23:59:59Z"),
        ] {
            assert_eq!(time_of_day(unix_ms), text);
        }
    }

    #[test]
    fn operations_stand_in_a_table() {
        let view = OperationsView {
            operations: vec![operation(OperationKind::Shed, OperationState::Cancelled)],
        };
        assert_eq!(
            render_list(&view),
            "OPERATION  KIND  NODE    STATE      BEGAN                 TEAMS MOVED  CONNECTIONS MOVED  BACK   TOOK\n\
             drain-7-1  shed  node-1  cancelled  2026-11-26T01:22:54Z       40/100           790/2000   780  4.1 s\n"
        );
    }
}
