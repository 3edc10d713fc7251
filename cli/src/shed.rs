//! `usher shed`: let a node give some of its teams away.

use clap::Args;
use std::process::ExitCode;
use usher_shared::id::NodeId;
use usher_shared::rest::{OperationView, ShedPost};

use crate::api::{Api, AskArgs};
use crate::failure::Failure;
use crate::operations;

/// Move some teams away from a node
#[derive(Args)]
#[command(after_help = "Examples:\n  usher shed node-1 --percent 20 --wait\n  usher shed node-1 --teams 5")]
pub(crate) struct ShedArgs {
    /// The node
    node: NodeId,
    #[command(flatten)]
    how_many: HowMany,
    /// Connections moved a second, as for a drain
    #[arg(long, value_name = "PER_SECOND", value_parser = clap::value_parser!(u32).range(1..=10_000))]
    rate: Option<u32>,
    /// Follow it to its end and print the report
    #[arg(long)]
    wait: bool,
    #[command(flatten)]
    ask: AskArgs,
}

#[derive(Args)]
#[group(required = true, multiple = false)]
struct HowMany {
    /// How many teams
    #[arg(long, value_name = "NUMBER", value_parser = clap::value_parser!(u32).range(1..))]
    teams: Option<u32>,
    /// Which share of its teams, 1 to 100
    #[arg(long, value_name = "PERCENT", value_parser = clap::value_parser!(u32).range(1..=100))]
    percent: Option<u32>,
}

pub(crate) async fn run(args: ShedArgs) -> Result<ExitCode, Failure> {
    let api = Api::new(&args.ask.admin)?;
    let body = ShedPost {
        teams: args.how_many.teams,
        percent: args.how_many.percent,
        rate_per_s: args.rate,
    };
    let path = format!("/v1/nodes/{}/shed", args.node);
    let view: OperationView = api.post(&path, &body).await?;
    operations::started(&api, view, args.wait, args.ask.json).await
}
