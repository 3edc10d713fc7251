//! `usher drain`: empty a node.

use clap::Args;
use std::process::ExitCode;
use usher_shared::id::NodeId;
use usher_shared::rest::{DrainPost, OperationView};

use crate::api::{Api, AskArgs};
use crate::duration::HumanDuration;
use crate::failure::Failure;
use crate::{operations, output};

/// Move every team away from a node, a few at a time
#[derive(Args)]
#[command(
    after_help = "The node stays up and takes nothing new until `usher undrain`, over restarts of it, too. With\n\
    --wait the exit code is 0 when the node is empty, 1 when teams that are pinned hard stay.\n\n\
    A team goes together; with --rate one that has more connections than that is spread. When\n\
    what leaves does not arrive elsewhere the drain waits and says so: drain again to let some\n\
    more go, with --force to go on to the end, or undrain. Draining again with another --rate or\n\
    --deadline changes those of the drain that is going on.\n\n\
    Examples:\n  usher drain node-1 --wait\n  usher drain node-1 --rate 50\n  \
    usher drain node-1 --deadline 5m --force"
)]
pub(crate) struct DrainArgs {
    /// The node
    node: NodeId,
    /// Connections moved a second; by default 200 for each other ready node, at most half of that sum
    #[arg(long, value_name = "PER_SECOND", value_parser = clap::value_parser!(u32).range(1..=10_000))]
    rate: Option<u32>,
    /// When it must be done; the rate rises if it must
    #[arg(long, value_name = "DURATION")]
    deadline: Option<HumanDuration>,
    /// Go on although the other nodes cannot hold it, or a team is pinned here; of a drain that is
    /// going on: although nobody arrives elsewhere
    #[arg(long)]
    force: bool,
    /// Follow it to its end and print the report
    #[arg(long)]
    wait: bool,
    #[command(flatten)]
    ask: AskArgs,
}

pub(crate) async fn run(args: DrainArgs) -> Result<ExitCode, Failure> {
    let api = Api::new(&args.ask.admin)?;
    let body = DrainPost {
        rate_per_s: args.rate,
        deadline_s: args.deadline.map(|deadline| deadline.as_millis().div_ceil(1_000)),
        force: args.force,
    };
    let path = format!("/v1/nodes/{}/drain", args.node);
    let view: OperationView = api.post(&path, &body).await?;
    if let Some(asked) = args.rate.filter(|asked| *asked < view.rate_per_s) {
        output::note(&format!(
            "note: {asked} connections/s would not meet the deadline; it goes at {}",
            view.rate_per_s
        ));
    }
    operations::started(&api, view, args.wait, args.ask.json).await
}
