//! `usher release`: end self-preservation.

use clap::Args;
use std::process::ExitCode;

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
    #[command(flatten)]
    ask: AskArgs,
}

pub(crate) async fn run(args: ReleaseArgs) -> Result<ExitCode, Failure> {
    Api::new(&args.ask.admin)?
        .ask_for("/v1/self-preservation/release")
        .await?;
    if args.ask.json {
        output::line(&json(&serde_json::json!({ "released": true }))?);
    } else {
        output::line("self-preservation is released; `usher nodes` shows what moves");
    }
    Ok(ExitCode::SUCCESS)
}
