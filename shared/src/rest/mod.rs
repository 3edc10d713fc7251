//! Bodies of the REST API under `/v1`, as the broker sends them and the command line reads them.

mod decision;
mod node;
mod operation;
mod problem;
mod status;
mod team;

pub use decision::{Cause, DecisionView, Gate, ScoreView};
pub use node::{DistrustView, NodeState, NodeView, NodesView, ProbeState, RivalView};
pub use operation::{DrainPost, OperationKind, OperationState, OperationView, OperationsView, ShedPost};
pub use problem::Problem;
pub use status::{BrokerState, Imbalance, SelfPreservationView, StatusView};
pub use team::{ConnectView, Pin, PinStrength, TeamKind, TeamPatch, TeamPut, TeamView, TeamsView, WhyView};
