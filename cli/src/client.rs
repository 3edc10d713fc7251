//! A client of a team that goes through the broker, moves when it is told to, and comes back.
//!
//! [`decide`] holds every decision and touches nothing; [`resolve`] asks the broker; [`dial`] opens
//! one connection; [`session`] runs one client for as long as it lives. `usher connect` and
//! `usher load` are both made of it.

pub(crate) mod decide;
pub(crate) mod dial;
pub(crate) mod resolve;
pub(crate) mod session;
mod silence;

use clap::Args;
use std::path::PathBuf;

use crate::failure::Failure;
use crate::settings;
use resolve::Brokers;

/// Where clients ask for their node.
#[derive(Args, Clone, Debug)]
pub(crate) struct BrokerArgs {
    /// The brokers' client listeners, separated by commas
    #[arg(
        long = "broker",
        env = "USHER_BROKER",
        default_value = "http://127.0.0.1:7400",
        value_delimiter = ',',
        value_name = "URL"
    )]
    brokers: Vec<String>,
    /// Only nodes of this region
    #[arg(long)]
    region: Option<usher_shared::id::Label>,
    /// File with the client token, where the broker asks for one; USHER_CLIENT_TOKEN may hold it
    #[arg(long, env = "USHER_CLIENT_TOKEN_FILE", value_name = "FILE")]
    client_token_file: Option<PathBuf>,
}

impl BrokerArgs {
    pub(crate) fn brokers(&self) -> Result<Brokers, Failure> {
        let file = self.client_token_file.as_deref();
        let token = settings::token("USHER_CLIENT_TOKEN", file, None).map_err(Failure::settings)?;
        let token = token.and_then(|token| token.shown());
        Brokers::new(&self.brokers, self.region.clone(), token)
    }
}
