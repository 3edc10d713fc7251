//! How Usher's processes listen.
//!
//! [`accept`] is the loop that every listener runs on: a cap on connections, time-outs on request
//! heads, a graceful stop that knows about upgraded sockets. [`telemetry`] is the recorder behind
//! every `/metrics`. [`answer`] builds the few responses that all listeners share. [`supervise`] says what a bug in
//! one task does to the rest, and [`fold`] keeps a log readable while something goes on.

pub mod accept;
pub mod answer;
pub mod fold;
pub mod supervise;
pub mod telemetry;
