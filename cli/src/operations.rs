//! `usher operations` and `usher operation ID`, and how every verb shows and follows an operation.

use clap::Args;
use std::io::IsTerminal as _;
use std::process::ExitCode;
use std::time::Duration;
use usher_shared::id::OperationId;
use usher_shared::rest::{OperationState, OperationView, OperationsView};

use crate::api::{Api, ApiError, AskArgs, json};
use crate::duration::for_people;
use crate::failure::Failure;
use crate::output;
use crate::table::{self, Column, count};

/// How often a followed operation is looked at: quick enough for a moving line.
const LOOK: Duration = Duration::from_millis(250);
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
    /// Its id, as `usher operations` lists it
    operation: OperationId,
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
    let view: OperationView = api.get(&format!("/v1/operations/{}", args.operation)).await?;
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
async fn follow(api: &Api, mut view: OperationView, as_json: bool) -> Result<ExitCode, Failure> {
    let moving = std::io::stderr().is_terminal();
    let path = format!("/v1/operations/{}", view.operation);
    output::note(&plan(&view));
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
    if moving {
        output::moving_note("");
    }
    if as_json {
        output::line(&json(&view)?);
    } else {
        output::text(&report(&view));
    }
    Ok(match view.state {
        OperationState::Done => ExitCode::SUCCESS,
        OperationState::Running | OperationState::Cancelled => ExitCode::FAILURE,
    })
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
    const COLUMNS: [Column; 8] = [
        Column::Text("OPERATION"),
        Column::Text("KIND"),
        Column::Text("NODE"),
        Column::Text("STATE"),
        Column::Number("TEAMS"),
        Column::Number("LEFT"),
        Column::Number("ARRIVED"),
        Column::Number("TOOK"),
    ];
    let rows = view.operations.iter().map(|operation| {
        vec![
            operation.operation.to_string(),
            operation.kind.as_str().to_owned(),
            operation.node.to_string(),
            state(operation.state).to_owned(),
            format!("{}/{}", operation.teams_moved, operation.teams),
            format!("{}/{}", operation.connections_left, operation.connections),
            operation.connections_arrived.to_string(),
            for_people(operation.elapsed_ms),
        ]
    });
    table::render(&COLUMNS, rows)
}

const fn state(state: OperationState) -> &'static str {
    match state {
        OperationState::Running => "running",
        OperationState::Done => "done",
        OperationState::Cancelled => "cancelled",
    }
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
    format!(
        "{} of {}: {}/{} teams have a new owner, {}/{} connections left, {} arrived{detail}",
        view.kind.as_str(),
        view.node,
        view.teams_moved,
        view.teams,
        view.connections_left,
        view.connections,
        view.connections_arrived,
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
    if !view.detail.is_empty() {
        text.push_str(&format!("  {}\n", view.detail));
    }
    text.push_str(&format!(
        "  teams        {} of {} have a new owner",
        view.teams_moved, view.teams
    ));
    if view.teams_waiting > 0 {
        text.push_str(&format!(", {} wait", view.teams_waiting));
    }
    if view.teams_leaving > 0 {
        text.push_str(&format!(", {} still leaving", view.teams_leaving));
    }
    text.push_str(&format!(
        "\n  connections  {} at the start, {} left, {} arrived elsewhere",
        view.connections, view.connections_left, view.connections_arrived
    ));
    if view.state == OperationState::Done {
        let missing = view.connections.saturating_sub(view.connections_arrived);
        text.push_str(&format!(", {missing} not seen again"));
    }
    text.push('\n');
    text.push_str(&gaps(view));
    text
}

fn gaps(view: &OperationView) -> String {
    match (view.gap_p50_ms, view.gap_p99_ms, view.gap_max_ms) {
        (Some(half), Some(most), Some(longest)) => format!(
            "  gap          p50 {half} ms, p99 {most} ms, max {longest} ms (of {} told apart)\n",
            count(u64::from(view.connections_matched), "connection")
        ),
        _ if view.connections_arrived > 0 => {
            "  gap          unknown: these clients cannot be told apart (usher.v1 clients can)\n".to_owned()
        }
        _ => String::new(),
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use usher_shared::rest::OperationKind;

    pub(crate) fn operation(kind: OperationKind, state: OperationState) -> OperationView {
        OperationView {
            operation: "drain-7-1".parse().unwrap(),
            kind,
            node: "node-1".parse().unwrap(),
            state,
            detail: String::new(),
            teams: 100,
            teams_moved: 40,
            teams_waiting: 60,
            teams_leaving: 3,
            connections: 2_000,
            connections_left: 790,
            connections_arrived: 780,
            connections_matched: 400,
            gap_p50_ms: Some(0),
            gap_p99_ms: Some(31),
            gap_max_ms: Some(80),
            rate_per_s: 200,
            estimate_ms: 10_000,
            elapsed_ms: 4_100,
        }
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
            "drain of node-1: 40/100 teams have a new owner, 790/2000 connections left, 780 arrived"
        );
        assert_eq!(
            report(&view),
            "drain of node-1 (drain-7-1): running for 4.1 s (estimate 10 s)\n  \
             teams        40 of 100 have a new owner, 60 wait, 3 still leaving\n  \
             connections  2000 at the start, 790 left, 780 arrived elsewhere\n  \
             gap          p50 0 ms, p99 31 ms, max 80 ms (of 400 connections told apart)\n"
        );
    }

    #[test]
    fn a_report_marks_what_it_cannot_know() {
        let view = OperationView {
            teams_moved: 100,
            teams_waiting: 0,
            teams_leaving: 0,
            connections_left: 2_000,
            connections_arrived: 1_990,
            connections_matched: 0,
            gap_p50_ms: None,
            gap_p99_ms: None,
            gap_max_ms: None,
            detail: "no team is left".to_owned(),
            ..operation(OperationKind::Drain, OperationState::Done)
        };
        assert_eq!(
            report(&view),
            "drain of node-1 (drain-7-1): done in 4.1 s (estimate 10 s)\n  no team is left\n  \
             teams        100 of 100 have a new owner\n  \
             connections  2000 at the start, 2000 left, 1990 arrived elsewhere, 10 not seen again\n  \
             gap          unknown: these clients cannot be told apart (usher.v1 clients can)\n"
        );
    }

    #[test]
    fn operations_stand_in_a_table() {
        let view = OperationsView {
            operations: vec![operation(OperationKind::Shed, OperationState::Cancelled)],
        };
        assert_eq!(
            render_list(&view),
            "OPERATION  KIND  NODE    STATE       TEAMS      LEFT  ARRIVED   TOOK\n\
             drain-7-1  shed  node-1  cancelled  40/100  790/2000      780  4.1 s\n"
        );
    }
}
