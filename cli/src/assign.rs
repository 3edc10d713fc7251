//! `usher assign` and `usher forget`: teams made and unmade by an operator.

use clap::Args;
use std::process::ExitCode;
use usher_shared::id::{Label, NodeId, TeamId};
use usher_shared::quantity::Weight;
use usher_shared::rest::{Pin, PinStrength, TeamPut, TeamView};

use crate::api::{Api, AskArgs, json};
use crate::duration::HumanDuration;
use crate::failure::Failure;
use crate::output;
use crate::settings::label;
use crate::teams::held_to;

/// Make a team, or change what it asks for, and see where it is
#[derive(Args)]
#[command(
    after_help = "A team does not need this: its first client makes it. It is for teams that weigh more,\n\
    belong in a region, or should wait on a node of your choice. Running it again changes\n\
    what the team asks for; a node that still fits keeps it.\n\n\
    Examples:\n  usher assign T1\n  usher assign BIG --weight 20 --region eu\n  \
    usher assign T1 --pin node-2 --pin-for 1h"
)]
pub(crate) struct AssignArgs {
    /// The team
    team: TeamId,
    /// What it weighs, 1 to 10000; most teams weigh 1
    #[arg(long, value_parser = weight, value_name = "WEIGHT")]
    weight: Option<Weight>,
    /// Only nodes of this region
    #[arg(long)]
    region: Option<Label>,
    /// Only nodes with this label; may be given several times
    #[arg(long = "label", value_parser = label, value_name = "KEY=VALUE")]
    labels: Vec<(Label, Label)>,
    /// Wish for this node
    #[arg(long, value_name = "NODE")]
    pin: Option<NodeId>,
    /// How long the wish holds
    #[arg(long, default_value = "1h", requires = "pin", value_name = "DURATION")]
    pin_for: HumanDuration,
    /// There or nowhere: while the node is away, clients get a 503
    #[arg(long, requires = "pin")]
    hard: bool,
    #[command(flatten)]
    ask: AskArgs,
}

/// Forget a team; its connections are sent back to the broker
#[derive(Args)]
#[command(after_help = "Example:\n  usher forget T1")]
pub(crate) struct ForgetArgs {
    /// The team
    team: TeamId,
    #[command(flatten)]
    ask: AskArgs,
}

fn weight(text: &str) -> Result<Weight, String> {
    text.parse()
        .ok()
        .and_then(Weight::new)
        .ok_or_else(|| format!("a weight is a whole number from 1 to {}", Weight::MAX))
}

pub(crate) async fn assign(args: AssignArgs) -> Result<ExitCode, Failure> {
    let api = Api::new(&args.ask.admin)?;
    let path = format!("/v1/teams/{}", args.team);
    let as_json = args.ask.json;
    let team: TeamView = api.put(&path, &wish(args)).await?;
    if as_json {
        output::line(&json(&team)?);
    } else {
        output::text(&render(&team));
    }
    Ok(ExitCode::SUCCESS)
}

fn wish(args: AssignArgs) -> TeamPut {
    let strength = if args.hard {
        PinStrength::Hard
    } else {
        PinStrength::Soft
    };
    TeamPut {
        weight: args.weight,
        region: args.region,
        labels: args.labels.into_iter().collect(),
        pin: args.pin.map(|node| Pin {
            node,
            seconds: args.pin_for.as_millis().div_ceil(1_000),
            strength,
        }),
    }
}

fn render(team: &TeamView) -> String {
    let place = match &team.node {
        Some(node) => format!("{} is on {node} (epoch {})", team.team, team.epoch),
        None => format!(
            "{} waits: no node may take it; `usher why {0}` says why",
            team.team
        ),
    };
    let url = team
        .url
        .as_deref()
        .map_or(String::new(), |url| format!("\n  {url}"));
    let wishes = match held_to(team) {
        wishes if wishes == crate::table::NONE => String::new(),
        wishes => format!("\n  wishes: {wishes}"),
    };
    format!("{place}{url}{wishes}\n")
}

pub(crate) async fn forget(args: ForgetArgs) -> Result<ExitCode, Failure> {
    let api = Api::new(&args.ask.admin)?;
    api.delete(&format!("/v1/teams/{}", args.team)).await?;
    if args.ask.json {
        output::line(&json(
            &serde_json::json!({ "team": args.team, "forgotten": true }),
        )?);
    } else {
        output::line(&format!("{} is forgotten", args.team));
    }
    Ok(ExitCode::SUCCESS)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::teams::tests::team;

    #[test]
    fn an_assignment_says_where() {
        let placed = TeamView {
            url: Some("ws://127.0.0.1:7410/teams/T1".to_owned()),
            ..team("T1", Some("node-1"), 7)
        };
        assert_eq!(
            render(&placed),
            "T1 is on node-1 (epoch 7)\n  ws://127.0.0.1:7410/teams/T1\n"
        );
        let pinned = TeamView {
            region: Some("eu".parse().unwrap()),
            ..team("T1", Some("node-1"), 7)
        };
        assert_eq!(
            render(&pinned),
            "T1 is on node-1 (epoch 7)\n  wishes: region eu\n"
        );
        assert_eq!(
            render(&team("T1", None, 0)),
            "T1 waits: no node may take it; `usher why T1` says why\n"
        );
    }

    #[test]
    fn weights_have_bounds() {
        assert!(weight("0").is_err() && weight("10001").is_err() && weight("x").is_err());
        assert_eq!(weight("20").map(Weight::get), Ok(20));
    }
}
