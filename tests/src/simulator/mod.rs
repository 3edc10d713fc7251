//! A deterministic simulation of one broker, several nodes and their clients.
//!
//! The broker's placement core and the nodes' holdings, lease and authority are the real ones; the
//! network, the disk, the clocks and the clients are made here. Everything that happens is drawn
//! from one seed, so a seed replays to the same trace.
//!
//! Faults: links break and lose what was on its way, nodes crash with and without a witness, the
//! broker crashes and loses what was not durable, operators drain and cordon. After each event it
//! is checked that no two nodes may have exclusive effects for one team, that epochs only grow, and
//! that nothing was shown that a crash could forget. Then the faults stop, and it is checked that
//! every team is owned by a live node that knows it and that every client is back.

mod broker;
mod client;
mod dice;
mod node;
mod world;

pub use world::{Outcome, Plan, run};
