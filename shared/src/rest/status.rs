//! The broker at a glance.

use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

use super::node::NodeState;
use crate::id::{BrokerId, ClusterId};
use crate::quantity::Term;

/// The broker at a glance: `GET /v1/status`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct StatusView {
    /// The cluster.
    pub cluster: ClusterId,
    /// This process.
    pub broker: BrokerId,
    /// Its term.
    pub term: Term,
    /// Its software.
    pub version: String,
    /// Whether it moves teams freely.
    pub state: BrokerState,
    /// Milliseconds since its start.
    pub uptime_ms: u64,
    /// Nodes by state.
    pub nodes: BTreeMap<NodeState, u32>,
    /// Teams in all.
    pub teams: u64,
    /// Of these, the ones that no node may take just now.
    pub teams_unplaced: u64,
    /// Connections that nodes reported.
    pub connections: u64,
    /// The largest of the next: 1,000,000 is even.
    pub imbalance_ppm: u64,
    /// How uneven the ready nodes are.
    #[serde(default)]
    pub imbalance: Imbalance,
    /// Operations that are going on.
    pub operations_running: u32,
    /// Links of nodes refused in the last minute or two, by code.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub links_refused: BTreeMap<String, u64>,
    /// Self-preservation, while it is on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub self_preservation: Option<SelfPreservationView>,
}

/// Self-preservation: too many nodes fell silent at once, and none counts as dead for silence alone.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SelfPreservationView {
    /// Nodes that hold teams and are silent, or died of it lately.
    pub silent: u32,
    /// Nodes that hold teams.
    pub nodes: u32,
    /// For how many milliseconds it has been on, counted from when somebody was heard who could take teams.
    pub since_ms: u64,
    /// In how many milliseconds it ends by itself, and the silent nodes' teams move.
    pub ends_in_ms: u64,
}

/// The busiest ready node over the mean of the ready ones, for each of what the score counts, in parts per
/// million; 1,000,000 is even. Below a small mean (10 teams, 50 connections, a tenth of the CPU) differences
/// count for less: they say nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Imbalance {
    /// Of the weights of teams.
    pub teams_ppm: u64,
    /// Of connections.
    pub connections_ppm: u64,
    /// Of CPU.
    pub cpu_ppm: u64,
}

impl Default for Imbalance {
    fn default() -> Self {
        Self {
            teams_ppm: 1_000_000,
            connections_ppm: 1_000_000,
            cpu_ppm: 1_000_000,
        }
    }
}

impl Imbalance {
    /// The largest of the three.
    #[must_use]
    pub fn most(&self) -> u64 {
        self.teams_ppm.max(self.connections_ppm).max(self.cpu_ppm)
    }
}

/// Whether the broker moves teams freely.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum BrokerState {
    /// As ever.
    Ready,
    /// Lately started: owners change only on proof of death until the nodes have reported.
    Grace,
    /// Too many nodes went silent at once: nothing is re-assigned on silence alone.
    SelfPreservation,
}
