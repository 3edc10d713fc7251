//! How Usher's processes listen.
//!
//! [`accept`] is the loop that every listener runs on: a bound on connections, time-outs on request
//! heads, a graceful stop that knows about upgraded sockets. [`room`] decides who gives way when there
//! are too many, and [`places`] lets connections share one. [`inflow`] is a request's body, of which
//! nothing stays unread; [`wire`] the stream below. Once it is a WebSocket, [`frames`] says which frames may
//! come, and [`gate`] stands before the stream. [`path`] knows one spelling for one path.
//! [`health`] and [`answer`] build the responses that all listeners share, and [`telemetry`] is the
//! recorder behind every `/metrics`. [`supervise`] says what a bug in one task does to the rest, and [`fold`]
//! keeps a log readable while something goes on.

pub mod accept;
pub mod answer;
pub mod fold;
pub mod frames;
pub mod gate;
pub mod health;
pub mod inflow;
pub mod path;
pub mod places;
pub mod room;
pub mod supervise;
pub mod telemetry;
pub mod wire;
