//! `usher why`: the story of a team's place.

use clap::Args;
use std::fmt::Write as _;
use std::process::ExitCode;
use usher_shared::id::TeamId;
use usher_shared::rest::{Cause, DecisionView, WhyView};

use crate::api::{Api, AskArgs, json};
use crate::duration::for_people;
use crate::failure::Failure;
use crate::nodes::words;
use crate::output;
use crate::table::{self, Column, NONE, cores, count, ppm};

/// Why a team is where it is: the scores, what kept other nodes out, and where it was before
#[derive(Args)]
#[command(
    after_help = "BUSY = TEAMS' PART + CPU'S PART, and the lowest wins. TEAMS' PART is the node's team load\n\
    beside the pool's mean; CPU'S PART is its moving average and what is on its way, over its cores.\n\n\
    Example:\n  usher why T1"
)]
pub(crate) struct WhyArgs {
    /// The team
    team: TeamId,
    #[command(flatten)]
    ask: AskArgs,
}

pub(crate) async fn run(args: WhyArgs) -> Result<ExitCode, Failure> {
    let path = format!("/v1/teams/{}/why", args.team);
    let why: WhyView = Api::new(&args.ask.admin)?.get(&path).await?;
    if args.ask.json {
        output::line(&json(&why)?);
    } else {
        output::text(&render(&why));
    }
    Ok(ExitCode::SUCCESS)
}

fn render(why: &WhyView) -> String {
    let mut text = match (&why.node, why.decisions.first()) {
        (Some(node), Some(last)) => format!(
            "{} is on {node} (epoch {}) since {} ago: {}.\n",
            why.team,
            why.epoch,
            for_people(last.ago_ms),
            cause(last)
        ),
        (Some(node), None) => format!(
            "{} is on {node} (epoch {}), and was before the broker started; reasons are not kept over a restart.\n",
            why.team, why.epoch
        ),
        (None, Some(last)) => format!(
            "{} has no node: none could take it {} ago ({}).\n",
            why.team,
            for_people(last.ago_ms),
            cause(last)
        ),
        (None, None) => format!("{} has no node, and nothing was decided about it.\n", why.team),
    };
    let mut decisions = why.decisions.iter();
    if let Some(last) = decisions.next() {
        text.push_str(&scores(last));
        text.push_str(&kept_out(last));
    }
    if decisions.len() > 0 {
        text.push_str("\nBefore that:\n");
        for decision in decisions {
            let _ = writeln!(text, "  {} ago  {}", for_people(decision.ago_ms), step(decision));
        }
    }
    text
}

/// What a decision was made for, in the words of a story.
fn cause(decision: &DecisionView) -> String {
    let from = |what: &str| match &decision.from {
        Some(from) => format!("{from} {what}"),
        None => format!("its node {what}"),
    };
    match decision.cause {
        Cause::Connect => "its first client connected".to_owned(),
        Cause::Put => "an operator assigned it".to_owned(),
        Cause::Failover => from("died"),
        Cause::Drain => from("is being emptied"),
        Cause::Shed => from("gives teams away"),
        Cause::Knock => from("was silent or out of reach and a client asked again"),
        Cause::Full => from("was full of connections"),
        Cause::Adopted => "the node itself reported it".to_owned(),
    }
}

fn step(decision: &DecisionView) -> String {
    let node = decision
        .node
        .as_ref()
        .map_or("nowhere".to_owned(), |node| format!("to {node}"));
    format!("{node} (epoch {}): {}", decision.epoch, cause(decision))
}

fn scores(decision: &DecisionView) -> String {
    const COLUMNS: [Column; 9] = [
        Column::Text("  "),
        Column::Text("NODE"),
        Column::Number("BUSY"),
        Column::Number("TEAMS' PART"),
        Column::Number("CONNECTIONS' PART"),
        Column::Number("CPU'S PART"),
        Column::Number("TEAMS"),
        Column::Number("CPU"),
        Column::Number("CPU ON ITS WAY"),
    ];
    if decision.best.is_empty() {
        return String::new();
    }
    let strained = decision.best.iter().any(|score| score.strain_ppm > 0);
    let rows = decision.best.iter().map(|score| {
        let chosen = if decision.node.as_ref() == Some(&score.node) {
            "->"
        } else {
            ""
        };
        let mut row = vec![
            chosen.to_owned(),
            score.node.to_string(),
            ppm(score.busy_ppm),
            ppm(score.teams_ppm),
            ppm(score.connections_ppm),
            ppm(score.cpu_ppm),
            score.teams.to_string(),
            cores(score.cpu_average),
            cores(score.cpu_pending),
        ];
        if strained {
            row.push(ppm(score.strain_ppm));
            row.push(score.last_resort.map_or(NONE, words).to_owned());
        }
        row
    });
    let mut columns = COLUMNS.to_vec();
    if strained {
        columns.push(Column::Number("STRAIN'S PART"));
        columns.push(Column::Text("STRAINED BY"));
    }
    format!("\n{}", table::render(&columns, rows))
}

