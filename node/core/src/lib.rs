//! Every decision of an Usher node, without a runtime, a clock or a socket.
//!
//! The [`mandate`] binds what a node may do on a broker's word: whom it follows ([`authority`]), how long exclusive
//! effects go on without an answer ([`lease`]), what it holds and under which epoch ([`holdings`]), and what it does
//! with its connections once the lease is over ([`lapse`]). [`admission`] says who comes in, [`pacing`] when each
//! connection of a team that goes is closed, [`outgoing`] what is still to be told, [`tickets`] whose ticket is genuine,
//! [`stopping`] how a process leaves.
//!
//! Each of them is given values and a [`Timestamp`](usher_shared::quantity::Timestamp) that never goes back, and returns
//! what is to be done. `usher-node` is the IO around them, and the simulator another caller of the same code.

pub mod admission;
pub mod authority;
pub mod holdings;
pub mod lapse;
pub mod lease;
pub mod mandate;
pub mod outgoing;
pub mod pacing;
pub mod stopping;
pub mod tickets;

pub use lapse::OnLapse;
