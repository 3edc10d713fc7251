//! `usher release`: end self-preservation.

use clap::Args;
use std::process::ExitCode;
use usher_shared::rest::{BrokerState, StatusView};

use crate::api::{Api, AskArgs, json};
use crate::failure::Failure;
use crate::output;

/// Let the broker move the teams of silent nodes, although too many went silent at once
#[derive(Args)]
#[command(
    after_help = "When many nodes go silent together, the network is the likelier culprit than the nodes, and\n\
    the broker moves nothing on silence alone; `usher status` says so. When you know that the\n\
    nodes are gone, this lets it go on.\n\n\
    Example:\n  usher release"
)]
pub(crate) struct ReleaseArgs {
    /// Also while links of nodes are refused for their token, which says that the nodes live
    #[arg(long)]
    force: bool,
    #[command(flatten)]
    ask: AskArgs,
}

pub(crate) async fn run(args: ReleaseArgs) -> Result<ExitCode, Failure> {
    let api = Api::new(&args.ask.admin)?;
    let status: StatusView = api.get("/v1/status").await?;
    if let (Some(count), false) = (status.links_refused.get("unauthorized"), args.force) {
        return Err(Failure::say(format!(
            "{count} links of nodes were refused for their token lately: these nodes live, and to release would move \
             teams that are served"
        ))
        .try_this("give nodes and broker the same token; --force if other nodes are known to be dead"));
    }
    let held = status.state == BrokerState::SelfPreservation;
    api.ask_for("/v1/self-preservation/release").await?;
    if args.ask.json {
        output::line(&json(&serde_json::json!({ "released": held }))?);
    } else if held {
        output::line("self-preservation is released; `usher nodes` shows what moves");
    } else {
        output::line("nothing was held back: the broker is not in self-preservation");
    }
    Ok(ExitCode::SUCCESS)
}