fn kept_out(decision: &DecisionView) -> String {
    let gated: u32 = decision.gated.values().sum();
    let mut text = format!("{} looked at", count(u64::from(decision.nodes), "node"));
    if gated == 0 {
        text.push_str(", none kept out.\n");
        return format!("\n{text}");
    }
    let by_gate: Vec<String> = decision
        .gated
        .iter()
        .map(|(gate, number)| format!("{number} {}", words(*gate)))
        .collect();
    let _ = writeln!(text, ", {gated} kept out: {}.", by_gate.join("; "));
    for (node, gate) in &decision.gated_nodes {
        let _ = writeln!(text, "  {node}: {}", words(*gate));
    }
    let unnamed = (gated as usize).saturating_sub(decision.gated_nodes.len());
    if unnamed > 0 {
        let _ = writeln!(text, "  and {unnamed} more");
    }
    format!("\n{text}")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::nodes::tests::score;
    use std::collections::BTreeMap;
    use usher_shared::quantity::Epoch;
    use usher_shared::rest::Gate;

    fn decision(cause: Cause, node: Option<&str>, from: Option<&str>, ago_ms: u64) -> DecisionView {
        DecisionView {
            epoch: Epoch::new(17).unwrap(),
            cause,
            node: node.map(|node| node.parse().unwrap()),
            from: from.map(|node| node.parse().unwrap()),
            ago_ms,
            best: vec![
                score("node-2", 200_000, 110_000, 12),
                score("node-3", 230_000, 490_000, 13),
            ],
            gated: BTreeMap::from([(Gate::Draining, 1), (Gate::Silent, 2)]),
            gated_nodes: BTreeMap::from([
                ("node-1".parse().unwrap(), Gate::Draining),
                ("node-4".parse().unwrap(), Gate::Silent),
            ]),
            nodes: 5,
        }
    }

    #[test]
    fn why_tells_the_story() {
        let why = WhyView {
            team: "T1".parse().unwrap(),
            node: Some("node-2".parse().unwrap()),
            epoch: Epoch::new(17).unwrap(),
            decisions: vec![
                decision(Cause::Drain, Some("node-2"), Some("node-1"), 3_200),
                decision(Cause::Connect, Some("node-1"), None, 180_000),
            ],
        };
        assert_eq!(
            render(&why),
            "T1 is on node-2 (epoch 17) since 3.2 s ago: node-1 is being emptied.\n\
             \n    NODE    BUSY  TEAMS' PART  CONNECTIONS' PART  CPU'S PART  TEAMS   CPU  CPU ON ITS WAY\n\
             ->  node-2  0.31         0.20               0.00        0.11     12  0.12            0.01\n    \
             node-3  0.72         0.23               0.00        0.49     13  0.12            0.01\n\
             \n5 nodes looked at, 3 kept out: 1 draining; 2 silent.\n  node-1: draining\n  node-4: silent\n  and 1 more\n\
             \nBefore that:\n  3 min ago  to node-1 (epoch 17): its first client connected\n"
        );
    }

    #[test]
    fn a_team_nobody_can_take_says_so() {
        let why = WhyView {
            team: "T1".parse().unwrap(),
            node: None,
            epoch: Epoch::default(),
            decisions: vec![DecisionView {
                best: Vec::new(),
                gated: BTreeMap::from([(Gate::Cordoned, 1)]),
                gated_nodes: BTreeMap::from([("node-1".parse().unwrap(), Gate::Cordoned)]),
                nodes: 1,
                ..decision(Cause::Connect, None, None, 400)
            }],
        };
        assert_eq!(
            render(&why),
            "T1 has no node: none could take it 400 ms ago (its first client connected).\n\
             \n1 node looked at, 1 kept out: 1 cordoned.\n  node-1: cordoned\n"
        );
    }
}
