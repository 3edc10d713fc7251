//! Every decision of the broker, as a state machine without IO.
//!
//! [`Core`] owns the state of the cluster: nodes, teams, operations, the epoch counter. It is told
//! what happened with [`Core::handle`], answers with [`Command`]s that the caller carries out
//! ([`Core::poll_command`]), and says when it wants to be woken ([`Core::next_deadline`],
//! [`Core::handle_deadline`]). It reads no clock, does no IO, logs nothing and draws no random
//! number, so a run can be printed, replayed and simulated.
//!
//! One file answers one question asked of the state:
//!
//! | question | file |
//! | --- | --- |
//! | which node takes this team? | `choose` |
//! | how busy is a node, and who is least busy? | `score` |
//! | how much does it count that a node can hardly go on? | `strain` |
//! | how much may a node take that came back lately? | `warmth` |
//! | what may a client's or an operator's request do? | `request` |
//! | is a node alive, and since when not? | `liveness` |
//! | may silence be believed while much is silent at once? | `caution` |
//! | do clients get to a node, and does it stay up? | `trust` |
//! | who speaks under a name, and what became of whoever had it before? | `identity` |
//! | who may have exclusive effects, and from when? | `activation` |
//! | whose teams need a new owner now, and may they have one? | `failover` |
//! | how does an operation begin and end? | `drain` |
//! | which team leaves next, and when is an operation done? | `advance` |
//! | how fast do its connections go? | `speed` |
//! | how many connections may an operation move now? | `bucket` |
//! | do those that leave arrive elsewhere? | `returns` |
//! | how many connections has each team of a node? | `counting` |
//! | whose departure and arrival is that? | `arrivals` |
//! | what becomes of a client whose team's node is full? | `relief` |
//! | how does one team get from one node to another? | `moving` |
//! | which epoch is next? | `epochs` |
//! | how many names may be new at once? | `names` |
//! | do a node's clock and the broker's run alike? | `pace` |
//! | whose is the address that a node is probed at? | `addresses` |
//! | whom does a node ask that has lost the broker? | `peers` |
//! | what does a node hold that it should not, or lack? | `reconcile` |
//! | what must be durable before it is shown? | [`pipeline`] |
//! | what does an operator see? | `view` |
#![forbid(unsafe_code)]

mod activation;
mod addresses;
mod advance;
mod arrivals;
mod bucket;
mod caution;
mod choose;
mod command;
mod core;
mod counting;
mod drain;
mod epochs;
mod event;
mod failover;
mod gaps;
mod history;
mod identity;
mod link;
mod liveness;
mod movers;
mod moving;
mod names;
mod node;
mod notice;
mod operation;
mod pace;
mod peers;
pub mod pipeline;
mod reconcile;
mod record;
mod refusal;
mod relief;
mod request;
mod returns;
mod score;
mod settings;
mod speed;
mod strain;
mod team;
mod trust;
mod view;
pub mod visit;
mod warmth;
mod wishes;

pub use command::{Answer, Command, NodeEntry, Route};
pub use core::Core;
pub use event::{Ask, Event, Knock, LinkId, ProbeOutcome, RequestId};
pub use notice::{
    Disbelief, Evidence, Kept, MoveOutcome, NodeFault, Notice, Preservation, Regressed, TrustChange,
};
pub use pace::Pace;
pub use record::{IntentRecord, NodeRecord, OperationRecord, PinRecord, Record, Snapshot, TeamRecord};
pub use refusal::Refusal;
pub use settings::{Settings, SettingsError};
