//! `usher`: the one executable. It is the broker, the node, a whole cluster on one machine, the
//! operator's verbs, and a client.

mod api;
mod assign;
mod broker;
mod client;
mod connect;
mod cordon;
mod dev;
mod drain;
mod duration;
mod failure;
mod load;
mod logging;
mod names;
mod node;
mod nodes;
mod operations;
mod output;
mod release;
mod reload;
mod settings;
mod shed;
mod signals;
mod status;
mod table;
mod teams;
mod why;

use clap::{CommandFactory as _, FromArgMatches as _, Parser, Subcommand};
use failure::Failure;
use std::process::ExitCode;
use std::time::Duration;

/// Puts every team's WebSockets on the least-busy node, keeps them there, and moves them gently.
#[derive(Parser)]
#[command(
    name = "usher",
    version,
    max_term_width = 100,
    arg_required_else_help = true,
    after_help = "Start here:\n  \
        usher dev                     a broker and three nodes on this machine\n  \
        usher connect T1              a client of team T1 (in a second terminal)\n  \
        usher why T1                  why T1 is where it is\n  \
        usher drain node-1 --wait     empty a node and watch\n\n\
        Every flag of `usher broker` and `usher node` can also be a USHER_* variable or a line in a\n\
        TOML file (--config); a flag beats a variable, a variable beats the file."
)]
struct Usher {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Subcommand)]
enum Verb {
    Dev(dev::DevArgs),
    Broker(broker::BrokerArgs),
    Node(node::NodeArgs),
    Status(status::StatusArgs),
    Nodes(nodes::NodesArgs),
    Teams(teams::TeamsArgs),
    Assign(assign::AssignArgs),
    Forget(assign::ForgetArgs),
    Why(why::WhyArgs),
    Drain(drain::DrainArgs),
    Undrain(cordon::UndrainArgs),
    Shed(shed::ShedArgs),
    Cordon(cordon::CordonArgs),
    Uncordon(cordon::UncordonArgs),
    Operations(operations::OperationsArgs),
    Operation(operations::OperationArgs),
    Release(release::ReleaseArgs),
    Connect(connect::ConnectArgs),
    Load(load::LoadArgs),
}

fn main() -> ExitCode {
    let command = settings::without_empty_variables(Usher::command());
    let verb = match Usher::from_arg_matches(&command.get_matches()) {
        Ok(usher) => usher.verb,
        Err(error) => error.exit(),
    };
    match start(verb) {
        Ok(code) => code,
        Err(failure) => {
            output::note(&failure.to_string());
            failure.exit_code()
        }
    }
}

fn start(verb: Verb) -> Result<ExitCode, Failure> {
    tie_to_parent_if_asked();
    let _last_lines = logging::FlushAtEnd;
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .map_err(anyhow::Error::from)?;
    let ended = runtime.block_on(run(verb));
    // A thread that still reads the keyboard must not hold the process.
    runtime.shutdown_timeout(Duration::from_millis(200));
    ended
}

async fn run(verb: Verb) -> Result<ExitCode, Failure> {
    match verb {
        Verb::Dev(args) => Box::pin(dev::run(args)).await,
        Verb::Broker(args) => Box::pin(broker::run(args)).await,
        Verb::Node(args) => Box::pin(node::run(args)).await,
        Verb::Status(args) => status::run(args).await,
        Verb::Nodes(args) => nodes::run(args).await,
        Verb::Teams(args) => teams::run(args).await,
        Verb::Assign(args) => assign::assign(args).await,
        Verb::Forget(args) => assign::forget(args).await,
        Verb::Why(args) => why::run(args).await,
        Verb::Drain(args) => drain::run(args).await,
        Verb::Undrain(args) => cordon::undrain(args).await,
        Verb::Shed(args) => shed::run(args).await,
        Verb::Cordon(args) => cordon::cordon(args).await,
        Verb::Uncordon(args) => cordon::uncordon(args).await,
        Verb::Operations(args) => operations::list(args).await,
        Verb::Operation(args) => operations::one(args).await,
        Verb::Release(args) => release::run(args).await,
        Verb::Connect(args) => Box::pin(connect::run(args)).await,
        Verb::Load(args) => Box::pin(load::run(args)).await,
    }
}

/// `usher dev` sets this for its children, to its own process id: they die with it, even when it is
/// killed and can stop nobody.
const TIE_VARIABLE: &str = "USHER_TIE_TO_PARENT";

fn tie_to_parent_if_asked() {
    let Ok(asked) = std::env::var(TIE_VARIABLE) else {
        return;
    };
    // The variable reaches grandchildren too; a node's child is tied to its own parent.
    if std::env::var_os(usher_node::parent::PARENT_VARIABLE).is_some() {
        return;
    }
    // SIGKILL and not SIGTERM: nobody is left who would wait for a gentle stop.
    if rustix::process::set_parent_process_death_signal(Some(rustix::process::Signal::KILL)).is_err() {
        return;
    }
    // The parent may have died before the line above; then the signal would never come.
    let parent = rustix::process::getppid().map(|pid| pid.as_raw_nonzero().get().to_string());
    if asked != "1" && parent.as_deref() != Some(asked.as_str()) {
        std::process::exit(1);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Usher::command().debug_assert();
    }
}
