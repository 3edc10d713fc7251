//! `usher status`: the broker at a glance.

use clap::Args;
use std::collections::BTreeMap;
use std::process::ExitCode;
use usher_shared::rest::{BrokerState, StatusView};

use crate::api::{Api, AskArgs, json};
use crate::duration::for_people;
use crate::failure::Failure;
use crate::output;
use crate::table::ppm;

/// The broker at a glance: its state, nodes, teams, connections
#[derive(Args)]
#[command(after_help = "Examples:\n  usher status\n  usher status --json | jq .imbalance")]
pub(crate) struct StatusArgs {
    #[command(flatten)]
    ask: AskArgs,
}

pub(crate) async fn run(args: StatusArgs) -> Result<ExitCode, Failure> {
    let status: StatusView = Api::new(&args.ask.admin)?.get("/v1/status").await?;
    if args.ask.json {
        output::line(&json(&status)?);
    } else {
        output::text(&render(&status));
    }
    Ok(ExitCode::SUCCESS)
}

fn render(status: &StatusView) -> String {
    let state = match status.state {
        BrokerState::Ready => "ready".to_owned(),
        BrokerState::Grace => {
            "in grace: lately started, owners change only on proof until the nodes have reported".to_owned()
        }
        BrokerState::SelfPreservation => {
            let how = status.self_preservation.map_or(String::new(), |view| {
                format!(
                    " ({} of {} that hold teams; ends by itself in {})",
                    view.silent,
                    view.nodes,
                    for_people(view.ends_in_ms)
                )
            });
            format!(
                "in self-preservation: too many nodes went silent at once, nothing moves on silence alone{how}"
            )
        }
    };
    let nodes: Vec<String> = status
        .nodes
        .iter()
        .filter(|(_, number)| **number > 0)
        .map(|(state, number)| format!("{number} {}", state.as_str()))
        .collect();
    let nodes = if nodes.is_empty() {
        "none".to_owned()
    } else {
        nodes.join(", ")
    };
    let refused = refused(&status.links_refused);
    let unplaced = match status.teams_unplaced {
        0 => String::new(),
        number => format!(", {number} of them without a node that may take them"),
    };
    format!(
        "broker       {state}\n\
         nodes        {nodes}\n\
         teams        {}{unplaced}\n\
         connections  {}\n\
         imbalance    teams {}, connections {}, CPU {} (busiest node over the mean; 1.00 is even)\n\
         operations   {} running\n\
         {refused}up           {}, version {}, term {}, cluster {}\n",
        status.teams,
        status.connections,
        ppm(status.imbalance.teams_ppm),
        ppm(status.imbalance.connections_ppm),
        ppm(status.imbalance.cpu_ppm),
        status.operations_running,
        for_people(status.uptime_ms),
        status.version,
        status.term,
        status.cluster,
    )
}

/// Links that were refused lately, if any: who sees silent nodes looks here.
fn refused(links: &BTreeMap<String, u64>) -> String {
    if links.is_empty() {
        return String::new();
    }
    let reasons = links.iter().map(|(code, count)| match code.as_str() {
        "unauthorized" => format!("{count} for their token ({code}); give nodes and broker the same"),
        "cluster" => format!("{count} of another cluster ({code}); is the broker's --data the right folder?"),
        _ => format!("{count} {code}"),
    });
    let reasons: Vec<String> = reasons.collect();
    format!(
        "refused      {} links lately: {}\n",
        links.values().sum::<u64>(),
        reasons.join(", ")
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use usher_shared::quantity::Term;
    use usher_shared::rest::{Imbalance, NodeState};

    #[test]
    fn a_status_reads_at_a_glance() {
        let status = StatusView {
            cluster: usher_shared::id::ClusterId::from_bits(10),
            broker: usher_shared::id::BrokerId::from_bits(11),
            term: Term::new(3).unwrap(),
            version: "0.1.0".to_owned(),
            state: BrokerState::Ready,
            uptime_ms: 61_000,
            nodes: BTreeMap::from([(NodeState::Ready, 2), (NodeState::Dead, 1)]),
            teams: 300,
            teams_unplaced: 2,
            connections: 600,
            imbalance_ppm: 1_500_000,
            imbalance: Imbalance {
                teams_ppm: 1_020_000,
                connections_ppm: 1_500_000,
                cpu_ppm: 1_000_000,
            },
            operations_running: 1,
            links_refused: BTreeMap::new(),
            self_preservation: None,
        };
        assert_eq!(
            refused(&BTreeMap::from([("unauthorized".to_owned(), 12)])),
            "refused      12 links lately: 12 for their token (unauthorized); give nodes and broker the same\n"
        );
        assert_eq!(
            render(&status),
            "broker       ready\n\
             nodes        2 ready, 1 dead\n\
             teams        300, 2 of them without a node that may take them\n\
             connections  600\n\
             imbalance    teams 1.02, connections 1.50, CPU 1.00 (busiest node over the mean; 1.00 is even)\n\
             operations   1 running\n\
             up           61 s, version 0.1.0, term 3, cluster 0000000000000000000000000000000a\n"
        );
    }
}
