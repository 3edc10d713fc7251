//! `usher cordon`, `uncordon` and `undrain`: whether a node takes new teams.

use clap::Args;
use std::process::ExitCode;
use usher_shared::id::NodeId;
use usher_shared::rest::NodeView;

use crate::api::{Api, AskArgs, json};
use crate::failure::Failure;
use crate::output;
use crate::table::count;

/// Let a node keep what it has and take no new teams
#[derive(Args)]
#[command(after_help = "Example:\n  usher cordon node-1")]
pub(crate) struct CordonArgs {
    #[command(flatten)]
    on: OnNode,
}

/// Let a cordoned node take new teams again
#[derive(Args)]
#[command(after_help = "Example:\n  usher uncordon node-1")]
pub(crate) struct UncordonArgs {
    #[command(flatten)]
    on: OnNode,
}

/// Stop a drain, and let the node take new teams again
#[derive(Args)]
#[command(
    after_help = "Teams that moved stay where they are; the others stay on the node.\n\n\
    Example:\n  usher undrain node-1"
)]
pub(crate) struct UndrainArgs {
    #[command(flatten)]
    on: OnNode,
}

#[derive(Args)]
struct OnNode {
    /// The node
    node: NodeId,
    #[command(flatten)]
    ask: AskArgs,
}

pub(crate) async fn cordon(args: CordonArgs) -> Result<ExitCode, Failure> {
    tell(args.on, "cordon").await
}

pub(crate) async fn uncordon(args: UncordonArgs) -> Result<ExitCode, Failure> {
    tell(args.on, "uncordon").await
}

pub(crate) async fn undrain(args: UndrainArgs) -> Result<ExitCode, Failure> {
    tell(args.on, "undrain").await
}

async fn tell(on: OnNode, verb: &str) -> Result<ExitCode, Failure> {
    let path = format!("/v1/nodes/{}/{verb}", on.node);
    let node: NodeView = Api::new(&on.ask.admin)?
        .post(&path, &serde_json::json!({}))
        .await?;
    if on.ask.json {
        output::line(&json(&node)?);
    } else {
        output::line(&render(&node));
    }
    Ok(ExitCode::SUCCESS)
}

fn render(node: &NodeView) -> String {
    format!(
        "{} is {}, with {} and {}",
        node.node,
        node.state.as_str(),
        count(u64::from(node.teams), "team"),
        count(u64::from(node.connections), "connection")
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::nodes::tests::node;
    use usher_shared::rest::NodeState;

    #[test]
    fn the_answer_is_the_node() {
        assert_eq!(
            render(&node("node-1", 1, NodeState::Cordoned, 1)),
            "node-1 is cordoned, with 1 team and 2 connections"
        );
    }
}
