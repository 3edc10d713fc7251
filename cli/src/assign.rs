//! `usher assign` and `usher forget`: teams made and unmade by an operator.

use clap::Args;
use std::collections::BTreeMap;
use std::process::ExitCode;
use usher_shared::id::{Label, NodeId, TeamId};
use usher_shared::quantity::Weight;
use usher_shared::rest::{Pin, PinStrength, TeamPatch, TeamView};

use crate::api::{Api, ApiError, AskArgs, json};
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
    what is named and keeps the rest; a node that still fits keeps the team. What no node can\n\
    meet is refused, and then nothing changes.\n\n\
    Examples:\n  usher assign T1\n  usher assign BIG --weight 20 --region eu\n  \
    usher assign T1 --pin node-2 --pin-for 1h\n  usher assign BIG --no-region"
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
    /// Nodes of any region again
    #[arg(long, conflicts_with = "region")]
    no_region: bool,
    /// Only nodes with this label; may be given several times
    #[arg(long = "label", value_parser = label, value_name = "KEY=VALUE")]
    labels: Vec<(Label, Label)>,
    /// Nodes with any labels again
    #[arg(long, conflicts_with = "labels")]
    no_labels: bool,
    /// Wish for this node
    #[arg(long, value_name = "NODE")]
    pin: Option<NodeId>,
    /// Wish for no node any more
    #[arg(long, conflicts_with = "pin")]
    no_pin: bool,
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
    let patch = patch(args);
    let team: TeamView = match api.patch(&path, &patch).await {
        Ok(team) => team,
        Err(refused @ ApiError::Problem(_)) => {
            output::note("nothing has changed");
            return Err(refused.into());
        }
        Err(error) => return Err(error.into()),
    };
    if as_json {
        output::line(&json(&team)?);
    } else {
        output::text(&render(&team, &patch));
    }
    Ok(ExitCode::SUCCESS)
}

fn patch(args: AssignArgs) -> TeamPatch {
    let strength = if args.hard {
        PinStrength::Hard
    } else {
        PinStrength::Soft
    };
    let pin = args.pin.map(|node| Pin {
        node,
        seconds: args.pin_for.as_millis().div_ceil(1_000),
        strength,
    });
    let labels = args.labels.into_iter().map(|(key, value)| (key, Some(value)));
    let labels: BTreeMap<Label, Option<Label>> = labels.collect();
    TeamPatch {
        weight: args.weight.map(Some),
        region: said(args.region, args.no_region),
        labels: said(Some(labels).filter(|labels| !labels.is_empty()), args.no_labels),
        pin: said(pin, args.no_pin),
    }
}

/// A wish, the wish for nothing, or not a word.
fn said<T>(wish: Option<T>, none: bool) -> Option<Option<T>> {
    match wish {
        None => none.then_some(None),
        wish => Some(wish),
    }
}

/// What the team asks for that was not named this time.
fn kept(team: &TeamView, patch: &TeamPatch) -> Option<String> {
    let mut kept = Vec::new();
    if patch.weight.is_none() && team.weight != Weight::TEAM {
        kept.push("weight");
    }
    if patch.region.is_none() && team.region.is_some() {
        kept.push("region");
    }
    let named = |key| matches!(&patch.labels, Some(Some(labels)) if labels.contains_key(key));
    if team.labels.keys().any(|key| !named(key)) {
        kept.push("labels");
    }
    if patch.pin.is_none() && team.pin.is_some() {
        kept.push("pin");
    }
    (!kept.is_empty()).then(|| kept.join(", "))
}

fn render(team: &TeamView, patch: &TeamPatch) -> String {
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
    let mut wishes = Vec::new();
    if team.weight != Weight::TEAM {
        wishes.push(format!("weight {}", team.weight.get()));
    }
    let held = held_to(team);
    if held != crate::table::NONE {
        wishes.push(held);
    }
    let wishes = match wishes.join(", ") {
        none if none.is_empty() => String::new(),
        wishes => match kept(team, patch) {
            None => format!("\n  wishes: {wishes}"),
            Some(kept) => format!("\n  wishes: {wishes} (kept: {kept})"),
        },
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
    use clap::FromArgMatches as _;

    #[test]
    fn an_assignment_says_where() {
        let placed = TeamView {
            url: Some("ws://127.0.0.1:7410/teams/T1".to_owned()),
            ..team("T1", Some("node-1"), 7)
        };
        let nothing = TeamPatch::default();
        assert_eq!(
            render(&placed, &nothing),
            "T1 is on node-1 (epoch 7)\n  ws://127.0.0.1:7410/teams/T1\n"
        );
        let region: Label = "eu".parse().unwrap();
        let held = TeamView {
            region: Some(region.clone()),
            weight: Weight::new(20).unwrap(),
            ..team("T1", Some("node-1"), 7)
        };
        let eu = TeamPatch {
            region: Some(Some(region)),
            ..TeamPatch::default()
        };
        assert_eq!(
            render(&held, &eu),
            "T1 is on node-1 (epoch 7)\n  wishes: weight 20, region eu (kept: weight)\n"
        );
        assert_eq!(
            render(&team("T1", None, 0), &nothing),
            "T1 waits: no node may take it; `usher why T1` says why\n"
        );
    }

    #[test]
    fn only_what_is_named_is_sent() {
        let asked = |words: &[&str]| {
            let words = ["assign", "T1"].iter().chain(words);
            let command = AssignArgs::augment_args(clap::Command::new("assign"));
            let matches = command.try_get_matches_from(words).unwrap();
            serde_json::to_string(&patch(AssignArgs::from_arg_matches(&matches).unwrap())).unwrap()
        };
        assert_eq!(asked(&[]), "{}");
        assert_eq!(asked(&["--weight", "20"]), r#"{"weight":20}"#);
        assert_eq!(
            asked(&["--no-region", "--no-labels", "--no-pin"]),
            r#"{"region":null,"labels":null,"pin":null}"#
        );
        assert_eq!(asked(&["--label", "disk=ssd"]), r#"{"labels":{"disk":"ssd"}}"#);
    }

    #[test]
    fn weights_have_bounds() {
        assert!(weight("0").is_err() && weight("10001").is_err() && weight("x").is_err());
        assert_eq!(weight("20").map(Weight::get), Ok(20));
    }
}
