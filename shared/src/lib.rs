//! What crosses a process boundary in Usher.
//!
//! The broker, the nodes, the command line and any server in another language agree on what is in
//! this package and on nothing else: [`id`]s, [`quantity`] newtypes, [`link`] messages between node
//! and broker, [`ticket`]s and [`grant`]s, the control [`frame`]s a client may see, and the
//! [`rest`] bodies an operator sees. Everything is parsed here into types that cannot be wrong, so
//! the packages behind it do not check again.

pub mod clock;
pub mod credential;
pub mod figure;
pub mod frame;
pub mod grant;
pub mod id;
pub mod identity;
pub mod lease;
pub mod link;
pub mod planted;
pub mod quantity;
pub mod rest;
pub mod secret;
pub mod template;
pub mod ticket;
pub mod way;
