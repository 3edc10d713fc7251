//! `usher teams`: where each team is.

use clap::Args;
use std::process::ExitCode;
use usher_shared::id::NodeId;
use usher_shared::rest::{NodeView, PinStrength, TeamKind, TeamView, TeamsView};

use crate::api::{Api, ApiError, AskArgs, json};
use crate::failure::Failure;
use crate::output;
use crate::table::{self, Column, NONE, count};

/// What one request asks for: large enough to be quick, small enough to stay one small answer.
const PAGE: usize = 500;

/// The teams and their nodes, in order of their ids
#[derive(Args)]
#[command(
    after_help = "A team marked `auto` came with a client's first connect and is forgotten 10 minutes after\n\
    its last connection; one marked `put` stays until `usher forget`.\n\n\
    Examples:\n  usher teams --node node-1\n  usher teams --limit 5000 --json | jq -r '.teams[].team'"
)]
pub(crate) struct TeamsArgs {
    /// Only the teams of this node
    #[arg(long, value_name = "NODE")]
    node: Option<NodeId>,
    /// The most teams to list
    #[arg(long, default_value_t = 1_000, value_name = "NUMBER", value_parser = clap::value_parser!(u32).range(1..))]
    limit: u32,
    #[command(flatten)]
    ask: AskArgs,
}

pub(crate) async fn run(args: TeamsArgs) -> Result<ExitCode, Failure> {
    let api = Api::new(&args.ask.admin)?;
    let view = collect(&api, args.node.as_ref(), args.limit as usize).await?;
    if args.ask.json {
        output::line(&json(&view)?);
    } else if let (true, Some(node)) = (view.teams.is_empty(), &args.node) {
        // A name that nobody has owns nothing either, and most likely it was misspelt.
        let known: NodeView = api.get(&format!("/v1/nodes/{node}")).await?;
        output::line(&format!("no teams on {}", known.node));
    } else if view.teams.is_empty() {
        output::line("no teams; a client's connect makes one, and so does `usher assign TEAM`");
    } else {
        output::text(&render(&view));
    }
    Ok(ExitCode::SUCCESS)
}

/// Follows the pages up to `limit` teams.
async fn collect(api: &Api, node: Option<&NodeId>, limit: usize) -> Result<TeamsView, ApiError> {
    let mut all = TeamsView {
        teams: Vec::new(),
        total: 0,
        next: None,
    };
    loop {
        let wanted = PAGE.min(limit - all.teams.len());
        let mut path = format!("/v1/teams?limit={wanted}");
        if let Some(node) = node {
            path.push_str(&format!("&node={node}"));
        }
        if let Some(after) = &all.next {
            path.push_str(&format!("&after={after}"));
        }
        let page: TeamsView = api.get(&path).await?;
        let end = page.teams.is_empty() || page.next.is_none();
        all.total = page.total;
        all.next = page.next;
        all.teams.extend(page.teams);
        if end || all.teams.len() >= limit {
            return Ok(all);
        }
    }
}

fn render(view: &TeamsView) -> String {
    const COLUMNS: [Column; 6] = [
        Column::Text("TEAM"),
        Column::Text("NODE"),
        Column::Number("EPOCH"),
        Column::Number("WEIGHT"),
        Column::Text("KIND"),
        Column::Text("HELD TO"),
    ];
    let rows = view.teams.iter().map(|team| {
        vec![
            team.team.to_string(),
            whereabouts(team),
            team.epoch.to_string(),
            team.weight.get().to_string(),
            kind(team.kind).to_owned(),
            held_to(team),
        ]
    });
    let mut text = table::render(&COLUMNS, rows);
    if view.next.is_some() {
        text.push_str(&format!(
            "{} shown; more with --limit\n",
            count(view.teams.len() as u64, "team")
        ));
    }
    text
}

const fn kind(kind: TeamKind) -> &'static str {
    match kind {
        TeamKind::Auto => "auto",
        TeamKind::Put => "put",
    }
}

fn whereabouts(team: &TeamView) -> String {
    let node = team.node.as_ref().map_or("none can take it", NodeId::as_str);
    match &team.moving_from {
        Some(from) => format!("{node} (leaving {from})"),
        None => node.to_owned(),
    }
}

/// The wishes that narrow a team's choice of nodes.
pub(crate) fn held_to(team: &TeamView) -> String {
    let mut wishes = Vec::new();
    if let Some(region) = &team.region {
        wishes.push(format!("region {region}"));
    }
    wishes.extend(team.labels.iter().map(|(key, value)| format!("{key}={value}")));
    if let Some(pin) = &team.pin {
        let strength = match pin.strength {
            PinStrength::Soft => "pinned softly",
            PinStrength::Hard => "pinned",
        };
        let left = crate::duration::for_people(pin.seconds.saturating_mul(1_000));
        wishes.push(format!("{strength} to {} for {left}", pin.node));
    }
    if wishes.is_empty() {
        NONE.to_owned()
    } else {
        wishes.join(", ")
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use std::collections::BTreeMap;
    use usher_shared::quantity::{Epoch, Weight};
    use usher_shared::rest::Pin;

    pub(crate) fn team(name: &str, node: Option<&str>, epoch: u64) -> TeamView {
        TeamView {
            team: name.parse().unwrap(),
            node: node.map(|node| node.parse().unwrap()),
            url: None,
            epoch: Epoch::new(epoch).unwrap(),
            kind: TeamKind::Auto,
            weight: Weight::TEAM,
            moving_from: None,
            region: None,
            labels: BTreeMap::new(),
            pin: None,
        }
    }

    #[test]
    fn teams_stand_in_a_table() {
        let moving = TeamView {
            moving_from: Some("node-2".parse().unwrap()),
            kind: TeamKind::Put,
            ..team("T1", Some("node-1"), 7)
        };
        let pinned = TeamView {
            region: Some("eu".parse().unwrap()),
            pin: Some(Pin {
                node: "node-9".parse().unwrap(),
                seconds: 3_600,
                strength: PinStrength::Hard,
            }),
            ..team("T2", None, 0)
        };
        let view = TeamsView {
            teams: vec![moving, pinned],
            total: 9,
            next: Some("T2".parse().unwrap()),
        };
        assert_eq!(
            render(&view),
            "TEAM  NODE                     EPOCH  WEIGHT  KIND  HELD TO\n\
             T1    node-1 (leaving node-2)      7       1  put   -\n\
             T2    none can take it             0       1  auto  region eu, pinned to node-9 for 60 min\n\
             2 teams shown; more with --limit\n"
        );
    }
}
