//! A deterministic simulation of a broker, its nodes and their clients, that tries to break them.
//!
//! The broker's placement core, its pipeline to the store, and the nodes' decisions are the real ones;
//! clocks, network, disk, processes, operators and clients are made here. Everything that happens is
//! drawn from one seed, so a seed replays to the same trace. Each seed switches on a few kinds of
//! faults; after a while they stop, everything heals, and what was promised must come about.
//!
//! | question | file |
//! | --- | --- |
//! | what is one seed made of? | `plan` |
//! | what happens, and in which order? | `agenda`, `world` |
//! | what do processes take for the time? | `clock` |
//! | what becomes of a message on its way? | `network` |
//! | what does the broker's process do, and what survives it? | `broker`, `broker_work`, `visits`, `disk` |
//! | what does a node's process do? | `node`, `node_link`, `node_work`, `doors` |
//! | what do clients do? | `client` |
//! | what goes wrong? | `faults`, `standstill`, `forgery`, `namesake`, `trust` |
//! | what do exclusive effects reach? | `registers` |
//! | what is promised of epochs and records? | `truth` |
//! | what has the broker been told, and does it decide by that? | `mirror`, `judge`, `caution` |
//! | what must hold of nodes after every step? | `safety` |
//! | what must come about in the end? | `liveness` |

mod agenda;
mod broker;
mod broker_work;
mod caution;
mod client;
mod clock;
mod dice;
mod disk;
mod doors;
mod faults;
mod forgery;
mod judge;
mod liveness;
mod mirror;
mod namesake;
mod network;
mod node;
mod node_link;
mod node_work;
mod plan;
mod registers;
mod safety;
mod standstill;
mod trust;
mod truth;
mod visits;
mod world;

pub use world::{Outcome, Story, Violation, run};
